"""Where the time of a net goes, layer by layer, in Caffe and here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from turns import Measured

from caffe_port.api import Ported
from caffe_port.definition.definition import Definition
from caffe_port.emit.model_source import model
from caffe_port.emit.self_check import MODEL, WEIGHTS
from caffe_port.net import fusion
from caffe_port.storage.output_folder import Result

ONE = {("BatchNorm", "Scale"), ("ReLU", "Dropout")}
"""Layers that are one operation where they follow each other."""


@dataclass
class Row:
    """A layer, or layers that are one operation here; seconds of both."""

    name: str
    type: str
    caffe: float = 0.0
    ours: float = 0.0

    def to_gain(self) -> float:
        """Seconds that it takes beyond those at twice Caffe's speed."""
        return self.ours - self.caffe / 2


def mark(ported: Ported, made: Result, folder: Path) -> None:
    """Writes what convert has made once more, with calls that say the names of their tops."""
    folder.mkdir()
    os.link(made.folder / WEIGHTS, folder / WEIGHTS)
    (folder / MODEL).write_text(model(ported.net, channels_last=made.channels_last, marked=True).source)


def rows(folder: Path, cells: Mapping[str, Measured], trained: bool, by_type: bool) -> list[Row]:
    """The layers of a net in Caffe's order, or their types.

    Args:
        folder: where :func:`nets.write` has put the net.
        cells: what was measured of Caffe and of caffe-port.
        trained: of updates, not of forward passes.
    """
    for side, cell in cells.items():
        if cell.error:
            raise SystemExit(f"{side}: {cell.error}")
    file, phase = ("train.prototxt", "TRAIN") if trained else ("net.prototxt", "TEST")
    spec = Definition.read(folder / file).spec(phase)
    caffe, ours = cells["Caffe"].layers, cells["caffe-port"].layers
    types = {layer.name: layer.type for layer in spec.layers}
    pair = {name: (name, name) for name in caffe}
    for (first, _), reader in fusion.sole_readers(spec).items():
        if (types[first], reader.type) in ONE and (first in ours) != (reader.name in ours):
            pair[first] = pair[reader.name] = first, reader.name
    found: dict[str, Row] = {}
    for name in {**caffe, **ours}:
        names = dict.fromkeys(pair.get(name, (name,)))
        kind = " + ".join(types.get(one, "Split" if one.endswith("_split") else one) for one in names)
        key = kind if by_type else " + ".join(names)
        row = found.setdefault(key, Row(key, kind))
        row.caffe += caffe.get(name, 0.0)
        row.ours += ours.get(name, 0.0)
    return list(found.values())


def table(title: str, rows: Sequence[Row], most: int) -> list[str]:
    """The rows from which there is most to gain, in milliseconds, and the sum of all."""
    whole = Row("all layers", "", sum(row.caffe for row in rows), sum(row.ours for row in rows))
    lines = ["", f"| {title} | type | Caffe | caffe-port | times as fast | of its time |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: |")
    for row in [*sorted(rows, key=Row.to_gain, reverse=True)[:most], whole]:
        times = f"{row.caffe / row.ours:.2f}" if row.ours else ""
        figures = f"{row.caffe * 1e3:,.3f} | {row.ours * 1e3:,.3f} | {times} | {row.ours / whole.ours:.0%}"
        lines.append(f"| {row.name} | {row.type} | {figures} |")
    return lines
