"""Caffe's names as Python's."""

from __future__ import annotations

import keyword

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe_port.net.identifiers import identifiers


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("conv1", "conv1"),
        ("conv1/7x7_s2", "conv1_7x7_s2"),
        ("Conv.1", "Conv_1"),
        ("1x1", "layer_1x1"),
        ("class", "layer_class"),
        ("None", "layer_None"),
        ("match", "layer_match"),
        ("a b", "a_b"),
        ("a-", "a"),
        ("_x", "layer_x"),
        ("__class__", "layer_class"),
        ("", "unnamed"),
        ("///", "unnamed"),
        ("é", "e"),
        ("卷积", "unnamed"),
        ("ﬁ", "fi"),
        ("a\n\x1b[31m", "a___31m"),
        ("x; import os", "x__import_os"),
        ("'''", "unnamed"),
        ("a" * 300, "a" * 300),
    ],
)
def test_one_name(name: str, want: str) -> None:
    got = identifiers([name])[name]
    assert got == want
    assert got.isidentifier()


def test_names_do_not_collide() -> None:
    got = identifiers(["a.b", "a_b", "a/b", "a_b_2"])
    assert got == {"a.b": "a_b_3", "a_b": "a_b", "a/b": "a_b_4", "a_b_2": "a_b_2"}


def test_names_that_are_taken() -> None:
    assert identifiers(["forward", "names", "free"], taken={"forward", "names"}) == {
        "forward": "forward_2",
        "names": "names_2",
        "free": "free",
    }


def test_the_prefix() -> None:
    assert identifiers(["1x1", "if"], prefix="blob_") == {"1x1": "blob_1x1", "if": "blob_if"}


def test_order_and_repeats() -> None:
    assert list(identifiers(["b", "a", "b"])) == ["b", "a"]


NAMES = st.lists(st.text(max_size=6) | st.sampled_from(["a", "a_", "a.", "a_2", "if", "1", "layer_1", "_a", "unnamed"]))


@settings(max_examples=400, deadline=None)
@given(NAMES, st.sets(st.sampled_from(["a", "a_2", "forward", "layer_1"])))
def test_every_name_gets_an_identifier_of_its_own(names: list[str], taken: set[str]) -> None:
    got = identifiers(names, taken)
    assert set(got) == set(names)
    assert len(set(got.values())) == len(got)
    assert not set(got.values()) & taken
    for name, identifier in got.items():
        assert identifier.isidentifier()
        assert identifier.isascii()
        assert not keyword.iskeyword(identifier)
        assert not identifier.startswith("_")
        simple = (
            name.isidentifier() and name.isascii() and not keyword.iskeyword(name) and not keyword.issoftkeyword(name)
        )
        if simple and name not in taken and not name.startswith("_") and name not in ("a_", "unnamed"):
            assert identifier == name.rstrip("_"), "a name that is an identifier keeps itself"
