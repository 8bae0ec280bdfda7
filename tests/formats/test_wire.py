"""Binary format: protobuf's own SerializeToString and FromString as the oracle, and damaged bytes."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from typing import Any

import numpy as np
import oracle
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caffe_port.errors import ParseError
from caffe_port.formats import dialects, prototxt, wire
from caffe_port.formats.message import Message

QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ROOTS = ("NetParameter", "SolverParameter", "LayerParameter", "V1LayerParameter", "BlobProto", "Datum")


def serialized(message: Message) -> bytes:
    return b"".join(wire.serialize(message))


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def delimited(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def group(number: int, payload: bytes) -> bytes:
    """proto1's nested message, between two marks."""
    return varint(number << 3 | 3) + payload + varint(number << 3 | 4)


def by_schema(value: Message) -> bool:
    """Whether all LayerParameters inside are written under the schema's own numbers, and not under a fork's."""
    for name, one in dict(value.items()).items():
        if value.schema is not None and value.schema.name == "LayerParameter":
            number, inside = dialects.written(value.type, name, one)
            if inside or number != value.schema.fields[name].number:
                return False
        for child in one if isinstance(one, list) else [one]:
            if isinstance(child, Message) and not by_schema(child):
                return False
    return True


# -- against protobuf -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROOTS)
def test_what_protobuf_writes_we_read(name: str) -> None:
    @QUICK
    @given(oracle.messages(name))
    def check(theirs: Any) -> None:
        ours = wire.parse(theirs.SerializePartialToString(), name)
        assert oracle.plain(ours) == oracle.plain(theirs)
        assert not ours.unknown

    check()


@pytest.mark.parametrize("name", ROOTS)
def test_what_we_write_protobuf_reads(name: str) -> None:
    @QUICK
    @given(oracle.messages(name))
    def check(theirs: Any) -> None:
        ours = wire.parse(theirs.SerializePartialToString(), name)
        if by_schema(ours):
            data = serialized(ours)
            assert oracle.plain(oracle.of(name).FromString(data)) == oracle.plain(theirs)
            if "nan" not in str(theirs):  # there are many
                assert data == theirs.SerializePartialToString(deterministic=True), (
                    "fields in the order of their numbers"
                )

    check()


@settings(QUICK, max_examples=150)
@given(oracle.messages("LayerParameter"), oracle.messages("LayerParameter"))
def test_two_messages_in_a_row_are_merged(one: Any, two: Any) -> None:
    """Protobuf joins what comes twice, at every depth."""
    data = one.SerializePartialToString() + two.SerializePartialToString()
    ours = wire.parse(data, "LayerParameter")
    assert oracle.plain(ours) == oracle.plain(oracle.of("LayerParameter").FromString(data))


def test_merging_by_hand() -> None:
    inner = [
        prototxt.parse(text, "PriorBoxParameter")
        for text in ("min_size: [1, 2] flip: false img_size: 300", "min_size: 3 flip: true")
    ]
    parts = [serialized(Message("LayerParameter", prior_box_param=p)) for p in inner]
    p = wire.parse(b"".join(parts * 2), "LayerParameter").prior_box_param
    assert list(p.min_size) == [1, 2, 3, 1, 2, 3]
    assert p.flip is True
    assert p.img_size == 300


def test_text_and_binary_are_one_message() -> None:
    text = """
    name: "n" state { phase: TEST level: -3 stage: ["a", "b"] }
    layer { name: "c" type: "Convolution" bottom: "d" top: "c" loss_weight: 0.1
      convolution_param { num_output: 7 pad: [1, 2] bias_term: false engine: CUDNN weight_filler { std: 0.01 } } }
    """
    net = prototxt.parse(text, "NetParameter")
    again = wire.parse(serialized(net), "NetParameter")
    assert again == net
    assert prototxt.dump(again) == prototxt.dump(net)
    assert again.line == 0


@pytest.mark.parametrize(
    ("name", "text", "data"),
    [
        ("SoftmaxParameter", "axis: -1", b"\x10" + b"\xff" * 9 + b"\x01"),
        ("BlobShape", "dim: [2, 300]", b"\x0a\x03\x02\xac\x02"),
        ("ReLUParameter", "negative_slope: 0.5", b"\x0d" + struct.pack("<f", 0.5)),
        ("PoolingParameter", "pool: AVE kernel_size: 3", b"\x08\x01\x10\x03"),
        ("LayerParameter", 'name: "\\344\\270\\255" bottom: ["a", "b"]', b"\x0a\x03\xe4\xb8\xad\x1a\x01a\x1a\x01b"),
        ("BlobProto", "double_data: [1.5]", b"\x42\x08" + struct.pack("<d", 1.5)),
        ("V1LayerParameter", "type: CONVOLUTION", b"\x28\x04"),
    ],
)
def test_bytes_by_hand(name: str, text: str, data: bytes) -> None:
    assert serialized(prototxt.parse(text, name)) == data
    assert wire.parse(data, name) == prototxt.parse(text, name)


# -- arrays ---------------------------------------------------------------------------------------------------------


def blob_bytes(values: np.ndarray[Any, Any], packed: bool) -> bytes:
    """A BlobProto's data as today's Caffe writes it, or one tag a value, as Caffe did before 2014."""
    number, wire_type = (5, 5) if values.dtype == np.float32 else (8, 1)
    if packed:
        return delimited(number, values.tobytes())
    return b"".join(varint(number << 3 | wire_type) + one.tobytes() for one in values)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 33, 1000])
def test_arrays_are_views_of_the_file(dtype: Any, packed: bool, count: int) -> None:
    values = np.arange(count).astype(dtype) - 7.25
    shape = delimited(7, delimited(1, varint(count)))
    data = np.frombuffer(shape + blob_bytes(values, packed) + shape[:0], np.uint8)
    proto = wire.parse(data, "BlobProto")
    got = proto.data if dtype == np.float32 else proto.double_data
    assert got.dtype == dtype
    assert got.tolist() == values.tolist()
    assert np.shares_memory(got, data)
    assert got.strides == ((got.itemsize,) if packed else (got.itemsize + 1,))
    assert proto.shape.dim == [count]


def test_protobuf_agrees_on_unpacked_floats() -> None:
    values = np.array([1.5, -2, np.inf], np.float32)
    theirs = oracle.of("BlobProto").FromString(blob_bytes(values, packed=False))
    assert list(theirs.data) == values.tolist()


@pytest.mark.parametrize("order", ["pu", "up", "uu", "pp", "upu", "p", "", "udu", "ududu"])
def test_pieces_of_one_array_are_joined(order: str) -> None:
    """p: packed, u: one tag a value, d: another field between."""
    values = np.arange(6, dtype=np.float32)
    piece = {
        "p": blob_bytes(values, True),
        "u": blob_bytes(values, False),
        "d": blob_bytes(-values[:1], True)[:0] + delimited(6, values.tobytes()),
    }
    data = b"".join(piece[c] for c in order)
    proto = wire.parse(data, "BlobProto")
    count = sum(c != "d" for c in order)
    assert proto.has("data") == bool(count)
    assert list(proto.data) == values.tolist() * count
    assert list(proto.data) == list(oracle.of("BlobProto").FromString(data).data)


def test_alternating_values_take_linear_time() -> None:
    """data and diff by turns: a reader that looks ahead to the end at every value would take minutes."""
    one = b"\x2d" + struct.pack("<f", 1.5) + b"\x35" + struct.pack("<f", -2)
    count = 20_000
    start = time.perf_counter()
    proto = wire.parse(one * count, "BlobProto")
    assert time.perf_counter() - start < 4
    assert proto.data.size == proto.diff.size == count
    assert (set(proto.data), set(proto.diff)) == ({1.5}, {-2})


@pytest.mark.parametrize("packed", [True, False])
def test_reading_takes_no_memory(packed: bool) -> None:
    values = np.ones(1_000_000, np.float32)
    data = blob_bytes(values, packed)
    tracemalloc.start()
    proto = wire.parse(data, "BlobProto")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert proto.data.size == 1_000_000
    assert peak < (100_000 if packed else 4_000_000), "headers only, or flags of a part of the values"


def test_raw_bytes_are_views() -> None:
    data = np.frombuffer(delimited(12, b"\x00\x3c\x00\xc0") + b"\x50\x02", np.uint8)
    proto = wire.parse(data, "BlobProto")
    assert proto.raw_data_type == "FLOAT16"
    assert np.shares_memory(np.frombuffer(proto.raw_data, np.uint8), data)
    assert bytes(proto.raw_data) == b"\x00\x3c\x00\xc0"


def test_writing_does_not_copy_arrays() -> None:
    values = np.arange(1000, dtype=np.float32)
    chunks = list(wire.serialize(Message("BlobProto", data=values)))
    assert any(np.shares_memory(np.frombuffer(chunk, np.uint8), values) for chunk in chunks)


def test_a_text_list_is_written_as_an_array() -> None:
    data = serialized(prototxt.parse("data: [1, 0.1, -inf]", "BlobProto"))
    assert list(oracle.of("BlobProto").FromString(data).data) == [1, float(np.float32(0.1)), -np.inf]


def test_strided_views_are_written_packed() -> None:
    values = np.arange(12, dtype=np.float32)
    read = wire.parse(blob_bytes(values, packed=False), "BlobProto")
    assert serialized(read) == blob_bytes(values, packed=True)


# -- packed, unpacked, unknown --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        delimited(1, b"\x02\xac\x02"),
        b"\x08\x02\x08\xac\x02",
        delimited(1, b"\x02") + b"\x08\xac\x02",
        delimited(1, b"") + delimited(1, b"\x02\xac\x02"),
    ],
    ids=["packed", "unpacked", "mixed", "empty piece"],
)
def test_integers_packed_or_not(data: bytes) -> None:
    assert wire.parse(data, "BlobShape").dim == [2, 300]
    assert list(oracle.of("BlobShape").FromString(data).dim) == [2, 300]


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("LayerParameter", "loss_weight", [1.5, -2]),
        ("ConvolutionParameter", "pad", [3, 4]),
        ("SolverParameter", "stepvalue", [100, 200000]),
        ("SliceParameter", "slice_point", [2, 5]),
    ],
)
def test_fields_that_caffe_writes_unpacked(name: str, field: str, value: list[float]) -> None:
    theirs = oracle.of(name)(**{field: value})
    data = theirs.SerializePartialToString()
    assert list(getattr(wire.parse(data, name), field)) == value
    assert serialized(Message(name, **{field: value})) == data


@pytest.mark.parametrize(
    ("number", "data", "kept"),
    [
        (9000, varint(9000 << 3) + varint(77), [77]),
        (9000, delimited(9000, b"abc"), [b"abc"]),
        (9000, varint(9000 << 3 | 5) + b"1234", [b"1234"]),
        (9000, varint(9000 << 3 | 1) + b"12345678", [b"12345678"]),
        (9000, delimited(9000, b"a") * 2, [b"a", b"a"]),
        (9000, group(9000, b""), [b""]),
        (9000, group(9000, b"\x08\x01" + delimited(2, b"ab")), [b"\x08\x01\x12\x02ab"]),
        (9000, group(9000, group(3, b"\x2d1234") + group(9000, b"")), [group(3, b"\x2d1234") + group(9000, b"")]),
        (1, group(1, b"\x0d1234"), [b"\x0d1234"]),  # a known field that is no group
    ],
)
def test_unknown_numbers_are_kept(number: int, data: bytes, kept: list[Any]) -> None:
    data = b"\x0a\x01n" + data + b"\x12\x01T"
    got = wire.parse(data, "LayerParameter")
    assert (got.name, got.type) == ("n", "T")
    assert oracle.of("LayerParameter").FromString(data).type == "T", "as protobuf reads it"
    assert [bytes(v) if isinstance(v, memoryview) else v for v in got.unknown[number]] == kept


def test_enums_and_bools_of_other_values() -> None:
    p = wire.parse(b"\x08\x63", "PoolingParameter")
    assert p.pool == 99, "a number without a name stays a number"
    assert serialized(p) == b"\x08\x63"
    assert wire.parse(b"\x10\x05", "ConvolutionParameter").bias_term is True


def test_a_string_that_is_not_utf8_is_readable() -> None:
    assert wire.parse(b"\x0a\x02\xff!", "LayerParameter").name == "\N{REPLACEMENT CHARACTER}!"


# -- damage ---------------------------------------------------------------------------------------------------------


def small_net() -> bytes:
    text = """
    name: "small" input: "data" input_shape { dim: [2, 3, 5, 7] }
    layer { name: "conv" type: "Convolution" bottom: "data" top: "c" param { lr_mult: 0.5 } phase: TEST
      convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } }
      blobs { shape { dim: [4, 3] } data: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] }
      blobs { shape { dim: 2 } double_data: [0.5, -1] } blobs { raw_data_type: FLOAT16 raw_data: "abcd" } }
    layer { name: "bn" type: "BN" bn_param { eps: 0.1 } }
    layers { name: "old" type: RELU }
    """
    return serialized(prototxt.parse(text, "NetParameter"))


def test_truncated_at_every_byte() -> None:
    """Protobuf's and our verdict are the same at every length."""
    data = small_net()
    whole = wire.parse(data, "NetParameter")
    refused = 0
    for length in range(len(data)):
        try:
            theirs = oracle.plain(oracle.of("NetParameter").FromString(data[:length]))
        except DecodeError:
            with pytest.raises(ParseError, match=r"\(at byte \d+ of \d+\): the file is damaged or not in this format"):
                wire.parse(data[:length], "NetParameter")
            refused += 1
        else:
            assert oracle.plain(wire.parse(data[:length], "NetParameter")).keys() == theirs.keys()
    assert refused > 0.9 * len(data)
    assert [layer.name for layer in whole.layer] == ["conv", "bn"]


def test_flipped_bits_end_in_a_message_or_a_parse_error() -> None:
    data, rng = small_net(), random.Random(1)
    verdicts = {True: 0, False: 0}
    start = time.perf_counter()
    for _ in range(4000):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 5))):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        try:
            wire.parse(bytes(damaged), "NetParameter")
            verdicts[True] += 1
        except ParseError as error:
            assert str(error).startswith("<bytes>: ")  # noqa: PT017
            verdicts[False] += 1
    assert time.perf_counter() - start < 10
    assert min(verdicts.values()) > 200


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(ROOTS))
def test_any_bytes_end_in_a_message_or_a_parse_error(data: bytes, name: str) -> None:
    try:
        assert isinstance(wire.parse(data, name), Message)
    except ParseError as error:
        assert error.where == "<bytes>"  # noqa: PT017


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x80", "the data ends inside a varint (at byte 0 of 1)"),
        (b"\x08" + b"\xff" * 11, "a varint is longer than ten bytes (at byte 1 of 12)"),
        (b"\x00\x01", "BlobProto has a field with number 0 (at byte 0 of 2)"),
        (b"\x2a\x05ab", "a field of BlobProto is 5 bytes long, with only 2 left (at byte 0 of 4)"),
        (b"\x2a\x05abcde", "'data' is 5 bytes long, not a whole number of floats (at byte 2 of 7)"),
        (b"\x2d\x00\x00", "the data ends inside a value (at byte 0 of 3)"),
        (b"\x0b", "group 1 of BlobProto does not end (at byte 0 of 1)"),
        (b"\x0b\x0d\x00", "group 1 of BlobProto does not end (at byte 0 of 3)"),
        (b"\x0b\x14", "a group of BlobProto ends with the number of another, 2 (at byte 1 of 2)"),
        (b"\x0b\x04", "BlobProto has a field with number 0 (at byte 1 of 2)"),
        (b"\x0b" * 200, "messages are nested more than 100 deep"),
        (b"\x0c", "field 1 of BlobProto has wire type 4 (at byte 0 of 1)"),
        (b"\x0f", "field 1 of BlobProto has wire type 7 (at byte 0 of 1)"),
        (b"\x3a\x03\x0a\x05\x01", "a field of BlobShape is 5 bytes long, with only 1 left (at byte 2 of 5)"),
        (
            b"\x2a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
            "a field of BlobProto is 9,223,372,036,854,775,807 bytes long, with only 0 left",
        ),
    ],
)
def test_damage_is_named_with_its_byte(data: bytes, what: str) -> None:
    with pytest.raises(ParseError) as caught:
        wire.parse(data, "BlobProto", "w.caffemodel")
    assert str(caught.value).startswith(f"w.caffemodel: {what}")


def test_depth_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """No message of the schema holds itself, so that files cannot nest deep; the limit stands all the same."""
    deep = serialized(prototxt.parse("layer { transform_param { resize_param { } } }", "NetParameter"))
    flat = serialized(prototxt.parse("layer { transform_param { } }", "NetParameter"))
    monkeypatch.setattr(wire, "MAX_DEPTH", 2)
    with pytest.raises(ParseError, match="messages are nested more than 2 deep"):
        wire.parse(deep, "NetParameter")
    assert wire.parse(flat, "NetParameter").layer[0].has("transform_param")


def test_a_declared_terabyte_allocates_nothing() -> None:
    claim = b"\x2a" + varint(4 * 10**12) + b"abcd"
    shape = delimited(7, delimited(1, varint(10**6) * 2))
    tracemalloc.start()
    with pytest.raises(ParseError, match="4,000,000,000,000 bytes long, with only 4 left"):
        wire.parse(shape + claim, "BlobProto")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
