"""The prior boxes of detectors."""

from __future__ import annotations

import itertools
import math

import numpy as np

from caffe_port.formats.message import Message
from caffe_port.verification.references.numpy_formulas.formulas import Layer, Result, formula


def _sizes(p: Message) -> list[tuple[float, float]]:
    """The width and height of each box at a pixel."""
    if p.width:
        return list(zip(p.width, p.height, strict=True))
    ratios: list[float] = []
    for ratio in p.aspect_ratio:
        if all(abs(ratio - known) >= 1e-6 for known in (1, *ratios)):
            ratios += [ratio, 1 / ratio] if p.flip else [ratio]
    made = []
    for k, least in enumerate(int(size) for size in p.min_size):
        roots = [math.sqrt(least * int(p.max_size[k]))] if p.max_size else []
        made += [(side, side) for side in (float(least), *roots)]
        made += [(least * math.sqrt(ratio), least / math.sqrt(ratio)) for ratio in ratios]
    return made


@formula("PriorBox", "PriorBoxClustered")
def prior_box(layer: Layer) -> Result:
    """Corners in fractions of the image, then variances. Sources: prior_box_layer.cpp (SSD, OpenCV), OpenVINO."""
    p = layer.param.prior_box_param
    unknown = ("offset_h", "offset_w", "fixed_size", "fixed_ratio", "density", "denser_prior_boxes")
    if any(p.has(name) for name in unknown):
        raise NotImplementedError("a PriorBox of another fork")
    cells, image = layer.x.shape[2:], layer.bottoms[1].shape[2:]
    if p.has("img_size"):
        image = (p.img_size, p.img_size)
    elif p.has("img_h") and p.has("img_w"):
        image = (p.img_h, p.img_w)
    step = [side / count for side, count in zip(image, cells, strict=True)]
    if p.has("step"):
        step = [p.step, p.step]
    elif p.has("step_h") and p.has("step_w"):
        step = [p.step_h, p.step_w]
    corners = []
    for row, column in itertools.product(*map(range, cells)):
        y, x = (row + p.offset) * step[0], (column + p.offset) * step[1]
        for width, height in _sizes(p):
            corners.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    boxes = np.array(corners) / [image[1], image[0], image[1], image[0]]
    variance = np.broadcast_to(list(p.variance) or [0.1], boxes.shape)
    return np.stack([np.clip(boxes, 0, 1) if p.clip else boxes, variance]).reshape(1, 2, -1)
