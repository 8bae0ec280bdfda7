"""Building Caffe: what is missing, what is downloaded, interruptions; with a CMake and an sdist that are played."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from caffe_port.cli import cli
from caffe_port.errors import CaffePortError, DependencyError
from caffe_port.storage.files import lock, sha256
from caffe_port.verification.references import build_caffe

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Caffe can be built only on Linux")

ROOT_OF_SDIST = "brocolli-caffe-9.0.2"
INIT = "__version__ = '1.0.0'\ndef layer_type_list():\n    return ['ReLU', 'Power']\n"
FILES = {
    "setup.py": "raise SystemExit('setup.py was run')",
    "LICENSE": "BSD",
    "src/caffe/net.cpp": "int x;",
    "src/caffe/proto/caffe.pb.cc": "of another protobuf",
    "include/caffe/net.hpp": "",
    "python/caffe/__init__.py": INIT,
    "python/caffe/_caffe.cpp": "",
    "docs/index.md": "",
    "PKG-INFO": "",
}
CMAKE = """
case "$1" in
-S) mkdir -p "$4"; cp "$2/source/src/caffe/net.cpp" "$4";;
--build)
  [ -e "$2/../../fail" ] && { echo "net.cpp:1: error: it does not compile"; echo "ninja: build stopped"; exit 1; }
  mkdir -p "$2/made/caffe/proto"
  echo "[1/2] one"; echo "[2/2] two"
  touch "$2/_caffe.so" "$2/made/caffe/proto/caffe_pb2.py"; echo caffe > "$2/caffe";;
esac
"""


def sdist(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"{ROOT_OF_SDIST}/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def program(path: Path, code: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{code}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A system that has everything, an index with the sdist alone, and a cache of its own."""
    tools = tmp_path / "tools"
    program(tools / "cmake", CMAKE)
    program(tools / "protoc", "echo libprotoc 3.21.12")
    program(tools / "g++", "echo 12.2.0")
    (tmp_path / "index").mkdir()
    archive = sdist(tmp_path / "index" / f"{ROOT_OF_SDIST}.tar.gz", FILES)
    monkeypatch.setattr(build_caffe, "SHA256", sha256(archive))
    monkeypatch.setattr(build_caffe, "missing_packages", list)
    monkeypatch.setattr(build_caffe, "_python", lambda: sys.executable)
    monkeypatch.setattr(build_caffe, "_requirements", lambda: ["pip"])
    monkeypatch.setattr(build_caffe, "_ABOUT_BUILD", "print(311, '/headers', sep=';')")
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("CAFFE_PORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def test_from_nothing_to_a_caffe_and_no_further(machine: Path) -> None:
    """Stopped by an error, taken up again without a second download, renamed when whole, and left alone then."""
    place, part = build_caffe.folder(), build_caffe.folder().with_name("caffe-9.0.2.part")
    part.mkdir(parents=True)
    (part / "of-another-recipe").touch()
    said: list[str] = []
    steps: list[tuple[int, int]] = []
    (machine / "cache/fail").touch()
    with pytest.raises(CaffePortError, match=r"cmake --build failed: net\.cpp:1: error: it does not compile") as error:
        build_caffe.build(said.append, jobs=2)
    assert error.value.hint == f"Full log: {part / 'build.log'}"
    assert not place.exists()
    assert not (part / "of-another-recipe").exists()
    assert "setup.py was run" not in (part / "build.log").read_text()
    assert sorted(p.name for p in (part / "source").iterdir()) == ["LICENSE", "include", "python", "src"]
    assert not (part / "source/src/caffe/proto").exists()

    (machine / "index" / f"{ROOT_OF_SDIST}.tar.gz").unlink()
    (machine / "cache/fail").unlink()
    made = build_caffe.build(said.append, lambda *step: steps.append(step), jobs=2)
    assert said[-1].startswith("Caffe 1.0.0, 2 layer types, ")
    assert steps == [(1, 2), (2, 2)]
    assert not part.exists()
    assert made == json.loads((place / build_caffe.STAMP).read_text())
    assert (made["version"], made["types"], made["protoc"]) == ("1.0.0", 2, "libprotoc 3.21.12")
    left = {p.name for p in place.iterdir()}
    assert {"bin", "lib", "LICENSE", "caffe-port.json"} <= left
    assert not left & {"source", "build", "download", "CMakeLists.txt"}
    assert (place / "bin/caffe").read_text() == "caffe\n"
    assert all(path.name.startswith(("python", "caffe")) for path in (place / "bin").iterdir())

    said.clear()
    os.environ["PATH"] = "/nowhere"  # put back by the fixture; nothing is run
    assert build_caffe.build(said.append) == made
    assert said == [f"nothing to do: Caffe 1.0.0 (brocolli-caffe 9.0.2), 2 layer types: {place}"]


def test_another_file_under_the_name_is_not_used(machine: Path) -> None:
    archive = sdist(machine / "index" / f"{ROOT_OF_SDIST}.tar.gz", FILES | {"src/caffe/net.cpp": "int evil;"})
    assert sha256(archive) != build_caffe.SHA256
    part = machine / "part"
    part.mkdir()
    with pytest.raises(CaffePortError, match=r"pip download failed: .*(?i:hash)"):
        build_caffe._download(Path(sys.executable), part)
    assert not list((part / "download").glob("*.gz"))


def test_an_archive_that_leads_outside(tmp_path: Path) -> None:
    archive = sdist(tmp_path / "x.tar.gz", {"src/../../../evil.cpp": "x"})
    with pytest.raises(CaffePortError, match="holds a file outside its folder"):
        build_caffe._unpack(archive, tmp_path / "source")
    assert not (tmp_path / "source").exists()
    assert not list(tmp_path.rglob("evil.cpp"))


def test_a_build_that_no_longer_works_is_made_again(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    place = build_caffe.folder()
    program(place / "bin/python", "echo 'error while loading shared libraries' >&2; exit 127")
    (place / build_caffe.STAMP).write_text(
        json.dumps({"recipe": build_caffe._recipe(), "version": "1.0.0", "types": 77})
    )
    assert build_caffe.build(lambda _: None)["types"] == 2
    assert not place.with_name("caffe-9.0.2.old").exists()


def test_two_at_once(machine: Path) -> None:
    (machine / "cache").mkdir()
    with (
        lock(machine / "cache/caffe-9.0.2.lock", "held"),
        pytest.raises(CaffePortError, match=f"Caffe is being built by process {os.getpid()}"),
    ):
        build_caffe.build(lambda _: None)


# -- what the system has ----------------------------------------------------------------------------------------------


def test_missing_packages_are_named_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CAFFE_PORT_CACHE", str(tmp_path / "cache"))
    lacks = {"program cmake", "library hdf5, hdf5_serial", "header gtest/gtest.h"}
    monkeypatch.setattr(build_caffe, "_there", lambda need: need not in lacks)
    monkeypatch.setattr(build_caffe, "_python", lambda: None)
    result = CliRunner().invoke(cli, ["build-caffe"], standalone_mode=False)
    assert isinstance(result.exception, DependencyError)
    names = "cmake, libhdf5-dev, libgtest-dev, libboost-python-dev, python3-dev, python3-venv"
    assert result.exception.what == (
        f"cannot build Caffe: missing system packages: {names} (names in Debian 12, Ubuntu 22.04 and 24.04)"
    )
    command = f"sudo apt-get install --no-install-recommends {names.replace(',', '')}"
    assert result.exception.hint == command
    assert not (tmp_path / "cache").exists()


def test_what_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CMAKE_PREFIX_PATH", str(tmp_path))
    assert not build_caffe._there("library nowhere")
    (tmp_path / "lib/hdf5/serial").mkdir(parents=True)
    (tmp_path / "lib/libnowhere.so").touch()
    (tmp_path / "lib/hdf5/serial/libdeep.so").touch()
    assert build_caffe._there("library nowhere")
    assert build_caffe._there("library absent, deep")
    (tmp_path / "include/some").mkdir(parents=True)
    (tmp_path / "include/some/where.h").touch()
    assert build_caffe._there("header some/where.h")
    assert not build_caffe._there("header some/other.h")
    assert build_caffe._there("program no-such-program, sh")
    assert not build_caffe._there("program no-such-program")


@pytest.mark.parametrize(
    ("protoc", "protobuf"),
    [
        ("libprotoc 3.21.12", "protobuf==4.21.12"),  # Debian 12, Ubuntu 24.04
        ("libprotoc 3.12.4", "protobuf==3.20.3"),  # Ubuntu 22.04: code of before 3.20 is refused by protobuf 4
    ],
)
def test_protobuf_fits_protoc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, protoc: str, protobuf: str) -> None:
    program(tmp_path / "protoc", f"echo {protoc}")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert protobuf in build_caffe._requirements()
