"""caffe.draw: graphs of nets. Without Graphviz, whose program is not asked for here."""

import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from caffe_port.errors import DependencyError
from caffe_port.pycaffe import draw
from caffe_port.pycaffe.proto import caffe_pb2

NET = """
name: "small"
layer { name: "data" type: "Data" top: "data" data_param { batch_size: 64 } include { phase: TRAIN } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 2 }
        convolution_param { num_output: 20 kernel_size: 5 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" exclude { phase: TRAIN } }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: AVE kernel_size: 3 pad: 1 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip" inner_product_param { num_output: 10 } }
"""


@pytest.fixture
def net() -> Any:
    return text_format.Merge(NET, caffe_pb2.NetParameter())


def test_labels(net: Any) -> None:
    data, conv, relu, pool, ip = net.layer
    assert [draw.get_edge_label(layer) for layer in net.layer] == ["Batch 64", "20", '""', '""', "10"]
    assert draw.get_layer_label(conv, "TB") == '"conv (Convolution) kernel size: 5 stride: 1 pad: 0"'
    assert draw.get_layer_label(pool, "LR") == r'"pool\n(Pooling AVE)\nkernel size: 3\nstride: 1\npad: 1"'
    assert draw.get_layer_label(ip, "TB", display_lrm=True) == '"ip (InnerProduct) lr mult: 1.0, 1.0"'
    assert draw.get_layer_lr_mult(conv) == (2, 1)
    assert draw.choose_color_by_layertype(relu.type) != draw.choose_color_by_layertype(pool.type)
    with pytest.raises(ValueError, match="Data layers do not have a learning rate multiplier"):
        draw.get_layer_lr_mult(data)
    del conv.param[:]
    for _ in range(3):
        conv.param.add()
    with pytest.raises(ValueError, match="Could not parse"):
        draw.get_layer_lr_mult(conv)


def test_phases(net: Any) -> None:
    pytest.importorskip("pydot")

    def drawn(phase: int | None) -> str:
        text = str(draw.get_pydot_graph(net, "TB", phase=phase))
        return " ".join(name for name in ("data", "conv", "relu", "pool", "ip") if f'"{name} (' in text)

    assert drawn(None) == "data conv relu pool ip"
    assert drawn(caffe_pb2.TRAIN) == "data conv pool ip"
    assert drawn(caffe_pb2.TEST) == "conv relu pool ip"
    net.layer[2].include.add(phase=caffe_pb2.TEST)
    with pytest.raises(ValueError, match="layer relu has both include and exclude"):
        drawn(caffe_pb2.TEST)


def test_a_graph_is_written_as_text(net: Any, tmp_path: Path) -> None:
    pytest.importorskip("pydot")
    draw.draw_net_to_file(net, str(tmp_path / "net.raw"), rankdir="BT")
    text = (tmp_path / "net.raw").read_text()
    assert text.startswith("digraph small {\nrankdir=BT;\n")
    assert '"relu (ReLU)" [shape=record, fillcolor="#90EE90", style=filled];' in text
    assert '"conv (Convolution) kernel size: 5 stride: 1 pad: 0" -> conv [label=20];' in text


def test_without_graphviz(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pydot")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DependencyError, match="requires Graphviz's program dot"):
        draw.draw_net(net, "LR")


def test_without_pydot(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydot", None)
    with pytest.raises(DependencyError, match="requires pydot"):
        draw.draw_net(net, "LR")
