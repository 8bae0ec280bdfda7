"""SIGINT and SIGTERM as stop requests that a training loop checks between iterations."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def caught() -> Iterator[list[str]]:
    """Yields a list to which SIGINT and SIGTERM append their name; a second signal has its usual effect."""
    stop: list[str] = []
    before: dict[int, Any] = {}

    def handler(number: int, _: Any) -> None:
        stop.append(signal.Signals(number).name)
        signal.signal(number, before[number])

    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        with contextlib.suppress(ValueError):  # not the main thread, where signals are handled
            before[number] = signal.signal(number, handler)
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)
