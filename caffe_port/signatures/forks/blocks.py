"""The records of small layers that forks added for one architecture or another."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.checks import expect_axes, expect_images, same
from caffe_port.signatures.loss import one_number
from caffe_port.signatures.signature import ANY, Trait, declare
from caffe_port.typing import Shape


def _axpy(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    a, x, y = bottoms
    if x != y or len(x) < 2 or a[:2] != x[:2] or set(a[2:]) - {1}:
        raise SpecError(f"expected a (N, C, 1, 1), x and y (N, C, H, W), got {a}, {x} and {y}")
    return [x]


def _grn(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    expect_axes(bottoms[0], 2, ANY)
    return bottoms


def local_size(p: Message, bottom: Shape) -> tuple[int, int]:
    """Height and width of the top of a Local."""
    expect_images([bottom])
    if min(p.num_output, p.kernel_size, p.stride) < 1:
        raise SpecError("num_output, kernel_size and stride are required and must be positive")
    height, width = ((n + 2 * p.pad - p.kernel_size) // p.stride + 1 for n in bottom[2:])
    if min(height, width) < 1:
        raise SpecError(f"no window of {p.kernel_size} x {p.kernel_size} fits a bottom {bottom}")
    return height, width


def _local(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.local_param
    return [(bottoms[0][0], p.num_output, *local_size(p, bottoms[0]))]


def _local_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    p, (height, width) = layer.local_param, local_size(layer.local_param, bottoms[0])
    weight = (p.num_output, 1, bottoms[0][1] * p.kernel_size**2, height * width)
    return {"weight": weight, **({"bias": (1, 1, p.num_output, height * width)} if p.bias_term else {})}


def _local_macs(layer: Message, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:  # noqa: ARG001
    outputs, _, inputs, pixels = _local_blobs(layer, bottoms)["weight"]
    return bottoms[0][0] * outputs * inputs * pixels


declare("Axpy", _axpy, bottoms=3)


def _attention(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    (x, mask), (height, width) = bottoms, attention_mask(layer.pointwise_spatial_attention_param, bottoms)
    if mask != (x[0], height * width, *x[2:]):
        raise SpecError(f"a mask of {height} x {width} needs {(x[0], height * width, *x[2:])}, got {mask}")
    return [x]


def attention_mask(p: Message, bottoms: Sequence[Shape]) -> tuple[int, int]:
    """Height and width of the mask at each place of a PointwiseSpatialAttention: to every other, if it does not say."""
    expect_axes(bottoms[0], 4)
    given = [p.has(name) for name in ("attention_mask_height", "attention_mask_width")]
    if not any(given):
        return 2 * bottoms[0][2] - 1, 2 * bottoms[0][3] - 1
    sides = int(p.attention_mask_height), int(p.attention_mask_width)
    if not all(given) or min(sides) < 3 or not all(side % 2 for side in sides):
        raise SpecError("attention_mask_height and attention_mask_width are odd numbers above 1, and both are needed")
    return sides


declare(
    "PointwiseSpatialAttention",
    _attention,
    message="pointwise_spatial_attention_param",
    bottoms=2,
    traits=Trait.KEEPS_CHANNELS,
)
declare("Mish", same, traits=Trait.ACTIVATION)
declare("GRN", _grn, message="grn_param", traits=Trait.KEEPS_CHANNELS | Trait.KEEPS_PLACES)
declare("Local", _local, message="local_param", blobs=("weight", "bias"), blob_shapes=_local_blobs, macs=_local_macs)
declare(
    "ForkLoss",
    one_number,
    bottoms=(0, ANY),
    aliases=(
        "BoxAnnotatorOHEM",
        "CenterLoss",
        "CTCLoss",
        "EvalDetection",
        "FocalLoss",
        "L1Loss",
        "LocLoss",
        "LpqLoss",
        "RegionLoss",
        "SegAccuracy",
        "SmoothL1LossOHEM",
        "SoftmaxFocalLoss",
        "SoftmaxWithLossOHEM",
        "STLoss",
        "TripletLoss",
        "YoloV2Loss",
        "YoloV3Loss",
        "Yolov3",
    ),
    traits=Trait.LABELS | Trait.OTHERS,
)
