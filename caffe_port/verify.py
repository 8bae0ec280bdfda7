"""Runs a Net beside a reference, layer by layer, and compares: the proof that nothing changed.

Two comparisons in one pass. *Free*: the net runs on its own and errors accumulate. *Isolated*: every layer is fed the
reference's own bottoms, so one broken layer is one red row. The nets run in step and let go of every top when its last
reader has read it: memory does not grow with depth.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import caffe_port
from caffe_port import caffemodel, feed
from caffe_port.api import PathLike, Ported, phase_spec, port
from caffe_port.caffemodel import Array
from caffe_port.comparison import ATOL, RTOL, Difference, Report, Row, Tolerance, difference, failure
from caffe_port.diagnose import diagnose
from caffe_port.errors import CaffePortError, did_you_mean
from caffe_port.feed import Preprocess
from caffe_port.layers import Layer
from caffe_port.net import Net, Step
from caffe_port.numpy_reference import NumPyReference, WithFormulas
from caffe_port.opencv_reference import OpenCVReference
from caffe_port.reference import Case, Made, Reference, StoredReference
from caffe_port.spec import SOURCE_TYPES, Definition, LayerSpec, NetSpec, Source
from caffe_port.trace import Trace

MODES = ("both", "free", "isolated")

Input = PathLike | Array

_Tensors = tuple[Tensor, ...]


def verify(
    prototxt: PathLike | None = None,
    weights: PathLike | None = None,
    *,
    against: str | Path | Trace | Reference = "opencv",
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
) -> Report:
    """Converts a net and compares every layer with somebody else's figures.

    Args:
        prototxt, weights: as for :func:`caffe_port.load`.
        against: ``"opencv"`` (and the formulas of :mod:`caffe_port.numpy_reference` for what OpenCV does not know),
            ``"numpy"`` (the formulas alone), a trace (.npz) or :class:`Trace`, which brings its inputs, or a
            :class:`Reference`.
        input: an .npy file, a picture, an array, or a dict of these by blob name; None: standard normal numbers.
        seed: of the random numbers.
        mean, scale, channel_order: how a picture is prepared, see :class:`~caffe_port.feed.Preprocess`; ``mean`` may
            be text: numbers, a .binaryproto or an .npy file.
        input_shapes: blob name -> shape, where the net does not say it or another one is wanted.
        keep_loss: compares losses and Accuracy too; None: if the trace holds what they need.
        level, stages: Caffe's NetState.
        atol, rtol: what is allowed, see :mod:`caffe_port.comparison`.
        mode: ``"both"``, ``"free"`` (errors accumulate) or ``"isolated"`` (every layer on the reference's bottoms).

    Raises:
        CaffePortError: bad input; DependencyError without OpenCV, where it is the reference.
    """
    if mode not in MODES:
        raise CaffePortError(f"the mode is {', '.join(MODES)}; got '{mode}'")
    tolerance = Tolerance(atol, rtol)
    preprocess = Preprocess(feed.read_mean(mean) if isinstance(mean, str) else mean, scale, channel_order)
    reference = find_reference(against)
    trace = reference.trace if isinstance(reference, StoredReference) else None
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
    inputs, words = _inputs(net, given, preprocess, seed)
    case = case_of(ported, inputs)
    notes = [*ported.notes, *_uncovered(full, spec)]
    with torch.inference_mode():
        rows = tuple(run(net, reference, case, tolerance, mode))
    if trace is not None:
        rows += _only_in_trace(trace, full, spec)
    return Report(
        rows, tolerance, reference.name, f"caffe-port {caffe_port.__version__}", spec.name or spec.path, spec.phase,
        words, provenance(prototxt, weights, trace), tuple(notes),
    )  # fmt: skip


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
    if str(against).endswith(".npz") or Path(against).exists():
        return StoredReference(Trace.load(against))
    raise CaffePortError(f"cannot compare with '{against}'", hint="It is opencv, numpy, or a trace: a file that ends in .npz.")


def run(net: Net, reference: Reference, case: Case, tolerance: Tolerance, mode: str = "both") -> Iterator[Row]:
    """Runs the net and the reference in step and compares every top.

    Args:
        net: the candidate, in the phase of ``case``.
        case: net, parameters and inputs, as the reference is given them.
        mode: one of :data:`MODES`.

    Yields:
        A row for every top, in the net's order; one for a layer without tops.
    """
    device = next((t.device for t in (*net.parameters(), *net.buffers())), torch.device("cpu"))
    dtype = next((t.dtype for t in net.parameters() if t.is_floating_point()), torch.float32)

    def tensor(array: Array) -> Tensor:
        return torch.tensor(np.asarray(array), device=device, dtype=dtype)

    inputs = [tensor(case.inputs[blob]) for blob in net.plan.inputs]
    free = _Runner(net, inputs) if mode != "isolated" else None
    alone = _Runner(net, inputs) if mode != "free" else None
    turns = reference.run(case)
    instead: list[Array] | None = None
    diagnosed = 0
    for step in net.plan.steps:
        made = turns.send(instead)
        assert made.layer.name == step.layer.name
        instead = None
        ours = [None if runner is None else runner.tops(step) for runner in (free, alone)]
        rows = list(_rows(step.layer, made, ours, tolerance, free))
        if rows[0].broken and diagnosed < _MAX_DIAGNOSED:
            diagnosed += 1
            rows[0] = _explained(rows[0], net, step, made, ours, (free, alone), case, tolerance)
        yield from rows
        expected = None if made.tops is None else tuple(map(tensor, made.tops))
        if expected is None:
            own = next((tops for tops in reversed(ours) if isinstance(tops, tuple)), None)
            if own is None and step.tops:
                yield from _stopped(net, step, made.by)
                break
            instead = [t.cpu().numpy() for t in own or ()]
            if free is not None and not step.bottoms and own is not None:
                ours[0] = own  # DummyData may be random: both runs see the same numbers
        if free is not None:
            free.put(step, ours[0] if isinstance(ours[0], tuple) else None)
        if alone is not None:
            alone.put(step, expected if expected is not None else ours[1] if isinstance(ours[1], tuple) else None)
    turns.close()


_MAX_DIAGNOSED = 20
"""Layers whose difference is explained; a net that is wrong everywhere is not wrong layer by layer."""


def _explained(
    row: Row, net: Net, step: Step, made: Made, ours: Sequence[_Tensors | Difference | None],
    runners: Sequence[_Runner | None], case: Case, tolerance: Tolerance,
) -> Row:  # fmt: skip
    """The row with its likely cause. In a free run alone, the bottoms are the candidate's own."""
    runner, tops = next((r, t) for r, t in reversed(list(zip(runners, ours, strict=True))) if r is not None)
    if not isinstance(tops, tuple) or made.tops is None:
        return row
    values = [runner.values[i] for i in step.bottoms]
    module = getattr(net, step.attribute)
    names = module.blob_names() if isinstance(module, Layer) else None
    finding = diagnose(
        step.layer, [v.cpu().numpy() for v in values if v is not None], case.blobs.get(step.layer.name, ()),
        tops[row.top].cpu().numpy(), np.asarray(made.tops[row.top]),
        parameters=None if names is None else [module.get_blob(n).detach().cpu().numpy() for n in names],
        train=case.spec.phase == "TRAIN", tolerance=tolerance,
    )  # fmt: skip
    return row if finding is None else dataclasses.replace(row, cause=str(finding))


class _Runner:
    """Runs a net's steps one at a time, with whatever tops it is told to go on with. A layer that fails is no end."""

    def __init__(self, net: Net, inputs: Sequence[Tensor]) -> None:
        self.net = net
        self.values: list[Tensor | None] = [*inputs, *[None] * (net.plan.slots - len(inputs))]
        self.stopped = ""

    def tops(self, step: Step) -> _Tensors | Difference | None:
        """What the layer makes; a failure where it raises; None where a bottom is missing."""
        bottoms = [self.values[i] for i in step.bottoms]
        if any(b is None for b in bottoms):
            return None
        module: Any = getattr(self.net, step.attribute)
        try:
            made = tuple(module(b) for b in bottoms) if step.per_bottom else module(*bottoms)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            self.stopped = self.stopped or step.layer.name
            text = str(error).splitlines()
            return failure(f"raises {type(error).__name__}: {text[0][:160] if text else ''}")
        return made if isinstance(made, tuple) else () if made is None else (made,)

    def put(self, step: Step, tops: _Tensors | None) -> None:
        """Sets the tops that the layers behind will read, and frees what nobody reads any more."""
        for k, i in enumerate(step.tops):
            self.values[i] = tops[k] if tops is not None and k < len(tops) else None
        for i in step.frees:
            self.values[i] = None


def _rows(
    layer: LayerSpec, made: Made, ours: Sequence[_Tensors | Difference | None], tolerance: Tolerance,
    free: _Runner | None,
) -> Iterator[Row]:  # fmt: skip
    if not layer.tops:
        yield Row(layer.name, 0, layer.type, "", layer.where, note="has no top")
    for k, blob in enumerate(layer.tops):
        found: list[Difference | None] = []
        for tops in ours:
            if made.tops is None or tops is None:
                found.append(None)
            elif isinstance(tops, Difference):
                found.append(tops)
            else:
                found.append(difference(np.asarray(made.tops[k]), tops[k].cpu().numpy(), tolerance))
        note = made.note
        if not note and free is not None and ours[0] is None:
            note = f"the free run ended at '{free.stopped}'"
        yield Row(layer.name, k, layer.type, blob, layer.where, found[0], found[1], note)


def _stopped(net: Net, last: Step, by: str) -> Iterator[Row]:
    """The rest of the net, where neither side knows how to go on."""
    after = False
    for step in net.plan.steps:
        if after:
            for k, blob in enumerate(step.layer.tops):
                yield Row(step.layer.name, k, step.layer.type, blob, step.layer.where,
                          note=f"behind '{last.layer.name}', which neither {by} nor the net could run")  # fmt: skip
        after = after or step is last


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
    feed.check_names(given, spec)
    found: dict[str, Array | Path] = {}
    for blob, value in given.items():
        if isinstance(value, np.ndarray) or str(value).endswith(".npy"):
            array = value if isinstance(value, np.ndarray) else feed.read_npy(value)
            found[blob] = feed.with_batch_axis(array, spec, blob)
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
    arrays, words = feed.random_inputs(spec, shapes, seed)
    for blob, source in spec.inputs:
        value = given.get(blob)
        if isinstance(value, Path):
            arrays[blob], words[blob] = feed.picture_input(value, shapes[source], preprocess), str(value)
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
            found[name] = [module.get_blob(b).detach().cpu().float().numpy() for b in module.blob_names()]
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
        for layer, k in trace.tops if layer not in sources and layer not in compared
    )  # fmt: skip


def provenance(prototxt: PathLike | None, weights: PathLike | None, trace: Trace | None = None) -> dict[str, str]:
    """Checksums of the files and versions of the programs."""
    found = {}
    for what, path in (("prototxt", prototxt), ("weights", weights)):
        if path is not None:
            found[what] = f"{path} (sha256 {sha256(path)})"
    if trace is not None:
        found |= {f"trace {k}": v for k, v in trace.provenance.items()}
    return found | {
        "caffe-port": caffe_port.__version__, "torch": torch.__version__, "numpy": np.__version__,
        "python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}",
    }  # fmt: skip


def sha256(path: PathLike) -> str:
    """The checksum of a file, in hex."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise CaffePortError(f"cannot be read: {error.strerror}", str(path)) from None
    return digest.hexdigest()
