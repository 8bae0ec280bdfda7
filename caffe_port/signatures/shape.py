"""The records of layers that move, select and combine numbers. Source: src/caffe/layers of Caffe 1.0, and of SSD."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.checks import canonical_axis, nothing
from caffe_port.signatures.signature import ANY, Holds, Trait, declare
from caffe_port.terminal import count
from caffe_port.typing import Shape


def legacy_axis(p: Message, legacy: str, dims: int) -> int:
    """``axis``, or the unsigned ``concat_dim`` or ``slice_dim`` of old definitions. Raises SpecError for both."""
    if p.has("axis") and p.has(legacy):
        raise SpecError(f"axis and {legacy} are both given; they mean the same, give only one")
    return canonical_axis(getattr(p, legacy) if p.has(legacy) else p.axis, dims)


def _argmax(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom, p = bottoms[0], layer.argmax_param
    axis = canonical_axis(p.axis, len(bottom)) if p.has("axis") else None
    size = math.prod(bottom[1:]) if axis is None else bottom[axis]
    if not 1 <= p.top_k <= size:
        raise SpecError(f"top_k {p.top_k} is not in 1..{size}, the number of values to choose from")
    if axis is not None:
        return [(*bottom[:axis], p.top_k, *bottom[axis + 1 :])]
    return [(bottom[0], 2 if p.out_max_val else 1, p.top_k, *[1] * (len(bottom) - 3))]


def _batch_reindex(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    if len(bottoms[1]) != 1:
        raise SpecError(f"the indices have shape {bottoms[1]}, expected one axis")
    if not bottoms[0]:
        raise SpecError("the first bottom is a scalar: there are no items to select")
    return [(*bottoms[1], *bottoms[0][1:])]


def concat_flattens(p: Message, bottoms: Sequence[Shape]) -> bool:
    """Whether each bottom (N, C, H, W) becomes (N, C * H * W, 1, 1) first: Intel's ``per_fla_fuse``."""
    return bool(p.per_fla_fuse) and legacy_axis(p, "concat_dim", len(bottoms[0])) == 1


def _concat(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    axis = legacy_axis(layer.concat_param, "concat_dim", len(bottoms[0]))
    if concat_flattens(layer.concat_param, bottoms):
        if len({(shape[0], len(shape)) for shape in bottoms}) > 1:
            raise SpecError(f"bottoms {', '.join(map(str, bottoms))} cannot be flattened and concatenated")
        bottoms = [(shape[0], math.prod(shape[1:]), *[1] * (len(shape) - 2)) for shape in bottoms]
    if len({(*shape[:axis], -1, *shape[axis + 1 :]) for shape in bottoms}) > 1:
        shapes = ", ".join(map(str, bottoms))
        raise SpecError(f"bottoms {shapes} cannot be concatenated along axis {axis}: their other axes differ")
    return [(*bottoms[0][:axis], sum(shape[axis] for shape in bottoms), *bottoms[0][axis + 1 :])]


def _eltwise(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.eltwise_param
    if len(set(bottoms)) > 1:
        raise SpecError(f"bottoms {', '.join(map(str, bottoms))} differ in shape")
    if len(p.coeff) and p.operation == "PROD":
        raise SpecError("coeff is given, but PROD does not use coefficients")
    if len(p.coeff) not in (0, len(bottoms)):
        raise SpecError(f"{count(len(p.coeff), 'coefficient')} for {count(len(bottoms), 'bottom')}")
    return bottoms[:1]


def _filter(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    """How many items pass depends on the selector; Caffe allocates for all."""
    *data, selector = bottoms
    if not selector or math.prod(selector[1:]) != 1:
        raise SpecError(f"the selector has shape {selector}; all axes except the first must be 1")
    for shape in data:
        if shape[:1] != selector[:1]:
            items = shape[0] if shape else "no"
            raise SpecError(f"the bottom {shape} has {items} items, the selector {selector[0]}")
    return data


def _flatten(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom, p = bottoms[0], layer.flatten_param
    start, end = canonical_axis(p.axis, len(bottom)), canonical_axis(p.end_axis, len(bottom))
    if start > end + 1:  # right after it, an axis of length 1 is added
        raise SpecError(f"axis {p.axis} comes after end_axis {p.end_axis} in a bottom of shape {bottom}")
    return [(*bottom[:start], math.prod(bottom[start : end + 1]), *bottom[end + 1 :])]


def _permute(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom, order = bottoms[0], [int(axis) for axis in layer.permute_param.order]
    if len(set(order)) < len(order) or not set(order) <= set(range(len(bottom))):
        raise SpecError(f"order {order} must list distinct axes less than {len(bottom)}")
    return [tuple(bottom[axis] for axis in (*order, *(k for k in range(len(bottom)) if k not in order)))]


def _transpose(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom, dims = bottoms[0], [int(axis) for axis in layer.transpose_param.dim]
    if sorted(dims) != list(range(len(bottom))):
        raise SpecError(f"dim {dims} must list each of the {len(bottom)} axes once")
    return [tuple(bottom[axis] for axis in dims)]


def _reduction(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    return [bottoms[0][: canonical_axis(layer.reduction_param.axis, len(bottoms[0]))]]


def reshaped_axes(p: Message, bottom: Shape) -> tuple[int, int]:
    """The axes of the bottom that a Reshape replaces: from the first up to, and without, the second."""
    start = p.axis if p.axis >= 0 else len(bottom) + p.axis + 1
    end = len(bottom) if p.num_axes == -1 else start + p.num_axes
    if not 0 <= start <= len(bottom):
        raise SpecError(f"axis {p.axis} is out of range for a bottom of {count(len(bottom), 'axis', 'axes')}")
    if p.num_axes < -1 or end > len(bottom):
        raise SpecError(
            f"axis {p.axis} and num_axes {p.num_axes} do not fit a bottom of {count(len(bottom), 'axis', 'axes')}"
        )
    return start, end


def _reshape(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom, p = bottoms[0], layer.reshape_param
    dims, (start, end) = [int(d) for d in p.shape.dim], reshaped_axes(p, bottom)
    if min(dims, default=0) < -1 or dims.count(-1) > 1:
        raise SpecError(f"shape {dims}: -1 may occur once; other lengths must not be negative")
    if any(d == 0 and start + i >= len(bottom) for i, d in enumerate(dims)):
        raise SpecError(f"shape {dims} copies (0) an axis that the bottom {bottom} does not have")
    lengths = [bottom[start + i] if d == 0 else d for i, d in enumerate(dims)]
    count, known = math.prod(bottom[start:end]), math.prod(d for d in lengths if d != -1)
    if count % known if known and -1 in lengths else count != known:
        raise SpecError(f"shape {dims} does not match the {count} values of axes {start} to {end} of {bottom}")
    return [(*bottom[:start], *(count // known if d == -1 else d for d in lengths), *bottom[end:])]


def _shuffle_channel(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom, group = bottoms[0], layer.shuffle_channel_param.group
    if len(bottom) < 3 or group < 1 or bottom[1] % group:
        raise SpecError(f"group {group} does not divide the channels of a bottom of shape {bottom}")
    return bottoms


def _slice(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom, tops = bottoms[0], len(layer.top)
    axis = legacy_axis(layer.slice_param, "slice_dim", len(bottom))
    points = [int(n) for n in layer.slice_param.slice_point]
    if not points:
        if not tops or bottom[axis] % tops:
            raise SpecError(f"{tops} tops do not divide the {bottom[axis]} of axis {axis} evenly; give slice_point")
        points = [bottom[axis] // tops * k for k in range(1, tops)]
    if len(points) != tops - 1:
        raise SpecError(f"{len(points)} slice points for {tops} tops, expected {tops - 1}")
    edges = [0, *points, bottom[axis]]
    if any(a >= b for a, b in pairwise(edges)):
        raise SpecError(f"slice points {points} must increase, within 1..{bottom[axis] - 1} (axis {axis})")
    return [(*bottom[:axis], b - a, *bottom[axis + 1 :]) for a, b in pairwise(edges)]


def _split(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    return [bottoms[0]] * len(layer.top)


def _tile(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom, p = bottoms[0], layer.tile_param
    axis = canonical_axis(p.axis, len(bottom))
    if not p.has("tiles") or p.tiles < 1:
        raise SpecError(f"tiles is {p.tiles if p.has('tiles') else 'not given'}; it must be 1 or more")
    return [(*bottom[:axis], bottom[axis] * p.tiles, *bottom[axis + 1 :])]


def unsqueezed_axis(p: Message, dims: int) -> int:
    """Where an Unsqueeze puts its axis, counted from the first."""
    if not p.has("dim"):
        raise SpecError("dim is missing")
    return canonical_axis(p.dim, dims + 1)


def _unsqueeze(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    bottom = bottoms[0]
    axis = unsqueezed_axis(layer.unsqueeze_param, len(bottom))
    return [(*bottom[:axis], 1, *bottom[axis:])]


_SAME_NUMBERS = Trait.REARRANGES | Trait.NO_NUMBERS | Trait.SHARES_MEMORY

declare("ArgMax", _argmax, message="argmax_param", traits=Trait.AGGREGATES)
declare("BatchReindex", _batch_reindex, bottoms=2, holds=(Holds.NUMBERS, Holds.INDICES))
declare(
    "Concat",
    _concat,
    message="concat_param",
    bottoms=(1, ANY),
    traits=Trait.REARRANGES | Trait.KEEPS_PLACES | Trait.SHARES_ALONE,
)
declare(
    "Eltwise",
    _eltwise,
    message="eltwise_param",
    bottoms=(1, ANY),  # FlowNet2's fork allows one, to scale it
    aliases=("ShortCut", "Shortcut"),
    traits=Trait.ELEMENTWISE,
)
declare("Filter", _filter, bottoms=(2, ANY), holds=(Holds.NUMBERS, Holds.FLAGS))
declare("Flatten", _flatten, message="flatten_param", traits=_SAME_NUMBERS | Trait.NOT_IN_PLACE)
declare("Permute", _permute, message="permute_param", traits=Trait.REARRANGES)
declare("Transpose", _transpose, message="transpose_param", traits=Trait.REARRANGES)
declare("Reduction", _reduction, message="reduction_param", traits=Trait.AGGREGATES)
declare("Reshape", _reshape, message="reshape_param", traits=_SAME_NUMBERS)
declare(
    "ShuffleChannel",
    _shuffle_channel,
    message="shuffle_channel_param",
    aliases=("ChannelShuffle",),
    traits=Trait.REARRANGES | Trait.KEEPS_PLACES,
)
declare(
    "Silence",
    nothing,
    bottoms=(1, ANY),
    aliases=("BlackHole",),
    traits=Trait.SINK | Trait.NO_NUMBERS | Trait.SHARES_MEMORY,
)
declare(
    "Slice",
    _slice,
    message="slice_param",
    traits=Trait.REARRANGES | Trait.KEEPS_PLACES | Trait.WHOLE_LAYER | Trait.SHARES_ALONE,
)
declare("Split", _split, traits=_SAME_NUMBERS | Trait.NOT_IN_PLACE | Trait.KEEPS_CHANNELS | Trait.KEEPS_PLACES)
declare("Unsqueeze", _unsqueeze, message="unsqueeze_param", traits=_SAME_NUMBERS | Trait.NO_BACKWARD)
declare("Tile", _tile, message="tile_param", traits=Trait.REARRANGES)
