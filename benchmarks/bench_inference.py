"""Compares a converted net with the same net written by hand, and with OpenCV; prints Markdown tables.

    python benchmarks/bench_inference.py [--seconds 100] [--threads 2] [--device cpu|cuda] [--no-compile]

Every round runs every row once, in a new order, so that other load on the machine affects all of them. The ratio is a
row's time divided by that of the handwritten net in the same round: the median over all rounds, with quartiles. Rows
marked "compile" use torch.compile, and "freezing" also Inductor's constant folding and weight packing.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch._inductor.config
from torch import Tensor, nn

import caffe_port
from caffe_port.api import Ported
from caffe_port.emit import caffe_files
from caffe_port.emit.model_source import model
from caffe_port.emit.self_check import read_model

ROOT = Path(__file__).resolve().parent.parent
BASE = "handwritten"


# -- the nets, as one writes them in PyTorch --------------------------------------------------------------------------


def normalised(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class SimpleNet(nn.Module):
    """SimpleNet for CIFAR-10, 5.48 M parameters: model_defs/simplenet_cifar10.prototxt."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 64), (64, 128), (128, 128)):
            layers += [*normalised(inputs, outputs), nn.Dropout(0.2)]
        layers += [*normalised(128, 128), nn.MaxPool2d(2, 2), nn.Dropout(0.2)]
        for _ in range(2):
            layers += [*normalised(128, 128), nn.Dropout(0.2)]
        layers += [nn.Conv2d(128, 256, 3, padding=1), nn.MaxPool2d(2, 2)]
        layers += [nn.BatchNorm2d(256), nn.ReLU(inplace=True), nn.Dropout(0.2)]
        for _ in range(2):
            layers += [*normalised(256, 256), nn.Dropout(0.2)]
        layers += [nn.MaxPool2d(2, 2), *normalised(256, 512), nn.Dropout(0.2)]
        layers += [nn.Conv2d(512, 2048, 1), nn.ReLU(inplace=True), nn.Dropout(0.2)]
        layers += [nn.Conv2d(2048, 256, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2), nn.Dropout(0.2)]
        layers += [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut, as in ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module | None = None
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.shortcut is None else self.shortcut(x)
        return self.relu(y)  # type: ignore[no-any-return]


class ResNet18(nn.Module):
    """ResNet-18; its prototxt is written by :func:`resnet18`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        sizes = ((64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2))
        self.blocks = nn.Sequential(*(Block(*size) for size in (*sizes, (512, 512, 1))))
        self.fc = nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.pool(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))  # type: ignore[no-any-return]


def resnet18() -> str:
    """The prototxt of ResNet-18."""
    text = ['name: "ResNet18"']

    def add(name: str, kind: str, bottoms: str, more: str = "") -> str:
        ends = " ".join(f'bottom: "{bottom}"' for bottom in bottoms.split())
        text.append(f'layer {{ name: "{name}" type: "{kind}" {ends} top: "{name}" {more} }}')
        return name

    def conv(name: str, bottom: str, outputs: int, kernel: int, stride: int, relu: bool = True) -> str:
        size = f"num_output: {outputs} kernel_size: {kernel} stride: {stride} pad: {kernel // 2} bias_term: false"
        made = add(name, "Convolution", bottom, f'convolution_param {{ {size} weight_filler {{ type: "msra" }} }}')
        made = add(f"{name}_scale", "Scale", add(f"{name}_bn", "BatchNorm", made), "scale_param { bias_term: true }")
        return add(f"{name}_relu", "ReLU", made) if relu else made

    add("data", "Input", "", "input_param { shape { dim: 1 dim: 3 dim: 224 dim: 224 } }")
    x = add("pool1", "Pooling", conv("conv1", "data", 64, 7, 2), "pooling_param { kernel_size: 3 stride: 2 }")
    for stage, outputs in enumerate((64, 128, 256, 512), 1):
        for block in "ab":
            name, stride = f"res{stage}{block}", 2 if block == "a" and stage > 1 else 1
            y = conv(f"{name}_2", conv(f"{name}_1", x, outputs, 3, stride), outputs, 3, 1, relu=False)
            x = conv(f"{name}_0", x, outputs, 1, stride, relu=False) if stride > 1 else x
            x = add(f"{name}_relu", "ReLU", add(name, "Eltwise", f"{y} {x}"))
    x = add("pool5", "Pooling", x, "pooling_param { pool: AVE global_pooling: true }")
    add("fc", "InnerProduct", x, 'inner_product_param { num_output: 1000 weight_filler { type: "msra" } }')
    return "\n".join(text)


# -- the rows -------------------------------------------------------------------------------------------------------


def prepare(ported: Ported, hand: nn.Module) -> nn.Module:
    """Gives the net statistics to normalize with, and copies all its values to the handwritten one."""
    draw = torch.Generator().manual_seed(0)
    for layer in ported.net.caffe_layers().values():
        if type(layer).__name__ == "BatchNorm":
            size = layer.get_blob("mean").shape
            layer.set_blob("mean", 0.1 * torch.randn(size, generator=draw))
            layer.set_blob("variance", 1 + torch.rand(size, generator=draw))
            layer.set_blob("scale_factor", torch.ones(1))
    state: dict[tuple[str, ...], list[dict[str, Tensor]]] = {}
    for part in _modules(_model(ported, False)):
        state.setdefault(_kind(part), []).append(part.state_dict())
    for part in _modules(hand):
        part.load_state_dict(state[_kind(part)].pop(0))
    assert not any(state.values())
    return hand.eval()


def _modules(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.Linear))]


def _kind(module: nn.Module) -> tuple[str, ...]:
    """The kind of a module; two nets have their modules of one kind in the same order."""
    return type(module).__name__, *(str(tuple(value.shape)) for value in module.state_dict().values())


def _model(ported: Ported, fold: bool) -> nn.Module:
    made = model(ported.net, fold)
    return read_model(made.source, made.class_name, made.state)


def rows(ported: Ported, hand: nn.Module, x: Tensor, compiled: bool) -> dict[str, Callable[[], Tensor]]:
    """The functions to time, by name."""
    plain, folded = _model(ported, False).to(x.device), _model(ported, True).to(x.device)
    nets = {BASE: hand, "Net": ported.net, "model.py": plain, "model.py --fold": folded}
    found: dict[str, Callable[[], Tensor]] = {name: _call(net, x) for name, net in nets.items()}
    last = x.contiguous(memory_format=torch.channels_last)
    moved = {
        name: copy.deepcopy(nets[name]).to(memory_format=torch.channels_last) for name in (BASE, "model.py --fold")
    }
    found |= {f"{name}, channels_last": _call(net, last) for name, net in moved.items()}
    if compiled:
        found |= {f"{name}, compile": _compiled(net, x) for name, net in nets.items()}
        found["model.py --fold, channels_last, freezing"] = _compiled(moved["model.py --fold"], last, True)
    return found


def _call(net: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return lambda: net(x)


def _compiled(net: nn.Module, x: Tensor, freezing: bool = False) -> Callable[[], Tensor]:
    made = torch.compile(copy.deepcopy(net), fullgraph=True)
    with torch._inductor.config.patch(freezing=freezing):  # torch 2.14.1 ignores it as an option of torch.compile
        made(x)
    return lambda: made(x)


def opencv(ported: Ported, x: Tensor, threads: int) -> tuple[str, Callable[[], Tensor]]:
    import cv2

    cv2.setNumThreads(threads)
    with tempfile.TemporaryDirectory() as folder:
        net = cv2.dnn.readNetFromCaffe(*map(str, caffe_files.write_caffe(ported.net, Path(folder) / "caffe")))
    data = x.numpy()

    def run() -> Tensor:
        net.setInput(data)
        return torch.from_numpy(net.forward())

    return f"OpenCV {cv2.__version__}", run


# -- timing ---------------------------------------------------------------------------------------------------------


def agree(found: Mapping[str, Callable[[], Tensor]]) -> None:
    """Exits unless the outputs of every row agree with those of the handwritten net."""
    wanted = found[BASE]()
    for name, run in found.items():
        difference = float((run() - wanted).abs().max() / wanted.abs().max())
        if difference > 1e-3:
            sys.exit(f"{name} differs from the handwritten net by {difference:.2g} of its largest output")


def measure(found: Mapping[str, Callable[[], Tensor]], seconds: float, device: str) -> dict[str, list[float]]:
    """The seconds that every row took in every round; at least five rounds."""
    times: dict[str, list[float]] = {name: [] for name in found}
    order = list(found)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[BASE]) < 5:
        random.shuffle(order)
        for name in order:
            _wait(device)
            start = time.perf_counter()
            found[name]()
            _wait(device)
            times[name].append(time.perf_counter() - start)
    return times


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def table(title: str, times: Mapping[str, list[float]]) -> str:
    lines = [
        f"### {title}, {len(times[BASE])} rounds",
        "",
        "| row | median ms | least ms | ratio | quartiles |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own, times[BASE], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        lines.append(
            f"| {name} | {statistics.median(own) * 1e3:.2f} | {min(own) * 1e3:.2f} "
            f"| {middle:.2f} | {low:.2f} to {high:.2f} |"
        )
    return "\n".join([*lines, ""])


def machine(device: str, threads: int) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    cpu = Path("/proc/cpuinfo")
    if device == "cpu" and cpu.is_file():
        name = next((line.split(": ")[1] for line in cpu.read_text().splitlines() if "model name" in line), name)
    today = datetime.datetime.now(datetime.timezone.utc).date()
    return (
        f"{today}, {name}, {threads} threads, Python {platform.python_version()}, torch {torch.__version__}, "
        f"caffe-port {caffe_port.__version__}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=60, help="total time for timing (default 60), not including compilation"
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="number of threads for torch and OpenCV"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true", help="leave out the rows of torch.compile")
    told = parser.parse_args()
    torch.set_num_threads(told.threads)
    random.seed(0)
    print(machine(told.device, told.threads))
    with tempfile.TemporaryDirectory() as folder:
        residual = Path(folder) / "resnet18.prototxt"
        residual.write_text(resnet18())
        nets = [
            (caffe_port.port(ROOT / "model_defs/simplenet_cifar10.prototxt"), SimpleNet(), 32, (1, 64)),
            (caffe_port.port(residual), ResNet18(), 224, (1,)),
        ]
    for ported, hand, side, batches in nets:
        prepare(ported, hand)
        for batch in batches:
            x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))
            torch._dynamo.reset()
            with torch.no_grad():
                found = {}
                if told.device == "cpu":
                    name, run = opencv(ported, x, told.threads)
                    found[name] = run
                ported.net.to(told.device)
                found = rows(ported, hand.to(told.device), x.to(told.device), not told.no_compile) | found
                agree(found)
                times = measure(found, told.seconds / 3, told.device)
            print(table(f"{type(hand).__name__}, batch {batch}, {side} x {side}, {told.device}", times), flush=True)
            ported.net.to("cpu")


if __name__ == "__main__":
    main()
