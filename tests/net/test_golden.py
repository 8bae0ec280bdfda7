"""Every layer type against what Caffe 1.0 computed: tops, gradients, and the blobs that a forward pass changes."""

from __future__ import annotations

from pathlib import Path

import golden_nets
import pytest
import torch
from conftest import GOLDEN

from caffe_port import layers

CASES = sorted((GOLDEN / "layers").glob("*.prototxt"))


def test_all_cases_are_here() -> None:
    assert len(CASES) == 196


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_as_caffe(path: Path) -> None:
    case = golden_nets.load(path)
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
            golden_nets.assert_close(tops[rest[1], int(rest[2])].detach().numpy(), expected, key)
            compared += 1
        elif kind == "after":
            module = case.net.caffe_layers()[rest[0]]
            blob = module.get_blob(module.blob_names()[int(rest[1])])
            golden_nets.assert_close(blob.detach().numpy(), expected, key)
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
        golden_nets.assert_close(zero.numpy(), expected, key)


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
