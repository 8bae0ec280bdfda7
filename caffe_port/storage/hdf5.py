"""Arrays from untrusted HDF5 files: links out of the file are not followed and declared sizes are checked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from caffe_port.errors import DependencyError, ParseError
from caffe_port.terminal import count
from caffe_port.typing import Array

_TIGHTEST, _FREE = 64, 1 << 20
"""A dataset may declare at most 64 times its stored size plus 1 MiB: weights do not compress better than that."""


def library(where: str) -> Any:
    """The module h5py.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise DependencyError("is an HDF5 file, which requires h5py", where, "pip install 'caffe-port[hdf5]'") from None
    return h5py


def member(group: Any, name: str, where: str) -> Any:
    """A member of a group.

    Raises:
        ParseError: it is in another file.
        KeyError: there is no such member.
    """
    if type(group.get(name, getlink=True)).__name__ == "ExternalLink":
        raise ParseError(f"'{name[:60]}' is a link to another file, which is not followed", where)
    return group[name]


def values(group: Any, name: str, where: str) -> Array:
    """The values of a dataset.

    Raises:
        ParseError: it is not numeric, is stored in other files, or declares more than its stored size allows.
        KeyError: there is no such dataset.
    """
    dataset = member(group, name, where)
    if not hasattr(dataset, "is_virtual") or dataset.is_virtual or dataset.external or dataset.shape is None:
        raise ParseError(f"'{name[:60]}' is not a dataset of this file", where)
    if dataset.dtype.kind not in "fiub":
        raise ParseError(f"'{name[:60]}' is not numeric", where)
    declared, stored = math.prod(dataset.shape) * dataset.dtype.itemsize, dataset.id.get_storage_size()
    if declared > _TIGHTEST * stored + _FREE:
        raise ParseError(f"'{dataset.name[:60]}' declares {count(declared, 'byte')} but stores {stored:,}", where)
    return np.asarray(dataset[()])


def layers(
    group: Any, where: str, prefix: str = "", seen: frozenset[int] = frozenset()
) -> Iterator[tuple[str, Any, list[str]]]:
    """The groups that hold datasets 0, 1, ..., with the layer's name and those of the datasets; and empty groups. A '/'
    in a name makes HDF5 nest groups, also within that of another layer: ``conv`` and ``conv/bn``.

    Raises:
        ParseError: a group contains itself.
    """
    address = library(where).h5o.get_info(group.id).addr
    if address in seen or len(seen) > 32:
        raise ParseError(f"group '{prefix[:60]}' contains itself, or groups are nested more than 32 deep", where)
    for name in group:
        inner = member(group, name, where)
        if hasattr(inner, "shape"):
            continue
        keys = [key for key in inner if hasattr(member(inner, key, where), "shape")]
        blobs = sorted((key for key in keys if key.isdecimal()), key=int)
        if blobs or not len(inner):
            yield prefix + name, inner, blobs
        if len(keys) < len(inner):
            yield from layers(inner, where, f"{prefix}{name}/", seen | {address})
