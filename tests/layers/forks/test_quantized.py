"""Ristretto's rounding: against loops written from base_ristretto_layer.cpp, number by number."""

import math
import struct

import numpy as np
import pytest
import torch
from fork_layers import build, random
from torch import nn

from caffe_port.errors import SpecError
from caffe_port.layers.forks.quantized import rounded


def away(value):
    return math.copysign(math.floor(abs(value) + 0.5), value)


def fixed(value, bits, places):
    step = 2.0**-places
    return away(max(min(value, (2 ** (bits - 1) - 1) * step), -(2 ** (bits - 1)) * step) / step) * step


def minifloat(value, mantissa_bits, exponent_bits):
    (word,) = struct.unpack("<I", struct.pack("<f", value))
    sign, exponent, mantissa = word >> 31, word >> 23 & 255, word & 0x7FFFFF
    bias = 2 ** (exponent_bits - 1) - 1
    if exponent == 0 or exponent - 127 + bias < 0:
        return 0.0
    exponent, most = exponent - 127 + bias, 2**exponent_bits - 1
    mantissa = 2**mantissa_bits - 1 if exponent > most else away(mantissa / 2 ** (23 - mantissa_bits))
    exponent = min(exponent, most)
    return (-1) ** sign * (1 + mantissa / 2**mantissa_bits) * 2.0 ** (exponent - bias)


def power(value, least, most):
    exponent = away(math.log2(abs(value))) if value else -math.inf
    return (1 if value >= 0 else -1) * 2.0 ** max(min(exponent, most), least)


NUMBERS = [*random(60, scale=3.0).tolist(), 0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 1e-5, -7e-3, 100.0, -1e6]


@pytest.mark.parametrize(
    ("bits", "loop"),
    [
        (("fixed", 8, 4), fixed),
        (("fixed", 5, -1), fixed),
        (("fixed", 16, 12), fixed),
        (("float", 3, 4), minifloat),
        (("float", 7, 3), minifloat),
        (("power", -8, -1), power),
        (("power", -3, 4), power),
    ],
)
def test_rounding_is_the_sources(bits, loop):
    x = torch.tensor(NUMBERS)
    want = [loop(value, *bits[1:]) for value in x.tolist()]
    assert rounded(x, bits).tolist() == want
    assert rounded(x.double(), bits).tolist() == want


def test_random_rounding_meets_both_neighbours_as_often_as_they_are_near():
    torch.manual_seed(0)
    values, counts = rounded(torch.full((4000,), 0.3), ("fixed", 8, 0), random=True).unique(return_counts=True)
    assert values.tolist() == [0, 1]
    assert 0.26 < counts[1] / 4000 < 0.34


BITS = "quantization_param { bw_layer_in: 6 bw_layer_out: 9 bw_params: 5 fl_layer_in: 2 fl_layer_out: 4 fl_params: 3 }"


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution", "Fc"])
def test_layers_round_bottom_weights_and_top(kind):
    x = random(2, 3, 5, 6)
    parameters = (
        "inner_product_param { num_output: 4 }"
        if kind == "Fc"
        else ("convolution_param { num_output: 4 kernel_size: 3 stride: 2 }")
    )
    layer = build(f"{kind}Ristretto", f"{parameters} {BITS}", x.shape)
    plain = build("InnerProduct" if kind == "Fc" else kind, parameters, x.shape)
    for mine, other in zip(layer.parameters(), plain.parameters(), strict=True):
        nn.init.normal_(mine)
        other.data = rounded(mine.data, ("fixed", 5, 3))
    want = rounded(plain(rounded(x, ("fixed", 6, 2))), ("fixed", 9, 4))
    assert torch.equal(layer(x), want)
    layer.train()(x).sum().backward()
    assert layer.weight.grad.abs().min() > 0  # the gradient passes the rounding
    assert not torch.equal(layer(x), layer(x))


def test_powers_of_two_leave_data_and_bias_alone():
    x = random(2, 3, 5, 6)
    text = "convolution_param { num_output: 4 kernel_size: 3 } quantization_param { precision: %s }"
    layer = build("ConvolutionRistretto", text % "INTEGER_POWER_OF_2_WEIGHTS", x.shape)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    weight = torch.from_numpy(np.vectorize(lambda v: power(v, -8, -1))(layer.weight.detach().numpy())).float()
    torch.testing.assert_close(layer(x), torch.nn.functional.conv2d(x, weight, layer.bias))


def test_lrn_rounds_every_number_to_minifloat_only():
    x = torch.tensor([[1.0, 3, 5]]).reshape(1, 3, 1, 1)
    text = "lrn_param { local_size: 3 alpha: 3 beta: 1 } quantization_param { precision: MINIFLOAT mant_bits: 2 }"
    layer = build("LRNRistretto", text, x.shape)
    # Squares 1, 10, 24; sums 12, 40, 40 (40 - 1); scales 14, 40, 40; their powers 5 / 64, 3 / 128, 3 / 128.
    got = layer(x).flatten().tolist()
    assert got == [5 / 64, 5 / 64, 1 / 8]
    assert layer.train()(x).flatten().tolist() == got
    with pytest.raises(SpecError, match="across channels only"):
        build("LRNRistretto", text.replace("local", "norm_region: WITHIN_CHANNEL local"), x.shape)
    with pytest.raises(SpecError, match="MINIFLOAT only"):
        build("LRNRistretto", "", x.shape)
