"""A net that is small enough to train in a moment, its solver and its data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from caffe_port.formats import caffemodel

DATA = """layer { name: "data" type: "HDF5Data" top: "data" top: "label"
  hdf5_data_param { source: "list.txt" batch_size: 6 } }"""
NET = """
{data}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {{
  num_output: 4 kernel_size: 3 weight_filler {{ type: "xavier" }} }} }}
{norm}
layer {{ name: "relu" type: "ReLU" bottom: "conv" top: "conv" }}
layer {{ name: "drop" type: "Dropout" bottom: "conv" top: "conv" }}
layer {{ name: "ip" type: "InnerProduct" bottom: "conv" top: "ip" inner_product_param {{
  num_output: 5 weight_filler {{ type: "gaussian" std: 0.1 }} }} }}
layer {{ name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include {{ phase: TEST }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }}
"""
NORM = 'layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }'
SOLVER = """
net: "net.prototxt" type: "{type}" base_lr: 0.05 lr_policy: "step" stepsize: 5 gamma: 0.5 weight_decay: 0.001
max_iter: 12 display: 1 average_loss: 3 test_iter: 2 test_interval: 4 snapshot: 4 snapshot_prefix: "here/small" {more}
"""


def project(folder: Path, type_: str = "SGD", more: str = "momentum: 0.9", norm: str = NORM, data: str = DATA) -> Path:
    """Writes a solver, its net and data; returns the solver's path."""
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    with h5py.File(folder / "a.h5", "w") as file:
        file["data"] = rng.standard_normal((20, 2, 7, 6)).astype(np.float32)
        file["label"] = rng.integers(0, 5, 20)
    (folder / "list.txt").write_text("a.h5\n")
    (folder / "net.prototxt").write_text(NET.format(data=data, norm=norm))
    solver = folder / "solver.prototxt"
    solver.write_text(SOLVER.format(type=type_, more=more))
    return solver


def blobs(run: Path, name: str = "last.caffemodel") -> dict[str, list[np.ndarray]]:
    return {layer.name: list(layer.blobs) for layer in caffemodel.read(run / name).layers}


def assert_equal(a: dict[str, list[np.ndarray]], b: dict[str, list[np.ndarray]]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        for x, y in zip(a[name], b[name], strict=True):
            np.testing.assert_array_equal(x, y, err_msg=name)
