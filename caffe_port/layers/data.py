"""Layers that provide data: inputs of the Net, constants, parameters; and Python layers.

Layers that read data (LMDB, HDF5, images, memory) are not built: their tops become inputs of the Net, and the
training loop or the caller feeds them. Source: src/caffe/layers of Caffe 1.0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from caffe_port.definition.structure import unknown_python
from caffe_port.formats.message import Message
from caffe_port.layers.layer import PYTHON_LAYERS, Layer
from caffe_port.signatures.data import dummy_draws, dummy_shapes
from caffe_port.signatures.signature import PYTHON
from caffe_port.typing import Shape


class Input(Layer):
    """An input of the Net: ``input_param`` gives the shapes of its tops.

    Reference: input_layer.cpp
    """


class Data(Layer):
    """Reads images and labels from an LMDB or LevelDB; its tops (data, label) become inputs of the Net.

    ``transform_param`` (crop, mirror, mean, scale) must be applied by the caller.

    Reference: data_layer.cpp
    """


class ImageData(Layer):
    """Reads image files from a list, and labels; its tops (data, label) become inputs of the Net.

    Reference: image_data_layer.cpp
    """


class WindowData(Layer):
    """Reads windows of images (R-CNN), and labels; its tops (data, label) become inputs of the Net.

    Reference: window_data_layer.cpp
    """


class MemoryData(Layer):
    """Takes arrays from the caller; its tops (data, label) become inputs of the Net.

    Reference: memory_data_layer.cpp
    """


class HDF5Data(Layer):
    """Reads datasets of HDF5 files, one for each top of the same name; its tops become inputs of the Net.

    Reference: hdf5_data_layer.cpp
    """


class AnnotatedData(Layer):
    """Reads images and boxes from an LMDB or LevelDB; its tops (data, label) become inputs of the Net. From SSD.

    The label (1, 1, boxes, 8) has a row for each box of the batch: image, label, instance, x1, y1, x2, y2, difficult.
    ``caffe-port train`` and ``evaluate`` do what ``transform_param`` and ``annotated_data_param`` say.

    Reference: annotated_data_layer.cpp (SSD)
    """


class VideoData(Layer):
    """Reads frames of a camera or a video file; its tops become inputs of the Net. From SSD.

    Reference: video_data_layer.cpp (SSD)
    """


class OtherData(Layer):
    """Any other data layer: a fork's (ImageSegData, DenseImageData: no bottoms and a name that ends with Data), or a
    Python layer without bottoms and without a plugin. The tops become inputs of the Net.
    """


class DummyData(Layer):
    """Tops of given shapes, filled with a constant, or with new values from a random filler at every forward.

    Takes no bottoms. The random numbers are PyTorch's, not Caffe's.

    Reference: dummy_data_layer.cpp, filler.hpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"shapes": tuple(dummy_shapes(p)), "draws": tuple(dummy_draws(p))}

    def __init__(self, shapes: tuple[Shape, ...], draws: tuple[tuple[str, float, float], ...]) -> None:
        super().__init__()
        self.shapes, self.draws = shapes, draws
        self.register_buffer("like", torch.empty(0), persistent=False)  # says device and dtype, holds no numbers

    like: Tensor

    def forward(self) -> Tensor | tuple[Tensor, ...]:
        pairs = zip(self.shapes, self.draws, strict=True)
        tops = tuple(self.fill(self.like.new_empty(shape), *draw) for shape, draw in pairs)
        return tops if len(tops) > 1 else tops[0]

    @staticmethod
    def fill(top: Tensor, kind: str, a: float, b: float) -> Tensor:
        if kind == "uniform":
            return top.uniform_(a, b)
        if kind == "gaussian":
            return top.normal_(a, b)
        if kind == "sparse":
            return top.normal_(0, a) * torch.empty_like(top).bernoulli_(b)
        if kind == "positive_unitball":
            top.uniform_(0, 1)
            return top / top.reshape(len(top), -1).sum(1).reshape(-1, *[1] * (top.dim() - 1))
        if kind == "bilinear":
            half = -(-top.shape[3] // 2)
            line = torch.arange(top.shape[3], device=top.device, dtype=top.dtype) / half
            line = 1 - (line - (2 * half - 1 - half % 2) / (2 * half)).abs()
            return (line[:, None] * line).expand_as(top).contiguous()
        return top.fill_(a)


class Parameter(Layer):
    """A trainable tensor as a top, without bottoms.

    Blobs: value, of the shape that ``parameter_param`` gives; zeros without a weights file
    Reference: parameter_layer.hpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"shape": tuple(int(n) for n in p.shape.dim)}

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(shape))

    def forward(self) -> Tensor:
        return self.value


class HDF5Output(Layer):
    """Takes bottoms and has no top.

    Differs from Caffe: it does not write them to an HDF5 file; read the blobs from the Net instead.
    Reference: hdf5_output_layer.cpp
    """

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return ()


L = TypeVar("L", bound=Layer)


def python_layer(module: str, layer: str) -> Callable[[type[L]], type[L]]:
    """Class decorator: the Layer that stands for a ``type: "Python"`` layer of this module and class.

    Its ``from_caffe`` receives what its ``param`` says; ``param = "python_param"`` gives module, layer and param_str.

    >>> @python_layer("rpn.proposal_layer", "ProposalLayer")
    ... class Proposal(Layer):
    ...     param = "python_param"
    """

    def register(cls: type[L]) -> type[L]:
        PYTHON_LAYERS[f"{module}.{layer}"] = cls
        PYTHON[f"{module}.{layer}"] = cls.signature
        return cls

    return register


class Python(Layer):
    """A layer written in Python for pycaffe, which runs as it is only in scripts (``caffe-port run``).

    A plugin supplies the replacement: a file given with ``--plugin`` that decorates a Layer with
    :func:`caffe_port.layers.data.python_layer`.

    Reference: python_layer.hpp
    """

    @classmethod
    def stand_in(cls, layer: Message) -> type[Layer]:
        """The class that a plugin registered for a LayerParameter of type Python.

        Raises:
            SpecError: there is none.
        """
        p = layer.python_param
        found = PYTHON_LAYERS.get(f"{p.module}.{p.layer}")
        if found is None:
            raise unknown_python(layer)
        return found
