"""Programs that take turns: each lives in a process of its own, is warm, and runs only while the others wait."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

HERE = Path(__file__).resolve().parent
LIMIT = 240  # seconds until a program is ready, or answers


@dataclass(frozen=True)
class Measured:
    """What was measured of a program; times in seconds, memory in MB.

    Attributes:
        time: the median of a pass.
        ratios: this program's median of a turn, divided by the first program's in the same round.
        peak, imported: the greatest memory, and the memory once the libraries were imported.
        error: why there are no figures.
        layers: of a program that says it, the median of each layer's time.
    """

    time: float = 0.0
    ratios: tuple[float, ...] = ()
    peak: float = 0.0
    imported: float = 0.0
    error: str = ""
    layers: Mapping[str, float] = field(default_factory=dict)


class Program:
    """A process of worker.py; ``more`` is for its environment."""

    def __init__(
        self,
        python: Path,
        kind: str,
        task: Mapping[str, Any],
        threads: int,
        path: Sequence[Path] = (),
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        environment = {**os.environ, **more, "GLOG_minloglevel": "3", "PYTHONPATH": os.pathsep.join(map(str, path))}
        environment.pop("OMP_WAIT_POLICY", None)  # threads that sleep between operations make small ones slow
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[name] = str(threads)
        self.process = subprocess.Popen(
            [str(python), str(HERE / "worker.py"), kind, json.dumps({"threads": threads, **task})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put("")

    def answer(self) -> dict[str, Any]:
        try:
            line = self.answers.get(timeout=LIMIT)
        except queue.Empty:
            return {"error": f"no answer within {LIMIT} s"}
        return json.loads(line) if line else {"error": f"the process ended with {self.process.wait()}"}

    def run(self, seconds: float) -> dict[str, Any]:
        """Runs for a time, one pass at least. Between its turns the process is stopped, also threads that spin."""
        assert self.process.stdin is not None
        self.process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{seconds}\n")
            self.process.stdin.flush()
        answer = self.answer()
        self.process.send_signal(signal.SIGSTOP)
        return answer

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def stopped(programs: Mapping[str, Program]) -> Iterator[None]:
    """Stops all programs at the end."""
    try:
        yield
    finally:
        for program in programs.values():
            program.stop()


def in_turns(programs: dict[str, Program], seconds: float, rounds: int) -> dict[str, Measured]:
    """Measures programs, by name.

    Args:
        seconds: for the turns of all programs together; it is exceeded where a pass takes longer.
        rounds: the number of turns of each.
    """
    errors, last = {}, {}
    times: dict[str, list[list[float]]] = {name: [] for name in programs}
    layers: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
    with stopped(programs):
        for name, program in programs.items():
            if said := program.answer().get("error"):
                errors[name] = said
            program.process.send_signal(signal.SIGSTOP)
        turn = seconds / rounds / max(len(programs) - len(errors), 1)
        for number in range(rounds):
            names = [name for name in programs if name not in errors]
            for name in names if number % 2 else reversed(names):
                last[name] = programs[name].run(turn)
                if said := last[name].get("error"):
                    errors[name] = said
                else:
                    times[name].append(last[name]["times"])
                    layers[name].append(last[name]["layers"])
    base = next(iter(programs))
    found = {}
    for name in programs:
        if name in errors:
            found[name] = Measured(error=errors[name])
            continue
        ratios: list[float] = []
        if base not in errors:
            pairs = zip(times[name], times[base], strict=True)
            ratios = [statistics.median(own) / statistics.median(other) for own, other in pairs]
        middle = statistics.median(statistics.median(own) for own in times[name])
        each = {layer: statistics.median(turn[layer] for turn in layers[name]) for layer in layers[name][-1]}
        found[name] = Measured(middle, tuple(ratios), last[name]["peak"], last[name]["import"], layers=each)
    return found


class Store:
    """What was measured, in a file, so that a run can go on where another stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}

    def get(self, key: str) -> dict[str, Measured] | None:
        cell = self.cells.get(key)
        return cell and {name: Measured(**{**one, "ratios": tuple(one["ratios"])}) for name, one in cell.items()}

    def put(self, key: str, cell: Mapping[str, Measured]) -> None:
        self.cells[key] = {name: vars(one) for name, one in cell.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.cells, indent=1))


def replace_between(page: Path, command: str, lines: Sequence[str]) -> None:
    """Puts lines between the two marks that a page has for a command."""
    marks = f"<!-- measured by {command} -->", f"<!-- end of what {command} measured -->"
    text = page.read_text(encoding="utf-8")
    before, mark, rest = text.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not mark or not end:
        sys.exit(f"{page} has no {' ... '.join(marks)}")
    page.write_text(f"{before}{mark}\n\n" + "\n".join(lines) + f"\n\n{end}{after}", encoding="utf-8")


def machine() -> str:
    """The processor and what it has for matrix products."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = set(fields.get("flags", "").split())
    best = next((word for word in ("avx512f", "avx2") if word in flags), "")
    named = {"avx512f": ", AVX-512", "avx2": ", AVX2"}.get(best, "")
    return f"{fields.get('model name', 'unknown processor')}{named}"
