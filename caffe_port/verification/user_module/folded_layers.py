"""BatchNorm and Scale in the weights of the layer before them, in somebody's own port: seen by the numbers alone.

A top of Convolution or InnerProduct and those of the layers that may be folded into it differ by a factor and a shift
for each channel, ``y = factor * x + shift``. What a call makes is fitted in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from caffe_port.spec import LayerSpec, Source
from caffe_port.typing import Array
from caffe_port.verification.comparison import Tolerance, difference
from caffe_port.verification.references.reference import Case
from caffe_port.verification.user_module.align import Pair, alike

_SAME = 1e-3
"""What two numbers may differ by, relative to the greater of the channels', and be called the same."""


def how_many(tops: Sequence[Array], made: Array, tolerance: Tolerance) -> int:
    """How many of the layers behind one are in the weights of a call.

    Args:
        tops: the reference's tops of the layer and of those behind it, in order, all (N, C, ...).
        made: what the call makes of the reference's bottom, of the same shape.
    """
    if made.shape != tops[0].shape:
        return 0
    for n, top in enumerate(tops):
        if difference(top, made, tolerance).passed:
            return n
    fitted = _fit(tops[0], made)
    if fitted is not None:  # Caffe's weights, but for a factor and a shift: a fold that went wrong, or no fold at all
        return 0 if _close(fitted[0], np.ones_like(fitted[0])) else len(tops) - 1
    return int(np.argmin([difference(top, made, tolerance).relative for top in tops]))


def _fit(x: Array, y: Array) -> tuple[Array, Array] | None:
    """Factor and shift of each channel, both (C,); None where these do not explain ``y``.

    Of a channel that is constant there is no telling: its factor is 1.
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


def cause_of(case: Case, pair: Pair, tops: Mapping[Source, Array], made: Array) -> str:
    """What went wrong in a fold, as a likely cause; empty where nothing known explains it.

    Args:
        case: the Caffe net.
        pair: a call and what is folded into its weights.
        tops: the reference's.
        made: what the call makes of the reference's bottom.
    """
    assert pair.layer is not None
    x = np.asarray(tops[pair.layer.name, 0])
    y = np.asarray(tops[pair.layers[-1].name, 0])
    right, wrong = _fit(x, y), (_fit(x, made) if made.shape == x.shape else None)
    names = told(pair.folded)
    if right is None or wrong is None:
        return f"its weights are neither those of '{pair.layer.name}' nor these with {names} folded in"
    if _close(wrong[0], right[0]):
        return _bias_cause(case, pair, right, wrong, names)
    for layer in pair.folded:
        if layer.type == "BatchNorm":
            eps = _eps(case.blobs[layer.name], layer.param.batch_norm_param.eps, right[0], wrong[0])
            if eps is not None:
                return f"'{layer.name}' was folded in with another eps: about {eps[0]:.2g}, Caffe's {eps[1]:g}"
    return (
        f"{names} were folded in wrongly: {int((np.abs(wrong[0] - right[0]) > _SAME * np.abs(right[0])).sum())} "
        f"of {len(right[0])} channels have another factor"
    )


def _bias_cause(case: Case, pair: Pair, right: tuple[Array, Array], wrong: tuple[Array, Array], names: str) -> str:
    """Why the shift alone differs."""
    assert pair.layer is not None
    blobs = case.blobs.get(pair.layer.name, ())
    own = np.asarray(blobs[1], np.float64).reshape(-1) if len(blobs) > 1 else np.zeros_like(right[0])
    whole, found = right[1] + right[0] * own, wrong[1] + wrong[0] * own  # the bias that the call should have, and has
    scale = _SAME * max(np.abs(whole).max(), np.abs(right[1]).max())
    if np.abs(found).max() <= scale:
        return f"the factor of {names} is in the weights, but the bias is missing"
    if np.abs(found - right[1]).max() <= scale:
        return f"{names} are folded in, but the bias of '{pair.layer.name}' is forgotten"
    if np.abs(found - own).max() <= scale:
        return f"the factor of {names} is in the weights, but the bias is still that of '{pair.layer.name}'"
    return f"the factor of {names} is in the weights, but the bias is another"


def _eps(blobs: Sequence[Array], eps: float, right: Array, wrong: Array) -> tuple[float, float] | None:
    """The eps that explains other factors, and Caffe's; None where none does."""
    sums, divisor = np.asarray(blobs[1], np.float64).reshape(-1), float(np.asarray(blobs[2]).reshape(-1)[0])
    variance = sums / (divisor or 1.0)
    with np.errstate(all="ignore"):
        found = (variance + eps) * (right / wrong) ** 2 - variance
        weight = np.where(np.isfinite(found), 1 / (variance + eps) ** 2, 0.0)  # small variances tell it best
        other = float((np.where(weight > 0, found, 0.0) * weight).sum() / weight.sum())
        predicted = right * np.sqrt((variance + eps) / (variance + other))
    return (other, eps) if np.isfinite(predicted).all() and _close(predicted, wrong) else None


def told(layers: Sequence[LayerSpec]) -> str:
    """Their names, in words."""
    return " and ".join(f"'{layer.name}'" for layer in layers)


def like(actual: Array, expected: Array) -> Array:
    """A flat vector in place of (N, C, 1, 1), or the other way round, is the same top."""
    return actual.reshape(expected.shape) if alike(actual.shape, expected.shape) else actual
