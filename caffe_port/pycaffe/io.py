"""caffe.io: images, the Transformer, and arrays as BlobProto and Datum. Source: python/caffe/io.py of Caffe.

Images are resized as scikit-image did in Caffe's time (0.9 to 0.14): without anti-aliasing, and with what is outside of
the image counted as its minimum, which darkens the borders of enlarged images. Differs from Caffe with a scikit-image
of today (0.15 and later), which blurs an image before it makes it smaller.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from caffe_port.errors import DependencyError
from caffe_port.formats import wire
from caffe_port.formats.message import Message
from caffe_port.pycaffe.proto import caffe_pb2
from caffe_port.storage.images import MAX_PIXELS
from caffe_port.typing import Array

# -- BlobProto and Datum -------------------------------------------------------------------------------------------


def blobproto_to_array(blob: Any, return_diff: bool = False) -> Array:
    """The data (or diff) of a BlobProto, float64 in its shape.

    Raises:
        ValueError: the shape, or its absence, does not fit the number of values.
    """
    data = _values(blob, "diff" if return_diff else "data")
    if any(blob.HasField(name) for name in ("num", "channels", "height", "width")):
        return data.reshape(blob.num, blob.channels, blob.height, blob.width)
    return data.reshape(tuple(blob.shape.dim))


def array_to_blobproto(arr: Array, diff: Array | None = None) -> Any:
    """A BlobProto of an array, and of a diff of the same shape."""
    blob = caffe_pb2.BlobProto()
    blob.shape.dim.extend(arr.shape)
    _extend(blob, "data", arr)
    if diff is not None:
        _extend(blob, "diff", diff)
    return blob


def arraylist_to_blobprotovector_str(arraylist: Iterable[Array]) -> bytes:
    """A serialized BlobProtoVector."""
    data: bytes = caffe_pb2.BlobProtoVector(blobs=map(array_to_blobproto, arraylist)).SerializeToString()
    return data


def blobprotovector_str_to_arraylist(str: bytes) -> list[Array]:  # noqa: A002 - pycaffe's name
    """The arrays of a serialized BlobProtoVector."""
    return [blobproto_to_array(blob) for blob in caffe_pb2.BlobProtoVector.FromString(str).blobs]


def array_to_datum(arr: Array, label: int | None = None) -> Any:
    """A Datum of an array (C, H, W): uint8 as bytes, all else as float32.

    Raises:
        ValueError: it does not have three axes.
    """
    if arr.ndim != 3:
        raise ValueError("Incorrect array shape.")
    datum = caffe_pb2.Datum()
    datum.channels, datum.height, datum.width = arr.shape
    if arr.dtype == np.uint8:
        datum.data = arr.tobytes()
    else:
        _extend(datum, "float_data", arr)
    if label is not None:
        datum.label = label
    return datum


def datum_to_array(datum: Any) -> Array:
    """The array (C, H, W) of a Datum that is not compressed: uint8, or float64."""
    shape = datum.channels, datum.height, datum.width
    if len(datum.data):
        return np.frombuffer(datum.data, np.uint8).reshape(shape).copy()
    return _values(datum, "float_data").reshape(shape)


def _values(message: Any, name: str) -> Array:
    """A repeated field of floats as float64; read from its bytes, for a list of a million floats takes a second."""
    only = type(message)()
    getattr(only, name).MergeFrom(getattr(message, name))
    return np.asarray(getattr(wire.parse(only.SerializeToString(), message.DESCRIPTOR.name), name), np.float64)


def _extend(message: Any, name: str, array: Array) -> None:
    """Sets a repeated field of floats."""
    with np.errstate(over="ignore"):  # a double beyond float32's range becomes infinity, as in protobuf
        values = np.ascontiguousarray(array, np.float32).ravel()
    packed = Message(message.DESCRIPTOR.name)
    packed.set(name, values)
    message.MergeFromString(b"".join(wire.serialize(packed)))


# -- preprocessing -------------------------------------------------------------------------------------------------


class Transformer:
    """Turns images into what a net takes.

    Args:
        inputs: name of an input -> its shape (N, C, H, W).
    """

    def __init__(self, inputs: Mapping[str, Sequence[int]]) -> None:
        self.inputs = inputs
        self.transpose: dict[str, Sequence[int]] = {}
        self.channel_swap: dict[str, Sequence[int]] = {}
        self.raw_scale: dict[str, float] = {}
        self.mean: dict[str, Array] = {}
        self.input_scale: dict[str, float] = {}

    def _check_input(self, in_: str) -> None:
        if in_ not in self.inputs:
            raise Exception(f"{in_} is not one of the net inputs: {self.inputs}")

    def preprocess(self, in_: str, data: Array) -> Array:
        """An image as an input: resized, transposed, channels swapped, times the raw scale, minus the mean, times the
        input scale.

        As in pycaffe, an array that is float32 already, and needs neither resizing nor a swap, is changed itself.

        Args:
            in_: name of the input.
            data: (H, W, C).

        Returns:
            float32 (C, H, W).
        """
        self._check_input(in_)
        image = data.astype(np.float32, copy=False)
        size = tuple(self.inputs[in_][2:])
        if image.shape[:2] != size:
            image = resize_image(image, size)
        if (order := self.transpose.get(in_)) is not None:
            image = image.transpose(order)
        if (swap := self.channel_swap.get(in_)) is not None:
            image = image[swap, :, :]
        if (raw_scale := self.raw_scale.get(in_)) is not None:
            image *= raw_scale
        if (mean := self.mean.get(in_)) is not None:
            image -= mean
        if (input_scale := self.input_scale.get(in_)) is not None:
            image *= input_scale
        return image

    def deprocess(self, in_: str, data: Array) -> Array:
        """An input as an image: :meth:`preprocess` backward, except for the size."""
        self._check_input(in_)
        image = data.copy().squeeze()
        if (input_scale := self.input_scale.get(in_)) is not None:
            image /= input_scale
        if (mean := self.mean.get(in_)) is not None:
            image += mean
        if (raw_scale := self.raw_scale.get(in_)) is not None:
            image /= raw_scale
        if (swap := self.channel_swap.get(in_)) is not None:
            image = image[np.argsort(swap), :, :]
        if (order := self.transpose.get(in_)) is not None:
            image = image.transpose(np.argsort(order))
        return image

    def set_transpose(self, in_: str, order: Sequence[int]) -> None:
        """Sets the order of the axes, (2, 0, 1) from (H, W, C) to (C, H, W)."""
        self._check_input(in_)
        if len(order) != len(self.inputs[in_]) - 1:
            raise Exception("Transpose order needs to have the same number of dimensions as the input.")
        self.transpose[in_] = order

    def set_channel_swap(self, in_: str, order: Sequence[int]) -> None:
        """Sets the order of the channels after the transposition, (2, 1, 0) from RGB to BGR."""
        self._check_input(in_)
        if len(order) != self.inputs[in_][1]:
            raise Exception("Channel swap needs to have the same number of dimensions as the input channels.")
        self.channel_swap[in_] = order

    def set_raw_scale(self, in_: str, scale: float) -> None:
        """Sets the factor before the mean is subtracted, 255 for nets trained on values from 0 to 255."""
        self._check_input(in_)
        self.raw_scale[in_] = scale

    def set_mean(self, in_: str, mean: Array) -> None:
        """Sets what is subtracted.

        Args:
            mean: one value per channel, or an image (C, H', W'), which is resized to the input if necessary.

        Raises:
            ValueError: its shape does not fit.
        """
        self._check_input(in_)
        shape = tuple(self.inputs[in_][1:])
        if mean.ndim == 1:
            if mean.shape[0] != shape[0]:
                raise ValueError("Mean channels incompatible with input.")
            mean = mean[:, np.newaxis, np.newaxis]
        else:
            held = (1, *mean.shape) if mean.ndim == 2 else mean.shape
            if len(held) != 3:
                raise ValueError("Mean shape invalid")
            if held != shape:
                low, high = mean.min(), mean.max()
                range_ = high - low if high > low else mean.dtype.type(1)
                unit = (mean - low) / range_
                resized = resize_image(unit.transpose((1, 2, 0)), shape[1:]).transpose((2, 0, 1))
                mean = resized * np.float32(range_) + np.float32(low)
        self.mean[in_] = mean

    def set_input_scale(self, in_: str, scale: float) -> None:
        """Sets the factor after the mean was subtracted."""
        self._check_input(in_)
        self.input_scale[in_] = scale


# -- images --------------------------------------------------------------------------------------------------------


def load_image(filename: str | os.PathLike[str], color: bool = True) -> Array:
    """Reads an image file as Pillow decodes it, without regard to its EXIF orientation.

    Args:
        color: three channels; else one, the luminance 0.2125 R + 0.7154 G + 0.0721 B.

    Returns:
        float32 (H, W, 3), RGB, or (H, W, 1), from 0 to 1.

    Raises:
        OSError: the file cannot be read or decoded.
        ValueError: it is an address, has more than MAX_PIXELS pixels, or floats beyond -1 to 1.
    """
    if str(filename).startswith(("http://", "https://", "ftp://")):
        raise ValueError(f"load_image reads files only; download {filename} first")
    with Image.open(filename) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"{filename} has {picture.width} x {picture.height} pixels, more than {MAX_PIXELS}")
        image = _as_float(_decoded(picture))
    if image.ndim == 3 and not color:
        image = image[:, :, :3] @ np.array([0.2125, 0.7154, 0.0721])
    image = image.astype(np.float32)
    if image.ndim == 2:
        return np.tile(image[:, :, np.newaxis], (1, 1, 3 if color else 1))
    return image[:, :, :3]


def _decoded(picture: Image.Image) -> Array:
    """The values of an image (its first frame), with a palette as colors, (H, W), (H, W, 3) or (H, W, 4)."""
    if picture.mode == "P":
        used = np.array(picture.getpalette()).reshape(-1, 3)[slice(*picture.getextrema())]
        if (used == used[:, :1]).all():
            picture = picture.convert("L")
        else:
            picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    elif picture.mode == "1":
        picture = picture.convert("L")
    elif "A" in picture.mode or "a" in picture.mode:
        picture = picture.convert("RGBA")
    elif picture.mode not in ("L", "RGB", "I", "F") and not picture.mode.startswith("I;16"):
        picture = picture.convert("RGB")
    array = np.asarray(picture)
    return array.astype(np.uint16) if picture.mode == "I" and picture.format == "PNG" else array


def _as_float(image: Array) -> Array:
    """The values as float64 from 0 to 1, as scikit-image's img_as_float."""
    if image.dtype.kind == "u":
        return image / np.iinfo(image.dtype).max
    if image.dtype.kind == "i":
        limits = np.iinfo(image.dtype)
        return (image * 2.0 + 1) / (float(limits.max) - float(limits.min))
    if image.size and (image.min() < -1 or image.max() > 1):
        raise ValueError("Images of type float must be between -1 and 1.")
    return image.astype(np.float64)


def resize_image(im: Array, new_dims: Sequence[int], interp_order: int = 1) -> Array:
    """Resizes an image.

    Args:
        im: (H, W, C).
        new_dims: (H', W').
        interp_order: 0: nearest; 1: linear; 3: cubic. 2, 4 and 5, and 3 unless there are one or three channels, are
            splines, which require SciPy.

    Returns:
        float32 (H', W', C). With one or three channels, pixels are squares, and what is outside of the image counts as
        its minimum. With another number they are points, and the corners are kept.

    Raises:
        DependencyError: SciPy is required and not installed.

    Source: ``skimage.transform.resize(mode="constant")`` of 0.9 to 0.14; ``scipy.ndimage.zoom``
    """
    size = int(new_dims[0]), int(new_dims[1])
    if im.shape[-1] not in (1, 3):
        return _zoom(im, size, interp_order).astype(np.float32)
    low, high = im.min(), im.max()
    if not high > low:
        return np.full((*size, im.shape[-1]), low, np.float32)
    unit = ((im - low) / (high - low)).astype(np.float64)
    resized = _resize(unit, size, interp_order)
    if interp_order:
        resized = resized.clip(unit.min(), unit.max())
    result: Array = resized * (high - low) + low
    return result.astype(np.float32)


def resize(
    image: Array,
    output_shape: Sequence[int],
    order: int = 1,
    mode: str = "constant",
    cval: float = 0.0,
    clip: bool = True,
    preserve_range: bool = False,
) -> Array:
    """``skimage.transform.resize`` of 0.9 to 0.14, which pycaffe's io imports, so that scripts call it here.

    Args:
        image: (H, W), (H, W, C) or any other shape; integers become floats from 0 to 1.
        output_shape: (H', W'), for any number of channels, or as many lengths as the image has axes.
        order: 0: nearest; 1: linear; 3: cubic; others, and other lengths than C as the third, require SciPy.
        mode, cval: what is outside of the image; anything but zeros requires scikit-image.
        clip: keeps the values within those of the image.
        preserve_range: leaves integers as they are.

    Returns:
        float64.

    Raises:
        DependencyError: SciPy or scikit-image is required and not installed.
        ValueError: output_shape has too few lengths.
    """
    shape = tuple(int(length) for length in output_shape)
    image = np.asarray(image)
    image = image.reshape((*image.shape, *[1] * (len(shape) - image.ndim)))
    if len(shape) == image.ndim - 1:
        shape = (*shape, image.shape[-1])
    if len(shape) < image.ndim:
        raise ValueError(f"output_shape {shape} has too few lengths for an image of shape {image.shape}")
    if mode != "constant" or cval:
        options = {"cval": cval, "clip": clip, "preserve_range": preserve_range, "anti_aliasing": False}
        elsewhere: Array = _skimage().transform.resize(image, shape, order, mode, **options)
        return elsewhere
    values = image.astype(np.float64) if preserve_range or image.dtype.kind == "f" else _as_float(image)
    flat = values[:, :, np.newaxis] if values.ndim == 2 else values
    if flat.ndim == 3 and (*shape, 1)[2] == flat.shape[2]:
        made = _resize(flat, (shape[0], shape[1]), order).reshape(shape)
    else:
        places = [(np.arange(new) + 0.5) * (old / new) - 0.5 for old, new in zip(image.shape, shape, strict=True)]
        grid = np.meshgrid(*places, indexing="ij")
        made = _ndimage(order).map_coordinates(values, grid, order=order, mode="constant")
    return made.clip(values.min(), values.max()) if clip and order else made


def __getattr__(name: str) -> Any:
    """``caffe.io.skimage`` and ``caffe.io.zoom``, which scripts use because pycaffe imports them."""
    if name == "skimage":
        return _skimage()
    if name == "zoom":
        return _ndimage(1).zoom
    raise AttributeError(f"module 'caffe.io' has no attribute '{name}'")


def _skimage() -> Any:
    try:
        importlib.import_module("skimage.transform")
        return importlib.import_module("skimage.io") and importlib.import_module("skimage")
    except ImportError:
        raise DependencyError("this requires scikit-image", hint="pip install scikit-image") from None


def _resize(image: Array, size: tuple[int, int], order: int) -> Array:
    places = [(np.arange(new) + 0.5) * (old / new) - 0.5 for old, new in zip(image.shape, size, strict=False)]
    if order in (0, 1, 3):
        return _sampled(image, places, order)
    rows, columns, channels = np.meshgrid(*places, np.arange(image.shape[2]), indexing="ij")
    result: Array = _ndimage(order).map_coordinates(image, [rows, columns, channels], order=order, mode="constant")
    return result


def _zoom(image: Array, size: tuple[int, int], order: int) -> Array:
    places = [
        np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 1.0)
        for old, new in zip(image.shape, size, strict=False)
    ]
    if order in (0, 1):
        # As in SciPy: of some sizes, the last place is rounded beyond the last pixel, and so counts as outside.
        places = [np.where(place > old - 1, -2.0, place) for place, old in zip(places, image.shape, strict=False)]
        sampled = _sampled(image.astype(np.float64), places, order)
        return sampled if image.dtype.kind == "f" else np.floor(sampled + 0.5)
    factors = (size[0] / image.shape[0], size[1] / image.shape[1], 1)
    result: Array = _ndimage(order).zoom(image, factors, order=order)
    return result


def _ndimage(order: int) -> Any:
    try:
        from scipy import ndimage
    except ImportError:
        raise DependencyError(
            f"resizing with interp_order={order} requires SciPy", hint="pip install 'caffe-port[data]'"
        ) from None
    return ndimage


def _sampled(image: Array, places: Sequence[Array], order: int) -> Array:
    """An image at rows and columns; outside of it is 0."""
    for axis, place in enumerate(places):
        shape = [1] * image.ndim
        shape[axis] = -1
        total: Array = np.zeros(())
        for index, weight in _taps(place, order):
            inside = (index >= 0) & (index < image.shape[axis])
            taken = image.take(index.clip(0, image.shape[axis] - 1), axis)
            total = total + taken * (weight * inside).reshape(shape)
        image = total
    return image


def _taps(place: Array, order: int) -> list[tuple[Array, Array]]:
    """The pixels, with their weights, that make up the value at each place."""
    if order == 0:  # half a pixel is rounded away from zero
        return [((np.where(place > 0, place + 0.5, place - 0.5)).astype(int), np.ones(len(place)))]
    first = np.floor(place).astype(int)
    x = place - first
    if order == 1:
        return [(first, 1 - x), (first + 1, x)]
    weights = (  # Catmull-Rom
        ((2 - x) * x - 1) * x / 2,
        ((3 * x - 5) * x * x + 2) / 2,
        ((4 - 3 * x) * x + 1) * x / 2,
        (x - 1) * x * x / 2,
    )
    return [(first + offset, weight) for offset, weight in zip((-1, 0, 1, 2), weights, strict=True)]


def oversample(images: Sequence[Array], crop_dims: Sequence[int]) -> Array:
    """Ten crops of each image: the corners and the center, and these mirrored.

    Args:
        images: (H, W, C) each, all of the first one's size.
        crop_dims: (h, w).

    Returns:
        float32 (10 N, h, w, C).
    """
    (height, width, channels), (h, w) = images[0].shape, (int(crop_dims[0]), int(crop_dims[1]))
    corners = [(y, x) for y in (0, height - h) for x in (0, width - w)]
    corners.append((int(height / 2 - h / 2), int(width / 2 - w / 2)))
    crops = np.empty((len(images), 2, 5, h, w, channels), np.float32)
    for image, own in zip(images, crops, strict=True):
        for index, (y, x) in enumerate(corners):
            own[0, index] = image[y : y + h, x : x + w]
        own[1] = own[0, :, :, ::-1]
    return crops.reshape(-1, h, w, channels)
