"""Compares a hand-written port with the Caffe net: ``verify net.prototxt w.caffemodel --against mymodel.py:Net``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from caffe_port.api import Prototxt, Stored
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.errors import CaffePortError
from caffe_port.signatures.signature import Trait, has
from caffe_port.typing import Array
from caffe_port.verification.comparison import ATOL, RTOL, Report, Tolerance
from caffe_port.verification.references.reference import Reference, record
from caffe_port.verification.reports.terminal import as_text
from caffe_port.verification.subject import Input, find_reference, prepare
from caffe_port.verification.user_module import align, injection
from caffe_port.verification.user_module.recorder import load_module, record_calls, run_recorded


def verify_port(
    module: nn.Module | str,
    prototxt: Prototxt | None = None,
    weights: Stored | None = None,
    *,
    state: str | Path | None = None,
    keep_parameters: bool | None = None,
    reference: str | Reference = "opencv",
    input: Input | Mapping[str, Input] | None = None,  # noqa: A002  the word of the command line
    seed: int = 0,
    preprocess: Preprocessing | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    keep_loss: bool | None = None,
    level: int = 0,
    stages: Sequence[str] = (),
    atol: float = ATOL,
    rtol: float = RTOL,
    ignore_fields: Collection[str] = (),
) -> Report:
    """Matches the calls of a hand-written module with the net's layers and reports what differs.

    Args:
        module: the module, or ``path/to/file.py:Class`` (which is run).
        prototxt, weights: the Caffe net, as for :func:`caffe_port.load`.
        state: a state_dict to load into a module that is created from a file (weights_only; or .safetensors). None: in
            a folder written by ``caffe-port convert``, its own ``weights.safetensors``.
        keep_parameters: compare the module's own parameters (True), or copy Caffe's in first (False), which changes the
            module. None: keep them if there is a state.
        reference: the reference for the expected values.
        input, seed, preprocess, input_shapes, keep_loss, level, stages, atol, rtol, ignore_fields: as for
            :func:`caffe_port.verify`.

    Returns:
        A row for every Caffe layer, and one for every additional layer of the module.

    Raises:
        CaffePortError: the module cannot be created or run, or the net cannot be read.
    """
    if state is not None and not isinstance(module, str):
        raise CaffePortError("a state is for a module that is created from a file; load it into this module yourself")
    told = module if isinstance(module, str) else type(module).__name__
    converted = state is None and keep_parameters is None and isinstance(module, str)
    if converted:
        state = _converted_state(told)
    own = load_module(module, state) if isinstance(module, str) else module
    if keep_parameters is None:
        keep_parameters = state is not None
    judge = find_reference(reference)
    subject = prepare(
        prototxt,
        weights,
        input=input,
        seed=seed,
        preprocess=preprocess,
        input_shapes=input_shapes,
        keep_loss=keep_loss,
        level=level,
        stages=stages,
        ignore_fields=ignore_fields,
    )
    case = subject.case
    trace = record(judge, case)
    if len(trace.tops) < sum(len(layer.tops) for layer in case.spec.layers):
        raise CaffePortError(
            f"{judge.name} cannot compute the whole net; it stopped at {trace.provenance['stopped at']}", case.spec.path
        )
    inputs = [torch.from_numpy(_floats(case.inputs[blob])) for blob, _ in case.spec.inputs]
    calls = record_calls(own, *inputs)
    pairs = align.align(case, calls)
    notes = list(subject.notes)
    if converted and state is not None:
        notes.append(f"the port's parameters were loaded from {state}")
    if not keep_parameters:
        notes += align.copy_weights(case, pairs)
        calls = record_calls(own, *inputs)
        pairs = align.align(case, calls)
    tolerance = Tolerance(atol, rtol)
    injector = injection.Injector(own, case, pairs, trace.tops, tolerance)
    try:
        run_recorded(injector, own, *inputs)
    except CaffePortError as error:
        notes.append(f"on the reference's tops, the port fails: {error.what}")
    pairs = injector.pairs
    rows = tuple(injection.rows(case, pairs, trace.tops, injector.alone, tolerance))
    notes += align.training_notes(pairs)
    if not keep_parameters:
        notes += _fold_notes(pairs)
    report = subject.report(rows, tolerance, judge.name, told)
    return dataclasses.replace(report, notes=tuple(notes))


def _converted_state(where: str) -> Path | None:
    """The parameters that ``caffe-port convert`` wrote next to a class; None if it did not write that class."""
    file, _, name = where.rpartition(":")
    folder = Path(file).parent
    state = folder / "weights.safetensors"
    try:
        written = json.loads((folder / "port.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(written, dict) and written.get("class") == name and Path(file).name == "model.py"
    return state if ours and state.is_file() else None


def _fold_notes(pairs: Sequence[align.Pair]) -> Iterator[str]:
    """What to do if a port seems to have folded layers but was given Caffe's weights."""
    found = [pair for pair in pairs if any(has(layer.type, Trait.BATCH_STATISTICS) for layer in pair.after)]
    if found and found[0].layer is not None:
        yield (
            f"Caffe's weights were copied into the port; if '{found[0].after[0].name}' is folded into the port's "
            "weights, give those with --state FILE"
        )


def _floats(array: Array) -> Array:
    return array.astype("float32", copy=True)


def assert_parity(
    module: nn.Module,
    prototxt: Prototxt | None = None,
    weights: Stored | None = None,
    *,
    copy_parameters: bool = False,
    reference: str | Reference = "opencv",
    input: Input | Mapping[str, Input] | None = None,  # noqa: A002
    seed: int = 0,
    preprocess: Preprocessing | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    keep_loss: bool | None = None,
    level: int = 0,
    stages: Sequence[str] = (),
    atol: float = ATOL,
    rtol: float = RTOL,
) -> None:
    """For test suites: fails if a module does not compute what the Caffe net computes.

    Args:
        module: your port, or a :class:`caffe_port.Net`.
        prototxt, weights: the Caffe net.
        copy_parameters: copy Caffe's parameters into the module first; otherwise its own must already be right.
        reference: the reference for the expected values, as for :func:`verify_port`.
        input, seed, preprocess, input_shapes, keep_loss, level, stages, atol, rtol: as for :func:`caffe_port.verify`.

    Raises:
        AssertionError: with the first layer that differs, the likely cause and the report.
    """
    __tracebackhide__ = True  # pytest then shows the line of the test, not this one
    report = verify_port(
        module,
        prototxt,
        weights,
        keep_parameters=not copy_parameters,
        reference=reference,
        input=input,
        seed=seed,
        preprocess=preprocess,
        input_shapes=input_shapes,
        keep_loss=keep_loss,
        level=level,
        stages=stages,
        atol=atol,
        rtol=rtol,
    )
    if not report.passed:
        raise AssertionError(f"{report.candidate} differs from the Caffe net\n{as_text(report)}")
