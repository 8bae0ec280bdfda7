"""Images varied, resized and spoiled as SSD's data layers do it, with OpenCV.

Images are uint8 (H, W, C) in BGR order, as OpenCV has them. Source: im_transforms.cpp and data_transformer.cpp of SSD.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from caffe_port.data.boxes import Objects, clipped
from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.storage import images
from caffe_port.typing import Array

_JPEG_QUALITY = 95  # OpenCV's, which EncodeCVMatToDatum does not change


def stored(picture: Array) -> Array:
    """What is left of an image that was written as a JPEG file and read: SSD does so after every step."""
    cv2 = images.opencv()
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return images.decode(data, -1, "an image that was varied")


# -- DistortionParameter --------------------------------------------------------------------------------------------


def distorted(picture: Array, p: Message, rng: np.random.Generator) -> Array:
    """Brightness, contrast, saturation, hue and the order of the channels, at random. Source: ApplyDistort."""
    early = rng.random() > 0.5  # contrast before saturation and hue, or after them

    def contrast(x: Array) -> Array:
        factor = _drawn(rng, p.contrast_prob, p.contrast_lower, p.contrast_upper)
        return x if factor is None or abs(factor - 1) <= 1e-3 else _scaled(x, factor, 0)

    delta = _drawn(rng, p.brightness_prob, -p.brightness_delta, p.brightness_delta)
    x = picture if delta is None else _scaled(picture, 1, delta)
    x = contrast(x) if early else x
    factor = _drawn(rng, p.saturation_prob, p.saturation_lower, p.saturation_upper)
    x = x if factor is None else _in_hsv(x, 1, factor, 0)
    delta = _drawn(rng, p.hue_prob, -p.hue_delta, p.hue_delta)
    x = x if delta is None else _in_hsv(x, 0, 1, delta)
    x = x if early else contrast(x)
    if rng.random() < p.random_order_prob:
        x = np.ascontiguousarray(x[..., rng.permutation(x.shape[2])])
    return x


def check_distortion(p: Message) -> None:
    """Raises SpecError for ranges that SSD refuses, too."""
    for name in ("brightness_delta", "hue_delta", "contrast_lower", "saturation_lower"):
        if getattr(p, name) < 0:
            raise SpecError(f"distort_param: {name} is {getattr(p, name):g}, expected at least 0")
    for name in ("contrast", "saturation"):
        if getattr(p, f"{name}_upper") < getattr(p, f"{name}_lower"):
            raise SpecError(f"distort_param: {name}_upper is less than {name}_lower")


def _drawn(rng: np.random.Generator, probability: float, low: float, high: float) -> float | None:
    """A number from the range, or None with the opposite probability."""
    return float(np.float32(rng.uniform(low, high))) if rng.random() < probability else None


def _scaled(x: Array, factor: float, shift: float) -> Array:
    """As cv::Mat::convertTo: rounded to the nearest even, within 0..255."""
    moved = np.rint(x * np.float32(factor) + np.float32(shift))
    return np.asarray(np.clip(moved, 0, 255).astype(np.uint8))


def _in_hsv(x: Array, channel: int, factor: float, shift: float) -> Array:
    cv2 = images.opencv()
    if x.shape[2] != 3:
        return x
    hsv = cv2.cvtColor(x, cv2.COLOR_BGR2HSV)
    hsv[..., channel] = _scaled(hsv[..., channel], factor, shift)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR))


# -- ExpansionParameter ---------------------------------------------------------------------------------------------


def expanded(
    picture: Array, p: Message, background: Sequence[float], rng: np.random.Generator
) -> tuple[Array, Array] | None:
    """The image at a random place of a larger one, and the larger one's corners as fractions of the image; None with
    the probability that it stays as it is.

    Args:
        background: a value for each channel.

    Source: ExpandImage.
    """
    if rng.random() > p.prob or abs(p.max_expand_ratio - 1) < 1e-2:
        return None
    ratio = np.float32(rng.uniform(1, p.max_expand_ratio))
    height, width = picture.shape[:2]
    tall, wide = int(np.float32(height) * ratio), int(np.float32(width) * ratio)
    top, left = int(rng.uniform(0, tall - height)), int(rng.uniform(0, wide - width))
    made = np.empty((tall, wide, picture.shape[2]), np.uint8)
    made[:] = np.clip(np.rint(background), 0, 255)
    made[top : top + height, left : left + width] = picture
    sides = np.array((width, height, width, height), np.float32)
    return made, np.array((-left, -top, wide - left, tall - top), np.float32) / sides


def cut(picture: Array, window: Array) -> Array:
    """The part of an image in a window, in whole pixels. Source: CropImage."""
    height, width = picture.shape[:2]
    scaled = clipped(window) * np.array((width, height, width, height), np.float32)
    left, top = int(scaled[0]), int(scaled[1])
    wide, tall = max(int(scaled[2] - scaled[0]), 1), max(int(scaled[3] - scaled[1]), 1)
    left, top = min(left, width - 1), min(top, height - 1)
    return np.ascontiguousarray(picture[top : top + tall, left : left + wide])


# -- ResizeParameter ------------------------------------------------------------------------------------------------

_INTERPOLATIONS = {
    "LINEAR": "INTER_LINEAR",
    "AREA": "INTER_AREA",
    "NEAREST": "INTER_NEAREST",
    "CUBIC": "INTER_CUBIC",
    "LANCZOS4": "INTER_LANCZOS4",
}
_BORDERS = {"CONSTANT": "BORDER_CONSTANT", "MIRRORED": "BORDER_REFLECT_101", "REPEAT_NEAREST": "BORDER_REPLICATE"}


def new_size(p: Message, height: int, width: int) -> tuple[int, int]:
    """(height, width) after a resizing. Source: InferNewSize."""
    if p.resize_mode == "FIT_SMALL_SIZE":
        aspect = np.float32(width) / np.float32(height)
        if aspect < np.float32(p.width) / np.float32(p.height):
            return int(np.float32(p.width) / aspect), int(p.width)
        return int(p.height), int(aspect * np.float32(p.height))
    return int(p.height), int(p.width)


def resized(picture: Array, p: Message, rng: np.random.Generator) -> Array:
    """Source: ApplyResize."""
    cv2 = images.opencv()
    modes = list(p.interp_mode) or ["LINEAR"]
    mode = getattr(cv2, _INTERPOLATIONS[modes[int(rng.integers(len(modes)))] if len(modes) > 1 else modes[0]])
    height, width = picture.shape[:2]
    if p.resize_mode != "FIT_LARGE_SIZE_AND_PAD":
        size = new_size(p, height, width)
        return np.atleast_3d(cv2.resize(picture, size[::-1], interpolation=mode))
    aspect = np.float32(width) / np.float32(height)
    if aspect > np.float32(p.width) / np.float32(p.height):
        tall, wide = int(np.float32(p.width) / aspect), int(p.width)
    else:
        tall, wide = int(p.height), int(aspect * np.float32(p.height))
    x = cv2.resize(picture, (max(wide, 1), max(tall, 1)), interpolation=mode)
    above, left = (p.height - x.shape[0]) // 2, (p.width - x.shape[1]) // 2
    value = list(p.pad_value) or [0.0]
    value = value * picture.shape[2] if len(value) == 1 else value
    if len(value) != picture.shape[2]:
        raise SpecError(f"resize_param: {len(value)} pad_value for {picture.shape[2]} channels; expected 1 for each")
    border = (above, p.height - x.shape[0] - above, left, p.width - x.shape[1] - left)
    x = cv2.copyMakeBorder(x, *border, getattr(cv2, _BORDERS[p.pad_mode]), value=value)
    return np.asarray(np.atleast_3d(x))


def boxes_resized(p: Message, corners: Array, height: int, width: int) -> Array:
    """Boxes of an image (height, width), as fractions of the resized one. Source: UpdateBBoxByResizePolicy."""
    old: Array = np.array((width, height), np.float32)
    new: Array = np.array((p.width, p.height), np.float32)
    aspect = old[0] / old[1]
    pad: Array = np.zeros(2, np.float32)
    if p.resize_mode == "FIT_SMALL_SIZE":
        new = np.array((new[0], new[0] / aspect) if aspect < new[0] / new[1] else (aspect * new[1], new[1]), np.float32)
    elif p.resize_mode == "FIT_LARGE_SIZE_AND_PAD":
        if aspect > new[0] / new[1]:
            pad[1] = (new[1] - new[0] / aspect) / 2
        else:
            pad[0] = (new[0] - aspect * new[1]) / 2
    inner = new - 2 * pad
    low, high = corners[:, :2] * old * inner / old, corners[:, 2:] * old * inner / old
    low, high = pad + np.maximum(low, np.float32(0)), pad + np.minimum(high, new)
    return np.asarray(np.concatenate((low / new, high / new), 1), np.float32)


def stretched(p: Message, found: Objects, shape: tuple[int, int], window: Array) -> Array:
    """Corners in units of height_scale and width_scale, in mode FIT_SMALL_SIZE. Source: ExtrapolateBBox."""
    if not (p.height_scale and p.width_scale and p.resize_mode == "FIT_SMALL_SIZE"):
        return found.corners
    height, width = (np.float32(n) for n in shape)
    tall, wide = np.float32(p.height), np.float32(p.width)
    aspect = width / height
    tall, wide = (wide / aspect, wide) if aspect < wide / tall else (tall, tall * aspect)
    tall, wide = tall * (window[3] - window[1]), wide * (window[2] - window[0])
    if wide < p.width_scale or tall < p.height_scale:
        raise SpecError(
            f"resize_param: the image is resized to {wide:g}x{tall:g}, less than width_scale and height_scale"
        )
    factors = np.array((wide / p.width_scale, tall / p.height_scale), np.float32)
    return np.asarray(found.corners * np.tile(factors, 2), np.float32)


def check_resize(p: Message) -> None:
    """Raises SpecError where a ResizeParameter gives no size."""
    if p.height < 1 or p.width < 1:
        raise SpecError(f"resize_param: height {p.height} and width {p.width}; expected at least 1")


# -- NoiseParameter -------------------------------------------------------------------------------------------------


def check_noise(p: Message) -> None:
    """Raises SpecError for what makes no image of bytes."""
    if p.convert_to_lab:
        raise SpecError("noise_param: convert_to_lab makes images that SSD's code cannot use, and is not supported")
    if p.saltpepper and len(p.saltpepper_param.value) not in (1, 3):
        raise SpecError("noise_param: saltpepper needs a saltpepper_param with one value, or one for each channel")


def spoiled(picture: Array, p: Message, rng: np.random.Generator) -> Array:
    """Source: ApplyNoise, which does not look at ``prob``."""
    cv2: Any = images.opencv()
    x = picture
    if p.decolorize and x.shape[2] == 3:
        x = cv2.cvtColor(cv2.cvtColor(x, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    if p.gauss_blur:
        x = np.atleast_3d(cv2.GaussianBlur(x, (7, 7), 1.5))
    if p.hist_eq:
        x = _on_brightness(x, cv2.equalizeHist)
    if p.clahe:
        x = _on_brightness(x, cv2.createCLAHE(clipLimit=4).apply)
    if p.jpeg > 0:
        _, data = cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, int(p.jpeg)])
        x = images.decode(data, int(x.shape[2] == 3), "an image that was varied")
    if p.erode:
        x = np.atleast_3d(cv2.erode(x, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))))
    if p.posterize:
        x = x // 64 * 64 + 32
    if p.inverse:
        x = 255 - x
    if p.saltpepper:
        values = list(p.saltpepper_param.value)
        spots = int(np.float32(p.saltpepper_param.fraction) * np.float32(x.shape[1] * x.shape[0]))
        x = x.copy()
        columns, rows = rng.integers(x.shape[1], size=spots), rng.integers(x.shape[0], size=spots)
        x[rows, columns] = np.array(values * (x.shape[2] if len(values) == 1 else 1)).astype(np.uint8)[: x.shape[2]]
    if p.convert_to_hsv and x.shape[2] == 3:
        x = cv2.cvtColor(x, cv2.COLOR_BGR2HSV)
    return np.asarray(x)


def _on_brightness(x: Array, function: Any) -> Array:
    """Applies a function to an image's brightness."""
    cv2 = images.opencv()
    if x.shape[2] != 3:
        return np.atleast_3d(function(np.ascontiguousarray(x[..., 0])))
    parts = cv2.cvtColor(x, cv2.COLOR_BGR2YCrCb)
    parts[..., 0] = function(np.ascontiguousarray(parts[..., 0]))
    return np.asarray(cv2.cvtColor(parts, cv2.COLOR_YCrCb2BGR))
