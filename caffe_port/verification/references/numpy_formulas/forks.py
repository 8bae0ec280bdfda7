"""Layer types added by forks: activations, sums, products with margins, resizing, video."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from caffe_port.formats.message import Message
from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas.formulas import Layer, Result, formula, given, spatial

# -- elementwise ----------------------------------------------------------------------------------------------------


@formula("HSwish", "HardSwish")
def hswish(layer: Layer) -> Result:
    """x min(max(x + 3, 0), 6) / 6. Source: MobileNet v3's forks."""
    return layer.x * np.clip(layer.x + 3, 0, 6) / 6


@formula("HSigmoid")
def hsigmoid(layer: Layer) -> Result:
    """min(max(x + 3, 0), 6) / 6. Source: MobileNet v3's forks."""
    return np.clip(layer.x + 3, 0, 6) / 6


@formula("HardSigmoid")
def hard_sigmoid(layer: Layer) -> Result:
    """max(0, min(1, alpha x + beta)). Source: hardsigmoid_layer.cpp (brocolli-caffe)."""
    p = layer.param.hard_sigmoid_param if layer.param.has("hard_sigmoid_param") else layer.param.hardsigmoid_param
    return np.maximum(0, np.minimum(1, p.alpha * layer.x + p.beta))


@formula("SELU", "SeLu", "Selu")
def selu(layer: Layer) -> Result:
    """lambda (max(x, 0) + alpha (exp(min(x, 0)) - 1)). Source: selu_layer.cpp."""
    p = layer.param.selu_param
    return getattr(p, "lambda") * (np.maximum(layer.x, 0) + p.alpha * np.expm1(np.minimum(layer.x, 0)))


@formula("ScaleTanH")
def scale_tanh(layer: Layer) -> Result:
    """tanh(init_scale x), until step_size iterations have passed. Source: scale_tanh_layer.cpp (HashNet)."""
    if layer.train:
        raise NotImplementedError("a scale that follows the iterations")
    return np.tanh(layer.param.scale_tanh_param.init_scale * layer.x)


@formula("Sparsify")
def sparsify(layer: Layer) -> Result:
    """Nearer to 0 by thre. Source: sparsify_layer.cpp (wenwei202)."""
    return np.sign(layer.x) * np.maximum(np.abs(layer.x) - layer.param.sparsify_param.thre, 0)


@formula("GuidedDropout")
def guided_dropout(layer: Layer) -> Result:
    """Image by image. Source: guided_dropout_layer.cpp (Cysu)."""
    p, (x, guidance) = layer.param.guided_dropout_param, layer.bottoms
    if p.type == "stochastic":
        if layer.train:
            raise NotImplementedError("channels that are dropped at random")
        return x
    top = np.zeros(x.shape)
    for n, row in enumerate(guidance.reshape(len(x), -1)):
        kept = np.flatnonzero(row > p.guidance_threshold)
        top[n, kept] = x[n, kept] * (x.shape[1] / len(kept) if len(kept) else 1)
    return top


@formula("Norm")
def norm(layer: Layer) -> Result:
    """x / (||x|| + 1e-6) along the channels, with four axes. Source: norm_layer.cpp (video_triplet)."""
    x = layer.x.reshape(*layer.x.shape, *[1] * (4 - layer.x.ndim))
    return x / (np.sqrt((x**2).sum(1, keepdims=True)) + 1e-6)


@formula("MergeCrop")
def merge_crop(layer: Layer) -> Result:
    """The middle of the second bottom beside the first, or added. Source: mergecrop_layer.cu (naibaf7)."""
    p, (first, second) = layer.param.mergecrop_param, layer.bottoms
    start = [(big - small) // 2 for small, big in zip(first.shape[2:], second.shape[2:], strict=True)]
    cut = second
    for axis, (k, n) in enumerate(zip(start, first.shape[2:], strict=True), 2):
        cut = cut.take(range(k, k + n), axis)
    says = [*p.forward, True, True]
    parts = [x if says[k] else np.zeros(x.shape) for k, x in enumerate((first, cut))]
    return parts[0] + parts[1] if p.operation == "ADD" else np.concatenate(parts, 1)


@formula("Atan")
def atan(layer: Layer) -> Result:
    """Source: atan_layer.cpp (Synopsys)."""
    return np.arctan(layer.x)


@formula("PowerFile")
def power_file(layer: Layer) -> Result:
    """x + the numbers of a text file, one for each value of an item. Source: power_file_layer.cu (daerduoCarey)."""
    path, top = layer.param.power_file_param.shift_file, layer.x.copy()
    numbers = Path(path).read_text().split() if path else []
    flat = top.reshape(len(top), -1)
    for k, number in enumerate(numbers[: flat.shape[1]]):
        flat[:, k] += float(number)
    return top


@formula("PointwiseSpatialAttention")
def attention(layer: Layer) -> Result:
    """Source: pointwise_spatial_attention_layer.cpp (hszhao/PSANet)."""
    p, (x, mask) = layer.param.pointwise_spatial_attention_param, layer.bottoms
    n, _, height, width = x.shape
    given_ = p.has("attention_mask_height")
    sides = (p.attention_mask_height, p.attention_mask_width) if given_ else (2 * height - 1, 2 * width - 1)
    buffer = np.zeros((n, height, width, height, width))
    for h, w, i, j in itertools.product(*map(range, (height, width, height, width))):
        row, column = i - h + sides[0] // 2, j - w + sides[1] // 2
        if 0 <= row < sides[0] and 0 <= column < sides[1]:
            place = (i, j, h, w) if p.psa_type == "COLLECT" else (h, w, i, j)
            buffer[(slice(None), *place)] = mask[:, row * sides[1] + column, h, w]
    weights = buffer.reshape(n, height * width, height * width)
    if p.is_softmax:
        weights = np.exp(weights - weights.max(1, keepdims=True))
        weights = weights / weights.sum(1, keepdims=True)
    by = p.normalization_factor if p.has("normalization_factor") else sides[0] * sides[1]
    return (x.reshape(n, x.shape[1], -1) @ weights).reshape(x.shape) / by


@formula("Softplus")
def softplus(layer: Layer) -> Result:
    """log(1 + exp(x))."""
    return np.logaddexp(0, layer.x)


@formula("NegReLU")
def neg_relu(layer: Layer) -> Result:
    """min(x, 0) + slope max(x, 0). Source: neg_relu_layer.cpp (FlowNet2)."""
    return np.minimum(layer.x, 0) + layer.param.relu_param.negative_slope * np.maximum(layer.x, 0)


@formula("SignedSqrt")
def signed_sqrt(layer: Layer) -> Result:
    """Source: signed_sqrt_layer.cpp."""
    return np.sign(layer.x) * np.sqrt(np.abs(layer.x))


@formula("Insanity")
def insanity(layer: Layer) -> Result:
    """max(x, 0) + min(x, 0) / a; in TEST, a is a mean given by the bounds. Source: insanity_layer.cpp."""
    if layer.train:
        raise NotImplementedError("a random layer")
    p = layer.param.insanity_param
    return np.maximum(layer.x, 0) + np.minimum(layer.x, 0) * math.log(abs(p.ub / p.lb)) / (p.ub - p.lb)


@formula("EltwiseAffine")
def eltwise_affine(layer: Layer) -> Result:
    """slope x + bias. Source: eltwise_affine_layer.cpp (happynear)."""
    shape = (-1, *[1] * (layer.x.ndim - 2))
    slope, bias = (blob.reshape(shape) for blob in layer.blobs)
    return slope * layer.x + bias


@formula("Truncation")
def truncation(layer: Layer) -> Result:
    """Source: truncation_layer.cpp (happynear)."""
    p = layer.param.truncation_param
    low = p.truncation_min if p.has("truncation_min") else -np.inf
    return np.clip(layer.x, low, p.truncation_max if p.has("truncation_max") else np.inf)


@formula(
    "AddNoise",
    "ChannelDropout",
    "GaussianNoise",
    "Noise",
    "RandomNoise",
    "SeLUDropout",
    "SeLuDropout",
    "SpatialDropout",
)
def noise(layer: Layer) -> Result:
    """The identity in TEST."""
    if layer.train:
        raise NotImplementedError("a random layer")
    return layer.x


@formula("GRL", "GradientReversal", "GradientScaler")
def gradient_scaler(layer: Layer) -> Result:
    """The identity in the forward pass. Source: gradient_scaler_layer.cpp."""
    return layer.x


@formula("Mean")
def mean(layer: Layer) -> Result:
    """output_scale (input_scale x +- mean_scale mean). Source: mean_layer.cpp (FlowNet2)."""
    p = layer.param.mean_param
    sign = -1 if p.operation == "SUBTRACT" else 1
    tops = []
    for x in layer.bottoms:
        value = np.resize(np.asarray(p.value, np.float64), x.shape[1])[:, None, None]
        tops.append(p.output_scale * (p.input_scale * x + sign * p.mean_scale * value))
    return tops


# -- sums and norms -----------------------------------------------------------------------------------------------


@formula("L2Norm", "L2Normalize", "Normalization", "NormalizeFeature")
def unit_length(layer: Layer) -> Result:
    """x / ||x|| per item; L2Normalize adds 1e-7 inside the root. Source: l2_normalize_layer.cpp."""
    x = layer.x
    squares = (x * x).sum(tuple(range(1, x.ndim)), keepdims=True)
    return x / np.sqrt(squares + (1e-7 if layer.param.type == "L2Normalize" else 0))


@formula("Sum")
def total(layer: Layer) -> Result:
    """Source: sum_layer.cpp (caffe-crowd)."""
    return layer.x.reshape(len(layer.x), -1).sum(1).reshape(-1, 1, 1, 1)


@formula("MIL")
def mil(layer: Layer) -> Result:
    """The largest probability, or the probability that any pixel is positive. Source: mil_layer.cpp."""
    x = layer.x.reshape(*layer.x.shape[:2], -1)
    y = x.max(2)
    if layer.param.mil_param.type == "NOR":
        y = np.maximum(1 - np.prod(1 - x, axis=2), y)
    return y[..., None, None]


@formula("BatchReduction")
def batch_reduction(layer: Layer) -> Result:
    """Sums or means of level^2 values each. Source: batch_reduction_layer.cpp (PSPNet)."""
    p, x = layer.param.batch_reduction_param, layer.x
    axis, levels = p.reduction_param.axis % x.ndim, list(p.level) or [1]
    add = np.mean if p.reduction_param.operation == "MEAN" else np.sum
    if levels == [1]:
        return add(x, axis=axis)
    edges = np.cumsum([n * n for n in levels])[:-1]
    return np.stack([add(part, axis=axis) for part in np.split(x, edges, axis)], axis)


@formula("Scalar")
def scalar(layer: Layer) -> Result:
    """x gamma; gamma is the second bottom or the blob. Source: scalar_layer.cpp."""
    axis = layer.param.scalar_param.axis % layer.x.ndim
    gamma = layer.bottoms[1] if len(layer.bottoms) > 1 else layer.blobs[0]
    return layer.x * gamma.reshape(gamma.shape + (1,) * (layer.x.ndim - axis - gamma.ndim))


@formula("ChannelScale", "MaskPooling")
def factor_for_pixels(layer: Layer) -> Result:
    """One factor for all channels of a pixel. Sources: channel_scale_layer.cpp, mask_pooling_layer.cu (MNC)."""
    if layer.param.type == "ChannelScale" and not layer.param.channel_scale_param.do_forward:
        return layer.x
    return layer.x * layer.bottoms[1].reshape(len(layer.x), 1, *layer.x.shape[2:])


@formula("InnerDistance")
def inner_distance(layer: Layer) -> Result:
    """The distances from the rows of the weight. Source: inner_distance_layer.cpp (happynear)."""
    p = layer.param.inner_distance_param
    x = layer.x.reshape(*layer.x.shape[: p.axis], -1)
    weight = layer.blobs[0].reshape(p.num_output, -1)
    if p.normalize:
        weight = weight / np.sqrt((weight**2).sum(1, keepdims=True) + 1e-6)
    difference = x[..., None, :] - weight
    y = (difference**2 if p.distance_type == "L2" else np.abs(difference)).sum(-1)
    return y + (layer.blobs[1].reshape(-1) if p.bias_term else 0)


@formula("LabelSpecificAdd")
def label_specific_add(layer: Layer) -> Result:
    """In TRAIN, adds bias to the true class's score if that is above -bias. Source: label_specific_add_layer.cpp."""
    y, bias = layer.x.copy(), layer.param.label_specific_add_param.bias
    if layer.train:
        for row, label in zip(y.reshape(len(y), -1), layer.bottoms[1].reshape(-1).astype(int), strict=True):
            row[label] += bias if row[label] > -bias else 0
    return y


# -- sizes --------------------------------------------------------------------------------------------------------


@formula("Upsampling")
def upsampling(layer: Layer) -> Result:
    """Puts each value in the corner of a block of zeros. Source: upsampling_layer.cpp (CEDN)."""
    p, x = layer.param.upsampling_param, layer.x
    high, wide = p.kernel_h or p.kernel_size, p.kernel_w or p.kernel_size
    y = np.zeros((*x.shape[:2], x.shape[2] * high, x.shape[3] * wide))
    y[:, :, ::high, ::wide] = x
    return y


@formula("MaskResize")
def mask_resize(layer: Layer) -> Result:
    """Pixel i is at i * old / new; 0 more than half a pixel after the last. Source: mask_resize_layer.cu (MNC)."""
    p, x = layer.param.mask_resize_param, layer.x
    for axis, count in ((2, p.output_height), (3, p.output_width)):
        old = x.shape[axis]
        place = np.arange(count) * old / count
        low = np.minimum(place.astype(int), old - 1)
        high = np.minimum(low + 1, old - 1)
        shape = (-1, *[1] * (3 - axis))
        share = np.where(low == old - 1, 0, place - low).reshape(shape)
        x = ((1 - share) * x.take(low, axis) + share * x.take(high, axis)) * (place <= old - 0.5).reshape(shape)
    return x


@formula("Accum")
def accum(layer: Layer) -> Result:
    """Stretches every bottom with corners aligned and concatenates them. Source: accum_layer.cpp (FlowNet2)."""
    p = layer.param.accum_param
    images = layer.bottoms[:-1] if p.have_reference else layer.bottoms
    size = [max(x.shape[axis] for x in images) for axis in (2, 3)]
    by = p.size_divisible_by
    wanted = [math.ceil(n / by) * by for n in size] if by else [p.top_height, p.top_width]
    if p.have_reference:
        size = list(layer.bottoms[-1].shape[2:])
    elif all(a > b for a, b in zip(wanted, size, strict=True)):
        size = wanted
    tops = []
    for x in images:
        for axis, count in zip((2, 3), size, strict=True):
            place = np.arange(count) * (x.shape[axis] - 1) / max(count - 1, 1)
            low = place.astype(int)
            share = (place - low).reshape(-1, *[1] * (3 - axis))
            x = (1 - share) * x.take(low, axis) + share * x.take(np.minimum(low + 1, x.shape[axis] - 1), axis)
        tops.append(x)
    return np.concatenate(tops, 1)


@formula("RegionYolo")
def region_yolo(layer: Layer) -> Result:
    """Sigmoids of position, score and classes, or a softmax of the classes. Source: OpenVINO's RegionYolo."""
    p, x = layer.param.region_yolo_param, layer.x
    y = x.reshape(x.shape[0], p.num if p.do_softmax else len(p.mask), -1, *x.shape[2:]).copy()
    logistic = [0, 1, *range(p.coords, p.coords + 1 if p.do_softmax else y.shape[2])]
    y[:, :, logistic] = 0.5 * np.tanh(0.5 * y[:, :, logistic]) + 0.5
    if p.do_softmax:
        powers = np.exp(y[:, :, p.coords + 1 :] - y[:, :, p.coords + 1 :].max(2, keepdims=True))
        y[:, :, p.coords + 1 :] = powers / powers.sum(2, keepdims=True)
    return y.reshape(len(y), -1) if p.do_softmax else y.reshape(x.shape)


# -- sequences ----------------------------------------------------------------------------------------------------


@formula("ReverseTime")
def reverse_time(layer: Layer) -> Result:
    """Each sequence reversed, up to its length. Source: reverse_time_layer.cpp (ChWick)."""
    y = layer.x.copy() if layer.param.reverse_time_param.copy_remaining else np.zeros_like(layer.x)
    for stream, length in enumerate(layer.bottoms[1].reshape(-1).astype(int)):
        y[:length, stream] = layer.x[:length, stream][::-1]
    return y


@formula("CTCGreedyDecoder")
def ctc_greedy_decoder(layer: Layer) -> Result:
    """The best classes, without repetitions and blanks. Source: ctc_decoder_layer.cpp (ChWick; caffe_ocr's has the top
    (N, T), and blank 0 by default, where there is no second bottom).
    """
    p, x = layer.param.ctc_decoder_param, layer.x
    x = x.reshape(*x.shape[:2], -1)
    alone = len(layer.bottoms) == 1
    going_on = np.ones(x.shape[:2]) if alone else layer.bottoms[1].reshape(x.shape[:2])
    blank = 0 if alone and not p.has("blank_index") else p.blank_index
    blank = x.shape[2] - 1 if blank < 0 else blank
    sequences, scores = np.full(x.shape[:2], -1.0), np.zeros(x.shape[1])
    for stream in range(x.shape[1]):
        previous, length = -1, 0
        for step in range(x.shape[0]):
            if step and going_on[step, stream] == 0:
                break
            best = int(x[step, stream].argmax())
            scores[stream] -= x[step, stream, best]
            if best != blank and not (p.ctc_merge_repeated and best == previous):
                sequences[length, stream] = best
                length += 1
            previous = best
    if alone:
        return sequences.T[..., None, None]
    return [sequences[..., None, None], scores.reshape(-1, 1, 1, 1)][: layer.tops]


# -- video --------------------------------------------------------------------------------------------------------


def _sides(p: Message, field: str, default: int) -> tuple[int, ...]:
    """(depth, height, width); in C3D, the depth has its own fields."""
    values = list(getattr(p, field)) or [default]
    if p.has("kernel_depth"):
        own = {"kernel_size": p.kernel_depth, "stride": p.temporal_stride, "pad": given(p, "temporal_pad") or 0}
        return own[field], values[0], values[0]
    return tuple(values) if len(values) == 3 else tuple(values * 3)


@formula("Convolution3D")
def convolution3d(layer: Layer) -> Result:
    """One product per kernel offset; filter_group has no effect. Source: convolution3d_layer.cpp (C3D)."""
    own = layer.param
    p = own.convolution3d_param if own.has("convolution3d_param") else own.convolution_param
    return [_convolve_3d(p, x, layer.blobs) for x in layer.bottoms]


def _convolve_3d(p: Message, x: Array, blobs: Sequence[Array]) -> Array:
    kernel, stride, pad = _sides(p, "kernel_size", 1), _sides(p, "stride", 1), _sides(p, "pad", 0)
    x = np.pad(x, [(0, 0), (0, 0), *((n, n) for n in pad)])
    out = [(n - k) // s + 1 for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    weight = blobs[0].reshape(p.num_output, x.shape[1], *kernel)
    y = np.zeros((x.shape[0], p.num_output, *out))
    for offset in itertools.product(*(range(k) for k in kernel)):
        steps = (slice(o, o + s * (n - 1) + 1, s) for o, s, n in zip(offset, stride, out, strict=True))
        y += np.einsum(
            "oc,ncdhw->nodhw", weight[:, :, offset[0], offset[1], offset[2]], x[(slice(None), slice(None), *steps)]
        )
    return np.asarray(y + (blobs[1].reshape(-1, 1, 1, 1) if p.bias_term else 0))


@formula("Pooling3D")
def pooling3d(layer: Layer) -> Result:
    """Maximum or mean of boxes that may extend beyond the far edges. Source: pool3d_layer.cpp (C3D)."""
    own = layer.param
    p, x = own.pooling3d_param if own.has("pooling3d_param") else own.pooling_param, layer.x
    if p.global_pooling:
        return (x.max if p.pool == "MAX" else x.mean)((2, 3, 4), keepdims=True)
    kernel, stride, pad = _sides(p, "kernel_size", 1), _sides(p, "stride", 1), _sides(p, "pad", 0)
    apart = spatial(p.dilation, None, None, 3, 1)
    out = []
    for n, k, s, q in zip(
        x.shape[2:], [(k - 1) * d + 1 for k, d in zip(kernel, apart, strict=True)], stride, pad, strict=True
    ):
        ceil = p.round_mode == "CEIL" and p.ceil_mode and not p.round_below
        count = (math.ceil((n + 2 * q - k) / s) if ceil else (n + 2 * q - k) // s) + 1
        out.append(count - 1 if any(pad) and (count - 1) * s >= n + q else count)
    y: Array = np.zeros((*x.shape[:2], *out))
    for at in np.ndindex(*out):
        first = [a * s - q for a, s, q in zip(at, stride, pad, strict=True)]
        axes = zip(first, kernel, apart, x.shape[2:], strict=True)
        box = x
        for axis, (f, k, d, n) in enumerate(axes, 2):
            box = box.take([i for i in range(f, f + k * d, d) if 0 <= i < n], axis)
        values = box.reshape(*x.shape[:2], -1)
        cells = math.prod(min(f + k, n + q) - f for f, k, n, q in zip(first, kernel, x.shape[2:], pad, strict=True))
        y[(..., *at)] = values.max(2) if p.pool == "MAX" else values.sum(2) / cells
    return y
