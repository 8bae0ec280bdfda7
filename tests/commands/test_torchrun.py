"""`torchrun -m caffe_port train`, as `--help` and docs/training.md show it: two processes, told as one."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from caffe_port.formats import caffemodel

NET = """
layer { name: "data" type: "HDF5Data" top: "data" top: "label" hdf5_data_param { source: "list.txt" batch_size: 4 } }
layer { name: "bn" type: "BatchNorm" bottom: "data" top: "bn" }
layer { name: "ip" type: "InnerProduct" bottom: "bn" top: "ip"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import h5py

    rng = np.random.default_rng(5)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = rng.standard_normal((12, 2, 3, 5)).astype(np.float32)
        file["label"] = rng.integers(0, 5, 12)
    (tmp_path / "list.txt").write_text("a.h5\n")
    (tmp_path / "solver.prototxt").write_text(
        'net: "net.prototxt" base_lr: 0.05 lr_policy: "fixed" max_iter: 4 display: 1 test_iter: 2 test_interval: 2'
    )
    return tmp_path


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command in a shell; the port that the processes meet at is free, and their threads are few."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PET_MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return subprocess.run(["sh", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def test_two_processes_are_told_as_one(folder: Path) -> None:
    """BatchNorm takes its statistics over both."""
    (folder / "net.prototxt").write_text(NET)
    done = run("torchrun --nproc-per-node 2 -m caffe_port train solver.prototxt --device cpu --out RUN", folder)
    assert done.returncode == 0, done.stderr
    assert "arning" not in done.stderr
    assert [line.partition(":")[0] for line in done.stderr.splitlines() if "loss" in line] == [
        f"iteration {k}" for k in (0, 0, 2, 4)
    ], "the first iteration, and a test at 0, 2 and 4, once each"
    told = (
        r"loss = \S+ after 4 iterations",
        r"training loss = \S+ in iteration 3",
        r"best: loss = \S+ after \d iterations",
        "run: RUN",
    )
    assert re.fullmatch("\n".join((*told, "")), done.stdout), done.stdout
    assert caffemodel.read(folder / "RUN" / "last.caffemodel").by_name()["ip"].blobs[0].shape == (5, 30)
