"""The same inputs give the same bytes: under another hash seed, from another folder, in another process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from caffe_port import api
from caffe_port.formats import caffemodel

NET = """name: "n"
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: [2, 3, 6, 7] } } }
layer { name: "c/1" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "bn" type: "BatchNorm" bottom: "c" top: "c" }
layer { name: "s" type: "Scale" bottom: "c" top: "c" scale_param { bias_term: true } }
layer { name: "a" type: "Pooling" bottom: "c" top: "a" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "b" type: "LRN" bottom: "a" top: "b" }
layer { name: "z" type: "Concat" bottom: "a" bottom: "b" top: "z" }
layer { name: "ip" type: "InnerProduct" bottom: "z" top: "ip" inner_product_param { num_output: 5 } }
layer { name: "p" type: "Softmax" bottom: "ip" top: "p" }
layer { name: "q" type: "Sigmoid" bottom: "ip" top: "q" }
"""


def test_convert_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(NET)
    ported = api.port(tmp_path / "net.prototxt")
    caffemodel.write(tmp_path / "w.caffemodel", ported.definition.net, ported.net.blobs())
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    made = []
    for seed, folder, files in (
        ("0", tmp_path, ("net.prototxt", "w.caffemodel")),
        ("4711", tmp_path / "elsewhere" / "deep", (str(tmp_path / "net.prototxt"), "../../w.caffemodel")),
    ):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "SOURCE_DATE_EPOCH": "1234567890"}
        command = [sys.executable, "-m", "caffe_port", "convert", *files, "-o", str(tmp_path / f"out{seed}")]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        made.append({path.name: path.read_bytes() for path in sorted((tmp_path / f"out{seed}").iterdir())})
    assert list(made[0]) == ["model.py", "port.json", "weights.safetensors"]
    for name, content in made[0].items():
        assert content == made[1][name], name
    assert b"2009-02-13T23:31:30" in made[0]["port.json"]
    assert str(tmp_path).encode() not in b"".join(made[0].values()), "nothing tells of this machine's folders"


def test_a_caffemodel_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(NET)
    for name in ("a", "b"):
        ported = api.port(tmp_path / "net.prototxt", seed=3)
        caffemodel.write(tmp_path / name, ported.definition.net, ported.net.blobs())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
