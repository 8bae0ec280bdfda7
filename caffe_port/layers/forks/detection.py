"""Single-shot detection: the boxes to start from, and those found. Source: src/caffe/layers of the SSD fork."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from caffe_port.formats.message import Message, decimal
from caffe_port.layers.layer import Layer
from caffe_port.signatures.forks.detection import pair, prior_sizes, suppresses, suppression
from caffe_port.typing import Shape


class PriorBox(Layer):
    """The boxes (anchors) that SSD corrects: for every pixel of the first bottom, some boxes of given sizes around it.

    Takes the feature map and the image, of which only the shapes matter, and gives (1, 2, 4 * boxes): the corners
    x1, y1, x2, y2 in fractions of the image, then the variances. The boxes of a pixel are, for each min_size: a
    square of it, a square of sqrt(min_size * max_size), and the aspect ratios other than 1.

    Differs from PyTorch: torchvision's DefaultBoxGenerator orders the boxes otherwise and clips by default.
    Differs from OpenCV: sizes are cut to integers, as SSD does: 30.4 is 30.
    Reference: weiliu89/caffe prior_box_layer.cpp; denser_boxes: MhLiao/TextBoxes_plusplus
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        args: dict[str, Any] = {
            "min_sizes": tuple(int(n) for n in p.min_size),
            "max_sizes": tuple(int(n) for n in p.max_size),
            "aspect_ratios": tuple(decimal(r) for r in p.aspect_ratio),
            "flip": p.flip,
            **grid_of_boxes(p),
        }
        return args | ({"denser_boxes": True} if p.denser_prior_boxes else {})

    @classmethod
    def stand_in(cls, layer: Message) -> type[Layer]:
        """OpenCV's PriorBox with widths and heights is Intel's PriorBoxClustered."""
        return PriorBoxClustered if cls is PriorBox and layer.prior_box_param.has("width") else cls

    def __init__(
        self,
        min_sizes: tuple[int, ...],
        max_sizes: tuple[int, ...] = (),
        aspect_ratios: tuple[float, ...] = (),
        flip: bool = True,
        clip: bool = False,
        variance: tuple[float, ...] = (0.1, 0.1, 0.1, 0.1),
        image_size: tuple[float, float] | None = None,
        step: tuple[float, float] | None = None,
        offset: float = 0.5,
        denser_boxes: bool = False,
    ) -> None:
        super().__init__()
        self.sizes = prior_sizes(min_sizes, max_sizes, aspect_ratios, flip)
        self.clip, self.variance, self.image_size, self.step, self.offset = clip, variance, image_size, step, offset
        self.denser_boxes = denser_boxes

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        height, width = x.shape[2:]
        image_h, image_w = self.image_size or image.shape[2:]
        step_h, step_w = self.step or (image_h / height, image_w / width)
        # SSD keeps centers and sizes in float32, and divides in float64.
        cy = (torch.arange(height, dtype=torch.float32) + self.offset) * step_h
        cx = (torch.arange(width, dtype=torch.float32) + self.offset) * step_w
        w, h = torch.tensor(self.sizes, dtype=torch.float32).double().unbind(1)
        cy, cx = cy.double().reshape(-1, 1, 1), cx.double().reshape(1, -1, 1)
        shape = (height, width, len(self.sizes))
        sides = [(cx - w / 2) / image_w, (cy - h / 2) / image_h, (cx + w / 2) / image_w, (cy + h / 2) / image_h]
        boxes = torch.stack([side.expand(shape) for side in sides], 3)
        if self.denser_boxes:
            down = step_h * (1 - self.offset) / image_h
            lower = torch.stack((boxes[..., 0], boxes[..., 1] + down, boxes[..., 2], boxes[..., 3] + down), 3)
            boxes = torch.stack((boxes, lower), 3)
        boxes = boxes.reshape(-1, 4)
        if self.clip:
            boxes = boxes.clamp(0, 1)
        variance = torch.tensor(self.variance, dtype=torch.float64).expand_as(boxes)
        return torch.stack((boxes, variance)).to(x.device, x.dtype).reshape(1, 2, -1)


class PriorBoxClustered(PriorBox):
    """The boxes that a detector corrects, of widths and heights in pixels that were found by clustering (OpenVINO).

    Takes and gives what PriorBox does; the boxes of a pixel are ``widths[k]`` by ``heights[k]``. OpenCV writes the same
    as a PriorBox with ``width`` and ``height``.

    Reference: OpenVINO's specification of PriorBoxClustered; OpenCV's prior_box_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        widths, heights = (tuple(decimal(n) for n in sizes) for sizes in (p.width, p.height))
        return {"widths": widths, "heights": heights, **grid_of_boxes(p)}

    def __init__(
        self,
        widths: tuple[float, ...],
        heights: tuple[float, ...],
        clip: bool = False,
        variance: tuple[float, ...] = (0.1, 0.1, 0.1, 0.1),
        image_size: tuple[float, float] | None = None,
        step: tuple[float, float] | None = None,
        offset: float = 0.5,
    ) -> None:
        super().__init__((), clip=clip, variance=variance, image_size=image_size, step=step, offset=offset)
        self.sizes = list(zip(widths, heights, strict=True))


class DetectionOutput(Layer):
    """SSD's last step: decodes the boxes, and for every image and class keeps the best that do not overlap.

    Takes loc (N, P * 4), conf (N, P * num_classes) and the priors (1, 2, P * 4), and gives (1, 1, found, 7), a row
    for each box: image, label, score, x1, y1, x2, y2. The rows go by image and label, the best score first. Nothing
    found at all: a row of -1 for each image. With share_location false, loc has a box for every class. Without an
    nms_param nothing is suppressed: every prior is a row for every class, whatever its score. Two more bottoms
    (RefineDet: conf (N, P * 2) and loc of the first stage) correct the priors and drop those of little objectness.
    ``normalized: false`` (OpenVINO): the priors (1, 2, P * 5) are an image and a box in pixels, of input_width and
    input_height.

    Differs from PyTorch: the number of rows depends on the values, so torch.export does not support it directly.
    Of equal scores the earlier box comes first; in SSD, the order is undefined. Nothing is saved or shown.
    Reference: weiliu89/caffe detection_output_layer.cpp, bbox_util.cpp; sfzhang15/RefineDet
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        refined, p = len(bottoms) == 5, p.detection_output_param
        nms, (threshold, eta) = p.nms_param, suppression(p)
        top_k = nms.top_k if nms.has("top_k") else p.top_k if p.has("top_k") else -1
        args: dict[str, Any] = {
            "num_classes": p.num_classes,
            "nms_threshold": threshold if suppresses(p) else None,
            "top_k": top_k if top_k > -1 else None,
            "keep_top_k": p.keep_top_k if p.keep_top_k > -1 else None,
            "confidence_threshold": p.confidence_threshold if p.has("confidence_threshold") else -math.inf,
            "code_type": p.code_type,
            "share_location": p.share_location,
            "background_label_id": p.background_label_id,
            "variance_encoded_in_target": p.variance_encoded_in_target,
        }
        args |= {"eta": eta} if eta < 1 else {}
        args |= {} if p.normalized else {"pixels": (p.input_width, p.input_height)}
        return args | ({"objectness_score": p.objectness_score} if refined else {})

    def __init__(
        self,
        num_classes: int,
        nms_threshold: float | None = 0.3,
        top_k: int | None = None,
        keep_top_k: int | None = None,
        confidence_threshold: float = -math.inf,
        code_type: str = "CORNER",
        share_location: bool = True,
        background_label_id: int = 0,
        variance_encoded_in_target: bool = False,
        eta: float = 1.0,
        objectness_score: float = 0.01,
        pixels: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.pixels = pixels
        self.num_classes, self.background_label_id, self.share_location = (
            num_classes,
            background_label_id,
            share_location,
        )
        self.nms_threshold, self.eta, self.top_k, self.keep_top_k = nms_threshold, eta, top_k, keep_top_k
        self.confidence_threshold, self.objectness_score = confidence_threshold, objectness_score
        self.code_type, self.variance_encoded_in_target = code_type, variance_encoded_in_target

    def forward(self, loc: Tensor, conf: Tensor, priors: Tensor, *first_stage: Tensor) -> Tensor:
        boxes, scores = self.candidates(loc, conf, priors, *first_stage)
        rows = []
        for image in range(boxes.shape[0]):
            found = self.detect(boxes[image], scores[image])
            rows.append(torch.cat((torch.full_like(found[:, :1], image), found), 1))
        if not any(len(found) for found in rows):
            rows = [torch.tensor([[image] + [-1] * 6]).to(loc) for image in range(boxes.shape[0])]
        return torch.cat(rows)[None, None]

    def candidates(self, loc: Tensor, conf: Tensor, priors: Tensor, *first_stage: Tensor) -> tuple[Tensor, Tensor]:
        """The boxes (N, P, 1 or classes, 4) and their scores (N, P, classes), before any is dropped."""
        boxes, variances = split_priors(priors) if self.pixels is None else priors_in_pixels(priors, self.pixels)
        if self.variance_encoded_in_target:
            variances = torch.ones_like(variances)
        classes = 1 if self.share_location else self.num_classes
        loc = loc.reshape(loc.shape[0], -1, classes, 4)
        scores = conf.reshape(conf.shape[0], -1, self.num_classes)
        boxes, variances = boxes[None, :, None], variances[None, :, None]
        if first_stage:
            objectness = first_stage[0].reshape(conf.shape[0], -1, 2)[..., 1:]
            scores = scores.where(objectness >= self.objectness_score, 0)
            boxes = decode(first_stage[1].reshape(loc.shape[0], -1, 1, 4), boxes, variances, self.code_type)
        return decode(loc, boxes, variances, self.code_type), scores

    def infer(self, *bottoms: Tensor) -> Tensor:
        return bottoms[0].new_empty(1, 1, 1, 7)

    def detect(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """Of one image, with boxes (P, 1 or classes, 4) and scores (P, classes): rows label, score, x1, y1, x2, y2."""
        found = []
        for label in range(self.num_classes):
            if label == self.background_label_id:
                continue
            box, score = boxes[:, 0 if self.share_location else label], scores[:, label]
            if self.nms_threshold is not None:
                index = (score > self.confidence_threshold).nonzero().squeeze(1)
                index = index[score[index].sort(descending=True, stable=True).indices][: self.top_k]
                index = index[suppress(box[index], score[index], self.nms_threshold, self.eta)]
                box, score = box[index], score[index]
            found.append(torch.cat((torch.full_like(score, label)[:, None], score[:, None], box), 1))
        rows = torch.cat(found)
        if self.keep_top_k is not None and len(rows) > self.keep_top_k:
            rows = rows[rows[:, 1].sort(descending=True, stable=True).indices[: self.keep_top_k]]
            rows = rows[rows[:, 0].sort(stable=True).indices]
        return rows


# -- boxes, in forward --------------------------------------------------------------------------------------------


def split_priors(priors: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes and variances, each (P, 4), of priors (1, 2, P * 4)."""
    boxes, variances = priors[0].reshape(2, -1, 4)
    return boxes, variances


def priors_in_pixels(priors: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Boxes in fractions of an image of (width, height), and variances, of priors (1, 2, P * 5) or (1, 1, P * 5).

    The first of the five numbers of a box is its image; the variances are four numbers each. OpenVINO.
    """
    rows = priors[0]
    boxes = rows[0].reshape(-1, 5)[:, 1:] / torch.tensor(size * 2).to(priors)
    return boxes, rows[1].flatten()[: boxes.numel()].reshape(-1, 4) if rows.shape[0] > 1 else torch.ones_like(boxes)


def decode(code: Tensor, priors: Tensor, variances: Tensor, code_type: str) -> Tensor:
    """Boxes from what the net says about the priors; all (..., 4)."""
    code = code * variances
    if code_type == "CORNER":
        return priors + code
    size = priors[..., 2:] - priors[..., :2]
    if code_type == "CORNER_SIZE":
        return priors + code * torch.cat((size, size), -1)
    center = code[..., :2] * size + (priors[..., :2] + priors[..., 2:]) / 2
    half = code[..., 2:].exp() * size / 2
    return torch.cat((center - half, center + half), -1)


def area(boxes: Tensor, pixels: bool = False) -> Tensor:
    """0 where a corner is on the wrong side. With ``pixels``, the last belongs to the box. BBoxSize, bbox_util.cpp"""
    size = boxes[..., 2:] - boxes[..., :2]
    return (size + pixels).prod(-1).where((size >= 0).all(-1), 0)


def jaccard_overlap(a: Tensor, b: Tensor, pixels: bool = False) -> Tensor:
    """Intersection over union, (A, B), of boxes (A, 4) and (B, 4). JaccardOverlap of bbox_util.cpp

    With ``pixels``, boxes that do not touch have an intersection of 1 pixel, as in Caffe.
    """
    a, b = a[:, None], b[None]
    size = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]) + pixels
    if pixels:
        apart = ((b[..., :2] > a[..., 2:]) | (b[..., 2:] < a[..., :2])).any(-1, keepdim=True)
        size = size.where(~apart, 1)
    both = size.clamp(min=0).prod(-1)
    return (both / (area(a, pixels) + area(b, pixels) - both)).where(both > 0, 0)


def suppress(boxes: Tensor, scores: Tensor, threshold: float, eta: float = 1.0) -> Tensor:
    """Indices of the boxes that no better one overlaps by more than ``threshold``; the best comes first.

    Args:
        boxes, scores: the best first.
        eta: below 1, the threshold shrinks by it with every box kept, as long as it is above 0.5.
    """
    import torchvision  # here: it takes as long to load as torch itself, and few nets need it

    if eta == 1:
        return torchvision.ops.nms(boxes, scores, threshold)  # type: ignore[no-any-return]
    overlaps = jaccard_overlap(boxes, boxes)
    kept: list[int] = []
    for i in range(boxes.shape[0]):
        if not kept or bool((overlaps[i, kept] <= threshold).all()):
            kept.append(i)
            if threshold > 0.5:
                threshold *= eta
    return torch.tensor(kept, dtype=torch.long, device=boxes.device)


# -- parameters, from Caffe ---------------------------------------------------------------------------------------


def grid_of_boxes(p: Message) -> dict[str, Any]:
    """The arguments that say where the boxes of a prior_box_param lie, and their variances."""
    variance = tuple(decimal(v) for v in p.variance) or (0.1,)
    return {
        "clip": p.clip,
        "variance": variance if len(variance) == 4 else variance * 4,
        "image_size": pair(p, "img_size", "img_h", "img_w"),
        "step": pair(p, "step", "step_h", "step_w"),
        "offset": p.offset,
    }
