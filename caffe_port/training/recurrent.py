"""The states of recurrent layers between two forward passes. As in Caffe, the training net and each test net go on
where their own last batch ended, unless cont is 0 there.

Source: recurrent_layer.cpp (Forward_cpu)
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from caffe_port.errors import ParseError
from caffe_port.net.net import Net

States = dict[str, tuple[Tensor, ...]]
"""By the name of the module; layers that have not run yet are left out."""


def _layers(net: Net) -> Iterator[tuple[str, Any]]:
    return ((name, module) for name, module in net.named_modules() if hasattr(module, "stateful"))


def keep(net: Net) -> bool:
    """Lets the layers go on where they ended; returns whether there are any."""
    found = [module for _, module in _layers(net) if not getattr(module, "expose_hidden", False)]
    for module in found:
        module.stateful = True
    return bool(found)


def states(net: Net) -> States:
    """The present states."""
    return {
        name: module.state if isinstance(module.state, tuple) else (module.state,)
        for name, module in _layers(net)
        if module.state is not None
    }


def put(net: Net, given: Mapping[str, tuple[Tensor, ...]]) -> None:
    """Sets the states; layers without one begin with zeros."""
    for name, module in _layers(net):
        own = given.get(name)
        module.state = None if own is None else own if len(own) > 1 else own[0]


def packed(given: Mapping[str, tuple[Tensor, ...]]) -> dict[str, list[Any]]:
    """States as JSON: shape and values of each."""
    arrays = {name: [one.float().cpu().numpy() for one in own] for name, own in given.items()}
    return {
        name: [[list(array.shape), base64.b64encode(array.tobytes()).decode()] for array in own]
        for name, own in arrays.items()
    }


def unpacked(table: Mapping[str, list[Any]], like: nn.Module, where: str) -> States:
    """The states that :func:`packed` returned, on the device of a net. Raises ParseError for anything else."""
    device = next(like.parameters()).device
    try:
        return {
            name: tuple(
                torch.from_numpy(np.frombuffer(base64.b64decode(data), np.float32).reshape(shape).copy()).to(device)
                for shape, data in own
            )
            for name, own in table.items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ParseError(f"is damaged: the states of recurrent layers: {str(error)[:100]}", where) from None
