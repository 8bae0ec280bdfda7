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


@dataclass(frozen=True)
class Values:
    """How an input is drawn.

    Attributes:
        kind: ``normal``, ``ties`` (multiples of a half), ``positive``, ``wide``, ``zeros``, ``integers``, ``boxes``.
        below: the bound of integers.
        ignored: an integer that is among them, whatever the bound: an ignore_label.
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
        return value.astype(np.float32) + np.float32(0)  # no -0: its inverse is another infinity


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
    def text(self) -> str:
        """The prototxt, with force_backward so that inputs get gradients."""
        return prototxt.dump(Message("NetParameter", name="net", force_backward=True, layer=list(self.layers)))

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
