"""The shapes of a net's inputs: from the net, from its weights, or from the user.

A deploy net defines its shapes. A training net defines ``crop_size`` at best: channels are then those of the first
convolution's weights, and height and width whatever makes the first InnerProduct fit. Source: data_transformer.cpp.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from caffe_port.definition import fits
from caffe_port.definition.input_guesses import cuts, frames_of, pictures_of, spatial_axes, try_shapes
from caffe_port.errors import SpecError, did_you_mean
from caffe_port.formats.caffemodel import MAX_AXES, Weights
from caffe_port.formats.message import Message
from caffe_port.signatures import shapes
from caffe_port.signatures.loss import class_axis
from caffe_port.signatures.signature import Holds, Trait, compares_labels, has, has_weights, holds, signature_of
from caffe_port.spec import LayerSpec, NetSpec, Producer
from caffe_port.typing import Shape

MAX_COUNT = (1 << 31) - 1  # Caffe counts a blob's numbers in an int. Source: blob.cpp

_COMMON_SIDES = (32, 224, 227, 28, 64, 96, 112, 128, 256, 299)
_SIDES = range(1, 513)
_LONGEST_CUBE = 128


@dataclasses.dataclass(frozen=True)
class InputShapes:
    """Shape by input blob, and notes on what was inferred rather than read."""

    shapes: dict[str, Shape]
    notes: tuple[str, ...] = ()


def resolve(
    spec: NetSpec, weights: Weights | None = None, given: Mapping[str, Sequence[int]] | None = None, guess: bool = False
) -> InputShapes:
    """Finds the shape of every input.

    Args:
        spec: the net, as it will be built.
        weights: their shapes define the channels.
        given: shapes by blob name; they come before everything else.
        guess: guess unknown shapes, and report them in a note.

    Raises:
        SpecError: names the input whose shape is unknown; or a given name is not an input.
    """
    wanted: dict[str, Shape] = {name: tuple(shape) for name, shape in (given or {}).items()}
    names = [blob for blob, _ in spec.inputs]
    for name in wanted:
        if name not in names:
            near = did_you_mean(name, names)
            raise SpecError(f"has no input '{name}'; its inputs are {', '.join(names) or 'none'}.{near}", spec.path)
    found: dict[str, Shape] = {}
    notes: list[str] = []
    unknown: list[tuple[str, Producer]] = []
    labels: list[tuple[str, Producer]] = []
    asked: SpecError | None = None
    for blob, producer in spec.inputs:
        layer = spec.by_name[producer[0]]
        shape = wanted[blob] if blob in wanted else _declared(layer, producer[1])
        if shape is None and _is_label(spec, producer):
            shape = found[layer.tops[0]][:1] if producer[1] > 0 and layer.tops[0] in found else (1,)  # one per image
            labels.append((blob, producer))
        try:
            found[blob] = _from_data(spec, blob, producer, weights, found, notes) if shape is None else shape
        except SpecError as error:
            if not guess:
                raise
            asked = asked or error
            unknown.append((blob, producer))
            continue
        if len(found[blob]) > MAX_AXES:
            raise SpecError(f"input '{blob}' has {len(found[blob]):,} axes; Caffe's limit is {MAX_AXES}", layer.where)
        if any(n < 1 for n in found[blob]):
            raise SpecError(f"input '{blob}' of shape {found[blob]}: every axis must be at least 1", layer.where)
        if (count := math.prod(found[blob])) > MAX_COUNT:
            raise SpecError(f"input '{blob}' would contain {count} values; Caffe's limit is 2^31 - 1", layer.where)
    if asked is not None:
        guessed = _guessed(spec, unknown, found, weights, asked)
        told = " ".join(f"--input-shape {blob}={','.join(map(str, shape))}" for blob, shape in guessed.items())
        notes.append(f"the file does not define the input shapes; assumed (set others if needed): {told}")
        found |= guessed
    found |= _labels(spec, labels, found)
    return InputShapes({blob: found[blob] for blob in names}, tuple(notes))


def _guessed(
    spec: NetSpec,
    unknown: Sequence[tuple[str, Producer]],
    known: Mapping[str, Shape],
    weights: Weights | None,
    asked: SpecError,
) -> dict[str, Shape]:
    """Shapes that carry through the net. Raises ``asked`` where none does, with the reason."""

    def refused(choice: Mapping[str, Shape]) -> str:
        try:
            return _misfit(spec, choice, weights)
        except shapes.UnknownShape:
            return ""

    made: dict[str, Shape] = {}
    for blob, producer in unknown:
        if count := _values_read(spec, producer, weights):
            fits_ = [one for one in pictures_of(count) if _fits(spec, {**known, blob: one}, weights)]
            made |= {blob: fits_[0]} if fits_ else {}
    known, unknown = {**known, **made}, [one for one in unknown if one[0] not in made]
    if not unknown:
        return made
    channels = {blob: channels_read(spec, producer, weights) for blob, producer in unknown}
    shapes_, reason = try_shapes(spec, unknown, known, channels, refused)
    shapes_ |= made
    if reason:
        raise SpecError(f"{asked.what}; none of the common sizes fits: {reason}", asked.where, asked.hint)
    return shapes_


def _labels(spec: NetSpec, labels: Sequence[tuple[str, Producer]], found: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes of labels that the file does not define: what the loss that reads them asks for, if it asks for more
    than one value per image."""
    known = {blob: shape for blob, shape in found.items() if blob not in dict(labels)}
    try:
        tops = shapes.infer(_downstream(spec, known), {blob: found[blob] for blob, _ in spec.inputs})
    except SpecError:  # building the net says why
        return {}
    asked: dict[str, Shape] = {}
    for blob, producer in labels:
        readers = (one for one in spec.layers if producer in one.producers and compares_labels(one.type))
        reader = next(readers, None)
        if reader is None or reader.producers[0] not in tops or reader.producers[0] == producer:
            continue
        made, index = tops[reader.producers[0]], reader.producers.index(producer)
        what = holds(reader.type, index)
        if what is Holds.LABELS and index == 1:
            try:
                axis = class_axis(reader.param, made)
            except SpecError:
                continue
            inner = made[axis + 1 :]
            asked[blob] = (*made[:axis], 1, *inner) if math.prod(inner) > 1 else made[:axis]
        elif what is Holds.NUMBERS or (what is Holds.FLAGS and index == 1):
            asked[blob] = made if math.prod(made[1:]) > 1 else found[blob]
    return asked


def _downstream(spec: NetSpec, known: Mapping[str, Shape]) -> NetSpec:
    """The net without the layers that need inputs which are not known."""
    lost = {producer for blob, producer in spec.inputs if blob not in known}
    kept = []
    for layer in spec.layers:
        if lost.intersection(layer.producers):
            lost.update((layer.name, k) for k in range(len(layer.tops)))
        else:
            kept.append(layer)
    return dataclasses.replace(spec, layers=tuple(kept))


def _declared(layer: LayerSpec, index: int) -> Shape | None:
    """What the layer itself says: Input's shape (one for all tops, or one each), MemoryData's four numbers or dims."""
    if layer.type == "Input":
        declared = layer.param.input_param.shape
        if not declared:
            return None
        tops = list(layer.param.top)  # as the file has them: the deploy view leaves some out
        if len(declared) not in (1, len(tops)):
            raise layer.error(f"gives {len(declared)} shapes for {len(tops)} tops")
        return tuple(declared[tops.index(layer.tops[index]) if len(declared) > 1 else 0].dim)
    if layer.type == "MemoryData" and layer.param.memory_data_param.dim:
        shape = tuple(int(n) for n in layer.param.memory_data_param.dim)
        return shape if index == 0 else (shape[0], *[1] * (len(shape) - 1))
    if layer.type == "MemoryData" and index == 0:
        p = layer.param.memory_data_param
        return (p.batch_size, p.channels, p.height, p.width) if p.has("channels") else None
    return None


def _is_label(spec: NetSpec, producer: Producer) -> bool:
    """Whether nothing reads the blob but losses, Accuracy, what else takes labels there, and Silence."""
    return all(
        compares_labels(layer.type)
        or has(layer.type, Trait.SINK)
        or holds(layer.type, layer.producers.index(producer)) is Holds.LABELS
        for layer in spec.layers
        if producer in layer.producers
    )


def _from_data(
    spec: NetSpec, blob: str, producer: Producer, weights: Weights | None, known: dict[str, Shape], notes: list[str]
) -> Shape:
    layer = spec.by_name[producer[0]]
    channels = channels_read(spec, producer, weights)
    crop = _crop(layer)
    lengths = [p.new_length for _, p in layer.param.items() if isinstance(p, Message) and p.has("new_length")]
    length = tuple(n for n in lengths[:1] if n > 1)  # of a video, in frames
    stacked = _stacked_frames(layer)
    if stacked and crop is not None:
        channels, length = stacked, ()
    if not lengths and (length := frames_of(spec)) and crop is not None:
        notes.append(f"input '{blob}': the file does not say how many frames it has; {length[0]} assumed")
    if channels is None and crop is not None:
        channels = len(layer.param.transform_param.mean_value) or 3
        channels = 3 if channels == 1 else channels  # one mean value serves any number of channels
        channels = next((n for n in cuts(spec, layer.name, 1, producer[1]) if n > channels), channels)
        if layer.param.transform_param.force_gray or not layer.param.image_data_param.is_color:
            channels = 1
        notes.append(f"input '{blob}': the number of channels is unknown without weights; {channels} assumed")
    if crop is not None and producer[1] > 0 and (stride := _map_stride(layer)):
        crop = crop[0] // stride, crop[1] // stride
    if channels is not None and crop is not None:
        rest = (channels, *length, *crop)
        return (next(cuts(spec, layer.name, 0), 0) or _batch_reshaped(spec, producer, math.prod(rest)), *rest)
    if channels is not None:
        axes = spatial_axes(spec, weights)
        every = _SIDES if axes < 3 else _SIDES[:_LONGEST_CUBE]
        sides = [n for n in every if _fits(spec, {**known, blob: (1, channels, *(n,) * axes)}, weights)]
        if not sides and _differ(spec, weights):  # no size makes them fit: loading the weights will say how
            side = _likely(every, channels)
            notes.append(f"input '{blob}': no height and width fit the weights; {side} is used")
            return (1, channels, *(side,) * axes)
        if sides and len(sides) < len(every) // 2:
            side = _likely(sides, channels)
            if len(sides) > 1:
                letters = {1: "L", 2: "H,W"}.get(axes, "D,H,W")
                notes.append(
                    f"input '{blob}': the file does not define height and width; {sides[0]} to {sides[-1]} fit the "
                    f"weights, {side} is used (set it with --input-shape {blob}=1,{channels},{letters})"
                )
            return (1, channels, *(side,) * axes)
    shown = f"1,{channels or 'C'},H,W"
    raise SpecError(
        f"the shape of input '{blob}' is unknown: layer '{layer.name}' ({layer.type}) "
        f"{'does not define it' if layer.type == 'Input' else 'reads it from the data'}",
        layer.where,
        f"Set it with --input-shape {blob}={shown}",
    )


def _stacked_frames(layer: LayerSpec) -> int:
    """The channels of a video whose frames follow each other there: temporal segment networks. 0 if it is none.

    Source: yjxiong/caffe video_data_layer.cpp, io.cpp (ReadSegmentRGBToDatum, ReadSegmentFlowToDatum)
    """
    p = layer.param.video_data_param
    if not any(p.has(name) for name in ("num_segments", "modality", "name_pattern")):
        return 0
    gray = "grayscale" in p.unknown and p.grayscale
    return int((2 if p.modality == "FLOW" else 1 if gray else 3) * p.new_length * p.num_segments)


def _map_stride(layer: LayerSpec) -> int:
    """By how much the maps of a data layer are smaller than its images (pose machines); 0 if it does not say."""
    unknown = (value for values in layer.param.unknown.values() for value in values if isinstance(value, Message))
    return next((int(one.stride) for one in unknown if one.has("stride") and one.has("crop_size_x")), 0)


def _batch_reshaped(spec: NetSpec, producer: Producer, each: int) -> int:
    """How many items of ``each`` values a Reshape of a data layer's top asks for; 1 if none does."""
    for layer in spec.layers:
        dims = layer.param.reshape_param.shape.dim if layer.type == "Reshape" and producer in layer.producers else []
        if len(dims) and min(dims) > 0 and math.prod(dims) % each == 0:
            return int(math.prod(dims)) // each
    return 1


_SIZES = (
    ("crop_height", "crop_width"),
    ("crop_h", "crop_w"),
    ("crop_size", "crop_size"),
    ("crop_size_y", "crop_size_x"),
    ("new_height", "new_width"),
    ("image_size_y", "image_size_x"),
    ("yolo_height", "yolo_width"),
    ("resize_height", "resize_width"),
)
"""How data layers of Caffe and its forks name height and width of what they give, the last step first."""


def _crop(layer: LayerSpec) -> tuple[int, int] | None:
    """The size of the images from a data layer, if it defines one."""
    owners = [value for _, value in layer.param.items() if isinstance(value, Message)]
    owners += [value for values in layer.param.unknown.values() for value in values if isinstance(value, Message)]
    for names in _SIZES:
        for owner in owners:
            size = tuple(getattr(owner, name) for name in names if owner.has(name))
            if len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size):
                return size
    for resize in layer.param.transform_param.resize_param:  # SSD's
        if resize.height and resize.width:
            return resize.height, resize.width
    return None


def _likely(sides: Sequence[int], channels: int) -> int:
    """The side that people use: MNIST's for one channel, else the common ones, else the greatest."""
    common = (28, *_COMMON_SIDES) if channels == 1 else _COMMON_SIDES
    return next((n for n in common if n in sides), sides[-1])


def channels_read(spec: NetSpec, producer: Producer, weights: Weights | None) -> int | None:
    """Channels that the first convolution after ``producer`` expects, by its weights (C_out, C_in/group, kH, kW)."""
    if weights is None:
        return None
    stored = weights.by_name()
    reached = {producer}
    for layer in spec.layers:
        if not reached.intersection(layer.producers):
            continue
        blobs = stored[layer.name].blobs if layer.name in stored else ()
        if blobs and 3 <= blobs[0].ndim <= 5 and has_weights(layer.type) and not has(layer.type, Trait.DENSE):
            return _inputs_of(layer, blobs[0].shape)
        if has(layer.type, Trait.KEEPS_CHANNELS) and layer.producers[0] in reached:
            reached.add((layer.name, 0))
    return None


def _values_read(spec: NetSpec, producer: Producer, weights: Weights | None) -> int:
    """How many values of each item the InnerProduct takes that reads ``producer``; 0 if another layer comes first."""
    stored = weights.by_name() if weights else {}
    reached = {producer}
    for layer in spec.layers:
        if not reached.intersection(layer.producers):
            continue
        if has(layer.type, Trait.DENSE) and layer.name in stored:
            p = layer.param.inner_product_param
            return stored[layer.name].blobs[0].size // p.num_output if p.num_output and p.axis == 1 else 0
        if has(layer.type, Trait.KEEPS_CHANNELS) or layer.type == "Flatten":
            reached.add((layer.name, 0))
        else:
            return 0
    return 0


def _inputs_of(layer: LayerSpec, weight: Shape) -> int:
    """The channels that a convolution or deconvolution with this weight reads."""
    signature = signature_of(layer.type)
    assert signature is not None
    p = signature.parameters(layer.param)
    if signature.has(Trait.SPREADS) or (signature.has(Trait.DEPTHWISE) and not p.has("group")):
        return int(weight[0])
    return int(weight[1]) * int(p.group)


def _differ(spec: NetSpec, weights: Weights | None) -> bool:
    """Whether the weights have another num_output than the net, so that no input shape makes them fit."""
    stored = weights.by_name() if weights else {}
    for layer in spec.layers:
        signature = signature_of(layer.type)
        if not has_weights(layer.type) or signature is None or layer.name not in stored:
            continue
        p, shape = signature.parameters(layer.param), stored[layer.name].blobs[0].shape
        if signature.has(Trait.DENSE):
            axis = -1 if p.transpose else -2
        elif signature.has(Trait.SLIDES) and not signature.has(Trait.DEPTHWISE):
            axis = 0
        else:
            continue
        if len(shape) > 1 and shape[axis] != p.num_output:
            return True
    return False


def _fits(spec: NetSpec, known: Mapping[str, Shape], weights: Weights | None) -> bool:
    """Whether the shapes carry through the net and the InnerProducts find what they were made for."""
    labels = {blob: (1,) for blob, producer in spec.inputs if _is_label(spec, producer)}
    try:
        return not _misfit(_downstream(spec, {**labels, **known}), known, weights)
    except shapes.UnknownShape:
        return False


def _misfit(spec: NetSpec, known: Mapping[str, Shape], weights: Weights | None) -> str:
    """Why the shapes do not fit the net or the weights; an empty string where they do.

    Raises:
        UnknownShape: the net holds a layer of a type without a shape rule, and the layers before it fit.
    """
    stored = weights.by_name() if weights else {}
    try:
        complete = {blob: known.get(blob, (1,)) for blob, _ in spec.inputs}
        tops = shapes.infer(fits.fitted(spec, complete), complete)
    except shapes.UnknownShape:
        raise
    except SpecError as error:
        return str(error).splitlines()[0]
    owners: dict[str, Shape] = {}
    for layer in spec.layers:
        if any(param.name for param in layer.param.param):
            for param, shape in zip(
                layer.param.param, shapes.blob_shapes(layer, [tops[s] for s in layer.producers]), strict=False
            ):
                alike = math.prod if param.share_mode == "PERMISSIVE" else tuple[int, ...]
                if param.name and alike(owners.setdefault(param.name, shape)) != alike(shape):
                    return str(layer.error(f"shares '{param.name}' of shape {owners[param.name]}, needs {shape}"))
        if has(layer.type, Trait.DENSE) and layer.name in stored:
            p = layer.param.inner_product_param
            bottom = tops[layer.producers[0]]
            if stored[layer.name].blobs[0].size != math.prod(bottom[p.axis :]) * p.num_output:
                return f"layer '{layer.name}' ({layer.type}): its weights do not fit a bottom of shape {bottom}"
    return ""
