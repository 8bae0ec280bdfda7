"""Judges a layer that no call of the port computes: left out, computed by other calls, or at another place."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_port.signatures.signature import Trait, has, has_weights
from caffe_port.spec import LayerSpec
from caffe_port.verification.references.numpy_formulas import compute
from caffe_port.verification.user_module.examination.outputs import returned_for
from caffe_port.verification.user_module.examination.placement import next_found, partner, region_of
from caffe_port.verification.user_module.examination.relations import relation
from caffe_port.verification.user_module.examination.replay import cause_of
from caffe_port.verification.user_module.examination.state import Examination
from caffe_port.verification.user_module.recorder import Call, Value
from caffe_port.verification.user_module.tops import array, tops_of


def judge_absent(exam: Examination, layer: LayerSpec, region: Sequence[tuple[Call, int]]) -> bool:
    """Finds out what the port does instead of a layer; False if the port fails before that can be seen."""
    chain, reader, call = next_found(exam, layer, region)
    read = _read_after(exam, chain, reader, call)
    if not read:
        if exam.last.error:
            return False
        top = exam.top(layer).size
        steps = [out for step, _ in region for out in step.outputs if not out.carries and out.array.numel() == top]
        read = steps[-1:]
    made = next((value for value in read if not value.carries and not _is_given(value)), None)
    if made is not None:
        by_hand(exam, layer, chain, made)
    else:
        _missing(exam, layer, chain, reader, call)
    return True


def end_of(exam: Examination, layer: LayerSpec, region: Sequence[tuple[Call, int]]) -> Value | None:
    """The last tensor of calls that compute a layer together: what the next layer reads, or what is returned."""
    read = _read_after(exam, *next_found(exam, layer, region))
    size = exam.top(layer).size
    return next((v for v in read if not v.carries and not _is_given(v) and v.array.numel() == size), None)


def _is_given(value: Value) -> bool:
    """Whether it is an input of the module, or a constant."""
    return value.call is None and (value.place >= 0 or not value.data)


def _read_after(
    exam: Examination, chain: Sequence[LayerSpec], reader: LayerSpec | None, call: Call | None
) -> list[Value]:
    """What is read of a chain of layers: by the call of the next layer, or by the caller if a net's output is in it."""
    tops = {producer for one in chain for producer in tops_of(one)}
    if call is not None and reader is not None:
        others = set(reader.producers) - tops
        return [value for value in call.inputs if not value.carries & others]
    return returned_for(exam, chain[-1]) if any(map(exam.tops.is_output, tops)) else []


def _before_views(value: Value) -> Value:
    """The tensor in the shape in which it was computed, before it was flattened."""
    while value.call is not None and value.call.view and len(value.call.inputs) == 1 and value.call.word in _VIEWS:
        value = value.call.inputs[0]
    return value


_VIEWS = ("flatten", "reshape", "view", "squeeze", "unsqueeze")


def by_hand(exam: Examination, layer: LayerSpec, chain: Sequence[LayerSpec], value: Value) -> None:
    """A layer, or several, that the port computes by other calls, and wrongly."""
    actual = array(value.own)
    stands = [one for one in chain if exam.top(one).size == actual.size]
    last = stands[-1] if stands else layer
    between = chain[: chain.index(last) + 1] if last in chain else [layer]
    numbers = [one for one in between if not has(one.type, Trait.NO_NUMBERS)]
    cause = ""
    if len(numbers) <= 1 or last is layer:
        cause = cause_of(exam, layer, array(_before_views(value).own))
    if not cause and value.call is not None and stands:
        words = relation(actual, exam.top(last), exam.tolerance)
        cause = f"its top {words}" if words else ""
    bottom = layer.producers[0] if layer.producers else None
    if not cause and bottom is not None and len(exam.bottoms(layer)) == 1:
        words = relation(actual, exam.bottoms(layer)[0], exam.tolerance)
        cause = f"the port has no {layer.type} here: its bottom {words}" if words else ""
    top = exam.missing(layer, actual.size) if last is layer else 0
    exam.conclude(layer, value, cause, value.call, actual, put=(last.name, top), top=top)


def _missing(
    exam: Examination, layer: LayerSpec, chain: Sequence[LayerSpec], reader: LayerSpec | None, call: Call | None
) -> None:
    """A layer that the port leaves out: what reads its bottom gets its top instead."""
    cause = f"the port has no {layer.type} here"
    if has(layer.type, Trait.REARRANGES):
        cause += ": the numbers of its bottom stay in their order"
    exam.conclude(layer, None, cause, None, None)
    last = chain[-1] if call is not None else layer
    if call is not None and reader is not None:
        for one in chain[1:]:
            if not has(one.type, Trait.NO_NUMBERS):
                if one.type == "Scale":
                    exam.otherwise.add((one.name, 0))
                else:
                    exam.conclude(one, None, f"the port has no {one.type} here", None, None)
    bottoms = set(layer.producers)
    readers = [r for bottom in bottoms for r in exam.tops.readers.get(bottom, ()) if r.tops]
    if len(bottoms) == len(readers) == 1:
        for value in exam.last.carriers.get(layer.producers[0], ()):
            exam.put[value.key] = (last.name, 0)
        return
    region = region_of(exam, layer)
    for one in exam.tops.readers.get((last.name, 0), ()):
        other = call if one is reader else partner(exam, one, region)
        for place, value in enumerate(() if other is None else other.inputs):
            if other is not None and value.carries & bottoms:
                exam.feed[other.index, place] = (last.name, 0)
                break


def exchanged(exam: Examination, layer: LayerSpec, region: Sequence[tuple[Call, int]]) -> bool:
    """Two layers in the other order: a pooling before its activation."""
    reader = exam.only_reader((layer.name, 0))
    if reader is None or len(layer.producers) != 1 or len(reader.producers) != 1 or len(reader.tops) != 1:
        return False
    if has_weights(layer.type) or has_weights(reader.type) or reader.type == layer.type:
        return False
    blobs = exam.case.blobs
    first, _ = compute(reader, exam.bottoms(layer), blobs.get(reader.name, ()))
    if first is None:
        return False
    second, _ = compute(layer, first, blobs.get(layer.name, ()))
    if second is None or exam.same(exam.top(reader), second[0]):
        return False
    for step, _ in region:
        for value in step.outputs:
            if not value.carries and exam.same(second[0], array(value.own)):
                cause = (
                    f"the order of '{layer.name}' and '{reader.name}' is exchanged: the port computes "
                    f"'{reader.name}' before '{layer.name}', Caffe after it"
                )
                actual = array(value.own)
                exam.conclude(layer, value, cause, step, actual, "computed in another order", (reader.name, 0))
                return True
    return False
