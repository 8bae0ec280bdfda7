"""Nets that Caffe reads, and that were refused or read otherwise once; the files are in tests/cases."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HERE

import caffe_port
from caffe_port.cli import main
from caffe_port.errors import CaffePortError, SpecError, WeightsError
from caffe_port.formats import caffemodel
from caffe_port.inspection.inspect import inspect_file

CASES = HERE / "cases"


def test_a_number_that_two_forks_use() -> None:
    """CaffeOnSpark's string under R-FCN's number."""
    folder = CASES / "field_10001"
    ones = torch.ones(1, 3, 1, 1)
    for prototxt in (folder / "small.prototxt", None):
        ported = caffe_port.port(prototxt, folder / "small.caffemodel")
        assert ported.net(ones).tolist() == [[3, 12]]  # type: ignore[union-attr]
    (note,) = [note for note in ported.notes if "10001" in note]
    assert "unknown field '10001' of LayerParameter changes no number" in note
    assert caffe_port.verify(None, folder / "small.caffemodel").word == "PASSED"


def test_a_net_without_parameters(tmp_path: Path) -> None:
    folder = CASES / "caffemodel_without_blobs"
    weights = folder / "cpp_elu_a05.caffemodel"
    for prototxt in (folder / "cpp_elu_a05.prototxt", None):
        ported = caffe_port.port(prototxt, weights)
        assert torch.equal(ported.net(-torch.ones(2, 3, 4)), torch.full((2, 3, 4), 0.5 * (np.exp(-1) - 1)))  # type: ignore[arg-type]
    assert caffe_port.convert(ported, tmp_path / "out").check.startswith("outputs are bit-equal")
    assert not inspect_file(weights).errors


def test_a_net_without_parameters_in_hdf5(tmp_path: Path) -> None:
    """As net.save_hdf5 writes it: a group per layer, and nothing in it."""
    h5py = pytest.importorskip("h5py")
    prototxt = CASES / "caffemodel_without_blobs" / "cpp_elu_a05.prototxt"
    with h5py.File(tmp_path / "net.caffemodel.h5", "w") as file:
        for layer in ("data", "elu"):
            file.create_group(f"data/{layer}")
    ported = caffe_port.port(prototxt, tmp_path / "net.caffemodel.h5")
    assert torch.equal(ported.net(-torch.ones(2, 3, 4)), torch.full((2, 3, 4), 0.5 * (np.exp(-1) - 1)))  # type: ignore[arg-type]
    assert not inspect_file(tmp_path / "net.caffemodel.h5").errors
    (tmp_path / "ip.prototxt").write_text(
        'input: "data" input_shape { dim: 2 dim: 3 } layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" '
        "inner_product_param { num_output: 2 } }"
    )
    with pytest.raises(WeightsError, match="the net has ip, the file has none"):
        caffe_port.load(tmp_path / "ip.prototxt", tmp_path / "net.caffemodel.h5")


@pytest.mark.parametrize(("name", "shape"), [("mean3", (3, 1, 1)), ("small", (3, 5, 5))])
def test_a_mean_without_a_zero_byte(name: str, shape: tuple[int, ...]) -> None:
    path = CASES / "binaryproto_without_nul" / f"{name}.binaryproto"
    assert caffemodel.read_mean(path).shape == shape
    assert inspect_file(path).kind == "mean"


def test_crop_center_has_a_number_of_its_own() -> None:
    path = CASES / "cropcenter_binary_149" / "net.caffemodel"
    ported = caffe_port.port(None, path)
    x = torch.randn(1, 1, 8, 8)
    assert torch.equal(ported.net(x), 2 * x[:, :, 2:6, 2:6] + 0.5)  # type: ignore[arg-type]
    assert not ported.notes


def test_input_beside_an_input_layer() -> None:
    net = caffe_port.load(CASES / "input_name_beside_input_layer" / "net.prototxt")
    assert net.inputs == ("data",)
    assert net(torch.zeros(2, 3, 6, 5)).shape == (2, 3, 3, 3)  # type: ignore[union-attr]


def test_a_size_that_upsampling_asks_for() -> None:
    ported = caffe_port.port(CASES / "size_guess_upsample" / "net.prototxt")
    assert any("--input-shape data=1,3,90,120" in note for note in ported.notes)


def test_the_frames_of_a_video() -> None:
    ported = caffe_port.port(CASES / "video_shape" / "video.prototxt")
    assert ported.net(torch.zeros(1, 3, 8, 12, 12)).shape == (1, 2, 3, 5, 5)  # type: ignore[union-attr]


def test_a_video_without_its_length(tmp_path: Path) -> None:
    text = (CASES / "video_shape" / "video.prototxt").read_text().replace("new_length: 8", "")
    (tmp_path / "net.prototxt").write_text(text.replace("crop_size: 12", ""))
    ported = caffe_port.port(tmp_path / "net.prototxt")
    assert any("--input-shape data=1,3,16," in note for note in ported.notes)


def test_python_code_alone() -> None:
    with pytest.raises(SpecError, match=r"nothing stands for the Python code mm\.Simple") as caught:
        caffe_port.load(CASES / "python_only" / "net.prototxt")
    assert "--plugin" in caught.value.hint


X = torch.tensor([1.5, 0.25, 1.0, 2.25, 1.75])


@pytest.mark.parametrize(
    ("case", "inputs", "wanted"),
    [
        ("accuracy1d/accuracy1d", (X, torch.tensor([3.0])), torch.tensor(1.0)),
        ("accuracy1d/accuracy1d", (X, torch.tensor([0.0])), torch.tensor(0.0)),
        ("argmax1d/argmax1d", (X,), torch.zeros(5, 1, 1)),
        ("hinge1d/hinge1d", (X[:3], torch.zeros(3)), torch.tensor(0.25)),
        ("reshape_scalar/reshape_scalar", (X[:1],), torch.tensor(1.5)),
    ],
)
def test_one_axis_as_caffe_computes_it(
    case: str, inputs: tuple[torch.Tensor, ...], wanted: torch.Tensor, tmp_path: Path
) -> None:
    path = CASES / f"traceback_{case}.prototxt"
    ported = caffe_port.port(path, keep_loss=True)
    assert torch.equal(ported.net(*inputs), wanted)  # type: ignore[arg-type]
    assert caffe_port.convert(ported, tmp_path / "out").check.startswith("outputs are bit-equal")
    report = caffe_port.verify(path, keep_loss=True, against="numpy")
    assert report.compared  # an Accuracy or ArgMax over one item is constant, which proves nothing more
    assert not report.failed
    assert not report.not_compared


@pytest.mark.parametrize("command", ["convert {} -o out --keep-loss", "verify {} --keep-loss", "inspect {}"])
@pytest.mark.parametrize("case", ["softmaxloss1d", "priorbox_inf", "filter_scalar"])
def test_what_caffe_refuses_is_one_sentence(
    case: str, command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = (CASES / f"traceback_{case}").glob("*.prototxt")
    shutil.copy(source, tmp_path / "net.prototxt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["caffe-port", *command.format("net.prototxt").split()])
    with pytest.raises(SystemExit) as caught:
        main()
    out, error = capfd.readouterr()
    if case == "softmaxloss1d" and command.startswith("inspect"):  # labels are not looked at there
        return
    assert caught.value.code == 2
    assert "Traceback" not in out + error
    assert (error if not command.startswith("inspect") else out).count("error: ") == 1
    assert not (tmp_path / "out").exists()


def test_segnets_class_weights() -> None:
    folder = CASES / "fields_nobody_reads"
    net = caffe_port.load(folder / "segnet_class_weighting.prototxt", keep_loss=True)
    with np.load(folder / "segnet_class_weighting.npz") as file:
        x, labels, wanted = (torch.from_numpy(file[name]) for name in "xly")
    assert torch.allclose(net(x, labels), wanted.float())  # type: ignore[arg-type]
    assert caffe_port.verify(folder / "segnet_class_weighting.prototxt", keep_loss=True).passed


@pytest.mark.parametrize("weights", [2, 3])
def test_class_weights_by_frequency_and_their_number(weights: int, tmp_path: Path) -> None:
    text = (CASES / "fields_nobody_reads" / "segnet_class_weighting.prototxt").read_text()
    path = tmp_path / "net.prototxt"
    bare = text.partition("class_weighting")[0] + "} }"
    path.write_text(bare)
    net = caffe_port.load(path, keep_loss=True)
    scores, labels = torch.randn(2, 4, 2, 2), torch.tensor([[[[0.0, 0], [1, 3]]], [[[0, 1], [2, 3]]]])
    probability = scores.log_softmax(1).gather(1, labels.long())
    often = torch.tensor([3.0, 2, 1, 2])[labels.long()]
    wanted = -(probability / often)[labels != 3].sum() / 6
    assert torch.allclose(net(scores, labels), wanted)  # type: ignore[arg-type]
    assert caffe_port.verify(path, keep_loss=True, against="numpy").passed
    path.write_text(bare.replace("} }", "class_weighting: 1 " * weights + "} }"))
    with pytest.raises(CaffePortError, match=f"{weights} class_weighting for 4 classes"):
        caffe_port.load(path, keep_loss=True)
