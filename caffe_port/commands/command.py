"""Building blocks of all commands: help pages, notes and the progress bar."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from caffe_port.errors import printable

F = Callable[..., Any]

TRACEBACK = "--traceback"
"""An option of every command, which :func:`caffe_port.cli.main` reads."""

TRACEBACK_HELP = "Show the Python traceback of an error in caffe-port."


def note(text: str) -> None:
    """Prints a note to stderr."""
    click.echo(f"{click.style('note:', fg='yellow')} {printable(text)}", err=True)


class Command(click.Command):
    """A command whose help is laid out like a man page: purpose, arguments, options, examples, exit codes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        head, mark, tail = inspect.cleandoc(self.help or "").partition("\b\nExamples:")
        self.help, self.epilog = head.rstrip(), mark + tail
        self.params.append(
            click.Option([TRACEBACK], is_flag=True, expose_value=False, hidden=True, help=TRACEBACK_HELP)
        )


command = functools.partial(click.command, cls=Command)
"""Decorator to use instead of click.command."""


@contextlib.contextmanager
def progress_bar(what: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr; None if stderr is not a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
