"""What a Net does in one phase, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from caffe_port.spec import LayerSpec, NetSpec, Producer
from caffe_port.typing import Shape

Operation = Callable[[Any, Any, Tensor], Tensor]
"""Makes a step's only top from its only bottom: called with the step's module, its partner's, the bottom."""


@dataclass(frozen=True)
class Step:
    """One layer: which values it reads and writes, and which are read for the last time.

    Attributes:
        operation: what runs in place of the module's own forward, with the same result; see
            :mod:`caffe_port.net.fusion`. :meth:`Net.steps` does without.
        partner: attribute of the other module that the operation concerns; its own where there is none.
    """

    layer: LayerSpec
    attribute: str
    bottoms: tuple[int, ...]
    tops: tuple[int, ...]
    per_bottom: bool
    frees: tuple[int, ...]
    operation: Operation | None = None
    partner: str = ""


@dataclass(frozen=True)
class Plan:
    """The steps of one phase. Values live in numbered slots; the inputs are the first.

    Attributes:
        steps: every layer by itself.
        slots: how many values there are.
        losses: slots of tops that count as losses, with their weights.
        fused: what :meth:`Net.forward` runs: ``steps``, where two layers may be one step.
    """

    spec: NetSpec
    steps: tuple[Step, ...]
    slots: int
    inputs: tuple[str, ...]
    outputs: tuple[tuple[str, int], ...]
    losses: tuple[tuple[int, float], ...]
    shapes: Mapping[Producer, Shape]
    fused: tuple[Step, ...] = ()
