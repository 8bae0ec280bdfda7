"""Text tables for a terminal."""

from __future__ import annotations

import pytest

from caffe_port.errors import printable
from caffe_port.terminal import columns_of, count, human_bytes, shorten, table


def test_printable() -> None:
    assert printable("a\x1b[31m\u202eb\x00\x9b\n") == "a\\x1b[31m\\u202eb\\x00\\x9b\\n"
    assert printable("Größe 卷积 é") == "Größe 卷积 é"


@pytest.mark.parametrize(
    ("text", "width", "short"),
    [("conv1", 5, "conv1"), ("inception_3a/relu_5x5_reduce", 14, "inceptio..duce"), ("卷积层卷积层", 8, "卷积..层")],
)
def test_shorten(text: str, width: int, short: str) -> None:
    assert shorten(text, width) == short
    assert columns_of(shorten(text, width)) <= width


def test_table() -> None:
    rows = [("a", "", "1"), ("卷积", "", "22")]
    assert table(("name", "empty", "n"), rows, right=(2,)) == ["name   n", "--------", "a      1", "卷积  22"]
    narrow = table(("name", "n"), [("x" * 40, "7")], right=(1,), shrink=((0, 10),), width=20)
    assert max(map(len, narrow)) == 20
    assert len(table(("name",), [("x" * 40,)], shrink=((0, 10),), width=4)[1]) == 10, "never below its least"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (1 << 20, "1.0 MiB"),
        (1020 * 1024, "1.0 MiB"),
        (5 << 40, "5.0 TiB"),
        (5 << 52, "20,480.0 TiB"),
    ],
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("n", "nouns", "text"),
    [
        (0, ("layer",), "0 layers"),
        (1, ("layer",), "1 layer"),
        (2, ("layer",), "2 layers"),
        (1234, ("blob",), "1,234 blobs"),
        (1, ("axis", "axes"), "1 axis"),
        (3, ("axis", "axes"), "3 axes"),
    ],
)
def test_count(n: int, nouns: tuple[str, ...], text: str) -> None:
    assert count(n, *nouns) == text
