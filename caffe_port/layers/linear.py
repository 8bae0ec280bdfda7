"""Layers that multiply by a weight or add one: InnerProduct, Embed, Scale, Bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caffe_port.formats.message import Message
from caffe_port.layers.layer import Layer, canonical_axis, check_count, constructor
from caffe_port.signatures.linear import broadcast
from caffe_port.typing import Shape


class InnerProduct(Layer, nn.Linear):
    """Same as torch.nn.Linear.

    Differs from PyTorch: the bottom is flattened from ``axis`` on, which is 1 unless the net says otherwise; so
    (N, C, H, W) is taken for (N, C * H * W). ``normalize`` (happynear's fork) takes the weight's rows of length 1, 1e-6
    being added under the root; a forward in training leaves them so.
    Blobs: weight (C_out, C_in), or (C_in, C_out) in the file with ``transpose: true``; bias (C_out)
    Reference: inner_product_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        dims = len(bottoms[0])
        axis = canonical_axis(p.axis, dims)
        features = math.prod(bottoms[0][axis:])
        check_count("weight", (p.num_output, features))
        args = {"in_features": features, "out_features": p.num_output, "bias": p.bias_term}
        args["axis"] = -1 if axis == dims - 1 else axis
        return args | {name: True for name in ("transpose", "normalize") if getattr(p, name)}

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        axis: int = -1,
        transpose: bool = False,
        normalize: bool = False,
        caffe_layout: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.axis = axis
        self.transpose = transpose  # of the weight in Caffe's file; here it is as in nn.Linear
        self.normalize = normalize
        self.caffe_layout = caffe_layout  # the weight is (C_in, C_out) here, too
        if caffe_layout:
            self.weight = nn.Parameter(self.weight.detach().t().contiguous())

    def keep_caffe_layout(self) -> None:
        """Keeps the weight as Caffe has it, for it is shared with a layer that does not transpose."""
        self.caffe_layout = self.args["caffe_layout"] = True
        self.weight = nn.Parameter(self.weight.detach().t().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        if self.caffe_layout:
            return F.linear(x.flatten(self.axis), self.weight.t(), self.bias)
        if not self.normalize:
            return super().forward(x.flatten(self.axis))
        length = (self.weight.detach().square().sum(1, keepdim=True) + 1e-6).sqrt()
        if not self.training:
            return F.linear(x.flatten(self.axis), self.weight / length, self.bias)
        with torch.no_grad():
            self.weight.div_(length)
        return super().forward(x.flatten(self.axis))

    def get_blob(self, name: str) -> Tensor:
        blob = super().get_blob(name)
        return blob.t() if self.transpose and name == "weight" and not self.caffe_layout else blob

    def set_blob(self, name: str, value: Tensor) -> None:
        turned = self.transpose and name == "weight" and not self.caffe_layout
        super().set_blob(name, value.t() if turned else value)

    def bottom_source(self, bottom: str) -> str:
        whole = self.axis == -1 or self.normalize or self.caffe_layout
        return bottom if whole else f"{bottom}.flatten({self.axis})"

    def torch_source(self) -> str | None:
        if self.normalize or self.caffe_layout:
            return None
        return constructor("nn.Linear", [self.in_features, self.out_features], {"bias": (self.bias is not None, True)})


class Embed(Layer, nn.Embedding):
    """Same as torch.nn.Embedding, and a bias.

    Differs from PyTorch: the indices come as floats, and a bias is added to every row unless ``bias_term: false``. In
    one fork the last axis of the bottom, of length 1, becomes num_output instead of a further axis; nets that fit only
    so are read so.
    Blobs: weight (input_dim, num_output), bias (num_output)
    Reference: embed_layer.cpp (Caffe 1.0; peteanderson80/bottom-up-attention)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        check_count("weight", (p.input_dim, p.num_output))
        args = {"num_embeddings": p.input_dim, "embedding_dim": p.num_output, "bias": p.bias_term}
        return args | ({"last_axis": True} if p.last_axis else {})

    def __init__(self, num_embeddings: int, embedding_dim: int, bias: bool = True, last_axis: bool = False) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.last_axis = last_axis
        self.bias = nn.Parameter(torch.empty(embedding_dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x.long()[..., 0] if self.last_axis else x.long())
        return y if self.bias is None else y + self.bias


class Scale(Layer):
    """Multiplies by a weight (and adds a bias) along some axes, or by a second bottom.

    Differs from PyTorch: there is no module for it; it is the affine half of nn.BatchNorm2d, for any axes. The weight
    has the bottom's axes ``axis`` to ``axis + num_axes``; the axes after them are broadcast.
    Blobs: weight (C), unless there is a second bottom; bias of the same shape, with ``bias_term: true``
    Reference: scale_layer.cpp, bias_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        shape, axis = broadcast(p, bottoms)
        return {"shape": shape, "axis": axis, "weight": len(bottoms) == 1, "bias": p.bias_term}

    def __init__(self, shape: tuple[int, ...], axis: int = 1, weight: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.axis = axis
        self.weight = nn.Parameter(torch.empty(shape)) if weight else None
        self.bias = nn.Parameter(torch.empty(shape)) if bias else None

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        scale = self.weight if scale is None else scale
        assert scale is not None
        scale = along_axis(scale, self.axis, x)
        return x * scale if self.bias is None else torch.addcmul(along_axis(self.bias, self.axis, x), x, scale)

    @classmethod
    def fillers(cls, p: Message) -> dict[str, Message]:
        one = Message("FillerParameter", type="constant", value=1.0)
        return {"weight": p.filler if p.has("filler") else one, "bias": p.bias_filler}


class Bias(Layer):
    """Adds a bias along some axes, or a second bottom.

    Differs from PyTorch: there is no module for it. The bias has the bottom's axes ``axis`` to ``axis + num_axes``;
    the axes after them are broadcast.
    Blobs: bias (C), unless there is a second bottom
    Reference: bias_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        shape, axis = broadcast(p, bottoms)
        return {"shape": shape, "axis": axis, "bias": len(bottoms) == 1}

    def __init__(self, shape: tuple[int, ...], axis: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.axis = axis
        self.bias = nn.Parameter(torch.empty(shape)) if bias else None

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        bias = self.bias if bias is None else bias
        assert bias is not None
        return x + along_axis(bias, self.axis, x)

    @classmethod
    def fillers(cls, p: Message) -> dict[str, Message]:
        return {"bias": p.filler}


# -- in forward ---------------------------------------------------------------------------------------------------


def along_axis(value: Tensor, axis: int, x: Tensor) -> Tensor:
    """The value with axes of length one appended, so that it lies along x's axes from ``axis`` on."""
    return value.reshape(value.shape + (1,) * (x.dim() - axis - value.dim()))
