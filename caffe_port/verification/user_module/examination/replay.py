"""What a call of the port makes of the reference's bottoms, and the known mistakes that would explain it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from caffe_port.signatures.signature import Trait, has
from caffe_port.spec import LayerSpec
from caffe_port.typing import Array
from caffe_port.verification.diagnose import Finding, diagnose, other_parameters
from caffe_port.verification.user_module.examination.state import Examination, like
from caffe_port.verification.user_module.recorder import Call
from caffe_port.verification.user_module.tops import array
from caffe_port.verification.user_module.weights import matrix

_MAX_DIAGNOSED = 20
"""The number of layers of which every known mistake is tried, if their parameters are not the file's."""


def again(exam: Examination, call: Call, layer: LayerSpec) -> Array | None:
    """What a call makes of the reference's bottoms; None if it cannot run on them."""
    if len(call.inputs) != len(layer.producers):
        return None
    bottoms = [exam.tops.tensor(s, v.array) for s, v in zip(layer.producers, call.inputs, strict=True)]
    return attempt(lambda: call.again(*bottoms))


def normalized(exam: Examination, layer: LayerSpec, call: Call) -> Array | None:
    """What the part of a batch norm makes that Caffe calls BatchNorm, on the reference's bottom."""
    bottom = exam.tops.tensor(layer.producers[0], call.inputs[0].array)
    return attempt(lambda: call.again(bottom, weight=None, bias=None))


def attempt(ask: Callable[[], Tensor]) -> Array | None:
    """What a call makes; None if it cannot run."""
    try:
        with torch.no_grad():
            return array(ask())
    except (RuntimeError, ValueError, IndexError, TypeError, StopIteration):
        return None


def cause_of(exam: Examination, layer: LayerSpec, actual: Array, call: Call | None = None) -> str:
    """The known mistake that explains a layer's numbers, on the reference's bottoms; empty if none does."""
    found = find_mistake(exam, layer, actual, call)
    return _other_weight(exam, layer, call) if found is None else str(found)


def _other_weight(exam: Examination, layer: LayerSpec, call: Call | None) -> str:
    """A weight of another size than Caffe's, as where the groups are forgotten."""
    blobs = exam.case.blobs.get(layer.name, ())
    if call is None or call.weight is None or not blobs or call.kind != layer.type:
        return ""
    own, file = tuple(call.weight.shape), tuple(np.shape(blobs[0]))
    if call.weight.numel() == np.size(blobs[0]):
        return ""
    groups, caffe = call.named.get("groups", 1), getattr(getattr(layer.param, "convolution_param", None), "group", 1)
    grouped = f"; its groups is {groups}, Caffe's group is {caffe}" if groups != caffe else ""
    return f"its weight has the shape {own}, Caffe's {file}{grouped}"


def find_mistake(exam: Examination, layer: LayerSpec, actual: Array, call: Call | None = None) -> Finding | None:
    """The same, with what is known of the mistake."""
    blobs = exam.case.blobs.get(layer.name, ())
    parameters = None if call is None else _parameters(layer, call, blobs)
    exam.diagnosed += 1
    if exam.diagnosed > _MAX_DIAGNOSED:
        found = other_parameters(layer, blobs, parameters, exam.case.blobs)
        if found is not None:
            return found
    top = exam.top(layer)
    shaped = actual if actual.ndim == top.ndim else like(actual, top)
    return diagnose(
        layer,
        exam.bottoms(layer),
        blobs,
        shaped,
        top,
        parameters=parameters,
        others={} if parameters is None else exam.case.blobs,
        tolerance=exam.tolerance,
    )


def _parameters(layer: LayerSpec, call: Call, blobs: Sequence[Array]) -> list[Array] | None:
    """The parameters of a call in Caffe's layout; None if they do not have that size."""
    if layer.type == "BatchNorm" and call.kind == "BatchNorm" and len(blobs) == 3:
        mean, variance = call.named.get("running_mean"), call.named.get("running_var")
        if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
            return None
        factor = float(np.asarray(blobs[2]).reshape(-1)[0]) or 1.0
        return [array(mean) * factor, array(variance) * factor, np.asarray(blobs[2])]
    weight, bias = call.weight, call.named.get("bias")
    if weight is None or not blobs or weight.numel() != np.size(blobs[0]):
        return None
    own = array(weight)
    first = np.asarray(blobs[0])
    if has(layer.type, Trait.DENSE):
        p = layer.param.inner_product_param
        own = own.T if call.word in ("matmul", "mm") and own.ndim == 2 else own
        if matrix(layer, first).shape != own.reshape(own.shape[0], -1).shape:
            return None
        own = own.reshape(own.shape[0], -1).T if p.transpose else own
    found = [own.reshape(first.shape) if own.size == first.size else own]
    if len(blobs) > 1:
        second = np.asarray(blobs[1])
        found.append(array(bias).reshape(second.shape) if isinstance(bias, Tensor) else np.zeros_like(second))
    return found
