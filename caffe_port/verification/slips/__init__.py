"""Known porting mistakes, and what a layer that has one would compute."""

from __future__ import annotations

# The most likely mistake of a type comes first.
# isort: off
from caffe_port.verification.slips import windows
from caffe_port.verification.slips import products
from caffe_port.verification.slips import normalization
from caffe_port.verification.slips import elementwise
from caffe_port.verification.slips import rearranged
from caffe_port.verification.slips import regions
from caffe_port.verification.slips import any_layer

# isort: on
from caffe_port.verification.slips.slip import HYPOTHESES, Guess

__all__ = [
    "HYPOTHESES",
    "Guess",
    "any_layer",
    "elementwise",
    "normalization",
    "products",
    "rearranged",
    "regions",
    "windows",
]
