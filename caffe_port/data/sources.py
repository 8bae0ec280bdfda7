"""The files that data layers name. Without torch."""

from __future__ import annotations

from pathlib import Path

from caffe_port.signatures.signature import signature_of
from caffe_port.spec import LayerSpec, NetSpec
from caffe_port.storage.files import find


def locate(name: str, folder: Path, layer: LayerSpec) -> Path:
    """Finds a file that a layer names: relative to the prototxt's or the current folder, or by its last part.

    Raises:
        SpecError: it does not exist.
    """
    found = find(name, folder)
    if found is not None:
        return found
    raise layer.error(
        f"'{name}' does not exist (looked in {folder} and in the current folder)",
        "--data feeds the net from a data set instead.",
    )


def check(net: NetSpec) -> None:
    """Raises SpecError if a data layer of a net names a file or database that does not exist."""
    for layer in net.layers:
        record = signature_of(layer.type) if layer.is_input else None
        if record is None or not record.messages:
            continue
        own = record.parameters(layer.param)
        source = getattr(own, "source", "") if own.schema is not None and "source" in own.schema.fields else ""
        if source:
            locate(source, layer.folder, layer)
