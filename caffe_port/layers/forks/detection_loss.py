"""The loss and evaluation of single-shot detection. Source: src/caffe/layers of the SSD fork."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_port.formats.message import Message
from caffe_port.layers.forks.detection import area, decode, jaccard_overlap, split_priors, suppress
from caffe_port.layers.layer import Layer
from caffe_port.layers.loss import clamp_value, normalization
from caffe_port.signatures.forks.detection_loss import mining_type, read_sizes
from caffe_port.typing import Shape

FLT_MIN = torch.finfo(torch.float32).tiny


class MultiBoxLoss(Layer):
    """SSD's loss: matches the priors with the true boxes; smooth L1 or L2 for the corrections of those that match one,
    softmax or logistic loss for their classes and those of the hardest of the others.

    Takes loc (N, P * 4), conf (N, P * num_classes), the priors (1, 2, P * 4) and the labels (1, 1, boxes, 8): image,
    label, instance, x1, y1, x2, y2, difficult. The sum is divided by the number of matches (normalization VALID). With
    ``share_location: false``, loc (N, P * num_classes * 4) has a correction for every class. ``propagate_down: false``
    for loc or conf leaves that loss out.

    Follows Caffe where its gradient is not the derivative: with encode_variance_in_target it lacks the division by the
    variance, and below a softmax of FLT_MIN the loss stays at 87.3365 while the gradient does not vanish. Logistic loss
    takes ``background_label_id`` as the target of all other classes, and without mining it puts the targets of later
    images where :meth:`targets` says, both as SSD does. Of equal losses the earlier box is mined first; in SSD, the
    order is undefined.
    Reference: weiliu89/caffe multibox_loss_layer.cpp, bbox_util.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        counts = [bool(flag) for flag in p.propagate_down[:2]] or [True, True]
        divisor, p = normalization(p.loss_param, "VALID"), p.multibox_loss_param
        mining, nms = mining_type(p), p.nms_param
        args: dict[str, Any] = {
            "num_classes": p.num_classes,
            "loc_loss_type": p.loc_loss_type,
            "conf_loss_type": p.conf_loss_type,
            "loc_weight": p.loc_weight,
            "per_prediction": p.match_type == "PER_PREDICTION",
            "overlap_threshold": p.overlap_threshold,
            "use_prior_for_matching": p.use_prior_for_matching,
            "background_label_id": p.background_label_id,
            "use_difficult_gt": p.use_difficult_gt,
            "mining": mining,
            "neg_pos_ratio": p.neg_pos_ratio,
            "neg_overlap": p.neg_overlap,
            "code_type": p.code_type,
            "encode_variance_in_target": p.encode_variance_in_target,
            "map_object_to_agnostic": p.map_object_to_agnostic,
            "ignore_cross_boundary_bbox": p.ignore_cross_boundary_bbox,
            "normalization": divisor,
        }
        args |= {} if p.share_location else {"share_location": False}
        args |= {"bp_inside": True} if p.bp_inside else {}
        args |= {"sample_size": p.sample_size} if mining == "HARD_EXAMPLE" else {}
        if mining != "NONE" and p.has("nms_param") and nms.nms_threshold > 0:  # top_k: 0 where it is not given
            args |= {"nms_threshold": nms.nms_threshold, "nms_top_k": nms.top_k if nms.top_k > -1 else None}
            args |= {"use_prior_for_nms": p.use_prior_for_nms}
        return args | ({} if all(counts) else {"counts": tuple(counts)})

    def __init__(
        self,
        num_classes: int,
        loc_loss_type: str = "SMOOTH_L1",
        conf_loss_type: str = "SOFTMAX",
        loc_weight: float = 1.0,
        per_prediction: bool = True,
        overlap_threshold: float = 0.5,
        use_prior_for_matching: bool = True,
        background_label_id: int = 0,
        use_difficult_gt: bool = True,
        mining: str = "MAX_NEGATIVE",
        neg_pos_ratio: float = 3.0,
        neg_overlap: float = 0.5,
        code_type: str = "CORNER",
        encode_variance_in_target: bool = False,
        map_object_to_agnostic: bool = False,
        ignore_cross_boundary_bbox: bool = False,
        normalization: str = "VALID",
        share_location: bool = True,
        bp_inside: bool = False,
        sample_size: int = 64,
        nms_threshold: float = 0.0,
        nms_top_k: int | None = None,
        use_prior_for_nms: bool = False,
        counts: tuple[bool, bool] = (True, True),
    ) -> None:
        super().__init__()
        self.num_classes, self.background_label_id = num_classes, background_label_id
        self.loc_loss_type, self.conf_loss_type, self.loc_weight = loc_loss_type, conf_loss_type, loc_weight
        self.per_prediction, self.overlap_threshold = per_prediction, overlap_threshold
        self.use_prior_for_matching, self.use_difficult_gt = use_prior_for_matching, use_difficult_gt
        self.mining, self.neg_pos_ratio, self.neg_overlap = mining, neg_pos_ratio, neg_overlap
        self.code_type, self.encode_variance_in_target = code_type, encode_variance_in_target
        self.map_object_to_agnostic = map_object_to_agnostic
        self.ignore_cross_boundary_bbox = ignore_cross_boundary_bbox
        self.normalization, self.counts = normalization, counts
        self.share_location, self.bp_inside, self.sample_size = share_location, bp_inside, sample_size
        self.nms_threshold, self.nms_top_k, self.use_prior_for_nms = nms_threshold, nms_top_k, use_prior_for_nms

    def forward(self, loc: Tensor, conf: Tensor, priors: Tensor, label: Tensor) -> Tensor:
        boxes, variances = split_priors(priors.detach())  # priors and labels have no gradient
        loc = loc.reshape(loc.shape[0], boxes.shape[0], -1, 4)
        conf = conf.reshape(loc.shape[0], -1, self.num_classes)
        truth = label.detach().reshape(-1, 8)
        if not self.use_difficult_gt:
            truth = truth[truth[:, 7] == 0]
        # Zero, and yet a part of the graph: where nothing matches, the gradient is 0.
        loc_loss, conf_loss = loc.flatten()[:0].sum(), conf.flatten()[:0].sum()
        all_matches: list[dict[int, Tensor]] = []
        trues = [truth[truth[:, 0].trunc() == image] for image in range(loc.shape[0])]
        for image, true in enumerate(trues):
            found = dict(self.matches(loc[image].detach(), boxes, variances, true)) if len(true) else {}
            all_matches.append({k: match for k, (match, _) in found.items()})
            if found and self.mining != "NONE":
                ((k, (match, overlap)),) = found.items()
                classes = self.classes(match, true)
                with torch.no_grad():
                    losses = self.class_losses(conf[image], classes)
                    if self.mining == "HARD_EXAMPLE":
                        losses = losses + self.box_losses(loc[image, :, k], boxes, variances, match, true)
                    chosen = self.hardest(losses, match, overlap, loc[image, :, k], boxes, variances)
                counted = (match >= 0) | chosen
                if self.mining == "HARD_EXAMPLE":
                    counted = chosen & (match > -2)
                    all_matches[image][k] = match.where(chosen | (match < 0), -1)
                conf_loss = (
                    conf_loss
                    + self.class_losses(conf[image, counted], classes[counted], self.background_label_id).sum()
                )
            for k, match in all_matches[image].items():
                loc_loss = loc_loss + self.box_losses(loc[image, :, k], boxes, variances, match, true).sum()
        if self.mining == "NONE":
            conf_loss = conf_loss + self.all_class_losses(conf, all_matches, trues)
        matches = sum(int((match >= 0).sum()) for found in all_matches for match in found.values())
        count = {"VALID": matches, "FULL": loc.shape[0] * loc.shape[1], "BATCH_SIZE": loc.shape[0], "NONE": 1}
        total = loc.new_zeros(())
        if self.counts[0]:
            total = total + self.loc_weight * loc_loss
        if self.counts[1]:
            total = total + conf_loss
        return total / max(count[self.normalization], 1)

    def infer(self, *bottoms: Tensor) -> Tensor:
        return bottoms[0].new_empty(())

    def matches(
        self, loc: Tensor, boxes: Tensor, variances: Tensor, true: Tensor
    ) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """For every class that has corrections of its own (0: all share them), what :meth:`match` says of one image."""
        decoding = torch.ones_like(variances) if self.encode_variance_in_target else variances
        shared = self.match(boxes, true) if self.use_prior_for_matching else None
        for k in range(loc.shape[1]):
            if self.share_location:
                yield k, shared or self.match(decode(loc[:, k], boxes, decoding, self.code_type), true)
            elif k != self.background_label_id:
                own = true[:, 1].trunc() == k
                if shared:
                    match, overlap = shared
                    yield k, (match.where((match >= 0) & own[match.clamp(min=0)], -1), overlap)
                elif own.any():
                    proposed = decode(loc[:, k], boxes, decoding, self.code_type)
                    match, overlap = self.match(proposed, true[own])
                    yield k, (own.nonzero().squeeze(1)[match.clamp(min=0)].where(match >= 0, match), overlap)

    def classes(self, match: Tensor, true: Tensor) -> Tensor:
        """The class of every prior: that of its true box, else the background."""
        labels = true[match.clamp(min=0), 1].long()
        if self.map_object_to_agnostic:
            labels = torch.full_like(labels, self.background_label_id + 1)
        return labels.where(match >= 0, self.background_label_id)

    def box_losses(self, loc: Tensor, boxes: Tensor, variances: Tensor, match: Tensor, true: Tensor) -> Tensor:
        """The loss of the correction of every prior, (P,); 0 where it has no true box."""
        hit = match >= 0
        box, boxes, variances = loc[hit], boxes[hit], variances[hit]
        inside = torch.ones_like(variances) if self.encode_variance_in_target else variances
        target = encode(true[match[hit], 3:7], boxes, inside, self.code_type)
        if self.bp_inside:
            if not self.use_prior_for_matching:
                boxes = decode(box.detach(), boxes, inside, self.code_type)
            box = target.where((boxes < 0) | (boxes > 1), box)
        if self.encode_variance_in_target:  # Caffe's gradient lacks this division
            box, target = (box / variances).detach() + (box - box.detach()), target / variances
        off = box - target
        losses = off.square() / 2 if self.loc_loss_type == "L2" else F.smooth_l1_loss(box, target, reduction="none")
        return loc.new_zeros(loc.shape[0]).index_put((hit.nonzero().squeeze(1),), losses.sum(1))

    def class_losses(self, conf: Tensor, classes: Tensor, others: float = 0.0) -> Tensor:
        """The loss of every prior, (P,), for scores (P, classes) and a class for each.

        Args:
            others: the target of the other classes, for the logistic loss.
        """
        if self.conf_loss_type == "SOFTMAX":
            chosen = conf.log_softmax(1).gather(1, classes[:, None]).squeeze(1)
            return -clamp_value(chosen, math.log(FLT_MIN))
        target = torch.full_like(conf, others).scatter(1, classes[:, None], 1.0)
        return F.binary_cross_entropy_with_logits(conf, target, reduction="none").sum(1)

    def all_class_losses(
        self, conf: Tensor, all_matches: Sequence[Mapping[int, Tensor]], trues: Sequence[Tensor]
    ) -> Tensor:
        """The loss of all classes (N, P, classes) without mining."""
        scores = conf.flatten(0, 1)
        if self.conf_loss_type == "SOFTMAX":
            labels = torch.full_like(conf[..., 0], self.background_label_id, dtype=torch.long)
            for image, found in enumerate(all_matches):
                for match in found.values():
                    labels[image] = self.classes(match, trues[image]).where(match >= 0, labels[image])
            return self.class_losses(scores, labels.flatten()).sum()
        return F.binary_cross_entropy_with_logits(scores, self.targets(conf, all_matches, trues), reduction="sum")

    def targets(self, conf: Tensor, all_matches: Sequence[Mapping[int, Tensor]], trues: Sequence[Tensor]) -> Tensor:
        """1 for the classes of the true boxes, (N * P, classes); those of image n begin P numbers after those of the
        image before, not P * classes: EncodeConfPrediction."""
        target = torch.full_like(conf, self.background_label_id).flatten()
        for image, found in enumerate(all_matches):
            for match in found.values():
                prior = (match >= 0).nonzero().squeeze(1)
                label = self.classes(match, trues[image])[prior]
                target[image * conf.shape[1] + prior * self.num_classes + label] = 1
        return target.reshape(-1, self.num_classes)

    def hardest(
        self, losses: Tensor, match: Tensor, overlap: Tensor, loc: Tensor, boxes: Tensor, variances: Tensor
    ) -> Tensor:
        """Marks the priors of the greatest loss: of those without an object neg_pos_ratio times as many as there are
        with one, or sample_size of all."""
        if self.mining == "HARD_EXAMPLE":
            candidates, count = torch.arange(len(losses), device=losses.device), self.sample_size
        else:
            candidates = ((match == -1) & (overlap < self.neg_overlap)).nonzero().squeeze(1)
            count = max(0, int((match >= 0).sum().to(losses.dtype) * self.neg_pos_ratio))
        order = candidates[losses[candidates].sort(descending=True, stable=True).indices]
        if self.nms_threshold > 0:
            if not self.use_prior_for_nms:
                decoding = torch.ones_like(variances) if self.encode_variance_in_target else variances
                boxes = decode(loc, boxes, decoding, self.code_type)
            order = order[: self.nms_top_k]
            order = order[area(boxes[order]) >= 1e-5]
            order = order[suppress(boxes[order], losses[order], self.nms_threshold)][: self.nms_top_k]
        chosen = torch.zeros_like(match, dtype=torch.bool)
        chosen[order[:count]] = True
        return chosen

    def match(self, boxes: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """For every box, (P,): the index of its true box, -1 (none) or -2 (ignored); and its greatest overlap.

        First every true box gets the box which overlaps it most; then every other box the true box that it overlaps
        most, if by overlap_threshold at least.
        """
        overlaps = jaccard_overlap(boxes, true[:, 3:7])
        overlaps = overlaps.where(overlaps > 1e-6, -1)
        match = torch.full_like(overlaps[:, 0], -1, dtype=torch.long)
        if self.ignore_cross_boundary_bbox:
            outside = ((boxes < 0) | (boxes > 1)).any(1)
            match[outside], overlaps[outside] = -2, -1
        greatest, best = overlaps.max(1)
        free = overlaps.clone()
        for _ in range(true.shape[0]):
            top = int(free.argmax())
            i, j = divmod(top, true.shape[0])
            if free[i, j] < 0:
                break
            match[i] = j
            free[i], free[:, j] = -1, -1
        if self.per_prediction:
            # Without an overlap there is no pair, even if overlap_threshold is 0.
            match = torch.where((match == -1) & (greatest >= max(self.overlap_threshold, 0)), best, match)
        return match, greatest.clamp(min=0)


class DetectionEvaluate(Layer):
    """Which detections are right: what the average precision of SSD's test nets is computed from.

    Takes the detections (1, 1, found, 7), rows of DetectionOutput, and the labels (1, 1, boxes, 8) of MultiBoxLoss up
    to the first of image -1. Gives (1, 1, classes + found, 5): for every class but the background a row -1, class,
    number of true boxes, -1, -1; then a row image, label, score, right, wrong for each detection, by image and label,
    the best score first. A detection is right if it is the first that overlaps a true box of its class by
    overlap_threshold; another one is wrong. A difficult box that need not be found (evaluate_difficult_gt: false) makes
    it neither. Rows that are left over, for the detections of image -1, are 0.

    ``name_size_file`` (a line "name height width" for each image) makes the overlaps those of boxes in pixels; images
    without detections are not counted, as in Caffe.

    Reference: weiliu89/caffe detection_evaluate_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        args: dict[str, Any] = {
            "num_classes": p.num_classes,
            "background_label_id": p.background_label_id,
            "overlap_threshold": p.overlap_threshold,
            "evaluate_difficult_gt": p.evaluate_difficult_gt,
        }
        return args | ({"sizes": tuple(read_sizes(p.name_size_file))} if p.name_size_file else {})

    def __init__(
        self,
        num_classes: int,
        background_label_id: int = 0,
        overlap_threshold: float = 0.5,
        evaluate_difficult_gt: bool = True,
        sizes: tuple[tuple[int, int], ...] = (),
    ) -> None:
        super().__init__()
        self.num_classes, self.background_label_id = num_classes, background_label_id
        self.overlap_threshold, self.evaluate_difficult_gt = overlap_threshold, evaluate_difficult_gt
        self.sizes, self.next_image = sizes, 0

    def forward(self, found: Tensor, label: Tensor) -> Tensor:
        found, label = found.detach().reshape(-1, 7), label.detach().reshape(-1, 8)
        padding = (label[:, 0].trunc() == -1).nonzero()
        true = label[: int(padding[0])] if len(padding) else label
        counted = true if self.evaluate_difficult_gt else true[true[:, 7] == 0]
        classes = [c for c in range(self.num_classes) if c != self.background_label_id]
        rows = [[-1, c, float((counted[:, 1].trunc() == c).sum()), -1, -1] for c in classes]
        detections = found[found[:, 0].trunc() != -1]
        images, labels = detections[:, 0].trunc(), detections[:, 1].trunc()
        for image in sorted(set(images.tolist())):
            scale = found.new_ones(4)
            if self.sizes:
                height, width = self.sizes[self.next_image]
                scale = scale * found.new_tensor([width, height, width, height])
                self.next_image = (self.next_image + 1) % len(self.sizes)
            for c in sorted(set(labels[images == image].tolist())):
                own = detections[(images == image) & (labels == c)]
                these = true[(true[:, 0].trunc() == image) & (true[:, 1].trunc() == c)]
                right, wrong = self.judge(own, these, scale) if len(these) else ([0] * len(own), [1] * len(own))
                if len(these):
                    own = own[own[:, 2].sort(descending=True, stable=True).indices]
                rows += [[image, c, s, r, w] for s, r, w in zip(own[:, 2].tolist(), right, wrong, strict=True)]
        rows += [[0.0] * 5] * (len(classes) + len(found) - len(rows))
        return found.new_tensor(rows).reshape(1, 1, -1, 5)

    def infer(self, *bottoms: Tensor) -> Tensor:
        classes = self.num_classes - (self.background_label_id < self.num_classes)
        return bottoms[0].new_empty(1, 1, classes + bottoms[0].shape[2], 5)

    def judge(self, own: Tensor, true: Tensor, scale: Tensor) -> tuple[list[int], list[int]]:
        """Whether each of the detections of a class in an image is right, and whether it is wrong; the best first."""
        own = own[own[:, 2].sort(descending=True, stable=True).indices]
        overlaps = jaccard_overlap(own[:, 3:7] * scale, true[:, 3:7] * scale, pixels=bool(self.sizes))
        right, wrong, seen = [0] * len(own), [0] * len(own), set()
        for i, (overlap, j) in enumerate(zip(*(t.tolist() for t in overlaps.max(1)), strict=True)):
            if overlap < self.overlap_threshold:
                wrong[i] = 1
            elif self.evaluate_difficult_gt or not true[j, 7]:
                (wrong if j in seen else right)[i] = 1
                seen.add(j)
        return right, wrong


def encode(boxes: Tensor, priors: Tensor, variances: Tensor, code_type: str) -> Tensor:
    """What the net should say about the priors: the inverse of :func:`caffe_port.layers.forks.detection.decode`."""
    size = priors[..., 2:] - priors[..., :2]
    if code_type == "CENTER_SIZE":
        center = (boxes[..., :2] + boxes[..., 2:] - priors[..., :2] - priors[..., 2:]) / 2 / size
        code = torch.cat((center, ((boxes[..., 2:] - boxes[..., :2]) / size).log()), -1)
    else:
        code = boxes - priors
        if code_type == "CORNER_SIZE":
            code = code / torch.cat((size, size), -1)
    return code / variances
