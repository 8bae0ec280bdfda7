"""Activations of forks, and layers that do something in training only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caffe_port.formats.message import Message, decimal
from caffe_port.layers.activation import Clip
from caffe_port.layers.layer import Layer
from caffe_port.signatures.forks.activation import truncation_bounds
from caffe_port.storage.files import map_file
from caffe_port.typing import Shape


class HSwish(Layer, nn.Hardswish):
    """Same as torch.nn.Hardswish: x * min(max(x + 3, 0), 6) / 6.

    Reference: MobileNet v3's forks
    """

    def torch_source(self) -> str:
        return "nn.Hardswish()"


class HSigmoid(Layer, nn.Hardsigmoid):
    """Same as torch.nn.Hardsigmoid: min(max(x + 3, 0), 6) / 6.

    Reference: MobileNet v3's forks
    """

    def torch_source(self) -> str:
        return "nn.Hardsigmoid()"


class HardSigmoid(Layer):
    """min(1, max(0, alpha * x + beta)).

    Differs from PyTorch: torch.nn.Hardsigmoid has alpha 1 / 6; here it is 0.2 unless given.
    Reference: hardsigmoid_layer.cpp (brocolli-caffe 9.0.2; its backward pass does nothing)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"alpha": p.alpha, "beta": p.beta}

    def __init__(self, alpha: float = 0.2, beta: float = 0.5) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        return (self.alpha * x + self.beta).clamp(0, 1)


class SELU(Layer):
    """``lambda * (max(x, 0) + min(alpha * (exp(x) - 1), 0))``; with its usual numbers the same as torch.nn.SELU.

    Reference: selu_layer.cpp (forks)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        usual = not p.has("lambda") and not p.has("alpha")
        return {} if usual else {"scale": getattr(p, "lambda"), "alpha": p.alpha}

    def __init__(self, scale: float | None = None, alpha: float = 1.0) -> None:
        super().__init__()
        self.scale, self.alpha = scale, alpha

    def forward(self, x: Tensor) -> Tensor:
        return F.selu(x) if self.scale is None else self.scale * F.elu(x, self.alpha)

    def torch_source(self) -> str | None:
        return "nn.SELU()" if self.scale is None else None


class Atan(Layer):
    """Same as torch.atan.

    Reference: foss-for-synopsys-dwc-arc-processors/synopsys-caffe atan_layer.cpp
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.atan()

    def call_source(self, *bottoms: str) -> str:
        return f"{bottoms[0]}.atan()"


class NegReLU(Layer):
    """``min(x, 0) + negative_slope * max(x, 0)``: ReLU upside down. From FlowNet2.

    Reference: lmb-freiburg/flownet2 neg_relu_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"negative_slope": p.negative_slope} if p.negative_slope else {}

    def __init__(self, negative_slope: float = 0.0) -> None:
        super().__init__()
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x < 0, x, self.negative_slope * x)


class PowerFile(Layer):
    """Adds a number of its own to every value of an item: those of the text file ``shift_file``.

    The file is read when the layer is built; numbers that it lacks are 0, further ones are left out. Without
    ``shift_file`` nothing is added.

    Differs from Caffe: a file that cannot be read is an error; the original adds zeros then.
    Reference: daerduoCarey/SpatialTransformerLayer power_file_layer.cpp, power_file_layer.cu
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        count = math.prod(bottoms[0][1:])
        return {"shift": shifts_of(p.shift_file, count) if p.shift_file else (0.0,) * count}

    def __init__(self, shift: tuple[float, ...]) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return x + x.new_tensor(self.shift).reshape(x.shape[1:])


class SignedSqrt(Layer):
    """``sign(x) * sqrt(|x|)``, which bilinear pooling ends with.

    Differs from PyTorch: the gradient divides by sqrt(|x|) + 1e-4, and so stays finite.
    Reference: signed_sqrt_layer.cpp (compact bilinear pooling)
    """

    def forward(self, x: Tensor) -> Tensor:
        y = x.detach().sign() * x.detach().abs().sqrt()
        return y + (x - x.detach()) / (2 * (y.abs() + 1e-4))


class Insanity(Layer):
    """``max(x, 0) + min(x, 0) / a``: a is drawn from lb to ub for every number in training (RReLU), and is
    ``(ub - lb) / log(|ub / lb|)`` in evaluation.

    Differs from PyTorch: torch.nn.RReLU multiplies, and takes the middle of the bounds in evaluation.
    Reference: happynear/caffe-windows insanity_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"lower": p.lb, "upper": p.ub}

    def __init__(self, lower: float = 5.0, upper: float = 10.0) -> None:
        super().__init__()
        self.lower, self.upper = lower, upper
        self.mean = (upper - lower) / (math.log(abs(upper)) - math.log(abs(lower)))

    def forward(self, x: Tensor) -> Tensor:
        slope = torch.empty_like(x).uniform_(self.lower, self.upper) if self.training else self.mean
        return torch.where(x > 0, x, x / slope)


class ScaleTanH(Layer):
    """``tanh(scale * x)``: scale is init_scale in eval() and at first; in train() it follows the iterations (HashNet).

    Iteration i counts from 2; every step_size of them, scale becomes ``init_scale * (1 + gamma * i) ** power``.

    Differs from Caffe: there, a TEST net counts its own forward passes, and begins anew when it is loaded, too.
    Reference: thuml/HashNet scale_tanh_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        args = {"scale": decimal(p.init_scale), "gamma": decimal(p.gamma), "power": decimal(p.power)}
        return args | {"step_size": p.step_size}

    def __init__(self, scale: float = 1.0, gamma: float = 1.0, power: float = 0.0, step_size: int = 200) -> None:
        super().__init__()
        self.scale, self.gamma, self.power, self.step_size = scale, gamma, power, step_size
        self.iteration = 1  # counted by the making of the layer

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return torch.tanh(self.scale * x)
        self.iteration += 1
        last = self.iteration - self.iteration % self.step_size
        scale = self.scale * float((1 + self.gamma * last) ** self.power) if last else self.scale
        return torch.tanh(scale * x)


class Sparsify(Layer):
    """Same as torch.nn.Softshrink.

    Reference: wenwei202/caffe sparsify_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"threshold": decimal(p.thre)}

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return F.softshrink(x, self.threshold)

    def torch_source(self) -> str:
        return f"nn.Softshrink({self.threshold!r})"


class GuidedDropout(Layer):
    """Drops channels that the guidance (N, C) of another net thinks little of (domain guided dropout).

    deterministic: those whose guidance is not above guidance_threshold, in train() and eval(). stochastic: in train()
    each is kept with the probability sigmoid(sigmoid_scaler * guidance); eval() drops none. What is left of an image is
    multiplied by C over the number of channels kept, or over the sum of their probabilities.

    Differs from Caffe: the random numbers are others.
    Reference: Cysu/caffe guided_dropout_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        if p.type == "deterministic":
            return {"threshold": decimal(p.guidance_threshold)}
        return {"scaler": decimal(p.sigmoid_scaler)}

    def __init__(self, threshold: float | None = None, scaler: float = 1.0) -> None:
        super().__init__()
        self.threshold, self.scaler = threshold, scaler

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        guidance = guidance.flatten(1)
        if self.threshold is not None:
            kept = (guidance > self.threshold).to(x.dtype)
            total = kept.sum(1, keepdim=True)
        elif self.training:
            chance = torch.sigmoid(self.scaler * guidance)
            kept, total = (torch.rand_like(chance) <= chance).to(x.dtype), chance.sum(1, keepdim=True)
        else:
            return x
        factor = kept * torch.where(total > 0, x.shape[1] / total, 1.0)
        return x * factor.reshape(*factor.shape, *[1] * (x.dim() - 2))


class Norm(Layer):
    """Divided by the L2 norm over the channels, plus 1e-6; the top has four axes (video_triplet).

    Differs from PyTorch: F.normalize takes the greater of the norm and eps.
    Differs from Caffe: the gradient is the derivative; the original has 1e-6 in another place there.
    Reference: xiaolonw/caffe-video_triplet norm_layer.cpp
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(*x.shape, *[1] * (4 - x.dim()))
        length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        return x / (length + 1e-6)


class EltwiseAffine(Layer):
    """``slope * x + bias`` along the channels, or with one of each for all.

    Blobs: slope (C), bias (C), or single numbers with ``channel_shared``
    Reference: happynear/caffe-windows eltwise_affine_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"channels": None if p.channel_shared else bottoms[0][1]}

    @classmethod
    def fillers(cls, p: Message) -> dict[str, Message]:
        usual = {"slope": 1.0001, "bias": 0.0001}
        return {
            name: getattr(p, f"{name}_filler")
            if p.has(f"{name}_filler")
            else Message("FillerParameter", type="constant", value=value)
            for name, value in usual.items()
        }

    def __init__(self, channels: int | None = None) -> None:
        super().__init__()
        shape = () if channels is None else (channels,)
        self.slope, self.bias = nn.Parameter(torch.empty(shape)), nn.Parameter(torch.empty(shape))

    def forward(self, x: Tensor) -> Tensor:
        slope: Tensor = self.slope
        bias: Tensor = self.bias
        if slope.dim():
            along = (-1, *[1] * (x.dim() - 2))
            slope, bias = slope.reshape(along), bias.reshape(along)
        return torch.addcmul(bias, x, slope)


class Truncation(Clip):
    """Same as torch.clamp.

    Reference: happynear/caffe-windows truncation_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        low, high = truncation_bounds(p)
        return {"low": low, "high": high}


class SpatialDropout(Layer, nn.Dropout2d):
    """Same as torch.nn.Dropout2d: whole channels are dropped in training; the identity in evaluation.

    Reference: spatial_dropout_layer.cpp (forks)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"p": p.dropout_ratio}

    def torch_source(self) -> str:
        return f"nn.Dropout2d({self.p!r})"


class SeLUDropout(Layer):
    """Dropout that keeps mean and variance after SELU; the identity in evaluation.

    In training, a dropped value becomes ``alpha``, and all are scaled and shifted.

    Differs from PyTorch: torch.nn.AlphaDropout has the same formula, with -1.7580993408473766 for ``alpha``.
    Reference: foss-for-synopsys-dwc-arc-processors/synopsys-caffe selu_dropout_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"ratio": decimal(p.dropout_ratio), "alpha": decimal(p.alpha)}

    def __init__(self, ratio: float = 0.1, alpha: float = -1.75809932) -> None:
        super().__init__()
        self.ratio, self.alpha = ratio, alpha

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1 - self.ratio
        scale = (keep * (1 + self.alpha**2 * self.ratio)) ** -0.5
        kept = torch.rand_like(x) < keep
        top: Tensor = scale * torch.where(kept, x, self.alpha) - scale * self.ratio * self.alpha
        return top


class Noise(Layer):
    """The identity in evaluation. In training adds numbers that are drawn from a normal distribution around ``bias``,
    with gaussian_std times the root of the bottom's mean square as its deviation, or evenly from
    ``bias - uniform_range`` to ``bias + uniform_range``.

    The random numbers are PyTorch's, not Caffe's. Types of other forks with this name in theirs and parameters that are
    not these add nothing.

    Reference: happynear/caffe-windows noise_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        if p.has("gaussian_std"):
            return {"std": p.gaussian_std, "bias": p.bias}
        return {"width": p.uniform_range, "bias": p.bias} if p.has("uniform_range") else {}

    def __init__(self, std: float | None = None, width: float | None = None, bias: float = 0.0) -> None:
        super().__init__()
        self.std, self.width, self.bias = std, width, bias

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or (self.std is None and self.width is None):
            return x
        noise = torch.empty_like(x)
        if self.std is not None:
            return x + self.bias + noise.normal_() * self.std * x.detach().square().mean().sqrt()
        assert self.width is not None
        return x + noise.uniform_(self.bias - self.width, self.bias + self.width)


class GradientScaler(Layer):
    """The identity, through which the gradient goes back times -factor (domain adaptation).

    ``scale_factor`` is what the gradient is multiplied by, -factor.

    Differs from Caffe: ddtm's factor grows with the solver's iteration, from lower_bound to upper_bound, 1 by default;
    here it is the final one from the beginning.
    Reference: ddtm/caffe and yuhuayc/da-faster-rcnn gradient_scaler_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        own = p.gradient_scaler_param
        if own.has("scale_factor"):
            return {"factor": -decimal(own.scale_factor)}
        rise = 2 / (1 + math.exp(-own.alpha)) - 1 if own.has("alpha") else 1.0  # by default all but 1
        factor = own.lower_bound + (own.upper_bound - own.lower_bound) * rise
        return {"factor": decimal(factor)} if factor != 1 else {}

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x.detach() - self.factor * (x - x.detach())


# -- parameters, from Caffe ---------------------------------------------------------------------------------------


def shifts_of(path: str, count: int) -> tuple[float, ...]:
    """The first ``count`` numbers of a text file, up to the first word that is none; zeros where it has fewer.

    Raises:
        CaffePortError: the file cannot be read.
    """
    numbers: list[float] = []
    for word in bytes(map_file(path)).split()[:count]:
        try:
            numbers.append(float(word))
        except ValueError:
            break
    return tuple(numbers + [0.0] * (count - len(numbers)))
