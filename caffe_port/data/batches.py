"""Batches by number: what the training loop is fed with, and in which order records come."""

from __future__ import annotations

import functools
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
from torch import Tensor

from caffe_port.typing import Array


class Feed(Protocol):
    """Batches by number. A feed is a function of the number alone, so that a resumed run sees what it would have seen.

    Attributes:
        batch_size: rows of a batch.
        size: records in all; after the last the first comes again, within a batch too, as in Caffe.
        shapes: of the tops, one row.
    """

    batch_size: int
    size: int
    shapes: tuple[tuple[int, ...], ...]

    def batch(self, number: int) -> tuple[Tensor, ...]: ...


def positions(number: int, batch_size: int, size: int, shuffle: int | None = None) -> Array:
    """The records of a batch.

    Args:
        number: of the batch, from 0.
        batch_size: rows.
        size: records in all.
        shuffle: a seed: every epoch has its own order, drawn from (seed, epoch); None: in sequence.
    """
    at = np.arange(number * batch_size, (number + 1) * batch_size)
    epochs, rows = np.divmod(at, size)
    if shuffle is None:
        return rows
    for epoch in np.unique(epochs):
        rows[epochs == epoch] = _order(shuffle, int(epoch), size)[rows[epochs == epoch]]
    return rows


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, size: int) -> Array:
    return np.random.default_rng((seed, epoch)).permutation(size)


class Prefetch:
    """Prepares the next batches of a feed in threads while the net computes.

    Args:
        feed: whose batches may be asked for from several threads.
        ahead: how many batches are prepared.
        workers: how many threads.
    """

    def __init__(self, feed: Feed, ahead: int = 3, workers: int = 2) -> None:
        self.feed, self.ahead = feed, ahead
        self.batch_size, self.size, self.shapes = feed.batch_size, feed.size, feed.shapes
        self._pool = ThreadPoolExecutor(workers, "caffe_port_feed")
        self._waiting: dict[int, Future[tuple[Tensor, ...]]] = {}

    def batch(self, number: int) -> tuple[Tensor, ...]:
        wanted = range(number, number + 1 + self.ahead)
        for stale in [k for k in self._waiting if k not in wanted]:
            self._waiting.pop(stale).cancel()
        for k in wanted:
            if k not in self._waiting:
                self._waiting[k] = self._pool.submit(self.feed.batch, k)
        return self._waiting.pop(number).result()

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(cancel_futures=True)
