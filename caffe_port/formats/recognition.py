"""Whose file is this? Reads a binary file with the numbers of the dialect of Caffe that wrote it.

A file with what every dialect has alike is read at once. For any other, each dialect of
:mod:`caffe_port.formats.dialects` is asked how much of the file it explains:

1. contradictions: a number that it lacks, bytes that are not its message, the parameters of another type, an enum's or
   bool's value that it cannot have. The fewest win;
2. oddities: values that no net has, such as a pad as great as the kernel, or ``hole_h`` without ``hole_w``;
3. being little known: without a short name;
4. layer types that its sources do not register;
5. the order of the table.

A layer's own field goes before the dialect: if the winner gives a number to something that the layer's type does not
read, the layer is read as a dialect does where the type reads it. What others that explain the file as well would read
differently is left open, and reported.

In a file of fewer than five layers everything counts that is not contradicted. In a greater one, an oddity excludes a
dialect, and so does being little known.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from caffe_port.errors import CaffePortError, ParseError
from caffe_port.formats import dialects as table
from caffe_port.formats import unstated
from caffe_port.formats.dialects import Dialect, Fact, Reading, View, as_plain, as_text, canonical, close, stated, view
from caffe_port.formats.message import Field, Message, schema
from caffe_port.formats.upgrade_v1 import V1_TYPES
from caffe_port.formats.wire import MAX_DEPTH, NotPlain, Reader
from caffe_port.terminal import count

WHOLE_NET: Final = 5
"""Layers from which on a file is evidence of what it does not hold."""
_COMMON_NUMBERS = 101
"""Up to here, fields of LayerParameter belong to layers of any type."""
_LAYERS = {"LayerParameter": 100, "V1LayerParameter": 2}
_WINDOW = frozenset(["kernel_size", "stride", "pad", "kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w"])
_MOST_LAYERS = 20_000
"""Layers looked at; no net has a tenth."""
_MOST_BLOBS = 24
"""Blobs looked at as evidence; one program wrote them all."""


@dataclass(frozen=True)
class Unknown:
    """A number of a file that has no meaning here: where, and who uses it."""

    layer: str
    type: str
    message: str
    number: int
    users: str

    def __str__(self) -> str:
        who = f"used by {self.users}" if self.users else "no dialect uses it"
        where = f"layer '{self.layer}' ({self.type}): " if self.layer else ""
        return f"{where}{self.message} {self.number}: {who}"


@dataclass(frozen=True)
class Recognition:
    """Whose numbers a file has.

    Attributes:
        dialect: with whose numbers the file was read.
        given: the user named it.
        like: others that explain the file as well.
        evidence: what the file shows, the most telling first.
        open: what others that may have written the file read differently.
        unlikely: what others read differently that hardly wrote it.
        defaults: the same for values that the file does not state.
        unknown: numbers without a meaning here.
        contradicts: what a dialect named by the user does not explain.
    """

    dialect: Dialect
    given: bool = False
    like: tuple[Dialect, ...] = ()
    evidence: tuple[str, ...] = ()
    open: tuple[Reading, ...] = ()
    unlikely: tuple[Reading, ...] = ()
    defaults: tuple[Reading, ...] = ()
    unknown: tuple[Unknown, ...] = ()
    contradicts: str = ""
    source: _Evidence | None = field(default=None, repr=False, compare=False)

    @property
    def written_by(self) -> str:
        """The dialect in words."""
        more = len({d.project for d in self.like} - {self.dialect.project})
        others = f", or one of {count(more, 'project')} with the same numbers" if more else ""
        return f"{self.dialect}{others}"

    @property
    def note(self) -> str:
        """What is left open, in a line; empty if nothing."""
        left = [*self.open, *(one for one in self.defaults if not one.chosen.startswith(unstated.SETTLED))]
        if self.contradicts:
            return f"the dialect {self.dialect.label} does not explain {self.contradicts}"
        if not left:
            return ""
        more = f"; and {count(len(left) - 1, 'more place')}" if len(left) > 1 else ""
        return f"read as written by {self.dialect.label}: {left[0]}{more}. --dialect NAME decides, inspect tells more"

    def agree(self, layers: Sequence[Message], where: str, text: str) -> Recognition:
        """What is left open, decided by a definition in text.

        Args:
            layers: LayerParameters of the text.
            where, text: the two files.

        Raises:
            CaffePortError: the text fits another dialect only, which is named.
        """
        return self if self.source is None else self.source.agree(self, layers, where, text)


@dataclass
class _Layer:
    name: str
    type: str | int
    fields: list[tuple[int, int, int, int]]


@dataclass
class _Group:
    """Dialects that read a field of a layer type alike."""

    fact: Fact | None
    dialects: list[int]
    miss: float = 0
    odd: float = 0
    own: bool = False
    """It is a message that belongs to the layer's type."""

    @property
    def first(self) -> Dialect:
        return table.dialects()[self.dialects[0]]


@dataclass
class _Case:
    """A field of the layers of one type: number, wire type, and what is in it. ``type`` is None outside of layers, and
    ``*`` for the blobs of all."""

    type: str | int | None
    number: int
    wire_type: int
    places: list[tuple[str, int, int]] = field(default_factory=list)
    groups: list[_Group] = field(default_factory=list)
    lacking: list[int] = field(default_factory=list)


def read(data: Any, message_type: str, where: str, dialect: str | None = None) -> tuple[Message, Recognition | None]:
    """Reads a NetParameter or BlobProto of any dialect.

    Args:
        data: any object with a buffer, of which float arrays are views.
        dialect: name of the dialect; None: the file tells.

    Returns:
        The message, and whose numbers it has; None for a file that all read alike.

    Raises:
        ParseError: the data is truncated or not in this format.
        CaffePortError: there is no such dialect.
    """
    buffer = memoryview(data).cast("B")
    wanted = table.find(dialect) if dialect is not None else None
    if wanted is None:
        try:
            reader = Reader(buffer, where, strict=True)
            return reader.message(_plain(message_type), 0, len(buffer), 0), None
        except NotPlain:
            pass
    evidence = _Evidence(Reader(buffer, where), message_type)
    recognition = evidence.recognition(wanted)
    message = Reader(buffer, where).message(evidence.view(recognition.dialect), 0, len(buffer), 0)
    message, defaults = evidence.complete(message, recognition.dialect)
    unknown = tuple(_unknown(message))
    return message, replace(recognition, defaults=() if wanted else defaults, unknown=unknown)


# -- files that all read alike -------------------------------------------------------------------------------------


@functools.cache
def _plain(message: str, type_: Any = None) -> View:
    own, safe = schema(message), table.plain()["safe"].get(message, {})
    contested = table.plain()["contested"]
    owned = table.owned(type_) or () if isinstance(type_, str) else ()
    fields = {}
    for number, one in own.by_number.items():
        kind = safe.get(str(number))
        if isinstance(kind, list):
            known = {name: value for name, value in (one.values or {}).items() if value in kind}
            fields[number] = replace(one, values=known)
        elif (
            kind is not None
            or message == "V0LayerParameter"
            or (number in contested and one.name in owned)
            or (message == "PoolingParameter" and one.name in _WINDOW)
        ):
            fields[number] = one

    def child(one: Field) -> View:
        return _plain(str(one.message_name))

    of_type = functools.partial(_plain, message) if message == "LayerParameter" and type_ is None else None
    return View(own, fields, child, of_type)


# -- evidence ------------------------------------------------------------------------------------------------------


class _Evidence:
    """What the dialects make of the layers of a file."""

    def __init__(self, reader: Reader, message_type: str) -> None:
        self.reader, self.root = reader, message_type
        self.dialects = table.dialects()
        n = len(self.dialects)
        self.miss, self.odd, self.foreign = np.zeros(n), np.zeros(n), np.zeros(n)
        self._explained: dict[tuple[int, int], tuple[float, float]] = {}
        self.cases: dict[tuple[Any, int, int], _Case] = {}
        self.layers: list[_Layer] = []
        self.layer_message = "LayerParameter"
        self._common = _COMMON_NUMBERS
        self._decided: dict[tuple[Any, int, int], _Group | None] = {}
        self._collect()
        self._weigh()

    # ---- the file

    def _collect(self) -> None:
        end, reader, blobs = len(self.reader.view), self.reader, 0
        if self.root != "NetParameter":
            self._add(_Case("", 0, 2), "", 0, end)
            return
        if not any(number == 100 for number, *_ in reader.fields(0, end)):
            self.layer_message, self._common = "V1LayerParameter", 0
        numbers = _LAYERS[self.layer_message]
        for number, wire_type, start, stop in reader.fields(0, end):
            if len(self.layers) == _MOST_LAYERS:
                break
            if number != numbers or wire_type != 2:
                self._add(_Case(None, number, wire_type), "", start, stop)
                continue
            try:
                fields = list(reader.fields(start, stop))
            except ParseError:
                fields = []
            layer = _Layer("", reader.type_of(self.layer_message, start, stop) if fields else "", fields)
            name_number = 4 if self.layer_message == "V1LayerParameter" else 1
            for inner, wire, begin, finish in fields:
                if inner == name_number and wire == 2:
                    layer.name = str(reader.view[begin:finish], "utf-8", "replace")
            self.layers.append(layer)
            for inner, wire, begin, finish in fields:
                is_blob = inner == (6 if self.layer_message == "V1LayerParameter" else 7) and wire == 2
                blobs += is_blob
                if not is_blob or blobs <= _MOST_BLOBS:
                    self._add(_Case("*" if is_blob else layer.type, inner, wire), layer.name, begin, finish)

    def _add(self, case: _Case, layer: str, start: int, stop: int) -> None:
        found = self.cases.setdefault((case.type, case.number, case.wire_type), case)
        found.places.append((layer, start, stop))

    # ---- what a dialect makes of it

    def _weigh(self) -> None:
        for case in self.cases.values():
            for type_, members in self._by_type(case):
                self._group(case, type_, members)
            if case.number > self._common and any(group.own and not group.miss for group in case.groups):
                for group in case.groups:
                    group.miss += 0.0 if group.own else 0.2 * len(case.places)
            for group in case.groups:
                self.miss[group.dialects] += group.miss
                self.odd[group.dialects] += group.odd
            self.miss[case.lacking] += len(case.places)
        if self._states_defaults():
            self.odd[[d.index for d in self.dialects if d.short != "brocolli"]] += 1
        era = "V1" if self.layer_message == "V1LayerParameter" else "V2"
        for dialect in self.dialects:
            if era == "V2" and dialect.era == "V1":
                self.miss[dialect.index] += 1 + len(self.layers)
        for type_ in {layer.type for layer in self.layers if isinstance(layer.type, str)}:
            projects = table.registered(type_)
            for dialect in self.dialects if projects else ():
                if dialect.project in table.with_sources() and dialect.project not in projects:
                    self.foreign[dialect.index] += 1

    def _states_defaults(self) -> bool:
        """Whether a net with a PoolingParameter 13 is as PyPI's brocolli writes it: no names, phases, defaults."""
        wanted = {"Convolution": (106, {2, 5}), "InnerProduct": (117, {2}), "Pooling": (121, {1})}
        found, rounds = set[str](), False
        if (None, 1, 2) in self.cases or any(number == 10 for _, number, _ in self.cases):
            return False
        for (type_, number, wire_type), case in self.cases.items():
            if not isinstance(type_, str) or type_ not in wanted or (number, wire_type) != (wanted[type_][0], 2):
                continue
            found.add(type_)
            for _, start, stop in case.places:
                numbers = {n for n, *_ in self.reader.fields(start, stop)}
                rounds |= type_ == "Pooling" and 13 in numbers
                if not wanted[type_][1] <= numbers:
                    return False
        return rounds and bool(found & {"Convolution", "InnerProduct"})

    def _by_type(self, case: _Case) -> list[tuple[str, list[int]]]:
        """The dialects by what they call the type of a V1 layer."""
        everyone = list(range(len(self.dialects)))
        if not isinstance(case.type, int):
            return [(case.type or "", everyone)]
        found: dict[str, list[int]] = {}
        for dialect in self.dialects:
            found.setdefault(_v1_type(dialect, case.type), []).append(dialect.index)
        return list(found.items())

    def _group(self, case: _Case, type_: str, members: list[int]) -> None:
        outer = self.layer_message if case.type is not None else self.root
        if self.root != "NetParameter":
            self._alike(case, [(i, None, self.root) for i in members], type_)
            return
        layouts = [(i, self.dialects[i].layout(outer).get(case.number)) for i in members]
        case.lacking += [i for i, fact in layouts if fact is None or not fact.fits(case.wire_type)]
        self._alike(case, [(i, f, f.message) for i, f in layouts if f is not None and f.fits(case.wire_type)], type_)

    def _alike(self, case: _Case, readers: list[tuple[int, Fact | None, str | None]], type_: str) -> None:
        groups: dict[Any, _Group] = {}
        for index, fact, message in readers:
            own = (fact.name, fact.kind, tuple(sorted((fact.values or {}).items()))) if fact else None
            key = (own, self.dialects[index].key(message) if message else None)
            if key not in groups:
                groups[key] = _Group(fact, [])
            groups[key].dialects.append(index)
        for (_, inside), group in groups.items():
            fact, stray = group.fact, 0.0
            if case.type is not None and fact is not None and fact.message and fact.number > self._common:
                stray = _stray(type_, fact.name)
            for _, start, stop in case.places:
                if fact is not None and fact.message is None:
                    miss, odd = float(self._contradicts(fact, case.wire_type, start, stop)), 0.0
                else:
                    message = fact.message if fact is not None else self.root
                    assert message is not None
                    miss, odd = self._explain(group.first, message, inside, start, stop)
                group.miss += min(miss, 1.0 + miss / 8) + stray
                group.odd += odd
            group.own = fact is not None and fact.message is not None and stray == 0
            case.groups.append(group)

    def _explain(self, dialect: Dialect, message: str, key: int, start: int, stop: int, depth: int = 0) -> Any:
        """(contradictions, oddities) of a message in a dialect."""
        memo = (key, start)
        if memo in self._explained and stop > start:
            return self._explained[memo]
        layout, miss, odd = dialect.layout(message), 0.0, 0.0
        values: dict[str, Any] = {}
        try:
            for number, wire_type, begin, finish in self.reader.fields(start, stop):
                fact = layout.get(number)
                if fact is None or not fact.fits(wire_type):
                    miss += 1
                elif fact.message is not None and depth < MAX_DEPTH:
                    inner = self._explain(dialect, fact.message, dialect.key(fact.message), begin, finish, depth + 1)
                    miss, odd = miss + inner[0], odd + inner[1]
                else:
                    miss += self._contradicts(fact, wire_type, begin, finish)
                    values[fact.name] = begin if wire_type == 0 else True
        except ParseError:
            miss += 2
        odd += oddities(message, values, {fact.name for fact in layout.values()})
        self._explained[memo] = miss, odd
        return miss, odd

    def _contradicts(self, fact: Fact, wire_type: int, start: int, stop: int) -> bool:
        if wire_type == 0:
            if fact.kind == "bool":
                return start > 1
            return fact.kind == "enum" and start not in (fact.values or {}).values()
        if wire_type != 2:
            return False
        if fact.kind == "string":
            try:
                return not str(self.reader.view[start:stop], "utf-8").isprintable()
            except UnicodeDecodeError:
                return True
        if fact.wire_type in (1, 5):
            return bool((stop - start) % (8 if fact.wire_type == 1 else 4))
        return False

    # ---- the ranking

    def rank(self, index: int) -> tuple[float, float, bool, float, int]:
        """What the dialects are sorted by, the best first."""
        known = bool(self.dialects[index].short)
        return (round(self.miss[index], 3), self.odd[index], not known, self.foreign[index], index)

    def recognition(self, wanted: Dialect | None) -> Recognition:
        order = sorted(range(len(self.dialects)), key=self.rank)
        best = wanted.index if wanted is not None else order[0]
        alike = [i for i in order if self.rank(i)[0] == self.rank(best)[0]]
        whole = len(self.layers) >= WHOLE_NET
        likely: list[int] = []
        unlikely: list[int] = []
        for i in alike:
            dialect = self.dialects[i]
            known = bool(dialect.short) and not dialect.reads
            native = self.foreign[i] <= self.foreign[best]
            fits = self.odd[i] <= self.odd[best] and (known or not self.dialects[best].short)
            (likely if native and (fits or not whole) else unlikely).append(i)
        first = self.dialects[best]
        self.decide(first)
        opened = () if wanted is not None else self._differences(likely)
        rest = () if wanted is not None else self._differences(unlikely)
        reads_alike = [i for i in alike if i != best and not any(self.dialects[i] in r.dialects for r in opened + rest)]
        contradicts = ""
        if wanted is not None and self.rank(best)[0] > self.rank(order[0])[0]:
            contradicts = self._unexplained(best, order[0])
        return Recognition(
            first,
            wanted is not None,
            tuple(self.dialects[i] for i in reads_alike),
            self._telling(best),
            opened,
            rest,
            contradicts=contradicts,
            source=self,
        )

    def _unexplained(self, index: int, better: int) -> str:
        for case in self.cases.values():
            bad = index in case.lacking or any(index in g.dialects and g.miss for g in case.groups)
            good = any(better in g.dialects and not g.miss for g in case.groups)
            if bad and good and case.places:
                name = case.places[0][0]
                return f"number {case.number} of layer '{name}', as {self.dialects[better].label} does"
        return f"as much of the file as {self.dialects[better].label} does"

    def _telling(self, index: int) -> tuple[str, ...]:
        """What the fewest projects have as this dialect has it."""
        found: dict[str, set[str]] = {}
        mine = self.dialects[index]
        for case in self.cases.values():
            for group in case.groups:
                if index in group.dialects and group.fact is not None and not group.miss:
                    for text, message, number, name in self._marks(case, group, mine):
                        users = table.users(message, number).get(name, ())
                        found.setdefault(text, set()).update(d.project for d in users)
        texts = sorted((len(projects), text) for text, projects in found.items())
        return tuple(f"{text} ({count(n, 'project')})" for n, text in texts[:4])

    def _marks(self, case: _Case, group: _Group, mine: Dialect) -> Iterator[tuple[str, str, int, str]]:
        """What a field holds that Caffe has not: (words, message, number, name)."""
        outer = self.layer_message if case.type is not None else self.root
        fact, caffe = group.fact, self.dialects[0]
        assert fact is not None
        theirs = caffe.layout(outer).get(case.number)
        if theirs is None or theirs.name != fact.name:
            yield f"{fact.name} is {case.number}", outer, case.number, fact.name
            return
        if fact.message is None:
            return
        own, plain = mine.layout(fact.message), caffe.layout(fact.message)
        for _, start, stop in case.places[:8]:
            for number, *_ in self.reader.fields(start, stop):
                one, usual = own.get(number), plain.get(number)
                if one is not None and (usual is None or usual.name != one.name):
                    yield f"{one.name} is {number} in {fact.message}", fact.message, number, one.name

    # ---- how each field is read

    def decide(self, dialect: Dialect) -> None:
        """Chooses a group of dialects for each field of the layers."""
        for key, case in self.cases.items():
            own = [g for g in case.groups if dialect.index in g.dialects]
            if own and all(g.miss == 0 for g in own):
                self._decided[key] = own[0]
                continue
            least = min((g.miss for g in case.groups), default=0)
            best = [g for g in case.groups if g.miss == least]
            mine = [g for g in best if dialect.index in g.dialects]
            candidates = mine or best
            if candidates:
                ranked = min(candidates, key=lambda g: (g.odd, min(self.rank(i) for i in g.dialects)))
                first = min(ranked.dialects, key=self.rank)
                rest = [i for i in ranked.dialects if i != first]
                self._decided[key] = replace(ranked, dialects=[first, *rest])
            else:
                self._decided[key] = None

    def view(self, dialect: Dialect) -> View:
        """The numbers of the file as it is read."""
        if self.root != "NetParameter":
            return self._child(self._decided.get(("", 0, 2)), canonical(self.root).schema.name, dialect)
        base = view(dialect, "NetParameter", "NetParameter")
        number = _LAYERS[self.layer_message]
        entry = base.schema.by_number[number]
        fields = {**base.by_number, number: entry}
        layer = view(dialect, self.layer_message, self.layer_message)
        types = functools.cache(functools.partial(self._of_type, dialect, layer))
        whole = View(layer.schema, layer.by_number, layer.child, types)
        return View(base.schema, fields, lambda f: whole if f.number == number else base.child(f))

    def _child(self, group: _Group | None, ours: str, dialect: Dialect) -> View:
        if group is None:
            return canonical(ours)
        theirs = group.fact.message if group.fact is not None else self.root
        return view(group.first, str(theirs), ours)

    def _of_type(self, dialect: Dialect, layer: View, type_: Any) -> View:
        fields, children = dict(layer.by_number), {}
        name = _v1_type(dialect, type_) if isinstance(type_, int) else type_
        for (of, number, wire_type), group in self._decided.items():
            if of != type_ and of != "*":
                continue
            chosen = self._choose(name, number, wire_type, group, layer)
            if chosen is not None:
                fields[number], children[number] = chosen
            elif of != "*" and str(number) not in table.plain()["safe"].get(self.layer_message, {}):
                fields.pop(number, None)
        if isinstance(type_, int):
            fact = dialect.layout(self.layer_message).get(5)
            if fact is not None and fact.values is not None:
                fields[5] = replace(layer.schema.fields["type"], values=fact.values)

        def child(f: Field) -> View:
            return children.get(f.number) or layer.child(f)

        return View(layer.schema, fields, child)

    def _choose(
        self, type_: str, number: int, wire_type: int, group: _Group | None, layer: View
    ) -> tuple[Field, View | None] | None:
        """A field of the schema for a number of the file."""
        own = layer.schema
        if wire_type == 2 and not (group is not None and group.own):
            exact = [n for n in table.loose(number) if _stray(type_, n) == 0 and n in own.fields]
            if exact and own.fields[exact[0]].message_name:
                one = replace(own.fields[exact[0]], number=number)
                return one, canonical(str(one.message_name))
        if group is not None and group.fact is not None:
            fact = group.fact
            found = table.place(fact, own)
            stray = bool(fact.message) and fact.number > self._common and _stray(type_, fact.name) == 1
            if found is not None and not stray:
                message = found.message_name
                return found, view(group.first, str(fact.message), message) if message and fact.message else None
            if not stray:
                return None
        if wire_type != 2:
            return None
        known = own.by_number.get(number)
        if known is not None and known.message_name and _stray(type_, known.name) < 0.25:
            return known, canonical(known.message_name)
        return None

    # ---- what is left open

    def _differences(self, indices: Collection[int]) -> tuple[Reading, ...]:
        """What these dialects read differently, by case."""
        found: list[Reading] = []
        among = set(indices)
        for key, case in self.cases.items():
            chosen = self._decided.get(key)
            if case.type is None or case.type == "*" or chosen is None or len(case.groups) < 2:
                continue
            for group in case.groups:
                others = [i for i in group.dialects if i in among]
                if not others or set(group.dialects) == set(chosen.dialects) or group.miss > chosen.miss:
                    continue
                places = [p for p in case.places if self._value(case, group, p) != self._value(case, chosen, p)]
                if not places:
                    continue
                one = places[0]
                texts = [
                    _difference(self._value(case, g, one), self._value(case, h, one))
                    for g, h in ((chosen, group), (group, chosen))
                ]
                name = (
                    case.type if isinstance(case.type, str) else _v1_type(self.dialects[chosen.dialects[0]], case.type)
                )
                found.append(
                    Reading(
                        tuple(p[0] for p in places),
                        name,
                        case.number,
                        texts[0],
                        texts[1],
                        tuple(self.dialects[i] for i in others),
                    )
                )
        return _joined(found)

    def _value(self, case: _Case, group: _Group, place: tuple[str, int, int]) -> dict[str, Any]:
        """The field as a group reads it: paths and values."""
        fact, (_, start, stop) = group.fact, place
        if fact is None:
            return {}
        own = schema(self.layer_message)
        one = table.place(fact, own)
        if one is None:
            return {fact.name: "?"}
        if fact.message is None:
            return {fact.name: start if case.wire_type == 0 else bytes(self.reader.view[start:stop])}
        try:
            message = Reader(self.reader.view, self.reader.where).message(
                view(group.first, fact.message, str(one.message_name)), start, stop, 1
            )
        except ParseError:
            return {fact.name: "?"}
        inner = stated(message)
        return {f"{fact.name}.{name}": value for name, value in inner.items()} or {fact.name: "{}"}

    def complete(self, net: Message, dialect: Dialect) -> tuple[Message, tuple[Reading, ...]]:
        """The net with what its dialect takes for granted and we do not, and what others take."""
        if self.root != "NetParameter" or not net.has("layer"):
            return net, ()
        best, whole = self.rank(dialect.index), len(self.layers) >= WHOLE_NET
        others = [
            d
            for d in sorted(self.dialects, key=lambda d: self.rank(d.index))
            if self.rank(d.index)[0] <= best[0]
            and (not whole or (self.rank(d.index)[1:4] <= best[1:4] and d.short and not d.reads))
        ]
        chosen = {
            (of, group.fact.name): group.first
            for (of, _, _), group in self._decided.items()
            if group is not None and group.fact is not None
        }
        layers, found = unstated.complete(
            net.layer,
            lambda layer, name: chosen.get((layer.type, name), dialect),
            lambda: others,
            forks_only=self.rank(0)[0] <= best[0],
        )
        return net.copy(layer=layers), found

    # ---- a text beside it

    def agree(self, known: Recognition, layers: Sequence[Message], where: str, text: str) -> Recognition:
        """See :meth:`Recognition.agree`."""
        by_name = {layer.name: layer for layer in layers}
        fitting: set[int] | None = None
        first: tuple[str, str, str] | None = None
        for key, case in self.cases.items():
            chosen = self._decided.get(key)
            if case.type is None or case.type == "*" or chosen is None or len(case.groups) < 2:
                continue
            for place in case.places:
                layer = by_name.get(place[0])
                if layer is None or (isinstance(case.type, str) and layer.type != case.type):
                    continue
                read = self._value(case, chosen, place)
                others = [g for g in case.groups if g is not chosen and self._value(case, g, place) != read]
                keys = set(read).union(*(self._value(case, g, place) for g in others))
                said = {path: value for path in keys if (value := _said(layer, path)) is not None}
                if not others or not said or _agrees(read, said):
                    continue
                fits = {i for g in others if _agrees(self._value(case, g, place), said) for i in g.dialects}
                if fits:
                    fitting = fits if fitting is None else fitting & fits or fitting
                    path = next(p for p in sorted(said) if not _agrees({p: read.get(p)}, {p: said[p]}))
                    first = first or (place[0], f"{path} {as_text(said[path])}", as_text(read.get(path, "nothing")))
        if fitting is None or first is None:
            return replace(known, open=(), unlikely=(), defaults=())
        possible = {known.dialect.index, *(d.index for r in known.open for d in r.dialects)}
        best = self.dialects[min(fitting, key=self.rank)]
        if not known.given and fitting & possible:
            return replace(known, dialect=best, open=(), unlikely=(), defaults=())
        raise CaffePortError(
            f"layer '{first[0]}': the prototxt says {first[1]}, the weights as {known.dialect.label} wrote them say "
            f"{first[2]}",
            where,
            f"As written by {best.label} they agree: --dialect {best.label}. The prototxt is {text}.",
        )


# -- values --------------------------------------------------------------------------------------------------------


def oddities(message: str, values: dict[str, Any], names: Collection[str]) -> float:
    """How many of the values of a message no net has; ``names``: the fields that the message could have."""
    odd = 0.0
    for name in values:
        for here, there in (("_h", "_w"), ("_w", "_h")):
            partner = name[:-2] + there
            if name.endswith(here) and partner in names and partner not in values:
                odd += 1
    for name in ("kernel_size", "kernel_h", "kernel_w", "stride", "num_output", "group", "dilation", "hole"):
        odd += values.get(name, 1) == 0 and name in values
    for pad, kernel in (("pad", "kernel_size"), ("pad_h", "kernel_h"), ("pad_w", "kernel_w")):
        if message == "PoolingParameter" and pad in values and kernel in values:
            odd += values[pad] >= values[kernel]
    if message == "PoolingParameter" and "kernel_size" in names:
        has = "kernel_size" in values or {"kernel_h", "kernel_w"} <= set(values) or values.get("global_pooling")
        odd += not has
    for name in ("round_mode", "avg_include_pad"):  # 0 is the default, which no net states
        odd += message == "PoolingParameter" and values.get(name) == 0
    if message == "LossParameter":  # SegNet checks that there is a weight for each class
        odd += values.get("weight_by_label_freqs") == 1 and "class_weighting" not in values
    return odd


def _stray(type_: str, name: str) -> float:
    """1 for the parameters of another type, 0.5 where nothing is known of the type, 0 for the type's own."""
    owned = table.owned(type_)
    plain = re.sub(r"\W|_", "", type_).lower()

    def is_namesake(field_: str) -> bool:
        return field_.removesuffix("_param").replace("_", "").lower() == plain

    if is_namesake(name):
        return 0.0
    if owned and name in owned:
        return 0.05 if any(map(is_namesake, owned)) else 0.0
    if name == "quantization_param":  # in layers of any type, if seldom
        return 0.25
    return 0.5 if owned is None else 1.0


def _v1_type(dialect: Dialect, number: int) -> str:
    fact = dialect.layout("V1LayerParameter").get(5)
    name = next((n for n, v in (fact.values or {}).items() if v == number), "") if fact is not None else ""
    return V1_TYPES.get(name, "".join(word.capitalize() for word in name.split("_")))


def _difference(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    """What one reading says and the other does not."""
    parts = [f"{path} {as_text(value)}" for path, value in mine.items() if theirs.get(path) != value]
    return ", ".join(parts[:3]) or "nothing"


def _joined(found: Sequence[Reading]) -> tuple[Reading, ...]:
    """Readings of the same text are one."""
    table_: dict[tuple[str, str, str, int], Reading] = {}
    for one in found:
        key = (one.chosen, one.other, one.type, one.number)
        old = table_.get(key)
        if old is None:
            table_[key] = one
        else:
            table_[key] = replace(
                old,
                layers=tuple(dict.fromkeys((*old.layers, *one.layers))),
                dialects=tuple(dict.fromkeys((*old.dialects, *one.dialects))),
            )
    return tuple(table_.values())


def _said(layer: Message, path: str) -> Any:
    """What a layer of a text states at a path of names; None if nothing."""
    value: Any = layer
    for name in path.split("."):
        if not isinstance(value, Message) or value.schema is None or name not in value.schema.fields:
            return None
        if not value.has(name):
            return None
        value = getattr(value, name)
    return None if isinstance(value, Message) else as_plain(value)


def _agrees(read: dict[str, Any], said: dict[str, Any]) -> bool:
    def same(a: Any, b: Any) -> bool:
        a, b = (v if isinstance(v, tuple) else (v,) for v in (a, b))
        return len(a) == len(b) and all(
            close(x, y) or (isinstance(x, (int, float)) and isinstance(y, (int, float)) and close(float(x), float(y)))
            for x, y in zip(a, b, strict=True)
        )

    return all(path in read and same(read[path], value) for path, value in said.items())


def _unknown(net: Message) -> Iterable[Unknown]:
    """The numbers of a message, and of those in it, that have no meaning here."""
    if net.schema is None or net.schema.name != "NetParameter":
        return
    for number in net.unknown:
        yield Unknown("", "", "NetParameter", int(number), table.told("NetParameter", int(number)))
    for layer in net.layer if net.has("layer") else net.layers:
        yield from _unknown_inside(layer, layer.name, str(layer.type))


def _unknown_inside(message: Message, layer: str, type_: str) -> Iterable[Unknown]:
    assert message.schema is not None
    kind = message.schema.name
    for number in message.unknown:
        if isinstance(number, int):
            yield Unknown(layer, type_, kind, number, table.told(kind, number))
    for name, value in message.items():
        for child in (value if isinstance(value, list) else [value]) if name != "blobs" else ():
            if isinstance(child, Message):
                yield from _unknown_inside(child, layer, type_)
