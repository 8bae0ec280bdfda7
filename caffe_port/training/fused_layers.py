"""Layers computed in other ways in training: the same values up to rounding, in fewer passes or operations.

These are BatchNorm and the Scale after it, ReLU and the Dropout after it, and convolutions of 3x3. The modules, their
blobs and names do not change; only the plan of phase TRAIN does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port.layers.activation import Dropout, ReLU
from caffe_port.layers.linear import Scale
from caffe_port.layers.normalization import BatchNorm
from caffe_port.layers.spatial import Convolution
from caffe_port.net import fusion
from caffe_port.net.net import Net
from caffe_port.training import winograd


def fuse(net: Net, relu_dropout: bool = True) -> int:
    """Fuses layers in phase TRAIN where possible; returns the number of pairs.

    Args:
        net: the net; its plan is changed.
        relu_dropout: also fuse ReLU and Dropout; a compiler does that by itself.
    """
    norms, relus = {}, {}
    for name, after, phases in fusion.pairs(net.plans):
        first: Any = net.get_submodule(name)
        second: Any = net.get_submodule(after)
        if True not in phases:
            continue
        if fusion.are_affine(first, second) and second.bias is not None:
            norms[name] = after
        elif relu_dropout and type(first) is ReLU and not first.negative_slope and _drops(second):
            relus[name] = after
    plan = replace(net.plans[True], fused=net.plans[True].steps)
    plan = fusion.together(plan, norms, batch_norm_and_scale)
    net.plans[True] = fusion.together(plan, relus, relu_and_dropout)
    return len(norms) + len(relus)


def use_winograd(net: Net) -> None:
    """Computes the convolutions of 3x3 in phase TRAIN by :mod:`~caffe_port.training.winograd` where it is faster."""
    plan = net.plans[True]
    steps = (
        replace(step, operation=convolution, partner=step.attribute)
        if type(net.get_submodule(step.attribute)) is Convolution and len(step.bottoms) == 1
        else step
        for step in plan.fused
    )
    net.plans[True] = replace(plan, fused=tuple(steps))


def _drops(dropout: Any) -> bool:
    return type(dropout) is Dropout and dropout.scale_train and not dropout.always and dropout.p > 0


# As in net/fusion.py, the modules are checked again on every call: users may replace them or register hooks on them.


def convolution(module: Any, _: Any, x: Tensor) -> Tensor:
    """A convolution in training."""
    if winograd.pays(module, x) and not fusion.is_altered(module):
        return winograd.convolve(x, module.weight, module.bias)
    return module(x)  # type: ignore[no-any-return]


def batch_norm_and_scale(norm: Any, scale: Any, x: Tensor) -> Tensor:
    """BatchNorm followed by Scale, in one operation.

    Source: batch_norm_layer.cpp, scale_layer.cpp.
    """
    ours = type(norm) is BatchNorm and type(scale) is Scale
    if not ours or scale.bias is None or fusion.is_altered(norm) or fusion.is_altered(scale):
        return scale(norm(x))  # type: ignore[no-any-return]
    weight, bias = scale.weight, scale.bias
    if norm.global_stats[0] if norm.training else norm.global_stats[1]:
        mean, variance = norm.running_statistics()
        return F.batch_norm(x, mean, variance, weight, bias, eps=norm.eps)
    if x.numel() == norm.mean.numel():
        y = norm.forward(x)
        shape = (-1,) + (1,) * (x.ndim - 2)
        return torch.addcmul(bias.reshape(shape), y, weight.reshape(shape))
    mean, variance = torch.zeros_like(norm.mean), torch.zeros_like(norm.variance)
    y = F.batch_norm(x, mean, variance, weight, bias, training=True, momentum=1.0, eps=norm.eps)
    norm.mean.mul_(1 - norm.momentum).add_(mean)
    norm.variance.mul_(1 - norm.momentum).add_(variance)
    norm.scale_factor.mul_(1 - norm.momentum).add_(1)
    return y


def relu_and_dropout(relu: Any, dropout: Any, x: Tensor) -> Tensor:
    """ReLU followed by Dropout, saving one tensor for the backward pass."""
    ours = type(relu) is ReLU and not relu.negative_slope and _drops(dropout) and dropout.training
    if ours and not (fusion.is_altered(relu) or fusion.is_altered(dropout)):
        dropped: Tensor = ReluDropout.apply(x, dropout.p)
        return dropped
    return dropout(relu(x))  # type: ignore[no-any-return]


class ReluDropout(torch.autograd.Function):
    """dropout(relu(x), p). It saves only its result: the gradient passes where that is positive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        y = x.relu()
        if x.device.type == "cpu":
            y.mul_(_kept(y, p)).mul_(1 / (1 - p))
        else:
            y = F.dropout(y, p, training=True)
        ctx.save_for_backward(y)
        ctx.factor = 1 / (1 - p)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        passed: Tensor = torch.ops.aten.threshold_backward(grads[0], y, 0)  # torch.where takes six times as long
        return passed.mul_(ctx.factor), None


def _kept(like: Tensor, p: float) -> Tensor:
    """True with probability 1 - p, rounded to 1 / 65536. One random number, the costly part, serves four values."""
    numbers = torch.empty((like.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = numbers.view(torch.int16)[: like.numel()] < round(32768 - 65536 * p)
    return kept.as_strided(like.shape, like.stride()) if _dense(like) else kept.reshape(like.shape)


def _dense(x: Tensor) -> bool:
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
