"""Which memory format a net computes in on a CPU: PyTorch's channels-last where it has convolutions of images.

A rule rather than a measurement at run time, so that a net always gets the same. Of the nets in docs/performance.md,
all are faster in it with batches and in training, as far as they were tried; with one image, ResNet-50 alone is slower,
by 4 %.
"""

from __future__ import annotations

from caffe_port.layers.spatial import Convolution, Deconvolution
from caffe_port.layers.stub import Stub
from caffe_port.net.net import Net


def prefers_channels_last(net: Net) -> bool:
    """Whether a net has convolutions of images, and no layer of others, which may not expect their bottoms so."""
    found = False
    for module in net.children():
        volumes = any(parameter.dim() == 5 for parameter in module.parameters())  # PyTorch has another format for them
        ours = type(module).__module__.startswith("caffe_port.") and not isinstance(module, Stub)
        if volumes or not ours:
            return False
        found = found or (isinstance(module, (Convolution, Deconvolution)) and module.weight.dim() == 4)
    return found
