"""Everything in docs/results/README.md that needs a GPU, in pieces: repeat the command until nothing is left.

    python benchmarks/gpu_session.py --root DATA --out OUT [--minutes 8]
    python benchmarks/gpu_session.py --out OUT --smoke          # the same on a CPU, on random images, in a minute

DATA is what ``caffe-port train --root`` takes for cifar10 and cifar100, or holds cifar10.npz and cifar100.npz. A call
continues where the last one stopped and spends its remaining time on the long runs. OUT receives results.json,
README.md, and a folder for each run with its curves.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent / "model_defs"
RESERVE = 15.0  # seconds: a snapshot, the last curves, the start of Python


@dataclass(frozen=True)
class Stage:
    """A command, and the files with its results.

    Attributes:
        results: name -> a JSON file, one for each run of the command.
        target: the accuracy that a training should reach, in percent.
        last: the last iteration or epoch of a training; 0: not a training.
    """

    name: str
    command: list[str]
    results: dict[str, Path]
    target: float | None = None
    last: int = 0

    def left(self) -> bool:
        """Whether it has still to be run or continued."""
        found = [read(path) for path in self.results.values()]
        return any(not one or self.at(one) < self.last or one.get("accuracy", 0) is None for one in found)

    @staticmethod
    def at(found: dict[str, Any]) -> int:
        """The iteration or epoch that a training has reached."""
        return int(found.get("iter", found.get("epochs_done", 0)))


def read(path: Path) -> dict[str, Any]:
    """The contents of a JSON file; empty if it does not exist yet."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def data_of(root: Path | None, name: str) -> list[str]:
    """The options for a data set: the .npz in the root folder, or torchvision's folder."""
    if root is None:
        return ["--data", name]
    npz = root / f"{name}.npz"
    return ["--data", str(npz)] if npz.is_file() else ["--data", name, "--root", str(root)]


def stages(args: argparse.Namespace, root: Path | None) -> list[Stage]:
    python, smoke = sys.executable, args.smoke
    train = [python, "-m", "caffe_port", "train"]
    bench = [
        python,
        str(HERE / "bench_training.py"),
        "--json",
        str(args.out / "bench_training.json"),
        "--md",
        str(args.out / "bench_training.md"),
    ]
    found = [
        Stage(
            "bench_training",
            bench + (["--batch-size", "4", "--rounds", "1"] if smoke else []),
            {"": args.out / "bench_training.json"},
        )
    ]
    slim = [str(MODELS / "simplenet_slim_310k_cifar10.prototxt")] if smoke else []
    short = ["--epochs", "2", "--batch-size", "8"] if smoke else []
    seeds, folder = 2 if smoke else args.seeds, args.out / "fast-cifar10"
    command = [*train, *slim, "--recipe", "fast", *data_of(root, "cifar10"), "--seeds", str(seeds), *short]
    results = {f"{folder.name}, seed {k}": folder / f"seed-{k}" / "run.json" for k in range(seeds)}
    found.append(Stage(folder.name, [*command, "-o", str(folder)], results, 95.32, 2 if smoke else 100))
    if not smoke:
        command = [python, str(HERE / "bench_inference.py")]
        found.append(Stage("bench_inference", command, {"": args.out / "bench_inference.json"}))
    for name, solver, target in (
        ("cifar10", "simplenet_cifar10_port_solver.prototxt", 95.32),
        ("cifar100", "simplenet_cifar100_solver.prototxt", 78.37),
    ):
        folder, path = args.out / f"faithful-{name}", MODELS / solver
        own = ["--entry", f"simplenet-{name}-port", *args.precision]
        if smoke:
            path, own = small_solver(args.out), ["--batch-size", "4", *args.precision]
        command = [*train, str(path), *data_of(root, name), *own, "-o", str(folder)]
        results = {folder.name: folder / "run.json"}
        found.append(Stage(folder.name, command, results, target, 3 if smoke else 270_000))
    return found


def run(stage: Stage, out: Path, seconds: float) -> int:
    command = list(stage.command)
    if "caffe_port" in command:
        command += ["--max-seconds", f"{max(seconds - RESERVE, 1):.0f}", "--resume"]
    print("$ " + " ".join(command), flush=True)
    with (out / f"{stage.name}.log").open("a") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
        log.write(done.stdout)
    if stage.name == "bench_inference" and not done.returncode:
        stage.results[""].write_text(json.dumps({"text": done.stdout}) + "\n")
    print(done.stdout[-2000:], flush=True)
    return done.returncode


def accuracy(found: dict[str, Any]) -> float | None:
    """The accuracy in percent: of the recipe's test, or of the best of a solver's tests."""
    if "accuracy" in found:
        return None if found["accuracy"] is None else float(found["accuracy"])
    best = found.get("best") or {}
    return 100 * best["value"] if "acc" in best.get("name", "") else None


def report(all_stages: list[Stage], out: Path) -> None:
    rows = []
    for stage, name, path in ((s, name, path) for s in all_stages if s.last for name, path in s.results.items()):
        found = read(path)
        state = "not started" if not found else "done" if stage.at(found) >= stage.last else "in progress"
        rows.append(
            {
                "run": name,
                "state": state,
                "at": stage.at(found),
                "of": stage.last,
                "accuracy": accuracy(found),
                "target": stage.target,
                "seconds": found.get("train_seconds", found.get("seconds")),
                "device": found.get("device_name"),
                "peak_memory_bytes": found.get("peak_memory_bytes"),
            }
        )
    fast = [r["accuracy"] for r in rows if r["run"].startswith("fast") and r["state"] == "done"]
    lines = [f"# Measured on {datetime.now(timezone.utc).date().isoformat()}", ""]
    lines += [
        "| run | state | at | accuracy | reported | seconds | device |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for r in rows:
        shown = "" if r["accuracy"] is None else f"{r['accuracy']:.2f} %"
        lines.append(
            f"| {r['run']} | {r['state']} | {r['at'] or 0:,} of {r['of']:,} | {shown} | {r['target']} % | "
            f"{r['seconds'] or 0:,.0f} | {r['device'] or ''} |"
        )
    if len(fast) > 1:
        lines += ["", f"Fast recipe: {np.mean(fast):.2f} ± {np.std(fast, ddof=1):.2f} % over {len(fast)} seeds."]
    bench = out / "bench_training.md"
    lines += ["", "## Speed and memory", "", bench.read_text() if bench.is_file() else "Not measured yet."]
    curves = sorted(path.relative_to(out).as_posix() for path in out.glob("**/curves.png"))
    lines += [text for path in curves for text in ("", f"![{path.removesuffix('/curves.png')}]({path})")]
    (out / "README.md").write_text("\n".join(lines) + "\n")
    (out / "results.json").write_text(json.dumps(rows, indent=2) + "\n")


def small_solver(folder: Path) -> Path:
    """Three iterations of the slim net, tested on one batch."""
    text = (MODELS / "simplenet_slim_300k_cifar10_solver.prototxt").read_text()
    for name, value in (("test_iter", 1), ("test_interval", 2), ("max_iter", 3), ("display", 1), ("snapshot", 2)):
        text, count = re.subn(rf"^{name}: \d+$", f"{name}: {value}", text, flags=re.MULTILINE)
        assert count == 1, name
    text = text.replace('net: "', f'net: "{MODELS}/')
    (folder / "smoke_solver.prototxt").write_text(text)
    return folder / "smoke_solver.prototxt"


def random_pictures(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cifar10", "cifar100"):
        sets = {f"x_{split}": rng.integers(0, 256, (40, 3, 32, 32), dtype=np.uint8) for split in ("train", "test")}
        np.savez(folder / f"{name}.npz", **sets, y_train=np.arange(40) % 10, y_test=np.arange(40) % 10)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder with CIFAR-10 and CIFAR-100")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8, help="time for this call")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of the fast recipe")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="run only these stages; an unknown name lists all")
    parser.add_argument("--exact", action="store_true", help="run Caffe's recipes in fp32 instead of --fast")
    parser.add_argument("--smoke", action="store_true", help="run everything on a tiny scale")
    args = parser.parse_args()
    args.precision = [] if args.exact else ["--fast"]
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    todo = stages(args, random_pictures(args.out) if args.smoke else args.root and args.root.resolve())
    names = [stage.name for stage in todo]
    if unknown := set(args.only or ()) - set(names):
        parser.error(f"unknown stage {min(unknown)}; the stages are {', '.join(names)}")
    chosen = [stage for stage in todo if stage.name in (args.only or names)]
    code = 0
    for stage in chosen:
        seconds = 60 * args.minutes - (time.monotonic() - began)
        if stage.left() and seconds > 2 * RESERVE and run(stage, args.out, seconds):
            code = 1
            print(f"{stage.name} failed: see {args.out / stage.name}.log", file=sys.stderr)
        report(todo, args.out)
    left = [stage.name for stage in chosen if stage.left()]
    print(f"results: {args.out / 'README.md'}; " + (f"left: {', '.join(left)}" if left else "nothing is left"))
    return code


if __name__ == "__main__":
    sys.exit(main())
