"""Winograd's convolutions: forward, all gradients, and where they are used."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from small_training import assert_equal, blobs, project
from torch.nn import functional as F

from caffe_port import api, devices
from caffe_port.net.net import Net
from caffe_port.training import fused_layers, run_folder, winograd
from caffe_port.training.train import TrainOptions, train


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "shape",
    [(3, 5, 7, 8, 8), (5, 4, 3, 7, 10), (1, 2, 2, 3, 4), (9, 64, 128, 16, 12)],
    ids=lambda s: "x".join(map(str, s)),
)
def test_outputs_and_gradients_are_those_of_a_convolution(
    shape: tuple[int, ...], memory: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "CACHE", 4 * 36 * 24 * 128)  # several turns, the last of them smaller
    images, inputs, outputs, height, width = shape
    made = torch.Generator().manual_seed(0)
    x = torch.randn(images, inputs, height, width, generator=made).contiguous(memory_format=memory)
    weight = torch.randn(outputs, inputs, 3, 3, generator=made) / (9 * inputs) ** 0.5
    bias, g = torch.randn(outputs, generator=made), torch.randn(images, outputs, height, width, generator=made)
    ours = [t.clone().requires_grad_() for t in (x, weight, bias)]
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    y, right = winograd.convolve(*ours), F.conv2d(*exact, padding=1)
    y.backward(g)
    right.backward(g.double())
    for one, other in ((y, right), *((a.grad, b.grad) for a, b in zip(ours, exact, strict=True))):
        assert one is not None
        assert other is not None
        assert one.dtype == torch.float32
        assert (one - other).norm() < 1e-5 * other.norm()


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_gradients_that_nobody_wants_are_not_computed(wanted: tuple[bool, ...]) -> None:
    tensors = [torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), torch.randn(4)]
    ours = [t.clone().requires_grad_(need) for t, need in zip(tensors, wanted, strict=True)]
    theirs = [t.clone().requires_grad_(need) for t, need in zip(tensors, wanted, strict=True)]
    winograd.convolve(*ours).sum().backward()
    F.conv2d(*theirs, padding=1).sum().backward()
    for one, other, need in zip(ours, theirs, wanted, strict=True):
        assert (one.grad is not None) == need
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


NET = """
input: "data" input_shape { dim: 2 dim: 64 dim: 8 dim: 8 }
layer { name: "wide" type: "Convolution" bottom: "data" top: "a"
        convolution_param { num_output: 128 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "a" top: "a" }
layer { name: "narrow" type: "Convolution" bottom: "a" top: "b"
        convolution_param { num_output: 8 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "strided" type: "Convolution" bottom: "a" top: "c"
        convolution_param { num_output: 128 kernel_size: 3 pad: 1 stride: 2 weight_filler { type: "xavier" } } }
"""


def net_of(folder: Path) -> Net:
    (folder / "n.prototxt").write_text(NET)
    return api.load(folder / "n.prototxt")


def test_a_net_uses_them_in_training_where_they_are_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, called = net_of(tmp_path), []
    own = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *of: called.append(of[1].shape[0]) or own(*of))
    x = torch.randn(16, 64, 8, 8)  # 64 tiles
    net.train()
    plain = net(x)
    fused_layers.use_winograd(net)
    fast = net(x)
    assert len(called) == 1
    for name, value in plain.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-4, atol=1e-4)
    net.eval()(x)
    net.train()(x[:15])  # too few tiles
    net(torch.randn(64, 64, 4, 4))  # too little to compute in an image
    net.double()(x.double())
    assert len(called) == 1
    seen = []
    net.float().wide.register_forward_hook(lambda *of: seen.append(of))
    net(x)
    assert (len(called), len(seen)) == (1, 1), "a hook sees the module's own call"


@pytest.mark.parametrize("bf16", [False, True])
def test_train_uses_them_where_bfloat16_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    used: list[Net] = []
    monkeypatch.setattr(devices, "has_bf16", lambda _: bf16)
    monkeypatch.setattr(fused_layers, "use_winograd", used.append)
    solver = project(tmp_path)
    train(solver, tmp_path / "plain", TrainOptions(max_iter=1))
    assert not used, "train without --fast computes as Caffe does"
    train(solver, tmp_path / "fast", TrainOptions(max_iter=1, fast=True))
    assert len(used) == (0 if bf16 else 1)


TRAINED = """
layer { name: "data" type: "HDF5Data" top: "data" top: "label" hdf5_data_param { source: "list.txt" batch_size: 16 } }
layer { name: "wide" type: "Convolution" bottom: "data" top: "a"
        convolution_param { num_output: 128 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "norm" type: "BatchNorm" bottom: "a" top: "a" }
layer { name: "relu" type: "ReLU" bottom: "a" top: "a" }
layer { name: "drop" type: "Dropout" bottom: "a" top: "a" }
layer { name: "back" type: "Convolution" bottom: "a" top: "b"
        convolution_param { num_output: 64 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "pool" type: "Pooling" bottom: "b" top: "p" pooling_param { pool: AVE global_pooling: true } }
layer { name: "ip" type: "InnerProduct" bottom: "p" top: "ip"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


def test_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_bf16", lambda _: False)
    called: list[int] = []
    own = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *of: called.append(of[1].shape[0]) or own(*of))
    solver = project(tmp_path, more="momentum: 0.9 iter_size: 2")
    solver.write_text(solver.read_text().replace("test_iter: 2", "").replace("max_iter: 12", "max_iter: 6"))
    (tmp_path / "net.prototxt").write_text(TRAINED)
    rng = np.random.default_rng(3)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = rng.standard_normal((40, 64, 8, 8)).astype(np.float32)
        file["label"] = rng.integers(0, 5, 40)
    train(solver, tmp_path / "whole", TrainOptions(fast=True))
    assert called == [128, 64] * 12
    train(solver, tmp_path / "halves", TrainOptions(fast=True, max_iter=4))
    assert train(solver, tmp_path / "halves", TrainOptions(fast=True, resume=True)).iter == 6
    assert called == [128, 64] * 24
    assert_equal(blobs(tmp_path / "whole"), blobs(tmp_path / "halves"))
    losses = [
        [line["loss"] for line in run_folder.read_metrics(tmp_path / run) if line["kind"] == "train"]
        for run in ("whole", "halves")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6
    train(solver, tmp_path / "plain")
    assert len(called) == 48
    with pytest.raises(AssertionError):
        assert_equal(blobs(tmp_path / "whole"), blobs(tmp_path / "plain"))
