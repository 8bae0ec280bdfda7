"""One base class for everything that can be wrong with what a user gave us.

An error says where (file, line, layer), what (got and expected) and, where we know it, what to do.
The command line prints it as it is and leaves with code 2; nothing else is caught.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class CaffePortError(Exception):
    """What the user can put right: ``where: what`` and, on a second line, what to do.

    Args:
        what: one sentence, got and expected.
        where: file, ``file:line`` or ``file:line:column``; empty where there is no file.
        hint: what to do; shown indented on the next line, or lines.

    What comes from a file is shown escaped where it is not printable: a name cannot steer a terminal.
    """

    def __init__(self, what: str, where: str = "", hint: str | Sequence[str] = "") -> None:
        self.what, self.where = printable(what), where
        self.hint = "\n  ".join(map(printable, (hint,) if isinstance(hint, str) else hint))
        super().__init__(self.what)

    def __str__(self) -> str:
        text = f"{printable(self.where)}: {self.what}" if self.where else self.what
        return f"{text}\n  {self.hint}" if self.hint else text


class ParseError(CaffePortError):
    """The bytes or the text do not follow their format."""


class SpecError(CaffePortError):
    """The file was read, but the net in it cannot be built."""


class UnsupportedLayerError(SpecError):
    """The net holds layer types that are not registered; names every one of them."""


class WeightsError(CaffePortError):
    """Weights and definition do not fit each other."""


class DependencyError(CaffePortError):
    """An optional package is needed for this call; the hint says how to install it."""


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``" Did you mean 'x'?"`` for the nearest of ``known``, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" Did you mean '{near[0]}'?" if near else ""


def printable(text: str) -> str:
    """The text with control, format and bidirectional characters escaped: a name in a file cannot steer a terminal.

    >>> printable("conv\\x1b[31m1")
    'conv\\\\x1b[31m1'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
