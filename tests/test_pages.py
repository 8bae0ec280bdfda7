"""JUnit and HTML: well formed, self-contained, and not steered by a layer's name."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from caffe_port.verification.comparison import Report, Row, Tolerance, difference, failure
from caffe_port.verification.details import DECADES, Details, histogram
from caffe_port.verification.references.numpy_formulas import NumPyReference
from caffe_port.verification.reports.drawings import _lanes
from caffe_port.verification.reports.html import to_html
from caffe_port.verification.reports.junit import to_junit
from caffe_port.verification.runner import run
from caffe_port.verification.subject import prepare
from caffe_port.verification.verify import verify

EVIL = "</title><script>alert('x')</script>&\x1b\x00\ud800"
GOOD = difference(np.zeros((2, 3)), np.zeros((2, 3)))
BAD = difference(np.zeros((2, 3)), np.full((2, 3), 0.5))


def evil() -> Report:
    rows = (
        Row(EVIL, 0, EVIL, EVIL, EVIL, BAD, BAD, cause=EVIL),
        Row("follows", 0, "ReLU", free=BAD, isolated=GOOD),
        Row("skipped", 1, note=EVIL),
        Row("good", 0, free=GOOD),
        Row("shape", 0, free=failure("shape (1,)")),
    )
    return Report(rows, Tolerance(), EVIL, EVIL, EVIL, inputs={EVIL: EVIL}, provenance={EVIL: EVIL}, notes=(EVIL,))


class Page(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "data", "action") or k.startswith("on")]


def test_a_notebook_cannot_be_written_into() -> None:
    text = evil()._repr_html_()
    page = Page(text)
    assert set(page.tags) == {"div", "b", "br", "table", "tr", "th", "td"}
    assert not page.links
    assert "&lt;script&gt;" in text
    assert all(c.isprintable() for c in text)


def test_junit() -> None:
    root = ElementTree.fromstring(to_junit(evil()))
    assert root.attrib["tests"] == "5"
    assert root.attrib["failures"] == "3"
    assert root.attrib["skipped"] == "1"
    cases = root.findall("testcase")
    assert [len(case) for case in cases] == [1, 1, 1, 0, 1]
    assert cases[1][0].attrib["message"] == "differs by 0.5; passes with atol 0.5, because an earlier layer differs"
    assert cases[4][0].attrib["message"] == "shape (1,)"
    assert cases[2].attrib["name"] == "skipped:1"


def test_a_name_is_no_markup() -> None:
    page = Page(to_html(evil()))
    assert page.tags.count("script") == 1
    assert not page.links
    assert "\x1b" not in to_html(evil())
    to_html(evil()).encode("utf-8")


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.prototxt"
    path.write_text("""
        name: "two"
        layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 8 } } }
        layer { name: "pool" type: "Pooling" bottom: "x" top: "p" pooling_param { kernel_size: 3 stride: 2 } }
        layer { name: "relu" type: "ReLU" bottom: "p" top: "r" }
        layer { name: "sum" type: "Eltwise" bottom: "p" bottom: "r" top: "s" }
    """)
    return path


def test_the_page_of_a_good_net(net: Path) -> None:
    details = Details()
    report = verify(net, against="numpy", details=details)
    text = to_html(report, details)
    page = Page(text)
    assert "PASSED: all 3 compared tops agree" in text
    assert page.tags.count("circle") >= 6 + 4
    assert page.tags.count("rect") >= 3
    assert "2\u00d73\u00d74\u00d74" in text
    assert "<title>pool to relu, sum</title>" in text
    assert "Feature maps" not in text
    assert not page.links
    assert not re.search(r"(https?:)?//[a-z]", text)
    assert set(details.histograms) == {("pool", 0), ("relu", 0), ("sum", 0)}


@pytest.mark.parametrize("same_shape", [True, False])
def test_the_page_of_a_broken_net(net: Path, same_shape: bool) -> None:
    subject = prepare(net)
    module = subject.ported.net.pool
    setattr(module, *(("pool", "AVE") if same_shape else ("stride", (3, 3))))
    details = Details(case=subject.case)
    with torch.inference_mode():
        rows = tuple(run(subject.ported.net, NumPyReference(), subject.case, Tolerance(), details=details))
    report = subject.report(rows, Tolerance(), "NumPy", "us")
    text = to_html(report, details)
    assert "Feature maps of pool" in text
    page = Page(text)
    assert len(page.links) == (9 if same_shape else 6)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "First to diverge: <b>pool</b>" in text
    assert "title='differs itself'" in text
    assert "title='largest difference when the layer is fed the reference&#x27;s inputs'>isolated" in text


def test_the_pages_own_script_is_the_only_one_that_may_run(net: Path) -> None:
    text = to_html(verify(net, against="numpy"))
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text


def test_the_page_of_a_failing_port_has_what_that_of_a_net_has(tmp_path: Path, net: Path) -> None:
    port = tmp_path / "port.py"
    port.write_text("""
import torch.nn.functional as F
from torch import nn

class Port(nn.Module):
    def forward(self, x):
        p = F.max_pool2d(x, 2, 2, ceil_mode=True)
        return p + F.relu(p)
""")
    details = Details()
    text = to_html(verify(net, against=f"{port}:Port", details=details), details)
    assert "FAILED" in text
    assert "Feature maps of pool" in text
    assert "its kernel size is 2" in text
    assert ("relu", 0) in details.histograms
    assert "<h2>The net</h2>" in text


def test_long_pages_of_a_failure_begin_with_what_differs() -> None:
    good = tuple(Row(f"good{i}", 0, "ReLU", free=GOOD) for i in range(30))
    failing = Report((Row("bad", 0, "ReLU", free=BAD, isolated=BAD), *good), Tolerance(), "NumPy")
    assert "id='only' checked><label for='only'> hide the 30 that agree" in to_html(failing)
    assert "checked>" not in to_html(Report(good, Tolerance(), "NumPy"))


def test_lanes_do_not_meet() -> None:
    spans = {("a", 0): (0, [5]), ("b", 0): (1, [3]), ("c", 0): (3, [4, 7]), ("d", 0): (4, [5])}
    lanes, count = _lanes(spans)
    assert set(lanes) == {("a", 0), ("b", 0), ("c", 0)}
    assert count == 3 - 1
    assert lanes["b", 0] == lanes["c", 0] != lanes["a", 0]


def test_histogram_by_hand() -> None:
    expected = np.zeros(8)
    actual = np.array([0, 1e-20, 2e-10, 5e-3, 1.0, 5e7, np.nan, np.inf])
    counts = dict(zip((None, *DECADES), histogram(expected, actual), strict=True))
    assert {k: n for k, n in counts.items() if n} == {None: 2, -10: 1, -3: 1, 0: 1, 2: 3}
    assert histogram(np.array([np.nan, np.inf]), np.array([1.0, np.inf]))[0] == 1
