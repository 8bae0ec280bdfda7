"""Blobs that mean one thing in one fork and another in the next, and that no field tells.

The schema has one name for each meaning. :func:`translate` is where a definition is put into these names, by a rule:

1. The user decides: :func:`~caffe_port.formats.dialects.assume`, ``--dialect`` on the command line.
2. Else a net that uses what only one fork has (:data:`MARKS`, a number in its weights) is that fork's.
3. Else it has the meaning that most forks share, and a note says so.

The fourth blob of a BN is the running variance; in brocolli-caffe the running inverse standard deviation. A ROIAlign
with roi_pooling_param gives the mean of each bin; in MS-CNN's and Cascade R-CNN's Caffe, which other layers tell, the
values at the corners of the bins. A Warp takes a flow, in LiteFlowNet's Caffe places. What a binary's numbers mean is
the business of :mod:`caffe_port.formats.recognition`.

Sources: bn_layer.cpp of brocolli-caffe 9.0.2 and Cysu/caffe; roi_align_layer.cu of zhaoweicai/cascade-rcnn;
warp_layer.cu of NVlabs/PWC-Net and twhui/LiteFlowNet.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Final

from caffe_port.formats.dialects import Dialect, assumed, dialects, find
from caffe_port.formats.message import Message
from caffe_port.formats.recognition import Recognition
from caffe_port.formats.unstated import SETTLED, complete
from caffe_port.terminal import count

MARKS: Final[dict[str, Callable[[Message], bool]]] = {
    **dict.fromkeys(("BatchNormKyle", "BilinearInterpolate", "MaxUnPool", "PixelShuffle", "Unsqueeze"), lambda _: True),
    "HardSigmoid": lambda layer: layer.has("hardsigmoid_param"),
    "Proposal": lambda layer: layer.has("proposal_in_pixels_param"),
    "Pad": lambda layer: any(layer.pad_param.has(f"pad_{side}") for side in "udlr"),
    "ReLU6": lambda layer: layer.relu6_param.has("threshold"),
    "Upsample": lambda layer: layer.upsample_param.has("dims_num"),
    "BN": lambda layer: layer.bn_param.inverse_std,
}
"""Layer type -> whether a LayerParameter is one that only brocolli-caffe has."""

#: Message type -> fields of the schema that say which fork's meaning holds, and that no program of Caffe's reads.
NOT_IN_FILES: Final[dict[str, frozenset[str]]] = {
    "BNParameter": frozenset({"inverse_std"}),
    "EmbedParameter": frozenset({"last_axis"}),
    "ProposalParameter": frozenset({"scale_in_pixels"}),
    "ROIPoolingParameter": frozenset({"corners"}),
    "WarpParameter": frozenset({"places"}),
}


def recognized(layers: Sequence[Message], whose: Recognition | None = None) -> tuple[str, str]:
    """Whose meaning holds, ``caffe``, ``brocolli`` or a chosen ``textboxes``, and the reason; empty if nothing tells.

    Args:
        layers: LayerParameters of a definition.
        whose: the dialect of its weights.
    """
    if (chosen := assumed()) is not None:
        return chosen if chosen == "textboxes" else _family(chosen), f"--dialect {chosen}"
    for layer in layers:
        if layer.type in MARKS and MARKS[layer.type](layer):
            return "brocolli", f"layer '{layer.name}' ({layer.type}) is one of brocolli-caffe's"
    if whose is not None and whose.dialect.label != "caffe":
        alike = {whose.dialect, *whose.like, *(d for one in (*whose.open, *whose.defaults) for d in one.dialects)}
        families = {_family(d.label) for d in alike}
        if len(families) == 1:
            return families.pop(), f"the numbers in the weights are those of {whose.dialect.label}"
    return "", ""


def _family(dialect: str) -> str:
    return "brocolli" if dialect == "brocolli" else "caffe"


def translate(
    net: Message, also: Sequence[Message] = (), whose: Recognition | None = None, era: str = "V2"
) -> tuple[Message, tuple[str, ...]]:
    """A NetParameter in the schema's names, and notes about what was assumed.

    Args:
        net: with ``layer`` entries only.
        also: layers of a further definition of the same net, whose fork tells this one's.
        whose: the dialect of its weights.
        era: of the file, if it is one of weights: V2, or V1 for those before 2015.
    """
    family, reason = recognized([*net.layer, *also], whose)
    notes, layers = list[str](), list(net.layer)
    named = assumed() or ("brocolli" if family == "brocolli" else None)
    known = find(named) if named else None if whose is None else whose.dialect
    if whose is None or not whose.completed or also:
        known_v2 = whose is not None and era == "V2"
        others = [] if named or known_v2 else [d for d in _writers(era) if whose is None or d in whose.like]
        layers, unsaid = complete(layers, lambda *_: known, lambda: others, forks_only=era == "V2")
        notes += [f"{one}. --dialect NAME decides" for one in unsaid if not one.chosen.startswith(SETTLED)]
    layers = _inverse_std(layers, family, reason, notes)
    layers = _corners(layers, [*layers, *also], notes)
    layers = _places(layers, [*layers, *also], notes)
    same = all(new is old for new, old in zip(layers, net.layer, strict=True))
    return net if same else net.copy(layer=layers), tuple(notes)


@functools.cache
def _writers(era: str) -> list[Dialect]:
    return [dialect for dialect in dialects() if dialect.short and not dialect.reads and dialect.era == era]


def for_caffe(net: Message) -> Message:
    """A NetParameter with ``layer`` entries, as Caffe reads it: without the fields that only say a fork's meaning."""
    layers = []
    for layer in net.layer:
        for name, value in layer.items():
            if isinstance(value, Message) and value.schema is not None and value.schema.name in NOT_IN_FILES:
                layer = layer.copy(**{name: value.copy(**dict.fromkeys(NOT_IN_FILES[value.schema.name]))})
        layers.append(layer)
    return net.copy(layer=layers)


# -- BN -----------------------------------------------------------------------------------------------------------


def _inverse_std(layers: list[Message], dialect: str, reason: str, notes: list[str]) -> list[Message]:
    found = [layer.type == "BN" and _has_running_std(layer.bn_param) for layer in layers]
    if not any(found):
        return layers
    many = count(sum(found), "BN layer")
    inverse, other = "the inverse standard deviation", "the variance"
    if dialect == "brocolli":
        notes.append(f"{many}: blob 3 is read as {inverse}: {reason}")
    elif dialect:
        notes.append(f"{many}: blob 3 is read as {other}: {reason}")
    else:
        told = (
            f"as most forks have it; in brocolli-caffe, and in Cysu/caffe without cuDNN, it is {inverse} "
            "(--dialect brocolli)"
        )
        notes.append(f"{many}: blob 3 is read as {other}, {told}")
    set_to = True if dialect == "brocolli" else None
    return [
        layer.copy(bn_param=layer.bn_param.copy(inverse_std=set_to)) if one else layer
        for layer, one in zip(layers, found, strict=True)
    ]


def _has_running_std(p: Message) -> bool:
    """Whether a BNParameter may be of the form that brocolli-caffe's copy has: yjxiong's."""
    others = ("scale_filler", "shift_filler", "var_eps", "moving_average", "decay", "bn_mode")
    return not any(p.has(name) for name in others)


# -- ROIAlign -----------------------------------------------------------------------------------------------------

_CASCADE: Final = ("BoxOutput", "BoxGroupOutput", "DecodeBBox", "ProposalTarget", "FrcnnOutput", "ScaleRoute")
"""Types of MS-CNN's and Cascade R-CNN's Caffe alone."""


def _corners(layers: list[Message], known: Sequence[Message], notes: list[str]) -> list[Message]:
    found = [layer.type == "ROIAlign" and not layer.has("roi_align_param") for layer in layers]
    mark = next((layer for layer in known if layer.type in _CASCADE), None)
    if mark is None or not any(found):
        return layers
    notes.append(
        f"{count(sum(found), 'ROIAlign layer')}: values at the corners of the bins, as in MS-CNN and Cascade R-CNN; "
        f"layer '{mark.name}' ({mark.type}) is one of theirs"
    )
    return [
        layer.copy(roi_pooling_param=layer.roi_pooling_param.copy(corners=True)) if one else layer
        for layer, one in zip(layers, found, strict=True)
    ]


# -- Warp ---------------------------------------------------------------------------------------------------------


def _places(layers: list[Message], known: Sequence[Message], notes: list[str]) -> list[Message]:
    """LiteFlowNet's Warp takes places, which its net makes of a Grid and a flow; ``--dialect liteflownet`` decides."""
    found = [layer.type == "Warp" and not layer.has("warp_param") for layer in layers]
    mark = next((f"layer '{layer.name}' (Grid) is one of its own" for layer in known if layer.type == "Grid"), None)
    if (chosen := assumed()) is not None:
        mark = f"--dialect {chosen}" if chosen == "liteflownet" else None
    if mark is None or not any(found):
        return layers
    notes.append(f"{count(sum(found), 'Warp layer')}: the second bottom is read as places, as in LiteFlowNet: {mark}")
    places = Message("WarpParameter", places=True)
    return [layer.copy(warp_param=places) if one else layer for layer, one in zip(layers, found, strict=True)]
