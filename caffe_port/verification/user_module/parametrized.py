"""Weights that a module computes from other parameters: weight_norm and torch.nn.utils.parametrize."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from caffe_port.verification.user_module.recorder import Call, owner_of


def parameters_of(module: nn.Module, call: Call, key: str) -> list[Tensor]:
    """The parameters that a weight or bias of a call is computed from; none if it is a parameter itself."""
    owner = owner_of(module, call)
    if owner is None or not isinstance(call.named.get(key), Tensor):
        return []
    if parametrize.is_parametrized(owner, key):
        return list(owner.parametrizations[key].parameters())  # type: ignore[index, union-attr]
    parts = [getattr(owner, f"{key}_{part}", None) for part in ("g", "v")]
    return [part for part in parts if isinstance(part, Tensor)] if all(p is not None for p in parts) else []


def set_to(module: nn.Module, call: Call, key: str, values: Tensor) -> list[str]:
    """Sets what a weight or bias is computed from, so that it has these values; what to say if that is impossible."""
    owner = owner_of(module, call)
    assert owner is not None
    if not parametrize.is_parametrized(owner, key):  # torch.nn.utils.weight_norm
        size, direction = getattr(owner, f"{key}_g"), getattr(owner, f"{key}_v")
        axes = [n for n in range(values.ndim) if size.ndim <= n or size.shape[n] == 1]
        direction.copy_(values)
        size.copy_(torch.linalg.vector_norm(values, dim=axes, keepdim=True).reshape(size.shape))
        return []
    try:
        setattr(owner, key, values)
    except (NotImplementedError, AttributeError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0][:120]
        return [f"{call.name}: its {key} is computed from others and cannot be set to Caffe's: {reason}"]
    return []
