"""What is said of a net."""

from __future__ import annotations

import re
from dataclasses import dataclass

AGREED, REFUSED = "agree", "both refuse"
NOT_COMPARED = ("unsteady", "not finite", "random", "Caffe fell")
"""Verdicts that say nothing: rounding decides, NaN or infinity, random numbers, Caffe's process died by a signal."""


@dataclass(frozen=True)
class Verdict:
    """What became of a net.

    Attributes:
        word: ``agree``, ``both refuse``, one of NOT_COMPARED; or what is a finding: ``only Caffe refuses``,
            ``only caffe-port refuses``, ``traceback``, ``differs``.
        what: what differs (``top``, ``gradient of an input``, ...), or the words of the refusal.
        at: the layer.
        detail: figures or the other side's words, for a reader.
        gradients: they were compared too.
    """

    word: str
    what: str = ""
    at: str = ""
    detail: str = ""
    gradients: bool = False

    @property
    def finding(self) -> bool:
        return self.word not in (AGREED, REFUSED, *NOT_COMPARED)

    @property
    def key(self) -> tuple[str, str]:
        """Equal for verdicts of one cause, as far as the verdict tells."""
        return self.word, plain(self.what)


def plain(words: str) -> str:
    """Words without what varies: numbers, names of layers and blobs, shapes."""
    words = re.sub(r"0x[0-9a-f]+|'[^']*'|\([-\d., ]*\)", "_", words)
    return re.sub(r"-?\d+(\.\d+)?(e[-+]?\d+)?|\b[a-z]\d+\b", "#", words)[:120]
