"""Layers of unknown types, converted to stubs that a person finishes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_port import api, layers
from caffe_port.emit.convert import convert
from caffe_port.errors import SpecError, UnsupportedLayerError
from caffe_port.formats import caffemodel

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 7 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 5 kernel_size: 3 } }
layer { name: "foo" type: "Foo" bottom: "conv" top: "foo" foo_param { alpha: 3 } }
layer { name: "relu" type: "ReLU" bottom: "foo" top: "relu" }
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.prototxt"
    path.write_text(NET)
    return path


def test_an_unknown_type_is_refused_and_leaves_the_registry_alone(net: Path) -> None:
    api.port(net, stub=True)
    assert layers.lookup("Foo") is None
    with pytest.raises(UnsupportedLayerError, match="1 layer has a type"):
        api.port(net)


def test_python_code_becomes_a_stub(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(
        NET.replace('"Foo"', '"Python"').replace(
            "foo_param { alpha: 3 }", 'python_param { module: "own" layer: "Foo" }'
        )
    )
    ported = api.port(path, stub=True)
    with pytest.raises(NotImplementedError, match=r'module: "own" layer: "Foo"'):
        ported.net(torch.zeros(2, 3, 9, 7))
    with pytest.raises(SpecError, match=r"runs the Python code own\.Foo"):
        api.port(path)


def test_the_stub_says_what_to_write(net: Path, tmp_path: Path) -> None:
    ported = api.port(net, stub=True)
    assert "stubs to be completed by hand in model.py: Foo" in ported.notes
    assert ported.net.plan.shapes["relu", 0] == (2, 5, 7, 5)
    with pytest.raises(NotImplementedError, match=r"layer Foo \(foo_param \{ alpha: 3 \}\)"):
        ported.net(torch.zeros(2, 3, 9, 7))
    convert(ported, tmp_path / "out")
    source = (tmp_path / "out" / "model.py").read_text()
    assert "TO BE COMPLETED BY HAND" in source
    assert 'self.foo = Stub("Foo", parameters="foo_param { alpha: 3 }")' in source


def test_a_stub_keeps_its_blobs(net: Path, tmp_path: Path) -> None:
    ported = api.port(net, stub=True)
    blobs = ported.net.blobs() | {"foo": [np.arange(6, dtype=np.float32).reshape(2, 3)]}
    caffemodel.write(tmp_path / "w.caffemodel", ported.definition.net, blobs)
    again = api.port(net, tmp_path / "w.caffemodel", stub=True)
    assert torch.equal(again.net.state_dict()["foo.blob0"], torch.arange(6.0).reshape(2, 3))
    convert(again, tmp_path / "out")
    assert "blobs=((2, 3),)" in (tmp_path / "out" / "model.py").read_text()
