"""caffe.io. What images become was made by Caffe's own io with scikit-image 0.13."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from caffe_port.errors import DependencyError
from caffe_port.pycaffe import io
from caffe_port.pycaffe.proto import caffe_pb2
from caffe_port.typing import Array

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def resized(golden: Path) -> dict[str, Array]:
    return dict(np.load(golden / "pycaffe" / "resize.npz"))


def test_images_are_resized_as_in_caffes_time(resized: dict[str, Array]) -> None:
    cases = [name for name in resized if name.startswith("resized")]
    assert len(cases) == 19
    for name in cases:
        channels, height, width, order = map(int, name.split("_")[1:])
        made = io.resize_image(resized[f"image_{channels}"], (height, width), interp_order=order)
        assert made.dtype == np.float32
        np.testing.assert_allclose(made, resized[name], rtol=1e-6, err_msg=name)


def test_scripts_call_resize_of_io(resized: dict[str, Array]) -> None:
    """It resizes as resize_image does, which scales an image from 0 to 1 first."""
    image = resized["image_3"]
    unit = (image - image.min()) / (image.max() - image.min())
    wanted = io.resize_image(unit, (5, 9))
    made = io.resize(unit, (5, 9))
    assert made.dtype == np.float64
    np.testing.assert_allclose(made, wanted, atol=1e-6)
    np.testing.assert_array_equal(io.resize(unit, [5, 9, 3]), made)
    np.testing.assert_allclose(io.resize(unit[:, :, 0], (5, 9)), io.resize(unit[:, :, :1], (5, 9))[:, :, 0])
    assert io.resize(unit[:, :, 0], (5, 9, 1)).shape == (5, 9, 1)
    numbers = np.array([[0, 255], [255, 0]], np.uint8)
    np.testing.assert_allclose(io.resize(numbers, (1, 1)), [[0.5]])
    np.testing.assert_allclose(io.resize(numbers, (1, 1), preserve_range=True), [[127.5]])
    with pytest.raises(ValueError, match="too few lengths"):
        io.resize(unit, (5,))


def test_resize_changes_the_number_of_channels() -> None:
    """All axes count alike, as scripts that ask for (C, H, W) found."""
    pytest.importorskip("scipy")
    image = np.random.default_rng(1).random((6, 8, 3))
    assert io.resize(image, (3, 4, 6)).shape == (3, 4, 6)
    ones = np.ones((4, 4, 4))
    np.testing.assert_allclose(io.resize(ones, (4, 4, 2)), np.ones((4, 4, 2)))
    np.testing.assert_allclose(io.resize(image, (3, 4, 1))[1, 1, 0], image[2:4, 2:4, 1].mean())


def test_scipy_and_scikit_image_by_the_names_of_io() -> None:
    assert io.zoom is pytest.importorskip("scipy.ndimage").zoom
    try:
        import skimage
    except ImportError:
        with pytest.raises(DependencyError, match="scikit-image"):
            _ = io.skimage
    else:
        assert io.skimage is skimage
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = io.nothing


def test_the_border_of_a_greater_image_is_mixed_with_its_minimum() -> None:
    image = np.full((4, 6, 3), 8.0)
    image[1, 2] = 2
    assert io.resize_image(image, (8, 12))[0, 0] == pytest.approx(2 + 6 * 0.75 * 0.75)


def test_a_smaller_image_is_not_blurred() -> None:
    image = np.zeros((9, 9, 1), np.float32)
    image[4, 4] = 1
    assert io.resize_image(image, (3, 3)).ravel().tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0]


def test_other_numbers_of_channels_go_the_way_of_scipy(resized: dict[str, Array]) -> None:
    shorter = io.resize_image(resized["column"], (227, 2))
    np.testing.assert_allclose(shorter, resized["shorter_column"], rtol=1e-6)
    assert not shorter[-1].any()  # rounded beyond the last pixel
    more = io.resize_image(resized["bytes"], (9, 4))
    assert np.array_equal(more, resized["more_bytes"])
    assert np.array_equal(more, more.astype(int))


def test_a_constant_image_stays_constant() -> None:
    made = io.resize_image(np.full((4, 5, 3), 7.5), (3, 2))
    assert made.shape == (3, 2, 3)
    assert (made == 7.5).all()


@pytest.mark.parametrize("channels", [3, 2])
def test_splines_require_scipy(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy")
    image = RNG.random((6, 7, channels))
    assert io.resize_image(image, (4, 5), interp_order=2).shape == (4, 5, channels)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(DependencyError, match="interp_order=2 requires SciPy"):
        io.resize_image(image, (4, 5), interp_order=2)


def test_oversample() -> None:
    images = [RNG.random((7, 9, 3)).astype(np.float32) for _ in range(2)]
    crops = io.oversample(images, (4, 5))
    assert crops.shape == (20, 4, 5, 3)
    for image, own in zip(images, (crops[:10], crops[10:]), strict=True):
        corners = image[:4, :5], image[:4, 4:], image[3:, :5], image[3:, 4:], image[1:5, 2:7]
        assert np.array_equal(own[:5], np.stack(corners))
        assert np.array_equal(own[5:], own[:5, :, ::-1])


# -- files ---------------------------------------------------------------------------------------------------------


def saved(path: Path, image: Array, mode: str = "", **options: Any) -> str:
    picture = Image.fromarray(image)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return str(path)


COLORS = RNG.integers(0, 256, (5, 7, 3)).astype(np.uint8)
GRAY = RNG.integers(0, 256, (5, 7)).astype(np.uint8)


def test_load_image_color(tmp_path: Path) -> None:
    image = io.load_image(saved(tmp_path / "a.png", COLORS))
    assert image.dtype == np.float32
    assert np.array_equal(image, (COLORS / 255).astype(np.float32))
    assert np.array_equal(io.load_image(saved(tmp_path / "b.png", COLORS, "RGBA")), image)
    gray = io.load_image(saved(tmp_path / "a.png", COLORS), color=False)
    assert gray.shape == (5, 7, 1)
    np.testing.assert_allclose(gray[..., 0], image @ [0.2125, 0.7154, 0.0721], rtol=1e-6)


def test_load_image_gray(tmp_path: Path) -> None:
    wanted = (GRAY / 255).astype(np.float32)
    path = saved(tmp_path / "a.png", GRAY)
    assert np.array_equal(io.load_image(path, color=False), wanted[..., None])
    assert np.array_equal(io.load_image(path), np.dstack([wanted] * 3))
    assert np.array_equal(io.load_image(saved(tmp_path / "la.png", GRAY, "LA")), np.dstack([wanted] * 3))
    sixteen = saved(tmp_path / "16.png", GRAY.astype(np.uint16) * 257)
    assert np.array_equal(io.load_image(sixteen, color=False), wanted[..., None])
    bits = io.load_image(saved(tmp_path / "bits.png", GRAY > 99), color=False)
    assert np.array_equal(bits[..., 0], (GRAY > 99).astype(np.float32))


def test_load_image_palette(tmp_path: Path) -> None:
    few = Image.fromarray(COLORS).quantize(9)
    few.save(tmp_path / "few.png")
    assert np.array_equal(io.load_image(tmp_path / "few.png"), (np.array(few.convert("RGB")) / 255).astype(np.float32))
    Image.fromarray(GRAY).quantize(200).save(tmp_path / "gray.png")
    assert io.load_image(tmp_path / "gray.png", color=False).shape == (5, 7, 1)
    few.save(tmp_path / "clear.png", transparency=2)
    assert io.load_image(tmp_path / "clear.png").shape == (5, 7, 3)


def test_load_image_ignores_the_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert io.load_image(saved(tmp_path / "a.png", COLORS, exif=exif)).shape == (5, 7, 3)


def test_load_image_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        io.load_image("nosuch.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(OSError, match="cannot identify"):
        io.load_image(tmp_path / "text.png")
    with pytest.raises(ValueError, match=r"download http://host/a.png first"):
        io.load_image("http://host/a.png")
    Image.fromarray(np.full((2, 3), 1.5, np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match="between -1 and 1"):
        io.load_image(tmp_path / "f.tif")
    monkeypatch.setattr(io, "MAX_PIXELS", 34)
    with pytest.raises(ValueError, match="7 x 5 pixels, more than 34"):
        io.load_image(saved(tmp_path / "a.png", COLORS))


# -- Transformer ---------------------------------------------------------------------------------------------------


@pytest.fixture
def transformer() -> io.Transformer:
    return io.Transformer({"data": (2, 3, 5, 7), "other": (1, 1, 4, 6)})


def test_preprocess_and_back(transformer: io.Transformer) -> None:
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_channel_swap("data", (2, 1, 0))
    transformer.set_raw_scale("data", 255)
    transformer.set_mean("data", np.array([104.0, 117, 123]))
    transformer.set_input_scale("data", 0.5)
    image = RNG.random((5, 7, 3)).astype(np.float32)
    made = transformer.preprocess("data", image)
    wanted = (image.transpose(2, 0, 1)[::-1] * 255 - np.array([104, 117, 123])[:, None, None]) * 0.5
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, wanted, rtol=1e-5)
    np.testing.assert_allclose(transformer.deprocess("data", made[None]), image, rtol=1e-5)


def test_preprocess_resizes(transformer: io.Transformer) -> None:
    image = RNG.random((9, 8, 3)).astype(np.float32)
    assert np.array_equal(transformer.preprocess("data", image), io.resize_image(image, (5, 7)))


def test_preprocess_changes_a_float32_image_as_pycaffe_does(transformer: io.Transformer) -> None:
    transformer.set_raw_scale("data", 2)
    image = np.ones((5, 7, 3), np.float32)
    assert np.shares_memory(transformer.preprocess("data", image), image)
    assert (image == 2).all()


def test_set_mean(transformer: io.Transformer) -> None:
    exact = RNG.random((3, 5, 7))
    transformer.set_mean("data", exact)
    assert transformer.mean["data"] is exact
    larger = RNG.random((3, 8, 9)) * 255
    transformer.set_mean("data", larger)
    wanted = io.resize_image(larger.transpose(1, 2, 0), (5, 7)).transpose(2, 0, 1)
    np.testing.assert_allclose(transformer.mean["data"], wanted, rtol=1e-4)
    assert transformer.mean["data"].dtype == np.float32
    transformer.set_mean("data", np.full((3, 2, 2), 7.0))
    assert (transformer.mean["data"] == 7).all()
    gray = RNG.random((4, 6))
    transformer.set_mean("other", gray)
    assert transformer.mean["other"] is gray


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda t: t.set_mean("data", np.zeros(2)), "Mean channels incompatible with input."),
        (lambda t: t.set_mean("data", np.zeros((1, 3, 5, 7))), "Mean shape invalid"),
        (lambda t: t.set_transpose("data", (1, 0)), "Transpose order needs to have the same number of dimensions"),
        (lambda t: t.set_channel_swap("data", (1, 0)), "Channel swap needs to have the same number of dimensions"),
        (lambda t: t.set_raw_scale("nosuch", 1), "nosuch is not one of the net inputs"),
        (lambda t: t.preprocess("nosuch", np.zeros((5, 7, 3))), "nosuch is not one of the net inputs"),
    ],
)
def test_what_the_transformer_refuses(transformer: io.Transformer, call: Any, error: str) -> None:
    with pytest.raises(Exception, match=error):
        call(transformer)


# -- BlobProto and Datum -------------------------------------------------------------------------------------------


def test_blobproto() -> None:
    array, diff = RNG.standard_normal((2, 3, 5)), np.arange(30).reshape(2, 3, 5)
    blob = io.array_to_blobproto(array, diff)
    assert list(blob.shape.dim) == [2, 3, 5]
    assert np.array_equal(io.blobproto_to_array(blob), array.astype(np.float32).astype(float))
    assert np.array_equal(io.blobproto_to_array(blob, return_diff=True), diff)
    assert io.blobproto_to_array(blob).dtype == np.float64
    assert list(blob.data) == array.astype(np.float32).ravel().tolist()


def test_blobproto_of_2014() -> None:
    blob = caffe_pb2.BlobProto(data=range(6), num=1, channels=1, height=2, width=3)
    assert io.blobproto_to_array(blob).tolist() == [[[[0, 1, 2], [3, 4, 5]]]]


def test_blobproto_without_a_shape() -> None:
    assert io.blobproto_to_array(caffe_pb2.BlobProto(data=[123])) == 123
    with pytest.raises(ValueError, match="cannot reshape"):
        io.blobproto_to_array(caffe_pb2.BlobProto(data=[1, 2]))


def test_a_double_beyond_float32_is_infinite() -> None:
    assert io.blobproto_to_array(io.array_to_blobproto(np.array([1e300]))) == np.inf


def test_arraylist() -> None:
    arrays = [RNG.standard_normal((2, 3)).astype(np.float32), np.ones(5)]
    made = io.blobprotovector_str_to_arraylist(io.arraylist_to_blobprotovector_str(arrays))
    assert [a.tolist() for a in made] == [a.tolist() for a in arrays]


def test_datum() -> None:
    image = RNG.integers(0, 256, (3, 5, 7)).astype(np.uint8)
    datum = io.array_to_datum(image, 4)
    assert (datum.channels, datum.height, datum.width, datum.label) == (3, 5, 7, 4)
    assert datum.data == image.tobytes()
    made = io.datum_to_array(datum)
    assert np.array_equal(made, image)
    made += 1  # a copy, not the datum's bytes
    floats = io.array_to_datum(image.astype(np.uint16))
    assert not floats.HasField("label")
    assert np.array_equal(io.datum_to_array(floats), image)
    assert io.datum_to_array(floats).dtype == np.float64
    with pytest.raises(ValueError, match="Incorrect array shape"):
        io.array_to_datum(image[0])
