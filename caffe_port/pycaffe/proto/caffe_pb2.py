"""Caffe's messages as protobuf's Python classes, as a generated ``caffe_pb2`` has them.

The classes are made from caffe_port/formats/caffe.binpb (proto/caffe.proto) in a private descriptor pool, so that they
live beside a caffe_pb2 of somebody else. ``google.protobuf.text_format`` and everything else of protobuf works on them.

Differs from a generated module: proto/caffe.proto holds the fields of many forks, each under one number, while forks
give one number to several fields. Therefore a NetParameter or BlobProto is parsed as
:mod:`caffe_port.formats.recognition` reads it, whichever fork wrote the file; what has no meaning in any is dropped,
with a warning. A NetParameter that was read from a fork's file is written with that fork's numbers, also by a copy;
another one with those of a fork that has its layers. Other messages have the numbers of proto/caffe.proto: those of
Caffe and SSD, and for other fields private ones. Fields of forks that proto/caffe.proto lacks are there for text; in
bytes only this module knows them.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import google.protobuf.text_format  # noqa: F401 - as protobuf 2: scripts use it after `import google.protobuf` alone
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal import encoder
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import EncodeError

from caffe_port.errors import CaffePortError
from caffe_port.formats import dialects, recognition, wire
from caffe_port.formats.dialects import Dialect, Fact, assumed, written
from caffe_port.formats.message import Message

_OPTIONAL = {
    "PoolingParameter.kernel_size": "",
    "PoolingParameter.stride": "1",
    "PoolingParameter.pad": "0",
    "TransformationParameter.resize_param": "",
}
"""Fields that proto/caffe.proto repeats for the sake of some forks, and Caffe and SSD do not, with their defaults. The
last of several values in a file counts."""


_PRIVATE = range(800_000, 900_000)
"""The numbers of fields that proto/caffe.proto lacks. No fork uses any of them."""
_DIALECT = 900_000
"""The number of an unknown field of a NetParameter in memory, the index of the dialect that wrote it. Copies have it,
text and files do not."""
_TYPES = {
    name.removeprefix("TYPE_").lower(): number for name, number in descriptor_pb2.FieldDescriptorProto.Type.items()
}


def _file() -> Any:
    """proto/caffe.proto in a pool of this module's own: its classes parse and write in their own way.

    It has all other fields of the forks too, with which scripts make or edit text.
    """
    pool = descriptor_pool.DescriptorPool()
    data = Path(recognition.__file__).with_name("caffe.binpb").read_bytes()
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(data).file
    for message in file.message_type:
        for field in message.field:
            if (key := f"{message.name}.{field.name}") in _OPTIONAL:
                field.label = field.LABEL_OPTIONAL
                if default := _OPTIONAL[key]:
                    field.default_value = default
    known = {message.name: message for message in file.message_type}
    enums = {enum.name for enum in file.enum_type}
    added = [name for name in dialects.messages() if name not in known and name not in enums]
    known |= {name: file.message_type.add(name=name) for name in added if "." not in name}
    for name, message in known.items():
        taken = {field.name for field in message.field}
        for fact in dialects.fields(name):
            if fact.name not in taken and (fact.message is None or fact.message in known):
                taken.add(fact.name)
                _add(message, fact, _PRIVATE[len(taken)])
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindFileByName("caffe.proto")


def _add(message: Any, fact: Fact, number: int) -> None:
    """Adds a field of a fork to a descriptor."""
    field = message.field.add(name=fact.name, json_name=fact.name, number=number, type=_TYPES[fact.kind])
    field.label = field.LABEL_REPEATED if fact.repeated else field.LABEL_OPTIONAL
    if fact.message is not None:
        field.type_name = f".caffe.{fact.message}"
    elif fact.kind == "enum":
        field.type_name = _add_enum(message, fact)
        if fact.default in (fact.values or {}):
            field.default_value = fact.default
    elif fact.default and not fact.repeated and fact.kind not in ("string", "bytes"):
        field.default_value = fact.default


def _add_enum(message: Any, fact: Fact) -> str:
    """Adds the enum of a field, with its values in the message where their names are free there; its name."""
    taken = {value.name for enum in message.enum_type for value in enum.value}
    inside = message if taken.isdisjoint(fact.values or {}) else message.nested_type.add(name=f"Of_{fact.name}")
    enum = inside.enum_type.add(name=f"Values_{fact.name}")
    enum.options.allow_alias = len(set((fact.values or {}).values())) < len(fact.values or {})
    for name, value in (fact.values or {}).items():
        enum.value.add(name=name, number=value)
    holder = message.name if inside is message else f"{message.name}.{inside.name}"
    return f".caffe.{holder}.{enum.name}"


DESCRIPTOR = _file()


def _define(space: dict[str, Any]) -> None:
    """Puts all messages, enums and values of the file into the module."""
    for name, descriptor in DESCRIPTOR.message_types_by_name.items():
        space[name] = message_factory.GetMessageClass(descriptor)
        space[name].__module__ = __name__  # for pickle
    for name, enum in DESCRIPTOR.enum_types_by_name.items():
        space[name] = EnumTypeWrapper(enum)
        space.update({value.name: value.number for value in enum.values})


def __getattr__(name: str) -> Any:
    """The descriptors that a generated module has under names such as ``_V1LAYERPARAMETER_LAYERTYPE``."""
    found = _descriptors().get(name)
    if found is None:
        raise AttributeError(f"module 'caffe.proto.caffe_pb2' has no attribute '{name}'")
    return found


@functools.cache
def _descriptors() -> dict[str, Any]:
    table = {}
    for name, descriptor in DESCRIPTOR.message_types_by_name.items():
        table[f"_{name}".upper()] = descriptor
        table.update({f"_{name}_{enum.name}".upper(): enum for enum in descriptor.enum_types})
    table.update({f"_{name}".upper(): enum for name, enum in DESCRIPTOR.enum_types_by_name.items()})
    return table


# -- files of any fork ---------------------------------------------------------------------------------------------


def _read_as_recognized(class_: Any) -> None:
    """Lets a message be parsed with the numbers of the fork that wrote it."""
    kind, parse = class_.DESCRIPTOR.name, class_.ParseFromString

    def parse_from_string(self: Any, serialized: Any) -> int:
        """Replaces the message by the one that is serialized; returns the number of bytes.

        Raises:
            google.protobuf.message.DecodeError: the bytes are not such a message.
        """
        try:
            message, found = recognition.read(serialized, kind, kind, assumed())
        except CaffePortError:
            return int(parse(self, serialized))  # protobuf's own error
        if found is None or any(one.number in _PRIVATE for one in found.unknown):  # our own bytes
            return int(parse(self, serialized))
        for one in found.unknown:
            warnings.warn(f"dropped what has no meaning here: {one}", stacklevel=2)
        parse(self, b"".join((*wire.serialize(message, own_numbers=True), *_mark(message, found.dialect))))
        return len(serialized)

    def from_string(serialized: Any) -> Any:
        """The message that is serialized."""
        message = class_()
        message.ParseFromString(serialized)
        return message

    class_.ParseFromString = parse_from_string
    class_.FromString = staticmethod(from_string)


def _write_with_numbers_of_forks(class_: Any) -> None:
    """Lets a NetParameter be written as the fork reads it that has its layers."""

    def replaced(serialize: Any) -> Any:
        @functools.wraps(serialize)
        def serialize_to_string(self: Any, **options: Any) -> bytes:
            data: bytes = serialize(self, **options)
            message = wire.parse(data, class_.DESCRIPTOR.name)
            marks = message.unknown.pop(_DIALECT, [])
            dialect = next((d for d in dialects.dialects() if marks and marks[-1] == _index(d)), None)
            if _has_private(message):
                return _without_mark(self, serialize, options) if marks else data
            if not (marks or any(map(_of_a_fork, message.layer))):
                return data
            _refuse_what_is_read_as_another(message, dialect)
            return b"".join(wire.serialize(message, dialect=dialect))

        return serialize_to_string

    class_.SerializeToString = replaced(class_.SerializeToString)
    class_.SerializePartialToString = replaced(class_.SerializePartialToString)


def _mark(message: Message, dialect: Dialect) -> list[bytes]:
    """The field that says which dialect a net was read with, if it would be written otherwise without knowing."""
    fields = [(one, name, value) for one in message.layer for name, value in one.items()]
    old = dialect.era == "V1" and _bytes(message, None) != _bytes(message, dialect)
    if not old and all(_numbers(*field, None) == _numbers(*field, dialect) for field in fields):
        return []
    return [encoder.TagBytes(_DIALECT, 2), bytes([len(_index(dialect))]), _index(dialect)]


def _bytes(message: Message, dialect: Dialect | None) -> bytes:
    """A net's V1 layers, without blobs."""
    layers = [layer.copy(blobs=None) for layer in message.layers]
    return b"".join(wire.serialize(Message("NetParameter", layers=layers), dialect=dialect))


def _index(dialect: Dialect) -> bytes:
    return str(dialect.index).encode()


def _numbers(layer: Message, name: str, value: Any, dialect: Dialect | None) -> tuple[int, list[int]]:
    """The number with which a field of a layer is written, and those of the fields in it."""
    number, inside = written(layer.type, name, value, dialect)
    if not isinstance(value, Message) or value.schema is None:
        return number, []
    return number, [inside.get(key, value.schema.fields[key].number) for key, _ in value.items()]


def _without_mark(message: Any, serialize: Any, options: dict[str, Any]) -> bytes:
    copy = type(message)()
    copy.CopyFrom(message)
    copy.DiscardUnknownFields()
    return bytes(serialize(copy, **options))


def _refuse_what_is_read_as_another(message: Message, dialect: Dialect | None) -> None:
    """Raises EncodeError for a field that the dialect lacks, and whose number means another one there."""
    layout = {} if dialect is None else dialect.layout("LayerParameter")
    for layer in message.layer:
        for name, value in layer.items():
            number, _ = written(layer.type, name, value, dialect)
            if number in layout and layout[number].name != name:
                raise EncodeError(
                    f"layer '{layer.name}' ({layer.type}): {name} cannot be written into a net that was read as one of "
                    f"{dialect}, where its number, {number}, is {layout[number].name}"
                )


def _has_private(message: Message) -> bool:
    """Whether a message has a field that proto/caffe.proto lacks."""
    if any(number in _PRIVATE for number in message.unknown):
        return True
    values = (one for _, value in message.items() for one in (value if isinstance(value, list) else [value]))
    return any(_has_private(one) for one in values if isinstance(one, Message))


def _of_a_fork(layer: Message) -> bool:
    """Whether a layer has other numbers in a file than in proto/caffe.proto."""
    assert layer.schema is not None
    fields = layer.schema.fields
    return any(written(layer.type, name, value) != (fields[name].number, {}) for name, value in layer.items())


_define(globals())
_read_as_recognized(globals()["NetParameter"])
_read_as_recognized(globals()["BlobProto"])
_write_with_numbers_of_forks(globals()["NetParameter"])
