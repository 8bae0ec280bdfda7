"""Reads the logs of `caffe train`: the solver, losses, learning rates, test results.

Source: solver.cpp (Step, Test), sgd_solver.cpp (ApplyUpdate) of several versions of Caffe.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

from caffe_port.errors import ParseError
from caffe_port.storage.files import atomic_write, read_bytes
from caffe_port.training.plots import curves, is_loss, judge

_HEADER = re.compile(
    r"(?<![A-Za-z_])[IWEF](?P<year>\d{4})?(?P<day>\d{4})(?: (?P<time>\d\d:\d\d:\d\d(?:\.\d+)?))?(?: +(?P<thread>\d+))?"
    r" (?:[^\s\]]*[/\\])?(?P<file>\w[\w.]*):\d+\] ?"
    r"|(?<![\w./\\])(?P<alone>\w+\.(?:cpp|cc|cu|hpp)):\d+\] ?"
)
"""What glog writes before a message. Tutorials leave out the time and the thread of 2013, or all but the file."""
_RANK = re.compile(r"\[(?:\d+,)?(\d+)\](?:<std\w+>:)? ?")
"""What mpirun writes before a line, to say which process wrote it."""
_NUMBER = r"([-+]?(?:\d+(?:\.\d+)?(?:e[-+]?\d\d+)?|\.\d+|nan(?:\([^)]*\))?|inf|\d\.#\w+))(?![\w.#+-])"
_CUT = "#"
"""Put after a message that another one follows without a space: its last number may lack digits."""
_DEVICE = re.compile(r"[\s>|]*(?:[\[(]\d[\d.]*[\])])?\s*")
"""What NVIDIA/caffe writes before a message, to say which GPU computed it; and quotation marks."""
_TESTING = re.compile(r"(?:Iteration (\d+), )?Testing net(?: \(#(\d+)\))?", re.IGNORECASE)
_TRAINED = re.compile(rf"Iteration (\d+)(?: \([^)]*\))?(?:, [\d./]+ep)?, loss = {_NUMBER}", re.IGNORECASE)
_RATE = re.compile(rf"Iteration (\d+), lr = {_NUMBER}", re.IGNORECASE)
_OUTPUT = re.compile(rf"(Test|Train) net output(?: mAP)? #(\d+): (.+?) = {_NUMBER}(.*)", re.IGNORECASE)
_WEIGHT = re.compile(rf" \(\\?\* {_NUMBER} = ")
_SCORE = re.compile(rf"Test score #(\d+): {_NUMBER}", re.IGNORECASE)
_TEST_LOSS = re.compile(rf"Test loss: {_NUMBER}", re.IGNORECASE)
_CLASS = re.compile(rf"class(?: AP )?(\d+): {_NUMBER}$")
"""The average precision of a class, before that of all: show_per_class_result, of SSD and NVIDIA/caffe."""
_REPORTS = re.compile(r"(Iteration \d+,? .*=|(Test|Train) net output|Test (score|loss))", re.IGNORECASE)
"""What reports numbers. One that none of the above reads is counted."""
_BEGINS = ("Initializing solver from parameters", "Restoring previous solver status from", "Resuming from")
_FIELD = re.compile(r"^(\w+): (.+)$")


@dataclass
class CaffeLog:
    """The contents of a log.

    Attributes:
        path: the file.
        solver: the solver's fields as printed by Caffe, as text; repeated fields as a list.
        metrics: lines like those of a run's metrics.jsonl: kind train (iter, loss, lr, outputs) and test (iter,
            outputs, and losses: the weights of those that are; net for all test nets but the first), by iteration.
            Several values of one output are ``NAME[0]``, ``NAME[1]`` and so on; the average precision of a detector's
            class is ``NAME class 1``.
        device: the GPU, if the log names it.
        not_read: lines that report numbers in a form that is not known.
        replaced: points of earlier runs in the same file, from the iteration on at which a later run goes on.
        of_others: points of further processes that trained at the same time; those of the first are in ``metrics``.
        seconds: time from the first to the last line with a timestamp.
    """

    path: str
    solver: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    device: str = ""
    seconds: float = 0.0
    not_read: list[str] = field(default_factory=list)
    replaced: int = 0
    of_others: int = 0

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
        points = [point for point in self.accuracies(net) if not math.isnan(point[1])]
        return max(points, key=lambda point: point[1], default=None)

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
            "points_replaced": self.replaced,
            "points_of_other_processes": self.of_others,
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
    """Parses the text of a log; the result is empty if no line is Caffe's.

    Several processes may have written it at the same time, and runs may follow each other: of the former the first
    counts, of the latter the last, from the iteration on at which it begins. A line that occurs twice counts once.
    """
    log = CaffeLog(path)
    reader = _Reader(log)
    seen: set[tuple[str | Any, ...]] = set()
    times: list[datetime] = []
    for raw in text.splitlines():
        rank = _RANK.match(raw)
        line, process = (raw[rank.end() :], rank[1]) if rank else (raw, "")
        headers = list(_HEADER.finditer(line))
        if not headers:
            reader.plain(line, process)
        for header, following in zip_longest(headers, headers[1:]):
            message = line[header.end() : following.start() if following else len(line)]
            if following and not message[-1:].isspace():
                message += _CUT
            if header["time"]:
                key = (process, *header.groups(), message)
                if key in seen:
                    continue
                seen.add(key)
                _time(times, header["year"], header["day"], header["time"])
            reader.message(
                message, raw, (process, header["thread"] or ""), "solver" in (header["file"] or header["alone"])
            )
    reader.finish()
    log.seconds = (times[-1] - times[0]).total_seconds() if times else 0.0
    return log


Process = tuple[str, str]
"""A process: its number in mpirun's output, and its thread; empty where the log has none."""


@dataclass
class _Reader:
    """Takes in a log's messages one by one.

    Attributes:
        blocks: the test and the training step that each process reports at the moment.
        found: all tests and training steps, with the number of the run and the process that reported them.
        rates: iteration -> learning rate, with the number of the run.
        runs: how many runs have begun.
        dumps: the fields of the solver that each process printed.
        open_dump: the fields that the following lines belong to, and how many braces are open.
    """

    log: CaffeLog
    blocks: dict[tuple[Process, str], dict[str, Any]] = field(default_factory=dict)
    found: list[tuple[int, Process, dict[str, Any]]] = field(default_factory=list)
    rates: list[tuple[int, int, float]] = field(default_factory=list)
    runs: int = 0
    dumps: list[tuple[Process, dict[str, Any]]] = field(default_factory=list)
    open_dump: dict[str, tuple[dict[str, Any], int]] = field(default_factory=dict)
    last: Process = ("", "")
    at: int = 0

    def plain(self, line: str, process: str) -> None:
        """A line without a header: a field of the solver, or a message whose header was cut off."""
        if process in self.open_dump:
            fields, depth = self.open_dump[process]
            if not depth and (said := _FIELD.match(line)):
                _add(fields, said[1], said[2].strip('"'))
            self.open_dump[process] = fields, depth + line.count("{") - line.count("}")
        elif not self._report(_of(line), line, self.last) and re.match(r"(Test|Train) net output", _of(line)):
            self.log.not_read.append(line)

    def message(self, message: str, raw: str, process: Process, of_solver: bool) -> None:
        self.last = process
        if message.startswith(_BEGINS):
            self.runs += 1
            self.open_dump.pop(process[0], None)
            if message.startswith(_BEGINS[0]):
                self.dumps.append((process, {}))
                self.open_dump[process[0]] = self.dumps[-1][1], 0
        elif message:
            self.open_dump.pop(process[0], None)
        if said := re.match(r"GPU \d+: (.+)", message):
            self.log.device = said[1]
        elif not self._report(_of(message), raw, process) and _REPORTS.match(_of(message)) and of_solver:
            self.log.not_read.append(raw)

    def _report(self, message: str, raw: str, process: Process) -> bool:
        """Takes in a message that reports a number; returns whether it is one whose form is known."""
        if said := _TESTING.match(message):
            self.at = int(said[1]) if said[1] else self.at
            block = {"kind": "test", "iter": self.at, "outputs": {}, "losses": {}, "classes": []}
            self.blocks[process, "test"] = block | ({"net": int(said[2])} if int(said[2] or 0) else {})
        elif said := _TRAINED.match(message):
            self.at = int(said[1])
            block = {"kind": "train", "iter": self.at, "loss": _number(said[2]), "outputs": {}, "losses": {}}
            self.blocks[process, "train"] = block
            self.found.append((self.runs, process, block))
        elif said := _RATE.match(message):
            self.rates.append((self.runs, int(said[1]), _number(said[2])))
        elif said := _OUTPUT.match(message):
            return self._output(said, process)
        elif (said := _SCORE.match(message)) and (target := self.blocks.get((process, "test"))) is not None:
            self._value(target, process, f"score #{said[1]}", _number(said[2]))
        elif (said := _TEST_LOSS.match(message)) and (target := self.blocks.get((process, "test"))) is not None:
            target["loss"] = _number(said[1])
        elif (said := _CLASS.match(message)) and (target := self.blocks.get((process, "test"))) is not None:
            target["classes"].append((said[1], _number(said[2])))
        else:
            return False
        return True

    def _output(self, said: re.Match[str], process: Process) -> bool:
        target = self.blocks.get((process, said[1].lower()))
        if target is None:
            return False
        name = said[3]
        self._value(target, process, name, _number(said[4]))
        if weighted := _WEIGHT.match(said[5]):
            target["losses"][name] = _number(weighted[1])
        for label, value in target.pop("classes", ()):
            self._value(target, process, f"{name} class {label}", value)
        if target["kind"] == "test":
            target["classes"] = []
        return True

    def _value(self, block: dict[str, Any], process: Process, name: str, value: float) -> None:
        """Adds a value, and a test with its first one."""
        if block["kind"] == "test" and not block["outputs"]:
            self.found.append((self.runs, process, block))
        block["outputs"].setdefault(name, []).append(value)

    def finish(self) -> None:
        """Fills the log."""
        log, first = self.log, _first(self.found)
        lines: dict[tuple[str, int, int], dict[str, Any]] = {}
        reached: dict[int, int] = {}
        for run, process, line in self.found:
            if process not in first[line["kind"]]:
                log.of_others += 1
                continue
            # where the lines that say so were left out, an iteration before the last one tells that a run began
            if run not in reached or (line["kind"] == "train" and line["iter"] < reached[run]):
                beyond = [key for key, one in lines.items() if one["iter"] > line["iter"]]
                log.replaced += len(beyond)
                for key in beyond:
                    del lines[key]
            if line["kind"] == "train" or run not in reached:
                reached[run] = line["iter"]
            log.replaced += _key(line) in lines and bool(lines.pop(_key(line)))
            lines[_key(line)] = line
        for line in lines.values():
            line.pop("classes", None)
            line["outputs"] = {
                name if len(values) == 1 else f"{name}[{k}]": value
                for name, values in line["outputs"].items()
                for k, value in enumerate(values)
            }
        log.metrics = sorted(lines.values(), key=lambda line: (line["iter"], line["kind"], line.get("net", 0)))
        rates = {it: rate for _, it, rate in self.rates}
        rate: float | None = None
        for line in log.trained:
            rate = rates.get(line["iter"], rate)  # a log may end between its last loss and the rate
            line |= {} if rate is None else {"lr": rate}
        counted = [fields for process, fields in self.dumps if any(process in own for own in first.values())]
        log.solver = (counted or [fields for _, fields in self.dumps] or [{}])[-1]


def _first(found: Sequence[tuple[int, Process, dict[str, Any]]]) -> dict[str, set[Process]]:
    """The processes that count, by kind of line: each that begins after the one before has ended."""
    spans: dict[str, dict[Process, list[int]]] = {"train": {}, "test": {}}
    for number, (_, process, line) in enumerate(found):
        spans[line["kind"]].setdefault(process, [number, number])[1] = number
    chosen: dict[str, set[Process]] = {}
    for kind, own in spans.items():
        end, chosen[kind] = -1, set()
        for process, (began, ended) in sorted(own.items(), key=lambda item: item[1]):
            if began > end:
                end = ended
                chosen[kind].add(process)
    return chosen


def _of(message: str) -> str:
    """A message without what precedes it."""
    found = _DEVICE.match(message)
    return message[found.end() :] if found else message


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
        moment = datetime.strptime(f"{known}{day} {clock[:15]}", f"%Y%m%d %H:%M:%S{'.%f' if '.' in clock else ''}")
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
