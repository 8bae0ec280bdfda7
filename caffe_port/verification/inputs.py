"""What a net is fed with to be compared: seeded random numbers, arrays, or a picture prepared as Caffe does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port.errors import CaffePortError, ParseError, did_you_mean
from caffe_port.formats import caffemodel
from caffe_port.signatures.shapes import integers_below
from caffe_port.spec import NetSpec, Source
from caffe_port.storage import images
from caffe_port.storage.files import opened, read_bytes
from caffe_port.typing import Array, Shape


@dataclass(frozen=True)
class Preprocess:
    """How pixels become numbers: ``(x - mean) * scale``, as Caffe's transform_param does.

    Attributes:
        mean: a number for each channel (or one for all), or an image (C, H, W); in the net's channel order.
        scale: what the difference is multiplied by.
        channel_order: ``"BGR"`` (what Caffe's own tools feed) or ``"RGB"``.
    """

    mean: Array | Sequence[float] | None = None
    scale: float = 1.0
    channel_order: str = "BGR"

    def __post_init__(self) -> None:
        if self.channel_order not in ("BGR", "RGB"):
            raise CaffePortError(f"the channel order is BGR or RGB, got '{self.channel_order}'")


def read_mean(text: str) -> Array | list[float]:
    """A mean as the command line gives it: ``104,117,123``, a .binaryproto or an .npy file.

    Raises:
        CaffePortError: neither numbers nor such a file.
    """
    try:
        return [float(value) for value in text.split(",")]
    except ValueError:
        pass
    if text.endswith(".npy"):
        mean = read_npy(text)
        return mean[0] if mean.ndim == 4 and mean.shape[0] == 1 else mean
    return caffemodel.read_mean(text)


def random_input(shape: Shape, seed: int, index: int = 0) -> Array:
    """Standard normal numbers of NumPy's PCG64, float32.

    ``index`` tells the inputs of one net apart: they do not get the same numbers.
    """
    return np.random.Generator(np.random.PCG64([seed, index])).standard_normal(shape, np.float32)


def random_inputs(spec: NetSpec, shapes: Mapping[Source, Shape], seed: int) -> tuple[dict[str, Array], dict[str, str]]:
    """Every input of a net: standard normal, but integers where the net reads labels or indices.

    Returns:
        The arrays by blob name, and how each was made, in words.
    """
    arrays, words = {}, {}
    for index, (blob, source) in enumerate(spec.inputs):
        below = _integers_below(spec, shapes, source)
        if below is None:
            arrays[blob] = random_input(shapes[source], seed, index)
            words[blob] = f"random, standard normal, seed {seed}"
        else:
            rng = np.random.Generator(np.random.PCG64([seed, index]))
            arrays[blob] = rng.integers(0, max(below, 1), shapes[source]).astype(np.float32)
            words[blob] = f"random integers below {max(below, 1)}, seed {seed}"
    return arrays, words


def _integers_below(spec: NetSpec, shapes: Mapping[Source, Shape], source: Source) -> int | None:
    """The number of classes or indices, where a reader of this input takes it for integers; else None."""
    for layer in spec.layers:
        if source not in layer.sources:
            continue
        position = layer.sources.index(source)
        limit = integers_below(layer, [shapes[s] for s in layer.sources], position)
        if limit is not None:
            return limit
    return None


def with_batch_axis(array: Array, spec: NetSpec, blob: str) -> Array:
    """One item (C, H, W) as a batch of one, unless the net's input has three axes itself."""
    layer = spec.by_name[dict(spec.inputs)[blob][0]]
    declared = layer.param.input_param.shape if layer.type == "Input" else []
    if array.ndim == 3 and not any(len(shape.dim) == 3 for shape in declared):
        return array[None]
    return array


def picture_input(path: str | Path, shape: Shape, preprocess: Preprocess) -> Array:
    """A picture as a net's input (N, C, H, W), float32; it fills the whole batch.

    Raises:
        CaffePortError: the file cannot be read, is no picture, or does not fit.
    """
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise CaffePortError(
            f"a picture has 1 or 3 channels, the net's input is {tuple(shape)}", str(path), "Give an .npy file."
        )
    picture = _read_picture(path, shape[1], preprocess.channel_order)
    return np.ascontiguousarray(np.broadcast_to(prepare(picture, shape[2:], preprocess, str(path)), shape))


def prepare(picture: Array, size: Shape, preprocess: Preprocess, where: str = "") -> Array:
    """A picture (H, W, C) of values 0 to 255 as a net's input (C, H', W').

    It is resized (bilinear) to ``size``; with a greater mean image, to the mean's size, of which the centre is cut
    out. Source: data_transformer.cpp.
    """
    mean = None if preprocess.mean is None else np.asarray(preprocess.mean, np.float32)
    whole = size
    if mean is not None and mean.ndim == 3:
        whole = mean.shape[1:]
        wanted = (picture.shape[2], *size)
        if mean.shape[0] != wanted[0] or whole[0] < size[0] or whole[1] < size[1]:
            raise CaffePortError(f"the mean image {mean.shape} does not fit an input of {wanted}", where)
    elif mean is not None and (mean.ndim != 1 or mean.size not in (1, picture.shape[2])):
        raise CaffePortError(f"{mean.size} mean values for {picture.shape[2]} channels", where)
    x = _resize(picture, whole).transpose(2, 0, 1).astype(np.float32)
    if mean is not None:
        x = x - (mean if mean.ndim == 3 else mean[:, None, None])
    top, left = (whole[0] - size[0]) // 2, (whole[1] - size[1]) // 2
    return np.asarray(x[:, top : top + size[0], left : left + size[1]] * np.float32(preprocess.scale), np.float32)


def _resize(picture: Array, size: Shape) -> Array:
    if picture.shape[:2] == tuple(size):
        return picture
    cv2 = images.opencv()
    resized: Array = cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    return resized.reshape(*size, picture.shape[2])


def _read_picture(path: str | Path, channels: int, order: str) -> Array:
    """uint8 (H, W, C)."""
    try:
        pixels = images.decode(read_bytes(path), 0 if channels == 1 else 1, str(path))
    except ParseError as error:
        raise ParseError(error.what, str(path), "An input is an .npy file or a picture.") from None
    return pixels[:, :, ::-1] if order == "RGB" else pixels


def read_npy(path: str | Path) -> Array:
    """The array of an .npy file, memory-mapped. Raises CaffePortError for anything else."""
    opened(path).close()
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise ParseError(f"is not an .npy array, or a damaged one: {str(error)[:120]}", str(path)) from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise ParseError("holds no numbers", str(path))
    return array


def check_names(given: Mapping[str, Any], spec: NetSpec) -> None:
    """Raises CaffePortError for a name that is no input of the net."""
    names = [blob for blob, _ in spec.inputs]
    for name in given:
        if name not in names:
            near = did_you_mean(name, names)
            raise CaffePortError(f"the net has no input '{name}'; its inputs are {', '.join(names)}.{near}", spec.path)
