"""A port is compared by value: the same computed in another way is right, and what is wrong is found and named.

The nets and their ports are those of ``benchmarks/ports.py``, which tries all of them; here is one of every kind.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn
from torch.nn import functional as F

from caffe_port.verification.comparison import Report
from caffe_port.verification.user_module.recorder import Recorder, run_recorded
from caffe_port.verification.user_module.verify_module import verify_port


def _benchmark(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


NETS = _benchmark("port_nets")
CASES = _benchmark("port_cases").CASES
PORTS = _benchmark("ports")

RIGHT = {
    "res": ["norm by hand", "softmax by hand, own state"],
    "vgg": ["two convolutions", "fc as convolution", "weight (in, out)", "einsum", "leaky as max", "lrn by pool"],
    "inception": ["order 4321", "order 2413, own state", "max by hand", "prob first"],
    "ssd": ["norm by hand"],
    "fcn": ["prelu by hand", "pool first", "order of sum"],
    "rnn": ["right"],
    "mobile": ["power by parts"],
}
WRONG = {
    "res": [
        "no shortcut", "255", "imagenet", "nhwc", "in place", "bfloat16", "floor", "rounded", "argmax", "reversed",
        "weights: standard deviation", "weights: exchanged in a chain", "weights: half", "weights: one filter",
    ],
    "vgg": ["dilation", "lrn after pool", "lrn by pool, k", "hwc", "dropout on", "weights: flatten in the weights"],
    "inception": [
        "no relu, order 4321", "rotated, order 2413", "stride swapped", "gate wrong side", "gate tanh", "box exp",
        "weights: exchanged branches",
    ],
    "ssd": ["same padding", "no norm", "permute order", "no softmax", "variance"],
    "fcn": ["skip before pool", "skip in place", "crop offset", "coefficient", "last offset", "softmax"],
    "rnn": ["no reset", "weights: gates in the weights"],
    "mobile": ["in place sum", "power order", "weights: exchanged outputs"],
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("nets")
    found = {}
    for name, text in NETS.NETS.items():
        found[name] = folder / f"{name}.prototxt", folder / f"{name}.caffemodel"
        PORTS._draw(text, *found[name])
    return found


def _case(net: str, name: str) -> Any:
    (case,) = [case for case in CASES if (case.net, case.name) == (net, name)]
    return case


@pytest.mark.parametrize(("net", "name"), [(net, name) for net, names in RIGHT.items() for name in names])
def test_the_same_in_another_style_passes(files: dict[str, tuple[Path, Path]], net: str, name: str) -> None:
    case = _case(net, name)
    assert not case.layers
    report = PORTS._verified(case, *files[net])
    assert report.passed, [(row.layer, row.cause) for row in report.rows if row.status == "failed"]


@pytest.mark.parametrize(("net", "name"), [(net, name) for net, names in WRONG.items() for name in names])
def test_a_slip_is_located_and_named(files: dict[str, tuple[Path, Path]], net: str, name: str) -> None:
    case = _case(net, name)
    entry = {"layers": case.layers, "cause": case.cause, "equal": False}
    found = PORTS.Outcome(entry, PORTS._verified(case, *files[net]), "", 0.0)
    assert not found.passed
    assert found.located, found.broken
    assert found.named, found.broken
    assert not found.innocent, found.broken


def test_the_ports_that_were_collected(shared: Path) -> None:
    """Those of them that run in a moment; ``make ports`` tries all."""
    import json

    folder = shared / "ports"
    if not folder.is_dir():
        pytest.skip("no collected ports in the shared folder")
    entries = [e for e in json.loads((folder / "manifest.json").read_text("utf-8")) if e["net"] in ("lenet", "seg")]
    outcomes = [PORTS.outcome(entry, folder) for entry in entries]
    said = {o.entry["id"]: o.broken for o in outcomes if not (o.passed if o.entry["equal"] else o.named)}
    assert not said
    assert not [o.entry["id"] for o in outcomes if o.entry["equal"] is False and o.innocent]


HEAD = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 8 } } }\n'


def check(tmp_path: Path, module: nn.Module, text: str) -> Report:
    (tmp_path / "net.prototxt").write_text(HEAD + text)
    return verify_port(module, tmp_path / "net.prototxt")


class As(nn.Module):
    def __init__(self, function: Any, **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


CONV = 'layer { name: "c" type: "Convolution" bottom: "%s" top: "c" convolution_param { num_output: 4 kernel_size: 3 '
CONV += 'weight_filler { type: "xavier" } } }\n'


def test_a_slip_that_later_layers_hide(tmp_path: Path) -> None:
    """The maxima of the windows are positive: the leaky slope does not show after the pooling."""
    text = 'layer { name: "r" type: "ReLU" bottom: "x" top: "r" }\n'
    text += 'layer { name: "p" type: "Pooling" bottom: "r" top: "p" pooling_param { kernel_size: 7 } }\n'
    report = check(tmp_path, As(lambda _, x: F.max_pool2d(F.leaky_relu(x, 0.01), 7, 1)), text)
    assert [row.layer for row in report.broken] == ["r"]
    assert "negative slope is 0.01" in report.broken[0].cause


def test_what_agrees_on_one_input_alone_is_not_proven(tmp_path: Path) -> None:
    """A ReLU that changes no number of the given input, and that the port leaves out."""
    text = 'layer { name: "r" type: "ReLU" bottom: "x" top: "r" }\n' + CONV % "r"
    (tmp_path / "net.prototxt").write_text(HEAD + text)
    module = As(lambda self, x: self.c(x), c=nn.Conv2d(3, 4, 3))
    given = torch.rand(2, 3, 9, 8).numpy()
    report = verify_port(module, tmp_path / "net.prototxt", input=given)
    assert [row.layer for row in report.broken] == ["r"]
    assert report.broken[0].cause == "the port has no ReLU here"
    assert any("on the given input the port agrees" in note for note in report.notes)
    right = As(lambda self, x: self.c(x.clamp(min=0)), c=nn.Conv2d(3, 4, 3))
    assert verify_port(right, tmp_path / "net.prototxt", input=given).passed


def test_a_port_that_crashes_is_compared_as_far_as_it_ran(tmp_path: Path) -> None:
    text = (
        CONV % "x"
        + 'layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { kernel_size: 2 stride: 2 } }\n'
    )
    text += 'layer { name: "f" type: "InnerProduct" bottom: "p" top: "f" inner_product_param { num_output: 5 '
    text += 'weight_filler { type: "xavier" } } }\n'
    modules = {"c": nn.Conv2d(3, 4, 3), "f": nn.Linear(48, 5)}
    report = check(tmp_path, As(lambda self, x: self.f(F.max_pool2d(self.c(x), 2).flatten(1)), **modules), text)
    assert [row.layer for row in report.broken] == ["p"]
    assert "rounds the size down" in report.broken[0].cause
    assert any("the port fails: " in note and "what ran before was compared" in note for note in report.notes)


def test_lower_precision_is_named(tmp_path: Path) -> None:
    text = CONV % "x" + 'layer { name: "r" type: "ReLU" bottom: "c" top: "r" }\n'
    report = check(tmp_path, As(lambda self, x: F.relu(self.c(x).bfloat16()), c=nn.Conv2d(3, 4, 3)), text)
    assert [row.layer for row in report.broken] == ["r"]
    assert "bfloat16" in report.broken[0].cause


def test_nan_explains_nothing(tmp_path: Path) -> None:
    text = 'layer { name: "p" type: "Power" bottom: "x" top: "p" power_param { power: 2 } }\n'
    report = check(tmp_path, As(lambda _, x: x.sqrt()), text)
    (row,) = report.broken
    assert "NaN" in row.cause
    assert "corrected for that" not in row.cause


def test_an_output_that_is_not_returned_is_told(tmp_path: Path) -> None:
    text = CONV % "x" + 'layer { name: "t" type: "TanH" bottom: "x" top: "t" }\n'
    report = check(tmp_path, As(lambda self, x: (self.c(x), x.tanh())[0], c=nn.Conv2d(3, 4, 3)), text)
    assert report.passed
    assert "the port does not return 't', an output of the net" in report.notes


def test_a_change_in_place_is_undone_between_the_runs(tmp_path: Path) -> None:
    text = CONV % "x"
    x = torch.randn(2, 3, 9, 8)
    before = x.clone()
    (tmp_path / "net.prototxt").write_text(HEAD + text)
    module = As(lambda self, x: self.c(x.mul_(2)), c=nn.Conv2d(3, 4, 3))
    report = verify_port(module, tmp_path / "net.prototxt", input=x.numpy())
    assert "changed in place by mul" in report.broken[0].cause
    assert "2 times Caffe's" in report.broken[0].cause
    assert torch.equal(x, before)


def test_every_function_is_recorded() -> None:
    def run(_: Any, x: Tensor) -> Tensor:
        y = x + 1
        y[:, 0] = 0
        y[:, 1].mul_(3)  # through a view: what the base holds then is another value
        return y * 2

    module = As(run)
    recorder = run_recorded(Recorder(module), module, torch.ones(2, 3))
    assert [call.word for call in recorder.calls] == ["add", "__setitem__", "__getitem__", "mul", "mul"]
    last = recorder.calls[-1]
    assert last.inputs[0].call is recorder.calls[3]
    assert last.inputs[0].array.tolist() == [[0, 6, 2]] * 2
    assert recorder.returned[0].array.tolist() == [[0, 12, 4]] * 2
