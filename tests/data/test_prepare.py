"""Pictures made ready: against a loop after data_transformer.cpp, and NumPy against torch, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from caffe_port.data.prepare import Preprocessor, prepare, resize
from caffe_port.data.preprocessing import MEAN_IMAGE, Preprocessing
from caffe_port.errors import CaffePortError

RNG = np.random.default_rng(5)
PICTURES = RNG.integers(0, 256, (6, 3, 9, 7), dtype=np.uint8)
MEAN = (RNG.standard_normal((3, 9, 7)) * 30 + 110).astype(np.float32)
BATCH = torch.from_numpy(PICTURES)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def transformed(picture: np.ndarray, plan: Preprocessing, top: int, left: int, flip: bool) -> np.ndarray:
    """A loop after DataTransformer::Transform: one pixel after the other, in float32, the offsets as drawn."""
    channels, height, width = picture.shape
    h, w = plan.window or (height, width)
    out = np.empty((channels, h, w), np.float32)
    means = np.resize(np.asarray(plan.mean, np.float32), channels) if plan.mean_image is None else None
    for c, y, x in itertools.product(range(channels), range(h), range(w)):
        element = np.float32(picture[c, top + y, left + x])
        mean = means[c] if means is not None else plan.mean_image[c, top + y, left + x]  # type: ignore[index]
        out[c, y, w - 1 - x if flip else x] = (element - mean) * np.float32(plan.scale)
    return out


def plans(**more: Any) -> Iterator[Preprocessing]:
    """What transform_param can say, one of each and all together."""
    for mean, scale, crop, mirror in itertools.product(
        (0.0, 117.3, (104.0, 116.669, 122.679), MEAN), (1.0, 0.017), (0, 4), (False, True)
    ):
        plan = Preprocessing(None, scale=scale, crop=crop, mirror_train=mirror, mirror_test=mirror, **more)
        yield plan.changed(mean=mean)


@pytest.mark.parametrize("train", [False, True])
def test_the_numbers_are_those_of_data_transformer(train: bool) -> None:
    """The place and the mirroring may be any that Caffe could draw; all the rest is the same, bit for bit."""
    for plan in plans():
        crop = plan.window is not None
        rows, columns = (range(6), range(4)) if train and crop else ((2,), (1,)) if crop else ((0,), (0,))
        flips = (False, True) if plan.mirror_train else (False,)
        wanted = {transformed(PICTURES[0], plan, y, x, flip).tobytes() for y in rows for x in columns for flip in flips}
        generator, torchs = rng(), torch.Generator().manual_seed(1)
        one = {prepare(PICTURES[0], plan, train=train, rng=generator).tobytes() for _ in range(60)}
        batch = Preprocessor(plan, None)(BATCH[:1].expand(60, -1, -1, -1), train, torchs)
        many = {picture.numpy().tobytes() for picture in batch}
        assert one <= wanted
        assert many <= wanted
        assert len(one) >= min(len(wanted), 12)
        assert len(many) >= min(len(wanted), 12)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_a_picture_and_a_batch_are_prepared_alike(order: str) -> None:
    """Everything a plan can say, but what is drawn: NumPy's bits and torch's."""
    compared = 0
    for plan, std, pad, first, size in itertools.product(
        plans(), (1.0, (62.9932, 62.0887, 66.7049)), (0, 2), (False, True), (None, (9, 7), (11, 8))
    ):
        full = plan.changed(channel_order="RGB", std=std, pad=pad, pad_first=first, resize=size, mirror_test=False)
        if full.mean_image is not None and ((pad and first) or size == (11, 8)):
            continue
        got = Preprocessor(full, order)(BATCH)
        assert got.dtype == torch.float32
        assert got.shape[1:] == full.shape((3, 9, 7))
        for picture, row in zip(PICTURES[:2], got, strict=False):
            np.testing.assert_array_equal(prepare(picture, full, order), row.numpy(), strict=True)
        compared += 1
    assert compared > 500


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_mean_scale_and_std_are_per_channel_of_the_nets_order(order: str) -> None:
    plan = Preprocessing(order, (10.0, 20.0, 30.0), 0.5, (2.0, 4.0, 8.0))
    x = PICTURES[:, ::-1] if order == "BGR" else PICTURES
    want = (x - np.reshape([10, 20, 30], (3, 1, 1))) * 0.5 / np.reshape([2, 4, 8], (3, 1, 1))
    np.testing.assert_allclose(Preprocessor(plan, "RGB")(BATCH).numpy(), want, rtol=1e-6)
    np.testing.assert_allclose(prepare(PICTURES[1], plan, "RGB"), want[1], rtol=1e-6)


def test_the_mean_image_is_of_the_nets_order() -> None:
    plan = Preprocessing("BGR").changed(mean=MEAN)
    np.testing.assert_array_equal(prepare(PICTURES[0], plan, "RGB"), PICTURES[0, ::-1] - MEAN)
    np.testing.assert_array_equal(Preprocessor(plan, "RGB")(BATCH).numpy(), PICTURES[:, ::-1] - MEAN)


@pytest.mark.parametrize("pad_first", [False, True])
def test_padding_is_zero_after_normalising_or_before_it(pad_first: bool) -> None:
    plan = Preprocessing(mean=100.0, std=50.0, pad=2, pad_first=pad_first)
    got = Preprocessor(plan, "RGB")(BATCH)
    assert got.shape == (6, 3, 13, 11)
    assert got[0, 0, 0, 0] == (-2 if pad_first else 0)
    np.testing.assert_allclose(got[:, :, 2:-2, 2:-2].numpy(), (PICTURES - 100.0) / 50, rtol=1e-5)


def test_by_hand() -> None:
    picture = np.array([[[10, 40]], [[20, 50]], [[30, 60]]], np.uint8)  # (3, 1, 2)
    x = prepare(picture, Preprocessing("BGR", (1.0, 2.0, 3.0), 0.5), "BGR")
    assert x.dtype == np.float32
    assert x.tolist() == [[[4.5, 19.5]], [[9.0, 24.0]], [[13.5, 28.5]]]
    assert prepare(picture, Preprocessing("BGR", 10.0), "BGR")[:, 0, 0].tolist() == [0, 10, 20]
    assert prepare(picture, Preprocessing("BGR"), "RGB")[:, 0, 1].tolist() == [60, 50, 40]


def test_a_greater_mean_image_is_cut_at_the_centre() -> None:
    picture = np.arange(5 * 6).reshape(1, 5, 6).astype(np.uint8)
    mean = np.zeros((1, 5, 6), np.float32)
    mean[0, 2, 3] = 1
    x = prepare(picture, Preprocessing("GRAY").changed(mean=mean).for_input(1, 3, 2), "GRAY")
    assert x.tolist() == [[[8, 9], [14, 14], [20, 21]]]  # rows 1 to 3, columns 2 and 3; 15 - 1 = 14


def test_resizing_is_opencvs_bilinear_on_bytes() -> None:
    want = cv2.resize(PICTURES[0].transpose(1, 2, 0), (5, 12), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)
    got = resize(PICTURES[0], (12, 5))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, want)
    assert resize(PICTURES[0, :1], (12, 5)).shape == (1, 12, 5)
    assert resize(got, (12, 5)) is got
    np.testing.assert_array_equal(prepare(PICTURES[0], Preprocessing(resize=(12, 5)), "RGB"), want)


def test_mirroring_flips_about_half_the_pictures() -> None:
    images = BATCH[:1].expand(2000, -1, -1, -1)
    for plan, train, flips in [
        (Preprocessing(mirror_train=True), True, True),
        (Preprocessing(mirror_train=True), False, False),
        (Preprocessing(mirror_test=True), False, True),
    ]:
        got = Preprocessor(plan, "RGB")(images, train=train, generator=torch.Generator().manual_seed(2))
        flipped = (got == images.flip(3).float()).flatten(1).all(1)
        assert (flipped | (got == images.float()).flatten(1).all(1)).all()
        assert (900 < int(flipped.sum()) < 1100) if flips else not flipped.any()
        generator = rng(1)
        one = sum(
            np.array_equal(prepare(PICTURES[0], plan, "RGB", train, generator), PICTURES[0, :, :, ::-1])
            for _ in range(400)
        )
        assert (150 < one < 250) if flips else one == 0


def test_randomness_is_the_generators() -> None:
    plan = Preprocessing(pad=2, crop=7, mirror_train=True)
    a, b, c = (Preprocessor(plan, "RGB")(BATCH, True, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    d, e, f = (prepare(PICTURES[0], plan, "RGB", True, rng(s)) for s in (3, 3, 4))
    assert np.array_equal(d, e)
    assert not np.array_equal(d, f)


@pytest.mark.parametrize(
    ("plan", "order", "message"),
    [
        (Preprocessing(), "GRAY", "the images are GRAY, but the net expects RGB"),
        (Preprocessing("GRAY"), "BGR", "the images are BGR, but the net expects GRAY"),
        (Preprocessing(mean=MEAN_IMAGE), "RGB", "training-set mean image is required, but there is no training set"),
        (Preprocessing(crop=8), "RGB", "crop 8 is larger than the image, 7x9"),
        (Preprocessing().changed(mean=MEAN[:, :5, :5]), "RGB", r"mean image \(3, 5, 5\) does not match images"),
        (Preprocessing(None, (1.0, 2.0)), None, "mean has 2 values for 3 channels; expected 1 or 3"),
        (Preprocessing(None, std=(1.0, 2.0)), None, "std has 2 values for 3 channels; expected 1 or 3"),
    ],
)
def test_what_does_not_fit_is_refused(plan: Preprocessing, order: str | None, message: str) -> None:
    with pytest.raises(CaffePortError, match=message):
        prepare(PICTURES[0], plan, order)
    with pytest.raises(CaffePortError, match=message):
        Preprocessor(plan, order)(BATCH)
