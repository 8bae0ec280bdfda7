"""What forks' files of the wild hold, by layer and by formula, in numbers that were worked out by hand where few."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fork_layers import build
from signature_cases import CASES, Case, _filled, spec_of

import caffe_port
from caffe_port.definition.definition import Definition
from caffe_port.errors import SpecError, WeightsError
from caffe_port.formats import prototxt, wire
from caffe_port.formats.caffemodel import blob_message
from caffe_port.formats.message import Message
from caffe_port.layers import class_of
from caffe_port.verification.references.numpy_formulas import compute

INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4 dim: 5 dim: 7 } } }\n'
TYPES = (
    "Add",
    "BatchToSpaceND",
    "BoxGroupOutput",
    "CTCGreedyDecoder",
    "ContinuationIndicator",
    "DecodeBBox",
    "DepthToSpace",
    "DetectionOutput",
    "FrcnnOutput",
    "GRIDPooling",
    "MatMul",
    "MultiStageMeanfield",
    "Mul",
    "Pad",
    "Pooling",
    "PriorBox",
    "ROIAlign",
    "ROIPooling",
    "ResizeBilinear",
    "ResizeNearestNeighbor",
    "ScaleRoute",
    "SpaceToBatchND",
    "Squeeze",
    "UpsampleDarknet",
    "Warp",
    "Warping",
)
OWN = ("pad_l", "pad_type", "AVE_EXC_PAD", "use_blob_size", "add_eps_before_sqrt", "per_fla_fuse")


def load(text: str) -> Any:
    return caffe_port.load(Definition.parse(prototxt.parse(INPUT + text, "NetParameter")))


def here(case: Case) -> bool:
    return case.type in TYPES or any(field in case.param for field in OWN)


@pytest.mark.parametrize("case", [case for case in CASES if here(case)], ids=str)
def test_as_the_formula(case: Case) -> None:
    module = class_of(case.message).build(case.message, case.bottoms).eval().double()  # type: ignore[union-attr]
    torch.manual_seed(0)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data.uniform_(0.1, 1)
    bottoms = [_filled(case, index).double() for index in range(len(case.bottoms))]
    if case.type == "CTCGreedyDecoder":
        bottoms[1:] = [(torch.arange(cont.numel()).reshape(cont.shape) != 6).double() for cont in bottoms[1:]]
    with torch.no_grad():
        made = module(*bottoms)
    blobs = [module.get_blob(name).detach().numpy() for name in module.blob_names()]
    tops, note = compute(spec_of(case), [x.numpy() for x in bottoms], blobs)
    if tops is None:
        assert note == "no formula for stochastic pooling" or len(case.bottoms[0]) == 5
        return
    for ours, theirs in zip(made if isinstance(made, tuple) else (made,), tops, strict=True):
        rounding = 1e-6 if case.type == "PriorBox" else 1e-9  # SSD keeps sizes in float32
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("type_", ["BoxGroupOutput", "BoxOutput"])
def test_scores_that_float_makes_equal(type_: str) -> None:
    """1 - 1e-9 is 1 in float32: layer and formula take such boxes in the same order."""
    rng = np.random.Generator(np.random.PCG64(0))
    background = rng.permutation(5e-9 * np.arange(30)).reshape(1, 1, 5, 6)
    code = rng.uniform(-1, 1, (1, 4, 5, 6)) * [[[[0.1]], [[0.1]], [[0.01]], [[0.01]]]]
    if type_ == "BoxOutput":
        text = "box_output_param { field_h: 9 field_w: 12 downsample_rate: 4 iou_thr: 0.4 min_size: 3 }"
        bottoms = [np.concatenate((background, np.ones_like(background), code), 1)]
    else:
        text = (
            "box_group_output_param { iou_thr: 0.4 min_size: 3 box_group_param { field_h: 9 field_w: 12 stride: 4 } }"
        )
        bottoms = [np.concatenate((background, 1 - background), 1), code]
    bottoms = [bottom.astype(np.float32) for bottom in bottoms]
    case = Case(type_, text, tuple(bottom.shape for bottom in bottoms))
    made = build(type_, text, *case.bottoms)(*map(torch.from_numpy, bottoms))
    tops, _ = compute(spec_of(case), bottoms, ())
    assert tops is not None
    np.testing.assert_allclose(made.numpy(), tops[0], rtol=1e-5)


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


@pytest.mark.parametrize("more", ["pad: 2", "pad_h: 0 pad_w: 0", "pad_h: 1 pad_w: 3"])
def test_the_same_size_whatever_padding_stands_beside_it(more: str) -> None:
    """Synopsys' published nets give both; their Caffe ignored the other at first, and refuses it since."""
    text = "pooling_param { kernel_size: 3 stride: 2 pad_type: 1 %s }"
    x = torch.rand(2, 3, 5, 8)
    assert torch.equal(build("Pooling", text % more, x.shape)(x), build("Pooling", text % "", x.shape)(x))


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("Pooling", "pooling_param { kernel_size: 3 pad_r: 1 pad_type: 1 }", "pad_r and pad_type exclude each other"),
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


# -- text recognition -------------------------------------------------------------------------------------------------


def test_the_best_classes_without_a_second_bottom() -> None:
    """The blank is 0, unlike where cont says which steps count."""
    scores = torch.nn.functional.one_hot(torch.tensor([[1, 2], [1, 0], [0, 2], [1, 1]]), 3).float()
    wanted = [[1, 1, -1, -1], [2, 2, 1, -1]]
    assert build("CTCGreedyDecoder", "", scores.shape)(scores)[..., 0, 0].tolist() == wanted
    last = build("CTCGreedyDecoder", "ctc_decoder_param { blank_index: -1 }", scores.shape)
    assert last(scores)[..., 0, 0].tolist() == [[1, 0, 1, -1], [0, 1, -1, -1]]
    with pytest.raises(SpecError, match="one top"):
        build("CTCGreedyDecoder", "", scores.shape, top=2)


@pytest.mark.parametrize(
    ("own", "bottom", "wanted"),
    [
        ("time_step: 2", [[3.0, 4], [5, 6], [7, 8]], [[0, 0, 0], [1, 1, 1]]),
        ("time_step: 2 batch_size: 5", [[3.0, 4], [5, 6], [7, 8]], [[0, 0, 0], [1, 1, 1]]),
        ("time_step: 2 batch_size: 3", [[1.0], [0], [1.005]], [[1, 0, 1], [1, 1, 1]]),
        ("time_step: 2 batch_size: 3 flag: true", [[1.0], [0], [0]], [[1, 1, 1], [1, 1, 1]]),
    ],
)
def test_where_sequences_go_on(own: str, bottom: list[list[float]], wanted: list[list[float]]) -> None:
    x = torch.tensor(bottom)
    assert build("ContinuationIndicator", f"continuation_indicator_param {{ {own} }}", x.shape)(x).tolist() == wanted


# -- DenseBlock -------------------------------------------------------------------------------------------------------

BLOCK = """
layer { name: "d" type: "DenseBlock" bottom: "x" top: "y"
        denseblock_param { numTransition: 3 initChannel: 4 growthRate: 2 use_BC: %s } }
"""


def dense_block(x: Any, blobs: list[Any], narrow: bool, count: int = 3) -> Any:
    """As the fork computes it in TEST: with turned kernels, since it convolves where Caffe correlates."""

    def normalized(x: Any, first: int, k: int) -> Any:
        scale, shift, mean, variance = (blobs[(first + g) * count + k].reshape(-1, 1, 1) for g in (1, 2, 3, 4))
        return np.maximum(scale * (x - mean) / np.sqrt(variance + 1e-5) + shift, 0)

    def convolved(x: Any, weight: Any) -> Any:
        size = weight.shape[2]
        wide = np.pad(x, [(0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2])
        y = np.zeros((x.shape[0], weight.shape[0], *x.shape[2:]))
        for i in range(size):
            for j in range(size):
                shifted = wide[:, :, size - 1 - i :, size - 1 - j :][:, :, : x.shape[2], : x.shape[3]]
                y += np.einsum("oc,nchw->nohw", weight[:, :, i, j], shifted)
        return y

    for k in range(count):
        new = normalized(x, 0, k)
        new = normalized(convolved(new, blobs[5 * count + k]), 5, k) if narrow else new
        x = np.concatenate((x, convolved(new, blobs[k])), 1)
    return x


@pytest.mark.parametrize("factor", [0.0, 4.0])
@pytest.mark.parametrize("narrow", [False, True])
def test_dense_block(narrow: bool, factor: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    channels = [4, 6, 8]
    blobs = [rng.normal(size=(2, 8 if narrow else c, 3, 3)) for c in channels]
    blobs += [rng.uniform(0.5, 2, size=(1, c, 1, 1)) for _ in range(4) for c in channels]
    if narrow:
        blobs += [rng.normal(size=(8, c, 1, 1)) for c in channels]
        blobs += [rng.uniform(0.5, 2, size=(1, 8, 1, 1)) for _ in range(4) for _ in channels]
    stored = [blob_message(b.astype(np.float32)) for b in [*blobs, np.array([factor])]]
    layer = Message("LayerParameter", name="d", type="DenseBlock", blobs=stored)
    path = tmp_path / "d.caffemodel"
    path.write_bytes(b"".join(wire.serialize(Message("NetParameter", name="n", layer=[layer]))))
    definition = Definition.parse(prototxt.parse(INPUT + BLOCK % str(narrow).lower(), "NetParameter"))
    ported = caffe_port.port(definition, path)
    statistics = [g * 3 + k for g in (3, 4, 8, 9) for k in range(3)]
    for index in statistics[: 6 if not narrow else None]:
        blobs[index] = blobs[index] / (factor or 1)
    x = rng.normal(size=(2, 4, 5, 7))
    with torch.no_grad():
        made = ported.net(torch.from_numpy(x).float())
    wanted = dense_block(x, blobs, narrow)
    assert np.abs(made.numpy() - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert made.shape == (2, 10, 5, 7)
    assert caffe_port.convert(ported, tmp_path / "out").check.startswith("outputs are bit-equal")
    assert caffe_port.verify(definition, path).passed


def test_a_dense_block_of_an_older_form_is_refused(tmp_path: Path) -> None:
    """Without statistics: three blobs a transition."""
    layer = Message("LayerParameter", name="d", type="DenseBlock", blobs=[blob_message(np.zeros(1, np.float32))] * 9)
    path = tmp_path / "d.caffemodel"
    path.write_bytes(b"".join(wire.serialize(Message("NetParameter", name="n", layer=[layer]))))
    definition = Definition.parse(prototxt.parse(INPUT + BLOCK % "false", "NetParameter"))
    with pytest.raises(WeightsError, match="holds 9 blobs, the DenseBlock of 3 transitions asks for 16"):
        caffe_port.port(definition, path)


def test_a_dense_block_drops_in_training() -> None:
    text = BLOCK.replace("use_BC", "use_dropout: true dropout_amount: 0.25 use_BC") % "false"
    net = load(text)
    assert [type(module).__name__ for module in net.children()].count("Dropout") == 3
    assert net.train()(torch.rand(2, 4, 5, 7)).shape == (2, 10, 5, 7)
    with pytest.raises(SpecError, match="'growth'"):
        load(BLOCK.replace("use_BC", "growth: 3 use_BC") % "false")


def test_bins_that_lie_elsewhere_in_single_precision_are_refused() -> None:
    with pytest.raises(SpecError, match="14 bins of 62 pixels lie elsewhere"):
        build("GRIDPooling", "grid_pooling_param { pooled_h: 14 pooled_w: 2 }", (2, 3, 62, 5))


# -- Caffe's memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("operation", "told"), [("SUM", True), ("MAX", True), ("PROD", False)])
def test_an_eltwise_over_its_own_bottom_is_told(operation: str, told: bool) -> None:
    """Caffe 1.0 gives the second bottom alone for SUM and MAX: measured with brocolli-caffe 9.0.2."""
    text = 'layer { name: "c" type: "Power" bottom: "x" top: "c" power_param { scale: 3 } }'
    own = f"eltwise_param {{ operation: {operation} }}"
    text += f'layer {{ name: "e" type: "Eltwise" bottom: "c" bottom: "x" top: "c" {own} }}'
    ported = caffe_port.port(Definition.parse(prototxt.parse(INPUT + text, "NetParameter")))
    assert any("layer 'e' (Eltwise) works in place" in note for note in ported.notes) is told
