"""How a definition says what a window is along each spatial axis, in Caffe's words and in those of its forks."""

from __future__ import annotations

from typing import Final

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message

_DEPTH: Final = {
    "kernel": ("kernel_depth", "kernel_d", "kernel_l"),
    "stride": ("temporal_stride", "stride_d", "stride_l"),
    "pad": ("temporal_pad", "pad_d", "pad_l"),
    "dilation": ("dilation_d",),
}
"""The fields of forks for the first of three axes: C3D's, and those of two families of 3-D Caffes."""


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
