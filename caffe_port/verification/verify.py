"""Compares a net with a reference, layer by layer: the proof that nothing changed.

Two comparisons in one pass. *Free*: the net runs on its own and errors accumulate. *Isolated*: every layer is fed the
reference's own bottoms, so one broken layer is one red row.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import caffe_port
from caffe_port.api import PathLike, Ported, phase_spec, port
from caffe_port.errors import CaffePortError, did_you_mean
from caffe_port.formats import caffemodel
from caffe_port.formats.caffemodel import Array
from caffe_port.net.net import Net
from caffe_port.spec import SOURCE_TYPES, Definition, NetSpec, Source
from caffe_port.storage.files import sha256
from caffe_port.verification.backward import gradient_rows
from caffe_port.verification.comparison import ATOL, RTOL, Report, Row, Tolerance
from caffe_port.verification.details import Details
from caffe_port.verification.inputs import (
    Preprocess,
    check_names,
    picture_input,
    random_inputs,
    read_mean,
    read_npy,
    with_batch_axis,
)
from caffe_port.verification.references.numpy_formulas import NumPyReference, WithFormulas
from caffe_port.verification.references.opencv import OpenCVReference
from caffe_port.verification.references.pycaffe import PycaffeReference
from caffe_port.verification.references.reference import Case, Reference, StoredReference
from caffe_port.verification.references.trace import Trace
from caffe_port.verification.runner import run

MODES = ("both", "free", "isolated")

Input = PathLike | Array


def verify(
    prototxt: PathLike | None = None,
    weights: PathLike | None = None,
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
) -> Report:
    """Converts a net and compares every layer with somebody else's figures.

    Args:
        prototxt, weights: as for :func:`caffe_port.load`.
        against: ``"opencv"`` (and the formulas of ``numpy_reference`` for what OpenCV does not know),
            ``"numpy"`` (the formulas alone), ``"pycaffe"`` (in a process of its own), a trace (.npz) or
            :class:`Trace`, which brings its inputs, a :class:`Reference`; or somebody's own port,
            ``path/to/file.py:Class`` or a module: then *it* is compared with OpenCV, see
            :func:`caffe_port.verification.user_module.verify_module.verify_port`.
        state: the state_dict of that port; without one, Caffe's weights are copied into it.
        input: an .npy file, a picture, an array, or a dict of these by blob name; None: standard normal numbers.
        seed: of the random numbers.
        mean, scale, channel_order: how a picture is prepared, see :class:`~caffe_port.verification.inputs.Preprocess`;
            ``mean`` may be text: numbers, a .binaryproto or an .npy file.
        input_shapes: blob name -> shape, where the net does not say it or another one is wanted.
        keep_loss: compares losses and Accuracy too; None: if the trace holds what they need.
        level, stages: Caffe's NetState.
        atol, rtol: what is allowed, see :mod:`caffe_port.verification.comparison`.
        mode: ``"both"``, ``"free"`` (errors accumulate) or ``"isolated"`` (every layer on the reference's bottoms).
        strict: fails, too, where we are further from a float64 run of the formulas than twice the reference is.
        backward: compares the gradients, and the parameters that the forward pass changes, with those of a trace or
            of pycaffe.
        details: collects what a page of the report shows, see :class:`~caffe_port.verification.details.Details`.

    Raises:
        CaffePortError: bad input; DependencyError without OpenCV, where it is the reference.
    """
    if mode not in MODES:
        raise CaffePortError(f"the mode is {', '.join(MODES)}; got '{mode}'")
    preprocess = Preprocess(read_mean(mean) if isinstance(mean, str) else mean, scale, channel_order)
    if isinstance(against, nn.Module) or (isinstance(against, str) and ".py:" in against):
        from caffe_port.verification.user_module.verify_module import verify_port

        return verify_port(
            against,
            prototxt,
            weights,
            state=state,
            input=input,
            seed=seed,
            preprocess=preprocess,
            input_shapes=input_shapes,
            atol=atol,
            rtol=rtol,
        )
    if state is not None:
        raise CaffePortError("a state belongs to a module: --against path/to/file.py:Class --state FILE")
    tolerance = Tolerance(atol, rtol)
    reference = find_reference(against)
    trace = reference.trace if isinstance(reference, StoredReference) else None
    if backward and trace is None and not isinstance(reference, PycaffeReference):
        raise CaffePortError(
            "gradients are compared with a trace that holds them, or with pycaffe",
            hint="Give --against TRACE.npz or --against pycaffe.",
        )
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
    )
    if backward and isinstance(reference, PycaffeReference):
        trace = reference.trace(subject.case, backward=True)
        reference = StoredReference(trace)
    if details is not None:
        details.spec = subject.case.spec
    before = {k: v.clone() for k, v in subject.ported.net.state_dict().items()} if backward else {}
    with torch.inference_mode():
        rows = tuple(run(subject.ported.net, reference, subject.case, tolerance, mode, strict, details))
    if backward and trace is not None:
        subject.ported.net.load_state_dict(before)
        rows += tuple(gradient_rows(subject.ported.net, subject.case, trace, tolerance))
    if trace is not None:
        rows += _only_in_trace(trace, subject.full, subject.case.spec)
    return subject.report(rows, tolerance, reference.name, f"caffe-port {caffe_port.__version__}")


@dataclass(frozen=True)
class Subject:
    """A net with its parameters and inputs, ready to be compared.

    Attributes:
        ported: our own Net, in the phase of ``case``.
        case: what a reference is asked.
        full: the net before the deploy view left out what only labels need.
        words: input blob -> what it is fed with.
        provenance, notes: for the report.
    """

    ported: Ported
    case: Case
    full: NetSpec
    words: Mapping[str, str]
    provenance: Mapping[str, str]
    notes: tuple[str, ...]

    def report(self, rows: tuple[Row, ...], tolerance: Tolerance, reference: str, candidate: str) -> Report:
        """The report on these rows."""
        spec = self.case.spec
        return Report(
            rows,
            tolerance,
            reference,
            candidate,
            spec.name or spec.path,
            spec.phase,
            self.words,
            self.provenance,
            self.notes,
        )


def prepare(
    prototxt: PathLike | None = None,
    weights: PathLike | None = None,
    *,
    trace: Trace | None = None,
    input: Input | Mapping[str, Input] | None = None,  # noqa: A002
    seed: int = 0,
    preprocess: Preprocess | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    keep_loss: bool | None = None,
    level: int = 0,
    stages: Sequence[str] = (),
) -> Subject:
    """Loads a net and its inputs; arguments as for :func:`verify`."""
    definition = _definition(prototxt, weights)
    phase = "TEST" if trace is None else trace.phase
    named = {*(input_shapes or {}), *(trace.inputs if trace else ()), *(input if isinstance(input, Mapping) else ())}
    full = phase_spec(definition, phase, level, stages, named, True)
    if keep_loss is None:
        keep_loss = trace is not None and {blob for blob, _ in full.inputs} <= set(trace.inputs)
    spec = full if keep_loss else phase_spec(definition, phase, level, stages, named, False)
    given = _given(spec, trace, input)
    shapes = {blob: x.shape for blob, x in given.items() if isinstance(x, np.ndarray)} | dict(input_shapes or {})
    ported = port(prototxt, weights, input_shapes=shapes, keep_loss=keep_loss, level=level, stages=stages, seed=seed)
    net = ported.net.train(spec.phase == "TRAIN")
    inputs, words = _inputs(net, given, preprocess or Preprocess(), seed)
    return Subject(
        ported,
        case_of(ported, inputs),
        full,
        words,
        provenance(prototxt, weights, trace),
        (*ported.notes, *_uncovered(full, spec)),
    )


def find_reference(against: str | Path | Trace | Reference) -> Reference:
    """The reference that a name, a trace's file or an object stands for.

    Raises:
        CaffePortError: neither a known name nor a trace.
    """
    if isinstance(against, Trace):
        return StoredReference(against)
    if not isinstance(against, (str, Path)):
        return against
    if str(against).lower() == "opencv":
        return WithFormulas(OpenCVReference())
    if str(against).lower() == "numpy":
        return NumPyReference()
    if str(against).lower() == "pycaffe":
        return PycaffeReference()
    if str(against).endswith(".npz") or Path(against).exists():
        return StoredReference(Trace.load(against))
    hint = "It is opencv, numpy, pycaffe, a trace (a file that ends in .npz), or a module: path/to/file.py:Class."
    raise CaffePortError(f"cannot compare with '{against}'", hint=hint)


# -- what is fed ----------------------------------------------------------------------------------------------------


def _definition(prototxt: PathLike | None, weights: PathLike | None) -> Definition:
    if prototxt is not None:
        return Definition.read(prototxt)
    if weights is None:
        raise CaffePortError("a prototxt, a caffemodel, or both are needed")
    return Definition.embedded(caffemodel.read(weights))


def _given(spec: NetSpec, trace: Trace | None, given: Input | Mapping[str, Input] | None) -> dict[str, Array | Path]:
    """Arrays, and the pictures that wait for the input's shape, by blob name."""
    if trace is not None:
        if given is not None:
            raise CaffePortError("a trace brings its own inputs; leave the input out")
        return {blob: _from_trace(trace, blob, source) for blob, source in spec.inputs}
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        if not spec.inputs:
            raise CaffePortError("the net has no input", spec.path)
        given = {spec.inputs[0][0]: given}
    check_names(given, spec)
    found: dict[str, Array | Path] = {}
    for blob, value in given.items():
        if isinstance(value, np.ndarray) or str(value).endswith(".npy"):
            array = value if isinstance(value, np.ndarray) else read_npy(value)
            found[blob] = with_batch_axis(array, spec, blob)
        else:
            found[blob] = Path(value)
    return found


def _from_trace(trace: Trace, blob: str, source: Source) -> Array:
    array = trace.inputs.get(blob, trace.tops.get(source))
    if array is None:
        shown, near = ", ".join(trace.inputs) or "none", did_you_mean(blob, trace.inputs)
        where = trace.provenance.get("file", "")
        raise CaffePortError(f"holds no input '{blob}'; its inputs are {shown}.{near}", where)
    return np.asarray(array, np.float32)


def _inputs(
    net: Net, given: Mapping[str, Array | Path], preprocess: Preprocess, seed: int
) -> tuple[dict[str, Array], dict[str, str]]:
    """Every input's array, and how it was made, in words."""
    spec, shapes = net.plan.spec, net.plan.shapes
    arrays, words = random_inputs(spec, shapes, seed)
    for blob, source in spec.inputs:
        value = given.get(blob)
        if isinstance(value, Path):
            arrays[blob], words[blob] = picture_input(value, shapes[source], preprocess), str(value)
        elif value is not None:
            arrays[blob], words[blob] = np.asarray(value, np.float32), "given"
    return arrays, words


def case_of(ported: Ported, inputs: Mapping[str, Array]) -> Case:
    """What a reference is asked about a ported net: its definition in the present phase, and the file's parameters."""
    plan = ported.net.plan
    return Case(plan.spec, plan.shapes, _blobs(ported), inputs)


def _blobs(ported: Ported) -> dict[str, Sequence[Array]]:
    """The parameters as the file holds them; as the net drew them, where no file does."""
    stored = ported.weights.by_name() if ported.weights else {}
    found: dict[str, Sequence[Array]] = {}
    for name, module in ported.net.caffe_layers().items():
        if name in stored:
            found[name] = stored[name].blobs
        elif module.blob_names():
            found[name] = [module.get_blob(b).detach().cpu().float().numpy().copy() for b in module.blob_names()]
    return found


# -- what is said ---------------------------------------------------------------------------------------------------


def _uncovered(full: NetSpec, spec: NetSpec) -> Iterator[str]:
    dropped = [layer.name for layer in full.layers if layer.name not in spec.by_name]
    if dropped:
        names = ", ".join(dropped[:4]) + (", ..." if len(dropped) > 4 else "")
        yield f"{len(dropped)} layers that only labels need were left out ({names}); --keep-loss compares them too"


def _only_in_trace(trace: Trace, full: NetSpec, spec: NetSpec) -> tuple[Row, ...]:
    """What the trace holds and the net that was compared does not."""
    sources = {layer.name for layer in full.layers if layer.type in SOURCE_TYPES}
    compared = spec.by_name
    return tuple(
        Row(layer, k, note="left out: only labels need it" if layer in full.by_name else "in the trace, not in the net")
        for layer, k in trace.tops
        if layer not in sources and layer not in compared
    )


def provenance(prototxt: PathLike | None, weights: PathLike | None, trace: Trace | None = None) -> dict[str, str]:
    """Checksums of the files and versions of the programs."""
    found = {}
    for what, path in (("prototxt", prototxt), ("weights", weights)):
        if path is not None:
            found[what] = f"{path} (sha256 {sha256(path)})"
    if trace is not None:
        found |= {f"trace {k}": v for k, v in trace.provenance.items()}
    return found | {
        "caffe-port": caffe_port.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
