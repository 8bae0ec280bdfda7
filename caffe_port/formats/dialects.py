"""Fields that mean one thing in one fork and another in the next, where the field itself does not tell.

The schema has one name for each meaning. :func:`translate` is where a definition is put into these names, by a rule:

1. The user decides: :func:`assume`, ``--dialect`` on the command line.
2. Else a net that uses what only one fork has (:data:`MARKS`) is that fork's.
3. Else a rule of the field's own, below; what it leaves open has the meaning that most forks share, and a note says so.

========================  ===================================  ===================================================
field                     ``caffe``: most forks                ``brocolli``: the fork of PyPI's brocolli-caffe 9.0.2
========================  ===================================  ===================================================
BN, blob 3                the running variance                 the running inverse standard deviation
PoolingParameter 13       ``round_mode``: CEIL 0, FLOOR 1      ``ceil_mode``: false 0 (down), true 1 (up)
PriorBox without clip     false                                true
DetectionOutput           suppresses what overlaps by 0.3      suppresses nothing
without nms_param
Proposal, scale           multiples of base_size               pixels
========================  ===================================  ===================================================

The last three are settled when the net of a phase is made, by :attr:`Signature.settles
<caffe_port.signatures.signature.Signature.settles>` of their types.

A field of text has a name, so that PoolingParameter 13 concerns binaries only. There, 0 states the default of
``round_mode``, which no net needs to: a file with a 0 is read as ``brocolli``. So is one without a name and phases
whose convolutions and products state every default, as PyPI's brocolli writes them.

Sources: bn_layer.cpp and caffe.proto of brocolli-caffe 9.0.2; pooling_layer.cpp of BVLC/caffe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from caffe_port.formats.fork_fields import NOT_IN_FILES
from caffe_port.formats.message import Message
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

_assumed: list[str] = []


def assume(dialect: str | None) -> None:
    """Decides the dialect of every net that this process reads from now on; None: each net tells."""
    _assumed[:] = [dialect] if dialect is not None else []


def recognized(layers: Sequence[Message]) -> tuple[str, str]:
    """The dialect of a net and the reason, or empty strings."""
    if _assumed:
        return _assumed[0], f"--dialect {_assumed[0]}"
    for layer in layers:
        if layer.type in MARKS and MARKS[layer.type](layer):
            return "brocolli", f"layer '{layer.name}' ({layer.type}) is one of brocolli-caffe's"
    return "", ""


def translate(net: Message, binary: bool, also: Sequence[Message] = ()) -> tuple[Message, tuple[str, ...]]:
    """A NetParameter in the schema's names, and notes about what was assumed.

    Args:
        net: with ``layer`` entries only.
        binary: whether it was read from a binary, which names no field.
        also: layers of a further definition of the same net, whose fork tells this one's.
    """
    dialect, reason = recognized([*net.layer, *also])
    layers, notes = list(net.layer), list[str]()
    if binary:
        layers = _rounding(net, layers, dialect, reason, notes)
    layers = _inverse_std(layers, dialect, reason, notes)
    return net.copy(layer=layers), tuple(notes)


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
        told = f"as most forks have it; in brocolli-caffe it is {inverse} (--dialect brocolli)"
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


# -- PoolingParameter 13 ------------------------------------------------------------------------------------------


def _rounding(net: Message, layers: list[Message], dialect: str, reason: str, notes: list[str]) -> list[Message]:
    """``round_mode`` of a binary as ``ceil_mode``, where it is that."""
    told = {layer.pooling_param.round_mode for layer in layers if layer.pooling_param.has("round_mode")}
    if not told:
        return layers
    if not dialect:
        if "CEIL" in told:
            dialect, reason = "brocolli", "a layer states 0, which as round_mode would say nothing"
        elif _states_defaults(net):
            dialect, reason = "brocolli", "the file states every default, as PyPI's brocolli writes it"
    if dialect != "brocolli":
        notes.append(
            "field 13 of PoolingParameter is read as round_mode (1 rounds down)"
            + (f": {reason}" if reason else "; in some forks it is ceil_mode, and 1 rounds up (--dialect brocolli)")
        )
        return layers
    notes.append(f"field 13 of PoolingParameter is read as ceil_mode (0 rounds down): {reason}")
    result = []
    for layer in layers:
        p = layer.pooling_param
        if p.has("round_mode"):
            layer = layer.copy(pooling_param=p.copy(round_mode=None, ceil_mode=p.round_mode == "FLOOR"))
        result.append(layer)
    return result


def _states_defaults(net: Message) -> bool:
    """Whether a net is written as PyPI's brocolli writes it: no names, no phases, nothing left to a default."""
    windows = [layer.convolution_param for layer in net.layer if layer.has("convolution_param")]
    products = [layer.inner_product_param for layer in net.layer if layer.has("inner_product_param")]
    pools = [layer.pooling_param for layer in net.layer if layer.has("pooling_param")]
    return (
        not net.has("name")
        and not any(layer.has("phase") for layer in net.layer)
        and bool(windows or products)
        and all(p.has("bias_term") for p in (*windows, *products))
        and all(p.has("group") for p in windows)
        and all(p.has("pool") for p in pools)
    )
