"""Interp, Upsample, Unpooling, Resample, Reorg, CropCenter, Reverse: against OpenCV, by hand, against loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fork_layers import build, layer_text, random
from opencv_layer import opencv
from torch import nn

import caffe_port.layers.forks.resample  # noqa: F401
from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.layers import lookup

# -- Interp -------------------------------------------------------------------------------------------------------


def loop_interp(x, size):
    """caffe_cpu_interp2 of DeepLab."""
    y = np.zeros((*x.shape[:2], *size))
    for h, w in np.ndindex(*size):
        at = [i * (n - 1) / (m - 1) if m > 1 else 0 for i, n, m in zip((h, w), x.shape[2:], size, strict=True)]
        (t, left), (a, b) = (int(v) for v in at), (v % 1 for v in at)
        down, right = min(t + 1, x.shape[2] - 1), min(left + 1, x.shape[3] - 1)
        y[..., h, w] = (1 - a) * ((1 - b) * x[..., t, left] + b * x[..., t, right]) + a * (
            (1 - b) * x[..., down, left] + b * x[..., down, right]
        )
    return y


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("height: 13 width: 17", (13, 17)),
        ("height: 4 width: 1", (4, 1)),
        ("zoom_factor: 3", (19, 25)),
        ("shrink_factor: 2", (4, 5)),
        ("shrink_factor: 3 zoom_factor: 4", (9, 9)),
        ("zoom_factor: 2 pad_beg: -1 pad_end: -2", (7, 11)),
    ],
)
def test_interp_is_deeplabs_loop_and_opencvs(text, size):
    x = random(2, 3, 7, 9)
    layer = build("Interp", f"interp_param {{ {text} }}", x.shape)
    cut = x[:, :, 1:-2, 1:-2] if "pad" in text else x
    np.testing.assert_allclose(layer(x.double()).numpy(), loop_interp(cut.double().numpy(), size), atol=1e-12)
    if "pad" not in text and "shrink" not in text and size[1] > 1:  # OpenCV knows sizes and zoom_factor
        np.testing.assert_allclose(
            layer(x).numpy(), opencv(layer_text("Interp", 1, f"interp_param {{ {text} }}"), x), atol=1e-5
        )
    source = layer.call_source("x")
    if source:
        assert torch.equal(eval(source, {"F": F, "x": x}), layer(x))


def test_interp_takes_the_size_of_a_second_bottom():
    x, like = random(2, 3, 7, 9), torch.zeros(2, 1, 5, 4)
    layer = build("Interp", "", x.shape, like.shape)
    np.testing.assert_allclose(layer(x, like).numpy(), loop_interp(x.numpy(), (5, 4)), atol=1e-6)
    assert torch.equal(eval(layer.call_source("x", "like"), {"F": F, "x": x, "like": like}), layer(x, like))


# -- Upsample, Unpooling ------------------------------------------------------------------------------------------


def test_upsample_with_a_mask_is_max_unpooling():
    image = random(2, 3, 8, 12)
    x, index = F.max_pool2d(image, 2, return_indices=True)
    layer = build("Upsample", "upsample_param { scale: 2 }", x.shape, x.shape)
    assert torch.equal(layer(x, index.float()), nn.MaxUnpool2d(2)(x, index))
    odd = build("Upsample", "upsample_param { scale: 2 pad_out_h: true }", x.shape, x.shape)
    assert odd.infer(x, x).shape == (2, 3, 7, 12)
    sized = build("Upsample", "upsample_param { upsample_h: 9 upsample_w: 13 }", x.shape, x.shape)
    y = sized(x, index.float())
    assert y.shape == (2, 3, 9, 13)
    # caffe-segnet: the mask counts in the larger plane
    assert torch.equal(y.flatten(2).gather(2, index.flatten(2)), x.flatten(2))
    assert torch.equal(y.flatten(2).sort(2).values[..., -1], x.flatten(2).max(2).values)


def test_upsample_without_a_mask_repeats_pixels():
    x = random(2, 3, 4, 5)
    layer = build("Upsample", "upsample_param { scale: 3 }", x.shape)
    want = x.numpy().repeat(3, 2).repeat(3, 3)
    np.testing.assert_array_equal(layer(x).numpy(), want)
    np.testing.assert_array_equal(eval(layer.torch_source(), {"nn": nn})(x).numpy(), want)
    assert build("Upsample", "", x.shape)(x).shape == x.shape


def unpooling(values, *shapes):
    p = Message("UnpoolingParameter", **values)
    message = Message("LayerParameter", name="l", type="Unpooling", top=["t"], unpooling_param=p)
    return lookup("Unpooling").build(message, list(shapes)).eval()


def loop_unpooling(x, size, kernel, stride, share):
    y = np.zeros((*x.shape[:2], *size))
    for h, w in np.ndindex(*x.shape[2:]):
        top, left = h * stride, w * stride
        count = (min(top + kernel, size[0]) - top) * (min(left + kernel, size[1]) - left)
        y[..., top : top + kernel, left : left + kernel] += x[..., h, w, None, None] / (count if share else 1)
    return y


@pytest.mark.parametrize("unpool", ["AVE", "TILE"])
def test_unpooling_spreads_as_deconvnets_loop(unpool):
    x = random(2, 3, 4, 5).double()
    layer = unpooling({"unpool": unpool, "kernel_size": 3, "stride": 2, "unpool_h": 8, "unpool_w": 11}, x.shape)
    np.testing.assert_allclose(layer(x).numpy(), loop_unpooling(x.numpy(), (8, 11), 3, 2, unpool == "AVE"), atol=1e-12)
    assert unpooling({"unpool": unpool, "kernel_size": 3, "stride": 2}, x.shape)(x).shape == (2, 3, 9, 11)


def test_unpooling_with_and_without_a_mask():
    x, index = F.max_pool2d(random(2, 3, 8, 6), 2, return_indices=True)
    layer = unpooling({"unpool": "MAX", "kernel_size": 2, "stride": 2, "unpool_h": 8, "unpool_w": 6}, x.shape, x.shape)
    assert torch.equal(layer(x, index.float()), nn.MaxUnpool2d(2)(x, index))
    y = layer(x)
    assert torch.equal(y[:, :, ::2, ::2], x)
    assert y.abs().sum() == x.abs().sum()


# -- Resample -----------------------------------------------------------------------------------------------------


def loop_resample(x, size, method, antialias):
    """InterpolationKernel and NearestNeighborKernel of flownet2."""

    def weight(d):
        d = abs(d)
        if method == "LINEAR":
            return max(1 - d, 0)
        return d * d * (1.5 * d - 2.5) + 1 if d <= 1 else d * (d * (-0.5 * d + 2.5) - 4) + 2 if d < 2 else 0

    y = np.zeros((*x.shape[:2], *size))
    fy, fx = x.shape[2] / size[0], x.shape[3] / size[1]
    antialias = antialias and max(fx, fy) > 1
    ay, ax = (1 / f if antialias else 1 for f in (fy, fx))
    width = 4 if method == "CUBIC" else 2
    ry, rx = (2 if f < 1 else math.ceil(width / a) for f, a in ((fy, ay), (fx, ax)))
    for h, w in np.ndindex(*size):
        cy, cx = h * fy + fx / 2 - 0.5, w * fx + fy / 2 - 0.5
        iy, ix = math.floor(cy + 0.5), math.floor(cx + 0.5)
        if method == "NEAREST":
            y[..., h, w] = x[..., min(max(iy, 0), x.shape[2] - 1), min(max(ix, 0), x.shape[3] - 1)]
            continue
        total = 0
        for py in range(max(iy - ry, 0), min(iy + ry + 1, x.shape[2])):
            for px in range(max(ix - rx, 0), min(ix + rx + 1, x.shape[3])):
                share = ay * weight(ay * (cy - py)) * ax * weight(ax * (cx - px))
                y[..., h, w] += share * x[..., py, px]
                total += share
        y[..., h, w] = y[..., h, w] / total if total else 0
    return y


@pytest.mark.parametrize("method", ["NEAREST", "LINEAR", "CUBIC"])
@pytest.mark.parametrize("size", [(14, 18), (5, 4), (21, 6), (7, 9)])
@pytest.mark.parametrize("antialias", ["true", "false"])
def test_resample_is_flownets_kernel(method, size, antialias):
    x = random(2, 3, 7, 9).double()
    param = f"resample_param {{ height: {size[0]} width: {size[1]} type: {method} antialias: {antialias} }}"
    want = loop_resample(x.numpy(), size, method, antialias == "true")
    np.testing.assert_allclose(build("Resample", param, x.shape)(x).numpy(), want, atol=1e-9)


def test_resample_enlarges_as_f_interpolate():
    x, like = random(2, 3, 7, 9), torch.zeros(1, 1, 14, 18)
    layer = build("Resample", "resample_param { type: LINEAR }", x.shape, like.shape)
    np.testing.assert_allclose(layer(x, like).numpy(), F.interpolate(x, (14, 18), mode="bilinear").numpy(), atol=1e-5)


# -- Reorg, CropCenter, Reverse -----------------------------------------------------------------------------------


def loop_reorg(x, stride, reverse):
    """reorg_cpu of darknet, called as caffe-yolov2 calls it."""
    n, c, h, w = x.shape
    out, flat = np.zeros(x.size, x.dtype), x.reshape(-1)
    planes = c // stride**2
    for b, k, j, i in np.ndindex(n, c, h, w):
        here = i + w * (j + h * (k + c * b))
        offset = k // planes
        w2, h2 = i * stride + offset % stride, j * stride + offset // stride
        there = w2 + w * stride * (h2 + h * stride * (k % planes + planes * b))
        if reverse:
            out[there] = flat[here]
        else:
            out[here] = flat[there]
    if reverse:
        return out.reshape(n, planes, h * stride, w * stride)
    return out.reshape(n, c * stride**2, h // stride, w // stride)


@pytest.mark.parametrize("stride", [2, 3])
def test_reorg_is_darknets_loop_and_opencvs(stride):
    x = random(2, 4 * stride**2, 6, 12)
    layer = build("Reorg", f"reorg_param {{ stride: {stride} }}", x.shape)
    np.testing.assert_array_equal(layer(x).numpy(), loop_reorg(x.numpy(), stride, False))
    if stride == 2:  # OpenCV's default; its importer does not read reorg_param
        np.testing.assert_array_equal(layer(x).numpy(), opencv(layer_text("Reorg", 1, ""), x.numpy()))
    back = build("Reorg", f"reorg_param {{ stride: {stride} reverse: true }}", x.shape)
    np.testing.assert_array_equal(back(x).numpy(), loop_reorg(x.numpy(), stride, True))
    assert torch.equal(build("ReorgYolo", f"reorg_yolo_param {{ stride: {stride} }}", x.shape)(x), layer(x))


def test_reverse_and_crop_center():
    x = random(2, 3, 7, 9)
    assert torch.equal(build("Reverse", "reverse_param { axis: -1 }", x.shape)(x), x.flip(3))
    crop = "crop_center_param { crop_size: 0 crop_size: 0 crop_size: 2 crop_size: 3 }"
    assert torch.equal(build("CropCenter", crop, x.shape)(x), x[:, :, 2:5, 3:6])


@pytest.mark.parametrize(
    ("kind", "text", "shapes", "says"),
    [
        ("Interp", "", [(1, 2, 3, 4)], "size is missing"),
        ("Interp", "interp_param { pad_beg: 2 height: 3 width: 3 }", [(1, 2, 3, 4)], "must be negative"),
        ("Interp", "interp_param { zoom_factor: 0 }", [(1, 2, 3, 4)], "at least 1"),
        ("Interp", "interp_param { height: 3 width: 3 }", [(1, 2, 3)], "N, C, H, W"),
        ("Upsample", "upsample_param { scale: 2 }", [(1, 2, 3, 4), (1, 2, 3, 5)], "they must be equal"),
        ("Upsample", "upsample_param { scale: 3 pad_out_w: true }", [(1, 2, 3, 4), (1, 2, 3, 4)], "scale of 2"),
        ("Unpooling", "", [(1, 2, 3, 4)], "kernel_size is missing"),
        ("Resample", "resample_param { type: AREA width: 3 height: 3 }", [(1, 2, 3, 4)], "type AREA"),
        ("Resample", "", [(1, 2, 3, 4)], "height and width"),
        ("Reorg", "reorg_param { stride: 2 }", [(1, 6, 4, 4)], "multiples of 4"),
        ("Reorg", "reorg_param { stride: 2 }", [(1, 8, 3, 4)], "does not divide"),
        ("CropCenter", "crop_center_param { crop_size: 1 }", [(1, 8, 3, 4)], "1 crop_size"),
    ],
)
def test_bad_definitions_are_refused(kind, text, shapes, says):
    with pytest.raises(SpecError, match=says):
        build(kind, text, *shapes)
