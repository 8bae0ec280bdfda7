"""Average precision: by its definition, as the fork's solver prints it, and of whole nets and data."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import small_ssd
from beside_caffe import caffe_train, furthest, start_state

from caffe_port.cli import main
from caffe_port.errors import CaffePortError
from caffe_port.evaluation.average_precision import VERSIONS, Detections, average_precision
from caffe_port.evaluation.detections import evaluate_detections
from caffe_port.training import caffe_log
from caffe_port.training.train import TrainOptions, train

# -- by definition --------------------------------------------------------------------------------------------------


def defined(right: list[int], objects: int, version: str) -> float:
    """The average precision of detections in falling order, as the papers define it."""
    hits = np.cumsum(right)
    precision, recall = hits / np.arange(1, len(right) + 1), hits / objects
    if version.endswith("point"):
        points = np.linspace(0, 1, int(version.removesuffix("point")))
        return float(np.mean([precision[recall >= point - 1e-9].max(initial=0) for point in points]))
    if version == "MaxIntegral":
        precision = np.array([precision[k:].max() for k in range(len(right))])
    return float(np.sum(precision * np.diff(np.append(0, recall))))


@pytest.mark.parametrize("version", VERSIONS)
def test_by_definition(version: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        count, extra = int(rng.integers(1, 30)), int(rng.integers(0, 9))
        right = (rng.random(count) < 0.6).astype(int)
        objects = int(right.sum()) + extra
        if any((objects * k) % 100 == 0 for k in range(1, 100)):
            continue  # where float32 decides; see below
        scores = rng.permutation(np.linspace(0.1, 0.9, count))
        order = np.argsort(-scores)
        want = defined(list(right[order]), objects, version) if objects else 0.0
        assert average_precision(scores, right.astype(bool), objects, version) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize(("version", "most"), [("11point", 10), ("101point", 100)])
def test_points_by_the_source(version: str, most: int) -> None:
    """ComputeAP of bbox_util.cpp, read line by line: of weiliu89/caffe for 11point, and of zhaoweicai/cascade-rcnn,
    whose 101point differs from it by its numbers alone. It goes down the levels of recall and the detections at once:
    where a recall (float32) is below a level (float64), the precision so far is handed to the next level, which begins
    there. A level that no recall is below hands nothing on; the first detection is then right, so nothing is lost.
    """
    rng = np.random.default_rng(1)
    for _ in range(300):
        count, objects = int(rng.integers(1, 40)), int(rng.integers(1, 45))
        right = rng.random(count) < 0.6
        right &= np.cumsum(right) <= objects
        hits = np.cumsum(right).astype(np.float32)
        precision, recall = hits / np.arange(1, count + 1, dtype=np.float32), hits / np.float32(objects)
        best, begin = np.zeros(most + 1, np.float32), count - 1
        for level in range(most, -1, -1):
            for k in range(begin, -1, -1):
                if float(recall[k]) < level / float(most):
                    begin = k
                    best[level - 1] = best[level]
                    break
                best[level] = max(best[level], precision[k])
        want = np.float32(0)
        for level in range(most, -1, -1):
            want += best[level] / np.float32(most + 1)
        scores = np.linspace(0.9, 0.1, count)
        assert average_precision(scores, right, objects, version) == pytest.approx(float(want), abs=1e-7)


def test_seven_of_ten_are_less_than_0_7() -> None:
    """As in SSD, where 0.7 in float32 is compared with 0.7 in float64; 0.6 in float32 is the greater of the two."""
    right, scores = np.ones(7, bool), np.linspace(0.9, 0.3, 7)
    assert average_precision(scores, right, 10, "11point") == pytest.approx(7 / 11)
    assert average_precision(scores[:6], right[:6], 10, "11point") == pytest.approx(7 / 11)


def test_equal_scores_stay_in_order() -> None:
    right = np.array([True, False])
    assert average_precision(np.ones(2), right, 1, "Integral") == 1
    assert average_precision(np.ones(2), ~right, 1, "Integral") == 0.5


def test_rows_add_up() -> None:
    """A class that was never detected counts as 0; detections of difficult objects count neither way."""
    found = Detections()
    first = [[-1, 1, 2, -1, -1], [-1, 2, 1, -1, -1], [0, 1, 0.9, 1, 0], [0, 1, 0.8, 0, 1], [0, 1, 0.7, 0, 0]]
    for rows in (first, [[-1, 1, 1, -1, -1], [-1, 2, 0, -1, -1], [0, 1, 0.85, 1, 0], [0, 0, 0, 0, 0]]):
        found.add(np.array(rows).reshape(1, 1, -1, 5))
    assert found.objects == {1: 3, 2: 1}
    assert found.by_class("Integral") == {1: pytest.approx(2 / 3)}
    assert found.mean("Integral") == pytest.approx(1 / 3)
    assert Detections().mean("Integral") == 0
    with pytest.raises(CaffePortError, match=r"ap_version '11points' is not one of .* Did you mean '11point'"):
        found.mean("11points")


# -- beside the fork ------------------------------------------------------------------------------------------------


def test_an_ssd_beside_caffe(tmp_path: Path, caffe: Path) -> None:
    """Losses, weights and the mean average precision in all versions are those of the fork."""
    solver = small_ssd.project(tmp_path)
    train(solver, tmp_path / "start", TrainOptions(max_iter=0, seed=3))
    start = tmp_path / "start/last.caffemodel"
    events: list[dict[str, object]] = []
    train(solver, tmp_path / "ours", TrainOptions(weights=str(start)), events.append)
    state = start_state(start)
    (tmp_path / "log").write_text(caffe_train(caffe, tmp_path, "-solver", "solver.prototxt", "-snapshot", str(state)))
    theirs = caffe_log.read(tmp_path / "log")
    losses = [event["loss"] for event in events if event["kind"] == "train"]
    want = [line["loss"] for line in theirs.metrics if line["kind"] == "train"]
    np.testing.assert_allclose(losses, want[: len(losses)], rtol=1e-4)
    assert furthest(tmp_path / "ours/last.caffemodel", tmp_path / "theirs/ssd_iter_20.caffemodel") < 1e-4
    ours = [event["outputs"]["detection_eval"] for event in events if event["kind"] == "test"]  # type: ignore[index]
    tested = [line["outputs"]["detection_eval"] for line in theirs.metrics if line["kind"] == "test"]
    np.testing.assert_allclose(ours, tested, rtol=1e-4)
    assert len(set(ours)) == 3
    events.clear()
    last = start_state(tmp_path / "theirs/ssd_iter_20.caffemodel")
    for version in VERSIONS[1:3]:
        (tmp_path / "again.prototxt").write_text(small_ssd.SOLVER.replace("11point", version).replace(": 20", ": 0"))
        log = caffe_train(caffe, tmp_path, "-solver", "again.prototxt", "-snapshot", str(last))
        (said,) = set(re.findall(r"detection_eval = (\S+)", log))
        # three batches of 5 read 11 records, the first four twice
        train(
            tmp_path / "again.prototxt",
            tmp_path / version,
            TrainOptions(weights=str(last.with_suffix(".caffemodel"))),
            events.append,
        )
        (mine,) = {event["outputs"]["detection_eval"] for event in events if event["kind"] == "test"}  # type: ignore[index]
        assert mine == pytest.approx(float(said), rel=1e-4)
        events.clear()


# -- from files -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small SSD that was trained with everything that varies images."""
    folder = tmp_path_factory.mktemp("ssd") / "ssd"
    transform = """mirror: true emit_constraint { emit_type: CENTER }
      resize_param { prob: 1 resize_mode: WARP height: 40 width: 56 interp_mode: LINEAR interp_mode: CUBIC }
      distort_param { brightness_prob: 0.5 brightness_delta: 32 contrast_prob: 0.5 contrast_lower: 0.5
        contrast_upper: 1.5 saturation_prob: 0.5 saturation_lower: 0.5 saturation_upper: 1.5 }
      expand_param { prob: 0.3 max_expand_ratio: 1.5 }"""
    samplers = """batch_sampler { max_sample: 1 max_trials: 1 } batch_sampler { sampler { min_scale: 0.6 max_scale: 1 }
      sample_constraint { min_jaccard_overlap: 0.5 } max_sample: 1 max_trials: 50 }"""
    text = small_ssd.SOLVER.replace(": 20", ": 60").replace(
        "test_interval: 10", "test_interval: 60 show_per_class_result: true"
    )
    small_ssd.project(folder, ".jpg", transform, samplers, text)
    small_ssd.voc_folder(folder / "voc", small_ssd.scenes(11, 2))
    (folder / "names.txt").write_text("\n".join(small_ssd.NAMES))
    (folder / "deploy.prototxt").write_text(small_ssd.deploy())
    events: list[dict[str, object]] = []
    train(folder / "solver.prototxt", folder / "run", TrainOptions(seed=1), events.append)
    (folder / "events.json").write_text(json.dumps(events))
    return folder


def test_an_ssd_learns_from_varied_images(trained: Path) -> None:
    events = json.loads((trained / "events.json").read_text())
    assert not [event for event in events if "is not followed" in str(event.get("text"))]
    losses = [event["loss"] for event in events if event["kind"] == "train"]
    assert np.mean(losses[-10:]) < 0.85 * np.mean(losses[:10])
    before, after = (event for event in events if event["kind"] == "test")
    assert after["outputs"]["detection_eval"] > before["outputs"]["detection_eval"] + 0.1
    assert set(after["per_class"]["detection_eval"]) == {"1", "2"}


def test_evaluate_is_what_the_solver_measures(trained: Path) -> None:
    weights = trained / "run/last.caffemodel"
    found = evaluate_detections(weights, trained / "net.prototxt")
    assert (found.images, sum(found.found.objects.values())) == (11, 12)
    again = evaluate_detections(weights, trained / "net.prototxt", batch_size=4)
    assert again.mean() == pytest.approx(found.mean(), abs=1e-4)
    options = {"mean": [104, 117, 123], "scale": 0.0078125, "labels": trained / "names.txt"}
    files = evaluate_detections(weights, trained / "deploy.prototxt", data=trained / "voc", **options)
    assert [name for name, _, _ in files.per_class()] == ["brick", "leaf"]
    assert files.mean() == pytest.approx(found.mean(), abs=15)  # PNG files, not JPEG records
    part = evaluate_detections(weights, trained / "net.prototxt", limit=3)
    assert sum(part.found.objects.values()) < 6


def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of caffe-port evaluate."""
    monkeypatch.setattr(sys, "argv", ["caffe-port", "evaluate", *words, "--device", "cpu"])
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0), *capfd.readouterr()


def test_evaluate_on_the_command_line(
    trained: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    deploy = ["deploy.prototxt", "run/last.caffemodel", "--mean", "104,117,123", "--scale", "0.0078125"]
    voc = ["--data", "voc", "--labels", "names.txt"]
    code, out, _ = run(capfd, monkeypatch, *deploy, *voc, "--expect", "99.5", "--ap", "Integral")
    assert code == 1
    assert "mean average precision of 11 images with 12 objects" in out
    assert re.search(r"11point [\d.]+ %   MaxIntegral [\d.]+ %   Integral [\d.]+ %   101point [\d.]+ %\n", out)
    assert re.search(r"^leaf +[\d.]+ % +7$", out, re.M)
    assert "reported 99.50 %: worse" in out
    found = json.loads(run(capfd, monkeypatch, *deploy, *voc, "--json")[1])
    assert set(found["mean_average_precision"]) == set(VERSIONS)
    assert found["per_class"][0]["class"] == "brick"


@pytest.mark.parametrize(
    ("net", "arguments", "said"),
    [
        ("deploy.prototxt", [], "has no data layer that evaluate reads"),
        ("deploy.prototxt", ["--data", "voc"], "object '(brick|leaf)' is of no known class"),
        ("plain.prototxt", ["--data", "voc"], r"the net's outputs are conf \(Convolution\); expected one of Detection"),
    ],
)
def test_what_evaluate_cannot_measure(
    trained: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    net: str,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(trained)
    head = small_ssd.deploy().partition('layer { name: "loc"')[0]
    Path("plain.prototxt").write_text(head + small_ssd.conv("conf", "conv3", 9))
    code, _, error = run(capfd, monkeypatch, net, "run/last.caffemodel", *arguments)
    assert code == 2
    assert re.search(said, error)


def test_solvers_that_measure_detections_need_them(tmp_path: Path) -> None:
    text = small_ssd.SOLVER.replace("max_iter: 20", "max_iter: 0")
    solver = small_ssd.project(tmp_path, solver=text)
    net = tmp_path / "net.prototxt"
    net.write_text(net.read_text().replace(small_ssd.EVALUATE, ""))
    with pytest.raises(
        CaffePortError, match="eval_type detection needs outputs of DetectionEvaluate, but 'detection_out'"
    ):
        train(solver, tmp_path / "run")
    for field, said in (
        ('eval_type: "segmentation"', "is not one of classification, detection"),
        ('eval_type: "detection" ap_version: "12point"', "ap_version"),
    ):
        solver.write_text(text.replace('eval_type: "detection"', "").replace('ap_version: "11point"', "") + field)
        with pytest.raises(CaffePortError, match=said):
            train(solver, tmp_path / "run")
