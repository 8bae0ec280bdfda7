"""Operators that stand for ONNX nodes while a module is traced; :mod:`caffe_port.emit.onnx_functions` writes them.

They are never computed: torch knows their shapes only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

torch.library.define("caffe_port::lrn", "(Tensor x, int size, float alpha, float beta, float k) -> Tensor")
torch.library.define("caffe_port::top", "(Tensor x, str name) -> Tensor")
torch.library.define(
    "caffe_port::detections",
    "(Tensor boxes, Tensor scores, int background, float overlap, float confidence, int top_k, int keep_top_k)"
    " -> Tensor",
)
lrn = torch.ops.caffe_port.lrn
"""F.local_response_norm, as the LRN of ONNX."""
top = torch.ops.caffe_port.top
"""Its bottom, which gets the name of the layer whose top it is."""
detections = torch.ops.caffe_port.detections
"""DetectionOutput from its candidates on: (1, 1, found, 7)."""


def _like(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x)


def _found(boxes: Tensor, *_: object) -> Tensor:
    return boxes.new_empty(1, 1, torch.library.get_ctx().new_dynamic_size(), 7)


for _name, _shape in (("lrn", _like), ("top", _like), ("detections", _found)):
    torch.library.register_fake(f"caffe_port::{_name}", _shape)


def named(value: Any, *names: str) -> Any:
    """The tops of a call, marked with their names: what :data:`~caffe_port.emit.forward_method.MARK` is in a module
    that is traced."""
    if isinstance(value, tuple):
        return (
            tuple(named(v, name) for v, name in zip(value, names, strict=False)) if len(value) == len(names) else value
        )
    return top(value, names[0]) if isinstance(value, Tensor) and value.is_floating_point() else value
