"""Recurrent layers. Caffe unrolls them into ordinary layers; here they are a loop over time steps.

Bottoms are x (T, N, ...), for T steps of N streams, and cont (T, N): 0 where a stream begins a new sequence, which
clears its state, else 1; then optionally a static input (N, ...) that is added at every step.
With ``expose_hidden`` the initial states follow as bottoms and the final states as tops, each (1, N, num_output).
As in Caffe, no gradient passes through cont, nor through these states: it ends at the first and at the last step.

Differs from Caffe: without ``expose_hidden`` Caffe continues from the final state of the previous forward, where
cont is 1 at the first step. Here a forward begins with zeros, so that it depends on its inputs alone; set
``module.stateful = True`` for Caffe's behavior, and ``module.state = None`` to reset the state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caffe_port.formats.message import Message
from caffe_port.layers.layer import Layer
from caffe_port.signatures.recurrent import (
    conv_lstm_convolution,
    conv_lstm_peephole,
    conv_lstm_window,
    says_who_goes_on,
)
from caffe_port.typing import Shape


def recurrent_args(p: Message, bottoms: Sequence[Shape], states: int) -> dict[str, Any]:
    """Constructor arguments of LSTM (2 states) and RNN (1). Source: recurrent_layer.cpp."""
    static = bottoms[2] if len(bottoms) > 2 + (states if p.expose_hidden else 0) else None
    return {
        "input_size": math.prod(bottoms[0][2:]),
        "hidden_size": p.num_output,
        "static_size": None if static is None else math.prod(static[1:]),
        "expose_hidden": p.expose_hidden,
    }


def lstm_step(c: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
    """The next cell and hidden state (..., N, H); gates (..., N, 4 H) are i, f, o, g and cont is (..., N, 1)."""
    i, f, o, g = gates.chunk(4, dim=-1)
    c = cont * torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return c, torch.sigmoid(o) * torch.tanh(c)


class ContinuationIndicator(Layer):
    """The second bottom of LSTM and RNN where sequences begin at the first step: zeros, then ones. For OCR.

    A bottom gives the number of streams, its batch; or, if it has ``batch_size`` numbers, those streams begin with 1
    where it is 1. With ``flag: true`` all of them do.

    Reference: ChWick/caffe continuation_indicator_layer.cpp; dlunion/CC4.0's for a bottom; zhzhong11/video-caffe's for
    flags
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        flags = says_who_goes_on(p, bottoms)
        args: dict[str, Any] = {"steps": p.time_step, "streams": p.batch_size if flags or not bottoms else None}
        return args | ({"flags": True} if flags else {}) | ({"goes_on": True} if p.flag else {})

    def __init__(self, steps: int, streams: int | None, flags: bool = False, goes_on: bool = False) -> None:
        super().__init__()
        self.steps, self.streams, self.flags, self.goes_on = steps, streams, flags, goes_on
        self.register_buffer("like", torch.empty(0), persistent=False)  # says device and dtype, holds no numbers

    like: Tensor

    def forward(self, x: Tensor | None = None) -> Tensor:
        like = self.like if x is None else x
        streams = x.shape[0] if self.streams is None and x is not None else self.streams or 0
        first = like.new_full((1, streams), float(self.goes_on))
        if self.flags and x is not None and not self.goes_on:
            first = ((x.reshape(1, -1) - 1).abs() <= 0.01).to(x.dtype)
        return torch.cat((first, like.new_ones(self.steps - 1, streams)))


def _of_all_steps(steps: int, made: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """What a layer makes of all steps, from what it makes of one: the meta device takes milliseconds for each."""
    top, *last = made if isinstance(made, tuple) else (made,)
    tops = (top.expand(steps, *top.shape[1:]), *last)
    return tops if isinstance(made, tuple) else tops[0]


class LSTM(Layer):
    """Long short-term memory, with gates in the order i, f, o, g.

    Differs from PyTorch: torch.nn.LSTM orders them i, f, g, o, has two biases, and has neither cont nor a static input.
    Differs from Caffe: see the module docstring about the state between two forwards.
    Blobs: weight_x (4 H, I), bias (4 H), weight_static (4 H, S) if there is a static input, weight_h (4 H, H)
    Reference: lstm_layer.cpp, lstm_unit_layer.cpp, recurrent_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return recurrent_args(p, bottoms, states=2)

    @classmethod
    def fillers(cls, p: Message) -> dict[str, Message]:
        return {name: p.bias_filler if name.startswith("bias") else p.weight_filler for name in cls.blobs}

    def __init__(
        self, input_size: int, hidden_size: int, static_size: int | None = None, expose_hidden: bool = False
    ) -> None:
        super().__init__()
        self.hidden_size, self.expose_hidden = hidden_size, expose_hidden
        self.weight_x = nn.Parameter(torch.empty(4 * hidden_size, input_size))
        self.bias = nn.Parameter(torch.empty(4 * hidden_size))
        self.weight_static = None if static_size is None else nn.Parameter(torch.empty(4 * hidden_size, static_size))
        self.weight_h = nn.Parameter(torch.empty(4 * hidden_size, hidden_size))
        self.stateful = False
        self.state: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, cont: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, ...]:
        gates = F.linear(x.flatten(2), self.weight_x, self.bias)
        if self.weight_static is not None:
            gates = gates + F.linear(others[0].flatten(1), self.weight_static)
        if self.expose_hidden:
            h, c = others[-2][0].detach(), others[-1][0].detach()
        elif self.stateful and self.state is not None and self.state[0].shape[0] == x.shape[1]:
            h, c = self.state
        else:
            h = c = x.new_zeros(x.shape[1], self.hidden_size)
        cont = cont.detach().to(x.dtype).unsqueeze(-1)
        tops = []
        for t in range(x.shape[0]):
            c, h = lstm_step(c, gates[t] + F.linear(cont[t] * h, self.weight_h), cont[t])
            tops.append(h)
        if self.stateful:
            self.state = h.detach(), c.detach()
        top = torch.stack(tops)
        return (top, h.detach().unsqueeze(0), c.detach().unsqueeze(0)) if self.expose_hidden else top

    def infer(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        x, cont, *others = bottoms
        return _of_all_steps(len(x), self(x[:1], cont[:1], *others))


class Lstm(Layer):
    """Long short-term memory of (T, N, I), or of (T N, ...) with ``batch_size`` N, with gates in the order i, f, o, g.
    The second bottom, if any, is cont: 0 where a sequence begins; without it, a forward is one sequence.

    Differs from PyTorch: torch.nn.LSTM orders the gates i, f, g, o, and has two biases. Differs from Caffe: with cont,
    see the module docstring about the state between two forwards.
    ``clipping_threshold`` bounds gradients in Caffe; here it has no effect.
    Blobs: weight_x (4 H, I), weight_h (4 H, H), bias (4 H)
    Reference: junhyukoh/caffe-lstm lstm_layer.cpp; tianzhi0549/CTPN lstm_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        x = bottoms[0]
        size = x[2] if len(x) == 3 else math.prod(x[1:])
        return {"input_size": size, "hidden_size": p.num_output, "streams": None if len(x) == 3 else p.batch_size}

    @classmethod
    def fillers(cls, p: Message) -> dict[str, Message]:
        return {"weight_x": p.weight_filler, "weight_h": p.weight_filler, "bias": p.bias_filler}

    def __init__(self, input_size: int, hidden_size: int, streams: int | None = None) -> None:
        super().__init__()
        self.hidden_size, self.streams = hidden_size, streams
        self.weight_x = nn.Parameter(torch.empty(4 * hidden_size, input_size))
        self.weight_h = nn.Parameter(torch.empty(4 * hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.empty(4 * hidden_size))
        self.stateful = False
        self.state: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, cont: Tensor | None = None) -> Tensor:
        steps = x if self.streams is None else x.reshape(-1, self.streams, self.weight_x.shape[1])
        gates = F.linear(steps, self.weight_x, self.bias)
        going_on = None if cont is None else (cont.reshape(gates.shape[0], -1, 1) != 0).to(x.dtype)
        h = c = x.new_zeros(gates.shape[1], self.hidden_size)
        if self.stateful and cont is not None and self.state is not None and self.state[0].shape == h.shape:
            h, c = self.state
        tops = []
        for t in range(gates.shape[0]):
            on = x.new_ones(1, 1) if going_on is None else going_on[t]
            c, h = lstm_step(c, gates[t] + F.linear(on * h, self.weight_h), on)
            tops.append(h)
        if self.stateful:
            self.state = h.detach(), c.detach()
        top = torch.stack(tops)
        return top if self.streams is None else top.flatten(0, 1)

    def infer(self, *bottoms: Tensor) -> Tensor:
        x = bottoms[0]
        return x.new_empty(*x.shape[: 2 if self.streams is None else 1], self.hidden_size)


class RNN(Layer):
    """h = tanh(W_h h + W_x x + b_h), top = tanh(W_o h + b_o).

    Differs from PyTorch: torch.nn.RNN has no output layer, and has neither cont nor a static input. Differs from
    Caffe: see the module docstring about the state between two forwards.
    Blobs: weight_x (H, I), bias_h (H), weight_static (H, S) if there is a static input, weight_h (H, H),
        weight_o (H, H), bias_o (H)
    Reference: rnn_layer.cpp, recurrent_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return recurrent_args(p, bottoms, states=1)

    @classmethod
    def fillers(cls, p: Message) -> dict[str, Message]:
        return {name: p.bias_filler if name.startswith("bias") else p.weight_filler for name in cls.blobs}

    def __init__(
        self, input_size: int, hidden_size: int, static_size: int | None = None, expose_hidden: bool = False
    ) -> None:
        super().__init__()
        self.hidden_size, self.expose_hidden = hidden_size, expose_hidden
        self.weight_x = nn.Parameter(torch.empty(hidden_size, input_size))
        self.bias_h = nn.Parameter(torch.empty(hidden_size))
        self.weight_static = None if static_size is None else nn.Parameter(torch.empty(hidden_size, static_size))
        self.weight_h = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.weight_o = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.bias_o = nn.Parameter(torch.empty(hidden_size))
        self.stateful = False
        self.state: Tensor | None = None

    def forward(self, x: Tensor, cont: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, ...]:
        inputs = F.linear(x.flatten(2), self.weight_x, self.bias_h)
        if self.weight_static is not None:
            inputs = inputs + F.linear(others[0].flatten(1), self.weight_static)
        if self.expose_hidden:
            h = others[-1][0].detach()
        elif self.stateful and self.state is not None and self.state.shape[0] == x.shape[1]:
            h = self.state
        else:
            h = x.new_zeros(x.shape[1], self.hidden_size)
        cont = cont.detach().to(x.dtype).unsqueeze(-1)
        hidden = []
        for t in range(x.shape[0]):
            h = torch.tanh(inputs[t] + F.linear(cont[t] * h, self.weight_h))
            hidden.append(h)
        if self.stateful:
            self.state = h.detach()
        top = torch.tanh(F.linear(torch.stack(hidden), self.weight_o, self.bias_o))
        return (top, h.detach().unsqueeze(0)) if self.expose_hidden else top

    def infer(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        x, cont, *others = bottoms
        return _of_all_steps(len(x), self(x[:1], cont[:1], *others))


class ConvLSTM(Layer):
    """Long short-term memory of images (T, N, C, H, W): the gates i, f, o, g are convolutions of x and of h.

    Gates i, f and o get the cell too, times weights, (H, W) unless ``axis_hadamard`` and ``num_axes_hadamard`` say
    otherwise. In all three it is the cell of the step before, and it counts where cont is 0 as well. With
    ``ignore_x: true`` x only says how many steps there are. Unlike in LSTM, gradients pass through exposed states.

    Differs from Caffe: see the module docstring about the state between two forwards. Differs from Shi et al.: their
    gate o gets the new cell, and their weights on the cell are (C, H, W).
    Not supported: ``expose``; weights of its releases before November 2016, which have other blobs; the ConvLSTM of
    AzoresCabbage/caffe (``convolution_param``) and of jasonustc/caffe (``conv_recurrent_param``).
    Blobs: weight_x (4 K, C, kh, kw) unless ``ignore_x``, weight_static if there is a static input (1, 1, C, H, W),
        dummy_c0 and dummy_h0 (1), weight_h (4 K, K, kh, kw), bias (4 K), peephole_i, peephole_f and peephole_o unless
        ``disable_hadamard``, dummy_h and dummy_c (1); those named dummy have no effect
    Reference: agethen/ConvLSTM-for-Caffe conv_lstm_layer.cpp, conv_lstm_unit_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        x, exposed = bottoms[0], p.recurrent_param.expose_hidden
        hidden = conv_lstm_convolution(p, "hidden")
        ignores, static = p.lstm_debug_param.ignore_x, len(bottoms) == (5 if exposed else 3)
        return {
            "in_channels": None if ignores else x[2],
            "hidden_channels": hidden.num_output,
            "x_window": None if ignores else tuple(conv_lstm_window(conv_lstm_convolution(p, "input"))),
            "h_window": tuple(conv_lstm_window(hidden)),
            "peephole": conv_lstm_peephole(p, x),
            "axis": p.lstm_debug_param.axis_hadamard,
            "static_channels": bottoms[2][2] if static else None,
            "expose_hidden": exposed,
        }

    @classmethod
    def fillers(cls, p: Message) -> dict[str, Message]:
        hidden, one = conv_lstm_convolution(p, "hidden"), Message("FillerParameter", type="constant", value=1.0)
        found = {"weight_h": hidden.weight_filler, "bias": hidden.bias_filler}
        if not p.lstm_debug_param.ignore_x:
            filler = conv_lstm_convolution(p, "input").weight_filler
            found |= {"weight_x": filler, "weight_static": filler}
        return found | {f"peephole_{gate}": one for gate in "ifo"}

    def __init__(
        self,
        in_channels: int | None,
        hidden_channels: int,
        x_window: tuple[Any, ...] | None,
        h_window: tuple[Any, ...],
        peephole: tuple[int, ...] | None = None,
        axis: int = 3,
        static_channels: int | None = None,
        expose_hidden: bool = False,
    ) -> None:
        """The windows are (kernel_size, stride, padding, dilation, groups), the first four as (height, width)."""
        super().__init__()
        self.hidden_channels, self.expose_hidden, self.axis = hidden_channels, expose_hidden, axis
        self.x_window, self.h_window = x_window, h_window
        self.weight_x = self._weight(in_channels, x_window)
        self.weight_static = self._weight(static_channels, x_window)
        self.dummy_c0, self.dummy_h0 = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        weight_h = self._weight(hidden_channels, h_window)
        assert weight_h is not None
        self.weight_h = weight_h
        self.bias = nn.Parameter(torch.empty(4 * hidden_channels))
        self.peephole_i, self.peephole_f, self.peephole_o = (
            None if peephole is None else nn.Parameter(torch.empty(peephole)) for _ in "ifo"
        )
        self.dummy_h, self.dummy_c = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.stateful = False
        self.state: tuple[Tensor, Tensor] | None = None

    def _weight(self, channels: int | None, window: tuple[Any, ...] | None) -> nn.Parameter | None:
        if channels is None or window is None:
            return None
        return nn.Parameter(torch.empty(4 * self.hidden_channels, channels // window[4], *window[0]))

    def _from_cell(self, c: Tensor) -> Tensor | None:
        """What the cell (N, K, H, W) adds to the gates (N, 4 K, H, W)."""
        if self.peephole_i is None or self.peephole_f is None or self.peephole_o is None:
            return None
        weights = (self.peephole_i, self.peephole_f, self.peephole_o)
        padded = [w.reshape(*w.shape, *[1] * (5 - self.axis - w.dim())) for w in weights]
        return torch.cat([(c[None] * w)[0] for w in padded] + [torch.zeros_like(c)], dim=1)

    def forward(self, x: Tensor, cont: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, ...]:
        steps, streams, _, *size = x.shape
        from_x = None
        if self.weight_x is not None and self.x_window is not None:
            window = self.x_window[1:]
            from_x = F.conv2d(x.flatten(0, 1), self.weight_x, None, *window)
            from_x = from_x.reshape(steps, streams, *from_x.shape[1:])
            if self.weight_static is not None:
                from_x = from_x + F.conv2d(others[0][0], self.weight_static, None, *window)
        if self.expose_hidden:
            h, c = others[-2][0], others[-1][0]
        else:
            h = c = x.new_zeros(streams, self.hidden_channels, *size)
            if self.stateful and self.state is not None and self.state[0].shape == h.shape:
                h, c = self.state
        cont = cont.detach().to(x.dtype)[..., None, None, None]
        bias: Tensor = self.bias
        if self.training:  # Caffe's gradient of these is 0; DistributedDataParallel needs one of every parameter
            bias = bias + 0 * (self.dummy_c0 + self.dummy_h0 + self.dummy_h + self.dummy_c)
        tops = []
        for t in range(steps):
            gates = F.conv2d(cont[t] * h, self.weight_h, bias, *self.h_window[1:])
            if from_x is not None:
                gates = gates + from_x[t]
            from_cell = self._from_cell(c)
            if from_cell is not None:
                gates = gates + from_cell
            i, f, o, g = gates.chunk(4, dim=1)
            c = cont[t] * torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            tops.append(h)
        if self.stateful:
            self.state = h.detach(), c.detach()
        top = torch.stack(tops)
        return (top, h.unsqueeze(0), c.unsqueeze(0)) if self.expose_hidden else top

    def infer(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        x, cont, *others = bottoms
        return _of_all_steps(len(x), self(x[:1], cont[:1], *others))


class LSTMUnit(Layer):
    """One step of an LSTM: bottoms c (1, N, H), gates (1, N, 4 H), cont (1, N); tops are the next c and h.

    Reference: lstm_unit_layer.cpp
    """

    def forward(self, c: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
        return lstm_step(c, gates, cont.detach().to(c.dtype).unsqueeze(-1))
