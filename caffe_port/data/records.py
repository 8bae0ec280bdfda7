"""Batches of what a net's data layers read: LMDB and LevelDB of Datum or AnnotatedDatum, image lists, HDF5.

For transform_param, see :mod:`caffe_port.data.preprocessing`.
Sources: data_layer.cpp, image_data_layer.cpp, hdf5_data_layer.cpp, io.cpp, db_lmdb.cpp.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from caffe_port.data.annotated import AnnotatedFeed, BoxTransform
from caffe_port.data.annotations import AnnotatedDatabase
from caffe_port.data.batches import Feed, positions
from caffe_port.data.leveldb import LevelDB
from caffe_port.data.lmdb import LMDB
from caffe_port.data.prepare import prepare
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.data.sources import locate as locate
from caffe_port.errors import CaffePortError, DependencyError, ParseError, SpecError
from caffe_port.formats import wire
from caffe_port.formats.message import Message
from caffe_port.signatures.signature import signature_of
from caffe_port.spec import LayerSpec
from caffe_port.storage import hdf5, images
from caffe_port.storage.files import opened, read_bytes
from caffe_port.terminal import count
from caffe_port.typing import Array


class Records(Protocol):
    """Images by position: ``records[i]`` is (array (C, H, W), label); uint8 as stored, or float32."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Array, int]: ...


# -- records --------------------------------------------------------------------------------------------------------


def datum(data: bytes | memoryview, where: str, color: int = -1) -> tuple[Array, int]:
    """The image and the label of a Datum.

    Args:
        data: the message.
        where: location for error messages.
        color: how to decode an encoded image: 1 color (BGR), 0 gray, -1 as encoded.

    Raises:
        ParseError: the message is damaged, or its sizes do not match.
    """
    p = wire.parse(data, "Datum", where)
    if p.encoded:
        return decode(p.data, where, color), p.label
    shape = (p.channels, p.height, p.width)
    array = np.frombuffer(p.data, np.uint8) if p.data else np.asarray(p.float_data, np.float32)
    if min(shape) < 1 or array.size != shape[0] * shape[1] * shape[2]:
        raise ParseError(f"a Datum of shape {shape} has {array.size} values", where)
    return array.reshape(shape), p.label


def decode(data: bytes, where: str, color: int) -> Array:
    """Decodes a compressed image to uint8 (C, H, W), BGR, as Caffe does with cv::imdecode. Raises ParseError."""
    return images.decode(data, color, where).transpose(2, 0, 1)


class Database:
    """An LMDB or LevelDB of Datum, in key order.

    Raises:
        CaffePortError: it does not exist, is truncated or empty.
    """

    def __init__(self, path: Path, color: int = -1) -> None:
        self.path, self.color, self._lock = path, color, threading.Lock()
        # The files decide, not the layer's backend field: its default (LEVELDB) is easily overlooked.
        is_lmdb = path.is_file() or (path / "data.mdb").is_file()
        self._records: LMDB | LevelDB = LMDB(path) if is_lmdb else LevelDB(path)
        if not len(self._records):
            raise CaffePortError("is an empty database", str(path))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[Array, int]:
        with self._lock:  # a LevelDB caches the block that it decompressed last
            key, data = self._records.key(index), self._records[index]
        return datum(data, f"{self.path}, key {key.decode(errors='replace')}", self.color)


class ImageList:
    """The images of a text file with one path and label per line; BGR, as from cv::imread.

    Args:
        path: the list.
        root: prefix of every path, joined without a separator as in Caffe; paths may also be relative to the list's
            folder.
        color: decode in color or gray.
    """

    def __init__(self, path: Path, root: str = "", color: bool = True) -> None:
        self.path, self.root, self.color = path, root, color
        self._lines: list[tuple[str, int]] = []
        text = read_bytes(path).removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
        for number, line in enumerate(re.split(r"\r?\n|\r", text), 1):
            if line.strip():
                # Caffe 1.0 takes what follows the last space; earlier releases any white space
                said = re.fullmatch(r"\s*(.*\S)\s+(\S+)\s*", line)
                if said is None or not re.fullmatch(r"[-+]?\d{1,9}", said[2], re.ASCII):
                    what = f"expected a path, a space and a label, a whole number; got '{line.strip()[:80]}'"
                    raise ParseError(what, f"{path}:{number}", _OTHER_LABELS)
                self._lines.append((said[1], int(said[2])))
        if not self._lines:
            raise CaffePortError("lists no images", str(path))

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> tuple[Array, int]:
        name, label = self._lines[index]
        path = self._find(name)
        return decode(read_bytes(path), str(path), int(self.color)), label

    def _find(self, name: str) -> Path:
        """The file of an image. Raises CaffePortError if it does not exist."""
        folders = ("", f"{self.path.parent}/")
        names = dict.fromkeys((name, name.replace("\\", "/")))  # lists of Windows
        for folder in folders if not Path(self.root + name).is_absolute() else ("",):
            for one in names:
                if (path := Path(folder + self.root + one)).exists():
                    return path
        hint = ""
        if self.root and any(Path(folder, self.root, name).exists() for folder in folders):
            hint = "root_folder is put before each path without a separator, as in Caffe: let it end in '/'."
        elif re.search(r"\s[-+]?[\d.]+$", name):
            hint = _OTHER_LABELS
        raise CaffePortError(f"lists '{self.root}{name}', which does not exist", str(self.path), hint)


_OTHER_LABELS = "ImageData has one label per image, a whole number; HDF5Data can have others, or several."


# -- feeds ----------------------------------------------------------------------------------------------------------


class RecordFeed:
    """Batches of preprocessed records: tops (data, label), or data alone. Every batch has the size of its first image.

    Args:
        records: the source.
        batch_size: records per batch.
        plan: the preprocessing.
        train: use the TRAIN phase's rules for cropping and mirroring.
        shuffle: use a different order in every epoch, instead of the stored sequence.
        seed: seed of the order, the crops and the mirroring.
        device: device of the batches.
        labels: whether label is a top.
        skip: number of records to skip at the start.
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
        labels: bool = True,
        skip: int = 0,
    ) -> None:
        self.records, self.batch_size, self.plan, self.train = records, batch_size, plan, train
        self.seed, self.shuffle, self.device, self.size = (
            seed,
            seed if shuffle else None,
            torch.device(device),
            len(records),
        )
        self.classes: int | None = None  # if set, labels are checked: at least one loss counts as many
        first, _ = records[0]
        self.labels, self.skip = labels, skip
        shape = plan.shape(first.shape)
        self.shapes: tuple[tuple[int, ...], ...] = ((batch_size, *shape), (batch_size,))[: 1 + labels]

    def batch(self, number: int) -> tuple[Tensor, ...]:
        rng = np.random.default_rng((self.seed, number, 1))
        rows, labels = [], []
        for index in positions(number, self.batch_size, self.size, self.shuffle, self.skip):
            picture, label = self.records[int(index)]
            rows.append(prepare(picture, self.plan, train=self.train, rng=rng))
            labels.append(label)
            if rows[-1].shape != rows[0].shape:
                hint = "Images of different sizes need batch_size 1 or crop_size (or new_height and new_width)."
                shapes = f"has shape {rows[-1].shape}, the first of its batch has {rows[0].shape}"
                raise CaffePortError(f"record {index} {shapes}", hint=hint)
            if self.classes is not None and not 0 <= label < self.classes:
                raise CaffePortError(
                    f"record {index} has label {label}; the net has {count(self.classes, 'class', 'classes')}"
                )
        data = torch.from_numpy(np.stack(rows))
        if not self.labels:
            return (data.to(self.device),)
        return data.to(self.device), torch.tensor(labels, dtype=torch.float32, device=self.device)


class Hdf5Feed:
    """Batches of rows of HDF5 files, with one dataset for each top.

    Args:
        files: the files, concatenated in this order.
        tops: names of the datasets.
        batch_size: rows per batch.
        shuffle: use a different order in every epoch, instead of the stored sequence.
        seed: seed of the order.
        device: device of the batches.
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
                raise ParseError(f"does not contain all of the datasets {', '.join(tops)}", str(path)) from None
            except (OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
                raise ParseError(f"cannot be read as HDF5: {str(error)[:200]}", str(path)) from None
            if len({len(a) if a.ndim else -1 for a in read}) != 1:
                raise ParseError(f"datasets {', '.join(tops)} have different numbers of rows", str(path))
            for part, array in zip(parts, read, strict=True):
                if part and part[0].shape[1:] != array.shape[1:]:
                    raise ParseError(
                        f"rows have shape {array.shape[1:]}, but {part[0].shape[1:]} in the first file", str(path)
                    )
                part.append(array)
        self._data = [torch.from_numpy(np.concatenate(part)) for part in parts]
        self.size = len(self._data[0])
        if not self.size:
            raise CaffePortError("contains no rows", str(files[0]))
        self.shapes: tuple[tuple[int, ...], ...] = tuple((batch_size, *d.shape[1:]) for d in self._data)

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
    """The feed for a Data, ImageData, HDF5Data or AnnotatedData layer.

    Args:
        layer: a data layer of the net in this phase.
        phase: ``"TRAIN"`` or ``"TEST"``.
        shuffle: overrides the layer's setting (a database is read in sequence).
        seed, device: as for the feeds.
        batch_size: overrides the layer's.

    Raises:
        SpecError: the layer has another type or no batch_size, or its files do not exist.
        CaffePortError: the data cannot be read.
    """
    read, record = _READERS.get(layer.type), signature_of(layer.type)
    if read is None or record is None:
        raise layer.error(f"the data of a {layer.type} are not read from files; give the data with --data")
    own = record.parameters(layer.param)
    size = batch_size or own.batch_size
    if size < 1:
        raise layer.error("has no batch_size")
    return read(layer, own, size, phase == "TRAIN", shuffle, {"seed": seed, "device": device})


def _hdf5(
    layer: LayerSpec, own: Message, size: int, _train: bool, shuffle: bool | None, options: dict[str, Any]
) -> Feed:
    if layer.param.has("transform_param"):
        raise layer.error("does not transform its data, as in Caffe: transform_param has no effect", "Remove it.")
    source = locate(own.source, layer.folder, layer)
    lines = read_bytes(source).removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape").split("\n")
    names: list[str] = []
    for line in filter(None, map(str.strip, lines)):
        # Caffe splits lines at spaces, so that a file's name cannot contain one; here it can
        whole = any((folder / line).exists() for folder in (source.parent, Path()))
        names += [line] if whole else line.split()
    files = [locate(name, source.parent, layer) for name in names]
    if not files:
        raise layer.error(f"'{source}' lists no files")
    return Hdf5Feed(files, layer.tops, size, shuffle=own.shuffle if shuffle is None else shuffle, **options)


def _database(
    layer: LayerSpec, own: Message, size: int, train: bool, shuffle: bool | None, options: dict[str, Any]
) -> Feed:
    p, source = layer.param.transform_param, locate(own.source, layer.folder, layer)
    if len(layer.tops) not in (1, 2):
        raise layer.error(f"has {count(len(layer.tops), 'top')}, expected data, or data and label")
    with _names(layer):
        plan = Preprocessing.from_transform_param(layer)
        records = Database(source, 1 if p.force_color else 0 if p.force_gray else -1)
        options["labels"] = len(layer.tops) == 2
        return RecordFeed(records, size, plan, train=train, shuffle=bool(shuffle), **options)


def _images(
    layer: LayerSpec, own: Message, size: int, train: bool, shuffle: bool | None, options: dict[str, Any]
) -> Feed:
    source = locate(own.source, layer.folder, layer)
    if len(layer.tops) != 2:
        raise layer.error(f"has {count(len(layer.tops), 'top')}, expected data and label")
    if bool(own.new_height) != bool(own.new_width):
        raise layer.error("new_height and new_width must be set together")
    with _names(layer):
        plan = Preprocessing.from_transform_param(layer)
        plan = plan.changed(resize=(own.new_height, own.new_width) if own.new_height else None)
        records = ImageList(source, own.root_folder, own.is_color)
        # Like Caffe, which never skips all; the number itself is not Caffe's.
        skip = int(np.random.default_rng((options["seed"], 2)).integers(own.rand_skip)) if own.rand_skip else 0
        shuffle = own.shuffle if shuffle is None else shuffle
        return RecordFeed(records, size, plan, train=train, shuffle=shuffle, skip=skip, **options)


def _annotated(
    layer: LayerSpec, own: Message, size: int, train: bool, shuffle: bool | None, options: dict[str, Any]
) -> Feed:
    p, source = layer.param.transform_param, locate(own.source, layer.folder, layer)
    if len(layer.tops) not in (1, 2):
        raise layer.error(f"has {count(len(layer.tops), 'top')}, expected data, or data and label")
    with _names(layer):
        color = 1 if p.force_color else 0 if p.force_gray else -1
        records = AnnotatedDatabase(source, color, layer.param.annotated_data_param.has("anno_type"))
        options["labels"] = len(layer.tops) == 2
        transform = BoxTransform.of(layer)
        return AnnotatedFeed(records, size, transform, train=train, shuffle=bool(shuffle), **options)


_READERS: dict[str, Callable[[LayerSpec, Message, int, bool, bool | None, dict[str, Any]], Feed]] = {
    "Data": _database,
    "ImageData": _images,
    "HDF5Data": _hdf5,
    "AnnotatedData": _annotated,
}


@contextlib.contextmanager
def _names(layer: LayerSpec) -> Iterator[None]:
    """Errors in the data name the layer that reads them."""
    try:
        yield
    except (SpecError, DependencyError):
        raise
    except CaffePortError as error:
        raise type(error)(
            f"layer '{layer.name}' ({layer.type}): {error.what}", error.where or layer.where, error.hint
        ) from None
