"""Reads LevelDB, which Caffe's tools wrote before LMDB, in pure Python and in key order.

Supports tables (raw or snappy), logs that are not yet compacted, deleted and overwritten keys. Nothing is written, no
lock is taken. Source: LevelDB's doc/log_format.md, doc/table_format.md, db/version_edit.cc; snappy's
format_description.txt.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from caffe_port.errors import CaffePortError, ParseError
from caffe_port.storage.files import opened, read_bytes

_MAGIC = 0xDB4775248B80FB57
_LOG_BLOCK = 32768
_DELETED = 0


class LevelDB:
    """The live records of a LevelDB folder, by position in key order.

    Raises:
        CaffePortError: the folder does not exist or contains no LevelDB.
        ParseError: a file is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "CURRENT").is_file():
            raise CaffePortError("contains no LevelDB (no file CURRENT)", str(path))
        current = read_bytes(self.path / "CURRENT", 1 << 10).decode("ascii", "replace").strip()
        if not re.fullmatch(r"MANIFEST-\d{1,20}", current):
            raise ParseError("names no MANIFEST", str(self.path / "CURRENT"))
        tables, logs = self._live_files(current)
        newest: dict[bytes, tuple[int, int, tuple[int, int, int]]] = {}  # key -> (sequence, kind, where)
        self._tables = [self._open(number) for number in tables]
        self._logged: list[memoryview] = []  # of the batches, which are not copied
        self._cached: tuple[tuple[int, int], list[tuple[bytes, bytes | memoryview]]] | None = None
        self._handles: list[list[tuple[int, int]]] = []
        for number, table in enumerate(self._tables):
            self._handles.append(self._blocks(table, tables[number]))
            for block in range(len(self._handles[-1])):
                for index, (key, _) in enumerate(self._block(number, block)):
                    if len(key) < 8:
                        raise ParseError("a key is shorter than its own trailer", str(self.path))
                    tag = int.from_bytes(key[-8:], "little")
                    _keep(newest, key[:-8], tag >> 8, tag & 0xFF, (number, block, index))
        for number in logs:
            for sequence, kind, key, value in self._log_entries(number):
                self._logged.append(value)
                _keep(newest, key, sequence, kind, (-1, 0, len(self._logged) - 1))
        self._records = [(key, where) for key, (_, kind, where) in sorted(newest.items()) if kind != _DELETED]

    def __len__(self) -> int:
        return len(self._records)

    def key(self, index: int) -> bytes:
        """The key of a record."""
        return self._records[index][0]

    def __getitem__(self, index: int) -> bytes:
        number, block, entry = self._records[index][1]
        return bytes(self._logged[entry] if number < 0 else self._block(number, block)[entry][1])

    # -- files --------------------------------------------------------------------------------------------------

    def _live_files(self, manifest: str) -> tuple[list[int], list[int]]:
        path = self.path / manifest
        live: set[int] = set()
        log, previous = 0, 0
        for record in self._log_records(path):
            at = 0
            while at < len(record):
                tag, at = _varint(record, at, path)
                if tag == 1:  # comparator
                    slice_, at = _slice(record, at, path)
                    if (name := bytes(slice_)) != b"leveldb.BytewiseComparator":
                        raise ParseError(f"keys are ordered by the unknown comparator {name!r}", str(path))
                elif tag in (2, 3, 4, 9):
                    value, at = _varint(record, at, path)
                    log, previous = (value if tag == 2 else log), (value if tag == 9 else previous)
                elif tag == 5:  # compact pointer
                    _, at = _varint(record, at, path)
                    _, at = _slice(record, at, path)
                elif tag == 6:  # deleted file
                    _, at = _varint(record, at, path)
                    number, at = _varint(record, at, path)
                    live.discard(number)
                elif tag == 7:  # new file: level, number, size, smallest, largest
                    _, at = _varint(record, at, path)
                    number, at = _varint(record, at, path)
                    _, at = _varint(record, at, path)
                    _, at = _slice(record, at, path)
                    _, at = _slice(record, at, path)
                    live.add(number)
                else:
                    raise ParseError(f"unknown tag {tag}", str(path))
        logs = sorted(int(f.stem) for f in self.path.glob("*.log") if f.stem.isdecimal())
        return sorted(live), [n for n in logs if n >= log or n == previous]

    def _open(self, number: int) -> memoryview:
        for suffix in ("ldb", "sst"):
            path = self.path / f"{number:06d}.{suffix}"
            if not path.exists():
                continue
            try:
                with opened(path) as file:
                    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            except (OSError, ValueError) as error:
                raise ParseError(f"cannot be read: {error}", str(path)) from None
        raise CaffePortError(f"table {number:06d}.ldb is missing: the copy is incomplete", str(self.path))

    def _log_records(self, path: Path) -> Iterator[memoryview]:
        data = memoryview(read_bytes(path))
        at = 0
        parts: list[memoryview] = []  # joined once: convert_cifar_data leaves a batch of 154 MB in 4,700 parts
        while at + 7 <= len(data):
            left = _LOG_BLOCK - at % _LOG_BLOCK
            if left < 7:
                at += left
                continue
            length, kind = struct.unpack_from("<HB", data, at + 4)
            if kind == 0 and length == 0:  # preallocated, never written
                at += left
                continue
            body = data[at + 7 : at + 7 + length]
            if len(body) < length:  # the writer was killed here; LevelDB also drops an incomplete tail
                return
            at += 7 + length
            if kind in (1, 2):
                parts.clear()
            parts.append(body)
            if kind in (1, 4):
                yield memoryview(b"".join(parts))
            elif kind not in (2, 3):
                raise ParseError(f"unknown record type {kind}", str(path))

    def _log_entries(self, number: int) -> Iterator[tuple[int, int, bytes, memoryview]]:
        path = self.path / f"{number:06d}.log"
        for record in self._log_records(path):
            if len(record) < 12:
                raise ParseError("a batch is shorter than its header", str(path))
            sequence, count = struct.unpack_from("<QI", record)
            at = 12
            for k in range(count):
                kind, at = record[at] if at < len(record) else 255, at + 1
                if kind > 1:
                    raise ParseError("a batch is damaged", str(path))
                key, at = _slice(record, at, path)
                value, at = _slice(record, at, path) if kind else (record[:0], at)
                yield sequence + k, kind, bytes(key), value

    # -- tables -------------------------------------------------------------------------------------------------

    def _blocks(self, table: memoryview, number: int) -> list[tuple[int, int]]:
        path = self.path / f"{number:06d}.ldb"
        if len(table) < 48 or int.from_bytes(table[-8:], "little") != _MAGIC:
            raise ParseError("does not end like a table: the file is truncated or of another kind", str(path))
        footer = bytes(table[-48:-8])
        _, at = _varint(footer, 0, path)
        _, at = _varint(footer, at, path)
        offset, at = _varint(footer, at, path)
        size, at = _varint(footer, at, path)
        handles = []
        for _, value in _entries(_contents(table, offset, size, path), path):
            start, at = _varint(value, 0, path)
            length, _ = _varint(value, at, path)
            handles.append((start, length))
        return handles

    def _block(self, number: int, block: int) -> list[tuple[bytes, bytes | memoryview]]:
        if self._cached is None or self._cached[0] != (number, block):
            offset, size = self._handles[number][block]
            data = _contents(self._tables[number], offset, size, self.path)
            self._cached = ((number, block), list(_entries(data, self.path)))
        return self._cached[1]


def _keep(
    newest: dict[bytes, tuple[int, int, tuple[int, int, int]]],
    key: bytes,
    sequence: int,
    kind: int,
    where: tuple[int, int, int],
) -> None:
    if key not in newest or newest[key][0] < sequence:
        newest[key] = (sequence, kind, where)


def _contents(table: memoryview, offset: int, size: int, path: Path) -> bytes | memoryview:
    """A block without its trailer, uncompressed. If it is stored uncompressed, it is not read before it is used."""
    if offset + size + 5 > len(table):
        raise ParseError("a block is beyond the end of its table", str(path))
    data, kind = table[offset : offset + size], table[offset + size]
    if kind == 0:
        return data
    if kind == 1:
        return unsnappy(bytes(data), str(path))
    raise ParseError(f"a block has an unknown compression type ({kind})", str(path))


def _entries(data: bytes | memoryview, path: Path) -> Iterator[tuple[bytes, bytes | memoryview]]:
    """Yields (key, value) of a block; a key may share a prefix with the previous one."""
    restarts = int.from_bytes(data[-4:], "little")
    end = len(data) - 4 - 4 * restarts
    if len(data) < 4 or end < 0:
        raise ParseError("a block is damaged", str(path))
    at, key = 0, b""
    while at < end:
        shared, at = _varint(data, at, path)
        fresh, at = _varint(data, at, path)
        length, at = _varint(data, at, path)
        if shared > len(key) or at + fresh + length > end:
            raise ParseError("a block is damaged", str(path))
        key = key[:shared] + bytes(data[at : at + fresh])
        at += fresh
        yield key, data[at : at + length]
        at += length


def _varint(data: bytes | memoryview, at: int, path: Path) -> tuple[int, int]:
    value, shift = 0, 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ParseError("a number is damaged", str(path))


def _slice(data: memoryview, at: int, path: Path) -> tuple[memoryview, int]:
    length, at = _varint(data, at, path)
    if at + length > len(data):
        raise ParseError("a record is damaged", str(path))
    return data[at : at + length], at + length


def unsnappy(data: bytes, where: str = "") -> bytes:
    """Decompresses a raw snappy block.

    Raises:
        ParseError: the block is damaged.
    """
    length, at = _varint(data, 0, Path(where))
    out = bytearray()
    while at < len(data):
        tag = data[at]
        at += 1
        kind = tag & 3
        if kind == 0:
            size = tag >> 2
            if size >= 60:
                width = size - 59
                size, at = int.from_bytes(data[at : at + width], "little"), at + width
            out += data[at : at + size + 1]
            at += size + 1
            continue
        if kind == 1:
            size, offset = ((tag >> 2) & 7) + 4, (tag >> 5) << 8 | (data[at] if at < len(data) else 0)
            at += 1
        else:
            width = 2 if kind == 2 else 4
            size, offset = (tag >> 2) + 1, int.from_bytes(data[at : at + width], "little")
            at += width
        if not 0 < offset <= len(out):
            raise ParseError("snappy data is damaged", where)
        chunk = out[-offset : len(out) - offset + size]
        out += (chunk * (size // len(chunk) + 1))[:size]  # a copy may overlap its own output
    if len(out) != length:
        raise ParseError(f"snappy data decompresses to {len(out)} bytes, but {length} are declared", where)
    return bytes(out)
