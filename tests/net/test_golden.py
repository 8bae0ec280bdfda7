"""Every layer type against what Caffe 1.0 computed: tops, gradients, and the blobs that a forward pass changes."""

from __future__ import annotations

from pathlib import Path

import golden_nets
import pytest
from conftest import GOLDEN

CASES = sorted((GOLDEN / "layers").glob("*.prototxt"))


def test_all_cases_are_here() -> None:
    assert len(CASES) == 196


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_as_caffe(path: Path) -> None:
    golden_nets.assert_as_caffe(path)
