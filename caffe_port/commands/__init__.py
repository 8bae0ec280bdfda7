"""The commands: each parses, calls and prints. What they have in common is here."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click

from caffe_port.storage.files import sort_files
from caffe_port.terminal import printable

F = Callable[..., Any]


def note(text: str) -> None:
    """A remark on stderr, beside what the command prints."""
    click.echo(f"{click.style('note:', fg='yellow')} {printable(text)}", err=True)


class Command(click.Command):
    """Its help is laid out as a man page: purpose, arguments, options; then the docstring's examples and exit codes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        head, mark, tail = inspect.cleandoc(self.help or "").partition("\b\nExamples:")
        self.help, self.epilog = head.rstrip(), mark + tail


command = functools.partial(click.command, cls=Command)
"""Decorator, in the place of click.command."""


class Shape(click.ParamType):  # type: ignore[type-arg] # click 8.1 has no parameters
    """``NAME=1,3,32,32``."""

    name = "NAME=N,C,H,W"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        if isinstance(value, tuple):
            return value
        blob, equals, dims = value.rpartition("=")
        try:
            shape = tuple(int(n) for n in dims.replace("x", ",").split(","))
        except ValueError:
            shape = ()
        if not equals or not blob or not shape or min(shape) < 1:
            self.fail(f"expected NAME=N,C,H,W such as data=1,3,32,32, got '{value}'", param, ctx)
        return blob, shape


@dataclass(frozen=True)
class NetFiles:
    """A net as the command line names it; ``options`` are those of caffe_port.api.port."""

    prototxt: str | None
    weights: str | None
    options: dict[str, Any]


def net_options(function: F) -> F:
    """The files of a net and what the files cannot say."""
    options = [
        click.argument("files", nargs=-1, required=True, metavar="[PROTOTXT] [WEIGHTS]", type=click.Path()),
        click.option(
            "--input-shape",
            "shapes",
            type=Shape(),
            multiple=True,
            metavar="NAME=N,C,H,W",
            help="Shape of an input blob, where the net does not say it.",
        ),
        click.option(
            "--stage", "stages", multiple=True, metavar="NAME", help="Caffe's NetState.stage; may be repeated."
        ),
        click.option("--level", type=int, default=0, metavar="N", help="Caffe's NetState.level."),
        click.option(
            "--plugin",
            "plugins",
            multiple=True,
            metavar="FILE.py",
            type=click.Path(),
            help="Python file with layer types of your own; it is run. May be repeated.",
        ),
    ]

    @functools.wraps(function)
    def with_net(files: tuple[str, ...], shapes: Any, stages: Any, level: int, plugins: Any, **rest: Any) -> Any:
        prototxt, weights = sort_files(files)
        if plugins:
            from caffe_port.signatures.plugins import run

            run(plugins)
        options = {"input_shapes": dict(shapes), "stages": stages, "level": level}
        return function(net=NetFiles(prototxt, weights, options), **rest)

    for option in reversed(options):
        with_net = option(with_net)
    return with_net


@contextlib.contextmanager
def progress_bar(what: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr; none where nobody watches."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
