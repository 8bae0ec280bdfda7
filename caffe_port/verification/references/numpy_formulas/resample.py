"""Resizing: the layers that segmentation and detection added to Caffe."""

from __future__ import annotations

import numpy as np

from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas.formulas import Layer, Result, formula, given


@formula("Interp")
def interp(layer: Layer) -> Result:
    """Crops, then interpolates bilinearly with corners aligned. Source: interp_layer.cpp (DeepLab, PSPNet)."""
    p, x = layer.param.interp_param, layer.x
    if p.interp_type != "bilinear" or not p.align_corners:
        raise NotImplementedError("Interp other than bilinear with aligned corners")
    x = x[:, :, -p.pad_beg : x.shape[2] + p.pad_end, -p.pad_beg : x.shape[3] + p.pad_end]
    size = list(x.shape[2:])
    if p.use_blob_size:
        size = list(layer.bottoms[1].shape[2:])
    elif p.has("shrink_factor") or p.has("zoom_factor"):
        size = [(n - 1) // p.shrink_factor + 1 for n in size]
        size = [n + (n - 1) * (p.zoom_factor - 1) for n in size]
    elif p.has("height") and p.has("width"):
        size = [p.height, p.width]
    else:
        size = list(layer.bottoms[1].shape[2:])
    for axis, count in zip((2, 3), size, strict=True):
        x = _stretch(x, axis, count)
    return x


def _stretch(x: Array, axis: int, count: int) -> Array:
    last = x.shape[axis] - 1
    place = np.arange(count) * (last / (count - 1) if count > 1 else 0.0)
    low = np.minimum(np.floor(place).astype(int), last)
    share = (place - low).reshape(-1, *[1] * (x.ndim - 1 - axis))
    return np.asarray((1 - share) * x.take(low, axis) + share * x.take(np.minimum(low + 1, last), axis))


def _inside(places: Array, count: int) -> None:
    """Refuses a negative index, which NumPy would count from the end and Caffe writes before the memory of the top."""
    if places.size and not (places.min() >= 0 and places.max() < count):
        raise IndexError("the mask holds an index outside the top")


@formula("Upsample")
def upsample(layer: Layer) -> Result:
    """Puts each value where the mask says, with zeros elsewhere; without a mask, repeats it in a block of pixels.

    Sources: upsample_layer.cpp of SegNet, of darknet2caffe and MobileNet-YOLO, and (dims_num) of brocolli-caffe.
    """
    p, x = layer.param.upsample_param, layer.x
    if p.has("dims_num"):
        times = p.scale if p.has("scale") else 1
        for axis in range(2, p.dims_num):
            x = x.repeat(times, axis)
        return x
    fields = (
        ("stride", "stride_h", "stride_w")
        if p.has("stride") and not p.has("scale")
        else ("scale", "scale_h", "scale_w")
    )
    scale = [getattr(p, fields[1]), getattr(p, fields[2])] if p.has(fields[1]) else [getattr(p, fields[0])] * 2
    fixed = [p.upsample_h, p.upsample_w] if p.has("upsample_h") and p.has("upsample_w") else None
    if len(layer.bottoms) == 1:
        if not any(p.has(name) for name in fields):
            scale = [1, 1]  # darknet2caffe's
        height, width = fixed or [n * s for n, s in zip(x.shape[2:], scale, strict=True)]
        rows, columns = np.arange(height) * x.shape[2] // height, np.arange(width) * x.shape[3] // width
        return x[:, :, rows][..., columns]
    padded = [given(p, "pad_out_h"), given(p, "pad_out_w")]
    size = fixed or [n * s - bool(pad) for n, s, pad in zip(x.shape[2:], scale, padded, strict=True)]
    planes, places = x.reshape(-1, x[0, 0].size), layer.bottoms[1].astype(int).reshape(-1, x[0, 0].size)
    top = np.zeros((len(planes), size[0] * size[1]))
    _inside(places, top.shape[1])
    np.put_along_axis(top, places, planes, 1)
    return top.reshape(*x.shape[:2], *size)


@formula("MaxUnPool")
def max_unpool(layer: Layer) -> Result:
    """Value by value to the place that the mask says. Source: maxunpool_layer.cpp (brocolli-caffe)."""
    p, x = layer.param.max_unpool_param, layer.x
    top = np.zeros((x.shape[0] * x.shape[1], p.dst_h * p.dst_w))
    planes, places = (b.reshape(len(top), -1) for b in layer.bottoms)
    _inside(places, top.shape[1])
    for k in range(planes.shape[1]):  # a later one replaces an earlier one
        top[np.arange(len(top)), places[:, k].astype(int)] = planes[:, k]
    return top.reshape(*x.shape[:2], p.dst_h, p.dst_w)


@formula("BilinearInterpolate")
def bilinear_interpolate(layer: Layer) -> Result:
    """Four neighbors of i (old - 1) / (new - 1), or of (i + 0.5) old / new - 0.5 within the image.

    Source: bilinear_interpolate_layer.cpp (brocolli-caffe).
    """
    p, x = layer.param.bilinear_interpolate_param, layer.x
    factor = np.float32(p.scale_factor)
    for axis, name in ((2, "dst_h"), (3, "dst_w")):
        old = x.shape[axis]
        new = int(np.float32(old) * factor) if p.has("scale_factor") else getattr(p, name) if p.has(name) else old
        step = np.arange(new)
        place = step * ((old - 1) / (new - 1)) if p.align_corners else (step + 0.5) * (old / new) - 0.5
        place = place.clip(0, old - 1)
        low = np.floor(place).astype(int).clip(0, max(old - 2, 0))
        share = (place - low).reshape(-1, *[1] * (3 - axis))
        x = (1 - share) * x.take(low, axis) + share * x.take(np.minimum(low + 1, old - 1), axis)
    return x


@formula("Pad")
def pad(layer: Layer) -> Result:
    """Rows and columns of a constant, of the edge, or mirrored; negative ones are cut off. Source: pad_layer.cpp, of
    synopsys-caffe for ``paddings``.
    """
    p, x = layer.param.pad_param, layer.x
    if p.paddings:
        return np.pad(x, np.reshape(list(p.paddings), (-1, 2)), constant_values=p.constant_values)
    if min(p.pad_u, p.pad_d, p.pad_l, p.pad_r) < 0:
        return x[:, :, -p.pad_u : p.pad_d, -p.pad_l : p.pad_r]
    width = ((0, 0), (0, 0), (p.pad_u, p.pad_d), (p.pad_l, p.pad_r))
    if p.pad_type == "CONSTANT":
        return np.pad(x, width, constant_values=p.pad_value)
    return np.pad(x, width, "edge" if p.pad_type == "REPLICATE" else "reflect")


@formula("Reorg", "ReorgYolo")
def reorg(layer: Layer) -> Result:
    """darknet's reorg_cpu, index by index, with its order of channels. Source: reorg_layer.cpp (YOLO v2)."""
    p, x = layer.param.reorg_yolo_param if layer.param.type == "ReorgYolo" else layer.param.reorg_param, layer.x
    stride, reverse = p.stride or 2, p.has("reverse") and p.reverse
    if layer.param.type == "PassThrough":
        stride, reverse = layer.param.pass_through_param.block_height or 2, False
    n, c, h, w = x.shape
    b, k, j, i = np.indices(x.shape)
    planes = c // stride**2
    wide = i * stride + k // planes % stride
    high = j * stride + k // planes // stride
    large = wide + w * stride * (high + h * stride * (k % planes + planes * b))
    small = np.arange(x.size).reshape(x.shape)
    top = np.empty(x.size)
    if reverse:
        top[large] = x.reshape(-1)[small]
        return top.reshape(n, planes, h * stride, w * stride)
    top[small] = x.reshape(-1)[large]
    return top.reshape(n, c * stride**2, h // stride, w // stride)
