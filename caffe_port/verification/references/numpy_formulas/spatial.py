"""Sliding windows. Computed as sums over kernel offsets, each one matrix product or one strided slice."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from caffe_port.formats.message import Message
from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas.forks import pooling3d
from caffe_port.verification.references.numpy_formulas.formulas import FLT_MAX, Layer, Result, formula, given, spatial

Sides = tuple[int, ...]


def _windows(p: Message, count: int) -> tuple[Sides, Sides, Sides, Sides]:
    """Kernel, stride, pad and dilation of ``count`` spatial axes."""
    kernel = spatial(_shaped(p, "kernel"), given(p, "kernel_h"), given(p, "kernel_w"), count, 1)
    stride = spatial(_shaped(p, "stride"), given(p, "stride_h"), given(p, "stride_w"), count, 1)
    pad = spatial(_shaped(p, "pad"), given(p, "pad_h"), given(p, "pad_w"), count, 0)
    if p.pad_type == 1:  # it replaces them, see _bordered
        pad = (0,) * count
    if p.has("dilation"):
        return kernel, stride, pad, spatial(p.dilation, None, None, count, 1)
    hole = [p.hole] if p.has("hole") else []  # DeepLab's name for dilation
    return kernel, stride, pad, spatial(hole, given(p, "hole_h"), given(p, "hole_w"), count, 1)


def _bordered(p: Message, x: Array) -> Array:
    """The image with zeros around it, where each side has a number of its own. Source: synopsys-caffe."""
    if p.pad_type == 1:
        (top, below), (left, right) = _same(p, x)
        return np.pad(x, [(0, 0)] * (x.ndim - 2) + [(top, below), (left, right)])
    if not any(p.has(name) for name in ("pad_r", "pad_t", "pad_b")):
        return x
    return np.pad(x, [(0, 0)] * (x.ndim - 2) + [(p.pad_t, p.pad_b), (p.pad_l, p.pad_r)])


def _same(p: Message, x: Array) -> list[Sides]:
    """TensorFlow's padding before and after both sides: ceil(n / s) windows, the odd pixel after. Source: as above."""
    kernel = spatial(p.kernel_size, given(p, "kernel_h"), given(p, "kernel_w"), 2, 1)
    stride = spatial(p.stride, given(p, "stride_h"), given(p, "stride_w"), 2, 1)
    missing = [max((math.ceil(n / s) - 1) * s + k - n, 0) for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    return [(n // 2, math.ceil(n / 2)) for n in missing]


def _shaped(p: Message, word: str) -> list[int]:
    """``kernel_size``, ``stride`` or ``pad``; or a fork's ``kernel_shape { dim dim dim }`` and so on."""
    if p.has(f"{word}_shape"):
        return list(getattr(p, f"{word}_shape").dim)
    return list(getattr(p, "kernel_size" if word == "kernel" else word))


def _offsets(kernel: Sides) -> Iterator[Sides]:
    return itertools.product(*(range(k) for k in kernel))


def _met(offset: Sides, stride: Sides, dilation: Sides, out: Sides) -> Any:
    """The index of the elements of a padded image at this kernel offset, one per output position."""
    starts = [o * d for o, d in zip(offset, dilation, strict=True)]
    return (..., *(slice(a, a + s * (n - 1) + 1, s) for a, s, n in zip(starts, stride, out, strict=True)))


def _last(*sides: Any) -> Any:
    """Index into the last axes."""
    return (..., *sides)


@formula("Convolution", "ConvolutionDepthwise", "DepthwiseConv", "DepthwiseConvolution")
def convolution(layer: Layer) -> Result:
    """y[o] = b[o] + sum over i, k of W[o, i, k] x[i, s * position + d * k - pad]. Source: base_conv_layer.cpp."""
    p = layer.param.convolution_param
    if layer.param.type not in ("Convolution", "NdConvolution"):  # depthwise: may omit both; ShuffleNet reads neither
        channels, reads = layer.x.shape[p.axis], layer.param.type != "ConvolutionDepthwise"
        p = p.copy(**{name: channels for name in ("num_output", "group") if not (reads and p.has(name))})
    return [_convolve(p, x, layer.blobs) for x in layer.bottoms]


def _convolve(p: Message, x: Array, blobs: Sequence[Array]) -> Array:
    axis = p.axis % x.ndim
    x = _bordered(p, x)
    batch, channels, sides = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    kernel, stride, pad, dilation = _windows(p, len(sides))
    out = tuple(
        (n + 2 * q - (d * (k - 1) + 1)) // s + 1
        for n, q, d, k, s in zip(sides, pad, dilation, kernel, stride, strict=True)
    )
    group = p.group
    weight = blobs[0].reshape(group, p.num_output // group, channels // group, *kernel)
    x = np.pad(x.reshape(-1, group, channels // group, *sides), [(0, 0)] * 3 + [(q, q) for q in pad])
    y = np.zeros((x.shape[0], group, p.num_output // group, math.prod(out)))
    for offset in _offsets(kernel):
        met = x[_met(offset, stride, dilation, out)].reshape(*x.shape[:3], -1)
        y += weight[_last(*offset)] @ met
    if p.bias_term:
        y += blobs[1].reshape(group, -1, 1)
    return y.reshape(*batch, p.num_output, *out)


@formula("Deconvolution")
def deconvolution(layer: Layer) -> Result:
    """The gradient of a convolution: each element adds a multiple of the kernel. Source: deconv_layer.cpp."""
    p = layer.param.convolution_param
    return [_deconvolve(p, x, layer.blobs) for x in layer.bottoms]


def _deconvolve(p: Message, x: Array, blobs: Sequence[Array]) -> Array:
    axis = p.axis % x.ndim
    batch, channels, sides = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    kernel, stride, pad, dilation = _windows(p, len(sides))
    whole = tuple(s * (n - 1) + d * (k - 1) + 1 for n, s, d, k in zip(sides, stride, dilation, kernel, strict=True))
    group = p.group
    weight = blobs[0].reshape(group, channels // group, p.num_output // group, *kernel)
    x = x.reshape(-1, group, channels // group, math.prod(sides))
    y = np.zeros((x.shape[0], group, p.num_output // group, *whole))
    for offset in _offsets(kernel):
        part = weight[_last(*offset)].transpose(0, 2, 1) @ x
        y[_met(offset, stride, dilation, sides)] += part.reshape(*part.shape[:3], *sides)
    y = y[_last(*(slice(q, n - q) for q, n in zip(pad, whole, strict=True)))]
    if p.bias_term:
        y = y + blobs[1].reshape(group, -1, *([1] * len(sides)))
    return np.asarray(y.reshape(*batch, p.num_output, *y.shape[3:]))


@formula("Im2col")
def im2col(layer: Layer) -> Result:
    """Channel (i, k) is what kernel offset k reads from channel i. Source: im2col.cpp."""
    p = layer.param.convolution_param
    x, axis = _bordered(p, layer.x), p.axis % layer.x.ndim
    batch, sides = x.shape[:axis], x.shape[axis + 1 :]
    kernel, stride, pad, dilation = _windows(p, len(sides))
    out = tuple(
        (n + 2 * q - (d * (k - 1) + 1)) // s + 1
        for n, q, d, k, s in zip(sides, pad, dilation, kernel, stride, strict=True)
    )
    x = np.pad(x, [(0, 0)] * (axis + 1) + [(q, q) for q in pad])
    columns = [x[_met(offset, stride, dilation, out)] for offset in _offsets(kernel)]
    return np.stack(columns, axis=axis + 1).reshape(*batch, -1, *out)


def pool(
    x: Array, how: str, kernel: Sides, stride: Sides, pad: Sides, ceil: bool = True, end: Sides | None = None
) -> tuple[Array, Array]:
    """The pooled values and, for MAX, the index of each within its plane (-1 for an empty window).

    Windows may extend beyond the right and bottom edges; if there is padding, a last window that would start beyond the
    image and its padding is dropped. AVE divides by the window clipped to the padded image, AVE_EXC_PAD by what is left
    of it in the image. ``end`` is the padding below and on the right, where it is another. Source: pooling_layer.cpp,
    and that of synopsys-caffe for what 1.0 does not have.
    """
    sides, end = x.shape[2:], pad if end is None else end
    out = []
    for n, k, s, q, r in zip(sides, kernel, stride, pad, end, strict=True):
        count = (math.ceil((n + q + r - k) / s) if ceil else (n + q + r - k) // s) + 1
        out.append(count - 1 if any(pad + end) and (count - 1) * s >= n + q else count)
    starts = [[i * s - q for i in range(m)] for m, s, q in zip(out, stride, pad, strict=True)]
    y = np.zeros((*x.shape[:2], *out))
    index = np.full(y.shape, -1.0)
    for i, top in enumerate(starts[0]):
        for j, left in enumerate(starts[1]):
            rows = slice(max(top, 0), min(top + kernel[0], sides[0]))
            columns = slice(max(left, 0), min(left + kernel[1], sides[1]))
            window = x[:, :, rows, columns]
            if how == "AVE_EXC_PAD":
                y[:, :, i, j] = window.mean(axis=(2, 3))
            elif how == "AVE":
                height = min(top + kernel[0], sides[0] + end[0]) - top
                width = min(left + kernel[1], sides[1] + end[1]) - left
                with np.errstate(invalid="ignore", divide="ignore"):
                    y[:, :, i, j] = window.sum(axis=(2, 3)) / np.float64(height * width)
            elif window.size == 0:
                y[:, :, i, j] = -FLT_MAX
            else:
                flat = window.reshape(*window.shape[:2], -1)
                best = flat.argmax(axis=2)
                y[:, :, i, j] = np.take_along_axis(flat, best[..., None], 2)[..., 0]
                row, column = np.divmod(best, window.shape[3])
                index[:, :, i, j] = (row + rows.start) * sides[1] + column + columns.start
    return y, index


def _dilated(x: Array, kernel: Sides, stride: Sides, pad: Sides, dilation: Sides) -> tuple[Array, Array]:
    """The maximum of pixels that are apart. Source: pooling_layer.cu (Caffe's OpenCL branch)."""
    sides = x.shape[2:]
    places = []
    for n, k, s, q, d in zip(sides, kernel, stride, pad, dilation, strict=True):
        count = math.ceil((n + 2 * q - (k - 1) * d - 1) / s) + 1
        count -= any(pad) and (count - 1) * s >= n + q
        windows = [[i * s - q + j * d for j in range(k)] for i in range(count)]
        places.append([[at for at in window if 0 <= at < n] for window in windows])
    y = np.full((*x.shape[:2], *map(len, places)), -FLT_MAX)
    index = np.full(y.shape, -1.0)
    for (i, rows), (j, columns) in itertools.product(enumerate(places[0]), enumerate(places[1])):
        for row, column in itertools.product(rows, columns):
            better = x[:, :, row, column] > y[:, :, i, j]
            y[:, :, i, j][better] = x[:, :, row, column][better]
            index[:, :, i, j][better] = row * sides[1] + column
    return y, index


@formula("Pooling")
def pooling(layer: Layer) -> Result:
    """Maximum or mean over windows, and the mask. Source: pooling_layer.cpp; of volumes as in C3D."""
    if layer.x.ndim == 5:
        return pooling3d(layer)
    p, x = layer.param.pooling_param, layer.x
    if p.pool == "STOCHASTIC":
        raise NotImplementedError("stochastic pooling")
    if p.global_pooling:
        kernel: Sides = x.shape[2:]
        stride: Sides = (1, 1)
        pad: Sides = (0, 0)
        end: Sides = pad
    else:
        kernel = spatial(p.kernel_size, given(p, "kernel_h"), given(p, "kernel_w"), 2, 1)
        stride = spatial(p.stride, given(p, "stride_h"), given(p, "stride_w"), 2, 1)
        pad = end = spatial(p.pad, given(p, "pad_h"), given(p, "pad_w"), 2, 0)
        if p.pad_type == 1:
            pad, end = zip(*_same(p, x), strict=True)
        elif any(p.has(name) for name in ("pad_l", "pad_r", "pad_t", "pad_b")):
            pad, end = (p.pad_t, p.pad_l), (p.pad_b, p.pad_r)
    ceil = p.round_mode == "CEIL" and p.ceil_mode and not p.round_below and p.pad_type != 1
    if set(p.dilation) - {1}:
        y, index = _dilated(x, kernel, stride, pad, tuple(spatial(p.dilation, None, None, 2, 1)))
        return [y, index][: layer.tops]
    y, index = pool(x, p.pool, kernel, stride, pad, ceil, end)
    return [y, index][: layer.tops]


@formula("SPP")
def spatial_pyramid(layer: Layer) -> Result:
    """Pools into 1, 2 x 2, 4 x 4, ... bins and concatenates them. Source: spp_layer.cpp."""
    p, x = layer.param.spp_param, layer.x
    if p.pyramid_height == 1:  # the top of the pooling, with its axes
        return pool(x, p.pool, x.shape[2:], x.shape[2:], (0, 0))[0]
    parts = []
    for level in range(p.pyramid_height):
        bins = 2**level
        kernel = tuple(math.ceil(n / bins) for n in x.shape[2:])
        pad = tuple((k * bins - n + 1) // 2 for k, n in zip(kernel, x.shape[2:], strict=True))
        parts.append(pool(x, p.pool, kernel, kernel, pad)[0].reshape(x.shape[0], -1))
    return np.concatenate(parts, axis=1)


@formula("GRIDPooling")
def grid_pooling(layer: Layer) -> Result:
    """The maximum of each bin, from the floor of its first edge to the ceiling of its last one.

    Source: grid_pooling_layer.cpp (JiajianZeng/caffe-face-attributes).
    """
    p, x = layer.param.grid_pooling_param, layer.x
    for axis, bins in ((2, p.pooled_h), (3, p.pooled_w)):
        step = np.float32(x.shape[axis]) / np.float32(bins)
        edges = [(math.floor(np.float32(k) * step), math.ceil(np.float32(k + 1) * step)) for k in range(bins)]
        cut = [x.take(range(first, min(last, x.shape[axis])), axis) for first, last in edges]
        x = np.stack([part.max(axis) for part in cut], axis)
    return x


@formula("LRN")
def lrn(layer: Layer) -> Result:
    """x (k + alpha / n * sum x^2)^-beta over neighboring channels or within the plane. Source: lrn_layer.cpp."""
    p, x = layer.param.lrn_param, layer.x
    n = p.local_size
    if p.norm_region == "WITHIN_CHANNEL":  # k is not used there
        side, pad = (n, n), ((n - 1) // 2, (n - 1) // 2)
        mean = pool(x * x, "AVE", side, (1, 1), pad)[0]
        return x * (1 + p.alpha * mean) ** -p.beta
    squares = np.pad(x * x, [(0, 0), ((n - 1) // 2, (n - 1) // 2)] + [(0, 0)] * (x.ndim - 2))
    total = sum(squares[:, i : i + x.shape[1]] for i in range(n))
    return x * (p.k + p.alpha / n * total) ** -p.beta


@formula("AutoCrop", "Crop")
def crop(layer: Layer) -> Result:
    """The part of the first bottom with the second's size, from ``axis`` on. Source: crop_layer.cpp."""
    p, x = layer.param.crop_param, layer.x
    axis = p.axis % x.ndim
    offsets = spatial(p.offset, None, None, x.ndim - axis, 0)
    sides = layer.bottoms[1].shape[axis:]
    return x[_last(*(slice(o, o + n) for o, n in zip(offsets, sides, strict=True)))]
