"""The training speed of SimpleNet (5.48 M) compared with the original port's loop, and its memory and arithmetic.

    python benchmarks/bench_training.py [--device cuda] [--rounds 3] [--json FILE] [--md FILE]

Variants take turns, so that other load affects all of them; the best turn of each is reported. The images are random,
because speed does not depend on them, so no data set is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from original_loop import OriginalLoop
from torch.utils.flop_counter import FlopCounterMode

from caffe_port.devices import find_device, has_bf16
from caffe_port.evaluation import registry
from caffe_port.training import solver
from caffe_port.training.cuda_graph import GraphedUpdate
from caffe_port.training.set_up import Training, TrainOptions, set_up
from caffe_port.training.solver import SolverSpec
from caffe_port.training.train import _gradients

SOLVER = "simplenet_cifar10_port_solver.prototxt"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
REPORTED_MB = 1239  # reported by the authors of the port, at batch size 64
Step = Callable[[], Any]


def training(
    data: Path, folder: Path, device: torch.device, batch_size: int, fast: bool, amp: str | None = None
) -> tuple[Training, Step]:
    """A step of caffe-port's loop without logging: what ``caffe-port train`` does for one update."""
    spec = SolverSpec.read(registry.model_defs() / SOLVER).changed(test_interval=0)
    options = TrainOptions(data=str(data), entry="simplenet-cifar10-port", batch_size=batch_size, fast=fast, amp=amp)
    t, _ = set_up(spec, folder, options, device, lambda _: None)
    t.net.train()
    graphed = GraphedUpdate(t.optimizer, lambda batches: _gradients(t, batches)) if t.options.cuda_graph else None
    done = [0]

    def step() -> Any:
        solver.set_iteration(t.optimizer, spec, done[0])
        batches = [t.batch("TRAIN", done[0])]
        done[0] += 1
        if graphed is not None:
            return graphed(batches)
        t.optimizer.zero_grad(set_to_none=True)
        loss = _gradients(t, batches)
        t.optimizer.step()
        return loss if device.type == "cuda" else loss.item()

    return t, step


def seconds(step: Step, steps: int, device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return (time.perf_counter() - began) / steps


def flops(forward: Step) -> int:
    """The FLOP of a forward and a backward pass; a multiply-accumulate counts as two."""
    with FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops()


def matmul_rate(dtype: torch.dtype, device: torch.device, side: int) -> float:
    """FLOP/s of a square matrix product, the upper limit for this machine."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    torch.mm(a, b)
    return 2 * side**3 / min(seconds(lambda: torch.mm(a, b), 3, device) for _ in range(3))


def memory(data: Path, device: torch.device, kind: str) -> tuple[float, str]:
    """The memory in MB that training at batch size 64 takes, and how it was measured."""
    with tempfile.TemporaryDirectory() as folder:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        t, step = training(data, Path(folder), device, 64, fast=kind == "bf16", amp="bf16" if kind == "bf16" else None)
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


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    device = find_device(args.device)
    gpu = device.type == "cuda"
    batch = args.batch_size
    images = np.random.default_rng(0).integers(0, 256, (max(20 * batch, 200), 3, 32, 32), dtype=np.uint8)
    labels = np.arange(len(images)) % 10
    with tempfile.TemporaryDirectory() as name:
        folder, data = Path(name), Path(name) / "random.npz"
        np.savez(data, x_train=images, y_train=labels, x_test=images[:batch], y_test=labels[:batch])
        used = {kind: memory(data, device, kind) for kind in ("fp32", "bf16") if kind == "fp32" or has_bf16(device)}
        original = OriginalLoop(torch.from_numpy(images), torch.from_numpy(labels), batch, device)
        plain, plain_step = training(data, folder / "plain", device, batch, fast=False)
        quick, quick_step = training(data, folder / "fast", device, batch, fast=True)
        quick_kind = quick.options.amp or "fp32"
        variants = {
            "original loop, fp32": original.step,
            "caffe-port train, fp32": plain_step,
            f"caffe-port train --fast, {quick_kind}": quick_step,
        }
        x = torch.randn(2, 3, 32, 32, device=device)
        y = torch.zeros(2, dtype=torch.long, device=device)
        theirs = flops(lambda: original.criterion(original.net(x), y).backward()) / 2
        ours = flops(lambda: plain.net.forward_with_loss(x, y)[1].backward()) / 2
        for step in variants.values():  # the graph is captured at the fourth call
            seconds(step, 10 if gpu else 1, device)
        best, rates = dict.fromkeys(variants, float("inf")), dict.fromkeys(("fp32", quick_kind), 0.0)
        for _ in range(args.rounds):
            for label, step in variants.items():
                best[label] = min(best[label], seconds(step, args.steps or (50 if gpu else 1), device))
            for kind, rate in rates.items():
                rates[kind] = max(rate, matmul_rate(DTYPES[kind], device, 8192 if gpu else 1536))
    speeds = {}
    for label, each in best.items():
        per_image = theirs if "original" in label else ours
        achieved = per_image * batch / each
        kind = "bf16" if "bf16" in label else "fp32"
        speeds[label] = {
            "images_per_s": batch / each,
            "ratio": best["original loop, fp32"] / each,
            "tflops": achieved / 1e12,
            "share_of_matmul": achieved / rates[kind],
        }
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "batch_size": batch,
        "rounds": args.rounds,
        "device": torch.cuda.get_device_name(device) if gpu else f"{cpu_name()}, {torch.get_num_threads()} threads",
        "load": None if gpu or not hasattr(os, "getloadavg") else round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "gflop_per_image": {"original": theirs / 1e9, "ours": ours / 1e9},
        "speeds": speeds,
        "matmul_tflops": {kind: rate / 1e12 for kind, rate in rates.items()},
        "memory_mb": {kind: value for kind, (value, _) in used.items()},
        "memory_how": used["fp32"][1],
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def render(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    busy = f" Load average {found['load']}." if found["load"] is not None else ""
    rows = []
    for label, s in found["speeds"].items():
        shown = f"{s['images_per_s']:,.0f}", f"{s['ratio']:.2f}", f"{s['tflops']:.3g}", f"{s['share_of_matmul']:.0%}"
        rows.append([label, *shown])
    peak = [[kind, f"{mb:,.0f}", f"{mb / REPORTED_MB:.2f}"] for kind, mb in found["memory_mb"].items()]
    gflop = found["gflop_per_image"]
    rates = ", ".join(f"{rate:.3g} TFLOP/s in {kind}" for kind, rate in found["matmul_tflops"].items())
    head = f"{found['date']}, {found['device']}, {versions}, batch {found['batch_size']}"
    paragraphs = [
        f"{head}, best of {found['rounds']} turns.{busy}",
        table(["loop", "images/s", "ratio", "TFLOP/s", "of matmul"], rows),
        f"An image, forward and backward: {gflop['ours']:.2f} GFLOP (original: {gflop['original']:.2f}).",
        f"A square matrix product reaches {rates}.",
        table(["memory at batch 64", "MB", f"of the reported {REPORTED_MB} MB"], peak),
        f"Memory: {found['memory_how']}.",
    ]
    return "\n\n".join(paragraphs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="steps per turn (default: 1; 50 on a GPU)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--md", type=Path)
    args = parser.parse_args()
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
