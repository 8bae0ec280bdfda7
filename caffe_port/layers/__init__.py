"""Caffe's layer types as nn.Modules: one class per type, one module per family."""

from __future__ import annotations

from caffe_port.layers import (  # noqa: F401  each registers its types by being imported, as a plugin does
    activation,
    crop,
    data,
    forks,
    linear,
    loss,
    normalization,
    pooling,
    recurrent,
    shape,
    spatial,
)
from caffe_port.layers.layer import (
    REGISTRY,
    UNSUPPORTED,
    Layer,
    canonical_axis,
    check_count,
    class_of,
    constructor,
    expect_bottoms,
    lookup,
    number,
    scalar_if_equal,
)
from caffe_port.typing import Shape

__all__ = [
    "REGISTRY",
    "UNSUPPORTED",
    "Layer",
    "Shape",
    "canonical_axis",
    "check_count",
    "class_of",
    "constructor",
    "expect_bottoms",
    "lookup",
    "number",
    "scalar_if_equal",
]
