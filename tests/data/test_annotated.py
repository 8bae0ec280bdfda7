"""Images with boxes: what the fork reads, and that boxes go with their images whatever happens to both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import HERE
from small_ssd import COLORS, HEIGHT, NAMES, WIDTH, data, database, scenes, voc_folder

from caffe_port.data import annotations, boxes, class_names, varied
from caffe_port.data.annotated import AnnotatedFeed, BoxTransform
from caffe_port.data.annotations import AnnotatedDatabase, AnnotatedFiles
from caffe_port.data.preprocessing import Preprocessing
from caffe_port.data.records import from_layer
from caffe_port.definition.definition import Definition
from caffe_port.errors import CaffePortError, ParseError, SpecError
from caffe_port.formats import prototxt
from caffe_port.formats.message import Message
from caffe_port.typing import Array

MEAN = np.float32([104, 117, 123])


def feed(
    folder: Path, transform: str = "", samplers: str = "", phase: str = "TEST", batch: int = 3, seed: int = 0
) -> AnnotatedFeed:
    path = folder / "net.prototxt"
    path.write_text(data(phase, "db", batch, transform, samplers))
    made = from_layer(Definition.read(path).spec(phase).layers[0], phase, seed=seed)
    assert isinstance(made, AnnotatedFeed)
    return made


def message(kind: str, text: str) -> Message:
    return prototxt.parse(text, kind)


def pixels(x: Array) -> Array:
    """(H, W, 3) as the images were before the mean and the scale of small_ssd.data."""
    return (np.asarray(x) / np.float32(0.0078125) + MEAN[:, None, None]).transpose(1, 2, 0)


# -- the fork -------------------------------------------------------------------------------------------------------


def test_the_batch_that_the_fork_made() -> None:
    case = HERE / "cases/annotated_data"
    layer = Definition.read(case / "annot.prototxt").spec("TEST").layers[0]
    made = from_layer(layer, "TEST")
    theirs = np.load(case / "annot.npz")
    assert made.shapes == ((4, 3, 24, 32), (1, 1, 1, 8))
    for ours, name in zip(made.batch(0), ("data", "label"), strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs[name])


# -- records --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["", ".png", ".jpg"])
def test_records_in_sequence(tmp_path: Path, encoding: str) -> None:
    images = scenes(5, 3)
    database(tmp_path / "db", images, encoding)
    made = feed(tmp_path)
    x, rows = made.batch(1)
    for item, index in enumerate((3, 4, 0)):
        picture, truth = images[index]
        most = 12 if encoding == ".jpg" else 1e-3
        assert np.abs(pixels(x[item]) - picture).mean() < most
        own = rows[0, 0][rows[0, 0, :, 0] == item].numpy()
        want = [[b[0], b[1] / WIDTH, b[2] / HEIGHT, b[3] / WIDTH, b[4] / HEIGHT, b[5]] for b in truth]
        if len({b[0] for b in truth}) == len(truth):  # else one group holds both
            np.testing.assert_allclose(own[:, [1, 3, 4, 5, 6, 7]], want, atol=1e-6)


def test_no_object_at_all_is_a_row_of_minus_one(tmp_path: Path) -> None:
    database(tmp_path / "db", [(picture, []) for picture, _ in scenes(3, 1)])
    assert feed(tmp_path).batch(0)[1].tolist() == [[[[-1.0] * 8]]]


@pytest.mark.parametrize(("classes", "said"), [((2, 0), "is none of them"), ((3, 1), "is its background")])
def test_classes_that_the_net_does_not_have(tmp_path: Path, classes: tuple[int, int], said: str) -> None:
    """The scenes have objects of the classes 1 and 2. SSD ends with "Found background label in the dataset"."""
    database(tmp_path / "db", scenes(12, 1))
    made = feed(tmp_path, batch=12)
    made.classes = 3, 0
    assert {1, 2} == set(made.batch(0)[1][0, 0, :, 1].tolist())
    made.classes = classes
    with pytest.raises(
        CaffePortError, match=rf"record \d+ has an object of class {2 if classes[0] == 2 else 1}.*{said}"
    ):
        made.batch(0)


def test_records_without_boxes_have_labels(tmp_path: Path) -> None:
    images = scenes(3, 1)
    database(tmp_path / "db", images, bbox=False)
    made = feed(tmp_path)
    assert made.shapes[1] == (3,)
    assert made.batch(0)[1].tolist() == [truth[0][0] for _, truth in images]
    path = tmp_path / "net.prototxt"
    path.write_text(data("TEST", "db", 3, "", "anno_type: BBOX"))
    assert from_layer(Definition.read(path).spec("TEST").layers[0], "TEST").shapes[1] == (1, 1, len(images[0][1]), 8)


def test_damaged_records(tmp_path: Path) -> None:
    picture, truth = scenes(1, 1)[0]
    database(tmp_path / "db", [(picture[:0], [])])
    with pytest.raises(ParseError, match=r"the image of shape \(3, 0, 56\) has 0 values"):
        feed(tmp_path)
    database(tmp_path / "other", [(picture, truth), (picture[:-1], truth)])
    path = tmp_path / "net.prototxt"
    path.write_text(data("TEST", "other", 2))
    made = from_layer(Definition.read(path).spec("TEST").layers[0], "TEST")
    with pytest.raises(CaffePortError, match=r"record 1 has shape \(3, 39, 56\), the first has \(3, 40, 56\)"):
        made.batch(0)


def test_the_same_numbers_every_time(tmp_path: Path) -> None:
    database(tmp_path / "db", scenes(5, 3), ".png")
    text = "mirror: true resize_param { height: 30 width: 44 interp_mode: LINEAR interp_mode: CUBIC }"
    first, again, other = (
        feed(tmp_path, text, "batch_sampler { sampler { min_scale: 0.4 } max_sample: 1 }", "TRAIN", seed=s)
        for s in (1, 1, 2)
    )
    for a, b, c in zip(first.batch(4), again.batch(4), other.batch(4), strict=True):
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)


# -- boxes go with their images -------------------------------------------------------------------------------------

VARIED = [
    "mirror: true",
    "crop_h: 33 crop_w: 41",
    "resize_param { height: 31 width: 77 }",
    "resize_param { height: 60 width: 50 resize_mode: FIT_LARGE_SIZE_AND_PAD pad_value: 120 }",
    "resize_param { height: 40 width: 90 resize_mode: FIT_LARGE_SIZE_AND_PAD pad_value: 120 }",
    "expand_param { prob: 1 max_expand_ratio: 3 } resize_param { height: 80 width: 112 }",
    """expand_param { prob: 1 max_expand_ratio: 2 } resize_param { height: 80 width: 70 } mirror: true
    emit_constraint { emit_type: CENTER } distort_param { brightness_prob: 0.5 brightness_delta: 12 }""",
]
SAMPLERS = """batch_sampler { use_original_image: true max_trials: 1 max_sample: 1 }
batch_sampler { sampler { min_scale: 0.5 max_scale: 1 min_aspect_ratio: 0.5 max_aspect_ratio: 2 }
  sample_constraint { min_jaccard_overlap: 0.2 } max_sample: 1 max_trials: 50 }"""


@pytest.mark.parametrize("encoding", ["", ".png"])
@pytest.mark.parametrize("text", VARIED)
def test_boxes_go_with_their_images(tmp_path: Path, text: str, encoding: str) -> None:
    """Whatever happens to an image, its boxes are where their color is, and nowhere else."""
    database(tmp_path / "db", scenes(12, 6), encoding)
    resized = "resize_param" in text
    made = feed(tmp_path, text, SAMPLERS if resized else "", "TRAIN", batch=12)
    x, rows = made.batch(1)
    checked = 0
    for item, picture in enumerate(map(pixels, x.numpy())):
        height, width = picture.shape[:2]
        nearest = np.stack([np.abs(picture - np.array(color)).sum(2) for color in COLORS])
        colored = np.where(nearest.min(0) < 110, nearest.argmin(0) + 1, 0)
        mask = np.zeros((height, width), int)
        for _, label, _, x1, y1, x2, y2, _ in rows[0, 0][rows[0, 0, :, 0] == item].tolist():
            left, right = round(x1 * width), round(x2 * width)
            top, bottom = round(y1 * height), round(y2 * height)
            mask[top:bottom, left:right] = label
            inner = colored[top + 2 : bottom - 2, left + 2 : right - 2]
            if inner.size > 20:
                assert (inner == label).mean() > 0.9, (item, text)
                checked += 1
        if "emit_constraint" not in text:
            assert ((colored > 0) & (mask == 0)).mean() < 0.12, (item, text)
    assert checked > 6


def test_the_small_side_fits(tmp_path: Path) -> None:
    """Images keep their aspect and have any size, one in a batch."""
    for k, size in enumerate(({"height": 40, "width": 56}, {"height": 60, "width": 33})):
        database(tmp_path / f"db{k}", scenes(2, k, **size))
    text = "resize_param { height: 30 width: 20 resize_mode: FIT_SMALL_SIZE } "
    made = feed_of(tmp_path / "db0", text)
    assert made.batch(0)[0].shape == (1, 3, 30, 42)
    assert feed_of(tmp_path / "db1", text).batch(1)[0].shape == (1, 3, 36, 20)
    wider = feed_of(
        tmp_path / "db0", text.replace("FIT_SMALL_SIZE }", "FIT_SMALL_SIZE height_scale: 20 width_scale: 30 }")
    )
    for plain, stretched in zip(made.batch(1)[1][0, 0], wider.batch(1)[1][0, 0], strict=True):
        factors = np.float32([42 / 30, 30 / 20, 42 / 30, 30 / 20])
        np.testing.assert_allclose(stretched[3:7], plain[3:7].numpy() * factors, rtol=1e-5)
    (tmp_path / "net.prototxt").write_text(data("TEST", "db0", 2, text))
    with pytest.raises(SpecError, match="needs batch_size 1"):
        from_layer(Definition.read(tmp_path / "net.prototxt").spec("TEST").layers[0], "TEST")


def feed_of(path: Path, transform: str) -> AnnotatedFeed:
    net = path.parent / "one.prototxt"
    net.write_text(data("TEST", path.name, 1, transform))
    made = from_layer(Definition.read(net).spec("TEST").layers[0], "TEST")
    assert isinstance(made, AnnotatedFeed)
    return made


def test_images_that_were_varied_are_compressed_again(tmp_path: Path) -> None:
    """SSD stores what it cropped as a JPEG file, even if nothing was cropped: `batch_sampler { }` of its test nets."""
    database(tmp_path / "db", scenes(3, 3), ".png")
    whole, again = (pixels(feed(tmp_path, "", text).batch(0)[0][0]) for text in ("", "batch_sampler { }"))
    difference = np.abs(whole - again)
    assert 0 < difference.mean() < 12
    np.testing.assert_allclose(again, varied.stored(np.rint(whole).astype(np.uint8)), atol=1e-3)


def test_mean_files(tmp_path: Path) -> None:
    """Of compressed images, the mean has the size of the result and is not mirrored; of raw ones, that of the image."""
    images = scenes(4, 3)
    mean = np.random.default_rng(0).integers(0, 255, (3, HEIGHT, WIDTH)).astype(np.float32)
    for encoding in ("", ".png"):
        database(tmp_path / f"db{encoding}", images, encoding)
        records = AnnotatedDatabase(tmp_path / f"db{encoding}")
        transform = BoxTransform(Preprocessing(None).changed(mean=mean), mirror=True)
        for index, (picture, _) in enumerate(images):
            x, _ = transform(records[index], True, np.random.default_rng(index))
            plain = picture.transpose(2, 0, 1).astype(np.float32)
            flipped = plain[:, :, ::-1] - mean if encoding else (plain - mean)[:, :, ::-1]
            assert np.array_equal(x, plain - mean) or np.array_equal(x, flipped)


# -- samplers -------------------------------------------------------------------------------------------------------

TRUE = boxes.objects([(1, 0, (0.1, 0.1, 0.5, 0.6), False), (2, 0, (0.6, 0.2, 0.9, 0.9), True)])


def area(box: Array) -> float:
    return max(float(box[2] - box[0]), 0) * max(float(box[3] - box[1]), 0)


def shared(a: Array, b: Array) -> float:
    return area(np.array([*np.maximum(a[:2], b[:2]), *np.minimum(a[2:], b[2:])]))


@pytest.mark.parametrize(
    ("constraint", "holds"),
    [
        ("min_jaccard_overlap: 0.3", lambda w, b: shared(w, b) / (area(w) + area(b) - shared(w, b)) >= 0.299),
        ("max_jaccard_overlap: 0.1", lambda w, b: shared(w, b) / (area(w) + area(b) - shared(w, b)) <= 0.101),
        ("min_sample_coverage: 0.4", lambda w, b: shared(w, b) / area(w) >= 0.399),
        ("min_object_coverage: 0.7 max_object_coverage: 0.9", lambda w, b: 0.699 <= shared(w, b) / area(b) <= 0.901),
    ],
)
def test_windows_fulfill_their_constraint(constraint: str, holds: Callable[[Array, Array], bool]) -> None:
    text = f"""sampler {{ min_scale: 0.3 max_scale: 0.9 min_aspect_ratio: 0.5 max_aspect_ratio: 2 }}
        sample_constraint {{ {constraint} }} max_sample: 4 max_trials: 200"""
    drawn = boxes.sampled(TRUE, [message("BatchSampler", text)], np.random.default_rng(0))
    assert len(drawn) == 4
    for window in drawn:
        assert 0 <= window.min() < window.max() <= 1 + 1e-6
        assert any(holds(window, box) for box in TRUE.corners)


def test_the_first_constraint_decides() -> None:
    """SSD's code forgets to take back what an object fulfilled before it failed the next constraint."""
    text = "sampler { min_scale: 0.5 } sample_constraint { min_jaccard_overlap: 0.1 min_object_coverage: %s }"
    drawn = [
        len(boxes.sampled(TRUE, [message("BatchSampler", text % least)], np.random.default_rng(0))) for least in (0, 1)
    ]
    assert drawn[0] == drawn[1] > 30


def test_scales_and_aspects_are_uniform() -> None:
    text = "sampler { min_scale: 0.2 max_scale: 0.6 min_aspect_ratio: 0.5 max_aspect_ratio: 2 } max_trials: 4000"
    drawn = np.stack(boxes.sampled(TRUE, [message("BatchSampler", text)], np.random.default_rng(0)))
    width, height = drawn[:, 2] - drawn[:, 0], drawn[:, 3] - drawn[:, 1]
    scales, aspects = np.sqrt(width * height), width / height
    for values, low, high in ((scales, 0.2, 0.6), (aspects, 0.5, 2)):
        expected = low + (high - low) * np.linspace(0.1, 0.9, 5)
        np.testing.assert_allclose(np.quantile(values, np.linspace(0.1, 0.9, 5)), expected, atol=0.03 * (high - low))
    places = drawn[:, 0] / (1 - width)
    np.testing.assert_allclose(np.quantile(places, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)


def test_emitted_boxes() -> None:
    window = np.float32([0.3, 0, 1, 1])
    for text, left in (("", [1, 2]), ("emit_type: CENTER", [1, 2]), ("emit_type: MIN_OVERLAP emit_overlap: 0.6", [2])):
        kept = boxes.seen(TRUE, window, message("EmitConstraint", text) if text else None)
        assert kept.labels.tolist() == left
    assert boxes.seen(TRUE, np.float32([0.35, 0, 1, 1]), message("EmitConstraint", "")).labels.tolist() == [2]
    kept = boxes.seen(TRUE, window, None)
    np.testing.assert_allclose(kept.corners[0], [0, 0.1, 0.2 / 0.7, 0.6], rtol=1e-6)
    assert kept.difficult.tolist() == [False, True]


# -- images ---------------------------------------------------------------------------------------------------------


def test_distortions() -> None:
    picture = np.random.default_rng(1).integers(40, 200, (9, 11, 3)).astype(np.uint8)
    rng = np.random.default_rng(0)
    shift = message("DistortionParameter", "brightness_prob: 1 brightness_delta: 32")
    moved = [varied.distorted(picture, shift, rng).astype(int) - picture for _ in range(60)]
    assert all(np.unique(one).size == 1 for one in moved)
    assert -32 <= min(one.min() for one in moved) < -20 < 20 < max(one.max() for one in moved) <= 32
    factor = message("DistortionParameter", "contrast_prob: 1 contrast_lower: 0.5 contrast_upper: 1.25")
    made = varied.distorted(picture, factor, rng)
    ratio = made.astype(float).sum() / picture.sum()
    np.testing.assert_allclose(made, np.rint(picture * ratio), atol=1)
    swapped = varied.distorted(picture, message("DistortionParameter", "random_order_prob: 1"), rng)
    assert np.array_equal(np.sort(swapped, 2), np.sort(picture, 2))
    gray = message("DistortionParameter", "saturation_prob: 1 saturation_lower: 0 saturation_upper: 0")
    made = varied.distorted(picture, gray, rng)
    assert np.ptp(made, 2).max() == 0
    assert np.array_equal(made[..., 0], picture.max(2))  # the value of HSV
    hue = message("DistortionParameter", "hue_prob: 1 hue_delta: 18")
    made = varied.distorted(picture, hue, rng)
    assert not np.array_equal(made, picture)
    np.testing.assert_allclose(made.max(2), picture.max(2), atol=1)
    assert np.array_equal(varied.distorted(picture, message("DistortionParameter", ""), rng), picture)


def test_noise() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (9, 11, 3)).astype(np.uint8)
    rng = np.random.default_rng(0)

    def noise(text: str) -> Array:
        return varied.spoiled(picture, message("NoiseParameter", text), rng)

    assert np.array_equal(noise("inverse: true"), 255 - picture)
    assert np.array_equal(noise("posterize: true"), picture // 64 * 64 + 32)
    assert np.ptp(noise("decolorize: true"), 2).max() == 0
    spotted = noise("saltpepper: true saltpepper_param { fraction: 0.2 value: 7 }")
    changed = (spotted != picture).any(2)
    assert 10 < changed.sum() <= 19
    assert (spotted[changed] == 7).all()
    for text in ("gauss_blur: true", "hist_eq: true", "clahe: true", "jpeg: 40", "erode: true", "convert_to_hsv: true"):
        assert noise(text).shape == picture.shape
        assert not np.array_equal(noise(text), picture)
    assert (noise("erode: true") <= picture).all()


def test_an_expanded_image() -> None:
    picture = np.full((10, 14, 3), 9, np.uint8)
    rng, ratios = np.random.default_rng(0), []
    for _ in range(300):
        made = varied.expanded(picture, message("ExpansionParameter", "prob: 0.5 max_expand_ratio: 4"), [1, 2, 3], rng)
        if made is None:
            continue
        larger, window = made
        ratios.append(larger.shape[1] / 14)
        rows, columns = np.nonzero((larger == 9).all(2))
        assert (rows.min(), columns.min(), len(rows)) == (round(-window[1] * 10), round(-window[0] * 14), 140)
        assert larger[(larger != 9).any(2)].reshape(-1, 3).tolist() == [[1, 2, 3]] * (larger[..., 0].size - 140)
        assert window[2] - window[0] == pytest.approx(larger.shape[1] / 14)
    assert 120 < len(ratios) < 180
    assert 2.3 < np.mean(ratios) < 2.7


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transform", "samplers", "said"),
    [
        ("", "batch_sampler { sampler { min_scale: 0 } }", "scales from 0 to 1 are not within"),
        ("", "batch_sampler { sampler { max_aspect_ratio: 0.5 } }", "aspect ratios from 1 to 0.5"),
        ("resize_param { width: 3 }", "", "resize_param: height 0 and width 3"),
        ("distort_param { hue_delta: -1 }", "", "hue_delta is -1"),
        ("distort_param { contrast_lower: 2 }", "", "contrast_upper is less than contrast_lower"),
        ("noise_param { convert_to_lab: true }", "", "convert_to_lab"),
        ("noise_param { saltpepper: true }", "", "saltpepper needs a saltpepper_param"),
        ("", "yolo_data_type: 1", "yolo_data_type belongs to a fork"),
        ("bgr2rgb: true", "", "bgr2rgb belongs to a fork"),
        ("resize_param { height: 9 width: 9 } resize_param { height: 8 width: 8 }", "", "several resize_param"),
        ("crop_size: 41", "", "crop 41x41 is larger than the image, 56x40"),
    ],
)
def test_what_cannot_be_followed_is_refused(tmp_path: Path, transform: str, samplers: str, said: str) -> None:
    database(tmp_path / "db", scenes(2, 1))
    with pytest.raises(CaffePortError, match=r"layer 'data' \(AnnotatedData\): .*" + said):
        feed(tmp_path, transform, samplers)


# -- files ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_voc_is_the_same_as_a_database(tmp_path: Path) -> None:
    images = scenes(6, 4)
    database(tmp_path / "db", images, ".png")
    voc_folder(tmp_path / "voc", images)
    labels = {name: label for label, name in enumerate(NAMES)}
    stored, files = AnnotatedDatabase(tmp_path / "db"), AnnotatedFiles.of(tmp_path / "voc", labels)
    for index in range(6):
        a, b = stored[index], files[index]
        assert np.array_equal(a.picture, b.picture)
        assert a.found is not None
        assert b.found is not None
        assert np.array_equal(a.found.rows(0), b.found.rows(0))
    (tmp_path / "voc/ImageSets/Main").mkdir(parents=True)
    (tmp_path / "voc/ImageSets/Main/test.txt").write_text("000004\n000001 1\n")
    chosen = AnnotatedFiles.of(tmp_path / "voc", labels)
    assert [path.stem for path, _ in chosen.pairs] == ["000004", "000001"]
    assert annotations.is_annotated(tmp_path / "voc")
    assert annotations.is_annotated(tmp_path / "db")
    assert not annotations.is_annotated(tmp_path)


def test_lists_of_images_and_annotations(tmp_path: Path) -> None:
    images = scenes(2, 4)
    voc_folder(tmp_path, images)
    (tmp_path / "list.txt").write_text("JPEGImages/000001.png Annotations/000001.txt\n")
    lines = [" ".join(map(str, box[:5])) for box in images[1][1]]
    (tmp_path / "Annotations/000001.txt").write_text("\n".join(lines))
    found = AnnotatedFiles.of(tmp_path / "list.txt", {})[0].found
    assert found is not None
    assert sorted(found.labels.tolist()) == sorted(box[0] for box in images[1][1])
    assert annotations.is_annotated(tmp_path / "list.txt")
    for text, said in (("a.png 1\n", "expected an image and an annotation"), ("\n", "lists no images")):
        (tmp_path / "list.txt").write_text(text)
        assert not annotations.is_annotated(tmp_path / "list.txt")
        with pytest.raises(CaffePortError, match=said):
            AnnotatedFiles.of(tmp_path / "list.txt", {})


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;&b;">]><annotation>&c;</annotation>'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "declares a document type"),
        ("<annotation>", "cannot be read as XML"),
        ("<annotation><object><name>rock</name></object></annotation>", r"'rock' is of no known class.*"),
        (
            "<annotation><object><name>leaf</name><bndbox><xmin>nan</xmin></bndbox></object></annotation>",
            "xmin is 'nan'",
        ),
        ("<annotation><object><name>leaf</name><bndbox/></object></annotation>", "xmin is None"),
    ],
)
def test_annotations_that_are_none(tmp_path: Path, text: str, said: str) -> None:
    voc_folder(tmp_path, scenes(1, 4))
    path = tmp_path / "Annotations/000000.xml"
    for written in (text.encode(), ("\ufeff" + text).encode("utf-16-le")):
        path.write_bytes(written)
        with pytest.raises(CaffePortError, match=said if written == text.encode() else "."):
            _ = AnnotatedFiles.of(tmp_path, {"leaf": 2})[0]


def test_label_maps(tmp_path: Path) -> None:
    path = tmp_path / "labelmap.prototxt"
    items = [("none_of_the_above", 0, "background"), ("n1", 1, "brick"), ("n3", 3, "leaf")]
    path.write_text(
        "# ours\n" + "".join(f'item {{ name: "{n}" label: {k} display_name: "{d}" }}\n' for n, k, d in items)
    )
    assert class_names.read(path) == ("background", "brick", "2", "leaf")
    assert class_names.label_map(path) == {
        "background": 0,
        "none_of_the_above": 0,
        "brick": 1,
        "n1": 1,
        "leaf": 3,
        "n3": 3,
    }
    path.write_text('item { name: "a" label: 99999999 }')
    with pytest.raises(ParseError, match=r"label 99999999 of 'a' is not in 0..65536"):
        class_names.read(path)
    path.write_text("brick\nleaf\n")
    assert class_names.label_map(path) == {"brick": 0, "leaf": 1}
    assert class_names.label_map(None)["aeroplane"] == 1
