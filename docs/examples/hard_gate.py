"""The example of CONTRIBUTING.md: a layer type is one class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from caffe_port.formats.message import Message
from caffe_port.layers import Layer
from caffe_port.typing import Shape


class HardGate(Layer):
    """min(1, max(0, slope * x + shift)).

    Differs from PyTorch: nn.Hardsigmoid has the slope 1 / 6.
    Reference: our fork's hard_gate_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"slope": float(p.hard_gate_param.slope), "shift": float(p.hard_gate_param.shift)}

    def __init__(self, slope: float, shift: float) -> None:
        super().__init__()
        self.slope = slope
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return (self.slope * x + self.shift).clamp(0, 1)
