"""The boxes of an image, as SSD's code computes with them: in float32, as fractions of the image.

Source: bbox_util.cpp, sampler.cpp, data_transformer.cpp of SSD (weiliu89/caffe).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.typing import Array


@dataclass(frozen=True)
class Objects:
    """The objects of an image, in the order of their groups.

    Attributes:
        labels, instances: int64 (n): the class, and the number within its group.
        corners: float32 (n, 4): xmin, ymin, xmax, ymax.
        difficult: bool (n).
    """

    labels: Array
    instances: Array
    corners: Array
    difficult: Array

    def __len__(self) -> int:
        return len(self.labels)

    def chosen(self, kept: Array, corners: Array) -> Objects:
        """Those of a mask, with other corners, of which the mask chooses, too."""
        return Objects(self.labels[kept], self.instances[kept], corners[kept], self.difficult[kept])

    def mirrored(self) -> Objects:
        """From left to right."""
        corners = self.corners.copy()
        corners[:, 0], corners[:, 2] = 1 - self.corners[:, 2], 1 - self.corners[:, 0]
        return replace(self, corners=corners)

    def rows(self, item: int) -> Array:
        """Rows of a label top, float32 (n, 8): item, label, instance, four corners, difficult."""
        columns = [np.full(len(self), item), self.labels, self.instances, *self.corners.T, self.difficult]
        return np.stack(columns, 1).astype(np.float32) if len(self) else np.zeros((0, 8), np.float32)


def objects(rows: Sequence[tuple[int, int, tuple[float, float, float, float], bool]]) -> Objects:
    """Objects of (label, instance, corners, difficult) each."""
    labels, instances, corners, difficult = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Objects(
        np.array(labels, np.int64),
        np.array(instances, np.int64),
        np.array(corners, np.float32).reshape(-1, 4),
        np.array(difficult, bool),
    )


def sizes(boxes: Array) -> Array:
    """The areas; 0 for a box whose corners are exchanged."""
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return np.where((width < 0) | (height < 0), np.float32(0), width * height)


def intersections(box: Array, boxes: Array) -> Array:
    """The areas that a box has in common with others."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    return sizes(np.concatenate((low, high), 1))


def overlaps(box: Array, boxes: Array) -> Array:
    """Intersection over union of a box with others."""
    common = intersections(box, boxes)
    both = sizes(box) + sizes(boxes) - common
    return np.asarray(np.divide(common, both, out=np.zeros_like(common), where=common > 0))


def clipped(boxes: Array) -> Array:
    """Within the image."""
    return np.asarray(np.clip(boxes, np.float32(0), np.float32(1)))


def projected(window: Array, corners: Array) -> tuple[Array, Array]:
    """Boxes as fractions of a window of the image, clipped to it; and which of them reach into it."""
    inside = (corners[:, :2] < window[2:]).all(1) & (corners[:, 2:] > window[:2]).all(1)
    side = np.tile(window[2:] - window[:2], 2)
    moved = clipped((corners - np.tile(window[:2], 2)) / side)
    return moved, inside & (sizes(moved) > 0)


def emitted(window: Array, corners: Array, constraint: Message | None) -> Array:
    """Which boxes an EmitConstraint lets through: their center, or more than a share of them, is in the window."""
    if constraint is None:
        return np.ones(len(corners), bool)
    if constraint.emit_type == "CENTER":
        center = (corners[:, :2] + corners[:, 2:]) / 2
        return np.asarray(((center >= window[:2]) & (center <= window[2:])).all(1))
    common, own = intersections(window, corners), sizes(corners)
    share = np.divide(common, own, out=np.zeros_like(common), where=common > 0)
    return np.asarray(share > np.float32(constraint.emit_overlap))


def seen(found: Objects, window: Array, constraint: Message | None) -> Objects:
    """The objects as fractions of a window; those that are outside, or that the constraint leaves out, are gone."""
    corners, kept = projected(window, found.corners)
    return found.chosen(kept & emitted(window, found.corners, constraint), corners)


def check_samplers(samplers: Sequence[Message]) -> None:
    """Raises SpecError for a batch_sampler that SSD refuses, too."""
    for one in (sampler.sampler for sampler in samplers):
        scale, ratio = (one.min_scale, one.max_scale), (one.min_aspect_ratio, one.max_aspect_ratio)
        if not 0 < scale[0] <= scale[1] <= 1:
            raise SpecError(f"batch_sampler: scales from {scale[0]:g} to {scale[1]:g} are not within (0, 1]")
        if not 0 < ratio[0] <= ratio[1] < np.inf:
            raise SpecError(f"batch_sampler: aspect ratios from {ratio[0]:g} to {ratio[1]:g} are not above 0, in order")


def sampled(found: Objects, samplers: Sequence[Message], rng: np.random.Generator) -> list[Array]:
    """Windows of the image that BatchSamplers draw: of every sampler up to max_sample of max_trials.

    Source: GenerateBatchSamples.
    """
    windows: list[Array] = []
    for sampler in samplers:
        if not sampler.use_original_image:
            continue
        most = sampler.max_sample if sampler.has("max_sample") else sampler.max_trials
        count = 0
        for _ in range(sampler.max_trials):
            if count >= most:
                break
            window = _window(sampler.sampler, rng)
            if _satisfies(window, found.corners, sampler.sample_constraint):
                windows.append(window)
                count += 1
    return windows


def _window(sampler: Message, rng: np.random.Generator) -> Array:
    """Source: SampleBBox."""

    def draw(low: float, high: float) -> np.float32:
        return np.float32(rng.uniform(low, max(low, high)))

    scale = draw(sampler.min_scale, sampler.max_scale)
    ratio = draw(sampler.min_aspect_ratio, sampler.max_aspect_ratio)
    ratio = min(max(ratio, scale * scale), 1 / (scale * scale))
    width, height = scale * np.sqrt(ratio), scale / np.sqrt(ratio)
    left, top = draw(0, 1 - width), draw(0, 1 - height)
    return np.array((left, top, left + width, top + height), np.float32)


def _satisfies(window: Array, corners: Array, constraint: Message) -> bool:
    """Whether any object fulfills the first of the three constraints that are given. SSD's code looks at the others
    only to go on to the next object, and at nothing more once one was fulfilled.

    Source: SatisfySampleConstraint.
    """
    for name in ("jaccard_overlap", "sample_coverage", "object_coverage"):
        least, most = f"min_{name}", f"max_{name}"
        if not (constraint.has(least) or constraint.has(most)):
            continue
        if name == "jaccard_overlap":
            values = overlaps(window, corners)
        else:
            common = intersections(window, corners)
            whole = sizes(window) if name == "sample_coverage" else sizes(corners)
            values = np.divide(common, whole, out=np.zeros_like(common), where=common > 0)
        fits = np.ones(len(values), bool)
        if constraint.has(least):
            fits &= values >= np.float32(getattr(constraint, least))
        if constraint.has(most):
            fits &= values <= np.float32(getattr(constraint, most))
        return bool(fits.any())
    return True
