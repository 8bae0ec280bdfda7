"""The files of ``caffe-port demo``: SimpleNet as a .caffemodel, made without network access."""

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
SEED = 1705  # the seed in the authors' solver

_USAGE = """\
cd {folder} && {python} -c '
from model import {name}
from safetensors.torch import load_file
model = {name}()
model.load_state_dict(load_file("weights.safetensors"))
print(model.eval())'"""


def usage(folder: PathLike, name: str) -> str:
    """Shell commands that show the model, for the running Python, which has torch."""
    found = shutil.which("python")  # in one folder, python and python3.12 are the same
    active = found is not None and Path(found).parent == Path(sys.executable).parent
    python = "python" if active else shlex.quote(sys.executable)
    return _USAGE.format(folder=printable(shlex.quote(str(folder))), python=python, name=name)


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A temporary folder for the demo's .caffemodel."""
    with tempfile.TemporaryDirectory(prefix="caffe-port-") as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Prepared:
    """The demo's model.

    Attributes:
        definition: the net's definition; None if the definition inside the weights is used.
        weights: the .caffemodel.
        story: a description for the user.
    """

    definition: Definition | None
    weights: Path
    story: str


def prepare(folder: Path, weights: PathLike | None = None) -> Prepared:
    """The user's weights, or SimpleNet for CIFAR-10 with weights initialized by Caffe's fillers.

    BatchNorm's statistics are initially zero, with which phase TEST gives no useful output. One TRAIN pass over random
    images fills them, as the first iteration of training would.

    Args:
        folder: an existing folder for ``simplenet_cifar10.caffemodel``.
        weights: a .caffemodel to use instead.
    """
    if weights is not None:
        return Prepared(None, Path(weights), f"{weights}, with its own definition")
    prototxt = registry.model_defs() / MODEL
    ported = port(prototxt, seed=SEED)
    net = ported.net.train()
    generator = torch.Generator().manual_seed(SEED)
    shape = (16, *next(iter(net.plan.shapes.values()))[1:])
    with torch.no_grad():
        net(torch.randn(shape, generator=generator))
    path = folder / Path(MODEL).with_suffix(".caffemodel").name
    caffemodel.write(path, ported.definition.net, net.blobs())
    story = f"SimpleNet for CIFAR-10, weights initialized by Caffe's fillers (seed {SEED})"
    return Prepared(ported.definition, path, story)
