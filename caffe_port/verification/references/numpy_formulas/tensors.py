"""What TensorFlow's and ONNX's operators become. Source: src/caffe/layers of synopsys-caffe, file by file."""

from __future__ import annotations

import itertools

import numpy as np

from caffe_port.formats.message import Message
from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas.formulas import Layer, Result, formula


@formula("Squeeze")
def squeeze(layer: Layer) -> Result:
    """Source: squeeze_layer.cpp."""
    axes = {axis % layer.x.ndim for axis in layer.param.squeeze_param.axis}
    kept = [n for axis, n in enumerate(layer.x.shape) if n != 1 or (axes and axis not in axes)]
    return layer.x.reshape(kept)


@formula("Add")
def add(layer: Layer) -> Result:
    """Source: add_layer.cpp."""
    return np.add(*layer.bottoms)


@formula("Mul")
def mul(layer: Layer) -> Result:
    """Source: mul_layer.cpp."""
    return np.multiply(*layer.bottoms, *layer.blobs)


@formula("MatMul")
def mat_mul(layer: Layer) -> Result:
    """Source: matmul_layer.cpp."""
    p, (a, b) = layer.param.matmul_param, (*layer.bottoms, *layer.blobs)
    left = "...ka" if p.transpose_a else "...ak"
    right = "bk" if p.transpose_b else "kb"
    return np.einsum(f"{left},{'...' * (b.ndim > 2)}{right}->...ab", a, b)


def _size(p: Message, name: str, old: int) -> int:
    return int(getattr(p, f"output_{name}") if p.has(f"output_{name}") else old * getattr(p, f"scale_{name}"))


@formula("ResizeBilinear")
def resize_bilinear(layer: Layer) -> Result:
    """Between two pixels of each axis; the places are single precision. Source: resize_bilinear_layer.cpp."""
    p, x = layer.param.resize_bilinear_param, layer.x
    for axis, name in zip((1, 2) if p.data_format == "NHWC" else (2, 3), ("height", "width"), strict=True):
        old = x.shape[axis]
        new = _size(p, name, old)
        step = np.float32((old - 1) / (new - 1) if p.align_corners and new > 1 else old / new)
        out = []
        for i in range(new):
            if p.half_pixel_centers or p.pytorch_half_pixel:
                place = (np.float32(i) + np.float32(0.5)) * step - np.float32(0.5)
                place = np.float32(-0.5) if p.pytorch_half_pixel and new == 1 else place
            else:
                place = np.float32(i) * step
            low, high = int(np.floor(place)), int(np.ceil(place))
            share = float(place) - low
            first, second = x.take(max(low, 0), axis), x.take(min(max(high, 0), old - 1), axis)
            out.append(first * (1 - share) + second * share)
        x = np.stack(out, axis)
    return x


@formula("ResizeNearestNeighbor")
def resize_nearest_neighbor(layer: Layer) -> Result:
    """Source: resize_nearest_neighbor_layer.cpp."""
    p, x = layer.param.resize_nearest_neighbor_param, layer.x
    half = np.float32(0.5)
    for axis, name in zip((1, 2) if p.data_format == "NHWC" else (2, 3), ("height", "width"), strict=True):
        old = x.shape[axis]
        new = _size(p, name, old)
        index = np.arange(new, dtype=np.float32)
        step = np.float32((old - 1) / (new - 1) if p.align_corners and new > 1 else old / new)
        if p.half_pixel_onnx:
            place = np.floor((index + half) * step - half)
        elif p.half_pixel_centers:
            place = np.floor((index + half) * step)
        else:
            place = np.floor(index * step + half) if p.align_corners else np.floor(index * step)
        x = x.take(np.clip(place, 0, old - 1).astype(int), axis)
    return x


@formula("UpsampleDarknet")
def upsample_darknet(layer: Layer) -> Result:
    """Source: upsample_darknet_layer.cpp."""
    stride = layer.param.upsample_darknet_param.stride
    return layer.x.repeat(stride, 2).repeat(stride, 3)


@formula("DepthToSpace")
def depth_to_space(layer: Layer) -> Result:
    """Pixel by pixel of a block. Source: depth_to_space_layer.cpp."""
    p = layer.param.depth_to_space_param
    x = layer.x.transpose(0, 3, 1, 2) if p.data_format == "NHWC" else layer.x
    block, depth = p.block_size, x.shape[1] // p.block_size**2
    y = np.empty((x.shape[0], depth, x.shape[2] * block, x.shape[3] * block))
    for i, j in itertools.product(range(block), repeat=2):
        if p.data_format == "CRD":
            y[:, :, i::block, j::block] = x[:, i * block + j :: block**2]
        else:
            y[:, :, i::block, j::block] = x[:, (i * block + j) * depth :][:, :depth]
    return y.transpose(0, 2, 3, 1) if p.data_format == "NHWC" else y


@formula("SpaceToBatchND")
def space_to_batch(layer: Layer) -> Result:
    """One item for each offset within a block, the offsets of the first axis outermost. space_to_batch_nd_layer.cpp"""
    p, x = layer.param.space_to_batch_nd_param, layer.x
    blocks, pads = list(p.block_shape), list(p.paddings)
    margins = [(0, 0), *zip(pads[::2], pads[1::2], strict=True)]
    x = np.pad(x, margins + [(0, 0)] * (x.ndim - len(margins)))
    offsets = itertools.product(*map(range, blocks))
    return np.concatenate(
        [x[(slice(None), *(slice(o, None, b) for o, b in zip(at, blocks, strict=True)))] for at in offsets]
    )


@formula("BatchToSpaceND")
def batch_to_space(layer: Layer) -> Result:
    """Source: batch_to_space_nd_layer.cpp."""
    p, x = layer.param.batch_to_space_nd_param, layer.x
    blocks, crops = list(p.block_shape), list(p.crops)
    items = x.shape[0] // int(np.prod(blocks))
    sides = [n * b for n, b in zip(x.shape[1:], blocks, strict=False)]
    y: Array = np.empty((items, *sides, *x.shape[1 + len(blocks) :]))
    for k, at in enumerate(itertools.product(*map(range, blocks))):
        places = (slice(o, None, b) for o, b in zip(at, blocks, strict=True))
        y[(slice(None), *places)] = x[k * items : (k + 1) * items]
    inner = (slice(a, n - z) for a, z, n in zip(crops[::2], crops[1::2], sides, strict=True))
    return y[(slice(None), *inner)]
