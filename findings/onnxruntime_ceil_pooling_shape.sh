#!/usr/bin/env bash
# ONNX Runtime 1.32.0 refuses a valid model in which a padded pooling rounds up and drops its last window.
#
# MaxPool with kernel 2, stride 2, pads 1 and ceil_mode 1 on a 5 x 7 image makes 3 x 4: a window that would begin in the
# padding is dropped, as PyTorch and Caffe do, and ONNX since opset 22. ONNX Runtime computes that for every opset, but up
# to opset 21 it expects 4 x 5 when it loads the model, and refuses a node that adds a 3 x 4 tensor to it ("Incompatible
# dimensions"). torch.onnx.export of PyTorch 2.14 writes opset 20 by default. Without such a node the model loads, with a
# warning that the shapes differ, and gives the right numbers.
#
# What a porter should do: write the padding out, and round down: with kernel k, stride s and padding p, the padding at
# the end is min(p + s, k) - 1, for images of every size.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "onnxruntime==1.32.0" "numpy==2.4.6" "onnx==1.23.2"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper

X = np.arange(2 * 3 * 5 * 7, dtype=np.float32).reshape(2, 3, 5, 7)
B = np.zeros((2, 3, 3, 4), np.float32)


def run(opset: int, adds: bool, **pool) -> str:
    top = "p" if adds else "y"
    nodes = [helper.make_node("MaxPool", ["x"], [top], kernel_shape=[2, 2], strides=[2, 2], **pool)]
    nodes += [helper.make_node("Add", ["p", "b"], ["y"])] if adds else []
    inputs = {"x": X, "b": B} if adds else {"x": X}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        return "refused" if "Incompatible dimensions" in str(error) else str(error)
    return "x".join(map(str, session.run(None, inputs)[0].shape))


print("onnxruntime", onnxruntime.__version__)
UP, DOWN = {"pads": [1] * 4, "ceil_mode": 1}, {"pads": [1, 1, 1, 1]}
for opset, adds, how, expected in (
    (20, False, UP, "2x3x3x4"),
    (20, True, UP, "refused"),
    (21, True, UP, "refused"),
    (22, True, UP, "2x3x3x4"),
    (20, True, DOWN, "2x3x3x4"),
):
    found = run(opset, adds, **how)
    rounding = "up" if "ceil_mode" in how else "down"
    print(f"opset {opset}, rounded {rounding}{', then Add' if adds else ''}: {found}")
    assert found == expected, (opset, adds, how, found)
PYTHON
