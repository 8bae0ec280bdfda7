"""Training quickly: the loop's pieces, fused layers, rates on the device, and the recipe that is not Caffe's."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_training import assert_equal, blobs, project

from caffe_port import api, devices
from caffe_port.data import datasets
from caffe_port.data.augment import Augmentation, Epochs
from caffe_port.data.batches import positions
from caffe_port.data.prepare import Preprocessor
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.errors import CaffePortError
from caffe_port.training import cuda_graph, fast_recipe, fused_layers, processes, run_folder
from caffe_port.training.optimizers import OPTIMIZERS
from caffe_port.training.train import TrainOptions, train

RNG = np.random.default_rng(11)

# -- in pieces ------------------------------------------------------------------------------------------------------


def test_three_pieces_are_one_run_to_the_bit(tmp_path: Path) -> None:
    solver = project(tmp_path, "AdaDelta", "momentum: 0.9 delta: 1e-3")
    solver.write_text(solver.read_text().replace("max_iter: 12", "max_iter: 3"))
    train(solver, tmp_path / "whole")
    ends = []
    for piece in range(3):
        result = train(solver, tmp_path / "pieces", TrainOptions(max_seconds=0, resume=piece > 0))
        ends.append((result.iter, result.stopped))
    assert ends == [(1, "max_seconds"), (2, "max_seconds"), (3, "")]
    assert_equal(blobs(tmp_path / "whole"), blobs(tmp_path / "pieces"))
    one, three = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("whole", "pieces"))
    assert three["iter"] == one["iter"] == 3
    snapshot, _ = run_folder.RunFolder(tmp_path / "pieces").latest()
    assert snapshot is not None
    assert 0 < snapshot.extra["seconds"] <= three["seconds"]


def test_losses_may_be_read_later(tmp_path: Path) -> None:
    solver = project(tmp_path, more="momentum: 0.9 iter_size: 2")
    text = solver.read_text().replace("display: 1 ", "display: 5 ")
    solver.write_text(text)
    for name, every in (("each", 1), ("late", 7)):
        train(solver, tmp_path / name, TrainOptions(read_loss_every=every))
    assert_equal(blobs(tmp_path / "each"), blobs(tmp_path / "late"))
    shown = [
        [line["loss"] for line in run_folder.RunFolder(tmp_path / name).metrics() if line["kind"] == "train"]
        for name in ("each", "late")
    ]
    assert len(shown[0]) == 3
    assert shown[0] == shown[1]


def test_a_loss_read_late_still_names_its_iteration(tmp_path: Path) -> None:
    solver = project(tmp_path)
    text = solver.read_text().replace("base_lr: 0.05", "base_lr: 1e30").replace("display: 1 ", "")
    solver.write_text(text.replace("test_interval: 4", "").replace("test_iter: 2", "").replace("snapshot: 4", ""))
    with pytest.raises(CaffePortError, match=r"at iteration (\d+); it began in") as early:
        train(solver, tmp_path / "each")
    iteration = str(early.value).split("at iteration ")[1].split(";")[0]
    with pytest.raises(CaffePortError, match=f"at iteration {iteration}; it was read after iteration 8, too late"):
        train(solver, tmp_path / "late", TrainOptions(read_loss_every=9))


@pytest.mark.parametrize(
    ("options", "message"), [({"cuda_graph": True}, "needs a GPU"), ({"amp": "fp8"}, "bf16 or tf32")]
)
def test_what_a_cpu_cannot(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CaffePortError, match=message):
        train(project(tmp_path), tmp_path / "run", TrainOptions(**options))


@pytest.mark.parametrize("bf16", [True, False])
def test_fast_on_a_cpu_is_channels_last_and_bf16_where_it_pays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    monkeypatch.setattr(devices, "has_bf16", lambda device: bf16)
    solver, told = project(tmp_path), []
    net = tmp_path / "net.prototxt"  # in another memory format other units would be dropped
    net.write_text("\n".join(line for line in net.read_text().splitlines() if "Dropout" not in line))
    exact, quick = (
        train(solver, tmp_path / str(flag), TrainOptions(fast=flag, max_iter=4), told.append) for flag in (False, True)
    )
    options = json.loads((tmp_path / "True" / "config.json").read_text())["options"]
    assert options["amp"] == ("bf16" if bf16 else None)
    assert (options["channels_last"], options["compile"], options["cuda_graph"]) == (True, False, False)
    assert [devices.NO_BF16 in event.get("text", "") for event in told].count(True) == (not bf16)
    assert quick.outputs["loss"] == pytest.approx(exact.outputs["loss"], rel=0.05 if bf16 else 1e-4)
    assert not bf16 or quick.outputs["loss"] != exact.outputs["loss"]
    right = 12 * quick.outputs["accuracy"]  # of two batches of six
    assert right == pytest.approx(round(right), abs=1e-5)


@pytest.mark.parametrize(
    ("told", "has"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        (None, False),
    ],
)
def test_bf16_is_asked_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, bool] | None, has: bool
) -> None:
    if told is None:  # as in torch 2.6
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert devices.has_bf16(torch.device("cpu")) == has


def test_the_end_of_the_time_is_told_apart_from_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    for sent, heard in ((1.0, "max_seconds"), (float(1 << 20), "SIGTERM"), (1.0 + (1 << 20), "SIGTERM")):
        monkeypatch.setattr(processes.dist, "all_reduce", lambda value, sent=sent: value.add_(sent))
        stop: list[str] = []
        processes.share_stop(stop, torch.device("cpu"))
        assert stop == [heard]
    monkeypatch.setattr(processes.dist, "all_reduce", lambda value: value.mul_(4))
    assert processes.means([torch.tensor(1.0), torch.tensor(2.5)]) == [2.0, 5.0]


# -- the same numbers in fewer passes ----------------------------------------------------------------------------------

NET = """name: "n" input: "x" input_shape { dim: 4 dim: 3 dim: 6 dim: 5 }
layer { name: "bn" type: "BatchNorm" bottom: "x" top: "y" batch_norm_param { moving_average_fraction: 0.9 } }
layer { name: "scale" type: "Scale" bottom: "y" top: "z" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "z" top: "r" }
layer { name: "drop" type: "Dropout" bottom: "r" top: "d" dropout_param { dropout_ratio: 0.25 } }
"""


def small(tmp_path: Path, text: str) -> Any:
    (tmp_path / "n.prototxt").write_text(text)
    return api.load(tmp_path / "n.prototxt")


def test_batch_norm_and_scale_together(tmp_path: Path) -> None:
    nets = [small(tmp_path, "\n".join(NET.splitlines()[:3])) for _ in range(2)]
    assert fused_layers.fuse(nets[1]) == 1
    x = torch.randn(4, 3, 6, 5)
    for net in nets:
        with torch.no_grad():
            net.scale.weight.copy_(torch.tensor([0.5, -2.0, 3.0]))
            net.scale.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
        net.train()(x).square().sum().backward()
    plain, both = nets
    for name in ("weight", "bias"):
        torch.testing.assert_close(
            getattr(plain.scale, name).grad, getattr(both.scale, name).grad, rtol=1e-4, atol=1e-4
        )
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(both.state_dict()[key], value)
    torch.testing.assert_close(plain.eval()(x), both.eval()(x))


def test_relu_and_dropout_together(tmp_path: Path) -> None:
    net = small(tmp_path, NET)
    assert fused_layers.fuse(net) == 2
    x = torch.randn(4, 3, 60, 50, requires_grad=True)
    net.eval()
    torch.testing.assert_close(net(x), net.bn(x).relu())
    for memory in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(40, 3, 60, 50).contiguous(memory_format=memory).requires_grad_()
        y = fused_layers.ReluDropout.apply(x, 0.25)
        kept = (y > 0)[x > 0].double().mean()
        assert float(kept) == pytest.approx(0.75, abs=0.01)
        assert not (y > 0)[x <= 0].any()
        torch.testing.assert_close(y[y > 0], x[y > 0] / 0.75)
        y.sum().backward()
        torch.testing.assert_close(x.grad, (y > 0) / 0.75)


def test_what_is_fused_is_in_the_plan_of_train_alone(tmp_path: Path) -> None:
    net = small(tmp_path, NET)
    steps, test = net.plans[True].steps, net.plans[False]
    for _ in range(2):  # a second time does nothing more
        fused_layers.fuse(net)
        assert [step.attribute for step in net.plans[True].fused] == ["bn", "relu"]
        assert net.plans[True].steps == steps
        assert net.plans[False] == test
    assert not any({"forward", "normalize"} & vars(module).keys() for module in net.modules())


def test_hooks_and_modules_of_ones_own_end_the_fusion(tmp_path: Path) -> None:
    net = small(tmp_path, NET)
    fused_layers.fuse(net)
    net.train()
    with torch.no_grad():
        net.scale.weight.fill_(3.0)
    seen: dict[str, Any] = {}
    for name in ("bn", "scale", "relu", "drop"):
        getattr(net, name).register_forward_hook(lambda m, i, o, name=name: seen.update({name: o}))
    x = torch.randn(4, 3, 6, 5)
    net(x)
    assert list(seen) == ["bn", "scale", "relu", "drop"]
    torch.testing.assert_close(seen["scale"], 3 * seen["bn"])
    torch.testing.assert_close(seen["relu"], seen["scale"].relu())
    net = small(tmp_path, NET)
    fused_layers.fuse(net)
    net.scale, net.drop = torch.nn.Tanh(), torch.nn.Identity()
    torch.testing.assert_close(net.train()(x), net.bn(x).tanh().relu())


@pytest.mark.parametrize("training", [False, True])
def test_what_is_fused_compiles(tmp_path: Path, training: bool) -> None:
    plain, fused = (small(tmp_path, NET.replace("0.25", "0")).train(training) for _ in range(2))
    fused.load_state_dict(plain.state_dict())
    assert fused_layers.fuse(fused, relu_dropout=False) == 1
    x = torch.randn(4, 3, 6, 5)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), plain(x))
    torch.testing.assert_close(fused.bn.mean, plain.bn.mean)


def test_what_others_read_too_is_not_fused(tmp_path: Path) -> None:
    read_twice = NET.replace('bottom: "y" top: "z"', 'bottom: "y" top: "z"') + (
        'layer { name: "sum" type: "Eltwise" bottom: "y" bottom: "d" top: "s" }\n'
        'layer { name: "also" type: "Eltwise" bottom: "r" bottom: "s" top: "t" }'
    )
    assert fused_layers.fuse(small(tmp_path, read_twice)) == 0
    assert fused_layers.fuse(small(tmp_path, NET), relu_dropout=False) == 1


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_rates_on_the_device_make_the_same_updates(name: str) -> None:
    momentum = {} if name in ("AdaGrad", "RMSProp") else {"momentum": 0.9}
    start = [torch.randn(3, 4), torch.randn(5)]
    ends = []
    for on_device in (False, True):
        params = [p.clone().requires_grad_() for p in start]
        groups = [{"params": params[:1]}, {"params": params[1:], "lr_mult": 2.0}]
        optimizer = OPTIMIZERS[name](groups, 0.1, weight_decay=0.01, clip_gradients=2.0, **momentum)
        for it in range(4):
            for group in optimizer.param_groups:
                group["lr"], group["iter"] = 0.1 / (it + 1), it
            if on_device:
                optimizer.keep_rates_on_device()
            for k, p in enumerate(params):
                p.grad = torch.cos(p.detach() * (k + it + 1))
            optimizer.step()
        ends.append(params)
    for plain, other, before in zip(*ends, start, strict=True):
        torch.testing.assert_close(plain, other, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(plain, before)


def test_the_graphed_update_warms_up_captures_and_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's part is played by stand-ins: what a capture records, a replay runs again on the tensors of then."""
    recorded: list[Any] = []

    class Stream:
        def wait_stream(self, other: Any) -> None: ...

    class Graph:
        def replay(self) -> None:
            recorded[0]()

    class Nothing:
        def __init__(self, *args: Any) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *args: object) -> None: ...

    stand_ins = {"Stream": Stream, "current_stream": Stream, "CUDAGraph": Graph, "stream": Nothing, "graph": Nothing}
    for name, value in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    weight = torch.zeros(1, requires_grad=True)
    seen: list[float] = []
    result = torch.zeros(())

    def gradients(batches: list[list[torch.Tensor]]) -> torch.Tensor:
        seen.append(float(batches[0][0].sum()))
        result.copy_(batches[0][0].sum())
        return result

    optimizer = types.SimpleNamespace(
        keep_rates_on_device=lambda: None, zero_grad=lambda set_to_none: None, step=lambda: weight.data.add_(1)
    )
    update = cuda_graph.GraphedUpdate(optimizer, gradients)
    recorded.append(lambda: (gradients(update.inputs), optimizer.step()))
    losses = [float(update([[torch.full((2, 3), float(k))]])) for k in range(6)]
    assert losses == [0, 6, 12, 18, 24, 30]
    assert (update.calls, len(update.inputs)) == (6, 1)


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [4, 7, 25])
def test_a_feed_on_the_device_takes_the_records_that_positions_names(shuffle: bool, batch_size: int) -> None:
    images = RNG.integers(0, 256, (10, 3, 6, 5), dtype=np.uint8)
    pictures = datasets.from_arrays(images, np.arange(10), "made up")
    prepare = Preprocessor(Preprocessing(), "RGB")
    feed = datasets.ImageFeed(pictures, prepare, batch_size, train=True, shuffle=shuffle, seed=3)
    for number in (0, 1, 5, 2):
        want = positions(number, batch_size, 10, 3 if shuffle else None)
        assert feed.batch(number)[1].tolist() == want.tolist()


def colours(count: int, classes: int = 3) -> datasets.ImageSet:
    """Pictures whose class is their brightest channel."""
    labels = np.arange(count) % classes
    images = RNG.integers(0, 160, (count, classes, 10, 9), dtype=np.uint8)
    images[np.arange(count), labels] += 60
    return datasets.from_arrays(images, labels, "colours")


def test_an_epoch_holds_every_picture_moved_a_little() -> None:
    pictures = datasets.from_arrays(RNG.integers(1, 256, (12, 3, 7, 6), dtype=np.uint8), np.arange(12), "made up")
    one, zero = torch.ones(3), torch.zeros(3)
    epochs = Epochs(pictures, zero, one, 5, Augmentation(shift=2, cutout=0), seed=4)
    assert len(epochs) == 2
    wide = torch.nn.functional.pad(pictures.images.float(), (2,) * 4, mode="reflect")
    mirrored: dict[int, list[bool]] = {}
    for number in range(4):
        batches = list(epochs.epoch(number))
        again = list(epochs.epoch(number))
        labels = torch.cat([labels for _, labels in batches]).tolist()
        assert len(set(labels)) == 10
        for (images, found), (same, _) in zip(batches, again, strict=True):
            assert torch.equal(images, same)
            assert images.shape == (5, 3, 7, 6)
            assert images.is_contiguous(memory_format=torch.channels_last)
            for image, label in zip(images, found.tolist(), strict=True):
                windows = [wide[label, :, y : y + 7, x : x + 6] for y in range(5) for x in range(5)]
                plain = any(torch.equal(image, w) for w in windows)
                assert plain != any(torch.equal(image, w.flip(2)) for w in windows)
                mirrored.setdefault(label, []).append((not plain) ^ bool(number % 2))
    assert all(len(set(turns)) == 1 for turns in mirrored.values())  # every other epoch
    assert {turns[0] for turns in mirrored.values()} == {True, False}


def test_cutout_hides_a_square_behind_the_mean() -> None:
    pictures = datasets.from_arrays(RNG.integers(100, 256, (30, 3, 20, 16), dtype=np.uint8), np.zeros(30), "made up")
    epochs = Epochs(pictures, torch.tensor([1.0, 2.0, 3.0]), torch.full((3,), 2.0), 30, Augmentation(2, 5), seed=1)
    ((images, _),) = epochs.epoch(0)
    hidden = (images == 0).all(1)
    assert (hidden == (images == 0).any(1)).all()
    assert int(hidden.flatten(1).sum(1).min()) >= 9
    assert int(hidden.flatten(1).sum(1).max()) == 25


# -- the recipe -------------------------------------------------------------------------------------------------------

RECIPE_NET = """name: "tiny" input: "data" input_shape { dim: 2 dim: 3 dim: 10 dim: 9 }
layer { name: "conv" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 8 kernel_size: 3 } }
layer { name: "bn" type: "BatchNorm" bottom: "c" top: "c" batch_norm_param { moving_average_fraction: 0.9 } }
layer { name: "scale" type: "Scale" bottom: "c" top: "c" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "c" top: "c" }
layer { name: "drop" type: "Dropout" bottom: "c" top: "c" }
layer { name: "pool" type: "Pooling" bottom: "c" top: "p" pooling_param { pool: AVE global_pooling: true } }
layer { name: "ip" type: "InnerProduct" bottom: "p" top: "ip" inner_product_param { num_output: 3 } }
"""


def recipe_options(folder: Path, tests: int = 90, **more: Any) -> fast_recipe.FastOptions:
    train_set, test_set = colours(240), colours(tests)
    np.savez(
        folder / "set.npz",
        x_train=train_set.images.numpy(),
        y_train=train_set.labels.numpy(),
        x_test=test_set.images.numpy(),
        y_test=test_set.labels.numpy(),
    )
    (folder / "net.prototxt").write_text(RECIPE_NET)
    wanted: dict[str, Any] = {"net": str(folder / "net.prototxt"), "epochs": 6, "batch_size": 20, "device": "cpu"}
    return fast_recipe.FastOptions(str(folder / "set.npz"), **wanted | more)


def test_the_recipe_learns_and_its_result_is_a_caffemodel(tmp_path: Path) -> None:
    from caffe_port.evaluation.evaluate import evaluate_files

    options = recipe_options(tmp_path, bf16=False)
    events: list[dict[str, Any]] = []
    results = fast_recipe.train(tmp_path / "run", options, events.append, seeds=2)
    assert [r["seed"] for r in results] == [0, 1]
    assert min(r["accuracy"] for r in results) > 70  # chance is 33.3
    shown = [e["kind"] for e in events if e["kind"] not in ("progress", "testing")]
    assert shown == (["epoch"] * 6 + ["end"]) * 2
    assert "over 2 seeds" in fast_recipe.summary(results)
    written = json.loads((tmp_path / "run" / "seed-1" / "run.json").read_text())
    assert written["epochs_done"] == 6
    weights = (tmp_path / "run" / "seed-1" / "last.caffemodel").read_bytes()
    assert written["sha256"]["last.caffemodel"] == hashlib.sha256(weights).hexdigest()
    assert {"curves.png", "curves.svg"} <= set(os.listdir(tmp_path / "run" / "seed-1"))
    assert written["train_seconds"] == pytest.approx(sum(h["seconds"] for h in written["history"]), abs=0.05)
    found = evaluate_files(tmp_path / "run" / "seed-1" / "last.caffemodel", data=options.data)
    assert found.result.accuracy == pytest.approx(results[1]["accuracy"])
    assert found.origin.startswith("the run in")


def test_the_recipe_in_pieces_is_one_run_to_the_bit(tmp_path: Path) -> None:
    """Pieces of one update, of half an epoch, of more than one; with weights, averages and losses as of one run."""
    options = recipe_options(tmp_path, epochs=3)  # of 12 updates each
    (whole,) = fast_recipe.train(tmp_path / "whole", options)
    for_one_update = replace(options, max_seconds=0.0, resume=True)
    stopped = [fast_recipe.train(tmp_path / "pieces", for_one_update)[0] for _ in range(2)]
    for updates in (5, 13, 100):  # then by a signal
        wanted = stopped[-1]["updates_done"] + updates

        def hear(event: dict[str, Any], wanted: int = wanted) -> None:
            if event["kind"] == "progress" and event["update"] == wanted:
                os.kill(os.getpid(), signal.SIGTERM)

        stopped += fast_recipe.train(tmp_path / "pieces", replace(options, resume=True), hear)
    assert [r["stopped"] for r in stopped] == ["max_seconds", "max_seconds", "SIGTERM", "SIGTERM", ""]
    assert [(r["epochs_done"], r["updates_done"]) for r in stopped] == [(0, 1), (0, 2), (0, 7), (1, 20), (3, 36)]
    assert [r["accuracy"] for r in stopped[:-1]] == [None] * 4
    assert stopped[-1]["accuracy"] == whole["accuracy"]
    assert_equal(blobs(tmp_path / "whole"), blobs(tmp_path / "pieces"))
    losses = [[line["loss"] for line in one["history"]] for one in (whole, stopped[-1])]
    assert losses[0] == losses[1]
    lines = [
        [(line["kind"], line["iter"], line.get("loss")) for line in run_folder.read_metrics(tmp_path / name)]
        for name in ("whole", "pieces")
    ]
    assert lines[0] == lines[1]
    assert [at for _, at, _ in lines[0]] == [12, 24, 36, 36]
    options = replace(options, resume=True)
    assert fast_recipe.train(tmp_path / "pieces", options)[0]["epochs_done"] == 3  # nothing is left to do
    with pytest.raises(CaffePortError, match="already contains a run"):
        fast_recipe.train(tmp_path / "pieces", replace(options, resume=False))
    with pytest.raises(CaffePortError, match="contains a run with another recipe or seed"):
        fast_recipe.train(tmp_path / "pieces", replace(options, seed=9))


def test_a_run_does_not_go_on_with_another_data_set(tmp_path: Path) -> None:
    options = recipe_options(tmp_path, epochs=1, max_seconds=0.0, resume=True)
    fast_recipe.train(tmp_path / "run", options)
    with np.load(options.data) as file:
        halved = {name: array[::2] if "train" in name else array for name, array in file.items()}
    np.savez(tmp_path / "half.npz", **halved)
    with pytest.raises(CaffePortError, match=r"a run of 12 updates per epoch; with this data set there are 6\b"):
        fast_recipe.train(tmp_path / "run", replace(options, data=str(tmp_path / "half.npz")))


def test_a_signal_during_the_test_leaves_only_the_test(tmp_path: Path) -> None:
    options = recipe_options(tmp_path, epochs=1, tests=1200)
    (whole,) = fast_recipe.train(tmp_path / "whole", options)
    seen: list[int] = []

    def hear(event: dict[str, Any]) -> None:
        if event["kind"] == "testing":
            seen.append(event["done"])
            os.kill(os.getpid(), signal.SIGINT)

    (piece,) = fast_recipe.train(tmp_path / "piece", options, hear)
    assert (piece["stopped"], piece["accuracy"], seen) == ("SIGINT", None, [500])
    assert fast_recipe.summary([piece]) == ""
    (again,) = fast_recipe.train(tmp_path / "piece", replace(options, resume=True))
    assert again["accuracy"] == whole["accuracy"]
    assert_equal(blobs(tmp_path / "whole"), blobs(tmp_path / "piece"))


def test_a_killed_run_goes_on_from_its_last_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is made every ten minutes, in mid-epoch: here after every update."""
    monkeypatch.setattr(fast_recipe, "SAVE_EVERY", 0.0)
    options = recipe_options(tmp_path, epochs=2)
    fast_recipe.train(tmp_path / "whole", options)

    class Killed(BaseException):
        pass

    def hear(event: dict[str, Any]) -> None:
        if event["kind"] == "progress" and event["update"] == 17:
            raise Killed

    with pytest.raises(Killed):
        fast_recipe.train(tmp_path / "run", options, hear)
    notes: list[str] = []
    (run,) = fast_recipe.train(
        tmp_path / "run", replace(options, resume=True), lambda e: notes.append(e.get("text", ""))
    )
    assert "resumed after 1 epoch and 4 of 12 updates" in notes
    assert run["updates_done"] == 24
    assert_equal(blobs(tmp_path / "whole"), blobs(tmp_path / "run"))


def test_a_damaged_save_is_refused(tmp_path: Path) -> None:
    options = recipe_options(tmp_path, epochs=2)
    fast_recipe.train(tmp_path / "run", replace(options, max_seconds=0.0))
    (tmp_path / "run" / "fast.safetensors").write_bytes(b"nothing")
    with pytest.raises(CaffePortError, match="cannot be resumed from"):
        fast_recipe.train(tmp_path / "run", replace(options, resume=True))
    assert (tmp_path / "run" / "config.json").exists()


def test_an_epoch_can_begin_in_its_middle() -> None:
    epochs = Epochs(colours(50), torch.zeros(3), torch.ones(3), 8, Augmentation(2, 3), seed=4)
    whole, rest = list(epochs.epoch(1)), list(epochs.epoch(1, first=4))
    assert len(rest) == 2
    for (images, labels), (others, theirs) in zip(whole[4:], rest, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, theirs)


def test_the_rate_rises_and_falls() -> None:
    recipe = fast_recipe.Recipe(epochs=10, peak_rate=0.4, rise=0.25)
    rates = [recipe.rate(k, 100) for k in range(100)]
    assert max(rates) == rates[24] == pytest.approx(0.4)
    assert rates[:25] == sorted(rates[:25])
    assert rates[24:] == sorted(rates[24:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert all(map(math.isfinite, (fast_recipe.Recipe().rate(0, 1), fast_recipe.Recipe().rate(0, 2))))


def test_images_grow_to_their_full_size() -> None:
    recipe = fast_recipe.Recipe(epochs=10, scale=0.5, grown=0.8)
    scales = [recipe.scale_in(k) for k in range(10)]
    assert scales[0] == 0.5
    assert scales == sorted(scales)
    assert scales[4] == pytest.approx(0.75)
    assert scales[8:] == [1.0, 1.0]
    assert [fast_recipe.Recipe().scale_in(k) for k in (0, 50)] == [1.0, 1.0]
    epochs = Epochs(colours(50), torch.zeros(3), torch.ones(3), 8, Augmentation(0, 0, flip=False), seed=4)
    (whole, _), *_ = epochs.epoch(1)
    (half, _), *_ = epochs.epoch(1, scale=0.5)
    assert half.shape == (8, 3, 5, 4)  # of 10 x 9; 4.5 is rounded to even
    assert half.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(half.mean((2, 3)), whole.mean((2, 3)), atol=12)


def test_the_average_is_a_fraction_of_the_run() -> None:
    """Over a run of any length, what was 0 in the first half and is 1 in the second ends up at 1, nearly."""
    recipe = fast_recipe.Recipe(average=0.05)
    for updates in (40, 400, 40_000):
        average = 0.0
        for k in range(updates):
            average += recipe.share(k, updates) * (float(k >= updates // 2) - average)
        assert 0.99 < average <= 1
    assert recipe.share(0, 1) == 1


@pytest.mark.parametrize(
    ("shape", "name", "flip", "wanted"),
    [
        ((3, 32, 32), "cifar10 train", None, Augmentation(4, 0, flip=True)),
        ((3, 32, 32), "svhn train", None, Augmentation(4, 0, flip=False)),
        ((3, 32, 32), "set.npz", False, Augmentation(4, 0, flip=False)),
        ((1, 28, 28), "mnist train", None, Augmentation(2, 0, flip=False)),
        ((1, 28, 28), "set.npz", True, Augmentation(2, 0, flip=True)),
    ],
)
def test_digits_are_not_flipped(shape: tuple[int, ...], name: str, flip: bool | None, wanted: Augmentation) -> None:
    data = datasets.ImageSet(name, torch.zeros(4, *shape, dtype=torch.uint8), torch.arange(4))
    net = torch.nn.Conv2d(shape[0], 5, 3)
    recipe = fast_recipe._recipe(net, 4, data, fast_recipe.FastOptions("x", flip=flip))
    assert recipe.augmentation == wanted
    assert (recipe.batch_size, recipe.scale < 1) == (128, True)


def test_larger_nets_short_runs_and_nets_of_one_size() -> None:
    data = datasets.ImageSet("x", torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4))
    large, fixed = torch.nn.Conv2d(3, 40_000, 3), torch.nn.Linear(32, 5)
    for epochs, wanted in ((None, (100, 512, 1.0, 8)), (70, (70, 512, 1.0, 8)), (7, (7, 128, 0.625, 0))):
        recipe = fast_recipe._recipe(large, 10, data, fast_recipe.FastOptions("x", epochs=epochs))
        assert (recipe.epochs, recipe.batch_size, recipe.scale, recipe.augmentation.cutout) == wanted
    assert fast_recipe._recipe(fixed, 10, data, fast_recipe.FastOptions("x", batch_size=9)).scale == 1.0


def test_the_recipe_drops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nets = []
    compiled = fast_recipe._compiled
    monkeypatch.setattr(fast_recipe, "_compiled", lambda net, *args: nets.append(net) or compiled(net, *args))
    options = recipe_options(tmp_path, epochs=1, bf16=False)
    fast_recipe.train(tmp_path / "run", options)
    (net,) = nets
    assert "Dropout" in [step.layer.type for step in net.plan.steps]
    x = torch.ones(20, *net.plan.shapes[net.plan.spec.inputs[0][1]][1:])
    assert torch.equal(net.train()(x), net(x))
