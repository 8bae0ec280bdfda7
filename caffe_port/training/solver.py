"""The optimizer of a solver.prototxt for a net.

Sources: sgd_solver.cpp (GetLearningRate), net.cpp (learnable_params).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.net.net import Net
from caffe_port.training.optimizers import OPTIMIZERS, CaffeOptimizer
from caffe_port.training.solver_file import POLICIES as POLICIES
from caffe_port.training.solver_file import Plateau as Plateau
from caffe_port.training.solver_file import SolverSpec as SolverSpec
from caffe_port.training.solver_file import current_step as current_step
from caffe_port.training.solver_file import learning_rate as learning_rate
from caffe_port.training.solver_file import momentum as momentum
from caffe_port.training.solver_file import weight_decay as weight_decay


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
        SpecError: two layers that share a blob set different factors.
    """
    found: dict[int, Learnable] = {}
    said: dict[int, set[str]] = {}
    for step in net.plans[True].steps:
        module: Any = getattr(net, step.attribute)
        names, params = module.blob_names(), step.layer.param.param
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


def set_iteration(optimizer: CaffeOptimizer, spec: SolverSpec, it: int, steps: int | None = None) -> float:
    """Sets the learning rate, the momentum, the weight decay and Adam's t of iteration ``it``; returns the rate.

    For ``steps``, see learning_rate.
    """
    rate = learning_rate(spec, it, steps)
    for group in optimizer.param_groups:
        group["lr"], group["iter"] = rate, it
        if spec.scheduled:
            group["weight_decay"] = weight_decay(spec, it)
            if "momentum" in group:
                group["momentum"] = momentum(spec, it, rate)
    return rate
