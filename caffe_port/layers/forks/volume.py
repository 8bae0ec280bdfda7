"""Convolutions of video and of volumes, (N, C, D, H, W), in the words of C3D. Pooling3D is in pooling.py."""

from __future__ import annotations

from caffe_port.layers.spatial import Convolution, Deconvolution


class Convolution3D(Convolution):
    """Same as torch.nn.Conv3d.

    ``kernel_depth``, ``temporal_stride`` and ``temporal_pad`` belong to the first of the three axes, ``kernel_size``,
    ``stride`` and ``pad`` to the other two. ``filter_group`` has no effect on the numbers: it cuts the outputs into
    parts that all see every channel.

    Blobs: weight (C_out, C_in, kD, kH, kW), bias (C_out), in the file (1, 1, 1, 1, C_out)
    Reference: facebookarchive/C3D convolution3d_layer.cpp
    """


class Deconvolution3D(Deconvolution):
    """Same as torch.nn.ConvTranspose3d. The parameters are those of Convolution3D.

    Blobs: weight (C_in, C_out, kD, kH, kW), bias (C_out), in the file (1, 1, 1, 1, C_out)
    Reference: facebookarchive/C3D deconvolution3d_layer.cpp
    """
