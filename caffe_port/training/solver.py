"""What a solver.prototxt says, the learning rate, and the optimizer that it asks for.

Sources: solver.cpp, sgd_solver.cpp (GetLearningRate), net.cpp (learnable_params).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from caffe_port.definition.definition import Definition
from caffe_port.errors import SpecError, did_you_mean
from caffe_port.formats import prototxt
from caffe_port.formats.message import Message
from caffe_port.net.net import Net
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
_OF_FORKS = {  # fields that would change the training, and whose they are
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


@dataclass(frozen=True)
class SolverSpec:
    """A solver.prototxt, in Caffe's words; the old ``solver_type`` has become ``type``.

    Attributes:
        type: ``"SGD"``, ``"Nesterov"``, ``"AdaGrad"``, ``"RMSProp"``, ``"AdaDelta"`` or ``"Adam"``.
        momentum: of AdaDelta, the decay of its averages (rho); of Adam, beta 1.
        momentum2: of Adam, beta 2.
        delta: added where a division could be by zero.
        clip_gradients: greatest L2 norm of all gradients together; negative: off.
        iter_size: batches whose gradients make one update.
        stepvalues: iterations at which "multistep" takes a step.
        param: the SolverParameter, for everything else.
        path: the file.
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

    @classmethod
    def read(cls, path: str | Path) -> SolverSpec:
        """Reads a solver.prototxt.

        Raises:
            CaffePortError: it cannot be read or is no solver, with line; or Caffe would refuse what it says.
        """
        return cls.parse(prototxt.read(path, "SolverParameter"), str(path))

    @classmethod
    def parse(cls, p: Message, path: str = "<text>") -> SolverSpec:
        """The SolverSpec of a SolverParameter. Raises SpecError as Caffe's checks would."""
        if p.has("type") and p.has("solver_type"):
            raise SpecError("says both type and solver_type (the old form of it)", path)
        tests = list(p.test_iter)
        if len(tests) > 1:
            raise SpecError(f"has {len(tests)} test nets; one is supported", path)
        for name, fork in _OF_FORKS.items():
            if p.has(name):
                raise SpecError(f"'{name}' belongs to {fork} and changes the training; it is not supported", path)
        names = [n for n in cls.__dataclass_fields__ if n not in ("type", "stepvalues", "test_iter", "param", "path")]
        values = {name: getattr(p, name) for name in names}
        values["lr_policy"] = p.lr_policy or "fixed"
        kind = _OLD_TYPES[p.solver_type] if p.has("solver_type") else p.type
        spec = cls(
            type=kind, stepvalues=tuple(p.stepvalue), test_iter=tests[0] if tests else 0, param=p, path=path, **values
        )
        spec.check()
        return spec

    def changed(self, **changes: Any) -> SolverSpec:
        """A copy with those changes that are not None, checked."""
        spec = replace(self, **{name: value for name, value in changes.items() if value is not None})
        spec.check()
        return spec

    def check(self) -> None:
        """Raises SpecError for what Caffe refuses."""
        if self.type not in OPTIMIZERS:
            near = did_you_mean(self.type, OPTIMIZERS)
            raise SpecError(f"solver type '{self.type}' is none of {', '.join(OPTIMIZERS)}.{near}", self.path)
        if self.lr_policy not in POLICIES:
            near = did_you_mean(self.lr_policy, POLICIES)
            raise SpecError(f"lr_policy '{self.lr_policy}' is none of {', '.join(POLICIES)}.{near}", self.path)
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
                raise SpecError(f"{name} is {getattr(self, name)}, at least {least} is needed", self.path)
        if self.test_interval and not self.test_iter:
            raise SpecError("says test_interval, but not test_iter (how many batches a test takes)", self.path)
        numbers = (self.base_lr, self.gamma, self.power, self.momentum, self.momentum2, self.delta, self.weight_decay)
        if not all(map(math.isfinite, numbers)):
            raise SpecError("a rate, momentum or decay is not finite", self.path)

    def definition(self, phase: str = "TRAIN") -> Definition:
        """The net that the solver names, as text or as a file; for TEST the test net, where it has its own.

        A path is looked up below the solver's folder, then below the current one (as Caffe does), then by its last
        part beside the solver.

        Raises:
            SpecError: the solver names no net, or more than one.
            CaffePortError: the file is not there or no net.
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
            raise SpecError(f"names {len(texts) + len(paths) or 'no'} nets for {phase} (net or {own})", self.path)
        if texts:
            return Definition.parse(texts[0], self.path)
        folder, path = Path(self.path).parent, Path(paths[0])
        for candidate in (folder / path, path, folder / path.name):
            if candidate.is_file():
                return Definition.read(candidate)
        raise SpecError(f"its net '{path}' is neither in its folder nor in the current one", self.path)

    def state(self, phase: str) -> tuple[int, tuple[str, ...]]:
        """(level, stages) that the solver gives the net of a phase."""
        if self.param is None:
            return 0, ()
        states = list(self.param.test_state)
        if phase == "TRAIN":
            states = [self.param.train_state]
        return (states[0].level, tuple(states[0].stage)) if states else (0, ())


# -- the learning rate ----------------------------------------------------------------------------------------------


def learning_rate(spec: SolverSpec, it: int) -> float:
    """The rate of the update after which ``it + 1`` updates are done.

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
    """How many steps a stepping policy has taken at an iteration: the ``current_step`` of a .solverstate.

    "multistep" takes one step an iteration at most, in the order given, as Caffe does.
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
    """A blob in the order of Caffe's ``learnable_params``: layer, index in the layer, tensor, and its two factors.

    ``lr_mult`` is 0 for what no solver changes (BatchNorm's statistics).
    """

    layer: str
    index: int
    tensor: Tensor
    lr_mult: float
    decay_mult: float


def learnables(net: Net) -> list[Learnable]:
    """The net's blobs in Caffe's order, each shared one once.

    Raises:
        SpecError: two layers that share a blob give it different factors, or a layer has more ``param`` than blobs.
    """
    found: dict[int, Learnable] = {}
    said: dict[int, set[str]] = {}
    for step in net.plans[True].steps:
        module: Any = getattr(net, step.attribute)
        names, params = module.blob_names(), step.layer.param.param
        if len(params) > len(names):
            raise step.layer.error(f"has {len(params)} param for {len(names)} blobs")
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
                    raise step.layer.error(f"shares a blob with layer '{first.layer}' and gives it another {factor}")
                said[id(tensor)].add(factor)
                found[id(tensor)] = first = replace(first, **{factor: getattr(p, factor)})
    return list(found.values())


def build(spec: SolverSpec, net: Net) -> CaffeOptimizer:
    """The solver's optimizer for a net. Blobs with lr_mult 0 are left out and need no gradient any more.

    Raises:
        SpecError: the net has nothing to learn, or see :func:`learnables`.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for blob in learnables(net):
        if isinstance(blob.tensor, nn.Parameter):
            blob.tensor.requires_grad_(blob.lr_mult != 0)
        if blob.lr_mult:
            groups.setdefault((blob.lr_mult, blob.decay_mult), []).append(blob.tensor)
    if not groups:
        raise SpecError("the net has nothing to learn: no blobs, or lr_mult 0 everywhere", spec.path)
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
    """Sets the rate (and Adam's t) for the update after ``it`` updates; gives the rate."""
    rate = learning_rate(spec, it)
    for group in optimizer.param_groups:
        group["lr"], group["iter"] = rate, it
    return rate
