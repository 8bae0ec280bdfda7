"""Where the pixels of one blob of a NetSpec are in another one, and the Crop layer that aligns them.

A coordinate map is ``(axis, scale, shift)``: coordinate i of the bottom is ``scale * i + shift`` in the top, from axis
``axis + 1`` on; ``(None, 1, 0)`` is the identity of pointwise layers. Source: python/caffe/coord_map.py of Caffe.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from caffe_port.pycaffe.net_spec import Function, Top
from caffe_port.pycaffe.net_spec import layers as L
from caffe_port.typing import Array

#: Types whose tops have the coordinates of their bottoms, in pycaffe; no others do there, not even Softmax.
PASS_THROUGH_LAYERS = [
    *("AbsVal", "BatchNorm", "Bias", "BNLL", "Dropout", "Eltwise", "ELU", "Log", "LRN", "Exp", "MVN", "Power", "ReLU"),
    *("PReLU", "Scale", "Sigmoid", "Split", "TanH", "Threshold"),
]
_PER_AXIS = frozenset(["pad_h", "pad_w", "kernel_h", "kernel_w", "stride_h", "stride_w"])

Map = tuple[Any, Any, Any]


class UndefinedMapException(Exception):  # noqa: N818 - pycaffe's name
    """The layer has no coordinate map."""


class AxisMismatchException(Exception):  # noqa: N818
    """The maps begin at different axes."""


def conv_params(fn: Function) -> tuple[int, Array, Array, Array]:
    """The axis, stride, extent (dilated kernel) and pad of a Convolution, Deconvolution, Im2col or Pooling.

    Raises:
        KeyError: it has no ``kernel_size``.
        AssertionError: it has ``stride_h`` and the like.
    """
    params = fn.params.get("convolution_param", fn.params)
    kernel, dilation, stride, pad = (
        np.array(value, ndmin=1)
        for value in (params["kernel_size"], params.get("dilation", 1), params.get("stride", 1), params.get("pad", 0))
    )
    assert not _PER_AXIS & set(fn.params), "cropping does not support legacy _h/_w params"
    return params.get("axis", 1), stride, (kernel - 1) * dilation + 1, pad


def crop_params(fn: Function) -> tuple[int, Array]:
    """The axis and offset of a Crop."""
    params = fn.params.get("crop_param", fn.params)
    return params.get("axis", 2), np.array(params.get("offset", 0), ndmin=1)


def coord_map(fn: Function) -> Map:
    """The map from the bottoms of a layer to its tops.

    Raises:
        UndefinedMapException: the type has none.
    """
    if fn.type_name in PASS_THROUGH_LAYERS:
        return None, 1, 0
    if fn.type_name == "Crop":
        axis, offset = crop_params(fn)
        return axis - 1, 1, -offset
    if fn.type_name not in ("Convolution", "Pooling", "Im2col", "Deconvolution"):
        raise UndefinedMapException
    axis, stride, extent, pad = conv_params(fn)
    if fn.type_name == "Deconvolution":
        return axis, stride, (extent - 1) / 2 - pad
    return axis, 1 / stride, (pad - (extent - 1) / 2) / stride


def compose(base_map: Map, next_map: Map) -> Map:
    """The map of two layers in a row.

    Raises:
        AxisMismatchException: they begin at different axes.
    """
    axis, scale, shift = base_map
    next_axis, next_scale, next_shift = next_map
    if axis is None:
        axis = next_axis
    elif next_axis is not None and next_axis != axis:
        raise AxisMismatchException
    return axis, scale * next_scale, scale * next_shift + shift


def inverse(coord_map: Map) -> Map:
    """The map in the other direction."""
    axis, scale, shift = coord_map
    return axis, 1 / scale, -shift / scale


def _ancestors(top: Top) -> Iterator[tuple[Top, Map]]:
    """A blob and all that it depends on with their maps, as far as the layers between have one.

    The second bottom of a Crop gives a size only. All ways to a blob are assumed to have the same map.
    """
    maps: dict[Top, Map] = {top: (None, 1, 0)}
    frontier = [top]
    while frontier:
        one = frontier.pop()
        yield one, maps[one]
        bottoms = one.fn.inputs[:1] if one.fn.type_name == "Crop" else one.fn.inputs
        try:
            for bottom in bottoms:
                maps[bottom] = compose(maps[one], coord_map(one.fn))
                frontier.append(bottom)
        except UndefinedMapException:
            pass


def coord_map_from_to(top_from: Top, top_to: Top) -> Map:
    """The map from one blob to another one, over a blob that both depend on.

    Raises:
        RuntimeError: there is no such blob, or layers without a map are between.
        AxisMismatchException: maps on the way begin at different axes.
    """
    from_maps = dict(_ancestors(top_from))
    for top, to_map in _ancestors(top_to):
        if top in from_maps:
            return compose(to_map, inverse(from_maps[top]))
    raise RuntimeError("Could not compute map between tops; are they connected by spatial layers?")


def crop(top_from: Top, top_to: Top) -> Any:
    """A Crop of one blob to the size of another one, with the offset that aligns them.

    Raises:
        AssertionError: they have different scales, or the offset is negative or not whole.
        RuntimeError: see :func:`coord_map_from_to`.
    """
    axis, scale, shift = coord_map_from_to(top_from, top_to)
    assert (scale == 1).all(), f"scale mismatch on crop (a = {scale})"
    assert (shift <= 0).all(), f"cannot crop negative offset (b = {shift})"
    assert (np.round(shift) == shift).all(), f"cannot crop noninteger offset (b = {shift})"
    offset = (-np.round(shift)).astype(int).tolist()
    return L.Crop(top_from, top_to, crop_param={"axis": axis + 1, "offset": offset})
