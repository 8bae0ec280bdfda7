"""Compares what the module returns with the outputs of the net."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_port.spec import LayerSpec, Producer
from caffe_port.verification.user_module.examination.bottoms import can_be_skipped, crossed
from caffe_port.verification.user_module.examination.placement import path_to, root_of
from caffe_port.verification.user_module.examination.relations import relation
from caffe_port.verification.user_module.examination.state import Examination, Extra, blob_name, blob_names
from caffe_port.verification.user_module.recorder import Value
from caffe_port.verification.user_module.tops import array


def returned_for(exam: Examination, layer: LayerSpec) -> list[Value]:
    """What the module returns for an output."""
    value = returns(exam).get((layer.name, 0))
    return [] if value is None else [value]


def returns(exam: Examination) -> dict[Producer, Value]:
    """Output of the net -> what the module returns for it."""
    outputs = [producer for _, producer in exam.case.spec.outputs if producer in exam.tops.arrays]
    outputs = [producer for producer in outputs if producer[0] not in exam.apart]
    left = list(dict.fromkeys(exam.last.returned))
    found: dict[Producer, Value] = {}
    for producer in outputs:
        value = next((v for v in left if producer in v.carries), None)
        if value is not None:
            found[producer] = value
            left.remove(value)
    rest = [producer for producer in outputs if producer not in found]
    scores = []
    for n, producer in enumerate(rest):
        top = exam.tops.arrays[producer]
        for m, value in enumerate(left):
            if not value.data:
                continue
            behind = _behind(value)
            score = 8.0 * (producer in behind) + 2.0 * (tuple(value.array.shape) == top.shape)
            score += 2.0 * (value.array.numel() == top.size) - 0.1 * abs(n - m)
            score += len(behind & _above(exam, producer)) / (1 + len(behind))
            scores.append((-score, n, m))
    for _, n, m in sorted(scores):
        if rest[n] not in found and all(left[m] is not value for value in found.values()):
            found[rest[n]] = left[m]
    return found


def _behind(value: Value) -> set[Producer]:
    """The tops that a tensor was computed from."""
    found: set[Producer] = set()
    queue, seen = [value], {id(value)}
    while queue:
        one = queue.pop()
        found |= one.carries
        for source in one.call.inputs if one.call is not None else ():
            if id(source) not in seen:
                seen.add(id(source))
                queue.append(source)
    return found


def _above(exam: Examination, producer: Producer) -> set[Producer]:
    queue, found = [producer], {producer}
    while queue:
        for source in exam.case.spec.by_name[queue.pop()[0]].producers:
            if source not in found:
                found.add(source)
                queue.append(source)
    return found


def judge_outputs(exam: Examination) -> None:
    """Compares what the module returns with the net's outputs."""
    if exam.last.error or exam.stopped:
        return
    returned = returns(exam)
    outputs = [producer for _, producer in exam.case.spec.outputs if producer in exam.tops.arrays]
    for name in sorted(exam.apart):
        layer = exam.case.spec.by_name[name]
        what = f"'{name}', which joins or divides them, is left to the caller"
        exam.notes.append(f"the port returns {blob_names(layer.producers)}; {what}")
    if outputs and not returned and not exam.apart and outputs[0] not in exam.verdicts:
        layer = exam.case.spec.by_name[outputs[0][0]]
        cause = "the port returns none of the net's outputs"
        exam.conclude(layer, None, cause, None, None, "not returned", top=outputs[0][1])
    for blob, producer in exam.case.spec.outputs:
        if producer not in exam.tops.arrays or producer in exam.verdicts or producer[0] in exam.apart:
            continue
        if _misnamed(exam, blob, producer, outputs):
            continue
        layer, value = exam.case.spec.by_name[producer[0]], returned.get(producer)
        if value is None:
            exam.notes.append(f"the port does not return '{blob_name(producer)}', an output of the net")
            continue
        if producer in value.carries and not _shape_differs(exam, value, producer):
            continue
        _judge_output(exam, layer, producer, value)


def _misnamed(exam: Examination, blob: str, producer: Producer, outputs: Sequence[Producer]) -> bool:
    """Whether the port returns another output of the net under the name of this one."""
    value = exam.last.names.get(blob)
    if value is None or producer in value.carries:
        return False
    other = next((one for one in outputs if one in value.carries), None)
    if other is None:
        return False
    layer, others = exam.case.spec.by_name[producer[0]], exam.case.spec.by_name[other[0]].tops[other[1]]
    cause = f"what the port returns as '{blob}' is Caffe's '{others}' (the names of its outputs are exchanged)"
    exam.conclude(layer, None, cause, value.call, array(value.array), top=producer[1])
    return True


def _shape_differs(exam: Examination, value: Value, producer: Producer) -> bool:
    own, top = tuple(value.array.shape), exam.tops.arrays[producer].shape
    return own[:1] != top[:1] and [n for n in own if n != 1] != [n for n in top if n != 1]


def _judge_output(exam: Examination, layer: LayerSpec, producer: Producer, value: Value) -> None:
    steps = list(path_to(value))
    root = root_of(value)
    extras = [step for step in steps if step.kind and can_be_skipped(step.kind)]
    if extras and producer in root.carries and all(s.kind or s.view for s in steps):
        for extra in extras:
            exam.extras[extra.index] = Extra(extra, layer)
        return
    right, actual = exam.tops.arrays[producer], array(value.array)
    words = relation(actual, right, exam.tolerance)
    other = sorted((p for p in value.carries if p != producer), key=exam.place)
    if other and producer not in value.carries and exam.tops.arrays[other[-1]].size == right.size:
        exam.wired[layer.name] = (None, 0, other[-1], producer)
        chain = other[-1] in _above(exam, producer)
        words = f"is '{blob_name(other[-1])}', not '{blob_name(producer)}'"
        words += f": the port has no {layer.type} there (it is missing)" if chain else " (another order of outputs)"
    if not words and actual.shape != right.shape:
        words = f"has the shape {actual.shape}, Caffe's output {right.shape}"
    through = ", ".join(step.name for step in reversed(steps) if not step.kind)
    cause = f"what the port returns for the output '{blob_name(producer)}' {words}" if words else ""
    if cause and through:
        cause += f"; extra at the end: {through}"
    exam.conclude(layer, None, cause, value.call, actual, top=producer[1])
    crossed(exam)
