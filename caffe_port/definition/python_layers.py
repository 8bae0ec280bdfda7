"""Python layers that published nets have, put into types that do the same.

The code itself is never run: only its name and the literals in ``param_str`` count. A class that a plugin maps
(``@python_layer``) goes first.

Sources: python/pad.py and python/pads.py of foss-for-synopsys-dwc-arc-processors/synopsys-caffe;
caffe_models/yolo_v2_voc of its models; python/spatial_dropout.py of TimoSaemann/caffe-enet.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any, Final

from caffe_port.formats.message import Message, schema
from caffe_port.signatures.signature import PYTHON


def translated(layers: Sequence[Message]) -> list[Message]:
    """The layers, with those of known Python code in the words of other types."""
    return [_translated(layer) if layer.type == "Python" else layer for layer in layers]


def _translated(layer: Message) -> Message:
    p = layer.python_param
    name = f"{p.module}.{p.layer}"
    known = _KNOWN.get(name)
    if known is None or name in PYTHON:
        return layer
    try:
        said = ast.literal_eval(p.param_str) if p.param_str else {}
        type_, own, values = known(said)
    except (KeyError, SyntaxError, TypeError, ValueError):
        return layer  # refused as Python code that is not known
    kind = schema("LayerParameter").fields[own].message
    return layer.copy(python_param=None, type=type_, **{own: Message(kind, layer.line, **values)})


Translation = tuple[str, str, dict[str, Any]]
"""A type, the field of its parameters, and these."""


def _pad_tensor(said: Any) -> Translation:
    """numpy.pad of rows and columns."""
    kinds = {"constant": "CONSTANT", "edge": "REPLICATE", "reflect": "REFLECT"}
    sides = {f"pad_{ours}": int(said[f"pad_{theirs}"]) for ours, theirs in zip("udlr", "tblr", strict=True)}
    return "Pad", "pad_param", {"pad_type": kinds[said["pad_mode"]], **sides}


def _pads(said: Any) -> Translation:
    """numpy.pad of every axis, with zeros."""
    return "Pad", "pad_param", {"paddings": [int(n) for before, after in said for n in (before, after)]}


def _spatial_dropout(said: Any) -> Translation:
    """ENet's: in its phase TEST it multiplies by 1 / (1 - p), as in training, but drops nothing."""
    p = float(said["p"])
    if said["phase"] == "TRAIN":
        return "SpatialDropout", "spatial_dropout_param", {"dropout_ratio": p}
    return "Power", "power_param", {"scale": 1 / (1 - p)}


def _darknet_reorg(said: Any) -> Translation:  # noqa: ARG001
    return "Reorg", "reorg_param", {"stride": 2}


_KNOWN: Final[dict[str, Callable[[Any], Translation]]] = {
    "pad.PadTensor": _pad_tensor,
    "pads.Pad": _pads,
    "spatial_dropout.SpatialDropoutLayer": _spatial_dropout,
    "yolov2.darknet_reorg": _darknet_reorg,
}
"""``module.class`` -> what does the same, for the value of its ``param_str``."""
