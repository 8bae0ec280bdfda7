"""Which layers are in order in a run of the port.

A layer is *found* if a tensor of the port holds its top, and in order if it is found or if what reads it is: the same
may be computed with other operations.
"""

from __future__ import annotations

import numpy as np

from caffe_port.signatures.signature import Trait, has, has_weights
from caffe_port.spec import LayerSpec, Producer
from caffe_port.verification.references.numpy_formulas import compute
from caffe_port.verification.user_module.examination import outputs
from caffe_port.verification.user_module.examination.placement import carriers, region_of
from caffe_port.verification.user_module.examination.state import Examination
from caffe_port.verification.user_module.recorder import Call
from caffe_port.verification.user_module.tops import tops_of
from caffe_port.verification.user_module.weights import family


def consider(exam: Examination) -> None:
    """Finds out which layers are in order in the last run."""
    exam.fine = {}
    exam.otherwise = set()
    exam.odd = _odd_calls(exam)
    exam.apart, exam.left_out = set(), {}
    if not exam.last.error:
        exam.apart = _apart(exam)
        exam.left_out = _left_out(exam)
    for layer in reversed(exam.case.spec.layers):
        exam.fine[layer.name] = all(_fine(exam, layer, producer) for producer in tops_of(layer))


def _fine(exam: Examination, layer: LayerSpec, producer: Producer) -> bool:
    if layer.is_input or producer in exam.verdicts or exam.found(producer):
        return True
    if layer.name in exam.apart or layer.name in exam.left_out:
        return True
    if producer not in exam.tops.arrays:
        return True
    readers = [reader for reader in exam.tops.readers.get(producer, ()) if _reads_numbers(exam, reader, producer)]
    if producer in exam.tops.readers and not any(r.tops for r in exam.tops.readers[producer]):
        return True  # only Silence and the like read it: nobody needs it
    there = all(exam.fine[reader.name] and _is_there(exam, reader) for reader in readers)
    if readers and there and layer.name not in exam.odd:
        exam.otherwise.add(producer)
        return True
    return False


def _apart(exam: Examination) -> set[str]:
    """Layers at the end of the net that join or divide their bottoms, which the port returns as they are."""
    returned = {producer for value in exam.last.returned for producer in value.carries}
    found = set()
    for layer in exam.case.spec.layers:
        tops = [p for p in tops_of(layer) if p in exam.tops.arrays]
        several = len(layer.producers) > 1 or len(tops) > 1
        if not (several and has(layer.type, Trait.REARRANGES) and all(map(exam.tops.is_output, tops))):
            continue
        same = sum(exam.tops.arrays[p].size for p in tops) == sum(b.size for b in exam.bottoms(layer))
        if same and not any(map(exam.found, tops)) and returned.issuperset(layer.producers):
            found.add(layer.name)
    return found


def _left_out(exam: Examination) -> dict[str, tuple[str, ...]]:
    """Layers that nothing in the port computes, and that only outputs need which it does not return."""
    returned = set(outputs.returns(exam))
    wanted: dict[str, set[Producer]] = {}
    found = {}
    for layer in reversed(exam.case.spec.layers):
        tops = [p for p in tops_of(layer) if p in exam.tops.arrays]
        needs = {p for p in tops if exam.tops.is_output(p)}
        for producer in tops:
            for reader in exam.tops.readers.get(producer, ()):
                needs |= wanted.get(reader.name, set())
        wanted[layer.name] = needs
        alone = bool(needs) and not needs & returned and not any(name in exam.apart for name, _ in needs)
        if alone and len(returned) and not any(map(exam.found, tops)) and not region_of(exam, layer):
            found[layer.name] = tuple(sorted(name for name, _ in needs))
    return found


def _reads_numbers(exam: Examination, reader: LayerSpec, producer: Producer) -> bool:
    """Whether a layer reads the numbers of a top, and not only its shape, as Crop does of its second bottom."""
    if not reader.tops:
        return False
    key = (reader.name, producer)
    if key not in exam.shape_only:
        exam.shape_only[key] = False
        if len(reader.producers) > 1:
            whole = exam.bottoms(reader)
            without = [np.zeros_like(b) if s == producer else b for s, b in zip(reader.producers, whole, strict=True)]
            blobs = exam.case.blobs.get(reader.name, ())
            made, right = compute(reader, without, blobs)[0], compute(reader, whole, blobs)[0]
            same = made is not None and right is not None and all(map(np.array_equal, made, right))
            exam.shape_only[key] = same and bool(np.any(exam.tops.arrays[producer]))
    return not exam.shape_only[key]


def _is_there(exam: Examination, layer: LayerSpec) -> bool:
    """Whether a layer's own numbers, or those after it, were found: not a verdict alone."""
    return any(exam.found(p) or p in exam.otherwise for p in tops_of(layer))


def _odd_calls(exam: Examination) -> dict[str, int]:
    """Layers that a call of the port computes with other numbers: what comes after must not hide them.

    A softmax that is saturated, or a max pooling, may. Not so where the next layer is affine and the layer has
    weights: a bias may lie there.
    """
    found: dict[str, int] = {}
    for layer in exam.case.spec.layers:
        producer = (layer.name, 0)
        if producer not in exam.tops.arrays or has(layer.type, Trait.NO_NUMBERS) or not layer.producers:
            continue
        if exam.found(producer):
            continue
        reader = exam.sole.get(producer)
        if has_weights(layer.type) and reader is not None and has(reader.type, Trait.AFFINE):
            continue
        readers = [call for value in carriers(exam, layer.producers[0]) for call, _ in exam.last.reads(value)]
        odd = next((call for call in readers if _stands_in(exam, layer, call)), None)
        if odd is not None:
            found[layer.name] = odd.index
    return found


def _stands_in(exam: Examination, layer: LayerSpec, call: Call) -> bool:
    """Whether a call is a layer by its kind, its bottoms and its size, but makes nothing known."""
    curves = has(call.kind, Trait.ACTIVATION) and has(layer.type, Trait.ACTIVATION)
    if not call.kind or not (call.kind == layer.type or curves) or call.index in exam.weights.odd:
        return False
    if family(layer.type) and exam.weights.layers.get(call.index, layer.name) != layer.name:
        return False
    reads = len(call.inputs) == len(layer.producers) and all(
        source in value.carries for source, value in zip(layer.producers, call.inputs, strict=True)
    )
    same = call.outputs[0].array.numel() == exam.tops.arrays[layer.name, 0].size
    return reads and same and not call.outputs[0].made


def first_wrong(exam: Examination) -> list[LayerSpec]:
    """Layers that are not in order, though all that they read is."""
    return [
        layer
        for layer in exam.case.spec.layers
        if not exam.fine[layer.name] and all(exam.fine[name] for name, _ in layer.producers)
    ]
