"""What SSD's data layer does to images with boxes, and batches of them.

Source: annotated_data_layer.cpp, data_transformer.cpp of SSD (weiliu89/caffe).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from caffe_port.data import varied
from caffe_port.data.annotations import Example, Examples
from caffe_port.data.batches import positions
from caffe_port.data.boxes import Objects, check_samplers, emitted, objects, projected, sampled, seen
from caffe_port.data.prepare import prepare
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.errors import CaffePortError
from caffe_port.formats.message import Message
from caffe_port.spec import LayerSpec
from caffe_port.typing import Array

_RAW_BACKGROUND = 32.0  # around images that are stored raw, SSD's code leaves the spaces of a new string


# -- what happens to them -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BoxTransform:
    """What a TransformationParameter and an AnnotatedDataParameter of SSD's do to an image and its objects.

    Attributes:
        plan: mean and scale; neither crops nor mirrors.
        crop: (height, width), at random in training and at the center in testing; None: no crop.
        mirror: whether images are mirrored with probability 1/2, in both phases as in Caffe.
        resize, noise, distort, expand, emit: the parameters; None: not given.
        samplers: the batch_sampler.
    """

    plan: Preprocessing
    crop: tuple[int, int] | None = None
    mirror: bool = False
    resize: Message | None = None
    noise: Message | None = None
    distort: Message | None = None
    expand: Message | None = None
    emit: Message | None = None
    samplers: tuple[Message, ...] = ()

    @classmethod
    def of(cls, layer: LayerSpec) -> BoxTransform:
        """The transform of an AnnotatedData layer.

        Raises:
            SpecError: SSD rejects it too, or it has fields of another fork.
        """
        p, own = layer.param.transform_param, layer.param.annotated_data_param
        for name in (*(name for name, _ in own.items()), *map(str, own.unknown)):
            if name not in ("batch_sampler", "label_map_file", "anno_type"):
                raise layer.error(f"annotated_data_param {name} belongs to a fork of SSD and is not supported")
        plan = Preprocessing.from_transform_param(layer, boxes=True)
        given = {
            name.removesuffix("_param"): getattr(p, name) if p.has(name) else None
            for name in ("noise_param", "distort_param", "expand_param")
        }
        if len(p.resize_param) > 1:
            raise layer.error("gives several resize_param, as a fork of SSD does, which is not supported")
        resize = p.resize_param[0] if len(p.resize_param) else None
        crop = (p.crop_size, p.crop_size) if p.crop_size else (p.crop_h, p.crop_w)
        samplers = tuple(own.batch_sampler)
        with layer.checked():
            check_samplers(samplers)
            if given["distort"] is not None:
                varied.check_distortion(given["distort"])
            if given["noise"] is not None:
                varied.check_noise(given["noise"])
            if resize is not None:
                varied.check_resize(resize)
        if resize is not None and resize.resize_mode == "FIT_SMALL_SIZE" and layer.param.data_param.batch_size != 1:
            raise layer.error("resizes to images of different sizes (FIT_SMALL_SIZE), which needs batch_size 1")
        if given["expand"] is not None and plan.mean_image is not None:
            raise layer.error("expand_param needs mean_value; a mean_file has one size, and expanded images have many")
        return cls(
            replace(plan, crop=0, mirror_train=False, mirror_test=False),
            crop if min(crop) > 0 else None,
            bool(p.mirror),
            resize,
            emit=p.emit_constraint if p.has("emit_constraint") else None,
            samplers=samplers,
            **given,
        )

    def shape(self, picture: Array) -> tuple[int, int, int]:
        """(C, H, W) of what becomes of an image (H, W, C), if nothing is sampled. Source: InferBlobShape."""
        height, width = picture.shape[:2]
        if self.resize is not None:
            height, width = varied.new_size(self.resize, height, width)
        tall, wide = self.crop or (height, width)
        if tall > height or wide > width:
            raise CaffePortError(f"crop {wide}x{tall} is larger than the image, {width}x{height}")
        return picture.shape[2], tall, wide

    def __call__(self, example: Example, train: bool, rng: np.random.Generator) -> tuple[Array, Objects]:
        """The input for the net, float32 (C, H, W), and the objects in it. Source: load_batch."""
        picture, encoded = example.picture, example.encoded
        found = example.found if example.found is not None else objects([])

        def kept(x: Array) -> Array:  # images that were compressed are compressed again after every step
            return varied.stored(x) if encoded else x

        if self.distort is not None and encoded:
            picture = kept(varied.distorted(picture, self.distort, rng))
        if self.expand is not None:
            mean = np.broadcast_to(self.plan.mean, picture.shape[2:]) if encoded else [_RAW_BACKGROUND]
            larger = varied.expanded(picture, self.expand, list(map(float, mean)), rng)
            if larger is not None:
                picture, found = kept(larger[0]), seen(found, larger[1], self.emit)
        if self.samplers:
            windows = sampled(found, self.samplers, rng)
            if windows:
                window = np.clip(windows[int(rng.integers(len(windows)))], np.float32(0), np.float32(1))
                picture, found = kept(varied.cut(picture, window)), seen(found, window, self.emit)
        return self._given(picture, found, encoded, train, rng)

    def _given(
        self, picture: Array, found: Objects, encoded: bool, train: bool, rng: np.random.Generator
    ) -> tuple[Array, Objects]:
        """Source: DataTransformer::Transform and TransformAnnotation."""
        shape = picture.shape[:2]
        _, tall, wide = self.shape(picture)
        flip = self.mirror and int(rng.integers(2)) == 1
        if self.resize is not None:
            picture = varied.resized(picture, self.resize, rng)
            found = replace(found, corners=varied.boxes_resized(self.resize, found.corners, *shape))
        if self.noise is not None and encoded:
            picture = varied.spoiled(picture, self.noise, rng)
        height, width = picture.shape[:2]
        top, left = (height - tall) // 2, (width - wide) // 2
        if train and self.crop is not None:
            top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
        sides = np.array((width, height, width, height), np.float32)
        window = np.array((left, top, left + wide, top + tall), np.float32) / sides
        x = picture.transpose(2, 0, 1)
        order = "GRAY" if len(x) == 1 else "BGR"
        if not encoded:  # the mean has the size of the whole image, and is cropped and mirrored with it
            x = prepare(x, self.plan, order)
        x = x[:, top : top + tall, left : left + wide]
        x = x[:, :, ::-1] if flip else x
        if encoded:  # the mean has the size of the result
            x = prepare(x, self.plan, order)
        corners, inside = projected(window, found.corners)
        found = found.chosen(inside & emitted(window, found.corners, self.emit), corners)
        found = found.mirrored() if flip else found
        if self.resize is not None:
            found = replace(found, corners=varied.stretched(self.resize, found, shape, window))
        return x, found


class AnnotatedFeed:
    """Batches of images with objects: tops data (N, C, H, W) and label (1, 1, objects, 8), whose rows are item, label,
    instance, xmin, ymin, xmax, ymax and difficult; one row of -1 where no image has an object. Records without
    annotations give labels (N) instead. A :class:`~batches.Feed`.

    Args:
        records: the source.
        batch_size: records per batch.
        transform: what happens to them.
        train: crop at random positions.
        shuffle: use a different order in every epoch, instead of the stored sequence.
        seed: seed of the order and of everything random.
        device: device of the batches.
        labels: whether label is a top.
    """

    def __init__(
        self,
        records: Examples,
        batch_size: int,
        transform: BoxTransform,
        *,
        train: bool = False,
        shuffle: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        labels: bool = True,
    ) -> None:
        self.records, self.batch_size, self.transform, self.train = records, batch_size, transform, train
        self.seed, self.shuffle, self.size = seed, seed if shuffle else None, len(records)
        self.device, self.labels = torch.device(device), labels
        self.classes: tuple[int, int] | None = None  # if set, labels are checked: how many, and the background's
        first = records[0]
        self.annotated = first.found is not None
        self.varies = transform.resize is not None and transform.resize.resize_mode == "FIT_SMALL_SIZE"
        self._shape = transform.shape(first.picture)
        boxes = (1, 1, max(len(first.found), 1), 8) if first.found is not None else (batch_size,)
        self.shapes: tuple[tuple[int, ...], ...] = ((batch_size, *self._shape), boxes)[: 1 + labels]

    def batch(self, number: int) -> tuple[Tensor, ...]:
        pictures, rows, labels = [], [], []
        for item, index in enumerate(positions(number, self.batch_size, self.size, self.shuffle)):
            rng = np.random.default_rng((self.seed, number, item, 1))
            example = self.records[int(index)]
            if (example.found is not None) != self.annotated and self.labels:
                raise CaffePortError(f"record {index} and the first one do not both have boxes")
            x, found = self.transform(example, self.train, rng)
            if not self.varies and x.shape != self._shape:
                hint = "Images of different sizes need a resize_param."
                raise CaffePortError(f"record {index} has shape {x.shape}, the first has {self._shape}", hint=hint)
            pictures.append(x)
            rows.append(found.rows(item))
            self._check(rows[-1][:, 1], int(index))
            labels.append(example.label)
        data = torch.from_numpy(np.stack(pictures)).to(self.device)
        if not self.labels:
            return (data,)
        if not self.annotated:
            return data, torch.tensor(labels, dtype=torch.float32, device=self.device)
        table = np.concatenate(rows)
        table = table if len(table) else np.full((1, 8), -1, np.float32)
        return data, torch.from_numpy(table[None, None]).to(self.device)

    def _check(self, labels: Array, record: int) -> None:
        """Source: bbox_util.cpp (GetGroundTruth)."""
        if self.classes is None or not self.labels:
            return
        classes, background = self.classes
        for label in labels[(labels == background) | (labels >= classes)]:
            said = "is its background" if label == background else "is none of them"
            raise CaffePortError(
                f"record {record} has an object of class {label:.0f}; of the net's {classes} classes, this {said}"
            )
