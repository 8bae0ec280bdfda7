"""A net to compare: its definition, the phase, and how its inputs are drawn. Plain data, so that it can be shrunk."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from caffe_port.formats import prototxt
from caffe_port.formats.message import Message
from caffe_port.signatures.signature import signature_of
from caffe_port.typing import Array, Shape

Arrays = dict[str, Array]

SPECIAL = ("integers", "boxes", "scores", "priors", "objects", "detections", "image sizes")
"""Kinds of values that mean something: only layers that take them read them."""

ROWS = {"objects": 8, "detections": 7}
"""The length of a row of boxes."""


@dataclass(frozen=True)
class Values:
    """How an input is drawn.

    Attributes:
        kind: ``normal``, ``ties`` (multiples of a half), ``positive``, ``wide``, ``zeros``, ``integers``, ``boxes``;
            those of detection: ``priors``, ``objects``, ``detections``, ``image sizes``, ``scores`` (in 0..1).
        below: the bound of integers; how many images boxes, objects and detections are in.
        ignored: an integer that is among them, whatever the bound: an ignore_label; the classes of objects.
    """

    kind: str
    below: int = 0
    ignored: int | None = None

    def draw(self, shape: Shape, seed: list[int]) -> Array:
        """Float32 numbers of this shape."""
        rng = np.random.Generator(np.random.PCG64(seed))
        value = rng.standard_normal(shape)
        if self.kind == "ties":
            value = np.round(value * 2) / 2
        elif self.kind == "positive":
            value = np.abs(value) + 0.05
        elif self.kind == "wide":
            value = value * 8
        elif self.kind == "zeros":
            value = np.zeros(shape)
        elif self.kind == "integers":
            value = rng.integers(0, max(1, self.below), shape).astype(float)
            if self.ignored is not None:
                value = np.where(rng.random(shape) < 0.3, self.ignored, value)
        elif self.kind == "boxes":
            value = np.abs(value) * 3
            if len(shape) > 1 and shape[1] >= 5:
                value[:, 0] = rng.integers(0, max(1, self.below), value[:, 0].shape)
                value[:, 3:5] += value[:, 1:3]
        elif self.kind == "scores":
            value = rng.random(shape)
        elif self.kind == "image sizes" and shape and shape[-1] in (3, 4):
            value = np.broadcast_to(np.array([61.0, 83.0, 1.0, 1.0])[: shape[-1]], shape).copy()
        elif self.kind == "priors" and len(shape) > 2 and shape[1] == 2 and not np.prod(shape[2:]) % 4:
            corners = _corners(rng, np.prod(shape[2:]) // 4)
            value = np.stack((corners, rng.choice((0.1, 0.2, 0.5), corners.shape)))
            value = np.broadcast_to(value.reshape(1, *shape[1:]), shape).copy()
        elif self.kind in ROWS and shape and shape[-1] == ROWS[self.kind]:
            value = self._rows(rng, shape)
        return value.astype(np.float32) + np.float32(0)  # no -0: its inverse is another infinity

    def _rows(self, rng: np.random.Generator, shape: Shape) -> Array:
        """Boxes, one a row, by image; sometimes the last are of no image."""
        count = int(np.prod(shape[:-1]))
        image = np.sort(rng.integers(0, max(1, self.below), count)).astype(float)
        if count > 1 and rng.random() < 0.3:
            image[-1] = -1
        label, corners = rng.integers(1, max(2, self.ignored or 2), count), _corners(rng, count)
        if self.kind == "detections":
            rows = np.column_stack((image, label, rng.random(count), corners))
        else:
            rows = np.column_stack((image, label, np.zeros(count), corners, rng.random(count) < 0.3))
        return rows.reshape(shape)


def _corners(rng: np.random.Generator, count: int) -> Array:
    """Boxes (count, 4), in parts of an image; some reach out of it."""
    start = rng.uniform(-0.1, 0.8, (count, 2))
    return np.concatenate((start, start + rng.uniform(0.05, 0.6, (count, 2))), 1)


@dataclass(frozen=True)
class Case:
    """A net in a phase.

    Attributes:
        layers: LayerParameters; the inputs are Input layers named as their blobs, before the others.
        values: how each input is drawn, by blob.
        seed: of inputs and parameters.
    """

    layers: tuple[Message, ...]
    phase: str
    values: dict[str, Values]
    seed: int

    @property
    def inputs(self) -> dict[str, Shape]:
        """Shape by input blob."""
        return {
            layer.top[0]: tuple(layer.input_param.shape[0].dim) for layer in self.layers if layer.name in self.values
        }

    @property
    def computing(self) -> tuple[Message, ...]:
        """The layers that are no inputs."""
        return tuple(layer for layer in self.layers if layer.name not in self.values)

    @property
    def forced(self) -> bool:
        """Whether the inputs get gradients, not parameters alone: MultiBoxLoss refuses one of its priors."""
        return all(layer.type != "MultiBoxLoss" for layer in self.layers)

    @property
    def text(self) -> str:
        """The prototxt, with force_backward so that inputs get gradients."""
        return prototxt.dump(Message("NetParameter", name="net", force_backward=self.forced, layer=list(self.layers)))

    def arrays(self) -> Arrays:
        """The inputs."""
        return {blob: self.values[blob].draw(shape, [self.seed, int(blob[1:])]) for blob, shape in self.inputs.items()}

    def request(self) -> tuple[dict[str, Any], Arrays]:
        """What the reference is asked."""
        positive = {}
        for layer in self.computing:
            if signature := signature_of(layer.type):
                positive[layer.name] = [name in signature.statistics and name != "mean" for name in signature.blobs]
        arrays = self.arrays()
        header = {"text": self.text, "phase": self.phase, "seed": self.seed, "positive": positive}
        return header | {"inputs": list(arrays)}, arrays

    def replace(self, **changes: Any) -> Case:
        return dataclasses.replace(self, **changes)

    def dump(self) -> str:
        """As JSON, for the file of results."""
        values = {blob: dataclasses.astuple(value) for blob, value in self.values.items()}
        return json.dumps({"text": self.text, "phase": self.phase, "values": values, "seed": self.seed})

    @classmethod
    def load(cls, text: str) -> Case:
        """The inverse of :meth:`dump`."""
        read = json.loads(text)
        net = prototxt.parse(read["text"], "NetParameter")
        values = {blob: Values(*value) for blob, value in read["values"].items()}
        return cls(tuple(net.layer), read["phase"], values, read["seed"])


def input_layer(blob: str, shape: Shape) -> Message:
    """The Input layer of a blob."""
    shapes = [Message("BlobShape", dim=list(shape))]
    return Message(
        "LayerParameter", name=blob, type="Input", top=[blob], input_param=Message("InputParameter", shape=shapes)
    )
