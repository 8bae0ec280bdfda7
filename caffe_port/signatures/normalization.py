"""The records of layers that normalize. Source: src/caffe/layers of Caffe 1.0, and of the forks named there."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.checks import expect_axes, expect_images
from caffe_port.signatures.signature import ANY, Trait, declare
from caffe_port.typing import Shape

IMAGE = Trait.KEEPS_CHANNELS | Trait.KEEPS_PLACES
"""The traits of layers that normalize an image."""


def _batch_norm(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    expect_axes(bottoms[0], 2, ANY)
    return bottoms


def _batch_norm_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:  # noqa: ARG001
    return {"mean": bottoms[0][1:2], "variance": bottoms[0][1:2], "scale_factor": (1,)}


def _bn(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.bn_param
    expect_axes(bottoms[0], 2, 5)
    if p.axis != 1:
        raise SpecError(f"BN over axis {p.axis}; only axis 1 (channels) is supported")
    if bn_keeps_decay(p) and not p.moving_average:
        raise SpecError(
            "BN without moving_average uses the statistics of the test batch, which is not supported", hint="set it"
        )
    return bottoms


def bn_keeps_decay(p: Message) -> bool:
    """Whether a BNParameter is happynear's, with a decay."""
    return any(p.has(name) for name in ("var_eps", "decay", "moving_average"))


def bn_is_segnets(p: Message) -> bool:
    """Whether a BNParameter is SegNet's: no running statistics. Synopsys' icnet says that there are."""
    return not (bn_keeps_decay(p) or p.icnet) and any(
        p.has(name) for name in ("bn_mode", "scale_filler", "shift_filler")
    )


def _batch_norm_kyle(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    expect_axes(bottoms[0], 2, ANY)
    return bottoms


def _batch_norm_kyle_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    affine = dict.fromkeys(("weight", "bias"), (bottoms[0][1],)) if layer.batch_norm_param.use_alpha_beta else {}
    return _batch_norm_blobs(layer, bottoms) | affine


def row_shape(layer: Message, channels: int) -> Shape:
    """The shape in which a BN's fork stores a vector.

    Sources: bn_layer.cpp of SegNet and synopsys-caffe (two blobs), of happynear and the PSPNet of 2016 (four): four
    axes each; of yjxiong, with slope_filler and bias_filler: two.
    """
    p = layer.bn_param
    return (1, channels, 1, 1) if bn_keeps_decay(p) or bn_is_segnets(p) else (1, channels)


def _bn_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    names = ("slope", "bias") if bn_is_segnets(layer.bn_param) else ("slope", "bias", "mean", "variance")
    return dict.fromkeys(names, (bottoms[0][1],))


def lrn(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """The rule of LRN, which has a middle."""
    p = layer.lrn_param
    expect_images(bottoms)
    if p.local_size % 2 == 0:
        raise SpecError(f"local_size must be odd, got {p.local_size}")
    return bottoms


def _mvn(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    """The top always has four axes."""
    expect_axes(bottoms[0], 0, 4)
    return [(*bottoms[0], *[1] * (4 - len(bottoms[0])))]


def _normalize(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """SSD's, and NormFace's, whose second top has the norms."""
    bottom = bottoms[0]
    expect_axes(bottom, 2, 4)
    if is_ssds(layer):
        return bottoms
    kind = layer.normalize_param.normalize_type
    if kind not in ("L1", "L2"):
        raise SpecError(f"normalize_type must be L1 or L2, got {kind}")
    return [bottom, (bottom[0], 1, *bottom[2:])] if len(layer.top) > 1 else bottoms


def is_ssds(layer: Message) -> bool:
    """Whether a Normalize is SSD's, with a scale: unless it has NormFace's parameters, or its second top."""
    return layer.has("norm_param") or not (layer.has("normalize_param") or len(layer.top) > 1)


def _normalize_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    if not is_ssds(layer):
        return {}
    return {"weight": () if layer.norm_param.channel_shared else (bottoms[0][1],)}


def _l2_normalization(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    expect_axes(bottoms[0], 2, ANY)
    own = [name for name in layer.unknown if str(name).endswith("_param")]
    if own:
        raise SpecError(f"L2Normalization parameters of this fork are not supported: {own[0]}")
    return bottoms


declare(
    "BatchNorm",
    _batch_norm,
    message="batch_norm_param",
    blobs=("mean", "variance", "scale_factor"),
    blob_shapes=_batch_norm_blobs,
    statistics=("mean", "variance", "scale_factor"),
    traits=Trait.AFFINE | Trait.BATCH_STATISTICS,
)
declare(
    "BN",
    _bn,
    message="bn_param",
    blobs=("slope", "bias", "mean", "variance"),
    blob_shapes=_bn_blobs,
    statistics=("mean", "variance"),
    traits=Trait.AFFINE | Trait.BATCH_STATISTICS | Trait.ROWS,
)
declare(
    "BatchNormKyle",
    _batch_norm_kyle,
    message="batch_norm_param",
    blobs=("mean", "variance", "scale_factor", "weight", "bias"),
    blob_shapes=_batch_norm_kyle_blobs,
    statistics=("mean", "variance", "scale_factor"),
    traits=Trait.AFFINE | Trait.BATCH_STATISTICS,
)
declare("LRN", lrn, message="lrn_param", traits=IMAGE)
declare("MVN", _mvn, message="mvn_param", traits=IMAGE)
declare(
    "Normalize",
    _normalize,
    message=("norm_param", "normalize_param"),
    blobs=("weight",),
    blob_shapes=_normalize_blobs,
    traits=IMAGE | Trait.WHOLE_LAYER,
)
declare(
    "L2Normalization",
    _l2_normalization,
    aliases=("L2Norm", "L2Normalize", "Normalization", "NormalizeFeature"),
    traits=IMAGE,
)
