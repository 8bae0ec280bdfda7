"""What an installation brings: the wheel and the sdist hold everything that the library opens."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

NEEDED = (
    "formats/caffe.binpb",
    "py.typed",
    "layers/spatial.py",
    "verification/references/build_caffe.cmake",
    "verification/references/dump_with_caffe.txt",
    "verification/references/numpy_formulas/__init__.py",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_wheel(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = [n for n in names if n.endswith("entry_points.txt")]
        assert "caffe-port = caffe_port.__main__:main" in archive.read(entry_points).decode()
    for name in NEEDED:
        assert f"caffe_port/{name}" in names
    for path in (path for path in (ROOT / "model_defs").rglob("*") if path.is_file()):
        assert f"caffe_port/{path.relative_to(ROOT).as_posix()}" in names
    assert not [n for n in names if n.startswith(("proto/", "tests/", "model_defs/"))], "nothing else is importable"


def test_sdist_builds_the_same_wheel(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("proto/caffe.proto", "model_defs/registry.toml", "LICENSE", "README.md", "cli.py", "Makefile"):
        assert name in names
    for name in NEEDED:
        assert f"caffe_port/{name}" in names
    assert "tests/golden/layers/net_residual.npz" in names
