"""Caffe's Python API on PyTorch, and the scripts that use it."""

from __future__ import annotations

import importlib
from typing import Any

from caffe_port.pycaffe.blob import Blob, BlobVec
from caffe_port.pycaffe.layer import Layer, layer_type_list
from caffe_port.pycaffe.net import Net
from caffe_port.pycaffe.settings import (
    NCCL,
    TEST,
    TRAIN,
    Timer,
    has_nccl,
    init_log,
    log,
    set_device,
    set_logging_disabled,
    set_mode_cpu,
    set_mode_gpu,
    set_multiprocess,
    set_phase_test,
    set_phase_train,
    set_random_seed,
    set_solver_count,
    set_solver_rank,
    solver_count,
    solver_rank,
)
from caffe_port.pycaffe.solvers import (
    AdaDeltaSolver,
    AdaGradSolver,
    AdamSolver,
    NesterovSolver,
    RMSPropSolver,
    SGDSolver,
    get_solver,
)
from caffe_port.version import __version__ as _version

# `import caffe_port.pycaffe as caffe`; or scripts that begin with `import caffe`, under `caffe-port run`, which alone
# makes that name mean this package. docs/pycaffe.md says what is offered.

__version__ = f"1.0.0 (caffe-port {_version})"
"""The version of Caffe whose behavior this follows, and of the program that runs instead of it."""

__all__ = [
    "NCCL",
    "TEST",
    "TRAIN",
    "AdaDeltaSolver",
    "AdaGradSolver",
    "AdamSolver",
    "Blob",
    "BlobVec",
    "Classifier",
    "Detector",
    "Layer",
    "NesterovSolver",
    "Net",
    "NetSpec",
    "RMSPropSolver",
    "SGDSolver",
    "Timer",
    "__version__",
    "coord_map",
    "draw",
    "get_solver",
    "has_nccl",
    "init_log",
    "io",
    "layer_type_list",
    "layers",
    "log",
    "net_spec",
    "params",
    "proto",
    "set_device",
    "set_logging_disabled",
    "set_mode_cpu",
    "set_mode_gpu",
    "set_multiprocess",
    "set_phase_test",
    "set_phase_train",
    "set_random_seed",
    "set_solver_count",
    "set_solver_rank",
    "solver_count",
    "solver_rank",
    "to_proto",
]

_MODULES = {
    "Classifier": "classifier",
    "Detector": "detector",
    "NetSpec": "net_spec",
    "Solver": "solvers",
    "classifier": "",
    "coord_map": "",
    "detector": "",
    "draw": "",
    "io": "",
    "layers": "net_spec",
    "net_spec": "",
    "params": "net_spec",
    "proto": "",
    "to_proto": "net_spec",
}
"""Public name -> the module that defines it, imported on first use; empty if it is a module itself."""


_VECTORS = ("BoolVec", "DtypeVec", "IntVec", "LayerVec", "NetVec", "RawBlobVec", "StringVec")
"""Names of ``caffe._caffe`` for vectors of C++, which are lists here."""


def __getattr__(name: str) -> Any:
    """Imports what a script may never ask for on first use."""
    if name in _VECTORS:
        return list
    if name not in _MODULES:
        raise AttributeError(f"module 'caffe_port.pycaffe' has no attribute '{name}'")
    module = _MODULES[name]
    found = importlib.import_module(f"caffe_port.pycaffe.{module or name}")
    return getattr(found, name) if module else found
