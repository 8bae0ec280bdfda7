"""Bad input through the whole library: every file ends in a Net or in one clear sentence, in little time and memory.

Formats have their own damage in test_wire, test_prototxt and test_caffemodel; here whole files and whole nets.
"""

from __future__ import annotations

import os
import random
import re
import resource
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from conftest import GOLDEN
from hostile_names import NAMES

from caffe_port import api
from caffe_port.definition import input_shapes
from caffe_port.definition.definition import Definition
from caffe_port.errors import CaffePortError
from caffe_port.formats import caffemodel, prototxt, wire
from caffe_port.net.net import Net

PROTOTXT = """name: "tiny"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: [2, 3, 5, 7] } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
        inner_product_param { num_output: 6 weight_filler { type: "xavier" } } }
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder with a prototxt and weights that fit it."""
    (tmp_path / "net.prototxt").write_text(PROTOTXT)
    ported = api.port(tmp_path / "net.prototxt")
    caffemodel.write(tmp_path / "w.caffemodel", ported.definition.net, ported.net.blobs())
    return tmp_path


def said(*args: object, **options: object) -> str:
    """What api.port says, checked for the form that every message has."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(CaffePortError) as caught:
        api.port(*args, **options)  # type: ignore[arg-type]
    assert time.perf_counter() - start < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"
    assert "\n" not in caught.value.what, "one line says what"
    assert caught.value.what[-1] != ":" or caught.value.hint
    assert len(str(caught.value)) < 1000
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


def test_the_tiny_net_is_a_good_one(tiny: Path) -> None:
    for prototxt_ in (tiny / "net.prototxt", None):
        net = api.load(prototxt_, tiny / "w.caffemodel")
        assert net(torch.zeros(4, 3, 5, 7)).shape == (4, 6)


# -- whole files ----------------------------------------------------------------------------------------------------

BROKEN_WEIGHTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "w.caffemodel: is empty"),
    "one byte": (lambda data: data[:1], "w.caffemodel: "),
    "half": (lambda data: data[: len(data) // 2], "the file is damaged or not in this format"),
    "all but one byte": (lambda data: data[:-1], "the file is damaged or not in this format"),
    "a PNG": (lambda data: b"\x89PNG\r\n\x1a\n" + data, "is a PNG image, not a .caffemodel"),
    "a PyTorch file": (lambda data: b"PK\x03\x04" + data, "is a zip archive (a PyTorch file?), not a .caffemodel"),
    "a prototxt": (lambda data: PROTOTXT.encode(), "is text, not a .caffemodel"),
    "a web page": (lambda data: b"<html>not found</html>", "is a web page or XML"),
    "zeros": (lambda data: bytes(len(data)), "w.caffemodel: "),
    "ones": (lambda data: b"\xff" * len(data), "w.caffemodel: "),
    "noise": (lambda data: random.Random(0).randbytes(5000), "w.caffemodel: "),
    "HDF5 magic only": (lambda data: b"\x89HDF\r\n\x1a\n" + data, "is a damaged HDF5 file"),
    "a pickle": (lambda data: b"\x80\x04\x95\x15\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n", "w.caffemodel: "),
}


@pytest.mark.parametrize("kind", BROKEN_WEIGHTS)
@pytest.mark.parametrize("with_prototxt", [True, False])
def test_broken_weights(kind: str, with_prototxt: bool, tiny: Path) -> None:
    change, what = BROKEN_WEIGHTS[kind]
    path = tiny / "w.caffemodel"
    path.write_bytes(change(path.read_bytes()))
    assert what in said(tiny / "net.prototxt" if with_prototxt else None, path)
    assert sorted(os.listdir(tiny)) == ["net.prototxt", "w.caffemodel"]


BROKEN_TEXT = {
    "empty": ("", "net.prototxt: contains no layers"),
    "spaces": (" \n" * 1000, "net.prototxt: contains no layers"),
    "10,000 braces": ("layer {" * 10_000, "blocks are nested more than 100 deep"),
    "10,000 braces of an unknown field": ("x {" * 10_000, "blocks are nested more than 100 deep"),
    "half": (PROTOTXT[: len(PROTOTXT) // 2], "net.prototxt:4:"),
    "JSON": ('{"layers": [{"name": "conv"}]}', "net.prototxt:1:1: "),
    "Python": ("import torch\nx = 1\n", "net.prototxt:1:8: expected ':' after 'import', got 'torch'"),
    "a missing bottom": (PROTOTXT.replace('bottom: "data"', 'bottom: "dta"'), "Did you mean 'data'?"),
    "a cycle": (
        PROTOTXT.replace('bottom: "data"', 'bottom: "fc"'),
        "bottom 'fc' does not exist yet: layer 'fc' (line 6) produces it",
    ),
    "10^12 elements": (PROTOTXT.replace("[2, 3, 5, 7]", "[1000000, 1000000]"), "would contain 1000000000000 values"),
    "10^12 elements in four axes": (PROTOTXT.replace("[2, 3, 5, 7]", "[1000, 1000, 1000, 1000]"), "1000000000000"),
    "10^40 elements": (
        PROTOTXT.replace("[2, 3, 5, 7]", f"[{', '.join(['10000000000'] * 4)}]"),
        "Caffe's limit is 2^31",
    ),
    "10^12 weights": (PROTOTXT.replace("num_output: 6", "num_output: 4294967295"), "Caffe's limit is 2^31 - 1"),
    "a negative axis": (PROTOTXT.replace("[2, 3, 5, 7]", "[2, -3, 5, 7]"), "every axis must be at least 1"),
    "no axes": (PROTOTXT.replace("dim: [2, 3, 5, 7]", ""), "net.prototxt:3: layer 'conv' (Convolution): "),
    "40 axes": (
        PROTOTXT.replace("[2, 3, 5, 7]", str([1] * 40)),
        "net.prototxt:2: input 'data' has 40 axes; Caffe's limit",
    ),
    "kernel 0": (PROTOTXT.replace("kernel_size: 3", "kernel_size: 0"), "net.prototxt:3: layer 'conv' (Convolution): "),
    "stride 0": (PROTOTXT.replace("pad: 1", "stride: 0"), "net.prototxt:3: layer 'conv' (Convolution): "),
    "group 0": (PROTOTXT.replace("pad: 1", "group: 0"), "net.prototxt:3: layer 'conv' (Convolution): "),
    "pad 2^32 - 1": (PROTOTXT.replace("pad: 1", "pad: 4294967295"), "net.prototxt:3: layer 'conv' (Convolution): "),
    "axis 99": (PROTOTXT.replace("num_output: 6", "num_output: 6 axis: 99"), "axis 99 does not exist"),
    "no type": (PROTOTXT.replace('type: "ReLU" ', ""), "net.prototxt:5: layer 'relu'"),
    "an unknown type": (PROTOTXT.replace('"ReLU"', '"ReLUU"'), "layer 'relu' (ReLUU): Did you mean 'ReLU'?"),
    "another filler": (PROTOTXT.replace('"xavier"', '"xaveir"'), "filler type 'xaveir' does not exist"),
}


@pytest.mark.parametrize("kind", BROKEN_TEXT)
def test_broken_text(kind: str, tiny: Path) -> None:
    text, what = BROKEN_TEXT[kind]
    (tiny / "net.prototxt").write_text(text)
    assert what in said(tiny / "net.prototxt")
    if kind != "another filler":  # nobody asks for it where weights are given
        assert str(tiny / "net.prototxt") in said(tiny / "net.prototxt", tiny / "w.caffemodel")


@pytest.mark.parametrize("data", [b"\xff\xfe", b"\xfe\xff\x00", b"\xef\xbb\xbf", b"\x00" * 50, b"\xff" * 50])
def test_text_that_is_none(data: bytes, tiny: Path) -> None:
    (tiny / "net.prototxt").write_bytes(data)
    assert "net.prototxt" in said(tiny / "net.prototxt")


def test_folders_and_missing_files(tiny: Path) -> None:
    assert said(tiny) == f"{tiny}: is a folder; expected a file"
    assert said(None, tiny) == f"{tiny}: is a folder; expected a file"
    assert said(tiny / "x") == f"{tiny / 'x'}: cannot be read: No such file or directory"
    assert said(tiny / "net.prototxt", tiny / "x") == f"{tiny / 'x'}: cannot be read: No such file or directory"


def test_an_embedded_definition_is_checked_like_a_text(tiny: Path) -> None:
    for kind in ("a missing bottom", "a cycle", "10^12 elements", "10^12 weights", "kernel 0", "an unknown type"):
        text = BROKEN_TEXT[kind][0].replace('name: "fc"', 'name: "fc" blobs { data: 1 }')
        path = tiny / "w.caffemodel"
        path.write_bytes(oracle.parse_text(text, "NetParameter").SerializeToString())
        assert said(None, path).startswith(str(path)), kind


def test_blobs_that_claim_a_terabyte(tiny: Path) -> None:
    text = PROTOTXT.replace('name: "fc"', 'name: "fc" blobs { data: 1 shape { dim: [1000000, 1000000] } }')
    path = tiny / "w.caffemodel"
    path.write_bytes(oracle.parse_text(text, "NetParameter").SerializeToString())
    assert (
        "layer 'fc', blob 0: shape (1000000, 1000000) requires 1,000,000,000,000 values, the file contains 1"
        in said(None, path)
    )


def test_flipped_bits(tiny: Path) -> None:
    """A flip in the numbers goes unseen; any other ends in a net or a sentence."""
    path = tiny / "w.caffemodel"
    data, rng, ends = path.read_bytes(), random.Random(5), Counter[bool]()
    weights = caffemodel.read(path)
    headers = [k for k in range(len(data)) if data[k : k + 1] not in (b"\x00",)][:400]
    assert weights.parameters == 4 * 27 + 4 + 6 * 140 + 6
    for _ in range(150):
        damaged = bytearray(data)
        damaged[rng.choice(headers)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            api.port(None, path)
            ends[True] += 1
        except CaffePortError as error:
            ends[False] += 1
            message = str(error)
            assert path.name in message
    assert min(ends.values()) > 10


# -- whole nets, every layer type -----------------------------------------------------------------------------------

VALUES = ("0", "-1", "1", "2", "3", "7", "33", "40000", "1e39", "nan", "-inf", "0.5", "true", '"x"', "MAX")
NETS = sorted((GOLDEN / "layers").glob("*.prototxt"))


def mutated(text: str, rng: random.Random) -> str:
    kind = rng.random()
    numbers = list(re.finditer(r"(?<=[:\[, ])\s*-?\d+(\.\d+)?", text))
    names = re.findall(r'"[^"]*"', text)
    if kind < 0.6 and numbers:
        match = rng.choice(numbers)
        return f"{text[: match.start()]} {rng.choice(VALUES)}{text[match.end() :]}"
    if kind < 0.8:
        lines = text.split("\n")
        lines.insert(
            rng.randrange(len(lines)), lines.pop(rng.randrange(len(lines))) if kind < 0.7 else rng.choice(lines)
        )
        return "\n".join(lines)
    return text.replace(rng.choice(names), rng.choice(names), 1)


@pytest.mark.parametrize("seed", range(4))
def test_nets_with_slips_are_built_or_refused(seed: int) -> None:
    """Numbers, lines and names of Caffe's test nets, exchanged at random."""
    rng, ends = random.Random(seed), Counter[bool]()
    for _ in range(250):
        path = rng.choice(NETS)
        text = path.read_text()
        for _ in range(rng.choice((1, 1, 2))):
            text = mutated(text, rng)
        try:
            definition = Definition.parse(prototxt.parse(text, "NetParameter", "n"), "n")
            spec = definition.spec()
            Net(spec, input_shapes.resolve(spec).shapes, seed=None)
            ends[True] += 1
        except CaffePortError as error:
            ends[False] += 1
            shown = str(error)
            assert shown.startswith("n"), shown
            assert len(shown) < 2000
    assert min(ends.values()) > 40


@pytest.mark.parametrize("path", NETS, ids=lambda p: p.stem)
def test_binary_definitions_build_the_same_net(path: Path) -> None:
    """A caffemodel's definition comes as arrays and numbers of 32 bits, a text's as lists and decimals."""
    text = prototxt.read(path, "NetParameter")
    binary = wire.parse(b"".join(wire.serialize(text)), "NetParameter")
    nets = []
    for message in (text, binary):
        spec = Definition.parse(message, path.name).spec(_phase(path))
        shapes = {
            blob: tuple(layer.param.input_param.shape[0].dim)
            for layer in spec.layers
            if layer.type == "Input"
            for blob in layer.tops
        }
        nets.append(Net(spec, shapes, seed=1))
    a, b = nets
    assert a.plan.shapes == b.plan.shapes
    assert a.plan.losses == b.plan.losses
    assert list(a.caffe_layers()) == list(b.caffe_layers())
    for name, module in a.caffe_layers().items():
        assert repr(module.args) == repr(b.caffe_layers()[name].args), name
    for key, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[key]), key


def _phase(path: Path) -> str:
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
        return str(file["phase"])


# -- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NAMES)
def test_names_are_data(kind: str, tmp_path: Path) -> None:
    """Any name goes through text, binary, net and back; as an attribute it is harmless."""
    name = NAMES[kind]
    quoted = prototxt.quoted(name)
    path = tmp_path / "net.prototxt"
    path.write_text(PROTOTXT.replace('"conv"', quoted).replace('"fc"', prototxt.quoted(f"{name}2")))
    ported = api.port(path)
    assert list(ported.net.caffe_layers()) == [name, "relu", f"{name}2"]
    attribute = ported.net.names[name]
    assert attribute.isidentifier()
    assert attribute.isascii()
    assert not attribute.startswith("_")
    caffemodel.write(tmp_path / "w", ported.definition.net, ported.net.blobs())
    again = api.port(None, tmp_path / "w")
    assert list(again.net.caffe_layers()) == [name, "relu", f"{name}2"]
    x = torch.linspace(-1, 1, 2 * 3 * 5 * 7).reshape(2, 3, 5, 7)
    assert torch.equal(again.net(x), ported.net(x))
    assert again.net.plan.outputs[0][0] == f"{name}2"
    assert sorted(os.listdir(tmp_path)) == ["net.prototxt", "w"]


def test_text_written_again_is_printable() -> None:
    """dump() escapes: whatever a name holds, the file it is written to can be looked at."""
    for name in NAMES.values():
        message = prototxt.parse(f"name: {prototxt.quoted(name)}", "LayerParameter")
        assert message.name == name
        text = prototxt.dump(message)
        assert all(c == "\n" or unicodedata.category(c) != "Cc" for c in text)
        assert text.isascii()
