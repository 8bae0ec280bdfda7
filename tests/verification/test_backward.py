"""Gradients against Caffe's, through verify."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN

from caffe_port.api import port
from caffe_port.errors import CaffePortError
from caffe_port.verification.backward import gradient_rows
from caffe_port.verification.comparison import Tolerance
from caffe_port.verification.references.trace import Trace, read_golden
from caffe_port.verification.subject import prepare
from caffe_port.verification.verify import verify

SOME = (
    "net_residual",
    "batchnorm_scale_inplace_train",
    "softmaxwithloss_weight",
    "innerproduct_transpose",
    "convolution_shared_weights",
    "lstm_default",
    "pooling_ave_k3s2p1",
)


@pytest.mark.parametrize("name", SOME)
def test_as_caffe(name: str) -> None:
    path = GOLDEN / "layers" / f"{name}.npz"
    weights = path.with_suffix(".caffemodel")
    trace = read_golden(path)
    report = verify(path.with_suffix(".prototxt"), weights if weights.exists() else None, against=trace, backward=True)
    assert report.passed, [(r.layer, r.top, r.type, r.free) for r in report.rows if r.status != "passed"]
    rows = [r for r in report.rows if r.type == "gradient"]
    assert len(rows) == len(trace.input_gradients) + len(trace.parameter_gradients)
    assert len([r for r in report.rows if r.type == "parameter after forward"]) == len(trace.changed_parameters)


def test_a_wrong_gradient_is_found() -> None:
    path = GOLDEN / "layers/net_residual.npz"
    trace = read_golden(path)
    subject = prepare(path.with_suffix(".prototxt"), path.with_suffix(".caffemodel"), trace=trace)
    subject.ported.net.c2.weight.register_hook(lambda g: g * 1.01)
    rows = list(gradient_rows(subject.ported.net, subject.case, trace, Tolerance()))
    assert [(r.layer, r.top, r.blob) for r in rows if r.status == "failed"] == [("c2", 0, "weight")]


@pytest.mark.parametrize("wrong", [1.0, 1.01])
def test_rounding_at_the_edge_of_a_relu(tmp_path: Path, wrong: float) -> None:
    """The reference's second value is a little below zero, ours above: another gradient, but of the reference's too."""
    product = 'type: "InnerProduct" inner_product_param { num_output: 3 bias_term: false }'
    (tmp_path / "net.prototxt").write_text(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }\n'
        f'layer {{ name: "a" bottom: "x" top: "a" {product} }}\n'
        'layer { name: "r" type: "ReLU" bottom: "a" top: "r" }\n'
        f'layer {{ name: "b" bottom: "r" top: "b" {product} }}'
    )
    ported = port(tmp_path / "net.prototxt")
    x, weight = torch.tensor([[1.0, 1e-7, -1.0]]), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    ported.net.a.weight.data, ported.net.b.weight.data = torch.eye(3), weight
    a = torch.tensor([[1.0, -1e-7, -1.0]])
    through = weight.sum(0) * (a[0] > 0)  # the gradient of a, for ones at the top
    tops = {("a", 0): a, ("r", 0): a.relu(), ("b", 0): a.relu() @ weight.t()}
    trace = Trace(
        {key: value.numpy() for key, value in tops.items()},
        {"x": x.numpy()},
        parameter_gradients={("a", 0): (wrong * torch.outer(through, x[0])).numpy()},
        top_gradients={"b": np.ones((1, 3), np.float32)},
    )
    subject = prepare(ported, trace=trace)
    (row, *_) = gradient_rows(subject.ported.net, subject.case, trace, Tolerance())
    assert (row.layer, row.status) == ("a", "passed" if wrong == 1 else "failed")
    assert ("the edge of a ReLU" in row.note) == (wrong == 1)


def test_a_gradient_of_another_shape_is_not_compared() -> None:
    """A transposed one has the same number of values."""
    path = GOLDEN / "layers/net_residual.npz"
    trace = read_golden(path)
    key = ("innerproduct", 0)
    turned = {key: trace.parameter_gradients[key].T}
    subject = prepare(path.with_suffix(".prototxt"), path.with_suffix(".caffemodel"), trace=trace)
    changed = dataclasses.replace(trace, parameter_gradients=trace.parameter_gradients | turned)
    rows = list(gradient_rows(subject.ported.net, subject.case, changed, Tolerance()))
    (row,) = [r for r in rows if r.status == "failed"]
    assert row.free is not None
    assert (row.layer, row.free.reason) == ("innerproduct", "shape (5, 6), expected (6, 5)")


def test_without_gradients(golden: Path) -> None:
    net = golden / "layers/relu_default.prototxt"
    trace = read_golden(net.with_suffix(".npz"))
    with pytest.raises(CaffePortError, match="contains no gradients"):
        verify(net, against=Trace(trace.tops, trace.inputs), backward=True)
    with pytest.raises(CaffePortError, match="gradients are compared with a trace"):
        verify(net, against="opencv", backward=True)
    with pytest.raises(CaffePortError, match="nothing of this net can be differentiated"):
        verify(net, against=Trace(trace.tops, trace.inputs, input_gradients=trace.input_gradients), backward=True)


def test_the_net_is_as_it_was() -> None:
    path = GOLDEN / "layers/innerproduct_transpose.npz"
    trace = read_golden(path)
    subject = prepare(path.with_suffix(".prototxt"), path.with_suffix(".caffemodel"), trace=trace)
    before = {k: v.clone() for k, v in subject.ported.net.state_dict().items()}
    list(gradient_rows(subject.ported.net, subject.case, trace, Tolerance()))
    assert all(torch.equal(v, before[k]) for k, v in subject.ported.net.state_dict().items())
