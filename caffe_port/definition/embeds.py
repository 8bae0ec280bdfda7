"""Embed layers of bottom-up-attention's Caffe: an index (..., 1) becomes (..., num_output), where Caffe adds an axis.

No field tells the two apart, but most nets fit only one of them. Source: embed_layer.cpp of both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from caffe_port.errors import SpecError
from caffe_port.signatures import shapes
from caffe_port.spec import NetSpec, Producer
from caffe_port.typing import Shape


def fitted(spec: NetSpec, inputs: Mapping[str, Shape]) -> NetSpec:
    """The net, with its Embed layers as in that fork if it fits only so; a note says so.

    Args:
        inputs: shape by input blob.
    """
    if not any(layer.type == "Embed" for layer in spec.layers) or any(blob not in inputs for blob, _ in spec.inputs):
        return spec
    found: dict[Producer, Shape] = {producer: tuple(inputs[blob]) for blob, producer in spec.inputs}
    names: list[str] = []
    failed = False
    for layer in spec.layers:
        if layer.is_input:
            continue
        bottoms = [found[source] for source in layer.producers if source in found]
        try:
            tops = shapes.top_shapes(layer, bottoms)
        except SpecError:
            failed = True
            break
        if layer.type == "Embed" and len(bottoms[0]) > 1 and bottoms[0][-1] == 1:
            names.append(layer.name)
        found.update({(layer.name, k): shape for k, shape in enumerate(tops)})
    if not failed or not names:
        return spec
    told = f"{', '.join(names)} (Embed): num_output replaces the last axis of the bottom, as in bottom-up-attention"
    changed = dataclasses.replace(
        spec,
        layers=tuple(
            dataclasses.replace(layer, param=layer.param.copy(embed_param=layer.param.embed_param.copy(last_axis=True)))
            if layer.name in names
            else layer
            for layer in spec.layers
        ),
        notes=(*spec.notes, f"{told}; with a further axis, as in Caffe 1.0, the net does not fit"),
    )
    try:
        shapes.infer(changed, inputs)
    except SpecError:
        return spec
    return changed
