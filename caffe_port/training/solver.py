"""Solver definitions (solver.prototxt), the learning rate, and the optimizer for a net.

Sources: solver.cpp, sgd_solver.cpp (GetLearningRate), net.cpp (learnable_params).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from caffe_port.definition.definition import Definition
from caffe_port.errors import SpecError, did_you_mean
from caffe_port.formats import prototxt
from caffe_port.formats.message import Message
from caffe_port.net.net import Net
from caffe_port.terminal import count
from caffe_port.training.optimizers import OPTIMIZERS, CaffeOptimizer

POLICIES = ("fixed", "step", "exp", "inv", "multistep", "poly", "sigmoid")
_OLD_TYPES = {
    "SGD": "SGD",
    "NESTEROV": "Nesterov",
    "ADAGRAD": "AdaGrad",
    "RMSPROP": "RMSProp",
    "ADADELTA": "AdaDelta",
    "ADAM": "Adam",
}
_OF_FORKS = {  # fields of forks that would change the training
    "rampup_interval": "NVIDIA/caffe",
    "local_lr_auto": "NVIDIA/caffe",
    "momentum_policy": "NVIDIA/caffe",
    "min_lr": "NVIDIA/caffe",
    "warmup_iter": "Intel's Caffe",
    "stagelr": "MobileNet-YOLO",
}
_AT_LEAST = {
    "iter_size": 1,
    "average_loss": 1,
    "max_iter": 0,
    "test_interval": 0,
    "test_iter": 0,
    "snapshot": 0,
    "display": 0,
}


_OWN_FIELDS = ("type", "stepvalues", "test_iter", "param", "path", "ignore_fields")
"""Attributes of a SolverSpec that are not copied from the message as they are."""


@dataclass(frozen=True)
class SolverSpec:
    """The fields of a solver.prototxt, with Caffe's names; the old ``solver_type`` is converted to ``type``.

    Attributes:
        type: ``"SGD"``, ``"Nesterov"``, ``"AdaGrad"``, ``"RMSProp"``, ``"AdaDelta"`` or ``"Adam"``.
        momentum: for AdaDelta, the decay of its averages (rho); for Adam, beta 1.
        momentum2: for Adam, beta 2.
        delta: added to denominators to avoid division by zero.
        clip_gradients: maximum L2 norm of all gradients together; negative: no clipping.
        iter_size: number of batches whose gradients are accumulated for one update.
        stepvalues: iterations at which "multistep" takes a step.
        param: the SolverParameter, for all other fields.
        path: the file.
        ignore_fields: names of fields of the nets to go without.
    """

    type: str
    base_lr: float
    lr_policy: str
    max_iter: int
    gamma: float = 0.0
    power: float = 0.0
    stepsize: int = 0
    stepvalues: tuple[int, ...] = ()
    momentum: float = 0.0
    momentum2: float = 0.999
    rms_decay: float = 0.99
    delta: float = 1e-8
    weight_decay: float = 0.0
    regularization_type: str = "L2"
    clip_gradients: float = -1.0
    iter_size: int = 1
    test_iter: int = 0
    test_interval: int = 0
    test_initialization: bool = True
    display: int = 0
    average_loss: int = 1
    snapshot: int = 0
    snapshot_prefix: str = ""
    snapshot_after_train: bool = True
    random_seed: int = -1
    param: Message | None = None
    path: str = "<text>"
    ignore_fields: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: str | Path, ignore_fields: Collection[str] = ()) -> SolverSpec:
        """Reads a solver.prototxt.

        Args:
            path: the file.
            ignore_fields: names of fields of the nets to go without; see :func:`caffe_port.port`.

        Raises:
            CaffePortError: the file cannot be read, is not a solver, or is one that Caffe would reject.
        """
        message = prototxt.read(path, "SolverParameter", ignore_fields)
        return replace(cls.parse(message, str(path)), ignore_fields=tuple(ignore_fields))

    @classmethod
    def parse(cls, p: Message, path: str = "<text>") -> SolverSpec:
        """The SolverSpec of a SolverParameter. Raises SpecError as Caffe's checks would."""
        if p.has("type") and p.has("solver_type"):
            raise SpecError("sets both type and its old form, solver_type", path)
        tests = list(p.test_iter)
        if len(tests) > 1:
            raise SpecError(f"has {len(tests)} test nets; one is supported", path)
        for name, fork in _OF_FORKS.items():
            if p.has(name):
                raise SpecError(f"'{name}' is a field of {fork} that changes the training; it is not supported", path)
        names = [n for n in cls.__dataclass_fields__ if n not in _OWN_FIELDS]
        values = {name: getattr(p, name) for name in names}
        values["lr_policy"] = p.lr_policy or "fixed"
        kind = _OLD_TYPES[p.solver_type] if p.has("solver_type") else p.type
        spec = cls(
            type=kind, stepvalues=tuple(p.stepvalue), test_iter=tests[0] if tests else 0, param=p, path=path, **values
        )
        spec.check()
        return spec

    def changed(self, **changes: Any) -> SolverSpec:
        """A checked copy with those changes that are not None."""
        spec = replace(self, **{name: value for name, value in changes.items() if value is not None})
        spec.check()
        return spec

    def check(self) -> None:
        """Raises SpecError for anything that Caffe would reject."""
        if self.type not in OPTIMIZERS:
            near = did_you_mean(self.type, OPTIMIZERS)
            raise SpecError(f"solver type '{self.type}' is not one of {', '.join(OPTIMIZERS)}.{near}", self.path)
        if self.lr_policy not in POLICIES:
            near = did_you_mean(self.lr_policy, POLICIES)
            raise SpecError(f"lr_policy '{self.lr_policy}' is not one of {', '.join(POLICIES)}.{near}", self.path)
        if self.param is not None and not self.param.has("base_lr"):
            raise SpecError("has no base_lr", self.path)
        if self.lr_policy == "step" and self.stepsize < 1:
            raise SpecError(f"lr_policy step needs a stepsize of at least 1, got {self.stepsize}", self.path)
        if self.type in ("AdaGrad", "RMSProp") and self.momentum:
            raise SpecError(f"momentum cannot be used with {self.type}", self.path)
        if self.type == "RMSProp" and not 0 <= self.rms_decay < 1:
            raise SpecError(f"rms_decay {self.rms_decay} is not in [0, 1)", self.path)
        if self.regularization_type not in ("L1", "L2"):
            raise SpecError(f"regularization_type '{self.regularization_type}' is neither L1 nor L2", self.path)
        for name, least in _AT_LEAST.items():
            if getattr(self, name) < least:
                raise SpecError(f"{name} is {getattr(self, name)}, expected at least {least}", self.path)
        if self.test_interval and not self.test_iter:
            raise SpecError("sets test_interval, but not test_iter (the number of batches in a test)", self.path)
        numbers = (self.base_lr, self.gamma, self.power, self.momentum, self.momentum2, self.delta, self.weight_decay)
        if not all(map(math.isfinite, numbers)):
            raise SpecError("a rate, momentum or decay is not finite", self.path)

    def definition(self, phase: str = "TRAIN") -> Definition:
        """The solver's net, given inline or as a file; for TEST the test net, if it has one.

        A path is searched relative to the solver's folder, then to the current folder (as in Caffe), then by its file
        name in the solver's folder.

        Raises:
            SpecError: the solver names no net, or more than one, or its file does not exist.
            CaffePortError: the file is not a net.
        """
        p = self.param
        if p is None:
            raise SpecError("names no net", self.path)
        own, texts = ("train_net", [p.train_net_param] if p.has("train_net_param") else [])
        paths = [p.train_net] if p.train_net else []
        if phase == "TEST":
            own, texts, paths = "test_net", list(p.test_net_param), list(p.test_net)
        texts += [p.net_param] if p.has("net_param") and not texts and not paths else []
        paths += [p.net] if p.net and not texts and not paths else []
        if not texts and not paths and phase == "TEST":
            return self.definition("TRAIN")
        if len(texts) + len(paths) != 1:
            found = len(texts) + len(paths) or "no"
            raise SpecError(f"names {found} nets for phase {phase}; expected one (net or {own})", self.path)
        if texts:
            return Definition.parse(texts[0], self.path).without(self.ignore_fields, everywhere=False)
        folder, path = Path(self.path).parent, Path(paths[0])
        for candidate in (folder / path, path, folder / path.name):
            if candidate.is_file():
                return Definition.read(candidate, self.ignore_fields, everywhere=False)
        raise SpecError(f"its net '{path}' is neither in its folder nor in the current one", self.path)

    def state(self, phase: str) -> tuple[int, tuple[str, ...]]:
        """The (level, stages) that the solver sets for a phase."""
        if self.param is None:
            return 0, ()
        states = list(self.param.test_state)
        if phase == "TRAIN":
            states = [self.param.train_state]
        return (states[0].level, tuple(states[0].stage)) if states else (0, ())


# -- the learning rate ----------------------------------------------------------------------------------------------


def learning_rate(spec: SolverSpec, it: int) -> float:
    """The learning rate of iteration ``it``, counted from 0.

    Source: SGDSolver::GetLearningRate.
    """
    if spec.lr_policy == "fixed":
        return spec.base_lr
    if spec.lr_policy == "step":
        return float(spec.base_lr * spec.gamma ** (it // spec.stepsize))
    if spec.lr_policy == "exp":
        return float(spec.base_lr * spec.gamma**it)
    if spec.lr_policy == "inv":
        return float(spec.base_lr * (1 + spec.gamma * it) ** -spec.power)
    if spec.lr_policy == "multistep":
        return float(spec.base_lr * spec.gamma ** current_step(spec, it))
    if spec.lr_policy == "poly":
        return float(spec.base_lr * max(0.0, 1 - it / spec.max_iter) ** spec.power)
    return spec.base_lr * _sigmoid(spec.gamma * (it - spec.stepsize))


def current_step(spec: SolverSpec, it: int) -> int:
    """The number of steps that "step" or "multistep" has taken at an iteration: ``current_step`` of a .solverstate.

    "multistep" takes at most one step per iteration, in the order of the stepvalues, as in Caffe.
    """
    if spec.lr_policy == "step":
        return it // spec.stepsize
    taken, earliest = 0, 0
    for value in spec.stepvalues if spec.lr_policy == "multistep" else ():
        earliest = max(value, earliest)
        if it < earliest:
            break
        taken, earliest = taken + 1, earliest + 1
    return taken


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


# -- for a net ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Learnable:
    """One of Caffe's ``learnable_params``: layer, index in the layer, tensor, and its two factors.

    ``lr_mult`` is 0 for blobs that the solver does not update (BatchNorm's statistics).
    """

    layer: str
    index: int
    tensor: Tensor
    lr_mult: float
    decay_mult: float


def learnables(net: Net) -> list[Learnable]:
    """The net's blobs in Caffe's order; shared blobs are listed once.

    Raises:
        SpecError: two layers that share a blob set different factors, or a layer has more ``param`` than blobs.
    """
    found: dict[int, Learnable] = {}
    said: dict[int, set[str]] = {}
    for step in net.plans[True].steps:
        module: Any = getattr(net, step.attribute)
        names, params = module.blob_names(), step.layer.param.param
        if len(params) > len(names):
            raise step.layer.error(f"has {len(params)} param entries, but {count(len(names), 'blob')}")
        for index, name in enumerate(names):
            tensor: Tensor = getattr(module, name)
            p = params[index] if index < len(params) else Message("ParamSpec")
            fixed = not isinstance(tensor, nn.Parameter)
            first = found.setdefault(
                id(tensor), Learnable(step.layer.name, index, tensor, 0.0 if fixed else p.lr_mult, p.decay_mult)
            )
            for factor in ("lr_mult", "decay_mult"):
                if fixed or not p.has(factor):
                    continue
                if factor in said.setdefault(id(tensor), set()) and getattr(first, factor) != getattr(p, factor):
                    raise step.layer.error(f"shares a blob with layer '{first.layer}' but sets a different {factor}")
                said[id(tensor)].add(factor)
                found[id(tensor)] = first = replace(first, **{factor: getattr(p, factor)})
    return list(found.values())


def build(spec: SolverSpec, net: Net) -> CaffeOptimizer:
    """The solver's optimizer for a net. Blobs with lr_mult 0 are excluded, and their requires_grad is cleared.

    Raises:
        SpecError: the net has no trainable blobs; or see :func:`learnables`.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for blob in learnables(net):
        if isinstance(blob.tensor, nn.Parameter):
            blob.tensor.requires_grad_(blob.lr_mult != 0)
        if blob.lr_mult:
            groups.setdefault((blob.lr_mult, blob.decay_mult), []).append(blob.tensor)
    if not groups:
        raise SpecError("the net has no trainable parameters: no blobs, or lr_mult 0 everywhere", spec.path)
    cls = OPTIMIZERS[spec.type]
    return cls(
        [{"params": tensors, "lr_mult": lr, "decay_mult": decay} for (lr, decay), tensors in groups.items()],
        learning_rate(spec, 0),
        weight_decay=spec.weight_decay,
        regularization_type=spec.regularization_type,
        clip_gradients=spec.clip_gradients,
        iter_size=spec.iter_size,
        **{name: getattr(spec, name) for name in cls.options},
    )


def set_iteration(optimizer: CaffeOptimizer, spec: SolverSpec, it: int) -> float:
    """Sets the learning rate (and Adam's t) of iteration ``it``; returns the rate."""
    rate = learning_rate(spec, it)
    for group in optimizer.param_groups:
        group["lr"], group["iter"] = rate, it
    return rate
