"""The records of FlowNet's augmentation. Source: src/caffe/layers of lmb-freiburg/flownet2."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_port.errors import SpecError
from caffe_port.formats.message import Message
from caffe_port.signatures.checks import expect_images
from caffe_port.signatures.signature import Trait, declare
from caffe_port.typing import Shape

COEFFICIENTS = 42
"""Numbers of an image's coefficients: the fields of AugmentationCoeff."""

MODES = ("add", "replace", "regenerate")
RANDOM_TYPES = ("uniform", "gaussian", "bernoulli", "uniform_bernoulli", "gaussian_bernoulli")


def augmented_size(layer: Message, bottom: Shape) -> tuple[int, int]:
    """Height and width that a DataAugmentation cuts out: those of the bottom unless both are given."""
    p = layer.augmentation_param
    expect_images([bottom])
    height, width = bottom[2:]
    if not (p.has("crop_height") and p.has("crop_width")):
        return height, width
    if min(p.crop_height, p.crop_width) < 1 or p.crop_height > height or p.crop_width > width:
        crop = p.crop_height, p.crop_width
        raise SpecError(f"crop_height and crop_width {crop} do not fit an image of {height} x {width}")
    return p.crop_height, p.crop_width


def _expect_coefficients(images: int, bottoms: Sequence[Shape]) -> None:
    for shape in bottoms:
        if len(shape) != 4 or shape != (images, COEFFICIENTS, 1, 1):
            raise SpecError(f"expected coefficients ({images}, {COEFFICIENTS}, 1, 1), got {shape}")


def _expect_draws(p: Message) -> None:
    for name, value in p.items():
        if isinstance(value, Message) and value.rand_type not in RANDOM_TYPES:
            raise SpecError(f"augmentation_param.{name}: rand_type is one of {', '.join(RANDOM_TYPES)}")


def _data_augmentation(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    size, p = augmented_size(layer, bottoms[0]), layer.augmentation_param
    images, channels = bottoms[0][:2]
    _expect_draws(p)
    _expect_coefficients(images, bottoms[1:])
    if p.recompute_mean <= 0 and len(p.mean) == 3 and not p.mean_per_pixel and channels > 3:
        raise SpecError(f"3 mean values for {channels} channels")
    if len(p.chromatic_eigvec) not in (0, 9):
        raise SpecError(f"chromatic_eigvec has {len(p.chromatic_eigvec)} values, expected 9")
    tops = [(images, channels, *size), (images, COEFFICIENTS, 1, 1)]
    return tops[: max(1, len(layer.top))]


def _data_augmentation_blobs(layer: Message, bottoms: Sequence[Shape]) -> dict[str, Shape]:
    channels, size = bottoms[0][1], augmented_size(layer, bottoms[0])
    means = {"pixel_mean": (1, channels, *size), "channel_mean": (1, channels, 1, 1)}
    return {"iterations": (1, 1, 1, 1), **(means if layer.augmentation_param.recompute_mean > 0 else {})}


def generated_sizes(p: Message, bottoms: Sequence[Shape]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of the images whose coefficients are drawn, and of what is cut out of them."""
    if len(bottoms) == 3:
        return (bottoms[1][2], bottoms[1][3]), (bottoms[2][2], bottoms[2][3])
    if not (p.has("crop_width") and p.has("crop_height")):
        raise SpecError("crop_width and crop_height are required with one bottom")
    crop = p.crop_height, p.crop_width
    if bottoms[0][2:] != (1, 1):
        return (bottoms[0][2], bottoms[0][3]), crop
    if not (p.has("bottomwidth") and p.has("bottomheight")):
        raise SpecError("bottomwidth and bottomheight are required where the bottom holds coefficients")
    return (p.bottomheight, p.bottomwidth), crop


def generated_mode(p: Message, bottoms: Sequence[Shape]) -> str:
    """What becomes of the coefficients of the bottom: one of MODES."""
    return "regenerate" if len(bottoms) == 1 and bottoms[0][2:] != (1, 1) else str(p.mode)


def _generate(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.augmentation_param
    if len(bottoms) == 2:
        raise SpecError("2 bottoms; the layer takes 1 or 3")
    for shape in bottoms:
        expect_images([shape])
    (height, width), (crop_height, crop_width) = generated_sizes(p, bottoms)
    mode = generated_mode(p, bottoms)
    if mode not in MODES:
        raise SpecError(f"mode '{mode}' is not one of {', '.join(MODES)}")
    if mode != "regenerate":
        _expect_coefficients(bottoms[0][0], bottoms[:1])
    if min(height, width, crop_height, crop_width) < 1:
        raise SpecError(f"images of {height} x {width} and {crop_height} x {crop_width} cannot be cut out")
    _expect_draws(p)
    return [(bottoms[0][0], COEFFICIENTS, 1, 1)]


def _flow_augmentation(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.augmentation_param
    if len(bottoms[0]) != 4 or bottoms[0][1] != 2:
        raise SpecError(f"expected a flow (N, 2, H, W), got {bottoms[0]}")
    _expect_coefficients(bottoms[0][0], bottoms[1:])
    if min(p.crop_height, p.crop_width) < 1:
        raise SpecError("crop_height and crop_width are required")
    return [(*bottoms[0][:2], p.crop_height, p.crop_width)]


def _random_crop(layer: Message, bottoms: Sequence[Shape]) -> Sequence[Shape]:
    p = layer.random_crop_param
    if len(bottoms[0]) != 4 or bottoms[0][1] != 7:
        raise SpecError(f"expected two images and a disparity, (N, 7, H, W), got {bottoms[0]}")
    if min(p.target_height, p.target_width) < 1:
        raise SpecError("target_height and target_width must be at least 1")
    return [(*bottoms[0][:2], p.target_height, p.target_width)]


declare("RandomCrop", _random_crop, message="random_crop_param", traits=Trait.KEEPS_CHANNELS)
declare(
    "DataAugmentation",
    _data_augmentation,
    message="augmentation_param",
    also=("coeff_schedule_param",),
    bottoms=(1, 2),
    blobs=("iterations", "pixel_mean", "channel_mean"),
    blob_shapes=_data_augmentation_blobs,
    statistics=("iterations", "pixel_mean", "channel_mean"),
    traits=Trait.KEEPS_CHANNELS | Trait.WHOLE_LAYER,
)
declare(
    "GenerateAugmentationParameters",
    _generate,
    message="augmentation_param",
    also=("coeff_schedule_param",),
    bottoms=(1, 3),
    traits=Trait.WHOLE_LAYER,
)
declare("FlowAugmentation", _flow_augmentation, message="augmentation_param", bottoms=3, traits=Trait.KEEPS_CHANNELS)
