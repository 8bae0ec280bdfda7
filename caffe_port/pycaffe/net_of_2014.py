"""What nets offered in 2014, before ``caffe.io.Transformer``, and before the phase was an argument of Net.

``net.set_mean(...)`` and the like are found here by :class:`caffe_port.pycaffe.net.Net`.
Source: python/caffe/pycaffe.py of Caffe, from February to December 2014.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from caffe_port.pycaffe import io, settings
from caffe_port.pycaffe.settings import TEST, TRAIN
from caffe_port.typing import Array


def set_phase_train(net: Any) -> None:
    """The net runs as in training."""
    settings.set_phase_train()
    net._set_phase(TRAIN)


def set_phase_test(net: Any) -> None:
    """The net runs as in a test: Dropout does nothing."""
    settings.set_phase_test()
    net._set_phase(TEST)


def set_mode_cpu(net: Any) -> None:  # noqa: ARG001 - the mode is that of all nets
    """Nets compute on the CPU."""
    settings.set_mode_cpu()


def set_mode_gpu(net: Any) -> None:  # noqa: ARG001 - as above
    """Nets compute on the GPU, if there is one."""
    settings.set_mode_gpu()


def set_device(net: Any, device: int) -> None:  # noqa: ARG001 - as above
    """Chooses a GPU by its number."""
    settings.set_device(device)


def set_mean(net: Any, input_: str, mean: Any, mode: str = "elementwise") -> None:
    """Sets what is subtracted: an array (C, H, W), or the .npy file of one.

    A file is what the first version took, in which ``set_input_scale`` multiplied before the mean was subtracted.

    Args:
        mode: elementwise (or image), or channel: the mean of each channel.

    Raises:
        Exception: another mode, or no such input.
    """
    transformer = _transformer(net)
    if isinstance(mean, (str, os.PathLike)):
        mean, net._scale_first = np.load(mean, allow_pickle=False), True
        if input_ in transformer.input_scale:
            transformer.set_raw_scale(input_, transformer.input_scale.pop(input_))
    if mode not in ("elementwise", "image", "channel"):
        raise Exception("Mode not in ['elementwise', 'channel']")
    transformer.set_mean(input_, mean.mean(1).mean(1) if mode == "channel" else mean)


def set_input_scale(net: Any, input_: str, scale: float) -> None:
    """Sets the factor after the mean was subtracted."""
    transformer = _transformer(net)
    if getattr(net, "_scale_first", False):
        transformer.set_raw_scale(input_, scale)
    else:
        transformer.set_input_scale(input_, scale)


def set_raw_scale(net: Any, input_: str, scale: float) -> None:
    """Sets the factor before the mean is subtracted."""
    _transformer(net).set_raw_scale(input_, scale)


def set_channel_swap(net: Any, input_: str, order: Any) -> None:
    """Sets the order of the channels, (2, 1, 0) from RGB to BGR."""
    _transformer(net).set_channel_swap(input_, order)


def preprocess(net: Any, input_name: str, input_: Array) -> Array:
    """An image (H, W, C) as an input (C, H, W): see :meth:`caffe_port.pycaffe.io.Transformer.preprocess`."""
    return _transformer(net).preprocess(input_name, input_)


def deprocess(net: Any, input_name: str, input_: Array) -> Array:
    """An input as an image: see :meth:`caffe_port.pycaffe.io.Transformer.deprocess`."""
    return _transformer(net).deprocess(input_name, input_)


def _transformer(net: Any) -> io.Transformer:
    """That of the net (of a Classifier, its own), for the shapes that its inputs have at the moment."""
    if "transformer" not in net.__dict__:
        net.transformer = io.Transformer({})
    found: io.Transformer = net.transformer
    found.inputs = {name: tuple(net.blobs[name].shape) for name in net.inputs}
    for name in net.inputs:
        found.transpose.setdefault(name, (2, 0, 1))
    return found


def arguments(
    mean: Any, input_scale: float | None, raw_scale: float | None, gpu: bool | None, mean_file: Any
) -> tuple[Any, float | None, float | None]:
    """mean, input_scale and raw_scale of a Classifier or Detector, by those of 2014.

    Args:
        gpu: sets the mode, unless it is None.
        mean_file: of the first version; a .npy file, subtracted after the input scale.
    """
    if gpu is not None:
        (settings.set_mode_gpu if gpu else settings.set_mode_cpu)()
    if mean_file is None:
        return mean, input_scale, raw_scale
    return np.load(mean_file, allow_pickle=False), None, input_scale if raw_scale is None else raw_scale
