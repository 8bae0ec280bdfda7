"""Whether a file is a prototxt, weights or none of Caffe's files, by its name and its first bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from caffe_port.errors import CaffePortError, ParseError
from caffe_port.storage.files import opened

WEIGHTS = (".caffemodel", ".h5", ".hdf5", ".binaryproto", ".solverstate")


def holds_weights(file: str | Path) -> bool:
    """Whether a file holds weights rather than text; False for one that cannot be read."""
    name = str(file).lower()
    if name.endswith(WEIGHTS):
        return True
    if name.endswith(".prototxt"):
        return False
    try:
        with opened(file) as head:
            return b"\0" in head.read(4096)
    except (OSError, CaffePortError):
        return False  # reading it as text reports the error


_FOREIGN: Final = (
    (b"\x89PNG", "a PNG image", ""),
    (b"\xff\xd8\xff", "a JPEG image", ""),
    (b"PK\x03\x04", "a zip archive (a PyTorch file?)", ""),
    (b"\x1f\x8b", "a gzip archive", "Unpack it first."),
    (b"BZh", "a bzip2 archive", "Unpack it first."),
    (b"version https://git-lfs", "a Git LFS pointer", "Run `git lfs pull` in its repository to get the file itself."),
    (b"<", "a web page or XML", "Was the download an error page, or the page about the file?"),
)
"""First bytes of a file, its kind, and what to do about it."""


def refuse_foreign(data: bytes | memoryview, wanted: str, where: str) -> None:
    """Raises ParseError for a file of a kind that nobody mistakes for one of Caffe's.

    Args:
        data: the file, or its beginning.
        wanted: what it should be, for the message.
        where: its name.
    """
    for magic, kind, hint in _FOREIGN:
        if data[: len(magic)] == magic:
            raise ParseError(f"is {kind}, not {wanted}", where, hint)
    if where.lower().endswith(".py"):
        raise ParseError(f"is a Python file, not {wanted}", where)
