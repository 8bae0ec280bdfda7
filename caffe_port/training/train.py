"""Caffe's training loop (solver.cpp), on any device; resumed runs are bit-equal to uninterrupted ones.

Source: solver.cpp (Step, Solve, Test).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caffe_port import devices
from caffe_port.errors import CaffePortError
from caffe_port.evaluation.average_precision import Detections
from caffe_port.net.net import Net
from caffe_port.spec import NetSpec
from caffe_port.training import plots, processes, recurrent, run_folder, signals, solver
from caffe_port.training.cuda_graph import GraphedUpdate
from caffe_port.training.set_up import Listener, TestNet, Training, TrainOptions, TrainResult, facts, set_up
from caffe_port.training.solver import SolverSpec

__all__ = ["Listener", "TrainOptions", "TrainResult", "train"]


def train(
    solver_path: str | Path | SolverSpec,
    out: str | Path,
    options: TrainOptions | None = None,
    listen: Listener | None = None,
) -> TrainResult:
    """Trains a net as its solver.prototxt specifies.

    Args:
        solver_path: the solver.prototxt, or what was read from it, with the fields to ignore.
        out: the run's folder.
        options: additional options, which override the solver's.
        listen: called with every event, in the first process only.

    Raises:
        CaffePortError: bad input; the folder is in use; or the loss is not finite: names the iteration and
            the layer where this began.
    """
    began, options = time.monotonic(), options or TrainOptions()
    spec = solver_path
    if not isinstance(spec, SolverSpec):
        spec = SolverSpec.read(spec, options.ignore_fields)
    run_folder.check_unused(out, options.resume)
    with processes.group(options.device) as device, run_folder.hold(out) as claim:
        hear = listen if listen is not None and processes.is_first() else (lambda _: None)
        training, start = set_up(spec, Path(out), options, device, hear, claim)
        with signals.caught() as stop, contextlib.closing(training), devices.memory_kept(device):
            training.began = began
            return _loop(training, start, stop)


# -- the loop -------------------------------------------------------------------------------------------------------


def _loop(t: Training, start: int, stop: list[str]) -> TrainResult:
    """Solver::Step and Solver::Solve. Losses stay on the device until they are needed."""
    spec, last_time, last_iter = t.spec, time.monotonic(), start
    per_update = spec.iter_size * t.batch_size
    graphed = GraphedUpdate(t.optimizer, functools.partial(_gradients, t)) if t.options.cuda_graph else None
    it, over = start, _all_stop(t, stop)
    while it < spec.max_iter and not over:
        if spec.is_test(it) and (it > 0 or spec.test_initialization):
            _test(t, it, stop)
            if over := _all_stop(t, stop):
                break
            last_time, last_iter = time.monotonic(), it

        t.net.train()
        rate = solver.set_iteration(t.optimizer, spec, it)
        batches = [t.batch(it * spec.iter_size + k) for k in range(spec.iter_size)]
        if graphed is not None:
            t.unread.append(graphed(batches))
        else:
            t.optimizer.zero_grad(set_to_none=True)
            kept = _kept(t.net) if spec.iter_size > 1 else None
            try:
                t.unread.append(_gradients(t, batches, functools.partial(_over_within, t, it, stop)))
            except _OverError:  # this iteration is left to the next piece of the run
                _put_back(t.net, kept)
                break
            if t.read_every == 1:
                _read(t, it, batches)
            if t.plateau is not None:
                t.plateau.hear(spec, it, sum(t.losses) / len(t.losses))
                rate = solver.set_iteration(t.optimizer, spec, it, t.plateau.current_step)
            t.optimizer.step()
        displayed = spec.display and it % spec.display == 0
        due = displayed or spec.is_test(it + 1) or bool(spec.snapshot and (it + 1) % spec.snapshot == 0)
        due = due or max(len(t.unread), 1) >= t.read_every or it + 1 == spec.max_iter
        if due:
            _read(t, it)

        if displayed:
            now = time.monotonic()
            speed = (it + 1 - last_iter) * per_update / max(now - last_time, 1e-9)
            last_time, last_iter = now, it + 1
            left = (spec.max_iter - it - 1) * per_update / speed
            _report(
                t,
                {
                    "kind": "train",
                    "iter": it,
                    "loss": sum(t.losses) / len(t.losses),
                    "lr": rate,
                    "images_per_s": round(speed, 1),
                    "eta_s": round(left),
                },
            )
        it += 1
        t.claim.begun = True
        t.listen({"kind": "progress", "iter": it, "loss": t.losses[-1] if t.losses else math.nan, "lr": rate})
        if _time_over(t) and it < spec.max_iter and not stop:
            stop.append(processes.TIME_OVER)
        if due or processes.world_size() == 1:
            over = _all_stop(t, stop)
        if spec.snapshot and it % spec.snapshot == 0:
            _snapshot(t, it)

    _read(t, it - 1)
    wanted = spec.snapshot_after_train or bool(stop)  # a run that was stopped must be able to go on
    if wanted and not (spec.snapshot and it % spec.snapshot == 0) and it > start:
        _snapshot(t, it)
    if not stop and spec.tests:
        _test(t, it, stop, stoppable=False)
    return _finish(t, it, stop[0] if stop else "")


def _all_stop(t: Training, stop: list[str]) -> bool:
    processes.share_stop(stop, t.device)
    return bool(stop)


def _time_over(t: Training) -> bool:
    return t.options.max_seconds is not None and time.monotonic() >= t.began + t.options.max_seconds


def _over_within(t: Training, it: int, stop: list[str]) -> bool:
    """Whether to stop within iteration ``it`` or the test before it. Several processes stop between iterations only,
    together. The time limit leaves at least one update to every piece of a run: otherwise it would never end.
    """
    if processes.world_size() > 1:
        return False
    if it > t.start and _time_over(t) and not stop:
        stop.append(processes.TIME_OVER)
    return bool(stop)


class _OverError(Exception):
    """An iteration was stopped between two of its batches."""


Kept = tuple[dict[str, Tensor], dict[str, Any], recurrent.States]


def _kept(net: Net) -> Kept:
    """What a forward pass in TRAIN changes: statistics, random states, and the states of recurrent layers."""
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    return buffers, run_folder.random_states(), recurrent.states(net)


def _put_back(net: Net, kept: Kept | None) -> None:
    if kept is not None:
        for name, buffer in net.named_buffers():
            buffer.copy_(kept[0][name])
        run_folder.restore_random_states(kept[1])
        recurrent.put(net, kept[2])


def _gradients(t: Training, batches: list[list[Tensor]], over: Callable[[], bool] = lambda: False) -> Tensor:
    """Fills the gradients with the sum over the batches; returns the mean of their losses, on the device.

    Args:
        over: asked before every batch but the first; if it says so, _OverError is raised.
    """
    losses = []
    for k, bottoms in enumerate(batches):
        if k and over():
            raise _OverError
        with processes.accumulate(t.model, last=k == len(batches) - 1):
            with t.autocast():
                _, loss = t.model(*bottoms)
            loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).double().mean()


def _read(t: Training, it: int, batches: list[list[Tensor]] | None = None) -> None:
    """Reads the losses up to iteration ``it`` from the device and checks them.

    Args:
        batches: the batches of ``it``, if its update has not been applied yet.
    """
    if not t.unread:
        return
    values = processes.means(t.unread)
    first = it + 1 - len(values)
    t.unread.clear()
    for k, value in enumerate(values):
        if not math.isfinite(value):
            _explain(t, first + k, it, batches, value)
        t.losses.append(value)


@torch.no_grad()
def _test(t: Training, it: int, stop: list[str], stoppable: bool = True) -> None:
    """Solver::TestAll: the mean of every output over test_iter batches, for every test net; or, with eval_type
    "detection", the mean average precision of every output.

    The batches go on where the last test stopped. A signal stops a test without a result, and so does the time limit
    if ``stoppable``. Unlike in Caffe, there is always a test at the end, also between two multiples of test_interval.
    """
    for number, test in enumerate(t.tests):
        if test.net is not t.net:
            test.take_over(t.net)
        test.net.eval()
        trained = recurrent.states(test.net)
        recurrent.put(test.net, test.states)
        try:
            found = _outputs(t, it, number, test, lambda: _over_within(t, it, stop) if stoppable else bool(stop))
            if found is None:
                return
            test.states.update(recurrent.states(test.net))
        finally:
            recurrent.put(test.net, trained)
        _tested(t, it, number, *found)


Tested = tuple[dict[str, float], dict[str, dict[int, float]]]


def _outputs(t: Training, it: int, number: int, test: TestNet, over: Callable[[], bool]) -> Tested | None:
    """The means of a test net's outputs, and the average precision of each class; None if ``over`` ended the test."""
    first = t.spec.tests_before(it) * test.batches
    sums: dict[str, Tensor] = {}
    found: dict[str, Detections] = {}
    for k in processes.share_of(test.batches):
        if processes.world_size() == 1 and over():
            return None
        with t.autocast():
            outputs = test.net(*test.sizes.batch(first + k))
        named = outputs if isinstance(outputs, dict) else {test.net.outputs[0]: outputs}
        for name in _detections(test.net.plans[False].spec) if t.spec.detects else ():
            found.setdefault(name, Detections()).add(named[name].float().cpu().numpy())
        for name, value in _scalars({name: top for name, top in named.items() if name not in found}):
            sums[name] = sums[name] + value if name in sums else value
        t.listen({"kind": "testing", "iter": it, "net": number, "batch": k + 1, "batches": test.batches})
    means = {name: processes.total(value) / max(test.batches, 1) for name, value in sums.items()}
    means |= {name: one.mean(t.spec.ap_version) for name, one in found.items()}
    per_class = {name: one.by_class(t.spec.ap_version) for name, one in found.items()}
    return means, per_class if t.spec.show_per_class_result else {}


def _detections(test: NetSpec) -> list[str]:
    """The outputs of DetectionEvaluate."""
    return [blob for blob, (layer, _) in test.outputs if test.by_name[layer].type == "DetectionEvaluate"]


MOST_VALUES = 100


def _scalars(outputs: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The values of the outputs by name, in float64: ``accuracy``, or of several values ``per_class[0]`` and so on.
    Outputs of more than 100 values (maps, whole batches of scores) are left out.
    """
    for name, value in outputs.items():
        if value.numel() == 1:
            yield name, value.double().sum()
        elif value.numel() <= MOST_VALUES:
            yield from ((f"{name}[{k}]", one) for k, one in enumerate(value.double().flatten()))


def _tested(
    t: Training, it: int, number: int, means: dict[str, float], per_class: Mapping[str, Mapping[int, float]]
) -> None:
    """Reports the result of a test net; the first one decides which weights are best."""
    event: dict[str, Any] = {"kind": "test", "iter": it, "outputs": means, "losses": t.loss_weights(number)}
    if per_class:
        event["per_class"] = {name: {str(k): value for k, value in one.items()} for name, one in per_class.items()}
    if number:
        _report(t, {**event, "net": number})
        return
    name = plots.judge(event)
    if name is not None:
        higher = not plots.is_loss(name, event)
        value = means[name]
        found = {"iter": it, "name": name, "value": value}
        if it == 0 and not t.fine_tuned:
            t.untrained = found
        elif math.isfinite(value) and (t.best is None or _better(found, t.best, higher)):
            t.best = found
            if processes.is_first():
                t.run.save_weights("best", t.net, t.definition)
        event["best"] = t.best
        if higher and t.reference:
            theirs = _interpolated(t.reference, it)
            event["reference"] = theirs
            if theirs is not None:
                event |= {"ahead": value > theirs, "difference": value - theirs}
    _report(t, event)
    _plot(t)


def _explain(t: Training, it: int, now: int, batches: list[list[Tensor]] | None, loss: float) -> None:
    """Raises the error for a loss that is not finite, with its origin if its update has not been applied yet."""
    snapshot, _ = t.run.latest()
    hint = f"The last good snapshot is {snapshot.state}." if snapshot else "There is no snapshot before it."
    hint += " Usually, a smaller base_lr or clip_gradients helps."
    if batches is None:
        hint += " Use --read-loss-every 1 to find the layer."
        late = f"it was read after iteration {now}, too late to find where this began"
        raise CaffePortError(f"the loss is {loss} at iteration {it}; {late}", t.spec.path, hint)
    raise CaffePortError(f"the loss is {loss} at iteration {it}; it began {_origin(t, it, batches)}", t.spec.path, hint)


def _origin(t: Training, it: int, batches: list[list[Tensor]]) -> str:
    """The first blob or layer output that is not finite, in words."""
    for name, blobs in t.net.caffe_layers().items():
        bad = [blob for blob in blobs.blob_names() if not torch.isfinite(blobs.get_blob(blob)).all()]
        if bad:
            return f"in the {bad[0]} of layer '{name}', since the update of iteration {it - 1}"
    with torch.no_grad(), t.autocast():
        for turn in itertools.chain.from_iterable(t.net.steps(*bottoms) for bottoms in batches):
            if not all(torch.isfinite(top).all() for top in turn.tops):
                return f"in the output of layer '{turn.layer.name}' ({turn.layer.type})"
    return "in the loss itself"


def _snapshot(t: Training, it: int) -> None:
    if processes.is_first():
        saved = t.run.save(
            t.net,
            t.definition,
            t.optimizer,
            t.spec,
            it,
            {
                "best": t.best,
                "untrained": t.untrained,
                "losses": list(t.losses),
                "seconds": round(t.seconds(), 3),
                "recurrent": list(map(recurrent.packed, (recurrent.states(t.net), *(test.states for test in t.tests)))),
            },
            t.plateau,
        )
        _report(t, {"kind": "snapshot", "iter": it, "file": saved.state.name})
    processes.barrier()


def _better(a: dict[str, Any], b: dict[str, Any], higher: bool) -> bool:
    return bool(a["value"] > b["value"] if higher else a["value"] < b["value"])


def _report(t: Training, event: dict[str, Any]) -> None:
    t.remember(event)
    if processes.is_first():
        t.run.log({**event, "time": round(time.time(), 3)})
        t.listen(event)


def _plot(t: Training, always: bool = False) -> None:
    """Plots the curves, at most every 30 seconds until the end of the run."""
    if not processes.is_first() or not (always or time.monotonic() - t.drawn > 30):
        return
    t.drawn = time.monotonic()
    try:
        plots.curves(t.run.metrics(), t.run.path / "curves.png", t.run.path / "curves.svg", reference=t.reference)
    except CaffePortError as error:
        if str(error) not in t.notes:
            t.notes.append(str(error))
            t.listen({"kind": "note", "iter": 0, "text": str(error)})


def _finish(t: Training, it: int, stopped: str) -> TrainResult:
    if processes.is_first():
        t.claim.begun = True
        t.run.save_weights("last", t.net, t.definition)
        _plot(t, always=True)
        if text := _about_best(t):
            t.listen({"kind": "note", "iter": it, "text": text})
        t.run.write_json(
            "run.json",
            facts(t)
            | {
                "iter": it,
                "stopped": stopped,
                "seconds": round(t.seconds(), 3),
                "peak_memory_bytes": _peak_memory(t.device),
                "best": t.best,
                "untrained": t.untrained,
                "outputs": t.tested,
                "outputs_iter": t.tested_at,
                "train": t.trained,
                "sha256": t.run.checksums(),
            },
        )
        t.listen({"kind": "end", "iter": it, "stopped": stopped, "best": t.best, "outputs": t.tested})
    return TrainResult(it, t.tested, t.best, stopped, t.run.path, t.tested_at, t.trained)


def _about_best(t: Training) -> str:
    """What must be known of best.caffemodel: that training improved nothing, or an empty string."""
    if t.best is not None and t.best["iter"] == 0:
        return "best.caffemodel has the weights that training started from: no later test was better"
    if t.best is None or t.untrained is None or t.best["name"] != t.untrained["name"]:
        return ""
    name, before = t.best["name"], t.untrained["value"]
    higher = not plots.is_loss(name, {"losses": t.loss_weights()})
    if not math.isfinite(before) or _better(t.best, t.untrained, higher):
        return ""
    return (
        f"no test was better than that of the untrained net ({name} = {before:.6g}); best.caffemodel is of a later one"
    )


def _interpolated(points: list[tuple[int, float]], it: int) -> float | None:
    """The linearly interpolated value of a curve; None outside its points."""
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 <= it <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (it - x0) / (x1 - x0)
    return None


def _peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
