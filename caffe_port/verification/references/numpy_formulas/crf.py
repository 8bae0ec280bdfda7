"""CRF-RNN's and DeepLab's mean fields: a loop over points, and a lattice that is a dictionary, as in the sources."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas.formulas import FLT_MIN, Layer, Result, formula


@formula("MultiStageMeanfield")
def multi_stage_meanfield(layer: Layer) -> Result:
    """Sources: multi_stage_meanfield.cpp, meanfield_iteration.cpp, modified_permutohedral.cpp (torrvision/caffe)."""
    p, (unary, start, image) = layer.param.multi_stage_meanfield_param, layer.bottoms
    height, width = unary.shape[2:]
    spatial, bilateral, compatible = (blob.reshape(blob.shape[-2:]) for blob in layer.blobs)
    places = [(x, y) for y in range(height) for x in range(width)]
    near = _filter([(x / p.theta_gamma, y / p.theta_gamma) for x, y in places])
    tops = []
    for scores, q, colors in zip(unary, start, image, strict=True):
        flat = colors.reshape(3, -1) / p.theta_beta
        points = [(x / p.theta_alpha, y / p.theta_alpha, *flat[:, k]) for k, (x, y) in enumerate(places)]
        alike = _filter(points)
        one = np.ones((1, len(places)))
        norms = [1 / (blur(one) + 1e-20) for blur in (near, alike)]
        scores, q = scores.reshape(len(scores), -1), q.reshape(len(q), -1)
        for _ in range(p.num_iterations):
            e = np.exp(q - q.max(0))
            prob = e / e.sum(0)
            message = spatial @ (near(prob) * norms[0]) + bilateral @ (alike(prob) * norms[1])
            q = scores - compatible @ message
        tops.append(q.reshape(unary.shape[1:]))
    return np.stack(tops)


@formula("DenseCRF")
def dense_crf(layer: Layer) -> Result:
    """Sources: densecrf_layer.cpp, densecrf_pairwise.cpp, densecrf_util.hpp, permutohedral.cpp (hszhao/PSPNet)."""
    p, (unary, sizes, *images) = layer.param.dense_crf_param, layer.bottoms
    top = np.zeros_like(unary)
    for n, scores in enumerate(unary):
        height, width = (int(v) for v in sizes[n].flat[:2])
        if height >= scores.shape[1] and width >= scores.shape[2]:
            height, width = scores.shape[1:]
        places = [(x, y) for y in range(height) for x in range(width)]
        if not places:
            continue
        potentials = []
        for weight, std in zip(p.pos_w, p.pos_xy_std, strict=True):
            potentials.append((weight, _filter([(x / std, y / std) for x, y in places])))
        if images:
            for weight, std, levels in zip(p.bi_w, p.bi_xy_std, p.bi_rgb_std, strict=True):
                points = [(x / std, y / std, *images[0][0][:, y, x] / levels) for x, y in places]
                potentials.append((weight, _filter(points)))
        norms = [1 / (blur(np.ones((1, len(places)))) + 1e-20) for _, blur in potentials]
        start = np.array([scores[:, y, x] for x, y in places]).T
        q = _fast_softmax(start)
        for _ in range(p.max_iter):
            total = start.copy()
            for (weight, blur), norm in zip(potentials, norms, strict=True):
                total += weight * norm * blur(q)
            q = _fast_softmax(total)
        made = q if p.output_probability else np.log(np.maximum(q, FLT_MIN))
        for k, (x, y) in enumerate(places):
            top[n, :, y, x] = made[:, k]
    return top


def _fast_softmax(scores: Array) -> Array:
    """Over the first axis; what is more than 20 below the greatest is nothing."""
    below = scores - scores.max(0)
    e = np.exp(below) * (below >= -20)
    return np.asarray(e / e.sum(0))


def _filter(points: list[tuple[float, ...]]) -> Callable[[Array], Array]:
    """Values (C, P) at the points -> what the lattice makes of them."""
    d = len(points[0])
    width = math.sqrt(2 / 3) * (d + 1)
    number: dict[tuple[int, ...], int] = {}
    corners: list[list[tuple[int, float]]] = []
    for point in points:
        lifted, total = [0.0] * (d + 1), 0.0
        for j in range(d, 0, -1):
            c = point[j - 1] * width / math.sqrt(j * (j + 1))
            lifted[j], total = total - j * c, total + c
        lifted[0] = total
        nearest = [(d + 1) * round(v / (d + 1)) for v in lifted]
        off, rank = sum(nearest) // (d + 1), [0] * (d + 1)
        for i in range(d):
            for j in range(i + 1, d + 1):
                further = lifted[i] - nearest[i] < lifted[j] - nearest[j]
                rank[i if further else j] += 1
        for i in range(d + 1):
            rank[i] += off
            turn = (d + 1) * ((rank[i] < 0) - (rank[i] > d))
            rank[i], nearest[i] = rank[i] + turn, nearest[i] + turn
        weights = [0.0] * (d + 2)
        for i in range(d + 1):
            part = (lifted[i] - nearest[i]) / (d + 1)
            weights[d - rank[i]] += part
            weights[d - rank[i] + 1] -= part
        weights[0] += 1 + weights[d + 1]
        mine = []
        for k in range(d + 1):
            key = tuple(nearest[i] + (k if rank[i] <= d - k else k - (d + 1)) for i in range(d))
            mine.append((number.setdefault(key, len(number)), weights[k]))
        corners.append(mine)

    def beside(key: tuple[int, ...], axis: int, way: int) -> int | None:
        return number.get(tuple(c - way + (way * (d + 1) if i == axis else 0) for i, c in enumerate(key)))

    def blur(values: Array) -> Array:
        held = np.zeros((len(number), len(values)))
        for point, around in enumerate(corners):
            for vertex, weight in around:
                held[vertex] += weight * values[:, point]
        for axis in range(d + 1):
            old = held.copy()
            for key, vertex in number.items():
                for other in (beside(key, axis, 1), beside(key, axis, -1)):
                    held[vertex] += 0 if other is None else old[other] / 2
        rows = [sum(weight * held[vertex] for vertex, weight in around) for around in corners]
        return np.array(rows).T / (1 + 2.0**-d)

    return blur
