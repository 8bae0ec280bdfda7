"""SIGINT and SIGTERM as a wish that a training loop hears between two iterations."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def caught() -> Iterator[list[str]]:
    """A list that SIGINT and SIGTERM put their name into; a second signal acts as usual."""
    stop: list[str] = []
    before: dict[int, Any] = {}

    def handler(number: int, _: Any) -> None:
        stop.append(signal.Signals(number).name)
        signal.signal(number, before[number])

    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        with contextlib.suppress(ValueError):  # not the main thread: whoever runs it handles signals
            before[number] = signal.signal(number, handler)
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)
