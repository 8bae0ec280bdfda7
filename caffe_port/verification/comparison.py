"""Compares two arrays or two traces. Runs nothing.

A top passes if ``|a - e| <= atol * u + rtol * |e|`` for every element, in float64. ``u`` is 1, or the root mean square
of the reference's top if that is greater: rounding errors of a sum grow with its terms, so a net whose activations are
in the thousands (raw pixels, untrained BatchNorm) cannot be held to 1e-5 where two of them cancel out. NaN and infinity
must be in the same places, infinity with the same sign; shapes must be equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from caffe_port.errors import CaffePortError, escaped, printable
from caffe_port.signatures.signature import has_weights
from caffe_port.terminal import count
from caffe_port.typing import Array
from caffe_port.verification.references.trace import Trace

ATOL, RTOL = 1e-5, 1e-4

_CHUNK = 1 << 16
"""Elements per step: the float64 copies stay in the cache, whatever the top's size."""


@dataclass(frozen=True)
class Tolerance:
    """``|a - e| <= atol * u + rtol * |e|``, ``u = max(1, rms(e))``."""

    atol: float = ATOL
    rtol: float = RTOL

    def __post_init__(self) -> None:
        if not (self.atol >= 0 and self.rtol >= 0 and math.isfinite(self.atol) and math.isfinite(self.rtol)):
            raise CaffePortError(f"tolerances must be finite and not negative; got atol {self.atol}, rtol {self.rtol}")


@dataclass(frozen=True)
class Difference:
    """The difference between two arrays.

    Attributes:
        passed: the verdict.
        reason: why it failed, if the numbers do not say so: another shape, NaN on one side, the layer raised.
        shape: the shape of the candidate's array; None if there is none.
        greatest: the largest ``|a - e|``; infinite if NaN or infinity is on one side only; NaN if the shapes differ.
        at: its index; if NaN or infinity is on one side only, the index of the first such element.
        expected, actual: the values there.
        unit: the unit of atol: 1, or the root mean square of the reference's top if that is greater.
        needed_atol: the smallest atol that would pass at the given rtol.
        relative: ``||a - e|| / ||e||`` over the finite elements; infinite if only the reference is zero.
        outside: the number of elements outside the tolerance.
        count: the number of elements compared.
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
        expected: the reference's array.
        actual: the candidate's array, of the same shape.
        tolerance: default atol 1e-5, rtol 1e-4.
    """
    tolerance = tolerance or Tolerance()
    if expected.shape != actual.shape:
        return failure(f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}", tuple(actual.shape))
    e_all, a_all = np.ravel(expected), np.ravel(actual)
    greatest, at, needed = 0.0, 0, 0.0
    outside = one_sided = 0
    squares, squares_expected = 0.0, _sum_of_squares(e_all)
    unit = max(1.0, math.sqrt(squares_expected / e_all.size)) if e_all.size else 1.0
    allowed = tolerance.atol * unit if math.isfinite(unit) else tolerance.atol
    for start in range(0, e_all.size, _CHUNK):
        e, a = e_all[start : start + _CHUNK], a_all[start : start + _CHUNK]
        if np.array_equal(e, a):
            continue  # all differences are 0
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
        reason=f"NaN or infinity on one side only, in {count(one_sided, 'element')}" if one_sided else "",
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
    """The sum of squares of the finite values."""
    total = 0.0
    for start in range(0, values.size, _CHUNK):
        chunk = values[start : start + _CHUNK].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = float(np.square(chunk).sum())  # np.dot would start BLAS threads for each chunk
            if not math.isfinite(squares):
                squares = float(np.square(chunk[np.isfinite(chunk)]).sum())
        total += squares
    return total


@dataclass(frozen=True)
class Distance:
    """The measured rounding error: how far two float32 runs are from a float64 run, ``||a - t|| / ||t||``.

    Attributes:
        candidate, reference: the distance of each run.
    """

    candidate: float
    reference: float

    @property
    def passed(self) -> bool:
        """Whether the candidate is at most twice as far as the reference, or within two last places of a float32."""
        return self.candidate <= 2 * max(self.reference, 2.0**-22)

    @property
    def is_rounding(self) -> bool:
        """Whether rounding explains what separates two runs of one net, the truth being its own run in float64: then
        the reference is there too, or about as far from it as the net's float32 run.
        """
        return self.reference <= _SPREAD * max(self.candidate, 2.0**-22)


@dataclass(frozen=True)
class PortDistance(Distance):
    """The same of a port, where the truth is the float64 run of the net: rounding explains the difference if the port
    is there too, or about as far from it as float32 runs of the net are (``reference``).
    """

    @property
    def is_rounding(self) -> bool:
        return self.candidate <= _SPREAD * max(self.reference, 2.0**-22)


_SPREAD = 16
"""By how much the rounding errors of two float32 runs may differ: libraries add the terms of a sum in other orders, and
the error of one that adds them one by one grows faster than that of one that adds blocks."""


def says_something(values: Array) -> bool:
    """Whether equality with these values shows anything: a top of equal numbers can be had from many nets."""
    flat = np.ravel(values)
    return bool(flat.size) and bool(flat[0] != 0 if flat.size == 1 else (flat != flat[0]).any())


@dataclass(frozen=True)
class Row:
    """One top of one layer.

    Attributes:
        layer, type, top, blob: which top of which layer.
        where: ``file:line`` of the layer.
        free: the difference when both nets run on their own: errors accumulate.
        isolated: the difference when the layer is fed the reference's bottoms.
        note: why it was not compared, or a remark on the comparison.
        cause: the likely mistake, if the layer is broken and a known porting mistake explains it.
        by: what computed the expected values, if not the report's reference.
        distance: the distance of both sides from a float64 run, if requested; it is then part of the verdict.
        rounding: the largest distance of both sides from a float64 run of the net, in the unit of atol, if only the
            free runs differ; if that is rounding, the top passes.
        constant: whether all values of the reference's top are equal, which shows little.
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
    rounding: Distance | None = None
    constant: bool = False

    @property
    def status(self) -> str:
        """``"passed"``, ``"failed"`` or ``"not compared"``."""
        made = [d for d in (self.free, self.isolated) if d is not None]
        if not made:
            return "not compared"
        far = self.distance is not None and not self.distance.passed
        agrees = all(d.passed for d in made) or self.rounded
        return "passed" if agrees and not far else "failed"

    @property
    def rounded(self) -> bool:
        """Whether the layer agrees, and the free runs differ by no more than rounding."""
        return self.rounding is not None and self.rounding.is_rounding and not self.broken

    @property
    def broken(self) -> bool:
        """Whether the layer itself differs, not only because an earlier layer does."""
        decisive = self.isolated or self.free
        return decisive is not None and not decisive.passed

    @property
    def needed_atol(self) -> float:
        """The larger of the two comparisons."""
        return max((d.needed_atol for d in (self.free, self.isolated) if d is not None), default=0.0)


@dataclass(frozen=True)
class Report:
    """The result of a verification.

    Attributes:
        rows: every top of every layer, in the net's order.
        tolerance: the tolerance of the comparison.
        reference, candidate: the names of the two sides.
        net: the net's name or file.
        phase: TEST or TRAIN.
        inputs: input blob -> description of what was fed.
        provenance: checksums of the files, and versions.
        notes: warnings.
        without: names of fields in the file that neither side follows; the verdict names them.
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
    without: tuple[str, ...] = ()

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
        """The tops that are wrong themselves, not only because an earlier layer differs."""
        return [row for row in self.rows if row.broken]

    @property
    def rounded(self) -> int:
        """Tops that agree, and whose free runs differ by no more than rounding."""
        return sum(row.rounded for row in self.rows)

    @property
    def constant(self) -> int:
        """Tops that agree, and are constant on both sides."""
        return sum(row.constant and row.status == "passed" for row in self.rows)

    @property
    def vacuous(self) -> bool:
        """Whether nothing that was compared could have shown a difference: the tops of all layers with parameters, or
        of all layers where there are none, are constant.
        """
        compared = [row for row in self.rows if row.status != "not compared"]
        decisive = [row for row in compared if has_weights(row.type)] or compared
        return all(row.constant for row in decisive)

    @property
    def passed(self) -> bool:
        """Whether something was compared that could differ, and all of it agrees."""
        return not self.failed and not self.vacuous

    @property
    def word(self) -> str:
        """PASSED or FAILED; and the fields without which that is so."""
        names = " and ".join(f"'{name}'" for name in self.without)
        return f"{'PASSED' if self.passed else 'FAILED'}{' without ' + names if names else ''}"

    @property
    def first(self) -> Row | None:
        """The first layer that diverges: the first broken one or, if none is, the first with an accumulated error."""
        failed = [row for row in self.rows if row.status == "failed"]
        return next((row for row in failed if row.broken), failed[0] if failed else None)

    @property
    def worst(self) -> Row | None:
        """The row that needs the largest tolerance."""
        compared = [row for row in self.rows if row.status != "not compared"]
        return max(compared, key=lambda row: row.needed_atol, default=None)

    def nothing(self) -> str:
        """Why the comparison says nothing; empty if it says something."""
        if not self.compared:
            return f"NOTHING COMPARED with {self.reference}: no top has a counterpart"
        if self.vacuous and not self.failed:
            equal = f"{count(self.constant, 'top')} constant on both sides"
            return f"NOTHING PROVEN against {self.reference}: {equal}, whatever the layers do; give weights or an input"
        return ""

    @property
    def agreement(self) -> str:
        """``all 12 compared tops agree``."""
        return "the only compared top agrees" if self.compared == 1 else f"all {self.compared} compared tops agree"

    def whom(self) -> str:
        """What the compared tops agree with: " with X", or ": 10 with X, 1 with Y"."""
        who = [row.by or self.reference for row in self.rows if row.status != "not compared"]
        each = [(name, who.count(name)) for name in dict.fromkeys((self.reference, *who)) if name in who]
        if len(each) < 2:
            return f" with {each[0][0] if each else self.reference}"
        return ": " + ", ".join(f"{number} with {name}" for name, number in each)

    def _summary(self) -> str:
        """The verdict, the counts and the first layer that differs."""
        if nothing := self.nothing():
            return nothing
        rest = f"; {self.not_compared} not compared" if self.not_compared else ""
        if self.passed:
            return f"{self.word}: {self.agreement}{self.whom()}{rest}"
        differ = "differs" if self.failed == 1 else "differ"
        first = f", the first in layer '{self.first.layer}' ({self.first.type})" if self.first else ""
        return (
            f"{self.word}: {self.failed} of {self.compared} compared tops {differ} from {self.reference}{first}{rest}"
        )

    def __repr__(self) -> str:
        return printable(f"<Report of '{self.net}' (phase {self.phase}): {self._summary()}>")

    def _repr_html_(self) -> str:
        """For notebooks: the verdict and the tops that failed or were not compared, or the one closest to failing."""
        color = "#2da44e" if self.passed else "#cf222e"
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
        titles = ("layer", "type", "verdict", "free, max |a - e|", "isolated, max |a - e|", "")
        lines = [f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in line)}</tr>" for line in cells]
        more = f"<div>and {len(shown) - _SHOWN} more</div>" if len(shown) > _SHOWN else ""
        return (
            f"<div style='border-left: 6px solid {color}; padding-left: 12px'>"
            f"<b>{escaped(self.net)}</b>, phase {escaped(self.phase)}<br><b>{escaped(self._summary())}</b>"
            f"<table><tr>{''.join(f'<th>{title}</th>' for title in titles)}</tr>{''.join(lines)}</table>{more}</div>"
        )


_SHOWN = 10
"""Rows in a notebook's table; :func:`~caffe_port.verification.reports.html.to_html` writes a whole page."""


def compare(
    reference: Trace, candidate: Trace, *, isolated: Trace | None = None, tolerance: Tolerance | None = None
) -> Report:
    """Compares two traces top by top.

    Args:
        reference: the expected values.
        candidate: a free run on the same inputs.
        isolated: what the candidate's layers compute from the reference's bottoms.
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
