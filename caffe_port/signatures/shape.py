"""Shape rules, one for each layer type: top shapes from bottom shapes.

:mod:`caffe_port.signatures.shapes` applies them.

Each rule is the Reshape function of Caffe's layer of that name, in src/caffe/layers (a fork's, where it says so).
"""

# ruff: noqa: ARG001 - every rule takes what all take

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.kernel_params import axis_values
from caffe_port.spec import LayerSpec
from caffe_port.typing import Shape

Rule = Callable[[LayerSpec, Sequence[Shape]], Sequence[Shape]]

ANY = 1 << 30

RULES: dict[str, tuple[Rule, int, int]] = {}
"""Type string -> (rule, least and greatest number of bottoms)."""


def rule(*types: str, bottoms: int | tuple[int, int] = 1) -> Callable[[Rule], Rule]:
    least, most = bottoms if isinstance(bottoms, tuple) else (bottoms, bottoms)

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(types, (rule, least, most)))
        return rule

    return register


def axis_of(layer: LayerSpec, axis: int, dims: int) -> int:
    """A negative axis counted from the end. Source: blob.hpp (CanonicalAxisIndex)."""
    if not -dims <= axis < dims:
        raise layer.error(f"axis {axis} does not exist in a bottom of {dims} dimensions")
    return axis % dims


def expect_dims(layer: LayerSpec, bottom: Shape, least: int, most: int) -> None:
    if not least <= len(bottom) <= most:
        wanted = str(least) if least == most else f"{least} or more" if most == ANY else f"{least} to {most}"
        raise layer.error(f"takes a bottom of {wanted} axes, got {text(bottom)}")


def text(shape: Shape) -> str:
    """A shape in a sentence: (1, 3, 32, 32)."""
    return f"({', '.join(map(str, shape))})"


# -- the shape stays ----------------------------------------------------------------------------------------------

_SAME_DIMS = {
    "BN": (2, 4),
    "BatchNorm": (1, ANY),
    "LRN": (4, 4),
    "MVN": (2, 4),
    "PReLU": (2, ANY),
    "ShuffleChannel": (3, ANY),
    "ChannelShuffle": (3, ANY),
}


@rule(
    "AbsVal",
    "BN",
    "BNLL",
    "BatchNorm",
    "ChannelShuffle",
    "Clip",
    "Dropout",
    "ELU",
    "Exp",
    "LRN",
    "Log",
    "MVN",
    "PReLU",
    "Power",
    "ReLU",
    "ShuffleChannel",
    "Sigmoid",
    "Softmax",
    "Swish",
    "TanH",
    "Threshold",
)
def _same(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    expect_dims(layer, bottoms[0], *_SAME_DIMS.get(layer.type, (0, ANY)))
    if layer.type == "Softmax":
        axis_of(layer, layer.param.softmax_param.axis, len(bottoms[0]))
    shuffles = layer.type in ("ShuffleChannel", "ChannelShuffle")
    group = layer.param.shuffle_channel_param.group if shuffles else 1
    if group < 1 or (group > 1 and bottoms[0][1] % group):
        raise layer.error(f"group {group} does not divide the {bottoms[0][1]} channels")
    return bottoms


@rule("Bias", "Scalar", "Scale", bottoms=(1, 2))
def _broadcast(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    broadcast_shape(layer, bottoms)
    return bottoms[:1]


def broadcast_shape(layer: LayerSpec, bottoms: Sequence[Shape]) -> Shape:
    """What Scale multiplies by and Bias adds. Source: scale_layer.cpp, bias_layer.cpp."""
    p = getattr(layer.param, f"{layer.type.lower()}_param")
    first, second = bottoms[0], bottoms[1] if len(bottoms) > 1 else None
    axis = axis_of(layer, p.axis, len(first)) if second != () else 0
    count = len(second) if second is not None else len(first) - axis if p.num_axes == -1 else p.num_axes
    if not 0 <= count <= len(first) - axis:
        raise layer.error(f"axis {axis} and {count} axes reach past the bottom {text(first)}")
    if second is not None and first[axis : axis + count] != second:
        raise layer.error(f"the second bottom {text(second)} does not fit {text(first)} from axis {axis} on")
    return first[axis : axis + count]


@rule("Eltwise", "ShortCut", "Shortcut", bottoms=(1, ANY))
def _eltwise(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    if len(set(bottoms)) > 1:
        raise layer.error(f"bottoms {', '.join(map(text, bottoms))} differ in shape")
    return bottoms[:1]


@rule("Filter", bottoms=(2, ANY))
def _filter(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    return bottoms[:-1]


@rule("LSTMUnit", bottoms=3)
def _lstm_unit(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    return [bottoms[0]] * 2


@rule("Split")
def _split(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    return [bottoms[0]] * len(layer.tops)


@rule("BlackHole", "HDF5Output", "Silence", bottoms=(0, ANY))
def _nothing(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    return []


# -- no bottoms ---------------------------------------------------------------------------------------------------


@rule("DummyData", bottoms=0)
def _dummy_data(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p, tops = layer.param.dummy_data_param, len(layer.tops)
    shapes = [tuple(s.dim) for s in p.shape]
    if not shapes:
        columns = [getattr(p, name) for name in ("num", "channels", "height", "width")]
        if any(len(column) not in (1, tops) for column in columns):
            raise layer.error("num, channels, height and width are given once, or once for each top")
        shapes = [tuple(column[min(k, len(column) - 1)] for column in columns) for k in range(tops)]
    if len(shapes) not in (1, tops):
        raise layer.error(f"gives {len(shapes)} shapes for {tops} tops; once, or once for each")
    return shapes if len(shapes) == tops else shapes * tops


@rule("Parameter", bottoms=0)
def _parameter(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    return [tuple(layer.param.parameter_param.shape.dim)]


# -- windows ------------------------------------------------------------------------------------------------------

Window = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _per_axis(layer: LayerSpec, p: Message, field: str, axes: int, default: int) -> tuple[int, ...]:
    """One number for each spatial axis. Source: base_conv_layer.cpp."""
    try:
        given = axis_values(p, field, axes)
    except SpecError as error:
        raise layer.error(error.what, error.hint) from None
    values = tuple(given or [default])
    if len(values) not in (1, axes):
        raise layer.error(f"{field} is given {len(values)} times, the bottom has {axes} spatial axes")
    if min(values) < (0 if field == "pad" else 1):
        raise layer.error(f"{field} must be at least 1, got {min(values)}" if given else f"{field} is missing")
    return values if len(values) == axes else values * axes


def convolution_message(layer: LayerSpec) -> Message:
    """``convolution_param``, or what C3D-v1.1 has instead."""
    own = layer.type in ("Convolution3D", "Deconvolution3D") and layer.param.has("convolution3d_param")
    return layer.param.convolution3d_param if own else layer.param.convolution_param  # type: ignore[no-any-return]


def window_of(layer: LayerSpec, bottom: Shape) -> tuple[int, Window]:
    """Channel axis, and kernel, stride, pad, dilation along each axis behind it."""
    p = convolution_message(layer)
    axis = axis_of(layer, p.axis, len(bottom))
    axes = len(bottom) - axis - 1
    if axes < 1:
        raise layer.error(f"no spatial axis is left behind axis {axis} of a bottom {text(bottom)}")
    hole = "hole" if any(p.has(f"hole{end}") for end in ("", "_h", "_w")) else "dilation"  # DeepLab's word
    fields = (("kernel_size", 0), ("stride", 1), ("pad", 0), (hole, 1))
    kernel, stride, pad, dilation = (_per_axis(layer, p, field, axes, default) for field, default in fields)
    return axis, (kernel, stride, pad, dilation)


def channels_of(layer: LayerSpec, channels: int) -> tuple[int, int]:
    """num_output and group; those of a depthwise convolution may be left out."""
    p = convolution_message(layer)
    depthwise = layer.type in ("ConvolutionDepthwise", "DepthwiseConv", "DepthwiseConvolution")
    outputs, group = (
        channels if depthwise and not p.has(field) else int(getattr(p, field)) for field in ("num_output", "group")
    )
    if outputs < 1:
        raise layer.error("num_output is missing or 0: it is the number of channels of the top")
    if group < 1 or channels % group or outputs % group:
        raise layer.error(f"group {group} does not divide the {channels} channels and num_output {outputs}")
    return outputs, group


def slide(layer: LayerSpec, bottom: Shape, axis: int, window: Window) -> Shape:
    sizes = tuple(
        (size + 2 * pad - dilation * (k - 1) - 1) // stride + 1
        for size, k, stride, pad, dilation in zip(bottom[axis + 1 :], *window, strict=True)
    )
    return positive(layer, bottom, sizes, window)


def positive(layer: LayerSpec, bottom: Shape, sizes: Shape, window: Window) -> Shape:
    if min(sizes) < 1:
        names = ("kernel_size", "stride", "pad", "dilation")
        shown = ", ".join(f"{n} {'x'.join(map(str, v))}" for n, v in zip(names, window, strict=True))
        raise layer.error(f"a bottom {text(bottom)} leaves no output with {shown}: it would be {text(sizes)}")
    return sizes


@rule("Im2col")
def _im2col(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom = bottoms[0]
    axis, window = window_of(layer, bottom)
    return [(*bottom[:axis], bottom[axis] * math.prod(window[0]), *slide(layer, bottom, axis, window))]


@rule("Pooling", "NdPooling", "Pooling3D")
def _pooling(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom, own = bottoms[0], layer.type == "Pooling3D" and layer.param.has("pooling3d_param")
    p = layer.param.pooling3d_param if own else layer.param.pooling_param
    expect_dims(layer, bottom, 5 if layer.type == "Pooling3D" else 4, 5)
    axes = len(bottom) - 2
    tops = 2 if len(layer.tops) > 1 and p.pool == "MAX" else 1  # the second holds the places of the maxima
    if p.global_pooling:
        return [(*bottom[:2], *[1] * axes)] * tops
    fields = (("kernel_size", 0), ("stride", 1), ("pad", 0))
    kernel, stride, pad = (_per_axis(layer, p, field, axes, default) for field, default in fields)
    ceil = p.round_mode == "CEIL" and p.ceil_mode and not p.round_below
    return [_pool(layer, bottom, kernel, stride, pad, ceil)] * tops


def _pool(layer: LayerSpec, bottom: Shape, kernel: Shape, stride: Shape, pad: Shape, ceil: bool) -> Shape:
    """With padding, the last window begins within the image or its leading padding. Source: pooling_layer.cpp."""
    sizes = []
    for size, k, s, margin in zip(bottom[2:], kernel, stride, pad, strict=True):
        if margin >= k:
            raise layer.error(f"pad {margin} must be less than the kernel, {k}")
        span = size + 2 * margin - k
        count = (-(-span // s) if ceil else span // s) + 1
        if any(pad) and (count - 1) * s >= size + margin:
            count -= 1
        if count < 1:
            raise layer.error(f"no window of {' x '.join(map(str, kernel))} fits a bottom {text(bottom)}")
        sizes.append(count)
    return (*bottom[:2], *sizes)


@rule("SPP")
def _spp(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom, height = bottoms[0], layer.param.spp_param.pyramid_height
    expect_dims(layer, bottom, 4, 4)
    if not 1 <= height <= max(bottom[2:]).bit_length():
        raise layer.error(f"pyramid_height {height} does not fit an image of {bottom[2]} x {bottom[3]}")
    levels = []
    for bins in (1 << level for level in range(height)):
        kernel = tuple(-(-size // bins) for size in bottom[2:])
        pad = tuple((k * bins - size + 1) // 2 for k, size in zip(kernel, bottom[2:], strict=True))
        levels.append(_pool(layer, bottom, kernel, kernel, pad, ceil=True))
    return levels if height == 1 else [(bottom[0], sum(math.prod(level[1:]) for level in levels))]


# -- axes ---------------------------------------------------------------------------------------------------------


def _legacy_axis(layer: LayerSpec, p: Message, legacy: str, dims: int) -> int:
    return axis_of(layer, getattr(p, legacy) if p.has(legacy) else p.axis, dims)


@rule("Concat", bottoms=(1, ANY))
def _concat(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    axis = _legacy_axis(layer, layer.param.concat_param, "concat_dim", len(bottoms[0]))
    if len({(*shape[:axis], -1, *shape[axis + 1 :]) for shape in bottoms}) > 1:
        raise layer.error(f"bottoms {', '.join(map(text, bottoms))} cannot be joined along axis {axis}")
    return [(*bottoms[0][:axis], sum(shape[axis] for shape in bottoms), *bottoms[0][axis + 1 :])]


@rule("Slice")
def _slice(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom, tops = bottoms[0], len(layer.tops)
    axis = _legacy_axis(layer, layer.param.slice_param, "slice_dim", len(bottom))
    points = list(layer.param.slice_param.slice_point)
    if not points:
        if not tops or bottom[axis] % tops:
            raise layer.error(f"{tops} tops do not divide the {bottom[axis]} of axis {axis} evenly; give slice_point")
        points = [bottom[axis] // tops * k for k in range(1, tops)]
    edges = [0, *points, bottom[axis]]
    if len(points) != tops - 1 or any(a >= b for a, b in pairwise(edges)):
        raise layer.error(f"slice points {points} must increase within axis {axis} ({bottom[axis]}), for {tops} tops")
    return [(*bottom[:axis], b - a, *bottom[axis + 1 :]) for a, b in pairwise(edges)]


@rule("AutoCrop", "Crop", bottoms=2)
def _crop(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    x, like = bottoms
    axis, given = axis_of(layer, layer.param.crop_param.axis, len(x)), list(layer.param.crop_param.offset) or [0]
    offsets = given * (len(x) - axis) if len(given) == 1 else given
    if len(like) != len(x) or len(offsets) != len(x) - axis:
        raise layer.error(f"{text(x)} cannot be cropped to {text(like)} from axis {axis} on with {len(given)} offsets")
    for dim, offset in enumerate(offsets, axis):
        if offset + like[dim] > x[dim]:
            raise layer.error(f"dimension {dim}: offset {offset} and size {like[dim]} reach beyond {x[dim]}")
    return [(*x[:axis], *like[axis:])]


@rule("Flatten")
def _flatten(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom, p = bottoms[0], layer.param.flatten_param
    start, end = axis_of(layer, p.axis, len(bottom)), axis_of(layer, p.end_axis, len(bottom))
    if start > end:
        raise layer.error(f"axis {p.axis} comes after end_axis {p.end_axis} in a bottom {text(bottom)}")
    return [(*bottom[:start], math.prod(bottom[start : end + 1]), *bottom[end + 1 :])]


@rule("Reshape")
def _reshape(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom, p = bottoms[0], layer.param.reshape_param
    dims = list(p.shape.dim)
    start = p.axis if p.axis >= 0 else len(bottom) + p.axis + 1
    end = len(bottom) if p.num_axes == -1 else start + p.num_axes
    if not 0 <= start <= end <= len(bottom):
        raise layer.error(f"axis {p.axis} and num_axes {p.num_axes} do not fit a bottom {text(bottom)}")
    if any(d == 0 and start + i >= len(bottom) for i, d in enumerate(dims)):
        raise layer.error(f"shape {dims} copies (0) a dimension that the bottom {text(bottom)} does not have")
    dims = [bottom[start + i] if d == 0 else d for i, d in enumerate(dims)]
    count, known = math.prod(bottom[start:end]), math.prod(d for d in dims if d != -1)
    if min(dims, default=0) < -1 or dims.count(-1) > 1 or (count % known if known and -1 in dims else count != known):
        raise layer.error(f"shape {text(tuple(dims))} does not hold the {count} values of {text(bottom[start:end])}")
    return [(*bottom[:start], *(count // known if d == -1 else d for d in dims), *bottom[end:])]


@rule("Permute")
def _permute(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom, order = bottoms[0], list(layer.param.permute_param.order)
    if len(set(order)) < len(order) or not set(order) <= set(range(len(bottom))):
        raise layer.error(f"order {order} must name different axes of a bottom {text(bottom)}")
    return [tuple(bottom[axis] for axis in (*order, *(k for k in range(len(bottom)) if k not in order)))]


@rule("Tile")
def _tile(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom, p = bottoms[0], layer.param.tile_param
    axis = axis_of(layer, p.axis, len(bottom))
    if p.tiles < 1:
        raise layer.error("tiles is missing or 0")
    return [(*bottom[:axis], bottom[axis] * p.tiles, *bottom[axis + 1 :])]


@rule("BatchReindex", bottoms=2)
def _batch_reindex(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    expect_dims(layer, bottoms[1], 1, 1)
    return [(*bottoms[1], *bottoms[0][1:])]


@rule("Reduction")
def _reduction(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    return [bottoms[0][: axis_of(layer, layer.param.reduction_param.axis, len(bottoms[0]))]]


@rule("ArgMax")
def _argmax(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom, p = bottoms[0], layer.param.argmax_param
    axis = axis_of(layer, p.axis, len(bottom)) if p.has("axis") else None
    size = math.prod(bottom[1:]) if axis is None else bottom[axis]
    if not 1 <= p.top_k <= size:
        raise layer.error(f"top_k {p.top_k} is not in 1..{size}")
    if axis is not None:
        return [(*bottom[:axis], p.top_k, *bottom[axis + 1 :])]
    return [(bottom[0], 2 if p.out_max_val else 1, p.top_k, *[1] * (len(bottom) - 3))]


# -- losses -------------------------------------------------------------------------------------------------------


@rule(
    "CenterLoss",
    "ContrastiveLoss",
    "EuclideanLoss",
    "FocalLoss",
    "HingeLoss",
    "MultiBoxLoss",
    "MultinomialLogisticLoss",
    "SigmoidCrossEntropyLoss",
    "SmoothL1Loss",
    "TripletLoss",
    bottoms=(2, 5),
)
def _loss(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    return [()]


@rule("SoftmaxWithLoss", "InfogainLoss", bottoms=(2, 3))
def _loss_and_probabilities(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    return [(), bottoms[0]] if len(layer.tops) > 1 else [()]


@rule("Accuracy", bottoms=2)
def _accuracy(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    axis = axis_of(layer, layer.param.accuracy_param.axis, len(bottoms[0]))
    return [(), (bottoms[0][axis],)] if len(layer.tops) > 1 else [()]
