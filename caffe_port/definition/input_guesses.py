"""Guesses shapes for inputs that the file does not define: a training net whose data layer reads a database.

Only a start: a note reports the guess, and the user can set another shape. Sizes are tried until every shape rule of
the net, and the weights if there are any, take them.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized

from caffe_port.formats.caffemodel import Weights
from caffe_port.formats.message import Message
from caffe_port.signatures.plugins import find
from caffe_port.signatures.signature import Holds, Trait, holds
from caffe_port.spec import LayerSpec, NetSpec, Producer
from caffe_port.typing import Shape

_SIDES = (224, 227, 32, 28, 64, 96, 112, 128, 256, 299, 300, 321, 384, 500, 512)
_PAIRS = ((360, 480), (480, 640), (384, 512), (112, 96), (512, 1024), (448, 448), (416, 416), (473, 473), (600, 800))
"""Heights and widths of CamVid, cameras, FlyingChairs, faces, Cityscapes, ..., for nets that fit no side above."""
_DATA_SETS = {"mnist": (1, 28, 28), "lenet": (1, 28, 28), "cifar": (3, 32, 32), "svhn": (3, 32, 32)}
_VECTORS = ((re.compile(r"im_?info"), (1, 3)), (re.compile(r"rois|boxes|^gt"), (1, 5)))
"""What blobs of detectors hold, by name: height, width and scale of an image; image and corners of boxes."""
_STEPS = 20
_FRAMES = 16
_SIZES = (("upsample_h", "upsample_w"), ("height", "width"))
"""How layers name the size of what they make."""


def try_shapes(
    spec: NetSpec,
    wanted: Sequence[tuple[str, Producer]],
    known: Mapping[str, Shape],
    channels: Mapping[str, int | None],
    refused: Callable[[Mapping[str, Shape]], str],
) -> tuple[dict[str, Shape], str]:
    """Shapes for inputs, and why none fits: an empty string where these do.

    Args:
        spec: the net.
        wanted: the inputs without a shape.
        known: the shapes of the others.
        channels: of the images by input, if the weights define them.
        refused: why a choice of shapes for all inputs does not carry through the net, or an empty string.
    """
    vectors = {blob: shape for blob, producer in wanted if (shape := _vector(spec, blob, producer))}
    pictures = [blob for blob, _ in wanted if blob not in vectors]
    reason = ""
    first = channels[pictures[0]] if pictures else None
    for shape in _candidates(spec, spec.by_name[wanted[0][1][0]], first) if pictures else [()]:
        sized = {blob: (shape[0], channels[blob] or shape[1], *shape[2:]) for blob in pictures}
        choice = {**sized, **vectors}
        reason = refused({**known, **choice})
        if not reason:
            return choice, ""
    return {}, reason


def _vector(spec: NetSpec, blob: str, producer: Producer) -> Shape | None:
    """The shape of an input that is not an image, by its readers or else by its name."""
    for layer in spec.layers:
        at = layer.producers.index(producer) if producer in layer.producers else -1
        dims = layer.param.reshape_param.shape.dim
        if at < 0:
            continue
        what = holds(layer.type, at)
        if what is Holds.BOXES:
            return (1, 5)
        if what is Holds.CONTINUES or (what is Holds.INDICES and at == 0):
            return (_STEPS, 1)
        if what is Holds.STEPS:
            return (_STEPS, 1, 64)
        if at > 0 and holds(layer.type, 0) is Holds.STEPS:  # added at every step, or the initial state
            return (1, 64)
        if at == 0 and layer.type == "Reshape" and dims and min(dims) > 0:
            return (math.prod(dims),)
    return next((shape for pattern, shape in _VECTORS if pattern.search(blob)), None)


def _candidates(spec: NetSpec, layer: LayerSpec, channels: int | None) -> Iterator[Shape]:
    p = layer.param
    sliced = list(cuts(spec, layer.name, 1))
    told = f"{spec.name} {layer.name} {p.data_param.source} {p.transform_param.mean_file}".lower()
    for word, shape in _DATA_SETS.items():
        for count in (channels,) if channels else (*sliced, shape[0]):
            if word in told:
                yield (1, count, *shape[1:])
    mean_values = len(p.transform_param.mean_value)
    frames = frames_of(spec)
    likely = (channels,) if channels else (*((mean_values,) if mean_values > 1 else ()), *sliced, 3, 1, 2, 6)
    sizes: list[tuple[int, ...]] = [*_named_sizes(spec), *((side, side) for side in _SIDES), *_PAIRS]
    axes = spatial_axes(spec)
    if axes == 1:
        sizes = [(side,) for side in _SIDES]
    for batch, count, size in itertools.product((1, *_batches(spec, layer)), likely, sizes):
        yield (batch, count, *(frames if axes != 1 else ()), *size)


def pictures_of(count: int) -> Iterator[Shape]:
    """Shapes of one item of so many values: an image of a common size, or else a vector."""
    for channels, (height, width) in itertools.product((3, 1, 2, 6), (*((side, side) for side in _SIDES), *_PAIRS)):
        if channels * height * width == count:
            yield (1, channels, height, width)
    yield (1, count)


def spatial_axes(spec: NetSpec, weights: Weights | None = None) -> int:
    """How many spatial axes the images have: as many as the first convolution slides along, which its weights tell, or
    how many lengths it gives; 2 if nothing does."""
    stored = weights.by_name() if weights else {}
    for layer in spec.layers:
        signature = find(layer.param)
        if signature is None or not signature.has(Trait.SLIDES):
            continue
        if layer.name in stored and 3 <= stored[layer.name].blobs[0].ndim <= 5:
            return stored[layer.name].blobs[0].ndim - 2
        p = signature.parameters(layer.param)
        given = [getattr(p, name) for name in ("kernel_size", "stride", "pad", "dilation") if p.has(name)]
        count = max((len(value) for value in given if isinstance(value, Sized)), default=0)
        return 3 if count == 3 or _is_video(layer) else 2
    return 2


def frames_of(spec: NetSpec) -> tuple[int, ...]:
    """How many frames an input has that nobody counts, if the net is one for videos."""
    return (_FRAMES,) if any(_is_video(layer) for layer in spec.layers) or spatial_axes(spec) == 3 else ()


def _is_video(layer: LayerSpec) -> bool:
    """Whether a layer slides along the frames of a video: C3D's and its like."""
    return any(isinstance(p, Message) and p.has("kernel_depth") for _, p in layer.param.items())


def _named_sizes(spec: NetSpec) -> Iterator[tuple[int, int]]:
    """Sizes that layers after the first say they make, SegNet's Upsample say; and those that halve down to them."""
    named: set[tuple[int, int]] = set()
    messages = [p for layer in spec.layers if not layer.is_input for _, p in layer.param.items()]
    for p, names in itertools.product(messages, _SIZES):
        size = [getattr(p, name) for name in names if isinstance(p, Message) and p.has(name)]
        if len(size) == 2 and all(isinstance(n, int) and n > 1 for n in size):
            named.add((size[0], size[1]))
    for height, width in sorted(named, reverse=True):
        yield from ((height * factor, width * factor) for factor in (1, 2, 4, 8, 16, 32))


def cuts(spec: NetSpec, name: str, axis: int, index: int | None = None) -> Iterator[int]:
    """Lengths along an axis of a data layer's tops that a Slice cuts, a pair of images in one blob: the parts come
    twice, else the last is taken to be as long as the one before.
    """
    for one in spec.layers:
        p = one.param.slice_param
        if one.type == "Slice" and _is_of(one.producers[0], name, index) and p.slice_point and axis == _sliced_axis(p):
            points, half = list(p.slice_point), len(p.slice_point) // 2
            if len(points) % 2 and [n - points[half] for n in points[half + 1 :]] == points[:half]:
                yield 2 * points[half]  # the parts come twice: OpenPose's weights and its truth
            else:
                yield 2 * points[-1] - points[-2]


def _is_of(producer: Producer, name: str, index: int | None) -> bool:
    return producer[0] == name and index in (None, producer[1])


def _sliced_axis(p: Message) -> int:
    return int(p.slice_dim if p.has("slice_dim") else p.axis)


def _batches(spec: NetSpec, layer: LayerSpec) -> list[int]:
    """Batch sizes that the net insists on: those of a Reshape to (steps, streams, ...), and the data layer's own."""
    found = [*cuts(spec, layer.name, 0)]
    found += [p.batch_size for _, p in layer.param.items() if isinstance(p, Message) and p.has("batch_size")]
    for one in spec.layers:
        dims = one.param.reshape_param.shape.dim if one.type == "Reshape" else []
        found += [dims[0] * dims[1], dims[0]] if len(dims) > 1 and min(dims[:2]) > 0 else []
    return [n for n in dict.fromkeys(found) if n > 1][:4]
