"""From an entry's name to a verdict; fetching weights; the table of everything reported."""

from __future__ import annotations

import hashlib
import io
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reading import counted

from caffe_port.errors import CaffePortError
from caffe_port.evaluation import registry, reproduce
from caffe_port.evaluation.registry import WeightsFile

CONTENT = bytes(range(256)) * 1000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAFFE_PORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# -- the mission ----------------------------------------------------------------------------------------------------


def test_the_slim_mnist_net_is_reproduced(shared: Path) -> None:
    steps: list[str] = []
    with counted() as seen:
        outcome = reproduce.reproduce(
            "mnist-slim-310k", mirror=shared, offline=True, step=lambda *now: steps.append(now[0])
        )
    (finding,) = outcome.findings
    assert (finding.ours, finding.reported, finding.verdict) == (99.72, 99.72, "equal")
    assert outcome.passed
    assert outcome.reached
    assert (outcome.folder / "model.py").is_file()
    assert list(dict.fromkeys(steps)) == ["fetch", "convert", "verify", "evaluate"]
    line = next(f for f in reproduce.findings() if f.name == "mnist-slim-310k")
    assert line == finding
    # Opened to be checked against the registry, to be read, and for the checksum in port.json and the report.
    assert seen.of(outcome.weights) == {outcome.weights.name: (3, 1)}
    assert seen.resolved == {(outcome.weights.name, "TEST"): 1, (outcome.weights.name, "TRAIN"): 1}


# -- the table ------------------------------------------------------------------------------------------------------


def test_everything_reported_is_in_the_table() -> None:
    table = reproduce.findings()
    figures = {f.reported for f in table}
    assert {95.32, 95.16, 94.75, 99.72, 97.57, 95.51, 77.83, 78.37, 5.48e6, 1239.0} <= figures
    assert sum(f.reported == 95.32 for f in table) == 2
    rows = list(reproduce.as_rows(table))
    assert all(row["command"] for row in rows if row["verdict"] == "not run here")
    parameters = next(f for f in table if f.quantity == "parameters")
    assert parameters.verdict == "equal"
    assert any(row["reported"] == "1,239" for row in rows)


def test_a_damaged_memory_is_as_none(cache: Path) -> None:
    (cache / "reproduced").mkdir(parents=True)
    (cache / "reproduced" / "mnist-slim-310k.json").write_text('{"findings": [{"name": 3}]}')
    assert next(f for f in reproduce.findings() if f.name == "mnist-slim-310k").verdict == "not run here"


def test_weights_that_are_not_to_be_had() -> None:
    with pytest.raises(CaffePortError, match=r"were not published; the net must be trained") as caught:
        reproduce.reproduce("simplenet-cifar10")
    assert "caffe-port train model_defs/simplenet_cifar10_solver.prototxt --data cifar10" in str(caught.value)
    with pytest.raises(CaffePortError, match="Did you mean"):
        reproduce.reproduce("mnist-slim")


def test_what_the_verdicts_mean() -> None:
    entry = registry.entry("mnist-slim-310k")

    def outcome(passed: bool | None, verdict: str) -> reproduce.Outcome:
        finding = reproduce.Finding("n", "q", 1.0, "b", "s", 1.0, (0.5, 1.5), verdict)
        return reproduce.Outcome(entry, Path("w"), Path("f"), "c", "v", passed, (finding,), 1.0)

    assert outcome(None, "better").reached
    assert not outcome(False, "equal").reached
    assert not outcome(True, "worse").reached
    assert outcome(True, "equal").as_dict()["findings"][0]["verdict"] == "equal"


# -- fetching -------------------------------------------------------------------------------------------------------

WANTED = WeightsFile("a/b/w.caffemodel", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), "https://example.org/w")


class Answer(io.BytesIO):
    status = 200

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.headers: dict[str, str] = {}


class Server:
    """Stands for download.open_url; ``cut`` ends an answer early, ``ranges`` says whether it can resume."""

    def __init__(self, content: bytes = CONTENT, cut: int | None = None, ranges: bool = True) -> None:
        self.content, self.cut, self.ranges, self.asked = content, cut, ranges, []

    def __call__(self, request: Any, timeout: float) -> Answer:
        self.asked.append(request.get_header("Range"))
        start = 0
        if self.ranges and request.get_header("Range"):
            start = int(request.get_header("Range").removeprefix("bytes=").removesuffix("-"))
        answer = Answer(self.content[start : self.cut])
        if start:
            answer.status = 206
            answer.headers["Content-Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        return answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    found = Server()
    monkeypatch.setattr("caffe_port.evaluation.download.open_url", lambda request, context: found(request, 30))
    return found


def test_a_mirror_comes_before_the_network(tmp_path: Path, server: Server) -> None:
    (tmp_path / "m" / "a" / "b").mkdir(parents=True)
    (tmp_path / "m" / WANTED.file).write_bytes(CONTENT)
    assert reproduce.fetch(WANTED, mirror=tmp_path / "m") == tmp_path / "m" / WANTED.file
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "w.caffemodel").write_bytes(CONTENT)
    assert reproduce.fetch(WANTED, mirror=tmp_path / "flat", offline=True).parent == tmp_path / "flat"
    assert not server.asked
    (tmp_path / "flat" / "w.caffemodel").write_bytes(CONTENT[:-1])
    with pytest.raises(CaffePortError, match="has 255999 bytes, but 256000 in the registry"):
        reproduce.fetch(WANTED, mirror=tmp_path / "flat")
    (tmp_path / "flat" / "w.caffemodel").write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(CaffePortError, match="has the checksum"):
        reproduce.fetch(WANTED, mirror=tmp_path / "flat")


def test_what_is_fetched_is_kept(cache: Path, server: Server) -> None:
    seen: list[int] = []
    path = reproduce.fetch(WANTED, step=lambda _, done, total: seen.append(done))
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(cache)
    assert seen[-1] == len(CONTENT)
    assert reproduce.fetch(WANTED, offline=True) == path
    assert len(server.asked) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_ended(server: Server, ranges: bool) -> None:
    server.cut, server.ranges = 100_000, ranges
    with pytest.raises(CaffePortError, match="has 100000 bytes"):
        reproduce.fetch(WANTED)
    server.cut = None
    assert reproduce.fetch(WANTED).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]


def test_what_is_fetched_is_checked(cache: Path, server: Server) -> None:
    server.content = CONTENT[::-1]
    with pytest.raises(CaffePortError, match="has the checksum"):
        reproduce.fetch(WANTED)
    assert not list(cache.rglob("*.part"))
    server.content = CONTENT * 2
    assert reproduce.fetch(WANTED).read_bytes() == CONTENT, "not a byte more than was asked for"


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(request: Any, context: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("caffe_port.evaluation.download.open_url", refuse)
    with pytest.raises(CaffePortError, match="cannot be downloaded: no route to host"):
        reproduce.fetch(WANTED)
    with pytest.raises(CaffePortError, match="--offline is set"):
        reproduce.fetch(WANTED, offline=True)
    with pytest.raises(CaffePortError, match="has no download address"):
        reproduce.fetch(WeightsFile("w", "0", 1))
    with pytest.raises(CaffePortError, match="only https"):
        reproduce.fetch(WeightsFile("w", "0", 1, "http://example.org/w"))


def test_where_data_lies(tmp_path: Path) -> None:
    assert reproduce.data_root("mnist", None, None) is None
    assert reproduce.data_root("mnist", tmp_path, tmp_path / "r") == tmp_path / "r"
    (tmp_path / "mnist").mkdir()
    assert reproduce.data_root("mnist", tmp_path, None) == tmp_path / "mnist"
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    assert reproduce.data_root("mnist", tmp_path, None) == tmp_path / "data" / "mnist"
