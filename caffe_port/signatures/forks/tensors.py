"""The records of what TensorFlow's and ONNX's operators become in Caffe.

Source: src/caffe/layers of foss-for-synopsys-dwc-arc-processors/synopsys-caffe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.checks import canonical_axis, expect_images
from caffe_port.signatures.signature import SIGNATURES, Trait, declare
from caffe_port.typing import Shape


def squeezed_axes(p: Message, bottom: Shape) -> tuple[int, ...]:
    """The axes of length 1 that a Squeeze removes: those that are named, else all."""
    axes = sorted({canonical_axis(axis, len(bottom)) for axis in p.axis})
    for axis in axes:
        if bottom[axis] != 1:
            raise SpecError(f"axis {axis} of the bottom {bottom} does not have length 1")
    return tuple(axes) if p.axis else tuple(axis for axis, length in enumerate(bottom) if length == 1)


def _squeeze(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    gone = squeezed_axes(layer.squeeze_param, bottoms[0])
    return [tuple(length for axis, length in enumerate(bottoms[0]) if axis not in gone)]


def broadcast(a: Shape, b: Shape) -> Shape:
    """The shape of two blobs that are aligned at their last axes and repeated along those of length 1."""
    dims = max(len(a), len(b))
    wide = [(1,) * (dims - len(shape)) + tuple(shape) for shape in (a, b)]
    for one, other in zip(*wide, strict=True):
        if one != other and 1 not in (one, other):
            raise SpecError(f"bottoms {a} and {b}: lengths must be equal, or 1")
    return tuple(map(max, *wide)) if dims else ()


def _add(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    return [broadcast(*bottoms)]


def _mul(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    return [broadcast(bottoms[0], bottoms[1] if len(bottoms) > 1 else tuple(layer.mul_param.mul_shape))]


def _mul_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    return {} if len(bottoms) > 1 else {"factor": tuple(layer.mul_param.mul_shape)}


def matrices(p: Message, bottoms: Sequence[Shape]) -> tuple[Shape, Shape]:
    """The shapes of both factors of a MatMul; the second one is a blob if there is no bottom for it."""
    if len(bottoms) < 2 and len(p.blob_shape) < 2:
        raise SpecError("a MatMul of one bottom needs a blob_shape of at least two axes")
    a, b = bottoms[0], bottoms[1] if len(bottoms) > 1 else tuple(int(n) for n in p.blob_shape)
    if len(a) < 2 or (len(a) != len(b) and (len(b) != 2 or len(a) < 2 or p.transpose_a or p.transpose_b)):
        raise SpecError(
            f"expected two bottoms of as many axes, or a second one (K, N) without transposing, got {a}, {b}"
        )
    return a, b


def _mat_mul(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.matmul_param
    a, b = matrices(p, bottoms)
    rows, inner = (a[-1], a[-2]) if p.transpose_a else (a[-2], a[-1])
    other, columns = (b[-1], b[-2]) if p.transpose_b else (b[-2], b[-1])
    if inner != other or (len(a) == len(b) and a[:-2] != b[:-2]):
        raise SpecError(f"the shapes {a} and {b} do not fit a product of matrices")
    return [(*a[:-2], rows, columns)]


def _mat_mul_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    return {} if len(bottoms) > 1 else {"factor": matrices(layer.matmul_param, bottoms)[1]}


def _mat_mul_macs(layer: Message, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
    return math.prod(tops[0]) * bottoms[0][-2 if layer.matmul_param.transpose_a else -1]


def image_axes(p: Message, bottom: Shape) -> tuple[int, int]:
    """The axes of height and width."""
    if p.data_format not in ("NHWC", "NCHW"):
        raise SpecError(f"data_format {p.data_format} is not supported; NHWC and NCHW are")
    expect_images([bottom])
    return (1, 2) if p.data_format == "NHWC" else (2, 3)


def resized(p: Message, bottom: Shape) -> tuple[int, int]:
    """Height and width that are given, or by which factor they grow."""
    size = []
    for axis, name in zip(image_axes(p, bottom), ("height", "width"), strict=True):
        given = p.has(f"output_{name}")
        size.append(int(getattr(p, f"output_{name}") if given else bottom[axis] * getattr(p, f"scale_{name}")))
    if min(size) < 1:
        raise SpecError(f"the size {size[0]} x {size[1]} must be positive")
    return size[0], size[1]


PLACES = ("align_corners", "half_pixel_centers", "pytorch_half_pixel", "half_pixel_onnx")
"""How pixels of a resized image map to the old ones; without any, pixel i lies at i * old / new."""


def placing(p: Message) -> str | None:
    """Which of them is set."""
    known = p.schema.fields if p.schema is not None else {}
    chosen = [name for name in PLACES if name in known and getattr(p, name)]
    if len(chosen) > 1:
        raise SpecError(f"{chosen[0]} and {chosen[1]} exclude each other")
    return chosen[0] if chosen else None


def _resize(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p, bottom = SIGNATURES[layer.type].parameters(layer), bottoms[0]
    placing(p)
    size = dict(zip(image_axes(p, bottom), resized(p, bottom), strict=True))
    return [tuple(size.get(axis, length) for axis, length in enumerate(bottom))]


def _upsample_darknet(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    stride = layer.upsample_darknet_param.stride
    expect_images(bottoms)
    if stride < 1:
        raise SpecError(f"stride must be at least 1, got {stride}")
    return [(*bottoms[0][:2], bottoms[0][2] * stride, bottoms[0][3] * stride)]


def _depth_to_space(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p, bottom = layer.depth_to_space_param, bottoms[0]
    expect_images(bottoms)
    if p.data_format not in ("NHWC", "NCHW", "DCR", "CRD"):
        raise SpecError(f"data_format {p.data_format} is not supported; NHWC, NCHW, DCR and CRD are")
    channels, block = 3 if p.data_format == "NHWC" else 1, p.block_size
    if block < 1 or bottom[channels] % block**2:
        raise SpecError(f"block_size {block} squared does not divide the {bottom[channels]} channels")
    return [(bottom[0], *(n // block**2 if axis == channels else n * block for axis, n in enumerate(bottom[1:], 1)))]


def _blocks(p: Message, margins: Sequence[int], bottom: Shape) -> list[tuple[int, int, int]]:
    """Block, margin before and margin after of each axis after the batch."""
    if not p.block_shape or min(p.block_shape) < 1 or len(margins) != 2 * len(p.block_shape) >= 2 * len(bottom):
        raise SpecError(f"a bottom {bottom} needs up to {len(bottom) - 1} of block_shape, with two margins for each")
    return [(int(b), int(margins[2 * k]), int(margins[2 * k + 1])) for k, b in enumerate(p.block_shape)]


def _space_to_batch(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p, top = layer.space_to_batch_nd_param, list(bottoms[0])
    for axis, (block, before, after) in enumerate(_blocks(p, list(p.paddings), bottoms[0]), 1):
        if (top[axis] + before + after) % block:
            raise SpecError(f"block {block} does not divide axis {axis}, {top[axis]} and paddings {before}, {after}")
        top[0], top[axis] = top[0] * block, (top[axis] + before + after) // block
    return [tuple(top)]


def _batch_to_space(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p, top = layer.batch_to_space_nd_param, list(bottoms[0])
    for axis, (block, before, after) in enumerate(_blocks(p, list(p.crops), bottoms[0]), 1):
        if top[0] % block or top[axis] * block <= before + after:
            raise SpecError(f"block {block} and crops {before}, {after} do not fit axis {axis} of {bottoms[0]}")
        top[0], top[axis] = top[0] // block, top[axis] * block - before - after
    return [tuple(top)]


declare(
    "Squeeze",
    _squeeze,
    message="squeeze_param",
    traits=Trait.REARRANGES | Trait.NO_NUMBERS | Trait.SHARES_MEMORY | Trait.NOT_IN_PLACE,
)
declare("Add", _add, bottoms=2, traits=Trait.NOT_IN_PLACE)
declare(
    "Mul",
    _mul,
    message="mul_param",
    bottoms=(1, 2),
    blobs=("factor",),
    blob_shapes=_mul_blobs,
    traits=Trait.BOTTOM_FOR_BLOB | Trait.NOT_IN_PLACE,
)
declare(
    "MatMul",
    _mat_mul,
    message="matmul_param",
    bottoms=(1, 2),
    blobs=("factor",),
    blob_shapes=_mat_mul_blobs,
    macs=_mat_mul_macs,
    traits=Trait.BOTTOM_FOR_BLOB,
)
declare("ResizeBilinear", _resize, message="resize_bilinear_param")
declare("ResizeNearestNeighbor", _resize, message="resize_nearest_neighbor_param", traits=Trait.REARRANGES)
declare(
    "UpsampleDarknet",
    _upsample_darknet,
    message="upsample_darknet_param",
    traits=Trait.REARRANGES | Trait.KEEPS_CHANNELS,
)
declare("DepthToSpace", _depth_to_space, message="depth_to_space_param", traits=Trait.REARRANGES)
declare("SpaceToBatchND", _space_to_batch, message="space_to_batch_nd_param", traits=Trait.REARRANGES)
declare("BatchToSpaceND", _batch_to_space, message="batch_to_space_nd_param", traits=Trait.REARRANGES)
