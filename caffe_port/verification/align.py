"""Somebody's own port beside the Caffe net: which of its calls is which layer, and what is different.

Layers are paired by what they are: kind, parameter shapes and values, output shape and order together, never by their
position alone. So an extra layer is an extra layer, and not the reason why all that follows seems wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from caffe_port.caffemodel import Array
from caffe_port.spec import SOURCE_TYPES, LayerSpec, Source
from caffe_port.verification.comparison import Row, Tolerance, difference, failure
from caffe_port.verification.diagnose import diagnose
from caffe_port.verification.recorder import Call, Recorder
from caffe_port.verification.reference import Case

_ACTIVATIONS = frozenset(("ReLU", "PReLU", "ELU", "Sigmoid", "TanH", "ReLU6", "Swish", "BNLL"))
_PAIRED = _ACTIVATIONS | frozenset(
    ("Convolution", "Deconvolution", "InnerProduct", "BatchNorm", "Pooling", "Softmax", "Dropout", "LRN", "Concat",
     "Eltwise")
)  # fmt: skip
_WITHOUT_NUMBERS = frozenset(("Dropout", "Flatten", "Reshape", "Split", "Silence"))
"""Types that change no number in TEST: one more or less of them is worth a note, not a failure."""

_MISSING = {"Convolution": -9.0, "Deconvolution": -9.0, "InnerProduct": -9.0, "BatchNorm": -4.0, "Dropout": -0.1}
"""What it costs the alignment to leave a layer without a partner; 1 for what is not named."""


@dataclass(frozen=True)
class Pair:
    """A Caffe layer and a call, one of which may be missing. ``scale`` is the Scale behind a BatchNorm."""

    layer: LayerSpec | None
    call: Call | None
    scale: LayerSpec | None = None


def align(case: Case, calls: Sequence[Call]) -> list[Pair]:
    """Pairs the net's layers with a module's calls, keeping the order of both; the best total score wins."""
    apart = any(call.kind == "Scale" for call in calls)  # else the batch norms do it, as is usual in PyTorch
    scales = {} if apart else _scales(case)
    merged = {scale.name for scale in scales.values()}
    types = _PAIRED | {"Scale"} if apart else _PAIRED
    layers = [layer for layer in case.spec.layers if layer.type in types and layer.name not in merged]
    scores = np.zeros((len(layers) + 1, len(calls) + 1))
    steps = np.zeros(scores.shape, np.int8)  # 1: pair, 2: the layer alone, 3: the call alone
    scores[1:, 0] = np.cumsum([_alone(layer.type) for layer in layers])
    scores[0, 1:] = np.cumsum([_alone(call.kind) for call in calls])
    steps[1:, 0], steps[0, 1:] = 2, 3
    for i, layer in enumerate(layers, 1):
        for j, call in enumerate(calls, 1):
            options = (scores[i - 1, j - 1] + _likeness(case, layer, call),
                       scores[i - 1, j] + _alone(layer.type), scores[i, j - 1] + _alone(call.kind))  # fmt: skip
            steps[i, j] = 1 + int(np.argmax(options))
            scores[i, j] = max(options)
    pairs: list[Pair] = []
    i, j = len(layers), len(calls)
    while i or j:
        step = steps[i, j]
        i, j = i - (step != 3), j - (step != 2)
        layer_of = layers[i] if step != 3 else None
        pairs.append(Pair(layer_of, calls[j] if step != 2 else None, scales.get(layer_of.name) if layer_of else None))
    return pairs[::-1]


def _scales(case: Case) -> dict[str, LayerSpec]:
    """BatchNorm's name -> the Scale that alone reads it."""
    found = {}
    for layer in case.spec.layers:
        if layer.type == "Scale" and len(layer.sources) == 1:
            before = case.spec.by_name[layer.sources[0][0]]
            readers = [other for other in case.spec.layers if (before.name, 0) in other.sources]
            if before.type == "BatchNorm" and readers == [layer]:
                found[before.name] = layer
    return found


def _alone(kind: str) -> float:
    return _MISSING.get(kind, -1.0)


def _likeness(case: Case, layer: LayerSpec, call: Call) -> float:
    kinds = layer.type, call.kind
    if kinds[0] != kinds[1] and not set(kinds) <= _ACTIVATIONS:
        return -100.0
    score = 2.0 if kinds[0] == kinds[1] else 1.0
    if tuple(call.output.shape[1:]) == tuple(case.shapes[layer.name, 0][1:]):
        score += 2.0
    blobs, weight = case.blobs.get(layer.name), call.named.get("weight")
    if layer.type in ("Convolution", "Deconvolution", "InnerProduct") and blobs and isinstance(weight, Tensor):
        own = np.asarray(blobs[0])
        if own.size != weight.numel():
            return -20.0
        score += 4.0 + 4.0 * (tuple(own.shape) == tuple(weight.shape))
        same = np.abs(own.reshape(-1)[:64] - weight.detach().cpu().numpy().reshape(-1)[:64]).max(initial=0) < 1e-5
        score += 6.0 * bool(same)
    if layer.type == "BatchNorm" and blobs and isinstance(mean := call.named.get("running_mean"), Tensor):
        score += 4.0 if np.asarray(blobs[0]).size == mean.numel() else -20.0
    return score


def copy_weights(case: Case, pairs: Sequence[Pair]) -> list[str]:
    """Copies Caffe's parameters into the tensors that the paired calls read.

    Returns:
        What could not be copied, a sentence each.
    """
    notes = []
    with torch.no_grad():
        for pair in pairs:
            if pair.layer is None or pair.call is None or pair.layer.name not in case.blobs:
                continue
            for name, values in _targets(case, pair).items():
                target = pair.call.named.get(name)
                if not isinstance(target, Tensor):
                    continue
                if values is None:
                    target.zero_()
                    notes.append(f"{pair.call.name} has a {name}, Caffe's '{pair.layer.name}' has none: set to 0")
                elif values.size != target.numel():
                    notes.append(f"{pair.call.name}: {name} {tuple(target.shape)} cannot hold Caffe's {values.shape}")
                else:
                    target.copy_(torch.tensor(np.asarray(values, np.float32)).reshape(target.shape))
    return notes


def _targets(case: Case, pair: Pair) -> dict[str, Array | None]:
    """Argument of the call -> what Caffe has for it; None where the call has a bias too many."""
    assert pair.layer is not None
    blobs = [np.asarray(b) for b in case.blobs[pair.layer.name]]
    if pair.layer.type == "BatchNorm":
        factor = float(blobs[2].reshape(-1)[0])
        values: dict[str, Array | None] = {
            "running_mean": blobs[0] / (factor or 1.0), "running_var": blobs[1] / (factor or 1.0)
        }  # fmt: skip
        if pair.scale is not None:
            gamma, *beta = (np.asarray(b) for b in case.blobs[pair.scale.name])
            values |= {"weight": gamma, "bias": beta[0] if beta else np.zeros_like(gamma)}
        return values
    if pair.layer.type == "InnerProduct" and pair.layer.param.inner_product_param.transpose:
        outputs = pair.layer.param.inner_product_param.num_output
        blobs[0] = blobs[0].reshape(-1, outputs).T
    return {"weight": blobs[0], "bias": blobs[1] if len(blobs) > 1 else None}


# -- comparing --------------------------------------------------------------------------------------------------------


class Injector(Recorder):
    """Runs a module on the reference's tops: every call that stands for a layer is answered with what the reference
    made of that layer, so each runs on the right bottoms, through the module's own code between them.

    A call that Caffe does not have is answered with its own input, as if it were not there.

    Attributes:
        alone: layer name -> what the call made of the reference's bottoms.
    """

    def __init__(self, module: nn.Module, case: Case, pairs: Sequence[Pair], tops: Mapping[Source, Array]) -> None:
        super().__init__(module)
        self.case, self.tops = case, tops
        self.pairs = [pair for pair in pairs if pair.call is not None]
        present = {layer.name for pair in self.pairs for layer in (pair.layer, pair.scale) if layer is not None}
        self.missing = {layer.name for layer in case.spec.layers if layer.type in _PAIRED - _WITHOUT_NUMBERS} - present
        self.alone: dict[str, Array] = {}

    def answer(self, call: Call, made: Any) -> Any:
        pair = self.pairs[len(self.calls) - 1] if len(self.calls) <= len(self.pairs) else Pair(None, call)
        layer = pair.layer
        if layer is None:
            return call.inputs[0] if call.kind in _SKIPPED else made
        inputs = call.inputs
        if any(source[0] in self.missing for source in layer.sources):
            bottoms = [torch.tensor(np.asarray(self.tops[s], np.float32)) for s in layer.sources]
            inputs = tuple(
                b.reshape(i.shape) if b.numel() == i.numel() else b for b, i in zip(bottoms, inputs, strict=False)
            )
        last = layer if pair.scale is None else pair.scale
        if pair.scale is None:
            self.alone[layer.name] = call.again(*(x.clone() for x in inputs)).numpy()
        else:
            normalised = torch.tensor(np.asarray(self.tops[layer.name, 0], np.float32))
            self.alone[layer.name] = call.again(inputs[0].clone(), weight=None, bias=None).numpy()
            self.alone[pair.scale.name] = _affine(normalised, call).numpy()
        top = torch.tensor(np.asarray(self.tops[last.name, 0], np.float32))
        answer = top.reshape(call.output.shape) if _alike(top.shape, call.output.shape) else top
        return answer if isinstance(made, Tensor) else (answer, *made[1:])


_SKIPPED = _PAIRED - {"Convolution", "Deconvolution", "InnerProduct", "Concat", "Eltwise"}
"""Kinds of an extra call that can be left out without the module noticing."""


def _affine(x: Tensor, call: Call) -> Tensor:
    """The part of a batch norm that Caffe calls Scale."""
    weight, bias = call.named.get("weight"), call.named.get("bias")
    shape = (1, -1, *([1] * (x.ndim - 2)))
    x = x * weight.detach().reshape(shape) if isinstance(weight, Tensor) else x
    return x + bias.detach().reshape(shape) if isinstance(bias, Tensor) else x


def rows(
    case: Case, pairs: Sequence[Pair], tops: Mapping[Source, Array], alone: Mapping[str, Array], tolerance: Tolerance
) -> Iterator[Row]:
    """A row for every Caffe layer, and one for every call that Caffe does not have.

    Args:
        case: the Caffe net.
        pairs: of :func:`align`, from a run with the parameters in place.
        tops: the reference's, inputs included.
        alone: what each call made of the reference's bottoms, see :class:`Injector`.
    """
    by_layer = {layer.name: pair for pair in pairs for layer in (pair.layer, pair.scale) if layer is not None}
    extra = _extra_after(pairs)
    yield from (_extra(call, None) for call in extra.get("", ()))
    for layer in case.spec.layers:
        pair = by_layer.get(layer.name)
        if layer.type not in SOURCE_TYPES:
            if pair is not None and pair.call is not None:
                yield _row(case, layer, pair, tops, alone, tolerance)
            else:
                yield _without_partner(layer)
        yield from (_extra(call, layer) for call in extra.get(layer.name, ()))


def _without_partner(layer: LayerSpec) -> Row:
    top = layer.tops[0] if layer.tops else ""
    if layer.type in _PAIRED - _WITHOUT_NUMBERS:
        cause = f"the port has no {layer.type} here"
        return Row(layer.name, 0, layer.type, top, layer.where, None, failure("has no partner"), cause=cause)
    note = "the port has none; it changes no number in TEST" if layer.type in _WITHOUT_NUMBERS else "has no partner"
    return Row(layer.name, 0, layer.type, top, layer.where, note=note)


def _extra_after(pairs: Sequence[Pair]) -> dict[str, list[Call]]:
    """Calls without a layer, by the name of the layer before them."""
    found: dict[str, list[Call]] = {}
    last = ""
    for pair in pairs:
        if pair.layer is not None:
            last = pair.scale.name if pair.scale else pair.layer.name
        elif pair.call is not None:
            found.setdefault(last, []).append(pair.call)
    return found


def _extra(call: Call, after: LayerSpec | None) -> Row:
    where = f"behind '{after.name}'" if after else "at the beginning"
    what = f"the port has an extra {call.kind} {where}: {call.name}"
    shapes = f"{tuple(call.inputs[0].shape)} to {tuple(call.output.shape)}" if call.inputs else ""
    if call.named.get("training") is True and call.kind == "Dropout":
        what += ", active even in eval()"
    elif call.kind in _WITHOUT_NUMBERS:
        return Row(call.name, 0, call.kind, note=what)
    return Row(call.name, 0, call.kind, free=failure(f"an extra layer, {shapes}"), cause=what)


def _row(
    case: Case, layer: LayerSpec, pair: Pair, tops: Mapping[Source, Array], alone: Mapping[str, Array],
    tolerance: Tolerance,
) -> Row:  # fmt: skip
    call, expected = pair.call, tops[layer.name, 0]
    assert call is not None
    free = None
    if pair.scale is None or layer is pair.scale:
        free = difference(expected, _like(call.output.numpy(), expected), tolerance)
    words = f"port: {call.name}"
    if layer.name not in alone:
        return Row(layer.name, 0, layer.type, layer.tops[0], layer.where, free, None, words)
    actual = _like(alone[layer.name], expected)
    isolated = difference(expected, actual, tolerance)
    finding = None
    if not isolated.passed:
        bottoms = [np.asarray(tops[s], np.float32) for s in layer.sources]
        finding = diagnose(layer, bottoms, case.blobs.get(layer.name, ()), actual, expected, tolerance=tolerance)
    cause = str(finding) if finding else ""
    return Row(layer.name, 0, layer.type, layer.tops[0], layer.where, free, isolated, words, cause)


def _alike(one: Sequence[int], other: Sequence[int]) -> bool:
    return [n for n in one if n != 1] == [n for n in other if n != 1]


def _like(actual: Array, expected: Array) -> Array:
    """A flat vector in place of (N, C, 1, 1), or the other way round, is the same top."""
    return actual.reshape(expected.shape) if _alike(actual.shape, expected.shape) else actual


def training_notes(pairs: Sequence[Pair]) -> Iterator[str]:
    """What differs in training only, a sentence each."""
    for pair in pairs:
        layer, call = pair.layer, pair.call
        if layer is None or call is None:
            continue
        if layer.type == "Dropout" and isinstance(call.named.get("p"), (int, float)):
            ours, theirs = call.named["p"], layer.param.dropout_param.dropout_ratio
            if abs(ours - theirs) > 1e-6:
                yield f"{call.name}: dropout ratio {ours:g}, Caffe's '{layer.name}' has {theirs:g}"
        if layer.type == "BatchNorm" and call.named.get("momentum") is not None:
            momentum, fraction = call.named["momentum"], layer.param.batch_norm_param.moving_average_fraction
            if abs(momentum - (1 - fraction)) > 1e-6:
                yield (f"{call.name}: momentum {momentum:g}, Caffe's '{layer.name}' has moving_average_fraction "
                       f"{fraction:g}, which is momentum {1 - fraction:g}")  # fmt: skip
