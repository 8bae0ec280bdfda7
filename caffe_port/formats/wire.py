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
from caffe_port.formats.dialects import CAFFES_LAST_NUMBER, Dialect, View, canonical, type_v1, written, written_v1
from caffe_port.formats.message import Field, Message, decimal
from caffe_port.terminal import count

MAX_DEPTH = 100  # protobuf's own recursion limit
MAX_MESSAGES = 1_000_000
"""Two bytes may declare a message, which takes hundreds of bytes in memory; no net has a hundredth of this limit."""

_ARRAYS: dict[str, np.dtype[Any]] = {"float": np.dtype("<f4"), "double": np.dtype("<f8")}
_FIXED = {"fixed32": "<I", "sfixed32": "<i", "fixed64": "<Q", "sfixed64": "<q", "float": "<f", "double": "<d"}
_GROUP, _GROUP_END = 3, 4
_WIRE_FIXED_SIZE = {1: 8, 5: 4}


class NotPlain(Exception):  # noqa: N818 - a question, not an error
    """A message holds what more than one dialect of Caffe uses, see :mod:`caffe_port.formats.recognition`."""


def parse(
    data: Any, message_type: str, where: str = "<bytes>", view: View | None = None, strict: bool = False
) -> Message:
    """Parses a buffer as a message of proto/caffe.proto.

    Args:
        data: any object with a buffer; the message's float arrays and bytes are views of it.
        view: the numbers of the file; None: those of proto/caffe.proto.
        strict: raise NotPlain for what the view does not hold.

    Raises:
        ParseError: the data is truncated or not in this format; gives the byte offset.
    """
    buffer = memoryview(data).cast("B")
    reader = Reader(buffer, where, strict)
    return reader.message(canonical(message_type) if view is None else view, 0, len(buffer), 0)


class Reader:
    """Reads messages of one buffer."""

    def __init__(self, view: memoryview, where: str, strict: bool = False) -> None:
        self.view, self.where, self.strict, self.messages = view, where, strict, 0

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

    def message(self, view: View, at: int, end: int, depth: int) -> Message:
        if depth > MAX_DEPTH:
            self.fail(f"messages are nested more than {MAX_DEPTH} deep", at)
        self.messages += 1
        if self.messages > MAX_MESSAGES:
            self.fail(f"there are more than {MAX_MESSAGES} messages", at)
        of_type = view.of_type
        if of_type is not None and not self.strict:
            view, of_type = of_type(self.type_of(view.schema.name, at, end)), None
        name, by_number, message = view.schema.name, view.by_number, Message(view.schema)
        arrays: dict[str, list[np.ndarray[Any, Any]]] = {}
        while at < end:
            start = at
            key, at = self.varint(at, end)
            number, wire_type = key >> 3, key & 7
            if number == 0:
                self.fail(f"{name} has a field with number 0", start)
            field = by_number.get(number)
            if self.strict and (field is None or not _fits(field, wire_type)):
                raise NotPlain
            if wire_type == 2:
                length, at = self.varint(at, end)
                stop = at + length
                if stop > end:
                    self.fail(f"a field of {name} is {count(length, 'byte')} long, with only {end - at:,} left", start)
                if field is None:
                    message.unknown.setdefault(number, []).append(self.view[at:stop])
                elif number > CAFFES_LAST_NUMBER and field.message_name and name == "LayerParameter":
                    self.of_a_fork(message, view, field, at, stop, depth)
                else:
                    self.delimited(message, view, field, at, stop, depth, arrays)
                    if of_type is not None and number == 2:  # a plain file states the type before what it owns
                        view = of_type(message.type)
                        by_number, of_type = view.by_number, None
                at = stop
            elif wire_type in _WIRE_FIXED_SIZE:
                at = self.fixed(message, field, number, wire_type, start, at, end, arrays)
            elif wire_type == 0:
                value, at = self.varint(at, end)
                if field is None or field.wire_type != 0:
                    message.unknown.setdefault(number, []).append(value)
                elif self.strict and (
                    value > 1 if field.kind == "bool" else field.kind == "enum" and value not in field.value_names
                ):  # none of Caffe's
                    raise NotPlain
                else:
                    _put(message, field, _integer(field, value))
            elif wire_type == _GROUP:
                stop = self.group(name, number, start, at, end)
                message.unknown.setdefault(number, []).append(self.view[at:stop])
                at = self.varint(stop, end)[1]
            else:
                self.fail(f"field {number} of {name} has wire type {wire_type}", start)
        for field_name, chunks in arrays.items():
            message._fields[field_name] = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
        if self.strict and (
            (name == "PoolingParameter" and not is_plain_pooling(message))
            or (name == "V1LayerParameter" and not is_plain_v1(message))
        ):
            raise NotPlain
        return message

    def group(self, name: str, number: int, start: int, at: int, end: int) -> int:
        """Where the end mark of a group (proto1's nested message, which Caffe's files never contain) begins.

        Its fields are skipped; as in protobuf, groups in it must end, each with its own number.
        """
        open_groups = [number]
        while at < end:
            before = at
            key, at = self.varint(at, end)
            inner, wire_type = key >> 3, key & 7
            if inner == 0:
                self.fail(f"{name} has a field with number 0", before)
            if wire_type == _GROUP:
                open_groups.append(inner)
                if len(open_groups) > MAX_DEPTH:
                    self.fail(f"messages are nested more than {MAX_DEPTH} deep", before)
            elif wire_type == _GROUP_END:
                if open_groups.pop() != inner:
                    self.fail(f"a group of {name} ends with the number of another, {inner}", before)
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
                self.fail(f"field {inner} of a group of {name} has wire type {wire_type}", before)
        self.fail(f"group {number} of {name} does not end", start)

    def of_a_fork(self, message: Message, view: View, field: Field, at: int, stop: int, depth: int) -> None:
        """Reads a message of a fork; what does not parse is another fork's, and an unknown field."""
        try:
            self.delimited(message, view, field, at, stop, depth, {})
        except ParseError:
            if self.strict:
                raise NotPlain from None
            message.unknown.setdefault(field.number, []).append(self.view[at:stop])

    def fields(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(number, wire type, start, stop) of each field of a message; a varint's value instead of start, stop 0. Of a
        run of values with one tag, only the first."""
        while at < end:
            start = at
            key, at = self.varint(at, end)
            number, wire_type = key >> 3, key & 7
            if wire_type == 0:
                value, at = self.varint(at, end)
                yield number, 0, value, 0
                continue
            if wire_type == _GROUP:
                at = self.varint(self.group("a message", number, start, at, end), end)[1]
                continue
            if wire_type == 2:
                length, at = self.varint(at, end)
            elif wire_type in _WIRE_FIXED_SIZE:
                length = _WIRE_FIXED_SIZE[wire_type]
            else:
                self.fail(f"field {number} has wire type {wire_type}", start)
            if at + length > end or number == 0:
                self.fail(f"field {number} does not end", start)
            yield number, wire_type, at, at + length
            if wire_type == 2:
                at += length
            else:
                stride = at + length - start
                at = start + stride * self.run(start, at - start, stride, (end - start) // stride)

    def type_of(self, name: str, at: int, end: int) -> str | int:
        """The type of a layer: a string, of a V1LayerParameter a number."""
        wanted = (5, 0) if name == "V1LayerParameter" else (2, 2)
        found: str | int = 0 if wanted[1] == 0 else ""
        for number, wire_type, start, stop in self.fields(at, end):
            if (number, wire_type) == wanted:
                found = start if wire_type == 0 else str(self.view[start:stop], "utf-8", "replace")
        return found

    def delimited(
        self,
        message: Message,
        view: View,
        field: Field,
        at: int,
        stop: int,
        depth: int,
        arrays: dict[str, list[np.ndarray[Any, Any]]],
    ) -> None:
        if field.message_name is not None:
            child = self.message(view.child(field), at, stop, depth + 1)
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


def is_plain_pooling(p: Message) -> bool:
    """Whether the numbers of a PoolingParameter make sense as BVLC's alone: Intel's releases 1.0.5 to 1.1.1 have pad,
    kernel_size, stride at 2, 3, 4 where BVLC has kernel_size, stride, pad. The pad must be less than the kernel.
    """
    kernel, stride, pad = (p._fields.get(name) or [0] for name in ("kernel_size", "stride", "pad"))
    if kernel[0]:
        return bool(0 < stride[0] <= kernel[0] and pad[0] < kernel[0])
    if p.has("kernel_h") and p.has("kernel_w"):
        sizes = ((p.pad_h, p.kernel_h, p.stride_h), (p.pad_w, p.kernel_w, p.stride_w))
        return all(before < window and 0 < step <= window for before, window, step in sizes)
    return bool(p.global_pooling) and not (p.has("stride") or p.has("pad"))


def is_plain_v1(layer: Message) -> bool:
    """Whether the numbers of a V1LayerParameter make sense as BVLC's alone. C3D has kernel_depth where BVLC has a
    convolution's stride, but its blobs have five axes; in Robert0812/deepsaldet 35 and 36, which are loss_weight and
    transform_param, are the parameters of a data layer and of a loss.
    """
    p, type_ = layer._fields.get("convolution_param"), str(layer.type)
    strides = p is not None and p.has("stride") and not layer.has("blobs")
    return (
        not strides
        and (not layer.has("transform_param") or "DATA" in type_)
        and (not layer.has("loss_weight") or "LOSS" in type_)
    )


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
    if field.cast is not None:
        value = field.cast(value)
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


def serialize(
    message: Message, own_numbers: bool = False, dialect: Dialect | None = None
) -> Iterator[bytes | memoryview]:
    """The message's bytes in chunks; arrays are separate chunks and are not copied.

    Fields are in the order of their numbers, as protobuf writes them.

    Args:
        own_numbers: with the numbers of proto/caffe.proto even where a fork's file has others.
        dialect: whose numbers layers have, where it has their fields.
    """
    chunks, _ = _serialize(message, None, own_numbers, dialect)
    yield from chunks


def _serialize(
    message: Message, given: dict[str, int] | None, own_numbers: bool, dialect: Dialect | None
) -> tuple[list[bytes | memoryview], int]:
    chunks: list[bytes | memoryview] = []
    assert message.schema is not None
    numbers, inside = {name: field.number for name, field in message.schema.fields.items()}, dict[str, dict[str, int]]()
    numbers |= given or {}
    if message.schema.name == "LayerParameter" and not own_numbers:
        for name, value in message.items():
            numbers[name], inside[name] = written(message.type, name, value, dialect)
    old = dialect if message.schema.name == "V1LayerParameter" and dialect is not None and dialect.era == "V1" else None
    if old is not None and not own_numbers:
        for name, _ in message.items():  # noqa: PERF102 - a Message has no keys
            numbers[name], inside[name] = written_v1(name, old)
    for field in sorted((message.schema.fields[n] for n, _ in message.items()), key=lambda f: numbers[f.name]):
        value, number = message._fields[field.name], numbers[field.name]
        if old is not None and field.name == "type":
            value = type_v1(value, old)
        if field.packed and field.repeated:
            payload = _packed(field, value)
            chunks += [_varint(number << 3 | 2) + _varint(len(payload)), payload]
            continue
        for one in value if field.repeated else [value]:
            if field.message_name is not None:
                inner, size = _serialize(one, inside.get(field.name), own_numbers, dialect)
                chunks += [_varint(number << 3 | 2) + _varint(size), *inner]
            elif field.wire_type == 2:
                data = one.encode("utf-8", "surrogatepass") if isinstance(one, str) else bytes(one)
                chunks.append(_varint(number << 3 | 2) + _varint(len(data)) + data)
            else:
                chunks.append(_varint(number << 3 | field.wire_type) + _scalar(field, one))
    return chunks, sum(len(c) for c in chunks)


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
