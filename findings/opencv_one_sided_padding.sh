#!/usr/bin/env bash
# OpenCV 4.14.0 and a Convolution of Caffe's with only one of pad_h and pad_w.
#
# Caffe takes the other one as 0 (base_conv_layer.cpp: either of the two is enough). OpenCV's importer pads only if both are
# given, and says nothing: with kernel 3x3, a 5 x 7 input and `pad_h: 1`, Caffe's top is 5 x 5, OpenCV's 3 x 5. The same
# holds for Deconvolution. Where a later layer flattens or crops, the net still runs.
#
# What a porter should do: write the other side out, `pad_w: 0`, before OpenCV reads the prototxt. (Caffe's own Pooling
# refuses one side alone.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "opencv-python-headless==4.14.0.94" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
import struct

import cv2
import numpy as np

X = np.arange(2 * 3 * 5 * 7, dtype=np.float32).reshape(2, 3, 5, 7)
INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 7 } } }\n'


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field of a protobuf message of less than 16,384 bytes."""
    key, size = number << 3 | 2, len(data)
    varint = lambda n: bytes([n]) if n < 128 else bytes([n & 127 | 128, n >> 7])
    return varint(key) + varint(size) + data


def weights(kind: str, *shape: int) -> bytes:
    """A caffemodel with one layer "y" (LayerParameter: name 1, type 2, blobs 7; BlobProto: shape 7, data 5)."""
    values = struct.pack(f"<{np.prod(shape)}f", *np.ones(int(np.prod(shape))))
    blob = field(7, field(1, bytes(shape))) + field(5, values)
    return field(100, field(1, b"y") + field(2, kind.encode()) + field(7, blob))


def size(kind: str, pad: str) -> tuple[int, int]:
    own = f"convolution_param {{ num_output: 4 kernel_size: 3 bias_term: false {pad} }}"
    text = f'{INPUT}layer {{ name: "y" type: "{kind}" bottom: "x" top: "y" {own} }}'
    shape = (4, 3, 3, 3) if kind == "Convolution" else (3, 4, 3, 3)
    net = cv2.dnn.readNetFromCaffe(bytearray(text.encode()), bytearray(weights(kind, *shape)))
    net.setInput(X, "x")
    return net.forward().shape[2:]


print("OpenCV", cv2.__version__)
for kind, pad, opencv, caffe in (
    ("Convolution", "pad_h: 1 pad_w: 0", (5, 5), (5, 5)),
    ("Convolution", "pad_h: 1", (3, 5), (5, 5)),
    ("Convolution", "pad_w: 2", (3, 5), (3, 9)),
    ("Deconvolution", "pad_h: 1 pad_w: 0", (5, 9), (5, 9)),
    ("Deconvolution", "pad_h: 1", (7, 9), (5, 9)),
):
    found = size(kind, pad)
    print(f"{kind}, {pad}: OpenCV {found}, Caffe {caffe}")
    assert found == opencv, (kind, pad, found)
PYTHON
