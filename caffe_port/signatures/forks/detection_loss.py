"""The record of SSD's loss. Source: multibox_loss_layer.cpp."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.forks.detection import check_priors
from caffe_port.signatures.loss import LOSS
from caffe_port.signatures.signature import Trait, declare
from caffe_port.typing import Shape


def mining_type(p: Message) -> str:
    """How the hardest boxes without an object are chosen: MAX_NEGATIVE, HARD_EXAMPLE or NONE."""
    return "NONE" if p.has("do_neg_mining") and not p.do_neg_mining else str(p.mining_type)


def _multi_box_loss(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.multibox_loss_param
    mining = mining_type(p)
    refused = {
        "share_location: false": not p.share_location,
        "mining_type: HARD_EXAMPLE": mining == "HARD_EXAMPLE",
        "nms_param": p.nms_param.nms_threshold > 0 if p.has("nms_param") else False,
        "bp_inside: true": p.bp_inside,
        "conf_loss_type: LOGISTIC without mining": p.conf_loss_type == "LOGISTIC" and mining == "NONE",
    }
    for what, given in refused.items():
        if given:
            raise SpecError(f"multibox_loss_param with {what} is not supported")
    if not p.num_classes:
        raise SpecError("num_classes is missing")
    check_priors(bottoms, p.num_classes, True)
    return [()]


declare(
    "MultiBoxLoss",
    _multi_box_loss,
    message="multibox_loss_param",
    also=("loss_param",),
    bottoms=4,
    traits=LOSS | Trait.WHOLE_LAYER,
)
