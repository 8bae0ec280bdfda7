"""Tries runtimes on exported nets: `make deploy`, or

    python benchmarks/deploy [--cache FOLDER] [--only RUNTIME,...] [--nets NET,...] [--models FOLDER] [--write PAGE]

Every net is exported twice, with `--plain-pooling` and without. Every runtime is installed in a virtual environment of
its own below the cache folder, which uses the torch and NumPy of this one, and runs the files in a process of its own,
with a limit of time: some end the process. What was measured is kept in the cache by the runtime's version, so that a
run goes on where the last one stopped; the table goes into the page, between its two marks.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from nets import NETS, Net  # noqa: E402

import caffe_port  # noqa: E402
from caffe_port.emit import export  # noqa: E402
from caffe_port.emit.convert import to_export  # noqa: E402
from caffe_port.emit.self_check import example_inputs  # noqa: E402
from caffe_port.errors import CaffePortError  # noqa: E402

FORMS = ("plain", "agreed")
LIMIT, START = 150, 600  # seconds a file, and more for the first one: a runtime may take minutes to load


@dataclass(frozen=True)
class Runtime:
    """A runtime.

    Attributes:
        label: for the table.
        reads: the kind of file.
        packages: what pip installs; the first gives the version. None: it is in this environment.
        runner: the function of worker.py.
        environment: variables it needs.
        one: it is given files for one image.
    """

    label: str
    reads: str
    packages: tuple[str, ...]
    runner: str
    environment: Mapping[str, str] = ()  # type: ignore[assignment]
    one: bool = False


RUNTIMES = {
    "onnxruntime": Runtime("ONNX Runtime", "onnx", ("onnxruntime",), "onnxruntime"),
    "openvino": Runtime("OpenVINO", "onnx", ("openvino",), "openvino"),
    "opencv": Runtime("OpenCV dnn", "onnx", ("opencv-python-headless<5",), "opencv"),
    "mnn": Runtime("MNN", "onnx", ("MNN",), "mnn"),
    "ncnn": Runtime("ncnn (pnnx)", "onnx", ("ncnn", "pnnx"), "ncnn", one=True),
    "tvm": Runtime("TVM", "onnx", ("apache-tvm",), "tvm"),
    "tract": Runtime("tract", "onnx", ("tract",), "tract"),
    "tinygrad": Runtime("tinygrad", "onnx", ("tinygrad",), "tinygrad", {"DEV": "PYTHON"}),
    "openvino-pt2": Runtime("OpenVINO", "pt2", ("openvino",), "openvino"),
    "executorch": Runtime("ExecuTorch (XNNPACK)", "pt2", ("executorch",), "executorch"),
    "litert": Runtime("LiteRT (litert-torch)", "pt2", ("litert-torch",), "litert"),
    "coremltools": Runtime("Core ML tools (conversion only)", "pt2", ("coremltools",), "coremltools"),
}


# -- files ------------------------------------------------------------------------------------------------------------


def prepare(cache: Path, models: Path | None, names: Sequence[str]) -> dict[str, str]:
    """Exports what is not there yet; by net, why it is not tried."""
    missing = {}
    for name in names:
        net, folder = NETS[name], cache / "files" / name
        if net.files and (models is None or not all((models / file).exists() for file in net.files)):
            missing[name] = "its files are not here"
            continue
        if not (folder / "done").exists():
            folder.mkdir(parents=True, exist_ok=True)
            print(f"export {name}", flush=True)
            _export(net, folder, models)
            (folder / "done").write_text("")
    return missing


def _export(net: Net, folder: Path, models: Path | None) -> None:
    torch.manual_seed(0)
    paths: list[Path] = [models / file for file in net.files] if models else []
    if net.text:
        paths = [folder / "net.prototxt"]
        paths[0].write_text(net.text)
    weights = paths[-1] if net.files else None
    ported = caffe_port.port(paths[0] if len(paths) > 1 or net.text else None, weights)
    source = to_export(ported.net)
    for batch, tag in ((2, ""), (1, ".one")):
        example = _inputs(ported.net, batch)
        shapes = [example]
        if net.dynamic != "none":
            shapes.append(tuple(torch.randn(5, *x.shape[1:]) for x in example))
        if net.dynamic == "size":
            shapes.append(tuple(torch.randn(3, x.shape[1], x.shape[2] + 4, x.shape[3] + 7) for x in example))
        data: dict[str, Any] = {}
        for k, xs in enumerate(shapes):
            with torch.no_grad():
                made = source.module(*xs)
            tops = list(made.values()) if isinstance(made, dict) else [made]
            data |= {f"{k}:in{i}": x.numpy() for i, x in enumerate(xs)}
            data |= {f"{k}:out{i}": y.numpy() for i, y in enumerate(tops)}
        np.savez(folder / f"data{tag}.npz", **data)
        for form in FORMS:
            for kind, write in (("onnx", export.onnx), ("pt2", export.pt2)):
                if kind == "pt2" and (net.onnx_only or tag):
                    continue
                path = folder / f"{form}{tag}.{kind}"
                try:
                    write(source, example, path, net.dynamic, form == "plain")
                except CaffePortError as error:
                    path.unlink(missing_ok=True)
                    path.with_suffix(f".{kind}.error").write_text(error.what)


def _inputs(net: Any, batch: int) -> tuple[torch.Tensor, ...]:
    """Those of the net's shapes with another batch; the second one of an LSTM says where sequences go on."""
    example = example_inputs(net, seed=1)
    if len(example) > 1:
        xs = [x[:, :batch] for x in example]
        return xs[0], (torch.rand(xs[1].shape) > 0.3).float()
    x = example[0]
    return (torch.randn(batch, *x.shape[1:], generator=torch.Generator().manual_seed(2)),)


# -- runtimes ---------------------------------------------------------------------------------------------------------


def environment(runtime: Runtime, cache: Path) -> tuple[Path, str] | None:
    """The Python of a runtime and its version; None where it cannot be installed."""
    name = re.split(r"[<>=]", runtime.packages[0])[0]
    folder = cache / "venvs" / name
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        (packages / "zz_base.pth").write_text(sysconfig.get_path("purelib") + "\n")  # torch is not installed again
        print(f"install {name}", flush=True)
        done = subprocess.run([python, "-m", "pip", "install", "-q", *runtime.packages], capture_output=True, text=True)
        (folder / "pip.log").write_text(done.stdout + done.stderr)
        if done.returncode:
            return None
        (folder / "installed").write_text("")
    asked = f"import importlib.metadata as m; print(m.version({name!r}))"
    return python, subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()


class Worker:
    """A process that answers one task at a time."""

    def __init__(self, python: Path, runtime: Runtime, log: Path) -> None:
        self.command = [str(python), str(HERE / "worker.py"), runtime.runner]
        self.environment = {**os.environ, **dict(runtime.environment), "OMP_NUM_THREADS": "2"}
        self.log = log
        self.process: subprocess.Popen[str] | None = None

    def ask(self, task: Mapping[str, str]) -> dict[str, Any]:
        """Its answer; ``{"error": ...}`` if the process ends or takes too long, and is started again next time."""
        limit = LIMIT if self.process else START
        if self.process is None:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log.open("a"),
                text=True,
                env=self.environment,
                cwd=self.log.parent,
            )
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=lambda: answers.put(process.stdout.readline()), daemon=True).start()  # type: ignore[union-attr]
        try:
            line = answers.get(timeout=limit)
        except queue.Empty:
            self.stop()
            return {"error": "takes too long", "at": "time"}
        if not line:
            self.stop()
            return {"error": "the process ends", "at": "crash"}
        return json.loads(line)  # type: ignore[no-any-return]

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def measure(cache: Path, key: str, names: Sequence[str]) -> None:
    """Runs what was not run yet with this version of a runtime."""
    runtime = RUNTIMES[key]
    found = environment(runtime, cache)
    folder = cache / "results" / key
    folder.mkdir(parents=True, exist_ok=True)
    if found is None:
        print(f"{key}: cannot be installed", flush=True)
        return
    python, version = found
    (folder / "version").write_text(version)
    worker = Worker(python, runtime, folder / "log")
    for name, form in ((name, form) for name in names for form in FORMS):
        tag = ".one" if runtime.one else ""
        file = cache / "files" / name / f"{form}{tag}.{runtime.reads}"
        stored = folder / f"{name}.{form}.json"
        if stored.exists() and json.loads(stored.read_text())["version"] == version:
            continue
        if not file.exists():
            continue
        data, made = cache / "files" / name / f"data{tag}.npz", folder / "made.npz"
        made.unlink(missing_ok=True)
        work = folder / "work" / f"{name}_{form}.{runtime.reads}"  # converters write beside what they read
        work.parent.mkdir(exist_ok=True)
        work.write_bytes(file.read_bytes())
        said = worker.ask({"file": str(work), "data": str(data), "made": str(made)})
        if said.get("made"):
            said = judged(data, made, runtime.runner == "coremltools")
        print(f"{key:14} {name:24} {form:7} {said.get('verdict') or said.get('error')}", flush=True)
        stored.write_text(json.dumps({"version": version, **said}))
    worker.stop()


def judged(data: Path, made: Path, converts: bool) -> dict[str, Any]:
    """The verdict on what a runtime made."""
    if converts:
        return {"verdict": "converts"}
    right, got = np.load(data), np.load(made)
    worst = 0.0
    for name in (n for n in right if ":out" in n):
        a = right[name]
        if name not in got:
            return {"verdict": "differs", "by": "an output is missing"}
        try:
            b = got[name]
        except ValueError:  # objects: nothing that a pickle holds is looked at
            return {"verdict": "differs", "by": "an output that is no array"}
        if a.size == b.size and [n for n in a.shape if n > 1] == [n for n in b.shape if n > 1]:
            b = b.reshape(a.shape)
        if a.shape != b.shape:
            return {"verdict": "differs", "by": f"{'x'.join(map(str, b.shape))} for {'x'.join(map(str, a.shape))}"}
        scale = max(float(np.abs(a).max()), 0.1)
        worst = max(worst, float(np.abs(a - b).max()) / scale if np.isfinite(b).all() else float("inf"))
    return {"verdict": "right" if worst < 1e-4 else "differs", "by": f"{worst:.2g}"}


# -- the table --------------------------------------------------------------------------------------------------------


def cell(cache: Path, key: str, name: str) -> str:
    """What is said of a runtime and a net: one word if both forms fare alike, otherwise plain, agreed."""
    said = []
    for form in FORMS:
        stored = cache / "results" / key / f"{name}.{form}.json"
        said.append(_word(json.loads(stored.read_text())) if stored.exists() else "")
    return said[0] if said[0] == said[1] else f"{said[0] or '-'} → {said[1] or '-'}"


def _word(found: Mapping[str, str]) -> str:
    if "error" in found:
        return {"time": "too slow", "crash": "ends the process"}.get(found["at"], "refused")
    if found["verdict"] == "differs":
        try:
            return f"**off by {float(found['by']):.2g}**"
        except ValueError:  # words about the shape
            return "**shape**"
    return found["verdict"]


def tables(cache: Path, names: Sequence[str]) -> Iterator[str]:
    """The tables in Markdown: one by the kind of file."""
    for kind, title in (("onnx", "Runtimes that read model.onnx"), ("pt2", "Runtimes that read model.pt2")):
        keys = [k for k, r in RUNTIMES.items() if r.reads == kind and any((cache / "results" / k).glob("*.json"))]
        heads = [f"{RUNTIMES[k].label} {(cache / 'results' / k / 'version').read_text()}" for k in keys]
        yield f"### {title}\n"
        yield f"| | {' | '.join(heads)} |"
        yield f"| --- |{' --- |' * len(keys)}"
        for name in names:
            cells = [cell(cache, key, name) for key in keys]
            if any(cells):
                yield f"| {NETS[name].label} | {' | '.join(cells)} |"
        yield ""


MARKS = ("<!-- measured by make deploy -->", "<!-- end of what make deploy measured -->")


def write(page: Path, lines: Sequence[str]) -> None:
    """Puts the tables between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    before, mark, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not mark or not end:
        sys.exit(f"{page} has no {' ... '.join(MARKS)}")
    page.write_text(f"{before}{mark}\n\n" + "\n".join(lines) + f"\n{end}{after}", encoding="utf-8")


def main() -> None:
    """Parses, measures, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "caffe-port" / "deploy"
    parser.add_argument("--cache", type=Path, default=home)
    parser.add_argument("--only", default=",".join(RUNTIMES), help="runtimes, with commas")
    parser.add_argument("--nets", default=",".join(NETS), help="nets, with commas")
    shared = Path(os.environ.get("CAFFE_PORT_SHARED", ROOT.parent / "shared")) / "models"
    parser.add_argument("--models", type=Path, default=shared if shared.exists() else None, help="real nets")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    given = parser.parse_args()
    names = given.nets.split(",")
    cache = given.cache.resolve()
    left_out = prepare(cache, given.models, names)
    for name, why in left_out.items():
        print(f"{name}: {why}")
    for key in filter(None, given.only.split(",")):
        measure(cache, key, [name for name in names if name not in left_out])
    lines = list(tables(cache, names))
    if given.write:
        write(given.write, lines)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
