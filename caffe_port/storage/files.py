"""Files: read only where they are files; written beside and then renamed, so that a name never stands for half of one.

What is opened for reading is opened here: a folder, a named pipe or a device in the place of a file is an error, not
a program that waits for ever.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import stat
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from caffe_port.errors import CaffePortError, ParseError

if TYPE_CHECKING:
    import numpy as np

MAX_BYTES = 1 << 30
"""Of a file that is read as a whole. Weights are memory-mapped instead, and may be of any size."""

_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


def opened(path: str | Path) -> IO[bytes]:
    """A file, open for reading.

    Raises:
        CaffePortError: it does not exist, cannot be read, or is a folder, a named pipe, a device.
    """
    try:
        # Without O_NONBLOCK, a named pipe that nobody writes to would be waited for.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if os.path.isdir(path):  # what Windows says of one is "Permission denied"
            raise CaffePortError("is a folder, a file was expected", str(path)) from None
        raise CaffePortError(f"cannot be read: {getattr(error, 'strerror', error)}", str(path)) from None
    kind = stat.S_IFMT(os.fstat(handle).st_mode)
    if kind != stat.S_IFREG:
        os.close(handle)
        what = "a folder" if kind == stat.S_IFDIR else _KINDS.get(kind, "no file")
        raise CaffePortError(f"is {what}, a file was expected", str(path))
    return os.fdopen(handle, "rb")


def read_bytes(path: str | Path, most: int = MAX_BYTES) -> bytes:
    """What a file holds.

    Raises:
        CaffePortError: as for :func:`opened`.
        ParseError: it has more than ``most`` bytes.
    """
    with opened(path) as file:
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise CaffePortError(f"cannot be read: {error.strerror}", str(path)) from None
    if len(data) > most:
        raise ParseError(f"is larger than {most >> 20} MiB; such a file never is", str(path))
    return data


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


def stays_inside(path: str) -> bool:
    """Whether a path leads to a place below the folder that it is joined to, on any system."""
    parts = path.replace("\\", "/").split("/")
    return ".." not in parts and not path.startswith(("/", "\\")) and ":" not in path and "\0" not in path


@contextlib.contextmanager
def lock(path: str | Path, what: str) -> Iterator[None]:
    """Holds a file that one process at a time can hold. The system lets it go with the process, however that ends.

    Args:
        path: of the file, which stays and tells who held it last; or a folder, where the system can lock one.
        what: for the error: what the holder is doing.

    Raises:
        CaffePortError: another process holds it: says which, on which machine.
    """
    folder = os.path.isdir(path)
    if folder and sys.platform == "win32":
        yield
        return
    try:
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise CaffePortError(f"cannot be written: {error.strerror}", str(path)) from None
    try:
        if not _try_lock(handle):
            holder = "" if folder else os.read(handle, 200).decode(errors="replace")
            raise CaffePortError(f"{what} by {holder or 'another process'}", str(path), "Wait for it to end.")
        if not folder:
            import platform

            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, 1 << 20, os.SEEK_SET)  # far behind the text, which others read
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK)  # a file system without locks: go on
    return True


class MappedFile(mmap.mmap):
    """A file mapped into memory, which keeps a handle of the file.

    Attributes:
        handle: a file descriptor.
        writable: pages may be written to, which never reaches the file.
    """

    handle: int
    writable: bool

    @classmethod
    def of(cls, file: IO[bytes], writable: bool = False) -> MappedFile:
        """Maps a file that is open for reading, and may be closed afterwards.

        Args:
            writable: a page that is written to becomes a copy; the file stays as it is.
        """
        made = cls(file.fileno(), 0, access=mmap.ACCESS_COPY if writable else mmap.ACCESS_READ)
        made.handle, made.writable = os.dup(file.fileno()), writable
        weakref.finalize(made, os.close, made.handle)
        return made

    def offset(self, array: np.ndarray[Any, Any]) -> int | None:
        """Where the file has a contiguous array that is a view of the mapping; None for another array."""
        at = array.__array_interface__["data"][0] - self._address
        return at if 0 <= at <= len(self) - array.nbytes else None

    @functools.cached_property
    def _address(self) -> int:
        import numpy as np

        return int(np.frombuffer(self, np.uint8).__array_interface__["data"][0])


def let_go(mapping: mmap.mmap | None) -> None:
    """Gives back the memory that the pages of a mapped file take; a page is read again when it is needed.

    What was written to a copy-on-write mapping is lost.
    """
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def sha256(path: str | Path) -> str:
    """The checksum of a file, in hexadecimal.

    Raises:
        CaffePortError: it cannot be read.
    """
    import hashlib

    digest = hashlib.sha256()
    try:
        with opened(path) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise CaffePortError(f"cannot be read: {error.strerror}", str(path)) from None
    return digest.hexdigest()


def map_file(path: str | Path, writable: bool = False) -> memoryview:
    """A file's bytes, memory-mapped.

    Args:
        writable: a page that is written to becomes a copy; the file stays as it is.

    Raises:
        CaffePortError: it does not exist, is a folder or cannot be read.
        ParseError: it is empty.
    """
    with opened(path) as file:
        if not file.seek(0, 2):
            raise ParseError("is empty", str(path))
        try:
            return memoryview(MappedFile.of(file, writable))
        except (OSError, ValueError) as error:
            raise CaffePortError(f"cannot be read: {getattr(error, 'strerror', error)}", str(path)) from None


def find(name: str, folder: Path) -> Path | None:
    """What a file in ``folder`` names: below that folder, below the current one, or by its last part; None: nowhere."""
    path = Path(name)
    candidates = (folder / path, path, folder / path.name)
    return next((candidate for candidate in candidates if name and os.path.exists(candidate)), None)


def cache_folder() -> Path:
    """``$CAFFE_PORT_CACHE``, else ``$XDG_CACHE_HOME/caffe-port``, else ``~/.cache/caffe-port``."""
    own = os.environ.get("CAFFE_PORT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "caffe-port"
