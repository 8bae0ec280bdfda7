"""Runs a Net beside the model.py that was written from it, and computes once what both compute.

A net's time is that of its convolutions and products. Where model.py asks for the one that the Net has just computed,
the same function of the very same numbers, it is given the Net's result. Where it asks for anything else, a further
stride or another weight, that is computed, and the outputs differ.

So it does not matter what a product gives, as long as both get the same. To see that the batch size is free takes a
batch of two; the products of its second half need not be computed at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from caffe_port.net.execution import Execution
from caffe_port.net.net import Net

_PRODUCTS: Final = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, F.conv_transpose3d, F.linear)
_LEAST: Final = 1 << 22
"""Multiply-accumulates from which on a product is worth looking for."""


@dataclass(frozen=True)
class _Product:
    """A call of one of the functions, and what it gave; tensors that have changed since are known by their versions."""

    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    made: Tensor
    versions: list[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "versions", self._versions())

    def _versions(self) -> list[int]:
        return [each._version for each in (*self.args, self.made) if isinstance(each, Tensor)]

    def is_of(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call is this very one."""
        return (
            function is self.function
            and len(args) == len(self.args)
            and kwargs.keys() == self.kwargs.keys()
            and self._versions() == self.versions
            and all(map(_same, args, self.args))
            and all(_same(value, self.kwargs[name]) for name, value in kwargs.items())
        )


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and bool(one == other)
    if (one.dtype, one.shape, one.stride()) != (other.dtype, other.shape, other.stride()):
        return False
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)


class _Recorder(TorchFunctionMode):
    """Within this context, products are written down; ``half``: see :class:`Beside`."""

    def __init__(self, seen: list[_Product], half: bool) -> None:
        super().__init__()
        self.seen, self.half = seen, half

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _is_large(func, args):
            return func(*args, **kwargs)
        made = _half_computed(func, args, kwargs) if self.half else func(*args, **kwargs)
        self.seen.append(_Product(func, args, kwargs, made))
        return made


def _half_computed(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """A product of the first half of a batch; in place of the second half's there are other numbers of that size."""
    x, weight = args[:2]
    batched = x.dim() == weight.dim() or function is F.linear
    if not batched or x.shape[0] % 2:
        return function(*args, **kwargs)  # type: ignore[no-any-return]
    made = function(x[: x.shape[0] // 2], *args[1:], **kwargs)
    return torch.cat([made, made * -0.5])


class Beside(TorchFunctionMode):
    """Within this context, the Net runs as far as what else runs has come.

    Args:
        net: in the phase to run.
        inputs: the Net's inputs, which stay as they are.
        seed: of the Net's random numbers, which are its own.
        half: only compute the products of the first half of a batch. If all are found and the outputs are equal, they
            are with any numbers in the second half; otherwise, outputs say nothing.

    Attributes:
        found: how many products were not computed a second time.
        missed: how many were.
    """

    def __init__(self, net: Net, inputs: Sequence[Tensor], seed: int, half: bool = False) -> None:
        super().__init__()
        self.found = self.missed = 0
        self._half = half
        self._plan = net.plans[net.training]
        self._execution = Execution(net._modules, self._plan, [x.clone() for x in inputs])
        self._steps = iter(self._plan.fused)
        self._seen: list[_Product] = []  # those of the last step
        self._failed: Exception | None = None
        self._random = torch.Generator().manual_seed(seed).get_state()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _is_large(func, args):
            found = next((product for product in self._products() if product.is_of(func, args, kwargs)), None)
            if found is not None:
                self.found += 1
                self._seen = [product for product in self._seen if product is not found]
                made = found.made
                del found  # and with it what it was made from
                return made.clone()  # a layer in place may change either
            self.missed += 1
        return func(*args, **kwargs)

    def outputs(self) -> dict[str, Tensor]:
        """Runs the Net to its end: its outputs by blob name; one alone by an empty name.

        Raises:
            Exception: what the Net raised.
        """
        with torch.no_grad():
            for _ in self._products():
                pass
        if self._failed is not None:
            raise self._failed
        values, outputs = self._execution.values, self._plan.outputs
        return {blob if len(outputs) > 1 else "": values[slot] for blob, slot in outputs}

    def _products(self) -> Iterator[_Product]:
        """The products of the Net's last step, then those of its next ones."""
        yield from tuple(self._seen)
        while True:
            self._seen = []
            try:
                with self._own_random_numbers(), _Recorder(self._seen, self._half):
                    for step in self._steps:
                        self._execution.run((step,))
                        if self._seen:
                            break
            except Exception as error:
                self._failed, self._steps = error, iter(())
                raise
            if not self._seen:
                return
            yield from tuple(self._seen)

    @contextlib.contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        theirs = torch.get_rng_state()
        torch.set_rng_state(self._random)
        try:
            yield
        finally:
            self._random = torch.get_rng_state()
            torch.set_rng_state(theirs)


def _is_large(function: Any, args: Sequence[Any]) -> bool:
    if function not in _PRODUCTS or len(args) < 2:
        return False
    x, weight = args[:2]
    return bool(x.dim() > 1 and x.numel() // max(1, x.shape[1]) * weight.numel() >= _LEAST)
