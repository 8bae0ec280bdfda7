"""Resizing, looking up, pooling regions, finding peaks: against loops written from the forks' sources, and OpenCV."""

import math

import cv2
import numpy as np
import pytest
import torch
from conftest import HERE
from fork_layers import build, layer_text, overlap, random
from opencv_layer import opencv

from caffe_port.api import port
from caffe_port.errors import SpecError
from caffe_port.verification.references.numpy_formulas import compute

X = random(2, 3, 5, 6)


def by_pixel(x, size, value):
    """A top whose every pixel is value(plane, i, j)."""
    return np.array(
        [
            [[[value(plane, i, j) for j in range(size[1])] for i in range(size[0])] for plane in item]
            for item in x.double().numpy()
        ]
    )


def test_resize_without_half_pixels_is_the_forks_loop():
    def value(plane, i, j):
        y, x = i * 5 / 8, j * 6 / 13
        top, left = math.floor(y), math.floor(x)
        total = 0.0
        for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            if row < 5 and column < 6:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * plane[row, column]
        return total

    layer = build("Resize", "resize_param { height: 8 width: 13 }", X.shape)
    np.testing.assert_allclose(layer(X).numpy(), by_pixel(X, (8, 13), value), rtol=1e-5, atol=1e-6)
    pyramid = "resize_param { is_pyramid_test: true out_height_scale: 1.7 out_width_scale: 2.2 }"
    assert build("Resize", pyramid, X.shape).size == (8, 13)


@pytest.mark.parametrize("inter", ["INTER_LINEAR", "INTER_NEAREST", "INTER_CUBIC"])
def test_resize_with_zoom_is_cv_resize(inter):
    layer = build("Resize", f"resize_param {{ zoom: 2 inter: {inter} }}", X.shape)
    want = cv2.resize(X[1].permute(1, 2, 0).numpy(), (12, 10), interpolation=getattr(cv2, inter)).transpose(2, 0, 1)
    np.testing.assert_allclose(layer(X)[1].numpy(), want, rtol=1e-4, atol=1e-5)


def test_imresize_is_openposes_kernel():
    def cubic(v, t):
        return (
            (-0.5 * v[0] + 1.5 * v[1] - 1.5 * v[2] + 0.5 * v[3]) * t**3
            + (v[0] - 2.5 * v[1] + 2 * v[2] - 0.5 * v[3]) * t**2
            + (-0.5 * v[0] + 0.5 * v[2]) * t
            + v[1]
        )

    def near(i, old, new):
        place = (i - (new / old / 2 - 0.5)) * (old / new)
        first = max(int(place + 1e-5), 0)
        second = min(first + 1, old - 1)
        return [max(first - 1, 0), first, second, min(second + 1, old - 1)], place - first

    def value(plane, i, j):
        rows, t = near(i, 5, 9)
        columns, s = near(j, 6, 15)
        return cubic([cubic([plane[row, column] for column in columns], s) for row in rows], t)

    layer = build("ImResize", "imresize_param { target_spatial_height: 9 target_spatial_width: 15 }", X.shape)
    np.testing.assert_allclose(layer(X).numpy(), by_pixel(X, (9, 15), value), rtol=1e-4, atol=1e-5)
    assert build("ImResize", "imresize_param { factor: 2 }", X.shape).size == (10, 12)


def test_upsampling_surrounds_with_zeros():
    y = build("Upsampling", "upsampling_param { kernel_h: 2 kernel_w: 3 }", X.shape)(X)
    want = torch.zeros(2, 3, 10, 18)
    want[:, :, ::2, ::3] = X
    assert torch.equal(y, want)


def test_mask_resize_is_mncs_kernel():
    def value(plane, i, j):
        y, x = i * 5 / 3, j * 6 / 16
        if y > 4.5 or x > 5.5:
            return 0.0
        y, x = min(y, 4.0), min(x, 5.0)
        top, left = min(int(y), 3), min(int(x), 4)
        a, b = y - top, x - left
        return (
            (1 - a) * (1 - b) * plane[top, left]
            + (1 - a) * b * plane[top, left + 1]
            + a * (1 - b) * plane[top + 1, left]
            + a * b * plane[top + 1, left + 1]
        )

    layer = build("MaskResize", "mask_resize_param { output_height: 3 output_width: 16 }", X.shape)
    np.testing.assert_allclose(layer(X).numpy(), by_pixel(X, (3, 16), value), rtol=1e-5, atol=1e-6)


def test_downsample_is_flownets_kernel():
    x = X.clone()
    x[0, 1, :2, :2] = math.nan

    def value(plane, i, j):
        steps = (4 / 2, 5 / 3)
        place = (i * steps[0], j * steps[1])
        total = weights = unknown = 0.0
        for row, column in np.ndindex(plane.shape):
            weight = max(0, 1 - abs(row - place[0]) / steps[0]) * max(0, 1 - abs(column - place[1]) / steps[1])
            if math.isnan(plane[row, column]):
                unknown += weight
            else:
                total, weights = total + weight * plane[row, column], weights + weight
        return math.nan if unknown > 0.5 * weights else total / weights

    layer = build("Downsample", "downsample_param { top_height: 3 top_width: 4 }", x.shape)
    want = by_pixel(x, (3, 4), value)
    assert np.isnan(want).any()
    np.testing.assert_allclose(layer(x).numpy(), want, rtol=1e-5, atol=1e-6)


def test_accum_is_opencvs():
    small = random(2, 4, 3, 2, seed=1)
    for text in ("", "accum_param { top_height: 8 top_width: 8 }"):
        got = build("Accum", text, X.shape, small.shape)(X, small)
        for n in range(2):  # OpenCV fills the first item only
            want = opencv(layer_text("Accum", 2, text), X[n : n + 1], small[n : n + 1])
            np.testing.assert_allclose(got[n : n + 1].numpy(), want, rtol=1e-4, atol=1e-5)
    divisible = build("Accum", "accum_param { size_divisible_by: 4 }", X.shape, small.shape)
    assert torch.equal(divisible(X, small), build("Accum", text, X.shape, small.shape)(X, small))
    like = torch.zeros(1, 1, 4, 7)
    layer = build("Accum", "accum_param { have_reference: true }", X.shape, small.shape, like.shape)
    assert layer(X, small, like).shape == (2, 7, 4, 7)


def test_spatial_transformer_looks_up_row_first():
    theta = random(2, 4, scale=0.4)
    text = "st_param { output_H: 4 output_W: 7 theta_1_1: 0.9 theta_2_3: 0.2 }"
    layer = build("SpatialTransformer", text, X.shape, theta.shape)
    want = np.zeros((2, 3, 4, 7))
    for n, c, i, j in np.ndindex(want.shape):
        t = [0.9, *theta[n].double().tolist(), 0.2]
        g = (2 * i / 4 - 1, 2 * j / 7 - 1, 1)
        y = (sum(a * b for a, b in zip(t[:3], g, strict=True)) + 1) / 2 * 5
        x = (sum(a * b for a, b in zip(t[3:], g, strict=True)) + 1) / 2 * 6
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < 5 and 0 <= column < 6:
                    want[n, c, i, j] += (1 - abs(y - row)) * (1 - abs(x - column)) * X[n, c, row, column].item()
    np.testing.assert_allclose(layer(X, theta).numpy(), want, rtol=1e-4, atol=1e-5)
    wide = [X.double().requires_grad_(), theta.double().requires_grad_()]
    assert torch.autograd.gradcheck(layer, wide)


def test_roi_warping_is_mncs_kernel():
    x = random(2, 3, 9, 11)
    rois = torch.tensor([[0, 3, 5, 60, 70.0], [1, 0, 0, 100, 83], [1, 40, 20, 40, 20], [0, 70, 60, 108, 88]])
    layer = build("ROIWarping", "roi_warping_param { pooled_h: 3 pooled_w: 2 spatial_scale: 0.1 }", x.shape, rois.shape)
    want = np.zeros((4, 3, 3, 2))
    for r, c, ph, pw in np.ndindex(want.shape):
        plane = x[int(rois[r, 0]), c].double().numpy()
        x1, y1, x2, y2 = (math.floor(v * 0.1 + 0.5) for v in rois[r, 1:].tolist())
        y = y1 + ph * max(y2 - y1, 0) / 3
        z = x1 + pw * max(x2 - x1, 0) / 2
        if -0.5 <= y <= 8.5 and -0.5 <= z <= 10.5:
            y, z = min(max(y, 0), 8), min(max(z, 0), 10)
            top, left = min(int(y), 7), min(int(z), 9)
            u, v = y - top, z - left
            want[r, c, ph, pw] = np.array([1 - u, u]) @ plane[top : top + 2, left : left + 2] @ np.array([1 - v, v])
    np.testing.assert_allclose(layer(x, rois).numpy(), want, rtol=1e-4, atol=1e-5)


def test_box_output_is_ms_cnns_loop():
    grids = [random(2, 7, 4, 5), random(2, 7, 2, 3, seed=1)]
    text = (
        "box_output_param { field_h: 30 field_h: 60 field_w: 20 field_w: 40 downsample_rate: 8 downsample_rate: 16"
        " fg_thr: 0.2 iou_thr: 0.4 max_nms_num: 9 max_post_nms_num: 5 min_size: 12 }"
    )
    layer = build("BoxOutput", text, *(g.shape for g in grids), top=2)
    want = []
    for n in range(2):
        found = []
        for grid, height, width, rate in zip(grids, (30, 60), (20, 40), (8, 16), strict=True):
            for i, j in np.ndindex(*grid.shape[2:]):
                v = grid[n, :, i, j].double().tolist()
                score = max(v[1:3]) - v[0]
                half, limit = 0.5, math.log(2)
                cx = min(max(v[3], -half), half) * width + (j + 0.5) * rate
                cy = min(max(v[4], -half), half) * height + (i + 0.5) * rate
                w = width * math.exp(min(max(v[5], -limit), limit))
                h = height * math.exp(min(max(v[6], -limit), limit))
                x, y = max(cx - w / 2, 0), max(cy - h / 2, 0)
                w, h = min(w, grid.shape[3] * rate - x), min(h, grid.shape[2] * rate - y)
                if score >= 0.2 and w >= 12 and h >= 12:
                    found.append([score, x, y, x + w, y + h])
        found.sort(key=lambda row: -row[0])
        kept = []
        for row in found[:9]:
            if all(overlap(row[1:], other[1:]) <= 0.4 for other in kept):
                kept.append(row)
        want += [[n, *row[1:], row[0]] for row in kept[:5]]
    rois, scored = layer(*grids)
    np.testing.assert_allclose(scored.numpy(), want, rtol=1e-4, atol=1e-4)
    assert torch.equal(rois, scored[:, :5])
    nothing = layer(*(g * 0 for g in grids))
    assert nothing[0].tolist() == [[0, 1, 1, 10, 10]]


def test_peaks_are_greater_than_their_eight_neighbors():
    maps = torch.zeros(1, 3, 6, 7)
    maps[0, 0, 2, 3], maps[0, 0, 2, 5], maps[0, 0, 0, 1] = 2.0, 0.5, 9.0  # the last one is on the border
    maps[0, 1, 3, 3], maps[0, 1, 4, 4] = 1.0, 1.5  # a diagonal neighbor
    layer = build("Nms", "nms_param { num_parts: 2 max_peaks: 2 threshold: 0.3 }", maps.shape)
    first, second = layer(maps)[0]
    # Two peaks, each drawn to the other; row 0 does not count.
    between = (2 * 3 + 0.5 * 5) / 2.5
    np.testing.assert_allclose(first, [[2, 0, 0], [between, 2, 2], [between, 2, 0.5]], rtol=1e-6)
    center = (3 + 1.5 * 4) / 2.5
    np.testing.assert_allclose(second, [[1, 0, 0], [center, center, 1.5], [0, 0, 0]], rtol=1e-6)


def test_the_center_of_a_peak_reads_the_rows_that_follow_the_map():
    maps = torch.zeros(1, 3, 5, 9)
    maps[0, 0, 3, 4], maps[0, 1, 1, 4] = 1.0, 3.0
    layer = build("Nms", "nms_param { num_parts: 2 max_peaks: 1 threshold: 0.3 }", maps.shape)
    assert layer(maps)[0, 0, 1].tolist() == [4, (3 + 3 * 6) / 4, 1]  # row 1 of the next map is row 6 of this one


@pytest.mark.parametrize(
    ("kind", "text", "shapes", "says"),
    [
        ("Resize", "", [(2, 3, 5, 6)], "size is missing"),
        ("Resize", "resize_param { zoom: 2 inter: INTER_LANCZOS4 }", [(2, 3, 5, 6)], "not supported"),
        ("Upsampling", "", [(2, 3, 5, 6)], "kernel_size is missing"),
        ("MaskResize", "", [(2, 3, 5, 6)], "are needed"),
        ("Downsample", "downsample_param { top_height: 9 top_width: 9 }", [(2, 3, 5, 6)], "from 2 to"),
        ("SpatialTransformer", "st_param { theta_1_1: 1 }", [(2, 3, 5, 6), (2, 6)], "a map \\(N, 5\\)"),
        ("BoxOutput", "", [(2, 7, 4, 5)], "once for each of 1 bottoms"),
        ("Nms", "", [(2, 3, 5, 6)], "15 or more channels"),
    ],
)
def test_bad_definitions_are_refused(kind, text, shapes, says):
    with pytest.raises(SpecError, match=says):
        build(kind, text, *shapes)


# -- PixelShuffle -------------------------------------------------------------------------------------------------


def test_channels_become_pixels_as_the_fork_computed():
    """From text, from the fork's own binary, and by the formula: figures of brocolli-caffe 9.0.2."""
    folder = HERE / "cases" / "pixelshuffle"
    figures = np.load(folder / "pixelshuffle_3.npz")
    x, y = torch.from_numpy(figures["in:x"]), figures["out:1:pixelshuffle:0"]
    for files in ((folder / "pixelshuffle_3.prototxt", None), (None, folder / "alone.caffemodel")):
        net = port(*files).net
        inputs = {name: x if name == "x" else torch.zeros(net.plan.shapes[made]) for name, made in net.plan.spec.inputs}
        (run,) = (run for run in net.steps(**inputs) if run.layer.type == "PixelShuffle")
        np.testing.assert_array_equal(run.tops[0].numpy(), y)
        formula, _ = compute(run.layer, [figures["in:x"]], (), False)
        np.testing.assert_array_equal(formula[0], y)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pixelshuffle_param { upscale_factor: 3 }", "upscale_factor 3 squared does not divide the 12 channels"),
        ("", "upscale_factor is missing or 0"),  # required in the fork's schema
    ],
)
def test_a_factor_that_does_not_divide_or_is_missing_is_refused(text, says):
    with pytest.raises(SpecError, match=says):
        build("PixelShuffle", text, (2, 12, 3, 5))
