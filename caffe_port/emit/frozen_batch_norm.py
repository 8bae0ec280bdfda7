"""Classes to copy into model.py that torch.nn does not have, and that are simpler than the Caffe layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class FrozenBatchNorm1d(nn.BatchNorm1d):
    """nn.BatchNorm1d that uses its running statistics in train() too: Caffe's ``use_global_stats: true``."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d that uses its running statistics in train() too: Caffe's ``use_global_stats: true``."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class FrozenBatchNorm3d(nn.BatchNorm3d):
    """nn.BatchNorm3d that uses its running statistics in train() too: Caffe's ``use_global_stats: true``."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
