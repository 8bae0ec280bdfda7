"""Prepares what is compared: a net with its parameters and inputs."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from caffe_port.api import Ported, Prototxt, Stored, build, read
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.definition.definition import Definition
from caffe_port.definition.deploy_view import phase_spec
from caffe_port.definition.fields import not_followed
from caffe_port.errors import CaffePortError, SpecError, did_you_mean
from caffe_port.net.net import Net
from caffe_port.net.plan import Plan
from caffe_port.spec import NetSpec, Producer
from caffe_port.storage.npz import read_npy
from caffe_port.terminal import count
from caffe_port.typing import Array, PathLike
from caffe_port.verification.comparison import Report, Row, Tolerance
from caffe_port.verification.inputs import check_names, picture_input, random_inputs, with_batch_axis
from caffe_port.verification.references import runtimes
from caffe_port.verification.references.caffe import CaffeReference
from caffe_port.verification.references.numpy_formulas import NumPyReference
from caffe_port.verification.references.opencv import OpenCVReference
from caffe_port.verification.references.reference import Case, Fallback, Reference, StoredReference
from caffe_port.verification.references.trace import Trace
from caffe_port.version import __version__

Input: TypeAlias = "PathLike | Array"


@dataclass(frozen=True)
class Subject:
    """A net with its parameters and inputs, ready to be compared.

    Attributes:
        ported: the Net, in its present phase; :meth:`in_phase` switches it.
        case: the task for the reference.
        full: the net including the layers that need labels, which the deploy view leaves out.
        words: input blob -> description of what is fed.
        provenance, notes: for the report.
    """

    ported: Ported
    case: Case
    full: NetSpec
    words: Mapping[str, str]
    provenance: Mapping[str, str]
    notes: tuple[str, ...]

    @contextlib.contextmanager
    def in_phase(self) -> Iterator[Net]:
        """The Net in the phase of ``case``; restores its phase, parameters, statistics and gradients afterwards."""
        net, training = self.ported.net, self.case.spec.phase == "TRAIN"
        was, gradients = net.training, [(parameter, parameter.grad) for parameter in net.parameters()]
        state = {name: value.clone() for name, value in net.state_dict().items()} if training else {}
        try:
            yield net.train(training)
        finally:
            net.train(was)
            if state:
                net.load_state_dict(state)
            for parameter, gradient in gradients:
                parameter.grad = gradient

    def report(self, rows: tuple[Row, ...], tolerance: Tolerance, reference: str, candidate: str) -> Report:
        """The report with these rows."""
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
            without=not_followed(spec),
        )


def prepare(
    prototxt: Prototxt | None = None,
    weights: Stored | None = None,
    *,
    trace: Trace | None = None,
    input: Input | Mapping[str, Input] | None = None,  # noqa: A002
    seed: int = 0,
    preprocess: Preprocessing | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    keep_loss: bool | None = None,
    level: int = 0,
    stages: Sequence[str] = (),
    ignore_fields: Collection[str] = (),
) -> Subject:
    """Prepares a net and its inputs; arguments as for :func:`caffe_port.verification.verify.verify`.

    Each file is read once, and the definition is resolved once per phase (the Net has both). A Ported without other
    weights is taken as it is.
    """
    phase = "TEST" if trace is None else trace.phase
    if isinstance(prototxt, Ported) and weights is None and not ignore_fields:
        ported = prototxt
        _check_built(ported, phase, keep_loss, level, stages)
        spec = ported.net.plans[phase == "TRAIN"].spec
        given = _given(spec, trace, input)
        _check_shapes(ported, phase, _shapes(given, input_shapes))
    else:
        definition, stored = read(prototxt, weights, ignore_fields=ignore_fields)
        named = {*(input_shapes or {}), *(trace.inputs if trace else ())}
        named |= set(input) if isinstance(input, Mapping) else set()
        spec, kept = _spec(definition, phase, level, stages, named, keep_loss, trace)
        given = _given(spec, trace, input)
        ported = build(
            definition,
            stored,
            input_shapes=_shapes(given, input_shapes),
            keep_loss=kept,
            level=level,
            stages=stages,
            seed=seed,
            resolved=spec,
        )
    drawn = _draw_zeros(ported, seed) if ported.weights is None and trace is None else []
    plan = ported.net.plans[phase == "TRAIN"]
    if plan.spec.phase != phase:
        why = [note for note in ported.notes if note.startswith(f"phase {phase} cannot")]
        raise SpecError(f"has no phase {phase} that can be compared", plan.spec.path, why)
    inputs, words = _inputs(plan, given, preprocess or Preprocessing("BGR"), seed)
    full = plan.spec.full or plan.spec
    return Subject(
        ported,
        case_of(ported, inputs, phase),
        full,
        words,
        provenance(ported, trace),
        (*ported.notes, *_drawn(drawn), *_uncovered(full, plan.spec)),
    )


def _draw_zeros(ported: Ported, seed: int) -> list[str]:
    """Draws the parameters of layers that have nothing but zeros, for those hide every difference, and statistics that
    were never taken, for a variance of 0 multiplies by hundreds; the names of these layers.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for name, module in ported.net.caffe_layers().items():
        own = [p for p in module.parameters(recurse=False) if p.numel()]
        if own and not any(p.any() for p in own):
            drawn.append(name)
            for p in own:
                spread = max(1, p[0].numel()) ** -0.5 if p.dim() > 1 else 1.0
                p.data.copy_(spread * torch.randn(p.shape, generator=generator))
        mean, variance = (getattr(module, statistic, None) for statistic in ("mean", "variance"))
        if isinstance(mean, Tensor) and isinstance(variance, Tensor) and not variance.any():
            drawn.append(name)
            mean.copy_(torch.randn(mean.shape, generator=generator))
            variance.copy_(0.5 + torch.rand(variance.shape, generator=generator))
            if isinstance(factor := getattr(module, "scale_factor", None), Tensor):
                factor.fill_(1)
    return list(dict.fromkeys(drawn))


def _drawn(names: Sequence[str]) -> Iterator[str]:
    if names:
        few = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        yield f"{count(len(names), 'layer')} with nothing but zeros: random values for the comparison ({few})"


def _spec(
    definition: Definition,
    phase: str,
    level: int,
    stages: Sequence[str],
    named: Collection[str],
    keep_loss: bool | None,
    trace: Trace | None,
) -> tuple[NetSpec, bool]:
    """The net in the phase to compare, and whether its losses are kept; None: if the trace contains what they need."""
    if keep_loss is not None or trace is None:
        return phase_spec(definition, phase, level, stages, named, keep_loss or False), keep_loss or False
    try:
        spec = phase_spec(definition, phase, level, stages, named, False)
        full = spec.full or spec
    except SpecError:  # perhaps it only has losses
        spec = full = phase_spec(definition, phase, level, stages, named, True)
        if not _brings_labels(trace, full):
            raise
    kept = _brings_labels(trace, full)
    return full if kept else spec, kept


def _brings_labels(trace: Trace, full: NetSpec) -> bool:
    return {blob for blob, _ in full.inputs} <= set(trace.inputs)


def _shapes(
    given: Mapping[str, Array | Path], input_shapes: Mapping[str, Sequence[int]] | None
) -> dict[str, Sequence[int]]:
    """The shapes that are known beforehand, by blob name: those of given arrays, and those that were requested."""
    return {blob: x.shape for blob, x in given.items() if isinstance(x, np.ndarray)} | dict(input_shapes or {})


def _check_built(ported: Ported, phase: str, keep_loss: bool | None, level: int, stages: Sequence[str]) -> None:
    """Raises CaffePortError if the options ask for another net than the one that was built."""
    where = ported.definition.path
    if ported.shared:
        raise CaffePortError("was ported with share=True, which is for convert only", where)
    if level or stages:
        raise CaffePortError("is already ported: pass level and stages to caffe_port.port", where)
    if keep_loss and ported.net.plans[phase == "TRAIN"].spec.full is not None:
        raise CaffePortError("was ported without its losses", where, "Port it with keep_loss=True.")


def _check_shapes(ported: Ported, phase: str, shapes: Mapping[str, Sequence[int]]) -> None:
    plan = ported.net.plans[phase == "TRAIN"]
    built = {blob: plan.shapes[producer] for blob, producer in plan.spec.inputs}
    for blob, shape in shapes.items():
        if blob not in built:
            near = did_you_mean(blob, built)
            raise SpecError(
                f"has no input '{blob}'; its inputs are {', '.join(built) or 'none'}.{near}", plan.spec.path
            )
        if tuple(shape) != built[blob]:
            raise SpecError(
                f"was ported for input '{blob}' of shape {built[blob]}, got {tuple(shape)}",
                plan.spec.path,
                f"Port it for that shape: caffe_port.port(ported, input_shapes={{{blob!r}: {tuple(shape)}}})",
            )


def find_reference(against: str | Path | Trace | Reference) -> Reference:
    """The reference for a name, the file of a trace, or an object.

    Raises:
        CaffePortError: neither a known name nor a trace.
    """
    if isinstance(against, Trace):
        return StoredReference(against)
    if not isinstance(against, (str, Path)):
        return against
    if str(against).lower() == "opencv":
        return Fallback(OpenCVReference(), NumPyReference())
    if str(against).lower() == "numpy":
        return NumPyReference()
    if str(against).lower() in ("caffe", "pycaffe"):
        return Fallback(Fallback(CaffeReference(), OpenCVReference()), NumPyReference())
    if (runtime := runtimes.find(str(against))) is not None:
        return runtime
    if str(against).endswith(".npz") or Path(against).exists():
        return StoredReference(Trace.load(against))
    raise CaffePortError(f"cannot compare with '{against}'", hint=runtimes.KNOWN)


def _given(spec: NetSpec, trace: Trace | None, given: Input | Mapping[str, Input] | None) -> dict[str, Array | Path]:
    """Arrays by blob name; images stay paths until the input's shape is known."""
    if trace is not None:
        if given is not None:
            raise CaffePortError("a trace contains its own inputs; do not give an input")
        return {blob: _from_trace(trace, blob, producer) for blob, producer in spec.inputs}
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


def _from_trace(trace: Trace, blob: str, producer: Producer) -> Array:
    array = trace.inputs.get(blob, trace.tops.get(producer))
    if array is None:
        shown, near = ", ".join(trace.inputs) or "none", did_you_mean(blob, trace.inputs)
        where = trace.provenance.get("file", "")
        raise CaffePortError(f"contains no input '{blob}'; its inputs are {shown}.{near}", where)
    return np.asarray(array, np.float32)


def _inputs(
    plan: Plan, given: Mapping[str, Array | Path], preprocess: Preprocessing, seed: int
) -> tuple[dict[str, Array], dict[str, str]]:
    """The array of every input, and a description of how it was made."""
    spec, shapes = plan.spec, plan.shapes
    arrays, words = random_inputs(spec, shapes, seed)
    for blob, producer in spec.inputs:
        value = given.get(blob)
        if isinstance(value, Path):
            arrays[blob], words[blob] = picture_input(value, shapes[producer], preprocess), str(value)
        elif value is not None:
            arrays[blob], words[blob] = np.asarray(value, np.float32), "given"
    return arrays, words


def case_of(ported: Ported, inputs: Mapping[str, Array], phase: str | None = None) -> Case:
    """A reference's task for a ported net: its definition in one phase, and the parameters of the file.

    Args:
        phase: None: the present one.
    """
    plan = ported.net.plan if phase is None else ported.net.plans[phase == "TRAIN"]
    return Case(plan.spec, plan.shapes, _blobs(ported), inputs)


def _blobs(ported: Ported) -> dict[str, Sequence[Array]]:
    """The parameters as the file holds them, in the shapes that the layers have; as the net drew them, where no file
    holds them."""
    stored = ported.weights.by_name() if ported.weights else {}
    found: dict[str, Sequence[Array]] = {}
    for name, module in ported.net.caffe_layers().items():
        names = module.blob_names()
        own = [module.get_blob(blob).detach().cpu().float() for blob in names]
        blobs = stored[name].blobs if name in stored else [blob.numpy().copy() for blob in own]
        if [np.size(blob) for blob in blobs] == [blob.numel() for blob in own]:  # files of 2014: (1, 1, 1, N) for (N)
            blobs = [np.reshape(blob, tuple(like.shape)) for blob, like in zip(blobs, own, strict=True)]
        if blobs:
            found[name] = blobs
    return found


def _uncovered(full: NetSpec, spec: NetSpec) -> Iterator[str]:
    dropped = [layer.name for layer in full.layers if layer.name not in spec.by_name]
    if dropped:
        names = ", ".join(dropped[:4]) + (", ..." if len(dropped) > 4 else "")
        words = count(len(dropped), "layer that needs labels was", "layers that need labels were")
        yield f"{words} left out ({names}); --keep-loss compares them too"


def only_in_trace(trace: Trace, full: NetSpec, spec: NetSpec) -> tuple[Row, ...]:
    """Rows for what the trace contains and the compared net does not."""
    sources = {layer.name for layer in full.layers if layer.is_input}
    compared = spec.by_name
    return tuple(
        Row(layer, k, note="left out: needs labels" if layer in full.by_name else "in the trace, not in the net")
        for layer, k in trace.tops
        if layer not in sources and layer not in compared
    )


def provenance(ported: Ported, trace: Trace | None = None) -> dict[str, str]:
    """Checksums of the files, and versions of the software."""
    found = {}
    definition, stored = ported.definition, ported.weights
    if stored is None or definition.path != stored.path:
        found["prototxt"] = _with_checksum(definition.path, definition.sha256)
    if stored is not None:
        found["weights"] = _with_checksum(stored.path, stored.sha256)
    if trace is not None:
        found |= {f"trace {k}": v for k, v in trace.provenance.items()}
    return found | {
        "caffe-port": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _with_checksum(path: str, digest: str | None) -> str:
    return path if digest is None else f"{path} (sha256 {digest})"
