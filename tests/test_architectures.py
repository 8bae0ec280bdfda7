"""Architectures people hold, from their papers: they convert, run, emit, agree with OpenCV, and can be trained.

All at full structure with fewer channels and a smaller image; the parameters are counted at full width, against the
published figures. What OpenCV lacks is said in :data:`architectures.ARCHITECTURES`, and is tested to be lacking.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, Architecture
from torch import Tensor

import caffe_port
from caffe_port import layers
from caffe_port.api import Ported
from caffe_port.definition.definition import Definition
from caffe_port.definition.deploy_view import phase_spec
from caffe_port.emit import model_source
from caffe_port.emit.convert import convert
from caffe_port.emit.self_check import MODEL, WEIGHTS, read_model
from caffe_port.formats import caffemodel, prototxt
from caffe_port.layers.normalization import BN
from caffe_port.net.net import Net
from caffe_port.signatures import shapes
from caffe_port.spec import NetSpec
from caffe_port.verification.inputs import random_inputs
from caffe_port.verification.verify import verify


@dataclass
class Prepared:
    """An architecture in small, with weights that have seen some data: its files, and inputs for them."""

    architecture: Architecture
    folder: Path

    @property
    def prototxt(self) -> Path:
        return self.folder / "net.prototxt"

    @property
    def weights(self) -> Path:
        return self.folder / "net.caffemodel"

    def port(self, keep_loss: bool = False) -> Ported:
        return caffe_port.port(self.prototxt, self.weights, keep_loss=keep_loss)

    def inputs(self, net: Net) -> dict[str, np.ndarray]:
        """For the present phase of the net, by blob name."""
        plan = net.plan
        arrays, _ = random_inputs(plan.spec, plan.shapes, 1)
        return arrays | {name: made for name, made in self.architecture.inputs().items() if name in arrays}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small layers are not worth the threads."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    yield
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Prepared]:
    made: dict[str, Prepared] = {}

    def prepared(name: str) -> Prepared:
        if name not in made:
            new = Prepared(ARCHITECTURES[name], tmp_path_factory.mktemp(name))
            _draw(new)
            made[name] = new
        return made[name]

    return prepared


def _draw(prepared: Prepared) -> None:
    """Writes the files: parameters drawn by the fillers, statistics from one pass in TRAIN."""
    prepared.prototxt.write_text(prepared.architecture.text(), encoding="utf-8")
    net = caffe_port.port(prepared.prototxt, seed=3).net.train()
    for module in net.modules():
        if isinstance(module, BN):
            module.momentum = 1.0  # one pass must do
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        net(*tensors(prepared.inputs(net)))
    caffemodel.write(prepared.weights, prototxt.read(prepared.prototxt, "NetParameter"), net.blobs())


def tensors(arrays: dict[str, np.ndarray]) -> list[Tensor]:
    return [torch.from_numpy(x) for x in arrays.values()]


def by_name(made: Tensor | dict[str, Tensor], net: Net) -> dict[str, Tensor]:
    return made if isinstance(made, dict) else {net.plan.outputs[0][0]: made}


every = pytest.mark.parametrize("name", ARCHITECTURES)


@pytest.mark.parametrize(("name", "phase"), [(n, p) for n, a in ARCHITECTURES.items() for p in a.parameters])
def test_has_as_many_parameters_as_published(name: str, phase: str, tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(ARCHITECTURES[name].text(small=False), encoding="utf-8")
    count = _count(phase_spec(Definition.read(path), phase, 0, (), {}, True))
    published = ARCHITECTURES[name].parameters[phase]
    if isinstance(published, str):
        digits = len(published.partition(".")[2].rstrip("M"))
        assert f"{count / 1e6:.{digits}f}M" == published
    else:
        assert count == published


def _count(spec: NetSpec) -> int:
    """Learned parameters, shared ones once; no memory is taken. The shapes are those of the formulas, too."""
    tops = {source: tuple(spec.by_name[source[0]].param.input_param.shape[0].dim) for _, source in spec.inputs}
    learned: dict[object, int] = {}
    for layer in spec.layers:
        if layer.is_input:
            continue
        bottoms = [tops[source] for source in layer.producers]
        cls = layers.class_of(layer.param)
        assert cls is not None
        with torch.device("meta"):
            module = cls.build(layer.param, bottoms).eval()
            made = module.infer(*(torch.empty(shape) for shape in bottoms))
        made = made if isinstance(made, tuple) else (made,)
        tops |= {(layer.name, k): tuple(top.shape) for k, top in enumerate(made)}
        if shapes.rule_of(layer) is not None:
            assert shapes.top_shapes(layer, bottoms) == [tuple(top.shape) for top in made], layer.name
        for k, (blob, param) in enumerate(module.named_parameters()):
            shared = layer.param.param[k].name if k < len(layer.param.param) else ""
            learned[shared or (layer.name, blob)] = param.numel()
    return sum(learned.values())


@every
def test_runs_and_is_emitted(name: str, prepare: Callable[[str], Prepared], tmp_path: Path) -> None:
    prepared = prepare(name)
    ported = prepared.port()
    net, inputs = ported.net, tensors(prepared.inputs(ported.net))
    assert ported.report is not None
    assert not ported.report.initialised
    with torch.no_grad():
        outputs = by_name(net(*inputs), net)
    for blob, value in outputs.items():
        assert torch.isfinite(value).all(), blob
        assert len(value.unique()) > 1, blob
        if not _as_many_as_found(net, blob):
            assert tuple(value.shape) == net.plan.shapes[dict(net.plan.spec.outputs)[blob]], blob

    result = convert(ported, tmp_path / "emitted", channels_last=False)
    assert result.check.startswith("outputs are bit-equal")
    source = (tmp_path / "emitted" / MODEL).read_text(encoding="utf-8")
    module = read_model(source, result.class_name, tmp_path / "emitted" / WEIGHTS)
    with torch.no_grad():
        emitted = by_name(module(*inputs), net)
    assert list(emitted) == list(outputs)
    for blob, value in outputs.items():
        assert torch.equal(value, emitted[blob]), blob


_FINDING = ("DetectionOutput", "Python", "YoloDetectionOutput")


def _as_many_as_found(net: Net, blob: str) -> bool:
    """Whether the shape of an output depends on what was found."""
    found = {source for source in net.plan.shapes if net.plan.spec.by_name[source[0]].type in _FINDING}
    for layer in net.plan.spec.layers:
        if found.intersection(layer.producers):
            found |= {(layer.name, k) for k in range(len(layer.tops))}
    return dict(net.plan.spec.outputs)[blob] in found


@every
def test_channels_last_is_the_same(name: str, prepare: Callable[[str], Prepared]) -> None:
    prepared = prepare(name)
    net = prepared.port().net
    made = model_source.model(net, channels_last=True)
    module = read_model(made.source, made.class_name, made.state)
    assert all(p.is_contiguous() for p in module.parameters())
    inputs = tensors(prepared.inputs(net))
    with torch.no_grad():
        outputs, others = by_name(net(*inputs), net), by_name(module(*inputs), net)
        last = [x.to(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs]
        same = by_name(net(*last), net)
    for blob, value in outputs.items():
        assert others[blob].is_contiguous()
        assert torch.equal(others[blob], same[blob])
        torch.testing.assert_close(others[blob], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()), msg=blob)


@every
def test_every_layer_agrees_with_opencv(name: str, prepare: Callable[[str], Prepared]) -> None:
    prepared = prepare(name)
    given = prepared.inputs(prepared.port().net)
    report = verify(prepared.prototxt, prepared.weights, against="opencv", input=given)
    assert not report.broken, report.first
    # The statistics of two small images come close to zero for some channels, which multiplies what rounding left.
    assert report.worst is not None
    assert report.worst.needed_atol < 1e-3, report.worst
    lacking = {row.type for row in report.rows if row.note and row.rounding is None}
    assert lacking == set(prepared.architecture.elsewhere)
    assert report.not_compared == len(prepared.architecture.uncompared)
    assert [row.type for row in report.rows if row.status == "not compared"] == [*prepared.architecture.uncompared]


@every
def test_opencv_makes_the_same_of_the_whole_prototxt(name: str, prepare: Callable[[str], Prepared]) -> None:
    """Not layer by layer and prepared by us: the files as OpenCV itself reads them."""
    prepared = prepare(name)
    net = prepared.port().net
    inputs = prepared.inputs(net)
    text = prepared.architecture.text(deploy=True).encode()
    unread = prepared.architecture.unread
    if unread:
        with quiet(), pytest.raises(cv2.error, match=re.escape(unread)):
            _opencv(text, prepared.weights, inputs, [blob for blob, _ in net.plan.outputs])
        return
    with torch.no_grad():
        outputs = by_name(net(*tensors(inputs)), net)
    with quiet():
        theirs = _opencv(text, prepared.weights, inputs, list(outputs))
    for (blob, value), expected in zip(outputs.items(), theirs, strict=True):
        scale = float(np.abs(expected).max())
        value, tolerance = value.numpy(), {"rtol": 1e-4, "atol": 1e-4 * scale}
        if value.ndim != 4 or value.shape[3] != 7:
            np.testing.assert_allclose(value, expected, **tolerance, err_msg=blob)
            continue
        assert value.shape == expected.shape  # detections: in another order where scores are equal to rounding
        ours, wanted = value[0, 0], expected[0, 0]
        same = np.isclose(ours[:, None], wanted[None], **tolerance).all(2)
        assert same.any(0).all(), f"{blob} lacks {wanted[~same.any(0)]}"
        assert same.any(1).all(), f"{blob} has {ours[~same.any(1)]} besides"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """OpenCV writes every refusal to stderr before it raises it."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


def _opencv(text: bytes, weights: Path, inputs: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
    net = cv2.dnn.readNetFromCaffe(np.frombuffer(text, np.uint8), np.fromfile(weights, np.uint8))
    net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    for blob, value in inputs.items():
        net.setInput(value, blob)
    return list(net.forward(outputs))


@every
def test_gradients_reach_every_parameter(name: str, prepare: Callable[[str], Prepared]) -> None:
    prepared = prepare(name)
    loss = prepared.architecture.loss
    net = prepared.port(keep_loss=loss).net.train()
    inputs = tensors(prepared.inputs(net))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        total = net.forward_with_loss(*inputs)[1] if loss else _mean_square(by_name(net(*inputs), net))
    assert torch.isfinite(total)
    assert total > 0
    total.backward()
    for step in net.plan.steps:
        for blob, parameter in getattr(net, step.attribute).named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, (step.layer.name, blob)
                assert torch.isfinite(parameter.grad).all(), (step.layer.name, blob)
                assert parameter.grad.any() or blob == "bias", (step.layer.name, blob)  # what is compared loses it


def _mean_square(outputs: dict[str, Tensor]) -> Tensor:
    return torch.stack([value.square().mean() for value in outputs.values()]).sum()
