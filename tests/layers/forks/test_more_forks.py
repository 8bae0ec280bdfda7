"""Layers of forks with few nets each: what their source says beyond the formulas that every type is compared with."""

import pytest
import torch
import torch.nn.functional as F
from fork_layers import build, random

from caffe_port.api import port
from caffe_port.definition.definition import Definition
from caffe_port.errors import SpecError
from caffe_port.formats import dialects, prototxt


def net(text, **inputs):
    shapes = {name: list(shape) for name, shape in inputs.items()}
    lines = [
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ dim: {dims} }} }} }}'
        for name, dims in shapes.items()
    ]
    return port(Definition.parse(prototxt.parse("\n".join([*lines, text]), "NetParameter")))


WARP = 'layer { name: "warp" type: "Warp" bottom: "x" bottom: "%s" top: "y" }'
GRID = """
layer { name: "grid" type: "Grid" bottom: "flow" top: "grid" }
layer { name: "places" type: "Eltwise" bottom: "grid" bottom: "flow" top: "places" }
"""


def test_a_warp_beside_a_grid_takes_places():
    x, flow = random(2, 3, 5, 6), random(2, 2, 5, 6, seed=1)
    with_grid = net(GRID + WARP % "places", x=x.shape, flow=flow.shape)
    (note,) = [note for note in with_grid.notes if "read as places" in note]
    assert "'grid' (Grid)" in note
    alone = net(WARP % "flow", x=x.shape, flow=flow.shape)
    assert not any("places" in note for note in alone.notes)
    ours, theirs = (one.net.eval()(x=x, flow=flow) for one in (with_grid, alone))
    # The same inside the image; at its edge LiteFlowNet mixes in zeros, where PWC-Net gives 0.
    inside = theirs != 0
    torch.testing.assert_close(ours[inside], theirs[inside], atol=1e-5, rtol=1e-5)
    assert not torch.equal(ours, theirs)


def test_places_may_be_anything():
    x, places = random(1, 3, 5, 6), torch.full((1, 2, 5, 6), 2.0)
    places[0, :, 0, :3] = torch.tensor([float("nan"), float("inf"), -1e30])
    y = build("Warp", "warp_param { places: true }", x.shape, places.shape)(x, places)[0].flatten(1)
    assert not y[:, :3].any()
    torch.testing.assert_close(y[:, 3:], x[0, :, 2, 2:3].expand(3, 27), atol=1e-5, rtol=0)


def test_merge_crop_teaches_the_second_bottom_only_on_demand():
    for text, taught in (("", False), ("mergecrop_param { backward: true backward: true }", True)):
        small, large = random(2, 3, 4, 5).requires_grad_(), random(2, 3, 8, 10, seed=1).requires_grad_()
        build("MergeCrop", text, small.shape, large.shape)(small, large).sum().backward()
        assert small.grad.sum() == small.numel()
        assert (large.grad is not None) == taught
    with pytest.raises(SpecError, match="mixes them up"):
        build("MergeCrop", "", (2, 3, 4, 5), (2, 6, 8, 9))
    with pytest.raises(SpecError, match="as large as the first"):
        build("MergeCrop", "", (2, 3, 4, 5), (2, 3, 3, 9))


def test_scale_tanh_follows_the_iterations_in_training():
    layer = build("ScaleTanH", "scale_tanh_param { init_scale: 1 gamma: 0.5 power: 2 step_size: 3 }", (2, 3)).train()
    x = random(2, 3, scale=0.1)
    scales = [(torch.atanh(layer(x)) / x).mean().item() for _ in range(5)]  # iterations 2 to 6
    assert scales == pytest.approx([1, 2.5**2, 2.5**2, 2.5**2, 4**2], rel=1e-3)
    torch.testing.assert_close(layer.eval()(x), torch.tanh(x))


def test_expmax_passes_no_gradient_to_the_greatest():
    x = random(2, 3, 4, 5).requires_grad_()
    y = build("ExpMax", "expmax_param { scale: 2 shift: 1 }", x.shape)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * y.detach())


def test_random_crop_draws_a_place_in_training():
    x = torch.arange(2 * 7 * 8 * 11.0).reshape(2, 7, 8, 11)
    layer = build("RandomCrop", "random_crop_param { target_height: 12 target_width: 4 }", x.shape).train()
    places = set()
    for seed in range(30):
        torch.manual_seed(seed)
        y = layer(x)
        first = int(y[0, 0, 2, 0])
        assert torch.equal(y[:, :, 2:10], x[..., first : first + 4])
        places.add(first)
    assert places == set(range(11 - 4))  # the last place is never drawn
    assert (y[:, :6, :2] == 128).all()
    assert y[:, 6, :2].isnan().all()


def test_sparsify_and_a_filled_parameter_in_a_net():
    ported = net(
        """layer { name: "s" type: "Sparsify" bottom: "x" top: "y" sparsify_param { thre: 0.5 coef: 0.1 } }
        layer { name: "p" type: "Parameter" top: "p"
                parameter_param { shape { dim: 4 dim: 3 } blob_filler { type: "constant" value: 7 } } }""",
        x=(2, 3),
    )
    assert any("coef" in note and "L1 penalty" in note for note in ported.notes)
    x = random(2, 3)
    tops = ported.net.eval()(x)
    torch.testing.assert_close(tops["y"], F.softshrink(x, 0.5))
    assert torch.equal(tops["p"], torch.full((4, 3), 7.0))


@pytest.mark.parametrize("axes", [2, 3])
def test_pooling_with_dilation_is_torchs(axes):
    x = random(2, 3, 13, 11, 9)[..., : 9 if axes == 3 else 1].squeeze(-1)
    param = "pooling_param { kernel_size: 3 stride: 1 dilation: 2 }"
    pooled = build("Pooling", param, x.shape)(x)
    assert torch.equal(pooled, getattr(F, f"max_pool{axes}d")(x, 3, 1, dilation=2))
    with pytest.raises(SpecError, match="dilation needs pool: MAX"):
        build("Pooling", param.replace("{", "{ pool: AVE"), x.shape)


def test_fields_that_change_no_number():
    ported = net(
        """richness: 1000
        layer { name: "c" type: "Convolution" bottom: "x" top: "c" connectivity_mode: DISCONNECTED_ELTWISE
                convolution_param { num_output: 2 kernel_size: 1 conv_mode: DIRECT_SCONV } }
        layer { name: "i" type: "InnerProduct" bottom: "c" top: "i"
                inner_product_param { num_output: 2 gemm_mode: SPMDM spmdm_transpose_in: false } }""",
        x=(2, 3, 4, 5),
    )
    assert any("connectivity_mode" in note for note in ported.notes)


def test_a_reshape_in_place_as_in_locnet():
    ported = net(
        """layer { name: "r" type: "Reshape" bottom: "x" top: "x" reshape_param { shape { dim: 0 dim: -1 } } }
        layer { name: "i" type: "InnerProduct" bottom: "x" top: "i" inner_product_param { num_output: 2 axis: 1 } }""",
        x=(2, 3, 4, 5),
    )
    assert ported.net.eval()(random(2, 3, 4, 5)).shape == (2, 2)
    assert any("works in place, which Caffe 1.0 refuses" in note for note in ported.notes)


def test_textboxes_makes_every_prior_twice():
    text = """layer { name: "p" type: "PriorBox" bottom: "x" bottom: "image" top: "p"
        prior_box_param { min_size: 30 aspect_ratio: 2 flip: false variance: 0.1 } }
        layer { name: "d" type: "DetectionOutput" bottom: "loc" bottom: "conf" bottom: "p" top: "d"
        detection_output_param { num_classes: 2 nms_param { nms_threshold: 0.4 } } }"""
    inputs = {"x": (1, 4, 2, 3), "image": (1, 3, 60, 90), "loc": (1, 96), "conf": (1, 48)}
    with pytest.raises(SpecError) as refused:
        net(text, **inputs)
    assert "--dialect textboxes" in refused.value.hint
    with dialects.assuming("textboxes"):
        ported = net(text, **inputs)
    assert any("every box comes twice" in note for note in ported.notes)
    boxes = ported.net.p(torch.zeros(1, 4, 2, 3), torch.zeros(1, 3, 60, 90))[0, 0].reshape(6, 2, 2, 4)
    # prior_box_layer.cpp of TextBoxes: the same box around the lower edge of the cell, 15 pixels down; clipped
    torch.testing.assert_close(boxes[0, 0, 0], torch.tensor([0.0, 0.0, 1 / 3, 0.5]))
    torch.testing.assert_close(boxes[0, 0, 1], torch.tensor([0.0, 0.25, 1 / 3, 0.75]))


def test_guided_dropout_keeps_by_chance():
    torch.manual_seed(0)
    x, guidance = torch.ones(4000, 3), torch.tensor([-1.0, 0.0, 2.0]).expand(4000, 3)
    text = "guided_dropout_param { type: 'stochastic' sigmoid_scaler: 2 }"
    layer = build("GuidedDropout", text, x.shape, guidance.shape)
    assert torch.equal(layer(x, guidance), x)
    y, chance = layer.train()(x, guidance), torch.sigmoid(2 * guidance[0])
    torch.testing.assert_close((y > 0).float().mean(0), chance, atol=0.03, rtol=0)
    torch.testing.assert_close(y[y > 0], torch.full_like(y[y > 0], 3 / chance.sum().item()))
    none = build(
        "GuidedDropout", "guided_dropout_param { type: 'deterministic' guidance_threshold: 9 }", *[x.shape] * 2
    )
    assert not none(x, guidance).any()
    with pytest.raises(SpecError, match="with sigmoid_scaler"):
        build("GuidedDropout", "guided_dropout_param { type: 'stochastic' }", *[x.shape] * 2)
