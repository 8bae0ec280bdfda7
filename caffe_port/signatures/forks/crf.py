"""The record of CRF-RNN's mean field."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.signature import declare
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


declare(
    "MultiStageMeanfield",
    _meanfield,
    message="multi_stage_meanfield_param",
    bottoms=3,
    blobs=("spatial", "bilateral", "compatibility"),
    blob_shapes=_meanfield_blobs,
)
