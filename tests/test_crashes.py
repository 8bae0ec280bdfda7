"""Killed at any moment: nothing half-written under its final name. Two at a time: the second says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_training

from caffe_port import api
from caffe_port.emit.convert import convert
from caffe_port.errors import CaffePortError
from caffe_port.storage.files import lock, sha256
from caffe_port.training.train import TrainOptions, train

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")
HOLD = """
import sys, time
from caffe_port.storage.files import lock
with lock(sys.argv[1], "the folder is in use"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_what_a_kill_leaves_at_every_moment() -> None:
    """convert, convert --force, train and download: what is on the disk before and after each call that touches files,
    and what eight children leave that are killed.
    """
    script = Path(__file__).with_name("crashes.py")
    done = subprocess.run(
        [sys.executable, str(script), "8", "--states"], capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["killed"], found["violations"]) == (8, [])
    assert min(found["moments"].values()) > 15
    assert min(found["states"].values()) >= 5
    assert sum(found["states"].values()) > 60


def test_a_run_folder_in_use_names_its_user_and_a_killed_one_frees_it(tmp_path: Path) -> None:
    solver = small_training.project(tmp_path / "project")
    os.makedirs(tmp_path / "run")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run" / ".lock")], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(CaffePortError, match=rf"the folder is in use by process {holder.pid} on "):
            train(solver, tmp_path / "run", TrainOptions(max_iter=1))
        assert os.listdir(tmp_path / "run") == [".lock"], "nothing was written there"
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with lock(tmp_path / "run" / ".lock", "x"):
        pass  # the dead holder's name still stands in it, and does not matter


def test_two_converts_into_one_folder(tmp_path: Path) -> None:
    """Whoever comes second finds the folder taken or filled; what is there is one net's, whole."""
    programs = []
    for name, outputs in (("a", 4), ("b", 6)):
        (tmp_path / f"{name}.prototxt").write_text(
            'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: [2, 3, 5, 7] } } }\n'
            f'layer {{ name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param '
            f"{{ num_output: {outputs} }} }}"
        )
        code = (
            "import sys, time\n"
            "from caffe_port import api\n"
            "from caffe_port.emit.convert import convert\n"
            "from caffe_port.errors import CaffePortError\n"
            "ported = api.port(sys.argv[1])\n"
            "time.sleep(max(float(sys.argv[3]) - time.time(), 0))\n"
            "for _ in range(15):\n"
            "    try: convert(ported, sys.argv[2], force=True)\n"
            "    except CaffePortError as error: assert 'written' in str(error), error\n"
        )
        start = str(time.time() + 6)
        programs.append(
            subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path / f"{name}.prototxt"), str(tmp_path / "out"), start]
            )
        )
    assert [program.wait() for program in programs] == [0, 0]
    report = json.loads((tmp_path / "out" / "port.json").read_text())
    for file in report["files"]:
        assert sha256(tmp_path / "out" / file["file"]) == file["sha256"], file
    assert sorted(os.listdir(tmp_path)) == ["a.prototxt", "b.prototxt", "out"], "no temporary folder stays"
    with (
        lock(tmp_path / "out", "the folder is being written to"),
        pytest.raises(CaffePortError, match="being written to"),
    ):
        convert(api.port(tmp_path / "a.prototxt"), tmp_path / "out", force=True)
