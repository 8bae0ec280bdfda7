"""The records of text recognition. Source: src/caffe/layers of ChWick/caffe."""

from __future__ import annotations

import math
from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.signature import Holds, Trait, declare
from caffe_port.typing import Shape


def _ctc_decoder(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    x = bottoms[0]
    if len(bottoms) == 1:
        if len(x) < 3 or set(x[3:]) - {1} or len(layer.top) > 1:
            raise SpecError(f"expected scores (T, N, C) and one top, got {x} and {len(layer.top)} tops")
        return [(x[1], x[0], 1, 1)]
    cont = bottoms[1]
    if len(x) < 3 or math.prod(cont) != x[0] * x[1]:
        raise SpecError(f"expected scores (T, N, C) and cont (T, N), got {x} and {cont}")
    return [(*x[:2], 1, 1), (x[1], 1, 1, 1)][: max(1, len(layer.top))]


def _reverse_time(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:  # noqa: ARG001
    x, length = bottoms
    if len(x) < 2 or math.prod(length) != x[1]:
        raise SpecError(f"expected sequences (T, N, ...) and N lengths, got {x} and {length}")
    return [x]


declare(
    "CTCGreedyDecoder",
    _ctc_decoder,
    message="ctc_decoder_param",
    bottoms=(1, 2),
    holds=(Holds.NUMBERS, Holds.CONTINUES),
    traits=Trait.WHOLE_LAYER,
)
declare("ReverseTime", _reverse_time, message="reverse_time_param", bottoms=2)
