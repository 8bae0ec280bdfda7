"""Shapes by formula against what Caffe allocated, and against the Net, which runs its layers."""

from __future__ import annotations

import copy
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, HERE, SHARED, needs_shared
from torch.utils.flop_counter import FlopCounterMode

from caffe_port import layers
from caffe_port.definition.definition import Definition
from caffe_port.errors import CaffePortError, SpecError
from caffe_port.formats import caffemodel, prototxt
from caffe_port.net.net import Net, infer_by_running
from caffe_port.signatures import shapes
from caffe_port.signatures.plugins import find
from caffe_port.signatures.shapes import UnknownShape
from caffe_port.signatures.signature import SIGNATURES, Trait, has
from caffe_port.spec import LayerSpec, NetSpec, Producer

CASES = sorted((GOLDEN / "layers").glob("*.prototxt"))
MODEL_DEFS = sorted(p for p in (HERE.parent / "model_defs").glob("*.prototxt") if "solver" not in p.name)
MODELS = sorted(p for p in (SHARED / "models").rglob("*.prototxt") if "solver" not in p.name)

CAFFE_1_0 = """
AbsVal Accuracy ArgMax BNLL BatchNorm BatchReindex Bias Clip Concat ContrastiveLoss Convolution Crop Data
Deconvolution Dropout DummyData ELU Eltwise Embed EuclideanLoss Exp Filter Flatten HDF5Data HDF5Output HingeLoss
Im2col ImageData InfogainLoss InnerProduct Input LRN LSTM LSTMUnit Log MVN MemoryData MultinomialLogisticLoss
PReLU Parameter Pooling Power Python RNN ReLU Reduction Reshape SPP Scale Sigmoid SigmoidCrossEntropyLoss Silence
Slice Softmax SoftmaxWithLoss Split Swish TanH Threshold Tile WindowData
"""


def one(type_: str, bottoms: list[tuple[int, ...]], param: str = "", tops: int = 1) -> LayerSpec:
    """A layer with bottoms b0, b1, ... and tops t0, t1, ..."""
    names = "".join(f'bottom: "b{k}" ' for k in range(len(bottoms))) + "".join(f'top: "t{k}" ' for k in range(tops))
    message = prototxt.parse(f'layer {{ name: "l" type: "{type_}" {names} {param} }}', "NetParameter").layer[0]
    sources: tuple[Producer, ...] = tuple((f"b{k}", 0) for k in range(len(bottoms)))
    return LayerSpec("l", type_, tuple(message.bottom), tuple(message.top), sources, message, "net.prototxt:7")


def by_running(layer: LayerSpec, bottoms: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The layer's top shapes as its class makes them: built past the rule, and run on the meta device."""
    cls = layers.class_of(layer.param)
    assert cls is not None
    with torch.device("meta"):
        module = cls.make(cls.from_caffe(cls.own_message(layer.param), bottoms))
    return infer_by_running(layer, module, bottoms)


def assert_as_net(spec: NetSpec, given: dict[str, tuple[int, ...]]) -> Net:
    """Equal shapes of every blob, and of every layer's parameters."""
    net = Net(spec, given, seed=None)
    found = shapes.infer(spec, given)
    assert found == dict(net.plan.shapes)
    for step in net.plan.steps:  # by running, too: the Net itself goes by the rules
        module = copy.deepcopy(getattr(net, step.attribute)).to("meta")
        ran = infer_by_running(step.layer, module, [found[producer] for producer in step.layer.producers])
        assert ran == [found[step.layer.name, k] for k in range(len(ran))], step.layer.name
    modules = net.caffe_layers()
    for layer in spec.layers:
        if layer.is_input:
            continue
        module = modules[layer.name]
        want = [tuple(module.get_blob(name).shape) for name in module.blob_names()]
        assert shapes.blob_shapes(layer, [found[s] for s in layer.producers]) == want, layer.name
        buffers = {k for k, name in enumerate(module.blob_names()) if not getattr(module, name).requires_grad}
        assert shapes.statistics(layer) & set(range(len(want))) == buffers, layer.name
    return net


# -- against Caffe and the Net ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_as_caffe_and_as_net(path: Path) -> None:
    spec, given = assert_as_caffe(path)
    assert_as_net(spec, given)


FORKS = sorted((SHARED / "golden" / "forks").glob("*.prototxt"))


@needs_shared
@pytest.mark.parametrize("path", FORKS, ids=lambda p: p.stem)
def test_as_forks(path: Path) -> None:
    """Nets of a fork's layers, run by that fork; those of types that are not known here are left out."""
    definition = Definition.read(path)
    unknown = sorted({layer.type for layer in definition.net.layer if find(layer) is None})
    unknown += [layer.type for layer in definition.net.layer if has(layer.type, Trait.OTHERS)]
    if unknown:
        pytest.skip(f"not known: {', '.join(unknown)}")
    assert_as_caffe(path)


def assert_as_caffe(path: Path) -> tuple[NetSpec, dict[str, tuple[int, ...]]]:
    """The shapes that Caffe allocated, of tops and of blobs."""
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
        phase = str(file["phase"])
        fed = {key[3:]: file[key].shape for key in file.files if key.startswith("in:")}
        tops = {tuple(key.split(":")[2:]): file[key].shape for key in file.files if key.startswith("out:")}
    spec = Definition.read(path).spec(phase)
    declared = {
        top: tuple(layer.param.input_param.shape[0].dim)
        for layer in spec.layers
        if layer.type == "Input"
        for top in layer.tops
    }
    given = declared | fed
    found = shapes.infer(spec, given)
    compared = 0
    for (name, index), shape in found.items():
        if (name, str(index)) in tops:
            by_numbers = spec.by_name[name].type in BY_NUMBERS  # how many rows there are depends on the numbers
            mine, theirs = (s[1:] if by_numbers else s for s in (shape, tops[name, str(index)]))
            if spec.by_name[name].type == "DetectionOutput":
                mine, theirs = mine[2:], theirs[2:]
            if spec.by_name[name].type == "Filter":
                mine, theirs = shape[1:], tops[name, str(index)][1:]
            assert mine == theirs, (name, index)
            compared += 1
    assert compared, "no top of this net is among Caffe's"
    weights = path.with_suffix(".caffemodel")
    stored = caffemodel.read(weights).by_name() if weights.exists() else {}
    for layer in spec.layers:
        if layer.name in stored and not layer.is_input:
            ours = shapes.blob_shapes(layer, [found[s] for s in layer.producers])
            want = [tuple(blob.shape) for blob in stored[layer.name].blobs]
            if layer.type == "BN":  # which writes (1, C)
                want = [shape[-1:] for shape in want]
            assert [shape or (1,) for shape in ours] == want, "Caffe writes no shape for a scalar"
    return spec, given


BY_NUMBERS = ("DetectionOutput", "Proposal")


def test_golden_cases_are_here() -> None:
    assert len(CASES) == 196


@pytest.mark.parametrize("phase", ["TEST", "TRAIN"])
@pytest.mark.parametrize("path", MODEL_DEFS, ids=lambda p: p.stem)
def test_model_defs_as_net(path: Path, phase: str) -> None:
    spec = Definition.read(path).spec(phase)
    side = (3, 32, 32) if "mnist" not in path.name else (1, 28, 28)
    given = {blob: (2, *side) if producer[1] == 0 else (2,) for blob, producer in spec.inputs}
    assert_as_net(spec, given)


@needs_shared
@pytest.mark.parametrize("path", MODELS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_models_as_net(path: Path) -> None:
    """Every prototxt of people that the Net can build, fed with two pictures that are not square."""
    definition = Definition.read(path)
    sides = {"mnist": (1, 28, 28), "lenet": (1, 28, 28), "svhn": (3, 32, 32), "cifar": (3, 32, 32), "sr": (1, 37, 29)}
    side = next((side for word, side in sides.items() if word in str(path.relative_to(SHARED)).lower()), (3, 32, 32))
    spec = definition.spec("TEST", inputs=("data", "label"))
    given = {}
    for blob, (name, index) in spec.inputs:
        declared = spec.by_name[name].param.input_param.shape
        assumed = (2, *side) if blob == "data" else (2,)
        given[blob] = tuple(declared[min(index, len(declared) - 1)].dim) if declared else assumed
    assert_as_net(spec, given)


def test_random_windows_as_net() -> None:
    """Convolution, deconvolution, im2col and pooling with random windows: both fit, with one result, or both refuse."""
    rng = random.Random(7)
    refused = 0
    for _ in range(300):
        type_ = rng.choice(["Convolution", "Deconvolution", "Im2col", "Pooling"])
        kernel, stride, pad = rng.randint(1, 7), rng.randint(1, 5), rng.randint(0, 6)
        bottom = (2, 4, rng.randint(1, 14), rng.randint(1, 14))
        if type_ == "Pooling":
            pad, rounding = min(pad, kernel - 1), rng.choice(["", "round_mode: FLOOR"])
            own = f"kernel_h: {kernel} kernel_w: {rng.randint(kernel, 7)} stride: {stride} pad: {pad} {rounding}"
            own = f"pooling_param {{ {own} }}"
        else:
            outputs = f"num_output: 6 group: {rng.choice([1, 2])}" if type_ != "Im2col" else ""
            own = f"kernel_size: {kernel} kernel_size: {rng.randint(1, 7)} stride: {stride} pad: {pad}"
            own = f"convolution_param {{ {outputs} {own} dilation: {rng.randint(1, 3)} }}"
        layer = one(type_, [bottom], own)
        try:
            want: list[tuple[int, ...]] | None = by_running(layer, [bottom])
        except SpecError:
            want = None
            refused += 1
        if want is not None and min(want[0]) < 1:
            want = None
        try:
            got: list[tuple[int, ...]] | None = shapes.top_shapes(layer, [bottom])
        except SpecError:
            got = None
        assert got == want, (own, bottom)
    assert 30 < refused < 270, "both outcomes are tried"


# -- types --------------------------------------------------------------------------------------------------------


def test_every_type_of_caffe_has_a_rule() -> None:
    assert len(CAFFE_1_0.split()) == 61
    missing = [n for n in CAFFE_1_0.split() if SIGNATURES[n].tops is None and not has(n, Trait.SOURCE)]
    assert missing == []


@pytest.mark.parametrize(
    ("type_", "bottoms", "param", "tops"),
    [
        ("Permute", [(2, 3, 5, 7)], "permute_param { order: 0 order: 2 order: 3 order: 1 }", [(2, 5, 7, 3)]),
        ("Permute", [(2, 3, 5, 7)], "permute_param { order: 3 }", [(7, 2, 3, 5)]),
        # SSD300's conv4_3: 1 and 2 and 1/2 for the least size, one for the greatest: 4 boxes of 38 x 38
        (
            "PriorBox",
            [(1, 512, 38, 38), (1, 3, 300, 300)],
            "prior_box_param { min_size: 30 max_size: 60 aspect_ratio: 2 }",
            [(1, 2, 38 * 38 * 4 * 4)],
        ),
        (
            "PriorBox",
            [(1, 9, 5, 3), (1, 3, 30, 20)],
            "prior_box_param { min_size: 30 min_size: 40 aspect_ratio: 2 aspect_ratio: 3 aspect_ratio: 1 flip: false }",
            [(1, 2, 5 * 3 * 6 * 4)],
        ),
        (
            "PriorBoxClustered",
            [(1, 9, 5, 3), (1, 3, 30, 20)],
            "prior_box_param { width: 9 width: 5.5 height: 7 height: 8 }",
            [(1, 2, 5 * 3 * 2 * 4)],
        ),
        (
            "PriorBox",
            [(1, 9, 5, 3), (1, 3, 30, 20)],
            "prior_box_param { width: [9, 4, 1] height: [7, 2, 3] }",
            [(1, 2, 5 * 3 * 3 * 4)],
        ),
        ("Normalize", [(2, 3, 5, 7)], "norm_param { across_spatial: false channel_shared: false }", [(2, 3, 5, 7)]),
        ("ROIPooling", [(2, 8, 14, 19), (300, 5)], "roi_pooling_param { pooled_h: 7 pooled_w: 6 }", [(300, 8, 7, 6)]),
        ("ROIAlign", [(2, 8, 14, 19), (300, 5)], "roi_align_param { pooled_h: 7 pooled_w: 6 }", [(300, 8, 7, 6)]),
        (
            "PSROIPooling",
            [(1, 1029, 14, 19), (300, 5)],
            "psroi_pooling_param { output_dim: 21 group_size: 7 spatial_scale: 0.0625 }",
            [(300, 21, 7, 7)],
        ),
        ("Interp", [(2, 3, 33, 41)], "interp_param { zoom_factor: 8 }", [(2, 3, 257, 321)]),
        ("Interp", [(2, 3, 33, 41)], "interp_param { shrink_factor: 2 }", [(2, 3, 17, 21)]),
        ("Interp", [(2, 3, 33, 41)], "interp_param { shrink_factor: 2 zoom_factor: 3 pad_end: -1 }", [(2, 3, 46, 58)]),
        ("Interp", [(2, 3, 33, 41)], "interp_param { height: 60 width: 90 }", [(2, 3, 60, 90)]),
        ("Interp", [(2, 3, 33, 41), (2, 9, 65, 70)], "", [(2, 3, 65, 70)]),
        ("ShuffleChannel", [(2, 12, 5, 7)], "shuffle_channel_param { group: 3 }", [(2, 12, 5, 7)]),
        ("Axpy", [(2, 3, 1, 1), (2, 3, 5, 7), (2, 3, 5, 7)], "", [(2, 3, 5, 7)]),
        ("ReLU6", [(2, 3, 5, 7)], "", [(2, 3, 5, 7)]),
        (
            "DepthwiseConvolution",
            [(2, 6, 9, 8)],
            "convolution_param { kernel_size: 3 stride: 2 pad: 1 }",
            [(2, 6, 5, 4)],
        ),
        ("Upsample", [(2, 3, 5, 7), (2, 3, 5, 7)], "upsample_param { scale: 2 pad_out_h: true }", [(2, 3, 9, 14)]),
        ("Upsample", [(2, 3, 5, 7)] * 2, "upsample_param { upsample_h: 45 upsample_w: 60 }", [(2, 3, 45, 60)]),
        ("Upsample", [(2, 3, 5, 7)], "upsample_param { stride: 3 }", [(2, 3, 15, 21)]),
        ("Reorg", [(2, 8, 10, 14)], "reorg_param { stride: 2 }", [(2, 32, 5, 7)]),
        ("Reorg", [(2, 12, 5, 7)], "reorg_param { stride: 2 reverse: true }", [(2, 3, 10, 14)]),
        (
            "DetectionOutput",
            [(1, 8), (1, 6), (1, 2, 8)],
            "detection_output_param { num_classes: 3 nms_param { nms_threshold: 0.45 } }",
            [(1, 1, 1, 7)],
        ),
        (
            "Proposal",
            [(2, 8, 5, 7), (2, 16, 5, 7), (2, 3)],
            "proposal_param { ratio: [0.5, 2] scale: [8, 16] post_nms_topn: 30 }",
            [(60, 5)],
        ),
        ("Proposal", [(1, 2, 5, 7), (1, 4, 5, 7), (1, 3)], "proposal_param { ratio: 1 scale: 8 }", [(300, 5), (300,)]),
        (
            "YoloDetectionOutput",
            [(2, 16, 5, 7)],
            "yolo_detection_output_param { num_classes: 3 num_box: 2 biases: [1, 2, 3, 4] }",
            [(1, 1, 1, 7)],
        ),
        (
            "Yolov3DetectionOutput",
            [(2, 8, 5, 7), (2, 8, 10, 14)],
            "yolov3_detection_output_param { num_box: 1 num_classes: 3 biases: [9, 8] mask: [0,0] anchors_scale:[9,4]}",
            [(1, 1, 1, 7)],
        ),
    ],
)
def test_forks(type_: str, bottoms: list[tuple[int, ...]], param: str, tops: list[tuple[int, ...]]) -> None:
    layer = one(type_, bottoms, param, tops=len(tops))
    assert shapes.top_shapes(layer, bottoms) == tops
    assert by_running(layer, bottoms) == tops


def test_hole_is_deeplabs_word_for_dilation() -> None:
    layer = one("Convolution", [(2, 3, 13, 11)], "convolution_param { num_output: 4 kernel_size: 3 hole: 2 }")
    assert shapes.top_shapes(layer, [(2, 3, 13, 11)]) == [(2, 4, 9, 7)]


@pytest.mark.parametrize(
    ("type_", "bottoms", "param", "what"),
    [
        (
            "Convolution",
            [(2, 3, 5, 7)],
            "convolution_param { num_output: 4 kernel_size: 6 }",
            r"\(2, 3, 5, 7\) gives an empty output \(0, 2\) with kernel_size 6x6, ",
        ),
        ("Convolution", [(2, 3, 5, 7)], "convolution_param { kernel_size: 3 }", "is missing or 0"),
        ("Convolution", [(2, 3, 5, 7)], "convolution_param { num_output: 4 }", "kernel_size is missing"),
        (
            "Convolution",
            [(2, 3, 5, 7)],
            "convolution_param { num_output: 4 kernel_size: 3 stride: 0 }",
            "stride must be at least 1, got 0",
        ),
        (
            "Convolution",
            [(2, 3, 5, 7)],
            "convolution_param { num_output: 4 kernel_size: 3 group: 2 }",
            "group 2 does not divide the 3 channels",
        ),
        ("Convolution", [(2, 3, 5, 7)], "convolution_param { num_output: 4 kernel_size: [3, 3, 3] }", "given 3 times"),
        ("Convolution", [(2, 3, 5)], "convolution_param { num_output: 4 kernel_h: 3 kernel_w: 3 }", "two spatial axes"),
        ("Convolution", [(2, 3)], "convolution_param { num_output: 4 kernel_size: 3 }", "there are no spatial axes"),
        ("Pooling", [(2, 3, 5, 7)], "pooling_param { kernel_size: 3 pad: 3 }", "pad 3 must be less than the kernel"),
        ("Pooling", [(2, 3, 5)], "pooling_param { kernel_size: 3 }", r"a bottom with 4 to 5 axes, got \(2, 3, 5\)"),
        ("InnerProduct", [(2, 3)], "inner_product_param { num_output: 4 axis: 2 }", "axis 2 does not exist"),
        ("Eltwise", [(2, 3), (3, 2)], "", r"\(2, 3\), \(3, 2\) differ in shape"),
        ("Eltwise", [], "", "0 bottoms; the layer takes 1 or more"),
        ("Concat", [(2, 3, 4), (2, 3, 5)], "", "cannot be concatenated along axis 1"),
        (
            "Reshape",
            [(2, 3)],
            "reshape_param { shape { dim: 4 dim: -1 } }",
            r"shape \[4, -1\] does not match the 6 values",
        ),
        ("Slice", [(2, 5, 3)], "", "2 tops do not divide the 5 of axis 1"),
        ("Crop", [(2, 3, 5, 7), (2, 3, 4, 7)], "crop_param { axis: 2 offset: 2 offset: 0 }", "exceeds 5"),
        (
            "Scale",
            [(2, 3, 5), (2, 4)],
            "scale_param { axis: 0 }",
            r"the second bottom \(2, 4\) does not fit the first, \(2, 3, 5\)",
        ),
        ("ReLU", [(2, 3), (2, 3)], "", "2 bottoms; the layer takes 1"),
        ("Reorg", [(2, 4, 5, 7)], "reorg_param { stride: 2 }", "stride 2 does not divide an image of 5 x 7"),
        ("Reorg", [(2, 3, 4, 6)], "reorg_param { stride: 2 }", "channels in multiples of 4, the bottom has 3"),
        ("BatchReduction", [(2, 3, 4)], "batch_reduction_param { reduction_param { operation: ASUM } }", "ASUM is not"),
        ("BatchReduction", [(6, 3)], "batch_reduction_param { level: 2 }", r"levels \[2\] are 4 numbers, axis 0 has 6"),
        ("ROIPooling", [(2, 3, 5, 7), ()], "roi_pooling_param { pooled_h: 2 pooled_w: 2 }", r"regions \(R, 5\)"),
        ("Split", [(2, 3)], "", None),
    ],
)
def test_what_does_not_fit_is_told(type_: str, bottoms: list[tuple[int, ...]], param: str, what: str | None) -> None:
    layer = one(type_, bottoms, param, tops=2 if type_ in ("Slice", "Split") else 1)
    if what is None:
        assert shapes.top_shapes(layer, bottoms) == [(2, 3), (2, 3)]
        return
    with pytest.raises(SpecError, match=what) as error:
        shapes.top_shapes(layer, bottoms)
    assert str(error.value).startswith(f"net.prototxt:7: layer 'l' ({type_}): ")


def test_number_of_tops_is_checked() -> None:
    with pytest.raises(SpecError, match="has 2 tops, but this type produces 1 from 1 bottoms"):
        shapes.top_shapes(one("ReLU", [(2, 3)], tops=2), [(2, 3)])
    assert shapes.top_shapes(one("SoftmaxWithLoss", [(2, 3), (2,)], tops=0), [(2, 3), (2,)]) == [()]


def test_unknown_type() -> None:
    layer = one("SomeFork", [(2, 3)])
    with pytest.raises(UnknownShape, match=r"net.prototxt:7: layer 'l' \(SomeFork\)"):
        shapes.top_shapes(layer, [(2, 3)])
    with pytest.raises(UnknownShape):
        shapes.blob_shapes(layer, [(2, 3)])


def test_input_without_shape() -> None:
    text = 'input: "x" layer { name: "r" type: "ReLU" bottom: "x" top: "y" }'
    spec = Definition.parse(prototxt.parse(text, "NetParameter")).spec()
    with pytest.raises(SpecError, match="input 'x' is unknown"):
        shapes.infer(spec, {})


@pytest.mark.parametrize("type_", sorted(name for name, record in SIGNATURES.items() if record.tops is not None))
def test_nothing_but_spec_errors(type_: str) -> None:
    """Whatever the bottoms: shapes, or a sentence; never another exception."""
    rng = random.Random(type_)
    for _ in range(60):
        bottoms = [tuple(rng.randint(1, 5) for _ in range(rng.randint(0, 5))) for _ in range(rng.randint(0, 4))]
        layer = one(type_, bottoms, tops=rng.randint(0, 3))
        try:
            tops = shapes.top_shapes(layer, bottoms)
            shapes.blob_shapes(layer, bottoms)
            assert shapes.macs(layer, bottoms, tops) >= 0
        except CaffePortError:
            continue


# -- cost ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "bottoms", "param", "macs"),
    [
        (
            "Convolution",
            [(2, 6, 9, 8)],
            "convolution_param { num_output: 4 kernel_h: 3 kernel_w: 2 group: 2 stride: 2 }",
            2 * 4 * 4 * 4 * (3 * 3 * 2),
        ),
        ("Convolution", [(2, 6, 9, 8)] * 2, "convolution_param { num_output: 4 kernel_size: 1 }", 2 * (2 * 4 * 72 * 6)),
        (
            "Deconvolution",
            [(2, 6, 5, 4)],
            "convolution_param { num_output: 4 kernel_size: 3 group: 2 stride: 2 }",
            2 * 6 * 20 * (2 * 9),
        ),
        ("InnerProduct", [(2, 3, 5, 7)], "inner_product_param { num_output: 11 }", 2 * 105 * 11),
        (
            "InnerProduct",
            [(2, 3, 5, 7)],
            "inner_product_param { num_output: 11 axis: -1 transpose: true }",
            30 * 7 * 11,
        ),
        ("LSTM", [(5, 3, 4), (5, 3)], "recurrent_param { num_output: 6 }", 5 * 3 * (24 * 4 + 24 * 6)),
        (
            "LSTM",
            [(5, 3, 4), (5, 3), (3, 7)],
            "recurrent_param { num_output: 6 }",
            5 * 3 * (24 * 4 + 24 * 6) + 3 * 24 * 7,
        ),
        ("RNN", [(5, 3, 4), (5, 3)], "recurrent_param { num_output: 6 }", 5 * 3 * (6 * 4 + 36 + 36)),
        ("Scale", [(2, 3, 5, 7)], "", 0),
        ("ReLU", [(2, 3, 5, 7)], "", 0),
        ("Pooling", [(2, 3, 5, 7)], "pooling_param { kernel_size: 3 }", 0),
    ],
)
def test_macs(type_: str, bottoms: list[tuple[int, ...]], param: str, macs: int) -> None:
    layer = one(type_, bottoms, param, tops=len(bottoms) if type_ == "Convolution" else 1)
    assert shapes.macs(layer, bottoms, shapes.top_shapes(layer, bottoms)) == macs


@pytest.mark.parametrize("path", [p for p in MODEL_DEFS if "mnist" not in p.stem], ids=lambda p: p.stem)
def test_macs_as_torch_counts(path: Path) -> None:
    """torch.utils.flop_counter counts two operations for each multiply-accumulate."""
    spec = Definition.read(path).spec("TEST")
    given = {blob: (2, 3, 32, 32) if producer[1] == 0 else (2,) for blob, producer in spec.inputs}
    net = Net(spec, given, seed=None).to("meta").eval()
    fed = [torch.zeros(given[blob], device="meta") for blob in net.plan.inputs]
    with FlopCounterMode(display=False) as counter:
        net(*fed)
    found = shapes.infer(spec, given)
    ours = sum(
        shapes.macs(layer, [found[s] for s in layer.producers], [found[layer.name, k] for k in range(len(layer.tops))])
        for layer in spec.layers
    )
    assert 2 * ours == counter.get_total_flops()


def test_sizes_beyond_64_bits() -> None:
    """Lengths are numbers, not memory."""
    bottom = (1 << 40, 3, 1 << 40, 1 << 40)
    layer = one("Convolution", [bottom], "convolution_param { num_output: 4 kernel_size: 1 }")
    assert math.prod(shapes.top_shapes(layer, [bottom])[0]) == 4 << 120


def test_imports_no_torch() -> None:
    script = "import sys, caffe_port.signatures.shapes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
