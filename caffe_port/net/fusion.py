"""Layers that run as one: a BatchNorm with the Scale behind it, a ReLU that overwrites its bottom, an idle Dropout.

Nobody sees a difference but in time and memory: ``Net.steps()`` still gives every layer's own top; hooks, and modules
that a user puts in the place of ours, end it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caffe_port.layers.activation import Dropout, ReLU
from caffe_port.layers.layer import Layer
from caffe_port.layers.linear import InnerProduct, Scale
from caffe_port.layers.normalization import BN, BatchNorm
from caffe_port.layers.shape import Eltwise
from caffe_port.layers.spatial import Convolution, Deconvolution
from caffe_port.net.plan import Plan, Step

_FRESH = (Convolution, Deconvolution, InnerProduct, BatchNorm, BN, Scale, Eltwise)
"""Types whose top is a tensor of its own that their backward pass does not read."""


def scales(net: nn.Module, plans: Collection[Plan]) -> dict[str, str]:
    """BatchNorm -> the Scale that follows it directly, in both phases, being its only reader; by attribute."""
    found = []
    for plan in plans:
        made_by = {slot: step for step in plan.steps for slot in step.tops}
        readers = Counter(slot for step in plan.steps for slot in step.bottoms)
        pairs = {}
        for step in plan.steps:
            norm = made_by.get(step.bottoms[0]) if len(step.bottoms) == 1 else None
            if norm is None or readers[step.bottoms[0]] > 1 or step.bottoms[0] not in step.frees:
                continue
            if _are_affine(getattr(net, norm.attribute), getattr(net, step.attribute)):
                pairs[norm.attribute] = step.attribute
        found.append(pairs)
    uses = Counter(id(tensor) for module in net.children() for tensor in _tensors(module))
    calls = [Counter(step.attribute for step in plan.steps) for plan in plans]
    return {
        norm: scale
        for norm, scale in found[0].items()
        if all(pairs.get(norm) == scale for pairs in found)
        and all(uses[id(t)] == 1 for name in (norm, scale) for t in _tensors(net.get_submodule(name)))
        and all(count[name] == 1 for count in calls for name in (norm, scale))
    }


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _are_affine(norm: Layer, scale: Layer) -> bool:
    return (
        type(norm) is BatchNorm
        and type(scale) is Scale
        and norm.dims > 1
        and norm.global_stats[1]
        and scale.weight is not None
        and scale.axis == 1
        and scale.weight.shape == norm.mean.shape
    )


def fuse(net: nn.Module, plan: Plan, scales: Mapping[str, str]) -> Plan:
    """The plan with the ReLUs marked that may overwrite their bottom, and with ``merged``."""
    made_by = {slot: step for step in plan.steps for slot in step.tops}
    readers = Counter(slot for step in plan.steps for slot in step.bottoms)

    def marked(step: Step) -> Step:
        maker = made_by.get(step.bottoms[0]) if isinstance(getattr(net, step.attribute), ReLU) else None
        if maker is None or readers[step.bottoms[0]] > 1 or step.bottoms[0] not in step.frees:
            return step
        if not _is_fresh(getattr(net, maker.attribute)) or (maker.layer.type == "Eltwise" and len(maker.bottoms) == 1):
            return step
        return replace(step, in_place=maker.attribute)

    steps = tuple(map(marked, plan.steps))
    behind = {step.attribute: step for step in steps if step.attribute in scales.values()}
    merged = tuple(
        replace(step, scale=scale.attribute, tops=scale.tops, frees=scale.frees + step.frees)
        if (scale := behind.get(scales.get(step.attribute, "")))
        else step
        for step in steps
        if step.attribute not in behind
    )
    return replace(plan, steps=steps, merged=merged)


# What follows asks again what a module is: users put others in the place of ours, and hooks on them, which must see
# every layer's own bottom and top.


def affine(norm: Any, scale: Any, x: Tensor) -> Tensor:
    """BatchNorm and Scale of a step in :attr:`Plan.merged`."""
    if type(norm) is BatchNorm and type(scale) is Scale and not (_altered(norm) or _altered(scale)):
        statistics = norm.running_statistics() if _is_recorded() else _statistics(norm)
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

    At batch 1 making them costs as much as normalising. PyTorch counts writes, but for those through ``.data`` and
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


def may_overwrite(relu: Any, maker: Any) -> bool:
    """Whether a ReLU with :attr:`Step.in_place` may work in place as things are now."""
    return type(relu) is ReLU and _is_fresh(maker) and not (_altered(relu) or _altered(maker))


def passes(dropout: Dropout) -> bool:
    """Whether a Dropout hands on its bottom, as in eval()."""
    return dropout.scale_train and not (dropout.training or dropout.always or _altered(dropout))


def _is_fresh(module: Any) -> bool:
    return type(module) in _FRESH and (type(module) is not Eltwise or module.operation == "SUM")


def _altered(module: nn.Module) -> bool:
    """Whether it has hooks, or a forward that was put in the place of its class's."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )
