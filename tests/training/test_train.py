"""The training loop: Caffe's trajectory, resuming to the bit, signals, several processes, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from small_lmdb import datums, make_lmdb
from small_training import DATA, NORM, assert_equal, blobs, project

from caffe_port.errors import CaffePortError
from caffe_port.formats import solverstate
from caffe_port.training import run_folder, set_up
from caffe_port.training.train import TrainOptions, train

FOLDER = GOLDEN / "solvers"
RNG = np.random.default_rng(3)
# -- a whole run ----------------------------------------------------------------------------------------------------


def test_the_folder_of_a_run(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    result = train(project(tmp_path), tmp_path / "run", listen=events.append)
    assert result.iter == 12
    assert not result.stopped
    lines = run_folder.RunFolder(tmp_path / "run").metrics()
    assert [line["iter"] for line in lines if line["kind"] == "train"] == list(range(12))
    assert [line["lr"] for line in lines if line["kind"] == "train"][4:6] == [0.05, 0.025]
    assert [line["iter"] for line in lines if line["kind"] == "test"] == [0, 4, 8, 12]
    assert [event["iter"] for event in events if event["kind"] == "snapshot"] == [4, 8, 12]
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "best.caffemodel",
        "best.safetensors",
        "config.json",
        "curves.png",
        "curves.svg",
        "last.caffemodel",
        "last.safetensors",
        "metrics.jsonl",
        "run.json",
        "snapshots",
        ".lock",
    }
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["iter"] == 12
    assert facts["peak_memory_bytes"] > 1 << 20
    assert facts["best"] == result.best
    names = {"conv.weight", "conv.bias", "ip.weight", "ip.bias", "bn.mean", "bn.variance", "bn.scale_factor"}
    import safetensors.numpy

    kept = json.loads((tmp_path / "run" / "run.json").read_text())["sha256"]
    assert sorted(kept) == ["best.caffemodel", "best.safetensors", "last.caffemodel", "last.safetensors"]
    assert {len(checksum) for checksum in kept.values()} == {64}
    stored = safetensors.numpy.load_file(tmp_path / "run" / "last.safetensors")
    assert set(stored) == names
    last = blobs(tmp_path / "run")
    np.testing.assert_array_equal(stored["conv.weight"], last["conv"][0])
    state = solverstate.read(tmp_path / "run" / "snapshots" / "small_iter_12.solverstate")
    weights = tmp_path / "run" / "snapshots" / "small_iter_12.caffemodel"
    assert (state.iter, state.learned_net) == (12, str(weights)), "Caffe finds it from any folder"
    assert_equal(blobs(tmp_path / "run" / "snapshots", "small_iter_12.caffemodel"), last)


def test_tests_are_averaged_as_caffe_does(tmp_path: Path) -> None:
    result = train(project(tmp_path), tmp_path / "run")
    from caffe_port import api
    from caffe_port.data.records import from_layer

    ported = api.port(
        tmp_path / "net.prototxt",
        tmp_path / "run" / "last.caffemodel",
        keep_loss=True,
        input_shapes={"data": (6, 2, 7, 6), "label": (6,)},
    )
    feed = from_layer(ported.definition.spec("TEST").layers[0], "TEST")
    with torch.no_grad():
        outputs = [ported.net(*feed.batch(k)) for k in (6, 7)]  # three tests of two batches came before
    for name in ("accuracy", "loss"):
        assert result.outputs[name] == pytest.approx(sum(float(o[name]) for o in outputs) / 2, rel=1e-6)


# -- resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "more"),
    [
        ("SGD", "momentum: 0.9 iter_size: 2"),
        ("AdaDelta", "momentum: 0.9 delta: 1e-3"),
        ("Adam", ""),
        ("SGD", 'momentum: 0.9 larc: true larc_policy: "clip" larc_eta: 0.05 momentum_policy: "opt"'),
        ("SAG", 'momentum: 0.9 regularization_type: "WD"'),
    ],
)
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path, type_: str, more: str) -> None:
    solver = project(tmp_path, type_, more)
    train(solver, tmp_path / "whole")
    train(solver, tmp_path / "halves", TrainOptions(max_iter=8))
    again = train(solver, tmp_path / "halves", TrainOptions(resume=True))
    assert again.iter == 12
    assert_equal(blobs(tmp_path / "whole"), blobs(tmp_path / "halves"))

    def shown(run: str) -> list[dict[str, Any]]:
        lines = run_folder.RunFolder(tmp_path / run).metrics()
        return [
            {k: v for k, v in line.items() if k in ("kind", "iter", "loss", "lr", "outputs", "best")} for line in lines
        ]

    assert shown("whole") == shown("halves")


def test_a_killed_run_loses_one_interval_at_most(tmp_path: Path) -> None:
    solver = project(tmp_path)
    train(solver, tmp_path / "whole")
    code = "import sys; from caffe_port.training.train import train\n"
    code += (
        "def hear(e):\n    e['kind'] == 'train' and e['iter'] == 10 and (sys.stdout.write('go'), sys.stdout.flush(), "
    )
    code += "__import__('time').sleep(99))\n"
    code += f"train({str(solver)!r}, {str(tmp_path / 'killed')!r}, listen=hear)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(2) == b"go"
    process.kill()
    process.communicate()
    snapshot, refused = run_folder.RunFolder(tmp_path / "killed").latest()
    assert snapshot is not None
    assert (snapshot.iter, refused) == (8, [])
    train(solver, tmp_path / "killed", TrainOptions(resume=True))
    assert_equal(blobs(tmp_path / "whole"), blobs(tmp_path / "killed"))


@pytest.mark.parametrize("damage", ["weights", "state", "json", "missing"])
def test_a_corrupt_snapshot_is_refused_and_the_one_before_used(tmp_path: Path, damage: str) -> None:
    solver = project(tmp_path)
    train(solver, tmp_path / "run")
    folder = tmp_path / "run" / "snapshots"
    end = {"weights": "caffemodel", "state": "solverstate", "json": "json", "missing": "caffemodel"}[damage]
    path = folder / f"small_iter_12.{end}"
    if damage == "missing":
        path.unlink()
    elif damage == "json":
        path.write_text("{")
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    snapshot, refused = run_folder.RunFolder(tmp_path / "run").latest()
    assert snapshot is not None
    assert snapshot.iter == 8
    assert str(path) in refused[0]
    notes: list[str] = []
    before = blobs(tmp_path / "run")
    train(
        solver,
        tmp_path / "run",
        TrainOptions(resume=True),
        lambda e: notes.append(e["text"]) if e["kind"] == "note" else None,
    )
    assert any("snapshot rejected: " in text for text in notes)
    assert "resumed from small_iter_8.solverstate" in notes
    assert_equal(before, blobs(tmp_path / "run"))


def test_old_snapshots_are_dropped(tmp_path: Path) -> None:
    solver = project(tmp_path)
    solver.write_text(solver.read_text().replace("snapshot: 4", "snapshot: 2"))
    train(solver, tmp_path / "run", TrainOptions(keep=2))
    names = sorted(p.name for p in (tmp_path / "run" / "snapshots").iterdir())
    assert names == sorted(f"small_iter_{k}.{e}" for k in (10, 12) for e in ("caffemodel", "json", "solverstate"))


def test_a_run_of_caffes_is_resumed(tmp_path: Path) -> None:
    """The golden run's 8th iteration, on data fed as Caffe was fed: its 16th iteration is met."""
    import h5py

    with np.load(FOLDER / "sgd_iter_size.npz") as run:
        run = dict(run)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.repeat(run["x"], 3, axis=0).reshape(-1, *run["x"].shape[2:])
        file["l"] = np.repeat(run["l"], 3, axis=0).reshape(-1)
    (tmp_path / "list.txt").write_text("a.h5\n")
    lines = (FOLDER / "net.prototxt").read_text().splitlines()
    data = 'layer { name: "d" type: "HDF5Data" top: "x" top: "l" hdf5_data_param { source: "list.txt" batch_size: 8 } }'
    (tmp_path / "net.prototxt").write_text("\n".join([lines[0], data, *lines[3:]]))
    (tmp_path / "solver.prototxt").write_text((FOLDER / "sgd_iter_size.solver.prototxt").read_text())
    state = str(FOLDER / "sgd_iter_size_iter_8.solverstate")
    train(tmp_path / "solver.prototxt", tmp_path / "run", TrainOptions(resume=state))
    for name, arrays in blobs(tmp_path / "run").items():
        for j, array in enumerate(arrays):
            np.testing.assert_allclose(array, run[f"param:{name}:{j}"][16], rtol=1e-5, atol=1e-6)


def test_a_folder_in_use_is_not_overwritten(tmp_path: Path) -> None:
    solver = project(tmp_path)
    train(solver, tmp_path / "run", TrainOptions(max_iter=1))
    with pytest.raises(CaffePortError, match="already contains a run"):
        train(solver, tmp_path / "run")
    assert train(solver, tmp_path / "new", TrainOptions(max_iter=1, resume=True)).iter == 1


# -- signals and processes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_a_snapshot_and_leaves(tmp_path: Path, number: signal.Signals) -> None:
    solver = project(tmp_path)

    def hear(event: dict[str, Any]) -> None:
        if event["kind"] == "train" and event["iter"] == 5:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    result = train(solver, tmp_path / "run", listen=hear)
    assert signal.getsignal(number) is before
    assert (result.iter, result.stopped) == (6, number.name)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["stopped"] == number.name
    train(solver, tmp_path / "whole")
    train(solver, tmp_path / "run", TrainOptions(resume=True))
    assert_equal(blobs(tmp_path / "whole"), blobs(tmp_path / "run"))


def test_a_signal_during_a_test_ends_it(tmp_path: Path) -> None:
    solver = project(tmp_path)

    def hear(event: dict[str, Any]) -> None:
        if event["kind"] == "progress" and event["iter"] == 4:  # the test of iteration 4 comes next
            os.kill(os.getpid(), signal.SIGTERM)

    result = train(solver, tmp_path / "run", TrainOptions(max_iter=4), hear)
    assert result.stopped == "SIGTERM"
    tests = [line["iter"] for line in run_folder.RunFolder(tmp_path / "run").metrics() if line["kind"] == "test"]
    assert tests == [0]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_trained_weights_are_evaluated_as_they_were_trained(tmp_path: Path) -> None:
    from caffe_port.evaluation.evaluate import evaluate_files

    solver = project(tmp_path)
    solver.write_text(solver.read_text().replace("test_iter: 2", "test_iter: 3"))
    images = np.random.default_rng(9).integers(0, 256, (18, 7, 6), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(18) % 5)
    data = str(tmp_path / "set.npz")
    result = train(solver, tmp_path / "run", TrainOptions(data=data, entry="mnist-slim-310k", batch_size=6))
    for name in ("last.caffemodel", "snapshots/small_iter_12.caffemodel"):
        again = evaluate_files(tmp_path / "run" / name, data=data)
        assert again.origin == f"the run in {tmp_path / 'run'}"
        assert again.preprocessing.std == 78.5675
        assert again.result.accuracy == pytest.approx(100 * result.outputs["accuracy"])


@pytest.mark.parametrize("norm", ["", NORM], ids=["plain", "BatchNorm"])
def test_two_processes_follow_the_trajectory_of_one(tmp_path: Path, norm: str) -> None:
    data = DATA.replace("batch_size: 6", "batch_size: 8")
    solver = project(tmp_path, more="momentum: 0.9 iter_size: 2", norm=norm, data=data)
    net = (tmp_path / "net.prototxt").read_text().splitlines()
    (tmp_path / "net.prototxt").write_text("\n".join(line for line in net if "Dropout" not in line))
    one = train(solver, tmp_path / "one")
    code = "import torch; torch.set_num_threads(1)\nfrom caffe_port.training.train import train\n"
    code += f"train({str(solver)!r}, {str(tmp_path / 'two')!r})"
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                "RANK": str(k),
                "LOCAL_RANK": str(k),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
        )
        for k in range(2)
    ]
    for process in processes:
        _, error = process.communicate(timeout=240)
        assert process.returncode == 0, error.decode()
    together, alone = blobs(tmp_path / "two"), blobs(tmp_path / "one")
    for name, arrays in alone.items():
        for mine, theirs in zip(together[name], arrays, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5 if norm else 1e-6, err_msg=name)
    facts = json.loads((tmp_path / "two" / "run.json").read_text())
    assert facts["processes"] == 2
    assert facts["outputs"]["loss"] == pytest.approx(one.outputs["loss"], rel=1e-4)
    losses = [
        [line["loss"] for line in run_folder.RunFolder(tmp_path / run).metrics() if line["kind"] == "train"]
        for run in ("one", "two")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_a_database_is_trained_on_and_resumed(tmp_path: Path) -> None:
    """An LMDB, prefetched, with crops and mirroring: as a resumed run sees it, to the bit."""
    make_lmdb(tmp_path, datums())
    data = """layer { name: "data" type: "Data" top: "data" top: "label" transform_param { crop_size: 5 mirror: true }
      data_param { source: "db" batch_size: 3 backend: LMDB } }"""
    solver = project(tmp_path, data=data)
    net = tmp_path / "net.prototxt"
    net.write_text(net.read_text().replace("num_output: 5", "num_output: 6"))
    train(solver, tmp_path / "whole")
    train(solver, tmp_path / "halves", TrainOptions(max_iter=4))
    train(solver, tmp_path / "halves", TrainOptions(resume=True))
    assert_equal(blobs(tmp_path / "whole"), blobs(tmp_path / "halves"))
    net.write_text(net.read_text().replace("num_output: 6", "num_output: 5"))
    with pytest.raises(CaffePortError, match="record 4 has label 5; the net has 5 classes"):
        train(solver, tmp_path / "labels")


def test_pictures_of_a_set_are_trained_on(tmp_path: Path) -> None:
    solver = project(tmp_path)
    images = RNG.integers(0, 256, (10, 3, 7, 6), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(10) % 5)
    events: list[dict[str, Any]] = []
    options = TrainOptions(data=str(tmp_path / "set.npz"), epochs=1.5, batch_size=5, seed=7)
    result = train(solver, tmp_path / "run", options, events.append)
    assert result.iter == 3
    assert next(e for e in events if e["kind"] == "start")["batch_size"] == 5
    assert "preprocessing from transform_param of layer 'data': RGB, x" in next(
        e["text"] for e in events if e["kind"] == "note"
    )
    again = train(solver, tmp_path / "again", options)
    assert again.outputs == result.outputs
    other = train(solver, tmp_path / "other", TrainOptions(**{**options.__dict__, "seed": 8}))
    assert other.outputs != result.outputs


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@pytest.mark.parametrize(
    "options",
    [
        {"amp": "bf16"},
        {"channels_last": True},
        {"deterministic": True},
        pytest.param({"compile": True}, marks=[needs_compiler, pytest.mark.filterwarnings("ignore")]),
    ],
)
def test_options_that_change_how_it_is_computed(tmp_path: Path, options: dict[str, Any]) -> None:
    solver = project(tmp_path, norm=NORM)
    net = tmp_path / "net.prototxt"
    net.write_text("\n".join(line for line in net.read_text().splitlines() if "Dropout" not in line))
    plain = train(solver, tmp_path / "plain")
    try:
        other = train(solver, tmp_path / "other", TrainOptions(**options))
    finally:
        torch.use_deterministic_algorithms(False)
    assert other.outputs["loss"] == pytest.approx(plain.outputs["loss"], rel=0.1 if "amp" in options else 1e-3)


def test_a_cpu_trains_in_channels_last_memory(tmp_path: Path) -> None:
    """The default, for a net with convolutions; the option decides otherwise."""
    for channels_last, said in ((None, True), (False, False)):
        train(project(tmp_path), tmp_path / str(said), TrainOptions(max_iter=1, channels_last=channels_last))
        assert json.loads((tmp_path / str(said) / "config.json").read_text())["options"]["channels_last"] is said


def test_training_does_not_import_pytorchs_compiler(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom caffe_port.training.train import TrainOptions, train\n"
        f"train({str(project(tmp_path))!r}, {str(tmp_path / 'run')!r}, TrainOptions(max_iter=2))\n"
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_reference_log_is_compared(tmp_path: Path, shared: Path) -> None:
    events: list[dict[str, Any]] = []
    log = str(shared / "models/simplenet/logs/mnist_9972.log")
    train(project(tmp_path), tmp_path / "run", TrainOptions(max_iter=4, reference_log=log), events.append)
    tests = [e for e in events if e["kind"] == "test"]
    assert tests[0]["reference"] == pytest.approx(0.1114)
    assert tests[1]["difference"] == pytest.approx(tests[1]["outputs"]["accuracy"] - tests[1]["reference"])
    assert tests[1]["ahead"] == (tests[1]["difference"] > 0)


def test_interpolation() -> None:
    from caffe_port.training.train import _interpolated

    assert [_interpolated([(0, 0.0), (10, 1.0)], it) for it in (0, 5, 10, 11)] == [0, 0.5, 1, None]


def test_random_states_come_back() -> None:
    states = json.loads(json.dumps(run_folder.random_states()))
    first = torch.rand(3)
    run_folder.restore_random_states(states)
    assert torch.equal(torch.rand(3), first)


def test_metrics_survive_an_unfinished_line(tmp_path: Path) -> None:
    run = run_folder.RunFolder(tmp_path)
    run.log({"kind": "train", "iter": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    assert run.metrics() == [{"kind": "train", "iter": 1}]
    with pytest.raises(CaffePortError, match="cannot be created"):
        run_folder.RunFolder(tmp_path / "metrics.jsonl")
    assert set_up.TrainOptions().device == "cpu"
    assert time.time() > 0
