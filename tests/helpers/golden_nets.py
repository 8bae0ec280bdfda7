"""Runs a net of tests/golden/layers the way Caffe ran it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caffe_port.definition.definition import Definition
from caffe_port.formats import caffemodel
from caffe_port.net.net import Net
from caffe_port.verification.references.reference import Case

Array = np.ndarray[Any, Any]

ATOL, RTOL = 1e-5, 1e-4


@dataclass
class Golden:
    """A golden case: Caffe's arrays, and a Net with the same parameters in the same phase."""

    arrays: dict[str, Array]
    net: Net

    @property
    def inputs(self) -> list[torch.Tensor]:
        return [torch.from_numpy(self.arrays[f"in:{blob}"]) for blob in self.net.plan.inputs]


def load(path: Path) -> Golden:
    """Reads NAME.prototxt, NAME.npz and, if it exists, NAME.caffemodel."""
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    phase = str(arrays.pop("phase"))
    spec = Definition.read(path).spec(phase)
    shapes = {}
    for layer in spec.layers:
        for top in layer.tops if layer.type == "Input" else ():
            shapes[top] = tuple(layer.param.input_param.shape[0].dim)
    net = Net(spec, shapes | {key[3:]: a.shape for key, a in arrays.items() if key.startswith("in:")})
    weights = path.with_suffix(".caffemodel")
    if weights.exists():
        net.load_weights(caffemodel.read(weights))
    net.train(phase == "TRAIN")
    return Golden(arrays, net)


def assert_close(actual: Array, expected: Array, what: str) -> None:
    """|a - e| <= 1e-5 + 1e-4 |e|, in float64; equal shapes."""
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, Caffe's is {expected.shape}"
    np.testing.assert_allclose(
        actual.astype(np.float64), expected.astype(np.float64), rtol=RTOL, atol=ATOL, err_msg=what
    )


def case_of(path: Path) -> tuple[Case, dict[tuple[str, int], np.ndarray]]:
    """The Case of a golden net, and the tops that Caffe computed."""
    golden = load(path)
    weights = path.with_suffix(".caffemodel")
    blobs = {layer.name: layer.blobs for layer in caffemodel.read(weights).layers} if weights.exists() else {}
    plan = golden.net.plan
    tops = {(k.split(":")[2], int(k.split(":")[3])): v for k, v in golden.arrays.items() if k.startswith("out:")}
    return Case(plan.spec, plan.shapes, blobs, {b: golden.arrays[f"in:{b}"] for b in plan.inputs}), tops
