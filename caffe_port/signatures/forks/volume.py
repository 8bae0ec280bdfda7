"""The records of convolutions of video and of volumes, in the words of C3D. Pooling3D is in pooling.py."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.signature import ANY, Trait, declare
from caffe_port.signatures.spatial import convolution, convolution_blobs, convolution_macs
from caffe_port.typing import Shape


def _video(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    for shape in bottoms:
        if len(shape) != 5:
            raise SpecError(f"expected a bottom (N, C, D, H, W), got {shape}")
    return convolution(layer, bottoms)


for _type, _window in (("Convolution3D", Trait.SLIDES), ("Deconvolution3D", Trait.SPREADS)):
    declare(
        _type,
        _video,
        message=("convolution3d_param", "convolution_param"),
        bottoms=(1, ANY),
        blobs=("weight", "bias"),
        blob_shapes=convolution_blobs,
        macs=convolution_macs,
        traits=_window | Trait.PER_BOTTOM,
    )
