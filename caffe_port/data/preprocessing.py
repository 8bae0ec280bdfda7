"""The preprocessing of images, defined in one place for verify's images, evaluate's data sets and training.

This module describes the preprocessing; :mod:`caffe_port.data.prepare` applies it. torch and NumPy are imported only
when needed, so that commands that only read the registry start quickly.

The rules are those of Caffe's C++ code: data_transformer.cpp (mean, scale, crop, mirror) and io.cpp (resize). Where
Caffe's Python code (caffe.io.Transformer, caffe.Classifier, classify.py) differs, the C++ code is followed:

- An image is bytes, 0..255, decoded by OpenCV in BGR order. ``caffe.io.load_image`` returns RGB floats in 0..1 from
  scikit-image, which ``--raw_scale 255`` and ``--channel_swap 2,1,0`` turn into the same values.
- Resizing is OpenCV's bilinear ``cv::resize`` on bytes, so the result consists of integers.
  ``caffe.io.resize_image`` interpolates floats with scikit-image and does not round.
- A mean image has the size of the whole image and is cropped with it. Classifier crops the image first and resizes the
  mean to the net's input; classify.py averages it to one value per channel.
- One crop: at random in TRAIN, at the center in TEST. Classifier's average over ten crops is not supported.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caffe_port.errors import CaffePortError, did_you_mean
from caffe_port.storage import tables
from caffe_port.storage.files import find
from caffe_port.terminal import count
from caffe_port.typing import Array, Shape

if TYPE_CHECKING:
    from caffe_port.formats.message import Message
    from caffe_port.spec import LayerSpec

MEAN_IMAGE = "training-set mean image"
CHANNEL_ORDERS = ("RGB", "BGR", "GRAY")

_CAFFES_FIELDS = ("scale", "mirror", "crop_size", "mean_file", "mean_value", "force_color", "force_gray")
_BOXES_FIELDS = ("resize_param", "crop_h", "crop_w", "noise_param", "distort_param", "expand_param")
"""SSD's fields, all of which :class:`~caffe_port.data.annotated.BoxTransform` follows."""
_RANDOM_FIELDS = ("noise_param", "distort_param", "expand_param")
_WITHOUT_EFFECT = ("emit_constraint", "use_gpu_transform", "random_seed")
"""Fork fields of TransformationParameter: which boxes are kept, where to compute, the seed of the random numbers."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image x in 0..255 becomes a net's input: resize, ``(x - mean) * scale / std``, crop, mirror.

    Attributes:
        channel_order: ``"RGB"``, ``"BGR"`` or ``"GRAY"``; None: channels stay as stored, as in Caffe.
        mean: one value, one per channel in that order, or :data:`MEAN_IMAGE` (one per pixel).
        scale: factor.
        std: one value, or one per channel.
        pad: zeros added to each side of the result; with ``pad_first``, of x before anything but the resizing.
        crop: side of a square, or (height, width), that is cropped at random in training and at the center in testing;
            0: no crop.
        mirror_train, mirror_test: flip left to right with probability 1/2. Caffe's ``mirror`` sets both.
        resize: (height, width) to which x is resized first, with OpenCV's INTER_LINEAR; None: not resized.
        mean_image: the mean (C, H, W) of whole images, in channel_order, if mean is :data:`MEAN_IMAGE`; None if not
            known yet. It is neither part of :meth:`as_dict` nor compared.

    ``std`` and ``pad`` do not exist in Caffe.
    """

    channel_order: str | None = "RGB"
    mean: float | tuple[float, ...] | str = 0.0
    scale: float = 1.0
    std: float | tuple[float, ...] = 1.0
    pad: int = 0
    pad_first: bool = False
    crop: int | tuple[int, int] = 0
    mirror_train: bool = False
    mirror_test: bool = False
    resize: tuple[int, int] | None = None
    mean_image: Array | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        order = self.channel_order
        if order is not None and order not in CHANNEL_ORDERS:
            near = did_you_mean(str(order).upper(), CHANNEL_ORDERS)
            raise CaffePortError(f"channel order '{order}' is not one of {', '.join(CHANNEL_ORDERS)}.{near}")
        if isinstance(self.mean, str) and self.mean != MEAN_IMAGE:
            raise CaffePortError(f"mean '{self.mean}' is neither a number, a list of numbers nor \"{MEAN_IMAGE}\"")
        if self.mean_image is not None and (self.mean != MEAN_IMAGE or self.mean_image.ndim != 3):
            raise CaffePortError(
                f"a mean image (C, H, W) requires mean '{MEAN_IMAGE}'; got {self.mean_image.shape}, {self.mean}"
            )
        numbers = [self.scale]
        for name, value in (("mean", self.mean), ("std", self.std)):
            if isinstance(value, tuple) and order is not None and len(value) not in (1, 3 if order != "GRAY" else 1):
                takes = "1 or 3" if order != "GRAY" else "1"
                raise CaffePortError(f"{name} has {count(len(value), 'value')}; {order} takes {takes}")
            if isinstance(value, tuple) and not value:
                raise CaffePortError(f"{name} has no values")
            numbers += value if isinstance(value, tuple) else () if isinstance(value, str) else (value,)
        if not all(math.isfinite(n) for n in numbers):
            raise CaffePortError("mean, scale and std must be finite")
        if any(s == 0 for s in (self.std if isinstance(self.std, tuple) else (self.std,))):
            raise CaffePortError("std is 0; images are divided by it")
        if self.pad < 0 or (min(self.crop) < 1 if isinstance(self.crop, tuple) else self.crop < 0):
            raise CaffePortError(
                f"pad {self.pad} or crop {self.crop} is too small; expected at least 0, or 1 for (height, width)"
            )
        if self.resize is not None and min(self.resize) < 1:
            raise CaffePortError(f"resize {self.resize} is too small; expected (height, width) of at least 1")

    def __str__(self) -> str:
        """One line for the user, e.g. ``GRAY, (x - 33.3184) / 78.5675``."""
        x = "x"
        if self.mean != 0:
            x = f"(x - {_shown(self.mean)})"
        x += f" * {_shown(self.scale)}" if self.scale != 1 else ""
        x += f" / {_shown(self.std)}" if self.std != 1 else ""
        parts = [self.channel_order or "channels as stored"]
        parts += [f"resized to {self.resize[1]}x{self.resize[0]}"] if self.resize else []
        padding = [f"padded by {self.pad}"] if self.pad else []
        parts += [*padding, x] if self.pad_first else [x, *padding]
        parts += [f"crop {self._crop_text()}"] if self.window else []
        mirrored = [name for name, on in (("training", self.mirror_train), ("testing", self.mirror_test)) if on]
        parts += [f"mirrored at random in {' and '.join(mirrored)}"] if mirrored else []
        return ", ".join(parts)

    def _crop_text(self) -> str:
        return str(self.crop) if isinstance(self.crop, int) else f"{self.crop[1]}x{self.crop[0]}"

    # -- conversions ------------------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, table: Any, where: str) -> Preprocessing:
        """Builds a Preprocessing from a TOML or JSON table such as :meth:`as_dict` returns; missing keys get defaults.

        Raises:
            CaffePortError: not a table, an unknown key, or a value of the wrong type or out of range.
        """
        built: Preprocessing = tables.build(cls, table, where, {"mean_image": None})
        return built

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON. A mean image becomes :data:`MEAN_IMAGE`; its values are not included."""
        return {key: value for key, value in asdict(replace(self, mean_image=None)).items() if key != "mean_image"}

    @classmethod
    def from_transform_param(
        cls,
        layer: LayerSpec,
        channel_order: str | None = None,
        notes: list[str] | None = None,
        *,
        boxes: bool = False,
        inference: bool = False,
    ) -> Preprocessing:
        """The preprocessing of a data layer's TransformationParameter, for both phases.

        Args:
            layer: the data layer.
            channel_order: channel order of the images; None: as stored in the database, as in Caffe.
            notes: receives a note if the mean_file does not exist; the mean image must then be computed. None: a
                missing mean_file is an error.
            boxes: the caller follows SSD's fields, which change boxes, too; the result has only mean, scale and
                Caffe's own crop and mirror.
            inference: leave out what SSD varies at random in training.

        Raises:
            SpecError: Caffe rejects it too, a fork's field would change the result, or the mean_file is missing.
            CaffePortError: the mean_file cannot be read.
        """
        p = layer.param.transform_param
        if p.has("mean_file") and len(p.mean_value):
            raise layer.error("sets both mean_file and mean_value")
        if p.force_color and p.force_gray:
            raise layer.error("sets both force_color and force_gray")
        followed = [*_CAFFES_FIELDS, *_WITHOUT_EFFECT]
        followed += _BOXES_FIELDS if boxes else _RANDOM_FIELDS if inference else ()
        resize, crop = None, p.crop_size
        if not boxes:
            resize = _resize_of(p, inference)
            followed += ["resize_param"] if resize else []
            if p.crop_h and p.crop_w:
                followed += ["crop_h", "crop_w"]
                crop = crop or (p.crop_h, p.crop_w)
        for name in (*(name for name, _ in p.items()), *p.unknown):
            if name not in followed:
                raise layer.error(
                    f"transform_param {name} belongs to a fork of Caffe and is not supported",
                    "Preprocess the images beforehand, and remove the field.",
                )
        mean: Any = tuple(float(value) for value in p.mean_value) or 0.0
        if p.has("mean_file"):
            found = find(p.mean_file, layer.folder)
            if found is None and notes is None:
                where = f"{layer.folder} and in the current folder"
                raise layer.error(f"mean_file '{p.mean_file}' does not exist (looked in {where})")
            if found is None and notes is not None:
                notes.append(f"mean_file '{p.mean_file}' does not exist: the mean of the training set is used instead")
            mean = found or MEAN_IMAGE
        plan = cls(None, 0.0, float(p.scale), 1.0, 0, False, crop, p.mirror, p.mirror, resize)
        try:
            return plan.changed(mean=mean, channel_order=channel_order)
        except CaffePortError as error:
            if error.where:
                raise
            raise layer.error(f"transform_param: {error.what}") from None

    def changed(self, **changes: Any) -> Preprocessing:
        """A copy with those changes that are not None.

        ``mean`` is anything that :func:`read_mean` takes, or an array: one value per channel, or an image (C, H, W) in
        the channel order.

        Raises:
            CaffePortError: a value is invalid, or a file cannot be read.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        if "mean" in changes:
            changes |= _mean(changes["mean"])
        if "std" in changes:
            changes["std"] = _per_channel(changes["std"], "std")
        return replace(self, **changes)

    def for_input(self, channels: int, height: int, width: int) -> Preprocessing:
        """The same preprocessing for one image of any size that must fill a net's input.

        The image is resized to the input; or, if the mean image is larger, to its size and then cropped at the center.
        This replaces resize, crop and pad.

        Raises:
            CaffePortError: the mean image or the channel order does not fit.
        """
        size = whole = (height, width)
        if self.mean_image is not None:
            whole = (self.mean_image.shape[1], self.mean_image.shape[2])
            if self.mean_image.shape[0] != channels or whole[0] < height or whole[1] < width:
                wanted = (channels, height, width)
                raise CaffePortError(f"the mean image {self.mean_image.shape} does not match an input of {wanted}")
        if channels == 3 and self.channel_order == "GRAY":
            raise CaffePortError("the channel order is GRAY, but the net's input has 3 channels")
        order = "GRAY" if channels == 1 else self.channel_order
        return replace(self, channel_order=order, resize=whole, crop=size if whole != size else 0, pad=0)

    # -- rules for those who apply it ---------------------------------------------------------------------------------

    @property
    def lacks_mean_image(self) -> bool:
        """Whether a mean image is required but not known yet."""
        return self.mean == MEAN_IMAGE and self.mean_image is None

    @property
    def window(self) -> tuple[int, int] | None:
        """(height, width) of the crop; None: no crop."""
        if isinstance(self.crop, tuple):
            return self.crop
        return (self.crop, self.crop) if self.crop else None

    def mirrors(self, train: bool) -> bool:
        """Whether images are randomly mirrored in this phase."""
        return self.mirror_train if train else self.mirror_test

    def reorders(self, order: str | None) -> bool:
        """Whether images in this channel order must be reversed to the net's; never if the order is unknown (None).

        Raises:
            CaffePortError: gray images for a net that expects color, or the reverse.
        """
        if order is None or self.channel_order is None:
            return False
        if (order == "GRAY") != (self.channel_order == "GRAY"):
            raise CaffePortError(f"the images are {order}, but the net expects {self.channel_order}")
        return order != self.channel_order

    def shape(self, picture: Shape) -> tuple[int, int, int]:
        """The output shape (C, H, W) for an image shape.

        Raises:
            CaffePortError: the crop is larger than the padded image.
        """
        channels, height, width = picture
        height, width = self.resize or (height, width)
        height, width = height + 2 * self.pad, width + 2 * self.pad
        if self.window is None:
            return channels, height, width
        if self.window[0] > height or self.window[1] > width:
            padded = " with padding" if self.pad else ""
            raise CaffePortError(f"crop {self._crop_text()} is larger than the image, {width}x{height}{padded}")
        return channels, *self.window


def _resize_of(p: Message, inference: bool) -> tuple[int, int] | None:
    """(height, width) of an SSD's resize_param that warps images by linear interpolation; None if there is none.

    Args:
        inference: of several interpolations, one of which is drawn in training, take the linear one.
    """
    one = p.resize_param[0] if len(p.resize_param) == 1 else None
    if one is None or one.resize_mode != "WARP" or one.height < 1 or one.width < 1:
        return None
    modes = list(one.interp_mode) or ["LINEAR"]
    return (one.height, one.width) if modes == ["LINEAR"] or (inference and "LINEAR" in modes) else None


def read_mean(text: str | Path) -> Any:
    """Reads a mean given by the user: ``104,117,123``, a .binaryproto or an .npy file, or :data:`MEAN_IMAGE`.

    Returns:
        A list of values, an array ((C, H, W) for a .binaryproto), or :data:`MEAN_IMAGE`.

    Raises:
        CaffePortError: it is none of these.
    """
    if text == MEAN_IMAGE:
        return text
    try:
        return [float(value) for value in str(text).split(",")]
    except ValueError:
        pass
    # these import NumPy, which only an image needs
    from caffe_port.formats import caffemodel
    from caffe_port.storage.npz import read_npy

    return read_npy(text) if str(text).endswith(".npy") else caffemodel.read_mean(text)


def _mean(value: Any) -> dict[str, Any]:
    """The fields ``mean`` and ``mean_image`` for a given mean."""
    if isinstance(value, (str, Path)):
        value = read_mean(value)
    if isinstance(value, str):
        return {"mean": value, "mean_image": None}
    if getattr(value, "ndim", 0) > 1:
        import numpy as np

        image = value[0] if value.ndim == 4 and len(value) == 1 else value
        if image.ndim != 3:
            raise CaffePortError(f"mean has shape {value.shape}; expected an image (C, H, W) or one value per channel")
        return {"mean": MEAN_IMAGE, "mean_image": np.array(image, np.float32)}
    return {"mean": _per_channel(value, "mean"), "mean_image": None}


def _per_channel(value: Any, name: str) -> float | tuple[float, ...]:
    """One value, or a tuple of several; a list of one value becomes that value."""
    try:
        numbers = tuple(float(v) for v in (value if hasattr(value, "__len__") else (value,)))
    except (TypeError, ValueError):
        raise CaffePortError(f"{name} must be a number or one number per channel; got {value!r}") from None
    return numbers[0] if len(numbers) == 1 else numbers


def _shown(value: float | tuple[float, ...] | str) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(f'{v:g}' for v in value)}]"
    return value if isinstance(value, str) else f"{value:.8g}"
