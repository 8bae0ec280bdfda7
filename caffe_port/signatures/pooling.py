"""The records of pooling. Sources: pooling_layer.cpp, spp_layer.cpp; C3D's pool3d_layer.cpp."""

from __future__ import annotations

import math
from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.checks import expect_axes
from caffe_port.signatures.kernel_params import extra_padding, per_axis
from caffe_port.signatures.signature import SIGNATURES, Trait, declare
from caffe_port.typing import Shape


def window_count(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool, clip: bool) -> int:
    """How many windows Caffe places along an axis; with ``clip``, none begins beyond the image. pooling_layer.cpp"""
    span = size + 2 * padding - kernel
    count = (-(-span // stride) if ceil_mode else span // stride) + 1
    return count - 1 if clip and (count - 1) * stride >= size + padding else count


def rounds_up(p: Message) -> bool:
    """Whether the number of windows is rounded up, as Caffe does unless a newer field or a fork's says otherwise."""
    return bool(p.round_mode == "CEIL" and p.ceil_mode and not p.round_below)


def spp_window(size: tuple[int, int], bins: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Kernel (also the stride) and padding that cut an image into bins x bins windows. spp_layer.cpp"""
    kernel = (math.ceil(size[0] / bins), math.ceil(size[1] / bins))
    return kernel, ((kernel[0] * bins - size[0] + 1) // 2, (kernel[1] * bins - size[1] + 1) // 2)


def _pooled(bottom: Shape, pool: str, kernel: Shape, stride: Shape, padding: Shape, ceil_mode: bool) -> Shape:
    """The top of windows, unless Caffe refuses them."""
    if any(padding) and pool == "STOCHASTIC":
        raise SpecError(
            "STOCHASTIC pooling does not support padding in Caffe", hint="padding works only with MAX or AVE"
        )
    for pad, k in zip(padding, kernel, strict=True):
        if pad >= k:
            raise SpecError(f"pad {pad} must be less than the kernel, {k}: a window would contain only padding")
    axes = zip(bottom[2:], kernel, stride, padding, strict=True)
    sizes = [window_count(*axis, ceil_mode, any(padding)) for axis in axes]
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
    if axes == 3 and p.pool == "STOCHASTIC":
        raise SpecError(f"a bottom (N, C, D, H, W) needs pool: MAX or AVE, got {p.pool}")
    if axes == 2 and p.has("pad_h") != p.has("pad_w"):
        raise SpecError("pad_h and pad_w need each other")
    if p.global_pooling:
        _expect_no_window(p, axes)
        return [(*bottom[:2], *[1] * axes)] * min(tops, 2)
    if any(extra_padding(p)):
        raise SpecError("pad_l, pad_r, pad_t, pad_b must be equal on opposite sides; others are not supported here")
    kernel = per_axis(p, "kernel_size", axes, None, least=1)
    stride, padding = per_axis(p, "stride", axes, 1, least=1), per_axis(p, "pad", axes, 0)
    return [_pooled(bottom, p.pool, kernel, stride, padding, rounds_up(p))] * min(tops, 2)


def _expect_no_window(p: Message, axes: int) -> None:
    if p.has("kernel_size") or p.has("kernel_h") or p.has("kernel_w"):
        raise SpecError("global_pooling pools the whole image: remove the kernel size")
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
declare("SPP", _spp, message="spp_param")
