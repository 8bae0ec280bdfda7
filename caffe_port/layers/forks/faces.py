"""Face recognition: products with weights of length one, and margins that the true class has to win by.

Each takes the labels as its second bottom. Labels may have any dtype; they receive no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.layers.layer import Layer, canonical_axis, check_count
from caffe_port.typing import Shape


class MarginProduct(Layer, register=False):
    """What MarginInnerProduct and LargeMarginInnerProduct share: the weight, the margin, and how lambda decays."""

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return margin_arguments(cls.signature.parameters(p), bottoms) | {"with_lambda": len(p.top) > 1}

    @classmethod
    def fillers(cls, p: Message) -> dict[str, Message]:
        return {"weight": cls.signature.parameters(p).weight_filler}

    def __init__(
        self,
        in_features: int,
        out_features: int,
        margin: int = 1,
        axis: int = 1,
        base: float = 1.0,
        gamma: float = 0.0,
        power: float = 1.0,
        iteration: int = 0,
        lambda_min: float = 0.0,
        with_lambda: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.margin, self.axis, self.with_lambda = margin, axis, with_lambda
        self.base, self.gamma, self.power, self.lambda_min = base, gamma, power, lambda_min
        self.iteration = iteration


class MarginInnerProduct(MarginProduct):
    """SphereFace: scores ``|x| cos(t)``, where t is the angle between x and the weight of a class; the true class has
    ``|x| psi(t)`` instead, psi being cos(m t), made to fall from 0 to pi (m is 1 to 4: SINGLE to QUADRUPLE).

    The true score is mixed with the plain one, ``(lambda |x| cos(t) + |x| psi(t)) / (1 + lambda)``, with lambda
    ``max(lambda_min, base (1 + gamma k)^-power)`` in the k-th forward; a second top gives lambda.

    Differs from PyTorch: there is no module for it. A forward in training scales every row of the weight to length 1.
    The gradients are SphereFace's: that of x through the true class has the length of x's other gradients, that of the
    weight knows no margin.
    Differs from Caffe: k counts the forwards in training only, and in evaluation is that of the next; Caffe's phases
    have a counter each.
    Blobs: weight (num_output, K)
    Reference: wy1iu/sphereface margin_inner_product_layer.cpp
    """

    def forward(self, x: Tensor, label: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.training:
            self.iteration += 1
            with torch.no_grad():
                self.weight.copy_(F.normalize(self.weight))
        x = x.flatten(self.axis)
        weight = self.weight.detach() if self.training else F.normalize(self.weight)
        mix = margin_lambda(self.iteration + (not self.training), self.base, self.gamma, self.power, self.lambda_min)
        length = x.norm(dim=-1, keepdim=True)
        plain = F.linear(x, weight)
        y = plain
        if self.margin > 1:
            cosine = plain / length
            shrunk = length * falling_cosine(cosine, self.margin)
            value = shrunk.detach()
            shrunk = value + (shrunk - value) / gradient_length(cosine.detach(), length.detach(), self.margin)
            y = (mix * plain + torch.where(is_true(plain, label), shrunk, plain)) / (1 + mix)
        if self.training:
            through_weight = F.linear(x.detach(), self.weight)
            y = y + (through_weight - through_weight.detach())
        return (y, y.new_full((1,), mix)) if self.with_lambda else y


class LargeMarginInnerProduct(MarginProduct):
    """L-Softmax: as MarginInnerProduct, but the weights keep their lengths, and the gradients are the true ones.

    Differs from Caffe: k counts the forwards in training only, and in evaluation is that of the next; Caffe's phases
    have a counter each.
    Blobs: weight (num_output, K)
    Reference: wy1iu/LargeMargin_Softmax_Loss largemargin_inner_product_layer.cpp
    """

    def forward(self, x: Tensor, label: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.training:
            self.iteration += 1
        x = x.flatten(self.axis)
        mix = margin_lambda(self.iteration + (not self.training), self.base, self.gamma, self.power, self.lambda_min)
        plain = F.linear(x, self.weight)
        y = plain
        if self.margin > 1:
            lengths = x.norm(dim=-1, keepdim=True) * self.weight.norm(dim=1) + 1e-9
            shrunk = lengths * falling_cosine(plain / lengths, self.margin)
            y = (mix * plain + torch.where(is_true(plain, label), shrunk, plain)) / (1 + mix)
        return (y, y.new_full((1,), mix)) if self.with_lambda else y


class LabelSpecificAdd(Layer):
    """AM-Softmax: in training the score of the true class gets ``bias`` added (it is negative) where it is more than
    ``-bias``; the identity in evaluation.

    Reference: zhanglaplace/Caffe-ZF label_specific_add_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_scores(bottoms)
        return {"bias": p.bias}

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        if not self.training:
            return x
        flat = x.flatten(1)
        return torch.where(is_true(flat, label) & (flat > -self.bias), flat + self.bias, flat).reshape(x.shape)


class LabelSpecificMargin(Layer):
    """ArcFace: in training the cosine of the true class becomes that of an angle greater by the margin (in degrees).

    The margin is the first number of the blob, or, where ``margin_base`` is given,
    ``margin_base + (1 + gamma k)^power - 1`` in the k-th forward, ``margin_max`` at most. The identity in evaluation:
    the original reads ``margin_on_test`` in training only, where it changes nothing. A second top gives the blob.

    Blobs: statistics (5), of which the last four are not used
    Reference: happynear/caffe-windows label_specific_margin.cpp
    """

    statistics: Tensor

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_scores(bottoms)
        with_margin, p = len(p.top) > 1, p.label_specific_margin_param
        return {
            "base": p.margin_base if p.has("margin_base") else None,
            "most": p.margin_max if p.has("margin_max") else None,
            "gamma": p.gamma,
            "power": p.power,
            "iteration": p.iteration,
            "with_margin": with_margin,
        }

    @classmethod
    def fillers(cls, p: Message) -> dict[str, Message]:
        return {}

    def __init__(
        self,
        base: float | None = None,
        most: float | None = None,
        gamma: float = 0.0,
        power: float = 1.0,
        iteration: int = 0,
        with_margin: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("statistics", torch.zeros(5))
        self.base, self.most, self.gamma, self.power = base, most, gamma, power
        self.iteration, self.with_margin = iteration, with_margin

    def forward(self, x: Tensor, label: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.training and self.base is not None:
            self.statistics[0] = self.base + (1 + self.gamma * self.iteration) ** self.power - 1
            self.iteration += 1
        if self.most is not None:
            self.statistics[0] = self.statistics[0].clamp(max=self.most)
        y = x
        if self.training:
            angle = self.statistics[0] * (math.pi / 180)
            flat = x.flatten(1)
            moved = flat * angle.cos() - (1 - flat.square() + 1e-12).clamp(min=1e-12).sqrt() * angle.sin()
            y = torch.where(is_true(flat, label), moved, flat).reshape(x.shape)
        return (y, self.statistics.clone()) if self.with_margin else y


class ChannelScale(Layer):
    """Every pixel times a number of its own: x (N, C, ...) and a second bottom with one number for each of N, H, W.

    ``do_forward: false`` leaves the numbers as they are.

    Reference: happynear/caffe-windows channel_scale_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {} if p.do_forward else {"scale": False}

    def __init__(self, scale: bool = True) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:
        return x * factor.reshape(x.shape[0], 1, *x.shape[2:]) if self.scale else x


class InnerDistance(Layer):
    """Squared distances (L2), or sums of absolute differences (L1), between x and the rows of the weight, and a bias.

    ``normalize`` takes the rows of length 1. The bottom is flattened from ``axis`` on.

    Differs from PyTorch: torch.cdist takes the root.
    Blobs: weight (num_output, K), or (K, num_output) in the file with ``transpose: true``; bias (num_output)
    Reference: happynear/caffe-windows inner_distance_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        axis = canonical_axis(p.axis, len(bottoms[0]))
        features = math.prod(bottoms[0][axis:])
        check_count("weight", (p.num_output, features))
        return {
            "in_features": features,
            "out_features": p.num_output,
            "bias": p.bias_term,
            "axis": axis,
            "squared": p.distance_type == "L2",
            "normalize": p.normalize,
        }

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        axis: int = 1,
        squared: bool = True,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.axis, self.squared, self.normalize = axis, squared, normalize

    def forward(self, x: Tensor) -> Tensor:
        weight = unit_rows(self.weight) if self.normalize else self.weight
        difference = x.flatten(self.axis).unsqueeze(-2) - weight
        y = (difference.square() if self.squared else difference.abs()).sum(-1)
        return y if self.bias is None else y + self.bias


# -- margins, in forward ------------------------------------------------------------------------------------------


def is_true(scores: Tensor, label: Tensor) -> Tensor:
    """Which of the scores (N, C) are those of the true class."""
    return torch.arange(scores.shape[-1], device=scores.device) == label.reshape(-1, 1).long()


def margin_lambda(iteration: int, base: float, gamma: float, power: float, least: float) -> float:
    """How much of the plain score is mixed in."""
    return float(max(base * (1 + gamma * iteration) ** -power, least))


def falling_cosine(cosine: Tensor, margin: int) -> Tensor:
    """cos(m t) for t up to pi / m; from there on turned and lowered, so that it falls until t is pi."""
    sign = cosine.detach().sign()
    if margin == 2:
        return 2 * sign * cosine**2 - 1
    if margin == 3:
        side = (cosine.detach().abs() - 0.5).sign()
        return side * (4 * cosine**3 - 3 * cosine) + sign * (1 + side) - 2
    side = sign * (2 * cosine.detach() ** 2 - 1).sign()
    return side * (8 * cosine**4 - 8 * cosine**2 + 1) + 2 * sign + side - 3


def gradient_length(cosine: Tensor, length: Tensor, margin: int) -> Tensor:
    """What SphereFace divides the gradient of |x| psi by: its length in units of the weight and of x."""
    sign = cosine.sign()
    psi = falling_cosine(cosine, margin)
    if margin == 2:
        slope = 4 * sign * cosine
    elif margin == 3:
        slope = (cosine.abs() - 0.5).sign() * (12 * cosine**2 - 3)
    else:
        slope = sign * (2 * cosine**2 - 1).sign() * (32 * cosine**3 - 16 * cosine)
    return (slope**2 + ((psi - slope * cosine) / length) ** 2).sqrt()


def unit_rows(weight: Tensor) -> Tensor:
    """Rows divided by their length, 1e-6 being added under the root."""
    return weight / (weight.square().sum(1, keepdim=True) + 1e-6).sqrt()


# -- parameters, from Caffe ---------------------------------------------------------------------------------------


def expect_scores(bottoms: Sequence[Shape]) -> None:
    """Raises SpecError unless the bottoms are scores (N, C, 1, ...) and as many labels."""
    x, label = bottoms
    if math.prod(label) != x[0]:
        raise SpecError(f"expected scores (N, C) and N labels, got {x} and {label}")


def margin_arguments(p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
    """The constructor arguments that MarginInnerProduct and LargeMarginInnerProduct share."""
    x, label = bottoms
    if math.prod(label) != x[0]:
        raise SpecError(f"expected features (N, ...) and N labels, got {x} and {label}")
    features = math.prod(x[1:])
    check_count("weight", (p.num_output, features))
    return {
        "in_features": features,
        "out_features": p.num_output,
        "margin": ("SINGLE", "DOUBLE", "TRIPLE", "QUADRUPLE").index(p.type) + 1,
        "base": p.base,
        "gamma": p.gamma,
        "power": p.power,
        "iteration": p.iteration,
        "lambda_min": p.lambda_min,
    }
