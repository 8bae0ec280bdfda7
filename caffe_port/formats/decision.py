"""How each field of a binary file is read, given the dialect that wrote it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from caffe_port.errors import ParseError
from caffe_port.formats import dialects as table
from caffe_port.formats import unstated
from caffe_port.formats.dialects import Dialect, Reading, View, canonical, stated, view
from caffe_port.formats.evidence import LAYERS, WHOLE_NET, Case, Evidence, Group, Place, stray, v1_type
from caffe_port.formats.message import Field, Message, schema
from caffe_port.formats.wire import Reader


class Decision:
    """A reading of a file.

    A layer's own field goes before the dialect: if the dialect gives a number to something that the layer's type does
    not read, the layer is read as a dialect does where the type reads it.
    """

    def __init__(self, evidence: Evidence, dialect: Dialect) -> None:
        self.evidence, self.dialect = evidence, dialect
        self.groups = {key: self._group(case) for key, case in evidence.cases.items()}
        self._values: dict[tuple[int, int], dict[str, Any]] = {}

    def _group(self, case: Case) -> Group | None:
        """The dialects that read a field as it is read here, the best first; None where none does."""
        mine = [g for g in case.groups if self.dialect.index in g.dialects]
        if mine and not any(g.miss for g in mine):
            return replace(mine[0], dialects=[self.dialect.index, *mine[0].dialects])
        least = min((g.miss for g in case.groups), default=0)
        best = [g for g in case.groups if g.miss == least]
        candidates = [g for g in mine if g.miss == least] or best
        if not candidates:
            return None
        rank = self.evidence.rank
        ranked = min(candidates, key=lambda g: (g.odd, min(map(rank, g.dialects))))
        return replace(ranked, dialects=sorted(ranked.dialects, key=rank))

    # ---- the numbers

    @functools.cached_property
    def view(self) -> View:
        """The numbers of the file."""
        evidence = self.evidence
        if evidence.root != "NetParameter":
            group = self.groups.get(("", 0, 2))
            return canonical(evidence.root) if group is None else view(group.first, evidence.root, evidence.root)
        base = view(self.dialect, "NetParameter", "NetParameter")
        number = LAYERS[evidence.layer_message]
        layer = view(self.dialect, evidence.layer_message, evidence.layer_message)
        types = functools.cache(functools.partial(self._of_type, layer))
        whole = View(layer.schema, layer.by_number, layer.child, types)
        fields = {**base.by_number, number: base.schema.by_number[number]}
        return View(base.schema, fields, lambda f: whole if f.number == number else base.child(f))

    def _of_type(self, layer: View, type_: Any) -> View:
        fields, children = dict(layer.by_number), {}
        message = self.evidence.layer_message
        safe = table.plain()["safe" if message == "LayerParameter" else "safe_v1"].get(message, {})
        name = v1_type(self.dialect, type_) if isinstance(type_, int) else type_
        for (of, number, wire_type), group in self.groups.items():
            if of not in (type_, "*"):
                continue
            chosen = self._field(name, number, wire_type, group, layer)
            if chosen is not None:
                fields[number], children[number] = chosen
            elif of != "*" and str(number) not in safe:
                fields.pop(number, None)
        if isinstance(type_, int):
            fact = self.dialect.layout(message).get(5)
            if fact is not None and fact.values is not None:
                fields[5] = replace(layer.schema.fields["type"], values=fact.values)
        return View(layer.schema, fields, lambda f: children.get(f.number) or layer.child(f))

    def _field(
        self, type_: str, number: int, wire_type: int, group: Group | None, layer: View
    ) -> tuple[Field, View | None] | None:
        """A field of the schema for a number of the file."""
        own = layer.schema
        if (loose := self.loose(type_, number, wire_type, group)) is not None:
            return loose, canonical(str(loose.message_name))
        if group is not None and group.fact is not None:
            fact = group.fact
            found = table.place(fact, own)
            strays = bool(fact.message) and fact.number > self.evidence.common and stray(type_, fact.name) == 1
            if found is not None and not strays:
                message = found.message_name
                return found, view(group.first, str(fact.message), message) if message and fact.message else None
            if not strays:
                return None
        if wire_type != 2:
            return None
        known = own.by_number.get(number)
        if known is not None and known.message_name and stray(type_, known.name) < 0.25:
            return known, canonical(known.message_name)
        return None

    def loose(self, type_: str, number: int, wire_type: int, group: Group | None) -> Field | None:
        """The type's own message under a number at which no schema of the table has it; None: the dialects decide."""
        if wire_type != 2 or (group is not None and group.own):
            return None
        fields = schema(self.evidence.layer_message).fields
        own = [fields[n] for n in table.loose(number) if stray(type_, n) == 0 and n in fields]
        return replace(own[0], number=number) if own and own[0].message_name else None

    # ---- the values

    def value(self, case: Case, group: Group, place: Place) -> dict[str, Any]:
        """A field as a group reads it: paths and values."""
        key = id(group), id(place)
        if key not in self._values:
            self._values[key] = self._value(case, group, place)
        return self._values[key]

    def _value(self, case: Case, group: Group, place: Place) -> dict[str, Any]:
        fact, reader = group.fact, self.evidence.reader
        if fact is None:
            return {}
        one = table.place(fact, schema(self.evidence.layer_message))
        if one is None:
            return {fact.name: "?"}
        if fact.message is None:
            return {fact.name: place.start if case.wire_type == 0 else bytes(reader.view[place.start : place.stop])}
        inner = view(group.first, fact.message, str(one.message_name))
        try:
            message = Reader(reader.view, reader.where).message(inner, place.start, place.stop, 1)
        except ParseError:
            return {fact.name: "?"}
        return {f"{fact.name}.{name}": value for name, value in stated(message).items()} or {fact.name: "{}"}

    # ---- what the file does not state

    def complete(self, net: Message) -> tuple[Message, tuple[Reading, ...]]:
        """The net with what its dialect takes for granted and we do not, and what others take."""
        evidence = self.evidence
        if evidence.root != "NetParameter" or not net.has("layer"):
            return net, ()
        rank, whole = evidence.rank, evidence.count >= WHOLE_NET
        best = rank(self.dialect.index)
        others = [
            d
            for d in (evidence.dialects[i] for i in evidence.order)
            if rank(d.index)[0] <= best[0]
            and (not whole or (rank(d.index)[1:4] <= best[1:4] and d.short and not d.reads))
        ]
        chosen = {
            (of, group.fact.name): group.first
            for (of, _, _), group in self.groups.items()
            if group is not None and group.fact is not None
        }
        layers, found = unstated.complete(
            net.layer,
            lambda layer, name: chosen.get((layer.type, name), self.dialect),
            lambda: others,
            forks_only=rank(0)[0] <= best[0],
        )
        return net.copy(layer=layers), found

    # ---- what others read

    def others(self, case: Case, place: Place) -> Sequence[Group]:
        """Those that read a place of a case otherwise."""
        chosen = self.groups[case.type, case.number, case.wire_type]
        if chosen is None:
            return ()
        read = self.value(case, chosen, place)
        return [g for g in case.groups if self.value(case, g, place) != read]
