"""How a definition says what a window is along each spatial axis, in Caffe's words and in those of its forks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.typing import Shape

_DEPTH: Final = {
    "kernel": ("kernel_depth", "kernel_d", "kernel_l", "kernel_t"),
    "stride": ("temporal_stride", "stride_d", "stride_l", "stride_t"),
    "pad": ("temporal_pad", "pad_d", "pad_l", "pad_t"),
    "dilation": ("dilation_d",),
}
"""The fields of forks for the first of three axes: C3D's, and those of three families of 3-D Caffes."""


class Kernel(NamedTuple):
    """A window along each spatial axis."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    dilation: tuple[int, ...]


def kernel_of(p: Message, axes: int, bottom: Shape, axis: int) -> Kernel:
    """The window of a ConvolutionParameter over the ``axes`` axes that a bottom has after ``axis``.

    Source: base_conv_layer.cpp.
    """
    if axes < 1:
        raise SpecError(f"there are no spatial axes after axis {axis} of a bottom {bottom}")
    return Kernel(
        per_axis(p, "kernel_size", axes, None, least=1),
        per_axis(p, "stride", axes, 1, least=1),
        per_axis(p, "pad", axes, 0),
        per_axis(p, dilation_field(p), axes, 1, least=1),
    )


def extra_padding(p: Message, bottom: Shape) -> tuple[int, int, int, int]:
    """What padding adds to the left, right, top and bottom beyond :func:`per_axis`, which is equal on both sides.

    Four-sided padding does, and ``pad_type: 1``, TensorFlow's SAME, where all padding is extra.

    Source: base_conv_layer.cpp and pooling_layer.cpp of foss-for-synopsys-dwc-arc-processors/synopsys-caffe.

    Raises:
        SpecError: another padding is given too.
    """
    if is_same(p):
        (top, below), (left, right) = same_padding(p, bottom)
        return left, right, top, below
    if not has_four_sides(p):
        return 0, 0, 0, 0
    if other := [name for name in ("pad", "pad_h", "pad_w", "pad_shape") if p.has(name)]:
        raise SpecError(f"{other[0]} and pad_l, pad_r, pad_t, pad_b exclude each other", hint=f"remove {other[0]}")
    left, right, top, bottom_ = (int(getattr(p, name)) for name in FOUR_SIDES)
    return left - min(left, right), right - min(left, right), top - min(top, bottom_), bottom_ - min(top, bottom_)


def is_same(p: Message) -> bool:
    """Whether padding is TensorFlow's SAME."""
    return "pad_type" in _names(p) and p.pad_type == 1


def same_padding(p: Message, bottom: Shape) -> tuple[tuple[int, int], tuple[int, int]]:
    """TensorFlow's SAME before and after each axis of an image: so much that there is a window for each stride.

    It replaces ``pad``, ``pad_h`` and ``pad_w``, which the fork's published nets give beside it: the fork ignored them
    at first, and refuses any but 0 since. It never computed with both.

    Source: im2col.cpp and pooling_layer.cpp of foss-for-synopsys-dwc-arc-processors/synopsys-caffe.

    Raises:
        SpecError: padding by sides is given too; or dilation, which that fork does not count.
    """
    if other := [name for name in FOUR_SIDES if p.has(name) and getattr(p, name)]:
        raise SpecError(f"{other[0]} and pad_type exclude each other", hint=f"remove {other[0]}")
    if len(bottom) != 4:
        raise SpecError(f"pad_type: 1 needs a bottom (N, C, H, W), got {bottom}")
    if "dilation" in _names(p) and set(per_axis(p, dilation_field(p), 2, 1)) != {1}:
        raise SpecError("pad_type: 1 with dilation is not supported", hint="give pad_l, pad_r, pad_t and pad_b")
    sides = []
    kernel, stride = per_axis(p, "kernel_size", 2, None, least=1), per_axis(p, "stride", 2, 1, least=1)
    for size, k, s in zip(bottom[2:], kernel, stride, strict=True):
        whole = max(k - (size % s or s), 0)
        sides.append((whole // 2, whole - whole // 2))
    return sides[0], sides[1]


FOUR_SIDES: Final = ("pad_l", "pad_r", "pad_t", "pad_b")


def has_four_sides(p: Message) -> bool:
    """Whether pad_l and so on are the sides of an image, and not the third axis of volumes."""
    volume = any(p.has(name) for name in ("kernel_l", "stride_l", "kernel_t", "stride_t"))
    return not volume and "pad_r" in _names(p) and any(p.has(name) for name in FOUR_SIDES)


def _names(p: Message) -> Collection[str]:
    return p.schema.fields if p.schema is not None else ()


def dilation_field(p: Message) -> str:
    """DeepLab wrote ``hole`` for what is ``dilation`` in Caffe 1.0."""
    holes = any(p.has(name) for name in ("hole", "hole_h", "hole_w"))
    return "hole" if holes and not p.has("dilation") else "dilation"


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


def axis_values(p: Message, field: str, axes: int) -> list[int]:
    """What is said along the spatial axes: nothing, one number for all of them, or one for each.

    Args:
        p: ConvolutionParameter or PoolingParameter.
        field: ``kernel_size``, ``stride``, ``pad``, ``dilation`` or ``hole``.
        axes: the number of spatial axes.

    Raises:
        SpecError: said in two ways, or for another number of axes.
    """
    short = field.removesuffix("_size")
    if short == "pad" and is_same(p):
        return [0]
    if short == "pad" and axes == 2 and has_four_sides(p):
        extra_padding(p, ())
        return [int(min(p.pad_t, p.pad_b)), int(min(p.pad_l, p.pad_r))]
    if short in ("kernel", "stride", "pad") and p.has(f"{short}_shape"):
        return [int(n) for n in getattr(p, f"{short}_shape").dim]
    given = [int(n) for n in getattr(p, field)] if isinstance(getattr(p, field), list) else []
    if not given and p.has(field):
        given = [int(getattr(p, field))]
    depth = _depth(p, short, axes)
    if not (p.has(f"{short}_h") or p.has(f"{short}_w")):
        if depth is None:
            return given
        sides = given or {"stride": [1], "pad": [0], "dilation": [1]}.get(short, [])
        return [depth, *(sides * 2)[:2]] if sides else []
    if axes != 2 and depth is None:
        raise SpecError(
            f"{short}_h and {short}_w are for two spatial axes, the bottom has {axes}",
            hint=f"give {field} once, or {axes} times",
        )
    if given:
        raise SpecError(f"{field} and {short}_h/{short}_w exclude each other", hint=f"remove {field}")
    sides = [int(getattr(p, f"{short}_h") or 0), int(getattr(p, f"{short}_w") or 0)]
    return sides if depth is None else [depth, *sides]


def _depth(p: Message, short: str, axes: int) -> int | None:
    """The number for the first of three axes where it has a field of its own, else None."""
    said = [name for name in _DEPTH.get(short, ()) if p.has(name)]
    if axes == 3:
        if not said and p.has("kernel_depth"):  # C3D: stride and pad do not reach the time
            return {"stride": 1, "pad": 0}.get(short)
        return int(getattr(p, said[0])) if said else None
    for name in said:
        if getattr(p, name) != (0 if short == "pad" else 1):
            raise SpecError(f"{name} is for three spatial axes, the bottom has {axes}")
    return None
