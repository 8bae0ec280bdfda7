"""Caffe's own training runs, followed parameter by parameter; and what a solver.prototxt may say."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import GOLDEN
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from caffe_port import api
from caffe_port.errors import CaffePortError, SpecError
from caffe_port.formats import prototxt, solverstate
from caffe_port.net.net import Net
from caffe_port.training import optimizers, solver, solver_file
from caffe_port.training.snapshot import capture, restore
from caffe_port.training.solver import SolverSpec, learning_rate

FOLDER = GOLDEN / "solvers"
RUNS = sorted(p.name.removesuffix(".solver.prototxt") for p in FOLDER.glob("*.solver.prototxt"))


def build(name: str, weights: str = "init.caffemodel") -> tuple[SolverSpec, Net, optimizers.CaffeOptimizer]:
    spec = SolverSpec.read(FOLDER / f"{name}.solver.prototxt")
    net = api.port(FOLDER / "net.prototxt", FOLDER / weights, keep_loss=True).net.train()
    return spec, net, solver.build(spec, net)


def assert_parameters(net: Net, run: dict[str, np.ndarray], at: int) -> None:
    compared = 0
    for layer, blobs in net.blobs().items():
        for j, blob in enumerate(blobs):
            expected = run[f"param:{layer}:{j}"][at].astype(np.float64)
            worst = (np.abs(blob - expected) - 1e-6 - 1e-5 * np.abs(expected)).max()
            assert worst <= 0, f"{layer} blob {j} after {at} iterations: {worst:.3g} beyond the tolerance"
            compared += 1
    assert compared == sum(key.startswith("param:") for key in run)


def follow(
    spec: SolverSpec, net: Net, optimizer: optimizers.CaffeOptimizer, run: dict[str, np.ndarray], start: int
) -> None:
    """Trains from ``start`` to 16; a forward pass takes the next of the four batches."""
    for it in range(start, 16):
        solver.set_iteration(optimizer, spec, it)
        optimizer.zero_grad()
        total = 0.0
        for _ in range(spec.iter_size):
            x, label = (torch.from_numpy(run[key][it % 4]) for key in ("x", "l"))
            _, loss = net.forward_with_loss(x, label)
            loss.backward()
            total += loss.item() / spec.iter_size
        assert total == pytest.approx(run["loss"][it], rel=1e-5)
        optimizer.step()
        assert_parameters(net, run, it + 1)


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def test_there_are_19_runs() -> None:
    assert len(RUNS) == 19


@pytest.mark.parametrize("name", RUNS)
def test_caffes_run_is_followed(name: str) -> None:
    spec, net, optimizer = build(name)
    run = load(name)
    assert_parameters(net, run, 0)
    follow(spec, net, optimizer, run, 0)


# -- .solverstate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_caffes_snapshot_is_resumed(name: str) -> None:
    spec, net, optimizer = build(name, f"{name}_iter_8.caffemodel")
    state = solverstate.read(FOLDER / f"{name}_iter_8.solverstate")
    assert state.iter == 8
    assert state.current_step == solver.current_step(spec, 7)
    assert solverstate.weights_beside(state) == FOLDER / f"{name}_iter_8.caffemodel"
    restore(state, net, optimizer, spec)
    run = load(name)
    assert_parameters(net, run, 8)
    follow(spec, net, optimizer, run, 8)
    ours = capture(net, optimizer, spec, 16, f"{name}_iter_16.caffemodel")
    caffes = solverstate.read(FOLDER / f"{name}_iter_16.solverstate")
    assert (ours.iter, ours.learned_net, ours.current_step) == (caffes.iter, caffes.learned_net, caffes.current_step)
    for mine, theirs in zip(ours.history, caffes.history, strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("suffix", ["solverstate", "solverstate.h5"])
def test_a_state_survives_writing(tmp_path: Path, suffix: str) -> None:
    state = solverstate.read(FOLDER / "adam_iter_8.solverstate")
    solverstate.write(tmp_path / f"s.{suffix}", state)
    again = solverstate.read(tmp_path / f"s.{suffix}")
    assert (again.iter, again.learned_net, again.current_step) == (8, "adam_iter_8.caffemodel", state.current_step)
    for mine, theirs in zip(again.history, state.history, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    if suffix == "solverstate":
        assert (tmp_path / "s.solverstate").read_bytes() == (FOLDER / "adam_iter_8.solverstate").read_bytes()


def test_a_name_in_hdf5_ends_as_caffes_do(tmp_path: Path) -> None:
    """hdf5_load_string reads as many bytes as the type has, and takes them for a string that ends in NUL."""
    path = tmp_path / "s.solverstate.h5"
    solverstate.write(path, solverstate.SolverState(8, "ü/a.caffemodel.h5", (np.zeros(3, np.float32),)))
    with h5py.File(path) as file:
        kind = file["learned_net"].id.get_type()
        assert (kind.get_size(), kind.get_strpad()) == (len("ü/a.caffemodel.h5".encode()) + 1, h5py.h5t.STR_NULLTERM)
    assert solverstate.read(path).learned_net == "ü/a.caffemodel.h5"


def test_a_state_has_caffes_layout(tmp_path: Path) -> None:
    """An InnerProduct with `transpose` keeps (inputs, outputs) in Caffe, (outputs, inputs) in nn.Linear."""
    (tmp_path / "net.prototxt").write_text("""
        layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4 } } }
        layer { name: "y" type: "Input" top: "y" input_param { shape { dim: 2 dim: 3 } } }
        layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip"
                inner_product_param { num_output: 3 transpose: true weight_filler { type: "xavier" } } }
        layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "y" top: "loss" }
    """)
    (tmp_path / "solver.prototxt").write_text('net: "net.prototxt" base_lr: 0.1 momentum: 0.9 lr_policy: "fixed"')
    spec = SolverSpec.read(tmp_path / "solver.prototxt")
    net = api.port(tmp_path / "net.prototxt", keep_loss=True).net
    optimizer = solver.build(spec, net)
    weight, bias = np.arange(12, dtype=np.float32).reshape(4, 3), np.arange(3, dtype=np.float32)
    kept = net.ip.weight.detach().clone()
    restore(solverstate.SolverState(5, "w", (weight, bias)), net, optimizer, spec)
    np.testing.assert_array_equal(optimizer.history(net.ip.weight)[0].numpy(), weight.T)
    assert torch.equal(net.ip.weight, kept)
    again = capture(net, optimizer, spec, 5, "w")
    for mine, theirs in zip(again.history, (weight, bias), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(
        CaffePortError, match=r"layer 'ip', blob 0: history has shape \(3, 4\), but the blob has \(4, 3\)"
    ):
        restore(solverstate.SolverState(5, "w", (weight.T, bias)), net, optimizer, spec)


def test_a_state_of_something_else_is_refused(tmp_path: Path) -> None:
    spec, net, optimizer = build("sgd")
    with pytest.raises(CaffePortError, match="has 16 arrays, but SGD on this net has 1 for each of 8 blobs"):
        restore(solverstate.read(FOLDER / "adam_iter_8.solverstate"), net, optimizer, spec)
    state = solverstate.read(FOLDER / "sgd_iter_8.solverstate")
    wrong = dataclasses.replace(state, history=(np.zeros((2, 2), np.float32), *state.history[1:]))
    with pytest.raises(
        CaffePortError, match=r"layer 'conv', blob 0: history has shape \(2, 2\), but the blob has \(4, 3, 3, 3\)"
    ):
        restore(wrong, net, optimizer, spec)
    with pytest.raises(CaffePortError, match=r"not a \.solverstate"):
        solverstate.read(FOLDER / "sgd_iter_8.caffemodel")
    data = (FOLDER / "sgd_iter_8.solverstate").read_bytes()
    for k, content in enumerate((data[: len(data) // 2], b"\x89HDF\r\n\x1a\n" + data)):
        path = tmp_path / f"{k}.solverstate"
        path.write_bytes(content)
        with pytest.raises(CaffePortError, match=str(path)):
            solverstate.read(path)
    alone = tmp_path / "sgd_iter_8.solverstate"
    alone.write_bytes(data)
    with pytest.raises(CaffePortError, match="neither at that path nor next to the state"):
        solverstate.weights_beside(solverstate.read(alone))


# -- the learning rate ----------------------------------------------------------------------------------------------


def spec_of(text: str) -> SolverSpec:
    return SolverSpec.parse(prototxt.parse(text, "SolverParameter"))


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ('lr_policy: "fixed"', {0: 0.1, 99: 0.1}),
        ('lr_policy: "step" stepsize: 3 gamma: 0.5', {0: 0.1, 2: 0.1, 3: 0.05, 6: 0.025}),
        ('lr_policy: "exp" gamma: 0.9', {0: 0.1, 2: 0.081}),
        ('lr_policy: "inv" gamma: 0.5 power: 2', {0: 0.1, 2: 0.025}),
        ('lr_policy: "multistep" stepvalue: [2, 4] gamma: 0.1', {1: 0.1, 2: 0.01, 3: 0.01, 4: 0.001, 9: 0.001}),
        ('lr_policy: "multistep" stepvalue: [4, 2] gamma: 0.1', {3: 0.1, 4: 0.01, 5: 0.001}),  # one step an iteration
        ('lr_policy: "multistep" stepvalue: [0, 0] gamma: 0.1', {0: 0.01, 1: 0.001}),
        ('lr_policy: "poly" power: 0.5 max_iter: 4', {0: 0.1, 3: 0.05, 4: 0.0, 5: 0.0}),
        ('lr_policy: "multifixed" stagelr: [0.1, 0.3] stageiter: [2, 4]', {0: 0.1, 2: 0.1, 3: 0.3, 9: 0.3}),
        ('lr_policy: "fixed" warmup_iter: 4 warmup_start_lr: 0.02', {0: 0.02, 1: 0.04, 3: 0.08, 4: 0.1}),
        ('lr_policy: "multistep" stepvalue: [2, 3] gamma: 0.1 warmup_iter: 4', {2: 0.05, 4: 0.01, 5: 0.001}),
        ('lr_policy: "poly" power: 2 max_iter: 4 min_lr: 0.02', {0: 0.1, 2: 0.04, 4: 0.02, 5: 0.02}),
        ('lr_policy: "step" stepsize: 2 gamma: 0.1 min_lr: 0.005', {0: 0.1, 2: 0.01, 4: 0.005}),
        ('lr_policy: "fixed" rampup_interval: 4 rampup_lr: 0.02', {0: 0.02, 1: 0.025, 2: 0.04, 3: 0.065, 4: 0.1}),
        ('lr_policy: "fixed" rampup_interval: 4 min_lr: 0.01', {0: 0.01, 1: 0.01, 2: 0.025, 4: 0.1}),
        ('lr_policy: "multistep" stepvalue: [2, 3] gamma: 0.1 rampup_interval: 4', {2: 0.025, 4: 0.01, 5: 0.001}),
        ('lr_policy: "step" stepsize: 2 gamma: 0.5 rampup_interval: 3', {2: 0.4 / 9, 3: 0.05, 4: 0.025}),
        ('lr_policy: "poly" power: 1', {0: 0.1, 1: 0.0}),  # without max_iter, it is over at once
        ('lr_policy: "sigmoid" gamma: -0.5 stepsize: 2', {2: 0.05, 4: 0.1 / (1 + math.e), 9999: 0.0}),
    ],
)
def test_rates_by_hand(text: str, rates: dict[int, float]) -> None:
    spec = spec_of(f"base_lr: 0.1 {text}")
    for it, rate in rates.items():
        assert learning_rate(spec, it) == pytest.approx(rate, abs=1e-15)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no base_lr"),
        ('base_lr: 1 type: "Adadelta"', "Did you mean 'AdaDelta'"),
        ('base_lr: 1 type: "SGD" solver_type: SGD', "sets both type and its old form"),
        ('base_lr: 1 lr_policy: "steps"', "Did you mean 'step'"),
        ('base_lr: 1 lr_policy: "step"', "stepsize of at least 1, got 0"),
        ('base_lr: 1 type: "AdaGrad" momentum: 0.9', "momentum cannot be used with AdaGrad"),
        ('base_lr: 1 type: "RMSProp" rms_decay: 1', "not in"),
        ('base_lr: 1 regularization_type: "L3"', "neither L1 nor L2"),
        ("base_lr: 1 iter_size: 0", "iter_size is 0, expected at least 1"),
        ('base_lr: 1 net: "a" test_iter: 5', "sets test_iter, but not test_interval"),
        ("base_lr: nan", "not finite"),
        (
            'base_lr: 1 test_interval: 5 train_net: "a" test_net: "b" test_iter: [1, 2]',
            "1 test net, but test_iter 2 times",
        ),
        ('base_lr: 1 test_interval: 5 net: "a" test_net: ["b", "c"] test_iter: 1', "2 test nets, but test_iter 1 time"),
        ('base_lr: 1 net: "a" test_interval: 5 test_iter: [1, 2] test_state { }', "2 test nets, but test_state 1 time"),
        ('base_lr: 1 net: "a" test_interval: 5 test_iter: -1', "test_iter is -1"),
        ("base_lr: 1 iter_size: 2 update_interval: 2", "iter_size and update_interval, which mean the same"),
        ("base_lr: 1 test_offset: 0.5", "test_offset is 0.5; expected a whole number"),
        ("base_lr: 1 update_interval: 2 update_interval: 3", "update_interval is 2, 3; expected a whole number"),
        ('base_lr: 1 larc: true larc_policy: "clipped"', "larc_policy 'clipped' is not one of scale, clip"),
        ('base_lr: 1 momentum_policy: "linear"', "momentum_policy 'linear' is not one of fixed, poly, opt"),
        ('base_lr: 1 weight_decay_policy: "opt"', "weight_decay_policy 'opt' is not one of fixed, poly"),
        ('base_lr: 1 type: "Adam" regularization_type: "WD"', "neither L1 nor L2"),
        ('base_lr: 1 lr_policy: "poly" min_lr: 2', "min_lr 2.0 is above base_lr 1.0"),
        ("base_lr: 1 rampup_interval: -1", "rampup_interval is -1, expected at least 0"),
        ("base_lr: 1 clip_weights: 3", "'clip_weights' is not followed: bounds the weights"),
        ("base_lr: 1 test_iter: 5 test_interval: 5", "names no net"),
        ('base_lr: 1 lr_policy: "multifixed" stagelr: 1', "1 stagelr and 0 stageiter"),
        ("base_lr: 1 min_lr: -1", "min_lr is -1"),
    ],
)
def test_a_solver_that_caffe_refuses(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec_of(text)


def test_fields_that_do_nothing_are_taken() -> None:
    spec = spec_of('base_lr: 1 local_lr_auto: false momentum_policy: "fixed" larc: false larc_policy: "clip"')
    assert spec.base_lr == 1


def test_fields_of_forks_are_followed() -> None:
    """yjxiong's name of iter_size and several devices; Intel's multifixed without base_lr; C3D's test of nothing."""
    spec = spec_of("base_lr: 1 update_interval: 4 update_interval: 4 device_id: [0, 1] device_id: 2 debug_display: 9")
    assert spec.iter_size == 4
    spec = spec_of('lr_policy: "multifixed" stagelr: 0.5 stageiter: 9')
    assert learning_rate(spec, 3) == 0.5
    assert spec_of('base_lr: 1 train_net: "a" test_iter: 100 test_interval: 0').tests == ()
    assert spec_of('base_lr: 1 net: "a" test_iter: 0 test_interval: 0').tests == (), "CaffeOnSpark, which tests itself"


@pytest.mark.parametrize(
    ("text", "tested"),
    [
        ("test_interval: 4 test_offset: 1", [1, 5, 9]),
        ("test_interval: 4 test_offset: 6", [2, 6, 10]),
        ("test_interval: 4 test_offset: 4", [0, 4, 8]),
        ("test_interval: 4 test_initialization: false", [4, 8]),
        ("test_interval: 4 test_offset: 2 test_initialization: false", [2, 6, 10]),
    ],
)
def test_tests_may_be_made_later(text: str, tested: list[int]) -> None:
    """(iter - test_offset) % test_interval == 0, where C++ has the sign of what is divided: solver.cpp of Intel's."""
    spec = spec_of(f'base_lr: 1 net: "a" test_iter: 3 {text}')
    assert [it for it in range(11) if spec.is_test(it) and (it or spec.test_initialization)] == tested
    assert [spec.tests_before(it) for it in range(12)] == [sum(t < it for t in tested) for it in range(12)]


def test_lars_by_hand() -> None:
    """GetLocalRate of Intel's Caffe, read line by line, as SGDFusion and ComputeUpdateValue call it: after the gradient
    was clipped and divided, before the decay is added. Only an lr_mult of 0 counts. The decay in the formula is the
    solver's, without decay_mult. GetLocalRate of NVIDIA/caffe 0.16.4 is the same.
    """
    rng = np.random.default_rng(0)
    start = [rng.standard_normal((3, 2)).astype(np.float32), np.zeros(4, np.float32)]
    spec = spec_of(
        "base_lr: 0.5 momentum: 0.9 weight_decay: 0.01 iter_size: 2 local_lr_auto: true local_gw_ratio: 0.02"
    )
    params, made = optimizer_of(spec, start, ((1, 1), (2, 0)))
    weights, histories = [w.astype(np.float64) for w in start], [np.zeros_like(w, np.float64) for w in start]
    for _ in range(4):
        for k, (p, decay) in enumerate(zip(params, (1, 0), strict=True)):
            grad = rng.standard_normal(p.shape).astype(np.float32)
            p.grad = torch.tensor(grad)
            g, w = grad / 2, weights[k]
            norms = np.linalg.norm(w), np.linalg.norm(g)
            local = 0.02 * norms[0] / (norms[1] + 0.01 * norms[0]) if min(norms) > 0 else 1
            histories[k] = 0.9 * histories[k] + 0.5 * local * (g + 0.01 * decay * w)
        made.step()
        for k, p in enumerate(params):
            weights[k] = weights[k] - histories[k]
            np.testing.assert_allclose(p.detach(), weights[k], rtol=1e-5, atol=1e-6)


def optimizer_of(
    spec: SolverSpec, start: list[np.ndarray], factors: tuple[tuple[float, float], ...]
) -> tuple[list[torch.nn.Parameter], optimizers.CaffeOptimizer]:
    """Parameters, and the solver's optimizer for them; ``factors`` are their lr_mult and decay_mult."""
    cls = optimizers.OPTIMIZERS[spec.type]
    params = [torch.nn.Parameter(torch.tensor(w)) for w in start]
    made = cls(
        [{"params": [p], "lr_mult": m, "decay_mult": d} for p, (m, d) in zip(params, factors, strict=True)],
        0.0,
        weight_decay=spec.weight_decay,
        regularization_type=spec.regularization_type,
        clip_gradients=spec.clip_gradients,
        iter_size=spec.iter_size,
        **{name: getattr(spec, name) for name in cls.options},
    )
    solver.set_iteration(made, spec, 0)
    return params, made


def nvidias_run(
    p: dict[str, float | str | bool], start: np.ndarray, grads: list[np.ndarray], mult: float, decay_mult: float
) -> list[np.ndarray]:
    """One blob's values after every update, in float64: written from GetLearningRate (fixed, with the ramp),
    GetMomentum, GetWeightDecay, GetLocalRate and ComputeUpdateValue of sgd_solver.cpp and sag_solver.cpp, and the
    kernels SGDRegUpdateAllAndClear, SGDWdUpdateAllAndClear, SAGRegUpdateAllAndClear and SAGWdUpdateAllAndClear of
    sgd_solver.cu and sag_solver.cu, NVIDIA/caffe 0.17.4.
    """
    w, h, correlation, values = start.astype(np.float64), np.zeros(start.shape), 0.0, []
    sag = p["type"] == "SAG"
    for it, summed in enumerate(grads):
        g = summed.astype(np.float64) / p["iter_size"]
        rate = p["base_lr"]
        if it < p["rampup_interval"]:
            alpha = it / p["rampup_interval"]
            rate = p["rampup_lr"] + (p["base_lr"] - p["rampup_lr"]) * alpha * alpha
        m = p["momentum"]
        if p["momentum_policy"] == "poly":
            m += (p["max_momentum"] - m) * (it / p["max_iter"]) ** p["momentum_power"]
        elif p["momentum_policy"] == "opt":
            m = min(p["max_momentum"], (1 - 0.5 * np.sqrt(rate)) * (1 - 0.5 * np.sqrt(rate)))
        decay = p["weight_decay"]
        if p["weight_decay_policy"] == "poly":
            decay += (p["max_weight_decay"] - decay) * (it / p["max_iter"]) ** p["weight_decay_power"]
        decay *= decay_mult
        local = mult
        if p["larc"]:
            w_norm, g_norm, h_norm = (np.sqrt((x * x).sum()) for x in (w, g, h))
            local = 1.0
            if w_norm > 0 and (h_norm if sag else g_norm) > 0:
                local = p["larc_eta"] * w_norm / h_norm if sag else (1 - m) * p["larc_eta"] * w_norm / g_norm
            if p["larc_turbo"] and (not sag or it > 1):
                cosine = (g * h).sum() / (g_norm * h_norm) if g_norm > 0 and h_norm > 0 else 0.0
                correlation = 0.95 * correlation + 0.05 * cosine
                local = local * (1 - 0.9 * correlation) if sag else local - 0.9 * correlation
            local = min(rate, local) if p["larc_policy"] == "clip" else rate * local
        else:
            local *= rate
        unbound = p["regularization_type"] == "WD"
        reg = np.sign(w) if p["regularization_type"] == "L1" else w
        made = g if unbound else g + decay * reg
        if sag:
            h = m * h + (1 - m) * made
            w = w - local * (h + (decay * w if unbound else 0))
        else:
            h = m * h + local * made
            w = w - (h + (decay * local * w if unbound else 0))
        values.append(w)
    return values


DEFAULTS = {
    "type": "SGD",
    "base_lr": 0.5,
    "momentum": 0.9,
    "weight_decay": 0.02,
    "max_iter": 6,
    "iter_size": 2,
    "regularization_type": "L2",
    "rampup_interval": 0,
    "rampup_lr": 0.0,
    "momentum_policy": "fixed",
    "max_momentum": 0.99,
    "momentum_power": 1.0,
    "weight_decay_policy": "fixed",
    "weight_decay_power": 1.0,
    "max_weight_decay": 0.0,
    "larc": False,
    "larc_policy": "scale",
    "larc_eta": 0.001,
    "larc_turbo": False,
}
RAMP = {"rampup_interval": 3, "rampup_lr": 0.0}


@pytest.mark.parametrize("type_", ["SGD", "SAG"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"regularization_type": "WD"},
        {"regularization_type": "L1"},
        RAMP,
        {"momentum_policy": "poly", "max_momentum": 0.95, "momentum_power": 2.0, "momentum": 0.5},
        {"momentum_policy": "opt", "max_momentum": 0.6},
        {"weight_decay_policy": "poly", "max_weight_decay": 0.1, "weight_decay_power": 0.5},
        {"larc": True, "larc_eta": 0.3},
        {"larc": True, "larc_eta": 0.3, "larc_policy": "clip"} | RAMP,
        {"larc": True, "larc_eta": 5.0, "larc_policy": "clip", "momentum_policy": "poly"},
        {"larc": True, "larc_eta": 0.3, "larc_turbo": True, "regularization_type": "WD"},
        {"larc": True, "larc_eta": 0.3, "larc_turbo": True, "larc_policy": "clip", "weight_decay_policy": "poly"}
        | RAMP,
    ],
)
def test_nvidias_updates_by_hand(type_: str, changes: dict[str, float | str | bool]) -> None:
    values = DEFAULTS | changes | {"type": type_}
    text = " ".join(f'{k}: "{v}"' if isinstance(v, str) else f"{k}: {str(v).lower()}" for k, v in values.items())
    spec = spec_of(text)
    rng = np.random.default_rng(1)
    start = [rng.standard_normal((3, 2)).astype(np.float32), np.zeros(4, np.float32)]
    factors = ((1, 1), (2, 0.5))
    grads = [[rng.standard_normal(w.shape).astype(np.float32) for w in start] for _ in range(6)]
    params, optimizer = optimizer_of(spec, start, factors)
    runs = [nvidias_run(values, w, [g[k] for g in grads], *factors[k]) for k, w in enumerate(start)]
    for it in range(6):
        solver.set_iteration(optimizer, spec, it)
        for p, g in zip(params, grads[it], strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
        for p, run in zip(params, runs, strict=True):
            np.testing.assert_allclose(p.detach(), run[it], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("type_", "delta"), [("Adam", 1e-4), ("RMSProp", 1e-4), ("AdaGrad", 1e-3), ("AdaDelta", 1e-3), ("SGD", 1e-8)]
)
def test_nvidias_least_delta(type_: str, delta: float) -> None:
    """max(delta, 0.0001) or max(delta, 0.001) in ComputeUpdateValue of NVIDIA/caffe's solvers; Caffe 1.0 has none."""
    spec = spec_of(f'base_lr: 1 type: "{type_}" min_lr: 0.5')
    assert spec.delta == pytest.approx(delta)
    assert any("delta" in note for note in spec.notes) == (type_ != "SGD")
    assert spec_of(f'base_lr: 1 type: "{type_}"').delta == 1e-8
    assert spec_of(f'base_lr: 1 type: "{type_}" min_lr: 0.5 delta: 0.25').delta == 0.25


def test_what_a_user_of_nvidias_caffe_should_know() -> None:
    text = "base_lr: 1 larc: true solver_data_type: FLOAT16 rampup_interval: 5 test_and_snapshot_last_epochs: 6"
    notes = "\n".join(spec_of(text).notes)
    for said in (
        "0.16.5 to 0.17.0 have no factor 1 - momentum",
        "are float32 here",
        "linearly",
        "no tests and snapshots",
    ):
        assert said in notes
    (poly,) = spec_of('base_lr: 1 lr_policy: "poly" min_lr: 0.5 max_iter: 4').notes
    assert "from 0.17.1 on; in 0.16.5 to 0.17.0 it falls towards zero" in poly
    assert spec_of('base_lr: 1 lr_policy: "fixed" min_lr: 0.5').notes == []
    text = 'base_lr: 1 type: "Nesterov" momentum: 0.9 momentum_policy: "poly" larc: true weight_decay_policy: "poly"'
    spec = spec_of(text)
    assert sum("has no effect on Nesterov" in note for note in spec.notes) == 2
    assert solver.momentum(spec, 3, 1.0) == spec.momentum
    assert spec_of("base_lr: 1 store_blobs_in_old_format: true solver_data_type: FLOAT").notes == []


def test_an_ignored_field_of_the_solver_has_no_effect() -> None:
    text = "base_lr: 1 larc: true min_lr: 0.5 iter_size: 2"
    spec = SolverSpec.parse(prototxt.parse(text, "SolverParameter"), ignore_fields=("larc", "min_lr"))
    assert (spec.larc, spec.min_lr, spec.iter_size) == (False, 0.0, 2)
    assert spec.ignored == {"larc", "min_lr"}


def test_every_unknown_field_is_named() -> None:
    with pytest.raises(SpecError) as caught:
        spec_of('base_lr: 1 regularization: "L1" weight_dcy_rate: 0.001 learning_rate: 0.5 quux: 7')
    for text in (
        "no field 'regularization'. Did you mean 'regularization_type'?",
        "no field 'weight_dcy_rate'. Did you mean 'weight_decay'?",
        "no field 'learning_rate'. Did you mean 'base_lr'?",
        "no field 'quux'",
    ):
        assert text in str(caught.value)


def test_plateau_by_hand() -> None:
    """SSD's sgd_solver.cpp: a step when the averaged loss has had no new minimum for plateau_winsize iterations."""
    spec = spec_of('base_lr: 1 lr_policy: "plateau" gamma: 0.1 plateau_winsize: [2, 3]')
    plateau = solver.Plateau()
    steps = []
    for it, loss in enumerate([5.0, 4.0, 4.5, 4.5, 4.5, 4.5, 3.0, 3.5, 3.5, 3.5, 3.5]):
        plateau.hear(spec, it, loss)
        steps.append(plateau.current_step)
    assert steps == [0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2]
    assert (plateau.minimum_loss, plateau.iter_last_event) == (3.0, 9)
    assert learning_rate(spec, 9, 2) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ('net: "a" test_interval: 4 test_iter: 1', {0: 0, 4: 1, 8: 2, 9: 3}),
        ('net: "a" test_interval: 4 test_iter: 1 test_initialization: false', {4: 0, 8: 1}),
        ("", {7: 0}),
    ],
)
def test_how_many_tests_came_before(text: str, before: dict[int, int]) -> None:
    spec = spec_of(f"base_lr: 1 {text}")
    assert {it: spec.tests_before(it) for it in before} == before


def test_the_old_type_is_understood() -> None:
    for old, new in solver_file._OLD_TYPES.items():
        assert spec_of(f"base_lr: 1 solver_type: {old}").type == new
    assert spec_of("base_lr: 1").changed(max_iter=7, iter_size=None).max_iter == 7
    assert set(optimizers.OPTIMIZERS) == set(solver_file.TYPES), "which are known without torch, too"


def test_the_net_is_found_beside_the_solver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (FOLDER / "net.prototxt").read_text()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "net.prototxt").write_text(text)
    path = tmp_path / "a" / "solver.prototxt"
    path.write_text('base_lr: 1 net: "net.prototxt"')
    assert SolverSpec.read(path).definition().net.name == "solver_parity"
    path.write_text('base_lr: 1 net: "examples/there/net.prototxt"')
    assert SolverSpec.read(path).definition("TEST").path == str(tmp_path / "a" / "net.prototxt")
    monkeypatch.chdir(tmp_path)
    path.write_text(
        'base_lr: 1 train_net: "a/net.prototxt" test_net_param { name: "t" layer { name: "i" type: "Input" } }'
        " test_iter: 1 test_interval: 1"
    )
    assert SolverSpec.read(path).definition("TRAIN").net.name == "solver_parity"
    assert SolverSpec.read(path).definition("TEST").net.name == "t"
    for wrong, message in (
        ('net: "absent.prototxt"', "absent.prototxt' is neither"),
        ("", "names no nets for phase TRAIN"),
        ('train_net: "a" train_net_param { }', "names 2 nets"),
    ):
        path.write_text(f"base_lr: 1 {wrong}")
        with pytest.raises(SpecError, match=message):
            SolverSpec.read(path).definition()


def test_states_of_the_phases() -> None:
    spec = spec_of('base_lr: 1 train_state { level: 2 stage: "a" } test_state { stage: "b" }')
    assert spec.state("TRAIN") == (2, ("a",))
    assert spec.state("TEST") == (0, ("b",))
    assert spec_of("base_lr: 1").state("TEST") == (0, ())


# -- which blobs learn ----------------------------------------------------------------------------------------------

SHARED = """
layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 2 dim: 3 }} }} }}
layer {{ name: "a" type: "InnerProduct" bottom: "x" top: "a" param {{ name: "w" {0} }} param {{ lr_mult: 0 }}
  inner_product_param {{ num_output: 3 }} }}
layer {{ name: "b" type: "InnerProduct" bottom: "a" top: "b" param {{ name: "w" {1} }}
  inner_product_param {{ num_output: 3 }} }}
"""


def shared_net(folder: Path, first: str, second: str) -> Net:
    path = folder / "net.prototxt"
    path.write_text(SHARED.format(first, second))
    return api.port(path).net


def test_shared_blobs_learn_once_and_frozen_ones_never(tmp_path: Path) -> None:
    net = shared_net(tmp_path, "", "lr_mult: 3 decay_mult: 2")
    found = solver.learnables(net)
    assert [(b.layer, b.index, b.lr_mult, b.decay_mult) for b in found] == [
        ("a", 0, 3, 2),
        ("a", 1, 0, 1),
        ("b", 1, 1, 1),
    ]
    optimizer = solver.build(spec_of("base_lr: 1"), net)
    assert [(g["lr_mult"], len(g["params"])) for g in optimizer.param_groups] == [(3.0, 1), (1.0, 1)]
    assert not found[1].tensor.requires_grad
    with pytest.raises(SpecError, match=r"layer 'b'.*shares a blob with layer 'a' but sets a different lr_mult"):
        solver.learnables(shared_net(tmp_path, "lr_mult: 1", "lr_mult: 3"))
    frozen = SHARED.format("lr_mult: 0", "lr_mult: 0").replace("num_output", "bias_term: false num_output")
    (tmp_path / "net.prototxt").write_text(frozen.replace("param { lr_mult: 0 }\n", ""))
    nothing = api.port(tmp_path / "net.prototxt").net
    with pytest.raises(SpecError, match="has no trainable parameters"):
        solver.build(spec_of("base_lr: 1"), nothing)
    with pytest.raises(SpecError, match="has 4 param entries, but 2 blobs"):
        solver.learnables(shared_net(tmp_path, "} param { } param { ", ""))


# -- the optimizers by themselves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(optimizers.OPTIMIZERS))
def test_a_state_dict_carries_everything(name: str) -> None:
    def run(steps: int, saved: dict | None = None, start: torch.Tensor | None = None) -> tuple[dict, torch.Tensor]:
        p = torch.nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, 3) if start is None else start.clone())
        optimizer = optimizers.OPTIMIZERS[name]([{"params": [p], "lr_mult": 2.0}], 0.1, weight_decay=0.01)
        if saved is not None:
            optimizer.load_state_dict(saved)
        for _ in range(steps):
            optimizer.zero_grad()
            p.square().sum().backward()
            optimizer.step()
        return optimizer.state_dict(), p.detach().clone()

    _, whole = run(5)
    saved, half = run(2)
    _, resumed = run(3, saved, half)
    assert torch.equal(whole, resumed)


class Largest(TorchDispatchMode):
    """The most numbers that a tensor had which an operator made."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in tree_flatten(args)[0] if isinstance(tensor, Tensor)}
        for tensor in tree_flatten(made)[0]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.most = max(self.most, tensor.numel())
        return made


@pytest.mark.parametrize(("name", "larc"), [*((name, False) for name in optimizers.OPTIMIZERS), ("SGD", True)])
def test_an_update_takes_little_memory(name: str, larc: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large parameter is updated in pieces, with the same result; not where its norm counts."""
    cls = optimizers.OPTIMIZERS[name]

    def run(portion: int) -> tuple[list[Tensor], int]:
        monkeypatch.setattr(optimizers, "PORTION", portion)
        draw = torch.Generator().manual_seed(0)
        shapes = (3,), (50, 40), (2, 3), (4, 5, 3, 3), (7,)
        params = [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]
        params[3].data = params[3].data.to(memory_format=torch.channels_last)
        groups = [{"params": params[:2]}, {"params": params[2:], "lr_mult": 2.0}]
        options = {"larc_ratio": 0.1} if larc else {}
        optimizer = cls(groups, 0.1, weight_decay=0.01, clip_gradients=3.0, iter_size=2, **options)
        for parameter in params:
            optimizer.history(parameter)
        watch = Largest()
        for _ in range(3):
            for parameter in params:
                parameter.grad = torch.randn(parameter.shape, generator=draw)
            with watch:
                optimizer.step()
        return params, watch.most

    (one, most), (other, whole) = run(300), run(10**9)
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    assert whole == 2000
    assert most == (2000 if larc else 300)


def test_adadelta_is_torchs_with_rho_for_momentum() -> None:
    p, q = (torch.nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    ours = optimizers.AdaDelta([p], 0.1, momentum=0.9, delta=1e-3, weight_decay=5e-3)
    torchs = torch.optim.Adadelta([q], 0.1, rho=0.9, eps=1e-3, weight_decay=5e-3)
    for it in range(50):
        for parameter, optimizer in ((p, ours), (q, torchs)):
            optimizer.zero_grad()
            (parameter - it % 3).cos().sum().backward()
            optimizer.step()
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_torchs_own_adadelta_follows_caffes_run() -> None:
    """Caffe's AdaDelta has no momentum besides rho: torch.optim.Adadelta(rho=momentum, eps=delta) is the same."""
    spec, net, ours = build("adadelta")
    run = load("adadelta")
    groups = [{**g, "weight_decay": spec.weight_decay * g["decay_mult"]} for g in ours.param_groups]
    torchs = torch.optim.Adadelta(groups, rho=spec.momentum, eps=spec.delta)
    for it in range(16):
        for group in torchs.param_groups:
            group["lr"] = learning_rate(spec, it) * group["lr_mult"]
        torchs.zero_grad()
        _, loss = net.forward_with_loss(*(torch.from_numpy(run[key][it % 4]) for key in ("x", "l")))
        loss.backward()
        torchs.step()
        assert_parameters(net, run, it + 1)


def test_gradients_stay_and_missing_ones_are_zero() -> None:
    p, q = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = optimizers.SGD([p, q], 0.1, momentum=0.5, weight_decay=1.0, clip_gradients=1.0)
    p.grad = torch.tensor([3.0, 4.0])
    assert optimizer.step(lambda: 7) == 7
    assert p.grad.tolist() == [3.0, 4.0]
    torch.testing.assert_close(p.detach(), 1 - 0.1 * (torch.tensor([0.6, 0.8]) + 1))
    torch.testing.assert_close(q.detach(), torch.full((2,), 0.9))
    with pytest.raises(TypeError, match="SGD takes no 'delta'"):
        optimizers.SGD([p], 0.1, delta=1.0)
