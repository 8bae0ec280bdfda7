"""Classifier and Detector, on a net that keeps its input."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import caffe_port.pycaffe as caffe
from caffe_port.errors import CaffePortError
from caffe_port.typing import Array

RNG = np.random.default_rng(0)
PREPROCESSING = {"mean": np.array([104.0, 117, 123]), "raw_scale": 255, "channel_swap": (2, 1, 0), "input_scale": 0.5}

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 3 dim: 5 dim: 7 } } }
layer { name: "all" type: "Flatten" bottom: "data" top: "all" }
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    net = tmp_path / "net.prototxt"
    net.write_text(NET)
    weights = tmp_path / "net.caffemodel"
    caffe.Net(str(net), caffe.TEST).save(str(weights))
    return str(net), str(weights)


def fed(image: Array) -> Array:
    """What PREPROCESSING makes of an image of the net's size."""
    return (image.transpose(2, 0, 1)[::-1] * 255 - PREPROCESSING["mean"][:, None, None]) * 0.5


def test_predict_the_center(files: tuple[str, str]) -> None:
    net = caffe.Classifier(*files, image_dims=(9, 10), **PREPROCESSING)
    images = [RNG.random((9, 10, 3)).astype(np.float32) for _ in range(5)]
    made = net.predict(images, oversample=False)
    wanted = [fed(image[2:7, 1:8]).ravel() for image in images]
    np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-3)


def test_predict_the_mean_of_crops(files: tuple[str, str]) -> None:
    net = caffe.Classifier(*files, image_dims=(9, 10), **PREPROCESSING)
    image = RNG.random((9, 10, 3)).astype(np.float32)
    crops = caffe.io.oversample([image], (5, 7))
    wanted = np.mean([fed(crop) for crop in crops], 0).ravel()
    np.testing.assert_allclose(net.predict([image]), [wanted], rtol=1e-4, atol=1e-3)


def test_images_are_resized_to_the_net(files: tuple[str, str]) -> None:
    image = RNG.random((11, 8, 3)).astype(np.float32)
    made = caffe.Classifier(*files).predict([image], oversample=False)
    wanted = caffe.io.resize_image(image, (5, 7)).transpose(2, 0, 1).ravel()
    np.testing.assert_allclose(made, [wanted], rtol=1e-5)


def test_detect_windows(files: tuple[str, str], tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (2, 13, 12, 3)).astype(np.uint8)
    names = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image).save(name)
    net = caffe.Detector(*files, **PREPROCESSING)
    windows = [(names[0], [(1, 2, 6, 9), (0, 0, 13, 12)]), (names[1], [np.array([4, 3, 11, 8])])]
    found = net.detect_windows(windows)
    assert [one["filename"] for one in found] == [names[0], names[0], names[1]]
    assert found[1]["window"] == (0, 0, 13, 12)
    np.testing.assert_allclose(found[0]["prediction"], fed(pixels[0, 1:6, 2:9] / 255).ravel(), rtol=1e-4, atol=1e-3)
    crop = caffe.io.resize_image((pixels[1, 4:11, 3:8] / 255).astype(np.float32), (5, 7))
    np.testing.assert_allclose(found[2]["prediction"], fed(crop).ravel(), rtol=1e-4, atol=1e-3)


def test_the_context_of_a_window(tmp_path: Path) -> None:
    """Of a square net: the window and twice its pad around it, with the mean outside of the image."""
    net = tmp_path / "net.prototxt"
    net.write_text(NET.replace("dim: 5 dim: 7", "dim: 8 dim: 8"))
    weights = tmp_path / "net.caffemodel"
    caffe.Net(str(net), caffe.TEST).save(str(weights))
    detector = caffe.Detector(str(net), str(weights), mean=np.full((3, 8, 8), 51.0), raw_scale=255, context_pad=2)
    image = RNG.random((9, 10, 3)).astype(np.float32)
    crop = detector.crop(image, np.array([0, 4, 3, 7]))
    assert crop.shape == (8, 8, 3)
    np.testing.assert_allclose(crop[:2], 51 / 255, rtol=1e-6)
    np.testing.assert_allclose(crop[2:], image[0:6, 2:10], rtol=1e-5)
    assert np.array_equal(caffe.Detector(str(net), str(weights)).crop(image, (0, 4, 3, 7)), image[0:3, 4:7])


def test_selective_search_is_not_offered(files: tuple[str, str]) -> None:
    with pytest.raises(CaffePortError, match="detect_selective_search is not offered"):
        caffe.Detector(*files).detect_selective_search(["a.png"])
