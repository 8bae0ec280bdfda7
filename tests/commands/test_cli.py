"""The command line as a user meets it, on real and on wrong files."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import click
import numpy as np
import pytest
from conftest import GOLDEN, ROOT

from caffe_port import __main__
from caffe_port.cli import cli, main
from caffe_port.commands import demo_files
from caffe_port.formats import caffemodel

NET = """
name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 7 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 5 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip"
        inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
"""
CASE = GOLDEN / "layers" / "net_residual"


@dataclass(frozen=True)
class Result:
    """What one call printed."""

    stdout: str
    stderr: str


class Run(Protocol):
    def __call__(self, *args: object, code: int = 0) -> Result: ...


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs ``caffe-port ARGS`` in this process, by its entry point, and checks the exit code."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")

    def call(*args: object, code: int = 0) -> Result:
        monkeypatch.setattr(sys, "argv", ["caffe-port", *map(str, args)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        result = Result(*capfd.readouterr())
        assert caught.value.code == code, f"{args}: exit code {caught.value.code}\n{result.stdout}\n{result.stderr}"
        return result

    return call


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.prototxt"
    path.write_text(NET)
    return path


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from caffe_port.cli import cli; "
        "cli(['--help'], standalone_mode=False); assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "convert" in result.stdout


def test_inspect_does_not_import_torch(net: Path) -> None:
    code = (
        "import sys; from caffe_port.cli import cli; "
        f"cli(['inspect', {str(net)!r}], standalone_mode=False); assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "5x3x3x3" in result.stdout


def test_torch_is_imported_without_looking_for_garbage(tmp_path: Path) -> None:
    code = (
        "import atexit, gc, sys; from caffe_port.cli import main; seen = []; "
        "gc.callbacks.append(lambda phase, _: seen.append(phase)); atexit.register(lambda: print(len(seen))); "
        "main()"
    )
    arguments = ["convert", str(CASE.with_suffix(".caffemodel")), "-o", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) < 400, "import torch alone has 800"


@pytest.mark.parametrize(("code", "expected"), [(None, []), ("text", []), (2, [2])])
def test_python_prints_what_is_no_exit_code(code: object, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr("os._exit", left.append)
    monkeypatch.setattr("atexit._run_exitfuncs", lambda: None)
    monkeypatch.setattr("threading.active_count", lambda: 1)
    monkeypatch.setattr(__main__, "USERS", ())
    __main__._leave(code)
    assert left == expected


def test_the_process_ends_at_once(net: Path, tmp_path: Path) -> None:
    """But for what a user's code has left open."""
    code = (
        "import atexit, os, sys; from caffe_port import __main__; end = os._exit; "
        "os._exit = lambda code: (os.write(1, b'at once'), end(code)); "
        "atexit.register(lambda: print('as asked', flush=True)); __main__.main()"
    )

    def run(*arguments: str) -> tuple[int, str]:
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path)
        return done.returncode, done.stdout

    code_, said = run("inspect", str(net))
    assert (code_, said[-16:]) == (0, "as asked\nat once"), said
    assert run("inspect", str(tmp_path / "no.prototxt")) == (2, "as asked\nat once")
    (tmp_path / "script.py").write_text("file = open('left', 'w')\nfile.write('text')\n")
    assert run("run", "script.py") == (0, "as asked\n")
    assert (tmp_path / "left").read_text() == "text"
    (tmp_path / "port.py").write_text("from torch.nn import ReLU\nfile = open('of a port', 'w')\nfile.write('text')\n")
    run("verify", str(net), "--against", "port.py:ReLU")
    assert (tmp_path / "of a port").read_text() == "text"


def test_convert_verify_inspect(run: Run, tmp_path: Path) -> None:
    prototxt, weights = CASE.with_suffix(".prototxt"), CASE.with_suffix(".caffemodel")
    out = tmp_path / "out"
    assert "bit-equal" in run("convert", weights, prototxt, "-o", out).stdout
    assert sorted(p.name for p in out.iterdir()) == ["model.py", "port.json", "weights.safetensors"]
    assert "not empty" in run("convert", prototxt, weights, "-o", out, code=2).stderr
    run("convert", prototxt, weights, "-o", out, "--force")
    report = json.loads(run("verify", prototxt, weights, "--json").stdout)
    assert report["passed"]
    assert report["compared"] == len(report["rows"]) > 3
    shown = json.loads(run("inspect", prototxt, weights, "--json").stdout)
    assert shown["totals"]["parameters"] > 0
    assert "net_residual" in run("inspect", prototxt).stdout


def test_verify_against_a_trace_fails_on_a_wrong_weight(run: Run, tmp_path: Path) -> None:
    prototxt, weights = CASE.with_suffix(".prototxt"), CASE.with_suffix(".caffemodel")
    run("verify", prototxt, weights, "--against", CASE.with_suffix(".npz"))
    stored = caffemodel.read(weights)
    assert stored.net is not None
    blobs = {layer.name: [blob.copy() for blob in layer.blobs] for layer in stored.layers}
    blobs["c2"][0][1, 2, 0, 1] += 0.01
    caffemodel.write(tmp_path / "wrong.caffemodel", stored.net, blobs)
    result = run("verify", prototxt, tmp_path / "wrong.caffemodel", "--against", CASE.with_suffix(".npz"), code=1)
    assert "FAILED" in result.stdout
    assert "c2" in result.stdout


def test_convert_without_weights_says_so(run: Run, net: Path, tmp_path: Path) -> None:
    result = run("convert", net, "-o", tmp_path / "out")
    assert "initialized from the fillers" in result.stderr


def test_plugin(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from caffe_port.layers import Layer\nclass Doubled(Layer):\n    def forward(self, x):\n        return x + x\n"
    )
    net = tmp_path / "n.prototxt"
    net.write_text(NET + 'layer { name: "d" type: "Doubled" bottom: "ip" top: "d" }\n')
    assert "'d' (Doubled)" in run("convert", net, "-o", tmp_path / "a", code=2).stderr
    run("convert", net, "-o", tmp_path / "b", "--plugin", tmp_path / "mine.py")
    assert "class Doubled(nn.Module)" in (tmp_path / "b" / "model.py").read_text()


WRONG = {
    "empty.caffemodel": (b"", "is empty"),
    "picture.caffemodel": (b"\x89PNG\r\n\x1a\n" + bytes(64), "is a PNG image"),
    "cut.caffemodel": (CASE.with_suffix(".caffemodel").read_bytes()[:-100], "the file is damaged"),
    "nothing.prototxt": (b"", "contains no layers"),
    "nested.prototxt": (b"layer { " * 10_000, "nested more than 100 deep"),
    "typo.prototxt": (NET.replace("num_output: 5", "num_ouput: 5").encode(), "Did you mean 'num_output'?"),
    "huge.prototxt": (NET.replace("dim: 9 dim: 7", "dim: 1000000 dim: 1000000").encode(), "Caffe's limit is 2^31 - 1"),
    "missing.prototxt": (NET.replace('bottom: "pool"', 'bottom: "pol"').encode(), "Did you mean 'pool'?"),
    "cycle.prototxt": (NET.replace('bottom: "data"', 'bottom: "ip"').encode(), "does not exist yet: layer 'ip'"),
    "unknown.prototxt": (NET.replace('"ReLU"', '"Foo"').replace('"Pooling"', '"Bar"').encode(), "2 layers have a type"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_one_clear_line(run: Run, name: str, tmp_path: Path) -> None:
    data, text = WRONG[name]
    (tmp_path / name).write_bytes(data)
    for command in ("convert", "verify"):
        extra = ("-o", tmp_path / "out") if command == "convert" else ()
        result = run(command, tmp_path / name, *extra, code=2)
        assert text in result.stderr
        assert result.stderr.startswith("error: ")
        assert "Traceback" not in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == [name], "nothing is left behind"


def test_folders_and_missing_files(run: Run, net: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.caffemodel").mkdir()
    assert "is a folder" in run("convert", tmp_path / "folder.caffemodel", "-o", tmp_path / "o", code=2).stderr
    assert "No such file" in run("inspect", tmp_path / "absent.prototxt", code=2).stderr
    (tmp_path / "file").write_text("")
    assert "error:" in run("convert", net, "-o", tmp_path / "file" / "out", code=2).stderr
    assert "both prototxt" in run("convert", net, net, "-o", tmp_path / "o", code=2).stderr
    assert not (tmp_path / "o").exists()


def test_bad_usage(run: Run, net: Path, tmp_path: Path) -> None:
    assert "NAME=N,C,H,W" in run("convert", net, "-o", tmp_path / "o", "--input-shape", "data", code=2).stderr
    assert (
        "has no input 'dta'" in run("convert", net, "-o", tmp_path / "o", "--input-shape", "dta=1,3,9,7", code=2).stderr
    )
    run("convert", net, code=2)
    run("nonsense", code=2)


def test_names_cannot_steer_the_terminal(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "n.prototxt"
    path.write_text(NET.replace('bottom: "pool"', r'bottom: "\033[2J\007"'))
    result = run("convert", path, "-o", tmp_path / "o", code=2)
    assert "\x1b" not in result.stderr
    assert "\x07" not in result.stderr


def test_demo(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last lines are pasted into a shell as they are; after `make demo`, no virtual environment is active."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    folder = tmp_path / "Bob's demo"
    result = run("demo", "-o", folder)
    assert "90.31 % of CIFAR-10's test images" in result.stdout
    assert "all 52 compared tops agree" in result.stdout
    assert run("demo", "-o", folder, code=2).stderr.startswith("error:")
    _, _, pasted = result.stdout.partition("4. use it\n")
    done = subprocess.run(["sh"], input=pasted, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("SimplenetSlim300kCifar10(\n")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert demo_files.usage("demo", "Net").startswith("cd demo && python -c '\nfrom model import Net\n")


def test_the_wrong_prototxt(run: Run, shared: Path, tmp_path: Path) -> None:
    folder = shared / "models/simplenet/mnist_9972"
    files = folder / "train_test.prototxt", folder / "weights.caffemodel"
    error = run("convert", *files, "-o", tmp_path / "o", code=2).stderr
    assert (
        "layer 'conv1' holds weight (32, 1, 3, 3), the prototxt asks for (64, 1, 3, 3); 18 of 34 layers differ" in error
    )
    assert "run without the prototxt" in error
    compared = run("inspect", "--diff", *files, code=1).stdout
    assert "64x1x3x3, 64" in compared
    assert "32x1x3x3, 32" in compared


def test_dump_and_verify_against_it(run: Run, tmp_path: Path) -> None:
    files = CASE.with_suffix(".prototxt"), CASE.with_suffix(".caffemodel")
    assert "11 tops" in run("dump", *files, "-o", tmp_path / "t.npz", "--by", "numpy").stdout
    page, junit = tmp_path / "r.html", tmp_path / "r.xml"
    run("verify", *files, "--against", tmp_path / "t.npz", "--html", page, "--junit", junit, "--strict")
    assert "<html" in page.read_text()
    assert 'failures="0"' in junit.read_text()
    run("dump", *files, code=2)
    compile(run("dump", "--script").stdout, "record.py", "exec")


def test_verify_somebodys_port(run: Run, tmp_path: Path) -> None:
    files = CASE.with_suffix(".prototxt"), CASE.with_suffix(".caffemodel")
    run("convert", *files, "-o", tmp_path / "out")
    model = tmp_path / "out" / "model.py"
    assert "PASSED" in run("verify", *files, "--against", f"{model}:NetResidual").stdout
    slip = tmp_path / "slip.py"
    slip.write_text(
        model.read_text().replace("F.relu", "torch.sigmoid").replace("nn.ReLU(inplace=True)", "nn.Sigmoid()", 1)
    )
    assert "FAILED" in run("verify", *files, "--against", f"{slip}:NetResidual", code=1).stdout
    assert "is not a file" in run("verify", *files, "--against", "absent.py:Net", code=2).stderr


def test_inputs_by_name(run: Run, tmp_path: Path) -> None:
    files = CASE.with_suffix(".prototxt"), CASE.with_suffix(".caffemodel")
    with np.load(CASE.with_suffix(".npz")) as golden:
        np.save(tmp_path / "x.npy", golden["in:x"])
    run("verify", *files, "--input", f"x={tmp_path / 'x.npy'}")
    run("verify", *files, "--input", tmp_path / "x.npy")
    assert "has no input 'z'" in run("verify", *files, "--input", f"z={tmp_path / 'x.npy'}", code=2).stderr


def test_train_resume_and_log(run: Run, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 9, 7, 3), np.uint8)
    labels = np.arange(40) % 4
    np.savez(tmp_path / "d.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    net = NET.replace(
        'type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 7 } }',
        'type: "Data" top: "data" top: "label" data_param { source: "d" batch_size: 10 }',
    )
    (tmp_path / "net.prototxt").write_text(
        net + 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }\n'
    )
    (tmp_path / "solver.prototxt").write_text(
        'net: "net.prototxt" base_lr: 0.01 lr_policy: "fixed" momentum: 0.9 max_iter: 6 snapshot: 3 display: 2 '
        'test_iter: 4 test_interval: 3 snapshot_prefix: "s" random_seed: 1'
    )
    command = ("train", tmp_path / "solver.prototxt", "--data", tmp_path / "d.npz", "-o", tmp_path / "run")
    first = run(*command, "--max-iter", 3, "--device", "cpu")
    assert "loss = " in first.stdout
    assert "iteration 3: snapshot" in first.stderr
    again = run(*command, "--resume", "--device", "cpu")
    assert "after 6 iterations" in again.stdout
    odd = run(*command[:-1], tmp_path / "odd", "--max-iter", 5, "--device", "cpu")
    assert "loss = " in odd.stdout
    assert "after 5 iterations" in odd.stdout, "tested at the end, also between two multiples of test_interval"
    assert "iteration 5: test" in odd.stderr
    assert (tmp_path / "run" / "last.caffemodel").exists()
    assert "error: " in run("train", tmp_path / "absent.prototxt", "-o", tmp_path / "r", code=2).stderr


def test_log(run: Run, shared: Path, tmp_path: Path) -> None:
    result = run("log", shared / "models/simplenet/logs/mnist_9972.log", "--csv", tmp_path / "l.csv")
    assert "best test accuracy 99.72 % at iteration 36,600" in result.stdout
    assert (tmp_path / "l.csv").read_text().count("\n") > 100
    assert json.loads(run("log", shared / "models/simplenet/logs/mnist_9972.log", "--json").stdout)


def test_reproduce_list(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CAFFE_PORT_CACHE", str(tmp_path))
    listed = run("reproduce", "--list").stdout
    assert "99.72" in listed
    assert "caffe-port reproduce mnist-slim-310k" in listed
    assert len(json.loads(run("reproduce", "--list", "--json").stdout)) > 10
    assert "Did you mean" in run("reproduce", "mnist-slim-310", "--offline", code=2).stderr


def test_stub_and_back_to_caffe(run: Run, tmp_path: Path, net: Path) -> None:
    net.write_text(NET.replace('"ReLU"', '"Foo"'))
    run("convert", net, "-o", tmp_path / "s", "--stub")
    assert 'Stub("Foo")' in (tmp_path / "s" / "model.py").read_text()
    files = CASE.with_suffix(".prototxt"), CASE.with_suffix(".caffemodel")
    run("convert", *files, "-o", tmp_path / "out")
    state = tmp_path / "out" / "weights.safetensors"
    run("convert", files[0], "--caffemodel", state, "-o", tmp_path / "back")
    run("verify", *sorted((tmp_path / "back").iterdir()), "--against", CASE.with_suffix(".npz"))


# -- help and usage -------------------------------------------------------------------------------------------------

COMMANDS = sorted(cli.commands)


def examples(name: str) -> list[str]:
    """The lines under Examples of a command's help, with continued ones joined."""
    text = (cli.commands[name].epilog or "").partition("Examples:\n")[2].partition("\n\n")[0]
    return [line.strip() for line in text.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_reads_like_a_man_page(run: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run(name, "--help").stdout
    assert all(len(line) <= 80 for line in shown.splitlines()), "no line is wider than a terminal"
    assert "..." not in shown.partition("Options:")[0].replace("FILE...", ""), "a sentence is cut"
    order = [shown.index(part) for part in ("Usage:", "Options:", "  Examples:", "  Exit codes:")]
    assert order == sorted(order)
    command = cli.commands[name]
    assert ("  Arguments:" in shown) == any(isinstance(p, click.Argument) for p in command.params)
    assert cli.commands[name].get_short_help_str(62).endswith("."), "the summary in caffe-port --help is cut"
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{option.name} has no help"
            if not option.is_flag and not isinstance(option.type, click.Choice):
                assert option.metavar, f"{option.name} has no metavar"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_the_help_are_commands(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option and value is taken; no file is opened for it."""
    found = examples(name)
    assert found
    for line in found:
        words = shlex.split(line.partition(" > ")[0].partition(" >> ")[0])
        at = words.index("caffe_port" if words[0] == "torchrun" else "caffe-port") + 1
        assert words[at] == name
        monkeypatch.setattr(cli.commands[name], "callback", lambda **_: None)
        assert cli.main(words[at:], prog_name="caffe-port", standalone_mode=False) in (None, 0), line


def test_usage_errors_are_one_line_and_a_hint(run: Run, net: Path) -> None:
    wrong = {
        ("verfy",): "No such command 'verfy'. Did you mean 'verify'?",
        ("convert", net, "--outptu", "x"): "No such option",
        ("convert", net): "Missing option '-o' / '--output'.",
        ("convert", net, "-o", "x", "--format", "foo"): "'foo' is not one of 'torch', 'onnx', 'pt2', 'safetensors'.",
        ("convert", net, "-o", "x", "--format", "safetensors"): "--format safetensors alone needs WEIGHTS",
        ("completion",): "Missing argument",
        ("train", "s.prototxt", "-o", "x", "--epochs", "0"): "0.0 is not in the range",
        ("dump", net): "dump needs -o FILE.npz",
    }
    for arguments, text in wrong.items():
        first, hint = run(*arguments, code=2).stderr.splitlines()
        assert first.startswith("error: ")
        assert text in first
        assert hint == f"  See caffe-port{'' if arguments[0] == 'verfy' else ' ' + str(arguments[0])} --help"
    assert "Commands:" in run(code=2).stderr


def test_version_names_what_matters_without_importing_it(run: Run) -> None:
    shown = dict(line.split() for line in run("--version").stdout.splitlines())
    assert list(shown)[:6] == ["caffe-port", "python", "torch", "torchvision", "protobuf", "numpy"]
    assert shown["python"] == platform.python_version()
    assert shown["numpy"] == np.__version__
    code = (
        "import sys; from caffe_port.cli import cli; cli(['--version'], standalone_mode=False); "
        "assert not {'torch', 'numpy', 'cv2', 'google.protobuf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_building_a_net_does_not_import_sympy() -> None:
    """Which takes longer than all else, and comes along when an operator runs on the meta device by way of Python."""
    files = [str(CASE.with_suffix(suffix)) for suffix in (".prototxt", ".caffemodel")]
    code = f"import sys, caffe_port; caffe_port.load(*{files!r}); assert 'sympy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("shell", "words"), [("bash", "complete "), ("zsh", "compdef "), ("fish", "complete --")])
def test_completion(run: Run, shell: str, words: str) -> None:
    script = run("completion", shell).stdout
    assert words in script
    assert f"_CAFFE_PORT_COMPLETE={shell}_complete" in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(run: Run, tmp_path: Path) -> None:
    """A shell that read the script completes commands, options, choices and files."""
    (tmp_path / "caffe-port").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m caffe_port "$@"\n')
    (tmp_path / "caffe-port").chmod(0o755)
    (tmp_path / "script").write_text(run("completion", "bash").stdout)
    asked = [("caffe-port", "ver"), ("caffe-port", "convert", "--fo"), ("caffe-port", "verify", "--mode", "iso")]
    program = ". ./script\n"
    for words in asked:
        quoted = " ".join(words)
        program += f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMPREPLY=()\n"
        program += f"_caffe_port_completion caffe-port; echo {words[-1]}: ${{COMPREPLY[*]}}\n"
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["ver: verify", "--fo: --format --force --fold", "iso: isolated"], done.stderr
