"""A verification as one self-contained HTML page: nothing is loaded from elsewhere, and no script but its own runs."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator

from caffe_port.errors import escaped
from caffe_port.verification.comparison import Difference, Report, Row
from caffe_port.verification.details import DECADES, Details
from caffe_port.verification.reports.drawings import COLORS, MEANING, bars, chart, graph, kind, maps, shortened, times
from caffe_port.verification.reports.terminal import verdict

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --paper: #fff; --card: #f6f8fa }
@media (prefers-color-scheme: dark) {
  :root { --ink: #f0f6fc; --soft: #9198a1; --line: #3d444d; --paper: #0d1117; --card: #151b23 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 1100px; padding: 24px }
@media (max-width: 600px) { body { padding: 12px } }
h1 { font-size: 22px; margin: 0 0 4px; overflow-wrap: anywhere } h2 { font-size: 17px; margin: 32px 0 8px }
.verdict { border-left: 6px solid var(--mark); background: var(--card); padding: 12px 16px; margin: 12px 0;
  font-weight: 600; overflow-wrap: anywhere }
.soft, figcaption { color: var(--soft); font-size: 13px } figure { margin: 0 } .scroll { overflow: auto }
.tall { max-height: 80vh; border: 1px solid var(--line); border-radius: 6px; padding: 6px } .wide { min-width: 640px }
table { border-collapse: collapse; width: 100%; font-size: 13px }
th { text-align: left; color: var(--soft); cursor: pointer; white-space: nowrap; position: sticky; top: -6px;
  background: var(--paper) }
th[aria-sort=ascending]::after { content: " \\2191" } th[aria-sort=descending]::after { content: " \\2193" }
td, th { padding: 3px 8px; border-bottom: 1px solid var(--line); vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td.name { white-space: nowrap } td.says { min-width: 160px }
#only:checked ~ .scroll tr.passed { display: none }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 5px }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 12px }
.maps div { display: flex; gap: 4px } .maps img { width: 72px; height: 72px; image-rendering: pixelated;
  border: 1px solid var(--line) }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif } svg .ink { fill: var(--ink) }
svg .grid { stroke: var(--line) } svg .edge { stroke: var(--soft); fill: none } svg .edge:hover { stroke-width: 3 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; font-size: 13px; margin: 0 }
dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
@media (max-width: 600px) { dl { grid-template-columns: 1fr } dt { margin-top: 6px } }
"""
_SCRIPT = """
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const up = head.ariaSort !== "ascending", body = head.closest("table").tBodies[0], at = head.cellIndex;
  const key = row => row.cells[at].dataset.sort ?? row.cells[at].textContent;
  const order = (a, b) => isNaN(key(a)) || isNaN(key(b)) ? key(a).localeCompare(key(b)) : key(a) - key(b);
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.ariaSort = up ? "ascending" : "descending";
  body.append(...[...body.rows].sort((a, b) => up ? order(a, b) : order(b, a)));
});
"""
"""Sorts the table of layers by the column that is clicked."""

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    f"script-src 'sha256-{base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()}'"
)


def to_html(report: Report, details: Details | None = None) -> str:
    """The page.

    Args:
        details: distributions, feature maps, shapes and the graph; without it, the page has the chart and the table.
    """
    details = details or Details()
    case = details.case
    mark = COLORS["passed" if report.passed else "broken"]
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{escaped(report.net)}: {'passed' if report.passed else 'failed'}</title><style>{_STYLE}</style>",
        f"<h1>{escaped(report.net)}</h1>",
        f"<div class='soft'>against {escaped(report.reference)}, phase {escaped(report.phase)}</div>",
        f"<div class='verdict' style='--mark:{mark}'>{escaped(verdict(report))}</div>",
        *_first(report),
        "<h2>Error by depth</h2>",
        chart(report),
        *(maps(details.pictures) if details.pictures else []),
        "<h2>Layers</h2>",
        _table(report, details),
        *(["<h2>The net</h2>", graph(report, case.spec.layers, case.shapes)] if case else []),
        *(["<h2>Notes</h2><ul>", *(f"<li>{escaped(n)}" for n in report.notes), "</ul>"] if report.notes else []),
        "<h2>Provenance</h2>",
        _provenance(report),
        f"<script>{_SCRIPT}</script></html>",
    ]
    return "\n".join(parts) + "\n"


def _first(report: Report) -> Iterator[str]:
    row = report.first
    if row is None:
        return
    yield f"<p>First to diverge: <b>{escaped(row.layer)}</b> ({escaped(row.type)}) "
    yield f"<span class='soft'>{escaped(row.where)}</span>"
    if row.cause:
        yield f"<br>Likely cause: {escaped(row.cause)}."
    decisive = row.isolated if row.isolated is not None and not row.isolated.passed else row.free
    if decisive is not None and decisive.reason:
        yield f"<br>{escaped(decisive.reason)}"
    yield "</p>"


# -- table ----------------------------------------------------------------------------------------------------------

_COLUMNS = {
    "parameters": "number of learnable values and statistics",
    "free": "largest difference when both nets run on their own: errors add up from layer to layer",
    "isolated": "largest difference when the layer is fed the reference's inputs",
    "needs atol": "the smallest absolute tolerance that would pass at the given rtol",
}
"""Columns of numbers, and what they mean: shown as tooltips."""


def _table(report: Report, details: Details) -> str:
    numeric = "".join(f"<th class='n' title='{escaped(meaning)}'>{name}" for name, meaning in _COLUMNS.items())
    head = f"<thead><tr><th>layer<th>type<th>shape{numeric}<th>distribution<th></tr></thead><tbody>"
    agree = sum(row.status == "passed" for row in report.rows)
    parts = []
    if 0 < agree < len(report.rows):
        checked = " checked" if not report.passed and agree > _MANY else ""
        parts.append(
            f"<input type='checkbox' id='only'{checked}><label for='only'> hide the {agree} that agree</label>"
        )
    parts += ["<div class='scroll tall'><table>", head]
    for place, row in enumerate(report.rows):
        name = f"{row.layer}:{row.top}" if row.top else row.layer
        needed = math.nan if row.status == "not compared" else row.needed_atol
        counts = details.histograms.get((row.layer, row.top))
        shape, parameters = _sizes(row, details)
        one, shown = kind(row), escaped(shortened(name))
        parts.append(
            f"<tr class='{one.replace(' ', '-')}'><td class='name' title='{escaped(row.where)}' data-sort='{place}'>"
            f"<span class='dot' title='{MEANING[one]}' style='background:{COLORS[one]}'></span>&nbsp;{shown}"
            f"<td>{escaped(row.type)}<td>{shape}<td class='n' data-sort='{parameters}'>"
            f"{f'{parameters:,}' if parameters else ''}{_cell(_greatest(row.free))}{_cell(_greatest(row.isolated))}"
            f"{_cell(needed)}<td>{bars(counts) if counts else ''}<td class='says'>{escaped(_remark(row))}</tr>"
        )
    decades = f"1e{DECADES[0]} to 1e{DECADES[-1]}"
    caption = f"free, isolated: max |a - e|. distribution: elements per decade of |a - e|, {decades}."
    return "\n".join(parts) + f"</tbody></table></div><p class='soft'>{caption} A click on a heading sorts.</p>"


_MANY = 20
"""More rows than this that agree are hidden at first, on a page of a net that differs."""


def _sizes(row: Row, details: Details) -> tuple[str, int]:
    """The shape of a top, and the number of its layer's parameters, shown once."""
    case = details.case
    if case is None:
        return "", 0
    shape = case.shapes.get((row.layer, row.top))
    blobs = case.blobs.get(row.layer, ()) if row.top == 0 else ()
    return "" if shape is None else times(shape), sum(blob.size for blob in blobs)


def _greatest(found: Difference | None) -> float:
    return math.nan if found is None else found.greatest


def _cell(value: float) -> str:
    """A number; one that is missing is sorted below all others."""
    if math.isnan(value):
        return "<td class='n' data-sort='-1'>"
    shown = "&infin;" if math.isinf(value) else "0" if value == 0 else f"{value:.1e}"
    return f"<td class='n' data-sort='{'1e999' if math.isinf(value) else f'{value:.6e}'}'>{shown}"


def _remark(row: Row) -> str:
    decisive = next((d for d in (row.isolated, row.free) if d is not None and not d.passed), None)
    return row.cause or row.note or (decisive.reason if decisive else "")


def _provenance(report: Report) -> str:
    allowed = f"{report.tolerance.atol:g} u + {report.tolerance.rtol:g} |e|"
    facts = {
        "reference": report.reference,
        "candidate": report.candidate,
        "tolerance": f"|a - e| <= {allowed}, u = max(1, rms of the top)",
        **{f"input {blob}": words for blob, words in report.inputs.items()},
        **report.provenance,
    }
    return "<dl>" + "".join(f"<dt>{escaped(k)}<dd>{escaped(v)}" for k, v in facts.items()) + "</dl>"
