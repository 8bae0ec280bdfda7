"""Makes a net that shows something smaller, as long as it still shows it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping

from case import SPECIAL, Case, Values, input_layer

from caffe_port.formats.message import Message
from caffe_port.typing import Shape

Shapes = Callable[[Case], Mapping[tuple[str, int], Shape]]
"""The shapes of tops, by layer and number, as far as they are known."""


def shrink(case: Case, shows: Callable[[Case], bool], shapes: Shapes, seconds: float = 20.0) -> Case:
    """A case in which nothing can be left out any more.

    Args:
        shows: whether a case still shows what is to be kept.
        shapes: of the tops of a case: a layer that is left out becomes an input.
        seconds: when to stop at the latest.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for smaller in candidates(case, shapes(case)):
            if time.monotonic() > until:
                return case
            if shows(smaller):
                case = smaller
                break
        else:
            return case
    return case


def candidates(case: Case, shapes: Mapping[tuple[str, int], Shape]) -> Iterator[Case]:
    """Smaller cases, the boldest first."""
    for layer in reversed(case.computing):
        if smaller := _without(case, layer, shapes):
            yield smaller
    for layer in case.computing:
        for simpler in _simpler(layer):
            yield _with(case, layer, simpler)
    for layer in case.computing:
        for k, top in enumerate(layer.top):
            if top in layer.bottom:
                yield from _not_in_place(case, layer, k)
    for blob, shape in case.inputs.items():
        for smaller in _smaller(shape):
            layers = tuple(input_layer(blob, smaller) if layer.name == blob else layer for layer in case.layers)
            least = min((n for n, m in zip(smaller, shape, strict=True) if n < m), default=1)
            yield case.replace(layers=layers, values=_below(case.values, least))  # labels stay classes
    for blob, values in case.values.items():
        if values.kind not in ("normal", *SPECIAL):
            yield case.replace(values=case.values | {blob: Values("normal")})
    if case.phase == "TRAIN":
        yield case.replace(phase="TEST")


def _without(case: Case, gone: Message, shapes: Mapping[tuple[str, int], Shape]) -> Case | None:
    """Without a layer: those that read its tops read inputs, or the blob that it changed in place."""
    rest = [layer for layer in case.computing if layer is not gone]
    read = {bottom for layer in rest for bottom in layer.bottom}
    inputs = {blob: (shape, case.values[blob]) for blob, shape in case.inputs.items()}
    renamed: dict[str, str] = {}
    for k, top in enumerate(gone.top):
        if top in gone.bottom or top not in read:
            continue
        if (gone.name, k) not in shapes:
            return None
        number = max((int(blob[1:]) for blob in (*inputs, *renamed.values())), default=-1) + 1
        renamed[top] = f"x{number}"
        inputs[renamed[top]] = shapes[gone.name, k], Values("normal")
    made = [
        layer.copy(bottom=[renamed.get(b, b) for b in layer.bottom], top=[renamed.get(top, top) for top in layer.top])
        for layer in rest
    ]
    read = {bottom for layer in made for bottom in layer.bottom}
    inputs = {blob: both for blob, both in inputs.items() if blob in read}
    if not made:
        return None
    layers = (*[input_layer(blob, shape) for blob, (shape, _) in inputs.items()], *made)
    return case.replace(layers=layers, values={blob: values for blob, (_, values) in inputs.items()})


def _with(case: Case, old: Message, new: Message) -> Case:
    layers = tuple(new if layer is old else layer for layer in case.layers)
    read = {bottom for layer in layers for bottom in layer.bottom}
    kept = {blob: values for blob, values in case.values.items() if blob in read}
    return case.replace(
        layers=tuple(layer for layer in layers if layer.name not in case.values or layer.name in kept), values=kept
    )


def _simpler(message: Message, depth: int = 0) -> Iterator[Message]:
    """The message without one of its fields, or with a shorter list."""
    for name, value in message.items():
        if depth == 0 and name in ("name", "type", "bottom", "top"):
            if name == "bottom" and len(value) > 1:
                yield message.copy(bottom=value[:-1])
            if name == "top" and len(value) > 1 and not message.loss_weight:
                yield message.copy(top=value[:-1])
            continue
        yield message.copy(**{name: None})
        if isinstance(value, list):
            if len(value) > 1:
                yield message.copy(**{name: value[:-1]})
            for k, one in enumerate(value):
                if isinstance(one, Message):
                    for simpler in _simpler(one, depth + 1):
                        yield message.copy(**{name: [*value[:k], simpler, *value[k + 1 :]]})
        elif isinstance(value, Message):
            for simpler in _simpler(value, depth + 1):
                yield message.copy(**{name: simpler})
        elif isinstance(value, int) and not isinstance(value, bool) and value > 1:
            yield message.copy(**{name: 1})
            yield message.copy(**{name: value - 1})


def _not_in_place(case: Case, layer: Message, k: int) -> Iterator[Case]:
    old, new = layer.top[k], f"{layer.name}_{k}"
    at = case.layers.index(layer)
    later = [
        one.copy(bottom=[new if b == old else b for b in one.bottom], top=[new if t == old else t for t in one.top])
        for one in case.layers[at + 1 :]
    ]
    mine = layer.copy(top=[*layer.top[:k], new, *layer.top[k + 1 :]])
    yield case.replace(layers=(*case.layers[:at], mine, *later))


def _below(values: Mapping[str, Values], most: int) -> dict[str, Values]:
    """The inputs with smaller integers."""
    return {
        blob: dataclasses.replace(one, below=min(one.below, most)) if one.kind == "integers" else one
        for blob, one in values.items()
    }


def _smaller(shape: Shape) -> Iterator[Shape]:
    for axis, n in enumerate(shape):
        for m in dict.fromkeys((1, 2, n // 2, n - 1)):
            if 0 < m < n:
                yield (*shape[:axis], m, *shape[axis + 1 :])
