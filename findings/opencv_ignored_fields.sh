#!/usr/bin/env bash
# OpenCV 4.14.0 and fields of Caffe's layers that its importer reads without an error and does not use.
#
#   - LRN's `k`: the 1 in (1 + alpha / n * sum)^beta stays 1;
#   - Log's `base`, `scale` and `shift`: the top is ln(x), though Exp and Power follow theirs (checked below);
#   - Swish's `beta` (Caffe's master): the top is x * sigmoid(x);
#   - MVN's `eps` is used, but added to the variance, where Caffe adds it to the standard deviation (mvn_layer.cpp). With
#     the default of 1e-9 nobody sees it.
#
# Caffe's formulas are written out below. The nets load and run without a word; only the numbers are wrong.
#
# What a porter should do: not take OpenCV's numbers for Caffe's where a net sets one of these fields. Before OpenCV reads
# the prototxt, LRN with k can become a Power and an LRN with k = 1 (x / sqrt(k), alpha unchanged, then times
# k^(1/2 - beta)); Log becomes a Power before it and one after it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "opencv-python-headless==4.14.0.94" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
import cv2
import numpy as np

X = np.random.default_rng(0).random((2, 4, 3, 5), dtype=np.float32) + 0.5
INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4 dim: 3 dim: 5 } } }\n'


def opencv(kind: str, param: str) -> np.ndarray:
    text = f'{INPUT}layer {{ name: "y" type: "{kind}" bottom: "x" top: "y" {param} }}'
    net = cv2.dnn.readNetFromCaffe(bytearray(text.encode()))
    net.setInput(X, "x")
    return net.forward()


def lrn(k: float) -> np.ndarray:
    squares = np.pad(X**2, ((0, 0), (1, 1), (0, 0), (0, 0)))
    return X / (k + 0.3 / 3 * (squares[:, :-2] + squares[:, 1:-1] + squares[:, 2:])) ** 0.75


mean = X.mean((2, 3), keepdims=True)
variance = ((X - mean) ** 2).mean((2, 3), keepdims=True)
print("OpenCV", cv2.__version__)
for kind, param, caffe, instead in (
    ("LRN", "lrn_param { local_size: 3 alpha: 0.3 beta: 0.75 k: 2 }", lrn(2), lrn(1)),
    ("Log", "log_param { base: 2 scale: 3 shift: 1 }", np.log2(3 * X + 1), np.log(X)),
    ("Swish", "swish_param { beta: 3 }", X / (1 + np.exp(-3 * X)), X / (1 + np.exp(-X))),
    ("MVN", "mvn_param { eps: 0.1 }", (X - mean) / (variance**0.5 + 0.1), (X - mean) / (variance + 0.1) ** 0.5),
):
    top = opencv(kind, param)
    print(f"{kind}, {param}: differs from Caffe's by up to {abs(top - caffe).max():.2f}")
    assert abs(top - caffe).max() > 0.1, kind
    assert np.allclose(top, instead, rtol=1e-4, atol=1e-5), kind

for kind, param, caffe in (
    ("Exp", "exp_param { base: 2 scale: 3 shift: 1 }", 2 ** (3 * X + 1)),
    ("Power", "power_param { power: 2 scale: 3 shift: 1 }", (3 * X + 1) ** 2),
):
    assert np.allclose(opencv(kind, param), caffe, rtol=1e-4), kind
    print(f"{kind}, {param}: as Caffe's")
PYTHON
