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
    if p.has("shrink_factor") or p.has("zoom_factor"):
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


@formula("Upsample")
def upsample(layer: Layer) -> Result:
    """Puts each value where the mask says, with zeros elsewhere; without a mask, repeats it in a block of pixels.

    Sources: upsample_layer.cpp of SegNet, and of darknet2caffe and MobileNet-YOLO.
    """
    p, x = layer.param.upsample_param, layer.x
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
    np.put_along_axis(top, places, planes, 1)
    return top.reshape(*x.shape[:2], *size)


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
