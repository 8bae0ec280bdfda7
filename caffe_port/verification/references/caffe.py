"""Caffe itself as a reference: its Python interface in a separate process, or on another machine by a script."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from caffe_port.errors import CaffePortError, DependencyError
from caffe_port.formats import caffemodel, meanings, prototxt
from caffe_port.formats.message import Message
from caffe_port.spec import LayerSpec, Producer
from caffe_port.typing import Array
from caffe_port.verification.references import build_caffe
from caffe_port.verification.references.reference import Case, Made, Run, computing
from caffe_port.verification.references.trace import Trace

PYTHON_VARIABLE = "CAFFE_PORT_PYCAFFE"
"""Environment variable: the Python interpreter that has pycaffe, where it is not this one."""

HINT = (
    f"Build one: caffe-port build-caffe (Linux). Or set {PYTHON_VARIABLE} to a Python that imports caffe, or record a "
    "trace where Caffe is: caffe-port dump --script"
)


def script() -> str:
    """A self-contained program that records a trace where pycaffe is: Python 2.7 or 3, numpy only."""
    return resources.files(__package__).joinpath("dump_with_caffe.txt").read_text("utf-8")


@dataclass(frozen=True)
class Installation:
    """A Caffe that can be imported.

    Attributes:
        command: what runs its Python.
        version: as it says itself.
        place: the file that is imported.
        types: its layer types; empty where it cannot tell.
        built: by ``caffe-port build-caffe``.
    """

    command: tuple[str, ...]
    version: str
    place: str
    types: frozenset[str]
    built: bool = False

    @property
    def name(self) -> str:
        """Which Caffe, in words."""
        whose = f"{build_caffe.SDIST} {build_caffe.VERSION}" if self.built else str(Path(self.place).parent)
        return f"Caffe {self.version} ({whose})"


def find() -> Installation:
    """Caffe: that of ``$CAFFE_PORT_PYCAFFE``, else what ``build-caffe`` built, else what this Python imports.

    Raises:
        DependencyError: there is none, or the first that there is cannot be imported; with the words of the import.
    """
    if python := os.environ.get(PYTHON_VARIABLE):
        python = os.path.abspath(python) if os.sep in python else python
        return _ask((python,), f"Set {PYTHON_VARIABLE} to a Python that imports caffe, or unset it.")
    own = build_caffe.folder()
    if (own / build_caffe.STAMP).exists():  # isolated: PYTHONPATH may hold the packages of another Python
        return _ask((str(own / "bin/python"), "-I"), "Build it again: caffe-port build-caffe", built=True)
    return _ask((sys.executable,), HINT)


def may_be_here() -> bool:
    """Whether somebody named or built a Caffe; without running it."""
    return PYTHON_VARIABLE in os.environ or (build_caffe.folder() / build_caffe.STAMP).exists()


_ASK = """
import json, caffe
caffe.Net  # a folder of that name, found by chance, has none
types = list(getattr(caffe, "layer_type_list", list)())
print("")
print(json.dumps([str(getattr(caffe, "__version__", "of unknown version")), str(caffe.__file__), types]))
"""


def _ask(command: tuple[str, ...], hint: str, built: bool = False) -> Installation:
    with tempfile.TemporaryDirectory(prefix="caffe-port-") as folder:
        try:
            done = _run([*command, "-c", _ASK], folder, timeout=120)
        except (OSError, subprocess.TimeoutExpired) as error:
            why = getattr(error, "strerror", None) or "importing caffe took more than two minutes"
            raise DependencyError(f"cannot be run: {why}", command[0], hint) from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"it exits with code {done.returncode} and no message"])[-1]
        if re.search(r"No module named '?caffe'?$", said):
            raise DependencyError("has no pycaffe", command[0], hint)
        raise DependencyError(f"cannot import caffe: {said[:300]}", command[0], hint)
    try:
        version, place, types = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise DependencyError(
            f"is not a Python interpreter: it prints {done.stdout[:60]!r}", command[0], hint
        ) from None
    return Installation(command, version, place, frozenset(types), built)


def _run(command: Sequence[str], folder: str | Path, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Runs Caffe's Python in a folder, where nothing is found by chance; it tells what it does on stderr."""
    env = os.environ | {"GLOG_minloglevel": "0", "GLOG_logtostderr": "1"}
    if paths := env.get("PYTHONPATH"):
        env["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths.split(os.pathsep) if path)
    return subprocess.run(  # noqa: S603
        command, cwd=folder, env=env, capture_output=True, text=True, errors="replace", timeout=timeout
    )


class CaffeError(CaffePortError):
    """Caffe ended its process.

    Attributes:
        layer: the name of the layer that was being made or run; empty where Caffe did not come so far.
        foreign: it is a type or a field that this Caffe does not know, or has not implemented: no fault of the net.
    """

    def __init__(self, said: str, layer: str, where: str) -> None:
        super().__init__(f"Caffe refuses the net{f', at layer {layer!r}' if layer else ''}: {said}", where)
        self.said, self.layer = said, layer
        self.foreign = bool(layer) and bool(_FOREIGN.search(said))


OTHER_RULES: dict[str, tuple[Callable[[Message], bool], str]] = {
    "Proposal": (lambda p: not p.proposal_param.scale_in_pixels, "takes the scale of Proposal for pixels"),
    "SigmoidCrossEntropyLoss": (
        lambda p: (
            p.loss_param.has("ignore_label")
            or (p.loss_param.has("normalization") and p.loss_param.normalization != "BATCH_SIZE")
            or (p.loss_param.has("normalize") and p.loss_param.normalize)
        ),
        "has an older SigmoidCrossEntropyLoss, which counts every label and divides by the size of the batch",
    ),
}
"""Type -> where what ``build-caffe`` builds computes something else than the Caffe, or the fork, that owns the type."""


def _has_ties(layer: LayerSpec, bottoms: Sequence[Array]) -> bool:
    """Whether scores are equal to that of the label, of which older versions of Accuracy count some as worse."""
    p, scores = layer.param.accuracy_param, np.moveaxis(np.asarray(bottoms[0]), layer.param.accuracy_param.axis, -1)
    labels = np.asarray(bottoms[1]).reshape(scores.shape[:-1]).astype(int)
    counted = labels != p.ignore_label if p.has("ignore_label") else np.ones(labels.shape, bool)
    own = np.take_along_axis(scores, np.where(counted, labels, 0).clip(0, scores.shape[-1] - 1)[..., None], -1)
    return bool((((scores == own).sum(-1) > 1) & counted).any())


_FOREIGN = re.compile(r"Unknown layer type|has no field named|Unknown enumeration value|Not Implemented Yet")


@dataclass(frozen=True)
class CaffeReference:
    """Caffe itself, in processes of its own: a failed check of Caffe ends its process.

    Attributes:
        installation: which; None: what :func:`find` finds, when it is needed.
    """

    installation: Installation | None = None

    @functools.cached_property
    def caffe(self) -> Installation:
        """The Caffe that is asked."""
        return self.installation or find()

    @property
    def name(self) -> str:
        return self.caffe.name

    def run(self, case: Case) -> Run:
        """Runs the net, cut at the layers that this Caffe does not know.

        Raises:
            DependencyError: there is no Caffe here.
            CaffePortError: Caffe refuses the net; with its own words.
        """
        foreign = self._foreign(case)
        layers, values = list(computing(case.spec)), case.inputs_by_producer()
        while layers:
            first = layers[0]
            if first.name in foreign:
                sent = yield Made(first, None, self.name, foreign[first.name])
                values |= {(first.name, k): np.asarray(top) for k, top in enumerate(sent or ())}
                del layers[0]
                continue
            end = next((n for n, layer in enumerate(layers) if layer.name in foreign), len(layers))
            segment = layers[:end]
            try:
                trace = self._record(case, segment, values)
            except CaffeError as refusal:
                if not (refusal.foreign and refusal.layer in {layer.name for layer in segment}):
                    raise
                foreign[refusal.layer] = f"{self.name}: {refusal.said}"
                continue
            values |= trace.tops
            for layer in segment:
                if note := self._ties(layer, values):
                    yield Made(layer, None, self.name, note)
                else:
                    yield Made(layer, tuple(trace.tops[layer.name, k] for k in range(len(layer.tops))), self.name)
            del layers[:end]

    def trace(self, case: Case, backward: bool = False) -> Trace:
        """The whole trace at once; with gradients on request.

        Raises:
            DependencyError, CaffePortError: as :meth:`run`; the net has layers that this Caffe does not know.
        """
        if foreign := self._foreign(case):
            why = next(iter(foreign.values()))
            raise CaffePortError(f"{why}; gradients need a Caffe that supports every layer", case.spec.path)
        trace = self._record(case, list(computing(case.spec)), case.inputs_by_producer(), backward)
        values = {**case.inputs_by_producer(), **trace.tops}
        tied = {layer.name for layer in computing(case.spec) if self._ties(layer, values)}
        return dataclasses.replace(
            trace, tops={source: top for source, top in trace.tops.items() if source[0] not in tied}
        )

    def _ties(self, layer: LayerSpec, values: Mapping[Producer, Array]) -> str:
        """Whether an Accuracy decides between equal scores as only older versions of Caffe do; in words."""
        if self.caffe.built and layer.type == "Accuracy" and _has_ties(layer, [values[s] for s in layer.producers]):
            return f"{self.name} decides between equal scores by the order of the classes"
        return ""

    def _foreign(self, case: Case) -> dict[str, str]:
        """Layer name -> why this Caffe cannot run it."""
        types, found = self.caffe.types, {}
        for layer in computing(case.spec):
            if types and layer.type not in types:
                found[layer.name] = f"{self.name} has no layer {layer.type}"
            elif self.caffe.built and layer.type in OTHER_RULES and OTHER_RULES[layer.type][0](layer.param):
                found[layer.name] = f"{self.name} {OTHER_RULES[layer.type][1]}"
        return found

    def _record(
        self, case: Case, layers: Sequence[LayerSpec], values: Mapping[Producer, Array], backward: bool = False
    ) -> Trace:
        """What Caffe makes of these layers, which stand together in the net."""
        net, fed = definition(case, layers, values)
        blobs = {layer.name: list(case.blobs[layer.name]) for layer in layers if case.blobs.get(layer.name)}
        with tempfile.TemporaryDirectory(prefix="caffe-port-") as folder:
            here = Path(folder)
            (here / "dump.py").write_text(script(), "utf-8")
            (here / "net.prototxt").write_text(prototxt.dump(meanings.for_caffe(net)), "utf-8")
            files = []
            for number, part in enumerate(_parts(blobs)):
                files.append(f"w{number}.caffemodel")
                own = Message("NetParameter", layer=[layer for layer in net.layer if layer.name in part])
                caffemodel.write(here / files[-1], own, part)
            command = [*self.caffe.command, "dump.py", "net.prototxt", files[0] if files else "-", "trace.npz"]
            command += [f"--more={name}" for name in files[1:]]
            command += ["--phase", case.spec.phase, "--at", "at", *(["--backward"] if backward else [])]
            for number, (blob, source) in enumerate(fed.items()):
                np.save(here / f"in{number}.npy", np.asarray(values[source], np.float32))
                command += [f"--input={blob}=in{number}.npy"]
            done = _run(command, here)
            if done.returncode:
                at = here / "at"
                layer = at.read_text("utf-8") if at.exists() else _at(done.stderr, prototxt.dump(net))
                raise CaffeError(_said(done.stderr, done.returncode), layer, case.spec.path)
            trace = Trace.load(here / "trace.npz")
        return dataclasses.replace(
            trace,
            tops={source: top for source, top in trace.tops.items() if not source[0].startswith(_INPUT)},
            provenance={**trace.provenance, "producer": self.name, "file": self.caffe.place},
        )


PART = 400 << 20
"""Most bytes of blobs in a file, if they are of several layers: brocolli-caffe 9.0.2 reads no file above 512 MiB."""


def _parts(blobs: Mapping[str, list[Array]]) -> list[dict[str, list[Array]]]:
    """The blobs of layers, divided among files."""
    parts: list[dict[str, list[Array]]] = []
    size = 0
    for name, arrays in blobs.items():
        own = 4 * sum(array.size for array in arrays)
        if not parts or size + own > PART:
            parts.append({})
            size = 0
        parts[-1][name] = arrays
        size += own
    return parts


def definition(
    case: Case, layers: Sequence[LayerSpec] | None = None, values: Mapping[Producer, Array] | None = None
) -> tuple[Message, dict[str, Producer]]:
    """A net, or layers of it that stand together, as a NetParameter for Caffe: one phase, no rules.

    Args:
        layers: without sources; None: all.
        values: the arrays that come from outside; None: the net's inputs.

    Returns:
        The definition, with an Input layer for each blob that comes from outside; these blobs, and who made them.
    """
    layers = list(computing(case.spec)) if layers is None else layers
    values = case.inputs_by_producer() if values is None else values
    made = {(layer.name, k) for layer in layers for k in range(len(layer.tops))}
    fed: dict[str, Producer] = {}
    for layer in layers:
        for blob, source in zip(layer.bottoms, layer.producers, strict=True):
            if source not in made:
                fed.setdefault(blob, source)
    entries = []
    for blob, source in fed.items():
        parameter = Message("InputParameter", shape=[Message("BlobShape", dim=list(values[source].shape))])
        entries.append(
            Message("LayerParameter", name=f"{_INPUT}{blob}", type="Input", top=[blob], input_param=parameter)
        )
    for layer in layers:
        bare = layer.param.copy(include=None, exclude=None, phase=None, blobs=None, **dict.fromkeys(layer.implied))
        entries.append(bare.copy(name=layer.name, bottom=list(layer.bottoms)))
    return Message("NetParameter", name=case.spec.name or "net", layer=entries), fed


_INPUT = "caffe-port's input "
"""How the layers are named that feed a blob: as none of the net's own."""


def _said(stderr: str, code: int) -> str:
    """Caffe's own words: protobuf's, where the text could not be read, else those of the failed check."""
    for line in stderr.splitlines():
        if line.startswith("[libprotobuf ERROR"):
            return line.partition("] ")[2][:_LONGEST]
    lines = iter(stderr.splitlines())
    for line in lines:
        if fatal := re.match(r"F\d{4,8} [\d:.]+ +\d+ (\S+)\] (.*)", line):
            words = [fatal[2]]
            for more in lines:  # a message may have several lines
                if more.startswith(("***", "    @")):
                    break
                words.append(more)
            return f"{' '.join(' '.join(words).split())[:_LONGEST]} ({fatal[1]})"
    last = [line.strip() for line in stderr.splitlines() if line.strip() and not re.match(r"[IW]\d{4,8} ", line)]
    ended = f"its process was killed by signal {-code}" if code < 0 else f"its process ended with code {code}"
    return (last or [f"{ended} and no message"])[-1][:_LONGEST]


_LONGEST = 400


def _at(stderr: str, net: str) -> str:
    """The layer that Caffe read or made when it failed; empty where that cannot be told."""
    if error := re.search(r"Error parsing text-format \S+: (\d+):", stderr):
        before = "\n".join(net.splitlines()[: int(error[1])])
        named = re.findall(r'^layer \{\n  name: "(.*)"$', before, re.MULTILINE)
        return named[-1] if named else ""
    made = re.findall(r"^I\d{4,8} .*\] Creating [Ll]ayer (.*)$", stderr, re.MULTILINE)
    return made[-1] if made and "Network initialization done." not in stderr else ""
