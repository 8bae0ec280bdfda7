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
from typing import Any

from caffe_port.errors import CaffePortError, DependencyError
from caffe_port.storage import npz
from caffe_port.storage.files import opened, read_bytes
from caffe_port.typing import PathLike

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


def package(names: Iterable[str], what: str, extra: str) -> None:
    """Raises DependencyError if a package is not installed.

    Args:
        names: the packages, as they are imported.
        what: what requires them.
        extra: the extra of caffe-port that installs them.
    """
    for name in names:
        try:
            found = importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            found = False
        if not found:
            raise DependencyError(f"{what} requires {name}", hint=f"pip install 'caffe-port[{extra}]'")


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
        return
    if against.lower().endswith(".py"):
        _module(against, "")
    if not against.endswith(".npz") and not Path(against).exists():
        hint = "It is opencv, numpy, caffe, a trace (a file that ends in .npz), or a module: path/to/file.py:Class."
        raise CaffePortError(f"cannot compare with '{against}'", hint=hint)
    npz.names(against, "a trace")


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
