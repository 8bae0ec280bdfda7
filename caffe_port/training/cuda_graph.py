"""One update of the parameters, launched kernel by kernel or as one CUDA graph.

At batch 100 a GPU may be done with SimpleNet's kernels before Python has launched them. A captured graph is launched at
once: forward and backward passes and the solver's update read and write the same addresses every time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Batches = list[list[Tensor]]
WARM_UP = 3


class GraphedUpdate:
    """Runs ``gradients`` and the optimizer's step; from the fourth call on, the replay of what was captured then.

    The first calls are real updates too, on a stream of their own, as PyTorch asks for: they choose convolution
    algorithms, compile what is to be compiled, and make the optimizer's state.

    Args:
        optimizer: with ``keep_rates_on_device``; all else it uses stays as it is from iteration to iteration.
        gradients: batches -> loss, one number; fills ``.grad``. It must not wait for the device.
    """

    def __init__(self, optimizer: Any, gradients: Callable[[Batches], Tensor]) -> None:
        self.optimizer, self.gradients = optimizer, gradients
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.calls = 0
        self.inputs: Batches = []
        self.loss = torch.empty(0)

    def __call__(self, batches: Batches) -> Tensor:
        """The loss, on the device."""
        self.optimizer.keep_rates_on_device()
        self.calls += 1
        if self.graph is None and self.calls <= WARM_UP:
            return self._warm_up(batches)
        if self.graph is None:
            self._capture(batches)
        assert self.graph is not None
        for mine, theirs in zip(_flat(self.inputs), _flat(batches), strict=True):
            mine.copy_(theirs)
        self.graph.replay()
        return self.loss.clone()

    def _warm_up(self, batches: Batches) -> Tensor:
        present = torch.cuda.current_stream()
        self.stream.wait_stream(present)
        with torch.cuda.stream(self.stream):
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.gradients(batches)
            self.optimizer.step()
        present.wait_stream(self.stream)
        for tensor in (loss, *_flat(batches)):  # their memory is not given to others while either stream needs it
            tensor.record_stream(present)
            tensor.record_stream(self.stream)
        return loss

    def _capture(self, batches: Batches) -> None:
        self.inputs = [[top.clone() for top in batch] for batch in batches]
        self.optimizer.zero_grad(set_to_none=True)  # so that gradients lie in the graph's own memory
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):  # nothing runs yet: it is recorded
            self.loss = self.gradients(self.inputs)
            self.optimizer.step()
        self.graph = graph


def _flat(batches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [top for batch in batches for top in batch]
