"""The deploy view of a training net: without the layers that exist only for labels.

Caffe users write that view by hand, as a second prototxt. A note reports what is left out besides losses and Accuracy;
a layer of an unknown type that the net needs is never left out.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Sequence

from caffe_port.definition.definition import Definition
from caffe_port.definition.fields import refuse
from caffe_port.errors import SpecError
from caffe_port.signatures.plugins import find
from caffe_port.signatures.signature import Trait, compares_labels, has, keeps_blobs
from caffe_port.spec import LayerSpec, NetSpec, Producer

_MEASURES = re.compile(r"Loss|Entropy|Accuracy|Eval|Recall|Precision|MMD|CTC(?!.*Decode)|mAP|IOU|IoU|ScoreDetections")
"""Parts of the names of losses and metrics, if the type is unknown."""

_PREPARES = re.compile(r"Data|Transform|Augment|Label")
"""Parts of the names of layers that prepare images for training, if the type is unknown."""

_SAMPLERS = ("ProposalTargetLayer", "ProposalTarget")
"""Layers that choose among the boxes of their first bottom those to train on. Faster R-CNN and R-FCN (Python code),
MS-CNN and Cascade R-CNN."""


def phase_spec(
    definition: Definition,
    phase: str,
    level: int,
    stages: Sequence[str],
    given: Collection[str],
    keep_loss: bool,
    keep_unknown: bool = False,
) -> NetSpec:
    """A phase of a definition as it will be built: without losses and labels, unless they are kept.

    Args:
        given: blobs whose shape the user gave; they may be inputs even if no layer makes them.
        keep_unknown: keep layers of unknown types.

    Raises:
        SpecError: a layer that stays has a field that changes what it computes and that no code follows.
    """
    spec = definition.spec(phase, level, stages if stages or keep_loss else None, given)
    if keep_loss:
        return refuse(spec)
    return refuse(view(spec, () if keep_unknown else {la.name for la in spec.layers if find(la.param) is None}))


def view(spec: NetSpec, unknown: Collection[str] = ()) -> NetSpec:
    """A net without the layers that exist for labels only, and without the layers that nothing then reads.

    A top of a data layer is a label if no layer with weights is downstream of it, but one is downstream of another top.

    Args:
        unknown: names of the layers that cannot be built. Those that serve labels are left out with what reads them;
            those that prepare data become inputs; the others stay.

    Raises:
        SpecError: nothing is left.
    """
    losses = {layer.name for layer in spec.layers if compares_labels(layer.type)}
    unread = _unread(spec)
    if not losses and not unknown and not unread:
        return spec
    notes: list[str] = []
    layers = list(_without_samplers(spec.layers, unknown, notes))
    layers = list(_data_prepared(layers, spec, unknown, notes))
    spec = dataclasses.replace(spec, layers=tuple(layers), full=spec)
    gone = _downstream(layers, losses)
    if after := sorted(one.name for one in layers if one.name in gone - losses and one.tops):
        notes.append(f"layers that read a loss or Accuracy are left out: {', '.join(after)}")
    labels = _labels(spec, [layer for layer in layers if layer.name not in gone], gone)
    for layer in reversed(layers):
        if layer.name in unknown and layer.name not in gone:
            left = [one for one in layers if one.name not in gone]
            reason = _why_left_out(layer, left, spec, gone, labels, unknown)
            if reason:
                others = _downstream(left, {layer.name}) - {layer.name}
                gone |= {layer.name, *others}
                if not _samples(layer):  # already reported
                    notes.append(_note(layer, reason, others))
    gone |= _compared_only(spec, [layer for layer in layers if layer.name not in gone], gone, labels)
    if not gone and not notes and not unread:
        return spec
    kept = [layer for layer in layers if layer.name not in gone]
    labels = _labels(spec, kept, gone) | unread
    kept = _without_label_branches([_silent(layer, _derived(kept, labels)) for layer in kept], labels)
    dropped = [layer for layer in layers if layer.name in gone]
    compared = {s for layer in dropped for s in layer.producers[1:]} - {
        s for layer in dropped for s in layer.producers[:1]
    }
    targets = frozenset(compared - _made_from(kept))
    deployed = dataclasses.replace(
        spec, layers=tuple(_without_tops(kept, labels)), targets=targets, notes=(*spec.notes, *notes)
    )
    if not deployed.outputs:
        for layer in dropped:
            if layer.name in unknown:
                p = layer.param.python_param
                code = layer.type == "Python"
                how = f'@python_layer("{p.module}", "{p.layer}")' if code else f"class {layer.type}(Layer)"
                what = f"the Python code {_kind(layer)}" if code else "this type"
                raise layer.error(
                    f"nothing stands for {what}, and without it no layers are left",
                    f"Map it with --plugin: a file with {how}; see docs/custom-layers.md.",
                )
        raise SpecError("the net has no layers without the losses; use --keep-loss", spec.path)
    return deployed


# -- layers of unknown types --------------------------------------------------------------------------------------


def _without_samplers(layers: Sequence[LayerSpec], unknown: Collection[str], notes: list[str]) -> Iterator[LayerSpec]:
    """The layers; one that samples boxes for training hands on its first bottom, as the test net does.

    What it says of true boxes, in its other tops, is an optional bottom of some layers, which the test net lacks.
    """
    moved: dict[Producer, Producer] = {}
    gone: set[str] = set()
    for layer in layers:
        producers = tuple(moved.get(s, s) for s in layer.producers)
        signature = find(layer.param)
        if signature is not None and len(producers) > signature.bottoms[0] and producers[-1][0] in gone:
            producers = producers[:-1]
            bottoms = layer.bottoms[:-1]
            layer = dataclasses.replace(
                layer, bottoms=bottoms, producers=producers, param=layer.param.copy(bottom=list(bottoms))
            )
        if layer.name in unknown and _samples(layer) and producers:
            moved[layer.name, 0] = producers[0]
            gone.add(layer.name)
            notes.append(
                f"{layer.where}: layer '{layer.name}' ({_kind(layer)}) samples boxes for training and is left out: "
                f"'{layer.tops[0]}' is '{layer.bottoms[0]}'"
            )
            if len(layer.tops) > 1:
                yield dataclasses.replace(layer, producers=producers)
        else:
            yield dataclasses.replace(layer, producers=producers) if producers != layer.producers else layer


def _samples(layer: LayerSpec) -> bool:
    return (layer.param.python_param.layer if layer.type == "Python" else layer.type) in _SAMPLERS


def _data_prepared(
    layers: Sequence[LayerSpec], spec: NetSpec, unknown: Collection[str], notes: list[str]
) -> Iterator[LayerSpec]:
    """The layers; one of an unknown type that prepares what a data layer reads becomes an input."""
    data = {producer for _, producer in spec.inputs if spec.by_name[producer[0]].type != "Input"}
    by_name = {layer.name: layer for layer in layers}
    read = [producer for layer in layers for producer in layer.producers]
    for layer in layers:
        is_read = any((layer.name, k) in read for k in range(len(layer.tops)))
        if (
            layer.name in unknown
            and is_read
            and layer.producers
            and data.issuperset(layer.producers)
            and (len(layer.producers) > 1 or _PREPARES.search(_kind(layer)))
            and not _MEASURES.search(_kind(layer))
        ):
            notes.append(
                f"{layer.where}: layer '{layer.name}' ({_kind(layer)}) is of an unknown type and prepares data: "
                f"{', '.join(layer.tops)} are inputs"
            )
            data |= {(layer.name, k) for k in range(len(layer.tops))}
            first = by_name[layer.producers[0][0]].param
            param = layer.param.copy(type="OtherData", bottom=None)
            if first.has("transform_param") and not param.has("transform_param"):
                param.set("transform_param", first.transform_param)
            yield dataclasses.replace(layer, type="OtherData", bottoms=(), producers=(), param=param, is_input=True)
        else:
            yield layer


def _why_left_out(
    layer: LayerSpec,
    left: Sequence[LayerSpec],
    spec: NetSpec,
    gone: Collection[str],
    labels: set[Producer],
    unknown: Collection[str],
) -> str:
    """Why the deploy view does without a layer of an unknown type; empty where it does not."""
    downstream = _downstream(left, {layer.name})
    if any(not _is_slight(one.type) and one.name not in unknown for one in left if one.name in downstream):
        return ""
    if layer.param.loss_weight or _MEASURES.search(_kind(layer)):
        return "is a loss or a metric"
    if set(layer.producers) & _derived(left, labels):
        return "reads labels"
    readings = [
        index
        for one in spec.layers
        if one.name in gone
        for index, producer in enumerate(one.producers)
        if producer[0] in downstream
    ]
    if readings and 0 not in readings:
        return "produces targets for losses"
    if layer.type == "Python" and downstream == {layer.name}:
        return "runs Python code after the net"
    if not layer.tops:
        return "makes nothing"
    return ""


def _is_slight(type_: str) -> bool:
    """Whether a type may stand between a layer that serves labels and a loss, and not make it a part of the net."""
    kinds = (Trait.ELEMENTWISE, Trait.REARRANGES, Trait.AGGREGATES, Trait.SINK)
    return not keeps_blobs(type_) and any(has(type_, kind) for kind in kinds)


def _kind(layer: LayerSpec) -> str:
    """The type; of Python code, its class."""
    p = layer.param.python_param
    return f"{p.module}.{p.layer}" if layer.type == "Python" else layer.type


def _note(layer: LayerSpec, reason: str, others: Iterable[str]) -> str:
    too = sorted(others)
    readers = f", with the layers that read it: {', '.join(too)}" if too else ""
    return (
        f"{layer.where}: layer '{layer.name}' ({_kind(layer)}) is of an unknown type, {reason} and is left out{readers}"
    )


# -- labels -------------------------------------------------------------------------------------------------------


def _labels(spec: NetSpec, kept: Sequence[LayerSpec], gone: Collection[str]) -> set[Producer]:
    """The inputs that exist for what is gone."""
    fed = _leading_to_weights(kept)
    fed_inputs = {producer for _, producer in spec.inputs if producer in fed}
    labels = {s for _, s in spec.inputs if fed_inputs and s not in fed and spec.by_name[s[0]].type != "Input"}
    read_by_losses = {s for layer in spec.layers if layer.name in gone for s in layer.producers}
    return labels | {s for _, s in spec.inputs if s in read_by_losses and not any(s in k.producers for k in kept)}


def _unread(spec: NetSpec) -> set[Producer]:
    """The tops of data layers that nobody reads, of a net that reads another."""
    read = {producer for layer in spec.layers for producer in layer.producers}
    data = {producer for _, producer in spec.inputs if spec.by_name[producer[0]].type != "Input"}
    return data - read if data & read else set()


def _compared_only(spec: NetSpec, kept: Sequence[LayerSpec], gone: Collection[str], labels: set[Producer]) -> set[str]:
    """The layers that join labels and what the net made, a mask say, for a loss: nothing else reads them."""
    derived = _derived(kept, labels)
    read_by_gone = {producer[0] for layer in spec.layers if layer.name in gone for producer in layer.producers}
    slight = {layer.name for layer in kept if _is_slight(layer.type)}
    found: set[str] = set()
    for layer in kept:
        downstream = _downstream(kept, {layer.name})
        mixes = not derived.isdisjoint(layer.producers) and not derived.issuperset(layer.producers)
        if mixes and has(layer.type, Trait.ELEMENTWISE) and downstream & read_by_gone and downstream <= slight:
            found |= downstream
    return found


def _downstream(layers: Sequence[LayerSpec], names: Collection[str]) -> set[str]:
    """The layers of ``names``, and those that read what they or these make."""
    found = set(names)
    for layer in layers:
        if any(producer[0] in found for producer in layer.producers):
            found.add(layer.name)
    return found


def _derived(layers: Sequence[LayerSpec], labels: Collection[Producer]) -> set[Producer]:
    """Labels, and the blobs that are made from labels alone."""
    derived = set(labels)
    for layer in layers:
        if layer.producers and all(s in derived for s in layer.producers):
            derived |= {(layer.name, k) for k in range(len(layer.tops))}
    return derived


def _leading_to_weights(layers: Sequence[LayerSpec]) -> set[Producer]:
    """The blobs from which a layer with blobs is reached."""
    found: set[Producer] = set()
    for layer in reversed(layers):
        if _learns(layer) or any((layer.name, k) in found for k in range(len(layer.tops))):
            found.update(layer.producers)
    return found


def _learns(layer: LayerSpec) -> bool:
    """Whether the layer may have blobs; of Python code, what stands for it."""
    signature = find(layer.param)
    return signature is not None and bool(signature.blobs)


def _made_from(layers: Sequence[LayerSpec]) -> set[Producer]:
    """The blobs that layers with blobs made, or that were made from those."""
    found: set[Producer] = set()
    for layer in layers:
        if _learns(layer) or found.intersection(layer.producers):
            found.update((layer.name, k) for k in range(len(layer.tops)))
    return found


def _silent(layer: LayerSpec, labels: set[Producer]) -> LayerSpec:
    """A Silence, or its like, without its labels: it would keep them."""
    if not has(layer.type, Trait.SINK):
        return layer
    kept = [k for k, producer in enumerate(layer.producers) if producer not in labels]
    if not kept:
        return layer
    return dataclasses.replace(
        layer, bottoms=tuple(layer.bottoms[k] for k in kept), producers=tuple(layer.producers[k] for k in kept)
    )


def _without_label_branches(layers: list[LayerSpec], labels: set[Producer]) -> list[LayerSpec]:
    """Drops the layers all of whose bottoms come from labels, unless a layer that is kept reads them."""
    derived = _derived(layers, labels)
    kept: list[LayerSpec] = []
    read: set[Producer] = set()
    for layer in reversed(layers):
        tops = {(layer.name, k) for k in range(len(layer.tops))}
        from_labels = bool(layer.producers) and all(s in derived for s in layer.producers)
        if not from_labels or tops & read:
            kept.append(layer)
            read.update(layer.producers)
    return kept[::-1]


def _without_tops(layers: Sequence[LayerSpec], dropped: set[Producer]) -> Iterator[LayerSpec]:
    """The layers, their producers without those tops in ``dropped`` that nobody reads."""
    dropped = dropped - {s for layer in layers for s in layer.producers}
    moved: dict[Producer, Producer] = {}
    for layer in layers:
        tops = [k for k in range(len(layer.tops)) if (layer.name, k) not in dropped]
        moved |= {(layer.name, k): (layer.name, new) for new, k in enumerate(tops)}
        if tops or not layer.tops:
            yield dataclasses.replace(
                layer, tops=tuple(layer.tops[k] for k in tops), producers=tuple(moved[s] for s in layer.producers)
            )
