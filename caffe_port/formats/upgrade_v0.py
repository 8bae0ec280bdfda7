"""Upgrades nets of 2013, ``layers { layer { name: "c" type: "conv" ... } bottom: ... }``, to V1.

Source: upgrade_proto.cpp (UpgradeV0Net, UpgradeV0PaddingLayers, UpgradeV0LayerParameter).
"""

from __future__ import annotations

from caffe_port.errors import SpecError, did_you_mean
from caffe_port.formats.message import Message, at

V0_TYPES = {
    "accuracy": "ACCURACY",
    "bnll": "BNLL",
    "concat": "CONCAT",
    "conv": "CONVOLUTION",
    "data": "DATA",
    "dropout": "DROPOUT",
    "euclidean_loss": "EUCLIDEAN_LOSS",
    "flatten": "FLATTEN",
    "hdf5_data": "HDF5_DATA",
    "hdf5_output": "HDF5_OUTPUT",
    "im2col": "IM2COL",
    "images": "IMAGE_DATA",
    "infogain_loss": "INFOGAIN_LOSS",
    "innerproduct": "INNER_PRODUCT",
    "lrn": "LRN",
    "multinomial_logistic_loss": "MULTINOMIAL_LOGISTIC_LOSS",
    "pool": "POOLING",
    "relu": "RELU",
    "sigmoid": "SIGMOID",
    "softmax": "SOFTMAX",
    "softmax_loss": "SOFTMAX_LOSS",
    "split": "SPLIT",
    "tanh": "TANH",
    "window_data": "WINDOW_DATA",
}
"""V0's type string -> V1LayerParameter.LayerType."""

_OWNERS = {
    "conv": "convolution_param",
    "innerproduct": "inner_product_param",
    "pool": "pooling_param",
    "lrn": "lrn_param",
    "dropout": "dropout_param",
    "data": "data_param",
    "hdf5_data": "hdf5_data_param",
    "images": "image_data_param",
    "window_data": "window_data_param",
    "infogain_loss": "infogain_loss_param",
    "concat": "concat_param",
    "hdf5_output": "hdf5_output_param",
}
"""V0's type string -> the message that its flat parameters moved to."""

_RENAMED = {
    "biasterm": "bias_term",
    "kernelsize": "kernel_size",
    "batchsize": "batch_size",
    "shuffle_images": "shuffle",
    "det_fg_threshold": "fg_threshold",
    "det_bg_threshold": "bg_threshold",
    "det_fg_fraction": "fg_fraction",
    "det_context_pad": "context_pad",
    "det_crop_mode": "crop_mode",
}
_TRANSFORM = {"scale": "scale", "meanfile": "mean_file", "cropsize": "crop_size", "mirror": "mirror"}
_KEPT = ("name", "blobs", "blobs_lr", "weight_decay")


def upgrade_v0(net: Message, where: str) -> Message:
    """A NetParameter whose ``layers`` entries are all V1; a padding layer becomes the ``pad`` of the layer after it.

    Raises:
        SpecError: a type is unknown, or the layer after a padding layer is not conv or pool.
    """
    padded_by: dict[str, Message] = {}
    layers = []
    for connection in net.layers:
        old = connection.layer
        if old.type == "padding":
            if len(connection.bottom) != 1 or len(connection.top) != 1:
                raise _error(connection, where, "must have one bottom and one top")
            padded_by[connection.top[0]] = connection
            continue
        new = _layer(connection, where)
        for index, bottom in enumerate(connection.bottom):
            padding = padded_by.get(bottom)
            if padding is None:
                continue
            if old.type not in ("conv", "pool"):
                raise _error(connection, where, f"reads padding layer '{padding.layer.name}'; only conv and pool may")
            _owner(new, _OWNERS[old.type]).set("pad", [padding.layer.pad])
            new.bottom[index] = padding.bottom[0]
        for top in connection.top:
            padded_by.pop(top, None)
        layers.append(new)
    return net.copy(layers=layers)


def _error(connection: Message, where: str, what: str) -> SpecError:
    return SpecError(f"layer '{connection.layer.name}' ({connection.layer.type}): {what}", at(where, connection))


def _owner(layer: Message, name: str) -> Message:
    if not layer.has(name):
        layer.set(name, getattr(layer, name).copy())
    return getattr(layer, name)  # type: ignore[no-any-return]


def _layer(connection: Message, where: str) -> Message:
    """One layer; a parameter that its type does not have is kept as unknown, where Caffe warns and continues."""
    old = connection.layer
    if old.type not in V0_TYPES:
        raise _error(connection, where, f"is not a layer type of V0.{did_you_mean(old.type, V0_TYPES)}")
    new = Message("V1LayerParameter", connection.line, bottom=list(connection.bottom), top=list(connection.top))
    new.set("type", V0_TYPES[old.type])
    owner_name = _OWNERS.get(old.type)
    for name, value in old.items():
        if name in _KEPT:
            new.set(name, value)
        elif name in _TRANSFORM:
            _owner(new, "transform_param").set(_TRANSFORM[name], value)
        elif name == "hdf5_output_param":
            new.set(name, value)
        elif name != "type" and owner_name is not None:
            owner = _owner(new, owner_name)
            assert owner.schema is not None
            field = owner.schema.fields.get(_RENAMED.get(name, name))
            if field is None:
                new.unknown[name] = [value]
            else:
                owner.set(field.name, [value] if field.repeated and not isinstance(value, list) else value)
        elif name != "type":
            new.unknown[name] = [value]
    if connection.has("blobs"):
        new.set("blobs", connection.blobs)
    return new
