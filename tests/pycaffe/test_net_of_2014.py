"""Scripts of 2014: the phase is no argument of Net, and the net itself preprocesses images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import caffe_port.pycaffe as caffe
from caffe_port.errors import CaffePortError
from caffe_port.pycaffe.settings import settings

NET = """
input: "data" input_dim: 1 input_dim: 3 input_dim: 4 input_dim: 5
layer { name: "drop" type: "Dropout" bottom: "data" top: "drop" dropout_param { dropout_ratio: 0.9 } }
layer { name: "all" type: "Flatten" bottom: "drop" top: "all" }
"""
RNG = np.random.default_rng(0)
IMAGE = RNG.random((4, 5, 3)).astype(np.float32)
MEAN = (RNG.random((3, 4, 5)) * 100).astype(np.float32)
BGR = IMAGE.transpose(2, 0, 1)[::-1]


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[str, str]]:
    net, weights = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    net.write_text(NET)
    caffe.Net(str(net), caffe.TEST).save(str(weights))
    settings.said.clear()
    yield str(net), str(weights)
    caffe.set_phase_train()


def drops(net: caffe.Net) -> bool:
    net.blobs["data"].data[...] = 1
    return bool((net.forward()["all"] != 1).any())


def test_the_phase_is_that_of_the_process(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    first = caffe.Net(*files)
    assert "has the phase TRAIN, as in 2014" in capsys.readouterr().err
    assert drops(first)
    caffe.set_phase_test()
    assert not drops(first)
    second = caffe.Net(*files)
    assert not drops(second)
    caffe.set_phase_train()
    assert drops(second)
    assert not drops(caffe.Net(*files, caffe.TEST))


def test_a_net_sets_its_phase(files: tuple[str, str]) -> None:
    net = caffe.Net(*files)
    assert drops(net)
    net.set_phase_test()
    net.set_mode_cpu()
    assert not drops(net)
    assert not drops(net)  # the second forward runs the program made for the new phase
    net.set_phase_train()
    assert drops(net)
    assert settings.phase == caffe.TRAIN


def test_a_net_preprocesses(files: tuple[str, str]) -> None:
    net = caffe.Net(*files)
    net.set_mean("data", MEAN)
    net.set_raw_scale("data", 255)
    net.set_channel_swap("data", (2, 1, 0))
    net.set_input_scale("data", 0.5)
    made = net.preprocess("data", IMAGE)
    np.testing.assert_allclose(made, (BGR * 255 - MEAN) * 0.5, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(net.deprocess("data", made[None]), IMAGE, rtol=1e-4)
    net.blobs["data"].reshape(1, 3, 8, 10)
    net.set_mean("data", MEAN, mode="channel")
    assert net.preprocess("data", IMAGE).shape == (3, 8, 10)
    with pytest.raises(Exception, match="not one of the net inputs"):
        net.set_raw_scale("nothing", 1)
    with pytest.raises(Exception, match="Mode not in"):
        net.set_mean("data", MEAN, mode="other")


@pytest.mark.parametrize("mean_first", [True, False])
def test_with_the_mean_of_a_file_the_scale_comes_before_it(
    files: tuple[str, str], tmp_path: Path, mean_first: bool
) -> None:
    np.save(tmp_path / "mean.npy", MEAN)
    net = caffe.Net(*files)
    steps = [lambda: net.set_mean("data", str(tmp_path / "mean.npy")), lambda: net.set_input_scale("data", 255)]
    for step in steps if mean_first else reversed(steps):
        step()
    np.testing.assert_allclose(net.preprocess("data", IMAGE.copy()), BGR[::-1] * 255 - MEAN, rtol=1e-5, atol=1e-4)


def test_classifier_of_2014(files: tuple[str, str], tmp_path: Path) -> None:
    np.save(tmp_path / "mean.npy", MEAN)
    net = caffe.Classifier(
        *files, gpu=False, mean_file=str(tmp_path / "mean.npy"), channel_swap=(2, 1, 0), input_scale=255
    )
    net.set_phase_test()
    net.set_mode_cpu()
    np.testing.assert_allclose(
        net.predict([IMAGE], oversample=False)[0], (BGR * 255 - MEAN).ravel(), rtol=1e-5, atol=1e-4
    )
    net = caffe.Classifier(*files, gpu=False)
    net.set_mean("data", MEAN)
    net.set_raw_scale("data", 255)
    np.testing.assert_allclose(
        net.predict([IMAGE], oversample=False)[0], (BGR[::-1] * 255 - MEAN).ravel(), rtol=1e-5, atol=1e-4
    )
    assert net.transformer.raw_scale == {"data": 255}


def test_names_of_c_and_of_forks(capsys: pytest.CaptureFixture[str]) -> None:
    before = settings.level
    caffe.set_logging_disabled()
    caffe.log("not shown")
    settings.level = before
    assert capsys.readouterr().err == ""
    assert caffe.RawBlobVec is caffe.IntVec is list
    assert issubclass(caffe.SGDSolver, caffe.Solver)
    with pytest.raises(CaffePortError, match="NCCL is not offered"):
        caffe.NCCL.new_uid()
    caffe.Blob((1,)).own = 3  # as objects of Boost.Python


def test_other_names_are_missing(files: tuple[str, str]) -> None:
    net = caffe.Net(*files)
    with pytest.raises(AttributeError, match="'Net' object has no attribute 'set_nothing'"):
        net.set_nothing()
    with pytest.raises(TypeError, match="Net takes a prototxt and a phase"):
        caffe.Net(files[0])
