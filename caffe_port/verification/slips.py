"""Known porting mistakes, and what a layer that has one would compute.

Each mistake is a sentence about the candidate ("it rounds the size down"), and is computed by the formulas of
:mod:`caffe_port.verification.references.numpy_formulas` with one thing changed. The diagnosis does not look into the
candidate, so it works for any module.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from caffe_port.formats.message import Message
from caffe_port.signatures.signature import Trait, keeps_blobs, types_with
from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas import FORMULAS, Layer
from caffe_port.verification.references.numpy_formulas.formulas import given, spatial
from caffe_port.verification.references.numpy_formulas.spatial import pool

Guess = tuple[str, Array]
"""What the candidate does, and what its first top would then be."""

Hypothesis = Callable[[Layer, Array], Iterator[Guess]]
"""(the layer, the candidate's top) -> guesses. The constant of a mistake may be estimated from the candidate's top."""

HYPOTHESES: dict[str, list[Hypothesis]] = {}
"""Layer type -> its known mistakes, most likely first; ``"*"`` lists those that can happen in any layer."""


def slip(*types: str) -> Callable[[Hypothesis], Hypothesis]:
    """Registers a candidate cause for layer types."""

    def register(function: Hypothesis) -> Hypothesis:
        for type_ in types:
            HYPOTHESES.setdefault(type_, []).append(function)
        return function

    return register


def _top(q: Layer) -> Array:
    """The first top of a layer, computed by its formula."""
    made = FORMULAS[q.param.type](q)
    return made if isinstance(made, np.ndarray) else np.asarray(made[0])


def _with(q: Layer, message: str, **fields: object) -> Layer:
    """The layer with some parameters changed."""
    own = getattr(q.param, message).copy(**fields)
    return dataclasses.replace(q, param=q.param.copy(**{message: own}))


def _blobs(q: Layer, *blobs: Array) -> Layer:
    return dataclasses.replace(q, blobs=blobs)


def _bottoms(q: Layer, *bottoms: Array) -> Layer:
    return dataclasses.replace(q, bottoms=bottoms)


# -- windows --------------------------------------------------------------------------------------------------------


@slip("Pooling")
def rounding(q: Layer, _: Array) -> Iterator[Guess]:
    p = q.param.pooling_param
    up = p.round_mode == "CEIL" and p.ceil_mode and not p.round_below
    changed = _with(q, "pooling_param", round_mode="FLOOR" if up else "CEIL", ceil_mode=not up, round_below=None)
    cause = "down (ceil_mode=False), Caffe rounds it up" if up else "up, Caffe rounds it down"
    yield f"it rounds the size {cause}", _top(changed)


@slip("Pooling")
def divisor(q: Layer, _: Array) -> Iterator[Guess]:
    p, x = q.param.pooling_param, q.x
    if p.pool != "AVE" or p.global_pooling:
        return
    k, s, pad = (
        spatial(list(getattr(p, o)), given(p, f"{n}_h"), given(p, f"{n}_w"), 2, d)
        for n, o, d in (("kernel", "kernel_size", 1), ("stride", "stride", 1), ("pad", "pad", 0))
    )
    for ceil, rounded in ((True, ""), (False, "; it also rounds the size down")):
        mean = pool(x, "AVE", k, s, pad, ceil)[0]
        ones = pool(np.ones_like(x), "AVE", k, s, pad, ceil)[0]  # the share of a window that is inside the image
        yield (
            f"it does not count the padding in the average (count_include_pad=False), Caffe does{rounded}",
            mean / np.where(ones, ones, 1),
        )
        wide = np.pad(x, [(0, 0), (0, 0), *((n, n + m) for n, m in zip(pad, k, strict=True))])
        whole = pool(wide, "AVE", k, s, (0, 0))[0][:, :, : mean.shape[2], : mean.shape[3]]
        yield f"it always divides by the kernel area, Caffe by the window clipped to the padded image{rounded}", whole


@slip("Pooling")
def other_pooling(q: Layer, _: Array) -> Iterator[Guess]:
    name, caffe = ("average", "maximum") if q.param.pooling_param.pool == "MAX" else ("maximum", "average")
    other = "AVE" if q.param.pooling_param.pool == "MAX" else "MAX"
    for ceil, rounded in ((True, ""), (False, "; it also rounds the size down")):
        yield (
            f"it takes the {name}, Caffe the {caffe}{rounded}",
            _top(_with(q, "pooling_param", pool=other, round_mode="CEIL" if ceil else "FLOOR")),
        )


@slip("Pooling", "Convolution", "Deconvolution")
def window(q: Layer, actual: Array) -> Iterator[Guess]:
    """Kernel size, padding, stride and dilation, one or two of them, on one axis or on all.

    Only values that give the candidate's shape are tried.
    """
    message = "pooling_param" if q.param.type == "Pooling" else "convolution_param"
    p = getattr(q.param, message)
    count = q.x.ndim - 2
    if getattr(p, "global_pooling", False) or count < 1 or actual.ndim != q.x.ndim:
        return
    now = _options(q, p, count)
    told: set[tuple[tuple[str, tuple[int, ...]], ...]] = set()
    for changed in _changes(now, count):
        key = tuple(sorted(changed.items()))
        if key in told or _size(q, {**now, **changed}) not in (None, actual.shape[2:]):
            continue
        told.add(key)
        try:
            made = _top(_with(q, message, **_fields({**now, **changed}, q.param.type)))
        except (ValueError, ZeroDivisionError, IndexError):
            continue
        words = (f"its {n.replace('_', ' ')} is {_side(v)}, Caffe's is {_side(now[n])}" for n, v in changed.items())
        told_so = "; ".join(words)
        if made.shape == actual.shape:
            yield told_so, made
        if q.param.type == "Pooling":
            up = p.round_mode == "CEIL" and p.ceil_mode and not p.round_below
            rounded = {"round_mode": "FLOOR" if up else "CEIL", "ceil_mode": not up, "round_below": None}
            made = _top(_with(q, message, **_fields({**now, **changed}, q.param.type), **rounded))
            if made.shape == actual.shape:
                yield f"{told_so}; it also rounds the size {'down' if up else 'up'}", made


def _options(q: Layer, p: Message, count: int) -> dict[str, tuple[int, ...]]:
    """The window of a layer, a number per axis."""
    found = {
        name: spatial(list(getattr(p, name)), given(p, f"{short}_h"), given(p, f"{short}_w"), count, default)
        for name, short, default in (("pad", "pad", 0), ("stride", "stride", 1))
    }
    if q.param.type == "Pooling":
        found["kernel_size"] = spatial(list(p.kernel_size), given(p, "kernel_h"), given(p, "kernel_w"), count, 1)
    else:
        found["dilation"] = spatial(list(p.dilation), None, None, count, 1)
    return found


def _changes(now: dict[str, tuple[int, ...]], count: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """Other windows, the likeliest first."""
    others = {
        name: [(n,) * count for n in range(name != "pad", max(6, *(v + 3 for v in value))) if (n,) * count != value]
        for name, value in now.items()
    }
    for name, values in others.items():
        yield from ({name: value} for value in values)
    for one, other in itertools.combinations(others, 2):
        yield from ({one: a, other: b} for a in others[one] for b in others[other])
    swapped = {name: value[::-1] for name, value in now.items() if value != value[::-1]}
    yield from ({name: value} for name, value in swapped.items())
    if len(swapped) > 1:
        yield swapped
    for name, value in now.items():
        for axis in range(count):
            for n in range(0 if name == "pad" else 1, max(6, value[axis] + 3)):
                if n != value[axis]:
                    yield {name: (*value[:axis], n, *value[axis + 1 :])}


def _size(q: Layer, options: dict[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """The size of the top; None for Pooling, which is cheap to compute."""
    if q.param.type == "Pooling":
        return None
    sizes = []
    for axis, n in enumerate(q.x.shape[2:]):
        pad, stride, dilation = (options[name][axis] for name in ("pad", "stride", "dilation"))
        extent = dilation * (q.blobs[0].shape[2 + axis] - 1) + 1
        if q.param.type == "Deconvolution":
            sizes.append(stride * (n - 1) + extent - 2 * pad)
        else:
            sizes.append((n + 2 * pad - extent) // stride + 1)
    return tuple(sizes)


def _fields(options: dict[str, tuple[int, ...]], type_: str) -> dict[str, object]:
    """The fields of the message for a window: lists, and neither _h nor _w."""
    found: dict[str, object] = {name: list(value) for name, value in options.items()}
    found |= {f"{name}_{side}": None for name in ("pad", "stride") for side in "hw"}
    if type_ != "Pooling":
        return found
    sides = {f"{name}_{side}": n for name in ("pad", "stride") for side, n in zip("hw", options[name], strict=False)}
    kernel = {f"kernel_{side}": n for side, n in zip("hw", options["kernel_size"], strict=False)}
    return {"pad": None, "stride": None, "kernel_size": None, **sides, **kernel}


def _side(value: tuple[int, ...]) -> str:
    return str(value[0]) if len(set(value)) == 1 else " x ".join(map(str, value))


@slip("Convolution", "Pooling")
def one_sided_padding(q: Layer, actual: Array) -> Iterator[Guess]:
    """Padding after the picture alone, or more there than before it."""
    message = "pooling_param" if q.param.type == "Pooling" else "convolution_param"
    p = getattr(q.param, message)
    count = q.x.ndim - 2
    if getattr(p, "global_pooling", False) or count < 1 or actual.ndim != q.x.ndim:
        return
    now = _options(q, p, count)
    most = max(now["pad"])
    low = -np.inf if q.param.type == "Pooling" and p.pool == "MAX" else 0.0
    for before, after in itertools.product(range(most + 3), repeat=2):
        if before == after:
            continue
        wide = np.pad(q.x, [(0, 0), (0, 0), *[(before, after)] * count], constant_values=low)
        none = _with(q, message, **_fields({**now, "pad": (0,) * count}, q.param.type))
        padded = dataclasses.replace(none, bottoms=[wide])
        if _size(padded, {**now, "pad": (0,) * count}) not in (None, actual.shape[2:]):
            continue
        made = _top(padded)
        if made.shape == actual.shape:
            cause = f"it pads {before} before and {after} after the picture (TensorFlow's SAME)"
            yield f"{cause}, Caffe's pad is {_side(now['pad'])} on both sides", made


@slip("Deconvolution", "Interp", "Upsample")
def interpolation(q: Layer, actual: Array) -> Iterator[Guess]:
    """A resize in place of the layer, to the candidate's size."""
    if q.x.ndim != 4 or actual.ndim != 4 or actual.shape[:2] != q.x.shape[:2]:
        return
    size = (actual.shape[2], actual.shape[3])
    caffe = f"Caffe's is a {q.param.type}"
    for corners in (True, False):
        cause = f"it is a bilinear interpolation (resize) with align_corners={corners}, {caffe}"
        yield cause, _bilinear(q.x, size, corners)
    rows, columns = (np.arange(n) * m // n for n, m in zip(size, q.x.shape[2:], strict=True))
    yield f"it is a nearest-neighbor interpolation (resize), {caffe}", q.x[:, :, rows][:, :, :, columns]


def _bilinear(x: Array, size: tuple[int, int], corners: bool) -> Array:
    for axis, n in zip((2, 3), size, strict=True):
        m = x.shape[axis]
        at = np.arange(n) * ((m - 1) / max(n - 1, 1)) if corners else np.maximum((np.arange(n) + 0.5) * m / n - 0.5, 0)
        low = np.minimum(np.floor(at).astype(int), m - 1)
        high = np.minimum(low + 1, m - 1)
        share = (at - low).reshape((-1, *[1] * (3 - axis)))
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return x


# -- convolutions ---------------------------------------------------------------------------------------------------


@slip("Convolution", "Deconvolution")
def kernel_order(q: Layer, _: Array) -> Iterator[Guess]:
    weight, *bias = q.blobs
    if weight.ndim != 4:
        return
    p = q.param.convolution_param
    flipped = _blobs(q, weight[:, :, ::-1, ::-1], *bias)
    yield "its kernel is flipped (a true convolution), Caffe computes a cross-correlation", _top(flipped)
    if weight.shape[2] == weight.shape[3]:
        yield "the height and width of its kernel are swapped", _top(_blobs(q, weight.swapaxes(2, 3), *bias))
    if weight.shape[0] == weight.shape[1]:
        yield "the input and output channels of its weight are swapped", _top(_blobs(q, weight.swapaxes(0, 1), *bias))
    out = weight.shape[0]
    if p.group > 1 and out > p.group:
        order = np.arange(out).reshape(p.group, -1).T.reshape(-1)
        yield "its groups are interleaved, Caffe's are contiguous", _top(_blobs(q, weight[order], *bias))
        yield (
            "the order of its groups is reversed",
            _top(_blobs(q, weight.reshape(p.group, -1, *weight.shape[1:])[::-1].reshape(weight.shape), *bias)),
        )
        yield "its output channels are interleaved by group", _top(q)[:, order]


@slip("Convolution")
def channel_order(q: Layer, _: Array) -> Iterator[Guess]:
    weight, *bias = q.blobs
    if q.param.convolution_param.group == 1 and weight.ndim > 1 and weight.shape[1] > 1:
        what = "swapped (RGB and BGR)" if weight.shape[1] == 3 else "in reverse order"
        yield f"its input channels are {what}", _top(_blobs(q, weight[:, ::-1], *bias))


@slip("Convolution", "Deconvolution", "InnerProduct")
def no_bias(q: Layer, actual: Array) -> Iterator[Guess]:
    if len(q.blobs) > 1:
        yield "its bias is missing", _top(_blobs(q, q.blobs[0], np.zeros_like(q.blobs[1])))
        yield "its bias is added twice", _top(_blobs(q, q.blobs[0], 2 * q.blobs[1]))
    else:
        made = _top(q)
        if made.shape == actual.shape and made.ndim > 1:
            extra = (actual - made).mean(axis=tuple(i for i in range(made.ndim) if i != 1), keepdims=True)
            yield "it has a bias, Caffe's layer does not (bias_term: false)", made + extra


@slip("Deconvolution")
def deconvolution_groups(q: Layer, _: Array) -> Iterator[Guess]:
    p, weight = q.param.convolution_param, q.blobs[0]
    if p.group == 1:
        return
    if weight.shape[1] == 1 and p.group == q.x.shape[1]:
        yield "all groups use the first kernel", _top(_blobs(q, np.repeat(weight[:1], len(weight), 0), *q.blobs[1:]))
        total = _top(_blobs(q, weight, *[np.zeros_like(b) for b in q.blobs[1:]])).sum(1, keepdims=True)
        yield (
            "it sums over the groups (groups=1), Caffe keeps them separate",
            np.repeat(total, p.num_output, 1) + (q.blobs[1].reshape(-1, 1, 1) if len(q.blobs) > 1 else 0),
        )


# -- products -------------------------------------------------------------------------------------------------------


@slip("InnerProduct")
def weight_transposed(q: Layer, _: Array) -> Iterator[Guess]:
    p, weight = q.param.inner_product_param, q.blobs[0]
    shape = (weight.size // p.num_output, p.num_output)
    stored = weight.reshape(shape[::-1] if not p.transpose else shape)
    yield (
        "it reads its weight as (in, out), Caffe stores (out, in)",
        _top(_blobs(q, stored.reshape(stored.shape[::-1]).T, *q.blobs[1:])),
    )
    if stored.shape[0] == stored.shape[1]:
        yield "its weight is transposed", _top(_blobs(q, stored.T, *q.blobs[1:]))


@slip("InnerProduct", "Flatten", "Reshape")
def flatten_order(q: Layer, _: Array) -> Iterator[Guess]:
    if q.x.ndim != 4 or (q.param.type == "InnerProduct" and q.param.inner_product_param.axis != 1):
        return
    for order, words in (((0, 2, 3, 1), "(H, W, C)"), ((0, 1, 3, 2), "(C, W, H)"), ((0, 3, 2, 1), "(W, H, C)")):
        moved = np.ascontiguousarray(q.x.transpose(order)).reshape(q.x.shape)
        yield f"it flattens in the order {words}, Caffe in the order (C, H, W)", _top(_bottoms(q, moved))
        if q.param.type == "InnerProduct" and not q.param.inner_product_param.transpose:
            weight = q.blobs[0].reshape(-1, *q.x.shape[1:])
            turned = np.ascontiguousarray(weight.transpose(order)).reshape(q.blobs[0].shape)
            yield f"its weight is in the order {words}, Caffe's in (C, H, W)", _top(_blobs(q, turned, *q.blobs[1:]))


# -- normalization --------------------------------------------------------------------------------------------------


@slip("LRN")
def lrn_constants(q: Layer, _: Array) -> Iterator[Guess]:
    p = q.param.lrn_param
    n = p.local_size
    region = "WITHIN_CHANNEL" if p.norm_region == "ACROSS_CHANNELS" else "ACROSS_CHANNELS"
    area = n if p.norm_region == "ACROSS_CHANNELS" else n * n
    yield "it does not divide alpha by the size, Caffe does", _top(_with(q, "lrn_param", alpha=p.alpha * area))
    yield "it divides alpha by the size twice, Caffe once", _top(_with(q, "lrn_param", alpha=p.alpha / area))
    for k in (1.0, 2.0, 0.0):
        if k != p.k and p.norm_region == "ACROSS_CHANNELS":
            yield f"it uses k = {k:g}, Caffe uses k = {p.k:g}", _top(_with(q, "lrn_param", k=k))
            yield (
                f"it uses k = {k:g} and does not divide alpha by the size, Caffe uses k = {p.k:g} and does",
                _top(_with(q, "lrn_param", k=k, alpha=p.alpha * area)),
            )
    yield f"its norm_region is {region}, Caffe's is {p.norm_region}", _top(_with(q, "lrn_param", norm_region=region))
    for beta in (0.5, 0.75, 1.0):
        if beta != p.beta:
            yield f"its beta is {beta:g}, Caffe's is {p.beta:g}", _top(_with(q, "lrn_param", beta=beta))
    for size in (3, 5, 7, 9):
        if size != n:
            yield f"its size is {size}, Caffe's is {n}", _top(_with(q, "lrn_param", local_size=size))


@slip("BatchNorm")
def scale_factor(q: Layer, _: Array) -> Iterator[Guess]:
    if len(q.blobs) != 3:
        return
    mean, variance, factor = q.blobs
    one, f = np.ones_like(factor), float(factor.reshape(-1)[0])
    caffe = "Caffe divides the mean and the variance by it"
    yield f"it does not divide by the scale factor (third blob), {caffe}", _top(_blobs(q, mean, variance, one))
    yield (
        f"it divides only the mean by the scale factor (third blob), {caffe}",
        _top(_blobs(q, mean / (f or 1), variance, one)),
    )
    yield (
        f"it divides only the variance by the scale factor (third blob), {caffe}",
        _top(_blobs(q, mean, variance / (f or 1), one)),
    )
    yield f"it multiplies by the scale factor (third blob), {caffe}", _top(_blobs(q, mean * f, variance * f, one))


@slip("BatchNorm")
def statistics(q: Layer, actual: Array) -> Iterator[Guess]:
    if q.x.ndim < 2 or q.x.shape != actual.shape:
        return
    p = q.param.batch_norm_param
    batch = _with(q, "batch_norm_param", use_global_stats=False)
    yield "it uses the statistics of the batch (training mode), Caffe the stored ones", _top(batch)
    if len(q.blobs) != 3:
        return
    f = float(q.blobs[2].reshape(-1)[0]) or 1.0
    shape = (-1, *([1] * (q.x.ndim - 2)))
    mean, variance = (b.reshape(shape) / f for b in q.blobs[:2])
    centered = q.x - mean
    yield "it divides by the variance, Caffe by its square root", centered / (variance + p.eps)
    yield (
        "it adds eps to the standard deviation, Caffe to the variance (inside the square root)",
        centered / (np.sqrt(variance) + p.eps),
    )
    deviation = np.sqrt(np.maximum(variance, 0))
    yield (
        "its variance is the standard deviation (the square root of Caffe's variance)",
        centered / np.sqrt(deviation + p.eps),
    )
    yield "its variance is the square of Caffe's", centered / np.sqrt(variance**2 + p.eps)
    yield "its variance is corrected for the bias (n / (n - 1))", centered / np.sqrt(variance * _bessel(q.x) + p.eps)
    yield "it does not subtract the mean", q.x / np.sqrt(variance + p.eps)
    yield "it does not normalize: its top is its bottom", q.x
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = actual * actual
        eps = float(np.nansum((centered**2 - variance * weight) * weight) / np.nansum(weight * weight))
    if math.isfinite(eps) and eps > -1e-3:
        about = float(f"{eps:.1e}")
        yield (
            f"its eps is about {about:g}, Caffe's is {p.eps:g}",
            centered / np.sqrt(np.maximum(variance + eps, 1e-30)),
        )


def _bessel(x: Array) -> float:
    n = int(x.size) // int(x.shape[1])
    return n / max(n - 1, 1)


@slip("MVN")
def mvn_eps(q: Layer, _: Array) -> Iterator[Guess]:
    p = q.param.mvn_param
    axes = tuple(range(1 if p.across_channels else 2, q.x.ndim))
    yield (
        "it adds eps to the variance, Caffe to the standard deviation",
        (q.x - q.x.mean(axes, keepdims=True)) / np.sqrt(q.x.var(axes, keepdims=True) + p.eps),
    )
    own, caffe = ("each channel", "all channels") if p.across_channels else ("all channels", "each channel")
    yield (
        f"it normalizes over {own}, Caffe over {caffe} (across_channels)",
        _top(_with(q, "mvn_param", across_channels=not p.across_channels)),
    )


@slip("Scale", "Bias")
def scale_parts(q: Layer, _: Array) -> Iterator[Guess]:
    if q.param.type == "Scale" and len(q.bottoms) == 1:
        gamma, *beta = q.blobs
        if beta:
            yield "its bias is missing", _top(_blobs(q, gamma, np.zeros_like(beta[0])))
            yield "its scale and bias are swapped", _top(_blobs(q, beta[0], gamma.reshape(beta[0].shape)))
        yield "its scale is missing", _top(_blobs(q, np.ones_like(gamma), *beta))


# -- element by element ---------------------------------------------------------------------------------------------


@slip("ReLU", "PReLU")
def slope(q: Layer, actual: Array) -> Iterator[Guess]:
    x = q.x
    told = q.param.relu_param.negative_slope if q.param.type == "ReLU" else 0.0
    if q.param.type == "PReLU" or told:
        yield "its negative slope is missing (it is a plain ReLU)", np.maximum(x, 0)
    yield "the layer is missing: negative values pass unchanged", x
    yield "it clips at 6 (ReLU6), Caffe does not", np.clip(x, 0, 6)
    if q.param.type == "PReLU":
        flat = q.blobs[0].reshape(-1)
        yield "the order of its slopes is reversed", _top(_blobs(q, flat[::-1]))
        mean = _top(_blobs(q, np.full_like(flat, flat[0])))
        yield "it uses the slope of the first channel for all channels", mean
    if x.shape == actual.shape and (x < 0).any():
        below = x < 0
        found = float((actual[below] * x[below]).sum() / (x[below] ** 2).sum())
        caffe = "Caffe's are trained" if q.param.type == "PReLU" else f"Caffe's is {told:g}"
        yield f"its negative slope is {found:.4g}, {caffe}", np.maximum(x, 0) + found * np.minimum(x, 0)


@slip("ReLU6")
def clipped(q: Layer, actual: Array) -> Iterator[Guess]:
    x = q.x
    yield "it does not clip at 6 (it is a plain ReLU)", np.maximum(x, 0)
    yield "the layer is missing: its top is its bottom", x
    high = float(actual.max())
    yield f"it clips at {high:.4g}, Caffe at 6", np.clip(x, 0, high)


@slip("Normalize")
def normalize_parts(q: Layer, _: Array) -> Iterator[Guess]:
    x = q.x
    axes = tuple(range(1, x.ndim))
    scale = q.blobs[0].reshape(-1)
    wide = scale.reshape((-1, *[1] * (x.ndim - 2))) if scale.size > 1 else scale.reshape(-1)[0]
    over: dict[str, tuple[int, ...]] = {"channels": (1,), "space": axes[1:], "channels and space": axes}
    yield "its scale is missing", _top(_blobs(q, np.ones_like(q.blobs[0])))
    for words, some in over.items():
        norm = np.sqrt((x * x).sum(some, keepdims=True))
        told = f"it normalizes over {words} (across_spatial), Caffe in another way"
        yield told, x / np.maximum(norm, 1e-12) * wide
        yield f"{told}; its scale is missing, too", x / np.maximum(norm, 1e-12)
    yield "it does not normalize: its top is its bottom times the scale", x * wide


@slip("ELU")
def elu_alpha(q: Layer, actual: Array) -> Iterator[Guess]:
    x = q.x
    if x.shape == actual.shape and (x < 0).any():
        below = np.expm1(x[x < 0])
        found = float((actual[x < 0] * below).sum() / (below**2).sum())
        told = q.param.elu_param.alpha
        yield f"its alpha is {found:.4g}, Caffe's is {told:g}", _top(_with(q, "elu_param", alpha=found))


@slip("Dropout")
def dropout_active(q: Layer, actual: Array) -> Iterator[Guess]:
    if actual.shape != q.x.shape:
        return
    ratio = q.param.dropout_param.dropout_ratio
    for other in dict.fromkeys((ratio, 0.5, 0.1, 0.2, 0.25, 0.3, 0.4, 0.6, 0.7, 0.75, 0.8)):
        kept = actual != 0
        if not kept.all():
            yield f"dropout is active (training mode) with ratio {other:g}", q.x * kept / (1 - other)
        yield f"it scales by 1 - ratio = {1 - other:g} in TEST, Caffe scales in TRAIN", q.x * (1 - other)


@slip("Softmax")
def softmax_axis(q: Layer, _: Array) -> Iterator[Guess]:
    axis = q.param.softmax_param.axis % q.x.ndim
    for other in range(q.x.ndim):
        if other != axis:
            yield f"its axis is {other}, Caffe's is {axis}", _top(_with(q, "softmax_param", axis=other))
    yield "it computes the logarithm of the softmax", np.log(np.maximum(_top(q), 1e-300))
    yield "the layer is missing: its top is scores, not probabilities", q.x


@slip("Eltwise")
def eltwise_operation(q: Layer, _: Array) -> Iterator[Guess]:
    p = q.param.eltwise_param
    if p.coeff:
        yield "it ignores the coefficients (coeff)", _top(_with(q, "eltwise_param", coeff=None))
    for other in ("SUM", "PROD", "MAX"):
        if other != p.operation:
            yield f"it computes {other}, Caffe computes {p.operation}", _top(_with(q, "eltwise_param", operation=other))
    yield f"it computes MIN, Caffe computes {p.operation}", np.minimum.reduce(list(q.bottoms))
    yield f"it computes the mean, Caffe computes {p.operation}", np.asarray(np.mean(np.stack(list(q.bottoms)), 0))
    for n, bottom in enumerate(q.bottoms):
        yield f"the layer is missing: its top is its bottom {n}", bottom


@slip("Eltwise")
def eltwise_coefficients(q: Layer, actual: Array) -> Iterator[Guess]:
    p = q.param.eltwise_param
    if p.operation != "SUM" or any(b.shape != actual.shape for b in q.bottoms):
        return
    told = [float(c) for c in p.coeff] or [1.0] * len(q.bottoms)
    found = np.linalg.lstsq(np.stack([b.reshape(-1) for b in q.bottoms], 1), actual.reshape(-1), rcond=None)[0]
    words = (", ".join(f"{c:.4g}" for c in some) for some in (found, told))
    made = sum(c * b for c, b in zip(found, q.bottoms, strict=True))
    yield "its coefficients (coeff) are {}, Caffe's are {}".format(*words), np.asarray(made)


@slip("Concat")
def concat_order(q: Layer, _: Array) -> Iterator[Guess]:
    yield "the order of its bottoms is reversed", _top(_bottoms(q, *q.bottoms[::-1]))
    if len(q.bottoms) <= 5:
        for order in itertools.permutations(range(len(q.bottoms))):
            if order != tuple(range(len(q.bottoms))):
                yield (
                    f"the order of its bottoms is {order}, by their places in Caffe",
                    _top(_bottoms(q, *(q.bottoms[n] for n in order))),
                )
    axis = q.param.concat_param.axis % q.x.ndim
    for other in range(q.x.ndim):
        if other != axis and len({b.shape[:other] + b.shape[other + 1 :] for b in q.bottoms}) == 1:
            yield f"its axis is {other}, Caffe's is {axis}", np.concatenate(q.bottoms, other)


# -- rearranged -----------------------------------------------------------------------------------------------------


@slip("Crop")
def crop_offset(q: Layer, actual: Array) -> Iterator[Guess]:
    x = q.x
    if x.ndim != actual.ndim or any(a > n for a, n in zip(actual.shape, x.shape, strict=True)):
        return
    right = _top(q)
    room = [range(n - a + 1) for a, n in zip(actual.shape, x.shape, strict=True)]
    corner = actual[tuple(slice(0, 1) for _ in actual.shape)]
    caffe = _offset_of(x, right, room)
    near = np.abs(x[tuple(slice(0, len(r)) for r in room)] - corner) <= 1e-4 * (1 + np.abs(corner))
    for offset in np.argwhere(near)[:64]:
        cut = x[tuple(slice(o, o + a) for o, a in zip(offset, actual.shape, strict=True))]
        size = "" if right.shape == actual.shape else f" and its size {actual.shape}, Caffe's {right.shape}"
        told = tuple(int(o) for o in offset)
        yield f"its offset is {told[2:] or told}{size}; Caffe's offset is {caffe[2:] or caffe}", cut


def _offset_of(x: Array, cut: Array, room: Sequence[range]) -> tuple[int, ...]:
    for offset in itertools.product(*room):
        if np.array_equal(x[tuple(slice(o, o + a) for o, a in zip(offset, cut.shape, strict=True))], cut):
            return tuple(offset)
    return ()


@slip("Permute")
def permute_order(q: Layer, actual: Array) -> Iterator[Guess]:
    own = tuple(q.param.permute_param.order)
    own = own + tuple(n for n in range(q.x.ndim) if n not in own)
    for order in itertools.permutations(range(q.x.ndim)):
        if order == own:
            continue
        made = q.x.transpose(order)
        if made.size == actual.size and made.shape[0] == actual.shape[0]:
            verb = "the layer is missing: its order is" if order == tuple(range(q.x.ndim)) else "its order is"
            yield f"{verb} {order}, Caffe's is {own}", made.reshape(actual.shape)


@slip("Slice")
def slice_points(q: Layer, actual: Array) -> Iterator[Guess]:
    for axis in range(1, q.x.ndim):
        n = actual.shape[axis] if actual.ndim == q.x.ndim else 0
        if n:
            for start in range(min(q.x.shape[axis] - n + 1, 256)):
                cut = np.take(q.x, range(start, start + n), axis)
                yield f"it takes {start} to {start + n} of axis {axis} (slice_point)", cut


@slip("Power")
def power_parts(q: Layer, _: Array) -> Iterator[Guess]:
    p = q.param.power_param
    for name, neutral in (("shift", 0.0), ("scale", 1.0), ("power", 1.0)):
        if getattr(p, name) != neutral:
            yield f"its {name} is missing", _top(_with(q, "power_param", **{name: neutral}))
    with np.errstate(invalid="ignore", divide="ignore"):
        yield "it shifts before it scales, Caffe shifts after it scales", (p.scale * (q.x + p.shift)) ** p.power


@slip(*sorted(types_with(Trait.ACTIVATION)))
def other_curve(q: Layer, actual: Array) -> Iterator[Guess]:
    """Another activation, with Caffe's default parameters."""
    if len(q.bottoms) != 1 or q.x.shape != actual.shape:
        return
    x = q.x
    gauss = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if x.size <= 1 << 18:
        erf = np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2)) if x.size else x
        yield f"it is a GELU, Caffe's is a {q.param.type}", 0.5 * x * (1 + erf)
    yield f"it is a GELU (by tanh), Caffe's is a {q.param.type}", gauss
    for name in sorted(types_with(Trait.ACTIVATION) - {q.param.type}):
        if name in FORMULAS and not keeps_blobs(name):
            with contextlib.suppress(ValueError, IndexError, NotImplementedError, ZeroDivisionError):
                other = dataclasses.replace(q, param=q.param.copy(type=name), blobs=[])
                yield f"it is a {name}, Caffe's is a {q.param.type}", _top(other)


@slip("LSTM")
def lstm_gates(q: Layer, _: Array) -> Iterator[Guess]:
    ones = np.ones_like(q.bottoms[1])
    yield (
        "it ignores the continuation marks (cont): the state is not reset",
        _top(_bottoms(q, q.x, ones, *q.bottoms[2:])),
    )
    n = len(q.blobs[1]) // 4
    for order in itertools.permutations(range(4)):
        if order != (0, 1, 2, 3):
            rows = np.concatenate([np.arange(g * n, (g + 1) * n) for g in order])
            names = ", ".join("ifog"[g] for g in order)
            moved = [b[rows] if len(b) == 4 * n else b for b in q.blobs]
            yield f"its gates are in the order ({names}), Caffe's in (i, f, o, g)", _top(_blobs(q, *moved))
    for order in itertools.permutations(range(4)):
        if order != (0, 1, 2, 3):
            rows = np.concatenate([np.arange(g * n, (g + 1) * n) for g in order])
            names = ", ".join("ifog"[g] for g in order)
            for k, blob in enumerate(q.blobs):
                if len(blob) == 4 * n:
                    moved = [*q.blobs[:k], blob[rows], *q.blobs[k + 1 :]]
                    yield f"the gates of its blob {k} are in the order ({names})", _top(_blobs(q, *moved))


# -- any layer ------------------------------------------------------------------------------------------------------


@slip("*")
def anything(q: Layer, actual: Array) -> Iterator[Guess]:
    made = _top(q)
    if made.ndim == actual.ndim == 4 and made.shape == (*actual.shape[:2], actual.shape[3], actual.shape[2]):
        yield "the height and width of its top are swapped", made.swapaxes(2, 3)
    if made.shape != actual.shape:
        return
    if made.ndim > 1 and made.shape[1] > 1:
        yield "the channels of its top are in reverse order", made[:, ::-1]
    yield "its top has the opposite sign", -made
    yield "it applies a ReLU to its top, Caffe does not", np.maximum(made, 0)
    if q.x.shape == actual.shape:
        yield "the layer is missing: its top is its bottom", q.x
    yield "its top is all zeros", np.zeros_like(made)
    square = float((made * made).sum())
    if square > 0:
        factor = float((made * actual).sum()) / square
        times = f"{factor:.6g}"
        if times != "1":  # that would explain nothing
            yield f"its top is {times} times Caffe's", made * factor
    offset = float((actual - made).mean())
    yield f"its top is Caffe's {'plus' if offset >= 0 else 'minus'} {abs(offset):.6g}", made + offset
