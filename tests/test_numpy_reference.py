"""The float64 formulas against what Caffe 1.0 computed, on every golden."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN
from test_opencv_reference import case_of

import caffe_port.numpy_reference
from caffe_port import layers
from caffe_port.comparison import difference
from caffe_port.numpy_reference import FORMULAS, NumPyReference
from caffe_port.reference import record
from caffe_port.report import verdict
from caffe_port.trace import read_golden
from caffe_port.verify import verify

CASES = sorted((GOLDEN / "layers").glob("*.prototxt"))
WITHOUT = {"Data", "HDF5Data", "HDF5Output", "ImageData", "Input", "MemoryData", "Python", "WindowData"}


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_as_caffe(path: Path) -> None:
    case, expected = case_of(path)
    made = list(NumPyReference().run(case))
    assert [m.layer.name for m in made] == [layer.name for layer in case.spec.layers if layer.type != "Input"]
    for turn in made:
        assert turn.tops is not None, turn.note
        assert len(turn.tops) == len(turn.layer.tops)
        for k, top in enumerate(turn.tops):
            assert top.dtype == np.float64
            found = difference(expected[turn.layer.name, k], top)
            assert found.passed, f"{turn.layer.name}:{k}: {found}"


def test_every_type_of_caffe_that_computes_has_a_formula() -> None:
    in_goldens = {layer.type for path in CASES for layer in case_of(path)[0].spec.layers}
    assert not in_goldens - set(FORMULAS) - WITHOUT
    assert len(in_goldens & set(FORMULAS)) > 50


def test_it_shares_no_code_with_the_layers() -> None:
    for file in Path(caffe_port.numpy_reference.__file__).parent.glob("*.py"):
        imported = {
            name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        }  # fmt: skip
        assert not {name for name in imported if "layers" in name or "torch" in name}, file


@pytest.mark.parametrize("name", ["mnist_9972", "svhn_9757"])
def test_the_real_nets(shared: Path, name: str) -> None:
    trace = read_golden(shared / f"golden/nets/{name}.npz")
    prototxt = shared / f"golden/nets/{name}.prototxt"
    weights = shared / f"models/simplenet/{name}/weights.caffemodel"
    report = verify(prototxt, weights, against="numpy", input=trace.inputs["data"])
    assert report.passed
    assert (report.compared, report.not_compared) == (52, 0)


def test_an_unknown_type_is_said(tmp_path: Path) -> None:
    case, _ = case_of(GOLDEN / "layers/relu_default.prototxt")
    formula = FORMULAS.pop("ReLU")
    try:
        made = next(NumPyReference().run(case))
        assert made.tops is None
        assert made.note == "no formula for ReLU"
    finally:
        FORMULAS["ReLU"] = formula
    assert set(record(NumPyReference(), case).tops) == {("x", 0), ("relu", 0)}
    assert layers.REGISTRY


def test_the_formulas_fill_what_opencv_does_not_know(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    net = tmp_path / "net.prototxt"
    net.write_text("""
        layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 4 } } }
        layer { name: "a" type: "Power" bottom: "x" top: "a" power_param { scale: 2 } }
        layer { name: "lrn" type: "LRN" bottom: "a" top: "b" lrn_param { local_size: 3 k: 2 alpha: 0.5 } }
        layer { name: "c" type: "Threshold" bottom: "b" top: "c" }
        layer { name: "d" type: "Eltwise" bottom: "b" bottom: "c" top: "d" }
    """)
    report = verify(net)
    assert report.passed
    assert report.not_compared == 0
    assert {r.layer: r.note for r in report.rows if r.note} == {
        "lrn": "OpenCV takes LRN's k for 1: compared with NumPy",
        "c": "OpenCV has no layer Threshold: compared with NumPy",
    }
    assert [r.layer for r in report.rows if r.by] == ["lrn", "c"]
    assert "(2 of them compared with NumPy" in verdict(report)
