"""The training speed of SimpleNet, of 5.48 M parameters and slim, compared with the original port's loop.

    python benchmarks/bench_training.py [--nets "5.48 M,slim 310 K"] [--device cuda] [--isa AVX2] [--profile]
                                        [--json FILE] [--md FILE]

Every loop is a process of its own. They take turns, so that other load affects all of them; the medians of the
turns are reported. "fp32" is what a CPU without bfloat16 computes. The images are random, because speed does not depend
on them, so no data set is needed. ``--profile`` also prints where the time goes, by kind of operation; ``--isa AVX2``
keeps PyTorch's libraries from using AVX-512.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from original_loop import WIDTHS, OriginalLoop
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from caffe_port import devices
from caffe_port.evaluation import registry
from caffe_port.training import solver
from caffe_port.training.cuda_graph import GraphedUpdate
from caffe_port.training.run_folder import Claim
from caffe_port.training.set_up import Training, TrainOptions, set_up
from caffe_port.training.solver import SolverSpec
from caffe_port.training.train import _gradients

SOLVERS = {
    "5.48 M": "simplenet_cifar10_port_solver.prototxt",
    "slim 310 K": "simplenet_slim_310k_cifar10_solver.prototxt",
    "slim 460 K": "simplenet_slim_460k_cifar10_solver.prototxt",
}
ORIGINAL, PLAIN, FAST = "original loop", "caffe-port train", "caffe-port train --fast"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
REPORTED_MB = 1239  # reported by the authors of the port, at batch size 64
ISA = {"AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}}
Step = Callable[[], Any]


# -- in a loop's own process ----------------------------------------------------------------------------------------


def training(
    name: str, data: Path, folder: Path, device: torch.device, batch_size: int, fast: bool, kind: str
) -> tuple[Training, Step]:
    """A step of caffe-port's loop without logging: what ``caffe-port train`` does for one update."""
    if kind == "fp32":
        devices.has_bf16 = lambda _: False  # as on a CPU without it
    spec = SolverSpec.read(registry.model_defs() / SOLVERS[name]).changed(test_interval=0)
    options = TrainOptions(data=str(data), entry="simplenet-cifar10-port", batch_size=batch_size, fast=fast)
    t, _ = set_up(spec, folder, options, device, lambda _: None, Claim())
    t.net.train()
    graphed = GraphedUpdate(t.optimizer, lambda batches: _gradients(t, batches)) if t.options.cuda_graph else None
    done = [0]

    def step() -> Any:
        solver.set_iteration(t.optimizer, spec, done[0])
        with record_function("data"):
            batches = [t.batch("TRAIN", done[0])]
        done[0] += 1
        if graphed is not None:
            return graphed(batches)
        t.optimizer.zero_grad(set_to_none=True)
        loss = _gradients(t, batches)
        t.optimizer.step()
        return loss if device.type == "cuda" else loss.item()

    return t, step


def flops(forward: Step) -> int:
    """The FLOP of a forward and a backward pass; a multiply-accumulate counts as two."""
    with FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops()


@contextlib.contextmanager
def loop(task: dict[str, Any]) -> Iterator[tuple[Step, int]]:
    """A loop's step, and the FLOP of one image, or of a matrix product."""
    device, kind, batch, name = torch.device(task["device"]), task["kind"], task["batch_size"], task["net"]
    if task["loop"] == "matmul":  # the upper limit for this machine
        side = 8192 if device.type == "cuda" else 1536
        a, b = (torch.randn(side, side, device=device).to(DTYPES[kind]) for _ in range(2))
        yield lambda: torch.mm(a, b), 2 * side**3
        return
    x, y = torch.randn(2, 3, 32, 32, device=device), torch.zeros(2, dtype=torch.long, device=device)
    if task["loop"] == ORIGINAL:
        images = {key: torch.from_numpy(value) for key, value in np.load(task["data"]).items()}
        original = OriginalLoop(name, images["x_train"], images["y_train"], batch, device)
        yield original.step, flops(lambda: original.criterion(original.net(x), y).backward()) // 2
        return
    with tempfile.TemporaryDirectory() as folder, devices.memory_kept(device):
        t, step = training(name, Path(task["data"]), Path(folder), device, batch, task["loop"] == FAST, kind)
        other, _ = training(name, Path(task["data"]), Path(folder) / "other", device, 2, False, kind)
        count = flops(lambda: other.net.forward_with_loss(x, y)[1].backward()) // 2
        with closing(t):
            yield step, count


def serve(task: dict[str, Any]) -> None:
    """Runs as many steps as each line of the standard input says, and prints what they took."""
    warnings.filterwarnings("ignore", category=UserWarning)
    with loop(task) as (step, count):
        for _ in range(task["warm"]):  # on a GPU, the graph is captured at the fourth
            step()
        print(json.dumps({"flops": count}), flush=True)
        for line in sys.stdin:
            steps, wanted = json.loads(line)
            found = profiled(step, steps) if wanted == "profile" else timed(step, steps, torch.device(task["device"]))
            print(json.dumps(found), flush=True)


def timed(step: Step, steps: int, device: torch.device) -> dict[str, float]:
    """Seconds per step: of the clock, of the CPU, and of the CPU in the kernel."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    before, began = os.times(), time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    clock, after = time.perf_counter() - began, os.times()
    kernel, user = after.system - before.system, after.user - before.user
    return {"clock": clock / steps, "cpu": (user + kernel) / steps, "kernel": kernel / steps}


KINDS = {  # by words in the name of an operation, or of the outermost operation that called it; the first counts
    "optimizer": ("Optimizer",),
    "data": ("DataLoader", "data"),
    "convolution, backward": ("_WinogradBackward", "ConvolutionBackward", "convolution_backward"),
    "convolution, forward": ("_Winograd", "conv2d", "convolution"),
    "BatchNorm, Scale": ("BatchNorm", "batch_norm"),
    "ReLU, Dropout": ("Relu", "relu", "dropout", "Dropout", "threshold_backward"),
    "pooling": ("max_pool", "MaxPool"),
    "conversion to bfloat16": ("aten::to", "ToCopy"),
}


def profiled(step: Step, steps: int) -> dict[str, float]:
    """Seconds per step by kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            step()
    sums: Counter[str] = Counter()
    for event in found.events() or ():
        chain = [event]
        while chain[-1].cpu_parent is not None:
            chain.append(chain[-1].cpu_parent)
        matches = (
            kind for one in reversed(chain) for kind, words in KINDS.items() if any(word in one.name for word in words)
        )
        sums[next(matches, "other")] += event.self_cpu_time_total
    return {kind: value / 1e6 / steps for kind, value in sums.items()}


# -- in turns -------------------------------------------------------------------------------------------------------


class Loop:
    """A process that runs a loop; ready once :meth:`answer` was called for the first time."""

    def __init__(self, task: dict[str, Any], isa: str | None) -> None:
        command = [sys.executable, __file__, "--serve", json.dumps(task)]
        environment = {**os.environ, **ISA.get(isa or "", {})}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    def answer(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        assert self.process.stderr is not None
        sys.exit(f"a loop ended with {self.process.wait()}:\n{self.process.stderr.read()[-2000:]}")

    def run(self, steps: int, wanted: str = "time") -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([steps, wanted]) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def compared(name: str, data: Path, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All loops of a net, in turns."""
    gpu, kinds = device.type == "cuda", ["fp32", "bf16"] if wide(args, device) else ["fp32"]
    fast = [(FAST, kind) for kind in (kinds[-1:] if gpu else kinds)]  # on a GPU, fast means compiled, in bf16
    rows = [(ORIGINAL, "fp32"), (PLAIN, "fp32"), *fast, *(("matmul", kind) for kind in kinds)]
    steps = args.steps or (50 if gpu else 1 if name == "5.48 M" else 5)
    with contextlib.ExitStack() as stack:
        loops = {}
        for label, kind in rows:
            task = {"loop": label, "kind": kind, "net": name, "data": str(data), "device": str(device)}
            task |= {"batch_size": args.batch_size, "warm": 10 if gpu else 2}
            loops[label, kind] = stack.enter_context(closing(Loop(task, args.isa)))
            loops[label, kind].count = loops[label, kind].answer()["flops"]  # type: ignore[attr-defined]
        turns: dict[tuple[str, str], list[dict[str, float]]] = {row: [] for row in loops}
        for _ in range(args.rounds):
            for row, one in loops.items():
                turns[row].append(one.run(3 if row[0] == "matmul" else steps))
        middle = {
            row: {what: median(turn[what] for turn in found) for what in found[0]} for row, found in turns.items()
        }
        profiles = {
            f"{label}, {kind}": loops[label, kind].run(steps, "profile")
            for label, kind in rows
            if args.profile and label != "matmul"
        }
        rates = {kind: loops["matmul", kind].count / middle["matmul", kind]["clock"] for kind in kinds}  # type: ignore[attr-defined]
        counts = {row: one.count for row, one in loops.items()}  # type: ignore[attr-defined]
    base, speeds = middle[ORIGINAL, "fp32"], {}
    for label, kind in rows:
        if label == "matmul":
            continue
        own = middle[label, kind]
        achieved = counts[label, kind] * args.batch_size / own["clock"]
        speeds[f"{label}, {kind}"] = {
            "images_per_s": args.batch_size / own["clock"],
            "ratio": base["clock"] / own["clock"],
            "tflops": achieved / 1e12,
            "share_of_matmul": achieved / rates[kind],
            "cpu_ms_per_image": 1e3 * own["cpu"] / args.batch_size,
            "cpu_ratio": base["cpu"] / max(own["cpu"], 1e-9),
            "kernel_share": own["kernel"] / max(own["cpu"], 1e-9),
        }
    return {
        "gflop_per_image": {"original": counts[ORIGINAL, "fp32"] / 1e9, "ours": counts[PLAIN, "fp32"] / 1e9},
        "matmul_tflops": {kind: rate / 1e12 for kind, rate in rates.items()},
        "speeds": speeds,
        "profiles": profiles,
    }


def wide(args: argparse.Namespace, device: torch.device) -> bool:
    return args.isa is None and devices.has_bf16(device)


def memory(data: Path, device: torch.device, kind: str) -> tuple[float, str]:
    """The memory in MB that training SimpleNet (5.48 M) at batch size 64 takes, and how it was measured."""
    with tempfile.TemporaryDirectory() as folder:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        t, step = training("5.48 M", data, Path(folder), device, 64, kind == "bf16", kind)
        with closing(t):
            if device.type == "cuda":
                for _ in range(6):
                    step()
                used = torch.cuda.max_memory_allocated(device) - before
                return used / 2**20, "max_memory_allocated, including the images"
            saved: dict[int, int] = {}

            def pack(x: torch.Tensor) -> torch.Tensor:
                saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
                return x

            mine = {p.untyped_storage().data_ptr() for p in t.net.parameters()}
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), t.autocast():
                held = t.model(*t.batch("TRAIN", 0))
            kept = sum(size for pointer, size in saved.items() if pointer not in mine)
            del held
            copies = 2 + t.optimizer.slots  # the parameters, their gradients, the solver's arrays
            total = kept + copies * sum(p.nbytes for p in t.net.parameters())
            return (
                total / 2**20,
                "the sum of what is kept for the backward pass, parameters, gradients and the solver's arrays",
            )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    device = devices.find_device(args.device)
    gpu, batch = device.type == "cuda", args.batch_size
    images = np.random.default_rng(0).integers(0, 256, (max(20 * batch, 200), 3, 32, 32), dtype=np.uint8)
    labels = np.arange(len(images)) % 10
    names = [name.strip() for name in args.nets.split(",")] if args.nets else list(WIDTHS)[: 1 if gpu else None]
    if unknown := set(names) - set(WIDTHS):
        sys.exit(f"no net '{unknown.pop()}'; there are {', '.join(WIDTHS)}")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "random.npz"
        np.savez(data, x_train=images, y_train=labels, x_test=images[:batch], y_test=labels[:batch])
        nets = {name: compared(name, data, args, device) for name in names}
        kinds = ["bf16", "fp32"] if wide(args, device) else ["fp32"]  # fp32 is the last: from then on, there is no bf16
        used = {kind: memory(data, device, kind) for kind in kinds} if "5.48 M" in names else {}
    threads = "1 thread" if (count := torch.get_num_threads()) == 1 else f"{count} threads"
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "batch_size": batch,
        "rounds": args.rounds,
        "device": torch.cuda.get_device_name(device) if gpu else f"{cpu_name()}, {threads}",
        "isa": args.isa,
        "load": None if gpu or not hasattr(os, "getloadavg") else round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "nets": nets,
        "memory_mb": {kind: used[kind][0] for kind in sorted(used, reverse=True)},
        "memory_how": used["fp32"][1] if used else None,
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


# -- Markdown -------------------------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def render(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    busy = f" Load average {found['load']}." if found["load"] is not None else ""
    only = f", at most {found['isa']}" if found["isa"] else ""
    head = f"{found['date']}, {found['device']}{only}, {versions}, batch {found['batch_size']}"
    paragraphs = [f"{head}, medians of {found['rounds']} turns.{busy}"]
    for name, net in found["nets"].items():
        rows = []
        for label, s in net["speeds"].items():
            shown = f"{s['images_per_s']:,.0f}", f"{s['ratio']:.2f}"
            arithmetic = f"{s['tflops']:.3g}", f"{s['share_of_matmul']:.0%}"
            cpu = f"{s['cpu_ms_per_image']:.1f}", f"{s['cpu_ratio']:.2f}", f"{s['kernel_share']:.0%}"
            rows.append([label, *shown, *arithmetic, *cpu])
        titles = [f"SimpleNet {name}", "images/s", "ratio", "TFLOP/s", "of matmul"]
        gflop = net["gflop_per_image"]
        rates = ", ".join(f"{rate:.3g} TFLOP/s in {kind}" for kind, rate in net["matmul_tflops"].items())
        about = (
            f"An image, forward and backward: {gflop['ours']:.3g} GFLOP (original: {gflop['original']:.3g}). "
            f"A square matrix product reaches {rates}."
        )
        paragraphs += [table([*titles, "CPU ms per image", "CPU ratio", "in the kernel"], rows), about]
        if profiles := net["profiles"]:
            sums = {label: sum(profile.values()) for label, profile in profiles.items()}
            kinds = [kind for kind in [*KINDS, "other"] if any(kind in profile for profile in profiles.values())]
            lines = [
                [kind, *(f"{profile.get(kind, 0) / sums[label]:.1%}" for label, profile in profiles.items())]
                for kind in kinds
            ]
            paragraphs.append(table([f"time of SimpleNet {name}", *profiles], lines))
    if found["memory_mb"]:
        peak = [[kind, f"{mb:,.0f}", f"{mb / REPORTED_MB:.2f}"] for kind, mb in found["memory_mb"].items()]
        paragraphs += [
            table(["5.48 M, memory at batch 64", "MB", f"of the reported {REPORTED_MB} MB"], peak),
            f"Memory: {found['memory_how']}.",
        ]
    return "\n\n".join(paragraphs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--nets", help="names of nets, separated by commas (default: all; on a GPU, 5.48 M)")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="steps per turn (default: 1, or 5 of the slim nets; 50 on a GPU)")
    parser.add_argument("--isa", choices=list(ISA), help="the instructions that PyTorch's libraries may use")
    parser.add_argument("--profile", action="store_true", help="also print where the time goes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--md", type=Path)
    parser.add_argument("--serve", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    warnings.filterwarnings("ignore", category=UserWarning)
    found = measure(args)
    text = render(found)
    print(text)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    if args.md:
        args.md.write_text(text + "\n")


if __name__ == "__main__":
    main()
