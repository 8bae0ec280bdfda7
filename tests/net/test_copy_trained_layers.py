"""Weights with random faults, loaded by Caffe itself and here: both take them or neither does, and the values agree.

Caffe 1.0's net.cpp (CopyTrainedLayersFrom, CopyTrainedLayersFromHDF5). Two things differ: the fork of ``make caffe``
gives a blob of an HDF5 file the shape that the file has, which Caffe 1.0 refuses, and so does caffe-port; and leading
axes of length one, which Caffe takes from files of before 2015 alone, are taken here from all.
"""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

from caffe_port import api
from caffe_port.definition.definition import Definition
from caffe_port.errors import SpecError, WeightsError
from caffe_port.formats import caffemodel, wire
from caffe_port.formats.message import Message
from caffe_port.net.net import Net
from caffe_port.typing import Shape


def layer(name: str, kind: str, bottom: str, body: str = "") -> str:
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{name}" {body} }}\n'


NET = (
    'input: "data" input_shape { dim: 2 dim: 4 dim: 6 dim: 5 }\n'
    + layer("conv", "Convolution", "data", "convolution_param { num_output: 6 kernel_h: 3 kernel_w: 1 group: 2 }")
    + layer("bn", "BatchNorm", "conv")
    + layer("scale", "Scale", "bn", "scale_param { bias_term: true }")
    + layer("prelu", "PReLU", "scale")
    + layer("deconv", "Deconvolution", "prelu", "convolution_param { num_output: 3 kernel_size: 2 bias_term: false }")
    + layer("ip", "InnerProduct", "deconv", "inner_product_param { num_output: 7 }")
    + layer("turned", "InnerProduct", "ip", "inner_product_param { num_output: 2 transpose: true bias_term: false }")
)
SHARED = NET + "".join(
    layer(name, "InnerProduct", bottom, 'param { name: "w" } param { name: "b" } inner_product_param { num_output: 7 }')
    for name, bottom in (("first", "ip"), ("second", "first"))
)
SCRIPT = """
import os
os.environ["GLOG_minloglevel"] = "3"
import caffe, numpy
for line in open("cases"):
    case, suffix = line.split()
    child = os.fork()  # a CHECK that fails ends the process
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        net = caffe.Net(case + ".prototxt", case + suffix, caffe.TEST)
        blobs = {"%s|%d" % (name, k): blob.data for name, all in net.params.items() for k, blob in enumerate(all)}
        numpy.savez(case + ".npz", **blobs)
        os._exit(0)
    os.waitpid(child, 0)
"""


def damaged(shape: Shape, rng: random.Random) -> Shape:
    """Another shape, for most of them of as many values."""
    s = list(shape)
    kind = rng.randrange(8)
    if kind == 0 and len(s) > 1:
        i, j = rng.sample(range(len(s)), 2)
        s[i], s[j] = s[j], s[i]
    elif kind == 1:
        s = [1, *s]
    elif kind == 2:
        s = [int(np.prod(s))]
    elif kind == 3:
        s = [*s, 1]
    elif kind == 4:
        s[rng.randrange(len(s))] += 1
    elif kind == 5:
        s = [1] * (4 - len(s)) + s
    elif kind == 6:
        s = s[1:] or [1]
    else:
        s = [n for n in s if n != 1] or [1]
    return tuple(s)


def proto(shape: Shape, style: str, values: np.ndarray) -> Message:
    legacy = (1,) * (4 - len(shape)) + tuple(shape)
    if style == "legacy" and len(legacy) == 4:
        return Message(
            "BlobProto", **dict(zip(("num", "channels", "height", "width"), legacy, strict=True)), data=values
        )
    data = {"double_data": values.astype(np.float64)} if style == "double" else {"data": values}
    return Message("BlobProto", shape=Message("BlobShape", dim=list(shape)), **data)


def make(folder: Path, name: str, rng: random.Random) -> tuple[str, bool, bool]:
    """Writes a net and weights: their suffix, whether a shape is another, and whether only by leading ones."""
    net, values = rng.choice((NET, SHARED)), np.random.default_rng(rng.randrange(1 << 30))
    (folder / f"{name}.prototxt").write_text(net)
    shapes = {k: [b.shape for b in blobs] for k, blobs in api.load(folder / f"{name}.prototxt").blobs().items()}
    layers: list[tuple[str, list[Shape]]] = []
    other = led = False
    for key, blobs in shapes.items():
        if rng.random() < 0.08:
            continue
        own = blobs[:-1] if rng.random() < 0.05 else [*blobs, (2,)] if rng.random() < 0.05 else list(blobs)
        for k, shape in enumerate(own):
            if rng.random() < 0.04 and (new := damaged(shape, rng)) != shape:
                own[k], other = new, True
                led = led or new == (1,) * (len(new) - len(shape)) + shape
        layers.append((key, own))
    layers += [("stranger", [(3, 3)])] if rng.random() < 0.2 else []
    layers = [("empty", []), *layers] if rng.random() < 0.2 else layers
    style = rng.choice(("new", "legacy", "double"))
    if rng.random() < 0.6:
        messages = [
            Message(
                "LayerParameter",
                name=key,
                type="X",
                blobs=[proto(s, style, values.standard_normal(int(np.prod(s))).astype(np.float32)) for s in own],
            )
            for key, own in layers
        ]
        chunks = wire.serialize(Message("NetParameter", name="n", layer=messages))
        (folder / f"{name}.caffemodel").write_bytes(b"".join(bytes(chunk) for chunk in chunks))
        return ".caffemodel", other, led and style != "legacy"
    with h5py.File(folder / f"{name}.caffemodel.h5", "w") as file:
        data = file.create_group("data")
        for key, own in layers:
            group = data.require_group(key)
            for k, shape in enumerate(own):
                if key != "second" or net is NET or rng.random() < 0.4:
                    group[str(k)] = values.standard_normal(shape).astype("f8" if style == "double" else "f4")
    return ".caffemodel.h5", other, led


def test_both_take_them_or_neither(tmp_path: Path, caffe: Path) -> None:
    rng = random.Random(7)
    cases = {str(k): make(tmp_path, str(k), rng) for k in range(90)}
    (tmp_path / "cases").write_text("".join(f"{name} {suffix}\n" for name, (suffix, _, _) in cases.items()))
    (tmp_path / "script.py").write_text(SCRIPT)
    subprocess.run([caffe / "bin/python", "script.py"], cwd=tmp_path, check=True, capture_output=True, timeout=240)
    taken = refused = 0
    for name, (suffix, other, led) in cases.items():
        path = tmp_path / f"{name}{suffix}"
        theirs = (tmp_path / f"{name}.npz").is_file()
        net, why = None, ""
        try:
            net = api.load(tmp_path / f"{name}.prototxt", path)
        except WeightsError as error:
            why = str(error)
        if net is None:
            refused += 1
            assert not theirs or (suffix == ".caffemodel.h5" and other), (name, why)
            continue
        taken += 1
        if not theirs:
            assert led, name
            continue
        present = {one.name for one in caffemodel.read(path).layers}
        ours = net.blobs()
        for key, value in np.load(tmp_path / f"{name}.npz").items():
            layer_name, _, index = key.partition("|")
            if layer_name in present or layer_name == "second":
                np.testing.assert_array_equal(ours[layer_name][int(index)].reshape(value.shape), value, err_msg=name)
    assert taken > 20
    assert refused > 20


@pytest.mark.parametrize("suffix", [".caffemodel", ".caffemodel.h5"])
def test_a_layer_without_blobs_is_not_one_that_is_absent(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "net.prototxt").write_text(NET)
    blobs = api.load(tmp_path / "net.prototxt").blobs()
    for absent, path in ((True, tmp_path / f"a{suffix}"), (False, tmp_path / f"b{suffix}")):
        held = {name: arrays for name, arrays in blobs.items() if name != "turned"}
        names = [name for name in blobs if not absent or name != "turned"]
        if suffix == ".caffemodel.h5":
            caffemodel.write_hdf5(path, names, {name: dict(enumerate(arrays)) for name, arrays in held.items()})
        else:
            layers = [Message("LayerParameter", name=name, type="X") for name in names]
            caffemodel.write(path, Message("NetParameter", layer=layers), held)
        if absent:
            assert api.port(tmp_path / "net.prototxt", path).report.initialised == ("turned",)  # type: ignore[union-attr]
            continue
        with pytest.raises(WeightsError, match=r"layer 'turned' holds no blobs, the \w+ asks for 1 \(weight\)"):
            api.load(tmp_path / "net.prototxt", path)


def conv(name: str, bottom: str, rule: str = "", num_output: int = 4) -> str:
    body = (
        f'convolution_param {{ num_output: {num_output} kernel_size: 1 weight_filler {{ type: "constant" value: 7 }} }}'
    )
    return layer(name, "Convolution", bottom, f"{rule} {body}").replace(f'top: "{name}"', f'top: "{name}{len(bottom)}"')


def written(path: Path, blobs: dict[str, list[np.ndarray]]) -> Path:
    if path.suffix == ".h5":
        caffemodel.write_hdf5(path, list(blobs), {name: dict(enumerate(arrays)) for name, arrays in blobs.items()})
    else:
        layers = [Message("LayerParameter", name=name, type="X") for name in blobs]
        caffemodel.write(path, Message("NetParameter", layer=layers), blobs)
    return path


DATA = 'input: "data" input_shape { dim: 2 dim: 4 dim: 6 dim: 5 }\n'
CONV = [np.full((4, 4, 1, 1), 2, np.float32), np.ones(4, np.float32)]


@pytest.mark.parametrize(("suffix", "filled"), [(".caffemodel", "conv"), (".caffemodel.h5", "conv#2")])
@pytest.mark.parametrize("rule", ["", "include { phase: TEST }"])
def test_of_two_layers_of_one_name(tmp_path: Path, suffix: str, filled: str, rule: str, caffe: Path) -> None:
    """Caffe fills the first one from a caffemodel, and the last one from HDF5."""
    net = tmp_path / "0.prototxt"
    net.write_text(DATA + conv("conv", "data", rule) + conv("conv", "conv4"))
    weights = written(tmp_path / f"0{suffix}", {"conv": CONV})
    ours = api.load(net, weights).blobs()
    assert {name: float(blobs[0].flat[0]) for name, blobs in ours.items()} == {
        "conv": 2 if filled == "conv" else 7,
        "conv#2": 2 if filled == "conv#2" else 7,
    }
    script = (
        "import caffe; n = caffe.Net('0.prototxt', '0%s', caffe.TEST); "
        "print([float(one.blobs[0].data.flat[0]) for one in n.layers if one.type == 'Convolution'])"
    )
    ran = subprocess.run(
        [caffe / "bin/python", "-c", script % suffix], cwd=tmp_path, check=True, capture_output=True, timeout=60
    )
    assert ran.stdout.decode().strip() == ("[2.0, 7.0]" if filled == "conv" else "[7.0, 2.0]")


@pytest.mark.parametrize("suffix", [".caffemodel", ".caffemodel.h5"])
def test_weights_that_fit_test_alone(tmp_path: Path, suffix: str) -> None:
    """In TEST, Caffe never sees a layer of TRAIN: its blobs may be any. In TRAIN, it refuses them."""
    net = tmp_path / "net.prototxt"
    net.write_text(DATA + conv("conv", "data") + conv("head", "conv4", "include { phase: TRAIN }", 3))
    weights = written(tmp_path / f"w{suffix}", {"conv": CONV, "head": CONV})
    ported = api.port(net, weights)
    assert float(ported.net.blobs()["conv"][0].flat[0]) == 2
    (note,) = (note for note in ported.notes if note.startswith("phase TRAIN cannot be built"))
    assert "layer 'head' holds weight (4, 4, 1, 1), the definition asks for (3, 4, 1, 1)" in note
    weights = written(tmp_path / f"w{suffix}", {"conv": CONV[::-1], "head": CONV})
    with pytest.raises(WeightsError, match="layer 'conv' holds weight"):
        api.load(net, weights)


def test_phases_that_give_a_layer_other_blobs(tmp_path: Path) -> None:
    """Caffe cannot share them between the net that it trains and the one that it tests: each phase is a net alone."""
    rules = [f"include {{ phase: {phase} }}" for phase in ("TRAIN", "TEST")]
    net = tmp_path / "net.prototxt"
    net.write_text(DATA + conv("conv", "data", rules[0], 3) + conv("conv", "data", rules[1], 5))
    ported = api.port(net)
    assert [list(map(np.shape, blobs)) for blobs in ported.net.blobs().values()] == [[(5, 4, 1, 1), (5,)]]
    (note,) = (note for note in ported.notes if note.startswith("phase TRAIN cannot be built"))
    assert note.endswith("has other blobs than in the other phase: (3, 4, 1, 1), (3,) and (5, 4, 1, 1), (5,)")
    with pytest.raises(SpecError, match="has other blobs than in the other phase"):
        Net(ported.net.plans[False].spec, {"data": (2, 4, 6, 5)}, Definition.read(net).spec("TRAIN"))
