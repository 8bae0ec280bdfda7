"""Layers that slide a window over the image: convolution, deconvolution, pooling, im2col, spatial pyramid pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caffe_port.errors import SpecError
from caffe_port.layers import Layer, Shape, canonical_axis, check_count, constructor, expect_bottoms, scalar_if_equal
from caffe_port.message import Message

WINDOW = ("kernel_size", "stride", "padding", "dilation")


class Convolution(Layer, nn.Conv2d):
    """Same as torch.nn.Conv2d; as nn.Conv1d or nn.Conv3d where the bottom has one or three spatial axes.

    Differs from PyTorch: the channel axis is free (``axis``); all axes before it are batch axes. Several bottoms are
    convolved one by one with the same weight.
    Blobs: weight (C_out, C_in / group, kH, kW), bias (C_out)
    Reference: base_conv_layer.cpp, conv_layer.cpp
    """

    param, blobs, per_bottom = "convolution_param", ("weight", "bias"), True
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

    aliases = ("DepthwiseConvolution",)

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


class Pooling(Layer):
    """Same as torch.nn.MaxPool2d or torch.nn.AvgPool2d with ``ceil_mode=True``, for all common parameters.

    Differs from PyTorch: padding may reach kernel - 1. Windows that begin beyond the image are dropped only if there
    is padding; without it (a stride greater than the kernel) they stay: MAX gives the lowest float32, AVE gives 0 / n
    or NaN. MAX skips NaN in Caffe, torch passes it on. STOCHASTIC draws, in train(), one value of each window with
    a probability proportional to it, and gives sum(x^2) / sum(x) in eval(); the bottom must not be negative.
    A second top holds the index of each maximum within its plane, as floats.
    Reference: pooling_layer.cpp, pooling_layer.cu
    """

    def __init__(
        self,
        pool: str,
        kernel_size: tuple[int, int] | None,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        ceil_mode: bool = True,
        mask: bool = False,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.kernel_size = kernel_size  # None: the whole image
        self.stride = stride
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.kernel_size is None and self.pool == "AVE":
            return F.adaptive_avg_pool2d(x, 1)
        kernel = (x.shape[2], x.shape[3]) if self.kernel_size is None else self.kernel_size
        if self.mask:
            return max_pool_mask(x, kernel, self.stride, self.padding, self.ceil_mode)
        if self.pool == "MAX":
            return max_pool(x, kernel, self.stride, self.padding, self.ceil_mode)
        if self.pool == "AVE":
            return ave_pool(x, kernel, self.stride, self.padding, self.ceil_mode)
        return stochastic_pool(x, kernel, self.stride, self.ceil_mode, self.training)

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_bottoms(bottoms, 1)
        mask = len(p.top) > 1
        p = p.pooling_param
        if len(bottoms[0]) != 4:
            raise SpecError(f"Pooling takes a bottom (N, C, H, W), got {bottoms[0]}")
        if mask and p.pool != "MAX":
            raise SpecError(f"a second top (the mask) needs pool: MAX, got {p.pool}")
        if p.global_pooling:
            if p.has("kernel_size") or p.has("kernel_h") or p.has("kernel_w"):
                raise SpecError("global_pooling takes the whole image: remove the kernel size")
            stride, padding = per_axis(p, "stride", 2, 1, least=1), per_axis(p, "pad", 2, 0)
            if stride != (1, 1) or padding != (0, 0):
                raise SpecError(f"global_pooling allows stride 1 and pad 0 only, got {stride} and {padding}")
            return {"pool": p.pool, "kernel_size": None} | ({"mask": True} if mask else {})
        args: dict[str, Any] = {
            "pool": p.pool,
            "kernel_size": per_axis(p, "kernel_size", 2, None, least=1),
            "stride": per_axis(p, "stride", 2, 1, least=1),
            "padding": per_axis(p, "pad", 2, 0),
            "ceil_mode": p.round_mode == "CEIL" and p.ceil_mode,
        }
        check_pooling(bottoms[0], **args)
        return args | ({"mask": True} if mask else {})

    def torch_source(self) -> str | None:
        if self.mask or self.pool == "STOCHASTIC":
            return None
        name = {"MAX": "Max", "AVE": "Avg"}[self.pool]
        if self.kernel_size is None:
            return f"nn.Adaptive{name}Pool2d(1)"
        if not torch_has_windows(self.kernel_size, self.stride, self.padding, self.ceil_mode):
            return None
        options = {
            "padding": (scalar_if_equal(self.padding), 0),
            "ceil_mode": (self.ceil_mode and self.stride != (1, 1), False),
        }
        window = [scalar_if_equal(self.kernel_size), scalar_if_equal(self.stride)]
        return constructor(f"nn.{name}Pool2d", window, options)


class SPP(Layer):
    """Spatial pyramid pooling: the image is pooled to 1x1, 2x2, 4x4, ... bins, which are flattened and concatenated.

    Differs from PyTorch: there is no module for it; nn.AdaptiveMaxPool2d cuts its bins elsewhere. A pyramid of one
    level is not flattened: its top is (N, C, 1, 1).
    Reference: spp_layer.cpp
    """

    param = "spp_param"

    def __init__(self, pyramid_height: int, pool: str = "MAX") -> None:
        super().__init__()
        self.pyramid_height = pyramid_height
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        levels = []
        for level in range(self.pyramid_height):
            kernel, padding = spp_window((x.shape[2], x.shape[3]), 2**level)
            if self.pool == "MAX":
                levels.append(max_pool(x, kernel, kernel, padding, True))
            elif self.pool == "AVE":
                levels.append(ave_pool(x, kernel, kernel, padding, True))
            else:
                levels.append(stochastic_pool(x, kernel, kernel, True, self.training))
        return levels[0] if len(levels) == 1 else torch.cat([y.flatten(1) for y in levels], dim=1)

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_bottoms(bottoms, 1)
        if len(bottoms[0]) != 4:
            raise SpecError(f"SPP takes a bottom (N, C, H, W), got {bottoms[0]}")
        height, width = bottoms[0][2:]
        if not 1 <= p.pyramid_height <= max(height, width).bit_length():
            raise SpecError(f"pyramid_height {p.pyramid_height} does not fit an image of {height} x {width}")
        for level in range(p.pyramid_height):
            kernel, padding = spp_window((height, width), 2**level)
            check_pooling(bottoms[0], p.pool, kernel, kernel, padding, True)
        return {"pyramid_height": p.pyramid_height, "pool": p.pool}


# -- windows, in forward ------------------------------------------------------------------------------------------


def window_count(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool, clip: bool) -> int:
    """How many windows Caffe places along an axis; with ``clip``, none begins beyond the image. pooling_layer.cpp"""
    span = size + 2 * padding - kernel
    count = (-(-span // stride) if ceil_mode else span // stride) + 1
    return count - 1 if clip and (count - 1) * stride >= size + padding else count


def torch_has_windows(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], ceil_mode: bool
) -> bool:
    """Whether torch's pooling places Caffe's windows on images of every size.

    Torch pads half a kernel at most, and drops windows that begin beyond the image even where there is no padding.
    """
    little_padding = all(2 * pad <= k for pad, k in zip(padding, kernel, strict=True))
    same_clipping = not ceil_mode or any(padding) or all(s <= k for s, k in zip(stride, kernel, strict=True))
    return little_padding and same_clipping


def fit_to_windows(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    ceil_mode: bool,
    value: float = 0.0,
) -> Tensor:
    """Pads (or crops) the image so that pooling without padding meets exactly Caffe's windows."""
    edges: list[int] = []
    for size, k, s, pad in zip(x.shape[2:], kernel, stride, padding, strict=True):
        count = window_count(size, k, s, pad, ceil_mode, any(padding))
        edges = [pad, (count - 1) * s + k - size - pad, *edges]
    return F.pad(x, edges, value=value)


def max_pool(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], ceil_mode: bool
) -> Tensor:
    if torch_has_windows(kernel, stride, padding, ceil_mode):
        return F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil_mode)
    return F.max_pool2d(fit_to_windows(x, kernel, stride, padding, ceil_mode, torch.finfo(x.dtype).min), kernel, stride)


def max_pool_mask(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    """The maxima, and for each the index of its pixel in the plane; -1 for a window without pixels."""
    if torch_has_windows(kernel, stride, padding, ceil_mode):
        y, index = F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil_mode, return_indices=True)
        return y, index.to(x.dtype)
    lowest = torch.finfo(x.dtype).min
    wide = fit_to_windows(x, kernel, stride, padding, ceil_mode, lowest)
    y, index = F.max_pool2d(wide, kernel, stride, return_indices=True)
    row, column = index // wide.shape[3] - padding[0], index % wide.shape[3] - padding[1]
    return y, torch.where(y > lowest, row * x.shape[3] + column, -1).to(x.dtype)


def ave_pool(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], ceil_mode: bool
) -> Tensor:
    """Means over the window, padding included, but cut off where the padding ends."""
    if torch_has_windows(kernel, stride, padding, ceil_mode):
        return F.avg_pool2d(x, kernel, stride, padding, ceil_mode)
    wide = fit_to_windows(x, kernel, stride, padding, ceil_mode)
    total = F.avg_pool2d(wide, kernel, stride) * (kernel[0] * kernel[1])
    top = torch.arange(total.shape[2], device=x.device) * stride[0] - padding[0]
    left = torch.arange(total.shape[3], device=x.device) * stride[1] - padding[1]
    rows = (x.shape[2] + padding[0] - top).clamp(max=kernel[0])
    columns = (x.shape[3] + padding[1] - left).clamp(max=kernel[1])
    return total / (rows[:, None] * columns)


def stochastic_pool(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], ceil_mode: bool, training: bool
) -> Tensor:
    """Zeiler and Fergus 2013: a draw in proportion to the values (training), or its expectation."""
    wide = fit_to_windows(x, kernel, stride, (0, 0), ceil_mode)
    windows = wide.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1]).flatten(4)
    if training:
        so_far = windows.cumsum(4)
        threshold = so_far[..., -1:] * torch.rand_like(so_far[..., -1:])
        drawn = (so_far >= threshold).to(torch.uint8).argmax(4, keepdim=True)
        return windows.gather(4, drawn).squeeze(4)
    total = windows.sum(4)
    some = total > 0
    return torch.where(some, windows.square().sum(4) / torch.where(some, total, 1), 0)


def spp_window(size: tuple[int, int], bins: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Kernel (also the stride) and padding that cut an image into bins x bins windows. spp_layer.cpp"""
    kernel = (math.ceil(size[0] / bins), math.ceil(size[1] / bins))
    return kernel, ((kernel[0] * bins - size[0] + 1) // 2, (kernel[1] * bins - size[1] + 1) // 2)


# -- parameters, from Caffe ---------------------------------------------------------------------------------------


def per_axis(p: Message, field: str, axes: int, default: int | None, least: int = 0) -> tuple[int, ...]:
    """One number for each spatial axis: given once, once for each axis, or as ``*_h`` and ``*_w``.

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
    given = getattr(p, field) if p.has(field) else []
    given = list(given) if isinstance(given, list) else [given]
    if p.has(f"{short}_h") or p.has(f"{short}_w"):
        if axes != 2:
            raise SpecError(
                f"{short}_h and {short}_w are for two spatial axes, the bottom has {axes}",
                hint=f"give {field} once, or {axes} times",
            )
        if given:
            raise SpecError(f"{field} and {short}_h/{short}_w exclude each other", hint=f"remove {field}")
        given = [getattr(p, f"{short}_h"), getattr(p, f"{short}_w")]
    if not given and default is None:
        two = f", or {short}_h and {short}_w" if axes == 2 else ""
        raise SpecError(f"{field} is missing", hint=f"give {field} once{two}")
    values = tuple(given or [default])
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


def check_pooling(
    bottom: Shape,
    pool: str,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    ceil_mode: bool,
) -> None:
    """Raises SpecError for windows that Caffe refuses. pooling_layer.cpp"""
    if any(padding) and pool == "STOCHASTIC":
        raise SpecError("STOCHASTIC pooling has no padding in Caffe", hint="pad with MAX or AVE only")
    for pad, kernel in zip(padding, kernel_size, strict=True):
        if pad >= kernel:
            raise SpecError(f"pad {pad} must be less than the kernel, {kernel}: a window would see padding only")
    axes = zip(bottom[2:], kernel_size, stride, padding, strict=True)
    sizes = [window_count(*axis, ceil_mode, any(padding)) for axis in axes]
    if min(sizes) < 1:
        raise SpecError(f"no window of {kernel_size[0]} x {kernel_size[1]} fits a bottom {bottom}")
    check_count("the top", (*bottom[:2], *sizes))
