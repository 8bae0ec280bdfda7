"""What was typed, and the message that helps: see also test_before_torch.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN, ROOT

import caffe_port
from caffe_port.cli import main
from caffe_port.formats import caffemodel

CASE = GOLDEN / "layers" / "net_residual"
GRAY = """
layer { name: "data" type: "Input" top: "data" }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 5 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
        inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
"""
STAGED = """
layer { name: "train-data" type: "Data" top: "data" top: "label" include { stage: "train" }
        data_param { source: "x" batch_size: 2 } }
layer { name: "val-data" type: "Data" top: "data" top: "label" include { stage: "val" }
        data_param { source: "x" batch_size: 2 } }
layer { name: "own-data" type: "Input" top: "data" include { stage: "inference" }
        input_param { shape { dim: 2 dim: 3 dim: 9 dim: 7 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 4 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" exclude { stage: "inference" } }
layer { name: "softmax" type: "Softmax" bottom: "ip" top: "softmax" include { stage: "inference" } }
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def run(line: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["caffe-port", *line.split()])
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0), *capfd.readouterr()


def gray_net() -> None:
    """net.prototxt and net.caffemodel of a net that takes one channel."""
    Path("net.prototxt").write_text(GRAY)
    ported = caffe_port.port("net.prototxt", input_shapes={"data": (1, 1, 9, 7)})
    caffemodel.write("net.caffemodel", ported.definition.net, ported.net.blobs())


@pytest.mark.parametrize("command", ["convert {} -o out", "verify {}"])
def test_an_input_shape_that_does_not_fit(
    command: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gray_net()
    line = command.format("net.prototxt net.caffemodel --input-shape data=2,3,9,7")
    code, _, error = run(line, capfd, monkeypatch)
    assert code == 2
    assert "the shape (2, 3, 9, 7) that is given for 'data' has 3 channels; the weights ask for 1" in error
    assert "Give data=2,1,9,7." in error
    assert run(line.replace("2,3,9,7", "2,1,9,7"), capfd, monkeypatch)[0] == 0


def test_the_order_of_the_files_does_not_matter_to_load(tmp_path: Path) -> None:
    weights = CASE.with_suffix(".caffemodel")
    alone = caffe_port.load(weights)
    both = caffe_port.load(weights, CASE.with_suffix(".prototxt"))
    assert sum(p.numel() for p in alone.parameters()) == sum(p.numel() for p in both.parameters()) > 0


@pytest.mark.parametrize(
    ("function", "word", "meant"),
    [("load", "input_shape", "input_shapes"), ("port", "keep_losses", "keep_loss"), ("verify", "atoll", "atol")],
)
def test_a_keyword_that_does_not_exist(function: str, word: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"^{function}\(\) got an .*argument '{word}'\. Did you mean '{meant}'\?$"):
        getattr(caffe_port, function)("absent.prototxt", **{word: 1})
    with pytest.raises(TypeError, match=r"^convert\(\) got an unexpected keyword argument 'xyz'\.$"):
        caffe_port.convert(None, "x", xyz=1)  # type: ignore[call-arg, arg-type]


def test_a_stage_that_brings_layers_is_named(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("staged.prototxt").write_text(STAGED)
    code, _, notes = run("convert staged.prototxt -o out", capfd, monkeypatch)
    assert code == 0
    assert "2 layers of stage 'inference' (own-data, softmax) are left out; --stage inference takes them" in notes
    assert "stage 'train'" not in notes
    code, _, notes = run("convert staged.prototxt -o inference --stage inference", capfd, monkeypatch)
    assert code == 0
    assert "stage" not in notes
    assert "Softmax" in Path("inference/model.py").read_text()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_gray_pictures(
    channels: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gray for a net that takes one channel; for one that takes three, each is the same."""
    import cv2

    Path("net.prototxt").write_text(GRAY)
    ported = caffe_port.port("net.prototxt", input_shapes={"data": (1, channels, 9, 7)})
    caffemodel.write("net.caffemodel", ported.definition.net, ported.net.blobs())
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (6, 9, 7), np.uint8)
    for k, picture in enumerate(pictures):
        Path(f"set/{k % 2}").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(f"set/{k % 2}/{k}.png", picture)
    code, out, error = run("evaluate net.prototxt net.caffemodel --data set -o r.json", capfd, monkeypatch)
    assert code == 0, error
    images = np.stack([pictures[k] for k in (0, 2, 4, 1, 3, 5)])
    images = images if channels == 1 else np.stack([images] * 3, 3)
    np.savez("set.npz", images=images, labels=[0, 0, 0, 1, 1, 1])
    _, same, _ = run("evaluate net.prototxt net.caffemodel --data set.npz", capfd, monkeypatch)
    figure = re.compile(r"[\d.]+ % of 6 \(\d correct")
    assert figure.search(out)[0] == figure.search(same)[0]  # type: ignore[index]
    assert ("GRAY" in out) == (channels == 1)
    assert '"total": 6' in Path("r.json").read_text()


def test_what_is_done_to_the_images_is_said(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    gray_net()
    np.savez("set.npz", images=np.zeros((2, 9, 7), np.uint8), labels=[0, 1])
    line = "evaluate net.prototxt net.caffemodel --data set.npz"
    _, out, error = run(f"{line} --mean 12 --std 3", capfd, monkeypatch)
    assert "only what is given (std, mean) is done" in error
    assert "as they are" not in error
    assert "GRAY, (x - 12) / 3 (given: std, mean)" in out
    _, out, error = run(line, capfd, monkeypatch)
    assert "images are used as they are, 0..255" in error


def test_nothing_is_wrapped_in_a_pipe(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that names a file and its line stays one; names are whole."""
    monkeypatch.delenv("COLUMNS")
    name = "a_layer_with_a_name_that_is_longer_than_the_column_for_it_in_any_terminal_" * 2
    folder = Path("a_folder_whose_name_is_long" * 3)
    folder.mkdir()
    text = CASE.with_suffix(".prototxt").read_text().replace('name: "c2"', f'name: "{name}"')
    path = folder / "net.prototxt"
    path.write_text(text)
    shutil.copy(CASE.with_suffix(".caffemodel"), folder / "w.caffemodel")
    _, out, _ = run(f"verify {path} --against numpy --all", capfd, monkeypatch)
    assert any(line.startswith(name) for line in out.splitlines())
    _, out, _ = run(f"inspect {path}", capfd, monkeypatch)
    assert name in out


OVERWRITING = {
    "dump net.prototxt net.caffemodel -o net.caffemodel": "net.caffemodel",
    "dump net.prototxt net.caffemodel --by numpy -o ./net.prototxt": "net.prototxt",
    "verify net.prototxt net.caffemodel --html net.prototxt": "net.prototxt",
    "verify net.prototxt net.caffemodel --junit net.caffemodel": "net.caffemodel",
    "verify net.prototxt net.caffemodel --input data=a.npy --html a.npy": "a.npy",
    "verify net.prototxt net.caffemodel --against port.py:Net --html port.py": "port.py",
    "predict net.prototxt net.caffemodel a.png --draw a.png": "a.png",
    "log a.log --csv a.log": "a.log",
    "log a.log --plot a.png --plot a.log": "a.log",
    "evaluate net.prototxt net.caffemodel -o net.prototxt": "net.prototxt",
    "evaluate net.prototxt net.caffemodel --labels a.txt --confusion a.txt": "a.txt",
    "convert net.prototxt --input-shape data=1,1,9,7 -o . --force --caffemodel w.safetensors": "net.prototxt",
}


@pytest.mark.parametrize("line", OVERWRITING)
def test_an_output_does_not_overwrite_an_input(line, capfd, monkeypatch) -> None:
    gray_net()
    for name in ("a.npy", "port.py", "a.png", "a.log", "a.txt", "w.safetensors"):
        Path(name).write_text("x = 1\n")
    before = {path: path.read_bytes() for path in Path().iterdir()}
    code, out, error = run(line, capfd, monkeypatch)
    assert (code, out) == (2, "")
    assert f"error: {OVERWRITING[line]}: is an input, which the output would overwrite\n" in error
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


def test_a_link_to_an_input_is_that_input(capfd, monkeypatch) -> None:
    gray_net()
    Path("report.html").symlink_to("net.prototxt")
    code, _, error = run("verify net.prototxt net.caffemodel --html report.html", capfd, monkeypatch)
    assert code == 2
    assert "report.html: is an input" in error


def test_two_outputs_are_two_files(capfd, monkeypatch) -> None:
    gray_net()
    code, _, error = run("verify net.prototxt net.caffemodel --html r --junit ./r", capfd, monkeypatch)
    assert code == 2
    assert "error: r: is named for two outputs\n  Name a file for each.\n" in error
    line = "verify net.prototxt net.caffemodel --input-shape data=2,1,9,7 --html /dev/null --junit /dev/null"
    assert run(line, capfd, monkeypatch)[0] == 0
    Path("r").write_text("of an earlier run")
    assert run(f"{line} --html r", capfd, monkeypatch)[0] == 0


def test_drawings_do_not_overwrite_the_images(capfd, monkeypatch) -> None:
    gray_net()
    Path("images").mkdir()
    for name in ("a.png", "b.png"):
        shutil.copy(ROOT / "docs" / "images" / "seven.png", Path("images", name))
    code, _, error = run("predict net.prototxt net.caffemodel images --draw images", capfd, monkeypatch)
    assert code == 2
    assert "error: images/a.png: is an input" in error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("line", ["inspect net.prototxt", "doctor", "--help"])
def test_a_full_disk_names_stdout(line: str) -> None:
    gray_net()
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "caffe_port", *line.split()]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: stdout: No space left on device\n")


@pytest.mark.parametrize("line", ["inspect .", "convert . -o out", "verify ."])
def test_a_folder_in_place_of_a_net(line: str, capfd, monkeypatch) -> None:
    code, _, error = run(line, capfd, monkeypatch)
    assert code == 2
    assert error.startswith("error: .: is a folder; expected a file\n  Name the files in it, or run caffe-port survey")


def test_an_address_in_place_of_a_file(capfd, monkeypatch) -> None:
    code, _, error = run("inspect https://example.com/net.prototxt", capfd, monkeypatch)
    assert code == 2
    assert "Download it first" in error


def test_images_before_the_net(capfd, monkeypatch) -> None:
    gray_net()
    shutil.copy(ROOT / "docs" / "images" / "seven.png", "a.png")
    code, _, error = run("predict a.png net.prototxt", capfd, monkeypatch)
    assert code == 2
    assert "net.prototxt: is not an image\n  The net comes first, then the images." in error


def test_a_wrong_line_is_still_completed() -> None:
    gray_net()
    line = "caffe-port verify net.prototxt --html net.prototxt --ju"
    words = {"_CAFFE_PORT_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": "5"}
    command = [sys.executable, "-c", "from caffe_port.cli import main; main()"]
    done = subprocess.run(command, env=os.environ | words, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("plain,--junit\n", "")
