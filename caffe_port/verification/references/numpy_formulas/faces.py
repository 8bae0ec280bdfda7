"""Face recognition: products with margins for the true class."""

from __future__ import annotations

import math

import numpy as np

from caffe_port.formats.message import Message
from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas.formulas import Layer, Result, formula


def _psi(kind: str, c: float) -> float:
    """What stands for the cosine of the true class. Source: margin_inner_product_layer.cpp, Forward_cpu."""
    sign = np.sign(c)
    if kind == "SINGLE":
        return c
    if kind == "DOUBLE":
        return float(2 * sign * c**2 - 1)
    if kind == "TRIPLE":
        outer = np.sign(abs(c) - 0.5)
        return float(outer * (4 * c**3 - 3 * c) + sign * (1 + outer) - 2)
    inner = sign * np.sign(2 * c**2 - 1)
    return float(inner * (8 * c**4 - 8 * c**2 + 1) + 2 * sign + inner - 3)


def _lambda(p: Message) -> float:
    """In the first forward: the counter is increased before it is used."""
    return float(max(p.base * (1 + p.gamma * (p.iteration + 1)) ** -p.power, p.lambda_min))


def _with_margin(layer: Layer, p: Message, x: Array, weight: Array, tiny: float) -> Result:
    scores = x @ weight.T
    lengths = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(weight, axis=1) + tiny
    share = _lambda(p)
    top = scores.copy()
    for row, label in enumerate(layer.bottoms[1].reshape(-1).astype(int) if p.type != "SINGLE" else ()):
        own = lengths[row, label] * _psi(p.type, scores[row, label] / lengths[row, label])
        top[row, label] = (own + share * scores[row, label]) / (1 + share)
    return [top.reshape(*layer.x.shape[: p.axis], p.num_output), np.array([share])][: layer.tops]


@formula("MarginInnerProduct")
def margin_inner_product(layer: Layer) -> Result:
    """SphereFace: rows of the weight of length one. Source: margin_inner_product_layer.cpp (wy1iu/sphereface)."""
    p = layer.param.margin_inner_product_param
    x, weight = layer.x.reshape(math.prod(layer.x.shape[: p.axis]), -1), layer.blobs[0].reshape(p.num_output, -1)
    return _with_margin(layer, p, x, weight / np.linalg.norm(weight, axis=1, keepdims=True), 0.0)


@formula("LargeMarginInnerProduct")
def large_margin_inner_product(layer: Layer) -> Result:
    """L-Softmax. Source: largemargin_inner_product_layer.cpp (wy1iu/LargeMargin_Softmax_Loss)."""
    p = layer.param.largemargin_inner_product_param
    x, weight = layer.x.reshape(math.prod(layer.x.shape[: p.axis]), -1), layer.blobs[0].reshape(p.num_output, -1)
    return _with_margin(layer, p, x, weight, 1e-9)


@formula("LabelSpecificMargin")
def label_specific_margin(layer: Layer) -> Result:
    """ArcFace: cos(t + m) for the true class. Source: label_specific_margin.cpp (happynear/caffe-windows)."""
    p = layer.param.label_specific_margin_param
    margin = float(layer.blobs[0].reshape(-1)[0])
    if p.has("margin_base"):
        margin = p.margin_base + (1 + p.gamma * p.iteration) ** p.power - 1
    if p.has("margin_max"):
        margin = min(margin, p.margin_max)
    top = layer.x.copy()
    if margin and layer.train:  # margin_on_test is set to (margin_on_test and the phase is TRAIN)
        for row, label in zip(top.reshape(len(top), -1), layer.bottoms[1].reshape(-1).astype(int), strict=True):
            c, angle = row[label], math.radians(margin)
            row[label] = c * math.cos(angle) - math.sqrt(1 - c * c + 1e-12) * math.sin(angle)
    if layer.tops > 1:
        raise NotImplementedError("a LabelSpecificMargin that gives its statistics")
    return top
