"""Caffe's binary files <-> arrays: .caffemodel (V0, V1, V2), .caffemodel.h5, .binaryproto, .solverstate.

Files are memory-mapped and arrays are views of the mapping, so that only the headers are read and files of any size
work. Sources: net.cpp (CopyTrainedLayersFrom, ToProto), blob.cpp (FromProto), hdf5.cpp, solver.cpp.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port.errors import CaffePortError, ParseError
from caffe_port.formats import wire
from caffe_port.formats.dialects import assumed
from caffe_port.formats.kinds import refuse_foreign
from caffe_port.formats.message import Message
from caffe_port.formats.recognition import Recognition
from caffe_port.formats.recognition import read as recognize
from caffe_port.storage import hdf5
from caffe_port.storage.files import LARGE_PIECE, MappedFile, atomic_write, map_file, sha256
from caffe_port.storage.safetensors import pieces
from caffe_port.terminal import count
from caffe_port.typing import Array, Shape

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
MAX_AXES = 32  # kMaxBlobAxes of blob.hpp


@dataclass(frozen=True)
class LayerBlobs:
    """The parameter blobs of one layer, in Caffe's order and shape.

    ``indices`` are their numbers within the layer, where an HDF5 file leaves out those that an earlier layer shares;
    empty: all are there.
    """

    name: str
    type: str
    blobs: tuple[Array, ...]
    indices: tuple[int, ...] = ()

    @property
    def positions(self) -> Sequence[int]:
        """The number of each blob within the layer."""
        return self.indices or range(len(self.blobs))


@dataclass(frozen=True)
class ImageFacts:
    """What an archive says about the images of the net in it, which are BGR if they have color.

    Attributes:
        mean: an image (C, H, W), one value per channel, or None: nothing is subtracted.
        scale: factor.
        classes: names by label.
        origin: the archive.
    """

    mean: Array | None
    scale: float
    classes: tuple[str, ...]
    origin: str


@dataclass(frozen=True)
class Weights:
    """The contents of a weights file.

    Attributes:
        path: the file.
        format: ``"V2"``, ``"V1"``, ``"V0"`` or ``"HDF5"``.
        layers: the layers that have blobs, in the file's order.
        net: the definition that the file carries (a NetParameter without blobs); None for HDF5.
        mapping: the mapped file that the blobs are views of; None if they are not views.
        recognition: whose numbers the file has; None for a file that every dialect of Caffe reads alike.
        images: what the archive says that holds the file; None if it is in none.
        empty: names of the layers of an HDF5 file that have no blobs of their own.
    """

    path: str
    format: str
    layers: tuple[LayerBlobs, ...]
    net: Message | None = field(repr=False)
    mapping: MappedFile | None = field(default=None, repr=False, compare=False)
    recognition: Recognition | None = field(default=None, repr=False, compare=False)
    images: ImageFacts | None = field(default=None, repr=False, compare=False)
    empty: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @property
    def parameters(self) -> int:
        """The number of values in all blobs."""
        return sum(blob.size for layer in self.layers for blob in layer.blobs)

    @property
    def bare(self) -> list[str]:
        """Names of the layers of the file that have no blobs; none where the file lists only layers with blobs."""
        entries = () if self.net is None else self.net.layer or self.net.layers
        names = Counter((entry.layer if self.format == "V0" else entry).name for entry in entries)
        return list(names - Counter(layer.name for layer in self.layers))

    @functools.cached_property
    def sha256(self) -> str | None:
        """The checksum of the file, taken once; None where the weights are no file's."""
        return sha256(self.path) if Path(self.path).is_file() else None

    @functools.cached_property
    def not_finite(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """NaN and infinite values of each blob of each layer, as the file has them; counted once."""
        return tuple(tuple(_not_finite(blob, self.mapping) for blob in layer.blobs) for layer in self.layers)

    def by_name(self) -> dict[str, LayerBlobs]:
        """Layers by name; of equal names, the last one with the first one's shapes: Caffe copies them one by one."""
        table: dict[str, LayerBlobs] = {}
        for layer in self.layers:
            first = table.setdefault(layer.name, layer)
            if [b.shape for b in layer.blobs] == [b.shape for b in first.blobs]:
                table[layer.name] = layer
        return table


def read(path: str | Path, writable: bool = False, dialect: str | None = None, *, where: str | None = None) -> Weights:
    """Reads a .caffemodel or .caffemodel.h5.

    Args:
        writable: whether the blobs may be written to; the file itself never changes.
        where: the name of the file for messages, if it is not its path.
        dialect: whose numbers the file has; None: as :func:`~caffe_port.formats.dialects.assume` said, or as it tells.

    Raises:
        ParseError: the file is damaged or of another kind; the message says which.
        CaffePortError: the file cannot be read.
    """
    data = map_file(path, writable)
    where = where or str(path)
    if data[: len(HDF5_MAGIC)] == HDF5_MAGIC:
        return _read_hdf5(path, where)
    refuse_foreign(data, "a .caffemodel", where)
    if bytes(data[8:10]) == b'{"' and int.from_bytes(data[:8], "little") < len(data):
        hint = "convert writes such files. Give the .caffemodel from which it was converted."
        raise ParseError("is a .safetensors file, not a .caffemodel", where, hint)
    if _looks_like_text(bytes(data[:512])):
        raise ParseError("is text, not a .caffemodel", where, "Give the prototxt first and the weights second.")
    net, recognition = recognize(data, "NetParameter", where, dialect or assumed())
    weights = from_message(net, where)
    assert isinstance(data.obj, MappedFile)
    return dataclasses.replace(weights, mapping=data.obj, recognition=recognition)


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
    if not bare:
        raise ParseError("contains no layers: it is damaged or not a .caffemodel", where)
    names = "layer" if format_ == "V2" else "layers"
    return Weights(where, format_, tuple(layers), net.copy(**{names: bare}))


def _not_finite(blob: Array, mapping: MappedFile | None) -> tuple[int, int]:
    """NaN and infinite values, counted in pieces, because a blob may be larger than memory."""
    nans = infinities = 0
    if not np.issubdtype(blob.dtype, np.floating):
        return 0, 0
    for piece in pieces(np.ascontiguousarray(blob).reshape(-1).view(np.uint8), mapping, LARGE_PIECE):
        values = np.frombuffer(piece, blob.dtype)
        if not np.isfinite(values).all():
            nans += int(np.isnan(values).sum())
            infinities += int(np.isinf(values).sum())
    return nans, infinities


def _without_blobs(layer: Message) -> Message:
    layer = layer.copy(blobs=None)
    if layer.schema is not None and layer.schema.name == "V1LayerParameter" and layer.has("layer"):
        layer.set("layer", layer.layer.copy(blobs=None))
    return layer


def blob_array(proto: Message) -> Array:
    """The array of a BlobProto: float32 or float64 views, float16 of ``raw_data`` (NVCaffe,
    OpenCV), ``half_data`` (TI) and ``packed_data`` (Caffe's OpenCL branch) as it is. C3D's have a length.

    Raises:
        ParseError: the shape is invalid or does not match the number of values.
    """
    if proto.has("double_data"):
        data: Array = np.asarray(proto.double_data, np.float64)
    elif proto.has("raw_data"):
        data = _raw_array(proto.raw_data, proto.raw_data_type)
    elif proto.has("packed_data"):
        data = _raw_array(proto.packed_data, proto.data_type)
    elif proto.has("half_data"):
        data = np.asarray(proto.half_data, np.uint16).view(np.float16)
    else:
        data = np.asarray(proto.data, np.float32)
    if any(proto.has(name) for name in ("num", "channels", "height", "width")):  # as in Caffe, before shape
        length = (proto.length,) if proto.has("length") else ()
        shape = (proto.num, proto.channels, *length, proto.height, proto.width)
    elif proto.has("shape"):
        shape = tuple(proto.shape.dim)
    else:
        shape = (data.size,)
    if len(shape) > MAX_AXES:
        raise ParseError(f"a shape with {len(shape)} axes; Caffe allows at most {MAX_AXES}")
    if min(shape, default=1) < 0:
        raise ParseError(f"shape {shape} has a negative axis")
    if math.prod(shape) != data.size:
        raise ParseError(f"shape {shape} requires {count(math.prod(shape), 'value')}, the file contains {data.size:,}")
    try:
        return data.reshape(shape)
    except ValueError:  # no values, but axis lengths beyond NumPy's range
        raise ParseError(f"shape {shape} is too large") from None


def shapes_agree(held: Shape, asked: Shape, row: bool = False) -> bool:
    """Whether a blob in a file is the one that a layer asks for.

    The shapes must be equal, with three exceptions that leave the order of the values in no doubt: old files have four
    axes (C3D: five), with leading ones, (1, 1, 1, n) for a bias and (1, 1, m, n) for a matrix; some forks store a
    vector as (1, n, 1, 1); values without a shape are read as a vector (a blob without axes is stored so).

    Args:
        row: a vector may also be stored as (1, n), as one fork's BN does.

    Source: blob.cpp (ShapeEquals)
    """
    if held == asked or (len(held) in (4, 5) and held == (1,) * (len(held) - len(asked)) + asked):
        return True
    if len(asked) == 1:
        return held == (1, *asked, 1, 1) or (row and held == (1, *asked))
    return not asked and held == (1,)


def _raw_array(data: Any, type_: str | int) -> Array:
    dtypes = {"FLOAT": "<f4", "FLOAT16": "<f2", "DOUBLE": "<f8"}
    dtypes |= {"CAFFE_FLOAT": "<f4", "CAFFE_HALF": "<f2", "CAFFE_DOUBLE": "<f8"}
    dtype = dtypes.get(str(type_))
    if dtype is None:
        raise ParseError(f"raw_data of type {type_} is not a float type")
    if len(data) % np.dtype(dtype).itemsize:
        raise ParseError(f"raw_data of {count(len(data), 'byte')} is not a whole number of {type_} values")
    return np.frombuffer(data, dtype)


def _looks_like_text(head: bytes) -> bool:
    return all(b in b"\t\n\r\f" or 32 <= b < 127 for b in head)


def vector(values: Sequence[float]) -> Array:
    """A float32 vector of a message's numbers."""
    return np.asarray(values, np.float32)


def _read_hdf5(path: str | Path, where: str) -> Weights:
    h5py = hdf5.library(where)
    found, empty = [], []
    try:
        with h5py.File(path, "r") as file:
            if "data" not in file or not isinstance(hdf5.member(file, "data", where), h5py.Group):
                raise ParseError("has no group 'data': not a .caffemodel.h5", where)
            for name, group, keys in hdf5.layers(file["data"], where):
                arrays = [hdf5.values(group, key, where) for key in keys]
                if arrays:
                    with np.errstate(over="ignore"):  # a double beyond float32's range becomes infinity, as in Caffe
                        arrays = [np.asarray(array, np.float32) for array in arrays]
                    indices = tuple(map(int, keys))
                    gaps = indices != tuple(range(len(keys)))
                    found.append(LayerBlobs(name, "", tuple(arrays), indices if gaps else ()))
                else:
                    empty.append(name)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ParseError(f"is a damaged HDF5 file: {str(error)[:200]}", where) from None
    if not found:
        raise ParseError("contains no layers with weights", where)
    return Weights(where, "HDF5", tuple(found), None, empty=tuple(empty))


def read_mean(path: str | Path) -> Array:
    """The mean image of a .binaryproto.

    Returns:
        float32 (C, H, W), in the channel order of the database it was computed from (BGR with Caffe's own tools).

    Raises:
        ParseError: the file is not a BlobProto or not a single image.
    """
    proto, _ = recognize(map_file(path), "BlobProto", str(path), assumed())
    if not (proto.has("data") or proto.has("double_data")):
        raise ParseError("contains no data: not a .binaryproto mean", str(path))
    try:
        mean = blob_array(proto)
    except ParseError as error:
        raise ParseError(error.what, str(path)) from None
    if mean.ndim == 4 and mean.shape[0] == 1:
        mean = mean[0]
    if mean.ndim != 3 or not mean.size:
        raise ParseError(f"shape {mean.shape} is not a single image (1, C, H, W)", str(path))
    return np.asarray(mean, np.float32)


def blob_message(array: Array) -> Message:
    """A BlobProto with the array as float32."""
    shape = Message("BlobShape", dim=list(array.shape))
    return Message("BlobProto", shape=shape, data=np.ascontiguousarray(array, np.float32).reshape(-1))


def write(path: str | Path, net: Message, blobs: dict[str, list[Array]]) -> None:
    """Writes a V2 .caffemodel: the definition with every layer's blobs, like a snapshot of Caffe's.

    Args:
        net: NetParameter with ``layer`` entries.
        blobs: layer name -> arrays in Caffe's order.

    Raises:
        CaffePortError: the file cannot be written, or a blob's layer is not in the net.
    """
    missing = set(blobs) - {layer.name for layer in net.layer}
    if missing:
        raise CaffePortError(f"layer '{min(missing)}' has blobs but is not in the net", str(path))
    layers = [
        layer.copy(blobs=[blob_message(a) for a in blobs[layer.name]] if layer.name in blobs else None)
        for layer in net.layer
    ]
    with atomic_write(path) as file:
        for chunk in wire.serialize(net.copy(layer=layers)):
            file.write(chunk)


def write_hdf5(path: str | Path, layers: Sequence[str], blobs: Mapping[str, dict[int, Array]]) -> None:
    """Writes a .caffemodel.h5, like a snapshot of Caffe's with ``snapshot_format: HDF5``.

    Args:
        layers: names of all layers; those without blobs get an empty group.
        blobs: layer name -> index -> array. A blob that layers share is stored once, with the first of them.

    Raises:
        CaffePortError: the file cannot be written.
        DependencyError: h5py is not installed.

    Source: net.cpp (ToHDF5).
    """
    h5py = hdf5.library(str(path))
    with atomic_write(path) as out, h5py.File(out, "w") as file:
        data = file.create_group("data")
        for name in dict.fromkeys([*layers, *blobs]):
            group = data.require_group(name)
            for index, array in blobs.get(name, {}).items():
                group[str(index)] = np.asarray(array, np.float32)
