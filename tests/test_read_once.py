"""A file is read once, whatever is done with it, and a net resolved once for each phase that a Net has.

A file is opened a second time for its checksum, which the report or port.json tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from reading import Reading, counted

import caffe_port
from caffe_port import api
from caffe_port.cli import cli
from caffe_port.definition.definition import Definition
from caffe_port.errors import CaffePortError, SpecError
from caffe_port.evaluation.evaluate import evaluate_files
from caffe_port.formats import caffemodel
from caffe_port.storage.files import sha256
from caffe_port.verification.dump import dump
from caffe_port.verification.references.trace import Trace
from caffe_port.verification.verify import verify

CASE = GOLDEN / "layers" / "net_residual"
PROTOTXT, WEIGHTS, TRACE = (CASE.with_suffix(suffix) for suffix in (".prototxt", ".caffemodel", ".npz"))
ONCE = {"TEST": 1, "TRAIN": 1}


def phases(seen: Reading, path: Path) -> Mapping[str, int]:
    """Phase -> how often the net of a file was resolved."""
    return {phase: count for (name, phase), count in seen.resolved.items() if name == path.name}


def run(*args: object) -> Reading:
    """What a command reads."""
    with counted() as seen:
        assert cli([str(arg) for arg in args], standalone_mode=False) in (0, None)
    return seen


@pytest.fixture
def model(tmp_path: Path) -> str:
    """Somebody's port of the net: what convert writes."""
    caffe_port.convert(caffe_port.port(PROTOTXT, WEIGHTS), tmp_path / "model")
    return f"{tmp_path}/model/model.py:NetResidual"


# -- the commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--against", TRACE)])
def test_verify(options: tuple[object, ...]) -> None:
    seen = run("verify", PROTOTXT, WEIGHTS, *options)
    assert seen.of(PROTOTXT, WEIGHTS) == {PROTOTXT.name: (2, 1), WEIGHTS.name: (2, 1)}
    assert phases(seen, PROTOTXT) == ONCE
    seen = run("verify", WEIGHTS, *options)
    assert seen.of(WEIGHTS) == {WEIGHTS.name: (2, 1)}
    assert phases(seen, WEIGHTS) == ONCE


def test_verify_of_somebodys_module(model: str) -> None:
    seen = run("verify", PROTOTXT, WEIGHTS, "--against", model)
    assert seen.of(PROTOTXT, WEIGHTS) == {PROTOTXT.name: (2, 1), WEIGHTS.name: (2, 1)}
    assert phases(seen, PROTOTXT) == ONCE


def test_dump_and_convert(tmp_path: Path) -> None:
    for command in (
        ("dump", PROTOTXT, WEIGHTS, "-o", tmp_path / "t.npz"),
        ("convert", PROTOTXT, WEIGHTS, "-o", tmp_path / "out", "--format", "torch", "--format", "safetensors"),
    ):
        seen = run(*command)
        assert seen.of(PROTOTXT, WEIGHTS) == {PROTOTXT.name: (2, 1), WEIGHTS.name: (2, 1)}
        assert phases(seen, PROTOTXT) == ONCE
    seen = run("convert", PROTOTXT, WEIGHTS, "-o", tmp_path / "blobs", "--format", "safetensors")
    assert seen.of(PROTOTXT, WEIGHTS) == {PROTOTXT.name: (1, 1), WEIGHTS.name: (1, 1)}
    assert not seen.resolved


def test_demo(tmp_path: Path) -> None:
    seen = run("demo", "-o", tmp_path / "demo")
    weights = Path("simplenet_slim_300k_cifar10.caffemodel")
    assert seen.of(weights) == {weights.name: (2, 1)}


@pytest.fixture
def classifier(tmp_path: Path) -> tuple[Path, Path, Path]:
    """(prototxt, weights, pictures) of a net that sorts pictures of 3 x 4 x 5 into six classes."""
    prototxt, weights, pictures = tmp_path / "net.prototxt", tmp_path / "net.caffemodel", tmp_path / "set.npz"
    prototxt.write_text(
        'layer { name: "data" type: "Data" top: "data" top: "label" data_param { source: "x" batch_size: 2 } }\n'
        'layer { name: "extra" type: "Power" bottom: "data" top: "data" power_param { scale: -1 } '
        'include { stage: "negative" } }\n'
        'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 6 '
        'weight_filler { type: "gaussian" std: 1 } } }\n'
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" }\n'
    )
    ported = caffe_port.port(prototxt, input_shapes={"data": (2, 3, 4, 5)})
    caffemodel.write(weights, ported.definition.net, ported.net.blobs())
    x = np.random.default_rng(1).integers(0, 256, (7, 3, 4, 5), dtype=np.uint8)
    np.savez(pictures, x_train=x, y_train=np.arange(7) % 6, x_test=x, y_test=np.arange(7) % 6)
    return prototxt, weights, pictures


def test_evaluate(classifier: tuple[Path, Path, Path]) -> None:
    prototxt, weights, pictures = classifier
    seen = run("evaluate", prototxt, weights, "--data", pictures)
    assert seen.of(prototxt, weights) == {
        prototxt.name: (1, 1),
        weights.name: (1, 1),
    }  # no entry of this size: no checksum
    assert phases(seen, prototxt) == ONCE
    seen = run("evaluate", weights, "--data", pictures)
    assert seen.of(weights) == {weights.name: (1, 1)}
    assert phases(seen, weights) == ONCE


# -- what was read, in the place of files ---------------------------------------------------------------------------


def test_nothing_is_read_for_what_was_read() -> None:
    ported = caffe_port.port(PROTOTXT, WEIGHTS)
    with counted() as seen:
        again = caffe_port.port(ported)
        other = caffe_port.port(ported.definition, ported.weights, keep_loss=True)
        net = caffe_port.load(None, ported.weights)
    assert not seen.opened
    assert not seen.parsed
    for one in (again.net, other.net, net):
        assert one is not ported.net
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), ported.net.parameters(), strict=True))


def test_a_definition_with_other_weights(tmp_path: Path) -> None:
    ported = caffe_port.port(PROTOTXT, WEIGHTS)
    blobs = {name: [2 * blob for blob in blobs] for name, blobs in ported.net.blobs().items()}
    caffemodel.write(tmp_path / "w.caffemodel", ported.definition.net, blobs)
    other = caffe_port.port(ported, tmp_path / "w.caffemodel")
    assert other.definition is ported.definition
    assert torch.equal(other.net.c2.weight, 2 * ported.net.c2.weight)  # type: ignore[arg-type, operator]


def test_verify_takes_a_net_as_it_stands() -> None:
    ported = caffe_port.port(PROTOTXT, WEIGHTS)
    wanted = verify(PROTOTXT, WEIGHTS)
    with counted() as seen:
        assert verify(ported) == wanted
        assert verify(ported, against=TRACE).passed
    assert seen.of(PROTOTXT, WEIGHTS) == {PROTOTXT.name: (1, 0), WEIGHTS.name: (1, 0)}, "checksums, once"
    assert not seen.resolved
    with torch.no_grad():
        ported.net.c2.weight[1, 2, 0, 1] += 0.01  # type: ignore[index, operator]
    report = verify(ported)
    assert [row.layer for row in report.broken] == ["c2"]
    assert verify(ported, ported.weights).passed, "other weights make another Net"


def test_dump_and_parity_of_a_ported(tmp_path: Path, model: str) -> None:
    ported = caffe_port.port(PROTOTXT, WEIGHTS)
    trace = dump(tmp_path / "t.npz", ported, by="numpy")
    assert set(trace.tops) == set(dump(tmp_path / "u.npz", PROTOTXT, WEIGHTS, by="numpy").tops)
    assert verify(ported, against=model).passed
    caffe_port.assert_parity(ported.net, ported)


@pytest.mark.parametrize("backward", [False, True])
def test_verify_leaves_the_net_as_it_was(backward: bool) -> None:
    """In TRAIN, BatchNorm's blobs change with every pass; gradients are left by a backward pass."""
    case = GOLDEN / "layers" / "batchnorm_scale_inplace_train"
    ported = caffe_port.port(case.with_suffix(".prototxt"), case.with_suffix(".caffemodel"), keep_loss=True)
    before = {name: value.clone() for name, value in ported.net.state_dict().items()}
    for training in (False, True):
        ported.net.train(training)
        report = verify(ported, against=case.with_suffix(".npz"), backward=backward)
        assert (report.passed, report.phase) == (True, "TRAIN")
        assert ported.net.training == training
        assert all(torch.equal(value, before[name]) for name, value in ported.net.state_dict().items())
        assert all(parameter.grad is None for parameter in ported.net.parameters())


def test_a_trace_with_labels_or_without(golden: Path) -> None:
    """Losses are compared where the trace holds what they need, and the net is resolved once in either case."""
    net = golden / "layers/softmaxwithloss_default.prototxt"  # nothing but a loss
    trace = Trace.load(net.with_suffix(".npz"))
    assert verify(net, against=trace).compared == 1
    with pytest.raises(SpecError, match="has no layers without the losses"):
        verify(net, against=Trace(trace.tops, dict(list(trace.inputs.items())[:1])))


@pytest.mark.parametrize(
    ("made", "options", "says"),
    [
        ({"share": True}, {}, "was ported with share=True, which is for convert only"),
        ({}, {"stages": ("a",)}, "pass level and stages to caffe_port.port"),
        (
            {},
            {"input_shapes": {"x": (3, 3, 9, 7)}},
            r"was ported for input 'x' of shape .*\n.*caffe_port.port\(ported, ",
        ),
        ({}, {"input": np.zeros((1, 3, 9, 7), np.float32)}, r"was ported for input 'x' of shape"),
        ({}, {"input_shapes": {"y": (1,)}}, r"has no input 'y'; its inputs are x\."),
    ],
)
def test_what_a_ported_net_is_not(made: dict[str, Any], options: dict[str, Any], says: str) -> None:
    with pytest.raises(CaffePortError, match=says):
        verify(caffe_port.port(PROTOTXT, WEIGHTS, **made), **options)


def test_losses_of_a_ported_net(classifier: tuple[Path, Path, Path]) -> None:
    shapes = {"data": (2, 3, 4, 5)}
    with pytest.raises(CaffePortError, match="was ported without its losses\n  Port it with keep_loss=True"):
        verify(caffe_port.port(*classifier[:2], input_shapes=shapes), keep_loss=True)
    report = verify(caffe_port.port(*classifier[:2], input_shapes=shapes), against="numpy")
    assert any("that needs labels was left out (loss)" in note for note in report.notes)
    kept = caffe_port.port(*classifier[:2], input_shapes=shapes, keep_loss=True)
    labels = {"label": np.zeros(2, np.float32)}
    assert "loss" in [row.layer for row in verify(kept, against="numpy", keep_loss=True, input=labels).rows]


def test_a_phase_that_cannot_be_built_is_not_compared(tmp_path: Path) -> None:
    net = tmp_path / "net.prototxt"
    net.write_text(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }\n'
        'layer { name: "r" type: "ReLU" bottom: "x" top: "y" }\n'
        'layer { name: "odd" type: "Nonsense" bottom: "y" top: "z" include { phase: TRAIN } }\n'
    )
    x = np.ones((2, 3), np.float32)
    trace = Trace({("r", 0): x}, {"x": x}, "TRAIN")
    for given in (net, caffe_port.port(net)):
        with pytest.raises(SpecError, match="has no phase TRAIN that can be compared\n  phase TRAIN cannot be built"):
            verify(given, against=trace)


def test_evaluate_takes_a_net_as_it_stands(classifier: tuple[Path, Path, Path]) -> None:
    prototxt, weights, pictures = classifier
    wanted = evaluate_files(weights, prototxt, data=pictures).result
    ported = caffe_port.port(prototxt, weights, input_shapes={"data": (2, 3, 4, 5)})
    with counted() as seen:
        assert np.array_equal(evaluate_files(ported, data=pictures).result.confusion, wanted.confusion)
    assert seen.of(prototxt, weights) == {prototxt.name: (0, 0), weights.name: (0, 0)}
    assert not seen.resolved
    with pytest.raises(CaffePortError, match="is already ported"):
        evaluate_files(ported, prototxt, data=pictures)
    small = caffe_port.port(prototxt, input_shapes={"data": (2, 3, 5, 4)})
    with pytest.raises(
        CaffePortError, match=r"has shape \(2, 3, 5, 4\), but the preprocessed images of .* have \(3, 4, 5\)\n.*Port"
    ):
        evaluate_files(small, data=pictures)


def test_evaluate_obeys_the_options_of_the_net(classifier: tuple[Path, Path, Path]) -> None:
    """A stage of this net turns its scores round; a shape that the pictures do not have is refused."""
    prototxt, weights, pictures = classifier
    plain = evaluate_files(weights, prototxt, data=pictures).result.confusion
    staged = evaluate_files(weights, prototxt, data=pictures, stages=("negative",)).result.confusion
    assert not np.array_equal(plain, staged)
    with pytest.raises(CaffePortError, match=r"input 'data' has shape \(1, 3, 8, 8\)"):
        evaluate_files(weights, prototxt, data=pictures, input_shapes={"data": (1, 3, 8, 8)})
    bare = "layer { name: 'ip' type: 'InnerProduct' bottom: 'data' top: 'ip' inner_product_param { num_output: 6 } }"
    prototxt.write_text(bare)
    found = evaluate_files(weights, prototxt, data=pictures, input_shapes={"data": (1, 3, 4, 5)})
    assert np.array_equal(found.result.confusion, plain)


def test_checksums_are_those_of_the_files(tmp_path: Path) -> None:
    definition, stored = api.read(PROTOTXT, WEIGHTS)
    assert stored is not None
    assert (definition.sha256, stored.sha256) == (sha256(PROTOTXT), sha256(WEIGHTS))
    text = Definition.parse(definition.net)
    assert text.sha256 is None
    assert verify(caffe_port.port(text, WEIGHTS)).provenance["prototxt"] == "<text>"
