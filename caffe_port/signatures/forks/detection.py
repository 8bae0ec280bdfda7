"""The records of single-shot detection. Source: src/caffe/layers of the SSD fork."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message, decimal
from caffe_port.signatures.checks import expect_images
from caffe_port.signatures.signature import ANY, SIGNATURES, Holds, Trait, declare
from caffe_port.typing import Shape


class Prior(NamedTuple):
    """A box at a pixel: its size and how far its center is from the pixel's, in pixels of the image; and what is cut
    off each side, in parts of the image."""

    width: float
    height: float
    right: float = 0
    down: float = 0
    cut: float = 0


def priors_of(
    min_sizes: Sequence[int],
    max_sizes: Sequence[int],
    aspect_ratios: Sequence[float],
    flip: bool,
    order: str = "ssd",
    densified: bool = False,
) -> list[Prior]:
    """The boxes of one pixel.

    Args:
        order: "ssd": of each min_size the square, the root of it and max_size, the ratios; "tf": the root last, and
            5 % off each side of a square of 60; "keras": the root first, and the inverse ratios after the others.
        densified: FaceBoxes': sizes count without the last pixel; 16 boxes for a size of 32, and 4 for 64.
    """
    ratios = [1.0]
    for ratio in aspect_ratios:
        if all(abs(ratio - known) >= 1e-6 for known in ratios):
            ratios += [ratio, 1 / ratio] if flip and order != "keras" else [ratio]
    if flip and order == "keras":
        for ratio in [1 / ratio for ratio in aspect_ratios]:
            ratios += [] if any(abs(ratio - known) < 1e-6 for known in ratios) else [ratio]
    made = []
    for k, least in enumerate(min_sizes):
        square = [Prior(least, least, cut=0.05 if order == "tf" and least == 60 else 0)]
        if densified:
            count, step = {32: (4, 8), 64: (2, 16)}.get(least, (1, 0))
            places = [(j - count // 2) * step for j in range(count)]
            square = [Prior(least - 1, least - 1, x, y) for y in places for x in places]
        root = [Prior(math.sqrt(least * max_sizes[k]), math.sqrt(least * max_sizes[k]))] if max_sizes else []
        rest = [Prior(least * math.sqrt(r), least / math.sqrt(r)) for r in ratios if abs(r - 1) >= 1e-6]
        made += {"ssd": square + root + rest, "tf": square + rest + root, "keras": root + square + rest}[order]
    return made


def order_of(p: Message) -> str:
    """In which order a PriorBoxParameter makes the boxes of a pixel; ``keras`` goes before ``tf``."""
    return "keras" if p.keras else "tf" if p.tf else "ssd"


def _prior_box(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    """Boxes and their variances, (1, 2, H * W * boxes * 4). OpenCV's with ``width`` is Intel's PriorBoxClustered."""
    p = SIGNATURES[layer.type].parameters(layer)
    if layer.type == "PriorBox" and (p.has("width") or p.has("box_width")):
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
    dense = p.faceboxes and not p.keras
    if dense and not set(min_sizes).isdisjoint((32, 64)) and (len(min_sizes), *min_sizes[:2]) != (3, 32, 64):
        raise SpecError(f"faceboxes makes room for min_size 32, 64 and a third, in this order; got {min_sizes}")
    if dense and (max_sizes or any(abs(ratio - 1) >= 1e-6 for ratio in p.aspect_ratio)):
        raise SpecError("faceboxes with max_size or aspect_ratio is not supported")
    boxes = len(priors_of(min_sizes, max_sizes, [decimal(r) for r in p.aspect_ratio], p.flip, order_of(p), dense))
    rows = 2 if p.denser_prior_boxes else 1  # TextBoxes++: again, half a pixel lower
    return _priors(p, bottoms, rows * boxes)


def _settled_clip(layer: Message, dialect: str) -> tuple[Message, str]:
    p = layer.prior_box_param
    if dialect == "textboxes" and not p.has("denser_prior_boxes"):
        layer, note = _settled_clip(layer.copy(prior_box_param=p.copy(denser_prior_boxes=True)), dialect)
        return layer, "; ".join(filter(None, ("every box comes twice, as in TextBoxes", note)))
    if p.has("clip") or not layer.has("prior_box_param"):
        return layer, ""
    clip = dialect in ("brocolli", "textboxes")
    note = f"clip is not given and read as {str(clip).lower()}"
    if not dialect:
        note += (
            ", SSD's default since June 2016; for older SSD, TextBoxes, OpenCV and brocolli-caffe it is true: write "
            "clip: true if the net is theirs, or give --dialect"
        )
    return layer.copy(prior_box_param=p.copy(clip=clip)), note


def _prior_box_clustered(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = SIGNATURES["PriorBoxClustered"].parameters(layer)
    others = ("min_size", "max_size", "aspect_ratio") if not p.has("box_width") else ()  # which go before, at Synopsys
    for name in (*others, "offset_h", "offset_w"):
        if p.has(name):
            raise SpecError(f"prior_box_param: {name} does not go with width and height")
    widths, heights = clustered_sizes(p)
    if not len(widths) or len(widths) != len(heights):
        raise SpecError(f"{len(widths)} width for {len(heights)} height; give equally many, at least one of each")
    if min(*widths, *heights) <= 0:
        raise SpecError("width and height must be positive")
    return _priors(p, bottoms, len(widths))


def clustered_sizes(p: Message) -> tuple[Sequence[float], Sequence[float]]:
    """The widths and heights of the boxes at a pixel, where they are given one by one."""
    return (p.box_width, p.box_height) if p.has("box_width") else (p.width, p.height)


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


def check_priors(
    bottoms: Sequence[Shape], num_classes: int, share_location: bool, numbers: int = 4, said: int = 4
) -> None:
    """Raises SpecError unless loc, conf and priors are about the same boxes.

    Args:
        numbers: of each prior.
        said: how many numbers loc has for each.
    """
    loc, conf, priors = bottoms[:3]
    if len(priors) < 3 or priors[1] > 2 or (priors[1] != 2 and numbers == 4) or math.prod(priors[2:]) % numbers:
        raise SpecError(f"the priors have shape {priors}, expected (1, 2, {numbers} * boxes)")
    count = math.prod(priors[2:]) // numbers
    wanted = count * said * (1 if share_location else num_classes), count * num_classes
    if (math.prod(loc[1:]), math.prod(conf[1:])) != wanted or loc[0] != conf[0]:
        raise SpecError(
            f"{count} priors and {num_classes} classes need loc (N, {wanted[0]}) and conf (N, {wanted[1]}),"
            f" got {loc} and {conf}",
            hint="TextBoxes makes each prior twice: give --dialect textboxes"
            if (math.prod(loc[1:]), math.prod(conf[1:])) == (2 * wanted[0], 2 * wanted[1])
            else "",
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
    if not p.num_classes:
        raise SpecError("num_classes is missing")
    for name in ("ratio_permute", "tflite_detection", "arm_conf_no_concat", "arm_loc_no_concat"):
        if getattr(p, name):
            raise SpecError(f"{name} (Synopsys) is not supported")
    if maps := maps_of(p, len(bottoms)):
        bottoms = _joined(p, bottoms, maps)
    elif p.no_permute:
        raise SpecError(f"no_permute takes {p.nbottom} conf, as many loc and the priors; got {len(bottoms)} bottoms")
    elif len(bottoms) > 5:
        raise SpecError(f"{len(bottoms)} bottoms; the layer takes 3 (SSD), 4 (with an image to show) or 5 (RefineDet)")
    elif len(bottoms) == 4 and (len(bottoms[3]) != 4 or bottoms[3][1] not in (1, 3)):
        raise SpecError(f"the fourth bottom is an image to show, (N, 3, H, W); got {bottoms[3]}")
    if not p.normalized_bbox:
        raise SpecError("boxes in pixels (normalized_bbox: false, OpenCV's) are not supported")
    if not p.normalized and min(p.input_width, p.input_height) < 1:
        raise SpecError("priors in pixels (normalized: false) need input_width and input_height")
    suppression(p)
    if p.use_polygon and (p.code_type != "CENTER_SIZE" or p.variance_encoded_in_target):
        raise SpecError("use_polygon needs code_type CENTER_SIZE, and variances that are not in the target")
    check_priors(bottoms, p.num_classes, p.share_location, 4 if p.normalized else 5, 12 if p.use_polygon else 4)
    if len(bottoms) == 5:
        boxes = math.prod(bottoms[2][2:]) // (4 if p.normalized else 5)
        first = tuple((shape[0], math.prod(shape[1:])) for shape in bottoms[3:])
        if first != ((bottoms[0][0], boxes * 2), (bottoms[0][0], boxes * 4)):
            raise SpecError(f"{boxes} priors need conf (N, {boxes * 2}) and loc (N, {boxes * 4}) of the first stage")
    return [(1, 1, 1, 15 if p.use_polygon else 7)]


def maps_of(p: Message, bottoms: int) -> int:
    """How many feature maps a DetectionOutput takes one by one: conf of each, loc of each, and the priors, together or
    of each; 0 where it takes loc, conf and priors. Synopsys.
    """
    maps = int(p.nbottom)
    if maps == 1:
        return int(bottoms == 3)
    fits = 2 * maps + 1 <= bottoms < 3 * maps or (bottoms == 3 * maps and not p.no_permute)
    return maps if maps > 1 and fits else 0


def _joined(p: Message, bottoms: Sequence[Shape], maps: int) -> list[Shape]:
    """loc, conf and priors, as in SSD."""
    images, priors = bottoms[0][0], bottoms[2 * maps :]
    classes = 1 if p.share_location else p.num_classes
    for conf, loc in zip(bottoms[:maps], bottoms[maps : 2 * maps], strict=True):
        if conf[0] != images or loc[0] != images:
            raise SpecError(f"conf {conf} and loc {loc} are not of {images} images")
        if p.no_permute and len(loc) == 4:
            wanted = (images, p.num_classes, loc[1] // 4 // classes, loc[2] * loc[3])
            if conf != wanted or loc[1] % (4 * classes):
                raise SpecError(f"loc {loc} with no_permute needs conf {wanted}, got {conf}")
        elif p.no_permute:
            raise SpecError(f"no_permute needs loc (N, boxes * 4, H, W), got {loc}")
    return [
        (images, sum(math.prod(shape[1:]) for shape in bottoms[maps : 2 * maps])),
        (images, sum(math.prod(shape[1:]) for shape in bottoms[:maps])),
        (*priors[0][:2], sum(math.prod(shape[2:]) for shape in priors)),
    ]


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
    bottoms=(3, ANY),
    holds=PREDICTIONS,
    settles=_settled_suppression,
    traits=Trait.WHOLE_LAYER,
)
