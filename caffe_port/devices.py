"""Devices: which there are, what they can do, and how the CPU keeps its memory."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from caffe_port.errors import CaffePortError


def find_device(name: str | torch.device) -> torch.device:
    """The device ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...; ``"auto"`` is the GPU if there is one.

    Raises:
        CaffePortError: the device does not exist or cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CaffePortError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}") from None
    return device


NO_BF16 = "the device has no bfloat16 instructions: using float32"


def has_bf16(device: torch.device) -> bool:
    """Whether a device has bfloat16 instructions; without them, bfloat16 is many times slower than float32."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).major) >= 8
    told: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.6 does not have it
    return any(told.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_KEEP_ALL = 2**31 - 1
_GLIBC_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}

_keeping = False


@contextlib.contextmanager
def memory_kept(device: torch.device) -> Iterator[bool]:
    """Within it, freed memory stays with the process; at the end, unused memory goes back to the system.

    glibc maps large blocks one by one and unmaps them when they are freed. A batch on a CPU allocates the same blocks
    as the one before it, and the kernel would have to clear each of their pages again: up to a quarter of the time of
    an update, and half of that of a forward pass. Nothing happens inside another ``memory_kept``, for other
    devices, or with C libraries that do not have these settings (musl, macOS, Windows).

    Yields:
        whether the settings were changed.
    """
    global _keeping
    wanted = device.type == "cpu" and sys.platform == "linux" and not _keeping
    libc = ctypes.CDLL(None) if wanted else None
    if libc is None or not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield False
        return
    _keeping = bool(libc.mallopt(_TRIM_THRESHOLD, _KEEP_ALL) and libc.mallopt(_MMAP_MAX, 0))
    try:
        yield _keeping
    finally:
        _keeping = False
        for setting, value in _GLIBC_DEFAULTS.items():
            libc.mallopt(setting, value)
        libc.malloc_trim(0)
