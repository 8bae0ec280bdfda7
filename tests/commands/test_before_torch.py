"""Errors that can be known without torch come before it is imported: at once, not after seconds.

All lines run in one process in which importing torch fails and a few packages are missing.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import GOLDEN, ROOT

from caffe_port.commands import checks

CASE = GOLDEN / "layers" / "net_residual"

RUNNER = """
import contextlib, io, json, sys
MISSING = {"onnx", "matplotlib", "tensorboard", "onnxruntime", "openvino"}
tried = []
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            tried.append(name)
            raise ImportError("torch was imported")
        if name in MISSING:
            raise ImportError(name)
sys.meta_path.insert(0, Finder())
from caffe_port.cli import main
results = []
for words in json.load(sys.stdin):
    sys.argv = ["caffe-port", *words]
    tried.clear()
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as error:
            code = error.code
    results.append([code, out.getvalue(), err.getvalue(), list(tried)])
json.dump(results, sys.stdout)
"""

EXPECTED = {
    "convert absent.prototxt -o o": "absent.prototxt: cannot be read: No such file",
    "convert net.prototxt absent.caffemodel -o o": "absent.caffemodel: cannot be read: No such file",
    "convert w.caffemodel -o full": "full: is not empty",
    "convert w.caffemodel -o text.txt/out": "text.txt/out: cannot be created: 'text.txt' is a file",
    "convert w.caffemodel -o text.txt": "text.txt: is a file; expected a folder",
    "convert w.caffemodel -o o --format onnx": "--format onnx requires onnx\n  pip install 'caffe-port[onnx]'",
    "convert weights.safetensors -o o": "is a .safetensors file, not a .caffemodel\n  convert writes such files. Give",
    "convert net.prototxt weights.safetensors -o o": "Give the .caffemodel from which it was converted",
    "convert seven.caffemodel -o o": "is a PNG image, not a .caffemodel",
    "convert solver.prototxt -o o": "solver.prototxt",
    "convert w.caffemodel -o o --labels absent.txt": "absent.txt: cannot be read",
    "convert w.caffemodel -o o --mean absent.npy": "absent.npy: cannot be read",
    "convert net.prototxt -o o --caffemodel absent.pt": "absent.pt: cannot be read",
    "convert w.caffemodel -o o --plugin absent.py": "does not exist; --plugin takes a Python file",
    "convert net.prototxt net.prototxt -o o": "are both prototxt texts",
    "convert w.caffemodel -o o --format safetensors --fold": "cannot be combined with --fold",
    "verify absent.caffemodel": "absent.caffemodel: cannot be read",
    "verify net.prototxt absent.caffemodel": "absent.caffemodel: cannot be read",
    "verify w.caffemodel --html nowhere/r.html": "nowhere/r.html: cannot be written: No such file or directory",
    "verify w.caffemodel --junit nowhere/r.xml": "Create the folder 'nowhere' first.",
    "verify w.caffemodel --html full": "full: is a folder; expected the name of a file",
    "verify w.caffemodel --against model.py": "it has Net\n  Name it: --against model.py:Net",
    "verify w.caffemodel --against two.py": "it has A and B\n  Choose one: two.py:A, two.py:B",
    "verify w.caffemodel --against text.py": "text.py:1: is not a Python file",
    "verify w.caffemodel --against absent.py:Net": "absent.py: is not a file",
    "verify w.caffemodel --against absent.npz": "absent.npz: cannot be read",
    "verify w.caffemodel --against text.txt": "is not a trace",
    "verify w.caffemodel --against tensorflow": "cannot compare with 'tensorflow'",
    "verify w.caffemodel --against caffe": "has no pycaffe",
    "dump net.prototxt -o t.npz --by caffe": "has no pycaffe",
    "train solver.prototxt -o text.txt/run": "text.txt/run: cannot be created",
    "verify w.caffemodel --against absent.onnx": "absent.onnx: does not exist, or is not a file",
    "verify w.caffemodel --against openvino:absent.onnx": "absent.onnx: does not exist, or is not a file",
    "verify w.caffemodel --against openvino": "openvino is not installed",
    "verify w.caffemodel --against text.onnx": "onnxruntime is not installed",
    "verify w.caffemodel --state w.pt": "a state needs a hand-written port",
    "verify w.caffemodel --against model.py:Net --state absent.pt": "absent.pt: cannot be read",
    "verify w.caffemodel --against model.py:Net --strict": "strict applies only to a converted net",
    "verify w.caffemodel --backward": "gradients are compared with a trace",
    "verify w.caffemodel --input absent.npy": "absent.npy: cannot be read",
    "verify w.caffemodel --input a=x.npy --input absent.npy": "several inputs need names",
    "verify w.caffemodel --mean absent.binaryproto": "absent.binaryproto: cannot be read",
    "dump net.prototxt": "dump needs -o FILE.npz",
    "dump absent.prototxt -o t.npz": "absent.prototxt: cannot be read",
    "dump net.prototxt -o nowhere/t.npz": "nowhere/t.npz: cannot be written",
    "dump net.prototxt -o t.npz --input absent.npy": "absent.npy: cannot be read",
    "predict absent.prototxt seven.png": "absent.prototxt: cannot be read",
    "predict net.prototxt absent.png": "absent.png: cannot be read",
    "predict net.prototxt text.txt": "text.txt: is not an image",
    "predict net.prototxt": "give at least one image",
    "predict full seven.png": "is not a folder that convert wrote",
    "predict net.prototxt empty": "empty: contains no images",
    "predict net.prototxt seven.png --draw nowhere/x.png": "nowhere/x.png: cannot be written",
    "predict net.prototxt seven.png --draw x.txt": "cannot be written as '.txt'",
    "predict net.prototxt seven.png --labels absent.txt": "absent.txt: cannot be read",
    "evaluate net.prototxt --data mnist": "evaluate needs weights",
    "evaluate absent.caffemodel --data set.npz": "absent.caffemodel: cannot be read",
    "evaluate w.caffemodel --data mnist --root empty": "missing t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte (or",
    "evaluate w.caffemodel --data cifar100 --root nowhere": "missing cifar-100-python/train, cifar-100-python/test",
    "evaluate w.caffemodel --data mnist --root .": "It is in mnist: give that as --root.",
    "evaluate w.caffemodel --data cifar": "Did you mean 'cifar10'?",
    "evaluate w.caffemodel --data absent.npz": "absent.npz: cannot be read",
    "evaluate w.caffemodel --data seven.png": "is one image, not a data set with labels\n  To see what",
    "evaluate w.caffemodel --data pictures": "it has images, but no folders",
    "evaluate w.caffemodel --data set.npz --confusion c.png": "a plot requires matplotlib\n  pip install",
    "evaluate w.caffemodel --data set.npz -o nowhere/x.json": "nowhere/x.json: cannot be written",
    "evaluate w.caffemodel --data set.npz --std text": "--std takes numbers",
    "train absent.prototxt -o run": "absent.prototxt: cannot be read",
    "train net.prototxt -o run": "net.prototxt: is a net, not a solver\n  Give the solver.prototxt",
    "train solver.prototxt -o run": "'absent_lmdb' does not exist (looked in . and in the current folder)\n",
    "train netless.prototxt -o run": "its net 'absent.prototxt' is neither in its folder",
    "train typo.prototxt -o run": "solver type 'SDG' is not one of",
    "train solver.prototxt -o used": "used: already contains a run",
    "train solver.prototxt -o text.txt": "text.txt: is a file; expected a folder",
    "train solver.prototxt -o run --resume w.caffemodel": "Start a new training from it with --weights",
    "train solver.prototxt -o run --resume absent.solverstate": "absent.solverstate: cannot be read",
    "train solver.prototxt -o run --weights absent.caffemodel": "absent.caffemodel: cannot be read",
    "train solver.prototxt -o run --weights x.solverstate": "Continue its training with --resume",
    "train solver.prototxt -o run --reference-log absent.log": "absent.log: cannot be read",
    "train solver.prototxt -o run --tensorboard": "--tensorboard requires tensorboard\n  pip",
    "train solver.prototxt -o run --data mnist --root empty": "incomplete: missing train-images-",
    "train solver.prototxt -o run --no-flip": "--seeds and --flip require --recipe",
    "train -o run": "give a SOLVER or --recipe",
    "train --recipe fast -o run": "--recipe requires --data",
    "train --recipe fast --data set.npz -o used": "used: already contains a run",
    "train --recipe fast --data set.npz -o run --weights w.caffemodel": "--recipe cannot be combined with --weights",
    "train --recipe fast --data svhn --root empty -o run": "missing train_32x32.mat",
    "train absent.prototxt --recipe fast --data set.npz -o run": "absent.prototxt: cannot be read",
    "log absent.log": "absent.log: cannot be read",
    "log text.txt": "is not a log of caffe train",
    "log text.txt --plot c.png": "a plot requires matplotlib",
    "log text.txt --csv nowhere/c.csv": "nowhere/c.csv: cannot be written",
    "reproduce mnist-slim-310": "Did you mean 'mnist-slim-310k'?",
    "reproduce simplenet-cifar10": "were not published",
    "inspect absent.prototxt": "absent.prototxt: cannot be read",
    "demo absent.caffemodel -o o": "absent.caffemodel: cannot be read",
    "demo -o full": "full: is not empty",
    "convert type.prototxt -o o": "1 layer has a type that is not supported:\n  type.prototxt:2: layer 'l'",
    "verify type.prototxt": "1 layer has a type that is not supported",
    "verify type.prototxt --against numpy --keep-loss": "1 layer has a type that is not supported",
    "dump type.prototxt -o t.npz": "1 layer has a type that is not supported",
    "predict type.prototxt seven.png": "1 layer has a type that is not supported",
    "evaluate type.prototxt w.caffemodel --data set.npz": "1 layer has a type that is not supported",
    "evaluate type.prototxt w.caffemodel": "1 layer has a type that is not supported",
    "train type_solver.prototxt -o run": "1 layer has a type that is not supported",
    "train type_solver.prototxt -o run --data set.npz": "1 layer has a type that is not supported",
    "convert python.prototxt -o o": "python.prototxt:2: layer 'l' (Python): runs the Python code code.Own, which works",
    "convert field.prototxt -o o": "field.prototxt:2",
    "convert wires.prototxt -o o": "wires.prototxt:2: layer 'l' (ReLU): bottom 'z' does not exist",
    "verify wires.prototxt": "wires.prototxt:2: layer 'l' (ReLU): bottom 'z' does not exist",
    "convert bottoms.prototxt -o o": "bottoms.prototxt:2: layer 'l' (BatchNorm): 2 bottoms; the layer takes 1",
    "convert tops.prototxt -o o": "tops.prototxt:2: layer 'l' (ReLU): has 2 tops, but this type produces 1",
    "convert kernel.prototxt -o o": "kernel.prototxt:2: layer 'l' (Convolution)",
    "predict kernel.prototxt seven.png": "kernel.prototxt:2: layer 'l' (Convolution)",
    "convert kernel.prototxt -o o --input-shape y=1,2,9,9": "has no input 'y'; its inputs are x",
    "convert params.prototxt -o o": "params.prototxt:2: layer 'l' (ReLU): has 1 param entries, but 0 blobs",
    "convert loss.prototxt -o o --keep-loss": "layer 'l' (SoftmaxWithLoss): 2 loss_weight values for 1",
    "convert wide.prototxt w.caffemodel -o o": "w.caffemodel: layer 'c1' holds weight",
    "verify wide.prototxt w.caffemodel": "the prototxt asks for (5, 3, 3, 3).\n  The caffemodel matches its own",
    "predict wide.prototxt w.caffemodel seven.png": "w.caffemodel: layer 'c1' holds weight",
    "convert other.prototxt w.caffemodel -o o": "contains no layer of this net; the net has none_such, the file has",
}
NETS = {
    "type": 'layer { name: "l" type: "Unheard" bottom: "x" top: "y" }',
    "python": 'layer { name: "l" type: "Python" bottom: "x" top: "y" python_param { module: "code" layer: "Own" } }'
    'layer { name: "a" type: "InnerProduct" bottom: "y" top: "z" inner_product_param { num_output: 2 } }',
    "field": 'layer { name: "l" type: "ReLU" bottom: "x" top: "y" relu_param { steepness: 2 } }',
    "wires": 'layer { name: "l" type: "ReLU" bottom: "z" top: "y" }',
    "bottoms": 'layer { name: "l" type: "BatchNorm" bottom: "x" bottom: "x" top: "y" }',
    "tops": 'layer { name: "l" type: "ReLU" bottom: "x" top: "y" top: "z" }',
    "kernel": 'layer { name: "l" type: "Convolution" bottom: "x" top: "y" '
    "convolution_param { num_output: 2 kernel_size: 9 } }",
    "params": 'layer { name: "l" type: "ReLU" bottom: "x" top: "y" param { lr_mult: 1 } }',
    "loss": 'layer { name: "l" type: "SoftmaxWithLoss" bottom: "x" bottom: "x" top: "y" '
    "loss_weight: 1 loss_weight: 2 }",
    "wide": 'layer { name: "c1" type: "Convolution" bottom: "x" top: "y" '
    "convolution_param { num_output: 5 kernel_size: 3 } }",
    "other": 'layer { name: "none_such" type: "Scale" bottom: "x" top: "y" }',
}
"""Name -> the second layer of a net, whose first one is an input x of shape (1, 3, 7, 5)."""
FINE = {"inspect model_defs/simplenet_cifar10.prototxt": "simplenet_cifar10", "log caffe.log": "1 test point"}
"""What works without torch, from any folder."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Line -> exit code, stdout, stderr, and what of torch it tried to import."""
    import cv2

    folder = tmp_path_factory.mktemp("before")
    shutil.copy(CASE.with_suffix(".caffemodel"), folder / "w.caffemodel")
    shutil.copy(CASE.with_suffix(".prototxt"), folder / "net.prototxt")
    for name in ("full", "empty", "pictures", "used", "mnist"):
        (folder / name).mkdir()
    for name in ("full/file", "used/config.json", "w.pt", "x.npy", "x.solverstate"):
        (folder / name).write_text("{}")
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte"):
        (folder / "mnist" / name).write_bytes(b"")
    (folder / "text.txt").write_text("some words\n")
    (folder / "text.onnx").write_text("some words\n")
    (folder / "text.py").write_text("some words\n")
    (folder / "model.py").write_text("class Net:\n    pass\n")
    (folder / "two.py").write_text("class A:\n    pass\n\nclass B:\n    pass\n")
    cv2.imwrite(str(folder / "seven.png"), np.zeros((9, 7), np.uint8))
    shutil.copy(folder / "seven.png", folder / "seven.caffemodel")
    shutil.copy(folder / "seven.png", folder / "pictures" / "1.png")
    header = json.dumps({"__metadata__": {}}).encode()
    (folder / "weights.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    np.savez(folder / "set.npz", images=np.zeros((2, 9, 7), np.uint8), labels=np.zeros(2, np.int64))
    data = 'layer { name: "d" type: "Data" top: "x" top: "l" data_param { source: "absent_lmdb" batch_size: 2 } }\n'
    loss = 'layer { name: "s" type: "SoftmaxWithLoss" bottom: "x" bottom: "l" top: "s" }\n'
    (folder / "train.prototxt").write_text(data + loss)
    rest = 'base_lr: 0.1 lr_policy: "fixed" max_iter: 2'
    (folder / "solver.prototxt").write_text(f'net: "train.prototxt" {rest}')
    (folder / "netless.prototxt").write_text(f'net: "absent.prototxt" {rest}')
    (folder / "typo.prototxt").write_text(f'net: "train.prototxt" type: "SDG" {rest}')
    for name, layer in NETS.items():
        source = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 dim: 7 dim: 5 } } }'
        (folder / f"{name}.prototxt").write_text(f"{source}\n{layer}\n")
    (folder / "type_solver.prototxt").write_text(f'net: "type.prototxt" {rest}')
    (folder / "caffe.log").write_text(
        "I0101 00:00:00.000000  1 solver.cpp:330] Iteration 0, Testing net (#0)\n"
        "I0101 00:00:01.000000  1 solver.cpp:397]     Test net output #0: accuracy = 0.5\n"
    )
    before = sorted(str(path) for path in folder.rglob("*"))
    lines = [*EXPECTED, *FINE]
    cache = str(tmp_path_factory.mktemp("cache"))
    env = {name: value for name, value in os.environ.items() if name != "CAFFE_PORT_PYCAFFE"}
    env |= {"CAFFE_PORT_CACHE": cache, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps([line.split() for line in lines]),
        capture_output=True,
        text=True,
        cwd=folder,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(str(path) for path in folder.rglob("*")) == before, "a command that fails leaves nothing"
    return dict(zip(lines, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("line", EXPECTED)
def test_the_error_comes_before_torch(results: dict[str, Any], line: str) -> None:
    code, _, error, tried = results[line]
    assert EXPECTED[line] in error
    assert (code, tried) == (2, []), error
    assert error.startswith("error: ")


@pytest.mark.parametrize("against", ["onnxruntime", "onnxruntime:m.onnx", "m.onnx"])
def test_a_runtime_is_not_taken_for_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, against: str) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").write_bytes(b"")
    checks.reference(against, None)


@pytest.mark.parametrize("line", FINE)
def test_some_commands_need_no_torch(results: dict[str, Any], line: str) -> None:
    code, out, error, tried = results[line]
    assert (code, tried) == (0, []), error
    assert FINE[line] in out
