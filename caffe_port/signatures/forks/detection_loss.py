"""The records of SSD's loss and evaluation. Sources: multibox_loss_layer.cpp, detection_evaluate_layer.cpp."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.forks.detection import PREDICTIONS, check_priors
from caffe_port.signatures.loss import LOSS
from caffe_port.signatures.signature import Holds, Trait, declare
from caffe_port.storage.files import map_file
from caffe_port.typing import Shape


def mining_type(p: Message) -> str:
    """How the hardest boxes without an object are chosen: MAX_NEGATIVE, HARD_EXAMPLE or NONE."""
    return "NONE" if p.has("do_neg_mining") and not p.do_neg_mining else str(p.mining_type)


def _multi_box_loss(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.multibox_loss_param
    mining = mining_type(p)
    if not p.num_classes:
        raise SpecError("num_classes is missing")
    if p.background_label_id >= p.num_classes:
        raise SpecError(f"background_label_id {p.background_label_id} is not in 0..{p.num_classes - 1}, the classes")
    if mining == "NONE" and p.has("do_neg_mining") and p.do_neg_mining:
        raise SpecError("do_neg_mining: true contradicts mining_type: NONE")
    if mining != "NONE" and not p.share_location:
        raise SpecError("share_location: false needs mining_type: NONE")
    if mining == "HARD_EXAMPLE" and p.sample_size < 1:
        raise SpecError(f"sample_size must be positive, got {p.sample_size}")
    if p.map_object_to_agnostic and (p.num_classes, p.background_label_id) != (2, 0):
        raise SpecError("map_object_to_agnostic needs num_classes: 2 and background_label_id: 0")
    if len(layer.propagate_down) not in (0, len(bottoms)):
        raise SpecError(f"{len(layer.propagate_down)} propagate_down; give none, or one for each of the 4 bottoms")
    if any(layer.propagate_down[2:]):
        raise SpecError("propagate_down: the priors and labels have no gradient; say false for them")
    check_priors(bottoms, p.num_classes, p.share_location)
    _check_labels(bottoms[3])
    return [()]


def _check_labels(labels: Shape) -> None:
    if len(labels) != 4 or labels[:2] != (1, 1) or labels[3] != 8:
        raise SpecError(f"the labels have shape {labels}, expected (1, 1, boxes, 8)")


def _detection_evaluate(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p, (found, labels) = layer.detection_evaluate_param, bottoms
    if not p.num_classes:
        raise SpecError("num_classes is missing")
    if p.background_label_id >= p.num_classes:
        raise SpecError(f"background_label_id {p.background_label_id} is not in 0..{p.num_classes - 1}, the classes")
    if p.overlap_threshold <= 0:
        raise SpecError(f"overlap_threshold must be positive, got {p.overlap_threshold}")
    if p.has("resize_param"):
        raise SpecError("resize_param is not supported")
    if len(found) != 4 or found[:2] != (1, 1) or found[3] != 7:
        raise SpecError(f"the detections have shape {found}, expected (1, 1, found, 7)")
    _check_labels(labels)
    return [(1, 1, p.num_classes - 1 + found[2], 5)]


def read_sizes(path: str) -> list[tuple[int, int]]:
    """Height and width of every image of a name_size_file: lines "name height width".

    Raises:
        CaffePortError: it cannot be read.
        SpecError: a line is none of these.
    """
    sizes = []
    for number, line in enumerate(bytes(map_file(path)).decode("utf-8", "replace").splitlines(), 1):
        words = line.split()
        if len(words) != 3 or not (words[1].isdecimal() and words[2].isdecimal()):
            raise SpecError(f"name_size_file {path}: line {number} is {line[:60]!r}, expected: name height width")
        sizes.append((int(words[1]), int(words[2])))
    return sizes


declare(
    "MultiBoxLoss",
    _multi_box_loss,
    message="multibox_loss_param",
    also=("loss_param",),
    bottoms=4,
    holds=(*PREDICTIONS, Holds.OBJECTS),
    traits=LOSS | Trait.WHOLE_LAYER,
)
declare(
    "DetectionEvaluate",
    _detection_evaluate,
    message="detection_evaluate_param",
    bottoms=2,
    holds=(Holds.DETECTIONS, Holds.OBJECTS),
    traits=Trait.LABELS,
)
