"""Images that nobody vouches for are decoded silently; what caffe-port itself says meanwhile is not lost."""

from __future__ import annotations

import ctypes
import os
import sys

import cv2
import numpy as np
import pytest

from caffe_port.errors import ParseError
from caffe_port.storage import images

PICTURE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


def damaged(form: str) -> bytes:
    """An image of which OpenCV's codec says something: a wrong checksum, or missing data."""
    done, data = cv2.imencode(form, PICTURE)
    assert done
    data = data.tobytes()
    return data[:-2000] + bytes(1200) + data[-800:]


@pytest.mark.parametrize("form", [".png", ".jpg"])
def test_codecs_are_silent(form: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = damaged(form)
    cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert capfd.readouterr().err, "OpenCV alone prints something, or this test shows nothing"
    try:
        images.decode(data, 1, "x")
    except ParseError as error:
        assert "cannot be decoded" in str(error)  # noqa: PT017 - another version of OpenCV may refuse or not
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(images._c_stderr() is None, reason="the C library's stderr cannot be set")
def test_python_is_heard_meanwhile_and_c_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    """As a thread that logs while others decode."""
    c = ctypes.CDLL(None)
    with images._silent_codecs(), images._silent_codecs():
        c.perror(b"C during")
        os.write(2, b"by descriptor\n")
        print("by Python", file=sys.stderr, flush=True)
    c.perror(b"C after")
    said = capfd.readouterr().err
    assert said.startswith("by descriptor\nby Python\nC after")
