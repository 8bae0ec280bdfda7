"""Random solvers and nets, trained by `caffe train` and by caffe-port: `make solvers RUNS=20`, or

    python benchmarks/solver_runs [--runs 20] [--seed 0] [--keep FOLDER]

Both sides begin with the same weights. Compared are the losses and rates of every displayed iteration, every output of
every test, and the last parameters; then each side resumes the other's snapshot, and the last parameters again. A run
of a recurrent net that Caffe resumes is left out: there, its sequences begin anew.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT / "tests" / "helpers"), str(ROOT)]

import torch  # noqa: E402
from beside_caffe import caffe_train, furthest, start_state  # noqa: E402
from draw import Drawn  # noqa: E402

from caffe_port.errors import CaffePortError  # noqa: E402
from caffe_port.training import caffe_log, run_folder  # noqa: E402
from caffe_port.training.train import TrainOptions, train  # noqa: E402
from caffe_port.verification.references import build_caffe  # noqa: E402

CLOSE = 1e-4


def compare(drawn: Drawn, caffe: Path) -> dict[str, float]:
    """The greatest relative differences of losses, tests and parameters.

    Raises:
        AssertionError: other iterations or outputs are reported, or Caffe fails.
        CaffePortError: what Caffe trains is refused.
    """
    folder, solver = drawn.folder, drawn.folder / "solver.prototxt"
    train(solver, folder / "start", TrainOptions(max_iter=0))
    start = folder / "start/last.caffemodel"
    state = start_state(start, 2 if drawn.type in ("Adam", "AdaDelta") else 1)
    text = caffe_train(caffe, folder, "-solver", solver.name, "-snapshot", str(state))
    (folder / "caffe.log").write_text(text)
    log = caffe_log.parse(text)
    train(solver, folder / "ours", TrainOptions(weights=str(start), keep=0))
    ours = list(run_folder.read_metrics(folder / "ours"))
    figures = {"loss": 0.0, "test": 0.0}
    mine = {line["iter"]: line for line in ours if line["kind"] == "train"}
    theirs = {line["iter"]: line for line in log.trained if line["iter"] < drawn.iterations}
    assert mine.keys() == theirs.keys(), f"displays {sorted(mine)}, Caffe {sorted(theirs)}"
    for it, line in theirs.items():
        for name in ("loss", "lr"):
            figures["loss"] = max(figures["loss"], _apart(mine[it][name], line[name]))
    mine = {(line["iter"], line.get("net", 0)): line for line in ours if line["kind"] == "test"}
    tests = {(line["iter"], line.get("net", 0)): line for line in log.metrics if line["kind"] == "test"}
    for key in [key for key in mine if key not in tests and key[0] == drawn.iterations]:
        del mine[key]  # Caffe does not test at the end, between two multiples of test_interval
    assert mine.keys() == tests.keys(), f"tests {sorted(mine)}, Caffe {sorted(tests)}"
    for where, line in tests.items():
        if drawn.kind == "batch norm" and where[0] in (0, drawn.iterations):
            continue  # no averages yet; Caffe's last display moves them once more
        assert mine[where]["outputs"].keys() == line["outputs"].keys(), f"{where}: {mine[where]}, Caffe {line}"
        for name, value in line["outputs"].items():
            figures["test"] = max(figures["test"], _apart(mine[where]["outputs"][name], value))
    assert not log.not_read, f"not read: {log.not_read[:3]}"
    last = f"small_iter_{drawn.iterations}.caffemodel{drawn.suffix}"
    middle = f"small_iter_{drawn.snapshot}.solverstate{drawn.suffix}"
    figures["parameters"] = furthest(folder / "ours/snapshots" / last, folder / "theirs" / last)
    if drawn.kind != "recurrent":
        train(solver, folder / "again", TrainOptions(resume=str(folder / "theirs" / middle)))
        (folder / "theirs").rename(folder / "first")
        (folder / "theirs").mkdir()
        caffe_train(caffe, folder, "-solver", solver.name, "-snapshot", str(folder / "ours/snapshots" / middle))
        pairs = (folder / "again/snapshots", folder / "theirs")
        figures["resumed"] = max(furthest(one / last, folder / "first" / last) for one in pairs)
    return figures


def _apart(mine: float, theirs: float) -> float:
    return abs(mine - theirs) / max(abs(theirs), 1e-3)


def main() -> int:
    """Prints a line per run and the greatest differences of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="where to keep the files of the runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    caffe, worst, bad = build_caffe.folder(), dict[str, float](), 0
    if not (caffe / "bin/caffe").is_file():
        sys.stderr.write("Caffe is not built: make caffe\n")
        return 2
    for seed in range(args.seed, args.seed + args.runs):
        with contextlib.ExitStack() as stack:
            parent = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            drawn = Drawn(seed, parent / str(seed))
            try:
                figures = compare(drawn, caffe)
                agrees, said = max(figures.values()) < CLOSE, ", ".join(f"{k} {v:.1e}" for k, v in figures.items())
                for name, value in figures.items():
                    worst[name] = max(worst.get(name, 0.0), value)
            except (AssertionError, CaffePortError) as error:
                agrees, said = False, f"{type(error).__name__}: {str(error)[-400:]}"
        bad += not agrees
        sys.stdout.write(f"{'' if agrees else 'DIFFERS '}{seed} {drawn.kind}, {drawn.type}: {said}\n")
        sys.stdout.flush()
    greatest = ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
    sys.stdout.write(f"{args.runs - bad} of {args.runs} runs agree; greatest differences: {greatest}\n")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
