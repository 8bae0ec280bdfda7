"""Convolutions of video and of volumes, (N, C, D, H, W), in the words of C3D. Pooling3D is in pooling.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
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

    @classmethod
    def own_message(cls, layer: Message) -> Message:
        return video_message(layer)

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_video(bottoms)
        return super().from_caffe(p, bottoms)


class Deconvolution3D(Deconvolution):
    """Same as torch.nn.ConvTranspose3d. The parameters are those of Convolution3D.

    Blobs: weight (C_in, C_out, kD, kH, kW), bias (C_out), in the file (1, 1, 1, 1, C_out)
    Reference: facebookarchive/C3D deconvolution3d_layer.cpp
    """

    @classmethod
    def own_message(cls, layer: Message) -> Message:
        return video_message(layer)

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_video(bottoms)
        return super().from_caffe(p, bottoms)


# -- parameters, from Caffe ---------------------------------------------------------------------------------------


def video_message(layer: Message) -> Message:
    """C3D-v1.1's message, else that which C3D-v1.0 shares with the convolution of images."""
    has_own = layer.has("convolution3d_param")
    return layer.convolution3d_param if has_own else layer.convolution_param  # type: ignore[no-any-return]


def expect_video(bottoms: Sequence[Shape]) -> None:
    """Raises SpecError for bottoms other than (N, C, D, H, W)."""
    for shape in bottoms:
        if len(shape) != 5:
            raise SpecError(f"a bottom (N, C, D, H, W) is expected, got {shape}")
