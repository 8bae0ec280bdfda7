"""Optical flow and stereo. Source: src/caffe/layers of lmb-freiburg/flownet2, whose kernels are CUDA."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from caffe_port.formats.message import Message
from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas.formulas import Layer, Result, formula


def _patches_compared(p: Message, a: Array, b: Array, first: int, moves: list[tuple[int, int]]) -> Array:
    """For every move (down, right), the mean over channels and a patch; patches begin at (first, max_displacement).

    What is read to the left of the first column of the first row of an array, or to the right of the last, is refused.
    """
    k, step, reach = p.kernel_size, p.stride_1, p.max_displacement
    height = math.ceil((a.shape[2] - 2 * first - 2 * ((k - 1) // 2)) / step)
    width = math.ceil((a.shape[3] - 2 * reach - 2 * ((k - 1) // 2)) / step)
    top = np.zeros((len(a), len(moves), height, width))
    for c, (down, right) in enumerate(moves):
        for y, x in np.ndindex(height, width):
            row, column = y * step + first, x * step + reach
            one = a[:, :, row : row + k, column : column + k]
            # Pixels are read by their index in memory: left of a row's first is the last of the row before it.
            index = np.add.outer((np.arange(k) + row + down) * a.shape[3], np.arange(k) + column + right)
            if index.min() < 0 or index.max() >= a.shape[2] * a.shape[3]:
                raise NotImplementedError("a Correlation that reads beyond its bottom")
            other = b.reshape(*b.shape[:2], -1)[:, :, index]
            each = np.abs(one - other) if p.correlation_type == "SUBTRACT" else one * other
            top[:, c, y, x] = each.mean((1, 2, 3))
    return top


@formula("Correlation")
def correlation(layer: Layer) -> Result:
    """Every patch of the first image with those of the second around it. Source: correlation_layer.cu."""
    p, pad = layer.param.correlation_param, layer.param.correlation_param.pad
    a, b = (np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad))) for x in layer.bottoms)
    radius = p.max_displacement // p.stride_2
    steps = [step * p.stride_2 for step in range(-radius, radius + 1)]
    moves = [(down, right) for down in steps for right in steps]
    return _patches_compared(p, a, b, p.max_displacement, moves)


@formula("Correlation1D")
def correlation_1d(layer: Layer) -> Result:
    """The same along rows only; to the left alone it begins one step beyond. Source: correlation_layer1d.cu."""
    p = layer.param.correlation_param
    a, b = (np.pad(x, ((0, 0), (0, 0), (0, 0), (p.pad, p.pad))) for x in layer.bottoms)
    radius = p.max_displacement // p.stride_2
    width = radius + 1 if p.single_direction else 2 * radius + 1
    first = {-1: -width, 0: -radius, 1: 0}[p.single_direction]
    moves = [(0, (first + channel) * p.stride_2) for channel in range(width)]
    return _patches_compared(p, a, b, 0, moves)


@formula("FlowWarp", "Warp", "Warping")
def flow_warp(layer: Layer) -> Result:
    """The pixel at (x, y) + flow, between its four neighbors.

    Sources: flow_warp_layer.cpp; warp_layer.cu (PWC-Net), up to the middle of the last pixel; warping_layer.cu (Garg),
    where there must be a pixel on both sides.
    """
    image, flow = layer.bottoms[0], np.concatenate(layer.bottoms[1:], 1)
    height, width = image.shape[2:]
    own = layer.param.type == "FlowWarp"
    fill = 0.0 if not own or layer.param.flow_warp_param.fill_value == "ZERO" else np.nan
    top = np.full(image.shape, fill)
    for n, y, x in np.ndindex(len(image), height, width):
        at_x, at_y = x + flow[n, 0, y, x], y + flow[n, 1, y, x]
        last = {"FlowWarp": 1, "Warp": 1e-12}.get(layer.param.type, 0)
        if 0 <= at_x < width - 1 + last and 0 <= at_y < height - 1 + last:
            left, upper = int(at_x), int(at_y)
            right, lower = min(left + 1, width - 1), min(upper + 1, height - 1)
            a, b = at_x - left, at_y - upper
            above = (1 - a) * image[n, :, upper, left] + a * image[n, :, upper, right]
            below = (1 - a) * image[n, :, lower, left] + a * image[n, :, lower, right]
            top[n, :, y, x] = (1 - b) * above + b * below
    return top


@formula("ChannelNorm")
def channel_norm(layer: Layer) -> Result:
    """Source: channel_norm_layer.cu."""
    return np.sqrt((layer.x**2).sum(1, keepdims=True))


@formula("DataAugmentation")
def data_augmentation(layer: Layer) -> Result:
    """Cuts out the middle, between pixels, and subtracts the mean.

    Sources: data_augmentation_layer.cu, augmentation_layer_base.cpp (without coefficients the matrix is a shift).
    """
    p, x = layer.param.augmentation_param, layer.x
    if layer.train or p.augment_during_test or len(layer.bottoms) > 1 or layer.tops > 1:
        raise NotImplementedError("a DataAugmentation that changes images at random")
    if p.has("crop_width") and p.has("crop_height"):
        for axis, size in ((2, p.crop_height), (3, p.crop_width)):
            old = x.shape[axis]
            place = (np.arange(size) - size / 2 + old / 2).clip(0, old - 1.05)
            low = np.floor(place).astype(int)
            share = (place - low).reshape(-1, *[1] * (3 - axis))
            x = (1 - share) * x.take(low, axis) + share * x.take(np.minimum(low + 1, old - 1), axis)
    if p.recompute_mean > 0:
        if layer.blobs[0].reshape(-1)[0] + 1 <= p.recompute_mean:
            raise NotImplementedError("a DataAugmentation whose mean every forward still changes")
        return x - (layer.blobs[1].reshape(x.shape[1:]) if p.mean_per_pixel else layer.blobs[2].reshape(-1, 1, 1))
    if len(p.mean) == 3 and not p.mean_per_pixel:
        return x - np.array(p.mean).reshape(1, 3, 1, 1)
    return x


# -- sizes --------------------------------------------------------------------------------------------------------


def _cubic(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return x * x * (1.5 * x - 2.5) + 1
    return x * (x * (-0.5 * x + 2.5) - 4) + 2 if x < 2 else 0.0


def _triangle(x: float) -> float:
    return max(0.0, 1 - abs(x))


@formula("Resample")
def resample(layer: Layer) -> Result:
    """A filter around (x fx + fy / 2 - 0.5), fx and fy being old / new; the weights are divided by their sum.

    Source: resample_layer.cu.
    """
    p, x = layer.param.resample_param, layer.x
    height, width = x.shape[2:]
    new = (p.height, p.width) if len(layer.bottoms) == 1 else layer.bottoms[1].shape[2:]
    fy, fx = height / new[0], width / new[1]
    top = np.zeros((*x.shape[:2], *new))
    antialias = p.antialias and (fx > 1 or fy > 1)
    for row, column in np.ndindex(*new):
        at_y, at_x = row * fy + fx / 2 - 0.5, column * fx + fy / 2 - 0.5
        near_y, near_x = _away(at_y), _away(at_x)
        if p.type == "NEAREST":
            if not (0 <= near_y < height and 0 <= near_x < width):
                raise NotImplementedError("a Resample that reads beyond its bottom")
            top[:, :, row, column] = x[:, :, near_y, near_x]
            continue
        kernel, reach = (_cubic, 4) if p.type == "CUBIC" else (_triangle, 2)
        rows = _taps(kernel, reach, at_y, near_y, fy, height, antialias)
        columns = _taps(kernel, reach, at_x, near_x, fx, width, antialias)
        weights = np.outer(rows, columns)
        total = weights.sum()
        top[:, :, row, column] = (x * weights).sum((2, 3)) / total if total else 0
    return top


def _taps(
    kernel: Callable[[float], float], reach: int, at: float, near: int, factor: float, size: int, antialias: bool
) -> Array:
    """The weight of every pixel of an axis."""
    a = 1 / factor if antialias else 1.0
    radius = 2 if factor < 1 else math.ceil(reach / a)
    weights = np.zeros(size)
    for k in range(max(near - radius, 0), min(near + radius, size - 1) + 1):
        weights[k] = a * kernel(a * (at - k))
    return weights


def _away(x: float) -> int:
    """C's round."""
    return int(math.copysign(math.floor(abs(x) + 0.5), x))


@formula("Downsample")
def downsample(layer: Layer) -> Result:
    """A triangle as wide as the step around every place, from corner to corner; NaN is left out, unless it is most.

    Source: downsample_layer.cu.
    """
    p, x = layer.param.downsample_param, layer.x
    new = layer.bottoms[1].shape[2:] if len(layer.bottoms) > 1 else (p.top_height, p.top_width)
    if new == x.shape[2:]:
        return x
    taps = []
    for old, count in zip(x.shape[2:], new, strict=True):
        scale = (old - 1) / (count - 1)
        places = [k / (count - 1) * (old - 1) for k in range(count)]
        reach = math.ceil(scale)
        taps.append(
            [[max(0, 1 - abs(k - at) / scale) * (abs(k - _away(at)) <= reach) for k in range(old)] for at in places]
        )
    top = np.zeros((*x.shape[:2], *new))
    for row, column in np.ndindex(*new):
        weights = np.outer(taps[0][row], taps[1][column])
        missing = np.isnan(x)
        known = np.where(missing, 0, weights).sum((2, 3))
        lost = np.where(missing, weights, 0).sum((2, 3))
        value = (np.where(missing, 0, x) * weights).sum((2, 3)) / known
        top[:, :, row, column] = np.where(lost / known > 0.5, np.nan, value)
    return top
