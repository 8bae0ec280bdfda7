"""The search for what is wrong in a port: run, judge the first layers that are wrong, correct them, run again."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_port.errors import CaffePortError
from caffe_port.signatures.signature import Trait, has, signature_of
from caffe_port.spec import LayerSpec, Producer
from caffe_port.verification.user_module import calling
from caffe_port.verification.user_module.examination.absent import by_hand, end_of, exchanged, judge_absent
from caffe_port.verification.user_module.examination.bottoms import crossed
from caffe_port.verification.user_module.examination.calls import judge_call
from caffe_port.verification.user_module.examination.in_order import consider, first_wrong
from caffe_port.verification.user_module.examination.outputs import judge_outputs
from caffe_port.verification.user_module.examination.placement import (
    elsewhere,
    has_its_size,
    idle,
    likeness,
    next_found,
    partner,
    region_of,
)
from caffe_port.verification.user_module.examination.replay import again
from caffe_port.verification.user_module.examination.state import Examination
from caffe_port.verification.user_module.recorder import Call
from caffe_port.verification.user_module.trial import Key, Trial
from caffe_port.verification.user_module.weights import Weights, family

_MAX_RUNS = 60
_MAX_REVISIONS = 8
_MANY = 4
"""Verdicts above which all calls with parameters are corrected in one run."""


def search(exam: Examination) -> None:
    """Runs the port until nothing else is found.

    Each run is compared by value. The first layers that are not in order, though all that they read is, are judged, and
    corrected for the next run.
    """
    first = _first_run(exam)
    exam.weights = Weights(exam.case, exam.module, first.calls)
    if not exam.keep:
        exam.weights.copy()
    revisions = 0
    before: Trial | None = None
    kept: tuple[dict[Key, Producer], dict[Key, Producer]] = ({}, {})
    for _ in range(_MAX_RUNS):
        exam.last = _run(exam)
        if not exam.keep and revisions < _MAX_REVISIONS and exam.weights.revise(exam.last.calls):
            revisions += 1
            exam.weights.copy()
            for found in (exam.verdicts, exam.extras, exam.alone, exam.put, exam.feed):
                found.clear()
            before = None
            continue
        if before is not None and exam.last.error and not before.error:
            exam.notes.append(f"on the reference's tops, the port fails: {exam.last.error}")
            exam.put, exam.feed = kept
            exam.last, exam.stopped = before, True
            consider(exam)
            break
        before, kept = exam.last, (dict(exam.put), dict(exam.feed))
        consider(exam)
        if not _examine(exam):
            break
    exam.free = _run(exam, free=True)
    judge_outputs(exam)
    if exam.free.error:
        exam.notes.append(f"the port fails: {exam.free.error}; what ran before was compared")
    if not exam.keep:
        exam.notes += exam.weights.notes


def unproven(exam: Examination) -> list[Producer]:
    """Tops that no tensor of its own stands for in the port: what comes after agrees, or its bottom is the same."""
    found = []
    for layer in exam.case.spec.layers:
        producer = (layer.name, 0)
        if layer.is_input or has(layer.type, Trait.NO_NUMBERS) or producer not in exam.tops.arrays:
            continue
        reader = exam.sole.get(producer)
        if producer in exam.otherwise and not (reader is not None and has(reader.type, Trait.AFFINE)):
            found.append(producer)
        makers = exam.last.makers.get(producer, [])
        unchanged = bool(makers) and all(set(layer.producers) & value.made for value in makers)
        if layer.name in other_curves(exam):
            found.append(producer)
        if unchanged and not any(v.call is not None and layer.type in v.call.hints for v in makers):
            found.append(producer)
    return found


def other_curves(exam: Examination) -> set[str]:
    """Activations of which the port has another that makes the same of the numbers at hand, as ReLU6 below 6."""
    found = set()
    for layer in exam.case.spec.layers:
        calls = [v.call for v in exam.last.makers.get((layer.name, 0), ()) if v.call is not None and v.call.kind]
        kinds = {call.kind for call in calls if has(call.kind, Trait.ACTIVATION)}
        if has(layer.type, Trait.ACTIVATION) and kinds and not any(_same_type(kind, layer.type) for kind in kinds):
            found.add(layer.name)
    return found


def _same_type(one: str, other: str) -> bool:
    """Whether two names mean one type: HSwish and HardSwish."""
    return one == other or signature_of(one) is signature_of(other)


def _first_run(exam: Examination) -> Trial:
    """The run that shows how the port wants to be called, and which of its tensors are constants."""
    first = _run(exam, free=True)
    for ask, words in () if _computes(first) else calling.ways(exam.module, [b for b, _ in exam.case.spec.inputs]):
        exam.ask = ask
        other = _run(exam, free=True)
        if _computes(other):
            first = other
            exam.notes.append(words)
            break
        exam.ask = None
    if not _computes(first):
        raise CaffePortError(first.error, hint=calling.hint(exam.case))
    if first.strangers:
        exam.constants = [tensor for tensor, _ in first.strangers]
        first = _run(exam, free=True)
    return first


def _computes(trial: Trial) -> bool:
    """Whether a run came as far as something that a Caffe layer would compute."""
    return not trial.error or any(call.kind for call in trial.calls)


def _run(exam: Examination, free: bool = False) -> Trial:
    trial = Trial(exam.module, exam.tops, exam.put, exam.feed, free, exam.constants)
    if len(exam.verdicts) > _MANY:  # wrong in many layers: do not run once for each
        for index, name in exam.weights.layers.items():
            scale = exam.scales.get(name)
            layer = exam.case.spec.by_name[name]
            trial.expect[index] = ((scale or layer).name, 0), layer.producers
    return trial.run(exam.module, exam.inputs, exam.ask)


def _examine(exam: Examination) -> bool:
    """Examines the first layers that are not in order; whether anything was found."""
    for call in exam.last.expected:
        layer = exam.case.spec.by_name[exam.weights.layers[call.index]]
        if (layer.name, 0) not in exam.verdicts:
            judge_call(exam, layer, call)
    frontier = first_wrong(exam)
    found = [layer for layer in frontier if _judge(exam, layer)]
    crossed(exam)
    if not found and exam.last.error and frontier:
        reason = exam.last.error.partition(": ")[2] or exam.last.error
        exam.conclude(frontier[0], None, f"the port fails here: {reason}", None, None, "the port fails")
        exam.stopped = True
    return bool(found or exam.last.expected)


def _judge(exam: Examination, layer: LayerSpec) -> bool:
    """Finds out what is wrong with a layer; False if nothing can be said yet."""
    region = region_of(exam, layer)
    if exchanged(exam, layer, region):
        return True
    call = partner(exam, layer, region)
    if call is None or not has_its_size(exam, layer, call):
        call = elsewhere(exam, layer) or call
    whole = call is not None and (call.kind or family(layer.type) or _is_right(exam, layer, call))
    if not whole or _is_a_part(exam, layer, call, region):
        value = end_of(exam, layer, region)
        maker = None if value is None else value.call
        if maker is not None and family(layer.type) and likeness(exam, layer, maker) > 0:
            call = maker  # it reads something else altogether
        elif value is not None:
            by_hand(exam, layer, next_found(exam, layer, region)[0], value)
            return True
        call = call or idle(exam, layer)
    if call is not None:
        judge_call(exam, layer, call)
        return True
    return judge_absent(exam, layer, region)


def _is_a_part(exam: Examination, layer: LayerSpec, call: Call | None, region: Sequence[tuple[Call, int]]) -> bool:
    """Whether a call is one of several that compute a layer together, as the steps of an LSTM do."""
    if call is None or any(value.array.numel() == exam.top(layer).size for value in call.outputs):
        return False
    return sum(other.kind == call.kind for other, _ in region) > 1


def _is_right(exam: Examination, layer: LayerSpec, call: Call) -> bool:
    """Whether a call makes a layer's top of the right bottoms."""
    made = again(exam, call, layer)
    return made is not None and exam.same(exam.top(layer), made)
