"""Caffe itself as a reference: pycaffe in a process of its own, or wherever a script is taken to."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np

from caffe_port.errors import CaffePortError, DependencyError
from caffe_port.formats import caffemodel, prototxt
from caffe_port.formats.message import Message
from caffe_port.verification.references.reference import Case, Run, StoredReference
from caffe_port.verification.references.trace import Trace

PYTHON_VARIABLE = "CAFFE_PORT_PYCAFFE"
"""Environment variable: the Python interpreter that has pycaffe, where it is not this one."""


def script() -> str:
    """A self-contained program that records a trace where pycaffe is: Python 2.7 or 3, numpy only."""
    return resources.files(__package__).joinpath("dump_with_pycaffe.txt").read_text("utf-8")


@dataclass(frozen=True)
class PycaffeReference:
    """Caffe itself, in a process of its own: a failed check of Caffe ends its process.

    Attributes:
        python: the interpreter that can import caffe.
    """

    python: str = field(default_factory=lambda: os.environ.get(PYTHON_VARIABLE) or sys.executable)

    @property
    def name(self) -> str:
        return "pycaffe"

    def run(self, case: Case) -> Run:
        """Runs the net.

        Raises:
            DependencyError: there is no such interpreter, or it has no pycaffe.
            CaffePortError: Caffe refuses the net; with its own words.
        """
        yield from StoredReference(self.trace(case)).run(case)

    def trace(self, case: Case, backward: bool = False) -> Trace:
        """The whole trace at once; with gradients on request."""
        with tempfile.TemporaryDirectory(prefix="caffe-port-") as folder:
            here = Path(folder)
            (here / "dump.py").write_text(script(), "utf-8")
            (here / "net.prototxt").write_text(prototxt.dump(definition(case)), "utf-8")
            caffemodel.write(
                here / "w.caffemodel",
                definition(case),
                {n: [np.asarray(b) for b in blobs] for n, blobs in case.blobs.items()},
            )
            command = [self.python, "dump.py", "net.prototxt", "w.caffemodel" if case.blobs else "-", "trace.npz"]
            command += ["--phase", case.spec.phase, *(["--backward"] if backward else [])]
            for number, (blob, array) in enumerate(case.inputs.items()):
                np.save(here / f"in{number}.npy", array)
                command += ["--input", f"{blob}=in{number}.npy"]
            try:
                done = subprocess.run(command, cwd=here, capture_output=True, text=True, errors="replace")  # noqa: S603
            except OSError as error:
                raise DependencyError(f"cannot be run: {error.strerror}", self.python, _HINT) from None
            if done.returncode:
                raise _failure(done.stderr, self.python, case)
            return Trace.load(here / "trace.npz")


_HINT = (
    f"Set {PYTHON_VARIABLE} to a Python that has pycaffe, or record a trace where Caffe is: caffe-port dump --script"
)


def _failure(stderr: str, python: str, case: Case) -> CaffePortError:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if any("No module named" in line and "caffe" in line for line in lines):
        return DependencyError("has no pycaffe", python, _HINT)
    telling = [line for line in lines if "Check failed" in line or "Unknown layer type" in line or "Error" in line]
    said = (telling or lines or ["it said nothing"])[-1][:300]
    return CaffePortError(f"Caffe refuses the net: {said}", case.spec.path)


def definition(case: Case) -> Message:
    """The net of a case as a NetParameter for Caffe: Input layers with shapes, one phase, no rules."""
    layers = []
    for layer in case.spec.layers:
        if layer.is_input:
            shapes = [Message("BlobShape", dim=list(case.inputs[blob].shape)) for blob in layer.tops]
            parameter = Message("InputParameter", shape=shapes)
            layers.append(
                Message("LayerParameter", name=layer.name, type="Input", top=list(layer.tops), input_param=parameter)
            )
            continue
        bare = layer.param.copy(
            include=None, exclude=None, phase=None, blobs=None, name=layer.name, bottom=list(layer.bottoms)
        )
        layers.append(bare)
    return Message("NetParameter", name=case.spec.name or "net", force_backward=True, layer=layers)
