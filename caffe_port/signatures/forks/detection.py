"""The records of single-shot detection. Source: src/caffe/layers of the SSD fork."""

from __future__ import annotations

import math
from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message, decimal
from caffe_port.signatures.checks import expect_images
from caffe_port.signatures.signature import SIGNATURES, Holds, Trait, declare
from caffe_port.typing import Shape


def prior_sizes(
    min_sizes: Sequence[int], max_sizes: Sequence[int], aspect_ratios: Sequence[float], flip: bool
) -> list[tuple[float, float]]:
    """Width and height of the boxes of one pixel, in SSD's order."""
    ratios = [1.0]
    for ratio in aspect_ratios:
        if all(abs(ratio - known) >= 1e-6 for known in ratios):
            ratios += [ratio, 1 / ratio] if flip else [ratio]
    sizes = []
    for k, least in enumerate(min_sizes):
        sizes.append((float(least), float(least)))
        if max_sizes:
            sizes.append((math.sqrt(least * max_sizes[k]),) * 2)
        sizes += [(least * math.sqrt(r), least / math.sqrt(r)) for r in ratios if abs(r - 1) >= 1e-6]
    return sizes


def _prior_box(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """Boxes and their variances, (1, 2, H * W * boxes * 4). OpenCV's with ``width`` is Intel's PriorBoxClustered."""
    p = SIGNATURES[layer.type].parameters(layer)
    if layer.type == "PriorBox" and p.has("width"):
        return _prior_box_clustered(layer, bottoms)
    for name in ("offset_h", "offset_w", "width", "height", "fixed_size", "fixed_ratio", "density"):
        if p.has(name):
            raise SpecError(f"prior_box_param: {name} belongs to a PriorBox other than SSD's", hint="Write a plugin.")
    min_sizes, max_sizes = [int(n) for n in p.min_size], [int(n) for n in p.max_size]
    if not min_sizes or min(p.min_size) <= 0:
        raise SpecError("min_size is missing, or not positive")
    if max_sizes and len(max_sizes) != len(min_sizes):
        raise SpecError(f"{len(max_sizes)} max_size for {len(min_sizes)} min_size; give none or equally many")
    for least, most in zip(p.min_size, p.max_size, strict=False):
        if most <= least:
            raise SpecError(f"max_size {decimal(most)} must be greater than min_size {decimal(least)}")
    if any(ratio <= 0 for ratio in p.aspect_ratio):
        raise SpecError("aspect_ratio must be positive")
    boxes = len(prior_sizes(min_sizes, max_sizes, [decimal(r) for r in p.aspect_ratio], p.flip))
    rows = 2 if p.denser_prior_boxes else 1  # TextBoxes++: again, half a pixel lower
    return _priors(p, bottoms, rows * boxes)


def _settled_clip(layer: Message, dialect: str) -> tuple[Message, str]:
    p = layer.prior_box_param
    if p.has("clip") or not layer.has("prior_box_param"):
        return layer, ""
    clip = dialect == "brocolli"
    note = f"clip is not given and read as {str(clip).lower()}"
    if not dialect:
        note += (
            ", SSD's default since June 2016; for older SSD, TextBoxes, OpenCV and brocolli-caffe it is true: write "
            "clip: true if the net is theirs, or give --dialect"
        )
    return layer.copy(prior_box_param=p.copy(clip=clip)), note


def _prior_box_clustered(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = SIGNATURES["PriorBoxClustered"].parameters(layer)
    for name in ("min_size", "max_size", "aspect_ratio", "offset_h", "offset_w"):
        if p.has(name):
            raise SpecError(f"prior_box_param: {name} does not go with width and height")
    if not len(p.width) or len(p.width) != len(p.height):
        raise SpecError(f"{len(p.width)} width for {len(p.height)} height; give equally many, at least one of each")
    if min(*p.width, *p.height) <= 0:
        raise SpecError("width and height must be positive")
    return _priors(p, bottoms, len(p.width))


def _priors(p: Message, bottoms: Sequence[Shape], boxes: int) -> Sequence[Shape]:
    expect_images(bottoms)
    if len(p.variance) not in (0, 1, 4) or min(p.variance, default=1) <= 0:
        raise SpecError(f"{len(p.variance)} variances: give one or four, all positive")
    pair(p, "img_size", "img_h", "img_w")
    pair(p, "step", "step_h", "step_w")
    return [(1, 2, math.prod(bottoms[0][2:]) * boxes * 4)]


def pair(p: Message, both: str, vertical: str, horizontal: str) -> tuple[float, float] | None:
    """(vertical, horizontal), given once or one by one; None where absent. Raises SpecError for both forms."""
    if p.has(vertical) or p.has(horizontal):
        if p.has(both):
            raise SpecError(f"{both} and {vertical}/{horizontal} exclude each other")
        values = (getattr(p, vertical), getattr(p, horizontal))
    elif p.has(both):
        values = (getattr(p, both),) * 2
    else:
        return None
    if min(values) <= 0:
        raise SpecError(f"{both}, {vertical} and {horizontal} must be positive")
    return values[0], values[1]


def check_priors(bottoms: Sequence[Shape], num_classes: int, share_location: bool, numbers: int = 4) -> None:
    """Raises SpecError unless loc, conf and priors are about the same boxes, of so many numbers each."""
    loc, conf, priors = bottoms[:3]
    if len(priors) < 3 or priors[1] > 2 or (priors[1] != 2 and numbers == 4) or math.prod(priors[2:]) % numbers:
        raise SpecError(f"the priors have shape {priors}, expected (1, 2, {numbers} * boxes)")
    count = math.prod(priors[2:]) // numbers
    wanted = count * 4 * (1 if share_location else num_classes), count * num_classes
    if (math.prod(loc[1:]), math.prod(conf[1:])) != wanted or loc[0] != conf[0]:
        raise SpecError(
            f"{count} priors and {num_classes} classes need loc (N, {wanted[0]}) and conf (N, {wanted[1]}),"
            f" got {loc} and {conf}"
        )


def suppresses(p: Message) -> bool:
    """Whether overlapping boxes are suppressed: where an nms_param, or the older nms_threshold, is given."""
    return p.has("nms_param") or p.has("nms_threshold")


def _settled_suppression(layer: Message, dialect: str) -> tuple[Message, str]:
    p = layer.detection_output_param
    if suppresses(p):
        return layer, ""
    if dialect == "caffe":
        nms = Message("NonMaximumSuppressionParameter")
        return layer.copy(detection_output_param=p.copy(nms_param=nms)), (
            "has no nms_param; what overlaps by 0.3 is suppressed, as in SSD"
        )
    note = "has no nms_param, so that no box is suppressed, as in brocolli-caffe"
    if not dialect:
        note += "; SSD suppresses what overlaps by 0.3: write nms_param {} if the net is SSD's, or give --dialect"
    return layer, note


def suppression(p: Message) -> tuple[float, float]:
    """The threshold of overlaps, and eta, of a DetectionOutputParameter."""
    nms = p.nms_param
    eta, threshold = nms.eta, (nms if p.has("nms_param") else p).nms_threshold
    if not 0 < eta <= 1 or threshold < 0:
        raise SpecError(f"nms_param: eta {eta} must be in (0, 1], nms_threshold {threshold} must not be negative")
    return threshold, eta


def _detection_output(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """How many boxes are kept depends on the picture; Caffe allocates one."""
    p = layer.detection_output_param
    if len(bottoms) == 4:
        raise SpecError("4 bottoms; the layer takes 3 (SSD) or 5 (RefineDet)")
    if not p.num_classes:
        raise SpecError("num_classes is missing")
    if not p.normalized_bbox:
        raise SpecError("boxes in pixels (normalized_bbox: false, OpenCV's) are not supported")
    if not p.normalized and min(p.input_width, p.input_height) < 1:
        raise SpecError("priors in pixels (normalized: false) need input_width and input_height")
    suppression(p)
    check_priors(bottoms, p.num_classes, p.share_location, 4 if p.normalized else 5)
    if len(bottoms) == 5:
        boxes = math.prod(bottoms[2][2:]) // (4 if p.normalized else 5)
        first = tuple((shape[0], math.prod(shape[1:])) for shape in bottoms[3:])
        if first != ((bottoms[0][0], boxes * 2), (bottoms[0][0], boxes * 4)):
            raise SpecError(f"{boxes} priors need conf (N, {boxes * 2}) and loc (N, {boxes * 4}) of the first stage")
    return [(1, 1, 1, 7)]


PREDICTIONS = (Holds.NUMBERS, Holds.NUMBERS, Holds.PRIORS)
"""loc, conf and priors."""

declare(
    "PriorBox",
    _prior_box,
    message="prior_box_param",
    also=("prior_box_clustered_param",),
    bottoms=2,
    settles=_settled_clip,
)
declare("PriorBoxClustered", _prior_box_clustered, message=("prior_box_clustered_param", "prior_box_param"), bottoms=2)
declare(
    "DetectionOutput",
    _detection_output,
    message="detection_output_param",
    bottoms=(3, 5),
    holds=PREDICTIONS,
    settles=_settled_suppression,
    traits=Trait.WHOLE_LAYER,
)
