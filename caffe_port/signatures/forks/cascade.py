"""The records of detection in several stages, and of instance segmentation: MNC, MS-CNN, Cascade R-CNN, OpenPose."""

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


def box_norm(layer: Message) -> tuple[list[float], list[float]] | None:
    """``bbox_reg_param``'s means and deviations of the four numbers of a box; None where it does not give both."""
    p = layer.bbox_reg_param
    if not len(p.bbox_mean) or not len(p.bbox_std):
        return None
    if len(p.bbox_mean) != 4 or len(p.bbox_std) != 4 or min(p.bbox_std) <= 0:
        raise SpecError(
            f"bbox_reg_param: {len(p.bbox_mean)} bbox_mean and {len(p.bbox_std)} bbox_std; give four of each, "
            "bbox_std positive"
        )
    return [float(n) for n in p.bbox_mean], [float(n) for n in p.bbox_std]


def _box_group_output(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """How many boxes are kept depends on the picture; Caffe allocates one."""
    p = layer.box_group_output_param
    box_norm(layer)
    if len(bottoms) != 2 * len(p.box_group_param):
        raise SpecError(f"{len(p.box_group_param)} box_group_param need two bottoms each, there are {len(bottoms)}")
    images = set()
    for prob, box, group in zip(bottoms[::2], bottoms[1::2], p.box_group_param, strict=True):
        count = len(group.field_h)
        if not count or count != len(group.field_w) or not group.stride or min(*group.field_h, *group.field_w) < 1:
            raise SpecError("box_group_param: stride, and equally many field_h and field_w, are needed")
        if len(prob) != 4 or box != (prob[0], 4, *prob[2:]) or prob[0] % count or prob[1] != bottoms[0][1]:
            raise SpecError(
                f"a group of {count} boxes needs scores (N * {count}, classes, H, W) and boxes (N * {count}, 4, H, W), "
                f"got {prob} and {box}"
            )
        images.add(prob[0] // count)
    if len(images) != 1:
        raise SpecError(f"the groups are of {', '.join(map(str, sorted(images)))} images")
    return [(1, 5), (1, 6)][: max(1, len(layer.top))]


def _expect_rows(shape: Shape, numbers: Sequence[int], what: str) -> None:
    if not shape or [n for n in shape[1:] if n != 1] not in [[n] for n in numbers]:
        raise SpecError(f"expected {what} (R, {' or '.join(map(str, numbers))}), got {shape}")


def _decode_bbox(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    box_norm(layer)
    _expect_rows(bottoms[0], [8], "corrections")
    _expect_rows(bottoms[1], [5], "regions")
    if len({shape[0] for shape in bottoms}) > 1:
        raise SpecError(f"the bottoms have {', '.join(str(shape[0]) for shape in bottoms)} rows")
    return [bottoms[1]]


def _frcnn_output(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """How many boxes are kept depends on the picture; Caffe allocates one."""
    box_norm(layer)
    prob, code, rois, size = bottoms
    classes = math.prod(prob[1:])
    _expect_rows(rois, [5, 6], "regions")
    _expect_rows(code, [4 * classes if layer.bbox_reg_param.cls_aware else 8], "corrections")
    if len({prob[0], code[0], rois[0]}) > 1 or math.prod(size) != 2:
        raise SpecError(f"expected equally many rows, and the size of one image, got {', '.join(map(str, bottoms))}")
    return [(1, 7)]


def _scale_route(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """Which rows are kept depends on the picture; Caffe allocates one."""
    p = layer.scale_route_param
    _expect_rows(bottoms[0], [5], "regions")
    if len({shape[0] for shape in bottoms}) > 1 or len(layer.top) != len(bottoms):
        raise SpecError(f"{len(bottoms)} bottoms of equally many rows need as many tops, there are {len(layer.top)}")
    if (p.has("low_scale") and p.low_scale <= 0) or (p.has("high_scale") and p.high_scale < max(p.low_scale, 1e-30)):
        raise SpecError("low_scale must be positive, and high_scale not less")
    return [(1, *shape[1:]) for shape in bottoms]


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
declare(
    "BoxGroupOutput",
    _box_group_output,
    message="box_group_output_param",
    also=("bbox_reg_param",),
    bottoms=(2, ANY),
    traits=Trait.WHOLE_LAYER,
)
declare(
    "DecodeBBox",
    _decode_bbox,
    message="decode_bbox_param",
    also=("bbox_reg_param",),
    bottoms=(2, 3),
    holds=(Holds.NUMBERS, Holds.BOXES),
    traits=Trait.WHOLE_LAYER,
)
declare(
    "FrcnnOutput",
    _frcnn_output,
    message="frcnn_output_param",
    also=("bbox_reg_param",),
    bottoms=4,
    holds=(Holds.NUMBERS, Holds.NUMBERS, Holds.BOXES, Holds.IMAGE_SIZES),
    traits=Trait.WHOLE_LAYER,
)
declare("ScaleRoute", _scale_route, message="scale_route_param", bottoms=(1, ANY), holds=(Holds.BOXES,))
declare("Nms", _peaks, message="nms_param")
