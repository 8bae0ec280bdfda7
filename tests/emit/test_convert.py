"""convert: names that want to be code, the folder, the check, the bytes."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from emit_nets import assert_same, conv, data, drawn, layer, written
from safetensors.torch import load_file

import caffe_port
from caffe_port.api import Ported
from caffe_port.emit import caffe_files
from caffe_port.emit import convert as convert_module
from caffe_port.emit import model_source as emit_source
from caffe_port.emit.convert import convert
from caffe_port.emit.forward_method import split_commas, wrap
from caffe_port.emit.self_check import self_check
from caffe_port.errors import CaffePortError
from caffe_port.formats import caffemodel, prototxt
from caffe_port.formats.prototxt import quoted
from caffe_port.net.net import Net
from caffe_port.net.state_dict import write_safetensors
from caffe_port.storage import safetensors


@pytest.fixture
def port(tmp_path: Path) -> Callable[[str], Ported]:
    """A net from the text of a prototxt, drawn by its fillers."""
    return functools.partial(drawn, tmp_path)


# -- names that want to be code -----------------------------------------------------------------------------------

HOSTILE = [
    '"""\nimport os\nos.abort()\n"""',
    "'; __import__('os').abort() #",
    "a\\",
    'x"',
    "\u202ename\u2066",
    "class",
    "",
    "self",
    "forward",
    "torch",
    "nn",
    "Tensor",
    "x",
    "training",
    "__init__",
    "1/2",
    " ",
    "\x00",
    "ünï",
    "{0}",
    "%s",
    "a" * 300,
    "None",
    "__class__",
    "print",
    "super",
    "x_2",
    "\r\n",
]


def hostile_net(names: list[str], net_name: str) -> str:
    text = f"name: {quoted(net_name)}\n"
    text += f"input: {quoted(names[0])} input_shape {{ dim: 2 dim: 3 dim: 5 dim: 4 }}\n"
    for k, name in enumerate(names[1:], 1):
        bottoms = [quoted(names[0]), quoted(names[k - 1])]
        kind = ("Convolution", "Eltwise", "Sigmoid", "Power")[k % 4]
        more = {
            "Convolution": 'convolution_param { num_output: 3 kernel_size: 1 weight_filler { type: "xavier" } }',
            "Power": "power_param { shift: 1.5 }",
        }.get(kind, "")
        ends = "".join(f"bottom: {b} " for b in (bottoms if kind == "Eltwise" else bottoms[1:]))
        text += f'layer {{ name: {quoted(name)} type: "{kind}" {ends} top: {quoted(name)} {more} }}\n'
    return text


@pytest.mark.parametrize("net_name", HOSTILE)
def test_hostile_names(net_name: str, port: Callable[[str], Ported], tmp_path: Path) -> None:
    names = [n for n in dict.fromkeys([net_name, *HOSTILE]) if n]
    ported = port(hostile_net(names, net_name))
    result = convert(ported, tmp_path / "out")
    assert result.check == "outputs are bit-equal to the Net's"
    source = (tmp_path / "out" / "model.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    assert [type(n).__name__ for n in tree.body] == ["Expr", "Import", "ImportFrom", "ClassDef"]
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert called == {"super"}
    assert all(c.isprintable() or c == "\n" for c in source)
    assert result.class_name.isidentifier()
    assert "abort" not in {getattr(n, "attr", "") for n in ast.walk(tree)}
    json.loads((tmp_path / "out" / "port.json").read_text())


def test_class_name() -> None:
    names = {
        "SimpleNet": "SimpleNet",
        "cifar10_full": "Cifar10Full",
        "": "Net",
        "1x1": "Net1x1",
        "CIFAR-10": "CIFAR10",
        "VGG_16": "VGG_16",
        "nn": "Nn",
        "Tensor": "TensorNet",
        "class": "NetClass",
        "Zürich": "Zurich",
    }
    assert {name: emit_source.class_name(name, {"Tensor"}) for name in names} == names


def test_wrap() -> None:
    assert wrap("y = f(a, b)", 4, 40) == ["    y = f(a, b)"]
    assert wrap('y = f(aaaaaaa, "),(", g(b, c))', 0, 29) == ["y = f(", '    aaaaaaa, "),(", g(b, c)', ")"]
    assert wrap("y = f(aaaaaaaaaaaa, bbbbbbbbbbbbbb)", 0, 20) == [
        "y = f(",
        "    aaaaaaaaaaaa,",
        "    bbbbbbbbbbbbbb,",
        ")",
    ]
    assert split_commas("(a, b), 'c,\\',d', [e, f]") == ["(a, b)", "'c,\\',d'", "[e, f]"]


def test_long_lines_are_wrapped(port: Callable[[str], Ported], tmp_path: Path) -> None:
    names = [f"a_rather_long_name_of_a_blob_{k}" for k in range(9)]
    text = data(2, 3, 5, 4, name="data") + "".join(conv(n, "data", n) for n in names)
    net = port(text + layer("cat", "Concat", " ".join(names), "cat")).net
    made, module = written(net, tmp_path)
    assert max(map(len, made.source.splitlines())) <= 110
    assert_same(net, module, [torch.randn(2, 3, 5, 4)], training=False)


def test_a_net_of_a_thousand_layers_is_written_in_seconds(port: Callable[[str], Ported]) -> None:
    text, last = data(2, 3, 5, 4), "data"
    for k in range(250):
        text += conv(f"c{k}", last, f"c{k}", 3) + layer(f"n{k}", "BatchNorm", f"c{k}", f"c{k}")
        text += layer(f"r{k}", "ReLU", f"c{k}", f"c{k}") + layer(f"s{k}", "Eltwise", f"{last} c{k}", f"s{k}")
        last = f"s{k}"
    net = port(text).net
    begin = time.process_time()
    emit_source.model(net)
    assert time.process_time() - begin < 10


# -- the folder ---------------------------------------------------------------------------------------------------

SMALL = data(2, 3, 5, 4) + conv("conv", "data", "conv")


def test_files(port: Callable[[str], Ported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    ported = port('name: "Small"\n' + SMALL)
    result = convert(ported, tmp_path / "deep" / "out")
    assert result.folder == tmp_path / "deep" / "out"
    assert result.files == ("model.py", "weights.safetensors", "port.json")
    assert sorted(os.listdir(result.folder)) == sorted(result.files)
    assert result.folder.stat().st_mode & 0o777 == 0o777 & ~_umask()
    report = json.loads((result.folder / "port.json").read_text())
    prototxt = (tmp_path / "net.prototxt").read_bytes()
    assert report["from"] == [
        {"file": "net.prototxt", "bytes": len(prototxt), "sha256": hashlib.sha256(prototxt).hexdigest()}
    ]
    assert report["inputs"] == {"data": [2, 3, 5, 4]}
    assert report["outputs"] == {"conv": [2, 4, 5, 4]}
    assert (report["class"], report["layers"], report["parameters"]) == ("Small", 1, 16)
    assert report["attributes"] == {"conv": "conv"}
    assert report["time"] == "2023-11-14T22:13:20+00:00"
    assert report["versions"] == {"caffe-port": caffe_port.__version__, "torch": torch.__version__.partition("+")[0]}
    assert "initialized from the fillers" in report["notes"][0]
    again = convert(ported, tmp_path / "again")
    for name in result.files:
        assert (result.folder / name).read_bytes() == (again.folder / name).read_bytes()


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def test_model_runs_alone(port: Callable[[str], Ported], tmp_path: Path) -> None:
    """In a process that has torch and safetensors only, as the docstring of model.py says."""
    convert(port('name: "Small"\n' + SMALL), tmp_path / "out")
    code = (
        "import sys; sys.modules['caffe_port'] = None\n"
        "from model import Small\nfrom safetensors.torch import load_file\nimport torch\n"
        "model = Small()\nmodel.load_state_dict(load_file('weights.safetensors'))\nmodel.eval()\n"
        "print(tuple(model(torch.zeros(1, 3, 6, 2)).shape))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True, check=True)
    assert done.stdout == "(1, 4, 6, 2)\n"


def test_an_existing_folder(port: Callable[[str], Ported], tmp_path: Path) -> None:
    ported = port(SMALL)
    folder = tmp_path / "out"
    folder.mkdir()
    convert(ported, folder)
    (folder / "mine.txt").write_text("kept")
    (folder / "model.py").write_text("old")
    with pytest.raises(CaffePortError, match=r"out: is not empty\n  Use --force"):
        convert(ported, folder)
    assert (folder / "model.py").read_text() == "old"
    convert(ported, folder, force=True)
    assert (folder / "mine.txt").read_text() == "kept"
    assert "class Net" in (folder / "model.py").read_text()
    with pytest.raises(CaffePortError, match="is a file; expected a folder"):
        convert(ported, folder / "mine.txt", force=True)
    assert sorted(os.listdir(tmp_path)) == ["net.prototxt", "out"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("name", ["model.py", "weights.safetensors", "model.onnx", "port.json"])
def test_a_folder_in_place_of_a_file_destroys_nothing(name: str, port: Callable[[str], Ported], tmp_path: Path) -> None:
    """One of the files cannot be written: the old conversion stays as it was."""
    folder = tmp_path / "out"
    convert(port(SMALL), folder)
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    before = contents(folder)
    formats = ["torch", "onnx"] if name == "model.onnx" else ["torch"]
    with pytest.raises(CaffePortError, match=rf"{name}: is a folder; expected a file\n  Remove it"):
        convert(port('name: "Other"\n' + SMALL), folder, force=True, formats=formats)
    assert contents(folder) == before
    assert sorted(os.listdir(tmp_path)) == ["net.prototxt", "out"]


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_move_that_fails_is_taken_back(
    number: int, error: BaseException, port: Callable[[str], Ported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th file cannot be moved: the old files are there again, and no new one (blobs.safetensors) is."""
    folder = tmp_path / "out"
    ported = port(SMALL)
    caffemodel.write(tmp_path / "w.caffemodel", ported.definition.net, ported.net.blobs())
    convert(ported, folder)
    before, calls, replace = contents(folder), [0], os.replace
    other = caffe_port.port(tmp_path / "net.prototxt", tmp_path / "w.caffemodel")

    def fails(source: Any, target: Any) -> None:
        if Path(target).parent == folder:
            calls[0] += 1
            if calls[0] == number + 1:
                raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    if number == 4:  # four files
        convert(other, folder, force=True, formats=["torch", "safetensors"])
        assert contents(folder).keys() == {*before, "blobs.safetensors"}
        return
    with pytest.raises(CaffePortError if isinstance(error, OSError) else KeyboardInterrupt):
        convert(other, folder, force=True, formats=["torch", "safetensors"])
    assert contents(folder) == before
    assert sorted(os.listdir(tmp_path)) == ["net.prototxt", "out", "w.caffemodel"]


def test_old_files_that_cannot_be_put_back_are_kept(
    port: Callable[[str], Ported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    convert(port(SMALL), folder)
    before, replace = contents(folder), os.replace

    def fails(source: Any, target: Any) -> None:
        if Path(target).name == "weights.safetensors" or ".old." in str(source):
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(CaffePortError, match="could not be put back: Input/output error") as caught:
        convert(port('name: "Other"\n' + SMALL), folder, force=True)
    assert contents(Path(caught.value.hint.removeprefix("They are in "))) == before


@pytest.mark.parametrize("filled", [True, False])
def test_a_link_to_a_folder(filled: bool, port: Callable[[str], Ported], tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    if filled:
        convert(port(SMALL), tmp_path / "real")
    convert(port('name: "Other"\n' + SMALL), tmp_path / "link", force=filled)
    assert (tmp_path / "link").is_symlink()
    assert "class Other" in (tmp_path / "real" / "model.py").read_text()
    assert sorted(os.listdir(tmp_path)) == ["link", "net.prototxt", "real"]


def test_a_link_to_nowhere(port: Callable[[str], Ported], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(CaffePortError, match="is a link to nowhere, which does not exist"):
        convert(port(SMALL), tmp_path / "link")


def test_the_current_folder(port: Callable[[str], Ported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    convert(port(SMALL), ".")
    assert sorted(os.listdir(tmp_path / "here")) == ["model.py", "port.json", "weights.safetensors"]


def test_back_to_caffe_writes_both_files_or_none(port: Callable[[str], Ported], tmp_path: Path) -> None:
    ported = port(SMALL)
    caffe_files.write_caffe(ported, tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "net.prototxt").unlink()
    (tmp_path / "out" / "net.prototxt").mkdir()
    with pytest.raises(CaffePortError, match=r"net\.prototxt: is a folder; expected a file"):
        caffe_files.write_caffe(port('name: "Other"\n' + SMALL), tmp_path / "out")
    assert contents(tmp_path / "out")["net.caffemodel"] == before["net.caffemodel"]


def test_a_folder_that_cannot_be_made(port: Callable[[str], Ported], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CaffePortError, match="cannot be written: Not a directory"):
        convert(port(SMALL), tmp_path / "file" / "below" / "out")
    with pytest.raises(CaffePortError, match="cannot be written: "):
        convert(port(SMALL), Path("/proc/nowhere/out"))


@pytest.mark.parametrize("damage", ["syntax", "output", "weights"])
def test_a_wrong_model_leaves_nothing(
    damage: str, port: Callable[[str], Ported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = emit_source.model

    def wrong(net: Net, *how: bool) -> emit_source.Model:
        made = right(net, *how)
        source = {"syntax": made.source + "(", "output": made.source.replace("return ", "return 1 + ")}
        state = {"conv.weight": made.state["conv.weight"]} if damage == "weights" else made.state
        return dataclasses.replace(made, source=source.get(damage, made.source), state=state)

    monkeypatch.setattr(convert_module, "model", wrong)
    said = "differs from the Net's by 1" if damage == "output" else "could not be read back"
    with pytest.raises(CaffePortError, match=said):
        convert(port(SMALL), tmp_path / "a" / "out")
    assert os.listdir(tmp_path) == ["net.prototxt"]


@pytest.mark.parametrize("damage", ["last bit", "header"])
def test_a_damaged_weights_file_leaves_nothing(
    damage: str, port: Callable[[str], Ported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two nets give equal outputs for a weight that ReLU makes dead: the bytes are compared too."""
    right = safetensors.write

    def wrong(path: Path, *rest: Any) -> None:
        right(path, *rest)
        stored = bytearray(path.read_bytes())
        stored[-4 if damage == "last bit" else 9] ^= 1  # the least significant bit of the last number
        path.write_bytes(stored)

    monkeypatch.setattr(safetensors, "write", wrong)
    filler = "bias_filler { value: -1e9 }"
    text = data(2, 3, 5, 4) + layer(
        "conv", "Convolution", "data", "conv", f"convolution_param {{ num_output: 4 kernel_size: 1 {filler} }}"
    )
    said = "does not hold 'conv.bias' as it was written" if damage == "last bit" else "could not be read back"
    with pytest.raises(CaffePortError, match=f"weights.safetensors: {said}"):
        convert(port(text + layer("relu", "ReLU", "conv", "relu")), tmp_path / "a" / "out")
    assert os.listdir(tmp_path) == ["net.prototxt"]


# -- parameters that stay where the caffemodel has them -----------------------------------------------------------


def large_net(name: str) -> str:
    """Its InnerProduct of that name has 1.44 MB of weights."""
    inner = "inner_product_param { num_output: 4500 weight_filler { type: 'xavier' } }"
    return data(2, 3, 5, 4) + conv("conv", "data", "conv") + layer(name, "InnerProduct", "conv", name, inner)


def stored(port: Callable[[str], Ported], text: str, path: Path) -> None:
    net = port(text).net
    caffemodel.write(path, prototxt.parse(text, "NetParameter"), net.blobs())


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", ["f", "ff", "fff", "ffff"])  # the weights begin one byte later each time
def test_shared_parameters(
    name: str, fold: bool, port: Callable[[str], Ported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    stored(port, large_net(name), tmp_path / "w.caffemodel")
    files = tmp_path / "net.prototxt", tmp_path / "w.caffemodel"
    copied, shared = caffe_port.port(*files), caffe_port.port(*files, share=True)
    assert copied.weights is not None
    assert shared.weights is not None
    assert (copied.shared, shared.shared) == (False, True)
    for ported, is_shared in ((copied, False), (shared, True)):
        assert ported.weights is not None
        weight = ported.net.get_submodule(name).weight
        assert np.shares_memory(weight.detach().numpy(), ported.weights.layers[1].blobs[0]) == is_shared
    one = convert(copied, tmp_path / "one", fold=fold)
    other = convert(shared, tmp_path / "other", fold=fold)
    assert one.check == other.check
    for file in one.files:
        assert (one.folder / file).read_bytes() == (other.folder / file).read_bytes(), file
    x = torch.randn(3, 3, 5, 4)
    assert shared.net.get_submodule(name).weight.data_ptr() % 4 == 0
    assert torch.allclose(shared.net(x), copied.net(x), rtol=0, atol=1e-6)
    for key, value in copied.net.state_dict().items():
        assert torch.equal(shared.net.state_dict()[key], value)


def test_what_cannot_be_shared_is_copied(port: Callable[[str], Ported], tmp_path: Path) -> None:
    """Half precision, and a weight that the file has the other way round."""
    text = large_net("fc").replace("num_output: 4500", "num_output: 4500 transpose: true")
    stored(port, text, tmp_path / "w.caffemodel")
    kept = caffemodel.read(tmp_path / "w.caffemodel")
    ported = caffe_port.port(tmp_path / "net.prototxt", tmp_path / "w.caffemodel", share=True)
    weight = ported.net.fc.weight.detach().numpy()
    assert ported.weights is not None
    assert not np.shares_memory(weight, ported.weights.layers[1].blobs[0])
    assert np.array_equal(weight, kept.layers[1].blobs[0].T)
    assert convert(ported, tmp_path / "out").check == "outputs are bit-equal to the Net's"
    net = port(large_net("fc")).net
    half = kept.layers[1].blobs[0].T.astype(np.float16)
    net.fc.share_blobs([half, np.zeros(4500, np.float32)], 1)
    assert np.array_equal(net.fc.weight.detach().numpy(), half.astype(np.float32))
    assert not net.fc.bias.any()


def test_the_caffemodel_may_lie_where_convert_writes(port: Callable[[str], Ported], tmp_path: Path) -> None:
    """It is replaced, not written over: what was mapped stays as it was."""
    folder = tmp_path / "out"
    folder.mkdir()
    weights = folder / "weights.safetensors"
    stored(port, large_net("fc"), weights)
    ported = caffe_port.port(tmp_path / "net.prototxt", weights, share=True)
    assert ported.weights is not None
    before = [blob.copy() for one in ported.weights.layers for blob in one.blobs]
    assert convert(ported, folder, force=True).check == "outputs are bit-equal to the Net's"
    again = [blob for one in ported.weights.layers for blob in one.blobs]
    for blob, other in zip(before, again, strict=True):
        assert np.array_equal(blob, other)
    assert np.array_equal(load_file(str(weights))["fc.weight"].numpy(), before[2])


def test_shared_by_name_stays_shared(port: Callable[[str], Ported], tmp_path: Path) -> None:
    one = 'param { name: "w" } inner_product_param { num_output: 60 bias_term: false weight_filler { type: "xavier" } }'
    text = data(2, 60) + layer("a", "InnerProduct", "data", "a", one) + layer("b", "InnerProduct", "a", "b", one)
    _, module = written(port(text).net, tmp_path)
    assert module.b.weight is module.a.weight
    assert [name for name, _ in module.named_parameters()] == ["a.weight"]


def test_unknown_format(port: Callable[[str], Ported], tmp_path: Path) -> None:
    with pytest.raises(CaffePortError, match="unknown format 'tflite'\n  Formats: torch, onnx, pt2, safetensors"):
        convert(port(SMALL), tmp_path / "out", formats=["tflite"])


def test_safetensors_are_what_the_library_reads(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(2, 3).t(),
        "b": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "half": torch.ones(3).half(),
        'ü/"': torch.ones(2, dtype=torch.bool),
    }
    write_safetensors(tmp_path / "w", tensors)
    read = load_file(str(tmp_path / "w"))
    assert list(read) == list(tensors) or set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(read[name], tensor)
        assert read[name].dtype == tensor.dtype


def test_channels_last(port: Callable[[str], Ported], tmp_path: Path) -> None:
    """The weights file, the parameters and the outputs stay as they are; convolutions compute in the other format."""
    ported = port('name: "Small"\n' + data(2, 3, 5, 4) + conv("conv", "data", "conv", 8, 3) + conv("b", "conv", "b", 4))
    plain = convert(ported, tmp_path / "plain", channels_last=False)
    other = convert(ported, tmp_path / "other")
    assert (plain.channels_last, other.channels_last) == (False, True)
    assert plain.check == other.check == "outputs are bit-equal to the Net's"
    weights = "weights.safetensors"
    assert (other.folder / weights).read_bytes() == (plain.folder / weights).read_bytes()
    code = (
        "from model import Small\nfrom safetensors.torch import load_file, save_file\nimport torch\n"
        f"model = Small()\nmodel.load_state_dict(load_file('{weights}'))\nmodel.eval()\n"
        "model.conv.register_forward_hook(lambda m, _, y: print(y.is_contiguous()))\n"
        "x = torch.randn(2, 3, 7, 6)\n"
        "y = model(x)\n"
        "print(x.is_contiguous(), y.is_contiguous())\n"
        "save_file(model.state_dict(), 'again.safetensors')\n"
    )
    for folder, said in ((other.folder, "False\nTrue True\n"), (plain.folder, "True\nTrue True\n")):
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
        assert done.stdout == said


def test_the_docstring_runs(port: Callable[[str], Ported], tmp_path: Path) -> None:
    """It orders the weights of images' convolutions; PyTorch's to() raises for those of volumes."""
    image, volume = data(2, 3, 5, 4), data(2, 3, 5, 4, 6)
    for shape, channels_last, ordered in ((image, None, True), (image, False, False), (volume, True, False)):
        ported = port(shape + conv("conv", "data", "conv", 8, 3))
        folder = convert(ported, tmp_path / "out", channels_last=channels_last, force=True).folder
        code = (
            "from model import *\nimport model as source\n"
            "shown = [line[4:] for line in source.__doc__.splitlines() if line.startswith('    ')]\n"
            "exec('\\n'.join(shown))\n"
            "print(not model.training, not model.conv.weight.is_contiguous())\n"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
        assert done.stdout == f"True {ordered}\n"


def test_channels_last_is_for_images(port: Callable[[str], Ported], tmp_path: Path) -> None:
    """Neither for nets without convolutions, nor for those of volumes."""
    relu = port(data(2, 3, 5, 4) + layer("r", "ReLU", "data", "r"))
    assert not convert(relu, tmp_path / "relu").channels_last
    volume = port(data(2, 3, 5, 4, 6) + conv("conv", "data", "conv", 8, 3))
    assert not convert(volume, tmp_path / "volume").channels_last


def test_channels_last_where_it_does_not_work(
    port: Callable[[str], Ported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a model for which it was asked is refused."""

    def check(*given: Any, channels_last: bool, **how: Any) -> str:
        if channels_last:
            raise CaffePortError("the output differs")
        return self_check(*given, channels_last=channels_last, **how)

    monkeypatch.setattr("caffe_port.emit.convert.self_check", check)
    ported = port(data(2, 3, 5, 4) + conv("conv", "data", "conv", 8, 3))
    result = convert(ported, tmp_path / "chosen")
    assert (result.channels_last, result.check) == (False, "outputs are bit-equal to the Net's")
    assert "channels_last" not in (result.folder / "model.py").read_text()
    assert json.loads((result.folder / "port.json").read_text())["channels_last"] is False
    with pytest.raises(CaffePortError, match="the output differs"):
        convert(ported, tmp_path / "asked", channels_last=True)


def test_the_net_keeps_its_state(port: Callable[[str], Ported], tmp_path: Path) -> None:
    net = port(data(2, 3, 5, 4) + layer("n", "BatchNorm", "data", "n")).net
    made, _ = written(net, tmp_path)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    self_check(net, made.source, made.class_name, tmp_path / "weights.safetensors", training=True)
    assert not net.training
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_inputs_that_are_indices(port: Callable[[str], Ported], tmp_path: Path) -> None:
    embed = "embed_param { num_output: 3 input_dim: 4 weight_filler { type: 'xavier' } }"
    result = convert(port(data(2, 6) + layer("e", "Embed", "data", "e", embed)), tmp_path / "out")
    assert result.check == "outputs are bit-equal to the Net's"
