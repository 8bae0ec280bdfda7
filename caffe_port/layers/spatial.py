"""Layers that slide a window of weights over the image: convolution, deconvolution, im2col."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from caffe_port.formats.message import Message
from caffe_port.layers.layer import Layer, canonical_axis, check_count, constructor, scalar_if_equal
from caffe_port.signatures.kernel_params import Kernel, extra_padding, kernel_of
from caffe_port.signatures.signature import Trait
from caffe_port.signatures.spatial import convolution_numbers
from caffe_port.typing import Shape


class Convolution(Layer, nn.Conv2d):
    """Same as torch.nn.Conv2d; as nn.Conv1d or nn.Conv3d where the bottom has one or three spatial axes.

    Differs from PyTorch: the channel axis is free (``axis``); all axes before it are batch axes. Several bottoms are
    convolved one by one with the same weight. ``pad_l``, ``pad_r``, ``pad_t`` and ``pad_b`` (Synopsys' fork) pad each
    side by its own number.
    Blobs: weight (C_out, C_in / group, kH, kW), bias (C_out)
    Reference: base_conv_layer.cpp, conv_layer.cpp
    """

    padding: tuple[int, ...]

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return convolution_arguments(p, bottoms, cls.signature.traits)

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
        extra_padding: tuple[int, int, int, int] | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)  # type: ignore[arg-type]
        self.axis = axis
        self.extra_padding = extra_padding  # left, right, top, bottom: zeros beyond ``padding``

    def forward(self, x: Tensor) -> Tensor:
        if self.extra_padding is not None:
            x = F.pad(x, self.extra_padding)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel_size) - 1]
        batch = x if self.axis == 1 else x.reshape(-1, *x.shape[self.axis :])
        y = convolve(batch, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return y if self.axis == 1 else y.reshape(*x.shape[: self.axis], *y.shape[1:])

    def torch_source(self) -> str | None:
        return convolution_source("nn.Conv", self)

    def bottom_source(self, bottom: str) -> str:
        extra = self.extra_padding
        return bottom if extra is None else f"nn.functional.pad({bottom}, {extra})"


class ConvolutionDepthwise(Convolution):
    """Same as torch.nn.Conv2d with one group for each channel.

    Differs from PyTorch: ``group`` and ``num_output`` are the number of channels, even where the file says otherwise.
    Blobs: weight (C, 1, kH, kW), bias (C)
    Reference: farmingyard/ShuffleNet conv_dw_layer.cpp (not in Caffe 1.0)
    """


class DepthwiseConvolution(Convolution):
    """Same as torch.nn.Conv2d with one group for each channel.

    Differs from PyTorch: ``group`` and ``num_output`` default to the number of channels.
    Blobs: weight (C_out, C / group, kH, kW), bias (C_out)
    Reference: depthwise_conv_layer.cpp (of several forks; not in Caffe 1.0)
    """


class Deconvolution(Layer, nn.ConvTranspose2d):
    """Same as torch.nn.ConvTranspose2d; as nn.ConvTranspose1d or nn.ConvTranspose3d for one or three spatial axes.

    Differs from PyTorch: the channel axis is free (``axis``); all axes before it are batch axes. Several bottoms are
    treated one by one with the same weight. There is no output padding.
    Blobs: weight (C_in, C_out / group, kH, kW), bias (C_out)
    Reference: base_conv_layer.cpp, deconv_layer.cpp
    """

    padding: tuple[int, ...]

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return convolution_arguments(p, bottoms)

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

    def torch_source(self) -> str | None:
        return convolution_source("nn.ConvTranspose", self)


class Im2col(Layer):
    """Same as torch.nn.Unfold, but the windows keep their place in the image.

    Differs from PyTorch: (N, C, H, W) gives (N, C * kH * kW, oH, oW), not (N, C * kH * kW, oH * oW); any number of
    spatial axes, and a free channel axis.
    Reference: im2col_layer.cpp, im2col.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        axis = canonical_axis(p.axis, len(bottoms[0]))
        args = {**window(kernel_of(p, len(bottoms[0]) - axis - 1, bottoms[0], axis)), "axis": axis}
        extra = extra_padding(p, bottoms[0])
        return args | ({"extra_padding": extra} if any(extra) else {})

    def __init__(
        self,
        kernel_size: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        axis: int = 1,
        extra_padding: tuple[int, int, int, int] | None = None,
    ) -> None:
        super().__init__()
        self.extra_padding = extra_padding
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        first, axes = self.axis + 1, len(self.kernel_size)
        if self.extra_padding is not None:
            x = F.pad(x, self.extra_padding)
        x = F.pad(x, [pad for pad in reversed(self.padding) for _ in range(2)])
        for i, (kernel, stride, dilation) in enumerate(zip(self.kernel_size, self.stride, self.dilation, strict=True)):
            x = x.unfold(first + i, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
        x = x.movedim(tuple(range(first + axes, first + 2 * axes)), tuple(range(first, first + axes)))
        return x.flatten(self.axis, self.axis + axes)


# -- parameters, from Caffe ---------------------------------------------------------------------------------------


def window(kernel: Kernel) -> dict[str, tuple[int, ...]]:
    """A window in the words of torch.nn."""
    return {
        "kernel_size": kernel.kernel_size,
        "stride": kernel.stride,
        "padding": kernel.pad,
        "dilation": kernel.dilation,
    }


def convolution_arguments(p: Message, bottoms: Sequence[Shape], traits: Trait = Trait.NONE) -> dict[str, Any]:
    """The constructor arguments that Convolution and Deconvolution share."""
    axis, outputs, group, kernel = convolution_numbers(p, bottoms[0], traits)
    channels = bottoms[0][axis]
    check_count("weight", (channels // group, outputs, *kernel.kernel_size))
    names = {"in_channels": channels, "out_channels": outputs, **window(kernel), "groups": group, "bias": p.bias_term}
    extra = extra_padding(p, bottoms[0])
    return {**names, "axis": axis, **({"extra_padding": extra} if any(extra) else {})}


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
