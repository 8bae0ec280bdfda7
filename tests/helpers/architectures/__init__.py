"""Twenty-one architectures as prototxts, from their papers and published definitions, at any width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from architectures import classification, dense, detection, other
from architectures.builder import Prototxt


@dataclass(frozen=True)
class Architecture:
    """An architecture and what is known of it.

    Attributes:
        add: adds the layers to a net, for the shape of the first input.
        full: the published shape of the input.
        small, width: what is small enough to run in a test; all channels are multiplied by ``width``.
        parameters: learned ones, as published, with as many digits: 25557096 or "134M". By phase.
        elsewhere: type -> why OpenCV has no figures for it; NumPy's formulas have them.
        uncompared: those of them for which there is no formula either, with one layer each.
        unread: what OpenCV says when it refuses the whole prototxt; empty where it does not.
        loss: whether there is a loss that trains.
        feeds: the inputs that random numbers cannot be, from the shape of the first one.
    """

    add: Callable[[Prototxt, tuple[int, ...]], None]
    full: tuple[int, ...]
    small: tuple[int, ...]
    width: float
    parameters: dict[str, int | str] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    uncompared: tuple[str, ...] = ()
    unread: str = ""
    loss: bool = True
    feeds: dict[str, Callable[[tuple[int, ...]], np.ndarray]] = field(default_factory=dict)

    def inputs(self) -> dict[str, np.ndarray]:
        return {name: make(self.small).astype(np.float32) for name, make in self.feeds.items()}

    def text(self, small: bool = True, deploy: bool = False) -> str:
        net = Prototxt(self.add.__name__, self.width if small else 1, deploy)
        self.add(net, self.small if small else self.full)
        return str(net)


def _image_info(shape: tuple[int, ...]) -> np.ndarray:
    """Height, width and scale of every image."""
    return np.tile([shape[2], shape[3], 1.0], (shape[0], 1))


def _boxes(shape: tuple[int, ...]) -> np.ndarray:
    """Image, class, instance, x1, y1, x2, y2, difficult."""
    return np.array(
        [
            [0, 3, 0, 0.1, 0.2, 0.4, 0.7, 0],
            [0, 12, 0, 0.5, 0.5, 0.9, 0.95, 0],
            [1, 7, 0, 0, 0.1, 0.95, 0.9, 0],
            [1, 20, 0, 0.3, 0.3, 0.4, 0.45, 0],
            [1, 1, 0, 0.6, 0.2, 0.8, 0.3, 1],
        ]
    )[None, None]


def _anchor_labels(shape: tuple[int, ...]) -> np.ndarray:
    """Background, object, or neither (-1)."""
    return np.random.default_rng(6).integers(-1, 2, (shape[0], 1, 9 * (shape[2] // 16), shape[3] // 16))


def _ones(shape: tuple[int, ...]) -> np.ndarray:
    return np.ones((shape[0], 36, shape[2] // 16, shape[3] // 16))


IMAGE = (1, 3, 224, 224)

ARCHITECTURES = {
    architecture.add.__name__: architecture
    for architecture in (
        Architecture(classification.alexnet, (1, 3, 227, 227), (2, 3, 131, 163), 1 / 8, {"TEST": 60_965_224}),
        Architecture(classification.vgg16, IMAGE, (2, 3, 64, 96), 1 / 8, {"TEST": 138_357_544}),
        Architecture(
            classification.googlenet, IMAGE, (2, 3, 224, 256), 1 / 8, {"TEST": 6_998_552, "TRAIN": 13_378_280}
        ),
        Architecture(
            classification.inception_v3,
            (1, 3, 299, 299),
            (2, 3, 299, 331),
            1 / 16,
            {"TEST": 23_834_568, "TRAIN": 27_161_264},
        ),
        Architecture(classification.resnet50, IMAGE, (2, 3, 224, 256), 1 / 16, {"TEST": 25_557_032 + 64}),
        Architecture(classification.densenet121, IMAGE, (2, 3, 64, 96), 1 / 16, {"TEST": 7_978_856}),
        Architecture(classification.mobilenet_v1, IMAGE, (2, 3, 96, 128), 1 / 8, {"TEST": 4_231_976}),
        Architecture(classification.mobilenet_v2, IMAGE, (2, 3, 96, 128), 1 / 8, {"TEST": 3_504_872}),
        Architecture(
            classification.shufflenet,
            IMAGE,
            (2, 3, 96, 128),
            1 / 4,
            {"TEST": 1_865_728},
            elsewhere={"DepthwiseConvolution": "a fork's name for groups of one channel"},
            unread='of type "DepthwiseConvolution"',
        ),
        Architecture(classification.squeezenet, IMAGE, (2, 3, 96, 131), 1 / 8, {"TEST": 1_248_424}),
        Architecture(dense.fcn8s, (1, 3, 500, 500), (2, 3, 40, 53), 1 / 16, {"TEST": "134M"}),
        Architecture(dense.unet, (1, 1, 572, 572), (2, 1, 188, 204), 1 / 16, {"TEST": 31_030_658}),
        Architecture(
            dense.segnet,
            (1, 3, 360, 480),
            (2, 3, 52, 70),
            1 / 8,
            {"TEST": "29.45M"},
            elsewhere={"BN": "a fork's", "Upsample": "a fork's, with a mask"},
            unread="UnknownField",
        ),
        Architecture(
            dense.pspnet50,
            (1, 3, 473, 473),
            (2, 3, 41, 89),
            1 / 16,
            elsewhere={"BN": "a fork's"},
            unread="UnknownField",
        ),
        Architecture(
            dense.flownet_s,
            (1, 3, 384, 512),
            (2, 3, 97, 131),
            1 / 8,
            {"TEST": "38.7M"},
            elsewhere={
                "Eltwise": "of one bottom, as FlowNet's fork allows",
                "Resample": "OpenCV aligns the corners of pixels, FlowNet their centres",
            },
            unread="inputs.size() >= 2",
        ),
        Architecture(
            detection.ssd300, (1, 3, 300, 300), (2, 3, 300, 332), 1 / 16, {"TEST": 26_285_486}, feeds={"label": _boxes}
        ),
        Architecture(
            detection.faster_rcnn,
            (1, 3, 224, 224),
            (2, 3, 128, 176),
            1 / 16,
            {"TEST": "137M"},
            elsewhere={"Python": "runs in pycaffe only"},
            uncompared=("Python",),
            unread='of type "Python"',
            feeds={
                "im_info": _image_info,
                "rpn_labels": _anchor_labels,
                "rpn_bbox_inside": _ones,
                "rpn_bbox_outside": _ones,
            },
        ),
        Architecture(
            detection.yolo_v2,
            (1, 3, 416, 416),
            (2, 3, 96, 160),
            1 / 16,
            {"TEST": 50_655_389},
            loss=False,
            elsewhere={"YoloDetectionOutput": "a fork's"},
            unread='of type "YoloDetectionOutput"',
        ),
        Architecture(
            other.captioner,
            (2, 3, 227, 227),
            (2, 3, 131, 163),
            1 / 8,
            elsewhere={"Embed": "OpenCV has none", "LSTM": "OpenCV's takes other blobs than Caffe's"},
            unread='of type "Embed"',
        ),
        Architecture(other.siamese, (1, 2, 28, 28), (3, 2, 28, 32), 1 / 5, {"TEST": 431_080 + 22}),
        Architecture(other.autoencoder, (1, 1, 28, 28), (3, 1, 22, 26), 1 / 5, {"TEST": 2_837_314}),
    )
}
"""By name. The figures are the papers', or those of the published weights: 64 more for ResNet-50, whose Caffe form has
a bias in conv1; a LeNet of 431,080 with two more outputs for the Siamese net."""
