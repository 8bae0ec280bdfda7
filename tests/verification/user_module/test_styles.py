"""Right ports in ways of writing, calling and returning that say nothing about the numbers: all of them pass."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from caffe_port.errors import CaffePortError
from caffe_port.verification.comparison import Report
from caffe_port.verification.user_module.recorder import load_module
from caffe_port.verification.user_module.verify_module import verify_port

NET = """
layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 8 } } }
layer { name: "c" type: "Convolution" bottom: "data" top: "c"
  convolution_param { num_output: 4 kernel_size: 3 group: 1 weight_filler { type: "xavier" } } }
layer { name: "r" type: "ReLU" bottom: "c" top: "r" }
layer { name: "d" type: "Convolution" bottom: "r" top: "d"
  convolution_param { num_output: 6 kernel_size: 3 group: 2 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "d" top: "bn" }
layer { name: "f" type: "InnerProduct" bottom: "bn" top: "f"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "p" type: "Softmax" bottom: "f" top: "p" }
"""


class Port(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.d = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, groups=2)
        self.bn, self.f = nn.BatchNorm2d(6, affine=False), nn.Linear(120, 5)

    def rectified(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def features(self, x: Tensor) -> Tensor:
        normalized: Tensor = self.bn(self.d(self.rectified(self.c(x))))
        return normalized

    def forward(self, x: Tensor) -> Any:
        return self.f(self.features(x).flatten(1)).softmax(1)


@pytest.fixture
def prototxt(tmp_path: Path) -> Path:
    (tmp_path / "net.prototxt").write_text(NET)
    return tmp_path / "net.prototxt"


def told(report: Report) -> str:
    return "; ".join([f"{row.layer}: {row.cause}" for row in report.rows if row.status == "failed"] + [*report.notes])


@dataclasses.dataclass
class Result:
    prob: Tensor
    features: Tensor


class Slots:
    __slots__ = ("prob",)

    def __init__(self, prob: Tensor) -> None:
        self.prob = prob


def _generator(x: Tensor) -> Iterator[Tensor]:
    yield x


RETURNED: dict[str, Callable[[Tensor], Any]] = {
    "a dataclass": lambda x: Result(x, x),
    "an object with slots": Slots,
    "an object": lambda x: _Object(x),
    "a generator": _generator,
    "an array": lambda x: x.numpy(),
    "lists of floats": lambda x: x.tolist(),
    "nested containers": lambda x: {"heads": [{"prob": x}], "none": None, "scale": 2},
}


class _Object:
    def __init__(self, prob: Tensor) -> None:
        self.prob = prob


@pytest.mark.parametrize("what", RETURNED)
def test_what_a_port_may_return(prototxt: Path, what: str) -> None:
    class Returns(Port):
        def forward(self, x: Tensor) -> Any:
            return RETURNED[what](super().forward(x))

    report = verify_port(Returns(), prototxt)
    assert report.passed, told(report)


def test_a_wrong_array_is_compared_too(prototxt: Path) -> None:
    class Returns(Port):
        def forward(self, x: Tensor) -> Any:
            return 2 * super().forward(x).numpy()

    report = verify_port(Returns(), prototxt)
    assert [row.layer for row in report.broken] == ["p"]
    assert "is 2 times Caffe's" in report.broken[0].cause


class _Dict(Port):
    def forward(self, batch: Mapping[str, Tensor]) -> Any:
        return super().forward(batch["data"])


class _KeywordOnly(Port):
    def forward(self, *, data: Tensor) -> Any:
        return super().forward(data)


class _OtherKeyword(Port):
    def forward(self, *, image: Tensor, scale: float = 1) -> Any:
        return super().forward(image)


@pytest.mark.parametrize(
    ("kind", "note"),
    [(_Dict, "a dict of the net's inputs: data"), (_KeywordOnly, "by name: data"), (_OtherKeyword, "by name: image")],
)
def test_how_a_port_is_called(prototxt: Path, kind: type[nn.Module], note: str) -> None:
    report = verify_port(kind(), prototxt)
    assert report.passed, told(report)
    assert any(note in one for one in report.notes)


TWO = """
layer { name: "a" type: "Input" top: "rois" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "b" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "f" type: "InnerProduct" bottom: "data" top: "f"
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "g" type: "Concat" bottom: "f" bottom: "rois" top: "g" }
"""


def test_inputs_in_another_order_are_told_by_their_names(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(3, 4)

        def forward(self, data: Tensor, rois: Tensor) -> Tensor:
            return torch.cat([self.f(data), rois], 1)

    class Listed(Named):
        def forward(self, inputs: Any) -> Tensor:  # type: ignore[override]
            rois, data = inputs
            return super().forward(data, rois)

    (tmp_path / "net.prototxt").write_text(TWO)
    for kind in (Named, Listed):
        report = verify_port(kind(), tmp_path / "net.prototxt")
        assert report.passed, told(report)


def test_a_port_that_cannot_be_called_is_refused(prototxt: Path) -> None:
    class Needs(Port):
        def forward(self, x: Tensor, anchors: Tensor) -> Any:  # type: ignore[override]
            return super().forward(x)

    with pytest.raises(CaffePortError, match=r"missing 1 required positional argument: 'anchors'") as error:
        verify_port(Needs(), prototxt)
    assert "in this order: data (2, 3, 9, 8)" in str(error.value)


class _Inference(Port):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Any:
        y = self.c(x * 1)
        y[:, :2].relu_()  # through a view
        y[:, 2:].relu_()
        return self.f(self.bn(self.d(y)).flatten(1)).softmax(1)


class _Views(_Inference):
    """A part is left out: what the view changed must be seen."""

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Any:
        y = self.c(x * 1)
        y[:, :2].relu_()
        return self.f(self.bn(self.d(y)).flatten(1)).softmax(1)


class _Im2col(Port):
    def features(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        columns = F.unfold(x, 3)
        x = (self.c.weight.view(4, -1) @ columns + self.c.bias[:, None]).view(n, 4, h - 2, w - 2)  # type: ignore[index]
        weights, biases = self.d.weight.chunk(2), self.d.bias.chunk(2)  # type: ignore[union-attr]
        parts = [F.conv2d(a, v, b) for a, v, b in zip(F.relu(x).chunk(2, 1), weights, biases, strict=True)]
        return self.bn(torch.cat(parts, 1))  # type: ignore[no-any-return]


class _Aten(Port):
    def features(self, x: Tensor) -> Tensor:
        x = self.d(F.relu(self.c(x)))
        bn = self.bn
        return torch.batch_norm(x, None, None, bn.running_mean, bn.running_var, False, 0.1, bn.eps, False)


class _WeightNorm(Port):
    def __init__(self) -> None:
        super().__init__()
        weight_norm(self.c)
        weight_norm(self.f)


class _OldWeightNorm(Port):
    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nn.utils.weight_norm(self.d)


def _scripted(function: Callable[..., Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(function)


def _positive(x: Tensor) -> Tensor:
    return torch.clamp(x, min=0)


def _leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.25 * x)


class _ScriptedFunction(Port):
    def __init__(self, function: Callable[[Tensor], Tensor] = _positive) -> None:
        super().__init__()
        self.function = [_scripted(function)]

    def rectified(self, x: Tensor) -> Tensor:
        return self.function[0](x)  # type: ignore[no-any-return]


class _ScriptedPart(Port):
    def __init__(self) -> None:
        super().__init__()
        self.c = _scripted(self.c)


class _NumPy(Port):
    def rectified(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy().clip(0, None))


def _exported() -> nn.Module:
    return torch.export.export(Port().eval(), (torch.zeros(2, 3, 9, 8),)).module()  # type: ignore[no-any-return]


STYLES: dict[str, Callable[[], nn.Module]] = {
    "inference_mode": _Inference,
    "im2col, parts of one weight": _Im2col,
    "torch.batch_norm": _Aten,
    "weight_norm": _WeightNorm,
    "weight_norm, the old one": _OldWeightNorm,
    "a scripted function": _ScriptedFunction,
    "a scripted part": _ScriptedPart,
    "NumPy in the middle": _NumPy,
    "torch.export": _exported,
    "torch.compile": lambda: torch.compile(Port(), backend="eager"),  # type: ignore[return-value]
    "float64": lambda: Port().double(),
}


@pytest.mark.parametrize("style", STYLES)
def test_styles(prototxt: Path, style: str) -> None:
    report = verify_port(STYLES[style](), prototxt)
    assert report.passed, told(report)
    assert {"c", "r", "d"} <= {row.layer for row in report.rows if row.status == "passed"}


def test_what_is_computed_out_of_sight_is_compared(prototxt: Path) -> None:
    report = verify_port(_ScriptedFunction(_leaky), prototxt)
    assert [row.layer for row in report.broken] == ["r"]
    assert "its negative slope is 0.25" in report.broken[0].cause
    report = verify_port(_Views(), prototxt)
    assert report.broken[0].layer == "r"


def test_a_scripted_module_is_refused(prototxt: Path, tmp_path: Path) -> None:
    with pytest.raises(CaffePortError, match="TorchScript") as error:
        verify_port(_scripted(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())), prototxt)
    assert "name the class that it was made from" in str(error.value)
    text = "import torch, warnings\nfrom torch import nn\nwarnings.simplefilter('ignore')\n"
    text += "def made(): return torch.jit.script(nn.Conv2d(3, 4, 3))\n"
    (tmp_path / "mine.py").write_text(text)
    assert type(load_module(f"{tmp_path}/mine.py:made")) is nn.Conv2d  # as with PYTORCH_JIT=0
    assert isinstance(_scripted(nn.Conv2d(3, 4, 3)), torch.jit.ScriptModule)


DEEP = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 7 dim: 9 } } }\n' + "".join(
    f'layer {{ name: "c{n}" type: "Convolution" bottom: "{"x" if n == 0 else f"c{n - 1}"}" top: "c{n}" '
    'convolution_param { num_output: 8 kernel_size: 3 pad: 1 weight_filler { type: "gaussian" std: 0.5 } } }\n'
    f'layer {{ name: "t{n}" type: "TanH" bottom: "c{n}" top: "c{n}" }}\n'
    for n in range(24)
)


class _Deep(nn.Module):
    def __init__(self, without: int = -1) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8 if n else 3, 8, 3, padding=1) for n in range(24))
        self.without = without

    def forward(self, x: Tensor) -> Tensor:
        for n, conv in enumerate(self.convs):
            x = conv(x) if n == self.without else torch.tanh(conv(x))
        return x


def test_rounding_that_grows_is_no_failure(tmp_path: Path) -> None:
    """Each layer enlarges a difference: after 24 of them, two right float32 runs have little in common."""
    (tmp_path / "net.prototxt").write_text(DEEP)
    report = verify_port(_Deep(), tmp_path / "net.prototxt")
    assert report.passed, told(report)
    assert report.rounded
    report = verify_port(_Deep(22), tmp_path / "net.prototxt")
    assert [row.layer for row in report.broken] == ["t22"]
    assert not report.passed


def test_zeros_prove_nothing(tmp_path: Path) -> None:
    text = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 7 dim: 9 } } }\n'
    text += 'layer { name: "p" type: "Power" bottom: "x" top: "p" power_param { scale: 0 } }\n'
    text += (
        'layer { name: "c" type: "Convolution" bottom: "p" top: "c" convolution_param { num_output: 4 kernel_size: 3 '
    )
    text += 'bias_term: false weight_filler { type: "xavier" } } }\n'
    (tmp_path / "net.prototxt").write_text(text)

    class Zero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Conv2d(3, 4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(x * 0)  # type: ignore[no-any-return]

    report = verify_port(Zero(), tmp_path / "net.prototxt")
    assert report.vacuous
    assert not report.passed


def test_height_and_width_of_a_view_are_not_exchanged_silently(tmp_path: Path) -> None:
    text = 'layer { name: "in" type: "Input" top: "z" input_param { shape { dim: 3 dim: 10 } } }\n'
    text += 'layer { name: "f" type: "InnerProduct" bottom: "z" top: "f" inner_product_param { num_output: 24 '
    text += 'weight_filler { type: "xavier" } } }\n'
    text += 'layer { name: "s" type: "Reshape" bottom: "f" top: "s" reshape_param { shape { dim: 0 dim: 2 dim: 3 '
    text += 'dim: 4 } } }\nlayer { name: "u" type: "Deconvolution" bottom: "s" top: "u" convolution_param { '
    text += 'num_output: 3 kernel_size: 4 stride: 2 pad: 1 weight_filler { type: "xavier" } } }\n'
    (tmp_path / "net.prototxt").write_text(text)

    class Generator(nn.Module):
        def __init__(self, *size: int) -> None:
            super().__init__()
            self.f, self.u, self.size = nn.Linear(10, 24), nn.ConvTranspose2d(2, 3, 4, 2, 1), size

        def forward(self, z: Tensor) -> Tensor:
            return self.u(self.f(z).view(-1, *self.size))  # type: ignore[no-any-return]

    make = functools.partial(verify_port, prototxt=tmp_path / "net.prototxt")
    assert make(Generator(2, 3, 4)).passed
    report = make(Generator(2, 4, 3))
    assert [row.layer for row in report.broken] == ["u"]
    assert "has the shape (3, 2, 4, 3), Caffe's (3, 2, 3, 4)" in report.broken[0].cause


def test_a_port_that_prints_or_exits(prototxt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output is for the report, which may be JSON; a script that parses arguments exits when it is read."""

    class Prints(Port):
        def forward(self, x: Tensor) -> Any:
            print("shape", x.shape)
            return super().forward(x)

    class Exits(Port):
        def forward(self, x: Tensor) -> Any:
            raise SystemExit(3)

    assert verify_port(Prints(), prototxt).passed
    assert capsys.readouterr().out == ""
    with pytest.raises(CaffePortError, match=r"Exits cannot run on inputs of shape .*: SystemExit: 3"):
        verify_port(Exits(), prototxt)
    (tmp_path / "script.py").write_text("print('hello')\nraise SystemExit(2)\n")
    with pytest.raises(CaffePortError, match="SystemExit: 2"):
        load_module(f"{tmp_path}/script.py:Net")
    assert capsys.readouterr().out == ""
