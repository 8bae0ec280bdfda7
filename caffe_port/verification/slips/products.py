"""Mistakes of convolutions and matrix products."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas import Layer
from caffe_port.verification.slips.slip import Guess, slip, top, with_blobs, with_bottoms


@slip("Convolution", "Deconvolution")
def kernel_order(q: Layer, _: Array) -> Iterator[Guess]:
    weight, *bias = q.blobs
    if weight.ndim != 4:
        return
    p = q.param.convolution_param
    flipped = with_blobs(q, weight[:, :, ::-1, ::-1], *bias)
    yield "its kernel is flipped (a true convolution), Caffe computes a cross-correlation", top(flipped)
    if weight.shape[2] == weight.shape[3]:
        yield "the height and width of its kernel are swapped", top(with_blobs(q, weight.swapaxes(2, 3), *bias))
    if weight.shape[0] == weight.shape[1]:
        yield (
            "the input and output channels of its weight are swapped",
            top(with_blobs(q, weight.swapaxes(0, 1), *bias)),
        )
    out = weight.shape[0]
    if p.group > 1 and out > p.group:
        order = np.arange(out).reshape(p.group, -1).T.reshape(-1)
        yield "its groups are interleaved, Caffe's are contiguous", top(with_blobs(q, weight[order], *bias))
        yield (
            "the order of its groups is reversed",
            top(with_blobs(q, weight.reshape(p.group, -1, *weight.shape[1:])[::-1].reshape(weight.shape), *bias)),
        )
        yield "its output channels are interleaved by group", top(q)[:, order]


@slip("Convolution")
def channel_order(q: Layer, _: Array) -> Iterator[Guess]:
    weight, *bias = q.blobs
    if q.param.convolution_param.group == 1 and weight.ndim > 1 and weight.shape[1] > 1:
        what = "swapped (RGB and BGR)" if weight.shape[1] == 3 else "in reverse order"
        yield f"its input channels are {what}", top(with_blobs(q, weight[:, ::-1], *bias))


@slip("Convolution", "Deconvolution", "InnerProduct")
def no_bias(q: Layer, actual: Array) -> Iterator[Guess]:
    if len(q.blobs) > 1:
        yield "its bias is missing", top(with_blobs(q, q.blobs[0], np.zeros_like(q.blobs[1])))
        yield "its bias is added twice", top(with_blobs(q, q.blobs[0], 2 * q.blobs[1]))
    else:
        made = top(q)
        if made.shape == actual.shape and made.ndim > 1:
            extra = (actual - made).mean(axis=tuple(i for i in range(made.ndim) if i != 1), keepdims=True)
            yield "it has a bias, Caffe's layer does not (bias_term: false)", made + extra


@slip("Deconvolution")
def deconvolution_groups(q: Layer, _: Array) -> Iterator[Guess]:
    p, weight = q.param.convolution_param, q.blobs[0]
    if p.group == 1:
        return
    if weight.shape[1] == 1 and p.group == q.x.shape[1]:
        yield "all groups use the first kernel", top(with_blobs(q, np.repeat(weight[:1], len(weight), 0), *q.blobs[1:]))
        total = top(with_blobs(q, weight, *[np.zeros_like(b) for b in q.blobs[1:]])).sum(1, keepdims=True)
        yield (
            "it sums over the groups (groups=1), Caffe keeps them separate",
            np.repeat(total, p.num_output, 1) + (q.blobs[1].reshape(-1, 1, 1) if len(q.blobs) > 1 else 0),
        )


@slip("InnerProduct")
def weight_transposed(q: Layer, _: Array) -> Iterator[Guess]:
    p, weight = q.param.inner_product_param, q.blobs[0]
    shape = (weight.size // p.num_output, p.num_output)
    stored = weight.reshape(shape[::-1] if not p.transpose else shape)
    yield (
        "it reads its weight as (in, out), Caffe stores (out, in)",
        top(with_blobs(q, stored.reshape(stored.shape[::-1]).T, *q.blobs[1:])),
    )
    if stored.shape[0] == stored.shape[1]:
        yield "its weight is transposed", top(with_blobs(q, stored.T, *q.blobs[1:]))


@slip("InnerProduct", "Flatten", "Reshape")
def flatten_order(q: Layer, _: Array) -> Iterator[Guess]:
    if q.x.ndim != 4 or (q.param.type == "InnerProduct" and q.param.inner_product_param.axis != 1):
        return
    for order, words in (((0, 2, 3, 1), "(H, W, C)"), ((0, 1, 3, 2), "(C, W, H)"), ((0, 3, 2, 1), "(W, H, C)")):
        moved = np.ascontiguousarray(q.x.transpose(order)).reshape(q.x.shape)
        yield f"it flattens in the order {words}, Caffe in the order (C, H, W)", top(with_bottoms(q, moved))
        if q.param.type == "InnerProduct" and not q.param.inner_product_param.transpose:
            weight = q.blobs[0].reshape(-1, *q.x.shape[1:])
            turned = np.ascontiguousarray(weight.transpose(order)).reshape(q.blobs[0].shape)
            yield f"its weight is in the order {words}, Caffe's in (C, H, W)", top(with_blobs(q, turned, *q.blobs[1:]))
