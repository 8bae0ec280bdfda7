"""caffe.SGDSolver and the others: Caffe's loop, step by step, on caffe-port's optimizers.

Sources: solver.cpp, sgd_solver.cpp, _caffe.cpp.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from caffe_port.errors import CaffePortError, SpecError, WeightsError
from caffe_port.formats import solverstate
from caffe_port.formats.caffemodel import shapes_agree
from caffe_port.formats.solverstate import SolverState
from caffe_port.pycaffe.blob import Blob
from caffe_port.pycaffe.net import Net
from caffe_port.pycaffe.settings import TEST, TRAIN, log, set_random_seed
from caffe_port.storage.files import find
from caffe_port.terminal import count
from caffe_port.training import solver as rules
from caffe_port.training.optimizers import OPTIMIZERS, CaffeOptimizer
from caffe_port.training.solver import SolverSpec


class SolverParameter:
    """``solver.param``: what scripts ask of the SolverParameter."""

    def __init__(self, solver: Solver) -> None:
        self._solver = solver

    @property
    def max_iter(self) -> int:
        """The number of updates of :meth:`Solver.solve`."""
        return self._solver.spec.max_iter

    @property
    def display(self) -> int:
        """The iterations between two reports; 0: none."""
        return self._solver.spec.display

    @property
    def layer_wise_reduce(self) -> bool:
        """Concerns several GPUs only."""
        p = self._solver.spec.param
        return p is None or bool(p.layer_wise_reduce)

    @property
    def base_lr(self) -> float:
        """The learning rate that the policy begins with; may be set."""
        return self._solver.spec.base_lr

    @base_lr.setter
    def base_lr(self, value: float) -> None:
        self._solver.spec = dataclasses.replace(self._solver.spec, base_lr=float(value))


class Solver:
    """A solver for a solver.prototxt.

    Attributes:
        net: the net in phase TRAIN.
        test_nets: those in phase TEST, which get the parameters of ``net`` before every test.
        iter: the number of updates so far.
        spec: the fields of the solver.

    Raises:
        RuntimeError: the file does not exist.
        CaffePortError: the files make no solver; says where, what, and what to do.
    """

    kind: ClassVar[str] = "SGD"

    def __init__(self, solver_file: str | os.PathLike[str]) -> None:
        if not Path(solver_file).is_file():
            raise RuntimeError(f"Could not open file {os.fspath(solver_file)}")
        self._set_up(SolverSpec.read(Path(solver_file)).changed(type=self.kind))

    @classmethod
    def of(cls, spec: SolverSpec) -> Solver:
        """The solver of fields that are read already."""
        self = cls.__new__(cls)
        self._set_up(spec)
        return self

    def _set_up(self, spec: SolverSpec) -> None:
        self.spec = spec
        if spec.snapshot and not spec.snapshot_prefix:
            raise SpecError("sets snapshot, but not snapshot_prefix", spec.path)
        folder = Path(spec.snapshot_prefix).parent
        if spec.snapshot and not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise SpecError(
                f"cannot write snapshots to '{spec.snapshot_prefix}': {folder} is not a folder that can be written to",
                spec.path,
                "Make the folder, or run the script in the folder that snapshot_prefix is relative to.",
            )
        if spec.random_seed >= 0:
            set_random_seed(spec.random_seed)
        self.net = Net.of(spec.definition("TRAIN"), TRAIN, *spec.state("TRAIN"))
        self.test_nets = [
            Net.of(spec.definition("TEST", k), TEST, *spec.state("TEST", k)) for k in range(len(spec.test_iter))
        ]
        for path in self._weights():
            for net in (self.net, *self.test_nets):
                net.copy_from(path)
        self.iter = 0
        self._plateau = rules.Plateau() if spec.lr_policy == "plateau" else None
        self._losses: list[float] = []
        self._smoothed = 0.0
        self._callbacks: list[tuple[Callable[[], Any], Callable[[], Any]]] = []
        self._began, self._shown = time.monotonic(), 0
        self._optimizer: CaffeOptimizer | None = None

    def _weights(self) -> list[Path]:
        spec = self.spec
        names = [name.strip() for entry in (spec.param.weights if spec.param else ()) for name in entry.split(",")]
        found = []
        for name in names:
            path = find(name, Path(spec.path).parent)
            if path is None:
                raise SpecError(f"its weights '{name}' do not exist", spec.path)
            found.append(path)
        return found

    # -- for scripts --------------------------------------------------------------------------------------------------

    @property
    def param(self) -> SolverParameter:
        """The fields that a script may read, and ``base_lr``, which it may set."""
        return SolverParameter(self)

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        return rules.learning_rate(self.spec, self.iter, self._steps())

    def _steps(self) -> int | None:
        return None if self._plateau is None else self._plateau.current_step

    def add_callback(self, on_start: Callable[[], Any], on_gradients_ready: Callable[[], Any]) -> None:
        """Calls ``on_start()`` before every iteration, and ``on_gradients_ready()`` before its update."""
        self._callbacks.append((on_start, on_gradients_ready))

    def share_weights(self, net: Net) -> None:
        """Makes a net use the parameters of ``self.net``."""
        net.share_with(self.net)

    def solve(self, resume_file: str | None = None) -> None:
        """Trains until ``max_iter``, with tests and snapshots as the solver says.

        Args:
            resume_file: a .solverstate to continue from.
        """
        log(f"Solving {self.net._name}", "solver.cpp:281")
        log(f"Learning Rate Policy: {self.spec.lr_policy}", "solver.cpp:282")
        if resume_file is not None:
            log(f"Restoring previous solver status from {resume_file}", "solver.cpp:286")
            self.restore(resume_file)
        start = self.iter
        self.step(self.spec.max_iter - self.iter)
        every = self.spec.snapshot
        if self.spec.snapshot_after_train and not (every and self.iter % every == 0):
            self.snapshot()
        if self.spec.display and self.iter % self.spec.display == 0:
            self._smooth(self.net._forward(0, len(self.net.layers) - 1), start)
            log(f"Iteration {self.iter}, loss = {self._smoothed:.6g}", "solver.cpp:324")
        if self.spec.is_test(self.iter):
            self._test_all()
        log("Optimization Done.", "solver.cpp:332")

    def step(self, iters: int) -> None:
        """Makes ``iters`` updates, with tests and snapshots as the solver says."""
        spec, start, net = self.spec, self.iter, self.net
        self._losses, self._smoothed, self._began = [], 0.0, time.monotonic()
        last = len(net.layers) - 1
        while self.iter < start + iters:
            net.clear_param_diffs()
            if spec.is_test(self.iter) and (self.iter > 0 or spec.test_initialization):
                self._test_all()
            for on_start, _ in self._callbacks:
                on_start()
            loss = 0.0
            for _ in range(spec.iter_size):
                loss += net._forward(0, last)
                net._backward(last, 0)
            self._smooth(loss / spec.iter_size, start)
            if self._plateau is not None:
                self._plateau.hear(spec, self.iter, self._smoothed)
            if spec.display and self.iter % spec.display == 0:
                self._display()
            for _, on_gradients_ready in self._callbacks:
                on_gradients_ready()
            self.apply_update()
            if spec.snapshot and self.iter % spec.snapshot == 0:
                self.snapshot()

    def apply_update(self) -> None:
        """Makes one update from the diffs of the parameters, which hold the update itself afterwards."""
        optimizer = self.optimizer()
        rate = rules.set_iteration(optimizer, self.spec, self.iter, self._steps())
        if self.spec.display and self.iter % self.spec.display == 0:
            log(f"Iteration {self.iter}, lr = {rate:.6g}", "sgd_solver.cpp:112")
        for blob, tensor in self._learned.items():
            blob.memory.settle()
            tensor.grad = blob.gradient.view(tuple(tensor.shape))
        optimizer.step()
        for blob in self._learned:
            blob.memory.changed()
            blob.gradient.changed()
        self.iter += 1

    def optimizer(self) -> CaffeOptimizer:
        """The optimizer, made at the first call; made again where the net took over parameters of another."""
        if self._optimizer is not None and any(b.memory.tensor is not t for b, t in self._learned.items()):
            self._optimizer = None
        if self._optimizer is None:
            groups: dict[tuple[float, float], list[Tensor]] = {}
            self._learned: dict[Blob, Tensor] = {}
            for blob, rate, decay in self.net._learnable_with_factors():
                tensor = blob.memory.tensor
                assert tensor is not None
                if rate:
                    groups.setdefault((rate, decay), []).append(tensor)
                    self._learned[blob] = tensor
            cls, spec = OPTIMIZERS[self.spec.type], self.spec
            self._optimizer = cls(
                [{"params": t, "lr_mult": rate, "decay_mult": decay} for (rate, decay), t in groups.items()]
                or [{"params": [torch.zeros(0)]}],
                self.lr,
                weight_decay=spec.weight_decay,
                regularization_type=spec.regularization_type,
                clip_gradients=spec.clip_gradients,
                iter_size=spec.iter_size,
                **{name: getattr(spec, name) for name in cls.options},
            )
            self._optimizer.update_in_grad = True
        return self._optimizer

    # -- snapshots ----------------------------------------------------------------------------------------------------

    def snapshot(self) -> None:
        """Writes PREFIX_iter_N.caffemodel and .solverstate (with .h5, where snapshot_format is HDF5)."""
        end = ".h5" if self.spec.snapshot_format == "HDF5" else ""
        stem = f"{self.spec.snapshot_prefix}_iter_{self.iter}"
        model, state = f"{stem}.caffemodel{end}", f"{stem}.solverstate{end}"
        log(f"Snapshotting to {'HDF5' if end else 'binary proto'} file {model}", "solver.cpp:464")
        (self.net.save_hdf5 if end else self.net.save)(model)
        log(f"Snapshotting solver state to {'HDF5' if end else 'binary proto'} file {state}", "sgd_solver.cpp:284")
        solverstate.write(state, self._state(model))

    def _state(self, model: str) -> SolverState:
        optimizer = self.optimizer()
        history = []
        for slot in range(optimizer.slots):
            for blob, rate, _ in self.net._learnable_with_factors():
                tensor = blob.memory.tensor
                held = optimizer.history(tensor)[slot].cpu().numpy() if rate and tensor is not None else 0.0
                history.append(np.broadcast_to(np.asarray(held, np.float32), _flat(held, blob)).reshape(blob.shape))
        if self._plateau is not None:
            p = self._plateau
            return SolverState(self.iter, model, tuple(history), p.current_step, p.minimum_loss, p.iter_last_event)
        return SolverState(self.iter, model, tuple(history), rules.current_step(self.spec, max(self.iter - 1, 0)))

    def restore(self, state_file: str | os.PathLike[str]) -> None:
        """Continues from a .solverstate, with the weights that it names.

        Raises:
            RuntimeError: the file does not exist.
            WeightsError: it is that of another net or type of solver; nothing was changed.
        """
        if not Path(state_file).is_file():
            raise RuntimeError(f"Could not open file {os.fspath(state_file)}")
        state, optimizer = solverstate.read(Path(state_file)), self.optimizer()
        learned = self.net._learnable_with_factors()
        if len(state.history) != optimizer.slots * len(learned):
            raise WeightsError(
                f"has {count(len(state.history), 'array')}, but {type(optimizer).__name__} on this net has "
                f"{optimizer.slots} for each of {count(len(learned), 'blob')}",
                state.path,
                "It may be the state of another net or of another type of solver.",
            )
        for k, array in enumerate(state.history):
            blob = learned[k % len(learned)][0]
            if not shapes_agree(array.shape, tuple(blob.shape), row=True):
                raise WeightsError(f"history {k} has shape {array.shape}, but the blob has {blob.shape}", state.path)
        if state.learned_net:
            self.net.copy_from(solverstate.weights_beside(state))
        with torch.no_grad():
            for k, array in enumerate(state.history):
                blob, rate, _ = learned[k % len(learned)]
                if rate and blob.memory.tensor is not None:
                    held = optimizer.history(blob.memory.tensor)[k // len(learned)]
                    held.copy_(torch.tensor(array).reshape(held.shape))
        self.iter = state.iter
        if self._plateau is not None:
            self._plateau = rules.Plateau(state.minimum_loss, state.iter_last_event, state.current_step)

    # -- reports ------------------------------------------------------------------------------------------------------

    def _smooth(self, loss: float, start: int) -> None:
        """The mean of the last ``average_loss`` losses. Source: UpdateSmoothedLoss."""
        if len(self._losses) < self.spec.average_loss:
            self._losses.append(loss)
            size = len(self._losses)
            self._smoothed = (self._smoothed * (size - 1) + loss) / size
        else:
            at = (self.iter - start) % self.spec.average_loss
            self._smoothed += (loss - self._losses[at]) / self.spec.average_loss
            self._losses[at] = loss

    def _display(self) -> None:
        now = time.monotonic()
        seconds, done = now - self._began, self.iter - self._shown
        speed = f"{done / (seconds or 1):.6g} iter/s, {seconds:.6g}s/{self.spec.display} iters"
        log(f"Iteration {self.iter} ({speed}), loss = {self._smoothed:.6g}", "solver.cpp:228")
        self._began, self._shown = now, self.iter
        self._report(self.net, "Train", [self.net._blobs[i].data.ravel() for i in self.net._output_ids])

    def _report(self, net: Net, what: str, values: Sequence[Any]) -> None:
        number, line = 0, "solver.cpp:244" if what == "Train" else "solver.cpp:414"
        for i, numbers in zip(net._output_ids, values, strict=True):
            weight = net._blob_loss_weights[i]
            for value in numbers:
                loss = f" (* {weight:.6g} = {weight * value:.6g} loss)" if weight else ""
                text = f"    {what} net output #{number}: {net._blob_names[i]} = {value:.6g}{loss}"
                log(text, line)
                number += 1

    def _test_all(self) -> None:
        for number, (net, batches) in enumerate(zip(self.test_nets, self.spec.test_iter, strict=True)):
            log(f"Iteration {self.iter}, Testing net (#{number})", "solver.cpp:347")
            net.share_with(self.net)
            sums: list[Any] = [0.0] * len(net._output_ids)
            for _ in range(batches):
                net._forward(0, len(net.layers) - 1)
                for k, i in enumerate(net._output_ids):
                    sums[k] = sums[k] + net._blobs[i].data.ravel()
            self._report(net, "Test", [total / max(batches, 1) for total in sums] if batches else [])


def _flat(held: Any, blob: Blob) -> tuple[int, ...]:
    return held.shape if isinstance(held, np.ndarray) else tuple(blob.shape)


class SGDSolver(Solver):
    """Stochastic gradient descent with momentum."""


class NesterovSolver(SGDSolver):
    """Nesterov's accelerated gradient."""

    kind = "Nesterov"


class AdaGradSolver(SGDSolver):
    """AdaGrad."""

    kind = "AdaGrad"


class RMSPropSolver(SGDSolver):
    """RMSProp."""

    kind = "RMSProp"


class AdaDeltaSolver(SGDSolver):
    """AdaDelta."""

    kind = "AdaDelta"


class AdamSolver(SGDSolver):
    """Adam."""

    kind = "Adam"


_KINDS: dict[str, type[SGDSolver]] = {
    cls.kind: cls for cls in (SGDSolver, NesterovSolver, AdaGradSolver, RMSPropSolver, AdaDeltaSolver, AdamSolver)
}


def get_solver(solver_file: str | os.PathLike[str]) -> Solver:
    """The solver that a solver.prototxt names by its ``type``.

    Raises:
        RuntimeError: the file does not exist.
        CaffePortError: as for :class:`Solver`.
    """
    if not Path(solver_file).is_file():
        raise RuntimeError(f"Could not open file {os.fspath(solver_file)}")
    spec = SolverSpec.read(Path(solver_file))
    if spec.type not in _KINDS:
        raise CaffePortError(f"solver type '{spec.type}' has no class here", spec.path)
    return _KINDS[spec.type].of(spec)
