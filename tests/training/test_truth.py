"""A run says what its figures are of, its best weights were trained, and a run that failed to begin leaves nothing."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_training import blobs, project

from caffe_port import api
from caffe_port.errors import CaffePortError, DependencyError
from caffe_port.formats import caffemodel
from caffe_port.training import plots, run_folder
from caffe_port.training.train import TrainOptions, train


def facts(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def when_tested(run: Path) -> list[int]:
    return [line["iter"] for line in run_folder.read_metrics(run) if line["kind"] == "test"]


# -- figures and their iterations -------------------------------------------------------------------------------------


def test_the_end_is_tested_between_two_multiples_of_test_interval_too(tmp_path: Path) -> None:
    """As an uninterrupted run does; and what follows the test is as if it had not been made."""
    solver = project(tmp_path)
    result = train(solver, tmp_path / "run", TrainOptions(max_iter=6))
    assert when_tested(tmp_path / "run") == [0, 4, 6]
    assert result.outputs_iter == {"accuracy": 6, "loss": 6}
    assert facts(tmp_path / "run")["outputs_iter"] == result.outputs_iter
    assert facts(tmp_path / "run")["train"] == result.train
    assert result.train is not None
    assert result.train["iter"] == 5
    again = train(solver, tmp_path / "run", TrainOptions(resume=True))
    whole = train(solver, tmp_path / "whole")
    assert when_tested(tmp_path / "run") == when_tested(tmp_path / "whole") == [0, 4, 8, 12]
    assert again.outputs == whole.outputs


def test_a_piece_that_was_stopped_names_the_iteration_of_its_last_test(tmp_path: Path) -> None:
    solver = project(tmp_path)
    train(solver, tmp_path / "run", TrainOptions(max_iter=5))
    result = train(solver, tmp_path / "run", TrainOptions(resume=True, max_seconds=0))
    assert (result.iter, result.stopped) == (6, "max_seconds")
    assert facts(tmp_path / "run")["outputs_iter"] == {"accuracy": 4, "loss": 4}


# -- the best weights -------------------------------------------------------------------------------------------------


def test_an_untrained_net_is_not_the_best(tmp_path: Path) -> None:
    """A net that learns nothing: the best of the later tests is kept, and a note says that it is no better."""
    solver = project(tmp_path, norm="")
    solver.write_text(solver.read_text().replace("test_iter: 2", "test_iter: 10"))  # three times the whole set
    train(solver, tmp_path / "none", TrainOptions(max_iter=0))
    assert when_tested(tmp_path / "none") == [0]
    assert not (tmp_path / "none" / "best.caffemodel").exists()
    assert facts(tmp_path / "none")["best"] is None
    before = facts(tmp_path / "none")["untrained"]
    solver.write_text(solver.read_text().replace("base_lr: 0.05", "base_lr: 1e-9"))
    told: list[dict[str, Any]] = []
    result = train(solver, tmp_path / "run", TrainOptions(max_iter=2), told.append)
    assert result.best is not None
    assert result.best["iter"] == 2
    assert result.best["value"] == before["value"]
    notes = [event["text"] for event in told if event["kind"] == "note"]
    assert any("no test was better than that of the untrained net (accuracy = " in text for text in notes)


def test_given_weights_may_be_the_best_and_a_note_says_so(tmp_path: Path) -> None:
    solver = project(tmp_path)
    train(solver, tmp_path / "first")
    solver.write_text(solver.read_text().replace("base_lr: 0.05", "base_lr: 0"))
    told: list[dict[str, Any]] = []
    start = tmp_path / "first" / "last.caffemodel"
    result = train(solver, tmp_path / "run", TrainOptions(weights=str(start), max_iter=0), told.append)
    assert result.best is not None
    assert result.best["iter"] == 0
    assert any("has the weights that training started from" in event.get("text", "") for event in told)
    assert np.array_equal(blobs(tmp_path / "run", "best.caffemodel")["ip"][0], blobs(tmp_path / "first")["ip"][0])


# -- nothing is left --------------------------------------------------------------------------------------------------


def nan(folder: Path) -> str:
    net = api.port(folder / "net.prototxt", input_shapes={"data": (6, 2, 7, 6)}).net
    values = net.blobs()
    values["ip"][0][0, 0] = np.nan
    caffemodel.write(folder / "nan.caffemodel", api.Definition.read(folder / "net.prototxt").net, values)
    return str(folder / "nan.caffemodel")


@pytest.mark.parametrize("there", ["absent", "empty", "full"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"amp": "fp8"}, "amp 'fp8'"),
        ({"data": "absent.npz"}, "cannot be read"),
        ({"weights": "absent.caffemodel"}, "cannot be read"),
        ({"resume": "absent.solverstate"}, "cannot be read"),
        ({"weights": nan}, "the loss is nan at iteration 0"),
    ],
)
def test_a_run_that_does_not_begin_leaves_nothing(
    tmp_path: Path, wrong: dict[str, Any], message: str, there: str
) -> None:
    solver, out = project(tmp_path), tmp_path / "some" / "deep" / "run"
    if there != "absent":
        out.mkdir(parents=True)
    if there == "full":
        (out / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    options = {name: value(tmp_path) if callable(value) else value for name, value in wrong.items()}
    with pytest.raises(CaffePortError, match=message):
        train(solver, out, TrainOptions(**options))
    after = [path for path in sorted(tmp_path.rglob("*")) if path.name != "nan.caffemodel"]
    assert after == before


def test_a_run_that_fails_later_keeps_what_it_measured(tmp_path: Path) -> None:
    solver = project(tmp_path, norm="")
    solver.write_text(solver.read_text().replace("base_lr: 0.05", "base_lr: 1e30"))
    with pytest.raises(CaffePortError, match="the loss is nan at iteration"):
        train(solver, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").exists()


# -- TensorBoard ------------------------------------------------------------------------------------------------------


def test_tensorboard_has_the_figures_of_every_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float, int]] = []
    opened: list[tuple[str, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            opened.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, it: int) -> None:
            told.append((name, value, it))

        def flush(self) -> None: ...
        def close(self) -> None: ...

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    run = run_folder.RunFolder(tmp_path, tensorboard=True)
    run.log({"kind": "train", "iter": 3, "loss": 0.5, "lr": 0.1, "eta_s": 7})
    run.log({"kind": "test", "iter": 4, "outputs": {"accuracy": 0.25}})
    run.log({"kind": "test", "iter": 4, "outputs": {"accuracy": 0.5}, "net": 1})
    run.close()
    assert told == [
        ("train/loss", 0.5, 3),
        ("train/lr", 0.1, 3),
        ("test/accuracy", 0.25, 4),
        ("test #1/accuracy", 0.5, 4),
    ]
    assert opened == [(str(tmp_path / "tensorboard"), 3)]


def test_without_tensorboard_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(DependencyError, match=r"pip install 'caffe-port\[tensorboard\]'"):
        train(project(tmp_path), tmp_path / "run", TrainOptions(tensorboard=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_a_run_in_two_pieces(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    solver = project(tmp_path)
    train(solver, tmp_path / "run", TrainOptions(max_iter=6, tensorboard=True))
    train(solver, tmp_path / "run", TrainOptions(resume=True, tensorboard=True))
    found = events.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in found.Scalars("test/accuracy")] == [0, 4, 8, 12]
    assert [event.step for event in found.Scalars("train/loss")] == list(range(12))
    lines = {
        line["iter"]: line["loss"] for line in run_folder.read_metrics(tmp_path / "run") if line["kind"] == "train"
    }
    assert found.Scalars("train/loss")[7].value == pytest.approx(lines[7])


# -- the plot ---------------------------------------------------------------------------------------------------------


def line(it: int, net: int = 0, **outputs: float) -> dict[str, Any]:
    return {"kind": "test", "iter": it, "outputs": outputs, "losses": {"loss": 1.0}} | ({"net": net} if net else {})


def test_the_axis_fits_the_data_and_best_and_last_are_marked() -> None:
    from matplotlib.figure import Figure

    metrics = [line(it, accuracy=0.1 if it == 0 else 0.98 + (it % 3000) / 3e5) for it in range(0, 10001, 1000)]
    losses, panels = plots._panels(metrics, ())
    ((title, (curve,)),) = panels.items()
    axes = Figure().add_subplot()
    plots._draw(axes, [curve], title)
    low, high = axes.get_ylim()
    assert 0.97 < low < 0.98
    assert 0.986 < high < 1
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["test accuracy", "best 0.9867 at 2,000", "last 0.9833 at 10,000"]
    assert not losses
    outside = [one for one in axes.lines if one.get_marker() == "v"]
    assert [list(one.get_xdata()) for one in outside] == [[0]]


def test_outputs_of_another_scale_and_other_test_nets_have_their_own_curves(tmp_path: Path) -> None:
    metrics = [line(it, accuracy=it / 10, loss=3 - it / 10, mAP=60 + it) for it in range(5)]
    metrics += [line(it, 1, accuracy=it / 20, loss=float("nan")) for it in range(5)]
    metrics += [{"kind": "train", "iter": 0, "loss": float("inf"), "lr": 0.1}]
    losses, panels = plots._panels(metrics, [(0, 0.1), (4, 0.9)])
    assert [curve.label for curve in losses] == ["training loss", "test loss", "test #1 loss"]
    assert losses[2].points == losses[0].points == []
    assert {title: [curve.label for curve in found] for title, found in panels.items()} == {
        "accuracy and other fractions": ["test accuracy", "test #1 accuracy", "reference"],
        "mAP": ["test mAP"],
    }
    plots.curves(metrics, tmp_path / "a.png")
    plots.curves([], tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size > (tmp_path / "b.png").stat().st_size
