"""What plugins register, kept within a test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from caffe_port.layers.layer import PYTHON_LAYERS, REGISTRY
from caffe_port.signatures.signature import PYTHON, SIGNATURES

_ALL: tuple[dict[str, Any], ...] = (REGISTRY, SIGNATURES, PYTHON_LAYERS, PYTHON)


@contextlib.contextmanager
def forgotten() -> Iterator[None]:
    """What is registered within the block is forgotten after it."""
    before = [dict(registry) for registry in _ALL]
    try:
        yield
    finally:
        for registry, kept in zip(_ALL, before, strict=True):
            registry.clear()
            registry.update(kept)


def forget(*names: str) -> None:
    """Forgets types, and Python layers by ``module.layer``."""
    for registry in _ALL:
        for name in names:
            registry.pop(name, None)
