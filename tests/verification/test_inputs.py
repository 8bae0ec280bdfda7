"""What a net is fed with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_port.api import port
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.definition.definition import Definition
from caffe_port.errors import CaffePortError, ParseError
from caffe_port.verification import inputs
from caffe_port.verification.inputs import picture_input, random_input

cv2 = pytest.importorskip("cv2")


def test_random_is_seeded_and_standard_normal() -> None:
    a = random_input((50, 20, 10), 3)
    assert np.array_equal(a, random_input((50, 20, 10), 3))
    assert not np.array_equal(a, random_input((50, 20, 10), 4))
    assert not np.array_equal(a, random_input((50, 20, 10), 3, index=1))
    assert a.dtype == np.float32
    assert abs(float(a.mean())) < 0.05
    assert abs(float(a.std()) - 1) < 0.05


def test_labels_and_indices_are_integers(golden: Path) -> None:
    for name, blob, below in (("softmaxwithloss_default", "label", None), ("embed_default", "x", None)):
        plan = port(golden / f"layers/{name}.prototxt", keep_loss=True).net.plan
        arrays, words = inputs.random_inputs(plan.spec, plan.shapes, 0)
        integer = [b for b in arrays if "integers" in words[b]]
        assert len(integer) == 1, (name, blob, below)
        values = arrays[integer[0]]
        assert np.array_equal(values, np.round(values))
        assert values.min() >= 0


def test_channel_order(tmp_path: Path) -> None:
    bgr = np.zeros((4, 5, 3), np.uint8)
    bgr[:] = (1, 2, 3)
    cv2.imwrite(str(tmp_path / "p.png"), bgr)
    assert picture_input(tmp_path / "p.png", (2, 3, 4, 5), Preprocessing("BGR"))[1, :, 0, 0].tolist() == [1, 2, 3]
    rgb = picture_input(tmp_path / "p.png", (2, 3, 4, 5), Preprocessing("RGB"))
    assert rgb.shape == (2, 3, 4, 5)
    assert rgb[0, :, 0, 0].tolist() == [3, 2, 1]
    assert picture_input(tmp_path / "p.png", (1, 1, 8, 9), Preprocessing("BGR")).shape == (1, 1, 8, 9)


def test_no_pictures(tmp_path: Path) -> None:
    for name, content in {"empty.png": b"", "text.png": b"layer {}", "cut.png": b"\x89PNG\r\n\x1a\n\0\0"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ParseError, match="cannot be decoded as an image"):
            picture_input(tmp_path / name, (1, 3, 4, 5), Preprocessing("BGR"))
    with pytest.raises(CaffePortError, match="1 or 3 channels"):
        picture_input(tmp_path / "text.png", (1, 4, 4, 5), Preprocessing("BGR"))


def test_batch_axis(golden: Path) -> None:
    spec = Definition.read(golden / "layers/relu_default.prototxt").spec()
    assert inputs.with_batch_axis(np.zeros((6, 7, 5)), spec, "x").shape == (1, 6, 7, 5)
    assert inputs.with_batch_axis(np.zeros((3, 6, 7, 5)), spec, "x").shape == (3, 6, 7, 5)


DETECTOR = """
input: "x" input_shape { dim: 2 dim: 6 dim: 5 dim: 7 }
input: "loc" input_shape { dim: 2 dim: 24 } input: "conf" input_shape { dim: 2 dim: 18 }
input: "prior" input_shape { dim: 1 dim: 2 dim: 24 }
input: "true" input_shape { dim: 1 dim: 1 dim: 9 dim: 8 }
input: "found" input_shape { dim: 1 dim: 1 dim: 4 dim: 7 }
input: "rois" input_shape { dim: 4 dim: 5 }
layer { name: "l" type: "MultiBoxLoss" bottom: "loc" bottom: "conf" bottom: "prior" bottom: "true" top: "l"
        multibox_loss_param { num_classes: 3 background_label_id: 1 } }
layer { name: "e" type: "DetectionEvaluate" bottom: "found" bottom: "true" top: "e"
        detection_evaluate_param { num_classes: 3 background_label_id: 1 } }
layer { name: "r" type: "ROIPooling" bottom: "x" bottom: "rois" top: "r"
        roi_pooling_param { pooled_h: 2 pooled_w: 2 spatial_scale: 0.5 } }
"""


def test_boxes_are_boxes(tmp_path: Path) -> None:
    """What Caffe's layers check, and what makes a loss of something."""
    (tmp_path / "net.prototxt").write_text(DETECTOR)
    plan = port(tmp_path / "net.prototxt", keep_loss=True).net.plan
    arrays, words = inputs.random_inputs(plan.spec, plan.shapes, 0)
    assert words["true"] == "random objects, seed 0"
    assert words["loc"] == "random, standard normal, seed 0"
    assert {blob: array.shape for blob, array in arrays.items()} == {
        b: plan.shapes[made_by] for b, made_by in plan.spec.inputs
    }
    for blob in ("true", "found"):
        rows = arrays[blob].reshape(-1, arrays[blob].shape[-1])
        assert set(rows[:, 0]) == {0, 1}
        assert set(rows[:, 1]) == {0, 2}
        corners = rows[:, 3:7]
        assert (corners[:, 2:] > corners[:, :2]).all()
        assert corners.min() >= 0
        assert corners.max() <= 1
    corners, variances = arrays["prior"].reshape(2, 6, 4)
    assert (corners[:, 2:] > corners[:, :2]).all()
    assert variances.min() > 0
    assert (arrays["rois"][:, 3:] > arrays["rois"][:, 1:3]).all()
    assert (arrays["rois"][:, 1:] <= [14, 10, 14, 10]).all()


def test_sizes_of_images_fit_the_scores(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text("""
        input: "s" input_shape { dim: 2 dim: 4 dim: 5 dim: 7 } input: "d" input_shape { dim: 2 dim: 8 dim: 5 dim: 7 }
        input: "i" input_shape { dim: 2 dim: 3 } layer { name: "p" type: "Proposal" bottom: "s" bottom: "d" bottom: "i"
        top: "p" proposal_param { ratio: 1 scale: [4, 8] } }""")
    plan = port(tmp_path / "net.prototxt").net.plan
    arrays, words = inputs.random_inputs(plan.spec, plan.shapes, 0)
    assert arrays["i"].tolist() == [[80, 112, 1], [80, 112, 1]]
    assert words["i"] == "random image sizes, seed 0"
