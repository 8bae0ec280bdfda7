"""Names that scripts of Caffe's years use, and that newer Python, NumPy, SciPy and PyYAML lack.

:func:`restore` puts them back for the script that ``caffe-port run`` runs. What exists is left alone.
"""

from __future__ import annotations

import collections
import collections.abc
import fractions
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import math
import sys
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from caffe_port.pycaffe.rcnn_parts import Parts
from caffe_port.typing import Array

# -- NumPy ----------------------------------------------------------------------------------------------------------

_NUMPY: dict[str, Any] = (
    {"float": float, "int": int, "bool": bool, "object": object, "str": str, "complex": complex}  # until 1.24
    | {"long": np.int64, "unicode": str, "bool8": np.bool_, "float_": np.float64, "complex_": np.complex128}
    | {"unicode_": np.str_, "string_": np.bytes_, "Inf": np.inf, "Infinity": np.inf, "infty": np.inf, "PINF": np.inf}
    | {"NINF": -np.inf, "NaN": np.nan, "NAN": np.nan, "PZERO": 0.0, "NZERO": -0.0, "product": np.prod}
    | {"cumproduct": np.cumprod, "sometrue": np.any, "alltrue": np.all, "round_": np.round, "row_stack": np.vstack}
    | {"in1d": np.isin, "rank": np.ndim}
)
"""Public name -> what it was. Most are gone since 1.24 and 2.0."""


def asscalar(a: Array) -> Any:
    """The only value of an array, which NumPy had until 1.23."""
    return a.item()


def _fromstring(string: Any, dtype: Any = float, count: int = -1, sep: str = "", **options: Any) -> Array:
    """``np.fromstring``, also of bytes without a separator, which NumPy 2.3 refuses."""
    if sep:
        return _numpys_fromstring(string, dtype=dtype, count=count, sep=sep, **options)
    return np.frombuffer(string, dtype, count).copy()


_numpys_fromstring = np.fromstring

# -- SciPy ----------------------------------------------------------------------------------------------------------


def bytescale(
    data: Array, cmin: float | None = None, cmax: float | None = None, high: int = 255, low: int = 0
) -> Array:
    """Values as bytes, so that cmin becomes low and cmax high: the least and the greatest one if None. Bytes stay.

    Raises:
        ValueError: cmax is less than cmin.
    """
    if data.dtype == np.uint8:
        return data
    least = data.min() if cmin is None else cmin
    span = (data.max() if cmax is None else cmax) - least
    if span < 0:
        raise ValueError("`cmax` should be larger than `cmin`.")
    scaled = (data - least) * ((high - low) / (span or 1)) + low
    made: Array = (scaled.clip(low, high) + 0.5).astype(np.uint8)
    return made


def toimage(
    arr: Any,
    high: int = 255,
    low: int = 0,
    cmin: float | None = None,
    cmax: float | None = None,
    mode: str | None = None,
    channel_axis: int | None = None,
) -> Image.Image:
    """An array as an image of Pillow's, by way of :func:`bytescale`: (H, W), or three axes, one of 3 or 4 channels.

    Raises:
        ValueError: another shape.
    """
    data = np.asarray(arr)
    if data.ndim == 2 and mode == "F":
        return Image.fromarray(data.astype(np.float32))
    channels = [axis for axis, length in enumerate(data.shape) if length == 3] or [
        axis for axis, length in enumerate(data.shape) if length == 4
    ]
    if data.ndim not in (2, 3) or (data.ndim == 3 and not channels):
        raise ValueError("'arr' does not have a suitable array shape for any mode.")
    scaled = bytescale(data, cmin, cmax, high, low)
    if data.ndim == 3:
        scaled = np.moveaxis(scaled, channels[0] if channel_axis is None else channel_axis, 2)
    image = Image.fromarray(np.ascontiguousarray(scaled))
    return image if mode is None or mode == image.mode else image.convert(mode)


def fromimage(im: Image.Image, flatten: bool = False, mode: str | None = None) -> Array:
    """An image of Pillow's as an array; flatten: as gray floats."""
    if mode is not None and mode != im.mode:
        im = im.convert(mode)
    elif mode is None and im.mode == "P":
        im = im.convert("RGBA" if "transparency" in im.info else "RGB")
    if flatten:
        im = im.convert("F")
    elif im.mode == "1":
        im = im.convert("L")
    return np.array(im)


def imread(name: Any, flatten: bool = False, mode: str | None = None) -> Array:
    """The values of an image file, (H, W), (H, W, 3) or (H, W, 4)."""
    with Image.open(name) as picture:
        return fromimage(picture, flatten, mode)


def imsave(name: Any, arr: Any, format: str | None = None) -> None:  # noqa: A002 - SciPy's name
    """Writes an array, (H, W), (H, W, 3) or (H, W, 4), as an image file."""
    toimage(arr, channel_axis=2).save(name, format)


_RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "cubic": 3}


def imresize(arr: Any, size: float | Sequence[int], interp: str = "bilinear", mode: str | None = None) -> Array:
    """An array resized as an image, by way of :func:`toimage`: to (height, width), a fraction, or int percents."""
    image = toimage(arr, mode=mode)
    if isinstance(size, (int, float, np.number)):
        factor = size if isinstance(size, (float, np.floating)) else size / 100.0
        width, height = (int(n * factor) for n in image.size)
    else:
        height, width = (int(n) for n in size[:2])
    return fromimage(image.resize((width, height), Image.Resampling(_RESAMPLING[interp])))


def imrotate(arr: Any, angle: float, interp: str = "bilinear") -> Array:
    """An array turned counterclockwise by degrees, as an image."""
    return fromimage(toimage(arr).rotate(angle, Image.Resampling(_RESAMPLING[interp])))


_IMAGES: tuple[Callable[..., Any], ...] = (*(bytescale, toimage, fromimage, imread, imsave, imresize, imrotate),)


class _Misc(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes ``import scipy.misc`` work: the functions for images, which SciPy had until 1.2, and what is left of it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "scipy.misc":
            return None
        self.found = importlib.machinery.PathFinder.find_spec(fullname, path)
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return types.ModuleType(spec.name) if self.found is None else importlib.util.module_from_spec(self.found)

    def exec_module(self, module: types.ModuleType) -> None:
        if self.found is not None and self.found.loader is not None:
            self.found.loader.exec_module(module)
        special = importlib.import_module("scipy.special")
        moved = {name: getattr(special, name) for name in ("comb", "factorial", "logsumexp")}
        for name, one in {**moved, **{one.__name__: one for one in _IMAGES}}.items():
            module.__dict__.setdefault(name, one)


# -- PyYAML ---------------------------------------------------------------------------------------------------------


def _yaml_without_loader() -> None:
    """``yaml.load(text)`` without a Loader, which PyYAML 6 refuses, reads as with its FullLoader."""
    if importlib.util.find_spec("yaml") is None:
        return
    yaml = importlib.import_module("yaml")
    load = getattr(yaml, "load")  # noqa: B009 - mypy has no types of it

    def load_by_default(stream: Any, Loader: Any = None) -> Any:  # noqa: N803 - PyYAML's name
        return load(stream, Loader or yaml.FullLoader)

    setattr(yaml, "load", load_by_default)  # noqa: B010 - as above


# -- all ------------------------------------------------------------------------------------------------------------


def restore() -> None:
    """Makes the names exist again in this process; a second call changes nothing."""
    if any(isinstance(finder, _Misc) for finder in sys.meta_path):
        return
    for name, value in _NUMPY.items():
        if name not in np.__dict__:
            setattr(np, name, value)
    if "asscalar" not in np.__dict__:
        setattr(np, "asscalar", asscalar)  # noqa: B010 - mypy knows that it is gone
    np.fromstring = _fromstring  # type: ignore[assignment]
    for name in (
        "Callable",
        "Hashable",
        "Iterable",
        "Iterator",
        "Mapping",
        "MutableMapping",
        "Sequence",
        "Set",
        "Sized",
    ):
        if not hasattr(collections, name):
            setattr(collections, name, getattr(collections.abc, name))
    for module, name, value in ((time, "clock", time.process_time), (fractions, "gcd", math.gcd)):
        if not hasattr(module, name):
            setattr(module, name, value)
    for name, value in (("ANTIALIAS", Image.Resampling.LANCZOS), ("LINEAR", Image.Resampling.BILINEAR)):
        if not hasattr(Image, name):
            setattr(Image, name, value)
    sys.meta_path.insert(0, _Misc())
    sys.meta_path.append(Parts())
    _yaml_without_loader()
