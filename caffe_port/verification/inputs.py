"""The inputs of a comparison: seeded random values, arrays, or an image prepared as Caffe does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caffe_port.data.prepare import prepare
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.errors import CaffePortError, ParseError, did_you_mean
from caffe_port.signatures.shapes import integers_below
from caffe_port.signatures.signature import Holds, holds, signature_of
from caffe_port.spec import LayerSpec, NetSpec, Producer
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
    """Every input of a net: standard normal values, or integers or boxes if the net reads labels, indices or boxes.

    Returns:
        The arrays by blob name, and a description of how each was made.
    """
    arrays, words = {}, {}
    for index, (blob, producer) in enumerate(spec.inputs):
        below = _integers_below(spec, shapes, producer)
        boxes = random_boxes(spec, shapes, producer, np.random.Generator(np.random.PCG64([seed, index])))
        if boxes is not None:
            arrays[blob], what = boxes
            words[blob] = f"random {what}, seed {seed}"
        elif below is None:
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


def random_boxes(
    spec: NetSpec, shapes: Mapping[Producer, Shape], producer: Producer, rng: np.random.Generator
) -> tuple[Array, str] | None:
    """An input in which a reader expects boxes, and what they are; otherwise None. Caffe refuses other numbers."""
    for layer in spec.layers:
        for position in (k for k, made_by in enumerate(layer.producers) if made_by == producer):
            draw = _DRAWN.get(holds(layer.type, position))
            drawn = draw(layer, [shapes[s] for s in layer.producers], position, rng) if draw is not None else None
            if drawn is not None and drawn.size == np.prod(shapes[producer]):
                what = holds(layer.type, position).name.lower().replace("_", " ")
                return drawn.reshape(shapes[producer]).astype(np.float32), what
    return None


_Rng = np.random.Generator


def _corners(count: int, rng: _Rng) -> Array:
    """Boxes (count, 4) in fractions of an image."""
    start = rng.uniform(0, 0.6, (count, 2))
    return np.concatenate((start, start + rng.uniform(0.1, 0.4, (count, 2))), 1)


def _labels(layer: LayerSpec, count: int, rng: _Rng) -> Array:
    """Classes other than the background, (count, 1)."""
    p = signature_of(layer.type).parameters(layer.param)  # type: ignore[union-attr]
    classes = [c for c in range(p.num_classes) if c != p.background_label_id] or [0]
    return rng.choice(classes, (count, 1))


def _priors(_: LayerSpec, bottoms: Sequence[Shape], at: int, rng: _Rng) -> Array:
    count = int(np.prod(bottoms[at][2:])) // 4
    return np.stack((_corners(count, rng), rng.uniform(0.1, 0.2, (count, 4))))


def _objects(layer: LayerSpec, bottoms: Sequence[Shape], at: int, rng: _Rng) -> Array:
    count = int(np.prod(bottoms[at])) // 8
    image = np.sort(rng.integers(0, 2 if at == 1 else bottoms[0][0], (count, 1)), 0)
    instance, difficult = np.arange(count)[:, None], rng.integers(0, 2, (count, 1))
    return np.concatenate((image, _labels(layer, count, rng), instance, _corners(count, rng), difficult), 1)


def _detections(layer: LayerSpec, bottoms: Sequence[Shape], at: int, rng: _Rng) -> Array:
    count = int(np.prod(bottoms[at])) // 7
    image, score = np.sort(rng.integers(0, 2, (count, 1)), 0), rng.uniform(0, 1, (count, 1))
    return np.concatenate((image, _labels(layer, count, rng), score, _corners(count, rng)), 1)


def _image_sizes(_: LayerSpec, bottoms: Sequence[Shape], at: int, rng: _Rng) -> Array:  # noqa: ARG001
    sizes = np.ones(bottoms[at])
    sizes.reshape(len(sizes), -1)[:, :2] = _image(bottoms[0], 1 / 16)
    return sizes


def _image(bottom: Shape, scale: float) -> tuple[float, float]:
    """Height and width of the image that a map (N, C, H, W) is of; of rows (R, ...), any."""
    return (bottom[2] / scale, bottom[3] / scale) if len(bottom) == 4 and bottom[2] > 1 else (320.0, 480.0)


def _regions(layer: LayerSpec, bottoms: Sequence[Shape], at: int, rng: _Rng) -> Array:
    p = signature_of(layer.type).parameters(layer.param)  # type: ignore[union-attr]
    scale = p.spatial_scale if p.schema is not None and "spatial_scale" in p.schema.fields else 1 / 16
    height, width = _image(bottoms[0], scale or 1)
    count, columns = bottoms[at][:2]
    image = rng.integers(0, bottoms[0][0], (count, 1))
    more = rng.uniform(0, 1, (count, max(columns - 5, 0)))  # their scores
    return np.concatenate((image, _corners(count, rng) * [width, height, width, height], more), 1)


_DRAWN: Mapping[Holds, Callable[[LayerSpec, Sequence[Shape], int, _Rng], Array]] = {
    Holds.BOXES: _regions,
    Holds.DETECTIONS: _detections,
    Holds.IMAGE_SIZES: _image_sizes,
    Holds.OBJECTS: _objects,
    Holds.PRIORS: _priors,
}


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
