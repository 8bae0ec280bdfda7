"""Layers of forks that sum or average over some axes, or weigh them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from caffe_port.formats.message import Message
from caffe_port.layers.layer import Layer, canonical_axis
from caffe_port.layers.linear import Scale
from caffe_port.typing import Shape


class Scalar(Scale):
    """Multiplies by a weight along some axes, or by a second bottom: Scale as it was before it had a bias.

    Blobs: weight (C), unless there is a second bottom
    Reference: scalar_layer.cpp (jeffdonahue/caffe, yjxiong/caffe)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return super().from_caffe(Message("ScaleParameter", axis=p.axis, num_axes=p.num_axes), bottoms)

    @classmethod
    def fillers(cls, p: Message) -> dict[str, Message]:
        one = Message("FillerParameter", type="constant", value=1.0)
        return {"weight": p.filler if p.has("filler") else one}


class Sum(Layer):
    """The sum of every item, (N, 1, 1, 1).

    Reference: scott89/caffe-crowd sum_layer.cpp
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1).sum(1).reshape(-1, 1, 1, 1)

    def call_source(self, *bottoms: str) -> str:
        return f"{bottoms[0]}.flatten(1).sum(1)[:, None, None, None]"


class MIL(Layer):
    """How likely any pixel shows a class: the greatest of the probabilities (MAX), or that of at least one, which is
    ``1 - product(1 - p)``, but not less than the greatest (NOR). Gives (N, C, 1, 1).

    Differs from PyTorch: the gradient of NOR is Caffe's, ``min(1, (1 - y) / (1 - p))``.
    Reference: s-gupta/visual-concepts mil_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"any_pixel": p.type == "NOR"}

    def __init__(self, any_pixel: bool = False) -> None:
        super().__init__()
        self.any_pixel = any_pixel

    def forward(self, x: Tensor) -> Tensor:
        greatest = x.amax((2, 3), keepdim=True)
        if not self.any_pixel:
            return greatest
        p = x.detach()
        y = torch.maximum(1 - (1 - p).flatten(2).prod(2)[..., None, None], greatest.detach())
        slope = ((1 - y) / (1 - p)).clamp(max=1)
        return y + (slope * (x - p)).sum((2, 3), keepdim=True)


class BatchReduction(Layer):
    """Sums or means of parts of one axis: part k has ``level[k]``² numbers. With the only level 1, the axis goes.

    Reference: hszhao/PSPNet batch_reduction_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        own, levels = p.reduction_param, [int(n) for n in p.level] or [1]
        axis = canonical_axis(own.axis, len(bottoms[0]))
        args: dict[str, Any] = {"dim": axis, "mean": own.operation == "MEAN"}
        return args | ({"parts": tuple(n * n for n in levels)} if levels != [1] else {})

    def __init__(self, dim: int = 0, mean: bool = False, parts: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.dim, self.mean, self.parts = dim, mean, parts

    def forward(self, x: Tensor) -> Tensor:
        if self.parts is None:
            return x.mean(self.dim) if self.mean else x.sum(self.dim)
        cut = torch.split(x, list(self.parts), self.dim)
        return torch.stack([part.mean(self.dim) if self.mean else part.sum(self.dim) for part in cut], self.dim)


class CompactBilinear(Layer):
    """Products of all pairs of channels of two bottoms, sketched in ``num_output`` numbers: every channel goes, with a
    sign, to a place of the sketch, and the sketches of the two bottoms are convolved in a circle.

    Gives (N, num_output, 1, 1), the sum over the pixels, or (N, num_output, H, W) with ``sum_pool: false``. Places and
    signs are those that glibc's rand() gives after srand(1), as in Caffe on Linux: no weights are stored.

    Reference: compact_bilinear_layer.cpp (Gao et al. 2016)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        args = {"channels": (bottoms[0][1], bottoms[1][1]), "num_output": p.num_output}
        return args if p.sum_pool else args | {"sum_pool": False}

    def __init__(self, channels: tuple[int, int], num_output: int, sum_pool: bool = True) -> None:
        super().__init__()
        self.num_output, self.sum_pool = num_output, sum_pool
        draws = glibc_random(2 * sum(channels))
        self.places, self.signs = [], []
        for count in channels:
            self.places.append([next(draws) % num_output for _ in range(count)])
            self.signs.append([2.0 * (next(draws) % 2) - 1 for _ in range(count)])

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        sketches = []
        for x, places, signs in zip((a, b), self.places, self.signs, strict=True):
            signed = x * torch.tensor(signs, dtype=x.dtype, device=x.device)[:, None, None]
            index = torch.tensor(places, device=x.device)
            sketches.append(x.new_zeros(x.shape[0], self.num_output, *x.shape[2:]).index_add(1, index, signed))
        product = torch.fft.rfft(sketches[0], dim=1) * torch.fft.rfft(sketches[1], dim=1)
        y: Tensor = torch.fft.irfft(product, self.num_output, dim=1)
        return y.sum((2, 3), keepdim=True) if self.sum_pool else y


# -- numbers, in __init__ -----------------------------------------------------------------------------------------


def glibc_random(count: int) -> Iterator[int]:
    """The first numbers of glibc's rand() after srand(1): an additive generator, x[n] = x[n - 31] + x[n - 3]."""
    x = [1]
    for _ in range(30):
        x.append(16807 * x[-1] % 2147483647)
    x += x[:3]
    for n in range(34, 344 + count):
        x.append((x[n - 31] + x[n - 3]) % 2**32)
    return (value >> 1 for value in x[344:])
