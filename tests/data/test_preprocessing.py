"""The record: what it refuses, what it is read from, and what it becomes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_lmdb import write

from caffe_port.data.preprocessing import MEAN_IMAGE, Preprocessing, read_mean
from caffe_port.errors import CaffePortError, ParseError, SpecError
from caffe_port.formats import caffemodel, prototxt
from caffe_port.formats.message import Message
from caffe_port.spec import LayerSpec

IMAGE = np.arange(3 * 5 * 4, dtype=np.float32).reshape(3, 5, 4)


def layer(text: str, folder: Path = Path()) -> LayerSpec:
    param = Message("LayerParameter", transform_param=prototxt.parse(text, "TransformationParameter"))
    return LayerSpec("d", "Data", (), (), (), param, f"{folder / 'net.prototxt'}:1")


def test_it_is_read_and_kept_without_torch_and_numpy() -> None:
    code = (
        "import sys; from caffe_port.data.preprocessing import Preprocessing as P; "
        "P.from_dict(P(mean=(1.0, 2.0, 3.0)).changed(mean='4,5,6').as_dict(), ''); "
        "sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"channel_order": "BRG"}, "channel order 'BRG' is not one of RGB, BGR, GRAY. Did you mean"),
        ({"mean": (1.0, 2.0)}, "mean has 2 values; RGB takes 1 or 3"),
        ({"channel_order": "GRAY", "std": (1.0, 2.0, 3.0)}, "std has 3 values; GRAY takes 1"),
        ({"channel_order": None, "mean": ()}, "mean has no values"),
        ({"mean": "mean"}, "neither a number, a list of numbers nor"),
        ({"mean": np.nan}, "finite"),
        ({"std": (1.0, 0.0, 1.0)}, "std is 0"),
        ({"crop": -1}, "pad 0 or crop -1 is too small"),
        ({"crop": (3, 0)}, r"crop \(3, 0\) is too small"),
        ({"resize": (0, 3)}, r"resize \(0, 3\) is too small"),
        ({"mean_image": IMAGE}, "a mean image .* requires mean"),
        ({"mean": MEAN_IMAGE, "mean_image": IMAGE[0]}, "a mean image .* requires mean"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(CaffePortError, match=message):
        Preprocessing(**values)  # type: ignore[arg-type]


def test_one_line_says_it() -> None:
    assert str(Preprocessing("GRAY", 33.3184, std=78.5675)) == "GRAY, (x - 33.3184) / 78.5675"
    assert str(Preprocessing(None, scale=0.5, resize=(256, 320), crop=(7, 9))) == (
        "channels as stored, resized to 320x256, x * 0.5, crop 9x7"
    )
    text = str(Preprocessing(pad=4, pad_first=True, crop=32, mirror_train=True, mirror_test=True))
    assert text == "RGB, padded by 4, x, crop 32, mirrored at random in training and testing"
    assert str(Preprocessing("BGR", scale=2.0, pad=1)) == "BGR, x * 2, padded by 1"


@pytest.mark.parametrize(
    "plan",
    [
        Preprocessing(),
        Preprocessing(None, (1.0, 2.5), 0.017, (3.0, 4.0), 2, True, (7, 9), True, False, (11, 13)),
        Preprocessing("BGR", MEAN_IMAGE, crop=5, mirror_test=True),
    ],
)
def test_a_dict_gives_it_back(plan: Preprocessing) -> None:
    assert Preprocessing.from_dict(json.loads(json.dumps(plan.as_dict())), "x") == plan


def test_a_mean_image_is_named_not_written() -> None:
    plan = Preprocessing().changed(mean=IMAGE)
    assert plan.as_dict()["mean"] == MEAN_IMAGE
    assert Preprocessing.from_dict(plan.as_dict(), "x").lacks_mean_image
    assert not plan.lacks_mean_image


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "is missing or not a table"),
        ({"means": 1}, "'means' is not a known field. Did you mean 'mean'"),
        ({"mean_image": [[[1]]]}, "'mean_image' is not a known field"),
        ({"mean": [1, "2"]}, "'mean' contains a value that is not a number"),
        ({"mean": None}, "'mean' is None, expected float or list or str"),
        ({"mean": 10**400}, "'mean' is 10+, expected float"),
        ({"std": [10**400]}, "'std' contains a value that is not a number"),
        ({"crop": 3.5}, "'crop' is 3.5, expected int or list of two int"),
        ({"crop": True}, "'crop' is True, expected int"),
        ({"resize": [3]}, r"'resize' is \[3\], expected list of two int"),
        ({"resize": 3}, "'resize' is 3, expected list of two int"),
        ({"scale": 0.5, "std": 0}, "std is 0"),
    ],
)
def test_a_dict_with_a_mistake_is_refused(table: object, message: str) -> None:
    with pytest.raises(CaffePortError, match=f"port.json: {message}"):
        Preprocessing.from_dict(table, "port.json")


# -- means ----------------------------------------------------------------------------------------------------------


def test_means_as_users_give_them(tmp_path: Path) -> None:
    assert read_mean("104,117.5,-1") == [104, 117.5, -1]
    assert read_mean(MEAN_IMAGE) == MEAN_IMAGE
    np.save(tmp_path / "m.npy", IMAGE[None])
    np.save(tmp_path / "c.npy", IMAGE[:, 0, 0])
    np.save(tmp_path / "flat.npy", IMAGE[0])
    (tmp_path / "m.binaryproto").write_bytes(write(caffemodel.blob_message(IMAGE[None])))
    for given in (IMAGE, IMAGE[None], str(tmp_path / "m.npy"), tmp_path / "m.binaryproto"):
        plan = Preprocessing(mean=9.0).changed(mean=given)
        assert plan.mean == MEAN_IMAGE
        assert plan.mean_image is not None
        assert plan.mean_image.dtype == np.float32
        assert np.array_equal(plan.mean_image, IMAGE)
    for given, want in ((tmp_path / "c.npy", (0.0, 20.0, 40.0)), ("7", 7.0), ([7.0], 7.0), (np.float32(7), 7.0)):
        plan = Preprocessing().changed(mean=IMAGE).changed(mean=given)
        assert plan.mean == want
        assert plan.mean_image is None
    assert Preprocessing().changed(mean=IMAGE).changed(mean=MEAN_IMAGE).lacks_mean_image
    with pytest.raises(CaffePortError, match=r"mean has shape \(5, 4\); expected an image"):
        Preprocessing().changed(mean=tmp_path / "flat.npy")
    with pytest.raises(CaffePortError, match="cannot be read"):
        read_mean("104;117")
    with pytest.raises(CaffePortError, match="mean must be a number or one number per channel; got"):
        Preprocessing().changed(mean=["a"])


def test_changes_are_checked() -> None:
    plan = Preprocessing()
    assert plan.changed(mean=None, std=[1.0, 2.0, 3.0]).std == (1.0, 2.0, 3.0)
    with pytest.raises(CaffePortError, match="BRG"):
        plan.changed(channel_order="BRG")


# -- transform_param ------------------------------------------------------------------------------------------------


def test_transform_param_is_read(tmp_path: Path) -> None:
    text = "scale: 0.5 mean_value: 1 mean_value: 2 mean_value: 3 crop_size: 4 mirror: true"
    plan = Preprocessing.from_transform_param(layer(text))
    assert plan == Preprocessing(None, (1.0, 2.0, 3.0), 0.5, crop=4, mirror_train=True, mirror_test=True)
    assert Preprocessing.from_transform_param(layer("mean_value: 7")) == Preprocessing(None, 7.0)
    assert Preprocessing.from_transform_param(layer("force_color: true"), "BGR") == Preprocessing("BGR")
    (tmp_path / "m.binaryproto").write_bytes(write(caffemodel.blob_message(IMAGE[None])))
    for name in ("m.binaryproto", "elsewhere/m.binaryproto", tmp_path / "m.binaryproto"):
        plan = Preprocessing.from_transform_param(layer(f'mean_file: "{name}"', tmp_path), "RGB")
        assert np.array_equal(plan.mean_image, IMAGE)  # type: ignore[arg-type]


def test_a_mean_file_that_is_not_there_is_an_error_or_a_note(tmp_path: Path) -> None:
    absent = layer('mean_file: "absent"', tmp_path)
    with pytest.raises(SpecError, match="mean_file 'absent' does not exist"):
        Preprocessing.from_transform_param(absent)
    notes: list[str] = []
    assert Preprocessing.from_transform_param(absent, "RGB", notes).lacks_mean_image
    assert notes == ["mean_file 'absent' does not exist: the mean of the training set is used instead"]
    (tmp_path / "absent").write_text("no proto")
    with pytest.raises(ParseError, match=str(tmp_path / "absent")):
        Preprocessing.from_transform_param(absent)


@pytest.mark.parametrize("notes", [None, []])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('mean_file: "m" mean_value: 1', "sets both mean_file and mean_value"),
        ("force_color: true force_gray: true", "sets both force_color and force_gray"),
        ("crop_h: 3", "crop_h belongs to a fork"),
        ("resize_param { height: 3 }", "resize_param belongs to a fork"),
        ("rotate90n: true", "rotate90n belongs to a fork"),
        ("scale_factors: 0.5", "scale_factors belongs to a fork"),
        ("our_own_gamma: 2.2", "our_own_gamma belongs to a fork"),
    ],
)
def test_transforms_that_caffe_refuses_or_does_not_know(notes: list[str] | None, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=rf"net.prototxt:1: layer 'd' \(Data\): .*{message}"):
        Preprocessing.from_transform_param(layer(text), "RGB", notes)


def test_fields_of_forks_that_change_no_number_are_let_through() -> None:
    assert Preprocessing.from_transform_param(layer("use_gpu_transform: true random_seed: 3")) == Preprocessing(None)


def test_means_that_do_not_fit_the_pictures_name_the_layer() -> None:
    with pytest.raises(SpecError, match=r"layer 'd' \(Data\): transform_param: mean has 2 values; RGB takes 1 or 3"):
        Preprocessing.from_transform_param(layer("mean_value: 1 mean_value: 2"), "RGB")


# -- rules ----------------------------------------------------------------------------------------------------------


def test_shapes() -> None:
    assert Preprocessing(pad=2).shape((3, 9, 7)) == (3, 13, 11)
    assert Preprocessing(crop=4, resize=(8, 6)).shape((3, 90, 70)) == (3, 4, 4)
    assert Preprocessing(crop=(8, 5)).shape((3, 9, 7)) == (3, 8, 5)
    with pytest.raises(CaffePortError, match=r"crop 8 is larger than the image, 6x7$"):
        Preprocessing(crop=8).shape((3, 7, 6))
    with pytest.raises(CaffePortError, match="crop 12 is larger than the image, 9x11 with padding"):
        Preprocessing(pad=1, crop=12).shape((3, 9, 7))
    with pytest.raises(CaffePortError, match="crop 8x5 is larger than the image, 7x9"):
        Preprocessing(crop=(5, 8)).shape((3, 9, 7))


def test_for_the_input_of_a_net() -> None:
    plan = Preprocessing("BGR", scale=0.5)
    assert plan.for_input(3, 9, 7) == dataclasses.replace(plan, resize=(9, 7))
    assert plan.for_input(1, 9, 7).channel_order == "GRAY"
    imaged = plan.changed(mean=IMAGE)
    assert (imaged.for_input(3, 5, 4).resize, imaged.for_input(3, 5, 4).crop) == ((5, 4), 0)
    assert Preprocessing(pad=4, crop=32).for_input(3, 9, 7).shape((3, 90, 70)) == (3, 9, 7)
    assert (imaged.for_input(3, 2, 3).resize, imaged.for_input(3, 2, 3).crop) == ((5, 4), (2, 3))
    with pytest.raises(CaffePortError, match=r"mean image \(3, 5, 4\) does not match an input of \(3, 6, 4\)"):
        imaged.for_input(3, 6, 4)
    with pytest.raises(CaffePortError, match=r"mean image \(3, 5, 4\) does not match an input of \(1, 2, 3\)"):
        imaged.for_input(1, 2, 3)
    with pytest.raises(CaffePortError, match="the channel order is GRAY, but the net's input has 3 channels"):
        Preprocessing("GRAY").for_input(3, 9, 7)


def test_what_ssd_does_to_images() -> None:
    """Resizing and cropping are followed in every data layer; random changes only leave traces in training."""
    read = Preprocessing.from_transform_param
    plan = read(layer("resize_param { height: 9 width: 7 } crop_h: 5 crop_w: 4 mean_value: 7"))
    assert plan == Preprocessing(None, 7.0, crop=(5, 4), resize=(9, 7))
    training = layer(
        "resize_param { height: 9 width: 7 interp_mode: LINEAR interp_mode: CUBIC } distort_param { hue_prob: 1 }"
    )
    assert read(training, inference=True).resize == (9, 7)
    for text in (
        "distort_param { hue_prob: 1 }",
        "expand_param { prob: 1 }",
        "noise_param { inverse: true }",
        "crop_h: 5",
        "resize_param { height: 9 width: 7 interp_mode: CUBIC }",
        "resize_param { height: 9 width: 7 resize_mode: FIT_SMALL_SIZE }",
        "resize_param { height: 9 width: 7 } resize_param { height: 9 width: 7 }",
    ):
        with pytest.raises(SpecError, match="belongs to a fork of Caffe and is not supported"):
            read(layer(text))
