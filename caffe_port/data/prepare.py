"""Applies a :class:`~caffe_port.data.preprocessing.Preprocessing`, to one image with NumPy and to a batch with torch.

Both round the same way: to float32 after the mean and after the factor. Their random choices differ, because their
generators do.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port.data.preprocessing import MEAN_IMAGE, Preprocessing
from caffe_port.errors import CaffePortError
from caffe_port.storage import images
from caffe_port.terminal import count
from caffe_port.typing import Array, Shape


def prepare(
    picture: Array,
    plan: Preprocessing,
    order: str | None = None,
    train: bool = False,
    rng: np.random.Generator | None = None,
) -> Array:
    """Preprocesses one image for the net.

    Args:
        picture: (C, H, W), 0..255; uint8 to be resized as in Caffe.
        plan: the preprocessing.
        order: channel order of the image, if known.
        train: crop at a random position, and mirror by the TRAIN phase's rule.
        rng: random generator, used for mirroring, then for the row and the column of the crop. None: seed 0.

    Returns:
        float32 (C, H', W').

    Raises:
        CaffePortError: the order, crop or mean does not fit the image.
    """
    _, height, width = plan.shape(picture.shape)
    mean, factor = _numbers(plan)
    x = picture[::-1] if plan.reorders(order) else picture
    x = resize(x, plan.resize) if plan.resize else x
    border = ((0, 0), (plan.pad, plan.pad), (plan.pad, plan.pad))
    x = np.pad(x, border) if plan.pad and plan.pad_first else x
    _check(mean.shape, factor.shape, x.shape)
    rng = rng or np.random.default_rng(0)
    flip = plan.mirrors(train) and int(rng.integers(2)) == 1
    x = (x.astype(np.float32) - mean) * factor
    x = np.pad(x, border) if plan.pad and not plan.pad_first else x
    free_y, free_x = x.shape[1] - height, x.shape[2] - width
    if train and plan.window is not None:
        top, left = int(rng.integers(free_y + 1)), int(rng.integers(free_x + 1))
    else:
        top, left = free_y // 2, free_x // 2
    x = x[:, top : top + height, left : left + width]
    return x[:, :, ::-1] if flip else x


class Preprocessor:
    """Preprocesses batches of images for the net, on the images' device.

    Args:
        plan: the preprocessing.
        order: channel order of the images, if known.
        device: device of the images.

    Raises:
        CaffePortError: gray images for a net that expects color or the reverse, or the mean image is missing.
    """

    def __init__(self, plan: Preprocessing, order: str | None, device: torch.device | str = "cpu") -> None:
        self.plan, self.reorder = plan, plan.reorders(order)
        self.mean, self.factor = (torch.tensor(numbers, device=device) for numbers in _numbers(plan))

    def shape(self, picture: Shape) -> tuple[int, int, int]:
        """The output shape (C, H, W) for an image shape. Raises CaffePortError if the crop is larger than the image."""
        return self.plan.shape(picture)

    def __call__(self, pictures: Tensor, train: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Preprocesses a batch.

        Args:
            pictures: (N, C, H, W), 0..255.
            train: crop at random positions, and mirror by the TRAIN phase's rule.
            generator: random generator on the images' device.

        Returns:
            float32 (N, C, H', W').

        Raises:
            CaffePortError: the crop or mean does not fit the images.
        """
        plan = self.plan
        _, height, width = plan.shape(pictures.shape[1:])
        x = pictures.flip(1) if self.reorder else pictures
        if plan.resize and x.shape[2:] != plan.resize:
            x = torch.from_numpy(np.stack([resize(one, plan.resize) for one in x.cpu().numpy()])).to(x.device)
        x = x.float()
        border = (plan.pad,) * 4
        x = F.pad(x, border) if plan.pad and plan.pad_first else x
        _check(self.mean.shape, self.factor.shape, x.shape[1:])
        x = (x - self.mean) * self.factor
        x = F.pad(x, border) if plan.pad and not plan.pad_first else x
        return cut(x, (height, width), at_random=train, mirror=plan.mirrors(train), generator=generator)


def cut(
    x: Tensor, window: tuple[int, int], at_random: bool, mirror: bool, generator: torch.Generator | None = None
) -> Tensor:
    """Crops the images of a batch and mirrors each with probability 1/2, in one gather per axis.

    Args:
        x: (N, C, H, W).
        window: (height, width) of the crop.
        at_random: crop every image at its own random position; otherwise at the center, rounded as in Caffe.
        mirror: whether to mirror.
        generator: random generator on the batch's device.

    Source: data_transformer.cpp.
    """
    n, _, height, width = x.shape
    h, w = window
    top, left = (height - h) // 2, (width - w) // 2
    if not mirror and not (at_random and (h, w) != (height, width)):
        return x[:, :, top : top + h, left : left + w]

    def draw(bound: int) -> Tensor:
        return torch.randint(bound, (n, 1), device=x.device, generator=generator)

    rows, columns = torch.arange(h, device=x.device), torch.arange(w, device=x.device).expand(n, w)
    if mirror:
        columns = torch.where(draw(2) == 1, columns.flip(1), columns)
    rows = rows + (draw(height - h + 1) if at_random else top)
    columns = columns + (draw(width - w + 1) if at_random else left)
    x = x.gather(2, rows.expand(n, h)[:, None, :, None].expand(n, x.shape[1], h, width))
    return x.gather(3, columns[:, None, None, :].expand(n, x.shape[1], h, w))


def resize(picture: Array, size: tuple[int, int]) -> Array:
    """Resizes an image (C, H, W) to (height, width) with OpenCV's INTER_LINEAR; the type stays the same.

    Raises:
        CaffePortError: the size is not one of an image.

    Source: ReadImageToCVMat in io.cpp, which calls cv::resize with this default.
    """
    if picture.shape[1:] == size:
        return picture
    cv2 = images.opencv()
    if min(size) < 1 or size[0] * size[1] > images.MAX_PIXELS:
        raise CaffePortError(f"an image cannot be resized to a height of {size[0]} and a width of {size[1]}")
    resized = cv2.resize(picture.transpose(1, 2, 0), size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.atleast_3d(resized).transpose(2, 0, 1)


def _numbers(plan: Preprocessing) -> tuple[Array, Array]:
    """The mean, float32 (C, 1, 1), (1, 1, 1) or (C, H, W), and the factor by which x - mean is multiplied."""
    if plan.lacks_mean_image:
        raise CaffePortError(
            f"the {MEAN_IMAGE} is required, but there is no training set to compute it from",
            hint="Give the mean: --mean FILE.binaryproto or --mean NUMBERS",
        )
    mean = plan.mean_image if plan.mean_image is not None else np.reshape(plan.mean, (-1, 1, 1))
    factor = np.float64(plan.scale) / np.reshape(plan.std, (-1, 1, 1))
    return np.ascontiguousarray(mean, np.float32), factor.astype(np.float32)


def _check(mean: Shape, factor: Shape, picture: Shape) -> None:
    """Raises CaffePortError if the mean or std of a plan does not fit an image (C, H, W)."""
    if mean[1:] != (1, 1) and mean != picture:
        raise CaffePortError(f"the mean image {tuple(mean)} does not match images {tuple(picture)}")
    for name, shape in (("mean", mean), ("std", factor)):
        if shape[0] not in (1, picture[0]):
            raise CaffePortError(
                f"{name} has {count(shape[0], 'value')} for {count(picture[0], 'channel')}; expected 1 or {picture[0]}"
            )
