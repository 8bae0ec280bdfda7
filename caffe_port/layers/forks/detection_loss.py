"""The loss and evaluation of single-shot detection. Source: src/caffe/layers of the SSD fork."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.layers.forks.detection import decode, split_priors
from caffe_port.layers.layer import Layer
from caffe_port.layers.loss import normalization
from caffe_port.signatures.forks.detection_loss import mining_type
from caffe_port.typing import Shape


class MultiBoxLoss(Layer):
    """SSD's loss: matches the priors with the true boxes; smooth L1 or L2 for the corrections of those that match one,
    softmax or logistic loss for their classes and those of the hardest of the others.

    Takes loc (N, P * 4), conf (N, P * num_classes), the priors (1, 2, P * 4) and the labels (1, 1, boxes, 8): image,
    label, instance, x1, y1, x2, y2, difficult. The sum is divided by the number of matches (normalization VALID).

    Not supported: share_location false, mining_type HARD_EXAMPLE, nms_param, bp_inside, logistic loss without mining.
    Reference: weiliu89/caffe multibox_loss_layer.cpp, bbox_util.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        divisor, p = normalization(p.loss_param, "VALID"), p.multibox_loss_param
        if math.prod(bottoms[3][-1:]) != 8:
            raise SpecError(f"the labels have shape {bottoms[3]}, expected (1, 1, boxes, 8)")
        return {
            "num_classes": p.num_classes,
            "loc_loss_type": p.loc_loss_type,
            "conf_loss_type": p.conf_loss_type,
            "loc_weight": p.loc_weight,
            "per_prediction": p.match_type == "PER_PREDICTION",
            "overlap_threshold": p.overlap_threshold,
            "use_prior_for_matching": p.use_prior_for_matching,
            "background_label_id": p.background_label_id,
            "use_difficult_gt": p.use_difficult_gt,
            "mining": mining_type(p) != "NONE",
            "neg_pos_ratio": p.neg_pos_ratio,
            "neg_overlap": p.neg_overlap,
            "code_type": p.code_type,
            "encode_variance_in_target": p.encode_variance_in_target,
            "map_object_to_agnostic": p.map_object_to_agnostic,
            "ignore_cross_boundary_bbox": p.ignore_cross_boundary_bbox,
            "normalization": divisor,
        }

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
        mining: bool = True,
        neg_pos_ratio: float = 3.0,
        neg_overlap: float = 0.5,
        code_type: str = "CORNER",
        encode_variance_in_target: bool = False,
        map_object_to_agnostic: bool = False,
        ignore_cross_boundary_bbox: bool = False,
        normalization: str = "VALID",
    ) -> None:
        super().__init__()
        self.num_classes, self.background_label_id = num_classes, background_label_id
        self.loc_loss_type, self.conf_loss_type, self.loc_weight = loc_loss_type, conf_loss_type, loc_weight
        self.per_prediction, self.overlap_threshold = per_prediction, overlap_threshold
        self.use_prior_for_matching, self.use_difficult_gt = use_prior_for_matching, use_difficult_gt
        self.mining, self.neg_pos_ratio, self.neg_overlap = mining, neg_pos_ratio, neg_overlap
        self.code_type, self.encode_variance_in_target = code_type, encode_variance_in_target
        self.map_object_to_agnostic, self.ignore_cross_boundary_bbox = (
            map_object_to_agnostic,
            ignore_cross_boundary_bbox,
        )
        self.normalization = normalization

    def forward(self, loc: Tensor, conf: Tensor, priors: Tensor, label: Tensor) -> Tensor:
        boxes, variances = split_priors(priors)
        loc, conf = loc.reshape(loc.shape[0], -1, 4), conf.reshape(loc.shape[0], -1, self.num_classes)
        # Whether the variances belong to the code or to the target, what the loss compares is divided by them.
        scale = variances if self.encode_variance_in_target else torch.ones_like(variances)
        truth = label.reshape(-1, 8)
        if not self.use_difficult_gt:
            truth = truth[truth[:, 7] == 0]
        loc_loss = conf_loss = loc.sum() * 0 + conf.sum() * 0
        matches = 0
        for image in range(loc.shape[0]):
            true = truth[truth[:, 0] == image]
            if not len(true):
                if not self.mining:
                    conf_loss = conf_loss + self.class_losses(conf[image], self.background(conf[image])).sum()
                continue
            proposed = boxes
            if not self.use_prior_for_matching:
                decoding = torch.ones_like(variances) if self.encode_variance_in_target else variances
                proposed = decode(loc[image].detach(), boxes, decoding, self.code_type)
            match, overlap = self.match(proposed, true[:, 3:7])
            hit = match >= 0
            matches += int(hit.sum())
            target = encode(true[match[hit], 3:7], boxes[hit], variances[hit], self.code_type)
            loc_loss = loc_loss + self.box_loss(loc[image, hit] / scale[hit], target)
            classes = self.background(conf[image])
            classes[hit] = self.background_label_id + 1 if self.map_object_to_agnostic else true[match[hit], 1].long()
            losses = self.class_losses(conf[image], classes)
            counted = hit | self.hardest(losses, (match == -1) & (overlap < self.neg_overlap), int(hit.sum()))
            conf_loss = conf_loss + (losses[counted] if self.mining else losses).sum()
        count = {"VALID": matches, "FULL": loc.shape[0] * loc.shape[1], "BATCH_SIZE": loc.shape[0], "NONE": 1}
        return (self.loc_weight * loc_loss + conf_loss) / max(count[self.normalization], 1)

    def infer(self, *bottoms: Tensor) -> Tensor:
        return bottoms[0].new_empty(())

    def background(self, conf: Tensor) -> Tensor:
        return torch.full_like(conf[:, 0], self.background_label_id, dtype=torch.long)

    def box_loss(self, box: Tensor, target: Tensor) -> Tensor:
        if self.loc_loss_type == "L2":
            return (box - target).square().sum() / 2
        return F.smooth_l1_loss(box, target, reduction="sum")

    def class_losses(self, conf: Tensor, classes: Tensor) -> Tensor:
        """The loss of every prior, (P,), for scores (P, classes) and a class for each."""
        if self.conf_loss_type == "SOFTMAX":
            return F.cross_entropy(conf, classes, reduction="none")
        target = F.one_hot(classes, self.num_classes).to(conf.dtype)
        return F.binary_cross_entropy_with_logits(conf, target, reduction="none").sum(1)

    def hardest(self, losses: Tensor, eligible: Tensor, hits: int) -> Tensor:
        """Marks neg_pos_ratio times as many priors as there are hits: the eligible ones of the greatest loss."""
        count = min(int(hits * self.neg_pos_ratio), int(eligible.sum()))
        order = losses.detach().where(eligible, -math.inf).sort(descending=True, stable=True).indices
        chosen = torch.zeros_like(eligible)
        chosen[order[:count]] = True
        return chosen

    def match(self, boxes: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """For every box, (P,): the index of its true box, -1 (none) or -2 (ignored); and its greatest overlap.

        First every true box gets the box which overlaps it most; then every other box the true box that it overlaps
        most, if by overlap_threshold at least.
        """
        import torchvision  # here: it takes as long to load as torch itself, and few nets need it

        overlaps = torchvision.ops.box_iou(boxes.detach(), true)
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
            match = torch.where((match == -1) & (greatest >= self.overlap_threshold), best, match)
        return match, greatest.clamp(min=0)


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
