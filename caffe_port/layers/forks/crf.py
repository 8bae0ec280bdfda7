"""Conditional random fields as layers, CRF-RNN's and DeepLab's: mean fields with filters on a permutohedral lattice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caffe_port.formats.message import Message, decimal
from caffe_port.layers.layer import Layer
from caffe_port.typing import Shape


class MultiStageMeanfield(Layer):
    """Some iterations of a mean field over all pixels, which brings scores in line with the edges of the image.

    Takes the scores (N, C, H, W), those to begin with, and the image (N, 3, H, W). Every iteration filters softmax of
    the scores over positions (theta_gamma pixels wide) and over positions and colors (theta_alpha pixels, theta_beta
    levels), adds both with weights between classes, and takes that, times a compatibility of classes, off the scores.
    Gives scores, without softmax.

    Without a weights file, all three blobs are 0; the original reads the first two from spatial.par and bilateral.par,
    and begins with a compatibility of -1 for each class and itself.

    Differs from Caffe: with SSE, the original also puts up to three points without a value on the lattice, at position
    0 in black, which may pass on what it blurs. Nothing flows back to the image, as there.
    Blobs: spatial (1, 1, C, C), bilateral (1, 1, C, C), compatibility (1, 1, C, C)
    Reference: torrvision/caffe multi_stage_meanfield.cpp, meanfield_iteration.cpp, modified_permutohedral.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {
            "classes": bottoms[0][1],
            "iterations": p.num_iterations,
            "alpha": decimal(p.theta_alpha),
            "beta": decimal(p.theta_beta),
            "gamma": decimal(p.theta_gamma),
        }

    def __init__(
        self, classes: int, iterations: int = 5, alpha: float = 160.0, beta: float = 3.0, gamma: float = 3.0
    ) -> None:
        super().__init__()
        self.iterations, self.alpha, self.beta, self.gamma = iterations, alpha, beta, gamma
        self.spatial = nn.Parameter(torch.zeros(1, 1, classes, classes))
        self.bilateral = nn.Parameter(torch.zeros(1, 1, classes, classes))
        self.compatibility = nn.Parameter(torch.zeros(1, 1, classes, classes))

    def forward(self, unary: Tensor, first: Tensor, image: Tensor) -> Tensor:
        places = pixels(unary)
        near = Lattice.of(places / self.gamma)
        return torch.stack(
            [
                self.settled(unary[n].flatten(1), first[n].flatten(1), near, places, image[n].detach().flatten(1))
                for n in range(unary.shape[0])
            ]
        ).reshape(unary.shape)

    def settled(self, unary: Tensor, scores: Tensor, near: Lattice, places: Tensor, colors: Tensor) -> Tensor:
        """The scores (C, H * W) of one image after all iterations."""
        alike = Lattice.of(torch.cat((places / self.alpha, colors.T / self.beta), 1))
        near_norm, alike_norm = near.norm(), alike.norm()
        for _ in range(self.iterations):
            q = scores.softmax(0)
            message = self.spatial[0, 0] @ (near.blur(q) * near_norm)
            message = message + self.bilateral[0, 0] @ (alike.blur(q) * alike_norm)
            scores = unary - self.compatibility[0, 0] @ message
        return scores

    def infer(self, *bottoms: Tensor) -> Tensor:
        return torch.empty_like(bottoms[0])


class DenseCRF(Layer):
    """Some iterations of a mean field over all pixels of each image, with a penalty for unlike classes. DeepLab's.

    Takes the scores (N, C, H, W), the sizes of the images (N, 2 or more numbers: height, width), and the images
    (N, 3, H, W), which may be missing. Every iteration adds to the scores what each filter makes of the probabilities,
    times its weight: the filters over positions, then, if there are images, those over positions and colors. All
    scores of a batch go with the colors of its first image, as in Caffe: give one image at a time.

    An image smaller than the scores takes their top left. What is outside does not count and is 0 in the top.

    Args:
        iterations: 0 gives the softmax of the scores.
        near: weight and width in pixels of each filter over positions.
        alike: weight, width in pixels, width in levels of each filter over positions and colors.
        probability: gives probabilities, instead of their logarithms.

    A class that is more than 20 below the best one has probability 0, of which the logarithm is -87.34, that of the
    smallest normal float32.

    Raises:
        IndexError: an image is smaller than its plane in one direction and larger in the other one.

    Differs from Caffe: exp is exact. With SSE, the original also puts up to three points without a value on the
    lattice, at position 0 in black, which may pass on what it blurs. Without images, the original reads a bottom that
    it does not have. Its backward pass does nothing.
    Reference: densecrf_layer.cpp, densecrf_pairwise.cpp, permutohedral.cpp (DeepLab v1 and v2, hszhao/PSPNet)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        near, alike = zip(p.pos_w, p.pos_xy_std, strict=True), zip(p.bi_w, p.bi_xy_std, p.bi_rgb_std, strict=True)
        return {
            "iterations": p.max_iter,
            "near": [tuple(map(decimal, one)) for one in near],
            "alike": [tuple(map(decimal, one)) for one in alike] if len(bottoms) == 3 else [],
            "probability": p.output_probability,
        }

    def __init__(
        self,
        iterations: int = 10,
        near: Sequence[tuple[float, float]] = (),
        alike: Sequence[tuple[float, float, float]] = (),
        probability: bool = True,
    ) -> None:
        super().__init__()
        self.iterations, self.near, self.alike, self.probability = iterations, near, alike, probability

    def forward(self, scores: Tensor, sizes: Tensor, image: Tensor | None = None) -> Tensor:
        top = []
        for n, size in enumerate(sizes.flatten(1)[:, :2].long().tolist()):
            height, width = self.inside(size, scores.shape[2:])
            part = scores[n, :, :height, :width]
            if part.numel():
                colors = None if image is None else image[0, :, :height, :width].detach().flatten(1)
                part = self.settled(part, colors).reshape(part.shape)
            top.append(F.pad(part, (0, scores.shape[3] - width, 0, scores.shape[2] - height)))
        return torch.stack(top)

    @staticmethod
    def inside(size: Sequence[int], plane: Sequence[int]) -> tuple[int, int]:
        """Height and width of the part of a plane that an image of some size takes."""
        if size[0] >= plane[0] and size[1] >= plane[1]:
            return plane[0], plane[1]
        if size[0] > plane[0] or size[1] > plane[1]:
            raise IndexError(f"an image of {size[0]} x {size[1]} is not inside scores of {plane[0]} x {plane[1]}")
        return max(size[0], 0), max(size[1], 0)

    def settled(self, scores: Tensor, colors: Tensor | None) -> Tensor:
        """What becomes of the scores (C, H, W) of one image, as (C, H * W)."""
        places = pixels(scores)
        filters = [(weight, Lattice.of(places / width)) for weight, width in self.near]
        if colors is not None:
            filters += [
                (weight, Lattice.of(torch.cat((places / width, colors.T / levels), 1)))
                for weight, width, levels in self.alike
            ]
        weighted = [(weight * lattice.norm(), lattice) for weight, lattice in filters]
        scores = scores.flatten(1)
        q = self.distribution(scores)
        for _ in range(self.iterations):
            q = self.distribution(sum((lattice.blur(q) * weight for weight, lattice in weighted), scores))
        return q if self.probability else q.clamp(min=torch.finfo(torch.float32).tiny).log()

    @staticmethod
    def distribution(scores: Tensor) -> Tensor:
        """softmax over the first axis, but 0 where exp is less than exp(-20). Source: ExpAndNormalize, fast_exp."""
        below = scores - scores.amax(0)
        odds = torch.where(below < -20, 0, below.exp())
        return odds / odds.sum(0)

    def infer(self, *bottoms: Tensor) -> Tensor:
        return torch.empty_like(bottoms[0])


def pixels(plane: Tensor) -> Tensor:
    """The places (H * W, 2) in the last two axes, as column and row."""
    height, width = plane.shape[-2:]
    rows = torch.arange(height, device=plane.device).repeat_interleave(width)
    columns = torch.arange(width, device=plane.device).repeat(height)
    return torch.stack((columns, rows), 1).to(plane.dtype)


class Lattice(NamedTuple):
    """Where points of d dimensions lie on the permutohedral lattice, whose M vertices are those around the points.

    Attributes:
        vertex: (P, d + 1), the vertices around each point, from 1 on: 0 is for all that are not there.
        weight: (P, d + 1), what each of them counts.
        neighbors: (d + 1, M, 2), the vertices before and after each one along each axis; or 0.
    """

    vertex: Tensor
    weight: Tensor
    neighbors: Tensor

    @classmethod
    def of(cls, points: Tensor) -> Lattice:
        """The lattice of points (P, d), in units of the filter's width. Source: ModifiedPermutohedral::init."""
        d = points.shape[1]
        device = points.device
        k = torch.arange(1, d + 1, device=device)
        scaled = points * (math.sqrt(2 / 3) * (d + 1) / (k * (k + 1)).to(points).sqrt())
        # onto the plane of numbers whose sum is 0
        after = scaled.flip(1).cumsum(1).flip(1)  # of this and all later ones
        later = torch.cat((after[:, 1:], torch.zeros_like(after[:, :1])), 1)
        lifted = torch.cat((after[:, :1], later - k * scaled), 1)
        # the nearest vertex of the first color, and the order of the distances from it
        rounded = (lifted / (d + 1)).round()
        total = rounded.sum(1, keepdim=True).long()
        origin = rounded.long() * (d + 1)
        away = lifted - origin
        earlier = torch.ones(d + 1, d + 1, dtype=torch.bool, device=device).tril(-1)
        above = away[:, None, :] > away[:, :, None]  # [p, i, j]: j is further than i
        same_or_above = away[:, None, :] >= away[:, :, None]
        rank = torch.where(earlier, same_or_above, above & earlier.T).sum(2) + total
        shift = (d + 1) * ((rank < 0).long() - (rank > d).long())
        rank, origin = rank + shift, origin + shift
        part = (lifted - origin) / (d + 1)
        weight = points.new_zeros(len(points), d + 2)
        weight = weight.scatter_add(1, d - rank, part).scatter_add(1, d - rank + 1, -part)
        weight = torch.cat((weight[:, :1] + 1 + weight[:, d + 1 :], weight[:, 1 : d + 1]), 1)
        # the vertices around it: their coordinates but the last
        step = torch.arange(d + 1, device=device)
        inner = torch.where(step[None, :] <= d - step[:, None], step[:, None], step[:, None] - (d + 1))
        keys = origin[:, None, :d] + inner[:, rank[:, :d]].transpose(0, 1)
        low = keys.flatten(0, 1).amin(0) - (d + 1)
        span = keys.flatten(0, 1).amax(0) + (d + 1) - low + 1
        unit = torch.cat((span.new_ones(1), span.cumprod(0)[:-1]))  # one number for each vertex
        codes, vertex = torch.unique(((keys - low) * unit).sum(2), return_inverse=True)
        every = unit.sum()
        neighbors = []
        for axis in range(d + 1):
            along = (d + 1) * unit[axis] - every if axis < d else -every
            both = torch.stack((codes + along, codes - along), 1)
            found = torch.searchsorted(codes, both).clamp(max=len(codes) - 1)
            neighbors.append(torch.where(codes[found] == both, found + 1, 0))
        return cls(vertex + 1, weight, torch.stack(neighbors))

    def norm(self) -> Tensor:
        """The factor (1, P) by which what was blurred is a mean."""
        return 1 / (self.blur(self.weight.new_ones(1, len(self.weight))) + 1e-20)

    def blur(self, values: Tensor) -> Tensor:
        """Values (C, P), each the weighted mean of those around it, but for a factor. Source: seqCompute."""
        d = self.weight.shape[1] - 1
        spread = (values.T[:, None] * self.weight[..., None]).flatten(0, 1)
        held = values.new_zeros(self.neighbors.shape[1] + 1, len(values)).index_add(0, self.vertex.flatten(), spread)
        for axis in range(d + 1):
            near = held[self.neighbors[axis]].sum(1)
            held = torch.cat((held[:1], held[1:] + near / 2))
        return (held[self.vertex] * self.weight[..., None]).sum(1).T / (1 + 2.0**-d)
