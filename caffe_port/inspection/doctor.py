"""What this installation can do: packages, references, devices, and a net that is converted and verified on the spot.

It tries everything: OpenCV's importer reads a net, and Caffe is imported by its Python.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from caffe_port.errors import CaffePortError
from caffe_port.terminal import count, human_bytes
from caffe_port.version import __version__

PACKAGES = ("torch", "torchvision", "protobuf", "numpy", "opencv", "pillow", "safetensors", "click", "rich")
"""What caffe-port always needs, by distribution; OpenCV has several."""
OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")
EXTRAS = {
    "hdf5": ".caffemodel.h5 and HDF5Data",
    "data": "LMDB, HDF5 and SVHN",
    "plot": "curves and images",
    "tensorboard": "train --tensorboard",
    "onnx": "--format onnx",
    "draw": "caffe.draw in scripts",
}
"""What the extras of pyproject.toml are for."""

NET = """
name: "doctor"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 7 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 5 kernel_size: 3 stride: 2 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 3 stride: 2 } }
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        part: ``"packages"``, ``"extras"``, ``"references"``, ``"devices"``, ``"cache"`` or ``"self-test"``.
        name: what it is.
        ok: whether it is there and works.
        text: version, place, or why not.
        hint: the command or setting that would help.
    """

    part: str
    name: str
    ok: bool
    text: str
    hint: str = ""


@dataclass(frozen=True)
class Checkup:
    """All findings, and the verdict.

    Attributes:
        healthy: converting and verifying work; what else is missing may never be needed.
        findings: in the order in which they are shown.
        seconds: the duration.
    """

    healthy: bool
    findings: tuple[Finding, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "caffe-port": __version__,
            "healthy": self.healthy,
            "seconds": round(self.seconds, 2),
            "findings": [asdict(finding) for finding in self.findings],
        }


def versions() -> dict[str, str]:
    """Distribution -> version, Python first, "not installed" where it is not; nothing is imported for it."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        names = OPENCV if package == "opencv" else (package,)
        installed = next(((name, _version(name)) for name in names if _version(name)), None)
        name, version = installed or (names[0], "not installed")
        found[name] = str(version)
    return found


def examine() -> Checkup:
    """Runs all checks; takes about as long as importing torch."""
    began = time.monotonic()
    packages = [
        Finding("packages", name, version != "not installed", version, _needed(name, version))
        for name, version in versions().items()
    ]
    found = [*packages, *_extras()]
    tests: tuple[tuple[str, str, Callable[[Path], str]], ...] = (
        ("references", "OpenCV", functools.partial(_verify, "opencv")),
        ("references", "NumPy formulas", functools.partial(_verify, "numpy")),
        ("references", "Caffe", _caffe),
        ("devices", "CPU", _cpu),
        ("devices", "GPU", _gpu),
        ("cache", "folder", _cache),
        ("self-test", "convert", _convert),
    )
    with tempfile.TemporaryDirectory(prefix="caffe-port-") as scratch:
        found += [_tried(part, name, test, Path(scratch)) for part, name, test in tests]
    works = {finding.name for finding in found if finding.ok}
    healthy = "convert" in works and bool(works & {"OpenCV", "NumPy formulas"})
    return Checkup(healthy, tuple(found), time.monotonic() - began)


def _tried(part: str, name: str, test: Callable[[Path], str], scratch: Path) -> Finding:
    """Whatever goes wrong is what was asked for: a broken installation raises anything."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a driver that is too old; said by torch, and below
            return Finding(part, name, True, test(scratch))
    except CaffePortError as error:
        return Finding(part, name, False, f"{error.where}: {error.what}" if error.where else error.what, error.hint)
    except Exception as error:  # noqa: BLE001
        return Finding(part, name, False, f"{type(error).__name__}: {error}".partition("\n")[0])


# -- packages -------------------------------------------------------------------------------------------------------


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _needed(name: str, version: str) -> str:
    return f"pip install '{name}{'<5' if name in OPENCV else ''}'" if version == "not installed" else ""


def _extras() -> list[Finding]:
    """The extras that pyproject.toml declares, but for the tests' own, each with its packages."""
    try:
        required = metadata.requires("caffe-port") or []
    except metadata.PackageNotFoundError:
        text = "caffe-port is not installed; it runs from a checkout"
        return [Finding("extras", "all", False, text, "pip install -e .")]
    found = []
    for extra, purpose in EXTRAS.items():
        wanted = [r.partition(";")[0].strip() for r in required if re.search(rf"extra == ['\"]{extra}['\"]", r)]
        names = {name: _version(name) for name in (re.split(r"[<>=!~ \[]", r)[0] for r in wanted)}
        missing = [r for r in wanted if not names[re.split(r"[<>=!~ \[]", r)[0]]]
        have = ", ".join(f"{name} {version}" for name, version in names.items() if version)
        text = f"for {purpose}: {have}" if not missing else f"for {purpose}; missing: {', '.join(missing)}"
        hint = "pip install " + " ".join(f"'{r}'" for r in missing) if missing else ""
        found.append(Finding("extras", extra, not missing, text, hint))
    return found


# -- what is tried --------------------------------------------------------------------------------------------------


def _net(scratch: Path) -> Path:
    path = scratch / "net.prototxt"
    path.write_text(NET, "utf-8")
    return path


def _verify(reference: str, scratch: Path) -> str:
    from caffe_port.verification.verify import verify

    report = verify(_net(scratch), against=reference)
    rows = [row for row in report.rows if row.status != "not compared" and not row.by]
    if not report.passed or not rows:
        raise CaffePortError(f"a net of two layers does not agree with it: {report.first or 'nothing was compared'}")
    return f"{report.reference}: verified a net of {count(len(rows), 'layer')}"


def _caffe(_: Path) -> str:
    from caffe_port.verification.references import build_caffe, caffe

    try:
        found = caffe.find()
    except CaffePortError as error:
        hint = f"needed only for --against caffe: caffe-port build-caffe, or set {caffe.PYTHON_VARIABLE}"
        if sys.platform == "linux" and (missing := build_caffe.missing_packages()):
            hint += f"; to build it: sudo apt-get install --no-install-recommends {' '.join(missing)}"
        raise CaffePortError(f"{error.where} {error.what}", "", hint) from None
    return f"{found.name}, {count(len(found.types), 'layer type')}, run by {found.command[0]}"


def _cpu(_: Path) -> str:
    import torch

    from caffe_port.devices import has_bf16

    capability = torch.backends.cpu.get_cpu_capability()
    bf16 = "bf16" if has_bf16(torch.device("cpu")) else "no bf16"
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} processors"
    return f"{platform.machine()}, {capability}, {bf16}, {threads}"


def _gpu(_: Path) -> str:
    import torch

    from caffe_port.devices import has_bf16

    if not torch.cuda.is_available():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        raise CaffePortError(
            f"none that torch can use; torch {torch.__version__} {built}",
            hint="needed only for speed; everything also runs on the CPU",
        )
    shown = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if has_bf16(torch.device("cuda", index)) else "no bf16"
        shown.append(
            f"cuda:{index} {device.name}, {human_bytes(device.total_memory)}, capability "
            f"{device.major}.{device.minor}, {bf16}"
        )
    return "; ".join(shown)


def _cache(_: Path) -> str:
    from caffe_port.storage.files import cache_folder

    folder = cache_folder()
    exists = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not exists.is_dir() or not os.access(exists, os.W_OK | os.X_OK):
        raise CaffePortError("cannot be written", str(folder), "set CAFFE_PORT_CACHE to a writable folder")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{folder}, {human_bytes(size)}" if folder.exists() else f"{folder}, created on first use"


def _convert(scratch: Path) -> str:
    from caffe_port import api
    from caffe_port.emit.convert import convert

    result = convert(api.port(_net(scratch)), scratch / "converted")
    return f"{count(result.layers, 'layer')}, {count(result.parameters, 'parameter')}; {result.check}"
