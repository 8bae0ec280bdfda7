"""Plots of a run: loss, accuracy and learning rate over the iterations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from caffe_port.errors import CaffePortError, DependencyError
from caffe_port.storage.files import atomic_write

Points = Sequence[tuple[int, float]]


def is_loss(name: str, line: Mapping[str, Any]) -> bool:
    """Whether an output of a test is a loss: it has a weight in the net, if the line has the weights; else its
    name says so.
    """
    losses = line.get("losses")
    return name.partition("[")[0] in losses if losses else "loss" in name.lower()


def judge(line: Mapping[str, Any]) -> str | None:
    """The output by which a test is judged: an accuracy, else any other that is not a loss, else a loss.

    Of several, the first that belongs to the loss with the greatest weight (``loss3/top-1`` to ``loss3/loss3``).
    """
    names, weights = list(line["outputs"]), line.get("losses") or {}

    def weight(name: str) -> float:
        branch = name.rpartition("/")[0]
        return max((w for loss, w in weights.items() if branch and loss.rpartition("/")[0] == branch), default=0.0)

    better = sorted((name for name in names if not is_loss(name, line)), key=weight, reverse=True)
    return next(iter([*(name for name in better if "acc" in name.lower()), *better, *names]), None)


def curves(metrics: Sequence[dict[str, Any]], *paths: str | Path, reference: Points = (), title: str = "") -> None:
    """Plots a run's metrics (from ``run_folder`` or ``caffe_log``) to files.

    Args:
        metrics: lines with ``kind`` train (``loss``, ``lr``) and test (``outputs``).
        paths: the files; the suffix gives the format.
        reference: (iteration, accuracy) of another run, plotted for comparison.
        title: title of the figure.

    Raises:
        DependencyError: matplotlib is not installed.
        CaffePortError: a file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DependencyError("plots require matplotlib", hint="pip install 'caffe-port[plot]'") from None
    trained = [line for line in metrics if line["kind"] == "train"]
    tested = [line for line in metrics if line["kind"] == "test"]
    figure = Figure(figsize=(8, 9), layout="constrained")
    losses, accuracies, rates = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1])
    losses.plot([line["iter"] for line in trained], [line["loss"] for line in trained], lw=0.8, label="training loss")
    for net, name in sorted({(line.get("net", 0), name) for line in tested for name in line["outputs"]}):
        lines = [line for line in tested if line.get("net", 0) == net and name in line["outputs"]]
        points = [(line["iter"], line["outputs"][name]) for line in lines]
        axes = losses if any(is_loss(name, line) for line in lines) else accuracies
        label = f"test #{net} {name}" if net else f"test {name}"
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 60 else "", label=label)
    if reference:
        accuracies.plot(*zip(*reference, strict=True), color="grey", lw=1, label="reference")
    rated = [line for line in trained if "lr" in line]
    rates.plot([line["iter"] for line in rated], [line["lr"] for line in rated], drawstyle="steps-post")
    if all(line["loss"] > 0 for line in trained) and trained:
        losses.set_yscale("log")
    if any(line["lr"] > 0 for line in rated):
        rates.set_yscale("log")
    losses.set_ylabel("loss")
    accuracies.set_ylabel("accuracy and other outputs")
    rates.set(ylabel="learning rate", xlabel="iteration")
    for axes in (losses, accuracies):
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        axes.grid(alpha=0.3)
    if title:
        figure.suptitle(title)
    for path in paths:
        try:
            with atomic_write(path) as file:
                figure.savefig(file, dpi=110, format=Path(path).suffix[1:] or None)
        except ValueError as error:
            raise CaffePortError(f"cannot be written: {error}", str(path)) from None
