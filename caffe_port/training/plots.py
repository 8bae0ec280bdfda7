"""Plots of a run: loss, accuracy and learning rate over the iterations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

    Losses share one panel, and so do all outputs from 0 to 1; any other output has its own. Their axes are scaled to
    what follows the first twentieth of the run; a triangle marks earlier points that are outside. The best and the last
    test are marked.

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
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise DependencyError("plots require matplotlib", hint="pip install 'caffe-port[plot]'") from None
    losses, panels = _panels(metrics, reference)
    count = 2 + len(panels)
    figure = Figure(figsize=(9, 3.2 * (count - 1) + 1.6), layout="constrained")
    axes = figure.subplots(count, 1, sharex=True, height_ratios=[*[3] * (count - 1), 1])
    positive = all(y > 0 for curve in losses for _, y in curve.points)
    _draw(axes[0], losses, "loss", log=positive and bool(losses))
    for own, (name, drawn) in zip(axes[1:], panels.items(), strict=False):
        _draw(own, drawn, name)
    rates = [(line["iter"], line["lr"]) for line in metrics if line["kind"] == "train" and "lr" in line]
    rates = [(x, y) for x, y in rates if math.isfinite(y)]
    axes[-1].plot([x for x, _ in rates], [y for _, y in rates], drawstyle="steps-post")
    if rates and min(y for _, y in rates) > 0 and max(y for _, y in rates) > 20 * min(y for _, y in rates):
        axes[-1].set_yscale("log")
    axes[-1].set(ylabel="learning rate", xlabel="iteration")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].grid(alpha=0.3)
    if title:
        figure.suptitle(title)
    for path in paths:
        try:
            with atomic_write(path) as file:
                figure.savefig(file, dpi=110, format=Path(path).suffix[1:] or None)
        except ValueError as error:
            raise CaffePortError(f"cannot be written: {error}", str(path)) from None


@dataclass(frozen=True)
class _Curve:
    """One line of a panel. ``sense`` is 1 if more is better and -1 if less is; 0: its best is not marked."""

    label: str
    points: list[tuple[int, float]]
    sense: int = 0
    kind: str = "test"


def _panels(metrics: Sequence[dict[str, Any]], reference: Points) -> tuple[list[_Curve], dict[str, list[_Curve]]]:
    """The curves of the losses, and those of each other panel by its title. Values that are not finite are left out."""
    trained = [(line["iter"], line["loss"]) for line in metrics if line["kind"] == "train"]
    losses = [_Curve("training loss", _finite(trained), kind="train")] if trained else []
    panels: dict[str, list[_Curve]] = {}
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for line in metrics:
        for name in line["outputs"] if line["kind"] == "test" else ():
            found.setdefault((line.get("net", 0), name), []).append(line)
    judged = {net: judge(next(line for line in metrics if _is_test(line, net))) for net, _ in found}
    for (net, name), lines in sorted(found.items(), key=lambda item: item[0][0]):
        points = _finite([(line["iter"], line["outputs"][name]) for line in lines])
        loss = any(is_loss(name, line) for line in lines)
        sense = (-1 if loss else 1) if judged[net] == name else 0
        curve = _Curve(f"test #{net} {name}" if net else f"test {name}", points, sense)
        if loss:
            losses.append(curve)
        elif all(0 <= y <= 1 for _, y in points):
            panels.setdefault(_FRACTIONS, []).append(curve)
        else:
            panels.setdefault(name.partition("[")[0], []).append(curve)
    if reference:
        panels.setdefault(_FRACTIONS, []).append(_Curve("reference", _finite(reference), kind="reference"))
    return losses, panels


_FRACTIONS = "accuracy and other fractions"
_MOST_LABELS = 12
_STYLES: dict[str, dict[str, Any]] = {"train": {"lw": 0.8}, "reference": {"lw": 1, "color": "grey"}}


def _is_test(line: Mapping[str, Any], net: int) -> bool:
    return line["kind"] == "test" and line.get("net", 0) == net and bool(line["outputs"])


def _finite(points: Points) -> list[tuple[int, float]]:
    return [(x, y) for x, y in points if math.isfinite(y)]


def _draw(axes: Any, curves: Sequence[_Curve], title: str, log: bool = False) -> None:
    for curve in curves:
        marker = "." if curve.kind == "test" and len(curve.points) < 60 else ""
        style = _STYLES.get(curve.kind, {})
        (drawn,) = axes.plot(
            [x for x, _ in curve.points], [y for _, y in curve.points], marker=marker, label=curve.label, **style
        )
        if curve.sense and curve.points:
            best = max(curve.points, key=lambda point: curve.sense * point[1])
            for word, (x, y), symbol in (("best", best, "*"), ("last", curve.points[-1], "s")):
                size = 13 if symbol == "*" else 6
                label = f"{word} {y:.4g} at {x:,}"
                axes.plot(
                    [x], [y], symbol, ms=size, mec="black", mew=0.8, color=drawn.get_color(), label=label, zorder=5
                )
    if log:
        axes.set_yscale("log")
    else:
        _scale(axes, curves)
    axes.set_ylabel(title)
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    if handles:  # beside the axes, where it hides nothing
        handles, labels = handles[:_MOST_LABELS], labels[:_MOST_LABELS]
        axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)


def _scale(axes: Any, curves: Sequence[_Curve]) -> None:
    """Limits the y axis to what follows the first twentieth of the run, if earlier values would flatten that."""
    points = [point for curve in curves for point in curve.points]
    first, last = min((x for x, _ in points), default=0), max((x for x, _ in points), default=0)
    late = [y for x, y in points if x >= first + (last - first) / 20 and x > first]
    if len(late) < 5 or max(late) == min(late):
        return
    low, high = min(late), max(late)
    if max(y for _, y in points) - min(y for _, y in points) <= 4 * (high - low):
        return
    margin = 0.08 * (high - low)
    bottom, top = low - margin, high + margin
    axes.set_ylim(bottom, top)
    for x, y in points:
        if y < bottom or y > top:
            at, symbol = (0.02, "v") if y < bottom else (0.98, "^")
            axes.plot([x], [at], symbol, ms=5, color="grey", transform=axes.get_xaxis_transform(), zorder=4)
