"""The arithmetic of parity: two arrays, two traces. Pure; nothing is run here.

A top passes where ``|a - e| <= atol * u + rtol * |e|`` for every element, in float64. ``u`` is 1, or the root mean
square of the reference's top where that is greater: rounding errors of a sum grow with its terms, so a net whose
activations are in the thousands (raw pixels, untrained BatchNorm) is not held to 1e-5 where two of them cancel out.
NaN and infinity must stand at the same places, infinity with the same sign; shapes must be equal.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from caffe_port.errors import CaffePortError, printable
from caffe_port.typing import Array
from caffe_port.verification.references.trace import Trace

ATOL, RTOL = 1e-5, 1e-4

_CHUNK = 1 << 16
"""Elements treated at a time: float64 copies stay in the cache, whatever the top's size."""


@dataclass(frozen=True)
class Tolerance:
    """``|a - e| <= atol * u + rtol * |e|``, ``u = max(1, rms(e))``."""

    atol: float = ATOL
    rtol: float = RTOL

    def __post_init__(self) -> None:
        if not (self.atol >= 0 and self.rtol >= 0 and math.isfinite(self.atol) and math.isfinite(self.rtol)):
            raise CaffePortError(f"tolerances are finite and not negative, got atol {self.atol}, rtol {self.rtol}")


@dataclass(frozen=True)
class Difference:
    """How far one array is from another.

    Attributes:
        passed: the verdict.
        reason: why not, where numbers do not say it: another shape, NaN on one side, the layer raised.
        shape: of the candidate's array; None where there is none.
        greatest: the greatest ``|a - e|``; infinite where NaN or infinity stands on one side only; NaN where the
            shapes differ.
        at: its index; the first NaN or infinity that stands on one side only, where there is one.
        expected, actual: the values there.
        unit: what atol counts in: 1, or the root mean square of the reference's top where that is greater.
        needed_atol: the smallest atol that would pass, rtol being what it is.
        relative: ``||a - e|| / ||e||`` over the finite elements; infinite where the reference is zero and we are not.
        outside: how many elements are outside the tolerance.
        count: how many were compared.
    """

    passed: bool
    reason: str = ""
    shape: tuple[int, ...] | None = None
    greatest: float = 0.0
    at: tuple[int, ...] | None = None
    expected: float = 0.0
    actual: float = 0.0
    unit: float = 1.0
    needed_atol: float = 0.0
    relative: float = 0.0
    outside: int = 0
    count: int = 0


def failure(reason: str, shape: tuple[int, ...] | None = None) -> Difference:
    """A failed comparison without numbers."""
    return Difference(False, reason, shape, math.nan, None, math.nan, math.nan, 1.0, math.inf, math.inf)


def difference(expected: Array, actual: Array, tolerance: Tolerance | None = None) -> Difference:
    """Compares two arrays of any real dtype, element by element in float64.

    Args:
        expected: the reference's.
        actual: the candidate's, of the same shape.
        tolerance: default atol 1e-5, rtol 1e-4.
    """
    tolerance = tolerance or Tolerance()
    if expected.shape != actual.shape:
        return failure(f"shape {tuple(actual.shape)}, the reference has {tuple(expected.shape)}", tuple(actual.shape))
    e_all, a_all = np.ravel(expected), np.ravel(actual)
    greatest, at, needed = 0.0, 0, 0.0
    outside = one_sided = 0
    squares, squares_expected = 0.0, _sum_of_squares(e_all)
    unit = max(1.0, math.sqrt(squares_expected / e_all.size)) if e_all.size else 1.0
    allowed = tolerance.atol * unit if math.isfinite(unit) else tolerance.atol
    for start in range(0, e_all.size, _CHUNK):
        e, a = e_all[start : start + _CHUNK], a_all[start : start + _CHUNK]
        if np.array_equal(e, a):
            continue  # nothing but zeros would follow
        e, a = e.astype(np.float64), a.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.abs(a - e)
            slack = np.abs(e) * tolerance.rtol
        most = error.max()
        if not np.isfinite(most):
            finite = np.isfinite(a) & np.isfinite(e)
            wrong = ~finite & (a != e) & ~(np.isnan(a) & np.isnan(e))
            if not one_sided and wrong.any():
                greatest, at = math.inf, start + int(wrong.argmax())
            one_sided += int(wrong.sum())
            error[~finite] = slack[~finite] = 0.0
            most = error.max()
        if most > greatest:
            greatest, at = float(most), start + int(error.argmax())
        excess = float((error - slack).max())
        needed = max(needed, excess)
        if excess > 0.999 * allowed:
            outside += int((error > allowed + slack).sum())
        with np.errstate(over="ignore"):
            squares += float(np.square(error, out=error).sum())
    index = tuple(int(i) for i in np.unravel_index(at, expected.shape)) if e_all.size else None
    relative = math.sqrt(squares / squares_expected) if squares_expected else (math.inf if squares else 0.0)
    return Difference(
        passed=not outside and not one_sided,
        reason=f"NaN or infinity on one side only, in {one_sided} elements" if one_sided else "",
        shape=tuple(actual.shape),
        greatest=greatest,
        at=index,
        expected=float(e_all[at]) if e_all.size else 0.0,
        actual=float(a_all[at]) if e_all.size else 0.0,
        unit=unit,
        needed_atol=math.inf if one_sided else needed / unit,
        relative=relative,
        outside=outside + one_sided,
        count=int(e_all.size),
    )


def _sum_of_squares(values: Array) -> float:
    """Of the finite ones."""
    total = 0.0
    for start in range(0, values.size, _CHUNK):
        chunk = values[start : start + _CHUNK].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = float(np.square(chunk).sum())  # np.dot would start BLAS's threads for each piece
            if not math.isfinite(squares):
                squares = float(np.square(chunk[np.isfinite(chunk)]).sum())
        total += squares
    return total


@dataclass(frozen=True)
class Distance:
    """How far two float32 runs are from a float64 run, ``||a - t|| / ||t||``: rounding, measured.

    Attributes:
        candidate, reference: of each.
    """

    candidate: float
    reference: float

    @property
    def passed(self) -> bool:
        """Not more than twice as far as the reference; two last places of a float32 are luck, on either side."""
        return self.candidate <= 2 * max(self.reference, 2.0**-22)


@dataclass(frozen=True)
class Row:
    """One top of one layer.

    Attributes:
        layer, type, top, blob: which.
        where: ``file:line`` of the layer.
        free: the two nets each on their own: errors accumulate.
        isolated: the layer fed with the reference's own bottoms.
        note: why it was not compared, or what one should know of the figures.
        cause: what the layer seems to do wrong, where it is broken and a known slip explains it.
        by: who made the reference's figures, where it is another than the report's reference.
        distance: of both sides from a float64 run, where that was asked for; then it is part of the verdict.
    """

    layer: str
    top: int
    type: str = ""
    blob: str = ""
    where: str = ""
    free: Difference | None = None
    isolated: Difference | None = None
    note: str = ""
    cause: str = ""
    by: str = ""
    distance: Distance | None = None

    @property
    def status(self) -> str:
        """``"passed"``, ``"failed"`` or ``"not compared"``."""
        made = [d for d in (self.free, self.isolated) if d is not None]
        if not made:
            return "not compared"
        far = self.distance is not None and not self.distance.passed
        return "passed" if all(d.passed for d in made) and not far else "failed"

    @property
    def broken(self) -> bool:
        """The layer itself differs, not merely what came before it."""
        decisive = self.isolated or self.free
        return decisive is not None and not decisive.passed

    @property
    def needed_atol(self) -> float:
        """Of the worse of the two comparisons."""
        return max((d.needed_atol for d in (self.free, self.isolated) if d is not None), default=0.0)


@dataclass(frozen=True)
class Report:
    """What a verification found.

    Attributes:
        rows: every top of every layer, in the net's order.
        tolerance: what was allowed.
        reference, candidate: who was compared, in words.
        net: the net's name or file.
        phase: TEST or TRAIN.
        inputs: input blob -> what was fed, in words.
        provenance: files' checksums and versions.
        notes: what the user should hear of.
    """

    rows: tuple[Row, ...]
    tolerance: Tolerance
    reference: str
    candidate: str = ""
    net: str = ""
    phase: str = "TEST"
    inputs: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def _count(self, status: str) -> int:
        return sum(row.status == status for row in self.rows)

    @property
    def compared(self) -> int:
        return len(self.rows) - self.not_compared

    @property
    def failed(self) -> int:
        return self._count("failed")

    @property
    def not_compared(self) -> int:
        return self._count("not compared")

    @property
    def broken(self) -> list[Row]:
        """The tops that differ by themselves, not merely because of what came before."""
        return [row for row in self.rows if row.broken]

    @property
    def passed(self) -> bool:
        """Something was compared, and all of it agrees."""
        return self.compared > 0 and not self.failed

    @property
    def first(self) -> Row | None:
        """The first layer that diverges: broken itself if any is, else the first where accumulated error shows."""
        failed = [row for row in self.rows if row.status == "failed"]
        return next((row for row in failed if row.broken), failed[0] if failed else None)

    @property
    def worst(self) -> Row | None:
        """The row that needs the greatest tolerance."""
        compared = [row for row in self.rows if row.status != "not compared"]
        return max(compared, key=lambda row: row.needed_atol, default=None)

    def _summary(self) -> str:
        """Verdict, counts and the first layer that differs."""
        if not self.compared:
            return f"NOTHING COMPARED with {self.reference}: no top has a counterpart"
        rest = f", {self.not_compared} not compared" if self.not_compared else ""
        if self.passed:
            return f"PASSED: {self.compared} of {self.compared} compared tops agree with {self.reference}{rest}"
        first = f"; first: layer '{self.first.layer}' ({self.first.type})" if self.first else ""
        return f"FAILED: {self.failed} of {self.compared} compared tops differ from {self.reference}{rest}{first}"

    def __repr__(self) -> str:
        return printable(f"<Report of '{self.net}' (phase {self.phase}): {self._summary()}>")

    def _repr_html_(self) -> str:
        """For notebooks: the verdict, and what failed or was not compared; else the top nearest to failing."""
        colour = "#2da44e" if self.passed else "#cf222e"
        shown = [row for row in self.rows if row.status != "passed"] or ([self.worst] if self.worst else [])
        cells = [
            (
                f"{row.layer}:{row.top}" if row.top else row.layer,
                row.type,
                row.status,
                *(f"{d.greatest:.1e}" if d is not None else "" for d in (row.free, row.isolated)),
                row.cause or row.note or next((d.reason for d in (row.isolated, row.free) if d and d.reason), ""),
            )
            for row in shown[:_SHOWN]
        ]
        titles = ("layer", "type", "verdict", "free, greatest |a - e|", "isolated", "")
        lines = [f"<tr>{''.join(f'<td>{_escaped(cell)}</td>' for cell in line)}</tr>" for line in cells]
        more = f"<div>and {len(shown) - _SHOWN} more</div>" if len(shown) > _SHOWN else ""
        return (
            f"<div style='border-left: 6px solid {colour}; padding-left: 12px'>"
            f"<b>{_escaped(self.net)}</b>, phase {_escaped(self.phase)}<br><b>{_escaped(self._summary())}</b>"
            f"<table><tr>{''.join(f'<th>{title}</th>' for title in titles)}</tr>{''.join(lines)}</table>{more}</div>"
        )


_SHOWN = 10
"""Rows of a notebook's table; :func:`~caffe_port.verification.reports.html.to_html` makes a whole page."""


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def compare(
    reference: Trace, candidate: Trace, *, isolated: Trace | None = None, tolerance: Tolerance | None = None
) -> Report:
    """Compares two traces top by top.

    Args:
        reference: what is right.
        candidate: what ran freely on the same inputs.
        isolated: what the candidate's layers made of the reference's bottoms.
        tolerance: default atol 1e-5, rtol 1e-4.
    """
    tolerance = tolerance or Tolerance()
    isolated_tops = isolated.tops if isolated is not None else {}
    rows = []
    for key in _keys(reference.tops, candidate.tops):
        expected, free, alone = reference.tops.get(key), candidate.tops.get(key), isolated_tops.get(key)
        if expected is None or (free is None and alone is None):
            rows.append(Row(*key, note="not in the reference" if expected is None else "not in the candidate"))
            continue
        rows.append(
            Row(
                *key,
                free=None if free is None else difference(expected, free, tolerance),
                isolated=None if alone is None else difference(expected, alone, tolerance),
            )
        )
    names = [t.provenance.get("producer") or t.provenance.get("file", "") for t in (reference, candidate)]
    provenance = {
        f"{who} {k}": v
        for who, t in (("reference", reference), ("candidate", candidate))
        for k, v in t.provenance.items()
    }
    return Report(tuple(rows), tolerance, names[0], names[1], phase=reference.phase, provenance=provenance)


def _keys(first: Iterable[tuple[str, int]], second: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    return list(dict.fromkeys([*first, *second]))
