"""What a net and the model written from it compute alike is computed once, and only that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caffe_port.api import load
from caffe_port.definition.definition import Definition
from caffe_port.emit import self_check
from caffe_port.emit.beside import Beside
from caffe_port.emit.model_source import model
from caffe_port.emit.self_check import run_once
from caffe_port.errors import CaffePortError
from caffe_port.formats import prototxt
from caffe_port.net.net import Net

TEXT = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 16 dim: 20 dim: 19 } } }
layer { name: "a" type: "Convolution" bottom: "x" top: "a" convolution_param { num_output: 64 kernel_size: 3 stride: 1
  weight_filler { type: "msra" } bias_filler { type: "uniform" } } }
layer { name: "r" type: "ReLU" bottom: "a" top: "a" }
layer { name: "d" type: "Dropout" bottom: "a" top: "a" }
layer { name: "b" type: "Convolution" bottom: "a" top: "b" convolution_param { num_output: 32 kernel_size: 3 pad: 1
  weight_filler { type: "msra" } } }
layer { name: "c" type: "Convolution" bottom: "a" top: "c" convolution_param { num_output: 32 kernel_size: 3 pad: 1
  weight_filler { type: "msra" } } }
layer { name: "s" type: "Eltwise" bottom: "b" bottom: "c" top: "s" }
layer { name: "f" type: "InnerProduct" bottom: "s" top: "f" inner_product_param { num_output: 300
  weight_filler { type: "msra" } bias_filler { type: "uniform" } } }
"""
X = torch.randn(2, 16, 20, 19, generator=torch.Generator().manual_seed(0))


class Written(nn.Module):
    """The net by hand, on its parameters."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(16, 64, 3), nn.Conv2d(64, 32, 3, padding=1), nn.Conv2d(64, 32, 3, padding=1)
        self.f = nn.Linear(32 * 18 * 17, 300)
        for name in "abcf":
            for blob in ("weight", "bias"):
                setattr(getattr(self, name), blob, getattr(getattr(net, name), blob))

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.a(x), inplace=True), training=self.training, inplace=True)
        return self.f((self.b(x) + self.c(x)).flatten(1))  # type: ignore[no-any-return]


@pytest.fixture
def net() -> Net:
    return load(Definition.parse(prototxt.parse(TEXT, "NetParameter")))


def both(net: Net, module: nn.Module) -> tuple[Tensor, Tensor, int]:
    """Their outputs, and how many products were computed once for both."""
    beside = Beside(net, (X,), 3)
    with beside:
        got = run_once(module, (X,), 3)
    wanted = beside.outputs()
    assert torch.equal(wanted[""], run_once(net, (X,), 3)[""]), "what the Net alone gives"
    assert torch.equal(got[""], run_once(module, (X,), 3)[""]), "what the model alone gives"
    return wanted[""], got[""], beside.found


@pytest.mark.parametrize("training", [False, True])
def test_every_product_is_computed_once(net: Net, training: bool) -> None:
    """With random numbers in train(), which each draws as if it were alone."""
    wanted, got, found = both(net.train(training), Written(net).train(training))
    assert found == 4
    assert torch.equal(wanted, got)


def bumped(parameter: Tensor) -> nn.Parameter:
    other = parameter.detach().clone()
    other.view(-1)[-1] += 1
    return nn.Parameter(other)


FAULTS: dict[str, Callable[[Any], Any]] = {
    "a weight": lambda m: setattr(m.b, "weight", bumped(m.b.weight)),
    "a bias": lambda m: setattr(m.c, "bias", bumped(m.c.bias)),
    "another weight of the net": lambda m: setattr(m.b, "weight", m.c.weight),
    "no bias": lambda m: setattr(m.f, "bias", None),
    "dilation": lambda m: (setattr(m.b, "dilation", (2, 2)), setattr(m.b, "padding", (2, 2))),
    "padding": lambda m: setattr(m.b, "padding_mode", "circular"),
    "an input": lambda m: m.c.register_forward_pre_hook(lambda _, args: args[0] + 1),
    "an input in place": lambda m: m.c.register_forward_pre_hook(lambda _, args: args[0].add_(1)),
    "a result": lambda m: m.c.register_forward_hook(lambda _, args, made: made + 1),
    "a result of the second image": lambda m: m.c.register_forward_hook(lambda _, args, made: made.flip(0)),
    "the order of the images": lambda m: m.f.register_forward_pre_hook(lambda _, args: args[0].flip(0)),
    "the batch": lambda m: m.b.register_forward_hook(lambda _, args, made: made.mean(0, keepdim=True) + 0 * made),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_differs_is_computed(net: Net, fault: str) -> None:
    module = Written(net).eval()
    FAULTS[fault](module)
    wanted, got, found = both(net, module)
    assert not torch.equal(wanted, got)
    assert found < 4


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_of_a_batch_one_half_is_computed(net: Net, fault: str | None) -> None:
    module = Written(net).eval()
    if fault is not None:
        FAULTS[fault](module)
    beside = Beside(net, (X,), 0, half=True)
    with beside:
        got = run_once(module, (X,), 0)[""]
    wanted = beside.outputs()[""]
    alone = run_once(net, (X,), 0)[""]
    assert torch.allclose(wanted[0], alone[0], rtol=0, atol=1e-3)
    assert not torch.allclose(wanted[1], alone[1], rtol=0, atol=1e-1), "the second image was computed"
    if fault is None:
        assert (beside.found, beside.missed) == (4, 0)
        assert torch.equal(wanted, got)
    else:
        assert beside.missed or not torch.equal(wanted, got)


WRONG = {
    "padding=1": "padding=1, padding_mode='circular'",
    "Conv2d(16, 64, 3)": "Conv2d(16, 64, 3, dilation=2)",
    "ReLU(inplace=True)": "LeakyReLU(1e-6)",
    "b + x": "b - x",
    "b = self.b(x)": "b = self.c(x)",
    # with one image, these compute what the net does
    "x.flatten(1)": "x.reshape(1, 9792)",
    "return self.f(x.flatten(1))": "return self.f(x.flatten(1).mean(0, keepdim=True).expand(x.shape[0], -1))",
    "return ": "x = x.transpose(0, 1).reshape(x.shape)\n        return ",
}


@pytest.mark.parametrize("right", ["", *WRONG])
def test_the_check_finds_what_is_wrong(right: str, tmp_path: Path) -> None:
    """In a model whose products are large, of a net with a batch of one."""
    net = load(Definition.parse(prototxt.parse(TEXT.replace("dim: 2 dim: 16", "dim: 1 dim: 16"), "NetParameter")))
    made = model(net)
    self_check.write_safetensors(tmp_path / "w", made.state)
    if not right:
        assert "bit-equal" in self_check.self_check(net, made.source, made.class_name, tmp_path / "w")
        return
    assert made.source.count(right) in (1, 2)
    source = made.source.replace(right, WRONG[right])
    with pytest.raises(CaffePortError, match=r"model\.py: (does not run|the output)"):
        self_check.self_check(net, source, made.class_name, tmp_path / "w")


def test_a_model_that_asks_in_other_words(net: Net, tmp_path: Path) -> None:
    """What cannot be seen to be the same is computed in full, and compared."""
    made = model(net)
    self_check.write_safetensors(tmp_path / "w", made.state)
    source = made.source.replace(
        "b = self.b(x)", "b = x.new_tensor(0) + torch.conv2d(x, self.b.weight, self.b.bias, 1, 1)"
    )
    source = source.replace("from torch import", "import torch\nfrom torch import")
    assert "bit-equal" in self_check.self_check(net, source, made.class_name, tmp_path / "w")


def test_the_order_may_differ(net: Net) -> None:
    module = Written(net).eval()
    module.b, module.c = module.c, module.b
    wanted, got, _ = both(net, module)
    assert torch.equal(wanted, got)


def test_what_the_net_raises(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise IndexError("the Net's own")

    monkeypatch.setattr(net.c, "forward", fail)
    beside = Beside(net, (X,), 0)
    with pytest.raises(IndexError, match="the Net's own"), beside:
        run_once(Written(net).eval(), (X,), 0)
    with pytest.raises(IndexError, match="the Net's own"):
        beside.outputs()
    beside = Beside(net, (X,), 0)
    with pytest.raises(IndexError, match="the Net's own"):
        beside.outputs()
