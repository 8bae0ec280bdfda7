"""Known porting mistakes, and what a layer that has one would compute.

Each mistake is a sentence about the candidate ("it rounds the size down"), and is computed by the formulas of
:mod:`caffe_port.verification.references.numpy_formulas` with one thing changed. The diagnosis does not look into the
candidate, so it works for any module.
"""

from __future__ import annotations

# The most likely mistake of a type comes first.
# isort: off
from caffe_port.verification.slips import windows
from caffe_port.verification.slips import products
from caffe_port.verification.slips import normalization
from caffe_port.verification.slips import elementwise
from caffe_port.verification.slips import rearranged
from caffe_port.verification.slips import any_layer

# isort: on
from caffe_port.verification.slips.slip import HYPOTHESES, Guess

__all__ = ["HYPOTHESES", "Guess", "any_layer", "elementwise", "normalization", "products", "rearranged", "windows"]
