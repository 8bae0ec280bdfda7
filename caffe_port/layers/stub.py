"""A placeholder for layers of an unknown type, so that the rest of the net can be converted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from caffe_port.formats import prototxt
from caffe_port.formats.message import Message
from caffe_port.layers.layer import Layer
from caffe_port.typing import Shape


class Stub(Layer, register=False):
    """TO BE COMPLETED BY HAND: a Caffe layer of a type that caffe-port does not know.

    It replaces the layer and has the layer's parameters from the prototxt and its blobs from the weights file (blob0,
    blob1, ...). Its tops are assumed to have the shape of its first bottom.
    """

    def __init__(self, caffe_type: str, parameters: str = "", blobs: tuple[tuple[int, ...], ...] = ()) -> None:
        super().__init__()
        self.caffe_type = caffe_type
        self.told = parameters
        for index, shape in enumerate(blobs):
            self.register_parameter(f"blob{index}", nn.Parameter(torch.empty(shape)))

    def forward(self, *bottoms: Tensor) -> Tensor:
        raise NotImplementedError(f"implement Caffe's layer {self.caffe_type} ({self.told})")

    @classmethod
    def build(cls, layer: Message, bottoms: Sequence[Shape]) -> Layer:
        own = Message("LayerParameter", type=layer.type)
        for name, value in layer.items():
            if name.endswith("_param") and name not in ("transform_param", "loss_param"):
                own.set(name, value)
        own.unknown = layer.unknown
        text = " ".join(prototxt.dump(own.copy(type=None)).split())
        stub = cls.make({"caffe_type": layer.type, "parameters": text})
        assert isinstance(stub, Stub)
        stub.tops = len(layer.top)
        return stub

    tops = 1

    def infer(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        like = bottoms[0] if bottoms else torch.empty(())
        return like if self.tops == 1 else (like,) * self.tops

    def blob_names(self) -> list[str]:
        return list(self._parameters)

    def mismatch(self, arrays: Sequence[np.ndarray[Any, Any]]) -> str:
        return ""

    def load_blobs(self, arrays: Sequence[np.ndarray[Any, Any]]) -> None:
        self.args["blobs"] = tuple(tuple(array.shape) for array in arrays)
        for index, array in enumerate(arrays):
            self.register_parameter(f"blob{index}", nn.Parameter(torch.tensor(np.asarray(array, np.float32))))
