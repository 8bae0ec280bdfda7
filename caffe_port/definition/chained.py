"""Whose numbers a weights file has, where only the sizes in its net tell: they must carry through as they are read.

What :mod:`caffe_port.formats.recognition` leaves open is tried by the rules of the layers: kernels, strides and pads as
each dialect reads them, from the input to the first layer that does not fit its bottoms or its blobs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

from caffe_port.definition.definition import Definition
from caffe_port.definition.deploy_view import view
from caffe_port.definition.input_shapes import resolve
from caffe_port.errors import SpecError
from caffe_port.formats import caffemodel
from caffe_port.formats.caffemodel import Weights
from caffe_port.formats.dialects import caffes, owned
from caffe_port.signatures import shapes
from caffe_port.spec import LayerSpec, NetSpec
from caffe_port.typing import Shape

_MOST_READINGS: Final = 8


def settled(weights: Weights) -> Weights:
    """The weights in the reading whose sizes carry through the net, if the file leaves it open and some do not."""
    known = weights.recognition
    if known is None or weights.net is None or not known.open or known.given:
        return weights
    readings = known.readings[:_MOST_READINGS]
    results = [(reading, *_read(weights, reading[0].label)) for reading in readings]
    carrying = [(reading, read) for reading, read, carries in results if carries]
    if not carrying or len(carrying) == len(results):
        return weights
    impossible = {dialect for reading, _, carries in results if carries is False for dialect in reading}
    (first, *_), read = carrying[0]
    assert read.net is not None
    return dataclasses.replace(read, recognition=known.settled(first, impossible))


def _read(weights: Weights, dialect: str) -> tuple[Weights, bool | None]:
    """The weights as a dialect wrote them, and whether the sizes carry through the net; None: nothing tells."""
    writable = weights.mapping is not None and weights.mapping.writable
    read = caffemodel.read(weights.path, writable, dialect)
    try:
        definition = Definition.embedded(read)
        spec = view(definition.spec(definition.saved_in or "TEST"))
        inputs = resolve(spec, read).shapes
    except SpecError:
        return read, None
    return read, _carries(spec, inputs, read)


def _carries(spec: NetSpec, inputs: dict[str, Shape], weights: Weights) -> bool | None:
    stored = weights.by_name()
    found = {producer: tuple(inputs[blob]) for blob, producer in spec.inputs}
    for layer in spec.layers:
        if layer.is_input:
            continue
        bottoms = [found[producer] for producer in layer.producers]
        try:
            tops = shapes.top_shapes(layer, bottoms)
            wanted = [math.prod(shape) for shape in shapes.blob_shapes(layer, bottoms)]
        except shapes.UnknownShape:
            return None
        except SpecError:
            return False if _is_caffes(layer) else None  # of a fork's type, another form may be refused
        held = [blob.size for blob in stored[layer.name].blobs] if layer.name in stored else wanted
        if held != wanted and _is_caffes(layer):
            return False
        found |= {(layer.name, index): shape for index, shape in enumerate(tops)}
    return True


def _is_caffes(layer: LayerSpec) -> bool:
    fields = owned(layer.type)
    return fields is not None and set(fields) <= caffes()
