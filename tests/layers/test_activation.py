import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from caffe_port.errors import SpecError
from caffe_port.formats import prototxt
from caffe_port.layers import Layer, lookup

SHAPE = (2, 3, 5, 4)


def layer(type_: str, param: str = "", *shapes: tuple[int, ...]) -> Layer:
    message = prototxt.parse(f'name: "l" type: "{type_}" bottom: "x" top: "y" {param}', "LayerParameter")
    found = lookup(type_)
    assert found is not None
    return found.build(message, shapes or [SHAPE]).eval()


def numbers(shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.linspace(-3, 3, math.prod(shape)).reshape(shape)


def run_source(source: str, **values: object) -> object:
    return eval(source, {"torch": torch, "nn": nn, "F": F, "math": math, **values})


ALL = [
    ("AbsVal", ""),
    ("BNLL", ""),
    ("Clip", "clip_param { min: -0.5 max: 1.25 }"),
    ("Dropout", "dropout_param { dropout_ratio: 0.3 }"),
    ("Dropout", "dropout_param { dropout_ratio: 0.25 scale_train: false }"),
    ("ELU", ""),
    ("ELU", "elu_param { alpha: 0.3 }"),
    ("Exp", ""),
    ("Exp", "exp_param { base: 3 scale: -0.5 shift: 0.1 }"),
    ("Log", "log_param { shift: 4 }"),
    ("Log", "log_param { base: 2 scale: 0.5 shift: 7 }"),
    ("PReLU", ""),
    ("PReLU", "prelu_param { channel_shared: true }"),
    ("Power", ""),
    ("Power", "power_param { shift: -1.5 }"),
    ("Power", "power_param { power: 3 scale: 0.5 }"),
    ("Power", "power_param { power: 0.5 scale: -0.1 shift: 4 }"),
    ("Power", "power_param { power: 0 scale: 2 shift: 1 }"),
    ("ReLU", ""),
    ("ReLU", "relu_param { negative_slope: 0.1 }"),
    ("ReLU6", ""),
    ("ReLU6", "relu6_param { negative_slope: 0.1 }"),
    ("Sigmoid", ""),
    ("Softmax", ""),
    ("Softmax", "softmax_param { axis: -1 }"),
    ("Swish", ""),
    ("Swish", "swish_param { beta: 1.5 }"),
    ("TanH", ""),
    ("Threshold", "threshold_param { threshold: 0.4 }"),
]


@pytest.mark.parametrize(("type_", "param"), ALL)
def test_source_computes_the_same_bits(type_: str, param: str) -> None:
    module, x = layer(type_, param), numbers()
    assert (module.torch_source() or module.call_source("x") or type_ in {"Clip", "Dropout", "ReLU6"}) is not None
    if source := module.torch_source():
        other = run_source(source)
        assert isinstance(other, nn.Module)
        other.load_state_dict(module.torch_state())
        assert torch.equal(other.eval()(x), module(x))
    if source := module.call_source("x"):
        assert torch.equal(run_source(source, x=x), module(x))  # type: ignore[arg-type]


@pytest.mark.parametrize(("type_", "param"), ALL)
def test_float64_export_and_meta(type_: str, param: str) -> None:
    module, x = layer(type_, param), numbers()
    exported = torch.export.export(module, (x,)).module()(x)
    torch.testing.assert_close(exported, module(x))
    assert module.double()(x.double()).dtype == torch.float64
    assert module.to("meta")(x.double().to("meta")).shape == x.shape


@pytest.mark.parametrize(("type_", "param"), [(t, p) for t, p in ALL if t != "Dropout"])
def test_one_bottom(type_: str, param: str) -> None:
    with pytest.raises(SpecError, match="2 bottoms; the layer takes 1"):
        layer(type_, param, SHAPE, SHAPE)


@pytest.mark.parametrize(
    ("type_", "param", "x", "y"),
    [
        ("BNLL", "", [-2.0, 0.0, 100.0], [math.log1p(math.exp(-2)), math.log(2), 100.0]),
        ("Exp", "exp_param { base: 2 scale: 3 shift: 1 }", [0.0, 1.0], [2.0, 16.0]),
        ("Log", "log_param { base: 10 scale: 2 shift: 80 }", [10.0, 460.0], [2.0, 3.0]),
        ("Power", "power_param { power: 2 scale: 3 shift: -1 }", [0.0, 2.0], [1.0, 25.0]),
        ("Power", "power_param { power: 0 }", [0.0, -2.0], [1.0, 1.0]),
        ("ReLU6", "relu6_param { negative_slope: 0.5 }", [-2.0, 3.0, 7.0], [-1.0, 3.0, 6.0]),
        ("Swish", "swish_param { beta: 2 }", [0.0, 1.0], [0.0, 1 / (1 + math.exp(-2))]),
        ("Threshold", "threshold_param { threshold: 1 }", [0.5, 1.0, 1.5], [0.0, 0.0, 1.0]),
        ("Clip", "clip_param { min: -1 max: 2 }", [-5.0, 0.5, 5.0], [-1.0, 0.5, 2.0]),
    ],
)
def test_by_hand(type_: str, param: str, x: list[float], y: list[float]) -> None:
    torch.testing.assert_close(layer(type_, param)(torch.tensor(x)), torch.tensor(y))


def test_gradient_where_the_slope_changes() -> None:
    x = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
    for param, at_zero in [("", 0.0), ("relu_param { negative_slope: 0.1 }", 0.1)]:
        (gradient,) = torch.autograd.grad(layer("ReLU", param)(x).sum(), x)
        assert gradient[1] == pytest.approx(at_zero)
    (gradient,) = torch.autograd.grad(layer("Clip", "clip_param { min: -1 max: 1 }")(x).sum(), x)
    assert gradient.tolist() == [1, 1, 1]
    (gradient,) = torch.autograd.grad(layer("Power", "power_param { power: 0 }")(x).sum(), x)
    assert gradient.tolist() == [0, 0, 0]


def test_dropout_in_training() -> None:
    x = torch.ones(1000)
    plain = layer("Dropout", "dropout_param { dropout_ratio: 0.25 }").train()(x)
    assert plain.unique().tolist() == pytest.approx([0, 4 / 3])
    unscaled = layer("Dropout", "dropout_param { dropout_ratio: 0.25 scale_train: false }")
    assert unscaled.train()(x).unique().tolist() == [0, 1]
    assert unscaled.eval()(x).unique().tolist() == [0.75]
    sampled = layer("Dropout", "dropout_param { dropout_ratio: 0.25 sample_weights_test: true }")
    assert sampled.eval()(x).unique().tolist() == pytest.approx([0, 4 / 3])
    assert sampled.torch_source() is None


def test_prelu_blob_and_filler() -> None:
    module = layer("PReLU", "", (2, 3))
    assert tuple(module.get_blob("weight").shape) == (3,)
    shared = layer("PReLU", "prelu_param { channel_shared: true }")
    assert tuple(shared.get_blob("weight").shape) == ()
    shared.set_blob("weight", torch.tensor(0.5))
    assert shared(torch.tensor([[-2.0, 2.0]])).tolist() == [[-1.0, 2.0]]
    unset = prototxt.parse("", "PReLUParameter")
    assert type(module).fillers(unset)["weight"].value == 0.25
    chosen = prototxt.parse('filler { type: "gaussian" std: 0.01 }', "PReLUParameter")
    assert type(module).fillers(chosen)["weight"].type == "gaussian"


def test_floats_of_binary_files_are_shown_short() -> None:
    message = prototxt.parse('type: "ReLU" relu_param { negative_slope: 0.10000000149011612 }', "LayerParameter")
    found = lookup("ReLU")
    assert found is not None
    assert found.build(message, [SHAPE]).torch_source() == "nn.LeakyReLU(0.1)"


@pytest.mark.parametrize(
    ("param", "source"),
    [
        ("", "x"),
        ("scale: 2", "2 * x"),
        ("scale: 0.5 shift: -3", "0.5 * x - 3"),
        ("power: 2", "x ** 2"),
        ("power: 0.5 scale: 2 shift: 1", "(2 * x + 1) ** 0.5"),
    ],
)
def test_power_source(param: str, source: str) -> None:
    assert layer("Power", f"power_param {{ {param} }}").call_source("x") == source


@pytest.mark.parametrize(
    ("type_", "param", "message"),
    [
        ("Clip", "clip_param { min: 1 max: 0 }", "min 1.0 is greater than max 0.0"),
        ("Dropout", "dropout_param { dropout_ratio: 1 }", r"dropout_ratio 1.0 is not in \[0, 1\)"),
        ("Exp", "exp_param { base: -2 }", "base -2.0 is not positive"),
        ("Log", "log_param { base: 0 }", "base 0.0 is not positive"),
        ("Log", "log_param { base: 1 }", "base must not be 1"),
        ("Softmax", "softmax_param { axis: 4 }", "axis 4 does not exist in a bottom of 4 axes"),
    ],
)
def test_senseless_parameters(type_: str, param: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        layer(type_, param)


def test_prelu_needs_channels() -> None:
    with pytest.raises(SpecError, match=r"2 to 5 axes, got \(7,\)"):
        layer("PReLU", "", (7,))
