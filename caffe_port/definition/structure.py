"""What building a Net refuses, by the records of its layers alone: unknown types, shapes that do not carry through,
blobs that do not fit. Net asks the same functions; here they run without torch.

Source: net.cpp (Init, CopyTrainedLayersFrom).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from caffe_port.definition.stored_blobs import for_layers, renamed
from caffe_port.errors import SpecError, UnsupportedLayerError, WeightsError, did_you_mean
from caffe_port.formats.caffemodel import Weights, shapes_agree
from caffe_port.formats.message import Message
from caffe_port.signatures import shapes
from caffe_port.signatures.checks import MAX_COUNT, check_count
from caffe_port.signatures.plugins import find, find_type
from caffe_port.signatures.signature import PYTHON, SIGNATURES, UNSUPPORTED, Signature, Trait
from caffe_port.spec import LayerSpec, NetSpec, Producer
from caffe_port.terminal import count
from caffe_port.typing import Array, Shape


@dataclass
class Structure:
    """What is known of the layers of a net.

    Attributes:
        blobs: layer name -> shape by blob name, for the layers of both phases.
        keys: layer name -> what tells its blobs apart: layers that share a blob have the same one.
        rows: the layers whose vectors may also be stored as (1, n).
        phases: the layers of each phase.
        whole: whether every layer is known; a plugin's layer may not be.
    """

    blobs: dict[str, dict[str, Shape]] = field(default_factory=dict)
    keys: dict[str, list[Hashable]] = field(default_factory=dict)
    rows: set[str] = field(default_factory=set)
    phases: list[Sequence[LayerSpec]] = field(default_factory=list)
    whole: bool = True
    _walked: dict[str, tuple[Message, list[Shape], list[Shape] | None]] = field(default_factory=dict)

    def add(self, spec: NetSpec, inputs: Mapping[str, Shape], stub: bool) -> None:
        """Takes in the layers of a phase.

        Args:
            spec: its net.
            inputs: shape by input blob.
            stub: whether layers of an unknown type may stay.

        Raises:
            UnsupportedLayerError: names every layer of a type that is not registered.
            SpecError: a layer, or what it reads, makes no sense; with its name and line.
        """
        if not stub:
            check_types([spec])
        self.phases.append(spec.layers)
        found: dict[Producer, Shape] = {}
        for blob, producer in spec.inputs:
            check_input(blob, inputs, spec.path)
            found[producer] = tuple(inputs[blob])
        for layer in spec.layers:
            if layer.is_input:
                continue
            if find(layer.param) is None and not stub:
                error = unknown_python(layer.param)
                raise layer.error(error.what, error.hint)
            bottoms = [found[producer] for producer in layer.producers if producer in found]
            tops = self._tops(layer, bottoms) if len(bottoms) == len(layer.producers) else None
            if tops is None:
                self.whole = False
            else:
                found.update({(layer.name, k): shape for k, shape in enumerate(tops)})

    def _tops(self, layer: LayerSpec, bottoms: list[Shape]) -> list[Shape] | None:
        """The shapes of a layer's tops; None where its record has no rule."""
        first = self._walked.get(layer.name)
        if first is not None and first[0] is layer.param and first[1] == bottoms:
            return first[2]
        signature = shapes.rule_of(layer)
        tops = None
        if signature is not None:
            tops = shapes.top_shapes(layer, bottoms)
            with layer.checked():
                for shape in tops:
                    check_count("the top", shape)
            blobs = shapes.named_blobs(layer, bottoms)
            check_params(layer, blobs)
            check_tops(layer, tops, len(bottoms))
            loss_weights(layer, signature)
            if layer.name in self.blobs:
                check_phases(layer, list(blobs.values()), list(self.blobs[layer.name].values()))
            else:
                names = [param.name for param in layer.param.param] + [""] * len(blobs)
                self.blobs[layer.name] = blobs
                self.keys[layer.name] = [names[k] or (layer.name, k) for k in range(len(blobs))]
                self.rows |= {layer.name} if signature.has(Trait.ROWS) else set()
        self._walked.setdefault(layer.name, (layer.param, bottoms, tops))
        return tops

    def check(self, weights: Weights) -> None:
        """Raises WeightsError for weights that cannot be loaded; see :func:`check_blobs`."""
        if self.whole:
            weights = renamed(weights, self.phases)
            held = for_layers(weights, [layer.param for layers in self.phases for layer in layers])
            check_blobs(held, weights, self.keys, self._misfit)

    def _misfit(self, name: str, arrays: Sequence[Array]) -> str:
        return misfit(self.blobs[name], arrays, name in self.rows)


# -- layers -------------------------------------------------------------------------------------------------------


def check_types(specs: Iterable[NetSpec]) -> None:
    """Raises UnsupportedLayerError for layers of a type that is not registered."""
    unknown = {layer.name: layer for spec in specs for layer in spec.layers if find_type(layer.type) is None}
    if not unknown:
        return
    lines = []
    for layer in unknown.values():
        reason = UNSUPPORTED.get(layer.type) or did_you_mean(layer.type, SIGNATURES, 0.75).strip()
        lines.append(f"{layer.where}: layer '{layer.name}' ({layer.type}){': ' + reason if reason else ''}")
    lines.append("Use --stub to insert placeholders, or --plugin to supply your own Layer.")
    some = next(iter(unknown.values()))
    path = some.where.rsplit(":", 1)[0] if some.param.line else some.where
    raise UnsupportedLayerError(
        f"{len(unknown)} {'layers have a type' if len(unknown) > 1 else 'layer has a type'} that is not supported:",
        path,
        lines,
    )


def unknown_python(layer: Message) -> SpecError:
    """The error about a LayerParameter of type Python that nothing stands for; the net adds where it is."""
    p = layer.python_param
    name = f"{p.module}.{p.layer}"
    return SpecError(
        f"runs the Python code {name}, which works only with pycaffe.{did_you_mean(name, PYTHON)}",
        hint=(
            (
                f'Map it with --plugin: a file with @python_layer("{p.module}", "{p.layer}") above a Layer; '
                "--stub inserts a placeholder."
            ),
            "A script of pycaffe's that uses the net runs, with this layer as it is, under `caffe-port run`.",
        ),
    )


def check_input(blob: str, known: Mapping[str, Shape], path: str) -> None:
    """Raises SpecError for an input blob whose shape is unknown, or holds no numbers."""
    if blob not in known:
        raise SpecError(f"the shape of input '{blob}' is unknown", path)
    if 0 in known[blob]:
        raise SpecError(f"input '{blob}' of shape {tuple(known[blob])} holds no numbers", path)


def check_params(layer: LayerSpec, blobs: Mapping[str, Shape]) -> None:
    """Raises SpecError for a blob beyond Caffe's limit, or ``param`` entries without a blob."""
    for name, shape in blobs.items():
        if (numbers := math.prod(shape)) > MAX_COUNT:
            raise layer.error(f"{name} would contain {numbers} values; Caffe's limit is 2^31 - 1")
    if len(layer.param.param) > len(blobs):
        raise layer.error(f"has {len(layer.param.param)} param entries, but {count(len(blobs), 'blob')}")


def check_tops(layer: LayerSpec, tops: Sequence[Shape], bottoms: int) -> None:
    """Raises SpecError for another number of tops than the layer names, or an empty or too large one."""
    if len(tops) != len(layer.tops):
        raise layer.error(f"has {len(layer.tops)} tops, but this type produces {len(tops)} from {bottoms} bottoms")
    for name, shape in zip(layer.tops, tops, strict=True):
        if 0 in shape:
            raise layer.error(f"top '{name}' of shape {shape} holds no numbers")
        if math.prod(shape) > MAX_COUNT or min(shape, default=1) < 0:
            raise layer.error(f"top '{name}' of shape {shape} is too large for any memory")


def check_phases(layer: LayerSpec, blobs: Sequence[Shape], others: Sequence[Shape]) -> None:
    """Raises SpecError for a layer whose blobs are not those of the layer of this name in the other phase."""
    if list(map(tuple, blobs)) != list(map(tuple, others)):
        shown = " and ".join(", ".join(map(str, map(tuple, one))) or "none" for one in (blobs, others))
        raise layer.error(
            f"has other blobs than in the other phase: {shown}",
            "Caffe cannot share them between the nets that it trains and tests. Give one of the two another name.",
        )


def loss_weights(layer: LayerSpec, signature: Signature) -> list[float]:
    """The loss_weight of each top.

    Raises:
        SpecError: the layer gives another number of them than it has tops.
    """
    loss, given = signature.has(Trait.LOSS), list(layer.param.loss_weight)
    if loss and not given and len(layer.tops) > 1 and not signature.has(Trait.OTHERS):
        raise layer.error(f"a loss with {len(layer.tops)} tops needs a loss_weight for each of them")
    if given and len(given) != len(layer.tops):
        raise layer.error(f"{len(given)} loss_weight values for {len(layer.tops)} tops; give one per top")
    return given or [1.0 if loss and k == 0 else 0.0 for k in range(len(layer.tops))]


# -- blobs --------------------------------------------------------------------------------------------------------


def misfit(asked: Mapping[str, Shape], arrays: Sequence[Array], row: bool) -> str:
    """Why these arrays cannot be a layer's blobs, or an empty string; see :func:`shapes_agree` for the shapes."""
    if len(arrays) != len(asked):
        shown = ", ".join(str(tuple(array.shape)) for array in arrays)
        want = f"{len(asked)} ({', '.join(asked)})" if asked else "none"
        held = f"{count(len(arrays), 'blob')} ({shown})" if arrays else "no blobs"
        return f"holds {held}, the definition asks for {want}"
    for (name, shape), array in zip(asked.items(), arrays, strict=True):
        if not shapes_agree(array.shape, shape, row):
            return f"holds {name} {tuple(array.shape)}, the definition asks for {shape}"
    return ""


def check_blobs(
    held: Weights,
    weights: Weights,
    keys: Mapping[str, Sequence[Hashable]],
    mismatch: Callable[[str, Sequence[Array]], str],
) -> None:
    """Checks that the blobs of a file can be loaded.

    Args:
        held: the weights as the net's layers hold them, see :func:`for_layers`.
        weights: the same as the file has them.
        keys: layer name -> what tells its blobs apart, for every layer of the net.
        mismatch: why arrays cannot be the blobs of a layer; empty if they can.

    Raises:
        WeightsError: no layer of the net is in the file, or any layer's blobs have another number or shape.
    """
    stored = held.by_name()
    targets = {name: own for name, own in keys.items() if own}
    matched = [name for name in targets if name in stored]
    if targets and not matched:
        near = did_you_mean(next(iter(targets)), stored)
        raise WeightsError(
            f"contains no layer of this net; the net has {few(targets)}, the file has {few(stored)}.{near}",
            weights.path,
        )
    entries = [(layer.name, layer.blobs) for layer in held.layers if layer.name in keys]
    entries += [(name, ()) for name in weights.bare if name in targets]
    shared = {key for name in matched for key in targets[name]}  # what is shared is stored with its owner
    entries += [(name, ()) for name in targets.keys() & weights.empty if not shared.issuperset(targets[name])]
    differ = {name: text for name, blobs in reversed(entries) if (text := mismatch(name, blobs))}
    wrong = [f"layer '{name}' {differ[name]}" for name in keys if name in differ]
    if wrong:
        more = f"; {len(wrong)} of {len(matched)} layers differ" if len(matched) > 1 else ""
        raise WeightsError(f"{wrong[0]}{more}.", weights.path)


def few(names: Iterable[str]) -> str:
    """The first four names, and how many there are."""
    names = list(names) or ["none"]
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
