"""Files: written beside and then renamed, so that a name never stands for half a file; and told apart by kind."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from caffe_port.errors import CaffePortError


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file object whose contents appear under ``path`` when the block ends well, and not at all otherwise.

    Raises:
        CaffePortError: the folder does not exist or cannot be written, the disk is full.
    """
    path = Path(path)
    temporary = None
    if "\0" in str(path):
        raise CaffePortError("cannot be written: a NUL in the name", str(path))
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:50]}.", suffix=".part", dir=path.parent)
        encoding = None if "b" in mode else "utf-8"
        with os.fdopen(handle, mode, encoding=encoding) as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise CaffePortError(f"cannot be written: {error.strerror}", str(path)) from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def sort_files(files: Sequence[str | Path]) -> tuple[str | None, str | None]:
    """Which of one or two files is the prototxt and which holds weights; the order does not matter.

    Raises:
        CaffePortError: none, more than two, or two of a kind.
    """
    if not 1 <= len(files) <= 2:
        raise CaffePortError(f"give a prototxt, a weights file, or both; got {len(files)} files")
    kinds = [_holds_weights(file) for file in files]
    if len(files) == 2 and kinds[0] == kinds[1]:
        kind = "weights files" if kinds[0] else "prototxt texts"
        raise CaffePortError(f"{files[0]} and {files[1]} are both {kind}; give one prototxt and one weights file")
    by_kind = {kind: str(file) for kind, file in zip(kinds, files, strict=True)}
    return by_kind.get(False), by_kind.get(True)


def _holds_weights(file: str | Path) -> bool:
    name = str(file).lower()
    if name.endswith((".caffemodel", ".h5", ".hdf5", ".binaryproto", ".solverstate")):
        return True
    if name.endswith(".prototxt"):
        return False
    try:
        with Path(file).open("rb") as opened:
            return b"\0" in opened.read(4096)
    except OSError:
        return False  # reading it as text says what is the matter


def sha256(path: str | Path) -> str:
    """The checksum of a file, in hexadecimal.

    Raises:
        CaffePortError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise CaffePortError(f"cannot be read: {error.strerror}", str(path)) from None
    return digest.hexdigest()
