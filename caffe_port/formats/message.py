"""Messages of proto/caffe.proto: one class for text and binary, which knows its position in the file.

A :class:`Message` is read by :mod:`caffe_port.formats.prototxt` (text) or :mod:`caffe_port.formats.wire` (binary)
against the schema below. Attribute access follows protobuf: an unset scalar returns its default, an unset message an
empty message, and a repeated field a list. Enum values are their names (``pool == "MAX"``). Float arrays of a binary
file are NumPy views of the file itself.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_SCALARS = {  # google.protobuf.FieldDescriptor.TYPE_*: (kind, wire type)
    1: ("double", 1),
    2: ("float", 5),
    3: ("int64", 0),
    4: ("uint64", 0),
    5: ("int32", 0),
    6: ("fixed64", 1),
    7: ("fixed32", 5),
    8: ("bool", 0),
    9: ("string", 2),
    11: ("message", 2),
    12: ("bytes", 2),
    13: ("uint32", 0),
    14: ("enum", 0),
    15: ("sfixed32", 5),
    16: ("sfixed64", 1),
    17: ("sint32", 0),
    18: ("sint64", 0),
}


@dataclass(frozen=True)
class Field:
    """A field of the schema: protobuf's FieldDescriptor in the form that both readers need."""

    name: str
    number: int
    kind: str
    wire_type: int
    repeated: bool
    packed: bool
    default: Any
    values: dict[str, int] | None = None
    message_name: str | None = None
    cast: Callable[[Any], Any] | None = None
    """Of a value that a file states in another type."""

    @property
    def message(self) -> Schema:
        assert self.message_name is not None
        return schema(self.message_name)

    @functools.cached_property
    def value_names(self) -> dict[int, str]:
        """Enum number -> name (the first of aliases)."""
        names: dict[int, str] = {}
        for name, number in (self.values or {}).items():
            names.setdefault(number, name)
        return names


@dataclass(frozen=True)
class Schema:
    """A message type: its fields by name and by number."""

    name: str
    fields: dict[str, Field]
    by_number: dict[int, Field]

    @functools.cached_property
    def order(self) -> dict[str, int]:
        """The place of each field."""
        return {name: place for place, name in enumerate(self.fields)}


@functools.cache
def _pool() -> Any:
    """A private descriptor pool, so that another caffe.proto (pycaffe's) can live in the same process."""
    from google.protobuf import descriptor_pb2, descriptor_pool

    files = descriptor_pb2.FileDescriptorSet.FromString(Path(__file__).with_name("caffe.binpb").read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


@functools.cache
def schema(name: str) -> Schema:
    """The message type ``caffe.<name>`` of proto/caffe.proto.

    Raises:
        KeyError: there is no such message.
    """
    descriptor = _pool().FindMessageTypeByName(f"caffe.{name}")
    fields = {}
    for f in descriptor.fields:
        kind, wire_type = _SCALARS[f.type]
        values, default = None, f.default_value
        if kind == "float" and not _repeated(f):
            default = decimal(default)
        if kind == "enum":
            values = {v.name: v.number for v in f.enum_type.values}
            default = f.enum_type.values_by_number[f.default_value].name if not _repeated(f) else None
        message_name = f.message_type.full_name.removeprefix("caffe.") if f.message_type else None
        packed = f.GetOptions().packed
        fields[f.name] = Field(f.name, f.number, kind, wire_type, _repeated(f), packed, default, values, message_name)
    return Schema(name, fields, {f.number: f for f in fields.values()})


def decimal(value: float) -> float:
    """The shortest decimal that is the same float32: 0.95 for 0.949999988079071, as in a prototxt."""
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))


def _repeated(descriptor: Any) -> bool:
    """``label`` is deprecated since protobuf 6.31; ``is_repeated`` does not exist before it."""
    flag = getattr(descriptor, "is_repeated", None)
    return bool(flag) if flag is not None else descriptor.label == descriptor.LABEL_REPEATED


@functools.cache
def _empty(name: str) -> Message:
    return Message(schema(name))


class Message:
    """A message, read from a file or constructed. Fields are attributes; ``has(name)`` tells set from default.

    Args:
        schema: the message type, its name, or None for a message whose type is not in the schema (a fork's own
            parameters); such a message has only the fields that were read, and any other raises AttributeError.
        line: the line of the text on which the message begins; 0 for a binary message.

    ``unknown`` keeps fields that are not in the schema: from text ``{name: [value, ...]}`` (messages as schema-less
    :class:`Message`), from binary ``{number: [value, ...]}``. Its entries are attributes too.
    """

    __slots__ = ("_fields", "_schema", "line", "unknown")

    def __init__(self, schema_: Schema | str | None, line: int = 0, **fields: Any) -> None:
        self._schema = schema(schema_) if isinstance(schema_, str) else schema_
        self._fields: dict[str, Any] = {}
        self.line = line
        self.unknown: dict[str | int, list[Any]] = {}
        for name, value in fields.items():
            self.set(name, value)

    @property
    def schema(self) -> Schema | None:
        return self._schema

    def __getattr__(self, name: str) -> Any:
        # __getattr__ is called only if no slot or method has the name. Private names are left to pickle and copy.
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._fields:
            return self._fields[name]
        if self._schema is None or name not in self._schema.fields:
            if name in self.unknown:
                values = self.unknown[name]
                return values[0] if len(values) == 1 else values
            kind = self._schema.name if self._schema else "a message outside the schema"
            raise AttributeError(f"{kind} has no field '{name}'")
        field = self._schema.fields[name]
        if field.repeated:
            return []
        return _empty(field.message_name) if field.message_name else field.default

    def has(self, name: str) -> bool:
        """Whether the field was set (for a repeated field: whether it is not empty)."""
        value = self._fields.get(name)
        return (value is not None and not (isinstance(value, list) and not value)) or name in self.unknown

    def set(self, name: str, value: Any) -> None:
        """Sets a field; None clears it. Raises AttributeError for a name that is not in the schema."""
        if self._schema is not None and name not in self._schema.fields:
            raise AttributeError(f"{self._schema.name} has no field '{name}'")
        if value is None:
            self._fields.pop(name, None)
        else:
            self._fields[name] = list(value) if isinstance(value, tuple) else value

    def items(self) -> list[tuple[str, Any]]:
        """The set fields, in the schema's order (without a schema: in the order in which they were read)."""
        if self._schema is None:
            return list(self._fields.items())
        order = self._schema.order
        return [(name, self._fields[name]) for name in sorted(self._fields, key=lambda n: order[n]) if self.has(name)]

    def copy(self, **changes: Any) -> Message:
        """A shallow copy with some fields replaced (None clears)."""
        other = Message(self._schema, self.line)
        other._fields = dict(self._fields)
        other.unknown = dict(self.unknown)
        for name, value in changes.items():
            other.set(name, value)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Message:
        """A deep copy of all messages; arrays and bytes remain views of the file."""

        def deep(value: Any) -> Any:
            if isinstance(value, list):
                return [deep(one) for one in value]
            return copy.deepcopy(value, memo) if isinstance(value, Message) else value

        other = Message(self._schema, self.line)
        other._fields = {name: deep(value) for name, value in self._fields.items()}
        other.unknown = {name: deep(values) for name, values in self.unknown.items()}
        return other

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Message):
            return NotImplemented
        mine, theirs = dict(self.items()), dict(other.items())
        return (
            self._schema is other._schema
            and mine.keys() == theirs.keys()
            and all(_same(value, theirs[name]) for name, value in mine.items())
            and self.unknown == other.unknown
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        inside = ", ".join(f"{k}={v!r}" for k, v in self._fields.items())
        return f"{self._schema.name if self._schema else 'Message'}({inside})"


def _same(a: Any, b: Any) -> bool:
    """Equality; an array equals a list of the same values, in the array's precision."""
    for array in (a, b):
        if isinstance(array, np.ndarray):
            return np.array_equal(np.asarray(a, array.dtype), np.asarray(b, array.dtype))
    return bool(a == b)


def at(where: str, message: Message) -> str:
    """``file:line``; the file alone for a message of a binary file."""
    return f"{where}:{message.line}" if message.line else where


def not_finite(message: Message) -> str:
    """The first field that is infinite or NaN, as ``prior_box_param: max_size is inf``; an empty string for none.

    Arrays (blobs) are not looked at.
    """
    for name, value in message.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Message):
                found = not_finite(one)
                if found:
                    return f"{name}: {found}"
            elif isinstance(one, float) and not math.isfinite(one):
                return f"{name} is {one}"
    return ""
