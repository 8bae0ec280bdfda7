"""Exports a net to other formats, ONNX and torch.export."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from caffe_port.emit import detection_head
from caffe_port.emit.agreed_forms import AgreedForms
from caffe_port.errors import CaffePortError, DependencyError
from caffe_port.net.plan import Plan

ONNX, PT2 = "model.onnx", "model.pt2"


DYNAMIC = ("size", "batch", "none")
"""What may differ from the example in an exported net: batch, height and width; the batch; nothing."""


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        module: computes the net.
        marked: the same, whose calls are marked with the names of their tops by
            :func:`caffe_port.emit.operators.named`; to be traced for ONNX.
        plan: the net's, for the names of inputs and outputs.
    """

    module: nn.Module
    marked: nn.Module
    plan: Plan

    @property
    def outputs(self) -> list[str]:
        return [blob for blob, _ in self.plan.outputs]

    @property
    def detections(self) -> list[bool]:
        """By output, whether it is a list of detections, whose length depends on the values."""
        spec = self.plan.spec
        return [spec.by_name[layer].type == "DetectionOutput" for _, (layer, _) in spec.outputs]


def onnx(
    source: Source, example: Sequence[Tensor], path: str | Path, dynamic: str = "size", plain_pooling: bool = False
) -> str:
    """Writes a module as ONNX, with the net's blob names for its inputs and outputs and its layers' names for nodes.

    An output that has the name of an input, as where a layer works in place on an input, is renamed: "data_1".

    Args:
        example: inputs.
        dynamic: one of :data:`DYNAMIC`; what the net does not allow stays as in the example, and is said.
        plain_pooling: write pooling and local response normalization as PyTorch's exporter does, not in the forms on
            which runtimes agree (:mod:`caffe_port.emit.agreed_forms`).

    Returns:
        The result of running the file in onnxruntime, as a sentence.

    Raises:
        DependencyError: onnxscript is not installed.
        CaffePortError: an operator has no ONNX form, or the file does not compute what the module computes.
    """
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript")):
        hint = "pip install 'caffe-port[onnx]'"
        raise DependencyError("ONNX export requires onnx and onnxscript", str(path), hint)
    from caffe_port.emit import onnx_graph
    from caffe_port.emit.onnx_functions import translations

    head = _Head(source, as_operators=True)
    names = onnx_graph.distinct(source.plan.inputs, ())
    outputs = onnx_graph.distinct(head.outputs, names)  # a layer in place may make an output of an input's name

    def write(made: _Variation) -> None:
        with contextlib.nullcontext() if plain_pooling else AgreedForms(onnx=True):
            program = torch.onnx.export(
                head.traced,
                tuple(made.inputs),
                dynamo=True,
                input_names=names,
                output_names=outputs,
                verbose=False,
                custom_translation_table=translations(),
                dynamic_shapes=made.shapes,
            )
        assert program is not None
        onnx_graph.finish(program.model.graph)
        program.model.opset_imports.pop("caffe_port", None)
        program.save(str(path))

    def load() -> Callable[[Sequence[Tensor]], list[Tensor]]:
        onnxruntime = importlib.import_module("onnxruntime")
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3  # it warns of shapes that it merges
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        asked = [i.name for i in session.get_inputs()]

        def run(given: Sequence[Tensor]) -> list[Tensor]:
            feeds = {name: x.numpy() for name, x in zip(asked, given, strict=True)}
            return [torch.from_numpy(y) for y in session.run(outputs, feeds)]

        return run

    return _export(head, example, Path(path), dynamic, "cannot be written as ONNX", write, load)


def pt2(
    source: Source, example: Sequence[Tensor], path: str | Path, dynamic: str = "size", plain_pooling: bool = False
) -> str:
    """Writes a module with torch.export.save; ``torch.export.load`` reads it. Arguments and errors as for :func:`onnx`.

    Returns:
        The result of running the file, as a sentence.

    Raises:
        CaffePortError: control flow depends on tensor values, or the file does not compute what the module computes.
    """
    head = _Head(source, as_operators=False)

    def write(made: _Variation) -> None:
        options: dict[str, Any] = {"strict": False}
        if _DEFERRED in inspect.signature(torch.export.export).parameters:  # pooling asks whether windows fit
            options[_DEFERRED] = True
        with contextlib.nullcontext() if plain_pooling else AgreedForms():
            program = torch.export.export(head.module, tuple(made.inputs), dynamic_shapes=made.shapes, **options)
        torch.export.save(program, str(path))

    def load() -> Callable[[Sequence[Tensor]], list[Tensor]]:
        program = torch.export.load(str(path)).module()
        return lambda given: list(_leaves(program(*given)))

    return _export(head, example, Path(path), dynamic, "cannot be exported", write, load)


_DEFERRED = "prefer_deferred_runtime_asserts_over_guards"


class _Head:
    """A source with its DetectionOutput layers as an export can have them.

    Attributes:
        module: computes what the file is to compute.
        traced: the module to be traced for ONNX.
        outputs: names of the outputs.
        said: what the file lacks; empty if nothing.
    """

    def __init__(self, source: Source, as_operators: bool) -> None:
        self.module, self.outputs, self.said = source.module.eval(), source.outputs, ""
        self.traced = source.marked.eval()
        self.detections = source.detections
        layers = detection_head.of(self.module)
        if not layers:
            return
        if as_operators and all(map(detection_head.is_operator, layers)):
            self.traced = copy.deepcopy(self.traced)
            for layer in detection_head.of(self.traced):
                detection_head.as_operator(layer)
            return
        if sum(self.detections) != len(layers):
            what = "a layer reads what DetectionOutput found, whose number depends on the values"
            raise CaffePortError(what, "", "Cut the net there, and export its first part.")
        self.module, self.traced = copy.deepcopy(self.module), copy.deepcopy(self.traced)
        for module in (self.module, self.traced):
            for layer in detection_head.of(module):
                detection_head.as_candidates(layer)
        left = detection_head.remaining(layers[0])
        self.said = f"; it ends before DetectionOutput, in all boxes and their scores: what is left is {left}"
        named = zip(source.outputs, self.detections, strict=True)
        parts = (detection_head.BOXES, detection_head.SCORES)
        self.outputs = [name for blob, found in named for name in ([f"{blob}_{p}" for p in parts] if found else [blob])]
        self.detections = [False] * len(self.outputs)


@dataclass(frozen=True)
class _Variation:
    """An export with some axes left open.

    Attributes:
        words: which.
        inputs: inputs that differ from the example in these axes.
        shapes: for torch.export; None: all axes are fixed.
    """

    words: str
    inputs: Sequence[Tensor]
    shapes: tuple[dict[int, Any], ...] | None


def _export(
    head: _Head,
    example: Sequence[Tensor],
    path: Path,
    dynamic: str,
    failing: str,
    write: Callable[[_Variation], None],
    load: Callable[[], Callable[[Sequence[Tensor]], list[Tensor]]],
) -> str:
    """Writes with as many open axes as the net and the exporter allow, and runs what was written."""
    variations = [*_open(head, example, dynamic), _Variation("", example, None)]
    with _quiet(), torch.no_grad():
        for variation in variations:
            try:
                worst = _written(head, example, variation, path, failing, write, load)
                break
            except CaffePortError:
                if variation is variations[-1]:
                    raise
    if worst is None:
        return f"{path.name} was not run: onnxruntime is not installed{head.said}"
    words = f"{path.name} differs from the model by {worst:.3g} at most"
    if variation.shapes is None:
        fixed = " x ".join(map(str, example[0].shape)) if example else ""
        return words + head.said if dynamic == "none" else f"{words}, and takes inputs of {fixed} only{head.said}"
    return f"{words}, with {variation.words}{head.said}"


def _written(
    head: _Head,
    example: Sequence[Tensor],
    made: _Variation,
    path: Path,
    failing: str,
    write: Callable[[_Variation], None],
    load: Callable[[], Callable[[Sequence[Tensor]], list[Tensor]]],
) -> float | None:
    """Writes a file and runs it on the example and in the shapes of the variation; the greatest difference, or None if
    nothing is there to run it.

    Raises:
        CaffePortError: it cannot be written, does not run, or gives other numbers.
    """
    try:
        write(made)
    except Exception as error:  # noqa: BLE001  the exporters raise many kinds
        raise CaffePortError(f"{failing}: {_reason(error)}", str(path)) from None
    if path.suffix == ".onnx" and not importlib.util.find_spec("onnxruntime"):
        return None
    given = list(dict.fromkeys((tuple(example), tuple(made.inputs))))
    try:
        run = load()
        got = [run(inputs) for inputs in given]
    except Exception as error:  # noqa: BLE001  onnxruntime raises many kinds
        raise CaffePortError(f"was written, but does not run: {_reason(error)}", str(path)) from None
    pairs = zip(given, got, strict=True)
    return max(_difference(head.module, inputs, head.outputs, outputs, str(path)) for inputs, outputs in pairs)


def _open(head: _Head, example: Sequence[Tensor], dynamic: str) -> Iterator[_Variation]:
    """The variations that the module itself allows, the widest first: each input is an item per row."""
    if dynamic not in DYNAMIC:
        raise CaffePortError(f"dynamic '{dynamic}' is not one of {', '.join(DYNAMIC)}")
    if dynamic == "none" or not example or any(x.dim() == 0 or len(x) != len(example[0]) for x in example):
        return
    module, rows = head.module, len(example[0]) + 2
    more = [torch.cat([x] * rows)[:rows].clone() for x in example]
    before, after = _run(module, example), _run(module, more)
    n = len(example[0])
    if after is None or before is None:
        return
    for a, b, found in zip(before, after, head.detections, strict=True):
        if found:
            if not _near(a, b[:, :, b[0, 0, :, 0] < n]):
                return
        elif a.dim() == 0 or len(a) != n or len(b) != rows or a.shape[1:] != b.shape[1:] or not _near(a, b[:n]):
            return
    batch = torch.export.Dim("batch")
    images = [x.dim() == 4 for x in example]
    if dynamic == "size" and any(images) and not any(head.detections):
        larger = [torch.cat([x, x], 2)[:, :, : x.shape[2] + 33] if x.dim() == 4 else x for x in more]
        larger = [torch.cat([x, x, x], 3)[:, :, :, : x.shape[3] + 65] if x.dim() == 4 else x for x in larger]
        wide = _run(module, larger)
        if wide is not None and all(
            a.dim() < 4 or a.shape[2:] != b.shape[2:] for a, b in zip(after, wide, strict=True)
        ):
            first = next(x for x in example if x.dim() == 4)
            height, width = (torch.export.Dim(n, min=first.shape[k]) for k, n in ((2, "height"), (3, "width")))
            shapes = tuple({0: batch, 2: height, 3: width} if image else {0: batch} for image in images)
            if any(a.dim() == 4 for a in after):
                least = f"{first.shape[2]} x {first.shape[3]}"
                yield _Variation(f"any batch, and height and width from {least} up", larger, shapes)
    yield _Variation("any batch", more, tuple({0: batch} for _ in example))


def _run(module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor] | None:
    """The outputs; None if the module does not run."""
    try:
        with torch.no_grad():
            made = module.eval()(*inputs)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None
    return list(_leaves(made))


def _leaves(made: Any) -> Iterator[Tensor]:
    """The tensors that a module returns, in order: one, a tuple or a dict of them."""
    if isinstance(made, Tensor):
        yield made
    else:
        for part in made.values() if isinstance(made, dict) else made:
            yield from _leaves(part)


def _near(a: Tensor, b: Tensor) -> bool:
    greatest = float(a.nan_to_num().abs().max()) if a.numel() else 0.0
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=1e-4 * max(greatest, 0.1), equal_nan=True)


def _difference(
    module: nn.Module, given: Sequence[Tensor], blobs: Sequence[str], got: Sequence[Tensor], path: str
) -> float:
    """The largest difference from the module's own outputs, which are within 1e-4 of the largest value of each."""
    worst = 0.0
    for blob, a, b in zip(blobs, _run(module, given) or (), got, strict=True):
        difference = float((a - b).nan_to_num().abs().max()) if a.shape == b.shape and a.numel() else 0.0
        if not _near(a, b):
            what = f"by {difference:.3g}" if a.shape == b.shape else f"in shape, {tuple(b.shape)} for {tuple(a.shape)}"
            raise CaffePortError(f"output '{blob}' differs from the model's {what}", path)
        worst = max(worst, difference)
    return worst


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporters, which print warnings and log messages."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
