"""The records of what multiplies by a weight or adds one. Source: src/caffe/layers of Caffe 1.0."""

from __future__ import annotations

import math
from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.checks import canonical_axis
from caffe_port.signatures.signature import SIGNATURES, Holds, Trait, declare
from caffe_port.typing import Shape


def inner_product(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """The rule of InnerProduct: everything from ``axis`` on becomes num_output."""
    bottom, p = bottoms[0], layer.inner_product_param
    if p.num_output < 1:
        raise SpecError("num_output (length of the top) is missing or 0")
    return [(*bottom[: canonical_axis(p.axis, len(bottom))], p.num_output)]


def inner_product_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    """The weight, transposed where the file has it so, and the bias."""
    p = layer.inner_product_param
    inputs = math.prod(bottoms[0][canonical_axis(p.axis, len(bottoms[0])) :])
    weight = (inputs, p.num_output) if p.transpose else (p.num_output, inputs)
    return {"weight": weight, **({"bias": (p.num_output,)} if p.bias_term else {})}


def inner_product_macs(layer: Message, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
    """One for each number of the weight and each row of the top."""
    weight = inner_product_blobs(layer, bottoms)["weight"]
    return math.prod(tops[0]) // layer.inner_product_param.num_output * math.prod(weight)  # type: ignore[no-any-return]


def _embed(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.embed_param
    if p.num_output < 1:
        raise SpecError("num_output (length of an embedding) is missing or 0")
    if p.input_dim < 1:
        raise SpecError("input_dim (number of embeddings: greatest index + 1) is missing or 0")
    if p.last_axis and bottoms[0][-1:] != (1,):
        raise SpecError(f"the last axis of the bottom must be 1, got {bottoms[0]}")
    return [(*(bottoms[0][:-1] if p.last_axis else bottoms[0]), p.num_output)]


def _embed_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:  # noqa: ARG001
    p = layer.embed_param
    return {"weight": (p.input_dim, p.num_output), **({"bias": (p.num_output,)} if p.bias_term else {})}


def broadcast(p: Message, bottoms: Sequence[Shape]) -> tuple[Shape, int]:
    """Shape and first axis of what Scale multiplies by and Bias adds. Source: scale_layer.cpp, bias_layer.cpp.

    Raises:
        SpecError: it reaches past the bottom, or the second bottom does not fit there.
    """
    bottom = bottoms[0]
    if len(bottoms) > 1:
        shape = tuple(bottoms[1])
        axis = canonical_axis(p.axis, len(bottom)) if shape else 0
        if tuple(bottom[axis : axis + len(shape)]) != shape:
            raise SpecError(f"the second bottom {shape} does not fit the first, {bottom}, from axis {axis} on")
        return shape, axis
    axis = canonical_axis(p.axis, len(bottom))
    if p.num_axes < -1:
        raise SpecError(f"num_axes must be at least -1 (all remaining axes), got {p.num_axes}")
    end = len(bottom) if p.num_axes == -1 else axis + p.num_axes
    if end > len(bottom):
        raise SpecError(f"axis {axis} and num_axes {p.num_axes} exceed the bottom {bottom}")
    return tuple(bottom[axis:end]), axis if end > axis else 0


def broadcasts(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """The rule of Scale, Bias and Scalar."""
    p = SIGNATURES[layer.type].parameters(layer)
    broadcast(p, bottoms)
    if p.schema is not None and "bias_term" in p.schema.fields and p.bias_term:
        canonical_axis(p.axis, len(bottoms[0]))  # the Bias inside asks for it even if the second bottom is one number
    return bottoms[:1]


def _scale_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    shape, _ = broadcast(layer.scale_param, bottoms)
    names = (["weight"] if len(bottoms) == 1 else []) + (["bias"] if layer.scale_param.bias_term else [])
    return dict.fromkeys(names, shape)


def _bias_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    return {"bias": broadcast(layer.bias_param, bottoms)[0]} if len(bottoms) == 1 else {}


declare(
    "InnerProduct",
    inner_product,
    message="inner_product_param",
    blobs=("weight", "bias"),
    blob_shapes=inner_product_blobs,
    macs=inner_product_macs,
    traits=Trait.DENSE,
)
declare(
    "Embed",
    _embed,
    message="embed_param",
    holds=(Holds.INDICES,),
    blobs=("weight", "bias"),
    blob_shapes=_embed_blobs,
    traits=Trait.MATRIX,
)
declare(
    "Scale",
    broadcasts,
    message="scale_param",
    bottoms=(1, 2),
    blobs=("weight", "bias"),
    blob_shapes=_scale_blobs,
    traits=Trait.AFFINE | Trait.BOTTOM_FOR_BLOB,
)
declare(
    "Bias",
    broadcasts,
    message="bias_param",
    bottoms=(1, 2),
    blobs=("bias",),
    blob_shapes=_bias_blobs,
    traits=Trait.AFFINE | Trait.BOTTOM_FOR_BLOB,
)
