"""Two-stage detection: proposing regions, and pooling the features in them. From Fast R-CNN, Faster R-CNN, R-FCN."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message, decimal
from caffe_port.layers.data import python_layer
from caffe_port.layers.forks.detection import suppress
from caffe_port.layers.layer import Layer, check_count, constructor, expect_bottoms, scalar_if_equal
from caffe_port.typing import Shape


class ROIPooling(Layer):
    """Same as torchvision.ops.RoIPool: the greatest value in each bin of each region.

    Takes the features (N, C, H, W) and the regions (R, 5), rows of image, x1, y1, x2, y2 in pixels of the net's input;
    gives (R, C, pooled_h, pooled_w). Corners are scaled, then rounded, and the last pixel belongs to the region.

    Differs from PyTorch: regions may have shape (R, 5, 1, 1). Where Caffe aborts, a region naming an image that is
    not in the batch, the nearest one is taken (torchvision would read beyond the features).
    Reference: rbgirshick/caffe-fast-rcnn roi_pooling_layer.cpp
    """

    param, aliases = "roi_pooling_param", ("RoiPooling",)

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_regions(bottoms)
        if p.pad_ratio:
            raise SpecError("pad_ratio (MS-CNN) is not supported")
        if p.has("spatial_scale_h") or p.has("spatial_scale_w"):
            raise SpecError("spatial_scale_h and spatial_scale_w are not supported; give spatial_scale")
        size = [int(n) for n in p.pooled_size] or [p.pooled_h, p.pooled_w]
        size = size * 2 if len(size) == 1 else size
        return {"output_size": pooled_size(size, bottoms), "spatial_scale": positive(p.spatial_scale)}

    def __init__(self, output_size: tuple[int, int], spatial_scale: float = 1.0) -> None:
        super().__init__()
        self.output_size, self.spatial_scale = output_size, spatial_scale

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        import torchvision  # here: it takes as long to load as torch itself, and few nets need it

        return torchvision.ops.roi_pool(x, regions(rois, x), self.output_size, self.spatial_scale)  # type: ignore[no-any-return]


class ROIAlign(Layer):
    """Same as torchvision.ops.RoIAlign with aligned=False, Mask R-CNN's original operator.

    Takes features and regions as ROIPooling does. ``sampling_ratio`` 0 or less means one sample for each pixel of the
    bin. roi_end_mode 1 counts the last pixel into the region.

    The parameters are ``roi_align_param``, or ``roi_pooling_param`` as in the ports of Mask R-CNN.

    Reference: Ascend's ROIAlign; forks exist whose layer of that name has another formula
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_regions(bottoms)
        if p.has("roi_pooling_param") and not p.has("roi_align_param"):
            pooling = p.roi_pooling_param
            size = pooled_size([pooling.pooled_h, pooling.pooled_w], bottoms)
            return {"output_size": size, "spatial_scale": positive(pooling.spatial_scale)}
        p = p.roi_align_param
        if p.roi_end_mode not in (0, 1):
            raise SpecError(f"roi_end_mode {p.roi_end_mode} is not supported; 0 and 1 are")
        return {
            "output_size": pooled_size([p.pooled_h, p.pooled_w], bottoms),
            "spatial_scale": positive(p.spatial_scale),
            "sampling_ratio": p.sampling_ratio if p.sampling_ratio > 0 else -1,
            "last_pixel_inside": p.roi_end_mode == 1,
        }

    def __init__(
        self,
        output_size: tuple[int, int],
        spatial_scale: float = 1.0,
        sampling_ratio: int = -1,
        last_pixel_inside: bool = False,
    ) -> None:
        super().__init__()
        self.output_size, self.spatial_scale, self.sampling_ratio = output_size, spatial_scale, sampling_ratio
        self.last_pixel_inside = last_pixel_inside

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        import torchvision  # here: it takes as long to load as torch itself, and few nets need it

        rois = regions(rois, x)
        if self.last_pixel_inside:
            rois = torch.cat((rois[:, :3], rois[:, 3:] + 1), 1)
        return torchvision.ops.roi_align(x, rois, self.output_size, self.spatial_scale, self.sampling_ratio)  # type: ignore[no-any-return]


class PSROIPooling(Layer):
    """Position-sensitive pooling: every bin of a region is the mean over its pixels, in a channel of its own.

    Takes features (N, output_dim * group_size^2, H, W) and regions (R, 5), as ROIPooling does; gives
    (R, output_dim, group_size, group_size).

    Differs from PyTorch: torchvision.ops.ps_roi_pool scales the corners, then rounds them; here they are rounded first,
    the last pixel belongs to the region, and only the bins are fitted to whole pixels.
    Reference: daijifeng001/caffe-rfcn psroi_pooling_layer.cu
    """

    param = "psroi_pooling_param"

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_regions(bottoms)
        if p.output_dim < 1 or p.group_size < 1:
            raise SpecError("output_dim and group_size are needed")
        if p.no_pad_shift:
            raise SpecError("no_pad_shift is not supported")
        if bottoms[0][1] != p.output_dim * p.group_size**2:
            raise SpecError(
                f"output_dim {p.output_dim} and group_size {p.group_size} need"
                f" {p.output_dim * p.group_size**2} channels, the bottom has {bottoms[0][1]}"
            )
        return {"output_dim": p.output_dim, "group_size": p.group_size, "spatial_scale": positive(p.spatial_scale)}

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


@python_layer("rpn.proposal_layer", "ProposalLayer")
class Proposal(Layer):
    """The regions that Faster R-CNN looks at: anchors, corrected, clipped to the image; the best that do not overlap.

    Takes the scores (N, 2 * A, H, W), background first, the corrections (N, 4 * A, H, W), and for each image its
    height, width and scale (1 or N, 3 or more; a fourth one is the horizontal scale). Gives the regions (R, 5), rows of
    image, x1, y1, x2, y2 with the best first, and as a second top their scores (R, 1). An image may give none.

    The same for ``type: "Python"`` of py-faster-rcnn, with its settings for testing: 6000 before, 300 after the choice,
    overlap 0.7, at least 16 pixels wide.

    Differs from PyTorch: how many rows there are depends on the values, so torch.export does not take it as it is.
    Differs from Caffe: PVANet's C++ layer fills up with regions that are too small where there are not enough others.
    Of equal scores the earlier one comes first; the originals leave that open.
    Reference: rbgirshick/py-faster-rcnn proposal_layer.py; sanghoon/caffe proposal_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_bottoms(bottoms, 3)
        scores = {"with_scores": True} if len(p.top) > 1 else {}
        if p.type == "Python":
            said = yaml_numbers(p.python_param.param_str)
            args: dict[str, Any] = {
                "feat_stride": int(said.get("feat_stride", [16])[0]),
                "ratios": tuple(said.get("ratios", [0.5, 1.0, 2.0])),
                "scales": tuple(said.get("scales", [8.0, 16.0, 32.0])),
            }
        else:
            p = p.proposal_param
            if not p.ratio or not p.scale:
                raise SpecError("proposal_param: ratio and scale are needed")
            args = {
                "feat_stride": p.feat_stride,
                "ratios": tuple(decimal(r) for r in p.ratio),
                "scales": tuple(decimal(s) for s in p.scale),
                "base_size": p.base_size,
                "min_size": p.min_size,
                "pre_nms_topn": p.pre_nms_topn,
                "post_nms_topn": p.post_nms_topn,
                "nms_thresh": p.iou_threshold if p.has("iou_threshold") else p.nms_thresh,
            }
        if min(*args["ratios"], *args["scales"], args["feat_stride"]) <= 0:
            raise SpecError("ratios, scales and feat_stride must be positive")
        anchors = len(args["ratios"]) * len(args["scales"])
        score, delta, info = bottoms
        if len(score) != 4 or score[1] != 2 * anchors or delta != (score[0], 4 * anchors, *score[2:]):
            raise SpecError(
                f"{len(args['ratios'])} ratios and {len(args['scales'])} scales need scores (N, {2 * anchors}, H, W)"
                f" and corrections (N, {4 * anchors}, H, W), got {score} and {delta}"
            )
        if info[0] not in (1, score[0]) or len(info) < 2 or info[1] < 3:
            raise SpecError(f"the third bottom has shape {info}; (N, 3): height, width, scale is expected")
        return args | scores

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
    ) -> None:
        super().__init__()
        self.feat_stride, self.min_size, self.with_scores = feat_stride, min_size, with_scores
        self.anchors = base_anchors(base_size, ratios, scales)
        self.pre_nms_topn, self.post_nms_topn, self.nms_thresh = pre_nms_topn, post_nms_topn, nms_thresh

    def forward(self, score: Tensor, delta: Tensor, info: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        height, width = score.shape[2:]
        info = info.flatten(1).expand(score.shape[0], -1)
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
            scores.append(best[:, None])
        return (torch.cat(rois), torch.cat(scores)) if self.with_scores else torch.cat(rois)

    def infer(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        count = bottoms[0].shape[0] * self.post_nms_topn
        rois = bottoms[0].new_empty(count, 5)
        return (rois, bottoms[0].new_empty(count, 1)) if self.with_scores else rois

    def correct(self, boxes: Tensor, delta: Tensor) -> Tensor:
        """Moves the centres by ``delta`` times the size, and stretches the size by exp(delta); all (boxes, 4)."""
        size = boxes[:, 2:] - boxes[:, :2] + 1
        center = boxes[:, :2] + 0.5 * size
        center, half = center + delta[:, :2] * size, 0.5 * delta[:, 2:].exp() * size
        return torch.cat((center - half, center + half), 1)

    def choose(self, boxes: Tensor, scores: Tensor, info: Tensor) -> tuple[Tensor, Tensor]:
        limit = info[:2].flip(0).repeat(2) - 1
        boxes = torch.minimum(boxes, limit).clamp(min=0)
        scale = info[[3, 2]] if info.shape[0] > 3 else info[2]
        large = (boxes[:, 2:] - boxes[:, :2] + 1 >= self.min_size * scale).all(1)
        boxes, scores = boxes[large], scores[large]
        scores, order = scores.sort(descending=True, stable=True)
        scores, boxes = scores[: self.pre_nms_topn], boxes[order[: self.pre_nms_topn]]
        last_pixel_inside = torch.cat((boxes[:, :2], boxes[:, 2:] + 1), 1)
        kept = suppress(last_pixel_inside, scores, self.nms_thresh)[: self.post_nms_topn]
        return boxes[kept], scores[kept]


class DeformableConvolution(Layer):
    """Same as torchvision.ops.DeformConv2d: a convolution whose taps are moved by the second bottom.

    Takes x (N, C_in, H, W) and the offsets (N, 2 * deformable_group * kH * kW, H', W'), vertical, horizontal in turn.

    Blobs: weight (C_out, C_in / group, kH, kW), bias (C_out)
    Reference: msracver/Deformable-ConvNets, in Caffe's form deformable_conv_layer.cpp
    """

    param, blobs = "deformable_convolution_param", ("weight", "bias")

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_bottoms(bottoms, 2)
        x, offset = bottoms
        kernel, stride = either(p, "kernel", "kernel_size", None), either(p, "stride", "stride", 1)
        padding, dilation = either(p, "pad", "pad", 0), either(p, "dilation", "dilation", 1)
        if len(x) != 4 or p.axis != 1:
            raise SpecError(f"DeformableConvolution takes a bottom (N, C, H, W) and axis 1, got {x} and axis {p.axis}")
        if p.num_output < 1 or x[1] % p.group or p.num_output % p.group:
            raise SpecError(f"group {p.group} does not divide the {x[1]} channels and num_output {p.num_output}")
        wanted = 2 * p.deformable_group * kernel[0] * kernel[1]
        if offset[1] != wanted:
            raise SpecError(f"the offsets have {offset[1]} channels; 2 * deformable_group * kernel are {wanted}")
        check_count("weight", (p.num_output, x[1] // p.group, *kernel))
        return {
            "in_channels": x[1],
            "out_channels": p.num_output,
            "kernel_size": kernel,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
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

        return torchvision.ops.deform_conv2d(  # type: ignore[no-any-return]
            x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation
        )

    def torch_source(self) -> str:
        channels = [self.weight.shape[1] * self.groups, self.weight.shape[0], scalar_if_equal(self.weight.shape[2:])]
        return constructor(
            "torchvision.ops.DeformConv2d",
            channels,
            {
                "stride": (scalar_if_equal(self.stride), 1),
                "padding": (scalar_if_equal(self.padding), 0),
                "dilation": (scalar_if_equal(self.dilation), 1),
                "groups": (self.groups, 1),
                "bias": (self.bias is not None, True),
            },
        )


# -- numbers, in forward and __init__ -----------------------------------------------------------------------------


def round_away(x: Tensor) -> Tensor:
    """C's round: a half goes away from zero. torch.round takes it to the even neighbour."""
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


# -- parameters, from Caffe ---------------------------------------------------------------------------------------


def expect_regions(bottoms: Sequence[Shape]) -> None:
    """Raises SpecError unless the bottoms are features (N, C, H, W) and regions (R, 5)."""
    expect_bottoms(bottoms, 2)
    x, rois = bottoms
    if len(x) != 4 or [n for n in rois[1:] if n != 1] != [5]:
        raise SpecError(f"features (N, C, H, W) and regions (R, 5) are expected, got {x} and {rois}")


def regions(rois: Tensor, x: Tensor) -> Tensor:
    """The regions as (R, 5), each of an image in the batch: torchvision reads wherever the index points."""
    rois = rois.flatten(1)
    return torch.cat((rois[:, :1].nan_to_num().clamp(0, x.shape[0] - 1), rois[:, 1:]), 1)


def pooled_size(size: Sequence[int], bottoms: Sequence[Shape]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 1:
        raise SpecError("pooled_h and pooled_w are needed, and must be positive")
    check_count("the top", (bottoms[1][0], bottoms[0][1], *size))
    return size[0], size[1]


def positive(spatial_scale: float) -> float:
    if spatial_scale <= 0:
        raise SpecError(f"spatial_scale must be positive, got {spatial_scale}")
    return spatial_scale


def either(p: Message, short: str, field: str, default: int | None) -> tuple[int, int]:
    """(vertical, horizontal) of a repeated field, or of its ``_h`` and ``_w``. Raises SpecError where it is missing."""
    values = [int(n) for n in getattr(p, field)]
    if p.has(f"{short}_h") or p.has(f"{short}_w"):
        values = [getattr(p, f"{short}_h"), getattr(p, f"{short}_w")]
    if not values and default is None:
        raise SpecError(f"{field} is missing")
    values = values or [default or 0]
    if len(values) > 2:
        raise SpecError(f"{field} is given {len(values)} times; there are two axes")
    return values[0], values[-1]


def yaml_numbers(text: str) -> dict[str, list[float]]:
    """``'feat_stride': 16`` and ``'scales': !!python/tuple [8, 16]`` of a param_str: name -> its numbers."""
    pattern = r"""['"]?(\w+)['"]?\s*:\s*(?:!!python/tuple\s*)?([\[(][^\])]*[\])]|[-+.\deE]+)"""
    found = {}
    for name, value in re.findall(pattern, text):
        try:
            numbers = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            raise SpecError(f"param_str: '{name}' is not a number or a list of numbers: {value[:40]}") from None
        found[name] = [float(n) for n in (numbers if isinstance(numbers, (list, tuple)) else [numbers])]
    return found
