"""Arrays of .npy files; hostile .npz files are in test_hostile.py and test_limits.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_port.errors import ParseError
from caffe_port.storage.npz import read_npy


def test_no_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object))
    (tmp_path / "t.npy").write_text("1 2 3")
    for name in ("o.npy", "t.npy"):
        with pytest.raises(ParseError, match=r"is not an \.npy array"):
            read_npy(tmp_path / name)
    np.save(tmp_path / "s.npy", np.array(["a"]))
    with pytest.raises(ParseError, match="holds no numbers"):
        read_npy(tmp_path / "s.npy")
