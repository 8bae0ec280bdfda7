"""The records of recurrent layers. Sources: recurrent_layer.cpp, lstm_layer.cpp, rnn_layer.cpp, lstm_unit_layer.cpp;
conv_lstm_layer.cpp of agethen/ConvLSTM-for-Caffe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.signature import Holds, Trait, declare
from caffe_port.terminal import count
from caffe_port.typing import Shape


def _states(layer: Message) -> int:
    """How many states come in and go out."""
    return 0 if not layer.recurrent_param.expose_hidden else 1 if layer.type == "RNN" else 2


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


class Window(NamedTuple):
    """One of the convolutions of a ConvLSTM, along height and width."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def conv_lstm_convolution(layer: Message, type_: str) -> Message:
    """The LSTMConvolutionParameter of a ConvLSTM that counts for ``type_``, "input" or "hidden".

    Source: conv_lstm_layer.cpp: the first, unless it is of the other type; then the second.

    Raises:
        SpecError: there are none or more than two, or the only one is of the other type.
    """
    found = list(layer.lstm_conv_param)
    if not 1 <= len(found) <= 2:
        raise SpecError(
            f"lstm_conv_param is given {len(found)} times, expected 1 or 2",
            hint="ConvLSTM is that of agethen/ConvLSTM-for-Caffe; forks with other parameters are not supported",
        )
    other = "hidden" if type_ == "input" else "input"
    if found[0].type != other:
        return found[0]  # type: ignore[no-any-return]
    if len(found) == 1:
        raise SpecError(f"lstm_conv_param of type '{other}' alone says nothing of type '{type_}'")
    return found[1]  # type: ignore[no-any-return]


def conv_lstm_window(p: Message) -> Window:
    """Kernel, stride, padding, dilation and groups of an LSTMConvolutionParameter. Source: conv_lstm_helper.hpp.

    Raises:
        SpecError: there are not one or two numbers, or one of them is too small.
    """
    sides: list[tuple[int, int]] = []
    for field, default, least in (("kernel_size", None, 1), ("stride", 1, 1), ("pad", 0, 0), ("dilation", 1, 1)):
        values = list(getattr(p, field)) or ([] if default is None else [default])
        if not 1 <= len(values) <= 2 or min(values) < least:
            raise SpecError(f"{field} of lstm_conv_param is {values}, expected 1 or 2 numbers of at least {least}")
        sides.append((values[0], values[-1]))
    kernel, stride, pad, dilation = sides
    return Window(kernel, stride, pad, dilation, p.group)


def _same_size(p: Message, channels: int, size: Shape, what: str) -> Shape:
    """The shape of the weight of a convolution to all four gates, which must keep height and width."""
    window, outputs = conv_lstm_window(p), 4 * p.num_output
    if window.groups < 1 or channels % window.groups or outputs % window.groups:
        raise SpecError(f"group {window.groups} does not divide the {channels} channels of {what} and its {outputs}")
    made = tuple(
        (n + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for n, kernel, stride, pad, dilation in zip(size, *window[:4], strict=True)
    )
    if made != size:
        raise SpecError(f"the convolution of {what} makes {made} of {size}; it must keep height and width", hint="pad")
    return (outputs, channels // window.groups, *window.kernel_size)


def conv_lstm_peephole(layer: Message, bottom: Shape) -> Shape | None:
    """The shape of the weights that the cell is multiplied by for a gate; None: there are none."""
    p = layer.lstm_debug_param
    if p.disable_hadamard:
        return None
    axis, axes = p.axis_hadamard, p.num_axes_hadamard
    if axis > 4 or axis + axes > 5:
        raise SpecError(f"axis_hadamard {axis} and num_axes_hadamard {axes} reach beyond the 5 axes of the cell")
    return (1, bottom[1], layer.lstm_conv_param[0].num_output, *bottom[3:])[axis : axis + axes]


def _conv_lstm_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    x, static, ignores = bottoms[0], _static(layer, bottoms), layer.lstm_debug_param.ignore_x
    hidden = conv_lstm_convolution(layer, "hidden")
    blobs: dict[str, Shape] = {}
    if not ignores:
        inputs = conv_lstm_convolution(layer, "input")
        blobs["weight_x"] = _same_size(inputs, x[2], x[3:], "x")
        if static is not None:
            blobs["weight_static"] = _same_size(inputs, static[2], x[3:], "the static input")
    blobs |= {"dummy_c0": (1,), "dummy_h0": (1,)}
    blobs["weight_h"] = _same_size(hidden, hidden.num_output, x[3:], "the hidden state")
    blobs["bias"] = (4 * hidden.num_output,)
    peephole = conv_lstm_peephole(layer, x)
    if peephole is not None:
        blobs |= {f"peephole_{gate}": peephole for gate in "ifo"}
    return blobs | {"dummy_h": (1,), "dummy_c": (1,)}


def _conv_lstm(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    exposed, hidden = _states(layer), conv_lstm_convolution(layer, "hidden")
    if not 2 + exposed <= len(bottoms) <= 3 + exposed:
        raise SpecError(f"{count(len(bottoms), 'bottom')}; the layer takes {2 + exposed} to {3 + exposed}")
    x, cont = bottoms[:2]
    if len(x) != 5 or cont != x[:2]:
        raise SpecError(f"expected bottoms (steps, streams, C, H, W) and (steps, streams), got {x} and {cont}")
    if {p.num_output for p in layer.lstm_conv_param} != {hidden.num_output} or hidden.num_output < 1:
        raise SpecError("num_output of lstm_conv_param must be 1 or more, and the same in both")
    if not hidden.bias_term:
        raise SpecError("bias_term: false of the hidden state's lstm_conv_param is refused by the fork, too")
    if list(layer.lstm_debug_param.expose):
        raise SpecError("expose of lstm_debug_param (blobs inside as tops) is not supported", hint="remove it")
    static = _static(layer, bottoms)
    if static is not None and layer.lstm_debug_param.ignore_x:
        raise SpecError("a static input and ignore_x exclude each other")
    if static is not None and (len(static) != 5 or (*static[:2], *static[3:]) != (1, x[1], *x[3:]) or x[1] != 1):
        raise SpecError(f"the static input has shape {static}, expected (1, 1, C, {x[3]}, {x[4]}), and a single stream")
    _conv_lstm_blobs(layer, bottoms)
    state = (1, x[1], hidden.num_output, *x[3:])
    for shape in bottoms[len(bottoms) - exposed :]:
        if shape != state:
            raise SpecError(f"an initial state has shape {shape}, expected {state}")
    return [(x[0], *state[1:]), *[state] * exposed]


def _conv_lstm_macs(layer: Message, bottoms: Sequence[Shape], tops: Sequence[Shape]) -> int:  # noqa: ARG001
    x, weights = bottoms[0], _conv_lstm_blobs(layer, bottoms)
    kernels = {name: shape for name, shape in weights.items() if name.startswith("weight_")}
    return _matrices(kernels, *x[:2]) * math.prod(x[3:])


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
declare(
    "ConvLSTM",
    _conv_lstm,
    message="lstm_debug_param",
    also=("lstm_conv_param", "recurrent_param"),
    bottoms=(2, 5),
    holds=(Holds.STEPS, Holds.CONTINUES),
    blobs=(
        "weight_x",
        "weight_static",
        "dummy_c0",
        "dummy_h0",
        "weight_h",
        "bias",
        "peephole_i",
        "peephole_f",
        "peephole_o",
        "dummy_h",
        "dummy_c",
    ),
    blob_shapes=_conv_lstm_blobs,
    optional=("weight_x", "weight_static", "peephole_i", "peephole_f", "peephole_o"),
    macs=_conv_lstm_macs,
    traits=Trait.WHOLE_LAYER,
)
declare("LSTMUnit", _lstm_unit, bottoms=3, holds=(Holds.NUMBERS, Holds.NUMBERS, Holds.CONTINUES))
