"""Sound inputs that fuzzing begins with: the goldens, small files made here, and the real ones of ../shared."""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import h5py
import numpy as np
import torch
from safetensors.torch import save

from caffe_port import api
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.emit.convert import convert
from caffe_port.evaluation.registry import model_defs
from caffe_port.formats import caffemodel, dialects, prototxt, solverstate, wire
from caffe_port.formats.message import Message, schema

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import dialect_nets

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden"
SHARED = Path(os.environ.get("CAFFE_PORT_SHARED") or HERE.parents[2] / "shared")
NET = HERE / "small.prototxt"
LONGEST = 1 << 16

SMALL = """name: "n"
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: [2, 3, 5, 7] } } }
layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 2 kernel_size: [3, 2] } }
layer { name: "bn" type: "BatchNorm" bottom: "c" top: "c" }
layer { name: "s" type: "Scale" bottom: "c" top: "c" scale_param { bias_term: true } }
layer { name: "r" type: "ReLU" bottom: "c" top: "c" }
layer { name: "ip" type: "InnerProduct" bottom: "c" top: "ip" inner_product_param { num_output: 4 } }
"""
V0 = """name: "old" input: "x" input_dim: 2 input_dim: 3 input_dim: 5 input_dim: 7
layers { layer { name: "c" type: "conv" num_output: 2 kernelsize: 3 pad: 1 blobs { num: 2 channels: 3 height: 3 width: 3
  data: [%s] } blobs { num: 1 channels: 1 height: 1 width: 2 data: [1, 2] } } bottom: "x" top: "c" }
layers { layer { name: "r" type: "relu" } bottom: "c" top: "c" }
""".replace("[%s]", str([0.5] * 54))
V1 = (
    V0.replace(
        'layer { name: "c" type: "conv" num_output: 2 kernelsize: 3 pad: 1 ',
        'name: "c" type: CONVOLUTION convolution_param { num_output: 2 kernel_size: 3 pad: 1 } ',
    )
    .replace("] } } bottom", "] } bottom")
    .replace('layer { name: "r" type: "relu" }', 'name: "r" type: RELU')
)


def seeds(target: str) -> list[bytes]:
    """The seeds of a target, none longer than LONGEST."""
    return [data for data in _ALL[target]() if len(data) <= LONGEST]


def words(target: str) -> list[str]:
    """What a mutator may put in: names of the format."""
    if target in ("net_prototxt", "solver_prototxt"):
        types = {
            layer.type
            for p in (GOLDEN / "layers").glob("*.prototxt")
            for layer in prototxt.read(p, "NetParameter").layer
        }
        names = [
            f
            for m in (
                "NetParameter",
                "LayerParameter",
                "SolverParameter",
                "V1LayerParameter",
                "ConvolutionParameter",
                "PoolingParameter",
                "TransformationParameter",
                "FillerParameter",
            )
            for f in schema(m).fields
        ]
        return [*names, *types, "1e999999", "-1", "2147483648", "4294967295", "nan", "{ }", "[ ]"]
    if target == "caffe_log":
        return ["I0102 03:04:05.678901  1 solver.cpp:1] ", "Iteration 100, loss = ", "Testing net (#0)", "lr = ", "nan"]
    if target == "registry_toml":
        return ["[a]", "preprocessing", "reported", "weights", "mean = ", "std", "1e999", "inf", "[[a.b]]"]
    if target == "port_json":
        keys = ["class", "inputs", "outputs", "output_types", "preprocessing", "classes", "mean", "std", "scale"]
        return [*map('"{}":'.format, keys), "null", "1e999", "-1", "NaN", "[" * 999, "true", "99999999999"]
    if target == "onnx_names":
        return ["\0", "/", ":", "::", "%", "self", "if", "x_2", " ", "\u202e", "\U0001f600", "onnx::x", '"', "\\"]
    return []


def _files(pattern: str, *folders: Path) -> Iterator[bytes]:
    for folder in folders:
        for path in sorted(folder.rglob(pattern)) if folder.is_dir() else []:
            yield path.read_bytes()


def _cut(data: bytes) -> bytes:
    """A real caffemodel with the first number of every blob only."""

    def short(message: Message) -> Message:
        for name, value in message.items():
            if name == "blobs":
                value[:] = [Message("BlobProto", shape=Message("BlobShape", dim=[1]), data=np.ones(1, np.float32))]
            elif isinstance(value, list) and value and isinstance(value[0], Message):
                [short(one) for one in value]
            elif isinstance(value, Message):
                short(value)
        return message

    return b"".join(wire.serialize(short(wire.parse(data, "NetParameter"))))


def _caffemodels() -> Iterator[bytes]:
    for text in (V0, V1):
        yield b"".join(wire.serialize(prototxt.parse(text, "NetParameter")))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "n"
        path.write_text(SMALL)
        ported = api.port(path)
        caffemodel.write(path, ported.definition.net, ported.net.blobs())
        yield path.read_bytes()
    yield from _files("*.caffemodel", GOLDEN)
    yield from map(_cut, _files("*.caffemodel", SHARED / "models"))


def _hdf5(write: object) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        write(file)  # type: ignore[operator]
    return buffer.getvalue()


def _caffemodels_h5() -> Iterator[bytes]:
    def small(file: h5py.File) -> None:
        file["data/c/0"], file["data/c/1"] = np.ones((2, 3, 3, 2), np.float32), np.ones(2, np.float32)
        file.create_dataset("data/ip/0", data=np.zeros((40, 48)), chunks=(8, 8), compression="gzip")

    yield _hdf5(small)
    yield _hdf5(lambda file: file.create_dataset("data/a/b/0", data=np.ones(3, np.float16)))


def _blobs() -> Iterator[bytes]:
    """Weights for small.prototxt, with the shapes stated in every way that files have."""
    held = api.load(NET).blobs()
    for form in ("shape", "old", "both", "none", "double", "old in a shape"):
        layers = [Message("LayerParameter", name=n, blobs=[_blob(b, form) for b in blobs]) for n, blobs in held.items()]
        yield b"".join(wire.serialize(Message("NetParameter", layer=layers)))


def _blob(values: np.ndarray, form: str) -> Message:
    blob = Message("BlobProto")
    if form == "double":
        blob.set("double_data", values.astype(np.float64).ravel())
    else:
        blob.set("data", values.astype(np.float32).ravel())
    axes = (*((1,) * (4 - values.ndim)), *values.shape)
    if form in ("old", "both"):
        for name, length in zip(("num", "channels", "height", "width"), axes, strict=True):
            blob.set(name, length)
    if form in ("shape", "both", "double"):
        blob.set("shape", Message("BlobShape", dim=list(values.shape)))
    elif form == "old in a shape":
        blob.set("shape", Message("BlobShape", dim=list(axes)))
    return blob


def _forks() -> Iterator[bytes]:
    """Nets of known forks and one of each dialect's own fields, under the numbers of the dialect."""
    for name in dialect_nets.NETS:
        yield b"\0" + dialect_nets.written(dialect_nets.net(name), dialects.find(name), "NetParameter")
    for number, dialect in enumerate(dialects.dialects()):
        net = dialect_nets.made_of(dialect) if dialect.era == "V2" else None
        if net is not None:
            yield bytes([number % 256]) + dialect_nets.written(net, dialect, "NetParameter")
    for data in _files("*.caffemodel", SHARED / "golden" / "forks"):
        yield b"\0" + data


def _reports() -> Iterator[bytes]:
    """What convert writes, without and with preprocessing."""
    with tempfile.TemporaryDirectory() as folder:
        for number, plan in enumerate((None, Preprocessing("BGR", (1, 2, 3), scale=0.5))):
            out = Path(folder) / str(number)
            convert(api.port(NET), out, preprocessing=plan, classes=["a", "b"] if plan else ())
            yield (out / "port.json").read_bytes()


def _means() -> Iterator[bytes]:
    for shape in ((1, 3, 2, 5), (3, 2, 5)):
        yield b"".join(wire.serialize(caffemodel.blob_message(np.ones(shape, np.float32))))
    old = Message("BlobProto", num=1, channels=3, height=2, width=5, data=np.ones(30, np.float32))
    yield b"".join(wire.serialize(old))


def _states_h5() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.h5"
        solverstate.write(path, solverstate.SolverState(7, "w.caffemodel", (np.ones((2, 3), np.float32),), 1))
        yield path.read_bytes()


def _pictures() -> Iterator[bytes]:
    colours = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    for picture in (colours, colours[:, :, 0]):
        for form in (".png", ".jpg", ".bmp", ".webp", ".tiff", ".ppm" if picture.ndim == 3 else ".pgm"):
            done, data = cv2.imencode(form, picture)
            assert done
            yield data.tobytes()


def _data() -> Iterator[bytes]:
    yield b"".join(wire.serialize(Message("Datum", channels=2, height=2, width=3, data=bytes(12), label=5)))
    floats = Message("Datum", channels=1, height=2, width=3, float_data=[1.0] * 6, label=5)
    yield b"".join(wire.serialize(floats))
    for picture in _pictures():
        yield b"".join(wire.serialize(Message("Datum", data=picture, label=1, encoded=True)))


def _leveldbs() -> Iterator[bytes]:
    for number, path in enumerate(sorted((GOLDEN / "leveldb" / "db").iterdir())):
        yield bytes([number]) + path.read_bytes()


def _lmdbs() -> Iterator[bytes]:
    import lmdb

    for records in (2, 120):
        with tempfile.TemporaryDirectory() as folder:
            with lmdb.open(folder, map_size=1 << 20) as env, env.begin(write=True) as txn:
                for k in range(records):
                    datum = Message("Datum", channels=1, height=2, width=3, data=bytes(6), label=k)
                    txn.put(b"%08d" % k, b"".join(wire.serialize(datum)) + bytes(3000 * (k == 7)))
            yield (Path(folder) / "data.mdb").read_bytes()


def _logs() -> Iterator[bytes]:
    yield (
        b"I0102 03:04:05.678901  17 solver.cpp:48] Initializing solver from parameters: \nbase_lr: 0.1\n\n"
        b"I0102 03:04:06.678901  17 solver.cpp:330] Iteration 0, Testing net (#0)\n"
        b"I0102 03:04:07.678901  17 solver.cpp:397]     Test net output #0: accuracy = 0.0953\n"
        b"I0102 03:04:08.678901  17 solver.cpp:218] Iteration 0 (-1 iter/s, 0s/100 iters), loss = 2.3\n"
        b"I0102 03:04:08.678901  17 sgd_solver.cpp:105] Iteration 0, lr = 1e-3\n"
    )
    for data in _files("*.log", SHARED / "models"):
        yield data[:8000]
        yield data[-8000:]


def _traces() -> Iterator[bytes]:
    yield from (path.read_bytes() for path in sorted((GOLDEN / "layers").glob("*.npz"))[::12])
    for pack in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        meta = np.array('{"provenance":{}}')
        pack(buffer, **{"in:x": np.ones((1, 2)), "out:3:relu:0": np.ones((1, 2)), "meta": meta})
        yield buffer.getvalue()


def _states() -> Iterator[bytes]:
    tensors = {"c.weight": torch.ones(2, 3), "c.bias": torch.ones(2, dtype=torch.float16)}
    yield save(tensors)
    for wrapped in (tensors, {"state_dict": tensors, "epoch": 3}):
        for new in (True, False):
            buffer = io.BytesIO()
            torch.save(wrapped, buffer, _use_new_zipfile_serialization=new)
            yield buffer.getvalue()


_ALL = {
    "net_prototxt": lambda: [
        SMALL.encode(),
        V0.encode(),
        V1.encode(),
        *(p.read_bytes() for p in sorted((GOLDEN / "layers").glob("*.prototxt"))),
        *_files("*train*.prototxt", SHARED / "models"),
        *_files("*deploy*", SHARED / "models"),
    ],
    "solver_prototxt": lambda: [*_files("*solver*.prototxt", GOLDEN, SHARED / "models", model_defs())],
    "caffemodel": _caffemodels,
    "caffemodel_h5": _caffemodels_h5,
    "blob_shapes": _blobs,
    "dialect": _forks,
    "binaryproto": _means,
    "solverstate": lambda: _files("*.solverstate", GOLDEN),
    "solverstate_h5": _states_h5,
    "datum": _data,
    "leveldb": _leveldbs,
    "lmdb": _lmdbs,
    "picture_list": lambda: [b"a 1\n\na 2\0" + picture for picture in _pictures()],
    "caffe_log": _logs,
    "registry_toml": lambda: [(model_defs() / "registry.toml").read_bytes()],
    "labels": lambda: [b"cat\ndog\n", b"n01440764 tench, Tinca tinca\nn01443537 goldfish\n", "\ufeffé\r\n".encode()],
    "onnx_names": lambda: [b"data\0prob\0input\0layer/1", b"x", b"a:0\0a.0\0\0\xc3\xa9", b"a\0b\0a\0b", b"self\0self"],
    "port_json": _reports,
    "trace_npz": _traces,
    "state_dict": _states,
}
