"""Reads LMDB in pure Python, in key order.

The LMDB library trusts its file: a damaged page aborts the process. Here nothing is written and no lock is taken.
Source: LMDB 0.9, mdb.c (MDB_page, MDB_node, MDB_meta, MDB_db), files of 64-bit machines.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

from caffe_port.errors import CaffePortError, ParseError
from caffe_port.storage.files import map_file

_MAGIC = 0xBEEFC0DE
_META, _HEADER, _NODE = 152, 16, 8  # sizes in bytes; that of a meta includes its page header
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_NOTHING = (1 << 64) - 1


class LMDB:
    """The records of a data.mdb file (or of the folder that contains it), by position in key order.

    Raises:
        CaffePortError: the file cannot be read.
        ParseError: it is not an LMDB, truncated or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.path = path / "data.mdb" if os.path.isdir(path) else path
        self._data = map_file(self.path)
        metas = [self._meta(0)]
        self._page: int = metas[0][0]
        if self._page + _META <= len(self._data):
            metas.append(self._meta(self._page))
        _, root, last, entries, _ = max(metas, key=lambda meta: meta[-1])
        if len(self._data) < (last + 1) * self._page:
            declared = (last + 1) * self._page
            raise self._error(f"is truncated: {len(self._data)} bytes, but its header declares {declared}")
        self._nodes = self._walk(root)
        if len(self._nodes) != entries:
            raise self._error(f"is damaged: {len(self._nodes)} records, but its header declares {entries}")

    def __len__(self) -> int:
        return len(self._nodes)

    def key(self, index: int) -> bytes:
        """The key of a record."""
        return self._node(index)[0]

    def __getitem__(self, index: int) -> memoryview:
        _, start, size = self._node(index)
        return self._data[start : start + size]

    def _error(self, what: str) -> CaffePortError:
        return ParseError(what, str(self.path))

    def _meta(self, at: int) -> tuple[int, int, int, int, int]:
        """(page size, root page, last page, records, transaction) of a header."""
        if len(self._data) < at + _META or struct.unpack_from("<I", self._data, at + 16)[0] != _MAGIC:
            raise self._error("is not an LMDB" if not at else "is damaged: its second header is invalid")
        version, page = struct.unpack_from("<I16xI", self._data, at + 20)
        if version != 1 or page not in (1 << k for k in range(8, 17)):
            raise self._error(f"is an LMDB of version {version} with pages of {page} bytes, which is not supported")
        entries, root, last, transaction = struct.unpack_from("<4Q", self._data, at + 120)
        return page, root, last, entries, transaction

    def _walk(self, root: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The offset of every record's node."""
        found = [np.zeros(0, np.int64)]
        stack, seen = [root] if root != _NOTHING else [], set()
        while stack:
            number = stack.pop()
            at = number * self._page
            if number in seen or at + self._page > len(self._data):
                raise self._error(f"is damaged: page {number} is referenced twice or is beyond the end")
            seen.add(number)
            flags, lower = struct.unpack_from("<HH", self._data, at + 10)
            count = (lower - _HEADER) // 2
            if flags & 0x3F not in (_BRANCH, _LEAF) or not 0 <= count <= (self._page - _HEADER) // 2:
                raise self._error(f"is damaged: page {number} is not a page of records")
            offsets = np.frombuffer(self._data, "<u2", count, at + _HEADER).astype(np.int64)
            if count and int(offsets.max()) + _NODE > self._page:
                raise self._error(f"is damaged: a record of page {number} is outside the page")
            if flags & _LEAF:
                found.append(offsets + at)
            else:
                words = [struct.unpack_from("<HHH", self._data, at + int(offset)) for offset in offsets]
                stack += [low | middle << 16 | high << 32 for low, middle, high in reversed(words)]
        return np.concatenate(found)

    def _node(self, index: int) -> tuple[bytes, int, int]:
        """A record's key, and the offset and size of its value."""
        at = int(self._nodes[index])
        end = (at // self._page + 1) * self._page
        low, high, flags, key_size = struct.unpack_from("<4H", self._data, at)
        start, size = at + _NODE + key_size, low | high << 16
        if flags > 1 or start + (8 if flags else size) > end:
            raise self._error(f"is damaged: record {index} is too long or not a plain value")
        key = bytes(self._data[start - key_size : start])
        if flags:  # the value is on overflow pages
            number = struct.unpack_from("<Q", self._data, start)[0]
            page = number * self._page
            if page + _HEADER + size > len(self._data) or not self._data[page + 10] & _OVERFLOW:
                raise self._error(f"is damaged: record {index} is not on the page that is referenced")
            start = page + _HEADER
        return key, start, size
