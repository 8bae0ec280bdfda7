# ruff: noqa: PT017  what is raised is looked at where it may or may not be raised
"""Files that are no files, and files that declare more than they hold: refused before memory or time is spent."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import resource
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from caffe_port import api
from caffe_port.data import datasets, records
from caffe_port.data.leveldb import LevelDB
from caffe_port.data.lmdb import LMDB
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.emit import model_source
from caffe_port.errors import CaffePortError
from caffe_port.evaluation import registry
from caffe_port.formats import caffemodel, prototxt, solverstate, wire
from caffe_port.formats.message import Message
from caffe_port.inspection import inspect
from caffe_port.net import state_dict
from caffe_port.storage import files, images, npz
from caffe_port.training import caffe_log, run_folder, solver
from caffe_port.verification import inputs
from caffe_port.verification.references.trace import Trace

READERS: dict[str, Callable[[Path], object]] = {
    "prototxt": lambda p: prototxt.read(p, "NetParameter"),
    "caffemodel": caffemodel.read,
    "mean": caffemodel.read_mean,
    "net": api.port,
    "weights": lambda p: api.port(None, p),
    "inspect": inspect.inspect_file,
    "solver": solver.SolverSpec.read,
    "solverstate": solverstate.read,
    "state_dict": state_dict.read,
    "log": caffe_log.read,
    "registry": registry.read,
    "trace": Trace.load,
    "npz": lambda p: npz.read(p, "a trace"),
    "npy": npz.read_npy,
    "sha256": files.sha256,
    "list": records.ImageList,
    "lmdb": LMDB,
    "set": lambda p: datasets.from_npz(p, "test"),
    "picture": lambda p: inputs.picture_input(p, (2, 3, 5, 7), Preprocessing()),
}


@contextmanager
def frugal(megabytes: int = 100, seconds: float = 3.0) -> Iterator[None]:
    """The block takes little time, and no memory that stays."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < megabytes << 10
    assert time.monotonic() - began < seconds


# -- what is no file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", READERS)
def test_no_files(reader: str, tmp_path: Path) -> None:
    """A named pipe that nobody writes to is not waited for; a device is not read."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "to_pipe").symlink_to("pipe")
    for name, what in {
        "pipe": "is a named pipe; expected a file",
        "to_pipe": "is a named pipe; expected a file",
        "folder": "is a folder; expected a file",
        "loop": "cannot be read: Too many levels of symbolic links",
        "dangling": "cannot be read: No such file",
        "absent": "cannot be read: No such file",
        "a\0b": "cannot be read: ",
        "x" * 300: "cannot be read: File name too long",
        "empty": "",
    }.items():
        if (reader, name) in (("sha256", "empty"), ("registry", "empty"), ("prototxt", "empty")):
            continue  # an empty file has a checksum, tells of no entries, and is a message
        if (reader, name) == ("lmdb", "folder"):
            what = "cannot be read: No such file"  # data.mdb in it
        with frugal(), pytest.raises(CaffePortError) as caught:
            READERS[reader](tmp_path / name)
        assert what in str(caught.value), name
    with frugal(), pytest.raises(CaffePortError, match="is a device; expected a file"):
        READERS[reader](Path("/dev/zero"))


def test_a_link_to_a_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "real").write_text('name: "n"')
    (tmp_path / "link").symlink_to("real")
    assert prototxt.read(tmp_path / "link", "NetParameter").name == "n"


def test_a_leveldb_reads_its_own_files_only(tmp_path: Path) -> None:
    for name in ("../../etc/passwd", "/etc/passwd", "MANIFEST-1/../x", "\0", ""):
        (tmp_path / "CURRENT").write_text(name)
        with pytest.raises(CaffePortError, match="names no MANIFEST"):
            LevelDB(tmp_path)
    (tmp_path / "CURRENT").unlink()
    os.mkfifo(tmp_path / "CURRENT")
    with pytest.raises(CaffePortError, match="no file CURRENT"):
        LevelDB(tmp_path)


# -- what declares too much -----------------------------------------------------------------------------------------


def _npy(shape: tuple[int, ...], content: bytes = b"") -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return out.getvalue() + content


def test_an_npz_bomb(tmp_path: Path) -> None:
    """200 MB of zeros in 200 kB, a declared terabyte, and a header that declares what the archive does not."""
    for name, content in {
        "zeros": _npy((50_000_000,), bytes(200_000_000)),
        "terabyte": _npy((1 << 20, 1 << 20)),
    }.items():
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("out:0:a:0.npy", content)
            archive.writestr("x_test.npy", content)
            archive.writestr("y_test.npy", content)
        for read in (Trace.load, lambda p: datasets.from_npz(p, "test")):
            with frugal(), pytest.raises(CaffePortError, match=r"declares [\d,]+ bytes"):
                read(tmp_path / name)
    whole = (tmp_path / "terabyte").read_bytes()
    lying = whole.replace(len(_npy((1 << 20, 1 << 20))).to_bytes(4, "little"), (0xFFFFFFF0).to_bytes(4, "little"))
    assert lying != whole
    (tmp_path / "lying").write_bytes(lying)
    with frugal(), pytest.raises(CaffePortError, match=r"declares 4,294,967,280 bytes"):
        Trace.load(tmp_path / "lying")


def _bomb(file: h5py.File, name: str) -> None:
    file.create_dataset(name, (400_000_000,), "f4", chunks=(1 << 20,), compression="gzip", fillvalue=1.0)
    file[name][: 1 << 20] = 0


def test_hdf5_bombs(tmp_path: Path) -> None:
    """1.6 GB declared in a few kB: of weights, of a state, of data; and data that lie in other files."""
    path = tmp_path / "w.h5"
    readers: dict[str, Callable[[], object]] = {
        "data/c/0": lambda: caffemodel.read(path),
        "history/0": lambda: solverstate.read(path),
        "data": lambda: records.Hdf5Feed([path], ["data"], 2),
    }
    for name, read in readers.items():
        with h5py.File(path, "w") as file:
            _bomb(file, name)
            file["learned_net"], file["iter"], file["current_step"] = "x", [1], [1]
        with frugal(), pytest.raises(CaffePortError, match=r"declares 1,600,000,000 bytes but stores \d+"):
            read()
        (tmp_path / "secret").write_bytes(bytes(400))
        for kind in ("external", "link", "virtual"):
            with h5py.File(path, "w") as file:
                file["learned_net"], file["iter"], file["current_step"] = "x", [1], [1]
                if kind == "external":
                    file.create_dataset(name, (100,), "f4", external=[(str(tmp_path / "secret"), 0, 400)])
                elif kind == "link":
                    file[name] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
                else:
                    layout = h5py.VirtualLayout((100,), "f4")
                    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (100,))
                    file.create_virtual_dataset(name, layout)
            with pytest.raises(CaffePortError, match=r"is a link to another file|is not a dataset of this file"):
                read()


def test_groups_that_contain_each_other(tmp_path: Path) -> None:
    """Two links back at every level would be two to the thirtieth paths."""
    with h5py.File(tmp_path / "w.h5", "w") as file:
        group = file.create_group("data")
        group["a"] = group["b"] = group
    with frugal(), pytest.raises(CaffePortError, match="contains itself"):
        caffemodel.read(tmp_path / "w.h5")


def test_pictures_that_declare_much(tmp_path: Path) -> None:
    """OpenCV would take 3 GB for a picture of a hundred bytes; in a process of its own, for it reads its limit once."""
    code = """
import struct, sys, zlib, resource
from caffe_port.storage import images as pictures
from caffe_port.emit import model_source
from caffe_port.errors import CaffePortError
pictures.opencv()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
png = b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 32000, 32000, 8, 2, 0, 0, 0))
png += chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
bmp = b"BM" + struct.pack("<IIIIiiHHIIiiII", 100, 0, 54, 40, 32000, 32000, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(99)
ppm = b"P6\\n32000 32000\\n255\\n" + bytes(99)
for data in (png, bmp, ppm, b"", b"GIF89a" + bytes(30)):
    try:
        pictures.decode(data, 1, "x")
        sys.exit("decoded")
    except CaffePortError as error:
        assert "cannot be decoded as an image" in str(error)
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert images.MAX_PIXELS < 1 << 28


def test_a_gzip_bomb_in_mnist(tmp_path: Path) -> None:
    """100 MB of zeros behind a header that declares 2 by 3."""
    header = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in (2, 2, 3))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(100_000_000), 1))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(bytes((0, 0, 8, 1, 0, 0, 0, 2, 3, 4)))
    with frugal(), pytest.raises(CaffePortError, match=r"declares \(2, 2, 3\), 12 bytes, but contains more"):
        datasets.load("mnist", "test", tmp_path)


def test_a_state_dict_that_declares_much(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header)
    (tmp_path / "b").write_bytes((1 << 40).to_bytes(8, "little") + b"{" + bytes(100))
    (tmp_path / "c").write_bytes((20_000).to_bytes(8, "little") + b'{"a":' + b"[" * 19_995)
    for name in "abc":
        with frugal(), pytest.raises(CaffePortError, match="is not a state_dict"):
            state_dict.read(tmp_path / name)
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(30_000_000)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(tmp_path / "d", "w", zipfile.ZIP_DEFLATED) as packed:
        for info in old.infolist():
            packed.writestr(info.filename, old.read(info))
    with frugal(), pytest.raises(CaffePortError, match="its archive is compressed"):
        state_dict.read(tmp_path / "d")
    endless: dict[str, Any] = {}
    endless["state_dict"] = endless
    torch.save(endless, tmp_path / "e")
    with frugal(), pytest.raises(CaffePortError, match="it contains no named tensors"):
        state_dict.read(tmp_path / "e")


# -- nesting, numbers, repetition -----------------------------------------------------------------------------------


def test_depth(tmp_path: Path) -> None:
    """10,000 deep, in text, on the wire and in JSON."""
    for number in (1, 3, 6, 25, 100):  # whatever the field is, and whatever it may hold again
        deep = b""
        for _ in range(10_000):
            deep = _varint(number << 3 | 2) + _varint(len(deep)) + deep
        for kind in ("NetParameter", "SolverParameter", "LayerParameter", "V1LayerParameter", "BlobProto", "Datum"):
            with frugal(), contextlib.suppress(CaffePortError):
                wire.parse(deep, kind)
    for text in (
        "layer {" * 10_000,
        "a { " * 10_000 + "}" * 10_000,
        "a < " * 10_000,
        "a: [" * 10_000,
        "a [ {" * 10_000,
    ):
        with frugal(), pytest.raises(CaffePortError):
            prototxt.parse(text, "NetParameter")
    (tmp_path / "metrics.jsonl").write_text("[" * 100_000 + '\n{"iter": 1, "kind": "train"}\n5\n"x"\n{"iter": "1"}\n')
    assert list(run_folder.read_metrics(tmp_path)) == [{"iter": 1, "kind": "train"}]
    run = run_folder.RunFolder(tmp_path / "run")
    for text in ("[" * 100_000, "5", "{}", '{"sha256": []}', '{"sha256": {}, "random": {"torch": "%%"}}', "\ud800"):
        (run.snapshots / "net_iter_1.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        assert run.latest()[0] is None
    (tmp_path / "r.toml").write_text("a = " + "[" * 100_000)
    with frugal(), pytest.raises(CaffePortError, match="is not TOML"):
        registry.read(tmp_path / "r.toml")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


NUMBERS = (
    "1e999999",
    "-1e999999",
    "1" * 5000,
    "0x" + "f" * 5000,
    "1e-999999",
    "9" * 400 + ".5",
    "4294967296",
    "-2147483649",
    "18446744073709551616",
)


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: n[:20])
def test_numbers(number: str) -> None:
    """A number is read, or its field says what it can be; in every field that takes one."""
    for text in (
        f"x {{ y: {number} }}",
        f"layer {{ loss_weight: {number} }}",
        f"input_dim: {number}",
        f"layer {{ convolution_param {{ num_output: {number} }} }}",
    ):
        with frugal():
            try:
                prototxt.dump(prototxt.parse(text, "NetParameter"))
            except CaffePortError as error:
                assert len(str(error)) < 300


def test_numbers_on_the_wire() -> None:
    for data_, what in {
        b"\x08" + b"\xff" * 9 + b"\x01": None,
        b"\x08" + b"\xff" * 10 + b"\x01": "longer than ten bytes",
        b"\x2a\x03\0\0\0": "not a whole number of floats",
        b"\x2a" + _varint(1 << 62): "bytes long",
        b"\x2a" + _varint(4) + bytes(4) + b"\x2a" + _varint(7) + bytes(7): "not a whole number of floats",
        b"\x2d\0\0\0": "ends inside a value",
        b"\x00\x01": "field with number 0",
        b"\x0b\x0c": None,  # a group, which is skipped
        b"\x0b\x14": "ends with the number of another",
    }.items():
        with frugal():
            try:
                wire.parse(data_, "BlobProto")
                assert what is None
            except CaffePortError as error:
                assert what is not None
                assert what in str(error)


def test_a_caffemodel_cut_at_every_byte(tmp_path: Path) -> None:
    """Whole, it is read; shorter by any number of bytes, it is a sentence (or a net that ends at a layer's end)."""
    path = tmp_path / "w"
    net = prototxt.parse(
        'layer { name: "a" type: "ReLU" } '
        'layer { name: "b" type: "InnerProduct" inner_product_param { num_output: 2 } }',
        "NetParameter",
    )
    caffemodel.write(path, net, {"b": [np.ones((2, 3), np.float32), np.ones(2, np.float32)]})
    whole = path.read_bytes()
    assert caffemodel.read(path).parameters == 8
    first = len(whole) - whole[::-1].index(b"\x06\xa2") - 2  # where layer 'b' begins: before it, 'a' is whole
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with contextlib.nullcontext() if length == first else pytest.raises(CaffePortError):
            caffemodel.read(path)


LAYER = 'layer {{ name: "{0}" type: "{1}" bottom: "{2}" top: "{0}" {3} }}\n'
TOO_MUCH = (
    LAYER.format("a", "Convolution", "x", "convolution_param { num_output: 2147483648 kernel_size: 1 }"),
    LAYER.format("a", "InnerProduct", "x", "inner_product_param { num_output: 2147483647 }"),
    LAYER.format("a", "Tile", "x", "tile_param { tiles: 2147483647 axis: 0 }")
    + LAYER.format("b", "Tile", "a", "tile_param { tiles: 2147483647 axis: 1 }"),
    LAYER.format("a", "Reshape", "x", "reshape_param { shape { dim: 9223372036854775807 dim: -1 } }"),
    'layer { name: "a" type: "Input" top: "a" input_param { shape { dim: [4294967296, 4294967296] } } }',
    LAYER.format("a", "ReLU", "a", ""),
    LAYER.format("a", "ReLU", "b", "") + LAYER.format("b", "ReLU", "a", ""),
    LAYER.format("a", "ReLU", "x", 'bottom: "x"'),
)


@pytest.mark.parametrize("text", TOO_MUCH)
def test_nets_that_ask_for_too_much(text: str, tmp_path: Path) -> None:
    path = tmp_path / "n.prototxt"
    path.write_text('layer { name: "x" type: "Input" top: "x" input_param { shape { dim: [2, 3, 5, 7] } } }\n' + text)
    for look in (api.port, inspect.inspect_file):
        with frugal():
            try:
                found: Any = look(path)
            except CaffePortError as error:
                assert str(path) in str(error)
            else:
                assert look is inspect.inspect_file
                inspect.render(found, 100)


@pytest.mark.parametrize("shape", ["dim: 1 " * 3_000_000, f"dim: [{'1, ' * 3_000_000} 1]"], ids=["fields", "list"])
def test_many_axes(shape: str, tmp_path: Path) -> None:
    """24 MB of `dim: 1` are read in seconds, and refused as Caffe refuses 33 axes."""
    path = tmp_path / "n.prototxt"
    path.write_text(f'layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ {shape} }} }} }}')
    with frugal(megabytes=2000, seconds=60), pytest.raises(CaffePortError, match=r"axes; Caffe's limit is 32"):
        api.port(path)
    with frugal(megabytes=2000, seconds=60):
        found = inspect.inspect_file(path)
    assert "axes; Caffe's limit is 32" in "; ".join(map(str, [*found.errors, *found.notes]))


def test_many_steps(tmp_path: Path) -> None:
    """A few bytes ask for a long sequence; nothing but the net's own forward takes its time."""
    path = tmp_path / "n.prototxt"
    path.write_text(
        'layer { name: "x" type: "Input" top: "x" top: "c" input_param { shape { dim: [100000, 1, 2] }\n'
        "shape { dim: [100000, 1] } } }\n"
        'layer { name: "l" type: "LSTM" bottom: "x" bottom: "c" top: "y" recurrent_param { num_output: 3 } }'
    )
    with frugal(megabytes=2000, seconds=60):
        model_source.model(api.port(path).net)


def test_many_messages() -> None:
    """Two bytes may ask for an object of a few hundred; a million are enough for any net."""
    with frugal(megabytes=2000, seconds=60), pytest.raises(CaffePortError, match="more than 1000000 messages"):
        wire.parse(b"\xa2\x06\x00" * 1_000_100, "NetParameter")
    assert len(wire.parse(b"\xa2\x06\x00" * 1000, "NetParameter").layer) == 1000


def test_repetition() -> None:
    """A field that is given twice, names that come twice, and what takes one value."""
    for text in ('name: "a" name: "b"', 'layer { type: "ReLU" type: "ReLU" }', "force_backward: [true, false]"):
        with pytest.raises(CaffePortError, match=r"twice|takes one value"):
            prototxt.parse(text, "NetParameter")
    twice = wire.parse(b"".join(wire.serialize(Message("NetParameter", name="a"))) * 2, "NetParameter")
    assert twice.name == "a"
