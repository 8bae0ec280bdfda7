"""What a net says of single images: classes, boxes, or maps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from caffe_port.api import Ported
from caffe_port.data.prepare import prepare
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.emit.self_check import MODEL, WEIGHTS, read_model
from caffe_port.errors import CaffePortError, ParseError, did_you_mean
from caffe_port.evaluation.known import UNKNOWN, Known, known_of, of_folder
from caffe_port.storage import images
from caffe_port.storage.files import read_bytes
from caffe_port.storage.output_folder import REPORT
from caffe_port.typing import Array, Shape


@dataclass(frozen=True)
class Box:
    """A detection: its class, its score, and its corners in pixels of the image."""

    label: int
    score: float
    corners: tuple[float, float, float, float]


@dataclass(frozen=True)
class Output:
    """One output of the net for one image.

    Attributes:
        blob: its name.
        kind: ``"classes"`` (probabilities by label), ``"boxes"``, ``"map"`` (a class per place), ``"image"`` (values
            per place, one or three channels) or ``"values"``.
        values: probabilities (K), a map (H, W), an image (C, H, W), or the values as they are.
        boxes: the boxes, by falling score.
    """

    blob: str
    kind: str
    values: Array
    boxes: tuple[Box, ...] = ()

    def top(self, count: int = 5) -> list[tuple[int, float]]:
        """The most probable labels with their probabilities."""
        order = np.argsort(-self.values, kind="stable")[:count]
        return [(int(label), float(self.values[label])) for label in order]


@dataclass(frozen=True)
class Prediction:
    """The outputs of a net for one image.

    Attributes:
        path: the image's file.
        image: uint8 (H, W, 3) in BGR order, or (H, W, 1).
    """

    path: str
    image: Array = field(repr=False)
    outputs: tuple[Output, ...]


class Predictor:
    """A net and the preprocessing of its images.

    Attributes:
        known: the preprocessing and the classes; its origin is empty if nothing is known.
        notes: warnings.
    """

    def __init__(
        self,
        net: Ported | Path,
        *,
        mean: Any = None,
        scale: float | None = None,
        channel_order: str | None = None,
        labels: str | Path | None = None,
        output: str | None = None,
        own_size: bool = False,
    ) -> None:
        """Prepares a net.

        Args:
            net: a ported net, or a folder that ``convert`` wrote, whose model.py is run.
            mean, scale, channel_order, labels: as for :func:`caffe_port.evaluation.known.known_of`.
            output: the only output to report; None: all.
            own_size: give the net each image in its own size, instead of resizing it to the net's input.

        Raises:
            CaffePortError: the net does not have exactly one input, for images; or a file is damaged.
        """
        self.notes: list[str] = []
        given = {"mean": mean, "scale": scale, "channel_order": channel_order, "labels": labels}
        if isinstance(net, Ported):
            self.net: nn.Module = net.net.eval()
            plan = net.net.plans[False]
            inputs = {blob: plan.shapes[source] for blob, source in plan.spec.inputs}
            outputs = {blob: plan.spec.by_name[layer].type for blob, (layer, _) in plan.spec.outputs}
            where, found = net.definition.path, known_of(net, self.notes, **given)
        else:
            self.net, inputs, outputs, found = _read_folder(net, given)
            where = str(net)
        if len(inputs) != 1:
            raise CaffePortError(f"the net has inputs {', '.join(inputs) or 'none'}; expected one, for images", where)
        ((self.blob, shape),) = inputs.items()
        if len(shape) != 4 or shape[1] not in (1, 3):
            raise CaffePortError(f"input '{self.blob}' has shape {shape}; expected images (N, 1 or 3, H, W)", where)
        if output is not None and output not in outputs:
            near = did_you_mean(output, outputs)
            raise CaffePortError(f"the net has no output '{output}'; it has {', '.join(outputs)}.{near}", where)
        if found is None:
            found = Known(Preprocessing("BGR"), "", ())
            if UNKNOWN not in self.notes:
                self.notes.append(UNKNOWN)
            self.notes.append("images are used as they are: BGR, 0..255")
        self.known, self.shape, self.where, self.own_size = found, shape, where, own_size
        self.types, self.wanted = outputs, output
        if found.preprocessing.lacks_mean_image:
            raise CaffePortError("needs the mean image of its training set", where, "Give it: --mean FILE.binaryproto")

    def predict(self, path: str | Path) -> Prediction:
        """Runs the net on an image.

        Raises:
            CaffePortError: the file is not an image, or the net cannot be run on it.
        """
        color = self.shape[1] == 3
        try:
            image = images.decode(read_bytes(path), int(color), str(path))
        except ParseError:
            raise ParseError("is not an image", str(path)) from None
        size = image.shape[:2] if self.own_size else self.shape[2:]
        plan = self.known.preprocessing.for_input(self.shape[1], *size)
        x = prepare(image.transpose(2, 0, 1), plan, "BGR" if color else "GRAY")
        with torch.inference_mode():
            try:
                made = self.net(torch.from_numpy(np.ascontiguousarray(x))[None])
            except (RuntimeError, ValueError, IndexError) as error:
                text = str(error).splitlines()
                what = f"the net does not run on an input of {x.shape[2]}x{x.shape[1]}: {text[0][:200] if text else ''}"
                raise CaffePortError(what, str(path)) from None
        tops: Mapping[str, Tensor] = made if isinstance(made, dict) else {next(iter(self.types)): made}
        frame = _frame(plan, image.shape)
        alone = "Softmax" not in self.types.values()
        outputs = tuple(
            _output(blob, self.types.get(blob, ""), top.float().cpu().numpy(), frame, alone)
            for blob, top in tops.items()
            if self.wanted in (None, blob)
        )
        return Prediction(str(path), image, outputs)

    def name(self, label: int) -> str:
        """The name of a class."""
        classes = self.known.classes
        return classes[label] if label < len(classes) else str(label)


def _read_folder(
    folder: Path, given: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Shape], dict[str, str], Known | None]:
    """The model of a converted folder, its inputs, its outputs with their layer types, and its preprocessing."""
    try:
        report = json.loads((folder / REPORT).read_text("utf-8"))
        source = (folder / MODEL).read_text("utf-8")
        inputs = {str(blob): tuple(map(int, shape)) for blob, shape in report["inputs"].items()}
        types = report.get("output_types", {})
        outputs = {str(blob): str(types.get(blob, "")) for blob in report["outputs"]}
        model = read_model(source, report["class"], folder / WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        what = error.strerror if isinstance(error, OSError) else f"{type(error).__name__} in {REPORT}"
        raise CaffePortError(f"is not a folder that convert wrote: {what}", str(folder)) from None
    found = of_folder(report, folder)
    changed = {name: value for name, value in given.items() if value is not None}
    if changed:
        from caffe_port.data import class_names

        labels = changed.pop("labels", None)
        base = found or Known(Preprocessing("BGR"), "")
        if "channel_order" in changed:
            changed["channel_order"] = changed["channel_order"].upper()
        classes = class_names.read(labels) if labels is not None else base.classes
        found = Known(base.preprocessing.changed(**changed), ", ".join([base.origin, *changed]), classes)
    return model, inputs, outputs, found


def _frame(plan: Preprocessing, shape: Shape) -> tuple[float, float, float, float]:
    """Left, top, width and height, in pixels of the image, of what the net sees."""
    height, width = plan.resize or shape[:2]
    tall, wide = plan.window or (height, width)
    scale_y, scale_x = shape[0] / height, shape[1] / width
    return (width - wide) // 2 * scale_x, (height - tall) // 2 * scale_y, wide * scale_x, tall * scale_y


def _output(blob: str, type_: str, top: Array, frame: tuple[float, float, float, float], alone: bool) -> Output:
    """What an output is. ``alone``: no output is a Softmax; where one is, others are not scores of classes."""
    if type_ == "DetectionOutput" or (top.ndim == 4 and top.shape[:2] == (1, 1) and top.shape[3] == 7):
        left, up, width, height = frame
        rows = top.reshape(-1, 7)
        boxes = [
            Box(int(label), float(score), (left + x1 * width, up + y1 * height, left + x2 * width, up + y2 * height))
            for _, label, score, x1, y1, x2, y2 in rows.tolist()
            if label >= 0
        ]
        return Output(blob, "boxes", rows, tuple(sorted(boxes, key=lambda box: -box.score)))
    values = top[0] if top.ndim > 1 else top
    flat = values.reshape(-1)
    if (
        values.ndim
        and values.shape[0] == flat.size >= 2
        and (type_ in ("Softmax", "") or (alone and type_ == "InnerProduct"))
    ):
        likely = type_ == "Softmax" or (flat.min() >= 0 and abs(float(flat.sum()) - 1) < 1e-3)
        return Output(blob, "classes", flat if likely else _softmax(flat))
    if values.ndim == 3 and min(values.shape[1:]) > 1:
        if values.shape[0] in (1, 3):
            return Output(blob, "image", values)
        if alone or type_ in ("Softmax", ""):
            return Output(blob, "map", values.argmax(0))
    return Output(blob, "values", values)


def _softmax(scores: Array) -> Array:
    e = np.exp(scores - scores.max())
    return np.asarray(e / e.sum())


# -- drawing --------------------------------------------------------------------------------------------------------


def draw(prediction: Prediction, predictor: Predictor, least: float = 0.3) -> Array:
    """The image with its boxes; or, for a net that gives one, the map or image that it gives: uint8 (H, W, 3), BGR.

    Args:
        least: the lowest score of a box that is drawn.

    Raises:
        CaffePortError: there is nothing to draw.
    """
    cv2 = images.opencv()
    for output in prediction.outputs:
        if output.kind == "boxes":
            canvas = np.array(np.broadcast_to(prediction.image, (*prediction.image.shape[:2], 3)))
            thick = max(1, round(min(canvas.shape[:2]) / 250))
            for box in (box for box in output.boxes if box.score >= least):
                color = _color(box.label)
                x1, y1, x2, y2 = (round(corner) for corner in box.corners)
                cv2.rectangle(canvas, (x1, y1), (x2, y2), color, thick)
                text = f"{predictor.name(box.label)} {box.score:.2f}"
                at = (max(x1, 0), max(y1 - 2 * thick, 12 * thick))
                cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4 * thick, color, thick, cv2.LINE_AA)
            return np.asarray(canvas)
        if output.kind == "map":
            palette = np.array([_color(k) for k in range(int(output.values.max()) + 1)], np.uint8)
            return palette[output.values]
        if output.kind == "image":
            return np.asarray(_as_image(output.values, predictor.known.preprocessing))
    raise CaffePortError("the net gives neither boxes nor an image: there is nothing to draw", predictor.where)


def _color(label: int) -> tuple[int, int, int]:
    """A color that differs from those of the labels near it; black for the background, 0."""
    if label == 0:
        return (0, 0, 0)
    bits = [0, 0, 0]
    for place in range(8):  # the palette of PASCAL VOC
        for channel in range(3):
            bits[2 - channel] |= (label >> channel & 1) << 7 - place
        label >>= 3
    return (bits[0], bits[1], bits[2])


def _as_image(values: Array, plan: Preprocessing) -> Array:
    """Values (C, H, W) as bytes, BGR: in the units of the net's input or from 0 to 1, else from least to greatest."""
    mean, std = (np.asarray(v if not isinstance(v, str) else 0.0).reshape(-1, 1, 1) for v in (plan.mean, plan.std))
    fits = plan.scale and {len(mean), len(std)} <= {1, len(values)}
    undone = values * (std / plan.scale) + mean if fits else values
    shares = values.min() >= -0.1 and values.max() <= 1.1 and np.ptp(undone, axis=(1, 2)).max() <= 2  # hardly a shade
    for scaled in (values * 255,) if shares else (undone, values * 255):
        low, high = np.percentile(scaled, (1, 99))
        if low >= -16 and high <= 271:
            break
    else:
        scaled = (values - values.min()) * (255 / max(float(np.ptp(values)), 1e-12))
    pixels = np.clip(np.rint(scaled), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    pixels = pixels[:, :, ::-1] if plan.channel_order == "RGB" else pixels
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def as_dict(prediction: Prediction, predictor: Predictor, count: int) -> dict[str, Any]:
    """For JSON."""
    outputs = []
    for output in prediction.outputs:
        entry: dict[str, Any] = {"blob": output.blob, "kind": output.kind}
        if output.kind == "classes":
            entry["top"] = [
                {"label": label, "name": predictor.name(label), "probability": p} for label, p in output.top(count)
            ]
        elif output.kind == "boxes":
            entry["boxes"] = [
                {"label": b.label, "name": predictor.name(b.label), "score": b.score, "box": list(b.corners)}
                for b in output.boxes
            ]
        elif output.kind == "map":
            labels, counts = np.unique(output.values, return_counts=True)
            entry["shares"] = {
                predictor.name(int(k)): int(n) / output.values.size for k, n in zip(labels, counts, strict=True)
            }
        else:
            entry["shape"] = list(output.values.shape)
            if output.values.size <= _SHOWN_VALUES:
                entry["values"] = [float(v) for v in output.values.reshape(-1)]
        outputs.append(entry)
    return {"image": prediction.path, "outputs": outputs}


_SHOWN_VALUES = 64


def lines(prediction: Prediction, predictor: Predictor, count: int, least: float = 0.3) -> Iterator[str]:
    """For people: one line per class, box, or output."""
    several = len(prediction.outputs) > 1
    for output in prediction.outputs:
        head = f"{output.blob}: " if several else ""
        if output.kind == "classes":
            for label, p in output.top(count):
                yield f"  {head}{100 * p:5.1f} %  {predictor.name(label)}"
        elif output.kind == "boxes":
            shown = [box for box in output.boxes if box.score >= least]
            for box in shown:
                corners = ", ".join(f"{corner:.0f}" for corner in box.corners)
                yield f"  {head}{100 * box.score:5.1f} %  {predictor.name(box.label)}  ({corners})"
            hidden = len(output.boxes) - len(shown)
            if hidden or not shown:
                yield f"  {head}{'no boxes' if not output.boxes else f'{hidden} more below {100 * least:g} %'}"
        elif output.kind == "map":
            labels, counts = np.unique(output.values, return_counts=True)
            order = np.argsort(-counts)[:count]
            for k in order:
                yield f"  {head}{100 * counts[k] / output.values.size:5.1f} %  {predictor.name(int(labels[k]))}"
        else:
            v = output.values
            few = ", ".join(f"{x:.4g}" for x in v.reshape(-1)[:8]) + (", ..." if v.size > 8 else "")
            yield f"  {head}{' x '.join(map(str, v.shape))} values, {float(v.min()):.4g} to {float(v.max()):.4g}: {few}"
