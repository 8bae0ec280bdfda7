"""Accuracies of the real weights on the real data, and the arithmetic around them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import packed_cifar
import pytest
import torch
from torch import Tensor, nn

from caffe_port import devices
from caffe_port.data import datasets
from caffe_port.data.datasets import ImageSet
from caffe_port.data.prepare import Preprocessor
from caffe_port.data.preprocessing import MEAN_IMAGE, Preprocessing
from caffe_port.errors import CaffePortError
from caffe_port.evaluation import evaluate
from caffe_port.formats import caffemodel
from caffe_port.formats.message import Message

MNIST_WEIGHTS = "models/simplenet/mnist_9972/weights.caffemodel"
LENET = "models/zoo/caffe2014_lenet_v1/lenet_iter_10000.caffemodel"
QUICK = "models/zoo/caffe2014_cifar10_v1/cifar10_quick_iter_5000.caffemodel"
FULL = "models/zoo/caffe2014_cifar10_v1/cifar10_full_iter_70000.caffemodel"


# -- the real thing -------------------------------------------------------------------------------------------------


def test_the_slim_mnist_net(shared: Path) -> None:
    """All 10,000 images are evaluated in test_reproduce.py: 9,972 are right."""
    seen: list[tuple[int, int]] = []
    run = evaluate.evaluate_files(
        shared / MNIST_WEIGHTS,
        data="mnist",
        root=shared / "data/mnist",
        limit=1000,
        progress=lambda *now: seen.append(now),
    )
    assert (run.result.correct, run.result.total) == (997, 1000)
    assert run.result.accuracy == 99.7
    assert run.origin == "registry entry 'mnist-slim-310k'"
    assert run.entry is not None
    assert run.result.verdict(run.entry.reported[0].accuracy) == "equal"
    assert seen[-1] == (1000, 1000)
    assert sum(total for _, _, total in run.result.per_class()) == 1000


def test_lenet_of_2014(shared: Path) -> None:
    run = evaluate.evaluate_files(shared / LENET, data="mnist", root=shared / "data/mnist")
    assert abs(run.result.accuracy - 99.05) <= 0.3


@pytest.fixture(scope="module")
def cifar10(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed CIFAR-10 as an .npz."""
    path = tmp_path_factory.mktemp("cifar10") / "cifar10.npz"
    arrays: dict[str, np.ndarray] = {}
    for split in datasets.SPLITS:
        pictures = packed_cifar.load(shared / "data/cifar10", split)
        arrays[f"x_{split}"], arrays[f"y_{split}"] = pictures.images.numpy(), pictures.labels.numpy()
    np.savez(path, classes=pictures.classes, **arrays)
    return path


@pytest.mark.parametrize(("weights", "right"), [(QUICK, 1651), (FULL, 1736)])
def test_cifar10_of_2014(shared: Path, cifar10: Path, weights: str, right: int) -> None:
    run = evaluate.evaluate_files(shared / weights, data=cifar10, limit=2000)
    assert abs(run.result.correct - right) <= 2  # of airplanes and automobiles; docs/results has all 10,000
    assert run.preprocessing.mean == MEAN_IMAGE
    assert run.result.classes[0] == "airplane"


# -- who says how pictures are prepared -----------------------------------------------------------------------------

NET = """
layer {{ name: "data" type: "Data" top: "data" top: "label" {transform} data_param {{ source: "x" batch_size: 2 }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param {{ num_output: {classes} }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" }}
"""


def files(folder: Path, transform: str = "", classes: int = 6, size: int = 3 * 4 * 5) -> tuple[Path, Path, Path]:
    """(weights, prototxt, npz): a net that has not seen the data."""
    rng = np.random.default_rng(1)
    prototxt, weights, pictures = folder / "net.prototxt", folder / "net.caffemodel", folder / "set.npz"
    prototxt.write_text(NET.format(transform=transform and f"transform_param {{ {transform} }}", classes=classes))
    blobs = [rng.standard_normal((classes, size), np.float32), np.zeros(classes, np.float32)]
    net = Message("NetParameter", layer=[Message("LayerParameter", name="ip", type="InnerProduct")])
    caffemodel.write(weights, net, {"ip": blobs})
    x = rng.integers(0, 256, (7, 3, 4, 5), dtype=np.uint8)
    np.savez(pictures, x_train=x, y_train=np.arange(7) % 6, x_test=x[::-1], y_test=np.arange(7) % 6)
    return weights, prototxt, pictures


def test_without_any_word_pictures_are_taken_as_they_are(tmp_path: Path) -> None:
    weights, prototxt, pictures = files(tmp_path)
    run = evaluate.evaluate_files(weights, prototxt, data=pictures)
    assert run.preprocessing == Preprocessing()
    assert run.origin == "none"
    assert "images are used as they are" in run.notes[0]


def test_the_nets_own_transform_param_is_used(tmp_path: Path) -> None:
    weights, prototxt, pictures = files(
        tmp_path, "scale: 0.5 mean_value: 1 mean_value: 2 mean_value: 3 crop_size: 4", size=48
    )
    run = evaluate.evaluate_files(weights, prototxt, data=pictures)
    assert run.preprocessing == Preprocessing("RGB", (1.0, 2.0, 3.0), 0.5, crop=4)
    assert run.origin == "transform_param of layer 'data'"


def test_a_mean_file_is_found_beside_the_net_or_computed(tmp_path: Path) -> None:
    weights, prototxt, pictures = files(tmp_path, 'mean_file: "elsewhere/mean.binaryproto"')
    run = evaluate.evaluate_files(weights, prototxt, data=pictures)
    assert "the mean of the training set is used instead" in run.notes[0]
    from caffe_port.formats import wire

    with np.load(pictures) as file:
        mean = file["x_train"].mean(0, keepdims=True).astype(np.float32)
    path = tmp_path / "mean.binaryproto"
    path.write_bytes(b"".join(bytes(c) for c in wire.serialize(caffemodel.blob_message(mean))))
    again = evaluate.evaluate_files(weights, prototxt, data=pictures)
    assert not again.notes
    np.testing.assert_array_equal(again.result.confusion, run.result.confusion)
    given = evaluate.evaluate_files(weights, prototxt, data=pictures, mean=path)
    np.testing.assert_array_equal(given.result.confusion, run.result.confusion)
    np.save(tmp_path / "mean.npy", mean)
    array = evaluate.evaluate_files(weights, prototxt, data=pictures, mean=str(tmp_path / "mean.npy"))
    np.testing.assert_array_equal(array.result.confusion, run.result.confusion)


@pytest.mark.parametrize("transform", ["crop_h: 4", "bgr2rgb: true", 'mean_file: "m" mean_value: 3'])
def test_a_transform_param_that_caffe_would_not_follow_is_refused(tmp_path: Path, transform: str) -> None:
    weights, prototxt, pictures = files(tmp_path, transform)
    with pytest.raises(CaffePortError, match=r"net.prototxt:2: layer 'data' \(Data\): "):
        evaluate.evaluate_files(weights, prototxt, data=pictures)


def test_the_caller_has_the_last_word(tmp_path: Path) -> None:
    weights, prototxt, pictures = files(tmp_path, "scale: 0.5")
    run = evaluate.evaluate_files(
        weights,
        prototxt,
        data=pictures,
        mean=[3.0],
        std=[1.0, 2.0, 4.0],
        scale=2.0,
        channel_order="bgr",
        tta="mirror",
        limit=5,
    )
    assert run.preprocessing == Preprocessing("BGR", 3.0, 2.0, (1.0, 2.0, 4.0), mirror_test=True)
    assert run.origin.endswith("overridden: std, scale, channel_order, mean, mirror_test")
    assert run.result.total == 5


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    weights, prototxt, pictures = files(tmp_path, classes=5)
    with pytest.raises(CaffePortError, match="label 5 is out of range: the net has 5 classes"):
        evaluate.evaluate_files(weights, prototxt, data=pictures)
    with pytest.raises(CaffePortError, match="tta 'both'"):
        evaluate.evaluate_files(weights, prototxt, data=pictures, tta="both")
    with pytest.raises(CaffePortError, match="device 'gpu' cannot be used"):
        evaluate.evaluate_files(weights, prototxt, data=pictures, device="gpu")
    weights, prototxt, pictures = files(tmp_path, size=10)
    with pytest.raises(
        CaffePortError, match=r"ip.* holds weight \(6, 10\), the definition|the prototxt asks for \(6, 60\)"
    ):
        evaluate.evaluate_files(weights, prototxt, data=pictures)


# -- counting -------------------------------------------------------------------------------------------------------


class Told(nn.Module):
    """Scores that the picture's first pixel looks up."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", scores)

    def forward(self, x: Tensor) -> Tensor:
        return self.table[x[:, 0, 0, 0].long()]


def numbered(labels: list[int]) -> ImageSet:
    images = np.zeros((len(labels), 1, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    return datasets.from_arrays(images, np.array(labels), "numbered")


GRAY = Preprocessor(Preprocessing("GRAY"), "GRAY")


def test_counts_by_hand() -> None:
    scores = torch.zeros(5, 7)
    scores[range(5), [0, 1, 1, 6, 6]] = 9.0  # answers
    scores[2, 2] = 8.0  # the label comes second
    scores[4] = torch.tensor([1.0, 6, 5, 4, 3, 2, 9])  # the label 0 comes last
    net = Told(scores).train()
    result = evaluate.evaluate(net, numbered([0, 1, 2, 6, 0]), GRAY, batch_size=2)
    assert net.training
    assert (result.correct, result.total, result.accuracy, result.top5) == (3, 5, 60.0, 80.0)
    assert result.per_class()[:3] == [("0", 1, 2), ("1", 1, 1), ("2", 0, 1)]
    assert result.confusion[2, 1] == 1
    assert result.confusion[0, 6] == 1
    assert result.as_dict()["per_class"][6] == {"class": "6", "correct": 1, "total": 1}


def test_freed_memory_is_kept_from_batch_to_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the last batch, or an error."""
    kept: list[str] = []

    @contextlib.contextmanager
    def noted(device: torch.device) -> Iterator[bool]:
        kept.append(f"from here, {device.type}")
        try:
            yield True
        finally:
            kept.append("to here")

    monkeypatch.setattr(devices, "memory_kept", noted)
    net = Told(torch.eye(7)[:3])
    evaluate.evaluate(net, numbered([0, 1, 2]), GRAY, batch_size=2, progress=lambda done, _: kept.append(str(done)))
    assert kept == ["from here, cpu", "2", "3", "to here"]
    with pytest.raises(CaffePortError):
        evaluate.evaluate(Told(torch.full((3, 7), math.nan)), numbered([0, 1, 2]), GRAY)
    assert kept[-1] == "to here"


def test_scores_of_other_forms() -> None:
    scores = torch.eye(4)
    pictures = numbered([0, 1, 2, 3])

    class Wrapped(Told):
        form = "maps"

        def forward(self, x: Tensor) -> object:
            y = super().forward(x)
            return {"maps": y[:, :, None, None], "two": {"a": y, "b": y}, "flat": y[:, 0], "nan": y * math.nan}[
                self.form
            ]

    net = Wrapped(scores)
    result = evaluate.evaluate(net, pictures, GRAY)
    assert result.accuracy == 100
    assert result.top5 is None
    net.form = "two"
    assert evaluate.evaluate(net, pictures, GRAY, output="b").accuracy == 100
    with pytest.raises(CaffePortError, match="2 outputs: a, b"):
        evaluate.evaluate(net, pictures, GRAY)
    with pytest.raises(CaffePortError, match="no output 'c'"):
        evaluate.evaluate(net, pictures, GRAY, output="c")
    net.form = "flat"
    with pytest.raises(CaffePortError, match="expected one row of class scores"):
        evaluate.evaluate(net, pictures, GRAY)
    net.form = "nan"
    with pytest.raises(CaffePortError, match="not finite for images 0 to 3"):
        evaluate.evaluate(net, pictures, GRAY)


def test_wilson_against_known_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    for correct, total, low, high in [
        (81, 263, 25.53, 36.62),
        (15, 148, 6.24, 16.05),
        (0, 20, 0, 16.11),
        (1, 29, 0.61, 17.18),
    ]:
        assert evaluate.wilson(correct, total) == pytest.approx((low, high), abs=0.006)


def test_verdict() -> None:
    confusion = np.diag([4766, 4766])
    confusion[0, 1] = 10_000 - 9532
    result = evaluate.Evaluation(confusion, None, ("a", "b"))
    assert result.accuracy == 95.32
    assert [result.verdict(x) for x in (95.16, 95.32, 96.0, 94.5)] == ["equal", "equal", "worse", "better"]
    assert result.verdict(96.0, tolerance=0.5) == "equal"


def test_confusion_matrix_is_drawn(tmp_path: Path) -> None:
    result = evaluate.evaluate(Told(torch.eye(4)), numbered([0, 1, 2, 3]), GRAY)
    for name, magic in (("c.png", b"\x89PNG"), ("c.svg", b"<?xml")):
        evaluate.plot_confusion(result, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(magic)
    with pytest.raises(CaffePortError, match="cannot be written"):
        evaluate.plot_confusion(result, tmp_path / "absent" / "c.png")
