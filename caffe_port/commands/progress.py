"""Progress of a command on stderr: a bar on a terminal; otherwise, as in a log file, one line a minute."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from caffe_port.errors import printable
from caffe_port.terminal import count, duration

EVERY = 60.0
"""Seconds between two lines where stderr is not a terminal."""


class Progress:
    """Shows what is being done, how much of it is done, and how long the rest will take.

    Args:
        clock: seconds, for the remaining time and the lines.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.is_terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._label: str | None = None
        self._began, self._from = clock(), 0
        self._said = clock()

    def __enter__(self) -> Progress:  # noqa: PYI034 - Self is Python 3.11's
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, label: str, done: int, total: int, noun: str = "", detail: str = "", *, plural: str = "") -> None:
        """Shows the state.

        Args:
            label: what is being done; the remaining time is estimated anew when it changes.
            done, total: how much; a total of 0 is unknown.
            noun, plural: what is counted, as in :func:`caffe_port.terminal.count`.
            detail: further figures.
        """
        if label != self._label:
            self._label, self._began, self._from = label, self.clock(), done
        counted = [f"{done:,} of {count(total, noun, plural) if noun else format(total, ',')}"] if total else []
        left = self._left(done, total)
        parts = [*counted, detail, left]
        if self.is_terminal:  # a narrow one cuts the end off
            self._show(label, done, total, "  ".join(part for part in (*counted, left, detail) if part))
        elif self.clock() - self._said >= EVERY:
            self.say(f"{label}: {', '.join(part for part in parts if part)}")

    def say(self, text: str) -> None:
        """Prints a line, above the bar."""
        self._said = self.clock()
        if self._bar is not None:
            self._bar.console.print(printable(text), markup=False, soft_wrap=True)
        else:
            print(printable(text), file=sys.stderr, flush=True)  # noqa: T201

    def _left(self, done: int, total: int) -> str:
        passed = self.clock() - self._began
        if not total or done <= self._from or passed <= 0:
            return ""
        return f"{duration((total - done) * passed / (done - self._from))} left"

    def _show(self, label: str, done: int, total: int, text: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = TextColumn("{task.description}", markup=False), BarColumn(20), TextColumn("{task.fields[text]}")
            self._bar = Bar(*columns, console=Console(stderr=True, highlight=False), transient=True)
            self._bar.add_task(label, total=None, text="")
            self._bar.start()
        (task,) = self._bar.task_ids
        self._bar.update(task, description=label, completed=done, total=total or None, text=text)


@contextlib.contextmanager
def progress_bar(what: str, quiet: bool, noun: str = "") -> Iterator[Callable[[int, int], None] | None]:
    """A function to call with (done, total); None if nothing is to be shown."""
    if quiet:
        yield None
        return
    with Progress() as progress:
        yield lambda done, total: progress.update(what, done, total, noun)
