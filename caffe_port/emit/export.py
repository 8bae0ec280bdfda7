"""Exports a net to other formats, ONNX and torch.export."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from caffe_port.emit.onnx_functions import translations
from caffe_port.errors import CaffePortError, DependencyError
from caffe_port.net.plan import Plan

ONNX, PT2 = "model.onnx", "model.pt2"


DYNAMIC = ("size", "batch", "none")
"""What may differ from the example in an exported net: batch, height and width; the batch; nothing."""


def onnx(module: nn.Module, example: Sequence[Tensor], plan: Plan, path: str | Path, dynamic: str = "size") -> str:
    """Writes a module as ONNX, with the net's blob names for its inputs and outputs.

    Args:
        example: inputs.
        dynamic: one of :data:`DYNAMIC`; what the net does not allow stays as in the example, and is said.

    Returns:
        The result of running the file in onnxruntime, as a sentence.

    Raises:
        DependencyError: onnxscript is not installed.
        CaffePortError: an operator has no ONNX form, or the file does not compute what the module computes.
    """
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript")):
        hint = "pip install 'caffe-port[onnx]'"
        raise DependencyError("ONNX export requires onnx and onnxscript", str(path), hint)
    inputs, outputs = list(plan.inputs), [blob for blob, _ in plan.outputs]

    def write(made: _Variation) -> None:
        program = torch.onnx.export(
            module.eval(),
            tuple(made.inputs),
            dynamo=True,
            input_names=inputs,
            output_names=outputs,
            verbose=False,
            custom_translation_table=translations(),
            dynamic_shapes=made.shapes,
        )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces with paths of this machine
        program.save(str(path))

    def load() -> Callable[[Sequence[Tensor]], list[Tensor]]:
        onnxruntime = importlib.import_module("onnxruntime")
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3  # it warns of shapes that it merges
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]

        def run(given: Sequence[Tensor]) -> list[Tensor]:
            feeds = {name: x.numpy() for name, x in zip(names, given, strict=True)}
            return [torch.from_numpy(y) for y in session.run(outputs, feeds)]

        return run

    return _export(module, example, outputs, Path(path), dynamic, "cannot be written as ONNX", write, load)


def pt2(module: nn.Module, example: Sequence[Tensor], plan: Plan, path: str | Path, dynamic: str = "size") -> str:
    """Writes a module with torch.export.save; ``torch.export.load`` reads it. Arguments and errors as for :func:`onnx`.

    Returns:
        The result of running the file, as a sentence.

    Raises:
        CaffePortError: control flow depends on tensor values, or the file does not compute what the module computes.
    """

    def write(made: _Variation) -> None:
        program = torch.export.export(module.eval(), tuple(made.inputs), dynamic_shapes=made.shapes)
        torch.export.save(program, str(path))

    def load() -> Callable[[Sequence[Tensor]], list[Tensor]]:
        program = torch.export.load(str(path)).module()

        def run(given: Sequence[Tensor]) -> list[Tensor]:
            made = program(*given)
            return list(made.values()) if isinstance(made, dict) else [made]

        return run

    outputs = [blob for blob, _ in plan.outputs]
    return _export(module, example, outputs, Path(path), dynamic, "cannot be exported", write, load)


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
    module: nn.Module,
    example: Sequence[Tensor],
    outputs: Sequence[str],
    path: Path,
    dynamic: str,
    failing: str,
    write: Callable[[_Variation], None],
    load: Callable[[], Callable[[Sequence[Tensor]], list[Tensor]]],
) -> str:
    """Writes with as many open axes as the net and the exporter allow, and runs what was written."""
    variations = [*_open(module, example, dynamic), _Variation("", example, None)]
    with _quiet(), torch.no_grad():
        for variation in variations:
            try:
                write(variation)
                break
            except Exception as error:  # noqa: BLE001  the exporters raise many kinds
                if variation is variations[-1]:
                    raise CaffePortError(f"{failing}: {_reason(error)}", str(path)) from None
        if path.suffix == ".onnx" and not importlib.util.find_spec("onnxruntime"):
            return f"{path.name} was not run: onnxruntime is not installed"
        worst = 0.0
        try:
            run = load()
            made = [run(given) for given in dict.fromkeys((tuple(example), tuple(variation.inputs)))]
        except Exception as error:  # noqa: BLE001  onnxruntime raises many kinds
            raise CaffePortError(f"was written, but does not run: {_reason(error)}", str(path)) from None
        for given, got in zip(dict.fromkeys((tuple(example), tuple(variation.inputs))), made, strict=True):
            worst = max(worst, _difference(module, given, outputs, got, str(path)))
    words = f"{path.name} differs from the model by {worst:.3g} at most"
    if variation.shapes is None:
        fixed = " x ".join(map(str, example[0].shape)) if example else ""
        return words if dynamic == "none" else f"{words}, and takes inputs of {fixed} only"
    return f"{words}, with {variation.words}"


def _open(module: nn.Module, example: Sequence[Tensor], dynamic: str) -> Iterator[_Variation]:
    """The variations that the module itself allows, the widest first: each input is an item per row."""
    if dynamic not in DYNAMIC:
        raise CaffePortError(f"dynamic '{dynamic}' is not one of {', '.join(DYNAMIC)}")
    if dynamic == "none" or not example or any(x.dim() == 0 or len(x) != len(example[0]) for x in example):
        return
    rows = len(example[0]) + 2
    more = [torch.cat([x] * rows)[:rows].clone() for x in example]
    before, after = _run(module, example), _run(module, more)
    n = len(example[0])
    if after is None or before is None:
        return
    for a, b in zip(before, after, strict=True):
        if a.dim() == 0 or len(a) != n or len(b) != rows or a.shape[1:] != b.shape[1:] or not _near(a, b[:n]):
            return
    batch = torch.export.Dim("batch")
    images = [x.dim() == 4 for x in example]
    if dynamic == "size" and any(images):
        larger = [torch.cat([x, x], 2)[:, :, : x.shape[2] + 32] if x.dim() == 4 else x for x in more]
        larger = [torch.cat([x, x, x], 3)[:, :, :, : x.shape[3] + 64] if x.dim() == 4 else x for x in larger]
        wide = _run(module, larger)
        if wide is not None and all(
            a.dim() < 4 or a.shape[2:] != b.shape[2:] for a, b in zip(after, wide, strict=True)
        ):
            height, width = torch.export.Dim("height"), torch.export.Dim("width")
            shapes = tuple({0: batch, 2: height, 3: width} if image else {0: batch} for image in images)
            if any(a.dim() == 4 for a in after):
                yield _Variation("any batch, height and width", larger, shapes)
    yield _Variation("any batch", more, tuple({0: batch} for _ in example))


def _run(module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor] | None:
    """The outputs; None if the module does not run."""
    try:
        with torch.no_grad():
            made = module.eval()(*inputs)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None
    return list(made.values()) if isinstance(made, dict) else [made]


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
