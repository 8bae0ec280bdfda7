"""What a net's own data layers read: LMDB and LevelDB of Datum, lists of pictures, HDF5; and transform_param, exactly.

Sources: data_layer.cpp, image_data_layer.cpp, hdf5_data_layer.cpp, data_transformer.cpp, io.cpp, db_lmdb.cpp.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from caffe_port.data.batches import Feed, positions
from caffe_port.data.leveldb import LevelDB
from caffe_port.data.lmdb import LMDB
from caffe_port.errors import CaffePortError, DependencyError, ParseError, SpecError
from caffe_port.formats import caffemodel, wire
from caffe_port.formats.message import Message
from caffe_port.spec import LayerSpec
from caffe_port.storage import hdf5, images
from caffe_port.storage.files import opened, read_bytes
from caffe_port.typing import Array


class Records(Protocol):
    """Pictures by position: ``records[i]`` is (array (C, H, W), label); uint8 as stored, or float32."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Array, int]: ...


# -- transform_param ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transform:
    """Caffe's TransformationParameter.

    Attributes:
        mean: float32 (C, H, W) of the whole picture, (C, 1, 1), or None.
        color: 1 decodes to colour, 0 to grey, -1 leaves a picture as it was encoded.
    """

    scale: float = 1.0
    mirror: bool = False
    crop_size: int = 0
    mean: Array | None = None
    color: int = -1

    @classmethod
    def from_param(cls, p: Message, folder: Path, layer: LayerSpec) -> Transform:
        """Raises SpecError as Caffe's checks would, CaffePortError where the mean_file is not there."""
        if p.has("mean_file") and p.mean_value:
            raise layer.error("mean_file and mean_value at the same time")
        if p.force_color and p.force_gray:
            raise layer.error("force_color and force_gray at the same time")
        for name in ("resize_param", "noise_param", "distort_param", "expand_param", "crop_h", "crop_w", "bgr2rgb"):
            if p.has(name):
                raise layer.error(f"transform_param {name} belongs to a fork of Caffe and is not supported")
        mean = None
        if p.has("mean_file"):
            mean = np.array(caffemodel.read_mean(locate(p.mean_file, folder, layer)))
        elif p.mean_value:
            mean = np.asarray(p.mean_value, np.float32).reshape(-1, 1, 1)
        color = 1 if p.force_color else 0 if p.force_gray else -1
        return cls(float(np.float32(p.scale)), p.mirror, p.crop_size, mean, color)

    def shape(self, picture: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) after the crop."""
        return (picture[0], self.crop_size, self.crop_size) if self.crop_size else picture

    def __call__(self, picture: Array, train: bool, rng: np.random.Generator) -> Array:
        """float32 (C, H', W').

        Args:
            picture: (C, H, W).
            train: cuts at a random place; else the centre. Mirroring is random in both phases, as in Caffe.
            rng: what is drawn comes from it.

        Raises:
            CaffePortError: the crop or the mean do not fit the picture.
        """
        channels, height, width = picture.shape
        flip = self.mirror and int(rng.integers(2)) == 1
        mean = self.mean
        if mean is not None and mean.shape[1:] != (1, 1) and mean.shape != picture.shape:
            raise CaffePortError(f"a mean image {mean.shape} does not fit a picture {picture.shape}")
        if mean is not None and mean.shape[0] not in (1, channels):
            raise CaffePortError(f"{mean.shape[0]} mean values for {channels} channels; give 1 or {channels}")
        if crop := self.crop_size:
            if crop > min(height, width):
                raise CaffePortError(f"crop_size {crop} is larger than a picture of {width}x{height}")
            free_y, free_x = height - crop, width - crop
            top, left = (
                (int(rng.integers(free_y + 1)), int(rng.integers(free_x + 1))) if train else (free_y // 2, free_x // 2)
            )
            window = (slice(None), slice(top, top + crop), slice(left, left + crop))
            picture = picture[window]
            mean = mean[window] if mean is not None and mean.shape[1:] != (1, 1) else mean
        out = picture.astype(np.float32)
        if mean is not None:
            out -= mean
        if self.scale != 1:
            out *= np.float32(self.scale)
        return out[:, :, ::-1] if flip else out


def locate(name: str, folder: Path, layer: LayerSpec) -> Path:
    """A file or folder that a layer names: below the prototxt's folder, below the current one, or by its last part.

    Raises:
        SpecError: it is in none of them.
    """
    path = Path(name)
    for candidate in (folder / path, path, folder / path.name):
        if name and candidate.exists():
            return candidate
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
        size: (height, width) to which pictures are resized bilinearly, or None.
        color: colour or grey.
    """

    def __init__(self, path: Path, root: str = "", size: tuple[int, int] | None = None, color: bool = True) -> None:
        self.path, self.root, self.size, self.color = path, root, size, color
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
        picture = decode(read_bytes(path), str(path), int(self.color))
        if self.size is not None and picture.shape[1:] != self.size:
            resized = images.opencv().resize(picture.transpose(1, 2, 0), self.size[::-1])
            picture = np.atleast_3d(resized).transpose(2, 0, 1)
        return picture, label


# -- feeds ----------------------------------------------------------------------------------------------------------


class RecordFeed:
    """Batches of records, transformed: tops (data, label).

    Args:
        records: where they come from.
        batch_size: rows.
        transform: what is done to each.
        train: whether crops are taken at random places.
        shuffle: every epoch in another order, instead of in sequence.
        seed: of the order, the crops and the mirroring.
        device: where batches go.
    """

    def __init__(
        self,
        records: Records,
        batch_size: int,
        transform: Transform,
        *,
        train: bool = False,
        shuffle: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.records, self.batch_size, self.transform, self.train = records, batch_size, transform, train
        self.seed, self.shuffle, self.device, self.size = (
            seed,
            seed if shuffle else None,
            torch.device(device),
            len(records),
        )
        self.classes: int | None = None  # where it is known, labels are checked
        first, _ = records[0]
        c, h, w = first.shape
        self.shapes: tuple[tuple[int, ...], ...] = (transform.shape((c, h, w)), ())

    def batch(self, number: int) -> tuple[Tensor, ...]:
        rng = np.random.default_rng((self.seed, number, 1))
        rows, labels = [], []
        for index in positions(number, self.batch_size, self.size, self.shuffle):
            picture, label = self.records[int(index)]
            rows.append(self.transform(picture, self.train, rng))
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
    folder, train = Path(layer.where.rpartition(":")[0] or layer.where).parent, phase == "TRAIN"
    p = {"Data": "data_param", "ImageData": "image_data_param", "HDF5Data": "hdf5_data_param"}.get(layer.type)
    if p is None:
        raise layer.error(f"type {layer.type} cannot be fed from files; give the data with --data")
    own: Message = getattr(layer.param, p)
    size = batch_size or own.batch_size
    if size < 1:
        raise layer.error("has no batch_size")
    source = locate(own.source, folder, layer)
    options: dict[str, Any] = {"seed": seed, "device": device}
    if layer.type == "HDF5Data":
        names = read_bytes(source).decode("utf-8", "surrogateescape").split("\n")
        files = [locate(name.strip(), source.parent, layer) for name in names if name.strip()]
        if not files:
            raise layer.error(f"'{source}' lists no files")
        return Hdf5Feed(files, layer.tops, size, shuffle=own.shuffle if shuffle is None else shuffle, **options)
    transform = Transform.from_param(layer.param.transform_param, folder, layer)
    records: Records
    try:
        if layer.type == "ImageData":
            if bool(own.new_height) != bool(own.new_width):
                raise layer.error("new_height and new_width are set together")
            resize = (own.new_height, own.new_width) if own.new_height else None
            records = ImageList(source, own.root_folder, resize, own.is_color)
            shuffle = own.shuffle if shuffle is None else shuffle
        else:
            records = Database(source, transform.color)
        return RecordFeed(records, size, transform, train=train, shuffle=bool(shuffle), **options)
    except (SpecError, DependencyError):
        raise
    except CaffePortError as error:
        raise type(error)(
            f"layer '{layer.name}' ({layer.type}): {error.what}", error.where or layer.where, error.hint
        ) from None
