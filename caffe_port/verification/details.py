"""What the HTML report shows in addition to the numbers: distributions of differences, feature maps, and the net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from caffe_port.spec import Producer
from caffe_port.typing import Array
from caffe_port.verification.comparison import Row
from caffe_port.verification.references.reference import Case, Made

DECADES = tuple(range(-10, 3))
"""Histogram bins: |a - e| below 1e-10 (including zero), then one bin per decade, then 100 and more."""

_MAX_MAPS = 12


@dataclass
class Pictures:
    """Feature maps of the first layer that diverges, (maps, height, width), for the first item of the batch."""

    layer: str
    expected: Array
    actual: Array
    channels: tuple[int, ...]


@dataclass
class Details:
    """Collected while :func:`~caffe_port.verification.runner.run` compares, or after a port was examined.

    Attributes:
        histograms: (layer, top) -> number of elements per decade of the isolated difference, or of the free one if
            only that is computed.
        pictures: feature maps of the first broken layer; None if no layer is broken, or if it has no maps.
        case: the net with the shapes of its tops and its parameters; None: the page shows neither these nor the graph.
    """

    histograms: dict[Producer, tuple[int, ...]] = field(default_factory=dict)
    pictures: Pictures | None = None
    case: Case | None = None

    def see(self, rows: Sequence[Row], made: Made, tops: Sequence[Tensor]) -> None:
        """Collects the details of one layer."""
        for row in rows:
            if made.tops is not None and row.top < len(made.tops) and row.top < len(tops):
                self.add(row, np.asarray(made.tops[row.top]), tops[row.top].cpu().numpy())

    def add(self, row: Row, expected: Array, actual: Array) -> None:
        """Collects the details of one top."""
        if expected.shape == actual.shape and expected.size:
            self.histograms[row.layer, row.top] = histogram(expected, actual)
        if row.broken and self.pictures is None and expected.ndim == actual.ndim == 4:
            self.pictures = pictures(row.layer, expected, actual)


def histogram(expected: Array, actual: Array) -> tuple[int, ...]:
    """The number of elements per decade of ``|a - e|``; values that are not finite are counted in the last bin."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        decades = np.floor(np.log10(np.abs(actual.astype(np.float64) - expected)))
    decades = np.where(np.isnan(decades), np.where(actual == expected, -np.inf, np.inf), decades)
    bins = np.clip(decades, DECADES[0] - 1, DECADES[-1]).astype(int) - (DECADES[0] - 1)
    return tuple(int(n) for n in np.bincount(bins.reshape(-1), minlength=len(DECADES) + 1))


def pictures(layer: str, expected: Array, actual: Array) -> Pictures:
    """Maps of the first item; those that differ most if the shapes are equal."""
    e, a = expected[0], actual[0]
    count = min(len(e), len(a), _MAX_MAPS)
    order = np.arange(count)
    if e.shape == a.shape:
        order = np.argsort(-np.nan_to_num(np.abs(a - e)).max(axis=(1, 2)), kind="stable")[:count]
    return Pictures(layer, e[order], a[order], tuple(int(c) for c in order))
