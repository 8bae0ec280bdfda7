"""A verification as JUnit XML, for continuous integration systems: one test case per top."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from caffe_port.verification.comparison import Difference, Report, Row

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(report: Report) -> str:
    """The report as a JUnit test suite; tops that were not compared are skipped, with the reason."""
    suite = ElementTree.Element(
        "testsuite",
        name=_text(f"caffe-port verify {report.net}"),
        tests=str(len(report.rows)),
        failures=str(report.failed),
        skipped=str(report.not_compared),
        errors="0",
    )
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in {"reference": report.reference, **report.provenance}.items():
        ElementTree.SubElement(properties, "property", name=_text(name), value=_text(value))
    for row in report.rows:
        name = f"{row.layer}:{row.top}" if row.top else row.layer
        case = ElementTree.SubElement(suite, "testcase", classname=_text(f"{report.net}.{row.type}"), name=_text(name))
        if row.status == "not compared":
            ElementTree.SubElement(case, "skipped", message=_text(row.note))
        elif row.status == "failed":
            failed = ElementTree.SubElement(case, "failure", message=_text(_message(row)))
            failed.text = _text("\n".join(_lines(row)))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, "unicode", xml_declaration=True) + "\n"


def _message(row: Row) -> str:
    if row.cause:
        return row.cause
    worst = max(
        (d for d in (row.isolated, row.free) if d is not None and not d.passed),
        default=None,
        key=lambda d: d.needed_atol,
    )
    if worst is None:
        return "more than twice as far from a float64 run as the reference"
    rest = "" if row.broken else ", because an earlier layer differs"
    return (worst.reason or f"differs by {worst.greatest:.3g}; passes with atol {worst.needed_atol:.3g}") + rest


def _lines(row: Row) -> list[str]:
    return [
        f"{kind}: {_numbers(found)}"
        for kind, found in (("free", row.free), ("isolated", row.isolated))
        if found is not None
    ] + ([row.where] if row.where else [])


def _numbers(found: Difference) -> str:
    words = f"{'passed' if found.passed else 'failed'}, max |a - e| {found.greatest:.6g} at {found.at}"
    share = f"{found.outside} of {found.count} elements are outside the tolerance"
    return f"{words}: {found.actual:.7g}, expected {found.expected:.7g}; {share}"


def _text(text: str) -> str:
    """The text without characters that XML does not allow."""
    return _NOT_XML.sub("\ufffd", text)
