"""Every known porting mistake, planted in one layer, is found and named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caffe_port.api import Ported, port
from caffe_port.verification.comparison import Row, Tolerance, difference
from caffe_port.verification.diagnose import diagnose
from caffe_port.verification.inputs import random_inputs
from caffe_port.verification.references.numpy_formulas import NumPyReference
from caffe_port.verification.runner import run
from caffe_port.verification.subject import case_of

HEAD = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 3 dim: 6 dim: 11 dim: 8 } } }\n'


class As(nn.Module):
    """A module whose forward is a function."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = forward

    def forward(self, *bottoms: Tensor) -> Tensor:
        return self.function(*bottoms)


def red(ported: Ported, plant: Callable[[Any], None], inputs: dict[str, np.ndarray] | None = None) -> list[Row]:
    plan = ported.net.plan
    inputs = inputs or random_inputs(plan.spec, plan.shapes, 0)[0]
    case = case_of(ported, inputs)
    assert not [r for r in run_rows(ported, case) if r.status == "failed"], "a clean net has no red row"
    plant(ported.net)
    return [r for r in run_rows(ported, case) if r.broken]


def run_rows(ported: Ported, case: Any) -> list[Row]:
    with torch.inference_mode():
        return list(run(ported.net, NumPyReference(), case, Tolerance()))


def one_layer(tmp_path: Path, text: str) -> Ported:
    path = tmp_path / "net.prototxt"
    path.write_text(HEAD + f'layer {{ name: "l" bottom: "x" top: "y" {text} }}')
    ported = port(path)
    generator = torch.Generator().manual_seed(1)
    for parameter in ported.net.parameters():
        parameter.data.normal_(generator=generator)
    for name, buffer in ported.net.named_buffers():
        buffer.data.uniform_(0.5, 2, generator=generator)
        if "factor" in name:
            buffer.data.fill_(19.99998)
    return ported


def weight(net: Any) -> Tensor:
    return net.l.weight.detach()


def bias(net: Any) -> Tensor:
    return net.l.bias.detach()


POOL = 'type: "Pooling" pooling_param { pool: %s kernel_size: 3 stride: 2 pad: %d }'
CONV = 'type: "Convolution" convolution_param { num_output: 6 kernel_size: 3 %s }'
LRN = 'type: "LRN" lrn_param { local_size: 5 alpha: 0.5 beta: 0.75 k: %s }'
BN = 'type: "BatchNorm"'
MVN = 'type: "MVN" mvn_param { normalize_variance: true }'
DECONV = 'type: "Deconvolution" convolution_param { num_output: 6 kernel_size: 4 stride: 2 pad: 1 group: 6 %s }'


def lrn(x: Tensor, alpha: float = 0.5, k: float = 1.0, beta: float = 0.75, size: int = 5) -> Tensor:
    return F.local_response_norm(x, size, alpha, beta, k)


def stats(net: Any) -> tuple[Tensor, Tensor]:
    blobs = [net.l.get_blob(n) for n in net.l.blob_names()]
    return blobs[0].view(-1, 1, 1), blobs[1].view(-1, 1, 1)


FACTOR = 19.99998


def bn(net: Any, of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A mistake that gets the bottom, the stored mean and the stored variance (both times the factor)."""
    mean, variance = stats(net)
    return lambda x: of(x, mean, variance)


SLIPS: dict[str, tuple[str, Callable[[Any], Callable[..., Tensor]], str]] = {
    "pooling rounds down": (POOL % ("MAX", 0), lambda n: lambda x: F.max_pool2d(x, 3, 2), "rounds the size down"),
    "average rounds down": (POOL % ("AVE", 0), lambda n: lambda x: F.avg_pool2d(x, 3, 2), "rounds the size down"),
    "average leaves padding out": (
        POOL % ("AVE", 1),
        lambda n: lambda x: F.avg_pool2d(x, 3, 2, 1, True, False),
        "does not count the padding",
    ),
    "reflected border": (
        CONV % "pad: 2",
        lambda n: lambda x: F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), weight(n), bias(n)),
        "padding_mode='reflect'",
    ),
    "replicated border": (
        POOL % ("AVE", 1),
        lambda n: lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 2, 0, True),
        "padding_mode='replicate'",
    ),
    "output padding": (
        DECONV % "",
        lambda n: lambda x: F.conv_transpose2d(x, weight(n), bias(n), 2, 1, 1, 6),
        "its output_padding is 1, Caffe has none",
    ),
    "output padding for padding": (
        'type: "Deconvolution" convolution_param { num_output: 6 kernel_size: 5 stride: 3 pad: 1 group: 6 }',
        lambda n: lambda x: F.conv_transpose2d(x, weight(n), bias(n), 3, 2, 2, 6),
        "its pad is 2, Caffe's is 1; its output_padding is 2, Caffe has none",
    ),
    "mvn unbiased": (
        MVN,
        lambda n: lambda x: (x - x.mean((2, 3), True)) / (x.std((2, 3), keepdim=True) + 1e-9),
        "its variance is unbiased (divided by n - 1)",
    ),
    "mvn eps": (MVN, lambda n: lambda x: F.instance_norm(x, eps=0.05), "it adds an eps of about 0.05 to the variance"),
    "neighboring classes": (
        'type: "Softmax"',
        lambda n: lambda x: x.reshape(3, 11, 6, 1, 8).softmax(2).reshape(x.shape),
        "takes 6 neighboring channels as the classes of an anchor, Caffe one of every 11",
    ),
    "reduced axes": (
        'type: "Reduction" reduction_param { operation: MEAN axis: 1 }',
        lambda n: lambda x: x.mean((2, 3)),
        "it reduces axes 2 to 3, Caffe all from axis 1 on",
    ),
    "reduction": (
        'type: "Reduction" reduction_param { operation: SUMSQ axis: 1 coeff: 0.5 }',
        lambda n: lambda x: 0.5 * x.abs().sum((1, 2, 3)),
        "it computes ASUM, Caffe computes SUMSQ",
    ),
    "sum of magnitudes": (
        'type: "Normalize" norm_param { across_spatial: false }',
        lambda n: lambda x: F.normalize(x, 1, 1) * weight(n).view(-1, 1, 1),
        "it divides by the sum of the magnitudes over channels (L1)",
    ),
    "average for maximum": (POOL % ("MAX", 0), lambda n: lambda x: F.avg_pool2d(x, 3, 2, 0, True), "takes the average"),
    "maximum for average": (
        POOL % ("AVE", 0),
        lambda n: lambda x: F.max_pool2d(x, 3, 2, 0, 1, True),
        "takes the maximum",
    ),
    "pooling stride": (POOL % ("MAX", 0), lambda n: lambda x: F.max_pool2d(x, 3, 1, 0, 1, True), "its stride is 1"),
    "pooling kernel": (
        POOL % ("MAX", 0),
        lambda n: lambda x: F.max_pool2d(x, 2, 2, 0, 1, True),
        "its kernel size is 2",
    ),
    "pooling pad": (POOL % ("MAX", 1), lambda n: lambda x: F.max_pool2d(x, 3, 2, 0, 1, True), "its pad is 0"),
    "lrn alpha": (LRN % 1, lambda n: lambda x: lrn(x, alpha=0.5 * 5), "does not divide alpha"),
    "lrn alpha twice": (LRN % 1, lambda n: lambda x: lrn(x, alpha=0.5 / 5), "divides alpha by the size twice"),
    "lrn k": (LRN % 2, lambda n: lambda x: lrn(x, k=1.0), "uses k = 1, Caffe uses k = 2"),
    "lrn k of AlexNet": (LRN % 1, lambda n: lambda x: lrn(x, k=2.0), "uses k = 2, Caffe uses k = 1"),
    "lrn size": (LRN % 1, lambda n: lambda x: lrn(x, size=3), "its size is 3"),
    "bn factor": (
        BN,
        lambda n: bn(n, lambda x, m, v: (x - m) / (v + 1e-5).sqrt()),
        "does not divide by the scale factor (third blob)",
    ),
    "bn eps": (
        BN,
        lambda n: bn(n, lambda x, m, v: (x - m / FACTOR) / (v / FACTOR + 1e-3).sqrt()),
        "its eps is about 0.001",
    ),
    "bn batch statistics": (
        BN,
        lambda n: lambda x: F.batch_norm(x, None, None, None, None, True, 0.1, 1e-5),
        "statistics of the batch",
    ),
    "bn variance as deviation": (
        BN,
        lambda n: bn(n, lambda x, m, v: (x - m / FACTOR) / (v / FACTOR + 1e-5)),
        "divides by the variance",
    ),
    "convolution flipped": (
        CONV % "",
        lambda n: lambda x: F.conv2d(x, weight(n).flip(2, 3), bias(n)),
        "its kernel is flipped",
    ),
    "kernel transposed": (
        CONV % "",
        lambda n: lambda x: F.conv2d(x, weight(n).transpose(2, 3), bias(n)),
        "height and width of its kernel",
    ),
    "in and out swapped": (
        CONV % "",
        lambda n: lambda x: F.conv2d(x, weight(n).transpose(0, 1), bias(n)),
        "input and output channels",
    ),
    "convolution padding": (
        CONV % "",
        lambda n: lambda x: F.conv2d(x, weight(n), bias(n), padding=1),
        "its pad is 1, Caffe's is 0",
    ),
    "convolution stride": (
        CONV % "stride: 2",
        lambda n: lambda x: F.conv2d(x, weight(n), bias(n)),
        "its stride is 1, Caffe's is 2",
    ),
    "convolution bias": (CONV % "", lambda n: lambda x: F.conv2d(x, weight(n)), "its bias is missing"),
    "a bias too many": (
        CONV % "bias_term: false",
        lambda n: lambda x: F.conv2d(x, weight(n), torch.linspace(-1, 1, 6)),
        "it has a bias",
    ),
    "group order": (
        CONV % "group: 2",
        lambda n: lambda x: F.conv2d(x, weight(n), bias(n), groups=2)[:, [0, 3, 1, 4, 2, 5]],
        "interleaved",
    ),
    "channel order": (CONV % "", lambda n: lambda x: F.conv2d(x.flip(1), weight(n), bias(n)), "its input channels"),
    "inner product transposed": (
        'type: "InnerProduct" inner_product_param { num_output: 7 }',
        lambda n: lambda x: x.flatten(1) @ weight(n).reshape(528, 7) + bias(n),
        "it reads its weight as (in, out)",
    ),
    "inner product flatten": (
        'type: "InnerProduct" inner_product_param { num_output: 7 }',
        lambda n: lambda x: F.linear(x.permute(0, 2, 3, 1).flatten(1), weight(n), bias(n)),
        "order (H, W, C)",
    ),
    "inner product bias": (
        'type: "InnerProduct" inner_product_param { num_output: 7 }',
        lambda n: lambda x: F.linear(x.flatten(1), weight(n)),
        "its bias is missing",
    ),
    "softmax axis": ('type: "Softmax"', lambda n: lambda x: x.softmax(3), "its axis is 3, Caffe's is 1"),
    "log softmax": ('type: "Softmax"', lambda n: lambda x: x.log_softmax(1), "logarithm of the softmax"),
    "dropout active": (
        'type: "Dropout" dropout_param { dropout_ratio: 0.2 }',
        lambda n: lambda x: F.dropout(x.clone(), 0.2, True),
        "dropout is active (training mode) with ratio 0.2",
    ),
    "dropout scales": (
        'type: "Dropout" dropout_param { dropout_ratio: 0.3 }',
        lambda n: lambda x: x * 0.7,
        "scales by 1 - ratio = 0.7",
    ),
    "deconvolution pad": (
        DECONV % "",
        lambda n: lambda x: F.conv_transpose2d(x, weight(n), bias(n), 2, 0, 0, 6),
        "its pad is 0",
    ),
    "deconvolution group": (
        DECONV % "",
        lambda n: lambda x: F.conv_transpose2d(x, weight(n)[:1].repeat(6, 1, 1, 1), bias(n), 2, 1, 0, 6),
        "all groups use the first kernel",
    ),
    "relu slope": (
        'type: "ReLU" relu_param { negative_slope: 0.1 }',
        lambda n: lambda x: F.relu(x),
        "negative slope is missing",
    ),
    "relu another slope": (
        'type: "ReLU"',
        lambda n: lambda x: F.leaky_relu(x, 0.01),
        "its negative slope is 0.01, Caffe's is 0",
    ),
    "relu missing": ('type: "ReLU"', lambda n: lambda x: x, "the layer is missing"),
    "elu alpha": ('type: "ELU"', lambda n: lambda x: F.elu(x, 0.5), "its alpha is 0.5"),
    "power shift": (
        'type: "Power" power_param { scale: 2 shift: 3 }',
        lambda n: lambda x: 2 * x,
        "its shift is missing",
    ),
    "power order": (
        'type: "Power" power_param { scale: 2 shift: 3 }',
        lambda n: lambda x: 2 * (x + 3),
        "shifts before it scales",
    ),
    "scale bias": (
        'type: "Scale" scale_param { bias_term: true }',
        lambda n: lambda x: x * weight(n).view(-1, 1, 1),
        "bias is missing",
    ),
    "sign": ('type: "TanH"', lambda n: lambda x: -torch.tanh(x), "its top has the opposite sign"),
    "factor": ('type: "TanH"', lambda n: lambda x: 2.5 * torch.tanh(x), "its top is 2.5 times Caffe's"),
    "zeros": ('type: "TanH"', lambda n: lambda x: 0 * x, "its top is all zeros"),
    "channels reversed": (
        'type: "TanH"',
        lambda n: lambda x: torch.tanh(x).flip(1),
        "the channels of its top are in reverse order",
    ),
    "height and width": (
        'type: "TanH"',
        lambda n: lambda x: torch.tanh(x).transpose(2, 3),
        "height and width of its top",
    ),
}


def test_parameters_that_are_not_the_files(tmp_path: Path) -> None:
    ported = one_layer(tmp_path, CONV % "")
    case = case_of(ported, random_inputs(ported.net.plan.spec, ported.net.plan.shapes, 0)[0])
    case = dataclasses.replace(case, blobs={"l": [b.copy() for b in case.blobs["l"]]})
    net: Any = ported.net
    net.l.weight.data[3, 1, 2, 0] += 0.5
    (row,) = [r for r in run_rows(ported, case) if r.broken]
    assert "its weight differs from the file's (1 of 324 values, only channel 3 of 6)" in row.cause
    assert "at (3, 1, 2, 0)" in row.cause
    assert "corrected for that" not in row.cause, "nothing was corrected and compared"
    net.l.weight.data = torch.from_numpy(case.blobs["l"][0]).half().float()
    (row,) = [r for r in run_rows(ported, case) if r.broken]
    assert "rounded to half precision" in row.cause


def test_some_channels_only(tmp_path: Path) -> None:
    def wrong(x: Tensor) -> Tensor:
        y = torch.tanh(x)
        y[:, 4] += torch.sin(x[:, 2])
        return y

    ported = one_layer(tmp_path, 'type: "TanH"')
    (row,) = red(ported, lambda net: net._modules.update(l=As(wrong)))
    assert row.cause == "only channel 4 of 6 differs", "a TanH has no parameters to look at"


def test_what_remains_is_named(tmp_path: Path) -> None:
    text, make, _ = SLIPS["pooling rounds down"]
    (row,) = red(one_layer(tmp_path, text), lambda net: net._modules.update(l=As(make(net))))
    assert row.cause == (
        "it rounds the size down (ceil_mode=False), Caffe rounds it up; corrected for that, the largest difference is 0"
    )


def test_what_no_slip_explains_is_not_explained(tmp_path: Path) -> None:
    ported = one_layer(tmp_path, 'type: "TanH"')
    (row,) = red(ported, lambda net: net._modules.update(l=As(lambda x: torch.sin(3 * x) + x.roll(1, 3))))
    assert row.cause == ""


def test_a_factor_of_one_explains_nothing(tmp_path: Path) -> None:
    """Just outside the tolerance, a fitted factor would bring it back in."""
    ported = one_layer(tmp_path, 'type: "TanH"')
    layer = ported.net.plan.spec.by_name["l"]
    x = np.random.default_rng(1).normal(0, 2, (3, 6, 11, 8))
    actual, tolerance = np.tanh(x) * (1 + 4e-7), Tolerance(1e-8, 3e-7)
    assert not difference(np.tanh(x), actual, tolerance).passed
    assert diagnose(layer, [x], [], actual, tolerance=tolerance) is None
    found = diagnose(layer, [x], [], np.tanh(x) * 1.00002, tolerance=tolerance)
    assert found is not None
    assert found.cause == "its top is 1.00002 times Caffe's"


@pytest.mark.parametrize("name", SLIPS)
def test_named(tmp_path: Path, name: str) -> None:
    text, make, words = SLIPS[name]
    ported = one_layer(tmp_path, text)

    original = ported.net.l

    def planted(net: Any) -> None:
        function = make(net)
        net._modules["l"] = As(lambda *b: _with_original(net, original, function, b))

    rows = red(ported, planted)
    assert [r.layer for r in rows] == ["l"]
    assert words in rows[0].cause, rows[0].cause


def _with_original(
    net: Any, original: nn.Module, function: Callable[..., Tensor], bottoms: tuple[Tensor, ...]
) -> Tensor:
    """Runs the mistake with net.l being the real layer, whose parameters it reads."""
    planted = net._modules["l"]
    net._modules["l"] = original
    try:
        return function(*bottoms)
    finally:
        net._modules["l"] = planted
