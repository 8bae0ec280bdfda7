"""The compiled parts of Faster R-CNN and its descendants, in NumPy, for scripts whose copy is not compiled.

Their Cython and CUDA modules are ``nms.cpu_nms``, ``nms.gpu_nms`` and ``utils.cython_bbox``; Fast R-CNN's is
``utils.cython_nms``. Boxes are (x1, y1, x2, y2), whose last pixel belongs to them. Source: lib/nms, lib/utils of
py-faster-rcnn.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from caffe_port.pycaffe.settings import note
from caffe_port.typing import Array


def bbox_overlaps(boxes: Array, query_boxes: Array) -> Array:
    """Intersection over union of (N, 4) and (K, 4), float64 (N, K)."""
    one, other = (np.asarray(given, np.float64) for given in (boxes, query_boxes))
    low, high = np.maximum(one[:, None, :2], other[:, :2]), np.minimum(one[:, None, 2:4], other[:, 2:4])
    common = (high - low + 1).clip(min=0).prod(2)
    areas = [(given[:, 2:4] - given[:, :2] + 1).prod(1) for given in (one, other)]
    found: Array = common / (areas[0][:, None] + areas[1] - common)
    return found


def _kept(dets: Array, drops: Callable[[Array], Array]) -> list[int]:
    """The rows of (N, 5), boxes with their scores, that no kept row of a greater score drops; the greatest first."""
    dets = np.asarray(dets, np.float32)
    low, high = dets[:, :2], dets[:, 2:4]
    areas = (high - low + np.float32(1)).prod(1)
    order, kept = dets[:, 4].argsort()[::-1], []
    while order.size:
        best, order = order[0], order[1:]
        kept.append(best)
        sides = np.minimum(high[best], high[order]) - np.maximum(low[best], low[order]) + np.float32(1)
        common = sides.clip(min=0).prod(1)
        order = order[~drops(common / (areas[best] + areas[order] - common))]
    return kept


def cpu_nms(dets: Array, thresh: float) -> list[int]:
    """The rows of (N, 5) that remain: others overlap a better one by at least the threshold."""
    return _kept(dets, lambda overlap: overlap >= thresh)


def gpu_nms(dets: Array, thresh: float, device_id: int = 0) -> list[int]:  # noqa: ARG001 - it runs on the CPU
    """The rows of (N, 5) that remain: others overlap a better one by more than the threshold."""
    return _kept(dets, lambda overlap: overlap > np.float32(thresh))


_PARTS: dict[str, dict[str, Callable[..., Any]]] = {
    "cpu_nms": {"cpu_nms": cpu_nms},
    "cython_bbox": {"bbox_overlaps": bbox_overlaps},
    "cython_nms": {"nms": cpu_nms},
    "gpu_nms": {"gpu_nms": gpu_nms},
}


class Parts(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds these modules, in any package, where nothing else finds them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.rpartition(".")[2] not in _PARTS:
            return None
        note(f"{fullname} is not compiled; caffe-port's own functions stand for it")
        return importlib.machinery.ModuleSpec(fullname, self)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__.update(_PARTS[module.__name__.rpartition(".")[2]])
