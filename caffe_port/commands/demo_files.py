"""The files of ``caffe-port demo``."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from caffe_port.errors import printable
from caffe_port.evaluation import registry
from caffe_port.typing import PathLike

ENTRY = "simplenet-slim-300k-cifar10-retrained"

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


def trained() -> tuple[Path, str]:
    """The weights of :data:`ENTRY`, which are in model_defs, and a description for the user."""
    entry = registry.entry(ENTRY)
    assert entry.weights is not None
    story = (
        f"SimpleNet with {entry.parameters:,} parameters, trained with caffe-port: "
        f"{entry.reported[0].accuracy:.2f} % of CIFAR-10's test images (docs/results)"
    )
    return registry.model_defs() / entry.weights.file, story
