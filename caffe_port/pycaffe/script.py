"""Runs a script of pycaffe's: ``import caffe`` means caffe_port.pycaffe in it, and in what it imports.

This runs the user's own code, which is what the command is for; nothing else in caffe-port does.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from caffe_port.errors import CaffePortError

_REMOVED = {"float": float, "int": int, "bool": bool, "object": object, "str": str, "complex": complex}
"""Names that NumPy 1.24 removed, which the scripts of Caffe's years are full of."""


def as_caffe() -> None:
    """Makes ``import caffe``, and ``import caffe.io`` and so on, mean this package in this process.

    Raises:
        CaffePortError: another caffe was imported already.
    """
    package = importlib.import_module("caffe_port.pycaffe")
    there = sys.modules.get("caffe")
    if there is not None and there is not package:
        raise CaffePortError(f"another caffe is imported already: {getattr(there, '__file__', '')}")
    sys.modules["caffe"] = sys.modules["caffe.pycaffe"] = sys.modules["caffe._caffe"] = package
    package.__dict__.update(pycaffe=package, _caffe=package)
    package.__path__ = _Folders(package.__path__)
    for module in _modules(package):
        sys.modules[f"caffe{module.__name__.removeprefix(package.__name__)}"] = module


class _Folders(list[str]):
    """Where modules of ``caffe`` are: here, then in any folder ``caffe`` of sys.path, for what a fork alone has.

    SSD's ``caffe.model_libs`` is one.
    """

    def __iter__(self) -> Iterator[str]:
        yield from super().__iter__()
        yield from filter(os.path.isdir, (os.path.join(entry, "caffe") for entry in sys.path))


def _modules(package: types.ModuleType) -> Iterator[types.ModuleType]:
    for found in pkgutil.walk_packages(package.__path__[:], f"{package.__name__}."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def run(path: str | os.PathLike[str], arguments: Sequence[str] = ()) -> None:
    """Runs a script as Python would: as ``__main__``, its folder first on the path, ``sys.argv`` its arguments.

    The names that NumPy removed in 1.24 (``np.float``) exist again.

    Raises:
        CaffePortError: there is no such script, or it is written for Python 2.
        SystemExit, Exception: what the script raises.
    """
    code = _compiled(path)
    as_caffe()
    for name, kind in _REMOVED.items():
        if name not in np.__dict__:
            setattr(np, name, kind)
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=str(path), __builtins__=__builtins__)
    before = sys.modules["__main__"], sys.argv, sys.path[:]
    sys.modules["__main__"] = main
    sys.argv = [str(path), *arguments]
    sys.path[0:0] = [str(Path(path).resolve().parent)]
    try:
        exec(code, main.__dict__)  # noqa: S102 - the purpose of the command
    finally:
        sys.modules["__main__"], sys.argv, sys.path[:] = before


def _compiled(path: str | os.PathLike[str]) -> types.CodeType:
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        raise CaffePortError(f"cannot be read: {error.strerror}", str(path)) from None
    try:
        return compile(source, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        hint = python2(error, source.decode("utf-8", "replace"))
        raise CaffePortError(f"is not Python 3: {error.msg}", f"{path}:{error.lineno}", hint) from None
    except ValueError as error:
        raise CaffePortError(f"is not a Python script: {error}", str(path)) from None


def main(path: str | os.PathLike[str], arguments: Sequence[str] = ()) -> int:
    """:func:`run`, with what it raises shown as Python shows it.

    Returns:
        0, or 1 after an exception of the script's.

    Raises:
        CaffePortError: as for :func:`run`, or from the script; then the line of the script was printed.
        SystemExit: what the script gave to sys.exit.
    """
    try:
        run(path, arguments)
    except CaffePortError as error:
        if place := line_of(error, path):
            sys.stderr.write(f"{place}: the script stops here\n")
        raise
    except Exception as error:  # noqa: BLE001 - whatever the script raises
        sys.stdout.flush()
        sys.stderr.write(report(error, path))
        return 1
    return 0


def report(error: BaseException, path: str | os.PathLike[str]) -> str:
    """What to print for an exception of a script: its traceback from the script on, and a hint about Python 2."""
    frames = list(traceback.extract_tb(error.__traceback__))
    first = next((k for k, frame in enumerate(frames) if frame.filename == str(path)), 0)
    text = "".join(traceback.format_list(frames[first:]))
    said = "".join(traceback.format_exception_only(type(error), error))
    source = ""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        source = Path(error.filename).read_text("utf-8", "replace")
    hint = python2(error, source)
    return f"Traceback (most recent call last):\n{text}{said}" + (f"hint: {hint}\n" if hint else "")


def line_of(error: BaseException, path: str | os.PathLike[str]) -> str:
    """``script.py:12``: the line of a script that an exception came from; empty if it did not."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}:{frames[-1].lineno}" if frames else ""


# -- Python 2 -------------------------------------------------------------------------------------------------------

_SYNTAX = (
    (r"^\s*print\s+[^(=\s]", "the print statement"),
    (r"^\s*print\s*(#.*)?$", "the print statement"),
    (r"^\s*print\s*>>", "the print statement"),
    (r"^\s*except\s+[\w.()\s,]+,\s*\w+\s*:", "`except Error, name`"),
    (r"^\s*raise\s+[\w.]+\s*,", "`raise Error, text`"),
    (r"^\s*exec\s+[^(\s=]", "the exec statement"),
    (r"<>", "`<>`"),
    (r"\bur['\"]", "ur'' strings"),
    (r"(?<![\w.])0[0-7]+(?![\w.])", "octal numbers such as 0755"),
    (r"(?<![\w.])\d+[lL]\b", "long integers such as 1L"),
    (r"`[^`]+`", "backticks"),
    (r"def\s+\w+\(.*\([^=]*\)\s*[,)].*:|lambda\s*\(", "tuples as parameters"),
)
"""What compiles under Python 2 only -> its name, by line."""

_NAMES = (
    "xrange",
    "unicode",
    "raw_input",
    "basestring",
    "long",
    "reduce",
    "file",
    "unichr",
    "execfile",
    "cmp",
    "reload",
)
_METHODS = ("has_key", "iteritems", "itervalues", "iterkeys", "next")
_MOVED = (
    *("cPickle", "Queue", "ConfigParser", "urllib2", "urlparse", "StringIO", "cStringIO", "__builtin__", "Tkinter"),
    *("commands", "httplib", "SocketServer", "HTMLParser", "copy_reg", "SimpleHTTPServer", "BaseHTTPServer"),
)
_TYPES = (
    r"'float' object cannot be interpreted as an integer|slice indices must be integers",
    r"'(dict_\w+|map|zip|filter|range)' object (is not subscriptable|does not support item assignment)",
    r"object of type '(map|zip|filter)' has no len|a bytes-like object is required, not 'str'",
    r"must be str, not bytes|can't concat str to bytes|'dict_\w+' object has no attribute 'sort'",
)


def python2(error: BaseException, source: str = "") -> str:
    """What of Python 2 an exception points at, and what to do; empty if it points at nothing of the kind.

    Args:
        source: the text that did not compile.
    """
    what = ""
    if isinstance(error, (TabError, IndentationError)) and "\t" in source:
        what = "tabs and spaces that are mixed"
    elif isinstance(error, SyntaxError):
        lines = source.splitlines()
        near = lines[error.lineno - 1 : error.lineno] if error.lineno else []
        for line in (*near, *lines):
            code = line if "'" not in line and '"' not in line else re.sub(r"#.*", "", line)
            what = next((name for pattern, name in _SYNTAX if re.search(pattern, code)), "")
            if what:
                break
    elif isinstance(error, NameError):
        what = next((f"`{name}`" for name in _NAMES if f"'{name}'" in str(error)), "")
    elif isinstance(error, AttributeError):
        what = next((f"`.{name}()`" for name in _METHODS if f"'{name}'" in str(error)), "")
    elif isinstance(error, ModuleNotFoundError):
        what = f"the module {error.name}" if error.name in _MOVED else ""
    elif isinstance(error, TypeError) and any(re.search(pattern, str(error)) for pattern in _TYPES):
        what = "numbers, lists or strings that Python 3 treats differently (`5 / 2`, `map(...)[0]`, bytes)"
    return f"this is Python 2 ({what}). Translate the script first, with 2to3 for instance." if what else ""
