#!/usr/bin/env bash
# OpenCV 4.14.0 and `round_mode`, PoolingParameter's field of BVLC Caffe's master (absent from the 1.0 release).
#
# OpenCV's own caffe.proto does not have the field. Elsewhere in its text reader an unknown field is skipped and costs
# nothing (checked below with Power). Inside pooling_param it has two effects, neither of which names the field:
#   - with kernel_size (or stride in one number) the importer fails: "kernel[i] > 0", as if no kernel had been given;
#   - with kernel_h, kernel_w, stride_h, stride_w the net loads without a word and rounds up, though FLOOR was asked for:
#     a 5 x 7 input gives 3 x 4 where Caffe gives 2 x 3.
# What OpenCV understands for the same thing is the forks' `ceil_mode: false`.
#
# What a porter should do: rewrite `round_mode: FLOOR` to `ceil_mode: false` (and CEIL to nothing) before OpenCV reads a
# prototxt, and compare the sizes of every pooling, not of the output alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "opencv-python-headless==4.14.0.94" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
import cv2
import numpy as np

X = np.arange(2 * 3 * 5 * 7, dtype=np.float32).reshape(2, 3, 5, 7)
INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 7 } } }\n'


def output(kind: str, param: str) -> np.ndarray | str:
    text = f'{INPUT}layer {{ name: "y" type: "{kind}" bottom: "x" top: "y" {param} }}'
    try:
        net = cv2.dnn.readNetFromCaffe(bytearray(text.encode()))
        net.setInput(X, "x")
        return net.forward()
    except cv2.error as error:
        return error.err


each = "kernel_h: 2 kernel_w: 2 stride_h: 2 stride_w: 2"
print("OpenCV", cv2.__version__)
both = [output("Power", f"power_param {{ shift: 10 {extra} }}") for extra in ("", "no_such_field: 1")]
print("Power with an unknown field: the same numbers:", np.array_equal(*both))
assert np.array_equal(*both)

short = output("Pooling", "pooling_param { kernel_size: 2 stride: 2 round_mode: FLOOR }")
print("kernel_size: 2 stride: 2 round_mode: FLOOR ->", short)
assert isinstance(short, str) and "kernel[i] > 0" in short

for param, expected in (
    ("kernel_size: 2 stride: 2", (3, 4)),  # Caffe's default is to round up
    ("kernel_size: 2 stride: 2 ceil_mode: false", (2, 3)),
    (f"{each} ceil_mode: false", (2, 3)),
    (f"{each} round_mode: FLOOR", (3, 4)),  # Caffe: (2, 3)
):
    size = output("Pooling", f"pooling_param {{ {param} }}").shape[2:]
    print(param, "->", size)
    assert size == expected, (param, size)
PYTHON
