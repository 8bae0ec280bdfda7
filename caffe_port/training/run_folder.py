"""The folder of a training run: metrics, crash-safe snapshots, weights.

::

    RUN/config.json             the options of the run
        metrics.jsonl           one line per display, test and snapshot
        run.json                versions, device, memory, time, result
        curves.png, curves.svg
        tensorboard/                events, with --tensorboard
        best.*, last.*          weights, as .caffemodel and .safetensors
        snapshots/NAME_iter_N.caffemodel, .solverstate    Caffe can resume from these; .h5 with snapshot_format HDF5
        snapshots/NAME_iter_N.json                        written last: checksums, random states, best so far
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from caffe_port.errors import CaffePortError, DependencyError, ParseError
from caffe_port.formats import caffemodel, solverstate
from caffe_port.formats.message import Message
from caffe_port.net.net import Net
from caffe_port.storage.files import atomic_write, lock, read_bytes, sha256
from caffe_port.training import processes
from caffe_port.training.optimizers import CaffeOptimizer
from caffe_port.training.run_files import check_unused as check_unused
from caffe_port.training.run_files import read_metrics as read_metrics
from caffe_port.training.run_files import used as used
from caffe_port.training.snapshot import capture, own_blobs
from caffe_port.training.solver import Plateau, SolverSpec


@dataclass
class Claim:
    """A locked run folder; ``begun`` is set when it contains something worth keeping."""

    begun: bool = False


@contextlib.contextmanager
def hold(path: str | Path) -> Iterator[Claim]:
    """Locks a run's folder against other training runs; in a distributed run, the first process does.

    If the block fails before the run has begun, everything that was created is removed again.

    Raises:
        CaffePortError: another process is training there; names the process and its machine.
    """
    claim = Claim()
    if not processes.is_first():
        yield claim
        return
    folder = Path(path)
    created = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaffePortError(f"cannot be created: {error.strerror}", str(path)) from None
    locked_before = (folder / ".lock").exists()
    with lock(folder / ".lock", "the folder is in use"):
        before = {each for each in os.listdir(folder) if each != ".lock" or locked_before}
        try:
            yield claim
        except BaseException:
            if not claim.begun:
                _remove_new(folder, before, created)
            raise


def _remove_new(folder: Path, before: set[str], created: list[Path]) -> None:
    """Removes what is in the folder now but was not before, and the folders that were created and are empty now."""
    for name in set(os.listdir(folder)) - before:
        path = folder / name
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    with contextlib.suppress(OSError):
        for each in created:
            each.rmdir()


_KINDS = ("caffemodel", "solverstate")


def _files(path: Path, end: str) -> list[Path]:
    """The two files of the snapshot with this .json, in Caffe's binary format or (``end`` .h5) as HDF5."""
    return [path.with_suffix(f".{kind}{end}") for kind in _KINDS]


Blobs = TypeVar("Blobs")


def _of(definition: Message, blobs: dict[str, Blobs]) -> dict[str, Blobs]:
    """The blobs of the trained net. A test net of another file may have more layers; Caffe does not save those."""
    names = {layer.name for layer in definition.layer}
    return {name: held for name, held in blobs.items() if name in names}


@dataclass(frozen=True)
class Snapshot:
    """A complete snapshot: its iteration, the paths of weights and solver state, and the contents of its .json file."""

    iter: int
    weights: Path
    state: Path
    extra: dict[str, Any]


class RunFolder:
    """A run's folder.

    Args:
        path: the folder; created if necessary.
        name: prefix of the snapshots' names.
        keep: number of snapshots to keep; 0: all.
        tensorboard: also write TensorBoard's events.

    Raises:
        CaffePortError: it cannot be created.
        DependencyError: tensorboard is not installed.
    """

    def __init__(self, path: str | Path, name: str = "net", keep: int = 0, tensorboard: bool = False) -> None:
        self.path, self.name, self.keep = Path(path), name, keep
        self.snapshots = self.path / "snapshots"
        self._writer: Any = _summary_writer() if tensorboard and processes.is_first() else None
        self._events: Any = None
        try:
            self.snapshots.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CaffePortError(f"cannot be created: {error.strerror}", str(path)) from None

    def used(self) -> bool:
        """Whether the folder already contains a run."""
        return used(self.path)

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Writes ``name`` atomically."""
        with atomic_write(self.path / name, "w") as file:
            json.dump(values, file, indent=2, default=str)
            file.write("\n")

    # -- metrics ------------------------------------------------------------------------------------------------

    def log(self, line: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl, and to TensorBoard's events."""
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self._log_events(line)
        except OSError as error:
            raise CaffePortError(f"cannot be written: {error.strerror}", str(path)) from None

    def _log_events(self, line: dict[str, Any]) -> None:
        """The numbers of a line as scalars: ``train/loss``, ``test/accuracy``, ``test #1/accuracy``."""
        if self._writer is None:
            return
        if self._events is None:  # of a resumed run, what the earlier part logged from this iteration on is void
            self._events = self._writer(str(self.path / "tensorboard"), purge_step=line["iter"])
        kind = f"{line['kind']} #{line['net']}" if line.get("net") else line["kind"]
        scalars = {name: value for name, value in line.items() if name in ("loss", "lr", "images_per_s")}
        for name, value in (scalars | line.get("outputs", {})).items():
            self._events.add_scalar(f"{kind}/{name}", value, line["iter"])
        self._events.flush()

    def close(self) -> None:
        """Closes TensorBoard's file."""
        if self._events is not None:
            self._events.close()

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; an incomplete line of a killed process is skipped."""
        return list(read_metrics(self.path))

    def rewind(self, iteration: int) -> None:
        """Removes the metrics from an iteration on, because a resumed run measures them again."""
        lines = [line for line in self.metrics() if line["iter"] < iteration or line["kind"] == "snapshot"]
        lines = [line for line in lines if line["iter"] <= iteration]
        with atomic_write(self.path / "metrics.jsonl", "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    # -- snapshots ----------------------------------------------------------------------------------------------

    def save(
        self,
        net: Net,
        definition: Message,
        optimizer: CaffeOptimizer,
        spec: SolverSpec,
        it: int,
        extra: dict[str, Any],
        plateau: Plateau | None = None,
    ) -> Snapshot:
        """Writes the snapshot after ``it`` updates. It is complete when its .json exists, which is written last.

        The state names its weights by their absolute path: Caffe looks for them relative to where it is started.

        Raises:
            CaffePortError: a file cannot be written (e.g. the disk is full); earlier snapshots are not affected.
        """
        stem = f"{self.name}_iter_{it}"
        end = ".h5" if spec.snapshot_format == "HDF5" else ""
        weights, state = (self.snapshots / f"{stem}.{kind}{end}" for kind in _KINDS)
        if end:
            caffemodel.write_hdf5(weights, [layer.name for layer in definition.layer], _of(definition, own_blobs(net)))
        else:
            caffemodel.write(weights, definition, _of(definition, net.blobs()))
        solverstate.write(state, capture(net, optimizer, spec, it, os.path.abspath(weights), plateau))
        values = {
            "iter": it,
            "sha256": {path.name: sha256(path) for path in (weights, state)},
            "random": random_states(),
            **extra,
        }
        self.write_json(f"snapshots/{stem}.json", values)
        snapshot = Snapshot(it, weights, state, values)
        self._prune(it)
        return snapshot

    def _prune(self, newest: int) -> None:
        if not self.keep:
            return
        kept = sorted((it for it, _ in self._found() if it <= newest), reverse=True)[: self.keep]
        for it, path in self._found():
            if it < min(kept):
                with contextlib.suppress(OSError):
                    path.unlink()  # first, so that an incomplete snapshot is never found
                for file in _files(path, "") + _files(path, ".h5"):
                    with contextlib.suppress(OSError):
                        file.unlink()

    def _found(self) -> list[tuple[int, Path]]:
        found = []
        for path in self.snapshots.glob("*_iter_*.json"):
            number = path.stem.rpartition("_iter_")[2]
            if number.isdecimal():
                found.append((int(number), path))
        return sorted(found, reverse=True)

    def latest(self) -> tuple[Snapshot | None, list[str]]:
        """The newest complete snapshot, and the reasons why newer ones were rejected."""
        refused: list[str] = []
        for it, path in self._found():
            try:
                return self._checked(it, path), refused
            except CaffePortError as error:
                refused.append(str(error))
        return None, refused

    def _checked(self, it: int, path: Path) -> Snapshot:
        try:
            extra = json.loads(read_bytes(path))
            sums = dict(extra["sha256"])
            check_random_states(extra["random"])
            losses, best = extra["losses"], extra["best"]
            if not all(isinstance(loss, float) for loss in losses) or not (best is None or best["name"]):
                raise ValueError("'losses' must be numbers and 'best' must have a name")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ParseError(f"is damaged: {str(error)[:100]}", str(path)) from None
        files = _files(path, ".h5" if path.with_suffix(".caffemodel.h5").name in sums else "")
        for file in files:
            if sha256(file) != sums.get(file.name):
                raise ParseError(
                    "is damaged: its checksum differs from the one in the snapshot's .json file", str(file)
                )
        return Snapshot(it, files[0], files[1], extra)

    # -- weights ------------------------------------------------------------------------------------------------

    def save_weights(self, stem: str, net: Net, definition: Message) -> None:
        """Writes ``best`` or ``last`` as .caffemodel and .safetensors (with the keys of ``net.state_dict()``)."""
        from safetensors.torch import save

        caffemodel.write(self.path / f"{stem}.caffemodel", definition, _of(definition, net.blobs()))
        seen: set[int] = set()
        tensors = {}
        for name, tensor in net.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                tensors[name] = tensor.detach().cpu().contiguous()
        with atomic_write(self.path / f"{stem}.safetensors") as file:
            file.write(save(tensors))

    def checksums(self) -> dict[str, str]:
        """File name -> SHA-256 of the weights that :meth:`save_weights` wrote."""
        names = [f"{stem}.{kind}" for stem in ("best", "last") for kind in ("caffemodel", "safetensors")]
        return {name: sha256(self.path / name) for name in names if (self.path / name).is_file()}


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise DependencyError(
            "--tensorboard requires tensorboard", hint="pip install 'caffe-port[tensorboard]'"
        ) from None
    return SummaryWriter


def random_states() -> dict[str, Any]:
    """The states of PyTorch's global random generators, as JSON."""
    states: dict[str, Any] = {"torch": _packed(torch.get_rng_state())}
    if torch.cuda.is_available():
        states["cuda"] = [_packed(state) for state in torch.cuda.get_rng_state_all()]
    return states


def check_random_states(states: dict[str, Any]) -> None:
    """Raises ValueError, KeyError or TypeError if :func:`random_states` did not return these states."""
    if len(base64.b64decode(states["torch"], validate=True)) != torch.get_rng_state().numel():
        raise ValueError("the random state has the wrong size")


def restore_random_states(states: dict[str, Any]) -> None:
    """Restores the states from :func:`random_states`."""
    torch.set_rng_state(_unpacked(states["torch"]))
    if "cuda" in states and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_unpacked(state) for state in states["cuda"]])


def seed_everything(seed: int) -> None:
    """Seeds the global generators of Python, NumPy and PyTorch (dropout uses the last)."""
    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002 - a user's plugin may use it
    torch.manual_seed(seed)


def _packed(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _unpacked(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
