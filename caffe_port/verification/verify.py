"""Compares a net with a reference, layer by layer.

Two comparisons in one pass. *Free*: the net runs on its own and errors accumulate. *Isolated*: every layer is fed the
reference's own bottoms, so one broken layer is one red row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from caffe_port.api import Prototxt, Stored
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.emit import export
from caffe_port.emit.convert import to_export
from caffe_port.errors import CaffePortError, suggests_keywords
from caffe_port.formats.dialects import assuming
from caffe_port.typing import Array, PathLike
from caffe_port.verification.backward import gradient_rows
from caffe_port.verification.comparison import ATOL, RTOL, Report, Tolerance
from caffe_port.verification.details import Details
from caffe_port.verification.references.caffe import CaffeReference, may_be_here
from caffe_port.verification.references.opencv import OpenCVReference
from caffe_port.verification.references.reference import Reference, StoredReference, asked_first
from caffe_port.verification.references.runtimes import RuntimeReference
from caffe_port.verification.references.trace import Trace
from caffe_port.verification.runner import run
from caffe_port.verification.subject import Input, Subject, find_reference, only_in_trace, prepare
from caffe_port.verification.user_module.verify_module import verify_port
from caffe_port.version import __version__

MODES = ("both", "free", "isolated")


@suggests_keywords
def verify(
    prototxt: Prototxt | None = None,
    weights: Stored | None = None,
    *,
    against: str | Path | Trace | Reference | nn.Module = "opencv",
    state: PathLike | None = None,
    input: Input | Mapping[str, Input] | None = None,  # noqa: A002  the word of the command line
    seed: int = 0,
    mean: str | Array | Sequence[float] | None = None,
    scale: float = 1.0,
    channel_order: str = "BGR",
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    keep_loss: bool | None = None,
    level: int = 0,
    stages: Sequence[str] = (),
    atol: float = ATOL,
    rtol: float = RTOL,
    mode: str = "both",
    strict: bool = False,
    backward: bool = False,
    details: Details | None = None,
    ignore_fields: Collection[str] = (),
    dialect: str | None = None,
) -> Report:
    """Converts a net and compares every layer with an independent implementation.

    Args:
        prototxt, weights: as for :func:`caffe_port.load`. A :class:`caffe_port.Ported` without other weights is
            compared as it is, in the shapes and with the losses that it was ported with, and is not changed.
        against: ``"opencv"`` (and the formulas of ``numpy_reference`` for what OpenCV does not know),
            ``"numpy"`` (the formulas alone), ``"caffe"`` (in a process of its own; OpenCV and the formulas
            are used for what it does not know), ``"onnxruntime"`` or ``"openvino"`` (the net exported and run there),
            a file for them (``model.onnx``, ``openvino:model.onnx``, ``model.xml``), whose values are compared where
            they have a layer's name, a trace (.npz) or :class:`Trace`, which contains its inputs, a
            :class:`Reference`; or a hand-written port, ``path/to/file.py:Class`` or a module: then *it* is compared
            with OpenCV, see
            :func:`caffe_port.verification.user_module.verify_module.verify_port`.
        state: the state_dict of that port; without one, Caffe's weights are copied into it.
        input: an .npy file, an image, an array, or a dict of these by blob name; None: standard normal values.
        seed: seed of the random values.
        mean, scale, channel_order: the preprocessing of an image, see
            :class:`~caffe_port.data.preprocessing.Preprocessing`; ``mean`` is numbers, an image (C, H, W) in the
            channel order, or text: numbers, a .binaryproto or an .npy file.
        input_shapes: blob name -> shape, if the net does not give it or you want another one.
        keep_loss: compare losses and Accuracy too; None: if the trace contains what they need.
        level, stages: Caffe's NetState.
        atol, rtol: the tolerance, see :mod:`caffe_port.verification.comparison`.
        mode: ``"both"``, ``"free"`` (errors accumulate) or ``"isolated"`` (every layer on the reference's bottoms).
        strict: also fail if the net is more than twice as far from a float64 run of the formulas as the reference.
        backward: compare the gradients, and the parameters that the forward pass changes, with those of a trace or
            of Caffe itself.
        details: collects what the HTML report shows, see :class:`~caffe_port.verification.details.Details`.
        ignore_fields: names of fields to go without, see :func:`caffe_port.port`; the verdict names them.
        dialect: whose meaning numbers and fields have, see :func:`caffe_port.port`.

    Raises:
        CaffePortError: bad input; DependencyError if OpenCV is the reference and not installed.
    """
    if mode not in MODES:
        raise CaffePortError(f"unknown mode '{mode}'; modes: {', '.join(MODES)}")
    preprocess = Preprocessing(channel_order, scale=scale).changed(mean=mean)
    if isinstance(against, nn.Module) or (isinstance(against, str) and ".py:" in against):
        if strict or backward or mode != "both":
            word = "strict" if strict else "backward" if backward else "mode"
            raise CaffePortError(
                f"{word} applies only to a converted net; a hand-written port is compared layer by layer, forward only"
            )
        with assuming(dialect):
            return verify_port(
                against,
                prototxt,
                weights,
                state=state,
                input=input,
                seed=seed,
                preprocess=preprocess,
                input_shapes=input_shapes,
                keep_loss=keep_loss,
                level=level,
                stages=stages,
                atol=atol,
                rtol=rtol,
                ignore_fields=ignore_fields,
                details=details,
            )
    if state is not None:
        raise CaffePortError("a state needs a hand-written port: --against path/to/file.py:Class --state FILE")
    tolerance = Tolerance(atol, rtol)
    reference = find_reference(against)
    trace = reference.trace if isinstance(reference, StoredReference) else None
    caffe = asked_first(reference)
    if backward and trace is None and not isinstance(caffe, CaffeReference):
        raise CaffePortError(
            "gradients are compared with a trace that holds them, or with Caffe itself",
            hint="Give --against TRACE.npz or --against caffe.",
        )
    with assuming(dialect):
        subject = prepare(
            prototxt,
            weights,
            trace=trace,
            input=input,
            seed=seed,
            preprocess=preprocess,
            input_shapes=input_shapes,
            keep_loss=keep_loss,
            level=level,
            stages=stages,
            ignore_fields=ignore_fields,
        )
    if isinstance(reference, RuntimeReference):
        reference = dataclasses.replace(reference, exported=lambda path: _export(subject, path))
    if backward and isinstance(caffe, CaffeReference):
        trace = caffe.trace(subject.case, backward=True)
        reference = StoredReference(trace)
    if details is not None:
        details.case = subject.case
    with subject.in_phase() as net:
        before = {k: v.clone() for k, v in net.state_dict().items()} if backward else {}
        with torch.inference_mode():
            referee = CaffeReference() if isinstance(caffe, OpenCVReference) and may_be_here() else None
            rows = tuple(run(net, reference, subject.case, tolerance, mode, strict, details, referee))
        if backward and trace is not None:
            net.load_state_dict(before)
            rows += tuple(gradient_rows(net, subject.case, trace, tolerance))
    if trace is not None:
        rows += only_in_trace(trace, subject.full, subject.case.spec)
    return subject.report(rows, tolerance, reference.name, f"caffe-port {__version__}")


def _export(subject: Subject, path: Path) -> None:
    """Writes the compared net as ONNX, as convert does, in the shapes of its inputs."""
    inputs = [torch.from_numpy(np.ascontiguousarray(x, np.float32)) for x in subject.case.inputs.values()]
    export.onnx(to_export(subject.ported.net), inputs, path, "none")
