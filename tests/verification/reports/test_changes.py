"""Two reports of one net."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from caffe_port.cli import cli
from caffe_port.errors import CaffePortError
from caffe_port.verification.comparison import Report, Row, Tolerance, difference
from caffe_port.verification.reports import changes
from caffe_port.verification.reports.terminal import to_json


def row(name: str, off: float, **more: object) -> Row:
    found = difference(np.array([1.0, 2.0]), np.array([1.0, 2.0 + off]), Tolerance())
    return dataclasses.replace(Row(name, 0, "ReLU", free=found, isolated=found), **more)  # type: ignore[arg-type]


def written(folder: Path, name: str, *rows: Row, **facts: str) -> Path:
    path = folder / name
    path.write_text(to_json(Report(rows, Tolerance(), "R", provenance=facts)))
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    gone, new = Row("gone", 0, note="not compared"), row("new", 0)
    before = written(tmp_path, "a.json", row("same", 0), row("breaks", 0), row("heals", 1), gone, torch="1", date="x")
    after = written(tmp_path, "b.json", row("same", 1e-9), row("breaks", 1), row("heals", 0), new, torch="2", date="y")
    return before, after


def test_what_changed(pair: tuple[Path, Path]) -> None:
    found = changes.changes(*map(changes.read, pair))
    told = {change.layer: (change.before, change.after, change.worse) for change in found.tops}
    assert told == {
        "breaks": ("passed", "failed", True),
        "heals": ("failed", "passed", False),
        "new": ("", "passed", False),
        "gone": ("not compared", "", False),
    }
    assert found.worse
    assert found.facts == {"torch": ("1", "2")}


def test_rounding_is_no_change_and_a_tenfold_difference_is(tmp_path: Path) -> None:
    before = written(tmp_path, "a.json", row("noise", 1e-9), row("grows", 2.05e-4))
    after = written(tmp_path, "b.json", row("noise", 9e-8), row("grows", 2.3e-3))
    found = changes.changes(changes.read(before), changes.read(after))
    assert [change.layer for change in found.tops] == ["grows"]


def test_the_command(pair: tuple[Path, Path]) -> None:
    done = CliRunner().invoke(cli, ["compare", *map(str, pair)], standalone_mode=False)
    assert done.return_value == 1
    assert "torch: 1 -> 2" in done.stdout
    assert "verdict: FAILED -> FAILED; 4 tops changed, 1 for the worse" in done.stdout
    back = CliRunner().invoke(cli, ["compare", *map(str, pair[::-1]), "--json"], standalone_mode=False)
    assert json.loads(back.stdout)["worse"] is True  # what healed breaks on the way back
    same = CliRunner().invoke(cli, ["compare", str(pair[0]), str(pair[0])], standalone_mode=False)
    assert same.return_value == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no", "is not JSON"),
        ("[]", "is not a report"),
        ('{"format": "caffe-port verification", "version": 2}', "is not a report"),
        ('{"format": "caffe-port verification", "version": 1, "rows": [{}]}', "is a damaged report: KeyError"),
        ('{"format": "caffe-port verification", "version": 1, "rows": 3}', "is a damaged report: TypeError"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(CaffePortError, match=message):
        changes.read(path)
