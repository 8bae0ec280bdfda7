"""verify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from caffe_port.commands import NetFiles, net_options


@click.command()
@net_options
@click.option("--against", default="opencv", show_default=True, metavar="REFERENCE",
              help="opencv, or a trace (.npz).")  # fmt: skip
@click.option("--input", "inputs", multiple=True, metavar="[NAME=]FILE",
              help="A picture or .npy; without it, random numbers.")  # fmt: skip
@click.option("--mean", metavar="B,G,R|FILE", help="Subtracted from a picture: numbers, .binaryproto or .npy.")
@click.option("--scale", type=float, default=1.0, show_default=True, help="What a picture is then multiplied by.")
@click.option("--channel-order", type=click.Choice(["BGR", "RGB"], case_sensitive=False), default="BGR",
              show_default=True, help="Of the net's input.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random numbers.")
@click.option("--atol", type=click.FloatRange(min=0), help="Absolute tolerance.")
@click.option("--rtol", type=click.FloatRange(min=0), help="Relative tolerance.")
@click.option("--mode", type=click.Choice(["both", "free", "isolated"]), default="both", show_default=True,
              help="free: errors accumulate; isolated: every layer is fed the reference's bottoms.")  # fmt: skip
@click.option("--keep-loss", is_flag=True, default=None, help="Compare losses and Accuracy too.")
@click.option("--all", "all_rows", is_flag=True, help="Show every layer, not only the worst.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(net: NetFiles, inputs: tuple[str, ...], all_rows: bool, as_json: bool, **options: Any) -> int:
    """Compare every layer of the converted net with somebody else's implementation.

    Exit code 0: all layers agree. 1: one does not. 2: bad input.

    \b
    Examples:
      caffe-port verify deploy.prototxt net.caffemodel
      caffe-port verify net.caffemodel --input cat.jpg --mean 104,117,123
      caffe-port verify net.caffemodel --against trace.npz --all
    """
    from caffe_port import report
    from caffe_port.verify import verify as run

    given: Any = _named_files(inputs)
    found = run(net.prototxt, net.weights, input=given, **net.options,
                **{name: value for name, value in options.items() if value is not None})  # fmt: skip
    if as_json:
        click.echo(report.to_json(found))
    else:
        from rich.console import Console

        report.render(found, Console(), all_rows)
    return 0 if found.passed else 1


def _named_files(inputs: tuple[str, ...]) -> str | dict[str, str] | None:
    if not inputs:
        return None
    if len(inputs) == 1 and (Path(inputs[0]).exists() or "=" not in inputs[0]):
        return inputs[0]
    named = [text.partition("=") for text in inputs]
    if not all(equals for _, equals, _ in named):
        raise click.UsageError("several inputs need names: --input NAME=FILE")
    return {name: path for name, _, path in named}
