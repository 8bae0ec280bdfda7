"""Average precision of detections, as SSD's solver measures it.

All sums are in float32 like there: whether 0.7 of the objects are found by 7 of 10 decides about a point of the curve.
Source: Solver::TestDetection, and ComputeAP of bbox_util.cpp (weiliu89/caffe).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from caffe_port.errors import CaffePortError, did_you_mean
from caffe_port.typing import Array

VERSIONS = ("11point", "MaxIntegral", "Integral", "101point")
"""``ap_version`` of a solver: of VOC 2007; of VOC 2012 and ILSVRC; the area below the curve as it is; and of COCO, but
at one overlap (Cascade R-CNN).
"""
_POINTS = {"11point": 10, "101point": 100}
_EPS = np.float32(1e-6)


def check_version(version: str, where: str = "") -> None:
    """Raises CaffePortError for an ap_version that SSD does not have."""
    if version not in VERSIONS:
        near = did_you_mean(version, VERSIONS)
        raise CaffePortError(f"ap_version '{version}' is not one of {', '.join(VERSIONS)}.{near}", where)


@dataclass
class Detections:
    """What the rows of DetectionEvaluate add up to: those of any number of batches.

    Attributes:
        objects: the number of true boxes by class.
        found: by class, scores and whether each is right; detections that are neither right nor wrong are left out.
    """

    objects: dict[int, int] = field(default_factory=dict)
    found: dict[int, list[Array]] = field(default_factory=dict)

    def add(self, rows: Array) -> None:
        """Takes in the rows (.., 5) of a batch."""
        rows = np.asarray(rows, np.float32).reshape(-1, 5)
        counts = rows[:, 0] == -1
        for _, label, number, _, _ in rows[counts]:
            self.objects[int(label)] = self.objects.get(int(label), 0) + int(number)
        rows = rows[~counts]
        rows = rows[(rows[:, 3] != 0) | (rows[:, 4] != 0)]
        for label in np.unique(rows[:, 1]):
            self.found.setdefault(int(label), []).append(rows[rows[:, 1] == label][:, 2:4])

    def by_class(self, version: str) -> dict[int, float]:
        """The average precision of each class that was detected at all."""
        made = {}
        for label in sorted(self.objects):
            if label in self.found:
                table = np.concatenate(self.found[label])
                made[label] = average_precision(table[:, 0], table[:, 1] != 0, self.objects[label], version)
        return made

    def mean(self, version: str) -> float:
        """The mean over all classes; one that was never detected counts as 0, and so does one without objects."""
        values = self.by_class(version).values()
        total = np.float32(0)
        for value in values:
            total += np.float32(value)
        return float(total / np.float32(len(self.objects))) if self.objects else 0.0


def average_precision(scores: Array, right: Array, objects: int, version: str) -> float:
    """The average precision of a class.

    Args:
        scores: (n) of the detections; those that are equal stay in order.
        right: whether each is right, bool (n).
        objects: the number of objects that there are.
        version: one of :data:`VERSIONS`.
    """
    check_version(version)
    if not len(scores) or not objects:
        return 0.0
    order = np.argsort(-np.asarray(scores, np.float32), kind="stable")
    hits = np.cumsum(right[order])
    precision = hits.astype(np.float32) / np.arange(1, len(order) + 1).astype(np.float32)
    recall = hits.astype(np.float32) / np.float32(objects)
    if version in _POINTS:
        reached, most = recall.astype(np.float64), _POINTS[version]  # 0.7 in float32 is less than 0.7 in float64
        points = [np.float32(precision[reached >= k / most].max(initial=0)) for k in range(most, -1, -1)]
        return float(sum((point / np.float32(most + 1) for point in points), np.float32(0)))
    if version == "MaxIntegral":
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        later = np.append(recall[1:], recall[-1])
        steps = np.where(np.abs(later - recall) > _EPS, later - recall, np.float32(0))[:-1]
        total = np.float32(0)
        for k in range(len(steps) - 1, -1, -1):
            total += precision[k] * steps[k]
        return float(total + recall[0] * precision[0])
    earlier = np.append(np.float32(0), recall[:-1])
    steps = np.where(np.abs(recall - earlier) > _EPS, recall - earlier, np.float32(0))
    total = np.float32(0)
    for share, step in zip(precision, steps, strict=True):
        total += share * step
    return float(total)
