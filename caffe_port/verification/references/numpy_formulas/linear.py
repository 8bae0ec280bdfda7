"""Products with parameters, and statistics."""

from __future__ import annotations

import math

import numpy as np

from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas.formulas import Layer, Result, along, formula


@formula("InnerProduct")
def inner_product(layer: Layer) -> Result:
    """x W^T + b, x flattened from ``axis`` on; ``transpose``: W is (in, out). Source: inner_product_layer.cpp."""
    p, x = layer.param.inner_product_param, layer.x
    axis = p.axis % x.ndim
    flat = x.reshape(*x.shape[:axis], math.prod(x.shape[axis:]))
    shape = (flat.shape[-1], p.num_output)
    weight = layer.blobs[0].reshape(shape) if p.transpose else layer.blobs[0].reshape(shape[::-1]).T
    if p.normalize:  # happynear's fork
        weight = weight / np.sqrt((weight**2).sum(0, keepdims=True) + 1e-6)
    return flat @ weight + (layer.blobs[1].reshape(-1) if p.bias_term else 0)


@formula("Embed")
def embed(layer: Layer) -> Result:
    """Rows of the weight. Source: embed_layer.cpp."""
    p = layer.param.embed_param
    places = layer.x.astype(int)
    if p.last_axis:  # bottom-up-attention's
        places = places[..., 0]
    rows = layer.blobs[0].reshape(p.input_dim, p.num_output)[places]
    return rows + (layer.blobs[1].reshape(-1) if p.bias_term else 0)


def _factor(layer: Layer, values: Array, axis: int, num_axes: int, learned: bool) -> Array:
    """A factor or addend, reshaped to broadcast; a trained one has ``num_axes`` axes (-1: all), a bottom keeps its."""
    x = layer.x
    axis %= x.ndim
    if learned:
        values = values.reshape(x.shape[axis : x.ndim if num_axes == -1 else axis + num_axes])
    return along(values, axis if values.ndim else 0, x.ndim)


@formula("Scale")
def scale(layer: Layer) -> Result:
    """x * gamma + beta; gamma is the second bottom, or the first blob. Source: scale_layer.cpp."""
    p = layer.param.scale_param
    learned = len(layer.bottoms) == 1
    gamma = _factor(layer, layer.blobs[0] if learned else layer.bottoms[1], p.axis, p.num_axes, learned)
    y = layer.x * gamma
    if p.bias_term:
        shape = gamma.shape
        y = y + layer.blobs[-1].reshape(shape)
    return y


@formula("Bias")
def bias(layer: Layer) -> Result:
    """x + beta; beta is the second bottom, or the first blob. Source: bias_layer.cpp."""
    p = layer.param.bias_param
    learned = len(layer.bottoms) == 1
    return layer.x + _factor(layer, layer.blobs[0] if learned else layer.bottoms[1], p.axis, p.num_axes, learned)


@formula("BatchNorm", "BatchNormKyle")
def batch_norm(layer: Layer) -> Result:
    """(x - mean) / sqrt(var + eps); the blobs are sums and their divisor, then scale and shift, if any.

    Sources: batch_norm_layer.cpp; batch_norm_kyle_layer.cpp (brocolli-caffe).
    """
    p, x = layer.param.batch_norm_param, layer.x
    others = tuple(i for i in range(x.ndim) if i != 1)
    if p.use_global_stats if p.has("use_global_stats") else not layer.train:
        factor = float(layer.blobs[2].reshape(-1)[0])
        factor = 0.0 if factor == 0 else 1 / factor
        mean, variance = (b.reshape(-1) * factor for b in layer.blobs[:2])
    else:
        mean, variance = x.mean(others), x.var(others)
    shape = (-1,) if x.ndim == 1 else (-1, *([1] * (x.ndim - 2)))
    inside, outside = (p.eps, 0) if p.add_eps_before_sqrt else (0, p.eps)  # outside: synopsys-caffe
    y = (x - mean.reshape(shape)) / (np.sqrt(variance.reshape(shape) + inside) + outside)
    if layer.param.type == "BatchNormKyle" and p.use_alpha_beta:
        y = y * layer.blobs[3].reshape(shape) + layer.blobs[4].reshape(shape)
    return y


@formula("BN")
def bn(layer: Layer) -> Result:
    """slope * (x - mean) / sqrt(var + eps) + bias.

    The fields that are set identify the fork. yjxiong's and PSPNet's, and happynear's (var_eps, moving_average),
    store mean and variance; SegNet's has only slope and bias: LEARN uses the statistics of the batch, INFERENCE none.
    brocolli-caffe's stores the inverse standard deviation, with eps in it.
    Source: bn_layer.cpp.
    """
    p, x = layer.param.bn_param, layer.x
    slope, bias, *stored = (b.reshape(-1, *[1] * (x.ndim - 2)) for b in layer.blobs)
    others = tuple(i for i in range(x.ndim) if i != 1)
    if p.axis != 1:
        raise NotImplementedError("BN over an axis other than 1")
    if not stored:
        if p.bn_mode == "INFERENCE":
            return slope * x + bias
        eps, own = 1e-9, True
    elif any(p.has(name) for name in ("var_eps", "decay", "moving_average")):
        if not p.moving_average:
            raise NotImplementedError("BN without moving_average")
        eps, own = p.var_eps, layer.train
    else:
        eps, own = p.eps, layer.train and not p.frozen
    if p.inverse_std and not own:
        return slope * (x - stored[0]) * stored[1] + bias
    mean, variance = (x.mean(others, keepdims=True), x.var(others, keepdims=True)) if own else stored
    return slope * (x - mean) / np.sqrt(variance + eps) + bias


@formula("MVN")
def mvn(layer: Layer) -> Result:
    """(x - mean) / (standard deviation + eps), over a plane or a whole item. Source: mvn_layer.cpp."""
    p, x = layer.param.mvn_param, layer.x.reshape(layer.x.shape + (1,) * (4 - layer.x.ndim))
    axes = tuple(range(1 if p.across_channels else 2, x.ndim))
    centered = x - x.mean(axes, keepdims=True)
    if not p.normalize_variance:
        return centered
    return centered / (np.sqrt((centered**2).mean(axes, keepdims=True)) + p.eps)


@formula("Normalize")
def normalize(layer: Layer) -> Result:
    """x / sqrt(sum x^2 + eps), over channels or an item, times a trained scale. Source: normalize_layer.cpp (SSD).

    With normalize_param it is NormFace's: eps is 1e-6, there is no scale, and the norms are a second top.
    """
    p, x = layer.param.norm_param, layer.x
    if not layer.blobs:
        absolute = layer.param.normalize_param.normalize_type == "L1"
        norm = (np.abs(x) if absolute else x**2).sum(1, keepdims=True) + 1e-6
        norm = norm if absolute else np.sqrt(norm)
        return [x / norm, norm][: layer.tops]
    axes = tuple(range(1, x.ndim)) if p.across_spatial else (1,)
    weight = layer.blobs[0].reshape(-1, *[1] * (x.ndim - 2))
    return x / np.sqrt((x**2).sum(axes, keepdims=True) + p.eps) * weight


@formula("L2Normalization")
def l2_normalization(layer: Layer) -> Result:
    """x / sqrt(sum x^2) over an item. Source: l2_normalization_layer.cpp (forks)."""
    x = layer.x
    return x / np.sqrt((x**2).sum(tuple(range(1, x.ndim)), keepdims=True))


@formula("GRN")
def grn(layer: Layer) -> Result:
    """x / sqrt(sum x^2 + bias) over the channels. Source: OpenVINO's training toolbox."""
    return layer.x / np.sqrt((layer.x**2).sum(1, keepdims=True) + layer.param.grn_param.bias)


def softmax_of(x: Array, axis: int) -> Array:
    """Softmax that cannot overflow."""
    e = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(e / e.sum(axis, keepdims=True))


@formula("Softmax", "VoxelSoftmax")
def softmax(layer: Layer) -> Result:
    """Source: softmax_layer.cpp."""
    return softmax_of(layer.x, layer.param.softmax_param.axis)
