"""The records of CRF-RNN's and DeepLab's mean fields."""

from __future__ import annotations

import math
from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.checks import expect_axes
from caffe_port.signatures.signature import Holds, Trait, declare
from caffe_port.typing import Shape


def _meanfield(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p, (unary, first, image) = layer.multi_stage_meanfield_param, bottoms
    if len(unary) != 4 or first != unary or image != (unary[0], 3, *unary[2:]):
        raise SpecError(
            f"expected scores (N, C, H, W) twice and an image (N, 3, H, W), got {', '.join(map(str, bottoms))}"
        )
    if p.num_iterations < 2:
        raise SpecError(f"num_iterations must be greater than 1, got {p.num_iterations}")
    if min(p.theta_alpha, p.theta_beta, p.theta_gamma) <= 0:
        raise SpecError("theta_alpha, theta_beta and theta_gamma must be positive")
    return [unary]


def _meanfield_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:  # noqa: ARG001
    return dict.fromkeys(("spatial", "bilateral", "compatibility"), (1, 1, bottoms[0][1], bottoms[0][1]))


def _dense_crf(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p, (scores, sizes, *image) = layer.dense_crf_param, bottoms
    expect_axes(scores, 4)
    if sizes[:1] != scores[:1] or math.prod(sizes[1:]) < 2:
        raise SpecError(f"expected height and width of {scores[0]} images as the second bottom, got {sizes}")
    if image and image[0] != (scores[0], 3, *scores[2:]):
        raise SpecError(f"expected images {(scores[0], 3, *scores[2:])} as the third bottom, got {image[0]}")
    if len(p.pos_w) != len(p.pos_xy_std):
        raise SpecError("pos_w and pos_xy_std must have the same length")
    if not len(p.bi_w) == len(p.bi_xy_std) == len(p.bi_rgb_std):
        raise SpecError("bi_w, bi_xy_std and bi_rgb_std must have the same length")
    if image and not p.bi_w:
        raise SpecError("images as the third bottom require bi_w, bi_xy_std and bi_rgb_std")
    if not all((*p.pos_xy_std, *p.bi_xy_std, *p.bi_rgb_std)):
        raise SpecError("pos_xy_std, bi_xy_std and bi_rgb_std must not be 0")
    return [scores]


declare(
    "DenseCRF",
    _dense_crf,
    message="dense_crf_param",
    bottoms=(2, 3),
    holds=(Holds.NUMBERS, Holds.IMAGE_SIZES),
    traits=Trait.KEEPS_CHANNELS | Trait.KEEPS_PLACES,
)
declare(
    "MultiStageMeanfield",
    _meanfield,
    message="multi_stage_meanfield_param",
    bottoms=3,
    blobs=("spatial", "bilateral", "compatibility"),
    blob_shapes=_meanfield_blobs,
)
