"""What each layer type takes, makes and keeps, without torch: one record per type."""

from __future__ import annotations

from caffe_port.signatures import (  # noqa: F401  each declares its types
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
