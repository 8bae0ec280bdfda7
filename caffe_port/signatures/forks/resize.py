"""The records of what resizes images in the ways of smaller forks. Sources: those of the layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.checks import expect_images
from caffe_port.signatures.forks.resample import sizes
from caffe_port.signatures.signature import ANY, Trait, declare
from caffe_port.typing import Shape

METHODS = {"INTER_LINEAR": "bilinear", "INTER_NEAREST": "nearest", "INTER_CUBIC": "bicubic"}
"""Resize's names of OpenCV's ways -> those of F.interpolate."""


def resize_factors(p: Message) -> tuple[float | None, float | None] | None:
    """What height and width are multiplied by, where a ResizeParameter says it."""
    if p.is_pyramid_test:
        return p.out_height_scale, p.out_width_scale
    return (p.zoom, p.zoom) if p.has("zoom") else (p.zoom_h, p.zoom_w) if p.has("zoom_h") else None


def resized(p: Message, bottom: Shape) -> tuple[int, ...]:
    """Height and width of the top of a Resize."""
    factors = resize_factors(p)
    size: tuple[int, ...] = (p.height, p.width) if p.has("height") and p.has("width") else ()
    if factors is not None:
        size = tuple(int(np.float32(n) * np.float32(f or 0)) for n, f in zip(bottom[2:], factors, strict=True))
    if not size or min(size) < 1:
        raise SpecError("the size is missing: give height and width, zoom, or is_pyramid_test with both scales")
    return size


def by_opencv(p: Message) -> bool:
    """Whether a Resize does what cv::resize does."""
    return any(p.has(name) for name in ("zoom", "zoom_h", "inter"))


def _resize(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.resize_param
    expect_images(bottoms)
    if by_opencv(p) and p.inter not in METHODS:
        raise SpecError(f"inter {p.inter} is not supported; {', '.join(METHODS)} are")
    return [(*bottoms[0][:2], *resized(p, bottoms[0]))]


def im_resized(p: Message, bottom: Shape) -> tuple[int, ...]:
    """Height and width of the top of an ImResize."""
    size: tuple[int, ...] = (p.target_spatial_height, p.target_spatial_width)
    size = tuple(int(n * p.factor) for n in bottom[2:]) if p.factor else size
    if min(size) < 1:
        raise SpecError(f"imresize_param: a size of {size[0]} x {size[1]} is not positive")
    return size


def _im_resize(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    expect_images(bottoms)
    return [(*bottoms[0][:2], *im_resized(layer.imresize_param, bottoms[0]))]


def _upsampling(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    expect_images(bottoms)
    (n, c, h, w), kernel = bottoms[0], sizes(layer.upsampling_param, "kernel_size", "kernel")
    if kernel is None or min(kernel) < 1:
        raise SpecError("upsampling_param: kernel_size is missing, or 0")
    return [(n, c, h * kernel[0], w * kernel[1])]


def _mask_resize(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.mask_resize_param
    expect_images(bottoms)
    if not p.output_height or not p.output_width:
        raise SpecError("mask_resize_param: output_height and output_width are needed")
    return [(*bottoms[0][:2], p.output_height, p.output_width)]


def _downsample(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.downsample_param
    expect_images(bottoms)
    size = bottoms[1][2:] if len(bottoms) > 1 else (p.top_height, p.top_width)
    if min(size) < 2 or any(new > old for new, old in zip(size, bottoms[0][2:], strict=True)):
        raise SpecError(f"the new size {size} must be from 2 to that of the bottom, {bottoms[0][2:]}")
    return [(*bottoms[0][:2], *size)]


def accumulated_size(p: Message, bottoms: Sequence[Shape]) -> tuple[int, int]:
    """Height and width to which an Accum stretches all images."""
    if p.have_reference:
        height, width = bottoms[-1][2:]
        return height, width
    size = (max(shape[2] for shape in bottoms), max(shape[3] for shape in bottoms))
    by = p.size_divisible_by
    wanted = (-(-size[0] // by) * by, -(-size[1] // by) * by) if by else (p.top_height, p.top_width)
    return wanted if wanted[0] > size[0] and wanted[1] > size[1] else size


def _accum(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.accum_param
    expect_images(bottoms)
    images = bottoms[:-1] if p.have_reference else bottoms
    if not images or len({shape[0] for shape in images}) > 1:
        raise SpecError(f"expected bottoms of one batch size, got {', '.join(map(str, bottoms))}")
    return [(images[0][0], sum(shape[1] for shape in images), *accumulated_size(p, bottoms))]


def _pixel_shuffle(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """(N, C r r, H, W) becomes (N, C, H r, W r)."""
    expect_images(bottoms)
    (n, c, h, w), factor = bottoms[0], layer.pixelshuffle_param.upscale_factor
    if factor < 1:
        raise SpecError("upscale_factor is missing or 0")
    if c % factor**2:
        raise SpecError(f"upscale_factor {factor} squared does not divide the {c} channels")
    return [(n, c // factor**2, h * factor, w * factor)]


declare("Resize", _resize, message="resize_param", traits=Trait.KEEPS_CHANNELS)
declare("ImResize", _im_resize, message="imresize_param", traits=Trait.KEEPS_CHANNELS)
declare("Upsampling", _upsampling, message="upsampling_param", traits=Trait.KEEPS_CHANNELS)
declare("MaskResize", _mask_resize, message="mask_resize_param", traits=Trait.KEEPS_CHANNELS)
declare("Downsample", _downsample, message="downsample_param", bottoms=(1, 2), traits=Trait.KEEPS_CHANNELS)
declare("Accum", _accum, message="accum_param", bottoms=(1, ANY))
declare("PixelShuffle", _pixel_shuffle, message="pixelshuffle_param", traits=Trait.REARRANGES | Trait.NO_BACKWARD)
