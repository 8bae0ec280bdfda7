"""Reads single files out of .tar, .tar.gz, .tar.bz2 and .zip archives. Nothing is ever unpacked under a name that the
archive gives: members are streams of bytes within limits, and links, folders and devices are none of them.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from caffe_port.errors import CaffePortError, ParseError
from caffe_port.storage.files import opened

_TIGHTEST, _FREE = 64, 1 << 20
"""An archive may unpack to at most 64 times its size plus 1 MiB: weights do not compress better than that."""
_MOST_MEMBERS = 10_000
_MOST_HEADER = 1 << 20
_BLOCK = 512
_CHUNK = 1 << 20
_DAMAGED = (
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    ValueError,
    KeyError,
    OverflowError,
)


@dataclass(frozen=True)
class Member:
    """A regular file in an archive.

    Attributes:
        name: as the archive gives it.
        size: in bytes, unpacked.
        order: its position in the archive.
    """

    name: str
    size: int
    order: int

    @property
    def base(self) -> str:
        """The last part of the name."""
        return self.name.replace("\\", "/").rpartition("/")[2]


_NEVER = (".prototxt", ".caffemodel", ".h5")


def is_archive(path: str | Path) -> bool:
    """Whether a file begins like an archive of one of these kinds; one that is named as a prototxt or weights is not
    opened for it.
    """
    if str(path).lower().endswith(_NEVER):
        return False
    try:
        with opened(path) as file:
            return bool(_kind(file))
    except (CaffePortError, OSError):
        return False  # reading it as something else reports the error


def members(path: str | Path) -> list[Member]:
    """The regular files of an archive.

    Raises:
        ParseError: it is damaged, of another kind, or unpacks to much more than its size.
        CaffePortError: it cannot be read.
    """
    return [member for member, _ in _walk(path)]


def read(path: str | Path, member: Member, most: int) -> bytes:
    """The contents of a member.

    Raises:
        ParseError: as for :func:`members`; or it has more than ``most`` bytes.
    """
    if member.size > most:
        raise ParseError(
            f"'{member.name[:60]}' is larger than {most >> 20} MiB, the limit for files of this kind", str(path)
        )
    for found, stream in _walk(path):
        if found == member:
            return b"".join(_chunks(stream, member, str(path)))
    raise ParseError(f"contains no '{member.name[:60]}'", str(path))


@contextlib.contextmanager
def unpacked(path: str | Path, member: Member, suffix: str) -> Iterator[Path]:
    """A member as a temporary file, under a name of our own; it is removed at the end.

    Raises:
        ParseError: as for :func:`members`.
    """
    with tempfile.TemporaryDirectory(prefix="caffe_port_", ignore_cleanup_errors=True) as folder:
        target = Path(folder) / f"member{suffix}"
        with target.open("wb") as out:
            for found, stream in _walk(path):
                if found == member:
                    for chunk in _chunks(stream, member, str(path)):
                        out.write(chunk)
        yield target


def _chunks(stream: IO[bytes], member: Member, where: str) -> Iterator[bytes]:
    left = member.size
    while left:
        try:
            chunk = stream.read(min(left, _CHUNK))
        except CaffePortError:
            raise
        except _DAMAGED as error:
            raise ParseError(f"'{member.name[:60]}' is damaged: {str(error)[:120]}", where) from None
        if not chunk:
            raise ParseError(f"'{member.name[:60]}' ends before its {member.size:,} bytes", where)
        left -= len(chunk)
        yield chunk


def _walk(path: str | Path) -> Iterator[tuple[Member, IO[bytes]]]:
    """Every regular file with a stream of its contents, which is valid until the next one."""
    where = str(path)
    with opened(path) as file:
        kind = _kind(file)
        size = os.fstat(file.fileno()).st_size
        try:
            if kind == "zip":
                yield from _zipped(file, size, where)
            elif kind:
                stream: IO[bytes] = file
                if kind != "tar":
                    stream = gzip.GzipFile(fileobj=file) if kind == "gzip" else bz2.BZ2File(file)  # type: ignore[assignment]
                yield from _Tar(stream, _TIGHTEST * size + _FREE, where).walk()
            else:
                raise ParseError("is not a .tar, .tar.gz, .tar.bz2 or .zip archive", where)
        except CaffePortError:
            raise
        except _DAMAGED as error:
            raise ParseError(f"is a damaged archive: {str(error)[:120]}", where) from None


def _kind(file: IO[bytes]) -> str:
    head = file.read(2 * _BLOCK)
    file.seek(0)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    if head[257:262] == b"ustar":
        return "tar"
    try:
        if head[:2] == b"\x1f\x8b":
            inner = gzip.GzipFile(fileobj=file).read(_BLOCK)
        elif head[:3] == b"BZh":
            inner = bz2.BZ2File(file).read(_BLOCK)
        else:
            return ""
    except _DAMAGED:
        return ""
    finally:
        file.seek(0)
    return ("gzip" if head[:2] == b"\x1f\x8b" else "bzip2") if inner[257:262] == b"ustar" else ""


def _zipped(file: IO[bytes], size: int, where: str) -> Iterator[tuple[Member, IO[bytes]]]:
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        if len(infos) > _MOST_MEMBERS:
            raise ParseError(f"has {len(infos):,} members; at most {_MOST_MEMBERS:,} are read", where)
        if sum(info.file_size for info in infos) > _TIGHTEST * size + _FREE:
            raise ParseError("declares contents of more than 64 times its size", where)
        for order, info in enumerate(infos):
            mode = info.external_attr >> 16
            is_link = info.create_system == 3 and mode & 0o170000 not in (0, 0o100000)
            if not info.filename or info.is_dir() or is_link or info.flag_bits & 1:
                continue
            with archive.open(info) as stream:
                yield Member(info.filename, info.file_size, order), stream


class _Tar:
    """A tar archive in the formats of POSIX (ustar, pax) and GNU, read from front to back.

    Source: tar(5). Names longer than 100 characters come from the header before.
    """

    def __init__(self, stream: IO[bytes], most: int, where: str) -> None:
        self.stream, self.left, self.where = stream, most, where

    def walk(self) -> Iterator[tuple[Member, IO[bytes]]]:
        name, order = "", 0
        while header := self._header():
            kind, size = header[156:157], _number(header[124:136])
            padding = -size % _BLOCK
            own = name or _name(header)
            if kind in (b"L", b"x"):
                name = self._long_name(kind, size)
                self._skip(padding)
                continue
            order += 1
            if order > _MOST_MEMBERS:
                raise ParseError(f"has more than {_MOST_MEMBERS:,} members", self.where)
            part = _Part(self, 0 if kind in b"123456" else size)  # links, devices and folders have no contents
            if kind in (b"0", b"\0") and not own.endswith("/"):
                yield Member(own, size, order), part  # type: ignore[misc]
            self._skip(part.left + (padding if part.size else 0))
            name = ""
        while self.read(min(_CHUNK, self.left)):  # to the end, where gzip and bzip2 have checksums
            pass

    def read(self, size: int) -> bytes:
        if size > self.left:
            raise ParseError("unpacks to more than 64 times its size", self.where)
        data = self.stream.read(size)
        self.left -= len(data)
        return data

    def _header(self) -> bytes:
        """The next header; empty at the end."""
        header = self.read(_BLOCK)
        if len(header) < _BLOCK:
            raise ParseError("ends before its end mark: it is truncated", self.where)
        if not header.strip(b"\0"):
            return b""
        told, summed = _number(header[148:156]), sum(header) - sum(header[148:156]) + 8 * 32
        if told != summed:
            raise ParseError("is a damaged archive: a header does not match its checksum", self.where)
        return header

    def _long_name(self, kind: bytes, size: int) -> str:
        if size > _MOST_HEADER:
            raise ParseError(f"has a header of {size:,} bytes", self.where)
        data = self.read(size)
        if kind == b"L":
            return data.rstrip(b"\0").decode("utf-8", "replace")
        found = re.search(rb"(?:^|\n)\d+ path=([^\n]*)\n", data)
        return found[1].decode("utf-8", "replace") if found else ""

    def _skip(self, size: int) -> None:
        while size:
            chunk = self.read(min(size, _CHUNK))
            if not chunk:
                raise ParseError("ends within a member: it is truncated", self.where)
            size -= len(chunk)


class _Part:
    """The contents of a member of a tar archive."""

    def __init__(self, tar: _Tar, size: int) -> None:
        self.tar, self.size, self.left = tar, size, size

    def read(self, size: int) -> bytes:
        data = self.tar.read(min(size, self.left))
        self.left -= len(data)
        return data


def _number(field: bytes) -> int:
    """An octal number; or, after a byte of 128, a binary one."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    text = field.split(b"\0")[0].strip()
    return int(text, 8) if text else 0


def _name(header: bytes) -> str:
    name, prefix = (part.split(b"\0")[0].decode("utf-8", "replace") for part in (header[:100], header[345:500]))
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name
