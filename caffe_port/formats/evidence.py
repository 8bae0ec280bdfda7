"""What each dialect of Caffe makes of a binary file: how much of it is explained, and how each field would be read.

Fields with the same contents count once for each layer and are looked at once.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from caffe_port.errors import ParseError
from caffe_port.formats import dialects as table
from caffe_port.formats.dialects import Dialect, Fact
from caffe_port.formats.message import schema
from caffe_port.formats.upgrade_v1 import V1_TYPES
from caffe_port.formats.wire import MAX_DEPTH, Reader
from caffe_port.typing import Shape

WHOLE_NET: Final = 5
"""Layers from which on a file is evidence of what it does not hold."""
LAYERS: Final = {"LayerParameter": 100, "V1LayerParameter": 2}
_BLOBS = {"LayerParameter": 7, "V1LayerParameter": 6}
_NAMES = {"LayerParameter": 1, "V1LayerParameter": 4}
_COMMON_NUMBERS = 101
"""Up to here, fields of LayerParameter belong to layers of any type."""
_MOST_LAYERS = 20_000
"""Layers looked at; no net has a tenth."""
_MOST_BLOBS = 24
"""Blobs looked at as evidence; one program wrote them all."""
_SHORT = 1024
"""Bytes of a field that is compared with those of other layers."""


@dataclass
class Place:
    """Contents of a field: the layers that have them, and where the first does. ``blobs``: the layers' shapes."""

    layers: list[str]
    start: int
    stop: int
    blobs: tuple[Shape, ...] = ()


@dataclass
class Group:
    """Dialects that read a field of a layer type alike."""

    fact: Fact | None
    dialects: Sequence[int]
    miss: float = 0
    odd: float = 0
    own: bool = False
    """It is a message that belongs to the layer's type."""

    @property
    def first(self) -> Dialect:
        return table.dialects()[self.dialects[0]]


@dataclass
class Case:
    """A field of the layers of one type: number, wire type, and what is in it. ``type`` is None outside of layers, and
    ``*`` for the blobs of all."""

    type: str | int | None
    number: int
    wire_type: int
    places: dict[Any, Place] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    lacking: Sequence[int] = ()

    @property
    def count(self) -> int:
        """How many layers have it, each time counted."""
        return sum(len(place.layers) for place in self.places.values())

    @property
    def contested(self) -> bool:
        """Whether it is a field of a layer type that dialects read in different ways."""
        return self.type not in (None, "*") and len(self.groups) > 1


class Evidence:
    """What the dialects make of the layers of a file.

    Attributes:
        layer_message: LayerParameter, or V1LayerParameter.
        count: of layers.
        cases: the fields in the file, by the layers' type, number and wire type.
        common: up to this number, fields belong to layers of any type.
    """

    def __init__(self, reader: Reader, message_type: str) -> None:
        self.reader, self.root = reader, message_type
        self.dialects = table.dialects()
        n = len(self.dialects)
        self._miss, self._odd, self._foreign = np.zeros(n), np.zeros(n), np.zeros(n)
        self._explained: dict[Any, tuple[float, float]] = {}
        self._parsed: dict[tuple[int, int], tuple[list[tuple[int, int, int, int]], bool]] = {}
        self.cases: dict[tuple[Any, int, int], Case] = {}
        self.layer_message, self.common, self.count = "LayerParameter", _COMMON_NUMBERS, 0
        self._collect()
        self._weigh()

    # ---- the file

    def _collect(self) -> None:
        end, reader = len(self.reader.view), self.reader
        if self.root != "NetParameter":
            self._add("", 0, 2, "", 0, end)
            return
        fields = list(reader.fields(0, end))
        if not any(number == LAYERS["LayerParameter"] for number, *_ in fields):
            self.layer_message, self.common = "V1LayerParameter", 0
        blobs = 0
        for number, wire_type, start, stop in fields:
            if number != LAYERS[self.layer_message] or wire_type != 2:
                self._add(None, number, wire_type, "", start, stop)
            elif self.count < _MOST_LAYERS:
                self.count += 1
                blobs = self._layer(start, stop, blobs)

    def _layer(self, start: int, stop: int, seen: int) -> int:
        """Adds the fields of a layer; returns the number of blobs seen so far."""
        reader, (blob, name_) = self.reader, (_BLOBS[self.layer_message], _NAMES[self.layer_message])
        try:
            fields = list(reader.fields(start, stop))
        except ParseError:
            return seen
        type_ = reader.type_of(self.layer_message, start, stop)
        names = [str(reader.view[a:b], "utf-8", "replace") for n, wire, a, b in fields if (n, wire) == (name_, 2)]
        name, shapes = names[-1] if names else "", list[Shape]()
        for number, wire_type, begin, finish in fields:
            if (number, wire_type) == (blob, 2):
                shapes.append(self._shape(begin, finish))
                if seen < _MOST_BLOBS:
                    self._add("*", number, 2, name, begin, finish)
                seen += 1
        for number, wire_type, begin, finish in fields:
            if (number, wire_type) != (blob, 2):
                own = tuple(shapes) if wire_type == 2 and number > self.common else ()
                self._add(type_, number, wire_type, name, begin, finish, own)
        return seen

    def _add(
        self, type_: Any, number: int, wire_type: int, layer: str, start: int, stop: int, blobs: tuple[Shape, ...] = ()
    ) -> None:
        case = self.cases.setdefault((type_, number, wire_type), Case(type_, number, wire_type))
        key = (self._contents(wire_type, start, stop), blobs)
        if key in case.places:
            case.places[key].layers.append(layer)
        else:
            case.places[key] = Place([layer], start, stop, blobs)

    def _fields(self, start: int, stop: int) -> tuple[list[tuple[int, int, int, int]], bool]:
        """As :meth:`Reader.fields`, up to where the bytes are no message; and whether they are one."""
        if (start, stop) not in self._parsed:
            found = list[tuple[int, int, int, int]]()
            try:
                found.extend(self.reader.fields(start, stop))
            except ParseError:
                self._parsed[start, stop] = found, False
            else:
                self._parsed[start, stop] = found, True
        return self._parsed[start, stop]

    def _contents(self, wire_type: int, start: int, stop: int) -> Any:
        if wire_type == 0:
            return start
        return bytes(self.reader.view[start:stop]) if stop - start <= _SHORT else (start, stop)

    def _shape(self, start: int, stop: int) -> Shape:
        """Of a blob; empty if the blob does not say. C3D has five axes, the last under 5, which is data elsewhere."""
        old: dict[int, int] = {}
        try:
            for number, wire_type, begin, finish in self.reader.fields(start, stop):
                if (number, wire_type) == (7, 2):
                    return self._dims(begin, finish)
                if wire_type == 0 and number <= 5:
                    old[number] = begin
        except ParseError:
            return ()
        return tuple(old.get(n, 0) for n in range(1, 6 if 5 in old else 5)) if old else ()

    def _dims(self, start: int, stop: int) -> Shape:
        dims: list[int] = []
        for number, wire_type, begin, finish in self.reader.fields(start, stop):
            while number == 1 and wire_type == 2 and begin < finish:
                value, begin = self.reader.varint(begin, finish)
                dims.append(value)
            if number == 1 and wire_type == 0:
                dims.append(begin)
        return tuple(dims)

    # ---- what a dialect makes of it

    def _weigh(self) -> None:
        era = "V1" if self.layer_message == "V1LayerParameter" else "V2"
        if era == "V2" and self.root == "NetParameter":
            self._miss[[d.index for d in self.dialects if d.era == "V1"]] += 1 + self.count
        for case in self.cases.values():
            self._group(case)
            if case.number > self.common and any(group.own and not group.miss for group in case.groups):
                for group in case.groups:
                    group.miss += 0.0 if group.own else 0.2 * case.count
            for group in case.groups:
                if group.miss:
                    self._miss[np.asarray(group.dialects)] += group.miss
                if group.odd:
                    self._odd[np.asarray(group.dialects)] += group.odd
            if len(case.lacking):
                self._miss[np.asarray(case.lacking)] += case.count
        if self._states_defaults():
            self._odd[[d.index for d in self.dialects if d.short != "brocolli"]] += 1
        for type_ in {case.type for case in self.cases.values() if isinstance(case.type, str)}:
            self._foreign += _foreign(type_)

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
            for place in case.places.values():
                numbers = {n for n, *_ in self.reader.fields(place.start, place.stop)}
                rounds |= type_ == "Pooling" and 13 in numbers
                if not wanted[type_][1] <= numbers:
                    return False
        return rounds and bool(found & {"Convolution", "InnerProduct"})

    def _group(self, case: Case) -> None:
        if self.root != "NetParameter":
            for shared, everyone in _of_message(self.root):
                self._judge(case, Group(None, everyone), self.root, shared, "")
            return
        outer = self.layer_message if case.type is not None else self.root
        fitting, case.lacking = _readings(outer, case.number, case.wire_type)
        numbers: tuple[int, ...] = ()
        if any(fact.message for fact, *_ in fitting):
            parsed = (self._fields(place.start, place.stop)[0] for place in case.places.values())
            numbers = tuple(sorted({number for fields in parsed for number, *_ in fields}))
        types = _v1_types(case.type) if isinstance(case.type, int) else {case.type or "": None}
        for type_, members in types.items():
            alike: dict[Any, tuple[Fact, int | None, list[int]]] = {}
            for fact, key, indices in fitting:
                mine = indices if members is None else [i for i in indices if i in members]
                if len(mine):
                    meaning = (fact.meaning, fact.message and _meaning(self.dialects[mine[0]], fact.message, numbers))
                    alike.setdefault(meaning, (fact, key, []))[2].extend(mine)
            for fact, key, mine in alike.values():
                self._judge(case, Group(fact, sorted(mine)), fact.message, key, type_)

    def _judge(self, case: Case, group: Group, message: str | None, key: int | None, type_: str) -> None:
        """Adds a group to the case, with what contradicts its reading and what is odd in it."""
        fact, stray_ = group.fact, 0.0
        if case.type is not None and fact is not None and fact.message and fact.number > self.common:
            stray_ = stray(type_, fact.name)
        for place in case.places.values():
            if message is None:
                assert fact is not None
                miss, odd = float(self._contradicts(fact, case.wire_type, place.start, place.stop)), 0.0
            else:
                miss, odd = self._explain(group.first, message, key, place)
            group.miss += (min(miss, 1.0 + miss / 8) + stray_) * len(place.layers)
            group.odd += odd * len(place.layers)
        group.own = fact is not None and fact.message is not None and stray_ == 0
        case.groups.append(group)

    def _explain(self, dialect: Dialect, message: str, key: Any, place: Place, depth: int = 0) -> tuple[float, float]:
        """(contradictions, oddities) of a message in a dialect."""
        memo = (key, self._contents(2, place.start, place.stop), place.blobs)
        if memo in self._explained:
            return self._explained[memo]
        fields, whole = self._fields(place.start, place.stop)
        layout, miss, odd = dialect.layout(message), 0.0 if whole else 2.0, 0.0
        values: dict[str, Any] = {}
        for number, wire_type, begin, finish in fields:
            fact = layout.get(number)
            if fact is None or not fact.fits(wire_type):
                miss += 1
            elif fact.message is not None and depth < MAX_DEPTH:
                inner = Place([], begin, finish)
                more = self._explain(dialect, fact.message, dialect.key(fact.message), inner, depth + 1)
                miss, odd = miss + more[0], odd + more[1]
            else:
                miss += self._contradicts(fact, wire_type, begin, finish)
                values[fact.name] = self._value(fact, wire_type, begin)
        names = _names(dialect, message)
        odd += oddities(message, values, names)
        miss += misfits(message, values, names, place.blobs)
        self._explained[memo] = miss, odd
        return miss, odd

    def _value(self, fact: Fact, wire_type: int, start: int) -> Any:
        """Of a field, for :func:`oddities`; True for what is packed or text."""
        if fact.kind == "float" and wire_type == 5:
            return struct.unpack_from("<f", self.reader.view, start)[0]
        return start if wire_type == 0 else True

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
        return (round(self._miss[index], 3), self._odd[index], not known, self._foreign[index], index)

    @functools.cached_property
    def order(self) -> list[int]:
        """The dialects, the best first."""
        return sorted(range(len(self.dialects)), key=self.rank)

    def alike(self, index: int) -> tuple[list[int], list[int]]:
        """The dialects that explain as much of the file as one, the best first: likely ones and others."""
        likely: list[int] = []
        unlikely: list[int] = []
        whole, known = self.count >= WHOLE_NET, bool(self.dialects[index].short)
        for i in self.order:
            if self.rank(i)[0] != self.rank(index)[0]:
                continue
            dialect = self.dialects[i]
            native = self._foreign[i] <= self._foreign[index]
            fits = self._odd[i] <= self._odd[index] and ((bool(dialect.short) and not dialect.reads) or not known)
            (likely if native and (fits or not whole) else unlikely).append(i)
        return likely, unlikely


# -- the dialects, by what they make of a number --------------------------------------------------------------------


@functools.cache
def _readings(
    outer: str, number: int, wire_type: int
) -> tuple[tuple[tuple[Fact, int | None, tuple[int, ...]], ...], tuple[int, ...]]:
    """Dialects that read a number alike (fact, :meth:`Dialect.key` of its message, indices); and those that cannot."""
    groups: dict[Any, tuple[Fact, int | None, list[int]]] = {}
    lacking = []
    for dialect in table.dialects():
        fact = dialect.layout(outer).get(number)
        if fact is None or not fact.fits(wire_type):
            lacking.append(dialect.index)
            continue
        key = dialect.key(fact.message) if fact.message else None
        own = (fact.name, fact.kind, tuple(sorted((fact.values or {}).items())), key)
        groups.setdefault(own, (fact, key, []))[2].append(dialect.index)
    return tuple((fact, key, tuple(indices)) for fact, key, indices in groups.values()), tuple(lacking)


@functools.cache
def _meaning(dialect: Dialect, message: str, numbers: tuple[int, ...]) -> Any:
    """What a dialect makes of these numbers in a message, whatever else it may have there."""
    layout = dialect.layout(message)
    facts = [layout.get(number) for number in numbers]
    found = tuple(fact and (fact.meaning, fact.message and dialect.key(fact.message)) for fact in facts)
    return (
        message,
        found,
        frozenset(name for name in _names(dialect, message) if name.endswith(_SIDES) or name in _FORMS),
    )


@functools.cache
def _of_message(message: str) -> list[tuple[int, list[int]]]:
    """Dialects that have a message alike: its key, indices."""
    groups: dict[int, list[int]] = {}
    for dialect in table.dialects():
        groups.setdefault(dialect.key(message), []).append(dialect.index)
    return list(groups.items())


@functools.cache
def _names(dialect: Dialect, message: str) -> frozenset[str]:
    return frozenset(fact.name for fact in dialect.layout(message).values())


@functools.cache
def _foreign(type_: str) -> np.ndarray[Any, Any]:
    """By dialect, 1 where its sources do not register a type that others register."""
    projects = table.registered(type_)
    return np.array(
        [bool(projects) and d.project in table.with_sources() and d.project not in projects for d in table.dialects()],
        float,
    )


@functools.cache
def _v1_types(number: int) -> dict[str, frozenset[int]]:
    """What the dialects call the type of a V1 layer."""
    found: dict[str, set[int]] = {}
    for dialect in table.dialects():
        found.setdefault(v1_type(dialect, number), set()).add(dialect.index)
    return {name: frozenset(members) for name, members in found.items()}


def v1_type(dialect: Dialect, number: int) -> str:
    """The name today of a type of V1."""
    fact = dialect.layout("V1LayerParameter").get(5)
    name = next((n for n, v in (fact.values or {}).items() if v == number), "") if fact is not None else ""
    return V1_TYPES.get(name, "".join(word.capitalize() for word in name.split("_")))


@functools.cache
def _of_any_type() -> frozenset[str]:
    """The fields of LayerParameter that layers of any type have."""
    return frozenset(f.name for f in schema("LayerParameter").fields.values() if f.number <= _COMMON_NUMBERS)


@functools.cache
def stray(type_: str, name: str) -> float:
    """1 for the parameters of another type, 0.5 where nothing is known of the type, 0 for the type's own."""
    owned = table.owned(type_)
    plain = re.sub(r"\W|_", "", type_).lower()

    def is_namesake(field_: str) -> bool:
        return field_.removesuffix("_param").replace("_", "").lower() == plain

    if is_namesake(name):
        return 0.0
    if owned and name in owned:
        return 0.05 if any(map(is_namesake, owned)) else 0.0
    if name in _of_any_type():
        return 0.05
    if name == "quantization_param":  # in layers of any type, if seldom
        return 0.25
    return 0.5 if owned is None else 1.0


# -- values --------------------------------------------------------------------------------------------------------


def oddities(message: str, values: dict[str, Any], names: Collection[str]) -> float:
    """How many of the values of a message no net has; ``names``: the fields that the message could have."""
    odd = 0
    for name, value in values.items():
        odd += value == 0 and name in _POSITIVE
        if name.endswith(_SIDES):
            partner = name[:-2] + ("_w" if name.endswith("_h") else "_h")
            odd += partner in names and partner not in values
        odd += name in _SMALL and value > 0.1
        odd += name in _FRACTIONS and value < 1e-4
    if message == "PoolingParameter":
        for pad, kernel in (("pad", "kernel_size"), ("pad_h", "kernel_h"), ("pad_w", "kernel_w")):
            odd += pad in values and kernel in values and values[pad] >= values[kernel]
        has = "kernel_size" in values or {"kernel_h", "kernel_w"} <= set(values) or values.get("global_pooling")
        odd += "kernel_size" in names and not has
        odd += sum(values.get(name) == 0 for name in ("round_mode", "avg_include_pad"))  # the default: no net states it
    if message == "LossParameter":  # SegNet checks that there is a weight for each class
        odd += values.get("weight_by_label_freqs") == 1 and "class_weighting" not in values
    return float(odd)


_SIDES = ("_h", "_w")
_SMALL = frozenset({"eps", "var_eps"})
_FRACTIONS = frozenset({"momentum", "decay", "moving_average_fraction"})
_POSITIVE = frozenset({"kernel_size", "kernel_h", "kernel_w", "stride", "num_output", "group", "dilation", "hole"})


def misfits(message: str, values: dict[str, Any], names: Collection[str], blobs: Sequence[Shape]) -> int:
    """How many of the values of a message, or its form, the shapes of the layer's blobs contradict.

    Sources: base_conv_layer.cpp, inner_product_layer.cpp; bn_layer.cpp of SegNet, yjxiong and happynear;
    batch_norm_layer.cpp of NVIDIA and Intel.
    """
    first = blobs[0] if blobs else ()
    if message == "ConvolutionParameter" and len(first) > 2:
        outputs = (first[0], first[1] * values.get("group", 1))  # the second is Deconvolution's
        wrong = [values.get("num_output", first[0]) not in outputs]
        wrong.append(values.get("kernel_size", first[-1]) not in (*first[2:], True))  # True: packed
        axes = (("kernel_w", -1), ("kernel_h", -2), ("kernel_depth", -3))
        return sum(wrong) + sum(bool(values.get(name, first[axis]) != first[axis]) for name, axis in axes)
    if message == "InnerProductParameter" and first:
        return int(values.get("num_output", first[-1]) not in first)
    if message == "BNParameter" and blobs:
        if "slope_filler" in names:  # vectors are rows, (1, channels)
            return (len(blobs) != 4) + (len(first) == 4)
        if "bn_mode" in names:  # (1, channels, 1, 1), without statistics
            return (len(blobs) != 2) + (len(first) == 2)
        return (len(blobs) != 4) + ("frozen" not in names and len(first) == 2)
    if message == "BatchNormParameter" and len(blobs) == 5:
        return int(_SCALES.isdisjoint(names))
    return 0


_SCALES = frozenset({"scale_bias", "use_weight_bias", "use_alpha_beta", "scale_filler"})
"""A BatchNormParameter with one of these may have a scale and a shift in the layer."""
_FORMS = frozenset({"kernel_size", "slope_filler", "bn_mode", "frozen", *_SCALES})
"""Fields whose absence :func:`oddities` and :func:`misfits` look at, beside those of two sides."""
