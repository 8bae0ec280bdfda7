"""A layer type of one's own: caffe-port convert net.prototxt -o out --plugin my_layers.py"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.layers import Layer
from caffe_port.typing import Shape


class ScaledTanh(Layer):
    """weight * tanh(alpha * x), with a weight for every channel.

    Blobs: weight (C)
    """

    blobs = ("weight",)

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        if not p.has("my_param"):
            raise SpecError("has no my_param { alpha: ... }")
        return {"channels": bottoms[0][1], "alpha": float(p.my_param.alpha)}

    @classmethod
    def fillers(cls, p: Message) -> dict[str, Message]:
        if not p.my_param.has("weight_filler"):
            return {}
        filler = p.my_param.weight_filler
        return {"weight": Message("FillerParameter", **dict(filler.items()))}

    def __init__(self, channels: int, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.weight = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = [-1] + [1] * (x.dim() - 2)
        return self.weight.reshape(shape) * torch.tanh(self.alpha * x)
