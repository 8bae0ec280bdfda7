"""Arrays of HDF5 files that are not trusted: nothing outside the file is followed, no declared size is believed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from caffe_port.errors import DependencyError, ParseError
from caffe_port.typing import Array

_TIGHTEST, _FREE = 64, 1 << 20
"""A dataset may be declared 64 times as large as what is stored of it, and a MiB: weights do not compress better."""


def library(where: str) -> Any:
    """The module h5py.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise DependencyError("is HDF5, which needs h5py", where, "pip install 'caffe-port[hdf5]'") from None
    return h5py


def member(group: Any, name: str, where: str) -> Any:
    """A group's member.

    Raises:
        ParseError: it lies in another file.
        KeyError: there is none.
    """
    if type(group.get(name, getlink=True)).__name__ == "ExternalLink":
        raise ParseError(f"'{name[:60]}' leads to another file, which is not followed", where)
    return group[name]


def values(group: Any, name: str, where: str) -> Array:
    """A dataset's numbers.

    Raises:
        ParseError: no numbers, kept in other files, or declared larger than what is stored can be.
        KeyError: there is none.
    """
    dataset = member(group, name, where)
    if not hasattr(dataset, "is_virtual") or dataset.is_virtual or dataset.external or dataset.shape is None:
        raise ParseError(f"'{name[:60]}' is no dataset of this file", where)
    if dataset.dtype.kind not in "fiub":
        raise ParseError(f"'{name[:60]}' holds no numbers", where)
    declared, stored = math.prod(dataset.shape) * dataset.dtype.itemsize, dataset.id.get_storage_size()
    if declared > _TIGHTEST * stored + _FREE:
        raise ParseError(f"'{dataset.name[:60]}' declares {declared} bytes, {stored} are stored", where)
    return np.asarray(dataset[()])


def layers(group: Any, where: str, prefix: str = "", seen: frozenset[int] = frozenset()) -> Iterator[tuple[str, Any]]:
    """Groups whose members are datasets 0, 1, ..., by layer; a '/' in a layer's name makes HDF5 nest groups.

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
        if all(key.isdecimal() and hasattr(member(inner, key, where), "shape") for key in inner):
            yield prefix + name, inner
        else:
            yield from layers(inner, where, f"{prefix}{name}/", seen | {address})
