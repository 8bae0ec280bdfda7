"""What goes wrong in a training, and what is left then."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_training import project

from caffe_port.errors import CaffePortError
from caffe_port.formats import caffemodel
from caffe_port.training import run_folder
from caffe_port.training.train import TrainOptions, train

RNG = np.random.default_rng(3)


def test_a_loss_that_becomes_nan_names_iteration_and_layer(tmp_path: Path) -> None:
    solver = project(tmp_path)
    with pytest.raises(CaffePortError, match=r"iteration \d+; it began in the \w+ of layer '\w+', since the update of"):
        train(solver.with_name("solver.prototxt"), tmp_path / "run", TrainOptions(weights=str(broken(tmp_path))))
    text = (tmp_path / "net.prototxt").read_text()
    (tmp_path / "net.prototxt").write_text(
        text.replace('type: "ReLU" bottom: "conv" top: "conv"', 'type: "Log" bottom: "conv" top: "conv"')
    )
    with pytest.raises(CaffePortError) as caught:
        train(solver, tmp_path / "log")
    assert "the loss is nan at iteration 0; it began in the output of layer 'relu' (Log)" in str(caught.value)
    assert "There is no snapshot before it." in str(caught.value)


def broken(folder: Path) -> Path:
    """Weights with one NaN."""
    from caffe_port import api

    net = api.port(folder / "net.prototxt", input_shapes={"data": (6, 2, 7, 6)}).net
    values = net.blobs()
    values["ip"][0][0, 0] = np.nan
    definition = api.Definition.read(folder / "net.prototxt").net
    caffemodel.write(folder / "nan.caffemodel", definition, values)
    return folder / "nan.caffemodel"


def test_the_last_good_snapshot_is_named(tmp_path: Path) -> None:
    solver = project(tmp_path)
    train(solver, tmp_path / "run", TrainOptions(max_iter=4))
    solver.write_text(solver.read_text().replace("base_lr: 0.05", "base_lr: 1e38").replace("momentum: 0.9", ""))
    with pytest.raises(CaffePortError, match=r"small_iter_4\.solverstate"):
        train(solver, tmp_path / "run", TrainOptions(resume=True))
    snapshot, _ = run_folder.RunFolder(tmp_path / "run").latest()
    assert snapshot is not None
    assert snapshot.iter == 4


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    solver = project(tmp_path)
    train(solver, tmp_path / "run", TrainOptions(max_iter=4))
    code = f"""
import resource
from caffe_port.training.train import TrainOptions, train
from caffe_port.errors import CaffePortError
def hear(event):
    if event["kind"] == "train" and event["iter"] == 6:
        resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))
try:
    train({str(solver)!r}, {str(tmp_path / "run")!r}, TrainOptions(resume=True), hear)
except CaffePortError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot be written: File too large" in done.stdout
    snapshot, refused = run_folder.RunFolder(tmp_path / "run").latest()
    assert snapshot is not None
    assert (snapshot.iter, refused) == (4, [])
    assert not list((tmp_path / "run").rglob("*.part"))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (('source: "list.txt"', 'source: "absent.txt"'), {}, "'absent.txt' does not exist"),
        (("num_output: 5", "num_output: 4"), {"data": "set.npz"}, "label 4 is out of range: the net has 4 classes"),
        (("", ""), {"data": "set.npz", "entry": "mnist-slim-310k"}, "the images are RGB, but the net expects GRAY"),
        (("", ""), {"data": "absent.npz"}, "cannot be read"),
        (("kernel_size: 3", "kernel_size: 9"), {"data": "set.npz"}, "gives an empty output"),
        (
            ('top: "data" top: "label"', 'top: "data" top: "label" top: "w"'),
            {"data": "set.npz"},
            "has 3 inputs; --data provides two",
        ),
        (("", ""), {"amp": "fp8"}, "amp 'fp8'"),
        (("", ""), {"device": "cuda:77"}, "device 'cuda:77' cannot be used"),
        (("", ""), {"device": "gpu"}, "device 'gpu' cannot be used"),
        (('type: "SoftmaxWithLoss"', 'type: "SoftmaxWithLoss" include { phase: TEST }'), {}, "no loss in phase TRAIN"),
    ],
)
def test_bad_input(tmp_path: Path, change: tuple[str, str], options: dict[str, Any], message: str) -> None:
    solver = project(tmp_path)
    np.savez(tmp_path / "set.npz", images=RNG.integers(0, 256, (10, 3, 7, 6), dtype=np.uint8), labels=np.arange(10) % 5)
    net = tmp_path / "net.prototxt"
    net.write_text(net.read_text().replace(*change) if change[0] else net.read_text())
    if "data" in options:
        options = {**options, "data": str(tmp_path / options["data"])}
    with pytest.raises(CaffePortError, match=message):
        train(solver, tmp_path / "run", TrainOptions(**options))
