"""A tree of nets, each converted or verified in a process of a pool: what works, and why the rest is refused.

What was found is kept net by net, so that an interrupted survey goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caffe_port.definition.definition import Definition
from caffe_port.errors import CaffePortError, escaped, printable
from caffe_port.formats import caffemodel
from caffe_port.inspection import compare_blobs
from caffe_port.inspection.inspect import Options, kind_of
from caffe_port.storage.files import lock, opened

RECORDS = "survey.jsonl"
"""In the output folder: what was found, a line of JSON per net."""
JOBS = ("convert", "verify", "inspect")
_NAMES = (".prototxt", ".pbtxt", ".caffemodel", ".h5")
_BEFORE = ("deploy", "inference", "test")
"""Words in the name of a prototxt that make it the likelier one of several that fit weights."""


@dataclass(frozen=True)
class Item:
    """A net of the tree: its prototxt, its weights, or both; paths relative to the tree."""

    prototxt: str = ""
    weights: str = ""

    @property
    def name(self) -> str:
        """What tells it from the others, and the folder that it is converted to."""
        return self.weights or self.prototxt


@dataclass(frozen=True)
class Found:
    """What became of a net.

    Attributes:
        name, prototxt, weights: as in :class:`Item`.
        job: of :data:`JOBS`.
        status: ``"done"``, ``"differs"`` (a layer differs, or nothing was compared), ``"refused"`` (with a sentence),
            ``"failed"`` (an error in caffe-port), ``"crashed"`` (the process ended) or ``"too long"``.
        what: the result in a sentence, or the error.
        layers, parameters: how many.
        seconds: of wall time.
        stamp: size and time of the files: what changed is done again.
    """

    name: str
    prototxt: str
    weights: str
    job: str
    status: str
    what: str = ""
    layers: int = 0
    parameters: int = 0
    seconds: float = 0.0
    stamp: tuple[int, ...] = ()

    @property
    def reason(self) -> str:
        """The error without what is particular to a net: names, places and numbers."""
        text = re.sub(r"^\S*?:(\d+:)*\s", "", self.what)
        return re.sub(r"'[^']*'", "'...'", re.sub(r"\b\d[\d.,e+-]*", "N", text))


def find(tree: str | Path) -> list[Item]:
    """The nets below a folder, sorted: each weights file with the prototxt of its folder that fits it, if any (one with
    its name, or a deploy prototxt, before others), and each other prototxt that is a net.

    Raises:
        CaffePortError: the folder holds none.
    """
    root = Path(tree)
    by_folder: dict[Path, tuple[list[Path], list[Path]]] = {}
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix.lower() in _NAMES:
                with contextlib.suppress(CaffePortError):  # what cannot be read is no net
                    kind = kind_of(path)
                    if kind in ("net", "weights"):
                        by_folder.setdefault(path.parent, ([], []))[kind == "weights"].append(path)
    items = []
    for texts, weights in by_folder.values():
        taken: set[Path] = set()
        for one in weights:
            ranked = sorted(texts, key=lambda text, one=one: _rank(text, one))  # type: ignore[misc]
            text = next((text for text in ranked if _fits(text, one)), None)
            taken |= {text} if text is not None else set()
            items.append(Item("" if text is None else _below(text, root), _below(one, root)))
        items += [Item(_below(text, root)) for text in texts if text not in taken]
    if not items:
        if not root.is_dir():
            what = "is a file; expected a folder" if root.exists() else "does not exist"
            raise CaffePortError(what, str(root))
        raise CaffePortError(f"holds no net ({', '.join(_NAMES)})", str(root))
    return sorted(items, key=lambda item: item.name)


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _rank(text: Path, weights: Path) -> tuple[bool, bool, str]:
    name = text.name.lower()
    return weights.name.lower().startswith(text.stem.lower()), any(word in name for word in _BEFORE), name


def _fits(text: Path, weights: Path) -> bool:
    try:
        definition, stored = Definition.read(text), caffemodel.read(weights)
        return compare_blobs.compare(definition, stored, Options()).fits
    except CaffePortError:
        return False


def survey(
    tree: str | Path,
    out: str | Path,
    job: str = "convert",
    *,
    workers: int = 1,
    executor: Executor | None = None,
    limit: float = 600.0,
    found: Callable[[Found, int, int], None] | None = None,
) -> list[Found]:
    """Does a job for every net below a folder.

    Args:
        tree: the folder.
        out: the folder of the results: :data:`RECORDS` and, for "convert", a folder for each net. What it holds of an
            earlier survey is not done again unless the net's files changed.
        job: "convert", "verify" or "inspect".
        workers: processes.
        executor: runs the jobs instead, for instance dask.distributed's ``client.get_executor()``; the paths must
            mean the same where they run.
        limit: seconds for one net; a net that takes longer is given up (where the platform has SIGALRM).
        found: called for each net that was done: its result, and how many of how many are done.

    Returns:
        The results of all nets, in the order of :func:`find`.

    Raises:
        CaffePortError: there is no net, an unknown job, or ``out`` cannot be written, or is by another survey.
    """
    if job not in JOBS:
        raise CaffePortError(f"unknown job '{job}'; jobs: {', '.join(JOBS)}")
    root, folder = Path(tree).resolve(), Path(out).resolve()
    items = find(root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log = (folder / RECORDS).open("a", encoding="utf-8")
    except OSError as error:
        raise CaffePortError(f"cannot be written: {error.strerror}", str(folder)) from None
    stamps = {item.name: _stamp(item, root) for item in items}
    threads = max(1, (os.cpu_count() or 1) // max(workers, 1))
    with log, lock(folder, "the folder is being written to"):
        done = {name: one for name, one in _read(folder / RECORDS, job).items() if one.status != "crashed"}
        results = {item.name: done[item.name] for item in items if _same(done.get(item.name), item, stamps[item.name])}
        rest = [item for item in items if item.name not in results]
        for one in _run(rest, (str(root), str(folder), job, limit, threads), workers, executor):
            one = dataclasses.replace(one, stamp=stamps[one.name])
            log.write(json.dumps(dataclasses.asdict(one)) + "\n")
            log.flush()
            results[one.name] = one
            if found is not None:
                found(one, len(results), len(items))
    return [results[item.name] for item in items]


def _same(one: Found | None, item: Item, stamp: tuple[int, ...]) -> bool:
    return one is not None and (one.prototxt, one.stamp) == (item.prototxt, stamp)


def _stamp(item: Item, root: Path) -> tuple[int, ...]:
    facts = [(root / name).stat() for name in (item.prototxt, item.weights) if name]
    return tuple(number for fact in facts for number in (fact.st_size, fact.st_mtime_ns))


def _read(path: Path, job: str) -> dict[str, Found]:
    """The records of an earlier survey; a line that was cut off is left out."""
    known: dict[str, Found] = {}
    with opened(path) as file:
        for line in file:
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                values = json.loads(line)
                one = Found(**values | {"stamp": tuple(values["stamp"])})
                if one.job == job:
                    known[one.name] = one
    return known


def _run(
    items: Sequence[Item], how: tuple[str, str, str, float, int], workers: int, executor: Executor | None
) -> Iterator[Found]:
    """The results as they come. Nets that were lost with a process of our own are tried again, one by one."""
    if executor is not None:
        for future in as_completed([executor.submit(work, item, *how) for item in items]):
            yield future.result()
        return
    left = deque(items)
    while left:
        running: dict[Future[Found], Item] = {}
        lost: list[Item] = []
        with _pool(workers) as pool:
            while (left or running) and not lost:
                while left and len(running) < workers and not lost:
                    item = left.popleft()
                    try:
                        running[pool.submit(work, item, *how)] = item
                    except BrokenProcessPool:  # a process ended after the last wait
                        lost.append(item)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    item = running.pop(future)
                    try:
                        yield future.result()
                    except BrokenProcessPool:
                        lost.append(item)
        for item in (*lost, *running.values()):
            yield _alone(item, how)


def _alone(item: Item, how: tuple[str, str, str, float, int]) -> Found:
    with _pool(1) as pool:
        try:
            return pool.submit(work, item, *how).result()
        except BrokenProcessPool:
            what = "its process ended: too little memory, or an error in a library"
            return Found(item.name, item.prototxt, item.weights, how[2], "crashed", what)


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


# -- in a process of the pool ---------------------------------------------------------------------------------------


class _TooLongError(Exception):
    pass


def work(item: Item, root: str, out: str, job: str, limit: float, threads: int) -> Found:
    """Does the job for one net. Nothing that is wrong with a net raises."""
    began = time.monotonic()
    prototxt, weights = (str(Path(root, name)) if name else None for name in (item.prototxt, item.weights))
    try:
        with _limited(limit):
            status, what, layers, parameters = _JOBS[job](prototxt, weights, Path(out, item.name), threads)
    except CaffePortError as error:
        status, what, layers, parameters = "refused", " ".join(str(error).split()), 0, 0
    except _TooLongError:
        status, what, layers, parameters = "too long", f"took more than {limit:g} s", 0, 0
    except Exception as error:  # noqa: BLE001 - a survey goes on
        status, what, layers, parameters = "failed", f"{type(error).__name__}: {error}".split("\n")[0], 0, 0
    what = printable(what).replace(root + os.sep, "")
    took = round(time.monotonic() - began, 3)
    return Found(item.name, item.prototxt, item.weights, job, status, what, layers, parameters, took)


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    import signal
    import threading

    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _inspected(prototxt: str | None, weights: str | None, _: Path, __: int) -> tuple[str, str, int, int]:
    from caffe_port.inspection.inspect import inspect_files

    found = inspect_files([path for path in (prototxt, weights) if path])[0]
    parameters = found.totals["parameters"]
    if found.errors:
        return "refused", found.errors[0], len(found.rows), parameters
    return "done", "no error is known", len(found.rows), parameters


def _converted(prototxt: str | None, weights: str | None, out: Path, threads: int) -> tuple[str, str, int, int]:
    import torch

    from caffe_port import api
    from caffe_port.emit.convert import convert
    from caffe_port.evaluation.known import known_of

    torch.set_num_threads(threads)
    ported = api.port(prototxt, weights)
    known = known_of(ported, [])
    out.parent.mkdir(parents=True, exist_ok=True)
    made = convert(
        ported,
        out,
        force=True,
        preprocessing=None if known is None else known.preprocessing,
        classes=() if known is None else known.classes,
    )
    return "done", made.check, made.layers, made.parameters


def _verified(prototxt: str | None, weights: str | None, _: Path, threads: int) -> tuple[str, str, int, int]:
    import torch

    from caffe_port import api
    from caffe_port.verification.reports.terminal import verdict
    from caffe_port.verification.verify import verify

    torch.set_num_threads(threads)
    ported = api.port(prototxt, weights)
    report = verify(ported)
    parameters = sum(tensor.numel() for tensor in ported.net.parameters())
    return "done" if report.passed else "differs", verdict(report), len(report.rows), parameters


_JOBS: dict[str, Callable[[str | None, str | None, Path, int], tuple[str, str, int, int]]] = {
    "convert": _converted,
    "verify": _verified,
    "inspect": _inspected,
}


# -- tables ---------------------------------------------------------------------------------------------------------


def counts(results: Sequence[Found]) -> dict[str, int]:
    """How many nets have each status, most first."""
    return dict(Counter(one.status for one in results).most_common())


def reasons(results: Sequence[Found]) -> list[tuple[str, str, int, str]]:
    """(status, reason, how many, the first net) of what is not done, most first."""
    groups: dict[tuple[str, str], list[Found]] = {}
    for one in results:
        if one.status != "done":
            groups.setdefault((one.status, one.reason), []).append(one)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [(status, reason, len(nets), nets[0].name) for (status, reason), nets in ordered]


def as_dict(results: Sequence[Found]) -> dict[str, Any]:
    """For JSON."""
    return {"counts": counts(results), "nets": [dataclasses.asdict(one) for one in results]}


def to_html(results: Sequence[Found], title: str) -> str:
    """One table of all nets, as a page of its own."""
    colors = {"done": "#2da44e", "differs": "#cf222e", "refused": "#e5a50a"}
    rows = [
        f"<tr><td style='color:{colors.get(one.status, '#cf222e')}'>{one.status}<td>{escaped(one.name)}"
        f"<td class=n>{one.layers or ''}<td class=n>{f'{one.parameters:,}' if one.parameters else ''}"
        f"<td class=n>{one.seconds:.1f}<td>{escaped(one.what)}</tr>"
        for one in results
    ]
    groups = [f"<li>{n} {status}: {escaped(reason)}" for status, reason, n, _ in reasons(results)]
    told = ", ".join(f"{n} {status}" for status, n in counts(results).items())
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escaped(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escaped(title)}</h1><p>{told}</p><ul>{''.join(groups)}</ul><div class=scroll><table>"
        "<tr><th>status<th>net<th class=n>layers<th class=n>parameters<th class=n>seconds<th></tr>"
        f"{''.join(rows)}</table></div></html>\n"
    )


_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; margin: 24px auto; max-width: 1100px; padding: 0 12px }
table { border-collapse: collapse; font-size: 13px } .scroll { overflow: auto }
td, th { padding: 3px 8px; text-align: left; vertical-align: top; border-bottom: 1px solid #8884;
  overflow-wrap: anywhere }
td.n, th.n { text-align: right; white-space: nowrap }
"""
