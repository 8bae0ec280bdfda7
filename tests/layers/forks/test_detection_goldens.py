"""Detection against what a fork of Caffe itself computed, forward and backward: brocolli-caffe 9.0.2."""

from __future__ import annotations

from pathlib import Path

import golden_nets
import numpy as np
import pytest
import torch
from conftest import HERE, SHARED, needs_shared

import caffe_port
from caffe_port.definition.definition import Definition
from caffe_port.formats import dialects, prototxt
from caffe_port.formats.message import Message
from caffe_port.signatures.plugins import find
from caffe_port.verification.references.numpy_formulas import NumPyReference

CASES = HERE / "cases"
TYPES = {
    "Accuracy",
    "DetectionEvaluate",
    "DetectionOutput",
    "MultiBoxLoss",
    "PSROIPooling",
    "PriorBox",
    "Proposal",
    "ROIPooling",
    "SigmoidCrossEntropyLoss",
    "SmoothL1Loss",
}

DIALECT = dict.fromkeys(
    (
        "priorbox_clip_default",
        "proposal_default",
        "proposal_min_size",
        "proposal_one_image",
        "proposal_one_top",
        "proposal_stride",
    ),
    "brocolli",
)
"""Nets whose fork nothing in the file tells: what the user says. See "Forks that disagree" in
docs/from-caffe-to-pytorch.md."""


def goldens() -> list[Path]:
    """The fork's nets of these types, with the cases among them that lie here."""
    found = []
    for path in sorted((SHARED / "golden/forks").glob("*.prototxt")):
        if TYPES & {layer.type for layer in prototxt.read(path, "NetParameter").layer}:
            found.append(path)
    return found


HERE_TOO = [
    CASES / "multibox_extreme/multiboxloss_extreme_softmax.prototxt",
    CASES / "multibox_propagate_down/multiboxloss_loc_only.prototxt",
    CASES / "multibox_encoded/multiboxloss_encoded.prototxt",
    CASES / "multibox_unshared/multiboxloss_unshared.prototxt",
    CASES / "multibox_inside/multiboxloss_inside.prototxt",
    CASES / "multibox_logistic_no_mining/multiboxloss_no_mining_logistic.prototxt",
    CASES / "detectionoutput_no_nms/detectionoutput_no_nms.prototxt",
    CASES / "priorbox_clip_default/priorbox_clip_default.prototxt",
    CASES / "proposal_scale/proposal_one_image.prototxt",
]


@pytest.mark.parametrize("path", HERE_TOO, ids=lambda p: p.stem)
def test_the_cases(path: Path) -> None:
    golden_nets.assert_as_caffe(path, DIALECT.get(path.stem))


@needs_shared
@pytest.mark.parametrize("path", goldens(), ids=lambda p: p.stem)
def test_as_the_fork(path: Path) -> None:
    golden_nets.assert_as_caffe(path, DIALECT.get(path.stem))


@needs_shared
def test_the_goldens_are_here() -> None:
    assert len(goldens()) >= 70
    assert DIALECT.keys() <= {path.stem for path in goldens()}


@needs_shared
@pytest.mark.parametrize("path", goldens(), ids=lambda p: p.stem)
def test_the_formulas_are_the_forks(path: Path) -> None:
    """The reference in NumPy shares no code with the layers."""
    case, tops = golden_nets.case_of(path, DIALECT.get(path.stem))
    if path.stem.startswith("ssd_"):
        pytest.skip("a whole net: its layers have cases of their own")
    for made in NumPyReference().run(case):
        assert made.tops is not None, made.note
        for k, top in enumerate(made.tops):
            golden_nets.assert_close(np.asarray(top), tops[made.layer.name, k], made.layer.name)


# -- what forks read differently ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "note"),
    [
        ("priorbox_clip_default/priorbox_clip_default", "clip is not given and read as false"),
        ("proposal_scale/proposal_one_image", "scale 2, 4 is read in multiples of base_size"),
        ("detectionoutput_no_nms/detectionoutput_no_nms", "has no nms_param"),
    ],
)
def test_a_note_says_how_it_is_read(case: str, note: str) -> None:
    path = (CASES / case).with_suffix(".prototxt")
    (said,) = Definition.read(path).spec("TEST").notes
    assert note in said
    assert said.startswith(f"{path}:")


def test_the_dialect_decides() -> None:
    """As the user says, or as a layer tells that only one fork has."""
    text = (CASES / "priorbox_clip_default/priorbox_clip_default.prototxt").read_text()
    own = text + 'layer { name: "u" type: "Unsqueeze" bottom: "x" top: "u" unsqueeze_param { dim: 0 } }'
    for source, dialect, clip in ((text, "brocolli", True), (text, "caffe", False), (own, None, True)):
        dialects.assume(dialect)
        try:
            spec = Definition.parse(prototxt.parse(source, "NetParameter"), "net.prototxt").spec("TEST")
        finally:
            dialects.assume(None)
        assert spec.by_name["priorbox"].param.prior_box_param.clip is clip
        assert f"clip is not given and read as {str(clip).lower()}: " in spec.notes[0]


def test_ssd_suppresses_without_an_nms_param() -> None:
    dialects.assume("caffe")
    try:
        net = caffe_port.load(CASES / "detectionoutput_no_nms/detectionoutput_no_nms.prototxt")
    finally:
        dialects.assume(None)
    assert net.detectionoutput.nms_threshold == pytest.approx(0.3)


def test_several_layers_share_a_note(tmp_path: Path) -> None:
    net = tmp_path / "net.prototxt"
    box = 'type: "PriorBox" bottom: "x" bottom: "i" prior_box_param { min_size: 20 }'
    net.write_text(
        'input: "x" input_shape { dim: [1, 3, 4, 3] } input: "i" input_shape { dim: [1, 3, 40, 33] }\n'
        f'layer {{ name: "a" top: "a" {box} }} layer {{ name: "b" top: "b" {box} }}'
    )
    (said,) = Definition.read(net).spec("TEST").notes
    assert "layer 'a' (PriorBox) and 1 more: clip is not given" in said


def test_the_reading_is_written_down() -> None:
    """Whoever gets the net from us (Caffe, OpenCV, a caffemodel) reads it as we do."""
    spec = Definition.read(CASES / "priorbox_clip_default/priorbox_clip_default.prototxt").spec("TEST")
    p = spec.by_name["priorbox"].param.prior_box_param
    assert p.has("clip")
    assert not p.clip


@pytest.mark.parametrize(("scale", "pixels"), [("[8, 16, 32]", False), ("32", False), ("[64, 128, 256]", True)])
def test_sides_of_anchors_tell_whether_they_are_in_pixels(scale: str, pixels: bool) -> None:
    text = f'name: "l" type: "Proposal" proposal_param {{ ratio: 1 scale: {scale} }}'
    settles = find(Message("LayerParameter", type="Proposal")).settles
    message = prototxt.parse(text, "LayerParameter")
    layer, note = settles(message, "")
    assert layer.proposal_param.scale_in_pixels is pixels
    assert f"write scale_in_pixels: {'false' if pixels else 'true'}" in note
    assert settles(layer, "brocolli") == (layer, "")
    assert settles(message, "brocolli")[0].proposal_param.scale_in_pixels is True
    assert settles(message, "caffe")[0].proposal_param.scale_in_pixels is False


def test_the_number_of_a_binary_file_tells_whose_proposal_it_is() -> None:
    """Read alone: brocolli-caffe has proposal_param at 1000, where nobody else has it."""
    net = caffe_port.load(None, CASES / "proposal_scale/alone.caffemodel")
    assert net.plan.spec.notes == ()
    with np.load(CASES / "proposal_scale/proposal_one_image.npz") as file:
        given = {blob: torch.from_numpy(file[f"in:{blob}"]) for blob in ("score", "delta", "info")}
        want = [file[key] for key in file.files if ":proposal:" in key]
    rest = {b: torch.zeros(net.plan.shapes[p]) for b, p in net.plan.spec.inputs if b not in given}
    tops = [made for turn in net.steps(**given, **rest) if turn.layer.type == "Proposal" for made in turn.tops]
    for got, expected in zip(tops, want, strict=True):
        golden_nets.assert_close(got.numpy(), expected, "proposal")
    assert tops[0][0].tolist() == pytest.approx([0, 69.893, 50.940, 74, 55.942], abs=1e-3)


FOLLOWED = [
    ("multibox_unshared/multiboxloss_unshared", "code_type", "sample_size: 3 use_prior_for_nms: true code_type"),
    ("detectionoutput_no_nms/detectionoutput_no_nms", "num_classes", "input_width: 40 input_height: 30 num_classes"),
]


@pytest.mark.parametrize(("case", "old", "new"), FOLLOWED)
def test_fields_that_are_followed_refuse_no_net(case: str, old: str, new: str, tmp_path: Path) -> None:
    text = (CASES / case).with_suffix(".prototxt").read_text()
    assert old in text
    (tmp_path / "net.prototxt").write_text(text.replace(old, new, 1))
    caffe_port.load(tmp_path / "net.prototxt", keep_loss=True)


# -- other forks' priors ------------------------------------------------------------------------------------------


def test_denser_priors_are_twice_as_many() -> None:
    net = CASES / "denser_priors/denser.prototxt"
    assert Definition.read(net).spec("TEST").notes == ()
    ported = caffe_port.load(net)
    assert ported.plan.shapes["p", 0] == (1, 2, 240)
    report = caffe_port.verify(net, against="numpy")
    assert report.passed
    assert report.not_compared == 0


def test_sizes_below_a_pixel_are_cut() -> None:
    """SSD cuts min_size and max_size to integers."""
    report = caffe_port.verify(CASES / "ssd_fractional_min_size/net.prototxt", against="numpy")
    assert report.passed
    assert report.not_compared == 0
