"""A small SSD, its solver, and images of colored boxes as a database or as files of PASCAL VOC."""

from __future__ import annotations

from pathlib import Path

import cv2
import lmdb
import numpy as np
from small_lmdb import write

from caffe_port.formats.message import Message
from caffe_port.typing import Array

HEIGHT, WIDTH = 40, 56
NAMES = ("background", "brick", "leaf")
COLORS = ((40, 60, 220), (70, 200, 50))  # BGR
Box = tuple[int, int, int, int, int, bool]
"""Label, left, top, right, bottom, difficult; in pixels."""


def scene(rng: np.random.Generator, height: int = HEIGHT, width: int = WIDTH) -> tuple[Array, list[Box]]:
    """An image uint8 (H, W, 3) with one or two boxes in different halves."""
    picture = rng.integers(90, 140, (height, width, 3)).astype(np.uint8)
    boxes = []
    for half in rng.permutation(2)[: rng.integers(1, 3)]:
        wide, tall = rng.integers(width // 4, width // 2 - 4), rng.integers(height // 3, height - 8)
        left = half * width // 2 + rng.integers(0, width // 2 - wide)
        top, label = rng.integers(0, height - tall), rng.integers(1, 3)
        shade = rng.integers(-25, 25, (tall, wide, 1))
        picture[top : top + tall, left : left + wide] = np.clip(np.array(COLORS[label - 1]) + shade, 0, 255)
        boxes.append((int(label), int(left), int(top), int(left + wide), int(top + tall), bool(rng.random() < 0.2)))
    return picture, boxes


def scenes(count: int, seed: int, **size: int) -> list[tuple[Array, list[Box]]]:
    rng = np.random.default_rng(seed)
    return [scene(rng, **size) for _ in range(count)]


def annotated(picture: Array, boxes: list[Box], encoding: str = "", bbox: bool = True) -> bytes:
    """An AnnotatedDatum. Raw images are stored as they are, others with the suffix's encoding."""
    height, width = picture.shape[:2]
    datum = {"channels": 3, "height": height, "width": width, "label": boxes[0][0] if boxes else 0}
    if encoding:
        datum |= {"data": cv2.imencode(encoding, picture)[1].tobytes(), "encoded": True}
    else:
        datum |= {"data": picture.transpose(2, 0, 1).tobytes()}
    groups = []
    for label in dict.fromkeys(box[0] for box in boxes):
        same = [box for box in boxes if box[0] == label]
        found = [
            Message(
                "Annotation",
                instance_id=k,
                bbox=Message(
                    "NormalizedBBox",
                    xmin=float(np.float32(left) / np.float32(width)),
                    ymin=float(np.float32(top) / np.float32(height)),
                    xmax=float(np.float32(right) / np.float32(width)),
                    ymax=float(np.float32(bottom) / np.float32(height)),
                    difficult=difficult,
                ),
            )
            for k, (_, left, top, right, bottom, difficult) in enumerate(same)
        ]
        groups.append(Message("AnnotationGroup", group_label=label, annotation=found))
    message = Message("AnnotatedDatum", datum=Message("Datum", **datum), annotation_group=groups)
    return write(message.copy(type="BBOX") if bbox else message)


def database(path: Path, images: list[tuple[Array, list[Box]]], encoding: str = "", bbox: bool = True) -> Path:
    """Writes an LMDB of AnnotatedDatum."""
    with lmdb.open(str(path), map_size=1 << 26) as env, env.begin(write=True) as txn:
        for k, (picture, boxes) in enumerate(images):
            txn.put(b"%08d_x" % k, annotated(picture, boxes, encoding, bbox))
    return path


def voc_folder(path: Path, images: list[tuple[Array, list[Box]]]) -> Path:
    """Writes images and annotations as PASCAL VOC has them."""
    for name in ("JPEGImages", "Annotations"):
        (path / name).mkdir(parents=True)
    for k, (picture, boxes) in enumerate(images):
        cv2.imwrite(str(path / "JPEGImages" / f"{k:06d}.png"), picture)
        objects = "".join(
            f"<object><name>{NAMES[label]}</name><difficult>{int(difficult)}</difficult><bndbox><xmin>{left}</xmin>"
            f"<ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
            for label, left, top, right, bottom, difficult in boxes
        )
        size = f"<size><width>{picture.shape[1]}</width><height>{picture.shape[0]}</height></size>"
        (path / "Annotations" / f"{k:06d}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    return path


DATA = """layer {{ name: "data" type: "AnnotatedData" top: "data" top: "label" include {{ phase: {phase} }}
  transform_param {{ mean_value: 104 mean_value: 117 mean_value: 123 scale: 0.0078125 {transform} }}
  data_param {{ source: "{source}" batch_size: {batch} backend: LMDB }}
  annotated_data_param {{ {samplers} }} }}
"""


def data(phase: str, source: str, batch: int, transform: str = "", samplers: str = "") -> str:
    """An AnnotatedData layer."""
    return DATA.format(phase=phase, source=source, batch=batch, transform=transform, samplers=samplers)


def conv(name: str, bottom: str, outputs: int, stride: int = 1) -> str:
    """A convolution that keeps the size, or halves it."""
    return f"""layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" convolution_param {{
  num_output: {outputs} kernel_size: 3 pad: 1 stride: {stride} weight_filler {{ type: "xavier" }} }} }}
"""


def _relu(name: str) -> str:
    return f'layer {{ name: "{name}/relu" type: "ReLU" bottom: "{name}" top: "{name}" }}\n'


def _flat(name: str) -> str:
    return f"""layer {{ name: "{name}_perm" type: "Permute" bottom: "{name}" top: "{name}_perm"
  permute_param {{ order: 0 order: 2 order: 3 order: 1 }} }}
layer {{ name: "{name}_flat" type: "Flatten" bottom: "{name}_perm" top: "{name}_flat" flatten_param {{ axis: 1 }} }}
"""


BODY = (
    conv("conv1", "data", 8, 2)
    + _relu("conv1")
    + conv("conv2", "conv1", 12, 2)
    + _relu("conv2")
    + conv("conv3", "conv2", 16, 2)
    + _relu("conv3")
    + conv("loc", "conv3", 12)
    + conv("conf", "conv3", 9)
    + _flat("loc")
    + _flat("conf")
    + """layer { name: "prior" type: "PriorBox" bottom: "conv3" bottom: "data" top: "prior" prior_box_param {
  min_size: 20 aspect_ratio: 2 flip: true clip: false variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 } }
"""
)
DETECTIONS = """layer { name: "scores" type: "Reshape" bottom: "conf_flat" top: "scores" reshape_param { shape {
  dim: 0 dim: -1 dim: 3 } } PHASE }
layer { name: "softmax" type: "Softmax" bottom: "scores" top: "softmax" softmax_param { axis: 2 } PHASE }
layer { name: "softmax_flat" type: "Flatten" bottom: "softmax" top: "softmax_flat" flatten_param { axis: 1 } PHASE }
layer { name: "detection_out" type: "DetectionOutput" bottom: "loc_flat" bottom: "softmax_flat" bottom: "prior"
  top: "detection_out" PHASE detection_output_param { num_classes: 3 share_location: true background_label_id: 0
  nms_param { nms_threshold: 0.45 top_k: 100 } code_type: CENTER_SIZE keep_top_k: 20 confidence_threshold: 0.01 } }
"""
EVALUATE = """layer { name: "detection_eval" type: "DetectionEvaluate" bottom: "detection_out" bottom: "label"
  top: "detection_eval" include { phase: TEST } detection_evaluate_param { num_classes: 3 background_label_id: 0
  overlap_threshold: 0.5 evaluate_difficult_gt: false } }
"""
LOSS = """layer { name: "mbox_loss" type: "MultiBoxLoss" bottom: "loc_flat" bottom: "conf_flat" bottom: "prior"
  bottom: "label" top: "mbox_loss" include { phase: TRAIN } propagate_down: true propagate_down: true
  propagate_down: false propagate_down: false loss_param { normalization: VALID } multibox_loss_param {
  loc_loss_type: SMOOTH_L1 conf_loss_type: SOFTMAX num_classes: 3 share_location: true match_type: PER_PREDICTION
  overlap_threshold: 0.5 use_difficult_gt: true neg_pos_ratio: 3 neg_overlap: 0.5 code_type: CENTER_SIZE
  mining_type: MAX_NEGATIVE } }
"""
IN_TEST = "include { phase: TEST }"
SOLVER = """net: "net.prototxt" base_lr: 0.02 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.0005 display: 1
max_iter: 20 test_iter: 3 test_interval: 10 test_initialization: true eval_type: "detection" ap_version: "11point"
snapshot: 20 snapshot_prefix: "theirs/ssd" solver_mode: CPU random_seed: 5
"""


def project(folder: Path, encoding: str = "", transform: str = "", samplers: str = "", solver: str = SOLVER) -> Path:
    """Writes databases, the net and its solver; returns the solver's path."""
    folder.mkdir(exist_ok=True)
    (folder / "theirs").mkdir()
    database(folder / "train_lmdb", scenes(24, 1), encoding)
    database(folder / "test_lmdb", scenes(11, 2), encoding)
    net = data("TRAIN", "train_lmdb", 8, transform, samplers) + data("TEST", "test_lmdb", 5)
    net += BODY + DETECTIONS.replace("PHASE", IN_TEST) + EVALUATE + LOSS
    (folder / "net.prototxt").write_text('name: "SmallSSD"\n' + net)
    (folder / "solver.prototxt").write_text(solver)
    return folder / "solver.prototxt"


def deploy() -> str:
    """The net to deploy."""
    head = f'name: "SmallSSD"\ninput: "data"\ninput_shape {{ dim: 1 dim: 3 dim: {HEIGHT} dim: {WIDTH} }}\n'
    return head + BODY + DETECTIONS.replace("PHASE", "")


def files(folder: Path) -> None:
    """The files that the page on training names, with a net that was trained for two iterations."""
    from caffe_port.training.train import TrainOptions, train

    solver = project(folder)
    train(solver, folder / "run", TrainOptions(max_iter=2))
    (folder / "run/last.caffemodel").rename(folder / "ssd.caffemodel")
    (folder / "net.prototxt").rename(folder / "test.prototxt")
    (folder / "deploy.prototxt").write_text(deploy())
    voc_folder(folder / "VOCdevkit/VOC2007", scenes(6, 2))
    names = enumerate(NAMES)
    (folder / "labelmap.prototxt").write_text("".join(f'item {{ name: "{n}" label: {k} }}\n' for k, n in names))
    pairs = [f"VOCdevkit/VOC2007/JPEGImages/{k:06d}.png VOCdevkit/VOC2007/Annotations/{k:06d}.xml\n" for k in range(4)]
    (folder / "list.txt").write_text("".join(pairs))


if __name__ == "__main__":
    files(Path())
