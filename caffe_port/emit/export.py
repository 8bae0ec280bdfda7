"""Other forms of a net: ONNX, torch.export, and Caffe's own files, for what a trained Net is to run on."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from caffe_port.api import Ported
from caffe_port.emit import model_source
from caffe_port.emit.onnx_functions import translations
from caffe_port.errors import CaffePortError, DependencyError, WeightsError
from caffe_port.formats import caffemodel, prototxt
from caffe_port.formats.message import Message
from caffe_port.layers.normalization import BN, BatchNorm
from caffe_port.net import state_dict as state_files
from caffe_port.net.net import Net
from caffe_port.net.plan import Plan
from caffe_port.storage.files import atomic_write

ONNX, PT2 = "model.onnx", "model.pt2"


def onnx(module: nn.Module, example: Sequence[Tensor], plan: Plan, path: str | Path) -> str:
    """Writes a module as ONNX, with the net's blob names for its inputs and outputs, in the example's shapes.

    Returns:
        What running the file in onnxruntime showed, a sentence.

    Raises:
        DependencyError: onnxscript is not installed.
        CaffePortError: an operator has no ONNX form, or the file does not give what the module gives.
    """
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript")):
        hint = "pip install 'caffe-port[onnx]'"
        raise DependencyError("ONNX export needs onnx and onnxscript", str(path), hint)
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
                node.metadata_props.clear()  # stack traces with the paths of this machine
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
        What running the file showed, a sentence.

    Raises:
        CaffePortError: its control flow depends on the values of tensors, or the file does not give what it gives.
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
    """Compares with the module's own outputs, within 1e-4 of the greatest number of each."""
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
    """The exporters talk about themselves, in warnings and in logs."""
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


# -- back to Caffe ------------------------------------------------------------------------------------------------


def write_caffe(net: Net | Ported, folder: str | Path, name: str = "net") -> tuple[Path, Path]:
    """Writes a net, as trained as it is, as NAME.prototxt and NAME.caffemodel.

    The definition is the net's phase TEST, with Input layers in the place of data layers, in the form of Caffe 1.0.

    Returns:
        The two paths.

    Raises:
        CaffePortError: the folder cannot be written.
    """
    net = net.net if isinstance(net, Ported) else net
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaffePortError(f"cannot be written: {error.strerror}", str(folder)) from None
    definition = caffe_definition(net)
    paths = folder / f"{name}.prototxt", folder / f"{name}.caffemodel"
    kept = {layer.name for layer in definition.layer}
    caffemodel.write(paths[1], definition, {layer: blobs for layer, blobs in net.blobs().items() if layer in kept})
    with atomic_write(paths[0], "w") as file:
        file.write(prototxt.dump(definition))
    return paths


def caffe_definition(net: Net) -> Message:
    """The NetParameter of a net's phase TEST, for deployment: no phases, no rules, Input layers with shapes."""
    plan = net.plans[False]
    from_outside = {source[0] for _, source in plan.spec.inputs}
    layers = []
    for spec in plan.spec.layers:
        if spec.name in from_outside:
            shapes = [Message("BlobShape", dim=list(plan.shapes[spec.name, k])) for k in range(len(spec.tops))]
            layers.append(
                Message(
                    "LayerParameter",
                    name=spec.name,
                    type="Input",
                    top=list(spec.tops),
                    input_param=Message("InputParameter", shape=shapes),
                )
            )
        else:
            layers.append(
                spec.param.copy(
                    name=spec.name,
                    bottom=list(spec.bottoms),
                    top=list(spec.tops),
                    blobs=None,
                    phase=None,
                    include=None,
                    exclude=None,
                )
            )
    return Message("NetParameter", name=plan.spec.name, layer=layers)


def load_state(net: Net, path: str | Path) -> None:
    """Takes the weights of a model.py, as somebody trained it on, back into the Net it was written from.

    Args:
        path: a state_dict (.safetensors, .pt, .pth) with the keys of weights.safetensors; not of a folded one.

    Raises:
        CaffePortError: no state_dict, or of another model; then nothing was copied.
    """
    state = state_files.read(path)
    wanted = model_source.model(net).state
    if wanted.keys() != state.keys():
        if model_source.model(net, fold=True).state.keys() == state.keys():
            raise WeightsError(
                "is of a model written with --fold: BatchNorm and Scale cannot be told from its weights",
                str(path),
                "Train what convert writes without --fold.",
            )
        odd = sorted(wanted.keys() ^ state.keys())[0]
        raise WeightsError(
            f"{'lacks' if odd in wanted else 'holds'} '{odd}', which the net's model.py "
            f"{'has' if odd in wanted else 'does not have'}",
            str(path),
        )
    for key, value in wanted.items():
        if state[key].shape != value.shape:
            raise WeightsError(f"'{key}' is {tuple(state[key].shape)}, the net's is {tuple(value.shape)}", str(path))
    for norm, scale in net.scales.items():
        if "bias" not in net.get_submodule(scale).state_dict() and state[f"{norm}.bias"].any():
            raise WeightsError(f"'{norm}.bias' was learnt, and layer '{scale}' of the net has no bias", str(path))
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        attribute, _, name = key.rpartition(".")
        parts.setdefault(attribute, {})[name] = value
    for attribute, part in parts.items():
        _take_back(net, attribute, part, net.scales.get(attribute))


def _take_back(net: Net, attribute: str, part: dict[str, Tensor], scale: str | None) -> None:
    """Copies what a module of model.py holds into the layer it stands for: torch_state the other way round."""
    layer = net.get_submodule(attribute)
    if scale is not None:
        affine = {name: part.pop(name) for name in ("weight", "bias")}
        folded = net.get_submodule(scale)
        folded.load_state_dict({name: affine[name] for name in folded.state_dict()})
    if isinstance(layer, (BatchNorm, BN)) and "running_mean" in part:
        names = {"running_mean": "mean", "running_var": "variance", "weight": "slope", "bias": "bias"}
        part = {names[name]: value for name, value in part.items() if name in names}
        if isinstance(layer, BatchNorm):
            part["scale_factor"] = torch.ones(1)
    elif isinstance(layer, BN) and "weight" in part:
        part["slope"] = part.pop("weight")
    layer.load_state_dict(part)
