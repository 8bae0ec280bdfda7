"""From a layer that differs to the likely cause.

Known slips (:mod:`caffe_port.verification.slips`) are tried on the very bottoms that the layer was fed. The one
that explains what the candidate computed, where Caffe's formula does not, is the diagnosis.
"""

from __future__ import annotations

import contextlib
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
"""Of a bottom: larger ones are cut to their first items, for a slip shows on one item as well as on all."""


@dataclass(frozen=True)
class Finding:
    """What explains a layer's difference.

    Attributes:
        cause: a sentence about the candidate.
        agreement: the greatest ``|a - e|`` that is left, if that is what it does.
    """

    cause: str
    agreement: float

    def __str__(self) -> str:
        return f"{self.cause} (agrees to {self.agreement:.0e} then)"


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
    """Why a layer's first top is not what it should be.

    Args:
        layer: its definition.
        bottoms, blobs: what it was fed with and the parameters that it should have.
        actual: what the candidate made of it.
        expected: what the reference did.
        parameters: what the candidate has for parameters, in Caffe's layout, where that is known.
        train: phase TRAIN.

    Returns:
        The best explanation within the tolerance; None where no slip explains it.
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
        return next(f for f in findings if f.agreement <= 10 * best)  # the likelier slip comes first
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
    """The slips that explain the top: those of the type, and only if none does, those of any layer."""
    for kind in (question.param.type, "*"):
        findings: list[Finding] = []
        for hypothesis in HYPOTHESES.get(kind, ()):
            # a slip that makes no sense for these shapes raises, and explains nothing
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
    """Whether the candidate's parameters are simply not those of the file."""
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
                f"its {what} is not the file's ({rounded}): {found.actual:.6g} at ({where}), "
                f"the file has {found.expected:.6g}"
            )
            return Finding(cause, 0.0)
    return None


def _some_channels(expected: Array | None, actual: Array, tolerance: Tolerance) -> Finding | None:
    """Whether only some channels differ: then it is their parameters, not the layer."""
    if expected is None or expected.shape != actual.shape or actual.ndim < 2 or actual.shape[1] < 2:
        return None
    wrong = [c for c in range(actual.shape[1]) if not difference(expected[:, c], actual[:, c], tolerance).passed]
    if 0 < len(wrong) <= actual.shape[1] // 2:
        named = ", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else "")
        return Finding(f"only channels {named} of {actual.shape[1]} differ: look at their parameters", 0.0)
    return None
