"""The inputs of a comparison: seeded random values, arrays, or an image prepared as Caffe does it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port.data.prepare import prepare
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.errors import CaffePortError, ParseError, did_you_mean
from caffe_port.signatures.shapes import integers_below
from caffe_port.spec import NetSpec, Producer
from caffe_port.storage import images
from caffe_port.storage.files import read_bytes
from caffe_port.typing import Array, Shape


def random_input(shape: Shape, seed: int, index: int = 0) -> Array:
    """Standard normal values from NumPy's PCG64, float32.

    ``index`` is the number of the input, so that the inputs of one net get different values.
    """
    return np.random.Generator(np.random.PCG64([seed, index])).standard_normal(shape, np.float32)


def random_inputs(
    spec: NetSpec, shapes: Mapping[Producer, Shape], seed: int
) -> tuple[dict[str, Array], dict[str, str]]:
    """Every input of a net: standard normal values, or integers if the net reads labels or indices.

    Returns:
        The arrays by blob name, and a description of how each was made.
    """
    arrays, words = {}, {}
    for index, (blob, producer) in enumerate(spec.inputs):
        below = _integers_below(spec, shapes, producer)
        if below is None:
            arrays[blob] = random_input(shapes[producer], seed, index)
            words[blob] = f"random, standard normal, seed {seed}"
        else:
            rng = np.random.Generator(np.random.PCG64([seed, index]))
            arrays[blob] = rng.integers(0, max(below, 1), shapes[producer]).astype(np.float32)
            words[blob] = f"random integers below {max(below, 1)}, seed {seed}"
    return arrays, words


def _integers_below(spec: NetSpec, shapes: Mapping[Producer, Shape], producer: Producer) -> int | None:
    """The number of classes or indices if a reader of this input expects integers; otherwise None."""
    for layer in spec.layers:
        if producer not in layer.producers:
            continue
        position = layer.producers.index(producer)
        limit = integers_below(layer, [shapes[s] for s in layer.producers], position)
        if limit is not None:
            return limit
    return None


def with_batch_axis(array: Array, spec: NetSpec, blob: str) -> Array:
    """One item (C, H, W) as a batch of one, unless the net's input has three axes itself."""
    layer = spec.by_name[dict(spec.inputs)[blob][0]]
    declared = layer.param.input_param.shape if layer.type == "Input" else []
    if array.ndim == 3 and not any(len(shape.dim) == 3 for shape in declared):
        return array[None]
    return array


def picture_input(path: str | Path, shape: Shape, plan: Preprocessing) -> Array:
    """An image as a net's input (N, C, H, W), float32, repeated for the whole batch.

    Raises:
        CaffePortError: the file cannot be read, is not an image, or does not fit.
    """
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise CaffePortError(
            f"an image has 1 or 3 channels, the net's input is {tuple(shape)}", str(path), "Use an .npy file."
        )
    color = shape[1] == 3
    try:
        pixels = images.decode(read_bytes(path), int(color), str(path)).transpose(2, 0, 1)
    except ParseError as error:
        raise ParseError(error.what, str(path), "An input is an .npy file or an image.") from None
    try:
        prepared = prepare(pixels, plan.for_input(*shape[1:]), "BGR" if color else "GRAY")
    except CaffePortError as error:
        raise type(error)(error.what, error.where or str(path), error.hint) from None
    return np.ascontiguousarray(np.broadcast_to(prepared, shape))


def check_names(given: Mapping[str, Any], spec: NetSpec) -> None:
    """Raises CaffePortError for a name that is not an input of the net."""
    names = [blob for blob, _ in spec.inputs]
    for name in given:
        if name not in names:
            near = did_you_mean(name, names)
            raise CaffePortError(f"the net has no input '{name}'; its inputs are {', '.join(names)}.{near}", spec.path)
