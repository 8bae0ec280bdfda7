"""A net layer by layer, as far as it can be known: shapes, blobs, parameters, multiply-accumulates.

Where the shape of an input is not known, the net is walked through with two guesses, and what both give is known: the
channels after the first convolution, for example, and most of the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from caffe_port.definition.definition import Definition
from caffe_port.definition.deploy_view import view
from caffe_port.definition.fields import refusals
from caffe_port.definition.fits import fitted
from caffe_port.definition.input_shapes import resolve
from caffe_port.errors import SpecError
from caffe_port.formats.caffemodel import LayerBlobs, Weights, shapes_agree
from caffe_port.formats.message import Message
from caffe_port.signatures import shapes
from caffe_port.signatures.kernel_params import dilation_field, per_axis
from caffe_port.signatures.plugins import find
from caffe_port.signatures.signature import Trait, has, signature_of
from caffe_port.spec import LayerSpec, NetSpec, Producer
from caffe_port.typing import Shape

Dims = tuple[int | None, ...] | None
"""A shape some of whose lengths may be unknown; None: not even their number is known."""

_GUESSES: tuple[Shape, ...] = ((1, 3, 448, 480), (1, 1, 640, 608))


@dataclass(frozen=True)
class Options:
    """How to look at a net.

    Attributes:
        phase, level, stages: Caffe's NetState.
        input_shapes: blob name -> shape, where the net does not say it or another one is wanted.
        numbers: read every blob of a weights file: extremes, mean, NaN.
        ignore_fields: names of fields to go without, see :func:`caffe_port.port`.
    """

    phase: str = "TEST"
    level: int = 0
    stages: tuple[str, ...] = ()
    input_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    numbers: bool = False
    ignore_fields: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One layer. None stands for what is not known.

    Attributes:
        bottoms, tops: blob names.
        shapes: of the tops.
        blobs: shapes of the parameter blobs.
        parameters: numbers that a solver learns; a blob shared with an earlier layer counts there.
        statistics: numbers that BatchNorm keeps, which no solver learns.
        macs: multiply-accumulates of one forward pass.
        activation_bytes: float32 memory of the tops; 0 for layers that work in place or share their bottom's memory.
        window: of a layer that slides one: ``"3x3, stride 2, pad 1"``; what is 1, or a pad of 0, is left out.
        line: of the prototxt; 0 where there is none.
    """

    name: str
    type: str
    bottoms: tuple[str, ...] = ()
    tops: tuple[str, ...] = ()
    shapes: tuple[Dims, ...] = ()
    blobs: tuple[Dims, ...] | None = ()
    parameters: int | None = 0
    statistics: int | None = 0
    macs: int | None = 0
    activation_bytes: int | None = 0
    window: str = ""
    line: int = 0


@dataclass(frozen=True)
class Survey:
    """A net in one phase.

    Attributes:
        shapes: of every blob.
        rows: its layers, in the file's order.
        notes: what was inferred, or must be asked for.
        errors: why the net cannot be built as it is.
    """

    spec: NetSpec
    shapes: Mapping[Producer, Dims]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    errors: tuple[str, ...]


def survey(
    definition: Definition, options: Options, weights: Weights | None = None, hints: Mapping[str, Shape] | None = None
) -> Survey:
    """Looks at a net.

    Args:
        definition: the net.
        options: how.
        weights: their shapes tell those of the inputs, and of blobs that the definition leaves open.
        hints: shapes of input blobs, for inputs that do not say their own.

    Raises:
        SpecError: the wiring makes no sense, or ``options.input_shapes`` names no input.
    """
    spec, notes = _spec(definition, options)
    known, asked = _input_shapes(spec, weights, options.input_shapes, hints or {})
    given = {blob: shape for blob, shape in known.items() if shape is not None}
    if len(given) == len(known):
        spec = fitted(spec, given)
        views = [_walk(spec, given)]
    else:
        views = [_walk(spec, {**dict.fromkeys(known, guess), **given}) for guess in _GUESSES]
    tops: dict[Producer, Dims] = {
        producer: _common([view.tops.get(producer) for view in views]) for producer in views[0].tops
    }
    tops.update({producer: None for blob, producer in spec.inputs if blob not in given})
    stored = weights.by_name() if weights else {}
    owners: dict[str, str] = {}
    rows = []
    for layer in spec.layers:
        blobs = _common([view.blobs.get(layer.name) for view in views])
        macs = _common([view.macs.get(layer.name) for view in views])
        rows.append(_row(layer, tops, _known_blobs(layer.type, blobs, stored.get(layer.name)), macs, owners))
    errors = () if len(views) > 1 else views[0].errors
    unsupported = views[0].unsupported
    needed: set[str] = set()
    if unsupported or spec.unfollowed:
        kept = _converted(definition, options, known)
        needed = {layer.name for layer in kept.layers}
        errors = (*refusals(kept), *errors)
    errors += tuple(str(layer.error("this type is not supported")) for layer in unsupported if layer.name in needed)
    left_out = ", ".join(f"{layer.name} ({layer.type})" for layer in unsupported if layer.name not in needed)
    notes += [f"layers of unsupported types, left out when converting: {left_out}"] if left_out else []
    return Survey(spec, tops, tuple(rows), (*spec.notes, *notes, *asked), errors)


def _converted(definition: Definition, options: Options, inputs: Collection[str]) -> NetSpec:
    """What converting keeps; the whole net where that is only losses."""
    spec = definition.spec(options.phase, options.level, options.stages or None, inputs)
    try:
        return view(spec, {layer.name for layer in spec.layers if find(layer.param) is None})
    except SpecError:
        return spec


def parameter_counts(
    layer: LayerSpec, blobs: Sequence[Dims] | None, owners: dict[str, str]
) -> tuple[int | None, int | None]:
    """Learned numbers, and statistics.

    Args:
        blobs: shapes.
        owners: name in ``param { name }`` -> the layer that counts it; grows.
    """
    if blobs is None:
        return None, None
    learned: int | None = 0
    kept, statistics = 0, shapes.statistics(layer)
    for index, shape in enumerate(blobs):
        shared = layer.param.param[index].name if index < len(layer.param.param) else ""
        if shared and owners.setdefault(shared, layer.name) != layer.name:
            continue
        count = size(shape)
        if index in statistics:
            kept += count or 0
        else:
            learned = None if learned is None or count is None else learned + count
    return learned, kept


def full(dims: Dims) -> Shape | None:
    """The shape, if all of it is known."""
    return None if dims is None or None in dims else tuple(n for n in dims if n is not None)


def size(dims: Dims) -> int | None:
    """How many numbers a shape holds, or None."""
    return None if dims is None or None in dims else math.prod(n for n in dims if n is not None)


def agree(asked: Dims, held: Shape, row: bool = False) -> bool | None:
    """Whether a file's blob is the one that a layer asks for, as loading sees it; None where that is not known."""
    if (shape := full(asked)) is not None:
        return shapes_agree(held, shape, row)
    if asked is None or len(asked) != len(held):
        return None
    return False if any(m not in (n, None) for m, n in zip(asked, held, strict=True)) else None


# -- the spec and its inputs --------------------------------------------------------------------------------------


def _spec(definition: Definition, options: Options) -> tuple[NetSpec, list[str]]:
    """The net in its phase; one without any input layer takes the blobs that nobody makes for its inputs."""
    try:
        return definition.spec(options.phase, options.level, options.stages or None, tuple(options.input_shapes)), []
    except SpecError:
        if any(has(layer.type, Trait.SOURCE) for layer in definition.net.layer):
            raise
        made = {top for layer in definition.net.layer for top in layer.top}
        read = dict.fromkeys(bottom for layer in definition.net.layer for bottom in layer.bottom)
        missing = tuple(blob for blob in read if blob not in made)
        if not missing:
            raise
        spec = definition.spec(options.phase, options.level, options.stages or None, missing)
        return spec, [f"the net has no input layer; treated as inputs: {', '.join(missing)}"]


def _input_shapes(
    spec: NetSpec, weights: Weights | None, given: Mapping[str, Sequence[int]], hints: Mapping[str, Shape]
) -> tuple[dict[str, Shape | None], list[str]]:
    """Shape, or None, by input blob; and the notes to them."""
    names = [blob for blob, _ in spec.inputs]
    if any(blob not in names for blob in given):
        resolve(spec, weights, given)  # says what is wrong
    declared = {blob for blob, producer in spec.inputs if spec.by_name[producer[0]].param.input_param.shape}
    given = {blob: s for blob, s in hints.items() if blob in names and blob not in declared} | dict(given)
    try:
        resolved = resolve(spec, weights, given)
        return dict(resolved.shapes), list(resolved.notes)
    except SpecError as error:
        if len(names) == 1:
            return {names[0]: None}, [_asked(error)]
    found: dict[str, Shape | None] = {}
    notes: list[str] = []
    for blob in names:
        others = {other: (1,) for other in names if other != blob}
        try:
            resolved = resolve(spec, weights, {**others, **given})
            found[blob] = resolved.shapes[blob]
            notes += resolved.notes
        except SpecError as error:
            found[blob] = None
            notes.append(_asked(error))
    return found, notes


def _asked(error: SpecError) -> str:
    return f"{error.what}. {error.hint}".strip()


# -- walking through ----------------------------------------------------------------------------------------------


@dataclass
class _View:
    """What one choice of input shapes gives; a layer whose bottoms are not known, or do not fit, is absent."""

    tops: dict[Producer, Shape | None] = field(default_factory=dict)
    blobs: dict[str, tuple[Shape, ...]] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    unsupported: tuple[LayerSpec, ...] = ()


def _walk(spec: NetSpec, given: Mapping[str, Shape]) -> _View:
    view = _View(tops={producer: given[blob] for blob, producer in spec.inputs})
    for layer in spec.layers:
        if layer.is_input:
            view.blobs[layer.name], view.macs[layer.name] = (), 0
            continue
        view.tops.update({(layer.name, k): None for k in range(len(layer.tops))})
        bottoms = [shape for s in layer.producers if (shape := view.tops[s]) is not None]
        if find(layer.param) is None:
            view.unsupported += (layer,)
            continue
        if len(bottoms) < len(layer.producers):
            continue
        try:
            tops, blobs = _tops_and_blobs(layer, bottoms)
        except SpecError as error:
            view.errors += (str(error),)
            continue
        view.tops.update({(layer.name, k): shape for k, shape in enumerate(tops)})
        view.blobs[layer.name], view.macs[layer.name] = tuple(blobs), shapes.macs(layer, bottoms, tops)
    return view


def _tops_and_blobs(layer: LayerSpec, bottoms: Sequence[Shape]) -> tuple[Sequence[Shape], Sequence[Shape]]:
    """By rule; a type without one is built on the meta device, which imports torch."""
    if shapes.rule_of(layer) is not None:
        return shapes.top_shapes(layer, bottoms), shapes.blob_shapes(layer, bottoms)
    from caffe_port.net.net import Net

    blobs = [f"bottom {k}" for k in range(len(bottoms))]
    sources = [_input(blob) for blob in blobs]
    alone = replace(layer, producers=tuple((blob, 0) for blob in blobs))
    spec = NetSpec("", "TEST", (*sources, alone), layer.where)
    net = Net(spec, dict(zip(blobs, bottoms, strict=True)), seed=None)
    module: Any = net.caffe_layers()[layer.name]
    tops = [net.plan.shapes[layer.name, k] for k in range(len(layer.tops))]
    return tops, [tuple(module.get_blob(blob).shape) for blob in module.blob_names()]


def _input(blob: str) -> LayerSpec:
    param = Message("LayerParameter", name=blob, type="Input", top=[blob])
    return LayerSpec(blob, param.type, (), (blob,), (), param, "", is_input=True)


def _common(values: Sequence[Any]) -> Any:
    """What all views say, length by length in a shape; None where they differ or one does not know."""
    first = values[0]
    if all(value == first for value in values):
        return first
    if all(isinstance(value, tuple) and len(value) == len(first) for value in values):
        return tuple(_common(lengths) for lengths in zip(*values, strict=True))
    return None


def _known_blobs(type_: str, blobs: tuple[Dims, ...] | None, stored: LayerBlobs | None) -> tuple[Dims, ...] | None:
    """The definition's shapes; the file's where the definition leaves them open and nothing contradicts."""
    if stored is None or (blobs is not None and all(size(shape) is not None for shape in blobs)):
        return blobs
    held = tuple(tuple(array.shape) for array in stored.blobs)
    if blobs is None or len(blobs) != len(held):
        return held if blobs is None else blobs
    row = has(type_, Trait.ROWS)
    return blobs if any(agree(a, b, row) is False for a, b in zip(blobs, held, strict=True)) else held


def _row(
    layer: LayerSpec,
    tops: Mapping[Producer, Dims],
    blobs: tuple[Dims, ...] | None,
    macs: int | None,
    owners: dict[str, str],
) -> Row:
    found = tuple(tops.get((layer.name, k)) for k in range(len(layer.tops)))
    own = (
        ()
        if has(layer.type, Trait.SHARES_MEMORY)
        else [s for top, s in zip(layer.tops, found, strict=True) if top not in layer.bottoms]
    )
    counts = [size(shape) for shape in own]
    memory = None if None in counts else 4 * sum(n for n in counts if n is not None)
    parameters, statistics = parameter_counts(layer, blobs, owners)
    return Row(
        layer.name,
        layer.type,
        layer.bottoms,
        layer.tops,
        found,
        blobs,
        parameters,
        statistics,
        macs,
        memory,
        _window(layer, found[0] if found else None),
        layer.param.line,
    )


def _window(layer: LayerSpec, top: Dims) -> str:
    """Kernel, stride, padding and the like, as the definition says them; empty where it makes no sense."""
    signature = signature_of(layer.type)
    if signature is None or not (signature.has(Trait.SLIDES) or signature.has(Trait.SPREADS)):
        return ""
    p = signature.parameters(layer.param)
    known = p.schema.fields if p.schema is not None else ()
    kind = [p.pool] if "pool" in known else []
    if kind and p.global_pooling:
        return f"global, {p.pool}"
    axes = 2 if top is None else max(len(top) - 2, 1)
    try:
        kernel = per_axis(p, "kernel_size", axes, None)
        given = {name: per_axis(p, name, axes, default) for name, default in (("stride", 1), ("pad", 0))}
        if dilation_field(p) in known:
            given["dilation"] = per_axis(p, dilation_field(p), axes, 1)
    except SpecError:
        return ""
    plain = {"stride": 1, "pad": 0, "dilation": 1}
    said = [f"{name} {_each(values)}" for name, values in given.items() if set(values) != {plain[name]}]
    said += [f"group {p.group}"] if not kind and p.has("group") and p.group > 1 else []
    return ", ".join(["x".join(map(str, kernel)), *said, *kind])


def _each(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))
