"""Ports of LSTM and RNN that get Caffe's weights: written out step by step, or PyTorch's own modules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caffe_port import api
from caffe_port.formats import caffemodel
from caffe_port.verification.comparison import Report
from caffe_port.verification.user_module.verify_module import verify_port

NET = """
layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 6 dim: 3 dim: 5 }} }} }}
layer {{ name: "cont" type: "Input" top: "cont" input_param {{ shape {{ dim: 6 dim: 3 }} }} }}
layer {{ name: "states" type: "{type}" bottom: "x" bottom: "cont" top: "states"
        recurrent_param {{ num_output: 4 weight_filler {{ type: "xavier" }}
                          bias_filler {{ type: "uniform" min: -0.5 max: 0.5 }} }} }}
layer {{ name: "fc" type: "InnerProduct" bottom: "states" top: "fc"
        inner_product_param {{ num_output: 7 axis: 2 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "prob" type: "Softmax" bottom: "fc" top: "prob" softmax_param {{ axis: 2 }} }}
"""


class Port(nn.Module):
    """What the ports share: ``step(x, h, c)`` gives h, c and what the layer gives."""

    def __init__(self, resets: bool = True) -> None:
        super().__init__()
        self.resets = resets
        self.fc = nn.Linear(4, 7)

    def forward(self, x: Tensor, cont: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[1], 4)
        made = []
        for now, keep in zip(x, cont[:, :, None], strict=True):
            keep = keep if self.resets else torch.ones_like(keep)
            h, c, top = self.step(now, h * keep, c * keep)
            made.append(top)
        return F.softmax(self.fc(torch.stack(made)), 2)


class Gates(Port):
    def __init__(self, resets: bool = True) -> None:
        super().__init__(resets)
        self.of_x, self.of_h = nn.Linear(5, 16), nn.Linear(4, 16, bias=False)

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        i, f, o, g = (self.of_x(x) + self.of_h(h)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return h, c, h


class Cell(Port):
    def __init__(self, resets: bool = True) -> None:
        super().__init__(resets)
        self.cell = nn.LSTMCell(5, 4)

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, c = self.cell(x, (h, c))
        return h, c, h


class Module(Port):
    def __init__(self, resets: bool = True) -> None:
        super().__init__(resets)
        self.lstm = nn.LSTM(5, 4)

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, (h, c) = self.lstm(x[None], (h[None], c[None]))
        return h[0], c[0], h[0]


class Plain(Port):
    def __init__(self, resets: bool = True, last: str = "tanh") -> None:
        super().__init__(resets)
        self.last = last
        self.of_x, self.of_h, self.out = nn.Linear(5, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 4)

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = torch.tanh(self.of_x(x) + self.of_h(h))
        return h, c, getattr(torch, self.last)(self.out(h))


class PlainCell(Port):
    def __init__(self, resets: bool = True) -> None:
        super().__init__(resets)
        self.cell, self.out = nn.RNNCell(5, 4), nn.Linear(4, 4)

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.cell(x, h)
        return h, c, torch.tanh(self.out(h))


def verified(module: nn.Module, tmp_path) -> Report:
    text = NET.format(type="RNN" if isinstance(module, (Plain, PlainCell)) else "LSTM")
    (tmp_path / "net.prototxt").write_text(text)
    ported = api.port(tmp_path / "net.prototxt")
    caffemodel.write(tmp_path / "net.caffemodel", ported.definition.net, ported.net.blobs())
    return verify_port(module.eval(), tmp_path / "net.prototxt", tmp_path / "net.caffemodel", reference="numpy")


@pytest.mark.parametrize("kind", [Gates, Cell, Module, Plain, PlainCell])
def test_a_right_port_agrees(kind: type[Port], tmp_path) -> None:
    assert verified(kind(), tmp_path).passed


@pytest.mark.parametrize("kind", [Gates, Cell, Module, Plain, PlainCell])
def test_a_port_without_resets_is_told_so(kind: type[Port], tmp_path) -> None:
    report = verified(kind(resets=False), tmp_path)
    assert [row.layer for row in report.broken] == ["states"]
    assert "ignores the continuation marks" in report.rows[0].cause


def test_a_wrong_step_is_compared_as_the_whole_layer(tmp_path) -> None:
    report = verified(Plain(last="sigmoid"), tmp_path)
    assert [row.layer for row in report.broken] == ["states"]
    assert report.rows[0].note == "port: stack"
