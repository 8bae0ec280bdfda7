"""Elementwise layers."""

from __future__ import annotations

import math

import numpy as np

from caffe_port.formats.message import Message
from caffe_port.verification.references.numpy_formulas.formulas import Layer, Result, formula


@formula("ReLU")
def relu(layer: Layer) -> Result:
    """max(x, 0) + slope * min(x, 0). Source: relu_layer.cpp."""
    x = layer.x
    return np.maximum(x, 0) + layer.param.relu_param.negative_slope * np.minimum(x, 0)


@formula("ReLU6", "Relu6")
def relu6(layer: Layer) -> Result:
    """min(max(x, 0) + slope * min(x, 0), 6), or another limit. Source: relu6_layer.cpp (forks)."""
    p, x = layer.param.relu6_param, layer.x
    return np.minimum(np.maximum(x, 0) + p.negative_slope * np.minimum(x, 0), p.threshold)


@formula("PReLU")
def prelu(layer: Layer) -> Result:
    """max(x, 0) + a * min(x, 0), with one a per channel or one for all. Source: prelu_layer.cpp."""
    x, slope = layer.x, layer.blobs[0].reshape(-1)
    if not layer.param.prelu_param.channel_shared:
        slope = slope.reshape(-1, *([1] * (x.ndim - 2)))
    return np.maximum(x, 0) + slope * np.minimum(x, 0)


@formula("ELU")
def elu(layer: Layer) -> Result:
    """max(x, 0) + alpha (exp(min(x, 0)) - 1). Source: elu_layer.cpp."""
    return np.maximum(layer.x, 0) + layer.param.elu_param.alpha * np.expm1(np.minimum(layer.x, 0))


@formula("Sigmoid")
def sigmoid(layer: Layer) -> Result:
    """0.5 tanh(0.5 x) + 0.5. Source: sigmoid_layer.cpp."""
    return 0.5 * np.tanh(0.5 * layer.x) + 0.5


@formula("TanH")
def tanh(layer: Layer) -> Result:
    """Source: tanh_layer.cpp."""
    return np.tanh(layer.x)


@formula("Swish")
def swish(layer: Layer) -> Result:
    """x sigmoid(beta x). Source: swish_layer.cpp."""
    x = layer.x
    return x * (0.5 * np.tanh(0.5 * layer.param.swish_param.beta * x) + 0.5)


@formula("Mish")
def mish(layer: Layer) -> Result:
    """x tanh(log(1 + exp(x))). Source: mish_layer.cpp (eric612/MobileNet-YOLO)."""
    return layer.x * np.tanh(np.logaddexp(0, layer.x))


@formula("BNLL")
def bnll(layer: Layer) -> Result:
    """log(1 + exp(x)). Source: bnll_layer.cpp."""
    return np.logaddexp(0, layer.x)


@formula("AbsVal")
def absval(layer: Layer) -> Result:
    """Source: absval_layer.cpp."""
    return np.abs(layer.x)


@formula("Power")
def power(layer: Layer) -> Result:
    """(shift + scale x)^power. Source: power_layer.cpp."""
    p = layer.param.power_param
    if p.scale * p.power == 0:
        return np.full(layer.x.shape, 1.0 if p.power == 0 else p.shift**p.power)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (p.shift + p.scale * layer.x) ** p.power


def _ln_base(p: Message) -> float:
    return 1.0 if p.base == -1 else math.log(p.base)


@formula("Exp")
def exp(layer: Layer) -> Result:
    """base^(shift + scale x); base -1 means e. Source: exp_layer.cpp."""
    p = layer.param.exp_param
    return np.exp((p.shift + p.scale * layer.x) * _ln_base(p))


@formula("Log")
def log(layer: Layer) -> Result:
    """log(shift + scale x) in the given base. Source: log_layer.cpp."""
    p = layer.param.log_param
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log(p.shift + p.scale * layer.x) / _ln_base(p)


@formula("Threshold")
def threshold(layer: Layer) -> Result:
    """1 where x > threshold, 0 elsewhere. Source: threshold_layer.cpp."""
    return (layer.x > layer.param.threshold_param.threshold).astype(np.float64)


@formula("Clip")
def clip(layer: Layer) -> Result:
    """Source: clip_layer.cpp."""
    p = layer.param.clip_param
    return np.clip(layer.x, p.min, p.max)


@formula("Dropout")
def dropout(layer: Layer) -> Result:
    """The identity in TEST, because TRAIN scales by 1 / (1 - ratio); with ``scale_train: false`` (forks of R-CNN) TEST
    multiplies by what TRAIN keeps. Source: dropout_layer.cpp.
    """
    p = layer.param.dropout_param
    if layer.train or p.sample_weights_test:
        raise NotImplementedError("a random layer")
    return layer.x if p.scale_train else layer.x * (1 - p.dropout_ratio)


@formula("Eltwise", "ShortCut", "Shortcut")
def eltwise(layer: Layer) -> Result:
    """Product, weighted sum or maximum of all bottoms. Source: eltwise_layer.cpp."""
    p = layer.param.eltwise_param
    stacked = np.stack(layer.bottoms)
    if p.operation == "PROD":
        return np.prod(stacked, axis=0)
    if p.operation == "MAX":
        return stacked.max(axis=0)
    weights = np.asarray(p.coeff or [1.0] * len(layer.bottoms))
    return np.tensordot(weights, stacked, axes=1)


@formula("Axpy")
def axpy(layer: Layer) -> Result:
    """a x + y, with one a per channel of each item. Source: axpy_layer.cpp (SENet)."""
    a, x, y = layer.bottoms
    return a.reshape(*x.shape[:2], *[1] * (x.ndim - 2)) * x + y
