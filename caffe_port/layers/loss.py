"""Losses and Accuracy: tops are the unweighted values that Caffe prints. Source: src/caffe/layers of Caffe 1.0.

Caffe clamps probabilities before the logarithm in the value, but not in the gradient; :func:`clamp_value` does that.
Labels may have any dtype; a fraction is cut off, as Caffe does. They receive no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message, decimal
from caffe_port.layers.layer import Layer, canonical_axis
from caffe_port.storage.files import map_file
from caffe_port.typing import Shape

# -- from Caffe ---------------------------------------------------------------------------------------------------


def expect_batch(bottoms: Sequence[Shape]) -> None:
    """Raises SpecError where prediction and label differ in batch size. Source: loss_layer.cpp."""
    if not bottoms[0] or not bottoms[1] or bottoms[0][0] != bottoms[1][0]:
        raise SpecError(f"prediction {bottoms[0]} and label {bottoms[1]} differ in their first dimension")


def expect_equal_counts(bottoms: Sequence[Shape]) -> None:
    """Raises SpecError where bottoms hold different numbers of values an item."""
    expect_batch(bottoms)
    if len({math.prod(shape) for shape in bottoms}) > 1:
        raise SpecError(f"bottoms {', '.join(map(str, bottoms))} hold different numbers of values")


def class_axis(axis: int, bottoms: Sequence[Shape]) -> int:
    """The axis of the classes, where there is one label for every prediction along it.

    Raises:
        SpecError: another number of labels.
    """
    scores, label = bottoms[0], bottoms[1]
    axis = canonical_axis(axis, len(scores))
    want = math.prod(scores[:axis]) * math.prod(scores[axis + 1 :])
    if math.prod(label) != want:
        raise SpecError(
            f"label {label} holds {math.prod(label)} labels; predictions {scores} with the classes along axis {axis} "
            f"need {want}"
        )
    return axis


def ignored(loss_param: Message) -> int | None:
    """The label that does not count, or None."""
    return int(loss_param.ignore_label) if loss_param.has("ignore_label") else None


def normalization(loss_param: Message, default: str) -> str:
    """FULL, VALID, BATCH_SIZE or NONE; ``normalize`` is the older way to say VALID or BATCH_SIZE.

    Raises:
        SpecError: PRE_FIXED, which is R-FCN's.
    """
    if loss_param.normalization == "PRE_FIXED":
        raise SpecError("normalization PRE_FIXED, of R-FCN's fork, is not supported")
    if loss_param.has("normalization"):
        return str(loss_param.normalization)
    if loss_param.has("normalize"):
        return "VALID" if loss_param.normalize else "BATCH_SIZE"
    return default


def class_weights(loss_param: Message, classes: int) -> dict[str, tuple[float, ...]]:
    """What SegNet's fork weights the classes by: an argument of SoftmaxWithLoss, or none.

    Source: softmax_loss_layer.cpp of alexgkendall/caffe-segnet

    Raises:
        SpecError: another number of weights.
    """
    if not loss_param.weight_by_label_freqs:
        return {}
    weights = tuple(decimal(value) for value in loss_param.class_weighting)
    if weights and len(weights) != classes:
        raise SpecError(f"{len(weights)} class_weighting for {classes} classes")
    return {"weights": weights}


# -- PyTorch ------------------------------------------------------------------------------------------------------


def clamp_value(x: Tensor, least: float) -> Tensor:
    """``x``, at least ``least``, with the gradient of ``x`` everywhere."""
    return torch.where(x < least, least + (x - x.detach()), x)


def normalized(losses: Tensor, valid: Tensor, axis: int, normalization: str) -> Tensor:
    """The sum of the losses that count (``valid``), divided by what the normalization says.

    BATCH_SIZE is the number of items before ``axis``, the axis of the classes.
    """
    loss = losses.where(valid, 0).sum()
    if normalization == "VALID":
        return loss / valid.sum().clamp(min=1)
    if normalization == "FULL":
        return loss / max(losses.numel(), 1)
    return loss / max(math.prod(losses.shape[:axis]), 1) if normalization == "BATCH_SIZE" else loss


def gather_labels(scores: Tensor, label: Tensor, axis: int, ignore_label: int | None) -> tuple[Tensor, Tensor]:
    """Labels as indices, of the shape of ``scores`` without ``axis``, and which of them count; ignored ones are 0."""
    label = label.reshape((*scores.shape[:axis], *scores.shape[axis + 1 :])).long()
    if ignore_label is None:
        return label, torch.ones_like(label, dtype=torch.bool)
    valid = label != ignore_label
    return label * valid, valid


class Accuracy(Layer):
    """Share of the labels that are among the top_k scores; a second top gives it for each class.

    Scores equal to that of the true class count as better, so an all-equal prediction is wrong. (Older versions
    decided such ties by the order of the classes.)

    Reference: accuracy_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        a = p.accuracy_param
        axis = class_axis(a.axis, bottoms)
        return {"top_k": a.top_k, "axis": axis, "ignore_label": ignored(a), "per_class": len(p.top) > 1}

    def __init__(self, top_k: int = 1, axis: int = 1, ignore_label: int | None = None, per_class: bool = False) -> None:
        super().__init__()
        self.top_k, self.axis, self.ignore_label, self.per_class = top_k, axis, ignore_label, per_class

    def forward(self, scores: Tensor, label: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        label, valid = gather_labels(scores, label, self.axis, self.ignore_label)
        true_score = scores.gather(self.axis, label.unsqueeze(self.axis))
        better = (scores >= true_score).sum(self.axis) - 1
        hits = ((better < self.top_k) & valid).to(scores.dtype)
        valid = valid.to(scores.dtype)
        accuracy = hits.sum() / valid.sum().clamp(min=1)
        if not self.per_class:
            return accuracy
        zeros = scores.new_zeros(scores.shape[self.axis])
        hits_of, labels_of = (zeros.scatter_add(0, label.flatten(), x.flatten()) for x in (hits, valid))
        return accuracy, hits_of / labels_of.clamp(min=1)


class ContrastiveLoss(Layer):
    """Half the mean over pairs of d² for similar ones (label not 0), of max(margin - d, 0)² for the others.

    ``legacy_version`` takes max(margin - d², 0) for the others.

    Differs from PyTorch: the gradient of d divides by d + 1e-4, as Caffe's does.
    Reference: contrastive_loss_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_equal_counts(bottoms[:2])
        if math.prod(bottoms[2]) != bottoms[0][0]:
            raise SpecError(f"label {bottoms[2]} holds {math.prod(bottoms[2])} values for {bottoms[0][0]} pairs")
        if math.prod(bottoms[2][1:]) != 1:
            raise SpecError(f"label {bottoms[2]} must have one value per item, (N) or (N, 1, 1, 1), as in Caffe")
        return {"margin": p.margin, "legacy_version": p.legacy_version}

    def __init__(self, margin: float = 1.0, legacy_version: bool = False) -> None:
        super().__init__()
        self.margin, self.legacy_version = margin, legacy_version

    def forward(self, a: Tensor, b: Tensor, similar: Tensor) -> Tensor:
        squared = (a - b.reshape(a.shape)).reshape(a.shape[0], -1).square().sum(1)
        if self.legacy_version:
            apart = F.relu(self.margin - squared)
        else:
            value = squared.detach().sqrt()
            distance = value + (squared - squared.detach()) / (2 * (value + 1e-4))
            apart = F.relu(self.margin - distance).square()
        return torch.where(similar.flatten().long() != 0, squared, apart).sum() / a.shape[0] / 2


class EuclideanLoss(Layer):
    """Sum of the squared differences divided by twice the batch size.

    Differs from PyTorch: torch.nn.MSELoss divides by the number of values.
    Reference: euclidean_loss_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_equal_counts(bottoms)
        return {}

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b.reshape(a.shape)).square().sum() / a.shape[0] / 2


class HingeLoss(Layer):
    """One-versus-all hinge loss: sum of max(0, 1 - t * score), t = 1 for the true class and -1 for the others.

    ``norm: L2`` squares the terms. Divided by the batch size.

    Differs from PyTorch: torch.nn.MultiMarginLoss compares with the score of the true class.
    Reference: hinge_loss_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_one_label(bottoms)
        return {"norm": p.norm}

    def __init__(self, norm: str = "L1") -> None:
        super().__init__()
        self.norm = norm

    def forward(self, scores: Tensor, label: Tensor) -> Tensor:
        scores = scores.reshape(len(scores), -1)
        sign = torch.ones_like(scores).scatter(1, label.reshape(-1, 1).long(), -1.0)
        margins = F.relu(1 + sign * scores)
        return (margins.square() if self.norm == "L2" else margins).sum() / scores.shape[0]


def expect_one_label(bottoms: Sequence[Shape]) -> None:
    """Raises SpecError unless there is one label an item."""
    expect_batch(bottoms)
    if math.prod(bottoms[1]) != bottoms[0][0]:
        raise SpecError(f"label {bottoms[1]} holds {math.prod(bottoms[1])} labels for {bottoms[0][0]} items")


class InfogainLoss(Layer):
    """Softmax, then -sum over classes of H[label, class] * log(probability); a second top gives the probabilities.

    H comes from a third bottom, or from the .binaryproto that ``source`` names, which is read when the layer is built.

    Reference: infogain_loss_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_batch(bottoms)
        axis = class_axis(p.infogain_loss_param.axis, bottoms)
        matrix = infogain_matrix(p.infogain_loss_param.source, bottoms[0][axis]) if len(bottoms) == 2 else None
        return {
            "axis": axis,
            "ignore_label": ignored(p.loss_param),
            "normalization": normalization(p.loss_param, "VALID"),
            "matrix": matrix,
            "probabilities": len(p.top) > 1,
        }

    def __init__(
        self,
        axis: int = 1,
        ignore_label: int | None = None,
        normalization: str = "VALID",
        matrix: tuple[tuple[float, ...], ...] | None = None,
        probabilities: bool = False,
    ) -> None:
        super().__init__()
        self.axis, self.ignore_label, self.normalization = axis, ignore_label, normalization
        self.matrix, self.probabilities = matrix, probabilities

    def forward(self, scores: Tensor, label: Tensor, infogain: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if infogain is None:
            infogain = torch.tensor(self.matrix, device=scores.device)
        classes = scores.shape[self.axis]
        label, valid = gather_labels(scores, label, self.axis, self.ignore_label)
        log_p = clamp_value(scores.log_softmax(self.axis), math.log(1e-20))
        gain = infogain.to(scores.dtype).reshape(classes, classes)[label]
        losses = -(gain.movedim(-1, self.axis) * log_p).sum(self.axis)
        loss = normalized(losses, valid, self.axis, self.normalization)
        return (loss, scores.softmax(self.axis)) if self.probabilities else loss

    def infer(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        loss = bottoms[0].new_empty(())
        return (loss, torch.empty_like(bottoms[0])) if self.probabilities else loss


def infogain_matrix(path: str, classes: int) -> tuple[tuple[float, ...], ...]:
    """The rows of the matrix in a .binaryproto; a row is a label.

    Raises:
        CaffePortError: the file cannot be read.
        SpecError: it holds another number of values than classes squared.
    """
    from caffe_port.formats import caffemodel, wire

    matrix = caffemodel.blob_array(wire.parse(map_file(path), "BlobProto", path))
    if matrix.size != classes**2:
        raise SpecError(f"{path} has shape {matrix.shape}, expected {(classes, classes)} for {classes} classes")
    return tuple(tuple(row) for row in matrix.reshape(classes, classes).tolist())


class MultinomialLogisticLoss(Layer):
    """Mean of -log(probability of the true class); the bottom holds probabilities, not scores.

    Differs from PyTorch: torch.nn.NLLLoss takes logarithms. A probability counts as 1e-20 at least.
    Reference: multinomial_logistic_loss_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_one_label(bottoms)
        return {}

    def forward(self, probabilities: Tensor, label: Tensor) -> Tensor:
        p = probabilities.reshape(probabilities.shape[0], -1).gather(1, label.reshape(-1, 1).long())
        return -clamp_value(p, 1e-20).log().sum() / p.shape[0]


class SigmoidCrossEntropyLoss(Layer):
    """Sum of the binary cross entropies of sigmoid(score) and target, by default divided by the batch size.

    Differs from PyTorch: torch.nn.BCEWithLogitsLoss divides by the number of values.
    Reference: sigmoid_cross_entropy_loss_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_equal_counts(bottoms)
        return {"ignore_label": ignored(p.loss_param), "normalization": normalization(p.loss_param, "BATCH_SIZE")}

    def __init__(self, ignore_label: int | None = None, normalization: str = "BATCH_SIZE") -> None:
        super().__init__()
        self.ignore_label, self.normalization = ignore_label, normalization

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        target = target.detach().reshape(scores.shape)
        valid = torch.ones_like(target, dtype=torch.bool)
        if self.ignore_label is not None:
            valid = target.long() != self.ignore_label
        losses = F.binary_cross_entropy_with_logits(scores, target.to(scores.dtype), reduction="none")
        return normalized(losses, valid, 1, self.normalization)


class SmoothL1Loss(Layer):
    """Sum of torch.nn.SmoothL1Loss(beta=1 / sigma²) divided by the batch size. From Fast R-CNN and SSD.

    A third bottom weights the differences (inside weights), a fourth the losses (outside weights).

    Reference: smooth_L1_loss_layer.cu (Faster R-CNN)
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_equal_counts(bottoms)
        if len({shape + (1,) * (4 - len(shape)) for shape in map(tuple, bottoms)}) > 1:
            raise SpecError(f"bottoms {', '.join(map(str, bottoms))} differ in shape")
        return {"sigma": p.sigma}

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, a: Tensor, b: Tensor, inside: Tensor | None = None, outside: Tensor | None = None) -> Tensor:
        difference = a - b.reshape(a.shape)
        if inside is not None:
            difference = inside.reshape(a.shape) * difference
        losses = F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none", beta=self.sigma**-2)
        if outside is not None:
            losses = outside.reshape(a.shape) * losses
        return losses.sum() / a.shape[0]


class SoftmaxWithLoss(Layer):
    """Cross entropy of softmax(scores) and labels; a second top gives the probabilities.

    Differs from PyTorch: torch.nn.CrossEntropyLoss has no limit; here a probability counts as the least normal float32
    at least, so that a hopeless label costs 87.3365. Normalization VALID, the default, divides by the number of labels
    that count, or by 1 where none does. ``weight_by_label_freqs`` (SegNet's fork) multiplies the loss of a label by
    its ``class_weighting``, or without one divides it by how often the batch has the label.
    Reference: softmax_loss_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        expect_batch(bottoms)
        axis = class_axis(p.softmax_param.axis, bottoms)
        return {
            "axis": axis,
            "ignore_label": ignored(p.loss_param),
            "normalization": normalization(p.loss_param, "VALID"),
            "probabilities": len(p.top) > 1,
            **class_weights(p.loss_param, bottoms[0][axis]),
        }

    def __init__(
        self,
        axis: int = 1,
        ignore_label: int | None = None,
        normalization: str = "VALID",
        probabilities: bool = False,
        weights: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.axis, self.ignore_label = axis, ignore_label
        self.normalization, self.probabilities = normalization, probabilities
        self.weights = weights  # of the classes; empty: 1 / how often the batch has the label

    def forward(self, scores: Tensor, label: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        label, valid = gather_labels(scores, label, self.axis, self.ignore_label)
        log_p = scores.log_softmax(self.axis).gather(self.axis, label.unsqueeze(self.axis)).squeeze(self.axis)
        log_p = clamp_value(log_p, math.log(torch.finfo(torch.float32).tiny))
        if self.weights is not None:
            zeros = log_p.new_zeros(scores.shape[self.axis])
            often = zeros.scatter_add(0, label.flatten(), valid.flatten().to(log_p.dtype)).clamp(min=1)
            weights = log_p.new_tensor(self.weights) if self.weights else 1 / often
            log_p = log_p * weights[label]
        loss = normalized(-log_p, valid, self.axis, self.normalization)
        return (loss, scores.softmax(self.axis)) if self.probabilities else loss
