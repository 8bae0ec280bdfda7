"""Protobuf's binary format: bytes <-> :class:`~caffe_port.formats.message.Message`, zero-copy.

Float arrays are NumPy views of the buffer, whether packed or with one tag per value (Caffe before 2014), so reading
a memory-mapped file of any size touches only its headers. Source: protobuf's encoding specification.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from caffe_port.errors import ParseError
from caffe_port.formats.fork_fields import (
    BY_WIRE_TYPE,
    CAFFES_LAST_NUMBER,
    LAYOUTS,
    NOT_A_BOOL,
    PLACEHOLDERS,
    WIRE_NUMBERS,
    Layout,
)
from caffe_port.formats.message import Field, Message, Schema, decimal, schema
from caffe_port.terminal import count

MAX_DEPTH = 100  # protobuf's own recursion limit
MAX_MESSAGES = 1_000_000
"""Two bytes may declare a message, which takes hundreds of bytes in memory; no net has a hundredth of this limit."""

_ARRAYS: dict[str, np.dtype[Any]] = {"float": np.dtype("<f4"), "double": np.dtype("<f8")}
_FIXED = {"fixed32": "<I", "sfixed32": "<i", "fixed64": "<Q", "sfixed64": "<q", "float": "<f", "double": "<d"}
_AMBIGUOUS = {number for numbers in WIRE_NUMBERS.values() for number in numbers} | {number for _, number in LAYOUTS}
_GROUP, _GROUP_END = 3, 4
_WIRE_FIXED_SIZE = {1: 8, 5: 4}


def parse(data: Any, message_type: str, where: str = "<bytes>") -> Message:
    """Parses a buffer as a message of proto/caffe.proto.

    Args:
        data: any object with a buffer; the message's float arrays and bytes are views of it.

    Raises:
        ParseError: the data is truncated or not in this format; gives the byte offset.
    """
    view = memoryview(data).cast("B")
    return _Reader(view, where).message(schema(message_type), 0, len(view), 0)


class _Reader:
    def __init__(self, view: memoryview, where: str) -> None:
        self.view, self.where, self.messages = view, where, 0

    def fail(self, what: str, at: int) -> NoReturn:
        raise ParseError(
            f"{what} (at byte {at} of {len(self.view)}): the file is damaged or not in this format", self.where
        )

    def varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        start = at
        while at < end:
            byte = self.view[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, at
            shift += 7
            if shift > 63:
                self.fail("a varint is longer than ten bytes", start)
        self.fail("the data ends inside a varint", start)

    def message(self, type_: Schema, at: int, end: int, depth: int, layout: Layout | None = None) -> Message:
        if depth > MAX_DEPTH:
            self.fail(f"messages are nested more than {MAX_DEPTH} deep", at)
        self.messages += 1
        if self.messages > MAX_MESSAGES:
            self.fail(f"there are more than {MAX_MESSAGES} messages", at)
        message = Message(type_)
        arrays: dict[str, list[np.ndarray[Any, Any]]] = {}
        deferred: list[tuple[int, int, int]] = []
        while at < end:
            start = at
            key, at = self.varint(at, end)
            number, wire_type = key >> 3, key & 7
            if number == 0:
                self.fail(f"{type_.name} has a field with number 0", start)
            field = type_.by_number.get(number)
            if layout is not None and number in layout.numbers:
                field = type_.fields[layout.numbers[number]]
            elif field is None or not _fits(field, wire_type):
                name = BY_WIRE_TYPE.get(type_.name, {}).get((number, wire_type))
                field = type_.fields[name] if name else field
            if wire_type == 2:
                length, at = self.varint(at, end)
                stop = at + length
                if stop > end:
                    self.fail(
                        f"a field of {type_.name} is {count(length, 'byte')} long, with only {end - at:,} left", start
                    )
                if type_.name == "LayerParameter" and (number in _AMBIGUOUS or number > CAFFES_LAST_NUMBER):
                    deferred.append((number, at, stop))
                elif field is None:
                    message.unknown.setdefault(number, []).append(self.view[at:stop])
                else:
                    self.delimited(message, field, at, stop, depth, arrays)
                at = stop
            elif wire_type in _WIRE_FIXED_SIZE:
                at = self.fixed(message, field, number, wire_type, start, at, end, arrays)
            elif wire_type == 0:
                value, at = self.varint(at, end)
                if field is None or field.wire_type != 0:
                    message.unknown.setdefault(number, []).append(value)
                else:
                    if field.kind == "bool" and value > 1 and (name := NOT_A_BOOL.get(type_.name, {}).get(number)):
                        field = type_.fields[name]
                    _put(message, field, _integer(field, value))
            elif wire_type == _GROUP:
                stop = self.group(type_, number, start, at, end)
                message.unknown.setdefault(number, []).append(self.view[at:stop])
                at = self.varint(stop, end)[1]
            else:
                self.fail(f"field {number} of {type_.name} has wire type {wire_type}", start)
        for name, chunks in arrays.items():
            message._fields[name] = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
        for number, start, stop in deferred:
            name = WIRE_NUMBERS.get(message.type, {}).get(number)
            chosen = type_.fields[name] if name else type_.by_number.get(number)
            if chosen is None or chosen.wire_type != 2 or not self.is_read(message, chosen, start, stop, depth, number):
                message.unknown.setdefault(number, []).append(self.view[start:stop])
        if layout is not None:
            for name, value in layout.states.items():
                message._fields.setdefault(name, value)
        return message

    def group(self, type_: Schema, number: int, start: int, at: int, end: int) -> int:
        """Where the end mark of a group (proto1's nested message, which Caffe's files never contain) begins.

        Its fields are skipped; as in protobuf, groups in it must end, each with its own number.
        """
        open_groups = [number]
        while at < end:
            before = at
            key, at = self.varint(at, end)
            inner, wire_type = key >> 3, key & 7
            if inner == 0:
                self.fail(f"{type_.name} has a field with number 0", before)
            if wire_type == _GROUP:
                open_groups.append(inner)
                if len(open_groups) > MAX_DEPTH:
                    self.fail(f"messages are nested more than {MAX_DEPTH} deep", before)
            elif wire_type == _GROUP_END:
                if open_groups.pop() != inner:
                    self.fail(f"a group of {type_.name} ends with the number of another, {inner}", before)
                if not open_groups:
                    return before
            elif wire_type == 0:
                at = self.varint(at, end)[1]
            elif wire_type == 2:
                length, at = self.varint(at, end)
                at += length
            elif wire_type in _WIRE_FIXED_SIZE:
                at += _WIRE_FIXED_SIZE[wire_type]
            else:
                self.fail(f"field {inner} of a group of {type_.name} has wire type {wire_type}", before)
        self.fail(f"group {number} of {type_.name} does not end", start)

    def is_read(self, message: Message, field: Field, start: int, stop: int, depth: int, number: int) -> bool:
        """Reads a field; False if it is a fork's and does not parse: another fork has the number for something else."""
        try:
            self.delimited(message, field, start, stop, depth, {}, LAYOUTS.get((message.type, number)))
        except ParseError:
            if field.number <= CAFFES_LAST_NUMBER:
                raise
            return False
        return True

    def delimited(
        self,
        message: Message,
        field: Field,
        at: int,
        stop: int,
        depth: int,
        arrays: dict[str, list[np.ndarray[Any, Any]]],
        layout: Layout | None = None,
    ) -> None:
        if field.message_name is not None:
            child = self.message(field.message, at, stop, depth + 1, layout)
            previous = message._fields.get(field.name)
            if previous is None or field.repeated:
                _put(message, field, child)
            else:  # protobuf merges a message that occurs twice
                _merge(previous, child)
        elif field.kind == "string":
            _put(message, field, str(self.view[at:stop], "utf-8", "replace"))
        elif field.kind == "bytes":
            _put(message, field, self.view[at:stop])
        elif not field.repeated:
            message.unknown.setdefault(field.number, []).append(self.view[at:stop])
        elif field.kind in _ARRAYS:
            dtype = _ARRAYS[field.kind]
            if (stop - at) % dtype.itemsize:
                self.fail(f"'{field.name}' is {count(stop - at, 'byte')} long, not a whole number of {field.kind}s", at)
            array = np.frombuffer(self.view, dtype, (stop - at) // dtype.itemsize, at)
            arrays.setdefault(field.name, []).append(array)
        else:
            while at < stop:
                if field.wire_type == 0:
                    value, at = self.varint(at, stop)
                    _put(message, field, _integer(field, value))
                else:
                    size = _WIRE_FIXED_SIZE[field.wire_type]
                    if at + size > stop:
                        self.fail(f"'{field.name}' ends inside a value", at)
                    _put(message, field, struct.unpack_from(_FIXED[field.kind], self.view, at)[0])
                    at += size

    def fixed(
        self,
        message: Message,
        field: Field | None,
        number: int,
        wire_type: int,
        start: int,
        at: int,
        end: int,
        arrays: dict[str, list[np.ndarray[Any, Any]]],
    ) -> int:
        """A value of four or eight bytes; a run of them in a repeated float field becomes one strided view."""
        size = _WIRE_FIXED_SIZE[wire_type]
        if at + size > end:
            self.fail("the data ends inside a value", start)
        if field is None or field.wire_type != wire_type:
            message.unknown.setdefault(number, []).append(self.view[at : at + size])
            return at + size
        if not (field.repeated and field.kind in _ARRAYS):
            value = struct.unpack_from(_FIXED[field.kind], self.view, at)[0]
            _put(message, field, decimal(value) if field.kind == "float" else value)
            return at + size
        tag, stride = at - start, at - start + size
        n = self.run(start, tag, stride, (end - start) // stride)
        arrays.setdefault(field.name, []).append(np.ndarray((n,), _ARRAYS[field.kind], self.view, at, (stride,)))
        return start + n * stride

    def run(self, start: int, tag: int, stride: int, most: int) -> int:
        """How many consecutive values have the tag of the first; each step looks ahead as far as was found before."""
        first = np.ndarray((1, tag), np.uint8, self.view, start)
        n = 1
        while n < most:
            ahead = min(max(n, 16), most - n, 1 << 20)
            tags = np.ndarray((ahead, tag), np.uint8, self.view, start + n * stride, (stride, 1))
            same = (tags == first).all(axis=1)
            if not same.all():
                return n + int(same.argmin())
            n += ahead
        return n


def _fits(field: Field, wire_type: int) -> bool:
    return field.wire_type == wire_type or (field.repeated and wire_type == 2)


def _merge(into: Message, other: Message) -> None:
    """Later values win, field by field; repeated fields are concatenated."""
    assert into.schema is not None
    for name, value in other._fields.items():
        field, previous = into.schema.fields[name], into._fields.get(name)
        if previous is None:
            into._fields[name] = value
        elif field.repeated:
            if not isinstance(previous, list):
                previous = into._fields[name] = list(previous)
            previous.extend(value)
        elif field.message_name is not None:
            _merge(previous, value)
        else:
            into._fields[name] = value
    for number, values in other.unknown.items():
        into.unknown.setdefault(number, []).extend(values)


def _put(message: Message, field: Field, value: Any) -> None:
    if field.repeated:
        message._fields.setdefault(field.name, []).append(value)
    else:
        message._fields[field.name] = value


def _integer(field: Field, value: int) -> int | bool | str:
    kind = field.kind
    if kind == "bool":
        return value != 0
    if kind == "enum":
        signed = _signed(value, 32)
        return field.value_names.get(signed, signed)
    if kind in ("int32", "int64"):
        return _signed(value, 32 if kind == "int32" else 64)
    if kind in ("sint32", "sint64"):
        return (value >> 1) ^ -(value & 1)
    return value & 0xFFFFFFFF if kind == "uint32" else value


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


# -- writing ------------------------------------------------------------------------------------------------------


def serialize(message: Message) -> Iterator[bytes | memoryview]:
    """The message's bytes in chunks; arrays are separate chunks and are not copied.

    Fields are in the order of their numbers, as protobuf writes them.
    """
    chunks, _ = _serialize(message)
    yield from chunks


def _serialize(message: Message, layout: Layout | None = None) -> tuple[list[bytes | memoryview], int]:
    chunks: list[bytes | memoryview] = []
    assert message.schema is not None
    numbers = _wire_numbers(message)
    if layout is not None:
        numbers |= {name: number for number, name in layout.numbers.items()}
    for field in sorted((message.schema.fields[n] for n, _ in message.items()), key=lambda f: numbers[f.name]):
        value, number = message._fields[field.name], numbers[field.name]
        if field.packed and field.repeated:
            payload = _packed(field, value)
            chunks += [_varint(number << 3 | 2) + _varint(len(payload)), payload]
            continue
        for one in value if field.repeated else [value]:
            if field.message_name is not None:
                inner, size = _serialize(one, _layout(message, number))
                chunks += [_varint(number << 3 | 2) + _varint(size), *inner]
            elif field.wire_type == 2:
                data = one.encode("utf-8", "surrogatepass") if isinstance(one, str) else bytes(one)
                chunks.append(_varint(number << 3 | 2) + _varint(len(data)) + data)
            else:
                chunks.append(_varint(number << 3 | field.wire_type) + _scalar(field, one))
    return chunks, sum(len(c) for c in chunks)


def _wire_numbers(message: Message) -> dict[str, int]:
    assert message.schema is not None
    numbers = {name: field.number for name, field in message.schema.fields.items()}
    if message.schema.name == "LayerParameter":
        for number, name in WIRE_NUMBERS.get(message.type, {}).items():
            layout = LAYOUTS.get((message.type, number))
            own = layout is not None and layout.tells and getattr(message, name).has(layout.tells)
            if numbers[name] in PLACEHOLDERS or own:  # the first one listed counts, or that of the field's fork
                numbers[name] = number
    return numbers


def _layout(message: Message, number: int) -> Layout | None:
    """How the fields of a layer's message with this number are numbered, where that is not the schema's way."""
    if message.schema is None or message.schema.name != "LayerParameter":
        return None
    return LAYOUTS.get((message.type, number))


def _packed(field: Field, value: Any) -> bytes | memoryview:
    if field.kind in _ARRAYS:
        return memoryview(np.ascontiguousarray(value, _ARRAYS[field.kind]).reshape(-1)).cast("B")  # type: ignore[arg-type]
    return b"".join(_scalar(field, one) for one in value)


def _scalar(field: Field, value: Any) -> bytes:
    if field.kind in _FIXED:
        return struct.pack(_FIXED[field.kind], value)
    if field.kind == "enum" and isinstance(value, str):
        assert field.values is not None
        value = field.values[value]
    if field.kind in ("sint32", "sint64"):
        value = (value << 1) ^ (value >> 63)
    return _varint(int(value) & 0xFFFFFFFFFFFFFFFF)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
