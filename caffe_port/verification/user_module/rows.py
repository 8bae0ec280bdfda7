"""The rows of a report on a port: one for every top of every layer, and one for every call that Caffe does not have."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from caffe_port.signatures.signature import Trait, has, has_weights, keeps_blobs
from caffe_port.spec import LayerSpec, Producer
from caffe_port.typing import Array
from caffe_port.verification.comparison import Difference, Row, difference, failure, says_something
from caffe_port.verification.user_module.examination.folded_layers import told
from caffe_port.verification.user_module.examination.replay import normalized
from caffe_port.verification.user_module.examination.state import Examination, Extra, Verdict, like
from caffe_port.verification.user_module.recorder import Call, Value
from caffe_port.verification.user_module.tops import array

_NO_COUNTERPART = "no counterpart in the port"


def rows(found: Examination) -> Iterator[Row]:
    """The rows in the net's order, calls that Caffe does not have after the layer before them."""
    for row in _rows(found):
        top = found.tops.arrays.get((row.layer, row.top))
        yield row if top is None or says_something(top) else dataclasses.replace(row, constant=True)


def _rows(found: Examination) -> Iterator[Row]:
    _gather(found)
    extras: dict[str, list[Extra]] = {}
    for extra in found.extras.values():
        extras.setdefault("" if extra.after is None else extra.after.name, []).append(extra)
    yield from (_extra(extra) for extra in extras.get("", ()))
    for layer in found.case.spec.layers:
        if not layer.is_input:
            yield from (_row(found, layer, k) for k in range(max(1, len(layer.tops))))
        yield from (_extra(extra) for extra in extras.get(layer.name, ()))


def actual_of(found: Examination, row: Row) -> Array | None:
    """The port's numbers for a row, from right inputs, in the shape of the top where they are as many."""
    producer = (row.layer, row.top)
    if producer not in found.tops.arrays or row.status == "not compared":
        return None
    verdict = found.verdicts.get(producer)
    if verdict is not None:
        return None if verdict.actual is None else _shaped(verdict.actual, found, producer)
    value = _stands(found, producer)
    return None if value is None else _shaped(array(value.own), found, producer)


def free_of(found: Examination, row: Row) -> Array | None:
    """The port's numbers for a row when it runs on its own, in the shape of the top; None if they are not as many."""
    value = _stands(found, (row.layer, row.top)) if (row.layer, row.top) in found.tops.arrays else None
    value = None if value is None else found.free.at(value.key)
    top = found.tops.arrays.get((row.layer, row.top))
    if value is None or top is None or value.own.numel() != top.size:
        return None
    return array(value.own).reshape(top.shape)


def _gather(found: Examination) -> None:
    """Tells the same mistake in several layers without parameters once: they are one line of a port's code."""
    first: dict[tuple[str, str], Verdict] = {}
    for verdict in sorted(found.verdicts.values(), key=lambda v: found.place((v.layer.name, v.top))):
        words = verdict.cause.partition(";")[0]
        key = (verdict.layer.type, words)
        coarse = words.startswith("it computes in")
        if coarse:
            key = ("", words)
        elif not words or keeps_blobs(verdict.layer.type) or words.startswith("it reads"):
            continue
        if key in first:
            first[key].same.append(verdict.layer.name)
            verdict.same_as = first[key].layer.name
        else:
            first[key] = verdict


def _extra(extra: Extra) -> Row:
    call = extra.call
    where = f"after '{extra.after.name}'" if extra.after else "at the beginning"
    cause = f"the port has an extra {call.kind} {where}: {call.name}"
    shapes = f"{tuple(call.inputs[0].own.shape)} to {tuple(call.outputs[0].own.shape)}" if call.inputs else ""
    if call.kind == "Dropout":
        cause += ", active even in eval()"
    return Row(call.name, 0, call.kind, free=failure(f"an extra layer, {shapes}"), cause=cause)


def _row(found: Examination, layer: LayerSpec, k: int) -> Row:
    producer = (layer.name, k)
    blob = layer.tops[k] if layer.tops else ""
    if producer not in found.tops.arrays:
        return Row(layer.name, k, layer.type, blob, layer.where, note="has no top")
    verdict = found.verdicts.get(producer)
    if verdict is not None:
        note = f"port: {verdict.call.name}" if verdict.call is not None else ""
        if verdict.folded:
            note += f", with {told(verdict.folded[1:])} folded into its weights"
        if verdict.same_as:
            note = f"the same mistake as in '{verdict.same_as}': {verdict.cause.partition(';')[0]}"
            return Row(layer.name, k, layer.type, blob, layer.where, note=note)
        value = None if verdict.key is None else found.free.at(verdict.key)
        free = _free(found, producer, value) if verdict.key is not None else None
        return Row(layer.name, k, layer.type, blob, layer.where, free, verdict.difference, note, _cause(verdict))
    value = _stands(found, producer)
    if value is None:
        return _without(found, layer, producer, blob)
    call = value.call
    note = "" if call is None else f"port: {call.name}"
    folded = _folded(found, layer, call)
    if folded:
        note += f", with {told(folded)} folded into its weights"
    alone = array(value.own) if producer in value.made else None
    isolated = None if alone is None else difference(found.tops.arrays[producer], _shaped(alone, found, producer))
    free = _free(found, producer, found.free.at(value.key))
    return Row(layer.name, k, layer.type, blob, layer.where, free, _judged(found, isolated, producer, alone), note)


def _cause(verdict: Verdict) -> str:
    if not verdict.same:
        return verdict.cause
    shown = ", ".join(f"'{name}'" for name in verdict.same[:6]) + (", ..." if len(verdict.same) > 6 else "")
    return f"{verdict.cause}; the same in {shown}"


def _shaped(values: Array, found: Examination, producer: Producer) -> Array:
    top = found.tops.arrays[producer]
    return values.reshape(top.shape) if values.size == top.size else values


def _judged(
    found: Examination, isolated: Difference | None, producer: Producer, alone: Array | None
) -> Difference | None:
    if isolated is None or alone is None:
        return None
    return difference(found.tops.arrays[producer], _shaped(alone, found, producer), found.tolerance)


def _free(found: Examination, producer: Producer, value: Value | None) -> Difference:
    """The difference in the free run."""
    top = found.tops.arrays[producer]
    if value is None:
        return failure("the port fails before")
    own = array(value.own)
    return difference(top, own.reshape(top.shape) if own.size == top.size else like(own, top), found.tolerance)


def _stands(found: Examination, producer: Producer) -> Value | None:
    """The tensor of the port that stands for a top: the one that the likeliest call made."""
    layer = found.case.spec.by_name[producer[0]]
    values = found.last.makers.get(producer, [])
    if has(layer.type, Trait.NO_NUMBERS):
        values = [v for v in values if v.call is not None and layer.type in v.call.hints]

    def rank(value: Value) -> tuple[int, int, int]:
        call = value.call
        if call is None:
            return (3, 0, 0)
        assigned = found.weights.layers.get(call.index) == layer.name
        kind = 0 if call.kind == layer.type or assigned else 1 if layer.type in call.hints else 2
        return (kind, int(call.view), call.index)

    return min(values, key=rank, default=None)


def _folded(found: Examination, layer: LayerSpec, call: Call | None) -> list[LayerSpec]:
    """The layers that a call with weights computes, too, if this is the last of them: without the first."""
    if call is None or not call.kind or call.kind == layer.type or not has(layer.type, Trait.AFFINE):
        return []
    if not has_weights(call.kind):
        return []
    folded, last = [layer], found.case.spec.by_name[layer.producers[0][0]]
    while has(last.type, Trait.AFFINE):
        folded.insert(0, last)
        last = found.case.spec.by_name[last.producers[0][0]]
    return folded if has_weights(last.type) else []


def _without(found: Examination, layer: LayerSpec, producer: Producer, blob: str) -> Row:
    """A layer of which no tensor of the port holds the top."""
    if layer.name in found.alone:
        return _together(found, layer, blob)
    after = found.sole.get(producer)
    while after is not None and has(after.type, Trait.AFFINE):
        value = _stands(found, (after.name, 0))
        verdict = found.verdicts.get((after.name, 0))
        call = value.call if value is not None else None if verdict is None else verdict.call
        if call is not None and call.kind == "BatchNorm" and layer.type == "BatchNorm":
            return _together(found, layer, blob, value)
        into = [after] if verdict is not None and verdict.folded else _folded(found, after, call)
        if into and call is not None:
            first = layer if has_weights(layer.type) else _first(found, layer)
            note = f"folded into the weights of '{first.name}'"
            if layer is first:
                note = f"compared as '{after.name}'; port: {call.name}"
            return Row(layer.name, 0, layer.type, blob, layer.where, note=note)
        after = found.sole.get((after.name, 0))
    note = _NO_COUNTERPART
    if has(layer.type, Trait.NO_NUMBERS):
        note += "; changes no value in TEST"
    elif layer.name in found.apart:
        note = "joins or divides what the port returns"
    elif layer.name in found.left_out:
        note = f"the port does not compute it, nor return what needs it: {', '.join(found.left_out[layer.name])}"
    elif producer in found.otherwise:
        note = "computed with other operations: no tensor of the port holds this top, what comes after it agrees"
    elif found.last.error:
        note = "the port fails before"
    return Row(layer.name, producer[1], layer.type, blob, layer.where, note=note)


def _first(found: Examination, layer: LayerSpec) -> LayerSpec:
    while has(layer.type, Trait.AFFINE):
        layer = found.case.spec.by_name[layer.producers[0][0]]
    return layer


def _together(found: Examination, layer: LayerSpec, blob: str, value: Value | None = None) -> Row:
    """BatchNorm, or the Scale after it, of a call that computes both."""
    top = found.tops.arrays[layer.name, 0]
    made = found.alone.get(layer.name)
    if made is None and value is not None and value.call is not None:
        made = normalized(found, layer, value.call)
    scale = found.scales.get(layer.name, layer)
    stands = value or next(
        (found.last.at(v.key) for v in (found.verdicts.get((n, 0)) for n in _pair(found, layer)) if v and v.key), None
    )
    name = stands.call.name if stands is not None and stands.call is not None else ""
    isolated = None if made is None else difference(top, _shaped(made, found, (layer.name, 0)), found.tolerance)
    free = None
    if layer is not scale or layer.type == "Scale":
        key = None if stands is None else stands.key
        free = _free(found, (layer.name, 0), found.free.at(key)) if key is not None and layer.type == "Scale" else None
    return Row(layer.name, 0, layer.type, blob, layer.where, free, isolated, f"port: {name}")


def _pair(found: Examination, layer: LayerSpec) -> list[str]:
    """The names of a BatchNorm and its Scale, of which the layer is one."""
    for name, scale in found.scales.items():
        if layer.name in (name, scale.name):
            return [name, scale.name]
    return [layer.name]
