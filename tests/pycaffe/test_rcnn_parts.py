"""What stands for the compiled parts of Faster R-CNN: by loops over pairs of boxes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from conftest import ROOT

from caffe_port.pycaffe.rcnn_parts import bbox_overlaps, cpu_nms, gpu_nms
from caffe_port.typing import Array


def boxes(count: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 20, (count, 2))
    return np.hstack([low, low + rng.integers(0, 20, (count, 2))]).astype(np.float64)


def overlap(a: Array, b: Array) -> float:
    width, height = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) + 1 for k in (0, 1))
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return float(common / (sum(areas) - common))


def test_overlaps() -> None:
    one, other = boxes(7, 0), boxes(5, 1)
    made = bbox_overlaps(one, other)
    assert made.shape == (7, 5)
    assert made.dtype == np.float64
    for i, j in itertools.product(range(7), range(5)):
        assert made[i, j] == overlap(one[i], other[j])
    assert bbox_overlaps(one, other[:0]).shape == (7, 0)


def test_what_remains() -> None:
    scores = np.random.default_rng(2).permutation(60)
    dets = np.hstack([boxes(60, 3), scores[:, None]]).astype(np.float32)
    kept: list[int] = []
    for i in scores.argsort()[::-1]:
        if all(overlap(dets[i], dets[k]) < 0.3 for k in kept):
            kept.append(i)
    assert 5 < len(kept) < 55
    assert cpu_nms(dets, 0.3) == gpu_nms(dets, 0.3, device_id=1) == kept
    assert cpu_nms(dets[:0], 0.3) == []


def test_an_overlap_that_is_the_threshold() -> None:
    dets = np.array([[0, 0, 9, 9, 0.9], [0, 0, 9, 4, 0.8]], np.float32)
    assert cpu_nms(dets, 0.5) == [0]
    assert gpu_nms(dets, 0.5) == [0, 1]


def test_they_are_found_where_nothing_is_compiled(tmp_path: Path) -> None:
    (tmp_path / "nms").mkdir()
    (tmp_path / "nms" / "__init__.py").write_text("")
    (tmp_path / "nms" / "gpu_nms.py").write_text("def gpu_nms():\n    return 'its own'\n")
    (tmp_path / "s.py").write_text(
        "import numpy as np\nfrom nms.cpu_nms import cpu_nms\nfrom nms.gpu_nms import gpu_nms\n"
        "print(cpu_nms(np.ones((1, 5), np.float32), 0.5) == [0], gpu_nms())\n"
        "try:\n    import nms.nothing\nexcept ImportError:\n    print('missing')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "caffe_port.pycaffe", "s.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "True its own\nmissing\n", done.stderr
    assert done.stderr == "note: nms.cpu_nms is not compiled; caffe-port's own functions stand for it\n"
