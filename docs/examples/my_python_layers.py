"""What stands for the Python layer ShiftLayer of tools/layers.py, which pycaffe would import."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from caffe_port.formats.message import Message
from caffe_port.layers import Layer
from caffe_port.layers.data import python_layer
from caffe_port.typing import Shape


@python_layer("tools.layers", "ShiftLayer")
class Shift(Layer):
    """x + by."""

    param = "python_param"

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"by": float(ast.literal_eval(p.param_str)["by"])}

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by
