"""Model archives as NVIDIA's DIGITS gives them: read as they are, and safely."""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from caffe_port import api
from caffe_port.cli import main
from caffe_port.definition import model_archive
from caffe_port.definition.definition import Definition
from caffe_port.errors import CaffePortError, ParseError
from caffe_port.evaluation.predict import Predictor
from caffe_port.formats import caffemodel, prototxt, wire
from caffe_port.storage import archive
from caffe_port.verification.verify import verify

# An all-in-one net, as DIGITS lets users write them, and what it makes of it
IP = """layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 4
  kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip" inner_product_param { num_output: 3
  weight_filler { type: "xavier" } } }
"""
LOSS = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" RULE }\n'
SOFTMAX = 'layer { name: "softmax" type: "Softmax" bottom: "ip" top: "softmax" RULE }\n'
ORIGINAL = (
    "".join(
        f'layer {{ name: "{stage}-data" type: "Data" top: "data" top: "label" include {{ stage: "{stage}" }} }}\n'
        for stage in ("train", "val")
    )
    + IP
    + LOSS.replace("RULE", 'exclude { stage: "deploy" }')
    + SOFTMAX.replace("RULE", 'include { stage: "deploy" }')
)
INPUT = 'input: "data"\ninput_shape { dim: 1 dim: 3 dim: 7 dim: 9 }\n'
DEPLOY = INPUT + IP + SOFTMAX.replace("RULE", "")
TRAIN_VAL = "".join(
    f'layer {{{{ name: "data" type: "Data" top: "data" top: "label" include {{{{ phase: {phase} }}}} '
    "transform_param {{ {} }} }}\n"
    for phase in ("TRAIN", "TEST")
)
MEAN = np.random.default_rng(0).uniform(80, 140, (3, 7, 9)).astype(np.float32)
LABELS = ("brick", "leaf", "sky")


def weights(seed: int) -> bytes:
    net = Definition.parse(prototxt.parse(DEPLOY, "NetParameter"), "x")
    made = api.build(net, seed=seed).net
    layers = [
        layer.copy(blobs=[caffemodel.blob_message(b) for b in made.blobs().get(layer.name, [])])
        for layer in net.net.layer
    ]
    return b"".join(bytes(chunk) for chunk in wire.serialize(net.net.copy(layer=layers)))


def mean_file(values: np.ndarray) -> bytes:
    return b"".join(bytes(chunk) for chunk in wire.serialize(caffemodel.blob_message(values[None])))


WEIGHTS = {5: weights(5), 30: weights(30), 120: weights(120)}


def info(**more: object) -> bytes:
    table = {
        "job id": "20170524-140310-8c0b",
        "name": "colors",
        "image dimensions": [7, 9, 3],
        "mean file": "mean.binaryproto",
        "snapshot file": "snapshot_iter_30.caffemodel",
        "solver file": "solver.prototxt",
        "train_val file": "train_val.prototxt",
        "deploy file": "deploy.prototxt",
        "labels file": "labels.txt",
        "framework": "caffe",
        "digits version": "5.1-dev",
        "image resize mode": "squash",
    }
    return json.dumps(table | more).encode()


def files(**changes: bytes | None) -> dict[str, bytes]:
    """The files of an archive by name; underscores of two in a keyword are a dot."""
    own: dict[str, bytes | None] = {
        "deploy.prototxt": DEPLOY.encode(),
        "original.prototxt": ORIGINAL.encode(),
        "train_val.prototxt": TRAIN_VAL.format(
            "mean_file: 'mean.binaryproto'", "mean_file: 'mean.binaryproto'"
        ).encode(),
        "solver.prototxt": b'net: "train_val.prototxt" base_lr: 0.1',
        "labels.txt": "\n".join(LABELS).encode() + b"\n\n",
        "mean.binaryproto": mean_file(MEAN),
        "snapshot_iter_30.caffemodel": WEIGHTS[30],
        "info.json": info(),
    }
    own |= {name.replace("__", "."): data for name, data in changes.items()}
    return {name: data for name, data in own.items() if data is not None}


def write(path: Path, contents: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            for name, data in contents.items():
                out.writestr(name, data)
        return path
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".tar": "w"}[path.suffix]
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def outputs(net: torch.nn.Module, seed: int = 3) -> torch.Tensor:
    return net(torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(seed)))


# -- what is found --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.tar.gz", "m.tgz", "m.tar", "m.tar.bz2", "m.zip"])
def test_an_archive_is_a_net(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, files())
    ported = api.port(path)
    (tmp_path / "deploy.prototxt").write_text(DEPLOY)
    (tmp_path / "w.caffemodel").write_bytes(WEIGHTS[30])
    assert torch.equal(outputs(ported.net), outputs(api.load(tmp_path / "deploy.prototxt", tmp_path / "w.caffemodel")))
    assert ported.net.outputs == ("softmax",)
    assert (ported.definition.path, ported.weights and ported.weights.path) == (f"{path}/deploy.prototxt", str(path))
    assert torch.equal(outputs(api.load(None, path)), outputs(ported.net))
    assert torch.equal(outputs(api.load(tmp_path / "deploy.prototxt", path)), outputs(ported.net))


def test_the_newest_snapshot(tmp_path: Path) -> None:
    three = {f"a/snapshot_iter_{k}.caffemodel": data for k, data in WEIGHTS.items()}
    contents = {name: data for name, data in files().items() if not name.endswith(".caffemodel")}
    chosen = api.load(write(tmp_path / "a.zip", contents | three))  # info.json names one
    contents.pop("info.json")
    newest = api.load(write(tmp_path / "b.tar.gz", contents | three))
    for net, k in ((chosen, 30), (newest, 120)):
        (tmp_path / "w.caffemodel").write_bytes(WEIGHTS[k])
        assert torch.equal(outputs(net), outputs(api.load(None, tmp_path / "w.caffemodel")))


@pytest.mark.parametrize(
    "changes",
    [
        {"deploy__prototxt": None},  # train_val has losses only
        {"deploy__prototxt": None, "train_val__prototxt": None},
        {"deploy__prototxt": None, "train_val__prototxt": None, "original__prototxt": None},
    ],
)
def test_without_a_deploy_file(tmp_path: Path, changes: dict[str, bytes | None]) -> None:
    own = files(**changes)
    if "train_val.prototxt" in own:
        own["train_val.prototxt"] = (
            TRAIN_VAL.format("crop_size: 7", "crop_size: 7") + IP + LOSS.replace("RULE", "")
        ).encode()
    path = write(tmp_path / "m.tar.gz", own)
    net = api.load(path, input_shapes={"data": (1, 3, 7, 9)})
    assert net.outputs == (("ip",) if "train_val.prototxt" in own else ("softmax",))
    assert torch.equal(net.ip.weight, api.load(write(tmp_path / "n.zip", files())).ip.weight)


def test_the_stage_deploy_is_found(tmp_path: Path) -> None:
    """Also outside archives; another stage, or the losses, are for those who ask."""
    path = tmp_path / "net.prototxt"
    path.write_text(ORIGINAL)
    shapes = {"input_shapes": {"data": (2, 3, 7, 9)}}
    ported = api.port(path, **shapes)  # type: ignore[arg-type]
    assert ported.net.outputs == ("softmax",)
    assert f"{path}: its stage 'deploy' is used (--stage chooses another)" in ported.notes
    assert api.load(path, stages=["val"], **shapes).outputs == ("ip",)  # type: ignore[arg-type]
    kept = api.load(path, keep_loss=True, input_shapes={"data": (2, 3, 7, 9), "label": (2,)})
    assert kept.outputs == ("loss",)


# -- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transform", "mean"),
    [
        ("mean_file: 'x/mean.binaryproto'", MEAN),
        ("mean_value: 104 mean_value: 117 mean_value: 123", np.float32([104, 117, 123])),
        ("crop_size: 5", None),
        (None, MEAN.mean((1, 2))),
    ],
)
def test_the_mean_is_that_of_train_val(tmp_path: Path, transform: str | None, mean: np.ndarray | None) -> None:
    text = None if transform is None else TRAIN_VAL.format("mean_value: 1", transform).encode()
    path = write(tmp_path / "m.zip", files(train_val__prototxt=text))
    picture = np.random.default_rng(1).integers(0, 255, (7, 9, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    predictor = Predictor(api.port(path))
    found = predictor.predict(tmp_path / "a.png").outputs[0]
    x = picture.transpose(2, 0, 1).astype(np.float32)
    x = x if mean is None else x - mean.reshape(3, *([1, 1] if mean.ndim == 1 else [7, 9]))
    np.testing.assert_allclose(found.values, predictor.net(torch.from_numpy(x)[None])[0].detach(), rtol=1e-5)
    assert [predictor.name(k) for k in range(3)] == list(LABELS)
    assert predictor.known.origin == str(path)
    told = any("the latter is assumed" in note for note in api.port(path).notes)
    assert told == (transform is None)


def test_what_digits_did_and_we_do_not(tmp_path: Path) -> None:
    own = files(info__json=info(**{"image resize mode": "half_crop"}), digits_python_layers__py=b"import os")
    notes = "\n".join(api.port(write(tmp_path / "m.zip", own)).notes)
    assert "DIGITS resized images by 'half_crop'; here they are squashed" in notes
    assert "digits_python_layers.py is not run" in notes


# -- commands -------------------------------------------------------------------------------------------------------


def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["caffe-port", *map(str, words)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0), *capfd.readouterr()


def test_every_command(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "20170524-140310-8c0b_epoch_30.0.tar.gz", files())
    cv2.imwrite(str(tmp_path / "a.png"), np.full((14, 18, 3), 90, np.uint8))
    code, out, _ = run(capfd, monkeypatch, "inspect", path)
    assert code == 0
    for said in (
        r"archive +8 files",
        r"weights +snapshot_iter_30.caffemodel",
        r"labels +3",
        r"made by +5.1-dev",
        "softmax",
    ):
        assert re.search(said, out), said
    assert run(capfd, monkeypatch, "verify", path)[0] == 0
    code, direct, _ = run(capfd, monkeypatch, "predict", path, tmp_path / "a.png")
    assert code == 0
    assert re.search(r"%  (brick|leaf|sky)", direct)
    assert run(capfd, monkeypatch, "convert", path, "-o", tmp_path / "out")[0] == 0
    report = json.loads((tmp_path / "out/port.json").read_text())
    assert report["classes"] == list(LABELS)
    assert report["preprocessing"]["channel_order"] == "BGR"
    assert [one["file"] for one in report["from"]] == [path.name]
    assert run(capfd, monkeypatch, "predict", tmp_path / "out", tmp_path / "a.png")[1] == direct
    blobs = run(capfd, monkeypatch, "convert", path, "-o", tmp_path / "blobs", "--format", "safetensors")
    assert blobs[0] == 0
    assert verify(path).passed


# -- hostile ones ---------------------------------------------------------------------------------------------------


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for entry, data in entries:
            entry.size = len(data)
            made.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


def test_names_lead_nowhere(tmp_path: Path) -> None:
    """A member's name is only compared, never joined to a folder."""
    inner = tmp_path / "inner"
    inner.mkdir()
    names = {f"../../{name}" if k % 2 else f"/etc/{name}": data for k, (name, data) in enumerate(files().items())}
    for name in ("m.tar", "m.zip"):
        net = api.load(write(inner / name, names))
        assert net.outputs == ("softmax",)
    assert sorted(one.name for one in tmp_path.rglob("*")) == ["inner", "m.tar", "m.zip"]


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.caffemodel").write_bytes(WEIGHTS[5])
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
        path = tmp_path / "m.tar"
        path.write_bytes(
            tar(
                (entry("snapshot_iter_1.caffemodel", kind, str(tmp_path / "secret.caffemodel")), b""),
                (entry("a"), b"1"),
            )
        )
        with pytest.raises(ParseError, match=r"is an archive without a \.caffemodel .* it holds a$"):
            api.load(path)
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as out:
        link = zipfile.ZipInfo("snapshot_iter_1.caffemodel")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        out.writestr(link, str(tmp_path / "secret.caffemodel"))
    with pytest.raises(ParseError, match=r"without a \.caffemodel"):
        api.load(tmp_path / "m.zip")


def test_bombs_are_refused(tmp_path: Path) -> None:
    zeros = bytes(80 << 20)
    for name in ("m.tar.gz", "m.tar.bz2", "m.zip"):
        path = write(tmp_path / name, {"snapshot_iter_1.caffemodel": zeros})
        assert path.stat().st_size < 1 << 20
        with pytest.raises(ParseError, match="more than 64 times its size"):
            api.load(path)
    lying = bytearray(write(tmp_path / "n.zip", {"snapshot_iter_1.caffemodel": zeros}).read_bytes())
    for at in (m.start() for m in re.finditer(re.escape(struct.pack("<I", len(zeros))), bytes(lying))):
        lying[at : at + 4] = struct.pack("<I", 1000)
    (tmp_path / "n.zip").write_bytes(lying)
    with pytest.raises(CaffePortError):
        api.load(tmp_path / "n.zip")


def test_too_many_members(tmp_path: Path) -> None:
    many = {f"{k}": b"" for k in range(10_001)}
    for name in ("m.tar", "m.zip"):
        with pytest.raises(ParseError, match=r"10,00\d members"):
            api.load(write(tmp_path / name, many))


@pytest.mark.parametrize("name", ["m.tar", "m.tar.gz", "m.zip"])
def test_every_truncation_is_one_error(tmp_path: Path, name: str) -> None:
    whole = write(tmp_path / name, files()).read_bytes()
    end = len(whole.rstrip(b"\0")) if name == "m.tar" else len(whole) - 1  # a tar ends in zeros
    for at in np.linspace(600, end, 40).astype(int):
        (tmp_path / name).write_bytes(whole[:at])
        with pytest.raises(CaffePortError):
            api.load(tmp_path / name)


@pytest.mark.parametrize("name", ["m.tar", "m.tar.gz", "m.zip"])
def test_any_byte_may_be_wrong(tmp_path: Path, name: str) -> None:
    whole, rng = write(tmp_path / name, files()).read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        wrong = bytearray(whole)
        for at in rng.integers(0, len(whole), rng.integers(1, 4)):
            wrong[at] = rng.integers(256)
        (tmp_path / name).write_bytes(wrong)
        try:
            model_archive.read(tmp_path / name)
        except CaffePortError:
            continue


def damaged(change: Callable[[bytearray], None]) -> bytes:
    data = bytearray(tar((entry("a.caffemodel"), WEIGHTS[5])))
    change(data)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (damaged(lambda d: d.__setitem__(slice(124, 136), b"77777777777\0")), "64 times|truncated|ends before"),
        (damaged(lambda d: d.__setitem__(slice(124, 136), b"\x80" + b"\xff" * 11)), "64 times|truncated|ends before"),
        (damaged(lambda d: d.__setitem__(slice(124, 136), b"zzzzzzzzzzz\0")), "is a damaged archive"),
        (damaged(lambda d: d.__setitem__(slice(156, 157), b"x")), "contains no|without a|damaged|checksum|header"),
        (tar((entry("labels.txt"), b"a"))[:512] + b"\1" * 1024, "is a damaged archive"),
        (tar((entry("snapshot_iter_1.caffemodel"), b"no weights at all")), r"m\.tar/snapshot_iter_1\.caffemodel: "),
        (
            tar((entry("a.caffemodel"), WEIGHTS[5]), (entry("deploy.prototxt"), b"layer {")),
            r"m\.tar/deploy\.prototxt:1",
        ),
        (tar((entry("a.caffemodel"), WEIGHTS[5]), (entry("info.json"), b"{")), r"m\.tar/info\.json: is not JSON"),
        (tar((entry("a.caffemodel"), WEIGHTS[5]), (entry("mean.binaryproto"), b"x")), r"m\.tar/mean\.binaryproto: "),
        (
            tar((entry("a.caffemodel"), WEIGHTS[5]), (entry("labels.txt"), b"\xff\xfe")),
            r"m\.tar/labels\.txt: is not text",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "m.tar").write_bytes(data)
    with pytest.raises(CaffePortError) as caught:
        api.load(tmp_path / "m.tar")
    assert re.search(said, str(caught.value)), str(caught.value)


def test_long_names(tmp_path: Path) -> None:
    """Of GNU's and of POSIX's formats."""
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        out = io.BytesIO()
        folder = "/".join(["folder" * 5] * (4 if form == tarfile.USTAR_FORMAT else 9))
        with tarfile.open(fileobj=out, mode="w", format=form) as made:
            for name, data in files().items():
                item = entry(f"{folder}/{name}")
                item.size = len(data)
                made.addfile(item, io.BytesIO(data))
        (tmp_path / "m.tar").write_bytes(out.getvalue())
        assert {one.base for one in archive.members(tmp_path / "m.tar")} == set(files())
        assert api.load(tmp_path / "m.tar").outputs == ("softmax",)


def test_other_files_are_no_archives(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(WEIGHTS[5]))
    with pytest.raises(ParseError, match=r"is a gzip archive, not a \.caffemodel\n  Unpack it first"):
        api.load(None, tmp_path / "a.gz")
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.zip")
    with pytest.raises(ParseError, match=r"is an archive without a \.caffemodel \(a PyTorch file\?\)"):
        api.load(None, tmp_path / "a.zip")
