"""Which fields of the schema code reads, by evidence: the cases of every type are built while reads are recorded."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator

import torch
from signature_cases import CASES

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.layers import class_of
from caffe_port.signatures.plugins import find

Reads = dict[str, set[str]]
"""Message type -> the fields that were read."""


@contextlib.contextmanager
def recorded() -> Iterator[Reads]:
    """Records every field that is read, by message type, within the block."""
    reads: Reads = defaultdict(set)
    get, has = Message.__getattr__, Message.has

    def note(message: Message, name: str) -> None:
        if message.schema is not None and name in message.schema.fields:
            reads[message.schema.name].add(name)

    def reading(self: Message, name: str) -> object:
        note(self, name)
        return get(self, name)

    def asking(self: Message, name: str) -> bool:
        note(self, name)
        return has(self, name)

    Message.__getattr__, Message.has = reading, asking  # type: ignore[method-assign]
    try:
        yield reads
    finally:
        Message.__getattr__, Message.has = get, has  # type: ignore[method-assign]


def by_type() -> dict[str, Reads]:
    """What building the cases of each type reads: its record's rules, its class, its fillers, its loss weights."""
    found: dict[str, Reads] = {}
    for case in CASES:
        layer = case.message
        signature = find(layer)
        assert signature is not None
        with recorded() as reads, contextlib.suppress(SpecError):
            cls = class_of(layer)
            assert cls is not None
            if cls.source:
                continue
            tops = signature.top_shapes(layer, case.bottoms) if signature.tops is not None else []
            with torch.device("meta"):
                module = cls.build(layer, case.bottoms)
            if module.blob_names():
                for filler in module.fillers(module.own_message(layer)).values():
                    _ = filler.type
            del tops
        into = found.setdefault(case.type, defaultdict(set))
        for message, names in reads.items():
            into[message] |= names
    return found
