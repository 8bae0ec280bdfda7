"""Where data sets are, and whether they are there: known by the names of files, without torch."""

from __future__ import annotations

from pathlib import Path

from caffe_port.data.image_files import SUFFIXES
from caffe_port.errors import CaffePortError, did_you_mean
from caffe_port.storage.files import cache_folder, opened

NAMES = ("mnist", "cifar10", "cifar100", "svhn")
SPLITS = ("train", "test")
_MNIST = {
    split: [f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"]
    for split, stem in (("train", "train"), ("test", "t10k"))
}
_CIFAR10 = [f"cifar-10-batches-py/{name}" for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")]
_CIFAR100 = ["cifar-100-python/train", "cifar-100-python/test"]


def default_root() -> Path:
    """The default folder for data sets: ``data`` in :func:`caffe_port.storage.files.cache_folder`."""
    return cache_folder() / "data"


def check(data: str | Path, split: str, root: str | Path | None = None, download: bool = False) -> None:
    """Checks that a data set is there, as far as the names of files tell; its contents may still be wrong.

    Args:
        data, split, root, download: as for :func:`caffe_port.data.datasets.load`.

    Raises:
        CaffePortError: the set is unknown or is not there: names the files that it needs.
    """
    name, path = str(data).lower(), Path(data)
    if split not in SPLITS:
        raise CaffePortError(f"split '{split}' is neither train nor test")
    if name in NAMES:
        if not download:
            _check_named(name, split, Path(root) if root is not None else default_root())
    elif path.is_dir():
        class_folder(path, split)
    elif path.suffix.lower() == ".npz":
        opened(path).close()
    elif path.suffix.lower() in SUFFIXES and path.is_file():
        hint = "To see what the net says of it: caffe-port predict NET IMAGE"
        raise CaffePortError("is one image, not a data set with labels", str(path), hint)
    else:
        hint = f"Known data sets: {', '.join(NAMES)}; or give an .npz file or a folder of class folders."
        raise CaffePortError(f"'{data}' is not a data set, file or folder.{did_you_mean(name, NAMES)}", hint=hint)


def class_folder(path: Path, split: str) -> Path:
    """The folder with the class folders of a split: ``path`` itself, or ``train``, ``test`` or ``val`` in it.

    Raises:
        CaffePortError: there is none.
    """
    names = {"train": ("train",), "test": ("test", "val")}[split]
    inner = next((path / n for n in names if (path / n).is_dir()), None)
    if inner is None and any((path / n).is_dir() for n in ("train", "test", "val")):
        raise CaffePortError(f"has no folder '{names[0]}'", str(path))
    found = inner or path
    if not any(entry.is_dir() for entry in found.iterdir()):
        images = any(entry.suffix.lower() in SUFFIXES for entry in found.iterdir())
        has = "it has images, but no folders" if images else "it has no folders"
        hint = "Put the images of each class into a folder with its name."
        hint += " For images without labels: caffe-port predict NET FOLDER" if images else ""
        raise CaffePortError(f"is not a folder of class folders: {has}", str(found), hint)
    return found


def _check_named(name: str, split: str, root: Path) -> None:
    wanted = _missing(name, split, root)
    if not wanted:
        return
    where = ", ".join(wanted)
    if name == "mnist":
        where += " (or with .gz), here or in MNIST/raw"
    hint = "Set its folder with --root DIR, or download it with --download."
    if root.is_dir() and not _missing(name, split, root / name):
        hint = f"It is in {root / name}: give that as --root."
    what = f"{name} was not found or is incomplete: missing {where}"
    raise CaffePortError(what if root.is_dir() else f"{what}; there is no such folder", str(root), hint)


def _missing(name: str, split: str, root: Path) -> list[str]:
    """The files of a split that are missing in a root folder."""
    if name == "mnist":
        for folder in (root, root / "MNIST" / "raw"):
            files = _MNIST[split] if folder == root else [*_MNIST["train"], *_MNIST["test"]]
            if all((folder / file).is_file() or (folder / f"{file}.gz").is_file() for file in files):
                return []
        processed = root / "MNIST" / "processed"
        return [] if processed.is_dir() else _MNIST[split]
    files = {"cifar10": _CIFAR10, "cifar100": _CIFAR100, "svhn": [f"{split}_32x32.mat"]}[name]
    return [file for file in files if not (root / file).is_file()]
