"""The records of convolutions of volumes, in the words of C3D, and of U-Nets. Pooling3D is in pooling.py."""

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


def _merge_crop(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    first, second, p = bottoms[0], bottoms[1], layer.mergecrop_param
    if len(first) < 3 or len(first) != len(second) or first[0] != second[0]:
        raise SpecError(f"expected two bottoms (N, C, ...) of as many axes and images, got {first} and {second}")
    if first[1] != second[1]:
        raise SpecError(
            f"bottoms of {first[1]} and {second[1]} channels: the fork's layer mixes them up",
            hint="use Crop and Concat",
        )
    if any(a > b for a, b in zip(first[2:], second[2:], strict=True)):
        raise SpecError(f"the second bottom must be as large as the first, got {first} and {second}")
    if max(len(p.forward), len(p.backward)) > 2:
        raise SpecError("forward and backward are given once for each of the two bottoms")
    return [(first[0], first[1] * (2 if p.operation == "STACK" else 1), *first[2:])]


declare("MergeCrop", _merge_crop, message="mergecrop_param", bottoms=2)
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
