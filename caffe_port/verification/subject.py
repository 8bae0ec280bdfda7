"""What is compared: a net with its parameters and inputs, made ready for a reference."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

import caffe_port
from caffe_port.api import Ported, port
from caffe_port.definition.definition import Definition
from caffe_port.definition.deploy_view import phase_spec
from caffe_port.errors import CaffePortError, did_you_mean
from caffe_port.formats import caffemodel
from caffe_port.net.net import Net
from caffe_port.spec import NetSpec, Source
from caffe_port.storage.files import sha256
from caffe_port.typing import Array, PathLike
from caffe_port.verification.comparison import Report, Row, Tolerance
from caffe_port.verification.inputs import (
    Preprocess,
    check_names,
    picture_input,
    random_inputs,
    read_npy,
    with_batch_axis,
)
from caffe_port.verification.references.numpy_formulas import NumPyReference, WithFormulas
from caffe_port.verification.references.opencv import OpenCVReference
from caffe_port.verification.references.pycaffe import PycaffeReference
from caffe_port.verification.references.reference import Case, Reference, StoredReference
from caffe_port.verification.references.trace import Trace

Input: TypeAlias = "PathLike | Array"


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


def _uncovered(full: NetSpec, spec: NetSpec) -> Iterator[str]:
    dropped = [layer.name for layer in full.layers if layer.name not in spec.by_name]
    if dropped:
        names = ", ".join(dropped[:4]) + (", ..." if len(dropped) > 4 else "")
        yield f"{len(dropped)} layers that only labels need were left out ({names}); --keep-loss compares them too"


def _only_in_trace(trace: Trace, full: NetSpec, spec: NetSpec) -> tuple[Row, ...]:
    """What the trace holds and the net that was compared does not."""
    sources = {layer.name for layer in full.layers if layer.is_input}
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
