"""Whose file is this: nets under the numbers of a dialect, what is left open, and a text beside them."""

from __future__ import annotations

import functools
import re
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
from caffe_port.definition.definition import Definition
from caffe_port.errors import CaffePortError
from caffe_port.formats import caffemodel, dialects, prototxt, recognition
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


def old_layer(type_: int, *fields: bytes) -> bytes:
    return delimited(2, delimited(4, b"one") + varint(5 << 3) + varint(type_) + b"".join(fields))


@pytest.mark.parametrize(
    ("data", "path", "assumed", "note", "dialect", "value"),
    [
        (old_layer(6), "dropout_param.scale_train", True, "true is assumed; in spp-net: false", "spp-net", False),
        (layer("Upsample"), "upsample_param.scale", 2, "2 is assumed; in mobilenet-yolo", "mobilenet-yolo", 1),
        (layer("ReverseTime"), "reverse_time_param.copy_remaining", True, "in warp-ctc: false", "warp-ctc", False),
        (layer("Scalar"), "scalar_param.axis", 1, "1 is assumed; in lrcn: 0", "lrcn", 0),
        (
            layer("PriorBox", delimited(203, b"\x0d\x00\x00\x80\x3f")),
            "prior_box_param.clip",
            False,
            "older SSD, TextBoxes",
            "textboxes",
            True,
        ),
        (
            layer("BatchNorm", delimited(139, b"\x38\x01"), varint(145 << 3) + b"\x01"),
            "batch_norm_param.eps",
            1e-5,
            "1e-05 is assumed; in nvidia-0.16.1",
            "nvidia-0.16.1",
            1e-4,
        ),
        (
            layer("SoftmaxWithLoss", delimited(101, b"\x18\x03")),
            "loss_param.normalization",
            "NONE",
            "in r-fcn, microsoft, intel",
            "r-fcn",
            "PRE_FIXED",
        ),
    ],
    ids=["Dropout", "Upsample", "ReverseTime", "Scalar", "PriorBox", "BatchNorm", "normalization"],
)
def test_what_a_file_does_not_state_is_assumed_and_told(
    data: bytes, path: str, assumed: Any, note: str, dialect: str, value: Any, tmp_path: Path
) -> None:
    """The note says what was assumed and what others give; ``--dialect`` decides, and then there is no such note."""
    file_ = tmp_path / "net.caffemodel"
    file_.write_bytes(data)

    def definition(named: str | None) -> Definition:
        with dialects.assuming(named):
            return Definition.embedded(caffemodel.read(file_))

    def of(net: Message) -> Any:
        return functools.reduce(getattr, path.split("."), net.layer[0])

    free, told = definition(None), definition(dialect)
    assert of(free.net) == assumed
    assert of(told.net) == value
    assert sum(note in one for one in free.spec().notes) == 1
    assert not any(note in one for one in told.spec().notes)


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


@pytest.mark.parametrize(
    ("writer", "other"),
    [
        ("ssd", "intel-1.0.5"),  # pooling
        ("intel-1.0.5", "caffe"),
        ("deeplab-v2", "yjxiong"),  # dilation, dilation_h
        ("pspnet", "pspnet-2016-12-04"),  # dilation, hole
        ("r-fcn", "nvidia-0.17"),  # pre_fixed_normalizer, label_smoothing
    ],
)
def test_a_text_as_another_dialect_reads_the_file_is_an_error(writer: str, other: str, tmp_path: Path) -> None:
    """The error names a dialect for which the file says what the text says; with it, all is well."""
    path = file(tmp_path, dialect_nets.net(writer), writer)
    text = tmp_path / "net.prototxt"
    net, _ = read(path.read_bytes(), other)
    text.write_text(prototxt.dump(net.copy(layer=[one.copy(blobs=None) for one in net.layer])))
    definition = Definition.read(text)
    with pytest.raises(CaffePortError) as caught:
        definition.beside(caffemodel.read(path))
    assert f"the weights as {writer} wrote them say" in str(caught.value)
    named = re.search(r"--dialect (\S+)\. The", str(caught.value))
    assert named is not None
    theirs, _ = read(path.read_bytes(), named[1])
    said = [one for one in definition.net.layer if f"layer '{one.name}'" in str(caught.value)]
    same = [one for one in theirs.layer if one.name == said[0].name]
    assert dialect_nets.comparable(same[0]) == dialect_nets.comparable(said[0])
    with dialects.assuming(other):
        assert definition.beside(caffemodel.read(path)).net.layer


def test_a_text_as_the_writer_meant_it_is_well(tmp_path: Path) -> None:
    for name in sorted(dialect_nets.NETS):
        net = dialect_nets.net(name)
        path, text = file(tmp_path, net, name), tmp_path / "net.prototxt"
        layers = "layer" if net.has("layer") else "layers"
        text.write_text(prototxt.dump(net.copy(**{layers: [one.copy(blobs=None) for one in getattr(net, layers)]})))
        notes = Definition.read(text).beside(caffemodel.read(path)).notes
        assert not [note for note in notes if "--dialect" in note], name


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


# -- sizes that carry through ---------------------------------------------------------------------------------------


def _chain(pooling: bytes, columns: int, size: int = 9, extra: bytes = b"") -> bytes:
    """Input (1, 3, size, size), Pooling, ReLU, Dropout, InnerProduct with weights (2, columns)."""
    weight = delimited(7, delimited(7, delimited(1, varint(2) + varint(columns))) + delimited(5, bytes(8 * columns)))
    shape = delimited(143, delimited(1, delimited(1, b"\x01\x03" + varint(size) * 2)))
    layers = (
        ("Input", "x", "x", shape),
        ("Pooling", "x", "p", delimited(121, pooling)),
        ("ReLU", "p", "p", extra),
        ("Dropout", "p", "p", b""),
        ("InnerProduct", "p", "y", delimited(117, b"\x08\x02\x10\x00") + weight),
    )
    return b"".join(
        delimited(
            100,
            delimited(1, f"{type_.lower()}".encode())
            + delimited(2, type_.encode())
            + (delimited(3, bottom.encode()) if type_ != "Input" else b"")
            + delimited(4, top.encode())
            + rest,
        )
        for type_, bottom, top, rest in layers
    )


@pytest.mark.parametrize(
    ("columns", "dialect", "kernel"),
    [
        (3 * 4 * 4, "caffe", 1),  # kernel 1, stride 3
        (3 * 9 * 9, "intel-1.0.5", 3),  # pad 1, kernel 3
    ],
)
def test_the_sizes_in_a_net_decide(columns: int, dialect: str, kernel: int, tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(_chain(b"\x10\x01\x18\x03", columns))
    assert caffemodel.read(path).recognition.note, "the numbers alone tell nothing"
    ported = port(None, path)
    assert ported.net.pooling.kernel_size == (kernel, kernel)
    assert not [note for note in ported.notes if "--dialect" in note]
    facts = dict(inspect_file(path).facts)
    assert facts["written by"].startswith(str(dialects.find(dialect)))
    assert facts["evidence"].startswith("the sizes in the net carry through")
    assert "open" not in facts
    assert "unlikely" in facts


def test_sizes_that_no_reading_carries_through_decide_nothing(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(_chain(b"\x10\x01\x18\x03", 7))
    facts = dict(inspect_file(path).facts)
    assert facts["written by"].startswith("BVLC/caffe") or facts["written by"].startswith("caffe ")
    assert "open" in facts


# -- shapes of blobs ------------------------------------------------------------------------------------------------


def _blob(*shape: int) -> bytes:
    data = np.ones(int(np.prod(shape)), "<f4").tobytes()
    return delimited(7, delimited(7, delimited(1, b"".join(map(varint, shape)))) + delimited(5, data))


FILLERS = delimited(137, delimited(1, delimited(1, b"constant")) + delimited(2, delimited(1, b"constant")))


@pytest.mark.parametrize(("shape", "said", "out"), [((1, 4, 1, 1), "scale_filler", "yjxiong"), ((1, 4), "", "")])
def test_the_form_of_a_bn_by_its_blobs(shape: tuple[int, ...], said: str, out: str) -> None:
    """Number 137 has three layouts; happynear's vectors have four axes, yjxiong's two. PSPNet's first schema has the
    fields of both."""
    _, found = read(layer("BN", FILLERS))
    assert {"yjxiong", "happynear-2015", "pspnet-2016-12-04"} <= _left(found)
    net, found = read(layer("BN", *[_blob(*shape)] * 4, FILLERS))
    assert (out or "happynear-2015") not in _left(found)
    assert not said or net.layer[0].bn_param.has(said)


def _left(found: Any) -> set[str]:
    return {found.dialect.label, *(d.label for d in (*found.like, *(d for one in found.open for d in one.dialects)))}


def test_the_form_of_a_bn_by_its_values() -> None:
    """yjxiong's momentum is happynear's var_eps: 0.9 is no epsilon, and 1e-9 no momentum."""
    for value, name, label in ((0.9, "momentum", "yjxiong"), (1e-9, "var_eps", "pspnet-2016-12-04")):
        bn = layer("BN", delimited(137, varint(3 << 3 | 5) + np.array(value, "<f4").tobytes()))
        net, found = read(b"".join([bn, *[layer("ReLU")] * 4]))
        assert net.layer[0].bn_param.has(name)
        assert (found.dialect.label, found.open) == (label, ())


def test_five_blobs_of_a_batch_norm_exclude_who_has_three() -> None:
    """Field 4 alone is Intel's engine, or whether to update the statistics, and so on; the blobs leave Intel's."""
    three, five = ([_blob(4), _blob(4), _blob(1), _blob(4), _blob(4)][:n] for n in (3, 5))
    field = delimited(139, varint(4 << 3) + b"\x01")
    assert read(layer("BatchNorm", *three, field))[1].dialect.label == "intel"
    _, found = read(layer("BatchNorm", *five, field))
    assert "intel" in _left(found)
    assert not _left(found) & {"deeplab-v2", "pspnet", "opencl"}


def test_a_kernel_of_c3d() -> None:
    """C3D 1.0 has kernel_depth at 6, where Caffe has the stride, and blobs of five axes."""
    blob = delimited(6, b"\x08\x04\x10\x02\x18\x03\x20\x03\x28\x03" + delimited(6, bytes(4 * 4 * 2 * 27)))
    head = delimited(4, b"c") + varint(5 << 3) + varint(30)
    net, found = read(delimited(2, head + blob + delimited(10, b"\x08\x04\x20\x03\x30\x03")))
    assert found.dialect.label == "c3d-1.0"
    assert net.layers[0].convolution_param.kernel_depth == 3
