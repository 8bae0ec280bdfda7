"""The records of YOLO's last steps. Source: src/caffe/layers of eric612/MobileNet-YOLO; OpenVINO's specification."""

from __future__ import annotations

import math
from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message, decimal
from caffe_port.signatures.signature import ANY, declare
from caffe_port.typing import Shape


def widths_and_heights(biases: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """``biases`` in pairs."""
    values = [decimal(b) for b in biases]
    if len(values) % 2:
        raise SpecError(f"{len(values)} biases; expected pairs of width and height")
    return tuple(zip(values[::2], values[1::2], strict=True))


def _check_grid(shape: Shape, boxes: int, classes: int) -> None:
    if len(shape) != 4 or shape[1] != boxes * (5 + classes):
        raise SpecError(f"{boxes} boxes and {classes} classes need (N, {boxes * (5 + classes)}, H, W), got {shape}")


def _yolo2(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """How many boxes are kept depends on the picture; Caffe allocates one."""
    p = layer.yolo_detection_output_param
    if p.coords != 4:
        raise SpecError(f"coords {p.coords} is not supported, only 4")
    if len(widths_and_heights(p.biases)) != p.num_box:
        raise SpecError(f"{len(p.biases)} biases for {p.num_box} boxes; each needs a width and a height")
    for shape in bottoms:
        _check_grid(shape, p.num_box, p.num_classes)
    return [(1, 1, 1, 7)]


def _yolo3(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.yolov3_detection_output_param
    if len(bottoms) != p.mask_group_num:
        raise SpecError(f"{len(bottoms)} bottoms; the layer takes {p.mask_group_num}")
    known, mask, count = widths_and_heights(p.biases), list(p.mask), p.num_box
    if len(mask) != count * len(bottoms) or len(p.anchors_scale) != len(bottoms):
        raise SpecError(
            f"{len(bottoms)} bottoms of {count} boxes need {count * len(bottoms)} mask and {len(bottoms)}"
            f" anchors_scale, got {len(mask)} and {len(p.anchors_scale)}"
        )
    if max(mask) >= len(known):
        raise SpecError(f"mask {max(mask)} exceeds the {len(known)} width and height pairs in biases")
    for shape in bottoms:
        _check_grid(shape, count, p.num_classes)
    return [(1, 1, 1, 7)]


def _region_yolo(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom, p = bottoms[0], layer.region_yolo_param
    boxes = p.num if p.do_softmax else len(p.mask)
    numbers = p.coords + 1 + p.classes
    if len(bottom) != 4 or boxes < 1 or p.coords < 2 or bottom[1] != boxes * numbers:
        raise SpecError(f"{boxes} boxes of {numbers} values need (N, {boxes * numbers}, H, W), got {bottom}")
    return [(bottom[0], math.prod(bottom[1:]))] if p.do_softmax else bottoms


declare("YoloDetectionOutput", _yolo2, message="yolo_detection_output_param", bottoms=(1, 2))
declare("Yolov3DetectionOutput", _yolo3, message="yolov3_detection_output_param", bottoms=(1, ANY))
declare("RegionYolo", _region_yolo, message="region_yolo_param")
