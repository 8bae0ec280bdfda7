#!/usr/bin/env bash
# OpenCV 4.14.0 and a grouped Deconvolution with a BatchNorm or a Scale after it: wrong numbers, unless fusion is off.
#
# Before the first forward pass, OpenCV folds the factors of a BatchNorm or Scale into the weights of the layer before it. It
# knows how the weights of a Deconvolution are stored for one group only. With more, the shift comes out right, and the
# factors of all channels are spread over the weights of each: below, the top is off by up to half its largest value.
# Nothing is said. So it is from a prototxt as from an .onnx (ConvTranspose and BatchNormalization), and for depthwise groups
# as well, the usual form of a learned bilinear upsampling. Where all factors are equal, nobody sees it.
#
# What a porter should do: net.enableFusion(False) before the first forward pass, which costs speed; or fold the factors into
# the weights in the file, where channel c of a group owns weight[inputs of the group, c]. OpenCV without fusion is also what
# to compare with.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "opencv-python-headless==4.14.0.94" "numpy==2.4.6" "onnx==1.23.2"
"$folder/venv/bin/python" - <<'PYTHON'
import cv2
import numpy as np
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(0)
X = RNG.standard_normal((1, 4, 5, 7), dtype=np.float32)
FACTOR = np.array([0.5, 1, 2, 3], np.float32)
SHIFT = np.array([1, -1, 0.5, 2], np.float32)
VARIANCE = FACTOR**-2.0  # a BatchNorm of mean 0 multiplies by FACTOR
INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 dim: 5 dim: 7 } } }\n'
OWN = "convolution_param {{ num_output: 4 group: {} kernel_size: 3 stride: 2 bias_term: false }}"
DECONVOLUTION = 'layer {{ name: "d" type: "Deconvolution" bottom: "x" top: "d" ' + OWN + " }}\n"
AFTER = {
    "": "",
    "Scale": 'layer { name: "s" type: "Scale" bottom: "d" top: "s" scale_param { bias_term: true } }',
    "BatchNorm": 'layer { name: "s" type: "BatchNorm" bottom: "d" top: "s" batch_norm_param { eps: 0 } }',
}


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field of a protobuf message of less than 16,384 bytes."""
    varint = lambda n: bytes([n]) if n < 128 else bytes([n & 127 | 128, n >> 7])
    return varint(number << 3 | 2) + varint(len(data)) + data


def layer(name: str, kind: str, *blobs: np.ndarray) -> bytes:
    """LayerParameter: name 1, type 2, blobs 7; BlobProto: shape 7, data 5."""
    body = field(1, name.encode()) + field(2, kind.encode())
    for blob in blobs:
        body += field(7, field(7, field(1, bytes(blob.shape))) + field(5, blob.astype("<f4").tobytes()))
    return field(100, body)


def deconvolution(weight: np.ndarray) -> np.ndarray:
    """(in, out of a group, 3, 3); stride 2."""
    top = np.zeros((1, 4, 11, 15), np.float32)
    group = 4 // weight.shape[1]
    for c, (image, kernels) in enumerate(zip(X[0], weight)):
        first = c // (4 // group) * weight.shape[1]  # the first channel of its group
        for i, j in np.ndindex(image.shape):
            top[0, first : first + len(kernels), 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += image[i, j] * kernels
    return top


def from_prototxt(weight: np.ndarray, after: str) -> cv2.dnn.Net:
    blobs = {"Scale": (FACTOR, SHIFT), "BatchNorm": (0 * FACTOR, VARIANCE, np.ones(1))}
    model = layer("d", "Deconvolution", weight) + (layer("s", after, *blobs[after]) if after else b"")
    text = INPUT + DECONVOLUTION.format(4 // weight.shape[1]) + AFTER[after]
    return cv2.dnn.readNetFromCaffe(bytearray(text.encode()), bytearray(model))


def from_onnx(weight: np.ndarray, after: str) -> cv2.dnn.Net:
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["d"], strides=[2, 2], group=4 // weight.shape[1])]
    nodes += [helper.make_node("BatchNormalization", ["d", "f", "b", "m", "v"], ["s"], epsilon=0.0)] if after else []
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, X.shape if name == "x" else [1, 4, 11, 15])
    initializers = {"w": weight, "f": FACTOR, "b": SHIFT, "m": 0 * FACTOR, "v": np.ones(4, np.float32)}
    stored = [numpy_helper.from_array(array, name) for name, array in initializers.items()]
    graph = helper.make_graph(nodes, "g", [value("x")], [value(nodes[-1].output[0])], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return cv2.dnn.readNetFromONNX(np.frombuffer(model.SerializeToString(), np.uint8))


def off(net: cv2.dnn.Net, fusion: bool, wanted: np.ndarray) -> float:
    net.enableFusion(fusion)
    net.setInput(X, "x")
    return float(np.abs(net.forward() - wanted).max() / np.abs(wanted).max())


print("OpenCV", cv2.__version__)
by_channel = lambda values: values[:, None, None]
for group in (1, 2, 4):
    weight = RNG.standard_normal((4, 4 // group, 3, 3), dtype=np.float32)
    alone = deconvolution(weight)
    scaled = alone * by_channel(FACTOR)
    both = scaled + by_channel(SHIFT)
    for read, after, wanted in (
        (from_prototxt, "", alone),
        (from_prototxt, "Scale", both),
        (from_prototxt, "BatchNorm", scaled),
        (from_onnx, "", alone),
        (from_onnx, "BatchNormalization", both),
    ):
        fused, unfused = (off(read(weight, after), fusion, wanted) for fusion in (True, False))
        said = f"{read.__name__}, {group} group(s), then {after or 'nothing'}"
        print(f"{said}: off by {fused:.1g} of the largest value, without fusion by {unfused:.1g}")
        assert unfused < 1e-5, said
        assert fused > 0.1 if after and group > 1 else fused < 1e-5, said
PYTHON
