"""convert --format safetensors: what a weights file holds, without a net; and the writer behind all of convert."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import golden_nets
import numpy as np
import pytest
import torch
from conftest import GOLDEN
from safetensors.numpy import load_file

import caffe_port
from caffe_port.emit import blobs
from caffe_port.errors import CaffePortError
from caffe_port.formats import caffemodel, prototxt
from caffe_port.formats.message import Message
from caffe_port.storage import files, safetensors

WEIGHTS = sorted((GOLDEN / "layers").glob("*.caffemodel"))


def of_net(net: caffe_port.Net, names: Sequence[str]) -> dict[str, np.ndarray]:
    """What the layer classes hold and call it, of the layers that a file has."""
    layers = {name: module for name, module in net.caffe_layers().items() if name in names}
    return {
        f"{name}.{blob}": module.get_blob(blob).detach().numpy()
        for name, module in layers.items()
        for blob in module.blob_names()
    }


def assert_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert sorted(found) == sorted(wanted)
    for name, value in wanted.items():
        assert found[name].shape == (value.shape or (1,)), name  # a file cannot tell () from (1)
        assert np.array_equal(found[name].reshape(value.shape), value, equal_nan=True), name


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: path.stem)
def test_every_golden(path: Path) -> None:
    stored = caffemodel.read(path)
    net = golden_nets.load(path.with_suffix(".prototxt")).net
    assert_equal(blobs.named(stored), of_net(net, [layer.name for layer in stored.layers]))


@pytest.mark.parametrize(
    "model",
    [
        "zoo/caffe2014_lenet_v1",
        "zoo/caffe2014_cifar10_v1",
        "zoo/mtcnn_v2",
        "zoo/wechat_qrcode_sr",
        "zoo/ultralight_slim-320",
        "simplenet/mnist_9972",
        "simplenet/svhn_9757",
    ],
)
def test_real_files(shared: Path, tmp_path: Path, model: str) -> None:
    paths = sorted((shared / "models" / model).rglob("*.caffemodel"))
    assert paths
    for path in paths:
        ported = caffe_port.port(None, path)
        result = blobs.convert(path, tmp_path / path.stem)
        assert ported.weights is not None
        found = load_file(result.folder / "blobs.safetensors")
        assert_equal(found, of_net(ported.net, [layer.name for layer in ported.weights.layers]))
        assert result.parameters == sum(value.size for value in found.values())


def test_hdf5_takes_its_types_from_the_prototxt(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    text = 'layer { name: "a" type: "InnerProduct" } layer { name: "b" type: "Unheard" }'
    (tmp_path / "n.prototxt").write_text(text)
    with h5py.File(tmp_path / "w.caffemodel.h5", "w") as file:
        for name in "ab":
            file[f"data/{name}/0"], file[f"data/{name}/1"] = np.ones((3, 2), "f4"), np.zeros(3, "f4")
    alone = blobs.convert(tmp_path / "w.caffemodel.h5", tmp_path / "alone")
    assert sorted(load_file(alone.folder / "blobs.safetensors")) == ["a.0", "a.1", "b.0", "b.1"]
    told = blobs.convert(tmp_path / "w.caffemodel.h5", tmp_path / "told", tmp_path / "n.prototxt")
    assert sorted(load_file(told.folder / "blobs.safetensors")) == ["a.bias", "a.weight", "b.0", "b.1"]
    report = json.loads((told.folder / "port.json").read_text())
    assert [entry["file"] for entry in report["from"]] == ["n.prototxt", "w.caffemodel.h5"]
    assert (report["net"], report["layers"], report["parameters"]) == ("", 2, 18)


def written(path: Path, text: str, **arrays: list[np.ndarray]) -> Path:
    caffemodel.write(path, prototxt.parse(text, "NetParameter"), arrays)
    return path


def test_any_type_any_precision_any_name(tmp_path: Path) -> None:
    half = np.arange(6, dtype=np.float16).reshape(2, 3)
    raw = Message("BlobProto", shape=Message("BlobShape", dim=[2, 3]), raw_data=half.tobytes(), raw_data_type="FLOAT16")
    double = Message("BlobProto", shape=Message("BlobShape", dim=[3]), double_data=np.array([0.1, 0.2, 0.3]))
    odd = Message("LayerParameter", name='conv1/7x7 "ü"\n', type="FromAFork", blobs=[raw, double])
    path = tmp_path / "w.caffemodel"
    path.write_bytes(b"".join(caffemodel.wire.serialize(Message("NetParameter", layer=[odd]))))
    found = load_file(blobs.convert(path, tmp_path / "out").folder / "blobs.safetensors")
    assert list(found) == ['conv1/7x7 "ü"\n.0', 'conv1/7x7 "ü"\n.1']
    assert found[next(iter(found))].dtype == np.float16
    assert np.array_equal(found['conv1/7x7 "ü"\n.0'], half)
    assert np.array_equal(found['conv1/7x7 "ü"\n.1'], [0.1, 0.2, 0.3])


def test_of_equal_names_the_last_layer_counts(tmp_path: Path) -> None:
    def entry(bias: bool, value: float) -> Message:
        made = [np.full((3, 2), value, np.float32), *([np.zeros(3, np.float32)] if bias else [])]
        blobs_ = [caffemodel.blob_message(blob) for blob in made]
        return Message("LayerParameter", name="ip", type="InnerProduct", blobs=blobs_)

    path = tmp_path / "w.caffemodel"
    net = Message("NetParameter", layer=[entry(True, 1.0), entry(False, 2.0)])
    path.write_bytes(b"".join(caffemodel.wire.serialize(net)))
    found = blobs.named(caffemodel.read(path))
    assert list(found) == ["ip.weight"]
    assert (found["ip.weight"] == 2).all()


def test_a_prototxt_of_another_net_takes_no_name_away(tmp_path: Path) -> None:
    (tmp_path / "other.prototxt").write_text('layer { name: "nowhere" type: "Convolution" }')
    alone = blobs.convert(WEIGHTS[0], tmp_path / "alone")
    beside = blobs.convert(WEIGHTS[0], tmp_path / "beside", tmp_path / "other.prototxt")
    assert (alone.folder / "blobs.safetensors").read_bytes() == (beside.folder / "blobs.safetensors").read_bytes()


def test_the_4d_era(tmp_path: Path) -> None:
    """Vectors and matrices lose their axes of length one; a convolution's weights never do."""
    shapes = {
        "conv": [(1, 1, 3, 3), (1, 1, 1, 1)],
        "one": [(1, 1, 1, 5), (1, 1, 1, 1)],
        "bn": [(1, 4, 1, 1)] * 4,
        "ip": [(1, 1, 2, 5), (1, 1, 1, 2)],
        "odd": [(1, 1, 2, 5)],
    }
    types = {"conv": "Convolution", "one": "InnerProduct", "bn": "BN", "ip": "InnerProduct", "odd": "FromAFork"}
    text = "".join(f'layer {{ name: "{name}" type: "{type_}" }}\n' for name, type_ in types.items())
    arrays = {name: [np.ones(shape, np.float32) for shape in own] for name, own in shapes.items()}
    found = blobs.named(caffemodel.read(written(tmp_path / "w.caffemodel", text, **arrays)))
    assert {name: value.shape for name, value in found.items()} == {
        "conv.weight": (1, 1, 3, 3),
        "conv.bias": (1,),
        "one.weight": (1, 5),
        "one.bias": (1,),
        "bn.slope": (4,),
        "bn.bias": (4,),
        "bn.mean": (4,),
        "bn.variance": (4,),
        "ip.weight": (2, 5),
        "ip.bias": (2,),
        "odd.0": (1, 1, 2, 5),
    }


def test_beside_other_formats(tmp_path: Path) -> None:
    from caffe_port.emit.convert import convert

    path, weights = WEIGHTS[0].with_suffix(".prototxt"), WEIGHTS[0]
    result = convert(caffe_port.port(path, weights), tmp_path / "out", formats=["torch", "safetensors"])
    assert result.files == ("model.py", "weights.safetensors", "blobs.safetensors", "port.json")
    alone = blobs.convert(weights, tmp_path / "alone", path)
    assert (alone.folder / "blobs.safetensors").read_bytes() == (result.folder / "blobs.safetensors").read_bytes()
    with pytest.raises(CaffePortError, match="blobs of a weights file, but none was given"):
        convert(caffe_port.port(path), tmp_path / "none", formats=["safetensors"])


def test_the_command_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from caffe_port.cli import cli\n"
        f"cli(['convert', {str(WEIGHTS[0])!r}, '-o', {str(tmp_path / 'out')!r}, '--format', 'safetensors'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "blobs as Caffe stores them" in done.stdout
    assert sorted(os.listdir(tmp_path / "out")) == ["blobs.safetensors", "port.json"]


@pytest.mark.parametrize("kind", ["text", "cut", "missing", "full folder"])
def test_bad_input_leaves_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "w.caffemodel"
    if kind == "text":
        path.write_text("name: 'a' layer { }")
    elif kind != "missing":
        path.write_bytes(WEIGHTS[0].read_bytes()[: -30 if kind == "cut" else None])
    folder = tmp_path / "out"
    if kind == "full folder":
        folder.mkdir()
        (folder / "mine.txt").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CaffePortError):
        blobs.convert(path, folder)
    assert sorted(tmp_path.rglob("*")) == before


# -- the writer -----------------------------------------------------------------------------------------------------


@pytest.fixture
def mapped(tmp_path: Path) -> files.MappedFile:
    """A file of 3 MiB and some bytes, mapped."""
    data = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (3 << 20) + 123, dtype=np.uint8)
    (tmp_path / "source").write_bytes(data.tobytes())
    with (tmp_path / "source").open("rb") as file:
        return files.MappedFile.of(file)


@pytest.mark.parametrize("handles", [True, False], ids=["preadv", "no preadv"])
def test_views_of_a_file_are_written_as_they_are(
    tmp_path: Path, mapped: files.MappedFile, handles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not handles:
        monkeypatch.delattr(os, "preadv", raising=False)
    monkeypatch.setattr(safetensors, "_SPAN", 1 << 21)
    view = np.frombuffer(mapped, np.uint8)
    arrays = {
        "odd": view[5 : 5 + (3 << 20)].view("<f4"),
        "none": np.zeros((0, 3), np.float32),
        "own": np.float64([1, 2]),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "end": view[-40:].view("<f2"),
        "number": np.float32(7),
    }
    tensors = {name: safetensors.Stored.of(np.asarray(array)) for name, array in arrays.items()}
    safetensors.write(tmp_path / "w.safetensors", tensors, mapped)
    found = load_file(tmp_path / "w.safetensors")
    for name, array in arrays.items():
        assert found[name].dtype == np.asarray(array).dtype
        assert found[name].shape == np.shape(array)
        assert found[name].tobytes() == np.asarray(array).tobytes()


def test_same_sees_every_byte(mapped: files.MappedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "_SPAN", 1 << 21)
    view = np.frombuffer(mapped, np.uint8)
    for begin, end in ((0, len(view)), (7, len(view) - 11), (3, 3)):
        data = view[begin:end]
        other = data.copy()
        for pair, sources in (
            ((data, other), (mapped, None)),
            ((other, data), (None, mapped)),
            ((data, data), (mapped, mapped)),
            ((data, other), (None, None)),
        ):
            assert safetensors.same(*pair, sources)
        for at in (0, len(data) // 2, len(data) - 1) if len(data) else ():
            other[at] ^= 1
            assert not safetensors.same(data, other, (mapped, None))
            assert not safetensors.same(other, data, (None, mapped))
            other[at] ^= 1
    assert not safetensors.same(view, view[:-1])


def test_only_views_have_a_place_in_the_file(mapped: files.MappedFile) -> None:
    view = np.frombuffer(mapped, np.uint8)
    assert mapped.offset(view[17:30]) == 17
    assert mapped.offset(view[-1:]) == len(view) - 1
    assert mapped.offset(view.copy()) is None
    assert mapped.offset(torch.zeros(3).numpy()) is None


def test_a_file_that_was_cut_is_an_error(tmp_path: Path, mapped: files.MappedFile) -> None:
    stored = safetensors.Stored.of(np.frombuffer(mapped, np.uint8)[: 1 << 20].view("<f4"))
    os.truncate(tmp_path / "source", 1000)
    with pytest.raises(OSError, match="was truncated"):
        safetensors.write(tmp_path / "w.safetensors", {"a": stored}, mapped)


def test_handles_are_closed(tmp_path: Path) -> None:
    handles = Path("/proc/self/fd")
    if not handles.is_dir():
        pytest.skip("no /proc")
    before = len(list(handles.iterdir()))
    for _ in range(20):
        caffemodel.read(WEIGHTS[0])
    assert len(list(handles.iterdir())) <= before + 2
