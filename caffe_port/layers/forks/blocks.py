"""Small layers that forks added for one architecture or another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message, decimal
from caffe_port.layers.layer import Layer, check_count
from caffe_port.signatures.forks.blocks import attention_mask, local_size
from caffe_port.typing import Shape


class Axpy(Layer):
    """``a * x + y``, with a factor for every channel of every image (SENet).

    Takes a (N, C) or (N, C, 1, 1), x and y (N, C, H, W).

    Reference: hujie-frank/SENet axpy_layer.cpp
    """

    def forward(self, a: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return a.reshape(*a.shape[:2], *[1] * (x.dim() - 2)) * x + y

    def call_source(self, *bottoms: str) -> str:
        a, x, y = bottoms
        return f"{a}.flatten(1)[:, :, None, None] * {x} + {y}"


class PointwiseSpatialAttention(Layer):
    """Every place of an image as a sum over the places around it, with weights of its own: PSANet.

    Takes features (N, C, H, W) and at every place a mask (N, mh * mw, H, W), row by row, the middle of which is the
    place itself: what it takes from the others or, with ``distribute``, what it gives them. Beyond the mask, weights
    are 0; with ``softmax`` they are normalized afterwards, those zeros included. Sums are divided by ``divisor``.

    Reference: hszhao/PSANet pointwise_spatial_attention_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        mask = attention_mask(p, bottoms)
        divisor = decimal(p.normalization_factor) if p.has("normalization_factor") else math.prod(mask)
        args: dict[str, Any] = {"mask": mask, "divisor": float(divisor)}
        args |= {"distribute": True} if p.psa_type == "DISTRIBUTE" else {}
        return args | ({"softmax": True} if p.is_softmax else {})

    def __init__(self, mask: tuple[int, int], divisor: float, distribute: bool = False, softmax: bool = False) -> None:
        super().__init__()
        self.mask, self.divisor, self.distribute, self.softmax = mask, divisor, distribute, softmax

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weights = self.weights(mask)
        if self.distribute:
            weights = weights.transpose(1, 2)
        if self.softmax:
            weights = weights.softmax(1)
        top: Tensor = (x.flatten(2) @ weights / self.divisor).reshape(x.shape)
        return top

    def weights(self, mask: Tensor) -> Tensor:
        """What each place has from every other, (N, H * W others, H * W)."""
        n, _, height, width = mask.shape
        row, column = (torch.arange(side, device=mask.device) for side in (height, width))
        down, right = row[:, None] - row + self.mask[0] // 2, column[:, None] - column + self.mask[1] // 2
        inside = ((down >= 0) & (down < self.mask[0]))[:, None, :, None]
        inside = inside & ((right >= 0) & (right < self.mask[1]))[:, None]
        at = (
            down.clamp(0, self.mask[0] - 1)[:, None, :, None] * self.mask[1] + right.clamp(0, self.mask[1] - 1)[:, None]
        )
        there = mask.flatten(2).gather(1, at.reshape(1, height * width, height * width).expand(n, -1, -1))
        return there * inside.reshape(height * width, height * width)


class Mish(Layer, nn.Mish):
    """Same as torch.nn.Mish: x * tanh(softplus(x)).

    Reference: eric612/MobileNet-YOLO mish_layer.cpp
    """

    def torch_source(self) -> str:
        return "nn.Mish()"


class GRN(Layer):
    """Every pixel divided by its length over the channels: ``x / sqrt(sum(x^2) + bias)``.

    Differs from PyTorch: F.normalize takes the greater of length and eps, here the bias is added under the root.
    Reference: OpenVINO's training toolbox, GRN
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"bias": p.bias}

    def __init__(self, bias: float = 1.0) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().sum(1, keepdim=True) + self.bias).sqrt()


class Local(Layer):
    """A convolution with separate weights at every pixel (DeepFace).

    Blobs: weight (C_out, 1, C_in * kH * kW, H' * W'), bias (1, 1, C_out, H' * W')
    Reference: happynear/caffe-windows local_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        size = local_size(p, bottoms[0])
        check_count("weight", (p.num_output, bottoms[0][1], p.kernel_size, p.kernel_size, *size))
        return {
            "in_channels": bottoms[0][1],
            "out_channels": p.num_output,
            "kernel_size": p.kernel_size,
            "size": size,
            "stride": p.stride,
            "padding": p.pad,
            "bias": p.bias_term,
        }

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        size: tuple[int, int],
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        pixels = size[0] * size[1]
        self.kernel_size, self.size, self.stride, self.padding = kernel_size, size, stride, padding
        self.weight = nn.Parameter(torch.empty(out_channels, 1, in_channels * kernel_size**2, pixels))
        self.bias = nn.Parameter(torch.empty(1, 1, out_channels, pixels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        windows = F.unfold(x, self.kernel_size, padding=self.padding, stride=self.stride)
        y = torch.einsum("nkp,okp->nop", windows, self.weight[:, 0])
        if self.bias is not None:
            y = y + self.bias[0]
        return y.reshape(*y.shape[:2], *self.size)


class ForkLoss(Layer):
    """Losses and metrics of forks, used only in training: the deploy view drops them.

    Not supported with keep_loss: implement the loss in PyTorch or as a plugin.
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        raise SpecError(
            "is a loss or metric of a fork, which is not supported; without losses (the default) the net converts",
            hint="To train with it, implement it in PyTorch or as a plugin.",
        )

    def forward(self, *bottoms: Tensor) -> Tensor:
        raise NotImplementedError
