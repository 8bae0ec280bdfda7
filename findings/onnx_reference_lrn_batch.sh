#!/usr/bin/env bash
# onnx 1.23.2: the reference evaluator normalizes only as many channels as the batch has images.
#
# onnx.reference.ReferenceEvaluator is ONNX's own implementation in NumPy, against which others are checked. Its LRN counts
# its channels to the size of the batch: in a batch of n, the sum of squares of every channel from the nth on stays 0, and
# the channel is divided by bias^beta alone. With one image, as nets are usually checked, that is all of them but the first.
# With as many images as channels, everything is right. ONNX's specification and ONNX Runtime agree with Caffe
# (lrn_layer.cpp) about LRN; the formula is written out below.
#
# What a porter should do: check AlexNet, CaffeNet and GoogLeNet with a runtime instead of this evaluator. (Its type of
# LRN can also be replaced: ReferenceEvaluator takes classes of one's own in new_ops.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "onnx==1.23.2" "onnxruntime==1.32.0" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

X = np.random.default_rng(0).standard_normal((5, 5, 3, 4), dtype=np.float32)


def lrn(x: np.ndarray) -> np.ndarray:
    squares = np.pad(x**2, ((0, 0), (1, 1), (0, 0), (0, 0)))
    return x / (1 + 0.5 / 3 * (squares[:, :-2] + squares[:, 1:-1] + squares[:, 2:])) ** 0.75


def both(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The reference evaluator's result, and ONNX Runtime's."""
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape)
    node = helper.make_node("LRN", ["x"], ["y"], size=3, alpha=0.5, beta=0.75, bias=1.0)
    graph = helper.make_graph([node], "g", [value("x")], [value("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return ReferenceEvaluator(model).run(None, {"x": x})[0], session.run(None, {"x": x})[0]


print("onnx", onnx.__version__, "ONNX Runtime", onnxruntime.__version__)
for images in (1, 2, 5):
    x = X[:images]
    reference, runtime = both(x)
    assert np.allclose(runtime, lrn(x), atol=1e-6)
    right = [c for c in range(5) if np.allclose(reference[:, c], runtime[:, c], atol=1e-6)]
    unchanged = [c for c in range(5) if np.array_equal(reference[:, c], x[:, c])]
    print(f"{images} image(s) of 5 channels: the evaluator is right in {right}, and leaves {unchanged} as they are")
    assert right == list(range(images)), right
    assert unchanged == list(range(images, 5)), unchanged
PYTHON
