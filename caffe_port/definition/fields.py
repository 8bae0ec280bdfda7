"""Judges the fields of a net that no code follows: harmless, for training only, or reason to refuse the net.

A net that passes computes what its file says. A field is followed, or it is listed in
:mod:`caffe_port.formats.unfollowed` with what it does, or it is unknown and may do anything. The last two kinds refuse
the net if the field could change what a layer computes, unless the user asks to go without it.

The parameters of a layer of an unknown type, or of a plugin, are its own business. In a binary file, a number tells
less than a name. A parameter message of a layer is judged as in text. A number of LayerParameter itself is a stray
field that no layer of the type reads (old Caffes skip it, too), unless the layer lacks its own parameters and has a
type of a fork, where forks disagree about numbers: then these are probably the parameters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from caffe_port.errors import SpecError, did_you_mean
from caffe_port.formats.dialects import CAFFES_LAST_NUMBER, told
from caffe_port.formats.message import Message, at, schema
from caffe_port.formats.unfollowed import CHANGES, FEED, HARMLESS, PRECISION, TRAINING, Rule, is_neutral, rule_of
from caffe_port.signatures.plugins import find
from caffe_port.signatures.signature import Holds, Signature, Trait, compares_labels, has, holds
from caffe_port.spec import NetSpec, Unfollowed

_INITIAL = frozenset({"FillerParameter", "ParamSpec"})


def unfollowed(net: Message, path: str) -> Iterator[Unfollowed]:
    """The fields of a net that are set and that no code follows, in the file's order.

    Args:
        net: a NetParameter with V2 layers.
        path: its file.
    """
    yield from _fields(net, "", path, None, None)
    for layer in net.layer:
        signature = find(layer)
        if signature is not None and (signature.tops is not None or signature.has(Trait.SOURCE)):
            yield from _walk(layer, layer.name, path, layer, signature)


def _walk(message: Message, name: str, path: str, layer: Message, signature: Signature) -> Iterator[Unfollowed]:
    yield from _fields(message, name, path, layer, signature)
    owned = _owned(signature)
    for key, value in message.items():
        if message is layer and owned is not None and _is_foreign(key, value, owned):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, Message) and child.schema is not None and key != "blobs":
                yield from _walk(child, name, path, layer, signature)


def _fields(
    message: Message, name: str, path: str, layer: Message | None, signature: Signature | None
) -> Iterator[Unfollowed]:
    assert message.schema is not None
    kind, type_ = message.schema.name, "" if layer is None else layer.type
    where, owned = at(path, message), _owned(signature)
    for field, value in message.items():
        if field == "propagate_down" and message is layer and _goes_everywhere(layer):
            continue
        if kind == "NetParameter" and field.startswith("global_grad_scale") and _cancels(message):
            continue
        rule = None if message is layer and field in (owned or ()) else rule_of(type_, kind, field)
        if rule is None and message is layer and owned is not None and _is_foreign(field, value, owned):
            rule = Rule(HARMLESS, f"layers of type {type_} do not read it")
        if rule is not None and not is_neutral(message.schema.fields[field], value):
            yield Unfollowed(name, type_, field, kind, where, _effect(rule, signature), rule.words, known=True)
    for key in message.unknown:
        rule = rule_of(type_, kind, str(key))
        if rule is None and message is layer and key in (owned or ()):
            continue
        if kind == "NetParameter" and str(key).startswith("global_grad_scale") and _cancels(message):
            continue
        effect, words = (_effect(rule, signature), rule.words) if rule else _unknown(message, key, layer, signature)
        if isinstance(key, int) and (users := told(kind, key)):
            words += f" ({key} is {users})"
        yield Unfollowed(name, type_, str(key), kind, where, effect, words, known=False)


def _goes_everywhere(layer: Message) -> bool:
    """Whether propagate_down stops no gradient but those of labels and indices, which have none."""
    labels = compares_labels(layer.type)
    return all(
        flag or (labels and index > 0) or holds(layer.type, index) in (Holds.LABELS, Holds.FLAGS, Holds.INDICES)
        for index, flag in enumerate(layer.propagate_down)
    )


_SCALED = ("SoftmaxWithLoss", "SigmoidCrossEntropyLoss")


def _cancels(net: Message) -> bool:
    """Whether NVIDIA's factor of gradients changes none: all losses multiply by it, and the solver divides by it.

    Source: softmax_loss_layer.cpp, sigmoid_cross_entropy_loss_layer.cpp and Net::ReduceAndUpdate of NVIDIA/caffe.
    """
    losses = [layer for layer in net.layer if has(layer.type, Trait.LOSS) or any(layer.loss_weight)]
    return all(layer.type in _SCALED for layer in losses)


def _owned(signature: Signature | None) -> tuple[str, ...] | None:
    """The messages that a layer's type reads; None where any may be: a data layer's, that forks name as they like."""
    if signature is None or signature.has(Trait.SOURCE):
        return None
    return (*signature.messages, *signature.also)


_OF_EVERY_LAYER = ("transform_param", "loss_param")


def _is_foreign(name: str, value: object, owned: Collection[str]) -> bool:
    """Whether it is a message with the parameters of another type."""
    return isinstance(value, Message) and name not in owned and name not in _OF_EVERY_LAYER


def _effect(rule: Rule, signature: Signature | None) -> str:
    """What a field of a data layer changes is the data."""
    is_source = signature is not None and signature.has(Trait.SOURCE)
    return FEED if rule.effect == CHANGES and is_source else rule.effect


def _unknown(message: Message, key: str | int, layer: Message | None, signature: Signature | None) -> tuple[str, str]:
    """The effect of a field that no table has, and words for it."""
    assert message.schema is not None
    kind = message.schema.name
    if kind in _INITIAL:
        return TRAINING, "may change how the layer is initialized or trained"
    if isinstance(key, int) and layer is None:
        return HARMLESS, "no program that caffe-port knows gives it a meaning"
    if isinstance(key, int) and message is layer:
        assert signature is not None
        if _lacks_its_parameters(layer, signature):
            own = signature.messages[-1]
            return CHANGES, f"may hold the parameters of the layer, {own}, under the number of another fork"
        return HARMLESS, f"layers of type {layer.type} have no such parameters"
    if signature is not None and signature.has(Trait.SOURCE):
        return FEED, "may change the data"
    return CHANGES, "may change what the layer computes" if layer is not None else "may change what the net computes"


def _lacks_its_parameters(layer: Message, signature: Signature) -> bool:
    """Whether a layer has none of the messages of its type, all of which are a fork's."""
    fields = schema("LayerParameter").fields
    return bool(signature.messages) and not any(
        layer.has(name) or (name in fields and fields[name].number <= CAFFES_LAST_NUMBER) for name in signature.messages
    )


# -- what follows from it -------------------------------------------------------------------------------------------


def notes(found: Collection[Unfollowed]) -> Iterator[str]:
    """A note on each field that does not refuse the net; equal ones of several layers are told once. Fields of the
    schema that change no number, such as the kind of a database, need none.
    """
    told: dict[tuple[str, str, str], list[Unfollowed]] = {}
    for one in found:
        if one.effect != CHANGES and not (one.effect == HARMLESS and one.known):
            told.setdefault((one.field, one.message, one.words), []).append(one)
    for (field, message, words), places in told.items():
        first, more = places[0], len(places) - 1
        others = f" (and in {more} more)" if more else ""
        inside = f"layer '{first.layer}'{others}: " if first.layer else ""
        unknown = "" if first.known else "unknown "
        end = {
            HARMLESS: f"changes no number: {words}",
            TRAINING: f"is not followed: {words}; a net with its weights computes the same",
            FEED: f"is not followed: {words}; the input must be prepared accordingly",
            PRECISION: f"is not followed: {words}; caffe-port computes in float32",
        }[first.effect]
        yield f"{first.where}: {inside}{unknown}field '{field}' of {message} {end}"


def read_by_data(spec: NetSpec) -> set[str]:
    """The notes on fields that the code that reads the data follows, or refuses itself."""
    messages = ("TransformationParameter", "ResizeParameter")
    return set(notes([one for one in spec.unfollowed if one.effect == FEED and one.known and one.message in messages]))


def refuse(spec: NetSpec, training: bool = False) -> NetSpec:
    """The net, if no field of its layers changes what they compute without being followed.

    Args:
        spec: the net; the fields of layers that it was left without do not count.
        training: what only training looks at counts, too, and unknown fields of data layers. Those of the schema are
            left to what reads the data.

    Raises:
        SpecError: names the first such field, with its line and what it does, and how many there are.
    """
    found = _refusing(spec, training)
    if found:
        raise refusal(found)
    return spec


def refusals(spec: NetSpec) -> list[str]:
    """What :func:`refuse` would say; empty if nothing."""
    found = _refusing(spec, training=False)
    return [str(refusal(found))] if found else []


def _refusing(spec: NetSpec, training: bool) -> list[Unfollowed]:
    names = {layer.name for layer in spec.layers} | {""}
    return [one for one in spec.unfollowed if one.layer in names and _refuses(one, training)]


def _refuses(field: Unfollowed, training: bool) -> bool:
    counts = field.effect == TRAINING or (field.effect == FEED and not field.known)
    return field.effect == CHANGES or (training and counts)


def not_followed(spec: NetSpec) -> tuple[str, ...]:
    """Names of the fields without which a net of these layers is all that can be verified."""
    names = {layer.name for layer in spec.layers} | {""}
    others = [one.field for one in spec.unfollowed if one.effect in (FEED, PRECISION) and one.layer in names]
    return tuple(dict.fromkeys((*spec.ignored, *others)))


def refusal(found: Collection[Unfollowed]) -> SpecError:
    """The error for fields that change what the net computes."""
    one, fields = next(iter(found)), dict.fromkeys(one.field for one in found)
    inside = f"layer '{one.layer}' ({one.type}): " if one.layer else ""
    what = f"is not followed: {one.words}" if one.known or not one.words.startswith("may ") else "is unknown"
    what = f"{what} and {one.words}" if what == "is unknown" else what
    more = f"; so are {len(found) - 1} more fields" if len(found) > 2 else "; so is one more field" * (len(found) == 2)
    options = " ".join(f"--ignore-field {name}" for name in list(fields)[:4])
    return SpecError(
        f"{inside}field '{one.field}' of {one.message} {what}{more}",
        one.where,
        ["Define a custom layer type for it, see --plugin.", f"To go without, if it changes nothing here: {options}"],
    )


def without(net: Message, path: str, names: Collection[str], everywhere: bool = True) -> tuple[Message, list[str]]:
    """The net without the fields of these names, wherever they are set and not followed; and the names that were there.

    Args:
        net, path: as for :func:`unfollowed`.
        names: of the fields.
        everywhere: each of them must be there.

    Raises:
        SpecError: no such field is there.
    """
    found = list(unfollowed(net, path))
    fields = dict.fromkeys(one.field for one in found)
    for name in names:
        if everywhere and name not in fields:
            some = f"; those there are: {', '.join(fields)}" if fields else ""
            raise SpecError(
                f"has no field '{name}' that could be ignored: only fields that are not followed can be{some}."
                f"{did_you_mean(name, fields)}",
                path,
            )
    gone = {(one.message, one.field) for one in found if one.field in names}
    return _stripped(net, gone), [name for name in names if name in fields]


def _stripped(message: Message, gone: Collection[tuple[str, str]]) -> Message:
    other = message.copy()
    if message.schema is None:
        return other
    kind = message.schema.name
    for name in list(other.unknown):
        if (kind, str(name)) in gone:
            del other.unknown[name]
    for name, value in message.items():
        if (kind, name) in gone and message.schema is not None:
            other.set(name, None)
        elif isinstance(value, Message):
            other.set(name, _stripped(value, gone))
        elif isinstance(value, list) and value and isinstance(value[0], Message) and name != "blobs":
            other.set(name, [_stripped(one, gone) for one in value])
    return other
