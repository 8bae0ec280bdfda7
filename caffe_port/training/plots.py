"""Plots of a run: loss, accuracy and learning rate over the iterations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caffe_port.errors import CaffePortError, DependencyError

Points = Sequence[tuple[int, float]]


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
    for name in sorted({name for line in tested for name in line["outputs"]}):
        points = [(line["iter"], line["outputs"][name]) for line in tested if name in line["outputs"]]
        is_loss = "acc" not in name.lower()
        axes = losses if is_loss else accuracies
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 60 else "", label=f"test {name}")
    if reference:
        accuracies.plot(*zip(*reference, strict=True), color="grey", lw=1, label="reference")
    rates.plot([line["iter"] for line in trained], [line["lr"] for line in trained], drawstyle="steps-post")
    if all(line["loss"] > 0 for line in trained) and trained:
        losses.set_yscale("log")
    if any(line["lr"] > 0 for line in trained):
        rates.set_yscale("log")
    losses.set_ylabel("loss")
    accuracies.set_ylabel("accuracy")
    rates.set(ylabel="learning rate", xlabel="iteration")
    for axes in (losses, accuracies):
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        axes.grid(alpha=0.3)
    if title:
        figure.suptitle(title)
    for path in paths:
        try:
            figure.savefig(path, dpi=110)
        except (OSError, ValueError) as error:
            raise CaffePortError(f"cannot be written: {error}", str(path)) from None
