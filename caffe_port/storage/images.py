"""Decodes compressed images with OpenCV, silently and within a size limit."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading
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


@functools.cache
def _c_stderr() -> tuple[ctypes.c_void_p, int] | None:
    """The C library's variable ``stderr``, and a stream to /dev/null; None if the variable cannot be set.

    libpng and libjpeg print to the C library's stream what is wrong with an image, which no setting of OpenCV prevents.
    Python writes to file descriptor 2 instead, so that its messages, also those of other threads, are not affected, as
    they would be by redirecting the descriptor.
    """
    if sys.platform not in ("linux", "darwin"):
        return None
    library = ctypes.CDLL(None)
    if sys.platform == "linux" and not hasattr(library, "gnu_get_libc_version"):
        return None  # musl's variable is a constant
    library.fopen.restype = ctypes.c_void_p
    nowhere = library.fopen(os.devnull.encode(), b"w")
    name = "__stderrp" if sys.platform == "darwin" else "stderr"
    return (ctypes.c_void_p.in_dll(library, name), nowhere) if nowhere else None


_silent = threading.Lock()
_decoding = 0
_their_stderr: int | None = None


@contextlib.contextmanager
def _silent_codecs() -> Iterator[None]:
    """Silences libpng and libjpeg while at least one thread decodes."""
    global _decoding, _their_stderr
    streams = _c_stderr()
    if streams is None:
        yield
        return
    variable, nowhere = streams
    with _silent:
        if not _decoding:
            _their_stderr, variable.value = variable.value, nowhere
        _decoding += 1
    try:
        yield
    finally:
        with _silent:
            _decoding -= 1
            if not _decoding:
                variable.value = _their_stderr


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
        with quiet(cv2), _silent_codecs():
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), flag) if len(data) else None
    except cv2.error:
        picture = None
    if picture is None or picture.dtype != np.uint8 or picture.shape[0] * picture.shape[1] > MAX_PIXELS:
        raise ParseError("cannot be decoded as an image with 8 bits per channel", where)
    return np.atleast_3d(picture)
