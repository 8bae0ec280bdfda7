"""Blobs: ``data`` and ``diff`` as NumPy arrays that share memory with what the net computes with.

A forward makes new tensors. While a script holds an array of a blob, or a view of one, the new numbers are copied into
that array's memory, so that it shows them, as Caffe's does; else the tensor itself becomes the blob's memory, which
costs nothing. Source: blob.cpp, syncedmem.cpp, _caffe.cpp.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_port.errors import CaffePortError
from caffe_port.pycaffe.settings import settings
from caffe_port.typing import Array, Shape

MAX_AXES, MAX_COUNT = 32, 2**31 - 1


def is_apart(tensor: Tensor) -> bool:
    """Whether NumPy cannot see a tensor's memory, so that its arrays show a copy on the CPU."""
    return tensor.device.type != "cpu"


class Memory:
    """Numbers that one or more blobs show.

    Attributes:
        tensor: contiguous float32, on the device of the net; None until somebody asks for it, then zeros.
        touched: a script may have written to it since :meth:`settle` was last called.
    """

    __slots__ = ("_array", "_host", "tensor", "touched")

    def __init__(self, tensor: Tensor | None = None) -> None:
        self.tensor = tensor
        self._host: Tensor | None = None  # on the CPU, newer than a tensor on a GPU, while arrays of it are in use
        self._array: weakref.ref[Array] | None = None
        self.touched = False

    def view(self, shape: Shape) -> Tensor:
        """The first numbers as a tensor of a shape, on the device; after what a script wrote was taken over."""
        tensor, size = self.tensor, math.prod(shape)
        if tensor is None:
            tensor = self.tensor = torch.zeros(size, device=settings.device)
        elif tensor.numel() < size:  # as in Caffe, the numbers are gone when a blob grows
            tensor = self.tensor = torch.zeros(size, device=tensor.device)
            self._array = self._host = None
        if self._host is not None:
            self.upload()
        if tensor.shape == shape:
            return tensor
        flat = tensor.detach().view(-1)
        return (flat if flat.numel() == size else flat[:size]).view(shape)

    def held(self) -> bool:
        """Whether a script holds an array of it."""
        return self._array is not None and self._array() is not None

    def put(self, tensor: Tensor) -> None:
        """Takes new numbers, which nobody else will write to."""
        if self._array is None or self._array() is None:
            self.tensor, self._host, self._array = tensor, None, None
            return
        held, size = self._host if self._host is not None else self.tensor, tensor.numel()
        assert held is not None
        if held is tensor:
            return
        if held.numel() < size:  # arrays of the smaller blob keep what they show
            self.tensor, self._host, self._array = tensor, None, None
            return
        with torch.no_grad():
            held.detach().view(-1)[:size].copy_(tensor.reshape(-1))
        if self._host is not None:
            self.tensor = tensor

    def array(self, shape: Shape) -> Array:
        """The first numbers as an array of a shape, which shares the memory."""
        self.touched = True
        flat = self._array() if self._array is not None else None
        size = math.prod(shape)
        if flat is None or flat.size < size:
            if self.tensor is None or self.tensor.numel() < size:
                self.view(shape)  # which makes it
            held = self.tensor
            assert held is not None
            if is_apart(held):
                if self._host is None or self._host.numel() < size:
                    self._host = held.detach().to("cpu", copy=True)
                held = self._host
            flat = held.detach().view(-1).numpy()
            self._array = weakref.ref(flat)
        return (flat if flat.size == size else flat[:size]).reshape(shape)

    def upload(self) -> None:
        """Copies what a script wrote to the GPU."""
        if self._host is not None and self.tensor is not None:
            with torch.no_grad():
                self.tensor.copy_(self._host.view(-1)[: self.tensor.numel()].view(self.tensor.shape))
            if self._array is None or self._array() is None:
                self._host = None

    def settle(self) -> None:
        """Before a tensor is read that is no blob's own (a parameter): takes over what a script wrote, and counts it
        as a write, which PyTorch cannot see.
        """
        if self.touched:
            self.upload()
            if self.tensor is not None and not self.tensor.is_inference():
                torch.autograd.graph.increment_version(self.tensor)
            self.touched = self.held()

    def changed(self) -> None:
        """After the tensor was written to: arrays on the CPU show that of a GPU."""
        if self._host is not None and self.tensor is not None:
            self._host.view(-1)[: self.tensor.numel()].copy_(self.tensor.detach().reshape(-1))

    def leave(self) -> None:
        """Before the tensor moves to another device: arrays that a script holds show the old numbers from then on."""
        self.upload()
        self._host = self._array = None

    def to(self, device: torch.device) -> None:
        """Moves numbers that belong to no module."""
        self.leave()
        if self.tensor is not None:
            self.tensor = self.tensor.to(device)


class Blob:
    """A blob of a net, or a parameter of a layer.

    Attributes:
        memory, gradient: of ``data`` and ``diff``; blobs that share numbers have the same.
    """

    __slots__ = ("__dict__", "__weakref__", "_shape", "gradient", "memory")

    def __init__(self, shape: Sequence[int] = (), memory: Memory | None = None, gradient: Memory | None = None) -> None:
        self._shape: Shape = tuple(shape)
        self.memory = memory or Memory()
        self.gradient = gradient or Memory()

    # -- for scripts ----------------------------------------------------------------------------------------------

    @property
    def data(self) -> Array:
        """The numbers, float32, as an array that shares their memory."""
        return self.memory.array(self._shape)

    @data.setter
    def data(self, value: Any) -> None:
        raise AttributeError("can't set attribute 'data'; write into it: blob.data[...] = value")

    @property
    def diff(self) -> Array:
        """The gradient, float32, as an array that shares its memory."""
        return self.gradient.array(self._shape)

    @diff.setter
    def diff(self, value: Any) -> None:
        raise AttributeError("can't set attribute 'diff'; write into it: blob.diff[...] = value")

    @property
    def shape(self) -> list[int]:
        """The lengths of the axes."""
        return list(self._shape)

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return math.prod(self._shape)

    @property
    def num(self) -> int:
        """The length of axis 0, or 1; of a blob of at most four axes, like channels, height and width."""
        return self._legacy(0)

    @property
    def channels(self) -> int:
        """The length of axis 1, or 1."""
        return self._legacy(1)

    @property
    def height(self) -> int:
        """The length of axis 2, or 1."""
        return self._legacy(2)

    @property
    def width(self) -> int:
        """The length of axis 3, or 1."""
        return self._legacy(3)

    def _legacy(self, axis: int) -> int:
        if len(self._shape) > 4:
            raise CaffePortError(f"num, channels, height and width are of blobs of at most 4 axes, not {self._shape}")
        return int(self._shape[axis]) if axis < len(self._shape) else 1

    def reshape(self, *shape: int) -> None:
        """Gives it another shape; the numbers stay unless it grows. Layers follow at the next forward or reshape.

        Raises:
            CaffePortError: a negative length, more than 32 axes, or too many numbers.
        """
        new = tuple(int(n) for n in shape)
        if len(new) > MAX_AXES or min(new, default=0) < 0 or math.prod(new) > MAX_COUNT:
            raise CaffePortError(
                f"reshape{new}: a blob has at most {MAX_AXES} axes, none negative, and 2^31 - 1 numbers"
            )
        self._shape = new

    @property
    def _gpu_data_ptr(self) -> int:
        raise CaffePortError("pointers to GPU memory are not offered; use blob.data")

    _gpu_diff_ptr = _gpu_data_ptr

    # -- for layers -----------------------------------------------------------------------------------------------

    def value(self) -> Tensor:
        """``data`` as a tensor on the device; not to be written to."""
        memory = self.memory
        tensor = memory.tensor
        if tensor is not None and memory._host is None and tensor.shape == self._shape:
            return tensor
        return memory.view(self._shape)

    def put(self, value: Tensor) -> None:
        """Takes a new ``data`` of any shape, which nobody else will write to."""
        self._shape = value.shape
        self.memory.put(value)

    def put_gradient(self, value: Tensor) -> None:
        """Takes a new ``diff``, which nobody else will write to."""
        self.gradient.put(value)


class BlobVec(list[Blob]):
    """The parameters of a layer."""

    def add_blob(self, *shape: int) -> None:
        """Appends a parameter of zeros, as layers in Python do in their ``setup``."""
        new = Blob()
        new.reshape(*shape)
        new.memory.view(tuple(new.shape))
        new.gradient.view(tuple(new.shape))
        self.append(new)


def contiguous(value: Tensor) -> Tensor:
    """A tensor of a module as a blob holds it: float32, its numbers in order."""
    if value.dtype is not torch.float32:
        value = value.float()
    return value if value.is_contiguous() else value.contiguous()


def as_tensor(value: Any, device: torch.device) -> Tensor:
    """A float32 tensor of its own on the device."""
    return torch.from_numpy(np.array(value, np.float32)).to(device)
