"""Compares the blobs that a definition requires with those in a weights file, layer by layer.

Source: net.cpp (CopyTrainedLayersFrom).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caffe_port.definition.definition import Definition
from caffe_port.definition.stored_blobs import for_layers
from caffe_port.errors import SpecError
from caffe_port.formats.caffemodel import Weights
from caffe_port.formats.upgrade_v1 import V1_TYPES
from caffe_port.inspection.net_table import Dims, Options, Row, Survey, agree, full, survey
from caffe_port.signatures.signature import Trait, has, has_weights
from caffe_port.terminal import count
from caffe_port.typing import Shape

_CHANNELS = "channels"


@dataclass(frozen=True)
class Difference:
    """One layer, on both sides.

    Attributes:
        definition, weights: shapes of the blobs; None if that side has no such layer, or its blobs are unknown.
        verdict: ``equal``, ``differs``, ``missing`` (in the weights), ``extra`` (in the weights only) or ``unknown``
            (the definition leaves a length open).
        reason: what differs, in the prototxt's terms: definition / weights.
    """

    name: str
    type: str
    definition: tuple[Dims, ...] | None
    weights: tuple[Shape, ...] | None
    verdict: str
    reason: str = ""

    @property
    def is_cause(self) -> bool:
        """Whether the layer's own parameters must change; otherwise the difference follows from an earlier layer."""
        return self.verdict == "differs" and self.reason != _CHANNELS and not self.reason.startswith("inputs")


@dataclass(frozen=True)
class Diff:
    """A definition and weights, side by side.

    Attributes:
        definition, weights: the files.
        rows: every layer that has blobs on either side.
        own_fits: whether the weights are known to match the definition that they carry; None if they carry none.
        notes: warnings.
    """

    definition: str
    weights: str
    rows: tuple[Difference, ...]
    own_fits: bool | None
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many layers have each verdict."""
        verdicts = [row.verdict for row in self.rows]
        return {name: verdicts.count(name) for name in ("equal", "differs", "missing", "extra", "unknown")}

    @property
    def fits(self) -> bool:
        """Whether the weights can be loaded: at least one layer is on both sides, and none differs."""
        return not self.counts["differs"] and self.counts["equal"] + self.counts["unknown"] > 0

    @property
    def summary(self) -> str:
        """``7 of 14 layers differ; 2 are not in the weights.``"""
        counts = self.counts
        both = counts["equal"] + counts["differs"] + counts["unknown"]
        n = counts["differs"]
        parts = [f"{n} of {count(both, 'layer')} {'differs' if n == 1 else 'differ'}"]
        if not both:
            parts = ["no layer is in both"]
        for name, what in (("missing", "not in the weights"), ("extra", "only in the weights"), ("unknown", "unknown")):
            if counts[name]:
                parts.append(f"{counts[name]} {'is' if counts[name] == 1 else 'are'} {what}")
        return "; ".join(parts) + "."

    def to_json(self) -> dict[str, Any]:
        """For ``json.dumps``. Stable.

        Keys: ``definition``, ``weights`` (paths), ``fits``, ``own_definition_fits`` (null: there is none), ``counts``
        (``equal``, ``differs``, ``missing``, ``extra``, ``unknown``), ``notes``, and ``layers``: ``name``, ``type``,
        ``definition`` and ``weights`` (one array a blob; null where the side has no such layer), ``verdict``,
        ``reason``.
        """
        return {
            "definition": self.definition,
            "weights": self.weights,
            "fits": self.fits,
            "own_definition_fits": self.own_fits,
            "counts": self.counts,
            "layers": [dataclasses.asdict(row) for row in self.rows],
            "notes": list(self.notes),
        }


def compare(definition: Definition, weights: Weights, options: Options, known: Survey | None = None) -> Diff:
    """Compares every layer that has blobs on either side, in the definition's order, for both phases.

    Args:
        known: the survey of ``definition``, if that is the weights' own definition.

    Raises:
        SpecError: the definition's wiring is invalid.
    """
    if known is not None:
        rows, notes = _beside(definition, weights, options, _input_hints(known))
        return Diff(definition.path, weights.path, rows, not any(row.verdict == "differs" for row in rows), notes)
    own_fits: bool | None = None
    hints: Mapping[str, Shape] = {}
    if weights.net is not None:
        try:
            own = Definition.embedded(weights)
            hints = _input_hints(survey(own, Options(options.phase), weights))
            own_rows, _ = _beside(own, weights, Options(options.phase), hints)
            verdicts = {row.verdict for row in own_rows}
            own_fits = "equal" in verdicts and "differs" not in verdicts
        except SpecError:
            own_fits = False
    rows, notes = _beside(definition, weights, options, hints)
    return Diff(definition.path, weights.path, rows, own_fits, notes)


def _input_hints(known: Survey) -> dict[str, Shape]:
    shapes = {blob: full(known.shapes.get(producer)) for blob, producer in known.spec.inputs}
    return {blob: shape for blob, shape in shapes.items() if shape is not None}


def _beside(
    definition: Definition, weights: Weights, options: Options, hints: Mapping[str, Shape]
) -> tuple[tuple[Difference, ...], tuple[str, ...]]:
    rows, notes = _rows(definition, options, hints)
    stored = for_layers(weights, definition.net.layer).by_name()
    result = []
    for name in merged_order(list(rows), list(stored)):
        row = rows.get(name)
        held = tuple(tuple(blob.shape) for blob in stored[name].blobs) if name in stored else None
        if row is None:
            type_ = stored[name].type
            result.append(Difference(name, V1_TYPES.get(type_, type_), None, held, "extra"))
        elif held is not None:
            result.append(_judge(row, held))
        elif row.blobs:
            result.append(Difference(name, row.type, row.blobs, None, "missing"))
    return tuple(result), notes


def _rows(
    definition: Definition, options: Options, hints: Mapping[str, Shape]
) -> tuple[dict[str, Row], tuple[str, ...]]:
    """The layers of the requested phase, and those that only the other phase has."""
    first = survey(definition, options, None, hints)
    rows = {row.name: row for row in first.rows}
    other = "TRAIN" if options.phase == "TEST" else "TEST"
    try:
        more = {
            row.name: row for row in survey(definition, dataclasses.replace(options, phase=other), None, hints).rows
        }
    except SpecError:
        return rows, first.notes
    return {name: rows.get(name) or more[name] for name in merged_order(list(rows), list(more))}, first.notes


def merged_order(names: Sequence[str], others: Iterable[str]) -> list[str]:
    """Merges ``others`` into ``names``: each that is not among them comes after the name that it follows.

    >>> merged_order(["a", "b", "d"], ["a", "c", "d", "e"])
    ['a', 'c', 'b', 'd', 'e']
    """
    following: dict[str | None, list[str]] = {}
    known, last = set(names), None
    for other in others:
        if other in known:
            last = other
        else:
            following.setdefault(last, []).append(other)
    merged = list(following.get(None, ()))
    for name in names:
        merged += [name, *following.get(name, ())]
    return merged


def _judge(row: Row, held: tuple[Shape, ...]) -> Difference:
    asked = row.blobs
    if asked is None:
        return Difference(row.name, row.type, None, held, "unknown", "the definition's blobs are unknown")
    if len(asked) != len(held):
        blobs = f"blobs {len(asked)} / {len(held)}"
        bias = " (bias_term)" if abs(len(asked) - len(held)) == 1 and has_weights(row.type) else ""
        return Difference(row.name, row.type, asked, held, "differs", blobs + bias)
    verdicts = [agree(a, b, has(row.type, Trait.ROWS)) for a, b in zip(asked, held, strict=True)]
    if False in verdicts:
        return Difference(row.name, row.type, asked, held, "differs", _reason(row.type, asked[0], held[0]))
    return Difference(row.name, row.type, asked, held, "unknown" if None in verdicts else "equal")


def _reason(type_: str, asked: Dims, held: Shape) -> str:
    """What differs: num_output and the kernel; the number of inputs only if nothing else does, as it follows."""
    if asked is None or not has_weights(type_):
        return _CHANNELS
    ones = len(held) - len(asked)  # (1, 1, 10, 64) of Caffe's 4-D era is (10, 64)
    if ones > 0 and set(held[:ones]) == {1}:
        held = held[ones:]
    if len(asked) != len(held):
        return "different kind of layer"
    names = ("inputs", "num_output") if has(type_, Trait.SPREADS) else ("num_output", "inputs")
    parts = [f"{name} {a} / {b}" for name, a, b in zip(names, asked, held, strict=False) if a not in (b, None)]
    if asked[2:] != held[2:]:
        parts.append(f"kernel {'x'.join(map(str, asked[2:]))} / {'x'.join(map(str, held[2:]))}")
    causes = [part for part in parts if not part.startswith("inputs")]
    return ", ".join(causes or parts)
