"""Times the ways to run a Caffe net on a CPU: what convert writes, and other programs on the same files.

    make bench-cpu ARGS="--only lenet"
    python benchmarks/bench_cpu.py [--only NET,...] [--threads N] [--seconds S] [--resume] [--write PAGE]

Every program is a process of its own; they take turns, and the medians count. The runtimes are installed as
`make deploy` does it, in its cache folder; `--venvs FOLDER` has them already. OpenCV and MNN read Caffe's files, and
ncnn what pnnx makes of our ONNX, because its converter for Caffe is not in its package.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks" / "cpu")]

import torch  # noqa: E402
from nets import NETS, write  # noqa: E402
from turns import Measured, Program, Store, in_turns, machine, replace_between  # noqa: E402

import caffe_port  # noqa: E402
from caffe_port.emit.convert import convert  # noqa: E402
from caffe_port.errors import CaffePortError  # noqa: E402
from caffe_port.terminal import count  # noqa: E402

HOME = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "caffe-port"
ROUNDS = 5
OURS = ("model.py", "--fold", "--fold, compiled", "ONNX Runtime", "OpenVINO")
PEERS = {"OpenCV": ("opencv", "opencv-python-headless"), "MNN": ("mnn", "MNN"), "ncnn": ("ncnn", "ncnn")}
RUNTIMES = {"ONNX Runtime": ("onnxruntime", "onnxruntime"), "OpenVINO": ("openvino", "openvino")} | PEERS


def prepare(name: str, folder: Path) -> None:
    """Writes the files that the programs read; those that cannot be written are missing."""
    write(name, folder)
    ported = caffe_port.port(folder / "net.prototxt", folder / "net.caffemodel")
    convert(ported, folder / "converted")
    convert(ported, folder / "folded", fold=True)
    for batch in dict.fromkeys((1, NETS[name].batch)):
        shaped = caffe_port.port(
            folder / "net.prototxt", folder / "net.caffemodel", input_shapes={"data": (batch, *NETS[name].shape)}
        )
        try:
            convert(shaped, folder / f"onnx{batch}", formats=["onnx"], dynamic="none")
        except CaffePortError as error:
            print(f"{name}: no ONNX: {error.what}", file=sys.stderr)


def measure(name: str, batch: int, folder: Path, python: Mapping[str, Path], given: Any) -> dict[str, Measured]:
    """The figures of every program for one net and batch."""
    if not (folder / "folded").exists():
        prepare(name, folder)
    net, own = NETS[name], Path(sys.executable)
    common = {"batch": batch, "shape": net.shape, "net": f"{folder}/net.prototxt"}
    common |= {"weights": f"{folder}/net.caffemodel", "work": str(folder)}
    common["output"] = next(iter(caffe_port.load(folder / "net.prototxt").outputs))
    programs = {
        "model.py": Program(own, "model", common | {"folder": f"{folder}/converted"}, given.threads),
        "--fold": Program(own, "model", common | {"folder": f"{folder}/folded"}, given.threads),
    }
    if not given.no_compile:
        task = common | {"folder": f"{folder}/folded", "compile": True}
        programs["--fold, compiled"] = Program(own, "model", task, given.threads)
    for label, (kind, _) in RUNTIMES.items():
        if label in python:
            onnx = f"{folder}/onnx{1 if kind == 'ncnn' else batch}/model.onnx"
            programs[label] = Program(python[label], kind, common | {"onnx": onnx}, given.threads)
    return in_turns(programs, given.seconds, ROUNDS)


def table(store: Store, threads: int) -> list[str]:
    """Milliseconds; the fastest of each row is bold."""
    labels = list(dict.fromkeys([*OURS, *PEERS]))
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    lines = [
        f"{datetime.date.today()}, {machine()}, {count(threads, 'thread')}, {versions}. Milliseconds.",
        "",
        f"| net | batch | {' | '.join(labels)} | best of ours : best peer |",
        f"| --- | ---: |{' ---: |' * (len(labels) + 1)}",
    ]
    for name, net in NETS.items():
        for batch in dict.fromkeys((1, net.batch)):
            cell = store.get(f"{threads} {name} {batch}")
            if cell is None:
                continue
            times = {label: one.time for label, one in cell.items() if not one.error}
            best = min(times.values())
            row = []
            for label in labels:
                shown = f"{times[label] * 1e3:,.{2 if times[label] < 0.01 else 1}f}" if label in times else "-"
                row.append(f"**{shown}**" if times.get(label) == best else shown)
            ours = min((times[label] for label in OURS if label in times), default=0.0)
            peers = min((times[label] for label in PEERS if label in times), default=0.0)
            row.append(f"{peers / ours:.2f}" if ours and peers else "")
            lines.append(f"| {net.label} | {batch} | {' | '.join(row)} |")
    return lines


def pythons(venvs: Path) -> dict[str, Path]:
    """The Python of every runtime that is installed below a folder, by label."""
    found = {label: venvs / package / "bin" / "python" for label, (_, package) in RUNTIMES.items()}
    found |= {label: venvs / package.lower() / "bin" / "python" for label, (_, package) in RUNTIMES.items()}
    return {label: path for label, path in found.items() if path.exists()}


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(NETS), help=f"nets, with commas: {', '.join(NETS)}")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=8, help="for the programs of a row, at least (default 8)")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    parser.add_argument("--venvs", type=Path, default=HOME / "deploy" / "venvs", help="the runtimes' environments")
    parser.add_argument("--cpu-time", action="store_true", help="time the processor: for a busy machine and one thread")
    parser.add_argument("--resume", action="store_true", help="do not measure again what is in the store")
    parser.add_argument("--store", type=Path, default=HOME / "bench_cpu.json")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    given = parser.parse_args()
    if given.cpu_time:
        os.environ["CPU_TIME"] = "1"
    python = pythons(given.venvs)
    if missing := [label for label in RUNTIMES if label not in python]:
        print(f"not installed below {given.venvs}: {', '.join(missing)} (make deploy installs them)", file=sys.stderr)
    torch.set_num_threads(given.threads)
    store = Store(given.store)
    for name in given.only.split(","):
        with tempfile.TemporaryDirectory(dir=os.environ.get("CAFFE_PORT_BENCH")) as folder:
            for batch in dict.fromkeys((1, NETS[name].batch)):
                key = f"{given.threads} {name} {batch}"
                if given.resume and store.get(key):
                    continue
                found = measure(name, batch, Path(folder), python, given)
                store.put(key, found)
                said = [f"{label} {one.error or f'{one.time * 1e3:.2f} ms'}" for label, one in found.items()]
                print(f"{name} {batch}: {', '.join(said)}", file=sys.stderr, flush=True)
    lines = table(store, given.threads)
    print("\n".join(lines))
    if given.write:
        replace_between(given.write, "make bench-cpu", lines)


if __name__ == "__main__":
    main()
