#!/usr/bin/env bash
# OpenCV 5.0.0.93: Tanh gives NaN from 44.2 on, which MAX pooling may turn into -1.
#
# It computes tanh(x), which is 1 there, from exp(2x), and that overflows. (Caffe's own TanH did the same until November
# 2014.) OpenCV 4.14.0 is right, and so are both for large negative numbers. A TanH gets such numbers in nets that take
# pixels of 0 to 255 as they are. The last few elements of an array, too few for a vector register, come out as 1, so that a
# test with a handful of numbers may pass.
#
# The NaN is not always seen: MAX pooling compares, and a comparison with NaN is false. Of a window with such a number, the
# largest of the others comes out, such as -1 instead of 1.
#
# What a porter should do: stay with OpenCV 4, or clip before the Tanh: from 10 on, the result is 1 in single precision.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 4.14.0.94 5.0.0.93; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet "opencv-python-headless==$version" "numpy==2.4.6" "onnx==1.23.2"
    "$folder/$version/bin/python" - <<'PYTHON'
import cv2
import numpy as np
from onnx import TensorProto, helper, numpy_helper

MAX = {"kernel_shape": [2, 2], "strides": [2, 2]}
BOUNDS = [numpy_helper.from_array(np.float32(bound), name) for bound, name in ((-10, "low"), (10, "high"))]


def opencv(x: np.ndarray, *nodes) -> np.ndarray:
    """The output of a net from "x" to "y"."""
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "g", [value("x", x.shape)], [value("y", [None] * 4)], BOUNDS)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    net = cv2.dnn.readNetFromONNX(np.frombuffer(model.SerializeToString(), np.uint8))
    net.setInput(x, "x")
    return net.forward()


tanh = helper.make_node("Tanh", ["x"], ["y"])
new = cv2.__version__.startswith("5")
print("OpenCV", cv2.__version__)

x = np.linspace(-200, 200, 2 * 32 * 32, dtype=np.float32).reshape(1, 2, 32, 32)
y = opencv(x, tanh)
bad = np.isnan(y)
print(f"Tanh of -200 to 200: NaN for {bad.sum()} of {bad.size}" + (f", from {x[bad].min():.1f} on" if bad.any() else ""))
assert not bad[x < 44].any() and (bad[x > 45].all() if new else not bad.any())
assert np.allclose(y[~bad], np.tanh(x[~bad]), atol=1e-6)

clipped = opencv(x, helper.make_node("Clip", ["x", "low", "high"], ["c"]), helper.make_node("Tanh", ["c"], ["y"]))
print("Clip to -10 and 10, then Tanh: off by", float(np.abs(clipped - np.tanh(x)).max()))
assert np.allclose(clipped, np.tanh(x), atol=1e-6)

x = np.where(np.random.default_rng(0).random((1, 2, 32, 32)) < 0.5, 60, -60).astype(np.float32)
pooled = opencv(x, helper.make_node("Tanh", ["x"], ["t"]), helper.make_node("MaxPool", ["t"], ["y"], **MAX))
right = np.tanh(x).reshape(1, 2, 16, 2, 16, 2).max((3, 5))
wrong = int((pooled == -right).sum())
print(f"Tanh of 60 and -60, then MaxPool: NaN for {np.isnan(pooled).sum()} of {pooled.size}, -1 instead of 1 for {wrong}")
assert (wrong > 0) == new, wrong
PYTHON
done
