"""Convolutions of 3x3 in a quarter of the multiplications: Winograd's F(4x4, 3x3), forward and backward, for a CPU.

For CPUs without bfloat16, where a direct convolution already runs at the speed of a matrix product. The results differ
from those of a direct convolution by rounding, by 3.3e-6 at most, relatively (measured on random numbers).

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (arXiv 1509.09308).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from caffe_port.layers.spatial import Convolution

TILE, READ = 4, 6  # a tile of 4x4 outputs reads 6x6 inputs
INPUT = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]]
INPUT += [[0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
KERNEL = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6]]
KERNEL += [[1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]

LEAST_CHANNELS, LEAST_WORK = 64, 64 * 128 * 4  # less is not faster: the transforms cost as much as they save
CACHE = 1 << 20  # bytes of the tiles that are transformed at a time: what a core's second cache holds
MOST_BYTES = 8 << 20  # of one image's tiles
LEAST_TILES = 64  # of a batch; with fewer, transforming the weights costs more than is saved
LEAST_USE = 0.75  # share of the tiles' outputs that are in the image


def pays(module: Any, x: Tensor) -> bool:
    """Whether this convolution is one that is faster here."""
    if type(module) is not Convolution or x.ndim != 4 or x.dtype != torch.float32 or x.device.type != "cpu":
        return False
    plain = (module.kernel_size, module.stride, module.padding) == ((3, 3), (1, 1), (1, 1))
    if not plain or set(module.dilation) != {1} or module.groups != 1 or module.axis != 1 or module.extra_padding:
        return False
    least, most = sorted((module.in_channels, module.out_channels))
    tiles = -(-x.shape[2] // TILE) * -(-x.shape[3] // TILE)
    return (
        least >= LEAST_CHANNELS
        and least * most * tiles >= LEAST_WORK
        and len(x) * tiles >= LEAST_TILES
        and x.shape[2] * x.shape[3] >= LEAST_USE * TILE**2 * tiles
        and 4 * READ**2 * tiles * most <= MOST_BYTES
    )


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.conv2d(x, weight, bias, padding=1) of a weight (C_out, C_in, 3, 3), in channels-last memory."""
    y: Tensor = _Winograd.apply(x, weight, bias)
    return y


class _Sizes(NamedTuple):
    """Images in all and at a time, their height and width, and their rows and columns of tiles."""

    images: int
    chunk: int
    height: int
    width: int
    rows: int
    columns: int

    @classmethod
    def of(cls, x: Tensor, weight: Tensor) -> _Sizes:
        rows, columns = -(-x.shape[2] // TILE), -(-x.shape[3] // TILE)
        image = 4 * READ**2 * rows * columns * max(weight.shape[:2])
        size = max(CACHE, 4 * READ**2 * weight.shape[0] * weight.shape[1] // 2)  # the weights, too, are read every time
        return cls(x.shape[0], max(1, min(x.shape[0], size // image)), x.shape[2], x.shape[3], rows, columns)


class _Tiles:
    """The tiles of some images at a time, as (36 or 16, tiles, channels), in memory that is used again for the next."""

    def __init__(self, like: Tensor, sizes: _Sizes, inputs: int, outputs: int) -> None:
        self.sizes, self.inputs, self.outputs = sizes, inputs, outputs
        s, tiles = sizes, sizes.chunk * sizes.rows * sizes.columns
        self.padded = like.new_zeros(s.chunk, TILE * s.rows + 2, TILE * s.columns + 2, inputs)
        self.sums = like.new_empty(s.chunk, s.rows + 1, TILE, s.columns + 1, TILE, inputs)
        self.large = [like.new_empty(READ**2 * tiles * max(inputs, outputs)) for _ in range(3)]
        self.small = like.new_empty(TILE**2 * tiles * outputs)
        self.whole = s.height == TILE * s.rows and s.width == TILE * s.columns
        self.grown = None if self.whole else like.new_zeros(s.chunk, TILE * s.rows, TILE * s.columns, outputs)

    def of_input(self, x: Tensor) -> Tensor:
        """The transformed tiles (36, tiles, C) of images (N, H, W, C)."""
        n, s, c = len(x), self.sizes, self.inputs
        padded = self.padded[:n]
        padded[:, 1 : s.height + 1, 1 : s.width + 1] = x
        a, b, d, e = padded.stride()
        tiles = padded.as_strided((READ, READ, n, s.rows, s.columns, c), (b, d, a, TILE * b, TILE * d, e))
        read = self.large[0][: tiles.numel()]
        read.view(tiles.shape).copy_(tiles)
        made = _both_axes(_matrix(INPUT, x), read, self.large[1], self.large[2])
        return made.view(READ**2, -1, c)

    def to_output(self, products: Tensor, bias: Tensor | None, y: Tensor) -> None:
        """Transforms products (36, tiles, C) back, and writes them to images (N, H, W, C)."""
        n, s = len(y), self.sizes
        made = _both_axes(_matrix(OUTPUT, y), products, self.large[1], self.small)
        if bias is not None:
            made.view(-1, self.outputs).add_(bias)
        tiles = made.view(TILE, TILE, n, s.rows, s.columns, -1).permute(2, 3, 0, 4, 1, 5)
        if self.grown is None:
            _in_tiles(y).copy_(tiles)
        else:
            _in_tiles(self.grown[:n]).copy_(tiles)
            y.copy_(self.grown[:n, : s.height, : s.width])

    def of_gradient(self, g: Tensor) -> Tensor:
        """The adjoint of :meth:`to_output`: from images (N, H, W, C) to (36, tiles, C)."""
        n, s = len(g), self.sizes
        if self.grown is not None:
            self.grown[:n, : s.height, : s.width] = g
            g = self.grown[:n]
        tiles = _in_tiles(g).permute(2, 4, 0, 1, 3, 5)
        read = self.small[: tiles.numel()]
        read.view(tiles.shape).copy_(tiles)
        made = _both_axes(_matrix(OUTPUT, g).t(), read, self.large[1], self.large[0])
        return made.view(READ**2, -1, self.outputs)

    def to_gradient(self, products: Tensor, x: Tensor) -> None:
        """The adjoint of :meth:`of_input`: from (36, tiles, C) to images (N, H, W, C), where the tiles overlap."""
        n, s, c = len(x), self.sizes, self.inputs
        made = _both_axes(_matrix(INPUT, x).t(), products, self.large[1], self.large[0])
        tiles = made.view(READ, READ, n, s.rows, s.columns, c).permute(2, 3, 0, 4, 1, 5)
        sums = self.sums[:n]
        sums[:, s.rows].zero_()
        sums[:, :, :, s.columns].zero_()
        sums[:, : s.rows, :, : s.columns] = tiles[:, :, :TILE, :, :TILE]
        sums[:, 1:, :2, : s.columns] += tiles[:, :, TILE:, :, :TILE]
        sums[:, : s.rows, :, 1:, :2] += tiles[:, :, :TILE, :, TILE:]
        sums[:, 1:, :2, 1:, :2] += tiles[:, :, TILE:, :, TILE:]
        images = sums.view(n, TILE * s.rows + TILE, TILE * s.columns + TILE, c)
        x.copy_(images[:, 1 : s.height + 1, 1 : s.width + 1])


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        s = _Sizes.of(x, weight)
        kernels, tiles = _kernels(weight), _Tiles(x, s, weight.shape[1], weight.shape[0])
        y = _images(x, weight.shape[0])
        for at in range(0, s.images, s.chunk):
            some = slice(at, at + s.chunk)
            read = tiles.of_input(x[some].permute(0, 2, 3, 1))
            products = tiles.large[0][: read.numel() // read.shape[2] * weight.shape[0]]
            torch.bmm(read, kernels, out=products.view(READ**2, -1, weight.shape[0]))
            tiles.to_output(products, bias, y[some].permute(0, 2, 3, 1))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        s = _Sizes.of(x, weight)
        tiles = _Tiles(x, s, weight.shape[1], weight.shape[0])
        turned = _kernels(weight).transpose(1, 2).contiguous()
        gx = _images(x, weight.shape[1]) if to_x else None
        gk = x.new_zeros(READ**2, weight.shape[1], weight.shape[0]) if to_weight else None
        gb = x.new_zeros(weight.shape[0]) if to_bias else None
        for at in range(0, s.images, s.chunk):
            some = slice(at, at + s.chunk)
            part = g[some].permute(0, 2, 3, 1)
            read = tiles.of_input(x[some].permute(0, 2, 3, 1)) if gk is not None else None
            from_y = tiles.of_gradient(part)
            if gk is not None and read is not None:
                gk.baddbmm_(read.transpose(1, 2), from_y)
            if gx is not None:
                products = tiles.large[2][: from_y.numel() // from_y.shape[2] * weight.shape[1]]
                torch.bmm(from_y, turned, out=products.view(READ**2, -1, weight.shape[1]))
                tiles.to_gradient(products, gx[some].permute(0, 2, 3, 1))
            if gb is not None:
                gb.add_(part.sum((0, 1, 2)))
        gw = None
        if gk is not None:
            of_kernels = torch.mm(_kernel_matrix(x).t(), gk.view(READ**2, -1))
            gw = of_kernels.view(3, 3, *gk.shape[1:]).permute(3, 2, 0, 1)
            gw = gw.contiguous(memory_format=torch.channels_last)
        return gx, gw, gb


def _matrix(rows: list[list[float]] | list[list[int]], like: Tensor) -> Tensor:
    return torch.tensor(rows, dtype=like.dtype)


def _kernel_matrix(like: Tensor) -> Tensor:
    one = torch.tensor(KERNEL, dtype=torch.float64)
    return torch.kron(one, one).to(like.dtype)


def _images(like: Tensor, channels: int) -> Tensor:
    """Images (N, C, H, W) in channels-last memory, not a view: the ReLU after a convolution overwrites its output."""
    shape = (len(like), channels, *like.shape[2:])
    return torch.empty(shape, dtype=like.dtype, memory_format=torch.channels_last)


def _kernels(weight: Tensor) -> Tensor:
    """The transformed weight: (36, C_in, C_out)."""
    outputs, inputs = weight.shape[:2]
    return torch.mm(_kernel_matrix(weight), weight.permute(2, 3, 1, 0).reshape(9, -1)).view(READ**2, inputs, outputs)


def _both_axes(matrix: Tensor, tiles: Tensor, between: Tensor, result: Tensor) -> Tensor:
    """matrix @ tile @ matrix.t() for tiles in ``tiles`` (flat: a square of values, then everything else)."""
    to, side = matrix.shape
    rest = tiles.numel() // side**2
    half = torch.mm(matrix, tiles.view(side, -1), out=between[: to * side * rest].view(to, -1))
    whole = result[: to * to * rest].view(to, to, rest)
    return torch.bmm(matrix.expand(to, to, side), half.view(to, side, rest), out=whole)


def _in_tiles(images: Tensor) -> Tensor:
    """Images (N, H, W, C) as (N, rows, 4, columns, 4, C), without a copy."""
    n, height, width, channels = images.shape
    a, b, c, d = images.stride()
    shape = (n, height // TILE, TILE, width // TILE, TILE, channels)
    return images.as_strided(shape, (a, TILE * b, b, TILE * c, c, d), images.storage_offset())
