"""Weights files of every age, built here byte by byte or with protobuf; means; files that are none."""

from __future__ import annotations

import os
import random
import resource
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import oracle
import pytest
from conftest import needs_shared, real_files

from caffe_port.errors import CaffePortError, ParseError
from caffe_port.formats import caffemodel, prototxt, wire
from caffe_port.formats.message import Message
from caffe_port.storage.files import let_go

WEIGHT = np.arange(24, dtype=np.float32).reshape(4, 3, 2, 1) - 5.5
BIAS = np.array([0.5, -1, 2, 3.25], np.float32)


def save(path: Path, text: str, name: str = "NetParameter") -> Path:
    """Text -> binary by protobuf, not by us."""
    path.write_bytes(oracle.parse_text(text, name).SerializeToString())
    return path


def numbers(values: np.ndarray[Any, Any]) -> str:
    return f"[{', '.join(repr(float(v)) for v in values.ravel())}]"


BLOBS = f"""
blobs {{ shape {{ dim: [4, 3, 2, 1] }} data: {numbers(WEIGHT)} }}
blobs {{ shape {{ dim: 4 }} data: {numbers(BIAS)} }}
"""
LEGACY = f"""
blobs {{ num: 4 channels: 3 height: 2 width: 1 data: {numbers(WEIGHT)} }}
blobs {{ num: 1 channels: 1 height: 1 width: 4 data: {numbers(BIAS)} }}
"""
FORMATS = {
    "V2": f'name: "n" layer {{ name: "data" type: "Input" }} layer {{ name: "c" type: "Convolution" {BLOBS} }}',
    "V1": f'name: "n" layers {{ name: "data" type: DATA }} layers {{ name: "c" type: CONVOLUTION {LEGACY} }}',
    "V0": f'name: "n" layers {{ layer {{ name: "data" type: "data" }} }} '
    f'layers {{ layer {{ name: "c" type: "conv" {LEGACY} }} bottom: "data" }}',
}


@pytest.mark.parametrize("version", FORMATS)
def test_formats(version: str, tmp_path: Path) -> None:
    path = save(tmp_path / "w.caffemodel", FORMATS[version])
    weights = caffemodel.read(path)
    assert weights.format == version
    assert weights.path == str(path)
    (layer,) = weights.layers
    assert layer.name == "c"
    assert layer.type == {"V2": "Convolution", "V1": "CONVOLUTION", "V0": "conv"}[version]
    assert layer.blobs[0].shape == (4, 3, 2, 1)
    assert layer.blobs[1].shape == ((4,) if version == "V2" else (1, 1, 1, 4))
    np.testing.assert_array_equal(layer.blobs[0], WEIGHT)
    np.testing.assert_array_equal(layer.blobs[1].ravel(), BIAS)
    assert weights.parameters == 28
    assert weights.net is not None
    assert weights.net.name == "n"
    entries = weights.net.layer or weights.net.layers
    assert len(entries) == 2, "the definition keeps its layers"
    assert "blobs" not in prototxt.dump(weights.net), "and loses its numbers"


def test_v0_blobs_beside_the_inner_layer(tmp_path: Path) -> None:
    """Some writers put them into the connection."""
    text = f'layers {{ layer {{ name: "c" type: "conv" }} {LEGACY} }}'
    weights = caffemodel.read(save(tmp_path / "w", text))
    assert weights.format == "V0"
    assert weights.by_name()["c"].blobs[0].shape == (4, 3, 2, 1)


def test_arrays_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    weights = caffemodel.read(save(tmp_path / "w", FORMATS["V2"]))
    base = weights.layers[0].blobs[0]
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    assert isinstance(base, memoryview)
    assert not weights.layers[0].blobs[0].flags.writeable


def test_what_is_written_to_arrays_does_not_reach_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "w", FORMATS["V2"])
    before = path.read_bytes()
    weights = caffemodel.read(path, writable=True)
    weights.layers[0].blobs[0][2, 1] = 7
    assert path.read_bytes() == before
    assert weights.mapping is not None
    let_go(weights.mapping)
    assert np.array_equal(weights.layers[0].blobs[0], WEIGHT)
    assert np.array_equal(caffemodel.read(path).layers[0].blobs[0], WEIGHT)


def test_of_equal_names_the_last_counts(tmp_path: Path) -> None:
    one, two = (f'layer {{ name: "c" blobs {{ data: {k} }} }}' for k in (1, 2))
    weights = caffemodel.read(save(tmp_path / "w", one + two))
    assert len(weights.layers) == 2
    assert weights.by_name()["c"].blobs[0].tolist() == [2]


@pytest.mark.parametrize(
    ("held", "asked", "agree"),
    [
        ((4, 2, 3, 5), (4, 2, 3, 5), True),
        ((1, 1, 1, 10), (10,), True),  # a bias of the 4-D era
        ((1, 1, 7, 10), (7, 10), True),  # an InnerProduct's weight of then
        ((1, 6, 5, 3), (6, 5, 3), True),
        ((1, 1, 1, 1), (), True),
        ((1,), (), True),  # Caffe writes no shape for a blob without axes
        ((1, 6), (6,), False),  # but for a type with the trait ROWS
        ((1, 6, 1, 1), (6,), True),  # a mean, as NVIDIA's Caffe and SegNet store it
        ((4, 4, 1, 3), (4, 4, 3, 1), False),
        ((1, 4, 3, 3), (4, 1, 3, 3), False),
        ((25, 1), (1, 25), False),
        ((1, 10, 1, 1), (1, 10), False),
        ((6, 1, 1, 1), (6,), False),
        ((1, 1, 6, 1), (6,), False),
        ((6, 1), (6,), False),
        ((1, 1, 6), (6,), False),
        ((1, 1, 1, 1, 6), (6,), True),  # a bias of C3D
        ((1, 1, 1, 1, 1, 6), (6,), False),
        ((1, 4, 3, 3, 3), (4, 1, 3, 3, 3), False),
        ((6,), (1, 6), False),
        ((10,), (1, 1, 1, 10), False),
        ((7, 1, 1, 10), (7, 10), False),
        ((1, 1, 10, 7), (7, 10), False),
        ((), (1,), False),
    ],
)
def test_which_shapes_agree(held: tuple[int, ...], asked: tuple[int, ...], agree: bool) -> None:
    assert caffemodel.shapes_agree(held, asked) is agree


def test_a_row_is_a_vector_only_where_a_type_stores_it_so() -> None:
    assert caffemodel.shapes_agree((1, 6), (6,), row=True)
    assert not caffemodel.shapes_agree((6, 1), (6,), row=True)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("shape { dim: [3, 2] } data: [1, 2, 3, 4, 5, 6]", np.array([[1, 2], [3, 4], [5, 6]], np.float32)),
        ("shape { } data: 7", np.array(7, np.float32)),
        ("data: [1, 2, 3]", np.array([1, 2, 3], np.float32)),
        (
            "num: 1 channels: 3 height: 1 width: 2 data: [1, 2, 3, 4, 5, 6]",
            np.array([[[[1, 2]], [[3, 4]], [[5, 6]]]], np.float32),
        ),
        ("shape { dim: 2 } double_data: [0.1, -2]", np.array([0.1, -2], np.float64)),
        (
            "shape { dim: [2, 1] } raw_data_type: FLOAT16 raw_data: '\\000\\074\\000\\300'",
            np.array([[1], [-2]], np.float16),
        ),
        ("shape { dim: 1 } raw_data_type: FLOAT raw_data: '\\000\\000\\200\\077'", np.array([1], np.float32)),
        (
            "shape { dim: 1 } raw_data_type: DOUBLE raw_data: '\\000\\000\\000\\000\\000\\000\\370\\077'",
            np.array([1.5], np.float64),
        ),
        ("shape { dim: [0, 3] }", np.empty((0, 3), np.float32)),
        (  # the old fields go first, as in blob.cpp
            "shape { dim: [2, 3] } num: 3 channels: 1 height: 1 width: 2 data: [1, 2, 3, 4, 5, 6]",
            np.array([[[[1, 2]]], [[[3, 4]]], [[[5, 6]]]], np.float32),
        ),
    ],
)
def test_blob_array(text: str, want: np.ndarray[Any, Any]) -> None:
    data = oracle.parse_text(text, "BlobProto").SerializeToString()
    got = caffemodel.blob_array(wire.parse(data, "BlobProto"))
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("shape { dim: [2, 3] } data: [1, 2, 3]", "shape (2, 3) requires 6 values, the file contains 3"),
        ("shape { dim: [2, 3] } num: 9 data: [1, 2, 3, 4, 5, 6]", "shape (9, 0, 0, 0) requires 0 values"),
        ("shape { dim: [1000000, 1000000] } data: 1", "requires 1,000,000,000,000 values, the file contains 1"),
        ("num: 2 channels: 3 height: 4 width: 5", "shape (2, 3, 4, 5) requires 120 values, the file contains 0"),
        ("shape { dim: [-1, -1] } data: 1", "shape (-1, -1) has a negative axis"),
        (
            "shape { dim: [9223372036854775807, 2, 3] }",
            "requires 55,340,232,221,128,654,842 values, the file contains 0",
        ),
        (f"shape {{ dim: {[1] * 33} }} data: 1", "a shape with 33 axes; Caffe allows at most 32"),
        ("shape { dim: 2 } raw_data_type: INT raw_data: 'abcd'", "raw_data of type INT is not a float type"),
        ("shape { dim: 2 } raw_data_type: FLOAT16 raw_data: 'abc'", "3 bytes is not a whole number of FLOAT16 values"),
        ("shape { dim: [4611686018427387904, 4611686018427387904, 0] }", "is too large"),
        ("shape { dim: 2 } raw_data_type: FLOAT16 raw_data: ''", "shape (2,) requires 2 values, the file contains 0"),
    ],
)
def test_blobs_that_do_not_fit_their_shape(text: str, what: str, tmp_path: Path) -> None:
    path = save(tmp_path / "w", f'layer {{ name: "c" blobs {{ data: 1 }} blobs {{ {text} }} }}')
    with pytest.raises(ParseError) as caught:
        caffemodel.read(path)
    assert str(caught.value).startswith(f"{path}: layer 'c', blob 1: ")
    assert what in str(caught.value)


# -- large files ----------------------------------------------------------------------------------------------------


def test_a_file_of_three_gigabytes_is_read_in_no_time(tmp_path: Path) -> None:
    """One blob of 750 million zeros, sparse on the disk: only headers are touched."""
    count = 750_000_000
    tail = wire._varint(5 << 3 | 2) + wire._varint(4 * count)
    shape = oracle.parse_text("dim: [3, 250000000]", "BlobShape").SerializeToString()
    blob = b"\x3a" + wire._varint(len(shape)) + shape + tail
    body = b"\x0a\x02fc" + b"\x3a" + wire._varint(len(blob) + 4 * count) + blob
    head = wire._varint(100 << 3 | 2) + wire._varint(len(body) + 4 * count) + body
    path = tmp_path / "w.caffemodel"
    path.write_bytes(head)
    os.truncate(path, len(head) + 4 * count)
    assert path.stat().st_size > 2 << 30
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    weights = caffemodel.read(path)
    assert time.perf_counter() - start < 0.2
    assert weights.layers[0].blobs[0].shape == (3, 250_000_000)
    assert weights.layers[0].blobs[0][2, -1] == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000, "kilobytes"


# -- files that are something else ----------------------------------------------------------------------------------

FOREIGN = {
    "a PNG image": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "a JPEG image": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "a zip archive (a PyTorch file?)": b"PK\x03\x04\x14\0\0\0",
    "a gzip archive": b"\x1f\x8b\x08\0",
    "a bzip2 archive": b"BZh91AY",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid",
    "a web page or XML": b"<!DOCTYPE html><html>404",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_kinds_of_files(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "w.caffemodel"
    path.write_bytes(FOREIGN[kind])
    with pytest.raises(ParseError) as caught:
        caffemodel.read(path)
    assert str(caught.value).partition("\n")[0] == f"{path}: is {kind}, not a .caffemodel"
    path = tmp_path / "net.prototxt"
    path.write_bytes(FOREIGN[kind])
    with pytest.raises(ParseError) as caught:
        prototxt.read(path, "NetParameter")
    assert str(caught.value).partition("\n")[0] == f"{path}: is {kind}, not a prototxt"


def test_other_texts(tmp_path: Path) -> None:
    path = tmp_path / "w.caffemodel"
    path.write_text("404: Not Found")
    with pytest.raises(ParseError, match=r"is text, not a \.caffemodel"):
        caffemodel.read(path)
    path = tmp_path / "model.py"
    path.write_text('"""A net."""\n')
    with pytest.raises(ParseError, match="is a Python file, not a prototxt"):
        prototxt.read(path, "NetParameter")


def test_text_given_as_weights(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text('layer { name: "a" }')
    with pytest.raises(ParseError, match=r"is text, not a \.caffemodel\n  Give the prototxt first and the weights"):
        caffemodel.read(path)


def test_empty_missing_folder_unreadable(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(ParseError, match="empty: is empty"):
        caffemodel.read(empty)
    with pytest.raises(CaffePortError, match="cannot be read: No such file or directory"):
        caffemodel.read(tmp_path / "missing")
    with pytest.raises(CaffePortError, match="is a folder; expected a file"):
        caffemodel.read(tmp_path)
    with pytest.raises(CaffePortError, match="cannot be read"):
        caffemodel.read("a\0b")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CaffePortError, match="cannot be read: Too many levels of symbolic links"):
        caffemodel.read(tmp_path / "loop")


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """chmod does not stop root, so the refusal is put in by hand."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    for read in (caffemodel.read, caffemodel.read_mean, lambda p: prototxt.read(p, "NetParameter")):
        with pytest.raises(CaffePortError, match="w: cannot be read: Permission denied"):
            read(tmp_path / "w")


def test_messages_without_layers(tmp_path: Path) -> None:
    with pytest.raises(ParseError) as caught:
        caffemodel.read(save(tmp_path / "w", 'name: "n"'))
    assert caught.value.what == "contains no layers: it is damaged or not a .caffemodel"


def test_layers_without_weights(tmp_path: Path) -> None:
    weights = caffemodel.read(save(tmp_path / "w", 'layer { name: "a" } layer { name: "b" }'))
    assert weights.layers == ()
    assert weights.net is not None
    assert [layer.name for layer in weights.net.layer] == ["a", "b"]


def test_damaged_files_end_in_weights_or_a_sentence(tmp_path: Path) -> None:
    data, rng = save(tmp_path / "w", FORMATS["V2"]).read_bytes(), random.Random(7)
    path = tmp_path / "damaged"
    refused = 0
    cases = [data[:n] for n in range(len(data))]
    for _ in range(400):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        cases.append(bytes(damaged))
    for case in cases:
        path.write_bytes(case)
        try:
            caffemodel.read(path)
        except CaffePortError as error:
            assert str(error).startswith(str(path))  # noqa: PT017
            assert "\n" not in error.what  # noqa: PT017
            refused += 1
    assert refused > len(data) / 2


# -- HDF5 -----------------------------------------------------------------------------------------------------------


def test_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "w.caffemodel.h5"
    with h5py.File(path, "w") as file:
        for index, blob in enumerate((WEIGHT, BIAS)):
            file[f"data/conv1/3x3_s2/{index}"] = blob
        for index in range(11):
            file[f"data/many/{index}"] = np.full(index + 2, index, np.float64)
        file.create_group("data/relu")
    weights = caffemodel.read(path)
    assert (weights.format, weights.net) == ("HDF5", None)
    table = weights.by_name()
    assert list(table) == ["conv1/3x3_s2", "many"]
    np.testing.assert_array_equal(table["conv1/3x3_s2"].blobs[0], WEIGHT)
    np.testing.assert_array_equal(table["conv1/3x3_s2"].blobs[1], BIAS)
    assert [blob.shape for blob in table["many"].blobs] == [(n + 2,) for n in range(11)], "0, 1, ... 10, not 0, 1, 10"
    assert table["many"].blobs[3].dtype == np.float32


def _no_group(file: h5py.File) -> None:
    file["weights/a/0"] = [1.0]


def _no_layers(file: h5py.File) -> None:
    file.create_group("data/relu")


def _data_is_an_array(file: h5py.File) -> None:
    file["data"] = [1.0, 2.0]


def _strings(file: h5py.File) -> None:
    file["data/a/0"] = ["x", "y"]


def _bomb(file: h5py.File) -> None:
    file.create_dataset("data/a/0", (10**6, 10**6), "f4", chunks=(1000, 1000))


def _compressed_bomb(file: h5py.File) -> None:
    file.create_dataset(
        "data/a/0", (1 << 12, 1 << 12), "f4", fillvalue=0, chunks=(1 << 10, 1 << 10), compression="gzip"
    )


def _cycle(file: h5py.File) -> None:
    file["data/a/b"] = h5py.SoftLink("/data")


def _outside(file: h5py.File) -> None:
    file["data/a/0"] = h5py.ExternalLink("/etc/passwd", "/x")


HDF5 = {
    "no_group": (_no_group, "has no group 'data': not a .caffemodel.h5"),
    "no_layers": (_no_layers, "contains no layers with weights"),
    "data_is_an_array": (_data_is_an_array, "has no group 'data': not a .caffemodel.h5"),
    "strings": (_strings, "'0' is not numeric"),
    "bomb": (_bomb, "'/data/a/0' declares 4,000,000,000,000 bytes but stores 0"),
    "compressed_bomb": (_compressed_bomb, "'/data/a/0' declares 67,108,864 bytes but stores 0"),
    "cycle": (_cycle, "contains itself"),
    "outside": (_outside, "'0' is a link to another file, which is not followed"),
}


@pytest.mark.parametrize("case", HDF5)
def test_hdf5_files_that_hold_no_weights(case: str, tmp_path: Path) -> None:
    fill, what = HDF5[case]
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        fill(file)
    with pytest.raises(ParseError) as caught:
        caffemodel.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert what in str(caught.value)


def test_damaged_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        file["data/a/0"] = WEIGHT
    data, rng = path.read_bytes(), random.Random(3)
    assert caffemodel.read(path).by_name()["a"].blobs[0].shape == WEIGHT.shape
    refused = 0
    for trial in range(300):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged[: len(data) * trial // 150] if trial < 150 else damaged)
        try:
            caffemodel.read(path)
        except CaffePortError:
            refused += 1
    assert refused > 150


# -- means ----------------------------------------------------------------------------------------------------------

MEAN = np.arange(30, dtype=np.float32).reshape(3, 2, 5)


@pytest.mark.parametrize(
    "head", ["num: 1 channels: 3 height: 2 width: 5", "shape { dim: [1, 3, 2, 5] }", "shape { dim: [3, 2, 5] }"]
)
@pytest.mark.parametrize("field", ["data", "double_data"])
def test_mean(head: str, field: str, tmp_path: Path) -> None:
    path = save(tmp_path / "mean.binaryproto", f"{head} {field}: {numbers(MEAN)}", "BlobProto")
    mean = caffemodel.read_mean(path)
    assert mean.dtype == np.float32
    np.testing.assert_array_equal(mean, MEAN)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("num: 1", "contains no data: not a .binaryproto mean"),
        ("num: 1 channels: 3 height: 2 width: 5 data: 1", "shape (1, 3, 2, 5) requires 30 values, the file contains 1"),
        (f"num: 3 channels: 2 height: 5 width: 1 data: {numbers(MEAN)}", "shape (3, 2, 5, 1) is not a single image"),
        ("data: [1, 2]", "shape (2,) is not a single image"),
    ],
)
def test_no_mean(text: str, what: str, tmp_path: Path) -> None:
    path = save(tmp_path / "mean.binaryproto", text, "BlobProto")
    with pytest.raises(ParseError) as caught:
        caffemodel.read_mean(path)
    assert str(caught.value).startswith(f"{path}: {what}")


def test_weights_given_as_a_mean(tmp_path: Path) -> None:
    path = save(tmp_path / "w", FORMATS["V2"])
    with pytest.raises(ParseError):
        caffemodel.read_mean(path)


# -- writing --------------------------------------------------------------------------------------------------------


def test_written_files_are_protobufs(tmp_path: Path) -> None:
    net = prototxt.parse(
        'name: "n" layer { name: "data" type: "Input" top: "data" } '
        'layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 4 } }',
        "NetParameter",
    )
    path = tmp_path / "w.caffemodel"
    caffemodel.write(path, net, {"c": [WEIGHT.transpose(3, 2, 1, 0)[::1], BIAS.astype(np.float64)]})
    theirs = oracle.of("NetParameter").FromString(path.read_bytes())
    assert [layer.name for layer in theirs.layer] == ["data", "c"]
    assert list(theirs.layer[1].blobs[0].shape.dim) == [1, 2, 3, 4]
    assert list(theirs.layer[1].blobs[0].data) == WEIGHT.transpose(3, 2, 1, 0).ravel().tolist()
    assert list(theirs.layer[1].blobs[1].data) == BIAS.tolist()
    assert theirs.layer[1].convolution_param.num_output == 4
    weights = caffemodel.read(path)
    np.testing.assert_array_equal(weights.by_name()["c"].blobs[0], WEIGHT.transpose(3, 2, 1, 0))
    assert weights.net == net, "the definition comes back"
    again = tmp_path / "again.caffemodel"
    caffemodel.write(again, weights.net, {layer.name: list(layer.blobs) for layer in weights.layers})
    assert again.read_bytes() == path.read_bytes()


def test_writing_replaces_old_blobs_and_leaves_the_net_alone(tmp_path: Path) -> None:
    net = prototxt.parse('layer { name: "c" blobs { data: 9 } } layer { name: "d" blobs { data: 8 } }', "NetParameter")
    caffemodel.write(tmp_path / "w", net, {"d": [BIAS]})
    assert [layer.name for layer in caffemodel.read(tmp_path / "w").layers] == ["d"]
    assert net.layer[0].blobs[0].data == [9]


def test_writing_a_blob_of_no_layer(tmp_path: Path) -> None:
    net = Message("NetParameter", layer=[Message("LayerParameter", name="c")])
    with pytest.raises(CaffePortError, match="layer 'x' has blobs but is not in the net"):
        caffemodel.write(tmp_path / "w", net, {"x": [BIAS], "z": [BIAS]})
    assert not os.listdir(tmp_path)


def test_a_mean_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "mean.binaryproto"
    path.write_bytes(b"".join(wire.serialize(caffemodel.blob_message(MEAN[None]))))
    np.testing.assert_array_equal(caffemodel.read_mean(path), MEAN)


# -- real files -----------------------------------------------------------------------------------------------------


@needs_shared
def test_real_files_as_protobuf_reads_them() -> None:
    paths = [p for p in real_files(".caffemodel") if p.stat().st_size < 4_000_000]
    assert len(paths) > 100
    for path in paths:
        theirs = oracle.of("NetParameter").FromString(path.read_bytes())
        weights = caffemodel.read(path)
        stored = [entry for entry in [*theirs.layer, *theirs.layers] if entry.blobs]
        assert [layer.name for layer in weights.layers] == [entry.name for entry in stored], path
        for layer, entry in zip(weights.layers, stored, strict=True):
            for array, blob in zip(layer.blobs, entry.blobs, strict=True):
                np.testing.assert_array_equal(array.ravel(), list(blob.double_data) or list(blob.data), str(path))
                legacy = (blob.num, blob.channels, blob.height, blob.width)
                scalar = (1,)  # Caffe writes no shape for a blob without axes
                want = tuple(blob.shape.dim) if blob.HasField("shape") else legacy if any(legacy) else scalar
                assert array.shape == want, path


@needs_shared
def test_a_real_hdf5_file_equals_its_caffemodel(shared: Path) -> None:
    """The authors' snapshot and its quantised copy have the same layers and shapes."""
    folder = shared / "models" / "zoo" / "arm_cmsisnn_cifar10"
    h5 = caffemodel.read(folder / "cifar10_m7_iter_300000.caffemodel.h5").by_name()
    binary = caffemodel.read(folder / "quantized_cifar10_m7_iter_300000.caffemodel").by_name()
    assert {n: [b.shape for b in layer.blobs] for n, layer in h5.items()} == {
        n: [b.shape for b in layer.blobs] for n, layer in binary.items()
    }


def test_names_within_each_other_in_hdf5(tmp_path: Path) -> None:
    """Caffe makes a group for every layer: that of 'conv/relu' is in that of 'conv', beside its blobs."""
    path, arrays = tmp_path / "w.caffemodel.h5", [np.full((2, k + 2), k, np.float32) for k in range(12)]
    blobs = {"conv": dict(enumerate(arrays)), "conv/bn": {0: arrays[1]}, "a/b/c": {0: arrays[2]}, "a/b": {0: arrays[3]}}
    caffemodel.write_hdf5(path, ["conv", "conv/relu", "conv/bn", "a/b/c", "a/b"], blobs)
    weights = caffemodel.read(path)
    assert {layer.name for layer in weights.layers} == blobs.keys()
    assert weights.empty == ("conv/relu",)
    for layer in weights.layers:
        assert [blob.tolist() for blob in layer.blobs] == [blob.tolist() for blob in blobs[layer.name].values()]
