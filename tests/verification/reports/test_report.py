"""What is printed, and the JSON that programs read."""

from __future__ import annotations

import io
import json
import math

import numpy as np
from rich.console import Console

from caffe_port.verification.comparison import Distance, Report, Row, Tolerance, difference, failure
from caffe_port.verification.reports.terminal import render, to_json, verdict

ZERO, HALF = np.zeros((2, 3)), np.full((2, 3), 0.5)
GOOD, BAD = difference(ZERO, ZERO), difference(ZERO, HALF)


def report(*rows: Row, **fields: object) -> Report:
    return Report(rows, Tolerance(), "R 1.0", net="net", **fields)  # type: ignore[arg-type]


def text(of: Report, all_rows: bool = False, terminal: bool = False, width: int = 100) -> str:
    out = io.StringIO()
    render(of, Console(file=out, force_terminal=terminal, width=width), all_rows)
    return out.getvalue()


def test_passed() -> None:
    of = report(*(Row(f"layer{i}", 0, "ReLU", free=GOOD, isolated=GOOD) for i in range(9)))
    shown = text(of)
    assert "PASSED: all 9 compared tops agree with R 1.0" in shown
    assert "4 more agree; --all shows every top" in shown
    assert "\x1b" not in shown
    assert text(of, all_rows=True).count("ok") == 9
    assert "\x1b[" in text(of, terminal=True)


def test_one_broken_layer_and_what_follows() -> None:
    rows = [Row("a", 0, "ReLU", free=GOOD, isolated=GOOD), Row("b", 1, "Slice", where="n:7", free=BAD, isolated=BAD)]
    rows += [Row(f"c{i}", 0, "ReLU", free=BAD, isolated=GOOD) for i in range(8)]
    of = report(*rows)
    shown = text(of)
    assert verdict(of) == (
        "FAILED: 9 of 10 compared tops differ from R 1.0, the first in layer 'b'; "
        "8 differ only because an earlier layer does"
    )
    assert verdict(of) in " ".join(shown.split())
    assert "first to diverge: layer 'b' (Slice), n:7" in shown
    assert "at (0, 0) it is 0.5, expected 0; 6 of 6 elements are outside the tolerance" in shown
    assert "b:1" in shown
    assert "0 more agree, 5 more differ" in shown
    assert shown.count("only because an earlier layer differs") == 3


def test_several_broken_layers_are_named() -> None:
    of = report(Row("a", 0, free=BAD, isolated=BAD), Row("b", 0, free=BAD, isolated=BAD), Row("c", 0, free=GOOD))
    assert verdict(of) == (
        "FAILED: 2 of 3 compared tops differ from R 1.0, the first in layer 'a'; 2 layers are broken: 'a', 'b'"
    )


def test_only_accumulated() -> None:
    of = report(Row("a", 0, free=GOOD, isolated=GOOD), Row("b", 0, free=BAD, isolated=GOOD))
    assert verdict(of) == (
        "FAILED: 1 of 2 compared tops differs from R 1.0, but every layer agrees in isolation: "
        "rounding errors accumulate"
    )


def test_not_compared_is_listed_and_counted() -> None:
    of = report(Row("a", 0, free=GOOD), Row("b", 0, "ArgMax", note="R has no layer ArgMax"))
    shown = text(of)
    assert "R has no layer ArgMax" in shown
    assert "PASSED: the only compared top agrees with R 1.0; 1 not compared" in shown
    assert verdict(report(Row("b", 0))) == "NOTHING COMPARED with R 1.0: no top has a counterpart"


def test_the_repr_is_one_line() -> None:
    good, skipped = Row("a", 0, free=GOOD), Row("b", 0, "ArgMax", note="R has no layer ArgMax")
    assert repr(report(good)) == "<Report of 'net' (phase TEST): PASSED: the only compared top agrees with R 1.0>"
    assert repr(report(good, skipped)).endswith("PASSED: the only compared top agrees with R 1.0; 1 not compared>")
    assert repr(report(skipped)).endswith("NOTHING COMPARED with R 1.0: no top has a counterpart>")
    red = Row("c", 0, "ReLU", free=BAD, isolated=GOOD), Row("d", 0, "Slice", free=BAD, isolated=BAD)
    assert repr(report(good, *red, skipped)) == (
        "<Report of 'net' (phase TEST): FAILED: 2 of 3 compared tops differ from R 1.0, "
        "the first in layer 'd' (Slice); 1 not compared>"
    )
    assert "\x1b" not in repr(report(Row("\x1b[31m", 0, "\x07", free=BAD)))


def test_a_notebook_shows_what_is_wrong() -> None:
    passed = report(Row("a", 0, free=GOOD), Row("near", 0, free=difference(ZERO, ZERO + 1e-6)), Row("z", 0, free=GOOD))
    shown = passed._repr_html_()
    assert "PASSED: all 3 compared tops agree" in shown
    assert "<td>near</td>" in shown
    assert "<td>a</td>" not in shown
    rows = [Row(f"layer{k}", 1, "ReLU", free=BAD, isolated=BAD, cause="its slope is 0.1") for k in range(12)]
    shown = report(Row("a", 0, free=GOOD), *rows)._repr_html_()
    assert "FAILED: 12 of 13 compared tops differ from R 1.0, the first in layer &#x27;layer0&#x27; (ReLU)" in shown
    assert "<td>layer9:1</td><td>ReLU</td><td>failed</td><td>5.0e-01</td><td>5.0e-01</td><td>its slope is 0.1" in shown
    assert "layer10" not in shown
    assert "and 2 more" in shown
    assert "NOTHING COMPARED" in report()._repr_html_()


def test_names_cannot_steer_the_terminal() -> None:
    of = report(Row("\x1b[31mred\n[bold]x[/bold]", 0, "T\x07", free=GOOD), notes=("n\x1b]0;title\x07",))
    shown = text(of, width=200)
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "\\x1b[31mred\\n[bold]x[/bold]" in shown


def test_shape_mismatch_has_no_number() -> None:
    of = report(Row("pool", 0, "Pooling", free=difference(np.zeros((2, 3)), np.zeros((2, 2)))))
    shown = text(of, width=140)
    assert "first to diverge: layer 'pool' (Pooling): shape (2, 2), expected (2, 3)" in shown
    assert "nan" not in shown


def test_json() -> None:
    nan = difference(np.array([1.0, 2.0]), np.array([1.0, math.nan]))
    of = report(
        Row("a", 0, "ReLU", "x", "n:3", GOOD, BAD),
        Row("b", 1, note="why"),
        Row("c", 0, free=nan),
        Row("d", 0, free=failure("raises")),
        inputs={"x": "words"},
        provenance={"torch": "2"},
        notes=("note",),
    )
    value = json.loads(to_json(of))
    assert list(value) == [
        "format",
        "version",
        "passed",
        "compared",
        "failed",
        "not_compared",
        "net",
        "phase",
        "reference",
        "candidate",
        "inputs",
        "provenance",
        "notes",
        "without",
        "tolerance",
        "first",
        "rows",
    ]
    assert (value["format"], value["version"]) == ("caffe-port verification", 1)
    assert (value["passed"], value["compared"], value["failed"], value["not_compared"]) == (False, 3, 3, 1)
    assert value["tolerance"] == {"atol": 1e-5, "rtol": 1e-4}
    assert value["first"] == {"layer": "a", "top": 0}
    row = value["rows"][0]
    assert set(row) == {
        "layer",
        "top",
        "type",
        "blob",
        "where",
        "status",
        "note",
        "cause",
        "by",
        "distance",
        "rounding",
        "constant",
        "free",
        "isolated",
    }
    assert set(row["isolated"]) == {
        "passed",
        "reason",
        "shape",
        "greatest",
        "at",
        "expected",
        "actual",
        "unit",
        "needed_atol",
        "relative",
        "outside",
        "count",
    }
    assert row["isolated"]["at"] == [0, 0]
    assert value["rows"][1]["free"] is None
    assert value["rows"][2]["free"]["greatest"] is None
    assert value["rows"][2]["free"]["actual"] is None
    assert "NaN or infinity" in value["rows"][2]["free"]["reason"]


def test_a_narrow_terminal_keeps_names_whole() -> None:
    """The least important columns are left out; names and types of layers are not broken into two-letter columns."""
    far = Distance(2.3e-7, 1.2e-7)
    rows = [Row(f"inception_4{c}/3x3_reduce", 0, "Convolution", free=GOOD, isolated=GOOD, distance=far) for c in "abc"]
    wide, narrow = (text(report(*rows), all_rows=True, width=width).splitlines() for width in (120, 80))
    for shown in (wide, narrow):
        line = next(line for line in shown if "inception_4b" in line)
        assert line.split()[:2] == ["inception_4b/3x3_reduce", "Convolution"]
        assert line.split()[-3:] == ["2.3e-07", "1.2e-07", "ok"]
    assert any("free   isolated" in line for line in wide)
    assert not any("free" in line for line in narrow)
    assert sum("Convolution" in line for line in narrow) == 3
    assert max(map(len, narrow)) <= 80
