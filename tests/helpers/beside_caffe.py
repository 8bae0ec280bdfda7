"""A training of Caffe's own, on a small database, to compare ours with."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import lmdb
import numpy as np
from small_lmdb import write

from caffe_port.formats import caffemodel, solverstate
from caffe_port.formats.message import Message
from caffe_port.typing import Array

HEIGHT, WIDTH, CLASSES = 28, 26, 10


def pictures(count: int, seed: int, channels: int = 1, label: int | None = None) -> tuple[Array, Array]:
    """Images (N, C, H, W) of ten patterns under noise, and their labels."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(7).integers(0, 200, (CLASSES, channels, HEIGHT // 4, WIDTH // 2))
    labels = rng.integers(0, CLASSES, count)
    images = patterns.repeat(4, 2).repeat(2, 3)[labels] + rng.integers(0, 56, (count, channels, HEIGHT, WIDTH))
    return images.astype(np.uint8), labels


def database(path: Path, images: Array, labels: Array) -> None:
    """Writes an LMDB of Datum."""
    shape = dict(zip(("channels", "height", "width"), images.shape[1:], strict=True))
    with lmdb.open(str(path), map_size=1 << 26) as env, env.begin(write=True) as txn:
        for k, (image, label) in enumerate(zip(images, labels, strict=True)):
            datum = Message("Datum", **shape, data=image.tobytes(), label=int(label))
            txn.put(b"%08d" % k, write(datum))


def start_state(weights: Path, slots: int = 1) -> Path:
    """A state of iteration 0 with these weights: the fork that we build ignores the file of caffe train -weights.

    Args:
        slots: the solver's arrays for every blob.
    """
    read, zeros, shared = caffemodel.read(weights), [], set[str]()
    params = {layer.name: list(layer.param) for layer in read.net.layer} if read.net is not None else {}
    for layer in read.layers:
        names = [param.name for param in params.get(layer.name, [])] + [""] * len(layer.blobs)
        for blob, name in zip(layer.blobs, names, strict=False):
            if name not in shared:
                zeros.append(np.zeros_like(blob, np.float32))
            shared |= {name} if name else set()
    path = weights.with_suffix(".solverstate")
    solverstate.write(path, solverstate.SolverState(0, str(weights), tuple(slots * zeros)))
    return path


def caffe_train(caffe: Path, folder: Path, *arguments: str) -> str:
    """Runs ``caffe train`` in a folder; returns its log."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "GLOG_logtostderr": "1"}
    command = [str(caffe / "bin/caffe"), "train", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


def furthest(ours: Path, theirs: Path) -> float:
    """The greatest difference between two files' parameters, as a share of the greatest value of their layer."""
    mine, other = (caffemodel.read(path).by_name() for path in (ours, theirs))
    assert mine.keys() == other.keys()
    worst = 0.0
    for name, layer in other.items():
        greatest = max(float(np.abs(blob).max()) for blob in layer.blobs)
        for a, b in zip(mine[name].blobs, layer.blobs, strict=True):
            assert a.shape == b.shape, name
            worst = max(worst, float(np.abs(np.float64(a) - b).max()) / greatest)
    return worst
