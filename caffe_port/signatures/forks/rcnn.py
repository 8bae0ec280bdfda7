"""The records of two-stage detection: Fast R-CNN, Faster R-CNN, R-FCN, deformable convolution."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.kernel_params import Kernel
from caffe_port.signatures.signature import SIGNATURES, Holds, Trait, declare
from caffe_port.signatures.spatial import slide
from caffe_port.typing import Shape


def expect_regions(bottoms: Sequence[Shape]) -> None:
    """Raises SpecError unless the bottoms are features (N, C, H, W) and regions (R, 5)."""
    x, rois = bottoms
    if len(x) != 4 or not rois or [n for n in rois[1:] if n != 1] != [5]:
        raise SpecError(f"expected features (N, C, H, W) and regions (R, 5), got {x} and {rois}")


def _expect_positive(spatial_scale: float) -> None:
    if spatial_scale <= 0:
        raise SpecError(f"spatial_scale must be positive, got {spatial_scale}")


def pooled_size(p: Message) -> tuple[int, int]:
    """Height and width of the bins of a region: ``pooled_h`` and ``pooled_w``, or ``pooled_size`` in some forks."""
    size = [int(n) for n in p.pooled_size] if p.schema and "pooled_size" in p.schema.fields else []
    size = size * 2 if len(size) == 1 else size or [p.pooled_h, p.pooled_w]
    if len(size) != 2 or min(size) < 1:
        raise SpecError("pooled_h and pooled_w are required and must be positive")
    return size[0], size[1]


def pooled_regions(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """One top for each region: (R, C, H, W)."""
    p = SIGNATURES[layer.type].parameters(layer)
    expect_regions(bottoms)
    _expect_positive(p.spatial_scale)
    return [(bottoms[1][0], bottoms[0][1], *pooled_size(p))]


def _roi_pooling(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.roi_pooling_param
    if p.has("spatial_scale_h") or p.has("spatial_scale_w"):
        raise SpecError("spatial_scale_h and spatial_scale_w are not supported; give spatial_scale")
    return pooled_regions(layer, bottoms)


def _roi_align(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    if layer.has("roi_align_param") and layer.roi_align_param.roi_end_mode not in (0, 1):
        raise SpecError(f"roi_end_mode {layer.roi_align_param.roi_end_mode} is not supported; 0 and 1 are")
    (top,) = pooled_regions(layer, bottoms)
    if not layer.has("roi_align_param") and layer.roi_pooling_param.corners:
        return [(*top[:2], top[2] + 1, top[3] + 1)]
    if not layer.has("roi_align_param") and layer.roi_pooling_param.pad_ratio:
        raise SpecError("pad_ratio belongs to MS-CNN's ROIAlign; the net has no other layer of that Caffe")
    return [top]


def _psroi_pooling(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.psroi_pooling_param
    expect_regions(bottoms)
    _expect_positive(p.spatial_scale)
    if p.output_dim < 1 or p.group_size < 1:
        raise SpecError("output_dim and group_size are needed")
    if p.no_pad_shift:
        raise SpecError("no_pad_shift is not supported")
    if bottoms[0][1] != p.output_dim * p.group_size**2:
        raise SpecError(
            f"output_dim {p.output_dim} and group_size {p.group_size} need"
            f" {p.output_dim * p.group_size**2} channels, the bottom has {bottoms[0][1]}"
        )
    return [(bottoms[1][0], p.output_dim, p.group_size, p.group_size)]


def anchors_of(layer: Message) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Stride, ratios and scales of a Proposal's anchors; a Python layer says them in its param_str."""
    if layer.type == "Python":
        said = yaml_numbers(layer.python_param.param_str)
        stride = int(said.get("feat_stride", [16])[0])
        ratios, scales = said.get("ratios", [0.5, 1.0, 2.0]), said.get("scales", [8.0, 16.0, 32.0])
    else:
        p = layer.proposal_param
        stride, ratios, scales = p.feat_stride, list(p.ratio), list(p.scale)
    if not ratios or not scales:
        raise SpecError("proposal_param: ratio and scale are needed")
    if min(*ratios, *scales, stride) <= 0:
        raise SpecError("ratios, scales and feat_stride must be positive")
    return stride, tuple(ratios), tuple(scales)


def settled_scale(layer: Message, dialect: str = "") -> tuple[Message, str]:
    """Whether ``scale`` is in pixels, written down; brocolli-caffe's own number says it in a binary file."""
    if layer.type != "Proposal":
        return layer, ""
    if layer.has("proposal_in_pixels_param"):
        own = layer.proposal_in_pixels_param.copy(scale_in_pixels=True)
        return layer.copy(proposal_param=own, proposal_in_pixels_param=None), ""
    p = layer.proposal_param
    if p.has("scale_in_pixels") or not p.scale:
        return layer, ""
    # As multiples of base_size, the smallest anchor would be larger than images of such nets are high.
    pixels = dialect == "brocolli" if dialect else min(p.scale) * p.base_size > 640
    meaning = (
        "in pixels, as in brocolli-caffe" if pixels else "in multiples of base_size, as in py-faster-rcnn and PVANet"
    )
    other = "multiples of base_size, as in PVANet" if pixels else "pixels, as in brocolli-caffe"
    note = f"scale {', '.join(f'{s:g}' for s in p.scale)} is read {meaning}"
    if not dialect:
        note += (
            f"; if it is in {other}, write scale_in_pixels: {'false' if pixels else 'true'}, or give --dialect "
            f"{'caffe' if pixels else 'brocolli'}"
        )
    return layer.copy(proposal_param=p.copy(scale_in_pixels=pixels)), note


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


def _proposal(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """At most so many regions of each image, and their scores; py-faster-rcnn's 300 for a Python layer."""
    _, ratios, scales = anchors_of(layer)
    anchors = len(ratios) * len(scales)
    score, delta, info = bottoms
    if len(score) != 4 or score[1] != 2 * anchors or delta != (score[0], 4 * anchors, *score[2:]):
        raise SpecError(
            f"{len(ratios)} ratios and {len(scales)} scales need scores (N, {2 * anchors}, H, W)"
            f" and corrections (N, {4 * anchors}, H, W), got {score} and {delta}"
        )
    if layer.type != "Python" and (layer.proposal_param.post_nms_topn < 1 or layer.proposal_param.pre_nms_topn < 1):
        raise SpecError("pre_nms_topn and post_nms_topn must be positive")
    if info[0] not in (1, score[0]) or len(info) < 2 or info[1] < 3:
        raise SpecError(f"the third bottom has shape {info}, expected (N, 3): height, width, scale")
    count = score[0] * (300 if layer.type == "Python" else layer.proposal_param.post_nms_topn)
    return [(count, 5), (count, 1) if layer.type == "Python" else (count,)][: max(1, len(layer.top))]


def _roi_select(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """One region for every class but the background."""
    rois, scores = bottoms
    classes = classes_of(layer)
    if rois[1:2] != (5,) or len(scores) != 2 or scores[0] != rois[0] or scores[1] < classes:
        raise SpecError(f"expected regions (R, 5) and scores (R, {classes}), got {rois} and {scores}")
    return [(classes - 1, *rois[1:])]


def classes_of(layer: Message) -> int:
    """The ``num_class`` that a Python layer says in its param_str."""
    classes = int(yaml_numbers(layer.python_param.param_str).get("num_class", [0])[0])
    if classes < 2:
        raise SpecError("param_str: num_class must be at least 2")
    return classes


def deformable_kernel(p: Message) -> Kernel:
    """The window of a DeformableConvolution, down and across."""
    return Kernel(
        either(p, "kernel", "kernel_size", None),
        either(p, "stride", "stride", 1),
        either(p, "pad", "pad", 0),
        either(p, "dilation", "dilation", 1),
    )


def either(p: Message, short: str, field: str, default: int | None) -> tuple[int, int]:
    """(vertical, horizontal) of a repeated field, or of its ``_h`` and ``_w``. Raises SpecError where it is missing."""
    values = [int(n) for n in getattr(p, field)]
    if p.has(f"{short}_h") or p.has(f"{short}_w"):
        values = [getattr(p, f"{short}_h"), getattr(p, f"{short}_w")]
    if not values and default is None:
        raise SpecError(f"{field} is missing")
    values = values or [default or 0]
    if len(values) > 2:
        raise SpecError(f"{field} is given {len(values)} times, expected once or twice")
    if min(values) < (0 if field == "pad" else 1):
        raise SpecError(f"{field} must be at least 1, got {min(values)}")
    return values[0], values[-1]


def _deformable_convolution(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p, (x, offset) = layer.deformable_convolution_param, bottoms
    kernel = deformable_kernel(p)
    if len(x) != 4 or p.axis != 1:
        raise SpecError(f"DeformableConvolution takes a bottom (N, C, H, W) and axis 1, got {x} and axis {p.axis}")
    if p.num_output < 1 or p.group < 1 or x[1] % p.group or p.num_output % p.group:
        raise SpecError(f"group {p.group} does not divide the {x[1]} channels and num_output {p.num_output}")
    if p.deformable_group < 1 or x[1] % p.deformable_group:
        raise SpecError(f"deformable_group {p.deformable_group} does not divide the {x[1]} channels")
    size = slide(x, 1, kernel)
    wanted = 2 * p.deformable_group * math.prod(kernel.kernel_size)
    if len(offset) != 4 or offset[1] != wanted:
        raise SpecError(f"the offsets have {offset[1]} channels, expected 2 * deformable_group * kernel = {wanted}")
    if offset != (x[0], wanted, *size):
        raise SpecError(f"the offsets have shape {offset}, expected {(x[0], wanted, *size)}")
    return [(x[0], p.num_output, *size)]


def _deformable_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    p = layer.deformable_convolution_param
    weight = (p.num_output, bottoms[0][1] // p.group, *deformable_kernel(p).kernel_size)
    return {"weight": weight, **({"bias": (p.num_output,)} if p.bias_term else {})}


def _deformable_macs(layer: Message, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
    weight = _deformable_blobs(layer, bottoms)["weight"]
    return tops[0][0] * math.prod(tops[0][2:]) * math.prod(weight)


def _region_pooling(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p, (x, rois) = layer.region_pooling_param, bottoms
    if len(x) != 4 or rois not in ((rois[0], 9), (rois[0], 9, 1, 1)):
        raise SpecError(f"expected features (N, C, H, W) and regions (R, 9), got {x} and {rois}")
    if min(p.pooled_h, p.pooled_w) < 1:
        raise SpecError("pooled_h and pooled_w must be at least 1")
    return [(rois[0], x[1], p.pooled_h, p.pooled_w)]


_FEATURES_AND_REGIONS = (Holds.NUMBERS, Holds.BOXES)

declare(
    "ROIPooling",
    _roi_pooling,
    message="roi_pooling_param",
    aliases=("RoiPooling",),
    bottoms=2,
    holds=_FEATURES_AND_REGIONS,
    traits=Trait.KEEPS_CHANNELS,
)
declare(
    "ROIAlign",
    _roi_align,
    message=("roi_align_param", "roi_pooling_param"),
    bottoms=2,
    holds=_FEATURES_AND_REGIONS,
    traits=Trait.KEEPS_CHANNELS | Trait.WHOLE_LAYER,
)
declare("RegionPooling", _region_pooling, message="region_pooling_param", bottoms=2, traits=Trait.KEEPS_CHANNELS)
declare("PSROIPooling", _psroi_pooling, message="psroi_pooling_param", bottoms=2, holds=_FEATURES_AND_REGIONS)
declare(
    "Proposal",
    _proposal,
    message="proposal_param",
    also=("proposal_in_pixels_param",),
    bottoms=3,
    holds=(Holds.NUMBERS, Holds.NUMBERS, Holds.IMAGE_SIZES),
    python=("rpn.proposal_layer.ProposalLayer", "pylayer.proposal_layer.ProposalLayer"),
    settles=settled_scale,
    traits=Trait.WHOLE_LAYER,
)
declare(
    "RoISelectLayer",
    _roi_select,
    bottoms=2,
    holds=(Holds.BOXES, Holds.NUMBERS),
    python=("rpn.roi_select_layer.RoISelectLayer",),
    traits=Trait.WHOLE_LAYER,
)
declare(
    "DeformableConvolution",
    _deformable_convolution,
    message="deformable_convolution_param",
    bottoms=2,
    blobs=("weight", "bias"),
    blob_shapes=_deformable_blobs,
    macs=_deformable_macs,
    traits=Trait.SLIDES,
)
