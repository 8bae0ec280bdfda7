"""Convolutions of volumes, (N, C, D, H, W), in the words of C3D, and U-Nets. Pooling3D is in pooling.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from caffe_port.formats.message import Message
from caffe_port.layers.layer import Layer
from caffe_port.layers.spatial import Convolution, Deconvolution
from caffe_port.typing import Shape


class Convolution3D(Convolution):
    """Same as torch.nn.Conv3d.

    ``kernel_depth``, ``temporal_stride`` and ``temporal_pad`` belong to the first of the three axes, ``kernel_size``,
    ``stride`` and ``pad`` to the other two. ``filter_group`` has no effect on the numbers: it cuts the outputs into
    parts that all see every channel.

    Blobs: weight (C_out, C_in, kD, kH, kW), bias (C_out), in the file (1, 1, 1, 1, C_out)
    Reference: facebookarchive/C3D convolution3d_layer.cpp
    """


class Deconvolution3D(Deconvolution):
    """Same as torch.nn.ConvTranspose3d. The parameters are those of Convolution3D.

    Blobs: weight (C_in, C_out, kD, kH, kW), bias (C_out), in the file (1, 1, 1, 1, C_out)
    Reference: facebookarchive/C3D deconvolution3d_layer.cpp
    """


class MergeCrop(Layer):
    """The first bottom and the middle of the second, which is larger: their channels, or with ADD their sum (U-Net).

    ``forward`` says for each bottom whether it counts, or zeros in its place, and ``backward`` whether it gets a
    gradient; the second gets none unless that is given.

    Reference: naibaf7/caffe mergecrop_layer.cu (Caffe's OpenCL branch)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        args: dict[str, Any] = {"add": True} if p.operation == "ADD" else {}
        for name, usual in (("forward", (True, True)), ("backward", (True, False))):
            said = (*map(bool, getattr(p, name)), *usual[len(getattr(p, name)) :])
            args |= {{"forward": "counts", "backward": "learns"}[name]: said} if said != usual else {}
        return args

    def __init__(
        self, add: bool = False, counts: tuple[bool, bool] = (True, True), learns: tuple[bool, bool] = (True, False)
    ) -> None:
        super().__init__()
        self.add, self.counts, self.learns = add, counts, learns

    def forward(self, x: Tensor, larger: Tensor) -> Tensor:
        for axis, size in enumerate(x.shape[2:], 2):
            larger = larger.narrow(axis, (larger.shape[axis] - size) // 2, size)
        both = [v if learns else v.detach() for v, learns in zip((x, larger), self.learns, strict=True)]
        both = [v if counts else torch.zeros_like(v) for v, counts in zip(both, self.counts, strict=True)]
        return both[0] + both[1] if self.add else torch.cat(both, 1)
