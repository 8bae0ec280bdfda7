"""Solver definitions (solver.prototxt) and the learning rate. Without torch.

Sources: solver.cpp, sgd_solver.cpp (GetLearningRate); of NVIDIA/caffe 0.17.4 also GetMomentum and GetWeightDecay.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from caffe_port.definition.definition import Definition
from caffe_port.errors import SpecError, did_you_mean
from caffe_port.evaluation.average_precision import check_version
from caffe_port.formats import prototxt
from caffe_port.formats.message import Field, Message
from caffe_port.formats.solverstate import NO_LOSS
from caffe_port.formats.unfollowed import CHANGES, is_neutral, rule_of
from caffe_port.terminal import count

POLICIES = ("fixed", "step", "exp", "inv", "multistep", "poly", "sigmoid", "plateau", "multifixed")
"""Caffe 1.0's policies; SSD's "plateau"; and "multifixed" of Intel's and other forks."""
_EVAL_TYPES = ("classification", "detection", "detection_segmentation")
_OLD_TYPES = {
    "SGD": "SGD",
    "NESTEROV": "Nesterov",
    "ADAGRAD": "AdaGrad",
    "RMSPROP": "RMSProp",
    "ADADELTA": "AdaDelta",
    "ADAM": "Adam",
}
TYPES = (*_OLD_TYPES.values(), "SAG")
"""The types of solvers: Caffe 1.0's, and one of NVIDIA/caffe."""
_LEAST_DELTA = {"AdaGrad": 1e-3, "AdaDelta": 1e-3, "RMSProp": 1e-4, "Adam": 1e-4}
"""NVIDIA/caffe takes at least this delta."""
_OF_NVIDIA = (
    *("rampup_interval", "rampup_lr", "min_lr", "solver_data_type", "store_blobs_in_old_format"),
    *("momentum_policy", "max_momentum", "momentum_power", "test_and_snapshot_last_epochs"),
    *("larc", "larc_policy", "larc_eta", "larc_turbo"),
    *("weight_decay_policy", "weight_decay_power", "max_weight_decay"),
)
"""Fields of solvers that were written for NVIDIA/caffe."""
_SGDS = ("SGD", "SAG")
"""The types that NVIDIA's momentum_policy, larc and regularization_type WD are for."""
_POLICIES = {
    "momentum_policy": ("fixed", "poly", "opt"),
    "weight_decay_policy": ("fixed", "poly"),
    "larc_policy": ("scale", "clip"),
}
_READ = ("test_offset", "update_interval")
"""Fields outside the schema that are followed: Intel's, and yjxiong's name of iter_size."""
_ELSEWHERE = {"learning_rate": "base_lr", "lr": "base_lr", "epochs": "max_iter"}
"""What other programs call a field."""
_AT_LEAST = {
    "iter_size": 1,
    "average_loss": 1,
    "max_iter": 0,
    "test_interval": 0,
    "snapshot": 0,
    "display": 0,
    "warmup_iter": 0,
    "min_lr": 0,
    "rampup_interval": 0,
}
_NEEDED = ("base_lr", "lr_policy", "max_iter")
_REPEATED = {"test_iter": "test_iter", "stepvalue": "stepvalues", "plateau_winsize": "plateau_winsizes"} | {
    name: f"{name}s" for name in ("stagelr", "stageiter")
}


@dataclass(frozen=True)
class SolverSpec:
    """The fields of a solver.prototxt, with Caffe's names; the old ``solver_type`` is converted to ``type``.

    Attributes:
        type: ``"SGD"``, ``"Nesterov"``, ``"AdaGrad"``, ``"RMSProp"``, ``"AdaDelta"``, ``"Adam"`` or ``"SAG"``.
        momentum: for AdaDelta, the decay of its averages (rho); for Adam, beta 1.
        momentum2: for Adam, beta 2.
        delta: added to denominators to avoid division by zero; in a solver for NVIDIA/caffe, at least as much as there.
        clip_gradients: maximum L2 norm of all gradients together; negative: no clipping.
        iter_size: number of batches whose gradients are accumulated for one update.
        stepvalues: iterations at which "multistep" takes a step.
        plateau_winsizes: for "plateau", the iterations without a new minimum after which each step is taken.
        stagelrs, stageiters: for "multifixed", the rates, and the last iteration of each.
        warmup_iter, warmup_start_lr: the rate rises linearly from warmup_start_lr to base_lr in the first warmup_iter
            iterations (Intel's Caffe).
        min_lr: the rate never falls below it, and "poly" ends there (NVIDIA/caffe).
        rampup_interval, rampup_lr: in the first rampup_interval iterations, the rate rises from rampup_lr to base_lr
            with the square of the iteration (NVIDIA/caffe from 0.16.5 on).
        momentum_policy, max_momentum, momentum_power: with SGD and SAG, "poly" takes the momentum to max_momentum in
            max_iter iterations; "opt" computes it from the rate, and max_momentum, if given, bounds it (NVIDIA/caffe).
        weight_decay_policy, max_weight_decay, weight_decay_power: "poly" takes the decay from weight_decay to
            max_weight_decay in max_iter iterations (NVIDIA/caffe from 0.17.1 on).
        larc, larc_policy, larc_eta, larc_turbo: with SGD and SAG, a rate for each blob, by which the solver's is
            multiplied ("scale") or bounded ("clip"): LARC (NVIDIA/caffe from 0.17.1 on).
        local_lr_auto, local_gw_ratio: with SGD, the rate of a blob is the solver's times the ratio times |w| / (|g| +
            weight_decay |w|), in place of lr_mult: LARS (Intel's Caffe).
        test_offset: tests are made this number of iterations later (Intel's Caffe).
        test_iter: number of batches of each test net.
        eval_type: "classification": outputs are averaged; "detection": they are rows of DetectionEvaluate, of which the
            mean average precision is computed by ap_version (SSD); "detection_segmentation": some of them are
            (MobileNet-YOLO).
        param: the SolverParameter, for all other fields.
        path: the file.
        ignore_fields: names of fields of the nets to go without.
        nets: the files of nets that were read so far, by path.
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
    plateau_winsizes: tuple[int, ...] = ()
    stagelrs: tuple[float, ...] = ()
    stageiters: tuple[int, ...] = ()
    warmup_iter: int = 0
    warmup_start_lr: float = 0.0
    min_lr: float = 0.0
    rampup_interval: int = 0
    rampup_lr: float = 0.0
    momentum_policy: str = "fixed"
    max_momentum: float = 0.99
    momentum_power: float = 1.0
    weight_decay_policy: str = "fixed"
    weight_decay_power: float = 1.0
    max_weight_decay: float = 0.0
    larc: bool = False
    larc_policy: str = "scale"
    larc_eta: float = 0.001
    larc_turbo: bool = False
    local_lr_auto: bool = False
    local_gw_ratio: float = 0.001
    test_offset: int = 0
    test_iter: tuple[int, ...] = ()
    test_interval: int = 0
    test_initialization: bool = True
    display: int = 0
    average_loss: int = 1
    snapshot: int = 0
    snapshot_prefix: str = ""
    snapshot_format: str = "BINARYPROTO"
    snapshot_after_train: bool = True
    eval_type: str = "classification"
    ap_version: str = "Integral"
    show_per_class_result: bool = False
    random_seed: int = -1
    param: Message | None = None
    path: str = "<text>"
    ignore_fields: tuple[str, ...] = ()
    nets: dict[str, Definition] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, path: str | Path, ignore_fields: Collection[str] = ()) -> SolverSpec:
        """Reads a solver.prototxt.

        Args:
            path: the file.
            ignore_fields: names of fields to go without: of the nets, see :func:`caffe_port.port`, and of the solver.

        Raises:
            CaffePortError: the file cannot be read, is not a solver, or is one that Caffe would reject.
        """
        message = prototxt.read(path, "SolverParameter", {*ignore_fields, "layer", "layers"})
        return cls.parse(message, str(path), ignore_fields)

    @classmethod
    def parse(cls, p: Message, path: str = "<text>", ignore_fields: Collection[str] = ()) -> SolverSpec:
        """The SolverSpec of a SolverParameter. Raises SpecError as Caffe's checks would."""
        if {"layer", "layers"} & {str(name) for name in p.unknown}:
            raise SpecError("is a net, not a solver", path, "Give the solver.prototxt that names this net.")
        if p.has("type") and p.has("solver_type"):
            raise SpecError("sets both type and its old form, solver_type", path)
        _check_fields(p, path, ignore_fields)
        own = {"type", "param", "path", "ignore_fields", "nets", "test_offset", *_REPEATED.values()}
        names = set(cls.__dataclass_fields__) - own
        values = {name: getattr(p, name) for name in names if name not in ignore_fields or name in _NEEDED}
        values |= {name: tuple(getattr(p, field)) for field, name in _REPEATED.items() if field not in ignore_fields}
        values["lr_policy"] = p.lr_policy or "fixed"
        read = {name: _whole(p, name, path) for name in _READ if name in p.unknown and name not in ignore_fields}
        values["test_offset"] = read.get("test_offset", 0)
        if "update_interval" in read:
            if p.has("iter_size"):
                raise SpecError("sets both iter_size and update_interval, which mean the same", path)
            values["iter_size"] = read["update_interval"]
        kind = _OLD_TYPES[p.solver_type] if p.has("solver_type") else p.type
        if kind in _LEAST_DELTA and any(p.has(name) for name in _OF_NVIDIA if name not in ignore_fields):
            values["delta"] = max(values["delta"], _LEAST_DELTA[kind])
        spec = cls(type=kind, param=p, path=path, ignore_fields=tuple(ignore_fields), **values)
        spec.check()
        spec._check_tests()
        return spec

    def changed(self, **changes: Any) -> SolverSpec:
        """A checked copy with those changes that are not None."""
        spec = replace(self, **{name: value for name, value in changes.items() if value is not None})
        spec.check()
        return spec

    def check(self) -> None:
        """Raises SpecError for anything that Caffe would reject."""
        if self.type not in TYPES:
            near = did_you_mean(self.type, TYPES)
            raise SpecError(f"solver type '{self.type}' is not one of {', '.join(TYPES)}.{near}", self.path)
        if self.lr_policy not in POLICIES:
            near = did_you_mean(self.lr_policy, POLICIES)
            raise SpecError(f"lr_policy '{self.lr_policy}' is not one of {', '.join(POLICIES)}.{near}", self.path)
        if self.param is not None and not self.param.has("base_lr") and self.lr_policy != "multifixed":
            raise SpecError("has no base_lr", self.path)
        if self.lr_policy == "step" and self.stepsize < 1:
            raise SpecError(f"lr_policy step needs a stepsize of at least 1, got {self.stepsize}", self.path)
        if self.type in ("AdaGrad", "RMSProp") and self.momentum:
            raise SpecError(f"momentum cannot be used with {self.type}", self.path)
        if self.type == "RMSProp" and not 0 <= self.rms_decay < 1:
            raise SpecError(f"rms_decay {self.rms_decay} is not in [0, 1)", self.path)
        if self.regularization_type not in ("L1", "L2", *(("WD",) if self.type in _SGDS else ())):
            raise SpecError(f"regularization_type '{self.regularization_type}' is neither L1 nor L2", self.path)
        for name, policies in _POLICIES.items():
            if getattr(self, name) not in policies:
                near = did_you_mean(getattr(self, name), policies)
                raise SpecError(f"{name} '{getattr(self, name)}' is not one of {', '.join(policies)}.{near}", self.path)
        if self.lr_policy == "poly" and self.base_lr < self.min_lr:
            raise SpecError(f"min_lr {self.min_lr} is above base_lr {self.base_lr}", self.path)
        for name, least in _AT_LEAST.items():
            if getattr(self, name) < least:
                raise SpecError(f"{name} is {getattr(self, name)}, expected at least {least}", self.path)
        if any(batches < 0 for batches in self.test_iter):
            raise SpecError(f"test_iter is {min(self.test_iter)}, expected at least 0", self.path)
        if self.lr_policy == "multifixed" and (not self.stagelrs or len(self.stagelrs) != len(self.stageiters)):
            counts = f"{len(self.stagelrs)} stagelr and {len(self.stageiters)} stageiter"
            raise SpecError(f"lr_policy multifixed needs as many stagelr as stageiter, got {counts}", self.path)
        if self.tests and self.eval_type not in _EVAL_TYPES:
            near = did_you_mean(self.eval_type, _EVAL_TYPES)
            raise SpecError(f"eval_type '{self.eval_type}' is not one of {', '.join(_EVAL_TYPES)}.{near}", self.path)
        if self.detects:
            check_version(self.ap_version, self.path)
        numbers = [self.base_lr, self.gamma, self.power, self.momentum, self.momentum2, self.delta, self.weight_decay]
        numbers += [
            self.warmup_start_lr,
            self.rampup_lr,
            self.min_lr,
            self.local_gw_ratio,
            self.larc_eta,
            *self.stagelrs,
        ]
        numbers += [self.max_momentum, self.momentum_power, self.max_weight_decay, self.weight_decay_power]
        if not all(map(math.isfinite, numbers)):
            raise SpecError("a rate, momentum or decay is not finite", self.path)

    def _check_tests(self) -> None:
        """Raises SpecError where the fields of the test nets disagree. Source: Solver::InitTestNets."""
        p, tests = self.param, len(self.test_iter)
        assert p is not None
        if not self.test_interval and not (p.has("net") or p.has("net_param") or p.test_net or p.test_net_param):
            return  # older Caffes did not look at test_iter, where nothing is tested
        own = len(p.test_net) + len(p.test_net_param)
        if not any(p.has(name) for name in ("net", "net_param", "train_net", "train_net_param")) and not own:
            raise SpecError("names no net: neither net nor train_net", self.path)
        if tests < own or (tests > own and not (p.has("net") or p.has("net_param"))):
            raise SpecError(
                f"has {count(own, 'test net')}, but test_iter {count(tests, 'time')}; give it once for each", self.path
            )
        if len(p.test_state) not in (0, tests) and tests:
            states = count(len(p.test_state), "time")
            raise SpecError(
                f"has {count(tests, 'test net')}, but test_state {states}; give it once for each", self.path
            )
        if any(self.test_iter) and not self.test_interval:
            raise SpecError("sets test_iter, but not test_interval (the iterations between two tests)", self.path)

    @property
    def ignored(self) -> set[str]:
        """Names of the solver's own fields that were left out at the user's request."""
        own = {str(name) for name in self.param.unknown} | set(dict(self.param.items())) if self.param else set()
        return {name for name in self.ignore_fields if name in own}

    @property
    def detects(self) -> bool:
        """Whether tests measure detections."""
        return self.eval_type.startswith("detection")

    @property
    def lars(self) -> float:
        """The ratio of LARS; 0: every blob has its lr_mult."""
        return self.local_gw_ratio if self.local_lr_auto else 0.0

    @property
    def larc_ratio(self) -> float:
        """The ratio of LARC; 0: none."""
        return self.larc_eta if self.larc else 0.0

    @property
    def larc_clip(self) -> bool:
        """Whether LARC's rates bound the solver's."""
        return self.larc_policy == "clip"

    @property
    def rise(self) -> int:
        """The iterations in which the rate rises to base_lr."""
        return max(self.warmup_iter, self.rampup_interval)

    @property
    def scheduled(self) -> bool:
        """Whether the momentum or the weight decay changes from iteration to iteration."""
        return self.weight_decay_policy != "fixed" or (self.momentum_policy != "fixed" and self.type in _SGDS)

    @property
    def notes(self) -> list[str]:
        """What a user should know who trained with another release or on another device."""
        made = []
        if self.rampup_interval:
            made.append("rampup_interval: the rate rises as in NVIDIA/caffe from 0.16.5 on; before, it rose linearly")
        if self.min_lr and self.lr_policy == "poly":
            made.append(
                "min_lr: poly falls to it in max_iter iterations, as in NVIDIA/caffe up to 0.16.4 and from 0.17.1 on; "
                "in 0.16.5 to 0.17.0 it falls towards zero, and stays at min_lr when it is there"
            )
        if self.larc:
            made.append(
                "larc: as in NVIDIA/caffe from 0.17.1 on; 0.16.5 to 0.17.0 have no factor 1 - momentum in it"
                if self.type in _SGDS
                else f"larc has no effect on {self.type}, as in NVIDIA/caffe"
            )
        if self.weight_decay_policy != "fixed":
            made.append("weight_decay_policy: as in NVIDIA/caffe from 0.17.1 on; before, the decay rose from zero")
        if self.momentum_policy != "fixed" and self.type not in _SGDS:
            made.append(f"momentum_policy has no effect on {self.type}, as in NVIDIA/caffe")
        if self.param is not None:
            if self.delta > self.param.delta:
                made.append(f"delta is {self.delta:g}, not {self.param.delta:g}: NVIDIA/caffe's least for {self.type}")
            if self.param.solver_data_type != "FLOAT" and "solver_data_type" not in self.ignore_fields:
                made.append(f"solver_data_type {self.param.solver_data_type}: weights and updates are float32 here")
            if self.param.test_and_snapshot_last_epochs:
                made.append("test_and_snapshot_last_epochs: no tests and snapshots beside those of the intervals")
        return made

    @property
    def tests(self) -> tuple[int, ...]:
        """The number of batches of every test net; empty: nothing is tested."""
        return self.test_iter if self.test_interval else ()

    def definition(self, phase: str = "TRAIN", test: int = 0) -> Definition:
        """The solver's net, given inline or as a file; for TEST a test net, which may be the same file.

        A path is searched relative to the solver's folder, then to the current folder (as in Caffe), then by its file
        name in the solver's folder.

        Args:
            phase: ``"TRAIN"`` or ``"TEST"``.
            test: index of the test net: those of test_net_param come first, then test_net, then net itself.

        Raises:
            SpecError: the solver names no net, or more than one, or its file does not exist.
            CaffePortError: the file is not a net.
        """
        p = self.param
        if p is None:
            raise SpecError("names no net", self.path)
        if phase == "TEST":
            own: list[Message | str] = [*p.test_net_param, *p.test_net]
            if test < len(own):
                return self._read_net(own[test])
        nets = [getattr(p, name) for name in ("net_param", "net") if p.has(name)]
        if phase == "TRAIN" or not nets:
            nets += [getattr(p, name) for name in ("train_net_param", "train_net") if p.has(name)]
        if len(nets) != 1:
            raise SpecError(
                f"names {len(nets) or 'no'} nets for phase {phase}; expected one (net or {phase.lower()}_net)",
                self.path,
            )
        return self._read_net(nets[0])

    def _read_net(self, net: Message | str) -> Definition:
        if isinstance(net, Message):
            return Definition.parse(net, self.path).without(self.ignore_fields, everywhere=False)
        folder, path = Path(self.path).parent, Path(net)
        for candidate in (folder / path, path, folder / path.name):
            if candidate.is_file():
                if str(candidate) not in self.nets:
                    self.nets[str(candidate)] = Definition.read(candidate, self.ignore_fields, everywhere=False)
                return self.nets[str(candidate)]
        raise SpecError(f"its net '{path}' is neither in its folder nor in the current one", self.path)

    def state(self, phase: str, test: int = 0) -> tuple[int, tuple[str, ...]]:
        """The (level, stages) that the solver sets for a phase; in TEST for the test net of this index."""
        if self.param is None:
            return 0, ()
        states = list(self.param.test_state)[test:] if phase == "TEST" else [self.param.train_state]
        return (states[0].level, tuple(states[0].stage)) if states else (0, ())

    def tests_before(self, it: int) -> int:
        """The number of tests of an uninterrupted run before the one at iteration ``it``. Source: Solver::Step."""
        if not self.test_interval:
            return 0
        first = self.test_offset % self.test_interval
        return max(-(-(it - first) // self.test_interval), 0) - (not self.test_initialization and not first and it > 0)

    def is_test(self, it: int) -> bool:
        """Whether the test nets are tested after ``it`` iterations. Source: Solver::Step, of Intel's Caffe."""
        return bool(self.tests) and (it - self.test_offset) % self.test_interval == 0


def _check_fields(p: Message, path: str, ignore: Collection[str]) -> None:
    """Raises SpecError for fields that Caffe does not know, and for those of forks that would change the training."""
    assert p.schema is not None
    unknown = [str(name) for name in p.unknown if name not in ignore and name not in _READ]
    rules = {name: rule_of("", p.schema.name, name) for name in (*dict(p.items()), *unknown)}
    for name, rule in rules.items():
        field = p.schema.fields.get(name)
        if rule is None or rule.effect != CHANGES or name in ignore or _has_no_effect(p, name, field):
            continue
        raise SpecError(f"'{name}' is not followed: {rule.words}", path, f"--ignore-field {name} goes without it.")
    wrong = [name for name in unknown if rules[name] is None]
    if wrong:
        known = [*p.schema.fields, *_ELSEWHERE]
        raise SpecError(
            f"SolverParameter has no field {'; no field '.join(_shown(name, known) for name in wrong)}", path
        )


def _whole(p: Message, name: str, path: str) -> int:
    """The value of a field outside the schema, which some files give twice."""
    values = p.unknown[name]
    if any(type(value) is not int for value in values) or len(set(values)) > 1:
        raise SpecError(f"{name} is {', '.join(map(str, values))}; expected a whole number", path)
    return int(values[0])


def _has_no_effect(p: Message, name: str, field: Field | None) -> bool:
    """Whether the field has its default."""
    return field is not None and is_neutral(field, getattr(p, name))


def _shown(name: str, known: Sequence[str]) -> str:
    near = did_you_mean(name, [one for one in known if one not in _OF_NVIDIA]) or did_you_mean(name, known)
    for theirs, ours in _ELSEWHERE.items():
        near = near.replace(f"'{theirs}'", f"'{ours}'")
    return f"'{name}'.{near}".removesuffix(".") if near else f"'{name}'"


# -- the learning rate ----------------------------------------------------------------------------------------------


def learning_rate(spec: SolverSpec, it: int, steps: int | None = None) -> float:
    """The learning rate of iteration ``it``, counted from 0.

    Args:
        steps: the steps that "plateau" has taken so far, which depend on the losses; see :class:`Plateau`.

    Source: SGDSolver::GetLearningRate, of Caffe 1.0 and of the forks that :class:`SolverSpec` names.
    """
    if it < spec.warmup_iter:
        return (it * spec.base_lr + (spec.warmup_iter - it) * spec.warmup_start_lr) / spec.warmup_iter
    if it < spec.rampup_interval:
        risen = (it / spec.rampup_interval) ** 2
        return max(spec.rampup_lr + (spec.base_lr - spec.rampup_lr) * risen, spec.min_lr)
    return max(_by_policy(spec, it, steps), spec.min_lr)


def momentum(spec: SolverSpec, it: int, rate: float) -> float:
    """The momentum of iteration ``it``, at this learning rate. Source: GetMomentum of NVIDIA/caffe."""
    if spec.momentum_policy == "fixed" or spec.type not in _SGDS:
        return spec.momentum
    if spec.momentum_policy == "poly":
        return float(spec.momentum + (spec.max_momentum - spec.momentum) * _done(spec, it) ** spec.momentum_power)
    best = (1 - 0.5 * math.sqrt(rate)) ** 2
    bounded = spec.param is not None and spec.param.has("max_momentum")
    return min(best, spec.max_momentum) if bounded else best


def weight_decay(spec: SolverSpec, it: int) -> float:
    """The weight decay of iteration ``it``. Source: GetWeightDecay of NVIDIA/caffe."""
    if spec.weight_decay_policy == "fixed":
        return spec.weight_decay
    change = spec.max_weight_decay - spec.weight_decay
    return float(spec.weight_decay + change * _done(spec, it) ** spec.weight_decay_power)


def _done(spec: SolverSpec, it: int) -> float:
    return it / max(spec.max_iter, 1)


def _by_policy(spec: SolverSpec, it: int, steps: int | None) -> float:
    if spec.lr_policy == "fixed":
        return spec.base_lr
    if spec.lr_policy in ("step", "multistep", "plateau"):
        return float(spec.base_lr * spec.gamma ** (current_step(spec, it) if steps is None else steps))
    if spec.lr_policy == "exp":
        return float(spec.base_lr * spec.gamma**it)
    if spec.lr_policy == "inv":
        return float(spec.base_lr * (1 + spec.gamma * it) ** -spec.power)
    if spec.lr_policy == "poly":
        left = max(0.0, 1 - _done(spec, it)) ** spec.power
        return float((spec.base_lr - spec.min_lr) * left + spec.min_lr)
    if spec.lr_policy == "multifixed":
        stages = zip(spec.stagelrs, spec.stageiters, strict=True)
        return next((rate for rate, last in stages if it <= last), spec.stagelrs[-1])
    return spec.base_lr * _sigmoid(spec.gamma * (it - spec.stepsize))


def current_step(spec: SolverSpec, it: int) -> int:
    """The number of steps that "step" or "multistep" has taken at an iteration: ``current_step`` of a .solverstate.

    "multistep" takes at most one step per iteration, in the order of the stepvalues, as in Caffe.
    """
    if spec.lr_policy == "step":
        return it // spec.stepsize if it >= spec.rise else 0
    taken, earliest = 0, spec.rise
    for value in spec.stepvalues if spec.lr_policy == "multistep" else ():
        earliest = max(value, earliest)
        if it < earliest:
            break
        taken, earliest = taken + 1, earliest + 1
    return taken


@dataclass
class Plateau:
    """What lr_policy "plateau" remembers: it takes a step when the averaged loss has reached no new minimum for
    ``plateau_winsize`` iterations.

    Attributes:
        minimum_loss: the least averaged loss so far.
        iter_last_event: the iteration of the last minimum or step.
        current_step: the steps taken so far.

    Source: sgd_solver.cpp of SSD.
    """

    minimum_loss: float = NO_LOSS
    iter_last_event: int = 0
    current_step: int = 0

    def hear(self, spec: SolverSpec, it: int, loss: float) -> None:
        """Takes in the averaged loss of iteration ``it``, before its update."""
        if it < spec.rise:
            return
        if loss < self.minimum_loss:
            self.minimum_loss, self.iter_last_event = loss, it
        windows = spec.plateau_winsizes[self.current_step :]
        if windows and it >= self.iter_last_event + windows[0]:
            self.current_step += 1
            self.iter_last_event = it


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
