"""Layers of the forks that enlarge, shrink, crop or rearrange images: PSPNet, SegNet, DeconvNet, FlowNet, YOLO."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_port.formats.message import Message
from caffe_port.layers.layer import Layer, canonical_axis
from caffe_port.signatures.forks.resample import block_of, centre_margins, interpolated, unpooling, upsampling
from caffe_port.typing import Shape


class Interp(Layer):
    """Same as torch.nn.Upsample with mode="bilinear" and align_corners=True, also for shrinking.

    The size is given by height and width, by shrink_factor s, (size - 1) // s + 1, by zoom_factor z,
    size + (size - 1) * (z - 1), or by both, shrinking first; a second bottom's size counts where nothing is given.
    Negative pad_beg and pad_end crop the bottom before.

    Reference: DeepLab v2 and hszhao/PSPNet interp_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        args: dict[str, Any] = {"align_corners": False} if not p.align_corners else {}
        if p.pad_beg or p.pad_end:
            args["crop"] = (-p.pad_beg, -p.pad_end)
        if p.use_blob_size:
            return args
        if p.has("shrink_factor") or p.has("zoom_factor"):
            args |= {"shrink": p.shrink_factor, "zoom": p.zoom_factor}
        elif p.has("height") and p.has("width"):
            args["size"] = (p.height, p.width)
        return args

    def __init__(
        self,
        size: tuple[int, int] | None = None,
        shrink: int | None = None,
        zoom: int | None = None,
        crop: tuple[int, int] = (0, 0),
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.size, self.shrink, self.zoom, self.crop, self.align_corners = size, shrink, zoom, crop, align_corners

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        begin, end = self.crop
        x = x[:, :, begin : x.shape[2] - end, begin : x.shape[3] - end]
        size = self.size or (like.shape[2:] if like is not None else x.shape[2:])
        if self.shrink or self.zoom:
            steps = [(n - 1) // (self.shrink or 1) for n in x.shape[2:]]
            size = (steps[0] * (self.zoom or 1) + 1, steps[1] * (self.zoom or 1) + 1)
        return F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners)

    def call_source(self, *bottoms: str) -> str | None:
        if (self.size is None and len(bottoms) == 1) or self.shrink or self.zoom or any(self.crop):
            return None
        size = f"{bottoms[1]}.shape[2:]" if self.size is None else repr(self.size)
        return f'F.interpolate({bottoms[0]}, {size}, mode="bilinear", align_corners={self.align_corners})'


class Upsample(Layer):
    """With two bottoms the same as torch.nn.MaxUnpool2d (SegNet): each value goes where the mask of a max pooling says.
    With one the same as torch.nn.Upsample with mode="nearest" (YOLO): each value becomes scale x scale; with
    ``dims_num: 3`` (brocolli-caffe) the bottom is (N, C, W), and each becomes scale.

    Differs from PyTorch: the mask holds floats. Where several values go to one place, which of them remains is
    undefined.
    Reference: upsample_layer.cpp (alexgkendall/caffe-segnet, eric612/MobileNet-YOLO, brocolli-caffe 9.0.2)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return upsampling(p, bottoms)

    def __init__(self, scale: tuple[int, ...] | None = None, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.scale, self.size = scale, size

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None and self.size is not None:
            return scatter_to(x, mask, self.size)
        if self.size is not None:
            return F.interpolate(x, self.size)
        return F.interpolate(x, scale_factor=self.scale)

    def torch_source(self) -> str | None:
        return f"nn.Upsample(scale_factor={self.scale!r})" if self.scale else None


class MaxUnPool(Layer):
    """Same as torch.nn.MaxUnpool2d to the size (dst_h, dst_w): each value goes where the second bottom, a mask of a max
    pooling, says.

    Differs from PyTorch: the mask holds floats. Where several values go to one place, the last one remains.
    Reference: maxunpool_layer.cpp (brocolli-caffe 9.0.2; its backward pass does nothing)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"size": (p.dst_h, p.dst_w)}

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        places = mask.flatten(2).long()
        order = torch.arange(1, places.shape[2] + 1, device=x.device).expand_as(places)
        last = order.new_zeros(*x.shape[:2], self.size[0] * self.size[1])
        try:
            last = last.scatter_reduce(2, places, order, "amax")
        except RuntimeError:
            raise outside(places, last.shape[2]) from None
        y = x.flatten(2).gather(2, (last - 1).clamp(min=0))
        return torch.where(last > 0, y, 0).reshape(*x.shape[:2], *self.size)


class BilinearInterpolate(Layer):
    """Same as torch.nn.Upsample with mode="bilinear", to the size (dst_h, dst_w), of which one may be left out, or to
    the bottom's times ``scale_factor``, rounded down.

    Reference: bilinear_interpolate_layer.cpp (brocolli-caffe 9.0.2; its backward pass does nothing)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"size": interpolated(p, bottoms[0]), "align_corners": p.align_corners}

    def __init__(self, size: tuple[int, int], align_corners: bool = True) -> None:
        super().__init__()
        self.size, self.align_corners = size, align_corners

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, self.size, mode="bilinear", align_corners=self.align_corners)

    def call_source(self, *bottoms: str) -> str:
        return f'F.interpolate({bottoms[0]}, {self.size}, mode="bilinear", align_corners={self.align_corners})'


class Pad(Layer):
    """Same as torch.nn.functional.pad on the images of a batch: ``pad_u``, ``pad_d``, ``pad_l`` and ``pad_r`` rows and
    columns of a constant, of the edge (REPLICATE), or mirrored at the edge (REFLECT). Where all four are negative, that
    many are cut off. ``paddings`` has two numbers for every axis, of what surrounds it with ``constant_values``.

    Reference: pad_layer.cpp (brocolli-caffe 9.0.2; its backward pass does nothing; the last form:
    foss-for-synopsys-dwc-arc-processors/synopsys-caffe)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        if p.paddings:
            edges = [int(n) for k in reversed(range(len(bottoms[0]))) for n in p.paddings[2 * k : 2 * k + 2]]
            while len(edges) > 2 and edges[-2:] == [0, 0]:
                edges = edges[:-2]
            return {"pad": tuple(edges)} | ({"value": p.constant_values} if p.constant_values else {})
        pad = (p.pad_l, p.pad_r, p.pad_u, p.pad_d)
        if p.pad_type == "CONSTANT" or min(pad) < 0:
            return {"pad": pad} | ({"value": p.pad_value} if p.pad_value and max(pad) > 0 else {})
        return {"pad": pad, "mode": p.pad_type.lower()}

    def __init__(self, pad: tuple[int, ...], mode: str = "constant", value: float = 0.0) -> None:
        super().__init__()
        self.pad, self.mode, self.value = pad, mode, value

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "constant":
            return F.pad(x, self.pad, value=self.value)
        return F.pad(x, self.pad, mode=self.mode)

    def call_source(self, *bottoms: str) -> str:
        if self.mode == "constant":
            return f"F.pad({bottoms[0]}, {self.pad}" + (f", value={self.value!r})" if self.value else ")")
        return f'F.pad({bottoms[0]}, {self.pad}, mode="{self.mode}")'


class Unpooling(Layer):
    """Undoes a pooling (DeconvNet): each value goes where the mask says, without a mask to the corner of its window
    (MAX); or it is spread over the window, in equal parts (AVE) or in full (TILE). Where windows overlap, these two add
    up.

    Differs from PyTorch: torch.nn.MaxUnpool2d does MAX with a mask, which holds floats here.
    Reference: HyeonwooNoh/caffe unpooling_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return unpooling(p, bottoms)

    def __init__(
        self, size: tuple[int, int], kernel_size: tuple[int, int], stride: tuple[int, int] = (1, 1), unpool: str = "MAX"
    ) -> None:
        super().__init__()
        self.size, self.kernel_size, self.stride, self.unpool = size, kernel_size, stride, unpool

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.unpool == "MAX":
            if mask is None:
                rows = torch.arange(x.shape[2], device=x.device) * self.stride[0]
                columns = torch.arange(x.shape[3], device=x.device) * self.stride[1]
                corner = rows.clamp(max=self.size[0] - 1)[:, None] * self.size[1]
                mask = (corner + columns.clamp(max=self.size[1] - 1)).expand_as(x)
            return scatter_to(x, mask, self.size)
        rows, columns = (self.inside(x, axis) for axis in (0, 1))
        if self.unpool == "AVE":
            x = x / (self.windows(x, 0)[:, None] * self.windows(x, 1))
        return torch.einsum("ncij,ih,jw->nchw", x, rows, columns)

    def windows(self, x: Tensor, axis: int) -> Tensor:
        """How many pixels each window has, as far as it begins inside."""
        start = torch.arange(x.shape[2 + axis], device=x.device) * self.stride[axis]
        return (self.size[axis] - start).clamp(max=self.kernel_size[axis]).to(x.dtype)

    def inside(self, x: Tensor, axis: int) -> Tensor:
        """Which pixels lie in which window: 0 or 1, (windows, pixels)."""
        start = torch.arange(x.shape[2 + axis], device=x.device)[:, None] * self.stride[axis]
        pixel = torch.arange(self.size[axis], device=x.device)
        return ((pixel >= start) & (pixel < start + self.kernel_size[axis])).to(x.dtype)


class Resample(Layer):
    """Resizes an image with a triangle or cubic filter, or to the nearest pixel (FlowNet), to the size of the second
    bottom, where there is one.

    Differs from PyTorch: F.interpolate does the same for LINEAR without antialias where both axes scale alike. Where
    they do not, FlowNet shifts one axis by half the other's scale; that is kept. CUBIC has the coefficient -0.5, and at
    the border the filter is cut off.
    Reference: lmb-freiburg/flownet2 resample_layer.cu
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        size = bottoms[1][2:] if len(bottoms) > 1 else (p.height, p.width)
        return {"size": tuple(size), "method": p.type, "antialias": p.antialias}

    def __init__(self, size: tuple[int, int], method: str = "LINEAR", antialias: bool = True) -> None:
        super().__init__()
        self.size, self.method, self.antialias = size, method, antialias

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        size = self.size if like is None else like.shape[2:]
        fy, fx = x.shape[2] / size[0], x.shape[3] / size[1]
        y = torch.arange(size[0], device=x.device, dtype=x.dtype) * fy + fx / 2 - 0.5
        x_ = torch.arange(size[1], device=x.device, dtype=x.dtype) * fx + fy / 2 - 0.5
        if self.method == "NEAREST":
            rows = (y + 0.5).floor().clamp(0, x.shape[2] - 1).long()
            return x[:, :, rows][..., (x_ + 0.5).floor().clamp(0, x.shape[3] - 1).long()]
        antialias = self.antialias and max(fx, fy) > 1
        rows, columns = self.weights(y, x.shape[2], fy, antialias), self.weights(x_, x.shape[3], fx, antialias)
        return torch.einsum("nchw,yh,xw->ncyx", x, rows, columns)

    def weights(self, center: Tensor, size: int, scale: float, antialias: bool) -> Tensor:
        """What each of ``size`` pixels adds to a pixel of the top, whose center is at ``center``; rows sum to 1."""
        stretch = scale if antialias else 1.0
        support = 4 if self.method == "CUBIC" else 2
        radius = 2 if scale < 1 else math.ceil(support * stretch)
        pixel = torch.arange(size, device=center.device)
        near = (pixel - (center[:, None] + 0.5).floor()).abs() <= radius
        distance = ((center[:, None] - pixel) / stretch).abs()
        if self.method == "LINEAR":
            weight = (1 - distance).clamp(min=0)
        else:
            inner = distance**2 * (1.5 * distance - 2.5) + 1
            outer = distance * (distance * (-0.5 * distance + 2.5) - 4) + 2
            weight = torch.where(distance <= 1, inner, outer) * (distance < 2)
        weight = weight * near
        total = weight.sum(1, keepdim=True)
        return torch.where(total == 0, 0, weight / total)


class Reorg(Layer):
    """YOLO's space to depth; with ``reverse`` its depth to space. Gives (N, C * s^2, H / s, W / s), or the inverse.

    Differs from PyTorch: nn.PixelUnshuffle orders the channels otherwise. Unless reverse, the original reads the
    channels of the bottom as if they had been C / s^2 larger planes, which mixes them; trained nets rely on it.
    Reference: darknet's reorg_cpu; gklz1982/caffe-yolov2 reorg_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        stride, reverse = block_of(p)
        return {"stride": stride} | ({"reverse": True} if reverse else {})

    def __init__(self, stride: int, reverse: bool = False) -> None:
        super().__init__()
        self.stride, self.reverse = stride, reverse

    def forward(self, x: Tensor) -> Tensor:
        (n, c, h, w), s = x.shape, self.stride
        planes = c // s**2
        if self.reverse:
            y = x.reshape(n, s, s, planes, h, w).permute(0, 3, 4, 1, 5, 2)
            return y.reshape(n, planes, h * s, w * s)
        y = x.reshape(n, planes, h, s, w, s).permute(0, 3, 5, 1, 2, 4)
        return y.reshape(n, c * s**2, h // s, w // s)


class CropCenter(Layer):
    """Cuts ``crop_size`` numbers off both ends of every axis.

    Reference: crop_center_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"crop_size": centre_margins(p, bottoms[0])}

    def __init__(self, crop_size: tuple[int, ...]) -> None:
        super().__init__()
        self.crop_size = crop_size

    def forward(self, x: Tensor) -> Tensor:
        for dim, size in enumerate(self.crop_size):
            x = x.narrow(dim, size, x.shape[dim] - 2 * size)
        return x


class Reverse(Layer):
    """Same as torch.flip along one axis.

    Reference: ChWick/caffe reverse_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"dim": canonical_axis(p.axis, len(bottoms[0]))}

    def __init__(self, dim: int = 0) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(self.dim)

    def call_source(self, *bottoms: str) -> str:
        return f"{bottoms[0]}.flip({self.dim})"


class Flip(Layer):
    """Same as torch.flip: mirrors images, left to right or upside down.

    Reference: happynear/caffe-windows flip_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"dims": tuple(dim for dim, flips in ((2, p.flip_height), (3, p.flip_width)) if flips)}

    def __init__(self, dims: tuple[int, ...] = (3,)) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(self.dims)

    def call_source(self, *bottoms: str) -> str:
        return f"{bottoms[0]}.flip({self.dims})"


# -- in forward ---------------------------------------------------------------------------------------------------


def scatter_to(x: Tensor, mask: Tensor, size: Sequence[int]) -> Tensor:
    """A plane of ``size`` that has every value of ``x`` at the index which ``mask`` says, and zeros elsewhere."""
    y, places = x.new_zeros(*x.shape[:2], size[0] * size[1]), mask.flatten(2).long()
    try:
        return y.scatter(2, places, x.flatten(2)).reshape(*x.shape[:2], *size)
    except RuntimeError:
        raise outside(places, y.shape[2]) from None


def outside(places: Tensor, count: int) -> IndexError:
    """What to say of a mask that does not fit a plane of ``count`` values."""
    wrong = places[(places < 0) | (places >= count)]
    what = f"index {int(wrong[0])}" if len(wrong) else f"{tuple(places.shape)} indices"
    return IndexError(f"the mask holds {what}; the top has the places 0 to {count - 1}")
