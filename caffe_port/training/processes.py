"""Training in one process or several: the training loop's interface to torch.distributed.

Started by ``torchrun --nproc-per-node N -m caffe_port train ...``. Every process prepares the whole batch and uses its
share of the rows; gradients are averaged. BatchNorm's statistics are those of the whole batch, so that N processes
compute what one does; statistics per process, as in Caffe's multi-GPU runs, are an option.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from caffe_port.devices import find_device
from caffe_port.layers.normalization import BatchNorm


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The index of this process."""
    return dist.get_rank() if world_size() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that writes files."""
    return rank() == 0


@contextlib.contextmanager
def group(device: str) -> Iterator[torch.device]:
    """The device of this process; joins the process group if torchrun started several.

    Raises:
        CaffePortError: there is no such device.
    """
    chosen = find_device(device)
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if chosen.type == "cuda":
        if count > 1:
            chosen = find_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(chosen)
    if count == 1 or dist.is_initialized():
        yield chosen
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield chosen
    finally:
        dist.destroy_process_group()


def leave(code: int) -> int:
    """The exit code of the command; a process of torchrun ends with it here.

    Threads of gloo may still hold Python objects. One that releases them while Python shuts down aborts the process
    (torch 2.14: "terminate called without an active exception"), and torchrun takes a run that is complete for failed.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """Wraps the model so that its backward pass averages gradients over the processes."""
    if world_size() == 1:
        return model
    return nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def sync_batch_norm(net: nn.Module) -> None:
    """Makes every BatchNorm compute its statistics over the rows of all processes, forward and backward."""
    if world_size() == 1:
        return
    for name, module in list(net.named_children()):
        if type(module) is BatchNorm:
            setattr(net, name, SyncBatchNorm.of(module))


class SyncBatchNorm(BatchNorm, register=False):
    """A BatchNorm that computes its statistics over all processes in train(), like torch.nn.SyncBatchNorm."""

    @classmethod
    def of(cls, norm: BatchNorm) -> SyncBatchNorm:
        """A SyncBatchNorm that shares the blobs of a BatchNorm."""
        made = cls(**norm.args)
        made.args = norm.args
        for name in norm.blob_names():
            setattr(made, name, getattr(norm, name))
        return made.train(norm.training)

    def normalize_by_batch(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().normalize_by_batch(x)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        count = x.numel() // x.shape[1] * world_size()
        values = x.float()
        mean = _sum(values.sum(axes)) / count
        centred = values - mean.reshape(shape)
        variance = _sum(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.mean.mul_(1 - self.momentum).add_(mean)
            self.variance.mul_(1 - self.momentum).add_(variance * (count / max(count - 1, 1)))
            self.scale_factor.mul_(1 - self.momentum).add_(1)
        normalized: Tensor = centred * (variance + self.eps).rsqrt().reshape(shape)
        return normalized.to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over the processes. Each sum depends on the values of every process, so gradients are summed as well."""

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        return _reduced(value)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _reduced(gradient)


def _reduced(value: Tensor) -> Tensor:
    value = value.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(value)
    return value


_sum: Callable[[Tensor], Tensor] = _Sum.apply


def rows(top: Tensor, channels_last: bool = False) -> Tensor:
    """This process's rows of a batch."""
    if world_size() > 1:
        share = len(top) // world_size()
        top = top[rank() * share : (rank() + 1) * share]
    return top.contiguous(memory_format=torch.channels_last) if channels_last and top.ndim == 4 else top


def share_of(count: int) -> range:
    """Indices of the batches, of ``count``, that this process tests."""
    return range(rank(), count, world_size())


@contextlib.contextmanager
def accumulate(model: nn.Module, last: bool) -> Iterator[None]:
    """Exchanges gradients only in the last of several backward passes."""
    if world_size() > 1 and not last and isinstance(model, nn.parallel.DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        yield


def mean(value: Tensor) -> float:
    """The mean over the processes."""
    return total(value) / world_size()


def total(value: Tensor) -> float:
    """The sum over the processes."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
    return float(value)


def means(values: list[Tensor]) -> list[float]:
    """The means of several scalars over the processes, with one synchronization."""
    together = torch.stack(values)
    if world_size() > 1:
        dist.all_reduce(together)
    return [float(value) / world_size() for value in together.tolist()]


TIME_OVER = "max_seconds"


def share_stop(stop: list[str], device: torch.device) -> None:
    """Shares stop requests: a signal or time limit in one process stops all of them after the same iteration."""
    if world_size() > 1:
        weight = 0.0 if not stop else 1.0 if stop[0] == TIME_OVER else float(1 << 20)
        if (heard := total(torch.tensor(weight, device=device))) and not stop:
            stop.append("SIGTERM" if heard >= 1 << 20 else TIME_OVER)


def barrier() -> None:
    """Waits for the other processes."""
    if world_size() > 1:
        dist.barrier()
