"""Compares two reports of the same net: what agrees now and did not, what does no longer, and what moved.

The reports are the JSON that :func:`~caffe_port.verification.reports.terminal.to_json` writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caffe_port.errors import CaffePortError
from caffe_port.storage.files import read_bytes
from caffe_port.verification.reports.terminal import FORMAT

_LIMIT = 256 << 20
_FACTOR = 10.0
"""A difference that grew or shrank by less than this is rounding, on another machine or with another version."""


@dataclass(frozen=True)
class Change:
    """One top of which the reports say different things.

    Attributes:
        layer, top, type: which top.
        before, after: its status, empty if that report does not have it.
        needed: the smallest absolute tolerance that passes, before and after; NaN if it was not compared.
    """

    layer: str
    top: int
    type: str
    before: str
    after: str
    needed: tuple[float, float]

    @property
    def worse(self) -> bool:
        """Whether it agreed and does no longer, or is no longer compared."""
        return self.before == "passed" and self.after != "passed"


@dataclass(frozen=True)
class Changes:
    """The differences of two reports.

    Attributes:
        tops: the tops that differ, in the order of the new report, those that it lacks last.
        facts: what else differs (reference, candidate, inputs, tolerance, provenance): before and after.
        passed: the verdicts.
    """

    tops: tuple[Change, ...]
    facts: Mapping[str, tuple[str, str]]
    passed: tuple[bool, bool]

    @property
    def worse(self) -> bool:
        """Whether the verdict or a top got worse."""
        return self.passed == (True, False) or any(change.worse for change in self.tops)


def read(path: str | Path) -> dict[str, Any]:
    """A report that ``caffe-port verify --json`` wrote.

    Raises:
        CaffePortError: it is something else.
    """
    hint = "caffe-port verify ... --json > FILE writes one."
    try:
        found = json.loads(read_bytes(path, _LIMIT))
    except (ValueError, RecursionError) as error:
        raise CaffePortError(f"is not JSON: {error}", str(path), hint) from None
    if not isinstance(found, dict) or found.get("format") != FORMAT or found.get("version") != 1:
        raise CaffePortError("is not a report of caffe-port verify (version 1)", str(path), hint)
    try:
        list(map(_of_row, found["rows"]))
        list(_facts(found))
        bool(found["passed"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CaffePortError(f"is a damaged report: {type(error).__name__}: {error}", str(path), hint) from None
    return found


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Changes:
    """Compares two reports from :func:`read`.

    A top counts as changed if its status changed, or if the tolerance that it needs changed tenfold and is not below
    a hundredth of the absolute tolerance.
    """
    old, new = (dict(map(_of_row, report["rows"])) for report in (before, after))
    small = min(report["tolerance"]["atol"] for report in (before, after)) / 100
    tops = []
    for key in (*new, *(key for key in old if key not in new)):
        was, now = old.get(key), new.get(key)
        needed = (was or _NONE)[2], (now or _NONE)[2]
        if was is None or now is None or was[1] != now[1] or _moved(*needed, small):
            kind, status = (now or was or _NONE)[0], ((was or _NONE)[1], (now or _NONE)[1])
            tops.append(Change(*key, kind, *status, needed))
    facts = dict(_facts(before)), dict(_facts(after))
    differ = {
        name: (facts[0].get(name, ""), facts[1].get(name, ""))
        for name in dict.fromkeys((*facts[0], *facts[1]))
        if facts[0].get(name) != facts[1].get(name)
    }
    return Changes(tuple(tops), differ, (bool(before["passed"]), bool(after["passed"])))


_NONE = ("", "", math.nan)


def _of_row(row: Mapping[str, Any]) -> tuple[tuple[str, int], tuple[str, str, float]]:
    """(layer, top) and (type, status, needed atol)."""
    compared = [d for d in (row["free"], row["isolated"]) if d is not None]
    needed = [math.inf if d["needed_atol"] is None else float(d["needed_atol"]) for d in compared]
    return (str(row["layer"]), int(row["top"])), (str(row["type"]), str(row["status"]), max(needed, default=math.nan))


def _moved(before: float, after: float, small: float) -> bool:
    low, high = sorted((before, after))
    return high > small and high > _FACTOR * low


def _facts(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("net", "phase", "reference", "candidate"):
        yield name, str(report[name])
    yield "tolerance", "atol {atol:g}, rtol {rtol:g}".format(**report["tolerance"])
    yield from ((f"input {blob}", str(words)) for blob, words in report["inputs"].items())
    yield from ((str(k), str(v)) for k, v in report["provenance"].items() if k not in ("command", "date"))
