"""Detection in several stages, and instance segmentation: MNC, MS-CNN, Cascade R-CNN; the peaks of OpenPose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from caffe_port.formats.message import Message, decimal
from caffe_port.layers.forks.detection import suppress
from caffe_port.layers.forks.rcnn import regions, round_away
from caffe_port.layers.layer import Layer
from caffe_port.signatures.forks.cascade import box_norm
from caffe_port.signatures.forks.rcnn import pooled_size
from caffe_port.typing import Shape


class ROIWarping(Layer):
    """The value at the upper left corner of each bin of each region, between pixels. From MNC.

    Takes features and regions as ROIPooling does. Corners are scaled, then rounded, and the region ends at its last
    pixel. Between pixels values are interpolated; more than half a pixel off the image they are 0.

    Differs from PyTorch: torchvision.ops.roi_align takes the mean of values within the bin. Differs from Caffe: MNC's
    first version, until October 2016, took the greatest of several values in a bin.
    Reference: daijifeng001/caffe-mnc roi_warping_layer.cu
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"output_size": pooled_size(p), "spatial_scale": p.spatial_scale}

    def __init__(self, output_size: tuple[int, int], spatial_scale: float = 1.0) -> None:
        super().__init__()
        self.output_size, self.spatial_scale = output_size, spatial_scale

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        rois = regions(rois, x)
        corners = round_away(rois[:, 1:] * self.spatial_scale)
        rows = self.taps(corners[:, 1], corners[:, 3], self.output_size[0], x.shape[2])
        columns = self.taps(corners[:, 0], corners[:, 2], self.output_size[1], x.shape[3])
        image = rois[:, :1].long()
        top = [  # one by one: all at once would need very much memory
            torch.einsum("chw,ph,qw->cpq", x.index_select(0, image[r])[0], rows[r], columns[r])
            for r in range(rois.shape[0])
        ]
        return torch.stack(top)

    def taps(self, start: Tensor, end: Tensor, bins: int, size: int) -> Tensor:
        """What each pixel adds to each bin of each region, (R, bins, size)."""
        step = (end - start).clamp(min=0) / bins
        place = start[:, None] + torch.arange(bins, device=start.device) * step[:, None]
        counts = (place >= -0.5) & (place <= size - 0.5)
        pixel = torch.arange(size, device=start.device)
        taps = (1 - (pixel - place.clamp(0, size - 1)[..., None]).abs()).clamp(min=0)
        return taps * counts[..., None]


class MaskPooling(Layer):
    """Features (N, C, H, W) times masks (N, 1, H, W). From MNC.

    Reference: daijifeng001/caffe-mnc mask_pooling_layer.cu
    """

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * mask.reshape(x.shape[0], 1, *x.shape[2:])


class BoxOutput(Layer):
    """The region proposals of MS-CNN: boxes of several grids, the best that do not overlap.

    Every bottom (N, classes + 4, H, W) is a grid whose pixels have a box each, of a field's size and in steps of
    ``downsample_rate``; its score is the greatest score of a class minus that of the background. Gives the regions
    (R, 5), rows of image, x1, y1, x2, y2, and as a second top the same with the score (R, 6). No region at all gives
    one, from (1, 1) to (10, 10).

    Differs from PyTorch: the number of rows depends on the values, so torch.export does not support it directly. Of
    equal scores the later box comes first.
    Reference: zhaoweicai/mscnn box_output_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        with_scores, norm, p = len(p.top) > 1, norm_of(p), p.box_output_param
        fields = [[int(n) for n in getattr(p, name)] for name in ("field_h", "field_w", "downsample_rate")]
        args: dict[str, Any] = {
            "fields": tuple(zip(*fields, strict=True)),
            "least_score": p.fg_thr,
            "overlap": p.iou_thr,
            "shift": p.field_xyr,
            "stretch": p.field_whr,
            "pre_nms": p.max_nms_num,
            "post_nms": p.max_post_nms_num,
            "min_size": p.min_size,
        }
        return args | norm | ({"with_scores": True} if with_scores else {})

    def __init__(
        self,
        fields: tuple[tuple[int, int, int], ...],
        least_score: float = 0.0,
        overlap: float = 0.5,
        shift: float = 2.0,
        stretch: float = 2.0,
        pre_nms: int = 0,
        post_nms: int = 0,
        min_size: float = 15.0,
        mean: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
        deviation: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
        with_scores: bool = False,
    ) -> None:
        super().__init__()
        self.fields, self.least_score, self.overlap = fields, least_score, overlap
        self.shift, self.stretch = shift, stretch
        self.pre_nms, self.post_nms, self.min_size = pre_nms or None, post_nms or None, min_size
        self.mean, self.deviation, self.with_scores = mean, deviation, with_scores

    def forward(self, *grids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        rows = []
        for image in range(grids[0].shape[0]):
            found = torch.cat([self.boxes(x[image], *field) for x, field in zip(grids, self.fields, strict=True)]).flip(
                0
            )
            large = (found[:, 2:4] - found[:, :2] >= self.min_size).all(1)
            found = found[large & (found[:, 4] >= self.least_score)]
            found = found[found[:, 4].sort(descending=True, stable=True).indices][: self.pre_nms]
            kept = suppress(found[:, :4], found[:, 4], self.overlap)[: self.post_nms]
            rows.append(torch.cat((torch.full_like(found[kept, :1], image), found[kept]), 1))
        return proposals(torch.cat(rows), self.with_scores)

    def infer(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        rois = bottoms[0].new_empty(1, 5)
        return (rois, bottoms[0].new_empty(1, 6)) if self.with_scores else rois

    def boxes(self, x: Tensor, height: int, width: int, rate: int) -> Tensor:
        """Rows x1, y1, x2, y2, score of the grid of one image, (classes + 4, H, W)."""
        h, w = x.shape[1:]
        x = x.flatten(1)
        score = x[1:-4].amax(0) - x[0]
        mean, deviation = (torch.tensor(values).to(x)[:, None] for values in (self.mean, self.deviation))
        code = x[-4:] * deviation + mean
        pixel = torch.arange(h * w, device=x.device)
        center_x = code[0].clamp(-1 / self.shift, 1 / self.shift) * width + (pixel % w + 0.5) * rate
        center_y = code[1].clamp(-1 / self.shift, 1 / self.shift) * height + (pixel // w + 0.5) * rate
        limit = math.log(self.stretch)
        wide, high = width * code[2].clamp(-limit, limit).exp(), height * code[3].clamp(-limit, limit).exp()
        left, upper = (center_x - wide / 2).clamp(min=0), (center_y - high / 2).clamp(min=0)
        right, lower = (left + wide).clamp(max=w * rate), (upper + high).clamp(max=h * rate)
        return torch.stack((left, upper, right, lower, score), 1)


class BoxGroupOutput(Layer):
    """The region proposals of Cascade R-CNN: boxes of several grids, the best that do not overlap.

    Two bottoms a grid: probabilities (N * B, classes, H, W), the first class being the background, and corrections
    (N * B, 4, H, W), of B boxes at each pixel, whose sizes are a group's field_w and field_h. The score of a box is
    1 minus the probability of the background. Gives what BoxOutput gives.

    Differs from PyTorch: the number of rows depends on the values, so torch.export does not support it directly.
    Of equal scores the earlier box comes first; in the original, the order is undefined.
    Reference: zhaoweicai/cascade-rcnn box_group_output_layer.cpp, bbox_util.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        with_scores, norm, p = len(p.top) > 1, norm_of(p), p.box_group_output_param
        args: dict[str, Any] = {
            "groups": tuple(
                (tuple(zip(map(int, g.field_h), map(int, g.field_w), strict=True)), int(g.stride))
                for g in p.box_group_param
            ),
            "least_score": decimal(p.fg_thr),
            "overlap": decimal(p.iou_thr),
            "shift": p.field_xyr,
            "stretch": p.field_whr,
            "pre_nms": p.max_nms_num,
            "post_nms": p.max_post_nms_num,
            "min_size": p.min_size,
        }
        args |= {} if p.nms_type == "IOU" else {"of": p.nms_type}
        return args | norm | ({"with_scores": True} if with_scores else {})

    def __init__(
        self,
        groups: tuple[tuple[tuple[tuple[int, int], ...], int], ...],
        least_score: float = 0.0,
        overlap: float = 0.5,
        shift: float = 2.0,
        stretch: float = 2.0,
        pre_nms: int = 0,
        post_nms: int = 0,
        min_size: float = 15.0,
        of: str = "IOU",
        mean: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
        deviation: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
        with_scores: bool = False,
    ) -> None:
        super().__init__()
        self.groups, self.least_score, self.overlap, self.of = groups, least_score, overlap, of
        self.shift, self.stretch = shift, stretch
        self.pre_nms, self.post_nms, self.min_size = pre_nms or None, post_nms or None, min_size
        self.mean, self.deviation, self.with_scores = mean, deviation, with_scores

    def forward(self, *grids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        rows = []
        for image in range(grids[0].shape[0] // len(self.groups[0][0])):
            found = torch.cat(
                [
                    self.boxes(prob, code, image, *group)
                    for prob, code, group in zip(grids[::2], grids[1::2], self.groups, strict=True)
                ]
            )
            large = (found[:, 2:4] - found[:, :2] + 1 >= self.min_size).all(1)
            found = found[large & (found[:, 4] >= self.least_score)]
            found = found[found[:, 4].sort(descending=True, stable=True).indices][: self.pre_nms]
            kept = apart(found[:, :4], self.overlap, self.of)[: self.post_nms]
            rows.append(torch.cat((torch.full_like(found[kept, :1], image), found[kept]), 1))
        return proposals(torch.cat(rows), self.with_scores)

    def infer(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        rois = bottoms[0].new_empty(1, 5)
        return (rois, bottoms[0].new_empty(1, 6)) if self.with_scores else rois

    def boxes(self, prob: Tensor, code: Tensor, image: int, fields: tuple[tuple[int, int], ...], stride: int) -> Tensor:
        """Rows x1, y1, x2, y2, score of the grid of one image."""
        count, (h, w) = len(fields), prob.shape[2:]
        here = slice(image * count, (image + 1) * count)
        height, width = torch.tensor(fields, device=prob.device, dtype=prob.dtype).T[..., None]
        code = code[here].flatten(2)
        mean, deviation = (code.new_tensor(values)[:, None] for values in (self.mean, self.deviation))
        x, y, wide, high = (code * deviation + mean).unbind(1)
        pixel = torch.arange(h * w, device=prob.device)
        most, limit = 1 / self.shift, math.log(self.stretch)
        x = x.clamp(-most, most) * width + (pixel % w + 0.5) * stride
        y = y.clamp(-most, most) * height + (pixel // w + 0.5) * stride
        wide, high = width * wide.clamp(-limit, limit).exp(), height * high.clamp(-limit, limit).exp()
        left, upper = x - wide / 2, y - high / 2
        right, lower = (left + wide - 1).clamp(max=w * stride), (upper + high - 1).clamp(max=h * stride)
        score = 1 - prob[here, 0].flatten(1)
        return torch.stack((left.clamp(min=0), upper.clamp(min=0), right, lower, score), 2).flatten(0, 1)


class DecodeBBox(Layer):
    """Regions (R, 5), corrected by the second of two boxes (R, 8): the regions of the next stage of Cascade R-CNN.

    In training, regions that are left without extent are dropped, and those which overlap a true box by gt_iou_thr or
    more, where a third bottom says so in its last column.

    Reference: zhaoweicai/cascade-rcnn decode_bbox_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"most_overlap": decimal(p.decode_bbox_param.gt_iou_thr), **norm_of(p)}

    def __init__(
        self,
        most_overlap: float = 0.95,
        mean: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
        deviation: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.most_overlap, self.mean, self.deviation = most_overlap, mean, deviation

    def forward(self, code: Tensor, rois: Tensor, overlaps: Tensor | None = None) -> Tensor:
        regions_ = rois.flatten(1)
        corners = decoded(code.flatten(1)[:, 4:], regions_[:, 1:], self.mean, self.deviation)
        top = torch.cat((regions_[:, :1], corners), 1).reshape(rois.shape)
        if not self.training:
            return top
        good = (corners[:, :2] <= corners[:, 2:]).all(1)
        if overlaps is not None:
            good = good & (overlaps.flatten(1)[:, -1] < self.most_overlap)
        return top[good]

    def infer(self, *bottoms: Tensor) -> Tensor:
        return torch.empty_like(bottoms[1])


class FrcnnOutput(Layer):
    """The detections of Cascade R-CNN in one image, by class and score: rows image, x1, y1, x2, y2, label, score.

    Takes probabilities (R, classes), corrections (R, 4 * classes) or, not cls_aware, (R, 8), regions (R, 5) or (R, 6),
    and the height and width of the image. Of each class, all that reach conf_thr and do not overlap better ones, and of
    these the max_det_num best. The first row is 0 and six times -1.

    Differs from PyTorch: the number of rows depends on the values, so torch.export does not support it directly.
    Of equal scores the earlier box comes first; in the original, the order is undefined. Nothing is saved.
    Reference: zhaoweicai/cascade-rcnn frcnn_output_layer.cpp, bbox_util.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        norm, by_class, p = norm_of(p), p.bbox_reg_param.cls_aware, p.frcnn_output_param
        args: dict[str, Any] = {
            "least_score": decimal(p.conf_thr),
            "overlap": decimal(p.iou_thr),
            "most": p.max_det_num,
            "by_class": by_class,
        }
        return args | ({} if p.nms_type == "IOU" else {"of": p.nms_type}) | norm

    def __init__(
        self,
        least_score: float = 0.0,
        overlap: float = 0.5,
        most: int = 0,
        by_class: bool = True,
        of: str = "IOU",
        mean: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
        deviation: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.least_score, self.overlap, self.most, self.by_class, self.of = least_score, overlap, most, by_class, of
        self.mean, self.deviation = mean, deviation

    def forward(self, prob: Tensor, code: Tensor, rois: Tensor, size: Tensor) -> Tensor:
        prob, code, corners = prob.flatten(1), code.flatten(1), rois.flatten(1)[:, 1:5]
        height, width = size.flatten()
        rows = []
        for label in range(1, prob.shape[1]):
            place = 4 * label if self.by_class else 4
            boxes = decoded(code[:, place : place + 4], corners, self.mean, self.deviation)
            low, high = boxes[:, :2].clamp(min=0), torch.minimum(boxes[:, 2:], torch.stack((width, height)))
            score = prob[:, label : label + 1]
            found = torch.cat((torch.zeros_like(score), low, high, torch.full_like(score, label), score), 1)
            found = found[found[:, 6] >= self.least_score]
            found = found[found[:, 6].sort(descending=True, stable=True).indices]
            rows.append(found[apart(found[:, 1:5], self.overlap, self.of)])
        kept = torch.cat(rows)
        if self.most and len(kept) > self.most:
            best = kept[:, 6].sort(descending=True, stable=True).indices[: self.most]
            kept = kept[best]
            kept = kept[kept[:, 5].sort(stable=True).indices]
        return torch.cat((kept.new_tensor([[0.0, -1, -1, -1, -1, -1, -1]]), kept))

    def infer(self, *bottoms: Tensor) -> Tensor:
        return bottoms[0].new_empty(1, 7)


class ScaleRoute(Layer):
    """The rows of regions (R, 5) whose square root of area is low_scale or more, and less than high_scale.

    Further bottoms lose the same rows. Where no region is of such a size, the one that comes nearest, by factor, to
    sqrt(low_scale * high_scale) (the one that is given; 256 without both).

    Differs from PyTorch: the number of rows depends on the values, so torch.export does not support it directly.
    Reference: zhaoweicai/cascade-rcnn scale_route_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {
            "low": decimal(p.low_scale) if p.has("low_scale") else None,
            "high": decimal(p.high_scale) if p.has("high_scale") else None,
        }

    def __init__(self, low: float | None = None, high: float | None = None) -> None:
        super().__init__()
        self.low, self.high = low, high
        given = [side for side in (low, high) if side is not None]
        self.middle = math.prod(given) ** (1 / len(given)) if given else 256.0

    def forward(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        corners = bottoms[0].flatten(1)[:, 1:]
        sides = corners[:, 2:] - corners[:, :2]
        scale = ((sides + 1).prod(1) * (sides >= 0).all(1)).sqrt()
        fits = (scale >= (self.low or 0)) & (scale < (self.high or math.inf))
        kept = fits.nonzero()[:, 0]
        if not len(kept):
            kept = (scale / self.middle).log2().abs().argmin(0, keepdim=True)
        tops = tuple(x[kept] for x in bottoms)
        return tops[0] if len(tops) == 1 else tops

    def infer(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        tops = tuple(x.new_empty(1, *x.shape[1:]) for x in bottoms)
        return tops[0] if len(tops) == 1 else tops


def proposals(found: Tensor, with_scores: bool) -> Tensor | tuple[Tensor, Tensor]:
    """Regions (R, 5), and with the score (R, 6); no region at all gives one, from (1, 1) to (10, 10)."""
    if not len(found):
        found = found.new_tensor([[0.0, 1, 1, 10, 10, 0]])
        return (found[:, :5], torch.zeros_like(found)) if with_scores else found[:, :5]
    return (found[:, :5], found) if with_scores else found[:, :5]


def decoded(code: Tensor, corners: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """Boxes (R, 4), corrected by (R, 4): the center by parts of the size, the size by factors. Pixels count.

    Source: DecodeBBoxesWithPrior of bbox_util.cpp.
    """
    code = code * code.new_tensor(deviation) + code.new_tensor(mean)
    size = corners[:, 2:] - corners[:, :2] + 1
    center = (corners[:, :2] + corners[:, 2:]) / 2 + code[:, :2] * size
    size = size * code[:, 2:].exp()
    first = center - (size - 1) / 2
    return torch.cat((first, first + size - 1), 1)


def apart(boxes: Tensor, threshold: float, of: str = "IOU") -> Tensor:
    """Indices of the boxes, the best first, that no better one overlaps by more than ``threshold``.

    Args:
        boxes: corners (B, 4); the last pixels belong to them.
        of: the overlap is a part of the union (IOU), of the smaller box (IOMU) or of the better one (IOFU).

    Source: JaccardOverlap and ApplyNMS of bbox_util.cpp, where boxes in one row of pixels do not overlap.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    valid = (sides >= 0).all(1)
    area = (sides + 1).prod(1) * valid
    left = torch.arange(len(boxes), device=boxes.device)
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low = torch.maximum(boxes[best, :2], boxes[left, :2])
        high = torch.minimum(boxes[best, 2:], boxes[left, 2:])
        touch = (low[:, 0] <= high[:, 0]) & (low[:, 1] < high[:, 1])
        shared = (high - low + 1).prod(1) * touch
        whole = area[best] + area[left] - shared
        if of != "IOU":
            whole = torch.minimum(area[best], area[left]) if of == "IOMU" else area[best].expand_as(shared)
        ratio = torch.where(valid[best] & valid[left] & (whole > 0), shared / whole, 0)
        left = left[ratio <= threshold]
    return torch.stack(kept) if kept else left


class Nms(Layer):
    """The peaks of heat maps (N, C, H, W): pixels above ``threshold`` that are greater than their eight neighbors.

    Gives (N, num_parts, max_peaks + 1, 3): first how many peaks there are, then x, y and value of each, in the order of
    the pixels. x and y are the center of the positive values at most 3 pixels away, which the value weighs. The map
    after the last part (the background) is left out.

    Differs from Caffe: places without a peak hold zeros, not what was there before; the number of peaks does not exceed
    max_peaks; and every image of a batch is treated by itself, the original takes one image. As in the original, the
    first row and column do not count in a center, nor do rows from the width on; a row after the last is read from the
    map that follows.
    Reference: CMU-Perceptual-Computing-Lab/caffe_rtpose nms_layer.cu
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"parts": p.num_parts, "peaks": p.max_peaks, "threshold": decimal(p.threshold)}

    def __init__(self, parts: int = 15, peaks: int = 20, threshold: float = 0.5) -> None:
        super().__init__()
        self.parts, self.peaks, self.threshold = parts, peaks, threshold

    def forward(self, x: Tensor) -> Tensor:
        maps, (height, width) = x[:, : self.parts], x.shape[2:]
        wide = torch.nn.functional.pad(maps, (1, 1, 1, 1), value=torch.inf)  # none of the border is a peak
        peak = maps > self.threshold
        for down, right in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)):
            peak = peak & (maps > wide[:, :, down : down + height, right : right + width])
        peak, values = peak.flatten(2), maps.flatten(2)
        place = torch.where(peak, peak.long().cumsum(2), 0).clamp(max=self.peaks + 1)
        at = [part.flatten(2) for part in self.centers(x)]
        row = torch.stack((*at, values), 3)
        top = x.new_zeros(*maps.shape[:2], self.peaks + 2, 3).scatter(2, place[..., None].expand_as(row), row)
        count = peak.sum(2).clamp(max=self.peaks).to(x.dtype)
        first = torch.stack((count, torch.zeros_like(count), torch.zeros_like(count)), 2)
        return torch.cat((first[:, :, None], top[:, :, 1:-1]), 2)

    def centers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x and y of the center of the positive values around every pixel of every part."""
        (n, channels, height, width), reach = x.shape, 3
        column = torch.arange(width, device=x.device)
        weight = x.clamp(min=0).reshape(n, channels * height, width) * (column > 0)
        spread = torch.stack((weight, weight * column), 1)
        across = torch.nn.functional.pad(spread, (reach, reach)).unfold(3, 2 * reach + 1, 1).sum(4)
        line = torch.arange(height, device=x.device)
        first = torch.arange(self.parts, device=x.device)[:, None] * height
        total = moment_x = moment_y = x.new_zeros(n, self.parts, height, width)
        for down in range(-reach, reach + 1):
            row = line + down
            counts = ((row > 0) & (row < width) & (first + row < channels * height))[..., None]
            index = (first + row).clamp(0, channels * height - 1).flatten()
            near = across.index_select(2, index).reshape(n, 2, self.parts, height, width) * counts
            total, moment_x = total + near[:, 0], moment_x + near[:, 1]
            moment_y = moment_y + near[:, 0] * row[:, None]
        return moment_x / total, moment_y / total


# -- parameters, from Caffe ---------------------------------------------------------------------------------------


def norm_of(layer: Message) -> dict[str, Any]:
    """``bbox_reg_param``'s means and deviations of the four numbers of a box, where it gives both."""
    norm = box_norm(layer)
    return {} if norm is None else {"mean": tuple(map(decimal, norm[0])), "deviation": tuple(map(decimal, norm[1]))}
