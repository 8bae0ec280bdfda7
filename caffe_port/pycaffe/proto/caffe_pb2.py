"""Caffe's messages as protobuf's Python classes, as a generated ``caffe_pb2`` has them.

The classes are made from caffe_port/formats/caffe.binpb (proto/caffe.proto) in a private descriptor pool, so that they
live beside a caffe_pb2 of somebody else. ``google.protobuf.text_format`` and everything else of protobuf works on them.

Differs from a generated module: proto/caffe.proto holds the fields of many forks, each under one number, while forks
give one number to several fields. Therefore a NetParameter or BlobProto is parsed as
:mod:`caffe_port.formats.recognition` reads it, whichever fork wrote the file; what has no meaning in any is dropped,
with a warning. A NetParameter is written with the numbers of a fork that has its layers; where several have, not always
of the one that wrote the file. Other messages have the numbers of proto/caffe.proto: those of Caffe and SSD, and for
other fields private ones.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import google.protobuf.text_format  # noqa: F401 - as protobuf 2: scripts use it after `import google.protobuf` alone
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from caffe_port.errors import CaffePortError
from caffe_port.formats import recognition, wire
from caffe_port.formats.dialects import assumed, written
from caffe_port.formats.message import Message

_OPTIONAL = {
    "PoolingParameter.kernel_size": "",
    "PoolingParameter.stride": "1",
    "PoolingParameter.pad": "0",
    "TransformationParameter.resize_param": "",
}
"""Fields that proto/caffe.proto repeats for the sake of some forks, and Caffe and SSD do not, with their defaults. The
last of several values in a file counts."""


def _file() -> Any:
    """proto/caffe.proto in a pool of this module's own: its classes parse and write in their own way."""
    pool = descriptor_pool.DescriptorPool()
    data = Path(recognition.__file__).with_name("caffe.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        for message in file.message_type:
            for field in message.field:
                if (key := f"{message.name}.{field.name}") in _OPTIONAL:
                    field.label = field.LABEL_OPTIONAL
                    if default := _OPTIONAL[key]:
                        field.default_value = default
        pool.AddSerializedFile(file.SerializeToString())
    return pool.FindFileByName("caffe.proto")


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
        if found is None:
            return int(parse(self, serialized))
        for one in found.unknown:
            warnings.warn(f"dropped what has no meaning here: {one}", stacklevel=2)
        parse(self, b"".join(wire.serialize(message, own_numbers=True)))
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
            return b"".join(wire.serialize(message)) if any(map(_of_a_fork, message.layer)) else data

        return serialize_to_string

    class_.SerializeToString = replaced(class_.SerializeToString)
    class_.SerializePartialToString = replaced(class_.SerializePartialToString)


def _of_a_fork(layer: Message) -> bool:
    """Whether a layer has other numbers in a file than in proto/caffe.proto."""
    assert layer.schema is not None
    fields = layer.schema.fields
    return any(written(layer.type, name, value) != (fields[name].number, {}) for name, value in layer.items())


_define(globals())
_read_as_recognized(globals()["NetParameter"])
_read_as_recognized(globals()["BlobProto"])
_write_with_numbers_of_forks(globals()["NetParameter"])
