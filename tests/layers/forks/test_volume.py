"""Convolutions and pooling of video: against loops written from C3D's sources."""

import itertools
import math

import numpy as np
import pytest
import torch
from fork_layers import build, random
from torch import nn

from caffe_port.errors import SpecError


def filled(kind, text, *shapes):
    layer = build(kind, text, *shapes)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def loop_convolution(x, weight, bias, stride, pad):
    """vol2col and a product: Convolution3DLayer::Forward_cpu."""
    wide = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in pad)])
    kernel = weight.shape[2:]
    out = [(n - k) // s + 1 for n, k, s in zip(wide.shape[2:], kernel, stride, strict=True)]
    y = np.zeros((x.shape[0], weight.shape[0], *out))
    for at in np.ndindex(*out):
        window = wide[(..., *(slice(a * s, a * s + k) for a, s, k in zip(at, stride, kernel, strict=True)))]
        y[(..., *at)] = np.tensordot(window, weight, ([1, 2, 3, 4], [1, 2, 3, 4])) + bias
    return y


@pytest.mark.parametrize("message", ["convolution_param", "convolution3d_param"])
def test_c3ds_depth_belongs_to_the_first_axis(message):
    x = random(2, 3, 5, 7, 6)
    text = "num_output: 4 kernel_size: 3 kernel_depth: 2 stride: 2 pad: 1 temporal_pad: 2 filter_group: 2"
    layer = filled("Convolution3D", f"{message} {{ {text} }}", x.shape)
    assert layer.weight.shape == (4, 3, 2, 3, 3)  # a filter group sees every channel
    want = loop_convolution(
        x.double().numpy(),
        layer.weight.detach().double().numpy(),
        layer.bias.detach().double().numpy(),
        (1, 2, 2),
        (2, 1, 1),
    )
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-4, atol=1e-4)
    assert eval(layer.torch_source(), {"nn": nn}).weight.shape == layer.weight.shape
    layer.load_blobs([layer.weight.detach().numpy(), np.ones((1, 1, 1, 1, 4), np.float32)])  # as C3D stores it
    assert layer.bias.tolist() == [1.0] * 4


@pytest.mark.parametrize(
    "text",
    [
        "kernel_shape { dim: [2, 1, 3] } stride_shape { dim: [1, 2, 1] } pad_shape { dim: [0, 0, 1] }",
        "kernel_d: 2 kernel_h: 1 kernel_w: 3 stride_d: 1 stride_h: 2 stride_w: 1 pad_d: 0 pad_h: 0 pad_w: 1",
        "kernel_l: 2 kernel_h: 1 kernel_w: 3 stride_l: 1 stride_h: 2 stride_w: 1 pad_l: 0 pad_h: 0 pad_w: 1",
        "kernel_size: [2, 1, 3] stride: [1, 2, 1] pad: [0, 0, 1]",
    ],
)
def test_the_forks_words_for_a_window_mean_the_same(text):
    shape = (2, 3, 5, 7, 6)
    layer = build("NdConvolution", f"convolution_param {{ num_output: 4 {text} }}", shape)
    assert (layer.kernel_size, layer.stride, layer.padding) == ((2, 1, 3), (1, 2, 1), (0, 0, 1))
    pool = build("NdPooling", f"pooling_param {{ {text} }}", shape)
    assert (pool.kernel_size, pool.stride, pool.padding) == ((2, 1, 3), (1, 2, 1), (0, 0, 1))


def test_deconvolution_is_the_gradient_of_the_convolution():
    x = random(2, 3, 4, 3, 5)
    text = "num_output: 4 kernel_size: 3 kernel_depth: 2 stride: 2 pad: 1"
    layer = filled("Deconvolution3D", f"convolution_param {{ {text} }}", x.shape)
    y = layer(x)
    assert y.shape == (2, 4, 5, 5, 9)  # stride reaches the time with temporal_stride only
    probe = random(*y.shape, seed=1).double()
    weight = layer.weight.detach().double().numpy()
    back = loop_convolution(probe.numpy(), weight, np.zeros(3), (1, 2, 2), (0, 1, 1))
    left = (y.double() - layer.bias.double().reshape(-1, 1, 1, 1)).mul(probe).sum().item()
    assert left == pytest.approx((back * x.double().numpy()).sum(), rel=1e-4)


def loop_pooling(x, pool, kernel, stride, pad, up):
    """Pooling3DLayer::Forward_cpu of superxuang's fork, and of C3D where there is no padding."""
    sizes, counts = x.shape[2:], []
    for n, k, s, p in zip(sizes, kernel, stride, pad, strict=True):
        count = (math.ceil if up else math.floor)((n + 2 * p - k) / s) + 1
        counts.append(count - 1 if any(pad) and (count - 1) * s >= n + p else count)
    y = np.zeros((*x.shape[:2], *counts))
    for at in np.ndindex(*counts):
        first = [a * s - p for a, s, p in zip(at, stride, pad, strict=True)]
        last = [min(f + k, n + p) for f, k, n, p in zip(first, kernel, sizes, pad, strict=True)]
        cells = math.prod(b - a for a, b in zip(first, last, strict=True))
        inside = [range(max(a, 0), min(b, n)) for a, b, n in zip(first, last, sizes, strict=True)]
        values = np.stack([x[(..., *cell)] for cell in itertools.product(*inside)])
        y[(..., *at)] = values.max(0) if pool == "MAX" else values.sum(0) / cells
    return y


@pytest.mark.parametrize("pool", ["MAX", "AVE"])
@pytest.mark.parametrize(
    ("text", "kernel", "stride", "pad", "up"),
    [
        ("kernel_size: 2 kernel_depth: 1 stride: 2 temporal_stride: 1", (1, 2, 2), (1, 2, 2), (0, 0, 0), True),
        ("kernel_size: 3 stride: 2 pad: 1", (3, 3, 3), (2, 2, 2), (1, 1, 1), True),
        ("kernel_size: [2, 3, 2] stride: [3, 2, 3] pad: [1, 2, 0]", (2, 3, 2), (3, 2, 3), (1, 2, 0), True),
        ("kernel_size: 2 stride: 2 round_below: true", (2, 2, 2), (2, 2, 2), (0, 0, 0), False),
    ],
)
def test_pooling_is_the_forks_loop(pool, text, kernel, stride, pad, up):
    x = random(2, 3, 5, 7, 6)
    layer = build("Pooling3D", f"pooling3d_param {{ pool: {pool} {text} }}", x.shape)
    got, want = layer(x), loop_pooling(x.double().numpy(), pool, kernel, stride, pad, up)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-6)
    plain = build("Pooling", f"pooling_param {{ pool: {pool} {text} }}", x.shape)
    assert torch.equal(plain(x), got)
    if layer.torch_source():
        torch.testing.assert_close(eval(layer.torch_source(), {"nn": nn})(x), got)


def test_global_pooling_takes_the_whole_volume():
    x = random(2, 3, 4, 5, 6)
    for pool, want in (("MAX", x.amax((2, 3, 4), keepdim=True)), ("AVE", x.mean((2, 3, 4), keepdim=True))):
        layer = build("Pooling3D", f"pooling_param {{ pool: {pool} global_pooling: true }}", x.shape)
        torch.testing.assert_close(layer(x), want)


@pytest.mark.parametrize(
    ("kind", "text", "shape", "says"),
    [
        ("Convolution3D", "convolution_param { num_output: 4 kernel_size: 3 }", (2, 3, 7, 6), "N, C, D, H, W"),
        ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 kernel_d: 2 }", (2, 3, 7, 6), "for three"),
        ("Pooling3D", "pooling_param { pool: STOCHASTIC kernel_size: 2 }", (2, 3, 4, 7, 6), "MAX or AVE"),
        ("Pooling3D", "pooling_param { kernel_depth: 9 kernel_size: 2 }", (2, 3, 4, 7, 6), "no window of 9 x 2 x 2"),
    ],
)
def test_bad_definitions_are_refused(kind, text, shape, says):
    with pytest.raises(SpecError, match=says):
        build(kind, text, shape)
