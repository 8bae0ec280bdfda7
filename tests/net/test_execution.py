"""One pass through a net: what lies in its slots, by whomever it is driven."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import caffe_port
from caffe_port.net.execution import Execution

NET = """name: "n" input: "x" input_shape { dim: 2 dim: 6 }
layer { name: "cut" type: "Slice" bottom: "x" top: "a" top: "b" }
layer { name: "neg" type: "Power" bottom: "a" top: "n" power_param { scale: -1 } }
layer { name: "quiet" type: "Silence" bottom: "b" }
layer { name: "sum" type: "Eltwise" bottom: "n" bottom: "n" top: "s" }
"""
X = torch.arange(12.0).reshape(2, 6)


@pytest.fixture
def net(tmp_path: Path) -> Any:
    (tmp_path / "n.prototxt").write_text(NET)
    return caffe_port.load(tmp_path / "n.prototxt")


def there(execution: Execution) -> list[bool]:
    return [value is not None for value in execution.values]


def test_a_value_goes_with_its_last_reader(net: Any) -> None:
    execution = Execution(net._modules, net.plan, (X,))
    seen = [there(execution)]
    for step in net.plan.fused:
        execution.run((step,))
        seen.append(there(execution))
    x, a, b, n, s = ([row[slot] for row in seen] for slot in range(5))
    assert x == [True, False, False, False, False]
    assert a == [False, True, False, False, False]
    assert b == [False, True, True, False, False]
    assert n == [False, False, True, True, False]
    assert s == [False, False, False, False, True]
    assert torch.equal(execution.values[4], -2 * X[:, :3])


def test_driven_step_by_step_and_given_other_tops(net: Any) -> None:
    execution = Execution(net._modules, net.plan, (X,))
    for step in net.plan.steps:
        tops = execution.tops(step)
        assert [top.shape for top in tops] == [net.plan.shapes[step.layer.name, k] for k in range(len(step.tops))]
        execution.put(step, tuple(torch.ones_like(top) for top in tops))
    assert torch.equal(execution.values[4], torch.ones(2, 3))


def test_missing_tops_are_none_and_too_many_are_an_error(net: Any) -> None:
    execution = Execution(net._modules, net.plan, (X,))
    cut = net.plan.steps[0]
    with pytest.raises(ValueError, match="zip"):
        execution.put(cut, (X, X, X))
    execution.put(cut, (None, None))
    assert execution.bottoms(net.plan.steps[1]) == (None,)
