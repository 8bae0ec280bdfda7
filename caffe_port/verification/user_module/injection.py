"""Runs a hand-written port on the reference's tops, so that every call gets correct inputs and is compared alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from caffe_port.signatures.signature import Trait, has, has_weights, signature_of
from caffe_port.spec import LayerSpec, Producer
from caffe_port.typing import Array
from caffe_port.verification.comparison import Row, Tolerance, difference, failure
from caffe_port.verification.diagnose import diagnose
from caffe_port.verification.references.reference import Case
from caffe_port.verification.user_module.align import PAIRED, Pair, alike
from caffe_port.verification.user_module.folded_layers import cause_of, how_many, like, told
from caffe_port.verification.user_module.recorder import Call, Recorder


class Injector(Recorder):
    """Runs a module on the reference's tops.

    The result of every call that is paired with a layer is replaced by the reference's top of that layer, so that each
    call gets correct inputs, through the module's own code between the calls. A call that Caffe does not have returns
    its own input, as if it were not there.

    Attributes:
        pairs: the given pairs; layers found to be folded into the weights of a call are in its ``folded``.
        alone: layer name -> output of the call for the reference's bottoms.
    """

    def __init__(
        self, module: nn.Module, case: Case, pairs: Sequence[Pair], tops: Mapping[Producer, Array], tolerance: Tolerance
    ) -> None:
        super().__init__(module)
        self.case, self.tops, self.tolerance = case, tops, tolerance
        self.pairs = list(pairs)
        self.places = {pair.call.index: n for n, pair in enumerate(pairs) if pair.call is not None}
        present = {layer.name for pair in pairs if pair.call is not None for layer in pair.layers}
        self.missing = {layer.name for layer in case.spec.layers if _must_have_partner(layer)} - present
        self.alone: dict[str, Array] = {}

    def answer(self, call: Call, made: Any) -> Any:
        place = self.places.get(call.index)
        pair = Pair(None, call) if place is None else self.pairs[place]
        layer = pair.layer
        if layer is None:
            return call.inputs[0] if _can_be_skipped(call.kind) else made
        inputs = call.inputs
        if any(producer[0] in self.missing for producer in layer.producers):
            bottoms = [torch.tensor(np.asarray(self.tops[s], np.float32)) for s in layer.producers]
            inputs = tuple(
                b.reshape(i.shape) if b.numel() == i.numel() else b for b, i in zip(bottoms, inputs, strict=False)
            )
        if pair.scale is None:
            made_alone = call.again(*(x.clone() for x in inputs)).numpy()
            if pair.after and place is not None:
                steps = [np.asarray(self.tops[one.name, 0]) for one in (layer, *pair.after)]
                folded = pair.after[: how_many(steps, like(made_alone, steps[0]), self.tolerance)]
                pair = self.pairs[place] = dataclasses.replace(pair, folded=folded)
                self.missing -= {one.name for one in folded}
            self.alone[pair.layers[-1].name] = made_alone
        else:
            normalized = torch.tensor(np.asarray(self.tops[layer.name, 0], np.float32))
            self.alone[layer.name] = call.again(inputs[0].clone(), weight=None, bias=None).numpy()
            self.alone[pair.scale.name] = _affine(normalized, call).numpy()
        top = torch.tensor(np.asarray(self.tops[pair.layers[-1].name, 0], np.float32))
        answer = top.reshape(call.output.shape) if alike(top.shape, call.output.shape) else top
        return answer if isinstance(made, Tensor) else (answer, *made[1:])


def _must_have_partner(layer: LayerSpec) -> bool:
    return layer.type in PAIRED and not has(layer.type, Trait.NO_NUMBERS)


def _can_be_skipped(kind: str) -> bool:
    """Whether an extra call of a kind can be left out without the module noticing."""
    signature = signature_of(kind)
    return kind in PAIRED and signature is not None and signature.bottoms == (1, 1) and not has_weights(kind)


def _affine(x: Tensor, call: Call) -> Tensor:
    """The part of a batch norm that Caffe calls Scale."""
    weight, bias = call.named.get("weight"), call.named.get("bias")
    shape = (1, -1, *([1] * (x.ndim - 2)))
    x = x * weight.detach().reshape(shape) if isinstance(weight, Tensor) else x
    return x + bias.detach().reshape(shape) if isinstance(bias, Tensor) else x


def rows(
    case: Case, pairs: Sequence[Pair], tops: Mapping[Producer, Array], alone: Mapping[str, Array], tolerance: Tolerance
) -> Iterator[Row]:
    """A row for every Caffe layer, and one for every call that Caffe does not have.

    Args:
        case: the Caffe net.
        pairs: those of the :class:`Injector`, after its run.
        tops: the reference's tops, including the inputs.
        alone: the output of each call for the reference's bottoms, see :class:`Injector`.
    """
    by_layer = {layer.name: pair for pair in pairs if pair.call is not None for layer in pair.layers}
    extra = _extra_after(pairs)
    yield from (_extra(call, None) for call in extra.get("", ()))
    for layer in case.spec.layers:
        pair = by_layer.get(layer.name)
        if not layer.is_input:
            if pair is not None:
                yield _row(case, layer, pair, tops, alone, tolerance)
            else:
                yield _without_partner(layer)
        yield from (_extra(call, layer) for call in extra.get(layer.name, ()))


_NO_COUNTERPART = "no counterpart in the port"


def _without_partner(layer: LayerSpec) -> Row:
    top = layer.tops[0] if layer.tops else ""
    if _must_have_partner(layer):
        cause = f"the port has no {layer.type} here"
        return Row(layer.name, 0, layer.type, top, layer.where, None, failure(_NO_COUNTERPART), cause=cause)
    note = f"{_NO_COUNTERPART}; changes no value in TEST" if has(layer.type, Trait.NO_NUMBERS) else _NO_COUNTERPART
    return Row(layer.name, 0, layer.type, top, layer.where, note=note)


def _extra_after(pairs: Sequence[Pair]) -> dict[str, list[Call]]:
    """Calls without a layer, by the name of the layer before them."""
    found: dict[str, list[Call]] = {}
    last = ""
    for pair in pairs:
        if pair.layer is not None:
            last = pair.layers[-1].name
        elif pair.call is not None:
            found.setdefault(last, []).append(pair.call)
    return found


def _extra(call: Call, after: LayerSpec | None) -> Row:
    where = f"after '{after.name}'" if after else "at the beginning"
    what = f"the port has an extra {call.kind} {where}: {call.name}"
    shapes = f"{tuple(call.inputs[0].shape)} to {tuple(call.output.shape)}" if call.inputs else ""
    if call.named.get("training") is True and call.kind == "Dropout":
        what += ", active even in eval()"
    elif has(call.kind, Trait.NO_NUMBERS):
        return Row(call.name, 0, call.kind, note=what)
    return Row(call.name, 0, call.kind, free=failure(f"an extra layer, {shapes}"), cause=what)


def _row(
    case: Case,
    layer: LayerSpec,
    pair: Pair,
    tops: Mapping[Producer, Array],
    alone: Mapping[str, Array],
    tolerance: Tolerance,
) -> Row:
    call, expected = pair.call, tops[layer.name, 0]
    assert call is not None
    last = pair.layers[-1]
    if pair.folded and layer is not last:
        into = pair.layers[0].name
        note = f"folded into the weights of '{into}'" if layer.name != into else f"compared as '{last.name}'"
        note += f"; port: {call.name}" if layer.name == into else ""
        return Row(layer.name, 0, layer.type, layer.tops[0], layer.where, note=note)
    free = difference(expected, like(call.output.numpy(), expected), tolerance) if layer is last else None
    words = f"port: {call.name}" + (f", with {told(pair.folded)} folded into its weights" if pair.folded else "")
    if layer.name not in alone:
        return Row(layer.name, 0, layer.type, layer.tops[0], layer.where, free, None, words)
    actual = like(alone[layer.name], expected)
    isolated = difference(expected, actual, tolerance)
    finding: object = None
    if not isolated.passed and pair.folded:
        finding = cause_of(case, pair, tops, actual)
    elif not isolated.passed:
        bottoms = [np.asarray(tops[s], np.float32) for s in layer.producers]
        finding = diagnose(layer, bottoms, case.blobs.get(layer.name, ()), actual, expected, tolerance=tolerance)
    cause = str(finding) if finding else ""
    return Row(layer.name, 0, layer.type, layer.tops[0], layer.where, free, isolated, words, cause)
