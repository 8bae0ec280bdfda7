"""Finds the reference's tops among the tensors of a port, by their numbers alone.

A tensor stands for a top if it holds the same numbers in the same order, in whatever shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from caffe_port.spec import LayerSpec, NetSpec, Producer
from caffe_port.typing import Array
from caffe_port.verification.comparison import Tolerance, difference

_SAMPLES = 64
"""The number of elements that are compared before a whole top is."""


class Tops:
    """The reference's tops and inputs, and who reads them.

    Attributes:
        spec: the net.
        arrays: producer -> array, float32.
        readers: producer -> the layers that read it.
    """

    def __init__(self, spec: NetSpec, arrays: Mapping[Producer, Array], tolerance: Tolerance) -> None:
        self.spec, self.tolerance = spec, tolerance
        self.arrays = {producer: np.asarray(top, np.float32) for producer, top in arrays.items()}
        self.readers: dict[Producer, list[LayerSpec]] = {}
        for layer in spec.layers:
            for producer in dict.fromkeys(layer.producers):
                self.readers.setdefault(producer, []).append(layer)
        sizes: dict[int, list[Producer]] = {}
        for producer, top in self.arrays.items():
            if top.size:
                sizes.setdefault(top.size, []).append(producer)
        self._of_size = {size: _Samples(producers, self.arrays, tolerance) for size, producers in sizes.items()}

    def tensor(self, producer: Producer, like: Tensor | None = None) -> Tensor:
        """A top as a tensor; in the shape and type of another if that has as many elements."""
        made = torch.tensor(self.arrays[producer])
        if like is None:
            return made
        made = made.to(like.dtype) if like.is_floating_point() else made
        return made.reshape(like.shape) if regrouped(made.shape, like.shape) else made

    def find(self, tensor: Tensor) -> frozenset[Producer]:
        """The tops that a tensor is equal to, in whatever shape."""
        samples = self._of_size.get(tensor.numel())
        if samples is None or not tensor.is_floating_point():
            return frozenset()
        flat = array(tensor).reshape(-1)
        tops = ((producer, self.arrays[producer].reshape(-1)) for producer in samples.near(flat))
        return frozenset(producer for producer, top in tops if difference(top, flat, self.tolerance).passed)

    def fits(self, producer: Producer, tensor: Tensor) -> bool:
        """Whether a tensor of a top's numbers has the axes of the top, or others, but not the same in another order."""
        return regrouped(self.arrays[producer].shape, tensor.shape)

    def is_output(self, producer: Producer) -> bool:
        """Whether no layer reads it, and it is no input."""
        return producer not in self.readers and not self.spec.by_name[producer[0]].is_input

    def outputs(self) -> list[Producer]:
        """The net's outputs, in its order."""
        return [
            (layer.name, k)
            for layer in self.spec.layers
            for k in range(len(layer.tops))
            if self.is_output((layer.name, k)) and (layer.name, k) in self.arrays
        ]


class _Samples:
    """Some elements of all tops of one size, to rule most of them out at once."""

    def __init__(self, producers: Sequence[Producer], arrays: Mapping[Producer, Array], tolerance: Tolerance) -> None:
        self.producers = producers
        flat = [arrays[producer].reshape(-1) for producer in producers]
        self.at = np.unique(np.linspace(0, flat[0].size - 1, _SAMPLES).astype(int))
        self.values = np.stack([top[self.at] for top in flat])
        units = np.array([max(1.0, float(np.abs(np.nan_to_num(top)).max())) for top in flat])
        self.slack = tolerance.atol * units[:, None] + tolerance.rtol * np.abs(self.values)

    def near(self, flat: Array) -> list[Producer]:
        """The tops that agree there."""
        some = flat[self.at]
        with np.errstate(invalid="ignore", over="ignore"):
            agree = np.abs(self.values - some) <= self.slack
        agree |= (self.values == some) | (np.isnan(self.values) & np.isnan(some))
        return [self.producers[int(n)] for n in np.flatnonzero(agree.all(1))]


def regrouped(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two shapes may hold the same numbers in the same order: (N, C, H, W) and (N, C * H * W).

    Not if the axes are the same in another order: that is a transposed array.
    """
    a, b = ([n for n in shape if n != 1] for shape in (one, other))
    return math.prod(one) == math.prod(other) and (a == b or sorted(a) != sorted(b))


def tops_of(layer: LayerSpec) -> Iterator[Producer]:
    """The producers of a layer's tops."""
    return ((layer.name, k) for k in range(len(layer.tops)))


def array(tensor: Tensor) -> Array:
    """A tensor's numbers, float32; of any dtype that torch knows."""
    found: Array = tensor.detach().cpu().float().numpy()
    return found
