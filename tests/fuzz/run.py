"""Fuzzes every reader: `make fuzz SECONDS=60`. Coverage-guided where atheris is installed, else a mutator of its own.

A target runs in a process of its own, with little memory and a limit of CPU time for every input; the input at work is
in memory shared with the parent, which thus keeps what a crash or a hang was caused by. Findings become files of
tests/corpus/TARGET, which tests/test_corpus.py replays. `--counts FILE` adds up what several runs have seen.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import json
import mmap
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CORPUS = HERE.parent / "corpus"
INPUT_SECONDS = 10.0
"""CPU time that an input may take. The system counts it, and ends the process by SIGPROF."""
STUCK_SECONDS = 200.0
"""Time on the clock, for an input that waits without computing; other work may slow the process down a lot."""
MEMORY = 2 << 30
"""Address space that inputs may take beyond what the process has after its seeds."""
_HEAD = struct.Struct("<QQdQ")  # inputs done, findings, when the input at work began (0: none), its length
_SHARED = _HEAD.size + (1 << 20)


class Board:
    """What child and parent share: counters and the input at work."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_SHARED))
        with path.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), _SHARED)

    def begin(self, data: bytes) -> None:
        self.memory[_HEAD.size : _HEAD.size + len(data)] = data
        done, found, _, _ = self.read()
        _HEAD.pack_into(self.memory, 0, done + 1, found, time.time(), len(data))
        signal.setitimer(signal.ITIMER_PROF, INPUT_SECONDS)

    def end(self, found: int = 0) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        done, before, _, length = self.read()
        _HEAD.pack_into(self.memory, 0, done, before + found, 0.0, length)

    def read(self) -> tuple[int, int, float, int]:
        return _HEAD.unpack_from(self.memory, 0)

    def data(self) -> bytes:
        return bytes(self.memory[_HEAD.size : _HEAD.size + self.read()[3]])


# -- the child ------------------------------------------------------------------------------------------------------


def child(target: str, seconds: float, work: Path) -> None:
    """Fuzzes one target. Ends the process."""
    try:
        import atheris
    except ImportError:
        atheris = None
    with atheris.instrument_imports(include=["caffe_port"]) if atheris else contextlib.nullcontext():
        import targets
    import seeds

    start = seeds.seeds(target)
    with contextlib.suppress(FileNotFoundError):
        start += [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]
    one = _watched(target, work, targets.check)
    for data in start:
        one(data)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    gc.freeze()
    if atheris is None:
        _blind(one, start, seeds.words(target), seconds)
        os._exit(0)
    corpus = work / "corpus" / target
    corpus.mkdir(parents=True, exist_ok=True)
    for data in start:
        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)
    options = [
        f"-max_total_time={max(int(seconds), 1)}",
        f"-max_len={seeds.LONGEST}",
        "-rss_limit_mb=0",
        "-timeout=100",
        "-verbosity=0",
        "-detect_leaks=0",
        "-reload=0",
    ]
    if words := seeds.words(target):
        path = work / f"{target}.words"
        path.write_text("".join(f"{json.dumps(word)}\n" for word in words))
        options.append(f"-dict={path}")
    atheris.Setup([sys.argv[0], str(corpus), *options], one)
    atheris.Fuzz()


def _watched(target: str, work: Path, check: Callable[[str, bytes], None]) -> Callable[[bytes], None]:
    """The function of one input: warnings are errors, what is printed is a finding, every finding is kept once."""
    board = Board(work / f"{target}.board")
    printed = os.open(work / f"{target}.printed", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    keys: set[str] = set()
    if (work / "keys").exists():
        keys.update((work / "keys").read_text().splitlines())
    warnings.simplefilter("error")
    silent = [False]

    def attempt(data: bytes) -> tuple[str, str]:
        """What is wrong with an input: a key for its kind, and the story; ("", "") where nothing is."""
        before = os.lseek(printed, 0, os.SEEK_END)
        try:
            check(target, data)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is a finding
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "caffe_port" in f.filename]
            frame = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
            key = f"{type(error).__name__} in {Path(frame.filename).name}:{frame.name}"
            return key, "".join(traceback.format_exception(error))
        sys.stdout.flush()
        sys.stderr.flush()
        after = os.lseek(printed, 0, os.SEEK_END)
        if after > before:
            text = os.pread(printed, after - before, before).decode(errors="replace")
            os.ftruncate(printed, 0)
            return f"printed {re.sub('[0-9.]+', '#', text)[:40]!r}", text
        return "", ""

    def one(data: bytes) -> None:
        if not silent[0]:
            silent[0] = True
            os.dup2(printed, 1)
            os.dup2(printed, 2)
        board.begin(data)
        key, story = attempt(data)
        board.end(bool(key))
        if key and f"{target}: {key}" not in keys:
            keys.add(f"{target}: {key}")
            data = _smaller(data, lambda d: attempt(d)[0] == key)
            with (work / "findings.jsonl").open("a") as file:
                found = {"target": target, "key": key, "story": story, "file": keep(target, data)}
                file.write(f"{json.dumps(found)}\n")
            with (work / "keys").open("a") as file:
                file.write(f"{target}: {key}\n")

    return one


def _smaller(data: bytes, bad: Callable[[bytes], bool], seconds: float = 5.0) -> bytes:
    """Leaves out what is not needed for the finding."""
    end, size = time.monotonic() + seconds, max(len(data) // 2, 1)
    while size and time.monotonic() < end:
        at = 0
        while at < len(data) and time.monotonic() < end:
            shorter = data[:at] + data[at + size :]
            if bad(shorter):
                data = shorter
            else:
                at += size
        size //= 2
    return data


def keep(target: str, data: bytes) -> str:
    """Saves a finding under its hash."""
    path = CORPUS / target / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path.relative_to(CORPUS.parent.parent))


def _blind(one: Callable[[bytes], None], start: list[bytes], words: list[str], seconds: float) -> None:
    """Mutations without guidance, for where atheris cannot be had."""
    rng, end = random.Random(), time.monotonic() + seconds
    odd = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF]
    while time.monotonic() < end:
        data = bytearray(rng.choice(start) or b"\0")
        for _ in range(rng.choice((1, 1, 2, 4, 8))):
            at, kind = rng.randrange(len(data) + 1), rng.randrange(7)
            if kind == 0 and at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del data[at : at + rng.choice((1, 2, 4, 30))]
            elif kind == 2:
                data[at:at] = rng.randbytes(rng.choice((1, 2, 8)))
            elif kind == 3:
                width = rng.choice((1, 2, 4, 8))
                data[at : at + width] = (rng.choice(odd) & ((1 << 8 * width) - 1)).to_bytes(
                    width, rng.choice(("little", "big"))
                )
            elif kind == 4:
                other = rng.choice(start)
                data[at:] = other[rng.randrange(len(other) + 1) :]
            elif kind == 5:
                data[at:at] = data[at : at + rng.choice((4, 30, 200))]
            elif words:
                data[at:at] = rng.choice(words).encode()
        one(bytes(data[: 1 << 16]))


# -- the parent -----------------------------------------------------------------------------------------------------


def fuzz(target: str, seconds: float, work: Path) -> dict[str, Any]:
    """Runs children of a target until its time is up; what it saw."""
    board, end, began = Board(work / f"{target}.board"), time.time() + seconds, time.time()
    result: dict[str, Any] = {"target": target, "crashes": 0, "hangs": 0, "problem": ""}
    while (left := end - time.time()) > 0:
        command = [sys.executable, str(HERE / "run.py"), "--child", target, "--seconds", str(left), "--work", str(work)]
        with (work / f"{target}.stderr").open("w") as said:
            process = subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, "OMP_NUM_THREADS": "1"})
        while (code := process.poll()) is None:
            time.sleep(0.2)
            since = board.read()[2]
            if since and time.time() - since > STUCK_SECONDS:
                process.send_signal(signal.SIGPROF)
            if time.time() > end + 60:
                process.kill()
                process.wait()
                code = 0
                break
        else:
            since = board.read()[2]
            if code == -signal.SIGPROF:
                result["hangs"] += 1
                print(f"{target}: hangs: {keep(target, board.data())}")
            elif since:
                result["crashes"] += 1
                print(f"{target}: crashes ({code}): {keep(target, board.data())}\n{_said(target, work)}")
            elif code:
                result["problem"] = _said(target, work)
                break
        board.end()
    done, found, _, _ = board.read()
    elapsed = time.time() - began
    return {**result, "inputs": done, "bad": found, "seconds": elapsed, "rate": done / max(elapsed, 1e-9)}


def _said(target: str, work: Path) -> str:
    """The last words of a child."""
    files = [path for end in ("stderr", "printed") if (path := work / f"{target}.{end}").exists()]
    return "\n".join(path.read_text(errors="replace")[-2000:] for path in files)


def _add(result: dict[str, Any], path: Path) -> None:
    """Adds the counts of a target to those of earlier runs."""
    counts = json.loads(path.read_text()) if path.exists() else {}
    own = counts.setdefault(result["target"], {})
    for key in ("inputs", "bad", "crashes", "hangs", "seconds"):
        own[key] = own.get(key, 0) + result[key]
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(counts, indent=1))
    part.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="in all, split over the targets")
    parser.add_argument("--only", nargs="*", default=[], metavar="TARGET")
    parser.add_argument("--work", type=Path, help="corpus and logs; kept (default: a temporary folder)")
    parser.add_argument("--counts", type=Path, metavar="FILE", help="JSON to which the counts are added")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        child(chosen.child, chosen.seconds, chosen.work)
        return 0
    import targets

    names = chosen.only or list(targets.TARGETS)
    with contextlib.ExitStack() as stack:
        work = chosen.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="caffe-port-fuzz.")))
        work.mkdir(parents=True, exist_ok=True)
        for name in ("findings.jsonl", "keys", *(f"{n}.board" for n in names)):
            (work / name).unlink(missing_ok=True)
        results = []
        print(f"{'target':<16}{'inputs/s':>9}{'inputs':>10}{'bad':>7}{'crashes':>9}{'hangs':>7}")
        for name in names:
            r = fuzz(name, chosen.seconds / len(names), work)
            results.append(r)
            row = f"{name:<16}{r['rate']:>9.0f}{r['inputs']:>10,}{r['bad']:>7}{r['crashes']:>9}{r['hangs']:>7}"
            print(row, flush=True)
            if chosen.counts:
                _add(r, chosen.counts)
            if r["problem"]:
                print(f"  it could not run: {r['problem']}")
        total = {key: sum(r[key] for r in results) for key in ("inputs", "bad", "crashes", "hangs")}
        print(f"{'all':<16}{'':>9}{total['inputs']:>10,}{total['bad']:>7}{total['crashes']:>9}{total['hangs']:>7}")
        with contextlib.suppress(FileNotFoundError):
            for line in (work / "findings.jsonl").read_text().splitlines():
                found = json.loads(line)
                print(f"\n{found['target']}: {found['key']}: {found['file']}\n{found['story'][-1500:]}")
    return int(any(r["problem"] for r in results) or total["bad"] + total["crashes"] + total["hangs"] > 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
