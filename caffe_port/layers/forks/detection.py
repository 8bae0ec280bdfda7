"""Single-shot detection: the boxes to start from, and those found. Source: src/caffe/layers of the SSD fork."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from caffe_port.formats.message import Message, decimal
from caffe_port.layers.layer import Layer
from caffe_port.signatures.forks.detection import (
    Prior,
    clustered_sizes,
    maps_of,
    order_of,
    pair,
    priors_of,
    suppresses,
    suppression,
)
from caffe_port.typing import Shape


class PriorBox(Layer):
    """The boxes (anchors) that SSD corrects: for every pixel of the first bottom, some boxes of given sizes around it.

    Takes the feature map and the image, of which only the shapes matter, and gives (1, 2, 4 * boxes): the corners
    x1, y1, x2, y2 in fractions of the image, then the variances. The boxes of a pixel are, for each min_size: a
    square of it, a square of sqrt(min_size * max_size), and the aspect ratios other than 1.

    Differs from PyTorch: torchvision's DefaultBoxGenerator orders the boxes otherwise and clips by default.
    Differs from OpenCV: sizes are cut to integers, as SSD does: 30.4 is 30.
    Other forks have the same with changes: ``denser_boxes`` (TextBoxes++), every box again at the lower edge of the
    cell; ``densified`` (FaceBoxes), 16 boxes for a size of 32, 4 for one of 64, and sizes without the last pixel;
    ``order`` "tf" or "keras", another order of a pixel's boxes, and ``yx``, corners y1, x1, y2, x2 (Synopsys).
    Reference: weiliu89/caffe, MhLiao/TextBoxes_plusplus, sfzhang15/FaceBoxes and synopsys-caffe prior_box_layer.cpp
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
        args |= {"denser_boxes": True} if p.denser_prior_boxes else {}
        args |= {"densified": True} if p.faceboxes and not p.keras else {}
        return args | ({"order": order_of(p)} if order_of(p) != "ssd" else {})

    @classmethod
    def stand_in(cls, layer: Message) -> type[Layer]:
        """OpenCV's PriorBox with widths and heights is Intel's PriorBoxClustered; Synopsys calls them box_width."""
        p = layer.prior_box_param
        return PriorBoxClustered if cls is PriorBox and (p.has("width") or p.has("box_width")) else cls

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
        densified: bool = False,
        order: str = "ssd",
        yx: bool = False,
    ) -> None:
        super().__init__()
        self.boxes = priors_of(min_sizes, max_sizes, aspect_ratios, flip, order, densified)
        self.clip, self.variance, self.image_size, self.step, self.offset = clip, variance, image_size, step, offset
        self.denser_boxes, self.yx = denser_boxes, yx

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        height, width = x.shape[2:]
        image_h, image_w = self.image_size or image.shape[2:]
        step_h, step_w = self.step or (image_h / height, image_w / width)
        # SSD keeps centers and sizes in float32, and divides in float64.
        cy = (torch.arange(height, dtype=torch.float32) + self.offset) * step_h
        cx = (torch.arange(width, dtype=torch.float32) + self.offset) * step_w
        w, h, right, down, cut = torch.tensor(self.boxes, dtype=torch.float32).double().unbind(1)
        cy, cx = cy.double().reshape(-1, 1, 1) + down, cx.double().reshape(1, -1, 1) + right
        shape = (height, width, len(self.boxes))
        sides = [(cx - w / 2) / image_w, (cy - h / 2) / image_h, (cx + w / 2) / image_w, (cy + h / 2) / image_h]
        sides = [side + cut * (1 if k < 2 else -1) for k, side in enumerate(sides)]
        boxes = torch.stack([sides[k].expand(shape) for k in ((1, 0, 3, 2) if self.yx else (0, 1, 2, 3))], 3)
        if self.denser_boxes:
            lower_by = step_h * (1 - self.offset) / image_h
            lower = boxes + lower_by * torch.tensor([1, 0, 1, 0] if self.yx else [0, 1, 0, 1])
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
        widths, heights = (tuple(decimal(n) for n in sizes) for sizes in clustered_sizes(p))
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
        yx: bool = False,
    ) -> None:
        super().__init__((), clip=clip, variance=variance, image_size=image_size, step=step, offset=offset, yx=yx)
        self.boxes = [Prior(width, height) for width, height in zip(widths, heights, strict=True)]


class DetectionOutput(Layer):
    """SSD's last step: decodes the boxes, and for every image and class keeps the best that do not overlap.

    Takes loc (N, P * 4), conf (N, P * num_classes) and the priors (1, 2, P * 4), and gives (1, 1, found, 7), a row
    for each box: image, label, score, x1, y1, x2, y2. The rows go by image and label, the best score first. Nothing
    found at all: a row of -1 for each image. With share_location false, loc has a box for every class. Without an
    nms_param nothing is suppressed: every prior is a row for every class, whatever its score. Two more bottoms
    (RefineDet: conf (N, P * 2) and loc of the first stage) correct the priors and drop those of little objectness.
    ``normalized: false`` (OpenVINO): the priors (1, 2, P * 5) are an image and a box in pixels, of input_width and
    input_height. One more bottom alone is an image to show, and unused. ``polygons`` (TextBoxes++): loc has the four
    corners of a polygon, too, as differences from those of the prior, and so have the rows, (1, 1, found, 15).
    ``maps`` (Synopsys): conf of each feature map, then loc of each, then the priors; ``as_maps``: these are as the
    convolutions made them, loc (N, boxes * 4, H, W) and conf (N, num_classes, boxes, H * W), and the boxes go by
    number, row and column.

    Differs from PyTorch: the number of rows depends on the values, so torch.export does not support it directly.
    Of equal scores the earlier box comes first; in SSD, the order is undefined. Nothing is saved or shown.
    Reference: weiliu89/caffe, sfzhang15/RefineDet, MhLiao/TextBoxes_plusplus and synopsys-caffe
    detection_output_layer.cpp, bbox_util.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        p = p.detection_output_param
        maps = maps_of(p, len(bottoms))
        refined = len(bottoms) == 5 and not maps
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
        args |= {"polygons": True} if p.use_polygon else {}
        args |= {"maps": maps, "as_maps": bool(p.no_permute)} if maps else {}
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
        polygons: bool = False,
        maps: int = 0,
        as_maps: bool = False,
    ) -> None:
        super().__init__()
        self.pixels, self.polygons, self.maps, self.as_maps = pixels, polygons, maps, as_maps
        self.num_classes, self.background_label_id, self.share_location = (
            num_classes,
            background_label_id,
            share_location,
        )
        self.nms_threshold, self.eta, self.top_k, self.keep_top_k = nms_threshold, eta, top_k, keep_top_k
        self.confidence_threshold, self.objectness_score = confidence_threshold, objectness_score
        self.code_type, self.variance_encoded_in_target = code_type, variance_encoded_in_target

    def forward(self, *bottoms: Tensor) -> Tensor:
        boxes, scores = self.candidates(*bottoms)
        rows = []
        for image in range(boxes.shape[0]):
            found = self.detect(boxes[image], scores[image])
            rows.append(torch.cat((torch.full_like(found[:, :1], image), found), 1))
        if not any(len(found) for found in rows):
            rows = [torch.tensor([[n] + [-1] * (2 + boxes.shape[-1])]).to(boxes) for n in range(boxes.shape[0])]
        return torch.cat(rows)[None, None]

    def candidates(self, *bottoms: Tensor) -> tuple[Tensor, Tensor]:
        """The boxes (N, P, 1 or classes, 4 or 12) and their scores (N, P, classes), before any is dropped."""
        loc, conf, priors, *first_stage = self.joined(*bottoms) if self.maps else bottoms
        boxes, variances = split_priors(priors) if self.pixels is None else priors_in_pixels(priors, self.pixels)
        if self.variance_encoded_in_target:
            variances = torch.ones_like(variances)
        classes = 1 if self.share_location else self.num_classes
        loc = loc.reshape(loc.shape[0], len(boxes), classes, -1)
        scores = conf.reshape(conf.shape[0], -1, self.num_classes)
        boxes, variances = boxes[None, :, None], variances[None, :, None]
        if len(first_stage) > 1:
            objectness = first_stage[0].reshape(conf.shape[0], -1, 2)[..., 1:]
            scores = scores.where(objectness >= self.objectness_score, 0)
            boxes = decode(first_stage[1].reshape(loc.shape[0], -1, 1, 4), boxes, variances, self.code_type)
        decoded = decode(loc[..., :4], boxes, variances, self.code_type)
        if self.polygons:
            decoded = torch.cat((decoded, polygons(loc[..., 4:], boxes, variances)), -1)
        return decoded, scores

    def infer(self, *bottoms: Tensor) -> Tensor:
        return bottoms[0].new_empty(1, 1, 1, 15 if self.polygons else 7)

    def joined(self, *bottoms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """loc, conf and priors, as in SSD, of those of several feature maps."""
        confs, locs = bottoms[: self.maps], bottoms[self.maps : 2 * self.maps]
        priors = torch.cat([one.flatten(2) for one in bottoms[2 * self.maps :]], 2)
        if not self.as_maps:
            return (
                torch.cat([one.flatten(1) for one in locs], 1),
                torch.cat([one.flatten(1) for one in confs], 1),
                priors,
            )
        classes = 1 if self.share_location else self.num_classes
        counts = [one.shape[1] // 4 // classes for one in locs]
        places = [one.shape[2] * one.shape[3] for one in locs]
        # boxes by number, then by place; each with its classes and its four numbers
        loc = torch.cat(
            [
                one.reshape(one.shape[0], count, classes, 4, -1).permute(0, 1, 4, 2, 3).flatten(1)
                for one, count in zip(locs, counts, strict=True)
            ],
            1,
        )
        conf = torch.cat([one.flatten(2).transpose(1, 2) for one in confs], 1)
        parts = torch.split(priors[0, 0], [4 * count * place for count, place in zip(counts, places, strict=True)])
        boxes = [
            part.reshape(place, count, 4).transpose(0, 1).flatten()
            for part, count, place in zip(parts, counts, places, strict=True)
        ]
        return loc, conf, torch.stack((torch.cat(boxes), priors[0, 1]))[None]  # variances stay in their order, as there

    def detect(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """Of one image, with boxes (P, 1 or classes, 4 or 12) and scores (P, classes): rows label, score, the box."""
        found = []
        for label in range(self.num_classes):
            if label == self.background_label_id:
                continue
            box, score = boxes[:, 0 if self.share_location else label], scores[:, label]
            if self.nms_threshold is not None:
                index = (score > self.confidence_threshold).nonzero().squeeze(1)
                index = index[score[index].sort(descending=True, stable=True).indices][: self.top_k]
                index = index[suppress(box[index, :4], score[index], self.nms_threshold, self.eta)]
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


def polygons(code: Tensor, priors: Tensor, variances: Tensor) -> Tensor:
    """The corners (..., 8) of polygons, which are said as parts of the prior's size, off its corners in their order.

    Source: DecodeBBoxPolygon of TextBoxes++' bbox_util.cpp.
    """
    size = priors[..., 2:] - priors[..., :2]
    corners = torch.cat([priors[..., k : k + 1] for k in (0, 1, 2, 1, 2, 3, 0, 3)], -1)
    return corners + code * torch.cat([variances[..., :2] * size] * 4, -1)


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
        **({"yx": True} if p.schema and "yx_order" in p.schema.fields and p.yx_order else {}),
    }
