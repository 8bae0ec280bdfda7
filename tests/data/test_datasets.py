"""Data sets by name, as arrays, in folders."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_port.data import datasets
from caffe_port.data.datasets import ImageSet
from caffe_port.data.prepare import Preprocessor
from caffe_port.data.preprocessing import MEAN_IMAGE, Preprocessing
from caffe_port.errors import CaffePortError

RNG = np.random.default_rng(5)
PICTURES = RNG.integers(0, 256, (6, 3, 9, 7), dtype=np.uint8)


def pictures(gray: bool = False) -> ImageSet:
    return datasets.from_arrays(PICTURES[:, :1] if gray else PICTURES, np.arange(6), "made up")


def idx(folder: Path, stem: str, images: np.ndarray, labels: np.ndarray, packed: bool) -> None:
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
        path = folder / f"{stem}-{kind}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(content) if packed else content)


def test_the_mean_image_follows_the_channel_order() -> None:
    images = pictures()
    np.testing.assert_allclose(datasets.mean_image(images, batch_size=4).numpy(), PICTURES.mean(0), rtol=1e-6)
    plan = datasets.with_mean_image(Preprocessing("BGR", MEAN_IMAGE), images)
    assert not plan.lacks_mean_image
    got = Preprocessor(plan, "RGB")(images.images)
    np.testing.assert_allclose(got.numpy(), (PICTURES - PICTURES.mean(0))[:, ::-1], atol=1e-4)
    with pytest.raises(CaffePortError, match="the images are GRAY, but the net expects RGB"):
        datasets.with_mean_image(Preprocessing(mean=MEAN_IMAGE), pictures(gray=True))


# -- sets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_is_read_from_a_folder_of_its_idx_files(tmp_path: Path, packed: bool) -> None:
    for stem in ("train", "t10k"):
        idx(tmp_path, stem, PICTURES[:, 0], np.arange(6, dtype=np.uint8), packed)
    got = datasets.load("mnist", "test", tmp_path)
    assert got.shape == (1, 9, 7)
    assert got.channel_order == "GRAY"
    np.testing.assert_array_equal(got.images.numpy(), PICTURES[:, :1])
    assert got.labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_mnist_is_read_from_torchvisions_folder(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem in ("train", "t10k"):
        idx(raw, stem, PICTURES[:, 0], np.arange(6, dtype=np.uint8), packed=False)
    got = datasets.load("MNIST", "train", tmp_path)
    np.testing.assert_array_equal(got.images.numpy(), PICTURES[:, :1])


def test_a_damaged_idx_file_is_refused(tmp_path: Path) -> None:
    idx(tmp_path, "t10k", PICTURES[:, 0], np.arange(6, dtype=np.uint8), packed=False)
    path = tmp_path / "t10k-images-idx3-ubyte"
    whole = path.read_bytes()
    for content, message in [
        (whole[:-1], "378 bytes, but contains 377"),
        (whole[:10], "is not a 3-dimensional idx file"),
        (b"\0\0\x0d\x03" + whole[4:], "is not a 3-dimensional idx file"),
    ]:
        path.write_bytes(content)
        with pytest.raises(CaffePortError, match=message):
            datasets.load("mnist", "test", tmp_path)
    path.unlink()
    (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(whole)[:-9])
    with pytest.raises(CaffePortError, match="cannot be read"):
        datasets.load("mnist", "test", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_a_set_that_is_not_there_is_not_fetched(tmp_path: Path, name: str) -> None:
    with pytest.raises(CaffePortError, match="--root DIR, or download it with --download"):
        datasets.load(name, "test", tmp_path)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("keys", ["x_{} y_{}", "{}_images {}_labels", "images labels"])
def test_npz(tmp_path: Path, keys: str) -> None:
    images, labels = keys.format("test", "test").split()
    np.savez(tmp_path / "set.npz", **{images: PICTURES.transpose(0, 2, 3, 1), labels: np.arange(6)})
    got = datasets.load(tmp_path / "set.npz", "test")
    np.testing.assert_array_equal(got.images.numpy(), PICTURES)
    assert got.labels.dtype == torch.int64


def test_npz_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, pictures=PICTURES)
    with pytest.raises(CaffePortError, match="contains pictures; expected x_test and y_test, or images and labels"):
        datasets.load(path)
    np.savez(path, images=np.array([{}], object), labels=np.zeros(1))
    with pytest.raises(CaffePortError, match="contains Python objects"):
        datasets.load(path)
    path.write_bytes(b"PK\3\4 not a zip")
    with pytest.raises(CaffePortError, match="is not a data set"):
        datasets.load(path)
    with pytest.raises(CaffePortError, match="cannot be read"):
        datasets.load(tmp_path / "absent.npz")


def test_folder_of_class_folders(tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "val"):
        for k, name in enumerate(("cat", "dog")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            Image.fromarray(PICTURES[k].transpose(1, 2, 0)).save(folder / "1.png")
    got = datasets.load(tmp_path, "test")
    np.testing.assert_array_equal(got.images.numpy(), PICTURES[:2])
    assert got.classes == ("cat", "dog")
    Image.fromarray(PICTURES[0, 0]).resize((3, 4)).save(tmp_path / "val" / "dog" / "2.png")
    with pytest.raises(CaffePortError, match="different sizes: 7x9 and 3x4"):
        datasets.load(tmp_path, "test")
    (tmp_path / "val" / "dog" / "2.png").write_bytes(b"no picture")
    with pytest.raises(CaffePortError, match=r"2\.png: cannot be read as an image"):
        datasets.load(tmp_path, "test")


def test_folders_that_hold_no_set(tmp_path: Path) -> None:
    with pytest.raises(CaffePortError, match="is not a folder of class folders"):
        datasets.load(tmp_path, "test")
    (tmp_path / "train").mkdir()
    with pytest.raises(CaffePortError, match="has no folder 'test'"):
        datasets.load(tmp_path, "test")
    with pytest.raises(CaffePortError, match="Did you mean 'cifar10'"):
        datasets.load("cifar1")
    with pytest.raises(CaffePortError, match="neither train nor test"):
        datasets.load("mnist", "val")


def test_arrays_that_are_no_set() -> None:
    labels = np.arange(6)
    with pytest.raises(CaffePortError, match=r"expected \(N, H, W\), \(N, H, W, C\) or"):
        datasets.from_arrays(PICTURES[:, :2], labels, "x")
    with pytest.raises(CaffePortError, match="images of a numeric type"):
        datasets.from_arrays(PICTURES.astype(str), labels, "x")
    with pytest.raises(CaffePortError, match="expected integer labels"):
        datasets.from_arrays(PICTURES, labels + 0.5, "x")
    with pytest.raises(CaffePortError, match=r"got \(6, 3, 9, 7\) and \(5,\)"):
        datasets.from_arrays(PICTURES, labels[:5], "x")
    with pytest.raises(CaffePortError, match="label -1 is negative"):
        datasets.from_arrays(PICTURES, labels - 1, "x")
    with pytest.raises(CaffePortError, match="contains no images"):
        datasets.from_arrays(PICTURES[:0], labels[:0], "x")
    assert datasets.from_arrays(PICTURES.astype(np.int32), labels, "x").images.dtype == torch.uint8
    assert datasets.from_arrays(PICTURES.astype(np.float64), labels, "x").images.dtype == torch.float32


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_what_torchvision_gives_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from torchvision import datasets as theirs

    asked: list[dict[str, object]] = []

    class Stored:
        classes = tuple("abcdef")
        data = PICTURES if name == "svhn" else PICTURES.transpose(0, 2, 3, 1)
        labels = np.arange(6)
        targets = tuple(range(6))

        def __init__(self, **options: object) -> None:
            asked.append(options)

    monkeypatch.setattr(theirs, datasets.TORCHVISION[name], Stored)
    got = datasets.load(name, "train", tmp_path)
    np.testing.assert_array_equal(got.images.numpy(), PICTURES)
    assert got.labels.tolist() == [*range(6)]
    assert len(got.classes) == (10 if name == "svhn" else 6)
    which = {"split": "train"} if name == "svhn" else {"train": True}
    assert asked == [{"root": str(tmp_path), "download": False, **which}]


def test_a_package_that_torchvision_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets as theirs

    def lacking(**options: object) -> None:
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr(theirs, "SVHN", lacking)
    with pytest.raises(CaffePortError, match="svhn requires scipy"):
        datasets.load("svhn", "test", tmp_path)
