"""The records of forks' layers that sum or average over some axes, or weigh them."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.checks import canonical_axis, expect_images
from caffe_port.signatures.linear import broadcast, broadcasts
from caffe_port.signatures.signature import Trait, declare
from caffe_port.typing import Shape


def _scalar_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    return {"weight": broadcast(layer.scalar_param, bottoms)[0]} if len(bottoms) == 1 else {}


def _sum(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    return [(bottoms[0][0], 1, 1, 1)]


def _mil(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    expect_images(bottoms)
    return [(*bottoms[0][:2], 1, 1)]


def _batch_reduction(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom, p = bottoms[0], layer.batch_reduction_param
    axis, levels = canonical_axis(p.reduction_param.axis, len(bottom)), [int(n) for n in p.level] or [1]
    if p.reduction_param.operation not in ("SUM", "MEAN"):
        raise SpecError(f"operation {p.reduction_param.operation} is not supported; SUM and MEAN are")
    count = sum(n * n for n in levels)
    if levels != [1] and count != bottom[axis]:
        raise SpecError(f"levels {levels} are {count} numbers, axis {axis} has {bottom[axis]}")
    return [(*bottom[:axis], *([] if levels == [1] else [len(levels)]), *bottom[axis + 1 :])]


def _compact_bilinear(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p, (a, b) = layer.compact_bilinear_param, bottoms
    if p.num_output < 1:
        raise SpecError("num_output (length of the sketch) is missing or 0")
    if len(a) != 4 or len(b) != 4 or a[0] != b[0] or a[2:] != b[2:]:
        raise SpecError(f"expected bottoms (N, C, H, W) that differ in C only, got {a} and {b}")
    return [(a[0], p.num_output, *((1, 1) if p.sum_pool else a[2:]))]


declare(
    "Scalar",
    broadcasts,
    message="scalar_param",
    bottoms=(1, 2),
    blobs=("weight",),
    blob_shapes=_scalar_blobs,
    traits=Trait.AFFINE | Trait.BOTTOM_FOR_BLOB,
)
declare("Sum", _sum, traits=Trait.AGGREGATES)
declare("MIL", _mil, message="mil_param", traits=Trait.AGGREGATES | Trait.KEEPS_CHANNELS)
declare("BatchReduction", _batch_reduction, message="batch_reduction_param", traits=Trait.AGGREGATES)
declare("CompactBilinear", _compact_bilinear, message="compact_bilinear_param", bottoms=2)
