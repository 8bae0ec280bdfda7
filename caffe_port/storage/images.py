"""Decodes compressed images with OpenCV, silently and within a size limit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from caffe_port.errors import DependencyError, ParseError
from caffe_port.typing import Array

MAX_PIXELS = 1 << 27
"""Limit per image. A header of a few bytes may declare 2^30 pixels, for which OpenCV by default allocates memory."""


def opencv() -> Any:
    """Imports cv2.

    Raises:
        DependencyError: it is not installed.
    """
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))  # read once, when cv2 is imported
    try:
        import cv2
    except ImportError:
        raise DependencyError("reading images requires OpenCV", hint="pip install 'opencv-python-headless<5'") from None
    return cv2


@contextlib.contextmanager
def quiet(cv2: Any) -> Iterator[None]:
    """Silences OpenCV, which logs every error to stderr before raising it. Up to 4.12, the log level is set on cv2."""
    log = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging
    level = log.getLogLevel()
    log.setLogLevel(0)  # LOG_LEVEL_SILENT
    try:
        yield
    finally:
        log.setLogLevel(level)


def decode(data: bytes | memoryview | Array, color: int, where: str) -> Array:
    """Decodes a compressed image to uint8 (H, W, C) with BGR channels, as cv::imdecode does for Caffe.

    Args:
        color: 1: three channels; 0: one channel; -1: as encoded.

    Raises:
        ParseError: it cannot be decoded, has more than 8 bits per channel, or more than MAX_PIXELS pixels.
    """
    cv2 = opencv()
    flag = {1: cv2.IMREAD_COLOR, 0: cv2.IMREAD_GRAYSCALE, -1: cv2.IMREAD_UNCHANGED}[color]
    try:
        with quiet(cv2):
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), flag) if len(data) else None
    except cv2.error:
        picture = None
    if picture is None or picture.dtype != np.uint8 or picture.shape[0] * picture.shape[1] > MAX_PIXELS:
        raise ParseError("cannot be decoded as an image with 8 bits per channel", where)
    return np.atleast_3d(picture)
