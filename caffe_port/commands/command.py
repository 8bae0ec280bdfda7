"""Building blocks of all commands: help pages, notes, and what is checked of every command's arguments."""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from caffe_port import terminal
from caffe_port.commands import checks
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


class Output(click.Path):
    """The type of a parameter that names a file to be written."""


OUTPUT = Output(path_type=Path)


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
        """Rejects NaN and infinity as numbers, which every range of click takes, and outputs that are inputs."""
        rest = super().parse_args(ctx, args)
        if ctx.resilient_parsing:  # of a line that is still being typed, for its completion
            return rest
        for param in self.params:
            value = ctx.params.get(param.name or "")
            if isinstance(value, float) and not math.isfinite(value):
                raise click.BadParameter(f"{value} is not a finite number.", ctx=ctx, param=param)
        outputs = [param for param in self.params if isinstance(param.type, Output)]
        read = [param for param in self.params if not isinstance(param.type, (Output, click.Choice))]
        checks.overwrites(_paths(ctx, outputs), _paths(ctx, read))
        return rest


def _paths(ctx: click.Context, params: list[click.Parameter]) -> Iterator[str]:
    """The texts that were given for parameters."""
    values = [ctx.params.get(param.name or "") for param in params]
    while values:
        value = values.pop(0)
        if isinstance(value, (str, Path)):
            yield str(value)
        elif isinstance(value, (tuple, list)):
            values[:0] = value


command = functools.partial(click.command, cls=Command)
"""Decorator to use instead of click.command."""
