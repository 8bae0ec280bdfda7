"""Reads the logs of `caffe train`: the solver, losses, learning rates, test results.

Source: solver.cpp (Step, Test), sgd_solver.cpp (ApplyUpdate) of several versions of Caffe.
"""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from caffe_port.errors import ParseError
from caffe_port.storage.files import atomic_write, read_bytes
from caffe_port.training.plots import curves, is_loss, judge

_LINE = re.compile(r"^[IWEF](\d{4})?(\d{4}) (\d\d:\d\d:\d\d\.\d+)\s+\d+ ([\w.]+):\d+\] (.*)$")
_NUMBER = r"([-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+|nan(?:\([^)]*\))?|inf|\d\.#\w+))"
_TESTING = re.compile(r"Iteration (\d+), Testing net(?: \(#(\d+)\))?", re.IGNORECASE)
_TRAINED = re.compile(rf"Iteration (\d+)(?: \([^)]*\))?(?:, [\d./]+ep)?, loss = {_NUMBER}", re.IGNORECASE)
_RATE = re.compile(rf"Iteration (\d+), lr = {_NUMBER}", re.IGNORECASE)
_OUTPUT = re.compile(rf"\s*(Test|Train) net output #(\d+): (.+?) = {_NUMBER}(.*)", re.IGNORECASE)
_WEIGHT = re.compile(rf" \(\* {_NUMBER} = ")
_SCORE = re.compile(rf"Test score #(\d+): {_NUMBER}", re.IGNORECASE)
_TEST_LOSS = re.compile(rf"Test loss: {_NUMBER}", re.IGNORECASE)
_REPORTS = re.compile(r"\s*(Iteration \d+,? .*=|(Test|Train) net output|Test (score|loss))", re.IGNORECASE)
"""What reports numbers. One that none of the above reads is counted."""
_FIELD = re.compile(r"^(\w+): (.+)$")


@dataclass
class CaffeLog:
    """The contents of a log.

    Attributes:
        path: the file.
        solver: the solver's fields as printed by Caffe, as text; repeated fields as a list.
        metrics: lines like those of a run's metrics.jsonl: kind train (iter, loss, lr, outputs) and test (iter,
            outputs, and losses: the weights of those that are; net for all test nets but the first), by iteration; of
            an iteration that a resumed run repeats, the last line counts. Several values of one output are
            ``NAME[0]``, ``NAME[1]`` and so on.
        device: the GPU, if the log names it.
        not_read: lines that report numbers in a form that is not known.
        seconds: time from the first to the last line with a timestamp.
    """

    path: str
    solver: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    device: str = ""
    seconds: float = 0.0
    not_read: list[str] = field(default_factory=list)

    @property
    def tests(self) -> list[dict[str, Any]]:
        """The tests of the first test net."""
        return [line for line in self.metrics if line["kind"] == "test" and "net" not in line]

    @property
    def nets(self) -> list[int]:
        """The indices of the test nets."""
        return sorted({line.get("net", 0) for line in self.metrics if line["kind"] == "test"})

    @property
    def trained(self) -> list[dict[str, Any]]:
        return [line for line in self.metrics if line["kind"] == "train"]

    def output(self, net: int = 0) -> str | None:
        """The test output that says how good the net is: the first that contains "acc", else the first that is no loss
        (``top-1``, ``mAP``); None if there are only losses.
        """
        lines = [line for line in self.metrics if line["kind"] == "test" and line.get("net", 0) == net]
        names = {name: line for line in lines for name in line["outputs"]}
        name = judge({"outputs": names, "losses": {k: w for line in lines for k, w in line["losses"].items()}})
        return None if name is None or is_loss(name, names[name]) else name

    def accuracies(self, net: int = 0) -> list[tuple[int, float]]:
        """(iteration, value of :meth:`output`) of every test; an accuracy is from 0 to 1."""
        name = self.output(net)
        return [
            (line["iter"], line["outputs"][name])
            for line in self.metrics
            if line["kind"] == "test" and line.get("net", 0) == net and name in line["outputs"]
        ]

    def best(self, net: int = 0) -> tuple[int, float] | None:
        """(iteration, accuracy) of the best test; the first one if there are several."""
        return max(self.accuracies(net), key=lambda point: point[1], default=None)

    def last(self, net: int = 0) -> tuple[int, float] | None:
        """(iteration, accuracy) of the last test."""
        points = self.accuracies(net)
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
            "further_test_nets": [
                {"net": k, "output": self.output(k), "best": self.best(k), "last": self.last(k)} for k in self.nets if k
            ],
            "lines_not_read": len(self.not_read),
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
    lines: dict[tuple[str, int, int], dict[str, Any]] = {}
    rates: dict[int, float] = {}
    blocks: dict[str, dict[str, Any] | None] = {"test": None, "train": None}
    in_solver = False
    times: list[datetime] = []

    def report(block: dict[str, Any], name: str, value: float) -> None:
        """Adds a value, and the block with its first one: a later block for the same iteration replaces it."""
        if not block["outputs"]:
            lines.pop(_key(block), None)
            lines[_key(block)] = block
        block["outputs"].setdefault(name, []).append(value)

    for raw in text.splitlines():
        match = _LINE.match(raw)
        if match is None:
            if in_solver and (said := _FIELD.match(raw)):
                _add(log.solver, said[1], said[2].strip('"'))
            continue
        _time(times, match[1], match[2], match[3])
        message = match[5]
        in_solver = "Initializing solver from parameters" in message or (in_solver and not message)
        if said := re.match(r"GPU \d+: (.+)", message):
            log.device = said[1]
        elif said := _TESTING.match(message):
            block = {"kind": "test", "iter": int(said[1]), "outputs": {}, "losses": {}}
            blocks["test"] = block | ({"net": int(said[2])} if int(said[2] or 0) else {})
        elif said := _TRAINED.match(message):
            block = {"kind": "train", "iter": int(said[1]), "loss": _number(said[2]), "outputs": {}, "losses": {}}
            blocks["train"] = block
            lines.pop(_key(block), None)
            lines[_key(block)] = block
        elif said := _RATE.match(message):
            rates[int(said[1])] = _number(said[2])
        elif (said := _OUTPUT.match(message)) and (target := blocks[said[1].lower()]) is not None:
            report(target, said[3], _number(said[4]))
            if weighted := _WEIGHT.match(said[5]):
                target["losses"][said[3]] = _number(weighted[1])
        elif (said := _SCORE.match(message)) and (target := blocks["test"]) is not None:
            report(target, f"score #{said[1]}", _number(said[2]))
        elif (said := _TEST_LOSS.match(message)) and (target := blocks["test"]) is not None:
            target["loss"] = _number(said[1])
        elif _REPORTS.match(message) and "solver" in match[4]:
            log.not_read.append(raw)
    for line in lines.values():
        line["outputs"] = {
            name if len(values) == 1 else f"{name}[{k}]": value
            for name, values in line["outputs"].items()
            for k, value in enumerate(values)
        }
    log.metrics = sorted(lines.values(), key=lambda line: (line["iter"], line["kind"], line.get("net", 0)))
    rate: float | None = None
    for line in log.trained:
        rate = rates.get(line["iter"], rate)  # a log may end between its last loss and the rate
        line |= {} if rate is None else {"lr": rate}
    log.seconds = (times[-1] - times[0]).total_seconds() if times else 0.0
    return log


def _key(line: dict[str, Any]) -> tuple[str, int, int]:
    return line["kind"], line["iter"], line.get("net", 0)


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
    return math.nan if "nan" in text.lower() else float(text)


def _time(times: list[datetime], year: str | None, day: str, clock: str) -> None:
    """Appends a timestamp. Old logs contain no year; a jump back by half a year means that a new year has begun."""
    known = int(year) if year else times[-1].year if times else 2000
    try:
        moment = datetime.strptime(f"{known}{day} {clock[:15]}", "%Y%m%d %H:%M:%S.%f")
        if not year and times and (times[-1] - moment).days > 180:
            moment = moment.replace(year=known + 1)
    except ValueError:
        return
    if len(times) < 2:
        times.append(moment)
    else:
        times[-1] = max(times[-1], moment)


def to_csv(log: CaffeLog, path: str | Path) -> None:
    """Writes a CSV table: iteration, kind, loss, learning rate, and a column for each output of each net: ``train
    NAME``, ``test NAME``, and ``test #1 NAME`` for the second test net. All tests of an iteration are one row; its loss
    is that of the first test net, where the log has it.

    Raises:
        CaffePortError: the file cannot be written.
    """
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    columns: dict[str, None] = {}
    for line in log.metrics:
        net = line.get("net", 0)
        row = rows.setdefault((line["iter"], line["kind"]), {})
        values = {
            f"{line['kind']} #{net} {name}" if net else f"{line['kind']} {name}": value
            for name, value in line["outputs"].items()
        }
        columns |= dict.fromkeys(values)
        row |= values | ({} if net else {name: line[name] for name in ("loss", "lr") if name in line})
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["iter", "kind", "loss", "lr", *columns])
    for (it, kind), row in rows.items():
        writer.writerow([it, kind, *(row.get(name, "") for name in ("loss", "lr", *columns))])
    with atomic_write(path, "w") as file:
        file.write(buffer.getvalue())


def plot(log: CaffeLog, *paths: str | Path) -> None:
    """Plots the log's curves. Raises DependencyError without matplotlib."""
    curves(log.metrics, *paths, title=Path(log.path).name)
