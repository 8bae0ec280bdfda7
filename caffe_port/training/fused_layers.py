"""Neighbouring layers of a net in training, computed together: the same numbers but for rounding, in fewer passes.

Caffe writes as two or three layers what costs one pass over memory: BatchNorm and the Scale behind it, ReLU and the
Dropout behind it. The modules, their blobs and names stay as they are; only who computes what changes.
"""

from __future__ import annotations

import itertools
import types
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port.layers.activation import Dropout, ReLU
from caffe_port.layers.linear import Scale
from caffe_port.layers.normalization import BatchNorm
from caffe_port.net.net import Net
from caffe_port.net.plan import Plan, Step


def fuse(net: Net, relu_dropout: bool = True) -> int:
    """Fuses what can be fused in both phases; gives how many pairs.

    A first layer's top becomes the pair's result, the second passes it on.

    Args:
        net: changed in place.
        relu_dropout: ReLU and Dropout too; a compiler does that by itself.
    """
    pairs = 0
    for one, two in _pairs(net):
        first, second = getattr(net, one.attribute), getattr(net, two.attribute)
        if type(first) is BatchNorm and _is_affine(second, first):
            first.normalize = types.MethodType(_normalize_and_scale, _Pair(first, second))  # type: ignore[method-assign]
        elif relu_dropout and type(first) is ReLU and _is_plain(second) and not first.negative_slope:
            first.forward = types.MethodType(_relu_and_drop, _Pair(first, second))  # type: ignore[method-assign]
        else:
            continue
        second.forward = _pass_on
        pairs += 1
    return pairs


class _Pair:
    """What a fused first layer's method is bound to; no module, so that nothing is registered twice."""

    def __init__(self, first: Any, second: Any) -> None:
        self.first, self.second = first, second


def _pairs(net: Net) -> list[tuple[Step, Step]]:
    """Steps that follow each other in both phases, the second the only reader of the first."""
    found = [_chained(net.plans[training]) for training in (True, False)]
    names = [{(one.attribute, two.attribute) for one, two in pairs} for pairs in found]
    used = [{step.attribute for step in net.plans[training].steps} for training in (True, False)]
    return [
        (one, two)
        for one, two in found[0]
        if (one.attribute, two.attribute) in names[1] or not used[1] & {one.attribute, two.attribute}
    ]


def _chained(plan: Plan) -> list[tuple[Step, Step]]:
    slots = [slot for step in plan.steps for slot in step.bottoms]
    slots += [slot for _, slot in plan.outputs] + [slot for slot, _ in plan.losses]
    uses = [step.attribute for step in plan.steps]
    return [
        (one, two)
        for one, two in itertools.pairwise(plan.steps)
        if len(one.tops) == 1
        and len(two.tops) == 1
        and len(one.bottoms) == 1
        and one.tops == two.bottoms
        and slots.count(one.tops[0]) == 1
        and uses.count(one.attribute) == uses.count(two.attribute) == 1
    ]


def _is_affine(scale: Any, norm: BatchNorm) -> bool:
    return (
        type(scale) is Scale
        and scale.axis == 1
        and scale.weight is not None
        and scale.bias is not None
        and scale.weight.shape == norm.mean.shape
        and norm.dims > 1
    )


def _is_plain(dropout: Any) -> bool:
    return isinstance(dropout, Dropout) and dropout.scale_train and not dropout.always and dropout.p > 0


def _pass_on(x: Tensor) -> Tensor:
    return x


def _normalize_and_scale(pair: _Pair, x: Tensor) -> Tensor:
    """BatchNorm.normalize with the Scale's weight and bias.

    Source: batch_norm_layer.cpp, scale_layer.cpp.
    """
    norm, weight, bias = pair.first, pair.second.weight, pair.second.bias
    if norm.global_stats[0] if norm.training else norm.global_stats[1]:
        mean, variance = norm.running_statistics()
        return F.batch_norm(x, mean, variance, weight, bias, eps=norm.eps)
    if x.numel() == norm.mean.numel():
        y: Tensor = BatchNorm.normalize(norm, x)
        shape = (-1,) + (1,) * (x.ndim - 2)
        return torch.addcmul(bias.reshape(shape), y, weight.reshape(shape))
    mean, variance = torch.zeros_like(norm.mean), torch.zeros_like(norm.variance)
    y = F.batch_norm(x, mean, variance, weight, bias, training=True, momentum=1.0, eps=norm.eps)
    norm.mean.mul_(1 - norm.momentum).add_(mean)
    norm.variance.mul_(1 - norm.momentum).add_(variance)
    norm.scale_factor.mul_(1 - norm.momentum).add_(1)
    return y


def _relu_and_drop(pair: _Pair, x: Tensor) -> Tensor:
    if not pair.second.training:
        return F.relu(x)
    dropped: Tensor = ReluDropout.apply(x, pair.second.p)
    return dropped


class ReluDropout(torch.autograd.Function):
    """dropout(relu(x), p). It keeps its result alone: where that is positive, the gradient passes."""

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
        return torch.where(y > 0, grads[0], 0).mul_(ctx.factor), None


def _kept(like: Tensor, p: float) -> Tensor:
    """True with probability 1 - p, rounded to 1 / 65536; a random number, which is what costs, serves four times."""
    numbers = torch.empty((like.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = numbers.view(torch.int16)[: like.numel()] < round(32768 - 65536 * p)
    return kept.as_strided(like.shape, like.stride()) if _dense(like) else kept.reshape(like.shape)


def _dense(x: Tensor) -> bool:
    return x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
