"""A training state as Caffe's solver keeps it, taken and given back."""

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
from caffe_port.training.optimizers import CaffeOptimizer
from caffe_port.training.solver import Learnable, SolverSpec, current_step, learnables, set_iteration
from caffe_port.typing import Array


def capture(net: Net, optimizer: CaffeOptimizer, spec: SolverSpec, it: int, learned_net: str) -> SolverState:
    """The state after ``it`` updates. Blobs that no solver changes have a history of zeros."""
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
    # Caffe's counter is that of the last update: the step of the next one is taken when its rate is asked for.
    return SolverState(it, learned_net, tuple(history), current_step(spec, max(it - 1, 0)))


def restore(state: SolverState, net: Net, optimizer: CaffeOptimizer, spec: SolverSpec) -> None:
    """Puts a state into an optimizer. The weights that belong to it are loaded by the caller.

    Raises:
        WeightsError: it belongs to another net or another solver; nothing was changed.
    """
    blobs = learnables(net)
    if len(state.history) != optimizer.slots * len(blobs):
        raise WeightsError(
            f"holds {len(state.history)} arrays, {type(optimizer).__name__} on this net keeps "
            f"{optimizer.slots} for each of {len(blobs)} blobs",
            state.path,
            "Is it the state of another net, or of another type of solver?",
        )
    for k, array in enumerate(state.history):
        blob = blobs[k % len(blobs)]
        layer, name = _owner(net, blob)
        asked = tuple(layer.get_blob(name).shape)
        if not shapes_agree(array.shape, asked):
            shapes = f"{tuple(array.shape)}, the blob has {asked}"
            raise WeightsError(f"layer '{blob.layer}', blob {blob.index}: history {shapes}", state.path)
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
    """Lets a layer see other numbers of the same shape as its parameter: it knows how Caffe lays them out."""
    own, parameter.data = parameter.data, values
    try:
        yield
    finally:
        parameter.data = own
