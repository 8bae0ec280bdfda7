"""Reads the logs that `caffe train` wrote: losses, rates, tests, what was trained.

Source: solver.cpp (Step, Test), sgd_solver.cpp (ApplyUpdate) of several versions of Caffe.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from caffe_port.errors import ParseError
from caffe_port.storage.files import atomic_write, read_bytes

_LINE = re.compile(r"^[IWEF](\d{4}) (\d\d:\d\d:\d\d\.\d+)\s+\d+ [\w.]+:\d+\] (.*)$")
_NUMBER = r"([-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+|nan|inf|-?1\.#\w+))"
_TESTING = re.compile(r"Iteration (\d+), Testing net \(#(\d+)\)")
_TRAINED = re.compile(rf"Iteration (\d+)(?: \([^)]*\))?, loss = {_NUMBER}", re.IGNORECASE)
_RATE = re.compile(rf"Iteration (\d+), lr = {_NUMBER}", re.IGNORECASE)
_OUTPUT = re.compile(rf"\s*(Test|Train) net output #\d+: (\S+) = {_NUMBER}", re.IGNORECASE)
_FIELD = re.compile(r"^(\w+): (.+)$")


@dataclass
class CaffeLog:
    """What a log tells.

    Attributes:
        path: the file.
        solver: fields of the solver as Caffe echoed them, as text; repeated ones as a list.
        metrics: lines like those of a run's metrics.jsonl: kind train (iter, loss, lr, outputs) and test (iter,
            outputs), in the order of the log; an iteration that a resumed run repeated is there once, as seen last.
        device: the GPU, where the log says it.
        seconds: from the first line with a time to the last.
    """

    path: str
    solver: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    device: str = ""
    seconds: float = 0.0

    @property
    def tests(self) -> list[dict[str, Any]]:
        return [line for line in self.metrics if line["kind"] == "test"]

    @property
    def trained(self) -> list[dict[str, Any]]:
        return [line for line in self.metrics if line["kind"] == "train"]

    def output(self) -> str | None:
        """The test output that is an accuracy (the first whose name says so), or None."""
        names = dict.fromkeys(name for line in self.tests for name in line["outputs"])
        return next((name for name in names if "acc" in name.lower()), None)

    def accuracies(self) -> list[tuple[int, float]]:
        """(iteration, test accuracy as Caffe prints it, 0..1)."""
        name = self.output()
        return [(line["iter"], line["outputs"][name]) for line in self.tests if name in line["outputs"]]

    def best(self) -> tuple[int, float] | None:
        """(iteration, accuracy) of the best test, the first of equals."""
        return max(self.accuracies(), key=lambda point: point[1], default=None)

    def last(self) -> tuple[int, float] | None:
        """(iteration, accuracy) of the last test."""
        points = self.accuracies()
        return points[-1] if points else None

    def as_dict(self) -> dict[str, Any]:
        """A summary for JSON."""
        best, last = (point and {"iter": point[0], "accuracy": point[1]} for point in (self.best(), self.last()))
        return {
            "path": self.path,
            "solver": self.solver,
            "device": self.device,
            "seconds": round(self.seconds, 3),
            "tests": len(self.tests),
            "displays": len(self.trained),
            "output": self.output(),
            "best": best,
            "last": last,
            "last_train": self.trained[-1] if self.trained else None,
        }


def read(path: str | Path) -> CaffeLog:
    """Reads a log, however it was redirected, cut off or spiced with a shell's own lines.

    Raises:
        CaffePortError: it cannot be read.
        ParseError: no line of it is Caffe's solver's.
    """
    data = read_bytes(path)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"  # PowerShell redirects in UTF-16
    log = parse(data.decode(encoding, "replace"), str(path))
    if not log.metrics:
        raise ParseError("is no log of caffe train: no line tells of an iteration", str(path))
    return log


def parse(text: str, path: str = "<text>") -> CaffeLog:
    """The CaffeLog of a text; without lines of Caffe's it is empty."""
    log = CaffeLog(path)
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    rates: dict[int, float] = {}
    testing: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    in_solver = False
    times: list[datetime] = []
    for raw in text.splitlines():
        match = _LINE.match(raw)
        if match is None:
            if in_solver and (said := _FIELD.match(raw)):
                _add(log.solver, said[1], said[2].strip('"'))
            continue
        _time(times, match[1], match[2])
        message = match[3]
        in_solver = "Initializing solver from parameters" in message or (in_solver and not message)
        if said := re.match(r"GPU \d+: (.+)", message):
            log.device = said[1]
        elif said := _TESTING.match(message):
            testing = None
            if said[2] == "0":  # other test nets have names of their own
                testing = {"kind": "test", "iter": int(said[1]), "outputs": {}}
        elif said := _TRAINED.match(message):
            training = {"kind": "train", "iter": int(said[1]), "loss": _number(said[2]), "outputs": {}}
            lines.pop(("train", training["iter"]), None)
            lines["train", training["iter"]] = training
        elif said := _RATE.match(message):
            rates[int(said[1])] = _number(said[2])
        elif said := _OUTPUT.match(message):
            target = testing if said[1].lower() == "test" else training
            if target is not None:
                target["outputs"][said[2]] = _number(said[3])
                if target is testing:
                    lines.pop(("test", target["iter"]), None)
                    lines["test", target["iter"]] = target
    log.metrics = sorted(lines.values(), key=lambda line: (line["iter"], line["kind"]))
    rate = 0.0
    for line in log.trained:
        rate = line["lr"] = rates.get(line["iter"], rate)  # a log may be cut off between its last loss and the rate
    log.seconds = (times[-1] - times[0]).total_seconds() if times else 0.0
    return log


def _add(fields: dict[str, Any], name: str, value: str) -> None:
    if name not in fields:
        fields[name] = value
    elif isinstance(fields[name], list):
        fields[name].append(value)
    else:
        fields[name] = [fields[name], value]


def _number(text: str) -> float:
    """Also as Windows prints what is no number: 1.#QNAN, -1.#IND, 1.#INF."""
    if "#" in text:
        return float("inf" if "INF" in text.upper() else "nan") * (-1 if text.startswith("-") else 1)
    return float(text)


def _time(times: list[datetime], day: str, clock: str) -> None:
    """Appends a moment; a log does not tell its year, so one that goes backwards by much began a new one."""
    try:
        moment = datetime.strptime(f"2000{day} {clock[:15]}", "%Y%m%d %H:%M:%S.%f")
    except ValueError:
        return
    if times and (times[-1] - moment).days > 180:
        moment = moment.replace(year=times[-1].year + 1)
    if len(times) < 2:
        times.append(moment)
    else:
        times[-1] = max(times[-1], moment)


def to_csv(log: CaffeLog, path: str | Path) -> None:
    """Writes a table: iteration, kind, loss, rate, and a column for each output.

    Raises:
        CaffePortError: the file cannot be written.
    """
    names = list(dict.fromkeys(name for line in log.metrics for name in line["outputs"]))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["iter", "kind", "loss", "lr", *names])
    for line in log.metrics:
        values = [line["outputs"].get(name, "") for name in names]
        writer.writerow([line["iter"], line["kind"], line.get("loss", ""), line.get("lr", ""), *values])
    with atomic_write(path, "w") as file:
        file.write(buffer.getvalue())


def plot(log: CaffeLog, *paths: str | Path) -> None:
    """Draws the log's curves. Raises DependencyError without matplotlib."""
    from caffe_port.training import plots

    plots.curves(log.metrics, *paths, title=Path(log.path).name)
