"""Layers that sample an image at positions given by another bottom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from caffe_port.formats.message import Message
from caffe_port.layers.layer import Layer
from caffe_port.signatures.forks.transform import given_theta
from caffe_port.typing import Shape


class SpatialTransformer(Layer):
    """An image seen through an affine map for each item: takes x (N, C, H, W) and theta (N, 6), rows 1 and 2.

    The pixel (i, j) of the top lies at ``theta (2i / H' - 1, 2j / W' - 1, 1)``, the vertical coordinate first, -1 and 1
    being the upper and lower edge; between four pixels, zeros around the image. What ``theta_1_1`` to ``theta_2_3``
    give is left out of theta, which then has fewer columns.

    Differs from PyTorch: F.affine_grid has the horizontal coordinate first, and pixels half of their size later.
    Reference: daerduoCarey/SpatialTransformerLayer st_layer.cpp, st_layer.cu
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        x, given = bottoms[0], given_theta(p)
        size = (p.output_H if p.has("output_H") else x[2], p.output_W if p.has("output_W") else x[3])
        return {"size": size} | ({"theta": given} if given.count(None) < 6 else {})

    def __init__(self, size: tuple[int, int], theta: tuple[float | None, ...] = (None,) * 6) -> None:
        super().__init__()
        self.size, self.theta = size, theta

    def forward(self, x: Tensor, theta: Tensor) -> Tensor:
        theta, column = theta.flatten(1), 0
        entries = []
        for given in self.theta:
            entries.append(theta[:, column] if given is None else torch.full_like(x[:, 0, 0, 0], given))
            column += given is None
        map_ = torch.stack(entries, 1).reshape(-1, 2, 3)
        i = torch.arange(self.size[0], device=x.device, dtype=x.dtype) * (2 / self.size[0]) - 1
        j = torch.arange(self.size[1], device=x.device, dtype=x.dtype) * (2 / self.size[1]) - 1
        grid = torch.stack((i[:, None].expand(self.size), j.expand(self.size), torch.ones_like(i[:, None] + j)))
        place = torch.einsum("nrk,kyx->nryx", map_, grid)
        return between_four(x, (place[:, 0] + 1) / 2 * x.shape[2], (place[:, 1] + 1) / 2 * x.shape[3])


# -- in forward ---------------------------------------------------------------------------------------------------


def between_four(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The image at (row, column), each (N, H', W') and in pixels, between four pixels; zeros around it."""
    n, c, h, w = x.shape
    flat = x.flatten(2)
    top, left = row.detach().floor(), column.detach().floor()
    y = x.new_zeros(())
    for i in (top, top + 1):
        for j in (left, left + 1):
            weight = (1 - (row - i).abs()) * (1 - (column - j).abs())
            inside = (i >= 0) & (i < h) & (j >= 0) & (j < w)
            index = (i.long().clamp(0, h - 1) * w + j.long().clamp(0, w - 1)).reshape(n, 1, -1).expand(-1, c, -1)
            y = y + flat.gather(2, index).reshape(n, c, *row.shape[1:]) * (weight * inside)[:, None]
    return y
