"""Optical flow and stereo. Source: src/caffe/layers of lmb-freiburg/flownet2, whose kernels are CUDA."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from caffe_port.formats.message import Message
from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas.formulas import Layer, Result, formula


def _patches_compared(p: Message, a: Array, b: Array, first: int, moves: list[tuple[int, int]]) -> Array:
    """For every move (down, right), the mean over channels and a patch; patches begin at (first, max_displacement).

    What is read to the left of the first column of the first row of an array, or to the right of the last, is refused.
    """
    k, step, reach = p.kernel_size, p.stride_1, p.max_displacement
    height = math.ceil((a.shape[2] - 2 * first - 2 * ((k - 1) // 2)) / step)
    width = math.ceil((a.shape[3] - 2 * reach - 2 * ((k - 1) // 2)) / step)
    top = np.zeros((len(a), len(moves), height, width))
    for c, (down, right) in enumerate(moves):
        for y, x in np.ndindex(height, width):
            row, column = y * step + first, x * step + reach
            one = a[:, :, row : row + k, column : column + k]
            # Pixels are read by their index in memory: left of a row's first is the last of the row before it.
            index = np.add.outer((np.arange(k) + row + down) * a.shape[3], np.arange(k) + column + right)
            if index.min() < 0 or index.max() >= a.shape[2] * a.shape[3]:
                raise NotImplementedError("a Correlation that reads beyond its bottom")
            other = b.reshape(*b.shape[:2], -1)[:, :, index]
            each = np.abs(one - other) if p.correlation_type == "SUBTRACT" else one * other
            top[:, c, y, x] = each.mean((1, 2, 3))
    return top


@formula("Correlation")
def correlation(layer: Layer) -> Result:
    """Every patch of the first image with those of the second around it. Source: correlation_layer.cu."""
    p, pad = layer.param.correlation_param, layer.param.correlation_param.pad
    a, b = (np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad))) for x in layer.bottoms)
    radius = p.max_displacement // p.stride_2
    steps = [step * p.stride_2 for step in range(-radius, radius + 1)]
    moves = [(down, right) for down in steps for right in steps]
    return _patches_compared(p, a, b, p.max_displacement, moves)


@formula("Correlation1D")
def correlation_1d(layer: Layer) -> Result:
    """The same along rows only; to the left alone it begins one step beyond. Source: correlation_layer1d.cu."""
    p = layer.param.correlation_param
    a, b = (np.pad(x, ((0, 0), (0, 0), (0, 0), (p.pad, p.pad))) for x in layer.bottoms)
    radius = p.max_displacement // p.stride_2
    width = radius + 1 if p.single_direction else 2 * radius + 1
    first = {-1: -width, 0: -radius, 1: 0}[p.single_direction]
    moves = [(0, (first + channel) * p.stride_2) for channel in range(width)]
    return _patches_compared(p, a, b, 0, moves)


@formula("Grid")
def grid(layer: Layer) -> Result:
    """Column, row. Source: grid_layer.cpp (LiteFlowNet)."""
    rows, columns = np.indices(layer.x.shape[2:], dtype=float)
    return np.stack([np.stack((columns, rows))] * len(layer.x))


@formula("NegSquare")
def neg_square(layer: Layer) -> Result:
    """Source: negsquare_layer.cu (LiteFlowNet)."""
    return -(layer.x**2)


@formula("ExpMax")
def exp_max(layer: Layer) -> Result:
    """base^(shift + scale (x - the greatest channel)). Source: expmax_layer.cu (LiteFlowNet)."""
    p, x = layer.param.expmax_param, layer.x
    base = math.e if p.base == -1 else p.base
    return base ** (p.shift + p.scale * (x - x.max(1, keepdims=True)))


def _at_places(image: Array, places: Array) -> Array:
    """Each of the four pixels around a place counts by its distance, if there is one. LiteFlowNet's warp_layer.cu."""
    top = np.zeros((*image.shape[:2], *places.shape[2:]))
    for n, y, x in np.ndindex(len(image), *places.shape[2:]):
        at_x, at_y = places[n, :, y, x]
        for column, row in np.ndindex(2, 2):
            px, py = math.floor(at_x) + column, math.floor(at_y) + row
            if 0 <= px < image.shape[3] and 0 <= py < image.shape[2]:
                top[n, :, y, x] += (1 - abs(at_x - px)) * (1 - abs(at_y - py)) * image[n, :, py, px]
    return top


@formula("FlowWarp", "Warp", "Warping")
def flow_warp(layer: Layer) -> Result:
    """The pixel at (x, y) + flow, between its four neighbors.

    Sources: flow_warp_layer.cpp; warp_layer.cu (PWC-Net), up to the middle of the last pixel; warping_layer.cu (Garg),
    where there must be a pixel on both sides.
    """
    if layer.param.type == "Warp" and layer.param.warp_param.places:
        return _at_places(*layer.bottoms)
    image, flow = layer.bottoms[0], np.concatenate(layer.bottoms[1:], 1)
    height, width = image.shape[2:]
    own = layer.param.type == "FlowWarp"
    fill = 0.0 if not own or layer.param.flow_warp_param.fill_value == "ZERO" else np.nan
    top = np.full(image.shape, fill)
    for n, y, x in np.ndindex(len(image), height, width):
        at_x, at_y = x + flow[n, 0, y, x], y + flow[n, 1, y, x]
        last = {"FlowWarp": 1, "Warp": 1e-12}.get(layer.param.type, 0)
        if 0 <= at_x < width - 1 + last and 0 <= at_y < height - 1 + last:
            left, upper = int(at_x), int(at_y)
            right, lower = min(left + 1, width - 1), min(upper + 1, height - 1)
            a, b = at_x - left, at_y - upper
            above = (1 - a) * image[n, :, upper, left] + a * image[n, :, upper, right]
            below = (1 - a) * image[n, :, lower, left] + a * image[n, :, lower, right]
            top[n, :, y, x] = (1 - b) * above + b * below
    return top


@formula("ChannelNorm")
def channel_norm(layer: Layer) -> Result:
    """Source: channel_norm_layer.cu."""
    return np.sqrt((layer.x**2).sum(1, keepdims=True))


# -- augmentation -------------------------------------------------------------------------------------------------

_HOW = (("pow", "*"), ("add", ""), ("mult", "*"))
_COEFFICIENTS = (
    *("mirror", "dx", "dy", "angle", "zoom_x*", "zoom_y*"),
    *("gamma*", "brightness", "contrast*", "color1*", "color2*", "color3*"),
    *(f"{how}_{what}{k}{star}" for what in ("nomean", "withmean") for how, star in _HOW for k in range(3)),
    *("lmult_pow*", "lmult_add", "lmult_mult*", "col_angle"),
    *("fog_amount", "fog_size", "motion_blur_angle", "motion_blur_size"),
    *("shadow_angle", "shadow_distance", "shadow_strength", "noise"),
)
"""The fields of AugmentationCoeff in the order of the schema; with a star those whose default is 1."""

Coefficients = dict[str, float]


def _coefficients(row: Array, settle: bool) -> Coefficients:
    """array_to_coeff, and clear_defaults where that follows it."""
    values = {}
    for name, number in zip(_COEFFICIENTS, row.reshape(-1), strict=True):
        default = float(name.endswith("*"))
        value = math.exp(number) if default else float(number)
        values[name.rstrip("*")] = default if settle and abs(value - default) < 1e-3 else value
    return values


def _matrix(c: Coefficients, crop: tuple[int, int], size: tuple[int, ...]) -> Array:
    """tTransMat::fromCoeff: where a place of the cut lies in the image, as a matrix of homogeneous places."""
    (height, width), flip = crop, -1 if c["mirror"] else 1
    to_middle = np.array([[flip, 0, -flip * width / 2], [0, 1, -height / 2], [0, 0, 1]])
    cos, sin = math.cos(c["angle"]), math.sin(c["angle"])
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    move = np.array([[1, 0, c["dx"] * width], [0, 1, c["dy"] * height], [0, 0, 1]])
    zoom = np.diag([1 / c["zoom_x"], 1 / c["zoom_y"], 1])
    back = np.array([[1, 0, size[1] / 2], [0, 1, size[0] / 2], [0, 0, 1]])
    matrix: Array = back @ zoom @ move @ turn @ to_middle
    return matrix


def _is_drawn(layer: Layer, p: Message) -> bool:
    return (layer.train or p.augment_during_test) and any(isinstance(value, Message) for _, value in p.items())


@formula("GenerateAugmentationParameters")
def generate_augmentation_parameters(layer: Layer) -> Result:
    """Without a draw: the coefficients of the bottom, or zeros. Source: generate_augmentation_parameters_layer.cu."""
    p, x = layer.param.augmentation_param, layer.x
    if _is_drawn(layer, p):
        raise NotImplementedError("coefficients that are drawn at random")
    if p.mode == "regenerate" or (len(layer.bottoms) == 1 and x[0, 0].size > 1):
        return np.zeros((len(x), len(_COEFFICIENTS), 1, 1))
    return x


@formula("FlowAugmentation")
def flow_augmentation(layer: Layer) -> Result:
    """Pixel by pixel: into the first image, along the flow, out of the second. Source: flow_augmentation_layer.cu."""
    p, (flow, *coefficients) = layer.param.augmentation_param, layer.bottoms
    crop, (images, _, height, width) = (p.crop_height, p.crop_width), flow.shape
    top, memory = np.zeros((images, 2, *crop)), flow.reshape(-1)
    for n in range(images):
        into, out = (_matrix(_coefficients(c[n], False), crop, (height, width)) for c in coefficients)
        for y, x in np.ndindex(*crop):
            at_x, at_y, _ = into @ (x, y, 1)
            starts = [width * (height * (2 * n + k) + int(at_y + 0.5)) + int(at_x + 0.5) for k in range(2)]
            across, down = (memory[min(max(start, 0), memory.size - 1)] for start in starts)
            to_x, to_y, _ = np.linalg.solve(out, (at_x + across, at_y + down, 1))
            top[n, :, y, x] = to_x - x, to_y - y
    return top


@formula("RandomCrop")
def random_crop(layer: Layer) -> Result:
    """The middle; beyond the image 128, or NaN in the last channel. Source: random_crop_layer.cu (iResNet)."""
    p, x = layer.param.random_crop_param, layer.x
    if layer.train:
        raise NotImplementedError("a part that is drawn at random")
    top = np.full((*x.shape[:2], p.target_height, p.target_width), 128.0)
    top[:, -1] = np.nan
    down, right = (int((old - new) / 2) for old, new in zip(x.shape[2:], top.shape[2:], strict=True))
    for row, column in np.ndindex(*top.shape[2:]):
        if 0 <= row + down < x.shape[2] and 0 <= column + right < x.shape[3]:
            top[:, :, row, column] = x[:, :, row + down, column + right]
    return top


@formula("DataAugmentation")
def data_augmentation(layer: Layer) -> Result:
    """Cuts out a part, between pixels, changes its colors and subtracts the mean, with the coefficients of the bottom.

    Sources: data_augmentation_layer.cu, augmentation_layer_base.cpp.
    """
    p, x = layer.param.augmentation_param, layer.x
    given = layer.bottoms[1] if len(layer.bottoms) > 1 else np.zeros((len(x), len(_COEFFICIENTS), 1, 1))
    if p.has("crop_width") and p.has("crop_height"):
        if len(layer.bottoms) == 1 and _is_drawn(layer, p):
            raise NotImplementedError("a DataAugmentation that changes images at random")
        crop, rows = (p.crop_height, p.crop_width), [_coefficients(row, True) for row in given]
        y = np.stack([_cut(image, c, crop) for image, c in zip(x, rows, strict=True)])
        x = _recolored(y, x, rows, p) if x.shape[1] == 3 else y
    if p.recompute_mean > 0:
        if layer.blobs[0].reshape(-1)[0] + 1 <= p.recompute_mean:
            raise NotImplementedError("a DataAugmentation whose mean every forward still changes")
        x = x - (layer.blobs[1].reshape(x.shape[1:]) if p.mean_per_pixel else layer.blobs[2].reshape(-1, 1, 1))
    elif len(p.mean) == 3 and not p.mean_per_pixel:
        x = x - np.array(p.mean)[: x.shape[1]].reshape(1, -1, 1, 1)
    return x if layer.tops == 1 else [x, given]


def _cut(image: Array, c: Coefficients, crop: tuple[int, int]) -> Array:
    """SpatialAugmentation."""
    height, width = image.shape[1:]
    matrix, y = _matrix(c, crop, (height, width)), np.zeros((len(image), *crop))
    for row, column in np.ndindex(*crop):
        at_x, at_y, _ = matrix @ (column, row, 1)
        at_x, at_y = max(min(at_x, width - 1.05), 0), max(min(at_y, height - 1.05), 0)
        left, top = int(at_x), int(at_y)
        right, bottom, a, b = min(left + 1, width - 1), min(top + 1, height - 1), at_x - left, at_y - top
        above = (1 - a) * image[:, top, left] + a * image[:, top, right]
        below = (1 - a) * image[:, bottom, left] + a * image[:, bottom, right]
        y[:, row, column] = (1 - b) * above + b * below
    return y


def _recolored(y: Array, x: Array, rows: list[Coefficients], p: Message) -> Array:
    """The kernels of colors, each run on the whole batch where any of its images asks for it."""
    neutral = {name.rstrip("*"): float(name.endswith("*")) for name in _COEFFICIENTS}
    asked = [{name for name in c if c[name] != neutral[name]} for c in rows]
    eigen = {name for name in neutral if "mean" in name or name.startswith("lmult") or name == "col_angle"}
    if any(names & eigen for names in asked) and len(p.chromatic_eigvec) == 9:
        vectors = np.array(p.chromatic_eigvec).reshape(3, 3)
        y = np.stack([_along(image, x, c, vectors, p.max_multiplier) for image, c in zip(y, rows, strict=True)])
    if any(names & {"gamma", "brightness", "contrast", "color1", "color2", "color3"} for names in asked):
        for image, c in zip(y, rows, strict=True):
            before = image.sum(0)
            image *= np.array([c["color1"], c["color2"], c["color3"]])[:, None, None]
            image[:] = np.clip(image * before / (image.sum(0) + 0.01), 0, 1) ** c["gamma"] + c["brightness"]
            image[:] = np.clip(0.5 + (image - 0.5) * c["contrast"], 0, p.max_multiplier)
    if any(c["noise"] > 0 for c in rows):
        raise NotImplementedError("a DataAugmentation that adds noise")
    if any(names >= {"fog_amount", "fog_size"} for names in asked) or any(
        c["motion_blur_size"] > 0 or c["shadow_strength"] > 0 for c in rows
    ):
        height, width = y.shape[2:]
        for image, c in zip(y, rows, strict=True):
            for row, column in np.ndindex(height, width):
                far = (column - width // 2) * math.cos(c["shadow_angle"])
                far += (row - height // 2) * math.sin(c["shadow_angle"])
                if far > c["shadow_distance"]:
                    image[:, row, column] -= c["shadow_strength"]
            image[:] = np.clip(image, 0, p.max_multiplier)
    return y


def _along(image: Array, batch: Array, c: Coefficients, vectors: Array, most: float) -> Array:
    """ComputeChromaticEigenspace and ChromaticEigenAugmentation, pixel by pixel."""
    mean = batch.mean((0, 2, 3))
    unit = [np.abs(np.tensordot(v, batch, (0, 1))).max() for v in vectors]
    far = math.sqrt(sum(u * u for u in unit))
    middle = [v @ mean / (u if u > 1e-2 else 1) for v, u in zip(vectors, unit, strict=True)]
    y = np.zeros(image.shape)
    for row, column in np.ndindex(*image.shape[1:]):
        e = list(vectors @ (image[:, row, column] - mean))
        for k in range(3):
            if unit[k] > 1e-2:
                e[k] /= unit[k]
                e[k] = math.copysign(abs(e[k]) ** c[f"pow_nomean{k}"], e[k])
                e[k] = (e[k] + c[f"add_nomean{k}"]) * c[f"mult_nomean{k}"]
            e[k] += middle[k]
        if unit[0] > 1e-2:
            e[0] = math.copysign(abs(e[0]) ** c["pow_withmean0"], e[0])
            e[0] = (e[0] + c["add_withmean0"]) * c["mult_withmean0"]
        s = s1 = math.hypot(e[1], e[2])
        if s > 1e-2:
            s1 = max(s ** c["pow_withmean1"] + c["add_withmean1"], 0) * c["mult_withmean1"]
        cos, sin = math.cos(c["col_angle"]), math.sin(c["col_angle"])
        e[1:] = cos * e[1] - sin * e[2], sin * e[1] + cos * e[2]
        e = [v * u if u > 1e-2 else v for v, u in zip(e, unit, strict=True)]
        wanted = math.hypot(*e) / far
        if s > 1e-2:
            e[1], e[2] = e[1] / s * s1, e[2] / s * s1
        length = math.hypot(*e)
        wanted = max(wanted ** c["lmult_pow"] + c["lmult_add"], 0) * c["lmult_mult"] * far
        if far > 1e-2 and length > 1e-2:
            e = [min(v / length * wanted, u) for v, u in zip(e, unit, strict=True)]
        y[:, row, column] = np.clip(vectors.T @ e, 0, most)
    return y


# -- sizes --------------------------------------------------------------------------------------------------------


def _cubic(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return x * x * (1.5 * x - 2.5) + 1
    return x * (x * (-0.5 * x + 2.5) - 4) + 2 if x < 2 else 0.0


def _triangle(x: float) -> float:
    return max(0.0, 1 - abs(x))


@formula("Resample")
def resample(layer: Layer) -> Result:
    """A filter around (x fx + fy / 2 - 0.5), fx and fy being old / new; the weights are divided by their sum.

    Source: resample_layer.cu.
    """
    p, x = layer.param.resample_param, layer.x
    height, width = x.shape[2:]
    new = (p.height, p.width) if len(layer.bottoms) == 1 else layer.bottoms[1].shape[2:]
    fy, fx = height / new[0], width / new[1]
    top = np.zeros((*x.shape[:2], *new))
    antialias = p.antialias and (fx > 1 or fy > 1)
    for row, column in np.ndindex(*new):
        at_y, at_x = row * fy + fx / 2 - 0.5, column * fx + fy / 2 - 0.5
        near_y, near_x = _away(at_y), _away(at_x)
        if p.type == "NEAREST":
            if not (0 <= near_y < height and 0 <= near_x < width):
                raise NotImplementedError("a Resample that reads beyond its bottom")
            top[:, :, row, column] = x[:, :, near_y, near_x]
            continue
        kernel, reach = (_cubic, 4) if p.type == "CUBIC" else (_triangle, 2)
        rows = _taps(kernel, reach, at_y, near_y, fy, height, antialias)
        columns = _taps(kernel, reach, at_x, near_x, fx, width, antialias)
        weights = np.outer(rows, columns)
        total = weights.sum()
        top[:, :, row, column] = (x * weights).sum((2, 3)) / total if total else 0
    return top


def _taps(
    kernel: Callable[[float], float], reach: int, at: float, near: int, factor: float, size: int, antialias: bool
) -> Array:
    """The weight of every pixel of an axis."""
    a = 1 / factor if antialias else 1.0
    radius = 2 if factor < 1 else math.ceil(reach / a)
    weights = np.zeros(size)
    for k in range(max(near - radius, 0), min(near + radius, size - 1) + 1):
        weights[k] = a * kernel(a * (at - k))
    return weights


def _away(x: float) -> int:
    """C's round."""
    return int(math.copysign(math.floor(abs(x) + 0.5), x))


@formula("Downsample")
def downsample(layer: Layer) -> Result:
    """A triangle as wide as the step around every place, from corner to corner; NaN is left out, unless it is most.

    Source: downsample_layer.cu.
    """
    p, x = layer.param.downsample_param, layer.x
    new = layer.bottoms[1].shape[2:] if len(layer.bottoms) > 1 else (p.top_height, p.top_width)
    if new == x.shape[2:]:
        return x
    taps = []
    for old, count in zip(x.shape[2:], new, strict=True):
        scale = (old - 1) / (count - 1)
        places = [k / (count - 1) * (old - 1) for k in range(count)]
        reach = math.ceil(scale)
        taps.append(
            [[max(0, 1 - abs(k - at) / scale) * (abs(k - _away(at)) <= reach) for k in range(old)] for at in places]
        )
    top = np.zeros((*x.shape[:2], *new))
    for row, column in np.ndindex(*new):
        weights = np.outer(taps[0][row], taps[1][column])
        missing = np.isnan(x)
        known = np.where(missing, 0, weights).sum((2, 3))
        lost = np.where(missing, weights, 0).sum((2, 3))
        value = (np.where(missing, 0, x) * weights).sum((2, 3)) / known
        top[:, :, row, column] = np.where(lost / known > 0.5, np.nan, value)
    return top
