"""FlowNet's augmentation: images moved and recolored at random, and flows moved with them.

Source: src/caffe/layers of lmb-freiburg/flownet2, whose layers run on the GPU alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caffe_port.formats.message import Message, decimal
from caffe_port.layers.layer import Layer
from caffe_port.signatures.forks.augmentation import augmented_size, generated_mode, generated_sizes
from caffe_port.typing import Shape

SPATIAL = ("mirror", "dx", "dy", "angle", "zoom_x", "zoom_y")
CHROMATIC = ("gamma", "brightness", "contrast", "color1", "color2", "color3")
EIGEN = (
    *("pow_nomean0", "pow_nomean1", "pow_nomean2", "add_nomean0", "add_nomean1", "add_nomean2"),
    *("mult_nomean0", "mult_nomean1", "mult_nomean2", "pow_withmean0", "pow_withmean1", "pow_withmean2"),
    *("add_withmean0", "add_withmean1", "add_withmean2", "mult_withmean0", "mult_withmean1", "mult_withmean2"),
    *("lmult_pow", "lmult_add", "lmult_mult", "col_angle"),
)
EFFECTS = (
    *("fog_amount", "fog_size", "motion_blur_angle", "motion_blur_size"),
    *("shadow_angle", "shadow_distance", "shadow_strength", "noise"),
)
# In the order of AugmentationCoeff. Those that are 1 where nothing changes are kept as logarithms.
COEFFICIENTS = (*SPATIAL, *CHROMATIC, *EIGEN, *EFFECTS)
FACTORS = frozenset(("zoom_x", "zoom_y", "gamma", "contrast", "color1", "color2", "color3")) | frozenset(
    name for name in EIGEN if "pow" in name or ("mult" in name and name != "lmult_add")
)

# What AugmentationParameter draws, by kind.
SOURCES = {
    SPATIAL: ("mirror", "translate", "rotate", "zoom", "squeeze", "translate_x", "translate_y"),
    CHROMATIC: ("gamma", "brightness", "contrast", "color"),
    EIGEN: (
        *("lmult_pow", "lmult_mult", "lmult_add", "sat_pow", "sat_mult", "sat_add"),
        *("col_pow", "col_mult", "col_add", "ladd_pow", "ladd_mult", "ladd_add", "col_rotate"),
    ),
    EFFECTS: EFFECTS,
}

# (distribution, mean, spread, probability, exponential, scheduled, rounded, factor) of RandomGeneratorParameter
Draw = tuple[str, float, float, float, bool, bool, bool, float]
Schedule = tuple[float, float, float]


class DataAugmentation(Layer):
    """Cuts out a part of the image, moved and recolored at random in train(), and subtracts the mean (FlowNet).

    In eval(), without coefficients of a second bottom, the part is the middle: it goes halfway between pixels where the
    sizes say so; as in the original, its last row and column stay 0.05 pixels inside. In train(), each image draws its
    coefficients from torch's generator: where to cut (49 tries to stay inside the image, else the middle), the colors
    along chromatic_eigvec, gamma, brightness, contrast, a shadow and noise. A second bottom (N, 42, 1, 1) gives them
    instead; a second top returns them. Colors change in images of 3 channels. The mean is of the channels, or of the
    pixels with mean_per_pixel; train() updates it in the first recompute_mean iterations.

    Differs from Caffe: eval() does not update the mean. The random numbers are others, from the same distributions.
    Blobs: iterations (1, 1, 1, 1), pixel_mean (1, C, H, W), channel_mean (1, C, 1, 1); without recompute_mean only the
    first
    Reference: lmb-freiburg/flownet2 data_augmentation_layer.cu, augmentation_layer_base.cpp
    """

    @classmethod
    def from_caffe(cls, layer: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        size, p = augmented_size(layer, bottoms[0]), layer.augmentation_param
        args: dict[str, Any] = {"crop": size if p.has("crop_height") and p.has("crop_width") else None}
        if p.recompute_mean > 0:
            args |= {"learned": (bottoms[0][1], *size), "mean_per_pixel": p.mean_per_pixel}
            args["recompute"] = p.recompute_mean
        elif len(p.mean) == 3 and not p.mean_per_pixel:
            args["mean"] = tuple(decimal(m) for m in p.mean)
        if len(layer.top) > 1:
            args["returned"] = True
        if p.chromatic_eigvec:
            args["eigenvectors"] = tuple(decimal(v) for v in p.chromatic_eigvec)
        return args | random_arguments(layer) | ({} if p.max_multiplier == 255 else {"most": decimal(p.max_multiplier)})

    def __init__(
        self,
        crop: tuple[int, int] | None = None,
        learned: tuple[int, int, int] | None = None,
        mean_per_pixel: bool = False,
        mean: tuple[float, ...] = (),
        recompute: int = 0,
        draws: Mapping[str, Draw] | None = None,
        schedule: Schedule = (1.0, 1.0, 1.0),
        in_eval: bool = False,
        eigenvectors: tuple[float, ...] = (),
        most: float = 255.0,
        returned: bool = False,
    ) -> None:
        super().__init__()
        self.crop, self.mean_per_pixel, self.mean, self.recompute = crop, mean_per_pixel, mean, recompute
        self.draws, self.schedule, self.in_eval = dict(draws or {}), schedule, in_eval
        self.eigenvectors, self.most, self.returned = eigenvectors, most, returned
        self.iterations = nn.Parameter(torch.empty(1, 1, 1, 1), requires_grad=False)
        self.pixel_mean = self.channel_mean = None
        if learned:
            self.pixel_mean = nn.Parameter(torch.empty(1, *learned), requires_grad=False)
            self.channel_mean = nn.Parameter(torch.empty(1, learned[0], 1, 1), requires_grad=False)

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if self.training:
            self.iterations.add_(1)
        coefficients = given if given is not None else x.new_zeros(len(x), len(COEFFICIENTS), 1, 1)
        if self.crop and given is None and (self.training or self.in_eval):
            share = discount(self.schedule, float(self.iterations))
            start = coefficients.flatten(1)
            coefficients = drawn(self.draws, start, share, x.shape[2:], self.crop).reshape(coefficients.shape)
        changed = given is not None or self.training or self.in_eval
        y = self.subtract_mean(self.change(x, coefficients.flatten(1), changed) if self.crop else x)
        return (y, coefficients) if self.returned else y

    def change(self, x: Tensor, coefficients: Tensor, recolored: bool) -> Tensor:
        c = meanings(coefficients)
        for name, value in c.items():  # what is all but without effect has none
            neutral = float(name in FACTORS)
            c[name] = value.where((value - neutral).abs() >= 1e-3, neutral)
        assert self.crop is not None
        y = cut_out(x, c, self.crop)
        if not recolored or x.shape[1] != 3:
            return y
        if self.eigenvectors:
            y = change_along(y, x, c, torch.tensor(self.eigenvectors).to(x).reshape(3, 3), self.most)
        return change_effects(change_colors(y, c, self.most), c, self.most)

    def subtract_mean(self, x: Tensor) -> Tensor:
        if self.pixel_mean is not None and self.channel_mean is not None:
            if self.training and self.iterations <= self.recompute:
                with torch.no_grad():
                    self.pixel_mean.mul_(self.iterations - 1).add_(x.mean(0)).div_(self.iterations)
                    self.channel_mean.copy_(self.pixel_mean.mean((2, 3), keepdim=True))
            return x - (self.pixel_mean if self.mean_per_pixel else self.channel_mean)
        return x - torch.tensor(self.mean[: x.shape[1]]).to(x)[:, None, None] if self.mean else x


class GenerateAugmentationParameters(Layer):
    """Coefficients (N, 42, 1, 1) for DataAugmentation and FlowAugmentation, drawn in train() (FlowNet).

    Of one bottom, an image of each item is taken for its size: the coefficients begin at no change. Of three, the first
    holds coefficients, to which others are added (mode add), or whose own kinds are drawn anew (replace); the second is
    the image, the third what was cut out of it. In eval() the top holds the coefficients of the bottom, or those of no
    change.

    Differs from Caffe: the random numbers are others, from the same distributions.
    Reference: lmb-freiburg/flownet2 generate_augmentation_parameters_layer.cu
    """

    @classmethod
    def from_caffe(cls, layer: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        p = layer.augmentation_param
        size, crop = generated_sizes(p, bottoms)
        return {"size": size, "crop": crop, "mode": generated_mode(p, bottoms)} | random_arguments(layer)

    def __init__(
        self,
        size: tuple[int, int],
        crop: tuple[int, int],
        mode: str = "add",
        draws: Mapping[str, Draw] | None = None,
        schedule: Schedule = (1.0, 1.0, 1.0),
        in_eval: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.crop, self.mode = size, crop, mode
        self.draws, self.schedule, self.in_eval = dict(draws or {}), schedule, in_eval
        self.iteration = 0  # which no file keeps, in Caffe either

    def forward(self, x: Tensor, *images: Tensor) -> Tensor:
        start = x.flatten(1) if self.mode != "regenerate" else x.new_zeros(len(x), len(COEFFICIENTS))
        if self.training:
            self.iteration += 1
        if self.training or self.in_eval:
            share = discount(self.schedule, self.iteration)
            start = drawn(self.draws, start, share, self.size, self.crop, self.mode == "replace")
        return start[..., None, None]


class FlowAugmentation(Layer):
    """The flow between two images as it is between the parts that DataAugmentation cuts out of them (FlowNet).

    Takes the flow (N, 2, H, W), horizontal first, and the coefficients of both images, (N, 42, 1, 1) each. A pixel of
    the top is looked up in the first image (the nearest pixel), goes on by the flow, and is looked up in the second
    cut.

    Differs from Caffe: a place outside of the image takes a number of another row, as there, but never one before or
    after the blob's memory.
    Reference: lmb-freiburg/flownet2 flow_augmentation_layer.cu
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"crop": (p.crop_height, p.crop_width)}

    def __init__(self, crop: tuple[int, int]) -> None:
        super().__init__()
        self.crop = crop

    def forward(self, flow: Tensor, first: Tensor, second: Tensor) -> Tensor:
        images, size = len(flow), flow.shape[2:]
        one, two = meanings(first.flatten(1)), meanings(second.flatten(1))
        x, y = grid(flow, self.crop)
        at_x, at_y = source_places(one, x, y, self.crop, size)
        place = (at_y + 0.5).trunc() * size[1] + (at_x + 0.5).trunc()
        item = torch.arange(images, device=flow.device)[:, None, None] * 2
        area, numbers = size[0] * size[1], flow.reshape(-1)
        across, down = (numbers[((item + k) * area + place).long().clamp(0, numbers.numel() - 1)] for k in range(2))
        to_x, to_y = cut_places(two, at_x + across, at_y + down, self.crop, size)
        return torch.stack((to_x - x, to_y - y), 1)


class RandomCrop(Layer):
    """Cuts the same part out of all images and disparities (N, 7, H, W): in train() anywhere, else the middle.

    Where the part is larger, the images continue with 128, and the disparity, the last channel, with NaN. From iResNet.

    Reference: leonzfa/iResNet random_crop_layer.cu
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {"size": (p.target_height, p.target_width)}

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        edges: list[int] = []
        for old, new in zip(x.shape[2:], self.size, strict=True):
            drawn = self.training and old > new
            first = int(torch.randint(old - new, ())) if drawn else math.trunc((old - new) / 2)
            edges = [-first, new - old + first, *edges]
        return torch.cat((F.pad(x[:, :-1], edges, value=128.0), F.pad(x[:, -1:], edges, value=math.nan)), 1)


# -- in forward ---------------------------------------------------------------------------------------------------


def meanings(coefficients: Tensor) -> dict[str, Tensor]:
    """Coefficients (N, 42) by name, (N) each, without the logarithm."""
    columns = coefficients.unbind(1)
    return {n: v.exp() if n in FACTORS else v for n, v in zip(COEFFICIENTS, columns, strict=True)}


def grid(x: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The columns and rows of an image, (1, 1, W) and (1, H, 1)."""
    columns, rows = (torch.arange(n, device=x.device, dtype=x.dtype) for n in (size[1], size[0]))
    return columns.reshape(1, 1, -1), rows.reshape(1, -1, 1)


def source_places(
    c: Mapping[str, Tensor], x: Tensor, y: Tensor, crop: Sequence[int], size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Where in the images (N, H, W) the pixel (x, y) of the cut comes from."""
    c = {name: c[name][:, None, None] for name in SPATIAL}
    x, y = x - crop[1] / 2, y - crop[0] / 2
    x = x * (1 - 2 * (c["mirror"] != 0).to(x.dtype))
    cos, sin = c["angle"].cos(), c["angle"].sin()
    moved_x, moved_y = cos * x - sin * y + c["dx"] * crop[1], sin * x + cos * y + c["dy"] * crop[0]
    return moved_x / c["zoom_x"] + size[1] / 2, moved_y / c["zoom_y"] + size[0] / 2


def cut_places(
    c: Mapping[str, Tensor], x: Tensor, y: Tensor, crop: Sequence[int], size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Where in the cut the place (x, y) of the image lies: the inverse of source_places."""
    c = {name: c[name][:, None, None] for name in SPATIAL}
    x, y = (x - size[1] / 2) * c["zoom_x"] - c["dx"] * crop[1], (y - size[0] / 2) * c["zoom_y"] - c["dy"] * crop[0]
    cos, sin = c["angle"].cos(), c["angle"].sin()
    turned_x = (cos * x + sin * y) * (1 - 2 * (c["mirror"] != 0).to(x.dtype))
    return turned_x + crop[1] / 2, cos * y - sin * x + crop[0] / 2


def cut_out(x: Tensor, c: Mapping[str, Tensor], crop: Sequence[int]) -> Tensor:
    """The cut, between the four nearest pixels."""
    height, width = x.shape[2:]
    at_x, at_y = source_places(c, *grid(x, crop), crop, (height, width))
    at_x, at_y = at_x.clamp(max=width - 1.05).clamp(min=0), at_y.clamp(max=height - 1.05).clamp(min=0)
    left, top = at_x.floor(), at_y.floor()
    a, b = (at_x - left)[:, None], (at_y - top)[:, None]
    left, top = left.long(), top.long()
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    upper = (1 - a) * pixels(x, top, left) + a * pixels(x, top, right)
    lower = (1 - a) * pixels(x, bottom, left) + a * pixels(x, bottom, right)
    return (1 - b) * upper + b * lower


def pixels(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The pixels (N, C, H', W') at rows and columns (N, H', W')."""
    index = (row * x.shape[3] + column).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, index).reshape(*x.shape[:2], *row.shape[1:])


def signed_power(x: Tensor, exponent: Tensor) -> Tensor:
    """The power of the absolute value, with the sign of x."""
    return x.abs() ** exponent * x.sign()


def change_along(y: Tensor, x: Tensor, c: Mapping[str, Tensor], vectors: Tensor, most: float) -> Tensor:
    """The colors of y, changed along eigenvectors, whose greatest lengths in the whole images x are the unit."""
    needed = torch.stack([c[name] != float(name in FACTORS) for name in EIGEN]).any()
    c = {name: c[name][:, None, None] for name in EIGEN}
    center = x.mean((0, 2, 3))
    unit = torch.einsum("kc,nchw->knhw", vectors, x).abs().flatten(1).amax(1)
    known = unit > 1e-2
    middle = (vectors @ center / unit).where(known, vectors @ center)
    eig = list(torch.einsum("kc,nchw->knhw", vectors, y - center[:, None, None]))
    for k in range(3):
        along = signed_power(eig[k] / unit[k], c[f"pow_nomean{k}"]) + c[f"add_nomean{k}"]
        eig[k] = (along * c[f"mult_nomean{k}"]).where(known[k], eig[k]) + middle[k]
    light = (signed_power(eig[0], c["pow_withmean0"]) + c["add_withmean0"]) * c["mult_withmean0"]
    eig[0] = light.where(known[0], eig[0])
    color = (eig[1] ** 2 + eig[2] ** 2).sqrt()
    new = (color ** c["pow_withmean1"] + c["add_withmean1"]).clamp(min=0) * c["mult_withmean1"]
    cos, sin = c["col_angle"].cos(), c["col_angle"].sin()
    eig[1:] = [cos * eig[1] - sin * eig[2], sin * eig[1] + cos * eig[2]]
    eig = [(e * unit[k]).where(known[k], e) for k, e in enumerate(eig)]
    longest = unit.square().sum().sqrt()
    wanted = (eig[0] ** 2 + eig[1] ** 2 + eig[2] ** 2).sqrt() / longest
    eig[1:] = [(e / color * new).where(color > 1e-2, e) for e in eig[1:]]
    length = (eig[0] ** 2 + eig[1] ** 2 + eig[2] ** 2).sqrt()
    wanted = (wanted ** c["lmult_pow"] + c["lmult_add"]).clamp(min=0) * c["lmult_mult"] * longest
    scaled = [(e / length * wanted).clamp(max=unit[k]) for k, e in enumerate(eig)]
    eig = [s.where((longest > 1e-2) & (length > 1e-2), e) for s, e in zip(scaled, eig, strict=True)]
    return torch.einsum("kc,knhw->nchw", vectors, torch.stack(eig)).clamp(max=most).clamp(min=0).where(needed, y)


def change_colors(y: Tensor, c: Mapping[str, Tensor], most: float) -> Tensor:
    """Gamma, brightness, contrast and a factor for each channel, where any image of the batch has one."""
    needed = torch.stack([c[name] != float(name in FACTORS) for name in CHROMATIC]).any()
    factors = torch.stack((c["color1"], c["color2"], c["color3"]), 1)[..., None, None]
    c = {name: c[name][:, None, None, None] for name in CHROMATIC}
    colored = y * factors
    kept = y.sum(1, keepdim=True) / (colored.sum(1, keepdim=True) + 0.01)
    new = (colored * kept).clamp(0, 1) ** c["gamma"] + c["brightness"]
    return (0.5 + (new - 0.5) * c["contrast"]).clamp(0, most).where(needed, y)


def change_effects(y: Tensor, c: Mapping[str, Tensor], most: float) -> Tensor:
    """A shadow beyond a line, and noise; fog and blur are drawn, and not applied, in the original either."""
    fog = (c["fog_amount"] != 0) & (c["fog_size"] != 0)
    needed = (fog | (c["motion_blur_size"] > 0) | (c["shadow_strength"] > 0) | (c["noise"] > 0)).any()
    noise = c["noise"].clamp(min=0)[:, None, None, None]
    c = {name: c[name][:, None, None] for name in EFFECTS}
    columns, rows = grid(y, y.shape[2:])
    along = (columns - y.shape[3] // 2) * c["shadow_angle"].cos() + (rows - y.shape[2] // 2) * c["shadow_angle"].sin()
    dark = (along - c["shadow_distance"] > 0).to(y.dtype) * c["shadow_strength"]
    return ((y - dark[:, None]).clamp(0, most) + noise * torch.randn_like(y)).where(needed, y)


def discount(schedule: Schedule, iteration: float) -> float:
    """The factor of the spreads, which goes from its first value to its last."""
    half, first, last = schedule
    return first + (last - first) * (2 / (1 + math.exp(-1.0986 * iteration / half)) - 1)


def drawn(
    draws: Mapping[str, Draw], start: Tensor, share: float, size: Sequence[int], crop: Sequence[int], anew: bool = False
) -> Tensor:
    """Coefficients (N, 42): those given, and what is drawn on top, or in place of the same kind."""
    for kind, own in SOURCES.items():
        if not any(name in draws for name in own):
            continue
        # replace draws all kinds but the spatial one on top of what is given, field by field
        first = zeroed(start, kind) if anew and kind is SPATIAL else start
        if kind is SPATIAL:
            start = stay_inside(draws, first, share, size, crop)
        else:
            new = encoded(named(draws, kind, len(first), share), first, anew)
            start = new if anew else start + new
    return start


def zeroed(coefficients: Tensor, names: Sequence[str]) -> Tensor:
    """The coefficients, with those of a kind at no change."""
    keep = torch.tensor([float(name not in names) for name in COEFFICIENTS]).to(coefficients)
    return coefficients * keep


def encoded(values: Mapping[str, Tensor], like: Tensor, keep: bool = False) -> Tensor:
    """Coefficients (N, 42) of what is named; the rest means no change, or is that of ``like``."""
    columns = list(like.unbind(1)) if keep else [torch.zeros_like(like[:, 0])] * len(COEFFICIENTS)
    for name, value in values.items():
        value = value.to(like)
        columns[COEFFICIENTS.index(name)] = value.log() if name in FACTORS else value
    return torch.stack(columns, 1)


def stay_inside(
    draws: Mapping[str, Draw], start: Tensor, share: float, size: Sequence[int], crop: Sequence[int]
) -> Tensor:
    """Spatial coefficients whose corners lie in the image; those of ``start`` where 49 tries found none.

    The original makes a 50th, and throws it away.
    """
    result, open_ = start, torch.ones(len(start), dtype=torch.bool, device=start.device)
    x = torch.tensor([[[0.0, crop[1] - 1.0]]]).to(start)
    y = torch.tensor([[[0.0], [crop[0] - 1.0]]]).to(start)
    for _ in range(49):
        if not open_.any():
            break
        tried = start + encoded(named(draws, SPATIAL, len(start), share), start)
        at_x, at_y = (at.floor() for at in source_places(meanings(tried), x, y, crop, size))
        inside = (at_x >= 0) & (at_x <= size[1] - 2) & (at_y >= 0) & (at_y <= size[0] - 2)
        fits = inside.flatten(1).all(1) & open_
        result, open_ = tried.where(fits[:, None], result), open_ & ~fits
    return result


def named(draws: Mapping[str, Draw], kind: Sequence[str], images: int, share: float) -> dict[str, Tensor]:
    """What the distributions of a kind give, by the names of the coefficients."""
    got: dict[str, Tensor] = {}

    def draw(source: str, *names: str, otherwise: float | None = None, scale: float = share) -> None:
        for name in names if source in draws else ():
            got[name] = random_numbers(draws[source], images, scale, otherwise)

    if kind is SPATIAL:
        draw("mirror", "mirror", scale=0.0)  # in the original the default stands where the share belongs
        if "mirror" in got:
            got["mirror"] = (got["mirror"] != 0).float()
        draw("translate", "dx", "dy", otherwise=0.0)
        draw("translate_x", "dx", otherwise=0.0)
        draw("translate_y", "dy", otherwise=0.0)
        draw("rotate", "angle", otherwise=0.0)
        draw("zoom", "zoom_x", otherwise=1.0)
        if "zoom_x" in got:
            got["zoom_y"] = got["zoom_x"]
        if "squeeze" in draws:
            squeeze = random_numbers(draws["squeeze"], images, share, 1.0)
            got["zoom_x"], got["zoom_y"] = got.get("zoom_x", 1) * squeeze, got.get("zoom_y", 1) / squeeze
    elif kind is CHROMATIC:
        for name in ("gamma", "brightness", "contrast"):
            draw(name, name)
        draw("color", "color1", "color2", "color3")
    elif kind is EIGEN:
        for how in ("pow", "add", "mult"):
            draw(f"ladd_{how}", f"{how}_nomean0")
            draw(f"col_{how}", f"{how}_nomean1", f"{how}_nomean2")
            draw(f"sat_{how}", f"{how}_withmean1")
            if f"sat_{how}" in draws:
                got[f"{how}_withmean2"] = got[f"{how}_withmean1"]
            draw(f"lmult_{how}", f"lmult_{how}")
        draw("col_rotate", "col_angle")
    else:
        for name in EFFECTS:
            draw(name, name, otherwise=None if name == "noise" else 0.0)
    return got


def random_numbers(how: Draw, count: int, share: float, otherwise: float | None = None) -> Tensor:
    """Numbers (count) of a distribution; ``otherwise`` is what one that is skipped by its probability gives."""
    kind, mean, spread, probability, exponential, scheduled, rounded, factor = how
    spread = max(spread * share if scheduled else spread, 0.0)
    if kind == "bernoulli":
        value = torch.bernoulli(torch.full((count,), max(probability, 0.0)))
        skipped = torch.zeros(count, dtype=torch.bool)
    else:
        value = mean + spread * (2 * torch.rand(count) - 1 if kind.startswith("uniform") else torch.randn(count))
        skipped = torch.rand(count) >= probability if "_" in kind else torch.zeros(count, dtype=torch.bool)
        value = value.where(~skipped, 0.0)
        value = value.exp() if exponential else value
    value = factor * (value.round() if rounded else value)
    return value if otherwise is None else value.where(~skipped, otherwise)


# -- parameters, from Caffe ---------------------------------------------------------------------------------------


def random_arguments(layer: Message) -> dict[str, Any]:
    """The constructor arguments that say what is drawn, and how."""
    p, s = layer.augmentation_param, layer.coeff_schedule_param
    args: dict[str, Any] = {}
    draws = {name: random_draw(getattr(p, name)) for own in SOURCES.values() for name in own if p.has(name)}
    if draws:
        args["draws"] = draws
    if layer.has("coeff_schedule_param"):
        args["schedule"] = (decimal(s.half_life), decimal(s.initial_coeff), decimal(s.final_coeff))
    return args | ({"in_eval": True} if p.augment_during_test else {})


def random_draw(p: Message) -> Draw:
    """A RandomGeneratorParameter as a tuple."""
    numbers = decimal(p.mean), decimal(p.spread), decimal(p.prob)
    return (str(p.rand_type), *numbers, p.exp, p.apply_schedule, p.discretize, decimal(p.multiplier))
