"""caffe.SGDSolver and the others follow Caffe's own training runs, through pycaffe's API."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN

import caffe_port.pycaffe as caffe
from caffe_port.errors import CaffePortError
from caffe_port.pycaffe.solvers import Solver

FOLDER = GOLDEN / "solvers"
RUNS = sorted(p.name.removesuffix(".solver.prototxt") for p in FOLDER.glob("*.solver.prototxt"))


def start(name: str, folder: Path, weights: str = "init.caffemodel") -> tuple[Solver, dict[str, np.ndarray]]:
    """A solver of a golden run, whose net sees the run's batches."""
    text = (FOLDER / f"{name}.solver.prototxt").read_text()
    (folder / "net.prototxt").write_text((FOLDER / "net.prototxt").read_text())
    (folder / "solver.prototxt").write_text(text)
    solver = caffe.get_solver(str(folder / "solver.prototxt"))
    solver.net.copy_from(str(FOLDER / weights))
    with np.load(FOLDER / f"{name}.npz") as file:
        run = dict(file)

    def feed() -> None:
        solver.net.blobs["x"].data[...] = run["x"][solver.iter % 4]
        solver.net.blobs["l"].data[...] = run["l"][solver.iter % 4]

    solver.add_callback(feed, lambda: None)
    return solver, run


def check(solver: Solver, run: dict[str, np.ndarray]) -> None:
    for key in (key for key in run if key.startswith("param:")):
        _, layer, j = key.split(":")
        actual, expected = solver.net.params[layer][int(j)].data, run[key][solver.iter].astype(np.float64)
        assert (np.abs(actual - expected) - 1e-6 - 1e-5 * np.abs(expected)).max() <= 0, (key, solver.iter)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GLOG_minloglevel", "2")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", RUNS)
def test_caffes_run_is_followed(name: str, tmp_path: Path) -> None:
    solver, run = start(name, tmp_path)
    assert solver.iter == 0
    for it in range(16):
        before = solver.net.params[next(iter(solver.net.params))][0].data.copy()
        solver.step(1)
        assert solver.iter == it + 1
        assert solver._smoothed == pytest.approx(run["loss"][it], rel=1e-5)
        check(solver, run)
    first = solver.net.params[next(iter(solver.net.params))][0]
    assert np.allclose(first.diff, before - first.data, atol=1e-7)  # Caffe leaves the update in the diff


@pytest.mark.parametrize("name", ["adam", "nesterov_multistep_l2"])
def test_a_snapshot_of_caffes_is_continued_and_ours_too(name: str, tmp_path: Path) -> None:
    solver, run = start(name, tmp_path)
    solver.restore(str(FOLDER / f"{name}_iter_8.solverstate"))
    assert solver.iter == 8
    check(solver, run)
    solver.step(3)
    solver.snapshot()
    prefix = solver.spec.snapshot_prefix
    again, _ = start(name, tmp_path)
    again.restore(f"{prefix}_iter_11.solverstate")
    for one in (solver, again):
        one.step(5)
        check(one, run)
    other, _ = start("sgd" if name == "adam" else "adadelta", tmp_path)
    with pytest.raises(CaffePortError, match="arrays, but"):
        other.restore(str(FOLDER / f"{name}_iter_8.solverstate"))


NET = """
layer { name: "data" type: "DummyData" top: "data" top: "label"
  dummy_data_param { shape { dim: 4 dim: 3 } shape { dim: 4 }
    data_filler { type: "gaussian" } data_filler { value: 1 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" param { lr_mult: 1 } param { lr_mult: 0 }
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
SOLVER = """net: "n.prototxt" base_lr: 0.1 lr_policy: "step" gamma: 0.5 stepsize: 4 momentum: 0.9 max_iter: 10
test_iter: 2 test_interval: 5 display: 5 snapshot: 5 snapshot_prefix: "s" snapshot_after_train: false random_seed: 1 """


def test_solve_tests_displays_and_snapshots(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOG_minloglevel", "0")
    Path("n.prototxt").write_text(NET)
    Path("s.prototxt").write_text(SOLVER)
    solver = caffe.SGDSolver("s.prototxt")
    events: list[str] = []
    solver.add_callback(lambda: events.append("start"), lambda: events.append("ready"))
    assert solver.lr == pytest.approx(0.1)
    solver.solve()
    assert events == ["start", "ready"] * 10
    assert solver.iter == 10
    assert solver.lr == pytest.approx(0.025)
    assert sorted(p.name for p in tmp_path.glob("s_iter_*")) == [
        *("s_iter_10.caffemodel", "s_iter_10.solverstate", "s_iter_5.caffemodel", "s_iter_5.solverstate")
    ]
    assert not solver.net.params["ip"][1].data.any()  # lr_mult 0
    from caffe_port.training import caffe_log

    printed = capfd.readouterr().err
    Path("log.txt").write_text(printed)
    log = caffe_log.read("log.txt")  # which reads what Caffe itself prints
    assert [it for it, _ in log.accuracies()] == [0, 5, 10]
    assert "Iteration 5, lr = 0.05" in printed
    assert "    Train net output #0: loss = " in printed
    assert "(* 1 = " in printed
    assert "Optimization Done." in printed


def test_the_type_is_that_of_the_class_or_of_the_file() -> None:
    Path("n.prototxt").write_text(NET)
    Path("s.prototxt").write_text(SOLVER + 'type: "Adam"')
    assert isinstance(caffe.get_solver("s.prototxt"), caffe.AdamSolver)
    solver = caffe.NesterovSolver("s.prototxt")
    solver.step(1)
    assert type(solver.optimizer()).__name__ == "Nesterov"
    assert isinstance(solver, caffe.SGDSolver)
    with pytest.raises(RuntimeError, match="Could not open file nothing"):
        caffe.SGDSolver("nothing")


def test_rates_and_weights_can_be_changed_by_hand() -> None:
    Path("n.prototxt").write_text(NET)
    Path("s.prototxt").write_text(SOLVER.replace("momentum: 0.9", "").replace("snapshot: 5", ""))
    solver = caffe.SGDSolver("s.prototxt")
    weight, diff = solver.net.params["ip"][0].data, solver.net.params["ip"][0].diff
    weight[...], diff[...] = 0, 1
    solver.param.base_lr = 0.25
    solver.apply_update()
    assert np.allclose(weight, -0.25)
    assert np.allclose(diff, 0.25)
    assert solver.iter == 1
    assert (solver.param.max_iter, solver.param.display) == (10, 5)
    net = caffe.Net("n.prototxt", caffe.TEST)
    solver.share_weights(net)
    weight[0, 0] = 9
    assert net.params["ip"][0].data[0, 0] == 9
    solver.step(1)
    assert np.array_equal(net.params["ip"][0].data, weight)
    assert len(solver.test_nets) == 1


def test_snapshots_that_cannot_be_written_stop_it_before_the_first_iteration(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text((FOLDER / "net.prototxt").read_text())
    text = (FOLDER / "sgd.solver.prototxt").read_text()
    Path("solver.prototxt").write_text(text.replace('snapshot_prefix: "', 'snapshot_prefix: "models/'))
    with pytest.raises(CaffePortError, match="cannot write snapshots to 'models/sgd': models is not a folder"):
        caffe.get_solver("solver.prototxt")
    Path("models").mkdir()
    caffe.get_solver("solver.prototxt")


def test_hdf5_snapshots() -> None:
    pytest.importorskip("h5py")
    Path("n.prototxt").write_text(NET)
    Path("s.prototxt").write_text(SOLVER + "snapshot_format: HDF5")
    solver = caffe.SGDSolver("s.prototxt")
    solver.step(5)
    other = caffe.SGDSolver("s.prototxt")
    other.restore("s_iter_5.solverstate.h5")
    assert other.iter == 5
    assert np.array_equal(other.net.params["ip"][0].data, solver.net.params["ip"][0].data)
    histories = [s.optimizer().history(s.net.params["ip"][0].memory.tensor)[0] for s in (solver, other)]
    assert np.array_equal(*[h.numpy() for h in histories])
