"""What `caffe-port doctor` says of installations that lack something."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import caffe_port
from caffe_port.cli import cli
from caffe_port.inspection import doctor
from caffe_port.inspection.doctor import Checkup, Finding, examine
from caffe_port.verification.references import build_caffe


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CAFFE_PORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CAFFE_PORT_PYCAFFE", raising=False)


def named(found: Checkup) -> dict[str, Finding]:
    return {finding.name: finding for finding in found.findings}


def test_a_whole_installation(tmp_path: Path) -> None:
    (tmp_path / "cache" / "weights").mkdir(parents=True)
    (tmp_path / "cache" / "weights" / "w").write_bytes(bytes(2048))
    result = CliRunner().invoke(cli, ["doctor", "--json"], standalone_mode=False)
    assert result.return_value == 0
    shown = json.loads(result.stdout)
    assert shown["healthy"]
    assert shown["caffe-port"] == caffe_port.__version__
    found = {row["name"]: row for row in shown["findings"]}
    assert found["torch"]["text"] == metadata.version("torch")
    assert found["OpenCV"]["text"] == f"OpenCV {cv2.__version__}: verified a net of 2 layers"
    assert found["NumPy formulas"]["text"].startswith(f"NumPy {np.__version__}")
    assert "bit-equal" in found["convert"]["text"]
    assert "2.0 KiB" in found["folder"]["text"]
    assert f"{torch.get_num_threads()} threads" in found["CPU"]["text"]
    assert found["GPU"]["ok"] == torch.cuda.is_available()


def test_the_page_for_a_person() -> None:
    result = CliRunner().invoke(cli, ["doctor"], standalone_mode=False)
    assert result.return_value == 0
    parts = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert parts[:-1] == ["packages", "extras", "references", "devices", "cache", "self-test"]
    assert parts[-1].startswith("converting and verifying work (")


def test_without_opencv_the_formulas_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    found = examine()
    assert found.healthy
    assert named(found)["OpenCV"].text == "OpenCV is not installed"
    assert "pip install 'opencv-python-headless<5'" in named(found)["OpenCV"].hint
    assert named(found)["NumPy formulas"].ok


def test_an_importer_that_does_not_work_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise cv2.error("the importer is broken")

    monkeypatch.setattr(cv2.dnn, "readNetFromCaffe", read)
    found = examine()
    assert not named(found)["OpenCV"].ok, "formulas in its place do not count"
    assert found.healthy


def test_nothing_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NET", "layer {")
    result = CliRunner().invoke(cli, ["doctor"], standalone_mode=False)
    assert result.return_value == 1
    assert "converting or verifying does not work" in result.stdout


def test_extras_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name in ("h5py", "lmdb"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(
        metadata,
        "requires",
        lambda _: [
            "numpy>=1.26",
            "h5py>=3.8; extra == 'data'",
            'lmdb>=1.4 ; extra == "data"',
            "matplotlib>=3.8; extra == 'plot'",
            "h5py>=3.8; extra == 'hdf5'",
            "pytest>=8; extra == 'test'",
        ],
    )
    found = {finding.name: finding for finding in doctor._extras()}
    assert list(found) == list(doctor.EXTRAS)
    assert found["data"].hint == "pip install 'h5py>=3.8' 'lmdb>=1.4'"
    assert "missing: h5py>=3.8, lmdb>=1.4" in found["data"].text
    assert found["plot"].ok
    assert found["plot"].hint == ""


def test_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(_: str) -> None:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "requires", requires)
    (found,) = doctor._extras()
    assert found.hint == "pip install -e ."


@pytest.mark.parametrize(
    ("code", "ok", "text"),
    [
        (
            """echo '["1.0.0", "/opt/caffe/__init__.py", ["ReLU"]]'""",
            True,
            "Caffe 1.0.0 (/opt/caffe), 1 layer type, run by ",
        ),
        ("echo 'ImportError: libboost_python.so.1.58' >&2; exit 1", False, "libboost_python"),
    ],
)
def test_where_caffe_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, ok: bool, text: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{code}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CAFFE_PORT_PYCAFFE", str(python))
    found = doctor._tried("references", "Caffe", doctor._caffe, tmp_path)
    assert found.ok is ok
    assert text in found.text
    assert str(python) in found.text


def test_a_caffe_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build_caffe, "missing_packages", lambda: ["cmake", "libgtest-dev"])
    monkeypatch.setenv("CAFFE_PORT_PYCAFFE", str(tmp_path / "absent"))
    found = doctor._tried("references", "Caffe", doctor._caffe, tmp_path)
    assert found.text == f"{tmp_path / 'absent'} cannot be run: No such file or directory"
    assert "caffe-port build-caffe, or set CAFFE_PORT_PYCAFFE" in found.hint
    if sys.platform == "linux":
        assert found.hint.endswith("to build it: sudo apt-get install --no-install-recommends cmake libgtest-dev")


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CAFFE_PORT_CACHE", str(tmp_path / "file" / "cache"))
    found = doctor._tried("cache", "folder", doctor._cache, tmp_path)
    assert not found.ok
    assert "CAFFE_PORT_CACHE" in found.hint
    assert not (tmp_path / "cache").exists(), "looking makes no folder"


def test_asking_for_versions_imports_nothing() -> None:
    code = "import sys; from caffe_port.inspection import doctor; doctor.versions(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
