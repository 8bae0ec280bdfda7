"""One pass through a net: the place where a step is run, for ``Net.forward``, ``Net.steps`` and ``verify`` alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from caffe_port.net.plan import Plan, Step


class Execution:
    """The values of a pass, from the inputs on. A value is freed when its last reader has run.

    Attributes:
        values: by slot, see :class:`Plan`; None before a value is made, and after it was read for the last time.
    """

    def __init__(self, modules: Mapping[str, Any], plan: Plan, inputs: Sequence[Tensor]) -> None:
        self.modules = modules
        self.values: list[Any] = [*inputs, *[None] * (plan.slots - len(inputs))]

    def run(self, steps: Iterable[Step]) -> None:
        """Runs steps to the end, by their operations where they have one."""
        modules, values, put = self.modules, self.values, self.put
        for step in steps:
            if step.operation is None:
                put(step, self._call(step))
            else:
                put(step, step.operation(modules[step.attribute], modules[step.partner], values[step.bottoms[0]]))

    def bottoms(self, step: Step) -> tuple[Tensor, ...]:
        """What a step reads."""
        return tuple(self.values[i] for i in step.bottoms)

    def tops(self, step: Step) -> tuple[Tensor, ...]:
        """What a step's own module makes of its bottoms."""
        made = self._call(step)
        return made if isinstance(made, tuple) else () if made is None else (made,)

    def put(self, step: Step, tops: Any) -> None:
        """Hands tops to the layers downstream, be they the step's own or others, and frees values that none reads.

        Args:
            tops: a tensor, or a tuple with one or None for each top.
        """
        values = self.values
        if len(step.tops) == 1 and not isinstance(tops, tuple):
            values[step.tops[0]] = tops
        else:
            for i, top in zip(step.tops, tops or (), strict=True):
                values[i] = top
        for i in step.frees:
            values[i] = None

    def _call(self, step: Step) -> Any:  # this and put are what a net of many small layers waits for
        module, bottoms, values = self.modules[step.attribute], step.bottoms, self.values
        if len(bottoms) == 1:
            return module(values[bottoms[0]])
        if step.per_bottom:
            return tuple(module(values[i]) for i in bottoms)
        return module(*[values[i] for i in bottoms])
