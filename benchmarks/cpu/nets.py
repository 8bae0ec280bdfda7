"""The nets that are timed: their files for a forward pass and for training, with weights drawn from their fillers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from architectures import classification, detection  # noqa: E402
from architectures.builder import Prototxt  # noqa: E402

import caffe_port  # noqa: E402
from caffe_port.definition.definition import Definition  # noqa: E402
from caffe_port.emit.caffe_files import write_caffe  # noqa: E402
from caffe_port.formats import prototxt  # noqa: E402

DATA = "data.h5"
BOXES = 8  # numbers of a box of SSD's labels


@dataclass(frozen=True)
class Net:
    """A net to be timed.

    Attributes:
        label: for the tables.
        shape: an image.
        batch, trained: the images of the large forward pass, and of an update.
        add: adds the layers to a Prototxt; None: ``file`` has them.
        file: a prototxt for training.
        width: the factor of all numbers of channels.
        classes: the number of labels.
        boxes: labels are boxes.
    """

    label: str
    shape: tuple[int, int, int]
    batch: int = 64
    trained: int = 64
    add: Callable[[Prototxt, tuple[int, ...]], None] | None = None
    file: str = ""
    width: float = 1
    classes: int = 1000
    boxes: bool = False


def lenet(net: Prototxt, shape: tuple[int, ...]) -> None:
    """LeNet as in Caffe's examples."""
    x = net.pool("pool1", net.conv("conv1", net.input("data", *shape), 20, 5), 2, 2)
    x = net.pool("pool2", net.conv("conv2", x, 50, 5), 2, 2)
    net.classified(net.fc("ip2", net.relu(net.fc("ip1", x, 500)), 10), shape[0])


CIFAR, IMAGE = (3, 32, 32), (3, 224, 224)
NETS = {
    "simplenet": Net("SimpleNet, 5.48 M", CIFAR, file="simplenet_cifar10.prototxt", classes=10),
    "slim": Net("SimpleNet slim, 310 K", CIFAR, file="simplenet_slim_310k_cifar10.prototxt", classes=10),
    "lenet": Net("LeNet", (1, 28, 28), add=lenet, classes=10),
    "googlenet": Net("GoogLeNet", IMAGE, trained=16, add=classification.googlenet),
    "vgg16": Net("VGG-16", IMAGE, batch=16, trained=4, add=classification.vgg16),
    "resnet50": Net("ResNet-50", IMAGE, batch=32, trained=8, add=classification.resnet50),
    "mobilenet": Net("MobileNet v1", IMAGE, trained=16, add=classification.mobilenet_v1),
    "ssd": Net("SSD300, a quarter of the channels", (3, 300, 300), 32, 8, detection.ssd300, width=0.25, boxes=True),
}


class Trained(Prototxt):
    """A net that reads its images and labels from an HDF5 file instead of having inputs."""

    def __init__(self, net: Net, folder: Path) -> None:
        super().__init__(net.label, net.width)
        self.net, self.folder = net, folder

    def input(self, name: str, *shape: int, phase: str | None = None) -> str:
        if "HDF5Data" not in str(self):
            self.lines.append(_data_layer(self.folder, self.net.trained, "rows" if self.net.boxes else "label"))
            if self.net.boxes:
                self.reshape("label", "rows", 1, 1, -1, BOXES)
        return name


def _data_layer(folder: Path, batch: int, label: str = "label") -> str:
    source = f'hdf5_data_param {{ source: "{folder}/data.txt" batch_size: {batch} }}'
    return f'layer {{ name: "hdf5" type: "HDF5Data" top: "data" top: "{label}" {source} }}'


def write(name: str, folder: Path) -> None:
    """Writes net.prototxt and net.caffemodel for a forward pass; solver.prototxt, train.prototxt and data.h5."""
    net = NETS[name]
    folder.mkdir(parents=True, exist_ok=True)
    shape = (1, *net.shape)
    if net.add is None:
        source = ROOT / "model_defs" / net.file
        ported = caffe_port.port(source, input_shapes={"data": shape})
        training = _training_of(source, folder, net.trained)
    else:
        text = Prototxt(net.label, net.width, deploy=True)
        net.add(text, shape)
        (folder / "deploy.prototxt").write_text(str(text))
        ported = caffe_port.port(folder / "deploy.prototxt")
        trained = Trained(net, folder)
        net.add(trained, (net.trained, *net.shape))
        training = str(trained)
    _seen_data(ported.net)
    write_caffe(ported.net, folder)
    (folder / "train.prototxt").write_text(training)
    (folder / "data.txt").write_text(f"{folder / DATA}\n")
    solver = f'net: "{folder}/train.prototxt" type: "SGD" momentum: 0.9 weight_decay: 0.0005 base_lr: 0.0001'
    (folder / "solver.prototxt").write_text(
        f'{solver} lr_policy: "fixed" max_iter: 1000000 display: 0 snapshot_after_train: false '
        f'snapshot_prefix: "{folder}/x" solver_mode: CPU random_seed: 1\n'
    )
    _write_data(net, folder)


def _training_of(source: Path, folder: Path, batch: int) -> str:
    """The prototxt of a net for training with its data layers replaced."""
    net = Definition.read(source).net
    for layer in [layer for layer in net.layer if layer.type == "Data"]:
        net.layer.remove(layer)
    return _data_layer(folder, batch) + "\n" + prototxt.dump(net)


def _write_data(net: Net, folder: Path) -> None:
    import h5py

    draw = np.random.default_rng(0)
    images = draw.standard_normal((net.trained, *net.shape), np.float32)
    labels: Any = draw.integers(0, net.classes, net.trained).astype(np.float32)
    if net.boxes:  # image, class, instance, x1, y1, x2, y2, difficult
        corner, size = draw.uniform(0, 0.5, (net.trained, 2)), draw.uniform(0.1, 0.5, (net.trained, 2))
        first = np.stack([np.arange(net.trained), draw.integers(1, 21, net.trained), np.zeros(net.trained)], 1)
        labels = np.concatenate([first, corner, corner + size, np.zeros((net.trained, 1))], 1).astype(np.float32)
    with h5py.File(folder / DATA, "w") as file:
        file["data"], file["rows" if net.boxes else "label"] = images, labels


def _seen_data(net: Any) -> None:
    """Gives BatchNorm statistics to normalize with, and lets SSD find few boxes, as a trained one does."""
    draw = torch.Generator().manual_seed(0)
    for name, layer in net.caffe_layers().items():
        if type(layer).__name__ == "BatchNorm":
            size = layer.get_blob("mean").shape
            layer.set_blob("mean", 0.1 * torch.randn(size, generator=draw))
            layer.set_blob("variance", 1 + torch.rand(size, generator=draw))
            layer.set_blob("scale_factor", torch.ones(1))
        elif name.endswith("_mbox_conf"):
            bias = layer.get_blob("bias").clone()
            bias[:: detection.CLASSES] += 8
            layer.set_blob("weight", 0.02 * layer.get_blob("weight"))
            layer.set_blob("bias", bias)
