"""The record of the spatial transformer. Source: st_layer.cpp."""

from __future__ import annotations

import math
from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.signature import Trait, declare
from caffe_port.typing import Shape


def given_theta(p: Message) -> tuple[float | None, ...]:
    """The six numbers of the map, None for those that the second bottom gives."""
    names = [f"theta_{row}_{column}" for row in (1, 2) for column in (1, 2, 3)]
    return tuple(float(getattr(p, name)) if p.has(name) else None for name in names)


def _spatial_transformer(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p, (x, theta) = layer.st_param, bottoms
    if p.transform_type != "affine" or p.sampler_type != "bilinear":
        raise SpecError(f"{p.transform_type} and {p.sampler_type} are not supported; affine and bilinear are")
    missing = given_theta(p).count(None)
    if len(x) != 4 or theta[0] != x[0] or math.prod(theta[1:]) != missing:
        raise SpecError(f"expected a bottom (N, C, H, W) and a map (N, {missing}), got {x} and {theta}")
    size = (p.output_H if p.has("output_H") else x[2], p.output_W if p.has("output_W") else x[3])
    if min(size) < 1:
        raise SpecError("output_H and output_W must be positive")
    return [(*x[:2], *size)]


declare("SpatialTransformer", _spatial_transformer, message="st_param", bottoms=2, traits=Trait.KEEPS_CHANNELS)
