"""Reads the logs of `caffe train`: the solver, losses, learning rates, test results.

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
    """The contents of a log.

    Attributes:
        path: the file.
        solver: the solver's fields as printed by Caffe, as text; repeated fields as a list.
        metrics: lines like those of a run's metrics.jsonl: kind train (iter, loss, lr, outputs) and test (iter,
            outputs), by iteration; of an iteration that a resumed run repeats, the last line counts.
        device: the GPU, if the log names it.
        seconds: time from the first to the last line with a timestamp.
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
        """The name of the first test output that contains "acc", or None."""
        names = dict.fromkeys(name for line in self.tests for name in line["outputs"])
        return next((name for name in names if "acc" in name.lower()), None)

    def accuracies(self) -> list[tuple[int, float]]:
        """(iteration, test accuracy from 0 to 1) of every test."""
        name = self.output()
        return [(line["iter"], line["outputs"][name]) for line in self.tests if name in line["outputs"]]

    def best(self) -> tuple[int, float] | None:
        """(iteration, accuracy) of the best test; the first one if there are several."""
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
    """Reads a log; it may be incomplete, in UTF-16, or contain other lines.

    Raises:
        CaffePortError: the file cannot be read.
        ParseError: it contains no line of Caffe's solver.
    """
    data = read_bytes(path)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"  # PowerShell redirects in UTF-16
    log = parse(data.decode(encoding, "replace"), str(path))
    if not log.metrics:
        raise ParseError("is not a log of caffe train: no line reports an iteration", str(path))
    return log


def parse(text: str, path: str = "<text>") -> CaffeLog:
    """Parses the text of a log; the result is empty if no line is Caffe's."""
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
            if said[2] == "0":  # only the first test net
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
        rate = line["lr"] = rates.get(line["iter"], rate)  # a log may end between its last loss and the rate
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
    """Parses a number, including Windows' 1.#QNAN, -1.#IND and 1.#INF."""
    if "#" in text:
        return float("inf" if "INF" in text.upper() else "nan") * (-1 if text.startswith("-") else 1)
    return float(text)


def _time(times: list[datetime], day: str, clock: str) -> None:
    """Appends a timestamp. Logs contain no year; a jump back by half a year means that a new year has begun."""
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
    """Writes a CSV table: iteration, kind, loss, learning rate, and a column for each output.

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
    """Plots the log's curves. Raises DependencyError without matplotlib."""
    from caffe_port.training import plots

    plots.curves(log.metrics, *paths, title=Path(log.path).name)
