"""Two-stage detection: proposing regions, and pooling the features in them. From Fast R-CNN, Faster R-CNN, R-FCN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from caffe_port.formats.message import Message, decimal
from caffe_port.layers.forks.detection import suppress
from caffe_port.layers.layer import Layer, check_count
from caffe_port.signatures.forks.rcnn import anchors_of, classes_of, deformable_kernel, pooled_size, settled_scale
from caffe_port.typing import Shape


class ROIPooling(Layer):
    """Same as torchvision.ops.RoIPool: the greatest value in each bin of each region.

    Takes the features (N, C, H, W) and the regions (R, 5), rows of image, x1, y1, x2, y2 in pixels of the net's input;
    gives (R, C, pooled_h, pooled_w). Corners are scaled, then rounded, and the last pixel belongs to the region.

    Differs from PyTorch: regions may have shape (R, 5, 1, 1). Where Caffe aborts, a region naming an image that is
    not in the batch, the nearest one is taken (torchvision would read beyond the features). ``pad_ratio`` (MS-CNN)
    first enlarges each region on every side by that part of its size.
    Reference: rbgirshick/caffe-fast-rcnn and zhaoweicai/mscnn roi_pooling_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        args: dict[str, Any] = {"output_size": pooled_size(p), "spatial_scale": p.spatial_scale}
        return args | ({"pad_ratio": decimal(p.pad_ratio)} if p.pad_ratio else {})

    def __init__(self, output_size: tuple[int, int], spatial_scale: float = 1.0, pad_ratio: float = 0.0) -> None:
        super().__init__()
        self.output_size, self.spatial_scale, self.pad_ratio = output_size, spatial_scale, pad_ratio

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        import torchvision  # here: it takes as long to load as torch itself, and few nets need it

        rois = regions(rois, x)
        if self.pad_ratio:
            rois = enlarged(rois, self.pad_ratio)
            # Round half away from zero, as C does; torchvision rounds what is exactly scaled then.
            corners = round_away(rois[:, 1:] * self.spatial_scale)
            return torchvision.ops.roi_pool(x, torch.cat((rois[:, :1], corners), 1), self.output_size, 1.0)  # type: ignore[no-any-return]
        return torchvision.ops.roi_pool(x, rois, self.output_size, self.spatial_scale)  # type: ignore[no-any-return]


class RegionPooling(Layer):
    """The greatest value, or 0, in each bin of each region without its inner rectangle (MR-CNN, LocNet).

    Takes the features (N, C, H, W) and the regions (R, 9), rows of image, x1, y1, x2, y2 and the same of the inner
    rectangle, in pixels of the net's input; gives (R, C, pooled_h, pooled_w). Each rectangle first loses ``offset``
    pixels on every side. A region naming an image that is not in the batch takes the nearest one.

    Reference: gidariss/caffe_LocNet region_pooling_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        args = {"output_size": (p.pooled_h, p.pooled_w), "spatial_scale": p.spatial_scale}
        return args | {"offset": decimal(p.offset)}

    def __init__(self, output_size: tuple[int, int], spatial_scale: float = 1.0, offset: float = 6.0) -> None:
        super().__init__()
        self.output_size, self.spatial_scale, self.offset = output_size, spatial_scale, offset

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        import torchvision  # here: it takes as long to load as torch itself, and few nets need it

        rois = regions(rois, x)
        x = x.clamp(min=0)  # each maximum begins at 0
        columns, rows = torch.arange(x.shape[3], device=x.device), torch.arange(x.shape[2], device=x.device)[:, None]
        outer, inner = self.rectangle(rois[:, 1:5]), self.rectangle(rois[:, 5:9])
        tops = [x.new_zeros(0, x.shape[1], *self.output_size)]
        for image, box, hidden in zip(rois[:, :1].long(), outer, inner, strict=True):
            left, top, right, bottom = hidden
            inside = (columns > left) & (columns < right) & (rows > top) & (rows < bottom)
            ring = x.index_select(0, image).masked_fill(inside, 0)
            tops.append(torchvision.ops.roi_pool(ring, [box[None]], self.output_size, 1.0))
        return torch.cat(tops)

    def rectangle(self, corners: Tensor) -> Tensor:
        """The corners (R, 4) as pixels of the features; one that is turned around becomes its middle."""
        start = ((corners[:, :2] + 1 + self.offset) * self.spatial_scale + 0.5).floor()
        end = ((corners[:, 2:] + 1 - self.offset) * self.spatial_scale - 0.5).ceil()
        middle = ((start + end) / 2).trunc()
        turned = start > end
        return torch.cat((torch.where(turned, middle, start), torch.where(turned, middle, end)), 1)


class ROIAlign(Layer):
    """Same as torchvision.ops.RoIAlign with aligned=False, Mask R-CNN's original operator.

    Takes features and regions as ROIPooling does. ``sampling_ratio`` 0 or less means one sample for each pixel of the
    bin. roi_end_mode 1 counts the last pixel into the region.

    The parameters are ``roi_align_param``, or ``roi_pooling_param`` as in the ports of Mask R-CNN.

    ``corners`` is MS-CNN's and Cascade R-CNN's layer of this name: the values at the corners of the bins,
    (R, C, pooled_h + 1, pooled_w + 1), interpolated between the pixels' centers, 0 off the image; ``pad_ratio`` first
    enlarges each region on every side by that part of its size. A Pooling of four corners follows there.

    Reference: Ascend's ROIAlign; zhaoweicai/cascade-rcnn roi_align_layer.cu
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        own = cls.signature.parameters(p)
        args: dict[str, Any] = {"output_size": pooled_size(own), "spatial_scale": own.spatial_scale}
        if not p.has("roi_align_param"):
            return args | ({"corners": True, "pad_ratio": decimal(own.pad_ratio)} if own.corners else {})
        return args | {
            "sampling_ratio": own.sampling_ratio if own.sampling_ratio > 0 else -1,
            "last_pixel_inside": own.roi_end_mode == 1,
        }

    def __init__(
        self,
        output_size: tuple[int, int],
        spatial_scale: float = 1.0,
        sampling_ratio: int = -1,
        last_pixel_inside: bool = False,
        corners: bool = False,
        pad_ratio: float = 0.0,
    ) -> None:
        super().__init__()
        self.output_size, self.spatial_scale, self.sampling_ratio = output_size, spatial_scale, sampling_ratio
        self.last_pixel_inside, self.corners, self.pad_ratio = last_pixel_inside, corners, pad_ratio

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        import torchvision  # here: it takes as long to load as torch itself, and few nets need it

        rois = regions(rois, x)
        if self.corners:
            return self.at_corners(x, rois)
        if self.last_pixel_inside:
            rois = torch.cat((rois[:, :3], rois[:, 3:] + 1), 1)
        return torchvision.ops.roi_align(x, rois, self.output_size, self.spatial_scale, self.sampling_ratio)  # type: ignore[no-any-return]

    def at_corners(self, x: Tensor, rois: Tensor) -> Tensor:
        """The values at the corners of the bins of each region."""
        boxes = enlarged(rois, self.pad_ratio)[:, 1:] * self.spatial_scale - 0.5
        sides = boxes[:, 2:] - boxes[:, :2]
        columns = self.taps(boxes[:, 0], sides[:, 0], self.output_size[1], x.shape[3])
        rows = self.taps(boxes[:, 1], sides[:, 1], self.output_size[0], x.shape[2])
        rows = rows * (sides > 0).all(1)[:, None, None]
        top = [  # one by one: all at once would need very much memory
            torch.einsum("chw,ph,qw->cpq", x.index_select(0, rois[r, :1].long())[0], rows[r], columns[r])
            for r in range(rois.shape[0])
        ]
        return torch.stack(top)

    def taps(self, start: Tensor, side: Tensor, bins: int, size: int) -> Tensor:
        """What each pixel adds at each corner, (R, bins + 1, size)."""
        place = start[:, None] + torch.arange(bins + 1, device=start.device) * (side / bins)[:, None]
        inside = (place >= -0.5) & (place <= size - 0.5)
        pixel = torch.arange(size, device=start.device)
        return (1 - (pixel - place.clamp(0, size - 1)[..., None]).abs()).clamp(min=0) * inside[..., None]


class PSROIPooling(Layer):
    """Position-sensitive pooling: every bin of a region is the mean over its pixels, in a channel of its own.

    Takes features (N, output_dim * group_size^2, H, W) and regions (R, 5), as ROIPooling does; gives
    (R, output_dim, group_size, group_size).

    Differs from PyTorch: torchvision.ops.ps_roi_pool scales the corners, then rounds them; here they are rounded first,
    the last pixel belongs to the region, and only the bins are fitted to whole pixels.
    Reference: daijifeng001/caffe-rfcn psroi_pooling_layer.cu
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"output_dim": p.output_dim, "group_size": p.group_size, "spatial_scale": p.spatial_scale}

    def __init__(self, output_dim: int, group_size: int, spatial_scale: float) -> None:
        super().__init__()
        self.output_dim, self.group_size, self.spatial_scale = output_dim, group_size, spatial_scale

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        rois, bins = rois.flatten(1), self.group_size
        start = round_away(rois[:, 1:3]) * self.spatial_scale
        end = (round_away(rois[:, 3:5]) + 1) * self.spatial_scale
        columns = self.inside(start[:, 0], end[:, 0], x.shape[3])
        rows = self.inside(start[:, 1], end[:, 1], x.shape[2])
        area = rows.sum(2)[:, :, None] * columns.sum(2)[:, None]
        total = x.new_zeros(())
        for image in range(x.shape[0]):
            here = rows * (rois[:, 0] == image)[:, None, None]
            channels = x[image].reshape(self.output_dim, bins, bins, *x.shape[2:])
            total = total + torch.einsum("dijhw,rih,rjw->rdij", channels, here, columns)
        return total / area[:, None].clamp(min=1)

    def inside(self, start: Tensor, end: Tensor, size: int) -> Tensor:
        """Which of ``size`` pixels lie in each of the bins of each region: 0 or 1, (R, bins, size)."""
        width = (end - start).clamp(min=0.1) / self.group_size
        bin_ = torch.arange(self.group_size, device=start.device)
        first = (bin_ * width[:, None] + start[:, None]).floor()
        last = ((bin_ + 1) * width[:, None] + start[:, None]).ceil()
        pixel = torch.arange(size, device=start.device)
        return ((pixel >= first[..., None]) & (pixel < last[..., None])).to(start.dtype)


class Proposal(Layer):
    """The region proposals of Faster R-CNN: anchors, corrected, clipped to the image; the best that do not overlap.

    Takes the scores (N, 2 * A, H, W), background first, the corrections (N, 4 * A, H, W), and for each image its
    height, width and scale (1 or N, 3 or more; a fourth one is the horizontal scale). Gives the regions (R, 5), rows of
    image, x1, y1, x2, y2 with the best first, and as a second top their scores (R). Regions of less than min_size count
    with the score 0, so that they come last. ``scale`` counts in base_size, or in pixels (scale_in_pixels,
    brocolli-caffe): there the height and width of the first image hold for all, and min_size is not scaled.

    The same for ``type: "Python"`` of py-faster-rcnn, with its settings for testing: 6000 before, 300 after the choice,
    overlap 0.7, at least 16 pixels wide. It leaves out what is smaller, so that an image may give no region, and its
    scores are (R, 1).

    Differs from PyTorch: the number of rows depends on the values. Equal scores are in the order in which PVANet's sort
    leaves them; in exported programs, and for the Python layer, the earlier one comes first.
    Reference: rbgirshick/py-faster-rcnn proposal_layer.py; sanghoon/caffe and brocolli-caffe proposal_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        p, _ = settled_scale(p)
        stride, ratios, scales = anchors_of(p)
        args: dict[str, Any] = {
            "feat_stride": stride,
            "ratios": tuple(decimal(r) for r in ratios),
            "scales": tuple(decimal(s) for s in scales),
        }
        if p.type != "Python":
            own = p.proposal_param
            args |= {
                "base_size": own.base_size,
                "min_size": own.min_size,
                "pre_nms_topn": own.pre_nms_topn,
                "post_nms_topn": own.post_nms_topn,
                "nms_thresh": own.iou_threshold if own.has("iou_threshold") else own.nms_thresh,
                "drops_small": False,
            }
            args |= {"in_pixels": True} if own.scale_in_pixels else {}
        return args | ({"with_scores": True} if len(p.top) > 1 else {})

    def __init__(
        self,
        feat_stride: int = 16,
        ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        scales: tuple[float, ...] = (8.0, 16.0, 32.0),
        base_size: int = 16,
        min_size: int = 16,
        pre_nms_topn: int = 6000,
        post_nms_topn: int = 300,
        nms_thresh: float = 0.7,
        with_scores: bool = False,
        drops_small: bool = True,
        in_pixels: bool = False,
    ) -> None:
        super().__init__()
        self.feat_stride, self.min_size, self.with_scores = feat_stride, min_size, with_scores
        self.in_pixels, self.drops_small = in_pixels, drops_small
        self.anchors = (anchors_in_pixels if in_pixels else base_anchors)(base_size, ratios, scales)
        self.pre_nms_topn, self.post_nms_topn, self.nms_thresh = pre_nms_topn, post_nms_topn, nms_thresh

    def forward(self, score: Tensor, delta: Tensor, info: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        height, width = score.shape[2:]
        info = (info[:1] if self.in_pixels else info).flatten(1).expand(score.shape[0], -1)
        y = torch.arange(height, device=score.device) * self.feat_stride
        x = torch.arange(width, device=score.device) * self.feat_stride
        y, x = torch.meshgrid(y, x, indexing="ij")
        anchors = torch.stack((x, y, x, y), 2)[:, :, None] + torch.tensor(self.anchors).to(score)
        rois, scores = [], []
        for image in range(score.shape[0]):
            foreground = score[image, len(self.anchors) :].permute(1, 2, 0).flatten()
            boxes = self.correct(anchors.reshape(-1, 4), delta[image].permute(1, 2, 0).reshape(-1, 4))
            box, best = self.choose(boxes, foreground, info[image])
            rois.append(torch.cat((torch.full_like(best[:, None], image), box), 1))
            scores.append(best[:, None] if self.drops_small else best)
        return (torch.cat(rois), torch.cat(scores)) if self.with_scores else torch.cat(rois)

    def infer(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        count = bottoms[0].shape[0] * self.post_nms_topn
        rois = bottoms[0].new_empty(count, 5)
        scores = bottoms[0].new_empty((count, 1) if self.drops_small else (count,))
        return (rois, scores) if self.with_scores else rois

    def correct(self, boxes: Tensor, delta: Tensor) -> Tensor:
        """Moves the centers by ``delta`` times the size, and stretches the size by exp(delta); all (boxes, 4)."""
        size = boxes[:, 2:] - boxes[:, :2] + 1
        center = boxes[:, :2] + 0.5 * size
        center, half = center + delta[:, :2] * size, 0.5 * delta[:, 2:].exp() * size
        return torch.cat((center - half, center + half), 1)

    def choose(self, boxes: Tensor, scores: Tensor, info: Tensor) -> tuple[Tensor, Tensor]:
        """The best boxes of an image that do not overlap, and their scores."""
        limit = info[:2].flip(0).repeat(2) - 1
        boxes = torch.minimum(boxes, limit).clamp(min=0)
        scale = 1 if self.in_pixels else info[[3, 2]] if info.shape[0] > 3 else info[2]
        large = (boxes[:, 2:] - boxes[:, :2] + 1 >= self.min_size * scale).all(1)
        if self.drops_small:
            boxes, scores = boxes[large], scores[large]
        else:
            scores = scores * large
        if self.drops_small or torch.compiler.is_compiling():
            order = scores.sort(descending=True, stable=True).indices[: self.pre_nms_topn]
        else:
            order = torch.tensor(quicksort(scores.tolist(), self.pre_nms_topn), device=scores.device)
        scores, boxes = scores[order], boxes[order]
        kept = self.suppress(boxes, scores)[: self.post_nms_topn]
        return boxes[kept], scores[kept]

    def suppress(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """Indices of the boxes that no better one overlaps; the last pixel belongs to a box."""
        wide = torch.cat((boxes[:, :2], boxes[:, 2:] + 1), 1)
        if self.drops_small or torch.compiler.is_compiling():
            return suppress(wide, scores, self.nms_thresh)
        area = (wide[:, 2:] - wide[:, :2]).prod(1)
        alive = torch.ones_like(scores, dtype=torch.bool)
        kept: list[int] = []
        for i in range(len(boxes)):
            if alive[i]:
                kept.append(i)
                if len(kept) == self.post_nms_topn:
                    break
                size = torch.minimum(wide[i, 2:], wide[:, 2:]) - torch.maximum(wide[i, :2], wide[:, :2])
                # nms.cpp: less than a pixel apart is apart
                touch = ((boxes[i, :2] <= boxes[:, 2:]) & (boxes[i, 2:] >= boxes[:, :2])).all(1)
                both = size.clamp(min=0).prod(1) * touch
                alive &= both / (area[i] + area - both) <= self.nms_thresh
        return torch.tensor(kept, dtype=torch.long, device=boxes.device)


class RoISelectLayer(Layer):
    """The best region of every class but the background: ``type: "Python"`` of caffe-face-attributes.

    Takes regions (R, 5) and their scores (R, num_class); gives (num_class - 1, 5). Of each class, the region with the
    best score among those of which it is the best class; where there is none, among all. The first of equal ones.

    Reference: JiajianZeng/caffe-face-attributes roi_select_layer.py
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"classes": classes_of(p)}

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, rois: Tensor, scores: Tensor) -> Tensor:
        label = scores.argmax(1)
        rows = []
        for k in range(1, self.classes):
            own = label == k
            rows.append(scores[:, k].where(own | ~own.any(), -torch.inf).argmax())
        return rois[torch.stack(rows)]


class DeformableConvolution(Layer):
    """A convolution whose taps are moved by the second bottom; one that leaves the image is 0.

    Takes x (N, C_in, H, W) and the offsets (N, 2 * deformable_group * kH * kW, H', W'), vertical, horizontal in turn.

    Differs from PyTorch: torchvision.ops.DeformConv2d mixes in zeros over a pixel's width beyond the border.
    Blobs: weight (C_out, C_in / group, kH, kW), bias (C_out)
    Reference: msracver/Deformable-ConvNets, in Caffe's form deformable_conv_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        channels, kernel = bottoms[0][1], deformable_kernel(p)
        check_count("weight", (p.num_output, channels // p.group, *kernel.kernel_size))
        return {
            "in_channels": channels,
            "out_channels": p.num_output,
            "kernel_size": kernel.kernel_size,
            "stride": kernel.stride,
            "padding": kernel.pad,
            "dilation": kernel.dilation,
            "groups": p.group,
            "bias": p.bias_term,
        }

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        import torchvision  # here: it takes as long to load as torch itself, and few nets need it

        offset = self.within(offset, x.shape[2], x.shape[3])
        return torchvision.ops.deform_conv2d(  # type: ignore[no-any-return]
            x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation
        )

    def within(self, offset: Tensor, height: int, width: int) -> Tensor:
        """The offsets of taps that stay within the image, at most at its last row and column; others lead far away."""
        (kh, kw), (rows, columns) = self.weight.shape[2:], offset.shape[2:]
        tap = torch.arange(kh * kw, device=offset.device)[:, None, None]
        row, column = (torch.arange(n, device=offset.device) for n in (rows, columns))
        upper = row[:, None] * self.stride[0] - self.padding[0] + tap // kw * self.dilation[0]
        left = column * self.stride[1] - self.padding[1] + tap % kw * self.dilation[1]
        moved = offset.reshape(offset.shape[0], -1, kh * kw, 2, rows, columns)
        y, x = moved[:, :, :, 0] + upper, moved[:, :, :, 1] + left
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        y, x = y.clamp(max=height - 1).where(inside, -2), x.clamp(max=width - 1).where(inside, -2)
        return torch.stack((y - upper, x - left), 3).flatten(1, 3)


# -- numbers, in forward and __init__ -----------------------------------------------------------------------------


def round_away(x: Tensor) -> Tensor:
    """C's round: a half goes away from zero. torch.round takes it to the even neighbor."""
    return x.trunc() + (x.frac().abs() >= 0.5) * x.sign()


def base_anchors(base_size: int, ratios: tuple[float, ...], scales: tuple[float, ...]) -> list[list[float]]:
    """Corners of the boxes around the first pixel: for every ratio (height to width), for every scale."""
    center, anchors = (base_size - 1) / 2, []
    for ratio in ratios:
        width = math.floor(math.sqrt(base_size**2 / ratio) + 0.5)
        height = math.floor(width * ratio + 0.5)
        for scale in scales:
            w, h = (width * scale - 1) / 2, (height * scale - 1) / 2
            anchors.append([center - w, center - h, center + w, center + h])
    return anchors


def anchors_in_pixels(base_size: int, ratios: tuple[float, ...], scales: tuple[float, ...]) -> list[list[float]]:
    """The same where ``scales`` are sides in pixels: brocolli-caffe's generate_anchors."""
    center, anchors = (base_size - 1) / 2, []
    for ratio in ratios:
        width = math.sqrt(base_size**2 / ratio)
        height = width * ratio
        for scale in scales:
            w, h = (int(side * scale / base_size - 0.5) / 2 for side in (width, height))
            anchors.append([center - w, center - h, center + w, center + h])
    return anchors


def quicksort(scores: list[float], count: int) -> list[int]:
    """Indices of the ``count`` greatest scores, the greatest first; equal ones as sort_box of PVANet leaves them.

    Hoare's partition about the first element, which leaves equal scores in an order of its own.
    """
    order = list(range(len(scores)))
    ranges = [(0, len(scores) - 1)]
    while ranges:
        first, last = ranges.pop()
        pivot, left, right = scores[order[first]], first + 1, last
        while left <= right:
            while left <= last and scores[order[left]] >= pivot:
                left += 1
            while right > first and scores[order[right]] <= pivot:
                right -= 1
            if left <= right:
                order[left], order[right] = order[right], order[left]
                left, right = left + 1, right - 1
        order[first], order[right] = order[right], order[first]
        if first < right - 1:
            ranges.append((first, right - 1))
        if right + 1 < min(count, last):
            ranges.append((right + 1, last))
    return order[:count]


# -- parameters, from Caffe ---------------------------------------------------------------------------------------


def enlarged(rois: Tensor, pad_ratio: float) -> Tensor:
    """Regions (R, 5), each wider and higher on every side by that part of its size."""
    pad = (rois[:, 3:] - rois[:, 1:3] + 1) * pad_ratio
    return torch.cat((rois[:, :1], rois[:, 1:3] - pad, rois[:, 3:] + pad), 1)


def regions(rois: Tensor, x: Tensor) -> Tensor:
    """The regions as (R, 5), each of an image in the batch: torchvision reads wherever the index points."""
    rois = rois.flatten(1)
    return torch.cat((rois[:, :1].nan_to_num().clamp(0, x.shape[0] - 1), rois[:, 1:]), 1)
