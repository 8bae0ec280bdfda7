"""Detects, from values alone, BatchNorm and Scale that a port has folded into the weights of the layer before them.

The top of a Convolution or InnerProduct and the tops of the layers that may be folded into it differ by a factor and a
shift per channel, ``y = factor * x + shift``. The output of a call is fitted in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from caffe_port.spec import LayerSpec, Producer
from caffe_port.typing import Array
from caffe_port.verification.comparison import Tolerance, difference
from caffe_port.verification.references.reference import Case

_SAME = 1e-3
"""The tolerance for two per-channel values to be called equal, relative to the largest of the channels."""


def how_many(tops: Sequence[Array], made: Array, tolerance: Tolerance) -> int:
    """How many of the layers after a layer are folded into the weights of its call.

    Args:
        tops: the reference's tops of the layer and of those after it, in order, all (N, C, ...).
        made: the output of the call for the reference's bottom, of the same shape.
    """
    if made.shape != tops[0].shape:
        return 0
    for n, top in enumerate(tops):
        if difference(top, made, tolerance).passed:
            return n
    fitted = _fit(tops[0], made)
    if fitted is not None:  # Caffe's weights up to a factor and a shift: a wrong fold, or no fold at all
        return 0 if _close(fitted[0], np.ones_like(fitted[0])) else len(tops) - 1
    return int(np.argmin([difference(top, made, tolerance).relative for top in tops]))


def _fit(x: Array, y: Array) -> tuple[Array, Array] | None:
    """Factor and shift of each channel, both (C,); None if these do not explain ``y``.

    The factor of a constant channel cannot be determined and is 1.
    """
    x, y = (np.moveaxis(np.asarray(a, np.float64), 1, 0).reshape(a.shape[1], -1) for a in (x, y))
    if x.shape[1] < 3:
        return None
    mean_x, mean_y = x.mean(1, keepdims=True), y.mean(1, keepdims=True)
    spread = ((x - mean_x) ** 2).sum(1)
    constant = spread <= 1e-12 * (x**2).sum(1)
    factor = np.where(constant, 1.0, ((x - mean_x) * (y - mean_y)).sum(1) / np.where(constant, 1.0, spread))
    shift = mean_y[:, 0] - factor * mean_x[:, 0]
    left = np.abs(y - factor[:, None] * x - shift[:, None]).max()
    return (factor, shift) if np.isfinite(left) and left <= _SAME * np.abs(y).max() else None


def _close(one: Array, other: Array) -> bool:
    return bool(np.abs(one - other).max(initial=0) <= _SAME * np.abs(other).max(initial=0))


def cause_of(
    case: Case, layer: LayerSpec, folded: Sequence[LayerSpec], tops: Mapping[Producer, Array], made: Array
) -> str:
    """The likely mistake in a fold; empty if no known one explains the difference.

    Args:
        case: the Caffe net.
        layer: the layer that a call computes.
        folded: the layers after it that are folded into its weights.
        tops: the reference's tops.
        made: the output of the call for the reference's bottom.
    """
    x = np.asarray(tops[layer.name, 0])
    y = np.asarray(tops[folded[-1].name, 0])
    right, wrong = _fit(x, y), (_fit(x, made) if made.shape == x.shape else None)
    names, verb = told(folded), "was" if len(folded) == 1 else "were"
    if right is None or wrong is None:
        return f"its weights are neither those of '{layer.name}' nor those with {names} folded in"
    if _close(wrong[0], right[0]):
        return _bias_cause(case, layer, right, wrong, names, verb)
    for one in folded:
        if one.type == "BatchNorm":
            eps = _eps(case.blobs[one.name], one.param.batch_norm_param.eps, right[0], wrong[0])
            if eps is not None:
                return f"'{one.name}' was folded in with an eps of about {eps[0]:.2g}, Caffe's is {eps[1]:g}"
    wrong_factors = int((np.abs(wrong[0] - right[0]) > _SAME * np.abs(right[0])).sum())
    return f"{names} {verb} folded in incorrectly: the factor of {wrong_factors} of {len(right[0])} channels is wrong"


def _bias_cause(
    case: Case, layer: LayerSpec, right: tuple[Array, Array], wrong: tuple[Array, Array], names: str, verb: str
) -> str:
    """The likely mistake if only the shift differs."""
    blobs = case.blobs.get(layer.name, ())
    own = np.asarray(blobs[1], np.float64).reshape(-1) if len(blobs) > 1 else np.zeros_like(right[0])
    whole, found = right[1] + right[0] * own, wrong[1] + wrong[0] * own  # the bias that the call should have, and has
    scale = _SAME * max(np.abs(whole).max(), np.abs(right[1]).max())
    if np.abs(found).max() <= scale:
        return f"the factor of {names} is folded in, but the bias is missing"
    if np.abs(found - right[1]).max() <= scale:
        return f"the bias of '{layer.name}' was lost when {names} {verb} folded in"
    if np.abs(found - own).max() <= scale:
        return f"the factor of {names} is folded in, but the bias is still that of '{layer.name}'"
    return f"the factor of {names} is folded in, but the bias is wrong"


def _eps(blobs: Sequence[Array], eps: float, right: Array, wrong: Array) -> tuple[float, float] | None:
    """The eps that explains the wrong factors, and Caffe's; None if no eps does."""
    sums, divisor = np.asarray(blobs[1], np.float64).reshape(-1), float(np.asarray(blobs[2]).reshape(-1)[0])
    variance = sums / (divisor or 1.0)
    with np.errstate(all="ignore"):
        found = (variance + eps) * (right / wrong) ** 2 - variance
        weight = np.where(np.isfinite(found), 1 / (variance + eps) ** 2, 0.0)  # small variances determine it best
        other = float((np.where(weight > 0, found, 0.0) * weight).sum() / weight.sum())
        predicted = right * np.sqrt((variance + eps) / (variance + other))
    return (other, eps) if np.isfinite(predicted).all() and _close(predicted, wrong) else None


def told(layers: Sequence[LayerSpec]) -> str:
    """The names of the layers, joined by "and"."""
    return " and ".join(f"'{layer.name}'" for layer in layers)
