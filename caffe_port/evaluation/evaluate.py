"""How often a net is right, on data prepared as it expects."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from caffe_port import api
from caffe_port.data import datasets
from caffe_port.data.datasets import ImageSet, Preprocessor
from caffe_port.definition.definition import Definition
from caffe_port.definition.deploy_view import phase_spec
from caffe_port.devices import find_device
from caffe_port.errors import CaffePortError, DependencyError, SpecError
from caffe_port.evaluation import registry
from caffe_port.evaluation.registry import MEAN_IMAGE, Entry, Preprocessing
from caffe_port.formats import caffemodel
from caffe_port.formats.message import Message
from caffe_port.spec import NetSpec

Progress = Callable[[int, int], None]
"""Called with (pictures done, pictures in all) after every batch."""

CONFIDENCE_Z = 1.959963984540054  # two-sided 95 %
BATCH_SIZE = 250


def wilson(correct: int, total: int, z: float = CONFIDENCE_Z) -> tuple[float, float]:
    """Wilson's score interval of a proportion, in per cent.

    >>> [round(x, 2) for x in wilson(9972, 10000)]
    [99.6, 99.81]
    """
    p = correct / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return 100 * (centre - half), 100 * (centre + half)


@dataclass(frozen=True)
class Evaluation:
    """Counts of right answers.

    Attributes:
        confusion: int64 (classes, classes): pictures by true label (row) and by answer (column).
        correct_top5: pictures whose label is among the five best; None for fewer than six classes.
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
        """Top-1, in per cent."""
        return 100 * self.correct / self.total

    @property
    def top5(self) -> float | None:
        """Top-5, in per cent."""
        return None if self.correct_top5 is None else 100 * self.correct_top5 / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy, in per cent."""
        return wilson(self.correct, self.total)

    def per_class(self) -> list[tuple[str, int, int]]:
        """(class, correct, total) by label."""
        totals = self.confusion.sum(1)
        return [(name, int(self.confusion[k, k]), int(totals[k])) for k, name in enumerate(self.classes)]

    def verdict(self, expected: float, tolerance: float = 0.0) -> str:
        """How the accuracy stands to a reported one, in per cent.

        Returns:
            ``"equal"`` where ``expected`` lies in the confidence interval, widened by ``tolerance`` points; else
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
    """Counts a net's right answers.

    Args:
        net: pictures -> scores (N, classes), or a dict of such by blob name; it is put on the device, into eval().
        data: the pictures; they stay where they are, batches are moved.
        preprocessor: made for the same device.
        batch_size: pictures at a time.
        device: where the net runs.
        seed: of the mirroring, where the preprocessing mirrors in testing.
        output: which of several outputs holds the scores.
        progress: called after every batch.

    Raises:
        CaffePortError: a label that the net has no score for, scores that are not one row per picture, or NaN.
    """
    device = torch.device(device)
    training = net.training
    net.to(device).eval()
    generator = torch.Generator(device).manual_seed(seed)
    confusion: Tensor | None = None
    in_top5 = torch.zeros((), dtype=torch.int64, device=device)
    done = 0
    try:
        for images, labels in data.batches(batch_size):
            images, labels = images.to(device), labels.to(device)
            scores = _scores(net(preprocessor(images, generator=generator)), len(images), output)
            classes = scores.shape[1]
            if confusion is None:
                data.check_labels(classes)
                confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
            if not torch.isfinite(scores).all():
                raise CaffePortError(
                    f"the net's scores are not finite in pictures {done} to {done + len(images) - 1}", data.name
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
    """(N, classes) of what a net returned."""
    if isinstance(outputs, dict):
        if wanted is None and len(outputs) != 1:
            raise CaffePortError(
                f"the net has {len(outputs)} outputs: {', '.join(outputs)}", hint="Choose one: --output NAME"
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
            f"the net's output {tuple(scores.shape)} is not one row of class scores for each of {count} pictures"
        )
    return scores.float()


# -- from files -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileEvaluation:
    """An evaluation with what it rests on.

    Attributes:
        result: the counts.
        entry: the registry entry that the weights are, or None.
        preprocessing: what was done to the pictures.
        origin: who said so: ``"registry entry 'mnist-slim-310k'"``, ``"transform_param of layer 'data'"``, ...
        data: name of the set.
        notes: what the user should hear of.
    """

    result: Evaluation
    entry: Entry | None
    preprocessing: Preprocessing
    origin: str
    data: str
    notes: tuple[str, ...]


def evaluate_files(
    weights: str | Path,
    prototxt: str | Path | None = None,
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
) -> FileEvaluation:
    """What ``caffe-port evaluate`` does.

    Args:
        weights, prototxt: as for :func:`caffe_port.load`.
        data, root, split, download: as for :func:`caffe_port.data.datasets.load`.
        mean: numbers, ``"training-set mean image"``, or a .binaryproto (in the net's channel order).
        std, scale, channel_order: like ``mean``, before what the registry or the net's own transform_param says.
        tta: ``"mirror"`` mirrors at random, as the SimpleNet authors' test did, ``"none"`` never does.
        limit: only the first pictures.
        batch_size, device, seed, output, progress: as for :func:`evaluate`.

    Raises:
        CaffePortError: files, data and net do not fit; says which.
    """
    if tta not in (None, "none", "mirror"):
        raise CaffePortError(f"tta '{tta}' is neither none nor mirror")
    device = find_device(device)
    entry = registry.find_weights(weights)
    pictures = datasets.load(data, split, root, download)
    spec = _deploy_spec(weights, prototxt)
    notes: list[str] = []
    plan, origin, mean_of_net = _plan(spec, entry, weights, pictures, notes)
    given = {"std": _one_or_many(std), "scale": scale, "channel_order": channel_order and channel_order.upper()}
    if isinstance(mean, (str, Path)):
        given["mean"] = MEAN_IMAGE
        mean_of_net = None if str(mean) == MEAN_IMAGE else torch.from_numpy(caffemodel.read_mean(mean).copy())
    elif mean is not None:
        given["mean"] = _one_or_many(mean)
    if tta is not None:
        given["mirror_test"] = tta == "mirror"
    if changed := [name for name, value in given.items() if value is not None]:
        plan = plan.changed(**given)
        origin += f", changed by the caller: {', '.join(changed)}"
    picture_mean = None
    if plan.mean == MEAN_IMAGE and mean_of_net is None:
        picture_mean = datasets.mean_image(datasets.load(data, "train", root, download))
    elif mean_of_net is not None:
        picture_mean = mean_of_net.flip(0) if plan.channel_order != pictures.channel_order else mean_of_net
    preprocessor = Preprocessor(plan, pictures.channel_order, picture_mean, device)
    shape = preprocessor.shape(pictures.shape)
    net, more = _net(weights, prototxt, spec, shape, pictures.name)
    if limit is not None:
        pictures = pictures.first(limit)
    result = evaluate(
        net, pictures, preprocessor, batch_size=batch_size, device=device, seed=seed, output=output, progress=progress
    )
    return FileEvaluation(result, entry, plan, origin, pictures.name, (*notes, *more))


def _deploy_spec(weights: str | Path, prototxt: str | Path | None) -> NetSpec:
    definition = Definition.read(prototxt) if prototxt is not None else Definition.embedded(caffemodel.read(weights))
    return phase_spec(definition, "TEST", 0, (), (), keep_loss=False)


def input_blob(weights: str | Path, prototxt: str | Path | None = None) -> str:
    """The net's one input.

    Raises:
        CaffePortError: it has none, or more than one.
    """
    return _only_input(_deploy_spec(weights, prototxt))


def _only_input(spec: NetSpec) -> str:
    inputs = [blob for blob, _ in spec.inputs]
    if len(inputs) != 1:
        raise CaffePortError(f"the net takes {len(inputs)} inputs ({', '.join(inputs)}), pictures are one", spec.path)
    return inputs[0]


def _net(
    weights: str | Path, prototxt: str | Path | None, spec: NetSpec, shape: tuple[int, ...], data: str
) -> tuple[nn.Module, tuple[str, ...]]:
    """The net for pictures of a shape (C, H, W)."""
    try:
        ported = api.port(prototxt, weights, input_shapes={_only_input(spec): (1, *shape)})
    except SpecError as error:
        hint = f"The pictures of {data} reach the net as {tuple(shape)}."
        raise type(error)(error.what, error.where, f"{error.hint} {hint}".strip()) from None
    return ported.net, ported.notes


def _plan(
    spec: NetSpec, entry: Entry | None, weights: str | Path, pictures: ImageSet, notes: list[str]
) -> tuple[Preprocessing, str, Tensor | None]:
    """Preprocessing, who says so, and the mean image in the net's channel order where a mean_file gives it."""
    if entry is not None:
        return entry.preprocessing, f"registry entry '{entry.name}'", None
    if (trained := _of_run(Path(weights))) is not None:
        return trained[0], f"the run in {trained[1]}", None
    for layer in spec.layers:
        if layer.param.has("transform_param"):
            plan, mean = from_transform_param(layer.param.transform_param, pictures, Path(layer.where).parent, notes)
            return plan, f"transform_param of layer '{layer.name}'", mean
    notes.append("neither the registry nor the net says how pictures are prepared: they are taken as they are, 0..255")
    return Preprocessing(channel_order=pictures.channel_order), "none", None


def _of_run(weights: Path) -> tuple[Preprocessing, Path] | None:
    """What the weights of a run of ours were trained with: its config.json says it."""
    for folder in (weights.parent, weights.parent.parent):
        try:
            plan = json.loads((folder / "config.json").read_text(encoding="utf-8"))["preprocessing"]
            values: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in plan.items()
            }
            return Preprocessing(**values), folder
        except (OSError, ValueError, KeyError, TypeError, AttributeError, CaffePortError):
            continue
    return None


def from_transform_param(
    p: Message, pictures: ImageSet, folder: Path, notes: list[str]
) -> tuple[Preprocessing, Tensor | None]:
    """The Preprocessing of a net's own TransformationParameter; its mean image, where mean_file is there.

    Channels stay in the order of the pictures, as Caffe takes them from its database.

    Raises:
        CaffePortError: it makes no sense.
    """
    mean: Tensor | None = None
    values: float | tuple[float, ...] | str = tuple(p.mean_value) if len(p.mean_value) > 1 else sum(p.mean_value)
    if p.has("mean_file"):
        values = MEAN_IMAGE
        found = next((f for f in (Path(p.mean_file), folder / Path(p.mean_file).name) if f.is_file()), None)
        if found is not None:
            mean = torch.from_numpy(caffemodel.read_mean(found).copy())
        else:
            notes.append(f"mean_file '{p.mean_file}' is not here: the mean over the training set takes its place")
    plan = Preprocessing(
        pictures.channel_order, values, float(p.scale), crop=p.crop_size, mirror_train=p.mirror, mirror_test=p.mirror
    )
    return plan, mean


def _one_or_many(values: Sequence[float] | None) -> float | tuple[float, ...] | None:
    if values is None:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def plot_confusion(result: Evaluation, path: str | Path) -> None:
    """Writes the confusion matrix as a picture (the suffix tells the format: .png, .svg, .pdf).

    Raises:
        DependencyError: matplotlib is not installed.
        CaffePortError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DependencyError("pictures are drawn by matplotlib", hint="pip install 'caffe-port[plot]'") from None
    share = result.confusion / np.maximum(result.confusion.sum(1, keepdims=True), 1)
    count = len(share)
    side = max(4.0, min(16.0, 0.45 * count + 2))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="answer", ylabel="label", title=f"{result.accuracy:.2f} % of {result.total}")
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
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise CaffePortError(f"cannot be written: {error}", str(path)) from None
