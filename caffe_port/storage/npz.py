"""Arrays from untrusted .npz and .npy files: no pickles, and declared sizes are checked."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from caffe_port.errors import CaffePortError, ParseError
from caffe_port.storage.files import opened
from caffe_port.terminal import count
from caffe_port.typing import Array

T = TypeVar("T")

_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    OSError,
    UnicodeDecodeError,
    MemoryError,
    OverflowError,
)
_TIGHTEST, _FREE = 64, 1 << 20
"""An array may declare at most 64 times its compressed size plus 1 MiB."""


def names(path: str | Path, what: str) -> list[str]:
    """The names of the arrays in a file. Arguments and errors are those of :func:`read`."""
    return [_name(info) for info in _archive(path, what, zipfile.ZipFile.infolist)]


def read(path: str | Path, what: str, wanted: Collection[str] | None = None) -> dict[str, Array]:
    """The arrays of a file by name.

    Args:
        what: what the file should be, for the error messages: ``"a trace"``.
        wanted: the arrays to read; None: all.

    Raises:
        ParseError: the file is of another kind or damaged, contains Python objects, or declares an impossible size.
        CaffePortError: the file cannot be read.
    """

    def arrays(archive: zipfile.ZipFile) -> dict[str, Array]:
        members = {_name(info): info for info in archive.infolist()}
        return {
            name: _member(archive, info, str(path))
            for name, info in members.items()
            if wanted is None or name in wanted
        }

    return _archive(path, what, arrays)


def _name(info: zipfile.ZipInfo) -> str:
    return info.filename.removesuffix(".npy")


def _archive(path: str | Path, what: str, use: Callable[[zipfile.ZipFile], T]) -> T:
    with opened(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return use(archive)
        except CaffePortError:
            raise
        except _DAMAGED as error:
            raise ParseError(f"is damaged or is not {what} (.npz): {str(error)[:120]}", str(path)) from None


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> Array:
    if info.file_size > _TIGHTEST * info.compress_size + _FREE:
        raise ParseError(
            f"'{info.filename[:60]}' declares {count(info.file_size, 'byte')} but stores {info.compress_size:,}", where
        )
    with archive.open(info) as member:
        shape, dtype, offset = _header(member)
    if dtype.hasobject:
        raise ParseError(f"'{info.filename[:60]}' contains Python objects, which are not loaded", where)
    declared, there = math.prod(shape) * dtype.itemsize, info.file_size - offset
    if declared != there:
        raise ParseError(f"'{info.filename[:60]}' declares {count(declared, 'byte')} but holds {there:,}", where)
    with archive.open(info) as member:
        array: Array = np.lib.format.read_array(member, allow_pickle=False)
    return array


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    version = np.lib.format.read_magic(member)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"npy version {version[0]}.{version[1]}")
    shape, _, dtype = readers[version](member)
    return shape, dtype, member.tell()


def read_npy(path: str | Path) -> Array:
    """The array of an .npy file, memory-mapped. Raises CaffePortError for anything else."""
    opened(path).close()
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise ParseError(f"is not an .npy array, or a damaged one: {str(error)[:120]}", str(path)) from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise ParseError("holds no numbers", str(path))
    return array
