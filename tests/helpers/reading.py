"""Counts how often files are opened and parsed, and nets resolved."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from caffe_port.definition.definition import Definition
from caffe_port.formats import caffemodel, prototxt


@dataclass
class Reading:
    """What happened to a net's files.

    Attributes:
        opened: how often by the file's name.
        parsed: how often by the file's name: prototxt text, or a .caffemodel's bytes.
        resolved: (file's name, phase) -> how often a NetSpec was made.
    """

    opened: Counter[str] = field(default_factory=Counter)
    parsed: Counter[str] = field(default_factory=Counter)
    resolved: Counter[tuple[str, str]] = field(default_factory=Counter)

    def of(self, *paths: Path) -> dict[str, tuple[int, int]]:
        """File name -> (opened, parsed)."""
        return {path.name: (self.opened[path.name], self.parsed[path.name]) for path in paths}


@contextlib.contextmanager
def counted() -> Iterator[Reading]:
    """Counts within the block."""
    found = Reading()
    open_, parse_text, parse_bytes, spec = os.open, prototxt.parse, caffemodel.recognize, Definition._resolved

    def opening(path: Any, *args: Any, **kwargs: Any) -> int:
        found.opened[Path(os.fsdecode(path)).name] += 1
        return open_(path, *args, **kwargs)

    def parsing_text(text: str, message_type: str, where: str = "<text>", *args: Any) -> Any:
        found.parsed[Path(where).name] += 1
        return parse_text(text, message_type, where, *args)

    def parsing_bytes(data: Any, message_type: str, where: str, *args: Any, **kwargs: Any) -> Any:
        found.parsed[Path(where).name] += 1
        return parse_bytes(data, message_type, where, *args, **kwargs)

    def resolving(self: Definition, phase: str, *args: Any) -> Any:
        found.resolved[Path(self.path).name, phase] += 1
        return spec(self, phase, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", opening)
        patch.setattr(prototxt, "parse", parsing_text)
        patch.setattr(caffemodel, "recognize", parsing_bytes)
        patch.setattr(Definition, "_resolved", resolving)
        yield found
