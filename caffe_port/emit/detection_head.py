"""DetectionOutput in an exported module: as one operator, or as what comes before it.

The number of detections depends on the values, which torch.export does not follow through Caffe's loop.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from caffe_port.emit import operators

BOXES, SCORES = "boxes", "scores"


def of(module: nn.Module) -> list[nn.Module]:
    """The DetectionOutput layers of a module that caffe-port wrote."""
    return [child for child in module.modules() if type(child).__name__ == "DetectionOutput"]


def is_operator(layer: Any) -> bool:
    """Whether ONNX's NonMaxSuppression does what the layer does."""
    return layer.nms_threshold is not None and 0 <= layer.nms_threshold <= 1 and layer.eta == 1


def as_operator(layer: Any) -> None:
    """Has the layer traced as one operator."""

    def forward(*bottoms: Tensor) -> Tensor:
        boxes, scores = layer.candidates(*bottoms)
        top_k, keep_top_k = (-1 if n is None else n for n in (layer.top_k, layer.keep_top_k))
        background = layer.background_label_id
        found: Tensor = operators.detections(
            boxes, scores, background, layer.nms_threshold, layer.confidence_threshold, top_k, keep_top_k
        )
        return found

    layer.forward = forward


def as_candidates(layer: Any) -> None:
    """Ends the module in the candidates: all boxes (N, P, 1 or classes, 4) and their scores (N, P, classes)."""
    layer.forward = layer.candidates


def remaining(layer: Any) -> str:
    """What is left to do with the candidates, in words."""
    parts = []
    if layer.nms_threshold is not None:
        best = "" if layer.top_k is None else f", of the best {layer.top_k} of each class"
        parts.append(f"scores above {layer.confidence_threshold:g}{best}")
        parts.append(f"suppression of overlaps above {layer.nms_threshold:g}")
    if layer.keep_top_k is not None:
        parts.append(f"the best {layer.keep_top_k} of each image")
    return ", then ".join(parts)
