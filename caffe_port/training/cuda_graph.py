"""One update of the parameters, launched kernel by kernel or as one CUDA graph.

At batch size 100, a GPU may execute SimpleNet's kernels faster than Python launches them. A captured graph needs one
launch: the forward and backward passes and the solver's update use the same addresses every time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from caffe_port.errors import CaffePortError

Batches = list[list[Tensor]]
WARM_UP = 3


class GraphedUpdate:
    """Runs ``gradients`` and the optimizer's step; the fourth call captures them as a graph, which is then replayed.

    The first three calls are normal updates on a side stream, as PyTorch requires: they choose convolution algorithms,
    compile the net, and create the optimizer's state.

    Args:
        optimizer: an optimizer with ``keep_rates_on_device``; its other settings must not change between iterations.
        gradients: maps batches to a scalar loss and fills ``.grad``; must not synchronize with the device.
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
        if [top.shape for top in _flat(self.inputs)] != [top.shape for top in _flat(batches)]:
            raise CaffePortError(
                "batches of different shapes cannot be computed by one CUDA graph",
                hint="Omit --cuda-graph and --fast; --amp bf16 and --channels-last do not need it.",
            )
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
        for tensor in (loss, *_flat(batches)):  # keeps their memory from being reused while either stream needs it
            tensor.record_stream(present)
            tensor.record_stream(self.stream)
        return loss

    def _capture(self, batches: Batches) -> None:
        self.inputs = [[top.clone() for top in batch] for batch in batches]
        self.optimizer.zero_grad(set_to_none=True)  # so that gradients are allocated in the graph's memory
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):  # records the kernels without running them
            self.loss = self.gradients(self.inputs)
            self.optimizer.step()
        self.graph = graph


def _flat(batches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [top for batch in batches for top in batch]
