"""caffe.Classifier: classes of images. Source: python/caffe/classifier.py of Caffe."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from caffe_port.pycaffe import io, net_of_2014
from caffe_port.pycaffe.net import Net
from caffe_port.pycaffe.settings import TEST
from caffe_port.typing import Array


class Classifier(Net):
    """A net in phase TEST that takes images.

    Args:
        model_file: the prototxt.
        pretrained_file: the weights.
        image_dims: (height, width) that images are resized to before they are cropped; the size of the net's input if
            none.
        mean, input_scale, raw_scale, channel_swap: as the setters of :class:`~caffe_port.pycaffe.io.Transformer` take
            them.
        gpu, mean_file: of 2014, see :func:`~caffe_port.pycaffe.net_of_2014.arguments`.
    """

    def __init__(
        self,
        model_file: str | os.PathLike[str],
        pretrained_file: str | os.PathLike[str],
        image_dims: Sequence[int] | None = None,
        mean: Array | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
        *,
        gpu: bool | None = None,
        mean_file: str | None = None,
    ) -> None:
        mean, input_scale, raw_scale = net_of_2014.arguments(mean, input_scale, raw_scale, gpu, mean_file)
        super().__init__(model_file, TEST, weights=pretrained_file)
        self.transformer = transformer(self, mean, input_scale, raw_scale, channel_swap)
        self.crop_dims = np.array(self.blobs[self.inputs[0]].data.shape[2:])
        self.image_dims = self.crop_dims if image_dims is None or not len(image_dims) else image_dims

    def predict(self, inputs: Sequence[Array], oversample: bool = True) -> Array:
        """The net's first output for images (H, W, C).

        Args:
            oversample: the mean over ten crops of each image, see :func:`~caffe_port.pycaffe.io.oversample`; else the
                output for the center.

        Returns:
            (N, classes); without oversampling, (N, ...) as the output is.
        """
        height, width = (int(n) for n in self.image_dims)
        images = np.zeros((len(inputs), height, width, inputs[0].shape[2]), np.float32)
        for image, given in zip(images, inputs, strict=True):
            image[...] = io.resize_image(given, (height, width))
        if oversample:
            images = io.oversample(list(images), self.crop_dims.tolist())
        else:
            (top, left), (bottom, right) = (
                (np.array(self.image_dims) / 2.0 + sign * self.crop_dims / 2.0).astype(int) for sign in (-1, 1)
            )
            images = images[:, top:bottom, left:right]
        name = self.inputs[0]
        data = np.zeros(np.array(images.shape)[[0, 3, 1, 2]], np.float32)
        for one, image in zip(data, images, strict=True):
            one[...] = self.transformer.preprocess(name, image)
        predictions = self.forward_all(None, **{name: data})[self.outputs[0]]
        if oversample:
            predictions = predictions.reshape((len(predictions) // 10, 10, -1)).mean(1)
        return predictions


def transformer(
    net: Net, mean: Array | None, input_scale: float | None, raw_scale: float | None, channel_swap: Sequence[int] | None
) -> io.Transformer:
    """The Transformer of (H, W, C) images for a net's first input."""
    name = net.inputs[0]
    made = io.Transformer({name: net.blobs[name].data.shape})
    made.set_transpose(name, (2, 0, 1))
    if mean is not None:
        made.set_mean(name, mean)
    if input_scale is not None:
        made.set_input_scale(name, input_scale)
    if raw_scale is not None:
        made.set_raw_scale(name, raw_scale)
    if channel_swap is not None:
        made.set_channel_swap(name, channel_swap)
    return made
