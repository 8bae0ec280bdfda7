"""The main job in one go and without network: SimpleNet, written as a .caffemodel, converted and verified."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from caffe_port.api import port
from caffe_port.definition.definition import Definition
from caffe_port.errors import printable
from caffe_port.evaluation import registry
from caffe_port.formats import caffemodel
from caffe_port.typing import PathLike

MODEL = "simplenet_cifar10.prototxt"
SEED = 1705  # of the authors' solver

_USAGE = """\
cd {folder} && {python} -c '
from model import {name}
from safetensors.torch import load_file
model = {name}()
model.load_state_dict(load_file("weights.safetensors"))
print(model.eval())'"""


def usage(folder: PathLike, name: str) -> str:
    """What to paste into a shell, to see the model: with the Python that runs here, which has torch."""
    python = "python" if shutil.which("python") == sys.executable else shlex.quote(sys.executable)
    return _USAGE.format(folder=printable(shlex.quote(str(folder))), python=python, name=name)


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A folder for the demo's own .caffemodel, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="caffe-port-") as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Prepared:
    """What the demo converts.

    Attributes:
        definition: what was read of the prototxt; None where the weights' own definition is used.
        weights: the .caffemodel.
        story: a sentence.
    """

    definition: Definition | None
    weights: Path
    story: str


def prepare(folder: Path, weights: PathLike | None = None) -> Prepared:
    """The user's weights, or SimpleNet for CIFAR-10 with weights drawn by Caffe's filler rules.

    BatchNorm's running averages start at zero, which no TEST phase survives: one TRAIN pass over random pictures
    fills them, as the first iteration of training would.

    Args:
        folder: where ``simplenet_cifar10.caffemodel`` is written; it must exist.
        weights: a .caffemodel to use instead.
    """
    if weights is not None:
        return Prepared(None, Path(weights), f"{weights}, by the definition inside it")
    prototxt = registry.model_defs() / MODEL
    ported = port(prototxt, seed=SEED)
    net = ported.net.train()
    generator = torch.Generator().manual_seed(SEED)
    shape = (16, *next(iter(net.plan.shapes.values()))[1:])
    with torch.no_grad():
        net(torch.randn(shape, generator=generator))
    path = folder / Path(MODEL).with_suffix(".caffemodel").name
    caffemodel.write(path, ported.definition.net, net.blobs())
    return Prepared(ported.definition, path, f"SimpleNet for CIFAR-10, weights drawn by Caffe's fillers (seed {SEED})")
