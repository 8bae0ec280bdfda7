"""Recording traces, also with a pycaffe that is played by our own Net."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from caffe_port.errors import CaffePortError, DependencyError
from caffe_port.verification.dump import dump
from caffe_port.verification.references.caffe import PYTHON_VARIABLE, CaffeReference, definition, script
from caffe_port.verification.references.opencv import OpenCVReference
from caffe_port.verification.references.trace import Trace, read_golden
from caffe_port.verification.subject import prepare
from caffe_port.verification.verify import verify

CAFFE = '''
"""What pycaffe looks like to the script, played by caffe_port."""
import sys
from collections import OrderedDict

import numpy as np
import torch

from caffe_port.api import port
from caffe_port.definition.definition import Definition

TEST, TRAIN, __version__ = 1, 0, "1.0-played"


def set_mode_cpu():
    pass


class Blob:
    def __init__(self, data):
        self.data = np.array(data, np.float32)
        self.diff = np.zeros_like(self.data)

    def reshape(self, *shape):
        self.__init__(np.zeros(shape))


class Layer:
    def __init__(self, type):
        self.type = type


class Net:
    def __init__(self, prototxt, *rest):
        weights = rest[0] if len(rest) == 2 else None
        if "explode" in open(prototxt).read():
            sys.stderr.write("F0101 layer_factory.hpp:81] Check failed: registry.count Unknown layer type\\n")
            sys.exit(134)
        self.net = port(prototxt, weights, keep_loss=True).net.train(rest[-1] == TRAIN)
        spec = self.net.plan.spec
        self.spec = spec
        self._layer_names = [layer.name for layer in spec.layers]
        self.layers = [Layer(layer.type) for layer in spec.layers]
        self._blob_names = list(OrderedDict.fromkeys(top for layer in spec.layers for top in layer.tops))
        self.blobs = OrderedDict()
        for layer in spec.layers:
            for k, top in enumerate(layer.tops):
                self.blobs[top] = Blob(np.zeros(self.net.plan.shapes[layer.name, k]))
        self.inputs = [blob for blob, _ in spec.inputs]
        self.outputs = [blob for blob, _ in spec.outputs]
        self.params = OrderedDict((name, [Blob(b) for b in blobs]) for name, blobs in self.net.blobs().items())
        self.steps = None

    def reshape(self):
        pass

    def _top_ids(self, index):
        return [self._blob_names.index(top) for top in self.spec.layers[index].tops]

    def _forward(self, start, end):
        if self.steps is None:
            self.steps = self.net.steps(*(torch.from_numpy(self.blobs[b].data) for b in self.inputs))
        layer = self.spec.layers[start]
        if layer.type == "Input":
            return
        with torch.no_grad():
            turn = next(self.steps)
        assert turn.layer.name == layer.name
        for name, top in zip(layer.tops, turn.tops):
            self.blobs[name].data = top.numpy()

    def _backward(self, start, end):
        for name in self.inputs:
            self.blobs[name].diff[...] = 7
'''


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
    trace = CaffeReference().trace(prepare(case.with_suffix(".prototxt")).case, backward=True)
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
    with pytest.raises(CaffePortError, match="has no figures for argmax"):
        dump(tmp_path / "t.npz", golden / "layers/argmax_default.prototxt", by=OpenCVReference())
    assert not list(tmp_path.iterdir())
