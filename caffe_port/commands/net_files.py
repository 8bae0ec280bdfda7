"""The arguments and options that describe a net on the command line."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from caffe_port.commands.command import F, without_garbage
from caffe_port.errors import CaffePortError
from caffe_port.formats.kinds import holds_weights

if TYPE_CHECKING:
    from caffe_port.definition.definition import Definition
    from caffe_port.definition.phases import Phases
    from caffe_port.formats.caffemodel import Weights


def sort_files(files: Sequence[str | Path]) -> tuple[str | None, str | None]:
    """Returns (prototxt, weights) of one or two files in any order.

    Raises:
        CaffePortError: there are no files, more than two, or two of the same kind.
    """
    if not 1 <= len(files) <= 2:
        raise CaffePortError(f"give a prototxt, a weights file, or both; got {len(files)} files")
    files = [located(str(file)) for file in files]
    kinds = [holds_weights(file) for file in files]
    if len(files) == 2 and kinds[0] == kinds[1]:
        kind = "weights files" if kinds[0] else "prototxt texts"
        raise CaffePortError(f"{files[0]} and {files[1]} are both {kind}; give one prototxt and one weights file")
    by_kind = {kind: str(file) for kind, file in zip(kinds, files, strict=True)}
    return by_kind.get(False), by_kind.get(True)


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
class Contents:
    """A net's parsed files; ``options`` are those of caffe_port.api.build."""

    definition: Definition
    weights: Weights | None
    options: dict[str, Any]

    def phases(self, **options: Any) -> Phases:
        """Both phases of the net, checked: what building it would refuse is refused here, without torch.

        Args:
            options: further ones of caffe_port.definition.phases.phases.
        """
        from caffe_port.definition.phases import phases

        return phases(self.definition, self.weights, **self.options, **options)

    @contextlib.contextmanager
    def examined(self) -> Iterator[None]:
        """Takes checksums and looks for NaN in other threads, while torch is imported within this context."""
        with ThreadPoolExecutor(2) as pool, without_garbage():
            if (weights := self.weights) is not None:
                pool.submit(lambda: weights.sha256)
                pool.submit(lambda: weights.not_finite)
            yield

    def check_layers(self) -> None:
        """Checks the layers of phase TEST, whatever the shape of its input, which comes from the data."""
        from caffe_port.definition.phases import check_layers

        options = self.options
        check_layers(self.definition, options.get("level", 0), options.get("stages", ()), options.get("input_shapes"))


@dataclass(frozen=True)
class NetFiles:
    """A net given on the command line; ``options`` are those of caffe_port.api.port."""

    prototxt: str | None
    weights: str | None
    options: dict[str, Any]

    def read(self, writable: bool = False) -> Contents:
        """Reads the files, which needs no torch, so that an error in them appears at once.

        Args:
            writable: as for :func:`caffe_port.formats.caffemodel.read`.
        """
        from caffe_port.definition import reading

        options = dict(self.options)
        definition, stored = reading.read(self.prototxt, self.weights, writable, options.pop("ignore_fields", ()))
        return Contents(definition, stored, options)


def located(path: str) -> str:
    """The path; ``model_defs/...`` also means the folder in the installed package, from wherever it is named.

    Raises:
        CaffePortError: it is a folder.
    """
    parts = Path(path).parts
    if len(parts) > 1 and parts[0] == "model_defs" and not os.path.lexists(path):
        from caffe_port.evaluation import registry

        own = registry.model_defs().joinpath(*parts[1:])
        if own.exists():
            path = str(own)
    if os.path.isdir(path):
        hint = "Name the files in it, or run caffe-port survey for all nets in a folder."
        raise CaffePortError("is a folder; expected a file", path, hint)
    return path


dialect_option = click.option(
    "--dialect",
    metavar="NAME",
    help="The fork whose meaning numbers and fields have on which forks disagree; `caffe-port dialects` lists them. "
    "Default: as the files tell.",
)


ignore_field = click.option(
    "--ignore-field",
    "ignored",
    multiple=True,
    metavar="NAME",
    help="Go without a field that caffe-port does not follow and would refuse. May be repeated.",
)
"""Decorator: names of fields to go without."""


def image_options(function: F) -> F:
    """Decorator: how images become a net's input, where the files do not say so, and the names of its classes."""
    options = [
        click.option(
            "--mean",
            metavar="B,G,R|FILE",
            help="Mean to subtract from images: values in the net's channel order, or a .binaryproto or .npy file.",
        ),
        click.option("--scale", type=float, metavar="NUMBER", help="Factor to multiply images by, after the mean."),
        click.option(
            "--channel-order",
            type=click.Choice(["BGR", "RGB", "GRAY"], case_sensitive=False),
            help="Channel order of the net's input.",
        ),
        click.option("--labels", type=click.Path(), metavar="FILE", help="Names of the classes, one per line."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def net_options(function: F) -> F:
    """Decorator: the files of a net, and options for what the files do not contain."""
    options = [
        click.argument("files", nargs=-1, required=True, metavar="[PROTOTXT] [WEIGHTS]", type=click.Path()),
        click.option(
            "--input-shape",
            "shapes",
            type=Shape(),
            multiple=True,
            metavar="NAME=N,C,H,W",
            help="Shape of an input blob, if the net does not define it. May be repeated.",
        ),
        click.option(
            "--stage", "stages", multiple=True, metavar="NAME", help="Caffe's NetState.stage. May be repeated."
        ),
        click.option("--level", type=int, default=0, metavar="N", help="Caffe's NetState.level."),
        ignore_field,
        click.option(
            "--plugin",
            "plugins",
            multiple=True,
            metavar="FILE.py",
            type=click.Path(),
            help="Python file that defines custom layer types; its code is run. May be repeated.",
        ),
        dialect_option,
    ]

    @functools.wraps(function)
    def with_net(
        files: tuple[str, ...],
        shapes: Any,
        stages: Any,
        level: int,
        ignored: Any,
        plugins: Any,
        dialect: str | None,
        **rest: Any,
    ) -> Any:
        prototxt, weights = sort_files(files)
        from caffe_port.formats import dialects

        dialects.assume(dialect)
        if plugins:
            from caffe_port.signatures.plugins import run

            run(plugins)
        options = {"input_shapes": dict(shapes), "stages": stages, "level": level, "ignore_fields": ignored}
        return function(net=NetFiles(prototxt, weights, options), **rest)

    for option in reversed(options):
        with_net = option(with_net)
    return with_net
