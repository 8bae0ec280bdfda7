"""Caffe's own logs: the three of the SimpleNet runs, and lines of every kind."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import HERE

from caffe_port.cli import cli
from caffe_port.errors import CaffePortError
from caffe_port.training import caffe_log, plots

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
    assert [(line["iter"], line["loss"], line["lr"]) for line in log.trained] == [(0, 2.4, 0.01), (100, 1.25, 1e-05)]
    assert log.tests[0]["outputs"] == {"accuracy": 0.1, "loss": 2.5}
    assert log.seconds == 9.5
    assert log.as_dict()["best"] == {"iter": 200, "accuracy": 0.5}


def of(name: str) -> caffe_log.CaffeLog:
    return caffe_log.read(HERE / "cases" / name)


def test_a_log_with_the_year() -> None:
    """glog 0.6 writes the year. This one begins in the middle of a training: its first line belongs to no iteration."""
    log = of("log_with_year/caffe.log")
    assert log.accuracies() == [(10, 0.52), (20, 0.665)]
    assert len(log.trained) == 15
    assert 0 < log.seconds < 60
    assert len(log.not_read) == log.as_dict()["lines_not_read"] == 1
    assert "Train net output #0" in log.not_read[0]


def test_every_output_of_every_test_net(tmp_path: Path) -> None:
    log = of("log_several/caffe_two.log")
    assert log.nets == [0, 1]
    assert [line["outputs"]["per_class[9]"] for line in log.tests] == [0.404167, 0.601191, 0.732143]
    assert [log.last(net) for net in log.nets] == [(10, 0.66), (10, 0.706667)]
    second = [line for line in log.metrics if line.get("net") == 1]
    assert [sorted(line["outputs"]) for line in second] == [["accuracy", "loss", "top3"]] * 3
    assert second[0]["loss"] == 1.31937, "what test_compute_loss adds"
    assert not log.not_read
    caffe_log.to_csv(log, tmp_path / "log.csv")
    with (tmp_path / "log.csv").open() as file:
        header, *rows = csv.reader(file)
    assert len(set(header)) == len(header)
    assert {"train loss", "test loss", "test #1 loss", "test per_class[0]", "loss"} <= set(header)
    first = dict(zip(header, rows[0], strict=True))
    assert (first["iter"], first["kind"], first["test accuracy"], first["test #1 accuracy"]) == (
        "0",
        "test",
        "0.62",
        "0.646667",
    )


@pytest.mark.parametrize(
    ("name", "output", "best"),
    [
        ("nvcaffe_epochs", "top-1", (50, 0.6)),
        ("detectnet_map", "mAP", (14000, 0.3)),
        ("detection_eval", "detection_eval", (500, 0.701)),
        ("two_test_nets", "loss3/top-1", (100, 0.55)),
    ],
)
def test_outputs_of_any_name(tmp_path: Path, name: str, output: str, best: tuple[int, float]) -> None:
    log = of(f"logs/{name}.log")
    assert (log.output(), log.best()) == (output, best)
    assert not log.not_read
    caffe_log.plot(log, tmp_path / "log.svg")
    text = (tmp_path / "log.svg").read_text()
    assert f"test {output}" in text


def test_the_losses_of_nvcaffe() -> None:
    log = of("logs/nvcaffe_epochs.log")
    assert [(line["iter"], line["loss"], line.get("lr")) for line in log.trained] == [
        (2, 5.08295, None),
        (50, 3.2223, 0.0001),
    ]


def test_logs_of_2013_and_lines_in_a_form_that_is_not_known() -> None:
    log = caffe_log.parse("""
I1213 10:00:00.000000 1 solver.cpp:66] Iteration 1000, Testing net
I1213 10:00:01.000000 1 solver.cpp:100] Test score #0: 0.98
I1213 10:00:01.000000 1 solver.cpp:100] Test score #1: 0.07
I1213 10:00:02.000000 1 solver.cpp:204] Iteration 1000, lr = 0.01
I1213 10:00:02.000000 1 solver.cpp:66] Iteration 1000, loss = 0.05
I1213 10:00:03.000000 1 solver.cpp:66] Iteration 1100 took 3 s: loss = 0.04
I0102 10:00:03.000000 1 solver.cpp:66] Iteration 1200, loss = nan(ind)
I0103 10:00:03.000000 1 net.cpp:66] Iteration 1 = nothing of the solver's
""")
    assert log.tests[0]["outputs"] == {"score #0": 0.98, "score #1": 0.07}
    assert [line["iter"] for line in log.trained] == [1000, 1200]
    assert [line.rpartition("] ")[2] for line in log.not_read] == ["Iteration 1100 took 3 s: loss = 0.04"]
    assert 19 < log.seconds / 86400 < 22


def test_nvcaffes_names_of_devices_and_its_average_precision() -> None:
    """print_current_device() before a message, from NVIDIA/caffe 0.17.1 on; TestDetection of its solver.cpp."""
    log = caffe_log.parse("""
I0512 10:00:00.000001 77 solver.cpp:496] Iteration 100, Testing net (#0)
I0512 10:00:01.000001 77 solver.cpp:702] class AP 1: 0.5
I0512 10:00:01.000002 77 solver.cpp:702] class AP 2: 0.25
I0512 10:00:01.000003 77 solver.cpp:712] Test net output mAP #0: detection_eval = 0.375
I0512 10:00:02.000001 77 solver.cpp:339]     [0.0] Iteration 100 (4.2 iter/s, 23.8s/100 iter), 1.5/90ep, loss = 3.5
I0512 10:00:02.000002 77 solver.cpp:359]     [0.0]     Train net output #0: mbox_loss = 3.5 (* 1 = 3.5 loss)
I0512 10:00:02.000003 77 sgd_solver.cpp:180] [0.0] Iteration 100, lr = 0.01, m = 0.9, lrm = 0.1, wd = 0.0005, gs = 1
I0512 10:00:03.000001 77 solver.cpp:496] Iteration 200, Testing net (#0)
I0512 10:00:03.000002 77 solver.cpp:582]     (0)    Test net output #0: top-1 = 0.5
""")
    test, trained, second = log.metrics
    assert test["outputs"] == {"detection_eval": 0.375, "detection_eval class 1": 0.5, "detection_eval class 2": 0.25}
    assert (trained["loss"], trained["lr"], trained["outputs"]) == (3.5, 0.01, {"mbox_loss": 3.5})
    assert (second["iter"], second["outputs"]) == (200, {"top-1": 0.5})
    assert log.best() == (100, 0.375)
    assert not log.not_read


def test_the_average_precision_of_ssds_classes() -> None:
    log = caffe_log.parse("""
I0512 10:00:00.000001 77 solver.cpp:433] Iteration 500, Testing net (#0)
I0512 10:00:00.000002 77 net.cpp:693] Ignoring source layer mbox_loss
I0512 10:00:01.000001 77 solver.cpp:540] class1: 0.75
I0512 10:00:01.000002 77 solver.cpp:540] class20: 0
I0512 10:00:01.000003 77 solver.cpp:546]     Test net output #0: detection_eval = 0.375
""")
    assert log.output() == "detection_eval"
    assert log.tests[0]["outputs"]["detection_eval class 20"] == 0


def test_a_run_that_goes_on_replaces_what_came_after(tmp_path: Path) -> None:
    """The first run reached 300 and was resumed from its snapshot at 100; that one was killed at 200."""
    run = """I0512 1{k}:00:0{at}.00000{k} {k} solver.cpp:330] Iteration {at}00, Testing net (#0)
I0512 1{k}:00:0{at}.00001{k} {k} solver.cpp:397]     Test net output #0: accuracy = 0.{k}{at}
I0512 1{k}:00:0{at}.00002{k} {k} solver.cpp:218] Iteration {at}00 (1 iter/s, 1s/100 iters), loss = {k}.{at}
I0512 1{k}:00:0{at}.00003{k} {k} sgd_solver.cpp:105] Iteration {at}00, lr = 0.0{k}
"""
    begins = "I0512 1{k}:00:00.000000 {k} solver.cpp:45] Initializing solver from parameters:\nbase_lr: 0.0{k}\n"
    begins += "train_state {{\n  level: 0\n}}\nI0512 1{k}:00:00.000000 {k} solver.cpp:50] x\n"
    first = begins.format(k=1) + "".join(run.format(k=1, at=at) for at in range(4))
    second = begins.format(k=2) + "I0512 12:00:00.000000 2 sgd_solver.cpp:3] Restoring previous solver status from s\n"
    second += "".join(run.format(k=2, at=at) for at in (1, 2))
    log = caffe_log.parse(first + second)
    assert log.accuracies() == [(0, 0.1), (100, 0.21), (200, 0.22)]
    assert [(line["loss"], line["lr"]) for line in log.trained] == [(1.0, 0.01), (2.1, 0.02), (2.2, 0.02)]
    assert log.replaced == 6 == log.as_dict()["points_replaced"]
    assert log.solver == {"base_lr": "0.02"}
    again = caffe_log.parse(first + first + second)
    assert (again.metrics, again.replaced) == (log.metrics, log.replaced), "a line that occurs twice counts once"
    for headers in (True, False):  # only what grep found: the iteration goes back
        reported = [line for line in (first + second).splitlines() if "Iteration" in line or "output" in line]
        reported = reported if headers else [line.split("] ", 1)[1] for line in reported]
        found = caffe_log.parse("\n".join(reported))
        assert (found.metrics, found.replaced) == (log.metrics, log.replaced)


def test_the_command_says_what_it_left_out(tmp_path: Path) -> None:
    begins, line = "I0512 10:00:00.00000{0} {0} solver.cpp:45] Initializing solver from parameters:\n", ""
    for k in (1, 2):
        line += begins.format(k)
        for at in (0, 10):
            line += f"I0512 1{k}:00:0{at // 10}.000000 {k} solver.cpp:218] Iteration {at}, loss = 2.5\n"
    line += "I0512 13:00:00.000000 2 solver.cpp:218] Iteration 20 took long: loss = 2\n"
    (tmp_path / "caffe.log").write_text(line)
    shown = CliRunner().invoke(cli, ["log", str(tmp_path / "caffe.log")])
    assert "2 training points" in shown.stdout
    assert "2 points of earlier runs in the file left out" in shown.stderr
    assert "1 line not understood" in shown.stderr


@pytest.mark.parametrize("ranks", [True, False])
def test_processes_that_train_at_the_same_time(ranks: bool) -> None:
    """Intel's Caffe on two nodes: with and without the numbers that mpirun writes before the lines."""
    lines = []
    for at in range(3):
        for k in range(2):
            rank = f"[{k}] " if ranks else ""
            lines += [
                f"{rank}I0512 10:0{at}:00.00000{k} 9{k} solver.cpp:474] Iteration {at}0, Testing net (#0)",
                f"{rank}I0512 10:0{at}:00.00001{k} 9{k} solver.cpp:562]     Test net output #0: top-1 = 0.{at}{k}",
                f"{rank}I0512 10:0{at}:00.00002{k} 9{k} solver.cpp:312] Iteration {at}0, loss = {at}.{k}",
                f"{rank}I0512 10:0{at}:00.00003{k} 9{k} sgd_solver.cpp:200] Iteration {at}0, lr = 0.1",
            ]
        lines[-8:] = [line for pair in zip(lines[-8:-4], lines[-4:], strict=True) for line in pair]  # in turns
    log = caffe_log.parse("\n".join(lines))
    assert log.accuracies() == [(0, 0.0), (10, 0.1), (20, 0.2)]
    assert [line["loss"] for line in log.trained] == [0, 1, 2]
    assert (log.of_others, log.not_read) == (6, [])


@pytest.mark.parametrize(
    "form",
    [
        "{header} {message}\n",
        "{header} {message}\r\n",
        "{message}\n",
        "> {header} {message}\n",
        "web_1  | {header} {message}\n",
        "{header} {message} ",
        "... {file}] {message}\n",
        ":00:00.000001    77 {file}] {message}\n",
        '      "{header} {message}\\n",\n',
    ],
)
def test_lines_as_people_keep_them(form: str) -> None:
    """Windows' line ends; quoted, in a notebook, from a container, run together; without glog's header."""
    messages = [
        "solver.cpp:330|Iteration 100, Testing net (#0)",
        "solver.cpp:397|    Test net output #0: accuracy = 0.5",
        "solver.cpp:397|    Test net output #1: loss: mean = 1.5e-05 (* 1 = 1.5e-05 loss)",
        "solver.cpp:218|Iteration 100 (0.15 iter/s, 670.289s/100 iter), loss = 3.25, remaining 212 hours",
        "solver.cpp:237|    Train net output #0: loss = nan (* 1 = nan loss)",
        "sgd_solver.cpp:105|Iteration 100, lr = 0.001",
    ]
    text = ""
    for k, line in enumerate(messages):
        file, _, message = line.partition("|")
        text += form.format(header=f"I0512 10:00:00.00000{k} 77 {file}]", file=file, message=message)
    log = caffe_log.parse(text)
    assert log.tests[0]["outputs"] == {"accuracy": 0.5, "loss: mean": 1.5e-05}
    assert log.tests[0]["losses"] == {"loss: mean": 1}
    assert [(line["iter"], line["loss"], line["lr"]) for line in log.trained] == [(100, 3.25, 0.001)]
    assert math.isnan(log.trained[0]["outputs"]["loss"])
    assert not log.not_read


def test_a_number_that_is_cut_off_is_not_read() -> None:
    head = "I0512 10:00:00.000001 77 solver.cpp:330] Iteration 100, Testing net (#0)\n"
    line = "I0512 10:00:00.000002 77 solver.cpp:397]     Test net output #0: loss = 1.5e-05"
    for end in ("", "\n", " (* 1 = 1.5e-05 loss)"):
        assert caffe_log.parse(head + line + end).tests[0]["outputs"] == {"loss": 1.5e-05}
    for cut in (1, 2, 3, 5):
        log = caffe_log.parse(head + line[:-cut])
        assert not log.tests
        assert len(log.not_read) == 1
    log = caffe_log.parse(head + line[:-4] + "I0512 10:00:00.000003 78 solver.cpp:1] Iteration 7, loss = 2")
    assert [(line["iter"], line["loss"]) for line in log.metrics] == [(7, 2)]
    assert len(log.not_read) == 1


def test_the_form_of_2013() -> None:
    """Tutorials leave out time and thread; a test does not name its iteration."""
    log = caffe_log.parse("""
    I1203 solver.cpp:204] Iteration 500, lr = 0.0099
    I1203 solver.cpp:66] Iteration 500, loss = 0.26
    I1203 solver.cpp:84] Testing net
    I1203 solver.cpp:111] Test score #0: 0.9785
    I1203 solver.cpp:111] Test score #1: 0.06
""")
    assert [(line["iter"], line["loss"], line["lr"]) for line in log.trained] == [(500, 0.26, 0.0099)]
    assert [(line["iter"], line["outputs"]) for line in log.tests] == [(500, {"score #0": 0.9785, "score #1": 0.06})]
    assert log.seconds == 0


def test_a_value_that_is_no_number_is_never_the_best() -> None:
    head = "Iteration {0}, Testing net (#0)\n    Test net output #0: accuracy = {1}\n"
    log = caffe_log.parse(head.format(0, "-nan") + head.format(10, "0.25") + head.format(20, "-nan(ind)"))
    assert log.best() == (10, 0.25)


def test_which_axis_an_output_is_drawn_on() -> None:
    assert plots.is_loss("loss", {})
    assert not plots.is_loss("top-1", {})
    line = {"outputs": {"loss1/top-1": 0, "loss1/loss": 1, "cost": 1}, "losses": {"loss1/loss": 1.0, "cost": 1.0}}
    assert [plots.is_loss(name, line) for name in line["outputs"]] == [False, True, True]
    assert plots.judge(line) == "loss1/top-1"
    assert plots.judge({"outputs": {"loss": 1}}) == "loss"
    assert plots.judge({"outputs": {}}) is None


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
