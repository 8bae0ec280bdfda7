"""Caffe's weight fillers, seeded. Source: filler.hpp."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from caffe_port.errors import SpecError, did_you_mean
from caffe_port.formats.message import Message
from caffe_port.typing import Array

TYPES = ("constant", "gaussian", "positive_unitball", "uniform", "xavier", "msra", "bilinear")


def fill(filler: Message, shape: Sequence[int], rng: np.random.Generator) -> Array:
    """Draws a blob.

    Args:
        filler: FillerParameter.
        shape: Caffe's shape of the blob: fan-in is all axes but the first, fan-out all but the second.
        rng: the random generator.

    Returns:
        float32 of that shape.

    Raises:
        SpecError: a type that is a typo, or a shape that the type cannot fill.

    The types of forks (identity, orthogonal, gabor ...) are replaced by xavier, which keeps a net's values in range.
    """
    kind = filler.type
    if kind not in TYPES:
        if suggestion := did_you_mean(kind, TYPES, 0.75):
            raise SpecError(f"filler type '{kind}' does not exist.{suggestion}")
        kind = "xavier"
    if 0 in shape:
        return np.zeros(shape, np.float32)
    if kind == "constant":
        return np.full(shape, filler.value, np.float32)
    if kind == "uniform":
        return _uniform(rng, filler.min, filler.max, shape)
    if kind == "gaussian":
        values = _gaussian(rng, filler.mean, filler.std, shape)
        if filler.sparse >= 0:
            # Each input reaches `sparse` outputs on the average.
            values *= rng.random(shape, np.float32) < filler.sparse / shape[0]
        return values
    if kind == "positive_unitball":
        values = rng.random(shape, np.float32).reshape(shape[0], -1)
        values /= values.sum(axis=1, keepdims=True)
        return values.reshape(shape)
    if kind == "xavier":
        scale = math.sqrt(3 / _fan(filler, shape))
        return _uniform(rng, -scale, scale, shape)
    if kind == "msra":
        return _gaussian(rng, 0.0, math.sqrt(2 / _fan(filler, shape)), shape)
    return _bilinear(shape)


def _fan(filler: Message, shape: Sequence[int]) -> float:
    count = math.prod(shape)
    fan_in, fan_out = count / shape[0] if shape else 1.0, count / shape[1] if len(shape) > 1 else float(count)
    return {"FAN_IN": fan_in, "FAN_OUT": fan_out, "AVERAGE": (fan_in + fan_out) / 2}[filler.variance_norm]


def _uniform(rng: np.random.Generator, low: float, high: float, shape: Sequence[int]) -> Array:
    values = rng.random(tuple(shape), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        values *= np.float32(high - low)
        values += np.float32(low)
    return values


def _gaussian(rng: np.random.Generator, mean: float, std: float, shape: Sequence[int]) -> Array:
    values = rng.standard_normal(tuple(shape), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # an infinite std gives infinite values, as in Caffe
        values *= np.float32(std)
        values += np.float32(mean)
    return values


def _bilinear(shape: Sequence[int]) -> Array:
    if len(shape) != 4 or shape[2] != shape[3]:
        raise SpecError(f"filler 'bilinear' needs a square 4-D blob, got {tuple(shape)}")
    size = shape[3]
    half = math.ceil(size / 2)
    centre = (2 * half - 1 - half % 2) / (2.0 * half)
    line = 1 - np.abs(np.arange(size) / half - centre)
    return np.broadcast_to(np.outer(line, line), tuple(shape)).astype(np.float32)
