"""The commands verify, compare and dump."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from caffe_port.commands import checks
from caffe_port.commands.command import OUTPUT, F, command, console
from caffe_port.commands.net_files import NetFiles, Shape, ignore_field, net_options, sort_files
from caffe_port.errors import CaffePortError, printable
from caffe_port.storage.files import atomic_write
from caffe_port.terminal import count, table


def feed_options(function: F) -> F:
    """The options for a net's input."""
    options = [
        click.option(
            "--input",
            "inputs",
            multiple=True,
            metavar="[NAME=]FILE",
            help="Image or .npy file; without it, random values.",
        ),
        click.option(
            "--mean",
            metavar="B,G,R|FILE",
            help="Mean to subtract from an image: values, or a .binaryproto or .npy file.",
        ),
        click.option(
            "--scale",
            type=float,
            default=1.0,
            show_default=True,
            metavar="NUMBER",
            help="Factor to multiply an image by, after the mean.",
        ),
        click.option(
            "--channel-order",
            type=click.Choice(["BGR", "RGB"], case_sensitive=False),
            default="BGR",
            show_default=True,
            help="Channel order of the net's input.",
        ),
        click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of the random values."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@command()
@net_options
@click.option(
    "--against",
    default="opencv",
    show_default=True,
    metavar="REFERENCE",
    help="opencv, numpy (caffe-port's formulas, float64), caffe, a trace (.npz), or a runtime on an exported net: "
    "FILE.onnx, onnxruntime, openvino, openvino:FILE.onnx, FILE.xml. Or your own port, FILE.py:Class: it is run and "
    "compared with OpenCV.",
)
@click.option(
    "--state",
    metavar="FILE",
    type=click.Path(),
    help="Weights of your own port; without them, Caffe's are copied into it.",
)
@feed_options
@click.option("--atol", type=click.FloatRange(min=0), metavar="NUMBER", help="Absolute tolerance.  [default: 1e-05]")
@click.option("--rtol", type=click.FloatRange(min=0), metavar="NUMBER", help="Relative tolerance.  [default: 0.0001]")
@click.option(
    "--mode",
    type=click.Choice(["both", "free", "isolated"]),
    default="both",
    show_default=True,
    help="free: both nets run on their own; isolated: each layer is fed the reference's bottoms.",
)
@click.option("--keep-loss", is_flag=True, default=None, help="Compare losses and Accuracy too.")
@click.option(
    "--strict", is_flag=True, help="Also fail if a top is more than twice as far from a float64 run as the reference's."
)
@click.option("--backward", is_flag=True, help="Compare gradients with those of a trace or of Caffe.")
@click.option("--junit", type=OUTPUT, metavar="FILE", help="Write a JUnit XML report.")
@click.option("--html", "page", type=OUTPUT, metavar="FILE", help="Write an HTML report.")
@click.option("--all", "all_rows", is_flag=True, help="Show every top, not only the worst.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(
    net: NetFiles,
    inputs: tuple[str, ...],
    junit: Path | None,
    page: Path | None,
    all_rows: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Compare every layer against a reference implementation.

    \b
    Arguments:
      PROTOTXT  the definition; optional with a .caffemodel
      WEIGHTS   .caffemodel or .caffemodel.h5

    \b
    Examples:
      caffe-port verify deploy.prototxt net.caffemodel
      caffe-port verify net.caffemodel --input cat.jpg --mean 104,117,123
      caffe-port verify net.caffemodel --against trace.npz --all
      caffe-port verify net.caffemodel --against out/model.onnx
      caffe-port verify deploy.prototxt net.caffemodel \\
          --against mymodel.py:Net --state port.pth
      caffe-port verify net.caffemodel --html report.html --junit report.xml

    \b
    Exit codes:
      0  all compared layers agree
      1  a layer differs, or nothing could be compared
      2  bad usage or bad input
    """
    given: Any = _named_files(inputs)
    checks.reference(options["against"], options["state"])
    checks.writable(junit, page)
    checks.values(given)
    checks.mean(options["mean"])
    _check_options(**options)
    read = net.read()
    if _own_shapes(given) and not checks.is_trace(options["against"]):
        read.phases(keep_loss=bool(options["keep_loss"]))
    with read.examined():
        from caffe_port.verification.details import Details
        from caffe_port.verification.reports import html, terminal
        from caffe_port.verification.reports.junit import to_junit
        from caffe_port.verification.verify import verify as run

    details = Details() if page is not None else None
    found = run(
        read.definition,
        read.weights,
        input=given,
        details=details,
        **read.options,
        **{name: value for name, value in options.items() if value is not None},
    )
    found = dataclasses.replace(found, provenance=_how() | dict(found.provenance))
    for path, text in ((junit, junit and to_junit(found)), (page, page and html.to_html(found, details))):
        if path is not None:
            with atomic_write(path, "w") as file:
                file.write(text)
    if as_json:
        click.echo(terminal.to_json(found))
    else:
        terminal.render(found, console(), all_rows)
    return 0 if found.passed else 1


def _how() -> dict[str, str]:
    """The command line and the date, for a report."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {"command": shlex.join(["caffe-port", *sys.argv[1:]]), "date": now.strftime("%Y-%m-%d %H:%M UTC")}


def _check_options(against: str, backward: bool, strict: bool, mode: str, **_: Any) -> None:
    """Raises CaffePortError for options that exclude each other."""
    if ".py:" in against and (strict or backward or mode != "both"):
        word = "strict" if strict else "backward" if backward else "mode"
        raise CaffePortError(
            f"{word} applies only to a converted net; a hand-written port is compared layer by layer, forward only"
        )
    if backward and against.lower() in ("opencv", "numpy"):
        raise CaffePortError(
            "gradients are compared with a trace that holds them, or with Caffe itself",
            hint="Give --against TRACE.npz or --against caffe.",
        )


def _named_files(inputs: tuple[str, ...]) -> str | dict[str, str] | None:
    if not inputs:
        return None
    if len(inputs) == 1 and (Path(inputs[0]).exists() or "=" not in inputs[0]):
        return inputs[0]
    named = [text.partition("=") for text in inputs]
    if not all(equals for _, equals, _ in named):
        raise click.UsageError("several inputs need names: --input NAME=FILE")
    return {name: path for name, _, path in named}


def _own_shapes(given: str | dict[str, str] | None) -> bool:
    """Whether the inputs have the net's own shapes, as images do; an array brings its own."""
    return given is None or (isinstance(given, str) and not given.endswith(".npy"))


@command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(before: Path, after: Path, as_json: bool) -> int:
    """Compare two reports of verify: which layers agree now and did not before, and which no longer do.

    \b
    Arguments:
      BEFORE, AFTER  reports written by verify --json

    A top is listed if its status changed, or if the tolerance that it needs grew or shrank tenfold.

    \b
    Examples:
      caffe-port compare before.json after.json

    \b
    Exit codes:
      0  nothing got worse
      1  a top that agreed differs now, or is no longer compared
      2  bad usage or bad input
    """
    from caffe_port.verification.reports import changes

    found = changes.changes(changes.read(before), changes.read(after))
    if as_json:
        shown = [dataclasses.asdict(change) | {"needed": _finite(change.needed)} for change in found.tops]
        value = {"worse": found.worse, "passed": found.passed, "tops": shown, "facts": found.facts}
        click.echo(json.dumps(value, indent=2))
        return int(found.worse)
    for name, (was, now) in found.facts.items():
        click.echo(printable(f"{name}: {was or '(none)'} -> {now or '(none)'}"))
    rows = [
        [
            f"{change.layer}:{change.top}" if change.top else change.layer,
            change.type,
            change.before or "absent",
            change.after or "absent",
            *("" if math.isnan(needed) else f"{needed:.1e}" for needed in change.needed),
        ]
        for change in found.tops
    ]
    if rows:
        head = ["layer", "type", "before", "after", "needed atol", "needs atol"]
        click.echo("\n".join(table(head, rows, right=(4, 5), shrink=[(0, 20)])))
    worse = sum(change.worse for change in found.tops)
    verdicts = " -> ".join("PASSED" if passed else "FAILED" for passed in found.passed)
    click.echo(f"verdict: {verdicts}; {count(len(rows), 'top')} changed, {worse} for the worse")
    return int(found.worse)


def _finite(values: tuple[float, float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


@command()
@click.argument("files", nargs=-1, metavar="[PROTOTXT] [WEIGHTS]", type=click.Path())
@click.option("-o", "--output", type=OUTPUT, metavar="FILE.npz", help="The trace to write.")
@ignore_field
@click.option(
    "--by",
    default="opencv",
    show_default=True,
    type=click.Choice(["opencv", "numpy", "caffe", "pycaffe"]),
    help="The reference to run.",
)
@click.option(
    "--input-shape",
    "shapes",
    type=Shape(),
    multiple=True,
    metavar="NAME=N,C,H,W",
    help="Shape of an input blob, if the net does not give it.",
)
@feed_options
@click.option("--keep-loss", is_flag=True, help="Record losses and Accuracy too.")
@click.option(
    "--script",
    "as_script",
    is_flag=True,
    help="Print a script that records a trace on a machine with pycaffe (Python 2.7 or 3).",
)
def dump(
    files: tuple[str, ...],
    output: Path | None,
    by: str,
    shapes: Any,
    inputs: tuple[str, ...],
    mean: str | None,
    scale: float,
    channel_order: str,
    seed: int,
    keep_loss: bool,
    as_script: bool,
    ignored: tuple[str, ...],
) -> None:
    """Record the tops of every layer as a trace for verify.

    \b
    Arguments:
      PROTOTXT  the definition; optional with a .caffemodel
      WEIGHTS   .caffemodel or .caffemodel.h5

    With --script, give no arguments. Copy the printed script to a machine where Caffe runs; its --help explains it.

    \b
    Examples:
      caffe-port dump deploy.prototxt net.caffemodel -o trace.npz
      caffe-port dump --script > record.py

    \b
    Exit codes:
      0  recorded, or printed
      2  bad usage or bad input; nothing is written
    """
    if as_script:
        from caffe_port.verification.references.caffe import script

        click.echo(script(), nl=False)
        return
    if output is None:
        raise click.UsageError("dump needs -o FILE.npz")
    from caffe_port.data.preprocessing import Preprocessing

    given: Any = _named_files(inputs)
    checks.writable(output)
    checks.values(given)
    checks.caffe(by)
    how = Preprocessing(channel_order, scale=scale).changed(mean=mean)
    net = NetFiles(*sort_files(files), {"ignore_fields": ignored, "input_shapes": dict(shapes)}).read()
    if _own_shapes(given):
        net.phases(keep_loss=keep_loss)
    from caffe_port.verification.dump import dump as record

    trace = record(
        output,
        net.definition,
        net.weights,
        by=by,
        input=given,
        seed=seed,
        preprocess=how,
        keep_loss=keep_loss,
        **net.options,
    )
    click.echo(f"{printable(str(output))}: {count(len(trace.tops), 'top')}")
