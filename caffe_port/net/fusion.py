"""Layers that run as one: a BatchNorm with the Scale after it, a ReLU that overwrites its bottom, an idle Dropout.

The only place that decides which layer follows which: used by the plan of a Net, by training (``fused_layers``), by
``--fold`` and by the alignment of a user's own port.

It changes only time and memory: ``Net.steps()`` still gives every layer's own top; hooks, and modules that a user
replaces, disable it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caffe_port.layers.activation import Dropout, ReLU
from caffe_port.layers.linear import InnerProduct, Scale
from caffe_port.layers.normalization import BN, BatchNorm
from caffe_port.layers.shape import Eltwise
from caffe_port.layers.spatial import Convolution, Deconvolution
from caffe_port.net.plan import Operation, Plan, Step
from caffe_port.spec import LayerSpec, NetSpec, Producer

_FRESH = frozenset((Convolution, Deconvolution, InnerProduct, BatchNorm, BN, Scale, Eltwise))
"""Types whose top is a tensor of its own that their backward pass does not read."""


# -- which layer follows which ----------------------------------------------------------------------------------------


def sole_readers(spec: NetSpec) -> dict[Producer, LayerSpec]:
    """Who made a blob -> the layer that reads it, where no other does and it reads nothing else."""
    count = Counter(source for layer in spec.layers for source in layer.producers)
    return {
        layer.producers[0]: layer
        for layer in spec.layers
        if len(layer.producers) == 1 and count[layer.producers[0]] == 1
    }


def scales_by_name(spec: NetSpec) -> dict[str, LayerSpec]:
    """BatchNorm's name -> the Scale that alone reads it."""
    return {
        name: reader
        for (name, _), reader in sole_readers(spec).items()
        if reader.type == "Scale" and spec.by_name[name].type == "BatchNorm"
    }


class Pair(NamedTuple):
    """Two modules, by attribute, of which the second follows the first directly wherever either runs.

    It is the only reader of the first's only top, which is neither an output nor a loss; both are called once.

    Attributes:
        phases: in which they run, by ``training``.
    """

    first: str
    second: str
    phases: frozenset[bool]


def pairs(plans: Mapping[bool, Plan]) -> list[Pair]:
    """The pairs of a net's modules, in the order of the plans."""
    linked = {phase: _linked(plan) for phase, plan in plans.items()}
    used = {phase: {step.attribute for step in plan.steps} for phase, plan in plans.items()}
    return [
        Pair(*names, frozenset(phase for phase in plans if names in linked[phase]))
        for names in dict.fromkeys(names for phase in plans for names in linked[phase])
        if all(names in linked[phase] or used[phase].isdisjoint(names) for phase in plans)
    ]


def _linked(plan: Plan) -> dict[tuple[str, str], None]:
    calls = Counter(step.attribute for step in plan.steps)
    return {
        (maker.attribute, reader.attribute): None
        for maker, reader in _links(plan)
        if len(maker.tops) == 1 and calls[maker.attribute] == calls[reader.attribute] == 1
    }


def _links(plan: Plan) -> Iterator[tuple[Step, Step]]:
    """Steps of which the second is the only reader of a top of the first, which is neither an output nor a loss."""
    readers = sole_readers(plan.spec)
    by_name = {step.layer.name: step for step in plan.steps}
    losses = {slot for slot, _ in plan.losses}
    for step in plan.steps:
        for k, slot in enumerate(step.tops):
            reader = readers.get((step.layer.name, k))
            if reader is not None and slot not in losses:
                yield step, by_name[reader.name]


def unshared(net: nn.Module) -> set[str]:
    """The attributes of the modules that share no parameter and no buffer with another."""
    uses = Counter(id(tensor) for module in net.children() for tensor in _tensors(module))
    return {name for name, module in net.named_children() if all(uses[id(t)] == 1 for t in _tensors(module))}


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def scales(net: nn.Module, plans: Mapping[bool, Plan]) -> dict[str, str]:
    """BatchNorm -> the Scale after it, by attribute: pairs of both phases that eval() can run as one."""
    own = unshared(net)
    return {
        first: second
        for first, second, phases in pairs(plans)
        if phases == plans.keys()
        and own.issuperset((first, second))
        and are_affine(norm := net.get_submodule(first), net.get_submodule(second))
        and norm.global_stats[1]  # type: ignore[index]
    }


def are_affine(norm: Any, scale: Any) -> bool:
    """Whether these are a BatchNorm and a Scale of its channels: the halves of an affine ``nn.BatchNorm2d``."""
    return (
        type(norm) is BatchNorm
        and not norm.root_eps  # no module of torch's adds it there
        and type(scale) is Scale
        and norm.dims > 1
        and scale.weight is not None
        and scale.axis == 1
        and scale.weight.shape == norm.mean.shape
    )


# -- what the plan says of it -----------------------------------------------------------------------------------------


def with_operations(net: nn.Module, plan: Plan) -> Plan:
    """The plan with what ReLU and Dropout may do instead of their own forward."""
    makers = {reader.layer.name: maker for maker, reader in _links(plan)}

    def marked(step: Step) -> Step:
        module, maker = net.get_submodule(step.attribute), makers.get(step.layer.name)
        if isinstance(module, Dropout):
            return replace(step, operation=dropout, partner=step.attribute)
        if not isinstance(module, ReLU) or maker is None or not _is_fresh(net.get_submodule(maker.attribute)):
            return step
        if maker.layer.type == "Eltwise" and len(maker.bottoms) == 1:  # which hands on its bottom
            return step
        return replace(step, operation=overwrite, partner=maker.attribute)

    steps = tuple(map(marked, plan.steps))
    return replace(plan, steps=steps, fused=steps)


def together(plan: Plan, seconds: Mapping[str, str], operation: Operation) -> Plan:
    """The plan whose ``fused`` has one step for each pair.

    Args:
        seconds: the first module of each pair -> the second, by attribute.
        operation: of the pairs; called with both modules and the bottom of the first.
    """
    steps = {step.attribute: step for step in plan.fused}
    after = {first: steps[second] for first, second in seconds.items()}
    gone = set(seconds.values())

    def merged(step: Step) -> Step:
        if (second := after.get(step.attribute)) is None:
            return step
        frees = second.frees + step.frees
        return replace(step, operation=operation, partner=second.attribute, tops=second.tops, frees=frees)

    return replace(plan, fused=tuple(merged(step) for step in plan.fused if step.attribute not in gone))


# -- the operations ---------------------------------------------------------------------------------------------------

# What follows asks again what a module is: users replace modules and register hooks, which must see
# every layer's own bottom and top.


def affine(norm: Any, scale: Any, x: Tensor) -> Tensor:
    """BatchNorm and Scale in eval()."""
    if (
        (type(norm) is BatchNorm or _normalizes(norm))
        and type(scale) is Scale
        and not (is_altered(norm) or is_altered(scale))
    ):
        statistics: tuple[Tensor, Tensor] = norm.running_statistics() if _is_recorded() else _statistics(norm)
        return F.batch_norm(x, *statistics, scale.weight, scale.bias, eps=norm.eps)
    return scale(norm(x))  # type: ignore[no-any-return]


def _is_recorded() -> bool:
    """Whether torch.compile, export or a trace looks on, for which what is kept would be a constant."""
    return torch.compiler.is_compiling() or bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


class _Kept(NamedTuple):
    """Statistics, the blobs that they were made of, and how often those had been written to by then."""

    blobs: tuple[Tensor, Tensor, Tensor]
    writes: tuple[int, int, int]
    statistics: tuple[Tensor, Tensor]


_KEPT: WeakKeyDictionary[BatchNorm, _Kept] = WeakKeyDictionary()


def _statistics(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """``norm.running_statistics()``, made again when a blob was replaced or written to; only to be read.

    At batch 1, computing them costs as much as normalizing. PyTorch counts writes, but for those through ``.data`` and
    through NumPy: eval() and train() forget what was kept, and torch.autograd.graph.increment_version does.
    """
    a, b, c, kept = norm.mean, norm.variance, norm.scale_factor, _KEPT.get(norm)
    if (
        kept
        and kept.blobs[0] is a
        and kept.blobs[1] is b
        and kept.blobs[2] is c
        and kept.writes == (a._version, b._version, c._version)
    ):
        return kept.statistics
    if any(blob.is_inference() for blob in (a, b, c)):  # their writes are not counted
        return norm.running_statistics()
    with torch.inference_mode(False), torch.no_grad():  # what is kept serves in every mode
        made = norm.running_statistics()
    _KEPT[norm] = _Kept((a, b, c), (a._version, b._version, c._version), made)
    return made


def forget(net: nn.Module) -> None:
    """Drops the statistics that were kept for a net."""
    for module in net.modules():
        if isinstance(module, BatchNorm):
            _KEPT.pop(module, None)


def overwrite(relu: Any, maker: Any, x: Tensor) -> Tensor:
    """A ReLU in place of its bottom, which it alone reads, where the layer that made it allows that."""
    if type(relu) is ReLU and _is_fresh(maker) and not (is_altered(relu) or is_altered(maker)):
        return F.leaky_relu_(x, relu.negative_slope) if relu.negative_slope else F.relu_(x)
    return relu(x)  # type: ignore[no-any-return]


def dropout(module: Any, _: Any, x: Tensor) -> Tensor:
    """A Dropout, which hands on its bottom in eval()."""
    if type(module) is Dropout and module.scale_train and not (module.training or module.always or is_altered(module)):
        return x
    return module(x)  # type: ignore[no-any-return]


def _is_fresh(module: Any) -> bool:
    return type(module) in _FRESH and (type(module) is not Eltwise or module.operation == "SUM")


def _normalizes(norm: Any) -> bool:
    """Whether it is of a subclass that differs from BatchNorm in train() alone."""
    kind = type(norm)
    return (
        issubclass(kind, BatchNorm)
        and kind.forward is BatchNorm.forward
        and kind.running_statistics is BatchNorm.running_statistics
    )


def is_altered(module: nn.Module) -> bool:
    """Whether it has hooks, or a forward that was put in the place of its class's."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )
