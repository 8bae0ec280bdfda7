"""The records of activations and other functions of one number. Source: src/caffe/layers of Caffe 1.0."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.checks import canonical_axis, expect_axes, same
from caffe_port.signatures.signature import Trait, declare
from caffe_port.typing import Shape


def _clip(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.clip_param
    for name in ("min", "max"):
        if not p.has(name):
            raise SpecError(f"clip_param has no {name}; it needs min and max")
    if p.min > p.max:
        raise SpecError(f"clip_param: min {p.min} is greater than max {p.max}")
    return bottoms


def _dropout(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    if not 0 <= layer.dropout_param.dropout_ratio < 1:
        raise SpecError(f"dropout_ratio {layer.dropout_param.dropout_ratio} is not in [0, 1)")
    return bottoms


def checked_base(base: float) -> float | None:
    """The base of Exp and Log, None for e. Raises SpecError for one that is not positive."""
    if base == -1:
        return None
    if not base > 0:
        raise SpecError(f"base {base} is not positive (-1, the default, means e)")
    return base


def _exp(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    checked_base(layer.exp_param.base)
    return bottoms


def _log(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    if checked_base(layer.log_param.base) == 1:
        raise SpecError("base must not be 1")
    return bottoms


def _prelu(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    expect_axes(bottoms[0], 2, 5)  # Caffe 1.0: 4; Intel's takes volumes
    return bottoms


def _prelu_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    return {"weight": () if layer.prelu_param.channel_shared else (bottoms[0][1],)}


def _softmax(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    canonical_axis(layer.softmax_param.axis, len(bottoms[0]))
    return bottoms


declare("AbsVal", same, traits=Trait.ELEMENTWISE | Trait.NOT_IN_PLACE)
declare("BNLL", same, aliases=("Softplus",), traits=Trait.ACTIVATION)
declare("Clip", _clip, message="clip_param", traits=Trait.ELEMENTWISE)
declare("Dropout", _dropout, message="dropout_param", traits=Trait.ELEMENTWISE | Trait.NO_NUMBERS)
declare("ELU", same, message="elu_param", traits=Trait.ACTIVATION)
declare("Exp", _exp, message="exp_param", traits=Trait.ELEMENTWISE)
declare("Log", _log, message="log_param", traits=Trait.ELEMENTWISE)
declare("Power", same, message="power_param", traits=Trait.ELEMENTWISE)
declare("PReLU", _prelu, message="prelu_param", blobs=("weight",), blob_shapes=_prelu_blobs, traits=Trait.ACTIVATION)
declare("ReLU", same, message="relu_param", traits=Trait.ACTIVATION)
declare("ReLU6", same, aliases=("Relu6",), message="relu6_param", traits=Trait.ACTIVATION)
declare("Sigmoid", same, traits=Trait.ACTIVATION)
declare(
    "Softmax",
    _softmax,
    aliases=("VoxelSoftmax",),
    message="softmax_param",
    traits=Trait.KEEPS_CHANNELS | Trait.KEEPS_PLACES | Trait.AGGREGATES,
)
declare("Swish", same, message="swish_param", traits=Trait.ACTIVATION)
declare("TanH", same, traits=Trait.ACTIVATION)
declare("Threshold", same, message="threshold_param", traits=Trait.ELEMENTWISE)
