"""Compares a hand-written port with the Caffe net: ``verify net.prototxt w.caffemodel --against mymodel.py:Net``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from caffe_port.api import Prototxt, Stored
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.errors import CaffePortError
from caffe_port.signatures.signature import Trait, has, has_weights
from caffe_port.typing import Array
from caffe_port.verification.comparison import ATOL, RTOL, PortDistance, Report, Row, Tolerance, difference
from caffe_port.verification.details import Details
from caffe_port.verification.inputs import random_inputs
from caffe_port.verification.references.reference import Reference, StoredReference, record
from caffe_port.verification.reports.terminal import as_text
from caffe_port.verification.runner import FreeRun
from caffe_port.verification.subject import Input, Subject, find_reference, prepare
from caffe_port.verification.user_module.calling import by_name
from caffe_port.verification.user_module.examination.search import other_curves, search, unproven
from caffe_port.verification.user_module.examination.state import Examination
from caffe_port.verification.user_module.recorder import load_module, load_state, owner_of
from caffe_port.verification.user_module.rows import actual_of, free_of
from caffe_port.verification.user_module.rows import rows as report_rows
from caffe_port.verification.user_module.tops import Tops, array
from caffe_port.verification.user_module.trial import Trial


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
    details: Details | None = None,
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
        input, seed, preprocess, input_shapes, keep_loss, level, stages, atol, rtol, ignore_fields, details: as for
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
    own = load_module(module, None if converted else state) if isinstance(module, str) else module
    if converted and state is not None:
        if own.state_dict():
            load_state(own, state)
        else:
            state = None  # a net without parameters
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
    tolerance = Tolerance(atol, rtol)
    tops = Tops(case.spec, trace.tops, tolerance)
    blobs = [blob for blob, _ in case.spec.inputs]
    dtype = _dtype_of(own)
    inputs = [torch.from_numpy(_floats(case.inputs[blob])).to(dtype) for blob in blobs]
    found = Examination(own, case, tops, tolerance, inputs, keep_parameters)
    found.ask, words = by_name(own, blobs) or (None, "")
    found.notes += [words] * bool(words)
    if dtype != torch.float32:
        found.notes.append(f"the port's parameters are {str(dtype).removeprefix('torch.')}: so are its inputs")
    search(found)
    rows = tuple(_rounded(found, subject, report_rows(found)))
    notes = list(subject.notes)
    if unproven(found) and not any(row.status == "failed" for row in rows):
        given = {blob for blob, what in subject.words.items() if not what.startswith("random")}
        other = _on_another_input(found, judge, seed, given)
        if other is not None and other.verdicts:
            rows, found = tuple(report_rows(other)), other
            notes.append(
                "on the given input the port agrees; the rows are those of another input, on which it does not"
            )
    if converted and state is not None:
        notes.append(f"the port's parameters were loaded from {state}")
    notes += found.notes
    if any(row.status == "failed" for row in rows) and not found.free.error and _unsteady(found):
        notes.append("two runs of the port on one input differ: it draws random numbers, or keeps a state between runs")
    if any(row.broken for row in rows) and found.weights.unsure:
        names = ", ".join(found.weights.unsure[:4]) + (", ..." if len(found.weights.unsure) > 4 else "")
        notes.append(
            f"which of Caffe's parameters of one size belong in {names} is taken from the order of their use; "
            "if that is wrong, give the port its own with --state FILE"
        )
    notes += _training_notes(found)
    if not keep_parameters:
        notes += _fold_notes(found)
    if details is not None:
        details.case = case
        for row in rows:
            actual = actual_of(found, row)
            if actual is not None:
                details.add(row, found.tops.arrays[row.layer, row.top], actual)
    report = subject.report(rows, tolerance, judge.name, told)
    return dataclasses.replace(report, notes=tuple(notes))


def _converted_state(where: str) -> Path | None:
    """The parameters that ``caffe-port convert`` wrote next to a class; None if it did not write that class."""
    file, _, name = where.rpartition(":")
    folder = Path(file).parent
    state = folder / "weights.safetensors"
    try:
        written = json.loads((folder / "port.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(written, dict) and written.get("class") == name and Path(file).name == "model.py"
    return state if ours and state.is_file() else None


def _on_another_input(found: Examination, judge: Reference, seed: int, given: Collection[str]) -> Examination | None:
    """The search on other numbers: what a port computes in another way may be the same by chance, as max(x, 0) of
    positive numbers. None if the reference cannot run on them.

    Args:
        given: the inputs that the user gave; of these, marks, indices and boxes stay as they are.
    """
    case = found.case
    inputs, words = random_inputs(case.spec, case.shapes, seed + 1)
    factor = 8 if other_curves(found) else 2  # a curve may be another only beyond 6
    wide = {blob: x * factor if "normal" in words[blob] else x for blob, x in inputs.items()}
    wide |= {blob: case.inputs[blob] for blob in given if "normal" not in words.get(blob, "normal")}
    case = dataclasses.replace(case, inputs={blob: x.astype("float32") for blob, x in wide.items()})
    if isinstance(judge, StoredReference):
        return None
    trace = record(judge, case)
    if len(trace.tops) < len(found.tops.arrays):
        return None
    tops = Tops(case.spec, trace.tops, found.tolerance)
    dtype = _dtype_of(found.module)
    tensors = [torch.from_numpy(case.inputs[blob]).to(dtype) for blob, _ in case.spec.inputs]
    other = Examination(found.module, case, tops, found.tolerance, tensors, True, found.ask)
    search(other)
    return other


def _rounded(found: Examination, subject: Subject, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, with the distance from a float64 run of the net where a layer agrees and only the free runs differ."""
    net = subject.ported.net
    inputs = [torch.from_numpy(_floats(found.case.inputs[blob])) for blob in net.plan.inputs]
    exact, coarse = FreeRun(net, inputs), FreeRun(net, inputs, torch.float32)
    steps = {step.layer.name: step for step in net.plan.steps}
    for row in rows:
        actual = free_of(found, row)
        alone = row.isolated is not None and row.isolated.passed
        if row.free is None or row.free.passed or not alone or actual is None:
            yield row
            continue
        with torch.inference_mode():
            runs = [run.tops(steps[row.layer]) for run in (exact, coarse)]
        if any(tops is None for tops in runs):
            yield row
            continue
        true, own = (array(tops[row.top]) for tops in runs if tops is not None)
        others = (actual, found.tops.arrays[row.layer, row.top], own)
        port, reference, net_itself = (one.greatest / one.unit for one in (difference(true, o) for o in others))
        rounding = PortDistance(port, max(reference, net_itself))
        words = f"free-running it is {port:.1e} from float64, the net in float32 {rounding.reference:.1e}"
        verdict = "within rounding" if rounding.is_rounding else "more than rounding"
        yield dataclasses.replace(row, rounding=rounding, note=f"{row.note}; {words}: {verdict}".removeprefix("; "))


def _fold_notes(found: Examination) -> Iterator[str]:
    """What to do if a port seems to have folded layers but was given Caffe's weights."""
    for (name, _), verdict in found.verdicts.items():
        layer = found.case.spec.by_name[name]
        before = found.case.spec.by_name[layer.producers[0][0]] if layer.producers else None
        forgotten = has(layer.type, Trait.BATCH_STATISTICS) and verdict.call is None
        if forgotten and before is not None and has_weights(before.type):
            yield (
                f"Caffe's weights were copied into the port; if '{name}' is folded into the port's weights, give those "
                "with --state FILE"
            )
            return


def _training_notes(found: Examination) -> Iterator[str]:
    """A sentence for each kind of difference that only matters in training."""
    by_call = {call.index: call for call in found.free.calls}
    differ: dict[tuple[str, float, float], list[str]] = {}
    for index, name in sorted(found.weights.layers.items()):
        layer, call = found.case.spec.by_name[name], by_call.get(index)
        if call is None or layer.type != "BatchNorm":
            continue
        if not isinstance(owner_of(found.module, call), nn.modules.batchnorm._BatchNorm):
            continue
        momentum, fraction = call.named.get("momentum"), layer.param.batch_norm_param.moving_average_fraction
        if momentum is not None and abs(momentum - (1 - fraction)) > 1e-6:
            differ.setdefault(("momentum", momentum, fraction), []).append(call.name)
    for layer in found.case.spec.layers:
        if layer.type != "Dropout":
            continue
        for value in found.last.carriers.get((layer.name, 0), ()):
            call = value.call
            if call is None or call.kind != "Dropout" or not isinstance(call.named.get("p"), (int, float)):
                continue
            ours, theirs = call.named["p"], layer.param.dropout_param.dropout_ratio
            if abs(ours - theirs) > 1e-6:
                differ.setdefault(("ratio", ours, theirs), []).append(call.name)
    for (what, ours, theirs), calls in differ.items():
        names = ", ".join(calls[:3]) + (f" and {len(calls) - 3} more" if len(calls) > 3 else "")
        if what == "ratio":
            yield f"only for training: dropout ratio {ours:g} in {names}; Caffe's is {theirs:g}"
        else:
            caffe = f"Caffe's moving_average_fraction {theirs:g} is momentum {1 - theirs:g}"
            yield f"only for training: momentum {ours:g} in {names}; {caffe}"


def _unsteady(found: Examination) -> bool:
    """Whether a second run of the port on the same input makes other numbers."""
    again = Trial(found.module, found.tops, free=True, constants=found.constants).run(
        found.module, found.inputs, found.ask
    )
    pairs = zip(found.free.returned, again.returned, strict=False)
    return len(again.returned) != len(found.free.returned) or not all(
        torch.equal(one.own.nan_to_num(), other.own.nan_to_num()) if one.own.shape == other.own.shape else False
        for one, other in pairs
    )


def _dtype_of(module: nn.Module) -> torch.dtype:
    """The precision of all of a port's parameters; float32 if they are of several, or there are none."""
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


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
