"""Layers of smaller forks that change sizes, join or cut, and those with sketches or weights for each pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas.formulas import Layer, Result, formula, given, spatial


@formula("Unpooling")
def unpooling(layer: Layer) -> Result:
    """Values at the mask's places or at window corners; or spread over windows, which add up. Source:
    unpooling_layer.cu (HyeonwooNoh).
    """
    p, x = layer.param.unpooling_param, layer.x
    kernel, stride = (
        spatial([getattr(p, name)] if p.has(name) else [], given(p, f"{short}_h"), given(p, f"{short}_w"), 2, 1)
        for name, short in (("kernel_size", "kernel"), ("stride", "stride"))
    )
    n, channels, height, width = x.shape
    size = [max((m - 1) * s + k, m * s + 1) for m, s, k in zip((height, width), stride, kernel, strict=True)]
    if p.has("unpool_size"):
        size = [p.unpool_size, p.unpool_size]
    elif p.has("unpool_h"):
        size = [p.unpool_h, p.unpool_w]
    how = p.unpool
    top = np.zeros((n, channels, *size))
    flat = top.reshape(n, channels, -1)
    for row, column in np.ndindex(height, width):
        first = (row * stride[0], column * stride[1])
        if how != "MAX":
            window = [slice(f, min(f + k, m)) for f, k, m in zip(first, kernel, size, strict=True)]
            count = math.prod(max(min(f + k, m) - f, 0) for f, k, m in zip(first, kernel, size, strict=True))
            value = x[:, :, row, column] / (count if how == "AVE" else 1)
            top[:, :, window[0], window[1]] += value[:, :, None, None]
        elif len(layer.bottoms) > 1:
            for image, channel in np.ndindex(n, channels):
                place = int(layer.bottoms[1][image, channel, row, column])
                if place < 0:  # NumPy would count from the end
                    raise IndexError("the mask holds a negative index")
                flat[image, channel, place] = x[image, channel, row, column]
        else:
            top[:, :, min(first[0], size[0] - 1), min(first[1], size[1] - 1)] = x[:, :, row, column]
    return top


@formula("ImResize")
def im_resize(layer: Layer) -> Result:
    """A cubic filter (coefficient -0.5) around the half pixel, the border repeated. Source: imresize_layer.cu (rtpose).

    Several images are scales of one there, of which the mean is taken.
    """
    p, x = layer.param.imresize_param, layer.x
    new = [int(np.float32(n) * np.float32(p.factor)) for n in x.shape[2:]]
    if not p.factor:
        new = [p.target_spatial_height, p.target_spatial_width]
    if p.start_scale != 1:
        raise NotImplementedError("an ImResize of padded scales")
    for axis, count in zip((2, 3), new, strict=True):
        old = x.shape[axis]
        parts = []
        for k in range(count):
            at = (k - (count / old / 2 - 0.5)) * (old / count)
            second = max(int(at + 1e-5), 0)
            third = min(second + 1, old - 1)
            t = at - second
            a, b, c, d = (x.take(j, axis) for j in (max(second - 1, 0), second, third, min(third + 1, old - 1)))
            cube = (-0.5 * a + 1.5 * b - 1.5 * c + 0.5 * d) * t**3
            parts.append(cube + (a - 2.5 * b + 2 * c - 0.5 * d) * t**2 + (c - a) / 2 * t + b)
        x = np.stack(parts, axis)
    return x


def opencv_resize(x: Array, new: Sequence[int], how: str) -> Array:
    """cv::resize of images of 32-bit floats: the pixel i lies at (i + 0.5) old / new - 0.5, the border is repeated."""
    for axis, count in zip((2, 3), new, strict=True):
        old = x.shape[axis]
        if how == "INTER_NEAREST":
            x = x.take(np.minimum(np.floor(np.arange(count) * (old / count)).astype(int), old - 1), axis)
            continue
        at = (np.arange(count) + 0.5) * (old / count) - 0.5
        low = np.floor(at).astype(int)
        t = at - low
        if how == "INTER_LINEAR":
            weights = {0: 1 - t, 1: t}
        else:  # INTER_CUBIC, coefficient -0.75
            a = -0.75
            weights = {
                -1: ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a,
                0: ((a + 2) * t - (a + 3)) * t * t + 1,
                1: ((a + 2) * (1 - t) - (a + 3)) * (1 - t) * (1 - t) + 1,
            }
            weights[2] = 1 - sum(weights.values())
        shape = (-1, *[1] * (3 - axis))
        x = np.sum([w.reshape(shape) * x.take((low + o).clip(0, old - 1), axis) for o, w in weights.items()], axis=0)
    return x


@formula("Resize")
def resize(layer: Layer) -> Result:
    """cv::resize (Akrit2013/caffe); without zoom and inter the pixel i lies at i old / new, and 0 beyond the edge
    (util_img.cpp of bearpaw/caffe, happynear/caffe-windows and brocolli-caffe).
    """
    p, x = layer.param.resize_param, layer.x
    factors = (p.zoom, p.zoom) if p.has("zoom") else (p.zoom_h, p.zoom_w)
    scaled = p.is_pyramid_test or p.has("zoom") or p.has("zoom_h")
    if p.is_pyramid_test:
        factors = (p.out_height_scale, p.out_width_scale)
    new = [p.height, p.width]
    if scaled:
        new = [int(np.float32(f) * np.float32(n)) for f, n in zip(factors, x.shape[2:], strict=True)]
    if p.has("zoom") or p.has("zoom_h") or p.has("inter"):
        return opencv_resize(x, new, p.inter)
    for axis, count in zip((2, 3), new, strict=True):
        old = x.shape[axis]
        at = np.arange(count) * (old / count)
        low = np.floor(at).astype(int)
        share = (at - low).reshape(-1, *[1] * (3 - axis))
        beyond = np.concatenate([x, np.zeros_like(x.take([0], axis))], axis)
        x = (1 - share) * beyond.take(low, axis) + share * beyond.take(low + 1, axis)
    return x


@formula("CropCenter")
def crop_center(layer: Layer) -> Result:
    """Source: crop_center_layer.cpp (lltcggie/caffe)."""
    cuts = np.ravel(layer.param.crop_center_param.crop_size)
    return layer.x[tuple(slice(cut, side - cut) for cut, side in zip(cuts, layer.x.shape, strict=True))]


@formula("Transpose")
def transpose(layer: Layer) -> Result:
    """Axis i of the top is axis dim[i] of the bottom. Source: transpose_layer.cpp (CTPN)."""
    return layer.x.transpose(list(layer.param.transpose_param.dim))


@formula("Local")
def local(layer: Layer) -> Result:
    """At every place a weight of its own. Source: local_layer.cpp (happynear/caffe-windows)."""
    p, x = layer.param.local_param, layer.x
    k, step = p.kernel_size, p.stride
    x = np.pad(x, ((0, 0), (0, 0), (p.pad, p.pad), (p.pad, p.pad)))
    out = [(side - k) // step + 1 for side in x.shape[2:]]
    weight = layer.blobs[0].reshape(p.num_output, -1, *out)
    top = np.zeros((len(x), p.num_output, *out))
    for row, column in np.ndindex(*out):
        seen = x[:, :, row * step : row * step + k, column * step : column * step + k].reshape(len(x), -1)
        top[:, :, row, column] = seen @ weight[:, :, row, column].T
    return top + layer.blobs[1].reshape(p.num_output, *out) if p.bias_term else top


def _glibc_rand(seed: int, count: int) -> list[int]:
    """rand() of glibc after srand: an additive feedback generator of 31 words (TYPE_3)."""
    words = [seed]
    for _ in range(30):
        high, low = divmod(words[-1], 127773)
        word = 16807 * low - 2836 * high
        words.append(word + 2147483647 if word < 0 else word)
    words += words[:3]
    while len(words) < 344 + count:
        words.append((words[-31] + words[-3]) & 0xFFFFFFFF)
    return [word >> 1 for word in words[344:]]


@formula("CompactBilinear")
def compact_bilinear(layer: Layer) -> Result:
    """Count sketches of both bottoms, convolved in a circle. Source: compact_bilinear_layer.cpp (Gao et al.)."""
    p = layer.param.compact_bilinear_param
    size = p.num_output
    channels = [x.shape[1] for x in layer.bottoms]
    drawn = iter(_glibc_rand(1, 2 * sum(channels)))
    sketches = []
    for x, count in zip(layer.bottoms, channels, strict=True):
        places = [next(drawn) % size for _ in range(count)]
        signs = [2 * (next(drawn) % 2) - 1 for _ in range(count)]
        sketch = np.zeros((len(x), size, *x.shape[2:]))
        for channel, (place, sign) in enumerate(zip(places, signs, strict=True)):
            sketch[:, place] += sign * x[:, channel]
        sketches.append(sketch)
    a, b = sketches
    top = np.zeros_like(a)
    for i in range(size):
        for j in range(size):
            top[:, (i + j) % size] += a[:, i] * b[:, j]
    return top.sum((2, 3), keepdims=True) if p.sum_pool else top


@formula("Deconvolution3D")
def deconvolution_3d(layer: Layer) -> Result:
    """Every value adds a multiple of the kernel, a box. Source: deconvolution3d_layer.cpp (C3D).

    Version 1.0 has its parameters in convolution_param, 1.1 in convolution3d_param; bias_term is always the former's.
    """
    own = layer.param
    p = own.convolution3d_param if own.has("convolution3d_param") else own.convolution_param
    sides = {"kernel_size": 1, "stride": 1, "pad": 0}
    for name, default in sides.items():
        values = getattr(p, name)
        sides[name] = values if isinstance(values, int) else values[0] if len(values) else default
    kernel = (p.kernel_depth, sides["kernel_size"], sides["kernel_size"])
    stride = (p.temporal_stride, sides["stride"], sides["stride"])
    depth_pad = p.temporal_pad
    pad = (depth_pad, sides["pad"], sides["pad"])
    tops = []
    for x in layer.bottoms:
        weight = layer.blobs[0].reshape(x.shape[1], p.num_output, *kernel)
        whole = [(n - 1) * s + k for n, s, k in zip(x.shape[2:], stride, kernel, strict=True)]
        y = np.zeros((len(x), p.num_output, *whole))
        for at in np.ndindex(*x.shape[2:]):
            window = tuple(slice(a * s, a * s + k) for a, s, k in zip(at, stride, kernel, strict=True))
            y[(slice(None), slice(None), *window)] += np.einsum("nc,codhw->nodhw", x[(..., *at)], weight)
        y = y[(slice(None), slice(None), *(slice(q, n - q) for q, n in zip(pad, whole, strict=True)))]
        tops.append(y + layer.blobs[1].reshape(-1, 1, 1, 1) if p.bias_term else y)
    return tops
