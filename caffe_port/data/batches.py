"""Batches by number for the training loop, and the order of the records."""

from __future__ import annotations

import functools
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
from torch import Tensor

from caffe_port.typing import Array


class Feed(Protocol):
    """Batches by number. A batch depends only on its number, so a resumed run sees the same data.

    Attributes:
        batch_size: records per batch.
        size: total number of records; after the last one, the first follows, also within a batch, as in Caffe.
        shapes: shapes of the tops of the first batch; the size of images and the number of objects in a label top may
            differ from batch to batch.
    """

    batch_size: int
    size: int
    shapes: tuple[tuple[int, ...], ...]

    def batch(self, number: int) -> tuple[Tensor, ...]: ...


def positions(number: int, batch_size: int, size: int, shuffle: int | None = None, skip: int = 0) -> Array:
    """The indices of the records in a batch.

    Args:
        number: index of the batch, from 0.
        batch_size: records per batch.
        size: total number of records.
        shuffle: a seed; the order of an epoch is a random permutation given by (seed, epoch). None: in sequence.
        skip: number of records to skip before the first batch.
    """
    at = np.arange(number * batch_size, (number + 1) * batch_size) + skip
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
        feed: the feed; it must be thread-safe.
        ahead: number of batches to prepare in advance.
        workers: number of threads.
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
        """Stops the threads."""
        self._pool.shutdown(cancel_futures=True)
