"""Says in words how a tensor differs from the one that it should be: scaled, shifted, reordered, clipped, cut, ..."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from caffe_port.typing import Array
from caffe_port.verification.comparison import Tolerance, difference
from caffe_port.verification.diagnose import bfloat16

_MAX_CHANNELS = 128


def relation(made: Array, right: Array, tolerance: Tolerance, parts: bool = True) -> str:
    """What was done to ``right`` to get ``made``, as in "is 0.5 times it"; empty if nothing known explains it.

    Args:
        made: what the port has.
        right: what it should be.
        parts: also look for channels that differ while the others agree.
    """
    made, right = np.asarray(made, np.float64), np.asarray(right, np.float64)
    if not made.size or not np.isfinite(right).all():
        return ""
    for words, wrong in (("NaN", np.isnan(made)), ("infinite", np.isinf(made))):
        if wrong.any():
            return (
                f"is {words} everywhere" if wrong.all() else f"is {words} in {int(wrong.sum())} of {made.size} values"
            )
    if made.shape != right.shape and made.size == right.size and made.shape[:1] == right.shape[:1]:
        same = made.reshape(right.shape)
        if difference(right, same, tolerance).passed:
            return f"has the shape {made.shape}, Caffe's {right.shape}"
    scale = float(np.abs(right).max())

    def explains(guess: Array) -> bool:
        if guess.shape != made.shape or float(np.ptp(guess)) < 1e-3 * min(1.0, float(np.ptp(right))):
            return False
        left = difference(guess, made, tolerance)
        return left.passed or (np.isfinite(left.greatest) and left.greatest <= 1e-5 * max(scale, 1e-30))

    with np.errstate(all="ignore"):
        for words, guess in _guesses(made, right):
            if explains(guess):
                return words
        found = _scaled(made, right, explains)
        if not found and right.ndim == 4 and right.shape[1] == 3 and made.shape == right.shape:
            found = _scaled(made, right[:, ::-1], explains)
            found = found and f"has its channels in reverse order (RGB and BGR are swapped), and {found}"
        return found or (_in_part(made, right, tolerance) if parts else "")


def _in_part(made: Array, right: Array, tolerance: Tolerance) -> str:
    """The same for some channels, where the others agree."""
    if made.shape != right.shape:
        return ""
    for axis in {1, right.ndim - 1} if right.ndim > 1 else ():
        a, e = np.moveaxis(made, axis, 0), np.moveaxis(right, axis, 0)
        if len(a) > 4096:
            continue
        wrong = [n for n in range(len(a)) if not difference(e[n], a[n], tolerance).passed]
        if 0 < len(wrong) <= max(1, len(a) // 2):
            words = relation(np.moveaxis(a[wrong], 0, axis), np.moveaxis(e[wrong], 0, axis), tolerance, False)
            shown = ", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else "")
            return words and f"{words} in channels {shown} of axis {axis}, only there"
    return ""


def _guesses(made: Array, right: Array) -> Iterator[tuple[str, Array]]:
    yield from _orders(made, right)
    if made.shape == right.shape:
        yield from _read_as(right)
        if right.ndim > 1 and 1 < right.shape[1] <= _MAX_CHANNELS:
            order = _channel_order(made, right)
            if order is not None:
                yield _order_words(order), right[:, order]
        if right.shape[0] > 1:
            yield "has the items of the batch in reverse order", right[::-1]
        if right.ndim == 4:
            yield "is flipped from left to right", right[:, :, :, ::-1]
            yield "is flipped from top to bottom", right[:, :, ::-1]
            for dy, dx in itertools.product((-2, -1, 0, 1, 2), repeat=2):
                if (dy, dx) != (0, 0):
                    yield (f"is shifted by ({dy}, {dx}) pixels (an offset of a crop or pad)", _moved(right, dy, dx))
        places = tuple(range(2, right.ndim))
        for axes, over in ((places, "each channel of each item"), (tuple(range(1, right.ndim)), "each item")):
            if axes:
                centered = right - right.mean(axes, keepdims=True)
                yield f"has the mean of {over} subtracted", centered
                yield f"is normalized to mean 0 and deviation 1 in {over}", centered / right.std(axes, keepdims=True)
        yield "has a ReLU applied to it", np.maximum(right, 0)
        low, high = float(made.min()), float(made.max())
        if high > low:
            yield f"is clipped (clamp) to at most {high:g}", np.minimum(right, high)
            yield f"is clipped (clamp) to at least {low:g}", np.maximum(right, low)
            yield f"is clipped (clamp) to {low:g} ... {high:g}", np.clip(right, low, high)
        yield "is rounded to half precision (float16)", right.astype(np.float16).astype(np.float64)
        yield "is rounded to bfloat16", bfloat16(right)
        yield "is rounded to whole numbers", np.round(right)
        yield "has the opposite sign", -right
        yield "is squared", right**2
        yield "has a sigmoid applied to it", 1 / (1 + np.exp(-right))
        yield "is its logarithm", np.log(np.maximum(right, 1e-45))
        yield "is its exponential", np.exp(right)
        yield "is its absolute value", np.abs(right)
        ones = made == 1
        both = made.size > 4 and ones.any() and not ones.all() and bool(np.isin(made, (0, 1)).all())
        if both and float(right[~ones].max()) <= float(right[ones].min()):
            yield "is 0 or 1: a threshold is applied to the output", made
        for axis in range(right.ndim):
            e = np.exp(right - right.max(axis, keepdims=True))
            yield f"has a softmax over axis {axis} applied to it", e / e.sum(axis, keepdims=True)
            norm = np.sqrt((right**2).sum(axis, keepdims=True))
            yield f"is normalized to length 1 over axis {axis}", right / np.maximum(norm, 1e-12)
    elif made.ndim == right.ndim == 4 and made.shape[:2] == right.shape[:2]:
        h, w = made.shape[2:]
        if h <= right.shape[2] and w <= right.shape[3]:
            for y, x in itertools.product(range(right.shape[2] - h + 1), range(right.shape[3] - w + 1)):
                if y < 9 and x < 9:
                    yield f"is cropped to {h} x {w} at the offset ({y}, {x})", right[:, :, y : y + h, x : x + w]
    if made.ndim == right.ndim and made.shape[0] < right.shape[0]:
        yield f"is only the first {made.shape[0]} of {right.shape[0]} items of the batch", right[: made.shape[0]]
    if made.ndim == right.ndim and made.ndim > 1 and made.shape[1] < right.shape[1] and made.shape[0] == right.shape[0]:
        n = made.shape[1]
        for start in (0, right.shape[1] - n):
            yield f"is only {n} of {right.shape[1]} channels, from {start} on", right[:, start : start + n]


def _moved(right: Array, dy: int, dx: int) -> Array:
    out = np.zeros_like(right)
    h, w = right.shape[2:]
    ys, yd = slice(max(0, dy), min(h, h + dy)), slice(max(0, -dy), min(h, h - dy))
    xs, xd = slice(max(0, dx), min(w, w + dx)), slice(max(0, -dx), min(w, w - dx))
    out[:, :, yd, xd] = right[:, :, ys, xs]
    return out


def _orders(made: Array, right: Array) -> Iterator[tuple[str, Array]]:
    """The axes in another order, in the shape of ``made``: a transposed top, or one that was flattened afterwards."""
    if made.size != right.size or right.ndim < 2 or right.ndim > 5:
        return
    names = {(0, 2, 3, 1): "(N, H, W, C)", (0, 1, 3, 2): "(N, C, W, H)", (0, 3, 2, 1): "(N, W, H, C)"}
    for order in itertools.permutations(range(right.ndim)):
        if order == tuple(range(right.ndim)):
            continue
        turned = right.transpose(order)
        if turned.shape != made.shape and made.shape[0] != turned.shape[0]:
            continue
        known = f", {names[order]}" if right.ndim == 4 and order in names else ""
        swapped = " (height and width are swapped)" if right.ndim == 4 and order == (0, 1, 3, 2) else ""
        yield f"is transposed: its axes are in the order {order}{known}{swapped}", turned.reshape(made.shape)


def _read_as(right: Array) -> Iterator[tuple[str, Array]]:
    """The numbers in their order, but read as those of other axes."""
    if right.ndim == 4:
        n, c, h, w = right.shape
        yield "is read as if it were in the order (N, H, W, C)", right.reshape(n, h, w, c).transpose(0, 3, 1, 2)
        yield "is read as if it were in the order (N, C, W, H)", right.reshape(n, c, w, h).swapaxes(2, 3)


def _channel_order(made: Array, right: Array) -> list[int] | None:
    """For each channel of ``made`` the nearest of ``right``; None if that is the same order."""
    flat = (0, *range(2, right.ndim))
    a = np.moveaxis(made, 1, 0).reshape(made.shape[1], -1)[:, :4096]
    e = np.moveaxis(right, 1, 0).reshape(right.shape[1], -1)[:, :4096]
    del flat
    order = [int(np.abs(e - one).max(1).argmin()) for one in a]
    return None if order == list(range(len(order))) else order


def _order_words(order: list[int]) -> str:
    if order == list(range(len(order)))[::-1]:
        return "has its channels in reverse order" + (" (RGB and BGR are swapped)" if len(order) == 3 else "")
    moved = [n for n, c in enumerate(order) if n != c]
    if len(moved) == 2 and sorted(order) == list(range(len(order))):
        return f"has its channels {moved[0]} and {moved[1]} swapped (their order)"
    shown = ", ".join(map(str, order[:12])) + (", ..." if len(order) > 12 else "")
    return f"has its channels in another order: {shown}"


def _scaled(made: Array, right: Array, explains: Callable[[Array], bool]) -> str:
    """A factor and a summand, for all elements or for each channel."""
    if made.shape != right.shape:
        return ""
    if np.ptp(made) == 0:
        return f"is {made.flat[0]:g} everywhere"
    square = float((right * right).sum())
    factor = float((made * right).sum()) / square if square else 1.0
    if explains(factor * right):
        return f"is {_factor(factor)} times Caffe's (its scale)"
    shift = float((made - right).mean())
    if explains(right + shift):
        sign, verb = ("plus", "added") if shift > 0 else ("minus", "subtracted")
        return f"is Caffe's {sign} {abs(shift):.6g} (a mean or an offset is {verb})"
    centered = right - right.mean()
    spread = float((centered * centered).sum())
    if spread:
        factor = float((made * centered).sum()) / spread
        shift = float(made.mean() - factor * right.mean())
        if factor and explains(factor * right + shift):
            mean = -shift / factor
            return (
                f"is Caffe's {'minus' if mean > 0 else 'plus'} {abs(mean):.6g}, times {_factor(factor)} "
                "(a mean is subtracted and a scale applied)"
            )
    if right.ndim > 1 and right.shape[1] > 1 and right.size > 4 * right.shape[1]:
        axes = (0, *range(2, right.ndim))
        mean_r, mean_m = right.mean(axes, keepdims=True), made.mean(axes, keepdims=True)
        spreads = ((right - mean_r) ** 2).sum(axes, keepdims=True)
        factors = ((made - mean_m) * (right - mean_r)).sum(axes, keepdims=True) / np.where(spreads, spreads, 1.0)
        if explains(factors * (right - mean_r) + mean_m):
            means = mean_r - mean_m / np.where(factors, factors, 1.0)
            shown = ", ".join(f"{m:.4g}" for m in means.reshape(-1)[:4])
            scales = ", ".join(f"{f:.4g}" for f in factors.reshape(-1)[:4])
            return f"has a mean subtracted ({shown}) and a scale applied ({scales}) in each channel"
    return ""


def _factor(factor: float) -> str:
    known = {1 / 255: "1/255", 1 / 256: "1/256", 1 / 128: "1/128", 1 / 127.5: "1/127.5"}
    words = next((w for value, w in known.items() if abs(factor - value) < 1e-6), "")
    return f"{factor:.6g}" + (f" ({words})" if words else "")
