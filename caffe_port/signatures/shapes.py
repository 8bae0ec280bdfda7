"""Shapes, parameters and multiply-accumulates of layers by their records, without torch.

The tests hold every rule to what the layer makes, and to what Caffe allocated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.caffemodel import MAX_AXES
from caffe_port.signatures.loss import class_count
from caffe_port.signatures.plugins import find
from caffe_port.signatures.signature import Holds, Signature, holds
from caffe_port.spec import LayerSpec, NetSpec, Producer
from caffe_port.terminal import count
from caffe_port.typing import Shape


class UnknownShape(SpecError):  # noqa: N818 - it says what is the matter
    """There is no rule for this type."""


def infer(spec: NetSpec, inputs: Mapping[str, Shape]) -> dict[Producer, Shape]:
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
    found: dict[Producer, Shape] = {}
    for blob, producer in spec.inputs:
        if blob not in inputs:
            raise SpecError(f"the shape of input '{blob}' is unknown", spec.path)
        found[producer] = tuple(inputs[blob])
    for layer in spec.layers:
        if not layer.is_input:
            for index, shape in enumerate(top_shapes(layer, [found[s] for s in layer.producers])):
                found[layer.name, index] = shape
    return found


def rule_of(layer: LayerSpec) -> Signature | None:
    """The record of a layer, where it has a shape rule."""
    signature = find(layer.param)
    return signature if signature is not None and signature.tops is not None else None


def top_shapes(layer: LayerSpec, bottoms: Sequence[Shape]) -> list[Shape]:
    """The shapes of one layer's tops.

    A loss does not look at its labels: where they come from a database, their shape is not in the net.

    Raises:
        UnknownShape, SpecError: as :func:`infer`.
    """
    signature = _known(layer)
    with layer.checked():
        tops = signature.top_shapes(layer.param, bottoms)
    if len(tops) != len(layer.tops) and not (tops == [()] and not layer.tops):  # a loss may leave its top unnamed
        raise layer.error(f"has {len(layer.tops)} tops, but this type produces {len(tops)} from {len(bottoms)} bottoms")
    for name, shape in zip(layer.tops, tops, strict=False):
        if len(shape) > MAX_AXES:
            raise layer.error(f"top '{name}' has {count(len(shape), 'axis', 'axes')}; Caffe's limit is {MAX_AXES}")
    return tops


def blob_shapes(layer: LayerSpec, bottoms: Sequence[Shape]) -> list[Shape]:
    """The shapes of a layer's parameter blobs, in Caffe's order; none for a layer without.

    Raises:
        UnknownShape: the type is not known, so that it may have blobs.
        SpecError: the layer does not fit its bottoms.
    """
    if layer.is_input:
        return []
    top_shapes(layer, bottoms)
    return list(named_blobs(layer, bottoms).values())


def named_blobs(layer: LayerSpec, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    """The shapes of the parameter blobs by name, of a layer that :func:`top_shapes` takes."""
    rule = _known(layer).blob_shapes
    if rule is None:
        return {}
    with layer.checked():
        return dict(rule(layer.param, [tuple(shape) for shape in bottoms]))


def statistics(layer: LayerSpec) -> frozenset[int]:
    """The indices of the blobs that a forward pass in TRAIN writes and no solver touches: BatchNorm's."""
    signature = find(layer.param)
    if signature is None:
        return frozenset()
    return frozenset(index for index, name in enumerate(signature.blobs) if name in signature.statistics)


def integers_below(layer: LayerSpec, bottoms: Sequence[Shape], index: int) -> int | None:
    """The bound of the whole numbers that a bottom holds (labels, indices, flags); None where it holds any numbers."""
    signature, what = find(layer.param), holds(layer.type, index)
    if signature is None:
        return None
    if what is Holds.LABELS:
        return class_count(layer.param, bottoms)
    if what is Holds.INDICES:
        p = signature.parameters(layer.param)
        fields = p.schema.fields if p.schema is not None else {}
        if "dst_h" in fields:
            return int(p.dst_h * p.dst_w)
        return int(p.input_dim) if "input_dim" in fields else bottoms[0][0]
    return 2 if what in (Holds.FLAGS, Holds.CONTINUES) else None


def macs(layer: LayerSpec, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
    """Multiply-accumulates of one forward pass, for the batch in the shapes.

    Counted are products with weights: convolution, deconvolution, InnerProduct, LSTM and their like. What is done once
    for each number (biases, activations, normalization, Scale, pooling) counts 0.
    """
    signature = find(layer.param)
    rule = signature.macs if signature is not None else None
    if rule is None:
        return 0
    with layer.checked():
        return rule(layer.param, bottoms, tops)


def _known(layer: LayerSpec) -> Signature:
    signature = rule_of(layer)
    if signature is None:
        raise UnknownShape(f"layer '{layer.name}' ({layer.type}): no shape rule for this type", layer.where)
    return signature
