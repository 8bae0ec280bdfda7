"""One base class for every error in what the user provided.

An error says where (file, line, layer), what (got and expected) and, where that is known, what to do.
The command line prints it as it is and exits with code 2. Any other exception is an error in caffe-port.
"""

from __future__ import annotations

import difflib
import functools
import html
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class CaffePortError(Exception):
    """An error that the user can fix: ``where: what`` and, on a second line, what to do.

    Args:
        what: one sentence: what was found and what was expected.
        where: file, ``file:line`` or ``file:line:column``; empty if there is no file.
        hint: what to do; shown indented on the following lines.

    Unprintable characters are escaped, so that a name in a file cannot control the terminal.
    """

    def __init__(self, what: str, where: str = "", hint: str | Sequence[str] = "") -> None:
        self.what, self.where = printable(what), where
        self.hint = "\n  ".join(map(printable, (hint,) if isinstance(hint, str) else hint))
        super().__init__(self.what)

    def __str__(self) -> str:
        text = f"{printable(self.where)}: {self.what}" if self.where else self.what
        return f"{text}\n  {self.hint}" if self.hint else text


class ParseError(CaffePortError):
    """The bytes or the text are not in the expected format."""


class SpecError(CaffePortError):
    """The file was read, but the net in it cannot be built."""


class UnsupportedLayerError(SpecError):
    """The net contains layer types that are not registered; the error names all of them."""


class WeightsError(CaffePortError):
    """The weights and the definition do not match."""


class DependencyError(CaffePortError):
    """This call requires an optional package; the hint says how to install it."""


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``" Did you mean 'x'?"`` for the closest match in ``known``, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" Did you mean '{near[0]}'?" if near else ""


def suggests_keywords(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: a TypeError for an unknown keyword argument says which one is close to it."""
    known = [name for name, p in inspect.signature(function).parameters.items() if p.kind != p.POSITIONAL_ONLY]

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        for name in kwargs:
            if name not in known:
                near = did_you_mean(name, known)
                raise TypeError(f"{function.__name__}() got an unexpected keyword argument '{name}'.{near}")
        return function(*args, **kwargs)

    return call


def first_line(error: BaseException) -> str:
    """The first line of an error's text, cut; the error's type where it has none."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


_MEMORY = (
    "allocate memory",  # PyTorch on a CPU, mmap and the loader of shared libraries
    "out of memory",  # PyTorch on a GPU
    "Insufficient memory",  # OpenCV
    "bad_alloc",
    "failed to map segment",
    "can't start new thread",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory left, as under ``ulimit -v``."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _MEMORY)


def printable(text: str) -> str:
    """Escapes control, format and bidirectional characters, so that a name in a file cannot control the terminal.

    >>> printable("conv\\x1b[31m1")
    'conv\\\\x1b[31m1'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def escaped(text: str) -> str:
    """Printable text for HTML."""
    return html.escape(printable(text))
