"""Recording traces, also with a pycaffe that is played by our own Net."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import HERE, ROOT

from caffe_port.data.preprocessing import Preprocessing
from caffe_port.errors import CaffePortError, DependencyError
from caffe_port.verification.dump import dump
from caffe_port.verification.references.opencv import OpenCVReference
from caffe_port.verification.references.pycaffe import PYTHON_VARIABLE, PycaffeReference, definition, script
from caffe_port.verification.references.trace import Trace, read_golden
from caffe_port.verification.subject import prepare
from caffe_port.verification.verify import verify

CAFFE = (HERE / "helpers" / "played_pycaffe" / "caffe.py").read_text(encoding="utf-8")


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "played"
    folder.mkdir()
    (folder / "caffe.py").write_text(CAFFE)
    root = ROOT
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{root}")
    return folder


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
    assert imported == {"argparse", "json", "os", "sys", "numpy", "caffe"}


def test_the_script_records_what_the_net_computes(golden: Path, tmp_path: Path, played: Path) -> None:
    case = golden / "layers/autosplit_inplace"
    (tmp_path / "dump.py").write_text(script())
    command = [sys.executable, "dump.py", str(case.with_suffix(".prototxt")), "-", "t.npz", "--seed", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("5 tops of 5 layers written to t.npz")
    trace = Trace.load(tmp_path / "t.npz")
    assert trace.provenance["producer"] == "Caffe 1.0-played"
    assert verify(case.with_suffix(".prototxt"), against=trace).passed


def test_pycaffe_in_a_process_of_its_own(golden: Path, played: Path) -> None:
    case = golden / "layers/batchnorm_scale_inplace"
    report = verify(case.with_suffix(".prototxt"), case.with_suffix(".caffemodel"), against="pycaffe")
    assert report.passed
    assert report.reference == "pycaffe"
    assert report.not_compared == 0
    case = golden / "layers/relu_default"
    trace = PycaffeReference().trace(prepare(case.with_suffix(".prototxt")).case, backward=True)
    assert set(trace.input_gradients) == {"x"}
    assert (trace.input_gradients["x"] == 7).all()
    assert set(trace.top_gradients) == {"y"}
    # The played Caffe says 7 for every gradient, which is not ReLU's: the comparison sees it.
    compared = verify(case.with_suffix(".prototxt"), against="pycaffe", backward=True)
    assert not compared.passed
    assert [row.blob for row in compared.rows if row.status == "failed"] == ["x"]


def test_what_goes_to_caffe_is_what_the_spec_says(golden: Path) -> None:
    subject = prepare(golden / "layers/autosplit_inplace.prototxt", input_shapes={"x": (3, 6, 7, 5)})
    net = definition(subject.case)
    assert [layer.type for layer in net.layer] == ["Input", "ReLU", "Power", "Sigmoid", "Eltwise"]
    assert list(net.layer[0].input_param.shape[0].dim) == [3, 6, 7, 5]


def test_without_pycaffe(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = golden / "layers/relu_default.prototxt"
    with pytest.raises(DependencyError, match="has no pycaffe") as error:
        verify(net, against="pycaffe")
    assert "dump --script" in error.value.hint
    monkeypatch.setenv(PYTHON_VARIABLE, "/no/such/python")
    with pytest.raises(DependencyError, match="cannot be run: No such file"):
        verify(net, against="pycaffe")


def test_a_failed_check_of_caffe_is_an_error(golden: Path, played: Path, tmp_path: Path) -> None:
    net = tmp_path / "explode.prototxt"
    net.write_text((golden / "layers/relu_default.prototxt").read_text().replace('name: "relu"', 'name: "explode"'))
    with pytest.raises(CaffePortError, match=r"Caffe refuses the net: .*Unknown layer type"):
        verify(net, against="pycaffe")


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
