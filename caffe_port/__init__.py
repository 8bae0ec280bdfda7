"""caffe-port ports Caffe models to PyTorch and verifies them layer by layer.

>>> net = caffe_port.load("net.prototxt", "weights.caffemodel")     # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for type checkers and editors; at run time, names are imported on first use
    from caffe_port import errors, layers
    from caffe_port.api import Ported, load, port
    from caffe_port.emit.convert import convert
    from caffe_port.errors import CaffePortError
    from caffe_port.net.net import Net
    from caffe_port.training.train import train
    from caffe_port.verification.comparison import Report
    from caffe_port.verification.user_module.verify_module import assert_parity
    from caffe_port.verification.verify import verify

from caffe_port.version import __version__

__all__ = [
    "CaffePortError",
    "Net",
    "Ported",
    "Report",
    "__version__",
    "assert_parity",
    "convert",
    "errors",
    "layers",
    "load",
    "port",
    "train",
    "verify",
]

_MODULES = {
    "CaffePortError": "errors",
    "Net": "net.net",
    "Ported": "api",
    "Report": "verification.comparison",
    "assert_parity": "verification.user_module.verify_module",
    "convert": "emit.convert",
    "errors": "",
    "layers": "",
    "load": "api",
    "port": "api",
    "train": "training.train",
    "verify": "verification.verify",
}
"""Public name -> the module that defines it; empty if it is a module itself."""

if not TYPE_CHECKING:  # otherwise a type checker would accept any name

    def __getattr__(name: str) -> object:
        """Imports a public name on first use, so that `import caffe_port` does not import torch."""
        if name not in _MODULES:
            raise AttributeError(f"module 'caffe_port' has no attribute '{name}'")
        module = _MODULES[name]
        found = importlib.import_module(f"caffe_port.{module or name}")
        return getattr(found, name) if module else found


def __dir__() -> list[str]:
    return list(__all__)
