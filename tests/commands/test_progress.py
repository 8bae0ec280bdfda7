"""A bar with a label, counts and the remaining time; one line a minute where stderr is not a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from caffe_port.commands.progress import Progress, progress_bar
from caffe_port.commands.training import _Teller


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress(clock) as progress:
        for done in range(400):
            clock.now = done
            progress.update("converting", done, 400, "net", "3 refused")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "converting: 60 of 400 nets, 3 refused, 5 min 40 s left"
    assert len(lines) == 6


def test_the_lines_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Its first figures, then one line a minute, whatever is displayed; tests and snapshots as they come."""
    clock = Clock()
    with Progress(clock) as progress:
        teller = _Teller(progress)
        teller.hear({"kind": "start", "iter": 0, "max_iter": 400})
        for it in range(1, 200):
            clock.now = it
            teller.hear({"kind": "train", "iter": it - 1, "loss": 1 / it, "lr": 0.1, "images_per_s": 1234.5})
            teller.hear({"kind": "progress", "iter": it, "loss": 1 / it, "lr": 0.1})
        for k in range(1, 101):
            clock.now += 1
            teller.hear({"kind": "testing", "iter": 199, "net": 1, "batch": k, "batches": 100})
        teller.hear({"kind": "test", "iter": 199, "net": 1, "outputs": {"accuracy": 0.5}, "ahead": None})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "iteration 0: loss 1, lr 0.1, 1,234 images/s"
    assert lines[1].startswith("training: 61 of 400 iterations, loss 0.01639, lr 0.1, 1,234 images/s, 5 min 39 s left")
    assert lines[4] == "testing #1: 42 of 100 batches, iteration 199, 58 s left"
    assert lines[-1] == "iteration 199: test #1  accuracy 0.5000"
    assert len(lines) == 6


def test_the_bar_has_a_label_and_no_figures_that_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    clock = Clock()
    with Progress(clock) as progress:
        progress.update("testing", 0, 400, "batch", plural="batches")
        progress._bar.refresh()
        clock.now = 10
        progress.update("testing", 100, 400, "batch", plural="batches")
        progress._bar.refresh()
        progress.update("compiling", 0, 0)
        progress._bar.refresh()
        progress.say("a line of \x1b[31mits own")
    shown = stderr.getvalue()
    assert "0 of 400 batches" in shown
    assert "100 of 400 batches  30 s left" in shown
    assert "compiling" in shown
    assert "a line of \\x1b[31mits own" in shown
    assert "?" not in shown.replace("[?25l", "").replace("[?25h", "")
    assert "-:--:--" not in shown


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("x", quiet=True) as nothing:
        assert nothing is None
    with progress_bar("x", quiet=False) as update:
        assert update is not None
        update(1, 3)
    assert capsys.readouterr().err == ""
