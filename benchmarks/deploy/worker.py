"""Runs files in one runtime. It is started with that runtime's own Python; see __main__.py.

Reads lines of JSON, {"file": ..., "data": ..., "made": ...}, and answers each with a line: {"made": true} or
{"error": ..., "at": ...}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[Sequence[Any]], Sequence[Any]]
"""The outputs for inputs, both in the order of the file."""


def onnxruntime(path: Path, _inputs: Sequence[Any]) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return lambda xs: session.run(None, dict(zip(names, xs, strict=True)))


def openvino(path: Path, _inputs: Sequence[Any]) -> Run:
    import openvino as ov

    model = str(path)
    if path.suffix == ".pt2":
        import torch

        model = ov.convert_model(torch.export.load(path))
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda xs: [np.array(y) for y in compiled(list(xs)).values()]


def opencv(path: Path, _inputs: Sequence[Any]) -> Run:
    import cv2
    import onnx

    graph = onnx.load(path).graph
    names, outputs = [i.name for i in graph.input], [o.name for o in graph.output]
    net = cv2.dnn.readNetFromONNX(str(path))

    def run(xs: Sequence[Any]) -> Sequence[Any]:
        for name, x in zip(names, xs, strict=True):
            net.setInput(x, name)
        return list(net.forward(outputs))

    return run


def mnn(path: Path, _inputs: Sequence[Any]) -> Run:
    import MNN.expr as F
    import MNN.nn as nn
    import onnx

    graph = onnx.load(path).graph
    names, outputs = [i.name for i in graph.input], [o.name for o in graph.output]
    made = path.with_suffix(".mnn")
    tool = [sys.executable, "-c", "import sys, MNN, _tools; _tools.mnnconvert(sys.argv)"]  # mnnconvert runs pip install
    options = ["-f", "ONNX", "--modelFile", path, "--MNNModel", made, "--bizCode", "x"]
    done = subprocess.run([*tool, *options], capture_output=True, text=True)
    if not made.exists():
        raise RuntimeError(_last(done.stdout + done.stderr))
    net = nn.load_module_from_file(str(made), names, outputs)

    def run(xs: Sequence[Any]) -> Sequence[Any]:
        fed = []
        for x in xs:
            value = F.placeholder(x.shape, F.NCHW)
            value.write(np.ascontiguousarray(x))
            fed.append(value)
        return [np.array(F.convert(y, F.NCHW).read()).copy() for y in net.forward(fed)]

    return run


def tvm(path: Path, _inputs: Sequence[Any]) -> Run:
    import onnx
    import tvm as t
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    module = relax.transform.LegalizeOps()(relax.transform.DecomposeOpsForInference()(from_onnx(onnx.load(path))))
    machine = relax.VirtualMachine(t.compile(module, "llvm"), t.cpu())

    def run(xs: Sequence[Any]) -> Sequence[Any]:
        made = machine["main"](*map(t.runtime.tensor, xs))
        return [y.numpy() for y in ([made] if hasattr(made, "numpy") else made)]

    return run


def tract(path: Path, _inputs: Sequence[Any]) -> Run:
    import tract as t

    model = t.onnx().load(str(path)).into_model().into_runnable()
    return lambda xs: [y.to_numpy() for y in model.run(list(xs))]


def tinygrad(path: Path, _inputs: Sequence[Any]) -> Run:
    import onnx
    from tinygrad import Tensor
    from tinygrad.nn.onnx import OnnxRunner

    names = [i.name for i in onnx.load(path).graph.input]
    runner = OnnxRunner(str(path))
    return lambda xs: [y.numpy() for y in runner(dict(zip(names, map(Tensor, xs), strict=True))).values()]


def ncnn(path: Path, _inputs: Sequence[Any]) -> Run:
    """Through pnnx; ncnn has no batches: the file is for one image, and the images are fed one by one."""
    import ncnn as n

    stem = path.with_name(path.stem.replace(".", "_") + "_ncnn")
    copy = stem.with_suffix(".onnx")
    copy.write_bytes(path.read_bytes())
    tool = Path(sys.executable).parent / "pnnx"
    done = subprocess.run([tool, copy, "fp16=0"], capture_output=True, text=True, cwd=path.parent)
    param = stem.with_suffix(".ncnn.param")
    if not param.exists():
        raise RuntimeError(_last(done.stdout + done.stderr))
    net = n.Net()
    net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_fp16_packed = False
    if net.load_param(str(param)) or net.load_model(str(stem.with_suffix(".ncnn.bin"))):
        raise RuntimeError("ncnn does not load what pnnx wrote")
    count = sum(line.count(" out") > 0 for line in param.read_text().splitlines()) or 1

    def run(xs: Sequence[Any]) -> Sequence[Any]:
        rows = []
        for k in range(len(xs[0])):
            extractor = net.create_extractor()
            for i, x in enumerate(xs):
                extractor.input(f"in{i}", n.Mat(np.ascontiguousarray(x[k])).clone())
            made = [extractor.extract(f"out{i}") for i in range(count)]
            rows.append([np.array(y) for code, y in made if code == 0])
        return [np.stack(column) for column in zip(*rows, strict=True)]

    return run


def executorch(path: Path, _inputs: Sequence[Any]) -> Run:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    edge = to_edge_transform_and_lower(torch.export.load(path), partitioner=[XnnpackPartitioner()])
    made = path.with_suffix(".pte")
    made.write_bytes(edge.to_executorch().buffer)
    method = Runtime.get().load_program(made).load_method("forward")
    return lambda xs: [y.numpy() for y in method.execute([torch.from_numpy(x) for x in xs])]


def litert(path: Path, inputs: Sequence[Any]) -> Run:
    import litert_torch
    import torch

    module = torch.export.load(path).module()
    made = litert_torch.convert(module, tuple(map(torch.from_numpy, inputs)))

    def run(xs: Sequence[Any]) -> Sequence[Any]:
        got = made(*xs)
        return list(got) if isinstance(got, (list, tuple)) else [got]

    return run


def coremltools(path: Path, _inputs: Sequence[Any]) -> Run:
    """Only the conversion: Core ML itself runs on Apple's systems."""
    import coremltools as ct
    import torch

    ct.convert(torch.export.load(path).run_decompositions({}), minimum_deployment_target=ct.target.iOS16)
    return lambda _xs: []


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [
        line
        for line in lines
        if any(w in line.lower() for w in ("error", "not support", "unsupport", "unknown", "can't"))
    ]
    return (told or lines or ["no reason given"])[-1]


def main() -> None:
    """Serves until standard input ends."""
    run_in = globals()[sys.argv[1]]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        task = json.loads(line)
        at = "load"
        try:
            stored = np.load(task["data"])
            batches = sorted({name.partition(":")[0] for name in stored})
            first = True
            made: dict[str, Any] = {}
            for batch in batches:
                xs = [stored[name] for name in sorted(stored) if name.startswith(f"{batch}:in")]
                if first:
                    run = run_in(Path(task["file"]), xs)
                    first = False
                at = "run"
                made |= {f"{batch}:out{i}": np.asarray(y) for i, y in enumerate(run(xs))}
            np.savez(task["made"], **made)
            said = {"made": True}
        except BaseException as error:  # noqa: BLE001
            text = " ".join(str(error).split())
            said = {"error": f"{type(error).__name__}: {text[:120]}", "at": at, "whole": text[-2000:]}
        answers.write(json.dumps(said) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
