"""Ristretto: layers that round their inputs, weights and outputs to few bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_port.formats.message import Message
from caffe_port.layers.forks.rcnn import round_away
from caffe_port.layers.linear import InnerProduct
from caffe_port.layers.normalization import LRN
from caffe_port.layers.spatial import Convolution, Deconvolution
from caffe_port.signatures.forks.quantized import rounding_arguments
from caffe_port.typing import Shape


class ConvolutionRistretto(Convolution):
    """A Convolution whose bottom, weights and top are rounded, as ``quantization_param`` says.

    DYNAMIC_FIXED_POINT has numbers of ``bw`` bits, ``fl`` of them after the point; MINIFLOAT ``mant_bits`` and
    ``exp_bits``; INTEGER_POWER_OF_2_WEIGHTS rounds the weights alone, to powers of two. In training only the weights
    and the bias are rounded, up or down at random; the gradient passes as if they were not.

    Differs from PyTorch: torch.ao quantizes to integers with a scale of any size.
    Differs from Caffe: ``rounding_scheme: STOCHASTIC`` is taken for NEAREST in evaluation, and the bottom itself, which
    other layers may read, is left as it is.
    Blobs: weight (C_out, C_in / group, kH, kW), bias (C_out)
    Reference: pmgysel/caffe conv_ristretto_layer.cpp, base_ristretto_layer.cpp, base_ristretto_layer.cu
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return super().from_caffe(p.convolution_param, bottoms) | rounding_arguments(p.quantization_param)

    @classmethod
    def fillers(cls, p: Message) -> dict[str, Message]:
        return super().fillers(p.convolution_param)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int = 1,
        bias: bool = True,
        axis: int = 1,
        data_in: tuple[str, int, int] | None = None,
        data_out: tuple[str, int, int] | None = None,
        weights: tuple[str, int, int] | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, axis)
        self.data_in, self.data_out, self.weights = data_in, data_out, weights

    def forward(self, x: Tensor) -> Tensor:
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel_size) - 1]
        weight, bias = rounded_parameters(self.weight, self.bias, self.weights, self.training)
        x = x if self.training else rounded(x, self.data_in)
        y = convolve(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return y if self.training else rounded(y, self.data_out)

    def torch_source(self) -> None:
        return None


class DeconvolutionRistretto(Deconvolution):
    """A Deconvolution whose bottom, weights and top are rounded, as ConvolutionRistretto's are.

    Blobs: weight (C_in, C_out / group, kH, kW), bias (C_out)
    Reference: pmgysel/caffe deconv_ristretto_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return super().from_caffe(p.convolution_param, bottoms) | rounding_arguments(p.quantization_param)

    @classmethod
    def fillers(cls, p: Message) -> dict[str, Message]:
        return super().fillers(p.convolution_param)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int = 1,
        bias: bool = True,
        axis: int = 1,
        data_in: tuple[str, int, int] | None = None,
        data_out: tuple[str, int, int] | None = None,
        weights: tuple[str, int, int] | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, axis)
        self.data_in, self.data_out, self.weights = data_in, data_out, weights

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(self.kernel_size) - 1]
        weight, bias = rounded_parameters(self.weight, self.bias, self.weights, self.training)
        x = x if self.training else rounded(x, self.data_in)
        y = convolve(x, weight, bias, self.stride, self.padding, 0, self.groups, self.dilation)
        return y if self.training else rounded(y, self.data_out)

    def torch_source(self) -> None:
        return None


class FcRistretto(InnerProduct):
    """An InnerProduct whose bottom, weights and top are rounded, as ConvolutionRistretto's are.

    Blobs: weight (C_out, C_in), bias (C_out)
    Reference: pmgysel/caffe fc_ristretto_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return super().from_caffe(p.inner_product_param, bottoms) | rounding_arguments(p.quantization_param)

    @classmethod
    def fillers(cls, p: Message) -> dict[str, Message]:
        return super().fillers(p.inner_product_param)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        axis: int = -1,
        transpose: bool = False,
        data_in: tuple[str, int, int] | None = None,
        data_out: tuple[str, int, int] | None = None,
        weights: tuple[str, int, int] | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, axis, transpose)
        self.data_in, self.data_out, self.weights = data_in, data_out, weights

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = rounded_parameters(self.weight, self.bias, self.weights, self.training)
        x = x.flatten(self.axis)
        y = F.linear(x if self.training else rounded(x, self.data_in), weight, bias)
        return y if self.training else rounded(y, self.data_out)

    def bottom_source(self, bottom: str) -> str:
        return bottom

    def torch_source(self) -> None:
        return None


class LRNRistretto(LRN):
    """An LRN over channels whose bottom, top and numbers in between are rounded, in training too; MINIFLOAT only.

    The sum of squares moves along the channels: it gains a square, is rounded, loses one, and is rounded. The gradient
    is that of an LRN that does not round.

    Reference: pmgysel/caffe lrn_ristretto_layer.cpp, lrn_ristretto_layer.cu
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        own = p.quantization_param
        return super().from_caffe(p.lrn_param, bottoms) | {"bits": ("float", own.mant_bits, own.exp_bits)}

    def __init__(
        self,
        size: int,
        alpha: float = 1.0,
        beta: float = 0.75,
        k: float = 1.0,
        within_channel: bool = False,
        bits: tuple[str, int, int] | None = None,
    ) -> None:
        super().__init__(size, alpha, beta, k, within_channel)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        exact = super().forward(x)
        return exact + (self.rounded_forward(x) - exact).detach() if self.training else self.rounded_forward(x)

    def rounded_forward(self, x: Tensor) -> Tensor:
        """Channel by channel, as the original's kernel goes."""
        x, size = rounded(x, self.bits), self.size
        squares, after = rounded(x * x, self.bits), size // 2
        total, top = torch.zeros_like(x[:, 0]), []
        for head in range(x.shape[1] + after):
            if head < x.shape[1]:
                total = rounded(total + squares[:, head], self.bits)
            if head >= size:
                total = rounded(total - squares[:, head - size], self.bits)
            if head >= after:
                scale = rounded(self.k + rounded(total * (self.alpha / size), self.bits), self.bits)
                top.append(rounded(x[:, head - after] * rounded(scale**-self.beta, self.bits), self.bits))
        return torch.stack(top, 1)

    def torch_source(self) -> None:
        return None


# -- rounding, in forward -----------------------------------------------------------------------------------------


def rounded(x: Tensor, bits: tuple[str, int, int] | None, random: bool = False) -> Tensor:
    """The nearest number that the bits can hold (or, at random, one of the two beside it).

    Args:
        bits: ("fixed", bits, those after the point), ("float", mantissa, exponent), ("power", least, greatest exponent
            of two), or None: all numbers.
    """
    if bits is None:
        return x
    kind, a, b = bits
    if kind == "fixed":
        step = 2.0**-b
        return whole(x.clamp(-(2.0 ** (a - 1)) * step, (2.0 ** (a - 1) - 1) * step) / step, random) * step
    sign = torch.where(x >= 0, 1, -1)
    if kind == "power":
        return sign * torch.exp2(whole(x.abs().log2(), random).clamp(a, b))
    fraction, exponent = torch.frexp(x.abs())
    bias = 2 ** (b - 1) - 1
    mantissa = whole((2 * fraction - 1) * 2**a, random)
    exponent = exponent - 1 + bias
    most = 2**b - 1
    mantissa = torch.where(exponent > most, 2**a - 1, mantissa)
    y = sign * torch.ldexp(1 + mantissa / 2**a, exponent.clamp(0, most) - bias)
    return torch.where((x == 0) | (exponent < 0), 0, y)


def whole(x: Tensor, random: bool) -> Tensor:
    """The nearest whole number, half of them away from zero; at random, the greater one as often as x is near it."""
    return (x + torch.rand_like(x)).floor() if random else round_away(x)


def rounded_parameters(
    weight: Tensor, bias: Tensor | None, bits: tuple[str, int, int] | None, training: bool
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, rounded, with the gradient of what they were. Powers of two leave the bias alone."""
    weight = rounded(weight.detach(), bits, training) + (weight - weight.detach())
    if bias is not None and bits is not None and bits[0] != "power":
        bias = rounded(bias.detach(), bits, training) + (bias - bias.detach())
    return weight, bias
