"""Caffe's parameters find their places in a port where sizes and the order of attributes do not tell them apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from caffe_port.verification.user_module.verify_module import verify_port

RECURRENT = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 6 dim: 3 dim: 5 } } }
layer { name: "cont" type: "Input" top: "cont" input_param { shape { dim: 6 dim: 3 } } }
""" + "".join(
    f'layer {{ name: "l{n}" type: "LSTM" bottom: "{bottom}" bottom: "cont" top: "l{n}" recurrent_param {{ '
    'num_output: 5 weight_filler { type: "xavier" } bias_filler { type: "uniform" min: -1 max: 1 } } }\n'
    for n, bottom in enumerate(("x", "l0"))
)


class StateFirst(nn.Module):
    """The state's weights come first, among the attributes and in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.u = nn.ModuleList(nn.Linear(5, 20, bias=False) for _ in range(2))
        self.w = nn.ModuleList(nn.Linear(5, 20) for _ in range(2))

    def forward(self, x: Tensor, cont: Tensor) -> Tensor:
        for u, w in zip(self.u, self.w, strict=True):
            h = c = x.new_zeros(3, 5)
            made = []
            for step, keep in zip(x, cont, strict=True):
                i, f, o, g = (u(h * keep[:, None]) + w(step)).chunk(4, 1)
                c = f.sigmoid() * c * keep[:, None] + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                made.append(h)
            x = torch.stack(made)
        return x


class SecondFirst(nn.Module):
    """The second layer is the first attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.first = nn.LSTM(5, 5, batch_first=True), nn.LSTM(5, 5, batch_first=True)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        made: Tensor = self.second(self.first(x.transpose(0, 1))[0])[0]
        return made.transpose(0, 1)


class Normalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in ("beta", "gamma"):
            self.register_parameter(name, nn.Parameter(torch.ones(4)))
        for name in ("var", "mean"):
            self.register_buffer(name, torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        factor = self.gamma / torch.sqrt(self.var + 1e-5)
        return x * factor[:, None, None] + (self.beta - self.mean * factor)[:, None, None]  # type: ignore[no-any-return]


class LastFirst(nn.Module):
    """Blocks of one size, the last of which is the first attribute, with batch norms that are written out."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": Normalized(), "conv": nn.Conv2d(4, 4, 3, 1, 1)}) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in reversed(self.blocks):
            x = block["norm"](block["conv"](x))  # type: ignore[index]
        return x


BLOCKS = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4 dim: 7 dim: 5 } } }\n' + "".join(
    f'layer {{ name: "c{n}" type: "Convolution" bottom: "{"x" if n == 0 else f"c{n - 1}"}" top: "c{n}" '
    'convolution_param { num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }\n'
    f'layer {{ name: "b{n}" type: "BatchNorm" bottom: "c{n}" top: "c{n}" }}\n'
    f'layer {{ name: "s{n}" type: "Scale" bottom: "c{n}" top: "c{n}" scale_param {{ bias_term: true filler '
    '{ type: "uniform" min: 0.5 max: 1.5 } bias_filler { type: "uniform" min: -1 max: 1 } } }\n'
    for n in range(3)
)

WHOLE = {"cont": np.concatenate([np.zeros((1, 3)), np.ones((5, 3))]).astype(np.float32)}
"""Each sequence begins with the first step, as PyTorch's own modules assume."""


@pytest.mark.parametrize(
    ("make", "text", "given"),
    [(StateFirst, RECURRENT, None), (SecondFirst, RECURRENT, WHOLE), (LastFirst, BLOCKS, None)],
)
def test_parameters_of_one_size(
    tmp_path: Path, make: Callable[[], nn.Module], text: str, given: dict[str, np.ndarray] | None
) -> None:
    (tmp_path / "net.prototxt").write_text(text)
    report = verify_port(make(), tmp_path / "net.prototxt", input=given)
    assert report.passed, [(row.layer, row.cause) for row in report.broken]


def test_what_is_not_sure_is_told(tmp_path: Path) -> None:
    class Unnamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Parameter(torch.ones(4, 1, 1)) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.a * (x - self.b) / (self.c + 1e-5).sqrt() + self.d  # type: ignore[no-any-return]

    (tmp_path / "net.prototxt").write_text(BLOCKS.split('layer { name: "c1"')[0])
    module = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), Unnamed())
    report = verify_port(module, tmp_path / "net.prototxt")
    assert not report.passed
    assert any("is taken from the order of their use" in n and "--state FILE" in n for n in report.notes)
