"""The files of a net, each read once: a prototxt, weights, or both in an archive."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from caffe_port.definition import model_archive
from caffe_port.definition.chained import settled
from caffe_port.definition.definition import Definition
from caffe_port.definition.stored_blobs import for_layers
from caffe_port.errors import CaffePortError
from caffe_port.formats import caffemodel
from caffe_port.formats.caffemodel import Weights
from caffe_port.formats.kinds import holds_weights
from caffe_port.typing import PathLike


def read(
    prototxt: PathLike | Definition | None,
    weights: PathLike | Weights | None = None,
    writable: bool = False,
    ignore_fields: Collection[str] = (),
) -> tuple[Definition, Weights | None]:
    """Reads a net's files; parsed files are returned as they are.

    Args:
        prototxt, weights: as for :func:`caffe_port.load`.
        writable: make the blobs writable; changes never reach the file.
        ignore_fields: names of fields to go without, see :func:`caffe_port.port`.

    Raises:
        CaffePortError: a file cannot be read, or neither is given.
    """
    if isinstance(prototxt, (str, Path)) and holds_weights(prototxt):
        if weights is None:
            prototxt, weights = None, prototxt
        elif isinstance(weights, (str, Path)) and not holds_weights(weights):
            prototxt, weights = weights, prototxt
    if prototxt is None and weights is None:
        raise CaffePortError("give a prototxt, a caffemodel, or both")
    if weights is None and isinstance(prototxt, (str, Path)) and model_archive.is_archive(prototxt):
        prototxt, weights = None, prototxt
    if isinstance(weights, (str, Path)) and model_archive.is_archive(weights):
        model = model_archive.read(weights, writable, ignore_fields)
        weights, prototxt = model.weights, model.definition if prototxt is None else prototxt
    stored = weights if isinstance(weights, Weights) or weights is None else caffemodel.read(weights, writable)
    if isinstance(prototxt, Definition):
        definition = prototxt.without(ignore_fields)
    elif prototxt is not None:
        definition = Definition.read(prototxt, ignore_fields)
    else:
        assert stored is not None
        stored = settled(stored)
        definition = Definition.embedded(stored).without(ignore_fields)
    definition = definition.beside(stored)
    return definition, None if stored is None else for_layers(stored, definition.net.layer)
