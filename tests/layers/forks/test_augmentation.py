"""DataAugmentation, GenerateAugmentationParameters, FlowAugmentation: against formulas, and what draws promise."""

import numpy as np
import pytest
import torch
from fork_layers import build, random

from caffe_port.errors import SpecError
from caffe_port.formats import prototxt
from caffe_port.layers.forks.augmentation import COEFFICIENTS, FACTORS, meanings, random_numbers, source_places
from caffe_port.spec import LayerSpec
from caffe_port.verification.references.numpy_formulas import compute

VECTORS = "chromatic_eigvec: [0.51, 0.56, 0.65, 0.79, 0.01, -0.62, 0.35, -0.83, 0.44]"
CUT = "crop_height: 5 crop_width: 7"
MOVED = """
mirror { rand_type: 'bernoulli' prob: 0.5 } translate { rand_type: 'uniform_bernoulli' spread: 0.4 }
rotate { rand_type: 'uniform_bernoulli' spread: 0.4 } squeeze { rand_type: 'uniform_bernoulli' exp: true spread: 0.3 }
zoom { rand_type: 'uniform_bernoulli' exp: true mean: 0.2 spread: 0.4 }
"""


def coefficients(images, names, seed=0, share=0.4):
    """Small changes of what is named; raw, as the layers hand them on."""
    rng, c = np.random.default_rng(seed), np.zeros((images, len(COEFFICIENTS), 1, 1))
    for name in names:
        c[:, COEFFICIENTS.index(name), 0, 0] = rng.uniform(-share, share, images)
    return c


def by_formula(kind, text, *bottoms, blobs=()):
    text = f'name: "l" type: "{kind}" ' + " ".join(f'bottom: "b{k}"' for k in range(len(bottoms))) + f' top: "t" {text}'
    message = prototxt.parse(text, "LayerParameter")
    tops, note = compute(LayerSpec("l", kind, tuple(message.bottom), ("t",), (), message, ""), bottoms, list(blobs))
    assert tops is not None, note
    return tops[0]


@pytest.mark.parametrize(
    "names",
    [
        ("mirror", "dx", "dy", "angle", "zoom_x", "zoom_y"),
        ("gamma", "contrast", "color2"),
        ("pow_nomean0", "add_nomean1", "mult_nomean2", "lmult_pow", "lmult_add", "lmult_mult"),
        ("pow_withmean0", "add_withmean0", "mult_withmean0", "pow_withmean1", "add_withmean1", "mult_withmean1"),
        ("col_angle", "angle", "brightness"),
        ("shadow_angle", "shadow_distance", "shadow_strength"),
        ("fog_amount", "fog_size"),
        (),
    ],
)
def test_coefficients_of_the_bottom_change_the_image(names):
    images, given = random(3, 3, 8, 9).abs().double(), coefficients(3, names)
    text = f"augmentation_param {{ {CUT} {VECTORS} max_multiplier: 1 }}"
    layer = build("DataAugmentation", text, images.shape, given.shape).double().eval()
    y = layer(images, torch.from_numpy(given))
    want = by_formula("DataAugmentation", text, images.numpy(), given, blobs=[np.zeros((1, 1, 1, 1))])
    np.testing.assert_allclose(y.numpy(), want, atol=1e-6)
    plain = layer(images, torch.zeros(3, 42, 1, 1, dtype=torch.float64))
    assert torch.equal(y, plain) == (not names)


def test_the_flow_of_a_still_picture_is_the_difference_of_the_cuts():
    images = 2
    given = [coefficients(images, ("dx", "angle", "zoom_x"), seed, share=0.1) for seed in (1, 2)]
    layer = build("FlowAugmentation", f"augmentation_param {{ {CUT} }}", (2, 2, 12, 13), *[c.shape for c in given])
    flow = random(2, 2, 12, 13).double()
    y = layer(flow, *map(torch.from_numpy, given)).numpy()
    want = by_formula("FlowAugmentation", f"augmentation_param {{ {CUT} }}", flow.numpy(), *given)
    np.testing.assert_allclose(y, want, atol=1e-6)
    both = layer(torch.zeros(2, 2, 12, 13, dtype=torch.float64), *[torch.from_numpy(given[0])] * 2)
    np.testing.assert_allclose(both.numpy(), 0, atol=1e-9)  # the same cut of a still picture does not move


def test_what_is_drawn_stays_inside_and_is_returned():
    torch.manual_seed(3)
    x = random(40, 3, 16, 19).abs()
    text = f"augmentation_param {{ {CUT} {VECTORS} {MOVED} max_multiplier: 1 noise {{ mean: 0.05 }} }}"
    from_text = prototxt.parse(f'type: "DataAugmentation" bottom: "x" top: "y" top: "c" {text}', "LayerParameter")
    layer = type(build("DataAugmentation", text, x.shape)).build(from_text, [x.shape])
    layer.set_blob("iterations", torch.zeros(1, 1, 1, 1))
    y, c = layer.train()(x)
    assert y.shape == (40, 3, 5, 7)
    assert c.shape == (40, 42, 1, 1)
    assert layer.iterations.item() == 1
    values = meanings(c.flatten(1))
    assert set(values["mirror"].tolist()) == {0, 1}
    assert values["zoom_x"].std() > 0.05
    torch.testing.assert_close(values["noise"], torch.full((40,), 0.05))
    corners = torch.tensor([[[0.0, 6.0]]]), torch.tensor([[[0.0], [4.0]]])
    for place, size in zip(source_places(values, *corners, (5, 7), (16, 19)), (19, 16), strict=True):
        assert place.min() >= 0
        assert place.max() < size - 1
    torch.manual_seed(3)
    layer.set_blob("iterations", torch.zeros(1, 1, 1, 1))
    assert torch.equal(layer(x)[1], c)
    middle, none = layer.eval()(x)
    assert not none.any()
    assert layer.iterations.item() == 1
    assert not torch.equal(middle, y)


def test_the_mean_is_that_of_the_first_iterations():
    text = f"augmentation_param {{ {CUT} recompute_mean: 2 mean_per_pixel: false }}"
    layer = build("DataAugmentation", text, (2, 3, 8, 9)).train()
    for name in layer.blob_names():
        layer.set_blob(name, torch.zeros_like(layer.get_blob(name)))
    batches, means = [random(2, 3, 8, 9, seed=k) + k for k in range(3)], []
    for batch in batches:
        layer(batch)
        means.append(layer.channel_mean.flatten().clone())
    cuts = [layer.change(batch, torch.zeros(2, 42), False).mean((0, 2, 3)) for batch in batches]
    torch.testing.assert_close(means[0], cuts[0])
    torch.testing.assert_close(means[1], (cuts[0] + cuts[1]) / 2)
    assert torch.equal(means[2], means[1])


def test_data_augmentation_subtracts_the_mean_of_its_blobs():
    x = random(2, 3, 4, 5)
    layer = build("DataAugmentation", "augmentation_param { recompute_mean: 9 mean_per_pixel: false }", x.shape)
    mean = np.float32([1, 2, 3]).reshape(1, 3, 1, 1)
    layer.load_blobs([np.zeros((1, 1, 1, 1)), np.ones((1, 3, 4, 5)), mean])
    np.testing.assert_allclose(layer(x).numpy(), x.numpy() - mean, rtol=1e-6)
    pixels = build("DataAugmentation", "augmentation_param { recompute_mean: 9 mean_per_pixel: true }", x.shape)
    pixels.load_blobs([np.zeros((1, 1, 1, 1)), np.ones((1, 3, 4, 5)), mean])
    np.testing.assert_allclose(pixels(x).numpy(), x.numpy() - 1, rtol=1e-6, atol=1e-6)
    given = build("DataAugmentation", "augmentation_param { mean: 1 mean: 2 mean: 3 mean_per_pixel: false }", x.shape)
    assert given.blob_names() == ["iterations"]
    np.testing.assert_allclose(given(x).numpy(), x.numpy() - mean, rtol=1e-6)


def test_data_augmentation_cuts_out_the_middle():
    x = torch.arange(70.0).reshape(1, 1, 7, 10)
    layer = build("DataAugmentation", "augmentation_param { crop_height: 3 crop_width: 5 }", x.shape)
    y = layer(x)
    np.testing.assert_allclose(y[0, 0].numpy(), (x[0, 0, 2:5, 2:7] + x[0, 0, 2:5, 3:8]).numpy() / 2)
    # SpatialAugmentation: positions end at size - 1.05
    whole = build("DataAugmentation", "augmentation_param { crop_height: 7 crop_width: 10 }", x.shape)(x)
    np.testing.assert_allclose(whole[0, 0, 0, -2:].numpy(), [8, 8.95], rtol=1e-5)


@pytest.mark.parametrize("mode", ["add", "replace", "regenerate"])
def test_modes(mode):
    given = torch.from_numpy(coefficients(3, ("dx", "gamma", "contrast", "noise"))).float()
    text = f"""augmentation_param {{ {CUT} mode: '{mode}' bottomheight: 50 bottomwidth: 60
        translate_y {{ mean: 0.25 }} gamma {{ mean: 2 }} }} coeff_schedule_param {{ initial_coeff: 0.5 }}"""
    layer = build("GenerateAugmentationParameters", text, given.shape)
    none = layer.eval()(given)
    assert torch.equal(none, given if mode != "regenerate" else torch.zeros_like(given))
    top = layer.train()(given).flatten(1)
    column = {name: top[:, k] for k, name in enumerate(COEFFICIENTS)}
    old = {name: given[:, k, 0, 0] for k, name in enumerate(COEFFICIENTS)}
    log2 = torch.tensor(2.0).log().expand(3)
    torch.testing.assert_close(column["dy"], torch.full((3,), 0.25))
    torch.testing.assert_close(column["dx"], old["dx"] if mode == "add" else torch.zeros(3))
    torch.testing.assert_close(column["gamma"], log2 + (old["gamma"] if mode == "add" else 0))
    torch.testing.assert_close(column["contrast"], old["contrast"] * (mode != "regenerate"))


def test_distributions():
    torch.manual_seed(0)
    uniform = random_numbers(("uniform", 1.0, 2.0, 1.0, False, True, False, 3.0), 4000, 0.5)
    assert 0 <= uniform.min() < 0.1 < 5.9 < uniform.max() <= 6  # 3 * (1 +- 2 * 0.5)
    fixed = random_numbers(("gaussian", 1.0, 2.0, 1.0, False, False, False, 1.0), 4000, 0.0)
    assert abs(fixed.std() - 2) < 0.1
    rare = random_numbers(("gaussian_bernoulli", 0.3, 0.1, 0.25, True, False, False, 1.0), 4000, 1.0, 1.0)
    assert abs((rare == 1).float().mean() - 0.75) < 0.03
    assert abs(rare[rare != 1].log().mean() - 0.3) < 0.02
    steps = random_numbers(("uniform", 0.0, 2.4, 1.0, False, False, True, 10.0), 400, 1.0)
    assert set(steps.tolist()) == {-20, -10, 0, 10, 20}


def test_the_coefficients_are_those_of_the_schema():
    assert len(COEFFICIENTS) == len(set(COEFFICIENTS)) == 42
    assert {"lmult_add", "col_angle", "mirror", "brightness"}.isdisjoint(FACTORS)
    assert len(FACTORS) == 2 + 5 + 12 + 2  # zooms; gamma, contrast, colors; powers and factors; lmult


@pytest.mark.parametrize(
    ("kind", "text", "shapes", "says"),
    [
        ("DataAugmentation", f"{CUT} rotate {{ rand_type: 'normal' }}", [(1, 3, 8, 9)], "rand_type is one of"),
        ("DataAugmentation", "chromatic_eigvec: 1", [(1, 3, 8, 9)], "1 values"),
        ("DataAugmentation", "crop_height: 9 crop_width: 3", [(1, 2, 8, 9)], "do not fit"),
        ("DataAugmentation", CUT, [(2, 3, 8, 9), (2, 41, 1, 1)], "42"),
        ("GenerateAugmentationParameters", "", [(2, 3, 8, 9)], "crop_width and crop_height"),
        ("GenerateAugmentationParameters", CUT, [(2, 42, 1, 1)], "bottomwidth and bottomheight"),
        ("GenerateAugmentationParameters", CUT, [(2, 42, 1, 1), (2, 3, 8, 9)], "1 or 3"),
        ("GenerateAugmentationParameters", "mode: 'mix'", [(2, 42, 1, 1), *[(2, 3, 8, 9)] * 2], "'mix' is not one of"),
        ("FlowAugmentation", CUT, [(2, 3, 8, 9), (2, 42, 1, 1), (2, 42, 1, 1)], "a flow"),
        ("FlowAugmentation", "", [(2, 2, 8, 9), (2, 42, 1, 1), (2, 42, 1, 1)], "crop_height and crop_width"),
    ],
)
def test_bad_definitions_are_refused(kind, text, shapes, says):
    with pytest.raises(SpecError, match=says):
        build(kind, f"augmentation_param {{ {text} }}", *shapes)
