"""verify --against a runtime: ONNX Runtime and OpenVINO, ours and files of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import caffe_port
from caffe_port.emit.convert import convert
from caffe_port.errors import CaffePortError, DependencyError
from caffe_port.verification.references import runtimes

NET = """
input: "x" input_shape { dim: 2 dim: 3 dim: 7 dim: 9 }
layer { name: "conv" type: "Convolution" bottom: "x" top: "y"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "y" top: "y" }
layer { name: "bn" type: "BatchNorm" bottom: "y" top: "n" }
layer { name: "scale" type: "Scale" bottom: "n" top: "n"
  scale_param { bias_term: true filler { type: "uniform" min: 0.5 max: 2 } } }
layer { name: "pool" type: "Pooling" bottom: "n" top: "p" pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "slice" type: "Slice" bottom: "p" top: "a" top: "b" }
layer { name: "out" type: "Concat" bottom: "b" bottom: "a" top: "c" }
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> caffe_port.Ported:
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("net")
    torch.manual_seed(0)
    (folder / "net.prototxt").write_text(NET)
    ported = caffe_port.port(folder / "net.prototxt")
    module: Any = ported.net.bn
    module.variance.fill_(1.5)
    module.scale_factor.fill_(1)
    convert(ported, folder / "out", formats=["onnx"])
    return ported


def file_of(net: caffe_port.Ported) -> Path:
    return Path(net.definition.path).parent / "out/model.onnx"


def statuses(report: caffe_port.Report) -> dict[tuple[str, int], str]:
    return {(row.layer, row.top): row.status for row in report.rows}


EXPECTED = {
    ("conv", 0): "passed",
    ("relu", 0): "passed",
    ("bn", 0): "not compared",  # one operator with the Scale after it
    ("scale", 0): "passed",
    ("pool", 0): "passed",
    ("slice", 0): "passed",
    ("slice", 1): "passed",
    ("out", 0): "passed",
}


def test_our_file_in_onnx_runtime(net: caffe_port.Ported) -> None:
    report = caffe_port.verify(net, against=str(file_of(net)))
    assert statuses(report) == EXPECTED
    assert report.passed
    assert report.reference.startswith("ONNX Runtime ")
    assert "bn" in {row.layer for row in report.rows if "not in model.onnx by name" in row.note}


def test_the_net_itself_in_onnx_runtime(net: caffe_port.Ported) -> None:
    assert statuses(caffe_port.verify(net, against="onnxruntime", seed=5)) == EXPECTED


def test_openvino(net: caffe_port.Ported) -> None:
    pytest.importorskip("openvino")
    for against in ("openvino", f"openvino:{file_of(net)}"):
        report = caffe_port.verify(net, against=against)
        assert statuses(report) == EXPECTED
        assert report.passed


def test_openvino_is_an_extra(net: caffe_port.Ported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(DependencyError, match=r"caffe-port\[openvino\]"):
        caffe_port.verify(net, against="openvino")


def foreign(path: Path, names: tuple[str, str], weight: Any, bias: Any, shape: tuple[Any, ...] = (2, 3, 7, 9)) -> Path:
    """A convolution and a ReLU as another tool writes them: node names or blob names, and an input of its own name."""
    from onnx import TensorProto, helper, numpy_helper, save

    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["in", "w", "b"], ["t1"], name=names[0]),
            helper.make_node("Relu", ["t1"], [names[1]], name="n2"),
        ],
        "g",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(names[1], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_file_of_another_tool(net: caffe_port.Ported, tmp_path: Path) -> None:
    conv: Any = net.net.conv
    weight, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    report = caffe_port.verify(net, against=str(foreign(tmp_path / "m.onnx", ("conv", "y"), weight, bias)))
    found = statuses(report)
    assert found["conv", 0] == found["relu", 0] == "passed"  # by the node's name; by that of the blob's last value
    assert found["pool", 0] == "not compared"
    wrong = foreign(tmp_path / "w.onnx", ("conv", "y"), np.ascontiguousarray(weight[:, :, ::-1]), bias)
    report = caffe_port.verify(net, against=str(wrong))
    assert report.first is not None
    assert report.first.layer == "conv"
    assert not report.passed
    nothing = caffe_port.verify(net, against=str(foreign(tmp_path / "n.onnx", ("a", "z"), weight, bias)))
    assert not nothing.passed
    assert nothing.compared == 0


def test_a_file_that_does_not_fit(net: caffe_port.Ported, tmp_path: Path) -> None:
    weight, bias = np.zeros((4, 3, 3, 3), np.float32), np.zeros(4, np.float32)
    other = foreign(tmp_path / "m.onnx", ("conv", "y"), weight, bias, ("n", 3, 7, 8))
    with pytest.raises(CaffePortError, match=r"its input 'in' is any x 3 x 7 x 8, the net's 2 x 3 x 7 x 9"):
        caffe_port.verify(net, against=str(other))
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(CaffePortError, match="is not an ONNX file"):
        caffe_port.verify(net, against=str(tmp_path / "bad.onnx"))
    with pytest.raises(CaffePortError, match="does not exist"):
        caffe_port.verify(net, against=str(tmp_path / "absent.onnx"))


def test_names_of_runtimes() -> None:
    assert runtimes.find("opencv") is None
    assert runtimes.find("trace.npz") is None
    found = runtimes.find("OpenVINO")
    assert found is not None
    assert (found.runtime, found.path) == ("openvino", None)


def test_an_input_of_any_shape_takes_the_nets(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    make = onnx.helper.make_tensor_value_info
    x, y = make("x", onnx.TensorProto.FLOAT, None), make("relu", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["relu"])], "g", [x], [y])
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), str(tmp_path / "any.onnx"))
    text = 'input: "x" input_shape { dim: 2 dim: 3 } layer { name: "relu" type: "ReLU" bottom: "x" top: "y" }'
    (tmp_path / "net.prototxt").write_text(text)
    assert caffe_port.verify(tmp_path / "net.prototxt", against=str(tmp_path / "any.onnx")).passed
