"""Nets for the tests of pycaffe, and a script that says all of them that ``caffe.Net`` can be asked."""

from __future__ import annotations

IN_PLACE = """name: "in place" force_backward: true
input: "data" input_shape { dim: 2 dim: 3 dim: 9 dim: 11 }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 5 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "conv1" }
layer { name: "sc1" type: "Scale" bottom: "conv1" top: "conv1" scale_param { bias_term: true } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "drop1" type: "Dropout" bottom: "conv1" top: "conv1" include { phase: TEST } }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "a" type: "Convolution" bottom: "pool1" top: "a" convolution_param { num_output: 4 kernel_size: 1 } }
layer { name: "b" type: "Convolution" bottom: "pool1" top: "b"
  convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
layer { name: "sum" type: "Eltwise" bottom: "a" bottom: "b" top: "sum" }
layer { name: "relu2" type: "ReLU" bottom: "sum" top: "sum" relu_param { negative_slope: 0.1 } }
layer { name: "cat" type: "Concat" bottom: "sum" bottom: "pool1" top: "cat" }
layer { name: "prelu" type: "PReLU" bottom: "cat" top: "cat" }
layer { name: "mean" type: "Pooling" bottom: "cat" top: "mean" pooling_param { pool: AVE global_pooling: true } }
layer { name: "fc" type: "InnerProduct" bottom: "mean" top: "fc" inner_product_param { num_output: 4 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""

LOSS = """name: "loss"
layer { name: "data" type: "DummyData" top: "data" top: "label"
  dummy_data_param { shape { dim: 3 dim: 2 dim: 6 dim: 5 } shape { dim: 3 } } }
layer { name: "ip1" type: "InnerProduct" bottom: "data" top: "ip1" param { name: "w" lr_mult: 2 } param { name: "b" }
  inner_product_param { num_output: 6 } }
layer { name: "sig" type: "Sigmoid" bottom: "ip1" top: "ip1" }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2" param { lr_mult: 0 } param { lr_mult: 0 }
  inner_product_param { num_output: 4 transpose: true } }
layer { name: "acc" type: "Accuracy" bottom: "ip2" bottom: "label" top: "acc" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" loss_weight: 0.5 }
layer { name: "aux" type: "InnerProduct" bottom: "data" top: "aux" param { name: "w" } param { name: "b" }
  inner_product_param { num_output: 6 } }
layer { name: "red" type: "Reduction" bottom: "aux" top: "red" reduction_param { operation: SUMSQ } loss_weight: 0.1 }
layer { name: "eu" type: "EuclideanLoss" bottom: "aux" bottom: "ip1" }
"""

APART = """name: "apart" force_backward: true
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 4 dim: 8 dim: 7 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "c"
  convolution_param { num_output: 6 kernel_size: 3 pad: 1 group: 2 } }
layer { name: "bn1" type: "BatchNorm" bottom: "c" top: "b" batch_norm_param { use_global_stats: true } }
layer { name: "sc1" type: "Scale" bottom: "b" top: "s" scale_param { bias_term: true } }
layer { name: "relu1" type: "ReLU" bottom: "s" top: "r" }
layer { name: "sl" type: "Slice" bottom: "r" top: "x" top: "y" slice_param { axis: 1 slice_point: 2 } }
layer { name: "lrn" type: "LRN" bottom: "y" top: "n" lrn_param { local_size: 3 } }
layer { name: "flat" type: "Flatten" bottom: "x" top: "f" }
layer { name: "resh" type: "Reshape" bottom: "n" top: "q" reshape_param { shape { dim: 0 dim: -1 } } }
layer { name: "all" type: "Concat" bottom: "f" bottom: "q" top: "z" }
layer { name: "mx" type: "TanH" bottom: "z" top: "out" }
"""

DEPLOY = """name: "deploy"
input: "data" input_dim: 2 input_dim: 3 input_dim: 9 input_dim: 11
layers { name: "conv1" type: CONVOLUTION bottom: "data" top: "conv1"
  convolution_param { num_output: 5 kernel_size: 3 } }
layers { name: "relu1" type: RELU bottom: "conv1" top: "conv1" }
layers { name: "prob" type: SOFTMAX bottom: "conv1" top: "prob" }
"""

NETS = {"in_place": IN_PLACE, "loss": LOSS, "apart": APART, "deploy": DEPLOY}

TELL = """
import json, sys
import numpy as np
import caffe

facts, arrays = {}, {}
for name in sys.argv[2:]:
    for phase in (caffe.TRAIN, caffe.TEST):
        net = caffe.Net(name + ".prototxt", phase)
        key, draw = "%s %d" % (name, phase), np.random.RandomState(1)
        facts[key] = {
            "layers": list(net._layer_names),
            "types": [layer.type for layer in net.layers],
            "blobs": [(n, list(b.shape), b.count) for n, b in net.blobs.items()],
            "legacy": [(b.num, b.channels, b.height, b.width) for b in net.blobs.values()],
            "inputs": list(net.inputs),
            "outputs": list(net.outputs),
            "params": [(n, [list(b.shape) for b in v]) for n, v in net.params.items()],
            "bottoms": [(n, list(v)) for n, v in net.bottom_names.items()],
            "tops": [(n, list(v)) for n, v in net.top_names.items()],
            "weights": [(n, float(w)) for n, w in net.blob_loss_weights.items()],
            "ids": [(list(net._bottom_ids(i)), list(net._top_ids(i))) for i in range(len(net.layers))],
        }
        for n, v in net.params.items():
            for b in v:
                x = 0.3 * draw.standard_normal(b.data.shape)
                b.data[...] = np.abs(x) + 0.5 if net.layer_dict[n].type == "BatchNorm" else x
        net.blobs["data"].data[...] = draw.standard_normal(net.blobs["data"].data.shape)
        if "label" in net.blobs:
            net.blobs["label"].data[...] = [1, 3, 0]
        given = sorted(net.forward())

        def keep(when):
            for n, b in net.blobs.items():
                arrays[" ".join([key, when, "data", n])] = b.data.copy()
                arrays[" ".join([key, when, "diff", n])] = b.diff.copy()
            for n, v in net.params.items():
                for k, b in enumerate(v):
                    arrays[" ".join([key, when, "param", n, str(k)])] = b.data.copy()
                    arrays[" ".join([key, when, "gradient", n, str(k)])] = b.diff.copy()

        keep("forward")
        for n in net.outputs:
            if not net.blob_loss_weights[n] and n != "acc":
                net.blobs[n].diff[...] = draw.standard_normal(net.blobs[n].diff.shape)
        facts[key]["returned"] = given, sorted(net.backward())
        keep("backward")
        if name == "apart":
            net.backward(start="relu1", end="conv1")
            keep("backward in part")
        net.clear_param_diffs()
        net.forward()
        net.backward()
        keep("again")
        if list(net.inputs) == ["data"]:
            shape = [n + k for n, k in zip(net.blobs["data"].shape, (1, 0, 3, 4))]
            net.blobs["data"].reshape(*shape)
            net.reshape()
            facts[key]["reshaped"] = [(n, list(b.shape)) for n, b in net.blobs.items()]
            net.blobs["data"].data[...] = draw.standard_normal(shape)
            net.forward()
            keep("reshaped")
json.dump(facts, open(sys.argv[1] + ".json", "w"))
np.savez(sys.argv[1] + ".npz", **arrays)
"""
"""Writes what pycaffe says of nets to ARGUMENT.json, and their numbers to ARGUMENT.npz."""
