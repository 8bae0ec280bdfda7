"""protobuf as the oracle: its classes for caffe-port's schema, random messages, and both kinds as plain values."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from google.protobuf import message_factory, text_format
from hypothesis import strategies as st

from caffe_port.formats import message
from caffe_port.formats.message import Message, schema

_RANGES = {
    "int32": (-(1 << 31), (1 << 31) - 1),
    "uint32": (0, (1 << 32) - 1),
    "int64": (-(1 << 63), (1 << 63) - 1),
    "uint64": (0, (1 << 64) - 1),
}


@functools.cache
def of(name: str) -> Any:
    """protobuf's class of caffe.<name>."""
    return message_factory.GetMessageClass(message._pool().FindMessageTypeByName(f"caffe.{name}"))


def parse_text(text: str, name: str) -> Any:
    return text_format.Parse(text, of(name)(), descriptor_pool=message._pool())


def plain(value: Any) -> Any:
    """A message of protobuf's or caffe-port's as nested dicts of the set fields, with floats as float32 bytes."""
    if isinstance(value, Message):
        assert value.schema is not None
        fields = value.schema.fields
        return {name: plain_field(fields[name].kind, one) for name, one in value.items()}
    return {
        field.name: plain_field(schema(value.DESCRIPTOR.full_name[6:]).fields[field.name].kind, one, field)
        for field, one in value.ListFields()
    }


def plain_field(kind: str, value: Any, field: Any = None) -> Any:
    if not isinstance(value, (str, bytes, int, float, Message, memoryview)) and hasattr(value, "__len__"):
        return [plain_field(kind, one, field) for one in value]
    if kind == "message":
        return plain(value)
    if kind == "enum":
        return value if isinstance(value, str) else field.enum_type.values_by_number[value].name
    if kind in ("float", "double"):
        dtype = np.float32 if kind == "float" else np.float64
        with np.errstate(over="ignore"):
            return "nan" if math.isnan(value) else dtype(value).tobytes()
    return value


@functools.cache
def messages(name: str, depth: int = 0) -> st.SearchStrategy[Any]:
    """Random protobuf messages of a type of the schema."""
    return st.builds(functools.partial(_fill, name), _choices(name, depth))


def _fill(name: str, values: dict[str, Any]) -> Any:
    made = of(name)()
    for field, value in values.items():
        spec = schema(name).fields[field]
        if spec.kind == "message":
            target = getattr(made, field)
            for one in value if spec.repeated else [value]:
                (target.add() if spec.repeated else target).CopyFrom(one)
                if not spec.repeated:
                    target.SetInParent()
        elif spec.repeated:
            getattr(made, field).extend(value)
        else:
            setattr(made, field, value)
    return made


def _choices(name: str, depth: int) -> st.SearchStrategy[dict[str, Any]]:
    fields = {f.name: f for f in schema(name).fields.values() if not (f.kind == "message" and depth >= 3)}
    if not fields:
        return st.just({})
    return st.lists(st.sampled_from(list(fields)), max_size=6, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({name: _values(fields[name], depth) for name in chosen})
    )


SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "float": st.floats(width=32),
    "double": st.floats(),
    "bool": st.booleans(),
    "bytes": st.binary(max_size=6),
    "string": st.text(st.characters(codec="utf-8"), max_size=8),
    **{kind: st.integers(low, high) for kind, (low, high) in _RANGES.items()},
}


def _values(field: message.Field, depth: int) -> st.SearchStrategy[Any]:
    if field.message_name is not None:
        one = messages(field.message_name, depth + 1)
    elif field.kind == "enum":
        one = st.sampled_from(sorted(set((field.values or {}).values())))
    else:
        one = SCALARS[field.kind]
    return st.lists(one, min_size=1, max_size=4) if field.repeated else one
