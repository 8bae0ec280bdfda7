"""Elementwise layers and Softmax. Source: src/caffe/layers of Caffe 1.0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caffe_port.formats.message import Message
from caffe_port.layers.layer import Layer, canonical_axis, number
from caffe_port.signatures.activation import checked_base
from caffe_port.typing import Shape


def affine_source(x: str, scale: float, shift: float) -> str:
    """Source of ``shift + scale * x`` without the neutral parts."""
    text = x if scale == 1 else f"{number(scale)} * {x}"
    if shift == 0:
        return text
    return f"{text} + {number(shift)}" if shift > 0 else f"{text} - {number(-shift)}"


def affine(x: Tensor, scale: float, shift: float) -> Tensor:
    """``shift + scale * x``; neutral parts leave ``x`` as it is."""
    if scale != 1:
        x = scale * x
    return x if shift == 0 else x + shift


class AbsVal(Layer):
    """Same as torch.abs.

    Reference: absval_layer.cpp
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()

    def call_source(self, *bottoms: str) -> str:
        return f"{bottoms[0]}.abs()"


class BNLL(Layer, nn.Softplus):
    """Same as torch.nn.Softplus: log(1 + exp(x)).

    Differs from PyTorch: linear from 50 on (the default of Softplus is 20); the gradient is Caffe's.
    Reference: bnll_layer.cpp
    """

    def __init__(self) -> None:
        super().__init__(threshold=50)

    def torch_source(self) -> str:
        return "nn.Softplus(threshold=50)"


class Clip(Layer):
    """Same as torch.clamp.

    Differs from PyTorch: the gradient passes where x is one of the bounds.
    Reference: clip_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"low": p.min, "high": p.max}

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        inside = (x >= self.low) & (x <= self.high)
        return torch.where(inside, x, x.detach().clamp(self.low, self.high))


class Dropout(Layer, nn.Dropout):
    """Same as torch.nn.Dropout: scaled by 1 / (1 - ratio) in training, the identity in evaluation.

    Differs from PyTorch: ``scale_train: false`` (R-FCN) scales by 1 - ratio in evaluation instead;
    ``sample_weights_test: true`` (Bayesian SegNet) drops in evaluation too. The random numbers are PyTorch's.
    Reference: dropout_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        args: dict[str, Any] = {"p": p.dropout_ratio}
        if not p.scale_train:
            args["scale_train"] = False
        if p.sample_weights_test:
            args["always"] = True
        return args

    def __init__(self, p: float = 0.5, scale_train: bool = True, always: bool = False) -> None:
        super().__init__(p)
        self.scale_train, self.always = scale_train, always

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(x, self.p, self.training or self.always)
        return y if self.scale_train else (1 - self.p) * y

    def torch_source(self) -> str | None:
        return f"nn.Dropout({self.p!r})" if self.scale_train and not self.always else None


class ELU(Layer, nn.ELU):
    """Same as torch.nn.ELU.

    Reference: elu_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"alpha": p.alpha}

    def torch_source(self) -> str:
        return "nn.ELU()" if self.alpha == 1 else f"nn.ELU({self.alpha!r})"


class Exp(Layer):
    """base ** (shift + scale * x); base -1, the default, is e.

    Reference: exp_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"base": checked_base(p.base), "scale": p.scale, "shift": p.shift}

    def __init__(self, base: float | None = None, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.base, self.scale, self.shift = base, scale, shift

    def forward(self, x: Tensor) -> Tensor:
        exponent = affine(x, self.scale, self.shift)
        return exponent.exp() if self.base is None else torch.pow(self.base, exponent)

    def call_source(self, *bottoms: str) -> str:
        exponent = affine_source(bottoms[0], self.scale, self.shift)
        return f"torch.exp({exponent})" if self.base is None else f"torch.pow({number(self.base)}, {exponent})"


class Log(Layer):
    """Logarithm of shift + scale * x to a base; base -1, the default, is e.

    Reference: log_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"base": checked_base(p.base), "scale": p.scale, "shift": p.shift}

    def __init__(self, base: float | None = None, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.base, self.scale, self.shift = base, scale, shift

    def forward(self, x: Tensor) -> Tensor:
        y = affine(x, self.scale, self.shift).log()
        return y if self.base is None else y / math.log(self.base)

    def call_source(self, *bottoms: str) -> str:
        source = f"torch.log({affine_source(bottoms[0], self.scale, self.shift)})"
        return source if self.base is None else f"{source} / math.log({number(self.base)})"


class Power(Layer):
    """(shift + scale * x) ** power.

    Reference: power_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"power": p.power, "scale": p.scale, "shift": p.shift}

    def __init__(self, power: float = 1.0, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.power, self.scale, self.shift = power, scale, shift

    def forward(self, x: Tensor) -> Tensor:
        y = affine(x, self.scale, self.shift)
        return y if self.power == 1 else y**self.power

    def call_source(self, *bottoms: str) -> str:
        inner = affine_source(bottoms[0], self.scale, self.shift)
        if self.power == 1:
            return inner
        return f"{inner if inner.isidentifier() else f'({inner})'} ** {number(self.power)}"


class PReLU(Layer, nn.PReLU):
    """Same as torch.nn.PReLU: one slope per channel, or one for all (channel_shared).

    Differs from PyTorch: initialized to 0.25, as in PyTorch, unless the net sets another filler.
    Blobs: weight (C,), or () if it is shared
    Reference: prelu_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"num_parameters": 1, "shared": True} if p.channel_shared else {"num_parameters": bottoms[0][1]}

    @classmethod
    def fillers(cls, p: Message) -> dict[str, Message]:
        return {"weight": p.filler if p.has("filler") else Message("FillerParameter", type="constant", value=0.25)}

    def __init__(self, num_parameters: int, shared: bool = False) -> None:
        super().__init__(num_parameters)
        self.shared = shared

    def get_blob(self, name: str) -> Tensor:
        return self.weight.reshape(()) if self.shared else self.weight

    def torch_source(self) -> str:
        return "nn.PReLU()" if self.num_parameters == 1 else f"nn.PReLU({self.num_parameters})"


class ReLU(Layer):
    """Same as torch.nn.ReLU, or as torch.nn.LeakyReLU if negative_slope is not zero.

    Reference: relu_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"negative_slope": p.negative_slope} if p.negative_slope else {}

    def __init__(self, negative_slope: float = 0.0) -> None:
        super().__init__()
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.negative_slope) if self.negative_slope else F.relu(x)

    def torch_source(self) -> str:
        return f"nn.LeakyReLU({self.negative_slope!r})" if self.negative_slope else "nn.ReLU()"


class ReLU6(Layer):
    """Same as torch.nn.ReLU6; negative_slope, which some forks have, applies below zero, and another's threshold
    replaces the 6. Not in Caffe 1.0.

    Reference: relu6_layer.cpp (MobileNet and OpenVINO forks; brocolli-caffe 9.0.2)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        args = {"negative_slope": p.negative_slope} if p.negative_slope else {}
        return args | ({"threshold": p.threshold} if p.threshold != 6 else {})

    def __init__(self, negative_slope: float = 0.0, threshold: float = 6.0) -> None:
        super().__init__()
        self.negative_slope, self.threshold = negative_slope, threshold

    def forward(self, x: Tensor) -> Tensor:
        if self.torch_source() == "nn.ReLU6()":
            return F.relu6(x)
        y = F.leaky_relu(x, self.negative_slope)
        limit = torch.full_like(y, self.threshold)
        if self.negative_slope < 0 or self.threshold < 0:  # then y may be beyond the limit where the gradient passes
            limit = torch.where(x < self.threshold, limit + (y - y.detach()), limit)
        return torch.where(y <= self.threshold, torch.where(x < self.threshold, y, y.detach()), limit)

    def torch_source(self) -> str | None:
        return "nn.ReLU6()" if self.threshold == 6 and not self.negative_slope else None


class Sigmoid(Layer, nn.Sigmoid):
    """Same as torch.nn.Sigmoid.

    Reference: sigmoid_layer.cpp
    """

    def torch_source(self) -> str:
        return "nn.Sigmoid()"


class Softmax(Layer, nn.Softmax):
    """Same as torch.nn.Softmax.

    Reference: softmax_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"dim": canonical_axis(p.axis, len(bottoms[0]))}

    def torch_source(self) -> str:
        return f"nn.Softmax(dim={self.dim})"


class Swish(Layer):
    """x * sigmoid(beta * x); with beta 1 the same as torch.nn.SiLU.

    Reference: swish_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"beta": p.beta}

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x) if self.beta == 1 else x * torch.sigmoid(self.beta * x)

    def torch_source(self) -> str | None:
        return "nn.SiLU()" if self.beta == 1 else None

    def call_source(self, *bottoms: str) -> str | None:
        return None if self.beta == 1 else f"{bottoms[0]} * torch.sigmoid({number(self.beta)} * {bottoms[0]})"


class TanH(Layer, nn.Tanh):
    """Same as torch.nn.Tanh.

    Reference: tanh_layer.cpp
    """

    def torch_source(self) -> str:
        return "nn.Tanh()"


class Threshold(Layer):
    """1 where x > threshold, otherwise 0.

    Differs from PyTorch: torch.nn.Threshold keeps x itself above the threshold.
    Reference: threshold_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"threshold": p.threshold}

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return (x > self.threshold).to(x.dtype)

    def call_source(self, *bottoms: str) -> str:
        return f"({bottoms[0]} > {number(self.threshold)}).to({bottoms[0]}.dtype)"
