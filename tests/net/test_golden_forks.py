"""Every net that a fork ran, against its figures: tops, gradients, and the blobs that a forward pass changes."""

from __future__ import annotations

from pathlib import Path

import golden_nets
import pytest
from conftest import SHARED, needs_shared

FORKS = sorted((SHARED / "golden" / "forks").glob("*.prototxt"))

#: Written by the types that detect things, which have tests of their own.
DETECTION = ("detection", "multibox", "priorbox", "proposal", "psroi", "ssd_", "smoothl1")

DIALECT = dict.fromkeys(("bn_frozen", "bn_test", "bn_test_eps"), "brocolli")
"""Nets whose fork neither the file nor its weights tell: what the user says."""

DIFFERS = {"bn_test": ("grad:x",), "bn_test_eps": ("grad:x",)}
"""Where caffe-port differs on purpose. BN: in phase TEST that fork's backward pass takes the formula for the statistics
of the batch, though its forward pass took the stored ones; here the gradient is the derivative.
"""


@needs_shared
@pytest.mark.parametrize("path", [p for p in FORKS if not p.stem.startswith(DETECTION)], ids=lambda p: p.stem)
def test_as_the_fork(path: Path) -> None:
    golden_nets.assert_as_caffe(path, DIALECT.get(path.stem), DIFFERS.get(path.stem, ()))
