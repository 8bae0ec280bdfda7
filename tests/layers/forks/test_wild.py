"""What forks' files of the wild hold, by layer and by formula, in numbers that were worked out by hand where few."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fork_layers import build
from signature_cases import CASES, Case, _filled, spec_of

import caffe_port
from caffe_port.definition.definition import Definition
from caffe_port.errors import SpecError
from caffe_port.formats import prototxt
from caffe_port.layers import class_of
from caffe_port.verification.references.numpy_formulas import compute

INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4 dim: 5 dim: 7 } } }\n'
TYPES = (
    "Add",
    "BatchToSpaceND",
    "DepthToSpace",
    "MatMul",
    "Mul",
    "Pad",
    "Pooling",
    "ResizeBilinear",
    "ResizeNearestNeighbor",
    "SpaceToBatchND",
    "Squeeze",
    "UpsampleDarknet",
)
SIDES = ("pad_l", "pad_type", "AVE_EXC_PAD")


def load(text: str) -> Any:
    return caffe_port.load(Definition.parse(prototxt.parse(INPUT + text, "NetParameter")))


def here(case: Case) -> bool:
    return case.type in TYPES or (case.type == "Convolution" and any(side in case.param for side in SIDES))


@pytest.mark.parametrize("case", [case for case in CASES if here(case)], ids=str)
def test_as_the_formula(case: Case) -> None:
    module = class_of(case.message).build(case.message, case.bottoms).eval().double()  # type: ignore[union-attr]
    torch.manual_seed(0)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data.uniform_(0.1, 1)
    bottoms = [_filled(case, index).double() for index in range(len(case.bottoms))]
    with torch.no_grad():
        made = module(*bottoms)
    blobs = [module.get_blob(name).detach().numpy() for name in module.blob_names()]
    tops, note = compute(spec_of(case), [x.numpy() for x in bottoms], blobs)
    if tops is None:
        assert note == "no formula for stochastic pooling" or len(case.bottoms[0]) == 5
        return
    for ours, theirs in zip(made if isinstance(made, tuple) else (made,), tops, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9, atol=1e-9)


# -- windows --------------------------------------------------------------------------------------------------------

ROW = torch.arange(1.0, 6).reshape(1, 1, 1, 5).expand(2, 3, 1, 5).contiguous()


@pytest.mark.parametrize(
    ("pooling", "wanted"),
    [
        ("pool: AVE pad_l: 1 pad_r: 2", [3 / 3, 9 / 3, 9 / 3]),
        ("pool: AVE_EXC_PAD pad_l: 1 pad_r: 2", [3 / 2, 9 / 3, 9 / 2]),
        ("pool: MAX pad_l: 1 pad_r: 2", [2, 4, 5]),
        ("pool: MAX pad_l: 2 pad_r: 0", [1, 3, 5]),
        ("pool: AVE pad_type: 1", [3 / 3, 9 / 3, 9 / 3]),
        ("pool: AVE_EXC_PAD pad_type: 1", [3 / 2, 9 / 3, 9 / 2]),
        ("pool: AVE_EXC_PAD pad_h: 0 pad_w: 1", [3 / 2, 9 / 3, 9 / 2]),
    ],
)
def test_a_row_is_pooled(pooling: str, wanted: list[float]) -> None:
    """Windows of 3 in steps of 2 over 1, 2, 3, 4, 5."""
    pool = build("Pooling", f"pooling_param {{ kernel_h: 1 kernel_w: 3 stride_h: 1 stride_w: 2 {pooling} }}", ROW.shape)
    np.testing.assert_allclose(pool(ROW).numpy()[1, 2, 0], wanted, rtol=1e-6)


def test_the_older_name_of_a_mean_without_padding() -> None:
    text = (
        'layer {{ name: "p" type: "Pooling" bottom: "x" top: "y" pooling_param {{ pool: {} kernel_size: 3 pad: 1 }} }}'
    )
    x = torch.rand(2, 4, 5, 7)
    old, new = load(text.format("AVE_TF")), load(text.format("AVE_EXC_PAD"))
    assert torch.equal(old(x), new(x))
    assert old.p.torch_source() == "nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)"
    assert not torch.equal(old(x), load(text.format("AVE"))(x))


def test_a_convolution_of_the_same_size() -> None:
    """TensorFlow puts the odd pixel after the image."""
    text = "convolution_param { num_output: 1 kernel_size: 2 pad_type: 1 bias_term: false }"
    convolve = build("Convolution", text, (2, 1, 3, 4))
    convolve.weight.data.fill_(1)
    x = torch.arange(24.0).reshape(2, 1, 3, 4)
    wide = torch.nn.functional.pad(x, (0, 1, 0, 1))
    assert torch.equal(convolve(x), wide[..., :-1, :-1] + wide[..., 1:, :-1] + wide[..., :-1, 1:] + wide[..., 1:, 1:])


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("Pooling", "pooling_param { kernel_size: 3 pad: 1 pad_type: 1 }", "pad and pad_type exclude each other"),
        ("Pooling", "pooling_param { kernel_size: 3 pad: 1 pad_r: 1 }", "pad and pad_l, pad_r, pad_t, pad_b exclude"),
        ("Pooling", "pooling_param { global_pooling: true pad_r: 1 }", "global_pooling requires pad 0"),
        ("Pooling", "pooling_param { kernel_size: 2 pad_b: 2 }", "pad 2 must be less than the kernel, 2"),
        ("Convolution", "convolution_param { num_output: 2 kernel_size: 3 dilation: 2 pad_type: 1 }", "with dilation"),
    ],
)
def test_windows_that_are_refused(kind: str, text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        build(kind, text, (2, 3, 5, 6))


# -- fields that make a layer one of another type ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "type_", "wanted"),
    [
        ("relu6: true", "ReLU6", [0, 3, 6]),
        ("relu6: true negative_slope: 0.5", "ReLU6", [-1, 3, 6]),
        ("maximum: 2", "ReLU6", [0, 2, 2]),
        ("maximum: 7 relu6: true", "ReLU6", [0, 3, 6]),
        ("maximum: -1", "ReLU", [0, 3, 9]),
        ("relu6: false negative_slope: 0.5", "ReLU", [-1, 3, 9]),
    ],
)
def test_a_relu_that_stops(own: str, type_: str, wanted: list[float]) -> None:
    text = f'layer {{ name: "r" type: "ReLU" bottom: "x" top: "x" relu_param {{ {own} }} }}'
    net = load(text)
    assert type(net.r).__name__ == type_
    x = torch.zeros(2, 4, 5, 7)
    x[0, 0, 0, :3] = torch.tensor([-2.0, 3, 9])
    assert net(x)[0, 0, 0, :3].tolist() == wanted
    report = caffe_port.verify(Definition.parse(prototxt.parse(INPUT + text, "NetParameter")))
    assert report.passed
    assert not report.not_compared


def test_a_minimum_is_refused() -> None:
    with pytest.raises(SpecError, match="'minimum'"):
        load('layer { name: "r" type: "ReLU" bottom: "x" top: "y" relu_param { relu6: true minimum: 1 } }')


def test_a_reshape_that_shuffles_pixels() -> None:
    text = 'layer {{ name: "s" type: "Reshape" bottom: "x" top: "y" reshape_param {{ {} }} }}'
    x = torch.arange(280.0).reshape(2, 4, 5, 7)
    y = load(text.format("pixelshuffler: 2"))(x)
    assert y.shape == (2, 1, 10, 14)
    assert all(y[1, 0, 2 * 3 + i, 2 * 4 + j] == x[1, 2 * i + j, 3, 4] for i in (0, 1) for j in (0, 1))
    assert load(text.format("pixelshuffler: 1 shape { dim: 0 dim: -1 }"))(x).shape == (2, 140)
    with pytest.raises(SpecError, match="upscale_factor 3 squared does not divide the 4 channels"):
        load(text.format("pixelshuffler: 3"))


def test_the_four_blobs_of_icnet() -> None:
    """Fields of SegNet's BN do not make it one."""
    text = (
        'layer { name: "b" type: "BN" bottom: "x" top: "y" bn_param { icnet: true bn_mode: INFERENCE frozen: true } }'
    )
    assert load(text).b.blob_names() == ["slope", "bias", "mean", "variance"]
