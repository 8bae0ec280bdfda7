"""Saves and restores a training state in the form of Caffe's solver."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from caffe_port.errors import WeightsError
from caffe_port.formats.caffemodel import shapes_agree
from caffe_port.formats.solverstate import SolverState
from caffe_port.layers.layer import Layer
from caffe_port.net.net import Net
from caffe_port.signatures.signature import Trait
from caffe_port.terminal import count
from caffe_port.training.optimizers import CaffeOptimizer
from caffe_port.training.solver import Learnable, Plateau, SolverSpec, current_step, learnables, set_iteration
from caffe_port.typing import Array


def capture(
    net: Net, optimizer: CaffeOptimizer, spec: SolverSpec, it: int, learned_net: str, plateau: Plateau | None = None
) -> SolverState:
    """The state after ``it`` updates. The history of blobs that the solver does not update is zero."""
    history: list[Array] = []
    moving = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for slot in range(optimizer.slots):
        for blob in learnables(net):
            layer, name = _owner(net, blob)
            if id(blob.tensor) in moving:
                with _in_place_of(blob.tensor, optimizer.history(blob.tensor)[slot]):
                    history.append(layer.get_blob(name).detach().cpu().float().numpy().copy())
            else:
                history.append(np.zeros(tuple(layer.get_blob(name).shape), np.float32))
    # Caffe's current_step is that of the last update: it advances when the next rate is computed.
    if plateau is not None:
        event = plateau.iter_last_event
        return SolverState(it, learned_net, tuple(history), plateau.current_step, plateau.minimum_loss, event)
    return SolverState(it, learned_net, tuple(history), current_step(spec, max(it - 1, 0)))


def own_blobs(net: Net) -> dict[str, dict[int, Array]]:
    """Every layer's blobs by index, float32 copies; a blob that several layers share is only with the first of them."""
    seen: set[int] = set()
    found: dict[str, dict[int, Array]] = {}
    for name, arrays in net.blobs().items():
        module = net.caffe_layers()[name]
        tensors = [id(getattr(module, blob)) for blob in module.blob_names()]
        found[name] = {k: array for k, array in enumerate(arrays) if tensors[k] not in seen}
        seen.update(tensors)
    return found


def restore(state: SolverState, net: Net, optimizer: CaffeOptimizer, spec: SolverSpec) -> None:
    """Restores an optimizer from a state. The caller loads the weights that belong to it.

    Raises:
        WeightsError: the state belongs to another net or solver; nothing was changed.
    """
    blobs = learnables(net)
    if len(state.history) != optimizer.slots * len(blobs):
        raise WeightsError(
            f"has {count(len(state.history), 'array')}, but {type(optimizer).__name__} on this net has "
            f"{optimizer.slots} for each of {count(len(blobs), 'blob')}",
            state.path,
            "It may be the state of another net or of another type of solver.",
        )
    for k, array in enumerate(state.history):
        blob = blobs[k % len(blobs)]
        layer, name = _owner(net, blob)
        asked = tuple(layer.get_blob(name).shape)
        if not shapes_agree(array.shape, asked, layer.signature.has(Trait.ROWS)):
            shapes = f"{tuple(array.shape)}, but the blob has {asked}"
            raise WeightsError(f"layer '{blob.layer}', blob {blob.index}: history has shape {shapes}", state.path)
    moving = {id(p) for group in optimizer.param_groups for p in group["params"]}
    with torch.no_grad():
        for k, array in enumerate(state.history):
            slot, blob = k // len(blobs), blobs[k % len(blobs)]
            if id(blob.tensor) in moving:
                layer, name = _owner(net, blob)
                with _in_place_of(blob.tensor, optimizer.history(blob.tensor)[slot]):
                    layer.set_blob(name, torch.tensor(array).reshape(layer.get_blob(name).shape))
    set_iteration(optimizer, spec, state.iter)


def _owner(net: Net, blob: Learnable) -> tuple[Layer, str]:
    layer = net.caffe_layers()[blob.layer]
    return layer, layer.blob_names()[blob.index]


@contextlib.contextmanager
def _in_place_of(parameter: Tensor, values: Tensor) -> Iterator[None]:
    """Temporarily replaces a parameter's values by others of the same shape, so that its layer converts the layout."""
    own, parameter.data = parameter.data, values
    try:
        yield
    finally:
        parameter.data = own
