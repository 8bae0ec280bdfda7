"""Mistakes of layers that work element by element, or join such ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas import Layer
from caffe_port.verification.slips.slip import Guess, slip, top, with_blobs, with_bottoms, with_fields


@slip("ReLU", "PReLU")
def slope(q: Layer, actual: Array) -> Iterator[Guess]:
    x = q.x
    told = q.param.relu_param.negative_slope if q.param.type == "ReLU" else 0.0
    if q.param.type == "PReLU" or told:
        yield "its negative slope is missing (it is a plain ReLU)", np.maximum(x, 0)
    yield "the layer is missing: negative values pass unchanged", x
    yield "it clips at 6 (ReLU6), Caffe does not", np.clip(x, 0, 6)
    if q.param.type == "PReLU":
        flat = q.blobs[0].reshape(-1)
        yield "the order of its slopes is reversed", top(with_blobs(q, flat[::-1]))
        mean = top(with_blobs(q, np.full_like(flat, flat[0])))
        yield "it uses the slope of the first channel for all channels", mean
    if x.shape == actual.shape and (x < 0).any():
        below = x < 0
        found = float((actual[below] * x[below]).sum() / (x[below] ** 2).sum())
        caffe = "Caffe's are trained" if q.param.type == "PReLU" else f"Caffe's is {told:g}"
        yield f"its negative slope is {found:.4g}, {caffe}", np.maximum(x, 0) + found * np.minimum(x, 0)


@slip("ReLU6")
def clipped(q: Layer, actual: Array) -> Iterator[Guess]:
    x = q.x
    yield "it does not clip at 6 (it is a plain ReLU)", np.maximum(x, 0)
    yield "the layer is missing: its top is its bottom", x
    high = float(actual.max())
    yield f"it clips at {high:.4g}, Caffe at 6", np.clip(x, 0, high)


@slip("Normalize")
def normalize_parts(q: Layer, _: Array) -> Iterator[Guess]:
    x = q.x
    axes = tuple(range(1, x.ndim))
    scale = q.blobs[0].reshape(-1)
    wide = scale.reshape((-1, *[1] * (x.ndim - 2))) if scale.size > 1 else scale.reshape(-1)[0]
    over: dict[str, tuple[int, ...]] = {"channels": (1,), "space": axes[1:], "channels and space": axes}
    yield "its scale is missing", top(with_blobs(q, np.ones_like(q.blobs[0])))
    for words, some in over.items():
        norm = np.sqrt((x * x).sum(some, keepdims=True))
        told = f"it normalizes over {words} (across_spatial), Caffe in another way"
        yield told, x / np.maximum(norm, 1e-12) * wide
        yield f"{told}; its scale is missing, too", x / np.maximum(norm, 1e-12)
    for words, some in over.items():
        total = np.maximum(np.abs(x).sum(some, keepdims=True), 1e-12)
        yield (
            f"it divides by the sum of the magnitudes over {words} (L1), Caffe by the root of squares",
            x / total * wide,
        )
    yield "it does not normalize: its top is its bottom times the scale", x * wide


@slip("ELU")
def elu_alpha(q: Layer, actual: Array) -> Iterator[Guess]:
    x = q.x
    if x.shape == actual.shape and (x < 0).any():
        below = np.expm1(x[x < 0])
        found = float((actual[x < 0] * below).sum() / (below**2).sum())
        told = q.param.elu_param.alpha
        yield f"its alpha is {found:.4g}, Caffe's is {told:g}", top(with_fields(q, "elu_param", alpha=found))


@slip("Dropout")
def dropout_active(q: Layer, actual: Array) -> Iterator[Guess]:
    if actual.shape != q.x.shape:
        return
    ratio = q.param.dropout_param.dropout_ratio
    for other in dict.fromkeys((ratio, 0.5, 0.1, 0.2, 0.25, 0.3, 0.4, 0.6, 0.7, 0.75, 0.8)):
        kept = actual != 0
        if not kept.all():
            yield f"dropout is active (training mode) with ratio {other:g}", q.x * kept / (1 - other)
        yield f"it scales by 1 - ratio = {1 - other:g} in TEST, Caffe scales in TRAIN", q.x * (1 - other)


@slip("Softmax")
def softmax_axis(q: Layer, _: Array) -> Iterator[Guess]:
    axis = q.param.softmax_param.axis % q.x.ndim
    for other in range(q.x.ndim):
        if other != axis:
            yield f"its axis is {other}, Caffe's is {axis}", top(with_fields(q, "softmax_param", axis=other))
    yield from _neighbors(q, axis)
    yield "it computes the logarithm of the softmax", np.log(np.maximum(top(q), 1e-300))
    yield "the layer is missing: its top is scores, not probabilities", q.x


def _neighbors(q: Layer, axis: int) -> Iterator[Guess]:
    """Scores of anchors, reshaped to (N, classes, anchors * H, W): the classes of an anchor are not neighbors."""
    if q.x.ndim != 4 or axis != 1:
        return
    n, classes, rows, width = q.x.shape
    for anchors in (a for a in range(2, min(rows, 64) + 1) if rows % a == 0):
        scores = q.x.reshape(n, anchors, classes, -1, width)
        power = np.exp(scores - scores.max(2, keepdims=True))
        yield (
            f"it takes {classes} neighboring channels as the classes of an anchor, Caffe one of every {anchors}",
            (power / power.sum(2, keepdims=True)).reshape(q.x.shape),
        )


@slip("Eltwise")
def eltwise_operation(q: Layer, _: Array) -> Iterator[Guess]:
    p = q.param.eltwise_param
    if p.coeff:
        yield "it ignores the coefficients (coeff)", top(with_fields(q, "eltwise_param", coeff=None))
    for other in ("SUM", "PROD", "MAX"):
        if other != p.operation:
            yield (
                f"it computes {other}, Caffe computes {p.operation}",
                top(with_fields(q, "eltwise_param", operation=other)),
            )
    yield f"it computes MIN, Caffe computes {p.operation}", np.minimum.reduce(list(q.bottoms))
    yield f"it computes the mean, Caffe computes {p.operation}", np.asarray(np.mean(np.stack(list(q.bottoms)), 0))
    for n, bottom in enumerate(q.bottoms):
        yield f"the layer is missing: its top is its bottom {n}", bottom


@slip("Eltwise")
def eltwise_coefficients(q: Layer, actual: Array) -> Iterator[Guess]:
    p = q.param.eltwise_param
    if p.operation != "SUM" or any(b.shape != actual.shape for b in q.bottoms):
        return
    told = [float(c) for c in p.coeff] or [1.0] * len(q.bottoms)
    found = np.linalg.lstsq(np.stack([b.reshape(-1) for b in q.bottoms], 1), actual.reshape(-1), rcond=None)[0]
    words = (", ".join(f"{c:.4g}" for c in some) for some in (found, told))
    made = sum(c * b for c, b in zip(found, q.bottoms, strict=True))
    yield "its coefficients (coeff) are {}, Caffe's are {}".format(*words), np.asarray(made)


@slip("Concat")
def concat_order(q: Layer, _: Array) -> Iterator[Guess]:
    yield "the order of its bottoms is reversed", top(with_bottoms(q, *q.bottoms[::-1]))
    if len(q.bottoms) <= 5:
        for order in itertools.permutations(range(len(q.bottoms))):
            if order != tuple(range(len(q.bottoms))):
                yield (
                    f"the order of its bottoms is {order}, by their places in Caffe",
                    top(with_bottoms(q, *(q.bottoms[n] for n in order))),
                )
    axis = q.param.concat_param.axis % q.x.ndim
    for other in range(q.x.ndim):
        if other != axis and len({b.shape[:other] + b.shape[other + 1 :] for b in q.bottoms}) == 1:
            yield f"its axis is {other}, Caffe's is {axis}", np.concatenate(q.bottoms, other)
