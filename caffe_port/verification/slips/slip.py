"""How a known mistake is registered, and what its formulas share.

Each mistake is a sentence about the candidate ("it rounds the size down"), and is computed by the formulas of
:mod:`caffe_port.verification.references.numpy_formulas` with one thing changed. The diagnosis does not look into the
candidate, so it works for any module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas import FORMULAS, Layer

Guess = tuple[str, Array]
"""What the candidate does, and what its first top would then be."""

Hypothesis = Callable[[Layer, Array], Iterator[Guess]]
"""(the layer, the candidate's top) -> guesses. The constant of a mistake may be estimated from the candidate's top."""

HYPOTHESES: dict[str, list[Hypothesis]] = {}
"""Layer type -> its known mistakes, most likely first; ``"*"`` lists those that can happen in any layer."""


def slip(*types: str) -> Callable[[Hypothesis], Hypothesis]:
    """Registers a candidate cause for layer types."""

    def register(function: Hypothesis) -> Hypothesis:
        for type_ in types:
            HYPOTHESES.setdefault(type_, []).append(function)
        return function

    return register


def top(q: Layer) -> Array:
    """The first top of a layer, computed by its formula."""
    made = FORMULAS[q.param.type](q)
    return np.asarray(made if isinstance(made, (np.ndarray, np.generic)) else made[0])


def with_fields(q: Layer, message: str, **fields: object) -> Layer:
    """The layer with some parameters changed."""
    own = getattr(q.param, message).copy(**fields)
    return dataclasses.replace(q, param=q.param.copy(**{message: own}))


def with_blobs(q: Layer, *blobs: Array) -> Layer:
    """The layer with other parameters."""
    return dataclasses.replace(q, blobs=blobs)


def with_bottoms(q: Layer, *bottoms: Array) -> Layer:
    """The layer with other bottoms."""
    return dataclasses.replace(q, bottoms=bottoms)
