#!/usr/bin/env bash
# OpenCV 4.14.0 reads AveragePool of ONNX by the name of the tool that wrote the file.
#
# ONNX says with count_include_pad whether padding counts as pixels: 1 divides by the whole kernel, 0 by the pixels of the
# image in the window. OpenCV's importer does not look at it. It counts the padding if the file's producer_name is
# "pytorch", and never otherwise: two files that differ in that name alone give other numbers, and the same file does after
# a tool that rewrites it (an optimizer, a version converter, onnx.helper) has put its own name there. Nothing is said.
#
# What a porter should do: write Caffe's AVE pooling with padding as a Pad of zeros and an AveragePool without pads. Then
# there is nothing to count, and all runtimes agree.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "opencv-python-headless==4.14.0.94" "numpy==2.4.6" "onnx==1.23.2"
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import cv2
import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

X = np.ones((2, 3, 4, 6), np.float32)  # the mean of a window with padding is less than 1 only if padding counts


def corner(producer: str, *nodes, initializers=()) -> float:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)],
        list(initializers),
    )
    path = f"{sys.argv[1]}/model.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9, producer_name=producer)
    save(model, path)
    net = cv2.dnn.readNetFromONNX(path)
    net.setInput(X, "x")
    return round(float(net.forward()[1, 2, 0, 0]), 4)


def pool(count: int):
    return helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=count)


print("OpenCV", cv2.__version__)
for producer, count, opencv, onnx in (
    ("pytorch", 1, 0.4444, 0.4444),
    ("pytorch", 0, 0.4444, 1.0),
    ("", 1, 1.0, 0.4444),
    ("", 0, 1.0, 1.0),
):
    found = corner(producer, pool(count))
    print(f"producer_name {producer!r}, count_include_pad {count}: OpenCV {found}, ONNX {onnx}")
    assert found == opencv, (producer, count, found)

pads = numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "pads")
nodes = (helper.make_node("Pad", ["x", "pads"], ["wide"]), helper.make_node("AveragePool", ["wide"], ["y"], kernel_shape=[3, 3]))
for producer in ("pytorch", ""):
    found = corner(producer, *nodes, initializers=[pads])
    print(f"producer_name {producer!r}, Pad and AveragePool: OpenCV {found}")
    assert found == 0.4444, (producer, found)
PYTHON
