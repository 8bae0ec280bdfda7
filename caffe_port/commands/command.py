"""Building blocks of all commands: help pages and notes."""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from caffe_port import terminal
from caffe_port.errors import printable

F = Callable[..., Any]

TRACEBACK = "--traceback"
"""An option of every command, which :func:`caffe_port.cli.main` reads."""

TRACEBACK_HELP = "Show the Python traceback of an error in caffe-port."


def note(text: str) -> None:
    """Prints a note to stderr."""
    click.echo(f"{click.style('note:', fg='yellow')} {printable(text)}", err=True)


@contextlib.contextmanager
def without_garbage() -> Iterator[None]:
    """Imports modules in this context faster: they stay, so Python need not look for garbage among them.

    It takes an eighth of the time of `import torch`.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def console() -> Any:
    """Rich's console for stdout; in a pipe or a file nothing is wrapped."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else terminal.width(sys.stdout))


class Command(click.Command):
    """A command whose help is laid out like a man page: purpose, arguments, options, examples, exit codes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        head, mark, tail = inspect.cleandoc(self.help or "").partition("\b\nExamples:")
        self.help, self.epilog = head.rstrip(), mark + tail
        self.params.append(
            click.Option([TRACEBACK], is_flag=True, expose_value=False, hidden=True, help=TRACEBACK_HELP)
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rejects NaN and infinity as numbers, which every range of click takes."""
        rest = super().parse_args(ctx, args)
        for param in self.params:
            value = ctx.params.get(param.name or "")
            if isinstance(value, float) and not math.isfinite(value):
                raise click.BadParameter(f"{value} is not a finite number.", ctx=ctx, param=param)
        return rest


command = functools.partial(click.command, cls=Command)
"""Decorator to use instead of click.command."""
