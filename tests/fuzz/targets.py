"""What is fuzzed: every reader of files, as functions of bytes. Each ends in a result or in a CaffePortError."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from caffe_port import api
from caffe_port.data import annotations, class_names, records
from caffe_port.data.prepare import prepare
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.definition import model_archive
from caffe_port.definition.definition import Definition
from caffe_port.emit import blobs, model_source
from caffe_port.emit.convert import convert
from caffe_port.errors import CaffePortError
from caffe_port.evaluation import predict, registry
from caffe_port.formats import caffemodel, dialects, prototxt, recognition, solverstate, wire
from caffe_port.formats.message import Message
from caffe_port.inspection import inspect
from caffe_port.net.state_dict import read as read_state_dict
from caffe_port.training import solver
from caffe_port.training.caffe_log import read as read_log
from caffe_port.training.caffe_log import to_csv
from caffe_port.verification.references import trace

LEVELDB = Path(__file__).resolve().parent.parent / "golden" / "leveldb" / "db"
MANY = 1_000_000
"""Parameters of a net that is built: what a definition asks for within Caffe's limits is its author's choice."""

NET = Path(__file__).with_name("small.prototxt")

_FOLDER = tempfile.TemporaryDirectory(prefix="caffe-port-fuzz.", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def _file(data: bytes, name: str) -> Path:
    path = Path(_FOLDER.name) / name
    path.unlink(missing_ok=True)  # the last one may still be mapped
    path.write_bytes(data)
    return path


def _looked_at(path: Path) -> bool:
    """Inspects a net as the command line does; whether it is small enough to be built."""
    found = inspect.inspect_file(path, options=inspect.Options(numbers=True))
    json.dumps(found.to_json())
    inspect.render(found, 100)
    return not found.errors and not found.unknown["parameters"] and found.totals["parameters"] < MANY


def net_prototxt(data: bytes) -> None:
    """A net's text: parsed, written again, looked at, built, and written as model.py, which compiles."""
    path = _file(data, "net.prototxt")
    definition = Definition.read(path)
    prototxt.parse(prototxt.dump(definition.net), "NetParameter")
    if _looked_at(path):
        written = model_source.model(api.port(path).net)
        compile(written.source, "model.py", "exec")


def solver_prototxt(data: bytes) -> None:
    """A solver's text: parsed, written again, looked at, and asked for its learning rates."""
    spec = solver.SolverSpec.read(_file(data, "solver.prototxt"))
    prototxt.parse(prototxt.dump(spec.param), "SolverParameter")
    for it in (0, 1, 7, 1000):
        if it < spec.max_iter:
            solver.learning_rate(spec, it)
            solver.current_step(spec, it)
    inspect.render(inspect.inspect_file(_file(data, "solver.prototxt")), 100)


def weights(data: bytes) -> None:
    """A .caffemodel of any age, or .caffemodel.h5."""
    path = _file(data, "net.caffemodel")
    stored = caffemodel.read(path)
    blobs.write(path.with_name("blobs.safetensors"), stored)
    if stored.net is not None:
        b"".join(wire.serialize(stored.net))
        prototxt.dump(stored.net)
        if _looked_at(path):
            api.port(None, path)
    else:
        _looked_at(path)


def blob_shapes(data: bytes) -> None:
    """A .caffemodel for a certain net: it is loaded only if Caffe would load it, but for axes of length one."""
    api.load(NET, _file(data, "net.caffemodel"))
    asked = _shapes()
    stored = wire.parse(data, "NetParameter")
    for layer in stored.layer or stored.layers:
        if layer.name in asked:
            shapes = asked[layer.name]
            assert len(layer.blobs) == len(shapes), f"{layer.name}: {len(layer.blobs)} blobs"
            for blob, shape in zip(layer.blobs, shapes, strict=True):
                assert _caffe_takes(blob, shape), f"{layer.name}: {blob} for {shape}"


@functools.cache
def _shapes() -> dict[str, list[tuple[int, ...]]]:
    return {layer: [blob.shape for blob in blobs] for layer, blobs in api.load(NET).blobs().items()}


def _caffe_takes(blob: Message, shape: tuple[int, ...]) -> bool:
    """Blob::ShapeEquals and Blob::FromProto (blob.cpp), but that axes of length one may be added or missing, and that
    a vector may go without a shape."""
    values = len(blob.double_data) or len(blob.data)
    old = [blob.num, blob.channels, blob.height, blob.width]
    held = old if any(map(blob.has, ("num", "channels", "height", "width"))) else list(blob.shape.dim)
    if not held and len(shape) == 1:
        held = [values]
    return [n for n in held if n != 1] == [n for n in shape if n != 1] and values == np.prod(shape, dtype=int)


def dialect(data: bytes) -> None:
    """A .caffemodel of a fork: recognized, or read with the numbers of the dialect that the first byte selects."""
    if not data:
        return
    known = dialects.dialects()
    given = None if data[0] < 128 else known[data[0] * 5 % len(known)].label
    net, found = recognition.read(data[1:], "NetParameter", "net.caffemodel", given)
    prototxt.dump(net)
    if found is not None:
        for text in (found.note, found.written_by, *found.evidence, *map(str, (*found.open, *found.unknown))):
            assert len(text) < 5000


def mean(data: bytes) -> None:
    caffemodel.read_mean(_file(data, "mean.binaryproto"))
    inspect.inspect_file(_file(data, "mean.binaryproto"))


def solver_state(data: bytes) -> None:
    """A .solverstate or .solverstate.h5."""
    state_ = solverstate.read(_file(data, "net.solverstate"))
    with contextlib.suppress(CaffePortError):
        solverstate.weights_beside(state_)
    inspect.inspect_file(_file(data, "net.solverstate"))


def datum(data: bytes) -> None:
    """A record of a database; the picture in it may be encoded."""
    for color in (-1, 0, 1):
        records.datum(data, "record", color)


class _One:
    """A database of one record."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __len__(self) -> int:
        return 1

    def key(self, index: int) -> bytes:
        return b"00000000"

    def __getitem__(self, index: int) -> bytes:
        return self.data


def annotated_datum(data: bytes) -> None:
    """A record of SSD's databases; the picture in it may be encoded."""
    found = annotations.AnnotatedDatabase(LEVELDB)  # whose records are replaced
    found._records = _One(data)  # type: ignore[assignment]
    found.has_boxes()
    found[0]


def annotation(data: bytes) -> None:
    """The boxes of an image, as XML, or, after a NUL, as lines of numbers."""
    path = _file(data.removeprefix(b"\0"), "boxes.txt" if data.startswith(b"\0") else "boxes.xml")
    annotations.AnnotatedFiles([(_converted() / "a.png", path)], {"cat": 1, "dog": 2})[0]


def archive(data: bytes) -> None:
    """A model in a .tar, .tar.gz, .tar.bz2 or .zip."""
    path = _file(data, "model.tar")
    if model_archive.is_archive(path):
        model_archive.read(path)


def leveldb(data: bytes) -> None:
    """A LevelDB; the first byte tells which of its files the others replace."""
    folder = Path(_FOLDER.name) / "leveldb"
    names = sorted(path.name for path in LEVELDB.iterdir())
    if not folder.is_dir():
        folder.mkdir()
    chosen = names[data[0] % len(names)] if data else names[0]
    for name in names:
        _file(data[1:] if name == chosen else (LEVELDB / name).read_bytes(), f"leveldb/{name}")
    found = records.Database(folder)
    for index in range(min(len(found), 50)):
        found[index]


def lmdb(data: bytes) -> None:
    """A data.mdb."""
    found = records.Database(_file(data, "data.mdb"))
    for index in range(min(len(found), 50)):
        found[index]


def picture_list(data: bytes) -> None:
    """A list of pictures and labels; what lies behind a NUL is the picture that 'a' names."""
    text, _, picture = data.partition(b"\0")
    _file(picture, "a")
    found = records.ImageList(_file(text, "list.txt"), f"{_FOLDER.name}/")
    for index in range(min(len(found), 20)):
        prepare(found[index][0], Preprocessing(None, resize=(5, 7)))


def caffe_log(data: bytes) -> None:
    log = read_log(_file(data, "caffe.log"))
    json.dumps(log.as_dict())
    to_csv(log, Path(_FOLDER.name) / "log.csv")


def registry_toml(data: bytes) -> None:
    for entry in registry.read(_file(data, "registry.toml")).values():
        str(entry.preprocessing)


def labels(data: bytes) -> None:
    """A file of class names, one per line."""
    class_names.read(_file(data, "labels.txt"))


def onnx_names(data: bytes) -> None:
    """The names of an input, its layer, and up to eight more tops and layers, with NULs between, exported and run."""
    names = [part[:200] for part in data.split(b"\0")[:18]]
    names += [b"%d" % k for k in range(len(names), max(len(names) + len(names) % 2, 4))]
    blobs, layers = ([prototxt.quoted(name) for name in names[k::2]] for k in (0, 1))
    text = f'layer {{ name: {layers[0]} type: "Input" top: {blobs[0]} input_param {{ shape {{ dim: [2, 3] }} }} }}\n'
    for layer, bottom, top in zip(layers[1:], blobs, blobs[1:], strict=False):
        text += f'layer {{ name: {layer} type: "Power" bottom: {bottom} top: {top} power_param {{ shift: 1 }} }}\n'
    ported = api.port(_file(text.encode(), "net.prototxt"))
    _spare_the_exporter()
    try:
        convert(ported, Path(_FOLDER.name) / "names", formats=("onnx",), dynamic="none", force=True)
    except CaffePortError as error:
        if "model.onnx" in error.where:  # a sum can be exported, whatever the names
            raise AssertionError(str(error)) from None


@functools.cache
def _spare_the_exporter() -> None:
    """Lets torch.onnx list its operators once, not in every export, and decompose none: a sum needs none of that.

    This makes an input six times as fast. Where PyTorch has no such functions, it exports as ever.
    """
    try:
        from torch.onnx._internal.exporter import _fx_passes, _registration

        of_torchlib, registry = functools.cache(_registration.ONNXRegistry.from_torchlib), _registration.ONNXRegistry

        def from_torchlib(*arguments: Any, **named: Any) -> Any:
            made, own = of_torchlib(*arguments, **named), registry()
            own.__dict__.update(made.__dict__)
            own.functions = {name: list(found) for name, found in made.functions.items()}  # the caller adds to them
            return own

        of_torchlib()
    except (ImportError, AttributeError):
        return
    registry.from_torchlib = staticmethod(from_torchlib)
    _fx_passes.decompose_with_registry = lambda program, _: program


def port_json(data: bytes) -> None:
    """The port.json of a folder that convert wrote, with which an image is predicted."""
    folder = _converted()
    (folder / "port.json").write_bytes(data)
    predict.Predictor(folder).predict(folder / "a.png")


@functools.cache
def _converted() -> Path:
    folder = Path(_FOLDER.name) / "converted"
    convert(api.port(NET), folder)
    cv2.imwrite(str(folder / "a.png"), np.arange(105, dtype=np.uint8).reshape(5, 7, 3))
    return folder


def trace_npz(data: bytes) -> None:
    trace.Trace.load(_file(data, "trace.npz"))


def state_dict(data: bytes) -> None:
    """.safetensors, .pt, .pth."""
    read_state_dict(_file(data, "state.pt"))


TARGETS: dict[str, Callable[[bytes], None]] = {
    "net_prototxt": net_prototxt,
    "solver_prototxt": solver_prototxt,
    "caffemodel": weights,
    "caffemodel_h5": weights,
    "blob_shapes": blob_shapes,
    "dialect": dialect,
    "binaryproto": mean,
    "solverstate": solver_state,
    "solverstate_h5": solver_state,
    "datum": datum,
    "annotated_datum": annotated_datum,
    "annotation": annotation,
    "archive": archive,
    "leveldb": leveldb,
    "lmdb": lmdb,
    "picture_list": picture_list,
    "caffe_log": caffe_log,
    "registry_toml": registry_toml,
    "labels": labels,
    "onnx_names": onnx_names,
    "port_json": port_json,
    "trace_npz": trace_npz,
    "state_dict": state_dict,
}


def check(target: str, data: bytes) -> None:
    """Runs a target; what it raises, CaffePortError apart, is a finding."""
    try:
        TARGETS[target](data)
    except CaffePortError as error:
        text = str(error)
        assert len(text) < 5000, "an error is a sentence or two"
        assert "\n" not in error.what, "one line says what"  # noqa: PT017
