"""Caffe's training loop (solver.cpp), on any device; resumed runs are bit-equal to uninterrupted ones.

Source: solver.cpp (Step, Solve, Test).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caffe_port.errors import CaffePortError
from caffe_port.training import plots, processes, run_folder, signals, solver
from caffe_port.training.cuda_graph import GraphedUpdate
from caffe_port.training.set_up import Listener, Training, TrainOptions, TrainResult, facts, set_up
from caffe_port.training.solver import SolverSpec

__all__ = ["Listener", "TrainOptions", "TrainResult", "train"]


def train(
    solver_path: str | Path, out: str | Path, options: TrainOptions | None = None, listen: Listener | None = None
) -> TrainResult:
    """Trains a net as its solver.prototxt specifies.

    Args:
        solver_path: the solver.prototxt.
        out: the run's folder.
        options: additional options, which override the solver's.
        listen: called with every event, in the first process only.

    Raises:
        CaffePortError: bad input; the folder is in use; or the loss is not finite: names the iteration and
            the layer where this began.
    """
    began, options = time.monotonic(), options or TrainOptions()
    with processes.group(options.device) as device, run_folder.hold(out):
        hear = listen if listen is not None and processes.is_first() else (lambda _: None)
        training, start = set_up(SolverSpec.read(solver_path, options.ignore_fields), Path(out), options, device, hear)
        with signals.caught() as stop, contextlib.closing(training):
            training.began = began
            return _loop(training, start, stop)


# -- the loop -------------------------------------------------------------------------------------------------------


def _loop(t: Training, start: int, stop: list[str]) -> TrainResult:
    """Solver::Step and Solver::Solve. Losses stay on the device until they are needed."""
    spec, last_time, last_iter = t.spec, time.monotonic(), start
    per_update = spec.iter_size * t.feeds["TRAIN"][0].batch_size
    graphed = GraphedUpdate(t.optimizer, lambda batches: _gradients(t, batches)) if t.options.cuda_graph else None
    limit = math.inf if t.options.max_seconds is None else t.began + t.options.max_seconds
    it, over = start, _all_stop(t, stop)
    while it < spec.max_iter and not over:
        if spec.test_interval and it % spec.test_interval == 0 and (it > 0 or spec.test_initialization):
            _test(t, it, stop)
            if over := _all_stop(t, stop):
                break
            last_time, last_iter = time.monotonic(), it

        t.net.train()
        rate = solver.set_iteration(t.optimizer, spec, it)
        batches = [t.batch("TRAIN", it * spec.iter_size + k) for k in range(spec.iter_size)]
        if graphed is not None:
            t.unread.append(graphed(batches))
        else:
            t.optimizer.zero_grad(set_to_none=True)
            t.unread.append(_gradients(t, batches))
            if t.read_every == 1:
                _read(t, it, batches)
            t.optimizer.step()
        displayed = spec.display and it % spec.display == 0
        due = displayed or any(n and (it + 1) % n == 0 for n in (spec.snapshot, spec.test_interval))
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
        t.listen({"kind": "progress", "iter": it, "loss": t.losses[-1] if t.losses else math.nan, "lr": rate})
        if time.monotonic() >= limit and it < spec.max_iter and not stop:
            stop.append(processes.TIME_OVER)
        if due or processes.world_size() == 1:
            over = _all_stop(t, stop)
        if spec.snapshot and it % spec.snapshot == 0:
            _snapshot(t, it)

    _read(t, it - 1)
    if spec.snapshot_after_train and not (spec.snapshot and it % spec.snapshot == 0) and it > start:
        _snapshot(t, it)
    if not stop and spec.test_interval and it % spec.test_interval == 0:
        _test(t, it, stop)
    return _finish(t, it, stop[0] if stop else "")


def _all_stop(t: Training, stop: list[str]) -> bool:
    processes.share_stop(stop, t.device)
    return bool(stop)


def _gradients(t: Training, batches: list[list[Tensor]]) -> Tensor:
    """Fills the gradients with the sum over the batches; returns the mean of their losses, on the device."""
    losses = []
    for k, bottoms in enumerate(batches):
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
def _test(t: Training, it: int, stop: list[str]) -> None:
    """Solver::Test: the mean of every scalar output over test_iter batches. A signal stops it without a result."""
    t.net.eval()
    sums: dict[str, Tensor] = {}
    for k in processes.share_of(t.spec.test_iter):
        if stop and processes.world_size() == 1:
            return
        with t.autocast():
            tops = [top for feed in t.feeds["TEST"] for top in feed.batch(k)]
            outputs = t.net(*tops)
        named = outputs if isinstance(outputs, dict) else {t.net.plans[False].outputs[0][0]: outputs}
        for name, value in named.items():
            if value.numel() == 1:
                sums[name] = (
                    sums.get(name, torch.zeros((), device=t.device, dtype=torch.float64)) + value.double().sum()
                )
    t.tested = {name: processes.total(value) / t.spec.test_iter for name, value in sums.items()}
    event: dict[str, Any] = {"kind": "test", "iter": it, "outputs": t.tested}
    name = _judge(t.tested)
    if name is not None:
        higher = "loss" not in name.lower()
        value = t.tested[name]
        if t.best is None or (value > t.best["value"] if higher else value < t.best["value"]):
            t.best = {"iter": it, "name": name, "value": value}
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


def _judge(outputs: Mapping[str, float]) -> str | None:
    """The output that decides which weights are best: an accuracy, or a loss if there is none."""
    names = [n for n in outputs if "acc" in n.lower()] or [n for n in outputs if "loss" in n.lower()]
    return names[0] if names else None


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
            {"best": t.best, "losses": list(t.losses), "seconds": round(t.seconds(), 3)},
        )
        _report(t, {"kind": "snapshot", "iter": it, "file": saved.state.name})
    processes.barrier()


def _report(t: Training, event: dict[str, Any]) -> None:
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
        t.run.save_weights("last", t.net, t.definition)
        _plot(t, always=True)
        t.run.write_json(
            "run.json",
            facts(t)
            | {
                "iter": it,
                "stopped": stopped,
                "seconds": round(t.seconds(), 3),
                "peak_memory_bytes": _peak_memory(t.device),
                "best": t.best,
                "outputs": t.tested,
                "sha256": t.run.checksums(),
            },
        )
        t.listen({"kind": "end", "iter": it, "stopped": stopped, "best": t.best, "outputs": t.tested})
    return TrainResult(it, t.tested, t.best, stopped, t.run.path)


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
