"""The cost of verifying a net of VGG-16's size: time compared with the forward passes that it needs, and memory.

    python benchmarks/bench_verify.py [--quick]

Time: isolated verification against OpenCV, relative to one pass of the Net plus one of OpenCV (which includes loading
the net, as in verification). Memory: the peak for nets with 20 and 80 equal layers; it must not grow with depth.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from caffe_port.api import port
from caffe_port.verification.comparison import Tolerance
from caffe_port.verification.inputs import random_inputs
from caffe_port.verification.references.opencv import OpenCVReference
from caffe_port.verification.runner import run
from caffe_port.verification.subject import case_of


def conv(name: str, bottom: str, outputs: int) -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" convolution_param {{ '
        f'num_output: {outputs} kernel_size: 3 pad: 1 weight_filler {{ type: "msra" }} }} }}\n'
        f'layer {{ name: "{name}_relu" type: "ReLU" bottom: "{name}" top: "{name}" }}\n'
    )


def head(side: int, channels: int = 3) -> str:
    shape = f"shape {{ dim: 1 dim: {channels} dim: {side} dim: {side} }}"
    return f'layer {{ name: "data" type: "Input" top: "data" input_param {{ {shape} }} }}\n'


def vgg(side: int, width: int) -> str:
    text, bottom = head(side), "data"
    for block, (count, outputs) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), 1):
        for n in range(1, count + 1):
            text += conv(f"conv{block}_{n}", bottom, outputs)
            bottom = f"conv{block}_{n}"
        text += (
            f'layer {{ name: "pool{block}" type: "Pooling" bottom: "{bottom}" top: "pool{block}" '
            "pooling_param { kernel_size: 2 stride: 2 } }\n"
        )
        bottom = f"pool{block}"
    for n, outputs in ((6, width), (7, width), (8, 1000)):
        text += (
            f'layer {{ name: "fc{n}" type: "InnerProduct" bottom: "{bottom}" top: "fc{n}" inner_product_param {{ '
            f'num_output: {outputs} weight_filler {{ type: "xavier" }} }} }}\n'
        )
        bottom = f"fc{n}"
    return text


def best(function: Callable[[], object], times: int) -> float:
    found = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return min(found)


def cost(text: str, times: int) -> tuple[float, float, float]:
    """The seconds of the Net's forward pass, of OpenCV's, and of the verification."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.prototxt"
        path.write_text(text)
        ported = port(path)
    inputs = random_inputs(ported.net.plan.spec, ported.net.plan.shapes, 0)[0]
    case = case_of(ported, inputs)
    tensor = torch.from_numpy(inputs["data"])
    with torch.inference_mode():
        ours = best(lambda: ported.net(tensor), times)
        theirs = best(lambda: list(OpenCVReference().run(case)), times)
        both = best(lambda: list(run(ported.net, OpenCVReference(), case, Tolerance(), "isolated")), times)
    return ours, theirs, both


def peak(depth: int, side: int) -> float:
    """The peak memory in MiB, beyond that at the start, of verifying a net of ``depth`` equal convolutions."""
    text = head(side, 32)
    bottom = "data"
    for n in range(depth):
        text += conv(f"c{n}", bottom, 32)
        bottom = f"c{n}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.prototxt"
        path.write_text(text)
        ported = port(path)
    case = case_of(ported, random_inputs(ported.net.plan.spec, ported.net.plan.shapes, 0)[0])
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _peak()
    with torch.inference_mode():
        for _ in run(ported.net, OpenCVReference(), case, Tolerance()):
            pass
    return _peak() - before


def _peak() -> float:
    """The peak resident memory so far, in MiB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller net, once")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    side = 128 if arguments.quick else 256
    if arguments.peak:
        print(f"{peak(arguments.peak, side):.1f}")
        return
    ours, theirs, both = cost(vgg(64, 256) if arguments.quick else vgg(224, 4096), 1 if arguments.quick else 3)
    print(f"forward {ours:.2f} s, OpenCV {theirs:.2f} s, verified {both:.2f} s: {both / (ours + theirs):.2f} x the two")
    for depth in (20, 80):
        command = [sys.executable, __file__, "--peak", str(depth), *(["--quick"] if arguments.quick else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"depth {depth}: peak + {float(done.stdout):.0f} MiB")


if __name__ == "__main__":
    main()
