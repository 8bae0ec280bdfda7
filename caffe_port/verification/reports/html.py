"""A verification as one self-contained HTML page: no scripts, fonts or images are loaded from elsewhere."""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from caffe_port.typing import Array
from caffe_port.verification.comparison import Difference, Report, Row
from caffe_port.verification.details import DECADES, Details, Pictures
from caffe_port.verification.reports.terminal import verdict

_COLOURS = {"passed": "#2da44e", "failed": "#e5a50a", "broken": "#cf222e", "not compared": "#8c959f"}
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --paper: #fff; --card: #f6f8fa }
@media (prefers-color-scheme: dark) {
  :root { --ink: #f0f6fc; --soft: #9198a1; --line: #3d444d; --paper: #0d1117; --card: #151b23 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 1100px; padding: 24px }
h1 { font-size: 22px; margin: 0 0 4px } h2 { font-size: 17px; margin: 32px 0 8px }
.verdict { border-left: 6px solid var(--mark); background: var(--card); padding: 12px 16px; margin: 12px 0;
  font-weight: 600 }
.soft, figcaption { color: var(--soft); font-size: 13px } figure { margin: 0 } .scroll { overflow: auto }
table { border-collapse: collapse; width: 100%; font-size: 13px }
th { text-align: left; color: var(--soft) }
td, th { padding: 3px 8px; border-bottom: 1px solid var(--line); vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td.name { word-break: break-all }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 5px }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 12px }
.maps div { display: flex; gap: 4px } .maps img { width: 72px; height: 72px; image-rendering: pixelated;
  border: 1px solid var(--line) }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif } svg .ink { fill: var(--ink) }
svg .grid { stroke: var(--line) } svg .edge { stroke: var(--soft); fill: none }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; font-size: 13px; margin: 0 }
dt { color: var(--soft) } dd { margin: 0; word-break: break-all }
"""


def to_html(report: Report, details: Details | None = None) -> str:
    """The page.

    Args:
        details: distributions, feature maps and the graph; without it the page has only the chart and the table.
    """
    details = details or Details()
    mark = _COLOURS["passed" if report.passed else "broken"]
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{_e(report.net)}: {'passed' if report.passed else 'failed'}</title><style>{_STYLE}</style>",
        f"<h1>{_e(report.net)}</h1><div class='soft'>against {_e(report.reference)}, phase {_e(report.phase)}</div>",
        f"<div class='verdict' style='--mark:{mark}'>{_e(verdict(report))}</div>",
        *_first(report),
        "<h2>Error by depth</h2>",
        _chart(report),
        *(_maps(details.pictures) if details.pictures else []),
        *(["<h2>The net</h2>", _graph(report, details)] if details.spec else []),
        "<h2>Layers</h2>",
        _table(report, details),
        *(["<h2>Notes</h2><ul>", *(f"<li>{_e(note)}" for note in report.notes), "</ul>"] if report.notes else []),
        "<h2>Provenance</h2>",
        _provenance(report),
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _e(text: str) -> str:
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return html.escape(shown, quote=True)


def _kind(row: Row) -> str:
    return "broken" if row.broken else row.status


def _first(report: Report) -> Iterator[str]:
    row = report.first
    if row is None:
        return
    yield f"<p>First to diverge: <b>{_e(row.layer)}</b> ({_e(row.type)}) <span class='soft'>{_e(row.where)}</span>"
    if row.cause:
        yield f"<br>Likely cause: {_e(row.cause)}."
    decisive = row.isolated if row.isolated is not None and not row.isolated.passed else row.free
    if decisive is not None and decisive.reason:
        yield f"<br>{_e(decisive.reason)}"
    yield "</p>"


def _number(value: float) -> str:
    return "&infin;" if math.isinf(value) else "&ndash;" if math.isnan(value) else "0" if value == 0 else f"{value:.1e}"


# -- chart ----------------------------------------------------------------------------------------------------------


def _chart(report: Report) -> str:
    """The relative error of every top, free and isolated, in the net's order on a logarithmic axis."""
    rows = [row for row in report.rows if row.status != "not compared"]
    if not rows:
        return "<p class='soft'>Nothing was compared.</p>"
    width, height, left, top, bottom = 1040, 260, 52, 12, 40
    low, high = -9.0, 1.0

    def x(i: int) -> float:
        return left + (width - left - 10) * (i + 0.5) / len(rows)

    def y(error: float) -> float:
        at = low if error <= 0 else high if not math.isfinite(error) else math.log10(error)
        return top + (height - top - bottom) * (high - min(max(at, low), high)) / (high - low)

    parts = [f"<figure class='scroll'><svg viewBox='0 0 {width} {height}' width='100%' role='img'>"]
    for decade in range(int(low), int(high) + 1, 2):
        at = y(10.0**decade)
        parts.append(
            f"<line class='grid' x1='{left}' x2='{width - 10}' y1='{at:.1f}' y2='{at:.1f}'/>"
            f"<text x='{left - 6}' y='{at + 4:.1f}' text-anchor='end'>1e{decade}</text>"
        )
    for name, colour, radius in (("free", "#0969da", 3.5), ("isolated", "#bc4c00", 2.5)):
        found = [(i, row, getattr(row, name)) for i, row in enumerate(rows)]
        points = " ".join(f"{x(i):.1f},{y(d.relative):.1f}" for i, _, d in found if d is not None)
        parts.append(f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-opacity='.4'/>")
        for i, row, d in found:
            if d is not None:
                fill = colour if d.passed else _COLOURS["broken"]
                tip = f"{row.layer} ({row.type}), {name}: relative error {d.relative:.2g}, max {d.greatest:.2g}"
                parts.append(
                    f"<circle cx='{x(i):.1f}' cy='{y(d.relative):.1f}' r='{radius}' fill='{fill}'>"
                    f"<title>{_e(tip)}</title></circle>"
                )
    step = max(1, len(rows) // 12)
    for i in range(0, len(rows), step):
        parts.append(f"<text x='{x(i):.1f}' y='{height - 20}' text-anchor='middle'>{_e(rows[i].layer[:14])}</text>")
    parts.append(
        f"<circle cx='{left}' cy='{height - 5}' r='4' fill='#0969da'/><text x='{left + 8}' y='{height - 1}'>"
        f"free: errors accumulate</text><circle cx='{left + 170}' cy='{height - 5}' r='4' fill='#bc4c00'/>"
        f"<text x='{left + 178}' y='{height - 1}'>isolated: on the reference's bottoms</text>"
    )
    caption = "||a - e|| / ||e|| of every top, first layer on the left; red: outside the tolerance."
    return "".join(parts) + f"</svg><figcaption>{caption}</figcaption></figure>"


# -- feature maps ---------------------------------------------------------------------------------------------------


def _maps(pictures: Pictures) -> Iterator[str]:
    yield f"<h2>Feature maps of {_e(pictures.layer)}</h2>"
    yield "<p class='soft'>Reference, candidate and difference (red: candidate greater, blue: reference greater).</p>"
    yield "<div class='maps'>"
    for channel, expected, actual in zip(pictures.channels, pictures.expected, pictures.actual, strict=True):
        both = np.concatenate([expected.ravel(), actual.ravel()]).astype(np.float64)
        both = both[np.isfinite(both)]
        low, high = (float(both.min()), float(both.max())) if both.size else (0.0, 1.0)
        images = [_grey(expected, low, high), _grey(actual, low, high)]
        if expected.shape == actual.shape:
            images.append(_signed(actual.astype(np.float64) - expected))
        shown = "".join(f"<img alt='' src='{_png(image)}'>" for image in images)
        size = "" if expected.shape == actual.shape else f", {expected.shape} and {actual.shape}"
        yield f"<figure><div>{shown}</div><figcaption>channel {channel}{size}</figcaption></figure>"
    yield "</div>"


def _grey(values: Array, low: float, high: float) -> Array:
    scaled = (np.nan_to_num(values.astype(np.float64)) - low) / ((high - low) or 1.0)
    return np.repeat((np.clip(scaled, 0, 1) * 255).astype(np.uint8)[:, :, None], 3, axis=2)


def _signed(values: Array) -> Array:
    values = np.nan_to_num(values, posinf=0, neginf=0)
    scaled = values / (float(np.abs(values).max(initial=0)) or 1.0)
    red, blue = 1 - np.clip(-scaled, 0, 1), 1 - np.clip(scaled, 0, 1)
    return (np.stack([red, np.minimum(red, blue), blue], axis=2) * 255).astype(np.uint8)


def _png(pixels: Array) -> str:
    """RGB pixels (H, W, 3) as a data URL."""
    height, width = pixels.shape[:2]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    raw = b"".join(b"\0" + row.tobytes() for row in pixels)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(data).decode()


# -- graph ----------------------------------------------------------------------------------------------------------


def _graph(report: Report, details: Details) -> str:
    """The net from left to right in rows, like lines of text, colored by result."""
    spec = details.spec
    assert spec is not None
    kinds: dict[str, str] = {}
    for row in report.rows:
        worse = ("broken", "failed", "not compared", "passed")
        kinds[row.layer] = min(kinds.get(row.layer, "passed"), _kind(row), key=worse.index)
    per_line, wide, high = 10, 104, 62
    place = {layer.name: (i % per_line * wide + 4, i // per_line * high + 8) for i, layer in enumerate(spec.layers)}
    lines = (len(spec.layers) + per_line - 1) // per_line
    parts = [f"<figure class='scroll'><svg viewBox='0 0 {per_line * wide} {lines * high + 8}' width='100%'>"]
    order = {layer.name: i for i, layer in enumerate(spec.layers)}
    for layer in spec.layers:
        x, y = place[layer.name]
        for producer, _ in layer.producers:
            sx, sy = place[producer]
            if order[layer.name] - order[producer] == 1 and y == sy:
                path = f"M{sx + 92} {sy + 17}H{x}"
            elif y == sy:
                path = f"M{sx + 46} {sy}C{sx + 46} {sy - 12} {x + 46} {sy - 12} {x + 46} {y}"
            else:
                path = f"M{sx + 46} {sy + 34}C{sx + 46} {sy + 50} {x + 46} {y - 16} {x + 46} {y}"
            parts.append(f"<path class='edge' d='{path}'/>")
    for layer in spec.layers:
        x, y = place[layer.name]
        colour = _COLOURS[kinds.get(layer.name, "not compared")]
        parts.append(
            f"<g><title>{_e(layer.name)} ({_e(layer.type)})</title>"
            f"<rect x='{x}' y='{y}' width='92' height='34' rx='4' stroke='{colour}' fill='{colour}'"
            f" fill-opacity='.18'/>"
            f"<text class='ink' x='{x + 6}' y='{y + 14}'>{_e(_short(layer.name))}</text>"
            f"<text x='{x + 6}' y='{y + 28}'>{_e(_short(layer.type))}</text></g>"
        )
    return "".join(parts) + "</svg></figure>" + _legend()


def _short(text: str) -> str:
    return text if len(text) <= 14 else f"{text[:7]}..{text[-5:]}"


_MEANING = {
    "passed": "agrees",
    "broken": "differs itself",
    "failed": "differs because an earlier layer does",
    "not compared": "not compared, or an input",
}


def _legend() -> str:
    return (
        "<p class='soft'>"
        + " &nbsp; ".join(
            f"<span class='dot' style='background:{_COLOURS[kind]}'></span> {text}" for kind, text in _MEANING.items()
        )
        + "</p>"
    )


# -- table ----------------------------------------------------------------------------------------------------------

_COLUMNS = {
    "free": "largest difference when both nets run on their own: errors add up from layer to layer",
    "isolated": "largest difference when the layer is fed the reference's inputs",
    "needs atol": "the smallest absolute tolerance that would pass at the given rtol",
}
"""Columns of numbers, and what they mean: shown as tooltips."""


def _table(report: Report, details: Details) -> str:
    numeric = "".join(f"<th class='n' title='{_e(meaning)}'>{name}" for name, meaning in _COLUMNS.items())
    head = f"<tr><th><th>layer<th>type{numeric}<th>distribution<th></tr>"
    parts = ["<div class='scroll'><table>", head]
    for row in report.rows:
        name = f"{row.layer}:{row.top}" if row.top else row.layer
        needed = "" if row.status == "not compared" else _number(row.needed_atol)
        bars = details.histograms.get((row.layer, row.top))
        kind = _kind(row)
        parts.append(
            f"<tr><td><span class='dot' title='{_MEANING[kind]}' style='background:{_COLOURS[kind]}'></span>"
            f"<td class='name'>{_e(name)}<td>{_e(row.type)}<td class='n'>{_greatest(row.free)}"
            f"<td class='n'>{_greatest(row.isolated)}<td class='n'>{needed}<td>{_bars(bars) if bars else ''}"
            f"<td>{_e(_remark(row))}</tr>"
        )
    decades = f"1e{DECADES[0]} to 1e{DECADES[-1]}"
    caption = f"free, isolated: max |a - e|. distribution: elements per decade of |a - e|, {decades}."
    return "\n".join(parts) + f"</table></div><p class='soft'>{caption}</p>"


def _greatest(found: Difference | None) -> str:
    return "" if found is None else _number(found.greatest)


def _remark(row: Row) -> str:
    decisive = next((d for d in (row.isolated, row.free) if d is not None and not d.passed), None)
    return row.cause or row.note or (decisive.reason if decisive else "")


def _bars(counts: Sequence[int]) -> str:
    """A histogram; the heights are fourth roots, so that bins with few elements are visible."""
    most = max(counts) or 1
    bars = []
    for i, count in enumerate(counts):
        if count:
            high = 16 * (count / most) ** 0.25
            what = "0" if i == 0 else f"1e{DECADES[0] + i - 1}"
            bars.append(
                f"<rect x='{i * 6}' y='{17 - high:.1f}' width='5' height='{high:.1f}' fill='#0969da'>"
                f"<title>{count} at {what}</title></rect>"
            )
    return f"<svg width='{len(counts) * 6}' height='18'>{''.join(bars)}</svg>"


def _provenance(report: Report) -> str:
    allowed = f"{report.tolerance.atol:g} u + {report.tolerance.rtol:g} |e|"
    facts = {
        "reference": report.reference,
        "candidate": report.candidate,
        "tolerance": f"|a - e| <= {allowed}, u = max(1, rms of the top)",
        **{f"input {blob}": words for blob, words in report.inputs.items()},
        **report.provenance,
    }
    return "<dl>" + "".join(f"<dt>{_e(k)}<dd>{_e(v)}" for k, v in facts.items()) + "</dl>"
