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
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from caffe_port.errors import CaffePortError, ParseError
from caffe_port.formats import dialects as table
from caffe_port.formats import unstated
from caffe_port.formats.decision import Decision
from caffe_port.formats.dialects import Dialect, Reading, View
from caffe_port.formats.evidence import Evidence
from caffe_port.formats.message import Field, Message, schema
from caffe_port.formats.telling import Unknown, contradiction, differences, evidence_for, unexplained, unknown
from caffe_port.formats.wire import NotPlain, Reader
from caffe_port.terminal import count

_CHECKED = {
    "PoolingParameter": (
        "kernel_size",
        "stride",
        "pad",
        "kernel_h",
        "kernel_w",
        "stride_h",
        "stride_w",
        "pad_h",
        "pad_w",
    ),
    "ConvolutionParameter": ("stride",),
    "V1LayerParameter": ("transform_param", "loss_weight"),
    "BlobProto": ("height", "width"),  # C3D's length and height come with a width where Caffe has data
    "DataParameter": ("backend",),  # C3D's show_data, which changes nothing
}
"""Fields of which :mod:`caffe_port.formats.wire` sees whether their values make sense as Caffe's alone."""


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
    like: tuple[Dialect, ...] = field(default=(), repr=False)
    evidence: tuple[str, ...] = ()
    open: tuple[Reading, ...] = ()
    unlikely: tuple[Reading, ...] = ()
    defaults: tuple[Reading, ...] = ()
    unknown: tuple[Unknown, ...] = ()
    contradicts: str = ""
    source: Decision | None = field(default=None, repr=False, compare=False)

    @property
    def written_by(self) -> str:
        """The dialect in words, and who else has the same numbers."""
        versions = [d.label for d in self.like if d.project == self.dialect.project and d.short]
        more = len({d.project for d in self.like} - {self.dialect.project})
        told = [f"the same as {', '.join(versions)}"] if versions else []
        told += [f"or one of {count(more, 'project')} with the same numbers"] if more else []
        return ", ".join([str(self.dialect), *told])

    @property
    def completed(self) -> bool:
        """Whether the message that was read states what its dialect takes for granted: that of V2 does."""
        return self.source is not None and self.source.evidence.layer_message == "LayerParameter"

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

    @property
    def readings(self) -> list[tuple[Dialect, ...]]:
        """Dialects that read alike what is open, this one's first."""
        found: dict[frozenset[int], list[Dialect]] = {frozenset(): [self.dialect, *self.like]}
        for dialect in dict.fromkeys(d for one in self.open for d in one.dialects):
            places = frozenset(i for i, one in enumerate(self.open) if dialect in one.dialects)
            found.setdefault(places, []).append(dialect)
        return list(map(tuple, found.values()))

    def settled(self, dialect: Dialect, impossible: Collection[Dialect]) -> Recognition:
        """What is left open if the sizes in the net carry through as a dialect reads them, and as others do not."""
        if self.source is None:
            return self
        decision = Decision(self.source.evidence, dialect)
        others = [
            d for d in (self.dialect, *self.like, *(d for one in self.open for d in one.dialects)) if d != dialect
        ]
        left, gone = (
            differences(decision, [d.index for d in others if (d in impossible) is out]) for out in (False, True)
        )
        like = _others(others, (*left, *gone))
        told = ("the sizes in the net carry through", *self.evidence)
        unlikely = (*gone, *self.unlikely)
        return replace(self, dialect=dialect, like=like, evidence=told, open=left, unlikely=unlikely, source=decision)

    def agree(self, layers: Sequence[Message], where: str, text: str) -> Recognition:
        """What is left open, decided by a definition in text.

        Args:
            layers: LayerParameters of the text.
            where, text: the two files.

        Raises:
            CaffePortError: the text fits another dialect only, which is named.
        """
        if self.source is None:
            return self
        found, decided = contradiction(self.source, layers), replace(self, open=(), unlikely=(), defaults=())
        if found is None:
            return decided
        best = table.dialects()[min(found.fitting, key=self.source.evidence.rank)]
        possible = {self.dialect.index, *(d.index for one in self.open for d in one.dialects)}
        if not self.given and found.fitting & possible:
            return replace(decided, dialect=best)
        raise CaffePortError(
            f"layer '{found.layer}': the prototxt says {found.text}, "
            f"the weights as {self.dialect.label} wrote them say {found.file}",
            where,
            f"As written by {best.label} they agree: --dialect {best.label}. The prototxt is {text}.",
        )


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
    broken: ParseError | None = None
    if wanted is None:
        try:
            reader = Reader(buffer, where, strict=True)
            return reader.message(_plain(message_type), 0, len(buffer), 0), None
        except NotPlain:
            pass
        except ParseError as error:  # or other bytes in another dialect
            broken = error
    try:
        evidence = Evidence(Reader(buffer, where), message_type)
        return _as_written(evidence, wanted)
    except ParseError as error:
        raise broken or error from None


def _as_written(evidence: Evidence, wanted: Dialect | None) -> tuple[Message, Recognition]:
    buffer, where = evidence.reader.view, evidence.reader.where
    decision = Decision(evidence, evidence.dialects[evidence.order[0]] if wanted is None else wanted)
    message = Reader(buffer, where).message(decision.view, 0, len(buffer), 0)
    message, defaults = decision.complete(message)
    found = _told(decision) if wanted is None else _named(decision)
    return message, replace(found, defaults=() if wanted else defaults, unknown=tuple(unknown(message)))


def _told(decision: Decision) -> Recognition:
    """What the file tells of its dialect."""
    evidence, best = decision.evidence, decision.dialect
    likely, unlikely = evidence.alike(best.index)
    opened, rest = (differences(decision, some) for some in (likely, unlikely))
    like = _others([d for d in (evidence.dialects[i] for i in (*likely, *unlikely)) if d != best], (*opened, *rest))
    return Recognition(best, False, like, evidence_for(evidence, best), opened, rest, source=decision)


def _others(among: Iterable[Dialect], differing: Iterable[Reading]) -> tuple[Dialect, ...]:
    """Those that read nothing differently."""
    differ = {dialect for reading in differing for dialect in reading.dialects}
    return tuple(dict.fromkeys(dialect for dialect in among if dialect not in differ))


def _named(decision: Decision) -> Recognition:
    """What the file tells of a dialect that the user named."""
    evidence, mine = decision.evidence, decision.dialect.index
    best = evidence.order[0]
    worse = evidence.rank(mine)[0] > evidence.rank(best)[0]
    contradicts = unexplained(evidence, mine, best) if worse else ""
    told = evidence_for(evidence, decision.dialect)
    return Recognition(decision.dialect, True, evidence=told, contradicts=contradicts, source=decision)


# -- files that all read alike -------------------------------------------------------------------------------------


@functools.cache
def _plain(message: str, old: bool = False, type_: Any = None) -> View:
    """``old``: in a V1LayerParameter."""
    own, safe = schema(message), table.plain()["safe_v1" if old else "safe"].get(message, {})
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
            or one.name in _CHECKED.get(message, ())
        ):
            fields[number] = one

    def child(one: Field) -> View:
        return _plain(str(one.message_name), old or one.message_name == "V1LayerParameter")

    of_type = functools.partial(_plain, message, old) if message == "LayerParameter" and type_ is None else None
    return View(own, fields, child, of_type)
