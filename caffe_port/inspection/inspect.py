"""What a file contains: a net, its weights, a solver, a mean image; and how a net and weights differ. Without torch.

Unknown values are shown as ``?`` and explained in a note: inspecting an incomplete file does not fail.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port import terminal
from caffe_port.definition import model_archive, odd_values
from caffe_port.definition.chained import settled
from caffe_port.definition.definition import Definition
from caffe_port.definition.stored_blobs import for_layers
from caffe_port.errors import CaffePortError, SpecError, printable
from caffe_port.evaluation.known import known
from caffe_port.formats import caffemodel, prototxt
from caffe_port.formats.caffemodel import Weights
from caffe_port.formats.message import Message
from caffe_port.inspection.compare_blobs import Diff, compare
from caffe_port.inspection.net_table import Dims, Options, Row, Survey, survey
from caffe_port.storage.files import map_file
from caffe_port.terminal import count, human_bytes, table
from caffe_port.typing import Array, PathLike

__all__ = ["Diff", "Inspection", "Options", "diff", "inspect_file", "inspect_files", "kind_of", "render"]


_MOST_PLACES = 12
"""Places that are listed where dialects differ, and numbers without a meaning."""

_SUMMED = ("parameters", "statistics", "macs", "activation_bytes")


@dataclass(frozen=True)
class BlobNumbers:
    """Statistics of a blob: extremes and mean of its finite values (None if none), and how many are not finite."""

    layer: str
    index: int
    shape: tuple[int, ...]
    minimum: float | None
    maximum: float | None
    mean: float | None
    nans: int
    infinities: int


@dataclass(frozen=True)
class Inspection:
    """The contents of a file.

    Attributes:
        path: the file; for a net and its weights, that of the net.
        kind: ``net``, ``weights``, ``solver``, ``mean``, ``solverstate`` or ``archive``.
        bytes: size of the file.
        facts: labels and values, in display order.
        rows: layers, in the file's order.
        numbers: statistics of every stored blob, if requested.
        notes: warnings.
        errors: why the net cannot be built as it is; empty if it can.
    """

    path: str
    kind: str
    bytes: int
    facts: tuple[tuple[str, str], ...] = ()
    rows: tuple[Row, ...] = ()
    numbers: tuple[BlobNumbers, ...] = ()
    notes: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()

    @property
    def totals(self) -> dict[str, int]:
        """Sums over the layers, of the known values."""
        return {"layers": len(self.rows)} | {key: sum(getattr(r, key) or 0 for r in self.rows) for key in _SUMMED}

    @property
    def unknown(self) -> dict[str, int]:
        """How many layers are missing from each sum."""
        return {key: sum(getattr(row, key) is None for row in self.rows) for key in _SUMMED}

    def to_json(self) -> dict[str, Any]:
        """For ``json.dumps``. Stable; what is unknown is null.

        Keys: ``path``, ``kind``, ``bytes``, ``facts`` (object of strings), ``notes``, ``errors`` (arrays of strings),
        ``totals`` (``layers``, ``parameters``, ``statistics``, ``macs``, ``activation_bytes``), ``unknown`` (the same
        without ``layers``: how many layers are missing from each sum),
        ``layers`` (``name``, ``type``, ``bottoms``, ``tops``, ``shapes`` with one array per top, ``blobs`` with one
        array per blob, ``parameters``, ``statistics``, ``macs``, ``activation_bytes``, ``line``), and ``numbers``
        (``layer``, ``index``, ``shape``, ``minimum``, ``maximum``, ``mean``, ``nans``, ``infinities``).
        """
        return {
            "path": self.path,
            "kind": self.kind,
            "bytes": self.bytes,
            "facts": {label: "\n".join(v for name, v in self.facts if name == label) for label, _ in self.facts},
            "totals": self.totals,
            "unknown": self.unknown,
            "layers": [dataclasses.asdict(row) for row in self.rows],
            "numbers": [dataclasses.asdict(blob) for blob in self.numbers],
            "notes": list(self.notes),
            "errors": list(self.errors),
        }


# -- inspecting ---------------------------------------------------------------------------------------------------


def inspect_files(paths: Sequence[PathLike], options: Options | None = None) -> list[Inspection]:
    """The contents of each file; a net and the weights that follow it are inspected together.

    Raises:
        CaffePortError: a file cannot be read, or is of an unknown kind.
    """
    kinds = ["archive" if model_archive.is_archive(path) else kind_of(path) for path in paths]
    found: list[Inspection] = []
    for k, path in enumerate(paths):
        paired = kinds[k : k + 2] == ["net", "weights"]
        if kinds[max(k - 1, 0) : k + 1] != ["net", "weights"]:
            found.append(inspect_file(path, paths[k + 1] if paired else None, options))
    return found


def inspect_file(path: PathLike, weights: PathLike | None = None, options: Options | None = None) -> Inspection:
    """The contents of a file.

    Args:
        path: a net or solver prototxt, .caffemodel, .caffemodel.h5, .binaryproto, .solverstate, or a model archive of
            DIGITS (.tar.gz, .zip).
        weights: the weights of the net that ``path`` defines.
        options: how to inspect it.

    Raises:
        CaffePortError: the file cannot be read, or is of an unknown kind.
    """
    options = options or Options()
    if model_archive.is_archive(path):
        return _inspect_archive(path, options)
    kind = kind_of(path)
    if weights is not None and kind != "net":
        raise CaffePortError(f"is a {kind} file; expected a net's prototxt before the weights", str(path))
    if kind == "net":
        return _inspect_net(path, caffemodel.read(weights) if weights is not None else None, options)
    if kind == "weights":
        return _inspect_weights(path, options)
    return {"solver": _inspect_solver, "mean": _inspect_mean, "solverstate": _inspect_state}[kind](path)


_SOLVER_FIELDS = frozenset(
    (
        "base_lr",
        "lr_policy",
        "max_iter",
        "net",
        "net_param",
        "solver_mode",
        "solver_type",
        "snapshot_prefix",
        "test_iter",
        "test_net",
        "train_net",
        "train_net_param",
    )
)
_TOKEN = re.compile(r"""\#[^\n]*|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|[{}<>]|[A-Za-z_]\w*(?=\s*[:{<])""")


def kind_of(path: PathLike) -> str:
    """``net``, ``solver``, ``weights``, ``mean`` or ``solverstate``; by contents, for binary files by name.

    Raises:
        CaffePortError: the file cannot be read.
    """
    head = bytes(map_file(path)[:4096])
    name = Path(path).name.lower()
    text_by_name = name.endswith((".prototxt", ".txt"))
    if name.endswith(".binaryproto"):
        return "mean"
    if name.endswith(".caffemodel") or (not text_by_name and (b"\0" in head or head.startswith(caffemodel.HDF5_MAGIC))):
        return "solverstate" if ".solverstate" in name else "weights"
    depth, names = 0, set()
    for token in _TOKEN.findall(prototxt.read_text(path)):
        depth += (token in "{<") - (token in "}>")
        if not depth:
            names.add(token)
    return "solver" if names & _SOLVER_FIELDS and not names & {"layer", "layers"} else "net"


def _inspect_archive(path: PathLike, options: Options) -> Inspection:
    model = model_archive.read(path, ignore_fields=options.ignore_fields)
    definition = model.definition.without(options.ignore_fields).beside(model.weights)
    weights = for_layers(model.weights, definition.net.layer)
    found = survey(definition, options, weights)
    facts = [("format", "model archive"), *model.facts, *_net_facts(definition, found), _weights_fact(weights)]
    compared = compare(definition, weights, options)
    errors = list(found.errors)
    if not compared.fits and compared.rows:
        errors.append(f"the weights do not fit: {compared.summary}")
    notes = (*found.notes, *odd_values.notes(weights, definition.net.layer))
    size_, numbers = Path(path).stat().st_size, _numbers(weights, options)
    return Inspection(str(path), "archive", size_, tuple(facts), found.rows, numbers, notes, tuple(errors))


def _inspect_net(path: PathLike, weights: Weights | None, options: Options) -> Inspection:
    message = prototxt.read(path, "NetParameter", options.ignore_fields)
    form = "V2" if message.has("layer") else "V0" if any(old.has("layer") for old in message.layers) else "V1"
    definition = Definition.parse(message, str(path)).without(options.ignore_fields).beside(weights)
    found = survey(definition, options, weights)
    facts = [("format", f"prototxt, {form}"), *_net_facts(definition, found)]
    notes, errors = list(found.notes), list(found.errors)
    facts += _images_fact(definition, found, weights, options)
    if weights is not None:
        label, value = _weights_fact(weights)
        facts += [(label, f"{Path(weights.path).name}, {value}"), *_dialect_facts(weights)]
        compared = compare(definition, weights, options)
        if not compared.fits and compared.rows:
            errors.append(f"the weights do not fit: {compared.summary} See `caffe-port inspect --diff`.")
        elif compared.counts["missing"] or compared.counts["extra"]:
            notes.append(f"net and weights: {compared.summary} See `caffe-port inspect --diff`.")
        notes += odd_values.notes(weights, definition.net.layer)
    return Inspection(
        str(path),
        "net",
        Path(path).stat().st_size,
        tuple(facts),
        found.rows,
        _numbers(weights, options),
        tuple(notes),
        tuple(errors),
    )


def _inspect_weights(path: PathLike, options: Options) -> Inspection:
    weights = settled(caffemodel.read(path))
    facts = [("format", f"weights, {weights.format}"), *_dialect_facts(weights), _weights_fact(weights)]
    rows = tuple(_stored_row(layer.name, layer.type, layer.blobs) for layer in weights.layers)
    notes: list[str] = []
    errors: list[str] = []
    if weights.net is None:
        notes.append("HDF5 files contain weights only; the definition is in the prototxt")
    else:
        try:
            definition = Definition.embedded(weights).without(options.ignore_fields).beside(weights)
            found = survey(definition, options, weights)
        except SpecError as error:
            errors.append(f"the definition inside: {error}")
        else:
            saved = f", saved in phase {definition.saved_in}" if definition.saved_in else ""
            facts += [("definition", f"inside the file{saved}"), *_net_facts(definition, found)]
            rows, notes, errors = found.rows, list(found.notes), list(found.errors)
            facts += _images_fact(definition, found, weights, options)
            compared = compare(definition, weights, options, found)
            if not compared.fits and compared.rows:  # a net without parameters has none
                errors.append(f"the definition inside the file does not fit its blobs: {compared.summary}")
    notes += odd_values.notes(weights)
    size_ = Path(path).stat().st_size
    return Inspection(
        str(path), "weights", size_, tuple(facts), rows, _numbers(weights, options), tuple(notes), tuple(errors)
    )


def _images_fact(
    definition: Definition, found: Survey, weights: Weights | None, options: Options
) -> list[tuple[str, str]]:
    """How images become the net's input, as far as the files and the registry say."""
    specs = [found.spec]
    with contextlib.suppress(SpecError):  # the other phase makes no sense: the net may still be inspected in this one
        other = "TRAIN" if options.phase == "TEST" else "TEST"
        specs.append(definition.spec(other, options.level, options.stages, tuple(options.input_shapes)))
    try:
        what = known(specs, weights, None, [])
    except CaffePortError as error:
        return [("images", f"not known: {error.what}")]
    return [("images", f"{what.preprocessing} ({what.origin})")] if what is not None else []


def _dialect_facts(weights: Weights) -> list[tuple[str, str]]:
    """Whose numbers a file has, how it shows, what it leaves open, and what has no meaning here."""
    known = weights.recognition
    if known is None:  # as Caffe and any of its forks would write it
        return []
    facts = [("written by", f"{known.written_by}{' (--dialect)' if known.given else ''}")]
    facts += [("evidence", "; ".join(known.evidence))] if known.evidence else []
    left = (("open", (*known.open, *known.defaults)), ("unlikely", known.unlikely), ("unknown", known.unknown))
    for label, found in left:
        facts += [(label, str(one)) for one in found[:_MOST_PLACES]]
        if len(found) > _MOST_PLACES:
            facts.append((label, f"and {len(found) - _MOST_PLACES} more"))
    return facts


def _net_facts(definition: Definition, found: Survey) -> list[tuple[str, str]]:
    spec = found.spec
    others = len({layer.name for layer in definition.net.layer} - set(spec.by_name)) if not definition.saved_in else 0
    phase = f"{spec.phase}, {count(len(spec.layers), 'layer')}" + (
        f" ({others} more in other phases or stages)" if others else ""
    )
    blobs = {
        label: ", ".join(f"{blob} {dims_text(found.shapes.get(producer))}" for blob, producer in ends)
        for label, ends in (("inputs", spec.inputs), ("outputs", spec.outputs))
    }
    facts = [("net", spec.name), ("phase", phase), *blobs.items()]
    return [(label, value) for label, value in facts if value]


def _weights_fact(weights: Weights) -> tuple[str, str]:
    blobs = [blob for layer in weights.layers for blob in layer.blobs]
    kinds = "/".join(sorted({blob.dtype.name for blob in blobs}))
    held = f"{count(len(blobs), 'blob')} in {count(len(weights.layers), 'layer')}"
    return "weights", f"{count(weights.parameters, 'value')} ({kinds}), {held}"


def _stored_row(name: str, type_: str, blobs: Sequence[Array]) -> Row:
    """A layer of which only the blobs are known."""
    shapes = tuple(tuple(blob.shape) for blob in blobs)
    return Row(name, type_, blobs=shapes, parameters=sum(blob.size for blob in blobs), macs=None, activation_bytes=None)


def _numbers(weights: Weights | None, options: Options) -> tuple[BlobNumbers, ...]:
    if weights is None or not options.numbers:
        return ()
    return tuple(
        numbers_of(blob, layer.name, index) for layer in weights.layers for index, blob in enumerate(layer.blobs)
    )


def numbers_of(blob: Array, layer: str = "", index: int = 0) -> BlobNumbers:
    """Statistics of a blob, computed in pieces, because a blob may be larger than memory."""
    flat = blob.reshape(-1)
    low, high, total, finite, nans = np.inf, -np.inf, 0.0, 0, 0
    for start in range(0, flat.size, 1 << 20):
        with np.errstate(invalid="ignore"):  # a signaling NaN is a NaN
            piece = flat[start : start + (1 << 20)].astype(np.float64)
        good = piece[np.isfinite(piece)]
        nans += int(np.isnan(piece).sum())
        if good.size:
            low, high = min(low, float(good.min())), max(high, float(good.max()))
            total, finite = total + float(good.sum()), finite + good.size
    shape, infinities = tuple(blob.shape), flat.size - finite - nans
    if not finite:
        return BlobNumbers(layer, index, shape, None, None, None, nans, infinities)
    return BlobNumbers(layer, index, shape, low, high, total / finite, nans, infinities)


# -- other files --------------------------------------------------------------------------------------------------


def _inspect_solver(path: PathLike) -> Inspection:
    message = prototxt.read(path, "SolverParameter")
    facts = [("format", "solver")]
    facts += [(name, _value_text(value)) for name, value in message.items()]
    notes = [f"field '{name}' is unknown; Caffe and train refuse it" for name in message.unknown]
    nets = [getattr(message, name) for name in ("net", "train_net") if message.has(name)]
    notes += [
        f"the net is expected at '{net}', relative to the folder where the command runs"
        for net in nets
        if not os.path.exists(net)
    ]
    return Inspection(str(path), "solver", Path(path).stat().st_size, tuple(facts), notes=tuple(notes))


def _value_text(value: Any) -> str:
    if isinstance(value, Message):
        return "{ ... }"
    if isinstance(value, list):
        return ", ".join(_value_text(one) for one in value)
    if isinstance(value, bool):
        return str(value).lower()
    return prototxt.short_float(value) if isinstance(value, float) else str(value)


def _inspect_mean(path: PathLike) -> Inspection:
    mean = caffemodel.read_mean(path)
    numbers = numbers_of(mean)
    with np.errstate(invalid="ignore"):  # values that are not finite are reported below
        means = mean.mean(axis=(1, 2), dtype=np.float64)
    channels = ", ".join(f"{value:.4f}" for value in means)
    facts = [
        ("format", "mean image"),
        ("shape", f"{dims_text(mean.shape)} (channels, height, width)"),
        ("channel means", f"{channels} (in the order of the database: B, G, R for Caffe's own tools)"),
        ("range", f"{_number(numbers.minimum)} to {_number(numbers.maximum)}"),
    ]
    broken = numbers.nans + numbers.infinities
    errors = [f"{count(broken, 'value is', 'values are')} not finite"] if broken else []
    return Inspection(str(path), "mean", Path(path).stat().st_size, tuple(facts), errors=tuple(errors))


def _inspect_state(path: PathLike) -> Inspection:
    from caffe_port.formats import solverstate

    state = solverstate.read(path)
    shapes = ", ".join(dims_text(array.shape) for array in state.history[:6])
    size = sum(array.size for array in state.history)
    history = f"{count(len(state.history), 'blob')}, {count(size, 'value')}"
    facts = [
        ("format", "solver state"),
        ("iteration", f"{state.iter:,}"),
        ("weights", state.learned_net),
        ("history", history),
        ("shapes", shapes + (", ..." if len(state.history) > 6 else "")),
    ]
    return Inspection(str(path), "solverstate", Path(path).stat().st_size, tuple((k, v) for k, v in facts if v))


# -- a definition compared with weights ---------------------------------------------------------------------------


def diff(definition: PathLike, weights: PathLike, options: Options | None = None) -> Diff:
    """Compares a prototxt's blobs with those of weights, layer by layer. The two may be given in either order.

    Raises:
        CaffePortError: a file cannot be read, or the two are not a net and weights.
    """
    kinds = kind_of(definition), kind_of(weights)
    if kinds == ("weights", "net"):
        definition, weights = weights, definition
    elif kinds != ("net", "weights"):
        raise CaffePortError(f"expected a net's prototxt and weights, got a {kinds[0]} and a {kinds[1]} file")
    return compare(Definition.read(definition), caffemodel.read(weights), options or Options())


# -- as text ------------------------------------------------------------------------------------------------------


def render(result: Inspection | Diff, width: int | None = None) -> str:
    """A table for a terminal, ``width`` columns wide. Names are escaped.

    Without a width it is that of the terminal, 80 to 120; nothing is wrapped or shortened in a pipe.

    Below 120 columns the windows are left out, below 100 the wiring, below 90 the memory.
    """
    width = width or terminal.width(sys.stdout, most=120)
    lines = _diff_lines(result, width) if isinstance(result, Diff) else _inspection_lines(result, width)
    return "\n".join(lines)


def dims_text(dims: Dims) -> str:
    """``1x64x28x28``; ``?`` for an unknown length; ``scalar`` for no axes."""
    if dims is None:
        return "?"
    return "x".join("?" if n is None else str(n) for n in dims) or "scalar"


def _blobs_text(blobs: Sequence[Dims] | None) -> str:
    return "?" if blobs is None else ", ".join(map(dims_text, blobs))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}" if value else ""


def _messages(label: str, messages: Sequence[str], width: int) -> list[str]:
    """Notes or errors, wrapped; continuation lines are indented."""
    lines = []
    for message in messages:
        for k, line in enumerate(message.splitlines()):
            text = printable(line.strip()) if k else f"{label}: {printable(line)}"
            lines += textwrap.wrap(
                text,
                width,
                initial_indent="  " if k else "",
                subsequent_indent="  ",
                break_on_hyphens=False,
                break_long_words=False,
            )
    return lines


def _inspection_lines(found: Inspection, width: int) -> list[str]:
    label = max((len(name) for name, _ in found.facts), default=0)
    lines = [f"{printable(found.path)} ({human_bytes(found.bytes)})"]
    lines += [f"  {name:{label}}  {printable(value)}" for name, value in found.facts]
    if found.rows:
        lines += ["", *_layer_lines(found, width), *_total_lines(found)]
    if found.numbers:
        header = ("layer", "blob", "shape", "minimum", "maximum", "mean", "not finite")
        rows = [
            (
                b.layer,
                str(b.index),
                dims_text(b.shape),
                _number(b.minimum),
                _number(b.maximum),
                _number(b.mean),
                _count(b.nans + b.infinities),
            )
            for b in found.numbers
        ]
        lines += ["", *table(header, rows, (1, 3, 4, 5, 6), ((0, 12), (2, 10)), width)]
        broken = sum(bool(b.nans or b.infinities) for b in found.numbers)
        told = f"{count(broken, 'blob contains', 'blobs contain')} NaN or infinity"
        lines += [told if broken else "all values are finite"]
    messages = _messages("note", found.notes, width) + _messages("error", found.errors, width)
    return [*lines, "", *messages] if messages else lines


def _layer_lines(found: Inspection, width: int) -> list[str]:
    header = ("layer", "type", "wiring", "window", "top", "blobs", "parameters", "MACs", "memory")
    left_out = {k for k, least in ((2, 100), (3, 120), (8, 90)) if width < least}
    rows: list[tuple[str, ...]] = []
    before: tuple[str, ...] = ()
    for row in found.rows:
        memory = (
            "?" if row.activation_bytes is None else human_bytes(row.activation_bytes) if row.activation_bytes else ""
        )
        rows.append(
            (
                row.name,
                row.type,
                _wiring(row, before),
                row.window,
                ", ".join(map(dims_text, row.shapes)),
                _blobs_text(row.blobs),
                _count(row.parameters),
                _count(row.macs),
                memory,
            )
        )
        before = row.tops
    rows = [tuple("" if k in left_out else cell for k, cell in enumerate(row)) for row in rows]
    shrink = (2, 14), (0, 14), (1, 12), (5, 16), (3, 14), (2, 6), (4, 12), (0, 8), (3, 8)
    return table(header, rows, (6, 7, 8), shrink, width)


def _wiring(row: Row, before: Sequence[str]) -> str:
    """``a, b -> c``; empty for a simple chain: from the row above to a blob with the layer's own name, or in place."""
    plain_bottom = not row.bottoms or row.bottoms == tuple(before[:1])
    plain_top = row.tops in ((row.name,), row.bottoms, ())
    if plain_bottom and plain_top:
        return ""
    bottoms, tops = ", ".join(row.bottoms), ", ".join(row.tops)
    if row.bottoms == row.tops:
        return f"{bottoms} (in place)"
    return f"{bottoms} -> {tops}" if bottoms else f"-> {tops}"


def _total_lines(found: Inspection) -> list[str]:
    """The totals, in words."""
    totals, unknown = found.totals, found.unknown
    stored = 4 * (totals["parameters"] + totals["statistics"])
    learned = f"{'at least ' if unknown['parameters'] else ''}{totals['parameters']:,}"
    statistics = f" + {totals['statistics']:,} statistics" if totals["statistics"] else ""
    lines = ["", f"parameters   {learned}{statistics} ({human_bytes(stored)} as float32)"]
    if any(row.tops for row in found.rows):
        lines.append(f"MACs         {'?' if unknown['macs'] else format(totals['macs'], ',')}")
        memory = "?" if unknown["activation_bytes"] else human_bytes(totals["activation_bytes"])
        lines.append(f"activations  {memory} for all tops, as float32")
    return lines


def _diff_lines(found: Diff, width: int) -> list[str]:
    marks = {"equal": "", "differs": "!", "missing": "-", "extra": "+", "unknown": "?"}
    reasons = {"missing": "not in the weights", "extra": "only in the weights"}
    header = ("", "layer", "type", "prototxt", "weights", "prototxt / weights")
    rows = [
        (
            marks[row.verdict],
            row.name,
            row.type,
            "" if row.verdict == "extra" else _blobs_text(row.definition),
            "" if row.weights is None else _blobs_text(row.weights),
            row.reason or reasons.get(row.verdict, ""),
        )
        for row in found.rows
    ]
    lines = [f"prototxt  {printable(found.definition)}", f"weights   {printable(found.weights)}", ""]
    lines += [*table(header, rows, (), ((1, 14), (2, 12), (3, 16), (4, 16), (5, 16), (1, 8)), width), "", found.summary]
    causes = [row.name for row in found.rows if row.is_cause]
    if causes:
        lines.append(f"Change in the prototxt: {', '.join(map(printable, causes))}; other differences follow.")
    if not found.fits and found.own_fits:
        lines.append("The caffemodel carries its own definition, which matches: run without the prototxt.")
    messages = _messages("note", found.notes, width)
    return [*lines, "", *messages] if messages else lines
