"""What a net is fed with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_port.definition.definition import Definition
from caffe_port.errors import CaffePortError, ParseError
from caffe_port.formats import caffemodel, wire
from caffe_port.verification import inputs
from caffe_port.verification.inputs import Preprocess, picture_input, prepare, random_input, read_mean

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
        from caffe_port.api import port

        plan = port(golden / f"layers/{name}.prototxt", keep_loss=True).net.plan
        arrays, words = inputs.random_inputs(plan.spec, plan.shapes, 0)
        integer = [b for b in arrays if "integers" in words[b]]
        assert len(integer) == 1, (name, blob, below)
        values = arrays[integer[0]]
        assert np.array_equal(values, np.round(values))
        assert values.min() >= 0


def test_prepare_by_hand() -> None:
    picture = np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8)  # (1, 2, 3)
    x = prepare(picture, (1, 2), Preprocess([1, 2, 3], 0.5))
    assert x.dtype == np.float32
    assert x.tolist() == [[[4.5, 19.5]], [[9.0, 24.0]], [[13.5, 28.5]]]
    assert prepare(picture, (1, 2), Preprocess([10.0]))[:, 0, 0].tolist() == [0, 10, 20]
    assert prepare(picture, (1, 2), Preprocess())[:, 0, 1].tolist() == [40, 50, 60]


def test_a_greater_mean_image_is_cut_at_the_centre() -> None:
    picture = np.arange(5 * 6).reshape(5, 6, 1).astype(np.uint8)
    mean = np.zeros((1, 5, 6), np.float32)
    mean[0, 2, 3] = 1
    x = prepare(picture, (3, 2), Preprocess(mean))
    assert x.tolist() == [[[8, 9], [14, 14], [20, 21]]]  # rows 1 to 3, columns 2 and 3; 15 - 1 = 14
    with pytest.raises(CaffePortError, match="does not fit"):
        prepare(picture, (9, 2), Preprocess(mean))
    with pytest.raises(CaffePortError, match="2 mean values for 1 channels"):
        prepare(picture, (5, 6), Preprocess([1, 2]))


def test_channel_order(tmp_path: Path) -> None:
    bgr = np.zeros((4, 5, 3), np.uint8)
    bgr[:] = (1, 2, 3)
    cv2.imwrite(str(tmp_path / "p.png"), bgr)
    assert picture_input(tmp_path / "p.png", (2, 3, 4, 5), Preprocess())[1, :, 0, 0].tolist() == [1, 2, 3]
    rgb = picture_input(tmp_path / "p.png", (2, 3, 4, 5), Preprocess(channel_order="RGB"))
    assert rgb.shape == (2, 3, 4, 5)
    assert rgb[0, :, 0, 0].tolist() == [3, 2, 1]
    assert picture_input(tmp_path / "p.png", (1, 1, 8, 9), Preprocess()).shape == (1, 1, 8, 9)


def test_no_pictures(tmp_path: Path) -> None:
    for name, content in {"empty.png": b"", "text.png": b"layer {}", "cut.png": b"\x89PNG\r\n\x1a\n\0\0"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ParseError, match="cannot be decoded as an image"):
            picture_input(tmp_path / name, (1, 3, 4, 5), Preprocess())
    with pytest.raises(CaffePortError, match="1 or 3 channels"):
        picture_input(tmp_path / "text.png", (1, 4, 4, 5), Preprocess())


def test_no_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object))
    (tmp_path / "t.npy").write_text("1 2 3")
    for name in ("o.npy", "t.npy"):
        with pytest.raises(ParseError, match=r"is not an \.npy array"):
            inputs.read_npy(tmp_path / name)
    np.save(tmp_path / "s.npy", np.array(["a"]))
    with pytest.raises(ParseError, match="holds no numbers"):
        inputs.read_npy(tmp_path / "s.npy")


def test_means(tmp_path: Path) -> None:
    assert read_mean("104,117.5,-1") == [104, 117.5, -1]
    image = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    np.save(tmp_path / "m.npy", image[None])
    assert np.array_equal(read_mean(str(tmp_path / "m.npy")), image)
    (tmp_path / "m.binaryproto").write_bytes(b"".join(wire.serialize(caffemodel.blob_message(image[None]))))
    assert np.array_equal(read_mean(str(tmp_path / "m.binaryproto")), image)
    with pytest.raises(CaffePortError, match="cannot be read"):
        read_mean("104;117")


def test_batch_axis(golden: Path) -> None:
    spec = Definition.read(golden / "layers/relu_default.prototxt").spec()
    assert inputs.with_batch_axis(np.zeros((6, 7, 5)), spec, "x").shape == (1, 6, 7, 5)
    assert inputs.with_batch_axis(np.zeros((3, 6, 7, 5)), spec, "x").shape == (3, 6, 7, 5)
