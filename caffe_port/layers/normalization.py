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
from caffe_port.signatures.normalization import bn_is_segnets, bn_keeps_decay, is_ssds
from caffe_port.typing import Shape

_BATCH_NORMS = {2: "nn.BatchNorm1d", 3: "nn.BatchNorm1d", 4: "nn.BatchNorm2d", 5: "nn.BatchNorm3d"}


class RunningStatistics(Layer, register=False):
    """What BatchNorm and BatchNormKyle share: the three blobs, and how they are read and written."""

    mean: Tensor
    variance: Tensor
    scale_factor: Tensor

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        both = p.use_global_stats
        args = {
            "num_features": bottoms[0][1],
            "eps": p.eps,
            "momentum": decimal(1 - p.moving_average_fraction),
            "global_stats": (both, both) if p.has("use_global_stats") else (False, True),
            "dims": len(bottoms[0]),
        }
        return args if p.add_eps_before_sqrt else args | {"eps": 0.0, "root_eps": p.eps}

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.001,
        global_stats: tuple[bool, bool] = (False, True),
        dims: int = 4,
        root_eps: float = 0.0,
    ) -> None:
        super().__init__()
        self.eps = eps  # added to the variance
        self.root_eps = root_eps  # added to its root: then eps is 0
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
            y = F.batch_norm(x, mean, variance, training=True, momentum=1.0, eps=self.eps or self.root_eps)
            if self.root_eps:
                others = [axis for axis in range(x.dim()) if axis != 1]
                deviation, center = torch.std_mean(x, others, correction=0, keepdim=True)
                y = (x - center) / (deviation + self.root_eps)
        self.mean.mul_(1 - self.momentum).add_(mean)
        self.variance.mul_(1 - self.momentum).add_(variance)
        self.scale_factor.mul_(1 - self.momentum).add_(1)
        return y

    def running_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and variance (C): the sums divided by ``scale_factor``; zeros where that is zero.

        ``root_eps`` is in the variance, as if it had been added to its root.
        """
        factor = self.scale_factor.reciprocal().nan_to_num(nan=math.nan, posinf=0.0, neginf=0.0)
        variance = self.variance * factor
        return self.mean * factor, (variance.sqrt() + self.root_eps) ** 2 if self.root_eps else variance

    @classmethod
    def merge_phases(cls, train: dict[str, Any], test: dict[str, Any]) -> dict[str, Any] | None:
        if any(train.get(key) != test.get(key) for key in ("num_features", "eps", "dims", "root_eps")):
            return None
        return {**train, "global_stats": (train["global_stats"][0], test["global_stats"][1])}


class BatchNorm(RunningStatistics):
    """Same as torch.nn.BatchNorm2d (1d, 3d) with ``affine=False``; Caffe's affine half is a Scale layer.

    Differs from PyTorch: ``mean`` and ``variance`` are sums, to be divided by ``scale_factor``; that makes the running
    average unbiased from the first iteration on, where PyTorch's starts at 0 and 1. ``use_global_stats`` may ask for
    the running statistics in train(), or for those of the batch in eval(). ``add_eps_before_sqrt: false`` (Synopsys)
    adds eps to the standard deviation.
    Blobs: mean (C), variance (C), scale_factor (1)
    Reference: batch_norm_layer.cpp (Caffe 1.0, synopsys-caffe)
    """

    def torch_source(self) -> str | None:
        if self.dims not in _BATCH_NORMS or self.root_eps:
            return None
        options: dict[str, tuple[Any, Any]] = {"eps": (self.eps, 1e-5), "momentum": (self.momentum, 0.1)}
        options["affine"] = (False, True)
        options["track_running_stats"] = (self.global_stats[1], True)
        return constructor(_BATCH_NORMS[self.dims], [self.mean.numel()], options)

    def torch_state(self) -> dict[str, Tensor]:
        if self.dims not in _BATCH_NORMS or self.root_eps:
            return super().torch_state()
        if not self.global_stats[1]:
            return {}
        mean, variance = self.running_statistics()
        return {"running_mean": mean, "running_var": variance, "num_batches_tracked": torch.tensor(0)}


class BatchNormKyle(RunningStatistics):
    """Same as torch.nn.BatchNorm2d (1d, 3d): BatchNorm, which with ``use_alpha_beta`` scales and shifts too.

    Differs from PyTorch: as BatchNorm does. Scale and shift learn only where the statistics are those of the batch.
    Blobs: mean (C), variance (C), scale_factor (1), and with use_alpha_beta weight (C), bias (C)
    Reference: batch_norm_kyle_layer.cpp (brocolli-caffe 9.0.2)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return super().from_caffe(p, bottoms) | ({"affine": True} if p.use_alpha_beta else {})

    @classmethod
    def fillers(cls, p: Message) -> dict[str, Message]:
        return {"weight": Message("FillerParameter", type="constant", value=1.0)}

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.001,
        global_stats: tuple[bool, bool] = (False, True),
        dims: int = 4,
        affine: bool = False,
        root_eps: float = 0.0,
    ) -> None:
        super().__init__(num_features, eps, momentum, global_stats, dims, root_eps)
        self.weight = nn.Parameter(torch.empty(num_features)) if affine else None
        self.bias = nn.Parameter(torch.empty(num_features)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.weight is None or self.bias is None:
            return y
        shape = (-1,) + (1,) * (x.dim() - 2)
        weight, bias = self.weight.reshape(shape), self.bias.reshape(shape)
        if self.global_stats[0] if self.training else self.global_stats[1]:
            weight, bias = weight.detach(), bias.detach()
        return torch.addcmul(bias, y, weight)

    @classmethod
    def merge_phases(cls, train: dict[str, Any], test: dict[str, Any]) -> dict[str, Any] | None:
        return None if train.get("affine") != test.get("affine") else super().merge_phases(train, test)


class BN(Layer):
    """Same as torch.nn.BatchNorm2d: normalization and affine map in one layer, from forks.

    Differs from PyTorch: ``momentum`` is the part that is kept, 1 - PyTorch's. ``frozen`` uses the running statistics
    in train() too. The running variance is cuDNN's and PyTorch's; the forks' CPU code is less by (m - 1) / m.
    SegNet's form (``scale_filler`` or ``bn_mode``, but none of ``decay``, ``var_eps``, ``moving_average``) has two
    blobs only: LEARN takes the statistics of the batch in train() and eval(), INFERENCE none. In brocolli-caffe 9.0.2
    ``variance`` is the inverse standard deviation, with eps in it. A frozen layer's slope and bias do not learn.
    Blobs: slope (C), bias (C); except in SegNet's form, also mean (C), variance (C)
    Reference: bn_layer.cpp (yjxiong/caffe, happynear/caffe-windows, alexgkendall/caffe-segnet, brocolli-caffe 9.0.2;
    not in Caffe 1.0)
    """

    mean: Tensor | None
    variance: Tensor | None

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        args: dict[str, Any] = {"num_features": bottoms[0][1], "dims": len(bottoms[0])}
        if bn_keeps_decay(p):
            return {**args, "eps": p.var_eps, "momentum": p.decay}
        if bn_is_segnets(p):
            return {**args, "eps": 1e-9, "mode": p.bn_mode}
        args |= {"eps": p.eps, "momentum": decimal(1 - p.momentum), "frozen": p.frozen}
        return args | ({"inverse_std": True} if p.inverse_std else {})

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        frozen: bool = False,
        mode: str | None = None,
        dims: int = 4,
        inverse_std: bool = False,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.frozen = frozen
        self.inverse_std = inverse_std
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
        slope, bias = (self.slope.detach(), self.bias.detach()) if self.frozen else (self.slope, self.bias)
        if self.inverse_std and self.mean is not None and self.variance is not None:
            return self.by_inverse_std(x, slope, bias, self.mean, self.variance, training)
        return F.batch_norm(x, self.mean, self.variance, slope, bias, training, self.momentum, self.eps)

    def by_inverse_std(
        self, x: Tensor, slope: Tensor, bias: Tensor, mean: Tensor, inverse_std: Tensor, training: bool
    ) -> Tensor:
        if not training:
            shape = (-1,) + (1,) * (x.dim() - 2)
            factor = slope.reshape(shape) * inverse_std.reshape(shape)
            return torch.addcmul(bias.reshape(shape), x - mean.reshape(shape), factor)
        others = tuple(dim for dim in range(x.dim()) if dim != 1)
        inverse_std.lerp_((x.detach().var(others, correction=0) + self.eps).rsqrt(), self.momentum)
        mean.lerp_(x.detach().mean(others), self.momentum)
        return F.batch_norm(x, None, None, slope, bias, True, 0.0, self.eps)

    @classmethod
    def fillers(cls, p: Message) -> dict[str, Message]:
        slope = p.scale_filler if p.has("scale_filler") else p.slope_filler
        bias = p.shift_filler if p.has("shift_filler") else p.bias_filler
        return {
            "slope": slope,
            "bias": bias,
            "variance": Message("FillerParameter", value=float(p.frozen or p.inverse_std)),
        }

    def torch_source(self) -> str | None:
        if self.mode == "INFERENCE" or self.inverse_std:
            return None
        options: dict[str, tuple[Any, Any]] = {"eps": (self.eps, 1e-5), "momentum": (self.momentum, 0.1)}
        options["track_running_stats"] = (self.mode is None, True)
        return constructor(_BATCH_NORMS[self.dims], [self.slope.numel()], options)

    def torch_state(self) -> dict[str, Tensor]:
        if self.torch_source() is None:
            return super().torch_state()
        state = {"weight": self.slope.detach(), "bias": self.bias.detach()}
        if self.mean is None or self.variance is None:
            return state
        return state | {"running_mean": self.mean, "running_var": self.variance, "num_batches_tracked": torch.tensor(0)}


class LRN(Layer, nn.LocalResponseNorm):
    """Same as torch.nn.LocalResponseNorm: x / (k + alpha / n * sum of x^2 over n neighboring channels) ^ beta.

    It adds the channels, which takes a CPU a fifth to a half of the time of PyTorch's pooling of volumes.

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
        if self.within_channel:
            mean_square = F.avg_pool2d(x.square(), self.size, 1, self.size // 2)
            return x * (1 + self.alpha * mean_square).pow(-self.beta)
        channels, border = x.shape[1], self.size // 2
        squares = F.pad(x.square(), (0, 0) * (x.dim() - 2) + (border, border))
        share = self.alpha / self.size
        total = squares[:, :channels] * share
        for k in range(1, self.size):
            total.add_(squares[:, k : k + channels], alpha=share)
        return x / total.add_(self.k).pow_(self.beta)


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
    The gradient of the bottom is Caffe's, which multiplies by the scale at last; with a scale for each channel that is
    not the derivative. Without parameters it is SSD's.
    Blobs: weight (C), or a single number with ``channel_shared``; none with ``normalize_param``
    Reference: normalize_layer.cpp (weiliu89/caffe, branch ssd; happynear/caffe-windows; not in Caffe 1.0)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        if not is_ssds(p):
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
        if self.weight is None:
            norm = self.norm(x)
            return (x / norm, norm) if self.with_norm else x / norm
        weight = self.weight.reshape(self.weight.shape + (1,) * (x.dim() - 2)) if self.weight.dim() else self.weight
        if not (self.weight.dim() and torch.is_grad_enabled()):
            return x / self.norm(x) * weight
        scaled = x.detach() + weight.detach() * (x - x.detach())  # the numbers of x, with the gradient times the scale
        y = scaled / self.norm(scaled)
        return y.detach() * weight + (y - y.detach())

    def norm(self, x: Tensor) -> Tensor:
        dims = tuple(range(1, x.dim())) if self.across_spatial else (1,)
        if self.absolute:
            return x.abs().sum(dims, keepdim=True) + self.eps
        return (x.square().sum(dims, keepdim=True) + self.eps).sqrt()

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
