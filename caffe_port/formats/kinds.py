"""Whether a file is a prototxt or weights, by its name and its first bytes."""

from __future__ import annotations

from pathlib import Path

from caffe_port.errors import CaffePortError
from caffe_port.storage.files import opened

WEIGHTS = (".caffemodel", ".h5", ".hdf5", ".binaryproto", ".solverstate")


def holds_weights(file: str | Path) -> bool:
    """Whether a file holds weights rather than text; False for one that cannot be read."""
    name = str(file).lower()
    if name.endswith(WEIGHTS):
        return True
    if name.endswith(".prototxt"):
        return False
    try:
        with opened(file) as head:
            return b"\0" in head.read(4096)
    except (OSError, CaffePortError):
        return False  # reading it as text reports the error
