"""Sequences of text recognition: CTC decoding, and reversing sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from caffe_port.formats.message import Message
from caffe_port.layers.layer import Layer
from caffe_port.typing import Shape


class CTCGreedyDecoder(Layer):
    """The best class of every step, without repetitions and blanks, as CTC reads them.

    Takes scores (T, N, C) and cont (T, N), which is 0 where a sequence begins: it ends before the next 0. Gives the
    classes (T, N, 1, 1), then -1; as a second top minus the sum of the best scores (N, 1, 1, 1). ``blank_index`` is the
    last class unless it says otherwise; ``ctc_merge_repeated: false`` keeps repetitions.

    Without cont, all steps count, the top is (N, T, 1, 1), and ``blank_index`` is 0 unless it says otherwise.

    Not supported: a third bottom, the true sequences, for accuracy.
    Reference: ChWick/caffe ctc_decoder_layer.cpp; senlinuc/caffe_ocr's without cont
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        with_scores, p = len(p.top) > 1, p.ctc_decoder_param
        blank = p.blank_index if p.has("blank_index") or len(bottoms) > 1 else 0
        blank = blank if blank >= 0 else math.prod(bottoms[0][2:]) - 1
        return {"blank": blank, "merge": p.ctc_merge_repeated} | ({"with_scores": True} if with_scores else {})

    def __init__(self, blank: int, merge: bool = True, with_scores: bool = False) -> None:
        super().__init__()
        self.blank, self.merge, self.with_scores = blank, merge, with_scores

    def forward(self, x: Tensor, cont: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        best, index = x.flatten(2).max(2)
        goes_on = torch.ones_like(index) if cont is None else cont.reshape(index.shape)
        ended = (goes_on[1:] == 0).long().cumsum(0)
        inside = torch.cat((torch.ones_like(index[:1]), (ended == 0).long()))
        keep = (index != self.blank) & (inside > 0)
        if self.merge:
            keep = keep & torch.cat((torch.ones_like(keep[:1]), index[1:] != index[:-1]))
        place = torch.where(keep, keep.long().cumsum(0), 0)
        top = x.new_full((x.shape[0] + 1, x.shape[1]), -1).scatter(0, place, index.to(x.dtype))[1:]
        top = (top.T if cont is None else top)[..., None, None]
        return (top, -(best * inside).sum(0).reshape(-1, 1, 1, 1)) if self.with_scores else top


class ReverseTime(Layer):
    """Every sequence reversed: x (T, N, ...), and the lengths (N) as the second bottom.

    What follows the end of a sequence stays where it is; with ``copy_remaining: false`` it is 0.

    Differs from PyTorch: torch.flip turns all T steps.
    Reference: ChWick/caffe reverse_time_layer.cpp
    """

    @classmethod
    def from_caffe(cls, p: Message, bottoms: Sequence[Shape]) -> dict[str, Any]:
        return {} if p.copy_remaining else {"copy_remaining": False}

    def __init__(self, copy_remaining: bool = True) -> None:
        super().__init__()
        self.copy_remaining = copy_remaining

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        step = torch.arange(x.shape[0], device=x.device)[:, None]
        length = length.reshape(-1).long()
        source = torch.where(step < length, length - 1 - step, step)
        y = x.gather(0, source.reshape(*source.shape, *[1] * (x.dim() - 2)).expand_as(x))
        if self.copy_remaining:
            return y
        return y * (step < length).reshape(*source.shape, *[1] * (x.dim() - 2))
