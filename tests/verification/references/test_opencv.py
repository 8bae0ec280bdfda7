"""OpenCV as the reference: it agrees with Caffe wherever no deviation is reported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN, ROOT
from golden_nets import case_of
from google.protobuf import descriptor_pb2

from caffe_port.errors import CaffePortError, DependencyError
from caffe_port.formats import prototxt
from caffe_port.formats.message import schema
from caffe_port.formats.unfollowed import rule_of
from caffe_port.signatures.signature import SIGNATURES
from caffe_port.spec import LayerSpec
from caffe_port.verification.comparison import difference
from caffe_port.verification.references.opencv import DEVIATIONS, OpenCVReference, deviation
from caffe_port.verification.references.opencv_schema import KNOWN
from caffe_port.verification.references.reference import Case, Made, record
from caffe_port.verification.verify import verify

cv2 = pytest.importorskip("cv2")

CASES = [p for p in sorted((GOLDEN / "layers").glob("*.prototxt")) if not p.stem.endswith("_train")]

REFUSED = {
    "Accuracy",
    "ArgMax",
    "BatchReindex",
    "Bias",
    "Clip",
    "ContrastiveLoss",
    "DummyData",
    "Embed",
    "EuclideanLoss",
    "Filter",
    "HingeLoss",
    "Im2col",
    "InfogainLoss",
    "LSTM",
    "LSTMUnit",
    "MultinomialLogisticLoss",
    "Parameter",
    "RNN",
    "Reduction",
    "SPP",
    "SigmoidCrossEntropyLoss",
    "SoftmaxWithLoss",
    "Threshold",
    "Tile",
}
"""Types that OpenCV 4 does not support at all."""

REFUSED_CASES = {
    "batchnorm_test_batch_stats",
    "convolution_1d",
    "convolution_3d",
    "convolution_axis2",
    "convolution_two_bottoms",
    "deconvolution_dilated",
    "innerproduct_transpose",
    "log_base",
    "log_default",
    "lrn_across_k",
    "mvn_eps",
    "reshape_axis_insert_end",
    "scale_two_bottoms_mid",
    "split_use",
    "swish_beta",
}
"""Cases of other types that it refuses, or where it is known to deviate."""


def turns(case: Case, expected: dict[tuple[str, int], np.ndarray]) -> Iterator[Made]:
    """Runs the reference; where it cannot compute a layer, it continues with Caffe's tops."""
    run = OpenCVReference().run(case)
    instead = None
    while True:
        try:
            made = run.send(instead)
        except StopIteration:
            return
        yield made
        instead = None if made.tops is not None else [expected[made.layer.name, k] for k in range(len(made.layer.tops))]


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_as_caffe_or_not_at_all(path: Path) -> None:
    case, expected = case_of(path)
    if case.spec.phase == "TRAIN":
        with pytest.raises(CaffePortError, match="TEST phase only"):
            next(OpenCVReference().run(case))
        return
    made = list(turns(case, expected))
    assert [m.layer.name for m in made] == [layer.name for layer in case.spec.layers if layer.type != "Input"]
    for turn in made:
        assert (turn.tops is None) == bool(turn.note)
        for k, top in enumerate(turn.tops or ()):
            found = difference(expected[turn.layer.name, k], top)
            assert found.passed, f"{turn.layer.name}: {found}"
        refused = turn.layer.type in REFUSED or (path.stem in REFUSED_CASES and turn.layer.type not in ("ReLU", "TanH"))
        assert (turn.tops is None) == refused, turn.note


FORKS = {
    "ROIPooling": ("roi_pooling_param { pooled_h: 3 pooled_w: 2 spatial_scale: 0.25 %s}", "pad_ratio: 0.25 "),
    "BatchNorm": ("batch_norm_param { %s}", "add_eps_before_sqrt: false "),
}
"""A field of a fork, which OpenCV's importer skips without a word."""


def test_every_type_is_asked_for_deviations() -> None:
    """Also with a message that is outside the schema."""
    assert "nobodys_param" not in schema("LayerParameter").fields
    for type_ in SIGNATURES:
        for more in ("", "nobodys_param { lower_bound: 0 }"):
            layer = prototxt.parse(f'name: "a" type: "{type_}" bottom: "x" top: "a" {more}', "LayerParameter")
            assert isinstance(deviation(LayerSpec("a", type_, ("x",), ("a",), (("x", 0),), layer, "")), str)


@pytest.mark.parametrize("type_", FORKS)
def test_a_field_of_a_fork_is_not_opencvs(type_: str, tmp_path: Path) -> None:
    from caffe_port.api import port

    text, field = FORKS[type_]
    for given, verdict in ((field, f"OpenCV ignores {field.split(':')[0]} of {type_}"), ("", "")):
        net = tmp_path / "net.prototxt"
        net.write_text(
            'input: "x" input_shape { dim: 2 dim: 3 dim: 9 dim: 7 } input: "rois" input_shape { dim: 4 dim: 5 }'
            f'layer {{ name: "a" type: "{type_}" bottom: "x" top: "a" {text % given}'
            + (' bottom: "rois" }' if type_ == "ROIPooling" else " }")
        )
        plan = port(net).net.plan
        assert deviation(plan.spec.layers[-1]) == verdict


def test_the_schema_is_that_of_opencvs_binary() -> None:
    """OpenCV's file descriptor begins with its name, and its fields follow until something else does."""
    binary = next(Path(cv2.__file__).parent.glob("cv2*.so")).read_bytes()
    start = binary.index(b"\x0a\x12opencv-caffe.proto")
    end = start
    while binary[end] in (0x0A, 0x12, 0x22, 0x2A, 0x42):  # name, package, message, enum, options
        size = shift = 0
        while True:
            end += 1
            size |= (binary[end] & 127) << shift
            shift += 7
            if binary[end] < 128:
                break
        end += 1 + size
    file = descriptor_pb2.FileDescriptorProto.FromString(binary[start:end])
    theirs = {message.name: {field.name for field in message.field} for message in file.message_type}
    messages = {field.message_name for field in schema("LayerParameter").fields.values() if field.message_name}
    feed = {"AnnotatedDataParameter", "DataParameter", "ImageDataParameter", "MemoryDataParameter"}
    feed |= {"TransformationParameter", "ParameterParameter"}  # a Parameter's values come with the weights
    losses = {"InfogainLossParameter", "LossParameter"}
    for name in sorted((messages & set(theirs)) - feed - losses - {"BlobProto"}):
        followed = {f for f in schema(name).fields if rule_of(name.removesuffix("Parameter"), name, f) is None}
        assert name in KNOWN or followed <= theirs[name], f"{name} has fields that OpenCV does not know"
    assert {name: theirs[name] for name in KNOWN} == KNOWN


@pytest.mark.parametrize(
    "name", [n for n in sorted(REFUSED_CASES) if n.split("_")[0] in {t.lower() for t in DEVIATIONS}]
)
def test_the_deviations_are_real(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of OpenCV without the deviation would make the entry obsolete."""
    case, expected = case_of(GOLDEN / "layers" / f"{name}.prototxt")
    for type_ in list(DEVIATIONS):
        monkeypatch.delitem(DEVIATIONS, type_)
    wrong = [
        turn.tops is None
        or not all(difference(expected[turn.layer.name, k], top).passed for k, top in enumerate(turn.tops))
        for turn in turns(case, expected)
    ]
    assert any(wrong)


@pytest.mark.parametrize(
    ("fields", "deviates"), [("alpha: 2 beta: -0.7", True), ("alpha: -1", True), ("beta: 0.1", False)]
)
def test_signs_of_hard_sigmoid(fields: str, deviates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer is that of Caffe's fork: it passes, by the formula where OpenCV drops a sign; which it does."""
    net = tmp_path / "net.prototxt"
    net.write_text(
        'input: "x" input_shape { dim: 2 dim: 3 dim: 5 dim: 7 } layer { name: "h" type: "HardSigmoid" bottom: "x" '
        f'top: "h" hard_sigmoid_param {{ {fields} }} }}'
    )
    report = verify(net)
    assert report.passed
    assert report.rows[0].note.startswith("OpenCV drops the sign") == deviates
    monkeypatch.delitem(DEVIATIONS, "HardSigmoid")
    assert verify(net).passed != deviates


def test_a_refused_layer_does_not_take_the_net_with_it(tmp_path: Path) -> None:
    net = tmp_path / "net.prototxt"
    net.write_text("""
        layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 4 } } }
        layer { name: "a" type: "ReLU" bottom: "x" top: "x" }
        layer { name: "b" type: "Power" bottom: "x" top: "b" power_param { scale: 2 } }
        layer { name: "c" type: "Threshold" bottom: "b" top: "c" }
        layer { name: "d" type: "TanH" bottom: "b" top: "d" }
        layer { name: "e" type: "Eltwise" bottom: "c" bottom: "d" bottom: "x" top: "e" }
        layer { name: "quiet" type: "Silence" bottom: "e" }
    """)
    from caffe_port.api import port

    plan = port(net).net.plan
    x = np.random.Generator(np.random.PCG64(1)).standard_normal((2, 3, 5, 4), np.float32)
    case = Case(plan.spec, plan.shapes, {}, {"x": x})
    step = (np.maximum(x, 0) * 2 > 0).astype(np.float32)
    made = {m.layer.name: m for m in turns(case, {("c", 0): step})}
    assert [name for name, m in made.items() if m.tops is None] == ["c"]
    assert made["c"].note == "OpenCV has no layer Threshold"
    assert made["quiet"].tops == ()
    relu = np.maximum(x, 0)
    for name, value in {"a": relu, "b": relu * 2, "d": np.tanh(relu * 2), "e": step + np.tanh(relu * 2) + relu}.items():
        tops = made[name].tops
        assert tops is not None
        assert difference(value, tops[0]).passed, name


def test_small_segments_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case, expected = case_of(GOLDEN / "layers/net_residual.prototxt")
    whole = [m.tops for m in turns(case, expected)]
    monkeypatch.setattr("caffe_port.verification.references.opencv._SEGMENT_BYTES", 1)
    parts = [m.tops for m in turns(case, expected)]
    assert len(whole) == len(parts)
    for one, other in zip(whole, parts, strict=True):
        assert one is not None
        assert other is not None
        assert all(difference(a, b).passed for a, b in zip(one, other, strict=True))


def test_record(tmp_path: Path) -> None:
    case, expected = case_of(GOLDEN / "layers/net_residual.prototxt")
    trace = record(OpenCVReference(), case, {"weights": "w"})
    assert set(trace.tops) == set(expected) - {k for k in expected if "_split" in k[0]}
    assert trace.provenance == {"producer": f"OpenCV {cv2.__version__}", "weights": "w"}
    case, _ = case_of(GOLDEN / "layers/argmax_default.prototxt")
    with pytest.raises(CaffePortError, match="cannot compute argmax: OpenCV has no layer ArgMax"):
        record(OpenCVReference(), case)


def test_without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DependencyError, match="not installed") as error:
        _ = OpenCVReference().name
    assert "pip install" in error.value.hint


def test_opencv_5_has_no_importer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2.dnn, "readNetFromCaffe")
    with pytest.raises(DependencyError, match="no Caffe importer"):
        _ = OpenCVReference().name


def test_the_table_of_deviations_is_measured(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A few draws of a few types; `make deviations` measures all. An entry taken out of the table is found."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import opencv_deviations as measure

    types = ["Axpy", "Interp", "LRN", "Swish"]
    records = list(measure.measured(types, 0, 12, 0, 0))
    assert measure.report(records, None) == 0
    monkeypatch.delitem(DEVIATIONS, "Swish")
    assert measure.report(list(measure.measured(["Swish"], 0, 12, 0, 0)), None) == 1
    assert " deviates [" in capfd.readouterr().out
