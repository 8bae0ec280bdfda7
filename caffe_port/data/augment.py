"""Epochs of images that are flipped, shifted and cut out on their device. The random choices depend only on the epoch.

This augmentation is not Caffe's; for transform_param, see :mod:`caffe_port.data.preprocessing`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from caffe_port.data.datasets import ImageSet


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of training images.

    Attributes:
        shift: the maximum shift in pixels, vertically and horizontally; gaps are filled by reflection.
        cutout: side of a square, centered anywhere, that is set to the mean color; 0: none.
        flip: flip each image horizontally in every other epoch; a random choice says in which of the two.
    """

    shift: int = 4
    cutout: int = 8
    flip: bool = True


class Epochs:
    """Normalized batches of a data set; their order and augmentation are determined by (seed, epoch).

    Args:
        data: uint8 or float images, on the device that trains.
        mean, std: per channel, on the scale 0..255.
        batch_size: images per batch; an incomplete last batch is dropped.
        augmentation: the augmentation.
        seed: seed of all random choices.
    """

    def __init__(
        self, data: ImageSet, mean: Tensor, std: Tensor, batch_size: int, augmentation: Augmentation, seed: int = 0
    ) -> None:
        self.augmentation, self.seed, self.batch_size = augmentation, seed, min(batch_size, len(data))
        self.labels, self.device = data.labels, data.labels.device
        self.size = data.shape[1:]
        images = data.images
        if augmentation.shift:
            images = F.pad(images.float(), (augmentation.shift,) * 4, mode="reflect").to(images.dtype)
        self.images = images.permute(0, 2, 3, 1).contiguous()  # channels last, because a pixel's channels move together
        self.mean, self.factor = mean.to(self.device), (1 / std).to(self.device)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return len(self.labels) // self.batch_size

    def epoch(self, number: int, first: int = 0, scale: float = 1.0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (images, labels) of an epoch, from its batch ``first`` on; images are float32 (N, C, H, W) in
        channels-last memory, their sides ``scale`` times as long as the data set's.
        """
        a, count = self.augmentation, len(self.labels)
        always = torch.Generator(self.device).manual_seed(self.seed << 20)
        mirrored = torch.randint(2, (count,), generator=always, device=self.device)
        own = torch.Generator(self.device).manual_seed((self.seed << 20) + 1 + number)
        order = torch.randperm(count, generator=own, device=self.device)

        def draw(bound: int) -> Tensor:
            return torch.randint(bound, (count, 1), generator=own, device=self.device)

        height, width = (torch.arange(side, device=self.device) for side in self.size)
        rows, columns = height + draw(2 * a.shift + 1), width.expand(count, -1)
        if a.flip:
            columns = torch.where((mirrored + number)[:, None] % 2 == 1, columns.flip(1), columns)
        columns = columns + draw(2 * a.shift + 1)
        centres = draw(len(height)), draw(len(width))
        for start in range(first * self.batch_size, len(self) * self.batch_size, self.batch_size):
            chosen = order[start : start + self.batch_size]
            images = self.images[chosen[:, None, None], rows[chosen][:, :, None], columns[chosen][:, None, :]]
            images = (images - self.mean) * self.factor
            if a.cutout:
                y, x = height - centres[0][chosen], width - centres[1][chosen]
                y, x = (2 * y.abs() <= a.cutout), (2 * x.abs() <= a.cutout)
                images = images.masked_fill((y[:, :, None] & x[:, None, :])[..., None], 0)
            images = images.permute(0, 3, 1, 2)
            if (size := scaled(self.size, scale)) != tuple(self.size):
                images = F.interpolate(images, size, mode="bilinear", antialias=True)
            yield images, self.labels[chosen]


def scaled(size: Sequence[int], scale: float) -> tuple[int, ...]:
    """Height and width, scaled and rounded."""
    return tuple(max(round(side * scale), 1) for side in size)
