"""The records of the layer types of Caffe's forks."""

from __future__ import annotations

from caffe_port.signatures.forks import (  # noqa: F401  each declares its types
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
