"""Layers that normalize: by batch statistics, by neighbors, by the image's own mean and variance, by a norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caffe_port.formats.message import Message, decimal
from caffe_port.layers.layer import Layer, constructor
from caffe_port.signatures.normalization import bn_is_segnets, bn_keeps_decay
from caffe_port.typing import Shape

_BATCH_NORMS = {2: "nn.BatchNorm1d", 3: "nn.BatchNorm1d", 4: "nn.BatchNorm2d", 5: "nn.BatchNorm3d"}


class BatchNorm(Layer):
    """Same as torch.nn.BatchNorm2d (1d, 3d) with ``affine=False``; Caffe's affine half is a Scale layer.

    Differs from PyTorch: ``mean`` and ``variance`` are sums, to be divided by ``scale_factor``; that makes the running
    average unbiased from the first iteration on, where PyTorch's starts at 0 and 1. ``use_global_stats`` may ask for
    the running statistics in train(), or for those of the batch in eval().
    Blobs: mean (C), variance (C), scale_factor (1)
    Reference: batch_norm_layer.cpp
    """

    mean: Tensor
    variance: Tensor
    scale_factor: Tensor

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        both = p.use_global_stats
        return {
            "num_features": bottoms[0][1],
            "eps": p.eps,
            "momentum": decimal(1 - p.moving_average_fraction),
            "global_stats": (both, both) if p.has("use_global_stats") else (False, True),
            "dims": len(bottoms[0]),
        }

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.001,
        global_stats: tuple[bool, bool] = (False, True),
        dims: int = 4,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.global_stats = global_stats  # in train(), in eval()
        self.dims = dims  # of the bottom
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("variance", torch.zeros(num_features))
        self.register_buffer("scale_factor", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.global_stats[0] if self.training else self.global_stats[1]:
            return F.batch_norm(x, *self.running_statistics(), eps=self.eps)
        return self.normalize_by_batch(x)

    def normalize_by_batch(self, x: Tensor) -> Tensor:
        if x.numel() == self.mean.numel():  # one number for each channel, which F.batch_norm refuses
            y, mean, variance = x - x, x.detach().reshape(-1), torch.zeros_like(self.variance)
        else:
            mean, variance = torch.zeros_like(self.mean), torch.zeros_like(self.variance)
            y = F.batch_norm(x, mean, variance, training=True, momentum=1.0, eps=self.eps)  # fills both
        self.mean.mul_(1 - self.momentum).add_(mean)
        self.variance.mul_(1 - self.momentum).add_(variance)
        self.scale_factor.mul_(1 - self.momentum).add_(1)
        return y

    def running_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and variance (C): the sums divided by ``scale_factor``; zeros where that is zero."""
        factor = self.scale_factor.reciprocal().nan_to_num(nan=math.nan, posinf=0.0, neginf=0.0)
        return self.mean * factor, self.variance * factor

    @classmethod
    def merge_phases(cls, train: dict[str, Any], test: dict[str, Any]) -> dict[str, Any] | None:
        if any(train[key] != test[key] for key in ("num_features", "eps", "dims")):
            return None
        return {**train, "global_stats": (train["global_stats"][0], test["global_stats"][1])}

    def torch_source(self) -> str | None:
        if self.dims not in _BATCH_NORMS:
            return None
        options: dict[str, tuple[Any, Any]] = {"eps": (self.eps, 1e-5), "momentum": (self.momentum, 0.1)}
        options["affine"] = (False, True)
        options["track_running_stats"] = (self.global_stats[1], True)
        return constructor(_BATCH_NORMS[self.dims], [self.mean.numel()], options)

    def torch_state(self) -> dict[str, Tensor]:
        if self.dims not in _BATCH_NORMS:
            return super().torch_state()
        if not self.global_stats[1]:
            return {}
        mean, variance = self.running_statistics()
        return {"running_mean": mean, "running_var": variance, "num_batches_tracked": torch.tensor(0)}


class BN(Layer):
    """Same as torch.nn.BatchNorm2d: normalization and affine map in one layer, from forks.

    Differs from PyTorch: ``momentum`` is the part that is kept, 1 - PyTorch's. ``frozen`` uses the running statistics
    in train() too. The running variance is cuDNN's and PyTorch's; the forks' CPU code is less by (m - 1) / m.
    SegNet's form (``scale_filler`` or ``bn_mode``, but none of ``decay``, ``var_eps``, ``moving_average``) has two
    blobs only: LEARN takes the statistics of the batch in train() and eval(), INFERENCE none.
    Blobs: slope (C), bias (C); except in SegNet's form, also mean (C), variance (C)
    Reference: bn_layer.cpp (yjxiong/caffe, happynear/caffe-windows, alexgkendall/caffe-segnet; not in Caffe 1.0)
    """

    mean: Tensor | None
    variance: Tensor | None

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        args = {"num_features": bottoms[0][1], "dims": len(bottoms[0])}
        if bn_keeps_decay(p):
            return {**args, "eps": p.var_eps, "momentum": p.decay}
        if bn_is_segnets(p):
            return {**args, "eps": 1e-9, "mode": p.bn_mode}
        return {**args, "eps": p.eps, "momentum": decimal(1 - p.momentum), "frozen": p.frozen}

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        frozen: bool = False,
        mode: str | None = None,
        dims: int = 4,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.frozen = frozen
        self.mode = mode
        self.dims = dims  # of the bottom
        self.slope = nn.Parameter(torch.empty(num_features))
        self.bias = nn.Parameter(torch.empty(num_features))
        self.register_buffer("mean", torch.zeros(num_features) if mode is None else None)
        self.register_buffer("variance", torch.zeros(num_features) if mode is None else None)

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "INFERENCE":
            shape = (-1,) + (1,) * (x.dim() - 2)
            return torch.addcmul(self.bias.reshape(shape), x, self.slope.reshape(shape))
        training = self.mode == "LEARN" or (self.training and not self.frozen)
        return F.batch_norm(x, self.mean, self.variance, self.slope, self.bias, training, self.momentum, self.eps)

    @classmethod
    def fillers(cls, p: Message) -> dict[str, Message]:
        slope = p.scale_filler if p.has("scale_filler") else p.slope_filler
        bias = p.shift_filler if p.has("shift_filler") else p.bias_filler
        return {"slope": slope, "bias": bias, "variance": Message("FillerParameter", value=float(p.frozen))}

    def torch_source(self) -> str | None:
        if self.mode == "INFERENCE":
            return None
        options: dict[str, tuple[Any, Any]] = {"eps": (self.eps, 1e-5), "momentum": (self.momentum, 0.1)}
        options["track_running_stats"] = (self.mode is None, True)
        return constructor(_BATCH_NORMS[self.dims], [self.slope.numel()], options)

    def torch_state(self) -> dict[str, Tensor]:
        if self.mode == "INFERENCE":
            return super().torch_state()
        state = {"weight": self.slope.detach(), "bias": self.bias.detach()}
        if self.mean is None or self.variance is None:
            return state
        return state | {"running_mean": self.mean, "running_var": self.variance, "num_batches_tracked": torch.tensor(0)}


class LRN(Layer, nn.LocalResponseNorm):
    """Same as torch.nn.LocalResponseNorm: x / (k + alpha / n * sum of x^2 over n neighboring channels) ^ beta.

    Differs from PyTorch: ``norm_region: WITHIN_CHANNEL`` sums over a square of n x n pixels of the same channel,
    divides alpha by n^2, and uses k = 1.
    Reference: lrn_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        args = {"size": p.local_size, "alpha": p.alpha, "beta": p.beta}
        return args | ({"within_channel": True} if p.norm_region == "WITHIN_CHANNEL" else {"k": p.k})

    def __init__(
        self, size: int, alpha: float = 1.0, beta: float = 0.75, k: float = 1.0, within_channel: bool = False
    ) -> None:
        super().__init__(size, alpha, beta, k)
        self.within_channel = within_channel

    def forward(self, x: Tensor) -> Tensor:
        if not self.within_channel:
            return super().forward(x)
        mean_square = F.avg_pool2d(x.square(), self.size, 1, self.size // 2)
        return x * (1 + self.alpha * mean_square).pow(-self.beta)

    def torch_source(self) -> str | None:
        if self.within_channel:
            return None
        options = {"alpha": (self.alpha, 1e-4), "beta": (self.beta, 0.75), "k": (self.k, 1.0)}
        return constructor("nn.LocalResponseNorm", [self.size], options)


class MVN(Layer):
    """Every channel of every image minus its mean, divided by its standard deviation.

    Differs from PyTorch: nn.InstanceNorm2d adds eps to the variance, MVN to the standard deviation, and its gradient
    takes the two for the same. ``across_channels`` treats all channels of an image together;
    ``normalize_variance: false`` subtracts the mean only. The top always has four axes: (N, C) becomes (N, C, 1, 1).
    Reference: mvn_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"across_channels": p.across_channels, "normalize_variance": p.normalize_variance, "eps": p.eps}

    def __init__(self, across_channels: bool = False, normalize_variance: bool = True, eps: float = 1e-9) -> None:
        super().__init__()
        self.across_channels = across_channels
        self.normalize_variance = normalize_variance
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(x.shape + (1,) * (4 - x.dim()))
        rows = x.flatten(1) if self.across_channels else x.reshape(x.shape[0] * x.shape[1], -1)
        rows = rows - rows.mean(1, keepdim=True)
        if self.normalize_variance:
            variance = rows.square().mean(1, keepdim=True)
            deviation = variance.detach().sqrt() + self.eps
            # sqrt(variance + rest) is the deviation, but has the gradient that mvn_layer.cpp computes, and no 0 / 0.
            rest = deviation.square() - variance.detach()
            rows = rows / (variance + rest).sqrt()
        return rows.reshape(x.shape)


class Normalize(Layer):
    """Every pixel divided by the L2 norm of its channels, times a trained weight; from SSD.

    Without ``norm_param`` it is NormFace's layer: no weight; ``normalize_param`` may say L1; a second top holds the
    norms (N, 1, ...).

    Differs from PyTorch: F.normalize takes the greater of norm and eps, here eps is added under the root (in L1, to
    the norm). ``across_spatial`` takes the norm of the whole image.
    Blobs: weight (C), or a single number with ``channel_shared``; none without ``norm_param``
    Reference: normalize_layer.cpp (weiliu89/caffe, branch ssd; happynear/caffe-windows; not in Caffe 1.0)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        if not p.has("norm_param"):
            args: dict[str, Any] = {"channels": None, "across_spatial": False, "eps": 1e-6}
            absolute = p.normalize_param.normalize_type == "L1"
            return args | {"absolute": absolute, "with_norm": len(p.top) > 1}
        p = p.norm_param
        return {
            "channels": bottoms[0][1],
            "across_spatial": p.across_spatial,
            "channel_shared": p.channel_shared,
            "eps": p.eps,
        }

    def __init__(
        self,
        channels: int | None,
        across_spatial: bool = True,
        channel_shared: bool = True,
        eps: float = 1e-10,
        absolute: bool = False,
        with_norm: bool = False,
    ) -> None:
        super().__init__()
        self.across_spatial = across_spatial
        self.eps = eps
        self.absolute, self.with_norm = absolute, with_norm
        self.weight = None
        if channels is not None:
            self.weight = nn.Parameter(torch.empty(() if channel_shared else (channels,)))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        dims = tuple(range(1, x.dim())) if self.across_spatial else (1,)
        if self.absolute:
            norm = x.abs().sum(dims, keepdim=True) + self.eps
        else:
            norm = (x.square().sum(dims, keepdim=True) + self.eps).sqrt()
        if self.weight is None:
            return (x / norm, norm) if self.with_norm else x / norm
        weight = self.weight.reshape(self.weight.shape + (1,) * (x.dim() - 2)) if self.weight.dim() else self.weight
        return x / norm * weight

    @classmethod
    def fillers(cls, p: Message) -> dict[str, Message]:
        one = Message("FillerParameter", type="constant", value=1.0)
        return {"weight": p.norm_param.scale_filler if p.norm_param.has("scale_filler") else one}


class L2Normalization(Layer):
    """Every image divided by its L2 norm, as in the metric learning forks; L2Normalize adds 1e-7 under the root.

    Differs from PyTorch: F.normalize gives 0 for an image of zeros, Caffe (and this) NaN, but for L2Normalize.
    Reference: l2_normalization_layer.cpp (several forks; not in Caffe 1.0); facebookarchive/C3D l2_normalize_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"eps": 1e-7} if p.type == "L2Normalize" else {}

    def __init__(self, eps: float = 0.0) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        dims = tuple(range(1, x.dim()))
        if self.eps:
            return x / (x.square().sum(dims, keepdim=True) + self.eps).sqrt()
        norm: Tensor = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
        return x / norm
