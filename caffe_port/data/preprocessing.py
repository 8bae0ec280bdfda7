"""How pixels become numbers, said once: for verify's pictures, for evaluate's data sets, for what a net is trained on.

This is what is done, as a record; :mod:`caffe_port.data.prepare` does it. Nothing here imports torch or NumPy before it
is needed: the registry, which holds such records, answers at once.

The rules are those of Caffe's C++ side: data_transformer.cpp (mean, scale, crop, mirror) and io.cpp (resize). Where
Caffe's Python side (caffe.io.Transformer, caffe.Classifier, classify.py) differs from it, C++ is followed:

- A picture is bytes, 0..255, decoded by OpenCV in the order BGR; ``caffe.io.load_image`` gives RGB floats in 0..1 by
  scikit-image, which ``--raw_scale 255`` and ``--channel_swap 2,1,0`` turn into the same numbers.
- Resizing is OpenCV's bilinear ``cv::resize`` on bytes, so that the result is whole numbers again;
  ``caffe.io.resize_image`` interpolates floats by scikit-image, and rounds nothing.
- A mean image has the size of the whole picture and is cut out with it; Classifier cuts the picture out first and
  resizes the mean to the net's input, and classify.py averages it to one number for each channel.
- One crop: at random in TRAIN, from the centre in TEST. Classifier's average over ten crops is not done.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caffe_port.errors import CaffePortError, did_you_mean
from caffe_port.storage import tables
from caffe_port.storage.files import find
from caffe_port.typing import Array, Shape

if TYPE_CHECKING:
    from caffe_port.spec import LayerSpec

MEAN_IMAGE = "training-set mean image"
CHANNEL_ORDERS = ("RGB", "BGR", "GRAY")

_CAFFES_FIELDS = ("scale", "mirror", "crop_size", "mean_file", "mean_value", "force_color", "force_gray")
_WITHOUT_EFFECT = ("emit_constraint", "use_gpu_transform", "random_seed")
"""Of TransformationParameter in forks: which boxes are kept, where it is computed, which random numbers are drawn."""


@dataclass(frozen=True)
class Preprocessing:
    """What a net expects of a picture x in 0..255: resized, ``(x - mean) * scale / std``, cut out, mirrored.

    Attributes:
        channel_order: ``"RGB"``, ``"BGR"`` or ``"GRAY"``; None: channels stay as they are stored, as in Caffe.
        mean: one number, one per channel in that order, or :data:`MEAN_IMAGE` (one per pixel).
        scale: factor.
        std: one number, or one per channel.
        pad: zeros added to each side, of the result; of x, before everything else, where ``pad_first``.
        crop: side of the square, or (height, width), that is cut out, at random in training, from the centre in
            testing; 0: none.
        mirror_train, mirror_test: flipped left to right with probability 1/2. Caffe's ``mirror`` is both.
        resize: (height, width) to which x is resized first, by OpenCV, INTER_LINEAR; None: it is not.
        mean_image: the image (C, H, W) of the whole picture, in channel_order, where mean is :data:`MEAN_IMAGE`; None
            until it is known. It is not part of :meth:`as_dict`, nor compared.

    ``std`` and ``pad`` are not Caffe's.
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
            raise CaffePortError(f"channel order '{order}' is none of {', '.join(CHANNEL_ORDERS)}.{near}")
        if isinstance(self.mean, str) and self.mean != MEAN_IMAGE:
            raise CaffePortError(f"mean '{self.mean}' is neither a number, a list of numbers nor \"{MEAN_IMAGE}\"")
        if self.mean_image is not None and (self.mean != MEAN_IMAGE or self.mean_image.ndim != 3):
            raise CaffePortError(f"a mean image is (C, H, W), and the mean; got {self.mean_image.shape}, {self.mean}")
        numbers = [self.scale]
        for name, value in (("mean", self.mean), ("std", self.std)):
            if isinstance(value, tuple) and order is not None and len(value) not in (1, 3 if order != "GRAY" else 1):
                takes = "1 or 3" if order != "GRAY" else "1"
                raise CaffePortError(f"{name} has {len(value)} values; {order} takes {takes}")
            if isinstance(value, tuple) and not value:
                raise CaffePortError(f"{name} has no values")
            numbers += value if isinstance(value, tuple) else () if isinstance(value, str) else (value,)
        if not all(math.isfinite(n) for n in numbers):
            raise CaffePortError("mean, scale and std are finite numbers")
        if any(s == 0 for s in (self.std if isinstance(self.std, tuple) else (self.std,))):
            raise CaffePortError("std is 0; pictures are divided by it")
        if self.pad < 0 or (min(self.crop) < 1 if isinstance(self.crop, tuple) else self.crop < 0):
            raise CaffePortError(f"pad {self.pad} and crop {self.crop} are at least 0")
        if self.resize is not None and min(self.resize) < 1:
            raise CaffePortError(f"resize {self.resize} is (height, width), at least 1")

    def __str__(self) -> str:
        """One line for the user, e.g. ``GRAY, (x - 33.3184) / 78.5675``."""
        x = "x"
        if self.mean != 0:
            x = f"(x - {_shown(self.mean)})"
        x += f" * {_shown(self.scale)}" if self.scale != 1 else ""
        x += f" / {_shown(self.std)}" if self.std != 1 else ""
        parts = [self.channel_order or "channels as stored"]
        parts += [f"resized to {self.resize[1]}x{self.resize[0]}"] if self.resize else []
        parts += [x]
        parts += [f"{self.pad} zeros around {'x' if self.pad_first else 'it'}"] if self.pad else []
        parts += [f"crop {self._crop_text()}"] if self.window else []
        mirrored = [name for name, on in (("training", self.mirror_train), ("testing", self.mirror_test)) if on]
        parts += [f"mirrored at random in {' and '.join(mirrored)}"] if mirrored else []
        return ", ".join(parts)

    def _crop_text(self) -> str:
        return str(self.crop) if isinstance(self.crop, int) else f"{self.crop[1]}x{self.crop[0]}"

    # -- what it comes from, and becomes ----------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, table: Any, where: str) -> Preprocessing:
        """The record of a table of TOML or JSON, as :meth:`as_dict` gives it; what is not said has its default.

        Raises:
            CaffePortError: not a table, a key that is unknown or of another type, a value that makes no sense.
        """
        built: Preprocessing = tables.build(cls, table, where, {"mean_image": None})
        return built

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON. A mean image is :data:`MEAN_IMAGE`; its numbers are not part of it."""
        return {key: value for key, value in asdict(replace(self, mean_image=None)).items() if key != "mean_image"}

    @classmethod
    def from_transform_param(
        cls, layer: LayerSpec, channel_order: str | None = None, notes: list[str] | None = None
    ) -> Preprocessing:
        """What the TransformationParameter of a data layer asks for, in both phases.

        Args:
            layer: whose transform_param it is.
            channel_order: of the pictures that will come; Caffe takes them as they lie in its database (None).
            notes: hears of a mean_file that is not there: then the mean image is yet to be computed. None: an error.

        Raises:
            SpecError: what Caffe refuses too, a field of a fork that would change the numbers, no mean_file.
            CaffePortError: the mean_file cannot be read.
        """
        p = layer.param.transform_param
        if p.has("mean_file") and len(p.mean_value):
            raise layer.error("mean_file and mean_value at the same time")
        if p.force_color and p.force_gray:
            raise layer.error("force_color and force_gray at the same time")
        for name in (*(name for name, _ in p.items()), *p.unknown):
            if name not in (*_CAFFES_FIELDS, *_WITHOUT_EFFECT):
                raise layer.error(
                    f"transform_param {name} belongs to a fork of Caffe and is not supported",
                    "Prepare the pictures beforehand, and take the field out.",
                )
        mean: Any = tuple(float(value) for value in p.mean_value) or 0.0
        if p.has("mean_file"):
            found = find(p.mean_file, layer.folder)
            if found is None and notes is None:
                where = f"{layer.folder} and in the current folder"
                raise layer.error(f"mean_file '{p.mean_file}' is not there (looked in {where})")
            if found is None and notes is not None:
                notes.append(f"mean_file '{p.mean_file}' is not here: the mean over the training set takes its place")
            mean = found or MEAN_IMAGE
        plan = cls(None, 0.0, float(p.scale), 1.0, 0, False, p.crop_size, p.mirror, p.mirror)
        try:
            return plan.changed(mean=mean, channel_order=channel_order)
        except CaffePortError as error:
            if error.where:
                raise
            raise layer.error(f"transform_param: {error.what}") from None

    def changed(self, **changes: Any) -> Preprocessing:
        """A copy in which the changes that are not None were made.

        ``mean`` may be what :func:`read_mean` takes, or an array: a number for each channel, or an image (C, H, W) in
        the channel order.

        Raises:
            CaffePortError: a value that makes no sense, a file that cannot be read.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        if "mean" in changes:
            changes |= _mean(changes["mean"])
        if "std" in changes:
            changes["std"] = _per_channel(changes["std"], "std")
        return replace(self, **changes)

    def for_input(self, channels: int, height: int, width: int) -> Preprocessing:
        """The same for one picture of any size that is to fill a net's input.

        It is resized to that; where the mean image is greater, to its size, and the centre is cut out. What was said of
        resize, crop and pad is replaced.

        Raises:
            CaffePortError: the mean image or the channel order does not fit.
        """
        size = whole = (height, width)
        if self.mean_image is not None:
            whole = (self.mean_image.shape[1], self.mean_image.shape[2])
            if self.mean_image.shape[0] != channels or whole[0] < height or whole[1] < width:
                wanted = (channels, height, width)
                raise CaffePortError(f"the mean image {self.mean_image.shape} does not fit an input of {wanted}")
        if channels == 3 and self.channel_order == "GRAY":
            raise CaffePortError("the channel order is GRAY, the net's input has 3 channels")
        order = "GRAY" if channels == 1 else self.channel_order
        return replace(self, channel_order=order, resize=whole, crop=size if whole != size else 0, pad=0)

    # -- rules that whoever does it keeps to --------------------------------------------------------------------------

    @property
    def lacks_mean_image(self) -> bool:
        """Whether the mean image is asked for and not known yet."""
        return self.mean == MEAN_IMAGE and self.mean_image is None

    @property
    def window(self) -> tuple[int, int] | None:
        """(height, width) of what is cut out; None: nothing is."""
        if isinstance(self.crop, tuple):
            return self.crop
        return (self.crop, self.crop) if self.crop else None

    def mirrors(self, train: bool) -> bool:
        """Whether pictures are mirrored at random in this phase."""
        return self.mirror_train if train else self.mirror_test

    def reorders(self, order: str | None) -> bool:
        """Whether channels that lie in this order are turned round; None: the order is not known, they stay.

        Raises:
            CaffePortError: grey pictures for a net of colour pictures, or the reverse.
        """
        if order is None or self.channel_order is None:
            return False
        if (order == "GRAY") != (self.channel_order == "GRAY"):
            raise CaffePortError(f"the pictures are {order}, the net expects {self.channel_order}")
        return order != self.channel_order

    def shape(self, picture: Shape) -> tuple[int, int, int]:
        """(C, H, W) of what comes out, for what goes in.

        Raises:
            CaffePortError: the crop is larger than the padded picture.
        """
        channels, height, width = picture
        height, width = self.resize or (height, width)
        height, width = height + 2 * self.pad, width + 2 * self.pad
        if self.window is None:
            return channels, height, width
        if self.window[0] > height or self.window[1] > width:
            padded = " with its padding" if self.pad else ""
            raise CaffePortError(f"crop {self._crop_text()} is larger than the picture, {width}x{height}{padded}")
        return channels, *self.window


def read_mean(text: str | Path) -> Any:
    """A mean as users give it: ``104,117,123``, a .binaryproto or an .npy file, or :data:`MEAN_IMAGE`.

    Returns:
        A list of numbers, an array (of a .binaryproto: (C, H, W)), or :data:`MEAN_IMAGE`.

    Raises:
        CaffePortError: none of these.
    """
    if text == MEAN_IMAGE:
        return text
    try:
        return [float(value) for value in str(text).split(",")]
    except ValueError:
        pass
    # NumPy is imported for an image only
    from caffe_port.formats import caffemodel
    from caffe_port.storage.npz import read_npy

    return read_npy(text) if str(text).endswith(".npy") else caffemodel.read_mean(text)


def _mean(value: Any) -> dict[str, Any]:
    """The fields ``mean`` and ``mean_image`` of what a caller gives."""
    if isinstance(value, (str, Path)):
        value = read_mean(value)
    if isinstance(value, str):
        return {"mean": value, "mean_image": None}
    if getattr(value, "ndim", 0) > 1:
        import numpy as np

        image = value[0] if value.ndim == 4 and len(value) == 1 else value
        if image.ndim != 3:
            raise CaffePortError(f"a mean of shape {value.shape} is no image (C, H, W), nor a number for each channel")
        return {"mean": MEAN_IMAGE, "mean_image": np.array(image, np.float32)}
    return {"mean": _per_channel(value, "mean"), "mean_image": None}


def _per_channel(value: Any, name: str) -> float | tuple[float, ...]:
    """A number, or several; one in a list is a number."""
    try:
        numbers = tuple(float(v) for v in (value if hasattr(value, "__len__") else (value,)))
    except (TypeError, ValueError):
        raise CaffePortError(f"{name} is a number, or one for each channel; got {value!r}") from None
    return numbers[0] if len(numbers) == 1 else numbers


def _shown(value: float | tuple[float, ...] | str) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(f'{v:g}' for v in value)}]"
    return value if isinstance(value, str) else f"{value:.8g}"
