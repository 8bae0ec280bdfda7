"""Correlation, Correlation1D, FlowWarp, ChannelNorm: against OpenCV, and loops after FlowNet2."""

import math

import numpy as np
import pytest
import torch
from fork_layers import build, layer_text, random
from opencv_layer import opencv

import caffe_port.layers.forks.flow  # noqa: F401
from caffe_port.errors import SpecError


def loop_correlation(a, b, kernel, reach, pad, s1, s2, subtract, moves_y, moves_x, pad_y, reach_y):
    """CorrelateData and CorrelateDataSubtract; what lies beyond the padding is 0."""
    far = 2 * (reach + s2)
    wide = ((0, 0), (0, 0), (pad_y + far, pad_y + far), (pad + far, pad + far))
    a, b = np.pad(a, wide), np.pad(b, wide)
    height, width = a.shape[2] - 2 * far, a.shape[3] - 2 * far
    radius = (kernel - 1) // 2
    size = [math.ceil((n - 2 * (r + radius)) / s1) for n, r in ((height, reach_y), (width, reach))]
    y = np.zeros((len(a), len(moves_y) * len(moves_x), *size))
    for k, (dy, dx) in enumerate((v, u) for v in moves_y for u in moves_x):
        for h, w in np.ndindex(*size):
            top, left = h * s1 + reach_y + far, w * s1 + reach + far
            first = a[:, :, top : top + kernel, left : left + kernel]
            second = b[:, :, top + dy : top + dy + kernel, left + dx : left + dx + kernel]
            y[:, k, h, w] = (np.abs(first - second) if subtract else first * second).mean((1, 2, 3))
    return y


@pytest.mark.parametrize(
    ("kernel", "reach", "pad", "s1", "s2", "kind"),
    [
        (1, 4, 4, 1, 2, "MULTIPLY"),
        (3, 5, 6, 2, 2, "MULTIPLY"),
        (1, 3, 2, 1, 1, "SUBTRACT"),
        (3, 2, 3, 1, 3, "SUBTRACT"),
    ],
)
def test_correlation_is_flownets_loop_and_opencvs(kernel, reach, pad, s1, s2, kind):
    a, b = random(2, 3, 9, 11), random(2, 3, 9, 11, seed=1)
    param = (
        f"correlation_param {{ pad: {pad} kernel_size: {kernel} max_displacement: {reach} stride_1: {s1} stride_2: {s2}"
        f" correlation_type: {kind} }}"
    )
    layer = build("Correlation", param, a.shape, b.shape)
    moves = range(-(reach // s2) * s2, reach // s2 * s2 + 1, s2)
    want = loop_correlation(
        a.double().numpy(), b.double().numpy(), kernel, reach, pad, s1, s2, kind == "SUBTRACT", moves, moves, pad, reach
    )
    np.testing.assert_allclose(layer(a.double(), b.double()).numpy(), want, atol=1e-12)
    if kind == "MULTIPLY":
        theirs = opencv(layer_text("Correlation", 2, param), a, b)
        np.testing.assert_allclose(layer(a, b).numpy(), theirs, atol=1e-5)


@pytest.mark.parametrize("direction", [-1, 0, 1])
@pytest.mark.parametrize(("kernel", "reach", "pad", "s1", "s2"), [(1, 4, 4, 1, 1), (3, 5, 6, 2, 2)])
def test_sideways_correlation_is_dispnets_loop(direction, kernel, reach, pad, s1, s2):
    a, b = random(2, 3, 9, 12).double(), random(2, 3, 9, 12, seed=1).double()
    param = (
        f"correlation_param {{ pad: {pad} kernel_size: {kernel} max_displacement: {reach} stride_1: {s1} stride_2: {s2}"
        f" single_direction: {direction} }}"
    )
    radius = reach // s2
    # Forward_gpu: x_shift is -(radius + 1) to the left, 0 to the right
    moves = {-1: range(-radius - 1, 0), 0: range(-radius, radius + 1), 1: range(radius + 1)}[direction]
    moves = [m * s2 for m in moves]
    want = loop_correlation(a.numpy(), b.numpy(), kernel, reach, pad, s1, s2, False, [0], moves, 0, 0)
    np.testing.assert_allclose(build("Correlation1D", param, a.shape, b.shape)(a, b).numpy(), want, atol=1e-12)


def loop_warp(image, flow, fill):
    """flow_warp_kernel_no_smem."""
    n, _, height, width = image.shape
    y = np.full(image.shape, fill)
    for b, h, w in np.ndindex(n, height, width):
        x2, y2 = w + flow[b, 0, h, w], h + flow[b, 1, h, w]
        if 0 <= x2 < width and 0 <= y2 < height:
            left, top = int(x2), int(y2)
            right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
            u, v = x2 - left, y2 - top
            y[b, :, h, w] = (
                (1 - u) * (1 - v) * image[b, :, top, left]
                + u * (1 - v) * image[b, :, top, right]
                + (1 - u) * v * image[b, :, bottom, left]
                + u * v * image[b, :, bottom, right]
            )
    return y


@pytest.mark.parametrize(("text", "fill"), [("", 0.0), ("flow_warp_param { fill_value: NOT_A_NUMBER }", np.nan)])
def test_flow_warp_is_flownets_loop_and_opencvs(text, fill):
    image, flow = random(2, 3, 7, 9), random(2, 2, 7, 9, seed=1, scale=3.0)
    layer = build("FlowWarp", text, image.shape, flow.shape)
    want = loop_warp(image.double().numpy(), flow.double().numpy(), fill)
    np.testing.assert_allclose(layer(image.double(), flow.double()).numpy(), want, atol=1e-12)
    if not text:
        theirs = opencv(layer_text("FlowWarp", 2, text), image, flow)
        np.testing.assert_allclose(layer(image, flow).numpy(), theirs, atol=1e-5)


def test_channel_norm():
    x = random(2, 5, 3, 4)
    layer = build("ChannelNorm", "", x.shape)
    np.testing.assert_allclose(layer(x).numpy(), np.sqrt((x.numpy() ** 2).sum(1, keepdims=True)), rtol=1e-6)
    assert torch.equal(eval(layer.call_source("x"), {"torch": torch, "x": x}), layer(x))


@pytest.mark.parametrize(
    ("kind", "text", "shapes", "says"),
    [
        (
            "Correlation",
            "correlation_param { kernel_size: 2 max_displacement: 1 }",
            [(1, 2, 9, 9)] * 2,
            "odd kernel_size",
        ),
        (
            "Correlation",
            "correlation_param { kernel_size: 1 max_displacement: 5 }",
            [(1, 2, 9, 9)] * 2,
            "reach 5 pixels",
        ),
        (
            "Correlation",
            "correlation_param { kernel_size: 1 max_displacement: 1 }",
            [(1, 2, 9, 9), (1, 2, 9, 8)],
            "one shape",
        ),
        ("FlowWarp", "", [(1, 2, 9, 9), (1, 3, 9, 9)], "a flow"),
    ],
)
def test_bad_definitions_are_refused(kind, text, shapes, says):
    with pytest.raises(SpecError, match=says):
        build(kind, text, *shapes)
