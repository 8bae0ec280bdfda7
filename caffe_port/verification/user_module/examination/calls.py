"""Judges a call that computes a layer, alone or with the layers after it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from caffe_port.signatures.signature import Trait, has
from caffe_port.spec import LayerSpec
from caffe_port.verification.comparison import Tolerance, difference
from caffe_port.verification.user_module.examination import folded_layers
from caffe_port.verification.user_module.examination.bottoms import judge_bottoms, wrong_wiring
from caffe_port.verification.user_module.examination.placement import partner, path_to, region_of
from caffe_port.verification.user_module.examination.replay import again, cause_of, normalized
from caffe_port.verification.user_module.examination.state import Examination, like
from caffe_port.verification.user_module.recorder import Call, Value
from caffe_port.verification.user_module.tops import array
from caffe_port.verification.user_module.weights import family

_COARSE = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}
"""A dtype of fewer digits -> the relative difference that it explains."""


def judge_call(exam: Examination, layer: LayerSpec, call: Call) -> None:
    """Finds out what is wrong with a call: what it computes, what it reads, or both."""
    value = _output(exam, layer, call)
    if _coarse(exam, layer, call, value) or _normalization(exam, layer, call) or _fold(exam, layer, call, value):
        return
    alone = again(exam, call, layer)
    if alone is not None and exam.same(exam.top(layer), alone):
        judge_bottoms(exam, layer, call, value)
        return
    direct = len(call.inputs) == len(layer.producers) and all(
        source in v.carries for source, v in zip(layer.producers, call.inputs, strict=True)
    )
    actual = array(value.own)
    if direct or alone is None:
        wiring = "" if direct else wrong_wiring(exam, layer, call, actual)
        exam.conclude(layer, value, wiring or cause_of(exam, layer, actual, call), call, actual)
        return
    cause = cause_of(exam, layer, actual, call)
    pads = any(step.word == "pad" for value in call.inputs for step in path_to(value))
    if not cause and not pads:  # what it lacks alone may lie in a padding before it
        cause = cause_of(exam, layer, alone, call)
        actual = alone if cause else actual
    exam.conclude(layer, value, cause or wrong_wiring(exam, layer, call, actual), call, actual)


def _output(exam: Examination, layer: LayerSpec, call: Call) -> Value:
    size = exam.top(layer).size
    fits = [out for out in call.outputs if out.array.numel() == size and not out.carries]
    return fits[0] if fits else call.outputs[0]


def _coarse(exam: Examination, layer: LayerSpec, call: Call, value: Value) -> bool:
    """Numbers of fewer digits."""
    relative = _COARSE.get(value.own.dtype)
    if relative is None:
        read = [_COARSE[v.array.dtype] for v in call.inputs if v.array.dtype in _COARSE]
        relative = max(read, default=None)
    if relative is None:
        return False
    actual, top = array(value.own), exam.top(layer)
    dtype = next(d for d, r in _COARSE.items() if r == relative)
    if actual.size != top.size:
        return False
    wide = Tolerance(relative * 4 * max(1.0, float(np.abs(top).max())), 4 * relative)
    if not difference(top.reshape(-1), actual.reshape(-1), wide).passed:
        return False
    name = str(dtype).removeprefix("torch.")
    exam.conclude(layer, value, f"it computes in {name} (half precision), Caffe in float32", call, actual)
    return True


def _normalization(exam: Examination, layer: LayerSpec, call: Call) -> bool:
    """A batch norm that computes BatchNorm and Scale in one call."""
    scale = exam.scales.get(layer.name)
    if call.kind != "BatchNorm" or scale is None or layer.type != "BatchNorm":
        return False
    if not isinstance(call.named.get("weight"), Tensor) and not isinstance(call.named.get("bias"), Tensor):
        return False
    value = call.outputs[0]
    alone = normalized(exam, layer, call)
    if alone is None:
        return False
    scaled = array(_affine(exam.tops.tensor((layer.name, 0), call.outputs[0].array), call))
    reads = bool(call.inputs[0].carries & set(layer.producers))
    fine = exam.same(exam.top(layer), alone), exam.same(exam.top(scale), scaled)
    if all(fine):
        if reads:
            return False
        judge_bottoms(exam, layer, call, value, put=(scale.name, 0))
        exam.alone[scale.name] = scaled
        return True
    for one, made, right in zip((layer, scale), (alone, scaled), fine, strict=True):
        if right:
            exam.alone[one.name] = made
        else:
            cause = cause_of(exam, one, made, call if one is layer else None)
            cause = cause or (_scale_cause(exam, call, scale) if one is scale else "")
            exam.conclude(one, value, cause, call, made, put=(scale.name, 0))
    exam.put[value.key] = (scale.name, 0)
    return True


def _scale_cause(exam: Examination, call: Call, scale: LayerSpec) -> str:
    blobs = [np.asarray(b).reshape(-1) for b in exam.case.blobs[scale.name]]
    own = [call.named.get(k) for k in ("weight", "bias")]
    for what, mine, file in zip(("scale", "bias"), own, blobs, strict=False):
        if isinstance(mine, Tensor) and mine.numel() == file.size:
            found = difference(file, array(mine).reshape(-1), Tolerance(1e-9, 1e-6))
            if not found.passed:
                return f"its {what} differs from the file's ({found.outside} of {found.count} values)"
    return ""


def _affine(x: Tensor, call: Call) -> Tensor:
    """The part of a batch norm that Caffe calls Scale."""
    weight, bias = call.named.get("weight"), call.named.get("bias")
    shape = (1, -1, *([1] * (x.ndim - 2)))
    x = x * weight.detach().reshape(shape) if isinstance(weight, Tensor) else x
    return x + bias.detach().reshape(shape) if isinstance(bias, Tensor) else x


def _fold(exam: Examination, layer: LayerSpec, call: Call, value: Value) -> bool:
    """Layers that are folded into the weights of a call, and wrongly."""
    if family(layer.type) != "weight" or not exam.keep:
        return False
    after = _foldable(exam, layer)
    made = like(array(value.own), exam.top(layer))
    if not after or made.shape != exam.top(layer).shape:
        return False
    steps = [exam.top(one) for one in (layer, *after)]
    n = folded_layers.how_many(steps, made, exam.tolerance)
    if not n:
        return False
    folded = after[:n]
    last = folded[-1]
    cause = folded_layers.cause_of(exam.case, layer, folded, exam.tops.arrays, made)
    exam.conclude(last, value, cause, call, made, put=(last.name, 0))
    exam.verdicts[last.name, 0].folded = (layer, *folded)
    return True


def _foldable(exam: Examination, layer: LayerSpec) -> tuple[LayerSpec, ...]:
    """The affine layers directly after one that no call of the port computes."""
    present = set(exam.weights.layers.values())
    found: list[LayerSpec] = []
    last = exam.sole.get((layer.name, 0))
    while last is not None and has(last.type, Trait.AFFINE) and len(last.bottoms) == 1 and last.name not in present:
        if partner(exam, last, region_of(exam, layer), strong=True) is not None:
            break
        found.append(last)
        last = exam.sole.get((last.name, 0))
    return tuple(found)
