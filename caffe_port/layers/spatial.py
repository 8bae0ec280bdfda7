"""Layers that slide a window of weights over the image: convolution, deconvolution, im2col."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.layers.layer import Layer, canonical_axis, check_count, constructor, expect_bottoms, scalar_if_equal
from caffe_port.signatures.kernel_params import axis_values
from caffe_port.typing import Shape

WINDOW = ("kernel_size", "stride", "padding", "dilation")


class Convolution(Layer, nn.Conv2d):
    """Same as torch.nn.Conv2d; as nn.Conv1d or nn.Conv3d where the bottom has one or three spatial axes.

    Differs from PyTorch: the channel axis is free (``axis``); all axes before it are batch axes. Several bottoms are
    convolved one by one with the same weight.
    Blobs: weight (C_out, C_in / group, kH, kW), bias (C_out)
    Reference: base_conv_layer.cpp, conv_layer.cpp
    """

    param, blobs, per_bottom = "convolution_param", ("weight", "bias"), True
    aliases: ClassVar[tuple[str, ...]] = ("NdConvolution",)
    padding: tuple[int, ...]

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
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)  # type: ignore[arg-type]
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel_size) - 1]
        batch = x if self.axis == 1 else x.reshape(-1, *x.shape[self.axis :])
        y = convolve(batch, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return y if self.axis == 1 else y.reshape(*x.shape[: self.axis], *y.shape[1:])

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        args = convolution_arguments(p, bottoms)
        check_top(unfolded_sizes(bottoms[0], args), args["out_channels"], args, bottoms[0])
        return args

    def torch_source(self) -> str | None:
        return convolution_source("nn.Conv", self)


class ConvolutionDepthwise(Convolution):
    """Same as torch.nn.Conv2d with one group for each channel.

    Differs from PyTorch: ``group`` and ``num_output`` may be left out, then both are the number of channels.
    Blobs: weight (C, 1, kH, kW), bias (C)
    Reference: conv_dw_layer.cpp, depthwise_conv_layer.cpp (of several forks; not in Caffe 1.0)
    """

    aliases = ("DepthwiseConv", "DepthwiseConvolution")

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        channels = bottoms[0][canonical_axis(p.axis, len(bottoms[0]))] if bottoms else 0
        group, num_output = (getattr(p, name) if p.has(name) else channels for name in ("group", "num_output"))
        return super().from_caffe(p.copy(group=group, num_output=num_output), bottoms)


class Deconvolution(Layer, nn.ConvTranspose2d):
    """Same as torch.nn.ConvTranspose2d; as nn.ConvTranspose1d or nn.ConvTranspose3d for one or three spatial axes.

    Differs from PyTorch: the channel axis is free (``axis``); all axes before it are batch axes. Several bottoms are
    treated one by one with the same weight. There is no output padding.
    Blobs: weight (C_in, C_out / group, kH, kW), bias (C_out)
    Reference: base_conv_layer.cpp, deconv_layer.cpp
    """

    param, blobs, per_bottom = "convolution_param", ("weight", "bias"), True
    aliases: ClassVar[tuple[str, ...]] = ("NdDeconvolution",)
    padding: tuple[int, ...]

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
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, 0, groups, bias, dilation)  # type: ignore[arg-type]
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(self.kernel_size) - 1]
        batch = x if self.axis == 1 else x.reshape(-1, *x.shape[self.axis :])
        y = convolve(batch, self.weight, self.bias, self.stride, self.padding, 0, self.groups, self.dilation)
        return y if self.axis == 1 else y.reshape(*x.shape[: self.axis], *y.shape[1:])

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        args = convolution_arguments(p, bottoms)
        sizes = zip(bottoms[0][args["axis"] + 1 :], *(args[name] for name in WINDOW), strict=True)
        top = [stride * (size - 1) + dilation * (k - 1) + 1 - 2 * pad for size, k, stride, pad, dilation in sizes]
        check_top(top, args["out_channels"], args, bottoms[0])
        return args

    def torch_source(self) -> str | None:
        return convolution_source("nn.ConvTranspose", self)


class Im2col(Layer):
    """Same as torch.nn.Unfold, but the windows keep their place in the image.

    Differs from PyTorch: (N, C, H, W) gives (N, C * kH * kW, oH, oW), not (N, C * kH * kW, oH * oW); any number of
    spatial axes, and a free channel axis.
    Reference: im2col_layer.cpp, im2col.cpp
    """

    param = "convolution_param"

    def __init__(
        self,
        kernel_size: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        axis: int = 1,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        first, axes = self.axis + 1, len(self.kernel_size)
        x = F.pad(x, [pad for pad in reversed(self.padding) for _ in range(2)])
        for i, (kernel, stride, dilation) in enumerate(zip(self.kernel_size, self.stride, self.dilation, strict=True)):
            x = x.unfold(first + i, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
        x = x.movedim(tuple(range(first + axes, first + 2 * axes)), tuple(range(first, first + axes)))
        return x.flatten(self.axis, self.axis + axes)

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_bottoms(bottoms, 1)
        axis = canonical_axis(p.axis, len(bottoms[0]))
        args: dict[str, Any] = {**window_arguments(p, len(bottoms[0]) - axis - 1), "axis": axis}
        check_top(unfolded_sizes(bottoms[0], args), bottoms[0][axis] * math.prod(args["kernel_size"]), args, bottoms[0])
        return args


# -- parameters, from Caffe ---------------------------------------------------------------------------------------


def per_axis(p: Message, field: str, axes: int, default: int | None, least: int = 0) -> tuple[int, ...]:
    """One number for each spatial axis: given once, once for each axis, or in fields of their own.

    Args:
        p: ConvolutionParameter or PoolingParameter.
        field: ``kernel_size``, ``stride``, ``pad`` or ``dilation``.
        axes: the number of spatial axes.
        default: its value where it is absent; None: it is required.
        least: the least sensible value.

    Raises:
        SpecError: absent, given twice, given for another number of axes, or too small.
    """
    short = field.removesuffix("_size")
    given = axis_values(p, field, axes)
    if not given and default is None:
        two = f", or {short}_h and {short}_w" if axes == 2 else ""
        raise SpecError(f"{field} is missing", hint=f"give {field} once{two}")
    values = tuple(given or [default or 0])
    if len(values) not in (1, axes):
        raise SpecError(f"{field} is given {len(values)} times, the bottom has {axes} spatial axes")
    if min(values) < least:
        raise SpecError(f"{field} must be at least {least}, got {', '.join(map(str, values))}")
    return values * (axes // len(values))


def window_arguments(p: Message, axes: int) -> dict[str, tuple[int, ...]]:
    """Kernel, stride, padding and dilation of a ConvolutionParameter. base_conv_layer.cpp"""
    if axes < 1:
        raise SpecError(f"no spatial axis is left after axis {p.axis}")
    return {
        "kernel_size": per_axis(p, "kernel_size", axes, None, least=1),
        "stride": per_axis(p, "stride", axes, 1, least=1),
        "padding": per_axis(p, "pad", axes, 0),
        "dilation": per_axis(p, _dilation_field(p), axes, 1, least=1),
    }


def _dilation_field(p: Message) -> str:
    """DeepLab wrote ``hole`` for what is ``dilation`` in Caffe 1.0."""
    holes = any(p.has(name) for name in ("hole", "hole_h", "hole_w"))
    return "hole" if holes and not p.has("dilation") else "dilation"


def convolution_arguments(p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
    """The constructor arguments that Convolution and Deconvolution share."""
    if not bottoms:
        raise SpecError("there is no bottom")
    axis = canonical_axis(p.axis, len(bottoms[0]))
    axes = len(bottoms[0]) - axis - 1
    if not 1 <= axes <= 3:
        raise SpecError(
            f"a bottom {bottoms[0]} with channel axis {axis} has {axes} spatial axes; PyTorch convolves over 1 to 3"
        )
    if len(set(bottoms)) > 1:
        raise SpecError(f"all bottoms must have the same shape, got {', '.join(map(str, bottoms))}")
    if p.relu:
        raise SpecError("relu: true is Intel's fused ReLU", hint="Write the ReLU as a layer of its own.")
    channels = bottoms[0][axis]
    if p.num_output < 1:
        raise SpecError("num_output is missing or 0: it is the number of channels of the top")
    if p.group < 1 or channels % p.group or p.num_output % p.group:
        raise SpecError(f"group {p.group} does not divide the {channels} channels and num_output {p.num_output}")
    args = window_arguments(p, axes)
    check_count("weight", (channels // p.group, p.num_output, *args["kernel_size"]))
    names = {"in_channels": channels, "out_channels": p.num_output, **args, "groups": p.group, "bias": p.bias_term}
    return {**names, "axis": axis}


def convolution_source(prefix: str, conv: Convolution | Deconvolution) -> str | None:
    """``nn.Conv2d(...)`` or its like, if the channel axis is where PyTorch has it."""
    if conv.axis != 1:
        return None
    options: dict[str, tuple[Any, Any]] = {
        "stride": (scalar_if_equal(conv.stride), 1),
        "padding": (scalar_if_equal(conv.padding), 0),
        "dilation": (scalar_if_equal(conv.dilation), 1),
        "groups": (conv.groups, 1),
        "bias": (conv.bias is not None, True),
    }
    kernel = scalar_if_equal(conv.kernel_size)
    return constructor(f"{prefix}{len(conv.kernel_size)}d", [conv.in_channels, conv.out_channels, kernel], options)


def unfolded_sizes(bottom: Shape, args: dict[str, Any]) -> list[int]:
    """How many windows fit along each spatial axis. conv_layer.cpp"""
    sizes = zip(bottom[args["axis"] + 1 :], *(args[name] for name in WINDOW), strict=True)
    return [(size + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for size, k, stride, pad, dilation in sizes]


def check_top(sizes: Sequence[int], channels: int, args: dict[str, Any], bottom: Shape) -> None:
    """Raises SpecError for a top without a pixel, or with more than Caffe can hold."""
    if min(sizes) < 1:
        window = ", ".join(f"{name} {scalar_if_equal(args[name])}" for name in WINDOW)
        raise SpecError(f"a bottom {bottom} leaves no output with {window}: it would be {' x '.join(map(str, sizes))}")
    check_count("the top", (*bottom[: args["axis"]], channels, *sizes))
