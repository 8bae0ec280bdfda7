"""Caffe as the reference: finding it, its words, what it does not know; with a Caffe that is played by our own Net."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from caffe_port.errors import CaffePortError, DependencyError
from caffe_port.verification.references import build_caffe, caffe
from caffe_port.verification.references.caffe import PYTHON_VARIABLE, CaffeReference, definition, find
from caffe_port.verification.references.reference import StoredReference, asked_first
from caffe_port.verification.references.trace import Trace
from caffe_port.verification.reports.terminal import verdict
from caffe_port.verification.subject import find_reference, prepare
from caffe_port.verification.verify import verify

NET = """
    layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 4 } } }
    layer { name: "a" type: "Convolution" bottom: "x" top: "a" convolution_param { num_output: 4 kernel_size: 3 } }
    layer { name: "b" type: "Power" bottom: "a" top: "b" power_param { scale: 2 shift: 1 } }
    layer { name: "c" type: "TanH" bottom: "b" top: "b" }
    layer { name: "d" type: "Threshold" bottom: "b" top: "d" }
    layer { name: "e" type: "Eltwise" bottom: "b" bottom: "d" top: "e" }
"""


@pytest.fixture(autouse=True)
def _nothing_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CAFFE_PORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = ROOT / "tests/helpers/played_caffe"
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{ROOT}")
    return folder


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.prototxt"
    path.write_text(NET)
    return path


def program(path: Path, code: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{code}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# -- which Caffe ----------------------------------------------------------------------------------------------------


def saying(version: str) -> str:
    return f"""echo chatter; echo '["{version}", "/opt/{version}/caffe/__init__.py", ["ReLU", "Power"]]'"""


def test_the_order_in_which_it_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, played: Path) -> None:
    assert find().version == "1.0-played"
    assert find().name == f"Caffe 1.0-played ({played})"
    program(build_caffe.folder() / "bin/python", saying("1.0.0"))
    assert find().version == "1.0-played"  # a build that was interrupted is none
    (build_caffe.folder() / build_caffe.STAMP).write_text("{}")
    found = find()
    assert found.name == "Caffe 1.0.0 (brocolli-caffe 9.0.2)"
    assert found.command[1:] == ("-I",)
    assert found.types == {"ReLU", "Power"}
    monkeypatch.setenv(PYTHON_VARIABLE, str(program(tmp_path / "own", saying("0.9"))))
    assert find().name == "Caffe 0.9 (/opt/0.9/caffe)"


def test_relative_paths_and_folders_of_that_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, played: Path, golden: Path
) -> None:
    (tmp_path / "caffe").mkdir()  # a checkout of Caffe beside the net is no package
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH")
    with pytest.raises(DependencyError, match="has no pycaffe"):
        find()
    (tmp_path / "python").symlink_to(played)
    monkeypatch.setenv("PYTHONPATH", f"python{os.pathsep}{ROOT}")
    assert verify(golden / "layers/relu_default.prototxt", against="caffe").passed
    program(tmp_path / "own", f'exec {sys.executable} "$@"')
    monkeypatch.setenv(PYTHON_VARIABLE, "./own")
    assert find().command == (str(tmp_path / "own"),)


def test_there_is_none(monkeypatch: pytest.MonkeyPatch, net: Path) -> None:
    for word in ("caffe", "pycaffe"):
        with pytest.raises(DependencyError, match="has no pycaffe") as error:
            verify(net, against=word)
        assert "caffe-port build-caffe" in error.value.hint
        assert "dump --script" in error.value.hint
    monkeypatch.setenv(PYTHON_VARIABLE, "/no/such/python")
    with pytest.raises(DependencyError, match="cannot be run: No such file"):
        verify(net, against="caffe")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ('echo "ImportError: libboost_python.so.1" >&2; exit 1', "cannot import caffe: ImportError: lib"),
        ("echo \"ModuleNotFoundError: No module named 'caffe'\" >&2; exit 1", "has no pycaffe"),
        ("echo \"ModuleNotFoundError: No module named 'caffe._caffe'\" >&2; exit 1", "No module named 'caffe._caffe'"),
        ("exit 3", "it exits with code 3 and no message"),
        ("echo hello", "is not a Python interpreter: it prints 'hello"),
    ],
)
def test_an_import_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, says: str) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, str(program(tmp_path / "python", code)))
    with pytest.raises(DependencyError) as error:
        find()
    assert says in str(error.value)
    assert PYTHON_VARIABLE in error.value.hint


# -- a whole net ----------------------------------------------------------------------------------------------------


def test_in_a_process_of_its_own(golden: Path, played: Path) -> None:
    case = golden / "layers/batchnorm_scale_inplace"
    report = verify(case.with_suffix(".prototxt"), case.with_suffix(".caffemodel"), against="caffe")
    assert report.passed
    assert report.not_compared == 0
    assert not [row for row in report.rows if row.by or row.note]
    assert verdict(report).endswith(f"agree with Caffe 1.0-played ({played})")


def test_gradients(golden: Path, played: Path) -> None:
    case = golden / "layers/relu_default"
    trace = CaffeReference().trace(prepare(case.with_suffix(".prototxt")).case, backward=True)
    assert set(trace.input_gradients) == {"x"}
    assert (trace.input_gradients["x"] == 7).all()
    assert set(trace.top_gradients) == {"y"}
    # The played Caffe says 7 for every gradient, which is not ReLU's: the comparison sees it.
    compared = verify(case.with_suffix(".prototxt"), against="caffe", backward=True)
    assert not compared.passed
    assert [row.blob for row in compared.rows if row.status == "failed"] == ["x"]
    assert compared.reference == f"Caffe 1.0-played ({played})"


def test_what_goes_to_caffe_is_what_the_spec_says(golden: Path) -> None:
    subject = prepare(golden / "layers/autosplit_inplace.prototxt", input_shapes={"x": (3, 6, 7, 5)})
    net, fed = definition(subject.case)
    assert [layer.type for layer in net.layer] == ["Input", "ReLU", "Power", "Sigmoid", "Eltwise"]
    assert list(net.layer[0].input_param.shape[0].dim) == [3, 6, 7, 5]
    assert list(fed) == ["x"]
    (second,) = [layer for layer in subject.case.spec.layers if layer.type == "Eltwise"]
    rest, fed = definition(subject.case, [second], dict.fromkeys(second.producers, subject.case.inputs["x"]))
    assert [layer.type for layer in rest.layer] == ["Input", "Input", "Eltwise"]
    assert list(fed.values()) == list(second.producers)


# -- what Caffe refuses ---------------------------------------------------------------------------------------------


def test_a_failed_check_is_told_in_caffes_words(golden: Path, played: Path, tmp_path: Path) -> None:
    net = tmp_path / "explode.prototxt"
    net.write_text((golden / "layers/relu_default.prototxt").read_text().replace('name: "relu"', 'name: "explode"'))
    with pytest.raises(CaffePortError) as error:
        verify(net, against="caffe")
    said = "Caffe refuses the net, at layer 'explode': Top blob 'y' produced by multiple sources. (net.cpp:430)"
    assert error.value.what == said
    assert error.value.where == str(net)


@pytest.mark.parametrize(
    ("stderr", "code", "says"),
    [
        ("I1129 1:2:3 4 a.cpp:1] fine\nF1129 1:2:3.4 5 b.cpp:2] It broke", -6, "It broke (b.cpp:2)"),
        (
            "F20261129 1:2:3.4 5 b.cpp:2] Check failed: a == b (1 vs. 2) \nsecond line\n*** Check failure",
            -6,
            "Check failed: a == b (1 vs. 2) second line (b.cpp:2)",
        ),
        (
            "W1129 1:2:3 4 a.cpp:1] old\nTraceback\nRuntimeError: Could not open file w",
            1,
            "RuntimeError: Could not open file w",
        ),
        ("I1129 1:2:3 4 a.cpp:1] fine", -9, "its process was killed by signal 9 and no message"),
        ("", 3, "its process ended with code 3 and no message"),
    ],
)
def test_words(stderr: str, code: int, says: str) -> None:
    assert caffe._said(stderr, code) == says


@pytest.mark.parametrize(
    ("variable", "value", "layer", "why"),
    [
        ("PLAYED_LACKS", "Power", "b", "has no layer Power: compared with OpenCV"),
        (
            "PLAYED_LACKS",
            "Threshold",
            "d",
            "has no layer Threshold; OpenCV has no layer Threshold: compared with NumPy",
        ),
        ("PLAYED_FIELD", "shift", "b", 'has no field named "shift".: compared with OpenCV'),
        ("PLAYED_FORWARD", "Power", "b", "Not Implemented Yet (power_layer.cpp:56): compared with OpenCV"),
    ],
)
def test_what_caffe_does_not_know_is_compared_with_the_next(
    monkeypatch: pytest.MonkeyPatch, played: Path, net: Path, variable: str, value: str, layer: str, why: str
) -> None:
    monkeypatch.setenv(variable, value)
    report = verify(net, against="caffe")
    assert report.passed
    assert report.not_compared == 0
    assert {row.layer for row in report.rows if row.by} == {layer}
    (row,) = [row for row in report.rows if row.by]
    assert row.note.startswith("Caffe 1.0-played")
    assert row.note.endswith(why)
    told = verdict(report)
    assert told.startswith("PASSED: all 5 compared tops agree: 4 with Caffe 1.0-played")
    assert told.endswith(f", 1 with {row.by}")


def test_where_nobody_knows_it(monkeypatch: pytest.MonkeyPatch, played: Path, net: Path) -> None:
    net.write_text(NET.replace('"Threshold"', '"Swish"').replace("TanH", "ReLU"))
    monkeypatch.setenv("PLAYED_LACKS", "Swish")
    report = verify(net, against=CaffeReference())  # alone
    assert [(row.layer, row.note) for row in report.rows if row.status == "not compared"] == [
        ("d", f"Caffe 1.0-played ({played}) has no layer Swish")
    ]
    assert report.passed


def test_gradients_need_a_caffe_that_knows_the_net(monkeypatch: pytest.MonkeyPatch, played: Path, net: Path) -> None:
    monkeypatch.setenv("PLAYED_LACKS", "Power")
    with pytest.raises(CaffePortError, match="has no layer Power; gradients need a Caffe that supports every layer"):
        verify(net, against="caffe", backward=True)


# -- gradients that are not there -----------------------------------------------------------------------------------


def test_a_layer_without_gradient_gives_none(monkeypatch: pytest.MonkeyPatch, played: Path, net: Path) -> None:
    net.write_text(NET + 'layer { name: "f" type: "ArgMax" bottom: "e" top: "f" }')
    trace = CaffeReference().trace(prepare(net).case, backward=True)
    assert ("a", 0) in trace.parameter_gradients
    assert "not recorded" not in trace.provenance


def test_what_could_not_be_recorded_is_said(played: Path, tmp_path: Path) -> None:
    net = tmp_path / "embed.prototxt"
    net.write_text("""
        layer { name: "in" type: "Input" top: "i" top: "x" input_param { shape { dim: 2 } shape { dim: 2 dim: 3 } } }
        layer { name: "e" type: "Embed" bottom: "i" top: "e"
                embed_param { input_dim: 4 num_output: 3 bias_term: false } }
        layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param { num_output: 3 } }
        layer { name: "s" type: "Eltwise" bottom: "e" bottom: "ip" top: "s" }
    """)
    trace = CaffeReference().trace(prepare(net).case, backward=True)
    assert set(trace.input_gradients) == {"x"}
    assert {name for name, _ in trace.parameter_gradients} == {"ip"}
    report = verify(net, against=trace, backward=True)
    (row,) = [row for row in report.rows if row.status == "not compared"]
    assert (row.layer, row.type) == ("e", "gradient")
    assert "layer 'e' and of what comes before it (Check failed: !propagate_down[0] Can't backpropagate)" in row.note


def test_names() -> None:
    assert isinstance(asked_first(find_reference("Caffe")), CaffeReference)
    trace = Trace({("a", 0): None}, {})  # type: ignore[dict-item]
    assert isinstance(asked_first(find_reference(trace)), StoredReference)
