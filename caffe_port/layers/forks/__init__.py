"""The layer types of Caffe's forks as nn.Modules."""

from __future__ import annotations

from caffe_port.layers.forks import (  # noqa: F401  each registers its types
    activation,
    augmentation,
    blocks,
    cascade,
    crf,
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
    tensors,
    transform,
    volume,
    yolo,
)
