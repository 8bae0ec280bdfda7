"""Builds, feeds and compares single layers of forks."""

import numpy as np
import torch

from caffe_port.formats import prototxt
from caffe_port.layers import class_of


def build(kind, text, *shapes, top=1):
    tops = " ".join(f'top: "t{i}"' for i in range(top))
    message = prototxt.parse(f'name: "l" type: "{kind}" {tops} {text}', "LayerParameter")
    return class_of(message).build(message, list(shapes)).eval()


def layer_text(kind, bottoms, text):
    named = " ".join(f'bottom: "in{i}"' for i in range(bottoms))
    return f'layer {{ name: "l" type: "{kind}" {named} top: "l" {text} }}'


def random(*shape, seed=0, scale=1.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32))


def overlap(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = [max(r[2] - r[0], 0) * max(r[3] - r[1], 0) for r in (a, b)]
    return width * height / (area[0] + area[1] - width * height)


def assert_rows_close(got, theirs):
    """Compares detections; OpenCV sorts an image's rows by score and pads with zeros."""
    rows = [a.reshape(-1, 7) for a in (got, theirs)]
    got, theirs = (r[np.lexsort((-r[:, 2], r[:, 0]))] for r in (rows[0], rows[1][rows[1][:, 2] > 0]))
    assert got.shape == theirs.shape
    np.testing.assert_allclose(got, theirs, rtol=1e-5, atol=1e-5)
