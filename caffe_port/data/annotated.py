"""Images with boxes, for SSD and its like: records of AnnotatedDatum, folders as of PASCAL VOC, and batches of both.

Source: annotated_data_layer.cpp, data_transformer.cpp and io.cpp of SSD (weiliu89/caffe).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from caffe_port.data import varied
from caffe_port.data.batches import positions
from caffe_port.data.boxes import Objects, check_samplers, emitted, objects, projected, sampled, seen
from caffe_port.data.leveldb import LevelDB
from caffe_port.data.lmdb import LMDB
from caffe_port.data.prepare import prepare
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.errors import CaffePortError, ParseError, did_you_mean
from caffe_port.formats import wire
from caffe_port.formats.message import Message
from caffe_port.spec import LayerSpec
from caffe_port.storage import images
from caffe_port.storage.files import read_bytes
from caffe_port.typing import Array

_RAW_BACKGROUND = 32.0  # around images that are stored raw, SSD's code leaves the spaces of a new string


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


# -- what happens to them -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BoxTransform:
    """What a TransformationParameter and an AnnotatedDataParameter of SSD's do to an image and its objects.

    Attributes:
        plan: mean and scale; neither crops nor mirrors.
        crop: (height, width), at random in training and at the center in testing; None: no crop.
        mirror: whether images are mirrored with probability 1/2, in both phases as in Caffe.
        resize, noise, distort, expand, emit: the parameters; None: not given.
        samplers: the batch_sampler.
    """

    plan: Preprocessing
    crop: tuple[int, int] | None = None
    mirror: bool = False
    resize: Message | None = None
    noise: Message | None = None
    distort: Message | None = None
    expand: Message | None = None
    emit: Message | None = None
    samplers: tuple[Message, ...] = ()

    @classmethod
    def of(cls, layer: LayerSpec) -> BoxTransform:
        """The transform of an AnnotatedData layer.

        Raises:
            SpecError: SSD rejects it too, or it has fields of another fork.
        """
        p, own = layer.param.transform_param, layer.param.annotated_data_param
        for name in (*(name for name, _ in own.items()), *map(str, own.unknown)):
            if name not in ("batch_sampler", "label_map_file", "anno_type"):
                raise layer.error(f"annotated_data_param {name} belongs to a fork of SSD and is not supported")
        plan = Preprocessing.from_transform_param(layer, boxes=True)
        given = {
            name.removesuffix("_param"): getattr(p, name) if p.has(name) else None
            for name in ("noise_param", "distort_param", "expand_param")
        }
        if len(p.resize_param) > 1:
            raise layer.error("gives several resize_param, as a fork of SSD does, which is not supported")
        resize = p.resize_param[0] if len(p.resize_param) else None
        crop = (p.crop_size, p.crop_size) if p.crop_size else (p.crop_h, p.crop_w)
        samplers = tuple(own.batch_sampler)
        with layer.checked():
            check_samplers(samplers)
            if given["distort"] is not None:
                varied.check_distortion(given["distort"])
            if given["noise"] is not None:
                varied.check_noise(given["noise"])
            if resize is not None:
                varied.check_resize(resize)
        if resize is not None and resize.resize_mode == "FIT_SMALL_SIZE" and layer.param.data_param.batch_size != 1:
            raise layer.error("resizes to images of different sizes (FIT_SMALL_SIZE), which needs batch_size 1")
        if given["expand"] is not None and plan.mean_image is not None:
            raise layer.error("expand_param needs mean_value; a mean_file has one size, and expanded images have many")
        return cls(
            replace(plan, crop=0, mirror_train=False, mirror_test=False),
            crop if min(crop) > 0 else None,
            bool(p.mirror),
            resize,
            emit=p.emit_constraint if p.has("emit_constraint") else None,
            samplers=samplers,
            **given,
        )

    def shape(self, picture: Array) -> tuple[int, int, int]:
        """(C, H, W) of what becomes of an image (H, W, C), if nothing is sampled. Source: InferBlobShape."""
        height, width = picture.shape[:2]
        if self.resize is not None:
            height, width = varied.new_size(self.resize, height, width)
        tall, wide = self.crop or (height, width)
        if tall > height or wide > width:
            raise CaffePortError(f"crop {wide}x{tall} is larger than the image, {width}x{height}")
        return picture.shape[2], tall, wide

    def __call__(self, example: Example, train: bool, rng: np.random.Generator) -> tuple[Array, Objects]:
        """The input for the net, float32 (C, H, W), and the objects in it. Source: load_batch."""
        picture, encoded = example.picture, example.encoded
        found = example.found if example.found is not None else objects([])

        def kept(x: Array) -> Array:  # images that were compressed are compressed again after every step
            return varied.stored(x) if encoded else x

        if self.distort is not None and encoded:
            picture = kept(varied.distorted(picture, self.distort, rng))
        if self.expand is not None:
            mean = np.broadcast_to(self.plan.mean, picture.shape[2:]) if encoded else [_RAW_BACKGROUND]
            larger = varied.expanded(picture, self.expand, list(map(float, mean)), rng)
            if larger is not None:
                picture, found = kept(larger[0]), seen(found, larger[1], self.emit)
        if self.samplers:
            windows = sampled(found, self.samplers, rng)
            if windows:
                window = np.clip(windows[int(rng.integers(len(windows)))], np.float32(0), np.float32(1))
                picture, found = kept(varied.cut(picture, window)), seen(found, window, self.emit)
        return self._given(picture, found, encoded, train, rng)

    def _given(
        self, picture: Array, found: Objects, encoded: bool, train: bool, rng: np.random.Generator
    ) -> tuple[Array, Objects]:
        """Source: DataTransformer::Transform and TransformAnnotation."""
        shape = picture.shape[:2]
        _, tall, wide = self.shape(picture)
        flip = self.mirror and int(rng.integers(2)) == 1
        if self.resize is not None:
            picture = varied.resized(picture, self.resize, rng)
            found = replace(found, corners=varied.boxes_resized(self.resize, found.corners, *shape))
        if self.noise is not None and encoded:
            picture = varied.spoiled(picture, self.noise, rng)
        height, width = picture.shape[:2]
        top, left = (height - tall) // 2, (width - wide) // 2
        if train and self.crop is not None:
            top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
        sides = np.array((width, height, width, height), np.float32)
        window = np.array((left, top, left + wide, top + tall), np.float32) / sides
        x = picture.transpose(2, 0, 1)
        order = "GRAY" if len(x) == 1 else "BGR"
        if not encoded:  # the mean has the size of the whole image, and is cropped and mirrored with it
            x = prepare(x, self.plan, order)
        x = x[:, top : top + tall, left : left + wide]
        x = x[:, :, ::-1] if flip else x
        if encoded:  # the mean has the size of the result
            x = prepare(x, self.plan, order)
        corners, inside = projected(window, found.corners)
        found = found.chosen(inside & emitted(window, found.corners, self.emit), corners)
        found = found.mirrored() if flip else found
        if self.resize is not None:
            found = replace(found, corners=varied.stretched(self.resize, found, shape, window))
        return x, found


class AnnotatedFeed:
    """Batches of images with objects: tops data (N, C, H, W) and label (1, 1, objects, 8), whose rows are item, label,
    instance, xmin, ymin, xmax, ymax and difficult; one row of -1 where no image has an object. Records without
    annotations give labels (N) instead. A :class:`~batches.Feed`.

    Args:
        records: the source.
        batch_size: records per batch.
        transform: what happens to them.
        train: crop at random positions.
        shuffle: use a different order in every epoch, instead of the stored sequence.
        seed: seed of the order and of everything random.
        device: device of the batches.
        labels: whether label is a top.
    """

    def __init__(
        self,
        records: Examples,
        batch_size: int,
        transform: BoxTransform,
        *,
        train: bool = False,
        shuffle: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        labels: bool = True,
    ) -> None:
        self.records, self.batch_size, self.transform, self.train = records, batch_size, transform, train
        self.seed, self.shuffle, self.size = seed, seed if shuffle else None, len(records)
        self.device, self.labels = torch.device(device), labels
        first = records[0]
        self.annotated = first.found is not None
        self.varies = transform.resize is not None and transform.resize.resize_mode == "FIT_SMALL_SIZE"
        self._shape = transform.shape(first.picture)
        boxes = (1, 1, max(len(first.found), 1), 8) if first.found is not None else (batch_size,)
        self.shapes: tuple[tuple[int, ...], ...] = ((batch_size, *self._shape), boxes)[: 1 + labels]

    def batch(self, number: int) -> tuple[Tensor, ...]:
        pictures, rows, labels = [], [], []
        for item, index in enumerate(positions(number, self.batch_size, self.size, self.shuffle)):
            rng = np.random.default_rng((self.seed, number, item, 1))
            example = self.records[int(index)]
            if (example.found is not None) != self.annotated and self.labels:
                raise CaffePortError(f"record {index} and the first one do not both have boxes")
            x, found = self.transform(example, self.train, rng)
            if not self.varies and x.shape != self._shape:
                hint = "Images of different sizes need a resize_param."
                raise CaffePortError(f"record {index} has shape {x.shape}, the first has {self._shape}", hint=hint)
            pictures.append(x)
            rows.append(found.rows(item))
            labels.append(example.label)
        data = torch.from_numpy(np.stack(pictures)).to(self.device)
        if not self.labels:
            return (data,)
        if not self.annotated:
            return data, torch.tensor(labels, dtype=torch.float32, device=self.device)
        table = np.concatenate(rows)
        table = table if len(table) else np.full((1, 8), -1, np.float32)
        return data, torch.from_numpy(table[None, None]).to(self.device)
