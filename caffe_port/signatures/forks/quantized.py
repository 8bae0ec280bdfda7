"""The records of Ristretto's layers, which round their numbers. Source: pmgysel/caffe."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.linear import inner_product, inner_product_blobs, inner_product_macs
from caffe_port.signatures.normalization import IMAGE, lrn
from caffe_port.signatures.signature import ANY, Trait, declare
from caffe_port.signatures.spatial import convolution, convolution_blobs, convolution_macs
from caffe_port.typing import Shape


def rounding_arguments(p: Message) -> dict[str, tuple[str, int, int]]:
    """What a QuantizationParameter rounds to: data_in, data_out and weights, each (kind, bits, bits).

    Raises:
        SpecError: too few bits, or Intel's lists.
    """
    if p.precision == "MINIFLOAT":
        bits = ("float", int(p.mant_bits), int(p.exp_bits))
        if min(bits[1:]) < 1:
            raise SpecError(f"quantization_param: mant_bits {bits[1]} and exp_bits {bits[2]} must be 1 or more")
        return {"data_in": bits, "data_out": bits, "weights": bits}
    if p.precision == "INTEGER_POWER_OF_2_WEIGHTS":
        return {"weights": ("power", p.exp_min, p.exp_max)}
    args = {}
    for name, field in (("data_in", "layer_in"), ("data_out", "layer_out"), ("weights", "params")):
        places = getattr(p, f"fl_{field}")
        if len(places) > 1:
            raise SpecError(f"quantization_param: fl_{field} is given {len(places)} times (Intel's); once is supported")
        args[name] = ("fixed", int(getattr(p, f"bw_{field}")), int(places[0]) if places else 16)
        if args[name][1] < 2:
            raise SpecError(f"quantization_param: bw_{field} must be 2 or more, got {args[name][1]}")
    return args


def _convolution(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    rounding_arguments(layer.quantization_param)
    if layer.convolution_param.axis % max(1, len(bottoms[0])) != 1:
        raise SpecError(f"axis {layer.convolution_param.axis}: Ristretto's layers take axis 1 only")
    return convolution(layer, bottoms)


def _inner_product(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    rounding_arguments(layer.quantization_param)
    return inner_product(layer, bottoms)


def _lrn(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.quantization_param
    if p.precision != "MINIFLOAT":
        raise SpecError(f"precision {p.precision}: Ristretto's LRN rounds to MINIFLOAT only")
    if layer.lrn_param.norm_region != "ACROSS_CHANNELS":
        raise SpecError(f"norm_region {layer.lrn_param.norm_region}: Ristretto's LRN goes across channels only")
    return lrn(layer, bottoms)


for _type, _window in (("ConvolutionRistretto", Trait.SLIDES), ("DeconvolutionRistretto", Trait.SPREADS)):
    declare(
        _type,
        _convolution,
        message="convolution_param",
        also=("quantization_param",),
        bottoms=(1, ANY),
        blobs=("weight", "bias"),
        blob_shapes=convolution_blobs,
        macs=convolution_macs,
        traits=_window | Trait.PER_BOTTOM | Trait.WHOLE_LAYER,
    )
declare(
    "FcRistretto",
    _inner_product,
    message="inner_product_param",
    also=("quantization_param",),
    blobs=("weight", "bias"),
    blob_shapes=inner_product_blobs,
    macs=inner_product_macs,
    traits=Trait.DENSE | Trait.WHOLE_LAYER,
)
declare("LRNRistretto", _lrn, message="lrn_param", also=("quantization_param",), traits=IMAGE | Trait.WHOLE_LAYER)
