"""Every field of the schema is followed, harmless or refused, by evidence."""

from __future__ import annotations

import sys
from pathlib import Path

import field_reads
import pytest
from conftest import ROOT

from caffe_port.formats import unfollowed
from caffe_port.formats.message import schema
from caffe_port.formats.unfollowed import Rule
from caffe_port.signatures.signature import SIGNATURES

sys.path.insert(0, str(ROOT / "docs"))
import make_fields


def test_every_field_of_the_schema_is_accounted_for() -> None:
    gaps = [
        f"{message}.{field.name}: {words}" for message, field, status, words in field_reads.judged() if status == "gap"
    ]
    assert not gaps


def test_a_field_that_nothing_reads_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its entry, each of three kinds is a gap: unread by a type, by any code, or read by one type alone."""
    rules = unfollowed.listed()
    for key in ("ELUParameter.lambda", "HDF5OutputParameter.file_name", "InfogainLoss:class_weighting"):
        del rules[key]
    monkeypatch.setattr(unfollowed, "_RULES", rules)
    gaps = {(message, field.name) for message, field, status, _ in field_reads.judged() if status == "gap"}
    assert gaps == {
        ("ELUParameter", "lambda"),
        ("HDF5OutputParameter", "file_name"),
        ("LossParameter", "class_weighting"),
    }


def test_a_followed_field_has_no_rule() -> None:
    """A rule for a field that every one of its types reads would refuse, or wave through, what is followed."""
    reads = field_reads.by_type()
    for message, types in field_reads.owners().items():
        for name in schema(message).fields:
            rule: Rule | None = unfollowed.rule_of("", message, name)
            if rule is not None and rule.effect == unfollowed.CHANGES:
                assert not any(name in reads[type_].get(message, ()) for type_ in types if type_ in reads), name


def test_rules_name_what_there_is() -> None:
    """Messages and types of the tables exist; a name outside the schema is a fork's."""
    messages = set(field_reads.message_types())
    for key in unfollowed.listed():
        if ":" in key:
            assert key.partition(":")[0] in SIGNATURES, key
        else:
            assert key.partition(".")[0] in messages | {"*"}, key


def test_the_types_read_what_their_records_say() -> None:
    fields = schema("LayerParameter").fields
    for type_, reads in field_reads.by_type().items():
        signature = SIGNATURES[type_]
        said = {*signature.messages, *signature.also, *(("python_param",) if signature.python else ())}
        messages = {name for name in reads.get("LayerParameter", ()) if fields[name].message_name}
        assert messages <= said | {"transform_param", "batch_norm_param", "pooling_param"}, type_  # the definition's


def test_the_page_is_up_to_date() -> None:
    assert Path(make_fields.PAGE).read_text("utf-8") == make_fields.text(), "run python docs/make_fields.py"
