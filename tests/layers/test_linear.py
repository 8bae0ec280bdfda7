"""InnerProduct, Embed, Scale, Bias: by hand, by the definition, against torch.nn."""

import numpy as np
import pytest
import torch
from torch import nn

from caffe_port.errors import SpecError
from caffe_port.formats import prototxt
from caffe_port.layers import REGISTRY


def build(kind, text, *bottoms):
    message = prototxt.parse(f'name: "l" type: "{kind}" {text}', "LayerParameter")
    layer = REGISTRY[kind].build(message, list(bottoms))
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer.eval()


# -- InnerProduct -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_inner_product_flattens_from_its_axis(axis):
    x = torch.randn(2, 3, 5, 4)
    layer = build("InnerProduct", f"inner_product_param {{ num_output: 6 axis: {axis} }}", x.shape)
    flat = x.flatten(axis)
    torch.testing.assert_close(layer(x), flat @ layer.weight.t() + layer.bias)
    assert layer(x).shape == (*x.shape[: axis % 4], 6)


@pytest.mark.parametrize("shape", [(2, 3), (7,), (2, 5, 3)])
def test_inner_product_torch_source_is_bit_equal(shape):
    layer = build("InnerProduct", f"inner_product_param {{ num_output: 4 axis: {len(shape) - 1} }}", shape)
    assert layer.torch_source() == f"nn.Linear({shape[-1]}, 4)"
    module = eval(layer.torch_source())
    module.load_state_dict(layer.torch_state())
    x = torch.randn(shape)
    assert torch.equal(module(x), layer(x))


def test_inner_product_is_handed_a_flat_bottom():
    layer = build("InnerProduct", "inner_product_param { num_output: 4 bias_term: false }", (2, 3, 5, 4))
    assert layer.torch_source() == "nn.Linear(60, 4, bias=False)"
    assert layer.bottom_source("x") == "x.flatten(1)"
    assert layer.blob_names() == ["weight"]


def test_inner_product_transposed_in_the_file_only():
    layer = build("InnerProduct", "inner_product_param { num_output: 2 transpose: true }", (1, 3))
    blob = np.array([[1.0, 2], [10, 20], [100, 200]])
    layer.load_blobs([blob, np.zeros(2)])
    assert layer.weight.tolist() == blob.T.tolist()
    assert layer.get_blob("weight").tolist() == blob.tolist()
    assert layer(torch.ones(1, 3)).tolist() == [[111, 222]]
    layer.load_blobs([blob.reshape(1, 1, 3, 2), np.zeros((1, 1, 1, 2))])
    assert layer.weight.tolist() == blob.T.tolist()


# -- Embed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_embed(bias):
    layer = build("Embed", f"embed_param {{ input_dim: 5 num_output: 3 bias_term: {str(bias).lower()} }}", (2, 4))
    x = torch.tensor([[0.0, 4, 2, 2], [1, 3, 0, 4]])
    want = layer.weight[x.long()] + (layer.bias if bias else 0)
    assert torch.equal(layer(x), want)
    assert layer.blob_names() == (["weight", "bias"] if bias else ["weight"])


# -- Scale and Bias -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("", (3, 1, 1)),
        ("axis: 0", (2, 1, 1, 1)),
        ("axis: -1", (4,)),
        ("axis: -3 num_axes: 2", (3, 5, 1)),
        ("num_axes: -1", (3, 5, 4)),
        ("axis: 2 num_axes: 0", ()),
        ("axis: 0 num_axes: 4", (2, 3, 5, 4)),
    ],
)
def test_scale_along_axes(text, shape, bias):
    x = torch.randn(2, 3, 5, 4)
    layer = build("Scale", f"scale_param {{ {text} bias_term: {str(bias).lower()} }}", x.shape)
    want = x * layer.weight.reshape(shape) + (layer.bias.reshape(shape) if bias else 0)
    torch.testing.assert_close(layer(x), want)
    added = build("Bias", f"bias_param {{ {text} }}", x.shape)
    assert torch.equal(added(x), x + added.bias.reshape(shape))


@pytest.mark.parametrize(
    ("axis", "second", "shape"), [(0, (2, 3), (2, 3, 1, 1)), (1, (3, 5), (3, 5, 1)), (-1, (4,), (4,)), (3, (), ())]
)
def test_second_bottom(axis, second, shape):
    x, other = torch.randn(2, 3, 5, 4), torch.randn(second)
    layer = build("Scale", f"scale_param {{ axis: {axis} bias_term: true }}", tuple(x.shape), second)
    assert layer.blob_names() == ["bias"]
    torch.testing.assert_close(layer(x, other), x * other.reshape(shape) + layer.bias.reshape(shape))
    added = build("Bias", f"bias_param {{ axis: {axis} }}", tuple(x.shape), second)
    assert added.blob_names() == []
    assert torch.equal(added(x, other), x + other.reshape(shape))


def test_fillers():
    def fillers(kind, text):
        return {k: v.value for k, v in REGISTRY[kind].fillers(prototxt.parse(text, f"{kind}Parameter")).items()}

    assert fillers("Scale", "bias_term: true") == {"weight": 1, "bias": 0}
    assert fillers("Scale", "filler { value: 0 } bias_filler { value: 2 }") == {"weight": 0, "bias": 2}
    assert fillers("Bias", "") == {"bias": 0}
    assert fillers("Bias", "filler { value: 3 }") == {"bias": 3}


# -- all ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "shapes", "message"),
    [
        ("InnerProduct", "", [(2, 3)], "is missing or 0"),
        ("InnerProduct", "inner_product_param { num_output: 4 axis: 2 }", [(2, 3)], "axis 2 does not exist"),
        ("InnerProduct", "inner_product_param { num_output: 4 }", [(2,)], "axis 1 does not exist"),
        ("InnerProduct", "inner_product_param { num_output: 4000000000 }", [(2, 3)], "Caffe's limit"),
        ("InnerProduct", "inner_product_param { num_output: 4 }", [], "0 bottoms; the layer takes 1"),
        ("Embed", "embed_param { input_dim: 3 }", [(2,)], "is missing or 0"),
        ("Embed", "embed_param { num_output: 3 }", [(2,)], "is missing or 0"),
        ("Embed", "embed_param { num_output: 100000 input_dim: 100000 }", [(2,)], "Caffe's limit"),
        ("Scale", "scale_param { axis: 4 }", [(2, 3, 5, 4)], "axis 4 does not exist"),
        ("Scale", "scale_param { axis: 2 num_axes: 3 }", [(2, 3, 5, 4)], "axis 2 and num_axes 3 exceed"),
        ("Scale", "scale_param { num_axes: -2 }", [(2, 3, 5, 4)], "num_axes must be at least -1"),
        ("Scale", "", [(2, 3, 5, 4), (5,)], r"second bottom \(5,\) does not fit"),
        ("Bias", "", [(2, 3), (3, 1)], r"second bottom \(3, 1\) does not fit"),
        ("Bias", "", [(2, 3), (3,), (3,)], "3 bottoms; the layer takes 1 to 2"),
    ],
)
def test_errors(kind, text, shapes, message):
    with pytest.raises(SpecError, match=message):
        build(kind, text, *shapes)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("InnerProduct", "inner_product_param { num_output: 6 axis: 2 }"),
        ("Embed", "embed_param { input_dim: 5 num_output: 3 }"),
        ("Scale", "scale_param { bias_term: true }"),
        ("Bias", "bias_param { num_axes: 2 }"),
    ],
)
def test_layers_export_without_graph_breaks(kind, text):
    x = torch.rand(2, 3, 5, 4)
    layer = build(kind, text, tuple(x.shape))
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))
