"""Compares the gradients of the inputs and of every parameter with a trace that contains Caffe's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from caffe_port.errors import CaffePortError
from caffe_port.formats.caffemodel import shapes_agree
from caffe_port.layers.layer import Layer
from caffe_port.net.net import Net
from caffe_port.typing import Array
from caffe_port.verification.comparison import Row, Tolerance, difference, failure
from caffe_port.verification.references.reference import Case
from caffe_port.verification.references.trace import Trace


def gradient_rows(net: Net, case: Case, trace: Trace, tolerance: Tolerance) -> Iterator[Row]:
    """Runs the net forward and backward once on the trace's inputs and compares.

    Args:
        net: the net in the phase of the trace, with the parameters that Caffe started from.
        case: provides the inputs.
        trace: with ``input_gradients`` or ``parameter_gradients``; ``changed_parameters`` are compared too.

    Yields:
        Rows of type ``gradient`` (layer: the input blob, or the layer with the parameter's number as top) and
        ``parameter after forward``.

    Raises:
        CaffePortError: the trace contains no gradients.
    """
    if not (trace.input_gradients or trace.parameter_gradients):
        raise CaffePortError(
            "contains no gradients",
            trace.provenance.get("file", ""),
            "Record a trace with gradients: run the script of `caffe-port dump --script` with --backward.",
        )
    inputs = {b: torch.tensor(case.inputs[b], dtype=torch.float32, requires_grad=True) for b in net.plan.inputs}
    net.zero_grad(set_to_none=True)
    terms = _terms(net, list(inputs.values()), trace)
    modules = net.caffe_layers()
    for (name, j), expected in trace.changed_parameters.items():
        blob = _blob(modules, name, j)
        actual = None if blob is None else modules[name].get_blob(blob).detach().cpu().numpy()
        yield _row(name, j, "parameter after forward", blob or "", expected, actual, tolerance)
    torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]
    for blob_name, expected in trace.input_gradients.items():
        if blob_name in inputs:
            yield _row(blob_name, 0, "gradient", blob_name, expected, _numbers(inputs[blob_name].grad), tolerance)
        else:
            yield Row(blob_name, 0, "gradient", note="the net has no such input")
    for (name, j), expected in trace.parameter_gradients.items():
        blob = _blob(modules, name, j)
        if blob is None:
            yield Row(name, j, "gradient", note="the net has no such parameter")
        else:
            yield _row(name, j, "gradient", blob, expected, _gradient(modules[name], blob), tolerance)


def _terms(net: Net, inputs: list[Tensor], trace: Trace) -> list[Tensor]:
    """What is differentiated: the losses by their weights, and every output by the gradient that was fed to it."""
    losses, terms = dict(net.plan.losses), []
    values: dict[str, Tensor] = {}
    for turn, step in zip(net.steps(*inputs), net.plan.steps, strict=True):
        for name, slot, top in zip(turn.layer.tops, step.tops, turn.tops, strict=True):
            values[name] = top
            if slot in losses:
                terms.append((top * losses[slot]).sum())
    for blob, fed in trace.top_gradients.items():
        if blob in values:
            terms.append((values[blob] * torch.tensor(np.asarray(fed, np.float32))).sum())
    terms = [term for term in terms if term.requires_grad]
    if not terms:
        raise CaffePortError("nothing of this net can be differentiated: no loss, and no gradient was fed to an output")
    return terms


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
    if not shapes_agree(expected.shape, actual.shape):
        return Row(layer, top, kind, blob, free=failure(f"shape {actual.shape}, expected {expected.shape}"))
    return Row(layer, top, kind, blob, free=difference(expected, actual.reshape(expected.shape), tolerance))
