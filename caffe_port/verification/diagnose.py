"""Finds the likely cause of a layer's difference.

Known porting mistakes (:mod:`caffe_port.verification.slips`) are tried on the bottoms that the layer was fed. The
diagnosis is the one that reproduces what the candidate computed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from caffe_port.signatures.signature import Trait, has
from caffe_port.spec import LayerSpec
from caffe_port.typing import Array
from caffe_port.verification.comparison import Tolerance, difference
from caffe_port.verification.references.numpy_formulas import FORMULAS, Layer
from caffe_port.verification.slips import HYPOTHESES

_MAX_ELEMENTS = 1 << 19
"""The size of a bottom above which only its first items are used: a mistake shows on one item as well as on all."""


@dataclass(frozen=True)
class Finding:
    """The explanation of a layer's difference.

    Attributes:
        cause: what the candidate does.
        agreement: the largest ``|a - e|`` that remains when the formula does the same; NaN if it was not measured.
    """

    cause: str
    agreement: float

    def __str__(self) -> str:
        if math.isnan(self.agreement):
            return self.cause
        left = f"{self.agreement:.0e}" if self.agreement else "0"
        return f"{self.cause}; corrected for that, the largest difference is {left}"


def diagnose(
    layer: LayerSpec,
    bottoms: Sequence[Array],
    blobs: Sequence[Array],
    actual: Array,
    expected: Array | None = None,
    *,
    parameters: Sequence[Array] | None = None,
    train: bool = False,
    tolerance: Tolerance | None = None,
) -> Finding | None:
    """Finds out why a layer's first top differs.

    Args:
        layer: its definition.
        bottoms, blobs: its inputs, and the parameters that it should have.
        actual: the candidate's top.
        expected: the reference's top.
        parameters: the candidate's parameters in Caffe's layout, if they are known.
        train: phase TRAIN.

    Returns:
        The best explanation within the tolerance; None if no known mistake explains the difference.
    """
    tolerance = tolerance or Tolerance()
    found = _parameters(blobs, parameters)
    if found is not None:
        return found
    if layer.type not in FORMULAS:
        return None
    keep = _items(layer, bottoms)
    if keep is not None and actual.shape[:1] == bottoms[0].shape[:1]:
        bottoms, actual = [b[:keep] for b in bottoms], actual[:keep]
        expected = None if expected is None else expected[:keep]
    question = Layer(
        layer.param,
        [np.asarray(b, np.float64) for b in bottoms],
        [np.asarray(b, np.float64) for b in blobs],
        train,
        len(layer.tops),
    )
    actual = np.asarray(actual, np.float64)
    findings = _matching(question, actual, tolerance)
    if findings:
        best = min(f.agreement for f in findings)
        return next(f for f in findings if f.agreement <= 10 * best)  # the more likely mistake comes first
    return _some_channels(expected, actual, tolerance)


def _items(layer: LayerSpec, bottoms: Sequence[Array]) -> int | None:
    """How many items of the batch are enough."""
    if has(layer.type, Trait.BATCH_STATISTICS) or not bottoms:
        return None
    if any(b.shape[:1] != bottoms[0].shape[:1] for b in bottoms):
        return None
    each = int(bottoms[0].size) // max(1, int(bottoms[0].shape[0]))
    return int(max(1, _MAX_ELEMENTS // max(1, each)))


def _matching(question: Layer, actual: Array, tolerance: Tolerance) -> list[Finding]:
    """The mistakes that explain the top: those of the type or, if there are none, those of any layer."""
    for kind in (question.param.type, "*"):
        findings: list[Finding] = []
        for hypothesis in HYPOTHESES.get(kind, ()):
            # a mistake that makes no sense for these shapes raises, and explains nothing
            with (
                np.errstate(all="ignore"),
                contextlib.suppress(ValueError, IndexError, ZeroDivisionError, NotImplementedError, OverflowError),
            ):
                for cause, predicted in hypothesis(question, actual):
                    found = difference(predicted, actual, tolerance)
                    if found.passed and found.count:
                        findings.append(Finding(cause, found.greatest))
        if findings:
            return findings
    return []


def _parameters(blobs: Sequence[Array], parameters: Sequence[Array] | None) -> Finding | None:
    """Whether the candidate's parameters differ from those in the file."""
    if parameters is None or len(blobs) != len(parameters):
        return None
    for index, (blob, own) in enumerate(zip(blobs, parameters, strict=True)):
        blob = np.asarray(blob)
        if blob.size != own.size:
            continue
        found = difference(blob.reshape(own.shape), np.asarray(own), Tolerance(1e-9, 1e-6))
        if not found.passed and found.at is not None:
            what = {0: "weight", 1: "bias"}.get(index, f"blob {index}") if len(blobs) < 3 else f"blob {index}"
            half = difference(blob.reshape(own.shape).astype(np.float16), np.asarray(own), Tolerance(0, 0)).passed
            rounded = "rounded to half precision" if half else f"{found.outside} of {found.count} values"
            where = ", ".join(map(str, found.at))
            cause = (
                f"its {what} differs from the file's ({rounded}): {found.actual:.6g} at ({where}), "
                f"{found.expected:.6g} in the file"
            )
            return Finding(cause, math.nan)
    return None


def _some_channels(expected: Array | None, actual: Array, tolerance: Tolerance) -> Finding | None:
    """Whether only some channels differ: then their parameters are wrong, not the layer."""
    if expected is None or expected.shape != actual.shape or actual.ndim < 2 or actual.shape[1] < 2:
        return None
    wrong = [c for c in range(actual.shape[1]) if not difference(expected[:, c], actual[:, c], tolerance).passed]
    if 0 < len(wrong) <= actual.shape[1] // 2:
        named = ", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else "")
        channels = f"channel {named}" if len(wrong) == 1 else f"channels {named}"
        verb = "differs" if len(wrong) == 1 else "differ"
        return Finding(f"only {channels} of {actual.shape[1]} {verb}: check the parameters there", math.nan)
    return None
