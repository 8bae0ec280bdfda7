"""Layers that move, select and count elements."""

from __future__ import annotations

import math

import numpy as np

from caffe_port.verification.references.numpy_formulas.formulas import Layer, Result, formula, legacy_axis


@formula("Split")
def split(layer: Layer) -> Result:
    """Source: split_layer.cpp."""
    return [layer.x] * layer.tops


@formula("BlackHole", "Silence")
def silence(_: Layer) -> Result:
    """Source: silence_layer.cpp."""
    return []


@formula("Concat")
def concat(layer: Layer) -> Result:
    """Sources: concat_layer.cpp; mkldnn_concat_layer.cpp (Intel's per_fla_fuse)."""
    p, bottoms = layer.param.concat_param, layer.bottoms
    if p.per_fla_fuse and legacy_axis(p, "concat_dim") == 1:
        bottoms = [x.reshape(len(x), x.size // len(x), *[1] * (x.ndim - 2)) for x in bottoms]
    return np.concatenate(bottoms, axis=legacy_axis(p, "concat_dim"))


@formula("Slice")
def slice_(layer: Layer) -> Result:
    """Slices at the given points, or into equal parts. Source: slice_layer.cpp."""
    p = layer.param.slice_param
    return np.split(layer.x, list(p.slice_point) or layer.tops, axis=legacy_axis(p, "slice_dim"))


@formula("Flatten")
def flatten(layer: Layer) -> Result:
    """Source: flatten_layer.cpp."""
    p, shape = layer.param.flatten_param, layer.x.shape
    first, last = p.axis % len(shape), p.end_axis % len(shape)
    return layer.x.reshape(*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :])


@formula("Reshape")
def reshape(layer: Layer) -> Result:
    """0 copies a dimension, -1 is inferred; axis and num_axes select those replaced. Source: reshape_layer.cpp."""
    p, shape = layer.param.reshape_param, layer.x.shape
    first = p.axis if p.axis >= 0 else len(shape) + p.axis + 1
    last = len(shape) if p.num_axes == -1 else first + p.num_axes
    middle = [shape[first + i] if n == 0 else n for i, n in enumerate(p.shape.dim)]
    return layer.x.reshape((*shape[:first], *middle, *shape[last:]))


@formula("Unsqueeze")
def unsqueeze(layer: Layer) -> Result:
    """Source: unsqueeze.cpp (brocolli-caffe)."""
    return np.expand_dims(layer.x, layer.param.unsqueeze_param.dim)


@formula("Permute")
def permute(layer: Layer) -> Result:
    """Source: permute_layer.cpp (SSD)."""
    order = [*layer.param.permute_param.order]
    return layer.x.transpose(order + [i for i in range(layer.x.ndim) if i not in order])


@formula("ChannelShuffle", "ShuffleChannel")
def shuffle_channel(layer: Layer) -> Result:
    """Channel i of group g becomes channel i * groups + g. Source: shuffle_channel_layer.cpp (ShuffleNet)."""
    x, groups = layer.x, layer.param.shuffle_channel_param.group
    top = np.empty_like(x)
    each = x.shape[1] // groups
    for g in range(groups):
        top[:, g::groups] = x[:, g * each : (g + 1) * each]
    return top


@formula("PixelShuffle")
def pixel_shuffle(layer: Layer) -> Result:
    """Pixel (i, j) of each r x r block comes from channel r i + j of r r. Source: pixelshuffle_layer.cpp (brocolli)."""
    x, factor = layer.x, layer.param.pixelshuffle_param.upscale_factor
    n, c, h, w = x.shape
    top = np.empty((n, c // factor**2, h * factor, w * factor))
    for i in range(factor):
        for j in range(factor):
            top[:, :, i::factor, j::factor] = x[:, factor * i + j :: factor**2]
    return top


@formula("Reverse", "ReverseAxis")
def reverse(layer: Layer) -> Result:
    """Source: reverse_layer.cpp (ChWick/caffe)."""
    own = layer.param.has("reverse_axis_param")
    return np.flip(layer.x, (layer.param.reverse_axis_param if own else layer.param.reverse_param).axis)


@formula("Flip")
def flip(layer: Layer) -> Result:
    """Source: flip_layer.cpp (happynear/caffe-windows)."""
    p = layer.param.flip_param
    return layer.x[:, :, :: -1 if p.flip_height else 1, :: -1 if p.flip_width else 1]


@formula("Tile")
def tile(layer: Layer) -> Result:
    """Source: tile_layer.cpp."""
    p = layer.param.tile_param
    return np.concatenate([layer.x] * p.tiles, axis=p.axis)


@formula("Reduction")
def reduction(layer: Layer) -> Result:
    """coeff * sum, sum of magnitudes or squares, or mean, from ``axis`` on. Source: reduction_layer.cpp."""
    p, x = layer.param.reduction_param, layer.x
    flat = x.reshape(*x.shape[: p.axis % x.ndim], -1)
    value = {"ASUM": np.abs, "SUMSQ": np.square}.get(p.operation, np.asarray)(flat)
    total = value.mean(-1) if p.operation == "MEAN" else value.sum(-1)
    return np.asarray(p.coeff * total)


@formula("ArgMax")
def argmax(layer: Layer) -> Result:
    """The k largest: indices, values, or both; along an axis or over a whole item. Source: argmax_layer.cpp."""
    p, x = layer.param.argmax_param, layer.x
    axis = p.axis % x.ndim if p.has("axis") else None
    flat = x.reshape(x.shape[0], -1) if axis is None else np.moveaxis(x, axis, -1)
    # Caffe sorts (value, index) pairs: of equal values, the larger index comes first
    order = flat.shape[-1] - 1 - np.argsort(-flat[..., ::-1], axis=-1, kind="stable")[..., : p.top_k]
    values = np.take_along_axis(flat, order, -1)
    if axis is None:
        parts = [order, values] if p.out_max_val else [order]
        top = np.stack(parts, axis=1).astype(np.float64)
        return top.reshape(top.shape + (1,) * (x.ndim - 3))
    return np.moveaxis(values if p.out_max_val else order.astype(np.float64), -1, axis)


@formula("BatchReindex")
def batch_reindex(layer: Layer) -> Result:
    """Source: batch_reindex_layer.cpp."""
    return layer.x[layer.bottoms[1].astype(int)]


@formula("Filter")
def filter_(layer: Layer) -> Result:
    """The items with a nonzero selector. Source: filter_layer.cpp."""
    chosen = layer.bottoms[-1].reshape(-1) != 0
    return [x[chosen] for x in layer.bottoms[:-1]]


@formula("Parameter")
def parameter(layer: Layer) -> Result:
    """Source: parameter_layer.hpp."""
    return layer.blobs[0]


@formula("DummyData")
def dummy_data(layer: Layer) -> Result:
    """Constant tops. Source: dummy_data_layer.cpp."""
    p = layer.param.dummy_data_param
    shapes = [tuple(s.dim) for s in p.shape] or [
        tuple(side[k] if len(side) > 1 else side[0] for side in (p.num, p.channels, p.height, p.width))
        for k in range(layer.tops)
    ]
    fillers = [(f.type, f.value) for f in p.data_filler] or [("constant", 0.0)]
    if any(kind != "constant" for kind, _ in fillers):
        raise NotImplementedError("a random layer")
    shapes, fillers = (list(v) * layer.tops if len(v) == 1 else list(v) for v in (shapes, fillers))
    return [np.full(s, value) for s, (_, value) in zip(shapes[: layer.tops], fillers[: layer.tops], strict=True)]


@formula("Accuracy")
def accuracy(layer: Layer) -> Result:
    """The share of items whose label is among the k best scores; ties count as right. Source: accuracy_layer.cpp."""
    p = layer.param.accuracy_param
    axis = p.axis % layer.x.ndim
    scores = np.moveaxis(layer.x, axis, -1)
    scores = scores.reshape(-1, scores.shape[-1])
    labels = layer.bottoms[1].reshape(-1).astype(int)
    counted = labels != p.ignore_label if p.has("ignore_label") else np.ones(labels.shape, bool)
    own = np.take_along_axis(scores, np.where(counted, labels, 0)[:, None], 1)
    right = ((scores >= own).sum(axis=1) - 1 < p.top_k) & counted
    tops = [np.asarray(right.sum() / max(counted.sum(), 1))]
    if layer.tops > 1:
        classes = range(scores.shape[1])
        tops.append(
            np.array(
                [right[counted & (labels == c)].mean() if (counted & (labels == c)).any() else 0.0 for c in classes]
            )
        )
    return tops
