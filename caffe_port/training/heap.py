"""How the C library keeps the memory that every update allocates and frees again."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
KEEP_ALL = 2**31 - 1
GLIBC_DEFAULTS = {M_TRIM_THRESHOLD: 128 * 1024, M_MMAP_MAX: 65536}


@contextlib.contextmanager
def kept(device_type: str = "cpu") -> Iterator[bool]:
    """Within it, freed memory stays with the process; at the end, unused memory goes back to the system.

    glibc maps large blocks one by one and unmaps them when they are freed. An update on a CPU allocates the same blocks
    as the one before it, and the kernel would have to clear each of their pages again: up to a quarter of an update's
    time. Nothing happens for other devices or with C libraries that do not have these settings (musl, macOS, Windows).

    Yields:
        whether the settings were changed.
    """
    libc = ctypes.CDLL(None) if device_type == "cpu" and sys.platform == "linux" else None
    if libc is None or not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield False
        return
    changed = bool(libc.mallopt(M_TRIM_THRESHOLD, KEEP_ALL) and libc.mallopt(M_MMAP_MAX, 0))
    try:
        yield changed
    finally:
        for setting, value in GLIBC_DEFAULTS.items():
            libc.mallopt(setting, value)
        libc.malloc_trim(0)
