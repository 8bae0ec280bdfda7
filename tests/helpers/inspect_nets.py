"""Small nets and weights for `inspect`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from caffe_port.formats import caffemodel, prototxt

NET = """
name: "tiny"
input: "data" input_shape { dim: 2 dim: 3 dim: 9 dim: 7 }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
layer { name: "flat" type: "Flatten" bottom: "conv" top: "flat" }
layer { name: "ip" type: "InnerProduct" bottom: "flat" top: "scores" inner_product_param { num_output: 5 } }
"""

CHAIN = """
layer {{ name: "data" type: "Data" top: "data" top: "label" }}
layer {{ name: "c1" type: "Convolution" bottom: "data" top: "c1" convolution_param {{ num_output: 8 kernel_size: 3 }} }}
layer {{ name: "c2" type: "Convolution" bottom: "c1" top: "c2" convolution_param {{ num_output: {n} kernel_size: 3 }} }}
layer {{ name: "ip" type: "InnerProduct" bottom: "c2" top: "ip" inner_product_param {{ num_output: 5 }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }}
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def store(path: Path, net: str, **blobs: list[np.ndarray]) -> Path:
    """Writes a caffemodel from the text of a prototxt, with the given blobs."""
    message = prototxt.parse(net, "NetParameter")
    caffemodel.write(path, message, blobs)
    return path


def zeros(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [np.zeros(shape, np.float32) for shape in shapes]
