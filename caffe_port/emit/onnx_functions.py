"""ONNX translations of operators that torch.onnx does not support, or not yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The custom_translation_table for torch.onnx.export."""
    import torchvision  # noqa: F401  the exporter knows its operators only if they are there when it starts
    from onnxscript import opset18 as op

    def stable_sort(x: Any, stable: Any = None, dim: int = -1, descending: bool = False) -> Any:  # noqa: ARG001
        """TopK over all elements: among equal values, ONNX puts the lower index first."""
        length = op.Shape(x, start=dim, end=dim + 1) if dim != -1 else op.Shape(x, start=dim)
        return op.TopK(x, length, axis=dim, largest=int(descending), sorted=1)

    def roi_pool(x: Any, rois: Any, spatial_scale: float, pooled_height: int, pooled_width: int) -> Any:
        y = op.MaxRoiPool(x, rois, pooled_shape=[pooled_height, pooled_width], spatial_scale=spatial_scale)
        return y, y  # the second gives the positions of the maxima, for the gradient

    return {torch.ops.aten.sort.stable: stable_sort, torch.ops.torchvision.roi_pool.default: roi_pool}
