"""Files and folders of images, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from caffe_port.errors import CaffePortError, ParseError
from caffe_port.formats.kinds import WEIGHTS
from caffe_port.storage import images
from caffe_port.storage.files import opened

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
"""The files of a folder that are taken as images."""


def expand(paths: Sequence[str | Path]) -> list[Path]:
    """The images: the files themselves, and those of folders, sorted.

    Raises:
        CaffePortError: a folder has no images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise CaffePortError(f"contains no images ({', '.join(SUFFIXES)})", str(path))
            found += inside
        else:
            found.append(path)
    return found


def check(path: Path) -> None:
    """Raises CaffePortError if a file does not exist or does not begin as an image does."""
    opened(path).close()
    cv2 = images.opencv()
    if not cv2.haveImageReader(str(path)):
        hint = "The net comes first, then the images." if path.suffix.lower() in (".prototxt", *WEIGHTS) else ""
        raise ParseError("is not an image", str(path), hint)
