"""What fuzzing found, again: every input of tests/corpus ends in a result or a CaffePortError, silently and soon."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fuzz import seeds, targets

CORPUS = Path(__file__).with_name("corpus")
INPUTS = sorted(path for path in CORPUS.glob("*/*") if path.parent.name != "differential")  # test_differential.py's


@pytest.mark.parametrize("path", INPUTS, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_findings_stay_fixed(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    began = time.process_time()
    targets.check(path.parent.name, path.read_bytes())
    assert time.process_time() - began < 10
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("target", targets.TARGETS)
def test_seeds_cut_and_changed(target: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A little of what `make fuzz` does: two seeds of every target, cut, doubled, with every byte value somewhere."""
    places = {"onnx_names": 0, "dialect": 4}.get(target, 40)  # an export takes a second, the dialects a tenth
    found = sorted(seeds.seeds(target), key=len)[:2]
    capfd.readouterr()
    for data in found:
        targets.check(target, data)
        for k in range(places):
            at = len(data) * k // places
            for changed in (data[:at], data[:at] + bytes([7 * k % 256]) + data[at + 1 :], data[:at] + data):
                targets.check(target, changed)
    assert capfd.readouterr() == ("", "")


def test_every_input_belongs_to_a_target_and_is_small() -> None:
    assert {path.parent.name for path in INPUTS} <= set(targets.TARGETS)
    assert sum(path.stat().st_size for path in INPUTS) < 1 << 20
