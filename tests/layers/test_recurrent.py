import numpy as np
import pytest
import torch

from caffe_port.errors import SpecError
from caffe_port.formats import prototxt
from caffe_port.layers import Layer, lookup, recurrent
from caffe_port.typing import Shape

T, N, I, H, S = 5, 3, 6, 4, 2  # noqa: E741 - the letters of the papers


def layer(type_: str, *shapes: Shape, expose: bool = False, num_output: int = H) -> Layer:
    more = f"expose_hidden: {str(expose).lower()}" if type_ != "Lstm" else ""
    message = "recurrent_param" if type_ != "Lstm" else "lstm_param"
    text = f'type: "{type_}" {message} {{ num_output: {num_output} {more} }}'
    found = lookup(type_)
    assert found is not None
    module = found.build(prototxt.parse(text, "LayerParameter"), shapes)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return module


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def always(first: int) -> torch.Tensor:
    cont = torch.ones(T, N)
    cont[0] = first
    return cont


def test_registered() -> None:
    assert lookup("LSTM") is recurrent.LSTM
    assert lookup("RNN") is recurrent.RNN


def test_lstm_is_torchs_with_other_gate_order() -> None:
    module, reference = layer("LSTM", (T, N, I), (T, N)), torch.nn.LSTM(I, H)
    order = [0, 1, 3, 2]  # i, f, o, g -> i, f, g, o
    with torch.no_grad():
        for name, blob in [("weight_ih_l0", "weight_x"), ("weight_hh_l0", "weight_h"), ("bias_ih_l0", "bias")]:
            value = module.get_blob(blob)
            reference.get_parameter(name).copy_(value.reshape(4, H, -1)[order].reshape(value.shape))
        torch.nn.init.zeros_(reference.get_parameter("bias_hh_l0"))
    x = randn(T, N, I)
    torch.testing.assert_close(module(x, always(0)), reference(x)[0])


@pytest.mark.parametrize(("type_", "blobs"), [("LSTM", 4), ("RNN", 6)])
def test_static_input_is_added_at_every_step(type_: str, blobs: int) -> None:
    module = layer(type_, (T, N, I), (T, N), (N, S))
    assert len(module.blob_names()) == blobs
    plain = layer(type_, (T, N, I + S), (T, N))
    for name in plain.blob_names():
        if name != "weight_x":
            plain.set_blob(name, module.get_blob(name))
    plain.set_blob("weight_x", torch.cat((module.get_blob("weight_x"), module.get_blob("weight_static")), 1))
    x, static = randn(T, N, I), randn(N, S)
    together = torch.cat((x, static.expand(T, N, S)), 2)
    torch.testing.assert_close(module(x, always(0), static), plain(together, always(0)))


@pytest.mark.parametrize("type_", ["LSTM", "RNN"])
def test_cont_begins_a_sequence(type_: str) -> None:
    module, x, cont = layer(type_, (T, N, I), (T, N)), randn(T, N, I), always(0)
    cont[2, 1] = 0
    whole = module(x, cont)
    torch.testing.assert_close(whole[2:, 1:2], module(x[2:, 1:2], always(1)[2:, 1:2]))
    torch.testing.assert_close(whole[:, :1], module(x[:, :1], always(1)[:, :1]))


@pytest.mark.parametrize(("type_", "states"), [("LSTM", 2), ("RNN", 1)])
def test_exposed_states_continue(type_: str, states: int) -> None:
    plain = layer(type_, (T, N, I), (T, N))
    module = layer(type_, (T, N, I), (T, N), *[(1, N, H)] * states, expose=True)
    module.load_state_dict(plain.state_dict())
    x, zeros = randn(T, N, I), [torch.zeros(1, N, H)] * states
    first, *state = module(x[:2], always(1)[:2], *zeros)
    assert [tuple(s.shape) for s in state] == [(1, N, H)] * states
    second, *_ = module(x[2:], always(1)[2:], *state)
    torch.testing.assert_close(torch.cat((first, second)), plain(x, always(0)))


@pytest.mark.parametrize("type_", ["LSTM", "Lstm", "RNN"])
def test_stateful_goes_on_where_the_last_forward_ended(type_: str) -> None:
    module, x = layer(type_, (T, N, I), (T, N)), randn(T, N, I)
    whole = module(x, always(1))
    torch.testing.assert_close(module(x, always(1)), whole)
    module.stateful = True  # type: ignore[assignment]
    parts = [module(x[t : t + 1], always(1)[t : t + 1]) for t in range(T)]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert not torch.allclose(module(x, always(1)), whole)
    torch.testing.assert_close(module(x, always(0)), whole)
    module.state = None  # type: ignore[assignment]
    torch.testing.assert_close(module(x, always(1)), whole)
    assert module(x[:, :2], always(1)[:, :2]).shape == (T, 2, H)


def test_lstm_unit_by_hand() -> None:
    module = layer("LSTMUnit", (1, 2, 1), (1, 2, 4), (1, 2))
    gates = torch.tensor([[[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]]])
    c, h = module(torch.tensor([[[2.0], [2.0]]]), gates, torch.tensor([[1.0, 0.0]]))
    cells = np.array([0.5 * 2 + 0.5 * np.tanh(1), 0.5 * np.tanh(1)])
    np.testing.assert_allclose(c.flatten().numpy(), cells, rtol=1e-6)
    np.testing.assert_allclose(h.flatten().numpy(), 0.5 * np.tanh(cells), rtol=1e-6)


@pytest.mark.parametrize("type_", ["LSTM", "RNN"])
def test_more_axes_float64_meta_and_export(type_: str) -> None:
    module, x, cont = layer(type_, (T, N, 2, 3), (T, N)).eval(), randn(T, N, 2, 3), always(0)
    top = module(x, cont)
    torch.testing.assert_close(torch.export.export(module, (x, cont)).module()(x, cont), top)
    assert module.double()(x.double(), cont).dtype == torch.float64
    assert module.to("meta")(x.double().to("meta"), cont.to("meta")).shape == (T, N, H)


def test_fillers() -> None:
    p = prototxt.parse('weight_filler { type: "uniform" } bias_filler { value: 1 }', "RecurrentParameter")
    for found in (recurrent.LSTM, recurrent.RNN):
        fillers = found.fillers(p)
        assert set(fillers) == set(found.blobs)
        assert all(f.type == ("constant" if "bias" in name else "uniform") for name, f in fillers.items())


@pytest.mark.parametrize(
    ("type_", "shapes", "expose", "num_output", "text"),
    [
        ("LSTM", [(T, N), (T, N)], False, H, r"\(steps, streams, ...\)"),
        ("LSTM", [(T, N, I), (N, T)], False, H, r"\(steps, streams\)"),
        ("LSTM", [(T, N, I), (T, N)], False, 0, r"num_output \(length of the state\) must be at least 1, got 0"),
        ("LSTM", [(T, N, I), (T, N), (T, S)], False, H, r"static input has shape \(5, 2\), expected \(3, ...\)"),
        ("LSTM", [(T, N, I), (T, N)], True, H, "2 bottoms; the layer takes 4 to 5"),
        ("LSTM", [(T, N, I), (T, N), (1, N, H), (1, N, I)], True, H, r"\(1, 3, 6\), expected \(1, 3, 4\)"),
        ("RNN", [(T, N, I), (T, N), (N, S), (1, N, H)], False, H, "4 bottoms; the layer takes 2 to 3"),
        ("LSTMUnit", [(1, N, H), (1, N, 3 * H), (1, N)], False, H, r"\(1, N, H\), \(1, N, 4 H\) and \(1, N\)"),
    ],
)
def test_senseless_parameters(type_: str, shapes: list[Shape], expose: bool, num_output: int, text: str) -> None:
    with pytest.raises(SpecError, match=text):
        layer(type_, *shapes, expose=expose, num_output=num_output)


def test_continuation_indicator() -> None:
    found = lookup("ContinuationIndicator")
    assert found is not None
    text = f'type: "ContinuationIndicator" continuation_indicator_param {{ time_step: {T} batch_size: {N} }}'
    module = found.build(prototxt.parse(text, "LayerParameter"), ())
    assert torch.equal(module(), always(0))
    assert module.double()().dtype == torch.float64
    assert not module.state_dict()
    with pytest.raises(SpecError, match="time_step 0 and batch_size 3 must be 1 or more"):
        found.build(prototxt.parse(text.replace(f"time_step: {T}", ""), "LayerParameter"), ())
    with pytest.raises(SpecError, match="2 bottoms; the layer takes 0 to 1"):
        found.build(prototxt.parse(text, "LayerParameter"), ((T, N), (T, N)))


def lstm_fork(shapes: list[Shape], more: str = "") -> Layer:
    found = lookup("Lstm")
    assert found is not None
    text = f'type: "Lstm" lstm_param {{ num_output: {H} {more} }}'
    return found.build(prototxt.parse(text, "LayerParameter"), shapes)


def test_lstm_of_the_fork_is_caffes() -> None:
    """(T, N, I), or its two first axes in one; with the same gates, and blobs in another order."""
    reference = layer("LSTM", (T, N, I), (T, N))
    x, cont = randn(T, N, I), (randn(T, N) > 0).float()
    for shapes, bottoms, want in (
        ([(T, N, I)], (x,), reference(x, always(0))),
        ([(T, N, I), (T * N,)], (x, cont.flatten()), reference(x, cont)),
        ([(T * N, I, 1, 1)], (x.reshape(T * N, I, 1, 1),), reference(x, always(0)).flatten(0, 1)),
        ([(T * N, I), (T, N)], (x.flatten(0, 1), cont), reference(x, cont).flatten(0, 1)),
    ):
        module = lstm_fork(shapes, f"batch_size: {N}")
        assert module.blob_names() == ["weight_x", "weight_h", "bias"]
        for name in module.blob_names():
            module.set_blob(name, reference.get_blob(name))
        torch.testing.assert_close(module(*bottoms), want)


def test_what_the_forks_lstm_refuses() -> None:
    for shapes, what in (
        ([(T * N, I)], r"or \(4 x steps, \.\.\.\), got \(15, 6\)"),
        ([(T, N, I), (T,)], "15 values, one per step"),
    ):
        with pytest.raises(SpecError, match=what):
            lstm_fork(shapes, "batch_size: 4")
    with pytest.raises(SpecError, match="num_output 4 and batch_size 0 must be 1 or more"):
        lstm_fork([(T, N, I)], "batch_size: 0")
