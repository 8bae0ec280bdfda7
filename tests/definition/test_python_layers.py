"""Python code of published nets for which other types stand, and code that only looks like it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import caffe_port
from caffe_port.definition.definition import Definition
from caffe_port.errors import SpecError
from caffe_port.formats import prototxt
from caffe_port.net.net import Net

INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 8 dim: 4 dim: 6 } } }\n'


def net(code: str, said: str = "") -> Net:
    module, _, class_ = code.rpartition(".")
    own = f"module: '{module}' layer: '{class_}' param_str: \"{said}\""
    text = INPUT + f'layer {{ name: "py" type: "Python" bottom: "x" top: "y" python_param {{ {own} }} }}'
    text += ' layer { name: "last" type: "Power" bottom: "y" top: "z" power_param { shift: 0 } }'
    return caffe_port.load(Definition.parse(prototxt.parse(text, "NetParameter")))


X = torch.randn(2, 8, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_padding(mode: str) -> None:
    made = net("pad.PadTensor", f"{{'pad_t': 1, 'pad_b': 2, 'pad_l': 3, 'pad_r': 0, 'pad_mode': '{mode}'}}")(X)
    assert np.array_equal(made.numpy(), np.pad(X.numpy(), ((0, 0), (0, 0), (1, 2), (3, 0)), mode))


def test_padding_of_every_axis() -> None:
    made = net("pads.Pad", "[[0, 0], [1, 0], [0, 2], [3, 1]]")(X)
    assert np.array_equal(made.numpy(), np.pad(X.numpy(), ((0, 0), (1, 0), (0, 2), (3, 1))))


def test_enets_dropout_enlarges_in_its_phase_test() -> None:
    assert torch.allclose(net("spatial_dropout.SpatialDropoutLayer", "{'phase': 'TEST', 'p': '0.2'}")(X), X / 0.8)
    trained = net("spatial_dropout.SpatialDropoutLayer", "{'phase': 'TRAIN', 'p': '0.2'}")
    assert torch.equal(trained(X), X)
    dropped = trained.train()(X) * 0.8
    kept = (dropped != 0).flatten(2).any(2)[..., None, None]
    assert torch.allclose(dropped, X * kept)


def test_darknets_reorg() -> None:
    """The loop of darknet.py: planes of the bottom are read as if they were C / 4 of twice the size."""
    large = X.numpy().reshape(2, 2, 8, 12)
    wanted = np.empty((2, 8, 4, 6), np.float32)
    for b, k, y, x in np.ndindex(wanted.shape):
        wanted[b, k, y, x] = large[b, k % 2, y * 2 + k // 2 // 2, x * 2 + k // 2 % 2]
    assert np.array_equal(net("yolov2.darknet_reorg")(X).numpy(), wanted.reshape(2, 32, 2, 3))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("pad.PadTensor", "{'pad_t': 1}"),
        ("pad.PadTensor", "{'pad_t': 1, 'pad_b': 2, 'pad_l': 3, 'pad_r': 0, 'pad_mode': 'wrap'}"),
        ("pad.PadTensor", "{'pad_t': __import__('os')}"),
        ("pads.Pad", "7"),
        ("spatial_dropout.SpatialDropoutLayer", "{'phase': 'TEST', 'p': 'half'}"),
        ("other.PadTensor", "{'pad_t': 1, 'pad_b': 2, 'pad_l': 3, 'pad_r': 0, 'pad_mode': 'edge'}"),
    ],
)
def test_code_that_is_not_known_stays_code(code: str, said: str) -> None:
    with pytest.raises(SpecError, match=f"runs the Python code {code}"):
        net(code, said)
