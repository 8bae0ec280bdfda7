"""Crop: one blob cut to the size of another. An offset left out is worked out by definition/crop_offsets.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from caffe_port.formats.message import Message
from caffe_port.layers.layer import Layer
from caffe_port.signatures.crop import crop_offsets
from caffe_port.typing import Shape


class Crop(Layer):
    """The part of the first bottom, from ``axis`` on, that is as large as the second; ``offset`` is where it begins.

    Without ``crop_param``, forks older than Caffe 1.0 (of FCN, HED, U-Net) compute the offset that aligns the two
    bottoms from the layers before them, as AutoCrop does; that offset is used if it is an integer. Caffe 1.0 uses 0;
    set ``crop_param { offset: 0 }`` for that.
    Reference: crop_layer.cpp, auto_crop_layer.cpp (RCF)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        axis, offsets = crop_offsets(p, bottoms[0])
        return {"axis": axis, "offsets": offsets}

    def __init__(self, axis: int, offsets: tuple[int, ...]) -> None:
        super().__init__()
        self.axis, self.offsets = axis, offsets

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        for dim, offset in enumerate(self.offsets, self.axis):
            x = x.narrow(dim, offset, like.shape[dim])
        return x

    def call_source(self, *bottoms: str) -> str:
        x, like = bottoms
        parts = [":"] * self.axis
        for dim, n in enumerate(self.offsets, self.axis):
            parts.append(f"{n}:{n} + {like}.shape[{dim}]" if n else f":{like}.shape[{dim}]")
        return f"{x}[{', '.join(parts)}]"
