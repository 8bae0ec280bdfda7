"""Convolution, Deconvolution, Im2col, Pooling, SPP: by hand, against loops written from Caffe's, against torch.nn."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from caffe_port.errors import SpecError
from caffe_port.formats import prototxt
from caffe_port.layers import REGISTRY


def build(text, *bottoms, top=1, kind=None):
    kind = kind or text.split("_param")[0].capitalize()
    tops = " ".join(f'top: "t{i}"' for i in range(top))
    message = prototxt.parse(f'name: "l" type: "{kind}" {tops} {text}', "LayerParameter")
    layer = REGISTRY[kind].build(message, list(bottoms))
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer.eval()


def built_from_source(layer):
    module = eval(layer.torch_source(), {"nn": nn})
    module.load_state_dict(layer.torch_state())
    return module.eval()


def loop_pooling(x, pool, kernel, stride, pad, ceil_mode):
    """PoolingLayer::Forward_cpu, line by line."""
    rounded = math.ceil if ceil_mode else math.floor
    (height, width), counts = x.shape[2:], []
    for i in range(2):
        counts.append(rounded((x.shape[2 + i] + 2 * pad[i] - kernel[i]) / stride[i]) + 1)
    if any(pad):
        for i in range(2):
            if (counts[i] - 1) * stride[i] >= x.shape[2 + i] + pad[i]:
                counts[i] -= 1
    y, mask = np.zeros((*x.shape[:2], *counts)), -np.ones((*x.shape[:2], *counts))
    for n, c, ph, pw in np.ndindex(y.shape):
        h0, w0 = ph * stride[0] - pad[0], pw * stride[1] - pad[1]
        h1, w1 = min(h0 + kernel[0], height + pad[0]), min(w0 + kernel[1], width + pad[1])
        size = (h1 - h0) * (w1 - w0)
        h0, w0, h1, w1 = max(h0, 0), max(w0, 0), min(h1, height), min(w1, width)
        best, total = float(np.finfo(x.dtype).min), 0.0
        for h, w in itertools.product(range(h0, h1), range(w0, w1)):
            total += x[n, c, h, w]
            if x[n, c, h, w] > best:
                best, mask[n, c, ph, pw] = x[n, c, h, w], h * width + w
        with np.errstate(all="ignore"):
            y[n, c, ph, pw] = best if pool == "MAX" else np.float64(total) / size
    return y, mask


def geometries(count, seed):
    """Random kernels, strides, pads and sizes that Caffe accepts, in both roundings."""
    random = np.random.default_rng(seed)
    while count:
        kernel, stride = random.integers(1, 6, 2), random.integers(1, 7, 2)
        pad = [int(random.integers(0, k)) for k in kernel] if random.random() < 0.6 else [0, 0]
        size, ceil_mode = random.integers(1, 13, 2), bool(random.random() < 0.7)
        rounded = math.ceil if ceil_mode else math.floor
        if all(rounded((size[i] + 2 * pad[i] - kernel[i]) / stride[i]) >= 0 for i in range(2)):
            count -= 1
            yield tuple(map(int, size)), tuple(map(int, kernel)), tuple(map(int, stride)), tuple(pad), ceil_mode


def pooling_text(pool, kernel, stride, pad, ceil_mode):
    h_w = " ".join(
        f"{name}_h: {v[0]} {name}_w: {v[1]}" for name, v in (("kernel", kernel), ("stride", stride), ("pad", pad))
    )
    return f"pooling_param {{ pool: {pool} {h_w} round_mode: {'CEIL' if ceil_mode else 'FLOOR'} }}"


# -- pooling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["MAX", "AVE"])
def test_pooling_is_caffes_loop_for_any_geometry(pool):
    for size, *geometry in geometries(250, seed=3):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        layer = build(pooling_text(pool, *geometry), x.shape)
        want, mask = loop_pooling(x.numpy(), pool, *geometry)
        np.testing.assert_allclose(layer(x).numpy(), want, rtol=1e-12, atol=1e-12, err_msg=f"{size} {geometry}")
        if pool == "MAX":
            got = build(pooling_text(pool, *geometry), x.shape, top=2)(x)
            np.testing.assert_array_equal(got[0].numpy(), want)
            np.testing.assert_array_equal(got[1].numpy(), mask, err_msg=f"{size} {geometry}")


@pytest.mark.parametrize("pool", ["MAX", "AVE"])
def test_pooling_torch_source_is_bit_equal_for_images_of_any_size(pool):
    emitted = 0
    for size, *geometry in geometries(120, seed=4):
        layer = build(pooling_text(pool, *geometry), (2, 3, *size))
        if layer.torch_source() is None:
            continue
        emitted += 1
        module = built_from_source(layer)
        for height, width in [size, (13, 7), (6, 11), (9, 14), (10, 5)]:
            x = torch.randn(2, 3, height, width)
            try:
                want = layer(x)
            except RuntimeError:  # no window fits an image that small
                continue
            assert torch.equal(module(x), want), (layer.torch_source(), height, width)
    assert emitted > 30


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("kernel_size: 3 stride: 2", "nn.MaxPool2d(3, 2, ceil_mode=True)"),
        ("kernel_size: 3", "nn.MaxPool2d(3, 1)"),
        ("kernel_size: 3 stride: 2 round_mode: FLOOR", "nn.MaxPool2d(3, 2)"),
        ("kernel_size: 3 stride: 2 ceil_mode: false", "nn.MaxPool2d(3, 2)"),
        ("pool: AVE kernel_size: 3 stride: 2 pad: 1", "nn.AvgPool2d(3, 2, padding=1, ceil_mode=True)"),
        ("pool: AVE global_pooling: true", "nn.AdaptiveAvgPool2d(1)"),
        ("global_pooling: true", "nn.AdaptiveMaxPool2d(1)"),
        ("kernel_size: 2 stride: 3", None),
        ("kernel_size: 3 pad: 2", None),
        ("pool: STOCHASTIC kernel_size: 3", None),
    ],
)
def test_pooling_torch_source(text, source):
    layer = build(f"pooling_param {{ {text} }}", (2, 3, 8, 7))
    assert layer.torch_source() == source
    if source:
        x = torch.randn(2, 3, 8, 7)
        assert torch.equal(built_from_source(layer)(x), layer(x))


def test_global_pooling_mask_and_gradient_to_the_first_of_equal_maxima():
    layer = build("pooling_param { global_pooling: true }", (1, 2, 2, 3), top=2)
    x = torch.tensor([[[[1.0, 5, 5], [0, 2, 5]], [[-3, -2, -9], [-4, -2, -7]]]], requires_grad=True)
    y, mask = layer(x)
    assert y.flatten().tolist() == [5, -2]
    assert mask.flatten().tolist() == [1, 1]
    y.sum().backward()
    assert x.grad.flatten().nonzero().flatten().tolist() == [1, 7]


def test_windows_beyond_the_image():
    x = torch.arange(12.0).reshape(1, 1, 2, 6) + 1
    assert build("pooling_param { pool: AVE kernel_h: 2 kernel_w: 2 stride_h: 1 stride_w: 3 }", x.shape)(x).flatten()[
        :2
    ].tolist() == [4.5, 7.5]
    lowest = torch.finfo(torch.float32).min
    y = build("pooling_param { kernel_h: 2 kernel_w: 2 stride_h: 1 stride_w: 3 }", x.shape)(x)
    assert y.flatten().tolist() == [8, 11, lowest]


def test_stochastic_pooling():
    layer = build("pooling_param { pool: STOCHASTIC kernel_size: 2 stride: 2 }", (1, 2, 3, 5))
    x = torch.rand(4, 2, 3, 5)
    x[0, 0, :2, :2] = 0
    x[1, 0, :2, :2] = torch.tensor([[1.0, 2], [3, 4]])
    y = layer(x)
    assert y.shape == (4, 2, 2, 3)
    assert y[0, 0, 0, 0] == 0
    assert y[1, 0, 0, 0] == 3  # (1 + 4 + 9 + 16) / (1 + 2 + 3 + 4)
    x, layer = x[1:2, :1, :2, :2].expand(20000, 3, 2, 2), layer.train()
    drawn, counts = layer(x).unique(return_counts=True)
    assert drawn.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(counts / counts.sum(), [0.1, 0.2, 0.3, 0.4], atol=0.01)


def test_stochastic_pooling_passes_the_gradient_to_what_it_drew():
    layer = build("pooling_param { pool: STOCHASTIC kernel_size: 3 stride: 2 }", (2, 3, 8, 7)).train()
    x = torch.rand(2, 3, 8, 7, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert x.grad.sum() == y.numel()
    assert torch.isin(y, x).all()


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("", (2, 3, 8, 7), "kernel_size is missing"),
        ("kernel_size: 0", (2, 3, 8, 7), "kernel_size must be at least 1, got 0"),
        ("kernel_h: 2", (2, 3, 8, 7), "at least 1, got 2, 0"),
        ("kernel_size: 2 kernel_h: 2 kernel_w: 3", (2, 3, 8, 7), "exclude each other"),
        ("kernel_size: 3 stride: 0", (2, 3, 8, 7), "stride must be at least 1"),
        ("kernel_size: 3 pad: 3", (2, 3, 8, 7), "pad 3 must be less than the kernel, 3"),
        ("kernel_size: 3 pad: 1 pool: STOCHASTIC", (2, 3, 8, 7), "does not support padding"),
        ("kernel_size: 30", (2, 3, 8, 7), "no window of 30 x 30 fits a bottom"),
        ("kernel_size: 2", (2, 3, 8), "needs a bottom with 4 to 5 axes"),
        ("kernel_size: 2 global_pooling: true", (2, 3, 8, 7), "remove the kernel size"),
        ("global_pooling: true stride: 2", (2, 3, 8, 7), "requires stride 1 and pad 0"),
    ],
)
def test_pooling_errors(text, shape, message):
    with pytest.raises(SpecError, match=message):
        build(f"pooling_param {{ {text} }}", shape)


def test_a_mask_needs_max():
    with pytest.raises(SpecError, match="needs pool: MAX"):
        build("pooling_param { pool: AVE kernel_size: 2 }", (2, 3, 8, 7), top=2)


# -- SPP ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["MAX", "AVE"])
def test_spp_is_the_concatenation_of_its_poolings(pool):
    x = torch.randn(2, 3, 9, 11)
    y = build(f"spp_param {{ pyramid_height: 3 pool: {pool} }}", x.shape, kind="SPP")(x)
    levels = []
    for bins in (1, 2, 4):
        kernel = [math.ceil(n / bins) for n in (9, 11)]
        pad = [(k * bins - n + 1) // 2 for k, n in zip(kernel, (9, 11), strict=True)]
        levels.append(loop_pooling(x.numpy(), pool, kernel, kernel, pad, True)[0].reshape(2, -1))
    assert y.shape == (2, 3 * 21)
    np.testing.assert_allclose(y.numpy(), np.concatenate(levels, 1), rtol=1e-5, atol=1e-6)


def test_spp_of_one_level_is_not_flattened():
    x = torch.randn(2, 3, 9, 11)
    assert torch.equal(build("spp_param { pyramid_height: 1 }", x.shape, kind="SPP")(x), x.amax((2, 3), keepdim=True))


@pytest.mark.parametrize(("height", "shape"), [(0, (2, 3, 9, 11)), (9, (2, 3, 9, 11)), (3, (2, 3, 5, 11)), (2, (2, 3))])
def test_spp_errors(height, shape):
    with pytest.raises(SpecError):
        build(f"spp_param {{ pyramid_height: {height} }}", shape, kind="SPP")


# -- convolution --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("kernel_size: 3 num_output: 5", (2, 4, 9, 8)),
        ("kernel_size: 3 num_output: 6 group: 2 stride: 2 pad: 1 dilation: 2", (2, 4, 9, 8)),
        ("kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 1 pad_h: 1 num_output: 5 bias_term: false", (2, 4, 9, 8)),
        ("kernel_size: 3 kernel_size: 2 stride: 3 pad: 1 pad: 0 num_output: 5", (2, 4, 9, 8)),
        ("kernel_size: 4 num_output: 5 stride: 2", (2, 4, 9)),
        ("kernel_size: 2 kernel_size: 3 kernel_size: 1 num_output: 5 pad: 1", (2, 4, 5, 7, 6)),
    ],
)
def test_convolution_torch_source_is_bit_equal(kind, text, shape):
    layer = build(f"convolution_param {{ {text} }}", shape, kind=kind)
    module = built_from_source(layer)
    for batch in (1, 3):
        x = torch.randn(batch, *shape[1:])
        assert torch.equal(module(x), layer(x))


def test_convolution_by_hand():
    layer = build("convolution_param { num_output: 1 kernel_h: 1 kernel_w: 2 }", (1, 2, 1, 3), kind="Convolution")
    layer.load_blobs([np.array([[[[1, 2]], [[10, 20]]]]), np.array([100])])
    x = torch.tensor([[[[1.0, 2, 3]], [[4, 5, 6]]]])
    assert layer(x).flatten().tolist() == [100 + 1 + 4 + 40 + 100, 100 + 2 + 6 + 50 + 120]


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
@pytest.mark.parametrize("axis", [0, 2, -3])
def test_axes_before_the_channels_are_batch_axes(kind, axis):
    x = torch.randn(2, 3, 4, 6, 5) if axis else torch.randn(4, 6, 5)
    text = f"convolution_param {{ num_output: 7 kernel_size: 3 stride: 2 axis: {axis} }}"
    layer = build(text, tuple(x.shape), kind=kind)
    assert layer.torch_source() is None
    y, flat = layer(x), x.reshape(-1, 4, 6, 5)
    assert y.shape[: x.dim() - 3] == x.shape[: x.dim() - 3]
    layer.axis = 1
    assert torch.equal(y.reshape(len(flat), *y.shape[-3:]), layer(flat))


@pytest.mark.parametrize("kind", ["ConvolutionDepthwise", "DepthwiseConvolution"])
@pytest.mark.parametrize("given", ["", "num_output: 6", "num_output: 6 group: 6"])
def test_depthwise_convolution(kind, given):
    layer = build(f"convolution_param {{ kernel_size: 3 {given} }}", (2, 6, 9, 8), kind=kind)
    assert layer.torch_source() == "nn.Conv2d(6, 6, 3, groups=6)"


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("kernel_size: 3", (2, 4, 9, 8), "is missing or 0"),
        ("num_output: 4", (2, 4, 9, 8), "kernel_size is missing"),
        ("num_output: 4 kernel_size: 3 group: 3", (2, 4, 9, 8), "group 3 does not divide the 4 channels"),
        ("num_output: 4 kernel_size: 3 group: 0", (2, 4, 9, 8), "group 0 does not divide"),
        ("num_output: 5 kernel_size: 3 group: 2", (2, 4, 9, 8), "num_output 5"),
        ("num_output: 4 kernel_size: 3 kernel_h: 3 kernel_w: 3", (2, 4, 9, 8), "exclude each other"),
        ("num_output: 4 kernel_h: 3 kernel_w: 3", (2, 4, 9), "two spatial axes, the bottom has 1"),
        ("num_output: 4 kernel_size: 3 kernel_size: 3 kernel_size: 3", (2, 4, 9, 8), "given 3 times"),
        ("num_output: 4 kernel_size: 3 stride: 0", (2, 4, 9, 8), "stride must be at least 1"),
        ("num_output: 4 kernel_size: 3 dilation: 0", (2, 4, 9, 8), "dilation must be at least 1"),
        ("num_output: 4 kernel_size: 3 axis: 4", (2, 4, 9, 8), "axis 4 does not exist"),
        ("num_output: 4 kernel_size: 3", (2, 4), "there are no spatial axes"),
        ("num_output: 4 kernel_size: 3", (2, 4, 5, 5, 5, 5), "has 4 spatial axes"),
        ("num_output: 4000000000 kernel_size: 3", (2, 4, 9, 8), r"Caffe's limit is 2\^31"),
        ("num_output: 1 kernel_size: 3 pad: 1000000", (2, 4, 1, 9), "(the top would contain|gives an empty output)"),
    ],
)
def test_convolution_errors(kind, text, shape, message):
    with pytest.raises(SpecError, match=message):
        build(f"convolution_param {{ {text} }}", shape, kind=kind)


def test_convolution_leaves_an_output():
    with pytest.raises(SpecError, match=r"gives an empty output \(2, 0\) with kernel_size 3x3, "):
        build("convolution_param { num_output: 4 kernel_size: 3 }", (2, 4, 4, 2), kind="Convolution")


def test_bottoms_of_a_convolution_have_one_shape():
    with pytest.raises(SpecError, match="same shape"):
        build("convolution_param { num_output: 4 kernel_size: 3 }", (2, 4, 9, 8), (2, 4, 9, 7), kind="Convolution")


# -- im2col -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", [((3, 2), (1, 2), (0, 1), (1, 1)), ((2, 3), (2, 1), (1, 0), (2, 1))])
def test_im2col_is_unfold(geometry):
    kernel, stride, pad, dilation = geometry
    text = " ".join(
        f"{name}: {n}"
        for name, values in zip(("kernel_size", "stride", "pad", "dilation"), geometry, strict=True)
        for n in values
    )
    x = torch.randn(2, 3, 7, 8)
    y = build(f"convolution_param {{ {text} }}", tuple(x.shape), kind="Im2col")(x)
    assert torch.equal(y.flatten(2), nn.Unfold(kernel, dilation, pad, stride)(x))
    again = build(f"convolution_param {{ {text} axis: 2 }}", (1, 2, 3, 7, 8), kind="Im2col")(x[None])
    assert torch.equal(again, y[None])


def test_im2col_of_other_dimensions():
    x = torch.arange(6.0).reshape(1, 2, 3)
    y = build("convolution_param { kernel_size: 2 }", (1, 2, 3), kind="Im2col")(x)
    assert y.tolist() == [[[0, 1], [1, 2], [3, 4], [4, 5]]]
    assert build("convolution_param { kernel_size: 2 }", (2, 3, 5, 4, 6), kind="Im2col")(
        torch.randn(2, 3, 5, 4, 6)
    ).shape == (2, 24, 4, 3, 5)


# -- all ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "training"),
    [
        ("Convolution", "convolution_param { num_output: 4 kernel_size: 3 axis: -3 }", False),
        ("Deconvolution", "convolution_param { num_output: 4 kernel_size: 3 stride: 2 }", False),
        ("Im2col", "convolution_param { kernel_size: 3 pad: 1 }", False),
        ("Pooling", "pooling_param { kernel_size: 2 stride: 3 }", False),
        ("Pooling", "pooling_param { pool: AVE kernel_size: 3 pad: 2 stride: 2 }", False),
        ("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 3 stride: 2 }", True),
        ("SPP", "spp_param { pyramid_height: 3 }", False),
    ],
)
def test_layers_export_without_graph_breaks(kind, text, training):
    x = torch.rand(2, 3, 13, 11)
    layer = build(text, tuple(x.shape), kind=kind).train(training)
    exported = torch.export.export(layer, (x,)).module()
    y = layer(x)
    assert exported(x).shape == y.shape
    if not training:
        torch.testing.assert_close(exported(x), y)
