"""The drawings of the HTML report: the error by depth, feature maps, and the net."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from caffe_port.errors import escaped
from caffe_port.spec import LayerSpec, Producer
from caffe_port.typing import Array
from caffe_port.verification.comparison import Report, Row
from caffe_port.verification.details import DECADES, Pictures

COLORS = {"passed": "#2da44e", "failed": "#e5a50a", "broken": "#cf222e", "not compared": "#8c959f"}
MEANING = {
    "passed": "agrees",
    "broken": "differs itself",
    "failed": "differs because an earlier layer does",
    "not compared": "not compared, or an input",
}


def kind(row: Row) -> str:
    """A key of :data:`COLORS`."""
    return "broken" if row.broken else row.status


# -- chart ----------------------------------------------------------------------------------------------------------


def chart(report: Report) -> str:
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

    parts = [f"<figure class='scroll'><svg class='wide' viewBox='0 0 {width} {height}' width='100%' role='img'>"]
    for decade in range(int(low), int(high) + 1, 2):
        at = y(10.0**decade)
        parts.append(
            f"<line class='grid' x1='{left}' x2='{width - 10}' y1='{at:.1f}' y2='{at:.1f}'/>"
            f"<text x='{left - 6}' y='{at + 4:.1f}' text-anchor='end'>1e{decade}</text>"
        )
    for name, color, radius in (("free", "#0969da", 3.5), ("isolated", "#bc4c00", 2.5)):
        found = [(i, row, getattr(row, name)) for i, row in enumerate(rows)]
        points = " ".join(f"{x(i):.1f},{y(d.relative):.1f}" for i, _, d in found if d is not None)
        parts.append(f"<polyline points='{points}' fill='none' stroke='{color}' stroke-opacity='.4'/>")
        for i, row, d in found:
            if d is not None:
                fill = color if d.passed else COLORS["broken"]
                tip = f"{row.layer} ({row.type}), {name}: relative error {d.relative:.2g}, max {d.greatest:.2g}"
                parts.append(
                    f"<circle cx='{x(i):.1f}' cy='{y(d.relative):.1f}' r='{radius}' fill='{fill}'>"
                    f"<title>{escaped(tip)}</title></circle>"
                )
    step = max(1, len(rows) // 10)
    for i in range(0, len(rows), step):
        parts.append(
            f"<text x='{x(i):.1f}' y='{height - 20}' text-anchor='middle'>{escaped(rows[i].layer[:12])}</text>"
        )
    parts.append(
        f"<circle cx='{left}' cy='{height - 5}' r='4' fill='#0969da'/><text x='{left + 8}' y='{height - 1}'>"
        f"free: errors accumulate</text><circle cx='{left + 170}' cy='{height - 5}' r='4' fill='#bc4c00'/>"
        f"<text x='{left + 178}' y='{height - 1}'>isolated: on the reference's bottoms</text>"
    )
    caption = "||a - e|| / ||e|| of every top, first layer on the left; red: outside the tolerance."
    return "".join(parts) + f"</svg><figcaption>{caption}</figcaption></figure>"


# -- feature maps ---------------------------------------------------------------------------------------------------


def maps(pictures: Pictures) -> Iterator[str]:
    """Feature maps of both sides, and their differences."""
    yield f"<h2>Feature maps of {escaped(pictures.layer)}</h2>"
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

_LINE, _LANE = 22, 9
"""Pixels from one layer to the next, and from one lane to the next."""


def graph(report: Report, layers: Sequence[LayerSpec], shapes: Mapping[Producer, Sequence[int]]) -> str:
    """The net from top to bottom, a line per layer. What is read further down runs in a lane on the left.

    Args:
        layers: in the net's order.
        shapes: of the tops.
    """
    worst: dict[str, str] = {}
    order = ("broken", "failed", "not compared", "passed")
    for row in report.rows:
        worst[row.layer] = min(worst.get(row.layer, "passed"), kind(row), key=order.index)
    place = {layer.name: i for i, layer in enumerate(layers)}
    readers: dict[Producer, list[int]] = {}
    for layer in layers:
        for producer in layer.producers:
            readers.setdefault(producer, []).append(place[layer.name])
    lanes, count = _lanes({p: (place[p[0]], found) for p, found in readers.items()})
    x = _LANE * (count + 1)
    parts = []
    for producer, found in readers.items():
        at, lane = place[producer[0]], lanes.get(producer)
        if lane is None:
            path = f"M{x} {_y(at)}V{_y(found[0])}"
        else:
            side = x - _LANE * (lane + 1)
            path = f"M{x} {_y(at)}Q{side} {_y(at)} {side} {_y(at) + _LINE // 2}V{_y(found[-1]) - _LINE // 2}"
            path += "".join(f"M{side} {_y(to) - _LINE // 2}Q{side} {_y(to)} {x} {_y(to)}" for to in found)
        names = ", ".join(layers[to].name for to in found)
        parts.append(f"<path class='edge' d='{path}'><title>{escaped(f'{producer[0]} to {names}')}</title></path>")
    widest = 0
    for layer in layers:
        y, color = _y(place[layer.name]), COLORS[worst.get(layer.name, "not compared")]
        made = ", ".join(times(shapes[layer.name, k]) for k in range(len(layer.tops)) if (layer.name, k) in shapes)
        name = shortened(layer.name)
        widest = max(widest, len(name) + len(layer.type) + len(made))
        parts.append(
            f"<circle cx='{x}' cy='{y}' r='5' fill='{color}'><title>{MEANING[worst.get(layer.name, 'not compared')]}"
            f"</title></circle><text x='{x + 12}' y='{y + 4}'><tspan class='ink'>{escaped(name)}</tspan>"
            f"<tspan dx='8'>{escaped(layer.type)}</tspan><tspan dx='8'>{escaped(made)}</tspan></text>"
        )
    size = f"width='{x + 40 + 7 * widest}' height='{_LINE * len(layers) + 4}'"
    return f"<figure class='scroll tall'><svg {size}>{''.join(parts)}</svg></figure>{_legend()}"


def _y(line: int) -> int:
    return _LINE * line + _LINE // 2


def _lanes(edges: Mapping[Producer, tuple[int, list[int]]]) -> tuple[dict[Producer, int], int]:
    """A lane for each producer that another layer than the next one reads, short ones first; and how many there are."""
    lanes: dict[Producer, int] = {}
    taken: list[list[tuple[int, int]]] = []
    far = [(found[-1] - at, at, found[-1], p) for p, (at, found) in edges.items() if found[-1] - at > 1]
    for _, begin, end, producer in sorted(far):
        free = (n for n, spans in enumerate(taken) if all(end <= b or e <= begin for b, e in spans))
        lane = next(free, len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((begin, end))
        lanes[producer] = lane
    return lanes, len(taken)


def times(shape: Sequence[int]) -> str:
    """(2, 3) as 2 x 3, with a multiplication sign."""
    return "\u00d7".join(map(str, shape)) or "scalar"


def shortened(text: str) -> str:
    """A name that is long, without its middle."""
    return text if len(text) <= 40 else f"{text[:24]}..{text[-14:]}"


def _legend() -> str:
    return (
        "<p class='soft'>"
        + " &nbsp; ".join(
            f"<span class='dot' style='background:{COLORS[one]}'></span> {text}" for one, text in MEANING.items()
        )
        + "</p>"
    )


# -- distributions --------------------------------------------------------------------------------------------------


def bars(counts: Sequence[int]) -> str:
    """A histogram; the heights are fourth roots, so that bins with few elements are visible."""
    most = max(counts) or 1
    found = []
    for i, count in enumerate(counts):
        if count:
            high = 16 * (count / most) ** 0.25
            what = "0" if i == 0 else f"1e{DECADES[0] + i - 1}"
            found.append(
                f"<rect x='{i * 6}' y='{17 - high:.1f}' width='5' height='{high:.1f}' fill='#0969da'>"
                f"<title>{count} at {what}</title></rect>"
            )
    return f"<svg width='{len(counts) * 6}' height='18'>{''.join(found)}</svg>"
