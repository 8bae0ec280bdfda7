#!/usr/bin/env bash
# MNN 3.6.1 and a Convolution of Caffe's that gives one value for each axis: `kernel_size: 3 kernel_size: 2`.
#
# Caffe takes such values in the order of the axes: height, then width (base_conv_layer.cpp; so for pad, stride and
# dilation). MNN's Caffe converter takes the first for the width. A kernel of 3 x 2 becomes one of 2 x 3 with the same
# weights in memory, so that the top of a 5 x 7 image is 4 x 5 instead of 3 x 6; where padding keeps the size, or the image
# and the kernel fit both ways, only the numbers are wrong. Nothing is said. `kernel_h: 3 kernel_w: 2` is read rightly, and so
# is a single value.
#
# What a porter should do: write kernel_h, kernel_w, pad_h, pad_w, stride_h and stride_w. Caffe has no such pair for the
# dilation: a net with two dilations has to take another way, such as ONNX.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "MNN==3.6.1" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import pathlib
import struct
import subprocess
import sys

import MNN
import numpy as np

X = np.random.default_rng(0).standard_normal((1, 2, 5, 7)).astype(np.float32)
INPUT = 'name: "n"\nlayer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 dim: 5 dim: 7 } } }\n'
CONVERT = "import sys, _tools; _tools.mnnconvert(sys.argv)"  # mnnconvert itself would install packages


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field of a protobuf message of less than 16,384 bytes."""
    varint = lambda n: bytes([n]) if n < 128 else bytes([n & 127 | 128, n >> 7])
    return varint(number << 3 | 2) + varint(len(data)) + data


def caffemodel(weight: np.ndarray) -> bytes:
    """One layer "y" (LayerParameter: name 1, type 2, blobs 7; BlobProto: shape 7, data 5)."""
    blob = field(7, field(1, bytes(weight.shape))) + field(5, struct.pack(f"<{weight.size}f", *weight.flat))
    return field(100, field(1, b"y") + field(2, b"Convolution") + field(7, blob))


def convolution(weight: np.ndarray, stride=(1, 1), dilation=(1, 1)) -> np.ndarray:
    """In the order of Caffe's axes, without padding."""
    (h, w), (kh, kw) = X.shape[2:], weight.shape[2:]
    ph = (h - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    pw = (w - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    top = np.zeros((1, len(weight), ph, pw), np.float32)
    for i in range(ph):
        for j in range(pw):
            top_left = i * stride[0], j * stride[1]
            rows = slice(top_left[0], top_left[0] + dilation[0] * (kh - 1) + 1, dilation[0])
            columns = slice(top_left[1], top_left[1] + dilation[1] * (kw - 1) + 1, dilation[1])
            top[0, :, i, j] = np.tensordot(weight, X[0, :, rows, columns], 3)
    return top


def mnn(param: str, weight: np.ndarray) -> np.ndarray:
    own = f"convolution_param {{ num_output: {len(weight)} bias_term: false {param} }}"
    text = f'{INPUT}layer {{ name: "y" type: "Convolution" bottom: "x" top: "y" {own} }}\n'
    pathlib.Path("n.prototxt").write_text(text)
    pathlib.Path("n.caffemodel").write_bytes(caffemodel(weight))
    files = ["--modelFile", "n.caffemodel", "--prototxt", "n.prototxt", "--MNNModel", "n.mnn", "--bizCode", "n"]
    command = [sys.executable, "-c", CONVERT, "-f", "CAFFE", *files]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    net = MNN.Interpreter("n.mnn")
    session = net.createSession({"precision": "high"})
    caffes = MNN.Tensor_DimensionType_Caffe
    net.getSessionInput(session).copyFrom(MNN.Tensor(X.shape, MNN.Halide_Type_Float, X, caffes))
    net.runSession(session)
    top = net.getSessionOutput(session, "y")
    made = MNN.Tensor(top.getShape(), MNN.Halide_Type_Float, np.zeros(top.getShape(), np.float32), caffes)
    top.copyToHostTensor(made)
    return np.array(made.getNumpyData())


W32 = np.random.default_rng(1).standard_normal((3, 2, 3, 2)).astype(np.float32)
W33 = np.random.default_rng(2).standard_normal((3, 2, 3, 3)).astype(np.float32)
print("MNN", MNN.version())
for param, weight, caffe, wanted in (
    ("kernel_h: 3 kernel_w: 2", W32, convolution(W32), convolution(W32)),
    ("kernel_size: 3 kernel_size: 2", W32, convolution(W32), convolution(W32.reshape(3, 2, 2, 3))),
    ("kernel_size: 3 stride: 2 stride: 1", W33, convolution(W33, (2, 1)), convolution(W33, (1, 2))),
    ("kernel_size: 3 dilation: 2", W33, convolution(W33, (1, 1), (2, 2)), convolution(W33, (1, 1), (2, 2))),
    ("kernel_size: 3 dilation: 2 dilation: 1", W33, convolution(W33, (1, 1), (2, 1)), convolution(W33, (1, 1), (1, 2))),
):
    found = mnn(param, weight)
    print(f"{param}: MNN {found.shape[2:]}, Caffe {caffe.shape[2:]}")
    assert found.shape == wanted.shape, (param, found.shape)
    assert np.allclose(found, wanted, atol=1e-3), param
PYTHON
