"""Optical flow and stereo: comparing and moving images. Source: src/caffe/layers of lmb-freiburg/flownet2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_port.formats.message import Message, decimal
from caffe_port.layers.layer import Layer
from caffe_port.typing import Shape


class Correlation(Layer):
    """How well the first image fits the second, moved by up to max_displacement in steps of stride_2 (FlowNetC).

    Gives (N, (2 * (max_displacement // stride_2) + 1)^2, H', W'), a channel for each move, rows of moves from the top
    left: the mean, over the channels and a patch of kernel_size, of the products (or of the absolute differences).

    Reference: lmb-freiburg/flownet2 correlation_layer.cu
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return correlation_arguments(p)

    def __init__(
        self,
        kernel_size: int,
        max_displacement: int,
        pad: int = 0,
        stride_1: int = 1,
        stride_2: int = 1,
        subtract: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size, self.max_displacement, self.pad = kernel_size, max_displacement, pad
        self.stride_1, self.stride_2, self.subtract = stride_1, stride_2, subtract

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        radius = self.max_displacement // self.stride_2 * self.stride_2
        moves = range(-radius, radius + 1, self.stride_2)
        first, second = F.pad(first, (self.pad,) * 4), F.pad(second, (self.pad,) * 4)
        reach, top, left = self.max_displacement, first.shape[2], first.shape[3]
        center = first[:, :, reach : top - reach, reach : left - reach]
        maps = []
        for dy in moves:
            for dx in moves:
                moved = second[:, :, reach + dy : top - reach + dy, reach + dx : left - reach + dx]
                maps.append(agreement(center, moved, self.subtract))
        return F.avg_pool2d(torch.cat(maps, 1), self.kernel_size, self.stride_1)


class Correlation1D(Layer):
    """How well the left image fits the right one, moved sideways by up to max_displacement (DispNetC).

    As Correlation, with horizontal moves and padding only. single_direction 1 moves right only, from 0 on; -1 left
    only, from one step beyond max_displacement to one step, as in the original; beyond the padding all is 0.

    Reference: lmb-freiburg/flownet2 correlation_layer1d.cu
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return correlation_arguments(p) | {"single_direction": p.single_direction}

    def __init__(
        self,
        kernel_size: int,
        max_displacement: int,
        pad: int = 0,
        stride_1: int = 1,
        stride_2: int = 1,
        subtract: bool = False,
        single_direction: int = 0,
    ) -> None:
        super().__init__()
        self.kernel_size, self.max_displacement, self.pad = kernel_size, max_displacement, pad
        self.stride_1, self.stride_2, self.subtract = stride_1, stride_2, subtract
        self.single_direction = single_direction

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        radius = self.max_displacement // self.stride_2 * self.stride_2
        least, most = -radius, radius
        if self.single_direction == 1:
            least = 0
        elif self.single_direction == -1:
            least, most = -radius - self.stride_2, -self.stride_2
        reach, beyond = self.max_displacement, self.pad + self.stride_2
        first, second = F.pad(first, (self.pad, self.pad)), F.pad(second, (beyond, beyond))
        center = first[..., reach : first.shape[3] - reach]
        maps = []
        for dx in range(least, most + 1, self.stride_2):
            left = self.stride_2 + reach + dx
            maps.append(agreement(center, second[..., left : left + center.shape[3]], self.subtract))
        return F.avg_pool2d(torch.cat(maps, 1), self.kernel_size, self.stride_1)


class FlowWarp(Layer):
    """The image as seen along a flow: the pixel at x takes the value at x + flow(x), between the four nearest pixels.

    Takes the image (N, C, H, W) and the flow (N, 2, H, W), horizontal first. Where the flow leads out of the image
    comes 0, or NaN with fill_value NOT_A_NUMBER.

    Differs from PyTorch: F.grid_sample mixes in zeros over a pixel's width beyond the border.
    Reference: lmb-freiburg/flownet2 flow_warp_layer.cu
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"fill_nan": True} if p.fill_value == "NOT_A_NUMBER" else {}

    def __init__(self, fill_nan: bool = False) -> None:
        super().__init__()
        self.fill = float("nan") if fill_nan else 0.0

    def forward(self, image: Tensor, *flows: Tensor) -> Tensor:
        flow = torch.cat(flows, 1)
        height, width = image.shape[2:]
        x = flow[:, :1] + torch.arange(width, device=flow.device)
        y = flow[:, 1:] + torch.arange(height, device=flow.device)[:, None]
        inside = self.inside(x, width) & self.inside(y, height)
        x, y = x.where(inside, 0), y.where(inside, 0)
        left, top = x.floor(), y.floor()
        right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
        a, b = x - left, y - top
        upper = (1 - a) * self.at(image, top, left) + a * self.at(image, top, right)
        lower = (1 - a) * self.at(image, bottom, left) + a * self.at(image, bottom, right)
        return ((1 - b) * upper + b * lower).where(inside, self.fill)

    def inside(self, place: Tensor, size: int) -> Tensor:
        """Which places along an axis are on the image."""
        return (place >= 0) & (place < size)

    def at(self, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """The pixels of the image at whole coordinates (N, 1, H, W)."""
        index = (y * image.shape[3] + x).long().flatten(2).expand(-1, image.shape[1], -1)
        return image.flatten(2).gather(2, index).reshape_as(image)


class Warp(FlowWarp):
    """FlowWarp, but what is beyond the center of the last pixel is 0. From PWC-Net.

    LiteFlowNet's layer of this name takes places, (N, 2, H, W), in place of the flow, and mixes in zeros over a pixel's
    width beyond the border, as F.grid_sample does; a net with a Grid is read so.

    Differs from PyTorch: F.grid_sample mixes in zeros over a pixel's width beyond the border.
    Reference: NVlabs/PWC-Net warp_layer.cu; twhui/LiteFlowNet warp_layer.cu
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"places": True} if p.places else {}

    def __init__(self, places: bool = False) -> None:
        super().__init__()
        self.places = places

    def forward(self, image: Tensor, *flows: Tensor) -> Tensor:
        if not self.places:
            return super().forward(image, *flows)
        height, width = image.shape[2:]
        x, y = flows[0].unbind(1)
        x, y = x.nan_to_num(-2).clamp(-2, width + 1), y.nan_to_num(-2).clamp(-2, height + 1)
        sizes = torch.tensor((width, height), dtype=x.dtype, device=x.device)
        at = (torch.stack((x, y), 3) + 0.5) * 2 / sizes - 1
        return F.grid_sample(image, at, align_corners=False)

    def inside(self, place: Tensor, size: int) -> Tensor:
        return (place >= 0) & (place <= size - 1)


class Warping(FlowWarp):
    """The image (N, C, H, W) as seen along a flow of two bottoms (N, 1, H, W), horizontal and vertical.

    As FlowWarp, but a place counts only if there is a pixel after it: the center of the last one is 0, too.

    Differs from Caffe: the gradient is the derivative; the original takes half the difference of the top's neighbors.
    Reference: Ravi-Garg/Unsupervised_Depth_Estimation warping_layer.cu
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {}

    def inside(self, place: Tensor, size: int) -> Tensor:
        return (place >= 0) & (place < size - 1)


class Grid(Layer):
    """The column and the row of every pixel of the bottom, (N, 2, H, W).

    Reference: twhui/LiteFlowNet grid_layer.cpp
    """

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (torch.arange(n, device=x.device, dtype=x.dtype) for n in x.shape[2:])
        shape = (x.shape[0], *x.shape[2:])
        return torch.stack((columns.expand(shape), rows[:, None].expand(shape)), 1)


class NegSquare(Layer):
    """``-x ** 2``.

    Differs from Caffe: the gradient is the derivative; the original multiplies with memory that was never written.
    Reference: twhui/LiteFlowNet negsquare_layer.cu
    """

    def forward(self, x: Tensor) -> Tensor:
        return -x.square()

    def call_source(self, *bottoms: str) -> str:
        return f"-{bottoms[0]}.square()"


class ExpMax(Layer):
    """base ** (shift + scale * (x - m)), where m is the greatest of the channels at the same place; base -1 is e.

    No gradient reaches m.

    Differs from Caffe: of a batch, the original subtracts the maxima of the first image alone.
    Reference: twhui/LiteFlowNet expmax_layer.cu
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        log = 1.0 if p.base == -1 else math.log(p.base)
        return {"scale": log * p.scale, "factor": math.exp(log * p.shift)}

    def __init__(self, scale: float = 1.0, factor: float = 1.0) -> None:
        super().__init__()
        self.scale, self.factor = scale, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * (self.scale * (x - x.detach().amax(1, keepdim=True))).exp()


class ChannelNorm(Layer):
    """Same as torch.linalg.vector_norm over the channels, which become one.

    Reference: lmb-freiburg/flownet2 channel_norm_layer.cu
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, dim=1, keepdim=True)  # type: ignore[no-any-return]

    def call_source(self, *bottoms: str) -> str:
        return f"torch.linalg.vector_norm({bottoms[0]}, dim=1, keepdim=True)"


class Mean(Layer):
    """Adds a mean to images or takes it off: ``output_scale * (input_scale * x + mean_scale * mean)``, with a number
    for each channel; fewer repeat. Several bottoms are treated one by one.

    Not supported: a mean from a file.
    Reference: lmb-freiburg/flownet2 mean_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        sign = -1 if p.operation == "SUBTRACT" else 1
        mean = tuple(decimal(p.output_scale * p.mean_scale * sign * v) for v in p.value)
        return {"scale": decimal(p.output_scale * p.input_scale), "mean": mean}

    def __init__(self, scale: float = 1.0, mean: tuple[float, ...] = (0.0,)) -> None:
        super().__init__()
        self.scale, self.mean = scale, mean

    def forward(self, x: Tensor) -> Tensor:
        mean = torch.tensor(self.mean, dtype=x.dtype, device=x.device).repeat(x.shape[1] // len(self.mean))
        return self.scale * x + mean[:, None, None]


class ImgWriter(Layer):
    """Takes bottoms and has no top; from several forks.

    Differs from Caffe: it writes no files; read the blobs from the Net instead.
    Reference: lmb-freiburg/flownet2 imgwriter_layer.cpp, flowriter_layer.cpp, floatwriter_layer.cpp
    """

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return ()


# -- in forward ---------------------------------------------------------------------------------------------------


def agreement(first: Tensor, second: Tensor, subtract: bool) -> Tensor:
    """The mean over the channels of the products, or of the absolute differences; (N, 1, H, W)."""
    return ((first - second).abs() if subtract else first * second).mean(1, keepdim=True)


# -- parameters, from Caffe ---------------------------------------------------------------------------------------


def correlation_arguments(p: Message) -> dict[str, Any]:
    """The constructor arguments that Correlation and Correlation1D share."""
    return {
        "kernel_size": p.kernel_size,
        "max_displacement": p.max_displacement,
        "pad": p.pad,
        "stride_1": p.stride_1,
        "stride_2": p.stride_2,
        "subtract": p.correlation_type == "SUBTRACT",
    }
