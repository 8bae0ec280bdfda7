"""A run of a port in which every tensor is compared with the reference's tops.

In a *free* run the port goes on with its own numbers. In a *corrected* run each tensor that stands for a top is
replaced by exactly that top, so that every call gets right inputs through the module's own code between the calls; what
was found to be wrong is replaced, too, so that what comes after it is judged on its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from caffe_port.spec import Producer
from caffe_port.verification.user_module.recorder import Ask, Call, Recorder, Value, _replaced, run_recorded
from caffe_port.verification.user_module.tops import Tops

Key = tuple[int, int]
"""Identifies a tensor in every run of a module: the call that made it, and which of its outputs it is."""


class Trial(Recorder):
    """One run of a module.

    Attributes:
        put: tensors to be replaced, and the top that replaces each.
        feed: the same for single inputs of calls: (call, position).
        free: whether nothing is replaced.
        expect: calls of layers with parameters, and their top: it replaces an unknown output if the call reads what
            the layer reads. ``expected`` holds the calls of which that was so.
    """

    def __init__(
        self,
        module: nn.Module,
        tops: Tops,
        put: Mapping[Key, Producer] | None = None,
        feed: Mapping[Key, Producer] | None = None,
        free: bool = False,
        constants: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__(module, constants)
        self.tops, self.free = tops, free
        self.put, self.feed = dict(put or {}), dict(feed or {})
        self.met: list[Value] = []
        self.expect: dict[int, tuple[Producer, tuple[Producer, ...]]] = {}
        self.expected: list[Call] = []

    def run(self, module: nn.Module, inputs: Sequence[Tensor], ask: Ask | None = None) -> Trial:
        """Runs the module, and indexes what it made."""
        run_recorded(self, module, *inputs, ask=ask)
        self.readers: dict[int, list[tuple[Call, int]]] = {}
        for call in self.calls:
            for place, value in enumerate(call.inputs):
                self.readers.setdefault(id(value), []).append((call, place))
        self.carriers: dict[Producer, list[Value]] = {}
        self.makers: dict[Producer, list[Value]] = {}
        for value in self.values():
            for producer in value.carries:
                self.carriers.setdefault(producer, []).append(value)
            for producer in value.made:
                self.makers.setdefault(producer, []).append(value)
        self._explained: dict[int, bool] = {}
        return self

    def values(self) -> Iterator[Value]:
        """The module's inputs, and everything that was computed from them."""
        yield from self.inputs
        yield from self.met
        for call in self.calls:
            yield from call.outputs
            yield from call.changed

    def at(self, key: Key) -> Value | None:
        """The tensor of another run, in this one."""
        index, place = key
        if index < 0 and place < 0:
            return self.strangers[-1 - place][1] if -1 - place < len(self.strangers) else None
        found: Sequence[Value] = self.inputs if index < 0 else ()
        if 0 <= index < len(self.calls):
            found = (*self.calls[index].outputs, *self.calls[index].changed)
        return found[place] if place < len(found) else None

    def reads(self, value: Value) -> list[tuple[Call, int]]:
        """Who reads a tensor, and in which place."""
        return self.readers.get(id(value), [])

    def is_open(self, call: Call) -> bool:
        """Whether a call made something that is no top, and from which no top was computed either."""
        return any(not value.carries and not self.explained(value) for value in call.outputs)

    def explained(self, value: Value) -> bool:
        """Whether a tensor is a step on the way to tops that were found, and to nothing else."""
        known = self._explained.get(id(value))
        if known is None:
            self._explained[id(value)] = False
            used = [call for call, _ in self.reads(value) if any(map(self._is_used, call.outputs))]
            known = bool(used) and all(
                any(bool(out.made) or (not out.carries and self.explained(out)) for out in call.outputs)
                for call in used
            )
            self._explained[id(value)] = known
        return known

    def _is_used(self, value: Value) -> bool:
        return bool(self.reads(value)) or any(value is one for one in self.returned)

    def enter(self, value: Value, tensor: Tensor) -> Tensor:
        return self._replace(value, tensor, False, True)

    def meet(self, value: Value) -> Value:
        value.made = value.carries = self.tops.find(value.array)
        value.data |= bool(value.made)
        if value.data:
            self.met.append(value)
        return value

    def change(self, value: Value) -> Value:
        value.made = value.carries = self.tops.find(value.array)
        return value

    def before(self, call: Call) -> tuple[Sequence[Any], dict[str, Any]]:
        fed = [self.feed.get((len(self.calls), place)) for place in range(len(call.inputs))]
        if self.free or not any(fed):
            return call.args, call.kwargs
        by = iter(
            None if producer is None else self.tops.tensor(producer, value.array)
            for producer, value in zip(fed, call.inputs, strict=True)
        )
        return _replaced(call.args, call.kwargs, call.is_data, list(by))

    def after(self, call: Call, value: Value, tensor: Tensor) -> Tensor:
        return self._replace(value, tensor, call.in_place, call.view)

    def _expected(self, value: Value) -> Producer | None:
        call = value.call
        top, bottoms = (None, ()) if call is None else self.expect.get(call.index, (None, ()))
        if call is None or top is None or value.place or len(call.inputs) != len(bottoms):
            return None
        if not all(s in v.carries for s, v in zip(bottoms, call.inputs, strict=True)):
            return None
        if value.array.numel() != self.tops.arrays[top].size:
            return None
        self.expected.append(call)
        return top

    def _replace(self, value: Value, tensor: Tensor, in_place: bool, view: bool) -> Tensor:
        value.made = value.carries = self.tops.find(value.array)
        value.raw = value.array
        if self.free:
            return tensor
        chosen = self.put.get(value.key)
        if chosen is None:
            if view:
                return tensor
            chosen = min(value.made) if value.made else self._expected(value)
            if chosen is None or (value.made and not self.tops.fits(chosen, tensor)):
                return tensor
        new = self.tops.tensor(chosen, tensor)
        value.carries = self.tops.find(new) | {chosen}
        value.array = new.clone()
        if in_place and new.shape == tensor.shape:
            tensor.copy_(new)
            return tensor
        return new
