"""What all formulas share: the registry, and functions that read parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_port.formats.message import Message
from caffe_port.typing import Array

FLT_MAX = float(np.finfo(np.float32).max)
FLT_MIN = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Layer:
    """The arguments of a formula: the LayerParameter, bottoms and blobs in float64, and the phase."""

    param: Message
    bottoms: Sequence[Array]
    blobs: Sequence[Array]
    train: bool = False
    tops: int = 1

    @property
    def x(self) -> Array:
        """The first bottom."""
        return self.bottoms[0]


Result = Any
"""An array, or a sequence with one array per top; Any, because a type checker does not know a message's fields."""

Formula = Callable[[Layer], Result]

FORMULAS: dict[str, Formula] = {}
"""Caffe's type string -> the function that computes its tops."""


def formula(*types: str) -> Callable[[Formula], Formula]:
    """Registers a function for layer types."""

    def register(function: Formula) -> Formula:
        FORMULAS.update(dict.fromkeys(types, function))
        return function

    return register


def spatial(values: Sequence[int], h: int | None, w: int | None, count: int, default: int) -> tuple[int, ...]:
    """``kernel_size``, ``kernel_h`` and ``kernel_w`` as one number per axis. Source: base_conv_layer.cpp."""
    if h is not None or w is not None:
        return (default if h is None else h, default if w is None else w)
    if not values:
        return (default,) * count
    return tuple(values) * count if len(values) == 1 else tuple(values)


def given(p: Message, name: str) -> Any:
    """A field's value; None if it is not set."""
    return getattr(p, name) if p.has(name) else None


def legacy_axis(p: Message, old: str) -> int:
    """``axis``, or the ``concat_dim`` or ``slice_dim`` of older files."""
    return int(getattr(p, old) if p.has(old) else p.axis)


def along(values: Array, axis: int, dims: int) -> Array:
    """Parameters of one or more axes, reshaped to broadcast with a bottom from ``axis`` on."""
    return values.reshape(values.shape + (1,) * (dims - axis - values.ndim))


def rounded(x: Array) -> Array:
    """C's round: a half goes away from zero."""
    return np.asarray(np.sign(x) * np.floor(np.abs(x) + 0.5))
