"""From a Net back to Caffe: writes a prototxt and a caffemodel, and loads the state_dict of a model.py into the Net."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from caffe_port.api import Ported
from caffe_port.emit import model_source
from caffe_port.errors import WeightsError
from caffe_port.formats import caffemodel, meanings, prototxt
from caffe_port.formats.message import Message
from caffe_port.layers.normalization import BN, BatchNorm
from caffe_port.net import state_dict as state_files
from caffe_port.net.net import Net
from caffe_port.storage import output_folder


def write_caffe(net: Net | Ported, folder: str | Path, name: str = "net") -> tuple[Path, Path]:
    """Writes a net with its current weights as NAME.prototxt and NAME.caffemodel.

    The definition is that of phase TEST, with Input layers instead of data layers, in the format of Caffe 1.0.

    Returns:
        The two paths.

    Raises:
        CaffePortError: the folder cannot be written. Both files are written, or neither.
    """
    net = net.net if isinstance(net, Ported) else net
    folder = Path(folder)
    output_folder.check(folder, force=True)
    definition = caffe_definition(net)
    files = [path.name for path in paths(folder, name)]
    kept = {layer.name for layer in definition.layer}
    with output_folder.beside(folder) as temporary:
        blobs = {layer: blobs for layer, blobs in net.blobs().items() if layer in kept}
        caffemodel.write(temporary / files[1], definition, blobs)
        (temporary / files[0]).write_text(prototxt.dump(meanings.for_caffe(definition)), encoding="utf-8")
        output_folder.move_in(temporary, folder, files)
    return paths(folder, name)


def paths(folder: Path, name: str = "net") -> tuple[Path, Path]:
    """The two files that :func:`write_caffe` writes."""
    return folder / f"{name}.prototxt", folder / f"{name}.caffemodel"


def caffe_definition(net: Net) -> Message:
    """The NetParameter of phase TEST for deployment: no phases, no include rules, Input layers with shapes."""
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
    """Loads the weights of a model.py, which may have been trained further, back into the Net it was written from.

    Args:
        path: a state_dict (.safetensors, .pt, .pth) with the keys of weights.safetensors; not of a folded model.

    Raises:
        CaffePortError: the file is not a state_dict or belongs to another model; nothing is copied then.
    """
    state = state_files.read(path)
    wanted = model_source.model(net).state
    if wanted.keys() != state.keys():
        if model_source.model(net, fold=True).state.keys() == state.keys():
            raise WeightsError(
                "belongs to a model written with --fold: BatchNorm and Scale cannot be recovered from its weights",
                str(path),
                "Train the model that convert writes without --fold.",
            )
        odd = sorted(wanted.keys() ^ state.keys())[0]
        raise WeightsError(
            f"{'lacks' if odd in wanted else 'contains'} '{odd}', which the net's model.py "
            f"{'has' if odd in wanted else 'does not have'}",
            str(path),
        )
    for key, value in wanted.items():
        if state[key].shape != value.shape:
            raise WeightsError(f"'{key}' is {tuple(state[key].shape)}, the net's is {tuple(value.shape)}", str(path))
    for norm, scale in net.scales.items():
        if "bias" not in net.get_submodule(scale).state_dict() and state[f"{norm}.bias"].any():
            raise WeightsError(f"'{norm}.bias' was trained, but layer '{scale}' of the net has no bias", str(path))
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        attribute, _, name = key.rpartition(".")
        parts.setdefault(attribute, {})[name] = value
    for attribute, part in parts.items():
        _take_back(net, attribute, part, net.scales.get(attribute))


def _take_back(net: Net, attribute: str, part: dict[str, Tensor], scale: str | None) -> None:
    """Copies the state of a module of model.py into the layer that it was written from; the reverse of torch_state."""
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
