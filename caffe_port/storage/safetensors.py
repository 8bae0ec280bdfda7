"""Writes .safetensors at the speed of a file copy, without loading the tensors into memory and without torch.

Such a file holds the length of the header (eight bytes, little-endian), a JSON header with the dtype, shape and offsets
of every tensor, and the tensors. Source: the format's description in the README of huggingface/safetensors.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port.storage.files import MappedFile
from caffe_port.typing import Array

_DTYPES = {"float32": "F32", "float64": "F64", "float16": "F16"}
_PIECE = 1 << 20  # bytes; a thread's buffer, small enough for the CPU cache
_SPAN = 1 << 25  # bytes; a thread's unit of work
_THREADS = 2  # two saturate memory bandwidth


@dataclass(frozen=True)
class Stored:
    """A tensor as it is stored in a file.

    Attributes:
        dtype: the format's name for it, ``"F32"``.
        shape: the shape of the tensor.
        data: its bytes, uint8 (N), little-endian.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Array

    @classmethod
    def of(cls, array: Array) -> Stored:
        """From a float16, float32 or float64 array, which is not copied if it is contiguous."""
        flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1)
        return cls(_DTYPES[array.dtype.name], array.shape, flat.view(np.uint8))


def write(path: str | Path, tensors: Mapping[str, Stored], source: MappedFile | None = None) -> None:
    """Writes tensors one after another; the same tensors give the same bytes.

    Args:
        source: the mapped file that tensors may be views of; its pages are not touched.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.data.size
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)

    def copy(parts: list[tuple[int, Array]]) -> None:
        with Path(path).open("r+b", buffering=0) as file:
            for at, data in parts:
                file.seek(at)
                for piece in pieces(data, source):
                    while piece:
                        piece = piece[file.write(piece) :]

    at, parts = 8 + len(text), []
    for tensor in tensors.values():
        parts += [(at + k, tensor.data[k : k + _SPAN]) for k in range(0, tensor.data.size, _SPAN)]
        at += tensor.data.size
    with ThreadPoolExecutor(_THREADS) as pool:  # list() re-raises a thread's exception
        list(pool.map(copy, [list(group) for _, group in itertools.groupby(parts, lambda part: part[0] // _SPAN)]))


def same(one: Array, other: Array, sources: tuple[MappedFile | None, MappedFile | None] = (None, None)) -> bool:
    """Whether two arrays of bytes are equal.

    Args:
        sources: the mapped files that they may be views of.
    """
    if one.size != other.size:
        return False

    def equal(at: int) -> bool:
        both = (pieces(data[at : at + _SPAN], source) for data, source in zip((one, other), sources, strict=True))
        return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(*both, strict=True))

    if one.size <= _SPAN:
        return equal(0)
    with ThreadPoolExecutor(_THREADS) as pool:
        return all(pool.map(equal, range(0, one.size, _SPAN)))


def pieces(data: Array, source: MappedFile | None, most: int = _PIECE) -> Iterator[memoryview]:
    """The bytes of an array, at most 1 MiB at a time, or ``most``; each piece is valid until the next one is requested.

    A mapped file is read through its handle, because the kernel copies faster than it maps.
    """
    at = source.offset(data) if source is not None and hasattr(os, "preadv") else None
    if source is None or at is None:
        yield from (data[k : k + most].data for k in range(0, data.size, most))
        return
    buffer = memoryview(bytearray(min(most, data.size)))
    for begin in range(at, at + data.size, most):
        piece, done = buffer[: at + data.size - begin], 0
        while done < len(piece):
            count = os.preadv(source.handle, [piece[done:]], begin + done)
            if not count:
                raise OSError("the file was truncated while it was being read")
            done += count
        yield piece
