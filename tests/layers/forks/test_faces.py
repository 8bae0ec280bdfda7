"""Layers of face recognition: values and gradients against loops written from the forks' sources, in float64."""

import math

import numpy as np
import pytest
import torch
from fork_layers import build, random
from torch import nn

from caffe_port.errors import SpecError

TYPES = ("SINGLE", "DOUBLE", "TRIPLE", "QUADRUPLE")
LABEL = torch.tensor([2.0, 0.0, 4.0, 1.0, 2.0])


def made(kind, text, *shapes, top=1):
    layer = build(kind, text, *shapes, top=top).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def psi(cosine, m):
    """cos(m t), turned and lowered on each of the m parts of the half circle: (-1)^k cos(m t) - 2k."""
    t = math.acos(cosine)
    k = int(m * t / math.pi)
    return (-1) ** k * math.cos(m * t) - 2 * k


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_sphereface_is_the_formula_of_the_paper(m):
    x = random(5, 6, scale=2.0).double()
    text = (
        f"margin_inner_product_param {{ num_output: 7 type: {TYPES[m - 1]} base: 8 gamma: 0.5 power: 2 lambda_min: 1 }}"
    )
    layer = made("MarginInnerProduct", text, x.shape, LABEL.shape, top=2)
    y, mix = (top.detach() for top in layer(x, LABEL))
    assert mix.tolist() == [pytest.approx(max(1.0, 8 * 1.5**-2))]
    for i, j in np.ndindex(5, 7):
        w = layer.weight[j].detach() / layer.weight[j].detach().norm()
        plain, length = float(x[i] @ w), float(x[i].norm())
        want = plain
        if m > 1 and j == LABEL[i]:
            want = (mix.item() * plain + length * psi(plain / length, m)) / (1 + mix.item())
        assert float(y[i, j]) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_spherefaces_gradients_are_its_sources(m):
    """MarginInnerProductLayer::Backward_cpu: coeff_w and coeff_x over their length, and x alone for the weight."""
    x = random(5, 6, scale=2.0).double().requires_grad_()
    layer = made(
        "MarginInnerProduct",
        f"margin_inner_product_param {{ num_output: 7 type: {TYPES[m - 1]} base: 3 }}",
        x.shape,
        LABEL.shape,
    ).train()
    diff = random(5, 7, seed=1).double()
    layer(x, LABEL).backward(diff)
    mix, weight, bottom = 3.0, layer.weight.detach(), x.detach()
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(7).double())
    want = torch.zeros_like(bottom)
    for i, j in np.ndindex(5, 7):
        w, a = weight[j], bottom[i]
        c, length = float(a @ w / a.norm()), float(a.norm())
        s0, direction = np.sign(c), w
        if j == LABEL[i]:
            if m == 2:
                cw, cx = 4 * s0 * c, -(2 * s0 * c**2 + 1) / length
            elif m == 3:
                s1 = np.sign(abs(c) - 0.5)
                s2 = s0 * (1 + s1) - 2
                cw, cx = s1 * (12 * c**2 - 3), -(8 * s1 * c**3 - s2) / length
            else:
                s3 = s0 * np.sign(2 * c**2 - 1)
                s4 = 2 * s0 + s3 - 3
                cw, cx = s3 * (32 * c**3 - 16 * c), -(s3 * (24 * c**4 - 8 * c**2 - 1) - s4) / length
            direction = (cw * w + cx * a) / math.hypot(cw, cx)
        want[i] += diff[i, j] * (direction + mix * w) / (1 + mix)
    torch.testing.assert_close(x.grad, want)
    torch.testing.assert_close(layer.weight.grad, diff.T @ bottom)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_l_softmax_keeps_the_weights_lengths(m):
    x = random(5, 6, scale=2.0).double().requires_grad_()
    text = f"largemargin_inner_product_param {{ num_output: 7 type: {TYPES[m - 1]} base: 2 }}"
    layer = made("LargeMarginInnerProduct", text, x.shape, LABEL.shape)
    y = layer(x, LABEL)
    for i, j in np.ndindex(5, 7):
        w = layer.weight[j].detach()
        plain, lengths = float(x[i].detach() @ w), float(x[i].detach().norm() * w.norm())
        want = (2 * plain + (lengths * psi(plain / lengths, m) if j == LABEL[i] else plain)) / 3
        assert float(y[i, j].detach()) == pytest.approx(want, rel=1e-7)
    assert torch.autograd.gradcheck(lambda a: layer(a, LABEL), x)


def test_lambda_falls_with_the_forwards_of_training():
    text = "margin_inner_product_param { num_output: 7 type: DOUBLE base: 100 gamma: 1 power: 1 lambda_min: 20 }"
    layer = made("MarginInnerProduct", text, (5, 6), LABEL.shape, top=2).train()
    x = random(5, 6).double()
    assert [round(layer(x, LABEL)[1].item(), 3) for _ in range(5)] == [50, 33.333, 25, 20, 20]
    assert layer.eval()(x, LABEL)[1].item() == 20


def test_am_softmax_adds_to_the_true_score_in_training_only():
    x = torch.tensor([[0.1, 0.2, 0.9], [0.3, 0.5, 0.7]])
    layer = build("LabelSpecificAdd", "label_specific_add_param { bias: -0.35 }", x.shape, (2,))
    label = torch.tensor([2.0, 0.0])
    assert torch.equal(layer(x, label), x)
    torch.testing.assert_close(layer.train()(x, label), torch.tensor([[0.1, 0.2, 0.55], [0.3, 0.5, 0.7]]))


def test_arcface_widens_the_angle():
    angle = torch.tensor([[20.0, 70, 50], [30, 80, 10]]).double()
    x = torch.cos(angle * math.pi / 180)
    text = "label_specific_margin_param { margin_base: 10 gamma: 5 power: 1 margin_max: 18 }"
    layer = build("LabelSpecificMargin", text, x.shape, (2,), top=2).double().train()
    label = torch.tensor([1.0, 2.0])
    for margin in (10, 15, 18):
        y, statistics = layer(x, label)
        want = angle.clone()
        want[0, 1] += margin
        want[1, 2] += margin
        torch.testing.assert_close(y, torch.cos(want * math.pi / 180), rtol=0, atol=1e-6)
        assert statistics.tolist() == [margin, 0, 0, 0, 0]
    assert torch.equal(layer.eval()(x, label)[0], x)


def test_channel_scale_has_a_factor_for_every_pixel():
    x, factor = random(2, 3, 4, 5), random(2, 1, 4, 5, seed=1)
    assert torch.equal(build("ChannelScale", "", x.shape, factor.shape)(x, factor), x * factor)
    idle = build("ChannelScale", "channel_scale_param { do_forward: false }", x.shape, factor.shape)
    assert torch.equal(idle(x, factor), x)


@pytest.mark.parametrize("kind", ["L1", "L2"])
def test_inner_distance(kind):
    x = random(3, 2, 2).double()
    layer = made(
        "InnerDistance", f"inner_distance_param {{ num_output: 5 distance_type: '{kind}' normalize: true }}", x.shape
    )
    y = layer(x)
    for i, j in np.ndindex(3, 5):
        w = layer.weight[j].detach() / (layer.weight[j].detach().square().sum() + 1e-6).sqrt()
        d = x[i].flatten() - w
        want = (d.abs() if kind == "L1" else d**2).sum() + layer.bias[j].detach()
        torch.testing.assert_close(y[i, j].detach(), want)


def test_an_inner_product_with_rows_of_length_one():
    x = random(3, 4).double()
    layer = made("InnerProduct", "inner_product_param { num_output: 5 normalize: true bias_term: false }", x.shape)
    weight = layer.weight.detach().clone()
    want = x @ (weight / (weight.square().sum(1, keepdim=True) + 1e-6).sqrt()).T
    torch.testing.assert_close(layer(x).detach(), want)
    assert torch.equal(layer.weight, weight)
    torch.testing.assert_close(layer.train()(x).detach(), want)
    torch.testing.assert_close(layer.weight.detach().norm(dim=1), torch.ones(5).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "text", "shapes", "says"),
    [
        ("MarginInnerProduct", "", [(2, 3), (2,)], "is missing"),
        ("MarginInnerProduct", "margin_inner_product_param { num_output: 3 }", [(2, 3), (5,)], "N labels"),
        ("LabelSpecificAdd", "", [(2, 3), (3,)], "N labels"),
        ("ChannelScale", "", [(2, 3, 4, 5), (2, 3)], "one per pixel"),
        ("InnerDistance", "inner_distance_param { num_output: 3 distance_type: 'cos' }", [(2, 3)], "L1 or L2"),
    ],
)
def test_bad_definitions_are_refused(kind, text, shapes, says):
    with pytest.raises(SpecError, match=says):
        build(kind, text, *shapes)
