"""What the shape rules of many types ask of their bottoms."""

from __future__ import annotations

import math
from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.signature import ANY
from caffe_port.typing import Shape

MAX_COUNT = (1 << 31) - 1
"""Of the numbers of a blob, which Caffe counts in an int. Source: blob.cpp"""


def canonical_axis(axis: int, dims: int) -> int:
    """A negative axis counted from the end. Raises SpecError outside [-dims, dims). Source: blob.hpp."""
    if not -dims <= axis < dims:
        raise SpecError(f"axis {axis} does not exist in a bottom of {dims} axes")
    return axis % dims


def check_count(what: str, shape: Sequence[int]) -> None:
    """Raises SpecError for more numbers than Caffe's Blob holds."""
    if math.prod(shape) > MAX_COUNT:
        raise SpecError(f"{what} would contain {math.prod(shape)} values; Caffe's limit is 2^31 - 1")


def expect_axes(bottom: Shape, least: int, most: int | None = None) -> None:
    """Raises SpecError unless a bottom has ``least`` to ``most`` axes (``most`` None: exactly ``least``)."""
    most = least if most is None else most
    if not least <= len(bottom) <= most:
        wanted = str(least) if least == most else f"at least {least}" if most == ANY else f"{least} to {most}"
        raise SpecError(
            f"needs a bottom with {wanted} {'axis' if most == ANY and least == 1 else 'axes'}, got {bottom}"
        )


def expect_images(bottoms: Sequence[Shape]) -> None:
    """Raises SpecError unless all bottoms are (N, C, H, W)."""
    for shape in bottoms:
        if len(shape) != 4:
            raise SpecError(f"expected a bottom (N, C, H, W), got {shape}")


def same(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    """The rule of a top like its bottom."""
    return bottoms[:1]


def nothing(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    """The rule of a layer without tops."""
    return ()
