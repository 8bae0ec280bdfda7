"""The records of the layer types that forks added, in the families of :mod:`caffe_port.layers.forks`."""

from __future__ import annotations

from caffe_port.signatures.forks import (  # noqa: F401  each declares its types
    activation,
    blocks,
    cascade,
    detection,
    detection_loss,
    faces,
    flow,
    quantized,
    rcnn,
    reduce,
    resample,
    resize,
    sequence,
    transform,
    volume,
    yolo,
)
