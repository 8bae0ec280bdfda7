"""Shapes, parameters and multiply-accumulates by formula, for a quick look at a net without importing torch.

The net itself gets its shapes by running its layers on the meta device; the tests hold the two to be equal.
Sources: the Reshape and LayerSetUp functions of src/caffe/layers.
"""

# ruff: noqa: ARG001 - every rule takes what all take

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from caffe_port.errors import SpecError
from caffe_port.signatures.forks import resample  # noqa: F401  registers the rules of forks
from caffe_port.signatures.shape import (
    ANY,
    RULES,
    axis_of,
    broadcast_shape,
    channels_of,
    convolution_message,
    positive,
    rule,
    slide,
    text,
    window_of,
)
from caffe_port.spec import SOURCE_TYPES, LayerSpec, NetSpec, Source
from caffe_port.typing import Shape

__all__ = ["RULES", "UnknownShape", "blob_shapes", "infer", "macs", "statistics", "top_shapes"]


class UnknownShape(SpecError):  # noqa: N818 - it says what is the matter
    """There is no rule for this type."""


def infer(spec: NetSpec, inputs: Mapping[str, Shape]) -> dict[Source, Shape]:
    """The shape of every blob of a net.

    Args:
        spec: the net.
        inputs: shape by input blob.

    Returns:
        Shape by (layer name, top index); the inputs are among them.

    Raises:
        UnknownShape: a layer has a type without a rule.
        SpecError: a layer does not fit its bottoms; with its name and line.
    """
    found: dict[Source, Shape] = {}
    for blob, source in spec.inputs:
        if blob not in inputs:
            raise SpecError(f"the shape of input '{blob}' is unknown", spec.path)
        found[source] = tuple(inputs[blob])
    for layer in spec.layers:
        if layer.type not in SOURCE_TYPES:
            for index, shape in enumerate(top_shapes(layer, [found[s] for s in layer.sources])):
                found[layer.name, index] = shape
    return found


def top_shapes(layer: LayerSpec, bottoms: Sequence[Shape]) -> list[Shape]:
    """The shapes of one layer's tops.

    A loss does not look at its labels: where they come from a database, their shape is not in the net.

    Raises:
        UnknownShape, SpecError: as :func:`infer`.
    """
    if layer.type not in RULES:
        raise UnknownShape(f"layer '{layer.name}' ({layer.type}): no shape rule for this type", layer.where)
    rule, least, most = RULES[layer.type]
    if not least <= len(bottoms) <= most:
        wanted = str(least) if least == most else f"{least} or more" if most == ANY else f"{least} to {most}"
        raise layer.error(f"{len(bottoms)} bottoms; the layer takes {wanted}")
    try:
        tops = [tuple(shape) for shape in rule(layer, bottoms)]
    except (IndexError, ValueError, ZeroDivisionError):
        raise layer.error(f"does not fit its bottoms of shape {', '.join(map(text, bottoms))}") from None
    if len(tops) != len(layer.tops) and not (tops == [()] and not layer.tops):  # a loss may leave its top unnamed
        raise layer.error(f"has {len(layer.tops)} tops, this type makes {len(tops)} from {len(bottoms)} bottoms")
    return tops


# -- rules of layers with weights -------------------------------------------------------------------------------------


_DECONVOLUTIONS = ("Deconvolution", "Deconvolution3D", "DeconvolutionRistretto", "NdDeconvolution")
_CONVOLUTIONS = (
    "Convolution",
    "Convolution3D",
    "ConvolutionDepthwise",
    "ConvolutionRistretto",
    "DepthwiseConv",
    "DepthwiseConvolution",
    "NdConvolution",
    *_DECONVOLUTIONS,
)


@rule(*_CONVOLUTIONS, bottoms=(1, ANY))
def _convolution(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom = bottoms[0]
    if len(set(bottoms)) > 1:
        raise layer.error(f"all bottoms must have the same shape, got {', '.join(map(text, bottoms))}")
    axis, window = window_of(layer, bottom)
    outputs, _ = channels_of(layer, bottom[axis])
    if layer.type in _DECONVOLUTIONS:
        axes = zip(bottom[axis + 1 :], *window, strict=True)
        sizes = tuple(stride * (size - 1) + dilation * (k - 1) + 1 - 2 * pad for size, k, stride, pad, dilation in axes)
        positive(layer, bottom, sizes, window)
    else:
        sizes = slide(layer, bottom, axis, window)
    return [(*bottom[:axis], outputs, *sizes)] * len(bottoms)


@rule("InnerProduct", "FcRistretto")
def _inner_product(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom, p = bottoms[0], layer.param.inner_product_param
    if p.num_output < 1:
        raise layer.error("num_output is missing or 0: it is the length of the top")
    return [(*bottom[: axis_of(layer, p.axis, len(bottom))], p.num_output)]


@rule("Embed")
def _embed(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.param.embed_param
    if p.num_output < 1 or p.input_dim < 1:
        raise layer.error("num_output or input_dim is missing or 0")
    return [(*bottoms[0], p.num_output)]


@rule("LSTM", "RNN", bottoms=(2, 5))
def _recurrent(layer: LayerSpec, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    x, cont, p = bottoms[0], bottoms[1], layer.param.recurrent_param
    if len(x) < 3 or cont != x[:2]:
        raise layer.error(f"bottoms {text(x)} and {text(cont)}; (steps, streams, ...), (steps, streams) are expected")
    if p.num_output < 1:
        raise layer.error("num_output is missing or 0: it is the length of the state")
    states = (2 if layer.type == "LSTM" else 1) if p.expose_hidden else 0
    return [(*x[:2], p.num_output), *[(1, x[1], p.num_output)] * states]


# -- blobs --------------------------------------------------------------------------------------------------------


def blob_shapes(layer: LayerSpec, bottoms: Sequence[Shape]) -> list[Shape]:
    """The shapes of a layer's parameter blobs, in Caffe's order; none for a layer without.

    Raises:
        UnknownShape: the type is not known, so that it may have blobs.
        SpecError: the layer does not fit its bottoms.
    """
    if layer.type in SOURCE_TYPES:
        return []
    top_shapes(layer, bottoms)
    return _BLOBS[layer.type](layer, bottoms) if layer.type in _BLOBS else []


def statistics(layer: LayerSpec) -> frozenset[int]:
    """The indices of the blobs that a forward pass in TRAIN writes and no solver touches: BatchNorm's."""
    return {"BatchNorm": frozenset((0, 1, 2)), "BN": frozenset((2, 3))}.get(layer.type, frozenset())


def _convolution_blobs(layer: LayerSpec, bottoms: Sequence[Shape]) -> list[Shape]:
    axis, window = window_of(layer, bottoms[0])
    inputs = bottoms[0][axis]
    outputs, group = channels_of(layer, inputs)
    first = (inputs, outputs // group) if layer.type in _DECONVOLUTIONS else (outputs, inputs // group)
    return [(*first, *window[0]), *([(outputs,)] if convolution_message(layer).bias_term else [])]


def _inner_product_blobs(layer: LayerSpec, bottoms: Sequence[Shape]) -> list[Shape]:
    p = layer.param.inner_product_param
    inputs = math.prod(bottoms[0][axis_of(layer, p.axis, len(bottoms[0])) :])
    weight = (inputs, p.num_output) if p.transpose else (p.num_output, inputs)
    return [weight, *([(p.num_output,)] if p.bias_term else [])]


def _embed_blobs(layer: LayerSpec, bottoms: Sequence[Shape]) -> list[Shape]:
    p = layer.param.embed_param
    return [(p.input_dim, p.num_output), *([(p.num_output,)] if p.bias_term else [])]


def _scale_blobs(layer: LayerSpec, bottoms: Sequence[Shape]) -> list[Shape]:
    blobs = int(len(bottoms) == 1) + int(layer.type == "Scale" and layer.param.scale_param.bias_term)
    return [broadcast_shape(layer, bottoms)] * blobs


def _batch_norm_blobs(layer: LayerSpec, bottoms: Sequence[Shape]) -> list[Shape]:
    channels = bottoms[0][1] if len(bottoms[0]) > 1 else 1
    return [(channels,), (channels,), (1,)]


def _bn_blobs(layer: LayerSpec, bottoms: Sequence[Shape]) -> list[Shape]:
    """Slope and bias, and the running statistics but in SegNet's form."""
    p = layer.param.bn_param
    running = any(p.has(name) for name in ("var_eps", "decay", "moving_average"))
    segnet = not running and any(p.has(name) for name in ("bn_mode", "scale_filler", "shift_filler"))
    return [(bottoms[0][1],)] * (2 if segnet else 4)


def _slope_blobs(layer: LayerSpec, bottoms: Sequence[Shape]) -> list[Shape]:
    p = layer.param.prelu_param if layer.type == "PReLU" else layer.param.norm_param
    if layer.type == "Normalize" and not layer.param.has("norm_param"):
        return []
    return [() if p.channel_shared else (bottoms[0][1],)]


def _recurrent_sizes(layer: LayerSpec, bottoms: Sequence[Shape]) -> tuple[int, int, int | None]:
    """Length of state, of input, and of static input or None."""
    tops = 1 + (0 if not layer.param.recurrent_param.expose_hidden else 2 if layer.type == "LSTM" else 1)
    static = math.prod(bottoms[2][1:]) if len(bottoms) > 1 + tops else None
    return layer.param.recurrent_param.num_output, math.prod(bottoms[0][2:]), static


def _recurrent_blobs(layer: LayerSpec, bottoms: Sequence[Shape]) -> list[Shape]:
    """In the order of the unrolled net: lstm_layer.cpp, rnn_layer.cpp."""
    hidden, inputs, static = _recurrent_sizes(layer, bottoms)
    rows = 4 * hidden if layer.type == "LSTM" else hidden
    blobs = [(rows, inputs), (rows,), *([(rows, static)] if static is not None else []), (rows, hidden)]
    return blobs if layer.type == "LSTM" else [*blobs, (hidden, hidden), (hidden,)]


def _face_blobs(layer: LayerSpec, bottoms: Sequence[Shape]) -> list[Shape]:
    """A row for each class; InnerDistance has a bias too."""
    names = {"MarginInnerProduct": "margin_inner_product_param", "InnerDistance": "inner_distance_param"}
    p = getattr(layer.param, names.get(layer.type, "largemargin_inner_product_param"))
    weight = (p.num_output, math.prod(bottoms[0][axis_of(layer, p.axis, len(bottoms[0])) :]))
    return [weight, (p.num_output,)] if layer.type == "InnerDistance" and p.bias_term else [weight]


def _margin_blobs(layer: LayerSpec, bottoms: Sequence[Shape]) -> list[Shape]:
    return [(5,)]


def _affine_blobs(layer: LayerSpec, bottoms: Sequence[Shape]) -> list[Shape]:
    return [() if layer.param.eltwise_affine_param.channel_shared else (bottoms[0][1],)] * 2


def _parameter_blobs(layer: LayerSpec, bottoms: Sequence[Shape]) -> list[Shape]:
    return [tuple(layer.param.parameter_param.shape.dim)]


_BLOBS: dict[str, Callable[[LayerSpec, Sequence[Shape]], list[Shape]]] = {
    **dict.fromkeys(_CONVOLUTIONS, _convolution_blobs),
    "InnerProduct": _inner_product_blobs,
    "FcRistretto": _inner_product_blobs,
    "Embed": _embed_blobs,
    "Scale": _scale_blobs,
    "Bias": _scale_blobs,
    "Scalar": _scale_blobs,
    "MarginInnerProduct": _face_blobs,
    "LargeMarginInnerProduct": _face_blobs,
    "InnerDistance": _face_blobs,
    "LabelSpecificMargin": _margin_blobs,
    "EltwiseAffine": _affine_blobs,
    "BatchNorm": _batch_norm_blobs,
    "BN": _bn_blobs,
    "PReLU": _slope_blobs,
    "Normalize": _slope_blobs,
    "LSTM": _recurrent_blobs,
    "RNN": _recurrent_blobs,
    "Parameter": _parameter_blobs,
}


# -- cost ---------------------------------------------------------------------------------------------------------


def macs(layer: LayerSpec, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
    """Multiply-accumulates of one forward pass, for the batch in the shapes.

    Counted are products with weights: convolution, deconvolution, InnerProduct, LSTM and RNN. What is done once for
    each number (biases, activations, normalisation, Scale, pooling) counts 0. A window that reaches over the edge of
    the image counts in full, as is usual.
    """
    if layer.type in _CONVOLUTIONS:
        weight = _convolution_blobs(layer, bottoms)[0]
        places = bottoms if layer.type in _DECONVOLUTIONS else tops  # where the window is laid
        axis = axis_of(layer, convolution_message(layer).axis, len(bottoms[0]))
        return sum(math.prod(shape) // shape[axis] * math.prod(weight) for shape in places)
    if layer.type in ("InnerProduct", "FcRistretto"):
        outputs: int = layer.param.inner_product_param.num_output
        return math.prod(tops[0]) // outputs * math.prod(_inner_product_blobs(layer, bottoms)[0])
    if layer.type in ("LSTM", "RNN"):
        hidden, inputs, static = _recurrent_sizes(layer, bottoms)
        steps, streams = bottoms[0][:2]
        rows = 4 * hidden if layer.type == "LSTM" else hidden
        out = hidden * hidden if layer.type == "RNN" else 0
        return streams * (steps * (rows * (inputs + hidden) + out) + rows * (static or 0))
    return 0
