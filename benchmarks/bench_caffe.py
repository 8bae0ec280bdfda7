"""Times Caffe itself and what `caffe-port convert` and `caffe-port train` make of the same files, without options.

    make bench-caffe ARGS="--only lenet"
    make bench-caffe ARGS="--only lenet --profile"
    python benchmarks/bench_caffe.py [--only NET,...] [--threads N] [--seconds S] [--resume] [--write PAGE]
    python benchmarks/bench_caffe.py --profile [--only NET,...] [--cells CELL,...] [--layers N] [--by type]

Every program is a process of its own; they take turns, and the medians count. Caffe is built by `caffe-port
build-caffe`. What was measured is kept in the cache folder, and `--resume` does not measure it again. `--profile` times
every layer: on a busy machine, with --threads 1 --cpu-time.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks" / "cpu")]

import by_layer  # noqa: E402
import torch  # noqa: E402
from nets import NETS, write  # noqa: E402
from turns import Measured, Program, Store, in_turns, machine, replace_between  # noqa: E402

import caffe_port  # noqa: E402
from caffe_port.emit.convert import convert  # noqa: E402
from caffe_port.terminal import count  # noqa: E402
from caffe_port.verification.references import build_caffe  # noqa: E402

CELLS = ("one", "batch", "train")
KEPT, VARIABLES = "memory kept", {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""With these variables, glibc keeps freed memory. ``train`` and ``evaluate`` see to that by themselves."""
ROUNDS = 5


def measure(
    name: str, cell: str, folder: Path, threads: int, seconds: float, profile: bool = False
) -> dict[str, Measured]:
    """A net's figures: ``one`` image, a ``batch``, or updates of ``train``; with ``profile``, those of its layers."""
    of = "_layers" if profile else ""
    caffe = build_caffe.folder() / "bin/python"
    net, own = NETS[name], Path(sys.executable)
    if not (folder / "data.h5").exists():
        write(name, folder)
    if cell == "train":
        programs = {
            "Caffe": Program(caffe, f"caffe_train{of}", {"solver": f"{folder}/solver.prototxt"}, threads),
            "caffe-port": Program(
                own, f"train{of}", {"solver": f"{folder}/solver.prototxt", "out": f"{folder}/run"}, threads, [ROOT]
            ),
        }
        return in_turns(programs, seconds, ROUNDS)
    task = {"batch": 1 if cell == "one" else net.batch, "shape": net.shape}
    if not (folder / "converted").exists():
        ported = caffe_port.port(folder / "net.prototxt", folder / "net.caffemodel")
        made = convert(ported, folder / "converted")
        if profile:
            by_layer.mark(ported, made, folder / "marked")
    files = {"net": f"{folder}/net.prototxt", "weights": f"{folder}/net.caffemodel"}
    converted = {"folder": f"{folder}/{'marked' if profile else 'converted'}"}
    programs = {
        "Caffe": Program(caffe, f"caffe_forward{of}", task | files, threads),
        "caffe-port": Program(own, f"model{of}", task | converted, threads),
    }
    if not profile:
        programs[KEPT] = Program(own, "model", task | converted, threads, more=VARIABLES)
    return in_turns(programs, seconds, ROUNDS)


# -- the table --------------------------------------------------------------------------------------------------------


def speed(cell: Mapping[str, Measured], side: str = "caffe-port") -> float:
    """How many times as fast as Caffe: the median of the rounds."""
    return 1 / statistics.median(cell[side].ratios)


def mean(cells: Iterable[Mapping[str, Measured]], side: str = "caffe-port") -> str:
    """The geometric mean of the speeds, for a table."""
    ratios = [speed(cell, side) for cell in cells]
    return f"{math.exp(statistics.fmean(map(math.log, ratios))):.2f}" if ratios else ""


def table(store: Store, threads: int, names: Sequence[str]) -> list[str]:
    """The tables of speed and of memory."""
    cells = {(n, c): cell for n in names for c in CELLS if (cell := store.get(f"{threads} {n} {c}"))}
    good = {key: cell for key, cell in cells.items() if not any(one.error for one in cell.values())}
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, OpenBLAS {_openblas()}"
    header = f"{datetime.date.today()}, {machine()}, {count(threads, 'thread')}, {versions}."
    lines = [
        header,
        "",
        "Milliseconds of Caffe and of caffe-port, and how many times as fast caffe-port is;",
        "*kept*: in a process that keeps the memory that it frees.",
        "",
        "| net | batch 1 | | | kept | batch | forward | | | kept | batch | update | | |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in names:
        net, row = NETS[name], [NETS[name].label]
        for cell, batch in (("one", None), ("batch", net.batch), ("train", net.trained)):
            row += [] if batch is None else [str(batch)]
            row += _times(cells.get((name, cell)), cell != "train")
        lines.append(f"| {' | '.join(row)} |")
    one, batch, train = ([cell for (_, kind), cell in good.items() if kind == of] for of in CELLS)
    means = [f"**{mean(some)}** | {mean(some, KEPT)}" for some in (one, batch)]
    lines.append(f"| geometric mean | | | {means[0]} | | | | {means[1]} | | | | **{mean(train)}** |")
    both = [*one, *batch]
    lines += ["", f"Geometric mean of both forward passes: {mean(both)}; with memory kept {mean(both, KEPT)}."]
    lines += [
        "",
        "The greatest memory in MB of the process, and in brackets beyond what importing `caffe` or `torch` took.",
        "",
        "| net | batch 1: Caffe | caffe-port | forward: Caffe | caffe-port | update: Caffe | caffe-port |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in names:
        row = [NETS[name].label]
        for cell in CELLS:
            found = cells.get((name, cell))
            row += [_memory(found[side]) if found else "" for side in ("Caffe", "caffe-port")]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def _times(cell: Mapping[str, Measured] | None, forward: bool) -> list[str]:
    """The cells of a table: two times, and the speed; of a forward pass, also that with memory kept."""
    if cell is None:
        return [""] * (4 if forward else 3)
    pair = cell["Caffe"], cell["caffe-port"]
    shown = [one.error or f"{one.time * 1e3:,.{1 if one.time < 1 else 0}f}" for one in pair]
    failed = any(one.error for one in cell.values())
    return [*shown, *("" if failed else f"{speed(cell, side):.2f}" for side in cell if side != "Caffe")]


def _memory(one: Measured) -> str:
    return "" if one.error else f"{one.peak:,.0f} ({one.peak - one.imported:,.0f})"


def _openblas() -> str:
    found = sorted(Path("/usr/lib").glob("*/openblas-*/libopenblas*-r*.so"))
    return found[0].stem.partition("-r")[2] if found else "as the system has it"


def profile(given: argparse.Namespace) -> list[str]:
    """The tables of the layers of each net."""
    clock = "processor time" if given.cpu_time else "time"
    lines = [f"{datetime.date.today()}, {machine()}, {count(given.threads, 'thread')}. Milliseconds of {clock}."]
    for name in given.only.split(","):
        net = NETS[name]
        with tempfile.TemporaryDirectory(dir=os.environ.get("CAFFE_PORT_BENCH")) as folder:
            for cell in given.cells.split(","):
                measured = measure(name, cell, Path(folder), given.threads, given.seconds, profile=True)
                rows = by_layer.rows(Path(folder), measured, cell == "train", given.by == "type")
                what = {"one": "batch 1", "batch": f"batch {net.batch}"}.get(cell, f"update of {net.trained}")
                lines += by_layer.table(f"{net.label}, {what}", rows, given.layers)
    return lines


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(NETS), help=f"nets, with commas: {', '.join(NETS)}")
    parser.add_argument("--cells", default=",".join(CELLS), help="of: one, batch, train")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=8, help="for each figure of a net, at least (default 8)")
    parser.add_argument("--profile", action="store_true", help="the layers of each net, the most time to gain first")
    parser.add_argument("--layers", type=int, default=5, help="with --profile: how many rows a net has (default 5)")
    parser.add_argument("--by", choices=["layer", "type"], default="layer", help="with --profile: what a row is")
    parser.add_argument("--cpu-time", action="store_true", help="time the processor: for a busy machine and one thread")
    parser.add_argument("--resume", action="store_true", help="do not measure again what is in the store")
    parser.add_argument("--store", type=Path, default=build_caffe.folder().parent / "bench_caffe.json")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    given = parser.parse_args()
    if build_caffe.stamp(build_caffe.folder()) is None:
        sys.exit("Caffe is not built: caffe-port build-caffe")
    if given.cpu_time:
        os.environ["CPU_TIME"] = "1"
    torch.set_num_threads(given.threads)
    if given.profile:
        lines = profile(given)
        print("\n".join(lines))
        if given.write:
            replace_between(given.write, "make bench-caffe, by layer", lines)
        return
    store = Store(given.store)
    for name in given.only.split(","):
        with tempfile.TemporaryDirectory(dir=os.environ.get("CAFFE_PORT_BENCH")) as folder:
            for cell in given.cells.split(","):
                key = f"{given.threads} {name} {cell}"
                if given.resume and store.get(key):
                    continue
                found = measure(name, cell, Path(folder), given.threads, given.seconds)
                store.put(key, found)
                said = ", ".join(
                    f"{side} {one.error or f'{one.time * 1e3:.1f} ms, {_memory(one)} MB'}"
                    for side, one in found.items()
                )
                print(f"{name} {cell}: {said}", file=sys.stderr, flush=True)
    lines = table(store, given.threads, list(NETS))
    print("\n".join(lines))
    if given.write:
        replace_between(given.write, "make bench-caffe", lines)


if __name__ == "__main__":
    main()
