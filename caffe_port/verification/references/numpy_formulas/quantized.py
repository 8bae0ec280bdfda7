"""Ristretto: layers that round what they read, multiply by and write. Source: pmgysel/caffe, src/caffe/ristretto."""

from __future__ import annotations

import dataclasses

import numpy as np

from caffe_port.formats.message import Message
from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas.formulas import Layer, Result, formula, rounded
from caffe_port.verification.references.numpy_formulas.linear import inner_product
from caffe_port.verification.references.numpy_formulas.spatial import convolution, deconvolution


def _fixed_point(x: Array, bits: int, places: int) -> Array:
    """Trim2FixedPoint: saturates, then rounds to 2^-places."""
    step = 2.0**-places
    least, most = -(2.0 ** (bits - 1)) * step, (2.0 ** (bits - 1) - 1) * step
    return rounded(x.clip(least, most) / step) * step


def _minifloat(x: Array, mantissa_bits: int, exponent_bits: int) -> Array:
    """Trim2MiniFloat_device: the bits of the single-precision number, with a shorter mantissa and exponent."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    mantissa, exponent, sign = bits & 0x7FFFFF, (bits >> 23 & 0xFF).astype(int), bits >> 31
    bias = 2 ** (exponent_bits - 1) - 1
    moved = exponent - 127 + bias
    most = 2**exponent_bits - 1
    short = rounded(mantissa / 2.0 ** (23 - mantissa_bits))
    short = np.where(moved > most, 2.0**mantissa_bits - 1, short)
    value = (1 + short / 2.0**mantissa_bits) * 2.0 ** (np.minimum(moved, most) - bias)
    return np.where((exponent == 0) | (moved < 0), 0, value * np.where(sign, -1, 1))


def _power_of_two(x: Array, least: int, most: int) -> Array:
    """Trim2IntegerPowerOf2."""
    return np.where(x >= 0, 1, -1) * 2.0 ** rounded(np.log2(np.abs(x))).clip(least, most)


def _rounded(p: Message, what: str, x: Array) -> Array:
    """The numbers of a ``layer_in``, ``layer_out`` or ``params``, rounded."""
    if p.precision == "MINIFLOAT":
        return _minifloat(x, p.mant_bits, p.exp_bits)
    if p.precision == "INTEGER_POWER_OF_2_WEIGHTS":  # QuantizeLayerInputs_cpu: the weights only
        return _power_of_two(x, p.exp_min, p.exp_max) if what == "params" else x
    places = getattr(p, f"fl_{what}")
    return _fixed_point(x, getattr(p, f"bw_{what}"), places[0] if places else 16)


@formula("ConvolutionRistretto", "DeconvolutionRistretto", "FcRistretto")
def rounded_product(layer: Layer) -> Result:
    """A product of rounded numbers, rounded. Sources: conv_, deconv_ and fc_ristretto_layer.cpp."""
    p = layer.param.quantization_param
    if layer.train or p.rounding_scheme == "STOCHASTIC":
        raise NotImplementedError("rounding at random")
    blobs = [_rounded(p, "params", layer.blobs[0]), *layer.blobs[1:]]
    if len(blobs) > 1 and p.precision != "INTEGER_POWER_OF_2_WEIGHTS":
        blobs[1] = _rounded(p, "params", blobs[1])
    kinds = {
        "ConvolutionRistretto": ("Convolution", convolution),
        "DeconvolutionRistretto": ("Deconvolution", deconvolution),
        "FcRistretto": ("InnerProduct", inner_product),
    }
    kind, product = kinds[layer.param.type]
    bottoms = [_rounded(p, "layer_in", x) for x in layer.bottoms]
    made = product(dataclasses.replace(layer, param=layer.param.copy(type=kind), bottoms=bottoms, blobs=blobs))
    return [_rounded(p, "layer_out", top) for top in ([made] if isinstance(made, np.ndarray) else made)]


@formula("LRNRistretto")
def rounded_lrn(layer: Layer) -> Result:
    """LRN over channels, with every number in between rounded: a sum that loses a square when it gains one.

    Source: lrn_ristretto_layer.cu.
    """
    p, bits, x = layer.param.lrn_param, layer.param.quantization_param, layer.x
    if p.norm_region != "ACROSS_CHANNELS":
        raise NotImplementedError("an LRNRistretto within channels")

    def short(values: Array) -> Array:
        return _minifloat(values, bits.mant_bits, bits.exp_bits)

    size, channels = p.local_size, x.shape[1]
    after = size - (size - 1) // 2 - 1
    numbers = short(x)
    squares = short(numbers * numbers)
    total = np.zeros_like(x[:, 0])
    top = np.empty_like(x)
    for head in range(channels + after):
        if head < channels:
            total = short(total + squares[:, head])
        if head >= max(size, after):
            total = short(total - squares[:, head - size])
        if head >= after:
            scale = short(p.k + short(total * (p.alpha / size)))
            top[:, head - after] = short(numbers[:, head - after] * short(scale**-p.beta))
    return top
