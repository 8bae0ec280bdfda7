"""Runs a Net and a reference in step and compares them top by top.

The nets free every top as soon as its last reader has read it, so memory does not grow with depth.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_port.errors import CaffePortError
from caffe_port.layers.layer import Layer
from caffe_port.net.execution import Execution
from caffe_port.net.net import Net
from caffe_port.net.plan import Step
from caffe_port.spec import LayerSpec
from caffe_port.typing import Array
from caffe_port.verification.comparison import Difference, Distance, Row, Tolerance, difference, failure, says_something
from caffe_port.verification.details import Details
from caffe_port.verification.diagnose import diagnose
from caffe_port.verification.references.numpy_formulas import NumPyReference, compute
from caffe_port.verification.references.reference import Case, Made, Reference
from caffe_port.verification.references.reference import alone as one_layer

_Tensors = tuple[Tensor, ...]


def run(
    net: Net,
    reference: Reference,
    case: Case,
    tolerance: Tolerance,
    mode: str = "both",
    strict: bool = False,
    details: Details | None = None,
    referee: Reference | None = None,
) -> Iterator[Row]:
    """Runs the net and the reference in step and compares every top.

    If a layer differs from the reference, the referee is asked about it. If the net agrees with the referee, the
    reference is what deviates: the layer is compared with the referee, and both sides go on with its tops.

    Args:
        net: the candidate, in the phase of ``case``.
        case: the net, parameters and inputs that the reference gets.
        mode: ``"both"``, ``"free"`` or ``"isolated"``.
        strict: measure the distance of both from a float64 run.
        details: collects data on every top that is compared.
        referee: what has the last word on a layer; None: nothing.

    Yields:
        A row for every top, in the net's order; one row for a layer without tops.
    """
    device = next((t.device for t in (*net.parameters(), *net.buffers())), torch.device("cpu"))
    dtype = next((t.dtype for t in net.parameters() if t.is_floating_point()), torch.float32)

    def tensor(array: Array) -> Tensor:
        return torch.tensor(np.asarray(array), device=device, dtype=dtype)

    inputs = [tensor(case.inputs[blob]) for blob in net.plan.inputs]
    free = _Runner(net, inputs) if mode != "isolated" else None
    alone = _Runner(net, inputs) if mode != "free" else None
    turns = reference.run(case)
    truth = NumPyReference().run(case) if strict else None
    exact = FreeRun(net, inputs) if mode == "both" else None
    unknown: list[Array] | None = None
    instead: list[Array] | None = None
    diagnosed = refereed = 0
    for step in net.plan.steps:
        made = turns.send(instead)
        assert made.layer.name == step.layer.name
        instead = None
        ours = [None if runner is None else runner.tops(step) for runner in (free, alone)]
        rows = list(_rows(step.layer, made, ours, tolerance, free))
        broken = made.tops is not None and any(row.broken for row in rows)
        if broken and may_draw(case, step.layer) and _draws(step, ours, (free, alone), tolerance):
            rows = [dataclasses.replace(r, free=None, isolated=None, note=_DRAWN) if r.broken else r for r in rows]
            ours = [None if tops is None else tuple(map(tensor, made.tops or ())) for tops in ours]
            broken, exact = False, None  # a float64 run would draw others
        if broken and referee is not None and alone is not None and refereed < _MAX_REFEREED:
            refereed += 1
            bottoms = [b.cpu().numpy() for b in alone.execution.bottoms(step)]
            ruling = _ruling(referee, case, made, bottoms)
            again = list(_rows(step.layer, ruling, ours, tolerance, free)) if ruling.tops is not None else rows
            if not any(row.broken for row in again):
                made, rows, instead = ruling, again, list(ruling.tops or ())
        if made.by != reference.name and made.tops is not None:
            rows = [dataclasses.replace(row, by=made.by) for row in rows]
        if rows[0].broken and diagnosed < _MAX_DIAGNOSED:
            diagnosed += 1
            rows[0] = _explained(rows[0], net, step, made, ours, (free, alone), case, tolerance)
        if exact is not None:
            rows = [_with_rounding(row, exact, step, made, ours[0]) for row in rows]
        if truth is not None:
            true = truth.send(unknown)
            unknown = [np.asarray(t) for t in made.tops or ()] if true.tops is None else None
            rows = [_with_distance(row, true, made, ours[0] or ours[1]) for row in rows]
        if details is not None:
            details.see(rows, made, next((t for t in reversed(ours) if isinstance(t, tuple)), ()))
        yield from rows
        expected = None if made.tops is None else tuple(map(tensor, made.tops))
        if expected is None:
            own = next((tops for tops in reversed(ours) if isinstance(tops, tuple)), None)
            if own is None and step.tops:
                yield from _stopped(net, step, made.by)
                break
            instead = [t.cpu().numpy() for t in own or ()]
            if free is not None and not step.bottoms and own is not None:
                ours[0] = own  # DummyData may be random: both runs get the same values
        if free is not None:
            free.put(step, ours[0] if isinstance(ours[0], tuple) else None)
        if alone is not None:
            alone.put(step, expected if expected is not None else ours[1] if isinstance(ours[1], tuple) else None)
    for generator in (turns, truth):
        if generator is not None:
            generator.close()


_MAX_REFEREED = 50
"""The number of layers about which the referee is asked; a net that is wrong everywhere needs no ruling."""


def _ruling(referee: Reference, case: Case, made: Made, bottoms: Sequence[Array]) -> Made:
    """What the referee makes of a layer; its note says what the reference does."""
    try:
        ruling = one_layer(referee, case, made.layer, bottoms)
    except CaffePortError:  # it cannot be run here
        return dataclasses.replace(made, tops=None)
    who = ruling.by.partition(" ")[0]
    return dataclasses.replace(ruling, note=f"{made.by} deviates from {who} here: compared with {who}")


_DRAWN = "drawn at random: both runs go on with the reference's numbers"


def may_draw(case: Case, layer: LayerSpec) -> bool:
    """Whether Caffe may draw random numbers here: in TRAIN; in TEST where there are no bottoms, or where it is said."""
    return case.spec.phase == "TRAIN" or not layer.producers or bool(layer.param.dropout_param.sample_weights_test)


def _draws(
    step: Step, ours: Sequence[_Tensors | Difference | None], runners: Sequence[_Runner | None], tolerance: Tolerance
) -> bool:
    """Whether the layer of this step draws random numbers."""
    return any(
        draws(functools.partial(runner.tops, step), first, tolerance)
        for runner, first in zip(runners, ours, strict=True)
        if runner is not None and isinstance(first, tuple)
    )


def draws(ask: Callable[[], Any], first: _Tensors, tolerance: Tolerance) -> bool:
    """Whether a layer draws random numbers, as Dropout in TRAIN does: asked again, it makes something else.

    It is asked eight times, for a few numbers may be drawn the same by chance.
    """
    for _ in range(8):
        again = ask()
        pairs = zip(first, again, strict=True) if isinstance(again, tuple) else ()
        if not all(difference(a.cpu().numpy(), b.cpu().numpy(), tolerance).passed for a, b in pairs):
            return True
    return False


_MAX_DIAGNOSED = 20
"""The number of layers that are diagnosed; a net that is wrong everywhere has no mistake in a single layer."""


def _explained(
    row: Row,
    net: Net,
    step: Step,
    made: Made,
    ours: Sequence[_Tensors | Difference | None],
    runners: Sequence[_Runner | None],
    case: Case,
    tolerance: Tolerance,
) -> Row:
    """The row with its likely cause. If there is only a free run, the bottoms are the candidate's own."""
    runner, tops = next((r, t) for r, t in reversed(list(zip(runners, ours, strict=True))) if r is not None)
    if not isinstance(tops, tuple) or made.tops is None:
        return row
    values = [v.cpu().numpy() for v in runner.execution.bottoms(step)]
    if words := _as_formula(row, step, made, tops, values, case, tolerance):
        return dataclasses.replace(row, cause=words)
    module = getattr(net, step.attribute)
    names = module.blob_names() if isinstance(module, Layer) else None
    finding = diagnose(
        step.layer,
        values,
        case.blobs.get(step.layer.name, ()),
        tops[row.top].cpu().numpy(),
        np.asarray(made.tops[row.top]),
        parameters=None if names is None else [module.get_blob(n).detach().cpu().numpy() for n in names],
        train=case.spec.phase == "TRAIN",
        tolerance=tolerance,
    )
    return row if finding is None else dataclasses.replace(row, cause=str(finding))


def _as_formula(
    row: Row, step: Step, made: Made, tops: _Tensors, bottoms: Sequence[Array], case: Case, tolerance: Tolerance
) -> str:
    """What is to be said if the net computes what the formula does, and the reference something else."""
    blobs = case.blobs.get(step.layer.name, ())
    right, _ = compute(step.layer, bottoms, blobs, case.spec.phase == "TRAIN")
    if right is None or made.by == NumPyReference().name or len(right) <= row.top:
        return ""
    if not difference(right[row.top], tops[row.top].cpu().numpy(), tolerance).passed:
        return ""
    who = made.by.partition(" ")[0]
    if step.layer.implied:
        missing = " and ".join(step.layer.implied)
        return f"the file has no {missing}: {who} takes its default, the net what the layers before it imply"
    return (
        f"{who} and Caffe's formula disagree here, and the net follows the formula; "
        "Caffe itself decides: caffe-port build-caffe, and --against caffe"
    )


class FreeRun:
    """A free run of the net, in float64 or another precision, which is made as far as it is asked for."""

    def __init__(self, net: Net, inputs: Sequence[Tensor], dtype: torch.dtype = torch.float64) -> None:
        self.net, self.inputs, self.dtype = net, inputs, dtype
        self.runner: _Runner | None = None
        self.done = 0
        self.made: _Tensors | Difference | None = None

    def tops(self, step: Step) -> _Tensors | None:
        """The tops of a step; steps are asked for in the net's order."""
        if self.runner is None:
            self.runner = _Runner(copy.deepcopy(self.net).to(self.dtype), [x.to(self.dtype) for x in self.inputs])
        steps = self.net.plan.steps
        while self.done < len(steps) and (self.done == 0 or steps[self.done - 1] is not step):
            current = steps[self.done]
            self.made = self.runner.tops(current)
            self.runner.put(current, self.made if isinstance(self.made, tuple) else None)
            self.done += 1
        return self.made if isinstance(self.made, tuple) else None


def _with_rounding(row: Row, exact: FreeRun, step: Step, made: Made, ours: _Tensors | Difference | None) -> Row:
    """The row with the distance of both free runs from the float64 run, if the layer agrees and they do not."""
    if row.free is None or row.free.passed or row.broken or row.isolated is None or made.tops is None:
        return row
    true = exact.tops(step)
    if true is None or not isinstance(ours, tuple):
        return row
    pair = (ours[row.top].cpu().numpy(), np.asarray(made.tops[row.top]))
    found = [difference(true[row.top].cpu().numpy(), one) for one in pair]
    rounding = Distance(*(one.greatest / one.unit for one in found))
    who = made.by.partition(" ")[0]
    words = f"free-running it is {rounding.candidate:.1e} from float64, {who} {rounding.reference:.1e}"
    verdict = "within rounding" if rounding.is_rounding else "more than rounding"
    return dataclasses.replace(row, rounding=rounding, note=row.note or f"{words}: {verdict}")


class _Runner:
    """A pass that continues with given tops when a layer fails."""

    def __init__(self, net: Net, inputs: Sequence[Tensor]) -> None:
        self.execution = Execution(net._modules, net.plan, inputs)
        self.stopped = ""

    def tops(self, step: Step) -> _Tensors | Difference | None:
        """The layer's tops; a failure if it raises; None if a bottom is missing."""
        if any(b is None for b in self.execution.bottoms(step)):
            return None
        try:
            return self.execution.tops(step)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            self.stopped = self.stopped or step.layer.name
            text = str(error).splitlines()
            return failure(f"raises {type(error).__name__}: {text[0][:160] if text else ''}")

    def put(self, step: Step, tops: _Tensors | None) -> None:
        """Sets the tops that the layers downstream read; None means missing."""
        self.execution.put(step, (None,) * len(step.tops) if tops is None else tops)


def _rows(
    layer: LayerSpec,
    made: Made,
    ours: Sequence[_Tensors | Difference | None],
    tolerance: Tolerance,
    free: _Runner | None,
) -> Iterator[Row]:
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
            note = f"the free run stopped at '{free.stopped}'"
        constant = made.tops is not None and not says_something(made.tops[k])
        yield Row(layer.name, k, layer.type, blob, layer.where, found[0], found[1], note, constant=constant)


def _stopped(net: Net, last: Step, by: str) -> Iterator[Row]:
    """Rows for the rest of the net if neither side can continue."""
    after = False
    for step in net.plan.steps:
        if after:
            for k, blob in enumerate(step.layer.tops):
                yield Row(
                    step.layer.name,
                    k,
                    step.layer.type,
                    blob,
                    step.layer.where,
                    note=f"after '{last.layer.name}', which neither {by} nor the net could run",
                )
        after = after or step is last


def _with_distance(row: Row, true: Made, made: Made, tops: _Tensors | Difference | None) -> Row:
    """The row with the distances of the candidate's free run and of the reference's run from the float64 run."""
    if true.tops is None or made.tops is None or not isinstance(tops, tuple) or made.by == true.by:
        return row
    truth, reference, ours = true.tops[row.top], np.asarray(made.tops[row.top]), tops[row.top].cpu().numpy()
    if not truth.shape == reference.shape == ours.shape:
        return row
    return dataclasses.replace(
        row, distance=Distance(difference(truth, ours).relative, difference(truth, reference).relative)
    )
