"""Faults to plant in caffe-port, which the comparison must find: `make differential PLANT=all`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from caffe_port.definition import definition
from caffe_port.formats.message import Message
from caffe_port.layers import loss, pooling
from caffe_port.layers.normalization import BatchNorm
from caffe_port.layers.spatial import Convolution
from caffe_port.net import net
from caffe_port.signatures import pooling as pooling_records
from caffe_port.spec import LayerSpec, Producer

_resolve = definition._resolve


def _valid_is_full(losses: Tensor, valid: Tensor, *_: Any) -> Tensor:
    return losses.where(valid, 0).sum() / max(losses.numel(), 1)


def _old_values(layers: Sequence[Message], path: str, notes: list[str]) -> Iterator[LayerSpec]:
    """The layers, of which those after an in-place layer read what it read."""
    old: dict[Producer, Producer] = {}
    for layer in _resolve(layers, path, notes):
        for k, (bottom, producer) in enumerate(zip(layer.bottoms, layer.producers, strict=True)):
            if k < len(layer.tops) and layer.tops[k] == bottom:
                old[layer.name, k] = old.get(producer, producer)
        yield dataclasses.replace(layer, producers=tuple(old.get(one, one) for one in layer.producers))


def _biased(self: BatchNorm, x: Tensor) -> Tensor:
    axes = [0, *range(2, x.dim())]
    mean, variance = x.mean(axes), x.var(axes, unbiased=False)
    with torch.no_grad():
        self.mean.mul_(1 - self.momentum).add_(mean)
        self.variance.mul_(1 - self.momentum).add_(variance)
        self.scale_factor.mul_(1 - self.momentum).add_(1)
    shape = (-1,) + (1,) * (x.dim() - 2)
    return (x - mean.reshape(shape)) / (variance.reshape(shape) + self.eps).sqrt()


def _undilated(make: Callable[..., Any]) -> Callable[..., Any]:
    def from_caffe(p: Message, bottoms: Sequence[Any]) -> Any:
        return make(p.copy(dilation=None), bottoms)

    return from_caffe


PLANTS: dict[str, list[tuple[Any, str, Any]]] = {
    "pooling rounds down": [(place, "rounds_up", lambda _: False) for place in (pooling, pooling_records)],
    "losses divide by all labels": [(loss, "normalized", _valid_is_full)],
    "ignore_label counts": [(loss, "ignored", lambda _: None)],
    "readers of an in-place blob get the old values": [(definition, "_resolve", _old_values)],
    "overwriting what others read is accepted": [(definition, "_check_in_place", lambda *_: None)],
    "the running variance is biased": [(BatchNorm, "normalize_by_batch", _biased)],
    "dilation is ignored": [(Convolution, "from_caffe", _undilated(Convolution.from_caffe))],
    "blobs of one name are not shared": [(net, "_share", lambda *_: True)],
}
"""What is wrong -> the places that are replaced."""


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """caffe-port with a fault."""
    with contextlib.ExitStack() as stack:
        for place, attribute, wrong in PLANTS[name]:
            stack.enter_context(patch.object(place, attribute, wrong))
        yield
