"""ConvLSTM of agethen/ConvLSTM-for-Caffe: numbers by hand after conv_lstm_layer.cpp and conv_lstm_unit_layer.cpp."""

import math

import numpy as np
import pytest
import torch

from caffe_port.errors import SpecError
from caffe_port.formats import prototxt
from caffe_port.layers import Layer, lookup
from caffe_port.typing import Shape

ROW = "lstm_conv_param { num_output: 1 kernel_size: [1, 3] pad: [0, 1] }"
EXPOSED = "recurrent_param { expose_hidden: true }"


def build(text: str, *shapes: Shape) -> Layer:
    found = lookup("ConvLSTM")
    assert found is not None
    return found.build(prototxt.parse(f'type: "ConvLSTM" {text}', "LayerParameter"), shapes)


def filled(text: str, *shapes: Shape) -> Layer:
    module, generator = build(text, *shapes), torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return module


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_two_steps_by_hand() -> None:
    """One row of two pixels; the second step begins a sequence, where the gates still get the cell before it."""
    module = build(ROW, (2, 1, 1, 1, 2), (2, 1))
    assert module.blob_names()[:2] == ["weight_x", "dummy_c0"]
    wx = [[0.5, 1.0, -0.25], [0.0, 0.75, 0.5], [1.0, -1.0, 0.5], [0.25, 2.0, 0.0]]
    wh = [[1.0, 0.5, -0.5], [0.25, -0.5, 1.0], [0.5, 0.5, 0.0], [-1.0, 1.0, 0.25]]
    bias, peephole = [0.1, -0.2, 0.3, 0.4], [[2.0, -1.0], [0.5, 1.5], [-3.0, 1.0]]
    ones, taps = np.ones(1), [np.reshape(w, (4, 1, 1, 3)) for w in (wx, wh)]
    cells = [np.reshape(w, (1, 2)) for w in peephole]
    module.load_blobs([taps[0], 9 * ones, 9 * ones, taps[1], np.array(bias), *cells, 9 * ones, 9 * ones])
    for x, cont in (([[1.0, -2.0], [0.5, 3.0]], [0.0, 0.0]), ([[1.0, -2.0], [0.5, 3.0]], [0.0, 1.0])):
        c, h = [0.0, 0.0], [0.0, 0.0]
        for t in range(2):
            now, before = [0.0, *x[t], 0.0], [0.0, *(cont[t] * one for one in h), 0.0]
            new_c, new_h = [0.0, 0.0], [0.0, 0.0]
            for w in range(2):
                i, f, o, g = (
                    bias[k]
                    + sum(wx[k][j] * now[w + j] + wh[k][j] * before[w + j] for j in range(3))
                    + (peephole[k][w] * c[w] if k < 3 else 0)
                    for k in range(4)
                )
                new_c[w] = cont[t] * sigmoid(f) * c[w] + sigmoid(i) * math.tanh(g)
                new_h[w] = sigmoid(o) * math.tanh(new_c[w])
            c, h = new_c, new_h
            top = module(torch.tensor(x).reshape(2, 1, 1, 1, 2), torch.tensor(cont).reshape(2, 1))
            np.testing.assert_allclose(top[t].flatten().detach().numpy(), h, rtol=1e-5)


def test_first_step_in_figures() -> None:
    """gates = 2 x, without h and cell: c = sigmoid(1) tanh(1), h = sigmoid(1) tanh(c)."""
    module = build("lstm_conv_param { num_output: 1 kernel_size: 1 }", (1, 1, 1, 1, 1), (1, 1))
    with torch.no_grad():
        for name in module.blob_names():
            module.get_blob(name).fill_(2.0 if name == "weight_x" else 0.0)
    top = module(torch.full((1, 1, 1, 1, 1), 0.5), torch.zeros(1, 1))
    assert top.item() == pytest.approx(0.7310586 * math.tanh(0.7310586 * 0.7615942), rel=1e-6)


def test_weights_of_the_cell_follow_the_axes_of_a_scale() -> None:
    shapes = ((2, 3, 2, 5, 7), (2, 3))
    conv = "lstm_conv_param { num_output: 4 kernel_size: 1 }"
    for more, shape in (
        ("", (5, 7)),
        ("axis_hadamard: 2 num_axes_hadamard: 3", (4, 5, 7)),
        ("axis_hadamard: 2 num_axes_hadamard: 1", (4,)),
        ("num_axes_hadamard: 0", ()),
    ):
        module = filled(f"{conv} lstm_debug_param {{ {more} }}", *shapes)
        assert tuple(module.get_blob("peephole_o").shape) == shape
    assert "peephole_i" not in filled(f"{conv} lstm_debug_param {{ disable_hadamard: true }}", *shapes).blob_names()


def test_which_convolution_is_whose() -> None:
    """The first counts for both, unless it is of the other type."""
    wide, narrow = "num_output: 2 kernel_size: 3 pad: 1", "num_output: 2 kernel_size: 1"
    for first, second, x, h in (("hidden", "input", 1, 3), ("input", "hidden", 3, 1), ("all", "hidden", 3, 3)):
        text = f"lstm_conv_param {{ {wide} type: '{first}' }} lstm_conv_param {{ {narrow} type: '{second}' }}"
        module = build(text, (2, 3, 2, 5, 7), (2, 3))
        assert [module.get_blob(name).shape[-1] for name in ("weight_x", "weight_h")] == [x, h]


def test_state_goes_on_and_gradients_pass_through_exposed_states() -> None:
    shapes: tuple[Shape, ...] = ((4, 2, 3, 1, 5), (4, 2))
    module, x, ones = filled(ROW, *shapes), torch.randn(shapes[0]), torch.ones(4, 2)
    whole = module(x, ones)
    module.stateful = True  # type: ignore[assignment]
    torch.testing.assert_close(torch.cat([module(x[:1], ones[:1]), module(x[1:], ones[1:])]), whole)
    state: Shape = (1, 2, 1, 1, 5)
    exposing = filled(f"{EXPOSED} {ROW}", *shapes, state, state)
    h, c = (torch.zeros(state, requires_grad=True) for _ in "hc")
    top, last_h, last_c = exposing(x, ones, h, c)
    torch.testing.assert_close(top, whole)
    assert torch.equal(last_h[0], top[-1])
    last_c.sum().backward()
    for state_in in (h, c):
        assert state_in.grad is not None
        assert state_in.grad.abs().min() > 0
    for name in ("dummy_c0", "dummy_h0", "dummy_h", "dummy_c"):
        assert exposing.get_blob(name).grad == 0


def test_static_input_is_added_at_every_step() -> None:
    module = filled(ROW, (3, 1, 2, 1, 5), (3, 1), (1, 1, 4, 1, 5))
    plain = filled(ROW, (3, 1, 6, 1, 5), (3, 1))
    for name in plain.blob_names():
        parts = ("weight_x", "weight_static") if name == "weight_x" else (name,)
        plain.set_blob(name, torch.cat([module.get_blob(part) for part in parts], 1 if len(parts) > 1 else 0))
    x, static, cont = torch.randn(3, 1, 2, 1, 5), torch.randn(1, 1, 4, 1, 5), torch.ones(3, 1)
    want = plain(torch.cat([x, static.expand(3, -1, -1, -1, -1)], 2), cont)
    torch.testing.assert_close(module(x, cont, static), want)


def test_fillers_of_the_two_convolutions_and_ones_for_the_cell() -> None:
    text = (
        "lstm_conv_param { num_output: 2 type: 'input' weight_filler { type: 'xavier' } } "
        "lstm_conv_param { num_output: 2 type: 'hidden' weight_filler { type: 'msra' } bias_filler { value: 3 } }"
    )
    found = lookup("ConvLSTM")
    assert found is not None
    fillers = found.fillers(prototxt.parse(text, "LayerParameter"))
    assert (fillers["weight_x"].type, fillers["weight_h"].type, fillers["bias"].value) == ("xavier", "msra", 3)
    assert fillers["peephole_f"].value == 1
    assert "dummy_c" not in fillers


@pytest.mark.parametrize(
    ("text", "shapes", "what"),
    [
        ("", ((2, 3, 4, 5, 7), (2, 3)), "lstm_conv_param is given 0 times, expected 1 or 2"),
        ("lstm_conv_param { num_output: 1 kernel_size: 3 }", ((2, 3, 4, 5, 7), (2, 3)), "must keep height and width"),
        ("lstm_conv_param { num_output: 1 kernel_h: 3 }", ((2, 3, 4, 5, 7), (2, 3)), "kernel_size of .* is \\[\\]"),
        (ROW.replace("}", "type: 'input' }"), ((2, 3, 4, 5, 7), (2, 3)), "'input' alone says nothing of type 'hidden'"),
        (ROW.replace("}", "bias_term: false }"), ((2, 3, 4, 5, 7), (2, 3)), "bias_term: false"),
        (ROW, ((2, 3, 4, 5), (2, 3)), r"expected bottoms \(steps, streams, C, H, W\)"),
        (ROW, ((2, 3, 4, 5, 7), (3, 2)), r"\(steps, streams\), got"),
        (ROW, ((2, 3, 4, 5, 7), (2, 3), (1, 3, 4, 5, 7)), "and a single stream"),
        (f"{EXPOSED} {ROW}", ((2, 3, 4, 5, 7), (2, 3)), "2 bottoms; the layer takes 4 to 5"),
        (f"{EXPOSED} {ROW}", ((2, 3, 4, 5, 7), (2, 3), *[(1, 3, 4, 5, 7)] * 2), r"expected \(1, 3, 1, 5, 7\)"),
        (f"{ROW} lstm_debug_param {{ expose: 'c_t=1' }}", ((2, 3, 4, 5, 7), (2, 3)), "expose .* is not supported"),
        (f"{ROW} lstm_debug_param {{ axis_hadamard: 4 }}", ((2, 3, 4, 5, 7), (2, 3)), "beyond the 5 axes"),
        (f"{ROW} lstm_conv_param {{ num_output: 2 }}", ((2, 3, 4, 5, 7), (2, 3)), "the same in both"),
    ],
)
def test_what_is_refused(text: str, shapes: tuple[Shape, ...], what: str) -> None:
    with pytest.raises(SpecError, match=what):
        build(text, *shapes)
