"""Plain text for a terminal: aligned tables that are safe whatever a file's names contain, counts and sizes."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Sequence
from typing import IO

from caffe_port.errors import printable


def columns_of(text: str) -> int:
    """The number of terminal columns: East Asian characters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def shorten(text: str, width: int) -> str:
    """Replaces the middle of a text that is too wide by ``..``: the beginning and end of a name say the most."""
    if columns_of(text) <= width:
        return text
    keep = max(width - 2, 0)
    head, tail = text[: 4 * width], ""  # long enough, also with combining marks
    while columns_of(head) > keep - keep // 3:
        head = head[:-1]
    for c in reversed(text):
        if columns_of(head + c + tail) > keep:
            break
        tail = c + tail
    return f"{head}..{tail}"[: max(width, 0)]


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[int] = (),
    shrink: Sequence[tuple[int, int]] = (),
    width: int = 100,
) -> list[str]:
    """An aligned table.

    Args:
        header: column titles; a column whose cells are all empty is left out.
        rows: cells; a row that is a single ``"-"`` is a rule.
        right: columns to align to the right (numbers).
        shrink: (column, minimum width) of the columns to narrow, in this order, if the table is wider than ``width``.
        width: columns of the terminal.

    Returns:
        Lines without trailing spaces.
    """
    cells = [[printable(cell) for cell in row] for row in rows if list(row) != ["-"]]
    used = [k for k in range(len(header)) if any(row[k] for row in cells)]
    widths = {k: max(columns_of(row[k]) for row in [list(header), *cells]) for k in used}
    for k, least in shrink:
        excess = sum(widths.values()) + 2 * (len(used) - 1) - width
        if k in widths and excess > 0:
            widths[k] = max(min(least, widths[k]), widths[k] - excess)

    def line(row: Sequence[str]) -> str:
        parts = []
        for k in used:
            cell = shorten(row[k], widths[k])
            space = " " * (widths[k] - columns_of(cell))
            parts.append(space + cell if k in right else cell + space)
        return "  ".join(parts).rstrip()

    rule = "-" * (sum(widths.values()) + 2 * max(len(used) - 1, 0))
    remaining = iter(cells)
    body = [rule if list(row) == ["-"] else line(next(remaining)) for row in rows]
    return [line(header), rule, *body]


def count(n: int, noun: str, plural: str = "") -> str:
    """A number with its noun; ``plural`` where it is not the noun and an s.

    >>> count(1, "layer"), count(1200, "layer"), count(0, "axis", "axes")
    ('1 layer', '1,200 layers', '0 axes')
    """
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """A time in its two largest units.

    >>> duration(7.4), duration(130), duration(11_520), duration(200_000)
    ('7 s', '2 min 10 s', '3 h 12 min', '2 d 7 h')
    """
    left = round(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        amount, left = divmod(left, size)
        if amount or parts or unit == "s":
            parts.append(f"{amount} {unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0 ") or len(parts) == 1)


def width(stream: IO[str], most: int = 10_000) -> int:
    """The columns for a table: ``$COLUMNS`` or those of a terminal, 80 to ``most``; in a pipe or a file, enough that
    nothing is wrapped or shortened.
    """
    if stream.isatty() or os.environ.get("COLUMNS", "").isdecimal():
        return min(max(shutil.get_terminal_size((110, 24)).columns, 80), most)
    return 10_000


def human_bytes(size: int) -> str:
    """1536 -> '1.5 KiB'."""
    if size < 1024:
        return f"{size} B"
    value, unit = float(size), "B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):  # noqa: B007
        value /= 1024
        if value < 1000:
            break
    return f"{value:,.1f} {unit}"
