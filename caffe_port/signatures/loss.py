"""The records of losses and Accuracy. Source: src/caffe/layers of Caffe 1.0.

Their rules do not look at the labels: where these come from a database, their shape is not in the net. The classes do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.checks import canonical_axis, expect_axes
from caffe_port.signatures.signature import SIGNATURES, Holds, Trait, declare
from caffe_port.typing import Shape

LOSS = Trait.LOSS | Trait.LABELS
LABELLED = (Holds.NUMBERS, Holds.LABELS)


def one_number(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    """The rule of a loss."""
    return [()]


def _legacy(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    """The rule of a loss that asks for the number of items by Blob::num, which four axes may have."""
    expect_axes(bottoms[0], 1, 4)
    return [()]


def _contrastive(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    """Pairs are vectors: (N, C), or with axes of length 1 after them."""
    for shape in bottoms[:2]:
        expect_axes(shape, 1, 4)
        if math.prod(shape[2:]) != 1:
            raise SpecError(f"expected pairs (N, C), got {shape}")
    return [()]


def class_axis(layer: Message, scores: Shape) -> int:
    """The axis of the classes, which a message may say."""
    p = SIGNATURES[layer.type].parameters(layer)
    said = p.schema is not None and "axis" in p.schema.fields
    return canonical_axis(p.axis if said else 1, len(scores))


def class_count(layer: Message, bottoms: Sequence[Shape]) -> int:
    """How many classes there are: what the layer scores, else what it is given scores of."""
    p = SIGNATURES[layer.type].parameters(layer)
    if p.schema is not None and "num_output" in p.schema.fields:
        return int(p.num_output)
    if len(bottoms[0]) == 1 and not (p.schema is not None and "axis" in p.schema.fields):
        return 1  # HingeLoss takes a score for each item
    return bottoms[0][class_axis(layer, bottoms[0])]


def _with_probabilities(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    class_axis(layer, bottoms[0])
    return [(), bottoms[0]] if len(layer.top) > 1 else [()]


def _infogain(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    classes = bottoms[0][class_axis(layer, bottoms[0])]
    if len(bottoms) == 3 and math.prod(bottoms[2]) != classes**2:
        raise SpecError(
            f"the infogain matrix has shape {bottoms[2]}, expected {(classes, classes)} for {classes} classes"
        )
    if len(bottoms) == 2 and not layer.infogain_loss_param.source:
        raise SpecError("has no infogain matrix: give a third bottom, or infogain_loss_param { source: ... }")
    return _with_probabilities(layer, bottoms)


def _accuracy(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p, classes = layer.accuracy_param, bottoms[0][class_axis(layer, bottoms[0])]
    if not 1 <= p.top_k <= classes:
        raise SpecError(f"top_k {p.top_k} is not in 1..{classes}, the number of classes")
    return [(), (classes,)] if len(layer.top) > 1 else [()]


def _smooth_l1(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    expect_axes(bottoms[0], 1, 4)
    if layer.smooth_l1_loss_param.sigma == 0:
        raise SpecError("sigma must not be 0")
    return [()]


declare(
    "Accuracy", _accuracy, message="accuracy_param", bottoms=2, holds=LABELLED, traits=Trait.LABELS | Trait.WHOLE_LAYER
)
declare(
    "ContrastiveLoss",
    _contrastive,
    message="contrastive_loss_param",
    bottoms=3,
    holds=(Holds.NUMBERS, Holds.NUMBERS, Holds.FLAGS),
    traits=LOSS,
)
declare("EuclideanLoss", _legacy, bottoms=2, traits=LOSS)
declare("HingeLoss", _legacy, message="hinge_loss_param", bottoms=2, holds=LABELLED, traits=LOSS)
declare(
    "InfogainLoss",
    _infogain,
    message="infogain_loss_param",
    also=("loss_param",),
    bottoms=(2, 3),
    holds=LABELLED,
    traits=LOSS | Trait.WHOLE_LAYER,
)
declare("MultinomialLogisticLoss", _legacy, bottoms=2, holds=LABELLED, traits=LOSS)
declare(
    "SigmoidCrossEntropyLoss",
    one_number,
    also=("loss_param",),
    bottoms=2,
    holds=(Holds.NUMBERS, Holds.FLAGS),
    traits=LOSS,
)
declare("SmoothL1Loss", _smooth_l1, message="smooth_l1_loss_param", bottoms=(2, 4), traits=LOSS)
declare(
    "SoftmaxWithLoss",
    _with_probabilities,
    message="softmax_param",
    also=("loss_param",),
    bottoms=2,
    holds=LABELLED,
    traits=LOSS | Trait.WHOLE_LAYER,
)
