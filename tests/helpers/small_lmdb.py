"""A small database of images, written by LMDB itself."""

from __future__ import annotations

from pathlib import Path

import cv2
import lmdb
import numpy as np

from caffe_port.formats import wire
from caffe_port.formats.message import Message

RNG = np.random.default_rng(11)
PICTURES = RNG.integers(0, 256, (5, 3, 7, 6), dtype=np.uint8)
LABELS = [3, 1, 4, 1, 5]


def write(message: Message) -> bytes:
    return b"".join(bytes(chunk) for chunk in wire.serialize(message))


def datums(encoded: bool = False, floats: bool = False) -> list[bytes]:
    out = []
    for picture, label in zip(PICTURES, LABELS, strict=True):
        if encoded:
            data = cv2.imencode(".png", picture.transpose(1, 2, 0))[1].tobytes()
            out.append(write(Message("Datum", data=data, label=label, encoded=True)))
            continue
        shape = {"channels": 3, "height": 7, "width": 6, "label": label}
        content = {"float_data": picture.reshape(-1) / np.float32(7)} if floats else {"data": picture.tobytes()}
        out.append(write(Message("Datum", **shape, **content)))
    return out


def make_lmdb(folder: Path, values: list[bytes]) -> Path:
    path = folder / "db"
    with lmdb.open(str(path), map_size=1 << 24) as env, env.begin(write=True) as txn:
        for k, value in enumerate(values):
            txn.put(b"%08d" % k, value)
    return path
