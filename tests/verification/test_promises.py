"""PASSED and FAILED are promises: neither is said where the reference deviates, where nothing could differ, or where
only rounding does.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from conftest import HERE

from caffe_port.api import load, port
from caffe_port.emit.caffe_files import write_caffe
from caffe_port.verification.comparison import Report, Row
from caffe_port.verification.references import opencv
from caffe_port.verification.references.numpy_formulas import NumPyReference
from caffe_port.verification.references.reference import Case, Run
from caffe_port.verification.reports.terminal import verdict
from caffe_port.verification.verify import verify

CASES = HERE / "cases"


def rows(report: Report) -> dict[str, Row]:
    return {row.layer: row for row in report.rows}


# -- where OpenCV deviates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "layer", "why"),
    [
        ("opencv_deviations/axpy", "s", "OpenCV computes a * y + x"),
        ("opencv_deviations/interp_pad", "t", "OpenCV ignores pad_beg"),
        ("priorbox_clip_unset/tvm_prior_4", "o", ""),  # OpenCV is told what clip is assumed to be
        ("ssd_fractional_min_size/net", "pb", "OpenCV keeps the fractions of min_size"),
        ("ssd_fewer_rows/tiny", "det", ""),
        ("convolution_depthwise_num_output/net", "dw", "OpenCV reads as many kernels as num_output says"),
    ],
)
def test_a_known_deviation_is_no_failure(case: str, layer: str, why: str) -> None:
    pytest.importorskip("cv2")
    report = verify(CASES / f"{case}.prototxt")
    assert report.passed
    assert report.not_compared == 0
    assert rows(report)[layer].note.startswith(why)


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (
            'type: "MatMul" bottom: "x" bottom: "x" matmul_param { transpose_b: true }',
            "OpenCV does not transpose for MatMul",
        ),
        (
            'type: "DataAugmentation" bottom: "x" augmentation_param { crop_width: 3 crop_height: 2 }',
            "OpenCV copies what FlowNet's",
        ),
    ],
)
def test_a_known_deviation_of_a_fork_is_no_failure(layer: str, why: str, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    path = tmp_path / "net.prototxt"
    path.write_text(f'input: "x" input_shape {{ dim: 2 dim: 3 dim: 5 dim: 5 }} layer {{ name: "a" top: "a" {layer} }}')
    report = verify(path)
    assert report.passed
    assert rows(report)["a"].note.startswith(why)


TRANSPOSED = """
input: "x" input_shape { dim: 4 dim: 5 }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y"
  inner_product_param { num_output: 3 transpose: true weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "y" top: "z" }
"""


@pytest.fixture
def transposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A net in which OpenCV deviates, in a way of which the table knows nothing."""
    pytest.importorskip("cv2")
    monkeypatch.setattr(opencv, "DEVIATIONS", {})
    path = tmp_path / "net.prototxt"
    path.write_text(TRANSPOSED)
    return path


def test_an_unknown_deviation_is_decided_by_caffe(transposed: Path, caffe: Path) -> None:
    report = verify(transposed)
    row = rows(report)["ip"]
    assert report.passed
    assert row.by.startswith("Caffe 1.0.0")
    assert row.note.startswith("OpenCV 4.")
    assert row.note.endswith("deviates from Caffe here: compared with Caffe")
    assert not rows(report)["relu"].by  # which OpenCV computes from Caffe's top
    assert verdict(report).startswith("PASSED: all 2 compared tops agree: 1 with OpenCV 4.")


def test_without_caffe_it_is_said_who_disagrees(transposed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caffe_port.verification.verify.may_be_here", lambda: False)
    report = verify(transposed)
    assert not report.passed
    assert rows(report)["ip"].cause.startswith(
        "OpenCV and Caffe's formula disagree here, and the net follows the formula; Caffe itself decides"
    )


def test_a_wrong_net_stays_wrong(tmp_path: Path, caffe: Path) -> None:
    """The referee is asked, and sides with OpenCV."""
    pytest.importorskip("cv2")
    path = tmp_path / "net.prototxt"
    path.write_text(TRANSPOSED.replace("transpose: true ", "bias_filler { type: 'constant' value: 1 } "))
    ported = port(path)
    case = verify(ported)
    assert case.passed
    forward = ported.net.ip.forward
    ported.net.ip.forward = lambda x: forward(x) + 0.5
    report = verify(ported)
    assert not report.passed
    assert report.first is not None
    assert report.first.layer == "ip"


# -- where nothing could differ -------------------------------------------------------------------------------------


def test_layers_without_fillers_get_values_that_tell() -> None:
    pytest.importorskip("cv2")
    report = verify(CASES / "vacuous/zero.prototxt")
    assert report.passed
    assert report.constant == 0
    assert "2 layers with nothing but zeros: random values for the comparison (c, p)" in report.notes


def test_statistics_that_were_never_taken_are_drawn(tmp_path: Path) -> None:
    """A variance of 0 multiplies by 316, and by as much again in the next layer."""
    path = tmp_path / "net.prototxt"
    chain = "".join(f'layer {{ name: "bn{k}" type: "BatchNorm" bottom: "{k}" top: "{k + 1}" }}\n' for k in range(12))
    path.write_text('input: "0" input_shape { dim: 2 dim: 3 dim: 7 dim: 5 }\n' + chain)
    report = verify(path, against="numpy")
    assert report.passed
    assert (
        "12 layers with nothing but zeros: random values for the comparison (bn0, bn1, bn2, bn3, ...)" in report.notes
    )
    last = rows(report)["bn11"].isolated
    assert last is not None
    assert last.unit < 10


def test_zeros_prove_nothing(tmp_path: Path) -> None:
    definition, weights = write_caffe(load(CASES / "vacuous/zero.prototxt"), tmp_path)
    report = verify(definition, weights, against="numpy")
    assert not report.passed
    assert not report.failed
    assert verdict(report).startswith("NOTHING PROVEN against NumPy")
    assert "NOTHING PROVEN" in repr(report)


def test_constant_tops_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(
        TRANSPOSED + 'layer { name: "dead" type: "Power" bottom: "z" top: "w" power_param { scale: 0 shift: 2 } }'
    )
    report = verify(path, against="numpy")
    assert report.passed
    assert report.constant == 1
    assert verdict(report).endswith("; 1 constant on both sides")


# -- where only rounding differs ------------------------------------------------------------------------------------

CANCELLING = """
input: "x" input_shape { dim: 3 dim: 4096 }
layer { name: "far" type: "Power" bottom: "x" top: "a" power_param { shift: 10 } }
layer { name: "ip" type: "InnerProduct" bottom: "a" top: "b"
  inner_product_param { num_output: 50 weight_filler { type: "uniform" min: 0.5 max: 1.5 } } }
layer { name: "near" type: "Power" bottom: "b" top: "c" power_param { shift: -40960 } }
"""


def test_rounding_is_no_failure(tmp_path: Path) -> None:
    """A sum of 4,096 terms is added in other orders, and what is left after the subtraction is its last places."""
    pytest.importorskip("cv2")
    path = tmp_path / "net.prototxt"
    path.write_text(CANCELLING)
    report = verify(path)
    near = rows(report)["near"]
    assert near.free is not None
    assert not near.free.passed
    assert report.passed
    assert near.note.startswith("free-running it is ")
    assert near.note.endswith(": within rounding")
    assert verdict(report).endswith("; 1 free-running only within rounding")
    assert not verify(path, mode="free").passed  # no layer was looked at alone


@dataclasses.dataclass(frozen=True)
class Drifting:
    """The formulas, with an error in every layer that is below the tolerance."""

    name: str = "drifting"

    def run(self, case: Case) -> Run:
        for made in NumPyReference().run(case):
            tops = tuple(np.asarray(top) * (1 + 2e-5) ** (int(made.layer.name) + 1) for top in made.tops or ())
            yield dataclasses.replace(made, tops=tops, by=self.name)


def test_what_is_more_than_rounding_fails(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    chain = "".join(
        f'layer {{ name: "{k}" type: "Power" bottom: "{k}" top: "{k + 1}" power_param {{ scale: 1.1 }} }}\n'
        for k in range(20)
    )
    path.write_text('input: "0" input_shape { dim: 2 dim: 3 dim: 7 }\n' + chain)
    report = verify(path, against=Drifting())
    assert not report.passed
    assert not report.broken
    assert report.rounded == 0
    assert any(row.note.endswith(": more than rounding") for row in report.rows)
