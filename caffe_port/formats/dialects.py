"""The dialects of Caffe: what each fork's schema gives a number to.

The facts are in dialects.json.gz, which ``docs/make_dialects.py`` makes; its first line is what every file is read
with, the second one the dialects. proto/caffe.proto has one name for one meaning: a dialect maps its numbers onto these
names, see :class:`View`. docs/dialects.md is the same table for people.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from caffe_port.errors import CaffePortError, did_you_mean
from caffe_port.formats.message import Field, Message, Schema, decimal, schema

#: Numbers of proto/caffe.proto that never occur in a file.
PLACEHOLDERS: Final = range(600_000, 700_000)

#: The highest number of a field of LayerParameter in Caffe 1.0; those above belong to forks.
CAFFES_LAST_NUMBER: Final = 146

#: Message type -> {name in a fork: the same field of proto/caffe.proto}.
ALIASES: Final[dict[str, dict[str, str]]] = {
    "Yolov3DetectionOutputParameter": {"masks": "mask", "num_boxes": "num_box"},  # MobileNet-YOLO's earlier form
    "InnerProductParameter": {"transpose_weights": "transpose"},  # LRCN's
    "RecurrentParameter": {"expose_hidden_state": "expose_hidden"},  # LRCN's
}

_KINDS = {
    "f": ("float", 5),
    "d": ("double", 1),
    "i": ("int32", 0),
    "l": ("int64", 0),
    "u": ("uint32", 0),
    "v": ("uint64", 0),
    "b": ("bool", 0),
    "s": ("string", 2),
    "y": ("bytes", 2),
    "w": ("fixed32", 5),
}
_INTEGERS = ("int32", "int64", "uint32", "uint64")


@dataclass(frozen=True, eq=False)
class Fact:
    """A field of a fork's message. ``message``: the name of its type there; ``values``: of its enum; ``meaning``: a
    number that facts share which differ in their number and default alone."""

    number: int
    name: str
    kind: str
    wire_type: int
    repeated: bool
    message: str | None
    values: dict[str, int] | None
    default: str | None
    meaning: int

    def fits(self, wire_type: int) -> bool:
        """Whether a field of this wire type can be this one, which may be packed."""
        return wire_type == self.wire_type or (self.repeated and wire_type == 2)


@dataclass(frozen=True, eq=False, repr=False)
class Dialect:
    """A schema that wrote, or reads, caffemodels.

    Attributes:
        index: its place in the order in which equal evidence is decided.
        name: project, and branch, tag or date where that is not the newest one.
        short: a name for people; empty for most.
        date: of the schema, or empty. It holds until the project's next one.
        era: ``V2``; ``V1`` before 2015.
        also: other places with the same schema.
        reads: the project reads caffemodels, and writes few or none.
    """

    index: int
    name: str
    short: str
    date: str
    era: str
    also: tuple[str, ...]
    reads: bool
    project: str
    _own: dict[str, tuple[frozenset[int], tuple[int, ...]]]
    _absent: frozenset[str]

    def __repr__(self) -> str:
        return f"<Dialect {self.label}>"

    def __str__(self) -> str:
        origin = f"{self.name}, {self.date}" if self.date else self.name
        return f"{self.short} ({origin})" if self.short else origin

    @property
    def label(self) -> str:
        """What ``--dialect`` takes."""
        return self.short or self.name

    def layout(self, message: str) -> dict[int, Fact]:
        """The fields of one of its messages by number; empty if there is none."""
        return _layout(self, message)

    def key(self, message: str) -> int:
        """A number that two dialects share if the message and all inside it are the same in both."""
        return _key(self, message, ())


@functools.cache
def _line(number: int) -> dict[str, Any]:
    with gzip.open(Path(__file__).with_name("dialects.json.gz"), "rt", encoding="utf-8") as file:
        for _ in range(number):
            file.readline()
        table: dict[str, Any] = json.loads(file.readline())
    return table


def plain() -> dict[str, Any]:
    """What every file is read with: ``safe`` (message -> the numbers that mean the same in every dialect, with the
    values of enums), ``safe_v1`` (the same for V1 files), ``contested`` (numbers of LayerParameter) and ``owners``.
    """
    return _line(0)


def owned(type_: str) -> tuple[str, ...] | None:
    """The fields of LayerParameter that layers of a type read; None where the type is not known."""
    fields = plain()["owners"].get(type_)
    return None if fields is None else tuple(fields)


@functools.cache
def _enum(index: int) -> dict[str, int]:
    return dict(map(_pair, _line(1)["enums"][index].split()))


def _pair(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition("=")
    return name, int(number)


@functools.cache
def _fact(index: int) -> Fact:
    number, code, rest = _line(1)["facts"][index].split(" ", 2)
    name, mark, default = rest.partition("=")
    repeated, code = code.startswith("*"), code.removeprefix("*")
    message = values = None
    if code.startswith("#"):
        kind, wire_type, values = "enum", 0, _enum(int(code[1:]))
    elif code in _KINDS:
        kind, wire_type = _KINDS[code]
    else:
        kind, wire_type, message = "message", 2, code
    meaning = _MEANINGS.setdefault((code, repeated, name), len(_MEANINGS))
    return Fact(int(number), name, kind, wire_type, repeated, message, values, default if mark else None, meaning)


_MEANINGS: dict[tuple[str, bool, str], int] = {}


@functools.cache
def dialects() -> tuple[Dialect, ...]:
    """All of them, in the order in which equal evidence is decided."""
    table = _line(1)
    names, variants = table["messages"], table["variants"]
    found = []
    for index, one in enumerate(table["dialects"]):
        own = {names[m]: (frozenset(gone), tuple(new)) for m, gone, new in (variants[v] for v in one["variants"])}
        name = one["name"]
        found.append(
            Dialect(
                index,
                name,
                one["short"],
                one["date"],
                one["era"],
                tuple(one["also"]),
                bool(one["reads"]),
                name.split("@")[0].split(" (")[0],
                own,
                frozenset(names[m] for m in one["without"]),
            )
        )
    return tuple(found)


@functools.cache
def _layout(dialect: Dialect, message: str) -> dict[int, Fact]:
    if message in dialect._absent:
        return {}
    gone, new = dialect._own.get(message, (frozenset(), ()))
    facts = map(_fact, [*(i for i in _line(1)["base"].get(message, ()) if i not in gone), *new])
    return {fact.number: fact for fact in facts}


_KEYS: dict[Any, int] = {}


@functools.cache
def _key(dialect: Dialect, message: str, above: tuple[str, ...]) -> int:
    if message in above:
        return -1
    children = {f.message for f in dialect.layout(message).values() if f.message}
    if message in dialect._absent:
        own: Any = None
    else:
        own = dialect._own.get(message, message if message in _line(1)["base"] else None)
    inside = tuple(sorted((child, _key(dialect, child, (*above, message))) for child in children))
    return _KEYS.setdefault((own, inside), len(_KEYS))


def find(name: str) -> Dialect:
    """The dialect of a name: short or whole, or that of another place with the same schema.

    Raises:
        CaffePortError: there is none.
    """
    wanted = name.lower()
    for dialect in dialects():
        if wanted in (dialect.short, dialect.name.lower(), *(other.lower() for other in dialect.also)):
            return dialect
    names = [n for d in dialects() for n in (d.short, d.name) if n]
    raise CaffePortError(
        f"there is no dialect '{name}'.{did_you_mean(name, names)}", hint="`caffe-port dialects` lists them."
    )


@dataclass(frozen=True)
class Reading:
    """A place that dialects read differently.

    Attributes:
        layers: names of the layers.
        type: their type.
        number: the field of LayerParameter in the file; 0 for a value that the file does not state.
        chosen: how it is read, as text.
        other: how others would read it.
        dialects: those others.
    """

    layers: tuple[str, ...]
    type: str
    number: int
    chosen: str
    other: str
    dialects: tuple[Dialect, ...]

    def __str__(self) -> str:
        more = f" (and {len(self.layers) - 1} more)" if len(self.layers) > 1 else ""
        return f"layer '{self.layers[0]}'{more}: {self.chosen}; in {labels(self.dialects)}: {self.other}"


_assumed: list[str] = []


def assume(dialect: str | None) -> None:
    """Decides the dialect of every net that this process reads from now on; None: each net tells.

    Raises:
        CaffePortError: there is no such dialect.
    """
    _assumed[:] = [find(dialect).label] if dialect is not None else []


def assumed() -> str | None:
    """The name of the dialect that :func:`assume` decided for."""
    return _assumed[0] if _assumed else None


@contextlib.contextmanager
def assuming(dialect: str | None) -> Iterator[None]:
    """As :func:`assume`, within a block; None changes nothing."""
    before = assumed()
    if dialect is not None:
        assume(dialect)
    try:
        yield
    finally:
        assume(before)


def labels(found: Iterable[Dialect], most: int = 3) -> str:
    """Names of dialects for a line of text, one a project."""
    names = list(dict.fromkeys(d.short or d.name for d in {d.project: d for d in reversed(list(found))}.values()))[::-1]
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


@functools.cache
def _numbers(message: str) -> dict[int, dict[str, tuple[Dialect, ...]]]:
    users: dict[int, dict[str, list[Dialect]]] = {}
    for dialect in dialects():
        for number, fact in dialect.layout(message).items():
            users.setdefault(number, {}).setdefault(fact.name, []).append(dialect)
    return {n: {name: tuple(found) for name, found in names.items()} for n, names in users.items()}


def users(message: str, number: int) -> dict[str, tuple[Dialect, ...]]:
    """Who uses a number of a message: name of the field there -> the dialects."""
    return _numbers(message).get(number, {})


def told(message: str, number: int) -> str:
    """Who uses a number of a message, for a line of text; empty if nobody does."""
    found = sorted(users(message, number).items(), key=lambda item: -len({d.project for d in item[1]}))
    words = [f"{name} ({labels(ds, 2)})" for name, ds in found]
    if message == "LayerParameter":
        extra = [(field, who) for n, field, who, *_ in (*_line(1)["earlier"], *_line(1)["loose"]) if n == number]
        known = {name for name, _ in found}
        words += [f"{field} ({who})" for field, who in dict(extra).items() if field not in known]
    more = len(words) - 3
    return ", ".join(words[:3]) + (f" and {more} more meanings" if more > 0 else "")


def value_told(message: str, field: str, value: int) -> str:
    """Who has a value of an enum, and under which name, for a line of text; empty if nobody does."""
    found: dict[str, list[Dialect]] = {}
    for dialect in dialects():
        for fact in dialect.layout(message).values():
            names = (fact.values or {}).items() if fact.name == field else ()
            for name in (name for name, number in names if number == value):
                found.setdefault(name, []).append(dialect)
    return ", ".join(f"{name} ({labels(who, 2)})" for name, who in list(found.items())[:3])


def earlier() -> list[tuple[int, str, str, str, str]]:
    """Numbers of LayerParameter that a project gave up: number, field, project, first and last date."""
    return [(n, field, who, first, last) for n, field, who, first, last in _line(1)["earlier"]]


def unsourced() -> list[tuple[int, str, str]]:
    """Numbers of LayerParameter that no schema of the table has: number, field, who uses them."""
    return [(n, field, who) for n, field, who in _line(1)["loose"]]


def loose(number: int) -> list[str]:
    """Fields of LayerParameter that had a number in a project's past, or in one without a schema in the table."""
    table = _line(1)
    return list(dict.fromkeys(field for n, field, *_ in (*table["loose"], *table["earlier"]) if n == number))


#: Message type -> field that one dialect alone has: a message with it is written as that dialect reads it, and has it
#: after it was read from that dialect.
TELLING: Final = {
    "UpsampleParameter": ("dims_num", "brocolli"),
    "BNParameter": ("inverse_std", "brocolli"),
    "ReLU6Parameter": ("threshold", "brocolli"),
}


def _only_of(type_: str) -> Dialect | None:
    """The dialect that alone has a layer type; None where none or several do."""
    projects = registered(type_)
    return next((d for d in dialects() if d.project in projects), None) if len(projects) == 1 else None


def written(type_: str, name: str, value: Any, preferred: Dialect | None = None) -> tuple[int, dict[str, int]]:
    """How a field of a LayerParameter is written: as the first dialect reads it that has what is stated, if a number of
    proto/caffe.proto for it is a placeholder, or the type or a field in it is one dialect's alone.

    Args:
        type_: the layer's type.
        name, value: of the field.
        preferred: a dialect that goes before, if it has the field and what is stated in it.

    Returns:
        Its number, and those of the fields in it by name where they are not those of proto/caffe.proto.
    """
    field = schema("LayerParameter").fields[name]
    stated = {key for key, _ in value.items()} if isinstance(value, Message) else set()
    for number, numbers in _ways(name, (preferred,)) if preferred else ():
        if stated <= numbers.keys():
            return number, numbers
    if field.message_name is None or not isinstance(value, Message):
        return field.number, {}
    mark, fork = TELLING.get(field.message_name, ("", ""))
    only = find(fork) if mark in stated else _only_of(type_)
    unnumbered = field.number in PLACEHOLDERS
    if only is None and not unnumbered and not any(field.message.fields[n].number in PLACEHOLDERS for n in stated):
        return field.number, {}
    first: tuple[int, dict[str, int]] | None = None
    for number, numbers in (*(_ways(name, (only,)) if only else ()), *_ways(name, dialects())):
        if unnumbered or mark in stated or number == field.number:
            first = first or ((number, numbers) if unnumbered else None)
            if stated <= numbers.keys():
                return number, numbers
    loose_ = [n for n, other, *_ in _line(1)["loose"] if other == name] if unnumbered else []
    return first or (loose_[0] if loose_ else field.number, {})


def written_v1(name: str, preferred: Dialect) -> tuple[int, dict[str, int]]:
    """How a dialect of V1 writes a field of a V1LayerParameter: its number, and those of the fields in it by name."""
    ways = _ways(name, (preferred,), "V1")
    return ways[0] if ways else (schema("V1LayerParameter").fields[name].number, {})


def type_v1(name: str | int, preferred: Dialect) -> str | int:
    """The number that a dialect of V1 has for a layer type; the name where it has none of its own."""
    fact = next((fact for fact in preferred.layout("V1LayerParameter").values() if fact.name == "type"), None)
    return name if fact is None or not isinstance(name, str) else (fact.values or {}).get(name, name)


@functools.cache
def _ways(name: str, among: tuple[Dialect, ...], era: str = "V2") -> tuple[tuple[int, dict[str, int]], ...]:
    layer = "LayerParameter" if era == "V2" else "V1LayerParameter"
    own = schema(layer).fields[name]
    found = []
    for dialect in among:
        for number, fact in dialect.layout(layer).items() if dialect.era == era else ():
            if fact.name != name or place(fact, schema(layer)) is None:
                continue
            own_numbers = dialect.layout(fact.message) if fact.message else {}
            inner = view(dialect, fact.message, str(own.message_name)).by_number if fact.message else {}
            found.append(
                (number, {field.name: n for n, field in inner.items() if n not in PLACEHOLDERS or n in own_numbers})
            )
    return tuple(found)


@functools.cache
def caffes() -> frozenset[str]:
    """The fields of LayerParameter that Caffe itself has."""
    numbers = {*map(int, plain()["safe"]["LayerParameter"]), *plain()["contested"]}
    return frozenset(f.name for f in schema("LayerParameter").fields.values() if f.number in numbers)


def names_field(message: str, name: str) -> bool:
    """Whether a dialect has a field of that name in a message."""
    return any(name == fact.name for dialect in dialects() for fact in dialect.layout(message).values())


def messages() -> tuple[str, ...]:
    """The names of the messages of all dialects."""
    return tuple(dict.fromkeys([*_line(1)["base"], *_line(1)["messages"]]))


def fields(message: str) -> Iterator[Fact]:
    """The fields that a message has in any dialect, in the order of the dialects; a name may come in several forms."""
    numbers = list(_line(1)["base"].get(message, ()))
    for dialect in dialects():
        numbers += dialect._own.get(message, ((), ()))[1]
    yield from map(_fact, dict.fromkeys(numbers))


def registered(type_: str) -> frozenset[str]:
    """The projects whose sources register a layer type; empty where none does."""
    table = _line(1)
    return frozenset(table["projects"][i] for i in table["types"].get(type_, ()))


@functools.cache
def with_sources() -> frozenset[str]:
    """The projects whose sources were read for the types that they register."""
    return frozenset(_line(1)["projects"])


# -- a dialect's numbers on our names ------------------------------------------------------------------------------


class View:
    """A message of proto/caffe.proto under the numbers of a file: what :mod:`caffe_port.formats.wire` reads with.

    Attributes:
        schema: the message.
        by_number: the fields of the file.
        of_type: for a LayerParameter, the view for a layer type; None for other messages.
    """

    __slots__ = ("_child", "_children", "by_number", "of_type", "schema")

    def __init__(
        self,
        schema_: Schema,
        by_number: dict[int, Field],
        child: Callable[[Field], View],
        of_type: Callable[[Any], View] | None = None,
    ) -> None:
        self.schema, self.by_number, self.of_type = schema_, by_number, of_type
        self._child, self._children = child, dict[int, View]()

    def child(self, field: Field) -> View:
        """The view of a field that is a message."""
        view = self._children.get(field.number)
        if view is None:
            view = self._children[field.number] = self._child(field)
        return view


@functools.cache
def canonical(message: str) -> View:
    """The message under its own numbers."""
    own = schema(message)
    return View(own, own.by_number, lambda field: canonical(str(field.message_name)))


@functools.cache
def view(dialect: Dialect, theirs: str, ours: str) -> View:
    """A dialect's message as one of ours; numbers that the dialect lacks are read as ours.

    Args:
        theirs, ours: names of the message.
    """
    own, layout = schema(ours), dialect.layout(theirs)
    fields = {number: field for number, fact in layout.items() if (field := place(fact, own)) is not None}
    taken = {field.name for field in fields.values()}
    free = (n for n in own.by_number if n not in layout)
    fields.update({n: own.by_number[n] for n in free if own.by_number[n].name not in taken or n in PLACEHOLDERS})

    def child(field: Field) -> View:
        fact = layout.get(field.number)
        if fact is None or fact.message is None:
            return canonical(str(field.message_name))
        return view(dialect, fact.message, str(field.message_name))

    return View(own, fields, child)


def place(fact: Fact, own: Schema) -> Field | None:
    """The field of one of our messages that a fact is, with its number and type; None where there is none."""
    field = own.fields.get(ALIASES.get(own.name, {}).get(fact.name, fact.name))
    if field is None or (field.message_name is None) != (fact.message is None):
        return None
    if fact.message is not None or (fact.kind == field.kind and fact.kind != "enum"):
        return replace(field, number=fact.number)
    textual = ("string", "bytes", "enum")
    if (fact.kind in textual or field.kind in textual) and fact.kind != field.kind:
        return None
    if field.kind == "bool" and fact.kind != "bool":  # a number would be lost
        return None
    if fact.kind == "enum":
        known = field.values or {}
        named = {}
        for name, number in (fact.values or {}).items():
            ours = name if name in known else None
            if name.startswith(f"{own.name}_"):  # TI has the names of the message and the enum before the value's
                ours = next((one for one in known if name.endswith(f"_{one}")), ours)
            if ours is not None:
                named[ours] = number
        return replace(field, number=fact.number, values=named)
    return replace(
        field,
        number=fact.number,
        kind=fact.kind,
        wire_type=fact.wire_type,
        cast=None if field.repeated and field.kind in ("float", "double") else _cast(field.kind),
    )


def _cast(kind: str) -> Callable[[Any], Any]:
    """A value of another type as one of ours; what cannot be it stays."""

    def cast(value: Any) -> Any:
        if kind == "bool":
            return bool(value)
        if kind in _INTEGERS:
            return int(value) if value == value and abs(value) < 1 << 62 and value == int(value) else value
        return float(value)

    return cast


def default_of(fact: Fact, field: Field) -> Any:
    """The value of a field that a file does not state, in a dialect; None where it states none."""
    text = fact.default
    if text is None or fact.repeated or fact.message or field.repeated:
        return None
    if fact.kind == "enum":
        return text if text in (field.values or {}) else None
    if field.kind == "bool":
        return text not in ("false", "0")
    if field.kind in _INTEGERS:
        return _cast(field.kind)(float(text))
    return decimal(float(text)) if field.kind in ("float", "double") and text else None


def stated(message: Message) -> dict[str, Any]:
    """The values that a message states, by the path of their names, for comparison; a repeated message is one value."""
    found: dict[str, Any] = {}
    for name, value in message.items():
        if isinstance(value, Message):
            found.update({f"{name}.{inner}": one for inner, one in stated(value).items()})
        else:
            found[name] = as_plain(value)
    found.update({f"({number})": as_plain(values) for number, values in message.unknown.items()})
    return found


def as_plain(value: Any) -> Any:
    """A value of a message as one that can be compared and hashed."""
    if isinstance(value, np.ndarray):
        return tuple(float(v) for v in value[:64])
    if isinstance(value, memoryview):
        return bytes(value[:64])
    if isinstance(value, Message):
        return tuple(stated(value).items())
    return tuple(map(as_plain, value)) if isinstance(value, list) else value


def as_text(value: Any) -> str:
    """A value of :func:`as_plain` for a line of text."""
    if isinstance(value, tuple):
        return ", ".join(map(as_text, value[:4])) + (", ..." if len(value) > 4 else "")
    if isinstance(value, bool):
        return str(value).lower()
    return "bytes" if isinstance(value, bytes) else f"{value:g}" if isinstance(value, float) else str(value)


def close(a: Any, b: Any) -> bool:
    """Whether two values are equal in float32."""
    if isinstance(a, float) and isinstance(b, (int, float)):
        return abs(a - b) <= 1e-5 * max(abs(a), abs(b))
    return bool(a == b)
