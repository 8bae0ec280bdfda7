"""Devices and their capabilities."""

from __future__ import annotations

from collections.abc import Mapping
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
