"""Which fields of the schema code reads, by evidence.

For the parameters of layers: the cases of every type are built while reads are recorded. For all others: the names
that stand in the code of the rooms that read them.
"""

from __future__ import annotations

import ast
import contextlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from google.protobuf import descriptor_pb2
from signature_cases import CASES, SMALL, Case, X

import caffe_port
from caffe_port.definition.unfused import unfused
from caffe_port.errors import SpecError
from caffe_port.formats import message as messages
from caffe_port.formats.message import Field, Message, schema
from caffe_port.formats.unfollowed import Rule, rule_of
from caffe_port.layers import class_of
from caffe_port.signatures.plugins import find
from caffe_port.signatures.signature import SIGNATURES, Trait

Reads = dict[str, set[str]]
"""Message type -> the fields that were read."""

_PRIORS = ((2, 8, 1, 1), (2, 4, 1, 1), (1, 2, 8))
_LABELS = (X, (X[0], *X[2:]))
_MORE = [
    Case("DetectionOutput", "detection_output_param { num_classes: 2 nms_threshold: 0.4 }", _PRIORS),
    Case(
        "DetectionOutput", "detection_output_param { num_classes: 2 normalized: false }", ((2, 8), (2, 4), (1, 2, 10))
    ),
    Case(
        "MultiBoxLoss",
        "multibox_loss_param { num_classes: 3 mining_type: HARD_EXAMPLE nms_param { nms_threshold: 0.4 top_k: 9 } }",
        ((2, 16), (2, 12), (1, 2, 16), (1, 1, 3, 8)),
    ),
    Case("BatchNorm", "batch_norm_param { relu: false }", (X,)),
    Case("SpatialDropout", "spatial_dropout_param { dropout_ratio: 0.4 }", (X,)),
    Case("ChannelDropout", "spatial_dropout_param { dropout_ratio: 0.4 }", (X,)),
    Case("Upsampling", "upsampling_param { kernel_size: 2 }", (X,)),
    Case("SoftmaxWithLoss", "loss_param { weight_by_label_freqs: true }", _LABELS),
    Case("PriorBox", "prior_box_clustered_param { width: 3 height: 4 }", (X, SMALL)),
    Case("PriorBox", "prior_box_param { width: 3 height: 4 }", (X, SMALL)),
    *(
        Case(type_, f"{own} {{ num_output: 4 kernel_size: 3 }} quantization_param {{ precision: {precision} }}", (X,))
        for type_, own in (
            ("ConvolutionRistretto", "convolution_param"),
            ("DeconvolutionRistretto", "convolution_param"),
        )
        for precision in ("DYNAMIC_FIXED_POINT", "MINIFLOAT", "INTEGER_POWER_OF_2_WEIGHTS")
    ),
    *(
        Case(
            "FcRistretto",
            f"inner_product_param {{ num_output: 4 }} quantization_param {{ precision: {precision} }}",
            (X,),
        )
        for precision in ("DYNAMIC_FIXED_POINT", "MINIFLOAT", "INTEGER_POWER_OF_2_WEIGHTS")
    ),
]
"""Ways to read that no case of the signatures takes."""


@contextlib.contextmanager
def recorded() -> Iterator[Reads]:
    """Records every field that is read by name, by message type, within the block."""
    reads: Reads = defaultdict(set)
    get, has, items = Message.__getattr__, Message.has, Message.items

    def note(message: Message, name: str) -> None:
        if message.schema is not None and name in message.schema.fields:
            reads[message.schema.name].add(name)

    def reading(self: Message, name: str) -> object:
        note(self, name)
        return get(self, name)

    def asking(self: Message, name: str) -> bool:
        note(self, name)
        return has(self, name)

    def listing(self: Message) -> object:  # a walk over all fields follows none
        names = self.schema.fields if self.schema is not None else self._fields
        return [(name, self._fields[name]) for name in names if name in self._fields and has(self, name)]

    Message.__getattr__, Message.has, Message.items = reading, asking, listing  # type: ignore[method-assign, assignment]
    try:
        yield reads
    finally:
        Message.__getattr__, Message.has, Message.items = get, has, items  # type: ignore[method-assign]


def by_type() -> dict[str, Reads]:
    """What building the cases of each type reads: its record's rules, its class, its fillers."""
    found: dict[str, Reads] = {}
    for case in (*CASES, *_MORE):
        layer = case.message
        signature = find(layer)
        assert signature is not None
        with recorded() as reads, contextlib.suppress(SpecError):
            unfused([layer])
            cls = class_of(layer)
            assert cls is not None
            if cls.source:
                continue
            if signature.tops is not None:
                signature.top_shapes(layer, case.bottoms)
            with torch.device("meta"):
                module = cls.build(layer, case.bottoms)
            if module.blob_names():
                for filler in module.fillers(module.own_message(layer)).values():
                    _ = filler.type
        into = found.setdefault(case.type, defaultdict(set))
        for message, names in reads.items():
            into[message] |= names
    return found


_ROOMS = ("api.py", "formats", "definition", "net", "data", "training", "evaluation", "layers", "signatures", "emit")


_TABLES = {
    f"{name}.py" for name in ("unfollowed", "dialects", "recognition", "evidence", "decision", "telling", "unstated")
}
"""Modules that name fields without following them."""


def names_in_code() -> set[str]:
    """Attributes and words in the code of the rooms that read files, without the tables of fields."""
    root = Path(caffe_port.__file__).parent
    files = [
        path for room in _ROOMS for path in ([root / room] if room.endswith(".py") else (root / room).rglob("*.py"))
    ]
    found: set[str] = set()
    for path in files:
        if path.name in _TABLES:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.keyword) and node.arg:
                found.add(node.arg)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(node.value.split()) if len(node.value) < 200 else set()
    return found


def message_types() -> list[str]:
    """Every message type of proto/caffe.proto."""
    path = Path(messages.__file__).with_name("caffe.binpb")
    files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())

    def walk(message: descriptor_pb2.DescriptorProto, prefix: str) -> Iterator[str]:
        yield prefix + message.name
        for inner in message.nested_type:
            yield from walk(inner, f"{prefix}{message.name}.")

    return [name for file in files.file for message in file.message_type for name in walk(message, "")]


def owners() -> dict[str, list[str]]:
    """Message type -> the registered types of layers, other than data layers, that read it as their parameters."""
    found: dict[str, list[str]] = defaultdict(list)
    fields = schema("LayerParameter").fields
    for type_, signature in SIGNATURES.items():
        if signature.has(Trait.SOURCE) or not signature.type or type_ not in {case.type for case in CASES}:
            continue
        for name in (*signature.messages, *signature.also):
            if name in fields and fields[name].message_name:
                found[str(fields[name].message_name)].append(type_)
    return found


def judged() -> Iterator[tuple[str, Field, str, str]]:
    """(message type, field, status, words) of every field of the schema.

    The status is ``followed``, the effect of a rule, ``type`` (only layers of types that are not known read it) or
    ``gap`` (nothing accounts for it).
    """
    reads, code, own = by_type(), names_in_code(), owners()
    everywhere: Reads = defaultdict(set)
    for found in reads.values():
        for message, names in found.items():
            everywhere[message] |= names
    foreign, inherited = _of_unknown_types(own), _inherited()
    for message in message_types():
        for field in schema(message).fields.values():
            yield message, field, *_status(message, field, reads, everywhere, code, own, foreign, inherited)


def _status(
    message: str,
    field: Field,
    reads: dict[str, Reads],
    everywhere: Reads,
    code: set[str],
    own: dict[str, list[str]],
    foreign: set[str],
    inherited: dict[str, Rule],
) -> tuple[str, str]:
    rule = rule_of("", message, field.name)
    if message in inherited:
        rule = rule or inherited[message]
    if rule is not None:
        return rule.effect, rule.words
    if message in foreign:
        return "type", _UNKNOWN
    if message.endswith("LayerParameter") and field.name.endswith("_param") and field.name not in _read_messages():
        return "type", _UNKNOWN
    if message not in own:
        known = field.name in everywhere.get(message, ()) or field.name in code
        return ("followed", "") if known else ("gap", "no code")
    unread = [
        type_ for type_ in own[message] if message in reads.get(type_, {}) and field.name not in reads[type_][message]
    ]
    rules = [rule_of(type_, message, field.name) for type_ in unread]
    if None in rules:
        return "gap", ", ".join(type_ for type_, one in zip(unread, rules, strict=True) if one is None)
    if len(unread) == sum(message in reads.get(type_, {}) for type_ in own[message]) and rules[0] is not None:
        return rules[0].effect, rules[0].words
    return "followed", ""


_UNKNOWN = "only layers of types that are not known read it"


def _read_messages() -> set[str]:
    """The fields of LayerParameter that a registered type reads."""
    return {name for s in SIGNATURES.values() for name in (*s.messages, *s.also)} | {"transform_param", "loss_param"}


def _inherited() -> dict[str, Rule]:
    """The message types that only fields with a rule hold, and that rule."""
    holders: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for message in message_types():
        for name, field in schema(message).fields.items():
            if field.message_name:
                holders[field.message_name].append((message, name))
    found: dict[str, Rule] = {}
    for _ in range(3):  # as deep as such messages nest
        for held, places in holders.items():
            rules = [rule_of("", *place) or found.get(place[0]) for place in places]
            if all(rule is not None for rule in rules) and rules[0] is not None:
                found[held] = rules[0]
    return found


def _of_unknown_types(own: dict[str, list[str]]) -> set[str]:
    """The message types that only parameters of layers of unknown types hold."""
    known: set[str] = set()
    fields = schema("LayerParameter").fields
    sources = _read_messages()
    queue = [str(field.message_name) for name, field in fields.items() if field.message_name and name in sources]
    roots = ("NetParameter", "SolverParameter", "SolverState", "BlobProtoVector", "Datum")
    queue += [*own, *roots]
    while queue:
        name = queue.pop()
        if name in known:
            continue
        known.add(name)
        for field_name, field in schema(name).fields.items():
            through = name != "LayerParameter" or field_name in sources or not field_name.endswith("_param")
            through = through or field_name in ("transform_param", "loss_param")
            if field.message_name and through:
                queue.append(field.message_name)
    return set(message_types()) - known
