"""The forward method of model.py: calls of layers, in the order of the net, with readable variable names.

The two phases of a net are merged into one list of calls; the calls of only one phase are under ``if self.training``.
Before a body is given away it is run symbolically in both phases: every call must find the values that the Net's own
plan gives it. Phases too different for that get a method each.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from caffe_port.emit.copied_classes import quoted
from caffe_port.layers.layer import Layer
from caffe_port.net.identifiers import identifiers
from caffe_port.net.plan import Plan, Step
from caffe_port.signatures.signature import Trait, has
from caffe_port.spec import Producer

WIDTH = 110
"""Lines are wrapped where they grow longer."""

_TEST, _TRAIN = frozenset((False,)), frozenset((True,))
_BOTH = _TEST | _TRAIN

MARK = "_tops"
"""The function that marks the tops of every call with their names, where they are wanted."""

_RESERVED = (set(dir(builtins)) - {"input"}) | {"self", "torch", "nn", "F", "math", "Tensor", "torchvision", MARK}

Render = Callable[[Layer, str, Sequence[str]], str]
"""(module, attribute, bottoms) -> the expression that calls it."""


def _nests(type_: str) -> bool:
    """Whether a type is written around the call whose top it alone reads: ``self.relu1(self.conv1(x))``."""
    return any(has(type_, trait) for trait in (Trait.ACTIVATION, Trait.AFFINE, Trait.ELEMENTWISE | Trait.NO_NUMBERS))


@dataclass
class Call:
    """One call of a layer. ``bottoms`` are what each phase reads."""

    phases: frozenset[bool]
    attribute: str
    module: Layer
    type: str
    bottoms: dict[bool, tuple[Producer, ...]]
    tops: tuple[Producer, ...]
    tuple_of_one: bool = False


@dataclass
class Statement:
    """Calls written as one statement, the innermost first."""

    calls: list[Call]

    @property
    def phases(self) -> frozenset[bool]:
        return self.calls[0].phases

    @property
    def bottoms(self) -> dict[bool, tuple[Producer, ...]]:
        return self.calls[0].bottoms

    @property
    def tops(self) -> tuple[Producer, ...]:
        return self.calls[-1].tops


@dataclass
class Flow:
    """What a forward method does: calls, and the outputs of each phase (blob name, producer)."""

    calls: list[Call]
    inputs: dict[str, Producer]
    outputs: dict[bool, tuple[tuple[str, Producer], ...]]
    blobs: dict[Producer, str] = field(default_factory=dict)


def flow(
    plans: Mapping[bool, Plan],
    modules: Mapping[str, Layer],
    alias: Callable[[Step, Layer], bool],
    tuple_of_one: Callable[[Plan, Step, Layer], bool],
    phases: Sequence[bool],
) -> Flow:
    """The calls of a net's plans, merged where the phases agree.

    Args:
        plans: by training.
        modules: by attribute.
        alias: whether a step's tops are just its bottom.
        tuple_of_one: whether the module returns a tuple for its only top.
        phases: those wanted.
    """
    inputs: dict[str, Producer] = {}
    blobs: dict[Producer, str] = {}
    same: dict[bool, dict[Producer, Producer]] = {phase: {} for phase in phases}
    for phase in phases:
        for blob, producer in plans[phase].spec.inputs:
            inputs.setdefault(blob, ("", len(inputs)))
            same[phase][producer] = inputs[blob]
            blobs[inputs[blob]] = blob
    lists: dict[bool, list[Call]] = {}
    for phase in phases:
        lists[phase] = []
        for step in plans[phase].steps:
            module = modules[step.attribute]
            name, table = step.layer.name, same[phase]
            read = tuple(table.get(s, s) for s in step.layer.producers)
            tops = tuple((name, k) for k in range(len(step.tops)))
            if alias(step, module):
                table.update(dict.fromkeys(tops, read[0]))
                continue
            blobs.update(zip(tops, step.layer.tops, strict=True))
            if step.per_bottom:
                lists[phase] += [
                    Call(frozenset((phase,)), step.attribute, module, step.layer.type, {phase: (b,)}, (t,))
                    for b, t in zip(read, tops, strict=True)
                ]
            else:
                one = len(tops) == 1 and tuple_of_one(plans[phase], step, module)
                lists[phase].append(
                    Call(frozenset((phase,)), step.attribute, module, step.layer.type, {phase: read}, tops, one)
                )
    outputs = {phase: tuple((blob, same[phase].get(s, s)) for blob, s in plans[phase].spec.outputs) for phase in phases}
    calls = lists[phases[0]] if len(phases) == 1 else _merge(lists)
    return Flow(_alive(calls, outputs), inputs, outputs, blobs)


def _merge(lists: Mapping[bool, list[Call]]) -> list[Call]:
    keys = {phase: [(c.attribute, c.tops, len(c.bottoms[phase])) for c in calls] for phase, calls in lists.items()}
    merged: list[Call] = []
    matcher = difflib.SequenceMatcher(None, keys[False], keys[True], autojunk=False)
    for op, a, a_end, b, b_end in matcher.get_opcodes():
        if op == "equal":
            for test, train in zip(lists[False][a:a_end], lists[True][b:b_end], strict=True):
                test.phases, test.bottoms = _BOTH, {**test.bottoms, **train.bottoms}
                merged.append(test)
        else:
            merged += [*lists[True][b:b_end], *lists[False][a:a_end]]
    return merged


def _alive(calls: list[Call], outputs: Mapping[bool, Sequence[tuple[str, Producer]]]) -> list[Call]:
    """Without the calls whose tops nobody reads and that have no state."""
    read = {producer for out in outputs.values() for _, producer in out}
    kept = []
    for call in reversed(calls):
        if read.intersection(call.tops) or (call.tops and call.module.state_dict()):
            kept.append(call)
            read.update(*call.bottoms.values())
    return kept[::-1]


# -- statements and variables -----------------------------------------------------------------------------------------


class Body:
    """A forward method's lines. ``right`` is False where variables cannot serve both phases.

    Args:
        names: the names of a call's tops, to mark them with; None: they are not marked.
        images: names of the inputs and outputs that are images, if it computes in channels-last memory.
    """

    def __init__(
        self,
        flow_: Flow,
        render: Render,
        taken: Iterable[str],
        names: Callable[[Call], Sequence[str]] | None = None,
        images: Collection[str] = (),
    ) -> None:
        self.flow, self.render, self.names, self.images = flow_, render, names, images
        self.phases = sorted(flow_.outputs)
        reserved = _RESERVED | set(taken)
        every_blob = [*flow_.inputs, *flow_.blobs.values()]
        table = identifiers([b for b in every_blob if b != "x"], reserved | {"x"}, "blob_")
        self.identifier = table | {"x": "x"}
        self.reserved = reserved | set(self.identifier.values())
        self.parameters = {blob: self.identifier[blob] for blob in flow_.inputs}
        self.statements = [Statement([call]) for call in flow_.calls]
        self.right = self._lay_out()
        if self.right:
            nested, plain = self._nest(), self.statements
            self.statements = nested
            if not self._lay_out() or max(map(len, self._statement_lines()), default=0) > WIDTH - 8:
                self.statements = plain
                self._lay_out()

    # Values that one call reads in the place of each other, one in each phase, must share a variable: a group.

    def _lay_out(self) -> bool:
        """Names every value; returns whether each phase then computes what its plan says."""
        self.group: dict[Producer, Producer] = {}
        for statement in self.statements:
            for producers in zip(*statement.bottoms.values(), strict=True):
                self._unite(producers)
        for producers in zip(*([s for _, s in out] for out in self.flow.outputs.values()), strict=False):
            blobs = {b for out in self.flow.outputs.values() for b, s in out if s in producers}
            if len(blobs) == 1 and len({len(out) for out in self.flow.outputs.values()}) == 1:
                self._unite(producers)
        self._name()
        return self._simulate()

    def _find(self, producer: Producer) -> Producer:
        while producer in self.group:
            producer = self.group[producer]
        return producer

    def _unite(self, producers: Sequence[Producer]) -> None:
        roots = list(dict.fromkeys(self._find(s) for s in producers))
        for other in roots[1:]:
            self.group[other] = roots[0]

    def _reads(self, index: int) -> set[Producer]:
        if index == len(self.statements):
            return {self._find(s) for out in self.flow.outputs.values() for _, s in out}
        return {self._find(s) for read in self.statements[index].bottoms.values() for s in read}

    def _writes(self, index: int) -> set[Producer]:
        return {self._find(s) for s in self.statements[index].tops} if index < len(self.statements) else set()

    def _name(self) -> None:
        end = len(self.statements)
        last: dict[Producer, int] = {}
        first: dict[Producer, int] = {}
        for i in range(end + 1):
            for value in self._reads(i):
                last[value] = i
            for value in self._writes(i):
                first.setdefault(value, i)
                last[value] = max(last.get(value, i), i)
        self.used = set(last)
        self.variable: dict[Producer, str] = {}
        holder: dict[str, Producer] = {}
        for blob, producer in self.flow.inputs.items():
            self.variable[self._find(producer)] = self.parameters[blob]
            holder[self.parameters[blob]] = self._find(producer)
        several = any(len(out) > 1 for out in self.flow.outputs.values())
        read_somewhere = set().union(*(self._reads(i) for i in range(end + 1)))
        for i in range(end):
            for producer in self.statements[i].tops:
                value = self._find(producer)
                if value in self.variable:
                    continue
                if value not in read_somewhere:
                    self.variable[value] = "_"
                    continue
                until = last[value]
                one = len(self.statements[i].tops) == 1
                chain = (
                    one
                    and not (several and until == end)
                    and until - i <= 4
                    and all(value in self._reads(j) or value in self._writes(j) for j in range(i + 1, until + 1))
                )
                name = self.identifier[self.flow.blobs[producer]]
                options = (["x"] if chain else []) + [name]
                count = 2
                while True:
                    free = (o for o in options if o not in holder or last.get(holder[o], -1) <= i)
                    taken_now = {self.variable.get(self._find(s)) for s in self.statements[i].tops}
                    chosen = next((o for o in free if o not in taken_now), None)
                    if chosen is not None:
                        break
                    options = [f"{name}_{count}"] if f"{name}_{count}" not in self.reserved else options
                    count += 1
                self.variable[value] = chosen
                holder[chosen] = value

    def _simulate(self) -> bool:
        for phase in self.phases:
            holds = {self.parameters[blob]: producer for blob, producer in self.flow.inputs.items()}
            for statement in self.statements:
                if phase not in statement.phases:
                    continue
                for producer in statement.bottoms[phase]:
                    if holds.get(self._var(producer)) != producer:
                        return False
                holds.update({self._var(producer): producer for producer in statement.tops})
            if any(holds.get(self._var(producer)) != producer for _, producer in self.flow.outputs[phase]):
                return False
        return True

    def _var(self, producer: Producer) -> str:
        return self.variable.get(self._find(producer), "")

    def _nest(self) -> list[Statement]:
        """Statements whose only top is read by the next one alone, of a type that :func:`_nests`, become part of it."""
        reads: dict[Producer, int] = {}
        for call in self.flow.calls:
            for producer in {s for read in call.bottoms.values() for s in read}:
                reads[producer] = reads.get(producer, 0) + 1
        for out in self.flow.outputs.values():
            for _, producer in out:
                reads[producer] = reads.get(producer, 0) + 2
        grown: list[Statement] = []
        for statement in self.statements:
            call = statement.calls[0]
            before = grown[-1] if grown else None
            inside = {s for read in call.bottoms.values() for s in read}
            if (
                before is not None
                and not before.calls[-1].tuple_of_one
                and len(before.tops) == 1
                and inside == set(before.tops)
                and all(len(read) == 1 for read in call.bottoms.values())
                and reads[before.tops[0]] == 1
                and before.phases == call.phases
                and self._wraps(call, before)
            ):
                before.calls.append(call)
            else:
                grown.append(Statement(list(statement.calls)))
        return grown

    def _wraps(self, call: Call, inner: Statement) -> bool:
        """Whether a call reads well around an expression: an activation, or a method of what another call returns."""
        text = self.render(call.module, call.attribute, ["x"])
        if text == f"self.{call.attribute}(x)":
            return _nests(call.type)
        chained = re.fullmatch(r"x\.\w+\([^x]*\)", text) is not None
        return chained and isinstance(ast.parse(self._expression(inner), mode="eval").body, ast.Call)

    # -- text -------------------------------------------------------------------------------------------------------

    def _expression(self, statement: Statement) -> str:
        phase = next(iter(statement.phases))
        names = [self._var(s) for s in statement.bottoms[phase]]
        text = ""
        for call in statement.calls:
            text = self.render(call.module, call.attribute, [text] if text else names)
            if self.names is not None and call.tops:
                text = f"{MARK}({text}, {', '.join(map(repr, self.names(call)))})"
        return text

    def _target(self, statement: Statement) -> str:
        names = [self._var(s) for s in statement.tops]
        return f"({names[0]},)" if statement.calls[-1].tuple_of_one else ", ".join(names)

    def _statement_lines(self) -> list[str]:
        return [f"{self._target(s)} = {self._expression(s)}" for s in self.statements]

    def _return(self, phase: bool) -> str:
        out = self.flow.outputs[phase]
        if len(out) == 1:
            return f"return {self._returned(*out[0])}"
        items = {blob: self._returned(blob, producer) for blob, producer in out}
        return f"return {{{', '.join(f'{quoted(blob)}: {name}' for blob, name in items.items())}}}"

    def _returned(self, blob: str, producer: Producer) -> str:
        return f"{self._var(producer)}.contiguous()" if blob in self.images else self._var(producer)

    def _opening(self) -> Iterator[str]:
        for blob, name in self.parameters.items():
            if blob in self.images:
                yield f"{name} = {name}.to(memory_format=torch.channels_last)"

    def lines(self, indent: int = 8) -> list[str]:
        """The body, indented and wrapped."""
        pieces = [(s.phases, text) for s, text in zip(self.statements, self._statement_lines(), strict=True)]
        everywhere = frozenset(self.phases)
        returns = {phase: self._return(phase) for phase in self.phases}
        final = self.statements[-1] if self.statements else None
        if len(set(returns.values())) > 1:
            at = len(pieces)
            own = _TRAIN if pieces and pieces[-1][0] == _TRAIN else _TEST
            while at and pieces[at - 1][0] == own:
                at -= 1
            other = everywhere - own
            pieces.insert(at, (other, returns[next(iter(other))]))
            said = returns[next(iter(own))]
            if final is not None and final.phases == own and said == f"return {self._target(final)}":
                pieces[-1] = (own, f"return {self._expression(final)}")
            else:
                pieces.append((own, said))
        elif (
            final is not None
            and final.phases == everywhere
            and returns[self.phases[0]] == f"return {self._target(final)}"
        ):
            pieces[-1] = (everywhere, f"return {self._expression(final)}")
        else:
            pieces.append((everywhere, returns[self.phases[0]]))
        result = [line for text in self._opening() for line in wrap(text, indent)]
        position = 0
        while position < len(pieces):
            phases = pieces[position][0]
            stop = position
            while stop < len(pieces) and pieces[stop][0] == phases:
                stop += 1
            texts = [text for _, text in pieces[position:stop]]
            if phases == everywhere:
                result += [line for text in texts for line in wrap(text, indent)]
            else:
                is_else = position > 0 and pieces[position - 1][0] == everywhere - phases
                condition = "if self.training:" if phases == _TRAIN else "if not self.training:"
                opening = "else:" if is_else else condition
                returned = is_else and pieces[position - 1][1].startswith("return ")
                inner = indent if returned else indent + 4
                result += [] if returned else [" " * indent + opening]
                result += [line for text in texts for line in wrap(text, inner)]
            position = stop
        return result


# -- wrapping -----------------------------------------------------------------------------------------------------


def wrap(text: str, indent: int, width: int = WIDTH) -> list[str]:
    """A statement as lines: where it is too long, what stands in its outermost last brackets goes on lines of its own.

    >>> wrap("x = f(aaa, bbb)", 0, 12)
    ['x = f(', '    aaa, bbb', ')']
    """
    line = " " * indent + text
    if len(line) <= width:
        return [line]
    found = _outer_brackets(text)
    if found is None:
        return [line]
    start, stop = found
    head, inside, tail = text[: start + 1], text[start + 1 : stop], text[stop:]
    items = split_commas(inside)
    if not items:
        return [line]
    joined = ", ".join(items) + ("," if inside.rstrip().endswith(",") else "")
    if indent + 4 + len(joined) <= width:
        body = [" " * (indent + 4) + joined]
    else:
        body = []
        comma_last = "," if len(items) > 1 or inside.rstrip().endswith(",") else ""
        for k, item in enumerate(items):
            wrapped = wrap(item, indent + 4, width - 1)
            wrapped[-1] += "," if k < len(items) - 1 else comma_last
            body += wrapped
    return [" " * indent + head, *body, " " * indent + tail]


def _outer_brackets(text: str) -> tuple[int, int] | None:
    """Positions of the last pair of brackets that stand in no others."""
    depth, start, found = 0, 0, None
    for position, char in _outside_strings(text):
        if char in "([{":
            start = position if depth == 0 else start
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth == 0:
                found = (start, position)
    return found


def split_commas(text: str) -> list[str]:
    """The items between commas that stand in no brackets and no string."""
    depth, begin, items = 0, 0, []
    for position, char in _outside_strings(text):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            items.append(text[begin:position].strip())
            begin = position + 1
    items.append(text[begin:].strip())
    return [item for item in items if item]


def _outside_strings(text: str) -> Iterable[tuple[int, str]]:
    quote, skip = "", False
    for position, char in enumerate(text):
        if skip:
            skip = False
        elif quote:
            skip = char == "\\"
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        else:
            yield position, char
