"""What a net's own data layers read, in batches: LMDB and LevelDB of Datum, lists of pictures, HDF5.

What transform_param asks for is in :mod:`caffe_port.data.preprocessing`.
Sources: data_layer.cpp, image_data_layer.cpp, hdf5_data_layer.cpp, io.cpp, db_lmdb.cpp.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from caffe_port.data.batches import Feed, positions
from caffe_port.data.leveldb import LevelDB
from caffe_port.data.lmdb import LMDB
from caffe_port.data.prepare import prepare
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.errors import CaffePortError, DependencyError, ParseError, SpecError
from caffe_port.formats import wire
from caffe_port.formats.message import Message
from caffe_port.spec import LayerSpec
from caffe_port.storage import hdf5, images
from caffe_port.storage.files import find, opened, read_bytes
from caffe_port.typing import Array


class Records(Protocol):
    """Pictures by position: ``records[i]`` is (array (C, H, W), label); uint8 as stored, or float32."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Array, int]: ...


def locate(name: str, folder: Path, layer: LayerSpec) -> Path:
    """A file or folder that a layer names: below the prototxt's folder, below the current one, or by its last part.

    Raises:
        SpecError: it is in none of them.
    """
    found = find(name, folder)
    if found is not None:
        return found
    raise layer.error(f"'{name}' is not there (looked in {folder} and in the current folder)")


# -- records --------------------------------------------------------------------------------------------------------


def datum(data: bytes | memoryview, where: str, color: int = -1) -> tuple[Array, int]:
    """A Datum's picture and label.

    Args:
        data: the message.
        where: for errors.
        color: of an encoded one: 1 colour (BGR), 0 grey, -1 as it was encoded.

    Raises:
        ParseError: damaged, or sizes that do not fit.
    """
    p = wire.parse(data, "Datum", where)
    if p.encoded:
        return decode(p.data, where, color), p.label
    shape = (p.channels, p.height, p.width)
    array = np.frombuffer(p.data, np.uint8) if p.has("data") else np.asarray(p.float_data, np.float32)
    if min(shape) < 1 or array.size != shape[0] * shape[1] * shape[2]:
        raise ParseError(f"a Datum of shape {shape} holds {array.size} values", where)
    return array.reshape(shape), p.label


def decode(data: bytes, where: str, color: int) -> Array:
    """A compressed picture, uint8 (C, H, W), BGR, as Caffe's cv::imdecode gives it. Raises ParseError."""
    return images.decode(data, color, where).transpose(2, 0, 1)


class Database:
    """An LMDB or LevelDB of Datum, in the order of its keys.

    Raises:
        CaffePortError: not there, truncated, empty.
    """

    def __init__(self, path: Path, color: int = -1) -> None:
        self.path, self.color, self._lock = path, color, threading.Lock()
        # What lies there counts: the backend's default (LEVELDB) is forgotten easily.
        is_lmdb = path.is_file() or (path / "data.mdb").is_file()
        self._records: LMDB | LevelDB = LMDB(path) if is_lmdb else LevelDB(path)
        if not len(self._records):
            raise CaffePortError("is an empty database", str(path))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[Array, int]:
        with self._lock:  # a LevelDB keeps the block that it unpacked last
            key, data = self._records.key(index), self._records[index]
        return datum(data, f"{self.path}, key {key.decode(errors='replace')}", self.color)


class ImageList:
    """The pictures that a text file lists, a path and a label a line; BGR, as cv::imread gives them.

    Args:
        path: the list.
        root: in front of every path, as Caffe joins it (no separator is added); "" : the list's own folder too.
        color: colour or grey.
    """

    def __init__(self, path: Path, root: str = "", color: bool = True) -> None:
        self.path, self.root, self.color = path, root, color
        self._lines: list[tuple[str, int]] = []
        text = read_bytes(path).decode("utf-8", "surrogateescape")
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                name, _, label = line.rstrip().rpartition(" ")
                if not name or not re.fullmatch(r"-?\d{1,9}", label, re.ASCII):
                    raise ParseError(f"expected a path, a blank and a label, got '{line[:80]}'", f"{path}:{number}")
                self._lines.append((name.rstrip(), int(label)))
        if not self._lines:
            raise CaffePortError("lists no pictures", str(path))

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> tuple[Array, int]:
        name, label = self._lines[index]
        named = Path(self.root + name)
        path = named if self.root or named.is_absolute() or named.exists() else self.path.parent / name
        return decode(read_bytes(path), str(path), int(self.color)), label


# -- feeds ----------------------------------------------------------------------------------------------------------


class RecordFeed:
    """Batches of records, transformed: tops (data, label).

    Args:
        records: where they come from.
        batch_size: rows.
        plan: what is done to each.
        train: whether crops are taken at random places.
        shuffle: every epoch in another order, instead of in sequence.
        seed: of the order, the crops and the mirroring.
        device: where batches go.
    """

    def __init__(
        self,
        records: Records,
        batch_size: int,
        plan: Preprocessing,
        *,
        train: bool = False,
        shuffle: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.records, self.batch_size, self.plan, self.train = records, batch_size, plan, train
        self.seed, self.shuffle, self.device, self.size = (
            seed,
            seed if shuffle else None,
            torch.device(device),
            len(records),
        )
        self.classes: int | None = None  # where it is known, labels are checked
        first, _ = records[0]
        self.shapes: tuple[tuple[int, ...], ...] = (plan.shape(first.shape), ())

    def batch(self, number: int) -> tuple[Tensor, ...]:
        rng = np.random.default_rng((self.seed, number, 1))
        rows, labels = [], []
        for index in positions(number, self.batch_size, self.size, self.shuffle):
            picture, label = self.records[int(index)]
            rows.append(prepare(picture, self.plan, train=self.train, rng=rng))
            labels.append(label)
            if rows[-1].shape != self.shapes[0]:
                hint = "Pictures of different sizes need crop_size (or new_height and new_width)."
                raise CaffePortError(f"record {index} is {rows[-1].shape}, the first was {self.shapes[0]}", hint=hint)
            if self.classes is not None and not 0 <= label < self.classes:
                raise CaffePortError(f"record {index} has label {label}; the net tells {self.classes} classes apart")
        data = torch.from_numpy(np.stack(rows))
        return data.to(self.device), torch.tensor(labels, dtype=torch.float32, device=self.device)


class Hdf5Feed:
    """Batches of the rows of HDF5 files, one dataset for each top.

    Args:
        files: read one after the other.
        tops: names of the datasets.
        batch_size: rows.
        shuffle: every epoch in another order.
        seed: of the order.
        device: where batches go.
    """

    def __init__(
        self,
        files: Sequence[Path],
        tops: Sequence[str],
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        h5py = hdf5.library(str(files[0]))
        self.batch_size, self.shuffle, self.device = batch_size, seed if shuffle else None, torch.device(device)
        parts: list[list[Array]] = [[] for _ in tops]
        for path in files:
            try:
                with opened(path), h5py.File(path, "r") as file:
                    read = [np.asarray(hdf5.values(file, top, str(path)), np.float32) for top in tops]
            except KeyError:
                raise ParseError(f"lacks one of the datasets {', '.join(tops)}", str(path)) from None
            except (OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
                raise ParseError(f"cannot be read as HDF5: {str(error)[:200]}", str(path)) from None
            if len({len(a) if a.ndim else -1 for a in read}) != 1:
                raise ParseError(f"datasets {', '.join(tops)} have different numbers of rows", str(path))
            for part, array in zip(parts, read, strict=True):
                if part and part[0].shape[1:] != array.shape[1:]:
                    raise ParseError(f"rows of {array.shape[1:]}, in the first file {part[0].shape[1:]}", str(path))
                part.append(array)
        self._data = [torch.from_numpy(np.concatenate(part)) for part in parts]
        self.size = len(self._data[0])
        if not self.size:
            raise CaffePortError("holds no rows", str(files[0]))
        self.shapes: tuple[tuple[int, ...], ...] = tuple(tuple(d.shape[1:]) for d in self._data)

    def batch(self, number: int) -> tuple[Tensor, ...]:
        rows = torch.from_numpy(positions(number, self.batch_size, self.size, self.shuffle))
        return tuple(d[rows].to(self.device) for d in self._data)


def from_layer(
    layer: LayerSpec,
    phase: str,
    *,
    shuffle: bool | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
) -> Feed:
    """The feed that a Data, ImageData or HDF5Data layer asks for.

    Args:
        layer: of the net's phase.
        phase: ``"TRAIN"`` or ``"TEST"``.
        shuffle: instead of what the layer says (a database is read in sequence).
        seed, device: as for the feeds.
        batch_size: instead of the layer's.

    Raises:
        SpecError: another type of layer, no batch_size, files that are not there.
        CaffePortError: the data cannot be read.
    """
    folder, train = layer.folder, phase == "TRAIN"
    name = {"Data": "data_param", "ImageData": "image_data_param", "HDF5Data": "hdf5_data_param"}.get(layer.type)
    if name is None:
        raise layer.error(f"type {layer.type} cannot be fed from files; give the data with --data")
    own: Message = getattr(layer.param, name)
    size = batch_size or own.batch_size
    if size < 1:
        raise layer.error("has no batch_size")
    source = locate(own.source, folder, layer)
    options: dict[str, Any] = {"seed": seed, "device": device}
    if layer.type == "HDF5Data":
        lines = read_bytes(source).decode("utf-8", "surrogateescape").split("\n")
        files = [locate(line.strip(), source.parent, layer) for line in lines if line.strip()]
        if not files:
            raise layer.error(f"'{source}' lists no files")
        return Hdf5Feed(files, layer.tops, size, shuffle=own.shuffle if shuffle is None else shuffle, **options)
    plan, p = Preprocessing.from_transform_param(layer), layer.param.transform_param
    records: Records
    try:
        if layer.type == "ImageData":
            if bool(own.new_height) != bool(own.new_width):
                raise layer.error("new_height and new_width are set together")
            plan = plan.changed(resize=(own.new_height, own.new_width) if own.new_height else None)
            records = ImageList(source, own.root_folder, own.is_color)
            shuffle = own.shuffle if shuffle is None else shuffle
        else:
            records = Database(source, 1 if p.force_color else 0 if p.force_gray else -1)
        return RecordFeed(records, size, plan, train=train, shuffle=bool(shuffle), **options)
    except (SpecError, DependencyError):
        raise
    except CaffePortError as error:
        raise type(error)(
            f"layer '{layer.name}' ({layer.type}): {error.what}", error.where or layer.where, error.hint
        ) from None
