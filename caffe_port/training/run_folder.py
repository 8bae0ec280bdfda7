"""The folder of a training run: metrics, snapshots that survive anything, weights.

::

    RUN/config.json             what the run was asked for
        metrics.jsonl           a line a display, a test, a snapshot
        run.json                versions, device, memory, time, result
        curves.png, curves.svg
        best.*, last.*          weights, as .caffemodel and .safetensors
        snapshots/NAME_iter_N.caffemodel, .solverstate    Caffe can go on from them
        snapshots/NAME_iter_N.json                        written last: checksums, random states, best so far
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caffe_port.errors import CaffePortError, ParseError
from caffe_port.formats import caffemodel, solverstate
from caffe_port.formats.message import Message
from caffe_port.net.net import Net
from caffe_port.storage.files import atomic_write, lock, read_bytes, sha256
from caffe_port.training import processes
from caffe_port.training.optimizers import CaffeOptimizer
from caffe_port.training.snapshot import capture
from caffe_port.training.solver import SolverSpec


@contextlib.contextmanager
def hold(path: str | Path) -> Iterator[None]:
    """Keeps other processes from training in a run's folder; of those that train together, the first does it.

    Raises:
        CaffePortError: one does; says which, and on which machine.
    """
    if not processes.is_first():
        yield
        return
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaffePortError(f"cannot be made: {error.strerror}", str(path)) from None
    with lock(Path(path) / ".lock", "the folder is being trained in"):
        yield


@dataclass(frozen=True)
class Snapshot:
    """A complete snapshot: the iteration, its three files, and what the third says."""

    iter: int
    weights: Path
    state: Path
    extra: dict[str, Any]


class RunFolder:
    """A run's folder.

    Args:
        path: made if need be.
        name: of the snapshots.
        keep: how many snapshots stay; 0: all.

    Raises:
        CaffePortError: it cannot be made.
    """

    def __init__(self, path: str | Path, name: str = "net", keep: int = 0) -> None:
        self.path, self.name, self.keep = Path(path), name, keep
        self.snapshots = self.path / "snapshots"
        self._events: Any = None
        try:
            self.snapshots.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CaffePortError(f"cannot be made: {error.strerror}", str(path)) from None

    def used(self) -> bool:
        """Whether a run already wrote here."""
        return (self.path / "config.json").exists() or (self.path / "metrics.jsonl").exists()

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Writes ``name`` at once or not at all."""
        with atomic_write(self.path / name, "w") as file:
            json.dump(values, file, indent=2, default=str)
            file.write("\n")

    # -- metrics ------------------------------------------------------------------------------------------------

    def log(self, line: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl; its numbers to TensorBoard's events too, where tensorboard is installed."""
        self._tensorboard(line)
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise CaffePortError(f"cannot be written: {error.strerror}", str(path)) from None

    def _tensorboard(self, line: dict[str, Any]) -> None:
        if self._events is None:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self._events = SummaryWriter(str(self.path / "tensorboard"))
            except ImportError:
                self._events = False
        if self._events:
            scalars = {f"{line['kind']}/{k}": v for k, v in line.items() if k in ("loss", "lr", "images_per_s")}
            scalars |= {f"test/{k}": v for k, v in line.get("outputs", {}).items()}
            for name, value in scalars.items():
                self._events.add_scalar(name, value, line["iter"])
            self._events.flush()

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one that a killed process left unfinished is skipped."""
        return list(read_metrics(self.path))

    def rewind(self, iteration: int) -> None:
        """Drops the metrics from an iteration on, which a resumed run will measure again."""
        lines = [line for line in self.metrics() if line["iter"] < iteration or line["kind"] == "snapshot"]
        lines = [line for line in lines if line["iter"] <= iteration]
        with atomic_write(self.path / "metrics.jsonl", "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    # -- snapshots ----------------------------------------------------------------------------------------------

    def save(
        self, net: Net, definition: Message, optimizer: CaffeOptimizer, spec: SolverSpec, it: int, extra: dict[str, Any]
    ) -> Snapshot:
        """Writes the snapshot after ``it`` updates. It counts once its .json is there, which comes last.

        Raises:
            CaffePortError: a file cannot be written (a full disk); earlier snapshots are untouched.
        """
        stem = f"{self.name}_iter_{it}"
        weights, state = (self.snapshots / f"{stem}.{end}" for end in ("caffemodel", "solverstate"))
        caffemodel.write(weights, definition, net.blobs())
        solverstate.write(state, capture(net, optimizer, spec, it, weights.name))
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
                    path.unlink()  # first, so that what is left of it no longer counts
                    for end in ("caffemodel", "solverstate"):
                        path.with_suffix(f".{end}").unlink()

    def _found(self) -> list[tuple[int, Path]]:
        found = []
        for path in self.snapshots.glob("*_iter_*.json"):
            number = path.stem.rpartition("_iter_")[2]
            if number.isdecimal():
                found.append((int(number), path))
        return sorted(found, reverse=True)

    def latest(self) -> tuple[Snapshot | None, list[str]]:
        """The newest snapshot that is whole, and what was wrong with those passed over."""
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
                raise ValueError("losses are numbers, 'best' has a name")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ParseError(f"is damaged: {str(error)[:100]}", str(path)) from None
        files = [path.with_suffix(f".{end}") for end in ("caffemodel", "solverstate")]
        for file in files:
            if sha256(file) != sums.get(file.name):
                raise ParseError("is damaged: its checksum is not the one noted beside it", str(file))
        return Snapshot(it, files[0], files[1], extra)

    # -- weights ------------------------------------------------------------------------------------------------

    def save_weights(self, stem: str, net: Net, definition: Message) -> None:
        """Writes ``best`` or ``last`` as .caffemodel and as .safetensors (the keys of ``net.state_dict()``)."""
        from safetensors.torch import save

        caffemodel.write(self.path / f"{stem}.caffemodel", definition, net.blobs())
        seen: set[int] = set()
        tensors = {}
        for name, tensor in net.state_dict(keep_vars=True).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                tensors[name] = tensor.detach().cpu().contiguous()
        with atomic_write(self.path / f"{stem}.safetensors") as file:
            file.write(save(tensors))

    def checksums(self) -> dict[str, str]:
        """File -> sha256, of the weights that :meth:`save_weights` wrote."""
        names = [f"{stem}.{kind}" for stem in ("best", "last") for kind in ("caffemodel", "safetensors")]
        return {name: sha256(self.path / name) for name in names if (self.path / name).is_file()}


def read_metrics(run: str | Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's metrics.jsonl.

    Raises:
        CaffePortError: there is none.
    """
    path = Path(run) / "metrics.jsonl"
    if not path.exists():
        return
    for text in read_bytes(path).decode("utf-8", "replace").split("\n"):
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("iter"), int) and isinstance(line.get("kind"), str):
                yield line


def random_states() -> dict[str, Any]:
    """The states of all global generators, as JSON."""
    states: dict[str, Any] = {"torch": _packed(torch.get_rng_state())}
    if torch.cuda.is_available():
        states["cuda"] = [_packed(state) for state in torch.cuda.get_rng_state_all()]
    return states


def check_random_states(states: dict[str, Any]) -> None:
    """Raises ValueError, KeyError or TypeError for what :func:`random_states` did not make."""
    if len(base64.b64decode(states["torch"], validate=True)) != torch.get_rng_state().numel():
        raise ValueError("the random state is of another size")


def restore_random_states(states: dict[str, Any]) -> None:
    """Puts :func:`random_states` back."""
    torch.set_rng_state(_unpacked(states["torch"]))
    if "cuda" in states and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_unpacked(state) for state in states["cuda"]])


def seed_everything(seed: int) -> None:
    """Seeds the global generators of Python, NumPy and PyTorch (dropout draws from the last)."""
    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002 - a user's plugin may draw from it
    torch.manual_seed(seed)


def _packed(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _unpacked(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
