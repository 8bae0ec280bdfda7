"""What a Net does in one phase, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from caffe_port.spec import LayerSpec, NetSpec, Source
from caffe_port.typing import Shape


@dataclass(frozen=True)
class Step:
    """One layer's turn: which values it reads and writes, and which are read for the last time.

    Attributes:
        in_place: of a ReLU: the layer whose top it alone reads and may overwrite; else empty.
        scale: of a BatchNorm in :attr:`Plan.merged`: the Scale that runs as its affine half; else empty.
    """

    layer: LayerSpec
    attribute: str
    bottoms: tuple[int, ...]
    tops: tuple[int, ...]
    per_bottom: bool
    frees: tuple[int, ...]
    in_place: str = ""
    scale: str = ""


@dataclass(frozen=True)
class Plan:
    """The steps of one phase. Values live in numbered slots; the inputs are the first.

    ``merged`` is ``steps`` with every Scale in :attr:`Net.scales` run together with its BatchNorm.
    """

    spec: NetSpec
    steps: tuple[Step, ...]
    slots: int
    inputs: tuple[str, ...]
    outputs: tuple[tuple[str, int], ...]
    losses: tuple[tuple[int, float], ...]
    shapes: Mapping[Source, Shape]
    merged: tuple[Step, ...] = ()
