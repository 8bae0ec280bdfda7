"""Reproduces a registry entry: download, convert, verify, evaluate, and compare with the reported accuracy."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caffe_port.data import set_files
from caffe_port.definition.definition import Definition
from caffe_port.errors import CaffePortError, DependencyError
from caffe_port.evaluation import download, registry
from caffe_port.evaluation.registry import Entry, Reported, WeightsFile
from caffe_port.formats import caffemodel
from caffe_port.storage.files import atomic_write, cache_folder, sha256

Step = Callable[[str, int, int], None]
"""Called with (step, done, total): ``"download"`` in bytes, ``"evaluate"`` in images, other steps with (name, 0, 0)."""


@dataclass(frozen=True)
class Finding:
    """A reported figure and the measured one.

    Attributes:
        name: the registry entry.
        quantity: ``"accuracy, %"``, ``"parameters"``, ...
        reported, by, source: the published figure, its author and its address.
        ours: the measured figure; None if it was not measured.
        interval: 95 % confidence interval of an accuracy.
        verdict: equal, better, worse, or "not run here".
        command: the command that measures it.
    """

    name: str
    quantity: str
    reported: float
    by: str
    source: str
    ours: float | None = None
    interval: tuple[float, float] | None = None
    verdict: str = "not run here"
    command: str = ""
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """The result of :func:`reproduce`.

    Attributes:
        entry: the registry entry.
        weights: the weights file, with the registry's checksum.
        folder: folder of the converted net.
        check: how the converted source compares with the Net, in words.
        verified: the verdict of the layer-by-layer comparison, in words; passed: its outcome, None without a reference.
        findings: one for each reported figure.
        notes: warnings.
    """

    entry: Entry
    weights: Path
    folder: Path
    check: str
    verified: str
    passed: bool | None
    findings: tuple[Finding, ...]
    seconds: float
    notes: tuple[str, ...] = field(default=())

    @property
    def reached(self) -> bool:
        """Whether nothing failed and no figure is worse than reported."""
        return self.passed is not False and all(finding.verdict != "worse" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.entry.name,
            "weights": str(self.weights),
            "folder": str(self.folder),
            "check": self.check,
            "verified": self.verified,
            "passed": self.passed,
            "reached": self.reached,
            "seconds": self.seconds,
            "findings": [vars(finding) for finding in self.findings],
            "notes": list(self.notes),
        }


# -- the table ------------------------------------------------------------------------------------------------------

_PORT = "https://github.com/Coderx7/SimpleNet_Pytorch"
_MEMORY = (
    "caffe-port train model_defs/simplenet_cifar10_port_solver.prototxt --data cifar10 --batch-size 64 --max-iter 200 "
    "--device cuda --out RUN   (peak_memory_bytes in RUN/run.json)"
)
_OTHER_FIGURES = (  # (entry, quantity, reported, who, where, command)
    (
        "simplenet-cifar10-port",
        "parameters",
        5.48e6,
        "SimpleNet authors",
        _PORT,
        "caffe-port inspect model_defs/simplenet_cifar10.prototxt",
    ),
    ("simplenet-cifar10-port", "GPU memory at batch size 64, MB", 1239.0, "SimpleNet authors", _PORT, _MEMORY),
)


def findings() -> list[Finding]:
    """All reported figures, with earlier results from the cache."""
    table: list[Finding] = []
    for entry in registry.entries().values():
        earlier = _earlier(entry.name)
        for reported in entry.reported:
            blank = _blank(entry, reported)
            table.append(earlier.get((blank.reported, blank.source), blank))
    for name, quantity, reported_value, by, source, command in _OTHER_FIGURES:
        ours, verdict = None, "not run here"
        if quantity == "parameters":
            ours = float(registry.entry(name).parameters)
            verdict = "equal" if abs(ours / reported_value - 1) < 0.005 else "worse"
        table.append(Finding(name, quantity, reported_value, by, source, ours, None, verdict, command))
    return table


def _blank(entry: Entry, reported: Reported) -> Finding:
    quantity = "accuracy, %"
    if reported.mirror_test is not None:
        quantity += ", mirrored at random" if reported.mirror_test else ", not mirrored"
    note = " ".join(text for text in (reported.note, reported.date) if text)
    return Finding(
        entry.name, quantity, reported.accuracy, reported.by, reported.source, command=_command(entry), note=note
    )


def _command(entry: Entry) -> str:
    if entry.weights is not None:
        return f"caffe-port reproduce {entry.name}"
    return f"caffe-port train model_defs/{entry.solver} --data {entry.dataset} --device cuda --out RUN"


def _results() -> Path:
    return cache_folder() / "reproduced"


def _earlier(name: str) -> dict[tuple[float, str], Finding]:
    try:
        stored = json.loads((_results() / f"{name}.json").read_text(encoding="utf-8"))
        found = [
            Finding(**{**line, "interval": line["interval"] and tuple(line["interval"])}) for line in stored["findings"]
        ]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}
    return {(finding.reported, finding.source): finding for finding in found}


# -- files ----------------------------------------------------------------------------------------------------------


def fetch(
    weights: WeightsFile, *, mirror: str | Path | None = None, offline: bool = False, step: Step | None = None
) -> Path:
    """Finds or downloads a weights file and verifies its checksum: in model_defs, the mirror, the cache, or at its
    address.

    Args:
        weights: the file.
        mirror: a folder that contains it, under its path or its name.
        offline: download nothing.
        step: called during the download.

    Raises:
        CaffePortError: the file is not available, or is a different file.
    """
    for folder in [registry.model_defs(), *([Path(mirror)] if mirror is not None else [])]:
        for path in (folder / weights.file, folder / Path(weights.file).name):
            if path.is_file():
                return _checked(path, weights)
    cached = cache_folder() / "weights" / weights.sha256[:16] / Path(weights.file).name
    if cached.is_file():
        return _checked(cached, weights)
    if offline or not weights.url:
        why = "--offline is set" if offline else "it has no download address"
        raise CaffePortError(
            f"is neither in the cache nor in a mirror, and {why}",
            weights.file,
            "Give a folder that contains it with --mirror DIR.",
        )
    hear = step or (lambda *_: None)
    download.fetch(
        weights.url, cached, weights.size, weights.sha256, step=lambda done, total: hear("download", done, total)
    )
    return cached


def _checked(path: Path, weights: WeightsFile) -> Path:
    size = path.stat().st_size
    if size != weights.size:
        raise CaffePortError(f"has {size} bytes, but {weights.size} in the registry: it is a different file", str(path))
    digest = sha256(path)
    if digest != weights.sha256:
        what = f"has the checksum {digest[:16]}..., but {weights.sha256[:16]}... in the registry"
        raise CaffePortError(what, str(path), "It is damaged or a different file. Remove it to download it again.")
    return path


def data_root(dataset: str, mirror: str | Path | None, root: str | Path | None) -> Path | None:
    """The folder of a data set: the given root, ``data/<set>`` or ``<set>`` in the mirror, or None."""
    if root is not None:
        return Path(root)
    folders = [Path(mirror) / "data" / dataset, Path(mirror) / dataset] if mirror is not None else []
    return next((folder for folder in folders if folder.is_dir()), None)


# -- reproduction ---------------------------------------------------------------------------------------------------


def reproduce(
    name: str,
    *,
    mirror: str | Path | None = None,
    root: str | Path | None = None,
    data: str | None = None,
    offline: bool = False,
    folder: str | Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    step: Step | None = None,
) -> Outcome:
    """Reproduces the figures reported for an entry.

    Args:
        name: the entry.
        mirror: a folder with the weights (under the paths of registry.toml) and possibly the data.
        root: folder of the data set.
        data: an .npz file or a folder to use instead of the entry's data set.
        offline: download nothing.
        folder: folder for the converted net; None: in the cache.
        device: device for the evaluation.
        seed: seed of the verification's input and of random mirroring.
        step: called at every step.

    Raises:
        CaffePortError: the entry, its weights or its data is not available; says what to do.
    """
    began = time.monotonic()
    step = step or (lambda *_: None)
    entry = registry.entry(name)
    if entry.weights is None:
        raise CaffePortError(
            f"the weights of '{name}' were not published; the net must be trained",
            hint=f"{_command(entry)}, then caffe-port evaluate RUN/best.caffemodel",
        )
    step("fetch", 0, 0)
    weights = fetch(entry.weights, mirror=mirror, offline=offline, step=step)
    where = data_root(entry.dataset, mirror, root)
    wanted, download = data or entry.dataset, not offline and data is None and where is None
    set_files.check(wanted, "test", where, download)
    from caffe_port.data import datasets  # here, because these import torch, and the errors above come without it
    from caffe_port.emit.convert import convert
    from caffe_port.evaluation import evaluate
    from caffe_port.verification.reports import terminal
    from caffe_port.verification.verify import verify

    pictures = datasets.load(wanted, "test", where, download)

    step("convert", 0, 0)
    stored = caffemodel.read(weights)
    shape = entry.preprocessing.shape(pictures.shape)
    ported = evaluate.port_for(Definition.embedded(stored), stored, None, shape, batch=2, data=pictures.name)
    target = Path(folder) if folder is not None else _results() / name
    with _folder(target):
        converted = convert(ported, target, force=True, seed=seed)

    step("verify", 0, 0)
    notes = list(ported.notes)
    passed: bool | None = None
    try:
        compared = verify(ported, seed=seed)
        verified, passed = terminal.verdict(compared), compared.passed
    except DependencyError as error:
        verified = f"not verified: {error}"

    step("evaluate", 0, 0)
    measured: dict[bool, Any] = {}
    found = []
    for reported in entry.reported:
        mirrored = entry.preprocessing.mirror_test if reported.mirror_test is None else reported.mirror_test
        if mirrored not in measured:
            measured[mirrored] = evaluate.evaluate_files(
                ported,
                data=data or entry.dataset,
                root=where,
                device=device,
                seed=seed,
                tta="mirror" if mirrored else "none",
                progress=lambda done, total: step("evaluate", done, total),
            ).result
        result = measured[mirrored]
        blank = vars(_blank(entry, reported))
        known = {"ours": result.accuracy, "interval": result.interval, "verdict": result.verdict(reported.accuracy)}
        found.append(Finding(**{**blank, **known}))
    outcome = Outcome(
        entry,
        weights,
        converted.folder,
        converted.check,
        verified,
        passed,
        tuple(found),
        round(time.monotonic() - began, 1),
        tuple(notes),
    )
    _remember(outcome)
    return outcome


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaffePortError(f"cannot be made: {error.strerror}", str(path.parent)) from None
    yield


def _remember(outcome: Outcome) -> None:
    """Stores the result for ``reproduce --list``, if the cache can be written to."""
    with contextlib.suppress(CaffePortError, OSError):
        _results().mkdir(parents=True, exist_ok=True)
        with atomic_write(_results() / f"{outcome.entry.name}.json", "w") as file:
            json.dump(outcome.as_dict(), file, indent=2)


def as_rows(table: list[Finding]) -> Iterator[Mapping[str, str]]:
    """The rows of the table as text, with the command for figures that were not measured."""
    for f in table:
        digits = 0 if f.reported > 1000 else 2
        interval = f" ({f.interval[0]:.2f} to {f.interval[1]:.2f})" if f.interval else ""
        yield {
            "entry": f.name,
            "what": f.quantity,
            "reported": f"{f.reported:,.{digits}f}",
            "by": f.by,
            "measured": "" if f.ours is None else f"{f.ours:,.{digits}f}{interval}",
            "verdict": f.verdict,
            "command": f.command if f.ours is None else "",
        }
