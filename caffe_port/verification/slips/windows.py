"""Mistakes of layers with windows: pooling, padding, sizes, interpolation."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from caffe_port.formats.message import Message
from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas import Layer
from caffe_port.verification.references.numpy_formulas.formulas import given, spatial
from caffe_port.verification.references.numpy_formulas.spatial import pool
from caffe_port.verification.slips.slip import Guess, slip, top, with_fields


@slip("Pooling", "Pooling3D")
def rounding(q: Layer, _: Array) -> Iterator[Guess]:
    message = "pooling3d_param" if q.param.has("pooling3d_param") else "pooling_param"
    p = getattr(q.param, message)
    up = p.round_mode == "CEIL" and p.ceil_mode and not p.round_below
    changed = with_fields(q, message, round_mode="FLOOR" if up else "CEIL", ceil_mode=not up, round_below=None)
    cause = "down (ceil_mode=False), Caffe rounds it up" if up else "up, Caffe rounds it down"
    yield f"it rounds the size {cause}", top(changed)


@slip("Pooling3D")
def depth(q: Layer, _: Array) -> Iterator[Guess]:
    if not q.param.has("pooling3d_param"):
        return
    p = q.param.pooling3d_param
    for kernel, stride in itertools.product((1, 2, 3), repeat=2):
        if kernel >= stride and (kernel, stride) != (p.kernel_depth, p.temporal_stride):
            caffe = f"Caffe {p.kernel_depth} with a stride of {p.temporal_stride} (kernel_depth, temporal_stride)"
            made = top(with_fields(q, "pooling3d_param", kernel_depth=kernel, temporal_stride=stride))
            yield f"it takes {kernel} frames with a stride of {stride}, {caffe}", made


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
            top(with_fields(q, "pooling_param", pool=other, round_mode="CEIL" if ceil else "FLOOR")),
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
            made = top(with_fields(q, message, **_fields({**now, **changed}, q.param.type)))
        except (ValueError, ZeroDivisionError, IndexError):
            continue
        words = (f"its {n.replace('_', ' ')} is {_side(v)}, Caffe's is {_side(now[n])}" for n, v in changed.items())
        told_so = "; ".join(words)
        if made.shape == actual.shape:
            yield told_so, made
        if q.param.type == "Pooling":
            up = p.round_mode == "CEIL" and p.ceil_mode and not p.round_below
            rounded = {"round_mode": "FLOOR" if up else "CEIL", "ceil_mode": not up, "round_below": None}
            made = top(with_fields(q, message, **_fields({**now, **changed}, q.param.type), **rounded))
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
        none = with_fields(q, message, **_fields({**now, "pad": (0,) * count}, q.param.type))
        padded = dataclasses.replace(none, bottoms=[wide])
        if _size(padded, {**now, "pad": (0,) * count}) not in (None, actual.shape[2:]):
            continue
        made = top(padded)
        if made.shape == actual.shape:
            cause = f"it pads {before} before and {after} after the picture (TensorFlow's SAME)"
            yield f"{cause}, Caffe's pad is {_side(now['pad'])} on both sides", made


@slip("Convolution", "Pooling")
def other_border(q: Layer, actual: Array) -> Iterator[Guess]:
    """What lies around the picture is made of its border."""
    message = "pooling_param" if q.param.type == "Pooling" else "convolution_param"
    p, count = getattr(q.param, message), q.x.ndim - 2
    if getattr(p, "global_pooling", False) or count < 1 or actual.ndim != q.x.ndim:
        return
    now = _options(q, p, count)
    if not any(now["pad"]):
        return
    none = with_fields(q, message, **_fields({**now, "pad": (0,) * count}, q.param.type))
    for mode, name in (("reflect", "reflect"), ("edge", "replicate"), ("wrap", "circular")):
        wide = np.pad(q.x, [(0, 0), (0, 0), *((n, n) for n in now["pad"])], mode=mode)  # type: ignore[call-overload]
        made = top(dataclasses.replace(none, bottoms=[wide]))
        yield f"it pads with the border of the picture (padding_mode='{name}'), Caffe with zeros", made


@slip("Deconvolution")
def output_padding(q: Layer, actual: Array) -> Iterator[Guess]:
    """More rows and columns at the end than the padding leaves, or the same number with another padding."""
    p, count = q.param.convolution_param, q.x.ndim - 2
    if count < 1 or actual.ndim != q.x.ndim:
        return
    now = _options(q, p, count)
    bias = with_fields(q, "convolution_param", bias_term=False, **_fields({**now, "pad": (0,) * count}, q.param.type))
    whole = top(bias)
    add = q.blobs[1].reshape(-1, *[1] * count) if p.bias_term and len(q.blobs) > 1 else 0.0
    for start in dict.fromkeys((max(now["pad"]), *range(max(q.blobs[0].shape[2:])))):
        more = tuple(n - w + 2 * start for n, w in zip(actual.shape[2:], whole.shape[2:], strict=True))
        if not any(more) or min(more) < 0 or max(more) >= max(max(now["stride"]), max(now["dilation"])) + 1:
            continue
        wide = np.pad(whole, [(0, 0), (0, 0), *((0, m) for m in more)])
        cut = wide[(slice(None), slice(None), *(slice(start, start + n) for n in actual.shape[2:]))]
        pads = "" if (start,) * count == now["pad"] else f"its pad is {start}, Caffe's is {_side(now['pad'])}; "
        yield f"{pads}its output_padding is {_side(more)}, Caffe has none", cut + add


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
