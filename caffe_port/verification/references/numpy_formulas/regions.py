"""What is read at places between pixels, and boxes of grids: loops over regions, as in the sources."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from caffe_port.formats.message import Message
from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas.formulas import Layer, Result, formula, given, spatial

# -- between pixels -----------------------------------------------------------------------------------------------


def _between(image: Array, y: float, x: float) -> Array:
    """The four pixels around a place within an image (C, H, W); beyond the middle of the last ones, they count."""
    places = []
    for at, size in zip((y, x), image.shape[1:], strict=True):
        at = max(at, 0.0)
        low = int(at)
        if low >= size - 1:
            low, at = size - 1, float(size - 1)
        places.append((low, min(low + 1, size - 1), at - low))
    (upper, lower, b), (left, right, a) = places
    above = (1 - a) * image[:, upper, left] + a * image[:, upper, right]
    below = (1 - a) * image[:, lower, left] + a * image[:, lower, right]
    return np.asarray((1 - b) * above + b * below)


def _regions(layer: Layer) -> Array:
    return layer.bottoms[1].reshape(len(layer.bottoms[1]), -1)[:, :5]


@formula("ROIAlign")
def roi_align(layer: Layer) -> Result:
    """The mean of samples within every bin. Sources: Mask R-CNN's operator; Ascend's documentation of roi_end_mode."""
    own = layer.param.has("roi_align_param")
    p, x = layer.param.roi_align_param if own else layer.param.roi_pooling_param, layer.x
    end, samples = (p.roi_end_mode, p.sampling_ratio) if own else (0, 0)
    size = (p.pooled_h, p.pooled_w)
    if end not in (0, 1) or not all(size):
        raise NotImplementedError("a ROIAlign of another fork")
    if not own and p.corners:
        return _corner_values(layer, p)
    regions = _regions(layer)
    top = np.zeros((len(regions), x.shape[1], *size))
    for r, (image, *corners) in enumerate(regions):
        x1, y1, x2, y2 = (corner * p.spatial_scale for corner in corners)
        first = (y1, x1)
        sides = [max(e - s + end * p.spatial_scale, 1.0) for s, e in ((y1, y2), (x1, x2))]
        grid = [samples if samples > 0 else math.ceil(side / bins) for side, bins in zip(sides, size, strict=True)]
        for row, column in np.ndindex(*size):
            total = np.zeros(x.shape[1])
            for k in np.ndindex(*grid):
                at = [
                    f + (cell + (i + 0.5) / n) * side / bins
                    for f, cell, i, n, side, bins in zip(first, (row, column), k, grid, sides, size, strict=True)
                ]
                if all(-1 <= place <= n for place, n in zip(at, x.shape[2:], strict=True)):
                    total += _between(x[int(image)], *at)
            top[r, :, row, column] = total / max(math.prod(grid), 1)
    return top


def _corner_values(layer: Layer, p: Message) -> Result:
    """What there is at the corners of every bin. Source: roi_align_layer.cu (cascade-rcnn)."""
    x, regions, size = layer.x, _regions(layer), (p.pooled_h, p.pooled_w)
    top = np.zeros((len(regions), x.shape[1], size[0] + 1, size[1] + 1))
    for r, (image, x1, y1, x2, y2) in enumerate(regions):
        wider, higher = (x2 - x1 + 1) * p.pad_ratio, (y2 - y1 + 1) * p.pad_ratio
        left, right = ((edge * p.spatial_scale) - 0.5 for edge in (x1 - wider, x2 + wider))
        upper, lower = ((edge * p.spatial_scale) - 0.5 for edge in (y1 - higher, y2 + higher))
        if right <= left or lower <= upper:
            continue
        for row, column in np.ndindex(*top.shape[2:]):
            y = upper + row * (lower - upper) / size[0]
            at = left + column * (right - left) / size[1]
            if -0.5 <= y <= x.shape[2] - 0.5 and -0.5 <= at <= x.shape[3] - 0.5:
                top[r, :, row, column] = _between(x[int(image)], y, at)
    return top


@formula("ROIWarping")
def roi_warping(layer: Layer) -> Result:
    """The value at the upper left corner of every bin. Source: roi_warping_layer.cu (caffe-mnc, as MNC pins it)."""
    p, x, regions = layer.param.roi_warping_param, layer.x, _regions(layer)
    size = (p.pooled_h, p.pooled_w)
    top = np.zeros((len(regions), x.shape[1], *size))
    for r, (image, *corners) in enumerate(regions):
        x1, y1, x2, y2 = (math.copysign(math.floor(abs(c * p.spatial_scale) + 0.5), c) for c in corners)
        for row, column in np.ndindex(*size):
            y = y1 + row * max(y2 - y1, 0) / size[0]
            at = x1 + column * max(x2 - x1, 0) / size[1]
            if -0.5 <= y <= x.shape[2] - 0.5 and -0.5 <= at <= x.shape[3] - 0.5:
                top[r, :, row, column] = _between(x[int(image)], y, at)
    return top


@formula("DeformableConvolution")
def deformable_convolution(layer: Layer) -> Result:
    """A convolution whose taps are moved; one that leaves the image is 0. Source: deformable_im2col.cu (unsky/
    Deformable-ConvNets-caffe; MXNet's, by the authors).
    """
    p, (x, offset) = layer.param.deformable_convolution_param, layer.bottoms
    kernel = spatial(p.kernel_size, given(p, "kernel_h"), given(p, "kernel_w"), 2, 1)
    stride = spatial(p.stride, given(p, "stride_h"), given(p, "stride_w"), 2, 1)
    pad = spatial(p.pad, given(p, "pad_h"), given(p, "pad_w"), 2, 0)
    dilation = spatial(p.dilation, None, None, 2, 1)
    (n, channels, height, width), out = x.shape, offset.shape[2:]
    moved = offset.reshape(n, p.deformable_group, kernel[0] * kernel[1], 2, *out)
    each = channels // p.deformable_group
    columns = np.zeros((n, channels, kernel[0] * kernel[1], *out))
    for image, group, tap, row, column in np.ndindex(n, p.deformable_group, kernel[0] * kernel[1], *out):
        i, j = divmod(tap, kernel[1])
        down, right = moved[image, group, tap, :, row, column]
        y = row * stride[0] - pad[0] + i * dilation[0] + down
        at = column * stride[1] - pad[1] + j * dilation[1] + right
        if 0 <= y < height and 0 <= at < width:
            own = slice(group * each, (group + 1) * each)
            columns[image, own, tap, row, column] = _between(x[image, own], y, at)
    weight = layer.blobs[0].reshape(p.group, p.num_output // p.group, -1)
    y = weight @ columns.reshape(n, p.group, -1, out[0] * out[1])
    y = y.reshape(n, p.num_output, *out)
    return y + layer.blobs[1].reshape(-1, 1, 1) if p.bias_term else y


@formula("SpatialTransformer")
def spatial_transformer(layer: Layer) -> Result:
    """theta (2i / H' - 1, 2j / W' - 1, 1), vertical first; between four pixels, 0 around. Source: st_layer.cu."""
    p, (x, theta) = layer.param.st_param, layer.bottoms
    n, channels, height, width = x.shape
    names = [f"theta_{row}_{column}" for row in (1, 2) for column in (1, 2, 3)]
    free = iter(theta.reshape(n, -1).T)
    full = np.stack([np.full(n, getattr(p, name)) if p.has(name) else next(free) for name in names], 1)
    size = (p.output_H if p.has("output_H") else height, p.output_W if p.has("output_W") else width)
    wide = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    top = np.zeros((n, channels, *size))
    for image, row, column in np.ndindex(n, *size):
        at = full[image].reshape(2, 3) @ [2 * row / size[0] - 1, 2 * column / size[1] - 1, 1]
        y, z = (at + 1) / 2 * [height, width]
        for m in (math.floor(y), math.floor(y) + 1):
            for k in (math.floor(z), math.floor(z) + 1):
                if 0 <= m < height and 0 <= k < width:
                    top[image, :, row, column] += (1 - abs(y - m)) * (1 - abs(z - k)) * wide[image, :, m + 1, k + 1]
    return top


# -- grids of boxes -----------------------------------------------------------------------------------------------


def _shared(a: Sequence[float], b: Sequence[float]) -> float:
    """The area that two boxes of corners have in common."""
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


@formula("BoxOutput")
def box_output(layer: Layer) -> Result:
    """MS-CNN's proposals: of every grid, of the same image, the best that do not overlap. Source: box_output_layer.cpp.

    Of equal scores the later comes first there (std::greater of pairs).
    """
    p, images = layer.param.box_output_param, len(layer.x)
    normal = layer.param.bbox_reg_param if layer.param.has("bbox_reg_param") else None
    if normal is not None and not (normal.has("bbox_mean") and normal.has("bbox_std")):
        normal = None
    rows: list[list[float]] = []
    for image in range(images):
        found: list[list[float]] = []
        for x, high, wide, rate in zip(layer.bottoms, p.field_h, p.field_w, p.downsample_rate, strict=True):
            for row, column in np.ndindex(*x.shape[2:]):
                *scores, cx, cy, w, h = x[image, :, row, column]
                score = max(scores[1:]) - scores[0]
                if score < p.fg_thr:
                    continue
                if normal is not None:
                    code = np.array([cx, cy, w, h]) * list(normal.bbox_std) + list(normal.bbox_mean)
                    cx, cy, w, h = code
                cx, cy = (min(max(c, -1 / p.field_xyr), 1 / p.field_xyr) for c in (cx, cy))
                w, h = (min(max(c, -math.log(p.field_whr)), math.log(p.field_whr)) for c in (w, h))
                w, h = wide * math.exp(w), high * math.exp(h)
                left = max(cx * wide + (column + 0.5) * rate - w / 2, 0)
                upper = max(cy * high + (row + 0.5) * rate - h / 2, 0)
                w, h = min(w, x.shape[3] * rate - left), min(h, x.shape[2] * rate - upper)
                if w >= p.min_size and h >= p.min_size:
                    found.append([left, upper, left + w, upper + h, score])
        order = sorted(range(len(found)), key=lambda k: (np.float32(found[k][4]), k), reverse=True)  # float makes ties
        found = [found[k] for k in order][: p.max_nms_num or None]
        kept: list[list[float]] = []
        for box in found:
            if all(_overlap(p.nms_type, other, box) <= p.iou_thr for other in kept):
                kept.append(box)
        rows += [[image, *box] for box in kept[: p.max_post_nms_num or None]]
    if not rows:
        return [np.array([[0.0, 1, 1, 10, 10]]), np.zeros((1, 6))][: layer.tops]
    return [np.array(rows)[:, :5], np.array(rows)][: layer.tops]


def _overlap(kind: str, a: Sequence[float], b: Sequence[float]) -> float:
    """BoxIOU of math_functions.cpp."""
    both = _shared(a, b)
    by = {"IOMU": min(_area(a), _area(b)), "IOFU": _area(a)}.get(kind, _area(a) + _area(b) - both)
    return both / by


def _normal(layer: Layer) -> tuple[Array, Array]:
    """Means and deviations of the four numbers of a box."""
    p = layer.param.bbox_reg_param
    if not (len(p.bbox_mean) and len(p.bbox_std)):
        return np.zeros(4), np.ones(4)
    return np.array(list(p.bbox_mean)), np.array(list(p.bbox_std))


def _ratio(kind: str, a: Sequence[float], b: Sequence[float]) -> float:
    """JaccardOverlap of bbox_util.cpp (cascade-rcnn); corners x1, y1, x2, y2, whose pixels count."""
    if a[2] < a[0] or a[3] < a[1] or b[2] < b[0] or b[3] < b[1]:
        return 0.0
    area_a, area_b = ((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b))
    left, upper, right, lower = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    shared = 0.0 if left > right or upper >= lower else (right - left + 1) * (lower - upper + 1)
    by = {"IOMU": min(area_a, area_b), "IOFU": area_a}.get(kind, area_a + area_b - shared)
    return shared / by if by > 0 else 0.0


def _not_overlapping(kind: str, boxes: Sequence[list[float]], most: float) -> list[list[float]]:
    """ApplyNMS of bbox_util.cpp (cascade-rcnn): boxes in the order of their scores."""
    kept: list[list[float]] = []
    for box in boxes:
        if all(_ratio(kind, better, box) <= most for better in kept):
            kept.append(box)
    return kept


def _corrected(code: Array, box: Array) -> list[float]:
    """DecodeBBoxesWithPrior of bbox_util.cpp (cascade-rcnn)."""
    corners = []
    for low, high, move, grow in ((box[0], box[2], code[0], code[2]), (box[1], box[3], code[1], code[3])):
        side = high - low + 1
        middle = move * side + (low + high) / 2
        side *= math.exp(grow)
        corners.append((middle - (side - 1) / 2, middle - (side - 1) / 2 + side - 1))
    (x1, x2), (y1, y2) = corners
    return [x1, y1, x2, y2]


@formula("BoxGroupOutput")
def box_group_output(layer: Layer) -> Result:
    """Cascade R-CNN's proposals. Source: box_group_output_layer.cpp."""
    p, (mean, deviation) = layer.param.box_group_output_param, _normal(layer)
    rows: list[list[float]] = []
    for image in range(len(layer.x) // len(p.box_group_param[0].field_h)):
        found: list[list[float]] = []
        for k, group in enumerate(p.box_group_param):
            prob, code = layer.bottoms[2 * k], layer.bottoms[2 * k + 1]
            for field, (high, wide) in enumerate(zip(group.field_h, group.field_w, strict=True)):
                at = image * len(group.field_h) + field
                for row, column in np.ndindex(*prob.shape[2:]):
                    x, y, w, h = code[at, :, row, column] * deviation + mean
                    x, y = (min(max(c, -1 / p.field_xyr), 1 / p.field_xyr) for c in (x, y))
                    w, h = (min(max(c, math.log(1 / p.field_whr)), math.log(p.field_whr)) for c in (w, h))
                    w, h = wide * math.exp(w), high * math.exp(h)
                    x = x * wide + (column + 0.5) * group.stride - w / 2
                    y = y * high + (row + 0.5) * group.stride - h / 2
                    right = min(x + w - 1, prob.shape[3] * group.stride)
                    lower = min(y + h - 1, prob.shape[2] * group.stride)
                    x, y, score = max(x, 0), max(y, 0), 1 - prob[at, 0, row, column]
                    if score >= p.fg_thr and right - x + 1 >= p.min_size and lower - y + 1 >= p.min_size:
                        found.append([x, y, right, lower, score])
        found = sorted(found, key=lambda box: -np.float32(box[4]))[: p.max_nms_num or None]  # float: 1 - 1e-9 is 1
        kept = _not_overlapping(p.nms_type, found, p.iou_thr)[: p.max_post_nms_num or None]
        rows += [[image, *box] for box in kept]
    if not rows:
        return [np.array([[0.0, 1, 1, 10, 10]]), np.zeros((1, 6))][: layer.tops]
    return [np.array(rows)[:, :5], np.array(rows)][: layer.tops]


@formula("DecodeBBox")
def decode_bbox(layer: Layer) -> Result:
    """The regions of the next stage. Source: decode_bbox_layer.cpp (cascade-rcnn)."""
    (mean, deviation), rois = _normal(layer), _regions(layer)
    codes = layer.x.reshape(len(rois), 8)[:, 4:] * deviation + mean
    rows = [[roi[0], *_corrected(code, roi[1:])] for code, roi in zip(codes, rois, strict=True)]
    if layer.train:
        most = layer.param.decode_bbox_param.gt_iou_thr
        overlaps = [row[-1] for row in layer.bottoms[2].reshape(len(rois), -1)] if len(layer.bottoms) > 2 else None
        rows = [
            row
            for k, row in enumerate(rows)
            if row[1] <= row[3] and row[2] <= row[4] and (overlaps is None or overlaps[k] < most)
        ]
    return np.array(rows).reshape(len(rows), *layer.bottoms[1].shape[1:])


@formula("FrcnnOutput")
def frcnn_output(layer: Layer) -> Result:
    """Rows image, corners, label, score, after one of 0 and -1. Source: frcnn_output_layer.cpp (cascade-rcnn)."""
    p, by_class, (mean, deviation) = (
        layer.param.frcnn_output_param,
        layer.param.bbox_reg_param.cls_aware,
        _normal(layer),
    )
    prob, code, rois, size = (bottom.reshape(len(bottom), -1) for bottom in layer.bottoms)
    height, width = size.ravel()
    rows: list[list[float]] = []
    for label in range(1, prob.shape[1]):
        found: list[list[float]] = []
        for r in np.argsort(-prob[:, label], kind="stable"):
            first = 4 * label if by_class else 4
            x1, y1, x2, y2 = _corrected(code[r, first : first + 4] * deviation + mean, rois[r, 1:5])
            if prob[r, label] >= p.conf_thr:
                found.append([max(x1, 0), max(y1, 0), min(x2, width), min(y2, height), label, prob[r, label]])
        rows += _not_overlapping(p.nms_type, found, p.iou_thr)
    if p.max_det_num and len(rows) > p.max_det_num:
        rows = sorted(rows, key=lambda row: -row[5])[: p.max_det_num]
        rows.sort(key=lambda row: row[4])
    return np.array([[0.0, *[-1] * 6], *([0, *row] for row in rows)])


@formula("ScaleRoute")
def scale_route(layer: Layer) -> Result:
    """The rows of regions of a size. Source: scale_route_layer.cpp (cascade-rcnn)."""
    p = layer.param.scale_route_param
    low, high = (p.low_scale if p.has("low_scale") else 0), (p.high_scale if p.has("high_scale") else math.inf)
    middle = {(1, 1): math.sqrt(low * min(high, 1e30)), (1, 0): low, (0, 1): high}.get(
        (int(p.has("low_scale")), int(p.has("high_scale"))), 256
    )
    scales = []
    for _, x1, y1, x2, y2 in layer.x.reshape(len(layer.x), 5):
        scales.append(0.0 if x2 < x1 or y2 < y1 else math.sqrt((x2 - x1 + 1) * (y2 - y1 + 1)))
    kept = [k for k, scale in enumerate(scales) if low <= scale < high]
    if not kept:
        kept = [min(range(len(scales)), key=lambda k: abs(math.log2((scales[k] or 1e-300) / middle)))]
    return [bottom[kept] for bottom in layer.bottoms]


@formula("RoISelectLayer")
def roi_select(layer: Layer) -> Result:
    """The best region of every class. Source: roi_select_layer.py (caffe-face-attributes)."""
    (rois, scores), rows = layer.bottoms, []
    classes = int(re.findall(r"num_class\W*(\d+)", layer.param.python_param.param_str)[0])
    for k in range(1, classes):
        own = [r for r, row in enumerate(scores) if int(np.argmax(row)) == k] or range(len(scores))
        rows.append(max(own, key=lambda r: scores[r, k]))
    return rois[rows]


Found = tuple[float, int, float, float, float, float]
"""Score, class, center and size of a box."""


def _best(images: Sequence[list[Found]], threshold: float) -> Array:
    """The boxes that overlap no better one by ``threshold`` or more, whatever their class; each image by itself.

    The source is written for one image: it puts the boxes of a batch together, and calls them all image 0.
    """
    rows = []
    for image, found in enumerate(images):
        kept: list[list[float]] = []
        for score, label, x, y, w, h in sorted(found, key=lambda box: -box[0]):
            box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
            if all(_overlap("IOU", other[2:], box) < threshold for other in kept):
                kept.append([label + 1, score, *box])
        rows += [[image, *box] for box in kept]
    if not rows:
        rows = [[image, *[-1] * 6] for image in range(len(images))]
    return np.array(rows, float).reshape(1, 1, -1, 7)


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


@formula("YoloDetectionOutput")
def yolo_detection_output(layer: Layer) -> Result:
    """YOLO v2's boxes of one or two grids: the best class of each. Source: yolo_detection_output_layer.cpp (MobileNet-
    YOLO).
    """
    p = layer.param.yolo_detection_output_param
    images: list[list[Found]] = [[] for _ in layer.x]
    cells = ((x, *at) for x in layer.bottoms for at in np.ndindex(len(x), *x.shape[2:], p.num_box))
    for x, image, row, column, k in cells:
        (height, width), each = x.shape[2:], x.shape[1] // p.num_box
        own = x[image, k * each : (k + 1) * each, row, column]
        powers = np.exp(own[5 : 5 + p.num_classes] - own[5 : 5 + p.num_classes].max())
        label = int(powers.argmax())
        score = float(_sigmoid(own[4]) * powers[label] / powers.sum())
        if score >= p.confidence_threshold:
            at = (column + _sigmoid(own[0])) / width, (row + _sigmoid(own[1])) / height
            size = [math.exp(own[2 + s]) * p.biases[2 * k + s] / (width, height)[s] for s in (0, 1)]
            images[image].append((score, label, float(at[0]), float(at[1]), *size))
    return _best(images, p.nms_threshold)


@formula("Yolov3DetectionOutput")
def yolov3_detection_output(layer: Layer) -> Result:
    """YOLO v3's boxes: once for every class above the threshold. Source: yolov3_detection_output_layer.cpp."""
    p = layer.param.yolov3_detection_output_param
    images: list[list[Found]] = [[] for _ in range(len(layer.x))]
    per_grid = len(p.mask) // p.mask_group_num
    for t, x in enumerate(layer.bottoms):
        n, _, height, width = x.shape
        for image, row, column, k in np.ndindex(n, height, width, p.num_box):
            each = 5 + p.num_classes
            own = x[image, k * each : (k + 1) * each, row, column]
            scores = _sigmoid(own[5:]) * _sigmoid(own[4])
            anchor = int(p.mask[k + t * per_grid])
            at = (column + _sigmoid(own[0])) / width, (row + _sigmoid(own[1])) / height
            net = (width * p.anchors_scale[t], height * p.anchors_scale[t])
            size = [math.exp(own[2 + s]) * p.biases[2 * anchor + s] / net[s] for s in (0, 1)]
            for label in np.flatnonzero(scores > p.confidence_threshold):
                images[image].append((float(scores[label]), int(label), float(at[0]), float(at[1]), *size))
    return _best(images, p.nms_threshold)


# -- peaks --------------------------------------------------------------------------------------------------------


@formula("Nms")
def nms(layer: Layer) -> Result:
    """OpenPose's peaks: pixels greater than their eight neighbors, at the center of the positive scores around.

    The source bounds rows by the width, so that those after the last are read from the map that follows, and reads the
    maps of one image only. Source: nms_layer.cu (caffe_rtpose).
    """
    p, x = layer.param.nms_param, layer.x
    height, width = x.shape[2:]
    top = np.zeros((len(x), p.num_parts, p.max_peaks + 1, 3))
    for image, part in np.ndindex(*top.shape[:2]):
        rows = x[image, part:].reshape(-1, width)
        peaks = []
        for row, column in np.ndindex(height, width):
            around = rows[row - 1 : row + 2, column - 1 : column + 2]
            inner = 0 < row < height - 1 and 0 < column < width - 1
            if inner and rows[row, column] > p.threshold and (around >= rows[row, column]).sum() == 1:
                peaks.append((row, column))
        for k, (row, column) in enumerate(peaks[: p.max_peaks]):
            total = np.zeros(3)
            for y in range(row - 3, row + 4):
                for at in range(column - 3, column + 4):
                    if 0 < y < min(width, len(rows)) and 0 < at < width and rows[y, at] > 0:
                        total += rows[y, at] * np.array([at, y, 1])
            top[image, part, k + 1] = [*total[:2] / total[2], rows[row, column]]
        top[image, part, 0, 0] = min(len(peaks), p.max_peaks)
    return top


@formula("RegionPooling")
def region_pooling(layer: Layer) -> Result:
    """The greatest value or 0 of each bin, without what is inside the inner rectangle.

    Source: region_pooling_layer.cpp (gidariss/caffe_LocNet).
    """
    p, (x, rois) = layer.param.region_pooling_param, layer.bottoms
    top = np.zeros((len(rois), x.shape[1], p.pooled_h, p.pooled_w))
    for r, (image, *corners) in enumerate(rois.reshape(len(rois), 9)):
        own = x[min(max(int(image), 0), len(x) - 1)]
        outer, inner = (_pixels_of(corners[k : k + 4], p.spatial_scale, p.offset) for k in (0, 4))
        left, up, right, down = outer
        for i, j in np.ndindex(p.pooled_h, p.pooled_w):
            high, wide = max(down - up + 1, 1) / p.pooled_h, max(right - left + 1, 1) / p.pooled_w
            for row in range(up + math.floor(i * high), up + math.ceil((i + 1) * high)):
                for column in range(left + math.floor(j * wide), left + math.ceil((j + 1) * wide)):
                    there = 0 <= row < x.shape[2] and 0 <= column < x.shape[3]
                    hidden = inner[0] < column < inner[2] and inner[1] < row < inner[3]
                    if there and not hidden:
                        top[r, :, i, j] = np.maximum(top[r, :, i, j], own[:, row, column])
    return top


def _pixels_of(corners: list[float], scale: float, offset: float) -> tuple[int, ...]:
    start = [math.floor((v + 1 + offset) * scale + 0.5) for v in corners[:2]]
    end = [math.ceil((v + 1 - offset) * scale - 0.5) for v in corners[2:]]
    both = [(a, b) if a <= b else (int((a + b) / 2),) * 2 for a, b in zip(start, end, strict=True)]
    return (*(a for a, _ in both), *(b for _, b in both))
