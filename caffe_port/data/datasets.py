"""Images and labels in memory, and batches of them on their device.

Sources: torchvision's data sets (MNIST, CIFAR10, CIFAR100, SVHN), folders of class folders, .npz files. For databases
and lists that are named in a net's Data layers, see :mod:`caffe_port.data.records`.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_port.data import set_files
from caffe_port.data.batches import positions
from caffe_port.data.prepare import Preprocessor
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.data.set_files import SPLITS as SPLITS
from caffe_port.data.set_files import default_root as default_root
from caffe_port.errors import CaffePortError, DependencyError, ParseError
from caffe_port.storage import npz
from caffe_port.storage.files import MAX_BYTES, opened
from caffe_port.terminal import count

TORCHVISION = {"mnist": "MNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100", "svhn": "SVHN"}


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, in memory.

    Attributes:
        name: name for messages, e.g. ``"mnist test"``.
        images: uint8 0..255, or float32 if the source contains floats; (N, C, H, W).
        labels: int64 (N).
        classes: names by label; empty if unknown.
        channel_order: ``"RGB"``, ``"BGR"`` or ``"GRAY"``.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...] = ()
    channel_order: str = "RGB"

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.labels.ndim != 1 or len(self.images) != len(self.labels):
            shapes = f"{tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            raise CaffePortError(f"expected images (N, C, H, W) and labels (N), got {shapes}", self.name)
        if not len(self.images):
            raise CaffePortError("contains no images", self.name)
        if int(self.labels.min()) < 0:
            raise CaffePortError(f"label {int(self.labels.min())} is negative", self.name)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        c, h, w = self.images.shape[1:]
        return c, h, w

    def to(self, device: torch.device | str) -> ImageSet:
        """The same set on a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def first(self, count: int) -> ImageSet:
        """Only the first images."""
        return replace(self, images=self.images[:count], labels=self.labels[:count])

    def colored(self) -> ImageSet:
        """The same images with three channels."""
        if self.channel_order != "GRAY":
            return self
        return replace(self, images=self.images.expand(-1, 3, -1, -1), channel_order="RGB")

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels), in order; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self.images[start : start + size], self.labels[start : start + size]

    def check_labels(self, classes: int) -> None:
        """Raises CaffePortError if a label is outside 0..classes-1."""
        highest = int(self.labels.max())
        if highest >= classes:
            raise CaffePortError(
                f"label {highest} is out of range: the net has {count(classes, 'class', 'classes')}", self.name
            )


def from_arrays(
    images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], name: str, classes: Sequence[str] = ()
) -> ImageSet:
    """An ImageSet made from arrays: (N, H, W), (N, H, W, C) or (N, C, H, W), where C is 1 or 3; uint8 or floats.

    Raises:
        CaffePortError: any other shape or type.
    """
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise CaffePortError(
            f"images have shape {images.shape}, expected (N, H, W), (N, H, W, C) or (N, C, H, W)", name
        )
    if images.dtype != np.uint8:
        if images.dtype.kind not in "fiu":
            raise CaffePortError(f"expected images of a numeric type, got {images.dtype}", name)
        whole = images.dtype.kind != "f" and images.size and images.min() >= 0 and images.max() <= 255
        images = images.astype(np.uint8 if whole else np.float32)
    if labels.dtype.kind not in "iu" and not (labels.dtype.kind == "f" and np.array_equal(labels, labels.round())):
        raise CaffePortError(f"expected integer labels, got {labels.dtype}", name)
    order = "GRAY" if images.shape[1] == 1 else "RGB"
    tensors = torch.from_numpy(np.array(images, order="C")), torch.from_numpy(labels.reshape(-1).astype(np.int64))
    return ImageSet(name, *tensors, tuple(classes), order)


# -- sets by name ---------------------------------------------------------------------------------------------------


def load(data: str | Path, split: str = "test", root: str | Path | None = None, download: bool = False) -> ImageSet:
    """Loads a data set.

    Args:
        data: ``"mnist"``, ``"cifar10"``, ``"cifar100"``, ``"svhn"``; or the path of an .npz file or a folder.
        split: ``"train"`` or ``"test"``.
        root: torchvision's root folder for the set (default :func:`default_root`); MNIST's four ``...-ubyte`` or
            ``...-ubyte.gz`` files may also be directly in it.
        download: let torchvision download missing files; nothing is downloaded otherwise.

    Raises:
        CaffePortError: the set does not exist, is not found under ``root``, or is damaged.
    """
    name, path = str(data).lower(), Path(data)
    if name in TORCHVISION and split in SPLITS:
        return _by_torchvision(name, split, Path(root) if root is not None else default_root(), download)
    set_files.check(data, split, root, download)
    return from_folder(path, split) if path.is_dir() else from_npz(path, split)


def _by_torchvision(name: str, split: str, root: Path, download: bool) -> ImageSet:
    label = f"{name} {split}"
    if name == "mnist" and (found := _idx_files(root, split)):
        return from_arrays(_read_idx(found[0], 3), _read_idx(found[1], 1), label, [str(d) for d in range(10)])
    try:
        from torchvision import datasets
    except ImportError:
        raise DependencyError(f"{name} requires torchvision", hint="pip install torchvision") from None
    cls = getattr(datasets, TORCHVISION[name])
    try:
        wanted = {"split": split} if name == "svhn" else {"train": split == "train"}
        stored = cls(root=str(root), download=download, **wanted)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        missing = "not found" in str(error).lower()
        if missing:
            set_files.check(name, split, root)
        what = f"{name} was not found or is incomplete" if missing else f"{name} cannot be read: {str(error)[:200]}"
        hint = "Set its folder with --root DIR" + ("." if download else ", or download it with --download.")
        raise CaffePortError(what, str(root), hint) from None
    except ImportError as error:
        raise DependencyError(
            f"{name} requires {error.name or 'a package'}", hint=f"pip install {error.name}"
        ) from None
    labels = np.asarray(stored.labels if name == "svhn" else stored.targets)
    classes = [str(d) for d in range(10)] if name in ("svhn", "mnist") else stored.classes
    return from_arrays(np.asarray(stored.data), labels, label, classes)


def _idx_files(root: Path, split: str) -> tuple[Path, Path] | None:
    stem = {"train": "train", "test": "t10k"}[split]
    found = []
    for kind in ("images-idx3", "labels-idx1"):
        names = [root / f"{stem}-{kind}-ubyte{end}" for end in ("", ".gz")]
        path = next((p for p in names if p.is_file()), None)
        if path is None:
            return None
        found.append(path)
    return found[0], found[1]


def _read_idx(path: Path, dims: int) -> np.ndarray[Any, Any]:
    """Reads an idx file of unsigned bytes. Source: yann.lecun.com/exdb/mnist."""
    header = 4 + 4 * dims
    with opened(path) as file, gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file as plain:
        try:
            head = plain.read(header)
            if head[:4] != bytes((0, 0, 8, dims)) or len(head) < header:
                raise ParseError(f"is not a {dims}-dimensional idx file of bytes", str(path))
            shape = tuple(int(n) for n in np.frombuffer(head, ">u4", dims, 4))
            count = math.prod(shape)
            data = plain.read(min(count, MAX_BYTES) + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ParseError(f"cannot be read: {error}", str(path)) from None
    if len(data) != count:
        raise ParseError(
            f"declares {shape}, {count} bytes, but contains {'more' if len(data) > count else len(data)}", str(path)
        )
    return np.frombuffer(data, np.uint8).reshape(shape)


_NPZ_KEYS = (  # first arrays named after the split, then those of a file with only one split
    ("x_{0}", "y_{0}"),
    ("{0}_images", "{0}_labels"),
    ("{0}_x", "{0}_y"),
    ("images", "labels"),
    ("x", "y"),
)


def from_npz(path: Path, split: str) -> ImageSet:
    """Reads an .npz with ``x_train``, ``y_train``, ``x_test``, ``y_test`` (as in Keras), or ``images`` and ``labels``.

    Raises:
        CaffePortError: the file does not exist or contains none of these arrays.
    """
    pairs = [tuple(key.format(split) for key in pattern) for pattern in _NPZ_KEYS]
    keys = npz.names(path, "a data set")
    found = next(((images, labels) for images, labels in pairs if images in keys and labels in keys), None)
    if found is None:
        wanted = f"x_{split} and y_{split}, or images and labels"
        found_keys = ", ".join(sorted(keys))[:200] or "nothing"
        raise CaffePortError(f"contains {found_keys}; expected {wanted}", str(path))
    arrays = npz.read(path, "a data set", (*found, "classes"))
    classes = [str(c) for c in arrays["classes"].reshape(-1)] if "classes" in arrays else ()
    return from_arrays(arrays[found[0]], arrays[found[1]], f"{path} {split}", classes)


def from_folder(path: Path, split: str) -> ImageSet:
    """Reads images from one folder per class, in alphabetical order; below ``train`` or ``test`` if these exist. If all
    images are gray, so is the set.

    Raises:
        CaffePortError: there are no class folders or images, or the images have different sizes.
    """
    try:
        from torchvision.datasets import ImageFolder
    except ImportError:
        raise DependencyError("folders of images require torchvision", hint="pip install torchvision") from None
    path = set_files.class_folder(path, split)
    try:
        stored = ImageFolder(str(path), loader=_loaded)
    except FileNotFoundError as error:
        raise CaffePortError(f"is not a folder of class folders: {str(error).splitlines()[0]}", str(path)) from None
    arrays = []
    for file, _ in stored.samples:
        try:
            arrays.append(np.asarray(stored.loader(file)))
        except (OSError, ValueError, SyntaxError) as error:
            raise CaffePortError(f"cannot be read as an image: {error}", file) from None
        if arrays[-1].shape[:2] != arrays[0].shape[:2]:
            sizes = " and ".join(f"{w}x{h}" for h, w in (arrays[0].shape[:2], arrays[-1].shape[:2]))
            raise CaffePortError(f"images have different sizes: {sizes}; resize them first", file)
    labels = np.asarray([label for _, label in stored.samples])
    if any(array.ndim == 3 for array in arrays):  # a gray image among colored ones
        arrays = [array if array.ndim == 3 else np.stack([array] * 3, 2) for array in arrays]
    return from_arrays(np.stack(arrays), labels, str(path), stored.classes)


def _loaded(path: str) -> Any:
    """An image of Pillow, gray or in color."""
    from PIL import Image

    with opened(path) as file, Image.open(file) as image:
        return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


def mean_image(data: ImageSet, batch_size: int = 5000) -> Tensor:
    """The mean image, float32 (C, H, W), in the set's own channel order, as Caffe's compute_image_mean computes it."""
    total = torch.zeros(data.shape, dtype=torch.float64, device=data.images.device)
    for images, _ in data.batches(batch_size):
        total += images.sum(0, dtype=torch.float64)
    return (total / len(data)).float()


def with_mean_image(plan: Preprocessing, training: ImageSet) -> Preprocessing:
    """The plan with the mean image of a training set. Raises CaffePortError if only one of the two is gray."""
    mean = mean_image(training).cpu().numpy()
    return replace(plan, mean_image=mean[::-1] if plan.reorders(training.channel_order) else mean)


# -- batches for training -------------------------------------------------------------------------------------------


class ImageFeed:
    """Batches of an ImageSet, preprocessed on its device: tops (data, label). A :class:`~batches.Feed`.

    Args:
        data: the images, on the device.
        preprocessor: a preprocessor for the same device.
        batch_size: images per batch.
        train: use the TRAIN phase's rules for cropping and mirroring.
        shuffle: use a different order in every epoch, instead of the stored sequence.
        seed: seed of the order, the crops and the mirroring.
    """

    def __init__(
        self, data: ImageSet, preprocessor: Preprocessor, batch_size: int, *, train: bool, shuffle: bool, seed: int = 0
    ) -> None:
        self.data, self.preprocessor, self.batch_size, self.train = data, preprocessor, batch_size, train
        self.seed, self.shuffle, self.size = seed, seed if shuffle else None, len(data)
        self.shapes: tuple[tuple[int, ...], ...] = ((batch_size, *preprocessor.shape(data.shape)), (batch_size,))
        self.generator = torch.Generator(data.images.device)
        self._orders: dict[int, Tensor] = {}

    def _order(self, epoch: int) -> Tensor:
        """An epoch's order, on the device: a batch is a slice of it, so no indices are copied per batch."""
        epoch = epoch if self.shuffle is not None else 0
        if epoch not in self._orders:
            while len(self._orders) > 1:
                del self._orders[next(iter(self._orders))]
            rows = positions(epoch, self.size, self.size, self.shuffle)
            self._orders[epoch] = torch.from_numpy(rows).to(self.data.images.device)
        return self._orders[epoch]

    def batch(self, number: int) -> tuple[Tensor, ...]:
        first, last = number * self.batch_size, (number + 1) * self.batch_size
        parts = [
            self._order(epoch)[max(first - epoch * self.size, 0) : last - epoch * self.size]
            for epoch in range(first // self.size, (last - 1) // self.size + 1)
        ]
        rows = torch.cat(parts) if len(parts) > 1 else parts[0]
        self.generator.manual_seed((self.seed << 40) + 2 * number + self.train)
        return self.preprocessor(self.data.images[rows], self.train, self.generator), self.data.labels[rows]
