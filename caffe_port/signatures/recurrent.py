"""The records of recurrent layers. Sources: recurrent_layer.cpp, lstm_layer.cpp, rnn_layer.cpp, lstm_unit_layer.cpp."""

from __future__ import annotations

import math
from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.signature import Holds, declare
from caffe_port.terminal import count
from caffe_port.typing import Shape


def _states(layer: Message) -> int:
    """How many states come in and go out."""
    return 0 if not layer.recurrent_param.expose_hidden else 2 if layer.type == "LSTM" else 1


def _static(layer: Message, bottoms: Sequence[Shape]) -> Shape | None:
    """The shape of the static input, which is added at every step."""
    return bottoms[2] if len(bottoms) > 2 + _states(layer) else None


def _recurrent(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p, exposed = layer.recurrent_param, _states(layer)
    if not 2 + exposed <= len(bottoms) <= 3 + exposed:
        raise SpecError(f"{count(len(bottoms), 'bottom')}; the layer takes {2 + exposed} to {3 + exposed}")
    x, cont = bottoms[:2]
    if len(x) < 3 or cont != x[:2]:
        raise SpecError(f"expected bottoms (steps, streams, ...) and (steps, streams), got {x} and {cont}")
    if p.num_output < 1:
        raise SpecError(f"num_output (length of the state) must be at least 1, got {p.num_output}")
    static = _static(layer, bottoms)
    if static is not None and (len(static) < 2 or static[0] != x[1]):
        raise SpecError(f"the static input has shape {static}, expected ({x[1]}, ...), one per stream")
    state = (1, x[1], p.num_output)
    for shape in bottoms[len(bottoms) - exposed :]:
        if shape != state:
            raise SpecError(f"an initial state has shape {shape}, expected {state}")
    return [(*x[:2], p.num_output), *[state] * exposed]


def _lstm_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    hidden, inputs, static = layer.recurrent_param.num_output, math.prod(bottoms[0][2:]), _static(layer, bottoms)
    return {
        "weight_x": (4 * hidden, inputs),
        "bias": (4 * hidden,),
        **({} if static is None else {"weight_static": (4 * hidden, math.prod(static[1:]))}),
        "weight_h": (4 * hidden, hidden),
    }


def _rnn_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    hidden, inputs, static = layer.recurrent_param.num_output, math.prod(bottoms[0][2:]), _static(layer, bottoms)
    return {
        "weight_x": (hidden, inputs),
        "bias_h": (hidden,),
        **({} if static is None else {"weight_static": (hidden, math.prod(static[1:]))}),
        "weight_h": (hidden, hidden),
        "weight_o": (hidden, hidden),
        "bias_o": (hidden,),
    }


def _matrices(blobs: dict[str, Shape], steps: int, streams: int) -> int:
    """What products with all matrices cost: the static input once for each stream, the others at every step."""
    return sum(
        math.prod(shape) * streams * (1 if name == "weight_static" else steps)
        for name, shape in blobs.items()
        if len(shape) > 1
    )


def _lstm_macs(layer: Message, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:  # noqa: ARG001
    return _matrices(_lstm_blobs(layer, bottoms), *bottoms[0][:2])


def _rnn_macs(layer: Message, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:  # noqa: ARG001
    return _matrices(_rnn_blobs(layer, bottoms), *bottoms[0][:2])


def says_who_goes_on(p: Message, bottoms: Sequence[Shape]) -> bool:
    """Whether the bottom of a ContinuationIndicator has a flag for each stream (video-caffe).

    Else only its batch size counts (CC4.0).
    """
    return bool(bottoms) and math.prod(bottoms[0]) == p.batch_size


def _continuation_indicator(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.continuation_indicator_param
    streams = p.batch_size if not bottoms or says_who_goes_on(p, bottoms) else bottoms[0][0]
    if p.time_step < 1 or streams < 1:
        raise SpecError(f"time_step {p.time_step} and batch_size {streams} must be 1 or more")
    return [(p.time_step, streams)]


def _old_lstm(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    x, p = bottoms[0], layer.lstm_param
    if p.num_output < 1 or p.batch_size < 1:
        raise SpecError(f"num_output {p.num_output} and batch_size {p.batch_size} must be 1 or more")
    if len(x) < 2 or (len(x) != 3 and x[0] % p.batch_size):
        raise SpecError(f"expected a bottom (steps, streams, I) or ({p.batch_size} x steps, ...), got {x}")
    steps = math.prod(x[:2]) if len(x) == 3 else x[0]
    if len(bottoms) > 1 and math.prod(bottoms[1]) != steps:
        raise SpecError(f"cont has shape {bottoms[1]}, expected {steps} values, one per step")
    return [(*(x[:2] if len(x) == 3 else x[:1]), p.num_output)]


def _old_lstm_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    hidden, x = layer.lstm_param.num_output, bottoms[0]
    inputs = x[2] if len(x) == 3 else math.prod(x[1:])
    return {"weight_x": (4 * hidden, inputs), "weight_h": (4 * hidden, hidden), "bias": (4 * hidden,)}


def _old_lstm_macs(layer: Message, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:
    return _matrices(_old_lstm_blobs(layer, bottoms), math.prod(tops[0][:-1]), 1)


def _lstm_unit(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    c, gates, cont = bottoms
    if len(c) != 3 or c[0] != 1 or gates != (1, c[1], 4 * c[2]) or cont != (1, c[1]):
        raise SpecError(f"expected bottoms (1, N, H), (1, N, 4 H) and (1, N), got {c}, {gates}, {cont}")
    return [c, c]


declare(
    "LSTM",
    _recurrent,
    message="recurrent_param",
    bottoms=(2, 5),
    holds=(Holds.STEPS, Holds.CONTINUES),
    blobs=("weight_x", "bias", "weight_static", "weight_h"),
    blob_shapes=_lstm_blobs,
    optional=("weight_static",),
    macs=_lstm_macs,
)
declare(
    "RNN",
    _recurrent,
    message="recurrent_param",
    bottoms=(2, 4),
    holds=(Holds.STEPS, Holds.CONTINUES),
    blobs=("weight_x", "bias_h", "weight_static", "weight_h", "weight_o", "bias_o"),
    blob_shapes=_rnn_blobs,
    optional=("weight_static",),
    macs=_rnn_macs,
)
declare("ContinuationIndicator", _continuation_indicator, message="continuation_indicator_param", bottoms=(0, 1))
declare(
    "Lstm",
    _old_lstm,
    message="lstm_param",
    bottoms=(1, 2),
    holds=(Holds.NUMBERS, Holds.CONTINUES),
    blobs=("weight_x", "weight_h", "bias"),
    blob_shapes=_old_lstm_blobs,
    macs=_old_lstm_macs,
)
declare("LSTMUnit", _lstm_unit, bottoms=3, holds=(Holds.NUMBERS, Holds.NUMBERS, Holds.CONTINUES))
