"""The loop that bench_training.py compares with: SimpleNet trained the way most PyTorch code of 2018 does it.

A DataLoader with two workers, torchvision's transforms on PIL images, a handwritten module, fp32, one host
synchronization per step. The nets have the convolutions of the prototxts, but BatchNorm2d after every one of them, as
in the PyTorch port. The one of 5.48 M parameters has five Dropout2d instead of Caffe's twelve Dropout layers; the slim
nets have none, as in Caffe.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

MEAN, STD = (0.491, 0.482, 0.446), (0.247, 0.243, 0.262)


WIDTHS = {  # of the convolutions; 0 pools; -width is a 1x1 convolution
    "5.48 M": (64, 128, 128, 128, 0, 128, 128, 256, 0, 256, 256, 0, 512, -2048, -256, 0, 256),
    "slim 310 K": (64, 32, 32, 32, 0, 32, 32, 64, 0, 64, 64, 0, 128, -256, -64, 0, 64),
    "slim 460 K": (32, 32, 32, 64, 0, 64, 64, 64, 0, 64, 64, 0, 96, 96, 96, 0, -100),
}


class SimpleNet(nn.Module):
    """(N, 3, 32, 32) -> (N, classes)."""

    def __init__(self, name: str = "5.48 M", classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        last, drops = 3, not name.startswith("slim")
        for width in WIDTHS[name]:
            if not width:
                layers += [nn.MaxPool2d(2, 2), *([nn.Dropout2d(0.1)] if drops else [])]
                continue
            out, kernel = abs(width), 3 if width > 0 else 1
            layers += [nn.Conv2d(last, out, kernel, padding=kernel // 2), nn.BatchNorm2d(out, momentum=0.05)]
            layers += [nn.ReLU(inplace=True)]
            last = out
        self.features = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), *([nn.Dropout(0.1)] if drops else []))
        self.classifier = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images as torchvision.datasets.CIFAR10 returns them: one PIL image at a time through the transforms.

    Args:
        images: uint8 (N, 3, H, W).
        labels: int64 (N).
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
        self.labels = labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class OriginalLoop:
    """Runs one step at a time, so that other loops can be measured in between.

    Args:
        name: of the net.
        images, labels: as for :class:`Pictures`.
        batch_size: images per step.
        device: where the net is trained.
        workers: processes of the DataLoader.
    """

    def __init__(
        self, name: str, images: Tensor, labels: Tensor, batch_size: int, device: torch.device, workers: int = 2
    ) -> None:
        torch.manual_seed(0)
        self.device = device
        self.loader = DataLoader(
            Pictures(images, labels),
            batch_size,
            shuffle=True,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            drop_last=True,
        )
        self.net = SimpleNet(name, int(labels.max()) + 1).to(device).train()
        self.criterion = nn.CrossEntropyLoss()
        parameters = self.net.parameters()
        self.optimizer: torch.optim.Optimizer
        if name == "slim 460 K":  # the optimizer of its solver.prototxt
            self.optimizer = torch.optim.SGD(parameters, 0.02, momentum=0.9, weight_decay=0.0005, nesterov=True)
        else:
            self.optimizer = torch.optim.Adadelta(parameters, 0.1, rho=0.9, eps=1e-3, weight_decay=0.001)
        self.batches = self._endless()

    def _endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.loader

    def step(self) -> float:
        """Runs one update and returns its loss."""
        images, labels = (t.to(self.device) for t in next(self.batches))
        self.optimizer.zero_grad()
        loss = self.criterion(self.net(images), labels)
        loss.backward()
        self.optimizer.step()
        return float(loss.item())
