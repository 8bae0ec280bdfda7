"""The last resort of the command line: any exception that nothing else turned into a sentence becomes one here."""

from __future__ import annotations

import re
import traceback
from typing import Any

from caffe_port.errors import first_line, out_of_memory, printable

_DATA = re.compile(r"index -?\d+|index out of range in self|Target -?\d+ is out of bounds")
"""What PyTorch and the layers say of indices and labels in the data; Python's own 'list index out of range' is not."""


def sentence(error: Exception) -> str:
    """What to say of an exception: the layer and its line if they are known, what happened, and what to do."""
    where = _where(error)
    if out_of_memory(error):
        return f"{where}not enough memory\n  {_cut(error)}"
    if where and _DATA.search(str(error)):
        return f"{where}{_cut(error)}\n  The data that the layer reads hold an index or a label that it does not have."
    kind = type(error).__name__
    said = "" if first_line(error) == kind else f": {_cut(error)}"
    return (
        f"{where}caffe-port failed with {kind}{said}\n"
        "  This is an error in caffe-port. docs/security.md (How to report a problem) says where to report it;\n"
        "  --traceback shows what a report should contain."
    )


def stream(error: OSError) -> str:
    """What an error that names no file is about: ``stdout`` if click or rich was writing to it, as to a full disk."""
    module = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "")
    return "stdout" if module.partition(".")[0] in ("click", "rich") else "file"


def _cut(error: BaseException) -> str:
    return printable(first_line(error))


def _where(error: Exception) -> str:
    """``net.prototxt:27: layer 'conv1' (Convolution): `` of the innermost frame that works on a layer; or nothing."""
    from caffe_port.formats.message import Message
    from caffe_port.spec import LayerSpec

    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            layer: Any = vars(value).get("layer") if type(value).__name__ in ("Step", "LayerRun") else value
            if isinstance(layer, LayerSpec):
                found = f"{layer.where}: layer '{layer.name}' ({layer.type}): "
            elif isinstance(layer, Message) and layer.schema is not None and layer.schema.name == "LayerParameter":
                line = f"line {layer.line}: " if layer.line else ""
                found = found or f"{line}layer '{layer.name}' ({layer.type}): "
    return found
