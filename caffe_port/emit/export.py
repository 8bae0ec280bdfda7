"""Exports a net to other formats, ONNX and torch.export."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from caffe_port.emit.onnx_functions import translations
from caffe_port.errors import CaffePortError, DependencyError
from caffe_port.net.plan import Plan

ONNX, PT2 = "model.onnx", "model.pt2"


def onnx(module: nn.Module, example: Sequence[Tensor], plan: Plan, path: str | Path) -> str:
    """Writes a module as ONNX, with the net's blob names for its inputs and outputs, in the example's shapes.

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
    with _quiet():
        try:
            program = torch.onnx.export(
                module.eval(),
                tuple(example),
                dynamo=True,
                input_names=inputs,
                output_names=outputs,
                verbose=False,
                custom_translation_table=translations(),
            )
            assert program is not None
            for node in program.model.graph.all_nodes():
                node.metadata_props.clear()  # stack traces with paths of this machine
            program.save(str(path))
        except Exception as error:  # noqa: BLE001  the exporter raises many kinds
            raise CaffePortError(f"cannot be written as ONNX: {_reason(error)}", str(path)) from None
    if not importlib.util.find_spec("onnxruntime"):
        return f"{Path(path).name} was not run: onnxruntime is not installed"
    onnxruntime = importlib.import_module("onnxruntime")
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), example, strict=True)}
        got = [torch.from_numpy(y) for y in session.run(outputs, feeds)]
    except Exception as error:  # noqa: BLE001  onnxruntime raises many kinds
        raise CaffePortError(f"does not run in onnxruntime: {_reason(error)}", str(path)) from None
    return _agree(module, example, outputs, got, str(path))


def pt2(module: nn.Module, example: Sequence[Tensor], plan: Plan, path: str | Path) -> str:
    """Writes a module with torch.export.save, in the example's shapes; ``torch.export.load`` reads it.

    Returns:
        The result of running the file, as a sentence.

    Raises:
        CaffePortError: control flow depends on tensor values, or the file does not compute what the module computes.
    """
    with _quiet(), torch.no_grad():
        try:
            program = torch.export.export(module.eval(), tuple(example))
            torch.export.save(program, str(path))
            made = torch.export.load(str(path)).module()(*example)
        except Exception as error:  # noqa: BLE001  the exporter raises many kinds
            raise CaffePortError(f"cannot be exported: {_reason(error)}", str(path)) from None
    got = list(made.values()) if isinstance(made, dict) else [made]
    return _agree(module, example, [blob for blob, _ in plan.outputs], got, str(path))


def _agree(module: nn.Module, example: Sequence[Tensor], blobs: Sequence[str], got: Sequence[Tensor], path: str) -> str:
    """Compares with the module's own outputs, within 1e-4 of the largest value of each."""
    with torch.no_grad():
        made = module(*example)
    wanted = list(made.values()) if isinstance(made, dict) else [made]
    worst = 0.0
    for blob, a, b in zip(blobs, wanted, got, strict=True):
        difference = float((a - b).nan_to_num().abs().max()) if a.shape == b.shape and a.numel() else 0.0
        greatest = float(a.nan_to_num().abs().max()) if a.numel() else 0.0
        if a.shape != b.shape or not torch.allclose(a, b, rtol=0, atol=1e-4 * max(greatest, 0.1), equal_nan=True):
            what = f"by {difference:.3g}" if a.shape == b.shape else f"in shape, {tuple(b.shape)} for {tuple(a.shape)}"
            raise CaffePortError(f"output '{blob}' differs from the model's {what}", path)
        worst = max(worst, difference)
    return f"{Path(path).name} differs from the model by {worst:.3g} at most"


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
