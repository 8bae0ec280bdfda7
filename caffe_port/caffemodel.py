"""Caffe's binary files <-> arrays: .caffemodel (V0, V1, V2), .caffemodel.h5, .binaryproto, .solverstate.

Files are memory-mapped and arrays are views of the mapping: reading takes the time of reading the headers, and files
of any size work. Sources: net.cpp (CopyTrainedLayersFrom, ToProto), blob.cpp (FromProto), hdf5.cpp, solver.cpp.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port import wire
from caffe_port.errors import CaffePortError, DependencyError, ParseError
from caffe_port.files import atomic_write
from caffe_port.message import Message

Array = np.ndarray[Any, Any]

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
MAX_AXES = 32  # kMaxBlobAxes of blob.hpp
_NOT_WEIGHTS = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"PK\x03\x04", "a zip archive (a PyTorch file?)"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run `git lfs pull`"),
    (b"<", "a web page or XML, not weights; was the download an error page?"),
)


@dataclass(frozen=True)
class LayerBlobs:
    """The parameter blobs of one layer, in Caffe's order and shape."""

    name: str
    type: str
    blobs: tuple[Array, ...]


@dataclass(frozen=True)
class Weights:
    """What a weights file holds.

    Attributes:
        path: the file.
        format: ``"V2"``, ``"V1"``, ``"V0"`` or ``"HDF5"``.
        layers: the layers that have blobs, in the file's order.
        net: the definition that the file carries (a NetParameter without blobs); None for HDF5.
    """

    path: str
    format: str
    layers: tuple[LayerBlobs, ...]
    net: Message | None = field(repr=False)

    @property
    def parameters(self) -> int:
        """Numbers held, of all blobs."""
        return sum(blob.size for layer in self.layers for blob in layer.blobs)

    def by_name(self) -> dict[str, LayerBlobs]:
        """Layers by name; the first of equal names counts, as in Caffe."""
        table: dict[str, LayerBlobs] = {}
        for layer in self.layers:
            table.setdefault(layer.name, layer)
        return table


def read(path: str | Path) -> Weights:
    """Reads a .caffemodel or .caffemodel.h5.

    Raises:
        ParseError: damaged, or another kind of file; says which.
        CaffePortError: it cannot be read.
    """
    data = map_file(path)
    where = str(path)
    if data[: len(HDF5_MAGIC)] == HDF5_MAGIC:
        return _read_hdf5(where)
    for magic, kind in _NOT_WEIGHTS:
        if data[: len(magic)] == magic:
            raise ParseError(f"is {kind}, not a .caffemodel", where)
    if _looks_like_text(bytes(data[:512])):
        raise ParseError("is text, not a .caffemodel", where, "Give the prototxt first, the weights second.")
    return from_message(wire.parse(data, "NetParameter", where), where)


def from_message(net: Message, where: str = "<message>") -> Weights:
    """The Weights of a NetParameter that holds blobs."""
    layers: list[LayerBlobs] = []
    bare: list[Message] = []
    format_, entries = ("V2", net.layer) if net.has("layer") else ("V1", net.layers)
    for entry in entries:
        inner = entry
        if format_ != "V2" and entry.has("layer"):
            format_, inner = "V0", entry.layer
        protos = inner.blobs or entry.blobs
        if protos:
            arrays = []
            for index, proto in enumerate(protos):
                try:
                    arrays.append(blob_array(proto))
                except ParseError as error:
                    raise ParseError(f"layer '{inner.name}', blob {index}: {error.what}", where) from None
            layers.append(LayerBlobs(inner.name, str(inner.type), tuple(arrays)))
        bare.append(_without_blobs(entry))
    if not bare or not layers:
        what = "no layers" if not bare else f"{len(bare)} layers, none with weights"
        raise ParseError(f"holds {what}: not a .caffemodel, or a damaged one", where)
    names = "layer" if format_ == "V2" else "layers"
    return Weights(where, format_, tuple(layers), net.copy(**{names: bare}))


def _without_blobs(layer: Message) -> Message:
    layer = layer.copy(blobs=None)
    if layer.schema is not None and layer.schema.name == "V1LayerParameter" and layer.has("layer"):
        layer.set("layer", layer.layer.copy(blobs=None))
    return layer


def blob_array(proto: Message) -> Array:
    """The array of a BlobProto: float32 or float64 views, float16 of ``raw_data`` (NVCaffe, OpenCV) as it is.

    Raises:
        ParseError: the shape does not fit the number of values, or is none.
    """
    if proto.has("double_data"):
        data: Array = np.asarray(proto.double_data, np.float64)
    elif proto.has("raw_data"):
        data = _raw_array(proto)
    else:
        data = np.asarray(proto.data, np.float32)
    if proto.has("shape"):
        shape = tuple(proto.shape.dim)
    elif any(proto.has(name) for name in ("num", "channels", "height", "width")):
        shape = (proto.num, proto.channels, proto.height, proto.width)
    else:
        shape = (data.size,)
    if len(shape) > MAX_AXES:
        raise ParseError(f"a shape of {len(shape)} axes; Caffe allows {MAX_AXES}")
    if min(shape, default=1) < 0:
        raise ParseError(f"shape {shape} has a negative axis")
    if math.prod(shape) != data.size:
        raise ParseError(f"shape {shape} asks for {math.prod(shape)} values, the file holds {data.size}")
    try:
        return data.reshape(shape)
    except ValueError:  # no values, but axes beyond NumPy's range
        raise ParseError(f"shape {shape} is larger than any memory") from None


def _raw_array(proto: Message) -> Array:
    dtypes = {"FLOAT": "<f4", "FLOAT16": "<f2", "DOUBLE": "<f8"}
    dtype = dtypes.get(proto.raw_data_type)
    if dtype is None:
        raise ParseError(f"raw_data of type {proto.raw_data_type} is not a float type")
    if len(proto.raw_data) % np.dtype(dtype).itemsize:
        raise ParseError(f"raw_data of {len(proto.raw_data)} bytes is no whole number of {proto.raw_data_type} values")
    return np.frombuffer(proto.raw_data, dtype)


def map_file(path: str | Path) -> memoryview:
    """A file's bytes, memory-mapped.

    Raises:
        CaffePortError: it does not exist, is a folder or cannot be read.
        ParseError: it is empty.
    """
    try:
        with Path(path).open("rb") as file:
            if not file.seek(0, 2):
                raise ParseError("is empty", str(path))
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except IsADirectoryError:
        raise CaffePortError("is a folder, a file was expected", str(path)) from None
    except (OSError, ValueError) as error:
        raise CaffePortError(f"cannot be read: {getattr(error, 'strerror', error)}", str(path)) from None


def _looks_like_text(head: bytes) -> bool:
    return b"{" in head and all(b in b"\t\n\r\f" or 32 <= b < 127 for b in head)


def _read_hdf5(where: str) -> Weights:
    try:
        import h5py
    except ImportError:
        raise DependencyError("is HDF5, which needs h5py", where, "pip install 'caffe-port[hdf5]'") from None
    layers = []
    try:
        with h5py.File(where, "r") as file:
            if "data" not in file or not isinstance(file["data"], h5py.Group):
                raise ParseError("holds no group 'data': not a .caffemodel.h5", where)
            for name, group in _hdf5_layers(file["data"], h5py):
                blobs = []
                for index in sorted(group, key=int):
                    _check_hdf5_size(group[index], where, name)
                    blobs.append(np.asarray(group[index][()], np.float32))
                if blobs:
                    layers.append(LayerBlobs(name, "", tuple(blobs)))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise ParseError(f"is a damaged HDF5 file: {str(error)[:200]}", where) from None
    if not layers:
        raise ParseError("holds no layers with weights", where)
    return Weights(where, "HDF5", tuple(layers), None)


def _hdf5_layers(group: Any, h5py: Any, prefix: str = "", depth: int = 0) -> Iterable[tuple[str, Any]]:
    """Groups whose members are datasets 0, 1, ...; a '/' in a layer's name makes HDF5 nest groups."""
    if depth > 32:
        raise ValueError("groups are nested more than 32 deep")
    for name in group:
        member = group[name]
        if not isinstance(member, h5py.Group):
            continue
        if all(key.isdecimal() and isinstance(member[key], h5py.Dataset) for key in member):
            yield prefix + name, member
        else:
            yield from _hdf5_layers(member, h5py, f"{prefix}{name}/", depth + 1)


def _check_hdf5_size(dataset: Any, where: str, layer: str) -> None:
    declared = math.prod(dataset.shape) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    if declared > 1024 * stored + (1 << 20):
        raise ParseError(f"layer '{layer}' declares {declared} bytes, {stored} are stored", where)


def read_mean(path: str | Path) -> Array:
    """The mean image of a .binaryproto.

    Returns:
        float32 (C, H, W), in the channel order of the database it was computed from (BGR for Caffe's own tools).

    Raises:
        ParseError: not a BlobProto, or not one image.
    """
    proto = wire.parse(map_file(path), "BlobProto", str(path))
    if not (proto.has("data") or proto.has("double_data")):
        raise ParseError("holds no data: not a .binaryproto mean", str(path))
    try:
        mean = blob_array(proto)
    except ParseError as error:
        raise ParseError(error.what, str(path)) from None
    if mean.ndim == 4 and mean.shape[0] == 1:
        mean = mean[0]
    if mean.ndim != 3:
        raise ParseError(f"shape {mean.shape} is not one image (1, C, H, W)", str(path))
    return np.asarray(mean, np.float32)


def blob_message(array: Array) -> Message:
    """A BlobProto that holds the array as float32."""
    shape = Message("BlobShape", dim=list(array.shape))
    return Message("BlobProto", shape=shape, data=np.ascontiguousarray(array, np.float32).reshape(-1))


def write(path: str | Path, net: Message, blobs: dict[str, list[Array]]) -> None:
    """Writes a V2 .caffemodel: the definition with every layer's blobs, as Caffe's snapshot does.

    Args:
        net: NetParameter with ``layer`` entries.
        blobs: layer name -> arrays in Caffe's order.

    Raises:
        CaffePortError: the file cannot be written, or a blob's layer is not in the net.
    """
    missing = set(blobs) - {layer.name for layer in net.layer}
    if missing:
        raise CaffePortError(f"layer '{min(missing)}' has blobs but is not in the net", str(path))
    layers = [layer.copy(blobs=[blob_message(a) for a in blobs[layer.name]] if layer.name in blobs else None)
              for layer in net.layer]  # fmt: skip
    with atomic_write(path) as file:
        for chunk in wire.serialize(net.copy(layer=layers)):
            file.write(chunk)
