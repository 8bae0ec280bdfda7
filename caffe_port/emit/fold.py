"""Folds BatchNorm and Scale into the layer before them, for inference: y = factor * (W x + b) + shift."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from caffe_port.layers.layer import Layer
from caffe_port.layers.linear import InnerProduct, Scale
from caffe_port.layers.normalization import BN, BatchNorm
from caffe_port.layers.spatial import Convolution
from caffe_port.net import fusion
from caffe_port.net.net import Net


def absorbed(net: Net) -> dict[str, str]:
    """Attribute of a BatchNorm, BN or Scale -> attribute of the Convolution or InnerProduct it can be folded into.

    In both phases, there are only such layers between the two, each the only reader of the one before it, and none
    shares its blobs.
    """
    plan, own = net.plans[False], fusion.unshared(net)
    after = {first: second for first, second, phases in fusion.pairs(net.plans) if phases == net.plans.keys()}
    found: dict[str, str] = {}
    for step in plan.steps:
        base = name = step.attribute
        axes = len(plan.shapes[step.layer.name, 0]) if step.tops else 0
        if base not in own or not _holds(net.get_submodule(base), axes):
            continue
        while (name := after.get(name, "")) in own and _is_affine(net.get_submodule(name)):
            found[name] = base
    return found


def _holds(base: nn.Module, axes: int) -> bool:
    """Whether axis 1 of a layer's top, which has ``axes`` axes, corresponds to the rows of its weight."""
    if isinstance(base, Convolution):
        return base.axis == 1 and base.torch_source() is not None
    return isinstance(base, InnerProduct) and axes == 2


def _is_affine(module: nn.Module) -> bool:
    """Whether a layer multiplies each channel by a factor and adds a shift, in eval()."""
    if isinstance(module, Scale):
        return module.weight is not None and module.axis == 1 and module.weight.dim() == 1
    if isinstance(module, BN):
        return module.mode is None and not module.inverse_std
    return isinstance(module, BatchNorm) and module.global_stats[1]


def weights(base: Layer, after: list[Layer]) -> dict[str, Tensor]:
    """Weight and bias of ``base`` with the layers after it folded in; computed in float64, rounded once."""
    assert isinstance(base, (Convolution, InnerProduct))
    weight = base.weight.detach()
    factor = torch.ones(weight.shape[0], dtype=torch.float64, device=weight.device)
    bias = torch.zeros_like(factor) if base.bias is None else base.bias.detach().double()
    for module in after:
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
