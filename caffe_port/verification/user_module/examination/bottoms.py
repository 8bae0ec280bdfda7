"""Judges what a call reads: tops of other layers, the right ones in another order, or changed on the way."""

from __future__ import annotations

import numpy as np

from caffe_port.signatures.signature import Trait, has, has_weights, signature_of
from caffe_port.spec import LayerSpec, Producer
from caffe_port.typing import Array
from caffe_port.verification.comparison import difference
from caffe_port.verification.user_module.examination.placement import path_to, root_of
from caffe_port.verification.user_module.examination.relations import relation
from caffe_port.verification.user_module.examination.replay import attempt, find_mistake
from caffe_port.verification.user_module.examination.state import Examination, Extra, Verdict, blob_name, blob_names
from caffe_port.verification.user_module.recorder import Call, Value
from caffe_port.verification.user_module.tops import array
from caffe_port.verification.user_module.weights import family


def judge_bottoms(exam: Examination, layer: LayerSpec, call: Call, value: Value, put: Producer | None = None) -> None:
    """Finds out why a call that computes its layer right makes other numbers."""
    actual = array(value.own)
    extras: list[Call] = []
    for source, read in zip(layer.producers, call.inputs, strict=False):
        if source in read.carries:
            continue
        for step in path_to(read):
            changes = bool(step.kind) and not has(step.kind, Trait.NO_NUMBERS) and can_be_skipped(step.kind)
            if changes or step.kind == "Dropout":
                extras.append(step)
    if extras:
        for extra in extras:
            _extra(exam, extra, layer)
        return
    cause = wrong_wiring(exam, layer, call, actual)
    if cause:
        exam.conclude(layer, value, cause, call, actual, put=put)
        return
    special = _specific(exam, layer, actual)
    for source, read in zip(layer.producers, call.inputs, strict=False):
        if source not in read.carries or not exam.tops.fits(source, read.array):
            cause = _changed(exam, source, read) or cause
            if not special and read.call is not None:
                exam.correct(read, source)
    exam.conclude(layer, value, special or cause, call, actual, put=put)


def _specific(exam: Examination, layer: LayerSpec, actual: Array) -> str:
    """A known slip of this type, rather than one of any layer."""
    if not has_weights(layer.type):
        return ""
    finding = find_mistake(exam, layer, actual)
    return finding.cause if finding is not None and finding.specific else ""


def _extra(exam: Examination, call: Call, before: LayerSpec) -> None:
    root = root_of(call.inputs[0]) if call.inputs else None
    known = sorted(root.carries, key=exam.place) if root is not None else []
    after = exam.case.spec.by_name[known[-1][0]] if known else None
    exam.extras[call.index] = Extra(call, None if after is None or after.is_input else after)
    if root is not None and known:
        wanted = next((source for source in before.producers if source in root.carries), known[-1])
        exam.put[call.outputs[0].key] = wanted


def can_be_skipped(kind: str) -> bool:
    """Whether an extra call of a kind can be left out without the module noticing."""
    signature = signature_of(kind)
    return signature is not None and signature.bottoms == (1, 1) and not has_weights(kind)


def wrong_wiring(exam: Examination, layer: LayerSpec, call: Call, actual: Array) -> str:
    """Whether a call reads the tops of other layers, or the right ones in another order."""
    if len(call.inputs) != len(layer.producers):
        return ""
    reads: list[Producer] = []
    for source, read in zip(layer.producers, call.inputs, strict=True):
        root = root_of(read)
        if source in root.carries:
            reads.append(source)
            continue
        near = [p for p in layer.producers if p in root.carries]
        others = near or sorted(root.carries, key=exam.place)
        if not others or exam.same(exam.tops.arrays[source], exam.tops.arrays[others[-1]]):
            return ""  # the same numbers, in another shape
        reads.append(others[-1])
    if tuple(reads) == layer.producers:
        return ""
    made = attempt(lambda: call.again(*(exam.tops.tensor(s, v.array) for s, v in zip(reads, call.inputs, strict=True))))
    if made is None or not exam.same(made, actual):
        return ""
    if sorted(reads) == sorted(layer.producers):
        order = tuple(layer.producers.index(source) for source in reads)
        told = "reversed" if order == tuple(range(len(order)))[::-1] else f"{order}, by their places in Caffe"
        theirs = blob_names(layer.producers)
        return f"the order of its bottoms is {told}: it reads {blob_names(reads)}, Caffe's {theirs}"
    n = next(n for n, source in enumerate(layer.producers) if reads[n] != source)
    root = root_of(call.inputs[n])
    place = f", which {root.call.name} computes in place" if root.call is not None and root.call.in_place else ""
    exam.wired[layer.name] = (call, n, reads[n], layer.producers[n])
    return f"it reads '{blob_name(reads[n])}'{place}, Caffe's reads '{blob_name(layer.producers[n])}' (another bottom)"


def crossed(exam: Examination) -> None:
    """Two layers that read each other's bottoms: the weights of those before them may be exchanged."""
    if not exam.keep:
        return
    for one, (call, n, reads, wanted) in list(exam.wired.items()):
        for other, (call2, n2, reads2, wanted2) in list(exam.wired.items()):
            if one >= other or (reads, wanted) != (wanted2, reads2):
                continue
            first, second = _weighted(exam, wanted), _weighted(exam, reads)
            if first is None or second is None or first is second:
                continue
            shapes = [[np.shape(b) for b in exam.case.blobs.get(layer.name, ())] for layer in (first, second)]
            if shapes[0] != shapes[1]:
                continue
            for name, reader, place, right in ((one, call, n, wanted), (other, call2, n2, wanted2)):
                verdict = exam.verdicts.pop((name, 0), None)
                if verdict is not None and verdict.key is not None:
                    exam.put.pop(verdict.key, None)
                if reader is not None:
                    exam.feed[reader.index, place] = right
                del exam.wired[name]
            for layer, its in ((first, second), (second, first)):
                cause = f"the weights of '{layer.name}' and '{its.name}' are exchanged: it has the other's"
                made = exam.top(its)
                found = difference(exam.top(layer), made, exam.tolerance)
                value = next(iter(exam.last.makers.get((its.name, 0), ())), None)
                exam.verdicts[layer.name, 0] = Verdict(
                    layer, found, cause, None if value is None else value.call, None if value is None else value.key
                )
            break


def _weighted(exam: Examination, producer: Producer) -> LayerSpec | None:
    """The layer with weights that a top comes from, through layers of one bottom."""
    layer = exam.case.spec.by_name[producer[0]]
    while not family(layer.type) and len(layer.producers) == 1:
        layer = exam.case.spec.by_name[layer.producers[0][0]]
    return layer if family(layer.type) else None


def _changed(exam: Examination, source: Producer, read: Value) -> str:
    """How what a call reads differs from the top that it should read."""
    right = exam.tops.arrays[source]
    made = array(read.array)
    words = relation(made, right, exam.tolerance)
    steps = list(path_to(read))
    changer = next((step for step in steps if step.in_place), None)
    what = "the input" if exam.case.spec.by_name[source[0]].is_input else "its bottom"
    name = f"{what} '{blob_name(source)}'"
    if changer is not None:
        detail = f": what it reads {words}" if words else ""
        return f"{name} was changed in place by {changer.name} before it reads it{detail}"
    if words:
        through = ", ".join(step.name for step in reversed(steps))
        return f"it reads {name} in another form: what it reads {words}" + (f"; by {through}" if through else "")
    others = sorted(root_of(read).carries, key=exam.place)
    if others and source not in others:
        through = ", ".join(step.name for step in reversed(steps))
        return f"it reads what {through} makes of '{blob_name(others[-1])}', Caffe's reads '{blob_name(source)}'"
    if steps:
        through = ", ".join(step.name for step in reversed(steps))
        return f"it reads what {through} makes of {name}, Caffe's reads that as it is"
    return ""
