"""Images with boxes in databases and files: records of AnnotatedDatum, folders as of PASCAL VOC, lists. Without torch.

Source: annotated_data_layer.cpp and io.cpp of SSD (weiliu89/caffe).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from xml.etree import ElementTree

import numpy as np

from caffe_port.data.boxes import Objects, objects
from caffe_port.data.leveldb import LevelDB
from caffe_port.data.lmdb import LMDB
from caffe_port.errors import CaffePortError, ParseError, did_you_mean
from caffe_port.formats import wire
from caffe_port.formats.message import Message
from caffe_port.storage import images
from caffe_port.storage.files import read_bytes
from caffe_port.typing import Array


@dataclass(frozen=True)
class Example:
    """An image with its objects.

    Attributes:
        picture: (H, W, C), uint8, or float32 as stored.
        encoded: whether it was stored as a compressed file.
        found: the objects; None if the record has no annotations but a label.
        label: the label of such a record.
    """

    picture: Array
    encoded: bool
    found: Objects | None
    label: int = 0


class Examples(Protocol):
    """Images with objects, by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


# -- records --------------------------------------------------------------------------------------------------------


class AnnotatedDatabase:
    """An LMDB or LevelDB of AnnotatedDatum, in key order.

    Args:
        path: the database.
        color: how to decode images: 1 color, 0 gray, -1 as encoded.
        annotated: take every record as one with boxes, whatever its type says.

    Raises:
        CaffePortError: it does not exist, is truncated or empty.
    """

    def __init__(self, path: Path, color: int = -1, annotated: bool = False) -> None:
        self.path, self.color, self.annotated, self._lock = path, color, annotated, threading.Lock()
        is_lmdb = path.is_file() or (path / "data.mdb").is_file()
        self._records: LMDB | LevelDB = LMDB(path) if is_lmdb else LevelDB(path)
        if not len(self._records):
            raise CaffePortError("is an empty database", str(path))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        where = self._where(index)
        p = self._message(index)
        datum = p.datum
        if datum.encoded:
            picture = images.decode(datum.data, self.color, where)
        else:
            shape = (datum.channels, datum.height, datum.width)
            array = np.frombuffer(datum.data, np.uint8) if datum.has("data") else np.asarray(datum.float_data)
            if min(shape) < 1 or array.size != shape[0] * shape[1] * shape[2]:
                raise ParseError(f"the image of shape {shape} has {array.size} values", where)
            picture = array.reshape(shape).transpose(1, 2, 0)
            picture = picture if picture.dtype == np.uint8 else picture.astype(np.float32)
        found = _objects(p) if self.annotated or p.has("type") else None
        return Example(picture, bool(datum.encoded), found, int(datum.label))

    def has_boxes(self) -> bool:
        """Whether the records are AnnotatedDatum with boxes, judged by the first."""
        try:
            p = self._message(0)
        except CaffePortError:
            return False
        return bool(p.has("datum") and (p.has("type") or len(p.annotation_group)))

    def _message(self, index: int) -> Message:
        with self._lock:  # a LevelDB caches the block that it decompressed last
            data = self._records[index]
        return wire.parse(data, "AnnotatedDatum", self._where(index))

    def _where(self, index: int) -> str:
        with self._lock:
            return f"{self.path}, key {self._records.key(index).decode(errors='replace')}"


def _objects(p: Message) -> Objects:
    return objects(
        [
            (
                int(group.group_label),
                int(one.instance_id),
                (one.bbox.xmin, one.bbox.ymin, one.bbox.xmax, one.bbox.ymax),
                bool(one.bbox.difficult),
            )
            for group in p.annotation_group
            for one in group.annotation
        ]
    )


# -- files ----------------------------------------------------------------------------------------------------------

_IMAGES, _ANNOTATIONS, _SETS = "JPEGImages", "Annotations", "ImageSets/Main"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
_MAX_ANNOTATION = 16 << 20


class AnnotatedFiles:
    """Images with annotation files: .xml as of PASCAL VOC, or .txt with lines "label xmin ymin xmax ymax" in pixels.

    Args:
        pairs: image and annotation of each.
        labels: label by class name, for .xml.
        color: decode in color or gray.
    """

    def __init__(self, pairs: Sequence[tuple[Path, Path]], labels: Mapping[str, int], color: bool = True) -> None:
        self.pairs, self.labels, self.color = pairs, labels, color

    @classmethod
    def of(cls, path: Path, labels: Mapping[str, int], split: str = "test", color: bool = True) -> AnnotatedFiles:
        """The files of a folder with Annotations and JPEGImages, as of PASCAL VOC: those that
        ``ImageSets/Main/SPLIT.txt`` lists, or all; or of a list with an image and an annotation in every line.

        Raises:
            CaffePortError: there are none.
        """
        return cls(_of_folder(path, split) if path.is_dir() else _of_list(path), labels, color)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        picture_path, path = self.pairs[index]
        picture = images.decode(read_bytes(picture_path), int(self.color), str(picture_path))
        height, width = picture.shape[:2]
        rows = self._xml(path, height, width) if path.suffix.lower() == ".xml" else _text(path, height, width)
        counts: dict[int, int] = {}
        first: dict[int, int] = {}
        numbered = []
        for label, corners, difficult in rows:
            numbered.append((label, counts.setdefault(label, 0), corners, difficult))
            counts[label] += 1
            first.setdefault(label, len(first))
        numbered.sort(key=lambda row: first[row[0]])  # one group for each class, in the order of the first objects
        return Example(picture, True, objects(numbered))

    def _xml(self, path: Path, height: int, width: int) -> list[tuple[int, tuple[float, float, float, float], bool]]:
        text = read_bytes(path, _MAX_ANNOTATION).decode("utf-8", "replace")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can grow to any size
            raise ParseError("declares a document type or entities, which annotations do not need", str(path))
        try:
            root = ElementTree.fromstring(text)  # noqa: S314
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise ParseError(f"cannot be read as XML: {error}", str(path)) from None
        tall, wide = (
            int(_number(root, f"size/{name}", path, own)) for name, own in (("height", height), ("width", width))
        )
        if tall < 1 or wide < 1:
            tall, wide = height, width
        rows = []
        for one in root.iter("object"):
            name = (one.findtext("name") or "").strip()
            if name not in self.labels:
                near = did_you_mean(name, self.labels)
                hint = "Give the names of the classes: --labels FILE (a labelmap.prototxt, or a name per line)."
                raise CaffePortError(f"object '{name}' is of no known class.{near}", str(path), hint)
            if one.find("bndbox") is None:
                continue
            xmin, ymin, xmax, ymax = (_number(one, f"bndbox/{n}", path) for n in ("xmin", "ymin", "xmax", "ymax"))
            difficult = (one.findtext("difficult") or "").strip() == "1"
            rows.append((self.labels[name], (xmin / wide, ymin / tall, xmax / wide, ymax / tall), difficult))
        return rows


def _of_folder(path: Path, split: str) -> list[tuple[Path, Path]]:
    listed = path / _SETS / f"{split}.txt"
    if listed.is_file():
        text = read_bytes(listed, _MAX_ANNOTATION).decode("utf-8", "surrogateescape")
        names = [line.split()[0] for line in text.splitlines() if line.strip()]
    else:
        names = sorted(one.stem for one in (path / _ANNOTATIONS).glob("*.xml"))
    if not names:
        raise CaffePortError(f"contains no annotations ({_ANNOTATIONS}/*.xml)", str(path))
    pairs = []
    for name in names:
        found = next(
            (path / _IMAGES / f"{name}{end}" for end in _SUFFIXES if (path / _IMAGES / f"{name}{end}").is_file()), None
        )
        if found is None:
            raise CaffePortError(f"has no image {_IMAGES}/{name}.jpg", str(path))
        pairs.append((found, path / _ANNOTATIONS / f"{name}.xml"))
    return pairs


def _of_list(path: Path) -> list[tuple[Path, Path]]:
    text = read_bytes(path).decode("utf-8", "surrogateescape")
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not words[1].lower().endswith((".xml", ".txt")):
            what = f"expected an image and an annotation (.xml or .txt), got '{line[:80]}'"
            raise ParseError(what, f"{path}:{number}")
        pairs.append((path.parent / words[0], path.parent / words[1]))
    if not pairs:
        raise CaffePortError("lists no images", str(path))
    return pairs


def _number(root: ElementTree.Element, name: str, path: Path, otherwise: float | None = None) -> float:
    text = root.findtext(name)
    if text is None and otherwise is not None:
        return otherwise
    try:
        value = float(text or "")
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ParseError(f"{name} is {text!r}, expected a number", str(path))
    return value


def _text(path: Path, height: int, width: int) -> list[tuple[int, tuple[float, float, float, float], bool]]:
    """Source: ReadTxtToAnnotatedDatum."""
    rows = []
    text = read_bytes(path, _MAX_ANNOTATION).decode("utf-8", "replace")
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            label, (xmin, ymin, xmax, ymax) = int(words[0]), map(float, words[1:])
        except ValueError:
            what = f"expected label, xmin, ymin, xmax and ymax, got '{line[:80]}'"
            raise ParseError(what, f"{path}:{number}") from None
        rows.append((label, (xmin / width, ymin / height, xmax / width, ymax / height), False))
    return rows


def is_annotated(path: Path) -> bool:
    """Whether a folder, list or database holds images with boxes."""
    if path.is_dir() and (path / _ANNOTATIONS).is_dir():
        return True
    if path.is_dir() and not ((path / "data.mdb").is_file() or (path / "CURRENT").is_file()):
        return False
    if path.suffix.lower() == ".txt":
        try:
            return bool(_of_list(path))
        except CaffePortError:
            return False
    if path.is_dir() or path.suffix.lower() == ".mdb":
        return AnnotatedDatabase(path).has_boxes()
    return False
