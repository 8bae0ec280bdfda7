"""CIFAR as it is in the shared folder: .webp strips of 500 images, one below another, and labels as .npy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from caffe_port.data.datasets import ImageSet, from_arrays


def load(folder: Path, split: str, strips: int | None = None) -> ImageSet:
    """An ImageSet of ``folder/<split>_NNN.webp``, or only the first ``strips`` of them."""
    files = sorted(folder.glob(f"{split}_[0-9]*.webp"))[:strips]
    images = np.concatenate([np.asarray(Image.open(file)).reshape(-1, 32, 32, 3) for file in files])
    labels = np.load(folder / f"{split}_labels.npy")[: len(images)]
    classes = (folder / "classes.txt").read_text().split()
    return from_arrays(images, labels, f"{folder.name} {split}", classes)
