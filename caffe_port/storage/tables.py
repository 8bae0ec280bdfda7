"""Builds a frozen dataclass from an untrusted TOML or JSON table, and checks every key and the type of every value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from caffe_port.errors import CaffePortError, did_you_mean

_NAMES = {"tuple[float, ...]": "list", "tuple[int, int]": "list of two int"}


def build(cls: type[Any], table: Any, where: str, given: Mapping[str, Any] | None = None) -> Any:
    """Builds a dataclass annotated with str, int, float, bool, None, tuple[float, ...] or tuple[int, int].

    Args:
        cls: the dataclass; its module imports ``annotations`` from ``__future__``.
        table: the parsed TOML or JSON; a list becomes a tuple.
        where: location for error messages.
        given: fields that do not come from the table.

    Raises:
        CaffePortError: not a table; a key is missing, unknown or of the wrong type; or the dataclass rejects a value.
    """
    if not isinstance(table, dict):
        raise CaffePortError("is missing or not a table", where)
    known = {f.name: f for f in fields(cls) if f.name not in (given or {})}
    values = {}
    for key, value in table.items():
        if key not in known:
            raise CaffePortError(f"'{key}' is not a known field.{did_you_mean(key, known)}", where)
        values[key] = _value(value, str(known[key].type).split(" | "), key, where)
    missing = [name for name, f in known.items() if name not in table and f.default is MISSING]
    if missing:
        raise CaffePortError(f"is missing the field{'s' * (len(missing) > 1)} {', '.join(missing)}", where)
    try:
        return cls(**values, **(given or {}))
    except CaffePortError as error:
        raise CaffePortError(error.what, where) from None


def _value(value: Any, kinds: list[str], key: str, where: str) -> Any:
    for kind in kinds:
        if kind == "tuple[float, ...]" and isinstance(value, (list, tuple)):
            if not all(_is(v, "float") for v in value):
                raise CaffePortError(f"'{key}' contains a value that is not a number", where)
            return tuple(float(v) for v in value)
        if kind == "tuple[int, int]" and isinstance(value, (list, tuple)):
            if len(value) == 2 and all(_is(v, "int") for v in value):
                return tuple(value)
        elif _is(value, kind):
            return value
    names = [_NAMES.get(kind, kind) for kind in kinds if kind != "None"]
    raise CaffePortError(f"'{key}' is {value!r}, expected {' or '.join(names)}", where)


def _is(value: Any, kind: str) -> bool:
    """Whether a plain value has a type. TOML and JSON may write 1 for 1.0; true is not 1, and 10^400 not a float."""
    name = "None" if value is None else type(value).__name__
    return name == kind or (kind == "float" and name == "int" and abs(value) < 1 << 1023)
