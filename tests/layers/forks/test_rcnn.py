"""ROIPooling, ROIAlign, PSROIPooling, Proposal, DeformableConvolution: against OpenCV and loops after the forks."""

import math

import numpy as np
import pytest
import torch
import torchvision
from fork_layers import build, layer_text, random
from opencv_layer import opencv
from signature_cases import Case, spec_of

import caffe_port.layers.forks.rcnn  # noqa: F401
from caffe_port.errors import SpecError
from caffe_port.verification.references.numpy_formulas import compute


def c_round(x):
    """C's round, in float32 as the original computes."""
    return math.floor(abs(float(x)) + 0.5) * (1 if x > 0 else -1)


def regions(count, images, seed=1, size=160, halves=True):
    """Rows of image, x1, y1, x2, y2: inside, across the border, outside, empty, at halves of a pixel."""
    random = np.random.default_rng(seed)
    start = random.uniform(-20, size, (count, 2))
    boxes = np.concatenate((start, start + random.uniform(-5, 90, (count, 2))), 1)
    if halves:
        boxes[::3] = np.round(boxes[::3] / 8) * 8  # halves of 1/16
    index = random.integers(0, images, (count, 1))
    return torch.from_numpy(np.concatenate((index, boxes), 1).astype(np.float32))


# -- ROIPooling ---------------------------------------------------------------------------------------------------


def loop_roi_pool(x, rois, size, scale):
    """ROIPoolingLayer::Forward_cpu of Fast R-CNN, in float32."""
    y = np.zeros((len(rois), x.shape[1], *size), np.float32)
    f, scale = np.float32, np.float32(scale)
    for n, (image, *box) in enumerate(rois):
        x1, y1, x2, y2 = (c_round(f(v) * scale) for v in box)
        height, width = f(max(y2 - y1 + 1, 1)) / f(size[0]), f(max(x2 - x1 + 1, 1)) / f(size[1])
        for ph, pw in np.ndindex(*size):
            top, left = math.floor(f(ph) * height) + y1, math.floor(f(pw) * width) + x1
            bottom, right = math.ceil(f(ph + 1) * height) + y1, math.ceil(f(pw + 1) * width) + x1
            top, bottom = (min(max(v, 0), x.shape[2]) for v in (top, bottom))
            left, right = (min(max(v, 0), x.shape[3]) for v in (left, right))
            if bottom > top and right > left:
                y[n, :, ph, pw] = x[int(image), :, top:bottom, left:right].max((1, 2))
    return y


@pytest.mark.parametrize(("size", "scale"), [((7, 7), 0.0625), ((3, 5), 0.125), ((6, 6), 1 / 3)])
def test_roi_pooling_is_caffes_rounding_bit_by_bit(size, scale):
    x, rois = random(3, 4, 11, 13), regions(400, 3, seed=size[0])
    param = f"roi_pooling_param {{ pooled_h: {size[0]} pooled_w: {size[1]} spatial_scale: {scale} }}"
    layer = build("ROIPooling", param, x.shape, rois.shape)
    want = loop_roi_pool(x.numpy(), rois.numpy(), size, layer.spatial_scale)
    np.testing.assert_array_equal(layer(x, rois).numpy(), want)
    np.testing.assert_array_equal(layer(x, rois[..., None, None]).numpy(), want)
    assert layer(x.double(), rois.double()).dtype == torch.float64


def test_roi_pooling_is_opencvs():
    x, rois = random(1, 4, 11, 13), regions(40, 1, halves=False)
    rois[:, 1:] = rois[:, 1:].clamp(0, 150)
    rois[:, 3:] = torch.maximum(rois[:, 3:], rois[:, 1:3] + 4)
    param = "roi_pooling_param { pooled_h: 3 pooled_w: 5 spatial_scale: 0.0625 }"
    want = opencv(layer_text("ROIPooling", 2, param), x.numpy(), rois.numpy())
    np.testing.assert_allclose(build("ROIPooling", param, x.shape, rois.shape)(x, rois).numpy(), want, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "shapes", "says"),
    [
        ("pooled_h: 3", [(1, 4, 5, 6), (7, 5)], "pooled_h and pooled_w"),
        ("pooled_h: 3 pooled_w: 3", [(1, 4, 5, 6), (7, 4)], "regions"),
        ("pooled_h: 3 pooled_w: 3 spatial_scale_h: 0.5", [(1, 4, 5, 6), (7, 5)], "spatial_scale_h"),
        ("pooled_h: 3 pooled_w: 3 spatial_scale: 0", [(1, 4, 5, 6), (7, 5)], "must be positive"),
    ],
)
def test_bad_pooling_is_refused(text, shapes, says):
    with pytest.raises(SpecError, match=says):
        build("ROIPooling", f"roi_pooling_param {{ {text} }}", *shapes)


def test_a_region_is_enlarged_first():
    """MS-CNN: x 4..7 becomes 2..9 with pad_ratio 0.5, y 2..3 becomes 1..4, and the bins are 4 by 2 pixels."""
    x = torch.arange(2 * 8 * 12.0).reshape(1, 2, 8, 12)
    param = "roi_pooling_param { pooled_h: 2 pooled_w: 2 pad_ratio: 0.5 }"
    top = build("ROIPooling", param, x.shape, (1, 5))(x, torch.tensor([[0.0, 4, 2, 7, 3]]))
    assert top[0, 0].tolist() == [[2 * 12 + 5, 2 * 12 + 9], [4 * 12 + 5, 4 * 12 + 9]]


def test_roi_align_at_the_corners_of_the_bins():
    """MS-CNN and Cascade R-CNN: pixel 0's center is at 0.5; a corner off the image is 0."""
    x = torch.arange(6 * 8.0).reshape(1, 1, 6, 8)
    param = "roi_pooling_param { pooled_h: 1 pooled_w: 2 spatial_scale: 0.5 corners: true }"
    align = build("ROIAlign", param, x.shape, (1, 5))
    top = align(x, torch.tensor([[0.0, 2, 4, 8, 8]]))  # corners 0.5, 2, 3.5 and 1.5, 3.5
    assert top[0, 0].tolist() == [[12.5, 14.0, 15.5], [28.5, 30.0, 31.5]]
    assert align(x, torch.tensor([[0.0, 2, -9, 40, 8]]))[0, 0].tolist() == [[0, 0, 0], [28.5, 0, 0]]
    with pytest.raises(SpecError, match="pad_ratio belongs to MS-CNN"):
        build("ROIAlign", "roi_pooling_param { pooled_h: 1 pooled_w: 2 pad_ratio: 0.1 }", x.shape, (1, 5))


def test_roi_align_is_torchvisions():
    x, rois = random(2, 4, 11, 13), regions(30, 2)
    param = "roi_align_param { pooled_h: 3 pooled_w: 5 spatial_scale: 0.125 sampling_ratio: 2 roi_end_mode: 1 }"
    moved = rois + torch.tensor([0.0, 0, 0, 1, 1])
    want = torchvision.ops.RoIAlign((3, 5), 0.125, 2)(x, moved)
    assert torch.equal(build("ROIAlign", param, x.shape, rois.shape)(x, rois), want)
    other = build("ROIAlign", "roi_pooling_param { pooled_h: 3 pooled_w: 5 spatial_scale: 0.5 }", x.shape, rois.shape)
    assert torch.equal(other(x, rois), torchvision.ops.RoIAlign((3, 5), 0.5, -1)(x, rois))


# -- PSROIPooling -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ROIPooling", "ROIAlign"])
def test_a_region_of_no_image_takes_the_nearest(name):
    x, rois = random(3, 4, 7, 9), torch.tensor([[0.0, 1, 1, 5, 4]] * 4)
    rois[:, 0] = torch.tensor([-7.0, 1e9, 2.0, float("nan")])
    param = "roi_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.5 }"
    y = build(name, param, x.shape, rois.shape)(x, rois)
    right = rois.clone()
    right[:, 0] = torch.tensor([0.0, 2, 2, 0])
    assert torch.equal(y, build(name, param, x.shape, rois.shape)(x, right))
    assert not torch.equal(y[0], y[1])


def loop_psroi_pool(x, rois, dim, bins, scale):
    """PSROIPoolingForward of R-FCN."""
    y = np.zeros((len(rois), dim, bins, bins))
    for n, (image, *box) in enumerate(rois):
        x1, y1, x2, y2 = (c_round(v) for v in box)
        start, end = (x1 * scale, y1 * scale), ((x2 + 1) * scale, (y2 + 1) * scale)
        width, height = (max(e - s, 0.1) / bins for s, e in zip(start, end, strict=True))
        for c, ph, pw in np.ndindex(dim, bins, bins):
            top, bottom = math.floor(ph * height + start[1]), math.ceil((ph + 1) * height + start[1])
            left, right = math.floor(pw * width + start[0]), math.ceil((pw + 1) * width + start[0])
            top, bottom = (min(max(v, 0), x.shape[2]) for v in (top, bottom))
            left, right = (min(max(v, 0), x.shape[3]) for v in (left, right))
            if bottom > top and right > left:
                y[n, c, ph, pw] = x[int(image), (c * bins + ph) * bins + pw, top:bottom, left:right].mean()
    return y


def test_position_sensitive_pooling_is_rfcns_loop_and_opencvs():
    x, rois = random(3, 2 * 9, 11, 13).double(), regions(60, 3).double()
    param = "psroi_pooling_param { output_dim: 2 group_size: 3 spatial_scale: 0.0625 }"
    layer = build("PSROIPooling", param, x.shape, rois.shape)
    want = loop_psroi_pool(x.numpy(), rois.numpy(), 2, 3, 0.0625)
    np.testing.assert_allclose(layer(x, rois).numpy(), want, rtol=1e-9, atol=1e-12)
    one, here = x[:1].float(), regions(20, 1).float()
    theirs = opencv(layer_text("PSROIPooling", 2, param), one.numpy(), here.numpy())
    np.testing.assert_allclose(layer(one, here).numpy(), theirs, rtol=1e-5, atol=1e-6)
    torchvisions = torchvision.ops.ps_roi_pool(x, rois, 3, 0.0625)
    assert not torch.allclose(torchvisions, layer(x, rois))


# -- Proposal -----------------------------------------------------------------------------------------------------


def loop_proposals(p, score, delta, info):
    """proposal_layer.py of py-faster-rcnn, with generate_anchors.py, bbox_transform_inv and cpu_nms."""
    anchors = []
    for ratio in p["ratios"]:
        width = round(math.sqrt(p["base"] ** 2 / ratio))
        height = round(width * ratio)
        for scale in p["scales"]:
            w, h, c = width * scale, height * scale, (p["base"] - 1) / 2
            anchors.append([c - (w - 1) / 2, c - (h - 1) / 2, c + (w - 1) / 2, c + (h - 1) / 2])
    found = []
    for y, x, a in np.ndindex(*score.shape[2:], len(anchors)):
        box = [v + s * p["stride"] for v, s in zip(anchors[a], (x, y, x, y), strict=True)]
        w, h = box[2] - box[0] + 1, box[3] - box[1] + 1
        dx, dy, dw, dh = delta[0, 4 * a : 4 * a + 4, y, x]
        cx, cy, w, h = box[0] + w / 2 + dx * w, box[1] + h / 2 + dy * h, math.exp(dw) * w, math.exp(dh) * h
        box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
        box = [max(min(v, limit - 1), 0) for v, limit in zip(box, (info[0, 1], info[0, 0]) * 2, strict=True)]
        if min(box[2] - box[0], box[3] - box[1]) + 1 >= p["min_size"] * info[0, 2]:
            found.append((score[0, len(anchors) + a, y, x], box))
    found.sort(key=lambda f: -f[0])
    kept = []
    for s, box in found[: p["before"]]:
        wide = np.add(box, (0, 0, 1, 1))
        widths = [min(wide[2], k[2] + 1) - max(wide[0], k[0]) for _, k in kept]
        heights = [min(wide[3], k[3] + 1) - max(wide[1], k[1]) for _, k in kept]
        inter = np.maximum(widths, 0) * np.maximum(heights, 0)
        areas = [(k[2] - k[0] + 1) * (k[3] - k[1] + 1) for _, k in kept]
        mine = (wide[2] - wide[0]) * (wide[3] - wide[1])
        if not len(kept) or (inter / (mine + np.array(areas) - inter)).max() <= p["nms"]:
            kept.append((s, box))
    kept = kept[: p["after"]]
    return np.array([[0, *box] for _, box in kept]), np.array([[s] for s, _ in kept])


def rpn(images=1, anchors=9, seed=4):
    random = np.random.default_rng(seed)
    score = random.uniform(0, 1, (images, 2 * anchors, 7, 9)).astype(np.float32)
    delta = random.normal(0, 0.4, (images, 4 * anchors, 7, 9)).astype(np.float32)
    return [torch.from_numpy(a) for a in (score, delta, np.float32([[111, 140, 1.3]] * images))]


PYTHON = """python_param { module: 'rpn.proposal_layer' layer: 'ProposalLayer' param_str: "'feat_stride': 16%s" }"""
CPP = (
    "proposal_param { feat_stride: 16 base_size: 16 min_size: 16 ratio: 0.5 ratio: 1 ratio: 2"
    " scale: 8 scale: 16 scale: 32 pre_nms_topn: 200 post_nms_topn: 20 nms_thresh: 0.6 }"
)


def test_the_python_proposal_layer_is_mapped():
    bottoms = rpn()
    layer = build("Python", PYTHON % "", *(b.shape for b in bottoms))
    settings = {"base": 16, "stride": 16, "ratios": [0.5, 1, 2], "scales": [8, 16, 32], "min_size": 16}
    want, _ = loop_proposals(settings | {"before": 6000, "after": 300, "nms": 0.7}, *(b.numpy() for b in bottoms))
    np.testing.assert_allclose(layer(*bottoms).numpy(), want, rtol=1e-5, atol=1e-3)
    assert 5 < len(want) < 300
    assert layer.infer(*bottoms).shape == (300, 5)


def test_the_python_layers_scores_are_a_column():
    bottoms = rpn()
    rois, scores = build("Python", PYTHON % "", *(b.shape for b in bottoms), top=2)(*bottoms)
    assert scores.shape == (len(rois), 1)


def test_regions_that_are_too_small_come_last():
    score, delta, info = rpn()
    text = CPP.replace("min_size: 16", "min_size: 80").replace("nms_thresh: 0.6", "nms_thresh: 1")
    layer = build(
        "Proposal",
        text.replace("topn: 20 ", "topn: 400 ").replace("topn: 200 ", "topn: 400 "),
        *(b.shape for b in (score, delta, info)),
        top=2,
    )
    rois, scores = layer(score, delta, info)
    size = (rois[:, 3:] - rois[:, 1:3] + 1).amin(1)
    large = int((scores > 0).sum())
    assert 0 < large < len(rois) == 400
    assert (size[:large] >= 104).all()  # 80 times the scale of the image
    assert (size[large:] < 104).all()


def test_its_param_str_says_ratios_and_scales():
    bottoms = rpn(anchors=8)
    said = r" \n'scales': !!python/tuple [4, 8, 16, 32]\n'ratios': [0.5, 2]"
    layer = build("Python", PYTHON % said, *(b.shape for b in bottoms))
    assert len(layer.anchors) == 8
    assert layer(*bottoms).shape[1] == 5


def test_proposals_are_the_loop_and_opencvs():
    bottoms = rpn()
    layer = build("Proposal", CPP, *(b.shape for b in bottoms), top=2)
    settings = {"base": 16, "stride": 16, "ratios": [0.5, 1, 2], "scales": [8, 16, 32], "min_size": 16}
    want = loop_proposals(settings | {"before": 200, "after": 20, "nms": 0.6}, *(b.numpy() for b in bottoms))
    rois, scores = layer(*bottoms)
    np.testing.assert_allclose(rois.numpy(), want[0], rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(scores.numpy(), want[1][:, 0], rtol=1e-6)  # PVANet's are (R)
    assert [t.shape for t in layer.infer(*bottoms)] == [(20, 5), (20,)]
    # OpenCV leaves min_size out
    layer = build("Proposal", CPP.replace("min_size: 16", "min_size: 0"), *(b.shape for b in bottoms))
    theirs = opencv(layer_text("Proposal", 3, CPP), *(b.numpy() for b in bottoms))
    np.testing.assert_allclose(layer(*bottoms).numpy(), theirs[: len(layer(*bottoms))], rtol=1e-4, atol=1e-3)


def test_every_image_of_a_batch_gives_its_own_proposals():
    score, delta, info = rpn(images=2)
    layer = build("Proposal", CPP, score.shape, delta.shape, info.shape)
    both = layer(score, delta, info)
    for n in range(2):
        alone = layer(score[n : n + 1], delta[n : n + 1], info[:1])
        np.testing.assert_array_equal(both[both[:, 0] == n][:, 1:].numpy(), alone[:, 1:].numpy())


@pytest.mark.parametrize(
    ("text", "shapes", "says"),
    [
        (CPP, [(1, 16, 7, 9), (1, 36, 7, 9), (1, 3)], "need scores"),
        (CPP, [(1, 18, 7, 9), (1, 36, 7, 9), (1, 2)], "height, width, scale"),
        ("proposal_param { feat_stride: 16 }", [(1, 18, 7, 9), (1, 36, 7, 9), (1, 3)], "ratio and scale"),
        (CPP.replace("ratio: 1", "ratio: 0"), [(1, 18, 7, 9), (1, 36, 7, 9), (1, 3)], "must be positive"),
        (CPP.replace("topn: 20 ", "topn: 0 "), [(1, 18, 7, 9), (1, 36, 7, 9), (1, 3)], "post_nms_topn must be"),
    ],
)
def test_bad_proposals_are_refused(text, shapes, says):
    with pytest.raises(SpecError, match=says):
        build("Proposal", text, *shapes)


# -- DeformableConvolution ----------------------------------------------------------------------------------------


def test_deformable_convolution_without_offsets_is_a_convolution():
    x = random(2, 6, 9, 8)
    param = (
        "deformable_convolution_param { num_output: 4 kernel_size: 3 pad: 2 dilation: 2 stride: 1 group: 2"
        " deformable_group: 3 }"
    )
    offset = torch.zeros(2, 3 * 18, 9, 8)
    layer = build("DeformableConvolution", param, x.shape, offset.shape)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    want = torch.nn.functional.conv2d(x, layer.weight, layer.bias, 1, 2, 2, 2)
    np.testing.assert_allclose(layer(x, offset).detach().numpy(), want.detach().numpy(), rtol=1e-4, atol=1e-5)
    inner = random(2, 3 * 18, 9, 8, scale=0.1)  # torchvision agrees where no tap comes near the border
    theirs = torchvision.ops.deform_conv2d(x, inner, layer.weight, layer.bias, 1, 2, 2)
    torch.testing.assert_close(layer(x, inner)[:, :, 3:-3, 3:-3], theirs[:, :, 3:-3, 3:-3])


def test_a_tap_of_a_deformable_convolution_beyond_the_border():
    """The last pixel as long as the tap is less than a pixel beyond it, nothing before the first."""
    x = torch.arange(1, 31.0).reshape(1, 1, 5, 6)
    text = "deformable_convolution_param { num_output: 1 kernel_size: 1 bias_term: false }"
    layer = build("DeformableConvolution", text, x.shape, (1, 2, 5, 6))
    torch.nn.init.ones_(layer.weight)
    for down, want in ((0.4, x[0, 0, 4]), (0.99, x[0, 0, 4]), (1.0, 0 * x[0, 0, 4])):
        offset = torch.zeros(1, 2, 5, 6)
        offset[:, 0] = down
        torch.testing.assert_close(layer(x, offset)[0, 0, 4], want)
    offset[:, 0] = -0.01
    torch.testing.assert_close(layer(x, offset)[0, 0, 0], 0 * x[0, 0, 0])


def test_deformable_convolution_moves_its_taps_vertically_first():
    x = torch.arange(30.0).reshape(1, 1, 5, 6)
    layer = build(
        "DeformableConvolution",
        "deformable_convolution_param { num_output: 1 kernel_size: 1 bias_term: false }",
        x.shape,
        (1, 2, 5, 6),
    )
    torch.nn.init.ones_(layer.weight)
    offset = torch.zeros(1, 2, 5, 6)
    offset[:, 0] = 1
    assert layer(x, offset)[0, 0, 1, 2] == x[0, 0, 2, 2]


def test_the_best_region_of_every_class():
    """caffe-face-attributes: 1 is the best class of rows 0 and 3; 2 of none; 3 of row 2."""
    scores = torch.tensor([[0.1, 0.6, 0.2, 0.1], [0.7, 0.1, 0.2, 0.0], [0, 0.3, 0.3, 0.4], [0.0, 0.9, 0.05, 0.05]])
    scores = torch.cat((scores, torch.tensor([[0.8, 0.0, 0.2, 0.95]])))
    scores[4, 3] = 0.5  # more than that of row 2, whose best class it is
    rois = torch.arange(25.0).reshape(5, 5)
    own = """module: "rpn.roi_select_layer" layer: "RoISelectLayer" param_str: "'num_class': 4\""""
    layer = build("Python", f"python_param {{ {own} }}", (5, 5), (5, 4))
    assert torch.equal(layer(rois, scores), rois[[3, 2, 2]])
    case = Case("Python", f"python_param {{ {own} }}", ((5, 5), (5, 4)))
    tops, _ = compute(spec_of(case), [rois.numpy(), scores.numpy()], ())
    assert np.array_equal(tops[0], rois[[3, 2, 2]].numpy())
    with pytest.raises(SpecError, match="num_class must be at least 2"):
        build("Python", f"python_param {{ {own.replace('4', '1')} }}", (5, 5), (5, 4))
