"""A tree of nets."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import GOLDEN

from caffe_port.cli import cli
from caffe_port.errors import CaffePortError
from caffe_port.inspection import collection
from caffe_port.inspection.collection import Found, Item, find, survey
from caffe_port.storage.files import lock

REFUSED = 'input: "x" input_shape { dim: 1 dim: 2 } layer { name: "n" type: "Nope" bottom: "x" top: "y" }'


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for folder in ("a", "b/c"):
        (root / folder).mkdir(parents=True)
    for kind in ("prototxt", "caffemodel"):
        shutil.copy(GOLDEN / "layers" / f"net_residual.{kind}", root / "a" / f"net.{kind}")
    shutil.copy(GOLDEN / "layers" / "absval_default.prototxt", root / "a" / "other.prototxt")
    (root / "b" / "c" / "bad.prototxt").write_text(REFUSED)
    (root / "b" / "solver.prototxt").write_text('net: "net.prototxt" base_lr: 0.1')
    (root / "b" / "notes.txt").write_text("no net")
    return root


def test_weights_go_with_the_prototxt_that_fits(tree: Path) -> None:
    items = find(tree)
    assert items == [Item("a/net.prototxt", "a/net.caffemodel"), Item("a/other.prototxt"), Item("b/c/bad.prototxt")]
    shutil.copy(tree / "a" / "net.prototxt", tree / "a" / "deploy.prototxt")
    assert Item("a/net.prototxt", "a/net.caffemodel") not in find(tree)  # the deploy prototxt fits, too
    assert Item("a/deploy.prototxt", "a/net.caffemodel") in find(tree)


def test_a_folder_without_nets(tmp_path: Path) -> None:
    with pytest.raises(CaffePortError, match="holds no net"):
        find(tmp_path)


def done(results: list[Found]) -> dict[str, str]:
    return {one.name: one.status for one in results}


def test_what_was_done_is_not_done_again(tree: Path, tmp_path: Path) -> None:
    said: list[str] = []

    def run() -> dict[str, str]:
        said.clear()
        with ThreadPoolExecutor(2) as executor:
            told = survey(tree, tmp_path / "out", executor=executor, found=lambda one, *_: said.append(one.name))
        return done(told)

    wanted = {"a/net.caffemodel": "done", "a/other.prototxt": "done", "b/c/bad.prototxt": "refused"}
    assert run() == wanted
    assert sorted(said) == sorted(wanted)
    assert (tmp_path / "out/a/net.caffemodel/model.py").is_file()
    assert run() == wanted
    assert not said
    with (tmp_path / "out" / collection.RECORDS).open("a") as file:
        file.write('{"name": "a/net.caffemodel"}\n')  # of another kind
        file.write('{"name": "a/net.caff')  # cut off
    os.utime(tree / "a" / "other.prototxt", (0, 0))
    assert run() == wanted
    assert said == ["a/other.prototxt"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not lock folders")
def test_two_surveys_do_not_write_to_one_folder(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with lock(tmp_path / "out", ""), pytest.raises(CaffePortError, match="out: the folder is being written"):
        survey(tree, tmp_path / "out")
    assert (tmp_path / "out" / collection.RECORDS).read_text() == ""


def test_verifying(tree: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as executor:
        found = survey(tree, tmp_path / "out", "verify", executor=executor)
    assert done(found)["a/net.caffemodel"] == "done"
    assert found[0].what.startswith("PASSED: all ")
    assert found[0].parameters > 0
    assert collection.reasons(found)[0][0] == "refused"


def _one(item: Item, *_: object) -> Found:
    if "bad" in item.name:
        os._exit(3)
    return Found(item.name, item.prototxt, item.weights, "inspect", "done")


def test_a_process_that_ends_loses_no_other_net(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection, "work", _one)
    found = survey(tree, tmp_path / "out", "inspect", workers=2)
    assert done(found) == {"a/net.caffemodel": "done", "a/other.prototxt": "done", "b/c/bad.prototxt": "crashed"}
    assert "its process ended" in found[-1].what


def test_a_process_that_ends_while_a_net_is_handed_over(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool then refuses the net itself; it and the others are done all the same."""
    refuse = [False, True]

    class Pool(ThreadPoolExecutor):
        def submit(self, *args: Any, **named: Any) -> Any:
            if refuse and refuse.pop(0):
                raise BrokenProcessPool("a child process terminated abruptly")
            return super().submit(*args, **named)

    monkeypatch.setattr(collection, "_pool", Pool)
    found = survey(tree, tmp_path / "out", "inspect", workers=2)
    assert done(found) == {"a/net.caffemodel": "done", "a/other.prototxt": "done", "b/c/bad.prototxt": "refused"}
    assert not refuse


def test_a_net_that_takes_too_long_is_given_up(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(collection._JOBS, "inspect", lambda *_: time.sleep(30))
    began = time.monotonic()
    found = collection.work(Item("a/net.prototxt"), str(tree), "", "inspect", 0.05, 1)
    assert (found.status, found.what) == ("too long", "took more than 0.05 s")
    assert time.monotonic() - began < 5

    def broken(*_: Any) -> Any:
        raise RuntimeError("first\nsecond")

    monkeypatch.setitem(collection._JOBS, "inspect", broken)
    found = collection.work(Item("a/net.prototxt"), str(tree), "", "inspect", 9, 1)
    assert (found.status, found.what) == ("failed", "RuntimeError: first")


def test_the_command(tree: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    told = ["survey", str(tree), "-o", str(tmp_path / "out"), "--job", "inspect", "--html", str(page)]
    shown = CliRunner().invoke(cli, told, standalone_mode=False)
    assert shown.return_value == 1
    assert "3 nets: 2 done, 1 refused" in shown.stdout
    assert "layer '...' (Nope): this type is not supported" in shown.stdout
    assert "b/c/bad.prototxt" in page.read_text()
    listed = json.loads(CliRunner().invoke(cli, [*told, "--json"], standalone_mode=False).stdout)
    assert listed["counts"] == {"done": 2, "refused": 1}
    assert listed["nets"][0]["layers"] > 3
