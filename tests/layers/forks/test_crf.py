"""DeepLab's DenseCRF, in numbers that its own source made or that were worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fork_layers import build

from caffe_port.errors import SpecError
from caffe_port.formats import prototxt
from caffe_port.formats.message import Message
from caffe_port.formats.upgrade_v1 import upgrade
from caffe_port.spec import LayerSpec
from caffe_port.verification.references.numpy_formulas import compute

SCORES = (torch.arange(24.0) * 7 % 11 / 2).reshape(2, 2, 2, 3)
IMAGES = (torch.arange(36.0) * 5 % 13).reshape(2, 3, 2, 3)
SIZES = torch.tensor([[9.0, 9], [2, 2]])
OWN = "max_iter: 4 pos_w: 3 pos_xy_std: 3 bi_w: 2 bi_xy_std: 5 bi_rgb_std: 4"


def crf(own: str, *bottoms: torch.Tensor) -> Any:
    """The top, which is also what the formula says."""
    text = f"dense_crf_param {{ {own} }}"
    made = build("DenseCRF", text, *(x.shape for x in bottoms))(*bottoms).numpy()
    message = prototxt.parse(f'name: "l" type: "DenseCRF" {text}', "LayerParameter")
    (top,), _ = compute(LayerSpec("l", "DenseCRF", (), ("t",), (), message, ""), [x.numpy() for x in bottoms], ())
    np.testing.assert_allclose(made, top, rtol=1e-4, atol=1e-5)
    return made


def test_what_the_fork_computes() -> None:
    """Figures of densecrf_layer.cpp and what it calls (open-cv/deeplab-v1), compiled without SSE: the second image is
    2 x 2, and gets the colors of the first one.
    """
    first = [0.02538, 0.99115, 0.99206, 0.92981, 0.99152, 0.99232, 0.97462, 0.00885, 0.00794, 0.07019, 0.00848, 0.00768]
    second = [0.99746, 0.99746, 0, 0.99746, 0.99746, 0, 0.00254, 0.00254, 0, 0.00254, 0.00254, 0]
    np.testing.assert_allclose(crf(OWN, SCORES, SIZES, IMAGES).ravel(), first + second, atol=1e-5)
    first = [-3.67364, -0.00889, -0.00797, -0.07278, -0.00852, -0.00771]
    first += [-0.02571, -4.72678, -4.83631, -2.65649, -4.76974, -4.86908]
    second = [-0.00254, -0.00254, 0, -0.00254, -0.00254, 0, -5.97693, -5.97693, 0, -5.97693, -5.97693, 0]
    logarithms = crf(f"{OWN} output_probability: false", SCORES, SIZES, IMAGES)
    np.testing.assert_allclose(logarithms.ravel(), first + second, atol=2e-5)


def test_one_pixel_by_hand() -> None:
    """A filter gives a lone pixel its own probabilities: 1/4 and 3/4 add 2 * 1/4 and 2 * 3/4 to 0 and log 3."""
    scores, size = torch.tensor([0.0, math.log(3)]).reshape(1, 2, 1, 1), torch.tensor([[1.0, 1.0]])
    np.testing.assert_allclose(crf("max_iter: 0", scores, size).ravel(), [1 / 4, 3 / 4], rtol=1e-6)
    odds = 3 * math.e
    made = crf("max_iter: 1 pos_w: 2 pos_xy_std: 3", scores, size)
    np.testing.assert_allclose(made.ravel(), [1 / (1 + odds), odds / (1 + odds)], rtol=1e-6)
    color = torch.ones(1, 3, 1, 1)
    both = crf("max_iter: 1 pos_w: 1 pos_xy_std: 3 bi_w: 1 bi_xy_std: 3 bi_rgb_std: 9", scores, size, color)
    np.testing.assert_allclose(both, made, rtol=1e-6)


def test_two_pixels_by_hand() -> None:
    """Probabilities 1/4, 3/4 and 1/2, 1/2. A width that makes them one place gives both the mean, 3/8 and 5/8; where
    they are far from each other, or of other colors, each counts for itself.
    """
    scores = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]).reshape(1, 2, 1, 2)
    size, colors = torch.tensor([[1.0, 2.0]]), torch.tensor([0.0, 900.0]).expand(1, 3, 1, 2).contiguous()
    joint, alone, first = [3 * math.e, math.e], [3 * math.e**2, 1], [3, 1]  # class 1 to class 0

    def odds(own: str, *image: torch.Tensor) -> Any:
        top = crf(f"max_iter: 1 {own}", scores, size, *image)[0, :, 0]
        return top[1] / top[0]

    np.testing.assert_allclose(odds("pos_w: 4 pos_xy_std: 1e6"), joint, rtol=1e-5)
    np.testing.assert_allclose(odds("pos_w: 4 pos_xy_std: 0.01"), alone, rtol=1e-5)
    bilateral = "bi_w: 4 bi_xy_std: 1e6 bi_rgb_std: 1"
    np.testing.assert_allclose(odds(bilateral, colors), alone, rtol=1e-5)
    np.testing.assert_allclose(odds(bilateral, torch.ones(1, 3, 1, 2)), joint, rtol=1e-5)
    np.testing.assert_allclose(odds(bilateral), first, rtol=1e-5)
    np.testing.assert_allclose(odds("pos_w: [3, 1] pos_xy_std: [1e6, 1e6]"), joint, rtol=1e-5)


def test_a_class_that_is_far_below_has_no_probability() -> None:
    scores, size = torch.tensor([0.0, -19.5, -20.5]).reshape(1, 3, 1, 1), torch.ones(1, 2)
    made = crf("max_iter: 0 output_probability: false", scores, size).ravel()
    np.testing.assert_allclose(made, [0, -19.5, math.log(np.finfo(np.float32).tiny)], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [(0, 3), (-1, 2)])
def test_an_image_of_no_size_leaves_zeros(size: tuple[int, int]) -> None:
    assert not crf(OWN, SCORES[:1], torch.tensor([size]).float(), IMAGES[:1]).any()


def test_an_image_that_is_only_partly_smaller_is_refused() -> None:
    layer = build("DenseCRF", f"dense_crf_param {{ {OWN} }}", SCORES.shape, SIZES.shape)
    with pytest.raises(IndexError, match="an image of 1 x 4 is not inside scores of 2 x 3"):
        layer(SCORES, torch.tensor([[9.0, 9], [1, 4]]))


X = (2, 5, 4, 6)


@pytest.mark.parametrize(
    ("own", "shapes", "says"),
    [
        (OWN, (X, (2, 1)), r"height and width of 2 images as the second bottom, got \(2, 1\)"),
        (OWN, (X, (1, 2)), "height and width of 2 images"),
        (OWN, (X, (2, 2), (2, 1, 4, 6)), r"expected images \(2, 3, 4, 6\) as the third bottom, got \(2, 1, 4, 6\)"),
        ("pos_w: 3", (X, (2, 2)), "pos_w and pos_xy_std must have the same length"),
        ("bi_w: 3 bi_xy_std: 2", (X, (2, 2)), "bi_w, bi_xy_std and bi_rgb_std must have the same length"),
        ("pos_w: 3 pos_xy_std: 2", (X, (2, 2), (2, 3, 4, 6)), "images as the third bottom require bi_w"),
        ("pos_w: 3 pos_xy_std: 0", (X, (2, 2)), "must not be 0"),
    ],
)
def test_bad_definitions_are_refused(own: str, shapes: tuple[tuple[int, ...], ...], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        build("DenseCRF", f"dense_crf_param {{ {own} }}", *shapes)


def test_deeplabs_first_files_have_it() -> None:
    text = "layers { name: 'crf' type: DENSE_CRF dense_crf_param { max_iter: 3 pos_w: 3 pos_xy_std: 2 } }"
    layer: Message = upgrade(prototxt.parse(text, "NetParameter"), "net").layer[0]
    assert (layer.type, layer.dense_crf_param.max_iter, list(layer.dense_crf_param.pos_w)) == ("DenseCRF", 3, [3])
