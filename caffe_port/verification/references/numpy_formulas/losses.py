"""Losses: one value each."""

from __future__ import annotations

import numpy as np

from caffe_port.formats.message import Message
from caffe_port.verification.references.numpy_formulas.formulas import FLT_MIN, Layer, Result, formula
from caffe_port.verification.references.numpy_formulas.linear import softmax_of

_LOG_THRESHOLD = 1e-20


def _normalizer(p: Message, full: int, valid: int, batch: int, default: str) -> float:
    """The divisor of a loss. Source: loss_layer.cpp, LossParameter."""
    how = p.normalization
    if not p.has("normalization"):
        how = default if not p.has("normalize") else "VALID" if p.normalize else "BATCH_SIZE"
    return {"FULL": float(full), "VALID": float(valid), "BATCH_SIZE": float(batch), "NONE": 1.0}[how]


@formula("SoftmaxWithLoss")
def softmax_with_loss(layer: Layer) -> Result:
    """-log of the label's softmax, normalized; the second top is the softmax. Source: softmax_loss_layer.cpp."""
    axis = layer.param.softmax_param.axis % layer.x.ndim
    prob = softmax_of(layer.x, axis)
    scores = np.moveaxis(prob, axis, -1)
    labels = layer.bottoms[1].reshape(scores.shape[:-1]).astype(int)
    p = layer.param.loss_param
    valid = labels != p.ignore_label if p.has("ignore_label") else np.ones(labels.shape, bool)
    own = np.take_along_axis(scores, np.where(valid, labels, 0)[..., None], -1)[..., 0]
    each = np.log(np.maximum(own, FLT_MIN)) * valid
    if p.weight_by_label_freqs:  # SegNet's fork
        weights = np.array(p.class_weighting) if len(p.class_weighting) else None
        for index in zip(*np.nonzero(valid), strict=True):
            each[index] *= weights[labels[index]] if weights is not None else 1 / (labels == labels[index]).sum()
    total = -each.sum()
    outer = int(np.prod(layer.x.shape[:axis]))
    by = max(1.0, _normalizer(p, labels.size, int(valid.sum()), outer, "VALID"))
    return [np.asarray(total / by), prob][: layer.tops]


@formula("SigmoidCrossEntropyLoss")
def sigmoid_cross_entropy_loss(layer: Layer) -> Result:
    """-sum(t log s + (1 - t) log(1 - s)); s is the sigmoid. Source: sigmoid_cross_entropy_loss_layer.cpp."""
    x, target, p = layer.x, layer.bottoms[1].reshape(layer.x.shape), layer.param.loss_param
    valid = target != p.ignore_label if p.has("ignore_label") else np.ones(x.shape, bool)
    each = np.maximum(x, 0) - x * target + np.log1p(np.exp(-np.abs(x)))
    by = max(1.0, _normalizer(p, x.size, int(valid.sum()), x.shape[0], "BATCH_SIZE"))
    return np.asarray((each * valid).sum() / by)


@formula("EuclideanLoss")
def euclidean_loss(layer: Layer) -> Result:
    """The sum of squares divided by twice the batch size. Source: euclidean_loss_layer.cpp."""
    difference = layer.x - layer.bottoms[1].reshape(layer.x.shape)
    return np.asarray((difference**2).sum() / layer.x.shape[0] / 2)


@formula("HingeLoss")
def hinge_loss(layer: Layer) -> Result:
    """Sum of max(0, 1 - y); y is the label's score, and minus the others' scores. Source: hinge_loss_layer.cpp."""
    x = layer.x.reshape(layer.x.shape[0], -1)
    labels = layer.bottoms[1].reshape(-1).astype(int)
    signs = np.ones(x.shape)
    signs[np.arange(len(x)), labels] = -1
    margins = np.maximum(0, 1 + signs * x)
    total = (margins**2).sum() if layer.param.hinge_loss_param.norm == "L2" else margins.sum()
    return np.asarray(total / len(x))


@formula("MultinomialLogisticLoss")
def multinomial_logistic_loss(layer: Layer) -> Result:
    """-log of the label's probability. Source: multinomial_logistic_loss_layer.cpp."""
    x = layer.x.reshape(layer.x.shape[0], -1)
    own = x[np.arange(len(x)), layer.bottoms[1].reshape(-1).astype(int)]
    return np.asarray(-np.log(np.maximum(own, _LOG_THRESHOLD)).sum() / len(x))


@formula("InfogainLoss")
def infogain_loss(layer: Layer) -> Result:
    """-sum H[label, k] log p_k; p is the softmax. Source: infogain_loss_layer.cpp."""
    axis = layer.param.infogain_loss_param.axis % layer.x.ndim
    prob = softmax_of(layer.x, axis)
    scores = np.moveaxis(prob, axis, -1)
    labels = layer.bottoms[1].reshape(scores.shape[:-1]).astype(int)
    if len(layer.bottoms) < 3:
        raise NotImplementedError("an infogain matrix from a file")
    p = layer.param.loss_param
    valid = labels != p.ignore_label if p.has("ignore_label") else np.ones(labels.shape, bool)
    gain = layer.bottoms[2].reshape(scores.shape[-1], -1)[np.where(valid, labels, 0)]
    total = -((gain * np.log(np.maximum(scores, _LOG_THRESHOLD))).sum(-1) * valid).sum()
    outer = int(np.prod(layer.x.shape[:axis]))
    by = max(1.0, _normalizer(p, labels.size, int(valid.sum()), outer, "VALID"))
    return [np.asarray(total / by), prob][: layer.tops]


@formula("ContrastiveLoss")
def contrastive_loss(layer: Layer) -> Result:
    """Half the mean of d^2 for similar pairs, max(0, margin - d)^2 for others. Source: contrastive_loss_layer.cpp."""
    p = layer.param.contrastive_loss_param
    a, b = (x.reshape(x.shape[0], -1) for x in layer.bottoms[:2])
    square = ((a - b) ** 2).sum(1)
    apart = np.maximum(0, p.margin - square) if p.legacy_version else np.maximum(0, p.margin - np.sqrt(square)) ** 2
    similar = layer.bottoms[2].reshape(-1).astype(int) != 0
    return np.asarray(np.where(similar, square, apart).sum() / len(a) / 2)


@formula("SmoothL1Loss")
def smooth_l1_loss(layer: Layer) -> Result:
    """Quadratic below 1 / sigma^2, linear above, divided by N. Source: smooth_L1_loss_layer.cpp (Fast R-CNN)."""
    p = layer.param.smooth_l1_loss_param
    inside, outside = [*layer.bottoms[2:], np.ones(layer.x.shape), np.ones(layer.x.shape)][:2]
    off = np.abs(inside.reshape(layer.x.shape) * (layer.x - layer.bottoms[1].reshape(layer.x.shape)))
    each = np.where(off < 1 / p.sigma**2, off**2 * p.sigma**2 / 2, off - 0.5 / p.sigma**2)
    return np.asarray((each * outside.reshape(layer.x.shape)).sum() / layer.x.shape[0])
