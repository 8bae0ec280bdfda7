"""Against Caffe itself, where ``make caffe`` built it: what failed once, and real nets."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import HERE, SHARED

from caffe_port.errors import CaffePortError
from caffe_port.formats import caffemodel, wire
from caffe_port.formats.message import Message
from caffe_port.verification.comparison import Report
from caffe_port.verification.references import caffe as references_caffe
from caffe_port.verification.references.caffe import script
from caffe_port.verification.references.trace import Trace
from caffe_port.verification.reports.terminal import verdict
from caffe_port.verification.subject import prepare
from caffe_port.verification.verify import verify

CASES = HERE / "cases"
CAFFE = "Caffe 1.0.0 (brocolli-caffe 9.0.2)"


def statuses(report: Report) -> dict[str, str]:
    return {f"{row.layer}:{row.top}": row.status for row in report.rows if row.type != "gradient"}


def record(caffe: Path, folder: Path, *arguments: object) -> Trace:
    """What the printed script records under Caffe's own Python."""
    (folder / "record.py").write_text(script())
    command = [str(caffe / "bin/python"), "-I", "record.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Trace.load(folder / "trace.npz")


def old_weights(path: Path) -> Path:
    """A caffemodel as Caffe wrote it in 2014: four axes for every blob, (1, 1, 1, N) for a bias."""
    prototxt = CASES / "v1_blob_shape/lenet.prototxt"
    subject = prepare(prototxt)
    layers = []
    for name, blobs in subject.case.blobs.items():
        protos = []
        for blob in blobs:
            four = (1,) * (4 - np.ndim(blob)) + np.shape(blob)
            sides = dict(zip(("num", "channels", "height", "width"), four, strict=True))
            protos.append(Message("BlobProto", **sides, data=np.asarray(blob, np.float32).reshape(-1)))
        layers.append(Message("LayerParameter", name=name, blobs=protos))
    path.write_bytes(b"".join(wire.serialize(Message("NetParameter", layer=layers))))
    return path


def test_a_file_of_2014_goes_in_the_shapes_that_the_layers_have(tmp_path: Path) -> None:
    weights = old_weights(tmp_path / "lenet.caffemodel")
    assert [blob.ndim for blob in caffemodel.read(weights).layers[0].blobs] == [4, 4]
    subject = prepare(CASES / "v1_blob_shape/lenet.prototxt", weights)
    assert {name: [np.ndim(b) for b in blobs] for name, blobs in subject.case.blobs.items()} == {
        "conv1": [4, 1],
        "conv2": [4, 1],
        "ip1": [2, 1],
        "ip2": [2, 1],
    }


def test_a_file_of_2014(caffe: Path, tmp_path: Path) -> None:
    report = verify(CASES / "v1_blob_shape/lenet.prototxt", old_weights(tmp_path / "lenet.caffemodel"), against="caffe")
    assert report.passed
    assert report.reference == CAFFE
    assert (report.compared, report.not_compared) == (8, 0)
    assert not [row for row in report.rows if row.by]


def test_a_failed_check(caffe: Path, tmp_path: Path) -> None:
    net = tmp_path / "net.prototxt"
    net.write_text(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }\n'
        'layer { name: "o" type: "Eltwise" bottom: "x" top: "o" }'
    )
    with pytest.raises(CaffePortError, match=r"at layer 'o': Check failed: .*takes at least 2 bottom.* \(layer\.hpp"):
        verify(net, against="caffe")


def test_what_caffe_refuses_is_refused_in_its_words() -> None:
    with pytest.raises(CaffePortError, match=r"overwrites 'x'.*\n.*Top blob 'x' produced by multiple sources"):
        verify(CASES / "fatal_message/net_two_inplace_consumers.prototxt", against="caffe")


def test_a_type_of_another_fork_is_compared_with_opencv(caffe: Path, golden: Path) -> None:
    report = verify(golden / "layers/swish_default.prototxt", against="caffe")
    assert report.passed
    assert report.not_compared == 0
    (row,) = report.rows
    assert row.note == f"{CAFFE} has no layer Swish: compared with OpenCV"
    assert verdict(report).startswith("PASSED: the only compared top agrees with OpenCV 4.")


def test_what_the_file_leaves_to_other_layers_is_left_to_caffe(caffe: Path) -> None:
    """A Crop without crop_param: Caffe 1.0 takes offset 0, forks before it what the layers before it imply."""
    report = verify(CASES / "crop_without_param/net.prototxt", against="caffe")
    assert not report.passed
    (row,) = report.broken
    assert row.layer == "crop"
    assert row.cause == "the file has no crop_param: Caffe takes its default, the net what the layers before it imply"
    assert any("Caffe 1.0 itself uses 0" in note for note in report.notes)


def test_equal_names(caffe: Path) -> None:
    """Caffe's file has two layers of one name; it copies both into the first, and draws the second anew."""
    case = CASES / "duplicate_names/net_dup_layer_names"
    report = verify(case.with_suffix(".prototxt"), case.with_suffix(".caffemodel"), against="caffe")
    assert report.passed
    assert statuses(report) == dict.fromkeys(("conv:0", "conv#2:0", "o:0"), "passed")


def test_weights_in_several_files(caffe: Path, golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As VGG-16's: one file of them would be too large for this Caffe."""
    monkeypatch.setattr(references_caffe, "PART", 100)
    parts = []
    divide = references_caffe._parts
    monkeypatch.setattr(references_caffe, "_parts", lambda blobs: parts.extend(divide(blobs)) or divide(blobs))
    case = golden / "layers/net_residual"
    report = verify(case.with_suffix(".prototxt"), case.with_suffix(".caffemodel"), against="caffe")
    assert report.passed
    assert len(parts) > 2


def test_random_numbers_are_the_references(caffe: Path) -> None:
    report = verify(CASES / "random_dummydata/net_InitTinyNet.prototxt", against="caffe", keep_loss=True)
    assert report.passed
    assert statuses(report) == {
        "data:0": "not compared",
        "data:1": "passed",
        "innerproduct:0": "passed",
        "loss:0": "passed",
        "loss#2:0": "passed",
    }


@pytest.mark.parametrize("name", ["loss", "frozen"])
def test_the_script_records_every_gradient(caffe: Path, tmp_path: Path, name: str) -> None:
    """Without force_backward the data have none, nor has what is frozen."""
    case, label = CASES / "backward_script_zero" / name, CASES / "backward_script_zero/lab.npy"
    net, weights = case.with_suffix(".prototxt"), case.with_suffix(".caffemodel")
    trace = record(caffe, tmp_path, net, weights, "trace.npz", "--input", f"label={label}", "--backward")
    assert trace.input_gradients["data"].any()
    assert trace.parameter_gradients["ip1", 0].any()
    report = verify(net, weights, against=trace, backward=True)
    assert report.passed
    assert report.not_compared == 0


def test_accuracy_has_no_gradient(caffe: Path) -> None:
    net, label = CASES / "backward_accuracy/acc.prototxt", CASES / "backward_accuracy/lab.npy"
    report = verify(net, against="caffe", keep_loss=True, input={"label": label}, backward=True)
    assert report.passed
    assert (report.compared, report.not_compared) == (11, 0)


def test_dropout_in_train(caffe: Path, tmp_path: Path) -> None:
    """Its numbers are Caffe's: they are not compared, and neither are gradients of what comes before."""
    case = CASES / "dropout_train_trace/net_bn_scale_dropout_relu_inplace"
    net, weights = case.with_suffix(".prototxt"), case.with_suffix(".caffemodel")
    report = verify(net, weights, against=record(caffe, tmp_path, net, weights, "trace.npz", "--phase", "TRAIN"))
    assert report.passed
    assert [name for name, status in statuses(report).items() if status == "not compared"] == ["dr:0"]
    trace = record(caffe, tmp_path, net, weights, "trace.npz", "--phase", "TRAIN", "--backward")
    report = verify(net, weights, against=trace, backward=True)
    assert report.passed
    rows = {f"{row.layer}:{row.top}": row for row in report.rows if row.type == "gradient"}
    assert rows["o:0"].status == rows["o:1"].status == "passed"
    assert "'dr' draws random numbers" in rows["data:0"].note
    assert rows["sc:0"].status == "not compared"


SSD = SHARED / "golden/forks/ssd_train_equal_scales"


def test_ssd_goes_backward(caffe: Path, shared: Path) -> None:
    """Its loss refuses gradients for priors and labels, which force_backward asks for. The labels are true boxes."""
    report = verify(
        SSD.with_suffix(".prototxt"), SSD.with_suffix(".caffemodel"), against="caffe", keep_loss=True, backward=True
    )
    assert report.passed
    assert (report.compared, report.not_compared) == (63, 0)
    gradients = {row.layer: row for row in report.rows if row.type == "gradient"}
    assert gradients["data"].status == gradients["label"].status == "passed"


@pytest.mark.parametrize("backward", [False, True])
def test_accuracy_with_equal_scores(caffe: Path, tmp_path: Path, backward: bool) -> None:
    """This Caffe has an older rule, by which some equal scores count as worse."""
    net = tmp_path / "net.prototxt"
    net.write_text(
        'input: "x" input_shape { dim: 4 dim: 5 } input: "t" input_shape { dim: 4 }\n'
        'layer { name: "r" type: "ReLU" bottom: "x" top: "r" }\n'
        'layer { name: "a" type: "Accuracy" bottom: "r" bottom: "t" top: "a" accuracy_param { top_k: 2 } }\n'
        'layer { name: "l" type: "SoftmaxWithLoss" bottom: "r" bottom: "t" top: "l" }'
    )
    report = verify(net, against="caffe", keep_loss=True, backward=backward)
    assert report.passed
    (row,) = (row for row in report.rows if row.layer == "a")
    if backward:
        assert row.status == "not compared"
    else:
        assert row.status == "passed"
        assert "decides between equal scores by the order of the classes" in row.note
        assert row.by.startswith("NumPy")


@pytest.mark.parametrize(
    ("own", "other"),
    [
        ("", False),
        ("loss_param { normalization: BATCH_SIZE }", False),
        ("loss_param { normalize: false }", False),
        ("loss_param { normalization: VALID }", True),
        ("loss_param { ignore_label: 1 normalization: BATCH_SIZE }", True),
        ("loss_param { normalize: true }", True),
    ],
)
def test_older_sigmoid_cross_entropy_loss(caffe: Path, tmp_path: Path, own: str, other: bool) -> None:
    net = tmp_path / "net.prototxt"
    net.write_text(
        'input: "x" input_shape { dim: 4 dim: 5 } input: "t" input_shape { dim: 4 dim: 5 }\n'
        f'layer {{ name: "l" type: "SigmoidCrossEntropyLoss" bottom: "x" bottom: "t" top: "l" {own} }}'
    )
    report = verify(net, against="caffe", keep_loss=True)
    assert report.passed
    assert bool(report.rows[0].by) is other


@pytest.mark.parametrize("pixels", [True, False])
def test_proposals_in_pixels_and_not(caffe: Path, tmp_path: Path, pixels: bool) -> None:
    text = (CASES / "proposal_scale/proposal_one_image.prototxt").read_text()
    net = tmp_path / "net.prototxt"
    net.write_text(text.replace("proposal_param {", f"proposal_param {{ scale_in_pixels: {str(pixels).lower()}"))
    report = verify(net, against="caffe")
    assert report.passed
    assert report.not_compared == 0
    assert all(bool(row.by) is not pixels for row in report.rows)


@pytest.mark.parametrize(
    "case",
    [
        "multibox_unshared/multiboxloss_unshared",
        "multibox_inside/multiboxloss_inside",
        "detectionoutput_no_nms/detectionoutput_no_nms",
        "priorbox_clip_default/priorbox_clip_default",
    ],
)
def test_detection_with_random_boxes(caffe: Path, case: str) -> None:
    """Priors, true boxes and sizes of images that Caffe takes."""
    report = verify((CASES / case).with_suffix(".prototxt"), against="caffe", keep_loss=True)
    assert report.passed
    assert report.not_compared == 0
    assert not [row for row in report.rows if row.by]


def test_its_data_layers_read_lmdb(caffe: Path, tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 24) as store, store.begin(write=True) as transaction:
        for i in range(4):
            datum = Message("Datum", channels=1, height=2, width=3, data=bytes(range(i, i + 6)), label=i)
            transaction.put(b"%08d" % i, b"".join(wire.serialize(datum)))
    (tmp_path / "net.prototxt").write_text(
        'layer { name: "d" type: "Data" top: "x" top: "t" data_param { source: "db" backend: LMDB batch_size: 4 } }'
    )
    code = "import caffe; n = caffe.Net('net.prototxt', caffe.TEST); n.forward(); print(n.blobs['x'].data.sum())"
    done = subprocess.run([str(caffe / "bin/python"), "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split()[-1] == "96.0", done.stderr


ZOO, SIMPLENET, FORKS = SHARED / "models/zoo", SHARED / "models/simplenet", SHARED / "golden/forks"
NETS = {
    "LeNet 2014": (ZOO / "caffe2014_lenet_v1", "lenet.prototxt", "lenet_iter_10000.caffemodel"),
    "cifar10_full": (ZOO / "caffe2014_cifar10_v1", "cifar10_full.prototxt", "cifar10_full_iter_70000.caffemodel"),
    "SimpleNet MNIST": (SIMPLENET / "mnist_9972", None, "weights.caffemodel"),
    "SimpleNet SVHN": (SIMPLENET / "svhn_9757", None, "weights.caffemodel"),
    "MTCNN det1": (ZOO / "mtcnn_v2", "det1.prototxt", "det1.caffemodel"),
    "MTCNN det2": (ZOO / "mtcnn_v2", "det2.prototxt", "det2.caffemodel"),
    "MTCNN det3": (ZOO / "mtcnn_v2", "det3.prototxt", "det3.caffemodel"),
    "slim-320": (ZOO / "ultralight_slim-320", "slim-320.prototxt", "slim-320.caffemodel"),
    "SSD deploy": (FORKS, "ssd_deploy.prototxt", "ssd_deploy.caffemodel"),
    "SSD train": (FORKS, "ssd_train_equal_scales.prototxt", "ssd_train_equal_scales.caffemodel"),
}


@pytest.mark.parametrize("name", NETS)
def test_real_nets(caffe: Path, shared: Path, name: str) -> None:
    """Every top, by Caffe itself. The greatest tolerance that was needed stands in docs/real-caffe.md."""
    folder, prototxt, weights = NETS[name]
    report = verify(prototxt and folder / prototxt, folder / weights, against="caffe")
    worst = report.worst
    print(f"\n| {name} | {report.compared} | {worst.needed_atol if worst else 0:.1e} |")
    assert report.passed
    assert report.reference == CAFFE
    assert report.not_compared == 0
    assert not [row for row in report.rows if row.by]
