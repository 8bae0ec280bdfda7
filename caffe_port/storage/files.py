"""Reads regular files only; writes to a temporary file and renames it, so that no file is ever half-written.

Every file that is read is opened here: a folder, a named pipe or a device instead of a file is an error and does not
make the program hang.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import shutil
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
"""Limit for files that are read whole. Weights are memory-mapped instead and may have any size."""

LARGE_PIECE = 1 << 23
"""Bytes to read at a time beside other threads: each piece may have to wait for the interpreter."""

_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


def opened(path: str | Path) -> IO[bytes]:
    """Opens a file for reading.

    Raises:
        CaffePortError: it does not exist, cannot be read, or is a folder, a named pipe or a device.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe that has no writer would block.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if os.path.isdir(path):  # for a folder, Windows says "Permission denied"
            raise CaffePortError("is a folder; expected a file", str(path)) from None
        hint = "Download it first: files are read from disk only." if "://" in str(path) else ""
        raise CaffePortError(f"cannot be read: {getattr(error, 'strerror', error)}", str(path), hint) from None
    kind = stat.S_IFMT(os.fstat(handle).st_mode)
    if kind != stat.S_IFREG:
        os.close(handle)
        what = "a folder" if kind == stat.S_IFDIR else _KINDS.get(kind, "not a regular file")
        raise CaffePortError(f"is {what}; expected a file", str(path))
    return os.fdopen(handle, "rb")


def read_bytes(path: str | Path, most: int = MAX_BYTES) -> bytes:
    """The contents of a file.

    Raises:
        CaffePortError: as for :func:`opened`.
        ParseError: the file is larger than ``most`` bytes.
    """
    with opened(path) as file:
        try:
            likely = min(os.fstat(file.fileno()).st_size, most)  # read() allocates what it is asked for
            data = file.read(likely + 1)
            if likely < len(data) <= most:  # it grew, or has no size, as the files of /proc
                data += file.read(most + 1 - len(data))
        except OSError as error:
            raise CaffePortError(f"cannot be read: {error.strerror}", str(path)) from None
    if len(data) > most:
        raise ParseError(f"is larger than {most >> 20} MiB, the limit for files of this kind", str(path))
    return data


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file object whose contents appear at ``path`` if the block succeeds, and not at all otherwise.

    A device or a named pipe (``/dev/null``, ``/dev/stdout``) is written to, and never replaced by a file.

    Raises:
        CaffePortError: the folder does not exist or cannot be written to, the disk is full, or nobody reads the pipe.
    """
    path = Path(path)
    temporary, stream = None, _is_stream(path)
    if "\0" in str(path):
        raise CaffePortError("cannot be written: the name contains a NUL character", str(path))
    try:
        handle, temporary = tempfile.mkstemp(
            prefix=f".{path.name[:50]}.", suffix=".part", dir=None if stream else path.parent
        )
        encoding = None if "b" in mode else "utf-8"
        with os.fdopen(handle, mode, encoding=encoding) as file:
            yield file
        if stream:
            _pour(temporary, path)
            return
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


def _is_stream(path: Path) -> bool:
    """Whether a file must not be replaced: a device, a pipe, or an open file by its name in /dev or /proc."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    named = str(path.absolute().parent).startswith(("/dev/fd", "/proc/")) or str(path.absolute()) in _STANDARD
    return not stat.S_ISDIR(mode) and (named or not stat.S_ISREG(mode))


_STANDARD = ("/dev/stdin", "/dev/stdout", "/dev/stderr")


def _pour(made: str, path: Path) -> None:
    if stat.S_ISBLK(path.stat().st_mode):
        raise CaffePortError("is a block device; expected a file", str(path))
    # With O_NONBLOCK, opening a named pipe that nobody reads is an error, and does not wait.
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "wb") as out, open(made, "rb") as source:
        os.set_blocking(handle, True)
        shutil.copyfileobj(source, out)


def stays_inside(path: str) -> bool:
    """Whether a path stays below the folder that it is joined to, on any system."""
    parts = path.replace("\\", "/").split("/")
    return ".." not in parts and not path.startswith(("/", "\\")) and ":" not in path and "\0" not in path


@contextlib.contextmanager
def lock(path: str | Path, what: str) -> Iterator[None]:
    """Holds an exclusive lock on a file. The system releases it when the process ends, however that happens.

    Args:
        path: the lock file, which is kept and names its last holder; or a folder, where the system can lock one.
        what: what the holder is doing, for the error message.

    Raises:
        CaffePortError: another process holds the lock; names the process and its machine.
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

            os.lseek(handle, 1 << 20, os.SEEK_SET)  # far beyond the text, which others read
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK)  # a file system without locks: continue
    return True


class MappedFile(mmap.mmap):
    """A file mapped into memory, with a handle of the file.

    Attributes:
        handle: a file descriptor.
        writable: pages may be written to, which never reaches the file.
    """

    handle: int
    writable: bool

    @classmethod
    def of(cls, file: IO[bytes], writable: bool = False) -> MappedFile:
        """Maps a file that is open for reading; the file may be closed afterwards.

        Args:
            writable: writing to a page copies it (copy-on-write); the file does not change.
        """
        made = cls(file.fileno(), 0, access=mmap.ACCESS_COPY if writable else mmap.ACCESS_READ)
        made.handle, made.writable = os.dup(file.fileno()), writable
        weakref.finalize(made, os.close, made.handle)
        return made

    def offset(self, array: np.ndarray[Any, Any]) -> int | None:
        """The offset in the file of a contiguous array that is a view of the mapping; None for any other array."""
        at = array.__array_interface__["data"][0] - self._address
        return at if 0 <= at <= len(self) - array.nbytes else None

    @functools.cached_property
    def _address(self) -> int:
        import numpy as np

        return int(np.frombuffer(self, np.uint8).__array_interface__["data"][0])


def let_go(mapping: mmap.mmap | None) -> None:
    """Frees the memory used by the pages of a mapped file; they are read again when they are needed.

    Changes to a copy-on-write mapping are lost.
    """
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def sha256(path: str | Path) -> str:
    """The SHA-256 checksum of a file, in hexadecimal.

    Raises:
        CaffePortError: it cannot be read.
    """
    import hashlib

    digest, buffer = hashlib.sha256(), memoryview(bytearray(LARGE_PIECE))
    try:
        with opened(path) as file:
            while count := file.readinto(buffer):  # type: ignore[attr-defined]
                digest.update(buffer[:count])
    except OSError as error:
        raise CaffePortError(f"cannot be read: {error.strerror}", str(path)) from None
    return digest.hexdigest()


def map_file(path: str | Path, writable: bool = False) -> memoryview:
    """The bytes of a file, memory-mapped.

    Args:
        writable: writing to a page copies it (copy-on-write); the file does not change.

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
    """The first that is set of ``$CAFFE_PORT_CACHE`` and ``$XDG_CACHE_HOME/caffe-port``; or ``~/.cache/caffe-port``."""
    own = os.environ.get("CAFFE_PORT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "caffe-port"
