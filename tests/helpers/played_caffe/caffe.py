"""What pycaffe looks like from outside, played by the formulas; found as ``caffe`` where this folder is a path.

Environment variables say what it lacks: PLAYED_LACKS a type, PLAYED_FIELD a field, PLAYED_FORWARD a type whose forward
is not implemented.
"""

import os
import sys
from collections import OrderedDict

import numpy as np

TEST, TRAIN, __version__ = 1, 0, "1.0-played"


def set_mode_cpu():
    pass


def layer_type_list():
    known = ("Convolution", "Power", "TanH", "Threshold", "Eltwise", "ReLU", "Swish")
    return [name for name in known if name != os.environ["PLAYED_LACKS"]] if "PLAYED_LACKS" in os.environ else []


def abort(text):
    """As a failed check of glog: words on stderr, and no process any more."""
    sys.stderr.write(text + "\n*** Check failure stack trace: ***\n    @     0x7f  google::LogMessage::Fail()\n")
    sys.stderr.flush()
    os.abort()


class Blob:
    def __init__(self, data):
        self.data = np.array(data, np.float32)
        self.diff = np.zeros_like(self.data)

    def reshape(self, *shape):
        self.__init__(np.zeros(shape))


class Layer:
    def __init__(self, kind, blobs):
        self.type, self.blobs = kind, blobs


class Net:
    def __init__(self, prototxt, *rest):
        from caffe_port.definition.definition import Definition
        from caffe_port.formats import caffemodel
        from caffe_port.signatures import shapes

        weights = rest[0] if len(rest) == 2 else None
        with open(prototxt) as file:
            lines = file.read().splitlines()
        for number, line in enumerate(lines, 1):
            field = line.strip().partition(":")[0]
            if field == os.environ.get("PLAYED_FIELD"):
                sys.stderr.write(
                    "[libprotobuf ERROR google/protobuf/text_format.cc:337] Error parsing text-format "
                    f'caffe.NetParameter: {number}:9: Message type "caffe.PowerParameter" '
                    f'has no field named "{field}".\n'
                )
                abort("F1129 10:00:00.123456 77 upgrade_proto.cpp:90] Check failed: ReadProtoFromTextFile ")
        spec = Definition.read(prototxt).spec("TRAIN" if rest[-1] == TRAIN else "TEST")
        given = {}
        for layer in spec.layers:
            given.update(zip(layer.tops, (tuple(s.dim) for s in layer.param.input_param.shape), strict=False))
        self.shapes = shapes.infer(spec, given)
        for layer in spec.layers:
            sys.stderr.write(f"I1129 10:00:00.123456 77 net.cpp:86] Creating Layer {layer.name}\n")
            if layer.name == "explode":
                abort("F20261129 10:00:00.123456 77 net.cpp:430] Top blob 'y'\nproduced by multiple sources.")
        sys.stderr.write("I1129 10:00:00.123456 77 net.cpp:257] Network initialization done.\n")
        self.spec = spec
        self._layer_names = [layer.name for layer in spec.layers]
        held = {name: layer.blobs for name, layer in caffemodel.read(weights).by_name().items()} if weights else {}
        self.layers = [Layer(layer.type, [Blob(b) for b in held.get(layer.name, [])]) for layer in spec.layers]
        self._blob_names = list(OrderedDict.fromkeys(top for layer in spec.layers for top in layer.tops))
        self.blobs = OrderedDict()
        for layer in spec.layers:
            for k, top in enumerate(layer.tops):
                self.blobs[top] = Blob(np.zeros(self.shapes[layer.name, k]))
        self.inputs = [blob for blob, _ in spec.inputs]
        self.outputs = [blob for blob, _ in spec.outputs]

    def reshape(self):
        pass

    def _top_ids(self, index):
        return [self._blob_names.index(top) for top in self.spec.layers[index].tops]

    def _bottom_ids(self, index):
        return [self._blob_names.index(bottom) for bottom in self.spec.layers[index].bottoms]

    def _forward(self, start, end):
        from caffe_port.verification.references.numpy_formulas import compute

        layer = self.spec.layers[start]
        if layer.type == "Input":
            return
        if layer.type == os.environ.get("PLAYED_FORWARD"):
            abort("F1129 10:00:00.123456 77 power_layer.cpp:56] Not Implemented Yet")
        bottoms = [self.blobs[name].data for name in layer.bottoms]
        tops, why = compute(layer, bottoms, [blob.data for blob in self.layers[start].blobs])
        assert tops is not None, why
        for name, top in zip(layer.tops, tops, strict=True):
            self.blobs[name].data = top.astype(np.float32)

    def _backward(self, start, end):
        """Every gradient is 7. ArgMax has none; Embed refuses."""
        layer = self.spec.layers[start]
        if layer.type == "ArgMax":
            abort("F1129 10:00:00.123456 77 argmax_layer.hpp:67] Not Implemented Yet")
        if layer.type == "Embed":
            abort("F1129 10:00:00.123456 77 embed_layer.cpp:90] Check failed: !propagate_down[0] Can't backpropagate")
        for name in layer.bottoms:
            self.blobs[name].diff[...] = 7
