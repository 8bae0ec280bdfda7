"""Renders a verification: a table for a terminal, JSON for programs.

The JSON is stable: members may be added, but none changes its meaning.

- ``format``: ``"caffe-port verification"``; ``version``: 1
- ``passed``: the verdict; ``compared``, ``failed``, ``not_compared``: numbers of tops
- ``net``, ``phase``, ``reference``, ``candidate``, ``inputs`` (blob -> words), ``provenance``, ``notes``,
  ``without`` (fields of the file that neither side follows)
- ``tolerance``: ``{"atol", "rtol"}``; a top passes where ``|a - e| <= atol * unit + rtol * |e|``
- ``first``: ``{"layer", "top"}`` of the first layer that diverges, or null
- ``rows``: ``{"layer", "top", "type", "blob", "where", "status", "note", "cause", "by", "distance", "rounding",
  "constant", "free", "isolated"}`` in the net's order; ``status`` is ``"passed"``, ``"failed"`` or ``"not compared"``;
  ``by`` is empty, or what was used instead of the reference; ``distance`` and ``rounding`` are null or
  ``{"candidate", "reference"}``; ``constant`` says that all values of the reference's top are equal; ``free`` and
  ``isolated`` are null or ``{"passed", "reason", "shape", "greatest", "at", "expected", "actual", "unit",
  "needed_atol", "relative", "outside", "count"}``, as in :class:`~caffe_port.verification.comparison.Difference`.
  Numbers that are not finite are null.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from caffe_port.errors import printable
from caffe_port.verification.comparison import Difference, Distance, Report, Row

FORMAT = "caffe-port verification"
_STYLES = {"passed": "green", "failed": "bold red", "not compared": "yellow"}
_MARKS = {"passed": "ok", "failed": "differs", "not compared": "-"}
_WORST_SHOWN = 5
_FOLLOWING_SHOWN = 3


def to_json(report: Report) -> str:
    """The report as JSON, indented."""
    value = {
        "format": FORMAT,
        "version": 1,
        "passed": report.passed,
        "compared": report.compared,
        "failed": report.failed,
        "not_compared": report.not_compared,
        "net": report.net,
        "phase": report.phase,
        "reference": report.reference,
        "candidate": report.candidate,
        "inputs": dict(report.inputs),
        "provenance": dict(report.provenance),
        "notes": list(report.notes),
        "without": list(report.without),
        "tolerance": dataclasses.asdict(report.tolerance),
        "first": {"layer": report.first.layer, "top": report.first.top} if report.first else None,
        "rows": [_row(row) for row in report.rows],
    }
    return json.dumps(value, indent=2, allow_nan=False)


def _row(row: Row) -> dict[str, Any]:
    value = {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}
    numbers = {name: _numbers(value[name]) for name in ("free", "isolated", "distance", "rounding")}
    return value | {"status": row.status} | numbers


def _numbers(found: Difference | Distance | None) -> dict[str, Any] | None:
    if found is None:
        return None
    values = dataclasses.asdict(found)
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def verdict(report: Report) -> str:
    """The result in one sentence."""
    rest = f"; {report.not_compared} not compared" if report.not_compared else ""
    if nothing := report.nothing():
        return nothing
    if report.constant:
        rest = f"; {report.constant} constant on both sides{rest}"
    if report.rounded:
        rest = f"; {report.rounded} free-running only within rounding{rest}"
    if report.passed:
        return f"{report.word}: {report.agreement}{report.whom()}{rest}"
    broken = list(dict.fromkeys(row.layer for row in report.broken))
    far = sum(row.distance is not None and not row.distance.passed for row in report.rows)
    if far and not broken:
        verb = "is" if far == 1 else "are"
        further = f"more than twice as far from a float64 run as {report.reference}"
        return f"{report.word}: {far} of {report.compared} compared tops {verb} {further}{rest}"
    differ = "differs" if report.failed == 1 else "differ"
    words = f"{report.word}: {report.failed} of {report.compared} compared tops {differ} from {report.reference}"
    if (others := report.whom()) and others.startswith(":"):
        rest = f"; compared{others[1:]}{rest}"
    if not broken:
        return f"{words}, but every layer agrees in isolation: rounding errors accumulate{rest}"
    named = ", ".join(f"'{name}'" for name in broken[:3]) + (", ..." if len(broken) > 3 else "")
    at_fault = f"; {len(broken)} layers are broken: {named}" if len(broken) > 1 else ""
    follow = report.failed - len(report.broken)
    verb = "differs" if follow == 1 else "differ"
    consequences = f"; {follow} {verb} only because an earlier layer does" if follow else ""
    return f"{words}, the first in layer '{broken[0]}'{at_fault}{consequences}{rest}"


def render(report: Report, console: Console, all_rows: bool = False) -> None:
    """Prints the report.

    Args:
        console: where to print; in color if it is a terminal.
        all_rows: print every top in the net's order, not only those that failed or were not compared and the worst
            that passed.
    """
    console.print(Text(printable(f"{report.net} against {report.reference}, phase {report.phase}"), style="bold"))
    for blob, words in report.inputs.items():
        console.print(Text(printable(f"input '{blob}': {words}")))
    shown = list(report.rows) if all_rows else _selection(report)
    if shown:
        console.print(_table(report, shown, console.width))
    hidden = len(report.rows) - len(shown)
    if hidden:
        agree = hidden - sum(row.status == "failed" for row in report.rows if row not in shown)
        differ = f", {hidden - agree} more differ" if agree < hidden else ""
        console.print(Text(f"{agree} more agree{differ}; --all shows every top", style="dim"))
    for note in report.notes:
        console.print(Text(printable(f"note: {note}"), style="dim"))
    if report.first:
        for line in _where_it_diverges(report.first):
            console.print(Text(printable(line), style="red"))
    console.print(Text(printable(_allowed(report)), style="dim"))
    console.print(Text(printable(verdict(report)), style=_STYLES["passed" if report.passed else "failed"]))


def as_text(report: Report, width: int = 100) -> str:
    """What :func:`render` prints, without color."""
    out = io.StringIO()
    render(report, Console(file=out, width=width, no_color=True))
    return out.getvalue()


def _selection(report: Report) -> list[Row]:
    """The broken tops, some of those that follow from them, those not compared, and the worst that passed."""
    following = [row for row in report.rows if row.status == "failed" and not row.broken]
    attention = [*report.broken, *following[:_FOLLOWING_SHOWN]]
    attention += [row for row in report.rows if row.status == "not compared"]
    passed = sorted((r for r in report.rows if r.status == "passed"), key=lambda row: -row.needed_atol)
    return attention + passed[:_WORST_SHOWN]


def _table(report: Report, rows: list[Row], width: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    cells = _columns(report, rows)
    if width < _NARROW:
        cells = _fitting(cells, width)
    for title, column in cells.items():
        text = title in ("layer", "type", _REMARK)
        kept = _longest(title, column) if width < _NARROW and title in ("layer", "type") else None
        table.add_column(
            title.strip(" "),
            justify="left" if text or title == _MARK else "right",
            no_wrap=not text,
            overflow="fold" if text else "ellipsis",
            width=kept,
        )
    for line in zip(*cells.values(), strict=True):
        table.add_row(*line)
    return table


_MARK, _REMARK = "", " "
_NARROW = 100
"""The width of a terminal below which columns of the table are left out, in the order of :data:`_LEAVING`."""
_LEAVING = ("free", "isolated", "max |a - e|", "type", "needs\natol", "needs atol")
_NAME, _WORDS = 32, 24
"""The width at which names are folded, and the minimum width of the remarks if any is that long."""


def _columns(report: Report, rows: list[Row]) -> dict[str, list[Text]]:
    """Title -> the cells, one per row."""
    both = any(row.free for row in report.rows) and any(row.isolated for row in report.rows)
    far = any(row.distance for row in report.rows)
    columns: dict[str, list[str]] = {
        "layer": [printable(f"{row.layer}:{row.top}" if row.top else row.layer) for row in rows],
        "type": [printable(row.type) for row in rows],
    }
    if both:
        columns["free"] = [_greatest(row.free) for row in rows]
        columns["isolated"] = [_greatest(row.isolated) for row in rows]
    else:
        columns["max |a - e|"] = [_greatest(row.free or row.isolated) for row in rows]
    needed = ["" if row.status == "not compared" else _number(row.needed_atol) for row in rows]
    columns["needs\natol" if far else "needs atol"] = needed
    if far:
        columns["net to\nfloat64"] = [_number(row.distance.candidate) if row.distance else "" for row in rows]
        columns["ref. to\nfloat64"] = [_number(row.distance.reference) if row.distance else "" for row in rows]
    cells = {title: [Text(cell) for cell in column] for title, column in columns.items()}
    cells[_MARK] = [
        Text("FAILED", _STYLES["failed"]) if row.broken else Text(_MARKS[row.status], _STYLES[row.status])
        for row in rows
    ]
    cells[_REMARK] = [Text(printable(_remark(row))) for row in rows]
    return cells


def _fitting(cells: dict[str, list[Text]], width: int) -> dict[str, list[Text]]:
    """The columns that fit; the least important are dropped first."""
    for title in (None, *_LEAVING):
        cells = {name: column for name, column in cells.items() if name != title}
        if sum(_longest(*column) for column in cells.items()) + 3 * len(cells) <= width:
            break
    return cells


def _longest(title: str, column: list[Text]) -> int:
    most = max(len(part) for part in (*title.split("\n"), *(cell.plain for cell in column)))
    return min(most, {"layer": _NAME, "type": _NAME, _REMARK: _WORDS}.get(title, most))


def _greatest(found: Difference | None) -> str:
    return "" if found is None else "-" if math.isnan(found.greatest) else _number(found.greatest)


def _remark(row: Row) -> str:
    decisive = next((d for d in (row.isolated, row.free) if d is not None and not d.passed), None)
    if row.distance is not None and not row.distance.passed and decisive is None:
        return "more than twice as far from float64 as the reference"
    if row.cause or row.note or decisive is None:
        return row.cause or row.note
    return decisive.reason or ("only because an earlier layer differs" if not row.broken else "")


def _where_it_diverges(row: Row) -> list[str]:
    decisive = row.isolated if row.isolated is not None and not row.isolated.passed else row.free or row.isolated
    assert decisive is not None
    words = f"first to diverge: layer '{row.layer}' ({row.type})" + (f", {row.where}" if row.where else "")
    if decisive.reason:
        words += f": {decisive.reason}"
    lines = [words, f"  likely cause: {row.cause}"] if row.cause else [words]
    if decisive.at is None:
        return lines
    share = f"{decisive.outside} of {decisive.count} elements are outside the tolerance"
    at = ", ".join(map(str, decisive.at))
    return [*lines, f"  at ({at}) it is {decisive.actual:.7g}, expected {decisive.expected:.7g}; {share}"]


def _allowed(report: Report) -> str:
    t = report.tolerance
    words = f"tolerance: |a - e| <= {t.atol:g} u + {t.rtol:g} |e|, u = max(1, rms of the top)"
    worst = report.worst
    if worst is None or not math.isfinite(worst.needed_atol):
        return words
    return f"{words}; the smallest atol that passes is {_number(worst.needed_atol)} ('{worst.layer}')"


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"
