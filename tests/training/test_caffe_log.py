"""Caffe's own logs: the three of the SimpleNet runs, and lines of every kind."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from caffe_port.errors import CaffePortError
from caffe_port.training import caffe_log

TEXT = """
C:\\caffe>caffe.exe train --solver=s.prototxt
I0101 10:00:00.000000  1 caffe.cpp:223] GPU 0: GeForce GTX 980
I0101 10:00:00.000000  1 solver.cpp:48] Initializing solver from parameters:
test_iter: 100
stepvalue: 5
stepvalue: 9
type: "Nesterov"
I0101 10:00:01.000000  1 solver.cpp:91] Creating training net
I0101 10:00:02.000000  1 solver.cpp:337] Iteration 0, Testing net (#0)
I0101 10:00:03.000000  1 solver.cpp:404]     Test net output #0: accuracy = 0.1
I0101 10:00:03.000000  1 solver.cpp:404]     Test net output #1: loss = 2.5e+00 (* 1 = 2.5 loss)
I0101 10:00:03.000000  1 solver.cpp:337] Iteration 0, Testing net (#1)
I0101 10:00:03.000000  1 solver.cpp:404]     Test net output #0: accuracy = 0.9
I0101 10:00:04.000000  1 solver.cpp:228] Iteration 0 (1.5 iter/s, 2s/100 iters), loss = 2.4
I0101 10:00:04.000000  1 solver.cpp:244]     Train net output #0: loss = 2.4 (* 1 = 2.4 loss)
I0101 10:00:04.000000  1 sgd_solver.cpp:106] Iteration 0, lr = 0.01
I0101 10:00:05.000000  1 solver.cpp:228] Iteration 100, loss = -1.#IND
I0101 10:00:05.000000  1 sgd_solver.cpp:106] Iteration 100, lr = 1e-05
I0101 10:00:06.000000  1 solver.cpp:337] Iteration 200, Testing net (#0)
I0101 10:00:06.000000  1 solver.cpp:404]     Test net output #0: accuracy = 0.5
I0101 10:00:07.000000  1 solver.cpp:228] Iteration 200, loss = 1.5
I0101 10:00:08.000000  1 solver.cpp:228] Iteration 100, loss = 1.25
I0101 10:00:09.000000  1 solver.cpp:337] Iteration 200, Testing net (#0)
I0101 10:00:09.500000  1 solver.cpp:404]     Test net output #0: accuracy = 0.5
I0101 10:00:1^CTerminate batch job (Y/N)?
"""


@pytest.mark.parametrize(
    ("name", "tests", "best", "last"),
    [
        ("cifar10_9532", 495, (135500, 0.953201), (247000, 0.9481)),
        ("mnist_9972", 188, (36600, 0.9972), (112200, 0.9968)),
        ("svhn_9757", 80, (102000, 0.975722), (237000, 0.972495)),
    ],
)
def test_the_authors_logs(
    shared: Path, tmp_path: Path, name: str, tests: int, best: tuple[int, float], last: tuple[int, float]
) -> None:
    log = caffe_log.read(shared / f"models/simplenet/logs/{name}.log")
    assert len(log.tests) == tests
    assert (log.best(), log.last()) == (best, last)
    assert log.solver["lr_policy"] == "multistep"
    assert log.device == "GeForce GTX 980"
    assert all(line["lr"] > 0 for line in log.trained)
    caffe_log.to_csv(log, tmp_path / "log.csv")
    with (tmp_path / "log.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(log.metrics)


def test_lines_of_every_kind() -> None:
    log = caffe_log.parse(TEXT)
    assert log.solver == {"test_iter": "100", "stepvalue": ["5", "9"], "type": "Nesterov"}
    assert log.accuracies() == [(0, 0.1), (200, 0.5)]
    assert log.best() == log.last() == (200, 0.5)
    assert [(line["iter"], line["loss"], line["lr"]) for line in log.trained] == [
        (0, 2.4, 0.01),
        (100, 1.25, 1e-05),
        (200, 1.5, 1e-05),
    ]
    assert log.tests[0]["outputs"] == {"accuracy": 0.1, "loss": 2.5}
    assert log.seconds == 9.5
    assert log.as_dict()["best"] == {"iter": 200, "accuracy": 0.5}


def test_what_windows_prints_for_no_number() -> None:
    assert math.isnan(caffe_log._number("-1.#IND"))
    assert caffe_log._number("1.#INF") == math.inf
    assert caffe_log._number("-1.#INF") == -math.inf


def test_utf16_and_drawing(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(TEXT, encoding="utf-16")
    log = caffe_log.read(tmp_path / "log")
    assert log.best() == (200, 0.5)
    caffe_log.plot(log, tmp_path / "log.png")
    assert (tmp_path / "log.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_log(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x89PNG\xff\xfe nothing")
    with pytest.raises(CaffePortError, match="is not a log of caffe train"):
        caffe_log.read(tmp_path / "x")
    with pytest.raises(CaffePortError, match="is a folder"):
        caffe_log.read(tmp_path)
    assert caffe_log.parse("").best() is None
    assert caffe_log.parse("").as_dict()["last"] is None
