"""Windows in the forms on which runtimes agree, and detections as ONNX's NonMaxSuppression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import caffe_port
from caffe_port.emit import export
from caffe_port.emit.agreed_forms import AgreedForms
from caffe_port.emit.convert import convert, to_export
from caffe_port.errors import CaffePortError

WINDOWS = [
    (k, s, p)
    for k in ((2, 3), (3, 2), (3, 3), (4, 2))
    for s in ((1, 1), (2, 2), (2, 3), (4, 4))
    for p in ((0, 0), (1, 0), (1, 1))
]


@pytest.mark.parametrize("ceil_mode", [True, False])
@pytest.mark.parametrize("pool", [F.avg_pool2d, F.max_pool2d])
def test_agreed_windows_are_torchs(pool: Any, ceil_mode: bool) -> None:
    for kernel, stride, padding in WINDOWS:
        for height, width in ((5, 6), (6, 7), (7, 11), (8, 9)):
            x = torch.randn(2, 3, height, width) - 3  # padding that counts wrongly shows
            plain = pool(x, kernel, stride, padding, ceil_mode=ceil_mode)
            with AgreedForms():
                agreed = pool(x, kernel, stride, padding, ceil_mode=ceil_mode)
            torch.testing.assert_close(agreed, plain, msg=f"{kernel} {stride} {padding} {height} {width}")


@pytest.mark.parametrize("pool", [F.avg_pool3d, F.max_pool3d])
def test_agreed_volumes_are_torchs(pool: Any) -> None:
    for kernel, stride, padding in (((2, 3, 3), (2, 2, 1), (1, 1, 0)), ((3, 2, 2), (2, 2, 2), (0, 1, 1))):
        x = torch.randn(2, 3, 5, 6, 7) - 3
        plain = pool(x, kernel, stride, padding, ceil_mode=True)
        with AgreedForms():
            torch.testing.assert_close(pool(x, kernel, stride, padding, ceil_mode=True), plain)


@pytest.mark.parametrize("ceil_mode", [True, False])
def test_agreed_divisors_are_torchs(ceil_mode: bool) -> None:
    for kernel, stride, padding in WINDOWS:
        for height, width in ((5, 6), (6, 7), (7, 11), (8, 9)):
            x, pool = torch.randn(2, 3, height, width), (kernel, stride, padding, ceil_mode, False, 5)
            with AgreedForms():
                agreed = F.avg_pool2d(x, *pool)
            torch.testing.assert_close(agreed, F.avg_pool2d(x, *pool), msg=f"{pool} {height} {width}")


class Divides(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, divisor_override=2)


def test_a_divisor_reaches_the_exported_program() -> None:
    x = torch.randn(2, 3, 6, 8)
    with AgreedForms(onnx=True):
        made = torch.export.export(Divides(), (x,))
    pools = [node for node in made.graph.nodes if node.target is torch.ops.aten.avg_pool2d.default]
    assert [node.args[6:] for node in pools] == [()]  # ONNX has no divisor, and its exporter drops it
    torch.testing.assert_close(made.module()(x), Divides()(x))


REDUCTION = """
input: "x" input_shape { dim: 2 dim: 3 dim: 4 dim: 5 }
layer { name: "y" type: "Reduction" bottom: "x" top: "y" reduction_param { PARAM } }
"""


@pytest.mark.parametrize("param", ["axis: 1", "axis: 1 operation: MEAN", "axis: 1 operation: ASUM", "axis: 2"])
def test_opencv_reduces_what_caffe_does(param: str, tmp_path: Path) -> None:
    cv2, onnx = pytest.importorskip("cv2"), pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    (tmp_path / "net.prototxt").write_text(REDUCTION.replace("PARAM", param))
    ported = caffe_port.port(tmp_path / "net.prototxt")
    convert(ported, tmp_path / "out", formats=["onnx"], dynamic="none")
    graph = onnx.load(tmp_path / "out/model.onnx").graph
    axes = {stored.name: onnx.numpy_helper.to_array(stored).size for stored in graph.initializer}
    (found,) = [axes[node.input[1]] for node in graph.node if node.op_type.startswith("Reduce")]
    assert found < 3  # with three, OpenCV 4.14 reads beyond the bottom
    x = torch.randn(2, 3, 4, 5)
    net = cv2.dnn.readNetFromONNX(str(tmp_path / "out/model.onnx"))
    net.setInput(x.numpy())
    wanted = ported.net(x)
    torch.testing.assert_close(torch.from_numpy(net.forward()).reshape(wanted.shape), wanted)


@pytest.mark.parametrize("size", [3, 4, 5])
def test_agreed_local_response_norm_is_torchs(size: int) -> None:
    for x in (torch.randn(2, 7, 3, 4), torch.randn(2, 6, 5), torch.randn(2, 6, 3, 4, 5)):
        plain = F.local_response_norm(x, size, 2.0, 0.75, 1.5)
        with AgreedForms():
            torch.testing.assert_close(F.local_response_norm(x, size, 2.0, 0.75, 1.5), plain)


POOLS = """
input: "x" input_shape { dim: 2 dim: 3 dim: 5 dim: 8 }
layer { name: "norm/a" type: "LRN" bottom: "x" top: "norm" lrn_param { local_size: 3 alpha: 2 } }
layer { name: "ave" type: "Pooling" bottom: "norm" top: "ave"
  pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 } }
layer { name: "max" type: "Pooling" bottom: "norm" top: "max"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 pad: 1 } }
layer { name: "half" type: "Power" bottom: "ave" top: "half" power_param { scale: 0.5 } }
layer { name: "sum" type: "Eltwise" bottom: "half" bottom: "max" top: "sum" }
"""


def nodes(path: Path) -> list[Any]:
    onnx = pytest.importorskip("onnx")
    return list(onnx.load(path).graph.node)


def attribute(node: Any, name: str) -> Any:
    import onnx

    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)


def test_onnx_has_no_window_that_counts_padding(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    (tmp_path / "net.prototxt").write_text(POOLS)
    ported = caffe_port.port(tmp_path / "net.prototxt")
    result = convert(ported, tmp_path / "agreed", formats=["onnx"])
    assert result.check.endswith("with any batch, and height and width from 5 x 8 up")
    agreed = nodes(tmp_path / "agreed/model.onnx")
    by_type = {node.op_type: node for node in agreed}
    assert attribute(by_type["AveragePool"], "count_include_pad") == 0
    assert not any(attribute(by_type["AveragePool"], "pads"))
    assert attribute(by_type["MaxPool"], "ceil_mode") == 0
    assert "LRN" in by_type
    # ONNX Runtime finds another shape for the plain form of the second pool than it computes, and refuses the sum.
    (tmp_path / "net.prototxt").write_text(POOLS.replace("kernel_size: 2", "kernel_size: 3"))
    ported = caffe_port.port(tmp_path / "net.prototxt")
    convert(ported, tmp_path / "plain", formats=["onnx"], plain_pooling=True, dynamic="none")
    plain = {node.op_type: node for node in nodes(tmp_path / "plain/model.onnx")}
    assert attribute(plain["MaxPool"], "ceil_mode") == 1
    assert "LRN" not in plain


def test_nodes_and_values_have_the_names_of_layers(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    (tmp_path / "net.prototxt").write_text(POOLS)
    convert(caffe_port.port(tmp_path / "net.prototxt"), tmp_path / "out", formats=["onnx"], dynamic="none")
    found = {node.name: list(node.output) for node in nodes(tmp_path / "out/model.onnx")}
    for name in ("norm/a", "ave", "max", "half"):
        assert found[name][0] == name
    assert found["sum"] == ["sum"]


SSD = """
input: "x" input_shape { dim: 2 dim: 3 dim: 24 dim: 16 }
layer { name: "loc" type: "Convolution" bottom: "x" top: "loc"
  convolution_param { num_output: 8 kernel_size: 4 stride: 4 weight_filler { type: "gaussian" std: 0.3 } } }
layer { name: "conf" type: "Convolution" bottom: "x" top: "conf"
  convolution_param { num_output: 6 kernel_size: 4 stride: 4 weight_filler { type: "gaussian" std: 0.3 } } }
layer { name: "loc_perm" type: "Permute" bottom: "loc" top: "loc_perm"
  permute_param { order: 0 order: 2 order: 3 order: 1 } }
layer { name: "conf_perm" type: "Permute" bottom: "conf" top: "conf_perm"
  permute_param { order: 0 order: 2 order: 3 order: 1 } }
layer { name: "loc_flat" type: "Flatten" bottom: "loc_perm" top: "loc_flat" }
layer { name: "rows" type: "Reshape" bottom: "conf_perm" top: "rows" reshape_param { shape { dim: 0 dim: -1 dim: 3 } } }
layer { name: "scores" type: "Softmax" bottom: "rows" top: "scores" softmax_param { axis: 2 } }
layer { name: "conf_flat" type: "Flatten" bottom: "scores" top: "conf_flat" }
layer { name: "priors" type: "PriorBox" bottom: "loc" bottom: "x" top: "priors" prior_box_param {
  min_size: 8 max_size: 12 clip: false variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 } }
layer { name: "found" type: "DetectionOutput" bottom: "loc_flat" bottom: "conf_flat" bottom: "priors" top: "found"
  detection_output_param { num_classes: 3 nms_param { nms_threshold: 0.3 TOP } code_type: CENTER_SIZE
    KEEP confidence_threshold: THRESHOLD } }
"""


@pytest.mark.parametrize(
    ("top", "keep", "threshold"),
    [("top_k: 9", "keep_top_k: 7", "0.3"), ("", "keep_top_k: -1", "0.4"), ("", "keep_top_k: 5", "1.0")],
)
def test_detections_in_onnx(tmp_path: Path, top: str, keep: str, threshold: str) -> None:
    """With a threshold of 1 nothing is found: a row of -1 for each image."""
    pytest.importorskip("onnxscript")
    import onnxruntime

    torch.manual_seed(3)
    (tmp_path / "net.prototxt").write_text(
        SSD.replace("TOP", top).replace("KEEP", keep).replace("THRESHOLD", threshold)
    )
    ported = caffe_port.port(tmp_path / "net.prototxt")
    x = torch.randn(2, 3, 24, 16)
    source = to_export(ported.net)
    said = export.onnx(source, (x,), tmp_path / "model.onnx")
    assert said.endswith("with any batch")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for n in (1, 2, 5):
        x = torch.randn(n, 3, 24, 16)
        with torch.no_grad():
            right = source.module(x)
        (got,) = session.run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), right, rtol=1e-4, atol=1e-5)
        assert (right[0, 0, :, 1] < 0).all() == (threshold == "1.0")


def test_what_has_no_form_in_onnx_ends_before_detections(tmp_path: Path) -> None:
    text = SSD.replace("TOP", "top_k: 9").replace("KEEP", "keep_top_k: 7").replace("THRESHOLD", "0.3")
    (tmp_path / "net.prototxt").write_text(text)
    source = to_export(caffe_port.port(tmp_path / "net.prototxt").net)
    x = torch.randn(2, 3, 24, 16)
    said = export.pt2(source, (x,), tmp_path / "model.pt2")
    assert "it ends before DetectionOutput, in all boxes and their scores: what is left is scores above 0.3" in said
    boxes, scores = leaves(torch.export.load(tmp_path / "model.pt2").module()(x))
    assert boxes.shape == (2, 48, 1, 4)
    assert scores.shape == (2, 48, 3)


def leaves(made: Any) -> list[Tensor]:
    return [made] if isinstance(made, Tensor) else [leaf for part in made for leaf in leaves(part)]


def test_detections_that_another_layer_reads(tmp_path: Path) -> None:
    more = 'layer { name: "twice" type: "Power" bottom: "found" top: "twice" power_param { scale: 2 } }'
    text = SSD.replace("TOP", "top_k: 9").replace("KEEP", "keep_top_k: 7").replace("THRESHOLD", "0.3")
    (tmp_path / "net.prototxt").write_text(text + more)
    source = to_export(caffe_port.port(tmp_path / "net.prototxt").net)
    with pytest.raises(CaffePortError, match="a layer reads what DetectionOutput found"):
        export.pt2(source, (torch.randn(2, 3, 24, 16),), tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()
