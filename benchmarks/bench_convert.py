"""The cost of converting a net of VGG-16's size (138 million parameters, a 553 MB caffemodel), compared with a copy.

    python benchmarks/bench_convert.py [--rounds N] [--quick]
    python benchmarks/bench_convert.py --layers 2500 5000 10000     chains of that many small layers instead

Every row is a separate process, the rows take turns, and the median of the rounds is reported. The files are warm (in
the page cache) and nothing waits for the disk: neither cp nor caffe-port calls fsync. Memory is the peak resident size
of the process (VmHWM), which includes pages of mapped files that the system may reclaim at any time, and the largest
anonymous part of it that was observed (RssAnon, every 5 ms). Linux only.
"""

from __future__ import annotations

import argparse
import compileall
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import caffe_port

BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


@dataclass
class Row:
    """A process to measure, and the results of its runs; ``parts`` are figures that it prints itself, as JSON.

    Attributes:
        fails: whether it must end with exit code 2, bad input.
    """

    name: str
    command: list[str]
    seconds: list[float] = field(default_factory=list)
    peak: float = 0.0
    anonymous: float = 0.0
    parts: dict[str, list[float]] = field(default_factory=dict)
    fails: bool = False

    def run(self) -> None:
        start = time.perf_counter()
        process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        watcher = threading.Thread(target=self._watch, args=(process,))
        watcher.start()
        out, err = process.communicate()
        self.seconds.append(time.perf_counter() - start)
        watcher.join()
        if process.returncode != (2 if self.fails else 0):
            sys.exit(f"{' '.join(self.command)}\n{err}")
        if out.startswith("{"):
            for name, value in json.loads(out).items():
                self.parts.setdefault(name, []).append(value)

    def _watch(self, process: subprocess.Popen[str]) -> None:
        while process.returncode is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            peak, anonymous = (re.search(rf"{key}:\s+(\d+) kB", status) for key in ("VmHWM", "RssAnon"))
            if peak and anonymous:  # neither exists after the process has ended
                self.peak = max(self.peak, int(peak[1]) * 1024 / 1e6)
                self.anonymous = max(self.anonymous, int(anonymous[1]) * 1024 / 1e6)
            time.sleep(0.005)


# -- what the processes run ---------------------------------------------------------------------------------------


def vgg(side: int, width: int) -> str:
    """A deploy prototxt of VGG-16; ``width``, that of fc6 and fc7, is 4096 in the paper."""
    text = f'name: "VGG_16"\nlayer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 1 dim: 3 dim: {side} dim: {side} }} }} }}\n'  # noqa: E501
    bottom = "data"

    def add(name: str, type_: str, parameters: str, in_place: bool = False) -> None:
        nonlocal bottom, text
        top = bottom if in_place else name
        text += f'layer {{ name: "{name}" type: "{type_}" bottom: "{bottom}" top: "{top}" {parameters} }}\n'
        bottom = top

    for block, (count, outputs) in enumerate(BLOCKS, 1):
        for n in range(1, count + 1):
            window = f"num_output: {outputs} kernel_size: 3 pad: 1"
            add(f"conv{block}_{n}", "Convolution", f"convolution_param {{ {window} }}")
            add(f"relu{block}_{n}", "ReLU", "", in_place=True)
        add(f"pool{block}", "Pooling", "pooling_param { kernel_size: 2 stride: 2 }")
    for n, outputs in ((6, width), (7, width), (8, 1000)):
        add(f"fc{n}", "InnerProduct", f"inner_product_param {{ num_output: {outputs} }}")
        if n < 8:
            add(f"relu{n}", "ReLU", "", in_place=True)
    add("prob", "Softmax", "")
    return text


def chain(layers: int) -> str:
    """A prototxt of so many layers: 1x1 convolutions, each with a ReLU in place."""
    text, bottom = (
        'layer { name: "x" type: "Input" top: "x" input_param { shape: { dim: 1 dim: 2 dim: 4 dim: 3 } } }\n',
        "x",
    )
    for n in range(layers // 2):
        window = 'num_output: 2 kernel_size: 1 weight_filler { type: "xavier" }'
        wiring = f'name: "c{n}" bottom: "{bottom}" top: "c{n}"'
        text += f'layer {{ type: "Convolution" {wiring} convolution_param {{ {window} }} }}\n'
        text += f'layer {{ name: "r{n}" type: "ReLU" bottom: "c{n}" top: "c{n}" }}\n'
        bottom = f"c{n}"
    return text


def deep(folder: Path, counts: list[int], rounds: int) -> None:
    """Prints the seconds of converting chains of so many layers."""
    print(f"{datetime.date.today()}; {processor()}; torch {importlib.metadata.version('torch')}\n")
    print(f"| median of {rounds} | seconds | peak MB |\n| --- | ---: | ---: |")
    for count in counts:
        path = folder / f"{count}.prototxt"
        path.write_text(chain(count))
        command = [sys.executable, "-m", "caffe_port", "convert", str(path), "-o", str(folder / "out"), "--force"]
        row = Row(f"`caffe-port convert` of {count:,} layers", command)
        for _ in range(rounds):
            row.run()
        print(f"| {row.name} | {statistics.median(row.seconds):.1f} | {row.peak:,.0f} |")


def make(folder: Path, side: int, width: int) -> None:
    """Writes net.prototxt and w.caffemodel, with random weights scaled so that activations do not vanish."""
    import numpy as np

    from caffe_port.formats import caffemodel, prototxt

    text = vgg(side, width)
    (folder / "net.prototxt").write_text(text)
    random = np.random.Generator(np.random.PCG64(0))

    def blobs(outputs: int, *inputs: int) -> list[caffemodel.Array]:
        weight = random.standard_normal((outputs, *inputs), np.float32)
        weight *= np.float32((2 / np.prod(inputs)) ** 0.5)
        return [weight, random.standard_normal(outputs, np.float32)]

    made, channels = {}, 3
    for block, (count, outputs) in enumerate(BLOCKS, 1):
        for n in range(1, count + 1):
            made[f"conv{block}_{n}"] = blobs(outputs, channels, 3, 3)
            channels = outputs
    features = channels * (side // 32) ** 2
    for n, outputs in ((6, width), (7, width), (8, 1000)):
        made[f"fc{n}"] = blobs(outputs, features)
        features = outputs
    caffemodel.write(folder / "w.caffemodel", prototxt.parse(text, "NetParameter"), made)


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def read(folder: Path) -> dict[str, float]:
    """caffemodel.read: all arrays are available, but none of their pages has been read."""
    from caffe_port.formats import caffemodel

    return {"read": min(timed(lambda: caffemodel.read(folder / "w.caffemodel")) for _ in range(5))}


def inside(folder: Path) -> dict[str, float]:
    """The seconds that each part of convert takes, in a process that has imported torch."""
    from caffe_port import api
    from caffe_port.emit import convert as emitting

    compare, checking = emitting.self_check, [0.0, 0.0]

    def check(*args: object, **options: object) -> str:
        checking[0] = time.perf_counter()
        said = compare(*args, **options)  # type: ignore[arg-type]
        checking[1] = time.perf_counter()
        return said

    emitting.self_check = check
    start = time.perf_counter()
    ported = api.port(folder / "net.prototxt", folder / "w.caffemodel", share=True)
    port = time.perf_counter() - start
    start = time.perf_counter()
    emitting.convert(ported, folder / "inside", force=True)
    began, ended = checking
    return {"port": port, "write": began - start, "check": ended - began, "rest": time.perf_counter() - ended}


def blobs(folder: Path) -> dict[str, float]:
    """convert --format safetensors, in a process that has already imported its modules."""
    from caffe_port.emit import blobs

    return {"blobs": timed(lambda: blobs.convert(folder / "w.caffemodel", folder / "blobs"))}


def naive(folder: Path) -> dict[str, float]:
    """What scripts usually do: protobuf's parser, an array from each field, torch.save; no model, no check."""
    import numpy as np
    import torch
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    import caffe_port

    pool = descriptor_pool.DescriptorPool()
    schema = (Path(caffe_port.__file__).parent / "formats" / "caffe.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(schema).file:
        pool.Add(file)
    start = time.perf_counter()
    net = message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))()
    net.ParseFromString((folder / "w.caffemodel").read_bytes())
    state = {
        f"{layer.name}.{index}": torch.from_numpy(np.array(blob.data, np.float32).reshape(*blob.shape.dim))
        for layer in net.layer
        for index, blob in enumerate(layer.blobs)
    }
    torch.save(state, folder / "naive.pt")
    return {"naive": time.perf_counter() - start}


# -- the table ----------------------------------------------------------------------------------------------------


def processor() -> str:
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return f"{found[1] if found else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def line(name: str, seconds: float, cp: float, row: Row | None = None) -> str:
    memory = f"{row.peak:,.0f} | {row.anonymous:,.0f}" if row else " | "
    return f"| {name} | {seconds:.3f} | {seconds / cp:.2f} | {memory} |"


def measure(folder: Path, rounds: int) -> None:
    python, command = [sys.executable], [sys.executable, "-m", "caffe_port"]
    prototxt, weights = str(folder / "net.prototxt"), str(folder / "w.caffemodel")

    def own(phase: str) -> list[str]:
        return [*python, __file__, "--phase", phase, "--folder", str(folder)]

    cp = Row("`cp` of the caffemodel", ["cp", weights, str(folder / "copy")])
    reading = Row("read to arrays", own("read"))
    torch = Row("`import torch` alone", [*python, "-c", "import torch"])
    parts = Row("the same in a process that has torch", own("inside"))
    whole = Row(
        "`caffe-port convert`, the command", [*command, "convert", prototxt, weights, "-o", str(folder / "out")]
    )
    fast = Row(
        "`caffe-port convert --format safetensors`, the command",
        [*command, "convert", weights, "-o", str(folder / "blobs"), "--format", "safetensors"],
    )
    alone = Row("the same in a running Python", own("blobs"))
    (folder / "unknown.prototxt").write_text(Path(prototxt).read_text().replace('"Softmax"', '"SoftMax"'))
    wrong = Row(
        "`caffe-port convert` of a net with a layer of an unknown type, refused",
        [*command, "convert", str(folder / "unknown.prototxt"), weights, "-o", str(folder / "out")],
        fails=True,
    )
    small = [
        wrong,
        Row("`caffe-port --help`", [*command, "--help"]),
        Row("`caffe-port inspect net.prototxt`", [*command, "inspect", prototxt]),
    ]
    simple = Row("the naive approach: protobuf, NumPy, torch.save", own("naive"))
    for _ in range(rounds):
        for row in (cp, reading, fast, alone, torch, parts, whole, *small):
            for made in ("copy", "out", "inside", "blobs"):
                path = folder / made
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            row.run()
    simple.run()  # only once: it takes as long as all the others

    base = statistics.median(cp.seconds)
    middle = {name: statistics.median(found) for row in (reading, alone, parts) for name, found in row.parts.items()}
    proper = statistics.median(map(sum, zip(*parts.parts.values(), strict=True)))
    size = Path(weights).stat().st_size / 1e6
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "caffe-port", "protobuf"))
    print(f"{datetime.date.today()}; {processor()}; Python {platform.python_version()}, {versions}; {size:.0f} MB\n")
    print(f"| median of {rounds} | seconds | x cp | peak MB | anonymous MB |\n| --- | ---: | ---: | ---: | ---: |")
    print(line(cp.name, base, base, cp))
    print(line(f"{reading.name}, warm", middle["read"], base, reading))
    print(line(fast.name, statistics.median(fast.seconds), base, fast))
    print(line(alone.name, middle["blobs"], base, alone))
    for row in (torch, whole):
        print(line(row.name, statistics.median(row.seconds), base, row))
    print(line(parts.name, proper, base, parts))
    print(line("- of it: read and build the Net, look for NaN", middle["port"], base))
    print(line("- of it: write", middle["write"], base))
    print(line("- of it: run model.py beside the Net; meanwhile, read back, compare, checksums", middle["check"], base))
    print(line("- of it: wait for these; port.json", middle["rest"], base))
    print(line(f"{simple.name}, once, without its imports", simple.parts["naive"][0], base, simple))
    for row in small:
        print(line(row.name, statistics.median(row.seconds), base, row))
    times = statistics.median(a / b for a, b in zip(whole.seconds, torch.seconds, strict=True))
    more = f"{whole.peak - torch.peak:,.0f} MB more at its peak"
    print(f"\n`caffe-port convert` takes {times:.2f} times what `import torch` does, and {more}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a net of 16 million parameters")
    parser.add_argument("--layers", type=int, nargs="+", metavar="N", help="convert chains of so many layers instead")
    parser.add_argument("--phase", choices=["make", "read", "blobs", "inside", "naive"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.phase == "make":
        make(arguments.folder, *((64, 128) if arguments.quick else (224, 4096)))
    elif arguments.phase:
        phases = {"read": read, "blobs": blobs, "inside": inside, "naive": naive}
        print(json.dumps(phases[arguments.phase](arguments.folder)))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            if arguments.layers:
                deep(Path(temporary), arguments.layers, arguments.rounds)
                return
            quick = ["--quick"] if arguments.quick else []
            compileall.compile_dir(Path(caffe_port.__file__).parent, quiet=1)  # as pip does when it installs a package
            command = [sys.executable, __file__, "--phase", "make", "--folder", temporary, *quick]
            subprocess.run(command, check=True)  # in another process, so that its memory is not inherited
            measure(Path(temporary), arguments.rounds)


if __name__ == "__main__":
    main()
