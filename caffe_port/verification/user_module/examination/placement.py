"""Which calls of a port compute which layers of the net."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from caffe_port.signatures.signature import Trait, has, has_weights
from caffe_port.spec import LayerSpec, Producer
from caffe_port.typing import Array
from caffe_port.verification.user_module.examination.state import Examination
from caffe_port.verification.user_module.recorder import KINDS, Call, Value
from caffe_port.verification.user_module.tops import array, tops_of
from caffe_port.verification.user_module.weights import call_family, family, parameter

_KINDS = frozenset(KINDS.values())


def carriers(exam: Examination, producer: Producer) -> list[Value]:
    """The tensors that hold a top, or what it is computed from if none does."""
    found = exam.last.carriers.get(producer, [])
    if found or producer[0] not in exam.case.spec.by_name:
        return found
    layer = exam.case.spec.by_name[producer[0]]
    if layer.is_input:
        return exam.last.inputs
    return [value for source in layer.producers for value in carriers(exam, source)]


def region_of(exam: Examination, layer: LayerSpec) -> list[tuple[Call, int]]:
    """Calls that computed something unknown from the bottoms of a layer, with their distance, the nearest first."""
    queue = [(value, 0) for source in dict.fromkeys(layer.producers) for value in carriers(exam, source)]
    queue += [(value, 1) for value in exam.last.met if not value.carries]  # computed out of sight, perhaps from these
    seen: set[int] = set()
    found: list[tuple[Call, int]] = []
    while queue:
        value, distance = queue.pop(0)
        for call, _ in exam.last.reads(value):
            if call.index in seen or not (exam.last.is_open(call) or call.index in exam.odd.values()):
                continue
            seen.add(call.index)
            found.append((call, distance))
            if not call_family(call) or call.index not in exam.weights.layers:  # a product of a recurrent layer
                queue += [(out, distance + 1) for out in call.outputs if not out.carries]
    return found


def partner(
    exam: Examination, layer: LayerSpec, region: Sequence[tuple[Call, int]], strong: bool = False
) -> Call | None:
    """The call that most likely is a layer; ``strong``: by the function's name alone."""
    best: tuple[float, Call] | None = None
    for call, distance in region:
        score = likeness(exam, layer, call)
        if score <= 0 or (strong and call.kind != layer.type and not _assigned(exam, layer, call)):
            continue
        score -= 0.5 * distance
        if best is None or score > best[0]:
            best = (score, call)
    return None if best is None else best[1]


def elsewhere(exam: Examination, layer: LayerSpec) -> Call | None:
    """A call that would be a layer, but reads other tops: it makes something unknown of what is known."""
    wanted = set(layer.producers)
    top = exam.tops.arrays[layer.name, 0]
    ready = [
        (call, 0)
        for call in exam.last.calls
        if exam.last.is_open(call)
        and call.inputs
        and all(value.carries and not value.carries & wanted for value in call.inputs)
        and any(value.array.numel() == top.size for value in call.outputs)
    ]
    call = partner(exam, layer, ready, strong=not family(layer.type))
    return call if call is not None and has_its_size(exam, layer, call) else None


def idle(exam: Examination, layer: LayerSpec) -> Call | None:
    """A call that would be a layer of several bottoms, but makes what it reads: it reads the same twice."""
    wanted = set(layer.producers)
    for call in exam.last.calls:
        reads = [value.carries for value in call.inputs]
        if len(wanted) < 2 or layer.type not in call.hints or len(reads) != len(layer.producers):
            continue
        if all(reads) and wanted & set().union(*reads) and call.outputs[0].carries <= set().union(*reads):
            return call
    return None


def next_found(
    exam: Examination, layer: LayerSpec, region: Sequence[tuple[Call, int]]
) -> tuple[list[LayerSpec], LayerSpec | None, Call | None]:
    """The layers from this one to the next that a call of the port computes, that layer and that call."""
    queue: list[list[LayerSpec]] = [[layer]]
    longest = [layer]
    while queue:
        chain = queue.pop(0)
        longest = chain if len(chain) > len(longest) else longest
        for producer in tops_of(chain[-1]):
            for reader in exam.tops.readers.get(producer, ()):
                if not reader.tops:
                    continue
                wide = [*region, *((c, 9) for c, _ in region_of(exam, reader) if all(c is not r for r, _ in region))]
                call = partner(exam, reader, wide, strong=has_weights(reader.type) or reader.type in _KINDS)
                if call is not None:
                    return chain, reader, call
                if len(chain) < 5:
                    queue.append([*chain, reader])
    return longest, None, None


def has_its_size(exam: Examination, layer: LayerSpec, call: Call) -> bool:
    """Whether the parameters of a call have the size of a layer's; true for a layer without."""
    own, blobs = parameter(call), exam.case.blobs.get(layer.name, ())
    return not family(layer.type) or (own is not None and bool(blobs) and own.numel() == np.size(blobs[0]))


def likeness(exam: Examination, layer: LayerSpec, call: Call) -> float:
    """How much speaks for a call being a layer; 0 or less if it cannot be."""
    top = exam.tops.arrays[layer.name, 0]
    score = 0.0
    own = parameter(call)
    fits = family(layer.type) == call_family(call) != ""
    if call.kind == layer.type:
        score += 8
    elif (call.kind and has(call.kind, Trait.ACTIVATION) and has(layer.type, Trait.ACTIVATION)) or fits:
        score += 5
    elif layer.type in call.hints:
        score += 4 - 0.5 * call.hints.index(layer.type)
        if layer.type == "Eltwise" and len(call.inputs) < 2:
            return 0.0
        if layer.type in ("Power", "ReLU", "Clip") and len(call.inputs) > 1:
            return 0.0
    else:
        return 0.0
    blobs = exam.case.blobs.get(layer.name, ())
    if own is not None and blobs and family(layer.type):
        same = own.numel() == np.size(blobs[0])
        score += 4.0 if same else -2.0
        if same and exam.keep:
            score += 3.0 * _share(own, np.asarray(blobs[0]))
        if not exam.keep and not _assigned(exam, layer, call) and call.index in exam.weights.layers:
            score -= 20
    sizes = [out.array.numel() for out in call.outputs]
    score += 2.0 * (top.size in sizes) + 1.0 * (tuple(call.outputs[0].array.shape) == top.shape)
    wanted = set(layer.producers)
    read = [bool(value.carries & wanted) for value in call.inputs]
    score += 2.0 * all(read) if read else 0.0
    if len(layer.producers) > 1 and len(call.inputs) == len(layer.producers):
        score += 1.0
    return score


def _assigned(exam: Examination, layer: LayerSpec, call: Call) -> bool:
    return exam.weights.layers.get(call.index) == layer.name


def path_to(value: Value) -> Iterator[Call]:
    """The calls from a known tensor to this one, the last first."""
    while value.call is not None and value.call.inputs and not value.carries:
        yield value.call
        unknown = [v for v in value.call.inputs if not v.carries]
        value = unknown[0] if unknown else value.call.inputs[0]


def root_of(value: Value) -> Value:
    """The known tensor that one was computed from; itself if it is known."""
    for call in path_to(value):
        unknown = [v for v in call.inputs if not v.carries]
        value = unknown[0] if unknown else call.inputs[0]
    return value


def _share(one: Tensor, other: Array) -> float:
    """The share of the numbers that are the same, in whatever order of axes."""
    a, b = np.sort(array(one).reshape(-1)), np.sort(other.reshape(-1))
    return float((np.abs(a - b) <= 1e-3 * max(float(np.abs(b).max()), 1e-12)).mean()) if a.size == b.size else 0.0
