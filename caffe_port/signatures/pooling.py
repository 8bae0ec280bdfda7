"""The records of pooling. Sources: pooling_layer.cpp, spp_layer.cpp; C3D's pool3d_layer.cpp."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.checks import expect_axes
from caffe_port.signatures.kernel_params import FOUR_SIDES, extra_padding, is_same, per_axis, same_padding
from caffe_port.signatures.signature import SIGNATURES, Trait, declare
from caffe_port.typing import Shape


def window_count(
    size: int, kernel: int, stride: int, padding: int, ceil_mode: bool, clip: bool, end: int | None = None
) -> int:
    """How many windows Caffe places along an axis; with ``clip``, none begins beyond the image. ``end`` is the padding
    after the image where it is another. pooling_layer.cpp
    """
    span = size + padding + (padding if end is None else end) - kernel
    count = (-(-span // stride) if ceil_mode else span // stride) + 1
    return count - 1 if clip and (count - 1) * stride >= size + padding else count


def rounds_up(p: Message) -> bool:
    """Whether the number of windows is rounded up, as Caffe does unless a newer field or a fork's says otherwise."""
    return bool(p.round_mode == "CEIL" and p.ceil_mode and not p.round_below) and not is_same(p)


def spread(kernel: Shape, dilation: Shape) -> Shape:
    """How far a window reaches whose pixels are ``dilation`` apart."""
    return tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))


def spp_window(size: tuple[int, int], bins: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Kernel (also the stride) and padding that cut an image into bins x bins windows. spp_layer.cpp"""
    kernel = (math.ceil(size[0] / bins), math.ceil(size[1] / bins))
    return kernel, ((kernel[0] * bins - size[0] + 1) // 2, (kernel[1] * bins - size[1] + 1) // 2)


def padding_of(p: Message, bottom: Shape) -> tuple[Shape, Shape]:
    """The padding before and after each axis that windows slide along.

    Source: pooling_layer.cpp; for other padding after than before, that of
    foss-for-synopsys-dwc-arc-processors/synopsys-caffe.
    """
    axes = len(bottom) - 2
    if axes == 2 and is_same(p):
        sides = same_padding(p, bottom)
        return (sides[0][0], sides[1][0]), (sides[0][1], sides[1][1])
    padding = per_axis(p, "pad", axes, 0)
    left, right, top, below = extra_padding(p, bottom) if axes == 2 else (0, 0, 0, 0)
    return (
        (padding, padding)
        if axes != 2
        else ((padding[0] + top, padding[1] + left), (padding[0] + below, padding[1] + right))
    )


def _pooled(
    bottom: Shape, pool: str, kernel: Shape, stride: Shape, padding: Shape, ceil_mode: bool, end: Shape | None = None
) -> Shape:
    """The top of windows, unless Caffe refuses them."""
    end = padding if end is None else end
    if any(padding + end) and pool == "STOCHASTIC":
        raise SpecError(
            "STOCHASTIC pooling does not support padding in Caffe", hint="padding works only with MAX or AVE"
        )
    for pad, k in zip(map(max, padding, end), kernel, strict=True):
        if pad >= k:
            raise SpecError(f"pad {pad} must be less than the kernel, {k}: a window would contain only padding")
    axes = zip(bottom[2:], kernel, stride, padding, end, strict=True)
    sizes = [window_count(n, k, s, pad, ceil_mode, any(padding + end), after) for n, k, s, pad, after in axes]
    if min(sizes) < 1:
        raise SpecError(f"no window of {' x '.join(map(str, kernel))} fits a bottom {bottom}")
    return (*bottom[:2], *sizes)


def _pooling(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """A second top holds the places of the maxima."""
    bottom = bottoms[0]
    expect_axes(bottom, 5 if layer.type == "Pooling3D" else 4, 5)
    axes, tops = len(bottom) - 2, max(1, len(layer.top))
    p = (SIGNATURES["Pooling3D"] if axes == 3 else SIGNATURES[layer.type]).parameters(layer)
    if tops > 1 and axes == 3:
        raise SpecError("a second top (the mask) needs a bottom (N, C, H, W)")
    if tops > 1 and p.pool != "MAX":
        raise SpecError(f"a second top (the mask) needs pool: MAX, got {p.pool}")
    if axes == 3 and p.pool not in ("MAX", "AVE"):
        raise SpecError(f"a bottom (N, C, D, H, W) needs pool: MAX or AVE, got {p.pool}")
    if axes == 2 and p.has("pad_h") != p.has("pad_w"):
        raise SpecError("pad_h and pad_w need each other")
    if p.global_pooling:
        _expect_no_window(p, axes)
        return [(*bottom[:2], *[1] * axes)] * min(tops, 2)
    kernel, dilation = per_axis(p, "kernel_size", axes, None, least=1), per_axis(p, "dilation", axes, 1, least=1)
    if set(dilation) != {1} and p.pool != "MAX":
        raise SpecError(f"dilation needs pool: MAX, got {p.pool}")
    kernel = spread(kernel, dilation)
    stride, (padding, end) = per_axis(p, "stride", axes, 1, least=1), padding_of(p, bottom)
    return [_pooled(bottom, p.pool, kernel, stride, padding, rounds_up(p), end)] * min(tops, 2)


def _expect_no_window(p: Message, axes: int) -> None:
    if p.has("kernel_size") or p.has("kernel_h") or p.has("kernel_w"):
        raise SpecError("global_pooling pools the whole image: remove the kernel size")
    if axes == 2 and (is_same(p) or any(p.has(name) and getattr(p, name) for name in FOUR_SIDES)):
        raise SpecError("global_pooling requires pad 0: remove pad_type, pad_l, pad_r, pad_t and pad_b")
    stride, padding = per_axis(p, "stride", axes, 1, least=1), per_axis(p, "pad", axes, 0)
    if set(stride) != {1} or any(padding):
        raise SpecError(f"global_pooling requires stride 1 and pad 0, got {stride} and {padding}")


def _spp(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """Bins of all levels in a row; those of a single level keep their place in the image."""
    bottom, p = bottoms[0], layer.spp_param
    expect_axes(bottom, 4)
    if not 1 <= p.pyramid_height <= max(bottom[2:]).bit_length():
        raise SpecError(f"pyramid_height {p.pyramid_height} does not fit an image of {bottom[2]} x {bottom[3]}")
    levels = []
    for level in range(p.pyramid_height):
        kernel, padding = spp_window((bottom[2], bottom[3]), 2**level)
        levels.append(_pooled(bottom, p.pool, kernel, kernel, padding, True))
    return levels if len(levels) == 1 else [(bottom[0], sum(math.prod(level[1:]) for level in levels))]


declare(
    "Pooling",
    _pooling,
    message="pooling_param",
    also=("pooling3d_param",),
    aliases=("NdPooling",),
    traits=Trait.SLIDES | Trait.KEEPS_CHANNELS | Trait.WHOLE_LAYER,
)
declare(
    "Pooling3D",
    _pooling,
    message=("pooling3d_param", "pooling_param"),
    traits=Trait.SLIDES | Trait.KEEPS_CHANNELS | Trait.WHOLE_LAYER,
)


def _grid_pooling(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """Bins that may share a row or column; the fork finds their edges in single precision."""
    bottom, p = bottoms[0], layer.grid_pooling_param
    expect_axes(bottom, 4)
    if min(p.pooled_h, p.pooled_w) < 1:
        raise SpecError(f"pooled_h {p.pooled_h} and pooled_w {p.pooled_w} must be positive")
    for size, bins in zip(bottom[2:], (p.pooled_h, p.pooled_w), strict=True):
        step = np.float32(size) / np.float32(bins)
        for k in range(bins):
            first, last = int(np.floor(np.float32(k) * step)), min(int(np.ceil(np.float32(k + 1) * step)), size)
            if (first, last) != (k * size // bins, -(-(k + 1) * size // bins)):
                raise SpecError(
                    f"{bins} bins of {size} pixels lie elsewhere in single precision, which is not supported"
                )
    return [(*bottom[:2], p.pooled_h, p.pooled_w)]


declare("SPP", _spp, message="spp_param")
declare("GRIDPooling", _grid_pooling, message="grid_pooling_param", traits=Trait.KEEPS_CHANNELS)
