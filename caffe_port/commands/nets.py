"""The commands convert, inspect and demo."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from caffe_port.commands import checks
from caffe_port.commands.command import OUTPUT, command, console, note
from caffe_port.commands.net_files import (
    NetFiles,
    Shape,
    dialect_option,
    ignore_field,
    image_options,
    located,
    net_options,
    sort_files,
)
from caffe_port.commands.progress import progress_bar
from caffe_port.errors import CaffePortError, printable
from caffe_port.terminal import count, human_bytes

if TYPE_CHECKING:
    from caffe_port.api import Ported


@command()
@net_options
@click.option(
    "-o", "--output", "folder", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Output folder."
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    default=["torch"],
    show_default=True,
    type=click.Choice(["torch", "onnx", "pt2", "safetensors"]),
    help="Output format. May be repeated. safetensors alone: only the blobs, as Caffe stores them.",
)
@click.option(
    "--dynamic",
    type=click.Choice(["size", "batch", "none"]),
    default="size",
    show_default=True,
    help="For onnx and pt2: what may differ from the net's own input: batch, height and width as far as the net allows "
    "it; only the batch; nothing.",
)
@click.option(
    "--plain-pooling",
    is_flag=True,
    help="For onnx and pt2: write pooling as PyTorch's exporter does, not in the forms on which runtimes agree.",
)
@click.option("--force", is_flag=True, help="Replace the files of an earlier convert.")
@click.option(
    "--fold", is_flag=True, help="For inference: fold BatchNorm and Scale into the weights of the layer before them."
)
@click.option(
    "--channels-last/--no-channels-last",
    default=None,
    help="Whether model.py computes in PyTorch's channels-last memory format. Default: if the net has convolutions of "
    "images, which are then faster on a CPU, and no plugin's layers.",
)
@click.option("--keep-loss", is_flag=True, help="Keep losses, Accuracy and the label input.")
@image_options
@click.option("--stub", is_flag=True, help="Convert layers of unknown types to stubs that you complete by hand.")
@click.option(
    "--caffemodel",
    "trained",
    metavar="STATE",
    type=click.Path(),
    help="Convert back to Caffe: write .prototxt and .caffemodel with the parameters of STATE, the weights of a "
    "trained model.py (.safetensors, .pt).",
)
def convert(
    net: NetFiles, folder: Path, formats: tuple[str, ...], trained: str | None, stub: bool, keep_loss: bool, **how: Any
) -> None:
    """Convert a Caffe model to PyTorch.

    \b
    Arguments:
      PROTOTXT  the net's definition in any format version, for training or
                deployment; optional with a .caffemodel, which has its own
      WEIGHTS   .caffemodel or .caffemodel.h5; without it, parameters are
                initialized from the fillers
    or one archive from DIGITS (.tar.gz, .zip) in place of both

    The order of the two does not matter. The output is weights.safetensors, port.json (a record of the conversion), and
    model.py, which depends only on torch.

    \b
    Examples:
      caffe-port convert deploy.prototxt net.caffemodel -o net
      caffe-port convert net.caffemodel -o net --force
      caffe-port convert net.caffemodel -o net --format safetensors
      caffe-port convert train_val.prototxt net.caffemodel -o net \\
          --input-shape data=1,3,224,224 --format torch --format onnx
      caffe-port convert deploy.prototxt -o back --caffemodel net.safetensors

    \b
    Exit codes:
      0  success
      2  bad usage or bad input; nothing is written
    """
    if set(formats) == {"safetensors"}:
        if net.weights is None or trained or stub or keep_loss or how["fold"] or how["channels_last"] is not None:
            raise click.UsageError(
                "--format safetensors alone needs WEIGHTS and cannot be combined with --fold, "
                "--channels-last, --keep-loss, --stub or --caffemodel"
            )
        from caffe_port.emit import blobs

        _show(blobs.convert(net.weights, folder, net.prototxt, force=how["force"]))
        return
    checks.output_folder(folder, how["force"])
    checks.readable(trained, how["labels"])
    checks.mean(how["mean"])
    if "onnx" in formats:
        checks.package(("onnx", "onnxscript"), "--format onnx", "onnx")
    share = trained is None
    read = net.read(writable=share)
    found = read.phases(keep_loss=keep_loss, stub=stub)
    with read.examined() if share else contextlib.nullcontext():
        from caffe_port import api
        from caffe_port.emit.convert import convert as write

    ported = api.build(
        read.definition, read.weights, found=found, keep_loss=keep_loss, stub=stub, share=share, **read.options
    )
    if trained is None:
        images = _images(ported, **{name: how.pop(name) for name in _IMAGES})
        _show(write(ported, folder, formats=formats, **how, **images))
        return
    from caffe_port.emit import caffe_files

    checks.overwrites(caffe_files.paths(folder), filter(None, (net.prototxt, net.weights, trained)))
    caffe_files.load_state(ported.net, trained)
    for path in caffe_files.write_caffe(ported, folder):
        click.echo(f"  {printable(str(path))}  {human_bytes(path.stat().st_size)}")


_IMAGES = ("mean", "scale", "channel_order", "labels")


def _images(ported: Ported, **given: Any) -> dict[str, Any]:
    """How images become the net's input, and the names of the classes, as far as they are known: for ``convert``."""
    from caffe_port.evaluation.known import known_of

    notes: list[str] = []
    images = known_of(ported, notes, **given)
    for text in notes:
        note(text)
    return {} if images is None else {"preprocessing": images.preprocessing, "classes": images.classes}


def _show(result: Any) -> None:
    for text in result.notes:
        note(text)
    size = f"{count(result.layers, 'layer')}, {count(result.parameters, 'parameter')}"
    size += ", channels-last memory" if result.channels_last else ""
    click.echo(f"{size}; {printable(result.check)}")
    for name in result.files:
        path = result.folder / name
        click.echo(f"  {printable(str(path))}  {human_bytes(path.stat().st_size)}")


@command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path())
@click.option(
    "--input-shape",
    "shapes",
    type=Shape(),
    multiple=True,
    metavar="NAME=N,C,H,W",
    help="Shape of an input blob, if the net does not define it. May be repeated.",
)
@click.option(
    "--phase",
    type=click.Choice(["TRAIN", "TEST"], case_sensitive=False),
    default="TEST",
    show_default=True,
    help="Phase whose layers are shown.",
)
@click.option("--stage", "stages", multiple=True, metavar="NAME", help="Caffe's NetState.stage. May be repeated.")
@click.option("--level", type=int, default=0, metavar="N", help="Caffe's NetState.level.")
@dialect_option
@ignore_field
@click.option("--diff", "side_by_side", is_flag=True, help="Compare a prototxt with weights, blob by blob.")
@click.option("--numbers", is_flag=True, help="Show minimum, maximum and mean of every blob, and NaN and infinity.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(
    files: tuple[str, ...],
    shapes: Any,
    phase: str,
    stages: tuple[str, ...],
    level: int,
    dialect: str | None,
    side_by_side: bool,
    numbers: bool,
    as_json: bool,
    ignored: tuple[str, ...],
) -> int:
    """Show the layers, shapes, parameters and cost of Caffe files.

    \b
    Arguments:
      FILE  a prototxt (net or solver), .caffemodel, .caffemodel.h5,
            .binaryproto or .solverstate, or an archive from DIGITS;
            may be repeated

    \b
    Examples:
      caffe-port inspect deploy.prototxt
      caffe-port inspect net.caffemodel --numbers
      caffe-port inspect --diff deploy.prototxt net.caffemodel

    \b
    Exit codes:
      0  success
      1  with --diff: the weights do not match the prototxt
      2  bad usage or bad input
    """
    from caffe_port.formats import dialects
    from caffe_port.inspection import inspect as looking
    from caffe_port.inspection.net_table import Options

    dialects.assume(dialect)
    files = tuple(map(located, files))
    options = Options(
        phase=phase, level=level, stages=stages, input_shapes=dict(shapes), numbers=numbers, ignore_fields=ignored
    )
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


@command()
@click.argument("weights", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    "folder",
    default="demo",
    show_default=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Output folder.",
)
@click.option("--force", is_flag=True, help="Replace the files of an earlier demo.")
def demo(weights: Path | None, folder: Path, force: bool) -> int:
    """Convert and verify a trained SimpleNet as a demonstration, offline.

    \b
    Arguments:
      WEIGHTS  a .caffemodel to use instead of SimpleNet

    \b
    Examples:
      caffe-port demo
      caffe-port demo net.caffemodel -o net --force

    \b
    Exit codes:
      0  success, all layers agree
      1  a layer differs
      2  bad usage or bad input
    """
    checks.output_folder(folder, force)
    checks.readable(weights)
    from caffe_port import api
    from caffe_port.commands import demo_files as demonstration
    from caffe_port.emit.convert import convert as write
    from caffe_port.verification.reports import terminal
    from caffe_port.verification.verify import verify as run

    weights, story = (weights, f"{weights}, with its own definition") if weights else demonstration.trained()
    click.secho(f"1. {story}", bold=True)
    click.secho("2. convert", bold=True)
    ported = api.port(None, weights)
    result = write(ported, folder, force=force, **_images(ported))
    _show(result)
    click.secho("3. verify, layer by layer, against OpenCV's importer", bold=True)
    found = run(ported)
    terminal.render(found, console(), all_rows=False)
    click.secho("4. use it", bold=True)
    click.echo(demonstration.usage(folder, result.class_name))
    return 0 if found.passed else 1


@command()
@click.argument("files", nargs=-1, required=True, metavar="NET IMAGES", type=click.Path())
@image_options
@click.option(
    "--input-shape",
    "shapes",
    type=Shape(),
    multiple=True,
    metavar="NAME=N,C,H,W",
    help="Shape of the input blob, if the net does not define it.",
)
@click.option("--own-size", is_flag=True, help="Give the net each image in its own size, without resizing it.")
@click.option("--output", metavar="BLOB", help="Report only this output.")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Classes to report.")
@click.option(
    "--least",
    type=click.FloatRange(0, 1),
    default=0.3,
    show_default=True,
    metavar="SCORE",
    help="Lowest score of a box.",
)
@click.option(
    "--draw",
    type=OUTPUT,
    metavar="FILE",
    help="Write the image with its boxes, or the map or image that the net gives; a folder for several images.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def predict(
    files: tuple[str, ...], shapes: Any, top: int, least: float, draw: Path | None, as_json: bool, **options: Any
) -> None:
    """Show what a net says of images.

    \b
    Arguments:
      NET    a prototxt, a caffemodel, or both; an archive from DIGITS; or a
             folder that convert wrote, whose model.py is run
      IMAGE  image files, and folders of images

    Images are prepared as is known of the net: from port.json, the registry of published weights, or the
    transform_param of its data layers. --mean, --scale and --channel-order replace what is known.

    \b
    Examples:
      caffe-port predict lenet.prototxt lenet.caffemodel digit.png
      caffe-port predict converted/ cat.jpg dog.jpg --labels names.txt
      caffe-port predict ssd.prototxt ssd.caffemodel street.jpg --draw out.png
      caffe-port predict net.caffemodel images/ --json

    \b
    Exit codes:
      0  success
      2  bad usage or bad input
    """
    net, paths = _net_and_images(files)
    from caffe_port.data import image_files

    images = image_files.expand(paths)
    for path in images[:_MANY]:
        image_files.check(path)
    if isinstance(net, Path) and shapes:
        raise click.UsageError("--input-shape does not apply to a converted folder")
    checks.readable(options["labels"])
    checks.mean(options["mean"])
    if draw is not None:
        _check_drawing(draw, images)
    if isinstance(net, Path):
        from caffe_port.evaluation import predict as prediction

        predictor = prediction.Predictor(net, **options)
    else:
        read = NetFiles(*net, {"input_shapes": dict(shapes)}).read()
        found = read.phases()
        from caffe_port import api
        from caffe_port.evaluation import predict as prediction

        ported = api.build(read.definition, read.weights, found=found, **read.options)
        predictor = prediction.Predictor(ported, **options)
    for text in predictor.notes:
        note(text)
    written = []
    with progress_bar("predicting", as_json or len(images) < _MANY, "image") as progress:
        for number, path in enumerate(images, 1):
            said = predictor.predict(path)
            if as_json:
                written.append(prediction.as_dict(said, predictor, top))
            else:
                click.echo(printable(str(path)))
                for line in prediction.lines(said, predictor, top, least):
                    click.echo(printable(line))
            if draw is not None:
                _write_drawing(prediction.draw(said, predictor, least), draw, path, len(images) > 1)
            if progress is not None:
                progress(number, len(images))
    if as_json:
        click.echo(json.dumps(written, indent=2))


_MANY = 10
_OF_NET = (".prototxt", ".caffemodel", ".h5", ".hdf5", ".pbtxt", ".tar", ".gz", ".tgz", ".bz2", ".zip")


def _net_and_images(files: tuple[str, ...]) -> tuple[Path | tuple[str | None, str | None], list[str]]:
    """The folder of a converted net, or (prototxt, weights); and the rest."""
    if Path(files[0]).is_dir():
        if not (Path(files[0]) / "port.json").is_file():
            raise CaffePortError("is not a folder that convert wrote: it has no port.json", files[0])
        net: Path | tuple[str | None, str | None] = Path(files[0])
        rest = list(files[1:])
    else:
        count_ = next((n for n, file in enumerate(files) if not file.lower().endswith(_OF_NET)), len(files))
        net = sort_files(files[: max(count_, 1)])
        rest = list(files[max(count_, 1) :])
    if not rest:
        raise click.UsageError("give at least one image after the net")
    return net, rest


def _check_drawing(target: Path, images: Sequence[Path]) -> None:
    """Raises CaffePortError if the drawings cannot be written there."""
    if len(images) > 1:
        if target.exists() and not target.is_dir():
            raise CaffePortError("is a file; expected a folder, for several images", str(target))
        checks.overwrites([_drawing_of(image, target) for image in images], images)
        return
    checks.overwrites([target], images)
    checks.writable(target)
    if target.suffix and target.suffix.lower() not in (".png", ".jpg", ".jpeg", ".bmp", ".webp"):
        raise CaffePortError(f"cannot be written as '{target.suffix}'; use .png or .jpg", str(target))


def _drawing_of(image: Path, folder: Path) -> Path:
    return folder / f"{image.stem}.png"


def _write_drawing(pixels: Any, target: Path, image: Path, several: bool) -> None:
    """Writes a PNG (or what the suffix says) in one piece."""
    from caffe_port.storage import images
    from caffe_port.storage.files import atomic_write

    path = _drawing_of(image, target) if several else target
    if several:
        target.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower() or ".png"
    done, data = images.opencv().imencode(suffix, pixels)
    assert done
    with atomic_write(path) as file:
        file.write(data.tobytes())
