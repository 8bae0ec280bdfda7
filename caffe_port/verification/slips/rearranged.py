"""Mistakes of layers that cut, reorder or bend their bottom, and of the LSTM."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from caffe_port.signatures.signature import Trait, keeps_blobs, types_with
from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas import FORMULAS, Layer
from caffe_port.verification.slips.slip import Guess, slip, top, with_blobs, with_bottoms, with_fields


@slip("Crop")
def crop_offset(q: Layer, actual: Array) -> Iterator[Guess]:
    x = q.x
    if x.ndim != actual.ndim or any(a > n for a, n in zip(actual.shape, x.shape, strict=True)):
        return
    right = top(q)
    room = [range(n - a + 1) for a, n in zip(actual.shape, x.shape, strict=True)]
    corner = actual[tuple(slice(0, 1) for _ in actual.shape)]
    caffe = _offset_of(x, right, room)
    near = np.abs(x[tuple(slice(0, len(r)) for r in room)] - corner) <= 1e-4 * (1 + np.abs(corner))
    for offset in np.argwhere(near)[:64]:
        cut = x[tuple(slice(o, o + a) for o, a in zip(offset, actual.shape, strict=True))]
        size = "" if right.shape == actual.shape else f" and its size {actual.shape}, Caffe's {right.shape}"
        told = tuple(int(o) for o in offset)
        yield f"its offset is {told[2:] or told}{size}; Caffe's offset is {caffe[2:] or caffe}", cut


def _offset_of(x: Array, cut: Array, room: Sequence[range]) -> tuple[int, ...]:
    for offset in itertools.product(*room):
        if np.array_equal(x[tuple(slice(o, o + a) for o, a in zip(offset, cut.shape, strict=True))], cut):
            return tuple(offset)
    return ()


@slip("Permute")
def permute_order(q: Layer, actual: Array) -> Iterator[Guess]:
    own = tuple(q.param.permute_param.order)
    own = own + tuple(n for n in range(q.x.ndim) if n not in own)
    for order in itertools.permutations(range(q.x.ndim)):
        if order == own:
            continue
        made = q.x.transpose(order)
        if made.size == actual.size and made.shape[0] == actual.shape[0]:
            verb = "the layer is missing: its order is" if order == tuple(range(q.x.ndim)) else "its order is"
            yield f"{verb} {order}, Caffe's is {own}", made.reshape(actual.shape)


@slip("Slice")
def slice_points(q: Layer, actual: Array) -> Iterator[Guess]:
    for axis in range(1, q.x.ndim):
        n = actual.shape[axis] if actual.ndim == q.x.ndim else 0
        if n:
            for start in range(min(q.x.shape[axis] - n + 1, 256)):
                cut = np.take(q.x, range(start, start + n), axis)
                yield f"it takes {start} to {start + n} of axis {axis} (slice_point)", cut


@slip("Slice")
def slice_steps(q: Layer, _: Array) -> Iterator[Guess]:
    axis = q.param.slice_param.axis % q.x.ndim
    for step in range(2, min(q.x.shape[axis], 8) + 1):
        for start in range(step):
            cut = np.take(q.x, range(start, q.x.shape[axis], step), axis)
            yield f"it takes one of every {step} along axis {axis}, from {start} on; Caffe takes neighbors", cut


@slip("PixelShuffle")
def pixel_order(q: Layer, _: Array) -> Iterator[Guess]:
    n, c, h, w = q.x.shape
    r = q.param.pixelshuffle_param.upscale_factor
    out = c // r**2
    turned = q.x.reshape(n, out, r, r, h, w).transpose(0, 1, 4, 3, 5, 2)
    yield "rows and columns of its blocks are exchanged", turned.reshape(n, out, h * r, w * r)
    last = q.x.reshape(n, r, r, out, h, w).transpose(0, 3, 4, 1, 5, 2)
    yield (
        "it takes the channels of a block as (r, r, C), as depth_to_space does, Caffe as (C, r, r)",
        last.reshape(n, out, h * r, w * r),
    )


@slip("Reduction")
def reduction_parts(q: Layer, _: Array) -> Iterator[Guess]:
    p = q.param.reduction_param
    for operation in ("SUM", "ASUM", "SUMSQ", "MEAN"):
        if operation != p.operation:
            words = f"it computes {operation}, Caffe computes {p.operation}"
            yield words, top(with_fields(q, "reduction_param", operation=operation))
    if p.coeff != 1:
        yield "its coefficient (coeff) is missing", top(with_fields(q, "reduction_param", coeff=1.0))
    for axis in range(q.x.ndim):
        for last in range(axis, q.x.ndim):
            if (axis, last) == (p.axis % q.x.ndim, q.x.ndim - 1):
                continue
            value = {"ASUM": np.abs, "SUMSQ": np.square}.get(p.operation, np.asarray)(q.x)
            axes = tuple(range(axis, last + 1))
            made = value.mean(axes) if p.operation == "MEAN" else value.sum(axes)
            told = f"it reduces axes {axis} to {last}" if last > axis else f"it reduces axis {axis}"
            yield f"{told}, Caffe all from axis {p.axis % q.x.ndim} on", np.asarray(p.coeff * made)


@slip("Power")
def power_parts(q: Layer, _: Array) -> Iterator[Guess]:
    p = q.param.power_param
    for name, neutral in (("shift", 0.0), ("scale", 1.0), ("power", 1.0)):
        if getattr(p, name) != neutral:
            yield f"its {name} is missing", top(with_fields(q, "power_param", **{name: neutral}))
    with np.errstate(invalid="ignore", divide="ignore"):
        yield "it shifts before it scales, Caffe shifts after it scales", (p.scale * (q.x + p.shift)) ** p.power


@slip(*sorted(types_with(Trait.ACTIVATION)))
def other_curve(q: Layer, actual: Array) -> Iterator[Guess]:
    """Another activation, with Caffe's default parameters."""
    if len(q.bottoms) != 1 or q.x.shape != actual.shape:
        return
    x = q.x
    gauss = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if x.size <= 1 << 18:
        erf = np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2)) if x.size else x
        yield f"it is a GELU, Caffe's is a {q.param.type}", 0.5 * x * (1 + erf)
    yield f"it is a GELU (by tanh), Caffe's is a {q.param.type}", gauss
    for name in sorted(types_with(Trait.ACTIVATION) - {q.param.type}):
        if name in FORMULAS and not keeps_blobs(name):
            with contextlib.suppress(ValueError, IndexError, NotImplementedError, ZeroDivisionError):
                other = dataclasses.replace(q, param=q.param.copy(type=name), blobs=[])
                yield f"it is a {name}, Caffe's is a {q.param.type}", top(other)


@slip("LSTM", "RNN")
def continuation(q: Layer, _: Array) -> Iterator[Guess]:
    ones = np.ones_like(q.bottoms[1])
    yield (
        "it ignores the continuation marks (cont): the state is not reset",
        top(with_bottoms(q, q.x, ones, *q.bottoms[2:])),
    )


@slip("LSTM", "RNN")
def static_input(q: Layer, _: Array) -> Iterator[Guess]:
    if len(q.bottoms) in (3, 5):
        without = with_bottoms(q, *q.bottoms[:2], np.zeros_like(q.bottoms[2]), *q.bottoms[3:])
        yield "it ignores the static input, the third bottom", top(without)


@slip("LSTM")
def forget_bias(q: Layer, _: Array) -> Iterator[Guess]:
    n = len(q.blobs[1].reshape(-1)) // 4
    more = q.blobs[1].reshape(-1).copy()
    more[n : 2 * n] += 1
    added = top(with_blobs(q, q.blobs[0], more.reshape(q.blobs[1].shape), *q.blobs[2:]))
    yield "it adds 1 to the bias of the forget gate, Caffe does not", added


@slip("LSTM")
def lstm_gates(q: Layer, _: Array) -> Iterator[Guess]:
    n = len(q.blobs[1]) // 4
    for order in itertools.permutations(range(4)):
        if order != (0, 1, 2, 3):
            rows = np.concatenate([np.arange(g * n, (g + 1) * n) for g in order])
            names = ", ".join("ifog"[g] for g in order)
            moved = [b[rows] if len(b) == 4 * n else b for b in q.blobs]
            yield f"its gates are in the order ({names}), Caffe's in (i, f, o, g)", top(with_blobs(q, *moved))
    for order in itertools.permutations(range(4)):
        if order != (0, 1, 2, 3):
            rows = np.concatenate([np.arange(g * n, (g + 1) * n) for g in order])
            names = ", ".join("ifog"[g] for g in order)
            for k, blob in enumerate(q.blobs):
                if len(blob) == 4 * n:
                    moved = [*q.blobs[:k], blob[rows], *q.blobs[k + 1 :]]
                    yield f"the gates of its blob {k} are in the order ({names})", top(with_blobs(q, *moved))
