"""What TensorFlow's and ONNX's operators become in Caffe: synopsys-caffe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caffe_port.formats.message import Message
from caffe_port.layers.layer import Layer
from caffe_port.signatures.forks.tensors import image_axes, matrices, placing, resized, squeezed_axes
from caffe_port.typing import Shape


class Squeeze(Layer):
    """Same as torch.squeeze: removes the axes ``axis``, or all, of length 1.

    Reference: foss-for-synopsys-dwc-arc-processors/synopsys-caffe squeeze_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"dims": squeezed_axes(p, bottoms[0])}

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(self.dims)

    def call_source(self, *bottoms: str) -> str:
        return f"{bottoms[0]}.squeeze({self.dims})"


class Add(Layer):
    """Same as torch.add: the sum of two bottoms of any shapes that broadcast.

    Reference: foss-for-synopsys-dwc-arc-processors/synopsys-caffe add_layer.cpp
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def call_source(self, *bottoms: str) -> str:
        return " + ".join(bottoms)


class Mul(Layer):
    """Same as torch.mul: the product of two bottoms of any shapes that broadcast, or of a bottom and a blob.

    Blobs: factor (``mul_shape``), unless there is a second bottom
    Reference: foss-for-synopsys-dwc-arc-processors/synopsys-caffe mul_layer.cpp
    """

    factor: Tensor | None

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {} if len(bottoms) > 1 else {"shape": tuple(int(n) for n in p.mul_shape)}

    def __init__(self, shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.factor = None if shape is None else nn.Parameter(torch.empty(shape))

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        b = self.factor if b is None else b
        assert b is not None
        return a * b

    def call_source(self, *bottoms: str) -> str | None:
        return " * ".join(bottoms) if len(bottoms) > 1 else None


class MatMul(Layer):
    """Same as torch.matmul, of two bottoms, or of a bottom and a blob; either may be transposed.

    Differs from PyTorch: shapes are not broadcast, but the second factor may be a single matrix.
    Blobs: factor (``blob_shape``), unless there is a second bottom
    Reference: foss-for-synopsys-dwc-arc-processors/synopsys-caffe matmul_layer.cpp
    """

    factor: Tensor | None

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        args: dict[str, Any] = {name: True for name in ("transpose_a", "transpose_b") if getattr(p, name)}
        return args if len(bottoms) > 1 else args | {"shape": matrices(p, bottoms)[1]}

    def __init__(
        self, shape: tuple[int, ...] | None = None, transpose_a: bool = False, transpose_b: bool = False
    ) -> None:
        super().__init__()
        self.transpose_a, self.transpose_b = transpose_a, transpose_b
        self.factor = None if shape is None else nn.Parameter(torch.empty(shape))

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        b = self.factor if b is None else b
        assert b is not None
        return (a.mT if self.transpose_a else a) @ (b.mT if self.transpose_b else b)

    def call_source(self, *bottoms: str) -> str | None:
        if len(bottoms) < 2:
            return None
        a, b = bottoms
        return f"{a}{'.mT' * self.transpose_a} @ {b}{'.mT' * self.transpose_b}"


class TensorFlowResize(Layer, register=False):
    """What ResizeBilinear and ResizeNearestNeighbor share: the size, the axes, and where pixels lie."""

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        args: dict[str, Any] = {"size": resized(p, bottoms[0]), "dims": image_axes(p, bottoms[0])}
        return args | ({"place": placing(p)} if placing(p) else {})

    def __init__(self, size: tuple[int, int], dims: tuple[int, int] = (2, 3), place: str | None = None) -> None:
        super().__init__()
        self.size, self.dims, self.place = size, dims, place


class ResizeBilinear(TensorFlowResize):
    """Resizes an image, between four pixels, as TensorFlow does: pixel i lies at ``i * old / new``.

    With ``align_corners`` it lies at ``i * (old - 1) / (new - 1)``, with ``half_pixel_centers`` or
    ``pytorch_half_pixel`` at ``(i + 0.5) * old / new - 0.5``. The axes are (N, H, W, C), or (N, C, H, W) with
    ``data_format: "NCHW"``.

    Differs from PyTorch: F.interpolate has no way for the first of these.
    Reference: foss-for-synopsys-dwc-arc-processors/synopsys-caffe resize_bilinear_layer.cpp
    """

    def forward(self, x: Tensor) -> Tensor:
        for dim, new in zip(self.dims, self.size, strict=True):
            old = x.shape[dim]
            at = places(new, old, self.place, x.device).clamp(0, old - 1)
            first = at.floor()
            share = (at - first).to(x.dtype).reshape([-1 if d == dim else 1 for d in range(4)])
            index = first.long()
            low, high = x.index_select(dim, index), x.index_select(dim, (index + 1).clamp(max=old - 1))
            x = low + (high - low) * share
        return x


class ResizeNearestNeighbor(TensorFlowResize):
    """Resizes an image as TensorFlow does: pixel i is the old pixel ``floor(i * old / new)``.

    With ``align_corners`` it is ``round(i * (old - 1) / (new - 1))``, with ``half_pixel_centers``
    ``floor((i + 0.5) * old / new)``, with ``half_pixel_onnx`` ``floor((i + 0.5) * old / new - 0.5)``. The axes are
    (N, H, W, C), or (N, C, H, W) with ``data_format: "NCHW"``.

    Differs from PyTorch: F.interpolate(mode="nearest") does only the first of these, or the third.
    Reference: foss-for-synopsys-dwc-arc-processors/synopsys-caffe resize_nearest_neighbor_layer.cpp
    """

    def forward(self, x: Tensor) -> Tensor:
        up = {"align_corners": 0.5, "half_pixel_centers": 0.5}.get(self.place or "", 0.0)
        for dim, new in zip(self.dims, self.size, strict=True):
            at = (places(new, x.shape[dim], self.place, x.device) + up).floor()
            x = x.index_select(dim, at.long().clamp(0, x.shape[dim] - 1))
        return x


class UpsampleDarknet(Layer):
    """Same as torch.nn.Upsample with mode="nearest": every pixel becomes a block.

    Reference: foss-for-synopsys-dwc-arc-processors/synopsys-caffe upsample_darknet_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"stride": p.stride}

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=self.stride, mode="nearest")

    def torch_source(self) -> str:
        return f"nn.Upsample(scale_factor={self.stride})"


class DepthToSpace(Layer):
    """Channels become blocks of pixels, (N, H, W, C) or, with ``data_format`` other than NHWC, (N, C, H, W).

    Differs from PyTorch: torch.nn.PixelShuffle is CRD; in NHWC, NCHW and DCR, pixel (i, j) of a block comes from the
    channels that begin at ``(block_size * i + j) * C / block_size²``.
    Reference: foss-for-synopsys-dwc-arc-processors/synopsys-caffe depth_to_space_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"block_size": p.block_size, "order": "DCR" if p.data_format == "NCHW" else p.data_format}

    def __init__(self, block_size: int, order: str = "DCR") -> None:
        super().__init__()
        self.block_size, self.order = block_size, order

    def forward(self, x: Tensor) -> Tensor:
        block = self.block_size
        if self.order == "CRD":
            return F.pixel_shuffle(x, block)
        if self.order == "NHWC":
            n, h, w, c = x.shape
            parts = x.reshape(n, h, w, block, block, c // block**2).permute(0, 1, 3, 2, 4, 5)
            return parts.reshape(n, h * block, w * block, c // block**2)
        n, c, h, w = x.shape
        parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return parts.reshape(n, c // block**2, h * block, w * block)


class SpaceToBatchND(Layer):
    """Every ``block_shape``-th pixel goes into an item of its own: TensorFlow's way to dilate a convolution.

    The axes after the batch are padded with zeros by ``paddings``, then cut into blocks; pixel (i, j) of every block
    goes into the items that begin at ``(width of a block * i + j) * N``.

    Reference: foss-for-synopsys-dwc-arc-processors/synopsys-caffe space_to_batch_nd_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"block_shape": tuple(map(int, p.block_shape)), "paddings": tuple(map(int, p.paddings))}

    def __init__(self, block_shape: tuple[int, ...], paddings: tuple[int, ...]) -> None:
        super().__init__()
        self.block_shape, self.paddings = block_shape, paddings

    def forward(self, x: Tensor) -> Tensor:
        count, rest = len(self.block_shape), x.shape[1 + len(self.block_shape) :]
        edges = [0] * (2 * len(rest))
        for k in reversed(range(count)):
            edges += self.paddings[2 * k : 2 * k + 2]
        x = F.pad(x, edges)
        cut = [part for k, block in enumerate(self.block_shape) for part in (x.shape[1 + k] // block, block)]
        places, inside = range(1, 2 * count, 2), range(2, 2 * count + 1, 2)
        parts = x.reshape(x.shape[0], *cut, *rest)
        parts = parts.permute(*inside, 0, *places, *range(2 * count + 1, parts.dim()))
        return parts.reshape(-1, *parts.shape[count + 1 :])


class BatchToSpaceND(Layer):
    """Undoes SpaceToBatchND: items become blocks of pixels, of which ``crops`` are cut off.

    Reference: foss-for-synopsys-dwc-arc-processors/synopsys-caffe batch_to_space_nd_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"block_shape": tuple(map(int, p.block_shape)), "crops": tuple(map(int, p.crops))}

    def __init__(self, block_shape: tuple[int, ...], crops: tuple[int, ...]) -> None:
        super().__init__()
        self.block_shape, self.crops = block_shape, crops

    def forward(self, x: Tensor) -> Tensor:
        count, rest = len(self.block_shape), x.shape[1 + len(self.block_shape) :]
        parts = x.reshape(*self.block_shape, -1, *x.shape[1:])
        pairs = [axis for k in range(count) for axis in (count + 1 + k, k)]
        parts = parts.permute(count, *pairs, *range(2 * count + 1, parts.dim()))
        sides = [length * block for length, block in zip(x.shape[1:], self.block_shape, strict=False)]
        y = parts.reshape(parts.shape[0], *sides, *rest)
        for k, side in enumerate(sides):
            y = y.narrow(1 + k, self.crops[2 * k], side - self.crops[2 * k] - self.crops[2 * k + 1])
        return y


# -- in forward ---------------------------------------------------------------------------------------------------


def places(new: int, old: int, place: str | None, device: torch.device) -> Tensor:
    """Where the pixels of a resized axis lie, in pixels of the old one and in single precision, as in the fork."""
    index = torch.arange(new, device=device, dtype=torch.float32)
    if place == "align_corners" and new > 1:
        return index * ((old - 1) / (new - 1))
    if place == "pytorch_half_pixel" and new == 1:
        return index - 0.5
    half = 0.5 if place in ("half_pixel_centers", "pytorch_half_pixel", "half_pixel_onnx") else 0.0
    return (index + half) * (old / new) - half
