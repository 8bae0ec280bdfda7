"""The records of what brings numbers (inputs of the Net, constants, parameters) or takes them in; of Python layers.

Source: src/caffe/layers of Caffe 1.0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.checks import nothing
from caffe_port.signatures.signature import ANY, Trait, declare
from caffe_port.typing import Shape


def per_top(name: str, values: Sequence[Any], tops: int) -> list[Any]:
    """One value for each top; a single value serves all. Raises SpecError for another number of values."""
    if len(values) not in (1, tops):
        raise SpecError(
            f"dummy_data_param gives {name} {len(values)} times for {tops} tops; give it once, or once per top"
        )
    return list(values) * (tops if len(values) == 1 else 1)


def distribution(filler: Message, shape: Shape) -> tuple[str, float, float]:
    """What a filler draws: ("constant", value, 0), ("uniform", low, high), ("gaussian", mean, deviation), ("sparse",
    deviation, share of the values that are not 0), ("positive_unitball", 0, 0) or ("bilinear", 0, 0).

    Raises:
        SpecError: the filler is of another kind, or cannot fill this shape.

    Source: filler.hpp
    """
    if filler.type == "constant":
        return "constant", filler.value, 0.0
    if filler.type == "uniform":
        return "uniform", filler.min, filler.max
    if filler.type == "gaussian" and filler.sparse < 0:
        return "gaussian", filler.mean, filler.std
    rows, columns, *_ = (max(n, 1) for n in (*shape, 1, 1))
    if filler.type == "gaussian" and not filler.mean and filler.sparse <= rows:
        return "sparse", filler.std, filler.sparse / rows
    if filler.type in ("xavier", "msra"):
        count = max(math.prod(shape), 1)
        fan_in, fan_out = count / rows, count / columns
        n = {"FAN_IN": fan_in, "FAN_OUT": fan_out, "AVERAGE": (fan_in + fan_out) / 2}[filler.variance_norm]
        if filler.type == "xavier":
            return "uniform", -math.sqrt(3 / n), math.sqrt(3 / n)
        return "gaussian", 0.0, math.sqrt(2 / n)
    if filler.type == "positive_unitball":
        return filler.type, 0.0, 0.0
    if filler.type == "bilinear":
        if len(shape) != 4 or shape[2] != shape[3]:
            raise SpecError(f"filler 'bilinear' needs a square 4-D blob, got {tuple(shape)}")
        return filler.type, 0.0, 0.0
    kind = filler.type if filler.type != "gaussian" else "gaussian, sparse,"
    raise SpecError(
        f"DummyData does not support the filler '{kind}'; use constant, uniform, gaussian, xavier, msra, "
        "positive_unitball or bilinear"
    )


def dummy_shapes(layer: Message) -> list[Shape]:
    """The shape of each top of a DummyData."""
    tops, dummy = len(layer.top), layer.dummy_data_param
    columns = ("num", "channels", "height", "width")
    if not any(dummy.has(name) for name in columns):
        return per_top("shape", [tuple(int(n) for n in s.dim) for s in dummy.shape], tops)
    if dummy.has("shape"):
        raise SpecError("dummy_data_param gives both shape and num, channels, height, width; give only one")
    return list(zip(*(per_top(name, [int(n) for n in getattr(dummy, name)], tops) for name in columns), strict=True))


def dummy_draws(layer: Message) -> list[tuple[str, float, float]]:
    """What the filler of each top of a DummyData draws, see :func:`distribution`."""
    given = layer.dummy_data_param.data_filler or [Message("FillerParameter", type="constant", value=0.0)]
    fillers = per_top("data_filler", given, len(layer.top))
    return [distribution(filler, shape) for filler, shape in zip(fillers, dummy_shapes(layer), strict=True)]


def _dummy_data(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    dummy_draws(layer)
    return dummy_shapes(layer)


def _parameter(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    return [tuple(int(n) for n in layer.parameter_param.shape.dim)]


def _parameter_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    return {"value": tuple(_parameter(layer, bottoms)[0])}


def _python(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    p = layer.python_param
    raise SpecError(f"runs the Python code {p.module}.{p.layer}, which works only with pycaffe")


declare("Input", None, message="input_param", bottoms=0, traits=Trait.SOURCE)
declare("Data", None, message="data_param", bottoms=0, traits=Trait.SOURCE)
declare("ImageData", None, message="image_data_param", bottoms=0, traits=Trait.SOURCE)
declare("WindowData", None, message="window_data_param", bottoms=0, traits=Trait.SOURCE)
declare("MemoryData", None, message="memory_data_param", bottoms=0, traits=Trait.SOURCE)
declare("HDF5Data", None, message="hdf5_data_param", bottoms=0, traits=Trait.SOURCE)
declare("AnnotatedData", None, message="data_param", bottoms=0, traits=Trait.SOURCE)
declare("VideoData", None, message="data_param", bottoms=0, traits=Trait.SOURCE)
declare("OtherData", None, bottoms=0, traits=Trait.SOURCE | Trait.OTHERS)
declare("DummyData", _dummy_data, message="dummy_data_param", bottoms=0, traits=Trait.WHOLE_LAYER)
declare("Parameter", _parameter, message="parameter_param", bottoms=0, blobs=("value",), blob_shapes=_parameter_blobs)
declare("HDF5Output", nothing, bottoms=(0, ANY), traits=Trait.SINK)
declare("Python", _python, message="python_param", bottoms=(0, ANY), traits=Trait.WHOLE_LAYER | Trait.FOREIGN)
