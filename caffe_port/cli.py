"""The command line: it parses, calls and prints, and decides nothing.

Exit codes: 0 done; 1 parity or accuracy not reached; 2 bad usage or bad input.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click

import caffe_port
from caffe_port.errors import CaffePortError
from caffe_port.files import sort_files
from caffe_port.table import human_bytes, printable

F = Callable[..., Any]


def main() -> NoReturn:
    """Entry point: one clear line and code 2 for whatever the user can put right."""
    try:
        code = cli.main(prog_name="caffe-port", standalone_mode=False)
    except CaffePortError as error:
        code = _complain(str(error))
    except click.exceptions.Abort:
        code = _complain("interrupted", 130)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except BrokenPipeError:  # `caffe-port inspect ... | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter's last flush goes there
        code = 0
    except OSError as error:
        code = _complain(f"{error.filename or 'file'}: {error.strerror or error}")
    sys.exit(code or 0)


def _complain(text: str, code: int = 2) -> int:
    click.echo(f"{click.style('error:', fg='red')} {printable(text)}", err=True)
    return code


def _note(text: str) -> None:
    click.echo(f"{click.style('note:', fg='yellow')} {printable(text)}", err=True)


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


def net_options(command: F) -> F:
    """The files of a net and what the files cannot say."""
    options = [
        click.argument("files", nargs=-1, required=True, metavar="[PROTOTXT] [WEIGHTS]"),
        click.option("--input-shape", "shapes", type=Shape(), multiple=True, metavar="NAME=N,C,H,W",
                     help="Shape of an input blob, where the net does not say it."),
        click.option("--stage", "stages", multiple=True, metavar="NAME", help="Caffe's NetState.stage."),
        click.option("--level", type=int, default=0, metavar="N", help="Caffe's NetState.level."),
        click.option("--plugin", "plugins", multiple=True, metavar="FILE.py",
                     help="Python file with layer types of your own; it is run. May be repeated."),
    ]  # fmt: skip

    @functools.wraps(command)
    def with_net(files: tuple[str, ...], shapes: Any, stages: Any, level: int, plugins: Any, **rest: Any) -> Any:
        prototxt, weights = sort_files(files)
        if plugins:
            from caffe_port.plugins import run

            run(plugins)
        options = {"input_shapes": dict(shapes), "stages": stages, "level": level}
        return command(net=NetFiles(prototxt, weights, options), **rest)

    for option in reversed(options):
        with_net = option(with_net)
    return with_net


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(caffe_port.__version__, prog_name="caffe-port")
def cli() -> None:
    """Moves Caffe models to PyTorch, proves layer by layer that nothing changed, and retrains them as Caffe would."""


@cli.command()
@net_options
@click.option("-o", "--output", "folder", required=True, type=click.Path(path_type=Path), metavar="DIR",
              help="Folder to write.")  # fmt: skip
@click.option("--format", "formats", multiple=True, default=["torch"], show_default=True,
              type=click.Choice(["torch", "onnx", "pt2"]), help="May be repeated.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace what an earlier convert wrote there.")
@click.option("--fold", is_flag=True, help="BatchNorm and the Scale behind it become one affine BatchNorm2d.")
@click.option("--keep-loss", is_flag=True, help="Keep losses, Accuracy and the label input.")
def convert(net: NetFiles, folder: Path, formats: tuple[str, ...], force: bool, fold: bool, keep_loss: bool) -> None:
    """Write DIR/model.py, DIR/weights.safetensors and DIR/port.json.

    model.py depends on torch alone. A .caffemodel carries its own definition: it may come without a prototxt.

    \b
    Examples:
      caffe-port convert deploy.prototxt net.caffemodel -o net
      caffe-port convert net.caffemodel -o net
      caffe-port convert train_val.prototxt net.caffemodel -o net --input-shape data=1,3,224,224
    """
    from caffe_port import api, emit

    ported = api.port(net.prototxt, net.weights, keep_loss=keep_loss, **net.options)
    _show_conversion(emit.convert(ported, folder, force=force, fold=fold, formats=formats))


def _show_conversion(result: Any) -> None:
    for note in result.notes:
        _note(note)
    click.echo(f"{result.layers} layers, {result.parameters:,} parameters; {result.check}")
    for name in result.files:
        path = result.folder / name
        click.echo(f"  {printable(str(path))}  {human_bytes(path.stat().st_size)}")


@cli.command()
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


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--input-shape", "shapes", type=Shape(), multiple=True, metavar="NAME=N,C,H,W",
              help="Shape of an input blob, where the net does not say it.")  # fmt: skip
@click.option("--phase", type=click.Choice(["TRAIN", "TEST"], case_sensitive=False), default="TEST", show_default=True)
@click.option("--stage", "stages", multiple=True, metavar="NAME", help="Caffe's NetState.stage; may be repeated.")
@click.option("--level", type=int, default=0, metavar="N", help="Caffe's NetState.level.")
@click.option("--diff", "side_by_side", is_flag=True, help="A prototxt and weights beside each other, blob by blob.")
@click.option("--numbers", is_flag=True, help="Least, greatest and mean value of every blob; NaN and infinity.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(files: tuple[str, ...], shapes: Any, phase: str, stages: tuple[str, ...], level: int, side_by_side: bool,
            numbers: bool, as_json: bool) -> int:  # fmt: skip
    """Show what is in prototxts, solvers, caffemodels and means: layers, shapes, parameters, cost.

    \b
    Examples:
      caffe-port inspect deploy.prototxt
      caffe-port inspect net.caffemodel --numbers
      caffe-port inspect --diff deploy.prototxt net.caffemodel
    """
    from caffe_port import inspect as looking
    from caffe_port.survey import Options

    options = Options(phase=phase, level=level, stages=stages, input_shapes=dict(shapes), numbers=numbers)
    if side_by_side:
        if len(files) != 2:
            raise click.UsageError("--diff takes a prototxt and a weights file")
        compared = looking.diff(files[0], files[1], options)
        click.echo(json.dumps(compared.to_json(), indent=2) if as_json else looking.render(compared))
        return 0 if compared.fits else 1
    found = looking.inspect_files(files, options)
    if as_json:
        shown = [one.to_json() for one in found]
        click.echo(json.dumps(shown[0] if len(shown) == 1 else shown, indent=2))
    else:
        click.echo("\n\n".join(looking.render(one) for one in found))
    return 2 if any(one.errors for one in found) else 0


@cli.command()
@net_options
@click.option("--data", required=True, metavar="NAME|PATH",
              help="mnist, cifar10, cifar100, svhn; an .npz; a folder of class folders.")  # fmt: skip
@click.option("--root", type=click.Path(path_type=Path), metavar="DIR", help="Where the data set lies.")
@click.option("--download", is_flag=True, help="Let torchvision fetch the data set into --root.")
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True)
@click.option("--mean", metavar="NUMBERS|FILE", help="Numbers, a .binaryproto, or 'training-set mean image'.")
@click.option("--std", metavar="NUMBERS", help="What (x - mean) * scale is divided by.")
@click.option("--scale", type=float, help="What x - mean is multiplied by.")
@click.option("--channel-order", type=click.Choice(["RGB", "BGR", "GRAY"], case_sensitive=False))
@click.option("--tta", type=click.Choice(["none", "mirror"]), help="Mirror pictures at random, as some tests did.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N pictures.")
@click.option("--batch-size", type=click.IntRange(min=1), default=250, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of random mirroring.")
@click.option("--expect", type=float, metavar="PERCENT", help="The reported accuracy; exit code 1 if ours is worse.")
@click.option("--confusion", type=click.Path(path_type=Path), metavar="FILE", help="Confusion matrix as a picture.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(net: NetFiles, mean: str | None, std: str | None, expect: float | None, confusion: Path | None,
             as_json: bool, **options: Any) -> int:  # fmt: skip
    """Measure accuracy on a data set.

    How pictures are prepared comes from the registry for weights that it knows, from transform_param else; --mean,
    --std, --scale and --channel-order go before both:  x' = (x - mean) * scale / std.

    \b
    Examples:
      caffe-port evaluate lenet.caffemodel --data mnist --root data/mnist --scale 0.00390625
    """
    from caffe_port import evaluate as evaluation

    if net.weights is None:
        raise click.UsageError("evaluate needs weights")
    with _progress("evaluating", as_json) as progress:
        found = evaluation.evaluate_files(
            net.weights, net.prototxt, mean=_numbers(mean), std=_std(std), progress=progress, **options
        )
    result = found.result
    verdict = None if expect is None else result.verdict(expect)
    if confusion is not None:
        evaluation.plot_confusion(result, confusion)
    if as_json:
        click.echo(json.dumps(result.as_dict() | {"data": found.data, "preprocessing": str(found.preprocessing),
                                                  "expected": expect, "verdict": verdict}, indent=2))  # fmt: skip
    else:
        for note in found.notes:
            _note(note)
        low, high = result.interval
        click.echo(f"{printable(found.data)}: {printable(str(found.preprocessing))} ({printable(found.origin)})")
        click.echo(f"{result.accuracy:.2f} % of {result.total:,} ({result.correct:,} right; 95 % interval "
                   f"{low:.2f} to {high:.2f} %)")  # fmt: skip
        if result.top5 is not None and len(result.classes) > 5:
            click.echo(f"top-5 {result.top5:.2f} %")
        if verdict is not None:
            click.echo(f"reported {expect:.2f} %: {verdict}")
    return 1 if verdict == "worse" else 0


def _numbers(text: str | None) -> list[float] | str | None:
    """``"1,2,3"`` as numbers; anything else stays a name."""
    if text is None:
        return None
    try:
        return [float(value) for value in text.split(",")]
    except ValueError:
        return text


def _std(text: str | None) -> list[float] | None:
    numbers = _numbers(text)
    if isinstance(numbers, str):
        raise click.UsageError(f"--std takes numbers, got '{numbers}'")
    return numbers


@contextlib.contextmanager
def _progress(what: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
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


@cli.command()
@click.argument("weights", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--output", "folder", default="demo", show_default=True, type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace an earlier demo.")
def demo(weights: Path | None, folder: Path, force: bool) -> int:
    """The main job, without network: SimpleNet for CIFAR-10, written as a .caffemodel, converted and verified.

    Given WEIGHTS (a .caffemodel), it uses that.
    """
    from rich.console import Console

    from caffe_port import api, emit, report
    from caffe_port import demo as demonstration
    from caffe_port.verify import verify as run

    with demonstration.workspace() as scratch:
        prepared = demonstration.prepare(scratch, weights)
        click.secho(f"1. {prepared.story}", bold=True)
        click.secho("2. convert", bold=True)
        ported = api.port(prepared.prototxt, prepared.weights)
        result = emit.convert(ported, folder, force=force)
        _show_conversion(result)
        click.secho("3. verify, layer by layer, against OpenCV's importer", bold=True)
        found = run(prepared.prototxt, prepared.weights)
    report.render(found, Console(), all_rows=False)
    click.secho("4. use it", bold=True)
    click.echo(demonstration.USAGE.format(folder=printable(str(folder)), name=result.class_name))
    return 0 if found.passed else 1
