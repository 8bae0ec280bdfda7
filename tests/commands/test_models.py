"""caffe-port models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import needs_shared

import caffe_port
from caffe_port.cli import cli
from caffe_port.evaluation import registry, reproduce


def test_the_list_says_who_size_reported_verified_and_preprocessing() -> None:
    lines = CliRunner().invoke(cli, ["models"]).stdout.splitlines()
    line = next(line for line in lines if line.startswith("mnist-slim-310k"))
    wanted = ["mnist", "301,452", "1.2 MiB", "99.72 %", "SimpleNet authors", "52 tops", "GRAY, (x - 33.3184) / 78.5675"]
    assert line.split(maxsplit=1)[1].replace("  ", "\n").split() == " ".join(wanted).split()
    assert {line.split()[0] for line in lines[2:-2]} == set(registry.entries())


def test_one_entry_is_shown_whole() -> None:
    shown = CliRunner().invoke(cli, ["models", "mnist-slim-310k"]).stdout
    assert "52 tops agree with OpenCV 4.14.0 and Caffe 1.0.0 (brocolli-caffe 9.0.2)" in shown
    assert "SHA-256        40a50d14" in shown
    assert json.loads(CliRunner().invoke(cli, ["models", "svhn-slim", "--json"]).stdout)["parameters"] == 311594


def test_every_weights_file_was_verified() -> None:
    for entry in registry.entries().values():
        assert (entry.verified is None) == (entry.weights is None), entry.name


@needs_shared
@pytest.mark.parametrize("name", [name for name, entry in registry.entries().items() if entry.verified])
def test_as_many_tops_agree_as_the_registry_says(name: str, shared: Path) -> None:
    entry = registry.entry(name)
    assert entry.weights is not None
    assert entry.verified is not None
    report = caffe_port.verify(None, reproduce.fetch(entry.weights, mirror=shared, offline=True))
    assert report.passed
    assert report.compared == entry.verified.tops
