"""caffe.Detector: what is in windows of images, as in R-CNN. Source: python/caffe/detector.py of Caffe."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from caffe_port.errors import CaffePortError
from caffe_port.pycaffe import io, net_of_2014
from caffe_port.pycaffe.classifier import transformer
from caffe_port.pycaffe.net import Net
from caffe_port.pycaffe.settings import TEST
from caffe_port.typing import Array


class Detector(Net):
    """A net in phase TEST that takes windows of images, warped to its input.

    Args:
        model_file: the prototxt.
        pretrained_file: the weights.
        mean, input_scale, raw_scale, channel_swap: as the setters of :class:`~caffe_port.pycaffe.io.Transformer` take
            them.
        context_pad: pixels of the input around a window that show what surrounds it; where that is outside of the
            image, the mean.
        gpu, mean_file: of 2014, see :func:`~caffe_port.pycaffe.net_of_2014.arguments`.
    """

    def __init__(
        self,
        model_file: str | os.PathLike[str],
        pretrained_file: str | os.PathLike[str],
        mean: Array | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
        context_pad: int | None = None,
        *,
        gpu: bool | None = None,
        mean_file: str | None = None,
    ) -> None:
        mean, input_scale, raw_scale = net_of_2014.arguments(mean, input_scale, raw_scale, gpu, mean_file)
        super().__init__(model_file, TEST, weights=pretrained_file)
        self.transformer = transformer(self, mean, input_scale, raw_scale, channel_swap)
        self.configure_crop(context_pad)

    def detect_windows(self, images_windows: Iterable[tuple[str, Sequence[Array]]]) -> list[dict[str, Any]]:
        """The net's first output for windows of images.

        Args:
            images_windows: files of images, each with its windows (ymin, xmin, ymax, xmax).

        Returns:
            For each window, its ``window``, ``prediction`` and ``filename``.
        """
        windows = []
        crops = []
        for filename, given in images_windows:
            image = io.load_image(filename)
            for window in given:
                windows.append({"window": window, "filename": filename})
                crops.append(self.crop(image, window))
        name = self.inputs[0]
        data = np.zeros((len(crops), crops[0].shape[2], *self.blobs[name].data.shape[2:]), np.float32)
        for one, crop in zip(data, crops, strict=True):
            one[...] = self.transformer.preprocess(name, crop)
        predictions = self.forward_all(None, **{name: data})[self.outputs[0]]
        return [
            {"window": one["window"], "prediction": prediction, "filename": one["filename"]}
            for one, prediction in zip(windows, predictions, strict=True)
        ]

    def detect_selective_search(self, image_fnames: Sequence[str]) -> list[dict[str, Any]]:
        """Not offered: the windows come from a MATLAB program that is not part of Caffe.

        Raises:
            CaffePortError: always.
        """
        raise CaffePortError(
            "detect_selective_search is not offered: selective search is a MATLAB program outside of Caffe",
            hint="Give the windows to detect_windows yourself.",
        )

    def crop(self, im: Array, window: Any) -> Array:
        """A window of an image (H, W, C), with its context if there is a ``context_pad``."""
        if not self.context_pad:
            top, left, bottom, right = window
            return im[top:bottom, left:right]
        size = self.blobs[self.inputs[0]].width
        scale = size / (1.0 * size - self.context_pad * 2)
        box = np.array(window)
        half = (box[2:] - box[:2] + 1) / 2.0
        box = np.round(np.tile(box[:2] + half, 2) + scale * np.concatenate([-half, half]))
        scale_y, scale_x = size / (box[2:] - box[:2] + 1)
        before = round(max(0, -box[0]) * scale_y), round(max(0, -box[1]) * scale_x)
        box = np.clip(box, 0, [*im.shape[:2], *im.shape[:2]]).astype(int)
        inside = box[2:] - box[:2] + 1
        assert (inside > 0).all(), "the window is outside of the image"
        height, width = (
            min(round(extent * factor), size - pad)
            for extent, factor, pad in zip(inside, (scale_y, scale_x), before, strict=True)
        )
        crop: Array = np.ones(self.crop_dims, np.float32) * self.crop_mean
        context = io.resize_image(im[box[0] : box[2], box[1] : box[3]], (height, width))
        crop[before[0] : before[0] + height, before[1] : before[1] + width] = context
        return crop

    def configure_crop(self, context_pad: int | None) -> None:
        """Sets the context, and what fills it outside of the image: the mean as the image has it."""
        name = self.inputs[0]
        order = self.transformer.transpose[name]
        back = [order[axis] for axis in order]
        self.crop_dims = np.array(self.blobs[name].data.shape[1:])[back]
        self.context_pad = context_pad
        if not context_pad:
            return
        mean = self.transformer.mean.get(name)
        if mean is None:
            self.crop_mean: Array = np.zeros(self.crop_dims, np.float32)
            return
        self.crop_mean = mean.copy().transpose(back)
        if (swap := self.transformer.channel_swap.get(name)) is not None:
            self.crop_mean = self.crop_mean[:, :, np.argsort(swap)]
        if (raw_scale := self.transformer.raw_scale.get(name)) is not None:
            self.crop_mean /= raw_scale
