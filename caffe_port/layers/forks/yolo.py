"""YOLO's last steps: decoding boxes from a grid of anchors. Source: src/caffe/layers of eric612/MobileNet-YOLO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from caffe_port.formats.message import Message
from caffe_port.layers.forks.detection import suppress
from caffe_port.layers.layer import Layer
from caffe_port.signatures.forks.yolo import widths_and_heights
from caffe_port.typing import Shape


class YoloDetectionOutput(Layer):
    """YOLO v2's last step: decodes the boxes of a grid, and keeps the best that do not overlap, whatever their class.

    Takes (N, num_box * (5 + num_classes), H, W), or two such grids, and gives (1, 1, found, 7), a row for each box:
    image, label (from 1), score, x1, y1, x2, y2, in fractions of the image, the best score first. Nothing found at all:
    a row of -1 for each image. Each box has the class of the greatest softmax; ``biases`` are widths and heights in
    cells of the grid.

    Differs from PyTorch: the number of rows depends on the values, so torch.export does not support it directly.
    Differs from Caffe: every image of a batch is treated by itself; the original takes one image.
    Reference: eric612/MobileNet-YOLO yolo_detection_output_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {
            "num_classes": p.num_classes,
            "anchors": widths_and_heights(p.biases),
            "confidence_threshold": p.confidence_threshold,
            "nms_threshold": p.nms_threshold,
        }

    def __init__(
        self,
        num_classes: int,
        anchors: tuple[tuple[float, float], ...],
        confidence_threshold: float = 0.01,
        nms_threshold: float = 0.45,
    ) -> None:
        super().__init__()
        self.num_classes, self.anchors = num_classes, anchors
        self.confidence_threshold, self.nms_threshold = confidence_threshold, nms_threshold

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        boxes, scores, labels = [], [], []
        for one in (x,) if other is None else (x, other):
            grid, height, width = cells(one, len(self.anchors))
            score, label = grid[..., 5:].softmax(3).max(3)
            boxes.append(grid_boxes(grid, height, width, self.anchors, (height, width)).flatten(1, 2))
            scores.append((score * grid[..., 4].sigmoid()).flatten(1))
            labels.append(label.flatten(1))
        box, score, label = torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(labels, 1)
        found = []
        for n in range(x.shape[0]):
            keep = score[n] >= self.confidence_threshold
            found.append(best_boxes(box[n][keep], score[n][keep], label[n][keep], self.nms_threshold))
        return detection_rows(found, x)

    def infer(self, *bottoms: Tensor) -> Tensor:
        return bottoms[0].new_empty(1, 1, 1, 7)


class Yolov3DetectionOutput(Layer):
    """YOLO v3's last step: decodes the boxes of several grids, and keeps the best that do not overlap, whatever their
    class.

    Takes a bottom (N, num_box * (5 + num_classes), H, W) for each grid and gives rows as YoloDetectionOutput does. A
    box counts once for every class whose sigmoid, times its objectness, is above the threshold. ``biases`` are widths
    and heights in pixels; ``mask`` says which of them belong to which grid, ``anchors_scale`` how many pixels a cell
    has.

    Differs from PyTorch: the number of rows depends on the values, so torch.export does not support it directly.
    Differs from Caffe: every image of a batch is treated by itself; the original takes one image.
    Reference: eric612/MobileNet-YOLO yolov3_detection_output_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        known, count = widths_and_heights(p.biases), p.num_box
        chosen = [known[int(m)] for m in p.mask]
        return {
            "num_classes": p.num_classes,
            "anchors": tuple(tuple(chosen[k : k + count]) for k in range(0, len(chosen), count)),
            "scales": tuple(int(s) for s in p.anchors_scale),
            "confidence_threshold": p.confidence_threshold,
            "nms_threshold": p.nms_threshold,
        }

    def __init__(
        self,
        num_classes: int,
        anchors: tuple[tuple[tuple[float, float], ...], ...],
        scales: tuple[int, ...],
        confidence_threshold: float = 0.01,
        nms_threshold: float = 0.45,
    ) -> None:
        super().__init__()
        self.num_classes, self.anchors, self.scales = num_classes, anchors, scales
        self.confidence_threshold, self.nms_threshold = confidence_threshold, nms_threshold

    def forward(self, *grids: Tensor) -> Tensor:
        boxes, scores = [], []
        for x, anchors, scale in zip(grids, self.anchors, self.scales, strict=True):
            grid, height, width = cells(x, len(anchors))
            boxes.append(grid_boxes(grid, height, width, anchors, (height * scale, width * scale)).flatten(1, 2))
            scores.append((grid[..., 5:].sigmoid() * grid[..., 4:5].sigmoid()).flatten(1, 2))
        box, score = torch.cat(boxes, 1), torch.cat(scores, 1)
        found = []
        for n in range(box.shape[0]):
            which, label = (score[n] > self.confidence_threshold).nonzero().unbind(1)
            found.append(best_boxes(box[n][which], score[n][which, label], label, self.nms_threshold))
        return detection_rows(found, grids[0])

    def infer(self, *bottoms: Tensor) -> Tensor:
        return bottoms[0].new_empty(1, 1, 1, 7)


class RegionYolo(Layer):
    """YOLO's outputs as probabilities: the sigmoid of each box's x, y and score, and of its classes or, with
    ``softmax``, their softmax. Width and height stay as they are.

    Takes (N, boxes * (coords + 1 + classes), H, W). Gives the same shape, or all of an item's numbers in a row with
    ``do_softmax`` (YOLO v2). The boxes are ``num``, without it as many as ``mask`` has entries.

    Reference: OpenVINO's specification of RegionYolo; openvinotoolkit/training_toolbox_caffe region_yolo_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        boxes = p.num if p.do_softmax else len(p.mask)
        return {"boxes": boxes, "coords": p.coords} | ({"softmax": True} if p.do_softmax else {})

    def __init__(self, boxes: int, coords: int = 4, softmax: bool = False) -> None:
        super().__init__()
        self.boxes, self.coords, self.softmax = boxes, coords, softmax

    def forward(self, x: Tensor) -> Tensor:
        grid = x.reshape(x.shape[0], self.boxes, -1, *x.shape[2:])
        place, size, rest = grid.tensor_split((2, self.coords), 2)
        if self.softmax:
            score, classes = rest.tensor_split((1,), 2)
            rest = torch.cat((score.sigmoid(), classes.softmax(2)), 2)
        else:
            rest = rest.sigmoid()
        y = torch.cat((place.sigmoid(), size, rest), 2)
        return y.flatten(1) if self.softmax else y.reshape(x.shape)


# -- grids, in forward --------------------------------------------------------------------------------------------


def cells(x: Tensor, anchors: int) -> tuple[Tensor, int, int]:
    """The numbers of every box, (N, H * W, anchors, 5 + classes), and H and W."""
    n, channels, height, width = x.shape
    return x.reshape(n, anchors, channels // anchors, height * width).permute(0, 3, 1, 2), height, width


def grid_boxes(
    grid: Tensor, height: int, width: int, anchors: Sequence[tuple[float, float]], size: tuple[int, int]
) -> Tensor:
    """x1, y1, x2, y2 in fractions of the image, for boxes in cells and anchors in parts of ``size`` (height, width)."""
    cell = torch.arange(height * width, device=grid.device)[:, None]
    x = (grid[..., 0].sigmoid() + cell % width) / width
    y = (grid[..., 1].sigmoid() + cell // width) / height
    w, h = torch.tensor(anchors).to(grid).unbind(1)
    w, h = grid[..., 2].exp() * w / size[1], grid[..., 3].exp() * h / size[0]
    return torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), 3)


def best_boxes(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Rows label (from 1), score, x1, y1, x2, y2 of the boxes that no better one overlaps by more than that."""
    scores, order = scores.sort(descending=True, stable=True)
    boxes, labels = boxes[order], labels[order]
    kept = suppress(boxes, scores, threshold)
    return torch.cat((labels[kept, None] + 1, scores[kept, None], boxes[kept]), 1)


def detection_rows(found: list[Tensor], x: Tensor) -> Tensor:
    """The rows of all images with the image's number in front; a row of -1 for each where nothing was found at all."""
    rows = [torch.cat((torch.full_like(of[:, :1], image), of), 1) for image, of in enumerate(found)]
    if not any(len(of) for of in found):
        rows = [torch.tensor([[image] + [-1] * 6]).to(x) for image in range(len(found))]
    return torch.cat(rows)[None, None]
