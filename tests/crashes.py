"""Kills convert, train and download at every moment, and looks at what is left: a name stands for a whole file or none.

`python tests/crashes.py 200`: as many children, each killed before or after the n-th call that touches a file.
`python tests/crashes.py 60 --real`: each killed by SIGKILL after a random time.
`python tests/crashes.py 8 --states`: what every one of those calls leaves on the disk, which is what a kill there would
leave, and eight children that are killed.
Prints JSON: what was done how often, how many were killed midway, how many states were looked at, and every violation.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent / "helpers"))

import small_training

from caffe_port import api
from caffe_port.emit.convert import convert
from caffe_port.errors import CaffePortError
from caffe_port.evaluation import download
from caffe_port.formats import caffemodel, solverstate
from caffe_port.training import plots, run_folder
from caffe_port.training.train import TrainOptions, train

NET = """name: "{name}"
layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: [2, 3, 5, 7] }} }} }}
layer {{ name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param {{ num_output: {outputs} kernel_size: 3
  weight_filler {{ type: "xavier" }} }} }}
"""
CALLS = {"write", "replace", "rename", "unlink", "mkdir", "rmdir", "open", "truncate", "ftruncate", "chmod", "flush"}
CONTENT = bytes(range(251)) * 999
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Answer(io.BytesIO):
    status = 200

    def __init__(self, request: Any) -> None:
        start = int((request.get_header("Range") or "bytes=0-")[6:-1])
        super().__init__(CONTENT[start:])
        self.status = 206 if start else 200
        self.headers = {"Content-Range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"} if start else {}


# -- what is killed -------------------------------------------------------------------------------------------------


class Jobs:
    """Every job: how its folder is prepared, what it does, and what must hold wherever it was killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, outputs in (("old", 4), ("new", 6)):
            (folder / f"{name}.prototxt").write_text(NET.format(name=name, outputs=outputs))
        self.ported = {name: api.port(folder / f"{name}.prototxt") for name in ("old", "new")}
        convert(self.ported["old"], folder / "converted")
        small_training.project(folder / "project", more="momentum: 0.9").read_text()
        solver = folder / "project" / "solver.prototxt"
        solver.write_text(
            solver.read_text().replace("max_iter: 12", "max_iter: 4").replace("snapshot: 4", "snapshot: 2")
        )

    def prepare(self, job: str, place: Path) -> None:
        if job == "replace":
            shutil.copytree(self.folder / "converted", place / "out")

    def run(self, job: str, place: Path) -> None:
        if job in ("convert", "replace"):
            convert(self.ported["new"], place / "out", force=job == "replace")
        elif job == "train":
            os.chdir(self.folder / "project")
            train("solver.prototxt", place / "run", TrainOptions(keep=2))
        elif job == "download":
            download.fetch("https://example.org/w", place / "w", len(CONTENT), SHA256)

    def wrong(self, job: str, place: Path, go_on: bool) -> str:
        """What is wrong with what is left, or with what is made when the job goes on from there; or an empty string."""
        if job in ("convert", "replace"):
            out = place / "out"
            if (out / "port.json").exists():
                report = json.loads((out / "port.json").read_text())
                for file in report["files"]:
                    if hashlib.sha256((out / file["file"]).read_bytes()).hexdigest() != file["sha256"]:
                        return f"{file['file']} is not the one that port.json tells of"
            elif job == "convert" and out.exists():
                return "a folder without port.json"
            if (out / "model.py").exists():
                compile((out / "model.py").read_text(), "model.py", "exec")
                load_file(out / "weights.safetensors")
            if go_on:
                convert(self.ported["new"], out, force=True)
        elif job == "train":
            for path in (place / "run").rglob("*") if (place / "run").exists() else []:
                if path.name.startswith(".") or path.is_dir():
                    continue
                if path.suffix == ".json":
                    json.loads(path.read_text())
                elif path.suffix == ".caffemodel":
                    assert len(caffemodel.read(path).layers) == 3
                elif path.suffix == ".solverstate":
                    assert len(solverstate.read(path).history) == 7
                elif path.suffix == ".safetensors":
                    load_file(path)
            _, refused = run_folder.RunFolder(place / "run", "small").latest()
            if refused:
                return f"a snapshot that counts is damaged: {refused}"
            os.chdir(self.folder / "project")
            if go_on and train("solver.prototxt", place / "run", TrainOptions(keep=2, resume=True)).iter != 4:
                return "it does not go on"
        else:
            if (place / "w").exists() and (place / "w").read_bytes() != CONTENT:
                return "w is not whole"
            download.fetch("https://example.org/w", place / "w", len(CONTENT), SHA256)
        return ""


# -- how it is killed -----------------------------------------------------------------------------------------------


def child(work: Callable[[], None], kill_at: int) -> int:
    """Forks, works, and dies at the n-th moment (before or after a call that touches files). Moments seen, or -1."""
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        count = 0

        def watch(frame: Any, event: str, argument: Any) -> None:
            nonlocal count
            if event in ("c_call", "c_return") and getattr(argument, "__name__", "") in CALLS:
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            sys.setprofile(watch)
            work()
            sys.setprofile(None)
            os.write(writer, str(count).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    said = os.read(reader, 100)
    os.close(reader)
    _, status = os.waitpid(process, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a child failed by itself")
    return int(said) if said else -1


def states(work: Callable[[], None], place: Path, into: Path) -> list[Path]:
    """Works, and copies the place before and after every call that touches files, wherever something has changed."""
    found: list[Path] = []
    last: list[tuple[str, int, int, int]] = []

    def watch(frame: Any, event: str, argument: Any) -> None:
        nonlocal last
        if event not in ("c_call", "c_return") or getattr(argument, "__name__", "") not in CALLS:
            return
        paths = [os.path.join(folder, name) for folder, *names in os.walk(place) for group in names for name in group]
        now = [(path, s.st_ino, s.st_size, s.st_mtime_ns) for path in paths for s in [os.lstat(path)]]
        if now != last:
            last = now
            found.append(into / str(len(found)))
            shutil.copytree(place, found[-1])

    try:
        sys.setprofile(watch)
        work()
    finally:
        sys.setprofile(None)
    return found


def at_random(work: Callable[[], None], seconds: float) -> int:
    """The same, by SIGKILL from outside after a while."""
    process = os.fork()
    if not process:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return -1 if os.WIFSIGNALED(status) else 0


def look(jobs: Jobs, job: str, place: Path, go_on: bool) -> str:
    """What is wrong there, with whatever is raised."""
    try:
        return jobs.wrong(job, place, go_on)
    except (CaffePortError, OSError, ValueError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("times", type=int)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--states", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    rng = random.Random(chosen.seed)
    torch.set_num_threads(1)
    plots.curves = lambda *_, **__: None  # matplotlib is not what is looked at
    download.open_url = lambda request, context: Answer(request)  # type: ignore[assignment]
    result: dict[str, Any] = {"killed": 0, "ended": 0, "states": {}, "violations": []}
    with tempfile.TemporaryDirectory(prefix="caffe-port-crashes.") as name:
        folder = Path(name)
        jobs = Jobs(folder)
        moments, seconds = {}, {}
        kinds = ("convert", "replace", "train", "download")
        for job in kinds:  # once here, so that children find everything imported
            place = folder / f"first-{job}"
            place.mkdir()
            jobs.prepare(job, place)
            jobs.run(job, place)
        for job in kinds:
            place = folder / f"whole-{job}"
            place.mkdir()
            jobs.prepare(job, place)
            began = time.monotonic()
            moments[job] = child(lambda job=job, place=place: jobs.run(job, place), 0)  # type: ignore[misc]
            seconds[job] = time.monotonic() - began
        for job in kinds if chosen.states else ():
            place, copies = folder / f"watched-{job}", folder / f"states-{job}"
            for each in (place, copies):
                each.mkdir()
            jobs.prepare(job, place)
            left = states(lambda job=job, place=place: jobs.run(job, place), place, copies)  # type: ignore[misc]
            result["states"][job] = len(left)
            for number, state in enumerate(left):
                if wrong := look(jobs, job, state, go_on=number % 8 == 0):
                    result["violations"].append(f"{job}, state {number}: {wrong}")
        index = -1
        while result["killed"] < chosen.times:
            index += 1
            job = kinds[index % 4]
            place = folder / f"{index}"
            place.mkdir()
            jobs.prepare(job, place)
            work = lambda job=job, place=place: jobs.run(job, place)  # noqa: E731
            at = rng.randrange(1, moments[job] + 1)
            found = at_random(work, rng.uniform(0, seconds[job])) if chosen.real else child(work, at)
            result["killed" if found < 0 else "ended"] += 1
            if wrong := look(jobs, job, place, go_on=index % 16 < 4):
                result["violations"].append(f"{job} at {at}: {wrong}")
            shutil.rmtree(place)
    print(json.dumps(result | {"moments": moments}))
    return int(bool(result["violations"]))


if __name__ == "__main__":
    np.seterr(all="ignore")
    sys.exit(main())
