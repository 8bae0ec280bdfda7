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
from caffe_port.formats import prototxt
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

OTHERWISE = {
    "priorbox_clip_default": ("prior_box_param {", "prior_box_param { clip: true"),
    **dict.fromkeys(
        ("proposal_default", "proposal_min_size", "proposal_one_image", "proposal_one_top", "proposal_stride"),
        ("proposal_param {", "proposal_param { scale_in_pixels: true"),
    ),
}
"""Nets that are read in another way than this fork reads them, and what makes them the fork's: see
docs/from-caffe-to-pytorch.md, "Where forks disagree"."""


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


def as_the_fork_reads_it(path: Path, folder: Path) -> Path:
    """The net as it is, or with what it leaves open written down."""
    if path.stem not in OTHERWISE:
        return path
    old, new = OTHERWISE[path.stem]
    (folder / path.name).write_text(path.read_text().replace(old, new))
    for suffix in (".npz", ".caffemodel"):
        if path.with_suffix(suffix).exists():
            (folder / path.name).with_suffix(suffix).write_bytes(path.with_suffix(suffix).read_bytes())
    return folder / path.name


@pytest.mark.parametrize("path", HERE_TOO, ids=lambda p: p.stem)
def test_the_cases(path: Path, tmp_path: Path) -> None:
    assert_as_the_fork(as_the_fork_reads_it(path, tmp_path))


@needs_shared
@pytest.mark.parametrize("path", goldens(), ids=lambda p: p.stem)
def test_as_the_fork(path: Path, tmp_path: Path) -> None:
    assert_as_the_fork(as_the_fork_reads_it(path, tmp_path))


@needs_shared
def test_the_goldens_are_here() -> None:
    assert len(goldens()) >= 70
    assert OTHERWISE.keys() <= {path.stem for path in goldens()}


def assert_as_the_fork(path: Path) -> None:
    """Every top, and every gradient of inputs and parameters."""
    case = golden_nets.load(path)
    inputs = [x.requires_grad_() for x in case.inputs]
    values: dict[str, torch.Tensor] = {}
    terms, weights = [], dict(case.net.plan.losses)
    compared = 0
    for turn, step in zip(case.net.steps(*inputs), case.net.plan.steps, strict=True):
        for k, (name, top) in enumerate(zip(turn.layer.tops, turn.tops, strict=True)):
            (key,) = (key for key in case.arrays if key.startswith("out:") and key.endswith(f":{turn.layer.name}:{k}"))
            golden_nets.assert_close(top.detach().numpy(), case.arrays[key], key)
            compared, values[name] = compared + 1, top
            if step.tops[k] in weights:
                terms.append((top * weights[step.tops[k]]).sum())
    assert compared
    gradients = {key: value for key, value in case.arrays.items() if key.startswith("grad")}
    for key, value in case.arrays.items():
        if key.startswith("topdiff:"):
            terms.append((values[key[8:]] * torch.from_numpy(value)).sum())
    if not gradients:
        return
    torch.stack([term for term in terms if term.requires_grad]).sum().backward()
    by_blob = dict(zip(case.net.plan.inputs, inputs, strict=True))
    for key, expected in gradients.items():
        kind, name, *index = key.split(":")
        if kind == "grad":
            actual = by_blob[name].grad
        else:
            module = case.net.caffe_layers()[name]
            actual = getattr(module, module.blob_names()[int(index[0])]).grad
        golden_nets.assert_close(
            np.zeros(expected.shape, np.float32) if actual is None else actual.numpy(), expected, key
        )


@needs_shared
@pytest.mark.parametrize("path", goldens(), ids=lambda p: p.stem)
def test_the_formulas_are_the_forks(path: Path, tmp_path: Path) -> None:
    """The reference in NumPy shares no code with the layers."""
    case, tops = golden_nets.case_of(as_the_fork_reads_it(path, tmp_path))
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
    layer, note = settles(prototxt.parse(text, "LayerParameter"))
    assert layer.proposal_param.scale_in_pixels is pixels
    assert f"write scale_in_pixels: {'false' if pixels else 'true'}" in note
    assert settles(layer) == (layer, "")


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
