"""Layers that move, select and combine values. Source: src/caffe/layers of Caffe 1.0 and of the SSD fork."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from caffe_port.formats.message import Message, decimal
from caffe_port.layers.layer import Layer, canonical_axis, number
from caffe_port.signatures.shape import concat_flattens, legacy_axis, reshaped_axes, unsqueezed_axis
from caffe_port.typing import Shape


def greatest(x: Tensor, k: int, dim: int) -> tuple[Tensor, Tensor]:
    """The k greatest values along a dimension and their indices; of equal values the last one comes first."""
    if k == 1:
        last = x.shape[dim] - 1 - x.flip(dim).argmax(dim, keepdim=True)
        return x.gather(dim, last), last
    values, order = x.flip(dim).sort(dim=dim, descending=True, stable=True)
    return values.narrow(dim, 0, k), x.shape[dim] - 1 - order.narrow(dim, 0, k)


class ArgMax(Layer):
    """Indices of the top_k greatest values, as floats.

    With ``axis``: along it, its length becoming top_k; out_max_val gives the values instead of the indices.
    Without: over everything but the batch, as (N, 1, top_k) with ones up to the bottom's dimensions; out_max_val
    gives (N, 2, top_k), indices and values.

    Differs from PyTorch: of equal values the last index comes first; torch.argmax gives the first.
    Reference: argmax_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        axis = canonical_axis(p.axis, len(bottoms[0])) if p.has("axis") else None
        return {"top_k": p.top_k, "axis": axis, "out_max_val": p.out_max_val}

    def __init__(self, top_k: int = 1, axis: int | None = None, out_max_val: bool = False) -> None:
        super().__init__()
        self.top_k, self.axis, self.out_max_val = top_k, axis, out_max_val

    def forward(self, x: Tensor) -> Tensor:
        if self.axis is not None:
            values, indices = greatest(x, self.top_k, self.axis)
            return values if self.out_max_val else indices.to(x.dtype)
        values, indices = greatest(x.reshape(len(x), -1), self.top_k, 1)
        y = torch.stack((indices.to(x.dtype), values), 1) if self.out_max_val else indices.to(x.dtype).unsqueeze(1)
        return y.reshape(*y.shape, *[1] * (x.dim() - 3))


class BatchReindex(Layer):
    """The items of the batch that the second bottom lists: ``x[indices]``.

    Reference: batch_reindex_layer.cpp
    """

    def forward(self, x: Tensor, indices: Tensor) -> Tensor:
        return x[indices.long()]

    def call_source(self, *bottoms: str) -> str:
        return f"{bottoms[0]}[{bottoms[1]}.long()]"


class Concat(Layer):
    """Same as torch.cat. ``flat`` (Intel's per_fla_fuse): of each bottom (N, C, H, W) as (N, C * H * W, 1, 1).

    Reference: concat_layer.cpp; intel/caffe mkldnn_concat_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        dim = legacy_axis(p, "concat_dim", len(bottoms[0]))
        return {"dim": dim} | ({"flat": True} if concat_flattens(p, bottoms) else {})

    def __init__(self, dim: int = 1, flat: bool = False) -> None:
        super().__init__()
        self.dim, self.flat = dim, flat

    def forward(self, *bottoms: Tensor) -> Tensor:
        if self.flat:
            bottoms = tuple(x.reshape(x.shape[0], -1, *[1] * (x.dim() - 2)) for x in bottoms)
        return torch.cat(bottoms, dim=self.dim)

    def call_source(self, *bottoms: str) -> str | None:
        if self.flat:
            return None
        return f"torch.cat(({', '.join(bottoms)}{',' if len(bottoms) == 1 else ''}), dim={self.dim})"


class Eltwise(Layer):
    """Product, sum (with a coefficient for each bottom) or maximum of bottoms of one shape.

    Differs from PyTorch: where values are equal, the gradient of the maximum goes to one bottom (the second of the
    first two, else the earlier one); torch.maximum shares it. ``stable_prod_grad`` is a matter of rounding only and
    has no effect here.
    Reference: eltwise_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        coeff = [decimal(c) for c in p.coeff]
        args: dict[str, Any] = {"operation": p.operation}
        if p.operation == "SUM" and any(c != 1 for c in coeff):
            args["coeff"] = tuple(coeff)
        return args

    def __init__(self, operation: str = "SUM", coeff: tuple[float, ...] | None = None) -> None:
        super().__init__()
        self.operation, self.coeff = operation, coeff

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        if self.operation == "MAX":
            y = torch.where(first > others[0], first, others[0]) if others else first
            for x in others[1:]:
                y = torch.where(x > y, x, y)
        elif self.operation == "PROD":
            y = first
            for x in others:
                y = y * x
        elif self.coeff is None:
            y = first
            for x in others:
                y = y + x
        else:
            y = self.coeff[0] * first
            for c, x in zip(self.coeff[1:], others, strict=True):
                y = y + c * x
        return y

    def call_source(self, *bottoms: str) -> str | None:
        if self.operation == "MAX":
            return f"torch.where({bottoms[0]} > {bottoms[1]}, {', '.join(bottoms)})" if len(bottoms) == 2 else None
        if self.operation == "PROD":
            return " * ".join(bottoms)
        if self.coeff is None:
            return " + ".join(bottoms)
        source = bottoms[0] if self.coeff[0] == 1 else f"{number(self.coeff[0])} * {bottoms[0]}"
        for c, x in zip(self.coeff[1:], bottoms[1:], strict=True):
            term = x if abs(c) == 1 else f"{number(abs(c))} * {x}"
            source += f" {'-' if c < 0 else '+'} {term}"
        return source


class Filter(Layer):
    """The items of the batch that the last bottom, the selector, marks with a nonzero value.

    The tops' batch size depends on the values of the selector.

    Reference: filter_layer.cpp
    """

    def forward(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        keep = bottoms[-1].flatten() != 0
        tops = tuple(x[keep] for x in bottoms[:-1])
        return tops if len(tops) > 1 else tops[0]

    def infer(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        return bottoms[:-1] if len(bottoms) > 2 else bottoms[0]


class Flatten(Layer):
    """Same as torch.flatten.

    Differs from PyTorch: an ``axis`` right after ``end_axis`` adds an axis of length 1 there.
    Reference: flatten_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        start, end = (canonical_axis(axis, len(bottoms[0])) for axis in (p.axis, p.end_axis))
        return {"start_dim": start, "end_dim": end if end != len(bottoms[0]) - 1 else -1}

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Tensor) -> Tensor:
        if 0 <= self.end_dim < self.start_dim:
            return x.unsqueeze(self.start_dim)
        return x.flatten(self.start_dim, self.end_dim)

    def call_source(self, *bottoms: str) -> str:
        if 0 <= self.end_dim < self.start_dim:
            return f"{bottoms[0]}.unsqueeze({self.start_dim})"
        return f"{bottoms[0]}.flatten({self.start_dim}{'' if self.end_dim == -1 else f', {self.end_dim}'})"


class Unsqueeze(Layer):
    """Same as torch.unsqueeze.

    Reference: unsqueeze.cpp (brocolli-caffe 9.0.2; its backward pass does nothing)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"dim": unsqueezed_axis(p, len(bottoms[0]))}

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(self.dim)

    def call_source(self, *bottoms: str) -> str:
        return f"{bottoms[0]}.unsqueeze({self.dim})"


class Permute(Layer):
    """Same as torch.permute; axes that ``order`` leaves out follow in their own order. From SSD.

    Reference: permute_layer.cpp (SSD)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        order = [int(axis) for axis in p.order]
        return {"dims": (*order, *(axis for axis in range(len(bottoms[0])) if axis not in order))}

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)

    def call_source(self, *bottoms: str) -> str:
        return f"{bottoms[0]}.permute({', '.join(map(str, self.dims)) or '()'})"


class Transpose(Permute):
    """Same as torch.permute; ``dim`` names every axis. From nets for OCR and CTPN.

    Reference: yonghenglh6/caffe transpose_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"dims": tuple(int(axis) for axis in p.dim)}


class Reduction(Layer):
    """Sum, sum of magnitudes, sum of squares or mean over ``axis`` and all axes after it, times ``coeff``.

    Reference: reduction_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        dims = len(bottoms[0])
        return {"operation": p.operation, "dims": tuple(range(canonical_axis(p.axis, dims), dims)), "coeff": p.coeff}

    def __init__(self, operation: str, dims: tuple[int, ...], coeff: float = 1.0) -> None:
        super().__init__()
        self.operation, self.dims, self.coeff = operation, dims, coeff

    def forward(self, x: Tensor) -> Tensor:
        if self.operation == "ASUM":
            x = x.abs()
        elif self.operation == "SUMSQ":
            x = x.square()
        y = x.mean(dim=self.dims) if self.operation == "MEAN" else x.sum(dim=self.dims)
        return y if self.coeff == 1 else self.coeff * y

    def call_source(self, *bottoms: str) -> str:
        method = {"SUM": "sum", "ASUM": "abs().sum", "SUMSQ": "square().sum", "MEAN": "mean"}[self.operation]
        factor = "" if self.coeff == 1 else f"{number(self.coeff)} * "
        return f"{factor}{bottoms[0]}.{method}(dim={self.dims if len(self.dims) > 1 else self.dims[0]})"


class Reshape(Layer):
    """The axes from ``start`` to ``end`` get the lengths ``dims``: 0 keeps the bottom's length, -1 takes what is left.

    Differs from PyTorch: 0 is not a length, and axes before ``start`` and from ``end`` on stay as they are.
    Reference: reshape_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        start, end = reshaped_axes(p, bottoms[0])
        dims = tuple(int(d) for d in p.shape.dim)
        return {"dims": dims, "start": start, "end": None if end == len(bottoms[0]) else end}

    def __init__(self, dims: tuple[int, ...], start: int = 0, end: int | None = None) -> None:
        super().__init__()
        self.dims, self.start, self.end = dims, start, end

    def forward(self, x: Tensor) -> Tensor:
        dims = [x.shape[self.start + i] if d == 0 else d for i, d in enumerate(self.dims)]
        after = () if self.end is None else x.shape[self.end :]
        return x.reshape((*x.shape[: self.start], *dims, *after))

    def call_source(self, *bottoms: str) -> str:
        x = bottoms[0]
        parts = [f"{x}.shape[0]" if self.start == 1 else f"*{x}.shape[:{self.start}]"] if self.start else []
        parts += [f"{x}.shape[{self.start + i}]" if d == 0 else str(d) for i, d in enumerate(self.dims)]
        parts += [] if self.end is None else [f"*{x}.shape[{self.end}:]"]
        return f"{x}.reshape({', '.join(parts) or '()'})"


class ShuffleChannel(Layer, nn.ChannelShuffle):
    """Same as torch.nn.ChannelShuffle. From the ShuffleNet forks.

    Reference: shuffle_channel_layer.cpp (forks)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"groups": p.group}

    def torch_source(self) -> str:
        return f"nn.ChannelShuffle({self.groups})"


class Silence(Layer):
    """Takes bottoms and has no top, so that Caffe does not print them.

    Reference: silence_layer.cpp
    """

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return ()


class Slice(Layer):
    """Same as torch.tensor_split: at the slice_points, or into as many equal parts as there are tops.

    Reference: slice_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        points = tuple(int(n) for n in p.slice_param.slice_point)
        return {"sections": points or len(p.top), "dim": legacy_axis(p.slice_param, "slice_dim", len(bottoms[0]))}

    def __init__(self, sections: int | tuple[int, ...], dim: int = 1) -> None:
        super().__init__()
        self.sections, self.dim = sections, dim

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return x if self.sections == 1 else torch.tensor_split(x, self.sections, dim=self.dim)

    def call_source(self, *bottoms: str) -> str:
        if self.sections == 1:
            return bottoms[0]
        return f"torch.tensor_split({bottoms[0]}, {self.sections}, dim={self.dim})"


class Split(Layer):
    """The bottom, once for every top. Caffe inserts it where a blob has several readers; here it has no cost.

    Reference: split_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"copies": len(p.top)}

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.copies = copies

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return x if self.copies == 1 else (x,) * self.copies

    def call_source(self, *bottoms: str) -> str:
        return ", ".join(bottoms * self.copies)


class Tile(Layer):
    """Same as torch.Tensor.repeat along one axis.

    Reference: tile_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        axis = canonical_axis(p.axis, len(bottoms[0]))
        return {"repeats": tuple(p.tiles if i == axis else 1 for i in range(len(bottoms[0])))}

    def __init__(self, repeats: tuple[int, ...]) -> None:
        super().__init__()
        self.repeats = repeats

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(*self.repeats)

    def call_source(self, *bottoms: str) -> str:
        return f"{bottoms[0]}.repeat({', '.join(map(str, self.repeats))})"
