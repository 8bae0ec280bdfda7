"""A hand-written port of SimpleNet: its mistakes are found, named and located."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn
from torch.nn import functional as F

from caffe_port.api import port
from caffe_port.emit.convert import convert
from caffe_port.errors import CaffePortError, ParseError
from caffe_port.formats import caffemodel
from caffe_port.verification.comparison import Report
from caffe_port.verification.user_module.recorder import load_module, record_calls
from caffe_port.verification.user_module.verify_module import assert_parity, verify_port
from caffe_port.verification.user_module.weights import alike
from caffe_port.verification.verify import verify

SIMPLENET = ROOT / "model_defs/simplenet_cifar10.prototxt"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Initialized weights, with BatchNorm statistics that fit them."""
    ported = port(SIMPLENET, input_shapes={"data": (2, 3, 32, 32)})
    net = ported.net.train()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in net.named_parameters():
        if "scale" in name:
            parameter.data.uniform_(0.5, 1.5, generator=generator)
        elif "bias" in name:
            parameter.data.normal_(0, 0.1, generator=generator)
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(2, 3, 32, 32, generator=generator))
    path = tmp_path_factory.mktemp("w") / "w.caffemodel"
    caffemodel.write(path, ported.definition.net, net.blobs())
    return path


class SimpleNet(nn.Module):
    """SimpleNet as one would write it in PyTorch, with a switch for every mistake."""

    def __init__(self, **slips: Any) -> None:
        super().__init__()
        self.slips = slips
        eps, momentum, ratio = slips.get("eps", 1e-5), slips.get("momentum", 0.05), slips.get("ratio", 0.2)

        def block(i: int, o: int, *, pool_first: bool = False, bn: bool = True) -> list[nn.Module]:
            layers: list[nn.Module] = [nn.Conv2d(i, o, 3, padding=1)]
            if pool_first:
                layers.append(nn.MaxPool2d(2, 2))
            if bn:
                layers.append(nn.BatchNorm2d(o, eps, momentum, affine=slips.get("affine", True)))
            return [*layers, nn.ReLU(inplace=True), nn.Dropout(ratio)]

        widths = [3, 64, 128, 128, 128]
        layers = [m for i, o in itertools.pairwise(widths) for m in block(i, o)]
        layers.insert(-1, nn.MaxPool2d(2, 2))
        layers += [*block(128, 128), *block(128, 128), *block(128, 256, pool_first=True), *block(256, 256)]
        layers += [*block(256, 256), nn.MaxPool2d(2, 2), *block(256, 512)]
        if slips.get("extra_pool"):
            layers.append(nn.MaxPool2d(2, 2))
        layers += [nn.Conv2d(512, 2048, 1), nn.ReLU(), nn.Dropout(ratio), nn.Conv2d(2048, 256, 1), nn.ReLU()]
        layers += [nn.MaxPool2d(2, 2), nn.Dropout(ratio), nn.Conv2d(256, 256, 3, padding=slips.get("padding", 1))]
        if not slips.get("no_relu"):
            layers.append(nn.ReLU())
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = F.max_pool2d(x, x.shape[2:])
        if self.slips.get("dropout_on"):
            x = F.dropout(x, 0.1, training=True)
        return self.classifier(x.flatten(1))


def check(weights: Path, edit: Callable[[SimpleNet], None] | None = None, **slips: Any) -> Report:
    module = SimpleNet(**slips)
    if edit is not None:
        assert verify_port(module, SIMPLENET, weights).passed  # the weights are in
        edit(module)
    return verify_port(module, SIMPLENET, weights, keep_parameters=edit is not None)


def red(report: Report) -> list[str]:
    return [row.layer for row in report.broken]


def test_a_good_port_passes(weights: Path) -> None:
    report = check(weights)
    assert report.passed, [(r.layer, r.cause, r.isolated) for r in report.broken]
    assert report.not_compared == 0
    assert report.compared == 64
    assert not [note for note in report.notes if "momentum" in note or "ratio" in note]
    assert report.candidate == "SimpleNet"
    assert report.rows[0].note == "port: features.0 (conv2d)"


def test_the_authors_extra_pooling(weights: Path) -> None:
    """Their port had an additional max pooling after the 512-wide layer, for years."""
    report = check(weights, extra_pool=True)
    assert not report.passed
    (row,) = report.broken
    assert row.cause == "the port has an extra Pooling after 'drop10': features.43 (max_pool2d)"
    assert row.free is not None
    assert row.free.reason == "an extra layer, (1, 512, 4, 4) to (1, 512, 2, 2)"
    behind = report.rows[report.rows.index(row) + 1 :]
    assert all(r.isolated is not None and r.isolated.passed for r in behind)
    assert all(r.free is not None and not r.free.passed for r in behind)


def _flip_first(net: SimpleNet) -> None:
    net.features[0].weight.data = net.features[0].weight.data.flip(1)  # type: ignore[operator, union-attr]


BATCH_NORMS = ["bn1", "bn1_0", "bn2", "bn2_1", "bn2_2", "bn3", "bn4", "bn4_1", "bn4_2", "bn4_0"]

SLIPS: dict[str, tuple[dict[str, Any], Callable[[SimpleNet], None] | None, list[str], str]] = {
    "eps": ({"eps": 1e-3}, None, BATCH_NORMS, "its eps is about 0.001"),
    "padding": ({"padding": 2}, None, ["cccp6"], "its pad is 2, Caffe's is 1"),
    "a missing ReLU": ({"no_relu": True}, None, ["relu_cccp6"], "the port has no ReLU here"),
    "RGB and BGR": ({}, _flip_first, ["conv1"], "its input channels are swapped (RGB and BGR)"),
}


@pytest.mark.parametrize("name", SLIPS)
def test_slips(weights: Path, name: str) -> None:
    slips, edit, layers, words = SLIPS[name]
    report = check(weights, edit, **slips)
    assert not report.passed
    assert set(red(report)) == set(layers)
    assert all(words in row.cause for row in report.broken), [row.cause for row in report.broken]


def test_training_only_differences_are_noted(weights: Path) -> None:
    report = check(weights, momentum=0.1, ratio=0.1)
    assert report.passed
    (momentum,) = [n for n in report.notes if "momentum" in n]
    assert momentum.startswith("only for training: momentum 0.1 in features.1 (batch_norm), ")
    assert momentum.endswith(" more; Caffe's moving_average_fraction 0.95 is momentum 0.05")
    (ratio,) = [n for n in report.notes if "ratio" in n]
    assert ratio.startswith("only for training: dropout ratio 0.1 in ")
    assert ratio.endswith("; Caffe's is 0.2")


def test_an_active_dropout(weights: Path) -> None:
    report = check(weights, dropout_on=True)
    (row,) = report.broken
    assert row.cause == "the port has an extra Dropout after 'poolcp6': dropout, active even in eval()"


def test_batch_norm_without_scale(weights: Path) -> None:
    report = check(weights, affine=False)
    assert not report.passed
    assert {row.type for row in report.broken} == {"Scale"}


NET = """
layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "a"
  convolution_param { num_output: 4 kernel_size: 3 bias_term: false weight_filler { type: "xavier" } } }
layer { name: "pool" type: "Pooling" bottom: "a" top: "p" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "p" top: "s"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "s" top: "prob" }
"""

CANDIDATE = """
import torch
from torch import nn
import torch.nn.functional as F

class Good(nn.Module):
    ceil, order = True, (0, 1, 2, 3)
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.ip = nn.Linear(48, 5)
    def forward(self, x):
        x = F.max_pool2d(self.conv(x), 2, 2, ceil_mode=self.ceil)
        return self.ip(x.permute(self.order).flatten(1)).softmax(1)

class Floor(Good):
    ceil = False
    def __init__(self):
        super().__init__()
        self.ip = nn.Linear(36, 5)

class ChannelsLast(Good):
    order = (0, 2, 3, 1)

def broken():
    raise RuntimeError("no such luck")

def text():
    return "no module"
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "net.prototxt").write_text(NET)
    (tmp_path / "mine.py").write_text(CANDIDATE)
    return tmp_path


def test_from_a_file(files: Path) -> None:
    report = verify_port(f"{files}/mine.py:Good", files / "net.prototxt")
    assert report.passed
    assert "conv (conv2d) has a bias, Caffe's 'conv' does not: set to 0" in report.notes
    report = verify_port(f"{files}/mine.py:Floor", files / "net.prototxt")
    assert "pool" in red(report)
    assert "rounds the size down" in next(r for r in report.broken if r.layer == "pool").cause


def test_a_state_is_kept(files: Path) -> None:
    module = load_module(f"{files}/mine.py:Good")
    assert verify_port(module, files / "net.prototxt").passed  # Caffe's parameters are in it now
    torch.save(module.state_dict(), files / "good.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in module.state_dict().items()}}, files / "wrapped.pth")
    for name in ("good.pth", "wrapped.pth"):
        assert verify_port(f"{files}/mine.py:Good", files / "net.prototxt", state=files / name).passed
    with torch.no_grad():
        module.conv.bias[:] = torch.tensor([0.5, -0.5, 0.25, 1])  # type: ignore[union-attr, index, operator]
    torch.save(module.state_dict(), files / "biased.pth")
    report = verify_port(f"{files}/mine.py:Good", files / "net.prototxt", state=files / "biased.pth")
    assert red(report) == ["conv"]
    assert "it has a bias, Caffe's layer does not" in report.broken[0].cause
    with pytest.raises(CaffePortError, match="a state is for a module that is created from a file"):
        verify(files / "net.prototxt", against=module, state=files / "good.pth")


@pytest.mark.parametrize("option", [{"strict": True}, {"backward": True}, {"mode": "free"}])
def test_what_is_for_our_own_net_alone(files: Path, option: dict[str, Any]) -> None:
    with pytest.raises(CaffePortError, match=f"{next(iter(option))} applies only to a converted net"):
        verify(files / "net.prototxt", against=f"{files}/mine.py:Good", **option)


def test_the_net_of_a_stage(files: Path) -> None:
    text = NET.replace('name: "pool"', 'name: "pool" include { stage: "pooled" }')
    (files / "staged.prototxt").write_text(text)
    assert text != NET
    against = f"{files}/mine.py:Good"
    assert verify(files / "staged.prototxt", against=against, stages=("pooled",)).passed


def test_flatten_order(files: Path) -> None:
    module: Any = load_module(f"{files}/mine.py:ChannelsLast")
    report = verify_port(module, files / "net.prototxt")
    assert red(report) == ["ip"]
    assert "it flattens in the order (H, W, C)" in report.broken[0].cause
    weight = module.ip.weight.data.reshape(5, 4, 4, 3)
    module.ip.weight.data = weight.permute(0, 2, 3, 1).reshape(5, 48).contiguous()  # right for this module
    assert verify_port(module, files / "net.prototxt", keep_parameters=True).passed


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("absent.py:Good", "is not a file"),
        ("mine.py:Goof", "defines no class or function 'Goof'. Did you mean 'Good'"),
        ("mine.py:broken", r"broken\(\) fails: RuntimeError: no such luck"),
        ("mine.py:text", r"text\(\) returns a str, not a torch.nn.Module"),
    ],
)
def test_what_cannot_be_made(files: Path, what: str, says: str) -> None:
    with pytest.raises(CaffePortError, match=says):
        load_module(f"{files}/{what}")


def test_states_that_do_not_fit(files: Path) -> None:
    (files / "text.pth").write_text("no")
    with pytest.raises(ParseError, match="is not a state_dict"):
        load_module(f"{files}/mine.py:Good", files / "text.pth")
    torch.save({"x": 1}, files / "none.pth")
    with pytest.raises(ParseError, match="it contains no named tensors"):
        load_module(f"{files}/mine.py:Good", files / "none.pth")
    torch.save({"conv.weight": torch.zeros(1)}, files / "other.pth")
    with pytest.raises(CaffePortError, match="does not fit Good"):
        load_module(f"{files}/mine.py:Good", files / "other.pth")
    with pytest.raises(CaffePortError, match="cannot be read"):
        load_module(f"{files}/mine.py:Good", files / "absent.pth")


def test_a_state_cannot_run_code(files: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(files / "ran"),))

    torch.save({"conv.weight": Evil()}, files / "evil.pth")
    with pytest.raises(ParseError):
        load_module(f"{files}/mine.py:Good", files / "evil.pth")
    assert not (files / "ran").exists()


def test_modules_that_do_not_run() -> None:
    with pytest.raises(CaffePortError, match=r"Linear cannot run on inputs of shape \(2, 3\)"):
        record_calls(nn.Linear(4, 5), torch.zeros(2, 3))
    with pytest.raises(CaffePortError, match="calls no function that corresponds to a Caffe layer"):
        record_calls(nn.Identity(), torch.zeros(2, 3))


def test_assert_parity(files: Path) -> None:
    module: Any = load_module(f"{files}/mine.py:Good")
    assert_parity(module, files / "net.prototxt", copy_parameters=True)
    assert_parity(module, files / "net.prototxt")
    module.ip.weight.data[2] *= 1.5
    with pytest.raises(AssertionError) as error:
        assert_parity(module, files / "net.prototxt")
    assert "first to diverge: layer 'ip' (InnerProduct)" in str(error.value)
    assert "only channel 2 of 5)" in str(error.value)


def test_by_verify(files: Path) -> None:
    assert verify(files / "net.prototxt", against=f"{files}/mine.py:Good").passed
    assert verify(files / "net.prototxt", against=load_module(f"{files}/mine.py:Good")).candidate == "Good"
    with pytest.raises(CaffePortError, match="a state needs a hand-written port"):
        verify(files / "net.prototxt", against="opencv", state=files / "x.pth")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((4, 7), (4, 7, 1, 1), True),
        ((4, 1, 5, 3), (4, 5, 3), True),
        ((7,), (1, 7), True),
        ((), (1,), True),
        ((1, 4, 3, 3), (4, 1, 3, 3), False),
        ((4, 3, 1), (4, 1, 3), False),
        ((1, 4, 3), (4, 3, 1, 1), False),
        ((4, 7), (4, 7, 1, 2), False),
        ((4, 7), (7, 4, 1, 1), False),
    ],
)
def test_axes_of_one_may_be_left_out_not_moved(one: tuple[int, ...], other: tuple[int, ...], same: bool) -> None:
    assert alike(one, other) is same
    assert alike(other, one) is same


def test_a_turned_kernel_takes_no_weights(tmp_path: Path) -> None:
    """The same number of values in another order."""
    (tmp_path / "net.prototxt").write_text("""
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 6 dim: 5 } } }
        layer { name: "c" type: "Convolution" bottom: "x" top: "y"
                convolution_param { num_output: 4 kernel_h: 3 kernel_w: 1 pad_h: 1 pad_w: 0
                                    weight_filler { type: "xavier" } } }
    """)
    report = verify_port(nn.Conv2d(3, 4, (1, 3), padding=(0, 1)), tmp_path / "net.prototxt")
    assert not report.passed
    assert any("weight (4, 3, 1, 3) cannot hold Caffe's (4, 3, 3, 1)" in note for note in report.notes)
    assert verify_port(nn.Conv2d(3, 4, (3, 1), padding=(1, 0)), tmp_path / "net.prototxt").passed


# -- folded layers ----------------------------------------------------------------------------------------------------

FOLDABLE = """
layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 8 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "a"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "bn1" type: "BatchNorm" bottom: "a" top: "a" batch_norm_param { eps: 0.01 } }
layer { name: "scale1" type: "Scale" bottom: "a" top: "a" scale_param { bias_term: true } }
layer { name: "relu1" type: "ReLU" bottom: "a" top: "a" }
layer { name: "conv2" type: "Convolution" bottom: "a" top: "b"
  convolution_param { num_output: 5 kernel_size: 2 weight_filler { type: "xavier" } } }
layer { name: "bn2" type: "BatchNorm" bottom: "b" top: "b" }
layer { name: "ip" type: "InnerProduct" bottom: "b" top: "s"
  inner_product_param { num_output: 6 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "s" top: "prob" }
"""


@pytest.fixture
def foldable(tmp_path: Path) -> tuple[Path, Path]:
    """A net with BatchNorm and Scale, and weights in which every value matters."""
    path, weights = tmp_path / "net.prototxt", tmp_path / "w.caffemodel"
    path.write_text(FOLDABLE)
    ported = port(path)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in [*ported.net.named_parameters(), *ported.net.named_buffers()]:
            if name.startswith(("bn", "scale")) or "bias" in name:
                value.uniform_(0.2, 1.5, generator=generator)
    caffemodel.write(weights, ported.definition.net, ported.net.blobs())
    return path, weights


class Folded(nn.Module):
    """Both convolutions with the layers after them folded into their weights."""

    def __init__(self, foldable: tuple[Path, Path], eps: float = 0.01, keep: str = "all") -> None:
        super().__init__()
        blobs = {k: [torch.tensor(b) for b in v] for k, v in port(*foldable).net.blobs().items()}
        self.conv1, self.conv2, self.ip = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 2), nn.Linear(150, 6)
        gamma, beta = blobs["scale1"]
        for conv, norm, g, b, e in ((self.conv1, "bn1", gamma, beta, eps), (self.conv2, "bn2", 1.0, 0.0, 1e-5)):
            (weight, own), (mean, variance, count) = blobs[(conv is self.conv2 and "conv2") or "conv1"], blobs[norm]
            factor = g / torch.sqrt(variance / count + e)
            own = own * 0 if keep == "no own bias" else own
            bias = b + factor * (own - mean / count)
            conv.weight.data = weight * factor.reshape(-1, 1, 1, 1)
            conv.bias.data = bias * 0 if keep == "no bias" and conv is self.conv1 else bias
        self.ip.weight.data, self.ip.bias.data = blobs["ip"]

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(F.relu(self.conv1(x)))
        return self.ip(x.flatten(1)).softmax(1)


def check_folded(foldable: tuple[Path, Path], **slips: Any) -> Report:
    return verify_port(Folded(foldable, **slips), *foldable, keep_parameters=True)


def test_a_folded_port_passes(foldable: tuple[Path, Path]) -> None:
    report = check_folded(foldable)
    assert report.passed, [(row.layer, row.cause) for row in report.broken]
    rows = {row.layer: row for row in report.rows}
    left = {name for name, row in rows.items() if row.status == "not compared"}
    assert left == {"conv1", "bn1", "conv2"}
    assert (report.compared, report.not_compared) == (5, 3)
    assert rows["bn1"].note == "folded into the weights of 'conv1'"
    assert rows["conv1"].note == "compared as 'scale1'; port: conv1 (conv2d)"
    assert rows["scale1"].note == "port: conv1 (conv2d), with 'bn1' and 'scale1' folded into its weights"


@pytest.mark.parametrize(
    ("slips", "layers", "words"),
    [
        ({"eps": 1e-5}, ["scale1"], "'bn1' was folded in with an eps of about 1e-05, Caffe's is 0.01"),
        ({"keep": "no bias"}, ["scale1"], "the factor of 'bn1' and 'scale1' is folded in, but the bias is missing"),
        (
            {"keep": "no own bias"},
            ["scale1", "bn2"],
            "the bias of 'conv1' was lost when 'bn1' and 'scale1' were folded in",
        ),
    ],
    ids=["eps", "bias", "own bias"],
)
def test_a_wrong_fold_fails(foldable: tuple[Path, Path], slips: dict[str, Any], layers: list[str], words: str) -> None:
    report = check_folded(foldable, **slips)
    assert not report.passed
    assert red(report) == layers
    assert words in report.broken[0].cause


def test_a_forgotten_batch_norm_is_no_fold(foldable: tuple[Path, Path]) -> None:
    report = verify_port(Folded(foldable), *foldable, keep_parameters=False)  # Caffe's weights as they are
    assert red(report)[0] == "bn1"
    assert report.broken[0].cause == "the port has no BatchNorm here"
    assert any("give those with --state FILE" in note for note in report.notes)


def test_a_folder_that_convert_folded(foldable: tuple[Path, Path], tmp_path: Path) -> None:
    folder = convert(port(*foldable), tmp_path / "out", fold=True).folder
    name = json.loads((folder / "port.json").read_text())["class"]
    report = verify_port(f"{folder}/model.py:{name}", *foldable)
    assert report.passed, [(row.layer, row.cause) for row in report.broken]
    assert report.not_compared == 3
    assert any("parameters were loaded from" in note for note in report.notes)


# -- parallel branches ------------------------------------------------------------------------------------------------

BRANCHES = """
layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 8 } } }
layer { name: "a" type: "Convolution" bottom: "data" top: "a"
  convolution_param { num_output: 4 kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "relu_a" type: "ReLU" bottom: "a" top: "a" }
layer { name: "b1" type: "Convolution" bottom: "data" top: "b1"
  convolution_param { num_output: 4 kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "relu_b1" type: "ReLU" bottom: "b1" top: "b1" }
layer { name: "b2" type: "Convolution" bottom: "b1" top: "b2"
  convolution_param { num_output: 5 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "relu_b2" type: "ReLU" bottom: "b2" top: "b2" }
layer { name: "pool" type: "Pooling" bottom: "data" top: "pool"
  pooling_param { pool: MAX kernel_size: 3 stride: 1 pad: 1 } }
layer { name: "c" type: "Convolution" bottom: "pool" top: "c"
  convolution_param { num_output: 4 kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "relu_c" type: "ReLU" bottom: "c" top: "c" }
layer { name: "cat" type: "Concat" bottom: "a" bottom: "b2" bottom: "c" top: "cat" }
layer { name: "score" type: "Convolution" bottom: "cat" top: "score"
  convolution_param { num_output: 2 kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "box" type: "Convolution" bottom: "cat" top: "box"
  convolution_param { num_output: 4 kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "score" top: "prob" }
"""


class Branches(nn.Module):
    """The module of BRANCHES, whose branches run in any order; ``slip`` is its mistake."""

    def __init__(self, order: str, slip: str = "") -> None:
        super().__init__()
        self.order, self.slip = order, slip
        self.a, self.b1, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.b2 = nn.Conv2d(4, 5, 3, padding=1)
        self.score, self.box = nn.Conv2d(13, 2, 1), nn.Conv2d(13, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        made = {}
        for branch in self.order:
            if branch == "a":
                made["a"] = F.relu(self.a(x))
            elif branch == "b":
                b = self.b1(x)
                made["b"] = F.relu(self.b2(b if self.slip == "no relu" else F.relu(b)))
            else:
                made["c"] = F.relu(
                    self.c(F.avg_pool2d(x, 3, 1, 1) if self.slip == "average" else F.max_pool2d(x, 3, 1, 1))
                )
        parts = [made["a"], made["b"], made["c"]]
        joined = torch.cat([parts[2], parts[1], parts[0]] if self.slip == "concat" else parts, 1)
        prob = self.score(joined).softmax(1)
        return prob, self.box(joined)


@pytest.mark.parametrize("order", ["abc", "bac", "cab", "cba"])
def test_branches_in_any_order(tmp_path: Path, order: str) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(BRANCHES)
    report = verify_port(Branches(order), path)
    assert report.passed, [(row.layer, row.cause) for row in report.broken]
    assert (report.compared, report.not_compared) == (13, 0)


@pytest.mark.parametrize("order", ["abc", "cba"])
@pytest.mark.parametrize(
    ("slip", "layers", "words"),
    [("no relu", ["relu_b1"], "no ReLU here"), ("average", ["pool"], ""), ("concat", ["cat"], "")],
)
def test_slips_in_branches(tmp_path: Path, order: str, slip: str, layers: list[str], words: str) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(BRANCHES)
    report = verify_port(Branches(order, slip), path)
    assert not report.passed
    assert red(report) == layers
    assert words in report.broken[0].cause


class EarlySoftmax(nn.Module):
    """MTCNN's first net, with the softmax before the second convolution."""

    def __init__(self, ceil_mode: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 10, 3),
            nn.PReLU(10),
            nn.MaxPool2d(2, 2, ceil_mode=ceil_mode),
            nn.Conv2d(10, 16, 3),
            nn.PReLU(16),
            nn.Conv2d(16, 32, 3),
            nn.PReLU(32),
        )
        self.score, self.box = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.features(x)
        score = self.score(x).softmax(1)
        return self.box(x), score


def test_a_softmax_before_the_second_branch(shared: Path) -> None:
    files = [shared / f"models/zoo/mtcnn_v2/det1.{end}" for end in ("prototxt", "caffemodel")]
    shapes = {"data": (2, 3, 27, 35)}
    report = verify_port(EarlySoftmax(), *files, input_shapes=shapes)
    assert report.passed, [(row.layer, row.cause) for row in report.broken]
    assert (report.compared, report.not_compared) == (10, 0)
    assert red(verify_port(EarlySoftmax(ceil_mode=False), *files, input_shapes=shapes)) == ["pool1"]


ACTIVATIONS = {
    "Swish": nn.SiLU,
    "BNLL": nn.Softplus,
    "HSwish": nn.Hardswish,
    "HSigmoid": nn.Hardsigmoid,
    "SELU": nn.SELU,
    "Mish": nn.Mish,
    "ReLU6": nn.ReLU6,
}


@pytest.mark.parametrize("type_", sorted(ACTIVATIONS))
def test_activations_of_torch_stand_for_those_of_forks(tmp_path: Path, type_: str) -> None:
    text = 'name: "a" layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 7 dim: 6 } } }'
    text += f' layer {{ name: "act" type: "{type_}" bottom: "x" top: "y" }}'
    (tmp_path / "net.prototxt").write_text(text)
    report = verify_port(ACTIVATIONS[type_](), tmp_path / "net.prototxt")
    assert report.passed, report.rows
    wrong = verify_port(nn.Tanh(), tmp_path / "net.prototxt")
    assert red(wrong) == ["act"]
