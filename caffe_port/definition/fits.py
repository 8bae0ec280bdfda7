"""Layers of which forks make different things, where no field tells them apart, but most nets fit only one of them.

- Embed: bottom-up-attention's replaces the last axis of an index (..., 1), where Caffe adds one. Source:
  embed_layer.cpp of both.
- PriorBox: FaceBoxes' makes 16 boxes for a min_size of 32 and 4 for one of 64. Source: prior_box_layer.cpp of
  sfzhang15/FaceBoxes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures import shapes
from caffe_port.spec import NetSpec, Producer
from caffe_port.typing import Shape


def fitted(spec: NetSpec, inputs: Mapping[str, Shape]) -> NetSpec:
    """The net, with such layers as in that fork if it fits only so; a note says so.

    Args:
        inputs: shape by input blob.
    """
    for type_, (other, words, usual) in _OTHERS.items():
        if any(layer.type == type_ for layer in spec.layers):
            spec = _tried(spec, inputs, type_, other, f"{words}; {usual}, the net does not fit")
    return spec


def _embed(layer: Message, bottoms: Sequence[Shape]) -> Message:
    if len(bottoms[0]) < 2 or bottoms[0][-1] != 1:
        return layer
    return layer.copy(embed_param=layer.embed_param.copy(last_axis=True))


def _face_boxes(layer: Message, bottoms: Sequence[Shape]) -> Message:  # noqa: ARG001
    p = layer.prior_box_param
    return layer if p.has("faceboxes") or not p.min_size else layer.copy(prior_box_param=p.copy(faceboxes=True))


_OTHERS: Final[dict[str, tuple[Callable[[Message, Sequence[Shape]], Message], str, str]]] = {
    "Embed": (
        _embed,
        "num_output replaces the last axis of the bottom, as in bottom-up-attention",
        "with a further axis, as in Caffe 1.0",
    ),
    "PriorBox": (
        _face_boxes,
        "16 boxes for a min_size of 32 and 4 for one of 64, as in FaceBoxes",
        "with one for each, as in SSD",
    ),
}
"""Type -> a layer as another fork has it, what that is, and what does not fit."""


def _tried(
    spec: NetSpec,
    inputs: Mapping[str, Shape],
    type_: str,
    other: Callable[[Message, Sequence[Shape]], Message],
    words: str,
) -> NetSpec:
    if any(blob not in inputs for blob, _ in spec.inputs):
        return spec
    found: dict[Producer, Shape] = {producer: tuple(inputs[blob]) for blob, producer in spec.inputs}
    changed: dict[str, Message] = {}
    for layer in spec.layers:
        if layer.is_input:
            continue
        bottoms = [found[source] for source in layer.producers if source in found]
        try:
            tops = shapes.top_shapes(layer, bottoms)
        except SpecError:
            break
        if layer.type == type_ and (param := other(layer.param, bottoms)) is not layer.param:
            changed[layer.name] = param
        found.update({(layer.name, k): shape for k, shape in enumerate(tops)})
    else:
        return spec  # it fits as it is
    if not changed:
        return spec
    layers = tuple(
        dataclasses.replace(layer, param=changed[layer.name]) if layer.name in changed else layer
        for layer in spec.layers
    )
    tried = dataclasses.replace(spec, layers=layers, notes=(*spec.notes, f"{', '.join(changed)} ({type_}): {words}"))
    try:
        shapes.infer(tried, inputs)
    except SpecError:
        return spec
    return tried
