"""What net.forward() costs through pycaffe's API, beside the Net's own forward and Caffe itself, on SimpleNet.

    make bench-pycaffe
    python benchmarks/bench_pycaffe.py --batches 1 64 --rounds 5

The three take turns; the fastest of their runs counts, for machines are shared. Caffe is left out where it is not built.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import caffe_port
import caffe_port.pycaffe as caffe
from caffe_port.emit.caffe_files import write_caffe
from caffe_port.verification.references import build_caffe

NET = Path(__file__).resolve().parent.parent / "model_defs" / "simplenet_cifar10.prototxt"

CAFFE = """
import sys, time
import numpy as np
import caffe
net = caffe.Net(sys.argv[1], sys.argv[2], caffe.TEST)
net.blobs["data"].reshape(int(sys.argv[3]), 3, 32, 32)
net.blobs["data"].data[...] = np.random.RandomState(0).standard_normal(net.blobs["data"].data.shape)
net.forward()
found = []
for _ in range(int(sys.argv[4])):
    began = time.perf_counter()
    net.forward()
    found.append(time.perf_counter() - began)
print("fastest", min(found))
"""


def fastest(action: Callable[[], object], times: int) -> float:
    """Seconds of the fastest run."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        found.append(time.perf_counter() - began)
    return min(found)


def real(files: tuple[Path, Path], batch: int, times: int, threads: int) -> float | None:
    """Seconds of Caffe's fastest forward; None where it is not built."""
    folder = build_caffe.folder()
    if build_caffe.stamp(folder) is None:
        return None
    environment = {**os.environ, "GLOG_minloglevel": "2", "OPENBLAS_NUM_THREADS": str(threads), "PYTHONPATH": ""}
    command = [str(folder / "bin/python"), "-c", CAFFE, *map(str, files), str(batch), str(times)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = re.search(r"fastest (\S+)", done.stdout)
    assert found is not None
    return float(found.group(1))


def main() -> int:
    """Prints a row for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64], help="batch sizes")
    parser.add_argument("--rounds", type=int, default=4, help="turns that each takes")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch and of Caffe's OpenBLAS")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'batch':>5}  {'Net':>9}  {'pycaffe':>9}  {'ratio':>5}  {'Caffe':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for batch in options.batches:
            own = caffe_port.load(NET, input_shapes={"data": (batch, 3, 32, 32)})
            files = write_caffe(own, folder)
            net = caffe.Net(files[0], caffe.TEST, weights=files[1])
            x, times = torch.randn(batch, 3, 32, 32), max(3, 40 // batch)
            net.blobs["data"].data[...] = x.numpy()

            def direct(own: caffe_port.Net = own, x: torch.Tensor = x) -> object:
                with torch.no_grad():
                    return own(x)

            for action in (direct, net.forward):
                action()
                action()
            seconds = [float("inf")] * 3
            for _ in range(options.rounds):
                found = fastest(direct, times), fastest(net.forward, times), real(files, batch, times, options.threads)
                seconds = [min(a, b) if b is not None else a for a, b in zip(seconds, found, strict=True)]
            shown = f"{1e3 * seconds[2]:9.1f}" if seconds[2] < float("inf") else "        -"
            ratio = seconds[1] / seconds[0]
            print(f"{batch:5}  {1e3 * seconds[0]:9.1f}  {1e3 * seconds[1]:9.1f}  {ratio:5.2f}  {shown}  ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
