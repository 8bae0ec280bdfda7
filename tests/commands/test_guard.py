"""No file causes a traceback: whatever is raised becomes one sentence, and exit code 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import cv2
import numpy as np
import pytest
import torch
from conftest import HERE

from caffe_port import api
from caffe_port.cli import cli, main
from caffe_port.commands import guard
from caffe_port.errors import CaffePortError
from caffe_port.layers.activation import ReLU
from caffe_port.verification.verify import verify

DATA = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: [2, 3, 4, 5] } } }\n'
RELU = DATA + 'layer { name: "r" type: "ReLU" bottom: "x" top: "y" }\n'
MASK = DATA + 'layer { name: "m" type: "Power" bottom: "x" top: "mask" power_param { scale: 0 shift: SHIFT } }\n'
UNPOOLINGS = {
    "Upsample": "upsample_param { scale: 2 }",
    "MaxUnPool": "max_unpool_param { dst_h: 8 dst_w: 10 }",
    "Unpooling": "unpooling_param { unpool: MAX kernel_size: 2 stride: 2 unpool_h: 8 unpool_w: 10 }",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit code and stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["caffe-port", *line.split()])
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0), capfd.readouterr().err


def test_no_option_takes_a_number_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """click's ranges take NaN; every option of every command that takes a number with a point rejects it."""
    seen = 0
    for name, command in cli.commands.items():
        for option in command.params:
            monkeypatch.setattr(option, "required", False)
        for option in command.params:
            if isinstance(option.type, click.types.FloatParamType) and option.nargs == 1:
                seen += 1
                for number in ("nan", "inf", "-inf"):
                    with pytest.raises(click.BadParameter, match=r"is not (a finite number|in the range)"):
                        command.make_context(name, [f"{option.opts[-1]}={number}"])
    assert seen > 8


def test_interrupted_while_modules_are_imported() -> None:
    """Ctrl-C before the command line is there: one line and exit code 130, as later."""
    script = (
        "import sys, runpy\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'caffe_port.commands':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder())\n"
        "runpy.run_module('caffe_port', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


# -- what nothing else caught -----------------------------------------------------------------------------------------


def test_an_error_of_caffe_port_is_a_sentence(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the layer and its line, says what to do, and writes nothing."""

    def broken(*_: object) -> None:
        raise KeyError("slope\x1b[31m")

    monkeypatch.setattr(ReLU, "from_caffe", broken)
    Path("net.prototxt").write_text(RELU)
    code, error = run("convert net.prototxt -o out", capfd, monkeypatch)
    assert code == 2
    assert error.splitlines()[0] == (
        "error: net.prototxt:2: layer 'r' (ReLU): caffe-port failed with KeyError: 'slope\\x1b[31m'"
    )
    assert "where to report it" in error
    assert "Traceback" not in error
    assert not Path("out").exists()
    code, error = run("convert net.prototxt -o out --traceback", capfd, monkeypatch)
    assert code == 2
    assert error.startswith("Traceback")
    assert "net.prototxt:2: layer 'r' (ReLU): caffe-port failed with KeyError" in error


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_takes_traceback(name: str) -> None:
    assert "--traceback" in {option for parameter in cli.commands[name].params for option in parameter.opts}


@pytest.mark.parametrize("error", [AssertionError(), RecursionError("deep"), ValueError("a\nb" * 500)])
def test_sentences_are_short(error: Exception) -> None:
    said = guard.sentence(error)
    assert type(error).__name__ in said
    assert len(said.splitlines()) == 3
    assert len(said) < 500


# -- memory -----------------------------------------------------------------------------------------------------------

BIG = DATA + 'layer { name: "big" type: "Parameter" top: "p" parameter_param { shape { dim: [46340, 46340] } } }\n'
LIMITED = """
import os, resource, sys
import caffe_port.api, caffe_port.emit.convert, caffe_port.verification.verify
size = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + (GIB << 30)
resource.setrlimit(resource.RLIMIT_AS, (size, size))
from caffe_port.cli import main
main()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and RLIMIT_AS")
@pytest.mark.parametrize(
    ("gib", "what"),
    [
        (1, "layer 'big' (Parameter): not enough memory for its parameters, 8.0 GiB\n  The net needs 8.0 GiB"),
        (9, "layer 'big' (Parameter): not enough memory\n  Unable to allocate"),  # for its filler
    ],
)
@pytest.mark.parametrize("line", ["convert net.prototxt -o out", "verify net.prototxt"])
def test_a_memory_limit(gib: int, what: str, line: str) -> None:
    """`ulimit -v`, which docs/security.md recommends: 8 GB that are not there end in a sentence."""
    Path("net.prototxt").write_text(BIG)
    code = LIMITED.replace("GIB", str(gib))
    done = subprocess.run([sys.executable, "-c", code, *line.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert f"error: net.prototxt:2: {what}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("out").exists()


# -- numbers that make no layer ------------------------------------------------------------------------------------

PRIORS = (
    DATA
    + 'layer { name: "im" type: "Input" top: "im" input_param { shape { dim: [2, 3, 40, 50] } } }\n'
    + 'layer { name: "n" type: "PriorBox" bottom: "x" bottom: "im" top: "y" prior_box_param { FIELDS } }\n'
)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ("min_size: 2 max_size: inf", "max_size is inf"),
        ("min_size: nan", "min_size is nan"),
        ("min_size: inf", "min_size is inf"),
    ],
)
@pytest.mark.parametrize("line", ["inspect {}", "convert {} -o out", "verify {}"])
def test_infinite_sizes(
    fields: str, what: str, line: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("net.prototxt").write_text(PRIORS.replace("FIELDS", fields + " clip: false"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["caffe-port", *line.format("net.prototxt").split()])
    with pytest.raises(SystemExit) as caught:
        main()
    said = "".join(capfd.readouterr())
    assert caught.value.code == 2
    assert f"net.prototxt:3: layer 'n' (PriorBox): {what}" in said


def test_a_number_that_only_building_reads() -> None:
    """Proposal's anchors: their sizes play no part in the shapes."""
    text = (HERE / "cases" / "proposal_scale" / "proposal_one_image.prototxt").read_text()
    Path("net.prototxt").write_text(text.replace("ratio: 0.5", "ratio: nan"))
    with pytest.raises(CaffePortError, match=r"layer 'proposal' \(Proposal\): proposal_param: ratio is nan"):
        api.port("net.prototxt")


def test_an_infinite_filler_warns_of_nothing() -> None:
    fields = 'num_output: 4 weight_filler { type: "gaussian" std: inf }'
    Path("net.prototxt").write_text(
        f'{DATA}layer {{ name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param {{ {fields} }} }}'
    )
    weight = api.load("net.prototxt").ip.weight
    assert torch.isinf(weight).any()


# -- masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [-1, 80, -(1 << 40)])
@pytest.mark.parametrize("type_", UNPOOLINGS)
def test_a_mask_index_outside(
    type_: str, place: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer names the index and the range; the formula does not count a negative one from the end."""
    text = MASK.replace("SHIFT", str(place))
    text += f'layer {{ name: "up" type: "{type_}" bottom: "x" bottom: "mask" top: "y" {UNPOOLINGS[type_]} }}'
    Path("net.prototxt").write_text(text)
    what = rf"^the mask holds index {place}; the top has the places 0 to 79$"
    with pytest.raises(IndexError, match=what):
        api.load("net.prototxt")(torch.ones(2, 3, 4, 5))
    row = next(row for row in verify("net.prototxt", against="numpy").rows if row.layer == "up")
    assert row.isolated is None
    cv2.imwrite("a.png", np.zeros((4, 5, 3), np.uint8))
    code, error = run("predict net.prototxt a.png", capfd, monkeypatch)
    assert code == 2
    assert f"the mask holds index {place}; the top has the places 0 to 79" in error


def test_the_data_are_to_blame_for_an_index() -> None:
    text = MASK.replace("SHIFT", "-1")
    text += f'layer {{ name: "up" type: "Upsample" bottom: "x" bottom: "mask" top: "y" {UNPOOLINGS["Upsample"]} }}'
    Path("net.prototxt").write_text(text)
    net = api.load("net.prototxt")
    with pytest.raises(IndexError) as caught:
        net(torch.ones(2, 3, 4, 5))
    assert guard.sentence(caught.value).startswith(
        "net.prototxt:3: layer 'up' (Upsample): the mask holds index -1; the top has the places 0 to 79\n  The data "
    )
