"""Shape rules of the layer types that forks added.

:mod:`caffe_port.signatures.shape` has Caffe's own, and how they work.

Each rule is the Reshape function of the fork's layer of that name.
"""

# ruff: noqa: ARG001 - every rule takes what all take

from __future__ import annotations

import math
from collections.abc import Sequence

from caffe_port.signatures.shape import ANY, axis_of, expect_dims, rule, text
from caffe_port.spec import LayerSpec
from caffe_port.typing import Shape

# -- the shape stays ----------------------------------------------------------------------------------------------


@rule(
    "AddNoise",
    "ChannelDropout",
    "EltwiseAffine",
    "GRL",
    "GRN",
    "GaussianNoise",
    "GradientReversal",
    "GradientScaler",
    "HSigmoid",
    "HSwish",
    "HardSwish",
    "Insanity",
    "L2Norm",
    "L2Normalization",
    "L2Normalize",
    "LRNRistretto",
    "Mish",
    "NegReLU",
    "Noise",
    "Normalization",
    "NormalizeFeature",
    "RandomNoise",
    "ReLU6",
    "Relu6",
    "Reverse",
    "ReverseAxis",
    "SELU",
    "Selu",
    "SignedSqrt",
    "Softplus",
    "SpatialDropout",
    "Truncation",
)
def _same(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    if layer.type in ("EltwiseAffine", "L2Normalization"):
        expect_dims(layer, bottoms[0], 2, ANY)
    return bottoms


@rule("ChannelScale", "LabelSpecificAdd", "MaskPooling", "ReverseTime", bottoms=2)
def _like_the_first(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    return bottoms[:1]


@rule("Mean", bottoms=(1, ANY))
def _like_each(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    return bottoms


@rule("Normalize")
def _normalize(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """SSD's, and NormFace's, whose second top has the norms."""
    expect_dims(layer, bottoms[0], 2, 4)
    has_norms = len(layer.tops) > 1 and not layer.param.has("norm_param")
    return [*bottoms, (bottoms[0][0], 1, *bottoms[0][2:])] if has_norms else bottoms


@rule("ImgWriter", "FLOWriter", "FloatWriter", "MatWrite", "PFMWriter", bottoms=(1, ANY))
def _nothing(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    return []


@rule("Axpy", bottoms=3)
def _axpy(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """a x + y, one a for each channel. Source: axpy_layer.cpp (SENet)."""
    a, x, y = bottoms
    if x != y or a[:2] != x[:2] or math.prod(a[2:]) != 1:
        raise layer.error(f"bottoms {', '.join(map(text, bottoms))}; (N, C), (N, C, H, W), (N, C, H, W) are expected")
    return [x]


# -- sums and products --------------------------------------------------------------------------------------------


@rule("Sum")
def _sum(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    return [(bottoms[0][0], 1, 1, 1)]


@rule("MIL")
def _mil(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    expect_dims(layer, bottoms[0], 4, 4)
    return [(*bottoms[0][:2], 1, 1)]


@rule("BatchReduction")
def _batch_reduction(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """Source: batch_reduction_layer.cpp (PSPNet)."""
    bottom, p = bottoms[0], layer.param.batch_reduction_param
    axis, levels = axis_of(layer, p.reduction_param.axis, len(bottom)), list(p.level) or [1]
    return [(*bottom[:axis], *([] if levels == [1] else [len(levels)]), *bottom[axis + 1 :])]


@rule("CompactBilinear", bottoms=2)
def _compact_bilinear(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.param.compact_bilinear_param
    expect_dims(layer, bottoms[0], 4, 4)
    return [(bottoms[0][0], p.num_output, *((1, 1) if p.sum_pool else bottoms[0][2:]))]


@rule("MarginInnerProduct", "LargeMarginInnerProduct", "LabelSpecificMargin", bottoms=2)
@rule("InnerDistance")
def _classes(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """Scores, and what the margin is. Sources: margin_inner_product_layer.cpp and those of its kind."""
    names = {
        "MarginInnerProduct": "margin_inner_product_param",
        "LargeMarginInnerProduct": "largemargin_inner_product_param",
        "InnerDistance": "inner_distance_param",
    }
    if layer.type not in names:
        return [bottoms[0], (5,)][: max(1, len(layer.tops))]
    p = getattr(layer.param, names[layer.type])
    if p.num_output < 1:
        raise layer.error("num_output is missing or 0: it is the number of classes")
    top = (*bottoms[0][: axis_of(layer, p.axis, len(bottoms[0]))], p.num_output)
    return [top, (1,)][: max(1, len(layer.tops))]


# -- sequences ----------------------------------------------------------------------------------------------------


@rule("CTCGreedyDecoder", bottoms=2)
def _ctc_decoder(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """Source: ctc_decoder_layer.cpp (ChWick)."""
    steps, streams = bottoms[0][:2]
    return [(steps, streams, 1, 1), (streams, 1, 1, 1)][: max(1, len(layer.tops))]


# -- other sizes (forks) ------------------------------------------------------------------------------------------


@rule("Interp", bottoms=(1, 2))
def _interp(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """DeepLab's and PSPNet's interp_layer.cpp; the padding is negative: it crops."""
    bottom, p = bottoms[0], layer.param.interp_param
    expect_dims(layer, bottom, 4, 4)
    if len(bottoms) > 1:
        return [(*bottom[:2], *bottoms[1][2:])]
    if p.has("height") and p.has("width"):
        return [(*bottom[:2], p.height, p.width)]
    sizes = [n + p.pad_beg + p.pad_end for n in bottom[2:]]
    if p.has("shrink_factor"):
        sizes = [(n - 1) // max(p.shrink_factor, 1) + 1 for n in sizes]
    if p.has("zoom_factor"):
        sizes = [n + (n - 1) * (p.zoom_factor - 1) for n in sizes]
    if min(sizes) < 1:
        raise layer.error(f"a bottom {text(bottom)} would become {sizes[0]} x {sizes[1]}")
    return [(*bottom[:2], *sizes)]


@rule("Upsample", bottoms=(1, 2))
def _upsample(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """SegNet's and darknet2caffe's upsample_layer.cpp."""
    bottom, p = bottoms[0], layer.param.upsample_param
    expect_dims(layer, bottom, 4, 4)
    sizes = []
    for n, axis in zip(bottom[2:], "hw", strict=True):
        scale = getattr(p, f"scale_{axis}") if p.has(f"scale_{axis}") else p.stride if p.has("stride") else p.scale
        fixed = getattr(p, f"upsample_{axis}")
        sizes.append(fixed or n * scale - bool(getattr(p, f"pad_out_{axis}")))
    return [(*bottom[:2], *sizes)]


@rule("Resize", "ImResize", "MaskResize", "Upsampling")
def _resize(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """Sources: resize_layer.cpp, imresize_layer.cpp (OpenPose), mask_resize_layer.cpp (MNC), upsampling_layer.cpp."""
    expect_dims(layer, bottoms[0], 4, 4)
    (n, c, *old), param = bottoms[0], layer.param
    if layer.type == "Upsampling":
        p = param.upsampling_param
        size = [o * (p.kernel_size or k or 0) for o, k in zip(old, (p.kernel_h, p.kernel_w), strict=True)]
    elif layer.type == "MaskResize":
        size = [param.mask_resize_param.output_height or 0, param.mask_resize_param.output_width or 0]
    elif layer.type == "ImResize":
        p = param.imresize_param
        size = [int(o * p.factor) for o in old] if p.factor else [p.target_spatial_height, p.target_spatial_width]
    else:
        p = param.resize_param
        factors = (p.zoom, p.zoom) if p.has("zoom") else (p.zoom_h, p.zoom_w)
        factors = (p.out_height_scale, p.out_width_scale) if p.is_pyramid_test else factors
        given = any(p.has(name) for name in ("zoom", "zoom_h")) or p.is_pyramid_test
        size = [int(o * (f or 0)) for o, f in zip(old, factors, strict=True)] if given else [p.height, p.width]
    if min(size) < 1:
        raise layer.error("the size is missing, or less than a pixel")
    return [(n, c, *size)]


@rule("Downsample", bottoms=(1, 2))
def _downsample(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.param.downsample_param
    return [(*bottoms[0][:2], *(bottoms[1][2:] if len(bottoms) > 1 else (p.top_height, p.top_width)))]


@rule("Accum", bottoms=(1, ANY))
def _accum(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """Source: accum_layer.cpp (FlowNet2)."""
    p = layer.param.accum_param
    images = bottoms[:-1] if p.have_reference else bottoms
    size = bottoms[-1][2:]
    if not p.have_reference:
        size = (max(shape[2] for shape in images), max(shape[3] for shape in images))
        by = p.size_divisible_by
        wanted = (-(-size[0] // by) * by, -(-size[1] // by) * by) if by else (p.top_height, p.top_width)
        size = wanted if wanted[0] > size[0] and wanted[1] > size[1] else size
    return [(images[0][0], sum(shape[1] for shape in images), *size)]


@rule("SpatialTransformer", bottoms=2)
def _spatial_transformer(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """Source: st_layer.cpp."""
    p = layer.param.st_param
    n, c, h, w = bottoms[0]
    return [(n, c, p.output_H if p.has("output_H") else h, p.output_W if p.has("output_W") else w)]


@rule("Reorg", "ReorgYolo", "PassThrough")
def _reorg(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """YOLO v2's space to depth. Source: reorg_layer.cpp."""
    p = layer.param.reorg_yolo_param if layer.type == "ReorgYolo" else layer.param.reorg_param
    bottom, stride = bottoms[0], p.stride or 2
    if layer.type == "PassThrough":
        stride = layer.param.pass_through_param.block_height or 2
    expect_dims(layer, bottom, 4, 4)
    n, c, h, w = bottom
    if p.has("reverse") and p.reverse:
        if c % stride**2:
            raise layer.error(f"stride {stride} squared does not divide the {c} channels")
        return [(n, c // stride**2, h * stride, w * stride)]
    if h % stride or w % stride:
        raise layer.error(f"stride {stride} does not divide {h} x {w}")
    return [(n, c * stride**2, h // stride, w // stride)]


@rule("ROIPooling", "RoiPooling", "ROIAlign", "ROIWarping", "PSROIPooling", bottoms=2)
def _roi_pooling(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """One top for each region: (R, C, H, W). Sources: roi_pooling_layer.cpp, psroi_pooling_layer.cpp."""
    if layer.type == "PSROIPooling":
        p = layer.param.psroi_pooling_param
        return [(bottoms[1][0], p.output_dim, p.group_size, p.group_size)]
    names = {"ROIAlign": "roi_align_param", "ROIWarping": "roi_warping_param"}
    p = getattr(layer.param, names.get(layer.type, "roi_pooling_param"))
    if layer.type == "ROIAlign" and not layer.param.has("roi_align_param"):
        p = layer.param.roi_pooling_param
    return [(bottoms[1][0], bottoms[0][1], p.pooled_h, p.pooled_w)]


@rule("PriorBox", "PriorBoxClustered", bottoms=2)
def _prior_box(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """Boxes and their variances, (1, 2, H * W * boxes * 4). Source: prior_box_layer.cpp (SSD, OpenCV)."""
    p = layer.param.prior_box_param
    if layer.param.has("prior_box_clustered_param"):
        p = layer.param.prior_box_clustered_param
    if p.width or layer.type == "PriorBoxClustered":
        return [(1, 2, math.prod(bottoms[0][2:]) * len(p.width) * 4)]
    ratios = [1.0]
    for ratio in p.aspect_ratio:
        if all(abs(ratio - known) >= 1e-6 for known in ratios):
            ratios += [ratio, 1 / ratio] if p.flip and ratio else [ratio]
    boxes = len(ratios) * len(p.min_size) + len(p.max_size)
    return [(1, 2, math.prod(bottoms[0][2:]) * boxes * 4)]


@rule("Proposal", bottoms=3)
def _proposal(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """At most so many regions of each image, and their scores. Source: proposal_layer.cpp (PVANet)."""
    count = bottoms[0][0] * layer.param.proposal_param.post_nms_topn
    return [(count, 5), (count, 1)][: max(1, len(layer.tops))]


@rule("YoloDetectionOutput", bottoms=(1, 2))
@rule("Yolov3DetectionOutput", bottoms=(1, ANY))
@rule("DetectionOutput", bottoms=(3, ANY))
def _detection_output(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """How many boxes are kept depends on the picture; Caffe allocates one. Source: detection_output_layer.cpp (SSD)."""
    return [(1, 1, 1, 7)]


@rule("BoxOutput", bottoms=(1, ANY))
def _box_output(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """How many boxes are kept depends on the picture; Caffe allocates one. Source: box_output_layer.cpp (MS-CNN)."""
    return [(1, 5), (1, 6)][: max(1, len(layer.tops))]


@rule("Nms")
def _peaks(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """Source: nms_layer.cpp (OpenPose)."""
    p = layer.param.nms_param
    return [(bottoms[0][0], p.num_parts, p.max_peaks + 1, 3)]


@rule("RegionYolo")
def _region_yolo(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """Source: OpenVINO's specification of RegionYolo."""
    flat = layer.param.region_yolo_param.do_softmax
    return [(bottoms[0][0], math.prod(bottoms[0][1:]))] if flat else bottoms
