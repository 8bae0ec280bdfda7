"""Caffe itself, built from source: what ``caffe-port build-caffe`` and ``make caffe`` do.

The source is PyPI's sdist brocolli-caffe 9.0.2 (BSD 2-clause): the C++ code of a Caffe 1.0 fork with SSD's layers, 77
layer types. pip downloads it, its checksum is pinned, and none of its Python code runs for the build: CMake is given a
file of ours, build_caffe.cmake. What comes out is a virtual environment of its own in the cache folder, in which
``bin/python`` imports caffe and ``bin/caffe`` trains.

Everything is made in a folder beside, whose work is taken up where a run was interrupted, and renamed at the end.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from caffe_port.errors import CaffePortError, DependencyError
from caffe_port.storage.files import cache_folder, lock, sha256, stays_inside

SDIST, VERSION = "brocolli-caffe", "9.0.2"
SHA256 = "c6410cc60bdd6db685d441b66be7df05410f8850ac88d6b75d48ef9b2315c08a"

STAMP = "caffe-port.json"
"""In a finished build: what it was made from and with. Its presence says that the build is whole."""

PACKAGES = {
    "program g++": "g++",
    "program cmake": "cmake",
    "program protoc": "protobuf-compiler",
    "program ninja, make": "ninja-build",
    "library boost_filesystem": "libboost-filesystem-dev",
    "library boost_regex": "libboost-regex-dev",
    "library boost_system": "libboost-system-dev",
    "library boost_thread": "libboost-thread-dev",
    "library gflags": "libgflags-dev",
    "library glog": "libgoogle-glog-dev",
    "library hdf5, hdf5_serial": "libhdf5-dev",
    "library leveldb": "libleveldb-dev",
    "library lmdb": "liblmdb-dev",
    "library openblas": "libopenblas-dev",
    "library protobuf": "libprotobuf-dev",
    "library snappy": "libsnappy-dev",
    "header gtest/gtest.h": "libgtest-dev",  # net.cpp includes a header of the tests
}
"""What the build needs of the system -> the package of Debian 12, Ubuntu 22.04 and Ubuntu 24.04 that has it."""

PYTHON_PACKAGES = ("libboost-python-dev", "python3-dev", "python3-venv")
"""What brings a Python that pycaffe can be built for, on the same systems."""

Say = Callable[[str], None]
Progress = Callable[[int, int], None]


def folder() -> Path:
    """The folder of the build, whether it exists or not."""
    return cache_folder() / f"caffe-{VERSION}"


def stamp(place: Path) -> dict[str, Any] | None:
    """What a finished build was made from and with; None where there is none, or one by another recipe."""
    try:
        found = json.loads((place / STAMP).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("recipe") == _recipe() else None


def build(say: Say = print, progress: Progress | None = None, jobs: int | None = None) -> dict[str, Any]:
    """Builds Caffe, unless that is done already.

    Args:
        say: called with each step and the result.
        progress: called with the number of compiled files and the total.
        jobs: compilers at a time; None: as many as there are processors, and gibibytes of memory.

    Returns:
        What stands in the stamp: ``version``, ``types``, ``python``, ``seconds`` and so on.

    Raises:
        DependencyError: packages of the system are missing; with all their names.
        CaffePortError: the download or the build fails; with its words.
    """
    place = folder()
    made = stamp(place)
    if made is not None:
        with contextlib.suppress(CaffePortError):
            _import(place)
            say(f"nothing to do: Caffe {made['version']} ({SDIST} {VERSION}), {made['types']} layer types: {place}")
            return made
    if sys.platform != "linux":
        raise CaffePortError("Caffe can be built only on Linux", hint="Use a container, or: caffe-port dump --script")
    if missing := missing_packages():
        raise DependencyError(
            f"cannot build Caffe: missing system packages: {', '.join(missing)} "
            f"(names in Debian 12, Ubuntu 22.04 and 24.04)",
            hint=f"sudo apt-get install --no-install-recommends {' '.join(missing)}",
        )
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaffePortError(f"cannot be created: {error.strerror}", str(place.parent)) from None
    with lock(place.with_name(f"{place.name}.lock"), "Caffe is being built"):
        return _build(place, str(_python()), say, progress, jobs or _jobs())


def _build(place: Path, python: str, say: Say, progress: Progress | None, jobs: int) -> dict[str, Any]:
    began, part = time.monotonic(), place.with_name(f"{place.name}.part")
    say(f"building Caffe ({SDIST} {VERSION}) with {jobs} compilers in {part}")
    begun_as = part / "recipe"
    if part.exists() and not (begun_as.exists() and begun_as.read_text("utf-8") == _recipe() + python):
        shutil.rmtree(part)
    part.mkdir(exist_ok=True)
    begun_as.write_text(_recipe() + python, "utf-8")
    own = part / "bin/python"
    if not (part / "environment").exists():
        say("creating a virtual environment with NumPy, protobuf, h5py and scikit-image")
        _run([python, "-m", "venv", str(part)], "python -m venv", part)
        _pip(own, part, "install", "--quiet", *_requirements())
        (part / "environment").touch()
    source = part / "source"
    if not source.exists():
        say(f"downloading the sources with pip; sha256 {SHA256[:12]}...")
        _unpack(_download(own, part), source)
    say("compiling")
    _compile(own, part, source, progress, jobs)
    _install(part, source)
    version, types = _import(part)
    found = {
        "sdist": f"{SDIST} {VERSION}",
        "sha256": SHA256,
        "recipe": _recipe(),
        "version": version,
        "types": types,
        "python": _output([str(own), "-c", "import platform; print(platform.python_version())"]),
        "compiler": _output([_compiler(), "-dumpfullversion"]),
        "protoc": _output(["protoc", "--version"]),
        "seconds": round(time.monotonic() - began),
    }
    for name in ("source", "build", "download", "environment", "recipe", "CMakeLists.txt"):
        _remove(part / name)
    for path in (part / "bin").iterdir():
        if not path.name.startswith("python") and path.name != "caffe":
            _remove(path)  # they name the folder in which they were made
    (part / STAMP).write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    old = place.with_name(f"{place.name}.old")
    _remove(old)
    if place.exists():
        place.rename(old)
    part.rename(place)
    _remove(old)
    say(f"Caffe {version}, {types} layer types, {found['seconds']} s: {place}")
    return found


def _recipe() -> str:
    """Changes where a build would become another."""
    return hashlib.sha256(f"{SHA256} {_cmake()}".encode()).hexdigest()


def _cmake() -> str:
    return resources.files(__package__).joinpath("build_caffe.cmake").read_text("utf-8")


# -- what the system has ----------------------------------------------------------------------------------------------


def missing_packages() -> list[str]:
    """The packages of Debian 12, Ubuntu 22.04 and 24.04 that a build here lacks; none where all is there."""
    found = [package for need, package in PACKAGES.items() if not _there(need)]
    return found if _python() else [*found, *PYTHON_PACKAGES]


def _there(need: str) -> bool:
    kind, _, names = need.partition(" ")
    for name in names.split(", "):
        if kind == "program" and (shutil.which(_compiler() if name == "g++" else name)):
            return True
        if kind == "library" and any(_in(folder, f"lib{name}.so") for folder in _folders("lib")):
            return True
        if kind == "header" and any(_in(folder, name) for folder in _folders("include")):
            return True
    return False


def _in(folder: Path, name: str) -> bool:
    return (folder / name).exists() or (folder / "hdf5/serial" / name).exists()


def _folders(kind: str) -> Iterator[Path]:
    """Where CMake looks for libraries ("lib") or headers ("include")."""
    triplets = ["", *(Path(found).name for found in glob.glob("/usr/lib/*-linux-gnu*"))]
    prefixes = [p for p in os.environ.get("CMAKE_PREFIX_PATH", "").split(os.pathsep) if p]
    for prefix in (*prefixes, "/usr/local", "/usr"):
        for folder in (kind, "lib64") if kind == "lib" else (kind,):
            yield from (Path(prefix, folder, triplet) for triplet in triplets)


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


_ABOUT = "import sys, sysconfig, ensurepip, venv; print(*sys.version_info[:2], sysconfig.get_paths()['include'])"


def _python() -> str | None:
    """A Python that pycaffe can be built for: this one, else the system's; it has headers and a Boost.Python."""
    for python in dict.fromkeys((sys.executable, "/usr/bin/python3", *sorted(glob.glob("/usr/bin/python3.[0-9]*")))):
        try:
            major, minor, include = _output([python, "-I", "-c", _ABOUT]).split(" ", 2)
        except (CaffePortError, ValueError):
            continue
        boost = f"library boost_python{major}{minor}"
        if Path(include, "Python.h").exists() and _there(boost):
            return python
    return None


def _jobs() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return max(1, min(len(os.sched_getaffinity(0)), memory))


# -- the steps --------------------------------------------------------------------------------------------------------


def _requirements() -> list[str]:
    """What pycaffe imports. NumPy's second version broke its API; protobuf must read what protoc wrote."""
    said = re.search(r"(\d+)\.(\d+)\.(\d+)", _output(["protoc", "--version"]))
    old = said is not None and (int(said[1]), int(said[2])) < (3, 20)
    protobuf = "protobuf==3.20.3" if old or said is None else f"protobuf==4.{said[2]}.{said[3]}"
    return ["numpy<2; python_version < '3.13'", protobuf, "h5py", "scikit-image", "six"]


_STAND_IN = f'''"""Stands in for setuptools: pip wants a name and a version of the sdist before it keeps the file."""
import os
import sys

__legacy__ = sys.modules[__name__]


def get_requires_for_build_wheel(config_settings=None):
    return []


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    name = "{SDIST.replace("-", "_")}-{VERSION}.dist-info"
    os.mkdir(os.path.join(metadata_directory, name))
    with open(os.path.join(metadata_directory, name, "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: {SDIST}\\nVersion: {VERSION}\\n")
    return name
'''


def _download(python: Path, part: Path) -> Path:
    """The sdist, by pip. Its setup.py would be run to tell name and version; the stand-in tells them."""
    target, stand_in = part / "download", part / "download/stand-in/setuptools"
    found = target / f"{SDIST}-{VERSION}.tar.gz"
    if found.exists() and sha256(found) == SHA256:
        return found
    stand_in.mkdir(parents=True, exist_ok=True)
    (stand_in / "__init__.py").touch()
    (stand_in / "build_meta.py").write_text(_STAND_IN, "utf-8")
    pinned = target / "requirements.txt"
    pinned.write_text(f"{SDIST}=={VERSION} --hash=sha256:{SHA256}\n", "utf-8")
    options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--use-pep517", "--require-hashes"]
    _pip(python, part, "download", *options, "--dest", str(target), "-r", str(pinned), path=str(stand_in.parent))
    if not found.exists():
        raise CaffePortError("pip did not download it", str(found))
    if (checksum := sha256(found)) != SHA256:
        raise CaffePortError(f"has the sha256 {checksum}, expected {SHA256}; it was not used", str(found))
    return found


def _unpack(archive: Path, target: Path) -> None:
    """What the build needs of the sdist, without its first folder and without the C++ code of another protobuf."""
    _remove(half := target.with_name("source.half"))
    with tarfile.open(archive) as files:
        for member in files:
            path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            wanted = path.parts[:1] in (("include",), ("src",), ("python",), ("tools",)) or path.name == "LICENSE"
            if not (wanted and member.isfile()) or path.name in ("caffe.pb.h", "caffe.pb.cc"):
                continue
            if not stays_inside(str(path)):
                raise CaffePortError(f"holds a file outside its folder: {member.name}", str(archive))
            content = files.extractfile(member)
            assert content is not None
            (half / path).parent.mkdir(parents=True, exist_ok=True)
            (half / path).write_bytes(content.read())
    half.rename(target)


_ABOUT_BUILD = """
import sys, sysconfig, numpy
print("%d%d" % sys.version_info[:2], sysconfig.get_paths()["include"], numpy.get_include(), sep=";")
"""


def _compile(python: Path, part: Path, source: Path, progress: Progress | None, jobs: int) -> None:
    (part / "CMakeLists.txt").write_text(_cmake(), "utf-8")
    digits, _, headers = _output([str(python), "-I", "-c", _ABOUT_BUILD]).partition(";")
    configure = ["cmake", "-S", str(part), "-B", str(part / "build"), f"-DSOURCE={source}", f"-DPYTHON={digits}"]
    configure += [f"-DPYTHON_HEADERS={headers}", f"-DCMAKE_CXX_COMPILER={_compiler()}"]
    configure += ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O2 -DNDEBUG"]
    _run([*configure, *(["-GNinja"] if shutil.which("ninja") else [])], "cmake", part)
    command = ["cmake", "--build", str(part / "build"), "--parallel", str(jobs)]
    _run(command, "cmake --build", part, progress)


def _install(part: Path, source: Path) -> None:
    """pycaffe into the environment's packages, the program into its bin."""
    (site,) = part.glob("lib/python3*/site-packages")
    _remove(site / "caffe")
    shutil.copytree(source / "python/caffe", site / "caffe", ignore=shutil.ignore_patterns("test", "*.cpp"))
    shutil.copy(part / "build/_caffe.so", site / "caffe")
    (site / "caffe/proto").mkdir(exist_ok=True)
    (site / "caffe/proto/__init__.py").touch()
    shutil.copy(part / "build/made/caffe/proto/caffe_pb2.py", site / "caffe/proto")
    shutil.copy(part / "build/caffe", part / "bin")
    shutil.copy(source / "LICENSE", part / "LICENSE")


def _import(place: Path) -> tuple[str, int]:
    """Version and number of layer types, as the build says them. Raises CaffePortError where it cannot be imported."""
    said = _output([str(place / "bin/python"), "-I", "-c", _SAYS]).splitlines()[-1]
    version, _, types = said.partition(" ")
    return version, int(types)


_SAYS = "import caffe; print(caffe.__version__, len(caffe.layer_type_list()))"


# -- running and removing ---------------------------------------------------------------------------------------------


def _pip(python: Path, part: Path, *arguments: str, path: str | None = None) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    _run(command, f"pip {arguments[0]}", part, environment={} if path is None else {"PYTHONPATH": path})


def _run(
    command: Sequence[str],
    what: str,
    part: Path,
    progress: Progress | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Runs a step, whose output is kept in build.log. Raises CaffePortError with the line that tells most."""
    log, telling, last = part / "build.log", "", ""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")} | dict(environment or {})
    with open(log, "a", buffering=1, encoding="utf-8") as kept:
        kept.write(f"\n$ {' '.join(command)}\n")
        try:
            running = subprocess.Popen(  # noqa: S603
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
            )
        except OSError as error:
            raise CaffePortError(f"{what} cannot be run: {error.strerror}", command[0]) from None
        with running:
            assert running.stdout is not None
            for line in running.stdout:
                kept.write(line)
                last = line.strip() or last
                if not telling and re.search(r"\b(fatal )?error\b", line, re.IGNORECASE):
                    telling = line.strip()
                if progress and (step := re.match(r"\[(\d+)/(\d+)\]|\[ *(\d+)%\]", line)):
                    progress(int(step[1] or step[3]), int(step[2] or 100))
    if running.returncode:
        raise CaffePortError(f"{what} failed: {(telling or last or 'no message')[:300]}", "", f"Full log: {log}")


def _output(command: Sequence[str]) -> str:
    """What a short command prints. Raises CaffePortError where it fails."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace")  # noqa: S603
    except OSError as error:
        raise CaffePortError(f"cannot be run: {error.strerror}", command[0]) from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CaffePortError(f"fails: {said}", " ".join(command))
    return done.stdout.strip()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
