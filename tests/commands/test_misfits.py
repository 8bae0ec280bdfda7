"""Weights that do not fit by the order of their axes alone: refused, by whatever reads them.

The cases hold as many numbers as their nets ask for, and differ by where an axis of length one stands. Caffe 1.0
refuses all three (net.cpp, CopyTrainedLayersFrom).
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import h5py
import pytest
from conftest import HERE

from caffe_port.cli import main
from caffe_port.formats import caffemodel

CASES = {
    "kernel_turned": ((4, 4, 1, 3), (4, 4, 3, 1), "kernel 3x1 / 1x3"),
    "full_conv_into_depthwise": ((1, 4, 3, 3), (4, 1, 3, 3), "num_output 4 / 1"),
    "ip_transposed": ((25, 1), (1, 25), "num_output 1 / 25"),
}
"""Name -> what the file holds, what the net asks for, and how `inspect --diff` calls it."""


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The case's files in the current folder."""
    shutil.copytree(HERE / "cases" / request.param, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return str(request.param)


def run(line: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", ["caffe-port", *line.split()])
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0), *capfd.readouterr()


@pytest.mark.parametrize("command", ["convert {} -o out", "verify {}", "verify {} --against numpy"])
@pytest.mark.parametrize("suffix", ["caffemodel", "caffemodel.h5"])
def test_they_are_refused(
    case: str, command: str, suffix: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held, asked, _ = CASES[case]
    if suffix == "caffemodel.h5":
        with h5py.File("net.caffemodel.h5", "w") as file:
            file["data/c/0"] = caffemodel.read("net.caffemodel").by_name()["c"].blobs[0]
    code, out, error = run(command.format(f"net.prototxt net.{suffix}"), capfd, monkeypatch)
    lines = error.splitlines()
    assert code == 2
    assert re.fullmatch(
        rf"error: net\.{suffix}: layer 'c' holds weight {re.escape(str(held))}, "
        rf"the \w+ asks for {re.escape(str(asked))}\.",
        lines[0],
    )
    assert len(lines) <= 2, "an error is one line, and what to do"
    assert not out
    assert not Path("out").exists()


def test_inspect_calls_them_different(
    case: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held, asked, reason = CASES[case]
    code, out, _ = run("inspect --diff net.prototxt net.caffemodel", capfd, monkeypatch)
    assert code == 1
    shown = " ".join(out.split())
    assert f"{'x'.join(map(str, asked))} {'x'.join(map(str, held))} {reason}" in shown
    assert "1 of 1 layer differs." in shown
    assert "which fits" not in shown, "the file's own definition has no input: nobody knows whether it fits"
    code, out, _ = run("inspect --diff net.prototxt net.caffemodel --json", capfd, monkeypatch)
    found = json.loads(out)
    assert (code, found["fits"], found["own_definition_fits"]) == (1, False, False)
    assert [row["verdict"] for row in found["layers"]] == ["differs"]
