"""Verification on real files: agreement where there is agreement, and one red row for one planted error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caffe_port.api import Ported, port
from caffe_port.errors import CaffePortError
from caffe_port.verification.comparison import Report, Row, Tolerance
from caffe_port.verification.inputs import random_inputs
from caffe_port.verification.references.opencv import OpenCVReference
from caffe_port.verification.references.reference import Case, Made, Reference, Run, StoredReference, computing
from caffe_port.verification.references.trace import Trace, read_golden
from caffe_port.verification.reports.terminal import as_text
from caffe_port.verification.runner import run
from caffe_port.verification.subject import case_of
from caffe_port.verification.verify import verify

cv2 = pytest.importorskip("cv2")

NET = """
layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "a"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "a" top: "a" }
layer { name: "pool" type: "Pooling" bottom: "a" top: "p" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "p" top: "s"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "s" top: "prob" }
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.prototxt"
    path.write_text(NET)
    return path


def rows_of(ported: Ported, reference: Reference, inputs: dict[str, np.ndarray], case: Case | None = None) -> list[Row]:
    with torch.inference_mode():
        return list(run(ported.net, reference, case or case_of(ported, inputs), Tolerance()))


def random_of(ported: Ported) -> dict[str, np.ndarray]:
    plan = ported.net.plan
    return random_inputs(plan.spec, plan.shapes, 0)[0]


# -- real models ----------------------------------------------------------------------------------------------------

GOLDEN_NETS = {
    "mnist_9972": (None, "models/simplenet/mnist_9972/weights.caffemodel"),
    "svhn_9757": ("golden/nets/svhn_9757.prototxt", "models/simplenet/svhn_9757/weights.caffemodel"),
}


@pytest.mark.parametrize("name", GOLDEN_NETS)
def test_as_caffe_on_every_layer(shared: Path, name: str) -> None:
    prototxt, weights = GOLDEN_NETS[name]
    trace = read_golden(shared / f"golden/nets/{name}.npz")
    report = verify(prototxt and shared / prototxt, shared / weights, against=trace)
    assert report.passed
    assert (report.compared, report.not_compared) == (52, 0)
    assert report.reference == "Caffe 1.0"
    assert report.worst is not None
    assert report.worst.needed_atol < 5e-6


ZOO = "models/zoo"
AGAINST_OPENCV: dict[str, tuple[str | None, str, int]] = {
    "mnist_9972": (None, "models/simplenet/mnist_9972/weights.caffemodel", 52),
    "svhn_9757": (None, "models/simplenet/svhn_9757/weights.caffemodel", 52),
    "det1": (f"{ZOO}/mtcnn_v2/det1.prototxt", f"{ZOO}/mtcnn_v2/det1.caffemodel", 10),
    "det2": (f"{ZOO}/mtcnn_v2/det2.prototxt", f"{ZOO}/mtcnn_v2/det2.caffemodel", 13),
    "det3": (f"{ZOO}/mtcnn_v2/det3.prototxt", f"{ZOO}/mtcnn_v2/det3.caffemodel", 18),
    "lenet": (f"{ZOO}/caffe2014_lenet_v1/lenet.prototxt", f"{ZOO}/caffe2014_lenet_v1/lenet_iter_10000.caffemodel", 8),
    "quick": (
        f"{ZOO}/caffe2014_cifar10_v1/cifar10_quick.prototxt",
        f"{ZOO}/caffe2014_cifar10_v1/cifar10_quick_iter_5000.caffemodel",
        12,
    ),
    "full": (
        f"{ZOO}/caffe2014_cifar10_v1/cifar10_full.prototxt",
        f"{ZOO}/caffe2014_cifar10_v1/cifar10_full_iter_70000.caffemodel",
        13,
    ),
}


@pytest.mark.parametrize("name", AGAINST_OPENCV)
def test_as_opencv_on_every_layer(shared: Path, name: str) -> None:
    prototxt, weights, tops = AGAINST_OPENCV[name]
    report = verify(prototxt and shared / prototxt, shared / weights)
    assert report.passed, [r.layer for r in report.rows if r.status == "failed"]
    assert (report.compared, report.not_compared) == (tops, 0)
    assert report.inputs == {"data": "random, standard normal, seed 0"}
    assert "sha256" in report.provenance["weights"]


def test_one_planted_error_is_one_red_row(shared: Path) -> None:
    weights = shared / "models/simplenet/mnist_9972/weights.caffemodel"
    planted: dict[str, Any] = {
        "pool4_2": lambda net: setattr(net.pool4_2, "ceil_mode", False),  # 7 x 7 becomes 3 x 3 instead of 4 x 4
        "conv2_2": lambda net: net.conv2_2.weight.data[3, 1, 2, 0].add_(0.01),
        "bn3": lambda net: setattr(net.bn3, "eps", 1e-3),
        "relu_cccp5": lambda net: setattr(net.relu_cccp5, "negative_slope", 0.01),
    }
    for layer, plant in planted.items():
        ported = port(None, weights)
        plant(ported.net)
        report = Report(tuple(rows_of(ported, OpenCVReference(), random_of(ported))), Tolerance(), "OpenCV")
        assert not report.passed, layer
        red = [r.layer for r in report.rows if r.isolated is not None and not r.isolated.passed]
        assert red == [layer]
        assert report.first is not None
        assert report.first.layer == layer
        assert [r.layer for r in report.broken] == [layer]


# -- what is fed ----------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_report(net: Path) -> None:
    one, two, other = verify(net), verify(net), verify(net, seed=1)
    assert one.passed
    assert one == two
    assert one.rows != other.rows
    assert "no weights given: parameters initialized from the fillers (seed 0)" in one.notes


def test_npy_brings_its_batch(net: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 3, 9, 8)))
    report = verify(net, input=tmp_path / "x.npy")
    assert report.passed
    first = report.rows[0].free
    assert first is not None
    assert first.shape == (5, 4, 7, 6)
    one = verify(net, input={"data": np.ones((3, 9, 8))}).rows[0].free
    assert one is not None
    assert one.shape == (1, 4, 7, 6)


def test_a_picture_is_prepared(net: Path, tmp_path: Path) -> None:
    picture = np.random.Generator(np.random.PCG64(3)).integers(0, 256, (31, 17, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "cat.png"), picture)
    report = verify(net, input=tmp_path / "cat.png", mean="104,117,123", scale=0.01)
    assert report.passed
    assert report.inputs["data"].endswith("cat.png")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"input": {"dta": np.ones((1, 3, 9, 8))}}, "no input 'dta'.*Did you mean 'data'"),
        ({"mode": "all"}, "unknown mode 'all'; modes: both, free, isolated"),
        ({"against": "openvc"}, "cannot compare with 'openvc'"),
        ({"against": "absent.npz"}, "cannot be read"),
        ({"channel_order": "RBG"}, "channel order 'RBG' is not one of RGB, BGR, GRAY. Did you mean 'RGB'"),
        ({"input": "absent.npy"}, "cannot be read"),
        ({"input": "absent.png"}, "cannot be read"),
    ],
)
def test_bad_options(net: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(CaffePortError, match=says):
        verify(net, **options)


def test_nothing_to_verify() -> None:
    with pytest.raises(CaffePortError, match="a prototxt, a caffemodel, or both"):
        verify()


# -- references -----------------------------------------------------------------------------------------------------


def recorded(path: Path, **changes: Any) -> Trace:
    """A trace of our own net."""
    ported = port(path, keep_loss=True)
    inputs = random_of(ported)
    with torch.inference_mode():
        turns = list(ported.net.steps(*(torch.from_numpy(inputs[b]) for b in ported.net.plan.inputs)))
    tops = {(t.layer.name, k): top.numpy() for t in turns for k, top in enumerate(t.tops)}
    return Trace(tops | changes.get("tops", {}), inputs, provenance={"producer": "us"})


def test_a_trace_brings_its_inputs(net: Path, tmp_path: Path) -> None:
    trace = recorded(net)
    trace.save(tmp_path / "t.npz")
    report = verify(net, against=tmp_path / "t.npz")
    assert report.passed
    assert report.inputs == {"data": "given"}
    assert all(r.free is not None and r.free.greatest == 0 for r in report.rows)
    with pytest.raises(CaffePortError, match="contains its own inputs"):
        verify(net, against=trace, input="x.npy")
    with pytest.raises(CaffePortError, match="no input 'data'; its inputs are image"):
        verify(net, against=Trace(trace.tops, {"image": trace.inputs["data"]}))


def test_what_a_trace_lacks_is_counted(net: Path) -> None:
    trace = recorded(net, tops={("aux", 0): np.ones(3)})
    tops = {key: top for key, top in trace.tops.items() if key != ("pool", 0)}
    report = verify(net, against=Trace(tops, trace.inputs))
    assert report.passed
    assert {r.layer: r.note for r in report.rows if r.status == "not compared"} == {
        "pool": "not in the trace",
        "aux": "in the trace, not in the net",
    }


def test_losses_are_compared_where_the_trace_has_labels(golden: Path) -> None:
    case = golden / "layers/softmaxwithloss_default"
    report = verify(case.with_suffix(".prototxt"), against=case.with_suffix(".npz"))
    assert report.passed
    assert report.compared == 1


@pytest.mark.parametrize("name", ["batchnorm_scale_inplace_train", "batchnorm_train"])
def test_train_phase(golden: Path, name: str) -> None:
    case = golden / "layers" / name
    report = verify(case.with_suffix(".prototxt"), case.with_suffix(".caffemodel"), against=case.with_suffix(".npz"))
    assert report.phase == "TRAIN"
    assert report.passed
    assert report.not_compared == 0


def test_modes(net: Path) -> None:
    free, isolated = verify(net, mode="free"), verify(net, mode="isolated")
    assert all(r.isolated is None and r.free is not None for r in free.rows)
    assert all(r.free is None and r.isolated is not None for r in isolated.rows)


class Blind:
    """A reference that knows some layers only, and records what it is sent for the others."""

    def __init__(self, trace: Trace, knows: set[str]) -> None:
        self.inner, self.knows, self.sent = StoredReference(trace), knows, {}  # type: ignore[var-annotated]

    name = "blind"

    def run(self, case: Case) -> Run:
        for layer in computing(case.spec):
            if layer.name in self.knows:
                yield Made(layer, (self.inner.trace.tops[layer.name, 0],), self.name)
            else:
                self.sent[layer.name] = yield Made(layer, None, self.name, "not known")


def test_the_reference_goes_on_with_our_tops_where_it_has_none(net: Path) -> None:
    trace = recorded(net)
    reference = Blind(trace, {"conv", "pool", "prob"})
    report = verify(net, against=reference, input=trace.inputs["data"])
    assert report.passed
    assert report.not_compared == 2
    assert np.array_equal(reference.sent["relu"][0], trace.tops["relu", 0])
    assert np.array_equal(reference.sent["ip"][0], trace.tops["ip", 0])


def test_a_layer_that_raises_is_one_failed_row(net: Path) -> None:
    ported = port(net)
    ported.net.pool.ceil_mode = False  # then ip no longer fits in the free run
    inputs = random_of(ported)
    rows = {r.layer: r for r in rows_of(ported, OpenCVReference(), inputs)}
    assert [name for name, r in rows.items() if r.isolated is not None and not r.isolated.passed] == ["pool"]
    pool, ip = rows["pool"].isolated, rows["ip"].free
    assert pool is not None
    assert ip is not None
    assert pool.reason == "shape (2, 4, 3, 3), expected (2, 4, 4, 3)"
    assert ip.reason.startswith("raises RuntimeError")
    assert rows["prob"].free is None
    assert rows["prob"].note == "the free run stopped at 'ip'"
    assert rows["prob"].isolated is not None


def test_where_nobody_can_go_on(net: Path) -> None:
    trace = recorded(net)
    ported = port(net)
    case = case_of(ported, trace.inputs)
    ported.net.ip = torch.nn.Linear(7, 5)  # type: ignore[assignment]
    rows = rows_of(ported, Blind(trace, {"conv", "relu", "pool", "prob"}), dict(trace.inputs), case)
    assert [(r.layer, r.status) for r in rows[-2:]] == [("ip", "not compared"), ("prob", "not compared")]
    assert rows[-1].note == "after 'ip', which neither blind nor the net could run"


# -- how close is close ---------------------------------------------------------------------------------------------


def test_strict_measures_both_sides(shared: Path) -> None:
    trace = read_golden(shared / "golden/nets/mnist_9972.npz")
    weights = shared / "models/simplenet/mnist_9972/weights.caffemodel"
    report = verify(None, weights, against=trace, strict=True)
    assert report.passed
    assert all(row.distance is not None for row in report.rows)
    assert max(row.distance.candidate for row in report.rows if row.distance) < 1e-6


def test_strict_finds_what_the_tolerance_lets_pass(net: Path) -> None:
    ported = port(net)
    case = case_of(ported, random_of(ported))
    with torch.no_grad():
        ported.net.conv.weight.mul_(1 + 1e-5)  # type: ignore[union-attr, operator]
        rows = list(run(ported.net, OpenCVReference(), case, Tolerance()))
        assert all(row.status == "passed" for row in rows)
        strict = list(run(ported.net, OpenCVReference(), case, Tolerance(), strict=True))
    first = strict[0]
    assert first.distance is not None
    assert first.distance.candidate == pytest.approx(1e-5, rel=0.05)
    assert first.distance.reference < 3e-7
    assert first.status == "failed"
    assert not first.broken  # within the tolerance, but further from the truth than it need be
    report = Report(tuple(strict), Tolerance(), "OpenCV")
    assert "FAILED: 5 of 5 compared tops are more than twice as far from a float64 run as OpenCV" in as_text(report)
    assert verify(net, strict=True).passed


def test_strict_says_nothing_where_the_reference_is_the_truth(net: Path) -> None:
    report = verify(net, against="numpy", strict=True)
    assert report.passed
    assert all(row.distance is None for row in report.rows)
