"""Axpy, Mish, GRN, Local, the forks' losses, YOLO's outputs: against OpenCV and loops written from the forks."""

import math

import numpy as np
import pytest
import torch
from fork_layers import build, layer_text, overlap, random
from opencv_layer import opencv
from torch import nn

import caffe_port.layers.forks.blocks
import caffe_port.layers.forks.yolo
from caffe_port.errors import SpecError
from caffe_port.layers import lookup


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 1, 1)])
def test_axpy_is_a_factor_for_every_channel(shape):
    a, x, y = random(*shape), random(2, 5, 3, 4, seed=1), random(2, 5, 3, 4, seed=2)
    layer = build("Axpy", "", a.shape, x.shape, y.shape)
    want = a.numpy().reshape(2, 5, 1, 1) * x.numpy() + y.numpy()
    np.testing.assert_allclose(layer(a, x, y).numpy(), want, rtol=1e-6)
    assert torch.equal(eval(layer.call_source("a", "x", "y"), {"a": a, "x": x, "y": y}), layer(a, x, y))


def test_mish():
    x = random(2, 5, 3, 4, scale=4.0)
    want = x.double().numpy() * np.tanh(np.log1p(np.exp(x.double().numpy())))
    np.testing.assert_allclose(build("Mish", "", x.shape)(x).numpy(), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(opencv(layer_text("Mish", 1, ""), x), want, rtol=1e-4, atol=1e-5)


def test_grn_divides_by_the_length_over_the_channels():
    x = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)
    assert build("GRN", "grn_param { bias: 11 }", x.shape)(x).flatten().tolist() == [0.5, pytest.approx(4 / 6)]


def test_local_is_a_convolution_with_a_kernel_for_every_pixel():
    x = random(2, 3, 7, 6)
    layer = build("Local", "local_param { num_output: 4 kernel_size: 3 stride: 2 pad: 1 }", x.shape)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    y = layer(x).detach().numpy()
    assert y.shape == (2, 4, 4, 3)
    wide = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    for h, w in np.ndindex(4, 3):
        window = wide[:, :, 2 * h : 2 * h + 3, 2 * w : 2 * w + 3].reshape(2, -1)
        want = (
            window @ layer.weight.detach().numpy()[:, 0, :, 3 * h + w].T
            + layer.bias.detach().numpy()[0, 0, :, 3 * h + w]
        )
        np.testing.assert_allclose(y[:, :, h, w], want, rtol=1e-4, atol=1e-5)


def test_losses_of_forks_are_labels_and_refuse_to_be_built():
    for name in ("RegionLoss", "EvalDetection", "CenterLoss", "SegAccuracy"):
        assert lookup(name).labels
        with pytest.raises(SpecError, match="loss or metric of a fork"):
            build(name, "", (1, 2))


def test_the_aliases_take_no_class_that_exists():
    for name in caffe_port.layers.forks.blocks.ForkLoss.aliases:
        assert lookup(name) is caffe_port.layers.forks.blocks.ForkLoss


# -- YOLO ---------------------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def keep_best(found, threshold):
    """ApplyNms of MobileNet-YOLO, over rows label, score, x1, y1, x2, y2."""
    found.sort(key=lambda row: -row[1])
    kept = []
    for row in found:
        if all(overlap(row[2:], other[2:]) < threshold for other in kept):
            kept.append(row)
    return kept


def test_yolo_v2_is_the_forks_loop():
    anchors = [(1.1, 1.6), (2.4, 3.3), (0.7, 0.5)]
    biases = " ".join(f"biases: {v}" for pair in anchors for v in pair)
    x = random(2, 3 * 9, 5, 5)
    thresholds = "confidence_threshold: 0.2 nms_threshold: 0.4"
    param = f"yolo_detection_output_param {{ num_classes: 4 num_box: 3 {thresholds} {biases} }}"
    got = build("YoloDetectionOutput", param, x.shape)(x).numpy()
    want = []
    for n in range(2):
        found = []
        for j, i, k in np.ndindex(5, 5, 3):
            v = x[n, 9 * k : 9 * k + 9, j, i].double().numpy()
            cx, cy = (i + sigmoid(v[0])) / 5, (j + sigmoid(v[1])) / 5
            w, h = math.exp(v[2]) * anchors[k][0] / 5, math.exp(v[3]) * anchors[k][1] / 5
            p = np.exp(v[5:]) / np.exp(v[5:]).sum()
            score = sigmoid(v[4]) * p.max()
            if score >= 0.2:
                found.append([p.argmax() + 1, score, cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
        want += [[n, *row] for row in keep_best(found, 0.4)]
    np.testing.assert_allclose(got, np.array(want)[None, None], rtol=1e-4, atol=1e-5)


def test_yolo_v3_is_the_forks_loop():
    anchors = [(10, 14), (23, 27), (37, 58), (81, 82)]
    biases = " ".join(f"biases: {v}" for pair in anchors for v in pair)
    param = (
        "yolov3_detection_output_param { num_classes: 3 num_box: 2 confidence_threshold: 0.4 nms_threshold: 0.45"
        f" mask: 2 mask: 3 mask: 0 mask: 1 anchors_scale: 32 anchors_scale: 16 mask_group_num: 2 {biases} }}"
    )
    grids = [random(2, 16, 4, 4), random(2, 16, 8, 8, seed=1)]
    got = build("Yolov3DetectionOutput", param, *(g.shape for g in grids))(*grids).numpy()
    want = []
    for n in range(2):
        found = []
        for grid, mask, scale in zip(grids, [(2, 3), (0, 1)], [32, 16], strict=True):
            side = grid.shape[3]
            for j, i, k in np.ndindex(side, side, 2):
                v = grid[n, 8 * k : 8 * k + 8, j, i].double().numpy()
                cx, cy = (i + sigmoid(v[0])) / side, (j + sigmoid(v[1])) / side
                w, h = (math.exp(v[2 + d]) * anchors[mask[k]][d] / (side * scale) for d in range(2))
                for c in range(3):
                    score = sigmoid(v[5 + c]) * sigmoid(v[4])
                    if score > 0.4:
                        found.append([c + 1, score, cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
        want += [[n, *row] for row in keep_best(found, 0.45)]
    np.testing.assert_allclose(got, np.array(want)[None, None], rtol=1e-4, atol=1e-5)


def test_yolo_that_finds_nothing_says_so_for_each_image():
    x = torch.full((2, 2 * 8, 3, 3), -9.0)
    param = "yolo_detection_output_param { num_classes: 3 num_box: 2 biases: 1 biases: 2 biases: 3 biases: 4 }"
    layer = build("YoloDetectionOutput", param, x.shape)
    assert layer(x).tolist() == [[[[0.0] + [-1.0] * 6, [1.0] + [-1.0] * 6]]]
    assert layer.infer(x).shape == (1, 1, 1, 7)


@pytest.mark.parametrize(
    ("kind", "text", "shapes", "says"),
    [
        ("Axpy", "", [(1, 2), (1, 3, 4, 5), (1, 3, 4, 5)], "expected a"),
        ("Local", "local_param { num_output: 4 kernel_size: 9 }", [(1, 2, 3, 4)], "no window"),
        ("YoloDetectionOutput", "yolo_detection_output_param { num_box: 1 biases: 1 }", [(1, 25, 3, 3)], "pairs"),
        (
            "YoloDetectionOutput",
            "yolo_detection_output_param { num_box: 2 biases: 1 biases: 1 }",
            [(1, 25, 3, 3)],
            "2 boxes",
        ),
        (
            "YoloDetectionOutput",
            "yolo_detection_output_param { num_box: 1 biases: 1 biases: 1 }",
            [(1, 24, 3, 3)],
            "need",
        ),
        (
            "Yolov3DetectionOutput",
            "yolov3_detection_output_param { mask: 1 }",
            [(1, 24, 3, 3)] * 2,
            "2 bottoms of 3 boxes",
        ),
    ],
)
def test_bad_definitions_are_refused(kind, text, shapes, says):
    with pytest.raises(SpecError, match=says):
        build(kind, text, *shapes)
