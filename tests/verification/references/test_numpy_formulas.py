"""The float64 formulas against what Caffe 1.0 computed, on every golden."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from golden_nets import case_of

import caffe_port.verification.references.numpy_formulas
from caffe_port import layers
from caffe_port.api import port
from caffe_port.formats import prototxt
from caffe_port.spec import LayerSpec
from caffe_port.verification.comparison import difference
from caffe_port.verification.references.numpy_formulas import FORMULAS, NumPyReference
from caffe_port.verification.references.reference import record
from caffe_port.verification.references.trace import read_golden
from caffe_port.verification.reports.terminal import verdict
from caffe_port.verification.verify import verify

CASES = sorted((GOLDEN / "layers").glob("*.prototxt"))
WITHOUT = {"Data", "HDF5Data", "HDF5Output", "ImageData", "Input", "MemoryData", "Python", "WindowData"}


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_as_caffe(path: Path) -> None:
    case, expected = case_of(path)
    made = list(NumPyReference().run(case))
    assert [m.layer.name for m in made] == [layer.name for layer in case.spec.layers if layer.type != "Input"]
    for turn in made:
        assert turn.tops is not None, turn.note
        assert len(turn.tops) == len(turn.layer.tops)
        for k, top in enumerate(turn.tops):
            assert top.dtype == np.float64
            found = difference(expected[turn.layer.name, k], top)
            assert found.passed, f"{turn.layer.name}:{k}: {found}"


def test_every_type_of_caffe_that_computes_has_a_formula() -> None:
    in_goldens = {layer.type for path in CASES for layer in case_of(path)[0].spec.layers}
    assert not in_goldens - set(FORMULAS) - WITHOUT
    assert len(in_goldens & set(FORMULAS)) > 50


def test_it_shares_no_code_with_the_layers() -> None:
    for file in Path(caffe_port.verification.references.numpy_formulas.__file__).parent.glob("*.py"):
        imported = {
            name
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        }
        assert not {name for name in imported if "layers" in name or "torch" in name}, file


@pytest.mark.parametrize("name", ["mnist_9972", "svhn_9757"])
def test_the_real_nets(shared: Path, name: str) -> None:
    trace = read_golden(shared / f"golden/nets/{name}.npz")
    prototxt = shared / f"golden/nets/{name}.prototxt"
    weights = shared / f"models/simplenet/{name}/weights.caffemodel"
    report = verify(prototxt, weights, against="numpy", input=trace.inputs["data"])
    assert report.passed
    assert (report.compared, report.not_compared) == (52, 0)


BOXED = [(2, 3, 5, 7), (2, 3, 41, 60)]

FORKS = [
    ("Axpy", "", [(2, 3, 1, 1), (2, 3, 5, 7), (2, 3, 5, 7)]),
    ("Axpy", "", [(2, 3), (2, 3, 5, 7), (2, 3, 5, 7)]),
    ("BN", "", [(2, 3, 5, 7)]),
    ("BN", "bn_param { eps: 0.1 frozen: true momentum: 0.9 }", [(4, 3)]),
    ("BN", "bn_param { var_eps: 0.01 moving_average: true }", [(2, 3, 5)]),
    ("BN", "bn_param { bn_mode: INFERENCE }", [(2, 3, 5, 7)]),
    ("BN", "bn_param { bn_mode: LEARN }", [(2, 3, 5, 7)]),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 hole: 2 }", [(2, 3, 9, 8)]),
    ("Convolution", "convolution_param { num_output: 4 kernel_size: 2 hole_h: 3 hole_w: 2 }", [(2, 3, 9, 8)]),
    ("DepthwiseConvolution", "convolution_param { kernel_size: 3 pad: 1 stride: 2 }", [(2, 6, 9, 8)]),
    ("GRN", "grn_param { bias: 0.5 }", [(2, 3, 5, 7)]),
    ("Im2col", "convolution_param { axis: 0 kernel_size: 1 stride: 2 pad: 1 }", [(3, 4, 7, 5)]),
    ("Im2col", "convolution_param { axis: -2 kernel_size: 3 dilation: 2 pad: 1 }", [(2, 3, 4, 9)]),
    ("Im2col", "convolution_param { kernel_size: 2 kernel_size: 3 kernel_size: 1 }", [(2, 3, 4, 9, 5)]),
    ("Interp", "interp_param { height: 11 width: 4 }", [(2, 3, 5, 7)]),
    ("Interp", "interp_param { height: 1 width: 9 }", [(2, 3, 5, 7)]),
    ("Interp", "interp_param { shrink_factor: 2 zoom_factor: 3 pad_beg: -1 pad_end: -2 }", [(2, 3, 9, 12)]),
    ("Interp", "", [(2, 3, 5, 7), (2, 1, 8, 3)]),
    ("L2Normalization", "", [(2, 3, 5, 7)]),
    ("Mish", "", [(2, 3, 5, 7)]),
    ("Normalize", "norm_param { across_spatial: false channel_shared: false }", [(2, 3, 5, 7)]),
    ("Normalize", "", [(2, 3, 5, 7)]),
    ("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }", [(2, 3, 5, 7)]),
    ("PriorBox", "prior_box_param { min_size: 9.5 aspect_ratio: [2, 3, 2] step: 7 clip: true }", BOXED),
    ("PriorBox", "prior_box_param { min_size: [9, 20] max_size: [20, 33] aspect_ratio: 1 flip: false }", BOXED),
    ("PriorBox", "prior_box_param { min_size: 9 img_h: 50 img_w: 40 offset: 0.25 variance: [1, 2, 3, 4] }", BOXED),
    ("PriorBoxClustered", "prior_box_param { width: [9, 4.5] height: [3, 8] step_h: 5 step_w: 6 }", BOXED),
    ("ReLU6", "", [(2, 3, 5, 7)]),
    ("ReLU6", "relu6_param { negative_slope: 0.25 }", [(2, 3, 5, 7)]),
    ("Reorg", "reorg_param { stride: 2 }", [(2, 12, 6, 4)]),
    ("Reorg", "reorg_param { stride: 2 reverse: true }", [(2, 12, 5, 7)]),
    ("Reverse", "reverse_param { axis: 2 }", [(2, 3, 5, 7)]),
    ("ShuffleChannel", "shuffle_channel_param { group: 3 }", [(2, 12, 5, 7)]),
    ("Upsample", "upsample_param { scale: 3 }", [(2, 3, 5, 7)]),
    ("Upsample", "upsample_param { scale_h: 2 scale_w: 3 }", [(2, 3, 5, 7)]),
    ("Upsample", "upsample_param { stride: 2 }", [(2, 3, 5, 7)]),
    ("Upsample", "", [(2, 3, 5, 7)]),
    ("Upsample", "upsample_param { upsample_h: 9 upsample_w: 13 }", [(2, 3, 5, 7)]),
    ("Upsample", "upsample_param { scale: 2 pad_out_w: true }", [(2, 3, 5, 7)] * 2),
    ("Upsample", "upsample_param { upsample_h: 11 upsample_w: 9 }", [(2, 3, 5, 7)] * 2),
]


@pytest.mark.parametrize("train", [False, True], ids=["test", "train"])
@pytest.mark.parametrize(("kind", "text", "shapes"), FORKS)
def test_forks_as_the_layers(kind: str, text: str, shapes: list[tuple[int, ...]], train: bool) -> None:
    """No Caffe has them all: two programs, one written in PyTorch and one in NumPy, must have the same idea of them."""
    rng = np.random.default_rng(4)
    message = prototxt.parse(f'name: "l" type: "{kind}" top: "t" {text}', "LayerParameter")
    cls = layers.class_of(message)
    assert cls is not None
    module = cls.build(message, shapes).double().train(train)
    blobs = [rng.uniform(0.5, 2, tuple(module.get_blob(name).shape)) for name in module.blob_names()]
    for name, value in zip(module.blob_names(), blobs, strict=True):
        module.set_blob(name, torch.from_numpy(value))
    bottoms = [rng.normal(0, 4, shape) for shape in shapes]
    if kind == "Upsample" and len(shapes) > 1:  # a mask: each place at most once
        with torch.device("meta"):
            places = module.infer(*(torch.empty(shape) for shape in shapes)).shape[2:].numel()
        mask = [rng.permutation(places)[:35] for _ in range(6)]
        bottoms[1] = np.array(mask, np.float64).reshape(shapes[1])
    with torch.no_grad():
        want = module(*(torch.from_numpy(bottom) for bottom in bottoms)).numpy()
    spec = LayerSpec("l", kind, (), ("t",), (), message, "")
    tops, note = caffe_port.verification.references.numpy_formulas.compute(spec, bottoms, blobs, train)
    assert tops is not None, note
    assert tops[0].shape == want.shape
    single = kind.startswith("PriorBox")  # SSD keeps centres in single precision
    np.testing.assert_allclose(tops[0], want, rtol=1e-9, atol=1e-6 if single else 1e-9)


def by_hand(kind: str, text: str, bottoms: list[object], blobs: tuple[object, ...] = ()) -> list[object]:
    message = prototxt.parse(f'name: "l" type: "{kind}" top: "t" {text}', "LayerParameter")
    spec = LayerSpec("l", kind, (), ("t",), (), message, "")
    tops, note = caffe_port.verification.references.numpy_formulas.compute(
        spec, [np.array(b, float) for b in bottoms], [np.array(b, float) for b in blobs]
    )
    assert tops is not None, note
    return list(tops[0].squeeze().tolist())


def test_forks_by_hand() -> None:
    image = [[[[1, 2, 4]]]]
    assert by_hand("Interp", "interp_param { height: 1 width: 5 }", [image]) == [1, 1.5, 2, 3, 4]
    assert by_hand("Interp", "interp_param { height: 1 width: 2 }", [image]) == [1, 4]
    assert by_hand("Upsample", "upsample_param { scale_h: 1 scale_w: 2 }", [image]) == [1, 1, 2, 2, 4, 4]
    size = "upsample_param { upsample_h: 2 upsample_w: 3 }"
    assert by_hand("Upsample", size, [image, [[[[5, 0, 1]]]]]) == [[2, 4, 0], [0, 0, 1]]
    assert by_hand("BN", "", [[[5.0, 9]]], ([3.0], [1.0], [2.0], [4.0 - 1e-5])) == [5.5, 11.5]
    assert by_hand("BN", "bn_param { bn_mode: INFERENCE }", [[[5.0, 9]]], ([3.0], [1.0])) == [16, 28]
    assert by_hand("Axpy", "", [[[2, 3]], [[[1, 4], [2, 5]]], [[[10, 20], [30, 40]]]]) == [[12, 28], [36, 55]]
    assert by_hand("ShuffleChannel", "shuffle_channel_param { group: 2 }", [[[[k] for k in range(6)]]]) == [
        0,
        3,
        1,
        4,
        2,
        5,
    ]
    box = "prior_box_param { width: 4 height: 2 step: 10 variance: 0.5 }"
    image_of_one_cell = [np.zeros((1, 1, 1, 1)), np.zeros((1, 1, 10, 20))]
    assert by_hand("PriorBoxClustered", box, image_of_one_cell) == [[0.15, 0.4, 0.35, 0.6], [0.5] * 4]
    assert by_hand("ReLU6", "relu6_param { negative_slope: 0.5 }", [[-4, 3, 8]]) == [-2, 3, 6]
    deep = [[[[1, 5]], [[2, 6]], [[3, 7]], [[4, 8]]]]
    assert by_hand("Reorg", "reorg_param { stride: 2 reverse: true }", [deep]) == [[1, 2, 5, 6], [3, 4, 7, 8]]


def test_an_unknown_type_is_said(tmp_path: Path) -> None:
    case, _ = case_of(GOLDEN / "layers/relu_default.prototxt")
    formula = FORMULAS.pop("ReLU")
    try:
        made = next(NumPyReference().run(case))
        assert made.tops is None
        assert made.note == "no formula for ReLU"
    finally:
        FORMULAS["ReLU"] = formula
    assert set(record(NumPyReference(), case).tops) == {("x", 0), ("relu", 0)}
    assert layers.REGISTRY


def test_the_formulas_fill_what_opencv_does_not_know(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    net = tmp_path / "net.prototxt"
    net.write_text("""
        layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 4 } } }
        layer { name: "a" type: "Power" bottom: "x" top: "a" power_param { scale: 2 } }
        layer { name: "lrn" type: "LRN" bottom: "a" top: "b" lrn_param { local_size: 3 k: 2 alpha: 0.5 } }
        layer { name: "c" type: "Threshold" bottom: "b" top: "c" }
        layer { name: "d" type: "Eltwise" bottom: "b" bottom: "c" top: "d" }
    """)
    report = verify(net)
    assert report.passed
    assert report.not_compared == 0
    assert {r.layer: r.note for r in report.rows if r.note} == {
        "lrn": "OpenCV ignores k and uses 1: compared with NumPy",
        "c": "OpenCV has no layer Threshold: compared with NumPy",
    }
    assert [r.layer for r in report.rows if r.by] == ["lrn", "c"]
    assert "agree: 2 with OpenCV 4." in verdict(report)
    assert ", 2 with NumPy" in verdict(report)


@pytest.mark.parametrize("kind", ["AbsVal", "BNLL", "ELU", "Exp", "Log", "Power", "ReLU", "Sigmoid", "TanH"])
def test_blobs_without_axes(kind: str, tmp_path: Path) -> None:
    """NumPy makes a number of an array without axes, as of a loss that another layer reads."""
    net = tmp_path / "net.prototxt"
    net.write_text(f"""
        input: "a" input_shape {{ dim: 3 dim: 5 }} input: "b" input_shape {{ dim: 3 dim: 5 }}
        layer {{ name: "loss" type: "EuclideanLoss" bottom: "a" bottom: "b" top: "loss" loss_weight: 1 }}
        layer {{ name: "{kind}" type: "{kind}" bottom: "loss" top: "y" }}
    """)
    report = verify(net, against="numpy", keep_loss=True)
    assert report.passed
    assert [row.layer for row in report.rows if row.status == "passed"] == ["loss", kind]
    ported = port(net, keep_loss=True)
    layer = getattr(ported.net, ported.net.names[kind])
    layer.forward = lambda x: type(layer).forward(layer, x) + 1  # what is wrong is looked for among the slips
    report = verify(ported, against="numpy")
    assert [row.layer for row in report.broken] == [kind]


@pytest.mark.parametrize("against", ["numpy", "opencv"])
@pytest.mark.parametrize("axes", [(0, 1), (0, 2), (1, 0), (2, 0)])
def test_a_top_with_other_axes(axes: tuple[int, int], against: str, tmp_path: Path) -> None:
    """The net keeps axes that the reference does not, or the other way round: FAILED, at this layer."""
    net = tmp_path / "net.prototxt"
    net.write_text(f"""
        input: "a" input_shape {{ dim: 3 dim: 5 dim: 4 }}
        layer {{ name: "sum" type: "Reduction" bottom: "a" top: "sum" reduction_param {{ axis: {axes[0]} }} }}
        layer {{ name: "e" type: "Exp" bottom: "sum" top: "e" }}
    """)
    ported = port(net)
    ported.net.sum.dims = tuple(range(axes[1], 3))  # type: ignore[assignment, union-attr]
    report = verify(ported, against=against)
    assert not report.passed
    assert [row.layer for row in report.broken] == ["sum"]
