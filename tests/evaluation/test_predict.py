"""predict and the preprocess of model.py: both make the same input of an image, and the answers fit it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caffe_port import api
from caffe_port.cli import main
from caffe_port.data import class_names
from caffe_port.data.image_files import expand
from caffe_port.data.prepare import prepare
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.emit import preprocess_source
from caffe_port.emit.convert import convert
from caffe_port.errors import CaffePortError
from caffe_port.evaluation.known import UNKNOWN, known_of
from caffe_port.evaluation.predict import Predictor, draw, lines

cv2 = pytest.importorskip("cv2")

COLORS = """
layer { name: "data" type: "Data" top: "data" top: "label" transform_param { %s }
  data_param { source: "db" batch_size: 1 } include { phase: TEST } }
layer { name: "pool" type: "Pooling" bottom: "data" top: "pool" pooling_param { pool: AVE global_pooling: true } }
layer { name: "flat" type: "Flatten" bottom: "pool" top: "flat" }
layer { name: "prob" type: "Softmax" bottom: "flat" top: "prob" }
"""
"""The most probable class is the brightest channel of the input."""
SHAPE = {"data": (1, 3, 6, 8)}


def net(tmp_path: Path, transform: str = "mean_value: 10 mean_value: 20 mean_value: 30 scale: 0.05") -> Path:
    path = tmp_path / "colors.prototxt"
    path.write_text(COLORS % transform)
    return path


def picture(path: Path, bgr: tuple[int, int, int], size: tuple[int, int] = (9, 14)) -> Path:
    cv2.imwrite(str(path), np.full((*size, 3), bgr, np.uint8))
    return path


# -- what is known ----------------------------------------------------------------------------------------------------


def test_the_transform_param_is_followed(tmp_path: Path) -> None:
    notes: list[str] = []
    found = known_of(api.port(net(tmp_path), input_shapes=SHAPE), notes)
    assert found is not None
    assert found.preprocessing == Preprocessing("BGR", (10.0, 20.0, 30.0), 0.05)
    assert found.origin == "transform_param of layer 'data'"
    assert notes == ["the channel order is not known: BGR is assumed, as convert_imageset writes it (--channel-order)"]


def test_options_replace_it(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("n00000001 blue\nn00000002 green\nn00000003 red\n")
    found = known_of(
        api.port(net(tmp_path), input_shapes=SHAPE),
        [],
        mean="1,2,3",
        channel_order="rgb",
        labels=tmp_path / "names.txt",
    )
    assert found is not None
    assert found.preprocessing == Preprocessing("RGB", (1.0, 2.0, 3.0), 0.05)
    assert found.classes == ("blue", "green", "red")


def test_nothing_is_known(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(
        'input: "x" input_shape { dim: 1 dim: 3 dim: 5 dim: 4 }\n' + COLORS.split("\n", 3)[3].replace('"data"', '"x"')
    )
    notes: list[str] = []
    assert known_of(api.port(path), notes) is None
    assert notes == [UNKNOWN]


def test_names_of_the_data_sets(shared: Path) -> None:
    import packed_cifar

    for name in ("cifar10", "cifar100"):
        assert packed_cifar.load(shared / "data" / name, "test").classes == class_names.OF_DATA_SET[name]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00a", b"a\0b"])
def test_labels_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(CaffePortError, match="expected one class name per line"):
        class_names.read(tmp_path / "labels.txt")


# -- preprocess in model.py -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["RGB", "BGR", "GRAY"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"mean": (10.5,), "scale": 1 / 256},
        {"mean": 7.25, "std": (61.5,)},
        {"mean": np.arange(11 * 13, dtype=np.float32).reshape(1, 11, 13) / 3},
    ],
)
def test_preprocess_does_what_predict_does(tmp_path: Path, order: str, change: dict[str, Any]) -> None:
    channels = 1 if order == "GRAY" else 3
    if isinstance(change.get("mean"), np.ndarray):
        change = {"mean": np.repeat(change["mean"], channels, 0)}
    plan = Preprocessing(order).changed(**change).for_input(channels, 6, 8)
    text, _ = preprocess_source.lines(plan, (1, channels, 6, 8), ())
    if plan.mean_image is not None:
        np.save(tmp_path / preprocess_source.MEAN, plan.mean_image)
    names: dict[str, Any] = {
        "torch": torch, "F": torch.nn.functional, "Any": Any, "Tensor": torch.Tensor, "numpy": np, "Path": Path,
        "__file__": str(tmp_path / "model.py"),
    }  # fmt: skip
    exec("\n".join(text), names)
    for size in ((6, 8), (23, 17), (5, 40)):
        rgb = np.random.default_rng(1).integers(0, 256, (*size, channels), dtype=np.uint8)
        smooth = cv2.blur(rgb, (5, 5)).reshape(rgb.shape)
        wanted = prepare(smooth.transpose(2, 0, 1), plan, "GRAY" if channels == 1 else "RGB")
        found = names["preprocess"](smooth)
        assert tuple(found.shape) == (1, *wanted.shape)
        factor = float(plan.scale / np.max(plan.std))
        assert np.abs(found[0].numpy() - wanted).max() <= 1.01 * factor  # OpenCV resizes with fixed point


def test_pil_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    ported = api.port(net(tmp_path), input_shapes=SHAPE)
    plan = Preprocessing("BGR", (10.0, 20.0, 30.0), 0.05)
    name = convert(ported, tmp_path / "out", preprocessing=plan, classes=("b", "g", "r")).class_name
    sys.path.insert(0, str(tmp_path / "out"))
    try:
        import model  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path / "out"))
        sys.modules.pop("model", None)
    red = image.open(picture(tmp_path / "red.png", (0, 0, 255)))
    x = model.preprocess(red)
    assert x[0, :, 0, 0].tolist() == pytest.approx([-0.5, -1.0, 11.25])
    assert model.CLASSES[int(getattr(model, name)()(x).argmax())] == "r"
    assert torch.equal(model.preprocess(np.asarray(red)), x)
    report = json.loads((tmp_path / "out/port.json").read_text())
    assert report["preprocessing"]["mean"] == [10.0, 20.0, 30.0]
    assert report["classes"] == ["b", "g", "r"]


# -- predict ----------------------------------------------------------------------------------------------------------


def run(line: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["caffe-port", *line])
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0), *capfd.readouterr()


def test_from_files_and_from_a_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    net(tmp_path)
    (tmp_path / "images").mkdir()
    for name, bgr in {"a_blue": (250, 5, 5), "b_red": (0, 9, 255)}.items():
        picture(tmp_path / f"images/{name}.png", bgr)
    (tmp_path / "images/notes.txt").write_text("not an image")
    (tmp_path / "names.txt").write_text("blue\ngreen\nred\n")
    shape = ["--input-shape", "data=1,3,6,8"]
    code, direct, _ = run(
        ["predict", "colors.prototxt", "images", "--labels", "names.txt", "--top", "1", *shape], capfd, monkeypatch
    )
    assert code == 0
    assert direct.split("\n") == ["images/a_blue.png", "  100.0 %  blue", "images/b_red.png", "  100.0 %  red", ""]
    code, _, error = run(
        ["convert", "colors.prototxt", "-o", "out", "--labels", "names.txt", *shape], capfd, monkeypatch
    )
    assert code == 0, error
    assert run(["predict", "out", "images", "--top", "1"], capfd, monkeypatch)[1] == direct
    code, out, _ = run(["predict", "out", "images/b_red.png", "--json"], capfd, monkeypatch)
    ((top, *_),) = [output["top"] for output in json.loads(out)[0]["outputs"]]
    assert (top["name"], top["label"]) == ("red", 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["colors.prototxt", "names.txt"], "names.txt: is not an image"),
        (["colors.prototxt", "missing.png"], "missing.png: cannot be read: No such file or directory"),
        (["colors.prototxt"], "give at least one image after the net"),
        (["colors.prototxt", "empty"], "empty: contains no images"),
        (["empty", "red.png"], "empty: is not a folder that convert wrote: it has no port.json"),
        (["colors.prototxt", "red.png", "--output", "prop"], "the net has no output 'prop'; it has prob. Did you mean"),
        (["colors.prototxt", "red.png", "--draw", "o.png"], "there is nothing to draw"),
        (["colors.prototxt", "red.png", "--mean", "1,2"], "mean has 2 values"),
        (["colors.prototxt", "red.png", "--labels", "no.txt"], "no.txt: cannot be read"),
    ],
)
def test_bad_input(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    net(tmp_path)
    picture(tmp_path / "red.png", (0, 0, 255))
    (tmp_path / "names.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    code, out, error = run(
        ["predict", *line, *(["--input-shape", "data=1,3,6,8"] * ("empty" not in line[0]))], capfd, monkeypatch
    )
    assert code == 2
    assert message in error
    assert not out.strip() or out.strip().endswith("%  1") or "red.png" in out


BOXES = """
input: "data" input_shape { dim: 1 dim: 3 dim: 20 dim: 30 }
layer { name: "loc" type: "Parameter" top: "loc" parameter_param { shape { dim: 1 dim: 8 } } }
layer { name: "conf" type: "DummyData" top: "conf" dummy_data_param { shape { dim: 1 dim: 4 }
  data_filler { type: "constant" value: 0.75 } } }
layer { name: "prior" type: "DummyData" top: "prior" dummy_data_param { shape { dim: 1 dim: 2 dim: 8 }
  data_filler { type: "constant" value: 0.5 } } }
layer { name: "quiet" type: "Silence" bottom: "data" }
layer { name: "det" type: "DetectionOutput" bottom: "loc" bottom: "conf" bottom: "prior" top: "det"
  detection_output_param { num_classes: 2 nms_param { nms_threshold: 0.45 } keep_top_k: 5 } }
"""


def test_boxes_and_their_picture(tmp_path: Path) -> None:
    path = tmp_path / "ssd.prototxt"
    path.write_text(BOXES)
    predictor = Predictor(api.port(path), mean="0", channel_order="BGR")
    found = predictor.predict(picture(tmp_path / "p.png", (9, 9, 9), (40, 50)))
    (output,) = found.outputs
    assert output.kind == "boxes"
    assert output.boxes[0].label == 1
    assert output.boxes[0].score == pytest.approx(0.75)
    assert output.boxes[0].corners == pytest.approx((25, 20, 25, 20))
    drawn = draw(found, predictor)
    assert drawn.shape == (40, 50, 3)
    assert (drawn != found.image).any()
    assert not (draw(found, predictor, least=0.9) != found.image).any()
    assert next(iter(lines(found, predictor, 5))) == "   75.0 %  1  (25, 20, 25, 20)"


MAPS = """
input: "data" input_shape { dim: 1 dim: 3 dim: 4 dim: 6 }
layer { name: "up" type: "%s" bottom: "data" top: "up" %s }
"""


def test_a_map_and_an_image(tmp_path: Path) -> None:
    path = tmp_path / "dense.prototxt"
    path.write_text(MAPS % ("Concat", 'bottom: "data" concat_param { axis: 1 }'))
    predictor = Predictor(api.port(path), mean="0", channel_order="BGR")
    found = predictor.predict(picture(tmp_path / "p.png", (1, 2, 200)))
    assert found.outputs[0].kind == "map"
    assert (found.outputs[0].values == 2).all()
    assert list(lines(found, predictor, 5)) == ["  100.0 %  2"]
    assert draw(found, predictor).shape == (4, 6, 3)
    path.write_text(MAPS % ("Power", "power_param { shift: 3 }"))
    predictor = Predictor(api.port(path), mean="0", channel_order="BGR", own_size=True)
    found = predictor.predict(tmp_path / "p.png")
    assert found.outputs[0].kind == "image"
    assert draw(found, predictor).shape == (9, 14, 3)  # its own size
    assert draw(found, predictor)[0, 0].tolist() == [4, 5, 203]


def test_an_image_is_drawn_in_the_units_of_the_input(tmp_path: Path) -> None:
    path = tmp_path / "same.prototxt"
    path.write_text(MAPS % ("Power", "power_param { shift: 0 }"))
    file = picture(tmp_path / "p.png", (10, 60, 200))
    image = cv2.imread(str(file))
    image[0] = (250, 130, 20)
    cv2.imwrite(str(file), image)
    for given in ({"mean": "100,50,20", "scale": 0.02}, {"scale": 1 / 255, "channel_order": "RGB"}, {"scale": 1.0}):
        predictor = Predictor(api.port(path), own_size=True, **({"channel_order": "BGR"} | given))
        assert (draw(predictor.predict(file), predictor) == image).all(), given


@pytest.mark.parametrize("channels", [1, 3])
def test_shares_are_drawn_from_black_to_white(tmp_path: Path, channels: int) -> None:
    """Values from 0 to 1 of a net that takes an image minus a mean: not the mean, with hardly a shade."""
    path = tmp_path / "shares.prototxt"
    cut = 'bottom: "data"' if channels == 3 else 'bottom: "one"'
    slice_ = 'layer { name: "s" type: "Slice" bottom: "data" top: "one" top: "two" slice_param { slice_point: 1 } }'
    path.write_text(
        f"""input: "data" input_shape {{ dim: 1 dim: 3 dim: 4 dim: 6 }}
        {slice_ if channels == 1 else ""}
        layer {{ name: "share" type: "Sigmoid" {cut} top: "share" }}
        {'layer { name: "gone" type: "Silence" bottom: "two" }' if channels == 1 else ""}"""
    )
    file = tmp_path / "p.png"
    image = np.zeros((9, 14, 3), np.uint8)
    image[:, 7:] = 255
    cv2.imwrite(str(file), image)
    predictor = Predictor(api.port(path), mean="104,117,123", channel_order="BGR", own_size=True)
    drawn = draw(predictor.predict(file), predictor)
    assert (drawn[:, :7] == 0).all()
    assert (drawn[:, 7:] == 255).all()


def test_what_stands_beside_probabilities_is_no_class(tmp_path: Path) -> None:
    """MTCNN's R-Net has two outputs: two probabilities, and four numbers that move a box."""
    text = (
        COLORS % "mean_value: 0"
        + """
layer { name: "box" type: "InnerProduct" bottom: "flat" top: "box"
  inner_product_param { num_output: 4 bias_filler { type: "constant" value: 2 } } }
"""
    )
    (tmp_path / "net.prototxt").write_text(text)
    predictor = Predictor(api.port(tmp_path / "net.prototxt", input_shapes=SHAPE))
    found = predictor.predict(picture(tmp_path / "p.png", (9, 9, 200)))
    assert {output.blob: output.kind for output in found.outputs} == {"prob": "classes", "box": "values"}
    assert "  box: 4 values, 2 to 2: 2, 2, 2, 2" in list(lines(found, predictor, 5))


def test_folders_are_sorted(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in expand([tmp_path, "x.bmp"])] == ["a.JPG", "b.png", "x.bmp"]
