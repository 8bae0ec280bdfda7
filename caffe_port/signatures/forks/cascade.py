"""The records of detection in several stages, and of instance segmentation: MNC, MS-CNN, OpenPose's peaks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.checks import expect_images
from caffe_port.signatures.forks.rcnn import pooled_regions
from caffe_port.signatures.signature import ANY, Holds, Trait, declare
from caffe_port.typing import Shape


def _mask_pooling(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    x, mask = bottoms
    if len(x) != 4 or math.prod(mask) != math.prod(x) // x[1] or mask[0] != x[0]:
        raise SpecError(f"expected features (N, C, H, W) and masks (N, 1, H, W), got {x} and {mask}")
    return [x]


def _box_output(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """How many boxes are kept depends on the picture; Caffe allocates one."""
    p = layer.box_output_param
    if any(len(getattr(p, name)) != len(bottoms) for name in ("field_h", "field_w", "downsample_rate")):
        raise SpecError(f"field_h, field_w and downsample_rate are needed once for each of {len(bottoms)} bottoms")
    if any(len(shape) != 4 or shape[1] < 6 or shape[:2] != bottoms[0][:2] for shape in bottoms):
        raise SpecError(f"expected bottoms (N, classes + 4, H, W), got {', '.join(map(str, bottoms))}")
    if p.nms_type != "IOU":
        raise SpecError(f"nms_type {p.nms_type} is not supported, only IOU")
    return [(1, 5), (1, 6)][: max(1, len(layer.top))]


def _peaks(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.nms_param
    expect_images(bottoms)
    if not 1 <= p.num_parts <= bottoms[0][1]:
        raise SpecError(f"expected a bottom (N, C, H, W) of {p.num_parts} or more channels, got {bottoms[0]}")
    return [(bottoms[0][0], p.num_parts, p.max_peaks + 1, 3)]


declare(
    "ROIWarping",
    pooled_regions,
    message="roi_warping_param",
    bottoms=2,
    holds=(Holds.NUMBERS, Holds.BOXES),
    traits=Trait.KEEPS_CHANNELS,
)
declare("MaskPooling", _mask_pooling, bottoms=2, traits=Trait.ELEMENTWISE)
declare(
    "BoxOutput",
    _box_output,
    message="box_output_param",
    also=("bbox_reg_param",),
    bottoms=(1, ANY),
    traits=Trait.WHOLE_LAYER,
)
declare("Nms", _peaks, message="nms_param")
