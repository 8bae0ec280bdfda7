"""Recurrent layers over the first axis, time. A 0 in the second bottom resets the state."""

from __future__ import annotations

import numpy as np

from caffe_port.formats.message import Message
from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas.formulas import Layer, Result, formula


def _sigmoid(x: Array) -> Array:
    return 0.5 * np.tanh(0.5 * x) + 0.5


def _lstm_unit(gates: Array, cell: Array, keep: Array) -> tuple[Array, Array]:
    """Gates i, f, o, g; keep is 0 where a sequence begins. Source: lstm_unit_layer.cpp."""
    i, f, o, g = np.split(gates, 4, axis=-1)
    cell = _sigmoid(i) * np.tanh(g) + keep * _sigmoid(f) * cell
    return cell, _sigmoid(o) * np.tanh(cell)


@formula("LSTMUnit")
def lstm_unit(layer: Layer) -> Result:
    """Bottoms: cell (1, N, D), gates (1, N, 4 D), continuation (1, N)."""
    cell, gates, keep = layer.bottoms
    return list(_lstm_unit(gates, cell, keep[..., None]))


@formula("LSTM")
def lstm(layer: Layer) -> Result:
    """gates = W_x x + b + W_h (keep * h) + W_s static. Source: lstm_layer.cpp."""
    p = layer.param.recurrent_param
    x, keep = layer.x, layer.bottoms[1]
    rest = list(layer.bottoms[2:])
    n, d = x.shape[1], p.num_output
    static = rest.pop(0).reshape(n, -1) if len(rest) in (1, 3) else None
    hidden, cell = (r.reshape(n, d) for r in rest) if p.expose_hidden else (np.zeros((n, d)), np.zeros((n, d)))
    weight, bias, recurrent = layer.blobs[0], layer.blobs[1], layer.blobs[-1]
    constant = bias.reshape(-1) if static is None else bias.reshape(-1) + static @ layer.blobs[2].T
    tops = []
    for t in range(x.shape[0]):
        k = keep[t].reshape(n, 1)
        gates = x[t].reshape(n, -1) @ weight.T + constant + (k * hidden) @ recurrent.T
        cell, hidden = _lstm_unit(gates, cell, k)
        tops.append(hidden)
    ends = [hidden[None], cell[None]] if p.expose_hidden else []
    return [np.stack(tops), *ends]


@formula("RNN")
def rnn(layer: Layer) -> Result:
    """h = tanh(W_h (keep * h) + W_x x + b + W_s static); o = tanh(W_o h + b_o). Source: rnn_layer.cpp."""
    p = layer.param.recurrent_param
    x, keep = layer.x, layer.bottoms[1]
    rest = list(layer.bottoms[2:])
    n, d = x.shape[1], p.num_output
    static = rest.pop(0).reshape(n, -1) if len(rest) in (1, 2) and not (p.expose_hidden and len(rest) == 1) else None
    hidden = rest[0].reshape(n, d) if p.expose_hidden else np.zeros((n, d))
    blobs = list(layer.blobs)
    weight, bias = blobs[0], blobs[1].reshape(-1)
    constant = bias if static is None else bias + static @ blobs.pop(2).T
    recurrent, out, out_bias = blobs[2], blobs[3], blobs[4].reshape(-1)
    tops = []
    for t in range(x.shape[0]):
        k = keep[t].reshape(n, 1)
        hidden = np.tanh((k * hidden) @ recurrent.T + x[t].reshape(n, -1) @ weight.T + constant)
        tops.append(np.tanh(hidden @ out.T + out_bias))
    return [np.stack(tops), *([hidden[None]] if p.expose_hidden else [])]


@formula("Lstm")
def lstm_of_ocr(layer: Layer) -> Result:
    """Gates i, f, o, g of W_x x + b + W_h h; a forward begins with zeros. Sources: lstm_layer.cpp (caffe-lstm, CTPN).

    Where there is a second bottom, the source goes on from the end of the forward before.
    """
    p, x = layer.param.lstm_param, layer.x
    streams = p.batch_size if x.ndim == 2 or p.has("batch_size") else x.shape[1]
    steps = x.reshape(-1, streams, layer.blobs[0].reshape(4 * p.num_output, -1).shape[1])
    keep = np.ones(steps.shape[:2])
    keep[0] = 0
    if len(layer.bottoms) > 1:
        keep = layer.bottoms[1].reshape(keep.shape)
    weight, recurrent = (blob.reshape(4 * p.num_output, -1) for blob in layer.blobs[:2])
    hidden = cell = np.zeros((streams, p.num_output))
    tops = []
    for now, go_on in zip(steps, keep != 0, strict=True):
        gates = now @ weight.T + layer.blobs[2].reshape(-1) + go_on[:, None] * (hidden @ recurrent.T)
        cell, hidden = _lstm_unit(gates, cell, go_on[:, None])
        tops.append(hidden)
    top = np.stack(tops)
    return top.reshape(-1, p.num_output) if x.shape[:2] != steps.shape[:2] else top


@formula("ConvLSTM")
def conv_lstm(layer: Layer) -> Result:
    """gates = W_x * x + W_h * (keep h) + b, and for i, f and o the last cell times weights.

    Sources: conv_lstm_layer.cpp, conv_lstm_unit_layer.cpp, conv_lstm_helper.hpp (agethen/ConvLSTM-for-Caffe).
    """
    p, x, keep = layer.param, layer.x, layer.bottoms[1]
    debug, exposed = p.lstm_debug_param, p.recurrent_param.expose_hidden
    first, last = p.lstm_conv_param[0], p.lstm_conv_param[-1]
    of_x, of_h = last if first.type == "hidden" else first, last if first.type == "input" else first
    blobs, (n, sides), d = list(layer.blobs), (x.shape[1], x.shape[3:]), first.num_output
    constant = np.zeros((x.shape[0], n, 4 * d, *sides))
    if not debug.ignore_x:
        constant = _images(of_x, x.reshape(-1, *x.shape[2:]), blobs.pop(0)).reshape(constant.shape)
        if len(layer.bottoms) == (5 if exposed else 3):
            constant = constant + _images(of_x, layer.bottoms[2][0], blobs.pop(0))
    weight, bias = blobs[2:4]  # after two blobs without effect, as the last two are
    hidden, cell = [b[0] for b in layer.bottoms[-2:]] if exposed else [np.zeros((n, d, *sides))] * 2
    tops = []
    for t in range(x.shape[0]):
        k = keep[t].reshape(n, 1, 1, 1)
        gates = constant[t] + _images(of_h, k * hidden, weight) + bias.reshape(-1, 1, 1)
        if not debug.disable_hadamard:
            for index, one in enumerate(blobs[4:7]):
                ones = 5 - debug.axis_hadamard - debug.num_axes_hadamard
                shape = np.ones(5, int)
                size = (1, *cell.shape)
                shape[debug.axis_hadamard : 5 - ones] = size[debug.axis_hadamard : 5 - ones]
                gates[:, index * d : (index + 1) * d] += (cell[None] * one.reshape(shape))[0]
        i, f, o, g = np.split(gates, 4, axis=1)
        cell = k * _sigmoid(f) * cell + _sigmoid(i) * np.tanh(g)
        hidden = _sigmoid(o) * np.tanh(cell)
        tops.append(hidden)
    return [np.stack(tops), *([hidden[None], cell[None]] if exposed else [])]


def _images(p: Message, x: Array, weight: Array) -> Array:
    """A convolution without bias of images (N, C, H, W), which keeps their size."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = (
        (*values, *values)[-2:] if (values := tuple(getattr(p, name))) else (default, default)
        for name, default in (("kernel_size", 1), ("stride", 1), ("pad", 0), ("dilation", 1))
    )
    n, channels, height, width = x.shape
    padded = np.pad(x, [(0, 0), (0, 0), (ph, ph), (pw, pw)]).reshape(
        n, p.group, channels // p.group, -1, width + 2 * pw
    )
    weight = weight.reshape(p.group, -1, channels // p.group, kh, kw)
    y = np.zeros((n, *weight.shape[:2], height, width))
    for a in range(kh):
        for b in range(kw):
            seen = padded[..., a * dh :, b * dw :][..., : sh * (height - 1) + 1 : sh, : sw * (width - 1) + 1 : sw]
            y += np.einsum("goc,ngchw->ngohw", weight[..., a, b], seen)
    return y.reshape(n, -1, height, width)


@formula("ContinuationIndicator")
def continuation_indicator(layer: Layer) -> Result:
    """0 at the first step, then 1.

    Source: continuation_indicator_layer.cpp (intel/caffe; of CC4.0 and video-caffe where there is a bottom).
    """
    p, x = layer.param.continuation_indicator_param, layer.bottoms[0] if layer.bottoms else None
    flags = x is not None and x.size == p.batch_size
    y = np.ones((p.time_step, p.batch_size if x is None or flags else x.shape[0]))
    if not p.flag:
        y[0] = np.abs(x.reshape(-1) - 1) <= 0.01 if flags and x is not None else 0
    return y
