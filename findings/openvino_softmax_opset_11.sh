#!/usr/bin/env bash
# OpenVINO 2026.4.1 reads a Softmax of ONNX's opsets 11 and 12 as one of opset 13. Those of 7 to 10 it reads rightly, and
# LogSoftmax of every opset.
#
# Up to opset 12, Softmax flattens: everything from `axis` on is one row, which sums to 1. From opset 13 on, the axis alone
# is a row, as in Caffe (softmax_layer.cpp). For the (N, C) of a classifier both are the same. For the (N, C, H, W) of a
# segmentation net or a detector they are not: with axis 1, an image of 5 x 7 pixels sums to 1, or each pixel does. OpenVINO
# gives 35 where ONNX Runtime 1.32.0 gives 1. Only the scale of a score differs, so that the greatest channel of each pixel
# is the same, and a map drawn in its own range looks right.
#
# Old converters that write Caffe's `axis: 1` as it is, into opset 11, therefore seem right as long as they are tried with
# OpenVINO; and an exporter that writes to the letter seems wrong there.
#
# What a porter should do: see which opset an inherited .onnx has before its scores meet a threshold; write opset 13 or
# later.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "openvino==2026.4.1" "onnx==1.23.2" "onnxruntime==1.32.0" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper

X = np.random.default_rng(0).standard_normal((2, 3, 5, 7), dtype=np.float32)


def softmax(kind: str, axes: tuple[int, ...]) -> np.ndarray:
    powers = np.exp(X)
    made = powers / powers.sum(axes, keepdims=True)
    return made if kind == "Softmax" else np.log(made)


print("OpenVINO", openvino.__version__, "ONNX Runtime", onnxruntime.__version__)
for kind, opset in (("Softmax", 9), ("Softmax", 11), ("Softmax", 12), ("Softmax", 13), ("LogSoftmax", 11)):
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, X.shape)
    graph = helper.make_graph([helper.make_node(kind, ["x"], ["y"], axis=1)], "g", [value("x")], [value("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=4)
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    flat, alone = softmax(kind, (1, 2, 3)), softmax(kind, (1,))
    for name, y, wanted in (
        ("ONNX Runtime", session.run(None, {"x": X})[0], flat if opset < 13 else alone),
        ("OpenVINO", compiled([X])[0], flat if opset < 11 or kind == "LogSoftmax" else alone),
    ):
        found = "an image is a row" if np.allclose(y, flat, atol=1e-5) else "a pixel is a row"
        print(f"{kind} of opset {opset}, axis 1, {name}: {found}")
        assert np.allclose(y, wanted, atol=1e-5), (kind, opset, name)
PYTHON
