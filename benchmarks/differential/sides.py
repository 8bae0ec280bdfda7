"""The two sides of a comparison: Caffe in a process of its own, and caffe-port here.

Both make an :class:`Outcome`. Its arrays are named as in a trace: ``blob:<layer>:<j>`` parameters, ``top:<layer>:<k>``,
``after:<layer>:<j>`` parameters that a forward pass changed, ``loss``, ``topdiff:<blob>`` gradients fed to outputs,
``grad:<blob>`` and ``gradparam:<layer>:<j>``.
"""

from __future__ import annotations

import collections
import os
import queue
import re
import subprocess
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import caffe_worker
import numpy as np
import torch
from case import Arrays, Case
from torch import Tensor, nn

from caffe_port.definition.definition import Definition
from caffe_port.errors import CaffePortError
from caffe_port.formats import prototxt
from caffe_port.formats.dialects import assuming
from caffe_port.layers.layer import Layer
from caffe_port.net.net import Net
from caffe_port.typing import Array
from caffe_port.verification.references.caffe import find

DIALECT = "brocolli"
"""The fork that Caffe is here: what it reads in its own way is read so on both sides."""


@dataclass
class Outcome:
    """What a side made of a net.

    Attributes:
        refused: why it refuses the net, in its own words; None if it ran.
        stage: where it refused: ``make``, ``forward NAME`` or ``backward NAME``.
        crashed: it did not refuse but fell: a signal, a traceback, too long.
        outputs: the names of the output blobs.
    """

    arrays: Arrays = field(default_factory=dict)
    refused: str | None = None
    stage: str = ""
    crashed: bool = False
    outputs: Sequence[str] = ()

    @property
    def ran(self) -> bool:
        """Whether it came through the forward pass."""
        return "loss" in self.arrays


Frame = tuple[dict[str, Any], Arrays]


def _read(file: BinaryIO, frames: queue.Queue[Frame | None]) -> None:
    """Takes frames as they come, so that neither side waits for the other with full pipes; None at the end."""
    while True:
        frame = caffe_worker.receive(file)
        frames.put(frame)
        if frame is None:
            break


class Caffe:
    """Caffe's process. Several nets may be under way at once."""

    def __init__(self) -> None:
        self.installation = find()
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting: collections.deque[Case] = collections.deque()
        self._frames: queue.Queue[Frame | None] = queue.Queue()
        self.knows: dict[str, Any] = {}
        self._start()

    def _start(self) -> None:
        env = os.environ | {"GLOG_minloglevel": "2", "GLOG_logtostderr": "1"}
        env |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        worker = Path(__file__).with_name("caffe_worker.py")
        command = [part for part in self.installation.command if part != "-I"]
        env.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            [*command, str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
        )
        self._frames = queue.Queue()
        threading.Thread(target=_read, args=(self._process.stdout, self._frames), daemon=True).start()
        greeting = self._frames.get()
        if greeting is None:
            raise CaffePortError("Caffe's process ended at once", str(worker))
        self.knows = greeting[0]

    def ask(self, case: Case) -> None:
        """Hands a net in; :meth:`answer` gives the outcomes in the same order."""
        assert self._process is not None
        caffe_worker.send(self._process.stdin, *case.request())
        self._waiting.append(case)

    def answer(self) -> tuple[Case, Outcome]:
        """The next net and what Caffe made of it."""
        assert self._process is not None
        case = self._waiting.popleft()
        frame = self._frames.get()
        if frame is None:  # never seen; the nets that were under way are asked again
            self._start()
            again, self._waiting = [case, *self._waiting], collections.deque()
            for one in again:
                self.ask(one)
            return self.answer()
        return case, _caffes(*frame)

    def run(self, case: Case) -> Outcome:
        """One net, while no other is under way."""
        assert not self._waiting
        self.ask(case)
        return self.answer()[1]

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process.wait()


def _caffes(header: Mapping[str, Any], arrays: Arrays) -> Outcome:
    ended = header["ended"]
    outcome = Outcome(arrays, stage=header["stage"], outputs=header.get("outputs", ()))
    if ended == 0:
        return outcome
    if "too large" in header["stderr"]:
        return Outcome(refused="too large", stage="make", crashed=True)
    fatal = re.findall(r"^F\d{4,8} [\d:.]+ +\d+ (\S+?):\d+\] (.*)", header["stderr"], re.MULTILINE)
    lines = header["stderr"].strip().splitlines() or [""]
    parse = [line.partition("] ")[2] for line in lines if line.startswith("[libprotobuf ERROR")]
    words = parse[0] if parse else f"{fatal[0][1].strip()} ({fatal[0][0]})" if fatal else f"{ended}: {lines[-1][:200]}"
    outcome.refused = words
    outcome.crashed = not fatal and not parse
    return outcome


class Ours:
    """caffe-port."""

    def run(self, case: Case, reference: Outcome | None = None, dtype: torch.dtype = torch.float32) -> Outcome:
        """A net with the reference's parameters, fed with the same gradients; without a reference, forward only."""
        outcome = Outcome(stage="make")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._run(case, reference, dtype, outcome)
        except CaffePortError as error:
            outcome.refused = error.what if hasattr(error, "what") else str(error)
        except Exception as error:  # noqa: BLE001 - which is a finding
            outcome.refused, outcome.crashed = f"{type(error).__name__}: {error}", True
        return outcome

    def _run(self, case: Case, reference: Outcome | None, dtype: torch.dtype, outcome: Outcome) -> None:
        net = build(case)
        if reference is not None and reference.ran:
            load(net, reference.arrays)
        net = net.to(dtype).train(case.phase == "TRAIN")
        outcome.outputs = net.outputs
        given = {} if reference is None else reference.arrays  # a stored one has its inputs
        inputs = {
            blob: torch.tensor(given.get(f"in:{blob}", array), dtype=dtype, requires_grad=True)
            for blob, array in case.arrays().items()
        }
        arrays = outcome.arrays
        before = {key: value.clone() for key, value in parameters(net)}
        losses, terms, values = dict(net.plan.losses), [], {}
        outcome.stage = "forward"
        loss = torch.zeros((), dtype=dtype)
        tops: Arrays = {}
        for step, turn in zip(net.plan.steps, net.steps(*[inputs[name] for name in net.inputs]), strict=True):
            outcome.stage = f"forward {turn.layer.name}"
            for k, (name, slot, top) in enumerate(zip(turn.layer.tops, step.tops, turn.tops, strict=True)):
                tops[f"top:{turn.layer.name}:{k}"] = numbers(top)
                values[name] = top
                if slot in losses:
                    terms.append(top.sum() * losses[slot])
                    loss = loss + terms[-1].detach()
        for key, value in parameters(net):
            if not torch.equal(before[key], value):
                tops[key.replace("blob:", "after:")] = numbers(value)
        if case.phase == "TEST":  # what fusion makes of it
            made = net(*[inputs[name].detach() for name in net.inputs])
            for name, top in made.items() if isinstance(made, dict) else zip(net.outputs, (made,), strict=False):
                tops[f"fused:{name}"] = numbers(top)
        arrays |= tops
        arrays["loss"] = numbers(loss)
        if reference is None:
            return
        outcome.stage = "backward"
        for key, fed in reference.arrays.items():
            if key.startswith("topdiff:") and (top := values.get(key.removeprefix("topdiff:"))) is not None:
                if top.shape != fed.shape:
                    return  # the forward pass differs
                terms.append((top * torch.tensor(fed, dtype=dtype)).sum())
        terms = [term for term in terms if term.requires_grad]
        if terms:
            torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]
        for blob, tensor in inputs.items():
            arrays[f"grad:{blob}"] = numbers(torch.zeros_like(tensor) if tensor.grad is None else tensor.grad)
        for name, module in net.caffe_layers().items():
            for j, blob in enumerate(module.blob_names()):
                arrays[f"gradparam:{name}:{j}"] = _gradient(module, blob)


def build(case: Case) -> Net:
    """The case's net, in its phase alone."""
    with assuming(DIALECT):
        spec = Definition.parse(prototxt.parse(case.text, "NetParameter")).spec(case.phase)
        return Net(spec, case.inputs, None, 0)


def load(net: Net, arrays: Mapping[str, Array]) -> None:
    """Copies a reference's parameters in."""
    for name, module in net.caffe_layers().items():
        stored = [arrays[f"blob:{name}:{j}"] for j in range(99) if f"blob:{name}:{j}" in arrays]
        if stored or module.blob_names():
            module.load_blobs(stored)


def parameters(net: Net) -> list[tuple[str, Tensor]]:
    """Every parameter blob as Caffe holds it."""
    return [
        (f"blob:{name}:{j}", module.get_blob(blob).detach())
        for name, module in net.caffe_layers().items()
        for j, blob in enumerate(module.blob_names())
    ]


def numbers(tensor: Tensor) -> Array:
    return tensor.detach().float().numpy().copy()


def _gradient(module: Layer, blob: str) -> Array:
    """The gradient in Caffe's layout: converted as if it were the parameter itself."""
    parameter = getattr(module, blob)
    if not isinstance(parameter, nn.Parameter) or parameter.grad is None:
        return np.zeros(tuple(module.get_blob(blob).shape), np.float32)
    value = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(parameter.grad)
        gradient = numbers(module.get_blob(blob))
        parameter.copy_(value)
    return gradient
