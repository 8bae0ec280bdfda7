"""The records of what slides a window of weights over the image. Sources: base_conv_layer.cpp, im2col_layer.cpp."""

from __future__ import annotations

import math
from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.checks import canonical_axis
from caffe_port.signatures.kernel_params import Kernel, extra_padding, kernel_of
from caffe_port.signatures.signature import ANY, SIGNATURES, Trait, declare
from caffe_port.typing import Shape


def convolution_numbers(p: Message, bottom: Shape, traits: Trait = Trait.NONE) -> tuple[int, int, int, Kernel]:
    """Channel axis, num_output, group, and the kernel along each axis after the channels.

    Args:
        p: ConvolutionParameter, or a fork's with its fields.
        bottom: the shape of the first bottom.
        traits: Trait.DEPTHWISE or Trait.PER_CHANNEL, where num_output and group need not be given.

    Raises:
        SpecError: what base_conv_layer.cpp refuses.
    """
    axis = canonical_axis(p.axis, len(bottom))
    channels, axes = bottom[axis], len(bottom) - axis - 1
    if axes > 3:
        raise SpecError(
            f"a bottom {bottom} with channel axis {axis} has {axes} spatial axes; PyTorch convolves over 1 to 3"
        )
    if p.relu:
        raise SpecError("relu: true is Intel's fused ReLU", hint="Write the ReLU as a layer of its own.")
    outputs, group = (
        channels
        if Trait.PER_CHANNEL in traits or (Trait.DEPTHWISE in traits and not p.has(name))
        else int(getattr(p, name))
        for name in ("num_output", "group")
    )
    if outputs < 1:
        raise SpecError("num_output (channels of the top) is missing or 0")
    if group < 1 or channels % group or outputs % group:
        raise SpecError(f"group {group} does not divide the {channels} channels and num_output {outputs}")
    return axis, outputs, group, kernel_of(p, axes, bottom, axis)


def padded(bottom: Shape, extra: tuple[int, int, int, int]) -> Shape:
    """An image with more on its left, right, top and bottom."""
    left, right, top, below = extra
    return (*bottom[:-2], bottom[-2] + top + below, bottom[-1] + left + right) if any(extra) else bottom


def slide(bottom: Shape, axis: int, kernel: Kernel) -> Shape:
    """How many windows fit along each axis after ``axis``. Source: conv_layer.cpp."""
    sizes = tuple(
        (size + 2 * pad - dilation * (k - 1) - 1) // stride + 1
        for size, k, stride, pad, dilation in zip(bottom[axis + 1 :], *kernel, strict=True)
    )
    return _positive(bottom, sizes, kernel)


def spread(bottom: Shape, axis: int, kernel: Kernel) -> Shape:
    """What all windows cover along each axis after ``axis``. Source: deconv_layer.cpp."""
    axes = zip(bottom[axis + 1 :], *kernel, strict=True)
    sizes = tuple(stride * (size - 1) + dilation * (k - 1) + 1 - 2 * pad for size, k, stride, pad, dilation in axes)
    return _positive(bottom, sizes, kernel)


def _positive(bottom: Shape, sizes: Shape, kernel: Kernel) -> Shape:
    if min(sizes) < 1:
        shown = ", ".join(f"{name} {'x'.join(map(str, value))}" for name, value in kernel._asdict().items())
        raise SpecError(f"a bottom {bottom} gives an empty output {sizes} with {shown}")
    return sizes


def _arguments(layer: Message, bottom: Shape) -> tuple[int, int, int, Kernel]:
    signature = SIGNATURES[layer.type]
    return convolution_numbers(signature.parameters(layer), bottom, signature.traits)


def convolution(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """The rule of all convolutions and deconvolutions: a top for every bottom."""
    bottom = bottoms[0]
    if len(set(bottoms)) > 1:
        raise SpecError(f"all bottoms must have the same shape, got {', '.join(map(str, bottoms))}")
    axis, outputs, _, kernel = _arguments(layer, bottom)
    extra = extra_padding(SIGNATURES[layer.type].parameters(layer), bottom)
    if SIGNATURES[layer.type].has(Trait.SPREADS):
        if any(extra):
            raise SpecError("pad_l, pad_r, pad_t, pad_b are not supported here, unless both sides are equal")
        sizes = spread(bottom, axis, kernel)
    else:
        sizes = slide(padded(bottom, extra), axis, kernel)
    return [(*bottom[:axis], outputs, *sizes)] * len(bottoms)


def convolution_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    """The weight of a convolution or deconvolution, and the bias."""
    signature, bottom = SIGNATURES[layer.type], bottoms[0]
    axis, outputs, group, kernel = _arguments(layer, bottom)
    inputs = bottom[axis]
    first = (inputs, outputs // group) if signature.has(Trait.SPREADS) else (outputs, inputs // group)
    bias = {"bias": (outputs,)} if signature.parameters(layer).bias_term else {}
    return {"weight": (*first, *kernel.kernel_size), **bias}


def convolution_macs(layer: Message, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
    """A window that reaches over the edge of the image counts in full, as is usual."""
    signature = SIGNATURES[layer.type]
    weight = convolution_blobs(layer, bottoms)["weight"]
    places = bottoms if signature.has(Trait.SPREADS) else tops  # where the window is laid
    axis = canonical_axis(signature.parameters(layer).axis, len(bottoms[0]))
    return sum(math.prod(shape) // shape[axis] * math.prod(weight) for shape in places)


def _im2col(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom, p = bottoms[0], layer.convolution_param
    axis = canonical_axis(p.axis, len(bottom))
    kernel = kernel_of(p, len(bottom) - axis - 1, bottom, axis)
    channels = bottom[axis] * math.prod(kernel.kernel_size)
    return [(*bottom[:axis], channels, *slide(padded(bottom, extra_padding(p, bottom)), axis, kernel))]


def declare_convolution(
    type_: str, traits: Trait, *, message: str | tuple[str, ...] = "convolution_param", aliases: tuple[str, ...] = ()
) -> None:
    """The record of one more convolution or, with Trait.SPREADS, deconvolution."""
    declare(
        type_,
        convolution,
        message=message,
        aliases=aliases,
        bottoms=(1, ANY),
        blobs=("weight", "bias"),
        blob_shapes=convolution_blobs,
        macs=convolution_macs,
        traits=traits | Trait.PER_BOTTOM,
    )


declare_convolution("Convolution", Trait.SLIDES, aliases=("NdConvolution",))
declare_convolution("ConvolutionDepthwise", Trait.SLIDES | Trait.PER_CHANNEL)
declare_convolution("DepthwiseConvolution", Trait.SLIDES | Trait.DEPTHWISE, aliases=("DepthwiseConv",))
declare_convolution("Deconvolution", Trait.SPREADS, aliases=("NdDeconvolution",))
declare("Im2col", _im2col, message="convolution_param", traits=Trait.SLIDES)
