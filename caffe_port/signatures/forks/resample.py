"""The records of layers that enlarge, shrink, crop or rearrange images: PSPNet, SegNet, DeconvNet, FlowNet, YOLO.

Each rule is the Reshape function of the fork's layer of that name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.checks import canonical_axis, expect_axes, expect_images
from caffe_port.signatures.signature import SIGNATURES, Holds, Trait, declare
from caffe_port.typing import Shape


def sizes(p: Message, both: str, short: str) -> tuple[int, int] | None:
    """(vertical, horizontal) of ``both``, or of ``short`` with _h and _w; None where absent."""
    if p.has(f"{short}_h") and p.has(f"{short}_w"):
        return int(getattr(p, f"{short}_h")), int(getattr(p, f"{short}_w"))
    return (int(getattr(p, both)),) * 2 if p.has(both) else None


def _interp(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """DeepLab's and PSPNet's; the padding is negative: it crops."""
    bottom, p = bottoms[0], layer.interp_param
    expect_images(bottoms)
    if p.pad_beg > 0 or p.pad_end > 0:
        raise SpecError("pad_beg and pad_end must be negative or 0: they crop")
    if p.interp_type != "bilinear":
        raise SpecError(f"interp_type {p.interp_type} is not supported, only bilinear")
    cropped = [n + p.pad_beg + p.pad_end for n in bottom[2:]]
    if p.use_blob_size:
        if len(bottoms) < 2:
            raise SpecError("use_blob_size takes the size of a second bottom, which is missing")
        size = list(bottoms[1][2:])
    elif p.has("shrink_factor") or p.has("zoom_factor"):
        if min(p.shrink_factor, p.zoom_factor) < 1:
            raise SpecError("shrink_factor and zoom_factor must be at least 1")
        size = [(n - 1) // p.shrink_factor * p.zoom_factor + 1 for n in cropped]
    elif p.has("height") and p.has("width"):
        size = [p.height, p.width]
        if min(size) < 1:
            raise SpecError("height and width must be positive")
    elif len(bottoms) > 1:
        size = list(bottoms[1][2:])
    else:
        raise SpecError("the size is missing: give height and width, shrink_factor or zoom_factor")
    if min(*size, *cropped) < 1:
        raise SpecError(f"a bottom {bottom} would become {size[0]} x {size[1]}")
    return [(*bottom[:2], *size)]


def upsampling(p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
    """The constructor arguments of an Upsample, ``scale`` or ``size``.

    Sources: SegNet's and darknet2caffe's layers; where there is ``dims_num``, the number of axes, brocolli-caffe's.
    """
    if p.has("dims_num"):
        if p.dims_num not in (3, 4) or len(bottoms) > 1:
            raise SpecError(f"dims_num must be 3 or 4, with one bottom, got {p.dims_num} and {len(bottoms)} bottoms")
        expect_axes(bottoms[0], p.dims_num)
        if p.scale < 1:
            raise SpecError(f"the scale must be positive, got {p.scale}")
        return {"scale": (p.scale if p.has("scale") else 1,) * (p.dims_num - 2)}
    expect_images(bottoms)
    by_stride = not p.has("scale") and p.has("stride")
    names = ("stride", "stride_h", "stride_w") if by_stride else ("scale", "scale_h", "scale_w")
    scale = (getattr(p, names[1]), getattr(p, names[2])) if p.has(names[1]) else (getattr(p, names[0]),) * 2
    given = any(p.has(name) for name in names)
    if len(bottoms) == 1:
        if not given and not p.has("upsample_h"):
            scale = (1, 1)  # darknet2caffe's default
        args: dict[str, Any] = {"scale": scale}
    else:
        if bottoms[1] != bottoms[0]:
            raise SpecError(f"the mask has shape {bottoms[1]}, the first bottom {bottoms[0]}; they must be equal")
        padded = (p.pad_out_h, p.pad_out_w)
        if any(pad and s != 2 for pad, s in zip(padded, scale, strict=True)):
            raise SpecError(f"pad_out_h and pad_out_w need a scale of 2, got {scale}")
        args = {"size": tuple(n * s - pad for n, s, pad in zip(bottoms[0][2:], scale, padded, strict=True))}
    if p.has("upsample_h") and p.has("upsample_w"):
        args = {"size": (p.upsample_h, p.upsample_w)}
    if min(args.get("size") or args["scale"]) < 1:
        raise SpecError(f"the scale must be positive, got {scale}")
    return args


def _upsample(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    args, bottom = upsampling(layer.upsample_param, bottoms), bottoms[0]
    size = args.get("size") or tuple(n * s for n, s in zip(bottom[2:], args["scale"], strict=True))
    return [(*bottom[:2], *size)]


def _max_unpool(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.max_unpool_param
    expect_images(bottoms)
    if bottoms[1] != bottoms[0]:
        raise SpecError(f"the mask has shape {bottoms[1]}, the first bottom {bottoms[0]}; they must be equal")
    if min(p.dst_h or 0, p.dst_w or 0) < 1:
        raise SpecError("dst_h and dst_w are required")
    return [(*bottoms[0][:2], p.dst_h, p.dst_w)]


def interpolated(p: Message, bottom: Shape) -> tuple[int, int]:
    """Height and width of the top of a BilinearInterpolate. Source: bilinear_interpolate_layer.cpp."""
    by_size = p.has("dst_h") or p.has("dst_w")
    if by_size == p.has("scale_factor"):
        raise SpecError("the size is given by dst_h and dst_w, or by scale_factor")
    factor = np.float32(p.scale_factor)
    scaled = (int(np.float32(n) * factor) for n in bottom[2:])
    given = (p.dst_h if p.has("dst_h") else bottom[2], p.dst_w if p.has("dst_w") else bottom[3])
    height, width = given if by_size else scaled
    if min(height, width) < 1:
        raise SpecError(f"a bottom {bottom} would become {height} x {width}")
    if p.align_corners and min(height, width) == 1:
        raise SpecError(f"align_corners of a top of {height} x {width} divides by 0 in Caffe")
    return height, width


def _bilinear_interpolate(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    expect_images(bottoms)
    return [(*bottoms[0][:2], *interpolated(layer.bilinear_interpolate_param, bottoms[0]))]


def _pad(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """Rows and columns; the fork writes outside of the top where some are negative and others are not.

    That of Synopsys has two numbers for every axis.
    """
    p = layer.pad_param
    if p.paddings:
        if len(p.paddings) != 2 * len(bottoms[0]):
            raise SpecError(f"{len(p.paddings)} paddings; a bottom {bottoms[0]} needs {2 * len(bottoms[0])}")
        return [tuple(n + sum(p.paddings[2 * k : 2 * k + 2]) for k, n in enumerate(bottoms[0]))]
    expect_images(bottoms)
    n, c, *size = bottoms[0]
    by_axis = ((p.pad_u, p.pad_d), (p.pad_l, p.pad_r))
    pads = [pad for pair in by_axis for pad in pair]
    if min(pads) < 0 <= max(pads):
        raise SpecError("pad_u, pad_d, pad_l and pad_r must all be negative, or none of them")
    for length, pair in zip(size, by_axis, strict=True):
        if length + sum(pair) < 1:
            raise SpecError(f"pads {pair} leave nothing of {length}")
        if p.pad_type == "REFLECT" and max(pair) >= length:
            raise SpecError(f"REFLECT needs pads less than the {length} of the bottom, got {max(pair)}")
    return [(n, c, *(length + sum(pair) for length, pair in zip(size, by_axis, strict=True)))]


def unpooling(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
    """The constructor arguments of an Unpooling."""
    expect_images(bottoms)
    if len(bottoms) > 1 and bottoms[1] != bottoms[0]:
        raise SpecError(f"the mask has shape {bottoms[1]}, the first bottom {bottoms[0]}; they must be equal")
    p = layer.unpooling_param
    kernel, stride = sizes(p, "kernel_size", "kernel"), sizes(p, "stride", "stride") or (1, 1)
    if kernel is None:
        raise SpecError("unpooling_param: kernel_size is missing")
    if any(sizes(p, "pad", "pad") or ()):
        raise SpecError("unpooling_param: pad is not supported, as in Caffe's fork")
    if p.unpool not in ("MAX", "AVE", "TILE"):
        raise SpecError(f"unpooling_param: unpool is MAX, AVE or TILE, got {p.unpool}")
    size = sizes(p, "unpool_size", "unpool")
    if size is None:
        axes = zip(bottoms[0][2:], kernel, stride, strict=True)
        height, width = (max((n - 1) * s + k, n * s + 1) for n, k, s in axes)
        size = (height, width)
    if min(*kernel, *stride, *size) < 1:
        raise SpecError("unpooling_param: kernel, stride and size must be positive")
    return {"size": size, "kernel_size": kernel, "stride": stride, "unpool": p.unpool}


def _unpooling(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    return [(*bottoms[0][:2], *unpooling(layer, bottoms)["size"])]


def _resample(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.resample_param
    expect_images(bottoms)
    if p.type not in ("NEAREST", "LINEAR", "CUBIC"):
        raise SpecError(f"type {p.type} is not supported; NEAREST, LINEAR and CUBIC are")
    size = bottoms[1][2:] if len(bottoms) > 1 else (p.height, p.width)
    if min(size) < 1:
        raise SpecError("height and width are required unless there is a second bottom")
    return [(*bottoms[0][:2], *size)]


def block_of(layer: Message) -> tuple[int, bool]:
    """The side of a Reorg's blocks, and whether it spreads the channels over them instead of gathering the pixels."""
    if layer.type == "PassThrough":
        block = layer.pass_through_param.block_height, layer.pass_through_param.block_width
        if len(set(block)) > 1:
            raise SpecError(f"pass_through_param: a block of {block[0]} x {block[1]} is not square")
        return block[0] or 2, False
    p = layer.reorg_yolo_param if layer.type == "ReorgYolo" else layer.reorg_param
    return p.stride or 2, bool(p.has("reverse") and p.reverse)


def _reorg(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """YOLO v2's space to depth. Both ways the channels are cut into blocks: without ``reverse`` too, the original reads
    the bottom as if it had fewer, larger planes.
    """
    expect_images(bottoms)
    (n, c, h, w), (stride, reverse) = bottoms[0], block_of(layer)
    if stride < 1 or c % stride**2:
        raise SpecError(f"stride {stride} needs channels in multiples of {stride**2}, the bottom has {c}")
    if reverse:
        return [(n, c // stride**2, h * stride, w * stride)]
    if h % stride or w % stride:
        raise SpecError(f"stride {stride} does not divide an image of {h} x {w}")
    return [(n, c * stride**2, h // stride, w // stride)]


def centre_margins(layer: Message, bottom: Shape) -> tuple[int, ...]:
    """What a CropCenter cuts off both ends of each axis."""
    given = layer.crop_center_param.crop_size if layer.has("crop_center_param") else []
    margins = tuple(int(n) for n in (given if isinstance(given, list) else [given]))
    if len(margins) != len(bottom):
        raise SpecError(f"{len(margins)} crop_size for {len(bottom)} axes")
    for margin, length in zip(margins, bottom, strict=True):
        if margin < 0 or margin * 2 >= length:
            raise SpecError(f"crop_size {margin} leaves nothing of {length}")
    return margins


def _crop_center(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom = bottoms[0]
    return [tuple(n - 2 * margin for n, margin in zip(bottom, centre_margins(layer, bottom), strict=True))]


def _reverse(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    canonical_axis(SIGNATURES[layer.type].parameters(layer).axis, len(bottoms[0]))
    return bottoms


def _flip(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    expect_axes(bottoms[0], 4)
    return bottoms


declare("Interp", _interp, message="interp_param", bottoms=(1, 2), traits=Trait.KEEPS_CHANNELS)
declare(
    "Upsample", _upsample, message="upsample_param", bottoms=(1, 2), traits=Trait.KEEPS_CHANNELS | Trait.NO_BACKWARD
)
declare(
    "MaxUnPool",
    _max_unpool,
    message="max_unpool_param",
    bottoms=2,
    holds=(Holds.NUMBERS, Holds.INDICES),
    traits=Trait.KEEPS_CHANNELS | Trait.NO_BACKWARD,
)
declare(
    "BilinearInterpolate",
    _bilinear_interpolate,
    message="bilinear_interpolate_param",
    traits=Trait.KEEPS_CHANNELS | Trait.NO_BACKWARD,
)
declare("Pad", _pad, message="pad_param", traits=Trait.REARRANGES | Trait.NO_BACKWARD | Trait.NOT_IN_PLACE)
declare(
    "Unpooling", _unpooling, message="unpooling_param", bottoms=(1, 2), traits=Trait.KEEPS_CHANNELS | Trait.WHOLE_LAYER
)
declare("Resample", _resample, message="resample_param", bottoms=(1, 2), traits=Trait.KEEPS_CHANNELS)
declare(
    "Reorg",
    _reorg,
    also=("reorg_param", "reorg_yolo_param", "pass_through_param"),
    aliases=("PassThrough", "ReorgYolo"),
    traits=Trait.REARRANGES,
)
declare("CropCenter", _crop_center, message="crop_center_param", traits=Trait.REARRANGES | Trait.WHOLE_LAYER)
declare("Flip", _flip, message="flip_param", traits=Trait.REARRANGES | Trait.KEEPS_CHANNELS)
declare(
    "Reverse",
    _reverse,
    message=("reverse_axis_param", "reverse_param"),
    aliases=("ReverseAxis",),
    traits=Trait.REARRANGES | Trait.KEEPS_CHANNELS,
)
