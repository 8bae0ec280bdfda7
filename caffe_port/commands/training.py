"""The commands train, evaluate, log and reproduce."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from caffe_port.commands import checks
from caffe_port.commands.command import OUTPUT, command, note
from caffe_port.commands.net_files import Contents, NetFiles, ignore_field, located, net_options
from caffe_port.commands.progress import Progress, progress_bar
from caffe_port.errors import printable
from caffe_port.storage.files import atomic_write
from caffe_port.terminal import count, table

if TYPE_CHECKING:
    from caffe_port.training.set_up import TrainResult


@command()
@net_options
@click.option(
    "--data",
    metavar="NAME|PATH",
    help="Data set: mnist, cifar10, cifar100, svhn, an .npz file, or a folder of class folders. For a detector: a "
    "folder as of PASCAL VOC, a list of images and annotations, or an LMDB of AnnotatedDatum. Default: what the net's "
    "own AnnotatedData layer reads.",
)
@click.option("--root", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the data set.")
@click.option("--download", is_flag=True, help="Let torchvision download the data set to --root.")
@click.option(
    "--split", type=click.Choice(["test", "train"]), default="test", show_default=True, help="Part of the data set."
)
@click.option(
    "--mean",
    metavar="NUMBERS|FILE",
    help="Mean to subtract: numbers, a .binaryproto or .npy file, or 'training-set mean image'.",
)
@click.option("--std", metavar="NUMBERS", help="Divisor of (x - mean) * scale.")
@click.option("--scale", type=float, metavar="NUMBER", help="Factor for x - mean.")
@click.option(
    "--channel-order",
    type=click.Choice(["RGB", "BGR", "GRAY"], case_sensitive=False),
    help="Channel order of the net's input.",
)
@click.option(
    "--labels",
    type=click.Path(),
    metavar="FILE",
    help="For a detector: names of the classes, a labelmap.prototxt or one name per line.",
)
@click.option(
    "--ap",
    type=click.Choice(["11point", "MaxIntegral", "Integral", "101point"]),
    default="11point",
    show_default=True,
    help="For a detector: the average precision to list by class and to compare with --expect.",
)
@click.option("--tta", type=click.Choice(["none", "mirror"]), help="Whether to mirror images at random in the test.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use only the first N images.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images per batch. Default: 100, or 16 for a detector.",
)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="cpu, cuda, cuda:1 or auto.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of the random mirroring.")
@click.option("--expect", type=float, metavar="PERCENT", help="Reported accuracy; exit code 1 if the result is worse.")
@click.option("--confusion", type=OUTPUT, metavar="FILE", help="Plot the confusion matrix to this file.")
@click.option("-o", "--output", type=OUTPUT, metavar="FILE", help="Write the result to this file, as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    net: NetFiles,
    mean: str | None,
    std: str | None,
    expect: float | None,
    confusion: Path | None,
    output: Path | None,
    as_json: bool,
    data: str | None,
    batch_size: int | None,
    labels: str | None,
    ap: str,
    **options: Any,
) -> int:
    """Measure a net's accuracy on a data set, or a detector's mean average precision.

    \b
    Arguments:
      PROTOTXT  the net's definition; optional with a .caffemodel
      WEIGHTS   .caffemodel or .caffemodel.h5

    The preprocessing is that of the registry if it knows the weights, otherwise that of the training run or of
    transform_param. --mean, --std, --scale and --channel-order override it:  x' = (x - mean) * scale / std.

    A net that ends in DetectionOutput is measured as SSD's solver does, in every version of the average precision.

    \b
    Examples:
      caffe-port evaluate lenet.prototxt lenet.caffemodel --data mnist \\
          --root data --scale 0.00390625
      caffe-port evaluate net.caffemodel --data mnist --root data \\
          --expect 99.72
      caffe-port evaluate ssd/deploy.prototxt ssd.caffemodel \\
          --data VOCdevkit/VOC2007 --mean 104,117,123

    \b
    Exit codes:
      0  success; with --expect: equal or better
      1  with --expect: worse by more than chance explains
      2  bad usage or bad input
    """
    if net.weights is None:
        raise click.UsageError("evaluate needs weights")
    numbers, divisors = _numbers(mean), _std(std)
    checks.mean(numbers)
    checks.plot(confusion)
    checks.writable(output)
    from caffe_port.data.annotations import is_annotated

    if data is None or is_annotated(Path(data)):
        batch = {} if batch_size is None else {"batch_size": batch_size}
        chosen = {name: options[name] for name in ("split", "scale", "channel_order", "limit", "device")}
        chosen |= batch | {"data": data, "labels": labels, "mean": numbers}
        read = net.read()
        read.check_layers()
        return _evaluate_detections(read, expect, output, as_json, ap, **chosen)
    checks.data_set(data, options["root"], options["download"], (options["split"],))
    read = net.read()
    read.check_layers()
    assert read.weights is not None
    from caffe_port.evaluation import evaluate as evaluation

    options |= {"data": data, "batch_size": batch_size or evaluation.BATCH_SIZE}
    with progress_bar("evaluating", as_json, "image") as progress:
        found = evaluation.evaluate_files(
            read.weights, read.definition, mean=numbers, std=divisors, progress=progress, **options, **read.options
        )
    result = found.result
    verdict = None if expect is None else result.verdict(expect)
    if confusion is not None:
        evaluation.plot_confusion(result, confusion)
    figures = result.as_dict() | {
        "data": found.data,
        "preprocessing": str(found.preprocessing),
        "expected": expect,
        "verdict": verdict,
    }
    if output is not None:
        with atomic_write(output, "w") as file:
            file.write(json.dumps(figures, indent=2) + "\n")
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        for text in found.notes:
            note(text)
        low, high = result.interval
        click.echo(f"{printable(found.data)}: {printable(str(found.preprocessing))} ({printable(found.origin)})")
        click.echo(
            f"{result.accuracy:.2f} % of {result.total:,} ({result.correct:,} correct; 95 % interval "
            f"{low:.2f} to {high:.2f} %)"
        )
        if result.top5 is not None and len(result.classes) > 5:
            click.echo(f"top-5 {result.top5:.2f} %")
        if verdict is not None:
            click.echo(f"reported {expect:.2f} %: {verdict}")
    return 1 if verdict == "worse" else 0


def _evaluate_detections(
    net: Contents, expect: float | None, output: Path | None, as_json: bool, version: str, **options: Any
) -> int:
    from caffe_port.evaluation.average_precision import VERSIONS
    from caffe_port.evaluation.detections import evaluate_detections

    assert net.weights is not None
    with progress_bar("evaluating", as_json, "image") as progress:
        result = evaluate_detections(net.weights, net.definition, progress=progress, **options, **net.options)
    verdict = None if expect is None else result.verdict(expect, version)
    more = {"data": result.data, "preprocessing": result.preprocessing, "expected": expect, "verdict": verdict}
    figures = json.dumps(result.as_dict(version) | more, indent=2)
    if output is not None:
        with atomic_write(output, "w") as file:
            file.write(figures + "\n")
    if as_json:
        click.echo(figures)
        return 1 if verdict == "worse" else 0
    for text in result.notes:
        note(text)
    click.echo(f"{printable(result.data)}: {printable(result.preprocessing)} ({printable(result.origin)})")
    objects = sum(result.found.objects.values())
    not_counted = "" if result.difficult else ", difficult ones not counted"
    click.echo(
        f"mean average precision of {result.images:,} images with {objects:,} objects, at an overlap of "
        f"{result.overlap:g}{not_counted}:"
    )
    click.echo("  " + "   ".join(f"{name} {result.mean(name):.2f} %" for name in VERSIONS))
    rows = [(printable(name), f"{value:.2f} %", f"{number:,}") for name, value, number in result.per_class(version)]
    for line in table(("class", version, "objects"), rows, right=(1, 2)):
        click.echo(line)
    if verdict is not None:
        click.echo(f"reported {expect:.2f} %: {verdict}")
    return 1 if verdict == "worse" else 0


def _numbers(text: str | None) -> list[float] | str | None:
    """``"1,2,3"`` as numbers; anything else is returned as it is."""
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


@command()
@click.argument("solver", type=click.Path(path_type=Path), required=False)
@click.option(
    "--recipe",
    type=click.Choice(["fast"]),
    help="Use a modern training recipe instead of a solver, for SimpleNet or the net given as SOLVER.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=1, metavar="N", help="With --recipe: number of runs, one per seed."
)
@click.option(
    "--out",
    "-o",
    "out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Output folder for the configuration, metrics, plots, snapshots and weights.",
)
@click.option(
    "--data",
    metavar="NAME|PATH",
    help="Data set: mnist, cifar10, cifar100, svhn, an .npz file, or a folder. Default: the net's data layers.",
)
@click.option("--root", metavar="DIR", help="Folder of the data set.")
@click.option("--download", is_flag=True, help="Let torchvision download the data set to --root.")
@click.option("--entry", metavar="NAME", help="Use the preprocessing of this registry entry.")
@click.option(
    "--epochs",
    type=click.FloatRange(min=0, min_open=True),
    metavar="NUMBER",
    help="Number of epochs; overrides the solver's max_iter.",
)
@click.option("--max-iter", type=click.IntRange(min=0), metavar="N", help="Override the solver's max_iter.")
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", help="Override the net's batch_size.")
@click.option(
    "--shuffle/--in-sequence",
    default=None,
    help="Order of the records. Default: shuffle data sets, read databases in sequence.",
)
@click.option(
    "--flip/--no-flip",
    default=None,
    help="With --recipe: flip images horizontally. Default: color images, except SVHN.",
)
@click.option("--weights", metavar="FILE", type=click.Path(), help="A .caffemodel to start from (fine-tuning).")
@click.option(
    "--resume",
    is_flag=False,
    flag_value="newest",
    metavar="[STATE]",
    help="Resume from the newest snapshot in RUN, or from a .solverstate file.",
)
@click.option(
    "--fast",
    is_flag=True,
    help="Set --channels-last, --amp bf16 if the device supports it, and on a GPU --compile and --cuda-graph.",
)
@click.option("--amp", type=click.Choice(["bf16", "tf32"]), help="Mixed precision: bf16 autocast, or TF32 on a GPU.")
@click.option("--compile", is_flag=True, help="Compile the net with torch.compile.")
@click.option(
    "--channels-last/--no-channels-last",
    default=None,
    help="Whether to compute in the channels-last memory format. Default: on a CPU, if the net has convolutions of "
    "images, which are then faster.",
)
@click.option("--cuda-graph", is_flag=True, help="Launch each update as one CUDA graph.")
@click.option("--deterministic", is_flag=True, help="Use only deterministic kernels.")
@click.option(
    "--read-loss-every",
    type=click.IntRange(min=1),
    metavar="N",
    help="Check the loss every N iterations. Default: 1, or 100 on a GPU.",
)
@click.option(
    "--max-seconds",
    type=click.FloatRange(min=0),
    metavar="NUMBER",
    help="Stop after this time, with a snapshot; continue with --resume.",
)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="cpu, cuda, cuda:1 or auto.")
@click.option("--seed", type=int, metavar="N", help="Override the solver's random_seed.")
@click.option(
    "--keep",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    metavar="N",
    help="Number of snapshots to keep; 0: all.",
)
@click.option(
    "--sync-batch-norm/--batch-norm-per-process",
    default=True,
    show_default=True,
    help="With several processes: compute BatchNorm's statistics over the whole batch, or per process.",
)
@click.option("--reference-log", metavar="FILE", type=click.Path(), help="A Caffe log to compare with.")
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard's events, to RUN/tensorboard.")
@ignore_field
@click.pass_context
def train(
    context: click.Context,
    /,
    solver: Path | None,
    recipe: str | None,
    seeds: int,
    out: Path,
    resume: str | None,
    ignored: tuple[str, ...],
    **options: Any,
) -> int:
    """Train a net as its solver file specifies.

    \b
    Arguments:
      SOLVER  a solver.prototxt, which names the net

    \b
    Examples:
      caffe-port train solver.prototxt --data mnist --root data -o run \\
          --epochs 2
      caffe-port train solver.prototxt -o run --resume
      caffe-port train --recipe fast --data cifar10 -o run --seeds 5
      torchrun --nproc-per-node 4 -m caffe_port train solver.prototxt \\
          --data cifar10 -o run --device cuda

    \b
    Exit codes:
      0    training finished, or --max-seconds was reached
      2    bad usage or bad input
      130  stopped by SIGINT (Ctrl-C); a snapshot was written
      143  stopped by SIGTERM; a snapshot was written
    """
    if recipe is not None and ignored:
        raise click.UsageError("--recipe cannot be combined with --ignore-field")
    if recipe is not None:
        return _train_fast(context, solver, seeds, out, resume, options)
    if solver is None or seeds != 1 or options["flip"] is not None:
        raise click.UsageError("give a SOLVER or --recipe; --seeds and --flip require --recipe")
    del options["flip"]
    resumed = resume if resume not in (None, "newest") else resume is not None
    spec = checks.training(located(str(solver)), out, ignored, resumed, options)
    from caffe_port.training import processes
    from caffe_port.training.set_up import TrainOptions
    from caffe_port.training.train import train as run

    chosen = TrainOptions(resume=resumed, ignore_fields=ignored, **options)
    with Progress() as progress:
        teller = _Teller(progress)
        result = run(spec, out, chosen, teller.hear)
    if teller.ended:  # only in the first of several processes
        _show_run(result)
    return processes.leave({"": 0, "max_seconds": 0, "SIGINT": 130, "SIGTERM": 143}.get(result.stopped, 1))


def _show_run(result: TrainResult) -> None:
    for name, value in result.outputs.items():
        click.echo(f"{printable(name)} = {value:.6g} after {count(result.outputs_iter[name], 'iteration')}")
    if result.train:
        loss, trained = result.train["loss"], result.train["iter"]
        click.echo(f"training loss = {loss:.6g} in iteration {trained:,}")
    if result.best:
        name, value, at = result.best["name"], result.best["value"], result.best["iter"]
        click.echo(f"best: {printable(name)} = {value:.6g} after {count(at, 'iteration')}")
    click.echo(f"run: {printable(str(result.run))}")
    if result.stopped == "max_seconds":
        done = count(result.iter, "iteration")
        note(f"stopped by --max-seconds after {done}; run the same command with --resume to continue")
    elif result.stopped:
        done = count(result.iter, "iteration")
        note(f"stopped by {result.stopped} after {done}; continue with --resume")


_OF_RECIPES = (
    "data",
    "root",
    "download",
    "epochs",
    "batch_size",
    "seed",
    "max_seconds",
    "device",
    "tensorboard",
    "flip",
)


def _train_fast(
    context: click.Context, net: Path | None, seeds: int, out: Path, resume: str | None, options: dict[str, Any]
) -> int:
    given = {name for name in options if context.get_parameter_source(name) != ParameterSource.DEFAULT}
    if foreign := sorted(given - set(_OF_RECIPES)):
        raise click.UsageError(f"--recipe cannot be combined with --{foreign[0].replace('_', '-')}")
    if not options["data"]:
        raise click.UsageError("--recipe requires --data")
    if resume not in (None, "newest"):
        raise click.UsageError("with --recipe, --resume takes no file: the run is resumed from its folder")
    chosen = {name: options[name] for name in _OF_RECIPES} | {"seed": options["seed"] or 0}
    if (epochs := chosen["epochs"]) is not None and epochs != int(epochs):
        raise click.UsageError("with --recipe, --epochs must be a whole number")
    chosen["epochs"] = None if epochs is None else int(epochs)
    if net is not None:
        chosen["net"] = located(str(net))
        checks.readable(chosen["net"])
    for seed in range(seeds):
        checks.run_folder(out / f"seed-{chosen['seed'] + seed}" if seeds > 1 else out, resume)
    if chosen["tensorboard"]:
        checks.package(("tensorboard",), "--tensorboard", "tensorboard")
    checks.data_set(chosen["data"], chosen["root"], chosen["download"], ("train", "test"))
    from caffe_port.training import fast_recipe

    def hear(event: dict[str, Any]) -> None:
        kind = event["kind"]
        if kind == "note":
            progress.say(f"note: {event['text']}")
        elif kind == "progress":
            progress.update("training", event["update"], event["updates"], "update")
        elif kind == "testing":
            progress.update("testing", event["done"], event["total"], "image")
        elif kind == "epoch":
            text = f"epoch {event['epoch']} of {event['epochs']}: loss {event['loss']:.4f}, {event['seconds']:.2f} s"
            progress.say(text)
        elif kind == "end":
            tested = "not tested yet"
            if event["accuracy"] is not None:
                tested = "{:.2f} % (95 % interval {:.2f} to {:.2f})".format(event["accuracy"], *event["interval"])
            length = event["updates_per_epoch"]
            rest = event["updates_done"] - event["epochs_done"] * length
            done = fast_recipe.done_in_words(event["epochs_done"], rest, length)
            click.echo(
                f"seed {event['seed']}: {tested} after {done}; {event['train_seconds']:.1f} s of training, "
                f"{event['images_per_s']:,.0f} images/s"
            )

    with Progress() as progress:
        results = fast_recipe.train(out, fast_recipe.FastOptions(resume=resume is not None, **chosen), hear, seeds)
    if seeds > 1 and (text := fast_recipe.summary(results)):
        click.echo(text)
    click.echo(f"run: {printable(str(out))}")
    stopped = results[-1]["stopped"]
    if stopped:
        reason = "--max-seconds" if stopped == "max_seconds" else stopped
        note(f"stopped by {reason}; run the same command with --resume to continue")
    return {"SIGINT": 130, "SIGTERM": 143}.get(stopped, 0)


class _Teller:
    """Shows the events of a training run: its progress, and lines for tests and snapshots."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.total = 0
        self.detail = ""
        self.ended = False

    def hear(self, event: dict[str, Any]) -> None:
        """Shows one event of :func:`caffe_port.training.train.train`."""
        kind = event["kind"]
        if kind == "note":
            self.progress.say(f"note: {event['text']}")
        elif kind == "start":
            self.total = event["max_iter"]
            self.progress.update("training", event["iter"], self.total, "iteration")
        elif kind == "train":
            first, self.detail = (
                not self.detail,
                (f"loss {event['loss']:.4g}, lr {event['lr']:.3g}, {event['images_per_s']:,.0f} images/s"),
            )
            if first and not self.progress.is_terminal:
                self.progress.say(f"iteration {event['iter']:,}: {self.detail}")
        elif kind == "progress":
            detail = self.detail or f"loss {event['loss']:.4g}, lr {event['lr']:.3g}"
            self.progress.update("training", event["iter"], self.total, "iteration", detail)
        elif kind == "testing":
            label = f"testing #{event['net']}" if event["net"] else "testing"
            at = f"iteration {event['iter']:,}"
            self.progress.update(label, event["batch"], event["batches"], "batch", at, plural="batches")
        elif kind == "test":
            shown = "  ".join(f"{name} {value:.4f}" for name, value in event["outputs"].items())
            ahead = {None: "", True: "  above the reference", False: "  at or below the reference"}[event.get("ahead")]
            of_net = f" #{event['net']}" if "net" in event else ""
            self.progress.say(f"iteration {event['iter']:,}: test{of_net}  {shown}{ahead}")
            for name, values in event.get("per_class", {}).items():
                self.progress.say(f"  {name}: " + "  ".join(f"class {k} {v:.4f}" for k, v in values.items()))
        elif kind == "snapshot":
            self.progress.say(f"iteration {event['iter']:,}: snapshot {event['file']}")
        elif kind == "end":
            self.ended = True


@command()
@click.argument("path", metavar="CAFFE_LOG", type=click.Path(path_type=Path))
@click.option("--csv", type=OUTPUT, metavar="FILE", help="Write all training and test points as CSV.")
@click.option(
    "--plot",
    "plots",
    multiple=True,
    type=OUTPUT,
    metavar="FILE",
    help="Plot loss, accuracy and learning rate (.png, .svg or .pdf). May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def log(path: Path, csv: Path | None, plots: tuple[Path, ...], as_json: bool) -> None:
    """Summarize a Caffe training log: best and last accuracy.

    \b
    Arguments:
      CAFFE_LOG  the output of `caffe train`; it may be incomplete

    \b
    Examples:
      caffe-port log caffe.log --csv points.csv --plot curve.png

    \b
    Exit codes:
      0  success
      2  bad usage or bad input
    """
    from caffe_port.training import caffe_log

    checks.writable(csv)
    for one in plots:
        checks.plot(one)
    found = caffe_log.read(path)
    if csv is not None:
        caffe_log.to_csv(found, csv)
    if plots:
        caffe_log.plot(found, *plots)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
        return
    click.echo(f"{count(len(found.tests), 'test point')}, {count(len(found.trained), 'training point')}")
    for net in found.nets:
        name = found.output(net) or ""
        of_net = f" of test net #{net}" if net else ""
        for word, point in (("best", found.best(net)), ("last", found.last(net))):
            if point is not None:
                accuracy = "acc" in name.lower()
                value = f"accuracy {100 * point[1]:.2f} %" if accuracy else f"{printable(name)} {point[1]:.6g}"
                click.echo(f"{word} test {value}{of_net} at iteration {point[0]:,}")
    if found.replaced:
        note(f"{count(found.replaced, 'point')} of earlier runs in the file left out, where a later run goes on")
    if found.of_others:
        note(f"{count(found.of_others, 'point')} of further processes left out; the first one counts")
    if found.not_read:
        note(f"{count(len(found.not_read), 'line')} not understood, the first: {found.not_read[0].strip()}")


@command()
@click.argument("name", required=False)
@click.option("--list", "listed", is_flag=True, help="List all reported figures, with the results on this machine.")
@click.option("--mirror", type=click.Path(path_type=Path), metavar="DIR", help="Folder with the weights and data.")
@click.option("--root", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the data set.")
@click.option("--data", metavar="PATH", help="An .npz file or a folder to use instead of the data set.")
@click.option("--offline", is_flag=True, help="Download nothing.")
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Output folder for the converted net. Default: in the cache.",
)
@click.option("--device", default="cpu", show_default=True, metavar="NAME", help="cpu, cuda, cuda:1 or auto.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of the random mirroring.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reproduce(name: str | None, listed: bool, as_json: bool, **options: Any) -> int:
    """Reproduce a reported accuracy.

    \b
    Arguments:
      NAME  an entry of model_defs/registry.toml; without it, all entries
            are listed

    Downloads the weights and the data set, converts, verifies every layer, evaluates, and compares the accuracy.

    \b
    Examples:
      caffe-port reproduce --list
      caffe-port reproduce mnist-slim-310k --mirror downloads

    \b
    Exit codes:
      0  the reported accuracy was reached
      1  it was not reached, or a layer differs
      2  bad usage or bad input
    """
    from caffe_port.evaluation import reproduce as reproduction

    if listed or name is None:
        known = reproduction.findings()
        if as_json:
            click.echo(json.dumps([vars(finding) for finding in known], indent=2))
        else:
            _show_findings(known)
        return 0
    with progress_bar(name, as_json) as progress:

        def step(what: str, done: int, total: int) -> None:
            if progress is not None and total:
                progress(done, total)
            elif not as_json and not total:
                click.echo(f"{what} ...", err=True)

        outcome = reproduction.reproduce(name, step=step, **options)
    if as_json:
        click.echo(json.dumps(outcome.as_dict(), indent=2))
    else:
        for text in outcome.notes:
            note(text)
        click.echo(f"converted to {printable(str(outcome.folder))}: {printable(outcome.check)}")
        click.echo(printable(outcome.verified))
        _show_findings(list(outcome.findings))
    return 0 if outcome.reached else 1


def _show_findings(findings: list[Any]) -> None:
    from caffe_port.evaluation.reproduce import as_rows

    rows = list(as_rows(findings))
    shown = [key for key in (rows[0] if rows else ()) if key != "command"]
    right = [shown.index(key) for key in ("reported", "measured") if key in shown]
    click.echo("\n".join(table(shown, [[row[key] for key in shown] for row in rows], right, width=200)))
    commands = dict.fromkeys(row["command"] for row in rows if row["verdict"] == "not run here" and row["command"])
    if commands:
        click.echo("\nCommands for the others:")
    for line in commands:
        click.echo(f"  {printable(line)}")
