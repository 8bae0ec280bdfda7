"""Image resizing of smaller forks: pose estimation, instance segmentation, face detection, FlowNet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caffe_port.formats.message import Message
from caffe_port.layers.layer import Layer
from caffe_port.signatures.forks.resample import sizes
from caffe_port.signatures.forks.resize import METHODS, accumulated_size, by_opencv, im_resized, resized
from caffe_port.typing import Shape


class Resize(Layer):
    """Resizes an image: as cv::resize does where ``zoom`` or ``inter`` is given, else without half pixels.

    Without half pixels the pixel i of the top lies at i * (old size / new size), between four pixels of the bottom, of
    which those beyond its edge count 0.

    Differs from PyTorch: F.interpolate with align_corners=False does the same for cv::resize.
    Reference: Akrit2013/caffe resize_layer.cpp; bearpaw/caffe and happynear/caffe-windows resize_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"size": resized(p, bottoms[0])} | ({"method": METHODS[p.inter]} if by_opencv(p) else {})

    def __init__(self, size: tuple[int, int], method: str | None = None) -> None:
        super().__init__()
        self.size, self.method = size, method

    def forward(self, x: Tensor) -> Tensor:
        if self.method is not None:
            return F.interpolate(x, self.size, mode=self.method)
        rows = two_taps(x, 2, self.size[0])
        columns = two_taps(x, 3, self.size[1])
        return torch.einsum("nchw,yh,xw->ncyx", x, rows, columns)


class PixelShuffle(Layer, nn.PixelShuffle):
    """Same as torch.nn.PixelShuffle: channels become pixels.

    Reference: pixelshuffle_layer.cpp (the fork of PyPI's brocolli-caffe 9.0.2)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"upscale_factor": p.upscale_factor}

    def torch_source(self) -> str:
        return f"nn.PixelShuffle({self.upscale_factor})"


class ImResize(Layer):
    """Resizes an image with a cubic filter (coefficient -0.5), half pixels, and the border repeated. OpenPose's first.

    ``factor`` multiplies the size, else ``target_spatial_height`` and ``target_spatial_width`` are the new one.

    Differs from PyTorch: mode="bicubic" has the coefficient -0.75, and another way with the first pixels of the border.
    Reference: CMU-Perceptual-Computing-Lab/caffe_rtpose imresize_layer.cu
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"size": im_resized(p, bottoms[0])}

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.taps(x, 2), self.taps(x, 3)
        return torch.einsum("nchw,yh,xw->ncyx", x, rows, columns)

    def taps(self, x: Tensor, axis: int) -> Tensor:
        """What each old pixel adds to each new one: (new, old)."""
        old, new = x.shape[axis], self.size[axis - 2]
        place = (torch.arange(new, device=x.device) - (new / old / 2 - 0.5)) * (old / new)
        first = (place + 1e-5).trunc().clamp(min=0)
        t = (place - first).to(x.dtype)
        weights = (
            ((-0.5 * t + 1) * t - 0.5) * t,
            (1.5 * t - 2.5) * t * t + 1,
            ((-1.5 * t + 2) * t + 0.5) * t,
            (0.5 * t - 0.5) * t * t,
        )
        pixel = torch.arange(old, device=x.device)
        taps = x.new_zeros(new, old)
        for step, weight in zip((-1, 0, 1, 2), weights, strict=True):
            at = (first + step).clamp(0, old - 1)
            taps = taps + weight[:, None] * (at[:, None] == pixel)
        return taps


class Upsampling(Layer):
    """Every value into the upper left corner of a block of ``kernel_size``, zeros elsewhere.

    Differs from PyTorch: torch.nn.Upsample repeats the value.
    Reference: jimeiyang/objectContourDetector upsampling_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"kernel_size": sizes(p, "kernel_size", "kernel")}

    def __init__(self, kernel_size: tuple[int, int]) -> None:
        super().__init__()
        self.kernel_size = kernel_size

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        blocks = F.pad(x[..., None, None], (0, self.kernel_size[1] - 1, 0, self.kernel_size[0] - 1))
        return blocks.permute(0, 1, 2, 4, 3, 5).reshape(n, c, h * self.kernel_size[0], w * self.kernel_size[1])


class MaskResize(Layer):
    """Resizes masks: pixel i of the top lies at i * (old size / new size), between four pixels; the last one repeats
    for half a pixel, zeros follow.

    Differs from PyTorch: F.interpolate counts from half pixels, or from corner to corner.
    Reference: daijifeng001/caffe-mnc mask_resize_layer.cu
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"size": (p.output_height, p.output_width)}

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = two_taps(x, 2, self.size[0], repeat=True), two_taps(x, 3, self.size[1], repeat=True)
        return torch.einsum("nchw,yh,xw->ncyx", x, rows, columns)


class Downsample(Layer):
    """Shrinks an image from corner to corner, with a triangle filter as wide as the step; of the size that is given, or
    that the second bottom has. From FlowNet2.

    Differs from PyTorch: NaN does not spread: it is left out, unless it is more than half of the weight.
    Reference: lmb-freiburg/flownet2 downsample_layer.cu
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        size = bottoms[1][2:] if len(bottoms) > 1 else (p.top_height, p.top_width)
        return {"size": tuple(size)}

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        rows, columns = self.taps(x, 2), self.taps(x, 3)
        known = ~x.isnan()
        weight = torch.einsum("nchw,yh,xw->ncyx", known.to(x.dtype), rows, columns)
        whole = rows.sum(1)[:, None] * columns.sum(1)
        y = torch.einsum("nchw,yh,xw->ncyx", x.where(known, 0), rows, columns) / weight
        return torch.where((whole - weight) / weight > 0.5, math.nan, y)

    def taps(self, x: Tensor, axis: int) -> Tensor:
        """What each old pixel adds to each new one: (new, old)."""
        old, new = x.shape[axis], self.size[axis - 2]
        step = (old - 1) / (new - 1)
        place = torch.arange(new, device=x.device, dtype=x.dtype)[:, None] * step
        return (1 - (torch.arange(old, device=x.device) - place).abs() / step).clamp(min=0)


class Accum(Layer):
    """Images of different sizes as the channels of one: each is stretched from corner to corner, as with
    align_corners=True, to the greatest height and width, or to the size that is given where that is greater.

    ``have_reference``: the last bottom only says the size. From FlowNet2.

    Reference: lmb-freiburg/flownet2 accum_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"size": accumulated_size(p, bottoms)} | ({"have_reference": True} if p.have_reference else {})

    def __init__(self, size: tuple[int, int], have_reference: bool = False) -> None:
        super().__init__()
        self.size, self.have_reference = size, have_reference

    def forward(self, *images: Tensor) -> Tensor:
        images = images[:-1] if self.have_reference else images
        return torch.cat([F.interpolate(x, self.size, mode="bilinear", align_corners=True) for x in images], 1)


# -- in forward ---------------------------------------------------------------------------------------------------


def two_taps(x: Tensor, axis: int, new: int, repeat: bool = False) -> Tensor:
    """What each old pixel adds to each new one, (new, old): pixel i lies at i * old / new.

    Beyond the last pixel lie zeros; or it repeats, for half a pixel.
    """
    old = x.shape[axis]
    place = torch.arange(new, device=x.device, dtype=x.dtype)[:, None] * (old / new)
    pixel = torch.arange(old, device=x.device)
    if not repeat:
        return (1 - (pixel - place).abs()).clamp(min=0)
    return (1 - (pixel - place.clamp(max=old - 1)).abs()).clamp(min=0) * (place <= old - 0.5)
