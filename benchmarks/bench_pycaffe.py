"""What net.forward() costs through pycaffe's API, beside the Net's own forward and Caffe itself, on SimpleNet.

    make bench-pycaffe
    python benchmarks/bench_pycaffe.py --batches 1 64

Seconds of processor time, with one thread each, for machines are shared; the two take turns, and the least counts.
Caffe is left out where it is not built.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
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
    began = time.process_time()
    net.forward()
    found.append(time.process_time() - began)
print("least", min(found))
"""


def least(actions: Sequence[Callable[[], object]], times: int) -> list[float]:
    """The least seconds of each action; they take turns."""
    found: list[list[float]] = [[] for _ in actions]
    for _ in range(times):
        for action, seconds in zip(actions, found, strict=True):
            began = time.process_time()
            action()
            seconds.append(time.process_time() - began)
    return [min(seconds) for seconds in found]


def real(files: tuple[Path, Path], batch: int, times: int) -> float | None:
    """The least seconds of Caffe's forward; None where it is not built."""
    folder = build_caffe.folder()
    if build_caffe.stamp(folder) is None:
        return None
    environment = {**os.environ, "GLOG_minloglevel": "2", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": ""}
    command = [str(folder / "bin/python"), "-c", CAFFE, *map(str, files), str(batch), str(times)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = re.search(r"least (\S+)", done.stdout)
    assert found is not None
    return float(found.group(1))


def main() -> int:
    """Prints a row for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64], help="batch sizes")
    options = parser.parse_args()
    torch.set_num_threads(1)
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

            least((direct, net.forward), 2)
            own_seconds, seconds = least((direct, net.forward), times)
            theirs = real(files, batch, times)
            shown = "-" if theirs is None else f"{1e3 * theirs:.1f}"
            ratio = seconds / own_seconds
            print(f"{batch:5}  {1e3 * own_seconds:9.1f}  {1e3 * seconds:9.1f}  {ratio:5.2f}  {shown:>9}  ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
