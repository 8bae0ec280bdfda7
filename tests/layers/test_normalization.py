"""BatchNorm, BN, LRN, MVN, Normalize, L2Normalization: by hand, by Caffe's formulas, against torch.nn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import caffe_port.api
from caffe_port.emit.convert import convert
from caffe_port.errors import SpecError
from caffe_port.formats import prototxt
from caffe_port.layers import REGISTRY


def build(kind, text, *bottoms):
    message = prototxt.parse(f'name: "l" type: "{kind}" {text}', "LayerParameter")
    layer = REGISTRY[kind].build(message, list(bottoms))
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return layer.eval()


def built_from_source(layer):
    module = eval(layer.torch_source(), {"nn": nn})
    module.load_state_dict(layer.torch_state())
    return module.eval()


# -- BatchNorm ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 5, 7), (2, 3, 4, 5, 7)])
@pytest.mark.parametrize("eps", [1e-5, 0.03])
def test_batch_norm_evaluates_bit_equal_to_torch(shape, eps):
    layer = build("BatchNorm", f"batch_norm_param {{ eps: {eps} moving_average_fraction: 0.95 }}", shape)
    layer.load_blobs([torch.randn(3).numpy(), torch.rand(3).numpy() + 0.5, np.array([37.5])])
    module = built_from_source(layer)
    assert (module.eps, module.momentum) == (eps, 0.05)
    for batch in (1, 6):
        x = torch.randn(batch, *shape[1:])
        assert torch.equal(module(x), layer(x))
        want = (x.transpose(0, 1).flatten(1) - layer.mean[:, None] / 37.5) / (
            layer.variance[:, None] / 37.5 + eps
        ).sqrt()
        torch.testing.assert_close(layer(x).transpose(0, 1).flatten(1), want)


def test_batch_norm_never_trained_divides_by_nothing():
    x = torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(build("BatchNorm", "", x.shape)(x), x / 1e-5**0.5)


def test_batch_norm_running_sums_over_three_iterations():
    layer = build("BatchNorm", "batch_norm_param { moving_average_fraction: 0.9 }", (2, 3, 5, 7)).double().train()
    mean, variance, factor = np.zeros(3), np.zeros(3), 0.0
    for seed in range(3):
        x = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        y, flat = layer(x), x.numpy().transpose(1, 0, 2, 3).reshape(3, 70)
        want = (flat - flat.mean(1, keepdims=True)) / np.sqrt(flat.var(1, keepdims=True) + layer.eps)
        np.testing.assert_allclose(y.numpy().transpose(1, 0, 2, 3).reshape(3, 70), want, rtol=1e-9)
        mean, factor = 0.9 * mean + flat.mean(1), 0.9 * factor + 1
        variance = 0.9 * variance + flat.var(1) * 70 / 69
    for name, value in (("mean", mean), ("variance", variance), ("scale_factor", [factor])):
        np.testing.assert_allclose(layer.get_blob(name).numpy(), value, rtol=1e-9)


def test_batch_norm_of_one_number_for_each_channel():
    layer = build("BatchNorm", "batch_norm_param { moving_average_fraction: 0.5 }", (1, 3)).train()
    x = torch.tensor([[1.0, 2, -3]], requires_grad=True)
    assert layer(x).tolist() == [[0, 0, 0]]
    layer(x).sum().backward()
    assert x.grad.tolist() == [[0, 0, 0]]
    assert layer.mean.tolist() == [1.5, 3, -4.5]
    assert layer.variance.tolist() == [0, 0, 0]
    assert layer.scale_factor.tolist() == [1.5]


def test_batch_norm_statistics_of_either_phase():
    x = torch.randn(2, 3, 5, 7)
    layers = {flag: build("BatchNorm", f"batch_norm_param {{ {flag} }}", x.shape) for flag in ("", "eps: 0.1")}
    for value in ("true", "false"):
        layers[value] = build("BatchNorm", f"batch_norm_param {{ use_global_stats: {value} }}", x.shape)
    assert [layers[k].global_stats for k in ("", "true", "false")] == [(False, True), (True, True), (False, False)]
    frozen = layers["true"].train()
    frozen.load_blobs([np.ones(3), np.full(3, 2.0), np.array([2.0])])
    torch.testing.assert_close(frozen(x), (x - 0.5) / (1 + 1e-5) ** 0.5)
    assert frozen.scale_factor.tolist() == [2]
    batch = layers["false"]
    torch.testing.assert_close(batch(x).mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    assert torch.equal(built_from_source(batch)(x), batch(x))
    merge = type(batch).merge_phases
    assert merge(layers["false"].args, layers["true"].args) == layers[""].args
    assert merge(layers["true"].args, layers["false"].args)["global_stats"] == (True, False)
    assert merge(layers[""].args, layers["eps: 0.1"].args) is None


# -- BN -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 5, 7)])
@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("slope_filler { value: 1 } momentum: 0.95", "(3, momentum=0.05)"),
        ("var_eps: 0.001 decay: 0.2 moving_average: true", "(3, eps=0.001, momentum=0.2)"),
        ("bn_mode: LEARN", "(3, eps=1e-09, track_running_stats=False)"),
    ],
)
def test_bn_is_torchs_batch_norm(shape, text, source):
    layer = build("BN", f"bn_param {{ {text} }}", shape)
    if layer.mean is not None:
        layer.load_blobs([torch.rand(1, 3, 1, 1).numpy() + 0.5 for _ in range(4)])
    assert layer.torch_source() == f"nn.BatchNorm{2 if len(shape) == 4 else 1}d{source}"
    module = built_from_source(layer)
    for phase in (True, False):
        x = torch.randn(shape)
        assert torch.equal(module.train(phase)(x), layer.train(phase)(x))


def test_bn_frozen_and_inference():
    x = torch.randn(2, 3, 5, 7)
    frozen = build("BN", "bn_param { frozen: true eps: 0.01 }", x.shape).train()
    frozen.load_blobs(
        [np.array([2.0, 3, 4]), np.array([1.0, 0, 0]), np.array([0.0, 5, 0]), np.array([0.99, 0.99, 0.99])]
    )
    slope, shift = torch.tensor([2.0, 3, 4]).view(3, 1, 1), torch.tensor([1.0, -15, 0]).view(3, 1, 1)
    torch.testing.assert_close(frozen(x), x * slope + shift)
    segnet = build("BN", "bn_param { bn_mode: INFERENCE }", x.shape)
    assert segnet.blob_names() == ["slope", "bias"]
    assert segnet.torch_source() is None
    segnet.load_blobs([np.array([2.0, 3, 4]), np.array([1.0, -15, 0])])
    torch.testing.assert_close(segnet(x), x * slope + shift)


def test_bn_fillers():
    p = prototxt.parse("scale_filler { value: 3 } frozen: true", "BNParameter")
    fillers = REGISTRY["BN"].fillers(p)
    assert [fillers[name].value for name in ("slope", "bias", "variance")] == [3, 0, 1]


# -- LRN ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 7])
def test_lrn_across_channels(size):
    x = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    layer = build("LRN", f"lrn_param {{ local_size: {size} alpha: 0.7 beta: 0.6 k: 1.5 }}", x.shape)
    for c in range(5):
        near = x[:, max(0, c - size // 2) : c + size // 2 + 1].square().sum(1)
        torch.testing.assert_close(layer(x)[:, c], x[:, c] / (1.5 + 0.7 / size * near) ** 0.6)
    torch.testing.assert_close(nn.LocalResponseNorm(size, 0.7, 0.6, 1.5)(x), layer(x))


def test_lrn_within_channel_counts_the_padding_and_ignores_k():
    x = torch.arange(1.0, 7).reshape(1, 1, 2, 3)
    layer = build("LRN", "lrn_param { local_size: 3 alpha: 9 k: 5 beta: 0.5 norm_region: WITHIN_CHANNEL }", x.shape)
    sums = torch.tensor([[1 + 4 + 16 + 25, 91, 4 + 9 + 25 + 36], [1 + 4 + 16 + 25, 91, 4 + 9 + 25 + 36]])
    torch.testing.assert_close(layer(x)[0, 0], x[0, 0] / (1.0 + sums).sqrt())


# -- MVN ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (2, 3, 5), (2, 3, 5, 4)])
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("variance", [False, True])
def test_mvn(shape, across, variance):
    text = f"mvn_param {{ across_channels: {across} normalize_variance: {variance} eps: 0.01 }}".lower()
    x = torch.randn(shape, dtype=torch.float64)
    four = shape + (1,) * (4 - len(shape))  # which the top always has
    rows = x.numpy().reshape(four[0] if across else four[0] * four[1], -1)
    want = rows - rows.mean(1, keepdims=True)
    want = want / (rows.std(1, keepdims=True) + 0.01) if variance else want
    got = build("MVN", text, shape)(x)
    np.testing.assert_allclose(got.numpy(), want.reshape(four), rtol=1e-9, atol=1e-12)


def test_mvn_of_a_constant_image_is_zero_and_so_is_its_gradient():
    x = torch.full((2, 3, 4, 5), 0.5, requires_grad=True)
    y = build("MVN", "", x.shape)(x)
    y.backward(torch.ones_like(y))
    assert y.eq(0).all()
    assert x.grad.isfinite().all()


def test_mvn_of_channels_last():
    x = torch.randn(2, 3, 4, 5)
    layer = build("MVN", "", x.shape)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), layer(x))


# -- norms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5, 4)])
@pytest.mark.parametrize("spatial", ["true", "false"])
@pytest.mark.parametrize("shared", ["true", "false"])
def test_normalize(shape, spatial, shared):
    text = f"norm_param {{ across_spatial: {spatial} channel_shared: {shared} eps: 0.02 }}"
    layer = build("Normalize", text, shape)
    x = torch.randn(shape)
    dims = tuple(range(1, len(shape))) if spatial == "true" else (1,)
    weight = layer.weight if shared == "true" else layer.weight.reshape(-1, *(1,) * (len(shape) - 2))
    torch.testing.assert_close(layer(x), x / (x.square().sum(dims, keepdim=True) + 0.02).sqrt() * weight)


def test_normalize_fillers():
    fillers = REGISTRY["Normalize"].fillers
    assert fillers(prototxt.parse("norm_param { }", "LayerParameter"))["weight"].value == 1
    given = prototxt.parse("norm_param { scale_filler { value: 20 } }", "LayerParameter")
    assert fillers(given)["weight"].value == 20


def test_normalize_without_its_message_is_normface():
    x = torch.tensor([[3.0, 4], [0, 5], [-6, 8]]).reshape(3, 2, 1, 1)
    message = prototxt.parse('type: "Normalize" top: "a" top: "b"', "LayerParameter")
    layer = REGISTRY["Normalize"].build(message, [x.shape])
    y, norm = layer(x)
    assert layer.blob_names() == []
    torch.testing.assert_close(norm.flatten(), torch.tensor([5.0, 5, 10]))
    torch.testing.assert_close(y, x / norm)
    absolute = build("Normalize", "normalize_param { normalize_type: 'L1' }", x.shape)(x)
    torch.testing.assert_close(absolute, x / torch.tensor([7.0, 5, 14]).reshape(3, 1, 1, 1))


def test_l2_normalization():
    x = torch.tensor([[3.0, 4], [0, 5], [-6, 8]])
    torch.testing.assert_close(build("L2Normalization", "", (3, 2))(x), torch.tensor([[0.6, 0.8], [0, 1], [-0.6, 0.8]]))


# -- all ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "shapes", "message"),
    [
        ("BatchNorm", "", [(2, 3), (2, 3)], "2 bottoms; the layer takes 1"),
        ("BatchNorm", "", [(7,)], "at least 2 axes"),
        ("BN", "", [(3,)], "2 to 5 axes"),
        ("BN", "bn_param { axis: 2 }", [(2, 3, 4, 5)], "axis 2"),
        ("BN", "bn_param { decay: 0.1 }", [(2, 3, 4, 5)], "moving_average"),
        ("LRN", "", [(2, 3)], r"\(N, C, H, W\)"),
        ("LRN", "lrn_param { local_size: 4 }", [(2, 3, 4, 5)], "must be odd, got 4"),
        ("LRN", "lrn_param { local_size: 0 }", [(2, 3, 4, 5)], "must be odd, got 0"),
        ("MVN", "", [(3, 2, 1, 2, 1)], "0 to 4 axes"),
        ("Normalize", "", [(3,)], "2 to 4 axes"),
        ("L2Normalization", "", [(3,)], "at least 2 axes"),
        ("L2Normalization", "l2_normalization_param { beta: 2 }", [(3, 2)], "parameters of this fork"),
    ],
)
def test_errors(kind, text, shapes, message):
    with pytest.raises(SpecError, match=message):
        build(kind, text, *shapes)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["BatchNorm", "BN", "LRN", "MVN", "Normalize", "L2Normalization"])
def test_layers_compile_without_graph_breaks(kind, training):
    layer = build(kind, "", (2, 3, 5, 7)).train(training)
    twin = build(kind, "", (2, 3, 5, 7)).train(training)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 5, 7, requires_grad=True)
    y = torch.compile(twin, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(y, layer(x))
    torch.testing.assert_close(twin.state_dict(), layer.state_dict())
    y.square().sum().backward()
    assert x.grad.isfinite().all()


def test_a_bn_takes_rows_and_a_convolution_does_not() -> None:
    """One fork's BN stores (1, C). Caffe refuses such a bias, and so do we."""
    bn = REGISTRY["BN"].build(prototxt.parse('type: "BN"', "LayerParameter"), [(2, 6, 5, 7)])
    assert not bn.mismatch([np.ones((1, 6), np.float32)] * 4)
    text = 'type: "Convolution" convolution_param { num_output: 6 kernel_size: 1 }'
    conv = REGISTRY["Convolution"].build(prototxt.parse(text, "LayerParameter"), [(2, 3, 5, 7)])
    weight = np.ones((6, 3, 1, 1), np.float32)
    assert not conv.mismatch([weight, np.ones(6, np.float32)])
    assert "holds bias (1, 6)" in conv.mismatch([weight, np.ones((1, 6), np.float32)])


def test_eps_beside_the_root_in_model_py(tmp_path: Path) -> None:
    """Synopsys: with a Scale after it, which otherwise becomes one module with the BatchNorm."""
    path = tmp_path / "net.prototxt"
    path.write_text(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 4 } } }\n'
        'layer { name: "bn" type: "BatchNorm" bottom: "x" top: "bn" '
        "batch_norm_param { add_eps_before_sqrt: false eps: 0.5 } }\n"
        'layer { name: "sc" type: "Scale" bottom: "bn" top: "sc" scale_param { bias_term: true } }\n'
    )
    ported = caffe_port.api.port(path)
    ported.net.bn.variance.copy_(torch.tensor([1.0, 4, 9]))
    ported.net.bn.scale_factor.fill_(1)
    x = torch.randn(2, 3, 5, 4)
    wanted = x / (torch.tensor([1.0, 2, 3]) + 0.5)[:, None, None]
    assert torch.allclose(ported.net(x), wanted)
    convert(ported, tmp_path / "out")  # compares what it wrote
    batch = ported.net.train()(x)
    std, mean = torch.std_mean(x, (0, 2, 3), correction=0, keepdim=True)
    assert torch.allclose(batch, (x - mean) / (std + 0.5), atol=1e-6)
