"""state_dict files of PyTorch: .safetensors, .pt, .pth. No pickle is run."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_port.errors import CaffePortError, ParseError
from caffe_port.storage import safetensors
from caffe_port.storage.files import MappedFile, opened
from caffe_port.storage.safetensors import Stored

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a state_dict by name, on the CPU.

    A checkpoint that wraps it (``{"state_dict": ...}``) is unwrapped, and DataParallel's ``module.`` taken off.

    Raises:
        ParseError: no state_dict, or one that only unpickling code could read.
        CaffePortError: the file cannot be read.
    """
    try:
        with opened(path) as file:
            is_safetensors = file.read(9)[8:] == b"{"  # after the length of its JSON header
        if is_safetensors:
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            _check_not_packed(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a damaged file makes PyTorch warn of is told of below
                state = torch.load(path, map_location="cpu", weights_only=True)
    except CaffePortError:
        raise
    except OSError as error:
        raise CaffePortError(f"cannot be read: {error.strerror or error}", str(path)) from None
    except Exception as error:  # noqa: BLE001 - damaged files raise anything
        raise ParseError(f"is not a state_dict: {(str(error).splitlines() or [''])[0][:80]}", str(path)) from None
    for _ in range(4):  # a dict may hold itself
        if isinstance(state, dict) and not any(isinstance(v, Tensor) for v in state.values()):
            state = next((state[k] for k in _WRAPPERS if k in state), None)
    if not isinstance(state, dict) or not any(isinstance(v, Tensor) for v in state.values()):
        raise ParseError("is not a state_dict: it contains no named tensors", str(path))
    return {str(k).removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}


def _check_not_packed(path: str | Path) -> None:
    """Refuses an archive that unpacks to more than it holds; torch.save packs nothing."""
    with opened(path) as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                    raise ParseError("is not a state_dict: its archive is compressed", str(path))


_DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES_BY_NAME = {name: dtype for dtype, name in _DTYPES.items()}
LARGE = 1 << 20
"""Bytes from which on a tensor is worth sharing rather than copying."""


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], source: MappedFile | None = None) -> None:
    """Writes tensors, which may share memory; see :func:`caffe_port.storage.safetensors.write`."""
    safetensors.write(path, {name: stored(tensor) for name, tensor in tensors.items()}, source)


def stored(tensor: Tensor) -> Stored:
    """A tensor as it is stored in a file; not copied if it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return Stored(_DTYPES[tensor.dtype], tuple(tensor.shape), flat.view(torch.uint8).numpy())


class Mapped:
    """The tensors of a .safetensors file, the large ones as views of the file mapped into memory.

    They can be written to, which never reaches the file. It may be renamed or removed, but must not be cut.

    Attributes:
        tensors: by name.
        mapping: of the file.

    Raises:
        Exception: the safetensors library finds fault with the file.
    """

    def __init__(self, path: str | Path) -> None:
        from safetensors import safe_open

        with safe_open(path, "pt"):  # it judges the header; what it maps itself could not be let go of
            pass
        with opened(path) as file:
            self.mapping = MappedFile.of(file, writable=True)
        begin = 8 + int.from_bytes(self.mapping[:8], "little")
        header = json.loads(self.mapping[8:begin])
        header.pop("__metadata__", None)
        self.tensors: dict[str, Tensor] = {name: self._tensor(begin, **entry) for name, entry in header.items()}

    def _tensor(self, begin: int, dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
        kind, at, size = _DTYPES_BY_NAME[dtype], begin + data_offsets[0], data_offsets[1] - data_offsets[0]
        if size >= LARGE and at % kind.itemsize == 0:
            return torch.frombuffer(self.mapping, dtype=kind, count=size // kind.itemsize, offset=at).reshape(shape)
        made = torch.empty(shape, dtype=kind)
        made.reshape(-1).view(torch.uint8).numpy()[:] = np.frombuffer(self.mapping, np.uint8, size, at)
        return made

    def difference(self, tensors: Mapping[str, Stored], source: MappedFile | None = None) -> str:
        """The first name under which these are not the very bytes of ``tensors``, or an empty string.

        Args:
            source: the mapped file that they may be views of.
        """
        own = {name: stored(tensor) for name, tensor in self.tensors.items()}
        for name in {**tensors, **own}:
            one, other = tensors.get(name), own.get(name)
            if one is None or other is None or (one.shape, one.dtype) != (other.shape, other.dtype):
                return name
            if not safetensors.same(one.data, other.data, (source, self.mapping)):
                return name
        return ""
