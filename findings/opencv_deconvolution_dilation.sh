#!/usr/bin/env bash
# OpenCV 4.14.0 and a transposed convolution with a dilation: the dilation is read and left out, by both importers.
#
# Caffe spreads the kernel (base_conv_layer.cpp, for Deconvolution too): kernel 3 with dilation 2 covers 5 pixels, so that a
# 5 x 7 image becomes 9 x 11. So does ONNX's ConvTranspose with dilations. OpenCV makes 7 x 9, the deconvolution without any
# dilation, from the prototxt as from the .onnx. Convolution follows its dilation. Nothing is said, and where the net goes on
# with a Crop or a global pooling, the shapes fit all the same.
#
# What a porter should do: put zeros between the weights, once, in the file: a kernel of 5 x 5 with the nine weights two
# apart, and no dilation. Every reader agrees about that one. It is also what to compare OpenCV with.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "opencv-python-headless==4.14.0.94" "numpy==2.4.6" "onnx==1.23.2" "onnxruntime==1.32.0"
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import cv2
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, save

RNG = np.random.default_rng(0)
X = RNG.standard_normal((1, 2, 5, 7), dtype=np.float32)
W = RNG.standard_normal((2, 3, 3, 3), dtype=np.float32)  # (in, out, height, width)
SPREAD = np.zeros((2, 3, 5, 5), np.float32)
SPREAD[:, :, ::2, ::2] = W
PATH = f"{sys.argv[1]}/model.onnx"


def deconvolution(weight: np.ndarray, dilation: int) -> np.ndarray:
    """Every pixel adds the kernel, times its value, with its places `dilation` apart."""
    kernel, (_, _, h, w) = weight.shape[2], X.shape
    y = np.zeros((1, 3, h + dilation * (kernel - 1), w + dilation * (kernel - 1)), np.float32)
    for i in range(kernel):
        for j in range(kernel):
            rows, columns = slice(i * dilation, i * dilation + h), slice(j * dilation, j * dilation + w)
            y[:, :, rows, columns] += np.einsum("nchw,co->nohw", X, weight[:, :, i, j])
    return y


def write(weight: np.ndarray, dilation: int) -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], kernel_shape=weight.shape[2:], dilations=[dilation] * 2)
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph([node], "g", [value("x", X.shape)], [value("y", [None] * 4)], [numpy_helper.from_array(weight, "w")])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), PATH)


def opencv_onnx(weight: np.ndarray, dilation: int) -> np.ndarray:
    write(weight, dilation)
    net = cv2.dnn.readNetFromONNX(PATH)
    net.setInput(X, "x")
    return net.forward()


def onnx_runtime(weight: np.ndarray, dilation: int) -> np.ndarray:
    write(weight, dilation)
    return onnxruntime.InferenceSession(PATH, providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]


def number(n: int) -> bytes:
    return bytes([n & 127 | 128]) + number(n >> 7) if n > 127 else bytes([n])


def part(field: int, content: bytes) -> bytes:
    return number(field << 3 | 2) + number(len(content)) + content


def opencv_caffe(weight: np.ndarray, dilation: int) -> np.ndarray:
    text = (
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 dim: 5 dim: 7 } } }\n'
        'layer { name: "y" type: "Deconvolution" bottom: "x" top: "y" convolution_param { num_output: 3 bias_term: false '
        f"kernel_size: {weight.shape[2]} dilation: {dilation} }} }}"
    )
    shape = part(7, part(1, b"".join(map(number, weight.shape))))  # BlobProto.shape, BlobShape.dim
    blob = shape + part(5, weight.tobytes())  # BlobProto.data
    model = part(100, part(1, b"y") + part(2, b"Deconvolution") + part(7, blob))  # NetParameter.layer
    net = cv2.dnn.readNetFromCaffe(bytearray(text.encode()), bytearray(model))
    net.setInput(X, "x")
    return net.forward()


dilated, plain = deconvolution(W, 2), deconvolution(W, 1)
print("OpenCV", cv2.__version__, "ONNX Runtime", onnxruntime.__version__)
for reader, run, wanted in (
    ("ONNX Runtime", onnx_runtime, dilated),
    ("OpenCV, .onnx", opencv_onnx, plain),
    ("OpenCV, prototxt", opencv_caffe, plain),
):
    for name, weight, dilation, expected in (
        ("kernel 3", W, 1, plain),
        ("kernel 3, dilation 2", W, 2, wanted),
        ("kernel 5 with zeros", SPREAD, 1, dilated),
    ):
        y = run(weight, dilation)
        assert y.shape == expected.shape and np.allclose(y, expected, atol=1e-5), (reader, name, y.shape)
        print(f"{reader}: {name}: {y.shape[2]} x {y.shape[3]}, {'dilated' if expected is dilated else 'not dilated'}")
PYTHON
