"""Operators written so that runtimes agree on their numbers.

Runtimes read ceil-mode pooling in different ways: some count the cells of a window beyond the padding, some keep a
window that begins in it, some ignore whether padding counts. docs/deploy.md has what was measured. Inside
:class:`AgreedForms`, torch's pooling and local response normalization are traced as operators on which all of them
agree; the numbers stay those of torch, for images of every size. So are sums and means over three axes or more, which
OpenCV 4.14 takes from the wrong places of an .onnx, and a divisor of a pooling, which torch's exporter leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from caffe_port.emit.operators import lrn

_Axes = tuple[int, ...]


class AgreedForms(TorchFunctionMode):
    """While it is entered, windows are computed in the agreed forms.

    Args:
        onnx: for ONNX, which has an LRN of its own.
    """

    def __init__(self, onnx: bool = False) -> None:
        super().__init__()
        self.onnx = onnx

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given, masked = dict(kwargs or {}), bool(kwargs and kwargs.get("return_indices"))
        if func is F.local_response_norm:
            return _local_response_norm(*args, onnx=self.onnx, **given)
        own = _FORMS.get(func)
        if own is not None and not masked:
            given.pop("return_indices", None)
            return own(*args, **given)
        return func(*args, **given)


def _avg_pool(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    axes: int,
) -> Tensor:
    """Means over what a window has of the padded image: the padding becomes part of the image, so that no runtime needs
    to tell it from the cells beyond."""
    kernel, step, pad = (_per_axis(v, axes) for v in (kernel_size, stride or kernel_size, padding))
    plain = F.avg_pool2d if axes == 2 else F.avg_pool3d
    if divisor_override:
        end = _end(kernel, step, pad) if ceil_mode else pad
        return plain(F.pad(x, _edges(pad, end)), kernel, step) * (math.prod(kernel) / divisor_override)
    if not count_include_pad:
        return plain(x, kernel, step, pad, ceil_mode, count_include_pad)
    wide = F.pad(x, _edges(pad, pad)) if any(pad) else x
    y = plain(wide, kernel, step, 0, ceil_mode and max(step) > 1, False)
    for axis, (k, s, p) in enumerate(zip(kernel, step, pad, strict=True), 2):
        if ceil_mode and _may_begin_in_padding(k, s, p):
            y = y.narrow(axis, 0, (x.shape[axis] + p + s - 1) // s)  # the windows that begin before the padding
    return y


def _max_pool(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    *,
    axes: int,
) -> Tensor:
    """Where a last window may begin in the padding, an image that is padded so far that rounding down finds all of the
    others."""
    kernel, step, pad = (_per_axis(v, axes) for v in (kernel_size, stride or kernel_size, padding))
    plain = F.max_pool2d if axes == 2 else F.max_pool3d
    clipped = any(map(_may_begin_in_padding, kernel, step, pad))
    if not ceil_mode or set(_per_axis(dilation, axes)) != {1} or not clipped:
        return plain(x, kernel, step, pad, dilation, ceil_mode and max(step) > 1)
    return plain(F.pad(x, _edges(pad, _end(kernel, step, pad)), value=torch.finfo(x.dtype).min), kernel, step)


def _local_response_norm(
    x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, *, onnx: bool = False
) -> Tensor:
    """The mean of squares of neighboring channels with the channels as an axis of an image, not of a volume."""
    if onnx and size % 2:
        made: Tensor = lrn(x, size, alpha, beta, k)
        return made
    squares = F.pad(x.square().flatten(2).unsqueeze(1), (0, 0, size // 2, (size - 1) // 2))
    mean = F.avg_pool2d(squares, (size, 1), 1).squeeze(1).reshape(x.shape)
    return x / (k + alpha * mean).pow(beta)


def _reduction(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A sum or mean in which neighboring axes, three or more, become one first."""

    def reduce(x: Tensor, dim: Any = None, keepdim: bool = False, **given: Any) -> Tensor:
        axes = sorted(d % x.dim() for d in dim) if isinstance(dim, Sequence) else []
        if keepdim or len(axes) < 3 or axes[-1] - axes[0] >= len(axes):
            return plain(x, **given) if dim is None else plain(x, dim, keepdim, **given)
        return plain(x.flatten(axes[0], axes[-1]), axes[0], **given)

    return reduce


def _form(form: Callable[..., Tensor], axes: int) -> Callable[..., Tensor]:
    return lambda *args, **given: form(*args, axes=axes, **given)


_FORMS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.avg_pool2d: _form(_avg_pool, 2),
    F.avg_pool3d: _form(_avg_pool, 3),
    F.max_pool2d: _form(_max_pool, 2),
    F.max_pool3d: _form(_max_pool, 3),
    Tensor.sum: _reduction(Tensor.sum),
    Tensor.mean: _reduction(Tensor.mean),
}


def _end(kernel: _Axes, stride: _Axes, padding: _Axes) -> _Axes:
    """How far to pad at the end so that rounding down finds the windows that ceil_mode does, at every size."""
    return tuple(min(p + s, k) - 1 for k, s, p in zip(kernel, stride, padding, strict=True))


def _may_begin_in_padding(kernel: int, stride: int, padding: int) -> bool:
    """Whether there are sizes at which rounding up finds a window that begins in the padding, which Caffe and torch
    drop. Not for kernel 3, stride 2, padding 1; for kernel 2, stride 2, padding 1."""
    return padding > max(0, kernel - stride)


def _per_axis(value: Any, axes: int) -> _Axes:
    return tuple(value) if isinstance(value, Sequence) else (value,) * axes


def _edges(before: _Axes, after: _Axes) -> list[int]:
    """The argument of F.pad, which begins with the last axis."""
    return [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
