"""What can be known before torch is imported, which takes seconds: is each file there, of the right kind, and writable?

Every check raises the error that would otherwise come later. What passes is not thereby good.
"""

from __future__ import annotations

import ast
import errno
import importlib.util
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caffe_port.errors import CaffePortError, DependencyError
from caffe_port.storage import output_folder as files
from caffe_port.storage.files import opened, read_bytes
from caffe_port.typing import PathLike

if TYPE_CHECKING:
    from caffe_port.training.solver_file import SolverSpec

REFERENCES = ("opencv", "numpy", "caffe", "pycaffe")


def readable(*paths: PathLike | None) -> None:
    """Raises CaffePortError for a path that is not a file; None is not checked."""
    for path in paths:
        if path is not None:
            opened(path).close()


def writable(*paths: PathLike | None) -> None:
    """Raises CaffePortError for a file to be written whose folder does not exist, or whose name is that of a folder."""
    for path in paths:
        if path is None:
            continue
        if os.path.isdir(path):
            raise CaffePortError("is a folder; expected the name of a file", str(path))
        folder = Path(path).parent
        if not folder.is_dir():
            what = os.strerror(errno.ENOTDIR if folder.exists() else errno.ENOENT)
            raise CaffePortError(f"cannot be written: {what}", str(path), f"Create the folder '{folder}' first.")


def overwrites(outputs: Iterable[PathLike], inputs: Iterable[PathLike]) -> None:
    """Raises CaffePortError for a file to be written that is also read, or is to be written twice.

    Args:
        outputs: files to be written.
        inputs: what may name files to be read: paths, ``NAME=FILE``, ``RUNTIME:FILE`` or ``FILE:CLASS``.
    """
    read = [part for text in map(str, inputs) for part in (text, *text.partition("=")[2:], *_around_colon(text))]
    written: list[str] = []
    for path in map(str, outputs):
        if os.path.isfile(path) and any(_same_file(path, other) for other in read):
            raise CaffePortError("is an input, which the output would overwrite", path, "Name another file to write.")
        if any(_same_file(path, other) for other in written):
            raise CaffePortError("is named for two outputs", path, "Name a file for each.")
        written.append(path)


def _around_colon(text: str) -> tuple[str, str]:
    before, _, after = text.rpartition(":")
    return before, after


def _same_file(one: str, other: str) -> bool:
    """Whether two paths name one regular file, which need not be there yet."""
    if not os.path.lexists(one):
        return os.path.abspath(one) == os.path.abspath(other)
    try:
        return os.path.isfile(one) and os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def package(names: Iterable[str], what: str, extra: str) -> None:
    """Raises DependencyError if a package is not installed.

    Args:
        names: the packages, as they are imported.
        what: what requires them.
        extra: the extra of caffe-port that installs them.
    """
    for name in names:
        if not _installed(name):
            raise DependencyError(f"{what} requires {name}", hint=f"pip install 'caffe-port[{extra}]'")


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def plot(path: PathLike | None) -> None:
    """Checks what a plot needs, if one is wanted."""
    if path is not None:
        package(("matplotlib",), "a plot", "plot")
        writable(path)


def mean(text: Any) -> None:
    """Checks the file of ``--mean``, if it names one."""
    if isinstance(text, str) and text.lower().endswith((".binaryproto", ".npy")):
        readable(text)


def values(given: str | Mapping[str, str] | None) -> None:
    """Checks the files of ``--input``."""
    for path in given.values() if isinstance(given, Mapping) else (given,):
        readable(path)


def reference(against: str, state: str | None) -> None:
    """Checks ``--against``: a name, a trace, or a hand-written port ``FILE.py:Class``; and the state of the latter."""
    file, colon, name = against.rpartition(":")
    if colon and file.lower().endswith(".py"):
        if not Path(file).is_file():
            raise CaffePortError("is not a file", file, "Name your port as path/to/file.py:Class.")
        _module(file, name)
        readable(state)
        return
    if state is not None:
        raise CaffePortError("a state needs a hand-written port: --against path/to/file.py:Class --state FILE")
    if against.lower() in REFERENCES:
        caffe(against)
        return
    if against.lower().endswith(".py"):
        _module(against, "")
    from caffe_port.storage import npz
    from caffe_port.verification.references import runtimes

    if (runtime := runtimes.find(against)) is not None:
        if not _installed(runtime.runtime):
            runtime.name  # noqa: B018 - raises the error that says how to install it
        return
    if not against.endswith(".npz") and not Path(against).exists():
        raise CaffePortError(f"cannot compare with '{against}'", hint=runtimes.KNOWN)

    npz.names(against, "a trace")


def is_trace(against: str) -> bool:
    """Whether ``--against``, once checked by :func:`reference`, names a trace."""
    from caffe_port.verification.references import runtimes

    return against.lower() not in REFERENCES and ".py" not in against and runtimes.find(against) is None


def training(
    solver: str, out: Path, ignored: tuple[str, ...], resume: bool | str, options: Mapping[str, Any]
) -> SolverSpec:
    """Checks the files of a training, and reads the solver and its nets.

    Args:
        solver, out, ignored, resume: the solver.prototxt, the run's folder, fields to go without, and what to resume.
        options: ``data``, ``root``, ``download``, ``weights``, ``reference_log`` and ``tensorboard``.
    """
    run_folder(out, resume)
    if isinstance(resume, str):
        if resume.lower().endswith((".caffemodel", ".caffemodel.h5")):
            hint = "Start a new training from it with --weights; --resume takes the .solverstate beside it."
            raise CaffePortError("holds weights, not the state of a training", resume, hint)
        readable(resume)
    given = options["weights"]
    for path in () if given is None else [given] if Path(given).is_file() else given.split(","):
        if path.strip().lower().endswith((".solverstate", ".solverstate.h5")):
            hint = "Continue its training with --resume; --weights takes the .caffemodel beside it."
            raise CaffePortError("is the state of a training, not weights", path.strip(), hint)
        readable(path.strip())
    readable(options["reference_log"])
    if options["tensorboard"]:
        package(("tensorboard",), "--tensorboard", "tensorboard")
    from caffe_port.training.solver_file import SolverSpec

    spec = SolverSpec.read(solver, ignored)
    nets = [(spec.definition(), "TRAIN", 0)]
    nets += [(spec.definition("TEST", k), "TEST", k) for k in range(len(spec.tests))]
    from caffe_port.definition.fields import refuse
    from caffe_port.definition.structure import check_types

    check_types([refuse(definition.spec(phase, *spec.state(phase, k)), training=True) for definition, phase, k in nets])
    if options["data"] is not None:
        data_set(options["data"], options["root"], options["download"], ("train", "test") if spec.tests else ("train",))
        return spec
    from caffe_port.data import sources

    for definition, phase, number in nets:
        sources.check(definition.spec(phase, *spec.state(phase, number)))
    return spec


def run_folder(out: Path, resume: object) -> None:
    """Checks that a run may be written to a folder."""
    if out.exists() and not out.is_dir():
        raise CaffePortError("is a file; expected a folder", str(out))
    _has_folder(out)
    from caffe_port.training.run_files import check_unused

    check_unused(out, resume)


def data_set(data: str, root: PathLike | None, download: bool, splits: Iterable[str]) -> None:
    """Checks that the parts of a data set are there."""
    from caffe_port.data import set_files

    for split in splits:
        set_files.check(data, split, root, download)


def caffe(name: str) -> None:
    """Raises DependencyError if Caffe itself is to be run and is not there. One that was built is not asked."""
    if name.lower() in ("caffe", "pycaffe"):
        from caffe_port.verification.references import caffe as installed

        if not installed.may_be_here():
            installed.find()


def output_folder(folder: Path, force: bool) -> None:
    """Checks that a command may write to a folder."""
    files.check(folder, force)
    _has_folder(folder)


def _has_folder(path: Path) -> None:
    """Raises CaffePortError if a folder cannot be created because a file is where one of its parents should be."""
    above = next((each for each in path.absolute().parents if os.path.lexists(each)), None)
    if above is not None and not above.is_dir():
        raise CaffePortError(f"cannot be created: '{above.name}' is a file", str(path))


def _module(path: str, name: str) -> None:
    """Raises CaffePortError if a Python file cannot be parsed; without the name of a class, says which there are."""
    try:
        tree = ast.parse(read_bytes(path), path)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        at = f"{path}:{line}" if line else path
        raise CaffePortError(f"is not a Python file: {getattr(error, 'msg', error)}", at) from None
    if name:
        return
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    made = [f"{path}:{each}" for each in classes]
    hint = f"Name it: --against {made[-1]}" if len(made) == 1 else f"Choose one: {', '.join(made)}"
    if not made:
        hint = "Name a class, or a function that returns the module: --against path/to/file.py:name"
    held = f"it has {' and '.join([', '.join(classes[:-1]), classes[-1]] if len(classes) > 1 else classes)}"
    raise CaffePortError(f"which class is to be compared? {held if made else 'It has none'}", path, hint)
