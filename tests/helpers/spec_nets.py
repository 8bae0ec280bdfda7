"""Nets written with NetSpec, and maps between their blobs, as text. Run by Caffe's own Python, prints what it makes."""

from __future__ import annotations

import itertools
from typing import Any


def texts(caffe: Any, coord_map: Any, as_text: Any) -> list[str]:
    """What a pycaffe makes of everything below.

    Args:
        caffe: with ``layers``, ``params``, ``NetSpec`` and ``to_proto``.
        as_text: google.protobuf.text_format.MessageToString.
    """
    L, P = caffe.layers, caffe.params  # noqa: N806 - their names in all scripts
    net = caffe.NetSpec()
    net.data, net.label = L.Data(
        batch_size=64,
        backend=P.Data.LMDB,
        source="a \"b\" 'c'\n",
        transform_param={"scale": 1.0 / 255, "mean_value": [104, 117, 123.68]},
        include={"phase": 0},
        ntop=2,
    )
    net.conv = L.Convolution(
        net.data,
        kernel_size=[5, 3],
        stride=2,
        num_output=20,
        param=[{"lr_mult": 1, "decay_mult": 0.1}, {"lr_mult": 2}],
        weight_filler={"type": "xavier"},
    )
    net["conv/relu"] = L.ReLU(net.conv, in_place=True)
    net.pool = L.Pooling(net["conv/relu"], pool=P.Pooling.AVE, kernel_size=2, stride=2)
    net.a, net.b = L.Slice(net.pool, axis=1, slice_point=10, ntop=2)
    net.sum = L.Eltwise(net.a, net.b, operation=P.Eltwise.SUM, coeff=[1, -1.5])
    net.up = L.Deconvolution(net.sum, convolution_param={"num_output": 3, "kernel_size": 4}, param={"lr_mult": 0})
    net.own = L.Python(net.up, python_param={"module": "m", "layer": "Own", "param_str": "{'a': 1}"}, loss_weight=1)
    net.bn = L.BatchNorm(net.own, use_global_stats=True, in_place=True, name="named")
    net.scale = L.Scale(net.bn, bias_term=True, in_place=True, scale_param={"axis": 1})
    net.ip = L.InnerProduct(net.scale, num_output=10, propagate_down=[True])
    net.loss = L.SoftmaxWithLoss(net.ip, net.label, loss_param={"ignore_label": 255}, loss_weight=[1, 2])
    net.accuracy = L.Accuracy(net.ip, net.label, top_k=5, include=[{"phase": 1}, {"stage": ["x", "y"], "min_level": 3}])
    net.nothing = L.Silence(net.label, ntop=0)
    net.shape = L.Reshape(net.ip, shape={"dim": [0, -1]})
    net.prior = L.PriorBox(net.up, net.data, min_size=30.0, max_size=[60.0], aspect_ratio=[2, 3], clip=False)
    net.norm = L.Normalize(net.up, scale_filler={"type": "constant", "value": 20}, across_spatial=False)
    window = {"nms_param": {"nms_threshold": 0.45}, "code_type": P.PriorBox.CENTER_SIZE}
    net.detection = L.DetectionOutput(net.norm, net.prior, detection_output_param=window, include={"phase": 1})
    one, two = L.DummyData(shape=[{"dim": [1, 2]}, {"dim": 3}], ntop=2, data_filler={"type": "gaussian", "std": 1e-7})
    relu = L.ReLU(L.Convolution(one, num_output=2, kernel_size=1), in_place=True)
    joined = L.Concat(relu, L.TanH(relu), L.Tile(two, axis=1, tiles=3))
    found = [as_text(made) for made in (net.to_proto(), joined.to_proto(), caffe.to_proto(joined, relu))]
    wrong = [
        lambda: L.Silence((one, two), ntop=0),
        lambda: L.Convolution(one, bogus=3).to_proto(),
        lambda: L.Nothing(one, bogus=3).to_proto(),
        lambda: L.Deconvolution(one, num_output=3).to_proto(),
        lambda: net.nosuch,
        lambda: net["nosuch"],
        lambda: P.Pooling.NOSUCH,
    ]
    found += [_outcome(case, str) for case in wrong]
    for window in ({}, {"pad": 2}, {"kernel_size": [3, 5], "stride": [1, 2]}, {"dilation": 2}, {"pool": 4, "up": 4}):
        net = _spatial(caffe, **window)
        for start, end in itertools.product(net.tops, repeat=2):
            found.append(f"{window} {start} {end}")
            found.append(_outcome(lambda: coord_map.coord_map_from_to(net[start], net[end]), _plain))  # noqa: B023
            found.append(_outcome(lambda: coord_map.crop(net[start], net[end]).to_proto(), as_text))  # noqa: B023
    return found


def _spatial(caffe: Any, kernel_size: Any = 3, stride: Any = 1, pool: int = 2, up: int = 2, **window: Any) -> Any:
    L, P = caffe.layers, caffe.params  # noqa: N806
    net = caffe.NetSpec()
    net.data = L.Input(shape={"dim": [2, 1, 90, 100]})
    net.conv = L.Convolution(net.data, num_output=4, kernel_size=kernel_size, stride=stride, **window)
    net.relu = L.ReLU(net.conv, in_place=True)
    net.pool = L.Pooling(net.relu, pool=P.Pooling.MAX, kernel_size=pool, stride=pool)
    net.up = L.Deconvolution(net.pool, convolution_param={"num_output": 4, "kernel_size": 2 * up, "stride": up})
    net.crop = L.Crop(net.up, net.data, axis=2, offset=3)
    net.channels = L.Crop(net.up, net.data, crop_param={"axis": 1})
    net.ip = L.InnerProduct(net.up, num_output=3)
    net.softmax = L.Softmax(net.up)
    net.sides = L.Pooling(net.data, kernel_size=3, stride_h=2, stride_w=1)
    return net


def _plain(found: Any) -> str:
    axis, scale, shift = found
    return f"{axis} {[float(x) for x in _listed(scale)]} {[float(x) for x in _listed(shift)]}"


def _listed(value: Any) -> Any:
    return value if hasattr(value, "__len__") else [value]


def _outcome(case: Any, shown: Any) -> str:
    try:
        return str(shown(case()))
    except AttributeError:  # whose text is protobuf's
        return "AttributeError"
    except Exception as error:  # noqa: BLE001 - whichever it is
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    import caffe
    import caffe.coord_map
    from google.protobuf.text_format import MessageToString

    print("\n".join(texts(caffe, caffe.coord_map, MessageToString)))
