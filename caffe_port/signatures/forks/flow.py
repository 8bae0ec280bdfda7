"""The records of optical flow and stereo. Source: src/caffe/layers of lmb-freiburg/flownet2."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.checks import expect_axes, expect_images, nothing, same
from caffe_port.signatures.signature import ANY, Trait, declare
from caffe_port.typing import Shape


def _expect_two_alike(p: Message, bottoms: Sequence[Shape]) -> None:
    if bottoms[0] != bottoms[1] or len(bottoms[0]) != 4:
        raise SpecError(f"expected two bottoms (N, C, H, W) of one shape, got {bottoms[0]} and {bottoms[1]}")
    if p.kernel_size % 2 == 0 or not p.has("max_displacement"):
        raise SpecError("max_displacement and an odd kernel_size are required")
    if min(p.stride_1, p.stride_2) < 1:
        raise SpecError("stride_1 and stride_2 must be at least 1")


def _correlation(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """A channel for each move; windows of kernel_size in steps of stride_1."""
    p, (n, _, height, width) = layer.correlation_param, (*bottoms[0], 0, 0, 0, 0)[:4]
    _expect_two_alike(p, bottoms)
    reach = p.max_displacement + p.kernel_size // 2
    if min(height, width) + 2 * p.pad - 2 * reach < 1:
        raise SpecError(f"max_displacement and kernel_size reach {reach} pixels, beyond the bottom {bottoms[0]}")
    moves = 2 * (p.max_displacement // p.stride_2) + 1
    size = ((length + 2 * p.pad - 2 * reach - 1) // p.stride_1 + 1 for length in (height, width))
    return [(n, moves**2, *size)]


def _correlation_1d(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p, (n, _, height, width) = layer.correlation_param, (*bottoms[0], 0, 0, 0, 0)[:4]
    _expect_two_alike(p, bottoms)
    inner = width + 2 * p.pad - 2 * p.max_displacement
    if min(height - p.kernel_size, inner - p.kernel_size) < 0:
        raise SpecError(f"max_displacement and kernel_size are too large for the bottom {bottoms[0]}")
    if p.single_direction not in (-1, 0, 1):
        raise SpecError(f"single_direction must be -1, 0 or 1, got {p.single_direction}")
    steps = p.max_displacement // p.stride_2
    moves = 2 * steps + 1 if p.single_direction == 0 else steps + 1
    size = ((length - p.kernel_size) // p.stride_1 + 1 for length in (height, inner))
    return [(n, moves, *size)]


def _flow_warp(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    image, flow = bottoms
    if len(image) != 4 or flow != (image[0], 2, *image[2:]):
        raise SpecError(f"expected an image (N, C, H, W) and a flow (N, 2, H, W), got {image} and {flow}")
    return [image]


def _warping(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    image, *flows = bottoms
    if len(image) != 4 or any(flow != (image[0], 1, *image[2:]) for flow in flows):
        raise SpecError(f"expected an image (N, C, H, W) and two flows (N, 1, H, W), got {image} and {flows}")
    return [image]


def _channel_norm(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    expect_axes(bottoms[0], 2, ANY)
    return [(bottoms[0][0], 1, *bottoms[0][2:])]


def _grid(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    expect_images(bottoms)
    return [(bottoms[0][0], 2, *bottoms[0][2:])]


def _exp_max(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    expect_axes(bottoms[0], 2, ANY)
    if layer.expmax_param.base != -1 and layer.expmax_param.base <= 0:
        raise SpecError(f"base must be positive, or -1 for e, got {layer.expmax_param.base}")
    return bottoms


def _mean(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.mean_param
    if p.has("file"):
        raise SpecError("mean_param: a file is not supported; give values")
    count = len(p.value)
    if not count or any(len(shape) != 4 or shape[1] % count for shape in bottoms):
        raise SpecError(f"{count} values of the mean do not divide the channels of {', '.join(map(str, bottoms))}")
    return bottoms


declare("Correlation", _correlation, message="correlation_param", bottoms=2)
declare("Correlation1D", _correlation_1d, message="correlation_param", bottoms=2)
declare("FlowWarp", _flow_warp, message="flow_warp_param", bottoms=2, traits=Trait.KEEPS_CHANNELS)
declare("Warp", _flow_warp, message="warp_param", bottoms=2, traits=Trait.KEEPS_CHANNELS)
declare("Warping", _warping, bottoms=3, traits=Trait.KEEPS_CHANNELS)
declare("Grid", _grid)
declare("NegSquare", same, traits=Trait.ACTIVATION)
declare("ExpMax", _exp_max, message="expmax_param", traits=Trait.KEEPS_CHANNELS | Trait.KEEPS_PLACES)
declare("ChannelNorm", _channel_norm, traits=Trait.KEEPS_PLACES)
declare("Mean", _mean, message="mean_param", bottoms=(1, ANY), traits=Trait.ELEMENTWISE | Trait.PER_BOTTOM)
declare(
    "ImgWriter",
    nothing,
    bottoms=(0, ANY),
    aliases=("FLOWriter", "FloatWriter", "MatWrite", "PFMWriter"),
    traits=Trait.SINK,
)
