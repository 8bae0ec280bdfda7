"""What a net is fed with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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
        from caffe_port.api import port

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
