"""Small files in the place of a reader's own, in the current folder: ``python stand_ins.py KIND [FOLDER]``.

``solver``: a net of three layers, its solver and its data. ``classifier``: deploy.prototxt and net.caffemodel, and
images/ in which it tells dark from bright. ``sets``: MNIST's files, cifar10.npz and cifar100.npz in FOLDER, noise.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

DEPLOY = """
name: "brightness"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 6 dim: 5 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }
layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" }
"""


def solver() -> None:
    from small_training import project

    project(Path())


def classifier() -> None:
    from PIL import Image

    from caffe_port.formats import caffemodel, prototxt

    Path("deploy.prototxt").write_text(DEPLOY)
    net = prototxt.read("deploy.prototxt", "NetParameter")
    weight = np.concatenate([np.ones((1, 90)), -np.ones((1, 90))]) / 90
    caffemodel.write("net.caffemodel", net, {"ip": [weight.astype(np.float32), np.zeros(2, np.float32)]})
    rng = np.random.default_rng(0)
    for name, low in (("bright", 180), ("dark", 0)):
        folder = Path("images", name)
        folder.mkdir(parents=True)
        for k in range(4):
            Image.fromarray(rng.integers(low, low + 60, (6, 5, 3), np.uint8)).save(folder / f"{k}.png")


def sets(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        for kind, size in (("images-idx3", (100, 28, 28)), ("labels-idx1", (100,))):
            values = rng.integers(0, 10 if kind == "labels-idx1" else 256, size, np.uint8)
            head = bytes((0, 0, 8, len(size))) + np.array(size, ">u4").tobytes()
            (folder / f"{stem}-{kind}-ubyte").write_bytes(head + values.tobytes())
        arrays |= {f"x_{split}": rng.integers(0, 256, (40, 3, 32, 32), np.uint8), f"y_{split}": np.arange(40) % 10}
    for name in ("cifar10", "cifar100"):
        np.savez(folder / f"{name}.npz", **arrays)


if __name__ == "__main__":
    {"solver": solver, "classifier": classifier, "sets": sets}[sys.argv[1]](*map(Path, sys.argv[2:]))
