"""ONNX translations of operators that torch.onnx does not support, or not yet, and of caffe-port's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from caffe_port.emit import operators


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The custom_translation_table for torch.onnx.export."""
    import onnx
    import torchvision  # noqa: F401  the exporter knows its operators only if they are there when it starts
    from onnxscript import opset18
    from onnxscript.values import Opset

    op: Any = opset18
    if not onnx.defs.has("Top", "caffe_port"):
        onnx.defs.register_schema(_schema_of_top())
    own: Any = Opset("caffe_port", 1)

    def stable_sort(x: Any, stable: Any = None, dim: int = -1, descending: bool = False) -> Any:  # noqa: ARG001
        """TopK over all elements: among equal values, ONNX puts the lower index first."""
        length = op.Shape(x, start=dim, end=dim + 1) if dim != -1 else op.Shape(x, start=dim)
        return op.TopK(x, length, axis=dim, largest=int(descending), sorted=1)

    def roi_pool(x: Any, rois: Any, spatial_scale: float, pooled_height: int, pooled_width: int) -> Any:
        y = op.MaxRoiPool(x, rois, pooled_shape=[pooled_height, pooled_width], spatial_scale=spatial_scale)
        return y, y  # the second gives the positions of the maxima, for the gradient

    def lrn(x: Any, size: int, alpha: float, beta: float, k: float) -> Any:
        return op.LRN(x, size=size, alpha=alpha, beta=beta, bias=k)

    def top(x: Any, name: str) -> Any:
        return own.Top(x, name=name)

    def ints(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    def floats(*values: float) -> Any:
        return op.Constant(value_floats=list(values))

    def detections(
        boxes: Any, scores: Any, background: int, overlap: float, confidence: float, top_k: int, keep_top_k: int
    ) -> Any:
        """The candidates of each image and class in the order of their scores; which of them stay, as a mask; its
        places, row by row, are the detections in Caffe's order."""
        labels = [label for label in range(scores.shape[2]) if label != background]
        classes, priors, shared = len(labels), scores.shape[1], boxes.shape[2] == 1
        best = min(top_k, priors) if top_k >= 0 else priors
        each = op.Gather(op.Transpose(scores, perm=[0, 2, 1]), ints(*labels), axis=1)
        each, place = op.TopK(each, ints(best), axis=2)
        corners = op.Transpose(boxes, perm=[0, 2, 1, 3])
        corners = op.Expand(corners, ints(1, classes, 1, 1)) if shared else op.Gather(corners, ints(*labels), axis=1)
        corners = op.GatherElements(corners, op.Expand(op.Unsqueeze(place, ints(3)), ints(1, 1, 1, 4)), axis=2)
        rows, rows_of_boxes = op.Reshape(each, ints(-1, best)), op.Reshape(corners, ints(-1, best, 4))
        kept = op.NonMaxSuppression(
            rows_of_boxes, op.Unsqueeze(rows, ints(1)), ints(best), floats(overlap), floats(max(confidence, -3e38))
        )
        nothing = op.ConstantOfShape(op.Shape(rows))
        one = op.ConstantOfShape(op.Shape(kept, start=0, end=1), value=_tensor(1.0))
        mask = op.ScatterND(nothing, op.Gather(kept, ints(0, 2), axis=1), one)
        values = op.Where(op.Greater(mask, floats(0.0)), rows, floats(-3.4028234663852886e38))
        values = op.Reshape(values, ints(-1, classes * best))
        mask = op.Reshape(mask, ints(-1, classes * best))
        if 0 <= keep_top_k < classes * best:
            _, place = op.TopK(values, ints(keep_top_k), axis=1)
            among = op.ScatterElements(
                op.ConstantOfShape(op.Shape(mask)),
                place,
                op.ConstantOfShape(op.Shape(place), value=_tensor(1.0)),
                axis=1,
            )
            mask = op.Mul(mask, among)
        places = op.Transpose(op.NonZero(mask), perm=[1, 0])
        image, place = op.Split(places, num_outputs=2, axis=1)
        label = op.Gather(floats(*map(float, labels)), op.Div(place, ints(best)))
        score = op.Unsqueeze(op.GatherND(values, places), ints(1))
        box = op.GatherND(op.Reshape(corners, ints(-1, classes * best, 4)), places)
        found = op.Concat(op.Cast(image, to=1), label, score, box, axis=1)
        # Nothing found: a row of -1 for each image.
        images = op.Shape(scores, start=0, end=1)
        empty = op.Equal(op.Shape(found, start=0, end=1), ints(0))
        count = op.Mul(images, op.Cast(empty, to=7))
        number = op.Cast(op.Range(op.Constant(value_int=0), op.Squeeze(count), op.Constant(value_int=1)), to=1)
        row = op.Concat(
            op.Unsqueeze(number, ints(1)), op.Expand(floats(-1.0), op.Concat(count, ints(6), axis=0)), axis=1
        )
        return op.Unsqueeze(op.Concat(found, row, axis=0), ints(0, 1))

    return {
        torch.ops.aten.sort.stable: stable_sort,
        torch.ops.torchvision.roi_pool.default: roi_pool,
        operators.lrn.default: lrn,
        operators.top.default: top,
        operators.detections.default: detections,
    }


def _schema_of_top() -> Any:
    import onnx

    schema: Any = onnx.defs.OpSchema
    floats = ("T", ["tensor(float)", "tensor(double)", "tensor(float16)"], "")
    return schema(
        "Top",
        "caffe_port",
        1,
        inputs=[schema.FormalParameter("x", "T")],
        outputs=[schema.FormalParameter("y", "T")],
        type_constraints=[floats],
        attributes=[schema.Attribute("name", schema.AttrType.STRING)],
    )


def _tensor(value: float) -> Any:
    import onnx

    return onnx.helper.make_tensor("", onnx.TensorProto.FLOAT, [1], [value])
