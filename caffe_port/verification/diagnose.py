"""Finds the likely cause of a layer's difference.

Known porting mistakes (:mod:`caffe_port.verification.slips`) are tried on the bottoms that the layer was fed. The
diagnosis is the one that reproduces what the candidate computed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from caffe_port.signatures.signature import Trait, has, keeps_blobs
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
        specific: whether it is a known mistake of this layer type.
    """

    cause: str
    agreement: float
    specific: bool = False

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
    others: Mapping[str, Sequence[Array]] | None = None,
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
        others: the parameters of all layers of the file: the candidate's may be those of another layer.
        train: phase TRAIN.

    Returns:
        The best explanation within the tolerance; None if no known mistake explains the difference.
    """
    tolerance = tolerance or Tolerance()
    actual = np.asarray(actual)
    nan = int(np.isnan(actual).sum())
    if nan and (expected is None or not np.isnan(expected).any()):
        return Finding(f"its top is NaN in {nan} of {actual.size} values, Caffe's is not", math.nan)
    if layer.type not in FORMULAS:
        return other_parameters(layer, blobs, parameters, others)
    keep = _items(layer, bottoms)
    if keep is not None and all(bottoms[0].shape[:1] == x.shape[:1] for x in (actual, expected) if x is not None):
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
    formula = _formula(question)
    if formula is not None and expected is not None and not _explains(formula, np.asarray(expected), tolerance):
        own = other_parameters(layer, blobs, parameters, others)
        if own is None and _explains(formula, actual, tolerance):
            return Finding("it agrees with the formula of Caffe's source; the reference does not", math.nan)
        return own  # the slips are variations of the formula, which is not what the reference computes
    before = difference(np.asarray(expected if expected is not None else formula, np.float64), actual, tolerance)
    limit = 0.5 * before.greatest if math.isfinite(before.greatest) else math.inf
    return (
        _best(question, actual, tolerance, question.param.type, limit)
        or other_parameters(layer, blobs, parameters, others)
        or _best(question, actual, tolerance, "*", limit)
        or _some_channels(layer, expected, actual, tolerance)
    )


def _formula(question: Layer) -> Array | None:
    """The first top by the formula; None if it cannot be computed."""
    with np.errstate(all="ignore"), contextlib.suppress(*_NONSENSE):
        made = FORMULAS[question.param.type](question)
        return np.asarray(made if isinstance(made, (np.ndarray, np.generic)) else made[0])
    return None


def _explains(one: Array, other: Array, tolerance: Tolerance) -> bool:
    found = difference(one, other, tolerance)
    return found.passed and found.count > 0


def _items(layer: LayerSpec, bottoms: Sequence[Array]) -> int | None:
    """How many items of the batch are enough."""
    if has(layer.type, Trait.BATCH_STATISTICS) or not bottoms or not bottoms[0].ndim:
        return None
    if any(b.shape[:1] != bottoms[0].shape[:1] for b in bottoms):
        return None
    each = int(bottoms[0].size) // max(1, int(bottoms[0].shape[0]))
    return int(max(1, _MAX_ELEMENTS // max(1, each)))


_NONSENSE = (ValueError, IndexError, ZeroDivisionError, NotImplementedError, OverflowError)
"""What a mistake raises that makes no sense for these shapes, and that explains nothing."""


def _best(question: Layer, actual: Array, tolerance: Tolerance, kind: str, limit: float) -> Finding | None:
    """The mistake of a type, or of any (``"*"``), that explains the top best.

    Args:
        limit: the difference that may remain: a mistake that leaves as much as there was explains nothing.
    """
    findings: list[Finding] = []
    for hypothesis in HYPOTHESES.get(kind, ()):
        with np.errstate(all="ignore"), contextlib.suppress(*_NONSENSE):
            for cause, predicted in hypothesis(question, actual):
                found = difference(predicted, actual, tolerance)
                if found.passed and found.count and found.greatest <= limit and np.isfinite(predicted).any():
                    findings.append(Finding(cause, found.greatest, kind != "*"))
    if not findings:
        return None
    best = min(f.agreement for f in findings)
    return next(f for f in findings if f.agreement <= 10 * best)  # the more likely mistake comes first


def other_parameters(
    layer: LayerSpec,
    blobs: Sequence[Array],
    parameters: Sequence[Array] | None,
    others: Mapping[str, Sequence[Array]] | None,
) -> Finding | None:
    """Whether the candidate's parameters differ from those in the file."""
    if parameters is None or len(blobs) != len(parameters):
        return None
    wrong = []
    for index, (blob, own) in enumerate(zip(blobs, parameters, strict=True)):
        blob = np.asarray(blob)
        if blob.size == own.size and not difference(blob.reshape(own.shape), np.asarray(own), _EXACT).passed:
            wrong.append(index)
    if not wrong:
        return None
    if others and len(blobs) < 3:
        other = _whose(layer, parameters, others)
        if other:
            return Finding(
                f"its weights are not those of '{layer.name}' but those of '{other}': the weights of the two layers "
                "are exchanged, or copied to the wrong layer",
                math.nan,
            )
    index = wrong[0]
    own, blob = np.asarray(parameters[index]), np.asarray(blobs[index]).reshape(parameters[index].shape)
    found = difference(blob, own, _EXACT)
    what = {0: "weight", 1: "bias"}.get(index, f"blob {index}") if len(blobs) < 3 else _STATISTICS.get(index, "")
    what = what or f"blob {index}"
    half = difference(blob.astype(np.float16), own, Tolerance(0, 0)).passed
    coarse = difference(bfloat16(blob), own, Tolerance(0, 0)).passed
    rounded = f"{found.outside} of {found.count} values"
    if half or coarse:
        rounded = f"rounded to {'half precision (float16)' if half else 'bfloat16'}"
    elif own.ndim > 1 and own.shape[0] > 1:
        axes = tuple(range(1, own.ndim))
        rows = [int(n) for n in np.flatnonzero(np.abs(own - blob).max(axes) > 1e-6 * np.abs(blob).max())]
        if 0 < len(rows) <= own.shape[0] // 2:
            named = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
            rounded += f", only channel{'s' * (len(rows) > 1)} {named} of {own.shape[0]}"
    at = found.at or ()
    where = ", ".join(map(str, at))
    numbers = f"{found.actual:.6g} at ({where}), {found.expected:.6g} in the file"
    cause = f"its {what} differs from the file's ({rounded}): {numbers}"
    if len(wrong) > 1:
        cause += "; its other parameters differ, too"
    return Finding(cause, math.nan)


_EXACT = Tolerance(1e-9, 1e-6)
_STATISTICS = {0: "mean (first blob)", 1: "variance (second blob)"}


def _whose(layer: LayerSpec, parameters: Sequence[Array], others: Mapping[str, Sequence[Array]]) -> str:
    """The other layer whose first blob the candidate holds."""
    own = np.asarray(parameters[0])
    if own.size < 4 or np.ptp(own) == 0:
        return ""
    for name, blobs in others.items():
        blob = np.asarray(blobs[0]) if len(blobs) else np.zeros(0)
        if name != layer.name and blob.size == own.size and np.allclose(blob.reshape(-1), own.reshape(-1), 1e-5, 1e-8):
            return name
    return ""


def bfloat16(values: Array) -> Array:
    """The nearest bfloat16 of each number, ties to even."""
    bits: Array = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.int64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    found: Array = bits.astype(np.uint32).view(np.float32).reshape(values.shape)
    return found.astype(np.asarray(values).dtype)


def _some_channels(layer: LayerSpec, expected: Array | None, actual: Array, tolerance: Tolerance) -> Finding | None:
    """Whether only some channels differ: then their parameters are wrong, not the layer."""
    if expected is None or expected.shape != actual.shape or actual.ndim < 2 or actual.shape[1] < 2:
        return None
    wrong = [c for c in range(actual.shape[1]) if not difference(expected[:, c], actual[:, c], tolerance).passed]
    if 0 < len(wrong) <= actual.shape[1] // 2:
        named = ", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else "")
        channels = f"channel {named}" if len(wrong) == 1 else f"channels {named}"
        verb = "differs" if len(wrong) == 1 else "differ"
        hint = ": check the parameters there" if keeps_blobs(layer.type) else ""
        return Finding(f"only {channels} of {actual.shape[1]} {verb}{hint}", math.nan)
    return None
