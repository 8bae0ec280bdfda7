"""state_dict files of PyTorch: .safetensors, .pt, .pth. No pickle is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caffe_port.errors import CaffePortError, ParseError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a state_dict by name, on the CPU.

    A checkpoint that wraps it (``{"state_dict": ...}``) is unwrapped, and DataParallel's ``module.`` taken off.

    Raises:
        ParseError: no state_dict, or one that only unpickling code could read.
        CaffePortError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"  # behind the length of its JSON header
        if is_safetensors:
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CaffePortError(f"cannot be read: {error.strerror or error}", str(path)) from None
    except Exception as error:  # noqa: BLE001 - damaged files raise anything
        raise ParseError(f"is no state_dict: {(str(error).splitlines() or [''])[0][:80]}", str(path)) from None
    while isinstance(state, dict) and not any(isinstance(v, Tensor) for v in state.values()):
        state = next((state[k] for k in _WRAPPERS if k in state), None)
    if not isinstance(state, dict):
        raise ParseError("holds no tensors by name: not a state_dict", str(path))
    return {k.removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}
