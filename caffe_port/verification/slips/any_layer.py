"""Mistakes that can happen in any layer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas import Layer
from caffe_port.verification.slips.slip import Guess, slip, top, with_bottoms


def _exchanged(q: Layer) -> Iterator[Guess]:
    """Two bottoms of one shape in the other order."""
    for one, other in itertools.combinations(range(min(len(q.bottoms), 4)), 2):
        if q.bottoms[one].shape == q.bottoms[other].shape:
            order = list(q.bottoms)
            order[one], order[other] = order[other], order[one]
            yield f"its bottoms {one} and {other} are exchanged (their order)", top(with_bottoms(q, *order))


@slip("*")
def anything(q: Layer, actual: Array) -> Iterator[Guess]:
    made = top(q)
    if made.ndim == actual.ndim == 4 and made.shape == (*actual.shape[:2], actual.shape[3], actual.shape[2]):
        yield "the height and width of its top are swapped", made.swapaxes(2, 3)
    yield from _exchanged(q)
    if made.shape != actual.shape:
        return
    if made.ndim > 1 and made.shape[1] > 1:
        yield "the channels of its top are in reverse order", made[:, ::-1]
    yield "its top has the opposite sign", -made
    yield "it applies a ReLU to its top, Caffe does not", np.maximum(made, 0)
    if q.x.shape == actual.shape:
        yield "the layer is missing: its top is its bottom", q.x
    yield "its top is all zeros", np.zeros_like(made)
    square = float((made * made).sum())
    if square > 0:
        factor = float((made * actual).sum()) / square
        times = f"{factor:.6g}"
        if times != "1":  # that would explain nothing
            yield f"its top is {times} times Caffe's", made * factor
    offset = float((actual - made).mean())
    yield f"its top is Caffe's {'plus' if offset >= 0 else 'minus'} {abs(offset):.6g}", made + offset
