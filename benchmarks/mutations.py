"""Plants porting mistakes in nets, one at a time, and counts how many are detected, located and named.

    python benchmarks/mutations.py [--write docs/verification.md]

Nets: SimpleNet (slim), LeNet, a net like GoogLeNet, and MTCNN's three if the shared folder is available. A mistake that
does not change any value (such as rounding a size that divides evenly) is not counted.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caffe_port.api import Ported, port
from caffe_port.verification.comparison import Row, Tolerance
from caffe_port.verification.inputs import random_inputs
from caffe_port.verification.references.numpy_formulas import NumPyReference
from caffe_port.verification.references.reference import Case, StoredReference, record
from caffe_port.verification.runner import run
from caffe_port.verification.subject import case_of

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("CAFFE_PORT_SHARED") or ROOT.parent / "shared")
PER_NET = 2
"""The number of layers per net in which a mistake of one kind is planted."""

Slip = Callable[[Any, Tensor], Tensor]
"""(the real layer, its bottom) -> the top with the mistake."""


def _pool(layer: Any, x: Tensor, **changes: Any) -> Tensor:
    old = {name: getattr(layer, name) for name in changes}
    try:
        for name, value in changes.items():
            setattr(layer, name, value)
        return layer(x)  # type: ignore[no-any-return]
    finally:
        for name, value in old.items():
            setattr(layer, name, value)


def _conv(layer: Any, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, **options: Any) -> Tensor:
    told = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}
    own = layer.weight if weight is None else weight
    return F.conv2d(x, own, layer.bias if bias is None else bias, **{**told, **options})


def _perturbed(layer: Any, x: Tensor) -> Tensor:
    weight = layer.weight.clone()
    weight.view(-1)[weight.numel() // 3] += 0.5 * weight.std()
    return _conv(layer, x, weight)


def _stats(layer: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance, factor = (layer.get_blob(name) for name in layer.blob_names())
    return mean.view(-1, 1, 1), variance.view(-1, 1, 1), 1 / factor if float(factor) else factor * 0


def _unscaled(layer: Any, x: Tensor) -> Tensor:
    mean, variance, _ = _stats(layer)
    return (x - mean) / (variance + layer.eps).sqrt()


def _eps(layer: Any, x: Tensor) -> Tensor:
    mean, variance, by = _stats(layer)
    return (x - mean * by) / (variance * by + 1e-3).sqrt()


def _linear(layer: Any, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    own = layer.weight if weight is None else weight
    return F.linear(x.flatten(1), own, layer.bias if bias is None else bias)


def _hwc(layer: Any, x: Tensor) -> Tensor:
    return _linear(layer, x.permute(0, 2, 3, 1).flatten(1)) if x.ndim == 4 else _linear(layer, x)


def _lrn(layer: Any, x: Tensor, scale: float = 1.0, k: float = 1.0) -> Tensor:
    args = layer.args
    size, alpha, beta = (args.get(n, d) for n, d in (("local_size", 5), ("alpha", 1.0), ("beta", 0.75)))
    return F.local_response_norm(x, size, alpha * scale, beta, k)


SLIPS: dict[str, dict[str, tuple[Slip, str]]] = {
    "Pooling": {
        "rounds down": (lambda m, x: _pool(m, x, ceil_mode=not m.ceil_mode), r"rounds the size"),
        "average for maximum, or the reverse": (
            lambda m, x: _pool(m, x, pool="AVE" if m.pool == "MAX" else "MAX"),
            r"takes the (average|maximum)",
        ),
        "divisor without padding": (
            lambda m, x: F.avg_pool2d(x, m.kernel_size, m.stride, m.padding, True, False) if m.pool == "AVE" else m(x),
            r"does not count the padding",
        ),
    },
    "Convolution": {
        "kernel flipped": (lambda m, x: _conv(m, x, m.weight.flip(2, 3)), r"kernel is flipped"),
        "kernel transposed": (lambda m, x: _conv(m, x, m.weight.transpose(2, 3)), r"height and width"),
        "channel order": (lambda m, x: _conv(m, x, m.weight.flip(1)), r"its input channels"),
        "bias missing": (lambda m, x: _conv(m, x, bias=m.bias * 0) if m.bias is not None else m(x), r"bias is missing"),
        "padding": (lambda m, x: _conv(m, x, padding=tuple(p + 1 for p in m.padding)), r"its pad is"),
        "one weight perturbed": (_perturbed, r"only channels?"),
    },
    "BatchNorm": {
        "scale factor not divided out": (_unscaled, r"scale factor"),
        "eps": (_eps, r"its eps is about 0\.001"),
        "statistics of the batch": (
            lambda m, x: F.batch_norm(x, None, None, None, None, True, 0.1, m.eps),
            r"statistics of the batch",
        ),
    },
    "Scale": {"bias missing": (lambda m, x: m(x) - m(torch.zeros_like(x)), r"bias is missing")},
    "ReLU": {
        "missing": (lambda _, x: x.clone(), r"the layer is missing"),
        "leaky": (lambda _, x: F.leaky_relu(x, 0.01), r"negative slope is 0\.01"),
    },
    "PReLU": {"slope missing": (lambda _, x: F.relu(x), r"negative slope is missing")},
    "LRN": {
        "alpha not divided": (lambda m, x: _lrn(m, x, scale=5.0), r"not divide alpha"),
        "k of another net": (lambda m, x: _lrn(m, x, k=2.0), r"uses k = 2"),
    },
    "InnerProduct": {
        "flatten order": (_hwc, r"flattens in the order"),
        "weight transposed": (
            lambda m, x: _linear(m, x, m.weight.reshape(m.weight.shape[::-1]).T),
            r"its weight as \(in, out",
        ),
        "bias missing": (lambda m, x: _linear(m, x, bias=m.bias * 0), r"bias is missing"),
    },
    "Softmax": {
        "logarithm": (lambda m, x: m(x).log(), r"logarithm"),
        "missing": (lambda _, x: x.clone(), r"its top is scores"),
    },
    "Dropout": {"active": (lambda _, x: F.dropout(x.clone(), 0.5, True), r"dropout is active")},
}


class Planted(nn.Module):
    """A layer with a mistake, in place of the real one."""

    def __init__(self, slip: Slip, layer: nn.Module) -> None:
        super().__init__()
        self.slip = slip
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.slip(self.layer, x)


def nets(folder: Path) -> Iterator[tuple[str, Ported]]:
    """The nets with their parameters; initialized ones get nonzero biases and statistics."""
    yield (
        "SimpleNet",
        _drawn(port(ROOT / "model_defs/simplenet_slim_310k_cifar10.prototxt", input_shapes={"data": (2, 3, 32, 32)})),
    )
    for name, text in (("LeNet", _lenet()), ("GoogLeNet-like", _googlenet())):
        path = folder / f"{name}.prototxt"
        path.write_text(text)
        yield name, _drawn(port(path))
    zoo = SHARED / "models/zoo/mtcnn_v2"
    for n in (1, 2, 3) if zoo.is_dir() else ():
        yield f"MTCNN det{n}", port(zoo / f"det{n}.prototxt", zoo / f"det{n}.caffemodel")


def _drawn(ported: Ported) -> Ported:
    generator = torch.Generator().manual_seed(0)
    net: Any = ported.net
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.2, generator=generator)
        elif "scale" in name:
            parameter.data.uniform_(0.5, 1.5, generator=generator)
    if any(step.layer.type == "BatchNorm" for step in net.plan.steps):
        net.train()
        plan = net.plan
        with torch.no_grad():
            for seed in range(20):
                inputs = random_inputs(plan.spec, plan.shapes, seed)[0]
                net(*(torch.from_numpy(inputs[b]) for b in plan.inputs))
        net.eval()
    return ported


def trial(ported: Ported, case: Case, reference: StoredReference, layer: str, slip: Slip) -> list[Row] | None:
    """The rows of the report with a mistake planted; None if it does not change any value."""
    net = ported.net
    name = net.names[layer]
    own: Any = net._modules[name]
    net._modules[name] = Planted(slip, own)
    try:
        torch.manual_seed(0)
        with torch.inference_mode():
            rows = list(run(net, reference, case, Tolerance()))
    except AttributeError as error:  # a slip of what this module does not have, such as the bias of one without
        if error.obj is not own:
            raise
        return None
    finally:
        net._modules[name] = own
    mine = next(row for row in rows if row.layer == layer)
    same = mine.isolated is not None and mine.isolated.passed and mine.isolated.greatest < 1e-6
    return None if same else rows


def table(folder: Path) -> tuple[list[str], list[str]]:
    """The lines of the table, and the mistakes that were not named."""
    lines = ["| net | mistakes | detected | located | named | false alarms on the clean net |", "|---" * 6 + "|"]
    missed: list[str] = []
    total = np.zeros(5, int)
    for net_name, ported in nets(folder):
        plan = ported.net.plan
        inputs = random_inputs(plan.spec, plan.shapes, 0)[0]
        case = case_of(ported, inputs)
        reference = StoredReference(record(NumPyReference(), case))
        with torch.inference_mode():
            alarms = sum(row.status == "failed" for row in run(ported.net, reference, case, Tolerance()))
        counts = np.zeros(4, int)
        for type_, slips in SLIPS.items():
            layers = [step.layer.name for step in plan.steps if step.layer.type == type_]
            for slip_name, (slip, words) in slips.items():
                planted = 0
                for layer in layers[:: max(1, len(layers) // PER_NET)]:
                    rows = trial(ported, case, reference, layer, slip) if planted < PER_NET else None
                    if rows is None:
                        continue
                    planted += 1
                    broken = [row for row in rows if row.broken]
                    located = [row.layer for row in broken] == [layer]
                    named = located and re.search(words, broken[0].cause) is not None
                    counts += (1, any(row.status == "failed" for row in rows), located, named)
                    if not named:
                        said = broken[0].cause if broken else "nothing"
                        missed.append(f"{net_name}, {layer} ({type_}), {slip_name}: {said or 'no cause named'}")
        total += (*counts, alarms)
        lines.append(f"| {net_name} | " + " | ".join(map(str, (*counts, alarms))) + " |")
    shares = [f"{n} ({100 * n / total[0]:.0f} %)" for n in total[1:4]]
    lines.append(f"| **all** | {total[0]} | " + " | ".join(shares) + f" | {total[4]} |")
    return lines, missed


def _lenet() -> str:
    fill = 'weight_filler { type: "xavier" }'
    return f"""
name: "LeNet"
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 3 dim: 1 dim: 29 dim: 27 }} }} }}
layer {{ name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param {{ num_output: 20 kernel_size: 5 {fill} }} }}
layer {{ name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param {{ kernel_size: 2 stride: 2 }} }}
layer {{ name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
  convolution_param {{ num_output: 50 kernel_size: 5 {fill} }} }}
layer {{ name: "pool2" type: "Pooling" bottom: "conv2" top: "pool2" pooling_param {{ kernel_size: 2 stride: 2 }} }}
layer {{ name: "ip1" type: "InnerProduct" bottom: "pool2" top: "ip1" inner_product_param {{ num_output: 500 {fill} }} }}
layer {{ name: "relu1" type: "ReLU" bottom: "ip1" top: "ip1" }}
layer {{ name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2" inner_product_param {{ num_output: 10 {fill} }} }}
layer {{ name: "prob" type: "Softmax" bottom: "ip2" top: "prob" }}
"""


def _googlenet() -> str:
    shape = "shape { dim: 2 dim: 3 dim: 64 dim: 71 }"
    lines = ['name: "GoogLeNet-like"']
    lines.append(f'layer {{ name: "data" type: "Input" top: "data" input_param {{ {shape} }} }}')

    def conv(name: str, bottom: str, out: int, kernel: int, pad: int = 0, stride: int = 1) -> str:
        told = f"num_output: {out} kernel_size: {kernel} pad: {pad} stride: {stride}"
        lines.append(
            f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" '
            f'convolution_param {{ {told} weight_filler {{ type: "msra" }} }} }}'
        )
        lines.append(f'layer {{ name: "{name}_relu" type: "ReLU" bottom: "{name}" top: "{name}" }}')
        return name

    def pool(name: str, bottom: str, rest: str) -> str:
        head = f'name: "{name}" type: "Pooling" bottom: "{bottom}" top: "{name}"'
        lines.append(f"layer {{ {head} pooling_param {{ {rest} }} }}")
        return name

    def norm(name: str, bottom: str) -> str:
        lines.append(
            f'layer {{ name: "{name}" type: "LRN" bottom: "{bottom}" top: "{name}" '
            "lrn_param { local_size: 5 alpha: 0.1 beta: 0.75 } }"
        )
        return name

    top = norm("norm1", pool("pool1", conv("conv1", "data", 16, 7, 3, 2), "pool: MAX kernel_size: 3 stride: 2"))
    top = norm("norm2", conv("conv2", top, 24, 3, 1))
    top = pool("pool2", top, "pool: MAX kernel_size: 3 stride: 2")
    for n in range(1, 5):
        parts = [
            conv(f"i{n}_1x1", top, 8, 1),
            conv(f"i{n}_3x3", conv(f"i{n}_3x3r", top, 6, 1), 12, 3, 1),
            conv(f"i{n}_5x5", conv(f"i{n}_5x5r", top, 4, 1), 6, 5, 2),
            conv(f"i{n}_proj", pool(f"i{n}_pool", top, "kernel_size: 3 stride: 1 pad: 1"), 6, 1),
        ]
        top = f"i{n}"
        bottoms = " ".join(f'bottom: "{part}"' for part in parts)
        lines.append(f'layer {{ name: "{top}" type: "Concat" {bottoms} top: "{top}" }}')
        if n == 2:
            top = pool("pool3", top, "pool: AVE kernel_size: 3 stride: 2 pad: 1")
    lines.append(f'layer {{ name: "drop" type: "Dropout" bottom: "{top}" top: "{top}" }}')
    lines.append(
        f'layer {{ name: "classifier" type: "InnerProduct" bottom: "{top}" top: "classifier" '
        'inner_product_param { num_output: 11 weight_filler { type: "xavier" } } }'
    )
    lines.append('layer { name: "prob" type: "Softmax" bottom: "classifier" top: "prob" }')
    return "\n".join(lines)


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--write", type=Path, help="Markdown file to update: the table replaces what is between its mutation marks"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines, missed = table(Path(folder))
    print("\n".join(lines))
    if missed:
        print("\nnot named as planted:\n  " + "\n  ".join(missed))
    if arguments.write:
        text = arguments.write.read_text("utf-8")
        begin, end = "<!-- mutations -->", "<!-- /mutations -->"
        head, rest = text.split(begin, 1)
        arguments.write.write_text(f"{head}{begin}\n{chr(10).join(lines)}\n{end}{rest.split(end, 1)[1]}", "utf-8")


if __name__ == "__main__":
    main()
