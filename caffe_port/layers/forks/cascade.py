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
from caffe_port.signatures.forks.rcnn import pooled_size
from caffe_port.typing import Shape


class ROIWarping(Layer):
    """The greatest of several values between pixels, in each bin of each region. From MNC.

    Takes features and regions as ROIPooling does. Corners are scaled, then rounded, and the region ends at its last
    pixel; the values lie on a grid that spans the bin, its edges included, with steps of a pixel at most. Between
    pixels they are interpolated; those more than half a pixel off the image do not count.

    Differs from PyTorch: torchvision.ops.roi_align takes the mean of values within the bin.
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
        rows, in_rows = self.places(corners[:, 1], corners[:, 3], self.output_size[0], x.shape[2])
        columns, in_columns = self.places(corners[:, 0], corners[:, 2], self.output_size[1], x.shape[3])
        image, top = rois[:, :1].long(), []
        for r in range(rois.shape[0]):  # one by one: all at once would need very much memory
            values = torch.einsum("chw,pih,qjw->cpiqj", x.index_select(0, image[r])[0], rows[r], columns[r])
            inside = in_rows[r][:, :, None, None] & in_columns[r]
            best = values.where(inside, -math.inf).amax((2, 4))
            top.append(best.where(best > -math.inf, 0))
        return torch.stack(top)

    def places(self, start: Tensor, end: Tensor, bins: int, size: int) -> tuple[Tensor, Tensor]:
        """For each region, bin and step: what each pixel adds, (R, bins, steps, size), and whether it counts."""
        length = (end - start).clamp(min=0)
        steps = (length / bins).ceil()
        step = torch.arange(math.ceil(size / bins) + 1, device=start.device)  # regions are not larger than the image
        fraction = step / steps[:, None].clamp(min=1)
        bin_ = torch.arange(bins, device=start.device)[None, :, None] + fraction[:, None]
        place = start[:, None, None] + bin_ * (length / bins)[:, None, None]
        counts = (step <= steps[:, None])[:, None] & (place >= -0.5) & (place <= size - 0.5)
        place = place.clamp(0, size - 1)
        pixel = torch.arange(size, device=start.device)
        return (1 - (pixel - place[..., None]).abs()).clamp(min=0), counts


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

    Differs from PyTorch: the number of rows depends on the values, so torch.export does not support it directly.
    Of equal scores the earlier box comes first; the original takes the later one.
    Reference: zhaoweicai/mscnn box_output_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        with_scores, norm, p = len(p.top) > 1, box_norm(p), p.box_output_param
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
            found = torch.cat([self.boxes(x[image], *field) for x, field in zip(grids, self.fields, strict=True)])
            large = (found[:, 2:4] - found[:, :2] >= self.min_size).all(1)
            found = found[large & (found[:, 4] >= self.least_score)]
            found = found[found[:, 4].sort(descending=True, stable=True).indices][: self.pre_nms]
            kept = suppress(found[:, :4], found[:, 4], self.overlap)[: self.post_nms]
            rows.append(torch.cat((torch.full_like(found[kept, :1], image), found[kept]), 1))
        top = torch.cat(rows)
        if not len(top):
            nothing = top.new_tensor([[0.0, 1, 1, 10, 10]])
            return (nothing, top.new_zeros(1, 6)) if self.with_scores else nothing
        return (top[:, :5], top) if self.with_scores else top[:, :5]

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


class Nms(Layer):
    """The peaks of heat maps (N, C, H, W): pixels above ``threshold`` that are greater than their four neighbors.

    Gives (N, num_parts, max_peaks + 1, 3): first how many peaks there are, then x, y and value of each, in the order of
    the pixels. The map after the last part (the background) is left out.

    Differs from Caffe: places without a peak hold zeros, not what was there before; and the number of peaks does not
    exceed max_peaks.
    Reference: CMU-Perceptual-Computing-Lab/caffe_rtpose nms_layer.cpp, nms_layer.cu
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"parts": p.num_parts, "peaks": p.max_peaks, "threshold": decimal(p.threshold)}

    def __init__(self, parts: int = 15, peaks: int = 20, threshold: float = 0.5) -> None:
        super().__init__()
        self.parts, self.peaks, self.threshold = parts, peaks, threshold

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, : self.parts]
        wide = torch.nn.functional.pad(x, (1, 1, 1, 1))
        neighbours = (wide[:, :, :-2, 1:-1], wide[:, :, 2:, 1:-1], wide[:, :, 1:-1, :-2], wide[:, :, 1:-1, 2:])
        peak = x > self.threshold
        for other in neighbours:
            peak = peak & (x > other)
        peak, values = peak.flatten(2), x.flatten(2)
        place = torch.where(peak, peak.long().cumsum(2), 0).clamp(max=self.peaks + 1)
        pixel = torch.arange(values.shape[2], device=x.device)
        at = [(part.to(x.dtype)).expand_as(values) for part in (pixel % x.shape[3], pixel // x.shape[3])]
        row = torch.stack((*at, values), 3)
        top = x.new_zeros(*x.shape[:2], self.peaks + 2, 3).scatter(2, place[..., None].expand_as(row), row)
        count = peak.sum(2).clamp(max=self.peaks).to(x.dtype)
        first = torch.stack((count, torch.zeros_like(count), torch.zeros_like(count)), 2)
        return torch.cat((first[:, :, None], top[:, :, 1:-1]), 2)


# -- parameters, from Caffe ---------------------------------------------------------------------------------------


def box_norm(layer: Message) -> dict[str, Any]:
    """``bbox_reg_param``'s means and deviations of the four numbers of a box, where it is given."""
    if not layer.has("bbox_reg_param"):
        return {}
    made = {}
    for name, field in (("mean", "bbox_mean"), ("deviation", "bbox_std")):
        values = getattr(layer.bbox_reg_param, field) if layer.bbox_reg_param.has(field) else []
        if not isinstance(values, list) or len(values) != 4:
            return {}
        made[name] = tuple(float(v) for v in values)
    return made
