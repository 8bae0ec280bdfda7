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

from caffe_port.errors import CaffePortError
from caffe_port.pycaffe import notebook, older


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

    A notebook runs cell by cell. Names that newer libraries lack exist again (:mod:`caffe_port.pycaffe.older`).

    Raises:
        CaffePortError: there is no such script, or it is written for Python 2.
        SystemExit, Exception: what the script raises.
    """
    parts = _compiled(path)
    as_caffe()
    older.restore()
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=str(path), __builtins__=__builtins__)
    if any("get_ipython" in code.co_names for code in parts):
        ipython = notebook.IPython(main.__dict__)
        main.__dict__.update(get_ipython=lambda: ipython)
    before = sys.modules["__main__"], sys.argv, sys.path[:]
    sys.modules["__main__"] = main
    sys.argv = [str(path), *arguments]
    sys.path[0:0] = [str(Path(path).resolve().parent)]
    try:
        for code in parts:
            exec(code, main.__dict__)  # noqa: S102 - the purpose of the command
    finally:
        sys.modules["__main__"], sys.argv, sys.path[:] = before


def _compiled(path: str | os.PathLike[str]) -> list[types.CodeType]:
    """The code of a script; that of a notebook cell by cell."""
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        raise CaffePortError(f"cannot be read: {error.strerror}", str(path)) from None
    if Path(path).suffix == ".ipynb":
        cells = notebook.code_cells(source, str(path))
        made = [_checked(cell, f"{path}, cell {number}") for number, cell in enumerate(cells, 1)]
    else:
        made = [_checked(source, str(path))]
    for _, left in made:
        notebook.say(left)
    return [code for codes, _ in made for code in codes]


def _checked(source: bytes | str, name: str) -> tuple[list[types.CodeType], list[str]]:
    """The code of a script (bytes) or a cell, and the lines that are left out of it."""
    text = source if isinstance(source, str) else source.decode("utf-8", "replace")
    try:
        if isinstance(source, str):
            return notebook.compiled(source, name)
        try:
            return [compile(source, name, "exec", dont_inherit=True)], []
        except SyntaxError as error:  # perhaps only of lines for IPython
            if not re.search(r"^\s*[%!]", text, re.MULTILINE):
                raise
            kept, left = notebook.without_ipython(text)
            try:
                return [compile(kept, name, "exec", dont_inherit=True)], left
            except SyntaxError:
                raise error from None
    except SyntaxError as error:
        raise CaffePortError(f"is not Python 3: {error.msg}", f"{name}:{error.lineno}", python2(error, text)) from None
    except ValueError as error:
        raise CaffePortError(f"is not a Python script: {error}", name) from None


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
    first = next((k for k, frame in enumerate(frames) if _is_of(frame, path)), 0)
    text = "".join(traceback.format_list(frames[first:]))
    said = "".join(traceback.format_exception_only(type(error), error))
    source = ""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        source = Path(error.filename).read_text("utf-8", "replace")
    hint = python2(error, source) or newer(error)
    return f"Traceback (most recent call last):\n{text}{said}" + (f"hint: {hint}\n" if hint else "")


def line_of(error: BaseException, path: str | os.PathLike[str]) -> str:
    """``script.py:12``: the line of a script that an exception came from; empty if it did not."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_of(frame, path)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _is_of(frame: traceback.FrameSummary, path: str | os.PathLike[str]) -> bool:
    return frame.filename == str(path) or frame.filename.startswith(f"{path}, cell ")


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
_METHODS = ("has_key", "iteritems", "itervalues", "iterkeys", "next", "decode")
_MOVED = (
    *("cPickle", "Queue", "ConfigParser", "urllib2", "urlparse", "StringIO", "cStringIO", "__builtin__", "Tkinter"),
    *("commands", "httplib", "SocketServer", "HTMLParser", "copy_reg", "SimpleHTTPServer", "BaseHTTPServer"),
    *("tkMessageBox", "tkFileDialog", "xmlrpclib", "cookielib", "sets", "dummy_thread", "thread", "UserDict"),
)
_GONE = (
    *("izip", "imap", "ifilter", "izip_longest", "maxint", "getcwdu", "setdefaultencoding", "letters", "maketrans"),
    *("join", "urlopen", "urlretrieve", "urlencode", "quote", "unquote", "StringIO", "lowercase", "uppercase"),
)
"""What modules of Python 2 have, and those of Python 3 of the same names lack."""
_TYPES = (
    r"'[\w.]*float\d*' object cannot be interpreted as an integer|slice indices must be integers|not 'float'|not float",
    r"'(o?dict_\w+|map|zip|filter|range)' object (is not subscriptable|does not support item assignment)",
    r"object of type '(map|zip|filter)' has no len|a bytes-like object is required, not 'str'",
    r"must be str, not bytes|can't concat str to bytes|'o?dict_\w+' object has no attribute 'sort'",
    r"not supported between instances of|'(range|o?dict_\w+|map|zip)' and 'list'|not \"(range|map|zip|o?dict_\w+)\"",
    r"implicitly convert Unicode to bytes|only integers, slices|indices must be integers or slices, not float",
)


_NUMBERS = "numbers, lists or strings that Python 3 treats differently (`5 / 2`, `map(...)[0]`, bytes)"


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
            code = re.sub(r"#.*", "", line)
            what = next((name for pattern, name in _SYNTAX if re.search(pattern, code)), "")
            if what:
                break
    elif isinstance(error, NameError):
        what = next((f"`{name}`" for name in _NAMES if f"'{name}'" in str(error)), "")
    elif isinstance(error, AttributeError) and "module '" in str(error):
        what = next((f"`{error.name}`" for name in _GONE if name == error.name), "")
    elif isinstance(error, AttributeError):
        what = next((f"`.{name}()`" for name in _METHODS if f"attribute '{name}'" in str(error)), "")
        what = what or next((_NUMBERS for pattern in _TYPES if re.search(pattern, str(error))), "")
    elif isinstance(error, ModuleNotFoundError):
        what = f"the module {error.name}" if error.name in _MOVED else ""
        if _is_beside(error):
            what = f"`import {error.name}` of a file beside, which is `from . import {error.name}` in Python 3"
    elif isinstance(error, ImportError):
        what = next((f"`{name}`" for name in _GONE if f"cannot import name '{name}'" in str(error)), "")
    elif isinstance(error, UnicodeDecodeError):
        what = "bytes read as text: open(..., 'rb') for files, pickle.load(..., encoding='latin1') for pickles"
    elif isinstance(error, (TypeError, IndexError)):
        what = next((_NUMBERS for pattern in _TYPES if re.search(pattern, str(error))), "")
    return f"this is Python 2 ({what}). Translate the script first, with 2to3 for instance." if what else ""


def _is_beside(error: ModuleNotFoundError) -> bool:
    """Whether a module that is not found is beside the file that imports it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if os.path.isfile(frame.filename)]
    return bool(frames and error.name) and Path(frames[-1].filename).with_name(f"{error.name}.py").is_file()


# -- newer libraries ------------------------------------------------------------------------------------------------

_NEWER = (
    (r"'numpy\.ndarray' object has no attribute 'tostring'", "NumPy 2.3 removed `.tostring()`; write `.tobytes()`"),
    (
        r"allow_pickle=False",
        "since NumPy 1.16.3, `np.load` of objects needs allow_pickle=True, for files that you trust",
    ),
    (r"unexpected keyword argument 'as_grey'", "scikit-image 0.16 renamed `as_grey` to `as_gray`"),
    (r"module 'cv2' has no attribute 'cv'|No module named 'cv2.cv'|attribute 'CV_\w+'", "OpenCV 3 removed `cv2.cv`"),
    (r"inhomogeneous shape", "since NumPy 1.24, `np.array` of rows of different lengths needs dtype=object"),
    (r"No module named 'imp'", "Python 3.12 removed `imp`; use importlib"),
)
"""What an exception says -> why a script of Caffe's years raises it, and what to write instead."""


def newer(error: BaseException) -> str:
    """What in a newer library an exception points at; empty if it points at nothing of the kind."""
    return next((f"{text}." for pattern, text in _NEWER if re.search(pattern, str(error))), "")
