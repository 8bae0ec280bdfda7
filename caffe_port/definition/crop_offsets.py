"""Maps the pixels of a top to its bottom, to compute the offset of a Crop without one.

A layer that slides windows maps each spatial axis by a line. A convolution or pooling with kernel extent k, stride s
and padding p has its top's pixel at ``x_top = (x_bottom + p - (k - 1) / 2) / s``; a deconvolution has the inverse; a
Crop subtracts its offset; what works pixel by pixel changes nothing. Followed from the blob that both bottoms of a Crop
come from, the two lines say how far the bottoms are apart.

Sources: pycaffe's coord_map.py; crop_layer.cpp of the FCN and HED forks, auto_crop_layer.cpp of RCF's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.kernel_params import axis_values, dilation_field, has_four_sides, is_same
from caffe_port.signatures.signature import Trait, has, signature_of

if TYPE_CHECKING:
    from caffe_port.spec import LayerSpec, Producer


class Line(NamedTuple):
    """``x_top = scale * x_bottom + shift`` along one axis, in pixels counted from 0."""

    scale: Fraction
    shift: Fraction

    def after(self, first: Line) -> Line:
        """This line applied to what ``first`` gives."""
        return Line(self.scale * first.scale, self.scale * first.shift + self.shift)

    def inverse(self) -> Line:
        return Line(1 / self.scale, -self.shift / self.scale)


SAME = Line(Fraction(1), Fraction(0))
_CROPS = ("Crop", "AutoCrop")
"""The two types that this module is about."""


def align(layers: Iterable[LayerSpec], notes: list[str]) -> tuple[LayerSpec, ...]:
    """The layers, with the offsets that their definition leaves to the layers before them.

    AutoCrop means them always. So does Crop without crop_param in forks older than Caffe 1.0, which itself takes offset
    0 there: a Crop gets what is computed only if that is a possible offset, and stays as it is otherwise.

    Args:
        layers: in order, with their producers.
        notes: gets one note for each of the two types.

    Raises:
        SpecError: the offset of an AutoCrop cannot be computed.
    """
    made: dict[str, LayerSpec] = {}
    told: dict[str, list[str]] = {type_: [] for type_ in _CROPS}
    for layer in layers:
        made[layer.name] = layer
        if layer.type not in told or layer.param.has("crop_param") or len(layer.producers) != 2:
            continue
        try:
            offsets = crop_offsets(layer, made)
        except SpecError:
            if layer.type == "Crop":
                continue
            raise
        if any(offsets):
            param = layer.param.copy(crop_param=Message("CropParameter", offset=offsets))
            made[layer.name] = dataclasses.replace(layer, param=param, implied=("crop_param",))
            told[layer.type].append(f"'{layer.name}' {' x '.join(map(str, offsets))}")
    if told["Crop"]:
        notes.append(
            "Crop layers without crop_param use the offset implied by the layers before them, as in forks older than "
            f"Caffe 1.0: {', '.join(told['Crop'])}. Caffe 1.0 itself uses 0; set `crop_param {{ offset: 0 }}` for that"
        )
    if told["AutoCrop"]:
        notes.append(f"AutoCrop layers use the offset implied by the layers before them: {', '.join(told['AutoCrop'])}")
    return tuple(made.values())


def crop_offsets(layer: LayerSpec, made: Mapping[str, LayerSpec]) -> list[int]:
    """Where the second bottom of a Crop begins in the first: down and across, or one number for both.

    Args:
        layer: with two bottoms of shape (N, C, H, W).
        made: the layers before it, by name, with the offsets of their own.

    Raises:
        SpecError: no blob leads to both bottoms by first bottoms alone, a layer on the way has no line or the bottoms
            differ in scale, or what comes out is not a whole number from 0 on.
    """
    first, second = (_upstream(producer, made) for producer in layer.producers)
    meeting = next((producer for producer in second if producer in first), None)
    if meeting is None:
        raise layer.error(f"'{layer.bottoms[0]}' and '{layer.bottoms[1]}' have no common source blob", _WRITE_IT)
    ways = [_lines(way[: way.index(meeting)], made) for way in (first, second)]
    offsets = []
    for x, like in zip(*ways, strict=True):
        line = like.after(x.inverse())
        if line.scale != 1:
            raise layer.error(
                f"one pixel of '{layer.bottoms[0]}' is {line.scale} pixels of '{layer.bottoms[1]}'", _WRITE_IT
            )
        if line.shift > 0 or line.shift.denominator != 1:
            raise layer.error(f"the layers before it imply offset {-line.shift}, expected an integer >= 0", _WRITE_IT)
        offsets.append(int(-line.shift))
    return offsets[:1] if len(set(offsets)) == 1 else offsets


_WRITE_IT = "Set the offset in the file: crop_param { offset: ... }"


def _upstream(producer: Producer, made: Mapping[str, LayerSpec]) -> list[Producer]:
    """A blob and those before it, along first bottoms as the forks go."""
    way = [producer]
    while before := made[way[-1][0]].producers:
        way.append(before[0])
    return way


def _lines(way: Iterable[Producer], made: Mapping[str, LayerSpec]) -> tuple[Line, Line]:
    """The lines, for H and W, of the layers that made these blobs; the last one first."""
    h = w = SAME
    for name, _ in way:
        own_h, own_w = _lines_of(made[name])
        h, w = h.after(own_h), w.after(own_w)
    return h, w


def _lines_of(layer: LayerSpec) -> tuple[Line, Line]:
    if has(layer.type, Trait.KEEPS_PLACES) or layer.tops[0] == layer.bottoms[0]:  # in place the shape cannot change
        return SAME, SAME
    signature, p = signature_of(layer.type), layer.param
    window = signature.parameters(p) if signature is not None else p
    whole = window.has("global_pooling") and window.global_pooling
    if signature is not None and _channels_first(window) and not whole:
        if signature.has(Trait.SLIDES):
            h, w = _window(layer, window)
            return h.inverse(), w.inverse()
        if signature.has(Trait.SPREADS):
            return _window(layer, window)
    if layer.type in _CROPS and p.crop_param.axis in (2, -2):
        down, across = _pair(layer, p.crop_param.offset or [0])
        return Line(Fraction(1), Fraction(-down)), Line(Fraction(1), Fraction(-across))
    raise layer.error("its pixel mapping is unknown, so the offset of a crop after it cannot be computed", _WRITE_IT)


def _channels_first(window: Message) -> bool:
    """Whether the message of a window leaves the channels where an image has them."""
    return not window.has("axis") or window.axis == 1


def _window(layer: LayerSpec, p: Message) -> tuple[Line, Line]:
    """From where a window is laid to its middle, for H and W. Source: FilterMap of the forks' util/coords.hpp."""
    if is_same(p):
        raise layer.error("where SAME padding lies depends on the size, so the offset of a crop after it is unknown")
    hole, pads = dilation_field(p), [p.pad_t, p.pad_l] if has_four_sides(p) else axis_values(p, "pad", 2)
    windows = zip(
        _pair(layer, axis_values(p, "kernel_size", 2)),
        _pair(layer, axis_values(p, "stride", 2) or [1]),
        _pair(layer, pads or [0]),
        _pair(layer, (axis_values(p, hole, 2) if p.schema and hole in p.schema.fields else []) or [1]),
        strict=True,
    )
    h, w = (Line(Fraction(s), Fraction(d * (k - 1), 2) - pad) for k, s, pad, d in windows)
    if not (h.scale and w.scale):
        raise layer.error("stride must be at least 1, got 0")
    return h, w


def _pair(layer: LayerSpec, values: Sequence[int]) -> tuple[int, int]:
    """H and W of what is given once for both, or for each."""
    if len(values) not in (1, 2):
        raise layer.error(f"got {len(values)} values, expected 1 or 2 (height and width)")
    return int(values[0]), int(values[-1])
