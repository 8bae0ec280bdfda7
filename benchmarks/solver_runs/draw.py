"""Draws a solver, a net and its data, all small, from a seed alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import h5py
import lmdb
import numpy as np
from small_lmdb import write

from caffe_port.formats.caffemodel import blob_message
from caffe_port.formats.message import Message
from caffe_port.typing import Array, Shape

OLD_NUMBERS = {"SGD": 0, "Nesterov": 1, "AdaGrad": 2, "RMSProp": 3, "AdaDelta": 4, "Adam": 5}
RATES = {"SGD": 0.02, "Nesterov": 0.02, "AdaGrad": 0.01, "RMSProp": 0.002, "AdaDelta": 1.0, "Adam": 0.002}
POLICIES = {
    "fixed": "",
    "step": "stepsize: 4 gamma: 0.5",
    "exp": "gamma: 0.95",
    "inv": "gamma: 0.05 power: 0.75",
    "multistep": "gamma: 0.3 stepvalue: [3, 4, 11]",
    "poly": "power: 1.5",
    "sigmoid": "gamma: -0.3 stepsize: 6",
}
CLASSES = 4


class Drawn:
    """What was drawn, written to a folder.

    Attributes:
        kind: what is special about the net.
        type: of the solver.
        iterations, snapshot: max_iter, and the iteration of the snapshot from which both sides go on: by then, the data
            were read a whole number of times, because Caffe begins anew with the first record.
        suffix: of the snapshots.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng, self.numbers, self.folder = random.Random(seed), np.random.default_rng(seed), folder
        self.iter_size, self.snapshot = self.pick(1, 1, 2, 3), self.pick(5, 8)
        self.batch, self.test_batch = self.pick(3, 4, 5), self.pick(3, 4, 7)
        self.records = self.batch * self.iter_size * self.snapshot
        self.type = self.pick(*RATES, "SGD")
        self.iterations = self.pick(12, 15, 16, 20)
        self.suffix = self.pick("", "", ".h5")
        self.kind: str = self.pick(*KINDS)
        (folder / "theirs").mkdir(parents=True)
        head, rest = KINDS[self.kind](self)
        self._write(head, rest)

    def pick(self, *options: object) -> object:  # type: ignore[misc]
        return self.rng.choice(options)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    # -- the solver -------------------------------------------------------------------------------------------------

    def _write(self, head: Callable[[str, str, str], str], rest: str) -> None:
        """Writes net and solver: with one test net, with two of one file, with two of their own, or without."""
        train, net = head("train", "", ""), 'net: "net.prototxt"'
        form = self.pick("none", "alone", "one", "one", "stages", "files")
        interval = self.pick(3, 4, 5)
        text = train + head("test", "TEST", "") + rest
        tests = f"test_iter: {self.pick(2, 3)} test_interval: {interval}"
        if form in ("none", "alone"):
            tests = f"test_interval: {interval}" if form == "alone" else ""
        elif form == "stages":
            second = head("more", "TEST", 'stage: "b" min_level: 1')
            text = train + head("test", "TEST", 'stage: "a"') + second + rest
            tests = f"test_iter: [2, 3] test_interval: {interval} test_state {{ stage: 'a' }} "
            tests += "test_state { stage: 'b' level: 2 }"
        elif form == "files":
            text, tests = head("train", "-", "") + rest, f"test_iter: [3, 2] test_interval: {interval}"
            for name in ("test", "more"):
                (self.folder / f"{name}.prototxt").write_text(head(name, "-", "") + rest)
            net = 'train_net: "net.prototxt" test_net: "test.prototxt" test_net: "more.prototxt"'
        if form in ("none", "alone", "one") and self.chance(0.2):
            net = f"net_param {{ {text} }}"
        (self.folder / "net.prototxt").write_text(text)
        fields = [
            self.pick(
                f'type: "{self.type}"', f"solver_type: {self.type.upper()}", f"solver_type: {OLD_NUMBERS[self.type]}"
            ),
            f"base_lr: {RATES[self.type] * self.pick(0.5, 1, 2)}",
            self._momentum(),
            "delta: 1e-3" if self.type in ("Adam", "RMSProp", "AdaGrad") else "delta: 1e-5",
            self.pick("", "rms_decay: 0.9") if self.type == "RMSProp" else "",
            self._policy(),
            # in this fork, the decay also acts on BatchNorm's blobs
            self.pick("", "weight_decay: 0.0005", "weight_decay: 0.01") if self.kind != "batch norm" else "",
            self.pick("", "", 'regularization_type: "L1"'),
            self.pick("", "", f"clip_gradients: {self.pick(0.5, 1, 5)}"),
            f"iter_size: {self.iter_size}" if self.iter_size > 1 else "",
            self.pick("", f"average_loss: {self.pick(3, 5, 20)}"),
            f"max_iter: {self.iterations} snapshot: {self.snapshot} display: {self.pick(1, 1, 2, 3)}",
            f"snapshot_format: {self.pick('HDF5', '0')}" if self.suffix else "",
            self.pick("solver_mode: CPU", "solver_mode: 0") + ' snapshot_prefix: "theirs/small" random_seed: 7',
            self.pick(*[""] * 5, "debug_info: true", "snapshot_diff: true"),
            tests,
            self.pick("", "", "test_initialization: false") if tests else "",
            self.pick("", "", "test_compute_loss: true") if tests else "",
        ]
        self.rng.shuffle(fields)
        (self.folder / "solver.prototxt").write_text("\n".join([net, *filter(None, fields)]) + "\n")

    def _momentum(self) -> str:
        if self.type in ("AdaGrad", "RMSProp") or (self.type == "SGD" and self.chance(0.3)):
            return ""
        return f"momentum: {self.pick(0.9, 0.5, 0.95)}" + self.pick("", " momentum2: 0.99") * (self.type == "Adam")

    def _policy(self) -> str:
        name = self.pick(*POLICIES)
        return f'lr_policy: "{name}" {POLICIES[name]}'

    # -- data -------------------------------------------------------------------------------------------------------

    def count(self, name: str) -> int:
        return {"train": self.records, "test": 17, "more": 13}[name]

    def classes(self, name: str, *shape: int) -> Array:
        return self.numbers.integers(0, CLASSES, (self.count(name), *shape)).astype(np.float32)

    def normal(self, name: str, *shape: int) -> Array:
        return self.numbers.standard_normal((self.count(name), *shape)).astype(np.float32)

    def hdf5(self, **tops: Callable[[str], Array]) -> Callable[[str, str, str], str]:
        """An HDF5Data layer of two files, whose tops are drawn by these functions."""

        def head(name: str, phase: str, rule: str) -> str:
            arrays = {top: draw(name) for top, draw in tops.items()}
            cut = self.count(name) // 3
            for k, rows in enumerate((slice(0, cut), slice(cut, None))):
                with h5py.File(self.folder / f"{name}{k}.h5", "w") as file:
                    for top, array in arrays.items():
                        file[top] = array[rows]
            (self.folder / f"{name}.txt").write_text(f"{name}0.h5\n{name}1.h5\n")
            own = f'hdf5_data_param {{ source: "{name}.txt" batch_size: {self._batch(name)} }}'
            return self._source(name, "HDF5Data", list(tops), phase, rule, own)

        return head

    def database(self, images: Callable[[str], Array], labels: bool, transform: str) -> Callable[[str, str, str], str]:
        """A Data layer of an LMDB, of bytes or floats."""

        def head(name: str, phase: str, rule: str) -> str:
            array, numbers = images(name), self.classes(name)
            shape = dict(zip(("channels", "height", "width"), array.shape[1:], strict=True))
            with lmdb.open(str(self.folder / f"{name}_lmdb"), map_size=1 << 24) as env, env.begin(write=True) as txn:
                for k, (one, label) in enumerate(zip(array, numbers, strict=True)):
                    data = {"data": one.tobytes()} if one.dtype == np.uint8 else {"float_data": one.reshape(-1)}
                    txn.put(b"%08d" % k, write(Message("Datum", **shape, **data, label=int(label))))
            own = f'data_param {{ source: "{name}_lmdb" batch_size: {self._batch(name)} backend: LMDB }}'
            tops = ["data", "label"] if labels else ["data"]
            return self._source(name, "Data", tops, phase, rule, f"{transform} {own}")

        return head

    def _batch(self, name: str) -> int:
        return {"train": self.batch, "test": self.test_batch, "more": 3}[name]

    def _source(self, name: str, type_: str, tops: list[str], phase: str, rule: str, own: str) -> str:
        """In this fork, two nets that read one database in a layer of the same name wait forever: each has its own."""
        names = " ".join(f'top: "{top}"' for top in tops)
        include = "" if phase == "-" else f"include {{ phase: {phase or 'TRAIN'} {rule} }}"
        return f'layer {{ name: "{name}_data" type: "{type_}" {names} {include} {own} }}\n'

    def transform(self, shape: Shape) -> str:
        parts = [self.pick("scale: 0.00390625", "scale: 0.01")]
        parts += [self.pick("", "mean_value: 100", " ".join(f"mean_value: {90 + k}" for k in range(shape[0])))]
        if self.chance(0.3):
            mean = self.numbers.uniform(80, 140, (1, *shape)).astype(np.float32)
            (self.folder / "mean.binaryproto").write_bytes(write(blob_message(mean)))
            parts[1] = 'mean_file: "mean.binaryproto"'
        self.rng.shuffle(parts)
        return f"transform_param {{ {' '.join(parts)} }}"

    # -- layers -----------------------------------------------------------------------------------------------------

    def filler(self) -> str:
        kinds = ('type: "xavier"', 'type: "gaussian" std: 0.05', 'type: "msra"', 'type: "uniform" min: -0.1 max: 0.1')
        return f"weight_filler {{ {self.pick(*kinds)} }}"

    def factors(self) -> str:
        return self.pick(
            "",
            "param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }",
            "param { lr_mult: 0.5 } param { decay_mult: 3 }",
            "param { lr_mult: 0 } param { lr_mult: 1 }",
        )

    def linear(self, bottom: str, top: str, outputs: int, more: str = "") -> str:
        own = f"inner_product_param {{ num_output: {outputs} {self.filler()} {more} }}"
        return _layer("InnerProduct", (bottom,), top, f"{self.factors()} {own}")

    def conv(self, bottom: str, top: str, outputs: int, more: str = "") -> str:
        own = f"convolution_param {{ num_output: {outputs} kernel_size: 3 {more} {self.filler()} }}"
        return _layer("Convolution", (bottom,), top, f"{self.factors()} {own}")

    def act(self, blob: str) -> str:
        return _layer(self.pick("TanH", "Sigmoid", "ELU", "ReLU", "PReLU"), (blob,), blob, name=f"{blob}_act")

    def body(self) -> str:
        """Some layers from ``data`` to ``last``."""
        text, at = "", "data"
        if self.chance(0.7):
            text += self.conv(at, "conv", 6, self.pick("", "pad: 1", "stride: 2", "dilation: 2")) + self.act("conv")
            at = "conv"
            for layer, own in (
                ("Pooling", f"pooling_param {{ pool: {self.pick('MAX', 'AVE')} kernel_size: 2 stride: 2 }}"),
                ("LRN", "lrn_param { local_size: 3 alpha: 0.05 }"),
                ("Scale", "scale_param { bias_term: true }"),
                ("MVN", ""),
            ):
                if self.chance(0.35):
                    text, at = text + _layer(layer, (at,), layer.lower(), own), layer.lower()
        if self.chance(0.5):
            text, at = text + self.linear(at, "hidden", 12) + self.act("hidden"), "hidden"
        return text + _layer("Power", (at,), "last")


def _layer(type_: str, bottoms: tuple[str, ...], top: str, own: str = "", name: str = "") -> str:
    read = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
    return f'layer {{ name: "{name or top}" type: "{type_}" {read} top: "{top}" {own} }}\n'


IN_TEST = "include { phase: TEST }"
Net = tuple[Callable[[str, str, str], str], str]
"""What writes the data layer of "train", "test" or "more"; and the layers after it."""


def _pictures(d: Drawn) -> tuple[Callable[[str], Array], Shape]:
    shape = (d.pick(1, 3), d.pick(9, 10, 12), d.pick(8, 11, 13))
    floats = d.chance(0.3)

    def images(name: str) -> Array:
        made = d.numbers.integers(0, 256, (d.count(name), *shape))
        return made.astype(np.float32 if floats else np.uint8)

    return images, shape


def _classifier(d: Drawn, loss: str = "SoftmaxWithLoss", own: str = "") -> str:
    text = d.linear("last", "out", CLASSES) + _layer("Accuracy", ("out", "label"), "accuracy", IN_TEST)
    return text + _layer(loss, ("out", "label"), "loss", own)


def _database(d: Drawn) -> Net:
    images, shape = _pictures(d)
    hinge = d.chance(0.25)
    loss = ("HingeLoss", f"hinge_loss_param {{ norm: {d.pick('L1', 'L2')} }}") if hinge else ("SoftmaxWithLoss", "")
    return d.database(images, True, d.transform(shape)), d.body() + _classifier(d, *loss)


def _files(d: Drawn) -> Net:
    labels = d.pick((), (1,))
    head = d.hdf5(data=lambda name: d.normal(name, 3, 9, 8), label=lambda name: d.classes(name, *labels))
    return head, d.body() + _classifier(d)


def _autoencoder(d: Drawn) -> Net:
    images, shape = _pictures(d)
    size = int(np.prod(shape))
    text = d.linear("data", "code", 7) + d.act("code") + d.linear("code", "back", size)
    text += _layer("Flatten", ("data",), "flat") + _layer("SigmoidCrossEntropyLoss", ("back", "flat"), "entropy")
    text += _layer("Sigmoid", ("back",), "shown")
    text += _layer("EuclideanLoss", ("shown", "flat"), "error", f"loss_weight: {d.pick(0, 0.3)}")
    return d.database(images, False, "transform_param { scale: 0.00390625 }"), text


def _two_losses(d: Drawn) -> Net:
    head = d.hdf5(data=lambda name: d.normal(name, 3, 7, 8), label=d.classes, target=lambda name: d.normal(name, 2))
    text = d.body() + _classifier(d, own=f"loss_weight: {d.pick(1, 0.3, 2)}") + d.linear("last", "near", 2)
    return head, text + _layer("EuclideanLoss", ("near", "target"), "l2", f"loss_weight: {d.pick(1, 0.1)}")


def _siamese(d: Drawn) -> Net:
    head = d.hdf5(pair=lambda name: d.normal(name, 2, 6, 7), same=lambda name: d.classes(name) % 2)
    text = 'layer { name: "slice" type: "Slice" bottom: "pair" top: "a" top: "b" slice_param { slice_point: 1 } }\n'
    weight, rate = d.filler(), d.pick(1, 2, 0.5)
    for side in "ab":
        own = f'param {{ name: "w" lr_mult: {rate} }} param {{ name: "b" lr_mult: 2 }}'
        own += f" convolution_param {{ num_output: 5 kernel_size: 3 {weight} }}"
        text += _layer("Convolution", (side,), f"conv_{side}", own) + _layer("TanH", (f"conv_{side}",), f"tanh_{side}")
        own = 'param { name: "iw" } param { name: "ib" } inner_product_param { num_output: 2 weight_filler { '
        text += _layer("InnerProduct", (f"tanh_{side}",), f"ip_{side}", own + 'type: "xavier" } }')
    return head, text + _layer(
        "ContrastiveLoss", ("ip_a", "ip_b", "same"), "loss", f"contrastive_loss_param {{ margin: {d.pick(1, 2)} }}"
    )


def _segmentation(d: Drawn) -> Net:
    head = d.hdf5(data=lambda name: d.normal(name, 3, 9, 11), label=lambda name: d.classes(name, 1, 9, 11))
    text = d.conv("data", "conv", 5, "pad: 1 stride: 2") + d.act("conv")
    own = f"convolution_param {{ num_output: {CLASSES} kernel_size: 4 stride: 2 {d.filler()} }}"
    text += _layer("Deconvolution", ("conv",), "up", f"{d.factors()} {own}")
    text += _layer("Crop", ("up", "data"), "out", "crop_param { axis: 2 offset: 1 }")
    norm = d.pick("", "normalize: false", "normalization: BATCH_SIZE", "normalization: FULL")
    return head, text + _layer(
        "SoftmaxWithLoss", ("out", "label"), "loss", f"loss_param {{ ignore_label: {d.pick(0, 255)} {norm} }}"
    )


def _batch_norm(d: Drawn) -> Net:
    head = d.hdf5(data=lambda name: d.normal(name, 2, 7, 6), label=d.classes)
    own = d.pick("", "batch_norm_param { moving_average_fraction: 0.9 eps: 1e-3 }")
    text = d.conv("data", "conv", 5) + _layer("BatchNorm", ("conv",), "norm", own)
    text += _layer("Scale", ("norm",), "last", "scale_param { bias_term: true }") + d.act("last")
    return head, text + _classifier(d)


def _recurrent(d: Drawn) -> Net:
    def cont(name: str) -> Array:
        return (d.numbers.random((d.count(name), 2)) < 0.8).astype(np.float32)

    head = d.hdf5(data=lambda name: d.normal(name, 2, 5), cont=cont, label=lambda name: d.classes(name, 2))
    own = 'recurrent_param { num_output: 6 weight_filler { type: "uniform" min: -0.3 max: 0.3 } }'
    text = _layer(d.pick("LSTM", "RNN"), ("data", "cont"), "steps", own) + d.linear("steps", "out", CLASSES, "axis: 2")
    return head, text + _layer("SoftmaxWithLoss", ("out", "label"), "loss", "softmax_param { axis: 2 }")


def _words(d: Drawn) -> Net:
    head = d.hdf5(data=lambda name: d.classes(name, 4), label=d.classes)
    own = f"embed_param {{ num_output: 5 input_dim: {CLASSES} {d.filler()} }}"
    text = _layer("Embed", ("data",), "words", f"{d.factors()} {own}") + _layer("Power", ("words",), "last")
    return head, text + _classifier(d)


KINDS: dict[str, Callable[[Drawn], Net]] = {
    "database": _database,
    "files": _files,
    "autoencoder": _autoencoder,
    "two losses": _two_losses,
    "siamese": _siamese,
    "segmentation": _segmentation,
    "batch norm": _batch_norm,
    "recurrent": _recurrent,
    "words": _words,
}
