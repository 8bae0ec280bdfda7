"""Measures a net's accuracy on data that is preprocessed as the net expects."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from caffe_port import api, devices
from caffe_port.api import Ported, Prototxt, Stored, read
from caffe_port.data import datasets
from caffe_port.data.datasets import ImageSet
from caffe_port.data.prepare import Preprocessor
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.definition.definition import Definition
from caffe_port.definition.deploy_view import phase_spec
from caffe_port.definition.input_shapes import channels_read
from caffe_port.devices import find_device
from caffe_port.errors import CaffePortError, DependencyError, SpecError
from caffe_port.evaluation import registry
from caffe_port.evaluation.known import known
from caffe_port.evaluation.registry import Entry
from caffe_port.formats.caffemodel import Weights
from caffe_port.net.layout import prefers_channels_last
from caffe_port.spec import NetSpec, Producer
from caffe_port.storage.files import atomic_write
from caffe_port.terminal import count

Progress = Callable[[int, int], None]
"""Called with (images done, images in total) after every batch."""

CONFIDENCE_Z = 1.959963984540054  # two-sided 95 %
BATCH_SIZE = 100
"""On a CPU, larger batches take more time per image, because their tops do not stay in its caches."""


def wilson(correct: int, total: int, z: float = CONFIDENCE_Z) -> tuple[float, float]:
    """Wilson's score interval of a proportion, in percent.

    >>> [round(x, 2) for x in wilson(9972, 10000)]
    [99.6, 99.81]
    """
    p = correct / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return 100 * (centre - half), 100 * (centre + half)


@dataclass(frozen=True)
class Evaluation:
    """Counts of correct predictions.

    Attributes:
        confusion: int64 (classes, classes): numbers of images by label (row) and prediction (column).
        correct_top5: number of images whose label has one of the five highest scores; None with fewer than 6 classes.
        classes: names by label.
    """

    confusion: np.ndarray[Any, Any]
    correct_top5: int | None
    classes: tuple[str, ...]

    @property
    def total(self) -> int:
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        return int(self.confusion.trace())

    @property
    def accuracy(self) -> float:
        """Top-1, in percent."""
        return 100 * self.correct / self.total

    @property
    def top5(self) -> float | None:
        """Top-5, in percent."""
        return None if self.correct_top5 is None else 100 * self.correct_top5 / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy, in percent."""
        return wilson(self.correct, self.total)

    def per_class(self) -> list[tuple[str, int, int]]:
        """(class, correct, total) by label."""
        totals = self.confusion.sum(1)
        return [(name, int(self.confusion[k, k]), int(totals[k])) for k, name in enumerate(self.classes)]

    def verdict(self, expected: float, tolerance: float = 0.0) -> str:
        """Compares the accuracy with a reported one, in percent.

        Returns:
            ``"equal"`` if ``expected`` is in the confidence interval, widened by ``tolerance`` points; otherwise
            ``"better"`` or ``"worse"``.
        """
        low, high = self.interval
        if low - tolerance <= expected <= high + tolerance:
            return "equal"
        return "better" if self.accuracy > expected else "worse"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        low, high = self.interval
        per_class = [{"class": name, "correct": correct, "total": total} for name, correct, total in self.per_class()]
        return {
            "accuracy": self.accuracy,
            "correct": self.correct,
            "total": self.total,
            "top5": self.top5,
            "interval": [low, high],
            "per_class": per_class,
            "confusion": self.confusion.tolist(),
        }


@torch.inference_mode()
def evaluate(
    net: nn.Module,
    data: ImageSet,
    preprocessor: Preprocessor,
    *,
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = "cpu",
    seed: int = 0,
    output: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Counts a net's correct predictions.

    Args:
        net: maps images to scores (N, classes), or to a dict of such by blob name; it is moved to the device and runs
            in eval() mode.
        data: the images; the set stays where it is, batches are moved to the device.
        preprocessor: a preprocessor for the same device.
        batch_size: images per batch.
        device: device that runs the net.
        seed: seed of the mirroring, if the preprocessing mirrors in testing.
        output: name of the output with the scores, if there are several.
        progress: called after every batch.

    Raises:
        CaffePortError: a label is out of range, the output is not one row of scores per image, or a score is NaN.
    """
    device = torch.device(device)
    training = net.training
    net.to(device).eval()
    generator = torch.Generator(device).manual_seed(seed)
    confusion: Tensor | None = None
    in_top5 = torch.zeros((), dtype=torch.int64, device=device)
    done = 0
    try:
        with devices.memory_kept(device):
            for images, labels in data.batches(batch_size):
                images, labels = images.to(device), labels.to(device)
                scores = _scores(net(preprocessor(images, generator=generator)), len(images), output)
                classes = scores.shape[1]
                if confusion is None:
                    data.check_labels(classes)
                    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
                if not torch.isfinite(scores).all():
                    raise CaffePortError(
                        f"the net's scores are not finite for images {done} to {done + len(images) - 1}", data.name
                    )
                answers = scores.argmax(1)
                confusion += torch.bincount(labels * classes + answers, minlength=classes * classes)
                if classes > 5:
                    in_top5 += (scores.topk(5, 1).indices == labels[:, None]).sum()
                done += len(images)
                if progress is not None:
                    progress(done, len(data))
    finally:
        net.train(training)
    assert confusion is not None
    count = math.isqrt(len(confusion))
    names = data.classes if len(data.classes) == count else tuple(str(k) for k in range(count))
    return Evaluation(confusion.cpu().numpy().reshape(count, count), int(in_top5) if count > 5 else None, names)


def _scores(outputs: Any, count: int, wanted: str | None) -> Tensor:
    """The scores (N, classes) in a net's outputs."""
    if isinstance(outputs, dict):
        if wanted is None and len(outputs) != 1:
            raise CaffePortError(
                f"the net has {len(outputs)} outputs: {', '.join(outputs)}",
                hint="Choose one with output='NAME' in Python.",
            )
        wanted = wanted if wanted is not None else next(iter(outputs))
        if wanted not in outputs:
            raise CaffePortError(f"the net has no output '{wanted}'; it has {', '.join(outputs)}")
        outputs = outputs[wanted]
    scores: Tensor = outputs
    if scores.ndim > 2 and scores[0].numel() == scores.shape[1]:
        scores = scores.flatten(1)
    if scores.ndim != 2 or len(scores) != count or scores.shape[1] < 2:
        raise CaffePortError(
            f"the net's output has shape {tuple(scores.shape)}; expected one row of class scores for each of "
            f"{count} images"
        )
    return scores.float()


# -- from files -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileEvaluation:
    """An evaluation with its settings.

    Attributes:
        result: the counts.
        entry: the registry entry of the weights, or None.
        preprocessing: the preprocessing of the images.
        origin: its source: ``"registry entry 'mnist-slim-310k'"``, ``"transform_param of layer 'data'"``, ...
        data: name of the data set.
        notes: warnings.
    """

    result: Evaluation
    entry: Entry | None
    preprocessing: Preprocessing
    origin: str
    data: str
    notes: tuple[str, ...]


def evaluate_files(
    weights: Stored | Ported,
    prototxt: Prototxt | None = None,
    *,
    data: str | Path,
    root: str | Path | None = None,
    split: str = "test",
    download: bool = False,
    mean: Sequence[float] | str | Path | None = None,
    std: Sequence[float] | None = None,
    scale: float | None = None,
    channel_order: str | None = None,
    tta: str | None = None,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = "cpu",
    seed: int = 0,
    output: str | None = None,
    progress: Progress | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    level: int = 0,
    stages: Sequence[str] = (),
    ignore_fields: Collection[str] = (),
) -> FileEvaluation:
    """Evaluates a net from its files, like ``caffe-port evaluate``.

    Args:
        weights, prototxt: as for :func:`caffe_port.load`; or a :class:`caffe_port.Ported`, whose Net is evaluated as it
            is, and is on the device afterwards (on a CPU, in channels-last memory).
        data, root, split, download: as for :func:`caffe_port.data.datasets.load`.
        mean: values, ``"training-set mean image"``, or a .binaryproto or .npy file (in the net's channel order).
        std, scale, channel_order: like ``mean``, these override the registry and the net's own transform_param.
        tta: ``"mirror"`` mirrors at random, as in the SimpleNet authors' test; ``"none"`` never mirrors.
        limit: use only the first images.
        batch_size, device, seed, output, progress: as for :func:`evaluate`.
        input_shapes, level, stages, ignore_fields: as for :func:`caffe_port.port`; a shape must match the images, with
            any batch size.

    Raises:
        CaffePortError: the files, the data and the net do not fit each other.
    """
    if tta not in (None, "none", "mirror"):
        raise CaffePortError(f"tta '{tta}' is neither none nor mirror")
    device = find_device(device)
    ported = weights if isinstance(weights, Ported) else None
    if ported is not None and (prototxt is not None or input_shapes or level or stages):
        raise CaffePortError(
            "is already ported: prototxt, input_shapes, level and stages cannot be given", ported.definition.path
        )
    if isinstance(weights, Ported):
        definition, stored = read(weights, None, ignore_fields=ignore_fields)
    else:
        definition, stored = read(prototxt, weights, ignore_fields=ignore_fields)
    entry = registry.find_weights(stored) if stored is not None else None
    pictures = datasets.load(data, split, root, download)
    spec = ported.net.plans[False].spec if ported else _deploy_spec(definition, level, stages, input_shapes or {})
    notes: list[str] = []
    order = channel_order and channel_order.upper()
    mirror = None if tta is None else tta == "mirror"
    given = {"std": std, "scale": scale, "channel_order": order, "mean": mean, "mirror_test": mirror}
    changed = [name for name, value in given.items() if value is not None]
    if channels_read(spec, only_input(spec)[1], stored) == 3:
        pictures = pictures.colored()
    plan, origin = _plan(spec, stored, pictures, changed, notes)
    plan = plan.changed(**given)
    if plan.channel_order in ("RGB", "BGR"):
        pictures = pictures.colored()
    if plan.lacks_mean_image:
        plan = datasets.with_mean_image(plan, datasets.load(data, "train", root, download))
    preprocessor = Preprocessor(plan, pictures.channel_order, device)
    shape = preprocessor.shape(pictures.shape)
    _check_shape(spec, ported.net.plans[False].shapes if ported else {}, input_shapes or {}, shape, pictures.name)
    if ported is None:
        ported = port_for(definition, stored, spec, shape, level=level, stages=stages, data=pictures.name)
    if limit is not None:
        pictures = pictures.first(limit)
    if device.type == "cpu" and prefers_channels_last(ported.net):
        ported.net.to(memory_format=torch.channels_last)
    result = evaluate(
        ported.net,
        pictures,
        preprocessor,
        batch_size=batch_size,
        device=device,
        seed=seed,
        output=output,
        progress=progress,
    )
    return FileEvaluation(result, entry, plan, origin, pictures.name, (*notes, *ported.notes))


def _deploy_spec(
    definition: Definition, level: int = 0, stages: Sequence[str] = (), given: Collection[str] = ()
) -> NetSpec:
    return phase_spec(definition, "TEST", level, stages, given, keep_loss=False)


def only_input(spec: NetSpec) -> tuple[str, Producer]:
    """The net's only input: its blob and source.

    Raises:
        CaffePortError: it has no input, or more than one.
    """
    if len(spec.inputs) != 1:
        names = ", ".join(blob for blob, _ in spec.inputs)
        raise CaffePortError(
            f"the net has {count(len(spec.inputs), 'input')} ({names}); expected one, for the images", spec.path
        )
    return spec.inputs[0]


def _check_shape(
    spec: NetSpec,
    built: Mapping[Producer, Sequence[int]],
    asked: Mapping[str, Sequence[int]],
    shape: tuple[int, ...],
    data: str,
) -> None:
    """Raises CaffePortError if the net was built, or is requested, for another image shape than (C, H, W)."""
    blob, producer = only_input(spec)
    wanted = built.get(producer, asked.get(blob))
    if wanted is not None and tuple(wanted[1:]) != shape:
        raise CaffePortError(
            f"input '{blob}' has shape {tuple(wanted)}, but the preprocessed images of {data} have {shape}",
            spec.path,
            f'Port the net with input_shapes={{"{blob}": {(1, *shape)}}}.' if built else "Omit the input shape.",
        )


def port_for(
    definition: Definition,
    stored: Weights | None,
    spec: NetSpec | None,
    shape: tuple[int, ...],
    *,
    batch: int = 1,
    level: int = 0,
    stages: Sequence[str] = (),
    data: str,
) -> Ported:
    """Ports a net for images of a given shape.

    Args:
        definition, stored: the definition and the weights.
        spec: the net in phase TEST without losses, if already known.
        shape: (C, H, W) of the preprocessed images.
        batch: batch size of the net's input shape; other sizes run, too.
        level, stages: Caffe's NetState.
        data: name of the images, for error messages.

    Raises:
        CaffePortError: the net does not have exactly one input, or does not fit the images.
    """
    spec = spec or _deploy_spec(definition, level, stages)
    try:
        return api.build(
            definition,
            stored,
            input_shapes={only_input(spec)[0]: (batch, *shape)},
            level=level,
            stages=stages,
            resolved=spec,
        )
    except SpecError as error:
        hint = f"The preprocessed images of {data} have shape {tuple(shape)}."
        raise type(error)(error.what, error.where, f"{error.hint} {hint}".strip()) from None


def _plan(
    spec: NetSpec, stored: Weights | None, pictures: ImageSet, changed: Sequence[str], notes: list[str]
) -> tuple[Preprocessing, str]:
    """The preprocessing, and its source; ``changed`` are the settings that the user gives."""
    found = known([spec], stored, pictures.channel_order, notes)
    if found is not None:
        return found.preprocessing, ", overridden: ".join([found.origin, *([", ".join(changed)] if changed else [])])
    if changed:
        options = ", ".join(changed)
        notes.append(f"no preprocessing is known from the registry or the net: only what is given ({options}) is done")
        return Preprocessing(channel_order=pictures.channel_order), f"given: {options}"
    notes.append("no preprocessing is known from the registry or the net: images are used as they are, 0..255")
    return Preprocessing(channel_order=pictures.channel_order), "none"


def plot_confusion(result: Evaluation, path: str | Path) -> None:
    """Plots the confusion matrix to a file; the suffix gives the format (.png, .svg, .pdf).

    Raises:
        DependencyError: matplotlib is not installed.
        CaffePortError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DependencyError("plots require matplotlib", hint="pip install 'caffe-port[plot]'") from None
    share = result.confusion / np.maximum(result.confusion.sum(1, keepdims=True), 1)
    count = len(share)
    side = max(4.0, min(16.0, 0.45 * count + 2))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="prediction", ylabel="label", title=f"{result.accuracy:.2f} % of {result.total}")
    if count <= 32:
        axes.set_xticks(range(count), result.classes, rotation=90)
        axes.set_yticks(range(count), result.classes)
        for (row, column), value in np.ndenumerate(result.confusion):
            if value:
                axes.text(
                    column,
                    row,
                    str(value),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if share[row, column] > 0.5 else "black",
                )
    try:
        with atomic_write(path) as file:
            figure.savefig(file, dpi=120, format=Path(path).suffix[1:] or None)
    except ValueError as error:
        raise CaffePortError(f"cannot be written: {error}", str(path)) from None
