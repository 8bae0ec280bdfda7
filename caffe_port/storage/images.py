"""Compressed pictures as arrays, by OpenCV, which is kept from talking and from believing a header."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from caffe_port.errors import DependencyError, ParseError
from caffe_port.typing import Array

MAX_PIXELS = 1 << 27
"""Of one picture. A header of a few bytes may declare 2^30, which OpenCV by itself would take memory for."""


def opencv() -> Any:
    """The module cv2.

    Raises:
        DependencyError: it is not installed.
    """
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))  # read once, when cv2 is imported
    try:
        import cv2
    except ImportError:
        raise DependencyError("pictures need OpenCV", hint="pip install 'opencv-python-headless<5'") from None
    return cv2


@contextlib.contextmanager
def quiet(cv2: Any) -> Iterator[None]:
    """OpenCV writes every refusal to stderr before it raises it. Up to 4.12, cv2 itself sets the level of its log."""
    log = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging
    level = log.getLogLevel()
    log.setLogLevel(0)  # LOG_LEVEL_SILENT
    try:
        yield
    finally:
        log.setLogLevel(level)


def decode(data: bytes | memoryview | Array, color: int, where: str) -> Array:
    """A compressed picture, uint8 (H, W, C), channels in the order BGR, as Caffe's cv::imdecode gives it.

    Args:
        color: 1: three channels; 0: one; -1: as it was encoded.

    Raises:
        ParseError: it cannot be decoded, has more than 8 bits a channel, or more than MAX_PIXELS.
    """
    cv2 = opencv()
    flag = {1: cv2.IMREAD_COLOR, 0: cv2.IMREAD_GRAYSCALE, -1: cv2.IMREAD_UNCHANGED}[color]
    try:
        with quiet(cv2):
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), flag) if len(data) else None
    except cv2.error:
        picture = None
    if picture is None or picture.dtype != np.uint8 or picture.shape[0] * picture.shape[1] > MAX_PIXELS:
        raise ParseError("is not a picture of 8 bits a channel, or one that cannot be decoded", where)
    return np.atleast_3d(picture)
