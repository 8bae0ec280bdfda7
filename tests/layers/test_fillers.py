"""Fillers: distributions by their moments and bounds, by Caffe's filler.hpp; bilinear by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from caffe_port.errors import SpecError
from caffe_port.formats import prototxt
from caffe_port.layers import fillers

SHAPE = (40, 30, 7, 5)
COUNT = math.prod(SHAPE)
FAN_IN, FAN_OUT = 30 * 35, 40 * 35


def fill(text: str, shape: tuple[int, ...] = SHAPE, seed: int = 1) -> np.ndarray[Any, Any]:
    rng = np.random.Generator(np.random.PCG64(seed))
    values = fillers.fill(prototxt.parse(text, "FillerParameter"), shape, rng)
    assert values.dtype == np.float32
    assert values.shape == shape
    return values


def same_moments(values: np.ndarray[Any, Any], mean: float, deviation: float) -> None:
    """Within five standard errors."""
    assert values.mean(dtype=float) == pytest.approx(mean, abs=5 * deviation / math.sqrt(values.size))
    assert values.std(dtype=float) == pytest.approx(deviation, rel=5 / math.sqrt(values.size))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ('type: "uniform"', 0, 1),
        ('type: "uniform" min: -0.25 max: 0.75', -0.25, 0.75),
        ('type: "xavier"', -math.sqrt(3 / FAN_IN), math.sqrt(3 / FAN_IN)),
        ('type: "xavier" variance_norm: FAN_IN', -math.sqrt(3 / FAN_IN), math.sqrt(3 / FAN_IN)),
        ('type: "xavier" variance_norm: FAN_OUT', -math.sqrt(3 / FAN_OUT), math.sqrt(3 / FAN_OUT)),
        (
            'type: "xavier" variance_norm: AVERAGE',
            -math.sqrt(6 / (FAN_IN + FAN_OUT)),
            math.sqrt(6 / (FAN_IN + FAN_OUT)),
        ),
    ],
)
def test_uniform(text: str, low: float, high: float, seed: int) -> None:
    values = fill(text, seed=seed)
    same_moments(values, (low + high) / 2, (high - low) / math.sqrt(12))
    width = high - low
    assert low <= values.min() < low + 0.001 * width
    assert high - 0.001 * width < values.max() <= high


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("text", "mean", "deviation"),
    [
        ('type: "gaussian"', 0, 1),
        ('type: "gaussian" mean: 3 std: 0.01', 3, 0.01),
        ('type: "msra"', 0, math.sqrt(2 / FAN_IN)),
        ('type: "msra" variance_norm: FAN_OUT', 0, math.sqrt(2 / FAN_OUT)),
        ('type: "msra" variance_norm: AVERAGE', 0, math.sqrt(4 / (FAN_IN + FAN_OUT))),
    ],
)
def test_gaussian(text: str, mean: float, deviation: float, seed: int) -> None:
    values = fill(text, seed=seed)
    same_moments(values, mean, deviation)
    beyond_two = (np.abs(values - mean) > 2 * deviation).mean()
    assert beyond_two == pytest.approx(0.0455, abs=0.006), "a normal distribution's tails"


def test_sparse_gaussian() -> None:
    """Bernoulli with sparse / num_outputs, where Caffe takes the first axis for the outputs."""
    values = fill('type: "gaussian" std: 0.5 sparse: 6')
    kept = values != 0
    assert kept.mean() == pytest.approx(6 / 40, abs=0.01)
    same_moments(values[kept], 0, 0.5)
    assert not fill('type: "gaussian" sparse: 0').any()


def test_constant() -> None:
    assert (fill('type: "constant" value: 0.25') == 0.25).all()
    assert not fill("").any(), "constant 0 is what a filler is by default"


def test_positive_unitball() -> None:
    values = fill('type: "positive_unitball"')
    assert (values >= 0).all()
    np.testing.assert_allclose(values.reshape(40, -1).sum(axis=1), 1, rtol=1e-4)
    assert values.std() > 0


def test_bilinear_of_size_4() -> None:
    """f = 2, c = 0.75: 1 - |x / 2 - 0.75| = 0.25, 0.75, 0.75, 0.25 along each axis."""
    values = fill('type: "bilinear"', (3, 2, 4, 4))
    line = np.array([0.25, 0.75, 0.75, 0.25])
    for kernel in values.reshape(-1, 4, 4):
        np.testing.assert_allclose(kernel, np.outer(line, line), atol=1e-7)


def test_bilinear_of_size_3() -> None:
    """f = 2, c = (2 * 2 - 1 - 0) / 4 = 0.75: 0.25, 0.75, 0.75, and not symmetric, as in Caffe."""
    line = np.array([0.25, 0.75, 0.75])
    np.testing.assert_allclose(fill('type: "bilinear"', (2, 1, 3, 3))[1, 0], np.outer(line, line), atol=1e-7)


def test_bilinear_of_size_5() -> None:
    """f = 3, c = (2 * 3 - 1 - 1) / 6 = 2 / 3."""
    line = np.array([1, 2, 3, 2, 1]) / 3
    np.testing.assert_allclose(fill('type: "bilinear"', (2, 1, 5, 5))[0, 0], np.outer(line, line), atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (4, 4), (2, 3, 4, 4, 4)])
def test_bilinear_needs_square_kernels(shape: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match="filler 'bilinear' needs a square 4-D blob, got"):
        fill('type: "bilinear"', shape)


def test_unknown_filler() -> None:
    with pytest.raises(SpecError, match=r"filler type 'xaviar' does not exist\. Did you mean 'xavier'\?"):
        fill('type: "xaviar"')


@pytest.mark.parametrize("kind", fillers.TYPES)
def test_seeded(kind: str) -> None:
    shape = (3, 2, 4, 4)
    one, again, other = (fill(f'type: "{kind}"', shape, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any() == (kind not in ("constant", "bilinear"))


@pytest.mark.parametrize("kind", ["constant", "gaussian", "uniform", "xavier", "msra"])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5)])
def test_blobs_of_few_axes(kind: str, shape: tuple[int, ...]) -> None:
    assert np.isfinite(fill(f'type: "{kind}"', shape)).all()


@pytest.mark.parametrize("kind", ["gaussian", "uniform", "xavier", "msra", "constant", "positive_unitball"])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_empty_blobs(kind: str, shape: tuple[int, ...]) -> None:
    assert fill(f'type: "{kind}"', shape).size == 0


def test_one_axis_has_a_fan_in_of_one() -> None:
    """count / shape[0]: a bias drawn by xavier lies in (-sqrt(3), sqrt(3))."""
    values = fill('type: "xavier"', (5000,))
    assert 1.7 < np.abs(values).max() <= math.sqrt(3)
