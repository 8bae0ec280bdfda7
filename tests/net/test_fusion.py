"""What a Net runs as one gives what its layers give one by one, whatever happens to them in between."""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import caffe_port
from caffe_port.net import fusion

NET = """name: "n" input: "x" input_shape { dim: 4 dim: 3 dim: 6 dim: 5 }
layer { name: "bn" type: "BatchNorm" bottom: "x" top: "y" batch_norm_param { moving_average_fraction: 0.9 } }
layer { name: "scale" type: "Scale" bottom: "y" top: "z" scale_param { bias_term: true } }
layer { name: "drop" type: "Dropout" bottom: "z" top: "d" dropout_param { dropout_ratio: 0.25 } }
"""
SIDE = 'layer {{ name: "{name}" type: "Power" bottom: "{bottom}" top: "{name}" include {{ phase: {phase} }} }}\n'
X = torch.linspace(-2, 3, 4 * 3 * 6 * 5).reshape(4, 3, 6, 5)


@pytest.fixture
def net(tmp_path: Path) -> Any:
    (tmp_path / "n.prototxt").write_text(NET)
    net = caffe_port.load(tmp_path / "n.prototxt")
    net.bn.load_blobs([np.float32([1, -2, 3]), np.float32([4, 5, 6]), np.float32([2])])
    net.scale.load_blobs([np.float32([1, 2, -3]), np.float32([0.5, 0, 1])])
    return net


def one_by_one(net: Any) -> Tensor:
    *_, last = net.steps(X)
    return last.tops[0]


def agrees(net: Any) -> bool:
    with torch.no_grad():
        return bool(torch.allclose(net(X), one_by_one(net), rtol=1e-6, atol=1e-6))


def run_train(net: Any) -> None:
    net.train()(X)
    net.eval()


def add_foreach(net: Any) -> None:
    torch._foreach_lerp_([b.detach() for b in net.buffers()], [torch.ones_like(b) for b in net.buffers()], 0.3)


def write_in_inference_mode(net: Any) -> None:
    with torch.inference_mode():
        net.bn.mean.add_(1)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda net: None,
    "a write": lambda net: net.bn.mean.mul_(2),
    "a write to a detached view": lambda net: net.bn.variance.detach()[1:].add_(1),
    "a write in inference mode": write_in_inference_mode,
    "a write to many at once": add_foreach,
    "training": run_train,
    "blobs of a file": lambda net: net.bn.load_blobs([np.float32([3, 2, 1])] * 2 + [np.float32([7])]),
    "one blob": lambda net: net.bn.set_blob("scale_factor", torch.tensor([0.0])),
    "a state_dict": lambda net: net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()}),
    "an assigned state_dict": lambda net: net.load_state_dict(
        {k: v + 1 for k, v in net.state_dict().items()}, assign=True
    ),
    "a write through .data, and eval()": lambda net: (net.bn.mean.data.add_(1), net.eval()),
    "another buffer": lambda net: setattr(net.bn, "mean", torch.tensor([9.0, 8.0, 7.0])),
    "another eps": lambda net: setattr(net.bn, "eps", 0.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_statistics_follow_every_change(net: Any, change: str) -> None:
    assert agrees(net)
    for _ in range(2):
        CHANGES[change](net)
        assert agrees(net)


def test_statistics_are_made_once(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    statistics = type(net.bn).running_statistics
    monkeypatch.setattr(type(net.bn), "running_statistics", lambda bn: made.append(bn) or statistics(bn))
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            net(X)
    assert len(made) == 1
    net(X.clone().requires_grad_()).sum().backward()  # what was made in inference mode would not serve here
    assert len(made) == 1
    assert net.bn in fusion._KEPT


def test_what_is_kept_ends_with_the_net(net: Any) -> None:
    before = len(fusion._KEPT)
    other = copy.deepcopy(net)
    assert agrees(other)
    assert len(fusion._KEPT) == before + 1
    del other
    gc.collect()
    assert len(fusion._KEPT) == before


@pytest.mark.parametrize("way", ["deepcopy", "save", "half"])
def test_copies_have_statistics_of_their_own(net: Any, way: str) -> None:
    """A copy's tensors count their writes from zero: the counts of the original may come again."""
    for writes in range(4):
        assert agrees(net)
        if way == "save":
            file = io.BytesIO()
            torch.save(net, file)
            file.seek(0)
            other = torch.load(file, weights_only=False)
        else:
            other = copy.deepcopy(net)
        if way == "half":
            other = other.half().float()
        for _ in range(6):
            other.bn.mean.add_(1)
            assert agrees(other)
            assert agrees(net)
        for _ in range(writes):
            net.bn.variance.mul_(1.5)


@pytest.mark.filterwarnings("ignore")  # newer versions of torch call it old
def test_a_trace_reads_the_blobs(net: Any) -> None:
    assert agrees(net)
    with torch.no_grad():
        traced = torch.jit.trace(net, (X,))
        net.bn.mean.add_(3)
        torch.testing.assert_close(traced(X), net(X))


def test_a_net_made_in_inference_mode(tmp_path: Path) -> None:
    (tmp_path / "n.prototxt").write_text(NET)
    with torch.inference_mode():
        net = caffe_port.load(tmp_path / "n.prototxt")
        assert agrees(net)
        net.bn.scale_factor.add_(3)
        assert agrees(net)
    assert agrees(net)


def test_hooks_and_forwards_of_ones_own_are_called(net: Any) -> None:
    seen = []
    handles = [
        getattr(net, name).register_forward_hook(lambda m, i, o: seen.append(type(m).__name__))
        for name in ("bn", "scale", "drop")
    ]
    assert agrees(net)
    assert seen == ["BatchNorm", "Scale", "Dropout"] * 2
    for handle in handles:
        handle.remove()
    for name, forward in (("drop", lambda x: 2 * x), ("scale", lambda x: 3 * x), ("bn", lambda x: x - 1)):
        getattr(net, name).forward = forward
    torch.testing.assert_close(net(X), 6 * (X - 1))


def test_dropout_passes_in_eval_alone(net: Any) -> None:
    assert torch.equal(net(X), net(X))
    net.drop.always = True
    assert not torch.equal(net(X), net(X))
    net.drop.always = False
    net.drop.scale_train = False
    assert agrees(net)
    net.drop.scale_train = True
    net.drop.train()
    assert not torch.equal(net(X), net(X))


# -- which layer follows which ----------------------------------------------------------------------------------------

BOTH = frozenset((False, True))


def pairs(tmp_path: Path, text: str) -> list[tuple[str, str, frozenset[bool]]]:
    (tmp_path / "n.prototxt").write_text(text)
    return [tuple(pair) for pair in fusion.pairs(caffe_port.load(tmp_path / "n.prototxt").plans)]


def test_pairs_of_both_phases(tmp_path: Path) -> None:
    assert pairs(tmp_path, NET) == [("bn", "scale", BOTH), ("scale", "drop", BOTH)]


@pytest.mark.parametrize(
    ("more", "gone"),
    [
        (SIDE.format(name="p", bottom="y", phase="TRAIN"), ("bn", "scale")),  # read by another in one phase
        (SIDE.format(name="p", bottom="z", phase="TEST"), ("scale", "drop")),
        ('layer { name: "sum" type: "Eltwise" bottom: "y" bottom: "d" top: "s" }', ("bn", "scale")),
        ('layer { name: "sum" type: "Eltwise" bottom: "z" bottom: "z" top: "s" }', ("scale", "drop")),
    ],
)
def test_no_pair_where_another_reads_the_first(tmp_path: Path, more: str, gone: tuple[str, str]) -> None:
    found = {names[:2] for names in pairs(tmp_path, NET + more)}
    assert {("bn", "scale"), ("scale", "drop")} - found == {gone}


def test_pairs_of_one_phase(tmp_path: Path) -> None:
    """The Scale follows one layer in TEST, another in TRAIN."""
    first, _, scale, drop = NET.splitlines()
    of_train = (
        'layer { name: "p" type: "Power" bottom: "x" top: "y" include { phase: TRAIN } }\n'
        'layer { name: "t" type: "TanH" bottom: "y" top: "y" include { phase: TRAIN } }\n'
    )
    of_test = 'layer { name: "q" type: "Power" bottom: "x" top: "y" include { phase: TEST } }'
    found = pairs(tmp_path, f"{first}\n{of_train}\n{of_test}\n{scale}\n{drop}")
    assert found == [("scale", "drop", BOTH), ("p", "t", frozenset((True,)))]


def test_a_top_that_counts_as_a_loss_is_not_its_readers_alone(tmp_path: Path) -> None:
    assert pairs(tmp_path, NET.replace('top: "y"', 'top: "y" loss_weight: 1')) == [("scale", "drop", BOTH)]


def test_by_names_alone(net: Any) -> None:
    spec = net.plan.spec
    assert {name: layer.name for name, layer in fusion.scales_by_name(spec).items()} == {"bn": "scale"}
    readers = {name: layer.name for (name, _), layer in fusion.sole_readers(spec).items()}
    assert readers == {spec.layers[0].name: "bn", "bn": "scale", "scale": "drop"}


def test_modules_that_share_a_blob_stay_apart(tmp_path: Path) -> None:
    named = 'param { name: "m" } param { name: "v" } param { name: "f" }'
    other = f'layer {{ name: "bn2" type: "BatchNorm" bottom: "x" top: "o" {named} }}'
    (tmp_path / "n.prototxt").write_text(NET.replace('type: "BatchNorm"', f'type: "BatchNorm" {named}') + other)
    net = caffe_port.load(tmp_path / "n.prototxt")
    assert fusion.unshared(net) == {"scale", "drop"}
    assert net.scales == {}


def test_what_runs_as_one_compiles(net: Any) -> None:
    with torch.no_grad():
        made = torch.compile(net, backend="aot_eager", fullgraph=True)(X)
        torch.testing.assert_close(made, one_by_one(net))
