"""caffe-port moves Caffe models to PyTorch and proves that nothing changed on the way.

>>> net = caffe_port.load("net.prototxt", "weights.caffemodel")     # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import Any

from caffe_port.version import __version__

_LAZY = {
    "load": "api",
    "port": "api",
    "Ported": "api",
    "Net": "net.net",
    "CaffePortError": "errors",
    "convert": "emit.convert",
    "verify": "verification.verify",
    "assert_parity": "verification.user_module.verify_module",
    "train": "training.train",
}

__all__ = [*_LAZY, "__version__"]


def __getattr__(name: str) -> Any:
    """Names of the public API, imported when first asked for: `import caffe_port` does not import torch."""
    if name in _LAZY:
        return getattr(importlib.import_module(f"caffe_port.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'caffe_port' has no attribute '{name}'")
