"""The record of Crop. Source: crop_layer.cpp."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.checks import canonical_axis
from caffe_port.signatures.signature import Trait, declare
from caffe_port.typing import Shape


def crop_offsets(p: Message, bottom: Shape) -> tuple[int, tuple[int, ...]]:
    """The first axis that is cut, and where the top begins from that axis on."""
    axis, offsets = canonical_axis(p.axis, len(bottom)), [int(n) for n in p.offset] or [0]
    if len(offsets) == 1:
        offsets *= len(bottom) - axis
    if len(offsets) != len(bottom) - axis:
        raise SpecError(f"got {len(offsets)} offsets, expected 1 or {len(bottom) - axis} (one per axis from {axis} on)")
    return axis, tuple(offsets)


def _crop(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    x, like = bottoms
    axis, offsets = crop_offsets(layer.crop_param, x)
    if len(like) < len(x):
        raise SpecError(f"the bottom {x} cannot be cropped to {like}, which has fewer axes")
    for dim, offset in enumerate(offsets, axis):
        if offset + like[dim] > x[dim]:
            raise SpecError(f"axis {dim}: offset {offset} plus size {like[dim]} exceeds {x[dim]}")
    return [(*x[:axis], *like[axis : len(x)])]


declare("Crop", _crop, message="crop_param", aliases=("AutoCrop",), bottoms=2, traits=Trait.REARRANGES)
