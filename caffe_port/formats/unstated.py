"""Values that a file does not state, where dialects take different ones for granted.

proto/caffe.proto has one default for each field. A layer that does not state a field gets its dialect's, where that is
another; where the dialect is open, it is reported what the others would give.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

from caffe_port.formats import dialects as table
from caffe_port.formats.dialects import TELLING, Dialect, Reading, as_text, close
from caffe_port.formats.message import Message, schema

_OF_NO_NUMBER = frozenset({"engine", "prefetch", "batch_size", "precision", "rounding_scheme", "stride_h", "stride_w"})
_SHOWN_BY_SIZES = frozenset({"use_polygon"})
"""A wrong reading of these does not fit the layer's bottoms: nothing is open, and nothing is to be told."""
_FEED = ("DataParameter", "LossParameter", "QuantizationParameter", "MeanfieldParameter")
SETTLED = "prior_box_param.clip"
"""What the record of its type writes down and tells of, for Caffe and brocolli-caffe: Signature.settles."""

_WITHOUT_MESSAGE = ("dropout_param", "batch_norm_param", "scalar_param", "reverse_time_param", "upsample_param")
"""Parameters of layers that work without them, so that the defaults hold where the message itself is missing."""


def complete(
    layers: Sequence[Message],
    whose: Callable[[Message, str], Dialect | None],
    others: Callable[[], Collection[Dialect]],
    forks_only: bool = False,
) -> tuple[list[Message], tuple[Reading, ...]]:
    """The layers with what their dialect takes for granted and proto/caffe.proto does not; and what others take.

    Args:
        layers: LayerParameters.
        whose: (layer, field of LayerParameter) -> the dialect; None: the defaults of proto/caffe.proto.
        others: makes the dialects that may have been meant.
        forks_only: report only parameters that Caffe itself does not have.
    """
    result: list[Message] = []
    names: dict[tuple[str, str, str, str], list[str]] = {}
    who: dict[tuple[str, str, str, str], list[Dialect]] = {}
    for layer in layers:
        for name in table.owned(layer.type) or ():
            field = None if layer.schema is None else layer.schema.fields.get(name)
            if field is None or field.message_name is None or not (layer.has(name) or name in _WITHOUT_MESSAGE):
                continue
            if not isinstance(layer._fields.get(name, layer), Message):
                continue
            mine = whose(layer, name)
            if forks_only and mine is None and name in table.caffes():
                continue
            for inner, values in _defaults(name, field.message_name).items():
                message = getattr(layer, name)
                if message.has(inner) or _has_other_form(message):
                    continue
                shown = field.message.fields[inner].default
                own = values.get(mine.index) if mine is not None else None
                told = TELLING.get(field.message_name, ("", ""))
                is_mark = mine is not None and layer.has(name) and told == (inner, mine.short)
                if mine is not None and mine.short == "brocolli" and f"{name}.{inner}" == SETTLED:
                    own = None
                if own is not None and (not close(own, shown) or is_mark):
                    layer = layer.copy(**{name: message.copy(**{inner: own})})
                    shown = own
                if (forks_only and name in table.caffes()) or inner in _SHOWN_BY_SIZES:
                    continue
                for other in others():
                    theirs = values.get(other.index)
                    if theirs is not None and not close(theirs, shown) and told[0] != inner:
                        key = (layer.type, f"{name}.{inner}", as_text(shown), as_text(theirs))
                        if layer.name not in names.setdefault(key, []):
                            names[key].append(layer.name)
                        if other not in who.setdefault(key, []):
                            who[key].append(other)
        result.append(layer)
    found = tuple(
        Reading(tuple(of), key[0], 0, f"{key[1]} is not stated, {key[2]} is assumed", key[3], tuple(who[key]))
        for key, of in names.items()
    )
    return result, found


def _has_other_form(message: Message) -> bool:
    """Whether an UpsampleParameter gives the size in another way than by ``scale``."""
    assert message.schema is not None
    other = ("upsample_h", "upsample_w", "height", "width")
    return message.schema.name == "UpsampleParameter" and any(
        name in message.schema.fields and message.has(name) for name in other
    )


@functools.cache
def _defaults(name: str, ours: str) -> dict[str, dict[int, Any]]:
    """Field of one of our messages -> dialect -> its default there, where any is not ours."""
    if ours.endswith(_FEED):
        return {}
    found: dict[str, dict[int, Any]] = {}
    own = schema(ours)
    for dialect in table.dialects():
        for fact in dialect.layout("LayerParameter" if dialect.era == "V2" else "V1LayerParameter").values():
            if fact.name != name or fact.message is None:
                continue
            for inner in dialect.layout(fact.message).values():
                field = own.fields.get(inner.name)
                if field is None or field.name in _OF_NO_NUMBER:
                    continue
                if (value := table.default_of(inner, field)) is not None:
                    found.setdefault(field.name, {})[dialect.index] = value
    mark = TELLING.get(ours, ("", ""))[0]
    return {
        inner: values
        for inner, values in found.items()
        if inner == mark or any(not close(value, own.fields[inner].default) for value in values.values())
    }
