"""Whose file is this: nets under the numbers of a dialect, what is left open, and a text beside them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import HERE

sys.path.insert(0, str(HERE.parent / "benchmarks"))
import dialect_nets
from dialect_nets import delimited, varint

from caffe_port.api import port
from caffe_port.commands.net_files import sort_files
from caffe_port.errors import CaffePortError
from caffe_port.formats import caffemodel, dialects, recognition
from caffe_port.formats.message import Message
from caffe_port.inspection.inspect import inspect_file


def file(tmp_path: Path, net: Message, dialect: str) -> Path:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(dialect_nets.written(net, dialects.find(dialect), "NetParameter"))
    return path


def layer(type_: str, *fields: bytes) -> bytes:
    return delimited(100, delimited(1, b"one") + delimited(2, type_.encode()) + b"".join(fields))


def read(data: bytes, dialect: str | None = None) -> tuple[Message, Any]:
    return recognition.read(data, "NetParameter", "net", dialect)


@pytest.mark.parametrize("name", sorted(dialect_nets.NETS))
def test_a_net_is_read_as_it_was_written(name: str) -> None:
    net = dialect_nets.net(name)
    data = dialect_nets.written(net, dialects.find(name), "NetParameter")
    got, found = read(data)
    label = "caffe" if found is None else found.dialect.label
    assert label == {"nvidia-0.16": "nvidia-0.17"}.get(name, name), found
    told, _ = read(data, name)
    for ours in (got, told):
        for a, b in zip(ours.layer or ours.layers, net.layer or net.layers, strict=True):
            wanted = dialect_nets.comparable(b)
            assert {key: dialects.as_text(dialect_nets.comparable(a).get(key)) for key in wanted} == {
                key: dialects.as_text(value) for key, value in wanted.items()
            }
            assert not a.unknown
        conv = next(one for one in (ours.layer or ours.layers) if one.name == "conv1")
        assert caffemodel.blob_array(conv.blobs[0]).sum() == 135 * 134 / 2


def test_a_net_that_all_read_alike_is_nobodys() -> None:
    net = dialect_nets.net("caffe")
    plain = net.copy(layer=[one for one in net.layer if one.name != "conv3"])
    assert read(dialect_nets.written(plain, dialects.find("caffe"), "NetParameter"))[1] is None


def test_intels_pooling_by_what_makes_sense(tmp_path: Path) -> None:
    """A kernel of 1, a stride of 3 and a pad of 2 is no pooling; one place in a net tells for all."""
    net = dialect_nets.net("intel-1.0.5")
    for layer in net.layer:
        if shapes := {"conv2": [(7, 5, 1, 1), (7,)], "bn": [(7,), (7,), (1,)]}.get(layer.name):
            layer.set("blobs", [caffemodel.blob_message(np.ones(shape, np.float32)) for shape in shapes])
    ported = port(None, file(tmp_path, net, "intel-1.0.5"))
    assert ported.net.plan.shapes  # the sizes chain
    assert [module.kernel_size for name, module in ported.net.named_children() if name == "pool2"] == [(3, 3)]
    assert not [note for note in ported.notes if "dialect" in note]


def test_what_is_open_is_noted_and_can_be_decided() -> None:
    """One Pooling alone: Caffe's {kernel 1, stride 3, pad 0}, or Intel's {pad 1, kernel 3, stride 0}."""
    data = layer("Pooling", delimited(121, b"\x10\x01\x18\x03"))
    net, found = read(data)
    assert (net.layer[0].pooling_param.kernel_size, net.layer[0].pooling_param.stride) == ([1], [3])
    assert "intel-1.0.5" in found.note
    assert "pad 1" in found.note
    net, found = read(data, "intel-1.0.5")
    assert (net.layer[0].pooling_param.pad, net.layer[0].pooling_param.kernel_size) == ([1], [3])
    assert not found.note


def test_a_default_that_the_file_does_not_state() -> None:
    """PriorBox.clip: false in SSD since 2016-06-24, true before and in TextBoxes."""
    data = layer("PriorBox", delimited(203, b"\x0d\x00\x00\x80\x3f"))
    net, found = read(data)
    assert not net.layer[0].prior_box_param.clip
    (reading,) = found.defaults
    assert "prior_box_param.clip is not stated, false is assumed" in str(reading)
    assert "textboxes" in str(reading)
    net, found = read(data, "textboxes")
    assert net.layer[0].prior_box_param.clip
    assert not found.defaults


def test_a_default_of_nvidias() -> None:
    net = dialect_nets.net("nvidia-0.16")
    _, found = read(dialect_nets.written(net, dialects.find("nvidia-0.16"), "NetParameter"))
    assert "batch_norm_param.eps is not stated, 1e-05 is assumed; in nvidia-0.16.1: 0.0001" in found.note
    got, _ = read(dialect_nets.written(net, dialects.find("nvidia-0.16"), "NetParameter"), "nvidia-0.16.1")
    assert next(one for one in got.layer if one.name == "bn").batch_norm_param.eps == 1e-4


@pytest.mark.parametrize(("number", "word"), [(3, "PRE_FIXED"), (3, "NONE")])
def test_normalization_3(number: int, word: str) -> None:
    _, found = read(layer("SoftmaxWithLoss", delimited(101, b"\x18" + bytes([number]))))
    assert word in found.note


def test_every_unknown_number_is_told() -> None:
    data = layer("ReLU", varint(7777 << 3) + b"\x01") + layer("Convolution", delimited(106, varint(99 << 3) + b"\x05"))
    _, found = read(data)
    assert [(one.message, one.number, one.users != "") for one in found.unknown] == [
        ("LayerParameter", 7777, True),  # video-caffe's, a message there
        ("ConvolutionParameter", 99, False),
    ]


def test_a_named_dialect_that_does_not_fit_is_noted() -> None:
    data = dialect_nets.written(dialect_nets.net("segnet"), dialects.find("segnet"), "NetParameter")
    got, found = read(data, "ssd")
    assert "the dialect ssd does not explain number " in found.note
    assert got.layer[-1].upsample_param.scale == 2, "a type's own field is read all the same"
    with pytest.raises(CaffePortError, match="there is no dialect"):
        read(data, "nobody")


INTEL = """
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 30 dim: 40 } } }
layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" inner_product_param { num_output: 2 } }
layer { name: "one" type: "Pooling" bottom: "x" top: "one" pooling_param { PARAMETERS } }
"""


def both(tmp_path: Path, parameters: str) -> tuple[Path, Path]:
    """A net with an open PoolingParameter: {kernel_size: 1 stride: 3}, Intel's {pad: 1 kernel_size: 3}."""
    blob = delimited(7, delimited(5, np.ones(7200, "<f4").tobytes()))
    data = b"".join(
        delimited(100, delimited(1, name) + delimited(2, type_) + delimited(3, b"x") + delimited(4, name) + rest)
        for name, type_, rest in (
            (b"a", b"InnerProduct", delimited(117, b"\x08\x02") + blob),
            (b"one", b"Pooling", delimited(121, b"\x10\x01\x18\x03")),
        )
    )
    weights, text = tmp_path / "net.caffemodel", tmp_path / "net.prototxt"
    weights.write_bytes(data)
    text.write_text(INTEL.replace("PARAMETERS", parameters))
    return text, weights


@pytest.mark.parametrize("parameters", ["kernel_size: 1 stride: 3", "pad: 1 kernel_size: 3"])
def test_a_text_decides(parameters: str, tmp_path: Path) -> None:
    text, weights = both(tmp_path, parameters)
    stored = caffemodel.read(weights)
    assert stored.recognition is not None
    assert stored.recognition.note
    known = stored.recognition.agree(
        [Message("LayerParameter", name="one", type="Pooling", pooling_param=_pooling(parameters))], "net", "text"
    )
    assert not known.note
    assert known.dialect.label == ("caffe" if "stride" in parameters else "intel-1.0.5")
    assert sort_files([text, weights]) == (str(text), str(weights))


def _pooling(parameters: str) -> Message:
    words = parameters.replace(":", "").split()
    return Message("PoolingParameter", **{k: [int(v)] for k, v in zip(words[::2], words[1::2], strict=True)})


def test_a_text_that_contradicts_is_an_error(tmp_path: Path) -> None:
    text, weights = both(tmp_path, "kernel_size: 1 stride: 3")
    with pytest.raises(CaffePortError) as caught:
        port(text, weights, dialect="intel-1.0.5")
    assert "layer 'one': the prototxt says pooling_param.kernel_size 1" in str(caught.value)
    assert "--dialect caffe" in str(caught.value)


def test_inspect_says_who_wrote_it(tmp_path: Path) -> None:
    facts = dict(inspect_file(file(tmp_path, dialect_nets.net("waifu2x"), "waifu2x")).facts)
    assert facts["written by"].startswith("waifu2x (lltcggie/caffe@lltcggie/custom, 2018-10-24)")
    assert facts["evidence"] == "crop_center_param is 149 (1 project)"


# -- blobs of old formats -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "dtype"),
    [
        (varint(10 << 3) + b"\x02" + delimited(12, np.arange(6, dtype="<f2").tobytes()), np.float16),  # NVIDIA 0.16
        (varint(10 << 3) + b"\x00" + delimited(12, np.arange(6, dtype="<f8").tobytes()), np.float64),
        (delimited(10, b"".join(map(varint, np.arange(6, dtype="<f2").view(np.uint16).tolist()))), np.float16),  # TI
        (varint(13 << 3) + b"\x01" + delimited(11, np.arange(6, dtype="<f2").tobytes()), np.float16),  # OpenCL
        (varint(13 << 3) + b"\x00" + delimited(11, np.arange(6, dtype="<f4").tobytes()), np.float32),
    ],
)
def test_blobs_of_other_types(payload: bytes, dtype: Any) -> None:
    blob = delimited(7, delimited(7, delimited(1, b"\x02\x03")) + payload)
    net, _ = read(layer("InnerProduct", blob, delimited(117, b"\x08\x02")))
    (array,) = (caffemodel.blob_array(one) for one in net.layer[0].blobs)
    assert array.dtype == dtype
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_mean_of_c3d(tmp_path: Path) -> None:
    """num 1, channels 2, length 3, height 4, width 5, data 6: a video, and no picture."""
    data = np.arange(24, dtype="<f4").tobytes()
    path = tmp_path / "mean.binaryproto"
    path.write_bytes(b"\x08\x01\x10\x02\x18\x03\x20\x02\x28\x02" + delimited(6, data))
    with pytest.raises(CaffePortError, match=r"\(1, 2, 3, 2, 2\) is not a single image"):
        caffemodel.read_mean(path)


def test_types_of_opencl_are_harmless() -> None:
    net, _ = read(layer("ReLU", *(varint(n << 3) + b"\x00" for n in (12, 13, 14))))
    assert set(net.layer[0].unknown) == {12, 13, 14}
