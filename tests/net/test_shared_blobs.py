"""Blobs that layers share by name, against what Caffe 1.0 computed; the figures are in tests/cases."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import HERE

import caffe_port
from caffe_port.definition.definition import Definition
from caffe_port.errors import CaffePortError, SpecError
from caffe_port.formats import caffemodel, prototxt
from caffe_port.inspection.inspect import diff

CASES = HERE / "cases"


def definition(text: str) -> Definition:
    return Definition.parse(prototxt.parse(text, "NetParameter"))


@pytest.mark.parametrize("weights", ["one.caffemodel", "two.caffemodel.h5"])
def test_a_filler_does_not_overwrite_what_another_layer_loaded(weights: str) -> None:
    folder = CASES / "shared_filler_overwrites"
    ported = caffe_port.port(folder / "two.prototxt", folder / weights)
    made = ported.net(torch.ones(2, 3), 2 * torch.ones(2, 3))
    assert isinstance(made, dict)
    assert made["fa"].tolist() == [[13, 32]] * 2
    assert made["fb"].tolist() == [[16, 44]] * 2
    assert ported.report is not None
    assert ported.report.initialised == ()
    assert not ported.notes
    assert caffe_port.verify(folder / "two.prototxt", folder / weights).passed


def test_the_first_layers_filler_counts() -> None:
    text = (CASES / "shared_filler_overwrites" / "two.prototxt").read_text()
    text = text.replace('"xavier"', '"constant" value: 3', 1)
    net = caffe_port.load(definition(text))
    assert net.ip.weight is net.ip_p.weight
    assert (net.ip.weight == 3).all()  # type: ignore[union-attr]


def test_the_later_layer_of_a_file_wins(tmp_path: Path) -> None:
    """Only the layer that does not own the blob is stored: Caffe copies it into the shared memory."""
    stored = caffemodel.read(CASES / "shared_filler_overwrites" / "one.caffemodel")
    with h5py.File(tmp_path / "late.h5", "w") as file:
        for k, blob in enumerate(stored.layers[0].blobs):
            file[f"data/ip_p/{k}"] = blob
    ported = caffe_port.port(CASES / "shared_filler_overwrites" / "two.prototxt", tmp_path / "late.h5")
    made = ported.net(torch.ones(2, 3), 2 * torch.ones(2, 3))
    assert isinstance(made, dict)
    assert made["fa"].tolist() == [[13, 32]] * 2
    assert ported.report is not None
    assert ported.report.initialised == ()


def test_an_hdf5_file_holds_a_shared_blob_once() -> None:
    folder = CASES / "hdf5_shared"
    one, other = (caffe_port.load(folder / "k_dep.prototxt", folder / name) for name in ("k.h5", "k.caffemodel"))
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(one(x), other(x))  # type: ignore[arg-type]
    assert diff(folder / "k_dep.prototxt", folder / "k.h5").fits
    report = caffe_port.verify(folder / "k_dep.prototxt", folder / "k.h5")
    assert not report.failed
    assert report.vacuous  # its weights are zeros


def test_a_blob_that_an_hdf5_file_lacks_is_missed(tmp_path: Path) -> None:
    shutil.copy(CASES / "hdf5_shared" / "k.h5", tmp_path / "k.h5")
    with h5py.File(tmp_path / "k.h5", "a") as file:
        del file["data/c1/1"]
    with pytest.raises(CaffePortError, match="layer 'c1' holds 1 blob"):
        caffe_port.load(CASES / "hdf5_shared" / "k_dep.prototxt", tmp_path / "k.h5")


def test_a_weight_shared_with_a_transposing_layer(tmp_path: Path) -> None:
    folder = CASES / "tied_transpose"
    ported = caffe_port.port(folder / "tied.prototxt", folder / "tied.caffemodel")
    x = torch.tensor([[1.0, 2, 3], [0, -1, 1]])
    made = ported.net(x)
    assert isinstance(made, torch.Tensor)
    assert made.tolist() == [[78, 112, 146], [3, 5, 7]]
    assert ported.net.enc.weight is ported.net.dec.weight
    made.sum().backward()  # both products' gradients meet in one parameter
    h = x @ ported.net.enc.weight.detach().t()  # type: ignore[union-attr, operator]
    gradient = h.sum(0)[:, None].expand(2, 3) + ported.net.enc.weight.detach().sum(1)[:, None] * x.sum(0)  # type: ignore[union-attr, operator]
    assert torch.allclose(ported.net.enc.weight.grad, gradient)  # type: ignore[union-attr, arg-type]
    assert caffe_port.convert(ported, tmp_path / "out").check.startswith("outputs are bit-equal")
    assert caffe_port.verify(folder / "tied.prototxt", folder / "tied.caffemodel").passed
    assert [blob.shape for blob in ported.net.blobs()["dec"]] == [(2, 3)]


def test_square_weights_are_turned_too() -> None:
    text = (CASES / "tied_transpose" / "tied.prototxt").read_text().replace("num_output: 2", "num_output: 3")
    net = caffe_port.load(definition(text))
    x = torch.randn(2, 3)
    weight = net.enc.weight.detach()  # type: ignore[union-attr, operator]
    assert torch.allclose(net(x), x @ weight.t() @ weight, atol=1e-5)  # type: ignore[arg-type]


def test_other_shapes_are_shared_where_the_net_says_permissive(tmp_path: Path) -> None:
    folder, name = CASES / "share_permissive", "net_shared_perm_shapes"
    ported = caffe_port.port(folder / f"{name}.prototxt", folder / f"{name}.caffemodel")
    with np.load(folder / f"{name}.ref.npz") as wanted:
        made = ported.net(torch.from_numpy(wanted["data"]))
        assert isinstance(made, torch.Tensor)
        assert np.abs(made.detach().numpy() - wanted["o"]).max() < 1e-5
    assert any("PERMISSIVE" in note and "i2" in note for note in ported.notes)
    drawn = caffe_port.load(folder / f"{name}.prototxt")
    assert torch.equal(drawn.i1.weight.flatten(), drawn.i2.weight.flatten())  # type: ignore[union-attr, operator]
    text = (folder / f"{name}.prototxt").read_text().replace("share_mode: PERMISSIVE", "")
    with pytest.raises(SpecError, match=r"shares weight \(6, 2, 3, 4\) with layer 'i1', whose blob is \(6, 24\)"):
        caffe_port.load(definition(text))
