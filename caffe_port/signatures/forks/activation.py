"""The records of forks' activations, and of layers that do something in training only."""

from __future__ import annotations

import math
from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.checks import expect_axes, same
from caffe_port.signatures.signature import ANY, Trait, declare
from caffe_port.typing import Shape

IN_TRAINING = Trait.ELEMENTWISE | Trait.NO_NUMBERS


def _insanity(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.insanity_param
    if p.ub <= p.lb or p.lb * p.ub == 0:
        raise SpecError(f"insanity_param: lb {p.lb} and ub {p.ub}; lb must be less than ub, and neither may be 0")
    return bottoms


def _eltwise_affine(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    expect_axes(bottoms[0], 2, ANY)
    return bottoms


def _eltwise_affine_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    shape = () if layer.eltwise_affine_param.channel_shared else (bottoms[0][1],)
    return {"slope": shape, "bias": shape}


def _power_file(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    expect_axes(bottoms[0], 2, ANY)
    return bottoms


def truncation_bounds(p: Message) -> tuple[float, float]:
    """The least and the greatest number of a Truncation."""
    low = p.truncation_min if p.has("truncation_min") else -math.inf
    high = p.truncation_max if p.has("truncation_max") else math.inf
    if low > high:
        raise SpecError(f"truncation_param: truncation_min {low} is greater than truncation_max {high}")
    return low, high


def _truncation(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    truncation_bounds(layer.truncation_param)
    return bottoms


def _selu_dropout(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    ratio = layer.selu_dropout_param.dropout_ratio
    if not 0 < ratio < 1:
        raise SpecError(f"selu_dropout_param: dropout_ratio {ratio} is not between 0 and 1")
    return bottoms


def _spatial_dropout(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.spatial_dropout_param if layer.has("spatial_dropout_param") else layer.dropout_param
    if not 0 <= p.dropout_ratio < 1:
        raise SpecError(f"dropout_ratio {p.dropout_ratio} is not in [0, 1)")
    return bottoms


def _scale_tanh(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    if layer.scale_tanh_param.step_size < 1:
        raise SpecError("step_size must be at least 1")
    return bottoms


def _sparsify(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    if min(layer.sparsify_param.thre, layer.sparsify_param.coef) < 0:
        raise SpecError("thre and coef must not be negative")
    return bottoms


def _guided_dropout(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p, (x, guidance) = layer.guided_dropout_param, bottoms
    if len(x) < 2 or guidance[:2] != x[:2] or any(n != 1 for n in guidance[2:]):
        raise SpecError(f"expected a bottom (N, C, ...) and guidance (N, C), got {x} and {guidance}")
    needed = {"deterministic": "guidance_threshold", "stochastic": "sigmoid_scaler"}
    if p.type not in needed or not p.has(needed[p.type]):
        raise SpecError("expected type: 'deterministic' with guidance_threshold, or 'stochastic' with sigmoid_scaler")
    return [x]


def _norm(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    """Four axes, whatever the bottom's."""
    expect_axes(bottoms[0], 1, 4)
    return [(*bottoms[0], *[1] * (4 - len(bottoms[0])))]


declare("HSwish", same, aliases=("HardSwish",), traits=Trait.ACTIVATION | Trait.NO_BACKWARD)
declare("HSigmoid", same, traits=Trait.ACTIVATION)
declare(
    "HardSigmoid",
    same,
    message=("hard_sigmoid_param", "hardsigmoid_param"),
    traits=Trait.ACTIVATION | Trait.NO_BACKWARD,
)
declare("SELU", same, message="selu_param", aliases=("SeLu", "Selu"), traits=Trait.ACTIVATION)
declare("Atan", same, traits=Trait.ACTIVATION | Trait.NO_BACKWARD)
declare("NegReLU", same, message="relu_param", traits=Trait.ACTIVATION)
declare("ScaleTanH", _scale_tanh, message="scale_tanh_param", traits=Trait.ACTIVATION)
declare("Sparsify", _sparsify, message="sparsify_param", traits=Trait.ACTIVATION)
declare("Norm", _norm)
declare(
    "GuidedDropout",
    _guided_dropout,
    message="guided_dropout_param",
    bottoms=2,
    traits=Trait.KEEPS_CHANNELS | Trait.KEEPS_PLACES,
)
declare("SignedSqrt", same, traits=Trait.ELEMENTWISE)
declare("Insanity", _insanity, message="insanity_param", traits=Trait.ACTIVATION)
declare(
    "EltwiseAffine",
    _eltwise_affine,
    message="eltwise_affine_param",
    blobs=("slope", "bias"),
    blob_shapes=_eltwise_affine_blobs,
    traits=Trait.AFFINE,
)
declare("PowerFile", _power_file, message="power_file_param", traits=Trait.ELEMENTWISE)
declare("Truncation", _truncation, message="truncation_param", traits=Trait.ELEMENTWISE)
declare(
    "SpatialDropout",
    _spatial_dropout,
    message=("spatial_dropout_param", "dropout_param"),
    aliases=("ChannelDropout",),
    traits=IN_TRAINING,
)
declare("SeLUDropout", _selu_dropout, message="selu_dropout_param", aliases=("SeLuDropout",), traits=IN_TRAINING)
declare("Noise", same, message="noise_param", aliases=("AddNoise", "GaussianNoise", "RandomNoise"), traits=IN_TRAINING)
declare(
    "GradientScaler",
    same,
    message="gradient_scaler_param",
    aliases=("GRL", "GradientReversal"),
    traits=IN_TRAINING | Trait.WHOLE_LAYER,
)
