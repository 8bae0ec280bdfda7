"""Folds BatchNorm and Scale into the layer before them, for inference: y = factor * (W x + b) + shift."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from caffe_port.layers.layer import Layer
from caffe_port.layers.linear import InnerProduct, Scale
from caffe_port.layers.normalization import BN, BatchNorm
from caffe_port.layers.spatial import Convolution
from caffe_port.net.net import Net
from caffe_port.net.plan import Plan


def absorbed(net: Net) -> dict[str, str]:
    """Attribute of a BatchNorm, BN or Scale -> attribute of the Convolution or InnerProduct it can be folded into.

    In both phases, there are only such layers between the two, each the only reader of the one before it, and none
    shares its blobs.
    """
    uses = Counter(id(tensor) for module in net.children() for tensor in (*module.parameters(), *module.buffers()))
    shared = {
        name
        for name, module in net.named_children()
        if any(uses[id(tensor)] > 1 for tensor in (*module.parameters(), *module.buffers()))
    }
    found = [_in_plan(net, plan, shared) for plan in net.plans.values()]
    agreed: dict[str, str] = {}
    for name, base in found[0].items():
        if all(pairs.get(name) == base for pairs in found):
            agreed[name] = base
        else:  # nor may anything after it
            shared.add(base)
    return {name: base for name, base in agreed.items() if base not in shared}


def _in_plan(net: Net, plan: Plan, shared: set[str]) -> dict[str, str]:
    made_by = {slot: step for step in plan.steps for slot in step.tops}
    readers = Counter(slot for step in plan.steps for slot in step.bottoms)
    calls = Counter(step.attribute for step in plan.steps)
    pairs: dict[str, str] = {}
    for step in plan.steps:
        maker = made_by.get(step.bottoms[0]) if len(step.bottoms) == 1 else None
        if maker is None or readers[step.bottoms[0]] > 1 or step.bottoms[0] not in step.frees or maker.per_bottom:
            continue
        base = pairs.get(maker.attribute, maker.attribute)
        if {base, step.attribute} & shared or calls[base] > 1 or calls[step.attribute] > 1:
            continue
        axes = len(plan.shapes[maker.layer.name, 0])
        if _holds(getattr(net, base), axes) and _is_affine(getattr(net, step.attribute)):
            pairs[step.attribute] = base
    return pairs


def _holds(base: Layer, axes: int) -> bool:
    """Whether axis 1 of a layer's top, which has ``axes`` axes, corresponds to the rows of its weight."""
    if isinstance(base, Convolution):
        return base.axis == 1 and base.torch_source() is not None
    return isinstance(base, InnerProduct) and axes == 2


def _is_affine(module: Layer) -> bool:
    """Whether a layer multiplies each channel by a factor and adds a shift, in eval()."""
    if isinstance(module, Scale):
        return module.weight is not None and module.axis == 1 and module.weight.dim() == 1
    if isinstance(module, BN):
        return module.mode is None
    return isinstance(module, BatchNorm) and module.global_stats[1]


def weights(base: Layer, behind: list[Layer]) -> dict[str, Tensor]:
    """Weight and bias of ``base`` with the layers after it folded in; computed in float64 and rounded once."""
    assert isinstance(base, (Convolution, InnerProduct))
    weight = base.weight.detach()
    factor = torch.ones(weight.shape[0], dtype=torch.float64, device=weight.device)
    bias = torch.zeros_like(factor) if base.bias is None else base.bias.detach().double()
    for module in behind:
        multiplied, shift = _affine(module)
        factor, bias = factor * multiplied, bias * multiplied + shift
    rows = factor.reshape(-1, *(1,) * (weight.dim() - 1))
    return {"weight": (weight * rows).to(weight.dtype), "bias": bias.to(weight.dtype)}


def _affine(module: Layer) -> tuple[Tensor, Tensor]:
    """The factor and the shift of each channel, in float64."""
    if isinstance(module, Scale):
        assert module.weight is not None
        factor = module.weight.detach().double()
        return factor, torch.zeros_like(factor) if module.bias is None else module.bias.detach().double()
    if isinstance(module, BatchNorm):
        mean, variance = (value.double() for value in module.running_statistics())
        factor = (variance + module.eps).rsqrt()
        return factor, -mean * factor
    assert isinstance(module, BN)
    assert module.mean is not None
    assert module.variance is not None
    factor = module.slope.detach().double() * (module.variance.double() + module.eps).rsqrt()
    return factor, module.bias.detach().double() - module.mean.double() * factor
