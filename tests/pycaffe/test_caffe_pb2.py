"""caffe_pb2: messages as scripts use them, and files of forks."""

import copy
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import needs_shared, real_files
from google.protobuf import message_factory, text_format
from google.protobuf.message import DecodeError, EncodeError

from caffe_port.formats import caffemodel, dialects, wire
from caffe_port.formats import message as messages
from caffe_port.formats.message import Message, schema
from caffe_port.pycaffe.proto import caffe_pb2

NET = """
name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "pool" type: "Pooling" bottom: "data" top: "pool" pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
"""


def net(text: str) -> Any:
    return text_format.Merge(text, caffe_pb2.NetParameter())


def test_messages_are_used_as_generated_ones() -> None:
    small = net(NET)
    assert small.layer[1].pooling_param.kernel_size == 3
    assert small.layer[1].pooling_param.pad == 0
    assert not small.layer[1].pooling_param.HasField("pad")
    assert small.layer[1].pooling_param.pool == caffe_pb2.PoolingParameter.AVE
    added = small.layer.add()
    added.CopyFrom(small.layer[1])
    added.name = "again"
    added.pooling_param.kernel_size = 5
    small.layer.extend([added])
    assert [layer.pooling_param.kernel_size for layer in small.layer] == [0, 3, 5, 5]
    assert [f.name for f, _ in small.layer[1].ListFields()] == ["name", "type", "bottom", "top", "pooling_param"]
    assert copy.deepcopy(small) == pickle.loads(pickle.dumps(small)) == small
    del small.layer[1:]
    assert text_format.MessageToString(small).count("layer {") == 1


def test_enums_and_constants() -> None:
    assert (caffe_pb2.TRAIN, caffe_pb2.TEST) == (0, 1) == (caffe_pb2.Phase.Value("TRAIN"), caffe_pb2.Phase.TEST)
    assert caffe_pb2.SolverParameter.SGD == 0
    assert caffe_pb2.SolverParameter.SolverMode.Name(1) == "GPU"
    assert caffe_pb2.V1LayerParameter.CONVOLUTION == 4
    assert caffe_pb2.V1LayerParameter.LayerType.Name(4) == "CONVOLUTION"
    assert caffe_pb2._V1LAYERPARAMETER_LAYERTYPE.values_by_number[4].name == "CONVOLUTION"
    assert caffe_pb2._NETPARAMETER.fields_by_name["layer"].number == 100
    assert caffe_pb2._PHASE.values_by_name["TEST"].number == 1
    with pytest.raises(AttributeError, match="no attribute 'NoSuchParameter'"):
        _ = caffe_pb2.NoSuchParameter


def test_text_format_needs_no_import_of_its_own() -> None:
    script = "from caffe_port.pycaffe.proto import caffe_pb2; import google.protobuf as pb2; pb2.text_format.Merge"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_messages_of_ssd() -> None:
    labels = text_format.Merge('item { name: "cat" label: 1 display_name: "Cat" }', caffe_pb2.LabelMap())
    assert labels.item[0].display_name == "Cat"
    datum = caffe_pb2.AnnotatedDatum(type=caffe_pb2.AnnotatedDatum.BBOX)
    box = datum.annotation_group.add(group_label=3).annotation.add(instance_id=1).bbox
    box.xmin, box.ymax = 0.25, 0.75
    assert caffe_pb2.AnnotatedDatum.FromString(datum.SerializeToString()) == datum


@pytest.mark.parametrize("name", ["caffe", "caffe-1.0", "ssd"])
def test_fields_are_those_of_caffe_and_ssd(name: str) -> None:
    """Number, type, label, default and enum of every field."""
    dialect = dialects.find(name)
    wrong, seen = [], 0
    for message, descriptor in caffe_pb2.DESCRIPTOR.message_types_by_name.items():
        for number, fact in dialect.layout(message).items():
            field = descriptor.fields_by_name[fact.name]
            own = schema(message).fields[fact.name]
            seen += 1
            kind = fact.message or fact.kind
            held = field.message_type.name if field.message_type else own.kind
            repeated = hasattr(getattr(getattr(caffe_pb2, message)(), fact.name), "extend")
            if (field.number, held, repeated) != (number, kind, fact.repeated):
                wrong.append((message, fact.name))
            if fact.values and any(field.enum_type.values_by_name[n].number != v for n, v in fact.values.items()):
                wrong.append((message, fact.name, "values"))
            default = dialects.default_of(fact, own)
            if default is not None and fact.kind not in ("enum", "string", "bytes") and not own.repeated:
                wrong += (
                    [(message, fact.name, default)] if np.float32(field.default_value) != np.float32(default) else []
                )
    assert not wrong
    assert seen > 300


def test_labels_differ_from_our_schema_only_where_caffe_does() -> None:
    repeated = {
        f"{message}.{field.name}"
        for message in messages._pool().FindFileByName("caffe.proto").message_types_by_name
        for field in schema(message).fields.values()
        if field.repeated and not hasattr(getattr(getattr(caffe_pb2, message)(), field.name), "extend")
    }
    assert repeated == {
        "PoolingParameter.kernel_size",
        "PoolingParameter.stride",
        "PoolingParameter.pad",
        "TransformationParameter.resize_param",
    }
    assert caffe_pb2.PoolingParameter().stride == 1


def test_every_field_of_every_fork_is_there() -> None:
    """Also those that proto/caffe.proto lacks; except for fields of messages within messages."""
    ours = caffe_pb2.DESCRIPTOR.message_types_by_name
    seen = 0
    for name in dialects.messages():
        for fact in dialects.fields(name) if "." not in name and name in ours else ():
            assert fact.name in ours[name].fields_by_name or "." in (fact.message or ""), (name, fact.name)
            seen += fact.name in ours[name].fields_by_name
    assert seen > 4000


def test_fields_that_our_schema_lacks_are_kept() -> None:
    """TextBoxes++'s use_polygon, an enum of a fork's and a message of a fork's."""
    made = net("""
        layer { name: "loss" type: "MultiBoxLoss" top: "loss" multibox_loss_param { num_classes: 2 use_polygon: true } }
        layer { name: "up" type: "Upsample" bottom: "loss" top: "up" upsample_param { scale: 2 } }
        layer { name: "hot" type: "MILData" top: "hot" mil_data_param { n_classes: 3 } }
    """)
    assert "use_polygon" not in schema("MultiBoxLossParameter").fields
    assert caffe_pb2.NetParameter.FromString(made.SerializeToString()) == pickle.loads(pickle.dumps(made)) == made
    assert "use_polygon: true" in text_format.MessageToString(made)
    assert caffe_pb2.TRTParameter().DESCRIPTOR.fields


def test_other_classes_of_the_schema_parse_plainly() -> None:
    """Parsing for forks is a matter of this module's classes alone."""
    other = message_factory.GetMessageClass(messages._pool().FindMessageTypeByName("caffe.NetParameter"))
    assert other is not caffe_pb2.NetParameter
    assert other.FromString(net(NET).SerializeToString()).name == "small"


def test_a_damaged_file_is_an_error_of_protobufs() -> None:
    with pytest.raises(DecodeError):
        caffe_pb2.NetParameter().ParseFromString(b"\x0a\xff")


# -- files of forks ------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + varint(value >> 7)


def delimited(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def layer(name: str, type_: str, *fields: bytes) -> bytes:
    head = delimited(1, name.encode()) + delimited(2, type_.encode())
    return delimited(100, head + delimited(3, b"x") + delimited(4, name.encode()) + b"".join(fields))


def test_a_number_means_what_the_writer_means() -> None:
    """One number, two forks, two fields."""
    pooled = varint(1 << 3) + varint(6) + varint(2 << 3) + varint(7)
    for fork, type_, field, inner in (
        ("fast-rcnn", "ROIPooling", "roi_pooling_param", pooled),
        ("enet", "Upsample", "upsample_param", varint(1 << 3) + varint(2)),
        ("ssd", "Permute", "permute_param", b"\x08\x00\x08\x02\x08\x03\x08\x01"),
    ):
        facts = dialects.find(fork).layout("LayerParameter")
        number = next(n for n, fact in facts.items() if fact.name == field)
        file = layer("it", type_, delimited(number, inner))
        read = caffe_pb2.NetParameter()
        assert read.ParseFromString(file) == len(file)
        assert read.layer[0].HasField(field)
        assert getattr(read.layer[0], field).ByteSize() == len(inner)


@pytest.mark.parametrize(
    ("type_", "parameters"),
    [
        ("ROIPooling", "roi_pooling_param { pooled_h: 6 pooled_w: 7 spatial_scale: 0.0625 }"),
        ("PSROIPooling", "psroi_pooling_param { spatial_scale: 0.0625 output_dim: 21 group_size: 7 }"),
        ("Upsample", "upsample_param { scale: 2 }"),
        ("Interp", "interp_param { height: 33 width: 65 }"),
        ("Axpy", ""),
        ("ShuffleChannel", "shuffle_channel_param { group: 3 }"),
        ("Normalize", "norm_param { across_spatial: false }"),
        ("PriorBox", "prior_box_param { min_size: 30 aspect_ratio: 2 }"),
    ],
)
def test_a_layer_of_a_fork_is_written_as_the_fork_reads_it(type_: str, parameters: str) -> None:
    made = net(f'layer {{ name: "a" type: "{type_}" bottom: "x" top: "a" {parameters} }}')
    data = made.SerializeToString()
    assert caffe_pb2.NetParameter.FromString(data) == pickle.loads(pickle.dumps(made)) == made
    (body,) = [data[start:stop] for *_, start, stop in wire.Reader(memoryview(data), "").fields(0, len(data))]
    numbers = {number for number, *_ in wire.Reader(memoryview(body), "").fields(0, len(body))}
    assert not numbers & set(dialects.PLACEHOLDERS)


def number_of(fork: str, name: str) -> int:
    return next(n for n, fact in dialects.find(fork).layout("LayerParameter").items() if fact.name == name)


@pytest.mark.parametrize(
    ("fork", "type_", "field", "inner"),
    [
        ("fast-rcnn", "ROIPooling", "roi_pooling_param", varint(1 << 3) + varint(6) + varint(2 << 3) + varint(7)),
        ("r-fcn", "ROIPooling", "roi_pooling_param", varint(1 << 3) + varint(6) + varint(2 << 3) + varint(7)),
        ("ssd", "Permute", "permute_param", b"\x08\x00\x08\x02\x08\x03\x08\x01"),
        ("pspnet", "Interp", "interp_param", varint(1 << 3) + varint(33) + varint(2 << 3) + varint(65)),
    ],
)
def test_a_net_keeps_the_numbers_of_its_fork(fork: str, type_: str, field: str, inner: bytes) -> None:
    """Also a copy, a pickled one, and after editing; whichever fork caffe-port would choose without knowing."""
    number = number_of(fork, field)
    file = layer("it", type_, delimited(number, inner))
    with dialects.assuming(fork):
        read = caffe_pb2.NetParameter.FromString(file)
    copied = caffe_pb2.NetParameter()
    copied.CopyFrom(read)
    for one in (read, copied, pickle.loads(pickle.dumps(read)), copy.deepcopy(read)):
        assert one.SerializeToString() == file
        assert "900000" not in text_format.MessageToString(one)
    read.layer[0].name = "new"
    assert delimited(number, inner) in read.SerializeToString()


@pytest.mark.parametrize(
    ("fork", "type_", "field", "inner"),
    [
        ("HyeonwooNoh/caffe", "BN", "bn_param", delimited(1, varint(2 << 3 | 5) + b"\0\0\0@")),
        ("HyeonwooNoh/caffe", "CROP", "", b""),
        ("AlfredXiangWu/caffe@hybrid_dev", "PRELU", "", b""),
        ("c3d-1.0", "CONVOLUTION3D", "convolution_param", varint(1 << 3) + varint(6) + varint(4 << 3) + varint(3)),
    ],
)
def test_a_net_of_2014_keeps_the_numbers_of_its_fork(fork: str, type_: str, field: str, inner: bytes) -> None:
    layout = dialects.find(fork).layout("V1LayerParameter")
    number = next((n for n, fact in layout.items() if fact.name == field), 0)
    types = next(fact.values for fact in layout.values() if fact.name == "type")
    old = delimited(4, b"it") + varint(5 << 3) + varint(types[type_]) + (delimited(number, inner) if field else b"")
    file = delimited(2, old)
    with dialects.assuming(fork):
        read = caffe_pb2.NetParameter.FromString(file)
    assert read.layers[0].type == caffe_pb2.V1LayerParameter.LayerType.Value(type_)
    copied = caffe_pb2.NetParameter()
    copied.CopyFrom(read)
    for one in (read, copied, pickle.loads(pickle.dumps(read))):
        assert sorted(one.SerializeToString()) == sorted(file)


@pytest.mark.parametrize(
    "forged", [delimited(900_000, b"no number"), delimited(900_000, b"999999"), varint(900_000 << 3) + b"\x07"]
)
def test_a_file_cannot_forge_the_fork(forged: bytes) -> None:
    made = net(NET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dropped what has no meaning
        read = caffe_pb2.NetParameter.FromString(made.SerializeToString() + forged)
    assert read.SerializeToString() == made.SerializeToString()


def test_a_number_that_means_something_else_there_is_refused() -> None:
    """A layer of SSD in a net that was read as happynear's, where 203 is not PriorBox's."""
    pooled = delimited(number_of("happynear", "roi_pooling_param"), varint(1 << 3) + varint(6) + varint(16) + b"\x07")
    with dialects.assuming("happynear"):
        read = caffe_pb2.NetParameter.FromString(layer("it", "ROIPooling", pooled))
    text_format.Merge('layer { name: "new" type: "PriorBox" prior_box_param { min_size: 30 } }', read)
    with pytest.raises(EncodeError, match=r"layer 'new' .*happynear.*203, is triplet_loss_param"):
        read.SerializeToString()


def test_what_has_no_meaning_is_dropped_with_a_warning() -> None:
    file = layer("a", "ReLU", delimited(7777777, b"xyz"))
    with pytest.warns(UserWarning, match=r"layer 'a' \(ReLU\): LayerParameter 7777777"):
        read = caffe_pb2.NetParameter.FromString(file)
    assert read.layer[0].name == "a"


def test_own_numbers_are_written_on_demand() -> None:
    one = Message("LayerParameter", type="Upsample", upsample_param=Message("UpsampleParameter", scale=2))
    own = b"".join(wire.serialize(Message("NetParameter", layer=[one]), own_numbers=True))
    assert wire.parse(own, "NetParameter").layer[0].upsample_param.scale == 2
    assert own != b"".join(wire.serialize(Message("NetParameter", layer=[one])))


@needs_shared
def test_real_files_are_read_and_written_unchanged() -> None:
    files = [path for path in real_files(".caffemodel") if "mtcnn" not in path.parts[-2]]
    assert len(files) > 100
    for path in files[::4]:
        data = path.read_bytes()
        read = caffe_pb2.NetParameter()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read.ParseFromString(data)
        assert read.SerializeToString() == data, path


@needs_shared
def test_a_net_of_2014_is_walked_as_it_is(shared: Path) -> None:
    path = shared / "models" / "zoo" / "caffe2014_lenet_v1" / "lenet_iter_10000.caffemodel"
    read = caffe_pb2.NetParameter()
    read.ParseFromString(path.read_bytes())
    assert not read.layer
    first = next(one for one in read.layers if one.type == caffe_pb2.V1LayerParameter.CONVOLUTION)
    wanted = next(one for one in caffemodel.read(path).layers if one.name == first.name)
    assert first.blobs[0].num == wanted.blobs[0].shape[0]
    assert np.array_equal(np.array(first.blobs[0].data, np.float32), wanted.blobs[0].ravel())
