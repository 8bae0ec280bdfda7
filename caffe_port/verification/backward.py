"""Compares the gradients of the inputs and of every parameter with a trace that contains Caffe's."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from caffe_port.errors import CaffePortError
from caffe_port.formats.caffemodel import shapes_agree
from caffe_port.layers.layer import Layer
from caffe_port.net.net import LayerRun, Net
from caffe_port.net.plan import Step
from caffe_port.signatures.signature import Trait, has
from caffe_port.spec import LayerSpec, NetSpec
from caffe_port.typing import Array
from caffe_port.verification.comparison import Row, Tolerance, difference, failure
from caffe_port.verification.references.reference import Case
from caffe_port.verification.references.trace import Trace
from caffe_port.verification.runner import draws, may_draw


def gradient_rows(net: Net, case: Case, trace: Trace, tolerance: Tolerance) -> Iterator[Row]:
    """Runs the net forward and backward once on the trace's inputs and compares.

    Args:
        net: the net in the phase of the trace, with the parameters that Caffe started from.
        case: provides the inputs.
        trace: with ``input_gradients`` or ``parameter_gradients``; ``changed_parameters`` are compared too.

    Yields:
        Rows of type ``gradient`` (layer: the input blob, or the layer with the parameter's number as top) and
        ``parameter after forward``. What the trace does not hold is not compared, nor what lies before a layer that
        draws random numbers: its gradient is that of other numbers. What fails is compared with two other gradients,
        too: the one that stops at the layers whose backward pass does nothing in their fork, and the one of the trace's
        own tops. At the edge of a ReLU or a maximum, rounding decides which way a gradient goes, in Caffe as here.

    Raises:
        CaffePortError: the trace contains no gradients.
    """
    if not (trace.input_gradients or trace.parameter_gradients):
        raise CaffePortError(
            "contains no gradients",
            trace.provenance.get("file", ""),
            "Record a trace with gradients: run the script of `caffe-port dump --script` with --backward.",
        )
    stops = frozenset(layer.name for layer in case.spec.layers if has(layer.type, Trait.NO_BACKWARD))
    stopped = f"the gradient stops at {', '.join(sorted(stops))}, whose backward pass does nothing in their fork"
    followed = "of the reference's own tops; of ours, rounding decides otherwise at the edge of a ReLU or a maximum"
    others = [(stops, False, stopped)] if stops else []
    others += [(frozenset(), True, followed)]
    others += [(stops, True, f"{stopped}; {followed}")] if stops else []
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    rows = list(_rows(net, case, trace, tolerance, frozenset(), False))
    for stops_at, follows, note in others:
        if all(row.status != "failed" for row in rows):
            break
        for name, buffer in net.named_buffers():
            buffer.copy_(buffers[name])
        tried = _rows(net, case, trace, tolerance, stops_at, follows)
        rows = [
            dataclasses.replace(other, note=note) if row.status == "failed" and other.status == "passed" else row
            for row, other in zip(rows, tried, strict=True)
        ]
    yield from rows


def _rows(
    net: Net, case: Case, trace: Trace, tolerance: Tolerance, stops: Collection[str], follows: bool
) -> Iterator[Row]:
    inputs = {b: torch.tensor(case.inputs[b], dtype=torch.float32, requires_grad=True) for b in net.plan.inputs}
    net.zero_grad(set_to_none=True)
    terms, before_chance = _terms(net, list(inputs.values()), case, trace, tolerance, stops, follows)
    modules = net.caffe_layers()
    for (name, j), expected in trace.changed_parameters.items():
        blob = _blob(modules, name, j)
        actual = None if blob is None else modules[name].get_blob(blob).detach().cpu().numpy()
        yield _row(name, j, "parameter after forward", blob or "", expected, actual, tolerance)
    if terms:
        torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]
    makers = dict(case.spec.inputs)
    for blob_name, expected in trace.input_gradients.items():
        if blob_name in makers and makers[blob_name][0] in before_chance:
            yield Row(blob_name, 0, "gradient", blob_name, note=before_chance[makers[blob_name][0]])
        elif blob_name in inputs:
            yield _row(blob_name, 0, "gradient", blob_name, expected, _numbers(inputs[blob_name].grad), tolerance)
        else:
            yield Row(blob_name, 0, "gradient", note="the net has no such input")
    for (name, j), expected in trace.parameter_gradients.items():
        blob = _blob(modules, name, j)
        if blob is None:
            yield Row(name, j, "gradient", note="the net has no such parameter")
        elif name in before_chance:
            yield Row(name, j, "gradient", blob, note=before_chance[name])
        else:
            yield _row(name, j, "gradient", blob, expected, _gradient(modules[name], blob), tolerance)
    if trace.parameter_gradients or trace.input_gradients:
        yield from _not_recorded(modules, trace)


def _not_recorded(modules: dict[str, Layer], trace: Trace) -> Iterator[Row]:
    note = trace.provenance.get("not recorded", "")
    for name, module in modules.items():
        for j, blob in enumerate(module.blob_names()):
            if isinstance(getattr(module, blob), nn.Parameter) and (name, j) not in trace.parameter_gradients:
                yield Row(name, j, "gradient", blob, note=f"not in the trace{': ' + note if note else ''}")


def _terms(
    net: Net,
    inputs: list[Tensor],
    case: Case,
    trace: Trace,
    tolerance: Tolerance,
    stops: Collection[str],
    follows: bool,
) -> tuple[list[Tensor], dict[str, str]]:
    """What is differentiated: the losses by their weights, and every output by the gradient that was fed to it.

    Args:
        follows: every layer gets the trace's numbers, through which the gradient passes to the layers that made ours.

    Returns:
        The terms; and the layers that come before one that draws random numbers, with a note that says so.
    """
    losses, terms = dict(net.plan.losses), []
    values: dict[str, Tensor] = {}
    before_chance: dict[str, str] = {}
    turns, instead = net.steps(*inputs), None
    for step in net.plan.steps:
        turn = turns.send(instead)
        tops = turn.tops
        instead = _drawn(turn, step, trace, tolerance) if may_draw(case, turn.layer) else None
        if turn.layer.name in stops:
            tops = instead = tuple(top.detach() for top in (tops if instead is None else instead))
        elif instead is not None:
            tops = instead
            note = f"'{turn.layer.name}' draws random numbers, others than the reference's"
            before_chance |= dict.fromkeys(_before(net.plan.spec, turn.layer), note)
        elif follows:
            tops = instead = tuple(_following(top, trace.tops.get((turn.layer.name, k))) for k, top in enumerate(tops))
        for name, slot, top in zip(turn.layer.tops, step.tops, tops, strict=True):
            values[name] = top
            if slot in losses:
                terms.append((top * losses[slot]).sum())
    for blob, fed in trace.top_gradients.items():
        if blob in values:
            terms.append((values[blob] * torch.tensor(np.asarray(fed, np.float32))).sum())
    terms = [term for term in terms if term.requires_grad]
    if not terms and not stops:
        raise CaffePortError("nothing of this net can be differentiated: no loss, and no gradient was fed to an output")
    return terms, before_chance


def _following(top: Tensor, expected: Array | None) -> Tensor:
    """The expected numbers, with the gradient of a top; the top itself if it is another thing."""
    if expected is None or expected.shape != top.shape or not top.is_floating_point():
        return top
    return top + (torch.tensor(np.asarray(expected, np.float32)) - top).detach()


def _drawn(turn: LayerRun, step: Step, trace: Trace, tolerance: Tolerance) -> tuple[Tensor, ...] | None:
    """The trace's tops of a layer that draws random numbers; None for another layer."""
    there = [trace.tops.get((turn.layer.name, k)) for k in range(len(turn.tops))]
    found = [top for top in there if top is not None]
    if len(found) < len(there) or all(
        difference(e, top.detach().cpu().numpy(), tolerance).passed for e, top in zip(found, turn.tops, strict=True)
    ):
        return None

    def again() -> tuple[Tensor, ...]:
        with torch.no_grad():
            made = tuple(map(turn.module, turn.bottoms)) if step.per_bottom else turn.module(*turn.bottoms)
        return made if isinstance(made, tuple) else (made,)

    if not draws(again, tuple(top.detach() for top in turn.tops), tolerance):
        return None
    return tuple(torch.tensor(np.asarray(e, np.float32)) for e in found)


def _before(spec: NetSpec, layer: LayerSpec) -> set[str]:
    """Names of the layers that a layer's bottoms come from, directly or not."""
    found, waiting = set(), [name for name, _ in layer.producers]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [source for source, _ in spec.by_name[name].producers]
    return found


def _blob(modules: dict[str, Layer], name: str, j: int) -> str | None:
    names = modules[name].blob_names() if name in modules else []
    return names[j] if j < len(names) else None


def _numbers(gradient: Tensor | None) -> Array | None:
    return None if gradient is None else gradient.detach().cpu().numpy()


def _gradient(module: Layer, blob: str) -> Array | None:
    """The gradient in Caffe's layout: converted as if it were the parameter itself."""
    parameter = getattr(module, blob)
    if not isinstance(parameter, nn.Parameter) or parameter.grad is None:
        return None
    value = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(parameter.grad)
        gradient = module.get_blob(blob).detach().clone()
        parameter.copy_(value)
    return gradient.cpu().numpy()


def _row(
    layer: str, top: int, kind: str, blob: str, expected: Array, actual: Array | None, tolerance: Tolerance
) -> Row:
    if actual is None:  # Caffe's gradient is zero where nothing is trained
        actual = np.zeros_like(expected)
    if not shapes_agree(expected.shape, actual.shape, row=True):
        return Row(layer, top, kind, blob, free=failure(f"shape {actual.shape}, expected {expected.shape}"))
    return Row(layer, top, kind, blob, free=difference(expected, actual.reshape(expected.shape), tolerance))
