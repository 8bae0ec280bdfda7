"""What a reading of a binary file leaves to say: evidence, what others read differently, numbers without a meaning."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from caffe_port.formats import dialects as table
from caffe_port.formats.decision import Decision
from caffe_port.formats.dialects import Dialect, Reading, as_plain, as_text, close
from caffe_port.formats.evidence import Case, Evidence, Group, Place, v1_type
from caffe_port.formats.message import Message
from caffe_port.terminal import count

_MOST_EVIDENCE = 4
_MOST_PLACES = 8
"""Places of a case in which its telling fields are looked for."""


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


def unknown(net: Message) -> Iterator[Unknown]:
    """The numbers of a NetParameter, and of its layers, that have no meaning here."""
    if net.schema is None or net.schema.name != "NetParameter":
        return
    for number in net.unknown:
        yield Unknown("", "", "NetParameter", int(number), table.told("NetParameter", int(number)))
    for layer in net.layer if net.has("layer") else net.layers:
        yield from _unknown_inside(layer, layer.name, str(layer.type))


def _unknown_inside(message: Message, layer: str, type_: str) -> Iterator[Unknown]:
    assert message.schema is not None
    kind = message.schema.name
    for number in message.unknown:
        if isinstance(number, int):
            yield Unknown(layer, type_, kind, number, table.told(kind, number))
    for name, value in message.items():
        if message.schema.fields[name].kind == "enum":
            values = value if isinstance(value, list) else [value]
            for one in {one for one in values if isinstance(one, int)}:  # a value without a name here
                yield Unknown(layer, type_, f"{kind}.{name}", one, table.value_told(kind, name, one))
        for child in (value if isinstance(value, list) else [value]) if name != "blobs" else ():
            if isinstance(child, Message):
                yield from _unknown_inside(child, layer, type_)


# -- evidence ------------------------------------------------------------------------------------------------------


def evidence_for(evidence: Evidence, dialect: Dialect) -> tuple[str, ...]:
    """What the fewest projects have as this dialect has it."""
    found: dict[str, set[str]] = {}
    for case in evidence.cases.values():
        for group in case.groups:
            if dialect.index in group.dialects and group.fact is not None and not group.miss:
                for text, message, number, name in _marks(evidence, case, group, dialect):
                    users = table.users(message, number).get(name, ())
                    found.setdefault(text, set()).update(d.project for d in users)
    texts = sorted((len(projects), text) for text, projects in found.items())
    return tuple(f"{text} ({count(n, 'project')})" for n, text in texts[:_MOST_EVIDENCE])


def _marks(evidence: Evidence, case: Case, group: Group, mine: Dialect) -> Iterator[tuple[str, str, int, str]]:
    """What a field holds that Caffe has not: (words, message, number, name)."""
    outer = evidence.layer_message if case.type is not None else evidence.root
    fact, caffe = group.fact, evidence.dialects[0]
    assert fact is not None
    theirs = caffe.layout(outer).get(case.number)
    if theirs is None or theirs.name != fact.name:
        yield f"{fact.name} is {case.number}", outer, case.number, fact.name
        return
    if fact.message is None:
        return
    own, plain = mine.layout(fact.message), caffe.layout(fact.message)
    for place in list(case.places.values())[:_MOST_PLACES]:
        for number, *_ in evidence.reader.fields(place.start, place.stop):
            one, usual = own.get(number), plain.get(number)
            if one is not None and (usual is None or usual.name != one.name):
                yield f"{one.name} is {number} in {fact.message}", fact.message, number, one.name


def unexplained(evidence: Evidence, index: int, better: int) -> str:
    """What a dialect does not explain and a better one does."""
    label = evidence.dialects[better].label
    for case in evidence.cases.values():
        bad = index in case.lacking or any(index in g.dialects and g.miss for g in case.groups)
        good = any(better in g.dialects and not g.miss for g in case.groups)
        if bad and good and case.places:
            name = next(iter(case.places.values())).layers[0]
            return f"number {case.number} of layer '{name}', as {label} does"
    return f"as much of the file as {label} does"


# -- what others read ----------------------------------------------------------------------------------------------


def differences(decision: Decision, indices: Collection[int]) -> tuple[Reading, ...]:
    """What these dialects read differently."""
    evidence, among = decision.evidence, set(indices)
    found: dict[tuple[str, str, str, int], Reading] = {}
    for key, case in evidence.cases.items():
        chosen = decision.groups[key]
        if chosen is None or not case.contested:
            continue
        type_ = case.type if isinstance(case.type, str) else v1_type(chosen.first, int(case.type or 0))
        if decision.loose(type_, case.number, case.wire_type, chosen) is not None:
            continue
        for group in case.groups:
            others = [i for i in group.dialects if i in among]
            if not others or set(group.dialects) == set(chosen.dialects) or group.miss > chosen.miss:
                continue
            pairs = [(p, decision.value(case, chosen, p), decision.value(case, group, p)) for p in case.places.values()]
            pairs = [(p, mine, theirs) for p, mine, theirs in pairs if mine != theirs]
            if not pairs:
                continue
            _, mine, theirs = pairs[0]
            layers = tuple(dict.fromkeys(layer for place, *_ in pairs for layer in place.layers))
            who = tuple(evidence.dialects[i] for i in others)
            one = Reading(layers, type_, case.number, _difference(mine, theirs), _difference(theirs, mine), who)
            same = (one.chosen, one.other, one.type, one.number)
            old = found.get(same, one)
            layers, who = (tuple(dict.fromkeys((*a, *b))) for a, b in ((old.layers, layers), (old.dialects, who)))
            found[same] = replace(old, layers=layers, dialects=who)
    return tuple(found.values())


def _difference(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    """What one reading says and the other does not."""
    parts = [f"{path} {as_text(value)}" for path, value in mine.items() if theirs.get(path) != value]
    return ", ".join(parts[:3]) or "nothing"


# -- a text beside it ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contradiction:
    """Where a text says something else than the file as it is read. ``fitting``: the dialects for which they agree."""

    layer: str
    text: str
    file: str
    fitting: frozenset[int]


def contradiction(decision: Decision, layers: Sequence[Message]) -> Contradiction | None:
    """The first place where the layers of a text contradict a file as it is read and fit other dialects."""
    by_name = {layer.name: layer for layer in layers}
    found: Contradiction | None = None
    for key, case in decision.evidence.cases.items():
        chosen = decision.groups[key]
        if chosen is None or not case.contested:
            continue
        for place in case.places.values():
            for layer in (by_name[name] for name in place.layers if name in by_name):
                if isinstance(case.type, str) and layer.type != case.type:
                    continue
                one = _contradicts(decision, case, chosen, decision.others(case, place), place, layer)
                if one is not None:
                    both = one.fitting if found is None else found.fitting & one.fitting or found.fitting
                    found = replace(found or one, fitting=both)
    return found


def _contradicts(
    decision: Decision, case: Case, chosen: Group, others: Sequence[Group], place: Place, layer: Message
) -> Contradiction | None:
    read = decision.value(case, chosen, place)
    theirs = [(g, decision.value(case, g, place)) for g in others]
    said = {p: value for p in set(read).union(*(v for _, v in theirs)) if (value := _said(layer, p)) is not None}
    if not theirs or not said or _agrees(read, said):
        return None
    fitting = frozenset(i for group, values in theirs if _agrees(values, said) for i in group.dialects)
    if not fitting:
        return None
    path = next(p for p in sorted(said) if not _agrees({p: read.get(p)}, {p: said[p]}))
    return Contradiction(layer.name, f"{path} {as_text(said[path])}", as_text(read.get(path, "nothing")), fitting)


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
    return all(path in read and _same(read[path], value) for path, value in said.items())


def _same(a: Any, b: Any) -> bool:
    a, b = (v if isinstance(v, tuple) else (v,) for v in (a, b))
    return len(a) == len(b) and all(map(_equal, a, b))


def _equal(a: Any, b: Any) -> bool:
    numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
    return close(a, b) or (numbers and close(float(a), float(b)))
