"""NaN, infinity and impossible statistics in weights: reported by convert, inspect and verify, with the layer."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from caffe_port import api
from caffe_port.cli import main
from caffe_port.definition import odd_values
from caffe_port.formats import caffemodel
from caffe_port.inspection.inspect import inspect_file
from caffe_port.typing import Array

NET = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: [2, 3, 9, 7] } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 5 kernel_size: 3 } }
layer { name: "bn" type: "BatchNorm" bottom: "c" top: "b" }
"""


def files(folder: Path, **changes: Array) -> tuple[Path, Path]:
    """The net and weights; ``bn_1`` is layer bn's blob 1."""
    net = folder / "net.prototxt"
    net.write_text(NET)
    ported = api.port(net)
    rng = np.random.default_rng(0)
    blobs = {
        "conv": [rng.normal(size=(5, 3, 3, 3)).astype(np.float32), np.zeros(5, np.float32)],
        "bn": [np.ones(5, np.float32), np.full(5, 2, np.float32), np.ones(1, np.float32)],
    }
    for name, value in changes.items():
        layer, _, index = name.rpartition("_")
        blobs[layer][int(index)] = value.astype(np.float32)
    weights = folder / "w.caffemodel"
    caffemodel.write(weights, ported.definition.net, blobs)
    return net, weights


def broken_weight() -> Array:
    weight = np.ones((5, 3, 3, 3))
    weight[0, 0, 0] = np.nan
    weight[4, 2, 2, 2] = -np.inf
    return weight


CASES = {
    "not finite": (
        {"conv_0": broken_weight(), "bn_1": np.array([1, np.inf, 2, 3, 4])},
        (
            "the weights contain values that are not finite: layer 'conv', weight: 3 NaN and 1 infinite of 135 values; "
            "layer 'bn', variance: 1 infinite of 5 values"
        ),
    ),
    "factor 0": (
        {"bn_2": np.zeros(1)},
        "layer 'bn' (BatchNorm): its scale factor is 0, so Caffe takes 0 for mean and variance, which the file holds",
    ),
    "negative": (
        {"bn_1": np.array([1, -0.5, 2, -2, 4]), "bn_2": np.array([2])},
        (
            "layer 'bn' (BatchNorm): 2 of 5 variances are negative, the least -1; "
            "where one is below -eps, the outputs are NaN"
        ),
    ),
}


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("line", ["convert {} {} -o out", "inspect {1}", "inspect {} {}", "verify {} {}"])
def test_told(
    kind: str, line: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, what = CASES[kind]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    command = line.format(*files(tmp_path, **changes))
    monkeypatch.setattr(sys, "argv", ["caffe-port", *command.split()])
    with pytest.raises(SystemExit):
        main()
    said = " ".join("".join(capfd.readouterr()).split())
    assert f"note: {what}" in said


@pytest.mark.parametrize(
    "changes",
    [{}, {"bn_0": np.zeros(5), "bn_1": np.zeros(5), "bn_2": np.zeros(1)}, {"bn_1": -np.ones(5), "bn_2": -np.ones(1)}],
)
def test_nothing_to_tell(changes: dict[str, Array], tmp_path: Path) -> None:
    """Also before the first iteration (all zeros), and where a negative factor makes the variances positive."""
    net, weights = files(tmp_path, **changes)
    assert odd_values.notes(caffemodel.read(weights)) == []
    assert not any("finite" in note or "bn" in note for note in api.port(net, weights).notes)


def test_hdf5_has_no_types(tmp_path: Path) -> None:
    """The definition beside it names the blobs, and says which of them are statistics."""
    h5py = pytest.importorskip("h5py")
    net, _ = files(tmp_path)
    with h5py.File(tmp_path / "w.caffemodel.h5", "w") as file:
        for index, blob in enumerate((np.ones(5), -np.ones(5), np.ones(1))):
            file[f"data/bn/{index}"] = blob.astype(np.float32)
        for index, blob in enumerate((broken_weight(), np.zeros(5))):
            file[f"data/conv/{index}"] = blob.astype(np.float32)
    alone = inspect_file(tmp_path / "w.caffemodel.h5").notes
    assert any("layer 'conv', blob 0: 3 NaN and 1 infinite" in note for note in alone)
    both = inspect_file(net, tmp_path / "w.caffemodel.h5").notes
    assert any("layer 'conv', weight: 3 NaN and 1 infinite" in note for note in both)
    assert any("'bn' (BatchNorm): 5 of 5 variances are negative" in note for note in both)


def test_many_are_summed_up(tmp_path: Path) -> None:
    layers = tuple(caffemodel.LayerBlobs(f"l{k}", "InnerProduct", (np.full((2, 3), np.nan),)) for k in range(9))
    told = odd_values.notes(caffemodel.Weights("w", "V2", layers, None))
    assert len(told) == 1
    assert told[0].endswith("layer 'l3', weight: 6 NaN of 6 values; and 5 more blobs")


def test_four_blobs_of_nvidia() -> None:
    """Scale, shift, mean, variance: a negative shift is no variance."""
    blobs = (np.ones(5), -np.ones(5), np.ones(5), np.full(5, 2.0))
    layer = caffemodel.LayerBlobs("bn", "BatchNorm", blobs)
    assert odd_values.notes(caffemodel.Weights("w", "V2", (layer,), None)) == []
    layer = caffemodel.LayerBlobs("bn", "BatchNorm", (*blobs[:3], -blobs[3]))
    assert "5 of 5 variances are negative" in odd_values.notes(caffemodel.Weights("w", "V2", (layer,), None))[0]
