"""Pooling of images and volumes, and spatial pyramid pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caffe_port.formats.message import Message
from caffe_port.layers.layer import Layer, constructor, scalar_if_equal
from caffe_port.signatures.kernel_params import per_axis
from caffe_port.signatures.pooling import padding_of, rounds_up, spp_window, spread, window_count
from caffe_port.typing import Shape


class Pooling(Layer):
    """Same as torch.nn.MaxPool2d or torch.nn.AvgPool2d with ``ceil_mode=True``, for all common parameters.

    Differs from PyTorch: padding may reach kernel - 1. Windows that begin beyond the image are dropped only if there
    is padding; without it (a stride greater than the kernel) they stay: MAX gives the lowest float32, AVE gives 0 / n
    or NaN. MAX skips NaN in Caffe, torch passes it on. STOCHASTIC draws, in train(), one value of each window with
    a probability proportional to it, and gives sum(x^2) / sum(x) in eval(); the bottom must not be negative.
    A second top holds the index of each maximum within its plane, as floats. A bottom (N, C, D, H, W) is pooled as by
    Pooling3D. AVE_EXC_PAD and AVE_TF are AVE with ``count_include_pad=False``; each side may have a padding of its own
    (``pad_l``, ``pad_r``, ``pad_t``, ``pad_b``, or ``pad_type: 1``, TensorFlow's SAME). ``dilation`` (Caffe's OpenCL
    branch) belongs to MAX.
    Reference: pooling_layer.cpp, pooling_layer.cu; what 1.0 does not have: pooling_layer.cpp of
    foss-for-synopsys-dwc-arc-processors/synopsys-caffe
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return pooling_arguments(p.pooling_param, bottoms[0]) | ({"mask": True} if len(p.top) > 1 else {})

    def __init__(
        self,
        pool: str,
        kernel_size: tuple[int, int] | None,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        ceil_mode: bool = True,
        mask: bool = False,
        end: tuple[int, int] | None = None,
        dilation: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        self.pool = pool
        self.dilation = dilation
        self.kernel_size = kernel_size  # None: the whole image
        self.stride = stride
        self.padding = padding
        self.end = padding if end is None else end  # the padding below and right of the image
        self.ceil_mode = ceil_mode
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.kernel_size is None and self.pool in ("AVE", "AVE_EXC_PAD"):
            return F.adaptive_avg_pool2d(x, 1)
        kernel = (x.shape[2], x.shape[3]) if self.kernel_size is None else self.kernel_size
        if self.mask:
            return max_pool_mask(x, kernel, self.stride, self.padding, self.ceil_mode, self.end, self.dilation)
        if self.pool == "MAX":
            return max_pool(x, kernel, self.stride, self.padding, self.ceil_mode, self.end, self.dilation)
        if self.pool in ("AVE", "AVE_EXC_PAD"):
            return ave_pool(x, kernel, self.stride, self.padding, self.ceil_mode, self.end, self.pool == "AVE")
        return stochastic_pool(x, kernel, self.stride, self.ceil_mode, self.training)

    @classmethod
    def build(cls, layer: Message, bottoms: Sequence[Shape]) -> Layer:
        is_volume = bool(bottoms) and len(bottoms[0]) == 5
        return Pooling3D.build(layer, bottoms) if is_volume else super().build(layer, bottoms)

    def torch_source(self) -> str | None:
        if self.mask or self.pool == "STOCHASTIC":
            return None
        name = "Max" if self.pool == "MAX" else "Avg"
        if self.kernel_size is None:
            return f"nn.Adaptive{name}Pool2d(1)"
        windows = (self.kernel_size, self.stride, self.padding, self.ceil_mode, self.end)
        if self.dilation != (1, 1) or not torch_has_windows(*windows):
            return None
        options = {
            "padding": (scalar_if_equal(self.padding), 0),
            "ceil_mode": (self.ceil_mode and self.stride != (1, 1), False),
            "count_include_pad": (self.pool != "AVE_EXC_PAD", True),
        }
        window = [scalar_if_equal(self.kernel_size), scalar_if_equal(self.stride)]
        return constructor(f"nn.{name}Pool2d", window, options)


class Pooling3D(Layer):
    """Same as torch.nn.MaxPool3d or torch.nn.AvgPool3d with ``ceil_mode=True``, for all common parameters.

    Takes (N, C, D, H, W). The parameters are ``pooling3d_param`` or ``pooling_param``; ``kernel_depth``,
    ``temporal_stride`` and ``temporal_pad`` are those of the first of the three axes (C3D), else a number counts for
    all three, or each has its own.

    Differs from PyTorch: as Pooling does, about windows at the edges. There is no STOCHASTIC, and no mask.
    Reference: facebookarchive/C3D pool3d_layer.cpp; superxuang/caffe_3d_faster_rcnn pooling3d_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return pooling_arguments(cls.signature.parameters(p), bottoms[0])

    def __init__(
        self,
        pool: str,
        kernel_size: tuple[int, ...] | None,
        stride: tuple[int, ...] = (1, 1, 1),
        padding: tuple[int, ...] = (0, 0, 0),
        ceil_mode: bool = True,
        dilation: tuple[int, ...] = (1, 1, 1),
    ) -> None:
        super().__init__()
        self.pool, self.kernel_size, self.stride, self.padding = pool, kernel_size, stride, padding
        self.ceil_mode, self.dilation = ceil_mode, dilation

    def forward(self, x: Tensor) -> Tensor:
        kernel = tuple(x.shape[2:]) if self.kernel_size is None else self.kernel_size
        if self.pool == "MAX":
            lowest = torch.finfo(x.dtype).min
            reach = spread(kernel, self.dilation)
            wide = fit_to_windows(x, reach, self.stride, self.padding, self.ceil_mode, lowest)
            return F.max_pool3d(wide, kernel, self.stride, dilation=self.dilation)
        wide = fit_to_windows(x, kernel, self.stride, self.padding, self.ceil_mode)
        total = F.avg_pool3d(wide, kernel, self.stride) * math.prod(kernel)
        for axis, (k, s, pad) in enumerate(zip(kernel, self.stride, self.padding, strict=True), 2):
            start = torch.arange(total.shape[axis], device=x.device) * s - pad
            covered = (x.shape[axis] + pad - start).clamp(max=k)
            total = total / covered.reshape(-1, *[1] * (4 - axis))
        return total

    def torch_source(self) -> str | None:
        name = {"MAX": "Max", "AVE": "Avg"}[self.pool]
        if self.kernel_size is None:
            return f"nn.Adaptive{name}Pool3d(1)"
        windows = (self.kernel_size, self.stride, self.padding, self.ceil_mode)
        if set(self.dilation) != {1} or not torch_has_windows(*windows):
            return None
        options = {
            "padding": (scalar_if_equal(self.padding), 0),
            "ceil_mode": (self.ceil_mode and set(self.stride) != {1}, False),
        }
        window = [scalar_if_equal(self.kernel_size), scalar_if_equal(self.stride)]
        return constructor(f"nn.{name}Pool3d", window, options)


class SPP(Layer):
    """Spatial pyramid pooling: the image is pooled to 1x1, 2x2, 4x4, ... bins, which are flattened and concatenated.

    Differs from PyTorch: there is no module for it; nn.AdaptiveMaxPool2d cuts its bins elsewhere. A pyramid of one
    level is not flattened: its top is (N, C, 1, 1).
    Reference: spp_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"pyramid_height": p.pyramid_height, "pool": p.pool}

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


class GRIDPooling(Layer, nn.AdaptiveMaxPool2d):
    """Same as torch.nn.AdaptiveMaxPool2d: the maximum of ``pooled_h`` x ``pooled_w`` bins of the image.

    Reference: JiajianZeng/caffe-face-attributes grid_pooling_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"output_size": (p.pooled_h, p.pooled_w)}

    def torch_source(self) -> str:
        return f"nn.AdaptiveMaxPool2d({self.output_size})"


# -- windows, in forward ------------------------------------------------------------------------------------------


def torch_has_windows(
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    ceil_mode: bool,
    end: tuple[int, ...] | None = None,
) -> bool:
    """Whether torch's pooling places Caffe's windows on images of every size.

    Torch pads half a kernel at most, as much before the image as after it, and drops windows that begin beyond the
    image even where there is no padding.
    """
    if end not in (None, padding):
        return False
    little_padding = all(2 * pad <= k for pad, k in zip(padding, kernel, strict=True))
    same_clipping = not ceil_mode or any(padding) or all(s <= k for s, k in zip(stride, kernel, strict=True))
    return little_padding and same_clipping


def fit_to_windows(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    ceil_mode: bool,
    value: float = 0.0,
    end: tuple[int, ...] | None = None,
) -> Tensor:
    """Pads (or crops) the image so that pooling without padding meets exactly Caffe's windows."""
    edges: list[int] = []
    end = padding if end is None else end
    for size, k, s, pad, after in zip(x.shape[2:], kernel, stride, padding, end, strict=True):
        count = window_count(size, k, s, pad, ceil_mode, any(padding + end), after)
        edges = [pad, (count - 1) * s + k - size - pad, *edges]
    return F.pad(x, edges, value=value)


def max_pool(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    ceil_mode: bool,
    end: tuple[int, int] | None = None,
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    if dilation == (1, 1) and torch_has_windows(kernel, stride, padding, ceil_mode, end):
        return F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil_mode)
    lowest = torch.finfo(x.dtype).min
    wide = fit_to_windows(x, spread(kernel, dilation), stride, padding, ceil_mode, lowest, end)
    return F.max_pool2d(wide, kernel, stride, dilation=dilation)


def max_pool_mask(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    ceil_mode: bool,
    end: tuple[int, int] | None = None,
    dilation: tuple[int, int] = (1, 1),
) -> tuple[Tensor, Tensor]:
    """The maxima, and for each the index of its pixel in the plane; -1 for a window without pixels."""
    if dilation == (1, 1) and torch_has_windows(kernel, stride, padding, ceil_mode, end):
        y, index = F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil_mode, return_indices=True)
        return y, index.to(x.dtype)
    lowest = torch.finfo(x.dtype).min
    wide = fit_to_windows(x, spread(kernel, dilation), stride, padding, ceil_mode, lowest, end)
    y, index = F.max_pool2d(wide, kernel, stride, dilation=dilation, return_indices=True)
    row, column = index // wide.shape[3] - padding[0], index % wide.shape[3] - padding[1]
    return y, torch.where(y > lowest, row * x.shape[3] + column, -1).to(x.dtype)


def ave_pool(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    ceil_mode: bool,
    end: tuple[int, int] | None = None,
    with_padding: bool = True,
) -> Tensor:
    """Means over the window, padding included, but cut off where the padding ends; or over the image in it alone."""
    if torch_has_windows(kernel, stride, padding, ceil_mode, end):
        return F.avg_pool2d(x, kernel, stride, padding, ceil_mode, with_padding)
    end = padding if end is None else end
    wide = fit_to_windows(x, kernel, stride, padding, ceil_mode, 0.0, end)
    total = F.avg_pool2d(wide, kernel, stride) * (kernel[0] * kernel[1])
    lengths = []
    for dim in (0, 1):
        first = torch.arange(total.shape[2 + dim], device=x.device) * stride[dim] - padding[dim]
        last, size = first + kernel[dim], x.shape[2 + dim]
        if with_padding:
            lengths.append(last.clamp(max=size + end[dim]) - first)
        else:
            lengths.append(last.clamp(max=size) - first.clamp(min=0))
    return total / (lengths[0][:, None] * lengths[1])


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


# -- parameters, from Caffe ---------------------------------------------------------------------------------------


def pooling_arguments(p: Message, bottom: Shape) -> dict[str, Any]:
    """The constructor arguments that Pooling and Pooling3D share, of a PoolingParameter."""
    axes, (padding, end) = len(bottom) - 2, ((), ()) if p.global_pooling else padding_of(p, bottom)
    if p.global_pooling:
        return {"pool": p.pool, "kernel_size": None}
    dilation = per_axis(p, "dilation", axes, 1, least=1)
    return {
        "pool": p.pool,
        "kernel_size": per_axis(p, "kernel_size", axes, None, least=1),
        "stride": per_axis(p, "stride", axes, 1, least=1),
        "padding": padding,
        "ceil_mode": rounds_up(p),
        **({"end": end} if end != padding else {}),
        **({"dilation": dilation} if set(dilation) != {1} else {}),
    }
