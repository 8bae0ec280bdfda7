"""The records of face recognition: products with weights of length one, and margins. Sources: those of the layers.

As of losses, the rules do not look at the labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.checks import canonical_axis, expect_axes
from caffe_port.signatures.loss import LABELLED
from caffe_port.signatures.signature import ANY, SIGNATURES, Trait, declare
from caffe_port.typing import Shape


def _margin_product(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """Scores, and what the margin is."""
    p, x = SIGNATURES[layer.type].parameters(layer), bottoms[0]
    axis = canonical_axis(p.axis, len(x))
    if p.num_output < 1:
        raise SpecError("num_output (number of classes) is missing or 0")
    if axis != 1:
        raise SpecError(f"expected features (N, ...) and axis 1, got {x} and axis {axis}")
    return [(x[0], p.num_output), (1,)][: max(1, len(layer.top))]


def _rows(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    """A row of the weight for each class."""
    p = SIGNATURES[layer.type].parameters(layer)
    return {"weight": (p.num_output, math.prod(bottoms[0][canonical_axis(p.axis, len(bottoms[0])) :]))}


def _rows_macs(layer: Message, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
    weight = _rows(layer, bottoms)["weight"]
    return math.prod(tops[0]) * weight[1]


def _scores(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """The scores of a LabelSpecificAdd; LabelSpecificMargin's second top has its blob."""
    expect_axes(bottoms[0], 2, ANY)
    return [bottoms[0], (5,)][: max(1, len(layer.top)) if layer.type == "LabelSpecificMargin" else 1]


def _statistics(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:  # noqa: ARG001
    return {"statistics": (5,)}


def _channel_scale(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    x, factor = bottoms
    if layer.channel_scale_param.global_scale:
        raise SpecError("global_scale: true is not supported")
    if len(x) < 2 or math.prod(factor) != math.prod(x) // x[1]:
        raise SpecError(f"the factors have shape {factor}, expected one per pixel of {x}")
    return [x]


def _inner_distance(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p, x = layer.inner_distance_param, bottoms[0]
    axis = canonical_axis(p.axis, len(x))
    if p.num_output < 1 or p.distance_type not in ("L1", "L2") or p.transpose:
        raise SpecError("expected num_output, distance_type L1 or L2, and no transpose")
    return [(*x[:axis], p.num_output)]


def _inner_distance_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    p = layer.inner_distance_param
    return {**_rows(layer, bottoms), **({"bias": (p.num_output,)} if p.bias_term else {})}


for _type, _message in (
    ("MarginInnerProduct", "margin_inner_product_param"),
    ("LargeMarginInnerProduct", "largemargin_inner_product_param"),
):
    declare(
        _type,
        _margin_product,
        message=_message,
        bottoms=2,
        holds=LABELLED,
        blobs=("weight",),
        blob_shapes=_rows,
        macs=_rows_macs,
        traits=Trait.MATRIX | Trait.WHOLE_LAYER,
    )
declare(
    "LabelSpecificAdd",
    _scores,
    message="label_specific_add_param",
    bottoms=2,
    holds=LABELLED,
    traits=Trait.ELEMENTWISE | Trait.NO_NUMBERS,
)
declare(
    "LabelSpecificMargin",
    _scores,
    message="label_specific_margin_param",
    bottoms=2,
    holds=LABELLED,
    blobs=("statistics",),
    blob_shapes=_statistics,
    statistics=("statistics",),
    traits=Trait.ELEMENTWISE | Trait.WHOLE_LAYER,
)
declare("ChannelScale", _channel_scale, message="channel_scale_param", bottoms=2, traits=Trait.ELEMENTWISE)
declare(
    "InnerDistance",
    _inner_distance,
    message="inner_distance_param",
    blobs=("weight", "bias"),
    blob_shapes=_inner_distance_blobs,
    traits=Trait.MATRIX,
)
