"""References: independent implementations that a net is compared with.

A reference runs a net layer by layer and yields the tops of every layer. If it cannot run a layer, or is known to
deviate from Caffe there, it yields the reason instead; the layers after that one then run on the tops that it is sent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from caffe_port.errors import CaffePortError
from caffe_port.formats.message import Message
from caffe_port.spec import LayerSpec, NetSpec, Producer
from caffe_port.typing import Array
from caffe_port.verification.references.trace import Trace

Tops = tuple[Array, ...]


@dataclass(frozen=True)
class Case:
    """The task for a reference.

    Attributes:
        spec: the net, in one phase.
        shapes: the shape of every top.
        blobs: layer name -> parameter blobs in Caffe's order and layout.
        inputs: input blob -> array.
    """

    spec: NetSpec
    shapes: Mapping[Producer, tuple[int, ...]]
    blobs: Mapping[str, Sequence[Array]]
    inputs: Mapping[str, Array]

    def inputs_by_producer(self) -> dict[Producer, Array]:
        """The inputs by the layer and top that they come from."""
        return {producer: self.inputs[blob] for blob, producer in self.spec.inputs}


@dataclass(frozen=True)
class Made:
    """The result of one layer.

    Attributes:
        tops: its tops; None if the reference cannot compute them.
        by: what computed them, with version.
        note: the reason if there are none.
    """

    layer: LayerSpec
    tops: Tops | None
    by: str
    note: str = ""


Run = Generator[Made, Sequence[Array] | None, None]
"""Every layer of a net in turn; after one without tops, or with wrong ones, ``send`` the tops that the layers after it
are to read."""


class Reference(Protocol):
    """An implementation that can run a net."""

    @property
    def name(self) -> str: ...

    def run(self, case: Case) -> Run:
        """Runs the net layer by layer, without the inputs.

        Raises:
            CaffePortError: the reference cannot run here at all.
        """
        ...


@dataclass(frozen=True)
class StoredReference:
    """A recorded trace."""

    trace: Trace

    @property
    def name(self) -> str:
        return self.trace.provenance.get("producer") or self.trace.provenance.get("file", "a stored trace")

    def run(self, case: Case) -> Run:
        for layer in computing(case.spec):
            tops = [self.trace.tops.get((layer.name, k)) for k in range(len(layer.tops))]
            there = tuple(top for top in tops if top is not None)
            complete = len(there) == len(tops)
            yield Made(layer, there if complete else None, self.name, "" if complete else "not in the trace")


@dataclass(frozen=True)
class Fallback:
    """A reference, and another that is asked about the layers of which the first has no figures, one at a time."""

    first: Reference
    second: Reference

    @property
    def name(self) -> str:
        return self.first.name

    def run(self, case: Case) -> Run:
        """Runs the net; a layer that the second had to compute says so in its note."""
        values = case.inputs_by_producer()
        last_read = {s: layer.name for layer in case.spec.layers for s in layer.producers}
        turns = self.first.run(case)
        instead: Sequence[Array] | None = None
        while True:
            try:
                made = turns.send(instead)
            except StopIteration:
                return
            layer = made.layer
            if made.tops is None:
                other = alone(self.second, case, layer, [values[s] for s in layer.producers])
                words = f"; {other.note}" if other.tops is None else f": compared with {other.by.partition(' ')[0]}"
                sent = yield Made(layer, other.tops, other.by, made.note + words)
                instead = sent or other.tops
            else:
                instead = yield made
            for k, top in enumerate(instead or made.tops or ()):
                values[layer.name, k] = np.asarray(top)
            for producer in layer.producers:
                if last_read[producer] == layer.name:
                    values.pop(producer, None)


def asked_first(reference: Reference) -> Reference:
    """Without those that are asked where it has no figures."""
    while isinstance(reference, Fallback):
        reference = reference.first
    return reference


def alone(reference: Reference, case: Case, layer: LayerSpec, bottoms: Sequence[Array]) -> Made:
    """What a reference makes of one layer of a net, fed with these bottoms."""
    names = tuple(f"bottom {k}" for k in range(len(bottoms)))
    sources = tuple((name, 0) for name in names)
    inputs = [
        LayerSpec(name, "Input", (), (name,), (), Message("LayerParameter"), layer.where, is_input=True)
        for name in names
    ]
    one = dataclasses.replace(layer, bottoms=names, producers=sources)
    shapes: dict[Producer, tuple[int, ...]] = {s: b.shape for s, b in zip(sources, bottoms, strict=True)}
    shapes |= {(layer.name, k): case.shapes[layer.name, k] for k in range(len(layer.tops))}
    spec = NetSpec(case.spec.name, case.spec.phase, (*inputs, one), case.spec.path)
    blobs = {layer.name: case.blobs.get(layer.name, ())}
    try:
        made = next(reference.run(Case(spec, shapes, blobs, dict(zip(names, bottoms, strict=True)))))
    except CaffePortError as error:
        return Made(layer, None, reference.name, error.what)
    return dataclasses.replace(made, layer=layer)


def computing(spec: NetSpec) -> Iterator[LayerSpec]:
    """The layers that compute something: all but the sources."""
    return (layer for layer in spec.layers if not layer.is_input)


def record(reference: Reference, case: Case, provenance: Mapping[str, str] | None = None) -> Trace:
    """The trace of a whole net, up to the first layer that the reference cannot compute.

    Raises:
        CaffePortError: the reference cannot compute even the first layer.
    """
    tops: dict[Producer, Array] = {
        (layer, k): case.inputs[blob] for blob, (layer, k) in case.spec.inputs
    }  # Caffe's Input layers are layers
    run = reference.run(case)
    notes = []
    for made in run:
        if made.tops is None:
            notes.append(f"{made.layer.name}: {made.note}")
            break
        tops |= {(made.layer.name, k): top for k, top in enumerate(made.tops)}
    run.close()
    if len(tops) == len(case.spec.inputs) and notes:
        raise CaffePortError(f"{reference.name} cannot compute {notes[0]}", case.spec.path)
    words = {"producer": reference.name, **(provenance or {})}
    return Trace(tops, case.inputs, case.spec.phase, words | ({"stopped at": notes[0]} if notes else {}))
