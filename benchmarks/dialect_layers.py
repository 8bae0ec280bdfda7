"""Reads one-field layers of every dialect of Caffe, and whole nets: how many are read as their writer meant them.

    python benchmarks/dialect_layers.py                all (minutes)
    python benchmarks/dialect_layers.py --every 20     each 20th
    python benchmarks/dialect_layers.py --list FILE    what is not right, a line each
    python benchmarks/dialect_layers.py --publish      writes the figures into docs/dialects.md

For each schema of shared/dialects ($CAFFE_PORT_SHARED), each field of its LayerParameter and each field of its message:
a file of one layer, of a type that owns the field, with that field alone. It is written from the source, without
caffe-port's table. Outcomes:

right     the value is where the field of that name is
reported  caffe-port's schema has no such field; the number is reported with who uses it
unknown   it has, and the number is reported all the same
noted     read as something else, with a note that names the writer's reading, or reports a number or a value
silent    read as something else, without a word
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port.formats import recognition
from caffe_port.formats.dialects import ALIASES, Dialect, as_text, dialects, find
from caffe_port.formats.message import Message, schema
from caffe_port.formats.upgrade_v1 import V1_TYPES
from caffe_port.signatures.signature import SIGNATURES

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
sys.path.insert(0, str(Path(__file__).parent))
import dialect_nets
import make_dialects
from dialect_nets import delimited, varint
from make_dialects import PAGE, RENAMED, _schema

SHARED = Path(os.environ.get("CAFFE_PORT_SHARED", Path(__file__).parents[2] / "shared"))
_FIXED = {"float": "<f", "fixed32": "<I", "double": "<d"}


def written(row: list[Any], messages: Any, enums: Any) -> tuple[bytes, Any]:
    """The bytes of a field with a value that is not its default, and that value; a message holds one field."""
    number, type_, label, default = row[:4]
    packed = label == "repeated" and len(row) > 4 and row[4] == "packed"
    if type_ in messages:
        inner = next((r for r in messages[type_].values() if r[1] not in messages), None)
        return delimited(number, b"" if inner is None else written(inner, messages, enums)[0]), ...
    if type_ in ("string", "bytes"):
        return delimited(number, b"x"), "x"
    if type_ in _FIXED:
        value: Any = 3 if type_ == "fixed32" else 0.25
        payload = struct.pack(_FIXED[type_], value)
        return (
            delimited(number, payload) if packed else varint(number << 3 | (5 if len(payload) == 4 else 1)) + payload
        ), value
    if type_ == "bool":
        value = default != "true"
        raw = int(value)
    elif type_.startswith("enum "):
        values = enums.get(type_[5:], {"?": 0})
        value = next((n for n, v in sorted(values.items(), key=lambda i: -i[1]) if n != default), next(iter(values)))
        raw = values[value]
    else:
        value = raw = 3 if default != "3" else 2
    return (delimited(number, varint(raw)) if packed else varint(number << 3) + varint(raw)), value


def type_of(field: str) -> str:
    """A layer type that reads a field of LayerParameter."""
    types = [name for name, record in SIGNATURES.items() if field in record.messages]
    types = types or [name for name, record in SIGNATURES.items() if field in record.also]
    words = field.removesuffix("_param").replace("_", "")
    exact = [name for name in types if name.lower() == words]
    return (exact or types or ["".join(w.capitalize() for w in field.removesuffix("_param").split("_"))])[0]


def layers(source: dict[str, Any], baseline: dict[str, Any]) -> Iterator[tuple[str, list[str], Any, bytes]]:
    """(layer type, path of the field, its value, the file) of a schema."""
    messages, enums = _schema(source, baseline)
    old = source.get("era") == "V1"
    kind, numbers = ("V1LayerParameter", (4, 2)) if old else ("LayerParameter", (1, 100))
    types = {V1_TYPES.get(n, n.replace("_", "")).lower(): v for n, v in enums["V1LayerParameter.LayerType"].items()}
    for name, row in messages[kind].items():
        if row[0] < 100 and (row[1] == "string" or name in ("loss_weight", "phase", "propagate_down")) and not old:
            continue
        if name in ("param", "blobs", "include", "exclude", "transform_param") or row[1] in (
            "BlobProto",
            "NetStateRule",
        ):
            continue
        type_ = type_of(name)
        place = RENAMED.get(source["name"], {}).get(f"LayerParameter.{name}", name)
        head = delimited(numbers[0], b"one")
        if not old:
            head += delimited(2, type_.encode())
        elif type_.lower() in types and row[1] in messages and row[1] != "V0LayerParameter":
            head += varint(5 << 3) + varint(types[type_.lower()])
        else:
            continue
        if row[1] not in messages:
            data, value = written(row, messages, enums)
            yield type_, [name], value, delimited(numbers[1], head + data)
            continue
        for inner, one in messages[row[1]].items():
            data, value = written(one, messages, enums)
            yield type_, [place, inner], value, delimited(numbers[1], head + delimited(row[0], data))


def has_place(path: list[str], message: str = "LayerParameter") -> bool:
    """Whether caffe-port's schema has the field."""
    own = schema(message)
    for name in path:
        if own is None:
            return False
        field = own.fields.get(ALIASES.get(own.name, {}).get(name, name))
        if field is None:
            return False
        own = field.message if field.message_name else None
    return True


_SAME = {"slice_dim": "axis", "concat_dim": "axis"}
"""Two names of one meaning in BVLC's own schema, whose numbers early branches exchanged."""


def holds(layer: Message, path: list[str], value: Any) -> bool:
    """Whether a layer states the value at the path."""
    one: Any = layer
    for name in path:
        if not isinstance(one, Message) or one.schema is None:
            return False
        name = ALIASES.get(one.schema.name, {}).get(name, name)
        if name in one.schema.fields and not one.has(name):
            name = {**_SAME, "axis": "slice_dim" if "slice_dim" in one.schema.fields else "concat_dim"}.get(name, name)
        if name not in one.schema.fields or not one.has(name):
            return False
        one = getattr(one, name)
    if value is ...:
        return True
    if isinstance(one, (list, np.ndarray)):
        return len(one) == 1 and same(one[0], value)
    return same(one, value)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, memoryview):
        a = bytes(a).decode()
    if isinstance(a, str) or isinstance(b, str):
        named = str(a) == str(b) or (str(b).endswith(f"_{a}") and "Parameter_" in str(b))  # TI's names have prefixes
        return named or (isinstance(a, int) and isinstance(b, str))  # without a name here
    return abs(float(a) - float(b)) < 1e-6


@dataclass(frozen=True)
class Outcome:
    """What became of a file: whether the value is where it belongs; whether anything else is stated; what is told."""

    right: bool
    stated: bool
    unknown: bool
    others: frozenset[str]

    def word(self, place: bool, writer: str) -> str:
        """See above. ``place``: caffe-port's schema has the field; ``writer``: the dialect."""
        if place and self.right:
            return "right"
        if self.unknown and not (place and self.stated):
            return "unknown" if place else "reported"
        return "noted" if self.unknown or writer in self.others else "silent"


def outcome(data: bytes, path: list[str], value: Any, dialect: str | None) -> Outcome:
    """Reads a file, told the dialect or not."""
    net, found = recognition.read(data, "NetParameter", "one", dialect)
    (layer,) = net.layer or net.layers
    stated = any(_scalars(getattr(layer, n)) for n, _ in layer.items() if n not in ("name", "type"))
    right = has_place(path, layer.schema.name) and holds(layer, path, value)
    if found is None:
        return Outcome(right, stated, False, frozenset())
    others = frozenset(d.name for one in found.open for d in one.dialects)
    return Outcome(right, stated, bool(found.unknown or found.contradicts), others)


def _scalars(value: Any) -> bool:
    return not isinstance(value, Message) or bool(value.items())


def whole_nets() -> int:
    """Recognizes nets of known forks, and one of each dialect's own fields; the number of those wrong in silence."""
    print("\nwhole nets, in the words of the schema and the numbers of a dialect:")
    first = same = 0
    for name in dialect_nets.NETS:
        message = dialect_nets.net(name)
        found, right, _ = recognized(message, find(name))
        also = name in _like(message, find(name))
        first, same = first + (found == name), same + also
        more = ", with the same numbers as it" if also else ""
        print(f"  {name:18} recognized as {found:18} {'as it was written' if right else 'READ OTHERWISE'}{more}")
    print(f"the right dialect first in {first} of {len(dialect_nets.NETS)}, named beside the first in {same}")
    counts: Counter[str] = Counter()
    for dialect in dialects():
        own = None if dialect.era != "V2" else dialect_nets.made_of(dialect)
        if own is None:
            continue
        found, right, note = recognized(own, dialect)
        mine = found == dialect.label
        counts[
            "it" if mine else "another with the same numbers" if right else "another, noted" if note else "wrong"
        ] += 1
        if not right:
            counts["not read as written"] += 1
            print(f"  {dialect.label}: recognized as {found}; {note or 'no note'}")
    print(f"nets of a dialect's own layers: {dict(counts)}")
    return counts["wrong"]


def recognized(message: Message, dialect: Dialect) -> tuple[str, bool, str]:
    """The dialect that a net is recognized as, whether it is read as it was written, and the note."""
    data = dialect_nets.written(message, dialect, "NetParameter")
    net, found = recognition.read(data, "NetParameter", "net")
    pairs = zip(net.layer or net.layers, message.layer or message.layers, strict=True)
    right = all(close_enough(dialect_nets.comparable(theirs), dialect_nets.comparable(ours)) for ours, theirs in pairs)
    return found.dialect.label if found else "caffe", right, found.note if found else ""


def _like(message: Message, dialect: Dialect) -> list[str]:
    """The dialects that `inspect` names beside the one that a net is recognized as."""
    found = recognition.read(dialect_nets.written(message, dialect, "NetParameter"), "NetParameter", "net")[1]
    return [] if found is None else [d.label for d in found.like if d.label in found.written_by]


def close_enough(wanted: dict[str, Any], got: dict[str, Any]) -> bool:
    """Whether what was written was read; a dialect's defaults may be added."""
    return all(path in got and as_text(got[path]) == as_text(value) for path, value in wanted.items())


_COLUMNS = (
    ("right", "right"),
    ("noted", "read differently, and reported: the writer's reading, or a number or value without a name"),
    ("unknown", "reported as unknown"),
    ("reported", "no place in the schema: reported as unknown, with who uses the number"),
    ("silent", "read differently, and not reported"),
)


ERAS = ("V2", "V1")


def table(counts: dict[tuple[str, str], Counter[str]], schemas: Counter[str], lacking: int) -> str:
    """The figures for docs/dialects.md."""
    totals = {era: counts[era, "alone"].total() for era in ERAS}
    text = (
        "Each field of each layer's parameters, alone in a file of one layer: "
        f"{totals['V2']:,} files in the numbers of {schemas['V2']} V2 schemas, "
        f"{totals['V1']:,} in those of {schemas['V1']} V1 schemas. "
        f"{lacking:,} names, most of one project, have no place in `proto/caffe.proto`."
    )
    heads = [f"{era}, {how}" for era in ERAS for how in ("the file alone", "with `--dialect`")]
    lines = [*textwrap.wrap(text, 120), "", f"| | {' | '.join(heads)} |", f"| --- | {' | '.join(['---:'] * 4)} |"]
    for key, words in _COLUMNS:
        cells = [f"{found[key]:,} ({found[key] / max(found.total(), 1):.2%})" for found in counts.values()]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, metavar="N")
    parser.add_argument("--list", metavar="FILE", help="write what is not right")
    parser.add_argument("--publish", action="store_true", help="write the figures into docs/dialects.md")
    parser.add_argument("--source", default="", help="only schemas whose name contains this")
    options = parser.parse_args()
    source = json.loads((SHARED / "dialects/dialects.json").read_text("utf-8"))
    known = {name: d.name for d in dialects() for name in (d.name, *d.also)}
    counts: dict[tuple[str, str], Counter[str]] = {(era, how): Counter() for era in ERAS for how in ("alone", "told")}
    cache: dict[Any, Outcome] = {}
    rows, lacking = [], defaultdict(set)
    n, schemas = 0, Counter[str]()
    for one in source["sources"]:
        era = one.get("era") or "V2"
        if one.get("same_as") or era not in ERAS or one.get("partial") or options.source not in one["name"]:
            continue
        schemas[era] += 1
        message = "V1LayerParameter" if era == "V1" else "LayerParameter"
        for type_, path, value, data in layers(one, source["baseline"]):
            n += 1
            if n % options.every:
                continue
            for how, dialect in (("alone", None), ("told", known[one["name"]])):
                key = (data, tuple(path), repr(value), dialect)
                if key not in cache:
                    cache[key] = outcome(data, path, value, dialect)
                place = has_place(path, message)
                result = cache[key].word(place, known[one["name"]])
                counts[era, how][result] += 1
                if not place:
                    lacking[".".join(path)].add(one["where"])
                elif result != "right":
                    rows.append(f"{how}\t{result}\t{one['name']}\t{type_}\t{'.'.join(path)}\t{value}\t{data.hex()}")
                if result == "silent" and not place:
                    rows.append(
                        f"{how}\tsilent, no place\t{one['name']}\t{type_}\t{'.'.join(path)}\t{value}\t{data.hex()}"
                    )
    for (era, how), found in counts.items():
        total = found.total()
        parts = ", ".join(f"{name} {count:,}" for name, count in found.most_common())
        told = "with --dialect" if how == "told" else "without being told"
        print(f"{era}, {told}: {total:,} layers: {parts}; right {found['right'] / max(total, 1):.2%}")
    print(f"fields that proto/caffe.proto has no place for: {len(lacking):,}")
    if options.publish:
        before, _, after = make_dialects.measured()
        PAGE.write_text(before + table(counts, schemas, len(lacking)) + after, "utf-8")
    if options.list:
        rows += [f"no place\t{name}\t{len(users)}" for name, users in sorted(lacking.items())]
        Path(options.list).write_text("\n".join(rows) + "\n", "utf-8")
    silent = sum(found["silent"] for found in counts.values())
    return int(silent + whole_nets() > 0)


if __name__ == "__main__":
    sys.exit(main())
