"""Fixtures of all tests. Figures and files that are too large or not ours to keep lie in ../shared."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

from caffe_port.verification.references import build_caffe

if "PYTEST_XDIST_WORKER" in os.environ:  # one worker per core: their threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run: a suite that fails must fail again.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None)
hypothesis.settings.load_profile("suite")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
GOLDEN = HERE / "golden"
SHARED = Path(os.environ.get("CAFFE_PORT_SHARED") or ROOT.parent / "shared")

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared folder ($CAFFE_PORT_SHARED) is not here")


CAFFE = build_caffe.folder() if build_caffe.stamp(build_caffe.folder()) else None
"""Caffe itself, where ``make caffe`` built it."""


def real_files(suffix: str) -> list[Path]:
    """The shared files that Caffe 1.0 wrote or reads: no fork's, and none that is wrong on purpose."""
    folders = [SHARED / "models", *(SHARED / "golden" / name for name in ("layers", "nets", "solvers"))]
    return sorted(path for folder in folders for path in folder.rglob(f"*{suffix}"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models, data and nets' goldens; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the shared folder ($CAFFE_PORT_SHARED) is not here")
    return SHARED


@pytest.fixture
def caffe(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of Caffe itself, which ``--against caffe`` then finds; skips where it is not built."""
    if CAFFE is None:
        pytest.skip("Caffe itself is not built (make caffe)")
    monkeypatch.delenv("CAFFE_PORT_PYCAFFE", raising=False)
    monkeypatch.setenv("CAFFE_PORT_CACHE", str(CAFFE.parent))
    return CAFFE


@pytest.fixture(scope="session")
def golden() -> Path:
    """What Caffe 1.0 computed: tests/golden/layers and tests/golden/solvers."""
    return GOLDEN
