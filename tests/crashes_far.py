"""Breaks off whole commands at every point of their life and looks at what is left; crashes.py does so to functions.

`python tests/crashes_far.py 200`: as many SIGKILLs of a running `train`, spread over its life (`--only train --how
kill` does nothing else), and for every command that writes a file:

- call: SIGKILL before or after the n-th call that touches a file; most of those of train are in its snapshots;
- again: SIGKILL at random, and of the resumed run, and of that one's;
- full: from the n-th call on, no file grows (RLIMIT_FSIZE), as on a full disk;
- gone: at the n-th call, the folder disappears;
- locked: at the n-th call, the folder becomes read-only.

Whatever happens, a file is whole or absent, an exit code is 0, 1 or 2, an error is a sentence, and `train --resume`
ends with the very weights of an undisturbed run. `--torchrun 10` does so to two processes (gloo), all of them or one.
Prints JSON: what was done how often, and every violation.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent / "helpers"))

import small_training
from crashes import CALLS, NET

from caffe_port import api
from caffe_port.cli import main as command_line
from caffe_port.formats import caffemodel, solverstate
from caffe_port.training import plots
from caffe_port.verification.references.trace import Trace

SHARED = Path(os.environ.get("CAFFE_PORT_SHARED") or Path(__file__).resolve().parents[2] / "shared")
SECONDS = 120.0
"""After this, a command hangs."""
TROUBLES = ("call", "full", "gone", "locked")
CLASSIFIER = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: [2, 3, 4, 5] } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 6
  weight_filler { type: "xavier" } } }
"""
LOG = """I0102 03:04:05.678901  17 solver.cpp:48] Initializing solver from parameters:
I0102 03:04:06.678901  17 solver.cpp:330] Iteration {0}, Testing net (#0)
I0102 03:04:07.678901  17 solver.cpp:397]     Test net output #0: accuracy = 0.{0}53
I0102 03:04:08.678901  17 solver.cpp:218] Iteration {0} (-1 iter/s, 0s/100 iters), loss = 2.{0}
I0102 03:04:08.678901  17 sgd_solver.cpp:105] Iteration {0}, lr = 1e-3
"""


# -- what is broken off ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A command; OUT in it is the folder that it writes to. ``again`` is how it is continued, if it can be."""

    name: str
    line: str
    again: str = ""
    troubles: tuple[str, ...] = TROUBLES


def jobs(project: Path) -> list[Job]:
    """Writes what the commands read."""
    for form in ("BINARYPROTO", "HDF5"):
        path = small_training.project(project, more=f"momentum: 0.9 snapshot_format: {form}")
        text = path.read_text().replace("max_iter: 12", "max_iter: 60").replace("snapshot: 4", "snapshot: 5")
        (project / f"{form}.prototxt").write_text(text)
    (project / "conv.prototxt").write_text(NET.format(name="new", outputs=6))
    (project / "ip.prototxt").write_text(CLASSIFIER)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (7, 3, 4, 5), np.uint8)
    np.savez(project / "set.npz", x_train=pictures, y_train=np.arange(7) % 6, x_test=pictures, y_test=np.arange(7) % 6)
    digits = rng.integers(0, 256, (12, 28, 28), np.uint8)
    np.savez(
        project / "digits.npz", x_test=digits, y_test=np.arange(12) % 10, x_train=digits, y_train=np.arange(12) % 10
    )
    cv2.imwrite(str(project / "a.png"), pictures[0].transpose(1, 2, 0))
    (project / "caffe.log").write_text("".join(map(LOG.format, range(9))))
    ip, train = "ip.prototxt ip.caffemodel", "train --out OUT"
    found = [
        Job("train", f"{train} BINARYPROTO.prototxt", f"{train} BINARYPROTO.prototxt --resume", ("again", *TROUBLES)),
        Job("train as HDF5", f"{train} HDF5.prototxt", f"{train} HDF5.prototxt --resume"),
        Job("convert", "convert conv.prototxt -o OUT/net --force"),
        Job("evaluate", f"evaluate {ip} --data set.npz --confusion OUT/c.png --json"),
        Job("predict", "predict conv.prototxt a.png --draw OUT/d.png"),
        Job("verify", "verify conv.prototxt --html OUT/r.html --junit OUT/r.xml"),
        Job("dump", "dump conv.prototxt -o OUT/t.npz"),
        Job("log", "log caffe.log --csv OUT/p.csv --plot OUT/p.png --plot OUT/p.svg"),
    ]
    if (SHARED / "models").is_dir():
        line = f"reproduce mnist-slim-310k --mirror {SHARED} --offline --data digits.npz -o OUT/net"
        found.append(Job("reproduce", line))
    return found


def damaged(out: Path) -> str:
    """What is wrong with the files of a folder, or an empty string. Those that begin with a dot are temporary ones."""
    for path in sorted(out.rglob("*")) if out.exists() else []:
        if path.name.startswith(".") or path.is_dir() or path.suffix == ".jsonl":
            continue
        if any(part.startswith(".") for part in path.relative_to(out).parts):
            continue
        try:
            _read(path)
        except Exception as error:  # noqa: BLE001 - whatever reading it raises
            return f"{path.relative_to(out)} is damaged: {type(error).__name__}: {error}"
    return ""


def _read(path: Path) -> None:
    data = path.read_bytes()
    ends = {".png": b"IEND\xaeB`\x82", ".svg": b"</svg>\n", ".html": b"</html>\n", ".csv": b"\n"}
    if path.name == "port.json":
        for file in json.loads(data)["files"]:
            assert hashlib.sha256((path.parent / file["file"]).read_bytes()).hexdigest() == file["sha256"], file["file"]
    elif path.suffix in ends:
        assert data.endswith(ends[path.suffix]), "it does not end as it should"
    elif path.suffix == ".json":
        json.loads(data)
    elif path.suffix == ".xml":
        ElementTree.fromstring(data)
    elif path.suffix == ".npz":
        Trace.load(path)
    elif path.suffix == ".py":
        compile(data, path.name, "exec")
    elif path.suffix == ".safetensors":
        load_file(path)
    elif path.name.endswith((".caffemodel", ".caffemodel.h5")):
        assert caffemodel.read(path).layers
    elif path.name.endswith((".solverstate", ".solverstate.h5")):
        assert solverstate.read(path).history
    else:
        raise AssertionError("a file of an unknown kind")


# -- how it is broken off -------------------------------------------------------------------------------------------


def run(line: str, project: Path, out: Path, trouble: str = "", at: int = 0, seconds: float = SECONDS) -> Result:
    """A command in a forked process, and its trouble at the n-th call, or SIGKILL after a time."""
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        _child(line.replace("OUT", str(out)), project, out, trouble, at, writer)
    os.close(writer)
    timer = threading.Timer(seconds, os.kill, (process, signal.SIGKILL))
    timer.start()
    with os.fdopen(reader, "rb") as pipe:
        said, _, count = pipe.read().decode(errors="replace").partition("\0calls: ")
    _, status = os.waitpid(process, 0)
    timer.cancel()
    code = None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return Result(code, said, int(count or 0))


@dataclass(frozen=True)
class Result:
    """How a command ended: its exit code, None if it was killed; what it printed; the calls that touched files."""

    code: int | None
    said: str
    calls: int

    @property
    def wrong(self) -> str:
        if self.code == 2 and "error: " in self.said and "error in caffe-port" not in self.said:
            return ""
        if self.code in (None, 0, 1) and "Traceback" not in self.said:
            return ""
        return f"exit code {self.code}: {self.said[-1500:]}"


def _child(line: str, project: Path, out: Path, trouble: str, at: int, writer: int) -> None:
    """Never returns."""
    count, code = 0, 99

    def watch(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        if event in ("c_call", "c_return") and getattr(argument, "__name__", "") in CALLS:
            count += 1
            if count == at:
                sys.setprofile(None)
                _strike(trouble, out)

    try:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.chdir(project)
        os.environ["CAFFE_PORT_CACHE"] = str(out / "cache")
        if trouble == "locked":
            _obey_permissions()
        sys.argv = ["caffe-port", *line.split()]
        if trouble:  # watching makes it slower
            sys.setprofile(watch)
        command_line()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - a traceback is a violation
        traceback.print_exc()
    finally:
        sys.setprofile(None)
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(writer, b"\0calls: %d" % count)
        os._exit(code)


def _obey_permissions() -> None:
    """Takes from root what lets it write anywhere, CAP_DAC_OVERRIDE."""
    libc = ctypes.CDLL(None, use_errno=True)
    head, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if os.geteuid() == 0 and libc.capget(head, sets) == 0:
        sets[0] &= ~(1 << 1)
        assert libc.capset(head, sets) == 0, os.strerror(ctypes.get_errno())


def _strike(trouble: str, out: Path) -> None:
    if trouble == "call":
        os.kill(os.getpid(), signal.SIGKILL)
    elif trouble == "full":
        limit = random.choice((0, 300, 3000))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    elif trouble == "gone":
        out.rename(out.with_name("moved"))
    elif trouble == "locked":
        for path in (out, *out.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)


def _unlock(out: Path) -> None:
    for path in (out, *out.rglob("*")) if out.exists() else ():
        path.chmod(0o755 if path.is_dir() else 0o644)


class Breaker:
    """Breaks off jobs, and keeps what was done and what was wrong."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.project = folder / "project"
        self.jobs = jobs(self.project)
        ported = api.port(self.project / "ip.prototxt")
        caffemodel.write(self.project / "ip.caffemodel", ported.definition.net, ported.net.blobs())
        self.whole: dict[str, tuple[int, float]] = {}
        self.done: Counter[str] = Counter()
        self.reached: Counter[str] = Counter()
        self.violations: list[str] = []

    def undisturbed(self, job: Job) -> tuple[int, float]:
        """The calls and the seconds of a job that is left alone; its folder is kept."""
        if job.name not in self.whole:
            out = self.folder / f"whole-{job.name.replace(' ', '-')}"
            out.mkdir()
            began = time.monotonic()
            made = run(job.line, self.project, out)
            seconds = time.monotonic() - began
            assert made.code in (0, 1), f"{job.name}: {made}"
            assert not damaged(out), damaged(out)
            (self.folder / "watched").mkdir()
            watched = run(job.line, self.project, self.folder / "watched", "nothing")
            shutil.rmtree(self.folder / "watched", ignore_errors=True)
            self.whole[job.name] = watched.calls, seconds
        return self.whole[job.name]

    def break_off(self, job: Job, trouble: str) -> None:
        """Once: the command, its trouble, what is left, and what goes on from there."""
        calls, seconds = self.undisturbed(job)
        out = self.folder / "out"
        if trouble == "kill":
            self.kill(job, out, seconds)
            return
        if not job.again and self.rng.random() < 0.5:  # over the files of an earlier run
            shutil.copytree(self.folder / f"whole-{job.name.replace(' ', '-')}", out)
        out.mkdir(exist_ok=True)
        at = self.rng.randrange(1, calls + 1)
        if trouble == "again":
            result = run(job.line, self.project, out, seconds=self.rng.uniform(0, seconds))
            for _ in range(2):
                self.judge(job, trouble, at, result, out)
                result = run(job.again, self.project, out, seconds=self.rng.uniform(0, seconds))
        else:
            result = run(job.line, self.project, out, trouble, at)
        _unlock(out)
        self.done[f"{job.name}, {trouble}"] += 1
        self.done["killed"] += result.code is None
        self.judge(job, trouble, at, result, out)
        if result.code is None and trouble not in ("again", "call"):
            self.violations.append(f"{job.name}, {trouble} at {at}: hangs")
        if job.again:
            self.go_on(job, f"{trouble} at {at}", out)
        for path in (out, out.with_name("moved")):
            shutil.rmtree(path, ignore_errors=True)

    def kill(self, job: Job, out: Path, seconds: float) -> None:
        """SIGKILL at a random time of a job's life. One that ends before is measured again, and does not count."""
        while True:
            out.mkdir()
            at, began = self.rng.uniform(0, seconds), time.monotonic()
            result = run(job.line, self.project, out, seconds=at)
            self.judge(job, "kill", 0, result, out)
            if result.code is None:
                break
            shutil.rmtree(out)
            self.done[f"{job.name}, ended before"] += 1
            seconds = (seconds + time.monotonic() - began) / 2
            self.whole[job.name] = self.whole[job.name][0], seconds
        self.done[f"{job.name}, kill"] += 1
        self.done["killed"] += 1
        metrics = out / "metrics.jsonl"
        iterations = [int(it) for it in re.findall(r'"iter": (\d+)', metrics.read_text() if metrics.exists() else "")]
        self.reached[f"{max(iterations) // 10 * 10:02}-" if iterations else "before the first"] += 1
        self.go_on(job, f"kill after {at:.2f} s", out)
        shutil.rmtree(out)

    def go_on(self, job: Job, trouble: str, out: Path) -> None:
        """The job goes on, and ends with the weights of one that was left alone."""
        ended, last = run(job.again, self.project, out), "last.caffemodel"
        expected = self.folder / f"whole-{job.name.replace(' ', '-')}" / last
        if ended.code != 0:
            self.violations.append(f"{job.name}, {trouble}: does not go on: {ended.said[-500:]}")
        elif (out / last).read_bytes() != expected.read_bytes():
            self.violations.append(f"{job.name}, {trouble}: ends with other weights")

    def judge(self, job: Job, trouble: str, at: int, result: Result, out: Path) -> None:
        """Notes what is wrong with a result and with its files."""
        for wrong in (result.wrong, damaged(out), damaged(out.with_name("moved"))):
            if wrong:
                self.violations.append(f"{job.name}, {trouble} at {at}: {wrong}")

    # -- several processes

    def torchrun(self, times: int) -> None:
        """Two processes: SIGKILL of all of them, or of one, at a random time."""
        line = "--out OUT BINARYPROTO.prototxt --device cpu"
        whole, began = self.folder / "whole-torchrun", time.monotonic()
        assert self._torchrun(line, whole, None) == 0, "torchrun fails by itself"
        seconds = time.monotonic() - began
        for number in range(times):
            out = self.folder / f"torchrun-{number}"
            code = self._torchrun(line, out, self.rng.uniform(seconds * 0.3, seconds), one=number % 2 == 1)
            self.done["torchrun, one process" if number % 2 else "torchrun, both processes"] += 1
            self.done["killed"] += code != 0
            if wrong := damaged(out) or ("it hangs" if code is None else ""):
                self.violations.append(f"torchrun {number}: {wrong}")
            if self._torchrun(f"{line} --resume", out, None) != 0:
                self.violations.append(f"torchrun {number}: does not go on")
            elif (out / "last.caffemodel").read_bytes() != (whole / "last.caffemodel").read_bytes():
                self.violations.append(f"torchrun {number}: ends with other weights")

    def _torchrun(self, line: str, out: Path, seconds: float | None, one: bool = False) -> int | None:
        """The exit code; None if it had to be killed because it did not end."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
        command += ["-m", "caffe_port", "train", *line.replace("OUT", str(out)).split()]
        with (self.folder / "said").open("w") as said:
            process = subprocess.Popen(
                command, cwd=self.project, stdout=said, stderr=said, start_new_session=True, env=_environment()
            )
            if seconds is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)
                ranks = list(_children(process.pid))
                for pid in ranks[:1] if one and ranks else [*ranks, process.pid]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            try:
                return process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return None


def _environment() -> dict[str, str]:
    here = str(Path(__file__).resolve().parents[1])
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]),
    }


def _children(pid: int) -> Iterator[int]:
    """Processes that a process started."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                yield int(path.parent.name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("times", type=int)
    parser.add_argument("--torchrun", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], metavar="COMMAND")
    parser.add_argument("--how", nargs="*", default=[], choices=("kill", "again", *TROUBLES))
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # says what was done until then
    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1)])  # imports seconds of modules, which would be most of a small run's life
    plots.curves = lambda *_, **__: None  # a second of matplotlib each; `log --plot` writes the same ones
    with tempfile.TemporaryDirectory(prefix="caffe-port-crashes.") as name:
        breaker = Breaker(Path(name), chosen.seed)
        found = [job for job in breaker.jobs if not chosen.only or job.name.split()[0] in chosen.only]
        plan = [(job, "kill") for job in found[:1] if job.again] * chosen.times
        for job in found:
            breaker.undisturbed(job)
            for trouble in job.troubles:
                share = 4 if job.again and trouble in ("call", "again") else 10 if job.again else 20
                plan += [(job, trouble)] * max(chosen.times // share, 1)
        try:
            for job, trouble in plan:
                if chosen.how and trouble not in chosen.how:
                    continue
                breaker.break_off(job, trouble)
            if chosen.torchrun:
                breaker.torchrun(chosen.torchrun)
        finally:
            said = {"done": breaker.done, "killed in iteration": breaker.reached, "violations": breaker.violations}
            print(json.dumps(said, indent=1, sort_keys=True), flush=True)
    return int(bool(breaker.violations))


if __name__ == "__main__":
    sys.exit(main())
