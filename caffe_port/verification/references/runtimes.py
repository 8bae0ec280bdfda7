"""Runtimes as references: a file in ONNX, or OpenVINO's IR, run with all values that have a layer's name as outputs.

``convert --format onnx`` names nodes and values after the layers; files of other tools are compared as far as their
names match: a node's name, a value's, or that of a blob, in this order.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port.errors import CaffePortError, DependencyError, first_line
from caffe_port.spec import Producer, top_name
from caffe_port.typing import Array
from caffe_port.verification.references.reference import Case, Made, Run, computing

KNOWN = (
    "It is opencv, numpy, caffe, onnxruntime, openvino, a file (.npz: a trace; .onnx; .xml of OpenVINO), or a "
    "module: path/to/file.py:Class."
)
"""What a net can be compared with."""

Exporter = Callable[[Path], None]
"""Writes the compared net as ONNX."""


@dataclass(frozen=True)
class RuntimeReference:
    """A file that a runtime runs.

    Attributes:
        runtime: ``"onnxruntime"`` or ``"openvino"``.
        path: the file; None: the compared net itself, exported.
        exported: writes that export.
    """

    runtime: str
    path: Path | None = None
    exported: Exporter | None = None

    @property
    def name(self) -> str:
        module = _module(self.runtime)
        label = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}[self.runtime]
        return f"{label} {str(module.__version__).partition('-')[0]}"

    def run(self, case: Case) -> Run:
        """Runs the file once, and yields what it has of every layer.

        Raises:
            DependencyError: the runtime is not installed.
            CaffePortError: the file cannot be read or run, or takes other inputs than the net.
        """
        name = self.name
        if case.spec.phase != "TEST":
            raise CaffePortError(f"{name} computes the TEST phase only", case.spec.path)
        with tempfile.TemporaryDirectory() as folder:
            path = self.path
            if path is None:
                path = Path(folder) / "model.onnx"
                assert self.exported is not None
                self.exported(path)
            values = _RUNNERS[self.runtime](path, case)
        file = "the exported net" if self.path is None else self.path.name
        for layer in computing(case.spec):
            tops = [values.get((layer.name, k)) for k in range(len(layer.tops))]
            there = tuple(top for top in tops if top is not None)
            complete = len(there) == len(tops)
            yield Made(layer, there if complete else None, name, "" if complete else f"not in {file} by name")


def find(against: str) -> RuntimeReference | None:
    """The reference for ``FILE.onnx``, ``FILE.xml``, ``onnxruntime``, ``openvino``, or ``openvino:FILE``; None: for
    another one.

    Raises:
        CaffePortError: the file does not exist.
    """
    runtime, _, file = against.partition(":") if against.partition(":")[0].lower() in _RUNNERS else ("", "", against)
    if not runtime and not file.endswith((".onnx", ".xml")):
        return None
    runtime = runtime.lower() or ("openvino" if file.endswith(".xml") else "onnxruntime")
    if file and not Path(file).is_file():
        raise CaffePortError("does not exist, or is not a file", file)
    return RuntimeReference(runtime, Path(file) if file else None)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        extra = {"onnxruntime": "onnxruntime", "openvino": "caffe-port[openvino]"}[name]
        raise DependencyError(f"{name} is not installed", hint=f"pip install '{extra}'") from None


def _onnxruntime(path: Path, case: Case) -> dict[Producer, Array]:
    """The values of a graph by layer: all of those with a name that matches become outputs."""
    runtime, onnx = _module("onnxruntime"), _onnx()
    try:
        model = onnx.load(str(path))
    except Exception as error:  # noqa: BLE001  protobuf's, or that of a file of weights that is missing
        raise CaffePortError(f"is not an ONNX file: {first_line(error)}", str(path)) from None
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    fed = _inputs(case, {i.name: _sizes(i) for i in graph.input if i.name not in weights}, str(path))
    nodes = {node.name: list(node.output) for node in graph.node if node.name}
    outputs = [output.name for output in graph.output]
    wanted = _matches(case, nodes, [*(v for node in graph.node for v in node.output if v), *outputs])
    for value in dict.fromkeys(wanted.values()):
        if value not in outputs:
            graph.output.append(onnx.ValueInfoProto(name=value))
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL  # fused nodes have no tops
    names = list(dict.fromkeys(wanted.values()))
    if not names:
        return {}
    try:
        session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        made = dict(zip(names, session.run(names, fed), strict=True))
    except Exception as error:  # noqa: BLE001  onnxruntime raises many kinds
        raise CaffePortError(f"ONNX Runtime refuses it: {first_line(error)[:200]}", str(path)) from None
    return {producer: np.asarray(made[value]) for producer, value in wanted.items()}


def _openvino(path: Path, case: Case) -> dict[Producer, Array]:
    ov = _module("openvino")
    core = ov.Core()
    try:
        model = core.read_model(str(path))
    except Exception as error:  # noqa: BLE001  OpenVINO raises many kinds
        raise CaffePortError(f"OpenVINO cannot read it: {_said(error)}", str(path)) from None
    sizes = {
        next(iter(port.get_names()), f"input {i}"): _lengths(port.partial_shape) for i, port in enumerate(model.inputs)
    }
    fed = _inputs(case, sizes, str(path))
    ports: dict[str, Any] = {}
    nodes: dict[str, list[str]] = {}
    for operation in model.get_ordered_ops():
        if operation.get_type_name() in ("Constant", "Parameter", "Result"):
            continue
        for k, port in enumerate(operation.outputs()):
            key = f"{operation.get_friendly_name()}/{k}"
            ports[key] = port
            nodes.setdefault(operation.get_friendly_name(), []).append(key)
            for name in port.get_names():
                ports.setdefault(name, port)
    wanted = _matches(case, nodes, list(ports))
    try:
        results = {value: ov.opset13.result(ports[value]) for value in dict.fromkeys(wanted.values())}
        whole = ov.Model(list(results.values()), model.get_parameters(), "compared")
        compiled = core.compile_model(whole, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        made = compiled(list(fed.values()))
        arrays = dict(zip(results, (np.array(made[i]) for i in range(len(results))), strict=True))
    except Exception as error:  # noqa: BLE001
        raise CaffePortError(f"OpenVINO refuses it: {_said(error)}", str(path)) from None
    return {producer: arrays[value] for producer, value in wanted.items()}


_RUNNERS: dict[str, Callable[[Path, Case], dict[Producer, Array]]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}


def _matches(case: Case, nodes: Mapping[str, Sequence[str]], values: Sequence[str]) -> dict[Producer, str]:
    """The value that is each layer's top."""
    there = set(values)
    last = {blob: (layer.name, k) for layer in case.spec.layers for k, blob in enumerate(layer.tops)}
    found: dict[Producer, str] = {}
    for layer in computing(case.spec):
        outputs = nodes.get(layer.name, ())
        for k, blob in enumerate(layer.tops):
            options = [outputs[k]] if k < len(outputs) and len(outputs) >= len(layer.tops) else []
            options += [top_name(layer.name, k)]
            options += [blob] if last[blob] == (layer.name, k) else []
            value = next((name for name in options if name in there), None)
            if value is not None:
                found[layer.name, k] = value
    return found


_Sizes = Sequence[int | None] | None
"""The shape of an input in a file; None for a size, or for all, that may be any."""


def _inputs(case: Case, sizes: Mapping[str, _Sizes], where: str) -> dict[str, Array]:
    """The net's inputs by the names of the file, in its order."""
    given = dict(case.inputs)
    if len(given) == len(sizes) == 1 and set(given) != set(sizes):
        given = dict(zip(sizes, given.values(), strict=True))
    if set(given) != set(sizes):
        its, ours = ", ".join(sizes) or "none", ", ".join(given) or "none"
        raise CaffePortError(f"its inputs are {its}, the net's are {ours}", where)
    for name, shape in sizes.items():
        array = given[name]
        if shape is None:
            continue
        if len(shape) != array.ndim or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
            its = " x ".join("any" if n is None else str(n) for n in shape)
            got = " x ".join(map(str, array.shape))
            example = ",".join(str(m if n is None else n) for n, m in zip(shape, array.shape, strict=False))
            hint = f"Compare in its shape: --input-shape {name}={example}"
            raise CaffePortError(f"its input '{name}' is {its}, the net's {got}", where, hint)
    return {name: np.ascontiguousarray(given[name], np.float32) for name in sizes}


def _sizes(value: Any) -> _Sizes:
    if not value.type.tensor_type.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]


def _lengths(shape: Any) -> _Sizes:
    return [d.get_length() if d.is_static else None for d in shape] if shape.rank.is_static else None


def _onnx() -> Any:
    try:
        return importlib.import_module("onnx")
    except ImportError:
        raise DependencyError("onnx is not installed", hint="pip install 'caffe-port[onnx]'") from None


def _said(error: BaseException) -> str:
    """The line of OpenVINO's text that says something: it begins with where in its source it was thrown."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (told or lines or [type(error).__name__])[0][:200]
