"""PriorBox, DetectionOutput and MultiBoxLoss: against OpenCV, by hand, against loops written from SSD's sources."""

import math

import numpy as np
import pytest
import torch
from fork_layers import assert_rows_close, build, layer_text, overlap, random
from opencv_layer import opencv

import caffe_port.api
import caffe_port.layers.forks.detection
import caffe_port.layers.forks.detection_loss
from caffe_port.definition.definition import Definition
from caffe_port.emit.convert import convert
from caffe_port.errors import SpecError
from caffe_port.formats import prototxt
from caffe_port.layers import class_of

# -- PriorBox -----------------------------------------------------------------------------------------------------

PRIORS = [
    "min_size: 60 aspect_ratio: 2 flip: true clip: false variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2",
    "min_size: 30 max_size: 61 aspect_ratio: 2 aspect_ratio: 3 clip: true variance: [0.1, 0.1, 0.2, 0.2] step: 8",
    "min_size: 21 aspect_ratio: 0.5 aspect_ratio: 0.25 flip: false variance: 0.3 step_h: 12 step_w: 9",
    "min_size: 10 min_size: 24 max_size: 20 max_size: 47 aspect_ratio: 1.5 offset: 0.25 img_h: 90 img_w: 70",
    "min_size: 33 max_size: 66 aspect_ratio: 1 aspect_ratio: 2 aspect_ratio: 2 flip: true",
]


def loop_priors(p, layer, image):
    """PriorBoxLayer::Forward_cpu of weiliu89/caffe."""
    ratios = [1.0]
    for r in p.aspect_ratio:
        if all(abs(r - k) >= 1e-6 for k in ratios):
            ratios += [r] + ([1 / r] if p.flip else [])
    image_h, image_w = (p.img_h, p.img_w) if p.has("img_h") else image
    step_h, step_w = image_h / layer[0], image_w / layer[1]
    if p.has("step"):
        step_h = step_w = p.step
    if p.has("step_h"):
        step_h, step_w = p.step_h, p.step_w
    boxes = []

    def add(cx, cy, w, h):
        boxes.append([(cx - w / 2) / image_w, (cy - h / 2) / image_h, (cx + w / 2) / image_w, (cy + h / 2) / image_h])

    for y in range(layer[0]):
        for x in range(layer[1]):
            cx, cy = (x + p.offset) * step_w, (y + p.offset) * step_h
            for k, size in enumerate(int(s) for s in p.min_size):
                add(cx, cy, size, size)
                if p.max_size:
                    add(cx, cy, *[math.sqrt(size * int(p.max_size[k]))] * 2)
                for r in ratios:
                    if abs(r - 1) >= 1e-6:
                        add(cx, cy, size * math.sqrt(r), size / math.sqrt(r))
    boxes = np.array(boxes)
    if p.clip:
        boxes = boxes.clip(0, 1)
    variance = list(p.variance) or [0.1]
    return np.stack((boxes, np.broadcast_to(variance * (4 // len(variance)), boxes.shape))).reshape(1, 2, -1)


@pytest.mark.parametrize("text", PRIORS)
def test_priors_are_ssds_loop_and_opencvs(text):
    x, image = random(2, 5, 7, 6), random(2, 3, 95, 83)
    layer = build("PriorBox", f"prior_box_param {{ {text} }}", x.shape, image.shape)
    got = layer(x, image)
    message = prototxt.parse(f"prior_box_param {{ {text} }}", "LayerParameter").prior_box_param
    want = loop_priors(message, (7, 6), (95, 83))
    assert got.shape == want.shape
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=3e-7)
    if "img_h" in text:  # OpenCV takes the size of the second bottom
        return
    explicit = text if "clip" in text else f"{text} clip: false"  # OpenCV's schema says true, as the first SSD's did
    explicit += "" if "variance" in text else " variance: 0.1"
    named = layer_text("PriorBox", 2, f"prior_box_param {{ {explicit} }}")
    np.testing.assert_allclose(got.numpy(), opencv(named, x.numpy(), image.numpy()), rtol=0, atol=2e-6)
    np.testing.assert_allclose(layer(x.double(), image.double()).numpy(), want, rtol=0, atol=3e-7)


def test_sizes_are_cut_to_integers_as_in_ssd():
    # prior_box_layer.cpp: int min_size_ = min_sizes_[s]
    x, image = torch.zeros(1, 1, 1, 1), torch.zeros(1, 3, 100, 100)
    priors = build("PriorBox", "prior_box_param { min_size: 30.4 }", x.shape, image.shape)(x, image)
    np.testing.assert_allclose(priors[0, 0].numpy(), [0.35, 0.35, 0.65, 0.65], atol=1e-7)
    np.testing.assert_allclose(priors[0, 1].numpy(), [0.1] * 4, atol=1e-7)


def test_denser_boxes_come_again_on_the_lower_edge_of_the_cell():
    # TextBoxes++: a second box at (h + 1) * step
    x, image = torch.zeros(1, 1, 2, 1), torch.zeros(1, 3, 20, 40)
    layer = build("PriorBox", "prior_box_param { min_size: 4 denser_prior_boxes: true }", x.shape, image.shape)
    boxes = layer(x, image)[0, 0].reshape(-1, 4) * torch.tensor([40.0, 20, 40, 20])
    want = [[18, 3, 22, 7], [18, 8, 22, 12], [18, 13, 22, 17], [18, 18, 22, 22]]
    np.testing.assert_allclose(boxes.numpy(), want, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "min_size is missing"),
        ("min_size: 30 max_size: 60 max_size: 90", "2 max_size for 1"),
        ("min_size: 30 max_size: 20", "must be greater"),
        ("min_size: 30 variance: 0.1 variance: 0.2", "2 variances"),
        ("min_size: 30 img_size: 3 img_h: 4 img_w: 3", "exclude each other"),
        ("min_size: 30 step: 0", "must be positive"),
        ("min_size: 30 density: 2", "a PriorBox other"),
    ],
)
def test_bad_priors_are_refused(text, says):
    with pytest.raises(SpecError, match=says):
        build("PriorBox", f"prior_box_param {{ {text} }}", (1, 2, 3, 4), (1, 3, 30, 40))


# -- PriorBoxClustered --------------------------------------------------------------------------------------------

CLUSTERED = [
    "width: [9.4, 25.1, 14.8] height: [15, 39.6, 25.5] step: 16 variance: [0.1, 0.1, 0.2, 0.2]",
    "width: 63.04 height: 104.03 clip: true variance: 0.1 step_h: 12 step_w: 9 flip: false",
    "width: [40, 12] height: [11, 33] variance: 0.3",
    "width: [21.5, 7] height: [9, 30] offset: 0.25 clip: true",
    "width: [21.5, 7] height: [9, 30] step: 8 img_h: 90 img_w: 70",
]


@pytest.mark.parametrize("text", CLUSTERED)
def test_clustered_priors_are_openvinos_formula_and_opencvs(text):
    x, image = random(2, 5, 7, 6), random(2, 3, 95, 83)
    layer = build("PriorBoxClustered", f"prior_box_param {{ {text} }}", x.shape, image.shape)
    p = prototxt.parse(f"prior_box_param {{ {text} }}", "LayerParameter").prior_box_param
    image_h, image_w = (p.img_h, p.img_w) if p.has("img_h") else (95, 83)
    step_h, step_w = (p.step, p.step) if p.has("step") else (image_h / 7, image_w / 6)
    if p.has("step_h"):
        step_h, step_w = p.step_h, p.step_w
    want = []
    for row in range(7):
        for column in range(6):
            cx, cy = (column + p.offset) * step_w, (row + p.offset) * step_h
            for w, h in zip(p.width, p.height, strict=True):
                box = [(cx - w / 2) / image_w, (cy - h / 2) / image_h, (cx + w / 2) / image_w, (cy + h / 2) / image_h]
                want.append([min(max(side, 0), 1) for side in box] if p.clip else box)
    variances = list(p.variance or [0.1]) * (1 if len(p.variance) == 4 else 4)
    want = np.stack((np.array(want), np.broadcast_to(variances, (len(want), 4)))).reshape(1, 2, -1)
    got = layer(x, image).numpy()
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-7)
    if "img_h" in text:  # OpenCV takes the size of the second bottom
        return
    explicit = text + ("" if "clip" in text else " clip: false") + ("" if "variance" in text else " variance: 0.1")
    named = layer_text("PriorBox", 2, f"prior_box_param {{ {explicit} }}")
    np.testing.assert_allclose(got, opencv(named, x.numpy(), image.numpy()), rtol=0, atol=2e-6)
    again = build("PriorBox", f"prior_box_param {{ {text} }}", x.shape, image.shape)
    assert isinstance(again, caffe_port.layers.forks.detection.PriorBoxClustered)
    assert torch.equal(again(x, image), torch.from_numpy(got))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "0 width for 0 height"),
        ("width: 3 width: 4 height: 5", "2 width for 1 height"),
        ("width: 3 height: 0", "must be positive"),
        ("width: 3 height: 4 min_size: 5", "min_size does not go with"),
        ("width: 3 height: 4 variance: [1, 2, 3]", "3 variances"),
    ],
)
def test_bad_clustered_priors_are_refused(text, says):
    with pytest.raises(SpecError, match=says):
        build("PriorBoxClustered", f"prior_box_param {{ {text} }}", (1, 2, 3, 4), (1, 3, 30, 40))


def test_clustered_priors_are_emitted(tmp_path):
    net = tmp_path / "net.prototxt"
    net.write_text("""
        input: "image" input_shape { dim: 2 dim: 3 dim: 30 dim: 44 }
        layer { name: "p" type: "Pooling" bottom: "image" top: "p" pooling_param { kernel_size: 4 stride: 4 } }
        layer { name: "mbox" type: "PriorBoxClustered" bottom: "p" bottom: "image" top: "mbox"
                prior_box_param { width: 9 width: 17.5 height: 21 height: 8 variance: 0.2 clip: true } }
    """)
    ported = caffe_port.port(net)
    result = convert(ported, tmp_path / "emitted", channels_last=False)
    assert result.check.startswith("outputs are bit-equal")


# -- DetectionOutput ----------------------------------------------------------------------------------------------


def predictions(images, priors, classes, location_classes=1, seed=3):
    """loc, conf (probabilities) and priors with boxes of all sizes."""
    random = np.random.default_rng(seed)
    start = random.uniform(-0.1, 0.8, (priors, 2))
    boxes = np.concatenate((start, start + random.uniform(0.05, 0.5, (priors, 2))), 1)
    variances = random.uniform(0.05, 0.3, (priors, 4))
    prior = np.stack((boxes, variances)).reshape(1, 2, -1).astype(np.float32)
    loc = random.normal(0, 1, (images, priors * location_classes * 4)).astype(np.float32)
    conf = np.exp(random.normal(0, 2, (images, priors, classes)))
    conf = (conf / conf.sum(2, keepdims=True)).reshape(images, -1).astype(np.float32)
    return [torch.from_numpy(a) for a in (loc, conf, prior)]


def loop_decode(code_type, encoded, prior, variance, code):
    """DecodeBBox of weiliu89/caffe's bbox_util.cpp."""
    v = [1.0] * 4 if encoded else variance
    w, h = prior[2] - prior[0], prior[3] - prior[1]
    if code_type == "CORNER":
        return [prior[k] + v[k] * code[k] for k in range(4)]
    if code_type == "CORNER_SIZE":
        return [prior[k] + v[k] * code[k] * (w, h)[k % 2] for k in range(4)]
    cx, cy = v[0] * code[0] * w + (prior[0] + prior[2]) / 2, v[1] * code[1] * h + (prior[1] + prior[3]) / 2
    bw, bh = math.exp(v[2] * code[2]) * w, math.exp(v[3] * code[3]) * h
    return [cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2]


def loop_detections(p, loc, conf, prior):
    """DetectionOutputLayer::Forward_cpu, ApplyNMSFast; sorts are stable."""
    images, count = loc.shape[0], prior.shape[2] // 4
    classes = 1 if p.share_location else p.num_classes
    boxes, variances = prior[0].reshape(2, count, 4).astype(float)
    loc = loc.reshape(images, count, classes, 4).astype(float)
    conf, rows = conf.reshape(images, count, p.num_classes), []
    for n in range(images):
        kept = []
        for c in range(p.num_classes):
            if c == p.background_label_id:
                continue
            decoded = [
                loop_decode(p.code_type, p.variance_encoded_in_target, boxes[i], variances[i], loc[n, i, c % classes])
                for i in range(count)
            ]
            candidates = [i for i in range(count) if conf[n, i, c] > np.float32(p.confidence_threshold)]
            candidates.sort(key=lambda i: -conf[n, i, c])
            if p.nms_param.has("top_k"):
                candidates = candidates[: p.nms_param.top_k]
            threshold, chosen = p.nms_param.nms_threshold, []
            for i in candidates:
                if all(overlap(decoded[i], decoded[j]) <= threshold for j in chosen):
                    chosen.append(i)
                    if p.nms_param.eta < 1 and threshold > 0.5:
                        threshold *= p.nms_param.eta
            kept += [[n, c, conf[n, i, c], *decoded[i]] for i in chosen]
        if -1 < p.keep_top_k < len(kept):
            kept.sort(key=lambda row: -row[2])
            kept = sorted(kept[: p.keep_top_k], key=lambda row: row[1])
        rows += kept
    return np.array(rows).reshape(1, 1, -1, 7)


OUTPUTS = [
    "nms_param { nms_threshold: 0.45 top_k: 100 } code_type: CENTER_SIZE keep_top_k: 30 confidence_threshold: 0.05",
    "nms_param { nms_threshold: 0.45 top_k: 12 } code_type: CENTER_SIZE keep_top_k: 100 confidence_threshold: 0.1",
    "nms_param { nms_threshold: 0.3 } code_type: CORNER keep_top_k: 90 confidence_threshold: 0.2",
    "nms_param { nms_threshold: 0.5 top_k: 40 } code_type: CENTER_SIZE variance_encoded_in_target: true keep_top_k: 25",
    "nms_param { nms_threshold: 0.4 top_k: 40 } code_type: CENTER_SIZE background_label_id: 2 keep_top_k: 60",
]


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("shared", ["true", "false"])
@pytest.mark.parametrize("text", [*OUTPUTS, "nms_param { nms_threshold: 0.7 eta: 0.9 } code_type: CORNER_SIZE"])
def test_detections_are_ssds_loop_and_opencvs(text, shared, images):
    loc, conf, prior = predictions(images, 37, 4, 1 if shared == "true" else 4)
    param = f"detection_output_param {{ num_classes: 4 share_location: {shared} {text} }}"
    layer = build("DetectionOutput", param, loc.shape, conf.shape, prior.shape)
    got = layer(loc, conf, prior).numpy()
    message = prototxt.parse(param, "LayerParameter").detection_output_param
    want = loop_detections(message, loc.numpy(), conf.numpy(), prior.numpy())
    assert got.shape == want.shape
    assert got.shape[2] > 10 * images
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    if "keep_top_k" in text and "variance_encoded" not in text:  # what OpenCV can do
        explicit = param if "background" in text else param.replace("{", "{ background_label_id: 0", 1)
        theirs = opencv(layer_text("DetectionOutput", 3, explicit), loc.numpy(), conf.numpy(), prior.numpy())
        assert_rows_close(got, theirs)


def test_nothing_found_gives_a_row_of_minus_one_for_each_image():
    loc, conf, prior = predictions(2, 9, 3)
    param = "detection_output_param { num_classes: 3 confidence_threshold: 1.5 nms_param {} }"
    layer = build("DetectionOutput", param, loc.shape, conf.shape, prior.shape)
    got = layer(loc, conf, prior)
    assert got.tolist() == [[[[0.0] + [-1.0] * 6, [1.0] + [-1.0] * 6]]]
    assert layer.infer(loc, conf, prior).shape == (1, 1, 1, 7)
    assert layer(loc.double(), conf.double(), prior.double()).dtype == torch.float64


def test_without_an_nms_param_every_prior_is_found():
    loc, conf, prior = predictions(2, 9, 3)
    shapes = loc.shape, conf.shape, prior.shape
    text = "detection_output_param { num_classes: 3 confidence_threshold: 0.5 background_label_id: 1 %s }"
    rows = build("DetectionOutput", text % "", *shapes)(loc, conf, prior)[0, 0]
    assert rows[:, 1].tolist() == ([0] * 9 + [2] * 9) * 2
    assert torch.equal(rows[9:18, 2], conf.reshape(2, 9, 3)[0, :, 2])
    best = build("DetectionOutput", text % "keep_top_k: 4", *shapes)(loc, conf, prior)[0, 0]
    assert len(best) == 8
    assert best[:4, 2].min() >= rows[:18, 2].sort().values[-4]
    assert len(build("DetectionOutput", text % "nms_param {}", *shapes)(loc, conf, prior)[0, 0]) < 18


def test_the_nms_fields_of_the_first_ssd_count_too():
    loc, conf, prior = predictions(1, 9, 3)
    param = "detection_output_param { num_classes: 3 nms_threshold: 0.6 top_k: 5 }"
    layer = build("DetectionOutput", param, loc.shape, conf.shape, prior.shape)
    assert (layer.nms_threshold, layer.top_k) == (0.6, 5)


def test_priors_in_pixels_have_five_numbers_and_a_size():
    count = 6
    loc, conf = random(2, count * 4), random(2, count * 3, seed=1)
    corners = random(count, 2, seed=2).abs() * 40
    boxes = torch.cat((corners, corners + 20 + random(count, 2, seed=3).abs()), 1)
    size = torch.tensor([200.0, 100, 200, 100])
    variance = torch.tensor([0.1, 0.1, 0.2, 0.2]).repeat(count)
    text = "num_classes: 3 code_type: CENTER_SIZE confidence_threshold: 0.1 nms_param { nms_threshold: 0.5 }"
    plain = build("DetectionOutput", f"detection_output_param {{ {text} }}", loc.shape, conf.shape, (1, 2, count * 4))
    want = plain(loc, conf, torch.stack(((boxes / size).flatten(), variance))[None])
    rows = torch.zeros(1, 2, count * 5)
    rows[0, 0] = torch.cat((torch.zeros(count, 1), boxes), 1).flatten()
    rows[0, 1, : count * 4] = variance
    text += " normalized: false input_width: 200 input_height: 100"
    pixels = build("DetectionOutput", f"detection_output_param {{ {text} }}", loc.shape, conf.shape, rows.shape)
    torch.testing.assert_close(pixels(loc, conf, rows), want)


def test_clustered_priors_of_a_binary_file_have_numbers_of_their_own():
    from caffe_port.formats import recognition, wire
    from caffe_port.formats.message import Message

    own = Message("PriorBoxClusteredParameter", width=[9.0, 20.0], height=[12.0, 7.0], step=10.0)
    layer = Message("LayerParameter", name="l", type="PriorBoxClustered", prior_box_clustered_param=own)
    data = b"".join(wire.serialize(Message("NetParameter", layer=[layer])))
    read = recognition.read(memoryview(data), "NetParameter", "x")[0].layer[0]
    assert list(read.prior_box_clustered_param.height) == [12, 7]
    assert not read.has("prior_box_param")
    shapes = [(2, 3, 5, 6), (2, 3, 50, 60)]
    text = "prior_box_param { width: 9 width: 20 height: 12 height: 7 step: 10 }"
    x = [torch.zeros(shape) for shape in shapes]
    assert torch.equal(class_of(read).build(read, shapes)(*x), build("PriorBoxClustered", text, *shapes)(*x))


def test_refinedet_corrects_the_priors_and_drops_those_of_little_objectness():
    # sfzhang15/RefineDet, OSGetConfidenceScores and CasRegDecodeBBoxesAll
    loc, conf, prior = predictions(2, 31, 3)
    first_loc, first_conf, _ = predictions(2, 31, 2, seed=8)
    text = "num_classes: 3 code_type: CENTER_SIZE nms_param { nms_threshold: 0.45 } confidence_threshold: 0.01"
    shapes = [loc.shape, conf.shape, prior.shape]
    param = f"detection_output_param {{ {text} objectness_score: 0.3 }}"
    layer = build("DetectionOutput", param, *shapes, first_conf.shape, first_loc.shape)
    got = layer(loc, conf, prior, first_conf, first_loc).numpy()
    message = prototxt.parse(param, "LayerParameter").detection_output_param
    boxes, variances = prior.numpy()[0].reshape(2, 31, 4)
    want = []
    for n in range(2):
        codes = first_loc[n].reshape(31, 4).numpy()
        moved = [loop_decode("CENTER_SIZE", False, boxes[i], variances[i], codes[i]) for i in range(31)]
        objects = first_conf[n].reshape(31, 2).numpy()[:, 1:] >= 0.3
        scores = np.where(objects, conf[n].reshape(31, 3).numpy(), 0).reshape(1, -1)
        new = np.stack((np.array(moved), variances)).reshape(1, 2, -1)
        rows = loop_detections(message, loc[n : n + 1].numpy(), scores, new)
        rows[..., 0] = n
        want.append(rows)
    np.testing.assert_allclose(got, np.concatenate(want, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shapes", "text", "says"),
    [
        ([(1, 36), (1, 27), (1, 2, 36)], "", "num_classes is missing"),
        ([(1, 36), (1, 28), (1, 2, 36)], "num_classes: 3", "9 priors and 3 classes need"),
        ([(1, 36), (1, 27), (1, 1, 36)], "num_classes: 3", "priors have shape"),
        ([(1, 36), (1, 27)], "num_classes: 3", "2 bottoms"),
        ([(1, 36), (1, 27), (1, 2, 36), (1, 9)], "num_classes: 3", "fourth bottom is an image"),
        ([(1, 36), (1, 27), (1, 2, 36)], "num_classes: 3 nms_param { eta: 2 }", "eta 2"),
        ([(1, 36), (1, 27), (1, 2, 36)], "num_classes: 3 normalized_bbox: false", "in pixels"),
        ([(1, 36), (1, 27), (1, 2, 45)], "num_classes: 3 normalized: false", "input_width"),
    ],
)
def test_bad_detections_are_refused(shapes, text, says):
    with pytest.raises(SpecError, match=says):
        build("DetectionOutput", f"detection_output_param {{ {text} }}", *shapes)


# -- MultiBoxLoss -------------------------------------------------------------------------------------------------


def loop_multibox(p, divisor, loc, conf, prior, label):
    """MultiBoxLossLayer::Forward_cpu with MatchBBox, MineHardExamples, EncodeBBox, in float64."""
    images, count = loc.shape[0], prior.shape[2] // 4
    boxes, variances = prior[0].reshape(2, count, 4)
    loc, conf = loc.reshape(images, count, 4), conf.reshape(images, count, p.num_classes)
    mining = p.mining_type == "MAX_NEGATIVE" and not (p.has("do_neg_mining") and not p.do_neg_mining)
    loc_loss = conf_loss = matches = 0

    def class_loss(scores, c):
        if p.conf_loss_type == "SOFTMAX":
            return np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[c]
        one = np.eye(p.num_classes)[c]
        return (np.log1p(np.exp(-np.abs(scores))) + np.maximum(scores, 0) - scores * one).sum()

    for n in range(images):
        true = [r for r in label.reshape(-1, 8) if r[0] == n and (p.use_difficult_gt or not r[7])]
        match, best = [-1] * count, [0.0] * count
        overlaps = {}
        for i in range(count):
            box = boxes[i]
            if not p.use_prior_for_matching:
                box = loop_decode(p.code_type, p.encode_variance_in_target, boxes[i], variances[i], loc[n, i])
            if p.ignore_cross_boundary_bbox and (min(box) < 0 or max(box) > 1):
                match[i] = -2
                continue
            for j, r in enumerate(true):
                if overlap(box, r[3:7]) > 1e-6:
                    overlaps[i, j] = overlap(box, r[3:7])
                    best[i] = max(best[i], overlaps[i, j])
        pool = set(range(len(true)))
        while pool:
            free = [(o, -i, -j) for (i, j), o in overlaps.items() if match[i] == -1 and j in pool]
            if not free:
                break
            _, i, j = max(free)
            match[-i] = -j
            pool.remove(-j)
        if p.match_type == "PER_PREDICTION":
            for i in range(count):
                fits = [(o, -j) for (k, j), o in overlaps.items() if k == i and o >= p.overlap_threshold]
                if match[i] == -1 and fits:
                    match[i] = -max(fits)[1]
        hits = [i for i in range(count) if match[i] >= 0]
        matches += len(hits)
        for i in hits:
            r, v = true[match[i]], variances[i]
            w, h = boxes[i][2] - boxes[i][0], boxes[i][3] - boxes[i][1]
            if p.code_type == "CORNER":
                target = (r[3:7] - boxes[i]) / v
            elif p.code_type == "CORNER_SIZE":
                target = (r[3:7] - boxes[i]) / (w, h, w, h) / v
            else:
                center = [(r[3 + k] + r[5 + k] - boxes[i][k] - boxes[i][2 + k]) / 2 / (w, h)[k] for k in range(2)]
                target = np.array([*center, *[math.log((r[5 + k] - r[3 + k]) / (w, h)[k]) for k in range(2)]]) / v
            d = np.abs((loc[n, i] / v if p.encode_variance_in_target else loc[n, i]) - target)
            loc_loss += (d**2 / 2 if p.loc_loss_type == "L2" else np.where(d < 1, d**2 / 2, d - 0.5)).sum()
            c = p.background_label_id + 1 if p.map_object_to_agnostic else int(r[1])
            conf_loss += class_loss(conf[n, i], c)
        others = [i for i in range(count) if match[i] < 0]
        losses = {i: class_loss(conf[n, i], p.background_label_id) for i in others}
        if mining:
            hard = sorted((i for i in others if match[i] == -1 and best[i] < p.neg_overlap), key=lambda i: -losses[i])
            others = hard[: max(0, int(len(hits) * p.neg_pos_ratio))]
        conf_loss += sum(losses[i] for i in others)
    divide = {"VALID": matches, "FULL": images * count, "BATCH_SIZE": images, "NONE": 1}[divisor]
    return (p.loc_weight * loc_loss + conf_loss) / max(divide, 1)


LOSSES = [
    ("VALID", "code_type: CENTER_SIZE neg_pos_ratio: 3 neg_overlap: 0.5 overlap_threshold: 0.5"),
    ("VALID", "code_type: CENTER_SIZE overlap_threshold: 0.3 loc_weight: 2 loc_loss_type: L2 neg_overlap: 0.2"),
    ("BATCH_SIZE", "code_type: CORNER match_type: BIPARTITE use_difficult_gt: false"),
    ("FULL", "code_type: CORNER_SIZE mining_type: NONE encode_variance_in_target: true"),
    ("NONE", "code_type: CENTER_SIZE conf_loss_type: LOGISTIC ignore_cross_boundary_bbox: true overlap_threshold: 0.2"),
    ("VALID", "code_type: CENTER_SIZE use_prior_for_matching: false overlap_threshold: 0.25 neg_pos_ratio: 1.5"),
    ("VALID", "code_type: CENTER_SIZE do_neg_mining: false overlap_threshold: 0.4"),
    ("VALID", "code_type: CENTER_SIZE neg_pos_ratio: -1"),
]


@pytest.mark.parametrize(("divisor", "text"), LOSSES)
def test_multibox_loss_is_ssds_loop(divisor, text):
    loc, conf, prior = (t.double() for t in predictions(3, 41, 4))
    random = np.random.default_rng(5)
    start = random.uniform(0, 0.6, (7, 2))
    label = np.zeros((1, 1, 7, 8))
    label[..., 0], label[..., 1] = [0, 0, 0, 2, 2, 2, -1], [1, 3, 2, 1, 1, 3, -1]  # none in image 1, padding at the end
    label[..., 3:5], label[..., 5:7] = start, start + random.uniform(0.1, 0.4, (7, 2))
    label[..., 7] = [0, 1, 0, 0, 0, 1, 0]
    param = f"multibox_loss_param {{ num_classes: 4 {text} }} loss_param {{ normalization: {divisor} }}"
    layer = build("MultiBoxLoss", param, loc.shape, conf.shape, prior.shape, label.shape)
    loc.requires_grad_(), conf.requires_grad_()
    got = layer(loc, conf, prior, torch.from_numpy(label))
    message = prototxt.parse(param, "LayerParameter").multibox_loss_param
    numbers = [t.detach().numpy() for t in (loc, conf, prior)]
    assert got.item() == pytest.approx(loop_multibox(message, divisor, *numbers, label), rel=1e-9)
    got.backward()
    step = 1e-6
    variance = prior[0, 1].numpy() if message.encode_variance_in_target else np.ones(prior.shape[2])
    for tensor, index in ((loc, (0, int(loc.grad[0].abs().argmax()))), (conf, (2, int(conf.grad[2].abs().argmax())))):
        values = []
        for sign in (1, -1):
            moved = [t.copy() for t in numbers]
            moved[0 if tensor is loc else 1][index] += sign * step
            values.append(loop_multibox(message, divisor, *moved, label))
        slope = (values[0] - values[1]) / (2 * step)
        if tensor is loc:  # Caffe leaves the division by the variance out
            slope *= variance[index[1]]
        assert tensor.grad[index].item() == pytest.approx(slope, rel=1e-4)
    assert layer.infer(loc, conf, prior).shape == ()


def test_multibox_loss_without_any_true_box_is_zero():
    loc, conf, prior = predictions(2, 9, 3)
    param = "multibox_loss_param { num_classes: 3 code_type: CENTER_SIZE }"
    layer = build("MultiBoxLoss", param, loc.shape, conf.shape, prior.shape, (1, 1, 1, 8))
    assert layer(loc, conf, prior, torch.full((1, 1, 1, 8), -1.0)) == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "num_classes is missing"),
        ("num_classes: 3 background_label_id: 3", "not in 0..2"),
        ("num_classes: 3 share_location: false", "share_location: false needs mining_type: NONE"),
        ("num_classes: 3 do_neg_mining: true mining_type: NONE", "contradicts"),
        ("num_classes: 3 mining_type: HARD_EXAMPLE sample_size: 0", "sample_size must be positive"),
        ("num_classes: 3 map_object_to_agnostic: true", "needs num_classes: 2"),
    ],
)
def test_what_multibox_loss_refuses(text, says):
    with pytest.raises(SpecError, match=says):
        build("MultiBoxLoss", f"multibox_loss_param {{ {text} }}", (1, 36), (1, 27), (1, 2, 36), (1, 1, 2, 8))


@pytest.mark.parametrize("labels", [(1, 2, 1, 8), (3, 8), (8,), (1, 1, 2, 7)])
def test_labels_of_another_shape(labels):
    """SSD would read one box, or beyond the labels; DetectionEvaluate refuses them."""
    says = r"the labels have shape .*, expected \(1, 1, boxes, 8\)"
    with pytest.raises(SpecError, match=says):
        build("MultiBoxLoss", "multibox_loss_param { num_classes: 3 }", (1, 36), (1, 27), (1, 2, 36), labels)
    with pytest.raises(SpecError, match=says):
        build("DetectionEvaluate", "detection_evaluate_param { num_classes: 3 }", (1, 1, 4, 7), labels)


@pytest.mark.parametrize(
    ("flags", "says"), [([True], "1 propagate_down"), ([True, True, True, False], "have no gradient")]
)
def test_propagate_down_of_multibox_loss(flags, says):
    given = " ".join(f"propagate_down: {str(flag).lower()}" for flag in flags)
    with pytest.raises(SpecError, match=says):
        build(
            "MultiBoxLoss",
            f"multibox_loss_param {{ num_classes: 3 }} {given}",
            (1, 36),
            (1, 27),
            (1, 2, 36),
            (1, 1, 2, 8),
        )


# -- DetectionEvaluate --------------------------------------------------------------------------------------------


def evaluate(text, found, true):
    found, true = torch.tensor(found).reshape(1, 1, -1, 7), torch.tensor(true).reshape(1, 1, -1, 8)
    layer = build("DetectionEvaluate", f"detection_evaluate_param {{ {text} }}", found.shape, true.shape)
    rows = layer(found, true)
    assert layer.infer(found, true).shape == rows.shape
    return rows[0, 0].tolist()


TRUE = [
    [0, 1, 0, 0.1, 0.1, 0.5, 0.5, 0.0],
    [0, 2, 1, 0.5, 0.5, 0.9, 0.9, 1.0],
    [1, 1, 2, 0.2, 0.2, 0.4, 0.4, 0.0],
    [-1, 1, 3, 0.2, 0.2, 0.4, 0.4, 0.0],
    [1, 1, 4, 0.2, 0.2, 0.4, 0.4, 0.0],  # after the padding: Caffe stops there
]
FOUND = [
    [0, 1, 0.5, 0.1, 0.1, 0.5, 0.5],
    [0, 1, 0.75, 0.1, 0.1, 0.5, 0.45],
    [0, 2, 0.25, 0.5, 0.5, 0.9, 0.9],
    [2, 1, 0.125, 0.5, 0.5, 0.9, 0.9],
    [-1, -1, -1, -1, -1, -1, -1.0],
]


def test_a_detection_is_right_once():
    assert evaluate("num_classes: 3", FOUND, TRUE) == [
        [-1, 1, 2, -1, -1],
        [-1, 2, 1, -1, -1],
        [0, 1, 0.75, 1, 0],
        [0, 1, 0.5, 0, 1],
        [0, 2, 0.25, 1, 0],
        [2, 1, 0.125, 0, 1],
        [0, 0, 0, 0, 0],
    ]


def test_a_difficult_box_is_neither():
    rows = evaluate("num_classes: 3 evaluate_difficult_gt: false overlap_threshold: 0.9", FOUND, TRUE)
    assert rows[1] == [-1, 2, 0, -1, -1]
    assert rows[2:5] == [[0, 1, 0.75, 0, 1], [0, 1, 0.5, 1, 0], [0, 2, 0.25, 0, 0]]


def test_in_pixels_the_last_one_belongs_to_a_box(tmp_path):
    """Of 8 pixels down and 10 across: 4.2 x 5 in 4.2 x 5, (3.8 * 5) / (4.2 * 5); in fractions 0.875."""
    sizes = tmp_path / "sizes.txt"
    sizes.write_text("one 8 10\ntwo 20 20\n")
    text = f'num_classes: 3 overlap_threshold: 0.89 name_size_file: "{sizes}"'
    assert evaluate(text, FOUND[1:2], TRUE)[2] == [0, 1, 0.75, 1, 0]
    assert evaluate("num_classes: 3 overlap_threshold: 0.89", FOUND[1:2], TRUE)[2] == [0, 1, 0.75, 0, 1]


@pytest.mark.parametrize(
    ("text", "shape", "says"),
    [
        ("", (1, 1, 4, 7), "num_classes is missing"),
        ("num_classes: 3 background_label_id: 5", (1, 1, 4, 7), "not in 0..2"),
        ("num_classes: 3 overlap_threshold: 0", (1, 1, 4, 7), "must be positive"),
        ("num_classes: 3", (1, 4, 7), "the detections have shape"),
        ("num_classes: 3 resize_param {}", (1, 1, 4, 7), "resize_param is not supported"),
        ('num_classes: 3 name_size_file: "%s"', (1, 1, 4, 7), "line 2 is 'two 20', expected: name height width"),
    ],
)
def test_what_detection_evaluate_refuses(text, shape, says, tmp_path):
    (tmp_path / "sizes").write_text("one 8 10\ntwo 20\n")
    text = text % (tmp_path / "sizes") if "%s" in text else text
    with pytest.raises(SpecError, match=says):
        build("DetectionEvaluate", f"detection_evaluate_param {{ {text} }}", shape, (1, 1, 3, 8))


# -- other forks' boxes ---------------------------------------------------------------------------------------------


def corners(text: str, cells: tuple[int, int] = (1, 1), image: tuple[int, int] = (100, 200)) -> list[list[float]]:
    """The boxes of a PriorBox in pixels, as rows x1, y1, x2, y2 (or as the layer orders them)."""
    box = build("PriorBox", f"prior_box_param {{ {text} }}", (2, 3, *cells), (2, 3, *image))
    made = box(torch.zeros(2, 3, *cells), torch.zeros(2, 3, *image))[0, 0].reshape(-1, 4)
    return (made * torch.tensor([image[1], image[0]] * 2)).round(decimals=3).tolist()


def test_face_boxes_are_dense():
    """A size of 32 every 8 pixels, one of 64 every 16; sizes without the last pixel."""
    made = corners("min_size: 32 min_size: 64 min_size: 128 faceboxes: true")
    assert len(made) == 16 + 4 + 1
    assert made[0] == [100 - 16 - 15.5, 50 - 16 - 15.5, 100 - 16 + 15.5, 50 - 16 + 15.5]
    assert made[1] == [100 - 8 - 15.5, 50 - 16 - 15.5, 100 - 8 + 15.5, 50 - 16 + 15.5]
    assert made[15] == [100 + 8 - 15.5, 50 + 8 - 15.5, 100 + 8 + 15.5, 50 + 8 + 15.5]
    assert made[16] == [100 - 16 - 31.5, 50 - 16 - 31.5, 100 - 16 + 31.5, 50 - 16 + 31.5]
    assert made[20] == [100 - 63.5, 50 - 63.5, 100 + 63.5, 50 + 63.5]


@pytest.mark.parametrize(
    "text",
    [
        "min_size: 32 faceboxes: true",
        "min_size: 64 min_size: 32 min_size: 128 faceboxes: true",
        "min_size: 256 max_size: 300 faceboxes: true",
        "min_size: 256 aspect_ratio: 2 faceboxes: true",
    ],
)
def test_face_boxes_that_overrun_the_top_are_refused(text):
    with pytest.raises(SpecError, match="faceboxes"):
        corners(text)


def test_the_order_of_boxes_at_synopsys():
    root = [100 - 30, 50 - 30, 100 + 30, 50 + 30]
    square = [100 - 20, 50 - 20, 100 + 20, 50 + 20]
    wide, high = [100 - 40, 50 - 10, 100 + 40, 50 + 10], [100 - 10, 50 - 40, 100 + 10, 50 + 40]
    wider, higher = [100 - 80, 50 - 5, 100 + 80, 50 + 5], [100 - 5, 50 - 80, 100 + 5, 50 + 80]
    own = "min_size: 40 max_size: 90 aspect_ratio: 4 aspect_ratio: 16 %s"
    assert corners(own % "") == [square, root, wide, high, wider, higher]
    assert corners(own % "tf: true") == [square, wide, high, wider, higher, root]
    assert corners(own % "keras: true") == [root, square, wide, wider, high, higher]
    across = "box_width: 80 box_height: 20 %s"
    assert corners(across % "") == [wide]
    made = build("PriorBox", f"prior_box_param {{ {across % 'yx_order: true'} }}", (2, 3, 1, 1), (2, 3, 100, 200))
    boxes = made(torch.zeros(2, 3, 1, 1), torch.zeros(2, 3, 100, 200))[0, 0]
    assert boxes.numpy() == pytest.approx([0.4, 0.3, 0.6, 0.7])
    # 5 % of the image off each side of a square of 60
    assert corners("min_size: 60 tf: true") == [[70 + 10, 20 + 5, 130 - 10, 80 - 5]]


def test_a_net_that_fits_only_with_face_boxes_gets_them():
    shape = " ".join(f"dim: {n}" for n in (2, 3, 64, 96))
    text = f"""
    layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {shape} }} }} }}
    layer {{ name: "map" type: "Pooling" bottom: "data" top: "map" pooling_param {{ kernel_size: 32 stride: 32 }} }}
    layer {{ name: "prior" type: "PriorBox" bottom: "map" bottom: "data" top: "prior"
             prior_box_param {{ min_size: 32 min_size: 64 min_size: 128 }} }}
    layer {{ name: "loc" type: "InnerProduct" bottom: "map" top: "loc" inner_product_param {{ num_output: %d }} }}
    layer {{ name: "conf" type: "InnerProduct" bottom: "map" top: "conf" inner_product_param {{ num_output: %d }} }}
    layer {{ name: "out" type: "DetectionOutput" bottom: "loc" bottom: "conf" bottom: "prior" top: "out"
             detection_output_param {{ num_classes: 2 nms_param {{ }} }} }}
    """
    for boxes in (3, 21):
        read = Definition.parse(prototxt.parse(text % (6 * boxes * 4, 6 * boxes * 2), "NetParameter"))
        ported = caffe_port.api.port(read)
        assert len(ported.net.prior.boxes) == boxes
        assert any("as in FaceBoxes" in note for note in ported.notes) == (boxes == 21)


def test_polygons_are_moved_off_the_corners_of_the_prior():
    text = "detection_output_param { num_classes: 2 use_polygon: true code_type: CENTER_SIZE nms_param { } }"
    priors = torch.tensor([[[0.2, 0.3, 0.6, 0.5], [0.1, 0.2, 0.3, 0.4]]])
    code = torch.tensor([[0.0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]])
    out = build("DetectionOutput", text, (1, 12), (1, 2), (1, 2, 4))(code, torch.tensor([[0.1, 0.9]]), priors)
    assert out.shape == (1, 1, 1, 15)
    assert out.flatten()[:7].numpy() == pytest.approx([0, 1, 0.9, 0.2, 0.3, 0.6, 0.5])
    x, y = 0.1 * 0.4, 0.2 * 0.2
    wanted = [0.2 + x, 0.3 + 2 * y, 0.6 + 3 * x, 0.3 + 4 * y, 0.6 + 5 * x, 0.5 + 6 * y, 0.2 + 7 * x, 0.5 + 8 * y]
    assert out.flatten()[7:].numpy() == pytest.approx(wanted)
    with pytest.raises(SpecError, match="use_polygon needs code_type"):
        build("DetectionOutput", text.replace("CENTER_SIZE", "CORNER"), (1, 12), (1, 2), (1, 2, 4))
