"""Message: attributes, defaults, presence, equality."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from caffe_port.formats import prototxt, wire
from caffe_port.formats.message import Message, decimal, schema


def test_unset_fields_give_their_defaults() -> None:
    layer = Message("LayerParameter")
    assert layer.name == ""
    assert layer.bottom == []
    assert layer.convolution_param.num_output == 0
    assert layer.convolution_param.bias_term is True
    assert layer.pooling_param.pool == "MAX"
    assert layer.batch_norm_param.moving_average_fraction == 0.999
    assert layer.lrn_param.k == 1.0
    assert not layer.items()


def test_a_default_list_is_nobodys() -> None:
    layer = Message("LayerParameter")
    layer.bottom.append("data")
    assert layer.bottom == []
    assert Message("LayerParameter").bottom == []


def test_has_tells_set_from_default() -> None:
    p = Message("ConvolutionParameter", engine="CAFFE", group=1)
    assert p.has("engine")
    assert p.has("group")
    assert not p.has("num_output")
    p.set("group", None)
    assert not p.has("group")
    assert p.group == 1
    layer = Message("LayerParameter", bottom=[], relu_param=Message("ReLUParameter"))
    assert not layer.has("bottom"), "a repeated field without values is absent"
    assert layer.has("relu_param"), "an empty message is present"


@pytest.mark.parametrize("name", ["botom", "_hidden", "kernel"])
def test_unknown_names_are_refused(name: str) -> None:
    layer = Message("LayerParameter")
    with pytest.raises(AttributeError):
        getattr(layer, name)
    with pytest.raises(AttributeError):
        layer.set(name, 1)


def test_constructor_takes_tuples_and_refuses_unknown_fields() -> None:
    assert Message("BlobShape", dim=(2, 3)).dim == [2, 3]
    with pytest.raises(AttributeError, match="BlobShape has no field 'dims'"):
        Message("BlobShape", dims=[1])


def test_no_such_message() -> None:
    with pytest.raises(KeyError):
        schema("LayerParametre")


def test_copy_is_shallow_and_leaves_the_original() -> None:
    layer = prototxt.parse('name: "a" bottom: "x" top: "y" mystery: 7', "LayerParameter")
    other = layer.copy(name="b", bottom=None)
    assert (other.name, other.bottom, other.top, other.unknown) == ("b", [], ["y"], {"mystery": [7]})
    assert (layer.name, layer.bottom) == ("a", ["x"])
    other.unknown["mystery"] = [8]
    assert layer.mystery == 7


def test_items_follow_the_schema_not_the_text() -> None:
    layer = prototxt.parse('top: "y" bottom: "x" type: "T" name: "n"', "LayerParameter")
    order = list(schema("LayerParameter").fields)
    names = [name for name, _ in layer.items()]
    assert names == sorted(names, key=order.index)
    assert set(names) == {"top", "bottom", "type", "name"}


def test_equality_looks_at_fields_and_unknown_ones_not_at_lines() -> None:
    one = prototxt.parse('name: "a" x: 1', "LayerParameter")
    two = prototxt.parse('\n\nx: 1\nname: "a"', "LayerParameter")
    assert one == two
    assert one != prototxt.parse('name: "a" x: 2', "LayerParameter")
    assert one != prototxt.parse('name: "a"', "LayerParameter")
    assert one != prototxt.parse('name: "a" x: 1 top: "y"', "LayerParameter")
    assert one != "name: a"
    assert Message("BlobShape") != Message("BlobProto")


def test_equality_with_arrays() -> None:
    """A binary message holds arrays where a text one holds lists."""
    text = prototxt.parse("data: [1, 2.5, -3] shape { dim: 3 }", "BlobProto")
    binary = wire.parse(b"".join(wire.serialize(text)), "BlobProto")
    assert isinstance(binary.data, np.ndarray)
    assert text == binary
    assert binary == text
    assert binary == wire.parse(b"".join(wire.serialize(binary)), "BlobProto")
    assert binary != text.copy(data=[1, 2.5, -4])
    assert binary != text.copy(data=[1, 2.5])


def test_messages_are_not_hashable_but_copy() -> None:
    layer = prototxt.parse('name: "a" relu_param { negative_slope: 0.5 } odd { k: 3 }', "LayerParameter")
    with pytest.raises(TypeError):
        hash(layer)
    assert copy.copy(layer) == layer
    assert copy.deepcopy(layer) == layer
    assert copy.deepcopy(layer).relu_param is not layer.relu_param


def test_lines_are_where_messages_begin() -> None:
    net = prototxt.parse(
        'name: "n"\nlayer {\n  name: "a"\n  relu_param\n  {\n  }\n}\n\nlayer { name: "b" }', "NetParameter"
    )
    assert [layer.line for layer in net.layer] == [2, 9]
    assert net.layer[0].relu_param.line == 5
    assert Message("LayerParameter").line == 0


@pytest.mark.parametrize(
    ("value", "want"),
    [(np.float32(0.95), 0.95), (0.1, 0.1), (1e-9, 1e-9), (16777217.0, 16777216.0), (1e39, np.inf), (-1e39, -np.inf)],
)
def test_decimal_is_the_shortest_of_the_same_float32(value: float, want: float) -> None:
    assert decimal(value) == want
