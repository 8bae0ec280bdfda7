"""Recording traces, also with a Caffe that is played by our own Net."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT

from caffe_port.data.preprocessing import Preprocessing
from caffe_port.errors import CaffePortError
from caffe_port.verification.dump import dump
from caffe_port.verification.references.caffe import script
from caffe_port.verification.references.opencv import OpenCVReference
from caffe_port.verification.references.trace import Trace, read_golden
from caffe_port.verification.verify import verify


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'tests/helpers/played_caffe'}{os.pathsep}{ROOT}")


@pytest.mark.parametrize("by", ["opencv", "numpy"])
def test_dumped_and_verified(golden: Path, tmp_path: Path, by: str) -> None:
    case = golden / "layers/net_residual"
    prototxt, weights = case.with_suffix(".prototxt"), case.with_suffix(".caffemodel")
    trace = dump(tmp_path / "t.npz", prototxt, weights, by=by, seed=5)
    assert set(trace.tops) == set(read_golden(case.with_suffix(".npz")).tops)
    assert trace.provenance["input x"] == "random, standard normal, seed 5"
    report = verify(prototxt, weights, against=tmp_path / "t.npz")
    assert report.passed
    assert report.not_compared == 0
    assert "sha256" in report.provenance["trace weights"]


def test_the_script_is_python_2_and_3() -> None:
    text = script()
    tree = ast.parse(text)
    assert "from __future__ import print_function" in text
    assert not [
        n
        for n in ast.walk(tree)
        if isinstance(n, (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.Starred))
        and not (isinstance(n, ast.Starred) and isinstance(n.ctx, ast.Load))
    ]
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and (n.returns or n.args.kwonlyargs)]
    imported = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert imported == {"argparse", "json", "os", "re", "sys", "tempfile", "numpy", "caffe"}


def test_the_script_records_what_the_net_computes(golden: Path, tmp_path: Path, played: None) -> None:
    case = golden / "layers/autosplit_inplace"
    (tmp_path / "dump.py").write_text(script())
    command = [sys.executable, "dump.py", str(case.with_suffix(".prototxt")), "-", "t.npz", "--seed", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("5 tops of 5 layers written to t.npz")
    trace = Trace.load(tmp_path / "t.npz")
    assert trace.provenance["producer"] == "Caffe 1.0-played"
    assert verify(case.with_suffix(".prototxt"), against=trace).passed


def test_nothing_is_left_behind(tmp_path: Path, golden: Path) -> None:
    with pytest.raises(CaffePortError, match="cannot compute argmax"):
        dump(tmp_path / "t.npz", golden / "layers/argmax_default.prototxt", by=OpenCVReference())
    assert not list(tmp_path.iterdir())


def test_a_picture_is_blue_green_red_unless_said_otherwise(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } }\n'
        'layer { name: "y" type: "Power" bottom: "data" top: "y" power_param { scale: 2 } }\n'
    )
    cv2.imwrite(str(tmp_path / "p.png"), np.full((4, 5, 3), (1, 2, 3), np.uint8))
    for plan, want in ((None, [1, 2, 3]), (Preprocessing("RGB"), [3, 2, 1])):
        trace = dump(tmp_path / "t.npz", tmp_path / "net.prototxt", input=tmp_path / "p.png", preprocess=plan)
        assert trace.inputs["data"][1, :, 0, 0].tolist() == want
