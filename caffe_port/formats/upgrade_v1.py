"""Upgrades old definitions: V1 and legacy inputs to V2 (V0 in :mod:`caffe_port.formats.upgrade_v0`).

Everything downstream of this module sees LayerParameters only. Source: upgrade_proto.cpp.
"""

from __future__ import annotations

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message, at
from caffe_port.terminal import count

V1_TYPES = {
    "NONE": "",
    "ABSVAL": "AbsVal",
    "ACCURACY": "Accuracy",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "CONCAT": "Concat",
    "CONTRASTIVE_LOSS": "ContrastiveLoss",
    "CONVOLUTION": "Convolution",
    "DATA": "Data",
    "DECONVOLUTION": "Deconvolution",
    "DROPOUT": "Dropout",
    "DUMMY_DATA": "DummyData",
    "EUCLIDEAN_LOSS": "EuclideanLoss",
    "ELTWISE": "Eltwise",
    "EXP": "Exp",
    "FLATTEN": "Flatten",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "HINGE_LOSS": "HingeLoss",
    "IM2COL": "Im2col",
    "IMAGE_DATA": "ImageData",
    "INFOGAIN_LOSS": "InfogainLoss",
    "INNER_PRODUCT": "InnerProduct",
    "LRN": "LRN",
    "MEMORY_DATA": "MemoryData",
    "MULTINOMIAL_LOGISTIC_LOSS": "MultinomialLogisticLoss",
    "MVN": "MVN",
    "POOLING": "Pooling",
    "POWER": "Power",
    "RELU": "ReLU",
    "SIGMOID": "Sigmoid",
    "SIGMOID_CROSS_ENTROPY_LOSS": "SigmoidCrossEntropyLoss",
    "SILENCE": "Silence",
    "SLICE": "Slice",
    "SOFTMAX": "Softmax",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "SPLIT": "Split",
    "TANH": "TanH",
    "THRESHOLD": "Threshold",
    "WINDOW_DATA": "WindowData",
    # Forks
    "BN": "BN",
    "CONVOLUTION3D": "Convolution3D",
    "CROP": "Crop",
    "DECONVOLUTION3D": "Deconvolution3D",
    "DENSE_CRF": "DenseCRF",
    "HOLE_CONVOLUTION": "Convolution",
    "IMAGE_SEG_DATA": "ImageSegData",
    "INTERP": "Interp",
    "POOLING3D": "Pooling3D",
    "PRELU": "PReLU",
    "ROI_POOLING": "ROIPooling",
    "SEG_ACCURACY": "SegAccuracy",
    "SMOOTH_L1_LOSS": "SmoothL1Loss",
    "SPP": "SPP",
    "UPSAMPLE": "Upsample",
    "VIDEO_DATA": "VideoData",
}
"""V1LayerParameter.LayerType -> type string."""

_V1_ONLY = ("type", "layer", "param", "blob_share_mode", "blobs_lr", "weight_decay")


def upgrade(net: Message, where: str) -> Message:
    """Upgrades a NetParameter of any age to one with ``layer`` entries and Input layers only.

    Raises:
        SpecError: ``layer`` and ``layers`` are mixed, or the legacy inputs are incomplete.
    """
    if net.has("layer") and net.has("layers"):
        raise SpecError(
            "'layers' (the old format) and 'layer' are mixed in one net, which Caffe rejects too",
            at(where, net.layers[0]),
            "Write all layers in the same format.",
        )
    if net.has("layers"):
        if any(entry.has("layer") for entry in net.layers):
            from caffe_port.formats.upgrade_v0 import upgrade_v0

            net = upgrade_v0(net, where)
        net = net.copy(layers=None, layer=[_from_v1(entry, where) for entry in net.layers])
    net = net.copy(layer=[_move_transform(_old_batch_norm(layer)) for layer in net.layer])
    return _legacy_inputs(net, where)


def _from_v1(old: Message, where: str) -> Message:
    new = Message("LayerParameter", old.line)
    assert new.schema is not None
    for name, value in old.items():
        if name not in _V1_ONLY and name in new.schema.fields:
            new.set(name, value)
    new.unknown = dict(old.unknown)
    for key, values in old.unknown.items():  # a fork's parameters, which its own V1LayerParameter has
        if len(values) == 1 and isinstance(values[0], Message) and values[0].schema is not None:
            new.set(str(key), values[0])
            del new.unknown[key]
    if old.has("type"):
        if not isinstance(old.type, str):
            raise SpecError(f"layer '{old.name}': type {old.type} is not a V1 type", at(where, old))
        own = "".join(word.capitalize() for word in old.type.split("_"))  # a fork's: DENSE_IMAGE_DATA, DenseImageData
        new.set("type", V1_TYPES.get(old.type, own))
        if old.type == "LSTM" and old.has("recurrent_param"):  # Caffe's, not the older fork's with an lstm_param
            new.set("type", "LSTM")
    params = []
    for index in range(max(len(old.param), len(old.blob_share_mode), len(old.blobs_lr), len(old.weight_decay))):
        param = Message("ParamSpec", old.line)
        for name, values in (
            ("name", old.param),
            ("share_mode", old.blob_share_mode),
            ("lr_mult", old.blobs_lr),
            ("decay_mult", old.weight_decay),
        ):
            if index < len(values):
                param.set(name, values[index])
        params.append(param)
    if params:
        new.set("param", params)
    return new


def _old_batch_norm(layer: Message) -> Message:
    """Old BatchNorm layers set learning rates for the statistics, which a solver must not update."""
    if layer.type != "BatchNorm" or len(layer.param) != 3:
        return layer
    return layer.copy(param=[p.copy(lr_mult=0.0, decay_mult=0.0) for p in layer.param])


_TRANSFORM_OWNERS = {"Data": "data_param", "ImageData": "image_data_param", "WindowData": "window_data_param"}


def _move_transform(layer: Message) -> Message:
    """Moves scale, mean_file, crop_size and mirror of old data layers to transform_param."""
    owner_name = _TRANSFORM_OWNERS.get(layer.type)
    if owner_name is None or not layer.has(owner_name):
        return layer
    owner = getattr(layer, owner_name)
    old = {n: getattr(owner, n) for n in ("scale", "mean_file", "crop_size", "mirror") if owner.has(n)}
    if not old:
        return layer
    transform = layer.transform_param.copy(**old)
    return layer.copy(transform_param=transform, **{owner_name: owner.copy(**dict.fromkeys(old))})


def _legacy_inputs(net: Message, where: str) -> Message:
    """Turns ``input:`` with ``input_shape``, or with four ``input_dim`` each, into one Input layer.

    As in UpgradeNetInput, input_shape takes precedence over input_dim, and any excess is ignored. Names without shapes
    are inputs whose shape the user gives, unless a layer makes them: Caffe only clears them.
    """
    if not net.has("input"):
        return net
    names, shapes, dims = net.input, net.input_shape, net.input_dim
    n = len(names)
    if dims and not shapes:
        if len(dims) < 4 * n:
            raise SpecError(f"expected {4 * n} input_dim values for {count(n, 'input')}, got {len(dims)}", where)
        shapes = [Message("BlobShape", dim=list(dims[4 * i : 4 * i + 4])) for i in range(n)]
    elif shapes and len(shapes) < n:
        raise SpecError(f"expected {n} input_shape for {count(n, 'input')}, got {len(shapes)}", where)
    shapes = shapes[:n]
    if not shapes:
        made = {top for layer in net.layer for top in layer.top}
        names = [name for name in names if name not in made]
        if not names:
            return net.copy(input=None)
    layer = Message("LayerParameter", net.line, name="input", type="Input", top=list(names))
    if shapes:
        layer.set("input_param", Message("InputParameter", net.line, shape=list(shapes)))
    return net.copy(input=None, input_shape=None, input_dim=None, layer=[layer, *net.layer])
