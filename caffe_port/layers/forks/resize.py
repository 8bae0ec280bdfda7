"""Sizes of images, in the ways of smaller forks: pose estimation, instance segmentation, face detection, FlowNet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.layers.forks.resample import expect_image, sizes
from caffe_port.layers.layer import Layer, check_count
from caffe_port.typing import Shape


class Resize(Layer):
    """Resizes an image: as cv::resize does where ``zoom`` or ``inter`` is given, else without half pixels.

    Without half pixels the pixel i of the top lies at i * (old size / new size), between four pixels of the bottom, of
    which those beyond its edge count 0.

    Differs from PyTorch: F.interpolate with align_corners=False does the same for cv::resize.
    Reference: Akrit2013/caffe resize_layer.cpp; bearpaw/caffe and happynear/caffe-windows resize_layer.cpp
    """

    param = "resize_param"

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_image(bottoms, 1)
        size: tuple[int, ...] = (p.height, p.width) if p.has("height") and p.has("width") else ()
        factors = (p.zoom, p.zoom) if p.has("zoom") else (p.zoom_h, p.zoom_w) if p.has("zoom_h") else None
        opencv = factors is not None or p.has("inter")
        if p.is_pyramid_test:
            factors = p.out_height_scale, p.out_width_scale
        if factors is not None:
            size = tuple(int(n * (f or 0)) for n, f in zip(bottoms[0][2:], factors, strict=True))
        if not size or min(size) < 1:
            raise SpecError("the size is missing: give height and width, zoom, or is_pyramid_test with both scales")
        check_count("the top", (*bottoms[0][:2], *size))
        methods = {"INTER_LINEAR": "bilinear", "INTER_NEAREST": "nearest", "INTER_CUBIC": "bicubic"}
        if opencv and p.inter not in methods:
            raise SpecError(f"inter {p.inter} is not supported; {', '.join(methods)} are")
        return {"size": size} | ({"method": methods[p.inter]} if opencv else {})

    def __init__(self, size: tuple[int, int], method: str | None = None) -> None:
        super().__init__()
        self.size, self.method = size, method

    def forward(self, x: Tensor) -> Tensor:
        if self.method is not None:
            return F.interpolate(x, self.size, mode=self.method)
        rows = two_taps(x, 2, self.size[0])
        columns = two_taps(x, 3, self.size[1])
        return torch.einsum("nchw,yh,xw->ncyx", x, rows, columns)


class ImResize(Layer):
    """Resizes an image with a cubic filter (coefficient -0.5), half pixels, and the border repeated. OpenPose's first.

    ``factor`` multiplies the size, else ``target_spatial_height`` and ``target_spatial_width`` are the new one.

    Differs from PyTorch: mode="bicubic" has the coefficient -0.75, and another way with the first pixels of the border.
    Reference: CMU-Perceptual-Computing-Lab/caffe_rtpose imresize_layer.cu
    """

    param = "imresize_param"

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_image(bottoms, 1)
        size: tuple[int, ...] = (p.target_spatial_height, p.target_spatial_width)
        if p.factor:
            size = tuple(int(n * p.factor) for n in bottoms[0][2:])
        if min(size) < 1:
            raise SpecError(f"imresize_param: a size of {size[0]} x {size[1]} is not positive")
        check_count("the top", (*bottoms[0][:2], *size))
        return {"size": size}

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

    param = "upsampling_param"

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_image(bottoms, 1)
        kernel = sizes(p, "kernel_size", "kernel")
        if kernel is None or min(kernel) < 1:
            raise SpecError("upsampling_param: kernel_size is missing, or 0")
        check_count("the top", (*bottoms[0], *kernel))
        return {"kernel_size": kernel}

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

    param = "mask_resize_param"

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_image(bottoms, 1)
        if not p.output_height or not p.output_width:
            raise SpecError("mask_resize_param: output_height and output_width are needed")
        check_count("the top", (*bottoms[0][:2], p.output_height, p.output_width))
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

    param = "downsample_param"

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_image(bottoms, 2)
        size = bottoms[1][2:] if len(bottoms) > 1 else (p.top_height, p.top_width)
        if min(size) < 2 or any(new > old for new, old in zip(size, bottoms[0][2:], strict=True)):
            raise SpecError(f"the new size {size} must be from 2 to that of the bottom, {bottoms[0][2:]}")
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

    param = "accum_param"

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_image(bottoms, 1 << 30)
        images = bottoms[:-1] if p.have_reference else bottoms
        if not images or len({shape[0] for shape in images}) > 1:
            raise SpecError(f"bottoms of one batch size are expected, got {', '.join(map(str, bottoms))}")
        size = bottoms[-1][2:]
        if not p.have_reference:
            size = (max(shape[2] for shape in images), max(shape[3] for shape in images))
            by = p.size_divisible_by
            wanted = (-(-size[0] // by) * by, -(-size[1] // by) * by) if by else (p.top_height, p.top_width)
            size = wanted if wanted[0] > size[0] and wanted[1] > size[1] else size
        check_count("the top", (images[0][0], sum(shape[1] for shape in images), *size))
        return {"size": tuple(size)} | ({"have_reference": True} if p.have_reference else {})

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
