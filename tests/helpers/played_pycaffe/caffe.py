"""What pycaffe looks like to the script, played by caffe_port."""

import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from caffe_port.api import port

TEST, TRAIN, __version__ = 1, 0, "1.0-played"


def set_mode_cpu():
    pass


class Blob:
    def __init__(self, data):
        self.data = np.array(data, np.float32)
        self.diff = np.zeros_like(self.data)

    def reshape(self, *shape):
        self.__init__(np.zeros(shape))


class Layer:
    def __init__(self, kind):
        self.type = kind


class Net:
    def __init__(self, prototxt, *rest):
        weights = rest[0] if len(rest) == 2 else None
        if "explode" in Path(prototxt).read_text():
            sys.stderr.write("F0101 layer_factory.hpp:81] Check failed: registry.count Unknown layer type\n")
            sys.exit(134)
        self.net = port(prototxt, weights, keep_loss=True).net.train(rest[-1] == TRAIN)
        spec = self.net.plan.spec
        self.spec = spec
        self._layer_names = [layer.name for layer in spec.layers]
        self.layers = [Layer(layer.type) for layer in spec.layers]
        self._blob_names = list(OrderedDict.fromkeys(top for layer in spec.layers for top in layer.tops))
        self.blobs = OrderedDict()
        for layer in spec.layers:
            for k, top in enumerate(layer.tops):
                self.blobs[top] = Blob(np.zeros(self.net.plan.shapes[layer.name, k]))
        self.inputs = [blob for blob, _ in spec.inputs]
        self.outputs = [blob for blob, _ in spec.outputs]
        self.params = OrderedDict((name, [Blob(b) for b in blobs]) for name, blobs in self.net.blobs().items())
        self.steps = None

    def reshape(self):
        pass

    def _top_ids(self, index):
        return [self._blob_names.index(top) for top in self.spec.layers[index].tops]

    def _forward(self, start, end):
        if self.steps is None:
            self.steps = self.net.steps(*(torch.from_numpy(self.blobs[b].data) for b in self.inputs))
        layer = self.spec.layers[start]
        if layer.type == "Input":
            return
        with torch.no_grad():
            turn = next(self.steps)
        assert turn.layer.name == layer.name
        for name, top in zip(layer.tops, turn.tops, strict=True):
            self.blobs[name].data = top.numpy()

    def _backward(self, start, end):
        for name in self.inputs:
            self.blobs[name].diff[...] = 7
