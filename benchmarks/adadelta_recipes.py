"""Measures what differs between the Caffe recipe (AdaDelta, weight decay 0.005) and its PyTorch port, on a CPU.

    python benchmarks/adadelta_recipes.py --root DIR [--iterations 300] [--only NAME]

Every recipe starts from the same weights and sees the same batches of CIFAR-10. The net is the slim one (310 K), which
has no dropout, so only the recipe differs. The results are in docs/training.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from caffe_port.data import datasets
from caffe_port.data.datasets import ImageFeed
from caffe_port.data.prepare import Preprocessor
from caffe_port.definition.definition import Definition
from caffe_port.evaluation import evaluate, registry
from caffe_port.formats.prototxt import parse
from caffe_port.net.net import Net
from caffe_port.training import solver
from caffe_port.training.solver import SolverSpec

MODEL = "simplenet_slim_310k_cifar10.prototxt"
POOL = """
layer { name: "pool4_0" type: "Pooling" bottom: "conv4_0" top: "pool4_0"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
"""
NORM = """
layer {{ name: "bn_{0}" type: "BatchNorm" bottom: "{0}" top: "{0}"
  batch_norm_param {{ moving_average_fraction: 0.95 }} }}
layer {{ name: "scale_{0}" type: "Scale" bottom: "{0}" top: "{0}" scale_param {{ bias_term: true }} }}
"""
RECIPES = {  # name: (optimizer, weight decay, whether all parameters have the same decay and rate, net)
    "caffe": ("caffe", 0.005, False, "caffe"),
    "torch, same groups": ("torch", 0.005, False, "caffe"),
    "decay 0.001": ("torch", 0.001, False, "caffe"),
    "no decay": ("torch", 0.0, False, "caffe"),
    "decay on everything": ("torch", 0.005, True, "caffe"),
    "one more pooling": ("torch", 0.005, True, "pool"),
    "port: pooling, BatchNorm": ("torch", 0.005, True, "port"),
    "port, decay 0.001": ("torch", 0.001, True, "port"),
}


def definition(kind: str) -> Definition:
    """The net of a recipe: Caffe's, or with the port's extra pooling, or also with its additional BatchNorm layers."""
    text = (registry.model_defs() / MODEL).read_text()
    if kind != "caffe":
        before = 'layer {\n  name: "cccp4"'
        text = text.replace(before, POOL + before).replace(
            'type: "Convolution" bottom: "conv4_0" top: "cccp4"', 'type: "Convolution" bottom: "pool4_0" top: "cccp4"'
        )
        # the last feature map would be smaller than the kernel
        head, tail = text.split('bottom: "cccp6" top: "poolcp6"')
        text = head + 'bottom: "cccp6" top: "poolcp6"' + tail.replace("kernel_size: 2 stride: 2", "kernel_size: 1", 1)
    if kind == "port":
        for name in ("cccp4", "cccp5", "cccp6"):
            before = f'layer {{ name: "relu_{name}"'
            assert before in text
            text = text.replace(before, NORM.format(name) + before)
    return Definition.parse(parse(text, "NetParameter", MODEL), MODEL)


def build(kind: str, shape: tuple[int, ...]) -> Net:
    found = definition(kind)
    return Net(found.spec("TEST"), {"data": shape, "label": shape[:1]}, found.spec("TRAIN"), seed=1)


def optimizer(net: Net, how: str, decay: float, plain: bool) -> torch.optim.Optimizer:
    if plain:
        return torch.optim.Adadelta(net.parameters(), 0.1, rho=0.9, eps=1e-3, weight_decay=decay)
    spec = SolverSpec("AdaDelta", 0.1, "fixed", 1, momentum=0.9, delta=1e-3, weight_decay=decay)
    ours = solver.build(spec, net)
    if how == "caffe":
        return ours
    groups = [
        {"params": g["params"], "lr": 0.1 * g["lr_mult"], "weight_decay": decay * g["decay_mult"]}
        for g in ours.param_groups
    ]
    return torch.optim.Adadelta(groups, rho=0.9, eps=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--root")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--only")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    train, test = (datasets.load(args.data, split, args.root) for split in datasets.SPLITS)
    # every fifth: the packed test set is sorted by class
    test = replace(test, images=test.images[::5], labels=test.labels[::5])
    plan = registry.entry("simplenet-slim-310k-cifar10").preprocessing.changed(mirror_test=False)
    prepare = Preprocessor(plan, train.channel_order)
    first: list[float] = []
    results = {}
    for name, (how, decay, plain, kind) in RECIPES.items():
        if args.only and name not in (args.only, "caffe"):
            continue
        began = time.monotonic()
        net = build(kind, (100, 3, 32, 32)).train()
        update = optimizer(net, how, decay, plain)
        feed = ImageFeed(train, prepare, 100, train=True, shuffle=True, seed=1)
        losses = []
        for it in range(args.iterations):
            update.zero_grad(set_to_none=True)
            _, loss = net.forward_with_loss(*feed.batch(it))
            loss.backward()
            update.step()
            losses.append(loss.item())
        first = first or losses
        scores = Scores(net)
        accuracy = evaluate.evaluate(scores, test, prepare).accuracy
        apart = next((k for k, (a, b) in enumerate(zip(losses, first, strict=True)) if abs(a - b) > 1e-3 * b), None)
        norm = sum(float(p.detach().square().sum()) for p in net.parameters()) ** 0.5
        results[name] = {
            "loss": sum(losses[-50:]) / len(losses[-50:]),
            "accuracy": accuracy,
            "norm": norm,
            "differs_from": apart,
            "first_losses": losses[:5],
            "seconds": round(time.monotonic() - began),
        }
        print(name, json.dumps(results[name]), flush=True)
    if args.out:
        args.out.write_text(json.dumps(results, indent=2))


class Scores(torch.nn.Module):
    """The scores of a net that was built with its loss."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tops = {}
        for turn in self.net.steps(x, torch.zeros(len(x))):
            tops[turn.layer.name] = turn.tops
        return tops["ip1"][0]


if __name__ == "__main__":
    sys.exit(main())
