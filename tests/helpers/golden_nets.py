"""Runs a net of tests/golden/layers the way Caffe ran it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caffe_port import layers
from caffe_port.definition.definition import Definition
from caffe_port.formats import caffemodel, dialects
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


def load(path: Path, dialect: str | None = None) -> Golden:
    """Reads NAME.prototxt, NAME.npz and, if it exists, NAME.caffemodel."""
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    phase = str(arrays.pop("phase"))
    dialects.assume(dialect)
    try:
        spec = Definition.read(path).spec(phase)
    finally:
        dialects.assume(None)
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


def case_of(path: Path, dialect: str | None = None) -> tuple[Case, dict[tuple[str, int], np.ndarray]]:
    """The Case of a golden net, and the tops that Caffe computed."""
    golden = load(path, dialect)
    weights = path.with_suffix(".caffemodel")
    blobs = {layer.name: layer.blobs for layer in caffemodel.read(weights).layers} if weights.exists() else {}
    plan = golden.net.plan
    tops = {(k.split(":")[2], int(k.split(":")[3])): v for k, v in golden.arrays.items() if k.startswith("out:")}
    return Case(plan.spec, plan.shapes, blobs, {b: golden.arrays[f"in:{b}"] for b in plan.inputs}), tops


def assert_as_caffe(path: Path, dialect: str | None = None, apart: Collection[str] = ()) -> None:
    """Tops, gradients, and the blobs that a forward pass changes, but for the keys ``apart``, which must differ."""
    case = load(path, dialect)
    inputs = [x.requires_grad_() for x in case.inputs]
    tops: dict[tuple[str, int], torch.Tensor] = {}
    blob_values: dict[str, torch.Tensor] = {}
    losses: list[torch.Tensor] = []
    loss_slots = dict(case.net.plan.losses)
    for turn, step in zip(case.net.steps(*inputs), case.net.plan.steps, strict=True):
        for k, (name, top) in enumerate(zip(turn.layer.tops, turn.tops, strict=True)):
            tops[turn.layer.name, k] = top
            blob_values[name] = top
            if step.tops[k] in loss_slots:
                losses.append((top * loss_slots[step.tops[k]]).sum())

    compared = 0
    for key, expected in case.arrays.items():
        kind, *rest = key.split(":")
        if kind == "out" and (rest[1], int(rest[2])) in tops:
            assert_close(tops[rest[1], int(rest[2])].detach().numpy(), expected, key)
            compared += 1
        elif kind == "after":
            module = case.net.caffe_layers()[rest[0]]
            blob = module.get_blob(module.blob_names()[int(rest[1])])
            assert_close(blob.detach().numpy(), expected, key)
    assert compared == len(tops), "every top has its golden"

    gradients = {key: value for key, value in case.arrays.items() if key.startswith("grad")}
    if not gradients:
        return
    terms = [
        *losses,
        *(
            (blob_values[key[8:]] * torch.from_numpy(diff)).sum()
            for key, diff in case.arrays.items()
            if key.startswith("topdiff:")
        ),
    ]
    torch.stack([term for term in terms if term.requires_grad]).sum().backward()
    blobs_in = dict(zip(case.net.plan.inputs, inputs, strict=True))
    for key, expected in gradients.items():
        kind, *rest = key.split(":")
        if kind == "grad":
            actual = blobs_in[rest[0]].grad
        else:
            module = case.net.caffe_layers()[rest[0]]
            name = module.blob_names()[int(rest[1])]
            if not isinstance(getattr(module, name), torch.nn.Parameter):
                assert not expected.any(), f"{key}: Caffe has a gradient for a buffer"
                continue
            actual = _in_caffes_layout(module, name)
        zero = torch.zeros(expected.shape) if actual is None else actual
        if key in apart:
            assert not np.allclose(zero.numpy(), expected, RTOL, ATOL), f"{key} agrees: not to be left out"
            continue
        assert_close(zero.numpy().reshape(expected.shape), expected, key)


def _in_caffes_layout(module: layers.Layer, name: str) -> torch.Tensor | None:
    """A parameter's gradient as Caffe stores the blob (InnerProduct's transpose)."""
    parameter = getattr(module, name)
    if parameter.grad is None:
        return None
    value = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(parameter.grad)
        gradient = module.get_blob(name).detach().clone()
        parameter.copy_(value)
    return gradient
