"""Mistakes of normalizations, scales and biases."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas import Layer
from caffe_port.verification.slips.slip import Guess, slip, top, with_blobs, with_fields


@slip("LRN")
def lrn_constants(q: Layer, _: Array) -> Iterator[Guess]:
    p = q.param.lrn_param
    n = p.local_size
    region = "WITHIN_CHANNEL" if p.norm_region == "ACROSS_CHANNELS" else "ACROSS_CHANNELS"
    area = n if p.norm_region == "ACROSS_CHANNELS" else n * n
    yield "it does not divide alpha by the size, Caffe does", top(with_fields(q, "lrn_param", alpha=p.alpha * area))
    yield "it divides alpha by the size twice, Caffe once", top(with_fields(q, "lrn_param", alpha=p.alpha / area))
    for k in (1.0, 2.0, 0.0):
        if k != p.k and p.norm_region == "ACROSS_CHANNELS":
            yield f"it uses k = {k:g}, Caffe uses k = {p.k:g}", top(with_fields(q, "lrn_param", k=k))
            yield (
                f"it uses k = {k:g} and does not divide alpha by the size, Caffe uses k = {p.k:g} and does",
                top(with_fields(q, "lrn_param", k=k, alpha=p.alpha * area)),
            )
    yield (
        f"its norm_region is {region}, Caffe's is {p.norm_region}",
        top(with_fields(q, "lrn_param", norm_region=region)),
    )
    for beta in (0.5, 0.75, 1.0):
        if beta != p.beta:
            yield f"its beta is {beta:g}, Caffe's is {p.beta:g}", top(with_fields(q, "lrn_param", beta=beta))
    for size in (3, 5, 7, 9):
        if size != n:
            yield f"its size is {size}, Caffe's is {n}", top(with_fields(q, "lrn_param", local_size=size))


@slip("BatchNorm")
def scale_factor(q: Layer, _: Array) -> Iterator[Guess]:
    if len(q.blobs) != 3:
        return
    mean, variance, factor = q.blobs
    one, f = np.ones_like(factor), float(factor.reshape(-1)[0])
    caffe = "Caffe divides the mean and the variance by it"
    yield f"it does not divide by the scale factor (third blob), {caffe}", top(with_blobs(q, mean, variance, one))
    yield (
        f"it divides only the mean by the scale factor (third blob), {caffe}",
        top(with_blobs(q, mean / (f or 1), variance, one)),
    )
    yield (
        f"it divides only the variance by the scale factor (third blob), {caffe}",
        top(with_blobs(q, mean, variance / (f or 1), one)),
    )
    yield f"it multiplies by the scale factor (third blob), {caffe}", top(with_blobs(q, mean * f, variance * f, one))


@slip("BatchNorm")
def statistics(q: Layer, actual: Array) -> Iterator[Guess]:
    if q.x.ndim < 2 or q.x.shape != actual.shape:
        return
    p = q.param.batch_norm_param
    batch = with_fields(q, "batch_norm_param", use_global_stats=False)
    yield "it uses the statistics of the batch (training mode), Caffe the stored ones", top(batch)
    if len(q.blobs) != 3:
        return
    f = float(q.blobs[2].reshape(-1)[0]) or 1.0
    shape = (-1, *([1] * (q.x.ndim - 2)))
    mean, variance = (b.reshape(shape) / f for b in q.blobs[:2])
    centered = q.x - mean
    yield "it divides by the variance, Caffe by its square root", centered / (variance + p.eps)
    yield (
        "it adds eps to the standard deviation, Caffe to the variance (inside the square root)",
        centered / (np.sqrt(variance) + p.eps),
    )
    deviation = np.sqrt(np.maximum(variance, 0))
    yield (
        "its variance is the standard deviation (the square root of Caffe's variance)",
        centered / np.sqrt(deviation + p.eps),
    )
    yield "its variance is the square of Caffe's", centered / np.sqrt(variance**2 + p.eps)
    yield "its variance is corrected for the bias (n / (n - 1))", centered / np.sqrt(variance * _bessel(q.x) + p.eps)
    yield "it does not subtract the mean", q.x / np.sqrt(variance + p.eps)
    yield "it does not normalize: its top is its bottom", q.x
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = actual * actual
        eps = float(np.nansum((centered**2 - variance * weight) * weight) / np.nansum(weight * weight))
    if math.isfinite(eps) and eps > -1e-3:
        about = float(f"{eps:.1e}")
        yield (
            f"its eps is about {about:g}, Caffe's is {p.eps:g}",
            centered / np.sqrt(np.maximum(variance + eps, 1e-30)),
        )


def _bessel(x: Array) -> float:
    n = int(x.size) // int(x.shape[1])
    return n / max(n - 1, 1)


@slip("MVN")
def mvn_parts(q: Layer, actual: Array) -> Iterator[Guess]:
    p = q.param.mvn_param
    axes = tuple(range(1 if p.across_channels else 2, q.x.ndim))
    centered, variance = q.x - q.x.mean(axes, keepdims=True), q.x.var(axes, keepdims=True)
    yield ("it adds eps to the variance, Caffe to the standard deviation", centered / np.sqrt(variance + p.eps))
    own, caffe = ("each channel", "all channels") if p.across_channels else ("all channels", "each channel")
    yield (
        f"it normalizes over {own}, Caffe over {caffe} (across_channels)",
        top(with_fields(q, "mvn_param", across_channels=not p.across_channels)),
    )
    count = math.prod(q.x.shape[axis] for axis in axes)
    unbiased = variance * (count / max(count - 1, 1))
    yield "its variance is unbiased (divided by n - 1), Caffe's is divided by n", centered / (np.sqrt(unbiased) + p.eps)
    yield "it does not divide by the standard deviation (normalize_variance)", centered
    if actual.shape != q.x.shape:
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        divisor = (centered**2).sum(axes, keepdims=True) / (centered * actual).sum(axes, keepdims=True)
    deviation = np.sqrt(variance)
    inside, outside = float(np.nanmedian(divisor**2 - variance)), float(np.nanmedian(divisor - deviation))
    caffe = f"Caffe {p.eps:g} to the standard deviation"
    if math.isfinite(inside) and inside > 0:
        told = f"it adds an eps of about {inside:.2g} to the variance, {caffe}"
        yield told, centered / np.sqrt(variance + inside)
    if math.isfinite(outside) and outside > 0:
        yield (
            f"it adds an eps of about {outside:.2g} to the standard deviation, {caffe}",
            centered / (deviation + outside),
        )


@slip("Scale", "Bias")
def scale_parts(q: Layer, _: Array) -> Iterator[Guess]:
    if q.param.type == "Scale" and len(q.bottoms) == 1:
        gamma, *beta = q.blobs
        if beta:
            yield "its bias is missing", top(with_blobs(q, gamma, np.zeros_like(beta[0])))
            yield "its scale and bias are swapped", top(with_blobs(q, beta[0], gamma.reshape(beta[0].shape)))
        yield "its scale is missing", top(with_blobs(q, np.ones_like(gamma), *beta))
