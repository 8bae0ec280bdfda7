"""Caffe's six solvers as torch optimizers, in Caffe's order of operations; and a seventh, NVIDIA's SAG.

Sources: sgd_solver.cpp (ApplyUpdate: clip, normalize, regularize, compute, update), nesterov_solver.cpp,
adagrad_solver.cpp, rmsprop_solver.cpp, adadelta_solver.cpp, adam_solver.cpp; sgd_solver.cpp, sgd_solver.cu,
sag_solver.cpp and sag_solver.cu of NVIDIA/caffe 0.17.4; sgd_solver.cpp of Intel's Caffe.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from caffe_port.errors import did_you_mean

Tensors = list[Tensor] | tuple[Tensor, ...]
Rate = float | Tensor | list[Tensor]
"""One for all tensors, or one for each."""
Update = tuple[Tensors, Rate]
PORTION = 1 << 20
"""How many numbers a CPU updates together."""
OPTIMIZERS: dict[str, type[CaffeOptimizer]] = {}


class CaffeOptimizer(torch.optim.Optimizer):
    """Base class of the solvers. One step is Caffe's ApplyUpdate.

    ``.grad`` must contain the *sum* over ``iter_size`` backward passes. Gradients are clipped (by their common L2 norm
    over all groups), divided by iter_size, regularized, and turned into an update; ``.grad`` itself does not change.
    A parameter without a gradient is treated as having gradient zero: it still decays and follows its history.

    Args:
        params: parameters or groups; a group may set ``lr_mult`` and ``decay_mult`` (default 1).
        lr: the learning rate; set ``group["lr"]`` from :func:`caffe_port.training.solver.learning_rate` before every
            step.
        weight_decay: factor of the regularization's gradient.
        regularization_type: ``"L2"`` (adds decay * parameter to the gradient), ``"L1"`` (adds decay * sign), or
            ``"WD"`` (subtracts rate * decay * parameter from the parameter, beside the update: NVIDIA's SGD and SAG).
        clip_gradients: maximum L2 norm; negative: no clipping.
        iter_size: number of backward passes summed in ``.grad``.
        options: the solver's options, by the names of :class:`~caffe_port.training.solver_file.SolverSpec`.
    """

    slots: ClassVar[int] = 1
    """Number of history arrays per parameter."""
    options: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        OPTIMIZERS[cls.__name__] = cls

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        weight_decay: float = 0.0,
        regularization_type: str = "L2",
        clip_gradients: float = -1.0,
        iter_size: int = 1,
        **options: float,
    ) -> None:
        for name in options:
            if name not in self.options:
                raise TypeError(f"{type(self).__name__} takes no '{name}'.{did_you_mean(name, self.options)}")
        self.clip_gradients = clip_gradients
        self.update_in_grad = False  # leave the update in .grad, as Caffe does in a blob's diff
        self.rates: list[Tensor] | None = None
        defaults: dict[str, Any] = {
            "lr": lr,
            "lr_mult": 1.0,
            "decay_mult": 1.0,
            "weight_decay": weight_decay,
            "iter": 0,
            "regularization_type": regularization_type,
            "iter_size": iter_size,
            **self.options,
            **options,
        }
        super().__init__(params, defaults)

    # torch.optim keeps its compiler out of these, and imports it for that: 170 MB and a second that nothing here needs.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one update. ``closure``, if given, computes the gradients; its result is returned."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        gradients = [
            [torch.zeros_like(p) if p.grad is None else p.grad for p in g["params"]] for g in self.param_groups
        ]
        factor = self._clip_factor(gradients)
        rates: Sequence[Rate] = self.rates or [self.rate(group) for group in self.param_groups]
        for group, grads, rate in zip(self.param_groups, gradients, rates, strict=True):
            for params, some, *histories in self._portions(group, grads):
                self._update({**group, "params": params}, some, histories, factor, rate)
            group["iter"] += 1
        return result

    def _portions(self, group: dict[str, Any], gradients: Tensors) -> Iterator[Sequence[Tensors]]:
        """Parameters, their gradients and their histories that are updated together.

        A CPU takes one parameter after another anyway: a few at a time, and large ones in pieces, so that what is
        computed on the way does not take as much memory as all of them.
        """
        rows = [(p, g, *self.history(p)) for p, g in zip(group["params"], gradients, strict=True)]
        if rows and rows[0][0].device.type != "cpu":
            yield list(zip(*rows, strict=True))
            return
        by_norms = group.get("lars") or group.get("larc_ratio")
        portion: list[tuple[Tensor, ...]] = []
        size = 0
        for row in rows:
            divisible = not by_norms and all(tensor.is_contiguous() for tensor in row)
            pieces = zip(*(tensor.view(-1).split(PORTION) for tensor in row), strict=True) if divisible else [row]
            for piece in pieces:
                portion.append(piece)
                size += piece[0].numel()
                if size >= PORTION:
                    yield list(zip(*portion, strict=True))
                    portion, size = [], 0
        if portion:
            yield list(zip(*portion, strict=True))

    def _update(
        self, group: dict[str, Any], grads: Tensors, histories: Sequence[Tensors], factor: Tensor | None, rate: Rate
    ) -> None:
        params = group["params"]
        plain = self._normalised(group, grads, factor)
        rate = self.local_rates(group, plain, histories, rate)
        decayed = self._decayed(group, rate)
        update, rate = self.compute(self._regularised(group, plain), histories, group, rate)
        _add(params, update, rate, -1.0)
        if decayed is not None:
            torch._foreach_sub_(params, decayed)
        if self.update_in_grad:
            torch._foreach_copy_(grads, torch._foreach_mul(update, rate))

    def rate(self, group: dict[str, Any]) -> float:
        """The factor of this iteration's update, with everything that changes from iteration to iteration."""
        return float(group["lr"] * group["lr_mult"])

    def keep_rates_on_device(self) -> None:
        """Writes this iteration's rates to where a captured CUDA graph reads them; call it before every replay.

        From the first call on, :meth:`step` reads them there, too. It does not synchronize with the device.
        """
        if self.rates is None:
            self.rates = [torch.zeros((), device=g["params"][0].device) for g in self.param_groups]
            self._filled = [math.nan] * len(self.rates)
        for k, group in enumerate(self.param_groups):
            if (value := self.rate(group)) != self._filled[k]:
                self.rates[k].fill_(value)
                self._filled[k] = value

    def local_rates(self, group: dict[str, Any], grads: Tensors, histories: Sequence[Tensors], rate: Rate) -> Rate:
        """The rate of each parameter, from its gradient before regularization; by default, the group's."""
        return rate

    def history(self, parameter: Tensor) -> Tensors:
        """The parameter's history arrays, initially zero."""
        state = self.state[parameter]
        if "history0" not in state:
            state.update({f"history{k}": torch.zeros_like(parameter) for k in range(self.slots)})
        return [state[f"history{k}"] for k in range(self.slots)]

    def compute(self, grads: Tensors, histories: Sequence[Tensors], group: dict[str, Any], rate: Rate) -> Update:
        """(update, factor), whose product is subtracted from the parameters. Changes histories, but not gradients."""
        raise NotImplementedError

    def _normalised(self, group: dict[str, Any], grads: Tensors, factor: Tensor | None) -> Tensors:
        if group["iter_size"] != 1:
            grads = torch._foreach_mul(grads, 1.0 / group["iter_size"])
        return grads if factor is None else torch._foreach_mul(grads, factor.to(grads[0].device))

    def _clip_factor(self, gradients: Sequence[Tensors]) -> Tensor | None:
        if self.clip_gradients < 0:
            return None
        norms = [n for grads in gradients if grads for n in torch._foreach_norm(grads)]
        norm = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
        return torch.where(norm > self.clip_gradients, self.clip_gradients / norm, 1.0)

    def _regularised(self, group: dict[str, Any], grads: Tensors) -> Tensors:
        decay = group["weight_decay"] * group["decay_mult"]
        if not decay or group["regularization_type"] == "WD":
            return grads
        toward = group["params"] if group["regularization_type"] == "L2" else torch._foreach_sign(group["params"])
        return torch._foreach_add(grads, toward, alpha=decay)

    def _decayed(self, group: dict[str, Any], rate: Rate) -> Tensors | None:
        """What regularization_type WD subtracts from the parameters."""
        decay = group["weight_decay"] * group["decay_mult"]
        if not decay or group["regularization_type"] != "WD":
            return None
        return torch._foreach_mul(torch._foreach_mul(group["params"], rate), decay)


def _add(tensors: Tensors, values: Tensors, rate: Rate, sign: float = 1.0) -> None:
    """tensors += sign * rate * values"""
    if isinstance(rate, float):
        torch._foreach_add_(tensors, values, alpha=sign * rate)
    else:
        torch._foreach_add_(tensors, torch._foreach_mul(values, rate), alpha=sign)


class SGD(CaffeOptimizer):
    """Momentum with the rate inside the history: h = momentum h + lr g, and h is the update.

    Differs from torch.optim.SGD: there the rate multiplies the history, so a lower rate takes effect at once; here
    the history accumulated at the old rate fades over 1 / (1 - momentum) iterations.

    With ``lars``, a blob's rate is lr times lars |w| / (|g| + weight_decay |w|), whatever its lr_mult: LARS, as in
    Intel's Caffe, where only this solver has it. With ``larc_ratio``, it is lr times, or with ``larc_clip`` at most,
    (1 - momentum) larc_ratio |w| / |g|: LARC, as in NVIDIA/caffe from 0.17.1 on. Where a norm is zero, the factor is 1.
    With ``larc_turbo``, 0.9 times a moving average of the cosine between gradient and history is subtracted from the
    factor; the averages start again at zero when a run is resumed, as there.
    """

    options: ClassVar[dict[str, Any]] = {
        "momentum": 0.0,
        "lars": 0.0,
        "larc_ratio": 0.0,
        "larc_clip": False,
        "larc_turbo": False,
    }

    def local_rates(self, group: dict[str, Any], grads: Tensors, histories: Sequence[Tensors], rate: Rate) -> Rate:
        if group.get("lars"):
            norms = torch._foreach_norm(group["params"]), torch._foreach_norm(grads)
            factors = [
                torch.where((w > 0) & (g > 0), group["lars"] * w / (g + group["weight_decay"] * w), 1.0)
                for w, g in zip(*norms, strict=True)
            ]
        elif group["larc_ratio"]:
            factors = self._larc(group, grads, histories[0])
        else:
            return rate
        lr = rate / group["lr_mult"]
        return [torch.minimum(torch.as_tensor(lr).to(f), f) if group["larc_clip"] else lr * f for f in factors]

    def _larc(self, group: dict[str, Any], grads: Tensors, history: Tensors) -> list[Tensor]:
        factors = _trust(group["params"], grads, (1 - group["momentum"]) * group["larc_ratio"])
        if group["larc_turbo"]:
            factors = [f - 0.9 * c for f, c in zip(factors, self._cosines(group, grads, history), strict=True)]
        return factors

    def _cosines(self, group: dict[str, Any], grads: Tensors, history: Tensors) -> list[Tensor]:
        """Moving averages of the cosine between a parameter's gradient and its history."""
        averages = []
        for p, g, h in zip(group["params"], grads, history, strict=True):
            length = torch.linalg.vector_norm(g) * torch.linalg.vector_norm(h)
            cosine = torch.where(length > 0, (g * h).sum() / length, 0.0)
            average = self.state[p].setdefault("larc_cosine", torch.zeros_like(cosine))
            averages.append(average.mul_(0.95).add_(cosine, alpha=0.05))
        return averages

    def compute(self, grads: Tensors, histories: Sequence[Tensors], group: dict[str, Any], rate: Rate) -> Update:
        (history,) = histories
        torch._foreach_mul_(history, group["momentum"])
        _add(history, grads, rate)
        return history, 1.0


class SAG(SGD):
    """h = momentum h + (1 - momentum) g; the update is lr h (NVIDIA/caffe).

    Differs from SGD: LARC divides by the norm of h before the update and has no factor (1 - momentum); with
    ``larc_turbo``, it is multiplied by 1 minus 0.9 times the average, from the third iteration on.
    """

    options: ClassVar[dict[str, Any]] = {name: value for name, value in SGD.options.items() if name != "lars"}

    def _larc(self, group: dict[str, Any], grads: Tensors, history: Tensors) -> list[Tensor]:
        factors = _trust(group["params"], history, group["larc_ratio"])
        if group["larc_turbo"] and group["iter"] > 1:
            factors = [f * (1 - 0.9 * c) for f, c in zip(factors, self._cosines(group, grads, history), strict=True)]
        return factors

    def compute(self, grads: Tensors, histories: Sequence[Tensors], group: dict[str, Any], rate: Rate) -> Update:
        (history,) = histories
        torch._foreach_mul_(history, group["momentum"])
        _add(history, grads, 1 - group["momentum"])
        return history, rate


def _trust(params: Tensors, divisors: Tensors, ratio: float) -> list[Tensor]:
    """ratio |parameter| / |divisor|; 1 where one of them is zero."""
    norms = torch._foreach_norm(params), torch._foreach_norm(divisors)
    return [torch.where((w > 0) & (d > 0), ratio * w / d, 1.0) for w, d in zip(*norms, strict=True)]


class Nesterov(CaffeOptimizer):
    """h' = momentum h + lr g; the update is (1 + momentum) h' - momentum h."""

    options: ClassVar[dict[str, Any]] = {"momentum": 0.0}

    def compute(self, grads: Tensors, histories: Sequence[Tensors], group: dict[str, Any], rate: Rate) -> Update:
        (history,) = histories
        momentum = group["momentum"]
        before = torch._foreach_mul(history, momentum)
        torch._foreach_mul_(history, momentum)
        _add(history, grads, rate)
        update = torch._foreach_mul(history, 1 + momentum)
        torch._foreach_sub_(update, before)
        return update, 1.0


class AdaGrad(CaffeOptimizer):
    """h = h + g^2; the update is lr g / (sqrt(h) + delta)."""

    options: ClassVar[dict[str, Any]] = {"delta": 1e-8}

    def compute(self, grads: Tensors, histories: Sequence[Tensors], group: dict[str, Any], rate: Rate) -> Update:
        (history,) = histories
        torch._foreach_addcmul_(history, grads, grads)
        return _normalised(grads, history, group["delta"]), rate


class RMSProp(CaffeOptimizer):
    """h = rms_decay h + (1 - rms_decay) g^2; the update is lr g / (sqrt(h) + delta)."""

    options: ClassVar[dict[str, Any]] = {"rms_decay": 0.99, "delta": 1e-8}

    def compute(self, grads: Tensors, histories: Sequence[Tensors], group: dict[str, Any], rate: Rate) -> Update:
        (history,) = histories
        _average(history, grads, group["rms_decay"])
        return _normalised(grads, history, group["delta"]), rate


class AdaDelta(CaffeOptimizer):
    """Averages h of g^2 and u^2 with decay ``momentum``: u = g sqrt((h_u + delta) / (h_g + delta)); the update is lr u.

    Same as torch.optim.Adadelta with ``rho=momentum`` and ``eps=delta``; there is no other momentum.
    """

    slots: ClassVar[int] = 2
    options: ClassVar[dict[str, Any]] = {"momentum": 0.0, "delta": 1e-8}

    def compute(self, grads: Tensors, histories: Sequence[Tensors], group: dict[str, Any], rate: Rate) -> Update:
        of_gradients, of_updates = histories
        _average(of_gradients, grads, group["momentum"])
        ratio = torch._foreach_add(of_updates, group["delta"])
        torch._foreach_div_(ratio, torch._foreach_add(of_gradients, group["delta"]))
        torch._foreach_sqrt_(ratio)
        update = torch._foreach_mul(grads, ratio)
        _average(of_updates, update, group["momentum"])
        return update, rate


class Adam(CaffeOptimizer):
    """m and v with decays ``momentum`` and ``momentum2``; the update is lr c m / (sqrt(v) + delta), where
    c = sqrt(1 - momentum2^t) / (1 - momentum^t) and t counts from 1.

    Differs from torch.optim.Adam: delta is added to sqrt(v) before the bias correction, not after it.
    """

    slots: ClassVar[int] = 2
    options: ClassVar[dict[str, Any]] = {"momentum": 0.9, "momentum2": 0.999, "delta": 1e-8}

    def rate(self, group: dict[str, Any]) -> float:
        t = group["iter"] + 1
        return super().rate(group) * float(math.sqrt(1 - group["momentum2"] ** t) / (1 - group["momentum"] ** t))

    def compute(self, grads: Tensors, histories: Sequence[Tensors], group: dict[str, Any], rate: Rate) -> Update:
        first, second = histories
        beta1 = group["momentum"]
        torch._foreach_mul_(first, beta1)
        torch._foreach_add_(first, grads, alpha=1 - beta1)
        _average(second, grads, group["momentum2"])
        return _normalised(first, second, group["delta"]), rate


def _average(history: Tensors, values: Tensors, decay: float) -> None:
    """history = decay * history + (1 - decay) * values^2"""
    torch._foreach_mul_(history, decay)
    torch._foreach_addcmul_(history, values, values, value=1 - decay)


def _normalised(values: Tensors, history: Tensors, delta: float) -> Tensors:
    """values / (sqrt(history) + delta)"""
    divisor = torch._foreach_sqrt(history)
    torch._foreach_add_(divisor, delta)
    return torch._foreach_div(values, divisor)
