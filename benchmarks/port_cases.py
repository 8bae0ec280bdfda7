"""Hand-written ports, right in another style or wrong in one place: the cases of ``benchmarks/ports.py``.

A mistake is a slip of a module of port_nets.py, or an edit, which changes the parameters of a module that was right.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from port_nets import Fcn, Inception, Mobile, Recurrent, Res, Ssd, Vgg
from torch import Tensor, nn


@dataclass(frozen=True)
class PortCase:
    """A port, and what must be said of it.

    Attributes:
        net: the name of the net, a key of ``NETS``.
        make: makes the module.
        layers: the layers of which one must be the first broken; empty for a right port.
        cause: a regular expression for its cause.
        edit: changes the parameters of the module, which then keeps them.
        keep: compare the module's own parameters, after Caffe's were copied in.
    """

    net: str
    name: str
    make: Callable[[], nn.Module]
    layers: str = ""
    cause: str = ""
    edit: Callable[[Any], None] | None = None
    keep: bool = False


def _edit(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Any], None]:
    def edit(module: Any) -> None:
        with torch.no_grad():
            target = module.get_parameter(name) if name in dict(module.named_parameters()) else module.get_buffer(name)
            target.copy_(change(target.clone()))

    return edit


def _swap(one: str, other: str) -> Callable[[Any], None]:
    def edit(module: Any) -> None:
        with torch.no_grad():
            a, b = (module.get_submodule(n).weight for n in (one, other))
            c, d = (module.get_submodule(n).bias for n in (one, other))
            for x, y in ((a, b), (c, d)):
                if x is not None:
                    keep = x.clone()
                    x.copy_(y)
                    y.copy_(keep)

    return edit


def _all(change: Callable[[Tensor], Tensor]) -> Callable[[Any], None]:
    def edit(module: Any) -> None:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name.endswith("weight"):
                    parameter.copy_(change(parameter))

    return edit


def _noise(x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return x + 0.05 * float(x.std() if x.numel() > 1 else 1) * torch.randn(x.shape, generator=generator)


def _hwc(x: Tensor) -> Tensor:
    return x.view(16, 12, 9, 8).permute(0, 2, 3, 1).reshape(16, -1)


def _gates(x: Tensor) -> Tensor:
    return x.view(4, 4, 5)[[0, 1, 3, 2]].reshape(16, 5)


def _one_filter(x: Tensor) -> Tensor:
    x[3] *= 1.3
    return x


CASES: list[PortCase] = []


def _add(net: str, make: Callable[[str], nn.Module], wanted: dict[str, tuple[str, str] | None]) -> None:
    for slip, what in wanted.items():
        layers, cause = what or ("", "")
        CASES.append(PortCase(net, slip or "right", functools.partial(make, slip), layers, cause))
        if what is None:
            CASES.append(PortCase(net, f"{slip or 'right'}, own state", functools.partial(make, slip), keep=True))


_add(
    "res",
    Res,
    {
        "": None,
        "norm by hand": None,
        "softmax by hand": None,
        "torch.add": None,
        "dict": None,
        "stride place": ("b1", "stride is 1"),
        "no inner relu": ("relu_b1", "no ReLU|missing"),
        "no shortcut": ("add_a", "no Eltwise|sum|missing|order|times|reads|bottom"),
        "relu before sum": ("relu_b,b (relu)", "order|ReLU|before|extra"),
        "subtracted": ("add_a", "coeff|subtract|sign"),
        "no relu after sum": ("relu_a", "no ReLU|missing"),
        "255": ("conv1,data", "255|scale|input"),
        "imagenet": ("conv1,data", "mean|scale|input"),
        "rgb": ("conv1,data", "RGB and BGR"),
        "nhwc": ("conv1,data", "height and width|transpos"),
        "clamp": ("conv1,data", "clip|clamp"),
        "in place": ("conv1,data", "in.place|input|mean"),
        "bfloat16": ("conv1,bn_conv1", "bfloat16|precision"),
        "floor": ("pool1", "rounds the size down"),
        "pad pool": ("pool1", "pad is 1"),
        "average": ("pool1", "takes the average"),
        "max global": ("pool5", "takes the maximum"),
        "sum global": ("pool5", "times|sum"),
        "logits": ("prob", "no Softmax|missing"),
        "sigmoid": ("prob", "sigmoid|Softmax"),
        "argmax": ("prob", "output|argmax|shape"),
        "reversed": ("prob", "order"),
        "rounded": ("prob", "rounded|output"),
        "log at end": ("prob", "logarithm"),
        "background": ("prob", "channels|shape|output"),
    },
)
_add(
    "vgg",
    Vgg,
    {
        "": None,
        "two convolutions": None,
        "fc as convolution": None,
        "weight (in, out)": None,
        "addmm": None,
        "einsum": None,
        "relu as clamp": None,
        "relu as mask": None,
        "leaky as max": None,
        "leaky as where": None,
        "lrn by pool": None,
        "lrn by sum": None,
        "lrn alpha": ("norm1", "does not divide alpha"),
        "lrn k": ("norm1", "k = 2"),
        "lrn by pool, k": ("norm1", "k = 2"),
        "no lrn": ("norm1", "no LRN|missing"),
        "lrn after pool": ("norm1,pool1", "order|before|after"),
        "floor": ("pool1", "rounds the size down"),
        "dilation": ("conv2_2", "dilation is 1"),
        "padding of dilation": ("conv2_2", "pad is 1"),
        "slope": ("relu2_2", r"slope is 0\.01"),
        "plain relu": ("relu2_2", "slope"),
        "count include pad": ("pool2", "does not count the padding"),
        "max for average": ("pool2", "takes the maximum"),
        "hwc": ("fc6", r"\(H, W, C\)"),
        "hwc contiguous": ("fc6", r"\(W, H, C\)"),
        "dropout on": ("dropout,drop6,fc7", "active"),
        "dropout scales": ("drop6,fc7", "scale|0.5"),
        "shared fc": ("fc7", "bias is missing"),
        "temperature": ("prob,fc8", "times|scale"),
        "axis": ("prob", "axis is 0"),
    },
)
_BRANCH_SLIPS = (
    ("no relu", "b2b_relu", "no ReLU"),
    ("concat", "cat", "order of its bottoms"),
    ("rotated", "cat", "order of its bottoms"),
    ("max branch", "bpool", "takes the maximum"),
    ("no pool", "b4", "reads"),
)
for _order in ("1234", "4321", "2413"):
    for _keep in (False, True):
        _name = f"order {_order}" + ", own state" * _keep
        CASES.append(PortCase("inception", _name, functools.partial(Inception, "", _order), keep=_keep))
    for _slip, _layers, _cause in _BRANCH_SLIPS:
        _make = functools.partial(Inception, _slip, _order)
        CASES.append(PortCase("inception", f"{_slip}, order {_order}", _make, _layers, _cause))
_add(
    "inception",
    Inception,
    {
        "chunk": None,
        "max by hand": None,
        "prob alone": None,
        "prob first": None,
        "stride swapped": ("stem", "stride is 1 x 2"),
        "pad swapped": ("stem", "pad is 2 x 1"),
        "pad of one axis": ("stem", "pad is 1"),
        "kernel swapped": ("down", "kernel size is 2 x 3"),
        "floor": ("down", "rounds the size down"),
        "slice swapped": ("halves,lc,rc", "slice|order|takes|reads|channels"),
        "halves": ("halves,lc", "slice|takes|channels"),
        "gate wrong side": ("gate,prod", "reads|order|bottom|Sigmoid"),
        "gate tanh": ("gate", "TanH|tanh|."),
        "sum for product": ("prod", "SUM"),
        "box doubled": ("box", "times|scale"),
        "box exp": ("box", "output|exponential|channels"),
        "box order": ("box", "order|swapped"),
        "threshold": ("prob", "threshold"),
    },
)
_add(
    "ssd",
    Ssd,
    {
        "": None,
        "norm by hand": None,
        "view 4": None,
        "same padding": ("c2", "pad"),
        "no norm": ("norm", "no Normalize|missing"),
        "tap before norm": ("norm_loc,norm_conf", "reads|no Normalize|missing"),
        "norm over space": ("norm", "space|spatial|across"),
        "norm without scale": ("norm", "scale|times"),
        "no permute": ("c3_loc_perm,c3_loc_flat,loc", "Permute|order|transpos"),
        "permute order": ("norm_conf_perm", "order"),
        "levels reversed": ("loc", "order of its bottoms"),
        "softmax axis": ("conf_softmax", "axis is 1"),
        "no softmax": ("conf_softmax", "no Softmax|missing"),
        "variance": ("loc", "times|scale"),
        "no background": ("conf_softmax", "shape|output|cropped|channels"),
    },
)
_add(
    "fcn",
    Fcn,
    {
        "": None,
        "pad by hand": None,
        "prelu by hand": None,
        "order of sum": None,
        "narrow": None,
        "reflect": ("conv1", "pad|reflect|bottom|."),
        "shared": ("act2", "slope|one slope"),
        "pool first": None,
        "no prelu": ("act2", "no PReLU|missing"),
        "leaky": ("act2", "slope"),
        "skip before pool": ("score1", "reads|bottom|input"),
        "skip in place": ("score1", "in.place"),
        "crop offset": ("cropped", "offset"),
        "coefficient": ("fuse", "coeff"),
        "coefficients swapped": ("fuse", "coeff"),
        "last offset": ("final", "offset"),
        "bchw to bhwc": ("final", "order|transpos"),
        "argmax": ("final", "output|shape"),
        "softmax": ("final,softmax", "extra Softmax|softmax|output"),
        "sigmoid": ("final,sigmoid", "extra Sigmoid|sigmoid|output"),
    },
)
_add(
    "rnn",
    Recurrent,
    {"": None, "axis": ("prob", "axis is 1"), "gate order": ("lstm", "gates"), "no reset": ("lstm", "cont")},
)
_add(
    "mobile",
    Mobile,
    {
        "": None,
        "where": None,
        "power by parts": None,
        "eps": ("bn_conv1,bn_dw2,bn_pw2,bn_pw3", "eps is about 1e-05"),
        "relu": ("relu1,relu2", "clip|6|ReLU"),
        "extra relu": ("pw2.2 (hardtanh)", "extra ReLU6"),
        "in place sum": ("max", "reads|in.place"),
        "minimum": ("max", "MIN|minimum"),
        "power order": ("half", "shifts before it scales"),
        "no shift": ("half", "shift is missing"),
        "no power": ("half", "power is missing"),
    },
)
EDITS: tuple[tuple[str, str, Callable[[str], nn.Module], Callable[[Any], None], str, str], ...] = (
    ("res", "rgb in the weights", Res, _edit("stem.weight", lambda w: w.flip(1)), "conv1", "RGB and BGR"),
    ("res", "half", Res, _all(lambda w: w.half().float()), "conv1,*", "half precision|float16"),
    ("res", "bfloat16 weights", Res, _all(lambda w: w.bfloat16().float()), "conv1,*", "bfloat16"),
    ("res", "standard deviation", Res, _edit("norm.running_var", torch.sqrt), "bn_conv1", "standard deviation"),
    ("res", "mean of zero", Res, _edit("norm.running_mean", lambda m: m * 0), "bn_conv1", "mean"),
    ("res", "flipped", Res, _edit("a.c1.weight", lambda w: w.flip(2, 3)), "a1", "kernel is flipped"),
    ("res", "transposed", Res, _edit("a.c1.weight", lambda w: w.transpose(2, 3)), "a1", "height and width"),
    ("res", "in and out", Res, _edit("a.c2.weight", lambda w: w.transpose(0, 1)), "a2", "input and output channels"),
    ("res", "exchanged in a chain", Res, _swap("a.c1", "a.c2"), "a1,a2", "weights"),
    ("res", "another epoch", Res, _all(_noise), "conv1,*", "weight"),
    ("res", "one filter", Res, _edit("b.c2.weight", _one_filter), "b2", "channel 3"),
    ("res", "gamma of one", Res, _edit("norm.weight", torch.ones_like), "scale_conv1", "scale"),
    ("res", "beta of zero", Res, _edit("norm.bias", torch.zeros_like), "scale_conv1", "bias is missing"),
    ("vgg", "another epoch", Vgg, _all(_noise), "conv1_1,*", "weight"),
    ("vgg", "exchanged", Vgg, _swap("fc7", "fc7"), "", ""),
    ("vgg", "bias of zero", Vgg, _edit("c12.bias", torch.zeros_like), "conv1_2", "bias is missing"),
    ("vgg", "flatten in the weights", Vgg, _edit("fc6.weight", _hwc), "fc6", r"\(H, W, C\)|order"),
    ("vgg", "weight transposed", Vgg, _edit("fc7.weight", lambda w: w.t()), "fc7", r"transposed|\(in, out\)"),
    ("inception", "exchanged branches", Inception, _swap("b2a", "b3a"), "b2a,b3a", "exchang"),
    ("inception", "exchanged with the pool", Inception, _swap("b1", "b4"), "b1,b4", "weights of|exchang"),
    ("inception", "half", Inception, _all(lambda w: w.half().float()), "stem,*", "float16|half"),
    ("mobile", "exchanged outputs", Mobile, _swap("age", "sex"), "age,sex,sex_prob", "exchang|weights"),
    ("mobile", "depthwise flipped", Mobile, _edit("dw2.0.weight", lambda w: w.flip(2, 3)), "dw2", "flipped"),
    ("ssd", "exchanged heads", Ssd, _swap("loc.0", "loc.0"), "", ""),
    ("fcn", "deconvolution flipped", Fcn, _edit("up2.weight", lambda w: w.flip(2, 3)), "up2", "flipped"),
    ("fcn", "deconvolution in and out", Fcn, _edit("up2.weight", lambda w: w.swapaxes(0, 1)), "up2", "input and out"),
    ("fcn", "slopes reversed", Fcn, _edit("act2.weight", lambda w: w.flip(0)), "act2", "slopes is reversed|slope"),
    ("rnn", "gates in the weights", Recurrent, _edit("wx", _gates), "lstm", "gates"),
)  # fmt: skip
CASES += [
    PortCase(net, f"weights: {name}", functools.partial(make, ""), layers, cause, edit, True)
    for net, name, make, edit, layers, cause in EDITS
]
