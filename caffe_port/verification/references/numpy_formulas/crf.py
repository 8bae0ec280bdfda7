"""CRF-RNN's mean field: a loop over points, and a lattice that is a dictionary, as in the sources."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas.formulas import Layer, Result, formula


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
