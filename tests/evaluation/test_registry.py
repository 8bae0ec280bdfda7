"""registry.toml as the library reads it, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from caffe_port.data.preprocessing import Preprocessing
from caffe_port.errors import CaffePortError
from caffe_port.evaluation import registry
from caffe_port.storage import files

GOOD = """
[net]
dataset = "mnist"
classes = 10
parameters = 7
reported = [{ accuracy = 99.5, source = "https://example.org", by = "them", date = "2018-05" }]
[net.preprocessing]
channel_order = "RGB"
mean = [1, 2.5, 3]
scale = 1
std = 2.0
"""


def test_every_entry_is_read_and_its_files_exist() -> None:
    entries = registry.entries()
    assert len(entries) >= 12
    for entry in entries.values():
        assert entry.model_path is None or entry.model_path.is_file()
        assert entry.solver_path is None or entry.solver_path.is_file()
    assert registry.entry("mnist-slim-310k").reported[0].accuracy == 99.72


def test_weights_are_known_by_their_checksum(shared: Path, tmp_path: Path) -> None:
    original = shared / "models/simplenet/mnist_9972/weights.caffemodel"
    copy = tmp_path / "any_name.bin"
    copy.write_bytes(original.read_bytes())
    found = registry.find_weights(copy)
    assert found is not None
    assert found.name == "mnist-slim-310k"
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    assert registry.find_weights(copy) is None
    assert registry.find_weights(tmp_path / "absent") is None


def test_reading_does_not_import_torch() -> None:
    code = (
        "import sys; from caffe_port.evaluation import registry; registry.entries(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_values_are_read_as_declared(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text(GOOD)
    (entry,) = registry.read(file).values()
    assert entry.preprocessing == Preprocessing("RGB", (1.0, 2.5, 3.0), 1, 2.0)
    assert entry.reported[0].date == "2018-05"
    assert entry.weights is None
    assert str(entry.preprocessing) == "RGB, (x - [1, 2.5, 3]) / 2"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("classes = 10", "clases = 10", "'clases' is not a known field. Did you mean 'classes'?"),
        ("classes = 10", "classes = '10'", "'classes' is '10', expected int"),
        ("classes = 10", "classes = true", "'classes' is True, expected int"),
        ("classes = 10", "", "is missing the field classes"),
        ('"RGB"', '"RBG"', "channel order 'RBG' is not one of RGB, BGR, GRAY. Did you mean"),
        ("[1, 2.5, 3]", "[1, 2]", "mean has 2 values; RGB takes 1 or 3"),
        ("[1, 2.5, 3]", '["a"]', "contains a value that is not a number"),
        ("[1, 2.5, 3]", '"training mean"', "neither a number, a list of numbers nor"),
        ("[1, 2.5, 3]", "inf", "finite"),
        ("std = 2.0", "std = 0", "std is 0"),
        ("std = 2.0", "std = 1\npad = -1", "pad -1 or crop 0 is too small"),
        ('by = "them", ', "", "reported: is missing the field by"),
        ("reported =", "nothing =", "'reported' is missing"),
        ("[net.preprocessing]", "[net.weights]", "preprocessing: is missing"),
        ("[net]", "loose = 1\n[net]", "loose: is outside any table"),
        ("[net]", "[net", "is not TOML"),
    ],
)
def test_a_registry_with_a_mistake_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "r.toml"
    assert old in GOOD
    file.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(CaffePortError) as caught:
        registry.read(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_an_unknown_name_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(CaffePortError, match="Did you mean 'mnist-slim-310k'"):
        registry.entry("mnist-slim-310")
    with pytest.raises(CaffePortError, match="cannot be read"):
        registry.read(tmp_path / "absent.toml")
    with pytest.raises(CaffePortError, match="is a folder"):
        files.sha256(tmp_path)
