"""Detectors: prior boxes, what is made of them, the loss and the evaluation. Loops over boxes, as in the sources."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from caffe_port.formats.message import Message
from caffe_port.typing import Array
from caffe_port.verification.references.numpy_formulas.formulas import FLT_MIN, Layer, Result, formula, rounded


def _at_pixel(p: Message) -> list[tuple[float, float, float, float, float]]:
    """The boxes at a pixel: width, height, how far right and down, and what is cut off each side of the image."""
    wide, high = (p.box_width, p.box_height) if p.has("box_width") else (p.width, p.height)
    if wide:
        return [(w, h, 0, 0, 0) for w, h in zip(wide, high, strict=True)]
    keras, tf = p.has("keras") and p.keras, p.has("tf") and p.tf
    given = list(p.aspect_ratio)
    later = [1 / ratio for ratio in given] if p.flip and keras else []
    ratios: list[float] = []
    for ratio in (*given, *later):
        if all(abs(ratio - known) >= 1e-6 for known in (1, *ratios)):
            ratios += [ratio, 1 / ratio] if p.flip and not keras else [ratio]
    made: list[tuple[float, float, float, float, float]] = []
    for k, least in enumerate(int(size) for size in p.min_size):
        first = [(least, least, 0, 0, 0.05 if tf and not keras and least == 60 else 0)]
        if p.has("faceboxes") and p.faceboxes and not keras:
            many, apart = (4, 8) if least == 32 else (2, 16) if least == 64 else (1, 0)
            moves = [(n - many // 2) * apart for n in range(many)]
            first = [(least - 1, least - 1, x, y, 0) for y in moves for x in moves]
        root = [(math.sqrt(least * int(p.max_size[k])),) * 2 + (0, 0, 0)] if p.max_size else []
        others = [(least * math.sqrt(ratio), least / math.sqrt(ratio), 0, 0, 0) for ratio in ratios]
        for part in (root, first, others) if keras else (first, others, root) if tf else (first, root, others):
            made += part
    return made


@formula("PriorBox", "PriorBoxClustered")
def prior_box(layer: Layer) -> Result:
    """Corners in fractions of the image, then variances.

    Sources: prior_box_layer.cpp (SSD, OpenCV; TextBoxes++: every box again at the lower edge of its cell; FaceBoxes;
    Synopsys), OpenVINO.
    """
    own = layer.param
    p = own.prior_box_clustered_param if own.has("prior_box_clustered_param") else own.prior_box_param
    unknown = ("offset_h", "offset_w", "fixed_size", "fixed_ratio", "density")
    if any(p.has(name) for name in unknown):
        raise NotImplementedError("a PriorBox of another fork")
    cells, image = layer.x.shape[2:], layer.bottoms[1].shape[2:]
    if p.has("img_size"):
        image = (p.img_size, p.img_size)
    elif p.has("img_h") and p.has("img_w"):
        image = (p.img_h, p.img_w)
    step = [side / count for side, count in zip(image, cells, strict=True)]
    if p.has("step"):
        step = [p.step, p.step]
    elif p.has("step_h") and p.has("step_w"):
        step = [p.step_h, p.step_w]
    corners, cuts = [], []
    for row, column in itertools.product(*map(range, cells)):
        y, x = (row + p.offset) * step[0], (column + p.offset) * step[1]
        for width, height, right, lower, cut in _at_pixel(p):
            for down in (0, step[0] * (1 - p.offset)) if p.has("denser_prior_boxes") and p.denser_prior_boxes else (0,):
                left, top = x + right - width / 2, y + lower + down - height / 2
                corners.append([left, top, left + width, top + height])
                cuts.append([cut, cut, -cut, -cut])
    boxes = np.array(corners) / [image[1], image[0], image[1], image[0]] + cuts
    if p.has("yx_order") and p.yx_order:
        boxes = boxes[:, [1, 0, 3, 2]]
    variance = np.broadcast_to(list(p.variance) or [0.1], boxes.shape)
    return np.stack([np.clip(boxes, 0, 1) if p.clip else boxes, variance]).reshape(1, 2, -1)


# -- boxes --------------------------------------------------------------------------------------------------------


def _area(box: Array, pixel: int = 0) -> float:
    """BBoxSize of bbox_util.cpp."""
    width, height = box[2] - box[0], box[3] - box[1]
    return 0.0 if width < 0 or height < 0 else float((width + pixel) * (height + pixel))


def _overlap(a: Array, b: Array, pixel: int = 0) -> float:
    """JaccardOverlap of bbox_util.cpp; boxes that are apart have an intersection of four zeros there."""
    corners = np.concatenate((np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])))
    if (b[:2] > a[2:]).any() or (b[2:] < a[:2]).any():
        corners = np.zeros(4)
    width, height = corners[2] - corners[0] + pixel, corners[3] - corners[1] + pixel
    if width <= 0 or height <= 0:
        return 0.0
    return float(width * height / (_area(a, pixel) + _area(b, pixel) - width * height))


def _decode(code: Array, prior: Array, variance: Array, kind: str) -> Array:
    """DecodeBBox of bbox_util.cpp."""
    size = prior[2:] - prior[:2]
    if kind != "CENTER_SIZE":
        return np.asarray(prior + variance * code * (np.tile(size, 2) if kind == "CORNER_SIZE" else 1))
    center = (prior[:2] + prior[2:]) / 2 + variance[:2] * code[:2] * size
    half = np.exp(variance[2:] * code[2:]) * size / 2
    return np.concatenate((center - half, center + half))


def _encode(box: Array, prior: Array, variance: Array, kind: str) -> Array:
    """EncodeBBox of bbox_util.cpp."""
    size = prior[2:] - prior[:2]
    if kind != "CENTER_SIZE":
        return np.asarray((box - prior) / (np.tile(size, 2) if kind == "CORNER_SIZE" else 1) / variance)
    moved = ((box[:2] + box[2:]) / 2 - (prior[:2] + prior[2:]) / 2) / size
    return np.concatenate((moved, np.log((box[2:] - box[:2]) / size))) / variance


def _suppressed(boxes: Sequence[Array], best_first: Iterable[int], threshold: float, eta: float = 1) -> list[int]:
    """ApplyNMSFast of bbox_util.cpp."""
    kept: list[int] = []
    for i in best_first:
        if all(_overlap(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
            threshold *= eta if threshold > 0.5 else 1
    return kept


@formula("DetectionOutput")
def detection_output(layer: Layer) -> Result:
    """Rows image, label, score and corners. Source: detection_output_layer.cpp (SSD, RefineDet, TextBoxes++)."""
    p, bottoms = layer.param.detection_output_param, layer.bottoms
    if not p.normalized:
        raise NotImplementedError("a DetectionOutput of another fork")
    if len(bottoms) > 5 or (p.has("nbottom") and len(bottoms) >= 2 * p.nbottom + 1):
        loc, conf, priors = _of_maps(bottoms, p)
        bottoms = [loc, conf, priors]
    else:
        loc, conf, priors = bottoms[:3]
    priors, variances = priors.reshape(2, -1, 4)
    variances = np.ones_like(variances) if p.variance_encoded_in_target else variances
    images, count = len(loc), len(priors)
    codes = loc.reshape(images, count, -1, 12 if p.use_polygon else 4)
    scores = conf.reshape(images, count, p.num_classes)
    anchors = [priors] * images
    if len(bottoms) == 5:  # RefineDet
        thing = bottoms[3].reshape(images, count, 2)[..., 1:] >= p.objectness_score
        scores, first = np.where(thing, scores, 0), bottoms[4].reshape(images, count, 4)
        anchors = [
            np.array([_decode(first[n, i], priors[i], variances[i], p.code_type) for i in range(count)])
            for n in range(images)
        ]
    of = p.nms_param if p.has("nms_param") else p
    rows: list[list[float]] = []
    for n in range(images):
        found: list[list[float]] = []
        for label in (c for c in range(p.num_classes) if c != p.background_label_id):
            code = codes[n, :, 0 if p.share_location else label]
            boxes = [_decode(code[i, :4], anchors[n][i], variances[i], p.code_type) for i in range(count)]
            kept = list(range(count))
            if p.has("nms_param") or p.has("nms_threshold"):
                least = p.confidence_threshold if p.has("confidence_threshold") else -np.inf
                kept = sorted((i for i in kept if scores[n, i, label] > least), key=lambda i: -scores[n, i, label])
                limit = next((own.top_k for own in (p.nms_param, p) if own.has("top_k")), -1)
                kept = kept[: limit if limit > -1 else None]
                kept = _suppressed(boxes, kept, of.nms_threshold, p.nms_param.eta)
            for i in kept:
                polygon = _polygon(code[i, 4:], priors[i], variances[i]) if p.use_polygon else []
                found.append([n, label, scores[n, i, label], *boxes[i], *polygon])
        if -1 < p.keep_top_k < len(found):
            found = sorted(sorted(found, key=lambda row: -row[2])[: p.keep_top_k], key=lambda row: row[1])
        rows += found
    return np.array(rows or [[n, *[-1.0] * (14 if p.use_polygon else 6)] for n in range(images)])[None, None]


def _polygon(code: Array, prior: Array, variance: Array) -> list[float]:
    """DecodeBBoxPolygon of bbox_util.cpp (TextBoxes++)."""
    x1, y1, x2, y2 = prior
    moved = []
    for k, (x, y) in enumerate(((x1, y1), (x2, y1), (x2, y2), (x1, y2))):
        moved += [x + variance[0] * code[2 * k] * (x2 - x1), y + variance[1] * code[2 * k + 1] * (y2 - y1)]
    return moved


def _of_maps(bottoms: Sequence[Array], p: Message) -> tuple[Array, Array, Array]:
    """loc, conf and priors of feature maps that come one by one. Source: detection_output_layer.cpp (Synopsys)."""
    maps, images = p.nbottom, len(bottoms[0])
    locs, confs = bottoms[maps : 2 * maps], bottoms[:maps]
    priors = np.concatenate([one.reshape(2, -1) for one in bottoms[2 * maps :]], 1)
    if not p.no_permute:
        join = [np.concatenate([one.reshape(images, -1) for one in part], 1) for part in (locs, confs)]
        return join[0], join[1], priors
    loc: list[list[Array]] = [[] for _ in range(images)]
    conf: list[list[Array]] = [[] for _ in range(images)]
    boxes, first, classes = [], 0, 1 if p.share_location else p.num_classes
    for said, scores in zip(locs, confs, strict=True):
        count, cells = said.shape[1] // 4 // classes, said.shape[2] * said.shape[3]
        for box, cell in itertools.product(range(count), range(cells)):
            where = (cell // said.shape[3], cell % said.shape[3])
            for n in range(images):
                loc[n].append(said[(n, slice(box * classes * 4, (box + 1) * classes * 4), *where)])
                conf[n].append(scores.reshape(images, p.num_classes, count, cells)[n, :, box, cell])
            at = first + 4 * (cell * count + box)
            boxes.append(priors[0, at : at + 4])
        first += 4 * count * cells
    return np.array(loc), np.array(conf), np.stack((np.concatenate(boxes), priors[1]))


@formula("DetectionEvaluate")
def detection_evaluate(layer: Layer) -> Result:
    """True boxes of each class, then every detection: right, or wrong. Source: detection_evaluate_layer.cpp (SSD)."""
    p = layer.param.detection_evaluate_param
    if p.name_size_file:
        raise NotImplementedError("sizes from a file")
    found = [row for row in layer.x.reshape(-1, 7) if int(row[0]) != -1]
    true = list(itertools.takewhile(lambda row: int(row[0]) != -1, layer.bottoms[1].reshape(-1, 8)))
    counted = [int(row[1]) for row in true if p.evaluate_difficult_gt or not row[7]]
    classes = [c for c in range(p.num_classes) if c != p.background_label_id]
    rows = [[-1.0, c, counted.count(c), -1, -1] for c in classes]
    for image, label in sorted({(int(row[0]), int(row[1])) for row in found}):
        own = [row for row in found if (int(row[0]), int(row[1])) == (image, label)]
        boxes = [row for row in true if (int(row[0]), int(row[1])) == (image, label)]
        seen = set()
        for row in sorted(own, key=lambda row: -row[2]) if boxes else own:
            overlaps = [_overlap(row[3:], box[3:7]) for box in boxes]
            best = int(np.argmax(overlaps)) if boxes else -1
            right, wrong = 0, 1
            if boxes and overlaps[best] >= p.overlap_threshold:
                ignored = bool(boxes[best][7]) and not p.evaluate_difficult_gt
                right, wrong = int(not ignored and best not in seen), int(not ignored and best in seen)
                seen.add(best)
            rows.append([image, label, row[2], right, wrong])
    rows += [[0] * 5] * (len(classes) + layer.x.size // 7 - len(rows))
    return np.array(rows)[None, None]


# -- the loss -----------------------------------------------------------------------------------------------------


def _matches(p: Message, boxes: Sequence[Array], true: Sequence[Array]) -> tuple[list[int], list[float]]:
    """MatchBBox of bbox_util.cpp: the true box of every box, -1 or -2, and its greatest overlap."""
    match, greatest = [-1] * len(boxes), [0.0] * len(boxes)
    overlaps: dict[tuple[int, int], float] = {}
    for i, box in enumerate(boxes):
        if true and p.ignore_cross_boundary_bbox and (min(box) < 0 or max(box) > 1):
            match[i] = -2
            continue
        for j, row in enumerate(true):
            overlap = _overlap(box, row[3:7])
            if overlap > 1e-6:
                overlaps[i, j], greatest[i] = overlap, max(greatest[i], overlap)
    free = set(range(len(true)))
    while pairs := [pair for pair in overlaps if match[pair[0]] == -1 and pair[1] in free]:
        i, j = max(pairs, key=lambda pair: (overlaps[pair], -pair[0], -pair[1]))
        match[i] = j
        free.remove(j)
    if p.match_type == "PER_PREDICTION":
        for i in (i for i in range(len(boxes)) if match[i] == -1):
            near = [(o, -j) for (k, j), o in overlaps.items() if k == i and o >= p.overlap_threshold]
            match[i] = -max(near)[1] if near else -1
    return match, greatest


def _class_loss(p: Message, scores: Array, target: Array) -> float:
    """Softmax loss with the floor FLT_MIN, or logistic loss; ``target`` has a number for each class."""
    if p.conf_loss_type == "SOFTMAX":
        shifted = np.exp(scores - scores.max())
        return float(-np.log(max(shifted[int(target.argmax())] / shifted.sum(), FLT_MIN)))
    return float((np.maximum(scores, 0) - scores * target + np.log1p(np.exp(-np.abs(scores)))).sum())


def _box_losses(
    p: Message, code: Array, priors: Array, variances: Array, match: Sequence[int], true: list[Array]
) -> Array:
    """EncodeLocPrediction and the loss of the corrections, (P,)."""
    losses = np.zeros(len(priors))
    for i in (i for i, j in enumerate(match) if j >= 0):
        variance = np.ones(4) if p.encode_variance_in_target else variances[i]
        target, own = _encode(true[match[i]][3:7], priors[i], variance, p.code_type), code[i]
        if p.bp_inside:
            box = priors[i] if p.use_prior_for_matching else _decode(own, priors[i], variance, p.code_type)
            own = np.where((box < 0) | (box > 1), target, own)
        off = np.abs(own - target) / (variances[i] if p.encode_variance_in_target else 1)
        losses[i] = (off**2 / 2 if p.loc_loss_type == "L2" else np.where(off < 1, off**2 / 2, off - 0.5)).sum()
    return losses


def _mined(
    p: Message, losses: Array, boxes: Sequence[Array], match: Sequence[int], overlap: Sequence[float]
) -> list[int]:
    """MineHardExamples of bbox_util.cpp: which of the priors are chosen."""
    hard = p.mining_type == "HARD_EXAMPLE"
    eligible = [i for i in range(len(losses)) if hard or (match[i] == -1 and overlap[i] < p.neg_overlap)]
    count = p.sample_size if hard else int(np.float32(sum(j >= 0 for j in match)) * np.float32(p.neg_pos_ratio))
    order = sorted(eligible, key=lambda i: -losses[i])
    if p.has("nms_param") and p.nms_param.nms_threshold > 0:
        most = None if p.nms_param.top_k < 0 else p.nms_param.top_k
        large = [i for i in order[:most] if _area(boxes[i]) >= 1e-5]
        order = _suppressed(boxes, large, p.nms_param.nms_threshold)[:most]
    return order[:count]


@formula("MultiBoxLoss")
def multi_box_loss(layer: Layer) -> Result:
    """The losses of boxes and classes. Source: multibox_loss_layer.cpp (SSD)."""
    p, (_, conf, prior, label) = layer.param.multibox_loss_param, layer.bottoms
    priors, variances = prior.reshape(2, -1, 4)
    images, count, none = len(layer.x), len(priors), p.background_label_id
    codes, scores = layer.x.reshape(images, count, -1, 4), conf.reshape(images, count, p.num_classes)
    mining = p.mining_type != "NONE" and not (p.has("do_neg_mining") and not p.do_neg_mining)
    decoding = np.ones_like(variances) if p.encode_variance_in_target else variances
    targets = np.full(images * count * p.num_classes, float(none))
    if p.conf_loss_type == "SOFTMAX":
        targets = np.tile(np.eye(p.num_classes)[none], images * count)
    box_loss = class_loss = 0.0
    matches = 0
    for n in range(images):
        true = [r for r in label.reshape(-1, 8) if int(r[0]) == n and (p.use_difficult_gt or not r[7])]
        for k in range(codes.shape[2]) if true else ():
            if k == none and not p.share_location:
                continue
            predicted = [_decode(codes[n, i, k], priors[i], decoding[i], p.code_type) for i in range(count)]
            those = [j for j, r in enumerate(true) if p.share_location or int(r[1]) == k]
            if p.use_prior_for_matching:
                match, overlap = _matches(p, list(priors), true)
                match = [j if j in those or (j < 0 and p.share_location) else -1 for j in match]
            else:
                match, overlap = _matches(p, predicted, [true[j] for j in those])
                match = [those[j] if j >= 0 else j for j in match]
            classes = [(1 + none if p.map_object_to_agnostic else int(true[j][1])) if j >= 0 else none for j in match]
            ones = np.eye(p.num_classes)[classes]
            losses = _box_losses(p, codes[n, :, k], priors, variances, match, true)
            if mining:
                each = np.array([_class_loss(p, scores[n, i], ones[i]) for i in range(count)])
                if p.mining_type == "HARD_EXAMPLE":
                    each += losses
                chosen = set(_mined(p, each, list(priors) if p.use_prior_for_nms else predicted, match, overlap))
                if p.mining_type == "HARD_EXAMPLE":
                    chosen = {i for i in chosen if match[i] > -2}
                    match = [j if j < 0 or i in chosen else -1 for i, j in enumerate(match)]
                for i in sorted(chosen | {i for i, j in enumerate(match) if j >= 0}):
                    rest = 0 if p.conf_loss_type == "SOFTMAX" else none
                    class_loss += _class_loss(p, scores[n, i], np.where(ones[i], 1, rest))
            else:
                for i in (i for i, j in enumerate(match) if j >= 0):
                    if p.conf_loss_type == "SOFTMAX":
                        targets[(n * count + i) * p.num_classes :][: p.num_classes] = ones[i]
                    else:  # EncodeConfPrediction steps from image to image by the number of priors
                        targets[n * count + i * p.num_classes + classes[i]] = 1
            box_loss += losses[[i for i, j in enumerate(match) if j >= 0]].sum()
            matches += sum(j >= 0 for j in match)
    if not mining:
        for one, target in zip(scores.reshape(-1, p.num_classes), targets.reshape(-1, p.num_classes), strict=True):
            class_loss += _class_loss(p, one, target)
    counts = [bool(flag) for flag in layer.param.propagate_down[:2]] or [True, True]
    loss = layer.param.loss_param
    how = loss.normalization if loss.has("normalization") or not loss.has("normalize") else "BATCH_SIZE"
    how = "VALID" if not loss.has("normalization") and loss.normalize else how
    by = {"VALID": matches, "FULL": images * count, "BATCH_SIZE": images, "NONE": 1}[how]
    return np.asarray((counts[0] * p.loc_weight * box_loss + counts[1] * class_loss) / max(by, 1))


# -- two stages ---------------------------------------------------------------------------------------------------


@formula("ROIPooling")
def roi_pooling(layer: Layer) -> Result:
    """The greatest number in every bin of a region. Source: roi_pooling_layer.cpp (Fast R-CNN, MS-CNN)."""
    p, x, rois = layer.param.roi_pooling_param, layer.x, layer.bottoms[1].reshape(len(layer.bottoms[1]), 5)
    if p.has("spatial_scale_h") or p.has("spatial_scale_w"):
        raise NotImplementedError("a ROIPooling of another fork")
    sizes = [int(n) for n in p.pooled_size] or [p.pooled_h, p.pooled_w]
    bins = (sizes[0], sizes[-1])  # Intel's pooled_size is given once or twice
    top = np.zeros((len(rois), x.shape[1], *bins))
    single = np.float32  # as the source: an edge that is a whole number in exact arithmetic is rounded to a side
    for r, roi in enumerate(rois):
        more = (roi[3:] - roi[1:3] + 1) * p.pad_ratio
        corners = rounded(np.concatenate((roi[1:3] - more, roi[3:] + more)) * p.spatial_scale)
        for bin_ in itertools.product(*map(range, bins)):
            cut = []
            for axis, (k, count) in enumerate(zip(bin_, bins, strict=True)):
                first, side = corners[1 - axis], max(corners[3 - axis] - corners[1 - axis] + 1, 1)
                size = single(side) / single(count)
                edges = np.array([np.floor(single(k) * size), np.ceil(single(k + 1) * size)]) + first
                cut.append(slice(*edges.clip(0, x.shape[2 + axis]).astype(int)))
            window = x[int(roi[0])][:, cut[0], cut[1]]
            top[r, :, bin_[0], bin_[1]] = window.max((1, 2)) if window.size else 0
    return top


@formula("PSROIPooling")
def psroi_pooling(layer: Layer) -> Result:
    """The mean of every bin of a region, in a channel of its own. Source: psroi_pooling_layer.cu (R-FCN)."""
    p, x, rois = layer.param.psroi_pooling_param, layer.x, layer.bottoms[1].reshape(len(layer.bottoms[1]), 5)
    count = p.group_size
    channels = x.reshape(len(x), p.output_dim, count, count, *x.shape[2:])
    top = np.zeros((len(rois), p.output_dim, count, count))
    single = np.float32  # as the source: an edge that is a whole number in exact arithmetic is rounded to a side
    for r, roi in enumerate(rois):
        start = rounded(roi[1:3]).astype(single) * single(p.spatial_scale)
        end = (rounded(roi[3:]) + 1).astype(single) * single(p.spatial_scale)
        side = np.maximum(end - start, single(0.1)) / single(count)
        for row, column in np.ndindex(count, count):
            at = np.array([column, row], single)
            first = np.floor(at * side + start).clip(0, x.shape[:1:-1]).astype(int)
            last = np.ceil((at + 1) * side + start).clip(0, x.shape[:1:-1]).astype(int)
            window = channels[int(roi[0]), :, row, column, first[1] : last[1], first[0] : last[0]]
            top[r, :, row, column] = window.mean((1, 2)) if window.size else 0
    return top


@formula("Proposal")
def proposal(layer: Layer) -> Result:
    """Regions, and their scores. Sources: proposal_layer.cpp (PVANet; brocolli-caffe, where scale is in pixels)."""
    p, (score, delta, info) = layer.param.proposal_param, layer.bottoms
    base, center = p.base_size, (p.base_size - 1) / 2
    anchors = []
    for ratio, scale in itertools.product(p.ratio, p.scale):
        width = math.sqrt(base**2 / ratio)
        if p.scale_in_pixels:
            half = [int(side * scale / base - 0.5) / 2 for side in (width, width * ratio)]
        else:
            width = math.floor(width + 0.5)
            half = [(side * scale - 1) / 2 for side in (width, math.floor(width * ratio + 0.5))]
        anchors.append([center - half[0], center - half[1], center + half[0], center + half[1]])
    rois, scores = [], []
    for n in range(len(score)):
        size = info.reshape(len(info), -1)[n if len(info) > 1 and not p.scale_in_pixels else 0]
        least = p.min_size * np.array([1, 1] if p.scale_in_pixels else [size[min(3, len(size) - 1)], size[2]])
        boxes, own = [], []
        for y, x, k in np.ndindex(*score.shape[2:], len(anchors)):
            box = np.array(anchors[k]) + np.array([x, y, x, y]) * p.feat_stride
            code, wide = delta[n, 4 * k : 4 * k + 4, y, x], box[2:] - box[:2] + 1
            middle, half_size = box[:2] + wide / 2 + code[:2] * wide, np.exp(code[2:]) * wide / 2
            box = np.concatenate((middle - half_size, middle + half_size))
            box = np.maximum(np.minimum(box, [size[1] - 1, size[0] - 1] * 2), 0)
            boxes.append(box)
            own.append(score[n, len(anchors) + k, y, x] * bool((box[2:] - box[:2] + 1 >= least).all()))
        kept: list[int] = []
        for i in _best_first(own, p.pre_nms_topn):
            if len(kept) < p.post_nms_topn and all(_iou_of_pixels(boxes[i], boxes[j]) <= _threshold(p) for j in kept):
                kept.append(i)
        rois += [[n, *boxes[i]] for i in kept]
        scores += [own[i] for i in kept]
    return [np.array(rois), np.array(scores)][: layer.tops]


def _best_first(scores: Sequence[float], count: int) -> list[int]:
    """sort_box: a quicksort that swaps, so that equal scores end up where it leaves them."""
    rows = list(enumerate(scores))
    todo = [slice(0, len(rows))]
    while todo:
        part = todo.pop()
        pivot, *rest = rows[part]
        low, high = 0, len(rest) - 1
        while low <= high:
            while low < len(rest) and rest[low][1] >= pivot[1]:
                low += 1
            while high >= 0 and rest[high][1] <= pivot[1]:
                high -= 1
            if low <= high:
                rest[low], rest[high] = rest[high], rest[low]
                low, high = low + 1, high - 1
        # The last of the greater ones takes the place of the pivot.
        rows[part] = [rest[high], *rest[:high], pivot, *rest[high + 1 :]] if high >= 0 else [pivot, *rest]
        middle = part.start + high + 1
        todo += [slice(part.start, middle)] if high > 0 else []
        todo += [slice(middle + 1, part.stop)] if middle + 1 < min(count, part.stop - 1) else []
    return [index for index, _ in rows[:count]]


def _threshold(p: Message) -> float:
    return float(p.iou_threshold if p.has("iou_threshold") else p.nms_thresh)


def _iou_of_pixels(a: Array, b: Array) -> float:
    """nms.cpp: the last pixel belongs to a box, but boxes less than a pixel apart are apart."""
    if (a[:2] > b[2:]).any() or (a[2:] < b[:2]).any():
        return 0.0
    both = np.prod(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) + 1)
    return float(both / (np.prod(a[2:] - a[:2] + 1) + np.prod(b[2:] - b[:2] + 1) - both))
